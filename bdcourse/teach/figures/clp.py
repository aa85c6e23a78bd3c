"""The figures of lesson 05."""

from __future__ import annotations

import math
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
        "kernel": Box(1.0, 2.1, "kernel of\nchannel $k$", INK, 1.8, 1.1),
        "stretch": Box(3.05, 2.1, "its stretch\n$σ_k$", INK, 1.6, 1.1),
        "norm": Box(4.9, 0.6, "BatchNorm's\nfactor", INK, 1.9, 1.0),
        "score": Box(4.9, 2.1, "score\n$s_k$", INK, 1.2, 1.1),
        "ask": Box(6.9, 2.1, "above mean\n+ $u$ std?", INK, 1.9, 1.1),
        "layer": Box(9.1, 2.1, "all scores\nof its layer", INK, 1.6, 1.1),
        "on": Box(6.9, 3.5, "stays on", INK, 1.6, 0.8),
        "off": Box(6.9, 0.6, "off", DEFENDED, 1.2, 0.8),
    }
    return diagram.boxes(
        parts,
        [
            ("kernel", "stretch"),
            ("stretch", "score"),
            ("norm", "score"),
            ("score", "ask"),
            ("layer", "ask"),
            ("ask", "off", "yes"),
            ("ask", "on", "no"),
        ],
        height=2.9,
        title="Weights in, decision out: no image anywhere",
        description="A row of boxes: the kernel of a channel gives its stretch sigma, which joins "
        "BatchNorm's factor in the score of the channel. A third box holds all scores "
        "of the layer, for their mean and deviation. A channel whose score lies more "
        "than u standard deviations above the mean of its layer is switched off, and any other "
        "stays on. No box holds an image.",
    )


def at_u(rows: Mapping[float, tuple[int, Scores]]) -> Picture:
    """Bars of the three rates: u -> channels off and scores there."""
    rates = {
        "ACC": [s.acc for _, s in rows.values()],
        "ASR": [s.asr or 0.0 for _, s in rows.values()],
        "RA": [s.ra or 0.0 for _, s in rows.values()],
    }
    last = list(rows)[-1]
    off, scores = rows[last]
    return show.bars(
        ["untouched" if u == math.inf else f"u = {u:g}, {n} off" for u, (n, _) in rows.items()],
        rates,
        percent=True,
        ylabel="%",
        title=f"u = {last:g}: ACC {scores.acc:.0%}, ASR {scores.asr:.0%}, RA {scores.ra:.0%}",
        description="Bars of accuracy, attack success and robust accuracy of the victim at "
        f"{' and '.join(f'u = {u:g}' for u in rows if u < math.inf)}, beside the untouched "
        f"network; at the last CLP switches off {off} channels.",
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


def _panels(curves: Sequence[Curve], heights: Sequence[float], title: str, words: str) -> Picture:
    """ACC, ASR and RA along u, a panel for each seed; names at these heights in the first."""
    fig, axes = show.canvas(1, len(curves), height=3.3, sharey=True)
    rates = (("acc", CLEAN, "o"), ("asr", TRIGGERED, "s"), ("ra", DEFENDED, "^"))
    for i, (ax, curve) in enumerate(zip(axes[0], curves, strict=True)):
        us = [p["u"] for p in curve]
        for key, color, mark in rates:
            ax.plot(us, [100 * p[key] for p in curve], color=color, marker=mark, ms=4, lw=1.6)
        ax.invert_xaxis()
        ax.set_ylim(-4, 104)
        ax.axvline(3, color=QUIET, lw=1, ls=":")
        ax.grid(axis="y", color="#e6e6e6", lw=0.8)
        ax.set_title(f"seed {i}", fontsize=11, loc="left", fontweight="normal")
        ax.set_xlabel("u")
    axes[0, 0].set_ylabel("%")
    for (key, color, _), y in zip(rates, heights, strict=True):
        axes[0, 0].text(5.9, y, key.upper(), color=color, fontweight="bold", va="center")
    show.headline(fig, title)
    return Picture(fig, words)


def cliff(curves: Sequence[Curve]) -> Picture:
    """The attack that falls in one step."""
    ends = [next(p["u"] for p in curve if p["asr"] < 0.1) for curve in curves]
    return _panels(
        curves,
        (92, 80, 8),
        f"BadNets ends at once, at u = {', '.join(f'{u:g}' for u in ends[:-1])} and {ends[-1]:g}",
        "Three panels, one for each BadNets victim, with accuracy, attack success and robust "
        "accuracy against u, which falls from six to one; a dotted line marks u = 3. Attack "
        "success drops from the top to the floor within one step, for one victim below u = 3 and "
        "for two above it, and robust accuracy rises in the same step. Then accuracy sinks.",
    )


def suspects(rows: Mapping[str, Sequence[Scores]], two: str, one: str) -> Picture:
    """ASR and RA after each cut: set of channels -> scores, one for each draw."""
    fig, axes = show.canvas(height=0.42 * len(rows) + 1.3)
    ax = axes[0, 0]
    for i, scores in enumerate(rows.values()):
        up = 0.14 * (torch.arange(len(scores)) - (len(scores) - 1) / 2)
        asr, ra = ([100 * (getattr(s, k) or 0.0) for s in scores] for k in ("asr", "ra"))
        ax.plot(ra, i + up, "^", ms=7, color=DEFENDED, mec="white", ls="", label="RA")
        ax.plot(asr, i + up, "s", ms=7, color=TRIGGERED, mec="white", ls="", label="ASR")
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_xlim(-4, 104)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlabel("after the cut, %")
    ax.grid(color="#e6e6e6", lw=0.8)
    marks, names = ax.get_legend_handles_labels()
    look = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 2, "frameon": False}
    ax.legend(marks[1::-1], names[1::-1], fontsize=11, handletextpad=0.2, **look)
    most, least = max(s.asr or 0.0 for s in rows[two]), min(s.asr or 0.0 for s in rows[one])
    show.headline(
        fig, f"{two.capitalize()} off: ASR at most {most:.0%}; {one} off: at least {least:.0%}"
    )
    return Picture(
        fig,
        "A row for each set of channels that is switched off, with a square at the attack success "
        "that is left and a triangle at robust accuracy. All that CLP takes and the three "
        "detectors alone end the attack and restore the answers, any two detectors do most of "
        "it, and any one next to nothing. The others that CLP takes, the runners-up by score and "
        "five random draws leave the attack whole.",
    )


def agreement(corr: Mapping[str, Mapping[str, Sequence[float]]], layers: Sequence[str]) -> Picture:
    """Rank correlation of score and TAC in each layer: trigger -> network -> (layers,)."""
    fig, axes = show.canvas(len(corr), 1, height=5.6, sharex=True, sharey=True)
    for ax, (trigger, networks) in zip(axes[:, 0], corr.items(), strict=True):
        looks = zip(networks.items(), ((INK, "s", INK), (QUIET, "o", "white")), strict=True)
        for (name, values), (color, mark, fill) in looks:
            up = f"{name}, above zero in {sum(v > 0 for v in values)}"
            ax.plot(range(len(values)), values, mark, color=color, mfc=fill, ms=7, ls="", label=up)
        ax.axhline(0, color=QUIET, lw=1)
        ax.set_ylim(-0.85, 1.05)
        ax.set_ylabel("rank correlation")
        ax.legend(loc="lower left", fontsize=11, frameon=False)
        ax.grid(axis="y", color="#e6e6e6", lw=0.8)
        ax.set_title(trigger, fontsize=11, loc="left", fontweight="normal")
    names = [n.replace("layer", "").replace("shortcut", "sc") for n in layers]
    axes[-1, 0].set_xticks(range(len(names)), names, rotation=90, fontsize=10)
    show.headline(fig, "Score and TAC agree in a network without a backdoor, too")
    return Picture(
        fig,
        "Two panels, one for each trigger. For each of twenty layers, from the entrance to the "
        "exit, the rank correlation between a channel's score and its reaction to the trigger: "
        "squares for the victim, rings for the benign twin. In both panels most rings lie above "
        "zero. The squares of badnets sink below zero toward the exit, those of blended do not.",
    )


def holdouts(curves: Sequence[Curve]) -> Picture:
    """The attack that resists."""
    best = max(p["ra"] for curve in curves for p in curve if p["acc"] > 0.95)
    return _panels(
        curves,
        (88, 76, 8),
        f"Blended: while accuracy is above 95%, RA stays below {int(100 * best) + 1}%",
        "Three panels, one for each Blended victim, with accuracy, attack success and robust "
        "accuracy against u. In the first, attack success never falls. In the two others it "
        "falls at different u, but robust accuracy stays low, and then accuracy breaks down.",
    )
