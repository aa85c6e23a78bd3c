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
        f"After {called}, {share[0]:.0%} of v points along the eigenvector of -5",
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


def sets(ratios: Mapping[str, Mapping[str, Sequence[float]]]) -> Picture:
    """Victim over twin on each set of images: name -> measure -> one value a set."""
    names = list(ratios)
    measures = list(next(iter(ratios.values())))
    fig, axes = show.canvas(1, len(measures), height=3.7, sharey=True)
    for ax, measure in zip(axes[0], measures, strict=True):
        ax.axvline(1, color=QUIET, lw=1.4)
        for k, name in enumerate(names):
            values = ratios[name][measure]
            side = np.linspace(-0.22, 0.22, len(values))
            ax.plot(values, k + side, "o", color=INK, ms=5, alpha=0.6, mew=0)
        ax.set_xscale("log")
        ax.set_xlim(0.1, 20)
        ax.set_xticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
        ax.minorticks_off()
        ax.set_title(measure, fontsize=11, fontweight="normal", loc="left")
        ax.set_xlabel("victim over twin")
        ax.grid(axis="x", color="#e6e6e6", lw=0.8)
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].invert_yaxis()
    first = measures[0]
    always = sum(min(r[first]) > 1 for r in ratios.values())
    verb = "is" if always == 1 else "are"
    show.headline(
        fig, f"By the {first}, {always} of {len(names)} victims {verb} sharper on every set"
    )
    return Picture(
        fig,
        "Two panels with a row for each victim, two on signs and four on photographs. A dot is "
        "one set of 200 images and shows how many times sharper than its benign twin the victim "
        "is there, on a logarithmic axis. By the top eigenvalue most rows have dots on both sides "
        "of the line at one, and those of the signs spread over more than a factor of ten; by "
        "the trace the dots lie closer together.",
    )


def dark(images: Tensor, labels: Sequence[str]) -> Picture:
    """One image among others of its set."""
    return show.images(
        images,
        labels,
        cols=6,
        title=f"Image {labels[0]}, and five others of the second thirty",
        description="Six road signs on blurred backgrounds. The first, a speed limit of 50, is "
        "very dark, its rim hardly red; the others are well lit.",
    )


def loudest(shares: Mapping[str, Mapping[str, Sequence[float]]]) -> Picture:
    """Share of the top eigenvalue of 200 images: network -> which images -> one a set."""
    fig, axes = show.canvas(1, len(shares), height=3.4, sharey=True)
    everything: dict[str, list[float]] = {}
    for ax, (name, found) in zip(axes[0], shares.items(), strict=True):
        for k, (which, values) in enumerate(found.items()):
            everything.setdefault(which, []).extend(values)
            side = np.linspace(-0.18, 0.18, len(values))
            random = "random" in which
            ax.plot(
                k + side,
                [100 * v for v in values],
                "o",
                color=QUIET if random else OTHER,
                mfc="white" if random else OTHER,
                ms=7,
            )
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
        "Three panels, one a network, with a dot for each set of 200 images: the share of the top "
        "eigenvalue that is left with the loudest image alone, with the ten loudest, and with ten "
        "random ones. The ten loudest make most of it, ten random ones little. One image alone "
        "makes a part in most sets, and nearly all in one set of the twin.",
    )
