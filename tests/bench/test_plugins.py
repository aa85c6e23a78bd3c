"""Plans and attacks from a user's file: found everywhere, and part of a row's identity."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bdcourse import victims
from bdcourse.__main__ import main
from bdcourse.attacks import ATTACKS
from bdcourse.bench import cells, plugins, recipes
from bdcourse.bench import run as bench
from bdcourse.bench.plans import PLANS
from bdcourse.bench.results import Results, identity
from helpers import message

GUIDE = Path(__file__).parents[2] / "book/measuring.md"
EXAMPLE = re.search(r"```python\n(# my_plans\.py\n.*?)```", GUIDE.read_text(), re.S)[1]
PLAN, ATTACK = "fine-tuning, short", "Frame"
SHIFT = """
import bdcourse as bd

def shift(case):
    for w in case.model.parameters():
        w.data.zero_()
    return bd.defenses.Purified(case.model)

plans = [bd.Plan("zeros", shift, {"by": BY}, needs=())]
"""


@pytest.fixture(autouse=True)
def forgotten(drawn, monkeypatch):
    """What a test has added is gone after it."""
    monkeypatch.setenv("BDCOURSE_CACHE", str(drawn))
    yield
    for one in [*plugins._loaded.values()]:
        plugins._forget(one)


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "my_plans.py"
    path.write_text(EXAMPLE)
    return path


@pytest.fixture
def shift(tmp_path):
    path = tmp_path / "shift.py"
    path.write_text(SHIFT.replace("BY", "0"))
    return path


def test_the_example_of_the_guide_runs_in_worker_processes(mine, tmp_path):
    pytest.importorskip("distributed")
    pytest.importorskip("cryptography")
    assert len(EXAMPLE.splitlines()) <= 20
    out = tmp_path / "r.json"
    command = [
        *("bench", "--out", str(out), "--keep", str(tmp_path / "runs"), "--plugin", str(mine)),
        *("--attacks", ATTACK, "--defenses", "none", PLAN),
        *("--n", "240", "--n-test", "300", "--clean", "0.1", "--width", "4", "--epochs", "10"),
    ]
    assert main([*command, "--workers", "2"]) == 0
    rows = Results(out).rows
    assert len(rows) == 4 and not any("error" in r or "refused" in r for r in rows)
    digest = plugins.load_plugin(mine).digest
    told = {(r["attack"], r["defense"]): r.get("plugins") for r in rows}
    assert told == {
        ("none", "none"): None,
        ("none", PLAN): {PLAN: digest},
        (ATTACK, "none"): {ATTACK: digest},
        (ATTACK, PLAN): {ATTACK: digest, PLAN: digest},
    }
    assert all(r["asr"] > 0.5 for r in rows if r["attack"] == ATTACK)
    # In this process the same rows are there, and the victims are read.
    before = out.read_bytes()
    assert main(command) == 0 and out.read_bytes() == before
    out.unlink()
    torch.set_num_threads(1)
    assert main(command) == 0
    there = {identity(r): r for r in rows}
    for r in Results(out).rows:
        assert abs(r["acc"] - there[identity(r)]["acc"]) < 0.1
    (file,) = (tmp_path / "runs").glob(f"*-{ATTACK}-*.json")
    assert type(victims.load(file.with_suffix("")).attack) is ATTACKS[ATTACK]


def test_changed_code_is_measured_anew_and_harms_no_other_cell(shift, tmp_path, capsys):
    out = tmp_path / "r.json"

    def run():
        names = ["zeros", "none"]
        return bench.run_zoo(out, ["benign-w8"], names, plugins=[shift], budgets=[20]).rows

    first, plain = run()
    assert first["how"] == {"by": 0} and first["acc"] < 0.2 < 0.9 < plain["acc"]
    assert "plugins" not in plain
    assert run() == [first, plain]
    shift.write_text(SHIFT.replace("BY", "1"))
    rows = run()
    assert rows[:2] == [first, plain] and len(rows) == 3 and rows[2]["how"] == {"by": 1}
    assert rows[2]["plugins"] != first["plugins"]


def test_rows_without_plugins_are_the_cells_that_they_were():
    subject = cells.Subject("signs", recipes.SIGNS, "BadNets", n=100, clean=0.1)
    added = plugins.Plugin("/x.py", "0" * 16, (PLAN,), (ATTACK,))
    with_it = replace(subject, plugins=(added,))
    assert with_it.key() == subject.key()
    job, other = (cells.Job(s, s.key(), ("none", PLAN)) for s in (subject, with_it))
    assert job.cell("none") == other.cell("none")
    assert identity(job.cell(PLAN)) != identity(other.cell(PLAN))
    assert "plugins" in replace(with_it, attack=ATTACK).key()
    assert "plugins" not in replace(with_it, attack=ATTACK).twin().key()


def test_changed_code_of_an_attack_makes_another_victim(mine, tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(recipes, "_new", lambda *about: names.append(about[5].name))
    parts = cells.Subject("signs", recipes.SIGNS, n=100, clean=0.1).parts()

    def named():
        plugins.load_plugin(mine)
        for attack in (ATTACK, ATTACKS[ATTACK]()):
            recipes.train_victim(parts, attack, recipes.SIGNS, 0, "signs", tmp_path)

    named()
    named()
    mine.write_text(EXAMPLE + "\n# changed\n")
    named()
    assert names[:2] == names[2:4] and not {*names[:2]} & {*names[4:]}


def test_a_worker_that_finds_other_code_says_so(shift):
    added = plugins.load_plugin(shift)
    shift.write_text(SHIFT.replace("BY", "1"))
    subject = cells.Subject("signs", recipes.SIGNS, n=100, clean=0.1, plugins=(added,))
    (row,) = cells.measure(cells.Job(subject, subject.key(), ("zeros",)))
    assert "holds other code here than where the run was started" in row["error"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 3", "has no Plan and no class of Attack at its top level"),
        ("import nothing_of_this_name", "cannot be run (ModuleNotFoundError in line 1"),
        ("\n\n1 / 0", "cannot be run (ZeroDivisionError in line 3: division by zero)"),
        ("def f(:", "cannot be run (SyntaxError in line 1"),
        ("import bdcourse as bd\np = bd.Plan('FIP', print)", "there is a plan 'FIP' already"),
        (
            "import bdcourse as bd\nclass Badnets(bd.attacks.Attack): pass",
            "there is an attack 'Badnets' already",
        ),
        ("import bdcourse as bd\np = [bd.Plan('a', print)] * 2, bd.Plan('b', 3)", "a function"),
    ],
)
def test_a_file_that_will_not_do_is_refused_before_any_work(text, says, tmp_path, capsys):
    path, before = tmp_path / "mine.py", ([*PLANS], [*ATTACKS])
    path.write_text(text)
    with pytest.raises(ValueError) as e:
        plugins.load_plugin(path)
    assert says in message(e) and str(path) in message(e) or path.name in message(e)
    assert ([*PLANS], [*ATTACKS]) == before
    assert main(["bench", "--out", str(tmp_path / "r.json"), "--plugin", str(path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "r.json").exists()


def test_the_list_of_names_holds_what_a_plugin_adds(mine, capsys):
    with pytest.raises(SystemExit) as e:
        main(["bench", "--plugin", str(mine), "--list"])
    listed = capsys.readouterr().out.splitlines()
    assert e.value.code == 0 and f"  {PLAN}" in listed and f"  {ATTACK}" in listed


def test_a_victim_of_a_plugin_needs_its_file(mine, tmp_path):
    """The options of an own attack are checked as those of the course's are."""
    plugins.load_plugin(mine)
    with pytest.raises(ValueError, match=f"{ATTACK} has no option 'sise'"):
        recipes.split_options(recipes.SIGNS, ATTACK, {ATTACK: {"sise": 3}})
    assert json.dumps(PLANS[PLAN].settings)
