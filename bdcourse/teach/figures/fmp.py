"""The figures of lesson 06."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bdcourse.report import diagram, show
from bdcourse.report.diagram import Box
from bdcourse.report.show import CLEAN, DEFENDED, INK, OTHER, QUIET, TRIGGERED, Picture


def loop() -> Picture:
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


def follows(names: Sequence[str], rho: Sequence[float]) -> Picture:
    """Rank correlation of score and TAC, layer by layer."""
    short = [n.replace("layer", "").replace("shortcut", "sc") for n in names]
    half = len(rho) // 2
    first, last = (float(torch.tensor(r).median()) for r in (rho[:half], rho[half:]))
    with show.style():
        fig, axes = show.canvas(height=3.6)
        ax = axes[0, 0]
        ax.axhline(0, color=QUIET, lw=1)
        ax.vlines(range(len(rho)), 0, list(rho), color="#d0d0d0", lw=2)
        ax.plot(range(len(rho)), list(rho), "o", color=INK, ms=7)
        ax.axvline(half - 0.5, color=QUIET, lw=1, ls=":")
        ax.set_xticks(range(len(rho)), short, rotation=90, fontsize=10)
        ax.set_ylim(-1, 1)
        ax.set_ylabel("rank correlation with TAC")
        ax.set_xlabel("convolutions, entrance to exit")
        ax.set_title(f"Median {first:.1f} in the first ten layers, {last:.1f} in the last ten")
        return Picture(
            fig,
            "A dot for each of twenty convolutions, entrance to exit: rank correlation between "
            "the harm of a map's push and its reaction to the trigger. In the first half most "
            "dots stand high above zero, in the second half they lie around it.",
        )


HOW = {"FMP": (DEFENDED, "o"), "random maps": (QUIET, "x"), "no maps": (INK, "s")}
STAGES = ("before", "pruned", "tuned")


def draws(points: Mapping[str, Sequence[tuple[str, str, float]]]) -> Picture:
    """Attack success by stage, a point for each draw: victim -> (how, stage, asr)."""
    with show.style():
        fig, axes = show.canvas(1, len(points), height=3.8, sharey=True)
        for ax, (name, found) in zip(axes[0], points.items(), strict=True):
            for j, (how, (color, marker)) in enumerate(HOW.items()):
                for i, stage in enumerate(STAGES):
                    values = [a for h, s, a in found if (h, s) == (how, stage)]
                    spread = torch.linspace(-0.07, 0.07, max(len(values), 1)).tolist()
                    at = [i + 0.24 * (j - 1) + d for d in spread[: len(values)]]
                    ax.plot(at, [100 * v for v in values], marker, color=color, ms=8)
                ax.plot([], [], marker, color=color, ms=8, ls="", label=how)
            ax.axhline(10, color=TRIGGERED, lw=1, ls=":")
            ax.set_xticks(range(len(STAGES)), STAGES)
            ax.set_xlim(-0.5, len(STAGES) - 0.5)
            ax.set_ylim(-5, 105)
            ax.set_title(name, fontsize=11, fontweight="normal")
        axes[0, 0].set_ylabel("ASR, %")
        fig.legend(*axes[0, 0].get_legend_handles_labels(), ncols=3, loc="outside lower left")
        ends = [a for h, s, a in points["badnets"] if (h, s) == ("FMP", "tuned")]
        low = [a for h, s, a in points["badnets"] if (h, s) == ("FMP", "pruned")]
        show.headline(
            fig,
            f"badnets: at most {100 * max(low):.0f}% pruned, "
            f"{100 * min(ends):.0f} to {100 * max(ends):.0f}% tuned",
        )
        return Picture(
            fig,
            "Two panels, attack success before, after pruning and after fine-tuning, a point for "
            "each draw. badnets: the circles of FMP fall to the floor when pruned and stand "
            "between half and nearly all when tuned; crosses of random maps and squares of no "
            "maps stay at the top. blended: all points stay at the top.",
        )


def classes(known: Mapping[str, Sequence[float]], names: Sequence[str]) -> Picture:
    """Share of clean test images recognized: network -> one share a class."""
    worst = next(reversed(known))
    lost = [n for n, v in zip(names, known[worst], strict=True) if v < 0.05]
    return show.matrix(
        torch.tensor(list(known.values())),
        list(known),
        list(names),
        numbers=True,
        height=2.9,
        title=f"{worst}: lost {' and '.join(lost) if lost else 'no sign'}",
        description="Share of clean test images recognized, by network and sign. The victim "
        "knows all of them. With the small cut nearly all are known. With the large cut the "
        "attacker's sign, 30, is at zero and a few others suffer.",
    )
