"""What a defender has: a suspicious model, clean images, and work that plans share."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from bdcourse import defenses, require
from bdcourse.attacks import Attack
from bdcourse.augment import Augmentation
from bdcourse.data import Images
from bdcourse.defenses import (
    FIP_ETA,
    FMP_SETTINGS,
    Estimate,
    FmpResponse,
    Inverted,
    Purified,
    fmp_scores,
    invert_trigger,
)
from bdcourse.examples import Examples, require_clean
from bdcourse.task import IMAGES

# What a plan may need beside the model, in the words of a message.
NEEDS = {
    "clean": "clean images to repair with",
    "held": "other clean images to choose by",
    "attack": "the attack",
}

# What the loop of FIP makes of the 240 images of the course's tables: 600 steps of 32.
PASSES, BATCH = 80, 32
FMP_IMAGES = 256  # at most so many score: half of `scores`' default, half its hours
# After half of the authors' 2,000 steps so many masks of a narrow network are 0 that to
# switch just those off costs more than three points; 300 were fixed after a look at one
# victim.
ANP_STEPS = 300
RNP_ASCENT = {"judge": "eval", "epochs": 300}  # as in MNP, see `defenses.mnp_suppress`


class shared:  # a decorator
    """Work that is done once for a case, whichever plan asks for it first."""

    def __init__(self, work: Callable) -> None:
        self.work, self.__doc__ = work, work.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, case: Case | None, owner: type | None = None):
        if case is None:
            return self
        if self.name not in case.done:
            case.done[self.name] = self.work(case)
        return case.done[self.name]


def own(examples: Examples | None) -> Images:
    """The images of a case whose plan needs them, so that they are there; a defense that
    is for images only refuses others itself."""
    return cast(Images, examples)


@dataclass(eq=False)
class Case:
    """A suspicious model, and what its defender owns.

    Args:
        model: in eval mode; no plan changes it.
        clean: what they repair with; None if they have none.
        held: what they choose thresholds on; None if they have none.
        augment: crops and flips that suit these images.
        seed: of everything random in a plan.
        attack: for the oracle plans; :meth:`only` hides it from all others.
        watch: measures a model on its way, for the row; no plan decides by it.

    Attributes:
        seconds: what shared work has taken, by name.
        done: shared work, by name.
    """

    model: nn.Module = field(repr=False)
    clean: Examples | None
    held: Examples | None
    augment: Augmentation
    seed: int = 0
    attack: Attack | None = None
    watch: Callable[[nn.Module], dict] | None = None
    seconds: dict[str, float] = field(default_factory=dict, repr=False)
    done: dict[str, object] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        require.module(self.model)
        for name in ("clean", "held"):
            if getattr(self, name) is not None:
                require_clean(getattr(self, name), name, least=1)
        for name, right in (("augment", Augmentation), ("attack", Attack | None)):
            value = getattr(self, name)
            if not isinstance(value, right):
                kind = require.kind(value)
                raise ValueError(f"{name} must be an {name.title()}, not {kind}.")
        require.whole("seed", self.seed)

    def only(self, needs: Collection[str], plan: str) -> Case:
        """The same case without what a plan does not need; shared work stays shared.

        Args:
            needs, plan: see `Plan.needs` and `Plan.name`.

        Raises:
            ValueError: something is needed that is not there.
        """
        view = copy.copy(self)
        for name, what in NEEDS.items():
            if name not in needs:
                setattr(view, name, None)
            elif getattr(self, name) is None:
                raise ValueError(f"{plan!r} needs {what}; pass {name} as well.")
        return view

    @shared
    def inverted(self) -> Inverted:
        """A guessed trigger for every label, searched once for all plans."""
        return invert_trigger(self.model, own(self.clean), generator=self.generator())

    @shared
    def guess(self) -> Estimate:
        """The guess with the smallest mask, whether it is an outlier or not."""
        label = self.inverted.targets[self.inverted.norms.argmin()]
        return self.inverted.trigger(int(label))

    @shared
    def fmp_scores(self) -> dict[str, FmpResponse]:
        """FMP's scores, for every plan that prunes by them."""
        return self._fmp_scores("port")

    @shared
    def fmp_scores_release(self) -> dict[str, FmpResponse]:
        """The same with the step of the authors' configurations."""
        return self._fmp_scores("release")

    def _fmp_scores(self, setting: str) -> dict[str, FmpResponse]:
        start = time.perf_counter()
        # That of the port is what pixels have by themselves; other inputs have their own.
        how: dict[str, Any] = FMP_SETTINGS[setting] if setting == "release" else {}
        found = fmp_scores(
            self.model, own(self.clean), n=FMP_IMAGES, generator=self.generator(), **how
        )
        self.seconds[f"fmp scores, {setting}"] = time.perf_counter() - start
        return found

    @shared
    def fip(self) -> Purified:
        """FIP, which also leads its control."""
        return run_descent(self, defenses.fip, eta_f=FIP_ETA)

    @shared
    def fip_chosen(self) -> Purified:
        """The same with its weight chosen on held-out examples."""
        return run_descent(self, defenses.fip, held=self.held)

    @shared
    def mnp_soft(self) -> Purified:
        """The masks of MNP, learned once for all plans."""
        return defenses.mnp(self.model, own(self.clean), generator=self.generator())

    @shared
    def mnp_held(self) -> Purified:
        """The same with beta chosen on held-out images."""
        g = self.generator()
        clean, held = own(self.clean), own(self.held)
        return defenses.mnp(self.model, clean, held, beta="held", generator=g)

    @shared
    def anp(self) -> Purified:
        """The masks of ANP, learned once for all thresholds."""
        return self._masked(defenses.anp, steps=ANP_STEPS)

    @shared
    def rnp(self) -> Purified:
        """The masks of RNP, likewise; its ascent is judged after each epoch.

        As released, an epoch's own answers judge it, and with 2,000 images the ascent
        is then over the cliff before the second look: every threshold costs too much.
        """
        return self._masked(defenses.rnp, **RNP_ASCENT)

    def _masked(self, defense: Callable[..., Purified], **given) -> Purified:
        g = self.generator()
        return defense(self.model, self.clean, self.held, generator=g, **given)

    def generator(self) -> torch.Generator:
        """A new one for each plan: no plan depends on which others ran before it."""
        return torch.Generator().manual_seed(self.seed)


def run_descent(case: Case, defense: Callable[..., Purified], **given) -> Purified:
    """A defense in the loop of FIP: same steps, batches and crops for all.

    Images take the loop's own number of steps, other tasks :data:`PASSES` over what their
    defender owns.
    """
    clean = own(case.clean)
    if clean.task is not IMAGES:
        given = {"steps": max(1, round(PASSES * len(clean) / BATCH)), **given}
    return defense(
        case.model,
        clean,
        augment=case.augment,
        watch=case.watch,
        watch_every=100,
        generator=case.generator(),
        **given,
    )
