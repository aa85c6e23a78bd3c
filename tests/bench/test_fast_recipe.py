"""tools/fast.py: minutes to each accuracy, and a second run that trains nothing."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np

import fast
from helpers import random_images


def test_minutes_until_an_accuracy():
    rows = [(2.0, 0.5), (3.0, 0.86), (1.0, 0.8), (4.0, 0.9)]
    history = [{"minutes": m, "ACC": a} for m, a in rows]
    found = [fast.until(history, level) for level in (0.1, 0.5, 0.6, 0.86, 0.9, 0.91)]
    assert found == [2.0, 2.0, 5.0, 5.0, 10.0, None]
    scores = SimpleNamespace(acc=0.875, asr=1.0)
    text = fast.line("fast", SimpleNamespace(history=history, scores=scores))
    cells = ["fast", "10.0", "87.5", "100.0"]
    assert text.split() == [*cells, "5.0", "5.0", "5.0", "10.0", "10.0", "-"]


def test_both_recipes_in_one_run_and_none_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    images = random_images(60, side=16, seed=3)
    np.savez("noise.npz", x=images.x.numpy(), y=images.y.numpy())
    command = [
        "fast.py",
        "noise.npz",
        "--epochs",
        "2",
        "--width",
        "2",
        "--clean",
        "0.1",
    ]
    monkeypatch.setattr(sys, "argv", command)
    fast.main()
    said = capsys.readouterr().out
    assert "fast: airbench of width 2" in said and "usual: resnet18 of width 2" in said
    assert said.count("epoch  2/2") == 2 and said.count("minutes 0.0") >= 4
    monkeypatch.setattr(sys, "argv", [*command, "--only", "usual"])
    fast.main()
    again = capsys.readouterr().out
    assert "trained before" in again and "epoch" not in again
    assert said.splitlines()[-1] == again.splitlines()[-1], "the same minutes"
