"""Bad requests to bench, recipes, plans, looks and tables: an answer or one sentence.

Nothing is drawn, read or trained here: what passes the doors is not carried out.
"""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch

from bdcourse.__main__ import main
from bdcourse.attacks import ATTACKS, BadNets
from bdcourse.bench import cells, cluster, plans, plugins, recipes
from bdcourse.bench import measures as looks
from bdcourse.bench import run as bench
from bdcourse.bench.results import Results
from bdcourse.data import Splits
from bdcourse.report import tables
from bdcourse.train import Augment
from helpers import ReadsPixel, random_images
from sweep import NUMBERS, THINGS, WHOLE, refusal

ANY = (*THINGS, *WHOLE, *NUMBERS, "", "\0", ["nope"], [None], [[]], {1: 2}, (math.nan,))


@pytest.fixture(autouse=True)
def nothing_is_done(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "_run", lambda *request: Results(request[1]))
    monkeypatch.setattr(recipes, "_new", lambda *about: about)


def swept(call, good: dict, bad=ANY, only=()) -> int:
    """How many calls with one bad argument were refused."""
    call(**good)
    refused = 0
    for name in only or good:
        for value in bad:
            try:
                text = refusal(lambda name=name, v=value: call(**good | {name: v}))
            except AssertionError as e:
                raise AssertionError(f"{name}={value!r}: {e}") from e
            refused += text is not None
    return refused


def test_run_and_run_zoo_refuse_before_any_work():
    good = {
        "source": "signs",
        "out": "r.json",
        "recipe": recipes.SIGNS,
        "seeds": [0],
        "attacks": ["BadNets"],
        "scales": [{}],
        "clean": 0.05,
        "n": 240,
        "n_test": 100,
        "size": 32,
        "device": "cpu",
        "keep": "runs",
        "options": {},
        "budgets": [5],
        "defenses": ["none"],
        "draws": [0],
        "sharp": False,
        "only": ["*/*"],
        "plugins": [],
        "workers": 1,
        "scheduler": None,
        "threads": 1,
        "dashboard": False,
        "tls_ca": None,
        "tls_cert": None,
        "tls_key": None,
    }
    assert swept(bench.run, good) > 400
    zoo = (
        "out",
        "defenses",
        "budgets",
        "draws",
        "sharp",
        "device",
        "only",
        "plugins",
        "workers",
        "scheduler",
        "threads",
        "dashboard",
        "tls_ca",
        "tls_cert",
        "tls_key",
    )
    zoo = {k: good[k] for k in zoo} | {"names": ["badnets"]}
    assert swept(bench.run_zoo, zoo) > 200
    where = ("workers", "scheduler", "threads", "dashboard", "tls_ca", "tls_cert", "tls_key")
    assert swept(cluster.placed, {k: good[k] for k in where}) > 100
    for scale in ({"width": v} for v in ANY):
        refusal(lambda scale=scale: bench.run("signs", "r.json", scales=[scale]))


@pytest.mark.parametrize("name", [f.name for f in fields(recipes.Recipe)])
def test_a_recipe_refuses_what_would_fail_in_training(name):
    assert swept(recipes.Recipe, {name: getattr(recipes.SIGNS, name)}) > 10
    for value in ANY:
        kept = refusal(lambda v=value: recipes.Recipe(**{name: v})) is None
        number = isinstance(value, float) and name not in ("stamp", "model", "aware")
        assert not (kept and number) or math.isfinite(value)


def test_options_of_attacks_and_victims():
    images = random_images()
    parts = Splits(images, images, images, images)
    good = {
        "parts": parts,
        "attack": "BadNets",
        "recipe": recipes.SIGNS,
        "seed": 0,
        "data": "signs",
        "keep": "runs",
    }
    assert swept(recipes.train_victim, good) > 100
    split = {"recipe": recipes.SIGNS, "name": "LF", "options": {"LF": {"rate": 0.1}}}
    assert swept(recipes.split_options, split) > 60
    for name in ATTACKS:
        for given in (*ANY, {"craft": 3}, {"recipe": {"x": 1}}, {"craft": {"x": 1}}):
            asked = {"recipe": recipes.SIGNS, "name": name, "options": {name: given}}
            refusal(lambda asked=asked: recipes.split_options(**asked))
    assert swept(recipes.attack_class, {"name": "SIG"}) > 20
    assert swept(recipes.suited, {"recipe": recipes.SIGNS, "n": 5}, only=("n",)) > 5
    for value in ANY:
        refusal(lambda v=value: recipes.recipe_for(v))
        refusal(lambda v=value: cells.environment(v))
        refusal(lambda v=value: plans.defaults(v))
        refusal(lambda v=value: plans.notes(v))
        assert refusal(lambda v=value: plugins.load_plugin(v))


def test_cases_and_looks():
    model, images = ReadsPixel(3), random_images()
    case = {
        "model": model,
        "clean": images,
        "held": images,
        "augment": Augment(0),
        "seed": 0,
        "attack": BadNets(),
    }
    assert swept(plans.Case, case) > 60
    plan = {
        "name": "mine",
        "defense": lambda case: None,
        "settings": {},
        "kind": "method",
        "needs": ("clean",),
        "tasks": ("images",),
    }
    assert swept(plans.Plan, plan) > 80
    given = {
        "plan": "none",
        "model": model,
        "clean": images,
        "held": images,
        "attack": BadNets(),
        "augment": Augment(0),
        "seed": 0,
    }
    assert swept(lambda **how: plans.repair(**how), given) > 80
    for value in (*THINGS, torch.zeros(2, 3, 8, 8), bench):
        for call in (
            lambda v: looks.sharpness(v, images),
            lambda v: looks.sharpness(model, v),
            lambda v: looks.sharpness_of(v, images),
            lambda v: looks.unseen(v),
            lambda v: looks.sweep_curve(v, images, None),
            lambda v: looks.sweep_curve(model, v, None),
            lambda v: looks.watch(v, images, images, images, None),
            lambda v: looks.watch(model, v, images, images, None),
            lambda v: looks.watch(model, images, images, v, None),
        ):
            assert refusal(lambda call=call, v=value: call(v)), value
    assert "seed" in refusal(lambda: looks.sharpness(model, images, 0.5))


def test_tables_are_read_or_refused(tmp_path):
    path = tmp_path / "r.json"
    for text in (
        "",
        "[]",
        "3",
        '{"rows": 3}',
        '{"rows": [3]}',
        '{"rows": "abc"}',
        '{"rows": {"a": 1}}',
        "\ufeff{}",
        "[" * 9000,
        '{"rows": [[]]}',
        '{"rows": [{"digest": 1, "options": [1]}]}',
    ):
        path.write_text(text)
        refusal(lambda: Results(path))
    path.write_bytes(b"\xff\xfe\x00")
    assert "it is not text" in refusal(lambda: Results(path))
    assert "cannot be read" in refusal(lambda: Results(tmp_path))
    for value in ANY:
        refusal(lambda v=value: Results(v))
    rows = tables.results("signs")
    assert "did you mean 'defense'" in refusal(lambda: rows.select(defence="none"))
    assert rows.select(attack="BadNets", budget=None)


WORDS = ("", "x", "-1", "nan", "1e999", "\0", "é", "--zoo", "[]")
FLAGS = {
    "bench": (
        "--out",
        "--data",
        "--options",
        "--only",
        "--n",
        "--size",
        "--lr",
        "--seeds",
        "--width",
        "--defenses",
        "--workers",
        "--plugin",
        "--budget",
        "--keep",
        "--attacks",
        "--epochs",
        "--tls-ca",
        "--scheduler",
        "--nope",
    ),
    "table": ("--out", "--kind", "--where", "--defenses"),
    "labs": (),
    "zoo": ("--only",),
    "labs student": ("--only",),
    "labs links": ("--branch",),
    "": ("--out",),
}


@pytest.mark.parametrize("command", FLAGS)
def test_nonsense_on_the_command_line_is_one_sentence(command, capsys, monkeypatch):
    monkeypatch.setattr("bdcourse.bench.zoo.remake", lambda **a: 0)
    monkeypatch.setattr("bdcourse.teach.labs.student", lambda *a: 0)
    asked = [[w] for w in WORDS]
    asked += [["--out", "r.json", f, w] for f in FLAGS[command] for w in WORDS]
    for words in asked:
        status = None
        try:
            status = main([*command.split(), *words])
        except SystemExit as e:
            status = e.code
        except Exception as e:
            raise AssertionError(f"{command} {words}: {type(e).__name__}: {e}") from e
        err = capsys.readouterr().err
        assert status in (0, 1, 2), words
        if status:
            assert err.startswith("error: ") and err.count("\n") == 1, (words, err)
