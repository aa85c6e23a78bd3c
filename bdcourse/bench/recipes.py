"""How the victims of a table are trained: recipes, and options attack by attack.

Derived in lesson 01.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from bdcourse import require, victims
from bdcourse.attacks import ATTACKS, Attack, LabelConsistent
from bdcourse.attacks import ELSEWHERE as ELSEWHERE_ATTACKS
from bdcourse.attacks.label_consistent import AdversarialTraining
from bdcourse.bench import measures as looks
from bdcourse.bench.names import named
from bdcourse.bench.plans import defaults
from bdcourse.bench.plugins import digest_of
from bdcourse.bench.results import DRAWN
from bdcourse.data import DRAWINGS, Images, Splits
from bdcourse.files import locked
from bdcourse.models import ELSEWHERE, MODELS
from bdcourse.task import IMAGES, USUAL, Usual
from bdcourse.train import MOST_SHIFTS, OPTIMIZERS, SCHEDULES, Augment, fit
from bdcourse.victims import Victim


def folder(name: str, path: object) -> str | os.PathLike:
    """A path at which a folder is or could be made.

    Raises:
        ValueError: no path, or a file stands there.
    """
    if not isinstance(path, (str, os.PathLike)) or not str(path) or "\0" in str(path):
        raise ValueError(f"{name} must be the path of a folder, not {require.kind(path)}.")
    if os.path.exists(path) and not os.path.isdir(path):
        raise ValueError(f"{name} must be a folder, but {path} is a file.")
    return path


LATER = (
    *("aware", "momentum", "warmup", "schedule", "smoothing", "shifts", "shrink"),
    *("optimizer", "clip"),
)


@dataclass(frozen=True)
class Recipe:
    """How a victim is trained; the defaults suit 50,000 images on two CPU cores.

    Args:
        model, width: see `models.build`.
        epochs, batch, lr, weight_decay: see `train.fit`.
        rate: share of poisoned images; None means what is usual for the attack.
        stamp: when they are stamped, see `Attack.poison`.
        pad, flip: augmentation, see `train.Augment`.
        bf16: bfloat16 also on a CPU; None means on CUDA only.
        momentum, warmup, schedule, smoothing, shifts, shrink, optimizer, clip: see
            `train.fit`.
        aware: how an attacker trains who knows the defense, see `victims.make`.

    Raises:
        ValueError: an entry that would fail, or diverge, only in training.
    """

    model: str = "resnet18"
    width: int = 16
    epochs: float = 10
    batch: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-4
    rate: float | None = None
    stamp: Literal["before", "after"] = "before"
    pad: int = 4
    flip: bool | str = True
    bf16: bool | None = None
    aware: str | None = None
    momentum: float = 0.9
    warmup: float = 0.2
    schedule: str = "cosine"
    smoothing: float = 0.0
    shifts: float = 1.0
    shrink: float = 0.0
    optimizer: str = "sgd"
    clip: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("width", 1), ("batch", 1), ("pad", 0)):
            self._keep(name, require.whole(name, getattr(self, name), least))
        for name in ("epochs", "lr"):
            self._keep(name, require.number(name, getattr(self, name), above=0))
        self._keep("weight_decay", require.number("weight_decay", self.weight_decay, 0))
        if self.lr * self.weight_decay >= 1:
            raise ValueError(
                f"lr {self.lr:g} times weight_decay {self.weight_decay:g} must be "
                "below 1, or each step takes all of a weight away."
            )
        if self.rate is not None:
            self._keep("rate", require.fraction("rate", self.rate))
        object.__setattr__(self, "model", named("model", self.model, MODELS | ELSEWHERE))
        require.choice("stamp", self.stamp, ("before", "after"))
        object.__setattr__(self, "flip", Augment(self.pad, self.flip).flip)
        if self._keep("momentum", require.number("momentum", self.momentum, 0)) >= 1:
            raise ValueError(f"momentum must lie below 1, not {self.momentum:g}.")
        for name in ("warmup", "smoothing", "shrink"):
            self._keep(name, require.fraction(name, getattr(self, name)))
        self._keep("shifts", require.number("shifts", self.shifts, 0, MOST_SHIFTS, above=0))
        require.choice("schedule", self.schedule, SCHEDULES)
        require.choice("optimizer", self.optimizer, OPTIMIZERS)
        if self.clip is not None:
            self._keep("clip", require.number("clip", self.clip, above=0))
        if self.bf16 is not None:
            require.truth("bf16", self.bf16)
        if self.aware is not None:
            require.choice("aware", self.aware, ("smooth", "sam"))

    def _keep(self, name: str, value: float) -> float:
        # Rows hold plain numbers, and 16 stays 16.
        plain = value if isinstance(value, int) else float(value)
        object.__setattr__(self, name, plain)
        return plain

    def settings(self) -> dict:
        """As plain values; what came later only if it is not as it always was.

        So rows and files of victims keep their names when an entry is added.
        """
        usual = {f.name: f.default for f in fields(self) if f.name in LATER}
        own = asdict(self)
        return {k: v for k, v in own.items() if k not in usual or v != usual[k]}


# Built-in signs: small batches, since the trigger takes steps to learn, not epochs;
# twelve epochs, since some seeds find it only in the seventh; and no mirroring, since a
# mirrored "turn left" is a "turn right".
SIGNS = Recipe(epochs=12, batch=32, pad=2, flip=False)

# What an attack needs on 5,700 signs beside or instead of the field's defaults: shares
# of 0.3 % would be 17 images; and four that steer the training are learned too late, or
# not at all, without more poison, a lower rate or more epochs. Entries of the
# recipe replace those of SIGNS, the rest goes to `craft`.
MORE = {"rate": 0.2, "lr": 0.05, "epochs": 16}
SIGNS_OPTIONS: dict[str, dict] = {
    "SIG": {"rate": 0.06},
    # 8 levels do not deceive the surrogate on signs, 16 do on half of them.
    "LabelConsistent": {"rate": 0.06, "epsilon": 16 / 255, "step": 2.7 / 255, "steps": 20},
    "TaCT": {"rate": 0.04},
    "AdapBlend": {"rate": 0.05},
    "AdapPatch": {"rate": 0.05},
    "WaNet": MORE | {"strength": 3.0},
    "Bpp": MORE,
    "InputAware": MORE | {"filters": 8, "mask_steps": 200},
    "Composite": {"lr": 0.05, "epochs": 16},
    "FBA": {"rate": 0.1},
}


# Photographs in as few minutes as we could: see `models.AirBench` and tools/fast.py.
FAST = Recipe(
    model="airbench",
    width=48,
    epochs=12,
    batch=256,
    lr=0.4,
    weight_decay=1e-3,
    pad=2,
    flip="alternate",
    momentum=0.85,
    warmup=0.2,
    schedule="linear",
    smoothing=0.2,
    shifts=16.0,
    shrink=0.5,
)
RECIPES = {"fast": FAST}

FEW, LEAST_STEPS = 20_000, 2_000  # images, steps


def recipe_for(source: str, name: str | None = None) -> Recipe:
    """The training recipe that suits a data source, or one of :data:`RECIPES` for it.

    Raises:
        ValueError: no recipe of this name.
    """
    usual = usual_of(source)
    if name is None and usual is not None:
        return Recipe(**usual.recipe)
    if name is None:
        recipe = SIGNS if str(source) in DRAWN else Recipe()
    else:
        recipe = RECIPES[named("recipe", name, RECIPES)]
    # A mirrored "turn left" is a "turn right" on photographs too.
    signs = str(source) in (*DRAWN, "gtsrb")
    return replace(recipe, flip=False) if signs else recipe


def usual_of(source: str) -> Usual | None:
    """What is usual for the task of a drawn set, if that is another task than images."""
    drawing = DRAWINGS.get(str(source))
    if drawing is None or drawing.kind.task is IMAGES:
        return None
    return USUAL[drawing.kind.task.name]


def suited(recipe: Recipe, n: int, given: Iterable[str] = ()) -> Recipe:
    """The default recipe for n images, of which too few would make too few steps.

    A network learns by steps: ten epochs of 500 images in batches of 128 are forty, and
    leave it at chance. Fewer than :data:`FEW` images therefore come in batches of 32,
    as the signs do, and as often as makes :data:`LEAST_STEPS` steps.

    Args:
        given: entries that somebody chose: with "epochs" among them nothing changes,
            and "batch" stays as it is.
    """
    if require.whole("n", n, 1) >= FEW or "epochs" in given:
        return recipe
    if "batch" not in given:
        recipe = replace(recipe, batch=SIGNS.batch)
    return replace(recipe, epochs=max(recipe.epochs, enough(recipe, n)))


def enough(recipe: Recipe, n: int) -> int:
    """Epochs that make :data:`LEAST_STEPS` steps on n images."""
    return math.ceil(LEAST_STEPS / math.ceil(n / recipe.batch))


def robust(
    twin: nn.Module, images: Images, generator: torch.Generator, recipe: Recipe
) -> nn.Module:
    """The attacker's adversarially trained classifier, which LC perturbs against.

    A copy of the benign twin, trained on: from scratch, six adversarial epochs of a
    network of width 8 stop at 57 % of the signs.
    """
    model, augment = copy.deepcopy(twin), Augment(recipe.pad, recipe.flip)
    history = fit(
        model,
        images,
        epochs=1.5,
        lr=0.03,
        batch=recipe.batch,
        augment=augment,
        generator=generator,
        hook=AdversarialTraining,
        bf16=recipe.bf16,
        verbose=False,
    )
    if history.interrupted:
        raise KeyboardInterrupt  # what it makes would pass for the real thing
    return model


def train_victim(
    parts: Splits,
    attack: Attack | str | None,
    recipe: Recipe,
    seed: int,
    data: str,
    keep: str | os.PathLike = "runs",
    sharp: bool = False,
    each_epoch: Callable[[nn.Module], dict] | None = None,
    **options,
) -> Victim:
    """A victim (without attack: the benign twin), new or from `keep`.

    Training that was stopped goes on after its last whole epoch, whoever steers it:
    beside the victim lies a checkpoint (NAME.part) until it is there.

    Args:
        attack: an attack, or the name of one that is crafted for `parts.train`; a
            pattern that needs a classifier gets the benign twin of the same recipe.
        sharp: the history also tells after each epoch how sharp the network is; has no
            effect on a victim that was trained before.
        each_epoch: the same for whatever it gives, see `train.fit`.
        options: for `craft`, with a named attack.

    Raises:
        ValueError: an argument is not what it should be; nothing was trained then.
    """
    if not isinstance(parts, Splits):
        raise ValueError(f"parts must be what data.splits returns, not {require.kind(parts)}.")
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe must be a Recipe, not {require.kind(recipe)}.")
    seed = require.whole("seed", seed, 0, 10**9)
    if not isinstance(data, str) or not data or {*data} & {"/", "\0"}:
        raise ValueError(
            f"data must name the images in a word that a file name may hold, not "
            f"{require.kind(data)}."
        )
    folder("keep", keep)
    if options and not isinstance(attack, str):
        raise ValueError(
            f"options such as {min(options)} go with an attack by name; leave them out."
        )
    if each_epoch is not None and not callable(each_epoch):
        raise ValueError(f"each_epoch must be a function, not {require.kind(each_epoch)}.")
    watch = _watch(parts, sharp, each_epoch)
    if attack is None:
        twin = replace(recipe, rate=0.0)
        return _trained(parts, None, twin, seed, data, keep, "none", {}, watch)
    if recipe.rate is None:
        usual = attack if isinstance(attack, Attack) else attack_class(attack)
        recipe = replace(recipe, rate=usual.usual_rate)
    if isinstance(attack, Attack):
        spec, tensors = attack.spec()
        for k, v in tensors.items():  # another patch is another victim
            spec[k] = hashlib.sha256(v.cpu().numpy().tobytes()).hexdigest()
        kind = spec["name"]
        spec |= _plugin(type(attack))
        make = lambda: attack  # noqa: E731
        return _trained(parts, make, recipe, seed, data, keep, kind, spec, watch)
    cls = attack_class(attack)
    _sides(cls.__name__, cls, {"craft": options})

    def craft() -> Attack:
        model, g = None, torch.Generator().manual_seed(5000 + seed)
        if cls.needs_model:
            model = train_victim(parts, None, recipe, seed, data, keep).model
        if model is not None and cls is LabelConsistent:  # it needs one
            model = robust(model, parts.train, g, recipe)
        return cls.craft(parts.train, g, model=model, **options)

    kind = cls.__name__
    about = {"name": kind, **defaults(cls, cls.craft), **options, **_plugin(cls)}
    return _trained(parts, craft, recipe, seed, data, keep, kind, about, watch)


def split_options(
    recipe: Recipe, name: str | None, options: dict[str, dict]
) -> tuple[Recipe, dict]:
    """The recipe for one attack (None: the benign twin), and the rest for `craft`.

    Args:
        options: attack name -> {"craft": {...}, "recipe": {...}}, or the same entries
            without these two levels where only one side knows a name.

    Raises:
        ValueError: an unknown entry, or one that both sides know and that stands
            outside of "craft" and "recipe".
    """
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe must be a Recipe, not {require.kind(recipe)}.")
    if name is None:
        return replace(recipe, rate=0.0), {}
    require_options(options)
    cls = attack_class(name)
    name = cls.__name__
    craft, mine = _sides(name, cls, options.get(name, {}))
    own = replace(recipe, **mine)
    usual = cls.usual_rate
    if own.rate is None or usual == 1:  # LIRA uses every image, whatever is asked
        own = replace(own, rate=usual)
    return own, craft


def require_options(options: object) -> None:
    """Refuse options that are not attack by attack, or that no row could hold."""
    if not isinstance(options, dict) or not all(isinstance(o, dict) for o in options.values()):
        raise ValueError(
            'options must look like {"WaNet": {"craft": {"strength": 1}}}, not '
            f"{require.kind(options)}."
        )
    for name in options:
        if name not in ATTACKS | ELSEWHERE_ATTACKS:
            raise ValueError(
                f"options are given for no attack: {require.kind(name)}"
                f"{require.meant(name, ATTACKS | ELSEWHERE_ATTACKS)}."
            )
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError(
            "options must be plain finite numbers, words, lists and dicts, which a table can hold."
        ) from None


def _sides(name: str, cls: type[Attack], given: dict) -> tuple[dict, dict]:
    """What `craft` gets of the options of one attack, and what the recipe."""
    takes = {p for f in (cls, cls.craft) for p in inspect.signature(f).parameters}
    takes -= {"images", "generator", "model", "options"}
    known = {"craft": takes, "recipe": {f.name for f in fields(Recipe)}}
    sides: dict[str, dict] = {"craft": {}, "recipe": {}}
    for side, names in known.items():
        inner = given.get(side, {})
        if not isinstance(inner, dict):
            raise ValueError(
                f"options of {name}: {side!r} must hold entries by name, such as "
                f'{{"{min(names)}": ...}}, not {require.kind(inner)}.'
            )
        if wrong := [k for k in inner if k not in names]:
            raise ValueError(
                f"{side!r} of {name} has no entry {wrong[0]!r}; choose from "
                f"{', '.join(sorted(names))}."
            )
        sides[side] |= inner
    for k, v in given.items():
        if k in sides:
            continue
        both = [side for side, names in known.items() if k in names]
        if not both:
            raise ValueError(
                f"{name} has no option {k!r}; choose from "
                f"{', '.join(sorted(takes))}, and of the recipe "
                f"{', '.join(sorted(known['recipe']))}."
            )
        if len(both) > 1:
            raise ValueError(
                f"option {k!r} of {name} could be of its craft or of the recipe; write "
                f'{{"{name}": {{"craft": {{"{k}": {json.dumps(v, default=str)}}}}}}}, '
                'or "recipe" in the place of "craft".'
            )
        if k in sides[both[0]]:
            raise ValueError(f"option {k!r} of {name} is given twice; keep one of them.")
        sides[both[0]][k] = v
    return sides["craft"], sides["recipe"]


def attack_class(name: object) -> type[Attack]:
    """An attack of any task by name, upper or lower case."""
    known = ATTACKS | ELSEWHERE_ATTACKS
    return known[named("attack", name, known)]


def _plugin(cls: type[Attack]) -> dict:
    """Changed code of an attack makes another victim."""
    digest = digest_of(cls)
    return {"plugin": digest} if digest else {}


def _watch(
    parts: Splits, sharp: bool, each_epoch: Callable[[nn.Module], dict] | None
) -> Callable[[nn.Module], dict] | None:
    """What is measured after each epoch."""
    if not sharp:
        return each_epoch
    sharpness = partial(looks.sharpness_of, images=looks.unseen(parts))
    if each_epoch is None:
        return sharpness
    return lambda model: sharpness(model) | each_epoch(model)


def _trained(
    parts: Splits,
    make: Callable[[], Attack] | None,
    recipe: Recipe,
    seed: int,
    data: str,
    keep: str | os.PathLike,
    kind: str,
    about: dict,
    watch: Callable[[nn.Module], dict] | None,
) -> Victim:
    spec = recipe.settings() | {
        "data": data,
        "seed": seed,
        "kind": kind,
        "attack": about,
    }
    spec["epochs"] = float(recipe.epochs)  # 16 and 16.0 are one victim
    spec["digest"] = parts.train.digest()
    spec["digest_test"] = parts.test.digest()
    text = json.dumps(spec, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:12]
    file = Path(keep) / f"{data}-{kind}-{seed}-{name}"
    if not Path(f"{file}.json").exists():
        Path(keep).mkdir(parents=True, exist_ok=True)
        with locked(f"{file}.lock"):  # one process trains it, others wait for it
            if not Path(f"{file}.json").exists():
                return _new(parts, make, recipe, seed, data, file, watch)
    print(f"  {kind}: trained before, found in {keep}")
    return victims.load(file, parts.train.x.device)


def _new(
    parts: Splits,
    make: Callable[[], Attack] | None,
    recipe: Recipe,
    seed: int,
    data: str,
    file: Path,
    watch: Callable[[nn.Module], dict] | None,
) -> Victim:
    for kept in (f"{file}.json", f"{file}.safetensors"):
        if os.path.islink(kept):  # in a folder of several users, to anybody's file
            raise RuntimeError(f"{kept} is a link that leads to no finished victim; move it away.")
    start = time.perf_counter()
    attack = make() if make else None
    craft_seconds = time.perf_counter() - start
    victim = victims.make(
        parts.train,
        parts.test,
        attack,
        arch={"name": recipe.model, "width": recipe.width},
        seed=seed,
        recipe={"data": data, "craft_seconds": round(craft_seconds, 1)},
        each_epoch=watch,
        checkpoint=f"{file}.part",
        **{k: v for k, v in recipe.settings().items() if k not in ("model", "width")},
    )
    if victim.recipe["interrupted"]:
        raise KeyboardInterrupt  # half a victim is no victim
    victims.save(victim, file)
    return victim
