"""WaNet: the trigger is a smooth warp of the whole image (Nguyen and Tran 2021)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bdcourse import require
from bdcourse.attacks.base import Attack, assemble, shares
from bdcourse.seeds import seeded, uniform


def control_grid(k: int = 4, seed: int = 0) -> Tensor:
    """Random directions at k x k control points, mean absolute value 1: (2, k, k)."""
    require.whole("k", k, 2, 1000)
    points = 2 * torch.rand(2, k, k, generator=seeded(seed)) - 1
    return points / points.abs().mean()


def identity_grid(h: int, w: int, like: Tensor) -> Tensor:
    """The sampling grid that changes nothing, (1, h, w, 2), x before y."""
    ys, xs = torch.linspace(-1, 1, h), torch.linspace(-1, 1, w)
    grid = torch.stack(torch.meshgrid(ys, xs, indexing="ij")[::-1], -1)
    return grid[None].to(like)


def warp(x: Tensor, flow: Tensor) -> Tensor:
    """Bilinear samples of x (n, c, h, w) at `flow` (n or 1, h, w, 2) in -1..1."""
    flow = flow.clamp(-1, 1).expand(len(x), -1, -1, -1)
    return F.grid_sample(x, flow, mode="bilinear", align_corners=True)


@dataclass(frozen=True)
class WaNet(Attack):
    """Sample the image along a fixed, slightly bent grid.

    flow = clamp(identity + strength * up(grid) / size, -1, 1), where `up` is bicubic
    interpolation of the control points to the image. In every batch of the training a
    share `rate` is warped and gets the attacker's label; `cross_rate` times as many are
    warped with extra noise of up to 1 / size in each pixel and keep theirs. Without
    this *noise mode* a network learns "warped" instead of "warped this way".

    Args:
        grid: directions at the control points, (2, k, k), mean absolute value 1; the
            default is drawn from seed 0 and the same for every victim.
        strength: 0 changes nothing. At 0.5, the paper's value, a 32-pixel image moves
            by 0.24 px on average.
        cross_rate: noise-mode images for each poisoned one; 0 switches noise mode off.

    Source: Nguyen and Tran, "WaNet: Imperceptible Warping-based Backdoor Attack", ICLR
    2021. Rate 0.1. Lesson 02.
    """

    threat: ClassVar[Literal["data", "training"]] = "training"
    before_augment: ClassVar[bool] = True

    grid: Tensor = field(default_factory=control_grid)
    strength: float = 0.5
    cross_rate: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        grid = self.grid
        right = isinstance(grid, Tensor) and grid.is_floating_point() and grid.ndim == 3
        if not right or not len(grid) == 2 <= grid.shape[1] == grid.shape[2]:
            raise ValueError(
                "grid must be a float tensor of shape (2, k, k) with k at least 2, not "
                f"{require.kind(grid)}."
            )
        if not bool(grid.isfinite().all()):
            raise ValueError("grid must hold finite numbers.")
        require.number("strength", self.strength, 0)

    def flow(self, x: Tensor) -> Tensor:
        """The bent sampling grid for images like x: (1, h, w, 2)."""
        h, w = x.shape[-2:]
        bend = F.interpolate(
            self.grid[None].to(x), (h, w), mode="bicubic", align_corners=True
        ).permute(0, 2, 3, 1)
        return identity_grid(h, w, x) + self.strength * bend / torch.tensor([w, h]).to(x)

    def trigger(self, x: Tensor) -> Tensor:
        return warp(x, self.flow(x))

    def noisy(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Noise mode: the trigger's warp plus up to 1 / size in every pixel."""
        h, w = x.shape[-2:]
        noise = 2 * uniform((len(x), h, w, 2), generator, x) - 1
        return warp(x, self.flow(x) + noise / torch.tensor([w, h]).to(x))

    def rewrite(
        self, x: Tensor, y: Tensor, rate: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        p, c = shares(len(x), rate, self.cross_rate)
        covers = self.noisy(x[p : p + c], generator)
        return assemble(x, y, self.trigger(x[:p]), self.goal(y[:p]), covers)

    def cross(
        self, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor] | None:
        return self.noisy(x, generator), y
