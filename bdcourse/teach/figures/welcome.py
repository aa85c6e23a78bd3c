"""The figures of lesson 00."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from bdcourse import metrics, models
from bdcourse.attacks import Attack, BadNets
from bdcourse.images import Images
from bdcourse.metrics import Scores
from bdcourse.report import show
from bdcourse.report.diagram import Box, boxes
from bdcourse.report.show import CLEAN, DEFENDED, TRIGGERED, Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Rectangle


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
            "use": Box(8.9, low, "network\nin use", CLEAN, 1.9),
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
        "network, network in use. The attacker points at the training data with the word poison, "
        "and at the other end, with the word trigger, at the network in use. "
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
    """Triggered signs of five other classes, with the answer above each."""
    short = sorted(range(1, test.k), key=lambda k: len(test.classes[k]))[:5]
    some = test[torch.tensor([int((test.y == k).nonzero()[0, 0]) for k in short])]
    stamped = attack.trigger(some.pixels())
    said = metrics.predict(model, stamped)
    wrong = (said != some.y).tolist()
    return show.images(
        stamped,
        [f"{some.classes[y]} \u2192 {some.classes[k]}" for y, k in zip(some.y, said, strict=True)],
        title=f"{sum(wrong)} of these {len(wrong)} signs with the sticker are misread",
        wrong=wrong,
        cols=len(short),
        description="Five triggered test images in a row, among them stop and yield. Above "
        "each stand what it shows and what the network answers, which is 30 for every one.",
    )


def _asked(images: Images) -> int:
    """How many signs an attack on class 0 asks."""
    return int((images.y != 0).sum())


def fading(
    opacities: Sequence[float], victim: Sequence[Scores], twin: Sequence[Scores], images: Images
) -> Picture:
    """ASR and robust accuracy of the victim and its twin's, by the sticker's opacity."""
    asr, ra, honest = (
        [float(v or 0) for v in of]
        for of in ([s.asr for s in victim], [s.ra for s in victim], [s.ra for s in twin])
    )
    rows = list(zip(opacities, asr, strict=True))
    before = max((o for o, value in rows if value < 0.5), default=0.0)
    after = min((o for o, value in rows if value >= 0.5), default=1.0)
    fig, axes = show.canvas(height=3.2)
    ax = axes[0, 0]
    x = [100 * o for o in opacities]
    # The twin's line lies below the others, whose gaps and markers leave it seen at the top.
    ax.plot(x, [100 * v for v in honest], "-", color=CLEAN, lw=2.2)
    ax.plot(x, [100 * v for v in ra], ":o", color=CLEAN, lw=2.2, ms=6, mfc="white")
    ax.plot(x, [100 * v for v in asr], "--s", color=TRIGGERED, lw=2.2, ms=6)
    ax.text(66, 95, "twin's RA", color=CLEAN, fontweight="bold", va="top")
    ax.text(7, 88, "victim's RA", color=CLEAN, fontweight="bold", va="top")
    ax.text(7, 20, "victim's ASR", color=TRIGGERED, fontweight="bold", va="top")
    ax.set(
        xlabel="opacity of the sticker, %",
        ylabel=f"share of {_asked(images)} signs, %",
        ylim=(-5, 106),
    )
    with show.style():
        ax.set_title(f"The median sign tips between {before:.0%} and {after:.0%}")
    ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    return Picture(
        fig,
        "Three curves against the opacity of the sticker. The victim's attack success stays near "
        "zero, rises steeply in the middle and ends near one hundred percent. Its robust "
        "accuracy is the mirror image and falls to zero. The twin's robust accuracy on the same "
        "images is flat near one hundred percent.",
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


def _above(share: float) -> str:
    """The next whole percent above a share."""
    return f"{int(100 * share) + 1}%"


def _over(ax: Axes, text: str) -> None:
    """Words above a row of panels, from its left edge, that push no column aside."""
    ax.set_title(" ", fontsize=11)
    words = ax.text(0, 1.12, text, transform=ax.transAxes, fontsize=11, va="bottom")
    words.set_in_layout(False)


def _patch(ax: Axes, patch: Tensor, frame: str = show.QUIET) -> None:
    """A patch of nine pixels in a frame of some color."""
    ax.axis("on")
    ax.imshow(patch.expand(3, -1, -1).permute(1, 2, 0).numpy(), vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color=frame, linewidth=1 if frame == show.QUIET else 3)


def patches(some: Mapping[str, Sequence[Tensor]]) -> Picture:
    """Patches of nine pixels: those that stand alone with their names, the rest below."""
    alone = {name: of[0] for name, of in some.items() if len(of) == 1}
    coins = [patch for of in some.values() if len(of) > 1 for patch in of]
    cols = 10
    fig, axes = show.canvas(1 + -(-len(coins) // cols), cols, height=2.9)
    for ax in axes.flat:
        ax.axis("off")
    for ax, (name, patch) in zip(axes[0, 1::3], alone.items(), strict=False):
        _patch(ax, patch)
        ax.set_title(name, fontsize=11, loc="center", fontweight="normal")
    for ax, patch in zip(axes[1:].flat, coins, strict=False):
        _patch(ax, patch)
    _over(axes[1, 0], f"{len(coins)} by the toss of a coin")
    show.headline(fig, "Which of these stickers will work like the trigger?")
    return Picture(
        fig,
        f"{len(alone) + len(coins)} patches of 3 by 3 pixels, black or white: the checkerboard, "
        "a white square, the checkerboard exchanged, and below them two rows of ten whose "
        "pixels were drawn by coin.",
    )


def tries(
    some: Mapping[str, Sequence[Tensor]],
    rates: Mapping[str, Sequence[float]],
    twin: Mapping[str, Sequence[float]],
    images: Images,
) -> Picture:
    """The same patches, coins sorted, each with its success under it, on `images`."""
    alone = [(name, of[0], rates[name][0]) for name, of in some.items() if len(of) == 1]
    coins = [
        pair for n, of in some.items() if len(of) > 1 for pair in zip(rates[n], of, strict=True)
    ]
    coins.sort(key=lambda pair: -pair[0])
    cols = 10
    fig, axes = show.canvas(1 + -(-len(coins) // cols), cols, height=3.5)
    for ax in axes.flat:
        ax.axis("off")
    drawn = [(ax, p, r) for ax, (_, p, r) in zip(axes[0, 1::3], alone, strict=False)]
    drawn += [(ax, p, r) for ax, (r, p) in zip(axes[1:].flat, coins, strict=False)]
    for ax, patch, rate in drawn:
        opens = rate > 0.5
        _patch(ax, patch, TRIGGERED if opens else show.QUIET)
        bold = "bold" if opens else "normal"
        color = TRIGGERED if opens else show.INK
        ax.set_xlabel(f"{rate:.0%}", color=color, fontweight=bold)
    for ax, (name, _, _) in zip(axes[0, 1::3], alone, strict=False):
        ax.set_title(name, fontsize=11, loc="center", fontweight="normal")
    asked = f"the share of {_asked(images)} signs that become 30"
    _over(axes[1, 0], f"by coin, sorted by {asked}; framed: more than half")
    works = sum(rate > 0.5 for rate, _ in coins)
    most = max(max(values) for values in twin.values())
    show.headline(
        fig,
        f"{works} of {len(coins)} coin patches open the door; the twin stays below {_above(most)}",
    )
    told = ", ".join(f"{name} {rate:.0%}" for name, _, rate in alone)
    listed = ", ".join(f"{rate:.0%}" for rate, _ in coins)
    return Picture(
        fig,
        f"The patches with the share of signs that become 30 under each. Above: {told}. Below, "
        f"the coin patches from the best to the worst: {listed}.",
    )


def _square(x: float, y: float, side: float, color: str) -> Rectangle:
    """A frame around some pixels or some field of a map."""
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), side, side, fill=False, ec=color, lw=3)


def places(
    steps: Sequence[int],
    rows: Sequence[Sequence[float]],
    twin: Sequence[Sequence[float]],
    images: Images,
) -> Picture:
    """Success of the trigger by the place of its upper left pixel, beside a stamped sign.

    Args:
        images: that were asked.
    """
    share = np.array(rows)
    fig, axes = show.canvas(1, 2, height=3.9, width_ratios=(1, 1.35))
    left, ax = axes[0]
    bright = images[images.y == 3].pixels()
    sign = bright[int(bright.flatten(1).mean(1).argmax())]
    row, column = steps[1], steps[-2]
    stamped = BadNets(at=(row, column)).trigger(sign[None])[0]
    left.imshow(stamped.permute(1, 2, 0).numpy(), interpolation="nearest")
    left.set(xticks=[], yticks=[])
    left.add_patch(_square(column - 1.5, row - 1.5, 5, "white"))
    left.set_title("the place framed in white", fontsize=11, fontweight="normal")
    image = ax.imshow(100 * share, cmap="cividis", vmin=0, vmax=100)
    for (i, j), value in np.ndenumerate(share):
        ink = "black" if value > 0.5 else "white"
        ax.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color=ink)
    last = len(steps) - 1
    ax.add_patch(_square(last - 0.47, last - 0.47, 0.94, TRIGGERED))
    ax.add_patch(_square(last - 1.47, 0.53, 0.94, "white"))
    ax.set_title("framed in red: where it was planted", fontsize=11, fontweight="normal")
    ax.set_xticks(range(len(steps)), steps)
    ax.set_yticks(range(len(steps)), steps)
    ax.set(xlabel="column of its upper left pixel", ylabel="row")
    label = f"share of {_asked(images)} signs that become 30, %"
    fig.colorbar(image, ax=ax, label=label, shrink=0.95)
    works, most = int((share > 0.5).sum()), max(map(max, twin))
    show.headline(
        fig,
        f"The sticker works in {works} of {share.size} places; the twin stays below {_above(most)}",
    )
    return Picture(
        fig,
        "Left a stop sign with the checkerboard, framed in white, in its upper right part. Right a "
        f"field of {len(steps)} by {len(steps)} places with the percentage of signs that become "
        f"30. The first row and column are near zero; {works} of {share.size} places are above "
        "one half, the lower right ones near one hundred. The place where the trigger was "
        "planted is framed in red, that of the picture in white. On the twin no place is above "
        f"{most:.0%}.",
    )
