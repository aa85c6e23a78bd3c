"""The figures of lesson 06."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bdcourse.report import diagram, show
from bdcourse.report.diagram import Box
from bdcourse.report.show import CLEAN, DEFENDED, INK, OTHER, QUIET, TRIGGERED, Picture


def search_loop() -> Picture:
    """The method, as boxes."""
    parts = {
        "clean": Box(1.0, 3.6, "clean\nimages", CLEAN, 1.6, 1.0),
        "start": Box(3.3, 3.6, "random\nstart", OTHER, 1.6, 1.0),
        "push": Box(5.75, 3.6, "push\nfor map i", OTHER, 1.8, 1.0),
        "net": Box(8.5, 3.6, "the network:\nwho is hurt?", INK, 2.4, 1.0),
        "rank": Box(8.5, 1.2, "rank the maps\nof the layer", INK, 2.4, 1.0),
        "prune": Box(5.4, 1.2, "switch the\nworst off", DEFENDED, 1.9, 1.0),
        "tune": Box(2.2, 1.2, "fine-tune", DEFENDED, 1.9, 1.0),
    }
    return diagram.boxes(
        parts,
        [
            ("clean", "start"),
            ("start", "push"),
            ("push", "net"),
            ("net", "rank", "for every i"),
            ("rank", "prune"),
            ("prune", "tune"),
        ],
        height=3.3,
        title="No trigger anywhere: only clean images that were pushed",
        description="Boxes in a row: clean images, random start, push for map i, the network that "
        "is asked who is hurt. From there, for every i, down to ranking the maps of the layer, "
        "and back to the left: switch the worst off, then fine-tune.",
    )


def pushed(
    x: Tensor, x0: Tensor, many: Tensor, stamped: Tensor, said: Sequence[str], k: int
) -> Picture:
    """One sign clean, from the start, pushed for map k, with the trigger; and what changed.

    Args:
        x, x0, stamped: (c, h, w); many: (maps, c, h, w).
        said: the network's answers to the four pictures above.
    """
    other = (k + 1) % len(many)
    alike = float(((many[k] - x0).sign() == (many[other] - x0).sign()).float().mean())
    above = torch.stack([x, x0, many[k], stamped])
    below = torch.stack([x0 - x, many[k] - x0, many[other] - x0, stamped - x])
    heads = ("clean", "start", "pushed", "trigger")
    words = [f"{a}: {b}" for a, b in zip(heads, said, strict=True)]
    words += ["start - clean, x12", f"map {k}, x12", f"map {other}, x12", "trigger, x12"]
    return show.images(
        torch.cat([above, (0.5 + 12 * below).clamp(0, 1)]),
        words,
        cols=4,
        title=f"Two maps, two pushes: they agree in {alike:.0%} of the values",
        description="A sign four times, with the network's answer: clean, from the random start, "
        f"pushed for map {k}, with the attacker's patch. Below, what changed, enlarged twelve "
        "times: noise for the start, streaks and blots along the sign for the pushes of two "
        "maps, a small square in the corner for the trigger.",
    )


def follows(
    names: Sequence[str], victim: Sequence[Sequence[float]], twin: Sequence[Sequence[float]]
) -> Picture:
    """Rank correlation of score and TAC, layer by layer: draws of the victim's and the twin's."""
    short = [n.replace("layer", "").replace("shortcut", "sc") for n in names]
    first, other = ([float(torch.tensor(r[:5]).median()) for r in rows] for rows in (victim, twin))
    with show.style():
        fig, axes = show.canvas(height=3.9)
        ax = axes[0, 0]
        ax.axhline(0, color=QUIET, lw=1)
        for rows, shift, marker, color, label in (
            (victim, -0.12, "o", INK, f"victim, {len(victim)} draws"),
            (twin, 0.12, "x", CLEAN, f"twin, {len(twin)} draws"),
        ):
            for k, values in enumerate(rows):
                at = [i + shift for i in range(len(values))]
                more = {"label": label} if k == 0 else {}
                ax.plot(at, list(values), marker, color=color, ms=5, alpha=0.8, **more)
        ax.set_xticks(range(len(short)), short, rotation=90, fontsize=10)
        ax.set_ylim(-1, 1)
        ax.set_ylabel("rank correlation with TAC")
        ax.set_xlabel("convolutions, entrance to exit")
        ax.legend(loc="lower left", ncols=2, fontsize=10)
        show.headline(
            fig,
            f"First five layers, medians: victim {min(first):.2f} to {max(first):.2f}, "
            f"twin {min(other):.2f} to {max(other):.2f}",
        )
        return Picture(
            fig,
            "For each of twenty convolutions, entrance to exit, the rank correlation between the "
            "harm of a map's push and its reaction to the trigger: dots for draws of the victim, "
            "crosses for draws of the benign twin. Near the entrance dots and crosses lie well "
            "above zero; in the second stage the dots do, and most crosses do not; toward the "
            "exit both lie around it.",
        )


HOW = {"FMP": (DEFENDED, "o"), "random maps": (QUIET, "x"), "no maps": (INK, "s")}
STAGES = ("pruned", "new statistics", "tuned", "tuned, old statistics")


def draws(points: Mapping[str, Sequence[tuple[str, str, float, float]]]) -> Picture:
    """Attack success by stage, a point for each draw: victim -> (how, stage, asr, acc).

    Where accuracy is below 90%, it stands beside the point.
    """
    with show.style():
        fig, axes = show.canvas(len(points), 1, height=5.8, sharex=True)
        for ax, (name, found) in zip(axes[:, 0], points.items(), strict=True):
            for j, (how, (color, marker)) in enumerate(HOW.items()):
                for i, stage in enumerate(STAGES):
                    values = [(a, c) for h, s, a, c in found if (h, s) == (how, stage)]
                    spread = torch.linspace(-0.08, 0.08, max(len(values), 1)).tolist()
                    for (asr, acc), d in zip(values, spread, strict=False):
                        at = i + 0.28 * (j - 1) + d
                        ax.plot(at, 100 * asr, marker, color=color, ms=7)
                        if acc < 0.9:
                            text = f"{100 * acc:.0f}"
                            ax.text(at, 100 * asr - 8, text, ha="center", va="top", fontsize=9)
                ax.plot([], [], marker, color=color, ms=7, ls="", label=how)
            ax.axhline(10, color=TRIGGERED, lw=1, ls=":")
            ax.text(len(STAGES) - 0.52, 12, "10%", ha="right", color=TRIGGERED, fontsize=9)
            ax.set_xticks(range(len(STAGES)), [s.replace(", ", ",\n") for s in STAGES])
            ax.set_xlim(-0.5, len(STAGES) - 0.5)
            ax.set_ylim(-6, 106)
            ax.set_ylabel("ASR, %")
            fell = any(c < 0.9 for *_, c in found)
            note = ": a number is the accuracy in %, where below 90" if fell else ""
            ax.set_title(name + note, fontsize=11, loc="left", fontweight="normal")
        fig.legend(*axes[0, 0].get_legend_handles_labels(), ncols=3, loc="outside lower left")
        worst = {
            stage: [100 * a for h, s, a, _ in points["badnets"] if (h, s) == ("FMP", stage)]
            for stage in STAGES
        }
        back = [*worst["new statistics"], *worst["tuned"]]
        gone = [*worst["pruned"], *worst["tuned, old statistics"]]
        show.headline(
            fig,
            f"badnets after FMP: at most {max(gone):.0f}% with old statistics, "
            f"{min(back):.0f} to {max(back):.0f}% with new",
        )
        return Picture(
            fig,
            "Two panels, badnets above and blended below: attack success when pruned, with new "
            "statistics, when tuned, and when tuned with old statistics, a point for each draw. "
            "On badnets the circles of FMP lie on the floor in the first and last column and "
            "between half and nearly all in the two between; crosses of random maps and squares "
            "of no maps stay at the top. On blended all points stay at the top, except in the "
            "last column, where FMP leaves a half and a fifth, and random maps nothing in one "
            "draw and all in the other. Beside some points stands an accuracy that fell.",
        )


def classes(known: Mapping[str, Sequence[float]], names: Sequence[str]) -> Picture:
    """Share of clean test images recognized: network -> one share a class."""
    mute = {
        net: ", ".join(n for n, v in zip(names, shares, strict=True) if v < 0.1)
        for net, shares in known.items()
    }
    twins = " or ".join(gone or "none" for net, gone in mute.items() if net.startswith("twin"))
    return show.matrix(
        torch.tensor(list(known.values())),
        list(known),
        list(names),
        numbers=True,
        height=3.2,
        title=f"Silent after the large cut: {mute['large cut'] or 'none'}; twin: {twins}",
        description="Share of clean test images recognized, by network and sign. With the small "
        "cut nearly all are known. With the large cut the attacker's sign, 30, is at zero and "
        "other speed limits with it; with new statistics all are known again. As many random "
        "maps leave every sign some images. The benign twin, cut as deep, no longer knows some "
        "speed limits in both draws, 30 in one of them.",
    )
