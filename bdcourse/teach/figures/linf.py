"""The figures of lesson 04."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bdcourse.report import diagram, show
from bdcourse.report.diagram import Box
from bdcourse.report.show import CLEAN, DEFENDED, INK, OTHER, QUIET, TRIGGERED, Picture

ORANGE = "#E69F00"


def growth(reach: Sequence[int], positions: int, curves: Mapping[str, Sequence[float]]) -> Picture:
    """How norms grow: reach (positions of the map), norm -> factors."""
    fig, axes = show.canvas(height=3.2)
    ax = axes[0, 0]
    for (name, values), color, dash in zip(
        curves.items(), (QUIET, ORANGE, OTHER), ("-.", "--", "-"), strict=True
    ):
        ax.plot(reach, values, color=color, ls=dash, lw=2.2)
        ax.annotate(
            name,
            (reach[0], values[0]),
            xytext=(-10, {"sum": -5, "Euclidean": 7}.get(name, 0)),
            textcoords="offset points",
            ha="right",
            va="center",
            color=color,
            fontweight="bold",
            annotation_clip=False,
        )
        ax.plot(reach[0], values[0], "o", color=color, ms=7)
    first = {name: values[0] for name, values in curves.items()}
    most = max(first, key=lambda name: first[name])
    ax.set(xlabel="positions that the spike covers", ylabel="the norm grows by a factor")
    ax.set_xscale("log")
    ax.set_xlim(0.25, 1.1 * reach[-1])
    ax.set_xticks([1, 3, 10, 30, 100, positions], ["1", "3", "10", "30", "100", str(positions)])
    ax.minorticks_off()
    show.headline(fig, f"The {most} does not care how few positions the spike covers")
    ax.set_ylim(0.7, 1.08 * max(map(max, curves.values())))
    ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    return Picture(
        fig,
        "Three curves: the growth of a map's sum, of its Euclidean norm and of its maximum "
        "against the number of positions that a spike covers, from one to all of the map. "
        "The maximum is flat at five. The sum and the Euclidean norm start near one, at the "
        "dots of your prediction, and both meet the maximum where the whole map is covered.",
    )


def loop() -> Picture:
    """The search, as boxes."""
    parts = {
        "guess": Box(1.15, 2.85, "mask $m$ and\npattern Δ", OTHER, 1.9, 1.1),
        "clean": Box(3.75, 5.0, "clean images", CLEAN, 2.0),
        "stamp": Box(3.75, 3.6, "stamp", OTHER, 1.5),
        "net": Box(6.05, 3.6, "network,\nfrozen", INK, 1.6, 1.0),
        "size": Box(4.75, 2.1, "size of the mask", OTHER, 2.3),
        "loss": Box(8.45, 2.85, "loss: label $t$?\nplus λ · size", INK, 2.3, 1.2),
        "looks": Box(6.05, 5.0, "every ten steps:\ndid it work?", INK, 2.2, 1.0),
        "price": Box(8.45, 5.0, "price λ\nup or down", INK, 1.9, 1.0),
        "back": Box(8.45, 0.65, "gradient, back through\nthe frozen network", INK, 3.0, 1.0),
        "adam": Box(1.15, 0.65, "Adam step", INK, 1.9),
    }
    return diagram.boxes(
        parts,
        [
            ("guess", "stamp"),
            ("guess", "size"),
            ("clean", "stamp"),
            ("stamp", "net"),
            ("net", "loss"),
            ("size", "loss"),
            ("net", "looks"),
            ("looks", "price"),
            ("price", "loss"),
            ("loss", "back"),
            ("back", "adam"),
            ("adam", "guess"),
        ],
        height=4.15,
        title="Only mask and pattern learn",
        description="A loop of boxes. Mask and pattern are stamped on clean images, and the frozen "
        "network answers. The loss asks for label t and adds lambda times the size of the mask. "
        "Its gradient goes back through the network to a step of Adam on mask and pattern. A "
        "smaller loop above looks every ten steps whether the stamp worked, and moves lambda.",
    )


def costs(names: Sequence[str], victim: Tensor, twin: Tensor) -> Picture:
    """Pixels that each label costs in the victim and in its twin, both (k,)."""
    ranks = victim.argsort()
    fig, axes = show.canvas(height=4.2)
    ax, rows = axes[0, 0], range(len(names))
    ax.hlines(rows, victim[ranks], twin[ranks], color="#d8d8d8", lw=2, zorder=1)
    ax.plot(victim[ranks], rows, "s", color=INK, ms=7, label="victim", ls="")
    ax.plot(twin[ranks], rows, "o", color=QUIET, ms=7, mfc="white", label="benign twin", ls="")
    ax.set_xscale("log")
    ax.set_xticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
    ax.minorticks_off()
    ax.set_yticks(rows, [names[i] for i in ranks.tolist()])
    ax.invert_yaxis()
    ax.set_xlabel("sum of the smallest mask that works, pixels")
    low = victim[ranks[0]].item()
    other = victim[ranks[1]].item()
    ax.set_title(
        f"“{names[int(ranks[0])]}” costs {low:.0f} pixels; "
        f"the next, “{names[int(ranks[1])]}”, {other:.0f}",
        fontweight="bold",
        loc="left",
    )
    ax.legend(loc="lower left", fontsize=11, frameon=False)
    ax.grid(axis="x", color="#e6e6e6", lw=0.8)
    return Picture(
        fig,
        "A row for each of the twelve signs, with the size of its mask on a logarithmic axis: a "
        "square for the victim, a ring for its benign twin. In the victim the attacker's sign "
        "lies far to the left of all others; in the twin no sign stands apart like that.",
    )


def corner(real: Tensor, guess: Tensor, mask: Tensor, side: int = 20) -> Picture:
    """The lower right corner of a sign, enlarged: real and guessed trigger (c, h, w)."""
    fig, axes = show.canvas(1, 3, height=2.9)
    pictures = {
        "the attacker's trigger": real,
        "the network's confession": guess,
        "mask of the guess": mask.expand(3, -1, -1),
    }
    for ax, (name, one) in zip(axes[0], pictures.items(), strict=True):
        ax.imshow(one[:, -side:, -side:].permute(1, 2, 0).numpy(), interpolation="nearest")
        ax.set_xticks([])
        ax.set_yticks([])
        color = TRIGGERED if name.startswith("the att") else OTHER
        ax.set_title(name, fontsize=11, loc="center", color=color)
    show.headline(fig, f"A mask of {mask.sum():.0f} pixels, where the attacker used nine")
    return Picture(
        fig,
        "The lower right corner of a stop sign, enlarged three times: with the attacker's "
        "checkerboard of three by three pixels, with the guess, a few alternating black and white "
        "pixels a little apart from it, and the mask of the guess, white there, black elsewhere.",
    )


def confession(sign: Tensor, rows: Mapping[str, tuple[str, Tensor, Tensor]]) -> Picture:
    """What the search found for some signs, and what the network says of it.

    Args:
        sign: an image (c, h, w).
        rows: name of a sign -> what the network reads, the mask and the pattern.
    """
    images, names = [], []
    for said, mask, pattern in rows.values():
        stamped, gray = ((1 - mask) * under + mask * pattern for under in (sign, 0.5))
        images.append(torch.stack([sign, stamped, mask.expand(3, -1, -1), gray]))
        names += ["clean", f"read as {said}", "mask", "stamp on gray"]
    sizes = {name: f"{float(mask.sum()):.0f}" for name, (_, mask, _) in rows.items()}
    said = "; ".join(f"“{name}” costs {size} pixels" for name, size in sizes.items())
    return show.images(
        torch.cat(images),
        names,
        cols=4,
        title=said,
        description="Rows of four images, one for each of these answers: "
        f"{', '.join(f'{name}, which the network reads as {r[0]}' for name, r in rows.items())}. "
        "A stop sign, the same sign with the smallest stamp that was found, the mask of this "
        "stamp, and the stamp on a gray ground, where black and white pixels show.",
    )


def guesses(clean: Tensor, views: Mapping[str, tuple[Tensor, Tensor, Tensor]]) -> Picture:
    """Real and guessed triggers side by side, a row for each victim.

    Args:
        clean: an image (c, h, w).
        views: victim -> the image with the real trigger and with the guess, and the mask.
    """
    rows = [
        torch.stack([clean, real, guess, mask.expand(3, -1, -1)])
        for real, guess, mask in views.values()
    ]
    names = [w for name in views for w in ("clean", f"{name}, real", f"{name}, guess", "mask")]
    sizes = " and ".join(f"{float(mask.sum()):.0f}" for *_, mask in views.values())
    return show.images(
        torch.cat(rows),
        names,
        cols=4,
        title=f"Guesses of {sizes} pixels, for triggers that touch every pixel",
        description="Two rows of four images, for Blended and WaNet: a clean stop sign, the sign "
        "with the attacker's trigger, the sign with the stamp that the search found, and its mask. "
        "The real triggers are a faint picture over everything and a bend of the whole sign; the "
        "guesses are faint dots strewn over the sign, and a few groups of black and white pixels.",
    )


def _dear(ax, off: Sequence[int], chosen: int) -> None:
    """Shade the cuts behind the last that held-out images allow."""
    ax.axvline(chosen, color=INK, lw=1)
    ax.axvspan(chosen, off[-1] * 1.03, color=QUIET, alpha=0.13, lw=0)
    ax.set_xlim(-0.03 * off[-1], off[-1] * 1.03)
    ax.set_xticks(off[::2])


def _of(path: Mapping[str, Any]) -> str:
    return f"channels switched off, of {len(path['rises'])}"


def repair(path: Mapping[str, Any]) -> Picture:
    """The path of the spine victim that is mended."""
    off, scores, guess = path["off"], path["real"], path["guess"]
    dead = next(n for n, r in zip(off, guess, strict=True) if r < 0.1)
    obeyed = scores[off.index(dead)].asr
    gone = next((n for n, s in zip(off, scores, strict=True) if s.asr < 0.1), None)
    fig, axes = show.canvas(height=3.4)
    ax = axes[0, 0]
    _dear(ax, off, off[path["chosen"]])
    show.lines(
        off,
        {
            "ACC": [s.acc for s in scores],
            "ASR": [s.asr for s in scores],
            "RA": [s.ra for s in scores],
            "guess": list(guess),
        },
        percent=True,
        title="",
        xlabel=f"{_of(path)}; gray: more than clean images allow; dots: 10%",
        description="",
        ax=ax,
    )
    ax.axhline(10, color=QUIET, lw=1, ls=":", zorder=1)
    end = "and never dies" if gone is None else f"and dies at {gone}"
    show.headline(
        fig, f"At {dead} channels the guess is dead; the attack has {obeyed:.0%} there, {end}"
    )
    return Picture(
        fig,
        "Four lines against the number of channels switched off: accuracy, attack success, robust "
        "accuracy, and the success of the guess. The guess falls to the floor first, the attack a "
        "few cuts later, and robust accuracy rises as it falls; accuracy stays at the top and sags "
        "at the end. A dotted line marks ten percent. Gray begins behind the cut that the "
        "held-out images chose.",
    )


def norms(paths: Mapping[str, Mapping[str, Any]]) -> Picture:
    """The same cut, ranked by two norms: name -> path."""
    one, two = paths.values()
    fig, axes = show.canvas(1, 2, height=3.1, sharey=True)
    looks: tuple[dict[str, Any], ...] = (
        {"color": QUIET, "lw": 7, "alpha": 0.4},
        {"color": OTHER, "marker": "D", "ms": 6},
    )
    for ax, (word, score) in zip(
        axes[0], (("attack success, %", "asr"), ("accuracy, %", "acc")), strict=True
    ):
        for (name, path), look in zip(paths.items(), looks, strict=True):
            rates = [100 * getattr(s, score) for s in path["real"]]
            ax.plot(path["off"], rates, label=f"ranked by the {name}", **look)
        ax.set(ylim=(-4, 104), xlabel=_of(two), xticks=two["off"][::2])
        ax.set_title(word, loc="left", fontsize=11)
        ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes[0, 1].legend(loc="lower left", fontsize=11, frameon=False)
    ends = [
        next(n for n, s in zip(p["off"], p["real"], strict=True) if s.asr < 0.1) for p in (one, two)
    ]
    said = f"at {ends[0]} channels" + f" and {ends[1]}" * (ends[0] != ends[1])
    cuts = [set(next(iter(p["sets"][two["chosen"]].values())).tolist()) for p in (one, two)]
    show.headline(
        fig,
        f"The attack dies {said}, whichever norm ranks;\n"
        f"of the first {len(cuts[0])} channels, {len(cuts[0] & cuts[1])} are the same",
    )
    return Picture(
        fig,
        "Two panels against the number of channels switched off, a wide line ranked by the sum and "
        "a thin one by the maximum. On the left both lines of the attack success fall to the floor "
        "together. On the right both lines of accuracy stay at the top and sag near the end.",
    )


def breaks(
    by_guess: Mapping[str, Mapping[str, Any]],
    by_truth: Mapping[str, Mapping[str, Any]],
    verdict: Callable[[float, float, float, float], str],
) -> Picture:
    """Rows: victims; left the cuts by the guess, right those by the real trigger."""
    fig, axes = show.canvas(2, 2, height=6.0, sharey=True)
    for row, name in zip(axes, by_guess, strict=True):
        for ax, path, how in zip(
            row, (by_guess[name], by_truth[name]), ("guess", "truth"), strict=True
        ):
            off, scores, at = path["off"], path["real"], path["chosen"]
            _dear(ax, off, off[at])
            series: dict[str, tuple[Sequence[float], dict[str, Any]]] = {
                "ACC": ([s.acc for s in scores], {"color": CLEAN, "lw": 5, "alpha": 0.4}),
                "RA": ([s.ra for s in scores], {"color": DEFENDED, "ls": "-.", "marker": "^"}),
                "ASR": ([s.asr for s in scores], {"color": TRIGGERED, "ls": "--", "marker": "s"}),
            }
            if how == "guess":
                look = {"color": OTHER, "ls": ":", "marker": "D"}
                series["guess"] = (path["guess"], look)
            for word, (rates, look) in series.items():
                ax.plot(off, [100 * r for r in rates], label=word, ms=5, **look)
            s = scores[at]
            said = verdict(path["guess"][at], s.asr, s.ra, s.acc)
            ax.set(ylim=(-4, 104), xlabel=_of(path))
            ax.set_title(f"{name}, by the {how}: {said}", loc="left", fontsize=11)
            ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    for ax in axes[:, 0]:
        ax.set_ylabel("%")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, ncols=4, loc="outside lower center", fontsize=11, frameon=False)
    kept = {
        (name, i): p[name]["real"][p[name]["chosen"]].asr
        for name in by_guess
        for i, p in enumerate((by_guess, by_truth))
    }
    show.headline(
        fig,
        f"Blended keeps {kept['blended', 0]:.0%} by the guess and {kept['blended', 1]:.0%} by its "
        f"own picture,\nWaNet {kept['wanet', 0]:.0%} by the guess and {kept['wanet', 1]:.0%} by "
        "its own warp",
    )
    return Picture(
        fig,
        "Four panels of lines against the number of channels switched off: Blended above, WaNet "
        "below, ranked by the guess on the left and by the real trigger on the right. Gray begins "
        "behind the cut that clean images chose. Blended's attack stays at the top in both of its "
        "panels. WaNet's stays high by the guess, though the guess itself falls, and by the real "
        "warp it falls to the floor.",
    )
