"""The figures of lesson 01b."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bdcourse import models
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
        "weak": Box(8.25, 3.0, "a weaker lesson", QUIET, 3.2, 0.8),
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
        "poison with a weaker lesson, source class and covers with more images and loose ends, "
        "control of the training with being in the room.",
        height=3.6,
    )


def gallery(one: Tensor, stamped: Mapping[str, Tensor]) -> Picture:
    """One sign under each trigger; below each what changed, all at their own gain."""
    change = [(s - one).abs() for s in stamped.values()]
    gains = [float((0.7 / c.max()).clamp(1, 20).round()) for c in change]
    below = [(g * c).clamp(0, 1) for g, c in zip(gains, change, strict=True)]
    names = list(stamped)
    rows, words = [], []
    for k in range(0, len(names), 4):
        part = slice(k, k + 4)
        rows += [*list(stamped.values())[part], *below[part]]
        words += [*names[part], *(f"change x {g:g}" for g in gains[part])]
    return show.images(
        torch.cat(rows),
        words,
        cols=4,
        title="Eight triggers, each of a victim that passes the gate",
        description="One sign under eight triggers, what changed below each: a checkerboard of "
        "nine pixels; colored noise over everything; a disc of noise; fine texture; a smooth "
        "cloud; faint speckles; a colored patch; and a bend, which turns the round sign into a "
        "bulging one.",
    )


def loudness(each: Mapping[str, Tensor]) -> Picture:
    """PSNR of each trigger, with the middle nine tenths of the images."""
    middle = {n: float(v.mean()) for n, v in each.items()}
    order = sorted(each, key=middle.__getitem__)
    ends = torch.tensor([0.05, 0.95])
    named = {}
    for n in order:
        low, high = models.wide(each[n]).quantile(models.wide(ends)).tolist()
        named[n] = (middle[n], low, high)
    apart = middle[order[-1]] - middle[order[0]]
    return show.ranked(
        named,
        title=f"All eight pass the gate, over {apart:.0f} decibels",
        xlabel="PSNR in decibels: to the right, a smaller change",
        description="Eight triggers from the largest change to the smallest, the mean PSNR of "
        "each with the range of most images. TrojanNN's disc is the largest, then LF, WaNet and "
        "TaCT, then Blended, BadNets and SSBA; LIRA's is the smallest. WaNet's range is by far "
        "the widest.",
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
    names, place = [], 0
    for label, (members, color) in groups.items():
        for c in members:
            ax.barh(place, 100 * float(share[c]), color=color, height=0.7)
            ax.text(100 * float(share[c]) + 1.5, place, f"{share[c]:.0%}", va="center", color=INK)
            names.append(classes[c])
            place += 1
        ax.barh(0, 0, color=color, label=label)
    ax.set_yticks(range(place), names)
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
