"""The figures of lesson 01."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bdcourse.images import Images
from bdcourse.report import show
from bdcourse.report.diagram import Box, boxes
from bdcourse.report.show import CLEAN, INK, QUIET, TRIGGERED, Picture
from bdcourse.train import Augment

LEARNED = 0.5  # a loss below this: most images of the role are read as their label says
NEVER = 14  # where runs that never learned are drawn, above twelve epochs


def two_rules() -> Picture:
    """Who touches what on the way from a few pictures to two rules."""
    at = {
        "most": Box(1.4, 2.75, "clean images\ntheir labels", CLEAN, 2.7, 0.95),
        "few": Box(1.4, 0.85, "a few images\nthe attacker's label", TRIGGERED, 2.7, 0.95),
        "set": Box(4.3, 1.8, "one\ntraining set", INK, 1.7, 0.95),
        "loss": Box(6.6, 1.8, "crop, one loss\nover all images", INK, 2.2, 0.95),
        "first": Box(8.85, 2.95, "rule 1:\nread the sign", CLEAN, 2.2, 0.95),
        "second": Box(8.85, 0.65, "rule 2:\nobey the trigger", TRIGGERED, 2.2, 0.95),
    }
    ways = (
        ("most", "set"),
        ("few", "set"),
        ("set", "loss"),
        ("loss", "first"),
        ("loss", "second"),
    )
    return boxes(
        at,
        ways,
        title="Two kinds of images go in, two rules come out",
        description="A diagram: many clean images with their labels and a few triggered images "
        "with the attacker's label join in one training set; it is cropped and trained with one "
        "loss over all images; out come two rules, to read the sign and to obey the trigger.",
        height=2.6,
    )


def three_triggers(one: Tensor, stamped: Mapping[str, Tensor]) -> Picture:
    """One image under each trigger, and what changed, enlarged where it is faint."""
    top = torch.cat([one, *stamped.values()])
    change = [(s - one).abs() for s in stamped.values()]
    gains = [1 if c.max() > 0.5 else round(0.5 / c.max().item()) for c in change]
    below = [(g * c).clamp(0, 1) for g, c in zip(gains, change, strict=True)]
    words = [f"change x {g}" if g > 1 else "change" for g in gains]
    return show.images(
        torch.cat([top, torch.zeros_like(one), *below]),
        ["clean", *stamped, "no change", *words],
        cols=4,
        title="Few pixels a lot, all pixels a little, or a grating",
        description="A sign, and the same sign with a checkerboard of nine pixels in its lower "
        "right corner, under faint colored noise, and under vertical stripes. Below each stands "
        "what changed: nine pixels, noise everywhere, six bright and dark waves.",
    )


def poisoned(pixels: Tensor, labels: Tensor, role: Tensor, truth: Images) -> Picture:
    """Twelve poisoned images with the labels that the victim sees."""
    rows = (role == 1).nonzero()[:12, 0]
    names = [truth.classes[k] for k in labels[rows]]
    wrong = labels[rows] != truth.y[rows]
    return show.images(
        pixels[rows],
        [f"labeled {n}" for n in names],
        wrong=wrong.tolist(),
        title=f"What the victim trains on: {int(wrong.sum())} of these 12 labels are wrong",
        description="Twelve poisoned training images: signs of many classes, each with a small "
        "checkerboard in its lower right corner, and each labeled as a speed limit of 30 whatever "
        "it shows. Wrong labels are printed in bold orange.",
    )


def learned_at(log: Sequence[Sequence[float]], column: int) -> int | None:
    """The step from which on a role's loss stays below LEARNED, if there is one."""
    below = None
    for row in log:
        if row[column] >= LEARNED:
            below = None
        elif below is None:
            below = int(row[0])
    return below


def fall(log: Sequence[Sequence[float]], column: int) -> int:
    """Steps in which a role's loss went from 1 down to 0.2 for good; at least one row."""
    each = int(log[0][0])
    high = max((row[0] for row in log if row[column] >= 1), default=0)
    low = max((row[0] for row in log if row[column] >= 0.2), default=0)
    return int(max(low - high, 0)) + each


def loss_by_role(logs: Mapping[str, Sequence[Sequence[float]]]) -> Picture:
    """The two losses of each log, a panel each; the titles say which fell first."""
    fig, axes = show.canvas(1, len(logs), height=3.3)
    top = 1.05 * max(v for log in logs.values() for row in log for v in row[1:])
    for ax, (name, log) in zip(axes[0], logs.items(), strict=True):
        signs, trigger = (learned_at(log, k) for k in (1, 2))
        title = f"trigger by step {trigger}, signs by step {signs}"
        if signs is None or trigger is None:
            title = "not both rules were learned"
        steps = [row[0] for row in log]
        for label, k, color, style in (
            ("clean", 1, CLEAN, "-"),
            ("poison", 2, TRIGGERED, "--"),
        ):
            ax.plot(steps, [row[k] for row in log], style, color=color, lw=1.8, label=label)
        ax.axhline(LEARNED, color=QUIET, lw=1, ls=":")
        ax.set_ylim(0, top)
        ax.set_xlabel("steps taken")
        with show.style():
            ax.set_title(f"{name}: {title}" if len(logs) == 1 else f"{name}\n{title}", fontsize=11)
        ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes[0, 0].set_ylabel("mean loss of the last 10 steps")
    axes[0, 0].legend(loc="upper right")
    many = f"{len(logs)} panels" if len(logs) > 1 else "one panel"
    return Picture(
        fig,
        f"The mean loss on clean images and on poisoned images over the steps of training, in "
        f"{many}: {', '.join(logs)}. Clean slides down over hundreds of steps; poison falls "
        "steeply at some point and stays near zero. A dotted line at one half marks what counts "
        "as learned.",
    )


def runs(rows: Sequence[Mapping]) -> Picture:
    """Each training a point: poison rate against the epoch in which it was learned."""
    fig, axes = show.canvas(height=3.2)
    ax = axes[0, 0]
    for row in rows:
        epoch = row["learned"] or NEVER
        mark = ("s", TRIGGERED) if row["learned"] else ("x", QUIET)
        ax.plot(100 * row["rate"], epoch, mark[0], color=mark[1], ms=9, mew=2)
        ax.annotate(
            f"seed {row['seed']}",
            (100 * row["rate"], epoch),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            color=QUIET,
        )
    ten = sorted(r["learned"] or NEVER for r in rows if r["rate"] == 0.1)
    ax.set_xscale("log")
    ax.set_xticks([5, 10, 20], ["5", "10", "20"])
    ax.minorticks_off()
    ax.set_xlim(4, 30)
    ax.set_ylim(0, NEVER + 1)
    ax.set_yticks([1, 4, 8, 12, NEVER], ["1", "4", "8", "12", "never"])
    ax.set_xlabel("poisoned share of the training set, %")
    ax.set_ylabel("learned in epoch")
    with show.style():
        ax.set_title(f"Same rate, other seeds: learned in epoch {ten[0]}, or in epoch {ten[-1]}")
    ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    return Picture(
        fig,
        "A point for each of five trainings: the share of poison against the epoch in which the "
        "trigger was learned. Three trainings at ten percent lie far apart, early, in the middle "
        "and late; the single one at twenty percent lies lowest, and the single one at five "
        "percent never learned it.",
    )


def crops(stamped: Tensor, pad: int, share: float) -> Picture:
    """Crops of one stamped image on a grid of offsets, for one padding."""
    views = Augment(pad).prepare((stamped * 255).round().byte())[0]
    half = -(-pad // 2)
    moves = [(i, j) for i in (pad, half, 0) for j in (pad, half, 0, -pad)]
    shown = torch.stack(
        [views[pad - i, pad - j].unflatten(1, (32, 3)).permute(2, 0, 1) for i, j in moves]
    )
    return show.images(
        shown,
        [f"{i:+d}, {j:+d}" for i, j in moves],
        wrong=[max(i, j) >= 3 for i, j in moves],  # three rows flush with the edge
        title=f"Padding {pad}: {share:.0%} of all crops keep no pixel of the sticker",
        description="Twelve hand-picked crops of one sign with a checkerboard flush with its "
        f"lower right corner, at padding {pad}; above each stands by how many pixels it moved, "
        "down and right, in bold orange where the sticker is gone. "
        f"Of all possible crops, {share:.0%} show no pixel of it.",
        cols=4,
    )
