"""What a run says on its way."""

from dataclasses import replace

import pytest

from bdcourse.__main__ import main
from bdcourse.bench import cells, progress, recipes
from grids import dealt, victim_of

pytestmark = pytest.mark.usefixtures("small")


def test_time_left_weighs_cells_by_what_they_took_before(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    subject = cells.Subject("signs", recipes.SIGNS, "BadNets")
    job = cells.Job(subject, {}, ("quick", "slow", "new"))
    rows = [{"defense": d, "seconds": s} for d, s in (("quick", 1), ("slow", 197))]
    told = progress.Progress([job], rows)
    clock[0] = 2.0
    row = {"defense": "quick", "acc": 0.9, "asr": None, "ra": None, "pruned": 3}
    told.say(job, row)  # 2 of 2 + 198 + 100 (the mean)
    said = capsys.readouterr().out
    assert "BadNets, seed 0 (signs, resnet18 of width 16)" in said
    assert "ACC 90.0 %, 3 channels" in said
    assert "[1/3, 5 min left]" in said
    clock[0] = 7400.0
    told.say(job, row | {"defense": "slow"})
    assert "[2/3, 62 min left]" in capsys.readouterr().out


def test_complaints_join_victims_with_the_same_error():
    pairs = (("A", "x."), ("B", "x."), ("A", "y."), ("A", "x."))
    rows = [{"attack": a, "seed": 0, "error": e} for a, e in pairs]
    assert progress.complaints(rows) == ["A, seed 0; B, seed 0: x.", "A, seed 0: y."]


def test_a_second_run_says_what_is_there_and_weak_victims_are_named(tmp_path, monkeypatch, capsys):
    dealt(monkeypatch, train=520, test=24)
    scores = {"acc": 0.5, "asr": 0.2, "ra": None, "pruned": 0}
    monkeypatch.setattr(cells, "_measured", lambda *a: scores)
    weak = {"none": victim_of(0.5), "BadNets": victim_of(0.5, 0.43)}
    monkeypatch.setattr(
        cells, "train_victim", lambda parts, attack, *a, **o: weak[attack or "none"]
    )
    out = tmp_path / "r.json"
    command = [
        "bench",
        "--data",
        "mine",
        "--out",
        str(out),
        "--attacks",
        "BadNets",
        "--defenses",
        "none",
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.count("weak, and in no mean: attack success 43.0 % is below 95 %") == 1
    assert "cells are there" not in said
    assert main([*command, "clp, u = 3"]) == 0
    assert "2 of 4 cells are there" in capsys.readouterr().out


def test_the_time_left_knows_training_from_cells(capsys, monkeypatch):
    """Training of a twin is no cell: it says what other victims take, not other
    cells."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    own = recipes.SIGNS
    names = ("none", "a", "b", "c")
    jobs = [
        cells.Job(cells.Subject("signs", own, attack), {}, names) for attack in (None, "SIG", "LF")
    ]
    jobs[0] = replace(jobs[0], subject=jobs[1].subject.twin())
    told = progress.Progress(jobs, [])
    row = {"acc": 0.9, "asr": None, "ra": None, "pruned": 3}
    for passed, job, name, left in (
        (601, jobs[0], "none", "20 min"),  # two victims to come, 11 quick cells
        (2, jobs[0], "a", "20 min"),
        (1, jobs[0], "b", "20 min"),
        (1, jobs[0], "c", "20 min"),
        (601, jobs[1], "none", "10 min"),
    ):
        clock[0] += passed
        told.say(job, row | {"defense": name})
        assert f"{left} left" in capsys.readouterr().out
