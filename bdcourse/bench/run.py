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
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatch
from functools import lru_cache, partial
from itertools import product
from pathlib import Path

import torch

from bdcourse import data as datasets
from bdcourse import metrics, require, victims
from bdcourse.attacks import ATTACKS
from bdcourse.bench import measures as looks
from bdcourse.bench.plans import ABLATIONS, ORACLES, PLANS, Case, notes
from bdcourse.bench.recipes import (
    DRAWN,
    LEAST_STEPS,
    RECIPES,
    SIGNS_OPTIONS,
    Recipe,
    attack_class,
    enough,
    folder,
    named,
    recipe_for,
    require_options,
    split_options,
    suited,
    train_victim,
)
from bdcourse.bench.results import DEFENSES, Results, identity
from bdcourse.data import BUILT_IN, Splits
from bdcourse.train import Augment
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


# --- What there is to measure ----------------------------------------------------


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
    n_test: int | None = None

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
        about = (self.recipe, self.seed, self.label, self.keep, self.sharp)
        parts = self.parts()
        victim = train_victim(parts, self.attack, *about, **self.options)
        if self.attack is None:
            require_working(victim, parts, self)
        return victim

    def twin(self) -> Subject:
        """The benign network of the same recipe."""
        if self.zoo:
            from bdcourse.bench.zoo import (
                ENTRIES,
            )  # which is made with this package's recipes

            return replace(self, zoo=ENTRIES[self.zoo].twin)
        return replace(self, attack=None, options={}, recipe=replace(self.recipe, rate=0.0))

    def key(self) -> dict:
        """What tells its rows from those of others."""
        more = {"victim": self.zoo} if self.zoo else {}
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
        }


def forget_images() -> None:
    """A folder may hold other images than in an earlier run of this process."""
    _images.cache_clear()
    _placed.cache_clear()


@lru_cache(maxsize=1)  # the cells of one seed come one after the other
def _images(source, clean, seed, n, size, n_test) -> Splits:
    parts = datasets.splits(source, clean=clean, seed=seed, n=n, size=size, n_test=n_test)
    train, test = parts.train, parts.test
    print(f"{len(train)} training and {len(test)} test images, {train.k} classes")
    owned = {*parts.clean.y.tolist(), *parts.held.y.tolist()}
    if missing := [c for i, c in enumerate(train.classes) if i not in owned]:
        print(
            f"the defender has no image of {len(missing)} of {train.k} classes, such "
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


def require_working(twin: Victim, parts: Splits, subject: Subject) -> None:
    """Refuse a benign twin that guesses: every victim would look as good beside it.

    Raises:
        AtChance: see `victims.at_chance`; or it gets no more right than who always
            gives the commonest label.
    """
    acc, test, own = twin.scores.acc, parts.test, subject.recipe
    commonest = int(test.y.bincount().max()) / len(test)
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
        f"the twin is at chance (ACC {100 * acc:.1f} % of {test.k} classes; "
        f"{subject.label}, seed {subject.seed}, width {own.width}); try {cure}."
    )


def run(
    source: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    recipe: Recipe | str | None = None,
    *,
    attacks: Iterable[str] = ("BadNets", "Blended"),
    seeds: Iterable[int] = (0,),
    scales: Iterable[dict] = ({},),
    clean: float = 0.05,
    n: int | None = None,
    n_test: int | None = None,
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
            rest, with more steps where there are few images: see
            :func:`recipes.suited`. A name of :data:`recipes.RECIPES` takes that one,
            with as many steps as it says.
        attacks: names from `bdcourse.attacks.ATTACKS`; ("all",) means all of them.
        scales: entries that replace those of the recipe, {"width": 8} say, one table
            after the other.
        clean: share of the training images that the defender gets, disjoint from what
            the attacker poisons.
        n, n_test, size: number of training and of test images (default all that there
            are), and side to which folder images are resized.
        device: default CUDA if the machine that measures has it.
        keep: folder for the trained victims, reused when a run is started again.
        options: attack name -> {"craft": arguments of its `craft`, "recipe": entries of
            the recipe such as "rate" or "epochs", for which its benign twin is then
            trained too}; what only one side knows may stand without these two words.
            Default :data:`recipes.SIGNS_OPTIONS` for the built-in signs.
        defenses: names from `plans.PLANS`, default :data:`results.DEFENSES` and the
            sweep of CLP; "all" means all but `plans.ABLATIONS`, "everything" those as
            well, and may stand beside names. "none" measures the victim as it is.
        budgets: how many clean images the defender really gets, of their share; None is
            all of it.
        draws: which of them: each number is another random choice and another seed of
            the defense, against the same victim.
        sharp: rows also tell how sharp the model is, on 200 of the defender's images
            ("own") and on 200 of the test's ("other"), and hold the course of those
            defenses that log one. Minutes for each row.
        only: patterns ATTACK/DEFENSE with * and ?, such as "BadNets/*"; cells that fit
            none of them are left out. The benign twin is "none".
        where: `workers`, `scheduler`, `threads`, `dashboard`, `tls_ca`, `tls_cert`,
            `tls_key` of :func:`cluster.carried_out`.

    Raises:
        ValueError: an argument cannot be meant; said before any image is read.
        AtChance: a benign twin has learned nothing; rows before it are kept.
    """
    shared = _shared(defenses, budgets, draws, sharp, device, only, where)
    single = isinstance(source, (str, os.PathLike))
    sources = _listed("source", [source] if single else source, _path, 1)
    names = _listed("attacks", attacks, _attack)
    names = [None, *(ATTACKS if "all" in names else names)]
    seeds = _listed("seeds", seeds, partial(require.whole, "seeds", low=0, high=10**9), 1)
    scales = _listed("scales", scales, _scale, 1)
    chosen = None
    if isinstance(recipe, str):
        chosen, recipe = named("recipe", recipe, RECIPES), None
    if recipe is not None and not isinstance(recipe, Recipe):
        raise ValueError(
            "recipe must be a Recipe or the name of one "
            f"({', '.join(RECIPES)}), not {require.kind(recipe)}."
        )
    require.number("clean", clean, 0, 1, above=0)
    n, n_test = _whole("n", n, 1), _whole("n_test", n_test, 1)
    size = _whole("size", size, 8, 1024)
    keep = os.path.abspath(folder("keep", keep))
    if options is not None:
        require_options(options)

    def scaled(path: str) -> Iterator[tuple[dict, Recipe]]:
        for scale in scales:
            yield scale, replace(recipe or recipe_for(path, chosen), **scale)

    for path, name in product(sources, [*names, *(options or ())]):
        for _, own in scaled(path):
            split_options(own, name, _options(path, own, options))
    for name in (options or {}).keys() - {*names}:
        print(f"options of {name} are not used: it is not among the attacks")

    def subjects() -> Iterator[Subject]:
        told: set[str] = set()
        for path, seed in product(sources, seeds):  # images are loaded once each
            for scale, own in scaled(path):
                # Workers run in folders of their own.
                source = path if path in BUILT_IN else os.path.abspath(path)
                one = Subject(
                    source,
                    own,
                    None,
                    {},
                    seed,
                    clean,
                    n,
                    size,
                    None,
                    device,
                    keep,
                    sharp,
                    n_test,
                )
                parts = one.images()
                if recipe is None and chosen is None and path not in DRAWN:
                    own = suited(own, len(parts.train), scale)
                given = scale if recipe is None else asdict(recipe)
                for line in _remarks(one.recipe, own, parts, given):
                    if line not in told:
                        print(line)
                    told.add(line)
                for name in names:
                    mine, more = split_options(own, name, _options(path, own, options))
                    yield replace(one, recipe=mine, attack=name, options=more)

    return _run(subjects(), out, *shared)


def _remarks(usual: Recipe, own: Recipe, parts: Splits, given: dict) -> list[str]:
    """What somebody should know before hours go by."""
    found, (_, h, w) = [], parts.train.shape
    if own.epochs != usual.epochs:
        found.append(
            f"{own.epochs:g} epochs in batches of {own.batch}, since few images make "
            f"{LEAST_STEPS:,} steps only so; --epochs sets another number"
        )
    if own.flip and "flip" not in given:
        found.append(
            "images are mirrored in training; give --no-flip where left and right "
            "differ, as on traffic signs"
        )
    work = h * w / 32**2
    if work > 4:
        # 3 ms and 1.5 MB an image at width 16 and 32 pixels, forward and back.
        scale = work * own.width / 16
        hours = 0.003 * scale * own.epochs * len(parts.train) / 3600
        held = 7 * parts.train.x.nbytes + 1.5e6 * scale * own.batch
        found.append(
            f"images of {w}x{h} are {work:.0f} times the work of 32x32: about "
            f"{hours:.1f} h of one core for each victim and {held / 1e9:.1f} GB of "
            "memory; --size 32 makes them small"
        )
    return found


def _listed(name: str, values: object, each: Callable, least: int = 0) -> list:
    """The values of a list, each of them checked."""
    if isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable):
        raise ValueError(f"{name} must be a list, even of one entry, not {require.kind(values)}.")
    if len(found := [each(v) for v in values]) < least:
        raise ValueError(f"{name} must hold at least one entry.")
    return found


def _whole(name: str, value: object, low: int, high: int | None = None) -> int | None:
    return None if value is None else require.whole(name, value, low, high)


def _text(what: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what} must be text in quotes, not {require.kind(value)}.")
    return value


def _path(value: object) -> str:
    if isinstance(value, (str, os.PathLike)) and str(value) and "\0" not in str(value):
        return str(value)
    raise ValueError(
        "source must be the name of a set of images, the path of a folder or of an "
        f".npz, or a list of these, not {require.kind(value)}."
    )


def _attack(name: object) -> str:
    if isinstance(name, str) and name.lower() == "all":
        return "all"
    return attack_class(name).__name__


def _scale(entries: object) -> dict:
    known = [f.name for f in fields(Recipe)]
    if not isinstance(entries, dict):
        raise ValueError(
            'scales must hold entries of the recipe, such as {"width": 8}, not '
            f"{require.kind(entries)}."
        )
    for name in entries:
        named("entry of the recipe", name, known)
    return entries


def _shared(
    defenses: object,
    budgets: object,
    draws: object,
    sharp: object,
    device: object,
    only: object,
    where: dict,
) -> tuple:
    """What every run is told beside its victims, checked before any image is read."""
    from bdcourse.bench.cluster import placed

    require.truth("sharp", sharp)
    where = placed(**where)
    _require_device(device, where["scheduler"] is not None)
    return (
        _wanted(defenses),
        _listed("budgets", budgets, partial(_whole, "budget", low=2), 1),
        _listed("draws", draws, partial(require.whole, "draws", low=0, high=10**9), 1),
        _listed("only", only, partial(_text, "only")),
        where,
    )


def _require_device(device: object, elsewhere: bool) -> None:
    if device is None:
        return
    try:
        place = torch.device(_text("device", device))
        if not elsewhere:
            torch.zeros(1, device=place).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise ValueError(f"there is no device {device!r} here; leave it out.") from e


def _options(source: str, recipe: Recipe, options: dict[str, dict] | None) -> dict[str, dict]:
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
        names: of `bdcourse.bench.zoo.ENTRIES`; default all.
        only: patterns VICTIM/DEFENSE.
        out, defenses, budgets, draws, sharp, device, where: see :func:`run`.
    """
    from bdcourse.bench.zoo import ENTRIES, chosen

    names = chosen(_listed("names", names, partial(_text, "names")))
    shared = _shared(defenses, budgets, draws, sharp, device, only, where)
    subjects = []
    for name in names:
        entry = ENTRIES[name]
        own, more = entry.settings()
        subjects.append(
            Subject(entry.source, own, entry.attack, more, zoo=name, device=device, sharp=sharp)
        )
    return _run(subjects, out, *shared)


def _wanted(names: Sequence[str]) -> list[str]:
    """Names of plans, checked."""
    known = [*PLANS, SWEEP]
    groups = {
        "everything": known,
        "all": [name for name in known if name not in ABLATIONS],
    }
    wanted = []
    for name in _listed("defenses", names, lambda name: name) or (*DEFENSES, SWEEP):
        group = groups.get(name.lower()) if isinstance(name, str) else None
        wanted += group or [named("defense", name, known)]
    return list(dict.fromkeys(wanted))


def _jobs(
    subjects: Iterable[Subject],
    wanted: Sequence[str],
    budgets: Sequence[int | None],
    draws: Sequence[int],
    only: Sequence[str],
    results: Results,
) -> list[Job]:
    """The cells that are still to be measured."""
    jobs, seen, plain, there, total = [], set(), 0, 0, 0
    for subject in subjects:
        who = subject.zoo or subject.attack or "none"
        names = [
            name
            for name in wanted
            if (subject.attack or name not in ORACLES)
            and (not only or _fits(f"{who}/{name}", only))
        ]
        for budget in budgets:
            _require_budget(budget, subject.images())
            for draw in draws:
                key = subject.key() | {"budget": budget, "draw": draw or None}
                if (one := identity(key)) in seen:  # BadNets badnets
                    continue
                seen.add(one)
                job = Job(subject, key, tuple(names), budget, draw)
                left = [name for name in names if not results.done(job.cell(name))]
                rows = [results.get(job.cell(name)) or {} for name in names]
                plain += subject.sharp * sum("acc" in r and "sharp" not in r for r in rows)
                total, there = total + len(names), there + len(names) - len(left)
                if left:
                    jobs.append(replace(job, names=tuple(left)))
    if only and not total:
        raise ValueError(
            f"no cell fits {' or '.join(only)}; patterns look like 'BadNets/clp*', and "
            "the benign twin is 'none'."
        )
    if there:
        print(f"{there} of {total} cells are there")
    if plain:
        print(
            f"{plain} cells are there without `sharp` and stay so; name another --out "
            "to measure them with it."
        )
    return jobs


def _fits(cell: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(cell.lower(), p.lower()) for p in patterns)


def _run(
    subjects: Iterable[Subject],
    out: str | os.PathLike,
    wanted: Sequence[str],
    budgets: Sequence[int | None],
    draws: Sequence[int],
    only: Sequence[str],
    where: dict,
) -> Results:
    from bdcourse.bench.cluster import carried_out

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
    where there is none. What the first row of a victim took beyond its weight was
    training, and each victim to come is given the mean of that.
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
        self.left = sum(self._weigh(name) for j in jobs for name in j.names)
        self.untrained = {v for j in jobs for v in self._victims(j)}
        self.count = self.trained = 0
        self.training = self.took = self.weight = 0.0
        self.start = time.perf_counter()
        self.last: tuple | None = None

    @staticmethod
    def _victims(job: Job) -> set[str]:
        """The networks that a job needs trained."""
        own = job.subject
        return set() if own.zoo else {repr(own), repr(own.twin())}

    def _weigh(self, name: str) -> float:
        return 1.0 + self.means[name] if name in self.means else self.usual

    def say(self, job: Job, row: dict) -> None:
        """One line for one row; and why its victim misses the gate, if it does."""
        self.count += 1
        now, weight = time.perf_counter(), self._weigh(row["defense"])
        passed, self.start = now - self.start, now
        self.left -= weight
        if new := self._victims(job) & self.untrained:
            self.untrained -= new
            cell = min(passed, weight * self._rate())
            self.trained += len(new)
            self.training += passed - cell
            passed = cell
        self.took, self.weight = self.took + passed, self.weight + weight
        left = self._rate() * self.left
        if self.trained:
            left += self.training / self.trained * len(self.untrained)
        key = (job.subject, job.budget, job.draw)
        if key != self.last:
            print(f"\n{job}", flush=True)
            if row.get("weak"):
                print(f"  weak, and in no mean: {row['weak']}", flush=True)
        self.last = key
        print(
            f"  {row['defense']:25s} {_said(row)}  [{self.count}/{self.total}, "
            f"{_clock(max(0.0, left))} left]",
            flush=True,
        )

    def _rate(self) -> float:
        """Seconds for a weight of 1."""
        return self.took / self.weight if self.weight else 1.0


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


def measure(job: Job, stored: Callable[[dict], dict | None] = lambda key: None) -> Iterator[dict]:
    """The rows of a job, one after the other; what is `stored` is not measured again.

    Whatever goes wrong becomes a row: `refused` where a method cannot take this model
    or diverges, which is a result, and `error` where the cell should be tried again.

    Raises:
        AtChance: the benign twin has learned nothing.
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
            except AtChance:  # no victim could do better
                raise
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
    if identity(job.key) != identity(job.key | {"digest": subject.images().train.digest()}):
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
    augment = Augment(subject.recipe.pad, bool(subject.recipe.flip))
    case = Case(victim.model, parts.clean, parts.held, augment, seed, victim.attack)
    if subject.sharp:
        case.watch = partial(
            looks.watch,
            own=parts.clean[:200],
            other=looks.unseen(parts),
            test=parts.test,
            attack=victim.attack,
        )
    return case, parts, victim, about


def _row(name: str, case: Case, parts: Splits, victim: Victim, about: dict, sharp: bool) -> dict:
    """One defense against one victim."""
    how = {"how": PLANS[name].settings} if name in PLANS else {}
    try:
        return how | _measured(name, case, parts, victim, sharp) | about
    except Exception as e:  # the rest of the grid goes on
        return how | failure(e) | about


def _measured(name: str, case: Case, parts: Splits, victim: Victim, sharp: bool) -> dict:
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
            f"budget must lie between 2 and the defender's {most} images, but is {budget}."
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
