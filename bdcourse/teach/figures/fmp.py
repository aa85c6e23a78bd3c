"""The figures of lesson 06."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from bdcourse.report import diagram, show
from bdcourse.report.diagram import Box
from bdcourse.report.show import CLEAN, DEFENDED, INK, OTHER, QUIET, TRIGGERED, Picture


def search_loop(x: Tensor, x0: Tensor) -> Picture:
    """The method, as boxes, with an image (c, h, w) and its random start."""
    parts = {
        "clean": Box(1.05, 2.95, "$x$: sixteen\nclean signs", CLEAN, 1.8, 1.0),
        "start": Box(3.4, 2.95, "$x_0$: a coin for\neach value", OTHER, 2.1, 1.0),
        "push": Box(5.95, 2.95, "$x_i$: one step up\n$J_i$, for map $i$", OTHER, 2.1, 1.0),
        "net": Box(8.65, 2.95, "whole network:\nwho is hurt?", INK, 2.2, 1.0),
        "rank": Box(8.65, 0.8, "line up the maps\nof each layer", INK, 2.3, 1.0),
        "prune": Box(5.45, 0.8, "silence the\nmost harmful", DEFENDED, 2.1, 1.0),
        "tune": Box(2.2, 0.8, "train on\nclean signs", DEFENDED, 2.1, 1.0),
    }
    flow = ("clean", "start", "push", "net", "rank", "prune", "tune")
    return diagram.boxes(
        parts,
        list(pairwise(flow)),
        height=3.5,
        title="FMP pushes clean signs, map by map, and sees which images break",
        pictures=[(1.05, 4.1, 1.05, x), (3.4, 4.1, 1.05, x0)],
        frames=[Box(7.33, 3.2, "for every map $i$ of every layer", QUIET, 5.15, 2.0)],
        description="Boxes in a row: sixteen clean signs x, with a picture of one; their random "
        "start x0, a coin for each pixel value, with the same sign under noise; one step up J of "
        "map i, which gives x_i; the whole network that is asked who is hurt. A frame around the "
        "last two says: for every map i of every layer. From there down to lining up the maps of "
        "each layer, and back to the left: silence the most harmful, then train on clean signs.",
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
    losses = -logits.log_softmax(1)[:, truth]
    below = torch.stack([x0 - x, many[k] - x0, many[other] - x0, stamped - x])
    below = (0.5 + 12 * below).clamp(0, 1)
    heads = ("clean", "start", "pushed", "trigger")
    agree = f"map {other}: {alike:.0%} of steps\nagree (chance 50%)"
    under = ("start - clean", f"map {k}: pushed - start", agree, "trigger - clean")
    with show.style():
        fig, axes = show.canvas(2, 4, height=4.5)
        for i, ax in enumerate(axes.flat):
            image = row[i] if i < 4 else below[i - 4]
            ax.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if i < 4:
                show.name_over(ax, f"{heads[i]}: {said[i]}", said[i] != names[truth])
            else:
                ax.set_title(under[i - 4], fontsize=9.5, loc="center", fontweight="normal")
        axes[0, 0].set_ylabel("image")
        axes[1, 0].set_ylabel("difference, x12")
        show.headline(
            fig,
            f"Map {k}: “{names[truth]}” reads “{said[2]}”, "
            f"cross-entropy {losses[2]:.2f} (start: {losses[1]:.2f})",
        )
        return Picture(
            fig,
            "A sign four times, with the network's answer: clean, from the random start, "
            f"pushed for map {k}, with the attacker's patch. Below, what changed, enlarged twelve "
            "times: noise for the start, colored specks and blots for the pushes of two maps, a "
            "small square in the corner for the trigger.",
        )


# The stages of the network: name, first and last of its convolutions.
GROUPS = (("layer1", 1, 4), ("layer2", 5, 9), ("layer3", 10, 14), ("layer4", 15, 19))


def follows(
    names: Sequence[str], victim: Sequence[Sequence[float]], twin: Sequence[Sequence[float]]
) -> Picture:
    """Rank correlation of score and TAC, layer by layer: draws of the victim's and the twin's."""
    short = [n.partition(".")[2].replace("shortcut.0", "skip") or n for n in names]
    near, far = (
        {
            who: float(torch.tensor(rows)[:, part].mean())
            for who, rows in (("victim", victim), ("twin", twin))
        }
        for part in (slice(1, 5), slice(15, 20))
    )
    seen = near["victim"] > 0.4 and near["twin"] > 0.2 and abs(far["victim"]) < 0.2
    with show.style():
        fig, axes = show.canvas(height=4.0)
        ax = axes[0, 0]
        ax.axhline(0, color=QUIET, lw=1)
        for k, (word, first, last) in enumerate(GROUPS):
            if k % 2 == 0:
                ax.axvspan(first - 0.5, last + 0.5, color=QUIET, alpha=0.12, lw=0)
            ax.text((first + last) / 2, 1.02, word, ha="center", va="bottom", fontsize=10)
        for rows, shift, marker, color, label in (
            (victim, -0.12, "o", INK, f"victim, {len(victim)} draws"),
            (twin, 0.12, "x", CLEAN, f"benign twin, {len(twin)} draws"),
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
            "The score follows TAC near the entrance, partly in the twin as well"
            if seen
            else "The score follows TAC in some layers",
        )
        return Picture(
            fig,
            "For each of twenty convolutions, entrance to exit, the rank correlation between the "
            "harm of a map's push and its reaction to the trigger, which for the benign twin is "
            "the same trigger: dots for draws of the victim, crosses for draws of the twin. In "
            "the first convolution only the dots lie well above zero; in the first stage dots "
            "and crosses do; in the second stage the dots do, and most crosses do not; toward "
            "the exit both lie around it.",
        )


HOW = {"FMP": (DEFENDED, "o"), "random maps": (QUIET, "x"), "no maps": (INK, "s")}
RING = "this page (cut held, one pass)"
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
            ax.plot([], [], "o", mec=INK, mfc="none", mew=1.6, ms=11, ls="", label=RING)
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
        left = {
            (name, stage): [100 * a for h, s, a, _ in found if (h, s) == ("FMP", stage)]
            for name, found in points.items()
            for stage in STAGES
        }
        back = left["badnets", "new statistics"] + left["badnets", "tuned"]
        gone = left["badnets", "pruned"] + left["badnets", "tuned, old statistics"]
        never = min(min(left["blended", stage]) for stage in STAGES) > 10
        show.headline(
            fig,
            "On badnets the repair needs the old statistics; on blended it never comes"
            if max(gone) < 10 < min(back) and never
            else "What FMP leaves of the attack, step by step",
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
    """Share of clean test images read correctly: network -> one share a class.

    Args:
        known: by the name of the row; the deep cut on the page is "large cut".
        parts: rows that begin a new part.
    """
    from matplotlib.colors import LinearSegmentedColormap

    mute = [n for n, v in zip(names, known["large cut"], strict=True) if v < 0.1]
    lost = " and ".join(", ".join(f"“{n}”" for n in mute).rsplit(", ", 1))
    twins = [dict(zip(names, v, strict=True)) for k, v in known.items() if k.startswith("twin")]
    also = sum(all(row[n] < 0.1 for n in mute) for row in twins)
    shares = 100 * torch.tensor(list(known.values()))
    with show.style():
        fig, axes = show.canvas(height=4.9)
        ax = axes[0, 0]
        pale = LinearSegmentedColormap.from_list("losses", [INK, CLEAN, "white"])
        ax.imshow(shares, cmap=pale, vmin=0, vmax=100, aspect="auto")
        for i, row in enumerate(shares.round().int().tolist()):
            for j, share in enumerate(row):
                ink = "white" if share <= 60 else QUIET if share == 100 else INK
                ax.text(j, i, str(share), ha="center", va="center", color=ink, fontsize=10)
        for i in parts:
            ax.axhline(i - 0.5, color=QUIET, lw=1)
        ax.set_xticks(range(len(names)), names, rotation=45, ha="right")
        ax.set_yticks(range(len(known)), list(known))
        ax.set_xlabel("share of each sign read correctly, %")
        show.headline(
            fig,
            f"{lost} fall silent, in {also} of {len(twins)} cuts of the twin as well"
            if mute
            else "The large cut silences no sign",
        )
        return Picture(
            fig,
            "Share of clean test images read correctly, by network and sign; losses are blue. "
            "Uncut, all are known. With the small cut only the 80 suffers. With the large cut "
            "the attacker's sign, 30, is at zero and other speed limits with it; with new "
            "statistics all are known again. With as many random maps off, three draws, every "
            "sign keeps some images. The benign twin, cut as deep, no longer knows some speed "
            "limits in both draws, 30 in one of them. Blended with random maps off loses three "
            "and four direction signs.",
        )
