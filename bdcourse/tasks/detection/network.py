"""The detector of the course: one scale, no anchors, one answer a cell and class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.models import Normalize, conv

UNLIKELY = -4.0  # logit at which classes start: 2 % in each cell


class Detector(nn.Module):
    """Five convolutions down to cells of 8 pixels, and two 1x1 heads on the last map.

    A cell sees 47 x 47 pixels. With `context`, the largest value of each channel in the
    whole scene goes through a linear map and is added before the last convolution, so
    that what a cell says may depend on what is anywhere.

    Takes pixels (n, 3, h, w) in [0, 1], says (n, classes + 4, h / 8, w / 8).
    """

    def __init__(self, classes: int, width: int, context: bool) -> None:
        super().__init__()
        w = width
        self.normalize = Normalize((0.45,) * 3, (0.25,) * 3)
        widths, strides = (3, w, 2 * w, 4 * w, 4 * w, 4 * w), (2, 2, 2, 1, 1)
        for i, stride in enumerate(strides, 1):
            setattr(self, f"conv{i}", conv(widths[i - 1], widths[i], stride=stride))
            setattr(self, f"bn{i}", nn.BatchNorm2d(widths[i]))
        self.relu = nn.ReLU()
        self.context = nn.Linear(4 * w, 4 * w, bias=False) if context else None
        self.classes = nn.Conv2d(4 * w, classes, 1)
        self.boxes = nn.Conv2d(4 * w, 4, 1)
        nn.init.constant_(self.classes.bias, UNLIKELY)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalize(x)
        for i in range(1, 6):
            if i == 5 and self.context is not None:
                x = x + self.context(x.amax((2, 3)))[:, :, None, None]
            x = self.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        return torch.cat([self.classes(x), self.boxes(x)], 1)


def detector(classes: int = 6, width: int = 16, context: bool = False) -> nn.Module:
    """An anchor-free detector; 98,330 weights at width 16 and 6 classes without context."""
    width = require.whole("width", width, 1, 1024)
    return Detector(classes, width, require.truth("context", context))


def context_detector(classes: int = 6, width: int = 16) -> nn.Module:
    """A `detector` with context, under a name of its own: for GMA and CleanImage."""
    return detector(classes, width, context=True)


NETWORKS = {f.__name__: f for f in (detector, context_detector)}
