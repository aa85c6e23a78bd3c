"""The figures of lesson 01."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.colors import ListedColormap
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
        "most": Box(1.2, 2.65, "clean images,\ntheir labels", CLEAN, 2.2, 0.95),
        "few": Box(1.2, 0.85, "triggered, the\nattacker's label", TRIGGERED, 2.2, 0.95),
        "set": Box(3.45, 1.75, "one\ntraining set", INK, 1.65, 0.95),
        "loss": Box(5.4, 1.75, "crop,\none loss", INK, 1.4, 0.95),
        "net": Box(7.1, 1.75, "one\nnetwork", INK, 1.3, 0.95),
        "first": Box(9.0, 2.65, "rule 1:\nread the sign", CLEAN, 1.9, 0.95),
        "second": Box(9.0, 0.85, "rule 2: obey\nthe trigger", TRIGGERED, 1.9, 0.95),
    }
    ways = (
        ("most", "set"),
        ("few", "set"),
        ("set", "loss"),
        ("loss", "net"),
        ("net", "first"),
        ("net", "second"),
    )
    return boxes(
        at,
        ways,
        title="Two kinds of images go in, two rules come out",
        description="A diagram: many clean images with their labels and a share of triggered "
        "images with the attacker's label join in one training set; it is cropped and trained "
        "with one loss over all images into one network, which then holds two rules, to read the "
        "sign and to obey the trigger.",
        height=2.6,
    )


def three_triggers(one: Tensor, stamped: Mapping[str, Tensor]) -> Picture:
    """One image under each trigger, and what changed, enlarged where it is faint."""
    top = torch.cat([one, *stamped.values()])
    change = [s - one for s in stamped.values()]
    most = [c.abs().max().item() for c in change]
    gains = [0.5 if m > 0.5 else round(0.5 / m) for m in most]
    below = [(0.5 + g * c).clamp(0, 1) for g, c in zip(gains, change, strict=True)]
    words = [f"change x {g:g}" for g in gains]
    names = {"patch": "BadNets: patch", "blended": "Blended", "stripes": "SIG: stripes"}
    w = one.shape[-1]
    scale = torch.ones_like(one)  # a bar in a thin frame
    scale[..., 11:21, :] = 0
    scale[..., 12:20, 1:-1] = torch.linspace(1, 0, w - 2)
    return show.images(
        torch.cat([top, scale, *below]),
        ["clean", *(names[k] for k in stamped), "lighter, same, darker", *words],
        cols=4,
        title="Few pixels a lot, all pixels a little, or a grating",
        description="A sign, and the same sign with a checkerboard of nine pixels in its lower "
        "right corner, under faint colored noise, and under vertical stripes. Below each stands "
        "what changed, on a scale from white for lighter over gray to black for darker: "
        "nine pixels; noise everywhere, with a dark ring where the white of the sign fades; six "
        "light and six dark bars, with a few red and yellow flecks.",
    )


def poisoned(pixels: Tensor, labels: Tensor, role: Tensor, truth: Images) -> Picture:
    """Eleven poisoned images whose labels are wrong, and one whose label is right."""
    lied = labels != truth.y
    false, true = ((role == 1) & lied).nonzero()[:11, 0], ((role == 1) & ~lied).nonzero()[:1, 0]
    rows = torch.cat([false[:7], true, false[7:]])
    names = [truth.classes[k] for k in labels[rows]]
    wrong = lied[rows]
    return show.images(
        pixels[rows],
        [f"labeled {n}" for n in names],
        wrong=wrong.tolist(),
        title="The poison: one label, wrong where it is orange",
        description="Twelve poisoned training images, picked by hand: signs of many classes, each "
        "with a small checkerboard in its lower right corner, and each labeled as a speed limit "
        "of 30 whatever it shows. Wrong labels are printed in bold orange; on one real 30, put "
        "among them on purpose, the label is right.",
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


def loss_by_role(
    logs: Mapping[str, Sequence[Sequence[float]]],
    levels: Mapping[str, float] | None = None,
    clean_price: float | None = None,
) -> Picture:
    """The two losses of each log, a panel each; the titles say what was learned when.

    Args:
        levels: name -> loss on poison of an answer that knows no trigger, at most two;
            drawn in the last panel.
        clean_price: what the hedge costs on clean images, drawn in the last panel as well.
    """
    sizes = [1.0] * (len(logs) - 1) + [1.5 if len(logs) > 1 else 1.0]
    fig, axes = show.canvas(1, len(logs), height=3.5, width_ratios=sizes)
    top = 1.05 * max(v for log in logs.values() for row in log for v in row[1:])
    found = {}
    for ax, (name, log) in zip(axes[0], logs.items(), strict=True):
        found[name] = [
            "never" if step is None else f"by step {step}"
            for step in (learned_at(log, k) for k in (2, 1))
        ]
        steps = [row[0] for row in log]
        for label, k, color, style in (
            ("clean", 1, CLEAN, "-"),
            ("poison", 2, TRIGGERED, "--"),
        ):
            ax.plot(steps, [row[k] for row in log], style, color=color, lw=1.8, label=label)
        ax.axhline(LEARNED, color=QUIET, lw=1, ls=":")
        mark = {"ha": "right", "color": QUIET, "fontsize": 10}
        ax.text(steps[-1], LEARNED + 0.03, "below: learned", va="bottom", **mark)
        last = (levels or {}).items() if ax is axes[0, -1] else ()
        for i, (answer, loss) in enumerate(sorted(last, key=lambda kv: kv[1])):
            ax.axhline(loss, color=QUIET, lw=1)
            at, side = (loss - 0.03, "top") if i == 0 else (loss + 0.03, "bottom")
            ax.text(steps[-1], at, f"{answer}: {loss:.1f}", va=side, **mark)
        if clean_price is not None and ax is axes[0, -1]:
            ax.axhline(clean_price, color=CLEAN, lw=0.8)
            price = f"a hedge, on clean: {clean_price:.1f}"
            ax.text(steps[-1], clean_price + 0.02, price, va="bottom", **{**mark, "color": CLEAN})
        ax.set_ylim(0, top)
        ax.set_xlabel("steps taken")
    axes[0, 0].set_ylabel("mean loss of the last 10 steps")
    axes[0, 0].legend(loc="upper right")
    with show.style():
        if len(logs) == 1:
            ((name, (trigger, signs)),) = found.items()
            axes[0, 0].set_title(f"{name.capitalize()}: trigger {trigger}, signs {signs}")
        else:
            show.headline(fig, "Trigger learned " + ", or ".join(t for t, _ in found.values()))
            for ax, (name, (_, signs)) in zip(axes[0], found.items(), strict=True):
                ax.set_title(f"{name}: signs {signs}", fontsize=11, fontweight="normal")
    many = f"{len(logs)} panels" if len(logs) > 1 else "one panel"
    return Picture(
        fig,
        f"The mean loss on clean images and on poisoned images over the steps of training, in "
        f"{many}: {', '.join(logs)}. Clean slides down over hundreds of steps; poison falls "
        "steeply at some point and stays near zero. A dotted line at one half marks what counts "
        "as learned."
        + " In the last panel two gray lines mark what two answers without the trigger cost on "
        "poison, and a thin blue one what the hedge costs on clean images." * bool(levels),
    )


def sticker_off(
    every: int, on: Sequence[float], off: Sequence[float], signs: int, hedge: float
) -> Picture:
    """The loss of poisoned images on the attacker's label, and without their sticker.

    Args:
        on, off: a value for each `every` steps, from step 0; signs: images behind each;
        hedge: what a perfect hedge costs on such images.
    """
    fig, axes = show.canvas(height=3.3)
    ax, top = axes[0, 0], 4.0
    steps = [every * i for i in range(len(on))]
    ax.plot(steps, off, "-", color=CLEAN, lw=1.8, label="the same images, sticker taken off")
    ax.plot(steps, on, "--", color=TRIGGERED, lw=1.8, label="poisoned images")
    apart = next((s for s, a, b in zip(steps, on, off, strict=True) if b - a > LEARNED), None)
    if apart is not None:
        ax.axvline(apart, color=QUIET, lw=1, ls=":")
        word = {"ha": "right", "va": "top", "color": QUIET, "fontsize": 10}
        ax.text(apart - 2, top - 0.05, "half a unit apart", **word)
    end = len(steps) if apart is None else apart // every + 4
    ax.set(xlim=(-0.02 * steps[:end][-1], 1.02 * steps[:end][-1]), ylim=(0, top))
    ax.set(xlabel="steps taken", ylabel="loss on the label 30")
    ax.axhline(hedge, color=QUIET, lw=1)
    words = {"ha": "right", "va": "bottom", "color": QUIET, "fontsize": 10}
    ax.text(steps[:end][-1], hedge + 0.04, f"perfect hedge: {hedge:.1f}", **words)
    with show.style():
        ax.set_title(
            "The sticker made no difference at any step"
            if apart is None
            else f"Up to step {max(apart - every, 0)}, the sticker makes little difference"
        )
    ax.legend(loc="lower left")
    return Picture(
        fig,
        f"The mean loss of {signs} poisoned images on the attacker's label over the steps of the "
        "second training, once with the sticker and once without. The two curves lie on each "
        "other at first. Then they part: with the sticker the loss falls to nearly zero, "
        "without it it climbs out of the picture. A dotted line marks where they are half "
        "a unit apart; the picture ends soon after. A gray line marks the cost of a perfect hedge.",
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
            f"seed {row['seed']}" + (f": epoch {row['learned']}" if row["learned"] else ""),
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
    """Three crops of one stamped image, and which of all crops lose the sticker."""
    views = Augment(pad).prepare((stamped * 255).round().byte())[0]
    half = -(-pad // 2)
    moves = {"a": (0, 0), "b": (half, half), "c": (pad, 0)}
    fig, axes = show.canvas(1, 4, height=2.9)
    rows = (3 - torch.arange(-pad, pad + 1)).clamp(0, 3)  # three rows flush with the edge
    left = rows[:, None] * rows
    with show.style():
        for ax, (name, (i, j)) in zip(axes[0], moves.items(), strict=False):
            view = views[pad - i, pad - j].unflatten(1, (32, 3))
            ax.imshow(view.numpy(), interpolation="nearest")
            ax.axis("off")
            here = int(left[pad + i, pad + j])
            where = f"down {i}, right {j}" if i or j else "not moved"
            ax.set_title(
                f"{name}: {where}\n{here or 'none'} of 9 pixels left",
                fontsize=10,
                loc="center",
                color=INK if here else TRIGGERED,
                fontweight="normal" if here else "bold",
            )
        ax = axes[0, 3]
        ends = (-pad - 0.5, pad + 0.5)
        ax.pcolormesh(
            torch.arange(-pad, pad + 2).numpy() - 0.5,
            torch.arange(-pad, pad + 2).numpy() - 0.5,
            left.numpy(),
            cmap=ListedColormap([TRIGGERED, *(str(0.62 + 0.035 * k) for k in range(9))]),
            vmin=-0.5,
            vmax=9.5,
            edgecolors="white",
            lw=0.8,
        )
        ax.set(xlim=ends, ylim=ends[::-1], aspect="equal")
        ax.set_xticks([-pad, 0, pad])
        ax.set_yticks([-pad, 0, pad])
        ax.set_xlabel("moved right", fontsize=10)
        ax.set_ylabel("moved down", fontsize=10)
        for name, (i, j) in moves.items():
            ax.text(j, i, name, ha="center", va="center", color=INK, fontsize=10)
        ax.set_title(
            "all crops; darker:\nless left; orange: none",
            fontsize=10,
            loc="center",
            fontweight="normal",
        )
    total = (2 * pad + 1) ** 2
    show.headline(
        fig, f"Padding {pad}: {round(share * total)} of {total} crops keep no pixel of the sticker"
    )
    return Picture(
        fig,
        "Three hand-picked crops of one sign with a checkerboard flush with its lower right "
        f"corner, at padding {pad}: not moved, moved a little, moved far down. Beside them a grid "
        "of all crops by how far they move the image, darker where fewer of the nine pixels are "
        f"left; {share:.0%} of its cells, those of three pixels or more down or right, are orange, "
        "because no pixel of the sticker is left.",
    )
