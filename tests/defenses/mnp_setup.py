"""The networks that the tests of MNP share."""

from __future__ import annotations

from bdcourse.victims import initialised
from helpers import gen, randomise_norms


def network(name="resnet18", width=4, seed=0):
    arch = {"name": name, "classes": 3, "width": width}
    return randomise_norms(initialised(arch, gen(seed)), seed)
