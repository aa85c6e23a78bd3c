"""What book/choosing.md advises, in sentences whose figures the rows give.

Each public function makes one paragraph, which tools/pages.py puts between its marks. Words
that no figure stands for ("each took all four") are held against the rows, and a row that
contradicts them stops the page until somebody has written the sentence anew.
"""

from __future__ import annotations

import textwrap

from bdcourse.bench.results import Results
from bdcourse.report import tables

FOUR = ("BadNets", "Blended", "SIG", "TrojanNN")  # on photographs, all past the gate
WORDS = "no one two three four five six seven eight nine ten eleven twelve thirteen".split()
Left = dict[str, list[float]]  # victim -> ASR of each choice of the images, 0..1


def only_the_network() -> str:
    """CLP, which needs no image."""
    rows = tables.results("cifar10-defenses")
    gone = _gone(_left(rows, "clp, u = 3"))
    _holds(len(gone) == 1, "CLP removes one of the four")
    _holds(not _gone(_left(rows, "clp, u on held-out images")), "a held-out point removes none")
    return _paragraph(
        f"""
        **Only the network.** CLP needs no image and takes a second, so try it first. At its
        default threshold it removed one of the four, {", ".join(gone)}, for four points of
        accuracy. The threshold decides everything, and nothing that you can measure without the
        trigger tells where it should be: a rule that may cost one point of held-out accuracy
        removed none. [Lesson 09](../notebooks/09_showdown.ipynb) shows how much the allowance
        decides. Treat CLP as a first try, not as an answer.
        """
    )


def some_hundred_images() -> str:
    """What 500 images are enough for, over up to five choices of them."""
    rows = tables.results("cifar10-defenses")
    names = ("fine-tuning", "mnp, soft", "ft-sam", "fip", "i-bau", "nc unlearning")
    left = {d: _left(rows, d, 500) for d in names}
    cost = {d: [round(100 * c) for c in _cost(rows, d, 500)] for d in names}
    tuned = left["fine-tuning"]
    _holds(min(tuned["Blended"]) > 0.995, "fine-tuning leaves all of Blended")
    _holds(min(tuned["SIG"]) > 0.8, "fine-tuning leaves most of SIG")
    _holds([len(tuned[a]) for a in FOUR] == [5, 5, 1, 5], "there are five choices of the 500")
    _holds(max(cost["mnp, soft"]) < min(cost["ft-sam"]), "soft MNP costs the least")
    for d in ("ft-sam", "fip", "i-bau"):
        _holds(min(cost[d]) >= 10, f"{d} costs ten points and more")
        _holds(max(_all(left[d])) < tables.REMOVED, f"{d} leaves less than a tenth")
    unlearned = left["nc unlearning"]
    _holds(len(_gone(unlearned)) == 3, "unlearning works on three")
    _holds(min(unlearned["SIG"]) > 0.95, "unlearning does nothing to SIG")
    low, high = min(cost["mnp, soft"]), max(cost["mnp, soft"])
    return _paragraph(
        f"""
        **Some hundred clean images.** Plain fine-tuning fails: with 500 images it left all of
        Blended and most of SIG. What it left of TrojanNN hung on which 500 they were:
        {_range(tuned["TrojanNN"])} over five choices. Soft MNP is the bargain. It left
        {_range(_all(left["mnp, soft"]))} over every choice that we tried, for {WORDS[low]} to
        {WORDS[high]} points of accuracy; it is our reconstruction of a method whose text we
        could not read. FT-SAM, FIP and I-BAU left less than a tenth of each, at ten points of
        accuracy and more. Unlearning an inverted trigger worked on three and did nothing to
        SIG.
        """
    )


def some_thousand_images() -> str:
    """What 2,500 images are enough for, where the task has honest errors."""
    rows = tables.results("cifar10-defenses")
    names = ("sam", "ft-sam", "fip", "i-bau")
    three = ("mnp, soft", "fmp", "nc unlearning", "anp, 10 points")
    points = {d: _words(_cost(rows, d)) for d in (*names, *three)}
    for d in names:
        _holds(len(_gone(_left(rows, d))) == 4, f"{d} takes all four")
    for d in three:
        _holds(len(_gone(_left(rows, d))) == 3, f"{d} takes three of four")
    _holds(points["fip"] == points["i-bau"], "FIP and I-BAU cost the same")
    _holds(points["mnp, soft"] == points["nc unlearning"], "soft MNP and unlearning cost alike")
    tuned, pruned = _left(rows, "fine-tuning"), _left(rows, "fine-pruning")
    for d, left in (("fine-tuning", tuned), ("fine-pruning", pruned)):
        _holds(abs(left["Blended"][0] - 0.9) < 0.02, f"{d} leaves about 90 % of Blended")
        _holds(_words(_cost(rows, d)) == "three", f"{d} costs three points")
    _holds(not _gone(_left(rows, "linf")), "the l-infinity norm takes none")
    most = _left(rows, "mnp, soft")["TrojanNN"][0]
    return _paragraph(
        f"""
        **Some thousand clean images, and a task with an honest error left.** Four repairs took
        all four backdoors below a tenth: SAM, FT-SAM, FIP and I-BAU. They differ in their
        price. SAM costs {points["sam"]} points of accuracy, FT-SAM {points["ft-sam"]}, FIP and
        I-BAU {points["fip"]}. Soft MNP and an unlearned inverted trigger cost only
        {points["mnp, soft"]} and took three of the four; soft MNP left {100 * most:.0f} % of
        TrojanNN. FMP and ANP with ten points allowed took three as well. Fine-tuning and
        fine-pruning cost three points, no less than soft MNP, and leave about nine tenths of
        Blended. Pruning the last stage by the l-infinity norm took none.
        """
    )


def solved_task() -> str:
    """Drawn signs, on which hardly an answer is wrong, in the mean over choices of images."""
    names = ("i-bau", "nc unlearning", "mnp, soft", "fip", "sam")
    rows = tables.scores("signs-defenses", names)
    strong = {v: dict(zip(names, r, strict=True)) for v, r in rows.items() if "*" not in v}
    gone = {d: {v for v in strong if strong[v][d] < tables.REMOVED} for d in names}
    mean = {d: tables.mean([strong[v][d] for v in strong]) for d in names}
    worst = max(v["i-bau"] for v in strong.values())
    unlearned = {"badnets", "trojan", "tact", "lira"}
    _holds(gone["nc unlearning"] == unlearned, "unlearning removes BadNets and three more")
    for v in ("blended", "lf"):
        _holds(strong[v]["nc unlearning"] > 0.9, f"unlearning leaves {v}")
    _holds(gone["mnp, soft"] == {"wanet"}, "soft MNP removes WaNet only")
    _holds(abs(mean["fip"] - 1 / 2) < 0.03, "FIP leaves half in the mean")
    _holds(abs(mean["sam"] - 1 / 3) < 0.03, "SAM leaves a third in the mean")
    all_, removed = WORDS[len(strong)], WORDS[len(gone["i-bau"])]
    return _paragraph(
        f"""
        **A task that is solved, with hardly a wrong answer.** Whatever descends the clean loss
        has little to descend. With 300 clean images of signs, fine-tuning, NAD, fine-pruning
        and FMP left most of nearly every backdoor, and soft MNP, the bargain on photographs,
        removed one of {all_}. I-BAU, which searches perturbations first and then unlearns them,
        was the most reliable: {removed} of {all_} gone in the mean over three choices of
        images, and no more than {100 * worst:.0f} % left of any. Unlearning an inverted trigger
        removed BadNets, TrojanNN, TaCT and LIRA and left Blended and LF. FIP left half in the
        mean, SAM a third. The choice of images matters as much as the method: with one set of
        300 FIP left nothing of BadNets, with another all of it.
        """
    )


def _left(rows: Results, defense: str, budget: int = 2500) -> Left:
    found = rows.select(defense=defense, budget=budget)
    return {a: [r["asr"] for r in found if r["attack"] == a] for a in FOUR}


def _cost(rows: Results, defense: str, budget: int = 2500) -> list[float]:
    """Accuracy that each repair of the four lost, 0..1."""
    before = {r["attack"]: r["acc"] for r in rows.select(defense="none")}
    found = rows.select(defense=defense, budget=budget)
    return [before[a] - r["acc"] for r in found if (a := r["attack"]) in FOUR]


def _gone(left: Left) -> list[str]:
    return [a for a in FOUR if left[a][0] < tables.REMOVED]


def _all(left: Left) -> list[float]:
    return [v for a in FOUR for v in left[a]]


def _range(shares: list[float]) -> str:
    return f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %"


def _words(costs: list[float]) -> str:
    return WORDS[round(100 * tables.mean(costs))]


def _holds(true: bool, what: str) -> None:
    if not true:
        raise ValueError(
            f"the rows no longer say that {what}; write that sentence of tools/guide.py anew."
        )


def _paragraph(text: str) -> str:
    # A line that began with a percent sign would be a comment.
    text = " ".join(text.split()).replace(" %", "\0%")
    return textwrap.fill(text, 200, break_on_hyphens=False).replace("\0", " ") + "\n"
