"""Blended: a faint picture over the whole image (Chen et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.attacks.base import CHW, Attack, check_picture
from bdcourse.images import Images
from bdcourse.seeds import seeded

if TYPE_CHECKING:
    from typing_extensions import Self


def noise_picture(size: int = 32, channels: int = 3, seed: int = 0) -> Tensor:
    """A fixed picture of uniform noise in [0, 1], (channels, size, size).

    It stands in for the cartoon that the benchmarks blend in, which is not ours to
    ship.
    """
    require.whole("size", size, 1, 10_000)
    require.whole("channels", channels, 1, 100)
    g = seeded(seed)
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
        require.number("alpha", self.alpha, above=0, high=1)
        check_picture("picture", self.picture, CHW)

    @classmethod
    def craft(
        cls,
        images: Images,
        generator: torch.Generator,
        *,
        model: nn.Module | None = None,
        **options,
    ) -> Self:
        c, h, w = images.shape
        options.setdefault("picture", noise_picture(max(h, w), c)[:, :h, :w])
        return super().craft(images, generator, **options)

    def trigger(self, x: Tensor) -> Tensor:
        return x + self.alpha * (self.picture.to(x) - x)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        if tuple(self.picture.shape) != shape:
            raise ValueError(
                f"the picture is {tuple(self.picture.shape)}, the images are {shape}; "
                "make it the same size."
            )
