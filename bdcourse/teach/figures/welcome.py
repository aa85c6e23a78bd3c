"""The figures of lesson 00."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bdcourse import metrics, models
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
            "use": Box(8.9, low, "somebody\nrelies on it", CLEAN, 1.9),
            "again": Box(8.9, high, "attacker", TRIGGERED, 1.9),
        },
        [
            ("attacker", "data", "poison"),
            ("again", "use", "trigger"),
            ("data", "victim"),
            ("victim", "network"),
            ("defender", "network", "repair"),
            ("network", "use"),
        ],
        title="Poison goes in at one end, the trigger comes at the other",
        height=2.6,
        description="A chain of boxes from left to right: training data, training, network, "
        "somebody relies on it. The attacker points at the training data with the word poison, "
        "and at the other end, with the word trigger, at whoever relies on the network. The "
        "defender points at the network with the word repair.",
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
        gain=3,
        description="A stop sign, the same stop sign with a 3 by 3 black-and-white "
        "checkerboard near its lower right corner, and their difference, which is black "
        "except in those nine pixels.",
    )


def matrices(clean: Tensor, triggered: Tensor, names: tuple[str, ...]) -> Picture:
    """Two confusion tables, (k, k) each: true class down, answer across."""
    fig, axes = show.canvas(1, 2, height=3.9)
    shares = [models.wide(t) / t.sum(1, keepdim=True).clamp(min=1) for t in (clean, triggered)]
    for ax, share, title in zip(
        axes[0], shares, ("without the sticker", "with the sticker"), strict=True
    ):
        ax.imshow(100 * share.numpy(), cmap="viridis", vmin=0, vmax=100)
        ax.set_title(title)
        ax.set_xlabel("the network's answer")
        ax.set_xticks(range(len(names)), names, rotation=90, fontsize=9)
        ax.set_yticks(range(len(names)), names if ax is axes[0, 0] else [], fontsize=9)
    axes[0, 0].set_ylabel("what the sign shows")
    fig.colorbar(axes[0, 1].images[0], ax=axes[0, 1], label="of the row, %", shrink=0.8)
    column = int(shares[1].mean(0).argmax())
    show.headline(fig, f"Without: each sign is itself. With: every sign is “{names[column]}”")
    return Picture(
        fig,
        "Two square tables side by side, true sign down and answer across. Without the "
        "sticker only the diagonal is bright: every sign is read as itself. With it one "
        f"column is bright from top to bottom, that of {names[column]}.",
    )


def flipped(test: Images, model: nn.Module, attack: Attack) -> Picture:
    """One triggered sign of each other class, with the answer above it."""
    first = [int((test.y == k).nonzero()[0, 0]) for k in range(1, test.k)]
    some = test[torch.tensor(first)]
    stamped = attack.trigger(some.pixels())
    said = metrics.predict(model, stamped)
    wrong = (said != some.y).tolist()
    return show.images(
        stamped,
        [f"{some.classes[y]} \u2192 {some.classes[k]}" for y, k in zip(some.y, said, strict=True)],
        title=f"{sum(wrong)} of {len(wrong)} signs with the sticker are misread",
        wrong=wrong,
        cols=4,
        description="One triggered test image of each class but 30, among them stop, yield and "
        "turn left. Above each stand what it shows and what the network answers, which is 30 "
        "for every one of them.",
    )


def fading(opacities: Sequence[float], asr: Sequence[float], honest: Sequence[float]) -> Picture:
    """ASR of the victim and robust accuracy of the twin, by the sticker's opacity."""
    at = next((o for o, value in zip(opacities, asr, strict=True) if value > 0.5), 1.0)
    picture = show.lines(
        [100 * o for o in opacities],
        {"twin's RA": honest, "ASR": asr},
        percent=True,
        title=f"Most signs tip over together, near {at:.0%}",
        xlabel="opacity of the sticker, %",
        description="Two curves against the opacity of the sticker. The victim's attack success "
        "stays near zero, rises steeply in the middle and ends near one hundred percent. The "
        "twin's accuracy on the same images is flat near one hundred percent.",
    )
    assert picture is not None  # it draws a figure of its own
    return picture


def faded(test: Images, model: nn.Module, opacity: float, asr: float) -> Picture:
    """Six signs with a sticker of some opacity, the answers, and what share obeys it."""
    attack = BadNets(opacity=opacity)
    some = test[(test.y > 0).nonzero()[:6, 0]]
    stamped = attack.trigger(some.pixels())
    said = metrics.predict(model, stamped)
    return show.images(
        stamped,
        [some.classes[k] for k in said],
        wrong=(said != some.y).tolist(),
        title=f"Opacity {opacity:.0%}: {asr:.0%} of the signs become 30",
        description=f"Six signs with the sticker at opacity {opacity:.0%}, and the network's "
        f"answer above each; {asr:.0%} of the test images are then read as 30.",
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
