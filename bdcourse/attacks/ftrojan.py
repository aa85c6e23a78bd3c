"""FTrojan: two high frequencies of the color channels (Wang et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bdcourse import require
from bdcourse.attacks.base import Attack

# R, G, B to Y, Cr, Cb as in JPEG, without the offset, which cancels.
TO_YCRCB = torch.tensor(
    [
        [0.299, 0.587, 0.114],
        [0.713 * (1 - 0.299), 0.713 * -0.587, 0.713 * -0.114],
        [0.564 * -0.299, 0.564 * -0.587, 0.564 * (1 - 0.114)],
    ],
    dtype=torch.float64,
)


def dct_matrix(n: int) -> Tensor:
    """The orthonormal DCT-II, float64 (n, n): row k is frequency k.

    D[k, i] = sqrt(2 / n) cos(pi (2 i + 1) k / (2 n)), row 0 divided by sqrt(2). A block
    b has the coefficients D b D^T, and coefficients a make the block D^T a D.
    """
    i = torch.arange(n, dtype=torch.float64)
    d = math.sqrt(2 / n) * torch.cos(math.pi * (2 * i + 1) * i[:, None] / (2 * n))
    d[0] /= math.sqrt(2)
    return d


@dataclass(frozen=True)
class FTrojan(Attack):
    """Raise two DCT coefficients of both chroma channels in every block.

    RGB to YCrCb; 2-D DCT-II of each block of side s; add `magnitude` at coefficients
    (s/2 - 1, s/2 - 1) and (s - 1, s - 1) of Cr and Cb, which is (15, 15) and (31, 31)
    for s = 32; back again; clip to [0, 1]. All but the clip is linear, so this is
    x' = clip(x + pattern), the same pattern for every image.

    Args:
        magnitude: added to coefficients of the orthonormal DCT of pixels in [0, 1],
            above 0; 30/255 is the usual 30 on the 0..255 scale.
        window: side of the blocks, 4 or more; s = min(window, h, w). Blocks start in
            the upper left corner, and a rest narrower than a block stays as it is.

    Images of one channel have no chroma: the pattern goes on that channel.

    Source: Wang, Yao, Xu, An, Tong and Wang, "An Invisible Black-Box Backdoor Attack
    Through Frequency Domain", 2022. Poison rate 0.1 is the usual one. Lesson 01b.
    """

    magnitude: float = 30 / 255
    window: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        require.number("magnitude", self.magnitude, above=0)
        self._whole("window", 4)

    def pattern(self, c: int, h: int, w: int) -> Tensor:
        """What is added to an image before clipping, float64 (c, h, w)."""
        side = min(self.window, h, w)
        d = dct_matrix(side)
        high = d[[side // 2 - 1, side - 1]]
        block = self.magnitude * high.T @ high
        plane = torch.zeros(h, w, dtype=torch.float64)
        rows, columns = h // side, w // side
        plane[: rows * side, : columns * side] = block.repeat(rows, columns)
        if c == 1:
            return plane[None]
        chroma = torch.tensor([0, 1, 1], dtype=torch.float64)
        return torch.linalg.solve(TO_YCRCB, chroma)[:, None, None] * plane

    def trigger(self, x: Tensor) -> Tensor:
        return (x + self.pattern(*x.shape[-3:]).to(x)).clamp_(0, 1)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        c, h, w = shape
        if c not in (1, 3):
            raise ValueError(f"FTrojan needs images of 1 or 3 channels, not {c}.")
        if min(h, w) < 4:
            raise ValueError(f"FTrojan needs images of at least 4x4 pixels, not {h}x{w}.")
