"""How sharp is the minimum in which a network sits? Fisher, Hessian, landscape.

Everything here looks at the log-likelihood log p(y | x, w) of a network with weights w.
Its gradient by the weights is the score s(x, y). The Fisher information is

    F = mean over x of  E_{y ~ p(. | x, w)} [ s s^T ],

with labels drawn from the network itself; with the labels of the data it is the
*empirical* Fisher, which is something else: it fades with the training loss. BatchNorm
is in eval mode throughout: else the score of an image would depend on its neighbours.
Born in lesson 08.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Likelihood(Protocol):
    """What a network's outputs say about targets; any differentiable one will do."""

    def log_prob(self, out: Tensor, y: Tensor) -> Tensor:
        """log p(y | out) in nats, one number an example: (n,)."""

    def sample(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """Targets drawn from p(. | out), shaped like y."""

    def noise(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """A random tensor like `out`, with mean 0 and, in each example, the covariance
        of the gradient of log p by `out` when y is drawn; it may depend on `out`."""


class Softmax:
    """Softmax over the last axis: classes (n, k), or tokens of a sequence (n, t, k).

    Positions of a sequence are summed, as teacher forcing asks; those whose target is
    `ignore` count as nothing.
    """

    def __init__(self, ignore: int = -100) -> None:
        self.ignore = ignore

    def log_prob(self, out: Tensor, y: Tensor) -> Tensor:
        nll = F.cross_entropy(
            out.flatten(0, -2), y.flatten(), ignore_index=self.ignore, reduction="none"
        )
        return -nll.view(len(out), -1).sum(1)

    def sample(self, out: Tensor, generator: torch.Generator) -> Tensor:
        p = out.detach().softmax(-1).flatten(0, -2)
        p = p.to(generator.device)
        drawn = torch.multinomial(p, 1, generator=generator)
        return drawn.view(out.shape[:-1]).to(out.device)

    def noise(self, out: Tensor, generator: torch.Generator) -> Tensor:
        p = out.softmax(-1)
        e = torch.randn(out.shape, generator=generator, device=generator.device)
        e = p.sqrt() * e.to(out)
        return e - p * e.sum(-1, keepdim=True)


def squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of the squares of all entries."""
    return torch.stack([t.square().sum() for t in tensors]).sum()


def bartlett(
    out: Tensor,
    weights: Sequence[Tensor],
    likelihood: Likelihood,
    generator: torch.Generator,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """g = sum of the scores of a batch at labels drawn from the network: one backward.

    Scores at such labels have mean zero (Bartlett's first identity), so in ||g||^2 the
    cross terms vanish on average: ||g||^2 / n is an unbiased estimate of the trace of
    the Fisher, and g * g / n of its diagonal.
    """
    y = likelihood.sample(out, generator)
    total = likelihood.log_prob(out, y).sum()
    return torch.autograd.grad(total, weights, create_graph=create_graph)
