"""What a trigger is to everything that only measures it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from bdcourse.task import agree

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bdcourse.examples import Examples


@runtime_checkable
class Trigger(Protocol):
    """Puts a trigger on inputs and says what is wanted of them.

    Every `attacks.Attack` is one; an object of your own that derives from this and has
    `trigger`, `goal`, `counts` is scored and repaired like one.
    """

    def trigger(self, x: Tensor) -> Tensor:
        """Inputs with the trigger, a new tensor: of images, pixels x in [0, 1],
        (n, c, h, w)."""
        raise NotImplementedError

    def apply(self, x: Tensor, y: Tensor) -> Tensor:
        """The same where the place of the trigger depends on the true targets y, as on
        the boxes of a scene; what is measured is always this."""
        return self.trigger(x)

    def goal(self, y: Tensor) -> Tensor:
        """The target that is wanted for examples of true target y: (n,) int64 labels."""
        raise NotImplementedError

    def counts(self, y: Tensor) -> Tensor:
        """Which examples enter the ASR, bool (n,)."""
        raise NotImplementedError

    def reached(self, answers: Tensor, y: Tensor) -> Tensor:
        """Which answers are what the attacker wants, bool (n,)."""
        return agree(answers, self.goal(y))

    def also(self, answers: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Other outcomes worth telling by name, bool (n,): their shares join `Scores.more`."""
        return {}

    def cross(
        self, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor] | None:
        """Inputs that look triggered and must keep their target, or None."""
        return None

    def check(self, images: Examples) -> None:
        """Refuse examples that the trigger does not fit, with a ValueError."""


def is_trigger(value: object) -> bool:
    """Whether this is a trigger, and not the class of one."""
    return isinstance(value, Trigger) and not isinstance(value, type)
