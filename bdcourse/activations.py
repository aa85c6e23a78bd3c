"""Looking inside: what single channels do on clean and on triggered images.

Everything here that takes an attack is analysis, not defense: it uses the trigger,
which a defender does not have. Derived in lesson 03.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bdcourse import require
from bdcourse.examples import Examples, require_clean
from bdcourse.models import evaluating, guarded, wide
from bdcourse.surgery import CONVS, answers, require_answers, require_sound
from bdcourse.task import IMAGES, PixelTask, Task
from bdcourse.triggers import Trigger, is_trigger


@contextmanager
def watching(
    model: nn.Module, see: Callable[[str, Tensor], None], names: Iterable[str]
) -> Iterator[None]:
    """Call `see(name, output)` whenever one of the named modules has run."""
    modules = dict(require.module(model).named_modules())
    names = _listed(names)
    missing = [n for n in names if n not in modules]
    if missing:
        raise ValueError(f"the model has no layer {missing[0]!r}.")
    hooks = [modules[n].register_forward_hook(lambda _, __, out, n=n: see(n, out)) for n in names]
    try:
        yield
    finally:
        for h in hooks:
            h.remove()


def _listed(names: object) -> list[str]:
    """Names of layers, as a list."""
    if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
        raise ValueError(f"names must be a list of names of layers, not {require.kind(names)}.")
    names = list(names)
    if wrong := [n for n in names if not isinstance(n, str)]:
        raise ValueError(f"names must hold names of layers, not {require.kind(wrong[0])}.")
    return names


def positions(out: Tensor) -> Tensor:
    """Maps with their positions in a row: (n, c, ...) -> (n, c, p). A unit without
    positions, such as one of a linear layer, has one."""
    return out[..., None].flatten(2)


def map_ranks(model: nn.Module) -> set[int]:
    """How many axes one example's feature maps have: 3 behind a Conv2d, (c, h, w).

    Of a network without convolutions it is empty: what its layers hand on, such as the
    tokens of a transformer, (t, c), is not told apart by channels first.
    """
    kinds = [kind for m in model.modules() for kind in CONVS if isinstance(m, kind)]
    return {2 + CONVS.index(kind) for kind in kinds}


def batchnorms(model: nn.Module) -> list[str]:
    """Names of the model's BatchNorm layers, in the order of definition."""
    found = require.module(model).named_modules()
    return [n for n, m in found if isinstance(m, _BatchNorm)]


def runs(model: nn.Module, x: Tensor, names: Iterable[str] | None = None) -> dict[str, int]:
    """How often each module runs in one pass over inputs x, in eval mode.

    A ReLU or a pooling may be defined once and used in many places: then there is no
    one feature map of that name.

    Args:
        x: as the network takes them; of images uint8 pixels too.
        names: default all modules.
    """
    names = [n for n, _ in model.named_modules()] if names is None else _listed(names)
    counts = dict.fromkeys(names, 0)

    def see(name: str, _) -> None:
        counts[name] += 1

    with watching(model, see, counts):
        answers(model, IMAGES.inputs(x))
    return counts


def outputs(
    model: nn.Module, x: Tensor, names: Iterable[str], task: Task = IMAGES
) -> dict[str, Tensor]:
    """Eval-mode outputs of the named layers: name -> (n, c, h, w), on the CPU.

    Args:
        x: inputs of the task, or examples as it stores them; of images, pixels.
    """
    names = _listed(names)
    kept: dict[str, list[Tensor]] = {n: [] for n in names}
    with watching(model, lambda n, out: kept[n].append(_map(n, out).cpu()), names):
        task.outputs(model, x)
    _require_once(kept, len(x))
    return {n: torch.cat(parts) for n, parts in kept.items()}


def norms(
    model: nn.Module, x: Tensor, names: Iterable[str], p: float = 2, task: Task = IMAGES
) -> dict[str, Tensor]:
    """Mean over examples of each channel's activation norm: name -> (c,).

    Args:
        x, task: see :func:`outputs`.
        p: 1, 2 or float("inf"); the norm runs over the positions of a feature map.
    """
    names = _listed(names)
    require_images(x)
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not p >= 1:
        raise ValueError(f"p must be 1, 2 or float('inf'), not {require.kind(p)}.")
    sums: dict[str, Tensor] = {}

    def see(name: str, out: Tensor) -> None:
        total = wide(positions(_map(name, out, 2)).norm(p, dim=2)).sum(0).cpu()
        sums[name] = sums.get(name, 0) + total

    with watching(model, see, names):
        task.outputs(model, x)
    _require_reached(names, sums)
    return {n: (s / len(x)).float() for n, s in sums.items()}


def _map(name: str, out: object, least: int = 1) -> Tensor:
    """The output of a layer, if it is a tensor with enough axes."""
    if not isinstance(out, Tensor) or out.ndim < least:
        raise ValueError(
            f"layer {name!r} gives {require.kind(out)}, not a tensor with channels; name another."
        )
    return out


def _require_once(kept: dict[str, list[Tensor]], n: int) -> None:
    for name, parts in kept.items():
        if sum(map(len, parts)) != n:
            raise ValueError(
                f"layer {name!r} does not run once in each pass, so it has no one "
                "output; name another."
            )


def _require_reached(names: Iterable[str], sums: dict[str, Tensor]) -> None:
    for name in names:
        if name not in sums:
            raise ValueError(f"layer {name!r} never runs; name another.")


def require_images(x: object) -> None:
    """Refuse to take a mean over no image."""
    if isinstance(x, Tensor) and x.ndim and len(x) == 0:
        raise ValueError("there is no image to look at.")


def tac(
    model: nn.Module,
    images: Examples,
    attack: Trigger,
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
    names = batchnorms(model) if names is None else _listed(names)
    require_clean(images, "images", 1)
    if not is_trigger(attack) and not callable(getattr(attack, "trigger", None)):
        raise ValueError(f"attack must have a trigger, and {require.kind(attack)} has none.")
    batch = require.whole("batch", batch, 1)
    require_answers(require_sound(model, steady=False), images, k=False)
    sums: dict[str, Tensor] = {}
    clean: dict[str, Tensor] = {}

    def remember(name: str, out: Tensor) -> None:
        clean[name] = _map(name, out, 2)

    def compare(name: str, out: Tensor) -> None:
        change = wide(positions(out - clean.pop(name)).norm(dim=2)).sum(0).cpu()
        sums[name] = sums.get(name, 0) + change

    for i in range(0, len(images), batch):
        part = images[i : i + batch]
        inputs = part.inputs()
        with watching(model, remember, names):
            part.task.outputs(model, inputs, batch)
        with watching(model, compare, names):
            part.task.outputs(model, _triggered(attack, inputs, part.y), batch)
    _require_reached(names, sums)
    return {n: (s / len(images)).float() for n, s in sums.items()}


def _triggered(attack: Trigger, x: Tensor, y: Tensor) -> Tensor:
    """What is measured, also of an object that has only a `trigger`."""
    return attack.apply(x, y) if is_trigger(attack) else attack.trigger(x)


def ranks(values: Tensor) -> Tensor:
    """Ranks 0..n-1, ties sharing their mean: (n,) -> (n,) float64."""
    v = wide(_values(values))
    smaller = (v[:, None] > v).sum(1)
    ties = (v[:, None] == v).sum(1) - 1
    return smaller + ties / 2


def _values(values: object) -> Tensor:
    """Numbers that can be ranked, (n,)."""
    if not isinstance(values, Tensor) or values.ndim != 1 or values.is_complex():
        raise ValueError(
            f"what is ranked must be numbers of shape (n,), not {require.kind(values)}."
        )
    return values


def spearman(a: Tensor, b: Tensor) -> float:
    """Rank correlation in -1..1; 0 if one of the two does not vary."""
    if _values(a).shape != _values(b).shape or not len(a):
        raise ValueError("a and b must be as long as each other, and not empty.")
    a, b = (r - r.mean() for r in (ranks(a), ranks(b)))
    size = float((a.square().sum() * b.square().sum()).sqrt())
    return float(a @ b) / size if size > 0 else 0.0


RESIZED = {1: "linear", 2: "bilinear", 3: "trilinear"}  # by the axes of a map


def grad_cam(
    model: nn.Module, x: Tensor, labels: Tensor, layer: str, task: Task = IMAGES
) -> Tensor:
    """Where a layer sees evidence for a label: (n, h, w) in [0, 1] at the size of x.

    Of clips (n, t, h, w); of what has no pixels, such as points, at the layer's own size.

    Weights each channel of the layer by the mean gradient of the label's logit, sums,
    keeps the positive part, scales each map to a maximum of one.

    Args:
        x: inputs of the task, of images pixels in [0, 1], (n, c, h, w).
        labels: (n,) int64, the label to explain for each image.
        layer: name of a module with (n, c, h, w) output, such as "layer3".

    Raises:
        ValueError: inputs that are not floats, along which nothing can be differentiated.

    Source: Selvaraju et al., "Grad-CAM", ICCV 2017.
    """
    task.check_inputs(x)
    if not x.is_floating_point():
        raise ValueError(
            f"Grad-CAM differentiates along the inputs, and {task.many} are "
            f"{require.kind(x)}, which are no numbers that can move a little."
        )
    require_images(x)
    require.labels(labels, len(x), name="labels")
    device = next(require_sound(model, steady=False).parameters()).device
    kept: list[Tensor] = []

    def see(name: str, out: Tensor) -> None:
        kept.append(_map(name, out, 3))

    look = (watching(model, see, [layer]), evaluating(model), guarded(model))
    with look[0], look[1], look[2], torch.enable_grad():
        # Of a network whose weights are frozen, maps still depend on the pixels.
        out = model(x.to(device).detach().requires_grad_())
        if not isinstance(out, Tensor) or out.ndim != 2:
            raise ValueError(f"the model must answer with logits (n, k), not {require.kind(out)}.")
        if len(kept) != 1:
            raise ValueError(
                f"layer {layer!r} runs {len(kept)} times in a pass, so it has no one "
                "feature map; name another."
            )
        require.labels(labels, len(x), out.shape[1], name="labels")
        score = out.gather(1, labels.to(device)[:, None]).sum()
        (grad,) = torch.autograd.grad(score, kept[0], materialize_grads=True)
    places = tuple(range(2, grad.ndim))
    cam = (grad.mean(places, keepdim=True) * kept[0]).sum(1).relu().detach()
    top = cam.flatten(1).amax(1).clamp(min=1e-12)
    cam = cam / top.view(-1, *(1 for _ in places))
    if isinstance(task, PixelTask):
        mode, size = RESIZED[len(places)], x.shape[2:]
        cam = F.interpolate(cam[:, None], size, mode=mode, align_corners=False)[:, 0]
    return cam.clamp(0, 1).cpu()
