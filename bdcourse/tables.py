"""Measured rows, and the tables of the course that are made from them.

Nothing here computes a score: every number of a table comes from a file of rows, such
as `python -m bdcourse bench` writes. Born in lesson 03.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from bdcourse import require
from bdcourse.attacks import ATTACKS
from bdcourse.recipes import DRAWN, Recipe, locked

if TYPE_CHECKING:
    from bdcourse.show import Table

RESULTS = Path(__file__).resolve().parent.parent / "data" / "results"


KEYS = (*(f.name for f in fields(Recipe)), "data", "digest", "seed", "victim", "attack",
        "options", "budget", "draw", "defense")  # fmt: skip


def identity(row: dict) -> str:
    """What makes a row this cell of a table and no other, as text; 12 is 12.0."""

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        number = isinstance(value, int) and not isinstance(value, bool)
        return float(value) if number else value

    own = {k: plain(row.get(k)) for k in KEYS}
    if row.get("data") in DRAWN:
        # Drawn by code: processors round a few pixels differently.
        own["digest"] = plain(row.get("n_train"))
    if row.get("n_test") is not None:  # else: all test images, as in older rows
        own["n_test"] = plain(row["n_test"])
    return json.dumps(own, sort_keys=True)


class Results:
    """Rows of results in one JSON file, one for each cell, written atomically.

    Args:
        path: of the file; it need not be there yet. Where it is a link, the file behind
            it is read and replaced.

    Attributes:
        failed: the rows with an `error` that this object was given.

    Raises:
        ValueError: the file cannot be read, is no table of results, or holds a cell
            twice with different numbers.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        right = isinstance(path, (str, os.PathLike)) and str(path)
        if not right or "\0" in str(path):
            raise ValueError(
                f"a table must be the path of a .json, not {require.kind(path)}."
            )
        self.path = Path(path)
        self.rows: list[dict] = []
        self.failed: list[dict] = []
        self._at: dict[str, int] = {}
        self._file = Path(os.path.realpath(self.path))
        self._read()

    def _read(self) -> None:
        try:
            text = self._file.read_text()
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as e:
            why = getattr(e, "strerror", None) or "it is not text"
            raise ValueError(
                f"{self.path} cannot be read ({why}); name another --out."
            ) from e
        try:
            rows = json.loads(text)["rows"]
            cells = [identity(r) for r in rows]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise ValueError(
                f"{self.path} is not a table of results; move it away or name "
                "another --out."
            ) from e
        self.rows = self._single(rows, cells)
        self._at = {identity(r): i for i, r in enumerate(self.rows)}

    def _single(self, rows: list[dict], cells: list[str]) -> list[dict]:
        """The rows without second copies, as after a merge of two files by hand."""
        kept: dict[str, dict] = {}
        for i, (row, cell) in enumerate(zip(rows, cells, strict=True)):
            if "digest" not in row:  # what others published has no cells
                cell = str(i)
            first = kept.setdefault(cell, row)
            if "error" in first:  # it was tried again
                kept[cell] = row
            elif first != row and "error" not in row:
                who = row.get("victim") or row.get("attack")
                raise ValueError(
                    f"{self.path} holds the cell of {who} and {row.get('defense')!r}, "
                    f"seed {row.get('seed')}, twice with different numbers; delete one "
                    "of the two rows."
                )
        if (twice := len(rows) - len(kept)) and not self.rows:  # said once
            print(
                f"{self.path} holds {twice} rows twice; one of each counts.",
                file=sys.stderr,
            )
        return list(kept.values())

    @contextmanager
    def owned(self) -> Iterator[Results]:
        """While it lasts, no other process may own this file.

        Raises:
            RuntimeError: another one does.
        """
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ValueError(
                f"there can be no folder {self._file.parent} ({e.strerror}); name "
                "another --out."
            ) from e
        try:
            with locked(self._file.with_name(f".{self._file.name}.lock"), wait=False):
                self._read()  # another run may have ended since it was read
                yield self
        except BlockingIOError:
            raise RuntimeError(
                f"another run is writing {self.path}; wait for it, or name another "
                "--out."
            ) from None

    def select(self, **key) -> list[dict]:
        """The rows whose entries equal `key`.

        Raises:
            ValueError: no row can have such an entry.
        """
        names = {*KEYS, *(k for r in self.rows for k in r)}
        if self.rows and (wrong := key.keys() - names):
            raise ValueError(
                f"rows of {self.path.name} have no entry {min(wrong)!r}"
                f"{require.meant(min(wrong), sorted(names))}; choose from "
                f"{', '.join(sorted(names))}."
            )
        return [r for r in self.rows if all(r.get(k) == v for k, v in key.items())]

    def get(self, cell: dict) -> dict | None:
        """The row of this cell, if there is one."""
        at = self._at.get(identity(cell))
        return None if at is None else self.rows[at]

    def done(self, cell: dict) -> bool:
        """Whether there is a row for this cell, and one that did not fail."""
        row = self.get(cell)
        return row is not None and "error" not in row

    def add(self, row: dict) -> None:
        """Store a row, unless its cell has one already that did not fail."""
        if "error" in row:
            self.failed.append(row)
        if self.done(row):
            return
        at = self._at.setdefault(identity(row), len(self.rows))
        self.rows[at : at + 1] = [row]
        self._write()

    def _write(self) -> None:
        lines = ",\n".join(json.dumps(r) for r in self.rows)
        aside = None
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self._file.parent, delete=False
            ) as f:
                aside = f.name
                f.write('{"rows": [\n' + lines + "\n]}\n")
            os.chmod(aside, 0o644)
            os.replace(aside, self._file)
        except BaseException as e:  # also Ctrl-C
            if aside is not None:
                Path(aside).unlink(missing_ok=True)
            if isinstance(e, OSError):
                raise RuntimeError(
                    f"{self.path} cannot be written ({e.strerror}); the rows before "
                    "are kept, and the same command goes on from there."
                ) from e
            raise


def results(name: str) -> Results:
    """A measured table: one that ships with the course, by name, or a file.

    Args:
        name: of a file in data/results/ (see the README there), or a path.
    """
    path = Path(name) if str(name).endswith(".json") else RESULTS / f"{name}.json"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in RESULTS.glob("*.json")))
        raise FileNotFoundError(f"there are no results {name!r}; there are: {known}.")
    return Results(path)


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean."""
    return statistics.fmean(values)


def table_row(rows: Sequence[dict], **first) -> dict:
    """One line of the course's result table from the rows of several seeds.

    Mean and half the range over seeds, in percent; with one seed the value alone.
    """
    if not rows:
        raise ValueError(f"no result to summarize for {first}.")

    def spread(key: str) -> str | None:
        values = [100 * r[key] for r in rows if r.get(key) is not None]
        if not values:
            return None
        half = (max(values) - min(values)) / 2
        return f"{mean(values):.1f}" + (f" ± {half:.1f}" if len(values) > 1 else "")

    return {
        **first,
        "ACC %": spread("acc"),
        "ASR %": spread("asr"),
        "RA %": spread("ra"),
        "channels": round(mean(r["pruned"] for r in rows)),
        "clean images": round(mean(r["clean_used"] for r in rows)),
        "seconds": round(mean(r["seconds"] for r in rows), 2),
        "seeds": len(rows),
    }


def sharp_row(row: dict, **first) -> dict:
    """One line of lesson 08's table, from a row measured with `sharp`."""
    s = row["sharp"]
    percent = {
        k: None if row[k] is None else 100 * row[k] for k in ("acc", "asr", "ra")
    }
    return {
        **first,
        **{f"{k.upper()} %": v for k, v in percent.items()},
        "Tr F own": s["own"]["fisher"],
        "Tr F others": s["other"]["fisher"],
        "top own": s["own"]["lambda_max"],
        "top others": s["other"]["lambda_max"],
    }


def sweep_summary(name: str, attack: str) -> tuple[list[float], dict, dict]:
    """CLP's u axis and, over the seeds of a results file, what ACC, ASR and RA do.

    Returns:
        the values of u; name -> mean at each u; name -> (lowest, highest) at each u.
    """
    rows = results(name).select(attack=attack, defense="clp sweep")
    rows = [r for r in rows if "curve" in r]
    curves = [r["curve"] for r in _one_setting(rows, name) if not r["weak"]]
    if not curves:
        raise ValueError(
            f"{name} holds no sweep of a {attack} victim that passes the gate."
        )
    means, spread = {}, {}
    for key in ("ACC", "ASR", "RA"):
        columns = list(zip(*[[p[key.lower()] for p in c] for c in curves], strict=True))
        means[key] = [mean(c) for c in columns]
        spread[key] = [min(c) for c in columns], [max(c) for c in columns]
    return [p["u"] for p in curves[0]], means, spread


def _by_victim(name: str, key: dict) -> dict[str, dict[str, list[dict]]]:
    """Scored rows of data/results/NAME.json: victim or attack -> defense -> draws."""
    found: dict[str, dict[str, list[dict]]] = {}
    rows = results(name).select(**key)
    for r in sorted(rows, key=lambda r: r["attack"] != "none"):  # twins come first
        if "acc" in r:
            who = r.get("victim") or r["attack"]
            found.setdefault(who, {}).setdefault(r["defense"], []).append(r)
    for by in found.values():
        _one_setting([r for rows in by.values() for r in rows], name)
    return found


def _means(rows: Sequence[dict], keys: Sequence[str]) -> list[float | None]:
    columns = [[r[k] for r in rows if r.get(k) is not None] for k in keys]
    return [mean(c) if c else None for c in columns]


def _passes(by: dict[str, list[dict]]) -> bool:
    """Whether these are rows of a victim, and of one that passes the gate."""
    first = next(iter(by.values()))[0]
    return first["attack"] != "none" and not first["weak"]


def _require_lines(lines: list, name: str, defenses: Sequence[str], key: dict) -> None:
    if not lines:
        raise ValueError(f"{name} holds no row of {', '.join(defenses)} with {key}.")


def grid(
    name: str,
    defenses: Sequence[str],
    caption: str = "",
    *,
    who: Sequence[str] | None = None,
    **key,
) -> Table:
    """Victims down, defenses across: "ACC / ASR / RA" in percent, means over draws;
    behind an ASR that differs between draws by a point or more, half its range.

    Args:
        name: of data/results/NAME.json; key: what its rows must hold, `budget=500` say.
        defenses: names of plans; a cell without rows stays empty.
        who: these victims, "none" for the twin; default all that have a row.

    A star marks victims that miss the gate of the protocol; the last line is the mean
    of the others, where each of them has all of these defenses.
    """
    from bdcourse.show import Table

    lines, strong = [], []
    for victim, by in _by_victim(name, key).items():
        if who is not None and victim not in who:
            continue
        cells = {d: _means(by[d], SCORES) if d in by else None for d in defenses}
        if not any(cells.values()):
            continue
        if _passes(by) and all(cells.values()):
            strong.append(cells)
        weak = bool(next(iter(by.values()))[0]["weak"])
        label = "(benign twin)" if victim == "none" else victim + "*" * weak
        shown = {d: _slashed(c, _half([r["asr"] for r in by.get(d, ())]))
                 for d, c in cells.items()}  # fmt: skip
        lines.append({"victim": label, **shown})
    _require_lines(lines, name, defenses, key)
    if len(strong) > 1:
        columns = {
            d: [mean(c[d][i] for c in strong) for i in range(3)] for d in defenses
        }
        label = f"mean of {len(strong)}"
        lines.append({"victim": label, **{d: _slashed(c) for d, c in columns.items()}})
    return Table(lines, caption)


def _half(values: Iterable[float | None]) -> float:
    """Half the range, 0 where there is none."""
    known = [v for v in values if v is not None]
    return (max(known) - min(known)) / 2 if known else 0.0


def _slashed(values: Sequence[float | None] | None, spread: float = 0) -> str:
    if values is None:
        return ""
    shown = ["–" if v is None else f"{100 * v:.1f}" for v in values]
    if spread > 0.0049:
        shown[1] += f" ± {100 * spread:.1f}"
    return " / ".join(shown)


def summary(name: str, defenses: Sequence[str], caption: str = "", **key) -> Table:
    """One line a defense: means over the victims that pass the gate, as leaderboards.

    "fails" counts victims whose ASR stays above 15 %. The last column is what others
    report, from data/results/published.json, where the sources stand. Arguments as in
    :func:`grid`.
    """
    from bdcourse.show import Table

    lines = []
    elsewhere = {r["defense"]: r for r in results("published").rows}
    strong = [by for by in _by_victim(name, key).values() if _passes(by)]
    for d in defenses:
        rows = [
            dict(zip(SUMMED, _means(by[d], SUMMED), strict=True))
            for by in strong
            if d in by
        ]
        if rows:
            acc, asr, ra, der, images, seconds = _means(rows, SUMMED)
            lines.append({
                "defense": d, "victims": len(rows), "ACC %": 100 * acc,
                "ASR %": 100 * asr, "RA %": 100 * ra, "DER %": 100 * der,
                "fails": sum(r["asr"] > 0.15 for r in rows),
                "clean images": round(images), "seconds": seconds,
                "elsewhere": _slashed(_published(elsewhere.get(d))),
            })  # fmt: skip
    _require_lines(lines, name, defenses, key)
    return Table(lines, caption)


def _published(row: dict | None) -> list[float | None] | None:
    return row and [row[k] for k in ("acc", "asr", "ra")]


SCORES = ("acc", "asr", "ra")
SUMMED = ("acc", "asr", "ra", "der", "clean_used", "seconds")


def attack_success(
    name: str, defenses: Sequence[str], *, who: Sequence[str] | None = None, **key
) -> dict[str, list[float | None]]:
    """ASR that is left: victim -> one value a defense, means over draws, 0..1.

    None where there is no row. Arguments as in :func:`grid`; a star marks the weak.
    """
    found = {}
    for victim, by in _by_victim(name, key).items():
        first = next(iter(by.values()))[0]
        if first["attack"] != "none" and (who is None or victim in who):
            values = [_means(by[d], ("asr",))[0] if d in by else None for d in defenses]
            if any(v is not None for v in values):
                found[victim + "*" * bool(first["weak"])] = values
    _require_lines(list(found), name, defenses, key)
    return found


def by_budget(
    name: str, defenses: Sequence[str], budgets: Sequence[int | None], **key
) -> dict[str, dict[int | None, list[float] | None]]:
    """ACC, ASR and RA, 0..1, by the number of clean images: means over the victims that
    pass the gate, None where one of them has no row.

    Args:
        budgets: as in the rows; None is all of the defender's share.
        name, defenses, key: see :func:`grid`.
    """
    by = {b: _by_victim(name, key | {"budget": b}) for b in budgets}
    strong = {who for of in by.values() for who, rows in of.items() if _passes(rows)}

    def means(d: str, budget: int | None) -> list[float] | None:
        rows = [by[budget].get(who, {}).get(d) for who in strong]
        if not all(rows):
            return None
        victims = [dict(zip(SCORES, _means(r, SCORES), strict=True)) for r in rows]
        return _means(victims, SCORES)

    return {d: {b: means(d, b) for b in budgets} for d in defenses}


def ranking(
    name: str,
    defenses: Sequence[str],
    *,
    resamples: int = 2000,
    against: str | None = None,
    **key,
) -> list[dict]:
    """Defenses by their mean DER, the best first, and how sure that order is.

    The mean runs over the victims that pass the gate and have a row of every defense.
    Other victims could have been in the table. So many tables are drawn from these,
    each with as many victims, with replacement, and as many choices of clean images for
    each (the bootstrap). Up to five victims with one choice each have so few tables
    that all of them are taken, and nothing is left to chance.

    Args:
        name, defenses, key: see :func:`grid`.
        resamples: number of tables drawn, where not all are taken.
        against: one of the defenses, with which the others are compared in each table.

    Returns:
        one dict a defense: `defense`, `der`; `low` and `high`, between which it lies in
        90 % of the tables, in 0..1; the same for its place, `rank_low` and `rank_high`,
        from 1; `first`, the share of tables in which it leads, alone or with equals;
        `above`, that in which it beats `against`; `victims`, the means `acc`, `asr`,
        `ra`, `seconds`, and `worst`, the largest ASR of a victim.
    """
    victims = [
        by for by in _by_victim(name, key).values()
        if _passes(by) and all(d in by for d in defenses)
    ]  # fmt: skip
    _require_lines(victims, name, defenses, key)
    tables = [
        {d: mean(mean(ders) for ders in table[d]) for d in defenses}
        for table in _resampled(
            [{d: [r["der"] for r in by[d]] for d in defenses} for by in victims],
            resamples,
        )
    ]
    lines = []
    for d in defenses:
        low, high = _middle([t[d] for t in tables])
        # Equals share the better place.
        places = [1 + sum(v > t[d] for v in t.values()) for t in tables]
        best, worst = _middle(places)
        shown = ("der", "acc", "asr", "ra", "seconds")
        means = _means([dict(zip(shown, _means(by[d], shown), strict=True))
                        for by in victims], shown)  # fmt: skip
        lines.append({
            "defense": d, "low": low, "high": high,
            "rank_low": best, "rank_high": worst, "victims": len(victims),
            "first": mean(p == 1 for p in places),
            "worst": max(_means(by[d], ("asr",))[0] for by in victims),
            **dict(zip(shown, means, strict=True)),
        })  # fmt: skip
        if against:
            lines[-1]["above"] = mean(t[d] > t[against] for t in tables)
    return sorted(lines, key=lambda r: -r["der"])


def _resampled(
    victims: list[dict[str, list[float]]], resamples: int
) -> Iterator[dict[str, list[list[float]]]]:
    """Tables with as many victims: for each defense, the draws of each victim."""
    rng, n = random.Random(0), len(victims)
    if n <= 5 and all(len(v) == 1 for of in victims for v in of.values()):
        for some in product(victims, repeat=n):
            yield {d: [of[d] for of in some] for d in victims[0]}
        return
    for _ in range(resamples):
        some = rng.choices(victims, k=n)
        yield {d: [rng.choices(of[d], k=len(of[d])) for of in some] for d in some[0]}


def _middle(values: Sequence[float], share: float = 0.9) -> tuple[float, float]:
    """The ends of the middle share of some values."""
    ordered, cut = sorted(values), (1 - share) / 2
    last = len(ordered) - 1
    return ordered[round(cut * last)], ordered[round((1 - cut) * last)]


def ranking_table(lines: Sequence[dict], caption: str = "") -> Table:
    """The lines of :func:`ranking` as a table in percent."""
    from bdcourse.show import Table

    return Table([{
        "place": f"{i}",
        "defense": r["defense"],
        "DER %": 100 * r["der"],
        "90 % of tables": f"{100 * r['low']:.1f} to {100 * r['high']:.1f}",
        "their places": f"{r['rank_low']} to {r['rank_high']}",
        "first in %": 100 * r["first"],
        **({"above in %": 100 * r["above"]} if "above" in r else {}),
        **{f"{k.upper()} %": 100 * r[k] for k in ("acc", "asr", "ra")},
        "seconds": r["seconds"],
    } for i, r in enumerate(lines, 1)], caption)  # fmt: skip


DEFENSES = (
    "none",
    "clp, u = 3",
    "clp, u = 2.5",
    "clp, u on held-out images",
    "random channels",
    "fine-tuning",
)


def _one_setting(rows: list[dict], name: str) -> list[dict]:
    """The rows, if those of an attack differ in seed only; averaging over more would
    mean nothing."""
    keys = [f.name for f in fields(Recipe)] + ["data", "options", "budget"]
    for attack in {r["attack"] for r in rows} - {"none"}:
        settings = {
            str([r.get(k) for k in keys]) for r in rows if r["attack"] == attack
        }
        if len(settings) > 1:
            raise ValueError(
                f"{name} holds {len(settings)} settings of {attack}; tabulate one at a "
                "time, as with --where budget=500."
            )
    return rows


def standard_table(
    name: str, caption: str = "", defenses: Sequence[str] = DEFENSES
) -> Table:
    """The course's result table: attacks of data/results/NAME.json x defenses."""
    from bdcourse.show import Table

    found = _one_setting(results(name).rows, name)
    lines = []
    for attack in dict.fromkeys(r["attack"] for r in found):
        for defense in defenses:
            rows = [r for r in found if r["attack"] == attack and "acc" in r
                    and r["defense"] == defense]  # fmt: skip
            if rows:
                label = "(benign twin)" if attack == "none" else attack
                weak = sum(bool(r["weak"]) for r in rows)
                label += f" ({weak} of {len(rows)} weak)" if weak else ""
                lines.append(table_row(rows, attack=label, defense=defense))
    _require_lines(lines, name, defenses, {})
    return Table(lines, caption)


def attack_table(name: str, attacks: Sequence[str] = (), caption: str = "") -> Table:
    """Victims of data/results/NAME.json, one line each, beside their benign twin.

    Args:
        attacks: which, in this order; default all in the file.

    A star marks attacks whose original needs an asset that we replace. What replaces
    it, and where an attack got another recipe or other arguments than the rest, stands
    in the caption.
    """
    from bdcourse.show import Table

    rows = [r for r in results(name).rows if "acc" in r]
    found = _one_setting(rows, name)
    names = attacks or [n for n in ATTACKS if any(r["attack"] == n for r in found)]
    lines, replaced, changed = [], [], []
    twins = [r for r in found if r["attack"] == "none" and r["defense"] == "none"]
    _require_lines(twins, name, ["none"], {"attack": "none"})
    for attack in ("none", *names):
        rows = [r for r in found if r["attack"] == attack]
        plain = [r for r in rows if r["defense"] == "none"]
        if attack == "none":  # the one of the recipe that most attacks share
            plain = [r for r in plain if r["epochs"] == twins[0]["epochs"]]
        tuned = [r["asr"] for r in rows if r["defense"] == "fine-tuning"]
        if not plain:
            continue
        label = "(benign twin)"
        if attack != "none":
            cls = ATTACKS[attack]
            label = cls.__name__ + ("*" if cls.stands_in else "")
            if cls.stands_in:
                replaced.append(f"{attack}: {cls.stands_in}")
            other = {k: plain[0][k] for k in ("epochs", "lr")}
            other = {k: v for k, v in other.items() if v != twins[0][k]}
            other |= plain[0].get("options") or {}
            if other:
                text = ", ".join(f"{k} {v:.3g}" for k, v in other.items())
                changed.append(f"{attack}: {text}")
        row = table_row(plain, attack=label)
        crossed = [r["cross"] for r in plain if r.get("cross") is not None]
        lines.append({
            "attack": label,
            "poison": round(mean(r["n_poisoned"] for r in plain)),
            "cover": round(mean(r.get("n_cover", 0) for r in plain)),
            **{k: row[k] for k in ("ACC %", "ASR %", "RA %")},
            "cross %": 100 * mean(crossed) if crossed else None,
            "ASR % tuned": 100 * mean(tuned) if tuned and attack != "none" else None,
            "gate": "weak" if any(r["weak"] for r in plain) else "passes",
        })  # fmt: skip
    note = " * " + "; ".join(replaced) + "." if replaced else ""
    note += " Other settings: " + "; ".join(changed) + "." if changed else ""
    return Table(lines, (caption.removesuffix(".") + "." if caption else "") + note)
