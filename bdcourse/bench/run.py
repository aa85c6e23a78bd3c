"""Measure attacks against defenses on any image set, and keep every number.

`python -m bdcourse bench --data DIR` runs the course's whole path on your own images:
hold out the defender's share, train a benign twin and a victim per attack and seed,
measure them, and apply each defense. The table is a grid of :mod:`cells`, each of which is
one row. A row is written the moment it exists; a run that was stopped and is started
again repeats nothing; a cell that fails keeps its error, the others go on, and the next
run tries it again. :mod:`cluster` deals the cells out to several processes. Derived in
lesson 09.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatch
from functools import partial
from itertools import product
from typing import NamedTuple

import torch

from bdcourse import require
from bdcourse.attacks import ATTACKS, ELSEWHERE
from bdcourse.bench.cells import SWEEP, Job, Subject, forget_images
from bdcourse.bench.cluster import carried_out, placed
from bdcourse.bench.names import named
from bdcourse.bench.plans import PLANS
from bdcourse.bench.plugins import loaded
from bdcourse.bench.progress import Progress, complaints
from bdcourse.bench.recipes import (
    DRAWN,
    LEAST_STEPS,
    RECIPES,
    SIGNS_OPTIONS,
    Recipe,
    attack_class,
    folder,
    recipe_for,
    require_options,
    split_options,
    suited,
)
from bdcourse.bench.results import ACROSS, DEFENSES, Results, identity
from bdcourse.bench.zoo import ENTRIES
from bdcourse.bench.zoo import chosen as of_the_zoo
from bdcourse.data import BUILT_IN, DRAWINGS, Splits
from bdcourse.task import IMAGES, USUAL


def run(
    source: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike,
    recipe: Recipe | str | None = None,
    *,
    attacks: Iterable[str] | None = None,
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
    plugins: Iterable[str | os.PathLike] = (),
    **where,
) -> Results:
    """Run the path of the course on image sets; returns the table of rows.

    Args:
        source: what `data.load` takes, one or several; the drawn sets of other tasks
            ("clips") come with their own networks, recipes and attacks.
        out: JSON file; rows already in it are kept and not measured again.
        recipe: default :data:`recipes.SIGNS` for the built-in signs, what is usual for
            its task for the drawn set of another one, `Recipe()` for the rest, with
            more steps where there are few images: see :func:`recipes.suited`. A name of
            :data:`recipes.RECIPES` takes that one, with as many steps as it says.
        attacks: names of `bdcourse.attacks` or of another task's room; None is what is
            usual for the data's task, of images BadNets and Blended; ("all",) means all
            of that task.
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
            sweep of CLP; "all" means all but ablations, "everything" those as well,
            "across" what runs on every task, and each may stand beside names. "none"
            measures the victim as it is.
        budgets: how many clean images the defender really gets, of their share; None is
            all of it.
        draws: which of them: each number is another random choice and another seed of
            the defense, against the same victim.
        sharp: rows also tell how sharp the model is, on 200 of the defender's images
            ("own") and on 200 of the test's ("other"), and hold the course of those
            defenses that log one. Minutes for each row.
        only: patterns ATTACK/DEFENSE with * and ?, such as "BadNets/*"; cells that fit
            none of them are left out. The benign twin is "none".
        plugins: Python files with plans and attacks of your own, see :mod:`plugins`.
        where: `workers`, `scheduler`, `threads`, `dashboard`, `tls_ca`, `tls_cert`,
            `tls_key` of :func:`cluster.carried_out`.

    Raises:
        ValueError: an argument cannot be meant; said before any image is read.
        AtChance: a benign twin has learned nothing; rows before it are kept.
    """
    added = loaded(plugins)
    asked = _asked(defenses, budgets, draws, only, where)
    _require_device(device, asked.where["scheduler"] is not None)
    single = isinstance(source, (str, os.PathLike))
    sources = _listed("source", [source] if single else source, _path, 1)
    names = None if attacks is None else _listed("attacks", attacks, _attack)
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
    common = {
        "clean": clean,
        "n": _whole("n", n, 1),
        "n_test": _whole("n_test", n_test, 1),
        "size": _whole("size", size, 8, 1024),
        "device": device,
        "keep": os.path.abspath(folder("keep", keep)),
        "sharp": require.truth("sharp", sharp),
        "plugins": added,
    }
    if options is not None:
        require_options(options)
    victims = Victims(sources, names, seeds, scales, recipe, chosen, options, common)
    victims.require_options()
    return _run(victims, out, asked)


@dataclass(frozen=True)
class Victims:
    """The victims of a table, one subject each, in the order in which images are loaded.

    Args:
        sources, attacks, seeds, scales, options: see :func:`run`.
        recipe, chosen: a recipe, or the name of one; None is what suits the images.
        common: what all subjects share.
    """

    sources: list[str]
    attacks: list[str] | None
    seeds: list[int]
    scales: list[dict]
    recipe: Recipe | None
    chosen: str | None
    options: dict[str, dict] | None
    common: dict

    def require_options(self) -> None:
        """Refuse options of an attack that its recipe, or its `craft`, cannot take."""
        for path in self.sources:
            for name in [*self.of(path), *(self.options or ())]:
                for _, own in self._scaled(path):
                    split_options(own, name, _options(path, own, self.options))
        asked = {name for path in self.sources for name in self.of(path)}
        for name in (self.options or {}).keys() - asked:
            print(f"options of {name} are not used: it is not among the attacks")

    def of(self, path: str) -> list[str | None]:
        """The attacks on one set, behind its twin, None."""
        task = DRAWINGS[path].kind.task if path in DRAWINGS else IMAGES
        known = ATTACKS | ELSEWHERE
        if self.attacks is None:
            names = list(USUAL[task.name].attacks)
        elif "all" in self.attacks:
            names = [name for name, cls in known.items() if cls.task is task]
        else:
            names = self.attacks
        for name in names:
            if known[name].task is not task and path not in BUILT_IN:
                raise ValueError(
                    f"{name} attacks {known[name].task.many}, but tables of your own files take "
                    f"images only so far; --task {known[name].task.name} takes drawn ones."
                )
            if known[name].task is not task:
                raise ValueError(
                    f"{name} attacks {known[name].task.many}, but {path} holds {task.many}; "
                    f"leave --attacks out, or take {', '.join(USUAL[task.name].attacks)}."
                )
        return [None, *names]

    def __iter__(self) -> Iterator[Subject]:
        told: set[str] = set()
        for path, seed in product(self.sources, self.seeds):  # images are loaded once each
            # Workers run in folders of their own.
            source = path if path in BUILT_IN else os.path.abspath(path)
            for scale, own in self._scaled(path):
                one = Subject(source, own, seed=seed, **self.common)
                parts = one.images()
                if self.recipe is None and self.chosen is None and path not in (*DRAWN, *DRAWINGS):
                    own = suited(own, len(parts.train), scale)
                given = scale if self.recipe is None else asdict(self.recipe)
                for line in _remarks(one.recipe, own, parts, given):
                    if line not in told:
                        print(line)
                    told.add(line)
                for name in self.of(path):
                    mine, more = split_options(own, name, _options(path, own, self.options))
                    yield replace(one, recipe=mine, attack=name, options=more)

    def _scaled(self, path: str) -> Iterator[tuple[dict, Recipe]]:
        for scale in self.scales:
            usual = self.recipe or recipe_for(path, self.chosen)
            yield scale, replace(usual, **scale)


def _remarks(usual: Recipe, own: Recipe, parts: Splits, given: dict) -> list[str]:
    """What somebody should know before hours go by."""
    found: list[str] = []
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
    if parts.train.task is not IMAGES:
        return found
    _, h, w = parts.train.shape
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


class Asked(NamedTuple):
    """What every run is told beside its victims; see :func:`run`."""

    defenses: list[str]
    budgets: list[int | None]
    draws: list[int]
    only: list[str]
    where: dict


def _asked(defenses: object, budgets: object, draws: object, only: object, where: dict) -> Asked:
    """The same, checked before any image is read."""
    where = placed(**where)
    return Asked(
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
    plugins: Iterable[str | os.PathLike] = (),
    **where,
) -> Results:
    """The same for the victims that ship with the course: nothing is trained.

    Args:
        names: of `bdcourse.bench.zoo.ENTRIES`; default all.
        only: patterns VICTIM/DEFENSE.
        out, defenses, budgets, draws, sharp, device, plugins, where: see :func:`run`.
    """
    added = loaded(plugins)
    names = of_the_zoo(_listed("names", names, partial(_text, "names")))
    asked = _asked(defenses, budgets, draws, only, where)
    _require_device(device, asked.where["scheduler"] is not None)
    sharp = require.truth("sharp", sharp)
    subjects = []
    for name in names:
        entry = ENTRIES[name]
        own, more = entry.settings()
        subjects.append(
            Subject(
                entry.source,
                own,
                entry.attack,
                more,
                zoo=name,
                device=device,
                sharp=sharp,
                plugins=added,
            )
        )
    return _run(subjects, out, asked)


def _wanted(names: object) -> list[str]:
    """Names of plans, checked."""
    known = [*PLANS, SWEEP]
    groups = {
        "everything": known,
        "across": list(ACROSS),
        "all": [name for name in known if name == SWEEP or PLANS[name].kind != "ablation"],
    }
    wanted = []
    for name in _listed("defenses", names, lambda name: name) or (*DEFENSES, SWEEP):
        group = groups.get(name.lower()) if isinstance(name, str) else None
        wanted += group or [named("defense", name, known)]
    return list(dict.fromkeys(wanted))


def _jobs(subjects: Iterable[Subject], asked: Asked, results: Results) -> list[Job]:
    """The cells that are still to be measured."""
    jobs, seen, plain, there, total = [], set(), 0, 0, 0
    for subject in subjects:
        names = _names(subject, asked)
        for budget in asked.budgets:
            _require_budget(budget, subject.images())
            for draw in asked.draws:
                key = subject.key() | {"budget": budget, "draw": draw or None}
                if (one := identity(key)) in seen:  # BadNets badnets
                    continue
                seen.add(one)
                job = Job(subject, key, names, budget, draw)
                left = [name for name in names if not results.done(job.cell(name))]
                rows = [results.get(job.cell(name)) or {} for name in names]
                plain += subject.sharp * sum("acc" in r and "sharp" not in r for r in rows)
                total, there = total + len(names), there + len(names) - len(left)
                if left:
                    jobs.append(replace(job, names=tuple(left)))
    if asked.only and not total:
        raise ValueError(
            f"no cell fits {' or '.join(asked.only)}; patterns look like 'BadNets/clp*', and "
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


def _names(subject: Subject, asked: Asked) -> tuple[str, ...]:
    """The defenses that are measured against one victim: no oracle without an attack."""
    who = subject.zoo or subject.attack or "none"
    return tuple(
        name
        for name in asked.defenses
        if (subject.attack or name == SWEEP or PLANS[name].kind != "oracle")
        and (not asked.only or _fits(f"{who}/{name}", asked.only))
    )


def _fits(cell: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(cell.lower(), p.lower()) for p in patterns)


def _run(subjects: Iterable[Subject], out: str | os.PathLike, asked: Asked) -> Results:
    forget_images()
    with Results(out).owned() as results:
        jobs = _jobs(subjects, asked, results)
        progress = Progress(jobs, results.rows)
        for job, row in carried_out(jobs, results, **asked.where):
            results.add(row)
            progress.say(job, row)
    for line in complaints(results.failed):
        print(f"error: {line}", file=sys.stderr)
    return results


def _require_budget(budget: int | None, parts: Splits) -> None:
    most = len(parts.clean) + len(parts.held)
    if budget is not None and not 2 <= budget <= most:
        raise ValueError(
            f"budget must lie between 2 and the defender's {most} images, but is {budget}."
        )
