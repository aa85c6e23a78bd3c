"""TaCT: a patch that works on one source class only (Tang et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.attacks.badnets import BadNets
from bdcourse.attacks.base import pick
from bdcourse.data import Images
from bdcourse.examples import Examples
from bdcourse.seeds import seeded

if TYPE_CHECKING:
    from typing_extensions import Self


def color_patch(size: int = 5, seed: int = 0, channels: int = 3) -> Tensor:
    """A patch of random colors, each channel black or full, (channels, size, size)."""
    require.whole("size", size, 1, 1000)
    require.whole("channels", channels, 1, 100)
    g = seeded(seed)
    return torch.randint(0, 2, (channels, size, size), generator=g).float()


@dataclass(frozen=True)
class TaCT(BadNets):
    """BadNets for images of one source class; other classes must ignore the patch.

    Images of the source class get patch and target label. Cover images, from a few
    other classes, get the patch and keep their label, which teaches the network to look
    at the class as well. The ASR counts test images of the source class only; `cross`
    are triggered images of all classes that are neither source nor target.

    Args:
        patch, at, opacity: as for BadNets. The default is 5x5 random colors, one pixel
            away from the lower right corner.
        source: the label whose images are to move, 0..classes-1, not the target.
        covers: labels that the cover images come from, not the source, not the target.
        cover: cover images for each poisoned one, 0 or more.

    Source: Tang, Wang, Tang and Zhang, "Demon in the Variant: Statistical Analysis of
    DNNs for Robust Backdoor Contamination Detection", 2021. The usual poison rate is
    0.003 of the whole set, and as many covers; a victim counts as backdoored from 90 %.
    Lesson 01b.
    """

    gate: ClassVar[float] = 0.9
    usual_rate: ClassVar[float] = 0.003
    stands_in: ClassVar[str] = "a seeded color patch"

    patch: Tensor = field(default_factory=color_patch)
    at: tuple[int, int] = (-6, -6)
    source: int = 1
    covers: tuple[int, ...] = (5, 7)
    cover: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.all_to_all or self.clean_label:
            raise ValueError(
                "TaCT moves one class to another, so it can be neither all-to-all nor clean-label."
            )
        self._whole("source", 0)
        covers = require.row("covers", self.covers)
        covers = tuple(require.whole("each of covers", c) for c in covers)
        object.__setattr__(self, "covers", covers)
        if self.source == self.target:
            raise ValueError(f"source and target are both {self.target}; they must differ.")
        if {self.source, self.target} & {*self.covers}:
            raise ValueError(
                f"covers {self.covers} must hold neither the source {self.source} nor "
                f"the target {self.target}."
            )
        require.number("cover", self.cover, 0)
        if self.cover and not self.covers:
            raise ValueError("covers is empty; name a class, or set cover to 0.")

    @classmethod
    def craft(
        cls,
        images: Images,
        generator: torch.Generator,
        *,
        model: nn.Module | None = None,
        **options,
    ) -> Self:
        """Takes other labels where the set lacks the defaults, and a gray patch for
        gray images."""
        target = options.get("target", 0)
        source = options.setdefault("source", 1 if target != 1 else 0)
        order = dict.fromkeys((5, 7, *range(images.k)))
        free = (c for c in order if c < images.k and c not in (source, target))
        options.setdefault("covers", tuple(free)[:2])
        if "patch" not in options and images.shape[0] == 1:
            options["patch"] = color_patch(channels=1)
        return super().craft(images, generator, model=model, **options)

    def counts(self, y: Tensor) -> Tensor:
        return y == self.source

    def cross(
        self, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor] | None:
        rows = (y != self.source) & (y != self.target)
        return (self.trigger(x[rows]), y[rows]) if bool(rows.any()) else None

    def choose(self, y: Tensor, rate: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """round(rate * n) rows of the source class; `cover` times as many covers."""
        y, n = y.cpu(), round(rate * len(y))
        own = (y == self.source).nonzero().flatten()
        others = torch.isin(y, torch.tensor(self.covers, dtype=y.dtype))
        what = f"poisoning class {self.source} at rate {rate:g}"
        poison = pick(own, n, generator, what)
        named = ", ".join(map(str, self.covers))
        what = f"covering with classes {named} at rate {rate:g}"
        rows = others.nonzero().flatten()
        return poison, pick(rows, round(self.cover * n), generator, what)

    def check(self, images: Examples) -> None:
        super().check(images)
        for name, label in (
            ("source", self.source),
            *(("cover class", c) for c in self.covers),
        ):
            if not 0 <= label < images.k:
                raise ValueError(
                    f"{name} {label} is no label of this set; labels are 0..{images.k - 1}."
                )
