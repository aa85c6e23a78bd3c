"""The figures of lesson 09."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from bdcourse.report import diagram, show, tables
from bdcourse.report.diagram import Box
from bdcourse.report.show import CLEAN, DEFENDED, INK, OTHER, QUIET, TRIGGERED, Picture


def choices() -> Picture:
    """Where somebody chose, on the way from networks to a winner."""
    return diagram.boxes(
        {
            "victims": Box(1.0, 1.8, "victims", TRIGGERED, 1.5),
            "images": Box(3.1, 1.8, "clean\nimages", CLEAN, 1.5, 1.0),
            "repair": Box(5.2, 1.8, "repair", DEFENDED, 1.5),
            "score": Box(7.3, 1.8, "score", INK, 1.5),
            "rank": Box(9.2, 1.8, "place", INK, 1.3),
        },
        [("victims", "images"), ("images", "repair"), ("repair", "score"), ("score", "rank")],
        notes=[
            (1.0, 0.6, "which ones\npass the gate?"),
            (3.1, 0.6, "how many,\nwhich draw?"),
            (5.2, 0.6, "what may a\nthreshold cost?"),
            (7.3, 0.6, "what does it\nreward?"),
            (9.2, 0.6, "a mean\nof what?"),
        ],
        height=2.1,
        title="Five people have chosen before anybody wins",
        description="Five boxes in a row: victims, clean images, repair, score, place. Below each "
        "stands the question of who chose: which victims pass the gate, how many images and which "
        "draw, what a threshold may cost, what the score rewards, and over what the mean runs.",
    )


def left(found: Mapping[str, Sequence[float]], lines: Sequence[str], most: float) -> Picture:
    """ASR that is left: defenses down, victims across; what is below `most` is framed."""
    from torch import tensor

    values = tensor(list(found.values())).T
    strong = [j for j, name in enumerate(found) if not name.endswith("*")]
    cured = {line: int((row[strong] < most).sum()) for line, row in zip(lines, values, strict=True)}
    best = max(cured, key=lambda line: cured[line])
    return show.matrix(
        values,
        lines,
        list(found),
        numbers=True,
        mark=most,
        height=5.8,
        title=f"ASR left, in percent; the best line frames {cured[best]} of {len(strong)}",
        xlabel=f"framed: below {100 * most:g}; a star: misses the gate",
        description=f"A field of numbers: {len(lines)} lines of defenses down, {len(found)} "
        f"victims across, each the attack success in percent that is left. Values below "
        f"{100 * most:g} are framed. The rows of the controls hold almost no frame; {best} has "
        f"{cured[best]} frames among the {len(strong)} victims without a star, and no row is "
        "framed whole.",
    )


def standings(
    result: Mapping[str, Tensor],
    lines: Sequence[str],
    rows: Mapping[str, Sequence[float]],
    marks: Mapping[str, float],
) -> Picture:
    """A row a defense, the best first: every measured repair a dot, mean and interval.

    Args:
        result: of the reader's contest.
        rows: line -> DER of each repair that was measured.
        marks: name -> DER that is drawn as a line from top to bottom.
    """
    order = result["mean"].argsort(descending=True).tolist()
    leader = order[0]
    with show.style():
        fig, axes = show.canvas(height=0.9 + 0.27 * len(lines))
        ax = axes[0, 0]
        for y, i in enumerate(order):
            values = [100 * v for v in rows[lines[i]]]
            ax.plot(values, [y] * len(values), "|", color=QUIET, ms=8, alpha=0.7)
            low, mean, high = (100 * float(result[k][i]) for k in ("low", "mean", "high"))
            color = DEFENDED if i == leader else INK
            ax.plot([low, high], [y, y], color=color, lw=4, alpha=0.45, solid_capstyle="butt")
            ax.plot(mean, y, "o", color=color, ms=7)
        ax.set_yticks(range(len(order)), [lines[i] for i in order])
        ax.invert_yaxis()
        for at in marks.values():
            ax.axvline(100 * at, color="#888888", lw=1, ls="--", zorder=0)
        ax.secondary_xaxis("top").set_xticks([100 * v for v in marks.values()], list(marks))
        ax.set_xlabel("DER, %")
        first = float(result["first"][leader])
        ax.set_title(f"{lines[leader]} leads in {first:.0%} of the resampled tables", pad=22)
        for mark, size, text in (("|", 9, "one repair"), ("o", 7, "mean")):
            ax.plot([], [], mark, color=INK, ms=size, label=text)
        ax.plot([], [], color=INK, lw=4, alpha=0.45, label="90% of tables")
        ax.legend(loc="lower right", frameon=False)
        return Picture(
            fig,
            f"{len(lines)} rows, one a defense, ordered by their mean score. Each row shows all "
            f"measured repairs as strokes, the mean as a dot and an interval as a bar. "
            f"{lines[leader]} is on top; strokes of most rows spread from one half to one.",
        )


def travels(
    here: Sequence[str], there: Sequence[str], names: tuple[str, str], followed: Sequence[str]
) -> Picture:
    """The order of one table beside that of another, a thread for each defense."""
    colors = dict(zip(followed, (DEFENDED, OTHER, "#E69F00", INK), strict=False))
    with show.style():
        fig, axes = show.canvas(height=5.2)
        ax = axes[0, 0]
        for place, line in enumerate(here, 1):
            other, on = there.index(line) + 1, line in colors
            color = colors.get(line, QUIET)
            style = {"color": color, "lw": 3 if on else 1.2, "alpha": 1 if on else 0.6}
            ax.plot([0, 1], [place, other], "-", marker="o", ms=5, **style)
            weight = "bold" if on else "normal"
            for x, y, side in ((-0.04, place, "right"), (1.04, other, "left")):
                ax.text(
                    x, y, line, ha=side, va="center", color=color, fontweight=weight, fontsize=10
                )
        ax.set(xlim=(-0.75, 1.75), ylim=(len(here) + 0.7, 0.3))
        ax.set_xticks([0, 1], names)
        ax.xaxis.tick_top()
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
        top, bottom = here[0], there[0]
        ax.set_title(f"First on {names[0]}, number {there.index(top) + 1} on {names[1]}")
        return Picture(
            fig,
            f"Two columns with the same {len(here)} defenses, ordered by their mean score on "
            f"{names[0]} and on {names[1]}, each joined to itself by a thread. {top} is first on "
            f"the left and number {there.index(top) + 1} on the right; {bottom} is first on the "
            f"right and number {here.index(bottom) + 1} on the left. Many threads cross.",
        )


def compared(victim: str, defense: str) -> Picture:
    """No defense, fine-tuning and another on a victim of the zoo, every draw a dot."""
    names = list(dict.fromkeys(("none", "fine-tuning", defense)))
    found = {d: tables.results("signs-defenses").select(victim=victim, defense=d) for d in names}
    if not all(found.values()):
        raise ValueError(f"{defense} against {victim} was not measured.")
    end = {k: [100 * r[k] for r in found[defense]] for k in ("acc", "asr", "ra")}
    with show.style():
        fig, axes = show.canvas(height=2.8)
        ax = axes[0, 0]
        for j, (key, color) in enumerate((("acc", CLEAN), ("asr", TRIGGERED), ("ra", DEFENDED))):
            for i, rows in enumerate(found.values()):
                values, x = [100 * r[key] for r in rows], i + 0.27 * (j - 1)
                mean = tables.mean(values)
                ax.bar(x, mean, width=0.24, color=color, alpha=0.55, label=key.upper() * (i == 0))
                beside = [x + 0.06 * (k - (len(values) - 1) / 2) for k in range(len(values))]
                ax.plot(beside, values, "o", color=color, mec="white", ms=6)
        ax.set_xticks(range(len(names)), names)
        ax.set(ylim=(-4, 106), ylabel="%")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        said = " to ".join(f"{v:.0f}" for v in sorted({min(end["asr"]), max(end["asr"])}))
        ax.set_title(f"{victim}, {defense}: ASR {said}% over {len(end['asr'])} draws")
        return Picture(
            fig,
            f"Bars of accuracy, attack success and robust accuracy of {victim} with "
            f"{', '.join(names)}, every draw of clean images a dot. After {defense} attack success "
            f"is {said} percent.",
        )
