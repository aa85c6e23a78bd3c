"""Tables of other tasks than images: `--task video`, its own recipe and attacks, its rows."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from bdcourse.__main__ import main
from bdcourse.bench import case, recipes
from bdcourse.bench import run as bench
from bdcourse.bench.plans import PLANS
from bdcourse.bench.recipes import Recipe, recipe_for
from bdcourse.bench.results import ACROSS, DEFENSES
from bdcourse.data import BUILT_IN
from bdcourse.defenses import FIP_SHARES
from bdcourse.report import tables
from bdcourse.report.render import table
from bdcourse.task import USUAL
from bdcourse.tasks.video import CLIPS
from grids import RUN, untrained
from helpers import message

pytestmark = pytest.mark.usefixtures("small")
FEW = ["--n", "80", "--n-test", "24", "--width", "2", "--epochs", "0.5", "--clean", "0.2"]


def test_what_a_room_says_is_usual_can_be_trained():
    for name, usual in USUAL.items():
        assert usual.data in BUILT_IN and usual.attacks
        own = Recipe(**usual.recipe)
        assert name == "images" or recipe_for(usual.data) == own
        for attack in usual.attacks:
            assert recipes.attack_class(attack).task.name == name
    clips = recipe_for("clips")
    assert (clips.model, clips.optimizer, clips.lr) == ("conv3d", "adamw", 5e-3)
    assert recipe_for("clips-hard") == clips
    assert recipe_for("signs") == recipes.SIGNS and recipe_for("mine") == Recipe()
    assert CLIPS.augmentation(clips.pad, bool(clips.flip)).pad == clips.pad


def test_entries_that_came_later_name_no_old_row():
    assert not {"optimizer", "clip"} & set(recipes.SIGNS.settings())
    assert recipe_for("clips").settings()["optimizer"] == "adamw"
    for wrong in ({"optimizer": "adam"}, {"clip": 0}, {"model": "conv2d"}):
        with pytest.raises(ValueError, match=next(iter(wrong))) as e:
            Recipe(**wrong)
        message(e)


def test_a_task_is_measured_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(case, "PASSES", 2)  # four steps of FIP's loop instead of 160
    out = tmp_path / "r.json"
    wanted = ["none", "fine-tuning, adamw", "fip, eta chosen", "fip, eta chosen, random direction"]
    command = ["bench", "--task", "video", *FEW, "--out", str(out)]
    command += ["--keep", str(tmp_path / "keep"), "--defenses", *wanted, "clp, u = 3", "anp"]
    assert main([*command, "--only", "ClipPatch/*"]) == 0
    rows = {r["defense"]: r for r in json.loads(out.read_text())["rows"]}
    assert set(rows) == {*wanted, "clp, u = 3", "anp"}
    for r in rows.values():
        assert r["task"] == "video" and r["data"] == "clips" and r["model"] == "conv3d"
        assert r["optimizer"] == "adamw" and r["attack"] == "ClipPatch" and "acc" in r, r
        assert None not in (r["asr"], r["ra"], r["seconds"]) and r["n_triggered"] == 21
    chosen, pushed = rows["fip, eta chosen"], rows["fip, eta chosen, random direction"]
    assert [rung["share"] for rung in chosen["ladder"]] == list(FIP_SHARES)
    assert chosen["eta_f"] in [rung["eta_f"] for rung in chosen["ladder"]]
    assert chosen["fisher"] > 0 and chosen["how"]["eta_f"] == "chosen"
    assert chosen["steps"] == pushed["steps"] == 1  # two passes over 13 clips
    before = out.read_bytes()
    capsys.readouterr()
    assert main([*command, "--only", "ClipPatch/*"]) == 0
    assert out.read_bytes() == before and "6 of 6 cells are there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--task", "sound"], "unknown task 'sound'; choose from images"),
        (["--task", "video", "--data", "cifar10"], "leave one of the two out"),
        (["--data", "clips", "--attacks", "BadNets"], "BadNets attacks images, but clips holds"),
        (["--data", "signs", "--attacks", "ClipPatch"], "attacks clips, but signs holds images"),
        (["--zoo", "badnets", "--task", "video"], "so --task has no meaning beside it"),
        (["--task", "video", "--options", '{"ClipPatch": {"wolk": 1}}'], "no option 'wolk'"),
    ],
)
def test_what_does_not_belong_together_is_said_before_any_work(
    wrong, says, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(bench, "_run", untrained)
    assert main(["bench", "--out", str(tmp_path / "r.json"), *wrong]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and says in err and err.count("\n") == 1


def test_attacks_are_those_of_the_task(monkeypatch):
    seen = {}
    monkeypatch.setattr(bench, "_run", lambda victims, *_: seen.update(v=victims))
    for given, clips in (
        (None, [None, "ClipPatch"]),
        (["all"], [None, "ClipPatch", "ClipBlended", "ClipUniversal"]),
        (["clipblended"], [None, "ClipBlended"]),
    ):
        bench.run("clips", "r.json", attacks=given)
        assert seen["v"].of("clips") == clips
    bench.run("signs", "r.json")
    assert seen["v"].of("signs") == seen["v"].of("some/folder") == [None, "BadNets", "Blended"]
    assert RUN[:3] == ["bench", "--data", "signs"]


def test_what_runs_on_every_task_has_a_name():
    assert bench._wanted(["across"]) == list(ACROSS) and set(ACROSS) <= set(PLANS)
    assert not set(ACROSS) & {"fip", "fast fip"}, "whose weight is for images"
    assert bench._wanted([]) == [*DEFENSES, "clp sweep"]


def test_one_table_of_several_tasks(tmp_path):
    plain = {"seed": 0, "defense": "none", "weak": "", "pruned": 0, "clean_used": 0}
    plain |= {"seconds": 0.0, "digest": "1", "asr": None, "ra": None}
    rows = [
        plain | {"data": "signs", "attack": "none", "acc": 0.99},  # of before there were tasks
        plain | {"data": "clips", "task": "video", "attack": "none", "acc": 0.9},
        plain | {"data": "signs", "attack": "BadNets", "acc": 0.98, "asr": 1.0, "ra": 0.0},
        plain
        | {"data": "x", "task": "boxes", "attack": "A", "acc": 0.7, "asr": 0.9, "ra": 0.1}
        | {"headline": "map50", "map50": 0.7},
    ]
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"rows": rows}))
    lines = tables.grid(str(path), ["none"]).body
    assert [line[0] for line in lines] == [
        *("(benign twin) (images)", "(benign twin) (video)", "BadNets", "A")
    ]  # and no mean of accuracy and average precision
    with pytest.raises(ValueError, match="rows of several tasks, boxes and images"):
        tables.summary(str(path), ["none"])
    assert lines[3][1] == "70.0 / 90.0 / 10.0"
    assert "BadNets" in repr(table(str(path), "rows"))
    path.write_text(json.dumps({"rows": rows[::2]}))
    assert tables.grid(str(path), ["none"]).body[0][0] == "(benign twin)"


def test_a_headline_has_its_own_name_in_the_scores():
    from bdcourse.metrics import Scores

    assert str(Scores(0.5, headline="map50", n_clean=3)) == "MAP50 50.0 % (n=3)"
    assert Scores(0.5, headline="map50").dict()["headline"] == "map50"
    assert "headline" not in Scores(0.5).dict() and asdict(Scores(0.5))["headline"] == "acc"
