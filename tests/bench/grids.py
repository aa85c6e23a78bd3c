"""Small tables, and images that nobody drew, for the tests of the bench."""

from __future__ import annotations

from dataclasses import replace

import torch

from bdcourse import data, metrics, victims
from bdcourse.bench import cells

RUN = [
    "bench",
    "--data",
    "signs",
    "--n",
    "240",
    "--n-test",
    "300",
    "--width",
    "4",
    "--epochs",
    "0.3",
    "--attacks",
    "BadNets",
    "--clean",
    "0.1",
]


def blank(n: int, k: int = 12, side: int = 8, classes=None) -> data.Images:
    """Images as many as the real ones, but none that anybody drew."""
    x = torch.zeros(n, 3, side, side, dtype=torch.uint8)
    names = classes or tuple(f"class {i}" for i in range(k))
    return data.Images(x, torch.arange(n) % k, names)


def dealt(monkeypatch, train=5700, clean=240, held=60, test=2000, **how) -> data.Splits:
    parts = data.Splits(*(blank(n, **how) for n in (train, clean, held, test)))
    monkeypatch.setattr(cells.datasets, "splits", lambda *a, **k: parts)
    cells.forget_images()
    return parts


def untrained(*about, **options):
    raise AssertionError("something was trained")


def victim_of(acc: float, asr: float | None = None, n: int = 2000):
    victim = victims.zoo("badnets" if asr is not None else "benign")
    return replace(victim, scores=metrics.Scores(acc, asr, 0.0, n, n))


def a_row(**more) -> dict:
    return {
        "data": "x",
        "digest": "1",
        "seed": 0,
        "attack": "BadNets",
        "defense": "none",
        "acc": 0.5,
        **more,
    }
