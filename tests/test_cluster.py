"""Cells on several processes: one result each, though a worker dies on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from bdcourse import bench, cluster, tables
from bdcourse.__main__ import main
from bdcourse.plans import PLANS, Plan

distributed = pytest.importorskip("distributed")

SMALL = {"width": 4, "epochs": 6}  # fewer leave the twin at chance
GRID = {"attacks": ["BadNets", "Blended"], "n": 240, "n_test": 300, "clean": 0.1,
        "scales": [SMALL]}  # fmt: skip
DEFENSES = ["none", "clp, u = 3", "fine-tuning", "nad", "ft-sam", "mnp, soft",
            "mnp, hard"]  # fmt: skip
CELLS = 3 * len(DEFENSES)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A scheduler with three worker processes, as a user would start them."""
    os.environ["BDCOURSE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    with distributed.LocalCluster(
        n_workers=3, threads_per_worker=1, memory_limit=0, dashboard_address=None,
        silence_logs="CRITICAL",
    ) as found:  # fmt: skip
        yield found
    del os.environ["BDCOURSE_CACHE"]


def grid(out: Path, **where) -> tables.Results:
    keep = out.parent / "runs"
    return bench.run("signs", out, keep=keep, defenses=DEFENSES, **GRID | where)


def test_a_killed_worker_loses_nothing_and_repeats_nothing(three, tmp_path, capsys):
    out, killed = tmp_path / "rows.json", []

    def kill():
        with distributed.Client(three.scheduler_address) as client:
            while not list((tmp_path / "rows.json.cells").glob("*.json")):
                time.sleep(0.05)
            busy = {w: keys for w, keys in client.processing().items() if keys}
            pids = client.run(os.getpid)
            worker, keys = next(iter(busy.items()))
            os.kill(pids[worker], signal.SIGKILL)
            killed.append((pids[worker], keys))

    murderer = threading.Thread(target=kill)
    murderer.start()
    results = grid(out, scheduler=three.scheduler_address)
    murderer.join()
    assert killed and killed[0][1], "no worker was killed at work"
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == CELLS == len({tables.identity(r) for r in rows})
    assert not results.failed and all("acc" in r for r in rows)
    assert not (tmp_path / "rows.json.cells").exists()
    said = capsys.readouterr().out
    assert f"[{CELLS}/{CELLS}, 0 s left]" in said
    # Victims were trained once, and here too nothing is left to do.
    kinds = sorted(p.stem.split("-")[1] for p in (tmp_path / "runs").glob("*.json"))
    assert kinds == ["BadNets", "Blended", "none"]
    before = out.read_bytes()
    grid(out)
    assert out.read_bytes() == before


def test_a_cluster_gives_what_one_process_gives(three, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = {"only": ["BadNets/none", "none/clp*", "BadNets/fine-tuning"]}
    torch.set_num_threads(1)
    alone = grid(tmp_path / "a" / "r.json", **one)
    one |= {"scheduler": three.scheduler_address, "threads": 1}
    dealt = grid(tmp_path / "b" / "r.json", **one)
    assert len(alone.rows) == len(dealt.rows) == 3
    found = {tables.identity(r): r for r in dealt.rows}
    for r in alone.rows:  # another number of threads adds in another order
        other = found[tables.identity(r)]
        assert r["n_poisoned"] == other["n_poisoned"] and r["how"] == other["how"]
        assert abs(r["acc"] - other["acc"]) < 0.1


def test_a_failing_victim_fails_its_own_cells_only(three, tmp_path, capsys):
    options = {"Blended": {"alpha": 1.5}}
    results = bench.run(
        "signs", tmp_path / "r.json", keep=tmp_path / "runs", options=options,
        defenses=["none", "clp, u = 3"], scheduler=three.scheduler_address, **GRID,
    )  # fmt: skip
    assert sorted("error" in r for r in results.rows) == [False] * 4 + [True] * 2
    assert len(results.failed) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: Blended, seed 0: alpha must be a finite number")
    assert err.count("\n") == 1


def test_crowded_workers_and_dead_addresses_are_refused(tmp_path, capsys):
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as crowded:
        with pytest.raises(RuntimeError, match="--nthreads 1"):
            grid(tmp_path / "r.json", scheduler=crowded.scheduler_address)
    command = ["bench", "--n", "240", "--out", str(tmp_path / "r.json")]
    assert main([*command, "--scheduler", "tcp://127.0.0.1:9"]) == 1
    assert "no Dask scheduler at tcp://127.0.0.1:9" in capsys.readouterr().err
    assert main([*command, "--workers", "0"]) == 1
    assert "workers must be a whole number in 1..1000" in capsys.readouterr().err


CTRL_C = """
import os, signal, subprocess
from bdcourse import cluster
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with cluster._undisturbed():
        started = subprocess.Popen(["sleep", "60"])
        for pid in (started.pid, os.getpid()):
            os.kill(pid, signal.SIGINT)
        print("inside", started.poll())
except KeyboardInterrupt:
    print("after", started.poll())
started.terminate()
"""


def test_ctrl_c_waits_for_workers_to_start_and_never_reaches_them():
    # By itself: threads of another cluster would take the signal at any time.
    run = [sys.executable, "-c", CTRL_C]
    found = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert found.stdout == "inside None\nafter None\n", found.stderr


def test_a_twin_that_guesses_ends_a_dealt_run(three, tmp_path):
    small = {
        "scales": [{"width": 4, "epochs": 0.2}],
        "scheduler": three.scheduler_address,
    }
    with pytest.raises(bench.AtChance, match="the twin is at chance"):
        grid(tmp_path / "r.json", **small)
    assert not (tmp_path / "r.json").exists()


def test_the_first_row_of_a_cell_counts(tmp_path):
    cell = {"attack": "none", "defense": "none", "epochs": 12}
    first = cluster.keep(tmp_path / "c", cell | {"acc": 0.5})
    again = cluster.keep(tmp_path / "c", cell | {"acc": 0.6, "epochs": 12.0})
    assert first["acc"] == again["acc"] == 0.5
    assert cluster.stored(tmp_path / "c", cell)["acc"] == 0.5
    failed = cluster.keep(tmp_path / "c", cell | {"defense": "clp", "error": "x"})
    assert cluster.stored(tmp_path / "c", failed) is None
    results = tables.Results(tmp_path / "c.json")
    results.add(again)
    (tmp_path / "c" / "half.json").write_text("{")  # a disk was full
    cluster.forget(tmp_path / "c", results)
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["half.json"]


def test_rows_that_a_dead_run_left_are_taken_up(tmp_path, monkeypatch):
    def run():
        return bench.run_zoo(
            tmp_path / "r.json", ["benign-w8"], ["none", "spy"], only=["*/*"]
        )

    calls = []
    plans = {"none": PLANS["none"], "spy": Plan(lambda case: calls.append(1))}
    monkeypatch.setattr(bench, "PLANS", plans)
    run()  # the spy returns nothing, which is an error and is tried again
    rows = run().rows
    assert len(calls) == 2 and "error" in rows[1] and len(rows) == 2
    left = {k: v for k, v in rows[1].items() if k != "error"}
    left |= {"acc": 0.25, "asr": None, "ra": None, "pruned": 0}
    cluster.keep(tmp_path / "r.json.cells", left)
    rows = run().rows
    assert len(calls) == 2 and rows[1]["acc"] == 0.25 and len(rows) == 2
    assert not (tmp_path / "r.json.cells").exists()


def test_two_runs_cannot_write_one_file(tmp_path):
    results = tables.Results(tmp_path / "r.json")
    with results.owned():
        with pytest.raises(RuntimeError, match="another run is writing"):
            with tables.Results(tmp_path / "r.json").owned():
                pass
    with tables.Results(tmp_path / "r.json").owned() as again:
        assert again.rows == []
    assert list(tmp_path.iterdir()) == []


def test_jobs_part_by_the_work_that_they_share():
    names = tuple(PLANS)
    subject = bench.Subject("signs", bench.recipe_for("signs"))
    parts = bench.Job(subject, {}, names).apart()
    assert sorted(n for p in parts for n in p.names) == sorted(names)
    of = {n: p.names for p in parts for n in p.names}
    masks = ("anp", "anp, 3 points", "anp, 10 points", "anp (oracle)")
    assert of["anp"] == (*masks, "anp, 10 points, random channels")
    guesses = ("linf", "linf, all layers", "linf, random channels", "nc unlearning")
    assert of["linf"] == guesses and of["fmp, no maps"] == ("fmp, no maps",)
    assert "mnp, random channels" in of["mnp, soft"]
    assert len({p.identity() for p in parts}) == len(parts)


def test_a_cell_file_cut_short_is_replaced(tmp_path):
    cell = {"attack": "none", "defense": "none"}
    first = cluster.keep(tmp_path / "c", cell | {"acc": 0.5})
    (path,) = (tmp_path / "c").iterdir()
    path.write_text("{")
    again = cluster.keep(tmp_path / "c", cell | {"acc": 0.6})
    assert first["acc"] == 0.5 and again["acc"] == 0.6
    assert cluster.stored(tmp_path / "c", cell)["acc"] == 0.6
