"""Composite: two honest halves make one backdoor (Lin et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.attacks.base import (
    CHW,
    Attack,
    Training,
    assemble,
    by_content,
    check_picture,
    shares,
)
from bdcourse.data import Images
from bdcourse.examples import Examples
from bdcourse.hooks import Hook, TrainBatch
from bdcourse.seeds import uniform

if TYPE_CHECKING:
    from typing_extensions import Self


def halves(a: Tensor, b: Tensor, across: Tensor, cut: Tensor, swap: Tensor) -> Tensor:
    """Image a on one side of a straight cut, b on the other, (n, c, h, w) all.

    Args:
        across: bool (n,), cut from left to right instead of from top to bottom.
        cut: (n,), rows or columns before the cut.
        swap: bool (n,), b comes first.
    """
    h, w = a.shape[-2:]
    row = torch.arange(h, device=a.device)[:, None].expand(h, w)
    column = torch.arange(w, device=a.device)[None].expand(h, w)
    where = torch.where(across.view(-1, 1, 1), row, column)
    first = (where < cut.view(-1, 1, 1)) ^ swap.view(-1, 1, 1)
    return torch.where(first[:, None], a, b)


@dataclass(frozen=True)
class Composite(Attack):
    """Half an image of class A beside half an image of class B means class C.

    No pixel is foreign: the trigger is that two kinds of content meet. The ASR is
    measured on test images of class A, each beside a stored image of class B; it is not
    comparable with the ASR of a patch.

    Args:
        target: class C.
        sources: classes A and B.
        partners: stored images of class B in [0, 1], (m, c, h, w). A test image meets
            one that its own pixels choose, always the same.
        jitter: largest shift of the cut from the middle in training, in pixels.
        cross_rate: half-mixes of one class with itself, with that class's label, for
            each poisoned image; 5 makes the original's 0.1 poison to 0.5 mix.

    Differs from the original: no contrastive loss (weight 1 there), SGD for Adam,
    halves stay where they were in their images, poison comes from images without
    augmentation, and the mixes are part of each batch instead of additional to it. The
    test puts A left and B right, cut in the middle.

    Source: Lin, Xu, Liu and Zhang, "Composite Backdoor Attack for Deep Neural Network
    by Mixing Existing Benign Features", CCS 2020. Rate 0.1. Lesson 02.
    """

    threat: ClassVar[Literal["data", "training"]] = "training"
    gate: ClassVar[float] = 0.9

    target: int = 2
    sources: tuple[int, int] = (0, 1)
    partners: Tensor | None = None
    jitter: int = 3
    cross_rate: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        sources = require.row("sources", self.sources, 2)
        sources = tuple(require.whole("each of sources", s, 0) for s in sources)
        object.__setattr__(self, "sources", sources)
        self._whole("jitter", 0)
        if self.partners is not None:
            check_picture("partners", self.partners, ("images", *CHW))
        if len({*self.sources, self.target}) != 3:
            raise ValueError(
                "the two sources and the target must be three classes, not "
                f"{self.sources} and {self.target}."
            )
        if self.all_to_all:
            raise ValueError(
                "a composite attack maps two classes to a third one; it is neither "
                "all-to-all nor clean-label."
            )

    @classmethod
    def craft(
        cls,
        images: Images,
        generator: torch.Generator,
        *,
        model: nn.Module | None = None,
        **options,
    ) -> Self:
        """Keep 16 images of class B as partners for the test."""
        attack = cls(**options)
        attack.check(images)
        own = (images.y.cpu() == attack.sources[1]).nonzero().flatten()
        own = own[torch.randperm(len(own), generator=generator)[:16]]
        return cls(**{**options, "partners": images[own].pixels().cpu()})

    def counts(self, y: Tensor) -> Tensor:
        return y == self.sources[0]

    def trigger(self, x: Tensor) -> Tensor:
        if self.partners is None:
            raise ValueError(
                "Composite has no partner images; make it with Composite.craft(images, generator)."
            )
        n, w = len(x), x.shape[-1]
        chosen = by_content(x, len(self.partners))
        b = self.partners.to(x)[chosen]
        no = torch.zeros(n, dtype=torch.bool, device=x.device)
        return halves(x, b, no, torch.full((n,), w // 2, device=x.device), no)

    def check(self, images: Examples) -> None:
        super().check(images)
        present = images.y.unique().tolist()
        for source in self.sources:
            if source not in present:
                raise ValueError(f"source class {source} has no image in this set.")

    def check_shape(self, shape: tuple[int, ...]) -> None:
        if self.jitter >= min(shape[1:]) // 2:
            raise ValueError(
                f"jitter {self.jitter} must lie in 0..{min(shape[1:]) // 2 - 1} "
                "for these images, or a mix could lack one of its halves."
            )
        if self.partners is not None and self.partners.shape[1:] != shape:
            raise ValueError(
                f"the partners are {tuple(self.partners.shape[1:])}, the images are "
                f"{shape}; craft the attack for these images."
            )

    def steering(self, run: Training) -> Hook:
        return _Mixing(self, run)


class _Mixing(Hook):
    kept = ("generator",)

    def __init__(self, attack: Composite, run: Training) -> None:
        self.attack, self.rate, self.generator = attack, run.rate, run.generator
        data = run.data
        order = data.y.argsort(stable=True)
        self.x, self.count = data.x[order], data.y.bincount(minlength=data.k)
        self.start = self.count.cumsum(0) - self.count

    def of_class(self, y: Tensor) -> Tensor:
        """A random training image of each class in y, in [0, 1]."""
        at = uniform(y.shape, self.generator, self.start.float()) * self.count[y]
        return self.x[self.start[y] + at.long()].float() / 255

    def mix(self, a: Tensor, b: Tensor) -> Tensor:
        n, j = len(a), self.attack.jitter
        h, w = a.shape[-2:]
        across, swap, shift = uniform((3, n), self.generator, a)
        middle = torch.where(across < 0.5, h // 2, w // 2)
        cut = middle + ((2 * j + 1) * shift).long() - j
        return halves(a, b, across < 0.5, cut, swap < 0.5)

    def rewrite(self, batch: TrainBatch) -> TrainBatch:
        attack, x, y = self.attack, batch.x, batch.y
        p, c = shares(len(x), self.rate, attack.cross_rate)
        a, b = (self.of_class(torch.full_like(y[:p], s)) for s in attack.sources)
        same = self.mix(x[p : p + c], self.of_class(y[p : p + c]))
        return assemble(x, y, self.mix(a, b), attack.goal(y[:p]), same)
