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
        "clean": Box(1.0, 3.6, "sixteen\nclean signs", CLEAN, 1.7, 1.0),
        "start": Box(3.3, 3.6, "a coin for\neach value", OTHER, 1.7, 1.0),
        "push": Box(5.75, 3.6, "one step that\nmoves map i", OTHER, 2.0, 1.0),
        "net": Box(8.5, 3.6, "whole network:\nwho is hurt?", INK, 2.4, 1.0),
        "rank": Box(8.5, 1.2, "line up the maps\nof the layer", INK, 2.5, 1.0),
        "prune": Box(5.3, 1.2, "silence the\nmost harmful", DEFENDED, 2.3, 1.0),
        "tune": Box(2.1, 1.2, "train on\nclean signs", DEFENDED, 2.1, 1.0),
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
        title="FMP pushes clean signs, map by map, and looks who is hurt",
        description="Boxes in a row: sixteen clean signs, a coin for each pixel value, one step "
        "that moves map i, the whole network that is asked who is hurt. From there, for every "
        "i, down to lining up the maps of the layer, and back to the left: silence the most "
        "harmful, then train on clean signs.",
    )


def pushed(
    row: Tensor, many: Tensor, k: int, logits: Tensor, truth: int, names: Sequence[str]
) -> Picture:
    """One sign clean, from the start, pushed for map k, with the trigger; and what changed.

    Args:
        row: (4, c, h, w), in that order; many: (maps, c, h, w), every map's push.
        logits: the network's answers to the four pictures.
        truth: the sign's class, of `names`.
    """
    x, x0, _, stamped = row
    other = (k + 1) % len(many)
    alike = float(((many[k] - x0).sign() == (many[other] - x0).sign()).float().mean())
    said = [names[int(i)] for i in logits.argmax(1)]
    loss = -float(logits.log_softmax(1)[2, truth])
    below = torch.stack([x0 - x, many[k] - x0, many[other] - x0, stamped - x])
    heads = ("clean", "start", "pushed", "trigger")
    words = [f"{a}: {b}" for a, b in zip(heads, said, strict=True)]
    words += ["start, x12", f"map {k}, x12", f"map {other}, {alike:.0%} alike", "trigger, x12"]
    verb = "still reads" if said[2] == names[truth] else "now reads"
    return show.images(
        torch.cat([row, (0.5 + 12 * below).clamp(0, 1)]),
        words,
        cols=4,
        wrong=[b != names[truth] for b in said] + [False] * 4,
        title=f"Map {k} pushed: “{names[truth]}” {verb} “{said[2]}”, cross-entropy {loss:.2g}",
        description="A sign four times, with the network's answer: clean, from the random start, "
        f"pushed for map {k}, with the attacker's patch. Below, what changed, enlarged twelve "
        "times: noise for the start, colored specks and blots for the pushes of two maps, a "
        "small square in the corner for the trigger.",
    )


def follows(
    names: Sequence[str], victim: Sequence[Sequence[float]], twin: Sequence[Sequence[float]]
) -> Picture:
    """Rank correlation of score and TAC, layer by layer: draws of the victim's and the twin's."""
    short = [n.replace("layer", "").replace("shortcut", "sc") for n in names]
    mean = {
        who: [torch.tensor([r[i] for r in rows]).mean() for i in range(10)]
        for who, rows in (("victim", victim), ("twin", twin))
    }
    ahead = sum(a > b for a, b in zip(mean["victim"], mean["twin"], strict=True))
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
            f"Victim ahead of its twin in {ahead} of the first ten layers, on average",
        )
        return Picture(
            fig,
            "For each of twenty convolutions, entrance to exit, the rank correlation between the "
            "harm of a map's push and its reaction to the trigger: dots for draws of the victim, "
            "crosses for draws of the benign twin. In the first convolution only the dots lie "
            "well above zero; in the first stage dots and crosses do; in the second stage the "
            "dots do, and most crosses do not; toward the exit both lie around it.",
        )


HOW = {"FMP": (DEFENDED, "o"), "random maps": (QUIET, "x"), "no maps": (INK, "s")}
STAGES = ("pruned", "new statistics", "tuned", "tuned, old statistics")


def draws(
    points: Mapping[str, Sequence[tuple[str, str, float, float]]],
    live: Sequence[tuple[str, str, float, float]],
) -> Picture:
    """Attack success by stage, a point for each draw: victim -> (how, stage, asr, acc).

    Where accuracy is below 90%, it stands beside the point. Points in `live` get a ring.
    """
    with show.style():
        fig, axes = show.canvas(len(points), 1, height=5.8, sharex=True)
        for ax, (name, found) in zip(axes[:, 0], points.items(), strict=True):
            for j, (how, (color, marker)) in enumerate(HOW.items()):
                for i, stage in enumerate(STAGES):
                    values = [p for p in found if p[:2] == (how, stage)]
                    spread = torch.linspace(-0.08, 0.08, max(len(values), 1)).tolist()
                    for point, d in zip(values, spread, strict=False):
                        asr, acc = point[2:]
                        at = i + 0.28 * (j - 1) + d
                        ax.plot(at, 100 * asr, marker, color=color, ms=7)
                        if any(point is p for p in live):
                            ax.plot(at, 100 * asr, "o", mec=INK, mfc="none", mew=1.6, ms=11)
                        if acc < 0.9:
                            text = f"{100 * acc:.0f}"
                            ax.text(at, 100 * asr - 8, text, ha="center", va="top", fontsize=9)
                ax.plot([], [], marker, color=color, ms=7, ls="", label=how)
            ax.plot([], [], "o", mec=INK, mfc="none", mew=1.6, ms=11, ls="", label="this page")
            ax.axhline(10, color=TRIGGERED, lw=1, ls=":")
            ax.text(len(STAGES) - 0.52, 12, "10%", ha="right", color=TRIGGERED, fontsize=9)
            ax.set_xticks(range(len(STAGES)), [s.replace(", ", ",\n") for s in STAGES])
            ax.set_xlim(-0.5, len(STAGES) - 0.5)
            ax.set_ylim(-6, 106)
            ax.set_ylabel("ASR, %")
            fell = any(c < 0.9 for *_, c in found)
            note = ": a number is the accuracy in %, where below 90" if fell else ""
            ax.set_title(name + note, fontsize=11, loc="left", fontweight="normal")
        fig.legend(*axes[0, 0].get_legend_handles_labels(), ncols=4, loc="outside lower left")
        worst = {
            stage: [100 * a for h, s, a, _ in points["badnets"] if (h, s) == ("FMP", stage)]
            for stage in STAGES
        }
        back = [*worst["new statistics"], *worst["tuned"]]
        gone = [*worst["pruned"], *worst["tuned, old statistics"]]
        kept = max(gone) < 10 < min(back)
        show.headline(
            fig,
            "On badnets the repair lasts only as long as the old statistics"
            if kept
            else "On badnets old and new statistics do not part the draws",
        )
        return Picture(
            fig,
            "Two panels, badnets above and blended below: attack success when pruned, with new "
            "statistics, when tuned, and when tuned with old statistics, a point for each draw. "
            "On badnets the circles of FMP lie on the floor in the first and last column and "
            "between half and nearly all in the two between; crosses of random maps and squares "
            "of no maps stay at the top. On blended all points stay at the top, except in the "
            "last column, where FMP leaves a half and a fifth, and random maps nothing in one "
            "draw and all in the other. Beside some points stands an accuracy that fell; rings "
            "mark the draw that ran on this page.",
        )


def classes(
    known: Mapping[str, Sequence[float]], names: Sequence[str], parts: Sequence[int]
) -> Picture:
    """Share of clean test images recognized: network -> one share a class.

    Args:
        known: by the name of the row; the deep cut on the page is "large cut".
        parts: rows that begin a new part.
    """
    mute = {
        net: [n for n, v in zip(names, row, strict=True) if v < 0.1] for net, row in known.items()
    }
    lost = " and ".join(", ".join(f"“{n}”" for n in mute["large cut"]).rsplit(", ", 1))
    return show.matrix(
        torch.tensor(list(known.values())),
        list(known),
        list(names),
        numbers=True,
        height=4.4,
        parts=parts,
        title=f"The large cut loses {lost or 'no sign'}",
        description="Share of clean test images recognized, by network and sign. With the small "
        "cut nearly all are known. With the large cut the attacker's sign, 30, is at zero and "
        "other speed limits with it; with new statistics all are known again. With as many random "
        "maps off, three draws, every sign keeps some images. The benign twin, cut as deep, no "
        "longer knows some speed limits in both draws, 30 in one of them. Blended with random "
        "maps off loses three and four direction signs.",
    )
