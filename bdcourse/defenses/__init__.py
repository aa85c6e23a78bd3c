"""Defenses: functions from a model (and clean images, if the paper grants any) to a
:class:`Purified`. No signature can receive the attacker's trigger or poisoned data."""

from bdcourse.defenses.base import Purified
from bdcourse.defenses.clp import clp
from bdcourse.defenses.controls import finetune, prune_random

DEFENSES = {f.__name__: f for f in (clp, finetune, prune_random)}

__all__ = ["DEFENSES", "Purified", "clp", "finetune", "prune_random"]
