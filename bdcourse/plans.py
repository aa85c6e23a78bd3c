"""The defenses of a table, each with its settings, as functions of what a defender has.

A plan takes a :class:`Case` and returns a Purified. The names are the ones in
data/results and on the command line. Plans whose name ends in "(oracle)" also see the
attack: they show what a better estimate of the trigger could do, and are no defenses.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from bdcourse import defenses
from bdcourse.attacks import Attack
from bdcourse.data import Images
from bdcourse.defenses import Purified
from bdcourse.defenses.clp import choose_u
from bdcourse.train import Augment


@dataclass
class Case:
    """A suspicious model, and what its defender owns.

    Args:
        model: in eval mode; no plan changes it.
        clean: what he repairs with.
        held: what he chooses thresholds on.
        augment: crops and flips that suit these images.
        seed: of everything random in a plan.
        attack: for the oracle plans; no other may look at it.
    """

    model: nn.Module
    clean: Images
    held: Images
    augment: Augment
    seed: int = 0
    attack: Attack | None = None

    def generator(self) -> torch.Generator:
        """A new one for each plan: no plan depends on which others ran before it."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Plan:
    """One line of a table.

    Args:
        run: the defense with its settings.
        clean, held: whether it looks at these images of the case.
    """

    run: Callable[[Case], Purified]
    clean: bool = True
    held: bool = False

    def images(self, case: Case) -> int:
        """How many clean images it looks at."""
        return self.clean * len(case.clean) + self.held * len(case.held)


def _clp_held(case: Case) -> Purified:
    start = time.perf_counter()
    p = defenses.clp(case.model, choose_u(case.model, case.held))
    return replace(p, seconds=time.perf_counter() - start)


def _random(case: Case) -> Purified:
    like = defenses.clp(case.model, 2.5).pruned
    return defenses.prune_random(case.model, like, case.generator())


def _finetune(case: Case, lr: float = 0.01) -> Purified:
    return defenses.finetune(
        case.model,
        case.clean,
        epochs=20,
        lr=lr,
        batch=32,
        augment=case.augment,
        generator=case.generator(),
    )


def _weights(run: Callable[[Case], Purified]) -> Plan:
    return Plan(run, clean=False)


PLANS: dict[str, Plan] = {
    "none": _weights(lambda case: Purified(case.model)),
    "clp, u = 3": _weights(lambda case: defenses.clp(case.model, 3.0)),
    "clp, u = 2.5": _weights(lambda case: defenses.clp(case.model, 2.5)),
    "clp, u on held-out images": Plan(_clp_held, clean=False, held=True),
    "random channels": _weights(_random),
    "fine-tuning": Plan(_finetune),
}

ORACLES = frozenset(name for name in PLANS if name.endswith("(oracle)"))


def notes(p: Purified) -> dict:
    """Settings that a plan found itself, for its row."""
    u = p.log.get("u")
    return {} if u is None else {"u": u if math.isfinite(u) else None}
