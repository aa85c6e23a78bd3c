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
            "victim": Box(3.9, low, "victim\ntrains", width=1.9),
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
        description="A chain of boxes from left to right: training data, victim trains, "
        "network, somebody relies on it. The attacker points at the training data with the word "
        "poison, and at the other end, with the word trigger, at whoever relies on the network. "
        "The defender points at the network with the word repair.",
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
    """A sign without and with the trigger, and the corner from nearby."""
    bright = test[test.y == 3].pixels()
    sign = bright[int(bright.flatten(1).mean(1)[:20].argmax())]
    stamped = attack.trigger(sign[None])[0]
    fig, axes = show.canvas(1, 3, height=2.9)
    shown = ((sign, "clean"), (stamped, "with the sticker"), (stamped[:, 22:, 22:], "its corner"))
    for ax, (x, title) in zip(axes[0], shown, strict=True):
        ax.imshow(x.permute(1, 2, 0).numpy(), interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(title)
    changed = int((sign != stamped).any(0).sum())
    show.headline(fig, f"The trigger changes {changed} of {sign[0].numel():,} pixels")
    return Picture(
        fig,
        "A stop sign, the same stop sign with a 3 by 3 black-and-white checkerboard near its "
        "lower right corner, and that corner enlarged: white corners and center, the other four "
        "pixels black.",
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
    axes[0, 1].tick_params(left=False)
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
    rows = list(zip(opacities, asr, strict=True))
    before = max((o for o, value in rows if value < 0.5), default=0.0)
    after = min((o for o, value in rows if value >= 0.5), default=1.0)
    fig, axes = show.canvas(height=3.2)
    ax = axes[0, 0]
    x = [100 * o for o in opacities]
    for values, name, color, dash, y in (
        (honest, "twin's RA", CLEAN, "-o", 93),
        (asr, "victim's ASR", TRIGGERED, "--s", 55),
    ):
        ax.plot(x, [100 * v for v in values], dash, color=color, lw=2.2, ms=6)
        ax.text(72 if y > 60 else 42, y, name, color=color, fontweight="bold", va="top")
    ax.set(xlabel="opacity of the sticker, %", ylabel="share of the signs, %", ylim=(-4, 104))
    with show.style():
        ax.set_title(f"Half of the signs tip between {before:.0%} and {after:.0%}")
    ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    return Picture(
        fig,
        "Two curves against the opacity of the sticker. The victim's attack success stays near "
        "zero, rises steeply in the middle and ends near one hundred percent. The twin's robust "
        "accuracy on the same images is flat near one hundred percent.",
    )


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
        f"answer above each; {asr:.0%} of the other signs are then read as 30.",
    )


def patches(some: Mapping[str, Sequence[Tensor]]) -> Picture:
    """Patches of nine pixels, under their names."""
    flat = [(name if i == 0 else "", p) for name, of in some.items() for i, p in enumerate(of)]
    cols = 12
    fig, axes = show.canvas(-(-len(flat) // cols), cols, height=1.9)
    for ax in axes.flat:
        ax.axis("off")
    for ax, (name, patch) in zip(axes.flat, flat, strict=False):
        ax.imshow(patch.expand(3, -1, -1).permute(1, 2, 0).numpy(), vmin=0, vmax=1, cmap="gray")
        ax.axis("on")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(True)
        ax.set_title(name.replace(" ", "\n"), fontsize=8)
    return Picture(
        fig,
        f"{len(flat)} patches of 3 by 3 pixels, black or white: the checkerboard, a white square, "
        "the checkerboard exchanged, and twenty whose pixels were drawn by coin.",
    )


def tries(rates: Mapping[str, Sequence[float]]) -> Picture:
    """Success of stickers, a dot each, by their kind."""
    fig, axes = show.canvas(height=2.3)
    ax = axes[0, 0]
    for y, values in zip(range(len(rates))[::-1], rates.values(), strict=True):
        lift = 0.12 * np.resize((-1, 0, 1), len(values)) * (len(values) > 1)
        ax.plot(100 * np.array(values), y + lift, "s", color=TRIGGERED, ms=7, alpha=0.65)
    ax.set(xlim=(-3, 103), xlabel="signs that become 30, %", ylim=(-0.6, len(rates) - 0.4))
    ax.set_yticks(range(len(rates))[::-1], list(rates))
    ax.grid(axis="x", color="#e6e6e6", lw=0.8)
    name, coins = max(rates.items(), key=lambda pair: len(pair[1]))
    works = sum(v > 0.5 for v in coins)
    with show.style():
        ax.set_title(f"{works} of {len(coins)} {name} patches open the door")
    said = ", ".join(f"{n} {min(v):.0%} to {max(v):.0%}" for n, v in rates.items())
    return Picture(
        fig, f"A square for each sticker, by the share of signs that become 30, in rows: {said}."
    )


def places(steps: Sequence[int], rows: Sequence[Sequence[float]]) -> Picture:
    """Success of the trigger by the place of its upper left pixel."""
    share = np.array(rows)
    fig, axes = show.canvas(height=3.8)
    ax = axes[0, 0]
    image = ax.imshow(100 * share, cmap="cividis", vmin=0, vmax=100)
    for (i, j), value in np.ndenumerate(share):
        ink = "black" if value > 0.5 else "white"
        ax.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color=ink)
    ax.set_xticks(range(len(steps)), steps)
    ax.set_yticks(range(len(steps)), steps)
    ax.set(xlabel="column of its upper left pixel", ylabel="row")
    fig.colorbar(image, ax=ax, label="signs that become 30, %")
    works = int((share > 0.5).sum())
    with show.style():
        ax.set_title(f"The same sticker works in {works} of {share.size} places")
    return Picture(
        fig,
        f"A field of {len(steps)} by {len(steps)} places with the percentage of signs that become "
        f"30. The first row and column are near zero; {works} of {share.size} places are above "
        "one half, the lower right ones near one hundred.",
    )
