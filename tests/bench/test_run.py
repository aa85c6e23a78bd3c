"""Rows are kept, never measured twice, and never half written; the zoo loads."""

import hashlib
import json
import os
import shutil
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bdcourse import checkpoint, data, defenses, files, metrics, victims
from bdcourse.__main__ import main
from bdcourse.analysis import curvature, landscape
from bdcourse.bench import cluster, plans, recipes
from bdcourse.bench import measures as looks
from bdcourse.bench import run as bench
from bdcourse.bench.plans import PLANS, Case, Plan
from bdcourse.bench.results import RESULTS, Results, identity
from bdcourse.bench.zoo import ENTRIES
from bdcourse.data import Splits
from bdcourse.defenses import FmpResponse, Purified, fmp_select
from bdcourse.defenses._masks import maskable
from bdcourse.report import tables
from bdcourse.train import Augment
from helpers import frozen, message, random_images, same_state

RUN = [
    "bench",
    "--data",
    "signs",
    "--n",
    "240",
    "--width",
    "4",
    "--epochs",
    "0.3",
    "--attacks",
    "BadNets",
    "--clean",
    "0.1",
]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("BDCOURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(looks, "US", (6.0, 3.0, 1.0))
    # Two steps teach a twin nothing; here it is the rows that count.
    monkeypatch.setattr(bench, "require_working", lambda *about: None)


def test_run_writes_every_row_and_repeats_nothing(tmp_path, capsys):
    out = tmp_path / "rows.json"
    again = [*RUN, "--out", str(out), "--keep", str(tmp_path / "runs")]
    assert main(again) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [r["attack"] for r in rows].count("BadNets") == 7 and len(rows) == 14
    for r in rows:
        assert r["n_train"] == 216 and r["n_defender"] == 24 and r["seed"] == 0
        assert {"torch", "revision", "device", "digest", "weak"} <= set(r)
    poisoned = [r for r in rows if r["attack"] == "BadNets"]
    assert all(r["n_poisoned"] == 22 for r in poisoned)
    assert next(r for r in poisoned if r["defense"] == "none")["n_triggered"] == 1833
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


def test_options_part_into_recipe_and_craft():
    options = {"WaNet": {"strength": 1.5, "rate": 0.2, "lr": 0.05}}
    recipe, more = recipes.split_options(recipes.SIGNS, "WaNet", options)
    assert recipe == replace(recipes.SIGNS, rate=0.2, lr=0.05)
    assert more == {"strength": 1.5}
    recipe, more = recipes.split_options(recipes.SIGNS, "SIG", options)
    assert recipe.rate == 0.05 and more == {}
    recipe, more = recipes.split_options(recipes.SIGNS, None, options)
    assert recipe.rate == 0 and recipe.lr == recipes.SIGNS.lr
    assert set(recipes.SIGNS_OPTIONS) <= set(recipes.ATTACKS)


def test_a_run_killed_between_rows_goes_on(tmp_path, monkeypatch):
    out = tmp_path / "rows.json"
    command = [*RUN, "--out", str(out), "--keep", str(tmp_path / "runs")]
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


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--data", "nowhere/at/all"], "no folder"),
        (["--attacks", "Nonsense"], "unknown attack"),
        (["--model", "lenet"], "unknown model"),
        (["--rate", "1.5"], "rate must be a finite number in 0..1"),
        (["--defenses", "prayer"], "unknown defense 'prayer'"),
        (["--options", "{"], "not JSON"),
        (["--options", "[1]"], "must look like"),
        (["--options", '{"Nonsense": {}}'], "no attack: 'Nonsense'"),
        (["--options", '{"BadNets": {"patsch": 1}}'], "BadNets has no option 'patsch'"),
        (["--options", '{"BadNets": {"rate": -1}}'], "rate must be a finite number in"),
        (["--batch", "0"], "batch must be a whole number of at least 1, not 0"),
        (["--zoo", "badnets"], "so --attacks has no meaning beside it"),
        (["--attacks", "SIG", "--rate", "0.5"], "only 18 have the right class"),
    ],
)
def test_bad_requests_get_one_sentence(wrong, says, tmp_path, capsys):
    command = [*RUN, "--out", str(tmp_path / "r.json"), "--keep", str(tmp_path), *wrong]
    assert main(command) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and says in err and err.count("\n") == 1


@pytest.mark.parametrize("flag", ["--seeds", "--n", "--weight-decay", "--width"])
def test_the_zoo_takes_no_training(flag, tmp_path, capsys):
    out = tmp_path / "r.json"
    assert main(["bench", "--zoo", "badnets", "--out", str(out), flag, "3"]) == 1
    assert f"so {flag} has no meaning" in capsys.readouterr().err and not out.exists()


def test_a_foreign_results_file_is_not_overwritten(tmp_path, capsys):
    out = tmp_path / "precious.json"
    out.write_text("my thesis")
    assert main([*RUN, "--out", str(out), "--keep", str(tmp_path)]) == 1
    assert out.read_text() == "my thesis" and "not a table" in capsys.readouterr().err


@pytest.mark.parametrize("name", ENTRIES)
def test_the_zoo_holds_each_victim_and_it_passes_the_gate(name):
    entry = ENTRIES[name]
    victim = victims.zoo(name)
    assert victim.recipe["seed"] == 0 and victim.arch["width"] == entry.recipe.width
    weak = victim.weak(victims.zoo(entry.twin).scores)
    assert bool(weak) == bool(entry.weak), weak or "passes after all"
    assert (entry.attack or "NoneType") == type(victim.attack).__name__
    assert all(p.dtype == torch.float32 for p in victim.model.parameters())


def test_an_unknown_zoo_name_lists_the_known():
    with pytest.raises(ValueError, match="benign"):
        victims.zoo("unicorn")


def test_zoo_claims_speak_up():
    import dataclasses

    from bdcourse import data
    from bdcourse.bench import zoo

    twin, victim = victims.zoo("benign"), victims.zoo("badnets")
    test = data.load("signs", "test", n=240)
    poor = dataclasses.replace(victim, scores=dataclasses.replace(victim.scores, acc=0.9))
    found = zoo.claims("badnets", poor, twin, test)
    assert len(found) == 2 and "below 0.97" in found[0] and "3 points" in found[1]
    as_blended = zoo.claims("blended", victim, twin, test)
    assert "removes the blended trigger" in " ".join(as_blended)


def test_the_zoo_can_be_defended_and_draws_differ(tmp_path, capsys, monkeypatch):
    seen = []

    def spy(case):
        assert len(case.clean) == 80 and len(case.held) == 20 and case.attack is None
        seen.append((case.clean.digest(), case.held.digest(), case.seed))
        return Purified(case.model)

    def refuses(case):
        raise ValueError("there is nothing to prune.")

    how = {"steps": 3, "by": "acc"}
    plans = {"none": bench.PLANS["none"], "spy": Plan(spy, held=True, settings=how)}
    plans |= {"refuses": Plan(refuses, settings=how)}
    monkeypatch.setattr(bench, "PLANS", plans)
    out = tmp_path / "zoo.json"
    command = [
        "bench",
        "--out",
        str(out),
        "--zoo",
        "benign-w8",
        "--budget",
        "100",
        "--draws",
        "0",
        "3",
        "--defenses",
        "spy",
        "refuses",
    ]
    assert main(command) == 0 and main(command) == 0
    rows = json.loads(out.read_text())["rows"]
    assert len(seen) == 2 and len(rows) == 4
    assert seen[0][0] != seen[1][0] and [s[2] for s in seen] == [0, 3000]
    assert [r["draw"] for r in rows if r["defense"] == "spy"] == [None, 3]
    assert {r["victim"] for r in rows} == {"benign-w8"} and rows[0]["clean_used"] == 100
    assert "nothing to prune" in rows[1]["refused"] and "acc" not in rows[1]
    assert all(r["how"] == how for r in rows)
    assert main([*command[:5], "unicorn"]) == 1
    assert main([*command, "--budget", "301"]) == 1
    err = capsys.readouterr().err
    assert "no 'unicorn'" in err and "the defender's 300 images" in err


def test_a_sharp_row_tells_the_course_and_both_image_sets(tmp_path, monkeypatch):
    looked = []

    def watched(case):
        course = [{"step": 0, **case.watch(case.model)}]
        return Purified(case.model, log={"watched": course})

    def measured(model, images):
        looked.append(images)
        return {"fisher": 1.0}

    monkeypatch.setattr(bench, "PLANS", {"watched": Plan(watched)})
    monkeypatch.setattr(looks, "sharpness", measured)
    out = tmp_path / "zoo.json"
    command = [
        "bench",
        "--out",
        str(out),
        "--zoo",
        "trojan-hard",
        "--sharp",
        "--defenses",
        "watched",
    ]
    assert main(command) == 0
    (row,) = json.loads(out.read_text())["rows"]
    own, other = looked
    assert len(own) == len(other) == 200 and row["data"] == "signs-hard"
    parts = data.splits("signs-hard")
    assert own.digest() == parts.clean[:200].digest()
    assert other.digest() == parts.test[-200:].digest()
    assert row["sharp"] == {"own": {"fisher": 1.0}, "other": {"fisher": 1.0}}
    (point,) = row["course"]
    assert point["asr"] > 0.95 and point["acc"] > 0.9
    assert point["fisher_own"] > 0 and point["fisher_other"] > 0


def test_a_victim_trained_under_sharp_tells_how_sharp_it_became(tmp_path, monkeypatch):
    looked = []

    def top(model, images, **how):
        assert not model.training
        looked.append(images.digest())
        return torch.tensor([2.0]), None

    monkeypatch.setattr(looks.landscape, "hessian_top", top)
    monkeypatch.setattr(looks, "sharpness", lambda model, images: {"fisher": 1.0})
    monkeypatch.setattr(looks, "watch", lambda *a, **k: {})
    out = tmp_path / "r.json"
    command = [*RUN, "--out", str(out), "--keep", str(tmp_path), "--sharp", "--defenses", "none"]
    assert main(command) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [r["attack"] for r in rows] == ["none", "BadNets"]
    for row in rows:
        (epoch,) = row["training"]
        assert epoch["lambda_max"] == 2.0 and epoch["fisher"] > 0
    unseen = data.splits("signs", clean=0.1, seed=0, n=240).test[-200:].digest()
    assert looked == [unseen, unseen]


def test_the_control_of_fip_pushes_as_far_as_fip(monkeypatch):
    model, images = victims.zoo("benign-hard").model, data.load("signs-hard", n=40)
    case = Case(model, images, images[:8], Augment(2))
    short = partial(defenses.fip, steps=2)
    monkeypatch.setattr(plans.defenses, "fip", short)
    led = PLANS["fip"].run(case)
    p = PLANS["fip, random direction, same lengths"].run(case)
    assert led is case.fip and p.seconds > led.seconds
    for (_, a), (_, b) in zip(p.log["push"], led.log["push"], strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    a, b = (torch.cat([w.flatten() for w in m.parameters()]) for m in (p.model, led.model))
    assert not torch.allclose(a, b)


def test_sharpness_is_what_the_tools_say():
    model, images = victims.zoo("benign-hard").model, data.load("signs-hard", n=24)
    found = looks.sharpness(model, images)
    exact = curvature.fisher_trace(model, images, route="exact").value
    assert abs(found["fisher"] - exact) < 6 * found["fisher_error"] + 0.05 * exact
    top, _ = landscape.hessian_top(model, images, generator=torch.Generator().manual_seed(7))
    assert found["lambda_max"] == pytest.approx(float(top[0]), rel=0.05)
    assert 0 < found["relative"] < found["fisher"] and found["empirical"] > 0


def test_a_defense_that_diverges_is_a_row_and_the_rest_goes_on(tmp_path, monkeypatch):
    def diverges(case):
        raise RuntimeError("the weights left all bounds in step 3.")

    plans = {"diverges": Plan(diverges), "none": bench.PLANS["none"]}
    monkeypatch.setattr(bench, "PLANS", plans)
    out = tmp_path / "zoo.json"
    names = ["--zoo", "benign-w8", "--defenses", *plans]
    assert main(["bench", "--out", str(out), *names]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert "left all bounds" in rows[0]["refused"] and rows[1]["acc"] > 0.9


@pytest.mark.parametrize("name", ["anp", "rnp"])
@pytest.mark.parametrize(("points", "drop"), [("3", 0.03), ("10", 0.1)])
def test_other_thresholds_are_chosen_on_the_same_masks(name, points, drop, monkeypatch):
    images = data.load("signs", "test", n=30)
    net = victims.zoo("trojan").model
    runs = []

    def learned(model, clean, held, *, generator, **given):
        runs.append(given)
        masks = {n: torch.ones_like(b.weight) for n, b in maskable(model).items()}
        masks["layer1.0.bn1"][:2] = torch.tensor([0.0, 0.3])
        return Purified(model, log={"masks": masks}, seconds=1.0)

    def chosen(model, masks, held, threshold, max_drop, looks=None):
        assert held is case.held and threshold is None and max_drop == drop
        return model, {"layer1.0.bn1": masks["layer1.0.bn1"].argsort()[:1]}, 0.25

    monkeypatch.setattr(defenses, name, learned)
    monkeypatch.setattr(plans, "prune", chosen)
    case = Case(net, images[:20], images[20:], Augment(0))
    costly = f"{name}, {points} points"
    first, second = (PLANS[n].run(case) for n in (name, costly))
    assert len(runs) == 1 and first.count == 0
    assert second.count == 1 and second.seconds >= 1.0
    assert plans.notes(second) == {"threshold": 0.25}
    assert PLANS[costly].settings["max_drop"] == drop


def test_controls_take_as_many_as_the_method(monkeypatch):
    images, victim = data.load("signs", "test", n=60), victims.zoo("trojan")
    case = Case(victim.model, images[:40], images[40:], Augment(0), 0, victim.attack)
    like = {"layer1.0.bn1": torch.tensor([0, 3]), "bn1": torch.tensor([1])}
    masks = {n: torch.ones_like(b.weight) for n, b in maskable(victim.model).items()}
    for name, channels in like.items():
        masks[name][channels] = 0.3
    case.anp = Purified(victim.model, log={"masks": masks}, seconds=1.0)
    p = PLANS["anp, 10 points, random channels"].run(case)
    q = PLANS["anp, 10 points"].run(case)
    assert q.count and {n: len(c) for n, c in p.pruned.items()} == {
        n: len(c) for n, c in q.pruned.items()
    }
    for name, channels in p.pruned.items():  # scales go, shifts stay
        bn, was = (m.get_submodule(name) for m in (p.model, victim.model))
        assert not bn.weight[channels].any() and torch.equal(bn.bias, was.bias)
    oracle = PLANS["anp (oracle)"].run(case)
    assert "anp (oracle)" in plans.ORACLES
    s = [metrics.evaluate(m.model, case.held, victim.attack) for m in (oracle, q)]
    assert s[0].asr <= s[1].asr
    monkeypatch.setattr(defenses, "fmp_random", lambda m, c, like, **o: like)
    sizes = {n: len(c) for n, c in PLANS["fmp, random maps"].run(case).items()}
    found = {
        n: FmpResponse(*torch.rand(3, m.out_channels))
        for n, m in victim.model.named_modules()
        if hasattr(m, "out_channels") and n in sizes
    }
    assert sizes == {n: len(c) for n, c in fmp_select(found, 64, least=1).items()}
    assert PLANS["fmp, no maps"].run(case) == {}


def test_all_leaves_out_what_varies_inside_a_method():
    usual, more = (set(bench._wanted([w])) for w in ("all", "everything"))
    assert more - usual == plans.ABLATIONS and {"fip", "sam", "fast fip"} <= usual
    assert more == {*PLANS, bench.SWEEP}


def test_plans_say_how_they_run():
    for name, plan in PLANS.items():
        json.dumps(plan.settings, allow_nan=False)  # a row can hold them
        # what follows from another line of the table, or chooses its setting itself
        derived = name == "none" or name.endswith("random channels")
        assert plan.settings or derived or name == "clp, u on held-out images"
    assert PLANS["fmp, p = 16"].settings["p"] == 16
    assert PLANS["fip, released, eta = 0.5"].settings["eta_f"] == 0.5
    assert PLANS["fip, released"].settings["eta_f"] == 0.005
    assert PLANS["fast fip"].settings["lr"] == 0.05 and PLANS["fip"].settings["steps"]


def test_plans_say_which_images_they_use():
    images = data.load("signs", "test", n=30)
    case = Case(torch.nn.Identity(), images[:20], images[20:], Augment(0))
    assert PLANS["none"].images(case) == 0
    assert PLANS["fine-tuning"].images(case) == 20
    assert PLANS["clp, u on held-out images"].images(case) == 10
    assert set(tables.DEFENSES) <= set(PLANS)


def test_a_cell_that_fails_is_kept_told_and_tried_again(tmp_path, monkeypatch, capsys):
    broken = [KeyError("layer9"), torch.OutOfMemoryError("out of memory")]

    def fails(case):
        if broken:
            raise broken[0]
        return Purified(case.model)

    plans = {"fails": Plan(fails), "none": bench.PLANS["none"]}
    monkeypatch.setattr(bench, "PLANS", plans)
    out = tmp_path / "zoo.json"
    command = ["bench", "--out", str(out), "--zoo", "benign-w8", "--defenses", *plans]
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
    assert [r["defense"] for r in rows] == list(plans) and rows[0]["acc"] > 0.9
    assert "1/1" in capsys.readouterr().out


def test_patterns_and_scales_choose_cells(tmp_path):
    out = tmp_path / "r.json"
    command = [
        *RUN,
        "--out",
        str(out),
        "--keep",
        str(tmp_path / "runs"),
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


def test_time_left_weighs_cells_by_what_they_took_before(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    subject = bench.Subject("signs", recipes.SIGNS, "BadNets")
    job = bench.Job(subject, {}, ("quick", "slow", "new"))
    rows = [{"defense": d, "seconds": s} for d, s in (("quick", 1), ("slow", 197))]
    progress = bench.Progress([job], rows)
    clock[0] = 2.0
    row = {"defense": "quick", "acc": 0.9, "asr": None, "ra": None, "pruned": 3}
    progress.say(job, row)  # 2 of 2 + 198 + 100 (the mean)
    said = capsys.readouterr().out
    assert "BadNets, seed 0 (signs, resnet18 of width 16)" in said
    assert "ACC 90.0 %, 3 channels" in said
    assert "[1/3, 5 min left]" in said
    clock[0] = 7400.0
    progress.say(job, row | {"defense": "slow"})
    assert "[2/3, 62 min left]" in capsys.readouterr().out


def test_complaints_join_victims_with_the_same_error():
    pairs = (("A", "x."), ("B", "x."), ("A", "y."), ("A", "x."))
    rows = [{"attack": a, "seed": 0, "error": e} for a, e in pairs]
    assert bench.complaints(rows) == ["A, seed 0; B, seed 0: x.", "A, seed 0: y."]


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
def test_a_machine_that_fails_is_no_result(error, kept, tmp_path, monkeypatch):
    def fails(case):
        raise error

    monkeypatch.setattr(bench, "PLANS", {"fails": Plan(fails)})
    results = bench.run_zoo(tmp_path / "r.json", ["benign-w8"], ["fails"])
    assert kept in results.rows[0] and bool(results.failed) == (kept == "error")


def test_rows_from_another_machine_count_as_done(tmp_path):
    """Signs are drawn anew on each machine, which may round a pixel differently."""
    cell = {"data": "signs", "digest": "1", "n_train": 5700, "defense": "none"}
    assert identity(cell) == identity(cell | {"digest": "2"})
    assert identity(cell) != identity(cell | {"n_train": 216})
    photos = cell | {"data": "cifar10"}
    assert identity(photos) != identity(photos | {"digest": "2"})


def test_images_that_changed_meanwhile_are_refused(tmp_path):
    subject = bench.Subject("signs", recipes.SIGNS, n=100, clean=0.1)
    key = subject.key() | {"budget": None, "draw": None, "data": "x", "digest": "old"}
    (row,) = bench.measure(bench.Job(subject, key, ("none",)))
    assert "other images here than where the run was started" in row["error"]


def test_a_folder_may_be_called_like_built_in_data(tmp_path, monkeypatch):
    (tmp_path / "signs").mkdir()
    monkeypatch.chdir(tmp_path)
    subject = bench.Subject("signs", recipes.SIGNS, n=100, clean=0.1)
    assert subject.label == "signs" and len(subject.parts().train) == 90
    assert recipes.recipe_for("./signs") == recipes.Recipe()


@pytest.mark.parametrize("text", ['{"rows": 3}', '{"rows": [3]}', "[]", '{"rows": ['])
def test_other_json_is_no_table(text, tmp_path, capsys):
    (tmp_path / "r.json").write_text(text)
    command = ["bench", "--out", str(tmp_path / "r.json"), "--zoo", "benign-w8"]
    assert main(command) == 1
    assert "is not a table of results" in capsys.readouterr().err
    assert (tmp_path / "r.json").read_text() == text


def test_folders_and_missing_gpus_get_one_sentence(tmp_path, capsys):
    for wrong in (["--out", str(tmp_path)], ["--out", str(tmp_path / "r"), "--device", "cuda:7"]):
        if "cuda:7" in wrong and torch.cuda.is_available():
            continue
        assert main(["bench", "--zoo", "benign-w8", *wrong]) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1


def test_one_process_trains_a_victim_and_others_wait(tmp_path):
    order = []

    def hold(name):
        with files.locked(tmp_path / "v.lock"):
            order.append(name)
            time.sleep(0.2)
            order.append(name)

    threads = [threading.Thread(target=hold, args=(n,)) for n in "abc"]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert order[::2] == order[1::2] and sorted(order[::2]) == list("abc")
    assert not (tmp_path / "v.lock").exists()


# --- Requests, before any work ---------------------------------------------------


def blank(n: int, k: int = 12, side: int = 8, classes=None) -> data.Images:
    """Images as many as the real ones, but none that anybody drew."""
    x = torch.zeros(n, 3, side, side, dtype=torch.uint8)
    names = classes or tuple(f"class {i}" for i in range(k))
    return data.Images(x, torch.arange(n) % k, names)


def dealt(monkeypatch, train=5700, clean=240, held=60, test=2000, **how) -> data.Splits:
    parts = data.Splits(*(blank(n, **how) for n in (train, clean, held, test)))
    monkeypatch.setattr(bench.datasets, "splits", lambda *a, **k: parts)
    bench.forget_images()
    return parts


def untrained(*about, **options):
    raise AssertionError("something was trained")


def test_rows_of_the_course_are_still_known_as_done(tmp_path, monkeypatch, capsys):
    """`make results` finds its own rows: no name of a cell has changed."""
    dealt(monkeypatch)
    monkeypatch.setattr(bench, "train_victim", untrained)
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


def test_victims_keep_their_file_names(tmp_path, monkeypatch):
    """The names under which victims lie in runs/, with today's settings."""
    x = torch.arange(4 * 3 * 8 * 8).remainder(256).to(torch.uint8).view(4, 3, 8, 8)
    some, names = data.Images(x, torch.arange(4) % 2, ("a", "b")), []
    parts = data.Splits(some, some, some, some)
    monkeypatch.setattr(recipes, "_new", lambda *about: names.append(about[5].name))
    other = recipes.Recipe(epochs=6, bf16=True)
    for usual, options in (
        (replace(recipes.SIGNS, width=8), recipes.SIGNS_OPTIONS),
        (other, {"WaNet": {"rate": 0.2, "strength": 2.0}}),
    ):
        for name in (None, *recipes.ATTACKS):
            mine, more = recipes.split_options(usual, name, options)
            recipes.train_victim(parts, name, mine, 0, "signs", tmp_path, **more)
    assert names[1] == "signs-BadNets-0-b035e74a2f03" and len(names) == 38
    joined = hashlib.sha256("\n".join(names).encode()).hexdigest()
    assert joined.startswith("d1adb304aa688b6d")


def test_what_came_later_stands_in_rows_only_if_unusual():
    assert recipes.Recipe(momentum=0.9, shifts=1).settings().keys() == {
        "model",
        "width",
        "epochs",
        "batch",
        "lr",
        "weight_decay",
        "rate",
        "stamp",
        "pad",
        "flip",
        "bf16",
    }
    own = recipes.FAST.settings()
    assert own["flip"] == "alternate" and own["schedule"] == "linear"
    assert own["smoothing"] == 0.2 and own["shifts"] == 16 and "aware" not in own
    assert recipes.Recipe(**own) == recipes.FAST


def test_the_fast_recipe_is_chosen_by_name(monkeypatch, capsys):
    asked = []

    def subjects(found, *_):
        asked[:] = found
        return SimpleNamespace(failed=[])

    monkeypatch.setattr(bench, "_run", subjects)
    dealt(monkeypatch, train=19_000)  # too few for the usual number of epochs
    command = ["bench", "--data", "photos", "--out", "r.json", "--recipe"]
    assert main([*command, "fast"]) == 0
    assert [s.attack for s in asked] == [None, "BadNets", "Blended"]
    assert {replace(s.recipe, rate=None) for s in asked} == {recipes.FAST}
    assert "--no-flip" in capsys.readouterr().out
    assert main([*command, "FAST", "--epochs", "3", "--width", "8", "16"]) == 0
    found = {(s.recipe.epochs, s.recipe.width, s.recipe.lr) for s in asked}
    assert found == {(3, 8, recipes.FAST.lr), (3, 16, recipes.FAST.lr)}
    assert main([*command, "fast", "--no-flip"]) == 0
    assert {s.recipe.flip for s in asked} == {False}
    bench.run("signs", "r.json", "fast")
    assert {s.recipe.flip for s in asked} == {False}, "a mirrored sign is another"
    assert main([*command, "slow"]) == 1
    assert "unknown recipe 'slow'; choose from fast" in capsys.readouterr().err
    zoo = ["bench", "--out", "r.json", "--zoo", "badnets", "--recipe", "fast"]
    assert main(zoo) == 1
    assert "--recipe has no meaning beside it" in capsys.readouterr().err


def test_a_victim_that_was_stopped_goes_on(tmp_path, capsys):
    parts = data.Splits(*(random_images(n, side=16) for n in (48, 6, 6, 12)))
    recipe = replace(recipes.FAST, width=4, epochs=3, batch=8, lr=0.01)
    told = []

    def train(keep, stop_after=None):
        def look(model):
            told.append(keep)
            if told.count(keep) == stop_after:
                raise KeyboardInterrupt
            return {"looks": told.count(keep)}

        return recipes.train_victim(
            parts, "BadNets", recipe, 0, "noise", tmp_path / keep, each_epoch=look
        )

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("part", stop_after=2)
    (left,) = (tmp_path / "part").iterdir()
    assert left.suffix == ".part"
    part = train("part")
    assert told.count("part") == 4, "the second epoch twice"
    assert same_state(part.model, frozen(whole.model)) and part.scores == whole.scores
    assert [e["loss"] for e in part.history] == [e["loss"] for e in whole.history]
    assert [e["looks"] for e in part.history] == [1, 3, 4]
    assert {f.suffix for f in (tmp_path / "part").iterdir()} == {".json", ".safetensors"}
    assert "part" not in json.dumps(part.recipe), "no path is kept"
    assert part.recipe["smoothing"] == 0.2 and part.recipe["flip"] == "alternate"
    # The filters of both whiten the images of the attacker, before any poison.
    first = whole.model.whitening.weight
    assert first.shape == (24, 3, 2, 2)
    twin = recipes.train_victim(parts, None, recipe, 0, "noise", tmp_path / "whole")
    assert torch.equal(twin.model.whitening.weight, first)
    with pytest.raises(ValueError, match="each_epoch must be a function"):
        recipes.train_victim(parts, None, recipe, 0, "x", tmp_path, each_epoch=3)


def test_options_say_which_side_they_are_for():
    split = partial(recipes.split_options, recipes.SIGNS, "LF")
    recipe, craft = split({"LF": {"craft": {"batch": 5}, "recipe": {"rate": 0.2}}})
    assert recipe == replace(recipes.SIGNS, rate=0.2) and craft == {"batch": 5}
    recipe, craft = split({"LF": {"recipe": {"batch": 64}, "passes": 3}})
    assert recipe.batch == 64 and craft == {"passes": 3}
    for given, says in (
        ({"batch": 5}, '{"LF": {"craft": {"batch": 5}}}'),
        ({"craft": {"epochs": 5}}, "'craft' of LF has no entry 'epochs'"),
        ({"recipe": {"passes": 5}}, "'recipe' of LF has no entry 'passes'"),
        ({"craft": 3}, "'craft' must hold entries"),
        ({"passes": 3, "craft": {"passes": 3}}, "is given twice"),
    ):
        with pytest.raises(ValueError) as e:
            split({"LF": given})
        assert says in message(e)
    # No attack has an argument that would be taken for one of the two words.
    for cls in recipes.ATTACKS.values():
        assert not {"craft", "recipe"} & recipes.defaults(cls, cls.craft).keys()


def test_unknown_names_are_refused_and_added_ones_kept():
    extra = "clp, u = 3, as released"
    assert extra in plans.ABLATIONS
    assert bench._wanted(["all", extra])[-1] == extra
    assert bench._wanted([extra, "ALL"])[0] == extra
    for names in (["all", "nope"], ["nope", "everything"], ["none", "nope"]):
        with pytest.raises(ValueError, match="unknown defense 'nope'") as e:
            bench._wanted(names)
        assert "--list" in message(e)
    with pytest.raises(ValueError) as e:
        bench._wanted(["clp,", "u", "=", "3"])  # a shell without quotes
    assert "did you mean 'clp, u = 3' or" in message(e)
    with pytest.raises(ValueError, match="did you mean 'BadNets'"):
        bench.run("signs", "r.json", attacks=["all", "BadNet"])


def test_everything_is_checked_before_an_image_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.datasets, "splits", untrained)
    out = tmp_path / "r.json"
    for wrong, says in (
        ({"worker": 2}, "did you mean 'workers'"),
        ({"workers": 0}, "workers must be a whole number in 1..1000, not 0"),
        ({"threads": 1.5}, "threads must be"),
        ({"defenses": "none"}, "defenses must be a list"),
        ({"budgets": [1]}, "budget must be a whole number of at least 2"),
        ({"draws": [0.5]}, "draws must be"),
        ({"device": "warp"}, "no device 'warp'"),
    ):
        for call in (
            partial(bench.run_zoo, out, ["badnets"]),
            partial(bench.run, "signs", out),
        ):
            with pytest.raises(ValueError) as e:
                call(**wrong)
            assert says in message(e)
    for wrong, says in (
        ({"seeds": 3}, "seeds must be a list"),
        ({"seeds": []}, "seeds must hold at least one"),
        ({"scales": [{"widht": 8}]}, "did you mean 'width'"),
        ({"scales": [{"lr": float("inf")}]}, "lr must be a finite number"),
        ({"scales": [{"weight_decay": 1e6}]}, "must be below 1"),
        ({"options": {"LF": {"batch": 5}}, "attacks": ["SIG"]}, "of its craft or of"),
        ({"options": {"Blendet": {}}}, "did you mean 'Blended'"),
        ({"options": {"BadNets": {"patch": torch.ones(3)}}}, "plain finite numbers"),
        ({"n": 2.5}, "n must be"),
        ({"size": True}, "size must be"),
        ({"clean": 0}, "clean must be"),
    ):
        with pytest.raises(ValueError) as e:
            bench.run("signs", out, **wrong)
        assert says in message(e)
    assert list(tmp_path.iterdir()) == []


def test_sentences_name_options_as_they_are_typed(monkeypatch, capsys, tmp_path):
    def fails(*source, **how):
        raise ValueError("a.png is 9x8; pass size=32 (say), or clean=0.05, flip=False.")

    monkeypatch.setattr(bench.datasets, "splits", fails)
    assert main(["bench", "--out", str(tmp_path / "r.json")]) == 1
    said = capsys.readouterr().err
    assert said == "error: a.png is 9x8; pass --size 32 (say), or --clean 0.05, --no-flip.\n"
    with pytest.raises(SystemExit) as e:
        main(["bench", "--out", str(tmp_path / "r.json"), "--n", "x"])
    assert e.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as e:
        main(["bench", "--list"])
    assert e.value.code == 0
    listed = capsys.readouterr().out.splitlines()
    assert "  clp, u = 3" in listed and "  BadNets" in listed


# --- Few images, large images, and twins that guess ------------------------------


def test_few_images_get_more_epochs(monkeypatch, capsys):
    plain = recipes.Recipe()
    few = recipes.suited(plain, 520)  # seventeen steps an epoch
    assert few == replace(plain, batch=32, epochs=118)
    assert recipes.suited(plain, 520, ["batch"]) == replace(plain, epochs=400)
    assert recipes.suited(plain, 520, ["epochs"]) == plain
    assert recipes.suited(plain, 20_000) == plain
    assert recipes.suited(plain, 19_999) == replace(plain, batch=32)
    asked = []
    monkeypatch.setattr(bench, "_run", lambda subjects, *_: asked.extend(subjects))
    dealt(monkeypatch, train=520)
    bench.run("my/images", "r.json", attacks=["SIG"], options={"SIG": {"epochs": 3}})
    said = capsys.readouterr().out
    assert "118 epochs in batches of 32, since" in said and "--no-flip" in said
    assert [s.recipe.epochs for s in asked] == [118, 3]
    for source, more in (
        ("signs", {}),  # has a recipe of its own
        ("my/images", {"scales": [{"epochs": 4, "flip": True}]}),
        ("my/images", {"recipe": plain}),
    ):
        asked.clear()
        bench.forget_images()
        bench.run(source, "r.json", attacks=["SIG"], **more)
        want = {"signs": 12}.get(source, 4 if "scales" in more else 10)
        assert {s.recipe.epochs for s in asked} == {want}, source
        assert capsys.readouterr().out.count("\n") == 1
    dealt(monkeypatch, train=47_500)  # what the rows of CIFAR-10 were measured on
    asked.clear()
    bench.run("cifar10-jpeg", "r.json")
    assert {s.recipe.epochs for s in asked} == {10}


def test_large_images_and_absent_classes_are_said(monkeypatch, capsys):
    monkeypatch.setattr(bench, "_run", lambda subjects, *_: list(subjects))
    dealt(monkeypatch, train=40, clean=5, held=2, test=9, side=224)
    bench.run("photos", "r.json")
    said = capsys.readouterr().out
    assert "images of 224x224 are 49 times the work of 32x32" in said
    assert "GB of memory; --size 32" in said
    assert "no image of 7 of 12 classes, such as 'class 5'" in said
    dealt(monkeypatch, side=32)
    bench.run("photos", "r.json")
    assert "the work of" not in capsys.readouterr().out


def victim_of(acc: float, asr: float | None = None, n: int = 2000):
    victim = victims.zoo("badnets" if asr is not None else "benign")
    return replace(victim, scores=metrics.Scores(acc, asr, 0.0, n, n))


def test_a_gate_needs_a_twin_that_works():
    twin = metrics.Scores(0.25, n_clean=2000)
    assert victim_of(0.25, 1.0).weak(twin) == ""  # 25 % of twelve classes
    why = victim_of(0.1, 1.0).weak(metrics.Scores(0.1, n_clean=2000))
    assert why == "the benign twin is at chance (ACC 10.0 % of 12 classes)"
    for k, n, least in (
        (10, 10_000, 0.19),
        (2, 10_000, 0.55),
        (2, 100, 0.65),
        (43, 12_630, 0.1209),
    ):
        assert victims.at_chance(metrics.Scores(least - 0.001, n_clean=n), k)
        assert not victims.at_chance(metrics.Scores(least + 0.001, n_clean=n), k)


def test_a_twin_that_guesses_ends_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    parts = dealt(monkeypatch, train=520, test=240)
    asked = []

    def trained(parts, attack, recipe, *about, **options):
        asked.append(attack)
        return victim_of(0.076 if attack is None else 0.08, attack and 1.0)

    monkeypatch.setattr(bench, "train_victim", trained)
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
    monkeypatch.setattr(bench, "train_victim", lambda *a, **o: victim_of(0.9))
    subject = bench.Subject("mine", recipes.Recipe())
    with pytest.raises(bench.AtChance):
        bench.require_working(victim_of(0.9), parts._replace(test=many), subject)
    bench.require_working(victim_of(0.95), parts._replace(test=many), subject)


def test_the_number_of_test_images_is_part_of_a_cell(monkeypatch):
    subject = bench.Subject("signs", recipes.SIGNS, n=100, clean=0.1, n_test=50)
    assert len(subject.parts().test) == 50
    assert subject.key()["n_test"] == 50
    all_of_them = replace(subject, n_test=None)
    assert "n_test" not in all_of_them.key()
    assert identity(subject.key()) != identity(all_of_them.key())


# --- What is said on the way -----------------------------------------------------


def test_a_second_run_says_what_is_there_and_weak_victims_are_named(tmp_path, monkeypatch, capsys):
    dealt(monkeypatch, train=520, test=24)
    scores = {"acc": 0.5, "asr": 0.2, "ra": None, "pruned": 0}
    monkeypatch.setattr(bench, "_measured", lambda *a: scores)
    weak = {"none": victim_of(0.5), "BadNets": victim_of(0.5, 0.43)}
    monkeypatch.setattr(
        bench, "train_victim", lambda parts, attack, *a, **o: weak[attack or "none"]
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
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    own = recipes.SIGNS
    names = ("none", "a", "b", "c")
    jobs = [
        bench.Job(bench.Subject("signs", own, attack), {}, names) for attack in (None, "SIG", "LF")
    ]
    jobs[0] = replace(jobs[0], subject=jobs[1].subject.twin())
    progress = bench.Progress(jobs, [])
    row = {"acc": 0.9, "asr": None, "ra": None, "pruned": 3}
    for passed, job, name, left in (
        (601, jobs[0], "none", "20 min"),  # two victims to come, 11 quick cells
        (2, jobs[0], "a", "20 min"),
        (1, jobs[0], "b", "20 min"),
        (1, jobs[0], "c", "20 min"),
        (601, jobs[1], "none", "10 min"),
    ):
        clock[0] += passed
        progress.say(job, row | {"defense": name})
        assert f"{left} left" in capsys.readouterr().out


# --- The file --------------------------------------------------------------------


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


def test_a_cell_that_stands_twice_is_seen(tmp_path, capsys):
    path = tmp_path / "r.json"
    once = [a_row(), a_row(seed=1)]
    path.write_text(json.dumps({"rows": [*once, a_row()]}))
    found = Results(path)
    assert found.rows == once
    with found.owned():
        pass
    said = capsys.readouterr().err
    assert said == f"{path} holds 1 rows twice; one of each counts.\n"
    failed = a_row(error="x.")
    del failed["acc"]
    for rows in ([failed, a_row()], [a_row(), failed]):  # it was tried again
        path.write_text(json.dumps({"rows": rows}))
        assert Results(path).rows == [a_row()]
    path.write_text(json.dumps({"rows": [*once, a_row(acc=1.0)]}))
    for read in (
        lambda: Results(path),
        lambda: tables.grid(str(path), ["none"]),
        lambda: bench.run_zoo(path, ["benign-w8"], ["none"]),
    ):
        with pytest.raises(ValueError) as e:
            read()
        text = message(e)
        assert text.startswith(f"{path} holds two different rows of one cell (")
        assert "attack BadNets, defense none, seed 0" in text


def test_an_out_that_is_a_link_stays_one(tmp_path):
    (tmp_path / "far").mkdir()
    link, file = tmp_path / "r.json", tmp_path / "far" / "rows.json"
    link.symlink_to(file)
    results = Results(link)
    with results.owned():
        results.add(a_row())
        with pytest.raises(RuntimeError, match="another run is writing"):
            with Results(file).owned():
                pass
    assert link.is_symlink() and json.loads(file.read_text())["rows"] == [a_row()]
    assert Results(link).rows == [a_row()]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["far", "r.json", "rows.json"]


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    Results(path).add(a_row())
    before = path.read_bytes()

    def full(*about):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bdcourse.bench.results.os.replace", full)
    monkeypatch.setattr(cluster.os, "link", full)
    with pytest.raises(RuntimeError) as e:
        Results(path).add(a_row(seed=1))
    assert "cannot be written (No space left on device)" in message(e)
    with pytest.raises(OSError):
        cluster.keep(tmp_path / "cells", a_row())
    assert [p.name for p in tmp_path.rglob("*.*")] == ["r.json"]
    assert path.read_bytes() == before and not list((tmp_path / "cells").iterdir())


def test_a_lock_follows_no_link_and_empties_no_file(tmp_path):
    thesis, lock = tmp_path / "thesis.txt", tmp_path / "v.lock"
    thesis.write_text("mine")
    lock.symlink_to(thesis)
    with pytest.raises(RuntimeError) as e:
        with files.locked(lock):
            pass
    assert "is a link" in message(e) and thesis.read_text() == "mine"
    lock.unlink()
    lock.write_text("held by nobody")
    with files.locked(lock):
        assert lock.read_text() == "held by nobody"
    assert not lock.exists()
    with pytest.raises(RuntimeError, match="cannot be made"):
        with files.locked(tmp_path / "no" / "v.lock"):
            pass
    (tmp_path / "folder.lock").mkdir()
    with pytest.raises(RuntimeError, match="is a link or a folder"):
        with files.locked(tmp_path / "folder.lock"):
            pass
    lock.symlink_to(tmp_path / "nowhere")  # would be made there
    with pytest.raises(RuntimeError, match="is a link"):
        with files.locked(lock):
            pass
    assert not (tmp_path / "nowhere").exists()


def test_every_lock_of_the_package_leaves_a_link_alone(tmp_path):
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("mine")
    (tmp_path / ".r.json.lock").symlink_to(thesis)
    with pytest.raises(RuntimeError, match=".r.json.lock is a link") as e:
        with Results(tmp_path / "r.json").owned():
            pass
    assert message(e) and thesis.read_text() == "mine"
    (tmp_path / "runs").mkdir()
    parts = Splits(*[blank(60)] * 4)

    def train():
        return recipes.train_victim(parts, None, recipes.SIGNS, 0, "signs", tmp_path / "runs")

    made = []
    with pytest.MonkeyPatch.context() as m:  # what the files are called
        m.setattr(recipes, "_new", lambda *about: made.append(about[5]))
        train()
    for name in ("lock", "safetensors", "json"):
        link = Path(f"{made[0]}.{name}")
        link.symlink_to(thesis if name != "json" else tmp_path / "nowhere")
        with pytest.raises(RuntimeError, match=f"{name} is a link") as e:
            train()
        assert message(e) and thesis.read_text() == "mine"
        assert not (tmp_path / "nowhere").exists()
        link.unlink()


def test_a_lock_where_the_system_knows_no_such_flags(tmp_path, monkeypatch):
    for name in ("O_NOFOLLOW", "O_CLOEXEC"):
        monkeypatch.delattr(os, name)
    thesis, lock = tmp_path / "thesis.txt", tmp_path / "v.lock"
    thesis.write_text("mine")
    with files.locked(lock):
        assert lock.exists()
    lock.symlink_to(thesis)
    with pytest.raises(RuntimeError, match="is a link"):
        with files.locked(lock):
            pass
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with files.locked(lock):  # no locks at all there, and nothing written
        pass
    assert thesis.read_text() == "mine" and lock.is_symlink()


def test_a_lock_of_another_user_can_be_waited_for(tmp_path, monkeypatch):
    real, lock = os.open, tmp_path / "v.lock"

    def foreign(path, flags, *mode, **more):  # neither written nor made by us
        if flags & (os.O_RDWR | os.O_CREAT):
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *mode, **more)

    lock.write_text("")
    with files.locked(lock):
        monkeypatch.setattr(recipes.os, "open", foreign)
        with pytest.raises(BlockingIOError):
            with files.locked(lock, wait=False):
                pass
    with pytest.raises(RuntimeError, match="Permission denied"):
        with files.locked(lock):
            pass


def test_a_lock_is_deleted_by_its_holder_only(tmp_path):
    lock = tmp_path / "v.lock"
    with files.locked(lock):
        lock.rename(tmp_path / "aside")
        lock.write_text("another one's by now")
    assert lock.read_text() == "another one's by now"


def test_a_file_that_others_may_read_is_opened_to_them_by_no_name(tmp_path, monkeypatch):
    secret = tmp_path / "secret"
    secret.touch(0o600)

    def moved(path, mode, **more):  # between its writing and this
        os.unlink(path)
        os.symlink(secret, path)
        chmod(path, mode, **more)

    chmod = os.chmod
    monkeypatch.setattr(os, "chmod", moved)
    Results(tmp_path / "r.json").add(a_row())
    checkpoint.write_whole(tmp_path / "c", b"x")
    monkeypatch.setenv("BDCOURSE_CACHE", str(tmp_path / "cache"))
    data.cached("k", lambda: blank(4))
    made = [tmp_path / "r.json", tmp_path / "c", tmp_path / "cache" / "k.npz"]
    assert [p.stat().st_mode & 0o777 for p in made] == [0o644] * 3
    assert secret.stat().st_mode & 0o777 == 0o600


def test_a_clean_label_attack_names_a_target_with_enough_images():
    images = blank(100, 3)
    images = replace(images, y=torch.tensor([0] * 10 + [1] * 30 + [2] * 60))
    sig, g = recipes.ATTACKS["SIG"](), torch.Generator()
    with pytest.raises(ValueError) as e:
        sig.poison(images, 0.4, g)
    assert "only 10 have the right class" in message(e)
    assert message(e).endswith("or take target=2, which has 60.")
    with pytest.raises(ValueError) as e:
        sig.poison(images, 0.7, g)
    assert message(e).endswith("a share of the whole set.")
