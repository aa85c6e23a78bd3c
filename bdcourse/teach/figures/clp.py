"""The figures of lesson 05."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bdcourse.metrics import Scores
from bdcourse.report import diagram, show
from bdcourse.report.diagram import Box
from bdcourse.report.show import CLEAN, DEFENDED, INK, QUIET, TRIGGERED, Picture

Curve = Sequence[Mapping[str, float]]  # one entry a threshold: u, acc, asr, ra


def recipe() -> Picture:
    """From the weights of a channel to the decision about it, as boxes."""
    parts = {
        "kernel": Box(1.25, 2.1, "kernel of\nchannel $k$", INK, 1.9, 1.1),
        "stretch": Box(3.65, 2.1, "its stretch\n$σ_k$", INK, 1.8, 1.1),
        "norm": Box(6.0, 0.65, "BatchNorm", INK, 1.9, 0.8),
        "score": Box(6.0, 2.1, "score\n$s_k$", INK, 1.6, 1.1),
        "ask": Box(8.65, 2.1, "far above\nits layer?", INK, 1.9, 1.1),
        "off": Box(8.65, 0.65, "off", DEFENDED, 1.2, 0.8),
    }
    return diagram.boxes(
        parts,
        [
            ("kernel", "stretch"),
            ("stretch", "score"),
            ("norm", "score"),
            ("score", "ask"),
            ("ask", "off", "yes"),
        ],
        height=2.2,
        title="Weights in, decision out: no image anywhere",
        description="A row of boxes: the kernel of a channel gives its stretch sigma, which joins "
        "BatchNorm's factor in the score of the channel. The score is compared with all scores "
        "of its layer, and a channel far above the others is switched off. No box holds an image.",
    )


def at_u(u: float, off: int, scores: Scores) -> Picture:
    """Bars of the three rates at one position of the slider."""
    asr, ra = scores.asr or 0.0, scores.ra or 0.0
    return show.bars(
        [f"u = {u:g}"],
        {"ACC": [scores.acc], "ASR": [asr], "RA": [ra]},
        percent=True,
        title=f"u = {u:g}: {off} channels off, ACC {scores.acc:.0%}, ASR {asr:.0%}",
        description=f"Bars of accuracy, attack success and robust accuracy of the victim at "
        f"u = {u:g}, where CLP switches off {off} channels.",
    )


def _zs(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: ((s - s.mean()) / s.std()).detach() for name, s in scores.items()}


def heights(
    victim: Mapping[str, Tensor], twin: Mapping[str, Tensor], u: float, default: float = 3.0
) -> Picture:
    """A dot for each channel at its score, in deviations: victim above, twin below."""
    fig, axes = show.canvas(2, 1, height=6.2, sharey=True, sharex=True)
    counts = []
    for ax, scores in zip(axes[:, 0], (victim, twin), strict=True):
        count = 0
        for i, z in enumerate(_zs(scores).values()):
            at = i + 0.32 * torch.sin(2.4 * torch.arange(len(z)))
            on = z > u
            count += int(on.sum())
            ax.plot(at[~on], z[~on], "o", ms=3, color=QUIET, alpha=0.5, mew=0)
            ax.plot(at[on], z[on], "s", ms=6, color=INK)
        counts.append(count)
        for level, dash in ((u, "-"), (default, ":")):
            ax.axhline(level, color=DEFENDED, lw=1.4, ls=dash)
            ax.annotate(
                f"{level:g}",
                (1, level),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                color=DEFENDED,
                fontsize=11,
            )
        ax.set_ylabel("deviations above the mean")
        ax.margins(x=0.01)
    names = [n.replace("layer", "").replace("shortcut", "sc") for n in victim]
    axes[1, 0].set_xticks(range(len(names)), names, rotation=90, fontsize=10)
    title = "{}: {} channels above u = " + f"{u:g}"
    axes[0, 0].set_title(title.format("Victim", counts[0]), loc="left", fontweight="bold")
    axes[1, 0].set_title(title.format("Benign twin", counts[1]), loc="left", fontweight="bold")
    return Picture(
        fig,
        "Two panels, the victim above and its benign twin below, with a column of dots for each of "
        "twenty layers: one dot a channel, at its score in deviations above the mean of its "
        f"layer. Two lines mark u = {u:g} and the authors' {default:g}; squares lie above the "
        "lower one. Both networks have such squares, and the victim's do not look different.",
    )


SEEDS = ("-", "--", "-.")


def _curves(ax, curves: Sequence[Curve], keys: Sequence[str]) -> None:
    for curve, dash in zip(curves, SEEDS, strict=False):
        us = [p["u"] for p in curve]
        for key, color, mark in (
            ("acc", CLEAN, "o"),
            ("asr", TRIGGERED, "s"),
            ("ra", DEFENDED, "^"),
        ):
            if key in keys:
                values = [100 * p[key] for p in curve]
                ax.plot(us, values, color=color, ls=dash, marker=mark, ms=4, lw=1.6)
    ax.invert_xaxis()
    ax.set_ylim(-4, 104)
    ax.axvline(3, color=QUIET, lw=1, ls=":")
    ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    ax.set_xlabel("u (to the right more is switched off)")


def cliff(curves: Sequence[Curve]) -> Picture:
    """ACC and ASR of one attack along u, a line for each seed."""
    fig, axes = show.canvas(height=3.4)
    ax = axes[0, 0]
    _curves(ax, curves, ("acc", "asr"))
    falls = []
    for curve in curves:
        falls.append(next(p["u"] for p in curve if p["asr"] < 0.1))
    ax.text(5.9, 93, "ASR, three victims", color=TRIGGERED, fontweight="bold", va="top")
    ax.text(2.3, 70, "ACC", color=CLEAN, fontweight="bold", ha="left")
    ax.text(2.97, 40, "u = 3", color=QUIET, ha="left", fontsize=10)
    ax.set_ylabel("%")
    ax.set_title(
        f"The attack ends in one step, at u = {max(falls):g} or only at {min(falls):g}",
        fontweight="bold",
        loc="left",
    )
    return Picture(
        fig,
        "Attack success and accuracy against u, which falls from six to one, for three BadNets "
        "victims. Attack success stays at the top and then drops to the floor within one or two "
        "steps, for two victims before u = 3 and for one behind it. Accuracy stays at the top a "
        "little longer and then sinks.",
    )


def suspects(rows: Mapping[str, Sequence[Scores]]) -> Picture:
    """What is left of the attack: set of channels -> scores, one for each draw."""
    fig, axes = show.canvas(height=0.42 * len(rows) + 1.1)
    ax = axes[0, 0]
    left = []
    for i, scores in enumerate(rows.values()):
        asr = [100 * (s.asr or 0.0) for s in scores]
        left.append(max(asr))
        up = 0.09 * (torch.arange(len(asr)) - (len(asr) - 1) / 2)
        ax.plot(asr, i + up, "s", ms=8, color=TRIGGERED, mec="white", ls="")
    ax.set_yticks(range(len(rows)), list(rows))
    ax.invert_yaxis()
    ax.set_xlim(-4, 104)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel("ASR that is left, %")
    ax.grid(color="#e6e6e6", lw=0.8)
    gone = sum(a < 10 for a in left)
    show.headline(fig, f"{gone} of {len(rows)} cuts end the attack: those that hold the detectors")
    return Picture(
        fig,
        "A row for each set of channels that is switched off, with a square at the attack success "
        "that is left. All that CLP takes and the three detectors among them alone leave nothing, "
        "and so do the loudest by TAC. The others that CLP takes, the runners-up by score "
        "and five random draws leave everything.",
    )


def agreement(corr: Mapping[str, Sequence[float]], layers: Sequence[str]) -> Picture:
    """Rank correlation of score and TAC in each layer: victim -> (layers,)."""
    fig, axes = show.canvas(height=3.6)
    ax = axes[0, 0]
    looks = zip(corr.items(), ((INK, "s", INK), (QUIET, "o", "white")), strict=True)
    for (name, values), (color, mark, fill) in looks:
        ax.plot(range(len(values)), values, mark, color=color, mfc=fill, ms=7, ls="", label=name)
    ax.axhline(0, color=QUIET, lw=1)
    names = [n.replace("layer", "").replace("shortcut", "sc") for n in layers]
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=10)
    ax.set_ylabel("rank correlation\nof score and TAC")
    ax.legend(loc="lower left", fontsize=11, frameon=False)
    ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    up = [f"in {sum(v > 0 for v in vs)} layers for {n}" for n, vs in corr.items()]
    ax.set_title(f"Positive {' and '.join(up)}", fontweight="bold", loc="left")
    return Picture(
        fig,
        "For each of twenty layers, from the entrance to the exit, the rank correlation between a "
        "channel's score and its reaction to the trigger: squares for badnets, rings for blended. "
        "Both start high. The squares sink below zero toward the exit, the rings stay above it.",
    )


def holdouts(curves: Sequence[Curve]) -> Picture:
    """ACC, ASR and RA of the victims that resist, a panel for each seed."""
    fig, axes = show.canvas(1, len(curves), height=3.3, sharey=True)
    for i, (ax, curve) in enumerate(zip(axes[0], curves, strict=True)):
        _curves(ax, [curve], ("acc", "asr", "ra"))
        ax.set_title(f"seed {i}", fontsize=11, loc="left", fontweight="normal")
        ax.set_xlabel("u")
    axes[0, 0].set_ylabel("%")
    ends = (("ACC", 94, CLEAN, 5.9), ("ASR", 85, TRIGGERED, 5.9), ("RA", 8, DEFENDED, 5.9))
    for name, y, color, x in ends:
        axes[0, 1].text(x, y, name, color=color, fontweight="bold", va="center")
    best = max(p["ra"] for curve in curves for p in curve if p["acc"] > 0.95)
    show.headline(fig, f"Blended: while accuracy holds, RA never passes {best:.0%}")
    return Picture(
        fig,
        "Three panels, one for each Blended victim, with accuracy, attack success and robust "
        "accuracy against u. In the first, attack success never falls. In the two others it "
        "falls at different u, but robust accuracy stays low, and then accuracy breaks down.",
    )
