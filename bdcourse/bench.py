"""Measure attacks against defenses on any image set, and keep every number.

`python -m bdcourse bench --data DIR` runs the course's whole path on your own images:
hold out the defender's share, train a benign twin and a victim per attack and seed,
measure them, and apply each defense. Every row is written the moment it exists; a run
that was stopped and is started again repeats nothing.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from bdcourse import curvature, landscape, metrics, victims
from bdcourse import data as datasets
from bdcourse.attacks import ATTACKS, Attack, LabelConsistent
from bdcourse.attacks.label_consistent import AdversarialTraining
from bdcourse.data import Images, Splits
from bdcourse.defenses.clp import US, sweep
from bdcourse.plans import ORACLES, PLANS, Case, defaults, notes
from bdcourse.surgery import without
from bdcourse.train import Augment, fit
from bdcourse.victims import Victim

if TYPE_CHECKING:
    from bdcourse.show import Table

RESULTS = Path(__file__).resolve().parent.parent / "data" / "results"


class Results:
    """Rows of results in one JSON file, keyed, written whole and atomically."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.rows: list[dict] = []
        if self.path.exists():
            try:
                self.rows = json.loads(self.path.read_text())["rows"]
            except (ValueError, KeyError, TypeError) as e:
                raise ValueError(
                    f"{self.path} is not a table of results; move it away or name "
                    "another --out."
                ) from e

    def select(self, **key) -> list[dict]:
        """The rows whose entries equal `key`."""
        return [r for r in self.rows if all(r.get(k) == v for k, v in key.items())]

    def has(self, **key) -> bool:
        return bool(self.select(**key))

    def add(self, row: dict) -> None:
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False) as f:
            lines = ",\n".join(json.dumps(r) for r in self.rows)
            f.write('{"rows": [\n' + lines + "\n]}\n")
        os.chmod(f.name, 0o644)
        os.replace(f.name, self.path)


def environment(device: torch.device) -> dict:
    """Where and with what a number was measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    here = Path(__file__).resolve().parent
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=here,
        capture_output=True,
        text=True,
    )
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "revision": git.stdout.strip() or "unknown",
    }


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


def recipe_for(source: str) -> Recipe:
    """The training recipe that suits a data source."""
    return SIGNS if str(source).startswith("signs") else Recipe()


def robust(
    twin: nn.Module, images: Images, generator: torch.Generator, recipe: Recipe
) -> nn.Module:
    """The attacker's adversarially trained classifier, which LC perturbs against.

    A copy of the benign twin, trained on: from scratch, six adversarial epochs of a
    network of width 8 stop at 57 % of the signs.
    """
    model, augment = copy.deepcopy(twin), Augment(recipe.pad, recipe.flip)
    fit(
        model, images, epochs=1.5, lr=0.03, batch=recipe.batch, augment=augment,
        generator=generator, steering=AdversarialTraining, bf16=recipe.bf16,
        verbose=False,
    )  # fmt: skip
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
    own = replace(recipe, **{k: v for k, v in mine.items() if k in known})
    usual = ATTACKS[name].usual_rate
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
    if Path(f"{file}.json").exists():
        print(f"  {kind}: trained before, found in {keep}")
        return victims.load(file, parts.train.x.device)
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
        each_epoch=partial(_sharpness_of, images=unseen(parts)) if sharp else None,
        **{k: v for k, v in recipe.settings().items() if k not in ("model", "width")},
    )
    if victim.recipe["interrupted"]:
        raise KeyboardInterrupt  # half a victim is no victim
    victims.save(victim, file)
    return victim


def run(
    source: str,
    out: str | os.PathLike,
    recipe: Recipe | None = None,
    *,
    attacks: Iterable[str] = ("BadNets", "Blended"),
    seeds: Iterable[int] = (0,),
    clean: float = 0.05,
    n: int | None = None,
    size: int | None = None,
    device: str = "cpu",
    keep: str | os.PathLike = "runs",
    options: dict[str, dict] | None = None,
    only: Sequence[str] = (),
    budget: int | None = None,
    draws: Iterable[int] = (0,),
    sharp: bool = False,
) -> Results:
    """Run the path of the course on one image set; returns the table of rows.

    Args:
        source: what `data.load` takes.
        out: JSON file; rows already in it are kept and not measured again.
        recipe: default :data:`SIGNS` for the built-in signs, `Recipe()` for the rest.
        attacks: names from `bdcourse.attacks.ATTACKS`; ("all",) means all of them.
        clean: share of the training images that the defender gets, disjoint from what
            the attacker poisons.
        n, size: of training images, and side to which folder images are resized.
        keep: folder for the trained victims, reused when a run is started again.
        options: attack name -> arguments of its `craft`, and entries of the recipe
            such as "rate" or "epochs", for which its benign twin is then trained too;
            default :data:`SIGNS_OPTIONS` for the built-in signs.
        only: names from `bdcourse.plans.PLANS`; ("all",) means all of them, default
            :data:`DEFENSES` and the sweep of CLP. "none" measures the victim as it is.
        budget: how many clean images the defender really gets, of his share.
        draws: which of them: each number is another random choice and another seed of
            the defense, against the same victim.
        sharp: rows also tell how sharp the model is, on 200 of the defender's images
            ("own") and on 200 of the test's ("other"), and hold the course of those
            defenses that log one. Minutes for each row.
    """
    recipe = recipe or recipe_for(source)
    if options is None:
        options = SIGNS_OPTIONS if source.startswith("signs") else {}
        if recipe.rate is not None:  # asked for by the user, so it counts
            options = {a: o | {"rate": recipe.rate} for a, o in options.items()}
    names = [attack_class(a).__name__ for a in attacks if a.lower() != "all"]
    if any(a.lower() == "all" for a in attacks):
        names = list(ATTACKS)
    unknown = set(options) - set(ATTACKS)
    if unknown:
        raise ValueError(f"options are given for no attack: {sorted(unknown)[0]!r}.")
    wanted = _wanted(only)
    draws = list(draws)
    results = Results(out)
    dev = torch.device(device)
    label = Path(source).name if os.path.exists(source) else source
    for seed in seeds:
        parts = datasets.splits(source, clean=clean, seed=seed, n=n, size=size)
        parts = Splits(*(p.to(dev) for p in parts))
        print(
            f"{len(parts.train)} training and {len(parts.test)} test images, "
            f"{parts.train.k} classes"
        )
        digest = parts.train.digest()
        for name in (None, *names):
            own, more = split_options(recipe, name, options)
            key = own.settings() | {"data": label, "digest": digest}
            key |= {"seed": seed, "attack": name or "none", "options": more or None}
            done = all(results.has(**key, budget=budget, draw=d or None, defense=w)
                       for d in draws for w in wanted)  # fmt: skip
            if name and only and done:
                continue
            print(f"\n{name or 'benign twin'}, seed {seed}", flush=True)
            twin = train_victim(parts, None, own, seed, label, keep, sharp).scores
            victim = train_victim(parts, name, own, seed, label, keep, sharp, **more)
            about = _about(victim, twin, parts) | environment(dev)
            _defend_draws(
                results, key, about, victim, parts, own, wanted, budget, draws, sharp
            )
    return results


def run_zoo(
    out: str | os.PathLike,
    names: Sequence[str] = (),
    only: Sequence[str] = (),
    *,
    budget: int | None = None,
    draws: Iterable[int] = (0,),
    sharp: bool = False,
    device: str = "cpu",
) -> Results:
    """The same for the victims that ship with the course: nothing is trained.

    Args:
        names: of `bdcourse.zoo.ENTRIES`; default all.
        out, only, budget, draws, sharp: see :func:`run`.
    """
    from bdcourse.zoo import ENTRIES, chosen

    names = chosen(names)
    wanted, results, dev = _wanted(only), Results(out), torch.device(device)
    draws = list(draws)
    for name in names:
        entry, victim = ENTRIES[name], victims.zoo(name, dev)
        parts = Splits(*(p.to(dev) for p in datasets.splits(entry.source)))
        print(f"\n{name}", flush=True)
        own, more = entry.settings()
        key = own.settings() | {"data": entry.source, "digest": parts.train.digest()}
        key |= {"seed": 0, "victim": name, "attack": entry.attack or "none"}
        key["options"] = more or None
        twin = victims.zoo(entry.twin).scores
        about = _about(victim, twin, parts) | environment(dev)
        _defend_draws(
            results, key, about, victim, parts, own, wanted, budget, draws, sharp
        )
    return results


def _about(victim: Victim, twin: metrics.Scores, parts: Splits) -> dict:
    """What a row says of its victim."""
    return {
        "n_train": len(parts.train),
        "n_poisoned": victim.recipe["n_poisoned"],
        "n_cover": victim.recipe.get("n_cover", 0),
        "weak": victim.weak(twin),
        "learned": _learned(victim.history),
        "train_seconds": victim.recipe["seconds"],
        "craft_seconds": victim.recipe.get("craft_seconds", 0.0),
        "settings": victim.attack.spec()[0] if victim.attack else {},
    }


def _wanted(only: Sequence[str]) -> list[str]:
    """Names of plans, checked."""
    wanted = list(only or (*DEFENSES, SWEEP))
    if "all" in wanted:
        wanted = [*PLANS, SWEEP]
    if wrong := set(wanted) - {*PLANS, SWEEP}:
        raise ValueError(
            f"unknown defense {sorted(wrong)[0]!r}; choose from "
            f"{', '.join((*PLANS, SWEEP))}."
        )
    return wanted


def _draw(parts: Splits, budget: int | None, draw: int | None) -> Splits:
    """The split with another random choice of the defender's images: a fifth held."""
    if budget is None and draw is None:
        return parts
    pool = datasets.join(parts.clean, parts.held)
    budget = len(pool) if budget is None else budget
    if not 2 <= budget <= len(pool):
        raise ValueError(
            f"budget must lie between 2 and the defender's {len(pool)} images, but is "
            f"{budget}."
        )
    g = torch.Generator().manual_seed(7000 + (draw or 0))
    mine = pool[torch.randperm(len(pool), generator=g)[:budget]]
    n = max(1, budget // 5)
    return parts._replace(clean=mine[n:], held=mine[:n])


def _learned(history: list[dict]) -> int | None:
    """The first epoch that got half of the poisoned images, or None."""
    return next((e["epoch"] for e in history if e.get("poison", 0) > 0.5), None)


def _defend_draws(
    results: Results,
    key: dict,
    about: dict,
    victim: Victim,
    parts: Splits,
    recipe: Recipe,
    wanted: Sequence[str],
    budget: int | None,
    draws: Sequence[int],
    sharp: bool,
) -> None:
    for draw in draws:
        drawn = _draw(parts, budget, draw or None)
        more = {"n_defender": len(drawn.clean) + len(drawn.held)}
        mine = key | {"budget": budget, "draw": draw or None}
        _defend(results, mine, about | more, victim, drawn, recipe, wanted, sharp)


def _defend(
    results: Results,
    key: dict,
    about: dict,
    victim: Victim,
    parts: Splits,
    recipe: Recipe,
    wanted: Sequence[str],
    sharp: bool,
) -> None:
    """The defenses of one victim, one row each."""
    before, attack = victim.scores, victim.attack
    augment = Augment(recipe.pad, recipe.flip)
    seed = key["seed"] + 1000 * (key.get("draw") or 0)
    case = Case(victim.model, parts.clean, parts.held, augment, seed, attack)
    own, other = parts.clean[:200], unseen(parts)
    if sharp:
        case.watch = partial(
            _watch, own=own, other=other, test=parts.test, attack=attack
        )
    for name in wanted:
        if results.has(**key, defense=name) or (name in ORACLES and attack is None):
            continue
        if name == SWEEP:
            curve = _sweep_curve(victim.model, parts.test, attack)
            results.add(key | {"defense": name, "curve": curve} | about)
            said = (f"{c['u']:g}: {_percents(c)}" for c in curve[::4])
            print("  clp sweep, u: ACC/ASR    ", ", ".join(said), flush=True)
            continue
        plan = PLANS[name]
        how = {"defense": name, "how": plan.settings}
        try:
            p = plan.run(case)
        # What a method cannot take, or where it diverges, is a result as well.
        except (ValueError, RuntimeError) as e:
            print(f"  {name:25s} not possible: {e}", flush=True)
            results.add(key | how | {"refused": str(e)} | about)
            continue
        s = metrics.evaluate(p.model, parts.test, attack)
        row = how | {"pruned": p.count, "clean_used": plan.images(case), **notes(p)}
        row |= {**s.dict(), "seconds": round(p.seconds, 3)}
        if attack is not None:
            row["der"] = metrics.der(before, s)
        if sharp:
            row["sharp"] = {"own": sharpness(p.model, own)}
            row["sharp"]["other"] = sharpness(p.model, other)
            row["course"] = p.log.get("watched")
            if name == "none":
                row["training"] = victim.history
        results.add(key | row | about)
        print(f"  {name:25s} {s}  {p.count} channels", flush=True)


def sharpness(model: nn.Module, images: Images, seed: int = 0) -> dict[str, float]:
    """How sharp the loss of a model is on some images; see `bdcourse.curvature`.

    Returns:
        `fisher`: trace of the true Fisher, `relative`: the same by relative changes of
        the weights, `empirical`: trace at the labels of the data, `lambda_max`: top
        eigenvalue of the Hessian; each of the last three with `..._error` beside it
        where chance enters; and `loss` in nats.
    """
    g = torch.Generator().manual_seed(seed)
    found = {}
    for name, measure in (
        ("fisher", curvature.fisher_trace),
        ("relative", curvature.relative_trace),
    ):
        t = measure(model, images, draws=10, generator=g)
        found |= {name: t.value, f"{name}_error": t.error}
    found["empirical"] = curvature.fisher_trace(
        model, images, fisher="empirical", generator=g
    ).value
    top, _ = landscape.hessian_top(model, images, generator=g)
    return found | {"lambda_max": float(top[0])}


def unseen(parts: Splits) -> Images:
    """The images on which sharpness is judged: no defense has trained on them."""
    return parts.test[-200:]


def _sharpness_of(model: nn.Module, images: Images) -> dict[str, float]:
    """One epoch of a training: trace of the Fisher, and top eigenvalue."""
    g = torch.Generator().manual_seed(0)
    trace = curvature.fisher_trace(model, images, draws=4, generator=g).value
    top, _ = landscape.hessian_top(model, images, tolerance=0.01, generator=g)
    return {"fisher": trace, "lambda_max": float(top[0])}


def _watch(
    model: nn.Module, own: Images, other: Images, test: Images, attack: Attack | None
) -> dict[str, float]:
    """One point of a defense's course: scores on half of the test, and the Fisher."""
    s = metrics.evaluate(model, test[: len(test) // 2], attack)
    found = {"acc": s.acc, "asr": s.asr, "ra": s.ra}
    for name, images in (("own", own), ("other", other)):
        g = torch.Generator().manual_seed(0)
        t = curvature.fisher_trace(model, images, draws=4, generator=g)
        found[f"fisher_{name}"] = t.value
    return found


def _sweep_curve(model, test: Images, attack: Attack | None) -> list[dict]:
    """Scores at every u of :data:`US`; a set of channels seen before is not measured
    again."""
    curve, scores, last = [], None, -1
    for u, channels in sweep(model, US):
        count = sum(map(len, channels.values()))
        if count != last:  # a smaller u prunes a superset: same count, same channels
            scores = metrics.evaluate(without(model, channels), test, attack)
            last = count
        point = {"u": u, "pruned": count, "acc": scores.acc}
        if attack is not None:
            point |= {"asr": scores.asr, "ra": scores.ra}
        curve.append(point)
    return curve


def _percents(point: dict) -> str:
    return "/".join(f"{100 * point[k]:.0f}" for k in ("acc", "asr") if k in point)


def results(name: str) -> Results:
    """A measured table that ships with the course, from data/results/ (see README)."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in RESULTS.glob("*.json")))
        raise FileNotFoundError(f"there are no results {name!r}; there are: {known}.")
    return Results(path)


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean."""
    return statistics.fmean(values)


def table_row(rows: Sequence[dict], **first) -> dict:
    """One line of the course's result table from the rows of several seeds.

    Mean and half the range over seeds, in percent; with one seed the value alone.
    """
    if not rows:
        raise ValueError(f"no result to summarize for {first}.")

    def spread(key: str) -> str | None:
        values = [100 * r[key] for r in rows if r.get(key) is not None]
        if not values:
            return None
        half = (max(values) - min(values)) / 2
        return f"{mean(values):.1f}" + (f" ± {half:.1f}" if len(values) > 1 else "")

    return {
        **first,
        "ACC %": spread("acc"),
        "ASR %": spread("asr"),
        "RA %": spread("ra"),
        "channels": round(mean(r["pruned"] for r in rows)),
        "clean images": round(mean(r["clean_used"] for r in rows)),
        "seconds": round(mean(r["seconds"] for r in rows), 2),
        "seeds": len(rows),
    }


def sharp_row(row: dict, **first) -> dict:
    """One line of lesson 08's table, from a row measured with `sharp`."""
    s = row["sharp"]
    percent = {
        k: None if row[k] is None else 100 * row[k] for k in ("acc", "asr", "ra")
    }
    return {
        **first,
        **{f"{k.upper()} %": v for k, v in percent.items()},
        "Tr F own": s["own"]["fisher"],
        "Tr F others": s["other"]["fisher"],
        "top own": s["own"]["lambda_max"],
        "top others": s["other"]["lambda_max"],
    }


def sweep_summary(name: str, attack: str) -> tuple[list[float], dict, dict]:
    """CLP's u axis and, over the seeds of a results file, what ACC, ASR and RA do.

    Returns:
        the values of u; name -> mean at each u; name -> (lowest, highest) at each u.
    """
    rows = results(name).select(attack=attack, defense="clp sweep")
    curves = [r["curve"] for r in _one_setting(rows, name) if not r["weak"]]
    if not curves:
        raise ValueError(
            f"{name} holds no sweep of a {attack} victim that passes the gate."
        )
    means, spread = {}, {}
    for key in ("ACC", "ASR", "RA"):
        columns = list(zip(*[[p[key.lower()] for p in c] for c in curves], strict=True))
        means[key] = [mean(c) for c in columns]
        spread[key] = [min(c) for c in columns], [max(c) for c in columns]
    return [p["u"] for p in curves[0]], means, spread


def _by_victim(name: str, key: dict) -> dict[str, dict[str, list[dict]]]:
    """Scored rows of data/results/NAME.json: victim or attack -> defense -> draws."""
    found: dict[str, dict[str, list[dict]]] = {}
    rows = results(name).select(**key)
    for r in sorted(rows, key=lambda r: r["attack"] != "none"):  # twins come first
        if "acc" in r:
            who = r.get("victim") or r["attack"]
            found.setdefault(who, {}).setdefault(r["defense"], []).append(r)
    return found


def _means(rows: Sequence[dict], keys: Sequence[str]) -> list[float | None]:
    columns = [[r[k] for r in rows if r.get(k) is not None] for k in keys]
    return [mean(c) if c else None for c in columns]


def _passes(by: dict[str, list[dict]]) -> bool:
    """Whether these are rows of a victim, and of one that passes the gate."""
    first = next(iter(by.values()))[0]
    return first["attack"] != "none" and not first["weak"]


def _require_lines(lines: list, name: str, defenses: Sequence[str], key: dict) -> None:
    if not lines:
        raise ValueError(f"{name} holds no row of {', '.join(defenses)} with {key}.")


def grid(
    name: str,
    defenses: Sequence[str],
    caption: str = "",
    *,
    who: Sequence[str] | None = None,
    **key,
) -> Table:
    """Victims down, defenses across: "ACC / ASR / RA" in percent, means over draws;
    behind an ASR that differs between draws by a point or more, half its range.

    Args:
        name: of data/results/NAME.json; key: what its rows must hold, `budget=500` say.
        defenses: names of plans; a cell without rows stays empty.
        who: these victims, "none" for the twin; default all that have a row.

    A star marks victims that miss the gate of the protocol; the last line is the mean
    of the others, where each of them has all of these defenses.
    """
    from bdcourse.show import Table

    scores = ("acc", "asr", "ra")
    lines, strong = [], []
    for victim, by in _by_victim(name, key).items():
        if who is not None and victim not in who:
            continue
        cells = {d: _means(by[d], scores) if d in by else None for d in defenses}
        if not any(cells.values()):
            continue
        if _passes(by) and all(cells.values()):
            strong.append(cells)
        weak = bool(next(iter(by.values()))[0]["weak"])
        label = "(benign twin)" if victim == "none" else victim + "*" * weak
        shown = {d: _slashed(c, _half([r["asr"] for r in by.get(d, ())]))
                 for d, c in cells.items()}  # fmt: skip
        lines.append({"victim": label, **shown})
    _require_lines(lines, name, defenses, key)
    if len(strong) > 1:
        columns = {
            d: [mean(c[d][i] for c in strong) for i in range(3)] for d in defenses
        }
        label = f"mean of {len(strong)}"
        lines.append({"victim": label, **{d: _slashed(c) for d, c in columns.items()}})
    return Table(lines, caption)


def _half(values: Iterable[float | None]) -> float:
    """Half the range, 0 where there is none."""
    known = [v for v in values if v is not None]
    return (max(known) - min(known)) / 2 if known else 0.0


def _slashed(values: Sequence[float | None] | None, spread: float = 0) -> str:
    if values is None:
        return ""
    shown = ["–" if v is None else f"{100 * v:.1f}" for v in values]
    if spread > 0.0049:
        shown[1] += f" ± {100 * spread:.1f}"
    return " / ".join(shown)


def summary(name: str, defenses: Sequence[str], caption: str = "", **key) -> Table:
    """One line a defense: means over the victims that pass the gate, as leaderboards.

    "fails" counts victims whose ASR stays above 15 %. The last column is what others
    report, from data/results/published.json, where the sources stand. Arguments as in
    :func:`grid`.
    """
    from bdcourse.show import Table

    lines = []
    elsewhere = {r["defense"]: r for r in results("published").rows}
    strong = [by for by in _by_victim(name, key).values() if _passes(by)]
    for d in defenses:
        rows = [
            dict(zip(SUMMED, _means(by[d], SUMMED), strict=True))
            for by in strong
            if d in by
        ]
        if rows:
            acc, asr, ra, der, images, seconds = _means(rows, SUMMED)
            lines.append({
                "defense": d, "victims": len(rows), "ACC %": 100 * acc,
                "ASR %": 100 * asr, "RA %": 100 * ra, "DER %": 100 * der,
                "fails": sum(r["asr"] > 0.15 for r in rows),
                "clean images": round(images), "seconds": seconds,
                "elsewhere": _slashed(_published(elsewhere.get(d))),
            })  # fmt: skip
    _require_lines(lines, name, defenses, key)
    return Table(lines, caption)


def _published(row: dict | None) -> list[float | None] | None:
    return row and [row[k] for k in ("acc", "asr", "ra")]


SUMMED = ("acc", "asr", "ra", "der", "clean_used", "seconds")


SWEEP = "clp sweep"
DEFENSES = (
    "none",
    "clp, u = 3",
    "clp, u = 2.5",
    "clp, u on held-out images",
    "random channels",
    "fine-tuning",
)


def _one_setting(rows: list[dict], name: str) -> list[dict]:
    """The rows, if those of an attack differ in seed only; averaging over more would
    mean nothing."""
    keys = [f.name for f in fields(Recipe)] + ["data", "options"]
    for attack in {r["attack"] for r in rows} - {"none"}:
        settings = {
            str([r.get(k) for k in keys]) for r in rows if r["attack"] == attack
        }
        if len(settings) > 1:
            raise ValueError(
                f"{name} holds {len(settings)} settings of {attack}; tabulate one at a "
                "time."
            )
    return rows


def standard_table(
    name: str, caption: str = "", defenses: Sequence[str] = DEFENSES
) -> Table:
    """The course's result table: attacks of data/results/NAME.json x defenses."""
    from bdcourse.show import Table

    found = _one_setting(results(name).rows, name)
    lines = []
    for attack in dict.fromkeys(r["attack"] for r in found):
        for defense in defenses:
            rows = [r for r in found if r["attack"] == attack and "acc" in r
                    and r["defense"] == defense]  # fmt: skip
            if rows:
                label = "(benign twin)" if attack == "none" else attack
                weak = sum(bool(r["weak"]) for r in rows)
                label += f" ({weak} of {len(rows)} weak)" if weak else ""
                lines.append(table_row(rows, attack=label, defense=defense))
    return Table(lines, caption)


def attack_table(name: str, attacks: Sequence[str] = (), caption: str = "") -> Table:
    """Victims of data/results/NAME.json, one line each, beside their benign twin.

    Args:
        attacks: which, in this order; default all in the file.

    A star marks attacks whose original needs an asset that we replace. What replaces
    it, and where an attack got another recipe or other arguments than the rest, stands
    in the caption.
    """
    from bdcourse.show import Table

    found = _one_setting(results(name).rows, name)
    names = attacks or [n for n in ATTACKS if any(r["attack"] == n for r in found)]
    lines, replaced, changed = [], [], []
    twins = [r for r in found if r["attack"] == "none" and r["defense"] == "none"]
    for attack in ("none", *names):
        rows = [r for r in found if r["attack"] == attack]
        plain = [r for r in rows if r["defense"] == "none"]
        if attack == "none":  # the one of the recipe that most attacks share
            plain = [r for r in plain if r["epochs"] == twins[0]["epochs"]]
        tuned = [r["asr"] for r in rows if r["defense"] == "fine-tuning"]
        if not plain:
            continue
        label = "(benign twin)"
        if attack != "none":
            cls = ATTACKS[attack]
            label = cls.__name__ + ("*" if cls.stands_in else "")
            if cls.stands_in:
                replaced.append(f"{attack}: {cls.stands_in}")
            other = {k: plain[0][k] for k in ("epochs", "lr")}
            other = {k: v for k, v in other.items() if v != twins[0][k]}
            other |= plain[0].get("options") or {}
            if other:
                text = ", ".join(f"{k} {v:.3g}" for k, v in other.items())
                changed.append(f"{attack}: {text}")
        row = table_row(plain, attack=label)
        crossed = [r["cross"] for r in plain if r.get("cross") is not None]
        lines.append({
            "attack": label,
            "poison": round(mean(r["n_poisoned"] for r in plain)),
            "cover": round(mean(r.get("n_cover", 0) for r in plain)),
            **{k: row[k] for k in ("ACC %", "ASR %", "RA %")},
            "cross %": 100 * mean(crossed) if crossed else None,
            "ASR % tuned": 100 * mean(tuned) if tuned and attack != "none" else None,
            "gate": "weak" if any(r["weak"] for r in plain) else "passes",
        })  # fmt: skip
    note = " * " + "; ".join(replaced) + "." if replaced else ""
    note += " Other settings: " + "; ".join(changed) + "." if changed else ""
    return Table(lines, (caption.removesuffix(".") + "." if caption else "") + note)
