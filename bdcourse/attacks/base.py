"""What all attacks share: roles, labels, and poisoning a set in one line of
indexing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from bdcourse.data import Images, quantize

ROLES = {"clean": 0, "poison": 1, "cover": 2}


@dataclass(frozen=True)
class Poisoned(Images):
    """Images some of which the attacker changed.

    Args:
        role: int8 (n,): 0 clean, 1 poison (trigger and attacker's label), 2 cover
            (trigger, true label).
        late: None if the triggers are in the pixels already. If set, the poison rows of
            `x` are still unstamped and training applies this function (of pixels in
            [0, 1]) to them after augmentation.
    """

    role: Tensor = field(default=None)
    late: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.role is None or self.role.shape != self.y.shape:
            raise ValueError(f"Poisoned.role must be int8 of shape ({len(self.y)},).")

    def __getitem__(self, index) -> Poisoned:
        if isinstance(index, Tensor):
            index = index.to(self.x.device)
        return replace(self, x=self.x[index], y=self.y[index], role=self.role[index])

    def to(self, device: str | torch.device) -> Poisoned:
        return replace(super().to(device), role=self.role.to(device))

    @property
    def count(self) -> int:
        """Number of poisoned images."""
        return int((self.role == ROLES["poison"]).sum())


@dataclass(frozen=True)
class Attack:
    """Base of the attacks; a new one needs `trigger` and little else.

    Args:
        target: the label that the attacker wants (all-to-one).
        all_to_all: wants label (y + 1) mod classes instead.
        classes: number of classes; needed for all-to-all.

    Attributes:
        threat: "data" if the attacker only adds to the training data, "training" if he
            runs the training.
    """

    threat: ClassVar[Literal["data", "training"]] = "data"

    target: int = 0
    all_to_all: bool = False
    classes: int | None = None

    def __post_init__(self) -> None:
        if self.all_to_all and not self.classes:
            raise ValueError("an all-to-all attack needs classes=..., their number.")
        if self.target < 0 or (self.classes and self.target >= self.classes):
            raise ValueError(
                f"target {self.target} is not among the labels 0..{self.classes - 1}."
                if self.classes
                else f"target must not be negative, but is {self.target}."
            )

    def trigger(self, x: Tensor) -> Tensor:
        """Put the trigger on pixels x in [0, 1], (n, c, h, w); returns a new tensor."""
        raise NotImplementedError

    def goal(self, y: Tensor) -> Tensor:
        """The label that the attacker wants for images of true class y, (n,) int64."""
        return (
            (y + 1) % self.classes
            if self.all_to_all
            else torch.full_like(y, self.target)
        )

    def counts(self, y: Tensor) -> Tensor:
        """Which test images enter the ASR, bool (n,): those the attack must move."""
        return self.goal(y) != y

    def poison(
        self,
        images: Images,
        rate: float,
        generator: torch.Generator,
        *,
        stamp: Literal["before", "after"] = "before",
    ) -> Poisoned:
        """Poison round(rate * n) random images of all classes.

        Args:
            rate: share of the whole set, 0..1.
            generator: chooses the images.
            stamp: "before" writes the trigger into the pixels, as an attacker who only
                publishes data must; the victim's augmentation then moves or cuts it.
                "after" leaves the pixels to training, which stamps behind augmentation.

        Raises:
            ValueError: rate outside 0..1, or a target that is not a label of the set.
        """
        if not 0 <= rate <= 1:
            raise ValueError(f"rate must lie in 0..1 (0.1 is 10 %), not {rate}.")
        if stamp not in ("before", "after"):
            raise ValueError(f'stamp must be "before" or "after", not {stamp!r}.')
        self.check(images)
        n = len(images)
        chosen = torch.randperm(n, generator=generator)[: round(rate * n)]
        chosen = chosen.to(images.x.device)
        x, y = images.x, images.y.clone()
        role = torch.zeros(n, dtype=torch.int8, device=x.device)
        role[chosen] = ROLES["poison"]
        y[chosen] = self.goal(y[chosen])
        if stamp == "before" and len(chosen):
            x = x.clone()
            x[chosen] = quantize(self.trigger(x[chosen].float() / 255))
        late = self.trigger if stamp == "after" else None
        return Poisoned(x, y, images.classes, role, late)

    def check(self, images: Images) -> None:
        """Refuse images that this attack cannot poison; one sentence says why."""
        if not self.all_to_all and self.target >= images.k:
            raise ValueError(
                f"target {self.target} is no label of this set; labels are "
                f"0..{images.k - 1}."
            )
        if self.all_to_all and self.classes != images.k:
            raise ValueError(
                f"the attack is for {self.classes} classes, the set has {images.k}."
            )

    def spec(self) -> tuple[dict, dict[str, Tensor]]:
        """(plain settings, tensors) from which the attack can be rebuilt."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {k: v for k, v in values.items() if isinstance(v, Tensor)}
        plain = {k: v for k, v in values.items() if k not in tensors}
        return {"name": type(self).__name__, **plain}, tensors
