"""Rows on disk: each cell once, and no file half written."""

import json
import os
from pathlib import Path

import pytest

from bdcourse import checkpoint, data
from bdcourse.__main__ import main
from bdcourse.bench import cluster, recipes
from bdcourse.bench import run as bench
from bdcourse.bench.results import Results, identity
from bdcourse.data import Splits
from bdcourse.report import tables
from grids import a_row, blank
from helpers import message

pytestmark = pytest.mark.usefixtures("small")


def test_rows_from_another_machine_count_as_done(tmp_path):
    """Signs are drawn anew on each machine, which may round a pixel differently."""
    cell = {"data": "signs", "digest": "1", "n_train": 5700, "defense": "none"}
    assert identity(cell) == identity(cell | {"digest": "2"})
    assert identity(cell) != identity(cell | {"n_train": 216})
    photos = cell | {"data": "cifar10"}
    assert identity(photos) != identity(photos | {"digest": "2"})


@pytest.mark.parametrize("text", ['{"rows": 3}', '{"rows": [3]}', "[]", '{"rows": ['])
def test_other_json_is_no_table(text, tmp_path, capsys):
    (tmp_path / "r.json").write_text(text)
    command = ["bench", "--out", str(tmp_path / "r.json"), "--zoo", "benign-w8"]
    assert main(command) == 1
    assert "is not a table of results" in capsys.readouterr().err
    assert (tmp_path / "r.json").read_text() == text


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
