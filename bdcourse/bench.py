"""Measure attacks against defenses on any image set, and keep every number.

`python -m bdcourse bench --data DIR` runs the course's whole path on your own images:
hold out the defender's share, train a benign twin and a victim per attack and seed,
measure them, and apply each defense. Every row is written the moment it exists; a run
that was stopped and is started again repeats nothing.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from bdcourse import data as datasets
from bdcourse import defenses, metrics, victims
from bdcourse.attacks import ATTACKS, Attack, Blended, noise_picture
from bdcourse.data import Images
from bdcourse.defenses.clp import choose_u, sweep
from bdcourse.surgery import without
from bdcourse.train import Augment

US = tuple(x / 4 for x in range(24, 3, -1))  # the u axis of every CLP sweep: 6 .. 1


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

    def has(self, **key) -> bool:
        return any(all(r.get(k) == v for k, v in key.items()) for r in self.rows)

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


def make_attack(name: str, images: Images) -> Attack:
    """An attack by name with the defaults of the field, fitted to the image size."""
    for known, cls in ATTACKS.items():
        if known.lower() == name.lower():
            if cls is Blended:
                c, h, w = images.shape
                return Blended(picture=noise_picture(h, c)[..., :w])
            return cls()
    raise ValueError(f"unknown attack {name!r}; choose from {', '.join(ATTACKS)}.")


def run(
    source: str,
    out: str | os.PathLike,
    *,
    attacks: Iterable[str] = ("BadNets", "Blended"),
    model: str = "resnet18",
    width: int = 16,
    epochs: float = 12,
    batch: int = 128,
    lr: float = 0.1,
    rate: float = 0.1,
    clean: float = 0.05,
    pad: int = 4,
    flip: bool = True,
    seeds: Iterable[int] = (0,),
    n: int | None = None,
    size: int | None = None,
    bf16: bool | None = None,
    device: str = "cpu",
    keep: str | os.PathLike = "runs",
) -> Results:
    """Run the path of the course on one image set; returns the table of rows.

    Args:
        source: what `data.load` takes.
        out: JSON file; rows already in it are kept and not measured again.
        clean: share of the training images that the defender gets, disjoint from what
            the attacker poisons.
        n, size: of training images, and side to which folder images are resized.
        keep: folder for the trained victims, reused when a run is started again.
    """
    table = Results(out)
    dev = torch.device(device)
    where = environment(dev)
    arch = {"name": model, "width": width}
    training = {"epochs": epochs, "batch": batch, "lr": lr, "bf16": bf16}
    everything = datasets.load(source, "train", n=n, size=size)
    test = datasets.load(source, "test", size=size).to(dev)
    digest = everything.digest()
    label = Path(source).name if os.path.exists(source) else source
    print(
        f"{len(everything)} training, {len(test)} test images, {everything.k} classes"
    )

    for seed in seeds:
        g = torch.Generator().manual_seed(1000 + seed)
        train, owned = datasets.hold_out(everything, round(clean * len(everything)), g)
        # The defender tunes on one fifth of his images and repairs with the rest.
        own, held = datasets.hold_out(owned, len(owned) // 5, g)
        train, own, held = train.to(dev), own.to(dev), held.to(dev)
        twin = None
        for name in (None, *attacks):
            attack = make_attack(name, train) if name else None
            base = {
                "data": label,
                "digest": digest,
                "model": model,
                "width": width,
                "epochs": epochs,
                "batch": batch,
                "lr": lr,
                "seed": seed,
                "attack": name or "none",
                "rate": rate if name else 0.0,
            }
            print(f"\n{name or 'benign twin'}, seed {seed}", flush=True)
            stem = "-".join(str(v) for k, v in base.items() if k != "lr")
            victim = _victim(Path(keep) / stem, train, test, attack, arch, rate, seed,
                             pad, flip, label, training)  # fmt: skip
            if twin is None:
                twin = victim.scores
            about = {
                "n_train": len(train),
                "n_poisoned": len(victim.poisoned),
                "n_clean": len(owned),
                "weak": victim.weak(twin),
                "train_seconds": victim.recipe["seconds"],
                "bf16": bf16,
            } | where
            _defend(table, base, about, victim, test, own, held, pad, flip, seed, twin)
    return table


def _victim(path, train, test, attack, arch, rate, seed, pad, flip, label, training):
    file = path.with_name(path.name + ".json")
    if file.exists():
        print(f"  trained before: {path}")
        return victims.load(file, train.x.device)
    victim = victims.make(
        train,
        test,
        attack,
        arch=arch,
        rate=rate,
        seed=seed,
        pad=pad,
        flip=flip,
        recipe={"data": label},
        **training,
    )
    if victim.recipe["interrupted"]:
        raise KeyboardInterrupt  # half a victim is no victim
    victims.save(victim, file)
    return victim


def _defend(table, base, about, victim, test, own, held, pad, flip, seed, twin) -> None:
    """All defenses of one victim, one row each."""
    model, before = victim.model, victim.scores
    # A benign model has no attack of its own; every row of it is clean accuracy only.
    attack = victim.attack

    def note(defense: str, repaired, seconds: float, **more) -> None:
        s = metrics.evaluate(repaired, test, attack)
        row = (
            base
            | {"defense": defense}
            | more
            | s.dict()
            | {"seconds": round(seconds, 3)}
        )
        if attack is not None:
            row["der"] = metrics.der(before, s)
        table.add(row | about)
        extra = "  ".join(f"{k} {v}" for k, v in more.items() if k != "clean_used")
        print(f"  {defense:22s} {s}  {extra}", flush=True)

    def todo(defense: str, **more) -> bool:
        return not table.has(**base, defense=defense, **more)

    if todo("none"):
        note("none", model, 0.0, pruned=0, clean_used=0)
    if todo("clp", u=3.0):
        p = defenses.clp(model, 3.0)
        note("clp", p.model, p.seconds, u=3.0, pruned=p.count, clean_used=0)
    if todo("clp, u by held-out acc"):
        start = time.perf_counter()
        u = choose_u(model, held, US)
        seconds = time.perf_counter() - start
        p = defenses.clp(model, u)
        note("clp, u by held-out acc", p.model, seconds + p.seconds, u=u,
             pruned=p.count, clean_used=len(held))  # fmt: skip
    if todo("random channels"):
        g = torch.Generator().manual_seed(seed)
        p = defenses.prune_random(model, defenses.clp(model, 3.0).pruned, g)
        note("random channels", p.model, p.seconds, pruned=p.count, clean_used=0)
    if todo("fine-tuning"):
        g = torch.Generator().manual_seed(seed)
        p = defenses.finetune(model, own, epochs=20, lr=0.01, batch=32,
                              augment=Augment(pad, flip), generator=g)  # fmt: skip
        note("fine-tuning", p.model, p.seconds, pruned=0, clean_used=len(own))
    if todo("clp sweep"):
        curve, scores, last = [], before, None
        for u, channels in sweep(model, US):
            count = sum(map(len, channels.values()))
            if (
                count != last
            ):  # a smaller u prunes a superset, so equal count is equal set
                scores, last = (
                    metrics.evaluate(without(model, channels), test, attack),
                    count,
                )
            point = {"u": u, "pruned": count, "acc": scores.acc}
            if attack is not None:
                point |= {"asr": scores.asr, "ra": scores.ra}
            curve.append(point)
        table.add(base | {"defense": "clp sweep", "curve": curve} | about)
        print(
            "  clp sweep              "
            + ", ".join(
                f"u {c['u']}: {100 * c['acc']:.0f}"
                + (f"/{100 * c['asr']:.0f}" if "asr" in c else "")
                for c in curve[::2]
            )
        )
