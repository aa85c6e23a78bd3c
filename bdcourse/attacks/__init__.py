"""Backdoor attacks: one file a family. Every trigger works on pixels in [0, 1]."""

from __future__ import annotations

from torch import Tensor

from bdcourse.attacks.badnets import BadNets, checkerboard, surviving
from bdcourse.attacks.base import ROLES, Attack, Poisoned
from bdcourse.attacks.blended import Blended, noise_picture

ATTACKS: dict[str, type[Attack]] = {"BadNets": BadNets, "Blended": Blended}


def rebuild(spec: dict, tensors: dict[str, Tensor]) -> Attack:
    """The attack that `Attack.spec` described."""
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()}
    name = plain.pop("name")
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}; known are {', '.join(ATTACKS)}.")
    return ATTACKS[name](**plain, **tensors)


__all__ = [
    "ATTACKS",
    "ROLES",
    "Attack",
    "BadNets",
    "Blended",
    "Poisoned",
    "checkerboard",
    "noise_picture",
    "rebuild",
    "surviving",
]
