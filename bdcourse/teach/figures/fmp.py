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
    words += ["start - clean", f"push, map {k}", f"push, map {other}", "trigger - clean"]
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


def follows(names: Sequence[str], rho: Sequence[float], twin: Sequence[Sequence[float]]) -> Picture:
    """Rank correlation of score and TAC, layer by layer: the victim's, and draws of the twin's."""
    short = [n.replace("layer", "").replace("shortcut", "sc") for n in names]
    calm = torch.tensor(twin).mean(0).tolist()
    first, other = (float(torch.tensor(r[:5]).median()) for r in (rho, calm))
    with show.style():
        fig, axes = show.canvas(height=3.9)
        ax = axes[0, 0]
        ax.axhline(0, color=QUIET, lw=1)
        ax.vlines(range(len(rho)), 0, list(rho), color="#d0d0d0", lw=2)
        ax.plot(range(len(rho)), list(rho), "o", color=INK, ms=7, label="victim")
        for k, values in enumerate(twin):
            label = "twin, stored draws" if k == 0 else ""
            ax.plot(range(len(rho)), list(values), "x", color=CLEAN, ms=6, label=label)
        ax.set_xticks(range(len(rho)), short, rotation=90, fontsize=10)
        ax.set_ylim(-1, 1)
        ax.set_ylabel("rank correlation with TAC")
        ax.set_xlabel("convolutions, entrance to exit")
        ax.legend(loc="lower left", ncols=2, fontsize=10)
        show.headline(fig, f"First five layers, median: victim {first:.1f}, twin {other:.1f}")
        return Picture(
            fig,
            "For each of twenty convolutions, entrance to exit, the rank correlation between the "
            "harm of a map's push and its reaction to the trigger: a dot for the victim, crosses "
            "for the benign twin. Near the entrance most dots and most crosses lie well above "
            "zero, toward the exit both lie around it.",
        )


HOW = {"FMP": (DEFENDED, "o"), "random maps": (QUIET, "x"), "no maps": (INK, "s")}
STAGES = ("pruned", "new statistics", "tuned", "tuned, old statistics")


def draws(points: Mapping[str, Sequence[tuple[str, str, float]]]) -> Picture:
    """Attack success by stage, a point for each draw: victim -> (how, stage, asr)."""
    with show.style():
        fig, axes = show.canvas(len(points), 1, height=5.4, sharex=True)
        for ax, (name, found) in zip(axes[:, 0], points.items(), strict=True):
            for j, (how, (color, marker)) in enumerate(HOW.items()):
                for i, stage in enumerate(STAGES):
                    values = [a for h, s, a in found if (h, s) == (how, stage)]
                    spread = torch.linspace(-0.09, 0.09, max(len(values), 1)).tolist()
                    at = [i + 0.24 * (j - 1) + d for d in spread[: len(values)]]
                    ax.plot(at, [100 * v for v in values], marker, color=color, ms=8)
                ax.plot([], [], marker, color=color, ms=8, ls="", label=how)
            ax.axhline(10, color=TRIGGERED, lw=1, ls=":")
            ax.set_xticks(range(len(STAGES)), [s.replace(", ", ",\n") for s in STAGES])
            ax.set_xlim(-0.5, len(STAGES) - 0.5)
            ax.set_ylim(-6, 106)
            ax.set_ylabel("ASR, %")
            ax.set_title(name, fontsize=11, loc="left", fontweight="normal")
        fig.legend(*axes[0, 0].get_legend_handles_labels(), ncols=3, loc="outside lower left")
        worst = {
            stage: [100 * a for h, s, a in points["badnets"] if (h, s) == ("FMP", stage)]
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
            "of no maps stay at the top. On blended all points stay at the top, except in the last "
            "column, where FMP leaves a half and a fifth.",
        )


def classes(known: Mapping[str, Sequence[float]], names: Sequence[str]) -> Picture:
    """Share of clean test images recognized: network -> one share a class."""
    lost = {
        net: ", ".join(n for n, v in zip(names, shares, strict=True) if v < 0.1)
        for net, shares in known.items()
    }
    twins = " or ".join(gone or "none" for net, gone in lost.items() if net.startswith("twin"))
    return show.matrix(
        torch.tensor(list(known.values())),
        list(known),
        list(names),
        numbers=True,
        height=3.2,
        title=f"Lost by the large cut: {lost['large cut'] or 'none'}; by the twin: {twins}",
        description="Share of clean test images recognized, by network and sign. The victim "
        "knows all of them. With the small cut nearly all are known. With the large cut the "
        "attacker's sign, 30, is at zero and other speed limits with it. The benign twin, cut "
        "as deep, lost speed limits in both draws, 30 in one of them.",
    )
