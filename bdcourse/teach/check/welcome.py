"""The exercise checks of lesson 00."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bdcourse.teach.check.core import call, close, fresh, guarded, need, passed, shaped


@guarded
def take(fn: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """take(x, y, index) -> pixels in [0, 1] and labels of the images at index."""
    name, g = "take", fresh()
    x = torch.randint(0, 256, (20, 3, 6, 5), dtype=torch.uint8, generator=g)
    y = torch.randint(0, 9, (20,), generator=g)
    index = torch.randperm(20, generator=g)[:7]
    out = call(name, fn, x, y, index)
    need(isinstance(out, tuple) and len(out) == 2, name, "must return two tensors.", 1)
    pixels, labels = out
    shaped(name, pixels, (7, 3, 6, 5))
    need(pixels.dtype.is_floating_point, name, "pixels must be floats, not bytes.", 2)
    need(float(pixels.max()) <= 1, name, "pixels must lie in [0, 1].", 2)
    need(
        close(pixels, x[index].double() / 255),
        name,
        "these are not the pixels at the given positions, divided by 255.",
        2,
    )
    need(
        torch.equal(labels, y[index]),
        name,
        "the labels do not belong to the same images.",
        1,
    )
    passed(name)
