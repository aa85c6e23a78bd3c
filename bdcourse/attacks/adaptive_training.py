"""Attackers who know that the defender will look for smooth ground.

FIP's authors let the attacker train his victim smooth to begin with: with the same
penalty as the defense, or with sharpness-aware minimization. Their penalty is not the
one of their paper (see `defenses.fip_released`), so this is the experiment with the
paper's own. Derived in lesson 08.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.analysis.curvature import squared_norm
from bdcourse.analysis.sharpness_aware import Flat
from bdcourse.hooks import Hook, TrainBatch
from bdcourse.likelihoods import SOFTMAX
from bdcourse.models import laid_out
from bdcourse.surgery import called_with


class Smoothing(Hook):
    """Trains on loss + eta_f * Tr F, with labels drawn from the network for the trace.

    As in `defenses.FipDescent`, whose gradient this has; there the weights can be moved in
    place, here they enter as arguments, since `fit` goes backward only once.

    Args:
        eta_f: weight of the trace; the authors' command for this attacker takes 0.01.
    """

    kept = ("generator",)

    def __init__(self, model: nn.Module, eta_f: float, generator: torch.Generator) -> None:
        self.model = require.module(model)
        self.eta_f = require.number("eta_f", eta_f, 0)
        self.generator = require.generator(generator)

    def rewrite(self, batch: TrainBatch) -> TrainBatch:
        self.x = batch.x
        return batch

    def loss(self, loss: Tensor, out: Tensor, y: Tensor) -> Tensor:
        weights = {n: w for n, w in self.model.named_parameters() if w.requires_grad}
        drawn = SOFTMAX.sample(out, self.generator)
        score = SOFTMAX.log_prob(out, drawn).sum()
        g = torch.autograd.grad(score, list(weights.values()), retain_graph=True)
        length = squared_norm(g).sqrt().clamp(min=1e-12)
        size = squared_norm([w.detach() for w in weights.values()]).sqrt()
        e = 1e-3 * size / length
        moved = {
            n: (w + e * v).detach().requires_grad_()
            for (n, w), v in zip(weights.items(), g, strict=True)
        }
        # Copies of the buffers, or BatchNorm would count what the moved network sees.
        buffers = {n: b.clone() for n, b in self.model.named_buffers()}
        x = laid_out(self.model, self.x)
        there = called_with(self.model, moved | buffers, x)
        score = SOFTMAX.log_prob(there, drawn).sum()
        change = torch.autograd.grad(score, list(moved.values()))
        factor = 2 * self.eta_f / len(y)
        pulls = (
            (factor * (t - v) / e * w).sum()
            for t, v, w in zip(change, g, weights.values(), strict=True)
        )
        pull = cast(Tensor, sum(pulls))
        trace = self.eta_f * squared_norm(g) / len(y)
        # The value of the objective, with the gradient of `pull` for that of the trace.
        return loss + trace + (pull - pull.detach())


def steer(kind: str):
    """What `fit` takes as `hook` for an attacker who trains "smooth" or "sam".

    The authors' weights: eta_f = 0.01; rho = 2 and label smoothing 0.1.
    """
    if kind == "smooth":
        return lambda model, data, generator, total: Smoothing(model, 0.01, generator)
    if kind == "sam":
        return lambda model, data, generator, total: Flat(model, 2.0, 0.1)
    raise ValueError(f'aware must be "smooth" or "sam", not {require.kind(kind)}.')
