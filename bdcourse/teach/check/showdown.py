"""The exercise checks of lesson 09."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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
    need(not near(ideal, 0.5), name, "forgets the 1 in the sum.", 1)
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
        need(near(got, want), name, f"is {got:.4f}, not {want:.4f}.", 2)
        up = ask(a, asr, acc, s)
        need(
            near(up, (asr - s + 1) / 2),
            name,
            "pays for accuracy that rose; a gain counts as no loss.",
            3,
        )
        worse = ask(acc, s, a, asr)
        need(
            near(worse, (1 - (acc - a)) / 2),
            name,
            "charges for attack success that rose; it counts as no drop.",
            3,
        )
    passed(name)


@guarded
def front(fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    """front(acc, asr) -> which points no other point beats, (n,) bool."""
    name, g = "front", fresh()
    # First what a random pair of equal points would give another name.
    acc, asr = torch.tensor([0.9, 0.9, 0.8]), torch.tensor([0.2, 0.2, 0.1])
    need(
        call(name, fn, acc, asr).tolist() != [False, False, True],
        name,
        "lets equal points beat each other; one must be better in something.",
        3,
    )
    for n in (1, 2, 6, 12):
        # Few values, so that ties are common.
        acc = torch.randint(0, 5, (n,), generator=g) / 4
        asr = torch.randint(0, 5, (n,), generator=g) / 4
        out = call(name, fn, acc, asr)
        shaped(name, out, (n,))
        need(out.dtype == torch.bool, name, "returns numbers; the answer is bool.", 1)
        _front_is(name, out, acc, asr)
    acc, asr = torch.tensor([0.9, 0.9, 0.8]), torch.tensor([0.1, 0.2, 0.1])
    out = call(name, fn, acc, asr)
    need(
        not out.all(),
        name,
        "wants a winner to be better in both; better in one and equal in the other is enough.",
        2,
    )
    _front_is(name, out, acc, asr)
    passed(name)


def _front_is(name: str, out: Tensor, acc: Tensor, asr: Tensor) -> None:
    rows = range(len(acc))

    def beaten(i: int, sign: int = 1) -> bool:
        return any(
            acc[j] >= acc[i]
            and sign * asr[j] <= sign * asr[i]
            and (acc[j] > acc[i] or asr[j] != asr[i])
            for j in rows
        )

    want = torch.tensor([not beaten(i) for i in rows])
    if torch.equal(out, want):
        return
    upside_down = torch.tensor([not beaten(i, -1) for i in rows])
    need(
        not torch.equal(out, upside_down),
        name,
        "takes high ASR for good.",
        1,
    )
    need(not torch.equal(out, ~want), name, "marks the beaten ones.", 1)
    for i in rows:
        if out[i] and not want[i]:
            need(False, name, f"keeps point {i}, which another one beats.", 2)
    i = int((want & ~out).nonzero()[0])
    need(False, name, f"drops point {i}, which no other beats.", 3)


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
        "is always the same: drawn without replacement, every sample is the whole.",
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
    lone = draw(torch.tensor([0.7]), 3, seed)
    need(close(lone, torch.full((3,), 0.7)), name, "fails with one victim.", 2)
    need(
        not torch.equal(out, draw(scores, 2000, seed + 1)),
        name,
        "has a generator of its own; draw from the one that it is given.",
        1,
    )
    passed(name)


@guarded
def by_the_test(fn: Callable[[Tensor, Tensor, float], int]) -> None:
    """by_the_test(acc, asr, least) -> position of the lowest ASR where acc >= least."""
    name, g = "by_the_test", fresh()
    for _ in range(6):
        acc, asr, least, slips = _distinct(g)
        got = number(name, call(name, fn, acc, asr, least))
        need(got in range(len(acc)), name, "is no position in the list.", 1)
        for slip, symptom in slips.items():
            need(got != slip, name, *symptom)
        need(bool(acc[int(got)] >= least), name, "is not accurate enough.", 1)
        want = int(torch.where(acc >= least, asr, torch.inf).argmin())
        need(got == want, name, "does not have the lowest ASR.", 2)
    passed(name)


def _distinct(
    g: torch.Generator,
) -> tuple[Tensor, Tensor, float, dict[int, tuple[str, int]]]:
    """Points at which every usual slip gives another answer than the right one."""
    while True:
        acc, asr = torch.rand(2, 8, generator=g)
        least = float(acc.sort()[0][3])
        ok = acc >= least
        want = int(torch.where(ok, asr, torch.inf).argmin())
        strict = int(torch.where(acc > least, asr, torch.inf).argmin())
        slips = {
            int(asr[ok].argmin()): (
                "counts positions among those that are accurate "
                "enough; give the one in the whole list.",
                2,
            ),
            int(asr.argmin()): ("ignores the accuracy that is asked for.", 1),
            int(acc.argmax()): ("takes the best accuracy.", 1),
            strict: ("leaves out the one whose accuracy is exactly enough.", 1),
        }
        if len({want, *slips}) == 5:
            return acc, asr, least, slips
