"""Tables, reports and widgets refuse a bad argument in one sentence of ours."""

import json
from functools import cache, partial

import pytest
import torch

from bdcourse import data
from bdcourse.bench.results import Results, identity
from bdcourse.report import claims, render, tables
from bdcourse.report.show import Table
from bdcourse.teach import widgets
from sweep import NUMBERS, THINGS, WHOLE, refusal

WORDS = (None, 3, 1.5, "", "cuts", b"cut", [3], [None], ["cuts"], {"cut": 1}, object())
LIST = (None, 3, "cut", b"cut", ["cuts"], [3], [None], torch.zeros(2), object())


def rows() -> list[dict]:
    found = []
    for who, weak in (("none", ""), ("A", ""), ("B", ""), ("W", "ASR 50 % is low")):
        for d, der in (("none", 0.5), ("cut", 0.9), ("burn", 0.7)):
            asr = None if who == "none" else 1.4 - der - 0.1 * (who == "B")
            row = {
                "attack": who,
                "defense": d,
                "seed": 0,
                "weak": weak,
                "acc": 0.9,
                "asr": asr,
                "ra": asr and 1 - asr,
                "pruned": 1,
                "clean_used": 9,
                "seconds": 1.5,
                "budget": 7,
                "epochs": 2.0,
                "lr": 0.1,
            }
            found.append(row if who == "none" else row | {"der": der})
        point = {"acc": 0.9, "asr": 0.5, "ra": 0.4}
        found.append(
            {
                "attack": who,
                "defense": "clp sweep",
                "seed": 0,
                "weak": weak,
                "curve": [point | {"u": u} for u in (1.0, 2.0)],
            }
        )
    return found


@pytest.fixture
def hand(tmp_path, monkeypatch):
    (tmp_path / "hand.json").write_text(json.dumps({"rows": rows()}))
    (tmp_path / "published.json").write_text('{"rows": []}')
    monkeypatch.setattr("bdcourse.bench.results.RESULTS", tmp_path)
    return tmp_path


def swept(fn, good: dict, bad: dict) -> None:
    """One bad argument at a time; the good call goes through."""
    assert refusal(partial(fn, **good)) is None
    for name, values in bad.items():
        for value in values:
            refusal(partial(fn, **good | {name: value}))


@pytest.mark.parametrize("fn", [tables.grid, tables.summary, tables.scores, tables.ranking])
def test_tables_of_defenses(hand, fn):
    good = {"name": "hand", "defenses": ["none", "cut"], "budget": 7}
    bad = {
        "name": WORDS,
        "defenses": LIST + ([], ()),
        "budget": NUMBERS,
        "victim": (None, "x"),
        "defence": ("cut",),
        "attack": THINGS,
    }
    if fn is tables.ranking:
        bad |= {"resamples": WHOLE[:5] + WHOLE[6:], "against": WORDS}
    if fn in (tables.grid, tables.scores):
        bad |= {"who": LIST[1:]}
    swept(fn, good, bad)
    for name in ("defence", "budgets"):
        assert "did you mean" in refusal(partial(fn, **good, **{name: 7}))
    assert "did you mean 'cut'" in refusal(partial(fn, "hand", ["cuts"]))
    assert "did you mean 'hand'" in refusal(partial(fn, "hans", ["cut"]))


@pytest.mark.slow
def test_other_tables(hand):
    swept(
        tables.by_budget,
        {"name": "hand", "defenses": ["cut"], "budgets": [7]},
        {"name": WORDS, "defenses": LIST, "budgets": (3, "7", None, ["7"], [1.5], [[7]], [True])},
    )
    swept(
        tables.standard_table,
        {"name": "hand", "defenses": ["cut"]},
        {"name": WORDS, "defenses": LIST},
    )
    renamed = [
        r | {"attack": {"A": "BadNets"}.get(r["attack"], "none"), "seed": i}
        for i, r in enumerate(rows())
        if r["attack"] in ("none", "A")
    ]
    (hand / "real.json").write_text(json.dumps({"rows": renamed}))
    swept(
        tables.attack_table,
        {"name": "real", "attacks": ["BadNets"]},
        {"name": WORDS, "attacks": LIST},
    )
    assert refusal(lambda: tables.attack_table("hand")) is None
    lines = tables.ranking("hand", ["none", "cut"])
    swept(tables.ranking_table, {"lines": lines}, {"lines": (*THINGS, [{}], [3], lines[:1] + [{}])})
    swept(
        render.ranking_figure,
        {"lines": lines, "marks": {"idle": 0.5}},
        {
            "lines": (*THINGS, [{}]),
            "highlight": LIST,
            "marks": ({"a": "x"}, {"a": 50}, {"a": float("nan")}),
        },
    )


def test_rows(hand):
    (row,) = tables.results("hand").select(attack="A", defense="cut")
    swept(identity, {"row": row}, {"row": (*THINGS, [3], "abc")})
    swept(tables.table_row, {"rows": [row]}, {"rows": (*THINGS, [3], [{}], [[]])})
    for value in (*THINGS, [float("nan")], ["a"], [None], 5, [1j], torch.tensor(3.0)):
        refusal(lambda v=value: tables.mean(v))
    for value in ([], "12", [float("inf")]):
        assert refusal(lambda v=value: tables.mean(v))
    assert tables.mean([True, torch.tensor(0.0)]) == 0.5
    for value in THINGS[:5] + ([], [3], {"a": {}}):
        assert refusal(lambda v=value: Table(v))
    assert refusal(lambda: identity(row | {"options": {1j}}))


@pytest.mark.parametrize("value", [None, 3, b"x", [], object()])
def test_files_of_results(tmp_path, value):
    assert refusal(lambda: Results(value))
    r = Results(tmp_path / "r.json")
    for call in (r.add, r.get, r.done):
        assert refusal(partial(call, value))
    refusal(lambda: tables.results(value))


@pytest.mark.slow
def test_the_command(hand, monkeypatch):
    monkeypatch.chdir(hand)
    good = {"name": "hand", "where": ["budget=7"]}
    words = (
        "7",
        "=7",
        "budget",
        "budget=",
        "name=x",
        "kind=grid",
        "who=A",
        "self=1",
        "budgets=7",
        "budget=NaN",
        "draw=[1]",
        "seed={}",
    )
    swept(
        render.write,
        good,
        {
            "name": WORDS,
            "kind": WORDS,
            "format": WORDS,
            "defenses": LIST,
            "who": LIST[1:],
            "where": [[w] for w in words] + [["budget=7"] * 2, "a=1", 3],
            "out": ("nowhere/t.txt", str(hand)),
        },
    )
    for out in ("nowhere/t.txt", "nowhere/t.png", str(hand)):
        kind = {"format": "figure"} if out.endswith("png") else {}
        assert "--out" in refusal(partial(render.write, **good, **kind, out=out))
    assert "did you mean 'ranking'" in refusal(lambda: render.write("hand", kind="rank"))
    assert "did you mean 'latex'" in refusal(lambda: render.write("hand", format="latx"))
    for kind in render.KINDS:
        swept(
            render.table,
            {"name": "hand", "kind": kind},
            {"name": WORDS, "kind": WORDS, "defenses": LIST, "who": LIST[1:]},
        )
        swept(render.known, {"name": "hand", "kind": kind}, {"name": WORDS})
    for kind in render.KINDS[:3]:
        assert refusal(lambda k=kind: render.figure("hand", k)) is None
    for bad in (
        {"name": "x"},
        {"kind": "rows"},
        {"kind": 3},
        {"defenses": "cut"},
        {"who": ["Z"]},
        {"kind": "ranking", "highlight": ["Z"]},
    ):
        assert refusal(partial(render.figure, **{"name": "hand"} | bad))
    for value in (*THINGS[:3], [3], ["a"], ["=1"], "budget=7"):
        if value != []:
            assert refusal(lambda v=value: render.selection(v))


def test_reports():
    for value in (3, "", "cpl", b"clp", ["clp"], object()):
        assert refusal(lambda v=value: claims.findings(v))
        assert refusal(lambda v=value: claims.method_table(v))
    assert "did you mean 'clp'" in refusal(lambda: claims.method_table("cpl"))
    (claim,) = [
        c for c in tables.results("published-claims").rows if c["id"] == "clp-claim-data-free"
    ]
    read = cache(tables.results)
    assert refusal(lambda: claims.finding(claim, read)) is None
    for value in (None, 3, "x", [], {}):
        assert refusal(lambda v=value: claims.finding(v, read))
    for key in ("id", "ours", "rule", "published"):
        for value in (3, "x", [], {}):
            refusal(lambda k=key, v=value: claims.finding(claim | {k: v}, read))
        short = {k: v for k, v in claim.items() if k != key}
        refusal(lambda c=short: claims.finding(c, read))
    blow = claim | {"rule": claim["rule"] | {"kind": "blow"}}
    assert "did you mean 'below'" in refusal(lambda: claims.finding(blow, read))
    gone = claim | {"ours": claim["ours"] | {"select": {"defence": "none"}}}
    assert "did you mean 'defense'" in refusal(lambda: claims.finding(gone, read))


@pytest.mark.slow
def test_widgets(monkeypatch):
    monkeypatch.setattr("IPython.display.display", lambda *a: None)
    draw = "{}".format
    swept(
        widgets.slider,
        {"label": "u", "values": [1, 2], "draw": draw, "start": 2},
        {
            "label": THINGS,
            "values": (*THINGS, "ab", [[1]], [{}]),
            "draw": THINGS,
            "start": (0, "1", [1], float("nan")),
        },
    )
    swept(
        widgets.menus,
        {"choices": {"a": ["x"]}, "draw": lambda a: a},
        {
            "choices": (*THINGS, {3: ["x"]}, {"a": []}, {"a": "xy"}, {"a": 3}, {"a": [[]]}),
            "draw": THINGS,
        },
    )
    for bad in ({"values": []}, {"values": "ab"}, {"start": 5}, {"draw": None}):
        good = {"label": "u", "values": [1, 2], "draw": draw}
        assert refusal(partial(widgets.slider, **good | bad))
    assert refusal(lambda: widgets.menus({}, draw))
    assert refusal(lambda: widgets.menus({"a": []}, draw))
    parts = data.splits("signs")
    small = parts._replace(train=parts.train[:20], test=parts.test[:8])
    patch = torch.ones(1, 3, 3)
    for bad in (*THINGS, tuple(parts), parts._replace(test=parts.test[:0])):
        assert refusal(lambda p=bad: widgets.trial(p, patch, 1.0, 0.2))
        assert refusal(lambda p=bad: widgets.poison_bench(p, start=False))
    for bad in (*THINGS[:-1], torch.ones(3), torch.ones(1, 0, 0), 7 * patch):
        assert refusal(lambda p=bad: widgets.trial(small, p, 1.0, 0.2))
    for bad in (None, "3", 1.5, -1, 0, 2, 32, 10**12, True, [1]):
        assert refusal(lambda s=bad: widgets.poison_bench(small, s, False))
    for call in (
        lambda: widgets.poison_bench(small, 4, "no"),
        lambda: widgets.poison_bench(small, 4, False, epoch=1),
        lambda: widgets.trial(small, patch, 1.0, 0.2, epoch=1),
    ):
        assert refusal(call)
    assert refusal(lambda: widgets.poison_bench(small, 4, False)) is None
