"""The exercise checks of lesson 09."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from bdcourse import models
from bdcourse.teach.check.core import (
    call,
    close,
    fresh,
    guarded,
    need,
    number,
    passed,
    shaped,
)

WHOLE = "clamps the difference of both changes; each change has a maximum of its own."


@guarded
def balance(fn: Callable[[float, float, float, float], float]) -> None:
    """balance(acc, asr, acc_after, asr_after) -> DER."""
    name, g = "balance", fresh()

    def ask(*values: float) -> float:
        return number(name, call(name, fn, *values))

    def near(a: float, b: float) -> bool:
        return abs(a - b) < 1e-6

    ideal = ask(0.9, 1.0, 0.9, 0.0)
    need(not near(ideal, 2.0), name, "runs from 0 to 2; halve the sum.", 1)
    need(
        not (near(ideal, 0.5) and near(ask(0.9, 1.0, 0.9, 1.0), 0.0)),
        name,
        "forgets the 1 in the sum.",
        1,
    )
    need(
        not near(ideal, 0.5),
        name,
        "gives 1/2 for a perfect repair, as for none; both differences are before minus after.",
        2,
    )
    need(
        not near(ideal, 0.0),
        name,
        "gives 0 for a perfect repair; what does ASR fall by?",
        2,
    )
    need(near(ideal, 1.0), name, "must be 1 when ASR falls from 1 to 0 for free.", 1)
    for _ in range(4):
        acc, asr, a, s = torch.rand(4, generator=g).tolist()
        acc, a = max(acc, a), min(acc, a)  # accuracy falls
        asr, s = max(asr, s), min(asr, s)  # and so does the attack success
        want = (asr - s - (acc - a) + 1) / 2
        got = ask(acc, asr, a, s)
        need(
            not near(got, (asr - s + acc - a + 1) / 2),
            name,
            "rewards a loss of accuracy; subtract it.",
            2,
        )
        need(want > 0.5 or not near(got, 0.5), name, WHOLE, 3)
        need(near(got, want), name, f"is {got:.4f}, not {want:.4f}.", 2)
        up = ask(a, asr, acc, s)
        need(
            not near(up, want),
            name,
            "charges for accuracy that rose; a gain counts as no loss.",
            3,
        )
        need(
            near(up, (asr - s + 1) / 2),
            name,
            "pays for accuracy that rose; a gain counts as no loss.",
            3,
        )
        worse = ask(acc, s, a, asr)
        need(
            not near(worse, want),
            name,
            "pays for attack success that rose; it counts as no drop.",
            3,
        )
        need(acc == a or not near(worse, 0.5), name, WHOLE, 3)
        need(
            near(worse, (1 - (acc - a)) / 2),
            name,
            "charges for attack success that rose; it counts as no drop.",
            3,
        )
    passed(name, "1 for a perfect repair, 1/2 for none; gains are not paid for")


@guarded
def resampled_means(fn: Callable[[Tensor, int, torch.Generator], Tensor]) -> None:
    """resampled_means(scores, n, generator) -> means of n samples with replacement."""
    name, g = "resampled_means", fresh()
    scores = torch.rand(5, generator=g)
    seed = int(torch.randint(10**9, (), generator=g))

    def draw(of: Tensor, n: int, seed: int) -> Tensor:
        out = call(name, fn, of, n, torch.Generator().manual_seed(seed))
        shaped(name, out, (n,))
        return out

    out = draw(scores, 2000, seed)
    need(
        torch.equal(out, draw(scores, 2000, seed)),
        name,
        "does not draw from the generator that it is given.",
        1,
    )
    spread = float(out.std())
    need(
        spread > 1e-6,
        name,
        "is always the same: either drawn without replacement, where every sample is the whole, "
        "or one sample n times.",
        1,
    )
    want = float(scores.std(correction=0)) / 5**0.5
    need(
        abs(spread - float(scores.std(correction=0))) > 0.2 * want,
        name,
        "is one victim each time; a sample has as many as there are.",
        2,
    )
    need(
        abs(float(out.mean()) - float(scores.mean())) < 6 * want / 2000**0.5 + 1e-4,
        name,
        "has another mean than the scores.",
        3,
    )
    pair = float(draw(torch.tensor([0.0, 1.0]), 2000, seed).std()) / 0.125**0.5
    need(
        # Chance: 0.016. One by one, for max() lets nan pass.
        abs(spread / want - 1) < 0.07 and abs(pair - 1) < 0.07,
        name,
        f"spreads {spread / want:.2f} times as far as it should over five scores, and "
        f"{pair:.2f} times over two; is a sample as large as the set, whatever its "
        "size?",
        2,
    )
    halves = draw(torch.tensor([0.0, 1.0]), 200, seed)
    need(
        close((2 * halves).round() / 2, halves),
        name,
        "holds a mean that no sample has: of 0 and 1, samples of two average to 0, 1/2 or 1.",
        2,
    )
    lone = draw(torch.tensor([0.7]), 3, seed)
    need(close(lone, torch.full((3,), 0.7)), name, "fails with one victim.", 2)
    need(
        not torch.equal(out, draw(scores, 2000, seed + 1)),
        name,
        "has a generator of its own; draw from the one that it is given.",
        1,
    )
    passed(name, "means of whole samples, drawn with replacement from your generator")


@guarded
def by_the_test(fn: Callable[[Tensor, Tensor, float], int]) -> None:
    """by_the_test(acc, asr, least) -> position of the lowest ASR where acc >= least."""
    name, g = "by_the_test", fresh()
    for exactly in (True, False, True, False, True, False):
        acc, asr, least, slips = _distinct(g, exactly)
        got = number(name, call(name, fn, acc, asr, least, hint=2))
        need(got in range(len(acc)), name, "is no position in the list.", 1)
        for slip, symptom in slips.items():
            need(got != slip, name, *symptom)
        need(bool(acc[int(got)] >= least), name, "is not accurate enough.", 1)
        want = int(torch.where(acc >= least, asr, torch.inf).argmin())
        need(got == want, name, "does not have the lowest ASR.", 2)
    ones = torch.ones(4)
    tied = torch.tensor([0.1, 0.2, 0.9, 0.3])
    got = number(name, call(name, fn, tied, ones, 0.5, hint=2))
    need(got == 2, name, "picks a forbidden point where every ASR is 1.", 2)
    passed(name, "the lowest ASR among those that are accurate enough")


def _distinct(
    g: torch.Generator, exactly: bool
) -> tuple[Tensor, Tensor, float, dict[int, tuple[str, int]]]:
    """Points at which every usual slip gives another answer than the right one, which has
    exactly the accuracy that is asked for, or more."""
    while True:
        acc, asr = torch.rand(2, 8, generator=g)
        edge = int(acc.argsort()[3])
        least = float(acc[edge])
        ok = acc >= least
        want = int(torch.where(ok, asr, torch.inf).argmin())
        slips = {
            int(asr[ok].argmin()): (
                "counts positions among those that are accurate "
                "enough; give the one in the whole list.",
                2,
            ),
            int(torch.where(ok, asr, -torch.inf).argmax()): ("takes the highest ASR.", 2),
            int(asr.argmin()): ("ignores the accuracy that is asked for.", 1),
            int(acc.argmax()): ("takes the best accuracy, and never looks at the ASR.", 1),
        }
        if exactly:
            strict = int(torch.where(acc > least, asr, torch.inf).argmin())
            slips[strict] = ("leaves out the one whose accuracy is exactly enough.", 1)
        else:
            slips[edge] = ("goes to the edge of what is allowed and never looks at the ASR.", 2)
        if len({want, *slips}) == 6 and (want == edge) == exactly:
            return acc, asr, least, slips


Contest = dict[str, Tensor]


def _contest(
    acc: Tensor, asr: Tensor, twin: float, against: int, at: Tensor | None, slip: str = ""
) -> Contest:
    """What `contest` asks for, from the victims drawn `at` (n, victims), and all table
    means; or a slip."""
    strong, accurate = asr[0] >= 0.95, acc[0] >= twin - 0.03
    kept = {"no gate": torch.ones_like(strong), "asr only": strong, "acc only": accurate}
    passed_gate = kept.get(slip, strong & accurate)
    acc, asr = acc[:, passed_gate], asr[:, passed_gate]
    removed, lost = asr[0] - asr, acc[0] - acc
    if slip == "whole":
        removed, lost = (removed - lost).clamp(min=0), torch.zeros(())
    if not slip.startswith(("asr un", "both")):
        removed = removed.abs() if slip == "asr abs" else removed.clamp(min=0)
    if not slip.startswith(("acc un", "both")):
        lost = lost.abs() if slip == "acc abs" else lost.clamp(min=0)
    der = (removed - lost + 1) / 2
    means = der[:, :, None] if at is None else der[:, at].mean(2)
    low, high = means.flatten(1).quantile(torch.tensor([0.05, 0.95]).to(means), dim=1)
    return {
        "mean": der.mean(1),
        "low": low,
        "high": high,
        "tables": means,
        "first": (means == means.amax(0)).to(der).flatten(1).mean(1),
        "above": (means > means[against]).to(der).flatten(1).mean(1),
    }


@guarded
def contest(fn: Callable[..., Contest]) -> None:
    """contest(acc, asr, twin, against, n, generator) -> mean, low, high, first, above."""
    name, g = "contest", fresh()
    keys = ("mean", "low", "high", "first", "above")

    def ask(acc: Tensor, asr: Tensor, twin: float, against: int, n: int, seed: int) -> Contest:
        generator = torch.Generator().manual_seed(seed)
        out = call(name, fn, acc, asr, twin, against, n, generator)
        if not isinstance(out, dict) or not {*keys} <= {*out}:
            need(False, name, f"must return a dict of {', '.join(keys)}.", 1)
        for k in keys:
            shaped(f"{name}: {k}", out[k], (len(acc),))
        return {k: models.wide(out[k]) for k in keys}

    for _ in range(2):
        _one_contest(name, ask, g)
    passed(name, "gate, DER, and tables in which every entry meets the same victims")


def _one_contest(name: str, ask: Callable[..., Contest], g: torch.Generator) -> None:
    """Five strong victims of very different difficulty and two that miss the gate."""
    n, against = 3001, 2  # so many tables that 5% and 95% are tables themselves
    acc, asr, twin, at = _shared(against, g)
    seed = int(torch.randint(10**9, (), generator=g))
    got = ask(acc, asr, twin, against, n, seed)
    again = ask(acc, asr, twin, against, n, seed)
    need(
        all(torch.equal(got[k], again[k]) for k in got),
        name,
        "gives another answer for the same seed; draw from the generator that it is given.",
        2,
    )
    need(
        any(
            not torch.equal(one[k], other[k])
            for one in [ask(acc, asr, twin, against, 301, seed)]
            for more in (1, 2, 3)  # by chance one may be the same
            for other in [ask(acc, asr, twin, against, 301, seed + more)]
            for k in ("low", "high", "first", "above")
        ),
        name,
        "draws the same tables for every seed; draw from the generator that it is given.",
        2,
    )
    want = _contest(acc, asr, twin, against, at)
    slips = {
        "no gate": "keeps victims that miss the gate.",
        "asr only": "keeps a victim that lost more than 3 points of accuracy to its twin.",
        "acc only": "keeps a victim whose attack works on fewer than 95%.",
        "both unclamped": "pays for accuracy that rose, or charges for attack success that did.",
        "acc unclamped": "pays for accuracy that rose; a gain counts as no loss.",
        "acc abs": "charges for accuracy that rose; a gain counts as no loss.",
        "asr unclamped": "charges for attack success that rose; it counts as no drop.",
        "asr abs": "pays for attack success that rose; it counts as no drop.",
        "whole": WHOLE,
    }
    for slip, symptom in slips.items():
        other = _contest(acc, asr, twin, against, None, slip)["mean"]
        need(not close(got["mean"], other, 1e-6), name, symptom, 1)
    few = ask(acc, asr, twin, against, 37, seed + 1)
    need(
        close(got["mean"], few["mean"], 1e-9),
        name,
        "averages the tables for the mean; it runs over the victims themselves.",
        4,
    )
    need(
        close(got["mean"], want["mean"], 1e-6),
        name,
        "has another mean DER; is the gate where the task puts it, and its edge inside?",
        1,
    )
    need(
        bool((few["first"] * 37 - (few["first"] * 37).round()).abs().max() < 1e-4),
        name,
        "draws another number of tables than n.",
        2,
    )
    single = _contest(acc, asr, twin, against, None)
    need(
        not close(got["low"], single["low"], 1e-6) or not close(got["high"], single["high"], 1e-6),
        name,
        "gives the middle 90% of the victims; average each table first.",
        3,
    )
    need(
        bool(((got["high"] - got["low"])[1:] > 1e-6).all()),
        name,
        "draws the same table each time; sample with replacement.",
        2,
    )
    spread = ((got["high"] - got["low"]) / (want["high"] - want["low"]).clamp(min=1e-9))[1:]
    need(
        bool(((spread - 1).abs() < 0.12).all()),
        name,
        f"has intervals {spread.mean():.2f} times as wide as they should be; does a table hold "
        "as many victims as passed, and do you cut 5% from either end?",
        3,
    )
    ends = {k: (got[k] - want[k]).abs().max() for k in ("low", "high")}
    need(max(map(float, ends.values())) < 0.03, name, "has an interval in the wrong place.", 3)
    every = torch.tensor(list(combinations_with_replacement(range(5), 5)))
    real = _contest(acc, asr, twin, against, every)["tables"]
    for k in ends:
        off = (got[k][:, None] - real).abs().amin(1)
        need(
            bool((off < 1e-5).all()),
            name,
            f"has a {k} end that no table has; take quantiles of the table means.",
            3,
        )
    need(
        float(got["above"][against]) == 0,
        name,
        "lets an entry be above itself; above means strictly better.",
        4,
    )
    need(
        float(got["above"][1]) > 0.999,
        name,
        "lets each entry meet victims of its own: one that is better on every victim must be "
        "above in every table.",
        4,
    )
    need(
        abs(float(got["first"][1] - got["first"][4])) < 0.02,
        name,
        "breaks a tie; equals are first together.",
        4,
    )
    need(
        bool(((got["first"] > 0) & (got["first"] < 1)).any()),
        name,
        "calls an entry first or not; it is the share of the tables in which it leads.",
        4,
    )
    for k in ("first", "above"):
        need(
            float((got[k] - want[k]).abs().max()) < 0.05,
            name,
            f"has another share of tables in {k}.",
            4,
        )


def _shared(against: int, g: torch.Generator) -> tuple[Tensor, Tensor, float, Tensor]:
    """Rates of five entries on seven victims, the twin, and tables of the five that pass;
    entries 1 and 3 share the first places, and 3 is above `against` in a part of the tables.
    """
    entries, at = 5, torch.randint(5, (20_000, 5), generator=g)
    while True:
        middle = torch.tensor([0.05, 0.3, 0.55])[torch.randperm(3, generator=g)]
        hard = torch.cat([torch.tensor([0.9]), middle, torch.tensor([0.75])])
        twin = 0.8 + 0.12 * float(torch.rand((), generator=g))
        asr = torch.cat([torch.ones(1, 5), (hard + 0.03 * torch.rand(entries - 1, 5, generator=g))])
        acc = twin - 0.01 - 0.05 * torch.rand(entries, 5, generator=g)
        acc[0] = twin - 0.01
        asr[1] = (asr[2] - 0.02).clamp(min=0)  # always a little below entry 2, of equal cost
        acc[1] = acc[2]
        asr[4], acc[4] = asr[1], acc[1]  # the equal of entry 1
        asr[3, 1:4] = asr[1, 1:4] * torch.rand(3, generator=g)
        # Accuracy that rose, and nothing removed; attack success that rose, by more.
        acc[3, 0], asr[3, 0] = twin + 0.02, 1.0
        asr[0, 4], asr[3, 4], acc[3, 4] = 0.96, 1.0, acc[0, 4] - 0.02
        # Beside the gate: too weak, and not accurate enough, by a hair; both are cured.
        acc = torch.cat([acc, torch.full((entries, 1), 0.9), torch.full((entries, 1), 0.8)], 1)
        asr = torch.cat([asr, torch.zeros(entries, 1), torch.zeros(entries, 1)], 1)
        asr[0, 5], asr[0, 6] = 0.945, 1.0
        acc[0, 6] = twin - 0.032
        # On it, or better than the twin: these stay.
        asr[0, 1], acc[0, 2], acc[0, 3] = 0.951, twin - 0.028, twin + 0.04
        acc[1:, 2:4] = acc[1:, 2:4].minimum(acc[0, 2:4])
        order = torch.randperm(7, generator=g)
        acc, asr = models.wide(acc[:, order]), models.wide(asr[:, order])
        asr[0, int((order == 1).nonzero())] = 0.95
        found = _contest(acc, asr, twin, against, at)
        shares = torch.stack([found["first"][1], found["first"][3], found["above"][3]])
        # No end may hang on a few tables, or a right answer has another one by chance.
        ends = torch.tensor([0.04, 0.06, 0.94, 0.96]).to(acc)
        least, low, high, most = found["tables"][1:].quantile(ends, dim=1)
        loose = torch.maximum(low - least, most - high) / (found["high"] - found["low"])[1:]
        if bool(((shares > 0.2) & (shares < 0.8)).all()) and bool((loose < 0.07).all()):
            return acc, asr, twin, at


@guarded
def three_choosers(fn: Callable[[Tensor], tuple[float, float, float]]) -> None:
    """three_choosers(der) -> what the picks of examiner, author and defender score."""
    name, g = "three_choosers", fresh()
    for entries, victims in ((6, 4), (3, 5), (4, 3)):
        der = _parted(entries, victims, g)
        out = call(name, fn, der)
        if isinstance(out, Tensor):
            out = out.flatten().tolist()
        three = isinstance(out, (tuple, list)) and len(out) == 3
        need(three, name, "must return three numbers.", 1)
        examiner, author, defender = (number(name, v) for v in out)
        best, single, blind = float(der.amax(0).mean()), float(der.mean(1).max()), _elsewhere(der)
        need(
            sorted((examiner, author, defender)) != sorted((best, single, blind))
            or examiner == best
            and author == single,
            name,
            "has the right numbers in another order.",
            1,
        )
        need(
            abs(examiner - single) > 1e-6,
            name,
            "lets the examiner pick one entry for all victims; they pick anew for each.",
            1,
        )
        need(abs(examiner - best) < 1e-6, name, f"examiner: {examiner:.4f}, not {best:.4f}.", 1)
        need(
            abs(author - single) < 1e-6,
            name,
            f"author: {author:.4f}, not {single:.4f}; one entry for all, the best in the mean.",
            1,
        )
        need(
            abs(defender - single) > 1e-6,
            name,
            "lets the defender see the victim they are about to repair; leave it out of the "
            "mean that they pick by.",
            2,
        )
        others = (der.sum(1, keepdim=True) - der) / (victims - 1)
        need(
            abs(defender - float(others.amax(0).mean())) > 1e-6,
            name,
            "scores the defender's pick on the victims it was picked by.",
            3,
        )
        need(abs(defender - blind) < 1e-6, name, f"defender: {defender:.4f}, not {blind:.4f}.", 3)
    passed(name, "picked by the tested victim, by all, and by all others")


def _elsewhere(der: Tensor) -> float:
    """The mean score of entries that were picked by all other victims."""
    others = (der.sum(1, keepdim=True) - der) / (der.shape[1] - 1)
    return float(der.gather(0, others.argmax(0, keepdim=True)).mean())


def _parted(entries: int, victims: int, g: torch.Generator) -> Tensor:
    """Scores for which every slip gives another number than the right one."""
    while True:
        der = models.wide(torch.rand(entries, victims, generator=g))
        others = (der.sum(1, keepdim=True) - der) / (victims - 1)
        values = (
            float(der.amax(0).mean()),
            float(der.mean(1).max()),
            float(others.amax(0).mean()),
            _elsewhere(der),
        )
        if min(abs(a - b) for i, a in enumerate(values) for b in values[:i]) > 1e-3:
            return der
