"""The figures of lesson 09."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from bdcourse.report import diagram, show, tables
from bdcourse.report.diagram import Box
from bdcourse.report.show import CLEAN, DEFENDED, INK, OTHER, QUIET, TRIGGERED, Picture


def choices(
    place: int, draws: Sequence[float], falls: Sequence[float], beaten: int, lead: float
) -> Picture:
    """The choices that a winner depends on, and what each was seen to move.

    Args:
        place: of the signs' winner on photographs.
        draws: ASR after one method on one victim, by draw of clean images.
        falls: of the mean ASR by an allowance, in points.
        beaten: number of entries that score less than a constant answer.
        lead: of the author over the defender, in points.
    """
    moved = {
        "which\nvictims?": f"I-BAU: no. 1,\nbut no. {place} on\nphotographs",
        "which\ndraw?": f"FIP, badnets:\nASR {100 * min(draws):.0f}% or\n{100 * max(draws):.0f}%",
        "what\nallowance?": f"ASR falls by\n{min(falls):.0f} to {max(falls):.0f}\npoints",
        "which\nscore?": f"by DER a frog\nbeats {beaten} of the\nentries",
        "picked\nby whom?": f"author leads\ndefender by\n{lead:.0f} points",
    }
    boxes, arrows = {}, []
    for k, (what, seen) in enumerate(moved.items()):
        x = 1 + 2 * k
        boxes[what] = Box(x, 3.0, what, INK, 1.9, 0.9, filled=True)
        boxes[seen] = Box(x, 1.2, seen, INK, 1.9, 1.5)
        arrows.append((what, seen))
    return diagram.boxes(
        boxes,
        arrows,
        height=2.7,
        title=f"{len(moved)} choices, and what each of them moved",
        description="A row of dark boxes, one a choice, each with an arrow to a box below that "
        "says what it was seen to move. "
        + "; ".join(f"{what}: {seen}" for what, seen in moved.items()).replace("\n", " ")
        + ".",
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
    framed = int((values[: parts[0]] < most).sum())
    whole = "no entry cures" if max(cured.values()) < len(strong) else "some entry cures"
    return show.matrix(
        values,
        lines,
        list(found),
        numbers=True,
        mark=most,
        parts=parts,
        height=5.8,
        title=f"ASR left, %: {whole} all {len(strong)} victims; {best} cures {cured[best]}",
        xlabel=f"means over draws; framed: below {100 * most:g}; a star: misses the gate",
        description=f"A field of numbers: {len(lines)} entries down, {len(found)} "
        f"victims across, each the attack success in percent that is left. White lines part "
        f"controls, methods of the course and rivals. Values below "
        f"{100 * most:g} are framed: {framed} in the rows of controls; {best} has "
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


def drawn(scores: Mapping[str, float], entry: str, draws: Sequence[Sequence[int]]) -> Picture:
    """A table and some that were drawn from it: how often each holds a victim, and its mean.

    Args:
        scores: victim -> DER of `entry`.
        draws: one list a table, of positions in `scores`.
    """
    names, values = list(scores), [100 * v for v in scores.values()]
    rows = {"the table": list(range(len(names)))}
    rows |= {f"drawn, {k}": list(at) for k, at in enumerate(draws, 1)}
    means = [tables.mean([values[i] for i in at]) for at in rows.values()]
    with show.style():
        fig, axes = show.canvas(
            1, 2, height=2.9, width=8.6, sharey=True, gridspec_kw={"width_ratios": (3, 1.2)}
        )
        ax, right = axes[0]
        for y, at in enumerate(rows.values()):
            for j in range(len(names)):
                times, color = at.count(j), INK if y == 0 else DEFENDED
                xs = [j + 0.2 * (k - (times - 1) / 2) for k in range(times)]
                ax.plot(xs, [y] * times, "o", color=color, ms=8)
                if not times:
                    ax.text(j, y, "never", color="#666666", ha="center", va="center", fontsize=9)
        ticks = [f"{name}\n{value:.0f}%" for name, value in zip(names, values, strict=True)]
        ax.set_xticks(range(len(names)), ticks, fontsize=9)
        ax.xaxis.tick_top()
        ax.set_yticks(range(len(rows)), list(rows))
        ax.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(rows) - 0.5, -0.5))
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        for y, mean in enumerate(means):
            right.plot(mean, y, "o", color=INK if y == 0 else DEFENDED, ms=8)
            right.annotate(
                f"{mean:.0f}", (mean, y), (7, 0), textcoords="offset points", va="center"
            )
        right.axvline(means[0], color="#888888", lw=1, ls="--", zorder=0)
        right.margins(x=0.2)
        right.tick_params(left=False)
        right.spines["left"].set_visible(False)
        right.xaxis.get_major_locator().set_params(integer=True, nbins=4)
        right.set_xlabel("mean DER, %")
        low, high = min(means[1:]), max(means[1:])
        show.headline(
            fig, f"{entry}: {len(draws)} drawn tables have means from {low:.0f} to {high:.0f}%"
        )
        missing = "; ".join(
            f"{row} lacks " + (", ".join(n for j, n in enumerate(names) if j not in at) or "none")
            for row, at in list(rows.items())[1:]
        )
        return Picture(
            fig,
            f"Rows are tables, columns {len(names)} victims with the score of {entry} on each. As "
            f"many dots stand in a field as the table holds the victim: one each in the table "
            f"itself; {missing}. On the right the mean of each table: "
            + ", ".join(f"{mean:.0f}" for mean in means)
            + " percent.",
        )


def pairs(
    x: Sequence[float],
    y: Sequence[float],
    names: tuple[str, str],
    bars: Sequence[tuple[float, float]],
) -> Picture:
    """The means of two entries in the same tables, a point a table.

    Args:
        x, y: their means, table by table, shares.
        names: of x and y.
        bars: low and high of x and of y.
    """
    xs, ys = [100 * float(v) for v in x], [100 * float(v) for v in y]
    ends = [[100 * v for v in bar] for bar in bars]
    above = sum(b > a for a, b in zip(xs, ys, strict=True)) / len(xs)
    low, high = min(*xs, *ys) - 2.5, max(*xs, *ys) + 2
    with show.style():
        fig, axes = show.canvas(height=4.3, width=5.4)
        ax = axes[0, 0]
        ax.plot([low, high], [low, high], "--", color="#888888", lw=1)
        ax.plot(xs, ys, "o", color=INK, ms=3.5, alpha=0.35, mec="none")
        edge = low + 0.8
        ax.plot(ends[0], [edge, edge], color=OTHER, lw=6, solid_capstyle="butt")
        ax.plot([edge, edge], ends[1], color=DEFENDED, lw=6, solid_capstyle="butt")
        ax.text(ends[0][1] + 0.5, edge, f"90% of {names[0]}", va="center", color=OTHER, fontsize=10)
        ax.text(
            edge, ends[1][1] + 0.5, f"90% of {names[1]}", va="bottom", color=DEFENDED, fontsize=10
        )
        ax.text(high - 4, high - 6, "equal", ha="left", va="center", color="#666666", fontsize=10)
        ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        ax.set_xlabel(f"mean DER of {names[0]}, %")
        ax.set_ylabel(f"mean DER of {names[1]}, %")
        but = "Their bars overlap, yet " if ends[0][1] > ends[1][0] else ""
        ax.set_title(f"{but}{names[1]} is above\n{names[0]} in {above:.0%} of {len(xs)} tables")
        return Picture(
            fig,
            f"A cloud of {len(xs)} points, one a resampled table: the mean of {names[0]} across, "
            f"that of {names[1]} up. {above:.0%} of the points lie above the dashed diagonal, most "
            "of them close to it and along it. Two bars at the axes show the middle 90% of either; "
            f"they run from {ends[0][0]:.0f} to {ends[0][1]:.0f} and from {ends[1][0]:.0f} to "
            f"{ends[1][1]:.0f} percent and overlap.",
        )


def _apart(values: Sequence[float], least: float) -> list[float]:
    """Falling values, moved as little as keeps them `least` apart, for labels."""
    blocks: list[list[float]] = []  # of wanted tops: members of a block stand `least` apart
    for value in values:
        blocks.append([value])
        while len(blocks) > 1:
            upper, lower = (
                sum(v + k * least for k, v in enumerate(b)) / len(b) for b in blocks[-2:]
            )
            if upper - lower >= len(blocks[-2]) * least:
                break
            last = blocks.pop()
            blocks[-1] += last
    tops = [sum(v + k * least for k, v in enumerate(b)) / len(b) for b in blocks]
    return [top - k * least for top, b in zip(tops, blocks, strict=True) for k in range(len(b))]


def travels(means: Mapping[str, Tensor], lines: Sequence[str], followed: Sequence[str]) -> Picture:
    """The scores of one table beside those of another, a thread for each defense.

    Args:
        means: of two tables, by name: the mean DER of each line, shares.
    """
    names, scores = list(means), [dict(zip(lines, m.tolist(), strict=True)) for m in means.values()]
    here, there = (sorted(lines, key=s.__getitem__, reverse=True) for s in scores)
    colors = dict(zip(followed, (DEFENDED, OTHER, "#B37400", INK), strict=False))
    with show.style():
        fig, axes = show.canvas(height=5.6)
        ax = axes[0, 0]
        for line in lines:
            on, ends = line in colors, [100 * s[line] for s in scores]
            style = {"lw": 3 if on else 1, "alpha": 1 if on else 0.5, "zorder": 2 + on}
            ax.plot([0, 1], ends, "-", marker="o", ms=5, color=colors.get(line, QUIET), **style)
        for x, side, order in ((0, -1, here), (1, 1, there)):
            wanted = [100 * scores[x][line] for line in order]
            for place, (line, y, at) in enumerate(
                zip(order, wanted, _apart(wanted, 2.6), strict=True), 1
            ):
                color = colors.get(line, "#666666")
                ax.plot([x + 0.02 * side, x + 0.1 * side], [y, at], color=color, lw=0.7)
                text = f"{place}. {line}  {y:.0f}" if x == 0 else f"{y:.0f}  {place}. {line}"
                weight = "bold" if line in colors else "normal"
                look = {"color": color, "fontweight": weight, "fontsize": 10}
                ha = "right" if x == 0 else "left"
                ax.text(x + 0.12 * side, at, text, ha=ha, va="center", **look)
        ax.set(xlim=(-0.8, 1.8))
        ax.set_xticks([0, 1], names)
        ax.xaxis.tick_top()
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
        top, bottom = here[0], there[0]
        ends, place = [100 * s[top] for s in scores], there.index(top) + 1
        ax.set_title(
            f"{top}: first with {ends[0]:.0f} on {names[0]}, "
            f"number {place} with {ends[1]:.0f} on {names[1]} (DER, %)"
        )
        return Picture(
            fig,
            f"Two columns with the same {len(here)} defenses, at the height of their mean score on "
            f"{names[0]} and on {names[1]}, each joined to itself by a thread. {top} is first on "
            f"the left and number {place} on the right; {bottom} is first on the right and number "
            f"{here.index(bottom) + 1} on the left. Many threads cross, and most of them rise: on "
            "the right the upper ones stand close together.",
        )


Picks = Mapping[str, Sequence[tuple[float, float]]]


def allowance(choosers: Mapping[str, Picks], steps: Mapping[int, Sequence[str]]) -> Picture:
    """What the choosers of a threshold leave, and what it costs, victim by victim.

    Args:
        choosers: method -> victim -> (ASR, accuracy) of each step.
        steps: names of the steps, by how many there are.
    """
    falls, looks = {}, []
    with show.style():
        fig, axes = show.canvas(
            2,
            len(choosers),
            height=4.6,
            width=9.6,
            sharey="row",
            sharex="col",
            gridspec_kw={"height_ratios": (3, 1.6)},
        )
        for column, (who, victims) in enumerate(choosers.items()):
            known = len(next(iter(victims.values())))
            names = steps[known]
            before, allowed = names.index("little"), names.index("a tenth")
            still = []
            for victim, picks in victims.items():
                moved = picks[before][0] - picks[allowed][0] >= 0.06
                still += [] if moved else [(picks[allowed][0], victim)]
                for k, color, mark in ((0, TRIGGERED, "o"), (1, CLEAN, "s")):
                    values, style = [100 * p[k] for p in picks], "-" if moved else "--"
                    axes[k, column].plot(
                        range(known), values, mark + style, color=color, ms=4, lw=1.2
                    )
            fall = [100 * (p[before][0] - p[allowed][0]) for p in victims.values()]
            falls[who] = tables.mean(fall)
            if known > 2:
                looks.append(tables.mean([100 * (p[-2][0] - p[-1][0]) for p in victims.values()]))
            _name_still(axes[0, column], still, known)
            axes[0, column].set(ylim=(-6, 106))
            axes[0, column].set_title(who, fontsize=10)
            axes[1, column].set(xlim=(-0.5, max(known, 3) - 0.5), ylim=(60, 103))
            axes[1, column].set_xticks(range(known), names, fontsize=9, rotation=40, ha="right")
            if known == 2:
                for row, y in ((0, 32), (1, 75)):
                    axes[row, column].text(
                        1.2, y, "look:\nnot stored", color="#666666", fontsize=9, va="center"
                    )
        axes[0, 0].set_ylabel("ASR, %", color=TRIGGERED)
        axes[1, 0].set_ylabel("ACC, %", color=CLEAN)
        ends = [f"{f:.0f}" for f in (min(falls.values()), max(falls.values()))]
        show.headline(
            fig,
            f"Mean ASR: allowing a tenth takes off {ends[0]} to {ends[1]} points, "
            f"a look then {max(looks):.1f} at most",
        )
        return Picture(
            fig,
            f"{len(choosers)} columns, one a method and a kind of images, with attack success of "
            "each victim above and accuracy below, over the steps of a choice. From little to a "
            "tenth the mean attack success falls by "
            + ", ".join(f"{f:.0f} ({who.replace(chr(10), ', ')})" for who, f in falls.items())
            + " points; where somebody looks after that, the curves stay level. Dashed curves "
            "fall by less than six points and carry the names of their victims.",
        )


def _name_still(ax, still: Sequence[tuple[float, str]], known: int) -> None:
    """Names beside the curves that did not move: one text a height."""
    groups: dict[int, list[str]] = {}
    for value, victim in still:
        groups.setdefault(round(4 * value), []).append(victim)
    for names in groups.values():
        at = 100 * tables.mean([v for v, who in still if who in names])
        look = {"color": "#444444", "fontsize": 8.5}
        if known == 2:  # there is room on the right
            va = "top" if at > 90 else "bottom" if at < 10 else "center"
            ax.text(1.2, at + {"top": 4, "bottom": -4}.get(va, 0), ",\n".join(names), va=va, **look)
        else:
            ax.text((known - 1) / 2, at - 4, ", ".join(names), ha="center", va="top", **look)


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
