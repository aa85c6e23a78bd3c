"""The figures of lesson 04."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bdcourse.metrics import Scores
from bdcourse.report import diagram, show
from bdcourse.report.diagram import Box
from bdcourse.report.show import CLEAN, INK, OTHER, QUIET, TRIGGERED, Picture

ORANGE = "#E69F00"


def growth(reach: Sequence[float], curves: Mapping[str, Sequence[float]]) -> Picture:
    """How norms grow: reach (shares of the map), norm -> factors."""
    fig, axes = show.canvas(height=3.2)
    ax = axes[0, 0]
    for (name, values), color, dash in zip(
        curves.items(), (QUIET, ORANGE, OTHER), ("-.", "--", "-"), strict=True
    ):
        ax.plot(reach, values, color=color, ls=dash, lw=2.2)
        ax.annotate(
            name,
            (reach[-1], values[-1]),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=color,
            fontweight="bold",
            annotation_clip=False,
        )
    first = {name: values[0] for name, values in curves.items()}
    most = max(first, key=lambda name: first[name])
    ax.set(xlabel="share of the map that the trigger reaches", ylabel="the norm grows by a factor")
    ax.set_title(
        f"Only the {most} does not care how small the spike is", fontweight="bold", loc="left"
    )
    ax.set_ylim(0.8, 1.08 * max(map(max, curves.values())))
    ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    return Picture(
        fig,
        "Three curves: the growth of a map's sum, of its Euclidean norm and of its maximum "
        "against the share of the map that a trigger reaches, from one position to three "
        "quarters. The maximum is flat at five. The sum starts at one and climbs along a "
        "straight line, the Euclidean norm lies between them, and both approach the maximum.",
    )


def loop() -> Picture:
    """The search, as boxes."""
    parts = {
        "clean": Box(3.75, 3.9, "clean images", CLEAN, 2.0),
        "guess": Box(1.1, 2.3, "mask $m$ and\npattern Δ", OTHER, 1.9, 1.1),
        "stamp": Box(3.75, 2.3, "stamp", OTHER, 1.6),
        "net": Box(6.1, 2.3, "network,\nfrozen", INK, 1.7, 1.1),
        "loss": Box(8.7, 2.3, "says label $t$?\nmask small?", INK, 2.3, 1.1),
        "steer": Box(8.7, 0.7, "λ up or down", INK, 2.2),
        "adam": Box(1.1, 0.7, "Adam step", INK, 1.9),
    }
    return diagram.boxes(
        parts,
        [
            ("guess", "stamp"),
            ("clean", "stamp"),
            ("stamp", "net"),
            ("net", "loss"),
            ("loss", "steer"),
            ("steer", "adam", "gradient"),
            ("adam", "guess"),
        ],
        height=3.3,
        title="Only the guess learns",
        description="A loop of boxes. Mask and pattern are stamped on clean images, the frozen "
        "network answers, two questions are asked of the answer: is it label t, and is the mask "
        "small. They set lambda, and a step of Adam goes back to mask and pattern.",
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
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_yticks(rows, [names[i] for i in ranks.tolist()])
    ax.invert_yaxis()
    ax.set_xlabel("sum of the smallest mask that works, pixels")
    low = victim[ranks[0]].item()
    other = victim[ranks[1]].item()
    ax.set_title(
        f"“{names[int(ranks[0])]}” costs {low:.0f} pixels, no other sign under {int(other)}",
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


def confession(name: str, sign: Tensor, mask: Tensor, pattern: Tensor) -> Picture:
    """What the search found for one sign: on an image, and alone."""
    stamped = (1 - mask) * sign + mask * pattern
    return show.images(
        torch.stack([sign, stamped, mask.expand(3, -1, -1), mask * pattern]),
        ["clean", f"read as {name}", "mask", "mask × pattern"],
        cols=4,
        title=f"“{name}” costs {mask.sum():.0f} pixels",
        description=f"A stop sign, the same sign with the smallest stamp that was found for "
        f"the answer {name}, the mask of this stamp, and its pattern under the mask.",
    )


def cuts(
    paths: Mapping[str, tuple[Sequence[int], Sequence[Scores], Sequence[float], int]],
    title: str,
    description: str,
) -> Picture:
    """Scores along the cuts: panel -> (channels off, scores, success of guess, chosen)."""
    fig, axes = show.canvas(len(paths), 1, height=3.2 * len(paths))
    for ax, (name, (off, scores, guess, chosen)) in zip(axes[:, 0], paths.items(), strict=True):
        show.lines(
            off,
            {
                "ACC": [s.acc for s in scores],
                "ASR": [s.asr or 0.0 for s in scores],
                "RA": [s.ra or 0.0 for s in scores],
                "guess": list(guess),
            },
            percent=True,
            marks={chosen: "chosen"},
            title=name,
            xlabel="channels switched off",
            description="",
            ax=ax,
        )
    show.headline(fig, title)
    return Picture(fig, description)


def repair(
    off: Sequence[int], scores: Sequence[Scores], guess: Sequence[float], chosen: int
) -> Picture:
    """The path of the spine victim that is mended."""
    dead = next(n for n, r in zip(off, guess, strict=True) if r < 0.1)
    gone = next((n for n, s in zip(off, scores, strict=True) if (s.asr or 0) < 0.1), None)
    said = "it never does" if gone is None else f"the attacker's at {gone}"
    return cuts(
        {
            f"BadNets: the guess is dead at {dead} of 16 channels, {said}": (
                off,
                scores,
                guess,
                chosen,
            )
        },
        "",
        "Four lines against the number of channels switched off: accuracy, attack success, robust "
        "accuracy, and the success of the guess. Both success rates fall to the floor within the "
        "first few cuts while robust accuracy rises; accuracy stays high at first and sags at "
        "the end. A thin line marks the cut that the held-out images chose.",
    )


def breaks(by_guess: Mapping[str, dict], by_truth: Mapping[str, dict]) -> Picture:
    """Rows: victims; left the cuts by the guess, right those by the real trigger."""
    fig, axes = show.canvas(len(by_guess), 2, height=2.9 * len(by_guess), sharey=True)
    for row, name in zip(axes, by_guess, strict=True):
        for ax, path, how in zip(
            row, (by_guess[name], by_truth[name]), ("guess", "truth"), strict=True
        ):
            series = {
                "ACC": [s.acc for s in path["real"]],
                "ASR": [s.asr for s in path["real"]],
                "RA": [s.ra for s in path["real"]],
            }
            if how == "guess":
                series["guess"] = path["guess"]
            show.lines(
                path["off"],
                series,
                percent=True,
                marks={path["off"][path["chosen"]]: "chosen"},
                title=f"{name}, by the {how}",
                xlabel="channels switched off",
                description="",
                ax=ax,
            )
            ax.set_title(ax.get_title(loc="left"), loc="left", fontsize=11, fontweight="bold")
    ends = [p["wanet"]["real"][p["wanet"]["chosen"]].asr for p in (by_guess, by_truth)]
    show.headline(fig, f"WaNet keeps {ends[0]:.0%} by the guess, {ends[1]:.0%} by the real warp")
    return Picture(
        fig,
        "Four panels of lines against the number of channels switched off: Blended above, WaNet "
        "below, ranked by the guess on the left and by the real trigger on the right. On the left "
        "the success of the guess falls before that of the attacker, which stays high up to the "
        "chosen cut. On the right WaNet's attack falls to the floor, and Blended's stays.",
    )
