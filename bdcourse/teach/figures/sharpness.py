"""The figures of lesson 08b."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from bdcourse.report import diagram, show
from bdcourse.report.diagram import Box
from bdcourse.report.show import INK, OTHER, QUIET, Picture

SPECTRUM = (-5.0, 4.0, 2.0, 1.0, 0.5)


def twice() -> Picture:
    """Two passes backward make a product with the Hessian, as boxes."""
    parts = {
        "w": Box(0.75, 1.8, "weights", INK, 1.3),
        "loss": Box(2.75, 1.8, "mean loss", INK, 1.5),
        "g": Box(5.25, 1.8, "gradient g", INK, 1.6),
        "v": Box(7.2, 0.5, "fixed v", INK, 1.3),
        "slope": Box(7.2, 1.8, "g · v", INK, 1.1),
        "hv": Box(9.35, 1.8, "H v", OTHER, 1.1, filled=True),
    }
    return diagram.boxes(
        parts,
        [
            ("w", "loss"),
            ("loss", "g", "d/dw"),
            ("g", "slope"),
            ("v", "slope"),
            ("slope", "hv", "d/dw"),
        ],
        height=1.85,
        title="Differentiate twice, and no matrix is ever written down",
        description="Boxes in a row, joined by arrows: weights, mean loss, gradient g, the number "
        "g times v, and H v. Two of the arrows say d/dw, differentiate by the weights. A fixed "
        "vector v joins the gradient from below.",
    )


def parts(products: int) -> Picture:
    """What is left of five equal parts of a vector after so many products."""
    fig, axes = show.canvas(height=2.9)
    ax = axes[0, 0]
    share = np.abs(SPECTRUM) ** (2.0 * products)
    share = share / share.sum()
    ax.bar(range(5), 100 * share, color=[OTHER, *[QUIET] * 4], width=0.6)
    ax.set_xticks(range(5), [f"{e:g}" for e in SPECTRUM])
    ax.set_ylim(0, 104)
    ax.set(xlabel="eigenvalue that a part belongs to", ylabel="share of |v|², %")
    called = "1 product" if products == 1 else f"{products} products"
    ax.set_title(
        f"After {called}, {share[0]:.0%} of |v|² lies along the eigenvector of -5",
        fontweight="bold",
        loc="left",
    )
    ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    ax.set_axisbelow(True)
    return Picture(
        fig,
        f"Five bars, one for each eigenvalue of a matrix, after {called} with it: how much of the "
        "squared length of v lies along that eigenvector. With every product the bar of -5, the "
        "largest in size, takes more from the others, from 4 the slowest.",
    )


def _numbered(ax, at: float, values: Sequence[float], color: str, step: float, level: bool):
    """Values as the numbers of their sets: 1, 2, ...; `level` puts them along y."""
    for n, value in enumerate(values):
        side = at + step * (n - (len(values) - 1) / 2)
        x, y = (side, value) if level else (value, side)
        ax.plot(x, y, marker=f"${n + 1}$", color=color, ms=8, mew=0.6, ls="")


def sets(signs: Mapping[str, Mapping], photographs: Mapping[str, Mapping]) -> Picture:
    """Victim over twin on each set of images: name -> measure -> one value a set."""
    measures = list(next(iter(signs.values())))
    fig, axes = show.canvas(2, len(measures), height=4.4, sharey="row")
    edges = ((0.13, 18), (0.75, 1.55))
    ticks = ((0.2, 0.5, 1, 2, 5, 10), (0.8, 1, 1.2, 1.5))
    for row, rows in enumerate((signs, photographs)):
        for ax, measure in zip(axes[row], measures, strict=True):
            ax.axvline(1, color=QUIET, lw=1.4)
            for k, found in enumerate(rows.values()):
                values = found[measure]
                if row:
                    side = np.linspace(-0.25, 0.25, len(values))
                    ax.plot(values, k + side, "o", color=INK, ms=5, alpha=0.6, mew=0)
                else:
                    _numbered(ax, k, values, INK, 0.17, level=False)
            ax.set_xscale("log")
            ax.set_xlim(*edges[row])
            ax.set_xticks(ticks[row], [f"{t:g}" for t in ticks[row]])
            ax.minorticks_off()
            ax.set_yticks(range(len(rows)), list(rows))
            ax.set_ylim(len(rows) - 0.5, -0.5)
            ax.grid(axis="x", color="#e6e6e6", lw=0.8)
            where = ("signs", "photographs")[row]
            ax.set_title(f"{measure}, {where}", fontsize=11, fontweight="normal", loc="left")
            if row:
                ax.set_xlabel("victim over twin")
    first, both = measures[0], [*signs.values(), *photographs.values()]
    always = sum(min(r[first]) > 1 for r in both)
    verb = "is" if always == 1 else "are"
    show.headline(
        fig, f"By the {first}, {always} of {len(both)} victims {verb} sharper on every set"
    )
    return Picture(
        fig,
        "Four panels. Above, two victims on signs, with the numbers 1 to 4 for four sets of 200 "
        "images, on a logarithmic axis: how many times sharper than its benign twin the victim is "
        "there. By the top eigenvalue both victims are flatter than the twin on set 2 and up to "
        "ten times sharper on the others; by the trace of the Fisher matrix the numbers lie "
        "closer together. Below, four victims on photographs with a dot for each of ten sets, on "
        "a much narrower axis: most rows have dots on both sides of the line at one.",
    )


def dark(images: Tensor, labels: Sequence[str]) -> Picture:
    """One image among others of its set; its label says how certain the network is."""
    return show.images(
        images,
        labels,
        cols=6,
        title="How certain the twin is of image 346, and of five others",
        description="Six road signs on blurred backgrounds. The first, a speed limit of 50, is "
        "very dark, its rim hardly red; the others are well lit. Above each stands how certain "
        f"the twin is of it: {', '.join(' '.join(t.split()) for t in labels)}.",
    )


def certain(losses: Sequence[float], tops: Sequence[float], loud: int) -> Picture:
    """Top eigenvalue of each image alone against its loss; one image is marked."""
    fig, axes = show.canvas(height=3.4)
    ax = axes[0, 0]
    rest = [k for k in range(len(tops)) if k != loud]
    ax.plot([losses[k] for k in rest], [tops[k] for k in rest], "o", color=QUIET, ms=6, mfc="white")
    ax.plot(losses[loud], tops[loud], "D", color=OTHER, ms=9)
    ax.annotate(
        "image 346",
        (losses[loud], tops[loud]),
        (-12, 0),
        "data",
        "offset points",
        va="center",
        ha="right",
    )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set(xlabel="loss of the twin on the image", ylabel="top eigenvalue\nof the image alone")
    next_one = max(tops[k] for k in rest)
    ax.set_title(
        f"Alone, image 346 has {tops[loud] / next_one:.0f} times the top eigenvalue of the next",
        fontweight="bold",
        loc="left",
    )
    ax.grid(color="#e6e6e6", lw=0.8)
    return Picture(
        fig,
        "A dot for each of thirty images on two logarithmic axes: the loss of the twin and the "
        "top eigenvalue of the image alone. The dots rise together over several powers of ten, "
        "and image 346 stands apart at the upper right end.",
    )


def loudest(shares: Mapping[str, Mapping[str, Sequence[float]]]) -> Picture:
    """Share of the top eigenvalue of 200 images: network -> which images -> one a set."""
    fig, axes = show.canvas(1, len(shares), height=3.4, sharey=True)
    everything: dict[str, list[float]] = {}
    for ax, (name, found) in zip(axes[0], shares.items(), strict=True):
        for k, (which, values) in enumerate(found.items()):
            everything.setdefault(which, []).extend(values)
            color = QUIET if "random" in which else OTHER
            _numbered(ax, k, [100 * v for v in values], color, 0.2, level=True)
        ax.set_xticks(range(len(found)), [w.replace(" ", "\n") for w in found])
        ax.set_xlim(-0.5, len(found) - 0.5)
        ax.set_ylim(-4, 108)
        ax.set_title(name, fontsize=11, fontweight="normal", loc="left")
        ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes[0, 0].set_ylabel("share of the top\neigenvalue of all 200, %")
    ten, random = (float(np.median(v)) for w, v in everything.items() if "ten" in w)
    show.headline(
        fig, f"Share of the top eigenvalue, median: ten loud {ten:.0%}, ten random {random:.0%}"
    )
    return Picture(
        fig,
        "Three panels, one a network, with the numbers 1 to 4 for four sets of 200 images: the "
        "share of the top eigenvalue that is left with the loudest image alone, with the ten "
        "loudest, and with ten random ones. The ten loudest make most of it, ten random ones "
        "little. One image alone makes a part in most sets, and nearly all in set 2 of the twin.",
    )
