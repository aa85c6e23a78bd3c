"""Accuracy by minutes of the fast recipe beside that of the usual one.

    python tools/fast.py cifar10-jpeg [--only fast] [--keep runs] [--threads 1]

Trains a BadNets victim (10 % poison) with each recipe, one after the other in one run,
and prints after each epoch the minutes of processor time that training took until
then, clean accuracy and attack success on the first 2,000 test images. At the end
stand both recipes beside each other, measured on all test images: minutes, accuracy,
success, and the minutes to each level of accuracy. About an hour of one core for each.
A stopped run goes on after its last whole epoch; a victim in --keep is not trained
again, and `bench --recipe fast` finds it there.

The folder holds train/ and test/ with one folder of images for each class.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from bdcourse import data, metrics
from bdcourse.bench.recipes import Recipe, recipe_for, train_victim
from bdcourse.victims import Victim

SOME = 2000  # test images after each epoch
LEVELS = (0.7, 0.8, 0.85, 0.88, 0.9, 0.92)


def chosen(source: str) -> dict[str, Recipe]:
    """What is compared: today's recipe, and the fast one, of the same attack."""
    return {"fast": recipe_for(source, "fast"), "usual": recipe_for(source)}


def watch(parts: data.Splits) -> Callable[[nn.Module], dict]:
    """Scores on some test images, and minutes of processor time of the epoch."""
    from bdcourse.attacks import BadNets

    some, attack = parts.test[:SOME], BadNets()
    since = time.process_time()

    def look(model: nn.Module) -> dict:
        nonlocal since
        minutes = (time.process_time() - since) / 60
        scores = metrics.evaluate(model, some, attack)
        since = time.process_time()  # scores are not training
        return {"minutes": minutes, "ACC": scores.acc, "ASR": scores.asr}

    return look


def until(history: list[dict], level: float) -> float | None:
    """Minutes until the accuracy was as high as this for the first time, or None."""
    minutes = 0.0
    for row in history:
        minutes += row["minutes"]
        if row["ACC"] >= level:
            return minutes
    return None


def line(name: str, victim: Victim) -> str:
    spent = sum(row["minutes"] for row in victim.history)
    s = victim.scores
    times = [until(victim.history, level) for level in LEVELS]
    cells = "".join("     -" if t is None else f"{t:6.1f}" for t in times)
    return f"{name:8}{spent:9.1f}{100 * s.acc:7.1f}{100 * s.asr:7.1f}  {cells}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", help="folder with train/ and test/, or signs")
    parser.add_argument("--only", nargs="+", default=["fast", "usual"])
    parser.add_argument("--keep", default="runs", help="folder for the victims")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clean", type=float, default=0.05, help="defender's share")
    parser.add_argument("--n", type=int, help="so many training images")
    parser.add_argument("--n-test", type=int, help="and so many test images")
    parser.add_argument("--epochs", type=float, help="instead of the recipe's")
    parser.add_argument("--width", type=int, help="instead of the recipe's")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    parts = data.splits(
        options.images,
        clean=options.clean,
        seed=options.seed,
        n=options.n,
        n_test=options.n_test,
    )
    name = Path(options.images).name
    more = {"epochs": options.epochs, "width": options.width}
    more = {k: v for k, v in more.items() if v is not None}
    found = {}
    for kind, recipe in chosen(options.images).items():
        if kind not in options.only:
            continue
        print(f"{kind}: {recipe.model} of width {more.get('width', recipe.width)}")
        found[kind] = train_victim(
            parts,
            "BadNets",
            replace(recipe, **more),
            options.seed,
            name,
            options.keep,
            each_epoch=watch(parts),
        )
    levels = "".join(f"{100 * level:6.0f}" for level in LEVELS)
    print("\nminutes of processor time, in all and until accuracies; percent")
    print(f"{'recipe':8}{'minutes':>9}{'ACC':>7}{'ASR':>7}  {levels}")
    for kind, victim in found.items():
        if "minutes" in (victim.history or [{}])[-1]:
            print(line(kind, victim))
        else:
            print(f"{kind}: trained by somebody else, who kept no minutes")


if __name__ == "__main__":
    main()
