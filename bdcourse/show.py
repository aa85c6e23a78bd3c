"""Every figure and table of the course, in one style, each with a description in words.

Colours follow Okabe and Ito, and one thing keeps one colour through the whole course:
blue is clean, vermillion is triggered, green is defended. Line style and marker repeat
what colour says. A description is not optional: it is the picture's alternative text in
the book and for a screen reader, and what the regression test compares.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLEAN, TRIGGERED, DEFENDED = "#0072B2", "#D55E00", "#009E73"
OTHER, QUIET, INK = "#CC79A7", "#767676", "#1a1a1a"
# (colour, line style, marker) of a first, second, ... series that has no fixed meaning.
SERIES = (
    (CLEAN, "-", "o"),
    (TRIGGERED, "--", "s"),
    (DEFENDED, "-.", "^"),
    (OTHER, ":", "D"),
    ("#E69F00", (0, (5, 1)), "v"),
    (QUIET, (0, (1, 1)), "x"),
)
MEANING = {
    "ACC": (CLEAN, "-", "o"),
    "ASR": (TRIGGERED, "--", "s"),
    "RA": (DEFENDED, "-.", "^"),
    "clean": (CLEAN, ":", "D"),
    "poison": (TRIGGERED, "-.", "^"),
    "cover": (OTHER, "-", "v"),
}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
}
DPI = 100  # 7.2 inches are 720 pixels


class Picture:
    """A finished figure: pixels for the eye, words for everyone else.

    Args:
        figure: drawn with :func:`canvas`.
        description: at least a sentence: what is shown, and what there is to see.

    Raises:
        ValueError: the description is missing or too short to describe anything.
    """

    def __init__(self, figure: Figure, description: str) -> None:
        self.description = " ".join(description.split())
        if len(self.description) < 40:
            raise ValueError(
                "every figure needs a description of at least 40 characters: say what "
                f"is shown and what there is to see, not {description!r}."
            )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        self.png = _fewer_colours(buffer.getvalue())

    def save(self, path: str | Path) -> None:
        """Write the picture as a PNG file."""
        Path(path).write_bytes(self.png)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        png = base64.b64encode(self.png).decode()
        return {"image/png": png, "text/plain": self.description}

    def __repr__(self) -> str:
        return self.description


def _fewer_colours(png: bytes) -> bytes:
    """The same picture with a palette of 256 colours: a third of the bytes."""
    from PIL import Image

    im = Image.open(io.BytesIO(png)).convert("RGB")
    im = im.quantize(256, dither=Image.Dither.NONE)
    out = io.BytesIO()
    im.save(out, format="PNG", optimize=True)
    return out.getvalue()


def canvas(
    rows: int = 1, cols: int = 1, *, height: float = 3.0, width: float = 7.2, **options
) -> tuple[Figure, np.ndarray]:
    """A figure in the course's style and its axes, shape (rows, cols); inches."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, cols, squeeze=False, **options)
    return figure, axes


def _style():
    import matplotlib

    return matplotlib.rc_context(STYLE)


def _numpy(x: Tensor) -> np.ndarray:
    """An image (c, h, w), uint8 or in [0, 1], as matplotlib wants it."""
    x = x.detach().cpu()
    x = x if x.dtype == torch.uint8 else x.clamp(0, 1)
    return x.permute(1, 2, 0).squeeze(-1).numpy()


def images(
    x: Tensor,
    labels: Sequence[str] = (),
    *,
    description: str,
    title: str = "",
    cols: int = 6,
    wrong: Sequence[bool] = (),
) -> Picture:
    """A grid of images with a label under each.

    Args:
        x: (n, c, h, w), uint8 or in [0, 1].
        wrong: which labels to print in the triggered colour and bold.
    """
    rows = -(-len(x) // cols)
    step = 7.2 / cols
    with _style():
        fig, axes = canvas(rows, cols, height=rows * (step + 0.22) + 0.4 * bool(title))
        for i, ax in enumerate(axes.flat):
            ax.axis("off")
            if i < len(x):
                ax.imshow(_numpy(x[i]), interpolation="nearest", cmap="gray")
            if i < len(labels):
                bad = i < len(wrong) and wrong[i]
                ax.set_title(
                    labels[i],
                    fontsize=11,
                    loc="center",
                    pad=3,
                    color=TRIGGERED if bad else INK,
                    fontweight="bold" if bad else "normal",
                )
        if title:
            fig.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        return Picture(fig, description)


def trigger(
    x: Tensor, stamped: Tensor, *, description: str, title: str = "", gain: float = 1
) -> Picture:
    """Clean image, triggered image, their difference: enlarged, side by side.

    Args:
        x, stamped: one image each, (c, h, w) in [0, 1].
        gain: factor on the absolute difference, printed above it.
    """
    change = ((stamped - x).abs() * gain).clamp(0, 1)
    name = "difference" if gain == 1 else f"difference x {gain:g}"
    return images(
        torch.stack([x, stamped, change]),
        ["clean", "with trigger", name],
        description=description,
        title=title,
        cols=3,
    )


def lines(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    description: str,
    title: str,
    xlabel: str,
    ylabel: str = "",
    spread: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    percent: bool = False,
    window: tuple[float, float] | None = None,
    marks: Mapping[float, str] | None = None,
    invert_x: bool = False,
    height: float = 3.2,
    ax: Axes | None = None,
) -> Picture | None:
    """Lines with a label at each line's end instead of a legend.

    Args:
        series: name -> values; names like "ACC" and "ASR" keep their colour everywhere.
        spread: name -> (low, high), drawn as a band.
        percent: values are shares and the axis shows 0 to 100 %.
        window: shade this range of x.
        marks: x -> word, a thin vertical line each.
        ax: draw there and return nothing, for a figure of several panels.
    """
    with _style():
        fig = None
        if ax is None:
            fig, axes = canvas(height=height)
            ax = axes[0, 0]
        if window is not None:
            ax.axvspan(*window, color=DEFENDED, alpha=0.13, lw=0)
        ends = []
        factor = 100 if percent else 1
        for i, (name, values) in enumerate(series.items()):
            colour, dash, marker = MEANING.get(name, SERIES[i % len(SERIES)])
            values = factor * np.asarray(values, dtype=float)
            every = max(1, len(values) // 12)
            ax.plot(
                x, values, color=colour, ls=dash, marker=marker, ms=5, markevery=every
            )
            if spread and name in spread:
                low, high = (factor * np.asarray(s, dtype=float) for s in spread[name])
                ax.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
            ends.append((values[-1], name, colour))
        if percent and ax.get_autoscaley_on():  # unless the caller chose a range
            ax.set_ylim(-4, 104)
        if invert_x:
            ax.invert_xaxis()
        low, high = ax.get_ylim()
        for at, word in (marks or {}).items():
            ax.axvline(at, color=QUIET, lw=1, ls=":")
            ax.annotate(
                word,
                (at, 0.5),
                xycoords=("data", "axes fraction"),
                xytext=(3, -3),
                textcoords="offset points",
                va="top",
                fontsize=10,
                color=QUIET,
            )
        # Labels must not overlap: spread them upwards from the lowest, then push down
        # what has gone further above the axes than one label.
        gap, ends = 0.09 * (high - low) * 3.2 / height, sorted(ends)
        heights, last, top = [], -np.inf, high + gap
        for value, _, _ in ends:
            heights.append(last := max(value, last + gap))
        for i in reversed(range(len(heights))):
            heights[i] = min(heights[i], top)
            top = heights[i] - gap
        for level, (_, name, colour) in zip(heights, ends, strict=True):
            ax.annotate(
                name,
                (x[-1], level),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                color=colour,
                fontweight="bold",
                annotation_clip=False,
            )
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel or ("%" if percent else ""))
        ax.set_title(title)
        ax.grid(axis="y", color="#e6e6e6", lw=0.8)
        return None if fig is None else Picture(fig, description)


def bars(
    names: Sequence[str],
    groups: Mapping[str, Sequence[float]],
    *,
    description: str,
    title: str,
    xlabel: str = "",
    ylabel: str = "",
    percent: bool = False,
    errors: Mapping[str, Sequence[float]] | None = None,
    height: float = 3.2,
) -> Picture:
    """Grouped bars, the value on top of each."""
    hatches = ("", "//", "..", "xx")
    with _style():
        fig, axes = canvas(height=height)
        ax = axes[0, 0]
        width = 0.8 / len(groups)
        for i, (name, values) in enumerate(groups.items()):
            colour = MEANING.get(name, SERIES[i % len(SERIES)])[0]
            values = (100 if percent else 1) * np.asarray(values, dtype=float)
            at = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * width
            drawn = ax.bar(
                at,
                values,
                width * 0.92,
                color=colour,
                label=name,
                hatch=hatches[i % 4],
                edgecolor="white",
                lw=0,
            )
            if errors and name in errors:
                e = (100 if percent else 1) * np.asarray(errors[name], dtype=float)
                ax.errorbar(at, values, e, fmt="none", ecolor=INK, capsize=3, lw=1)
            digits = "%.0f" if percent or float(np.max(values)) >= 20 else "%.3g"
            ax.bar_label(drawn, fmt=digits, fontsize=10, padding=1)
        ax.set_xticks(range(len(names)), names)
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel or ("%" if percent else ""))
        if percent:
            ax.set_ylim(0, 112)
        ax.set_title(title)
        if len(groups) > 1:
            ax.legend(
                ncols=len(groups),
                loc="upper left",
                bbox_to_anchor=(0, -0.1),
                fontsize=11,
            )
        return Picture(fig, description)


def strips(
    layers: Mapping[str, Tensor],
    *,
    description: str,
    title: str,
    ylabel: str,
    highlight: Mapping[str, Tensor] | None = None,
    cut: Mapping[str, float] | None = None,
    highlighted: str = "highlighted",
    beside: Mapping[str, Tensor] | None = None,
    beside_title: str = "",
    height: float = 3.4,
) -> Picture:
    """One column of dots per layer, one dot per channel.

    Args:
        layers: name -> (c,) values.
        highlight: name -> positions drawn in the triggered colour as squares.
        cut: name -> threshold, a short line across the column.
        beside: a second network's values, drawn in a second panel on the same scale.
    """
    panels = [(layers, highlight, title)]
    if beside is not None:
        panels.append((beside, None, beside_title))
    with _style():
        fig, axes = canvas(len(panels), 1, height=height * len(panels), sharey=True)
        for ax, (values, marked, name) in zip(axes[:, 0], panels, strict=True):
            for i, (layer, v) in enumerate(values.items()):
                v = v.cpu().numpy()
                # A fixed sideways spread makes coinciding dots visible.
                shift = 0.32 * np.sin(2.4 * np.arange(len(v)))
                on = np.zeros(len(v), dtype=bool)
                if marked is not None and layer in marked:
                    on[marked[layer].cpu().numpy()] = True
                ax.plot(
                    (i + shift)[~on], v[~on], "o", ms=3, color=CLEAN, alpha=0.55, mew=0
                )
                ax.plot((i + shift)[on], v[on], "s", ms=6, color=TRIGGERED)
                if cut is not None and marked is not None:
                    ax.plot([i - 0.42, i + 0.42], [cut[layer]] * 2, color=INK, lw=1.6)
            ax.set_xticks(range(len(values)), _short(values), rotation=90, fontsize=10)
            ax.set_ylabel(ylabel)
            ax.set_title(name)
            ax.margins(x=0.01)
        if highlight is not None:
            axes[0, 0].plot([], [], "s", ms=6, color=TRIGGERED, label=highlighted)
            if cut is not None:
                axes[0, 0].plot(
                    [], [], color=INK, lw=1.6, label="threshold of the layer"
                )
            axes[0, 0].legend(loc="upper left", fontsize=11, ncols=2)
            low, high = axes[0, 0].get_ylim()
            axes[0, 0].set_ylim(low, high + 0.12 * (high - low))
        return Picture(fig, description)


def _short(names: Sequence[str]) -> list[str]:
    return [n.replace("layer", "").replace("shortcut", "sc") for n in names]


def scatter(
    panels: Mapping[str, tuple[Tensor, Tensor]],
    *,
    description: str,
    title: str,
    xlabel: str,
    ylabel: str,
    highlight: Mapping[str, Tensor] | None = None,
    highlighted: str = "",
    height: float = 3.2,
) -> Picture:
    """One scatter plot per panel: name -> (x values, y values)."""
    with _style():
        fig, axes = canvas(1, len(panels), height=height)
        for ax, (name, (a, b)) in zip(axes[0], panels.items(), strict=True):
            on = torch.zeros(len(a), dtype=torch.bool)
            if highlight and name in highlight:
                on[highlight[name]] = True
            ax.plot(a[~on], b[~on], "o", ms=4, color=CLEAN, alpha=0.6, mew=0)
            ax.plot(a[on], b[on], "s", ms=7, color=TRIGGERED, label=highlighted or None)
            ax.set_title(name, fontsize=11, fontweight="normal")
            ax.set_xlabel(xlabel)
        if highlighted:
            axes[0, 0].legend(fontsize=11)
        axes[0, 0].set_ylabel(ylabel)
        fig.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        return Picture(fig, description)


def points(
    named: Mapping[str, tuple[float, float]],
    *,
    description: str,
    title: str,
    xlabel: str,
    ylabel: str,
    highlight: Sequence[str] = (),
    least: float | None = None,
    height: float = 3.8,
) -> Picture:
    """A few points, each with its name beside it: name -> (x, y).

    With `least` the y axis is logarithmic from there on, and what is less lies there.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    with _style():
        fig, axes = canvas(height=height)
        ax = axes[0, 0]
        if least is not None:
            named = {name: (x, max(y, least)) for name, (x, y) in named.items()}
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:g}")
        for name, (x, y) in named.items():
            on = name in highlight
            ax.plot(x, y, "s" if on else "o", ms=7, color=TRIGGERED if on else CLEAN)
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
        ax.set_title(title)
        ax.grid(color="#e6e6e6", lw=0.8)
        ax.margins(0.12, 0.12)
        FigureCanvasAgg(fig).draw()  # fixes the layout, so that places can be measured
        fig.set_layout_engine("none")
        # Names must not overlap: from left to right, each takes the first free place of
        # a few around its point.
        dots = ax.transData.transform(list(named.values()))
        frame = ax.get_window_extent()
        taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in dots]
        for name, (x, y) in sorted(named.items(), key=lambda p: p[1]):
            for place in PLACES:
                dx, dy, side = place
                text = ax.annotate(
                    name, (x, y), xytext=(dx, dy), textcoords="offset points",
                    ha=side, va="center", fontsize=11,
                )  # fmt: skip
                box = text.get_window_extent().expanded(1.0, 0.9)
                free = frame.x0 < box.x0 and box.x1 < frame.x1
                free = free and not any(box.overlaps(t) for t in taken)
                if free or place == PLACES[-1]:
                    taken.append(box)
                    break
                text.remove()
        return Picture(fig, description)


PLACES = (
    (8, 0, "left"), (-8, 0, "right"), (0, 11, "center"), (0, -12, "center"),
    (8, 11, "left"), (8, -12, "left"), (-8, 11, "right"), (-8, -12, "right"),
    (8, 22, "left"), (8, -24, "left"), (8, 33, "left"), (8, -36, "left"),
)  # fmt: skip


def clouds(
    panels: Mapping[str, Mapping[str, Tensor]],
    *,
    description: str,
    title: str,
    cols: int = 3,
) -> Picture:
    """Flat maps of points without axes: panel -> group -> (n, 2).

    Groups called "other", "target" and "triggered" keep their look in the whole course.
    """
    looks = {"other": ("o", "#b8b8b8", 3), "target": ("o", CLEAN, 4),
             "triggered": ("s", TRIGGERED, 4)}  # fmt: skip
    rows = -(-len(panels) // cols)
    with _style():
        fig, axes = canvas(rows, cols, height=rows * (7.2 / cols + 0.1) + 0.7)
        for ax in axes.flat:
            ax.axis("off")
        for ax, (name, groups) in zip(axes.flat, panels.items(), strict=False):
            for group, at in groups.items():
                marker, colour, size = looks[group]
                ax.plot(*at.T, marker, color=colour, ms=size, mew=0, alpha=0.7,
                        label=group, ls="")  # fmt: skip
            ax.set_title(name, fontsize=11, loc="center", fontweight="normal")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        fig.legend(handles, labels, ncols=3, loc="outside lower left", fontsize=11)
        fig.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        return Picture(fig, description)


def matrix(
    values: Tensor,
    names: Sequence[str],
    columns: Sequence[str] | None = None,
    *,
    description: str,
    title: str,
    xlabel: str = "",
    ylabel: str = "",
    numbers: bool = False,
    mark: float | None = None,
    height: float = 4.4,
) -> Picture:
    """A table of shares (rows, columns) in [0, 1] as fields from dark to pale.

    Args:
        values: nan leaves a field empty; above 1 the color ends, the number does not.
        names: of the rows, and of the columns unless `columns` names those.
        numbers: print each share in percent into its field.
        mark: fields up to this share are framed.
    """
    from matplotlib.patches import Rectangle

    columns = names if columns is None else columns
    with _style():
        wide = max(7.2, 1.8 + 0.34 * len(columns)) if numbers else 7.2
        fig, axes = canvas(height=height, width=wide)
        ax = axes[0, 0]
        v = values.detach().cpu().numpy()
        ax.imshow(v, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        ax.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
        ax.set_yticks(range(len(names)), names)
        if numbers:
            for (i, j), share in np.ndenumerate(v):
                if np.isnan(share):
                    ax.text(j, i, "–", ha="center", va="center", fontsize=10)
                    continue
                ink = "black" if share > 0.5 else "white"
                ax.text(j, i, f"{100 * share:.0f}", ha="center", va="center",
                        color=ink, fontsize=10)  # fmt: skip
        for i, j in np.argwhere(v <= mark) if mark is not None else ():
            ax.add_patch(Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False,
                                   ec=TRIGGERED, lw=1.6))  # fmt: skip
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
        ax.set_title(title)
        ax.spines[:].set_visible(False)
        return Picture(fig, description)


def ranked(
    named: Mapping[str, tuple[float, float, float]],
    *,
    description: str,
    title: str,
    xlabel: str,
    highlight: Sequence[str] = (),
    marks: Mapping[str, float] | None = None,
) -> Picture:
    """Values with their intervals, one below the other: name -> (value, low, high).

    `marks` are other values, each a line from top to bottom with its name above.
    """
    with _style():
        fig, axes = canvas(height=0.8 + 0.25 * len(named))
        ax = axes[0, 0]
        for i, (name, (value, low, high)) in enumerate(named.items()):
            on = name in highlight
            colour = TRIGGERED if on else CLEAN
            ax.plot([low, high], [i, i], color=colour, lw=2.5, alpha=0.45)
            ax.plot(value, i, "s" if on else "o", ms=7, color=colour)
        for value in (marks or {}).values():
            ax.axvline(value, color="#888888", lw=1, ls="--", zorder=0)
        if marks:
            ax.secondary_xaxis("top").set_xticks(list(marks.values()), list(marks))
        ax.set_yticks(range(len(named)), named)
        ax.invert_yaxis()
        ax.grid(axis="x", color="#e6e6e6", lw=0.8)
        ax.set_xlabel(xlabel)
        ax.set_title(title)
        return Picture(fig, description)


def heat(
    x: Tensor,
    maps: Tensor,
    labels: Sequence[str],
    *,
    description: str,
    title: str,
    cols: int = 6,
    over: bool = True,
) -> Picture:
    """Heat maps (n, h, w) in [0, 1]: over the images x, or alone with `over=False`."""
    rows = -(-len(maps) // cols)
    step = 7.2 / cols
    with _style():
        fig, axes = canvas(rows, cols, height=rows * (step + 0.22) + 0.4)
        for i, ax in enumerate(axes.flat):
            ax.axis("off")
            if i >= len(maps):
                continue
            m = maps[i].detach().cpu().numpy()
            if over:
                grey = _numpy(x[i]).mean(-1)
                ax.imshow(grey, cmap="gray", vmin=0, vmax=grey.max())
                ax.imshow(m, cmap="viridis", alpha=0.25 + 0.55 * m, vmin=0, vmax=1)
            else:
                ax.imshow(m, cmap="viridis", interpolation="nearest", vmin=0, vmax=1)
            ax.set_title(
                labels[i], fontsize=11, loc="center", pad=3, fontweight="normal"
            )
        fig.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        return Picture(fig, description)


def contours(
    panels: Mapping[str, Tensor],
    ts: Sequence[float],
    *,
    description: str,
    title: str,
    levels: Sequence[float],
    xlabel: str = "",
    ylabel: str = "",
    height: float = 3.4,
) -> Picture:
    """Values over a plane, one panel each, with lines of equal value and their numbers.

    Args:
        panels: name -> (t, t), first axis drawn upwards; all share the levels.
        ts: places on both axes; a cross marks (0, 0).
        levels: rising values at which lines are drawn; what is above the last is dark.
    """
    from matplotlib.colors import BoundaryNorm

    with _style():
        fig, axes = canvas(1, len(panels), height=height)
        norm = BoundaryNorm(levels, 256, extend="both")
        for ax, (name, values) in zip(axes[0], panels.items(), strict=True):
            v = values.detach().cpu().numpy()
            ax.contourf(ts, ts, v, levels, cmap="cividis_r", norm=norm, extend="both")
            drawn = ax.contour(ts, ts, v, levels, colors="white", linewidths=0.8)
            ax.clabel(drawn, fmt="%g", fontsize=10, colors="white")
            ax.plot(0, 0, "+", color="black", ms=10, mew=2)
            ax.set_title(name, fontsize=11, fontweight="normal")
            ax.set_xlabel(xlabel)
            ax.set_aspect("equal")
        axes[0, 0].set_ylabel(ylabel)
        fig.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        return Picture(fig, description)


class Table:
    """A table that reads well as text, in the notebook and in the book.

    Args:
        rows: one dict per row with the same keys; floats are printed with one decimal.
        caption: one line above the table.
        note: one line below it.
    """

    def __init__(
        self, rows: Sequence[Mapping], caption: str = "", note: str = ""
    ) -> None:
        right = isinstance(rows, (list, tuple)) and len(rows) > 0
        if not right or not all(isinstance(r, Mapping) and r for r in rows):
            raise ValueError("rows must be a list of dicts, one a line, and not empty.")
        self.head = list(rows[0])
        self.body = [[_cell(row.get(k)) for k in self.head] for row in rows]
        # Columns of numbers line up at their right edge.
        self.right = [
            all(_is_number(r.get(k)) for r in rows)
            and any(r.get(k) is not None for r in rows)
            for k in self.head
        ]
        self.caption, self.note = caption, note

    def __repr__(self) -> str:
        table = [self.head, *self.body]
        width = [max(len(r[i]) for r in table) for i in range(len(self.head))]
        text = [
            "  ".join(
                c.rjust(w) if right else c.ljust(w)
                for c, w, right in zip(r, width, self.right, strict=True)
            ).rstrip()
            for r in table
        ]
        text.insert(1, "-" * len(text[0]))
        above, below = ([t] if t else [] for t in (self.caption, self.note))
        return "\n".join(above + text + below)

    def _repr_html_(self) -> str:
        def row(cells: Sequence[str], tag: str) -> str:
            align = ("right" if r else "left" for r in self.right)
            scope = ' scope="col"' if tag == "th" else ""
            return "".join(
                f'<{tag}{scope} style="text-align:{a}">{html.escape(c)}</{tag}>'
                for c, a in zip(cells, align, strict=True)
            )

        caption = f"<caption>{html.escape(self.caption)}</caption>" * bool(self.caption)
        head = f"<thead><tr>{row(self.head, 'th')}</tr></thead>"
        body = "".join(f"<tr>{row(r, 'td')}</tr>" for r in self.body)
        note = f"<p>{html.escape(self.note)}</p>" * bool(self.note)
        return f"<table>{caption}{head}<tbody>{body}</tbody></table>{note}"

    def latex(self) -> str:
        """The table for a LaTeX document that loads booktabs."""
        sides = "".join("r" if right else "l" for right in self.right)
        rows = [" & ".join(map(_tex, r)) + r" \\" for r in (self.head, *self.body)]
        rows.insert(1, r"\midrule")
        lines = [
            r"\begin{table}",
            *([rf"\caption{{{_tex(self.caption)}}}"] if self.caption else []),
            rf"\begin{{tabular}}{{{sides}}}",
            r"\toprule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            *([rf"\par {_tex(self.note)}"] if self.note else []),
            r"\end{table}",
        ]
        return "\n".join(lines)

    def markdown(self) -> str:
        """The table as Markdown, for the README."""
        rule = ["---:" if r else "---" for r in self.right]
        rows = [[c.replace("|", r"\|") for c in row] for row in (self.head, *self.body)]
        rows.insert(1, rule)
        lines = ["| " + " | ".join(r) + " |" for r in rows]
        above = [self.caption, ""] if self.caption else []
        below = ["", self.note] if self.note else []
        return "\n".join(above + lines + below)


TEX = {c: "\\" + c for c in "&%$#_{}"}
TEX |= {"±": r"$\pm$", "–": "--"}
for _char, _name in (("\\", "backslash"), ("~", "asciitilde"), ("^", "asciicircum"),
                     ("<", "less"), (">", "greater"), ("|", "bar")):  # fmt: skip
    TEX[_char] = rf"\text{_name}{{}}"


def _tex(text: str) -> str:
    return "".join(TEX.get(c, c) for c in text)


def _is_number(value) -> bool:
    return (
        value is None
        or (isinstance(value, (int, float)) and not isinstance(value, bool))
        or (
            isinstance(value, str)
            and value.replace(" ± ", "").replace(".", "").isdigit()
        )
    )


def _cell(value) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
