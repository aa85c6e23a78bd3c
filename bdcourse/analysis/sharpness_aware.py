"""The step of sharpness-aware minimization, measured by the weights themselves.

Kwon et al., "ASAM: Adaptive Sharpness-Aware Minimization", ICML 2021; the formulas
stand in `defenses.ft_sam`. A defender takes it (FT-SAM, the SAM variant of FIP), and so
does an attacker who knows what will be looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from bdcourse.hooks import Hook, TrainBatch
from bdcourse.likelihoods import SOFTMAX, Likelihood
from bdcourse.models import laid_out
from bdcourse.surgery import called_with


@torch.no_grad()
def ascent(weights: Iterable[Tensor], gradients: Iterable[Tensor], rho: float) -> list[Tensor]:
    """The worst small move of the weights, rho * T^2 g / ||T g|| with T = diag(|w|).

    To first order it maximizes the loss over all e with sqrt(sum (e_i / w_i)^2) <= rho;
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
    likelihood: Likelihood = SOFTMAX,
) -> Tensor:
    """The loss at the worst point near the weights; its gradient by them is SAM's.

    The same without a change of the model: w + e enters as an argument, and as e is a
    constant the derivative by w is that at w + e.

    Args:
        x: inputs, of images pixels in [0, 1], (n, c, h, w); y: targets.
        loss: of the model on x, y, with its graph, which is used up.
    """
    weights = {n: w for n, w in model.named_parameters() if w.requires_grad}
    own = [*weights.values()]
    shifts = ascent(own, torch.autograd.grad(loss, own, materialize_grads=True), rho)
    moved = {n: w + e for (n, w), e in zip(weights.items(), shifts, strict=True)}
    # Copies of the buffers, or BatchNorm would count the moved network's statistics.
    moved |= {n: b.clone() for n, b in model.named_buffers()}
    out = called_with(model, moved, laid_out(model, x))
    return likelihood.loss(out, y, smoothing)


class Flat(Hook):
    """Makes `fit` descend with the gradient at the worst point near the weights."""

    def __init__(
        self,
        model: nn.Module,
        rho: float,
        smoothing: float,
        likelihood: Likelihood = SOFTMAX,
    ) -> None:
        self.model, self.rho, self.smoothing = model, rho, smoothing
        self.likelihood = likelihood
        self.rises: list[Tensor] = []

    def rewrite(self, batch: TrainBatch) -> TrainBatch:
        self.x = batch.x
        return batch

    def loss(self, loss: Tensor, out: Tensor, y: Tensor) -> Tensor:
        loss = self.likelihood.loss(out, y, self.smoothing)
        higher = moved_loss(self.model, self.x, y, loss, self.rho, self.smoothing, self.likelihood)
        self.rises.append((higher - loss).detach())
        return higher

    def sharpness(self, _: nn.Module) -> dict[str, float]:
        """How much higher the worst point was, mean over the steps since last asked."""
        rises, self.rises = torch.stack(self.rises), []
        return {"sharpness": float(rises.mean())}
