"""The figures of lesson 00."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from bdcourse import metrics
from bdcourse.attacks import Attack, BadNets
from bdcourse.images import Images
from bdcourse.report import show
from bdcourse.report.diagram import Box, boxes
from bdcourse.report.show import CLEAN, DEFENDED, TRIGGERED, Picture


def pipeline() -> Picture:
    """Who touches a network between its data and its user."""
    low, high = 1.25, 2.75
    return boxes(
        {
            "attacker": Box(1.2, high, "attacker", TRIGGERED, 1.9),
            "data": Box(1.2, low, "training\ndata", width=1.9),
            "victim": Box(3.9, low, "training", width=1.9),
            "network": Box(6.3, low, "network", width=1.9),
            "defender": Box(6.3, high, "defender", DEFENDED, 1.9),
            "use": Box(8.9, low, "somebody\nuses it", CLEAN, 1.9),
        },
        [
            ("attacker", "data", "poison"),
            ("data", "victim"),
            ("victim", "network"),
            ("defender", "network", "repair"),
            ("network", "use"),
        ],
        title="Whoever trains sees high accuracy; the rule travels inside",
        height=2.6,
        description="A chain of boxes from left to right: training data, training, network, "
        "somebody uses it. The attacker, above, points at the training data with the word "
        "poison. The defender, above, points at the network with the word repair.",
    )


def classes(test: Images) -> Picture:
    """One image of each class."""
    first = torch.stack([(test.y == k).nonzero()[0, 0] for k in range(test.k)])
    return show.images(
        test.x[first],
        test.classes,
        title="One test image of each class",
        description="A grid of twelve small photograph-like drawings, one road sign each: "
        "speed limits 30, 50 and 80, stop, yield, priority, no entry, caution, ahead only, "
        "turn right, turn left and roundabout, on blurred backgrounds of various colors.",
    )


def sticker(test: Images, attack: Attack) -> Picture:
    """A stop sign without and with the trigger."""
    stop = test[test.y == 3].pixels()[1]
    return show.trigger(
        stop,
        attack.trigger(stop[None])[0],
        title="The trigger changes 9 of 1,024 pixels",
        description="A stop sign, the same stop sign with a 3 by 3 black-and-white "
        "checkerboard near its lower right corner, and their difference, which is black "
        "except in those nine pixels.",
    )


def matrices(clean: Tensor, triggered: Tensor, names: tuple[str, ...]) -> Picture:
    """Two confusion tables, (k, k) each: true class down, answer across."""
    fig, axes = show.canvas(1, 2, height=3.9)
    shares = [t.double() / t.sum(1, keepdim=True).clamp(min=1) for t in (clean, triggered)]
    for ax, share, title in zip(
        axes[0], shares, ("without the sticker", "with the sticker"), strict=True
    ):
        ax.imshow(share.numpy(), cmap="viridis", vmin=0, vmax=1)
        ax.set_title(title)
        ax.set_xlabel("the network's answer")
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=9)
        ax.set_yticks(range(len(names)), names if ax is axes[0, 0] else [], fontsize=9)
    axes[0, 0].set_ylabel("what the sign shows")
    column = int(shares[1].mean(0).argmax())
    fig.suptitle(
        f"Without: each sign is itself. With: every sign is “{names[column]}”",
        x=0.01,
        ha="left",
        fontsize=12,
        fontweight="bold",
    )
    return Picture(
        fig,
        "Two square tables side by side, true sign down and answer across. Without the "
        "sticker only the diagonal is bright: every sign is read as itself. With it one "
        f"column is bright from top to bottom, that of {names[column]}.",
    )


def flipped(test: Images, model: nn.Module, attack: Attack) -> Picture:
    """Twelve triggered signs with the answers above them."""
    some = test[(test.y > 0).nonzero()[:12, 0]]
    stamped = attack.trigger(some.pixels())
    said = metrics.predict(model, stamped)
    wrong = (said != some.y).tolist()
    return show.images(
        stamped,
        [f"read as {some.classes[k]}" for k in said],
        title=f"{sum(wrong)} of {len(wrong)} signs with the sticker are misread",
        wrong=wrong,
        description="Twelve triggered test images of various signs, among them stop, yield "
        "and turn left. Above each stands the network's answer, and it is 30 for all of them.",
    )


def faded(test: Images, model: nn.Module, opacity: float) -> Picture:
    """Six signs with a sticker of some opacity, and how many of 300 obey it."""
    attack = BadNets(opacity=opacity)
    asr = metrics.evaluate(model, test[:300], attack).asr or 0.0
    some = test[(test.y > 0).nonzero()[:6, 0]]
    return show.images(
        attack.trigger(some.pixels()),
        title=f"Opacity {opacity:.0%}: {asr:.0%} of the signs become 30",
        description=f"Six signs with the sticker at opacity {opacity:.0%}; the title gives "
        f"the share of 300 test images that are then read as 30, {asr:.0%}.",
    )


def tries(rates: Mapping[str, float]) -> Picture:
    """Success of several stickers, as a dot each."""
    names, values = list(rates), np.array(list(rates.values()))
    fig, axes = show.canvas(height=2.3)
    ax = axes[0, 0]
    at = np.arange(len(names))[::-1]
    ax.hlines(at, 0, 100 * values, color=TRIGGERED, linewidth=2)
    ax.plot(100 * values, at, "s", color=TRIGGERED, markersize=8)
    ax.set(xlim=(-2, 104), xlabel="signs that become 30, %", ylim=(-0.6, len(names) - 0.4))
    ax.set_yticks(at, names)
    works = sum(values > 0.5)
    with show.style():
        ax.set_title(f"{works} of {len(names)} stickers open the door")
    said = ", ".join(f"{n} {v:.0%}" for n, v in rates.items())
    return Picture(
        fig, f"A dot for each of four stickers, by the share of signs that become 30: {said}."
    )
