"""BppAttack: the trigger is a reduced number of gray levels (Wang et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bdcourse import require
from bdcourse.attacks.base import Attack, assemble, shares

# Floyd and Steinberg: how much of a pixel's rounding error goes where.
SPREAD = ((0, 1, 7 / 16), (1, -1, 3 / 16), (1, 0, 5 / 16), (1, 1, 1 / 16))


@dataclass(frozen=True)
class Bpp(Attack):
    """Round every value to one of `levels` gray levels.

    x' = round((levels - 1) * x) / (levels - 1). In every batch of the training a share
    `rate` is rounded and gets the attacker's label; `cross_rate` times as many get the
    rounding *error of another image* added and keep theirs ("negatives"), so that the
    network must learn the rounding itself and not the noise that it looks like.

    Args:
        levels: 8 in the paper, 2..255; images have 256.
        dither: spread the rounding error over later pixels (Floyd-Steinberg); off by
            default, as in BackdoorBench.
        cross_rate: negatives for each poisoned image.

    The paper also trains the network by contrastive steps that its released code does
    not need and this one does not have.

    Source: Wang, Zhai and Ma, "BppAttack: Stealthy and Efficient Trojan Attacks against
    Deep Neural Networks via Image Quantization and Contrastive Adversarial Learning",
    CVPR 2022, with rates 0.2 and 0.2; BackdoorBench takes 0.1 and 0.1. Lesson 02.
    """

    threat: ClassVar[Literal["data", "training"]] = "training"
    before_augment: ClassVar[bool] = True

    levels: int = 8
    dither: bool = False
    cross_rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("levels", 2, 255)
        require.truth("dither", self.dither)

    def trigger(self, x: Tensor) -> Tensor:
        steps = self.levels - 1
        if not self.dither:
            return (x * steps).round() / steps
        h, w = x.shape[-2:]
        # Errors flow on to later pixels, so rows and columns are a loop; images are
        # not.
        left = x * steps
        out = torch.empty_like(x)
        for i in range(h):
            for j in range(w):
                out[..., i, j] = left[..., i, j].round().clamp(0, steps)
                error = left[..., i, j] - out[..., i, j]
                for down, right, part in SPREAD:
                    if i + down < h and 0 <= j + right < w:
                        left[..., i + down, j + right] += part * error
        return out / steps

    def negative(self, x: Tensor, other: Tensor) -> Tensor:
        """x with the rounding error of `other`, pixels (n, c, h, w) both."""
        return (x + self.trigger(other) - other).clamp(0, 1)

    def rewrite(
        self, x: Tensor, y: Tensor, rate: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        p, c = shares(len(x), rate, self.cross_rate)
        other = x.roll(-1, 0)[p : p + c]
        covers = self.negative(x[p : p + c], other)
        return assemble(x, y, self.trigger(x[:p]), self.goal(y[:p]), covers)

    def cross(
        self, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor] | None:
        if len(x) < 2:  # an image with its own error is the trigger
            return None
        return self.negative(x, x.roll(-1, 0)), y
