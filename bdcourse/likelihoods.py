"""What a network's outputs say about targets: the one function that training, the Fisher
information and every repair with a loss share. Derived in lesson 08."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bdcourse import require
from bdcourse.seeds import random_normal


class Likelihood:
    """log p(target | outputs), and how targets are drawn from it.

    One of your own needs `log_prob` and `sample`; the others have a default, or say that
    they are missing.
    """

    def log_prob(self, out: Tensor, y: Tensor) -> Tensor:
        """log p(y | out) in nats, one number an example: (n,)."""
        raise NotImplementedError

    def sample(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """Targets drawn from p(. | out), shaped like y."""
        raise NotImplementedError

    def loss(self, out: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
        """What training minimizes: the mean of -log p over a batch, in nats.

        Args:
            smoothing: share of each target that is spread over all; 0 unless the
                likelihood knows what that means.
        """
        if smoothing:
            raise ValueError(f"{type(self).__name__} has no smoothing; pass smoothing=0.")
        return -self.log_prob(out, y).mean()

    def noise(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """A random tensor like `out`, with mean 0 and, in each example, the covariance
        of the gradient of log p by `out` when y is drawn; it may depend on `out`."""
        raise _missing(self, "noise")

    def roots(self, out: Tensor) -> Tensor:
        """Like `noise` without chance: the sum over the rows r of r r^T is the
        covariance. Shape (m, *out.shape)."""
        raise _missing(self, "roots")

    def masked(self, out: Tensor, y: Tensor) -> Tensor:
        """`out`, or gradients by it, with 0 where y has no target, as in padding."""
        return out

    def hits(self, out: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(targets that the outputs get right, targets asked) of each example, (n,)."""
        raise _missing(self, "hits")

    def has(self, method: str) -> bool:
        """Whether this likelihood brings an optional method, such as `noise`."""
        return getattr(type(self), method) is not getattr(Likelihood, method)

    def check(self, out: Tensor, y: Tensor) -> None:
        """Refuse targets y (n, ...) that do not go with the outputs of a few of them.

        Raises:
            ValueError: one sentence.
        """


def _missing(likelihood: Likelihood, method: str) -> ValueError:
    return ValueError(f"{type(likelihood).__name__} has no `{method}`, which this needs.")


class Softmax(Likelihood):
    """Softmax over the last axis: classes (n, k), or tokens of a sequence (n, t, k).

    Positions of a sequence are summed, as teacher forcing asks; those whose target is
    `ignore` count as nothing. What draws targets itself (`sample`, `noise`, `roots`)
    does not know them: give it `masked(out, y)`.
    """

    def __init__(self, ignore: int = -100) -> None:
        self.ignore = ignore

    def log_prob(self, out: Tensor, y: Tensor) -> Tensor:
        nll = F.cross_entropy(
            out.flatten(0, -2), y.flatten(), ignore_index=self.ignore, reduction="none"
        )
        return -nll.view(len(out), -1).sum(1)

    def loss(self, out: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
        total = F.cross_entropy(
            out.flatten(0, -2),
            y.flatten(),
            ignore_index=self.ignore,
            reduction="mean" if out.ndim == 2 else "sum",
            label_smoothing=smoothing,
        )
        return total if out.ndim == 2 else total / len(out)

    def sample(self, out: Tensor, generator: torch.Generator) -> Tensor:
        p = out.detach().softmax(-1).flatten(0, -2)
        p = p.to(generator.device)
        drawn = torch.multinomial(p, 1, generator=generator)
        return drawn.view(out.shape[:-1]).to(out.device)

    def noise(self, out: Tensor, generator: torch.Generator) -> Tensor:
        log_p = out.log_softmax(-1)
        # Not p.sqrt(): its slope at a p that rounds to 0 is infinite.
        e = (log_p / 2).exp() * random_normal(out, generator)
        return e - log_p.exp() * e.sum(-1, keepdim=True)

    def roots(self, out: Tensor) -> Tensor:
        """As `Likelihood.roots`; the m rows are all targets, each one's gradient times
        the root of its probability."""
        p = out.softmax(-1)
        rows = p.sqrt()[..., None] * (torch.eye(out.shape[-1]).to(p) - p[..., None, :])
        rows = rows.movedim(-2, 0)  # (k, *out.shape)
        if out.ndim == 2:
            return rows
        t = out.shape[1]  # one position at a time: they are drawn independently
        rows = rows[None] * torch.eye(t).to(p).view(t, 1, 1, t, 1)
        return rows.flatten(0, 1)

    def masked(self, out: Tensor, y: Tensor) -> Tensor:
        return out.where((y != self.ignore)[..., None], 0)

    def hits(self, out: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        counted = y != self.ignore
        right = (out.argmax(-1) == y) & counted
        return right.view(len(y), -1).sum(1), counted.view(len(y), -1).sum(1)

    def check(self, out: Tensor, y: Tensor) -> None:
        if not isinstance(out, Tensor) or out.ndim < 2:
            raise ValueError(
                f"the model answers with {require.kind(out)}, not with outputs of shape "
                "(n, ..., k); wrap it so that its forward returns these alone."
            )
        if y.dtype != torch.int64 or y.shape[1:] != out.shape[1:-1]:
            raise ValueError(
                f"targets must be int64 of shape {(len(y), *out.shape[1:-1])}, to go with "
                f"the outputs, not {require.kind(y)}."
            )
        counted, k = y[y != self.ignore], out.shape[-1]
        if len(counted) and not 0 <= int(counted.min()) <= int(counted.max()) < k:
            raise ValueError(
                f"targets run from {int(counted.min())} to {int(counted.max())}, but "
                f"the model has {k} outputs, so they must lie in 0..{k - 1}."
            )


SOFTMAX = Softmax()


def require_likelihood(likelihood: object) -> Likelihood:
    """Refuse what is no likelihood.

    Raises:
        ValueError: one sentence.
    """
    if not isinstance(likelihood, Likelihood):
        raise ValueError(
            "likelihood must be a likelihoods.Likelihood, such as Softmax(), not "
            f"{require.kind(likelihood)}; derive one of your own from it."
        )
    return likelihood
