"""The cells of a table: what there is to measure, and how one cell becomes a row.

A cell is a victim, a choice of clean images and a defense. A :class:`Subject` is the
victim, a :class:`Job` the cells of one victim that may share work, :func:`measure` makes
their rows. Derived in lesson 09.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch

from bdcourse import data as datasets
from bdcourse import metrics, require, victims
from bdcourse.bench import measures as looks
from bdcourse.bench.plans import PLANS, Case, notes
from bdcourse.bench.plugins import Plugin, used
from bdcourse.bench.recipes import Recipe, enough, recipe_for, train_victim
from bdcourse.bench.results import identity
from bdcourse.bench.zoo import ENTRIES
from bdcourse.data import BUILT_IN, Splits
from bdcourse.defenses import FMP_SETTINGS, Purified
from bdcourse.task import IMAGES, Task
from bdcourse.victims import Victim

SWEEP = "clp sweep"
MACHINE = re.compile("CUDA|cuDNN|CUBLAS|allocate memory")  # of errors that pass


class AtChance(RuntimeError):
    """A benign twin that has learned nothing: no victim can be measured against it."""


def environment(device: torch.device) -> dict:
    """Where and with what a number was measured."""
    if not isinstance(device, torch.device):
        raise ValueError(f"device must be a torch.device, not {require.kind(device)}.")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    here = Path(__file__).resolve().parent
    git = ["git", "describe", "--always", "--dirty"]
    try:
        revision = subprocess.run(git, cwd=here, capture_output=True, text=True).stdout
    except OSError:  # git is not installed
        revision = ""
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "revision": revision.strip() or "unknown",
    }


@dataclass(frozen=True)
class Subject:
    """One victim of the table, trained or not.

    Args:
        source: what `data.load` takes.
        recipe: of its training, with the share of poison that is really used.
        attack: a name of `ATTACKS`; None is the benign twin.
        options: for `craft`.
        clean, seed, n, size, n_test: see `data.splits`; the seed is also the
            training's.
        zoo: name of a victim that ships with the course: nothing is trained.
        device, keep, sharp: see `run.run`.
        plugins: where attacks and plans may come from.
    """

    source: str
    recipe: Recipe
    attack: str | None = None
    options: dict = field(default_factory=dict)
    seed: int = 0
    clean: float = 0.05
    n: int | None = None
    size: int | None = None
    zoo: str | None = None
    device: str | None = None
    keep: str = "runs"
    sharp: bool = False
    n_test: int | None = None
    plugins: tuple[Plugin, ...] = ()

    def __str__(self) -> str:
        if self.zoo:
            return self.zoo
        where = f"{self.label}, {self.recipe.model} of width {self.recipe.width}"
        return f"{self.attack or 'benign twin'}, seed {self.seed} ({where})"

    @property
    def label(self) -> str:
        """The name of its data."""
        return self.source if self.source in BUILT_IN else Path(self.source).name

    def parts(self) -> Splits:
        """Its images, on the device."""
        return _placed(self._source(), self.place())

    def images(self) -> Splits:
        """Its images, in main memory."""
        return _images(*self._source())

    def _source(self) -> tuple:
        return self.source, self.clean, self.seed, self.n, self.size, self.n_test

    def place(self) -> torch.device:
        """The device; without a choice, what the machine that asks has."""
        usual = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(self.device or usual)

    def victim(self) -> Victim:
        """The network, trained unless `keep` or the zoo has it.

        Raises:
            AtChance: it is a benign twin and has learned nothing.
        """
        if self.zoo:
            return victims.zoo(self.zoo, self.place())
        for plugin in self.plugins:
            plugin.restore()
        about = (self.recipe, self.seed, self.label, self.keep, self.sharp)
        parts = self.parts()
        victim = train_victim(parts, self.attack, *about, **self.options)
        if self.attack is None:
            require_working(victim, parts, self)
        return victim

    def twin(self) -> Subject:
        """The benign network of the same recipe."""
        if self.zoo:
            return replace(self, zoo=ENTRIES[self.zoo].twin)
        return replace(self, attack=None, options={}, recipe=replace(self.recipe, rate=0.0))

    def key(self) -> dict:
        """What tells its rows from those of others."""
        more: dict[str, str | int] = {"victim": self.zoo} if self.zoo else {}
        if self.n_test is not None:
            more["n_test"] = self.n_test
        return self.recipe.settings() | {
            "data": self.label,
            "digest": self.images().train.digest(),
            "n_train": len(self.images().train),
            "seed": self.seed,
            **more,
            "attack": self.attack or "none",
            "options": self.options or None,
            **used(self.plugins, attack=self.attack),
        }


def forget_images() -> None:
    """A folder may hold other images than in an earlier run of this process."""
    _images.cache_clear()
    _placed.cache_clear()


@lru_cache(maxsize=1)  # the cells of one seed come one after the other
def _images(source, clean, seed, n, size, n_test) -> Splits:
    parts = datasets.splits(source, clean=clean, seed=seed, n=n, size=size, n_test=n_test)
    train, test = parts.train, parts.test
    many = train.task.many
    if source not in BUILT_IN and train.task is not IMAGES:
        raise ValueError(
            f"{Path(source).name} holds {many}; tables of your own files take images only so "
            f"far, and --task {train.task.name} takes drawn ones."
        )
    print(f"{len(train)} training and {len(test)} test {many}, {train.k} classes")
    if train.y.ndim > 1:  # whose targets are not one class each
        return parts
    owned = {*parts.clean.y.tolist(), *parts.held.y.tolist()}
    if missing := [c for i, c in enumerate(train.classes) if i not in owned]:
        print(
            f"the defender has no {train.task.one} of {len(missing)} of {train.k} classes, such "
            f"as {missing[0]!r}; a larger --clean gives them some"
        )
    return parts


@lru_cache(maxsize=1)  # one copy on a GPU, not one for each cell
def _placed(source: tuple, place: torch.device) -> Splits:
    return Splits(*(p.to(place) for p in _images(*source)))


@dataclass(frozen=True)
class Job:
    """Cells of one victim and one choice of clean images, which may share work.

    Args:
        key: what the rows of these cells have in common.
        names: of `PLANS`, or :data:`SWEEP`.
        budget, draw: see `run.run`; draw 0 of the whole budget is the split itself.
    """

    subject: Subject
    key: dict
    names: tuple[str, ...]
    budget: int | None = None
    draw: int = 0

    def __str__(self) -> str:
        few = f", {self.budget} clean images" if self.budget else ""
        return f"{self.subject}{few}" + (f", draw {self.draw}" if self.draw else "")

    def cell(self, name: str) -> dict:
        """The key of one row."""
        about = self.subject
        return self.key | {"defense": name} | used(about.plugins, about.attack, name)

    def identity(self) -> str:
        """The same 16 hex digits for the same cells, whoever asks."""
        s = self.subject
        text = [self.key, self.names, s.sharp, s.device, s.keep, *(p.digest for p in s.plugins)]
        text = json.dumps(text, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def apart(self) -> list[Job]:
        """One job for each family of defenses that shares work."""
        families: dict[str, list[str]] = {}
        for name in self.names:
            shared = PLANS[name].shares if name in PLANS else ""
            families.setdefault(shared or name, []).append(name)
        return [replace(self, names=tuple(names)) for names in families.values()]


def require_working(twin: Victim, parts: Splits, subject: Subject) -> None:
    """Refuse a benign twin that guesses: every victim would look as good beside it.

    Raises:
        AtChance: see `victims.at_chance`; or it gets no more right than who always
            gives the commonest label.
    """
    acc, test, own = twin.scores.acc, parts.test, subject.recipe
    labels = test.y.ndim == 1 and not test.y.is_floating_point()  # else nothing to guess
    commonest = int(test.y.bincount().max()) / len(test) if labels else 0.0
    if not victims.at_chance(twin.scores, test.k) and acc > commonest:
        return
    usual, n = recipe_for(subject.source), len(parts.train)
    small = replace(own, batch=min(own.batch, 32))
    if own.lr > usual.lr or own.weight_decay > usual.weight_decay:
        cure = f"lr={usual.lr:g} and weight_decay={usual.weight_decay:g}"
    elif own.epochs >= enough(own, n):
        cure = f"epochs={2 * own.epochs:g}"
    elif small != own:
        cure = f"batch={small.batch} and epochs={enough(small, n)}"
    else:
        cure = f"epochs={enough(own, n)}"
    raise AtChance(
        f"the twin is at chance ({twin.scores.headline.upper()} {100 * acc:.1f} % of {test.k} classes; "
        f"{subject.label}, seed {subject.seed}, width {own.width}); try {cure}."
    )


# --- How a cell is measured ------------------------------------------------------


def measure(job: Job, stored: Callable[[dict], dict | None] = lambda key: None) -> Iterator[dict]:
    """The rows of a job, one after the other; what is `stored` is not measured again.

    Whatever goes wrong becomes a row: `refused` where a method cannot take this model
    or diverges, which is a result, and `error` where the cell should be tried again.

    Raises:
        AtChance: the benign twin has learned nothing.
    """
    prepared: Prepared | None = None
    broken = None
    for name in job.names:
        cell = job.cell(name)
        row = stored(cell)
        if row is None:
            try:
                if broken:
                    raise broken
                prepared = prepared or _prepared(job)
            except AtChance:  # no victim could do better
                raise
            except Exception as e:  # other victims may do better
                broken = e
                row = failure(e)
            else:
                row = _row(name, prepared, job.subject)
        yield cell | row


def failure(e: BaseException) -> dict:
    """How a row keeps an error: the package's own sentences alone, others by name."""
    own = type(e) in (ValueError, RuntimeError, FileNotFoundError)
    text = " ".join(str(e).split())[:500]
    return {"error": text if own and text else f"{type(e).__name__}: {text}"}


class Prepared(NamedTuple):
    """What the cells of a job share: the defender's case, all images, the victim, and
    the entries that their rows have in common."""

    case: Case
    parts: Splits
    victim: Victim
    about: dict


def _prepared(job: Job) -> Prepared:
    subject, seed = job.subject, job.subject.seed + 1000 * job.draw
    for plugin in subject.plugins:
        plugin.restore()
    everything = subject.parts()
    if identity(job.key) != identity(job.key | {"digest": subject.images().train.digest()}):
        raise ValueError(
            f"{subject.source} holds other images here than where the run was started."
        )
    twin, victim = subject.twin().victim(), subject.victim()
    parts = _draw(everything, job.budget, job.draw or None)
    about = {
        "task": parts.train.task.name,
        "n_train": len(parts.train),
        "n_poisoned": victim.recipe["n_poisoned"],
        "n_cover": victim.recipe.get("n_cover", 0),
        "weak": victim.weak(twin.scores),
        "learned": _learned(victim.history),
        "train_seconds": victim.recipe["seconds"],
        "craft_seconds": victim.recipe.get("craft_seconds", 0.0),
        "settings": victim.attack.spec()[0] if victim.attack else {},
        **environment(subject.place()),
        "n_defender": len(parts.clean) + len(parts.held),
    }
    augment = parts.train.task.augmentation(subject.recipe.pad, bool(subject.recipe.flip))
    case = Case(victim.model, parts.clean, parts.held, augment, seed, victim.attack)
    if subject.sharp:
        case.watch = partial(
            looks.watch,
            own=parts.clean[:200],
            other=looks.unseen(parts),
            test=parts.test,
            attack=victim.attack,
        )
    return Prepared(case, parts, victim, about)


def _row(name: str, prepared: Prepared, subject: Subject) -> dict:
    """One defense against one victim."""
    how = _how(name, prepared.parts.train.task)
    try:
        return how | _measured(name, prepared, subject) | prepared.about
    except Exception as e:  # the rest of the grid goes on
        return how | failure(e) | prepared.about


def _how(name: str, task: Task) -> dict:
    """By what a plan runs: where it takes the usual step, that of the task."""
    if name not in PLANS:
        return {}
    how = dict(PLANS[name].settings)
    for key, pixels in FMP_SETTINGS["port"].items():
        if how.get(key) == pixels:
            how[key] = task.step
    return {"how": how}


def _measured(name: str, prepared: Prepared, subject: Subject) -> dict:
    case, parts, victim, _ = prepared
    if name == SWEEP:
        return {"curve": looks.sweep_curve(case.model, parts.test, case.attack)}
    plan = PLANS[name]
    if used(subject.plugins, plan=name):  # others' code may change what it is given
        case = replace(case, model=copy.deepcopy(case.model), seconds={})
    try:
        p = plan.run(case)
    # What a method cannot take, or where it diverges, is a result as well; a machine
    # that fails (memory, CUDA) is not.
    except (ValueError, RuntimeError) as e:
        if type(e) not in (ValueError, RuntimeError) or MACHINE.search(str(e)):
            raise
        return {"refused": str(e)}
    found = notes(p)
    s = metrics.evaluate(p.model, parts.test, case.attack)
    row = {"pruned": p.count, "clean_used": plan.images(case), **found}
    row |= {**s.dict(), "seconds": round(p.seconds, 3)}
    if s.headline != "acc":  # under its own name too
        row[s.headline] = s.acc
    if case.attack is not None:
        row["der"] = metrics.der(victim.scores, s)
    return row | (_sharpness(name, p, prepared) if subject.sharp else {})


def _sharpness(name: str, p: Purified, prepared: Prepared) -> dict:
    """How sharp a repaired network is, and how it became so."""
    parts = prepared.parts
    own, other = (looks.sharpness(p.model, x) for x in (parts.clean[:200], looks.unseen(parts)))
    row = {"sharp": {"own": own, "other": other}, "course": p.log.get("watched")}
    if name == "none":
        row["training"] = prepared.victim.history
    return row


def _draw(parts: Splits, budget: int | None, draw: int | None) -> Splits:
    """The split with another random choice of the defender's images: a fifth held."""
    if budget is None and draw is None:
        return parts
    pool = datasets.join(parts.clean, parts.held)
    budget = len(pool) if budget is None else budget
    g = torch.Generator().manual_seed(7000 + (draw or 0))
    mine = pool[torch.randperm(len(pool), generator=g)[:budget]]
    n = max(1, budget // 5)
    return parts._replace(clean=mine[n:], held=mine[:n])


def _learned(history: list[dict]) -> int | None:
    """The first epoch that got half of the poisoned images, or None."""
    return next((e["epoch"] for e in history if e.get("poison", 0) > 0.5), None)
