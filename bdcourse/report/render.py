"""Any selection of measured rows as text, Markdown, LaTeX, or a figure with its words.

`python -m bdcourse table NAME` is the command; lesson 09 and the README call the same
functions. Derived in lesson 09.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from bdcourse import require
from bdcourse.report import show, tables
from bdcourse.report.show import Picture, Table
from bdcourse.report.tables import mean

KINDS = ("grid", "summary", "ranking", "rows")
FORMATS = {"text": repr, "markdown": Table.markdown, "latex": Table.latex}


def known(name: str, kind: str = "grid", **key) -> list[str]:
    """The defenses with scores in a file, in its order.

    For "ranking" only those that every victim past the gate has: their means would not
    be over the same victims.
    """
    require.choice("kind", kind, KINDS)
    tables.require_rows(name, tables.results(name).rows)
    needed = {"acc", "attack", "weak", "seed"}
    rows = [r for r in tables.results(name).select(**key) if needed <= r.keys()]
    if not rows:
        raise ValueError(f"{name} holds no scores{' with ' * bool(key)}{key or ''}.")
    names = list(dict.fromkeys(r["defense"] for r in rows))
    if kind == "ranking":
        passed = tables.strong(name, **key).values()
        names = [n for n in names if all(n in by for by in passed)]
        if not names:
            raise ValueError(f"no defense in {name} has a row of each victim that passes the gate.")
    return names


def table(
    name: str,
    kind: str = "grid",
    defenses: Sequence[str] = (),
    caption: str = "",
    *,
    who: Sequence[str] | None = None,
    **key,
) -> Table:
    """A table of data/results/NAME.json, or of the file NAME.

    Args:
        kind: "grid" (victims down, defenses across), "summary" and "ranking" (a line a
            defense), or "rows" (a line a row).
        defenses: default all that there are.
        who: victims, for "grid" and "rows"; default all.
        key: what the rows must hold, `budget=500` say.
    """
    require.choice("kind", kind, KINDS)
    defenses = require.names("defenses", defenses) or known(name, kind, **key)
    if kind == "grid":
        return tables.grid(name, defenses, caption, who=who, **key)
    if kind == "summary":
        return tables.summary(name, defenses, caption, **key)
    if kind == "ranking":
        return tables.ranking_table(tables.ranking(name, defenses, **key), caption)
    defenses = tables.asked(name, defenses, key)
    rows = [r for r in tables.results(name).select(**key) if "acc" in r]
    tables.require_entries(rows, ROW, name)
    wanted = None if who is None else require.names("who", who)
    lines = []
    for r in rows:
        victim = r.get("victim") or r["attack"]
        if r["defense"] in defenses and (wanted is None or victim in wanted):
            shares = {k: r[k] for k in ("acc", "asr", "ra", "der") if k in r}
            lines.append(
                {
                    "victim": victim,
                    "seed": r["seed"],
                    "budget": r.get("budget"),
                    "draw": r.get("draw") or 0,
                    "defense": r["defense"],
                    **{
                        f"{k.upper()} %": None if shares.get(k) is None else 100 * shares[k]
                        for k in ("acc", "asr", "ra", "der")
                    },
                    "channels": r["pruned"],
                    "clean images": r["clean_used"],
                    "seconds": r["seconds"],
                }
            )
    if not lines:
        raise ValueError(f"{name} holds no such rows.")
    return Table(lines, caption)


ROW = ("attack", "defense", "seed", "pruned", "clean_used", "seconds")


def figure(
    name: str,
    kind: str = "grid",
    defenses: Sequence[str] = (),
    title: str = "",
    *,
    who: Sequence[str] | None = None,
    highlight: Sequence[str] = (),
    **key,
) -> Picture:
    """The same selection as a picture: "grid" as fields of ASR, "ranking" as intervals
    of DER, "summary" as ASR against ACC."""
    if kind not in KINDS[:3]:
        raise ValueError(f"there is no figure of kind {kind!r}; choose grid, summary or ranking.")
    shown = "grid" if kind == "grid" else "ranking"
    defenses = require.names("defenses", defenses) or known(name, shown, **key)
    if kind == "grid":
        return _fields(name, defenses, title, who, key)
    if kind == "ranking":
        return ranking_figure(tables.ranking(name, defenses, **key), title, highlight)
    return _plane(tables.ranking(name, defenses, resamples=1, **key), title, highlight)


def _fields(name, defenses, title, who, key) -> Picture:
    left = tables.scores(name, defenses, who=who, **key)
    values = torch.tensor(
        [[float("nan") if v is None else v for v in row] for row in left.values()]
    )
    most = f"{100 * tables.REMOVED:g}"
    removed = sum(v is not None and v <= tables.REMOVED for row in left.values() for v in row)
    cells = sum(v is not None for row in left.values() for v in row)
    worst = max(defenses, key=lambda d: _column(left, defenses.index(d)))
    best = min(defenses, key=lambda d: _column(left, defenses.index(d)))
    return show.matrix(
        values,
        list(left),
        defenses,
        numbers=True,
        mark=tables.REMOVED,
        height=1.9 + 0.3 * len(left),
        title=title or f"Framed: {removed} of {cells} cells, with at most {most} % left",
        description=f"A table of fields, {len(left)} victims down ({', '.join(left)}) "
        f"and {len(defenses)} defenses across, each with the attack success in percent "
        f"that is left. In {removed} of {cells} fields it is at most {most}. The lowest "
        f"mean column is {best}, the highest {worst}."
        + f" {tables.STAR}"
        * any(v.endswith("*") for v in left),
    )


def _column(left: dict[str, list], i: int) -> float:
    found = [row[i] for row in left.values() if row[i] is not None]
    return mean(found) if found else 0.5


def ranking_figure(
    lines: Sequence[dict],
    title: str = "",
    highlight: Sequence[str] = (),
    marks: Mapping[str, float] | None = None,
) -> Picture:
    """The lines of `tables.ranking` as points with their intervals.

    Args:
        marks: name -> DER in 0..1 of what else is worth a line.
    """
    tables.require_ranked(lines)
    for m, v in (marks or {}).items():
        require.fraction(f"the mark {m!r}", v)
    _require_highlight(highlight, lines)
    first, n = lines[0], lines[0]["victims"]
    leads = [r["defense"] for r in lines if r["first"] >= 0.05]
    more = "".join(f" A line marks {m}, {100 * v:.0f} %." for m, v in (marks or {}).items())
    return show.ranked(
        {r["defense"]: (100 * r["der"], 100 * r["low"], 100 * r["high"]) for r in lines},
        xlabel="DER in %: mean, and where 90 % of the resampled tables have it",
        highlight=highlight,
        marks={m: 100 * v for m, v in (marks or {}).items()},
        title=title or f"{len(leads)} of {len(lines)} lead more than one resampled table in twenty",
        description=f"{len(lines)} defenses from best to worst by their mean DER over "
        f"{n} victims, each with the interval that holds its mean in 90 % of the "
        f"resampled tables. First is {first['defense']} with {100 * first['der']:.0f} "
        f"%, last {lines[-1]['defense']} with {100 * lines[-1]['der']:.0f} %. In "
        f"the lead in more than one table of twenty: {', '.join(leads)}.{more}",
    )


def _require_highlight(highlight: Sequence[str], lines: Sequence[dict]) -> None:
    shown = [r["defense"] for r in lines]
    for h in require.names("highlight", highlight):
        require.choice("highlight", h, shown)


def _plane(lines: Sequence[dict], title: str, highlight: Sequence[str]) -> Picture:
    _require_highlight(highlight, lines)
    least = min(lines, key=lambda r: r["asr"])
    return show.points(
        {r["defense"]: (100 * r["acc"], 100 * r["asr"]) for r in lines},
        xlabel="ACC in %",
        ylabel="ASR in %",
        highlight=highlight,
        least=1.0,
        title=title or "What each defense leaves, and what it costs",
        description=f"Mean attack success over mean accuracy of {len(lines)} defenses, "
        f"a point each with its name, over {lines[0]['victims']} victims. The lowest "
        f"is {least['defense']}: ASR {100 * least['asr']:.0f} % at ACC "
        f"{100 * least['acc']:.0f} %.",
    )


def selection(words: Sequence[str]) -> dict:
    """What `--where budget=500 draw=null` means: JSON values, or plain words."""
    found = {}
    for word in require.names("--where", words):
        name, equals, text = word.partition("=")
        if not equals or not name or not text:
            raise ValueError(f"--where takes NAME=VALUE, not {word!r}.")
        if name in found:
            raise ValueError(f"--where names {name!r} twice; rows have one value each.")
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def write(
    name: str,
    *,
    kind: str = "grid",
    format: str = "text",
    out: str | None = None,
    defenses: Sequence[str] = (),
    who: Sequence[str] | None = None,
    caption: str = "",
    where: Sequence[str] = (),
) -> None:
    """`python -m bdcourse table`: to a file, or what is text to the screen.

    A figure is a PNG, with its description in a .txt beside it.
    """
    require.choice("--kind", kind, KINDS)
    require.choice("--format", format, (*FORMATS, "figure"))
    key = selection(where)
    tables.results(name).select(**key)  # refuses entries that no row has
    who = None if who is None else require.names("--who", who)
    if who and kind in ("ranking", "summary"):
        raise ValueError(f"--who is for grid and rows; a {kind} takes all victims.")
    if out is not None and not Path(out).parent.is_dir():
        raise ValueError(f"--out: there is no folder {Path(out).parent}; make it first.")
    if out is not None and Path(out).is_dir():
        raise ValueError(f"--out must name a file, but {out} is a folder.")
    if format == "figure":
        if out is None or not str(out).endswith(".png"):
            raise ValueError("a figure needs --out NAME.png.")
        beside = Path(out).with_suffix(".txt")
        if beside.is_symlink():  # nobody named it, so nobody meant where it leads
            raise ValueError(
                f"the description of the figure goes to {beside}, which is a link; "
                "move it away, or name another --out."
            )
        picture = figure(name, kind, defenses, caption, who=who, **key)
        picture.save(out)
        beside.write_text(picture.description + "\n")
        print(picture.description)
        return
    made = table(name, kind, defenses, caption, who=who, **key)
    text = FORMATS[format](made)
    if out is None:
        print(text)
    else:
        Path(out).write_text(text + "\n")
