"""Backdoor attacks: one file a family. Every trigger works on pixels in [0, 1]."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from torch import Tensor

from bdcourse import require
from bdcourse.attacks._disguise import disguise
from bdcourse.attacks.adap import AdapBlend, AdapPatch
from bdcourse.attacks.badnets import BadNets, checkerboard, surviving
from bdcourse.attacks.base import Attack
from bdcourse.attacks.blended import Blended, noise_picture
from bdcourse.attacks.bpp import Bpp
from bdcourse.attacks.composite import Composite
from bdcourse.attacks.fba import FBA
from bdcourse.attacks.ftrojan import FTrojan
from bdcourse.attacks.input_aware import InputAware
from bdcourse.attacks.label_consistent import LabelConsistent
from bdcourse.attacks.lira import LIRA
from bdcourse.attacks.low_frequency import LF
from bdcourse.attacks.refool import Refool
from bdcourse.attacks.sig import SIG
from bdcourse.attacks.ssba import SSBA
from bdcourse.attacks.tact import TaCT
from bdcourse.attacks.trojan import TrojanNN
from bdcourse.attacks.wanet import WaNet
from bdcourse.examples import ROLES, Poisoned

# First those that only poison data, then those that steer the training.
ATTACKS: dict[str, type[Attack]] = {
    cls.__name__: cls
    for cls in (
        *(BadNets, Blended, SIG, LabelConsistent, TrojanNN, LF, SSBA),
        *(TaCT, AdapBlend, AdapPatch, Refool, FTrojan),
        *(WaNet, Bpp, Composite, InputAware, LIRA, FBA),
    )
}
# Those of other tasks, which their rooms in `bdcourse.tasks` add.
ELSEWHERE: dict[str, type[Attack]] = {}


def rebuild(spec: dict, tensors: dict[str, Tensor]) -> Attack:
    """The attack that `Attack.spec` described."""
    if not isinstance(spec, dict) or "name" not in spec:
        raise ValueError(f"spec must be a dict with a name, not {require.kind(spec)}.")
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()}
    name = plain.pop("name")
    known = ATTACKS | ELSEWHERE
    if name not in list(known):
        raise ValueError(f"unknown attack {require.kind(name)}; known are {', '.join(known)}.")
    # "generator.0.weight" belongs to the network in the field `generator`.
    networks = {k: v for k, v in tensors.items() if "." in k}
    given = {f.name for f in fields(known[name]) if f.init}
    later = {k: v for k, v in tensors.items() if k not in networks and k not in given}
    plain |= {k: v for k, v in tensors.items() if k in given}
    attack = known[name](**plain)
    for k, v in later.items():
        getattr(attack, k).copy_(v)
    for part in dict.fromkeys(k.split(".")[0] for k in networks):
        state = {
            k.removeprefix(part + "."): v.float() if v.is_floating_point() else v
            for k, v in networks.items()
            if k.startswith(part + ".")
        }
        getattr(attack, part).load_state_dict(state)
    return attack


__all__ = [
    "ATTACKS",
    "ELSEWHERE",
    "ROLES",
    "Attack",
    "Poisoned",
    "checkerboard",
    "disguise",
    "noise_picture",
    "rebuild",
    "surviving",
    *ATTACKS,
]
