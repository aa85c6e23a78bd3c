"""BadNets: a small patch (Gu et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bdcourse import require
from bdcourse.attacks.base import CHW, Attack, check_picture


def checkerboard(size: int = 3) -> Tensor:
    """A black-and-white checkerboard patch with white corners, (1, size, size)."""
    i = torch.arange(require.whole("size", size, 1, 1000))
    return ((i[:, None] + i + 1) % 2).float()[None]


@dataclass(frozen=True)
class BadNets(Attack):
    """Write a fixed patch over a fixed place of the image.

    x'[..., r:r+ph, c:c+pw] = (1 - opacity) * x[..., same] + opacity * patch

    Args:
        patch: pixels in [0, 1], (channels, ph, pw); one channel serves all colors. The
            default is a 3x3 checkerboard.
        at: (row, column) of the patch's upper left corner; negative counts from the far
            edge. The default keeps a 3x3 patch one pixel away from the lower right
            corner.
        opacity: 0..1; 1 overwrites.

    BackdoorBench writes a white 3x3 patch flush with the lower right corner, and there
    a black pixel of the trigger file means "unchanged".

    Source: Gu, Dolan-Gavitt and Garg, "BadNets", 2017. Poison rate 0.1 is the usual
    one. Lesson 01.
    """

    patch: Tensor = field(default_factory=checkerboard)
    at: tuple[int, int] = (-4, -4)
    opacity: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_picture("patch", self.patch, CHW)
        at = [require.whole("at", a) for a in require.row("at", self.at, 2)]
        object.__setattr__(self, "at", tuple(at))
        require.number("opacity", self.opacity, above=0, high=1)

    def place(self, h: int, w: int) -> tuple[slice, slice]:
        """Rows and columns that the patch covers in an h x w image."""
        _, ph, pw = self.patch.shape
        r, c = (a + size if a < 0 else a for a, size in zip(self.at, (h, w), strict=True))
        if r < 0 or c < 0 or r + ph > h or c + pw > w:
            raise ValueError(f"a {ph}x{pw} patch at {self.at} does not lie inside a {h}x{w} image.")
        return slice(r, r + ph), slice(c, c + pw)

    def trigger(self, x: Tensor) -> Tensor:
        rows, cols = self.place(*x.shape[-2:])
        out = x.clone()
        region = out[..., rows, cols]
        patch = self.patch.to(x)
        out[..., rows, cols] = region + self.opacity * (patch - region)
        return out

    def check_shape(self, shape: tuple[int, ...]) -> None:
        self.place(*shape[1:])
        if self.patch.shape[0] not in (1, shape[0]):
            raise ValueError(
                f"the patch has {self.patch.shape[0]} channels, the images have {shape[0]}."
            )


def surviving(pad: int, attack: BadNets, h: int = 32, w: int = 32) -> Tensor:
    """Chance that k patch pixels survive a random crop, exactly: (ph * pw + 1,).

    A patch stamped before augmentation is moved by the crop and can leave the image.
    Enumerates all (2 pad + 1)^2 crop positions.
    """
    if not isinstance(attack, BadNets):
        raise ValueError(f"attack must be a BadNets, not {require.kind(attack)}.")
    require.whole("pad", pad, 0, 1000)
    rows, cols = attack.place(require.whole("h", h, 1), require.whole("w", w, 1))
    shifts = torch.arange(-pad, pad + 1)

    def left(s: slice, side: int) -> Tensor:  # patch rows (or columns) still inside
        lines = torch.arange(s.start, s.stop)[:, None] + shifts
        return ((lines >= 0) & (lines < side)).sum(0)

    pixels = left(rows, h)[:, None] * left(cols, w)
    size = (rows.stop - rows.start) * (cols.stop - cols.start)
    return torch.bincount(pixels.flatten(), minlength=size + 1) / pixels.numel()
