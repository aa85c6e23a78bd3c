"""The figures of lesson 08."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from bdcourse import models
from bdcourse.report import diagram, show
from bdcourse.report.diagram import Box
from bdcourse.report.show import CLEAN, DEFENDED, INK, OTHER, QUIET, TRIGGERED, Picture

ORANGE = "#E69F00"


def voices() -> Picture:
    """One step of FIP, as boxes."""
    parts = {
        "batch": Box(1.3, 2.1, "clean batch", CLEAN, 1.7),
        "old": Box(1.3, 0.6, "received weights", INK, 2.4),
        "fit": Box(4.4, 2.7, "fit: gradient of the\ncross-entropy", INK, 3.0, 0.8),
        "trace": Box(4.4, 1.65, "smooth: labels drawn,\nthe change of g", OTHER, 3.0, 0.8),
        "pull": Box(4.4, 0.6, "hold: pull back to\nthese weights", INK, 3.0, 0.8),
        "sum": Box(7.4, 1.65, "sum", INK, 0.9),
        "step": Box(9.1, 1.65, "step", DEFENDED, 1.1),
    }
    return diagram.boxes(
        parts,
        [
            ("batch", "fit"),
            ("batch", "trace"),
            ("old", "pull"),
            ("fit", "sum"),
            ("trace", "sum"),
            ("pull", "sum"),
            ("sum", "step"),
        ],
        height=2.3,
        title="Three voices decide each step: fit, smooth, hold",
        description="Boxes and arrows. A clean batch feeds two boxes: fit, the gradient of the "
        "cross-entropy, and smooth, the change of the gradient g at drawn labels. A third box, "
        "hold, is fed by the received weights and pulls back to them. All three are summed, and "
        "the sum makes the step.",
    )


def tail(draws: Tensor, truth: float) -> Picture:
    """Estimates of a trace, sorted, beside the value by another route."""
    fig, axes = show.canvas(height=3.0)
    ax, found = axes[0, 0], np.sort(models.wide(draws).numpy())
    ax.plot(range(1, len(found) + 1), found, "o", color=INK, ms=5)
    ax.axhline(truth, color=OTHER, lw=2)
    ax.set_yscale("log")
    ax.set_ylim(min(found.min(), truth) / 4, max(found.max(), truth) * 5)
    ax.annotate("no label drawn", (2, truth), (2, 7), "data", "offset points", color=OTHER)
    ax.annotate("a label drawn for each image", (2, found[0]), (2, 9), "data", "offset points")
    ax.set(xlabel="estimate, sorted", ylabel="trace")
    ax.set_title(
        f"The middle of {len(found)} draws sees {np.median(found) / truth:.1%} of the trace",
        fontweight="bold",
        loc="left",
    )
    ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    return Picture(
        fig,
        f"{len(found)} dots on a logarithmic axis, sorted: estimates of the Fisher trace from one "
        "draw of labels each. Nearly all lie on one level, far below a horizontal line, the value "
        "of the route that draws no label.",
    )


def labels(chances: Tensor, shares: Tensor) -> Picture:
    """Which labels are drawn, and which hold the trace.

    Args:
        chances: of each label, (n, k).
        shares: what each label adds to the trace, in any unit, (n, k).
    """
    edges = (0.5, 1e-3, 1e-4, 1e-5, 0)
    names = (
        "its own\nanswer",
        "over\n1 in 1,000",
        "over\n1 in 10,000",
        "over\n1 in 100,000",
        "rarer",
    )
    drawn, held, high = [], [], 2.0
    for low in edges:
        inside = (chances >= low) & (chances < high)
        drawn.append(float(chances[inside].sum() / chances.sum()))
        held.append(float(shares[inside].sum() / shares.sum()))
        high = low
    fig, axes = show.canvas(height=3.0)
    ax = axes[0, 0]
    for k, (values, color, text) in enumerate(
        ((drawn, QUIET, "share of the draws"), (held, OTHER, "share of the trace"))
    ):
        at = [i + 0.4 * (k - 0.5) for i in range(len(values))]
        bars = ax.bar(at, [100 * v for v in values], width=0.38, color=color, label=text)
        ax.bar_label(bars, [f"{100 * v:.3g}" for v in values], fontsize=9)
    ax.set_xticks(range(len(names)), names)
    ax.set(ylabel="%", ylim=(0, 115), xlabel="chance of the label")
    ax.legend(fontsize=11, frameon=False)
    ax.set_title(
        f"Last layer: labels drawn {1 - drawn[0]:.2%} of the time hold {1 - held[0]:.1%}",
        fontweight="bold",
        loc="left",
    )
    return Picture(
        fig,
        "Pairs of bars over five groups of labels, from the network's own answer to labels of "
        "chance below one in a hundred thousand. Nearly all draws go to its own answer, which "
        "holds almost nothing of the last layer's trace; the rare labels are hardly ever drawn "
        f"and hold the rest: {', '.join(f'{100 * v:.1f}' for v in held)} percent.",
    )


Known = Mapping[str, tuple[float, float]]  # set of images -> trace, its standard error


def _over(victim: Known, twin: Known, where: str) -> tuple[float, float]:
    """A ratio of two traces, and its standard error."""
    (v, v_error), (t, t_error) = victim[where], twin[where]
    return v / t, v / t * ((v_error / v) ** 2 + (t_error / t) ** 2) ** 0.5


def sharper(
    attacked: Mapping[str, tuple[Known, Known]], honest: Mapping[str, tuple[Known, Known]]
) -> Picture:
    """Traces over others: name -> (victim, twin), and below them (twin, other twin)."""
    fig, axes = show.canvas(height=4.6)
    ax, rows = axes[0, 0], {**attacked, **honest}
    names = list(rows)
    ax.axhspan(len(attacked) - 0.5, len(names) - 0.5, color="#eeeeee", lw=0)
    for k, (where, color, mark) in enumerate((("A", ORANGE, "o"), ("B", INK, "s"))):
        found = [_over(*rows[n], where) for n in names]
        at = np.arange(len(names)) + 0.3 * (k - 0.5)
        values, errors = zip(*found, strict=True)
        ax.errorbar(
            values, at, xerr=errors, fmt=mark, color=color, ms=6, lw=1.2, label=f"set {where}"
        )
    ax.axvline(1, color=QUIET, lw=1.4)
    ax.set_xscale("log")
    ax.set_xticks([0.5, 0.7, 1, 1.4, 2, 3], ["0.5", "0.7", "1", "1.4", "2", "3"])
    ax.minorticks_off()
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel("trace, over that of a benign twin")
    both = [
        all(_over(*pair, where)[0] > 1 for where in "AB")
        for n, pair in attacked.items()
        if "here" not in n
    ]
    ax.set_title(
        f"{sum(both)} of {len(both)} stored victims are sharper on both sets",
        fontweight="bold",
        loc="left",
    )
    ax.set_xlim(0.45, 4.5)
    ax.legend(fontsize=11, frameon=False, loc="upper right")
    ax.grid(axis="x", color="#e6e6e6", lw=0.8)
    return Picture(
        fig,
        "A row for each of eight victims, BadNets and TrojanNN with three seeds each and the two "
        "victims of the course, and below on gray three rows that compare benign twins with each "
        "other. A dot and a square with error bars show how many times sharper than a benign twin "
        "the network is on two sets of images. Victims scatter on both sides of the line at one, "
        "and so do the twins; dot and square of one row are often far apart.",
    )


def draws(left: Mapping[str, Mapping[str, Sequence[float]]]) -> Picture:
    """ASR that is left: victim -> arm -> one value a draw."""
    fig, axes = show.canvas(1, len(left), height=3.6, sharey=True)
    for ax, (victim, arms) in zip(axes[0], left.items(), strict=True):
        for k, values in enumerate(arms.values()):
            for n, value in enumerate(values):
                at = (k + 0.27 * (n - 1), 100 * value)
                ax.plot(*at, marker=f"${n + 1}$", color=TRIGGERED, ms=8, mew=0.6)
        ax.axhline(10, color=QUIET, lw=1.2, ls=":")
        ax.set_xticks(range(len(arms)), list(arms), rotation=28, ha="right")
        ax.set_title(victim, fontsize=11, fontweight="normal", loc="left")
        ax.set_ylim(-4, 104)
        ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes[0, 0].set_ylabel("ASR that is left, %")
    first = next(iter(left))
    some = left[first]["FIP"]
    low = sum(v < 0.1 for v in some)
    show.headline(fig, f"FIP repairs {first} in {low} of {len(some)} draws; a number is a draw")
    return Picture(
        fig,
        "Three panels in which the numbers 1, 2 and 3 stand for three draws of clean images: the "
        "attack success that five ways of fine-tuning leave of BadNets, Blended and TrojanNN. For "
        "BadNets, FIP has draw 1 at the floor and Fast FIP draw 2, the others at the ceiling and "
        "none between; FT-SAM is spread out. For Blended, FIP stays at the ceiling and the two "
        "kinds of SAM lie lower. For TrojanNN no draw of FIP reaches the floor.",
    )


def accident(pushes: Sequence[float], watched: Sequence[Mapping]) -> Picture:
    """What the trace pushed in each step, and what became of the network."""
    fig, axes = show.canvas(2, 1, height=5.4, sharex=True)
    top, below = axes[:, 0]
    worst = int(np.argmax(pushes))
    top.plot(np.maximum(pushes, 1e-6), ".", color=OTHER, ms=4)
    top.plot(worst, pushes[worst], "D", color=OTHER, ms=8)
    top.set_yscale("log")
    top.set_ylabel("length of the push")
    top.annotate(
        f"step {worst}", (worst, pushes[worst]), (-8, -4), "data", "offset points", ha="right"
    )
    steps = [w["step"] for w in watched]
    series = {k.upper(): [w[k] for w in watched] for k in ("acc", "asr", "ra")}
    show.lines(
        steps, series, percent=True, xlabel="step of FIP", title="", description="", ax=below
    )
    dip = min(w["acc"] for w in watched)
    show.headline(
        fig, f"One push at step {worst}; accuracy falls to {dip:.0%}, and the attack fades"
    )
    return Picture(
        fig,
        "Above, the length of each push on a logarithmic axis over six hundred steps: tiny for "
        "more than two hundred steps, then one huge push, and large ones ever after. Below, "
        "accuracy and attack success stay at the top until that step. Accuracy falls first and "
        "climbs back within sixty steps; attack success follows, sinks with relapses, and robust "
        "accuracy takes its place.",
    )


NAMED = {  # (victim, arm) -> where its name stands, in points, and how it is aligned
    ("BadNets", "FIP"): (-8, 7, "right"),
    ("BadNets", "SAM"): (9, 0, "left"),
    ("BadNets", "FIP, steady route"): (9, -2, "left"),
    ("BadNets", "rate x 5"): (9, -2, "left"),
    ("BadNets", "random pushes"): (-4, -22, "right"),
    ("BadNets", "authors' script"): (16, -22, "center"),
    ("TrojanNN", "FIP"): (8, 0, "left"),
    ("TrojanNN", "SAM"): (-9, 0, "right"),
}


def smooth(found: Sequence[tuple[str, str, float, float, Sequence[float], bool]]) -> Picture:
    """Sharpness against ASR: (victim, arm, trace over that before, ASR left, of each draw,
    whether it still reads the signs)."""
    fig, axes = show.canvas(height=4.6)
    ax, edges = axes[0, 0], (0.36, 3.6)
    ax.axvspan(edges[0], 1, color="#f1f1f1", lw=0)
    intact = [f for f in found if f[5]]
    for victim, mark, face in (("BadNets", "s", TRIGGERED), ("TrojanNN", "o", "white")):
        mine = [f for f in intact if f[0] == victim]
        ax.plot(
            [f[2] for f in mine],
            [100 * f[3] for f in mine],
            mark,
            color=TRIGGERED,
            mfc=face,
            ms=8,
            label=victim,
            ls="",
        )
    inner = (edges[0] * 1.05, edges[1] / 1.05)
    broken = [(float(np.clip(f[2], *inner)), 100 * f[3]) for f in found if not f[5]]
    if broken:
        ax.plot(*zip(*broken, strict=True), "x", color=QUIET, ms=7, mew=1.6, label="broken")
    for victim, arm, x, y, draws, _ in intact:
        ends = [100 * min(draws), 100 * max(draws)]
        ax.plot([x, x], ends, color=TRIGGERED, lw=1.2, zorder=1)
        if (victim, arm) in NAMED:
            *at, side = NAMED[victim, arm]
            far = abs(at[1]) > 10
            ax.annotate(
                arm if victim == "BadNets" else f"{arm} (TrojanNN)",
                (x, 100 * y),
                at,
                "data",
                "offset points",
                va="center",
                ha=side,
                fontsize=10,
                arrowprops={"arrowstyle": "-", "color": QUIET, "lw": 0.8, "shrinkB": 4}
                if far
                else None,
            )
    ax.axhline(10, color=QUIET, lw=1.2, ls=":")
    ax.set_xscale("log")
    ax.set_xlim(*edges)
    ax.set_xticks([0.5, 0.7, 1, 1.4, 2, 3], ["0.5", "0.7", "1", "1.4", "2", "3"])
    ax.minorticks_off()
    ax.set_ylim(-5, 116)
    ax.set_xlabel("trace after, over trace before (unseen images)")
    ax.set_ylabel("ASR that is left, %")
    kept = sum(f[2] < 1 and f[3] > 0.5 for f in intact)
    smoother = sum(f[2] < 1 for f in intact)
    ax.set_title(
        f"{kept} of {smoother} networks that became smoother keep most of the attack",
        fontweight="bold",
        loc="left",
    )
    ax.annotate("smoother", (edges[0] * 1.03, 112), va="center", color=QUIET)
    ax.annotate("sharper", (1.03, 112), va="center", color=QUIET)
    ax.legend(fontsize=11, frameon=False, loc=(0.76, 0.2))
    return Picture(
        fig,
        "A scatter of networks after fine-tuning in a dozen ways: across, how sharp each ended "
        "in units of how sharp it was, on a logarithmic axis; upward, the attack success that is "
        "left, with a line over all draws where there are several. Points lie in all four corners: "
        "smoother and repaired, smoother and still backdoored, sharper and repaired, sharper and "
        "still backdoored. Gray crosses, some at the edges, are networks that lost more than 15 "
        "points of accuracy.",
    )


def weight(eta: float, watched: Sequence[Mapping]) -> Picture:
    """ACC, ASR and RA over the steps of one run with this weight of the trace."""
    last = watched[-1]
    picture = show.lines(
        [w["step"] for w in watched],
        {k.upper(): [w[k] for w in watched] for k in ("acc", "asr", "ra")},
        percent=True,
        title=f"Weight {eta:g}: accuracy ends at {last['acc']:.0%}, ASR at {last['asr']:.0%}",
        xlabel="step",
        description="Accuracy, attack success and robust accuracy over six hundred steps of FIP "
        f"on the guest with the weight {eta:g} of the trace.",
    )
    assert picture is not None  # it draws a figure of its own
    return picture
