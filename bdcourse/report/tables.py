"""The tables of the course, made from measured rows.

Nothing here computes a score: every number of a table comes from a file of rows, such
as `python -m bdcourse bench` writes. Derived in lesson 03.
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from bdcourse import require
from bdcourse.attacks import ATTACKS
from bdcourse.bench.results import (
    DEFENSES,
    RECIPE,
    _called,
    _require_sound,
    results,
)

if TYPE_CHECKING:
    from bdcourse.report.show import Table

REMOVED = 0.1  # ASR, a share, from which on a backdoor is still there: the course's rule


def mean(values: Iterable[Any]) -> float:
    """The arithmetic mean of finite numbers, in whatever order they come."""
    try:
        found = list(values)
    except TypeError:  # a 0-d tensor calls itself iterable
        raise ValueError(f"values must be numbers, not {require.kind(values)}.") from None
    if not found:
        raise ValueError("there is no mean of no values.")
    for v in found:
        v = v.item() if getattr(v, "ndim", None) == 0 else v  # a tensor of one number
        require.number("each value of a mean", +v if isinstance(v, bool) else v)
    return statistics.fmean(found)


def require_entries(rows: Sequence[Mapping], keys: Iterable[str], source: str) -> None:
    """Refuse rows that lack what a table shows."""
    if isinstance(rows, (str, Mapping)) or not isinstance(rows, Iterable):
        raise ValueError(f"rows must be a list of dicts, not {require.kind(rows)}.")
    for r in rows:
        _require_sound(r, source)
        for k in keys:
            if r.get(k) is None:
                raise ValueError(
                    f"the row ({_called(r)}) of {source} has no {k!r}, which this table shows."
                )


def _with(key: Mapping) -> str:
    """' with budget=500', or nothing."""
    said = ", ".join(f"{k}={v!r}" for k, v in key.items())
    return f" with {said}" if said else ""


def table_row(rows: Sequence[dict], **first) -> dict:
    """One line of the course's result table from the rows of several seeds.

    Mean and half the range over seeds, in percent; with one seed the value alone.
    """
    require_entries(rows, ("pruned", "clean_used", "seconds"), "rows")
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


Victims = dict[str, dict[str, list[dict]]]  # victim or attack -> defense -> draws


def _by_victim(name: str, key: dict) -> Victims:
    """Scored rows of data/results/NAME.json, the twins first."""
    found: Victims = {}
    rows = [r for r in results(name).select(**key) if "acc" in r]
    require_entries(rows, ("attack", "defense", "weak"), name)
    several = len(_tasks(rows)) > 1
    for r in sorted(rows, key=lambda r: r["attack"] != "none"):
        who = r.get("victim") or r["attack"]
        if several and r["attack"] == "none":  # each task has a twin of its own
            who = f"{who} ({_task(r)})"
        found.setdefault(who, {}).setdefault(r["defense"], []).append(r)
    for by in found.values():
        _one_setting([r for rows in by.values() for r in rows], name)
    return found


def _tasks(rows: Iterable[Mapping]) -> set[str]:
    return {_task(r) for r in rows}


def _task(row: Mapping) -> str:
    """Of what task a row is; those of before there were others are of images."""
    return str(row.get("task", "images"))


def _means(rows: Sequence[dict], keys: Sequence[str]) -> list[Any]:
    """The mean of each key over the rows that have it, None where none has."""
    columns = [[r[k] for r in rows if r.get(k) is not None] for k in keys]
    return [mean(c) if c else None for c in columns]


def _attacked(by: dict[str, list[dict]]) -> bool:
    """Whether these are rows of a victim, and not of a benign twin."""
    return any(r["attack"] != "none" for rows in by.values() for r in rows)


def _weak(by: dict[str, list[dict]]) -> str:
    """Why one of these networks misses the gate, or ""; no order of rows decides."""
    return max(r["weak"] or "" for rows in by.values() for r in rows)


def _passes(by: dict[str, list[dict]]) -> bool:
    """Whether these are rows of a victim, and of one that passes the gate."""
    return _attacked(by) and not _weak(by)


def strong(name: str, defenses: Sequence[str] = (), **key) -> Victims:
    """The victims that pass the gate: name -> defense -> rows, one for each draw.

    Raises:
        ValueError: there is none, and why; a row of these defenses lacks a score.
    """
    victims = {v: by for v, by in _by_victim(name, key).items() if _attacked(by)}
    found = {v: by for v, by in victims.items() if not _weak(by)}
    if not victims:
        raise ValueError(f"{name} holds no scores of an attacked network{_with(key)}.")
    if not found:
        missed = [f"{v}: {_weak(by).rstrip('.')}" for v, by in victims.items()]
        more = f"; and {len(missed) - 4} more" if len(missed) > 4 else ""
        raise ValueError(
            f"no victim in {name}{_with(key)} passes the gate, so there is nothing to "
            f"average ({'; '.join(missed[:4])}{more})."
        )
    tasks = sorted(_tasks(r for by in found.values() for rows in by.values() for r in rows))
    if len(tasks) > 1:
        raise ValueError(
            f"{name} holds rows of several tasks, {' and '.join(tasks)}, whose scores have no "
            f"mean; choose one, such as task={tasks[-1]!r}."
        )
    for by in found.values():
        require_entries([r for d in defenses for r in by.get(d, ())], SUMMED, name)
    return found


def asked(
    name: str,
    defenses: Sequence[str],
    key: dict,
    who: Sequence[str] | None = None,
) -> list[str]:
    """The defenses, and victims, that a table is asked for, none of them misspelt.

    A defense of the package without rows is none: its cells stay empty.
    """
    from bdcourse.bench.plans import PLANS

    defenses, rows = require.names("defenses", defenses), results(name).rows
    if not defenses:
        raise ValueError("defenses is empty; name at least one, such as 'none'.")
    require_rows(name, rows)
    had = dict.fromkeys(str(r.get("defense")) for r in rows)
    victims = dict.fromkeys(str(r.get("victim") or r.get("attack")) for r in rows)
    for what, names, known in (
        ("row of", defenses, had | PLANS),
        ("victim", [] if who is None else require.names("who", who), victims),
    ):
        for n in names:
            if n not in known:
                raise ValueError(
                    f"{name} holds no {what} {n}{_with(key)}{require.meant(n, known)}."
                )
    return defenses


def require_rows(name: str, rows: list) -> None:
    """Refuse a file in which nothing was measured yet."""
    if not rows:
        raise ValueError(f"{name} holds no rows yet; `python -m bdcourse bench --out` adds some.")


def _require_lines(lines: list, name: str, defenses: Sequence[str], key: dict) -> None:
    if not lines:
        raise ValueError(f"{name} holds no row of {', '.join(defenses)}{_with(key)}.")


STAR = "A star: misses the gate of the protocol; shown, but part of no mean."


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
    of the others, where each of them has all of these defenses, and all are of one task:
    an accuracy and an average precision have no mean.
    """
    from bdcourse.report.show import Table

    defenses = asked(name, defenses, key, who)
    lines, passed = [], []
    passed_rows: list[dict] = []
    for victim, by in _by_victim(name, key).items():
        if who is not None and victim not in who:
            continue
        cells = {d: _means(by[d], SCORES) if d in by else [] for d in defenses}
        if not any(cells.values()):
            continue
        if _passes(by) and all(cells.values()):
            passed.append(cells)
            passed_rows += [r for rows in by.values() for r in rows]
        label = victim + "*" * bool(_weak(by))
        if victim == "none" or victim.startswith("none ("):
            label = f"(benign twin){victim.removeprefix('none')}"
        shown = {d: _slashed(c, _half([r["asr"] for r in by.get(d, ())])) for d, c in cells.items()}
        lines.append({"victim": label, **shown})
    _require_lines(lines, name, defenses, key)
    if len(passed) > 1 and len(_tasks(passed_rows)) == 1:
        columns = {d: [mean(c[d][i] for c in passed) for i in range(3)] for d in defenses}
        label = f"mean of {len(passed)}"
        lines.append({"victim": label, **{d: _slashed(c) for d, c in columns.items()}})
    starred = any(line["victim"].endswith("*") for line in lines)
    return Table(lines, caption, STAR * starred)


def _half(values: Iterable[float | None]) -> float:
    """Half the range, 0 where there is none."""
    known = [v for v in values if v is not None]
    return (max(known) - min(known)) / 2 if known else 0.0


def _slashed(values: Sequence[float | None], spread: float = 0) -> str:
    if not values:
        return ""
    shown = ["–" if v is None else f"{100 * v:.1f}" for v in values]
    if spread > 0.0049:
        shown[1] += f" ± {100 * spread:.1f}"
    return " / ".join(shown)


def summary(name: str, defenses: Sequence[str], caption: str = "", **key) -> Table:
    """One line a defense: means over the victims that pass the gate, as leaderboards.

    "fails" counts victims whose ASR stays above 10 %. The last column is what others
    report, from data/results/published.json, where the sources stand. Arguments as in
    :func:`grid`.
    """
    from bdcourse.report.show import Table

    lines, defenses = [], asked(name, defenses, key)
    elsewhere = {r["defense"]: r for r in results("published").rows}
    passed = strong(name, defenses, **key).values()
    for d in defenses:
        rows = [dict(zip(SUMMED, _means(by[d], SUMMED), strict=True)) for by in passed if d in by]
        if rows:
            acc, asr, ra, der, images, seconds = _means(rows, SUMMED)
            lines.append(
                {
                    "defense": d,
                    "victims": len(rows),
                    "ACC %": 100 * acc,
                    "ASR %": 100 * asr,
                    "RA %": 100 * ra,
                    "DER %": 100 * der,
                    "fails": sum(r["asr"] > REMOVED for r in rows),
                    "clean images": round(images),
                    "seconds": seconds,
                    "elsewhere": _slashed(_published(elsewhere.get(d))),
                }
            )
    _require_lines(lines, name, defenses, key)
    return Table(lines, caption)


def _published(row: dict | None) -> list[float | None]:
    return [row[k] for k in SCORES] if row else []


SCORES = ("acc", "asr", "ra")
SUMMED = ("acc", "asr", "ra", "der", "clean_used", "seconds")


def scores(
    name: str,
    defenses: Sequence[str],
    of: str = "asr",
    *,
    who: Sequence[str] | None = None,
    **key,
) -> dict[str, list[float | None]]:
    """A score by victim: name -> one value a defense, means over draws, 0..1.

    Args:
        of: "acc", "asr", "ra" or "der".

    None where there is no row. The other arguments are those of :func:`grid`; a star
    marks the weak.
    """
    require.choice("of", of, (*SCORES, "der"))
    found, defenses = {}, asked(name, defenses, key, who)
    for victim, by in _by_victim(name, key).items():
        if _attacked(by) and (who is None or victim in who):
            values = [_means(by[d], (of,))[0] if d in by else None for d in defenses]
            if any(v is not None for v in values):
                found[victim + "*" * bool(_weak(by))] = values
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
    defenses = asked(name, defenses, key)
    if isinstance(budgets, (str, Mapping)) or not isinstance(budgets, Iterable):
        raise ValueError(f"budgets must be a list, not {require.kind(budgets)}.")
    budgets = [None if b is None else require.whole("budget", b, 1) for b in budgets]
    by = {b: _by_victim(name, key | {"budget": b}) for b in budgets}
    passed = {who for of in by.values() for who, rows in of.items() if _passes(rows)}

    def means(d: str, budget: int | None) -> list[float] | None:
        rows = [by[budget].get(who, {}).get(d, []) for who in passed]
        if not rows or not all(rows):
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
    defenses = asked(name, defenses, key)
    require.whole("resamples", resamples, 1)
    if against is not None:
        require.choice("against", against, defenses)
    passed = strong(name, defenses, **key).values()
    victims = [by for by in passed if all(d in by for d in defenses)]
    if not victims:
        raise ValueError(
            f"no victim in {name}{_with(key)} that passes the gate has a row of each "
            f"of {', '.join(defenses)}."
        )
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
        means = _means(
            [dict(zip(shown, _means(by[d], shown), strict=True)) for by in victims], shown
        )
        lines.append(
            {
                "defense": d,
                "low": low,
                "high": high,
                "rank_low": best,
                "rank_high": worst,
                "victims": len(victims),
                "first": mean(p == 1 for p in places),
                "worst": max(_means(by[d], ("asr",))[0] for by in victims),
                **dict(zip(shown, means, strict=True)),
            }
        )
        if against:
            lines[-1]["above"] = mean(t[d] > t[against] for t in tables)
    return sorted(lines, key=lambda r: -r["der"])


RANKED = (
    "defense",
    "der",
    "low",
    "high",
    "rank_low",
    "rank_high",
    "first",
    "acc",
    "asr",
    "ra",
    "seconds",
    "victims",
)


def require_ranked(lines: object) -> None:
    """Refuse what is not the answer of :func:`ranking`."""
    found = lines if isinstance(lines, (list, tuple)) else ()
    if not found or not all(isinstance(r, Mapping) and r.keys() >= {*RANKED} for r in found):
        raise ValueError("lines must be what tables.ranking returns.")


def _resampled(
    victims: list[dict[str, list[float]]], resamples: int
) -> Iterator[dict[str, list[list[float]]]]:
    """Tables with as many victims: for each defense, the draws of each victim."""
    rng, n = random.Random(0), len(victims)
    if n <= 5 and all(len(v) == 1 for of in victims for v in of.values()):
        for each in product(victims, repeat=n):
            yield {d: [of[d] for of in each] for d in victims[0]}
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
    from bdcourse.report.show import Table

    require_ranked(lines)
    return Table(
        [
            {
                "place": f"{i}",
                "defense": r["defense"],
                "DER %": 100 * r["der"],
                "90 % of tables": f"{100 * r['low']:.1f} to {100 * r['high']:.1f}",
                "their places": f"{r['rank_low']} to {r['rank_high']}",
                "first in %": 100 * r["first"],
                **({"above in %": 100 * r["above"]} if "above" in r else {}),
                **{f"{k.upper()} %": 100 * r[k] for k in ("acc", "asr", "ra")},
                "seconds": r["seconds"],
            }
            for i, r in enumerate(lines, 1)
        ],
        caption,
    )


def _one_setting(rows: list[dict], name: str) -> list[dict]:
    """The rows, if those of an attack differ in seed only; averaging over more would
    mean nothing."""
    keys = [*RECIPE, "data", "options", "budget"]
    for attack in dict.fromkeys(r["attack"] for r in rows):
        settings = {str([r.get(k) for k in keys]) for r in rows if r["attack"] == attack}
        if len(settings) > 1:
            raise ValueError(
                f"{name} holds {len(settings)} settings of {attack}; tabulate one at a "
                "time, as with --where budget=500."
            )
    return rows


def standard_table(name: str, caption: str = "", defenses: Sequence[str] = DEFENSES) -> Table:
    """The course's result table: attacks of data/results/NAME.json x defenses."""
    from bdcourse.report.show import Table

    defenses, found = asked(name, defenses, {}), results(name).rows
    scored = [r for r in found if "acc" in r]
    require_entries(found, ("attack", "defense"), name)
    require_entries(scored, ("weak",), name)
    _one_setting(scored, name)
    lines = []
    for attack in dict.fromkeys(r["attack"] for r in found):
        for defense in defenses:
            rows = [r for r in scored if r["attack"] == attack and r["defense"] == defense]
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
    from bdcourse.report.show import Table

    attacks = require.names("attacks", attacks)
    found = [r for r in results(name).rows if "acc" in r]
    require_entries(found, ("attack", "defense", "weak", "epochs", "lr"), name)
    _one_setting([r for r in found if r["attack"] != "none"], name)
    known = dict.fromkeys(r["attack"] for r in found)
    for a in attacks:
        if a not in ATTACKS or a not in known:
            raise ValueError(f"{name} holds no row of {a}{require.meant(a, known)}.")
    names = attacks or [n for n in ATTACKS if n in known]
    lines, replaced, changed = [], [], []
    plain = [r for r in found if r["defense"] == "none"]
    # Beside victims stands the twin of the recipe that most of them share.
    shared = Counter((r["epochs"], r["lr"]) for r in plain if r["attack"] != "none")
    twins = [r for r in plain if r["attack"] == "none"]
    twins.sort(key=lambda r: (-shared[r["epochs"], r["lr"]], r["epochs"], r["lr"]))
    _require_lines(twins, name, ["none"], {"attack": "none"})
    for attack in ("none", *names):
        rows = [r for r in found if r["attack"] == attack]
        plain = [r for r in rows if r["defense"] == "none"]
        if attack == "none":
            usual = [twins[0][k] for k in ("epochs", "lr")]
            plain = [r for r in plain if [r["epochs"], r["lr"]] == usual]
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
                text = ", ".join(
                    f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in other.items()
                )
                changed.append(f"{attack}: {text}")
        row = table_row(plain, attack=label)
        crossed = [r["cross"] for r in plain if r.get("cross") is not None]
        lines.append(
            {
                "attack": label,
                "poison": round(mean(r.get("n_poisoned", 0) for r in plain)),
                "cover": round(mean(r.get("n_cover", 0) for r in plain)),
                **{k: row[k] for k in ("ACC %", "ASR %", "RA %")},
                "cross %": 100 * mean(crossed) if crossed else None,
                "ASR % tuned": 100 * mean(tuned) if tuned and attack != "none" else None,
                "gate": "weak" if any(r["weak"] for r in plain) else "passes",
            }
        )
    note = " * " + "; ".join(replaced) + "." if replaced else ""
    note += " Other settings: " + "; ".join(changed) + "." if changed else ""
    return Table(lines, (caption.removesuffix(".") + "." if caption else "") + note)
