"""Verdicts follow from rows and rules, and every claim's evidence is really there."""

import json
from collections import Counter

import nbformat
import pytest

from bdcourse.bench.plans import PLANS
from bdcourse.report import claims, tables
from helpers import ROOT

CLAIMS = tables.results("published-claims").rows


def case(tmp_path, monkeypatch, rows, **claim):
    """The answer to one claim about rows by hand; draws and weak victims included."""
    usual = {"attack": "A", "defense": "cut", "acc": 0.8, "asr": 0.05, "ra": 0.7, "weak": ""}
    rows = [usual | r for r in rows]
    (tmp_path / "hand.json").write_text(json.dumps({"rows": rows}))
    monkeypatch.setattr("bdcourse.bench.results.RESULTS", tmp_path)
    ours = {"file": "hand", "select": {"defense": "cut"}, "beside": []}
    usual = {
        "id": "x",
        "method": "clp",
        "published": {"asr": 0.1},
        "leaderboard": None,
        "ours": ours,
        "rule": {"key": "asr", "kind": "below", "bound": 0.1},
        "reason": "",
        "what": "",
        "where": "",
        "setting": "",
    }
    return claims.finding(usual | claim)


def test_a_verdict_follows_from_the_rule(tmp_path, monkeypatch):
    def verdict(asr, **claim):
        return case(tmp_path, monkeypatch, [{"asr": asr}], **claim).verdict

    assert verdict(0.05) == claims.WORKS and verdict(0.5) == claims.THERE
    assert verdict(0.08) == verdict(0.12) == claims.NEAR
    above = {"rule": {"key": "asr", "kind": "above", "bound": 0.1}}
    assert verdict(0.05, **above) == claims.HERE and verdict(0.5, **above) == claims.FAILS
    within = {"rule": {"key": "asr", "kind": "within", "bound": 0.1}}
    assert verdict(0.11, **within) == claims.AGREE
    assert verdict(0.3, **within) == claims.DIFFER
    board = within | {"published": None, "leaderboard": {"asr": 0.3}}
    assert verdict(0.3, **board) == claims.AGREE
    gate = {"rule": {"key": "asr", "kind": "above", "bound": 0.95}, "method": "attacks"}
    assert verdict(0.96, **gate) == claims.WORKS
    assert verdict(0.9, **gate) == claims.THERE
    dull = {"rule": {"key": "acc", "kind": "below", "bound": 0.1}}  # of no attack at all
    assert verdict(0.05, **dull) == claims.OTHER
    assert verdict(0.05, rule=None) == claims.APART
    lesson = {"notebook": "05_clp", "printed": []}
    assert verdict(0.05, rule=None, lesson=lesson) == claims.LESSON
    assert verdict(0.05, ours=None) == claims.MISSING
    assert verdict(0.05, ours=None, lesson=lesson) == claims.LESSON


def test_the_gap_stands_beside_a_verdict_however_large(tmp_path, monkeypatch):
    above = {"rule": {"key": "asr", "kind": "above", "bound": 0.1}}
    found = case(tmp_path, monkeypatch, [{"asr": 0.2}], published={"asr": 0.97}, **above)
    assert found.verdict == claims.FAILS and found.gap() == pytest.approx(-0.77)
    assert case(tmp_path, monkeypatch, [{}], published={"acc": 0.9}).gap() is None
    assert case(tmp_path, monkeypatch, [{}], rule=None).gap() is None
    assert case(tmp_path, monkeypatch, [{}], ours=None).gap() is None


def test_weak_victims_and_dear_repairs_are_set_apart(tmp_path, monkeypatch):
    weak = case(tmp_path, monkeypatch, [{"weak": "ASR 50 %"}])
    assert weak.verdict == claims.WEAK
    rows = [{}, {"defense": "none", "acc": 0.9, "asr": 1.0, "ra": 0.0}]
    ours = {"file": "hand", "select": {"defense": "cut"}, "beside": [{"defense": "none"}]}
    for drop, want in ((0.03, claims.DEARER), (0.06, claims.WORKS)):
        found = case(tmp_path, monkeypatch, rows, ours=ours, drop=drop)
        assert found.verdict == want
    assert found.ours() == "80.0 / 5.0 / 70.0 (none: 90.0 / 100.0 / 0.0)"
    assert found.reported() == "– / 10.0 / –"
    less = {"rule": {"key": "asr", "kind": "less", "of": 0}}
    assert case(tmp_path, monkeypatch, rows, ours=ours, **less).verdict == claims.SAME
    least = {"rule": {"key": "acc", "kind": "at least times", "of": 0, "bound": 2}}
    found = case(tmp_path, monkeypatch, rows, ours=ours, **least)
    assert found.verdict == claims.OTHER


def test_means_run_over_the_attacks_named_and_missing_rows_are_told(tmp_path, monkeypatch):
    rows = [{"asr": 0.1}, {"attack": "B", "asr": 0.3}, {"attack": "C", "asr": 0.9}]
    ours = {"file": "hand", "select": {"defense": "cut"}, "beside": [], "attacks": ["A", "B"]}
    found = case(tmp_path, monkeypatch, rows, ours=ours)
    assert found.value == pytest.approx(0.2) and len(found.rows) == 2
    ours = {"file": "hand", "select": {"defense": "gone"}, "beside": []}
    with pytest.raises(ValueError, match="claim x: there is no row with"):
        case(tmp_path, monkeypatch, rows, ours=ours)


def test_a_claim_that_says_too_little_or_an_unknown_rule_is_refused(tmp_path, monkeypatch):
    for wrong, says in (
        ({"rule": {"key": "asr", "kind": "blow"}}, "did you mean 'below'"),
        ({"rule": {"kind": "below"}}, "claim x, or a row"),
        ({"rule": {"key": "asr", "kind": "less", "of": 3}}, "claim x, or a row"),
        ({"ours": {"file": "hand"}}, "claim x, or a row .*'select'"),
        (
            {"ours": {"file": "hand", "select": {"defence": "cut"}, "beside": []}},
            "did you mean 'defense'",
        ),
    ):
        with pytest.raises(ValueError, match=says):
            case(tmp_path, monkeypatch, [{}], **wrong)
    for ask in (claims.findings, claims.method_table):
        with pytest.raises(ValueError, match="did you mean 'clp'"):
            ask("cpl")


def test_figures_read_well():
    assert claims._figures({"acc": 0.9, "asr": 0.012, "ra": None}) == "90.0 / 1.2 / –"
    assert claims._figures({"value": 20.8, "unit": "s"}) == "20.8 s"
    assert claims._figures({"value": 0.59, "unit": "share"}) == "59 %"
    ends = {"low": 0.192, "high": 0.6541}
    assert claims._figures(ends) == "from 19.2 % to 65.41 %"
    assert claims._figures(ends | {"unit": "times"}) == "from 0.192 to 0.6541"
    both = {"lambda_max": 573.8, "hessian_trace": 6625.8}
    assert claims._figures(both) == "top eigenvalue 573.8, trace 6,625.8"
    assert claims._figures({"claim": True}) == claims._figures(None) == ""


@pytest.mark.slow
def test_every_claim_is_answered_by_what_it_names():
    ids = [c["id"] for c in CLAIMS]
    assert len(ids) == len(set(ids)) > 300
    for c in CLAIMS:
        assert c["method"] in claims.METHODS and c["reason"] and c["where"]
        assert c["published"] or c["leaderboard"], c["id"]
        if c["ours"]:
            for key in (c["ours"]["select"], *c["ours"]["beside"]):
                assert key.get("defense", "none") in PLANS, c["id"]
    found = Counter(a.verdict for a in claims.findings())
    assert sum(found.values()) == len(ids) and set(found) <= set(claims.VERDICTS)
    assert found[claims.THERE] > 10  # an examiner that agrees with all is none


def test_a_rule_puts_the_source_on_the_side_where_its_own_figure_lies():
    for c in CLAIMS:
        rule, said = c["rule"], c["published"] or c["leaderboard"]
        if rule and rule["key"] == "asr" and said.get("asr") is not None:
            near = rule.get("bound", 0) + 0.02  # a source may call 11 % a repair
            assert rule["kind"] != "below" or said["asr"] < near, c["id"]
            if c["method"] != "attacks" and rule["kind"] == "above":
                assert rule["bound"] == tables.REMOVED <= said["asr"], c["id"]


def test_fifteen_headlines_have_a_figure_on_both_sides():
    found = claims.headlines()
    assert len(found) == len({a.claim["headline"] for a in found}) == 15
    assert all(a.gap() is not None for a in found)
    assert {a.claim["method"] for a in found} == {"linf", "clp", "fmp", "fip", "rivals"}


def test_what_lessons_are_quoted_for_stands_in_their_outputs():
    printed = {}
    for c in CLAIMS:
        if lesson := c.get("lesson"):
            name = lesson["notebook"]
            if name not in printed:
                path = ROOT / "notebooks" / f"{name}.ipynb"
                nb = nbformat.read(path, as_version=4)
                printed[name] = "".join(
                    "".join(o.get("text", "")) + str(o.get("data", {}))
                    for cell in nb.cells
                    if cell.cell_type == "code"
                    for o in cell.outputs
                )
            for line in lesson["printed"]:
                assert line in printed[name], (c["id"], line)
