"""Clouds: points on the surface of a thing, without an order, and the question what it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bdcourse import require
from bdcourse.augment import Augmentation
from bdcourse.examples import Examples
from bdcourse.models import wide
from bdcourse.task import Task

REACH = 2.0  # no point of an input lies farther out: the shape ends at 1, a trigger near it
GRID = 32767  # steps from 0 to 1 on which drawn and read points lie
VERTICAL = (0.0, 0.0, 1.0)


class PointTask(Task):
    """Clouds with one label each: float32 (n, p, 3), of which networks take the same."""

    name = "points"
    step = 0.01  # of the radius
    one, many = "cloud", "clouds"

    def check_stored(self, x: Tensor, what: str) -> None:
        if x.dtype != torch.float32 or x.ndim != 3 or x.shape[2] != 3:
            raise ValueError(
                f"{what}.x must be float32 of shape (n, p, 3), p points of three coordinates "
                f"a cloud, not {str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}."
            )
        self.check_inputs(x, f"{what}.x")

    def check_inputs(
        self, x: object, name: str = "x", shape: tuple[int, ...] | None = None
    ) -> Tensor:
        x = super().check_inputs(x, name, shape)
        if x.ndim != 3 or x.shape[2] != 3 or not x.is_floating_point():
            raise ValueError(
                f"{name} must hold clouds as floats of shape (n, p, 3), not {require.kind(x)}."
            )
        if x.shape[1] < 2:
            raise ValueError(f"{name} must have two points a cloud or more, not {x.shape[1]}.")
        far = float(x.detach().norm(dim=2).max()) if len(x) else 0.0
        if far > REACH:
            raise ValueError(
                f"{name} must lie about the unit ball, but a point is {far:.4g} away from its "
                "middle; use points.on_grid, which centers clouds and scales them."
            )
        return x


CLOUDS = PointTask()


@dataclass(frozen=True, eq=False, repr=False)
class Clouds(Examples):
    """A labeled set of clouds.

    Args:
        x: float32 coordinates, (n, p, 3): each cloud has its mean at 0 and its farthest
            point at radius 1; the third axis points up.
        y: int64 labels, (n,).
        classes: one name per label.
    """

    task: ClassVar[PointTask] = CLOUDS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.x):
            return
        off = float(self.x.mean(1).norm(dim=1).max())
        far = self.x.norm(dim=2).amax(1)
        if off > 1e-3 or float((far - 1).abs().max()) > 1e-3:
            raise ValueError(
                "Clouds.x must be centered with the farthest point of each cloud at radius 1, "
                f"but a mean is {off:.3g} off, and radii run from {float(far.min()):.3g} to "
                f"{float(far.max()):.3g}; use points.on_grid."
            )


def on_grid(x: Tensor) -> Tensor:
    """Clouds (n, p, 3) centered, scaled to radius 1 and rounded to multiples of 1/32767.

    Computed in float64, whose last bits differ between processors; so far behind the point
    that the rounded coordinates do not. They fit into int16, and come back as float32.

    Raises:
        ValueError: a cloud all of whose points are one, or points that are not finite.
    """
    if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[2] != 3 or x.shape[1] < 2:
        raise ValueError(f"x must be clouds of shape (n, p, 3), not {require.kind(x)}.")
    x = wide(x)
    x = x - x.mean(1, keepdim=True)
    far = x.norm(dim=2).amax(1)[:, None, None]
    if not bool(far.isfinite().all()) or bool((far <= 0).any()):
        raise ValueError("clouds must be finite points that are not all the same.")
    return ((x / far * GRID).round() / GRID).float()


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Of each point of x (n, p, c) to each of y (n, q, c): (n, p, q).

    Without the matrix product that torch takes for many points, which loses small ones.
    """
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def rotation(angle: float | Tensor, axis: tuple[float, float, float] = VERTICAL) -> Tensor:
    """The matrix that turns by `angle` degrees about `axis`, (..., 3, 3) float64.

    Rodrigues' formula R = I + sin(a) K + (1 - cos(a)) K^2, where K v = axis x v.

    Args:
        angle: one, or a tensor of them (...).
        axis: of any length but zero; counterclockwise as seen from its tip.
    """
    a, b, c = (v / math.hypot(*axis) for v in axis)
    k = torch.tensor([[0, -c, b], [c, 0, -a], [-b, a, 0]], dtype=torch.float64)
    angle = torch.deg2rad(torch.as_tensor(angle, dtype=torch.float64))[..., None, None]
    eye = torch.eye(3, dtype=torch.float64)
    return eye + angle.sin() * k + (1 - angle.cos()) * (k @ k)


class TurnAndJitter(Augmentation):
    """Turns each cloud about the vertical axis, and moves each point a little.

    No default of any training: it hides from the network what a rotation is the trigger of.

    Args:
        turn: degrees; each cloud is turned by a random angle in -turn..turn.
        jitter: standard deviation of what is added to each coordinate, cut at five of them.
    """

    def __init__(self, turn: float = 180.0, jitter: float = 0.01) -> None:
        self.turn = require.number("turn", turn, 0, 180)
        self.jitter = require.number("jitter", jitter, 0, 0.1)

    def check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 2 or shape[1] != 3:
            raise ValueError(
                f"TurnAndJitter turns clouds of shape (p, 3), not examples of shape {tuple(shape)}."
            )

    def batch(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        place = generator.device
        if self.turn:
            by = (2 * torch.rand(len(x), generator=generator, device=place) - 1) * self.turn
            x = x @ rotation(by.cpu()).to(x).mT
        if self.jitter:
            noise = torch.randn(x.shape, generator=generator, device=place).to(x.device)
            x = x + self.jitter * noise.clamp(-5, 5)
        return x, y
