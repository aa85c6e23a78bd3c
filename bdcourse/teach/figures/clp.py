"""The figures of lesson 05."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bdcourse.defenses import clp_norms, clp_plain_scores
from bdcourse.metrics import Scores
from bdcourse.report import show
from bdcourse.report.show import CLEAN, DEFENDED, INK, QUIET, TRIGGERED, Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEGEND: dict[str, Any] = {
    "loc": "lower right",
    "bbox_to_anchor": (1, 1),
    "ncols": 2,
    "frameon": False,
    "handletextpad": 0.2,
}
BAND: dict[str, Any] = {"fill": True, "color": "#ebebeb", "lw": 0}  # of what is chance
Curve = Sequence[Mapping[str, float]]  # one entry a threshold: u, acc, asr, ra


def recipe(conv: nn.Conv2d, bn: nn.BatchNorm2d, u: float) -> Picture:
    """The scores of one layer on a line, its bar, and how its largest came about."""
    scores = clp_plain_scores(conv, bn)
    k = int(scores.argmax())
    stretch = float(clp_norms(conv.weight)[k])
    score, mean, std = float(scores[k]), float(scores.mean()), float(scores.std())
    fig, axes = show.canvas(height=2.7)
    ax = axes[0, 0]
    up = 0.3 * torch.sin(2.4 * torch.arange(len(scores)))
    off = scores > mean + u * std
    ax.plot(scores[~off], up[~off], "o", ms=6, color=QUIET, alpha=0.6, mew=0)
    ax.plot(scores[off], up[off], "s", ms=8, color=INK)
    for x, dash, name in ((mean, ":", "mean"), (mean + u * std, "-", f"mean + {u:g} std")):
        ax.plot([x, x], [-0.5, 0.75], color=QUIET, lw=1.4, ls=dash)
        ax.text(x, 0.82, name, ha="center", color=QUIET)
    ax.annotate(
        f"stretch {stretch:.2f} × BatchNorm {score / stretch:.2f}\n= score {score:.2f}",
        (score, float(up[k]) + 0.12),
        (score, 1.3),
        ha="right",
        va="center",
        arrowprops={"arrowstyle": "-|>", "color": INK, "shrinkB": 4, "relpos": (1, 0.5)},
        bbox={"boxstyle": "round,pad=0.4", "fc": "white", "ec": INK},
    )
    ax.set(ylim=(-0.6, 1.75), yticks=[], xlabel="score of a channel")
    ax.spines["left"].set_visible(False)
    show.headline(fig, f"One layer, {len(scores)} channels, and one that stands out")
    return Picture(
        fig,
        "The scores of all channels of one layer as dots on a line, with a dotted upright at "
        f"their mean and a full one {u:g} deviations above it. Most dots crowd around the mean. "
        f"A single square lies beyond the bar; a box says that its stretch of {stretch:.2f} "
        f"times BatchNorm's factor is its score, {score:.2f}.",
    )


def _dots(
    ax: Axes, scores: Mapping[str, Tensor], u: float, levels: Sequence[float], rings: bool = False
) -> int:
    """A column of dots a layer, in deviations, those above u as squares; how many those are.

    Args:
        levels: lines to draw, of which the one at u is full.
        rings: around the squares in the narrowest layers.
    """
    zs = {name: ((s - s.mean()) / s.std()).detach() for name, s in scores.items()}
    narrow = min(map(len, zs.values()))
    count = 0
    for i, z in enumerate(zs.values()):
        at = i + 0.32 * torch.sin(2.4 * torch.arange(len(z)))
        on = z > u
        count += int(on.sum())
        ax.plot(at[~on], z[~on], "o", ms=3, color=QUIET, alpha=0.5, mew=0)
        ax.plot(at[on], z[on], "s", ms=6, color=INK)
        if rings and len(z) == narrow:
            ax.plot(at[on], z[on], "o", ms=13, mfc="none", mec=INK)
    for level in levels:
        ax.axhline(level, color=QUIET, lw=1.4, ls="-" if level == u else ":")
    ax.margins(x=0.01)
    return count


def at_u(scores: Mapping[str, Tensor], u: float, left: Scores) -> Picture:
    """The line at u through the scores of a victim, and what the cut above it leaves."""
    fig, axes = show.canvas(1, 2, height=3.2, width_ratios=[2.4, 1])
    ax, side = axes[0]
    count = _dots(ax, scores, u, [u])
    ax.set(xticks=[], ylim=(-3.2, 5.4), xlabel="layer, entrance to exit")
    ax.set_ylabel("deviations above the mean")
    rates = {"ACC": (left.acc, CLEAN), "ASR": (left.asr, TRIGGERED), "RA": (left.ra, DEFENDED)}
    for i, (name, (value, color)) in enumerate(rates.items()):
        side.barh(i, 100, color="#f0f0f0", height=0.55)
        side.barh(i, 100 * (value or 0.0), color=color, height=0.55)
        side.text(0, i - 0.42, f"{name} {value or 0.0:.0%}", va="bottom")
    side.set(ylim=(2.5, -0.8), xlim=(0, 100), yticks=[], xlabel="left, %")
    side.spines["left"].set_visible(False)
    show.headline(fig, f"u = {u:g}: {count} channels off")
    return Picture(
        fig,
        f"On the left a dot for each channel of twenty layers, in deviations above the mean of its "
        f"layer, with a line at u = {u:g}; the {count} above it are squares. On the right three "
        "bars: accuracy, attack success and robust accuracy after these are switched off.",
    )


def heights(
    victim: Mapping[str, Tensor], twin: Mapping[str, Tensor], u: float, default: float = 3.0
) -> Picture:
    """A dot for each channel at its score, in deviations: victim above, twin below."""
    fig, axes = show.canvas(2, 1, height=6.4, sharey=True, sharex=True)
    for ax, who, scores in zip(axes[:, 0], ("Victim", "Benign twin"), (victim, twin), strict=True):
        count = _dots(ax, scores, u, (u, default), rings=True)
        for level in (u, default):
            ax.annotate(
                f"{level:g}",
                (1, level),
                xycoords=("axes fraction", "data"),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                color=QUIET,
            )
        ax.set_ylabel("deviations above the mean")
        ax.set_title(f"{who}: {count} channels above u = {u:g}", loc="left", fontweight="bold")
    axes[1, 0].set_xticks(range(len(victim)), victim, rotation=90, fontsize=9)
    axes[1, 0].set_xlabel("layer, entrance to exit")
    return Picture(
        fig,
        "Two panels, the victim above and its benign twin below, with a column of dots for each of "
        "twenty layers: one dot a channel, at its score in deviations above the mean of its "
        f"layer. Two lines mark u = {u:g} and the authors' {default:g}; squares lie above the "
        "lower one. Both networks have such squares. Only the victim has some in the first "
        "layers, three, which are ringed.",
    )


def _panels(
    curves: Mapping[str, Curve],
    heights: Sequence[float],
    title: str,
    words: str,
    *,
    said: Sequence[str] = (),
    rings: Sequence[float] = (),
    default: bool = True,
) -> Picture:
    """ACC, ASR and RA along u, a panel for each curve; the names of the rates at these heights
    in the first.

    Args:
        said: what stands in each panel.
        rings: in each panel, the u at which all three points are ringed.
        default: whether a dotted line marks the authors' u.
    """
    fig, axes = show.canvas(1, len(curves), height=3.4, sharey=True)
    looks = (("acc", CLEAN, "o", 2.6), ("asr", TRIGGERED, "s", 1.3), ("ra", DEFENDED, "^", 1.6))
    most = max(p["u"] for curve in curves.values() for p in curve)
    for i, (ax, (name, curve)) in enumerate(zip(axes[0], curves.items(), strict=True)):
        us = [p["u"] for p in curve]
        for key, color, mark, lw in looks:
            ax.plot(us, [100 * p[key] for p in curve], color=color, marker=mark, ms=1 + lw, lw=lw)
            if i < len(rings):
                (y,) = (100 * p[key] for p in curve if p["u"] == rings[i])
                ax.plot(rings[i], y, "o", ms=12, mfc="none", mec=INK)
        if i < len(said):
            ax.text(2.35, 18, said[i], va="center")
        ax.invert_xaxis()
        ax.set_ylim(-5, 106)
        ax.set_xticks(range(math.ceil(min(us)), math.floor(most) + 1))
        if default:
            ax.axvline(3, color=QUIET, lw=1, ls=":")
        ax.grid(axis="y", color="#e6e6e6", lw=0.8)
        ax.set_title(name, fontsize=11, loc="left", fontweight="normal")
        ax.set_xlabel("u")
    axes[0, 0].set_ylabel("%")
    if default:
        axes[0, 0].text(3.1, 50, "default", color=QUIET, rotation=90, ha="right", va="center")
    for (key, color, *_), y in zip(looks, heights, strict=True):
        axes[0, 0].text(most - 0.1, y, key.upper(), color=color, fontweight="bold", va="center")
    show.headline(fig, title)
    return Picture(fig, words)


def _seeds(curves: Sequence[Curve]) -> dict[str, Curve]:
    return {f"seed {i}": curve for i, curve in enumerate(curves)}


def cliff(curves: Sequence[Curve]) -> Picture:
    """The attack that falls in one step."""
    ends = [next(p["u"] for p in curve if p["asr"] < 0.1) for curve in curves]
    return _panels(
        _seeds(curves),
        (92, 80, 8),
        "Every BadNets victim has a cliff, but not the same one",
        "Three panels, one for each BadNets victim, with accuracy, attack success and robust "
        "accuracy against u, which falls from six to one; a dotted line marks u = 3. Attack "
        "success drops from the top to the floor within one step, for one victim below u = 3 and "
        "for two above it, and robust accuracy rises in the same step. Then accuracy sinks.",
        said=[f"gone\nat {u:g}" for u in ends],
    )


def suspects(rows: Mapping[str, Sequence[Scores]], few: int, all_: int) -> Picture:
    """ASR and RA after each cut: what is switched off -> scores, one for each draw."""
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
    ax.legend(marks[1::-1], names[1::-1], **LEGEND)
    show.headline(fig, f"{few} of {all_} channels carry the attack")
    return Picture(
        fig,
        "A row for each set of channels that is switched off, with a square at the attack success "
        "that is left and a triangle at robust accuracy. All that CLP takes and the three "
        "detectors alone end the attack and restore the answers, any two detectors do most of "
        "it, and any one next to nothing. The others that CLP takes, the runners-up by score and "
        "five random draws leave the attack whole.",
    )


def agreement(
    corr: Mapping[str, Mapping[str, Sequence[float]]], bands: Mapping[str, float]
) -> Picture:
    """Rank correlation of score and TAC in each layer: trigger -> network -> (layers,).

    Args:
        bands: layer -> what two standard deviations of chance reach.
    """
    fig, axes = show.canvas(len(corr), 1, height=6.2, sharex=True, sharey=True)
    edges = torch.arange(len(bands) + 1) - 0.5
    for ax, (trigger, networks) in zip(axes[:, 0], corr.items(), strict=True):
        ax.stairs(list(bands.values()), edges, baseline=[-b for b in bands.values()], **BAND)
        looks = zip(networks.items(), ((INK, "s", INK), (QUIET, "o", "white")), strict=True)
        for (name, values), (color, mark, fill) in looks:
            over = sum(v > b for v, b in zip(values, bands.values(), strict=True))
            up = f"{name}, above chance in {over}"
            ax.plot(range(len(values)), values, mark, color=color, mfc=fill, ms=7, ls="", label=up)
        ax.axhline(0, color=QUIET, lw=1)
        ax.set_ylim(-0.85, 1.05)
        ax.set_ylabel("rank correlation")
        ax.legend(**LEGEND)
        ax.margins(x=0.01)
        ax.set_title(trigger, fontsize=11, loc="left", fontweight="normal")
    axes[-1, 0].set_xticks(range(len(bands)), bands, rotation=90, fontsize=9)
    axes[-1, 0].set_xlabel("layer, entrance to exit")
    show.headline(fig, "Score and TAC agree in a network without a backdoor, too")
    return Picture(
        fig,
        "Two panels, one for each trigger. For each of twenty layers, from the entrance to the "
        "exit, the rank correlation between a channel's score and its reaction to the trigger: "
        "squares for the victim, rings for the benign twin. A gray band holds what chance "
        "reaches. In both panels most rings lie above it. The squares of badnets sink below "
        "it toward the exit, those of blended do not.",
    )


def holdouts(curves: Sequence[Curve], chosen: Sequence[float]) -> Picture:
    """The attack that resists, with the choice of the rule ringed."""
    best = max(p["ra"] for curve in curves for p in curve if p["acc"] > 0.95)
    return _panels(
        _seeds(curves),
        (88, 76, 8),
        f"Blended: while accuracy is above 95%, RA stays below {int(100 * best) + 1}%",
        "Three panels, one for each Blended victim, with accuracy, attack success and robust "
        "accuracy against u; rings mark the u that the rule chose. In the first, attack success "
        "never falls. In the two others it falls at different u, but robust accuracy stays low, "
        "and then accuracy breaks down.",
        rings=chosen,
    )


def oracle(curves: Mapping[str, Curve]) -> Picture:
    """The same cut with the trigger in hand."""
    return _panels(
        curves,
        (90, 78, 8),
        "By TAC, the same cut repairs badnets and not blended",
        "Two panels, badnets and blended, with accuracy, attack success and robust accuracy "
        "against u, for cuts of the outliers by reaction to the trigger. On badnets attack "
        "success is gone and robust accuracy high at u = 3. On blended robust accuracy never "
        "rises: attack success falls only together with accuracy.",
        default=False,
    )
