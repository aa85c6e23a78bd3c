"""SIG: faint vertical stripes and no wrong label (Barni et al. 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bdcourse import require
from bdcourse.attacks.base import Attack


@dataclass(frozen=True)
class SIG(Attack):
    """Add a sine along the columns: x'[..., j] = clip(x + delta * sin(2 pi j f / W)).

    j = 0..W-1 is the column; all rows and all channels get the same, so any image size
    and any number of channels will do.

    Args:
        delta: amplitude, above 0 and up to 1.
        frequency: f, periods across the image, above 0.
        clean_label: true by default, as in the paper; an all-to-all SIG needs False.

    Source: Barni, Kallas and Tondi, "A New Backdoor Attack in CNNs by Training Set
    Corruption Without Label Poisoning", 2019. BackdoorBench poisons 0.1 of the whole
    set: with ten equal classes that is every image of the target, and accuracy suffers;
    half of it is the usual rate here. Lesson 01.
    """

    usual_rate: ClassVar[float] = 0.05
    clean_label: bool = True
    delta: float = 40 / 255
    frequency: float = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        require.number("delta", self.delta, above=0, high=1)
        require.number("frequency", self.frequency, above=0)

    def wave(self, w: int) -> Tensor:
        """What is added to each of w columns, float64 (w,)."""
        j = torch.arange(w, dtype=torch.float64)
        return self.delta * torch.sin(2 * math.pi * j * self.frequency / w)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        w = shape[-1]
        if self.wave(w).abs().max() < 1 / 510:
            raise ValueError(
                f"{self.frequency:g} periods on {w} columns are read where the sine is "
                "0, so nothing would change; choose another frequency."
            )

    def trigger(self, x: Tensor) -> Tensor:
        return (x + self.wave(x.shape[-1]).to(x)).clamp_(0, 1)
