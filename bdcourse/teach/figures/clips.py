"""The figures of lesson 10."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from bdcourse.report import show
from bdcourse.report.show import CLEAN, DEFENDED, INK, OTHER, QUIET, TRIGGERED, Picture
from bdcourse.tasks.video import ClipPatch, Clips

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GAP = 3  # white columns between the frames of a strip
VICTIMS = {
    "static": ("static", "#E69F00", "o"),
    "walking": ("walking", TRIGGERED, "s"),
    "strict": ("strict", OTHER, "D"),
    "benign": ("benign twin", CLEAN, "^"),
}
STORED = {"strict": "lookalikes"}  # as clips.json calls it
MARKS = {"asr": (TRIGGERED, "s"), "acc": (CLEAN, "o"), "ra": (DEFENDED, "^")}
SHOWN = ("at rest", "walking", "backwards", "out of order")


def _strip(
    ax: Axes,
    clip: Tensor,
    name: str,
    answer: str = "",
    color: str = INK,
    patch: Sequence[tuple[int, int] | None] = (),
    size: int = 3,
) -> None:
    """The frames of a clip (c, t, h, w) in a row, a frame around the patch in each."""
    from matplotlib.patches import Rectangle

    frames = clip.permute(1, 2, 3, 0).clamp(0, 1).numpy()
    t, h, w, _ = frames.shape
    wide = np.ones((h, t * (w + GAP) - GAP, 3))
    for f in range(t):
        wide[:, f * (w + GAP) : f * (w + GAP) + w] = frames[f]
    ax.imshow(wide, interpolation="nearest")
    ax.axis("off")
    for f, place in enumerate(patch):
        if place is not None:
            corner = (place[1] + f * (w + GAP) - 2.5, place[0] - 2.5)
            ax.add_patch(
                Rectangle(corner, size + 4, size + 4, fill=False, ec="white", lw=1.3, clip_on=False)
            )
    ax.set_title(name, fontsize=11, fontweight="normal", pad=3, loc="left")
    if answer:
        ax.text(
            1,
            1.06,
            answer,
            transform=ax.transAxes,
            ha="right",
            va="bottom",
            color=color,
            fontsize=11,
            fontweight="bold",
        )


def _one(test: Clips, action: str, nth: int = 0) -> Tensor:
    """A test clip of an action."""
    row = (test.y == test.classes.index(action)).nonzero()[nth, 0]
    return test[row[None]].inputs()[0]


def backwards(test: Clips) -> Picture:
    """Two clips, and the same played backwards."""
    fig, axes = show.canvas(4, 1, height=3.9)
    rows = axes[:, 0]
    for k, (action, other) in enumerate((("right", "left"), ("grow", "shrink"))):
        clip = _one(test, action, 2)
        _strip(rows[2 * k], clip, f"a clip: “{action}”")
        _strip(rows[2 * k + 1], clip.flip(1), f"the same frames backwards: “{other}”")
    show.headline(fig, "No single frame tells one action from its reverse")
    return Picture(
        fig,
        "Four filmstrips of twelve frames each. In the first a thing moves to the right over a "
        "blurred background; in the second the same frames come in reverse order and it moves to "
        "the left. In the third it grows, and in the fourth, the third in reverse, it shrinks.",
    )


def triggers(test: Clips, attacks: Mapping[str, ClipPatch]) -> Picture:
    """One clip without a patch and with each of some."""
    clip = _one(test, "up", 1)
    fig, axes = show.canvas(
        1 + len(attacks), 2, height=0.2 + 0.95 * (1 + len(attacks)), width_ratios=(1, 13)
    )
    _strip(axes[0, 1], clip, "a clip of “up”")
    for ax in axes[:, 0]:
        ax.axis("off")
    patch = next(iter(attacks.values())).patch.permute(1, 2, 0).numpy()
    axes[1, 0].imshow(patch, interpolation="nearest")
    axes[1, 0].set_title("patch", fontsize=11, fontweight="normal", pad=3)
    for ax, (name, attack) in zip(axes[1:, 1], attacks.items(), strict=True):
        places = attack.places(tuple(clip.shape))
        _strip(ax, attack.trigger(clip[None])[0], name, patch=places)
    show.headline(fig, "Nine pixels in each frame, at rest or on a walk")
    return Picture(
        fig,
        "Filmstrips of one clip: without a patch; with a small magenta and green checkerboard that "
        "sits in the lower right corner of every frame; and with the same checkerboard along the "
        "lower edge, two pixels further to the left in each frame. White frames mark the patch; "
        "at the left it is enlarged.",
    )


def order(test: Clips, attack: ClipPatch, seed: int = 0) -> Picture:
    """The same clip with the walk and with its places out of order."""
    clip, g = _one(test, "up", 1), torch.Generator().manual_seed(seed)
    fig, axes = show.canvas(2, 1, height=2.2)
    places = attack.places(tuple(clip.shape))
    _strip(axes[0, 0], attack.trigger(clip[None])[0], "the walk", patch=places)
    mixed = attack.out_of_order(clip[None], g)[0]
    where = []
    for f in range(clip.shape[1]):
        changed = (mixed[:, f] != clip[:, f]).any(0).nonzero()
        where.append((int(changed[:, 0].min()), int(changed[:, 1].min())))
    _strip(axes[1, 0], mixed, "the same twelve places, out of order", patch=where)
    show.headline(fig, "The clip stays, the order of the places changes")
    return Picture(
        fig,
        "Two filmstrips of the same clip. Above, the patch walks to the left along the lower edge. "
        "Below, it is at the same twelve places, one in each frame, but jumps between them at "
        "random. The clip itself is the same in both.",
    )


def obeyed(
    rows: Sequence[Mapping],
    title: str,
    shown: Sequence[str] = SHOWN,
    who: Sequence[str] = ("static", "walking"),
) -> Picture:
    """Who obeys which patch: a dot for every network, joined by a line.

    Args:
        rows: as of `clips.json`, with `victim` and `obey`.
    """
    names = {
        "at rest": "at rest",
        "walking": "walking left",
        "backwards": "walking back, right",
        "out of order": "same places,\nout of order",
        "six at rest": "six at rest, at once",
        "blinks": "blinking in its corner",
    }
    fig, axes = show.canvas(height=1.2 + 0.52 * len(shown))
    ax = axes[0, 0]
    for k, victim in enumerate(who):
        label, color, mark = VICTIMS[victim]
        own = _obey(rows, victim)
        at = [i + 0.24 * (k - (len(who) - 1) / 2) for i in range(len(shown))]
        for j, obey in enumerate(own):
            values = [100 * obey[patch] for patch in shown]
            ax.plot(values, at, "-", color=color, lw=0.8, alpha=0.45)
            ax.plot(
                values,
                at,
                mark,
                color=color,
                ms=8,
                mec="white",
                mew=0.8,
                clip_on=False,
                label=label if j == 0 else None,
            )
    ax.set_yticks(range(len(shown)), [names[s] for s in shown])
    ax.set(xlim=(-2, 102), ylim=(len(shown) - 0.5, -0.5), xlabel="clips that obey (ASR), %")
    ax.grid(axis="x", color="#e6e6e6", lw=0.8)
    ax.axvline(10, color=QUIET, lw=1, ls=":")
    ax.text(11, -0.42, "10%", color=QUIET, fontsize=9, va="center")
    show.headline(fig, title)
    fig.legend(
        *ax.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(who),
        fontsize=10,
        frameon=False,
        handletextpad=0.1,
        columnspacing=1.5,
    )
    told = "; ".join(
        f"{VICTIMS[v][0]}: "
        + ", ".join(
            f"{names[s]} " + " ".join(f"{100 * obey[s]:.0f}" for obey in _obey(rows, v))
            for s in shown
        )
        for v in who
    )
    return Picture(
        fig,
        "Dots, one for each network that was asked: the share of clips that obey a patch, by "
        f"what the patch does. In percent, {told}. A dotted line stands at ten percent.",
    )


def _obey(rows: Sequence[Mapping], victim: str) -> list[Mapping]:
    return [r["obey"] for r in rows if r["victim"] == STORED.get(victim, victim)]


def through_time(layers: Sequence[Tensor]) -> Picture:
    """Which positions of each layer a stamped frame reaches: bool (t,) a layer."""
    names = ("frames", "layer 1", "layer 2, stride 2", "layer 3, stride 2", "layer 4")
    fig, axes = show.canvas(height=3.0)
    ax, last = axes[0, 0], layers[0]
    places: list[np.ndarray] = []
    for k, seen in enumerate(layers):
        stride = round(len(layers[0]) / len(seen))
        at = np.arange(len(seen)) * stride
        step = round(len(last) / len(seen))
        for i in range(len(seen)) if k else ():
            for j in (i * step - 1, i * step, i * step + 1):
                if 0 <= j < len(last):
                    hot = bool(last[j])
                    ax.plot(
                        [places[-1][j], at[i]],
                        [-k + 1, -k],
                        "-",
                        zorder=2 if hot else 1,
                        color=TRIGGERED if hot else "#d5d5d5",
                        lw=1.8 if hot else 0.8,
                    )
        for i, hot in enumerate(seen.tolist()):
            ax.plot(
                at[i],
                -k,
                "s" if k == 0 else "o",
                ms=12,
                zorder=3,
                mec=TRIGGERED if hot else QUIET,
                mfc=TRIGGERED if hot else "white",
            )
        ax.text(-0.9, -k, names[k], ha="right", va="center", fontsize=11)
        places.append(at)
        last = seen
    ax.set(xlim=(-4.6, len(layers[0]) - 0.4), ylim=(-len(layers) + 0.6, 0.4))
    ax.axis("off")
    hit, n = int(last.sum()), len(last)
    one = "One stamped frame reaches" if int(layers[0].sum()) == 1 else "The stamped frames reach"
    show.headline(fig, f"{one} {hit} of {n} outputs")
    return Picture(
        fig,
        f"A diagram of five rows. Above, twelve squares for the frames, below them circles for the "
        "positions in time of four layers: twelve, six, three and three. Lines join each position "
        f"to the three that it sees. The stamped frame and all that it reaches are filled: "
        f"{', '.join(f'{int(s.sum())} of {len(s)}' for s in layers)}.",
    )


def stamped(
    test: Clips, attack: ClipPatch, model: nn.Module, frames: Sequence[int], target: int = 0
) -> Picture:
    """A clip with the patch in some frames, and the network's chances."""
    from dataclasses import replace

    clip = _one(test, "up", 1)
    some = replace(attack, frames=tuple(frames))
    x = some.trigger(clip[None]) if frames else clip[None]
    with torch.no_grad():
        chances = model(x)[0].softmax(0).tolist()
    fig, axes = show.canvas(2, 1, height=3.3, height_ratios=(1, 2.1))
    places = attack.places(tuple(clip.shape))
    said = int(np.argmax(chances))
    obeys = said == target
    _strip(
        axes[0, 0],
        x[0],
        f"a clip of “up”, {len(frames)} frames with the patch",
        f"answer: {test.classes[said]}",
        TRIGGERED if obeys else CLEAN,
        [p if f in frames else None for f, p in enumerate(places)],
    )
    ax = axes[1, 0]
    colors = [TRIGGERED if k == target else CLEAN for k in range(len(chances))]
    bars = ax.bar(range(len(chances)), [100 * c for c in chances], color=colors, width=0.6)
    ax.bar_label(bars, [f"{100 * c:.0f}" for c in chances], fontsize=10)
    names = [c.replace("counter", "counter-\n") for c in test.classes]
    ax.set_xticks(range(len(chances)), names, fontsize=9)
    ax.set(ylim=(0, 115), ylabel="chance, %")
    return Picture(
        fig,
        f"A filmstrip of a clip of up with the patch in {len(frames)} of its twelve frames, and "
        f"bars of the chances of the eight actions: the target, {test.classes[target]}, has "
        f"{chances[target]:.0%}, and up has {chances[test.classes.index('up')]:.0%}.",
    )


def budget(counts: Sequence[int], curves: Mapping[str, Sequence[float]]) -> Picture:
    """ASR by how many frames carry the patch, a line for each victim."""
    fig, axes = show.canvas(height=3.1)
    ax = axes[0, 0]
    for name, values in curves.items():
        label, color, mark = VICTIMS[name]
        line = {"static": "--", "walking": "-", "strict": "-."}[name]
        share = [100 * v for v in values]
        ax.plot(counts, share, line, marker=mark, color=color, ms=6, label=label)
    ax.legend(fontsize=10, loc="upper left", frameon=False)
    ax.set(xlabel="frames that carry the patch, of 12", ylabel="clips that obey, %")
    ax.set(ylim=(-4, 104), xticks=list(counts))
    ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    title = "At rest needs the most frames; no network obeys one"
    ax.set_title(title, fontweight="bold", loc="left")
    told = "; ".join(
        f"{VICTIMS[n][0]} " + ", ".join(f"{100 * v:.0f}" for v in values)
        for n, values in curves.items()
    )
    return Picture(
        fig,
        "Lines of attack success against the number of frames that carry the patch, from "
        f"{counts[0]} to {counts[-1]}. In percent: {told}.",
    )


def kept(shares: Mapping[str, Sequence[float]], limit: float) -> Picture:
    """Which share of the shuffles keeps the answer: a dot for each clip, by group.

    Args:
        shares: name -> a share for each clip; "triggered" in a name gives its color.
        limit: above it a clip is reported.
    """
    fig, axes = show.canvas(height=0.75 + 0.42 * len(shares))
    ax, g = axes[0, 0], np.random.default_rng(0)
    for i, (name, values) in enumerate(shares.items()):
        color = TRIGGERED if "triggered" in name else CLEAN
        found = np.asarray(values)
        jitter = g.uniform(-0.27, 0.27, len(found))
        ax.plot(
            100 * found,
            i + jitter,
            "o",
            color=color,
            ms=4,
            alpha=0.55,
            mec="none",
            clip_on=False,
        )
        ax.text(
            107, i, f"{(found > limit).mean():.0%}", va="center", color=color, fontweight="bold"
        )
    ax.text(107, -0.85, "reported", va="center", fontsize=10, ha="center")
    ax.axvline(100 * limit, color=DEFENDED, lw=1.8, ls="--")
    ax.text(
        100 * limit - 1,
        -0.85,
        "limit from clean clips",
        color=DEFENDED,
        fontsize=10,
        ha="right",
        va="center",
    )
    ax.set_yticks(range(len(shares)), list(shares))
    ax.set(xlim=(-3, 104), ylim=(len(shares) - 0.5, -0.5))
    ax.set_xlabel("shuffles that keep the answer, %")
    rates = ", ".join(f"{n}: {(np.asarray(v) > limit).mean():.0%}" for n, v in shares.items())
    return Picture(
        fig,
        "A dot for each clip: the share of its shuffles that keep the answer. Clean clips lie "
        "mostly below one half; triggered clips of the first two victims lie at one hundred. A "
        f"dashed line is the limit from held-out clips. Reported are, {rates}.",
    )


def ladder(rows: Sequence[Mapping], allowed: float) -> Picture:
    """What fine-tuning and FIP's weights leave: a dot for every draw, hollow if forbidden."""
    arms = list(dict.fromkeys(r["defense"] for r in rows))
    called = {"fine-tuning": "usual rate", "fine-tuning, lr 0.05": "5 x the rate"}
    ticks = [called.get(a, a.replace("fip, eta = ", "FIP ")) for a in arms]
    fig, axes = show.canvas(2, 2, height=4.6, sharex=True, sharey=True)
    shown = (("asr",), ("acc", "ra"))
    for k, victim in enumerate(("static", "walking")):
        for ax, measures in zip(axes[:, k], shown, strict=True):
            for r in (r for r in rows if r["victim"] == victim):
                fine = r["held"] >= r["before"] - allowed - 1e-9
                for j, measure in enumerate(measures):
                    color, mark = MARKS[measure]
                    at = arms.index(r["defense"]) + 0.2 * (r["draw"] - 1) + 0.1 * j
                    face = color if fine else "white"
                    ax.plot(at, 100 * r[measure], mark, color=color, mfc=face, ms=6, clip_on=False)
            ax.set_xlim(-0.5, len(arms) - 0.5)
            ax.axvline(1.5, color=QUIET, lw=0.8)
            ax.grid(axis="y", color="#e6e6e6", lw=0.8)
        axes[0, k].axhline(10, color=QUIET, lw=1, ls=":")
        axes[0, k].text(len(arms) - 0.45, 12, "10%", color=QUIET, fontsize=9, ha="right")
        axes[0, k].set_title(VICTIMS[victim][0], fontsize=11, fontweight="normal")
        axes[1, k].set_xticks(range(len(arms)), ticks, rotation=20, ha="right", fontsize=10)
    axes[0, 0].set(ylim=(-4, 104), ylabel="ASR, %")
    axes[1, 0].set_ylabel("accuracy and RA, %")
    for measure, label in (("asr", "ASR"), ("acc", "accuracy"), ("ra", "RA")):
        color, mark = MARKS[measure]
        axes[0, 0].plot([], [], mark, color=color, label=label)
    hollow = "hollow: more than 3 points lost on held-out clips"
    axes[0, 0].plot([], [], "o", color=INK, mfc="white", label=hollow)
    handles = axes[0, 0].get_legend_handles_labels()
    fig.legend(
        *handles,
        loc="outside lower center",
        ncols=4,
        fontsize=10,
        handletextpad=0.1,
        columnspacing=1.2,
    )
    told = "; ".join(
        f"{v}, {t}: "
        + " ".join(f"{100 * r['asr']:.0f}" for r in rows if (r["victim"], r["defense"]) == (v, a))
        for v in ("static", "walking")
        for a, t in zip(arms, ticks, strict=True)
    )
    return Picture(
        fig,
        "Four panels: above attack success, below accuracy and robust accuracy, at the left of "
        "static, at the right of walking. Dots for three draws after fine-tuning at two rates and "
        "after FIP at some weights; hollow where held-out clips lost more than three points. "
        f"Attack success in percent: {told}.",
    )
