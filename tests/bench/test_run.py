"""A run writes every row once, goes on where it was stopped, and keeps what failed."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from bdcourse.__main__ import main
from bdcourse.bench import cells, recipes
from bdcourse.bench import run as bench
from bdcourse.bench.plans import PLANS, Plan
from bdcourse.bench.results import RESULTS, Results, identity
from bdcourse.defenses import Purified
from bdcourse.report import tables
from grids import RUN, dealt, untrained, victim_of

pytestmark = pytest.mark.usefixtures("small")


def test_run_writes_every_row_and_repeats_nothing(tmp_path, runs, capsys):
    out = tmp_path / "rows.json"
    again = [*RUN, "--out", str(out), "--keep", str(runs)]
    assert main(again) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [r["attack"] for r in rows].count("BadNets") == 7 and len(rows) == 14
    for r in rows:
        assert r["n_train"] == 216 and r["n_defender"] == 24 and r["seed"] == 0
        assert {"torch", "revision", "device", "digest", "weak"} <= set(r)
    poisoned = [r for r in rows if r["attack"] == "BadNets"]
    assert all(r["n_poisoned"] == 22 for r in poisoned)
    assert next(r for r in poisoned if r["defense"] == "none")["n_triggered"] == 275
    before = out.read_bytes()
    capsys.readouterr()
    assert main(again) == 0
    assert out.read_bytes() == before
    assert "epoch" not in capsys.readouterr().out  # trained before


def test_named_attacks_get_their_options_twins_and_models(tmp_path, capsys):
    out = tmp_path / "rows.json"
    options = {
        "SIG": {"rate": 0.05, "epochs": 0.2},
        "LabelConsistent": {"rate": 0.05, "steps": 1},
        "TrojanNN": {"iterations": 2},
        "WaNet": {"strength": 1.5},
    }
    command = [
        *RUN,
        "--out",
        str(out),
        "--keep",
        str(tmp_path / "runs"),
        "--defenses",
        "none",
        "--options",
        json.dumps(options),
        "--attacks",
        *(a.lower() for a in options),
    ]
    assert main(command) == 0
    rows = {r["attack"]: r for r in json.loads(out.read_text())["rows"]}
    assert list(rows) == ["none", *options]
    assert rows["SIG"]["rate"] == 0.05 and rows["SIG"]["epochs"] == 0.2
    assert rows["SIG"]["n_poisoned"] == 11 and rows["SIG"]["settings"]["clean_label"]
    assert rows["WaNet"]["settings"]["strength"] == 1.5
    assert rows["WaNet"]["rate"] == 0.1 and rows["WaNet"]["n_cover"] > 0
    assert rows["TrojanNN"]["settings"]["made_on"]
    runs = sorted(p.name.split("-")[1] for p in (tmp_path / "runs").glob("*.json"))
    # One benign twin for each number of epochs.
    kinds = ["LabelConsistent", "SIG", "TrojanNN", "WaNet", "none", "none"]
    assert runs == kinds
    before = out.read_bytes()
    assert main(command) == 0 and out.read_bytes() == before
    table = repr(tables.attack_table(str(out.with_suffix("")), caption="c."))
    assert "TrojanNN*" in table and "apple" in table.splitlines()[0]
    assert "(benign twin)" in table


def test_a_run_killed_between_rows_goes_on(tmp_path, runs, monkeypatch):
    out = tmp_path / "rows.json"
    command = [*RUN, "--out", str(out), "--keep", str(runs)]
    real, calls = Results.add, []

    def dies(self, row):
        if len(calls) == 4:
            raise KeyboardInterrupt
        calls.append(row)
        real(self, row)

    monkeypatch.setattr(Results, "add", dies)
    assert main(command) == 130
    assert len(json.loads(out.read_text())["rows"]) == 4
    monkeypatch.setattr(Results, "add", real)
    assert main(command) == 0
    rows = json.loads(out.read_text())["rows"]
    keys = {json.dumps([r["attack"], r["defense"], r.get("u")]) for r in rows}
    assert len(rows) == len(keys) == 14


def test_a_foreign_results_file_is_not_overwritten(tmp_path, capsys):
    out = tmp_path / "precious.json"
    out.write_text("my thesis")
    assert main([*RUN, "--out", str(out), "--keep", str(tmp_path)]) == 1
    assert out.read_text() == "my thesis" and "not a table" in capsys.readouterr().err


def test_a_defense_that_diverges_is_a_row_and_the_rest_goes_on(tmp_path, only):
    def diverges(case):
        raise RuntimeError("the weights left all bounds in step 3.")

    only(Plan("diverges", diverges), PLANS["none"])
    out = tmp_path / "zoo.json"
    names = ["--zoo", "benign-w8", "--defenses", *PLANS]
    assert main(["bench", "--out", str(out), *names]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert "left all bounds" in rows[0]["refused"] and rows[1]["acc"] > 0.9


def test_a_cell_that_fails_is_kept_told_and_tried_again(tmp_path, capsys, only):
    broken = [KeyError("layer9"), torch.OutOfMemoryError("out of memory")]

    def fails(case):
        if broken:
            raise broken[0]
        return Purified(case.model)

    only(Plan("fails", fails), PLANS["none"])
    out = tmp_path / "zoo.json"
    command = ["bench", "--out", str(out), "--zoo", "benign-w8", "--defenses", *PLANS]
    for name in ("KeyError", "OutOfMemoryError"):
        assert main(command) == 1
        rows = json.loads(out.read_text())["rows"]
        assert rows[0]["error"].startswith(name) and "acc" not in rows[0]
        assert rows[1]["acc"] > 0.9 and len(rows) == 2
        said = capsys.readouterr()
        assert said.err.startswith(f"error: benign-w8, seed 0: {name}")
        assert "FAILED" in said.out and said.err.count("\n") == 1
        broken.pop(0)
    assert main(command) == 0  # mended, it is measured and the other is not again
    rows = json.loads(out.read_text())["rows"]
    assert [r["defense"] for r in rows] == list(PLANS) and rows[0]["acc"] > 0.9
    assert "1/1" in capsys.readouterr().out


def test_patterns_and_scales_choose_cells(tmp_path, runs):
    out = tmp_path / "r.json"
    command = [
        *RUN,
        "--out",
        str(out),
        "--keep",
        str(runs),
        "--width",
        "4",
        "6",
        "--only",
        "BadNets/clp*",
        "none/none",
    ]
    assert main(command) == 0
    rows = json.loads(out.read_text())["rows"]
    # Two thresholds, the held-out one and the sweep; and the twins as they are.
    assert [r["width"] for r in rows] == [4] * 5 + [6] * 5
    assert {r["defense"] for r in rows if r["attack"] == "none"} == {"none"}
    assert all(r["defense"].startswith("clp") for r in rows if r["attack"] != "none")


def test_what_is_named_twice_is_measured_once(tmp_path, capsys):
    out = tmp_path / "r.json"
    command = [
        "bench",
        "--out",
        str(out),
        "--zoo",
        "benign-w8",
        "benign-w8",
        "--draws",
        "0",
        "0",
        "--defenses",
        "none",
        "none",
    ]
    assert main(command) == 0
    assert len(json.loads(out.read_text())["rows"]) == 1
    assert "[1/1, 0 s left]" in capsys.readouterr().out
    assert main([*command, "--sharp"]) == 0
    assert "cells are there without `sharp`" in capsys.readouterr().out
    assert main([*command, "--only", "badnets/*"]) == 1
    err = capsys.readouterr().err
    assert "no cell fits badnets/*" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "error"),
        (torch.OutOfMemoryError("CUDA out of memory"), "error"),
        (RuntimeError("CUDA error: an illegal memory access"), "error"),
        (ValueError("this needs a BatchNorm."), "refused"),
        (RuntimeError("the weights left all bounds."), "refused"),
    ],
)
def test_a_machine_that_fails_is_no_result(error, kept, tmp_path, only):
    def fails(case):
        raise error

    only(Plan("fails", fails))
    results = bench.run_zoo(tmp_path / "r.json", ["benign-w8"], ["fails"])
    assert kept in results.rows[0] and bool(results.failed) == (kept == "error")


def test_images_that_changed_meanwhile_are_refused(tmp_path):
    subject = cells.Subject("signs", recipes.SIGNS, n=100, clean=0.1)
    key = subject.key() | {"budget": None, "draw": None, "data": "x", "digest": "old"}
    (row,) = cells.measure(cells.Job(subject, key, ("none",)))
    assert "other images here than where the run was started" in row["error"]


def test_a_folder_may_be_called_like_built_in_data(tmp_path, monkeypatch):
    (tmp_path / "signs").mkdir()
    monkeypatch.chdir(tmp_path)
    subject = cells.Subject("signs", recipes.SIGNS, n=100, clean=0.1)
    assert subject.label == "signs" and len(subject.parts().train) == 90
    assert recipes.recipe_for("./signs") == recipes.Recipe()


def test_rows_of_the_course_are_still_known_as_done(tmp_path, monkeypatch, capsys):
    """`make results` finds its own rows: no name of a cell has changed."""
    dealt(monkeypatch)
    monkeypatch.setattr(cells, "train_victim", untrained)
    for name, request in (
        (
            "signs-attacks",
            ["--width", "8", "--attacks", "all", "--defenses", "none", "fine-tuning"],
        ),
        (
            "signs-wanet",
            [
                "--rate",
                "0.2",
                "--lr",
                "0.05",
                "--attacks",
                "WaNet",
                "--width",
                "8",
                "--epochs",
                "16",
                "--only",
                "WaNet/none",
                "--defenses",
                "none",
                "--options",
                '{"WaNet": {"strength": 3.0, "cross_rate": 0.0}}',
            ],
        ),
        ("signs", ["--seeds", "0", "1", "2"]),
    ):
        out = tmp_path / f"{name}.json"
        shutil.copy(RESULTS / out.name, out)
        before = out.read_bytes()
        assert main(["bench", "--out", str(out), *request]) == 0
        assert out.read_bytes() == before
    said = capsys.readouterr().out
    for count in (38, 1, 63):
        assert f"{count} of {count} cells are there" in said


def test_the_number_of_test_images_is_part_of_a_cell():
    subject = cells.Subject("signs", recipes.SIGNS, n=100, clean=0.1, n_test=50)
    assert len(subject.parts().test) == 50
    assert subject.key()["n_test"] == 50
    all_of_them = replace(subject, n_test=None)
    assert "n_test" not in all_of_them.key()
    assert identity(subject.key()) != identity(all_of_them.key())


def test_a_twin_that_guesses_ends_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    parts = dealt(monkeypatch, train=520, test=240)
    asked = []

    def trained(parts, attack, recipe, *about, **options):
        asked.append(attack)
        return victim_of(0.076 if attack is None else 0.08, attack and 1.0)

    monkeypatch.setattr(cells, "train_victim", trained)
    out = tmp_path / "r.json"
    command = ["bench", "--data", "mine", "--out", str(out), "--batch", "32"]
    assert main([*command, "--epochs", "5"]) == 1
    assert capsys.readouterr().err == (
        "error: the twin is at chance (ACC 7.6 % of 12 classes; mine, seed 0, width "
        "16); try --epochs 118.\n"
    )
    assert asked == [None] and not out.exists()
    assert main([*command, "--batch", "64", "--epochs", "5"]) == 1
    assert "try --batch 32 and --epochs 118." in capsys.readouterr().err
    assert main([*command, "--epochs", "400"]) == 1
    assert "try --epochs 800." in capsys.readouterr().err
    assert main([*command, "--lr", "5"]) == 1
    assert "try --lr 0.1 and --weight-decay 0.0005." in capsys.readouterr().err
    # Who always says the commonest of two labels is right nine times in ten.
    many = replace(parts.test, y=(torch.arange(240) % 10 == 0).long())
    monkeypatch.setattr(cells, "train_victim", lambda *a, **o: victim_of(0.9))
    subject = cells.Subject("mine", recipes.Recipe())
    with pytest.raises(cells.AtChance):
        cells.require_working(victim_of(0.9), parts._replace(test=many), subject)
    cells.require_working(victim_of(0.95), parts._replace(test=many), subject)
