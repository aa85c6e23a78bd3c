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


def left(
    found: Mapping[str, Sequence[float]],
    lines: Sequence[str],
    most: float,
    parts: Sequence[int],
) -> Picture:
    """ASR that is left: defenses down, victims across; what is below `most` is framed.

    Args:
        parts: where controls end, and where rivals begin.
    """
    from torch import tensor

    found = dict(sorted(found.items(), key=lambda entry: entry[0].endswith("*")))
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
        parts=parts,
        height=5.8,
        title=f"ASR left, in percent; the best line frames {cured[best]} of {len(strong)}",
        xlabel=f"means over draws; framed: below {100 * most:g}; a star: misses the gate",
        description=f"A field of numbers: {len(lines)} lines of defenses down, {len(found)} "
        f"victims across, each the attack success in percent that is left. White lines part "
        f"controls, methods of the course and rivals. Values below "
        f"{100 * most:g} are framed. The rows of the controls hold almost no frame; {best} has "
        f"{cured[best]} frames among the {len(strong)} victims without a star, and no row is "
        "framed whole.",
    )


def standings(
    result: Mapping[str, Tensor],
    lines: Sequence[str],
    rows: Mapping[str, Sequence[float]],
    against: str,
) -> Picture:
    """A row a defense, the best first: every measured repair a dot, mean and interval.

    Args:
        result: of the reader's contest.
        rows: line -> DER of each repair that was measured.
        against: the line with which `result` compares the others.
    """
    order = result["mean"].argsort(descending=True).tolist()
    leader = order[0]
    marks = {"idle": 0.5, against: float(result["mean"][lines.index(against)])}
    with show.style():
        fig, axes = show.canvas(height=0.9 + 0.27 * len(lines))
        ax = axes[0, 0]
        for y, i in enumerate(order):
            values = [100 * v for v in rows[lines[i]]]
            apart = [y + 0.09 * (k % 5 - 2) for k in range(len(values))]
            ax.plot(values, apart, "|", color=QUIET, ms=6, alpha=0.7)
            share = "–" if lines[i] == against else f"{float(result['above'][i]):.0%}"
            ax.text(1.02, y, share, transform=ax.get_yaxis_transform(), va="center", fontsize=10)
            low, mean, high = (100 * float(result[k][i]) for k in ("low", "mean", "high"))
            color = DEFENDED if i == leader else INK
            ax.plot([low, high], [y, y], color=color, lw=4, alpha=0.45, solid_capstyle="butt")
            ax.plot(mean, y, "o", color=color, ms=7)
        ax.set_yticks(range(len(order)), [lines[i] for i in order])
        ax.invert_yaxis()
        for at in marks.values():
            ax.axvline(100 * at, color="#888888", lw=1, ls="--", zorder=0)
        top = ax.secondary_xaxis("top")
        top.set_xticks([100 * v for v in marks.values()], list(marks))
        top.get_xticklabels()[0].set_ha("right")  # two marks may lie close together
        top.get_xticklabels()[-1].set_ha("left")
        ax.text(1.02, -1, f"above\n{against}", transform=ax.get_yaxis_transform(), fontsize=9)
        ax.set_xlabel("DER, %")
        first = float(result["first"][leader])
        ax.set_title(f"{lines[leader]} leads in {first:.0%} of the resampled tables", pad=22)
        for mark, size, text in (("|", 7, "one repair"), ("o", 7, "mean")):
            ax.plot([], [], mark, color=INK, ms=size, label=text)
        ax.plot([], [], color=INK, lw=4, alpha=0.45, label="90% of tables")
        ax.legend(loc="lower right", frameon=False)
        return Picture(
            fig,
            f"{len(lines)} rows, one a defense, ordered by their mean score. Each row shows all "
            f"measured repairs as strokes, the mean as a dot and an interval as a bar. "
            f"{lines[leader]} is on top; strokes of most rows spread from one half to one. A "
            f"column on the right gives the share of tables in which a row is above {against}.",
        )


def travels(means: Mapping[str, Tensor], lines: Sequence[str], followed: Sequence[str]) -> Picture:
    """The order of one table beside that of another, a thread for each defense.

    Args:
        means: of two tables, by name: the mean DER of each line, shares.
    """
    names, scores = list(means), [dict(zip(lines, m.tolist(), strict=True)) for m in means.values()]
    here, there = (sorted(lines, key=s.__getitem__, reverse=True) for s in scores)
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
                score = f"{100 * scores[x > 0.5][line]:.0f}"
                text = f"{line}  {score}" if x < 0.5 else f"{score}  {line}"
                ax.text(
                    x, y, text, ha=side, va="center", color=color, fontweight=weight, fontsize=10
                )
        ax.set(xlim=(-0.75, 1.75), ylim=(len(here) + 0.7, 0.3))
        ax.set_xticks([0, 1], names)
        ax.xaxis.tick_top()
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
        top, bottom = here[0], there[0]
        ax.set_title(
            f"First on {names[0]}, number {there.index(top) + 1} on {names[1]} (mean DER, %)"
        )
        return Picture(
            fig,
            f"Two columns with the same {len(here)} defenses, ordered by their mean score on "
            f"{names[0]} and on {names[1]}, each joined to itself by a thread. {top} is first on "
            f"the left and number {there.index(top) + 1} on the right; {bottom} is first on the "
            f"right and number {here.index(bottom) + 1} on the left. Many threads cross.",
        )


def allowance(choosers: Mapping[str, Sequence[Sequence[tuple[float, float]]]]) -> Picture:
    """What three choosers of a threshold leave, and what it costs, victim by victim.

    Args:
        choosers: method -> one list a victim of (ASR, accuracy), in the order: blind with
            little allowed, blind with a tenth, by the ASR with a tenth.
    """
    places = ("little", "tenth", "+ look")
    falls = {}
    with show.style():
        fig, axes = show.canvas(1, len(choosers), height=3.6, width=9, sharey=True)
        for ax, (who, victims) in zip(axes[0], choosers.items(), strict=True):
            for picks in victims:
                for k, color, mark in ((1, CLEAN, "s"), (0, TRIGGERED, "o")):
                    values = [100 * p[k] for p in picks]
                    ax.plot(range(len(values)), values, mark + "-", color=color, ms=4, lw=1)
            falls[who] = tables.mean([100 * (p[0][0] - p[1][0]) for p in victims])
            known = len(victims[0])
            ax.set(xlim=(-0.4, known - 0.6), ylim=(-4, 104))
            ax.set_xticks(range(known), places[:known], fontsize=9)
            ax.set_title(who, fontsize=10)
        axes[0, 0].set_ylabel("%")
        ax = axes[0, -1]
        for color, mark, text in ((TRIGGERED, "o", "ASR"), (CLEAN, "s", "ACC")):
            ax.plot([], [], mark + "-", color=color, ms=4, lw=1, label=text)
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        most = max(falls.values())
        show.headline(fig, f"Allowing a tenth takes up to {most:.0f} points off the mean ASR")
        return Picture(
            fig,
            f"{len(choosers)} panels, one a method and a kind of images, with a line of attack "
            "success and one of accuracy for each victim, over three choosers. From the first to "
            "the second the mean attack success falls by "
            + ", ".join(f"{f:.0f} ({who.replace(chr(10), ', ')})" for who, f in falls.items())
            + " points; from the second to the third the lines are nearly level.",
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
