"""The lines of a table: each a defense with its settings, and what it is allowed to have.

A plan takes a :class:`Case` and returns a Purified. The names are the ones in
data/results and on the command line. Oracles also see the attack: they show what a better
estimate of the trigger could do, and are no defenses.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import nn

from bdcourse import defenses, require
from bdcourse.attacks import Attack
from bdcourse.augment import Augmentation
from bdcourse.bench.case import ANP_STEPS, FMP_IMAGES, NEEDS, RNP_ASCENT, Case, own, run_descent
from bdcourse.bench.names import named
from bdcourse.defenses import (
    FAST_FIP_ETA,
    FIP_ETA,
    FIP_SHARES,
    FMP_SETTINGS,
    Purified,
    SamDescent,
    clp_choose_u,
    fip_descend,
    fmp_execution_order,
    fmp_released_order,
    fmp_repair,
    fmp_scores,
    fmp_select,
    invert_trigger,
    linf_default_layer,
    linf_gated,
    masks_prune,
    masks_prune_oracle,
    mnp_apply_masks,
)
from bdcourse.examples import Examples
from bdcourse.surgery import weight_of
from bdcourse.task import IMAGES

KINDS = ("method", "control", "oracle", "ablation")
BOTH = ("clean", "held")
EXAMINER = (*BOTH, "attack")


def defaults(*of: Callable) -> dict:
    """Plain defaults of classes or functions by name; of equal names the last counts.

    What has no plain value (None, functions, tensors) is left out.
    """
    for f in of:
        if not callable(f):
            raise ValueError(f"only functions have defaults, not {require.kind(f)}.")
    found = [p for f in of for p in inspect.signature(f).parameters.values()]
    plain = (int, float, str, tuple)
    return {p.name: p.default for p in found if isinstance(p.default, plain)}


@dataclass(frozen=True, eq=False)
class Plan:
    """One line of a table.

    Args:
        name: in rows and on the command line.
        defense: what is done, with its settings.
        settings: numbers and words by which it runs, for the row.
        kind: "method"; "control", which a method has to beat; "oracle", which is told
            the attack; "ablation", which varies what is inside a method.
        needs: of "clean", "held" and "attack" what it uses. It sees nothing else of a
            case, and only an oracle may name "attack".
        tasks: names of those that it is for; none named are all that its defense takes.
        shares: the attribute of a case whose work it takes, with others of its name;
            "" if it works alone. Cells that share are dealt to one process.

    Raises:
        ValueError: one of them cannot be meant.
    """

    name: str
    defense: Callable[[Case], Purified] = field(repr=False)
    settings: dict = field(default_factory=dict, repr=False)
    kind: str = "method"
    needs: tuple[str, ...] = ("clean",)
    tasks: tuple[str, ...] = ()
    shares: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError(f"the name of a plan must be text, not {require.kind(self.name)}.")
        of = f"of the plan {self.name!r}"
        if not callable(self.defense):
            raise ValueError(f"defense {of} must be a function, not {require.kind(self.defense)}.")
        require.choice(f"kind {of}", self.kind, KINDS)
        for name in ("needs", "tasks"):
            words = require.names(f"{name} {of}", getattr(self, name))
            for word in words if name == "needs" else ():
                require.choice(f"needs {of}", word, NEEDS)
            object.__setattr__(self, name, tuple(words))
        if ("attack" in self.needs) != (self.kind == "oracle"):
            raise ValueError(
                f'the plan {self.name!r} must name "attack" among its needs and be of kind '
                '"oracle", or neither.'
            )
        try:
            json.dumps(self.settings, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise ValueError(
                f"settings {of} must be plain finite numbers, words, lists and dicts, which "
                "a table can hold."
            ) from None

    def run(self, case: Case) -> Purified:
        """The repaired model of a case, of which the defense sees what the plan needs.

        Raises:
            ValueError: the case lacks something that the plan needs, or is of another task.
        """
        for images in (case.clean, case.held):
            if images is not None and self.tasks and images.task.name not in self.tasks:
                raise ValueError(
                    f"the plan {self.name!r} is for {', '.join(self.tasks)}, not for "
                    f"{images.task.many}; take another."
                )
        return self.defense(case.only(self.needs, self.name))

    def images(self, case: Case) -> int:
        """How many clean images it looks at."""
        return sum(len(getattr(case, name)) for name in BOTH if name in self.needs)


PLANS: dict[str, Plan] = {}


def register(plan: Plan) -> None:
    """Add a line to :data:`PLANS`.

    Raises:
        ValueError: there is one of this name, in upper or lower case.
    """
    if plan.name.lower() in (name.lower() for name in PLANS):
        raise ValueError(f"there is a plan {plan.name!r} already; take another name.")
    PLANS[plan.name] = plan


def repair(
    plan: str | Plan,
    model: nn.Module,
    *,
    clean: Examples | None = None,
    held: Examples | None = None,
    attack: Attack | None = None,
    augment: Augmentation | None = None,
    seed: int = 0,
) -> Purified:
    """A repaired copy of a model, by any line of the tables: `repair("clp, u = 3", model)`.

    Args:
        plan: a name of :data:`PLANS`, or a plan of your own.
        model: in eval mode; it stays as it is.
        clean, held: the defender's images, to repair with and to choose thresholds on.
            What a plan does not need it does not see.
        attack: for plans of kind "oracle"; hidden from all others.
        augment: crops and flips that suit the images, see `Augment`; default none.
        seed: of everything random.

    Raises:
        ValueError: no plan of this name, or something that it needs is missing.
    """
    if not isinstance(plan, Plan):
        plan = PLANS[named("plan", plan, PLANS)]
    if augment is None:
        augment = IMAGES.plain if clean is None else clean.task.plain
    return plan.run(Case(model, clean, held, augment, seed, attack))


def _clp_held(case: Case) -> Purified:
    start = time.perf_counter()
    p = defenses.clp(case.model, clp_choose_u(case.model, own(case.held)))
    return replace(p, seconds=time.perf_counter() - start)


def _random(case: Case) -> Purified:
    like = defenses.clp(case.model, 2.5).pruned
    return defenses.prune_random(case.model, like, case.generator())


def _linf(case: Case, layer: str | None = None) -> Purified:
    p = defenses.linf(case.model, own(case.clean), own(case.held), case.guess, layer=layer)
    return replace(p, seconds=p.seconds + case.inverted.seconds)


def _linf_random(case: Case) -> Purified:
    shape = own(case.clean).shape
    opened, _ = linf_gated(case.model, linf_default_layer(case.model, shape), shape)
    return defenses.prune_random(opened, _linf(case).pruned, case.generator())


def _as_many(name: str) -> Plan:
    """The control of a plan that switches off scales: as many random ones a layer."""
    plan = PLANS[name]

    def run(case: Case) -> Purified:
        like = plan.defense(case).pruned
        return defenses.prune_random(case.model, like, case.generator(), shift=False)

    title = f"{name}, random channels"
    return Plan(title, run, kind="control", needs=plan.needs, shares=plan.shares)


def _linf_oracle(case: Case) -> Purified:
    attack = cast(Attack, case.attack)
    return defenses.linf_oracle(case.model, own(case.clean), own(case.held), attack)


def _nc_unlearning(case: Case) -> Purified:
    p = defenses.nc_unlearning(
        case.model,
        own(case.clean),
        case.inverted,
        label=case.guess.label,
        augment=case.augment,
        generator=case.generator(),
    )
    return replace(p, seconds=p.seconds + case.inverted.seconds)


def _fmp(
    name: str,
    p: float,
    *,
    kind: str = "method",
    setting: Literal["port", "release"] = "port",
    released: bool = False,
    epochs: float = 10,
    **options,
) -> Plan:
    """FMP behind the scoring, which its lines share; at least one map a layer."""
    shared = "fmp_scores" if setting == "port" else "fmp_scores_release"

    def run(case: Case) -> Purified:
        found = getattr(case, shared)
        start = time.perf_counter()
        chosen = fmp_select(found, p, least=1)
        if released:
            chosen = fmp_released_order(case.model, chosen, list(found))
        repaired = fmp_repair(
            case.model,
            own(case.clean),
            chosen,
            pairing="order" if released else "flow",
            epochs=epochs,
            augment=case.augment,
            generator=case.generator(),
            **options,
        )
        seconds = case.seconds[f"fmp scores, {setting}"] + time.perf_counter() - start
        return replace(repaired, seconds=seconds)

    more = {"p": p, "least": 1, "n": FMP_IMAGES, "epochs": epochs, **options}
    more |= FMP_SETTINGS[setting] | ({"released": True} if released else {})
    # The step of the release is one of pixels.
    tasks = ("images", "video", "detection") if setting == "release" else ()
    settings = defaults(fmp_scores, fmp_repair) | more
    return Plan(name, run, settings, kind, tasks=tasks, shares=shared)


def _fmp_control(name: str, p: float) -> Plan:
    """FMP's fine-tuning after as many random maps in each layer; infinite p: none."""

    def run(case: Case) -> Purified:
        sizes = {
            n: len(weight_of(case.model.get_submodule(n)))
            for n in fmp_execution_order(case.model, own(case.clean))
        }
        many = {n: torch.arange(max(int(c // p), 1)) for n, c in sizes.items()}
        return defenses.fmp_random(
            case.model,
            own(case.clean),
            {} if p == math.inf else many,
            augment=case.augment,
            generator=case.generator(),
        )

    more = {"least": 1, "epochs": 10} | ({} if p == math.inf else {"p": p})
    return Plan(name, run, defaults(fmp_repair) | more, "control")


def _hard(case: Case, soft: Purified) -> Purified:
    """The other repair with the masks of a soft one."""
    hard = mnp_apply_masks(case.model, soft.log["masks"], "hard", own(case.held))
    log = hard.log | {"beta": soft.log["beta"]}
    return replace(hard, log=log, seconds=soft.seconds + hard.seconds)


def _mnp_random(case: Case) -> Purified:
    """As many random channels in each layer as the hard repair; shifts stay."""
    like = _hard(case, case.mnp_soft).pruned
    return defenses.prune_random(case.model, like, case.generator(), shift=False)


# Those of the course's tables; what chooses its own weight is a line of its own.
ETAS: dict[Callable, dict] = {
    defenses.fip: {"eta_f": FIP_ETA},
    defenses.fast_fip: {"eta_f": FAST_FIP_ETA},
}


def _descending(
    name: str, defense: Callable[..., Purified], *, kind: str = "ablation", **given
) -> Plan:
    """A defense that runs in the loop of FIP: same steps, batches and crops for all."""

    given = ETAS.get(defense, {}) | given

    def run(case: Case) -> Purified:
        return run_descent(case, defense, **given)

    below = {defenses.fast_fip: (defenses.fip,), _aware: (SamDescent,)}
    settings = defaults(fip_descend, *below.get(defense, ()), defense) | given
    settings["watch_every"] = 100
    settings.pop("max_drop", None)  # of a weight that is chosen
    if defense is defenses.fast_fip:
        settings["fast"] = True
    return Plan(name, run, settings, kind)


def _random_direction(case: Case, led: str = "fip") -> Purified:
    """Random pushes, each as long as FIP's was in that step of a run of its own."""
    leader: Purified = getattr(case, led)
    how: dict[str, Any] = {"eta_f": leader.log.get("eta_f", FIP_ETA), "product": "random"}
    p = run_descent(case, defenses.fip, lengths=dict(leader.log["push"]), **how)
    return replace(p, seconds=leader.seconds + p.seconds)


def _fast_fip_chosen(case: Case) -> Purified:
    return run_descent(case, defenses.fast_fip, held=case.held)


def _aware(model: nn.Module, clean: Examples, **options) -> Purified:
    """Sharpness-aware minimization in the loop of FIP."""
    descent = SamDescent(clean.task.likelihood)
    return fip_descend(copy.deepcopy(model), clean, descent, **options)


def _tuned(
    name: str,
    defense: Callable[..., Purified],
    *,
    kind: str = "method",
    held: bool = False,
    told: dict | None = None,
    **given,
) -> Plan:
    """A defense that repairs with augmented clean images; `told` are settings that it
    takes from the task."""
    needs = BOTH if held else ("clean",)

    def run(case: Case) -> Purified:
        images = [getattr(case, need) for need in needs]
        g = case.generator()
        return defense(case.model, *images, augment=case.augment, generator=g, **given)

    return Plan(name, run, defaults(defense) | given | (told or {}), kind, needs)


def _costing(name: str, masks: str, drop: float, settings: dict, *, oracle: bool = False) -> Plan:
    """Learned masks with the threshold that loses at most `drop` accuracy.

    Args:
        masks: the attribute of a case that holds them.
        oracle: of all such thresholds the one that an examiner takes, who has the
            trigger.
    """

    def run(case: Case) -> Purified:
        found, start = getattr(case, masks), time.perf_counter()
        learned, judging = found.log["masks"], own(case.held)
        if oracle:
            attack = cast(Attack, case.attack)
            cut = masks_prune_oracle(case.model, learned, judging, attack, drop)
        else:
            cut = masks_prune(case.model, learned, judging, None, drop)
        model, pruned, t = cut
        seconds = found.seconds + time.perf_counter() - start
        return Purified(model, pruned, {"threshold": t}, seconds)

    kind, needs = ("oracle", EXAMINER) if oracle else ("method", BOTH)
    return Plan(name, run, settings | {"max_drop": drop}, kind, needs, shares=masks)


def _weights(
    name: str, run: Callable[[Case], Purified], *, kind: str = "method", **settings
) -> Plan:
    return Plan(name, run, settings, kind, (), shares="weights")


def _clp(name: str, u: float, *, kind: str = "method", **options) -> Plan:
    settings = defaults(defenses.clp) | {"u": u} | options
    run = lambda case: defenses.clp(case.model, u, **options)  # noqa: E731
    return _weights(name, run, kind=kind, **settings)


FINE_TUNING: dict[str, Any] = {"epochs": 20, "lr": 0.01, "batch": 32}
ADAMW: dict[str, Any] = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.01}
SEARCH = {"search": defaults(invert_trigger)}
LINF = defaults(defenses.linf) | SEARCH | {"p": "inf"}  # JSON has no infinity
del LINF["qs"]  # fifty shares, the same everywhere
MNP = defaults(defenses.mnp)
MNP_HARD = MNP | {"repair": "hard"}
RELEASED: dict[str, Any] = {"steps": 2000, "lr": 0.005, "momentum": 0.95, "batch": 128}
CHOSEN = defaults(fip_descend, defenses.fip) | {"watch_every": 100, "eta_f": "chosen"}
CHOSEN["shares"] = list(FIP_SHARES)
FIP = {k: v for k, v in CHOSEN.items() if k not in ("max_drop", "shares")} | {"eta_f": FIP_ETA}
ANP = defaults(defenses.anp) | {"steps": ANP_STEPS}
RNP = defaults(defenses.rnp) | RNP_ASCENT
for _plan in (
    _weights("none", lambda case: Purified(case.model), kind="control"),
    _tuned("fine-tuning", defenses.finetune, kind="control", **FINE_TUNING),
    _tuned("fine-tuning, lr 0.05", defenses.finetune, kind="control", **FINE_TUNING | {"lr": 0.05}),
    _tuned("fine-tuning, adamw", defenses.finetune, kind="ablation", **FINE_TUNING | ADAMW),
    _clp("clp, u = 3", 3.0),
    _clp("clp, u = 2.5", 2.5),
    _clp("clp, u = 3, paired by order", 3.0, kind="ablation", pairing="order"),
    _clp("clp, u = 3, as released", 3.0, kind="ablation", pairing="order", released=True),
    Plan("clp, u on held-out images", _clp_held, needs=("held",)),
    _weights("random channels", _random, kind="control"),
    Plan("linf", _linf, LINF, needs=BOTH, shares="inverted"),
    Plan("linf (oracle)", _linf_oracle, LINF, "oracle", EXAMINER),
    Plan(
        "linf, all layers",
        lambda case: _linf(case, "all"),
        LINF | {"layer": "all"},
        needs=BOTH,
        shares="inverted",
    ),
    Plan("linf, random channels", _linf_random, kind="control", needs=BOTH, shares="inverted"),
    _fmp("fmp", 64),
    _fmp("fmp, p = 16", 16),
    _fmp("fmp, p = 16, pruning only", 16, kind="control", epochs=0),
    _fmp_control("fmp, p = 16, random maps", 16),
    _fmp_control("fmp, random maps", 64),
    _fmp_control("fmp, no maps", math.inf),
    _fmp("fmp, p = 16, release step", 16, kind="ablation", setting="release"),
    _fmp("fmp, p = 16, released order", 16, kind="ablation", released=True),
    _fmp("fmp, p = 16, mask held", 16, kind="ablation", hold_mask=True),
    Plan("mnp, soft", lambda case: case.mnp_soft, MNP, shares="mnp_soft"),
    Plan(
        "mnp, hard",
        lambda case: _hard(case, case.mnp_soft),
        MNP_HARD,
        needs=BOTH,
        shares="mnp_soft",
    ),
    Plan(
        "mnp, soft, beta held",
        lambda case: case.mnp_held,
        MNP | {"beta": "held"},
        needs=BOTH,
        shares="mnp_held",
    ),
    Plan(
        "mnp, hard, beta held",
        lambda case: _hard(case, case.mnp_held),
        MNP_HARD | {"beta": "held"},
        needs=BOTH,
        shares="mnp_held",
    ),
    Plan("mnp, random channels", _mnp_random, kind="control", needs=BOTH, shares="mnp_soft"),
    # MNP may lose three points; BackdoorBench lets ANP and RNP lose ten in a hundred.
    Plan("anp", lambda case: case.anp, ANP, needs=BOTH, shares="anp"),
    _costing("anp, 3 points", "anp", 0.03, ANP),
    _costing("anp, 10 points", "anp", 0.1, ANP),
    Plan("rnp", lambda case: case.rnp, RNP, needs=BOTH, shares="rnp"),
    _costing("rnp, 3 points", "rnp", 0.03, RNP),
    _costing("rnp, 10 points", "rnp", 0.1, RNP),
    # What BackdoorBench's leaderboard does: ten in a hundred, and a look at the ASR.
    _costing("anp (oracle)", "anp", 0.1, ANP, oracle=True),
    _costing("rnp (oracle)", "rnp", 0.1, RNP, oracle=True),
    _costing("mnp, hard (oracle)", "mnp_soft", 0.03, MNP_HARD, oracle=True),
    _tuned("fine-pruning", defenses.fine_pruning, held=True),
    _tuned("ft-sam", defenses.ft_sam),
    _tuned("nad", defenses.nad),
    _tuned("i-bau", defenses.i_bau, told={"radius": 2.0}),
    Plan(
        "nc unlearning",
        _nc_unlearning,
        defaults(defenses.nc_unlearning) | SEARCH,
        shares="inverted",
    ),
    Plan("fip", lambda case: case.fip, FIP, shares="fip"),
    _descending("fast fip", defenses.fast_fip, kind="method"),
    _descending("fip, released", defenses.fip_released, eta_f=0.005),
    # The script's steps, rate, momentum and batch as well: minutes, and only this arm.
    _descending("fip, released, its recipe", defenses.fip_released, eta_f=0.005, **RELEASED),
    _descending("fip, released, eta = 0.5", defenses.fip_released),
    _descending("fip, eta = 0", defenses.fip, kind="control", eta_f=0, eta_r=0),
    _descending("fip, eta = 0.001", defenses.fip, eta_f=0.001),
    _descending("fip, eta = 0.002", defenses.fip, eta_f=0.002),
    _descending("fip, eta = 0.01", defenses.fip, eta_f=0.01),
    _descending("fip, exact product", defenses.fip, product="exact"),
    _descending("fip, random direction", defenses.fip, product="random"),
    Plan(
        "fip, random direction, same lengths",
        _random_direction,
        FIP | {"product": "random", "lengths": "of fip"},
        "ablation",
        shares="fip",
    ),
    Plan(
        "fip, eta chosen",
        lambda case: case.fip_chosen,
        CHOSEN,
        "ablation",
        BOTH,
        shares="fip_chosen",
    ),
    Plan(
        "fip, eta chosen, random direction",
        lambda case: _random_direction(case, "fip_chosen"),
        CHOSEN | {"product": "random", "lengths": "of fip, eta chosen"},
        "ablation",
        BOTH,
        shares="fip_chosen",
    ),
    Plan(
        "fast fip, eta chosen",
        _fast_fip_chosen,
        CHOSEN | defaults(defenses.fast_fip) | {"fast": True},
        "ablation",
        BOTH,
    ),
    _descending("fip, gaussian", defenses.fip, draw="gaussian"),
    _descending("fip, gaussian, exact product", defenses.fip, draw="gaussian", product="exact"),
    _descending("fip, frozen norms", defenses.fip, norms="frozen"),
    _descending("fip, mixed norms", defenses.fip, norms="mixed"),
    _descending("fip, eta = 0, lr 0.05", defenses.fip, eta_f=0, eta_r=0, lr=0.05),
    _descending("fast fip, eta = 0", defenses.fast_fip, kind="control", eta_f=0, eta_r=0),
    _descending("fast fip, norms fixed", defenses.fast_fip, affine=False),
    _descending("sam", _aware, kind="method"),
):
    register(_plan)
for _name in ("anp, 10 points", "rnp, 10 points"):
    register(_as_many(_name))


def notes(p: Purified) -> dict:
    """Settings that a plan found itself, for its row."""
    if not isinstance(p, Purified):
        raise ValueError(f"a plan must return a Purified, not {require.kind(p)}.")
    found = {k: p.log[k] for k in ("u", "beta", "threshold") if p.log.get(k) is not None}
    found = {k: v if math.isfinite(v) else None for k, v in found.items()}
    loss = p.log.get("loss")
    if isinstance(loss, list) and loss and isinstance(loss[0], list):  # of FIP's loop
        found["steps"] = len(loss)
    if "ladder" in p.log:  # FIP's choice of its weight
        found |= {k: p.log[k] for k in ("eta_f", "fisher", "costly", "ladder")}
    return found
