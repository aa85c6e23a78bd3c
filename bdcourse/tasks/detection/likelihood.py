"""What the cells of a detector say about boxes, as one normalized likelihood."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bdcourse import require
from bdcourse.likelihoods import Likelihood
from bdcourse.seeds import random_normal, uniform
from bdcourse.tasks.detection.boxes import to_cells


def in_float32(out: Tensor) -> Tensor:
    """Outputs to which boxes can be cast: half precision rounds edges to half a pixel."""
    return out.float() if out.element_size() < 4 else out


class BoxLikelihood(Likelihood):
    """Each cell says yes or no to each class, and where the edges are if it says yes.

    With logits z_ck and box outputs m_cj of the cells c, classes k and sides j,

        log p = sum_ck log Bernoulli(t_ck; sigmoid(z_ck)) + sum over cells that are on
                of sum_j log Laplace(d_cj; m_cj, s),

    where d are the logarithms of distances in strides; see `boxes.to_cells`. Summed over
    all tables t and integrated over the distances this is 1. The scale s is a constant:
    choosing it is choosing how much a box counts beside a class. The focal loss, the
    loss of heat maps and mining of hard negatives are no likelihoods of anything.

    Outputs are (n, k + 4, rows, columns). Targets come as boxes (n, m, 5), or as cells of
    the shape of the outputs, with nan where no distance is asked. `sample`, `noise` and
    `roots` draw distances for every cell, and `masked` keeps those of cells that hold a
    box in the data: the places of boxes count as given, as the words so far do in a text.

    Args:
        scale: s, in units of the logarithms: 0.1 is a tenth of a distance.
        density: "laplace", whose loss is the usual absolute error, or "gaussian",
            which has a second derivative; both have the Fisher information 1 / s^2.

    The likelihood is ours; no paper states one for a detector.
    """

    def __init__(self, scale: float = 0.25, density: str = "laplace") -> None:
        self.scale = float(require.number("scale", scale, above=0))
        self.density = require.choice("density", density, ("laplace", "gaussian"))

    def log_prob(self, out: Tensor, y: Tensor) -> Tensor:
        k, out = out.shape[1] - 4, in_float32(out)
        y = self.cells(out, y)
        classes = -F.binary_cross_entropy_with_logits(out[:, :k], y[:, :k], reduction="none")
        asked = ~y[:, k:].isnan()
        # Not nan * 0: its gradient is nan.
        off = (y[:, k:].where(asked, 0.0) - out[:, k:]) / self.scale
        if self.density == "laplace":
            edges = -off.abs() - math.log(2 * self.scale)
        else:
            edges = -off.square() / 2 - math.log(self.scale * math.sqrt(2 * math.pi))
        return classes.flatten(1).sum(1) + edges.where(asked, 0.0).flatten(1).sum(1)

    def cells(self, out: Tensor, y: Tensor) -> Tensor:
        """Targets in the shape of the outputs."""
        out = in_float32(out)
        if y.ndim == out.ndim:
            return y.to(out)
        return to_cells(y.to(out), out.shape[1] - 4, (out.shape[2], out.shape[3]))

    def sample(self, out: Tensor, generator: torch.Generator) -> Tensor:
        k, out = out.shape[1] - 4, out.detach()
        p = out[:, :k].sigmoid()
        on = uniform(tuple(p.shape), generator, p) < p
        m = out[:, k:]
        if self.density == "laplace":
            u = uniform(tuple(m.shape), generator, m) - 0.5
            # 1 - 2 |u| may round to 0, whose logarithm is infinite.
            drawn = -u.sign() * (1 - 2 * u.abs()).clamp(min=1e-12).log()
        else:
            drawn = random_normal(m, generator)
        return torch.cat([on.to(out), m + self.scale * drawn], 1)

    def noise(self, out: Tensor, generator: torch.Generator) -> Tensor:
        return self._deviations(out) * random_normal(out, generator)

    def roots(self, out: Tensor) -> Tensor:
        """As `Likelihood.roots`: one row an output, since all are drawn independently."""
        each = self._deviations(out).flatten(1)
        rows = torch.eye(each.shape[1]).to(each)[:, None] * each
        return rows.view(-1, *out.shape)

    def _deviations(self, out: Tensor) -> Tensor:
        """Of the gradient of log p by each output: its standard deviation."""
        k = out.shape[1] - 4
        z = out[:, :k]
        # Not the root of p (1 - p): its slope where that rounds to 0 is infinite.
        root = ((F.logsigmoid(z) + F.logsigmoid(-z)) / 2).exp()
        return torch.cat([root, torch.full_like(out[:, k:], 1 / self.scale)], 1)

    def masked(self, out: Tensor, y: Tensor) -> Tensor:
        k = out.shape[-3] - 4  # rows of gradients have an axis before
        shape = out if out.ndim == 4 else out[0]
        asked = ~self.cells(shape.detach(), y)[:, k:].isnan()
        keep = torch.cat([torch.ones_like(shape[:, :k], dtype=torch.bool), asked], 1)
        return out.where(keep, 0.0)

    def hits(self, out: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Cells that say exactly what they should, of those where something is or is said."""
        k = out.shape[1] - 4
        want, have = self.cells(out, y)[:, :k] > 0.5, out[:, :k] > 0
        asked = (want | have).any(1)
        right = (want == have).all(1) & asked
        return right.flatten(1).sum(1), asked.flatten(1).sum(1)

    def check(self, out: Tensor, y: Tensor) -> None:
        if not isinstance(out, Tensor) or out.ndim != 4 or out.shape[1] < 5:
            raise ValueError(
                f"the model answers with {require.kind(out)}, not with what its cells say, of "
                "shape (n, classes + 4, rows, columns)."
            )
        boxes = y.ndim == 3 and y.shape[2] == 5
        if not y.is_floating_point() or not (boxes or y.shape[1:] == out.shape[1:]):
            raise ValueError(
                f"targets must be boxes of shape (n, m, 5), or cells of shape "
                f"{(len(y), *out.shape[1:])}, not {require.kind(y)}."
            )
        k = out.shape[1] - 4
        if boxes and y.numel() and int(y[..., 0].max()) >= k:
            raise ValueError(
                f"boxes have classes up to {int(y[..., 0].max())}, but the model knows "
                f"{k}, so they must lie in 0..{k - 1}."
            )
