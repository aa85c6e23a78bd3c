"""What a defense returns, the one rule by which thresholds are chosen, and the
refusals of numbers that make no sense."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from bdcourse.data import Images
from bdcourse.metrics import evaluate
from bdcourse.surgery import without

Setting = TypeVar("Setting")


@dataclass(frozen=True)
class Purified:
    """A repaired copy of a model.

    Args:
        model: the repaired model; the one that was handed in is untouched.
        pruned: module name -> positions of the channels switched off, (m,) int64;
            modules are BatchNorms, convolutions where the method masks those, or the
            gates that `linf` adds behind a sum.
        log: the defense's own course (thresholds, losses), ready to plot.
        seconds: wall-clock time of the defense.
    """

    model: nn.Module
    pruned: dict[str, Tensor] = field(default_factory=dict)
    log: dict = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def count(self) -> int:
        """Number of channels switched off."""
        return sum(len(v) for v in self.pruned.values())


def require_at_least(bound: float, /, **values: float | None) -> None:
    """Refuse numbers below `bound`, by name, and nan; None is an option left out."""
    for name, value in values.items():
        if value is not None and not value >= bound:
            raise ValueError(f"{name} must be at least {bound}, not {value}.")


def require_positive(**values: float | None) -> None:
    """Refuse numbers at or below zero, by name; also nan and infinity, but not None."""
    for name, value in values.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be above 0 and finite, not {value}.")


def require_share(**values: float) -> None:
    """Refuse numbers outside 0..1, by name."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in 0..1, not {value}.")


class Look(NamedTuple):
    """A setting that was tried: channels it switches off, accuracy on held images."""

    setting: object
    count: int
    acc: float


def furthest(
    model: nn.Module,
    steps: Iterable[tuple[Setting, Mapping[str, Tensor]]],
    held: Images,
    max_drop: float = 0.01,
    *,
    shift: bool = True,
    looks: list[Look] | None = None,
) -> Setting | None:
    """The last setting before the first that costs too much on held-out clean images.

    The rule by which every pruning method of the course chooses its threshold: it sees
    clean accuracy and never the trigger.

    Args:
        steps: (setting, channels it would switch off), from least to most.
        max_drop: accuracy that may be lost, 0..1. The least drop that n images can
            show is 1/n: with 60 of them, 0.01 allows no net new error.
        shift: see `surgery.zero_channels`.
        looks: gets every setting that was tried, for a plot of the choice.

    Returns:
        None if already the first setting costs too much: prune nothing.
    """
    least = evaluate(model, held).acc - max_drop - 1e-9  # the rounding of a quotient
    best, last, fine = None, -1, True
    for setting, channels in steps:
        count = sum(map(len, channels.values()))
        if count != last:  # steps grow: the same count is the same channels
            repaired = without(model, channels, shift=shift)
            acc = evaluate(repaired, held).acc
            fine, last = acc >= least, count
            if looks is not None:
                looks.append(Look(setting, count, acc))
        if not fine:
            break
        best = setting
    return best
