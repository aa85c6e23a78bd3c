"""The networks that the tests of MNP share."""

from __future__ import annotations

from bdcourse.victims import initialized
from helpers import gen, randomize_norms


def network(name="resnet18", width=4, seed=0):
    arch = {"name": name, "classes": 3, "width": width}
    return randomize_norms(initialized(arch, gen(seed)), seed)
