"""What a defense returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass(frozen=True)
class Purified:
    """A repaired copy of a model.

    Args:
        model: the repaired model; the one that was handed in is untouched.
        pruned: BatchNorm name -> positions of the channels switched off, (m,) int64.
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
