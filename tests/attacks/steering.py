"""What the tests of attacks that steer a training share."""

from __future__ import annotations

import torch

from bdcourse.attacks.composite import Composite
from bdcourse.attacks.fba import FBA
from bdcourse.attacks.input_aware import InputAware
from bdcourse.attacks.lira import LIRA
from bdcourse.models import build
from helpers import gen


def pixels(n=4, h=16, w=None, c=3, seed=0):
    return torch.rand(n, c, h, w or h, generator=gen(seed))


def small(cls, images, **options):
    """The attack at test size."""
    if cls is InputAware:
        options = {"filters": 2, "mask_steps": 2, "target": 1} | options
    elif cls is LIRA:
        options = {"filters": 2, "target": 1} | options
    elif cls is FBA:
        options = {"detox_steps": 2, "target": 1} | options
    elif cls is not Composite:
        options = {"target": 1} | options
    return cls.craft(images, gen(), **options)


def steer(attack, images, model=None, total=4, rate=0.25):
    model = model or build("resnet18", classes=images.k, width=2)
    return attack.steer(model, images, gen(1), total, rate=rate)
