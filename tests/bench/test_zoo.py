"""The victims that ship with the course: they load, pass the gate, and can be defended."""

import json

import pytest
import torch

from bdcourse import data, victims
from bdcourse.__main__ import main
from bdcourse.bench.plans import BOTH, PLANS, Plan
from bdcourse.bench.zoo import CLIPS, ENTRIES, chosen
from bdcourse.defenses import Purified

pytestmark = pytest.mark.usefixtures("small")


@pytest.mark.parametrize("flag", ["--seeds", "--n", "--weight-decay", "--width"])
def test_the_zoo_takes_no_training(flag, tmp_path, capsys):
    out = tmp_path / "r.json"
    assert main(["bench", "--zoo", "badnets", "--out", str(out), flag, "3"]) == 1
    assert f"so {flag} has no meaning" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("name", ENTRIES)
def test_the_zoo_holds_each_victim_and_it_passes_the_gate(name):
    entry = ENTRIES[name]
    victim = victims.zoo(name)
    assert victim.recipe["seed"] == 0 and victim.arch["width"] == entry.recipe.width
    weak = victim.weak(victims.zoo(entry.twin).scores)
    assert bool(weak) == bool(entry.weak), weak or "passes after all"
    assert (entry.attack or "NoneType") == type(victim.attack).__name__
    assert all(p.dtype == torch.float32 for p in victim.model.parameters())


@pytest.mark.parametrize("name", CLIPS)
def test_the_zoo_holds_victims_of_clips(name):
    entry, victim = CLIPS[name], victims.zoo(name)
    assert victim.recipe["data"] == entry.source == "clips" and victim.arch["name"] == "conv3d"
    assert victim.attack == entry.attack and not victim.weak(victims.zoo(entry.twin).scores)


def test_clips_are_no_victims_of_the_bench():
    with pytest.raises(ValueError, match="knows no 'clips-walking'"):
        chosen(["clips-walking"])
    assert list(chosen(["clips-walking"], ENTRIES | CLIPS)) == ["clips-walking"]


def test_an_unknown_zoo_name_lists_the_known():
    with pytest.raises(ValueError, match="benign"):
        victims.zoo("unicorn")


def test_zoo_claims_speak_up():
    import dataclasses

    from bdcourse.bench import zoo

    twin, victim = victims.zoo("benign"), victims.zoo("badnets")
    test = data.load("signs", "test", n=240)
    poor = dataclasses.replace(victim, scores=dataclasses.replace(victim.scores, acc=0.9))
    found = zoo.claims("badnets", poor, twin, test)
    assert len(found) == 2 and "below 0.97" in found[0] and "3 points" in found[1]
    as_blended = zoo.claims("blended", victim, twin, test)
    assert "removes the blended trigger" in " ".join(as_blended)


def test_the_zoo_can_be_defended_and_draws_differ(tmp_path, capsys, only):
    seen = []

    def spy(case):
        assert len(case.clean) == 80 and len(case.held) == 20 and case.attack is None
        seen.append((case.clean.digest(), case.held.digest(), case.seed))
        return Purified(case.model)

    def refuses(case):
        raise ValueError("there is nothing to prune.")

    how = {"steps": 3, "by": "acc"}
    only(PLANS["none"], Plan("spy", spy, how, needs=BOTH), Plan("refuses", refuses, how))
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
