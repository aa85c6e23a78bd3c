"""Networks, images and comparisons that the tests of FMP share."""

from __future__ import annotations

import torch
from torch import nn

from bdcourse.defenses import FmpResponse, fmp_execution_order
from bdcourse.models import build
from helpers import gen, random_images, randomize_norms

FAR = {"epsilon": 0.1, "start": 0.05}  # far enough for untrained networks to stumble


def network(name="resnet18", width=4, seed=0):
    torch.manual_seed(seed)
    return randomize_norms(build(name, classes=3, width=width))


def images(n=8, side=16, c=3):
    return random_images(n, side=side, c=c)


def one_by_one(weights, c=1):
    """A 1x1 convolution with these weights, then a head on the means of its maps."""
    conv = nn.Conv2d(c, len(weights), 1, bias=False)
    conv.weight.data = torch.tensor(weights).view(-1, 1, 1, 1).repeat(1, c, 1, 1)
    head = nn.Linear(len(weights), 3)
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()


def lists(channels):
    return {k: v.tolist() for k, v in channels.items()}


def equal(a, b, **tolerance):
    assert a.keys() == b.keys()
    for name in a:
        for x, y in zip(a[name], b[name], strict=True):
            assert x.dtype == torch.float64
            assert torch.allclose(x, y, **tolerance), name


class LateShortcut(nn.Module):
    """Runs its convolutions in another order than it defines them."""

    def __init__(self):
        super().__init__()
        self.second, self.first = nn.Conv2d(4, 8, 1), nn.Conv2d(3, 4, 1)
        self.never = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean((2, 3)))


def like_a_scoring(model, seed=0):
    g = gen(seed)
    widths = {n: model.get_submodule(n).out_channels for n in fmp_execution_order(model)}
    return {
        n: FmpResponse(*torch.rand(3, c, generator=g, dtype=torch.float64))
        for n, c in widths.items()
    }
