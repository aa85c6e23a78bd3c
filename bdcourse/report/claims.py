"""What others report beside what we measured, with a verdict that follows from a rule.

The claims stand in data/results/published-claims.json, the rows that answer them in the
other files of that folder; `tools/pages.py` writes the book's page from both. Derived in
lesson 09.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from operator import getitem

from bdcourse import require
from bdcourse.bench.results import Results
from bdcourse.report import tables
from bdcourse.report.show import Markdown, Table
from bdcourse.report.tables import mean

METHODS = {
    "linf": "L-infinity pruning",
    "clp": "CLP",
    "fmp": "FMP",
    "mnp": "MNP, a reconstruction",
    "fip": "FIP",
    "attacks": "Attacks, undefended",
    "rivals": "Rivals and controls",
    "toolbox": "Toolboxes and their code",
}
SHORT = dict(zip(METHODS, "l-inf. CLP FMP MNP FIP attacks rivals toolboxes".split(), strict=True))
CLOSE = 0.03  # shares so near a bound say nothing with one seed and one draw
DEAR = 0.05  # so much more accuracy lost than published
# Whether the attack (of the rows about attacks) or the defense did what it is for.
WORKS, DEARER, FAILS = "works in both", "works, at a higher price", "fails in both"
THERE, HERE = "works there only", "works here only"
SIDES = (WORKS, DEARER, FAILS, THERE, HERE)
AGREE, DIFFER = "numbers agree", "numbers differ"
SAME, OTHER = "same direction", "other direction"
NEAR, WEAK = "too close", "weak victim"
LESSON, APART, MISSING = "in a lesson", "not comparable", "not measured"
RULES = ("within", "less", "greater", "at least times", "below", "above")
VERDICTS = (*SIDES, AGREE, DIFFER, SAME, OTHER, NEAR, WEAK, LESSON, APART, MISSING)


@dataclass(frozen=True)
class Finding:
    """A claim and what our rows say of it.

    Args:
        claim: its row of published-claims.json.
        verdict: one of :data:`VERDICTS`.
        rows: ours; none if we have not measured it.
        beside: ours that they are compared with, such as no defense.
        value, others: what the rule compares, and the same of `beside`.
    """

    claim: dict
    verdict: str
    rows: tuple[dict, ...] = ()
    beside: tuple[tuple[dict, ...], ...] = ()
    value: float | None = None
    others: tuple[float, ...] = ()

    def reported(self) -> str:
        """The published figure, and BackdoorBench's of the same attack and defense."""
        paper = _figures(self.claim["published"])
        other = _figures(self.claim["leaderboard"])
        return "; ".join(filter(None, [paper, other and f"leaderboard {other}"]))

    def gap(self) -> float | None:
        """Our ASR minus the published one, shares; None where the two do not face."""
        said = self.claim["published"] or self.claim["leaderboard"] or {}
        rule = self.claim["rule"] or {}
        if self.value is None or rule.get("key") != "asr" or said.get("asr") is None:
            return None
        return self.value - said["asr"]

    def ours(self) -> str:
        """Our figures, and in brackets what stands beside them."""
        if not self.rows:
            return ""
        if self.claim["ours"].get("read"):
            what = self.claim["ours"]["read"][-1]
            other = f" ({_name(self.beside[0])}: {self.others[0]:.3g})" if self.others else ""
            return f"{NAMES.get(what, what.replace('_', ' '))} {self.value:.3g}{other}"
        beside = "; ".join(f"{_name(rows)}: {_shares(rows)}" for rows in self.beside)
        return _shares(self.rows) + (f" ({beside})" if beside else "")


def findings(method: str | None = None) -> list[Finding]:
    """Every claim, or those about one of :data:`METHODS`, with its verdict."""
    if method is not None:
        require.choice("method", method, METHODS)
    claims = tables.results("published-claims").rows
    read = cache(tables.results)  # most claims ask the same few files
    return [finding(c, read) for c in claims if method in (None, c["method"])]


def finding(claim: dict, read: Callable[[str], Results] = tables.results) -> Finding:
    """Look up our rows for a claim, and compare.

    Args:
        read: gives the table of a name.

    Raises:
        ValueError: the claim names rows or entries that are not there, or no known
            rule.
    """
    try:
        return _finding(claim, read)
    except (LookupError, TypeError, AttributeError) as e:
        called = claim.get("id") if isinstance(claim, dict) else require.kind(claim)
        raise ValueError(f"claim {called}, or a row that answers it, lacks an entry ({e}).") from e


def _finding(claim: dict, read: Callable[[str], Results]) -> Finding:
    ours, rule = claim["ours"], claim["rule"]
    if ours is None:
        return Finding(claim, LESSON if claim.get("lesson") else MISSING)
    rows = _select(claim, ours["select"], read)
    beside = tuple(_select(claim, s, read) for s in ours["beside"])
    if rule is None:
        verdict = LESSON if claim.get("lesson") else APART
        value, others = None, ()
        if ours.get("read"):
            value, others = _value(claim, rows), tuple(_value(claim, b) for b in beside)
        return Finding(claim, verdict, rows, beside, value, others)
    value = _value(claim, rows)
    others = tuple(_value(claim, b) for b in beside)
    held, margin = _compare(rule, value, others, claim)
    verdict = _side(claim, held)
    if verdict == WORKS and "drop" in claim and beside:
        lost = mean(r["acc"] for r in beside[0]) - mean(r["acc"] for r in rows)
        verdict = DEARER if lost > max(0, claim["drop"]) + DEAR else WORKS
    # At the gate of an attack, 95 %, the line itself is the question.
    if verdict in SIDES and margin < CLOSE and rule["bound"] < 0.9:
        verdict = NEAR
    if any(r["weak"] for r in rows) and claim["method"] != "attacks":
        verdict = WEAK
    return Finding(claim, verdict, rows, beside, value, others)


def _side(claim: dict, held: bool) -> str:
    """What a rule that held, or did not, says of the two sides."""
    rule = claim["rule"]
    if rule["kind"] == "within":
        return AGREE if held else DIFFER
    if rule["kind"] not in ("below", "above") or rule["key"] != "asr":
        return SAME if held else OTHER
    works_there = (rule["kind"] == "above") == (claim["method"] == "attacks")
    if held:
        return WORKS if works_there else FAILS
    return THERE if works_there else HERE


def _select(claim: dict, key: dict, read: Callable[[str], Results]) -> tuple[dict, ...]:
    wanted = claim["ours"].get("attacks")
    rows = tuple(
        r
        for r in read(claim["ours"]["file"]).select(**key)
        if "acc" in r and (wanted is None or r["attack"] in wanted)
    )
    if not rows:
        raise ValueError(f"claim {claim['id']}: there is no row with {key}.")
    return rows


def _value(claim: dict, rows: Sequence[dict]) -> float:
    path = claim["ours"].get("read") or [(claim["rule"] or {"key": "asr"})["key"]]
    return mean(reduce(getitem, path, r) for r in rows)


def _compare(rule: dict, value: float, others: Sequence[float], claim: dict) -> tuple[bool, float]:
    """Whether the rule holds, and how far the value is from where that changes."""
    kind = require.choice(f"the rule of claim {claim['id']}", rule["kind"], RULES)
    bound = rule.get("bound", 1.0)
    if kind == "within":
        figures = claim["published"] or claim["leaderboard"]
        off = abs(value - figures[rule["key"]])
        return off <= bound, abs(off - bound)
    if kind in ("less", "greater"):
        sign = 1 if kind == "less" else -1
        gap = sign * (others[rule["of"]] - value)
        return gap > 0, abs(gap)
    if kind == "at least times":
        gap = value - bound * others[rule["of"]]
        return gap >= 0, abs(gap)
    gap = bound - value if kind == "below" else value - bound
    return gap > 0, abs(gap)


def _shares(rows: Sequence[dict]) -> str:
    columns = [[r[k] for r in rows if r.get(k) is not None] for k in tables.SCORES]
    return " / ".join(f"{100 * mean(c):.1f}" if c else "–" for c in columns)


def _name(rows: Sequence[dict]) -> str:
    first = rows[0]
    who = "twin, " if first["attack"] == "none" else ""
    return f"{who}{first['defense']}"


def _figures(published: dict | None) -> str:
    if not published or "claim" in published:
        return ""
    if "asr" in published:
        return " / ".join(
            "–" if published.get(k) is None else f"{100 * published[k]:.1f}" for k in tables.SCORES
        )
    unit = published.get("unit", "")
    numbers = {k: v for k, v in published.items() if k != "unit"}
    ends = set(numbers) == {"low", "high"} and not unit  # of shares
    said = []
    for k, v in numbers.items():
        share = unit == "share" or ends or k.startswith(("asr", "acc"))
        text = f"{v:,}" if isinstance(v, int) else f"{v:,.5g}"
        text = f"{100 * v:.4g} %" if share else text
        if k == "value":
            said.append(text if share or not unit else f"{text} {unit}")
        else:
            said.append(f"{NAMES.get(k, k.replace('_', ' '))} {text}")
    return ", ".join(said).replace(", to ", " to ").replace(", of ", " of ")


# How the report calls what published-claims.json names in a word.
NAMES = {
    "lambda_max": "top eigenvalue",
    "hessian_trace": "trace",
    "acc": "ACC",
    "asr_10": "10 % poison",
    "asr_5": "5 % poison",
    "asr_1": "1 % poison",
    "asr_03": "0.3 % poison",
    "asr_drop": "ASR falls by",
    "acc_drop": "ACC falls by",
    "low": "from",
    "high": "to",
    "at_u_5": "at u = 5",
    "p_32": "at p = 32",
    "at_001": "at 0.01",
    "at_01": "at 0.1",
    "at_64": "at 64 pixels",
    "at_224": "at 224 pixels",
    "l1": "l1 norm",
    "l2": "l2 norm",
    "linf": "maximum",
    "matrix_inf": "matrix norm",
    "six": "six channels",
    "seven": "seven channels",
    "gaussian_false": "false alarms of normal numbers",
    "sum": "sums",
    "rms": "RMS",
    "value_preact": "pre-activation",
    "per_map_s": "seconds a map",
    "bb": "BackdoorBench",
    "batched_low": "batched from",
    "batched_high": "to",
    "double_low": "double backward from",
    "double_high": "to",
    "paired": "in pairs",
}


def headlines() -> list[Finding]:
    """The main figures: each method's own, and the leaderboard's of CLP and of the rivals.

    They were chosen by where they stand in the papers, not by how ours came out.
    """
    return [a for a in findings() if a.claim.get("headline")]


def tally() -> Table:
    """How many claims of each method ended with which verdict."""
    found = Counter((a.verdict, a.claim["method"]) for a in findings())
    return Table(
        [
            {
                "verdict": v,
                **{SHORT[m]: found[v, m] or "" for m in METHODS},
                "all": sum(found[v, m] for m in METHODS),
            }
            for v in VERDICTS
        ]
    )


def method_table(method: str) -> Table:
    """All claims about one of :data:`METHODS`."""
    return _lines(findings(method))


def headline_table() -> Table:
    """The claims of :func:`headlines`."""
    return _lines(headlines())


def _lines(found: Sequence[Finding]) -> Table:
    return Table(
        [
            {
                "claim": f"{a.claim['what']} ({a.claim['where']}; {a.claim['setting']})",
                "reported": a.reported(),
                "ours": a.ours(),
                "ASR apart": "" if (gap := a.gap()) is None else f"{100 * gap:+.0f}",
                "verdict": _verdict(a),
                "why": Markdown(a.claim["reason"]),
            }
            for a in found
        ]
    )


def _verdict(a: Finding) -> str:
    lesson = a.claim.get("lesson")
    if not lesson:
        return a.verdict
    number = lesson["notebook"].split("_")[0]
    link = f"[{number}](../notebooks/{lesson['notebook']}.ipynb)"
    said = f"lesson {link}" if a.verdict == LESSON else f"{a.verdict}; lesson {link}"
    return Markdown(said)
