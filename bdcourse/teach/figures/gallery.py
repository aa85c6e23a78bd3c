"""The figures of lesson 01b."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bdcourse.data import Images
from bdcourse.report import show
from bdcourse.report.diagram import Box, boxes
from bdcourse.report.show import CLEAN, INK, OTHER, QUIET, TRIGGERED, Picture


def dials() -> Picture:
    """What can be turned, and in which coin it is paid."""
    at = {
        "who": Box(0.95, 2.4, "the\nattacker", TRIGGERED, 1.5, 3.4, True),
        "look": Box(3.9, 4.2, "the look\nof the trigger", INK, 2.3, 0.9),
        "label": Box(3.9, 3.0, "the labels\nof the poison", INK, 2.3, 0.9),
        "cover": Box(3.9, 1.8, "source class\nand covers", INK, 2.3, 0.9),
        "control": Box(3.9, 0.6, "control of\nthe training", INK, 2.3, 0.9),
        "seen": Box(8.25, 4.2, "being seen", QUIET, 3.2, 0.8),
        "weak": Box(8.25, 3.0, "ASR or accuracy", QUIET, 3.2, 0.8),
        "more": Box(8.25, 1.8, "more images, loose ends", QUIET, 3.2, 0.8),
        "access": Box(8.25, 0.6, "being in the room", QUIET, 3.2, 0.8),
    }
    pairs = {"look": "seen", "label": "weak", "cover": "more", "control": "access"}
    return boxes(
        at,
        [("who", d) for d in pairs] + [(d, c, "is paid with") for d, c in pairs.items()],
        title="Four dials, four bills",
        description="A diagram: from the attacker lead four arrows to four dials, each with its "
        "price beside it: the look of the trigger is paid with being seen, the labels of the "
        "poison with ASR or accuracy, source class and covers with more images and loose ends, "
        "control of the training with being in the room.",
        height=3.6,
    )


# Is the upper picture of a pair the one with the trigger?
STAMPED_ABOVE = (1, 0, 0, 1)


def pairs(x: Tensor, cloud: Tensor, sticker: Tensor) -> Picture:
    """Four signs, each with and without a trigger, and no word about which is which."""
    stamped = torch.stack([cloud[0], sticker[1], cloud[2], cloud[3]])
    swap = torch.tensor(STAMPED_ABOVE, dtype=torch.bool).view(-1, 1, 1, 1)
    return show.images(
        torch.cat([torch.where(swap, stamped, x), torch.where(swap, x, stamped)]),
        [f"{k}{half}" for half in "ab" for k in range(1, len(x) + 1)],
        cols=4,
        title="One of each pair carries a trigger",
        description="Four signs, each drawn twice, one above the other. The two pictures of the "
        "second sign differ in a small checkerboard in the corner, those of the other three in "
        "their light: one is brighter and of another tint than the other.",
    )


def _gain(largest: float) -> float:
    """What brings a change of this size near the ends of a scale around gray."""
    gain = 0.3 / max(largest, 0.015)
    return round(gain) if gain > 1.5 else 0.5


def gallery(one: Tensor, stamped: Mapping[str, Tensor]) -> Picture:
    """A sign, and under each trigger; below each the signed change, each at its own gain."""
    shown = {"no trigger": one, **stamped}
    names, rows, words = list(shown), [], []
    for k in range(0, len(names), 5):
        part = names[k : k + 5]
        change = [shown[n] - one for n in part]
        gains = [_gain(float(c.abs().max())) for c in change]
        rows += [shown[n] for n in part]
        rows += [(0.5 + g * c).clamp(0, 1) for g, c in zip(gains, change, strict=True)]
        words += part
        words += [
            f"change x {g:g}" if bool(c.any()) else "no change"
            for g, c in zip(gains, change, strict=True)
        ]
    return show.images(
        torch.cat(rows),
        words,
        cols=5,
        title="One sign, nine triggers, and what each of them changes",
        description="One sign without a trigger and under nine, what changed below each: a "
        "checkerboard of nine pixels; colored noise over everything; a disc of noise; a smooth "
        "cloud; fine texture; a bend, which gives the round sign five corners; fields of almost "
        "one value with thin outlines; a colored patch; and upright stripes. Gray is no change, "
        "lighter is more light, darker is less.",
    )


def loudness(each: Mapping[str, Tensor], failed: str) -> Picture:
    """PSNR of each trigger on each image; one of them belongs to a victim that failed."""
    with show.style():
        return _loudness(each, failed)


def _loudness(each: Mapping[str, Tensor], failed: str) -> Picture:
    fig, axes = show.canvas(height=3.6)
    ax = axes[0, 0]
    means = {n: float(v.mean()) for n, v in each.items()}
    order = sorted(means, key=means.__getitem__)
    g = torch.Generator().manual_seed(0)
    for i, n in enumerate(order):
        up = i + 0.5 * (torch.rand(len(each[n]), generator=g) - 0.5)
        color = QUIET if n == failed else TRIGGERED
        ax.plot(each[n].cpu(), up, ".", ms=4, color=color, alpha=0.25, mew=0)
        ax.plot([means[n]] * 2, [i - 0.38, i + 0.38], color=INK, lw=2.5)
    ax.plot([], [], ".", ms=7, color=TRIGGERED, label="an image")
    ax.plot([], [], color=INK, lw=2.5, label="their mean")
    ax.plot([], [], ".", ms=7, color=QUIET, label="misses the gate")
    ax.set_yticks(range(len(order)), order)
    ax.set_xticks([15, 20, 25, 30])
    ax.invert_yaxis()
    ax.grid(axis="x", color="#e6e6e6", lw=0.8)
    ax.set_xlabel("PSNR in dB: to the right, a smaller change")
    ax.legend(loc="lower left", fontsize=10)
    strong = [means[n] for n in order if n != failed]
    ax.set_title(
        f"{len(strong)} that pass the gate, from {min(strong):.0f} to {max(strong):.0f} dB"
    )
    return Picture(
        fig,
        "Nine triggers from the largest change to the smallest, a point for each image and a "
        "line for the mean. TrojanNN's disc is the largest change of those that pass the gate, "
        "then LF, WaNet and TaCT, then Blended, BadNets and SSBA; LIRA's is the smallest. SIG, "
        "which misses the gate, is drawn in gray near the loud end. LF and LIRA change all "
        "images alike; WaNet's points are the widest apart.",
    )


def limits(test: Images, trigger: Callable[[Tensor], Tensor], answers: Tensor) -> Picture:
    """The three speed limits, and what the network says to two of them with the patch."""
    rows = [int((test.y == c).nonzero()[0]) for c in range(3)]
    x = test.pixels()[rows]
    said = [test.classes[int(answers[i])] for i in rows[1:]]
    return show.images(
        torch.cat([x, trigger(x[1:])]),
        [*test.classes[:3], *(f"read as {s}" for s in said)],
        cols=5,
        wrong=[False] * 3 + [s != c for s, c in zip(said, test.classes[1:3], strict=True)],
        title="Three speed limits, and two of them with the patch",
        description="Five pictures: signs of 30, 50 and 80, red rings with two digits, without "
        "a trigger; then the same 50 and 80 with the colored patch in the corner, with what "
        "the network reads under each.",
    )


def shares(
    share: Tensor, classes: Sequence[str], source: int, covers: Sequence[int], target: int
) -> Picture:
    """Share of each class that the trigger moves, sorted into what was planned."""
    with show.style():
        return _shares(share, classes, source, covers, target)


def _shares(
    share: Tensor, classes: Sequence[str], source: int, covers: Sequence[int], target: int
) -> Picture:
    fig, axes = show.canvas(height=3.6)
    ax = axes[0, 0]
    asked = [c for c in range(len(classes)) if c != target]
    groups = {
        "source, poisoned": ([source], TRIGGERED),
        "cover, true label": (list(covers), OTHER),
        "never mentioned": ([c for c in asked if c != source and c not in covers], CLEAN),
    }
    names, colors, place = [], [], 0
    for label, (members, color) in groups.items():
        for c in members:
            ax.barh(place, 100 * float(share[c]), color=color, height=0.7)
            ax.text(100 * float(share[c]) + 1.5, place, f"{share[c]:.0%}", va="center", color=INK)
            names.append(classes[c])
            colors.append(color)
            place += 1
        ax.barh(0, 0, color=color, label=label)
    ax.set_yticks(range(place), names)
    for tick, color in zip(ax.get_yticklabels(), colors, strict=True):
        tick.set(color=color, fontweight="bold")
    ax.invert_yaxis()
    ax.set_xlim(0, 112)
    ax.set_xticks([0, 25, 50, 75, 100])
    ax.set_xlabel("read as the target with the trigger, %")
    ax.legend(loc="lower right", fontsize=10)
    hit = [classes[c] for c in groups["never mentioned"][0] if share[c] > 0.5]
    ax.set_title(f"One class was planned; {', '.join(hit) or 'none'} came along")
    return Picture(
        fig,
        "Bars by class: the share of images with the trigger that are read as the target. The "
        "source class 50 is at one hundred percent, the two cover classes at nothing, and of the "
        "classes that were never mentioned, 80 is at one hundred and the others at nearly none.",
    )
