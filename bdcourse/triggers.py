"""What a trigger is to everything that only measures it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bdcourse.images import Images


@runtime_checkable
class Trigger(Protocol):
    """Puts a trigger on images and says what is wanted of them.

    Every `attacks.Attack` is one; an object of your own with these methods is scored
    and repaired like one.
    """

    def trigger(self, x: Tensor) -> Tensor:
        """Pixels x in [0, 1], (n, c, h, w), with the trigger; a new tensor."""

    def goal(self, y: Tensor) -> Tensor:
        """The label that is wanted for images of true class y, (n,) int64."""

    def counts(self, y: Tensor) -> Tensor:
        """Which images enter the ASR, bool (n,)."""

    def cross(
        self, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor] | None:
        """Images that look triggered and must keep their label, or None."""

    def check(self, images: Images) -> None:
        """Refuse images that the trigger does not fit, with a ValueError."""


def is_trigger(value: object) -> bool:
    """Whether this is a trigger, and not the class of one."""
    return isinstance(value, Trigger) and not isinstance(value, type)
