"""Looking inside: what single channels do on clean and on triggered images.

Everything here that takes an attack is analysis, not defense: it uses the trigger,
which a defender does not have. Born in lesson 03.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse.attacks.base import Attack
from bdcourse.data import Images
from bdcourse.metrics import logits


@contextmanager
def watching(
    model: nn.Module, see: Callable[[str, Tensor], None], names: Iterable[str]
) -> Iterator[None]:
    """Call `see(name, output)` whenever one of the named modules has run."""
    modules = dict(model.named_modules())
    missing = [n for n in names if n not in modules]
    if missing:
        raise ValueError(f"the model has no layer {missing[0]!r}.")
    hooks = [
        modules[n].register_forward_hook(lambda _, __, out, n=n: see(n, out))
        for n in names
    ]
    try:
        yield
    finally:
        for h in hooks:
            h.remove()


def batchnorms(model: nn.Module) -> list[str]:
    """Names of the model's BatchNorm2d layers, in the order of definition."""
    return [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]


def outputs(model: nn.Module, x: Tensor, names: Iterable[str]) -> dict[str, Tensor]:
    """Eval-mode outputs of the named layers for pixels x: name -> (n, c, h, w), CPU."""
    names = list(names)
    kept: dict[str, list[Tensor]] = {n: [] for n in names}
    with watching(model, lambda n, out: kept[n].append(out.cpu()), names):
        logits(model, x)
    return {n: torch.cat(parts) for n, parts in kept.items()}


def norms(
    model: nn.Module, x: Tensor, names: Iterable[str], p: float = 2
) -> dict[str, Tensor]:
    """Mean over images of each channel's activation norm: name -> (c,).

    Args:
        p: 1, 2 or float("inf"); the norm runs over the positions of a feature map.
    """
    names = list(names)
    sums: dict[str, Tensor] = {}

    def see(name: str, out: Tensor) -> None:
        total = out.flatten(2).norm(p, dim=2).double().sum(0).cpu()
        sums[name] = sums.get(name, 0) + total

    with watching(model, see, names):
        logits(model, x)
    return {n: (s / len(x)).float() for n, s in sums.items()}


def tac(
    model: nn.Module,
    images: Images,
    attack: Attack,
    names: Iterable[str] | None = None,
    batch: int = 250,
) -> dict[str, Tensor]:
    """Trigger-activated change of every channel: name -> (c,).

    TAC_k = mean over images x of || F_k(x) - F_k(trigger(x)) ||_2, where F_k is the
    feature map of channel k at the output of a BatchNorm, before the ReLU, and the norm
    runs over positions. (BackdoorBench sums the mean absolute difference instead.)

    Args:
        names: BatchNorm layers; default all of the model's.
    """
    names = batchnorms(model) if names is None else list(names)
    sums: dict[str, Tensor] = {}
    clean: dict[str, Tensor] = {}

    def remember(name: str, out: Tensor) -> None:
        clean[name] = out

    def compare(name: str, out: Tensor) -> None:
        change = (out - clean.pop(name)).flatten(2).norm(dim=2).double().sum(0).cpu()
        sums[name] = sums.get(name, 0) + change

    for part in images.x.split(batch):
        pixels = part.float() / 255
        with watching(model, remember, names):
            logits(model, pixels, batch)
        with watching(model, compare, names):
            logits(model, attack.trigger(pixels), batch)
    return {n: (s / len(images)).float() for n, s in sums.items()}


def ranks(values: Tensor) -> Tensor:
    """Ranks 0..n-1, ties sharing their mean: (n,) -> (n,) float64."""
    v = values.double()
    smaller = (v[:, None] > v).sum(1)
    ties = (v[:, None] == v).sum(1) - 1
    return smaller + ties / 2


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation in -1..1; 0 if one of the two does not vary."""
    a, b = (r - r.mean() for r in (ranks(a), ranks(b)))
    size = float((a.square().sum() * b.square().sum()).sqrt())
    return float(a @ b) / size if size > 0 else 0.0


def grad_cam(model: nn.Module, x: Tensor, labels: Tensor, layer: str) -> Tensor:
    """Where a layer sees evidence for a label: (n, h, w) in [0, 1] at the size of x.

    Weights each channel of the layer by the mean gradient of the label's logit, sums,
    keeps the positive part, scales each map to a maximum of one.

    Args:
        x: pixels in [0, 1], (n, c, h, w).
        labels: (n,) int64, the label to explain for each image.
        layer: name of a module with (n, c, h, w) output, such as "layer3".

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017.
    """
    device = next(model.parameters()).device
    kept: dict[str, Tensor] = {}
    training = model.training
    model.eval()
    with watching(model, kept.__setitem__, [layer]), torch.enable_grad():
        out = model(x.to(device))
        score = out.gather(1, labels.to(device)[:, None]).sum()
        (grad,) = torch.autograd.grad(score, kept[layer])
    model.train(training)
    cam = (grad.mean((2, 3), keepdim=True) * kept[layer]).sum(1).relu().detach()
    cam = cam / cam.flatten(1).amax(1).clamp(min=1e-12).view(-1, 1, 1)
    size = x.shape[2:]
    cam = F.interpolate(cam[:, None], size, mode="bilinear", align_corners=False)
    return cam[:, 0].clamp(0, 1).cpu()
