"""Labeled images: one uint8 tensor of pixels and one int64 tensor of labels.

Derived in lesson 00.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bdcourse.examples import Examples
from bdcourse.task import IMAGES, Task


@dataclass(frozen=True, eq=False, repr=False)
class Images(Examples):
    """A labeled image set.

    Args:
        x: uint8 pixels, shape (n, c, h, w), 0..255.
        y: int64 labels, shape (n,), each in 0..len(classes)-1.
        classes: one name per label.

    Raises:
        ValueError: the tensors do not fit together; the message names what is wrong.
    """

    task: ClassVar[Task] = IMAGES

    def pixels(self) -> Tensor:
        """All pixels as float32 in [0, 1], shape (n, c, h, w)."""
        return self.inputs()
