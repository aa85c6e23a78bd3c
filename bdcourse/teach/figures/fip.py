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
        "batch": Box(1.1, 2.4, "clean batch", CLEAN, 1.9),
        "fit": Box(4.0, 3.9, "fit: gradient of the\ncross-entropy", INK, 3.0, 1.0),
        "trace": Box(4.0, 2.4, "smooth: labels drawn,\nthe change of g", OTHER, 3.0, 1.0),
        "pull": Box(4.0, 0.9, "hold: pull to the\nreceived weights", INK, 3.0, 1.0),
        "sum": Box(7.0, 2.4, "sum", INK, 1.1),
        "step": Box(9.0, 2.4, "step", DEFENDED, 1.2),
    }
    return diagram.boxes(
        parts,
        [
            ("batch", "fit"),
            ("batch", "trace"),
            ("fit", "sum"),
            ("trace", "sum"),
            ("pull", "sum"),
            ("sum", "step"),
        ],
        height=3.3,
        title="Three voices decide each step: fit, smooth, hold",
        description="Boxes and arrows. A clean batch feeds two boxes: fit, the gradient of the "
        "cross-entropy, and smooth, the change of the gradient g at drawn labels. A third box, "
        "hold, pulls to the received weights. All three are summed, and the sum makes the step.",
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


def sharper(ratios: Mapping[str, Mapping[str, float]]) -> Picture:
    """Trace of each victim over that of its twin: name -> (own and other images)."""
    fig, axes = show.canvas(height=3.9)
    ax, names = axes[0, 0], list(ratios)
    for k, (own, color, mark) in enumerate((("own", ORANGE, "o"), ("other", INK, "s"))):
        values = [ratios[n][own] for n in names]
        label = ("the defender's images", "other images")[k]
        ax.plot(values, np.arange(len(names)), mark, color=color, ms=7, ls="", label=label)
    ax.axvline(1, color=QUIET, lw=1.4)
    ax.set_xscale("log")
    ax.set_xticks([0.5, 0.7, 1, 1.4, 2, 3], ["0.5", "0.7", "1", "1.4", "2", "3"])
    ax.minorticks_off()
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel("trace of the victim over that of its benign twin")
    both = sum(min(r.values()) > 1 for r in ratios.values())
    ax.set_title(
        f"{both} of {len(names)} victims are sharper than their twin on both sets",
        fontweight="bold",
        loc="left",
    )
    ax.set_xlim(0.5, 4)
    ax.legend(fontsize=11, frameon=False, loc="center right")
    ax.grid(axis="x", color="#e6e6e6", lw=0.8)
    return Picture(
        fig,
        "A row for each of eight victims: BadNets and TrojanNN with three seeds each, and the two "
        "victims of the course. A dot and a square show how many times sharper than its twin it "
        "is, on two sets of images. They scatter on both sides of the line at one, and dot and "
        "square of one row are often far apart.",
    )


def draws(left: Mapping[str, Mapping[str, Sequence[float]]]) -> Picture:
    """ASR that is left: victim -> arm -> one value a draw."""
    fig, axes = show.canvas(1, len(left), height=3.6, sharey=True)
    for ax, (victim, arms) in zip(axes[0], left.items(), strict=True):
        for k, values in enumerate(arms.values()):
            side = np.linspace(-0.16, 0.16, len(values))
            ax.plot(k + side, [100 * v for v in values], "s", color=TRIGGERED, ms=7)
        ax.axhline(10, color=QUIET, lw=1.2, ls=":")
        ax.set_xticks(range(len(arms)), list(arms), rotation=28, ha="right")
        ax.set_title(victim, fontsize=11, fontweight="normal", loc="left")
        ax.set_ylim(-4, 104)
        ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes[0, 0].set_ylabel("ASR that is left, %")
    first = next(iter(left))
    some = left[first]["FIP"]
    low = sum(v < 0.1 for v in some)
    show.headline(fig, f"FIP repairs {first} in {low} of {len(some)} draws; every draw is a point")
    return Picture(
        fig,
        "Two panels of squares, one a draw of clean images: the attack success that five ways of "
        "fine-tuning leave of BadNets and of Blended. For BadNets, FIP and Fast FIP have squares "
        "at the floor and at the ceiling and none between; FT-SAM is spread out. For Blended, FIP "
        "stays at the ceiling and the two kinds of SAM lie lower.",
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


def smooth(found: Sequence[tuple[str, str, float, float]]) -> Picture:
    """Sharpness against ASR: (victim, arm, trace over that before, ASR left)."""
    fig, axes = show.canvas(height=4.2)
    ax = axes[0, 0]
    ax.axvspan(0.4, 1, color="#f1f1f1", lw=0)
    for victim, mark, face in (("BadNets", "s", TRIGGERED), ("TrojanNN", "o", "white")):
        mine = [f for f in found if f[0] == victim]
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
    for victim, arm, x, y in found:
        if arm in ("FIP", "SAM", "rate x 5", "random pushes") and victim == "BadNets":
            at = (0, -14) if arm == "random pushes" else (9, 8)
            ax.annotate(arm, (x, 100 * y), at, "data", "offset points", va="center")
    ax.axhline(10, color=QUIET, lw=1.2, ls=":")
    ax.set_xscale("log")
    ax.set_xlim(0.4, 3.2)
    ax.set_xticks([0.5, 0.7, 1, 1.4, 2, 3], ["0.5", "0.7", "1", "1.4", "2", "3"])
    ax.minorticks_off()
    ax.set_ylim(-5, 116)
    ax.set_xlabel("trace after, over trace before (unseen images)")
    ax.set_ylabel("ASR that is left, %")
    kept = sum(f[2] < 1 and f[3] > 0.5 for f in found)
    smoother = sum(f[2] < 1 for f in found)
    ax.set_title(
        f"{kept} of {smoother} networks that became smoother keep most of the attack",
        fontweight="bold",
        loc="left",
    )
    ax.annotate("smoother", (0.42, 112), va="center", color=QUIET)
    ax.annotate("sharper", (1.03, 112), va="center", color=QUIET)
    ax.legend(fontsize=11, frameon=False, loc="center right")
    return Picture(
        fig,
        "A scatter of networks after fine-tuning in some dozen ways: across, how sharp each ended "
        "in units of how sharp it was, on a logarithmic axis; upward, the attack success that is "
        "left. Points lie in all four corners: smoother and repaired, smoother and still "
        "backdoored, sharper and repaired, sharper and still backdoored.",
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
