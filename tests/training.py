"""A small model, a small set and a short training, for the tests of `fit`."""

from __future__ import annotations

from torch import nn

from bdcourse.data import Images
from bdcourse.train import fit
from helpers import gen, random_images


class Linear(nn.Module):
    """One linear layer, which also keeps every training batch that it sees."""

    def __init__(self, k: int = 3, side: int = 8, c: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(c * side * side, k)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen.append(x.detach().clone())
        return self.linear(x.flatten(1))


def separable(n: int = 96) -> Images:
    """Noise images whose channel of the label is darker."""
    images = random_images(n)
    for label in range(3):
        images.x[images.y == label, label] //= 4
    return images


def run(model, data, **options):
    """Train, one epoch in batches of eight unless told otherwise."""
    options = {"epochs": 1, "batch": 8, "verbose": False, "generator": gen()} | options
    return fit(model, data, **options)
