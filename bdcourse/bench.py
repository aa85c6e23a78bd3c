"""Measure attacks against defenses on any image set, and keep every number.

`python -m bdcourse bench --data DIR` runs the course's whole path on your own images:
hold out the defender's share, train a benign twin and a victim per attack and seed,
measure them, and apply each defense. The table is a grid of cells, each of which is one
row: a victim, a choice of clean images, a defense. A row is written the moment it
exists; a run that was stopped and is started again repeats nothing; a cell that fails
keeps its error, the others go on, and the next run tries it again. :mod:`cluster`
deals the cells out to several processes. Born in lesson 09.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

import torch

from bdcourse import data as datasets
from bdcourse import looks, metrics, victims
from bdcourse.attacks import ATTACKS
from bdcourse.data import BUILT_IN, Splits
from bdcourse.models import MODELS
from bdcourse.plans import ABLATIONS, ORACLES, PLANS, Case, notes
from bdcourse.recipes import (
    DRAWN,
    SIGNS_OPTIONS,
    Recipe,
    attack_class,
    recipe_for,
    split_options,
    train_victim,
)
from bdcourse.tables import DEFENSES, Results, identity
from bdcourse.train import Augment
from bdcourse.victims import Victim

SWEEP = "clp sweep"
MACHINE = re.compile("CUDA|cuDNN|CUBLAS|allocate memory")  # of errors that pass


def environment(device: torch.device) -> dict:
    """Where and with what a number was measured."""
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


# --- What there is to measure ----------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """One victim of the table, trained or not.

    Args:
        source: what `data.load` takes.
        recipe: of its training, with the share of poison that is really used.
        attack: a name of `ATTACKS`; None is the benign twin.
        options: for `craft`.
        clean, seed, n, size: see `data.splits`; the seed is also the training's.
        zoo: name of a victim that ships with the course: nothing is trained.
        device, keep, sharp: see :func:`run`.
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
        return self.source, self.clean, self.seed, self.n, self.size

    def place(self) -> torch.device:
        """The device; without a choice, what the machine that asks has."""
        usual = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(self.device or usual)

    def victim(self) -> Victim:
        """The network, trained unless `keep` or the zoo has it."""
        if self.zoo:
            return victims.zoo(self.zoo, self.place())
        about = (self.recipe, self.seed, self.label, self.keep, self.sharp)
        return train_victim(self.parts(), self.attack, *about, **self.options)

    def twin(self) -> Subject:
        """The benign network of the same recipe."""
        if self.zoo:
            from bdcourse.zoo import (
                ENTRIES,
            )  # which is made with this package's recipes

            return replace(self, zoo=ENTRIES[self.zoo].twin)
        return replace(
            self, attack=None, options={}, recipe=replace(self.recipe, rate=0.0)
        )

    def key(self) -> dict:
        """What tells its rows from those of others."""
        named = {"victim": self.zoo} if self.zoo else {}
        return self.recipe.settings() | {
            "data": self.label,
            "digest": self.images().train.digest(),
            "n_train": len(self.images().train),
            "seed": self.seed,
            **named,
            "attack": self.attack or "none",
            "options": self.options or None,
        }


def forget_images() -> None:
    """A folder may hold other images than in an earlier run of this process."""
    _images.cache_clear()
    _placed.cache_clear()


@lru_cache(maxsize=1)  # the cells of one seed come one after the other
def _images(source, clean, seed, n, size) -> Splits:
    parts = datasets.splits(source, clean=clean, seed=seed, n=n, size=size)
    print(
        f"{len(parts.train)} training and {len(parts.test)} test images, "
        f"{parts.train.k} classes"
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
        budget, draw: see :func:`run`; draw 0 of the whole budget is the split itself.
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
        return self.key | {"defense": name}

    def identity(self) -> str:
        """The same 16 hex digits for the same cells, whoever asks."""
        s = self.subject
        text = [self.key, self.names, s.sharp, s.device, s.keep]
        text = json.dumps(text, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def apart(self) -> list[Job]:
        """One job for each family of defenses that shares work."""
        families: dict[str, list[str]] = {}
        for name in self.names:
            shared = PLANS[name].shares if name in PLANS else ""
            families.setdefault(shared or name, []).append(name)
        return [replace(self, names=tuple(names)) for names in families.values()]


def run(
    source: str | Sequence[str],
    out: str | os.PathLike,
    recipe: Recipe | None = None,
    *,
    attacks: Iterable[str] = ("BadNets", "Blended"),
    seeds: Iterable[int] = (0,),
    scales: Iterable[dict] = ({},),
    clean: float = 0.05,
    n: int | None = None,
    size: int | None = None,
    device: str | None = None,
    keep: str | os.PathLike = "runs",
    options: dict[str, dict] | None = None,
    defenses: Sequence[str] = (),
    budgets: Iterable[int | None] = (None,),
    draws: Iterable[int] = (0,),
    sharp: bool = False,
    only: Sequence[str] = (),
    **where,
) -> Results:
    """Run the path of the course on image sets; returns the table of rows.

    Args:
        source: what `data.load` takes, one or several.
        out: JSON file; rows already in it are kept and not measured again.
        recipe: default :data:`recipes.SIGNS` for the built-in signs, `Recipe()` for the
            rest.
        attacks: names from `bdcourse.attacks.ATTACKS`; ("all",) means all of them.
        scales: entries that replace those of the recipe, {"width": 8} say, one table
            after the other.
        clean: share of the training images that the defender gets, disjoint from what
            the attacker poisons.
        n, size: of training images, and side to which folder images are resized.
        device: default CUDA if the machine that measures has it.
        keep: folder for the trained victims, reused when a run is started again.
        options: attack name -> arguments of its `craft`, and entries of the recipe
            such as "rate" or "epochs", for which its benign twin is then trained too;
            default :data:`recipes.SIGNS_OPTIONS` for the built-in signs.
        defenses: names from `bdcourse.plans.PLANS`, default :data:`tables.DEFENSES` and
            the sweep of CLP; ("all",) means all but `plans.ABLATIONS`, ("everything",)
            those as well. "none" measures the victim as it is.
        budgets: how many clean images the defender really gets, of his share; None is
            all of it.
        draws: which of them: each number is another random choice and another seed of
            the defense, against the same victim.
        sharp: rows also tell how sharp the model is, on 200 of the defender's images
            ("own") and on 200 of the test's ("other"), and hold the course of those
            defenses that log one. Minutes for each row.
        only: patterns ATTACK/DEFENSE with * and ?, such as "BadNets/*"; cells that fit
            none of them are left out. The benign twin is "none".
        where: `workers`, `scheduler`, `threads` of :func:`cluster.carried_out`.
    """
    sources = [source] if isinstance(source, (str, os.PathLike)) else source
    names = [attack_class(a).__name__ for a in attacks if a.lower() != "all"]
    if any(a.lower() == "all" for a in attacks):
        names = list(ATTACKS)
    unknown = set(options or ()) - set(ATTACKS)
    if unknown:
        raise ValueError(f"options are given for no attack: {sorted(unknown)[0]!r}.")
    subjects = []
    scales, names = list(scales), [None, *names]
    for path, seed in product(map(str, sources), seeds):  # images are loaded once each
        for scale in scales:
            own = replace(recipe or recipe_for(path), **scale)
            if own.model not in MODELS:
                raise ValueError(
                    f"unknown model {own.model!r}; choose from {', '.join(MODELS)}."
                )
            given = _options(path, own, options)
            # Workers run in folders of their own.
            source = path if path in BUILT_IN else os.path.abspath(path)
            for name in names:
                mine, more = split_options(own, name, given)
                subjects.append(Subject(
                    source, mine, name, more, seed, clean, n, size, None, device,
                    os.path.abspath(keep), sharp,
                ))  # fmt: skip
    return _run(subjects, out, _wanted(defenses), budgets, draws, only, where)


def _options(
    source: str, recipe: Recipe, options: dict[str, dict] | None
) -> dict[str, dict]:
    if options is not None:
        return options
    usual = SIGNS_OPTIONS if source in DRAWN else {}
    if recipe.rate is not None:  # asked for by the user, so it counts
        usual = {a: o | {"rate": recipe.rate} for a, o in usual.items()}
    return usual


def run_zoo(
    out: str | os.PathLike,
    names: Sequence[str] = (),
    defenses: Sequence[str] = (),
    *,
    budgets: Iterable[int | None] = (None,),
    draws: Iterable[int] = (0,),
    sharp: bool = False,
    device: str | None = None,
    only: Sequence[str] = (),
    **where,
) -> Results:
    """The same for the victims that ship with the course: nothing is trained.

    Args:
        names: of `bdcourse.zoo.ENTRIES`; default all.
        only: patterns VICTIM/DEFENSE.
        out, defenses, budgets, draws, sharp, device, where: see :func:`run`.
    """
    from bdcourse.zoo import ENTRIES, chosen

    subjects = []
    for name in chosen(names):
        entry = ENTRIES[name]
        own, more = entry.settings()
        subjects.append(Subject(entry.source, own, entry.attack, more, zoo=name,
                                device=device, sharp=sharp))  # fmt: skip
    return _run(subjects, out, _wanted(defenses), budgets, draws, only, where)


def _wanted(names: Sequence[str]) -> list[str]:
    """Names of plans, checked."""
    wanted = list(dict.fromkeys(names or (*DEFENSES, SWEEP)))
    if "everything" in wanted:
        wanted = [*PLANS, SWEEP]
    elif "all" in wanted:
        wanted = [*(n for n in PLANS if n not in ABLATIONS), SWEEP]
    if wrong := set(wanted) - {*PLANS, SWEEP}:
        raise ValueError(
            f"unknown defense {sorted(wrong)[0]!r}; choose from "
            f"{', '.join((*PLANS, SWEEP))}."
        )
    return wanted


def _jobs(
    subjects: Sequence[Subject],
    wanted: Sequence[str],
    budgets: Iterable[int | None],
    draws: Iterable[int],
    only: Sequence[str],
    results: Results,
) -> list[Job]:
    """The cells that are still to be measured."""
    jobs, seen, fits, plain = [], set(), False, 0
    budgets, draws = list(budgets), list(draws)
    for subject in subjects:
        who = subject.zoo or subject.attack or "none"
        names = [
            name for name in wanted
            if (subject.attack or name not in ORACLES)
            and (not only or _fits(f"{who}/{name}", only))
        ]  # fmt: skip
        fits = fits or bool(names)
        for budget in budgets:
            _require_budget(budget, subject.images())
            for draw in draws:
                key = subject.key() | {"budget": budget, "draw": draw or None}
                job = Job(subject, key, tuple(names), budget, draw)
                left = [name for name in names if not results.done(job.cell(name))]
                rows = [results.get(job.cell(name)) or {} for name in names]
                plain += sum("acc" in r and "sharp" not in r for r in rows)
                if left and (one := identity(key)) not in seen:  # BadNets badnets
                    seen.add(one)
                    jobs.append(replace(job, names=tuple(left)))
    if only and not fits:
        raise ValueError(
            f"no cell fits {' or '.join(only)}; patterns look like 'BadNets/clp*', and "
            "the benign twin is 'none'."
        )
    if plain and subjects[0].sharp:
        print(
            f"{plain} cells are there without `sharp` and stay so; name another --out "
            "to measure them with it."
        )
    return jobs


def _fits(cell: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(cell.lower(), p.lower()) for p in patterns)


def _run(
    subjects: Sequence[Subject],
    out: str | os.PathLike,
    wanted: Sequence[str],
    budgets: Iterable[int | None],
    draws: Iterable[int],
    only: Sequence[str],
    where: dict,
) -> Results:
    from bdcourse.cluster import carried_out

    forget_images()
    with Results(out).owned() as results:
        jobs = _jobs(subjects, wanted, budgets, draws, only, results)
        progress = Progress(jobs, results.rows)
        for job, row in carried_out(jobs, results, **where):
            results.add(row)
            progress.say(job, row)
    for line in complaints(results.failed):
        print(f"error: {line}", file=sys.stderr)
    return results


def complaints(rows: Iterable[dict]) -> list[str]:
    """One line for each different error in these rows, with the victims it befell."""
    found: dict[str, list[str]] = {}
    for r in rows:
        who = f"{r.get('victim') or r['attack']}, seed {r['seed']}"
        found.setdefault(r["error"], []).append(who)
    return [f"{'; '.join(dict.fromkeys(w))}: {text}" for text, w in found.items()]


class Progress:
    """What is done, and about how long the rest takes.

    A cell weighs what its defense took in other rows of the table, and the mean of all
    where there is none; training enters through the time that has really passed.
    """

    def __init__(self, jobs: Sequence[Job], rows: Sequence[dict]) -> None:
        seen: dict[str, list[float]] = {}
        for r in rows:
            if "seconds" in r:
                seen.setdefault(r["defense"], []).append(r["seconds"])
        self.means = {name: sum(s) / len(s) for name, s in seen.items()}
        usual = sum(self.means.values()) / len(self.means) if self.means else 0.0
        self.usual = 1.0 + usual  # a second for the scores
        self.total = sum(len(j.names) for j in jobs)
        self.weight = sum(self._weigh(name) for j in jobs for name in j.names)
        self.count, self.done, self.start = 0, 0.0, time.perf_counter()
        self.last: tuple | None = None

    def _weigh(self, name: str) -> float:
        return 1.0 + self.means[name] if name in self.means else self.usual

    def say(self, job: Job, row: dict) -> None:
        """One line for one row."""
        self.count += 1
        self.done += self._weigh(row["defense"])
        key = (job.subject, job.budget, job.draw)
        if key != self.last:
            print(f"\n{job}", flush=True)
        self.last = key
        left = (self.weight / self.done - 1) * (time.perf_counter() - self.start)
        print(
            f"  {row['defense']:25s} {_said(row)}  [{self.count}/{self.total}, "
            f"{_clock(left)} left]",
            flush=True,
        )


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _said(row: dict) -> str:
    """What a row says, on half a line."""
    if "error" in row:
        return f"FAILED: {row['error']}"
    if "refused" in row:
        return f"not possible: {row['refused']}"
    if "curve" in row:
        points = (f"{p['u']:g}: {100 * p['acc']:.0f}" for p in row["curve"][::4])
        return "u: ACC " + ", ".join(points)
    shares = {k: row[k] for k in ("acc", "asr", "ra") if row[k] is not None}
    said = ", ".join(f"{k.upper()} {100 * v:.1f} %" for k, v in shares.items())
    return f"{said}, {row['pruned']} channels"


# --- How a cell is measured ------------------------------------------------------


def measure(
    job: Job, stored: Callable[[dict], dict | None] = lambda key: None
) -> Iterator[dict]:
    """The rows of a job, one after the other; what is `stored` is not measured again.

    Whatever goes wrong becomes a row: `refused` where a method cannot take this model
    or diverges, which is a result, and `error` where the cell should be tried again.
    """
    prepared = broken = None
    for name in job.names:
        cell = job.cell(name)
        row = stored(cell)
        if row is None:
            try:
                if broken:
                    raise broken
                prepared = prepared or _prepared(job)
            except Exception as e:  # other victims may do better
                broken = e
                row = failure(e)
            else:
                row = _row(name, *prepared, job.subject.sharp)
        yield cell | row


def failure(e: BaseException) -> dict:
    """How a row keeps an error: the package's own sentences alone, others by name."""
    own = type(e) in (ValueError, RuntimeError, FileNotFoundError)
    text = " ".join(str(e).split())[:500]
    return {"error": text if own and text else f"{type(e).__name__}: {text}"}


def _prepared(job: Job) -> tuple[Case, Splits, Victim, dict]:
    subject, seed = job.subject, job.subject.seed + 1000 * job.draw
    everything = subject.parts()
    if identity(job.key) != identity(
        job.key | {"digest": subject.images().train.digest()}
    ):
        raise ValueError(
            f"{subject.source} holds other images here than where the run was started."
        )
    twin, victim = subject.twin().victim(), subject.victim()
    parts = _draw(everything, job.budget, job.draw or None)
    about = {
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
    augment = Augment(subject.recipe.pad, subject.recipe.flip)
    case = Case(victim.model, parts.clean, parts.held, augment, seed, victim.attack)
    if subject.sharp:
        case.watch = partial(
            looks.watch, own=parts.clean[:200], other=looks.unseen(parts),
            test=parts.test, attack=victim.attack,
        )  # fmt: skip
    return case, parts, victim, about


def _row(
    name: str, case: Case, parts: Splits, victim: Victim, about: dict, sharp: bool
) -> dict:
    """One defense against one victim."""
    how = {"how": PLANS[name].settings} if name in PLANS else {}
    try:
        return how | _measured(name, case, parts, victim, sharp) | about
    except Exception as e:  # the rest of the grid goes on
        return how | failure(e) | about


def _measured(
    name: str, case: Case, parts: Splits, victim: Victim, sharp: bool
) -> dict:
    if name == SWEEP:
        return {"curve": looks.sweep_curve(case.model, parts.test, case.attack)}
    plan = PLANS[name]
    try:
        p = plan.run(case)
    # What a method cannot take, or where it diverges, is a result as well; a machine
    # that fails (memory, CUDA) is not.
    except (ValueError, RuntimeError) as e:
        if type(e) not in (ValueError, RuntimeError) or MACHINE.search(str(e)):
            raise
        return {"refused": str(e)}
    s = metrics.evaluate(p.model, parts.test, case.attack)
    row = {"pruned": p.count, "clean_used": plan.images(case), **notes(p)}
    row |= {**s.dict(), "seconds": round(p.seconds, 3)}
    if case.attack is not None:
        row["der"] = metrics.der(victim.scores, s)
    if sharp:
        own, other = parts.clean[:200], looks.unseen(parts)
        row["sharp"] = {"own": looks.sharpness(p.model, own)}
        row["sharp"]["other"] = looks.sharpness(p.model, other)
        row["course"] = p.log.get("watched")
        if name == "none":
            row["training"] = victim.history
    return row


def _require_budget(budget: int | None, parts: Splits) -> None:
    most = len(parts.clean) + len(parts.held)
    if budget is not None and not 2 <= budget <= most:
        raise ValueError(
            f"budget must lie between 2 and the defender's {most} images, but is "
            f"{budget}."
        )


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
