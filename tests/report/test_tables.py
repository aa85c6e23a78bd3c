"""Tables and figures are made from rows, average what belongs together, and say what is
missing."""

import json
import math

import pytest
import torch

from bdcourse.__main__ import main
from bdcourse.bench.plans import PLANS
from bdcourse.bench.results import RESULTS, Results, identity
from bdcourse.report import render, show, tables
from bdcourse.report.show import Table


def some_results(tmp_path, monkeypatch):
    """Rows by hand: a strong and a weak victim, two draws, a defense with a gap."""
    rows = []
    for who, weak, base in (
        ("none", "", None),
        ("A", "", 1.0),
        ("B", "", 0.8),
        ("C", "attack success 50 %", 0.5),
    ):
        for d, draw, drop in (
            ("none", None, 0),
            ("cut", None, 0.8),
            ("cut", 1, 0.6),
            ("rare", None, 0.9),
        ):
            if d == "rare" and who != "A":
                continue
            asr = None if base is None else base - base * drop
            ra = None if asr is None else 0.9 - 0.9 * asr
            rows.append(
                {
                    "attack": who,
                    "defense": d,
                    "draw": draw,
                    "weak": weak,
                    "acc": 0.9 - drop / 10,
                    "asr": asr,
                    "ra": ra,
                    "der": 0.5,
                    "clean_used": 100 * bool(drop),
                    "seconds": 1.0,
                    "budget": 7,
                }
            )
    rows.append(rows[1] | {"defense": "cut", "draw": 2, "refused": "no."})
    del rows[-1]["acc"]
    rows.append(rows[3] | {"asr": 0.123, "budget": 8})
    (tmp_path / "hand.json").write_text(json.dumps({"rows": rows}))
    elsewhere = {"defense": "cut", "acc": None, "asr": 0.02, "ra": 0.8}
    (tmp_path / "published.json").write_text(json.dumps({"rows": [elsewhere]}))
    monkeypatch.setattr("bdcourse.bench.results.RESULTS", tmp_path)


def test_a_grid_shows_victims_by_defenses(tmp_path, monkeypatch):
    some_results(tmp_path, monkeypatch)
    table = tables.grid("hand", ["none", "cut", "rare"], "cap", budget=7)
    cells = {row[0]: row[1:] for row in table.body}
    assert table.head == ["victim", "none", "cut", "rare"] and table.caption == "cap"
    assert list(cells) == ["(benign twin)", "A", "B", "C*"]  # one has all: no mean
    assert cells["(benign twin)"] == ["90.0 / – / –", "83.0 / – / –", ""]
    assert cells["A"] == ["90.0 / 100.0 / 0.0", "83.0 / 30.0 ± 10.0 / 63.0", "81.0 / 10.0 / 81.0"]
    table = tables.grid("hand", ["none", "cut"], budget=7)
    assert table.body[-1] == ["mean of 2", "90.0 / 90.0 / 9.0", "83.0 / 27.0 / 65.7"]
    assert "12.3" in repr(tables.grid("hand", ["none"], budget=8))
    table = tables.grid("hand", ["none", "cut"], who=["A", "none"], budget=7)
    assert [row[0] for row in table.body] == ["(benign twin)", "A"]
    for make in (tables.grid, tables.summary):
        with pytest.raises(ValueError, match="hand holds no row of x with") as e:
            make("hand", ["x"], budget=7)
        assert "budget" in str(e.value)


def test_a_summary_averages_over_victims_that_pass(tmp_path, monkeypatch):
    some_results(tmp_path, monkeypatch)
    table = tables.summary("hand", ["none", "cut", "rare"], budget=7)
    rows = {r[0]: dict(zip(table.head, r, strict=True)) for r in table.body}
    assert [r["victims"] for r in rows.values()] == ["2", "2", "1"]
    assert rows["cut"]["ASR %"] == "27.0" and rows["none"]["ASR %"] == "90.0"
    assert [r["fails"] for r in rows.values()] == ["2", "2", "0"]
    assert rows["cut"]["clean images"] == "100"
    assert rows["cut"]["elsewhere"] == "– / 2.0 / 80.0" and not rows["none"]["elsewhere"]


def test_table_row_gives_mean_and_half_range():
    rows = [
        {"acc": a, "asr": None, "pruned": 2, "clean_used": 0, "seconds": 1.0} for a in (0.9, 0.94)
    ]
    row = tables.table_row(rows, attack="none")
    assert row["ACC %"] == "92.0 ± 2.0" and row["ASR %"] is None and row["seeds"] == 2
    assert tables.table_row(rows[:1])["ACC %"] == "90.0"
    with pytest.raises(ValueError, match="no result"):
        tables.table_row([], attack="BadNets")


@pytest.mark.slow
def test_every_committed_result_is_readable_and_complete():
    files = sorted(RESULTS.glob("*.json"))
    assert {"signs", "cifar10", "published"} <= {f.stem for f in files}
    for f in files:
        if f.stem == "published-claims":  # see test_report.py
            continue
        if f.stem.startswith("published"):  # read elsewhere, not measured
            for r in Results(f).rows:
                assert r["defense"] in PLANS and 0 <= r["asr"] <= 1 and r["source"]
            continue
        for r in Results(f).rows:
            assert {"attack", "defense", "seed", "revision", "digest"} <= set(r), f
            if r["defense"] == "score":  # by MNP's detector
                assert -1 <= r["correlation"] <= 1 and r["images"]
                continue
            # Of a study, several in one.
            parts = r.get("betas") or r.get("stages") or r.get("prices") or [r]
            assert "refused" in r or "curve" in r or all(0 <= p["acc"] <= 1 for p in parts)


@pytest.mark.slow
def test_no_committed_file_holds_a_cell_twice():
    for f in sorted(RESULTS.glob("*.json")):
        if not f.stem.startswith("published"):
            found = [identity(r) for r in Results(f).rows]
            assert len(found) == len(set(found)), f.name


def test_a_cell_is_the_same_however_its_numbers_are_written():
    cell = {"epochs": 12, "attack": "SIG", "options": {"rate": 1}, "defense": "none"}
    assert identity(cell) == identity(
        cell | {"epochs": 12.0, "options": {"rate": 1.0}, "acc": 0.5, "budget": None}
    )
    for other in ({"draw": 1}, {"budget": 7}, {"victim": "sig"}, {"flip": True}):
        assert identity(cell) != identity(cell | other)


def test_a_failed_row_is_replaced_and_a_good_one_is_not(tmp_path):
    cell = {"attack": "none", "defense": "none"}
    results = Results(tmp_path / "r.json")
    for more in ({"error": "x"}, {"error": "y"}, {"acc": 1.0}, {"acc": 0.5}):
        results.add(cell | more)
        assert results.done(cell) == ("acc" in results.rows[0])
    results.add(cell | {"error": "z"})
    assert Results(tmp_path / "r.json").rows == [cell | {"acc": 1.0}]
    assert [r["error"] for r in results.failed] == ["x", "y", "z"]


def ranked_results(tmp_path, monkeypatch):
    """Three victims past the gate, a weak one, a twin: one defense is always better."""
    rows = []
    for who, weak in (("none", ""), ("A", ""), ("B", ""), ("C", ""), ("W", "weak.")):
        for d, ders in (
            ("good", (0.9, 0.8, 0.95)),
            ("bad", (0.5, 0.6, 0.55)),
            ("wild", (1.0, 0.4, 0.9)),
        ):
            for draw in (None, 1):
                der = None if who == "none" else ders["ABCW".index(who) % 3]
                rows.append(
                    {
                        "attack": who,
                        "defense": d,
                        "draw": draw,
                        "weak": weak,
                        "acc": 0.9,
                        "asr": der and 1 - der,
                        "ra": 0.1,
                        "der": der,
                        "seconds": 2.0,
                        "clean_used": 0,
                        "pruned": 0,
                        "seed": 0,
                    }
                )
    rows.append(rows[2] | {"attack": "A", "defense": "rare", "der": 1.0, "asr": 0.5})
    (tmp_path / "hand.json").write_text(json.dumps({"rows": rows}))
    (tmp_path / "published.json").write_text('{"rows": []}')
    monkeypatch.setattr("bdcourse.bench.results.RESULTS", tmp_path)


@pytest.mark.slow
def test_a_ranking_says_how_sure_it_is(tmp_path, monkeypatch):
    ranked_results(tmp_path, monkeypatch)
    lines = tables.ranking("hand", ["bad", "wild", "good"])
    assert [r["defense"] for r in lines] == ["good", "wild", "bad"]
    good, wild, bad = lines
    assert good["der"] == pytest.approx(0.8833, abs=1e-4) and good["victims"] == 3
    assert good["low"] < good["der"] < good["high"]
    # Three draws of three can all be A, or all B: that is what the data allow.
    assert wild["low"] < 0.6 and wild["high"] == pytest.approx(0.9667, abs=1e-3)
    assert (good["rank_low"], good["rank_high"]) == (1, 2)
    assert bad["rank_high"] == 3 and bad["rank_low"] >= 2
    assert good["first"] + wild["first"] >= 1 > good["first"] and bad["first"] == 0
    assert lines == tables.ranking("hand", ["bad", "wild", "good"])
    assert "1 to 2" in repr(tables.ranking_table(lines, "c"))
    (alone,) = tables.ranking("hand", ["rare"])  # one victim: no interval at all
    assert alone["victims"] == 1 and alone["low"] == alone["high"] == 1.0
    with pytest.raises(ValueError, match="no row of x."):
        tables.ranking("hand", ["good", "x"])
    assert render.known("hand", "ranking") == ["good", "bad", "wild"]
    assert render.known("hand") == ["good", "bad", "wild", "rare"]


def test_few_victims_have_so_few_tables_that_all_are_taken(tmp_path, monkeypatch):
    ranked_results(tmp_path, monkeypatch)
    key = {"draw": 1, "against": "good"}
    lines = tables.ranking("hand", ["bad", "wild", "good"], **key)
    good, wild, bad = lines
    # A: 0.9 against 1.0; B: 0.8 against 0.4; C: 0.95 against 0.9. Of the 27 tables wild
    # is ahead in AAA and in AAC, and equal in ACC, three orders each.
    assert wild["above"] == (1 + 3) / 27 and wild["first"] == (1 + 3 + 3) / 27
    assert good["first"] == (27 - 4) / 27
    assert bad["above"] == 0 and good["above"] == 0
    assert lines == tables.ranking("hand", ["bad", "wild", "good"], resamples=1, **key)
    assert "above in %" in repr(tables.ranking_table(lines))


def test_means_by_budget_are_over_all_strong_victims_or_none(tmp_path, monkeypatch):
    ranked_results(tmp_path, monkeypatch)
    path = tmp_path / "hand.json"
    rows = json.loads(path.read_text())["rows"]
    rows += [
        r | {"budget": 9, "asr": 0.5} for r in rows if r["defense"] == "good" and r["attack"] != "C"
    ]
    rows += [
        r | {"budget": 5, "asr": 0.25}
        for r in rows
        if r["defense"] == "good" and r["attack"] in "ABC" and "budget" not in r
    ]
    path.write_text(json.dumps({"rows": rows}))
    found = tables.by_budget("hand", ["good", "rare"], [None, 9, 5], draw=1)
    assert found["good"][5] == pytest.approx([0.9, 0.25, 0.1])
    assert found["good"][None] == pytest.approx([0.9, 1 - 2.65 / 3, 0.1])
    assert found["good"][9] is None  # C, which passes the gate, has no row
    assert found["rare"] == {None: None, 9: None, 5: None}


@pytest.mark.slow
def test_the_table_command_renders_any_selection(tmp_path, monkeypatch, capsys):
    ranked_results(tmp_path, monkeypatch)

    def said(*words):
        assert main(["table", "hand", *words]) == 0
        return capsys.readouterr().out

    assert "good" in said() and "(benign twin)" in said()
    assert said("--kind", "rows", "--who", "A", "--where", "draw=1").count("\n") == 5
    text = said("--kind", "summary", "--format", "markdown", "--defenses", "good")
    assert text.startswith("| defense |") and "| good | 3 |" in text
    text = said("--kind", "ranking", "--format", "latex", "--caption", "50 % & more")
    assert r"\caption{50 \% \& more}" in text and r"\toprule" in text
    path = str(tmp_path / "hand.json")
    assert main(["table", path, "--out", str(tmp_path / "t.md")]) == 0
    assert (tmp_path / "t.md").read_text().startswith("victim")
    for kind in ("grid", "ranking", "summary"):
        out = tmp_path / f"{kind}.png"
        words = said("--kind", kind, "--format", "figure", "--out", str(out))
        assert out.read_bytes()[:4] == b"\x89PNG" and len(words) > 80
        assert out.with_suffix(".txt").read_text() == words
        out.with_suffix(".txt").unlink()
        out.with_suffix(".txt").symlink_to(tmp_path / "far.txt")
        again = ["table", "hand", "--kind", kind, "--format", "figure"]
        assert main([*again, "--out", str(out)]) == 1
        assert "which is a link; move it away" in capsys.readouterr().err
        assert not (tmp_path / "far.txt").exists()
        out.with_suffix(".txt").unlink()
        assert "good" in words
    for wrong, says in (
        (["--format", "figure"], "needs --out"),
        (["--kind", "rows", "--format", "figure", "--out", "x.png"], "no figure"),
        (["--where", "draw"], "NAME=VALUE"),
        (["--where", "draw=9"], "no scores with {'draw': 9}"),
        (["--kind", "rows", "--who", "Z"], "no such rows"),
    ):
        assert main(["table", "hand", *wrong]) == 1
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1
    assert main(["table", "nowhere"]) == 1
    assert "there are: hand, published" in capsys.readouterr().err


def refused(match: str, call, *args, **key) -> None:
    with pytest.raises(ValueError, match=match) as e:
        call(*args, **key)
    assert str(e.value).endswith(".") and "\n" not in str(e.value)


def test_a_share_that_cannot_be_is_refused_where_rows_are_read(tmp_path):
    path = tmp_path / "r.json"
    row = {"attack": "A", "defense": "cut", "seed": 0, "acc": 0.9, "seconds": 1.0}
    for key, value in (
        ("acc", math.nan),
        ("asr", 37),
        ("ra", -1),
        ("der", 1.5),
        ("cross", "0.5"),
        ("seconds", -1),
        ("pruned", math.inf),
        ("curve", [{"u": 1.0, "acc": 2}]),
        ("acc", True),
    ):
        path.write_text(json.dumps({"rows": [row, row | {"seed": 1, key: value}]}))
        bad = "acc" if key == "curve" else key
        refused(
            f"^{bad} of the row .attack A, defense cut, seed 1. in .*r.json must",
            tables.results,
            str(path),
        )
        refused(f"{bad} of the row", Results(tmp_path / "n.json").add, row | {key: value})
    assert not (tmp_path / "n.json").exists()


def test_a_cell_that_stands_twice_is_kept_once_or_refused(tmp_path):
    path = tmp_path / "r.json"

    def read(*rows):
        path.write_text(json.dumps({"rows": rows}))
        return Results(path).rows

    row = {"attack": "A", "defense": "cut", "seed": 0, "acc": 1.0, "epochs": 2}
    failed = {k: row[k] for k in ("attack", "defense", "seed", "epochs")}
    failed |= {"error": "no."}
    assert read(row, row | {"epochs": 2.0}) == [row]
    for rows in ((failed, row), (row, failed), (failed, row, failed, row)):
        assert read(*rows) == [row]
    assert read(row, row | {"seed": 1}) == [row, row | {"seed": 1}]
    for rows in ((row, row | {"acc": 0.0}), (row | {"acc": 0.0}, failed, row)):
        refused(
            "r.json holds two different rows of one cell .attack A, defense cut, seed 0.; delete",
            read,
            *rows,
        )


def test_no_order_of_rows_decides_a_table(tmp_path, monkeypatch):
    ranked_results(tmp_path, monkeypatch)
    path = tmp_path / "hand.json"
    rows = json.loads(path.read_text())["rows"]
    rows.append(rows[6] | {"draw": 2, "weak": "ASR 50 % is low"})  # of A
    seen = set()
    for order in (rows, rows[::-1]):
        path.write_text(json.dumps({"rows": order}))
        table = tables.grid("hand", ["bad", "wild", "good"])
        lines = [table.body[0], *sorted(table.body[1:-1]), table.body[-1]]
        summed = tables.summary("hand", ["bad", "wild", "good"]).body
        seen.add(repr((lines, summed)))
        assert table.body[-1][0] == "mean of 2" and "A*" in {r[0] for r in lines}
    assert len(seen) == 1
    twins = [
        {
            "attack": "none",
            "defense": "none",
            "weak": "",
            "acc": 0.1 * i,
            "epochs": i,
            "lr": 0.1,
            "pruned": 0,
            "clean_used": 0,
            "seconds": 0,
            "seed": i,
        }
        for i in (5, 9, 9)
    ]
    twins[2] |= {"attack": "SIG", "asr": 1.0}
    for order in (twins, twins[::-1]):
        path.write_text(json.dumps({"rows": order}))
        assert tables.attack_table("hand").body[0][3] == "90.0"
    path.write_text(json.dumps({"rows": twins[:2]}))
    refused("holds 2 settings of none", tables.standard_table, "hand", "", ["none"])


def test_an_entry_that_no_row_has_is_refused(tmp_path, monkeypatch):
    ranked_results(tmp_path, monkeypatch)
    rows = tables.results("hand")
    assert len(rows.select(defense="good", draw=1)) == 5
    assert rows.select(budget=9) == [] and len(rows.select(victim=None)) == 31
    refused(
        "no row of hand.json has an entry 'defence' .did you mean 'defense'",
        rows.select,
        defence="good",
    )


def test_where_all_victims_are_weak_tables_say_which_gate_was_missed(tmp_path, monkeypatch, capsys):
    ranked_results(tmp_path, monkeypatch)
    path = tmp_path / "hand.json"
    rows = [
        r | {"weak": "clean accuracy 5.0 % is low", "budget": 7}
        for r in json.loads(path.read_text())["rows"]
    ]
    path.write_text(json.dumps({"rows": rows}))
    for kind in ("summary", "ranking"):
        for where in ([], ["--where", "budget=7"]):
            assert main(["table", "hand", "--kind", kind, *where]) == 1
            err = capsys.readouterr().err
            assert "no victim in hand" in err and "A: clean accuracy 5.0 %" in err
            assert ("with budget=7" in err) == bool(where) and "{" not in err
    assert main(["table", "hand"]) == 0
    path.write_text(json.dumps({"rows": [r for r in rows if r["attack"] == "none"]}))
    assert main(["table", "hand", "--kind", "summary"]) == 1
    assert "no scores of an attacked network" in capsys.readouterr().err


def test_a_star_has_its_legend_where_there_is_one(tmp_path, monkeypatch):
    some_results(tmp_path, monkeypatch)
    table = tables.grid("hand", ["none", "cut"], "cap", budget=7)
    last = tables.STAR
    assert repr(table).splitlines()[-1] == table.markdown().splitlines()[-1] == last
    assert last in table.latex() and last in table._repr_html_()
    assert last in render.figure("hand", defenses=["none", "cut"], budget=7).description
    table = tables.grid("hand", ["none", "cut"], "cap", who=["A"], budget=7)
    for text in (repr(table), table.markdown(), table.latex(), table._repr_html_()):
        assert last not in text


def test_files_that_are_no_results_get_one_sentence(tmp_path, monkeypatch, capsys):
    some_results(tmp_path, monkeypatch)
    named = '{"rows": [{"attack": ["A"], "defense": "cut"}]}'
    texts = (
        "",
        "no",
        "[]",
        "{}",
        '{"rows": 3}',
        '{"rows": [3]}',
        '{"rows": {}}',
        named,
        "[" * 10**5,
    )
    for i, text in enumerate((*texts, b"\xff\xfe{")):
        path = tmp_path / f"{i}.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        (tmp_path / "folder.json").mkdir(exist_ok=True)
        for name in (path, tmp_path / "folder.json"):
            assert main(["table", str(name)]) == 1
            err = capsys.readouterr().err
            says = "must be text" if text == named else "not a table of results"
            assert says in err or name != path
            assert err.count("\n") == 1 and str(name) in err
    (tmp_path / "e.json").write_text('{"rows": []}')
    for kind in render.KINDS:
        assert main(["table", str(tmp_path / "e.json"), "--kind", kind]) == 1
        assert "holds no rows yet" in capsys.readouterr().err
    for wrong, says in (
        (["--kind", "sumary"], "did you mean 'summary'"),
        (["--format", "markdwn"], "did you mean 'markdown'"),
        (["--where", "defence=cut"], "did you mean 'defense'"),
        (["--where", "name=x"], "no row of"),
        (["--where", "budget=7", "budget=8"], "twice"),
        (["--defenses", "cutt"], "did you mean 'cut'"),
        (["--kind", "rows", "--defenses", "cutt"], "did you mean 'cut'"),
        (["--who", "Z", "--defenses", "cut"], "holds no victim Z"),
        (["--out", str(tmp_path / "no" / "t.md")], "there is no folder"),
    ):
        assert main(["table", "hand", *wrong]) == 1
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1


def test_a_table_needs_lines():
    for rows in ([], (), None, [{}], [3]):
        refused("rows must be a list of dicts", Table, rows)
    refused("no mean of no values", tables.mean, [])
    refused("finite", tables.mean, [0.5, math.nan])


def test_a_ratio_above_one_is_printed_as_it_is():
    from matplotlib.figure import Figure

    texts = []
    real = Figure.savefig
    with pytest.MonkeyPatch.context() as m:
        m.setattr(
            Figure,
            "savefig",
            lambda fig, *a, **k: (
                texts.extend(t.get_text() for t in fig.axes[0].texts),
                real(fig, *a, **k),
            ),
        )
        show.matrix(
            torch.tensor([[0.5, 1.71]]),
            ["a"],
            ["b", "c"],
            numbers=True,
            title="t",
            description="Two fields, for a test of their numbers.",
        )
    assert texts == ["50", "171"]


def test_latex_escapes_what_latex_would_read():
    text = Table([{"a_b": "50 % ± 1 & more", "c": "–"}]).latex()
    assert r"a\_b & c \\" in text and r"50 \% $\pm$ 1 \& more & -- \\" in text
    assert "caption" not in text and text.count("midrule") == 1
