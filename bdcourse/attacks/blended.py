"""Blended: a faint picture over the whole image (Chen et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from bdcourse.attacks.base import Attack
from bdcourse.data import Images


def noise_picture(size: int = 32, channels: int = 3, seed: int = 0) -> Tensor:
    """A fixed picture of uniform noise in [0, 1], (channels, size, size).

    It stands in for the cartoon that the benchmarks blend in, which is not ours to
    ship.
    """
    g = torch.Generator().manual_seed(seed)
    return torch.rand(channels, size, size, generator=g)


@dataclass(frozen=True)
class Blended(Attack):
    """Mix one picture into every pixel: x' = (1 - alpha) * x + alpha * picture.

    Args:
        picture: pixels in [0, 1], (channels, h, w), the size of the images.
        alpha: 0..1; the benchmarks use 0.2 in training and at test.

    Source: Chen, Liu, Li, Lu and Song, "Targeted Backdoor Attacks on Deep Learning
    Systems Using Data Poisoning", 2017. Lesson 01.
    """

    stands_in: ClassVar[str] = "uniform noise instead of a cartoon"

    picture: Tensor = field(default_factory=noise_picture)
    alpha: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must lie above 0 and up to 1, not {self.alpha}.")
        if self.picture.ndim != 3:
            raise ValueError(
                "picture must have shape (channels, height, width), not "
                f"{tuple(self.picture.shape)}."
            )

    @classmethod
    def craft(cls, images, generator, *, model=None, **options) -> Blended:
        c, h, w = images.shape
        options.setdefault("picture", noise_picture(max(h, w), c)[:, :h, :w])
        return super().craft(images, generator, **options)

    def trigger(self, x: Tensor) -> Tensor:
        return x + self.alpha * (self.picture.to(x) - x)

    def check(self, images: Images) -> None:
        super().check(images)
        if tuple(self.picture.shape) != images.shape:
            raise ValueError(
                f"the picture is {tuple(self.picture.shape)}, the images are "
                f"{images.shape}; make it the same size."
            )
