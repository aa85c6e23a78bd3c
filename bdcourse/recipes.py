"""How the victims of a table are trained: recipes, and options attack by attack.

Born in lesson 01.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from bdcourse import looks, victims
from bdcourse.attacks import ATTACKS, Attack, LabelConsistent
from bdcourse.attacks.label_consistent import AdversarialTraining
from bdcourse.data import Images, Splits
from bdcourse.plans import defaults
from bdcourse.train import Augment, fit
from bdcourse.victims import Victim


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
        aware: how an attacker trains who knows the defense, see `victims.make`.
    """

    model: str = "resnet18"
    width: int = 16
    epochs: float = 10
    batch: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-4
    rate: float | None = None
    stamp: str = "before"
    pad: int = 4
    flip: bool = True
    bf16: bool | None = None
    aware: str | None = None

    def __post_init__(self) -> None:
        """What would fail only after the benign twin is trained."""
        for name in ("width", "epochs", "batch", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"{name} must be positive, but is {getattr(self, name)}."
                )
        if self.rate is not None and not 0 <= self.rate <= 1:
            raise ValueError(f"rate must lie between 0 and 1, but is {self.rate}.")

    def settings(self) -> dict:
        """As plain values; `aware` only if there is something to say."""
        return {k: v for k, v in asdict(self).items() if k != "aware" or v}


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
    "LabelConsistent": {"rate": 0.06, "epsilon": 16 / 255, "step": 2.7 / 255,
                        "steps": 20},
    "TaCT": {"rate": 0.04},
    "AdapBlend": {"rate": 0.05},
    "AdapPatch": {"rate": 0.05},
    "WaNet": MORE | {"strength": 3.0},
    "Bpp": MORE,
    "InputAware": MORE | {"filters": 8, "mask_steps": 200},
    "Composite": {"lr": 0.05, "epochs": 16},
    "FBA": {"rate": 0.1},
}  # fmt: skip


DRAWN = ("signs", "signs-hard")


def recipe_for(source: str) -> Recipe:
    """The training recipe that suits a data source."""
    return SIGNS if str(source) in DRAWN else Recipe()


def robust(
    twin: nn.Module, images: Images, generator: torch.Generator, recipe: Recipe
) -> nn.Module:
    """The attacker's adversarially trained classifier, which LC perturbs against.

    A copy of the benign twin, trained on: from scratch, six adversarial epochs of a
    network of width 8 stop at 57 % of the signs.
    """
    model, augment = copy.deepcopy(twin), Augment(recipe.pad, recipe.flip)
    history = fit(
        model, images, epochs=1.5, lr=0.03, batch=recipe.batch, augment=augment,
        generator=generator, steering=AdversarialTraining, bf16=recipe.bf16,
        verbose=False,
    )  # fmt: skip
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
    **options,
) -> Victim:
    """A victim (without attack: the benign twin), new or from `keep`.

    Args:
        attack: an attack, or the name of one that is crafted for `parts.train`; a
            pattern that needs a classifier gets the benign twin of the same recipe.
        sharp: the history also tells after each epoch how sharp the network is; has no
            effect on a victim that was trained before.
        options: for `craft`, with a named attack.
    """
    if attack is None:
        twin = replace(recipe, rate=0.0)
        return _trained(parts, None, twin, seed, data, keep, "none", {}, sharp)
    if recipe.rate is None:
        usual = attack if isinstance(attack, Attack) else attack_class(attack)
        recipe = replace(recipe, rate=usual.usual_rate)
    if isinstance(attack, Attack):
        spec, tensors = attack.spec()
        for k, v in tensors.items():  # another patch is another victim
            spec[k] = hashlib.sha256(v.cpu().numpy().tobytes()).hexdigest()
        kind = spec["name"]
        make = lambda: attack  # noqa: E731
        return _trained(parts, make, recipe, seed, data, keep, kind, spec, sharp)
    cls = attack_class(attack)

    def craft() -> Attack:
        model, g = None, torch.Generator().manual_seed(5000 + seed)
        if cls.needs_model:
            model = train_victim(parts, None, recipe, seed, data, keep).model
        if cls is LabelConsistent:
            model = robust(model, parts.train, g, recipe)
        return cls.craft(parts.train, g, model=model, **options)

    kind = cls.__name__
    about = {"name": kind, **defaults(cls, cls.craft), **options}
    return _trained(parts, craft, recipe, seed, data, keep, kind, about, sharp)


def split_options(
    recipe: Recipe, name: str | None, options: dict[str, dict]
) -> tuple[Recipe, dict]:
    """The recipe for one attack (None: the benign twin), and the rest for `craft`."""
    if name is None:
        return replace(recipe, rate=0.0), {}
    mine, known = options.get(name, {}), {f.name for f in fields(Recipe)}
    cls = ATTACKS[name]
    takes = {p for f in (cls, cls.craft) for p in inspect.signature(f).parameters}
    takes -= {"images", "generator", "model", "options"}
    if wrong := mine.keys() - known - takes:
        raise ValueError(
            f"{name} has no option {min(wrong)!r}; choose from "
            f"{', '.join(sorted(takes))}, and of the recipe {', '.join(sorted(known))}."
        )
    own = replace(recipe, **{k: v for k, v in mine.items() if k in known})
    usual = cls.usual_rate
    if own.rate is None or usual == 1:  # LIRA uses every image, whatever is asked
        own = replace(own, rate=usual)
    return own, {k: v for k, v in mine.items() if k not in known}


def attack_class(name: str) -> type[Attack]:
    """An attack by name, upper or lower case."""
    for known, cls in ATTACKS.items():
        if known.lower() == name.lower():
            return cls
    raise ValueError(f"unknown attack {name!r}; choose from {', '.join(ATTACKS)}.")


def _trained(
    parts: Splits,
    make: Callable[[], Attack] | None,
    recipe: Recipe,
    seed: int,
    data: str,
    keep: str | os.PathLike,
    kind: str,
    about: dict,
    sharp: bool,
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
                return _new(parts, make, recipe, seed, data, file, sharp)
    print(f"  {kind}: trained before, found in {keep}")
    return victims.load(file, parts.train.x.device)


def _new(
    parts: Splits,
    make: Callable[[], Attack] | None,
    recipe: Recipe,
    seed: int,
    data: str,
    file: Path,
    sharp: bool,
) -> Victim:
    start = time.perf_counter()
    attack = make() if make else None
    craft_seconds = time.perf_counter() - start
    watch = partial(looks.sharpness_of, images=looks.unseen(parts)) if sharp else None
    victim = victims.make(
        parts.train,
        parts.test,
        attack,
        arch={"name": recipe.model, "width": recipe.width},
        seed=seed,
        recipe={"data": data, "craft_seconds": round(craft_seconds, 1)},
        each_epoch=watch,
        **{k: v for k, v in recipe.settings().items() if k not in ("model", "width")},
    )
    if victim.recipe["interrupted"]:
        raise KeyboardInterrupt  # half a victim is no victim
    victims.save(victim, file)
    return victim


@contextmanager
def locked(path: str | os.PathLike, wait: bool = True) -> Iterator[None]:
    """Hold a lock file, which no other process holds meanwhile; it is deleted after.

    Raises:
        BlockingIOError: another one holds it, and we do not `wait`.
    """
    import fcntl

    while True:
        f = open(path, "w")
        try:
            fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(f.fileno()), os.stat(path)):
                break
        except FileNotFoundError:  # its holder deleted it while we waited
            pass
        except OSError:
            f.close()
            raise
        f.close()
    try:
        yield
    finally:
        os.unlink(path)
        f.close()
