"""FT-SAM: fine-tuning that looks for flat ground, with steps measured by the weights.

Zhu, Wei, Shen, Fan and Wu, "Enhancing Fine-Tuning Based Backdoor Defense with
Sharpness-Aware Minimization", ICCV 2023. Plain fine-tuning on clean images hardly moves
the neurons of a backdoor, as the clean loss is small already. So each step first walks
to the worst point near the weights w, and then descends with the gradient found there:

    e = rho * T^2 g / ||T g||,    T = diag(|w|),    g = gradient of the loss at w
    w <- w - lr * gradient of the loss at w + e

T makes the neighbourhood adaptive (Kwon et al., "ASAM", ICML 2021): it is the set of
all e with sqrt(sum (e_i / w_i)^2) <= rho, so a large weight is moved far, and backdoor
neurons tend to have large weights. All parameters are moved, those of BatchNorm too;
the running statistics of BatchNorm are only fed by the network that is not moved.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse import require
from bdcourse.checkpoint import Checkpoint
from bdcourse.data import Images
from bdcourse.defenses.base import Purified, copied, defense, require_training
from bdcourse.hooks import Hook
from bdcourse.models import fingerprint, laid_out
from bdcourse.surgery import called_with
from bdcourse.train import Augment, fit


@torch.no_grad()
def ascent(
    weights: Iterable[Tensor], gradients: Iterable[Tensor], rho: float
) -> list[Tensor]:
    """The worst small move of the weights, rho * T^2 g / ||T g|| with T = diag(|w|).

    To first order it maximises the loss over all e with sqrt(sum (e_i / w_i)^2) <= rho;
    the norm runs over all weights together.
    """
    weights, gradients = list(weights), list(gradients)
    scaled = [w.abs() * g for w, g in zip(weights, gradients, strict=True)]  # T g
    norm = torch.stack([s.norm() for s in scaled]).norm().clamp(min=1e-12)
    return [rho / norm * w.abs() * s for w, s in zip(weights, scaled, strict=True)]


def sam_step(
    objective: Callable[[], Tensor],
    weights: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
    rho: float,
) -> tuple[Tensor, Tensor]:
    """One step in place: (loss at the weights, loss at the worst point near them).

    The paper's step for any function of any weights, and the reference that training is
    tested against.

    Args:
        objective: () -> the loss at the present value of the weights.
    """
    loss = objective()
    shifts = ascent(weights, torch.autograd.grad(loss, weights), rho)
    before = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for w, e in zip(weights, shifts, strict=True):
            w += e
    higher = objective()
    optimizer.zero_grad()
    higher.backward()  # the gradient at w + e ...
    with torch.no_grad():
        for w, b in zip(weights, before, strict=True):
            w.copy_(b)
    optimizer.step()  # ... is used at w
    return loss.detach(), higher.detach()


def moved_loss(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: Tensor,
    rho: float,
    smoothing: float = 0.0,
) -> Tensor:
    """The loss at the worst point near the weights; its gradient by them is SAM's.

    The same without a change of the model: w + e enters as an argument, and as e is a
    constant the derivative by w is that at w + e.

    Args:
        x: pixels in [0, 1], (n, c, h, w); y: labels.
        loss: of the model on x, y, with its graph, which is used up.
    """
    weights = {n: w for n, w in model.named_parameters() if w.requires_grad}
    gradients = torch.autograd.grad(loss, weights.values(), materialize_grads=True)
    shifts = ascent(weights.values(), gradients, rho)
    moved = {n: w + e for (n, w), e in zip(weights.items(), shifts, strict=True)}
    # Copies of the buffers, or BatchNorm would count the moved network's statistics.
    moved |= {n: b.clone() for n, b in model.named_buffers()}
    logits = called_with(model, moved, laid_out(model, x))
    return F.cross_entropy(logits, y, label_smoothing=smoothing)


class Flat(Hook):
    """Makes `fit` descend with the gradient at the worst point near the weights."""

    resumable = True

    def __init__(self, model: nn.Module, rho: float, smoothing: float) -> None:
        self.model, self.rho, self.smoothing = model, rho, smoothing
        self.rises: list[Tensor] = []

    def rewrite(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        self.x = x
        return x, y, torch.zeros_like(y)

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, y, label_smoothing=self.smoothing)
        higher = moved_loss(self.model, self.x, y, loss, self.rho, self.smoothing)
        self.rises.append((higher - loss).detach())
        return higher

    def sharpness(self, _: nn.Module) -> dict[str, float]:
        """How much higher the worst point was, mean over the steps since last asked."""
        rises, self.rises = torch.stack(self.rises), []
        return {"sharpness": float(rises.mean())}


@defense(steady=False, moves=True)
def ft_sam(
    model: nn.Module,
    clean: Images,
    *,
    rho: float = 4.0,
    smoothing: float = 0.1,
    epochs: float = 20,
    lr: float = 0.05,
    batch: int = 32,
    augment: Augment | None = None,
    generator: torch.Generator,
    checkpoint: str | os.PathLike | None = None,
    **options,
) -> Purified:
    """Fine-tune a copy of the model on clean images with adaptive SAM.

    A step costs two passes forward and two backward.

    Args:
        rho: radius of the neighbourhood in units of the weights themselves. Ours: of 2,
            4 and 8 the largest that kept held-out clean accuracy on two victims of
            width 8. BackdoorBench takes 2 for PreActResNet-18 of width 64 on CIFAR-10.
        smoothing: of the labels, 0..1; 0.1 is BackdoorBench's configuration. With rho
            and smoothing 0 this is plain fine-tuning.
        epochs, batch, lr: ours, for 240 images; BackdoorBench takes 100 epochs at 0.01.
        checkpoint: file that stands while this runs, with a second one (name plus
            ".fit") that is renewed after each epoch, and both are gone at the end. The
            same call, started again after a stop, ends where it would have ended.
        options: for `train.fit`.

    Returns:
        in `log`, one number an epoch: `loss` at the worst points, `sharpness` (by how
        much that exceeds the loss at the weights, in nats), `acc` in training.

    Raises:
        ValueError: negative rho, smoothing outside 0..1.

    Source: Zhu et al., ICCV 2023. Born in lesson 09.
    """
    start = time.perf_counter()
    require.number("rho", rho)
    require.number("smoothing", smoothing)
    require_training(epochs=epochs, lr=lr, batch=batch, options=options)
    if rho < 0 or not 0 <= smoothing < 1:
        raise ValueError(
            "rho must not be negative and smoothing must lie in 0..1, without 1, not "
            f"{rho} and {smoothing}."
        )
    about = {"defense": "ft_sam", "model": fingerprint(model), "data": clean.digest()}
    about |= {"rho": rho, "smoothing": smoothing, "seed": generator.initial_seed()}
    keep = Checkpoint(checkpoint, about)
    if keep.load() is None:
        keep.save({})
    model = copied(model)
    flat = Flat(model, rho, smoothing)
    history = fit(
        model,
        clean,
        epochs=epochs,
        lr=lr,
        batch=batch,
        augment=augment,
        generator=generator,
        steering=lambda *_: flat,
        each_epoch=flat.sharpness,
        checkpoint=None if checkpoint is None else f"{checkpoint}.fit",
        # Both passes must be the same function, and the second is not compiled.
        **({"verbose": False, "compile": False} | options),
    )
    if history.interrupted:
        raise KeyboardInterrupt
    keep.done()
    log = {key: history[key] for key in ("loss", "sharpness", "acc")}
    return Purified(model, log=log, seconds=time.perf_counter() - start)
