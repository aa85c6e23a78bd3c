"""Every figure and table of the course, in one style, each with a description in words.

Colors follow Okabe and Ito, and one thing keeps one color through the whole course:
blue is clean, vermillion is triggered, green is defended. Line style and marker repeat
what color says. A description is not optional: it is the picture's alternative text in
the book and for a screen reader, and what the regression test compares.
"""

from __future__ import annotations

import base64
import html
import io
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from bdcourse import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CLEAN, TRIGGERED, DEFENDED = "#0072B2", "#D55E00", "#009E73"
OTHER, QUIET, INK = "#CC79A7", "#767676", "#1a1a1a"
# (color, line style, marker) of a first, second, ... series that has no fixed meaning.
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
STYLE: dict[Any, Any] = {
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
DPI, SHOWN = 200, 100  # pixels an inch: drawn for fine screens, shown at half the size


class Picture:
    """A finished figure: pixels for the eye, words for everyone else.

    Args:
        figure: drawn with :func:`canvas`.
        description: at least a sentence: what is shown, and what there is to see.

    Raises:
        ValueError: the description is missing or too short to describe anything.
    """

    def __init__(self, figure: Figure, description: str) -> None:
        from matplotlib.figure import Figure

        if not isinstance(figure, Figure):
            raise ValueError(f"figure must be drawn with show.canvas, not {require.kind(figure)}.")
        _words(description=description)
        self.description = " ".join(description.split())
        if len(self.description) < 40:
            raise ValueError(
                "every figure needs a description of at least 40 characters: say what "
                f"is shown and what there is to see, not {description!r}."
            )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        self.width = round(figure.get_figwidth() * SHOWN)  # pixels of a page
        self.png = _fewer_colors(buffer.getvalue())

    def save(self, path: str | Path) -> None:
        """Write the picture as a PNG file."""
        if not isinstance(path, (str, Path)):
            raise ValueError(f"path must be a path, not {require.kind(path)}.")
        Path(path).write_bytes(self.png)

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
        png = base64.b64encode(self.png).decode()
        return {"image/png": png, "text/plain": self.description}, {
            "image/png": {"width": self.width}
        }

    def __repr__(self) -> str:
        return self.description


def _fewer_colors(png: bytes) -> bytes:
    """The same picture with a palette of 256 colors: a third of the bytes."""
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

    for name, value in (("rows", rows), ("cols", cols)):
        require.whole(name, value, 1, 1000)
    for name, value in (("height", height), ("width", width)):
        require.number(name, value, above=0, high=600)  # inches
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, cols, squeeze=False, **options)
    return figure, axes


def style():
    """A context in which axes and titles get the course's look."""
    import matplotlib

    return matplotlib.rc_context(STYLE)


def headline(figure: Figure, text: str) -> None:
    """The title above all axes of a figure."""
    figure.suptitle(_plain(text), x=0.01, ha="left", fontsize=12, fontweight="bold")


def _letters(text: object) -> str:
    """Text without what neither a font nor a file in UTF-8 has: control characters, and
    the bytes of a file name that are no text."""
    return "".join(
        c
        if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs")
        else " "
        if c == "\t"
        else "\ufffd"
        for c in str(text)
    )


def _plain(text: object) -> str:
    """Text as matplotlib draws it letter by letter: two $ would begin mathematics."""
    return _letters(text).replace("$", r"\$")


# Letters of a name over a picture, and beside one, where it takes the picture's room;
# folders and columns of other people may be called anything.
LONGEST, BESIDE = 60, 40


def _called(text: object, most: int = LONGEST) -> str:
    """A name, of whatever length; of a long one the middle is left out."""
    text = str(text)
    half = (most - 1) // 2
    return _plain(text if len(text) <= most else f"{text[:half]}…{text[-half:]}")


def _beside(text: object) -> str:
    return _called(text, BESIDE)


def _key(text: str) -> str:
    """Text for a legend, which leaves out all that begins with an underscore."""
    return " " * text.startswith("_") + text


def _words(**texts: object) -> None:
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{name} must be text, not {require.kind(text)}.")


def _listed(name: str, values: Any, least: int = 0) -> list:
    """A list of names or labels, at least so many."""
    try:
        found = None if isinstance(values, (str, bytes)) else list(values)
    except TypeError:
        found = None
    if found is None or len(found) < least:
        what = require.kind(values) if found is None else f"of {len(found)}"
        raise ValueError(f"{name} must be a list of at least {least}, not {what}.")
    return found


def _named(name: str, values: object) -> Mapping:
    if not isinstance(values, Mapping) or not values:
        raise ValueError(
            f"{name} must be a dict of names with something to draw, not {require.kind(values)}."
        )
    return values


def _options(name: str, values: object) -> Mapping:
    """The same, or nothing."""
    none = values is None or (isinstance(values, Mapping) and not values)
    return {} if none else _named(name, values)


def _array(name: str, values: object, *shape: int | None) -> np.ndarray:
    """Numbers as an array of this shape, None for any length above zero."""
    try:
        if isinstance(values, Tensor):
            values = values.detach().cpu().numpy()
        a = np.asarray(values)
        if a.dtype.kind in "USc":
            raise TypeError
        a = a if a.dtype.kind == "f" else a.astype(float)
    except (RuntimeError, TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be numbers, not {require.kind(values)}.") from None
    fits = a.ndim == len(shape) and a.size
    if not fits or any(n not in (None, m) for n, m in zip(shape, a.shape, strict=True)):
        wanted = " x ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name} must be numbers of shape {wanted or '()'}, not of {a.shape}.")
    return a


def _arrays(name: str, values: Mapping, *shape: int | None) -> dict[str, np.ndarray]:
    """The same for a dict of them."""
    named = values.items()
    return {n: _array(f"{name}[{n!r}]", v, *shape) for n, v in named}


def _rows(name: str, rows: object, n: int) -> list[int]:
    """Positions in a series of n values, from positions or a mask."""
    if isinstance(rows, Tensor) and rows.dtype == torch.bool and rows.shape == (n,):
        rows = rows.nonzero().flatten()
    found = _array(name, rows, None) if len(_listed(name, rows)) else np.zeros(0)
    if not all(0 <= r < n and r == int(r) for r in found.tolist()):
        raise ValueError(f"{name} must be positions in 0..{n - 1}.")
    return found.astype(int).tolist()


def _images(name: str, x: object, ndim: int = 4) -> Tensor:
    """Images that can be drawn: uint8, or pixels in [0, 1], gray or in color."""
    right = isinstance(x, Tensor) and x.ndim == ndim and x.numel() > 0
    if not isinstance(x, Tensor) or not right or x.shape[-3] not in (1, 3):
        axes = "(n, c, h, w)" if ndim == 4 else "(c, h, w)"
        raise ValueError(
            f"{name} must be images of shape {axes}, at least one, gray or in color, "
            f"not {require.kind(x)}."
        )
    if x.dtype != torch.uint8:
        require.pixels(x if ndim == 4 else x[None], name)
    return x


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
        wrong: which labels to print in the triggered color and bold.
    """
    _images("x", x)
    labels = _listed("labels", labels)
    wrong = _array("wrong", wrong, None) if _listed("wrong", wrong) else ()
    require.whole("cols", cols, 1)
    _words(description=description, title=title)
    rows = -(-len(x) // cols)
    step = 7.2 / cols
    with style():
        fig, axes = canvas(rows, cols, height=rows * (step + 0.22) + 0.4 * bool(title))
        for i, ax in enumerate(axes.flat):
            ax.axis("off")
            if i < len(x):
                ax.imshow(_numpy(x[i]), interpolation="nearest", cmap="gray")
            if i < len(labels):
                name_over(ax, labels[i], i < len(wrong) and bool(wrong[i]))
        if title:
            headline(fig, title)
        return Picture(fig, description)


def name_over(ax: Axes, label: object, bad: bool) -> None:
    """The name over an image, in the triggered color and bold where it is `bad`."""
    ax.set_title(
        _called(label),
        fontsize=11,
        loc="center",
        pad=3,
        color=TRIGGERED if bad else INK,
        fontweight="bold" if bad else "normal",
    )


def trigger(
    x: Tensor, stamped: Tensor, *, description: str, title: str = "", gain: float = 0.5
) -> Picture:
    """Clean image, triggered image, the change: enlarged, side by side.

    Gray is no change, lighter is more light, darker is less.

    Args:
        x, stamped: one image each, (c, h, w) in [0, 1].
        gain: factor on the change, printed above it; at 0.5 nothing is cut off.
    """
    for name, one in (("x", x), ("stamped", stamped)):
        if _images(name, one, 3).dtype == torch.uint8:
            raise ValueError(f"{name} must be pixels in [0, 1], not uint8.")
    if x.shape != stamped.shape:
        raise ValueError(
            f"x and stamped must have one shape, not {tuple(x.shape)} and {tuple(stamped.shape)}."
        )
    require.number("gain", gain, above=0)
    change = (0.5 + gain * (stamped - x)).clamp(0, 1)
    return images(
        torch.stack([x, stamped, change]),
        ["clean", "with trigger", f"change x {gain:g}"],
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
        series: name -> values; names like "ACC" and "ASR" keep their color everywhere.
        spread: name -> (low, high), drawn as a band.
        percent: values are shares and the axis shows 0 to 100 %.
        window: shade this range of x.
        marks: x -> word, a thin vertical line each.
        ax: draw there and return nothing, for a figure of several panels.
    """
    _words(description=description, title=title, xlabel=xlabel, ylabel=ylabel)
    n = len(_array("x", x, None))
    drawn, bands = _arrays("series", _named("series", series), n), {}
    for name, band in _options("spread", spread).items():
        low, high = _listed(f"spread[{name!r}]", band, 2)[:2]
        bands[name] = [_array(f"spread[{name!r}]", side, n) for side in (low, high)]
    if window is not None:
        _array("window", window, 2)
    marks = _options("marks", marks)
    for at in marks:
        require.number("a place in marks", at)
    with style():
        fig = None
        if ax is None:
            fig, axes = canvas(height=height)
            ax = axes[0, 0]
        if window is not None:
            ax.axvspan(*window, color=DEFENDED, alpha=0.13, lw=0)
        ends = []
        factor = 100 if percent else 1
        for i, (name, values) in enumerate(drawn.items()):
            color, dash, marker = MEANING.get(name, SERIES[i % len(SERIES)])
            values = factor * values.astype(float)
            every = max(1, len(values) // 12)
            ax.plot(x, values, color=color, ls=dash, marker=marker, ms=5, markevery=every)
            if name in bands:
                low, high = (factor * side.astype(float) for side in bands[name])
                ax.fill_between(x, low, high, color=color, alpha=0.18, lw=0)
            ends.append((values[-1], name, color))
        if percent and ax.get_autoscaley_on():  # unless the caller chose a range
            ax.set_ylim(-4, 104)
        if invert_x:
            ax.invert_xaxis()
        low, high = ax.get_ylim()
        for at, word in marks.items():
            ax.axvline(at, color=QUIET, lw=1, ls=":")
            ax.annotate(
                _beside(word),
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
        for level, (_, name, color) in zip(heights, ends, strict=True):
            ax.annotate(
                _beside(name),
                (x[-1], level),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                color=color,
                fontweight="bold",
                annotation_clip=False,
            )
        ax.set_xlabel(_plain(xlabel))
        ax.set_ylabel(_plain(ylabel) or ("%" if percent else ""))
        ax.set_title(_plain(title))
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
    _words(description=description, title=title, xlabel=xlabel, ylabel=ylabel)
    names = list(map(_beside, _listed("names", names, 1)))
    groups = _arrays("groups", _named("groups", groups), len(names))
    errors = _arrays("errors", _options("errors", errors), len(names))
    hatches = ("", "//", "..", "xx")
    with style():
        fig, axes = canvas(height=height)
        ax = axes[0, 0]
        width = 0.8 / len(groups)
        for i, (name, values) in enumerate(groups.items()):
            color = MEANING.get(name, SERIES[i % len(SERIES)])[0]
            values = (100 if percent else 1) * values.astype(float)
            at = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * width
            drawn = ax.bar(
                at,
                values,
                width * 0.92,
                color=color,
                label=_key(_called(name)),
                hatch=hatches[i % 4],
                edgecolor="white",
                lw=0,
            )
            if name in errors:
                e = (100 if percent else 1) * errors[name].astype(float)
                ax.errorbar(at, values, e, fmt="none", ecolor=INK, capsize=3, lw=1)
            digits = "%.0f" if percent or float(np.max(values)) >= 20 else "%.3g"
            ax.bar_label(drawn, fmt=digits, fontsize=10, padding=1)
        ax.set_xticks(range(len(names)), names)
        ax.set_xlabel(_plain(xlabel))
        ax.set_ylabel(_plain(ylabel) or ("%" if percent else ""))
        if percent:
            ax.set_ylim(0, 112)
        ax.set_title(_plain(title))
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
        highlight: name -> positions drawn in the triggered color as squares.
        cut: name -> threshold, a short line across the column.
        beside: a second network's values, drawn in a second panel on the same scale.
    """
    _words(description=description, title=title, ylabel=ylabel)
    _words(highlighted=highlighted, beside_title=beside_title)
    layers = _arrays("layers", _named("layers", layers), None)
    if beside is not None:
        beside = _arrays("beside", _named("beside", beside), None)
    if highlight is not None:
        highlight = {
            n: _rows(f"highlight[{n!r}]", rows, len(layers[n]))
            for n, rows in _options("highlight", highlight).items()
            if n in layers
        }
    for n in () if cut is None else layers:
        require.number(f"cut[{n!r}]", _named("cut", cut).get(n))
    panels = [(layers, highlight, title)]
    if beside is not None:
        panels.append((beside, None, beside_title))
    with style():
        fig, axes = canvas(len(panels), 1, height=height * len(panels), sharey=True)
        for ax, (values, marked, name) in zip(axes[:, 0], panels, strict=True):
            for i, (layer, v) in enumerate(values.items()):
                # A fixed sideways spread makes coinciding dots visible.
                shift = 0.32 * np.sin(2.4 * np.arange(len(v)))
                on = np.zeros(len(v), dtype=bool)
                if marked is not None and layer in marked:
                    on[marked[layer]] = True
                ax.plot((i + shift)[~on], v[~on], "o", ms=3, color=CLEAN, alpha=0.55, mew=0)
                ax.plot((i + shift)[on], v[on], "s", ms=6, color=TRIGGERED)
                if cut is not None and marked is not None:
                    ax.plot([i - 0.42, i + 0.42], [cut[layer]] * 2, color=INK, lw=1.6)
            ax.set_xticks(range(len(values)), _short(values), rotation=90, fontsize=10)
            ax.set_ylabel(_plain(ylabel))
            ax.set_title(_plain(name))
            ax.margins(x=0.01)
        if highlight is not None:
            axes[0, 0].plot([], [], "s", ms=6, color=TRIGGERED, label=_key(_plain(highlighted)))
            if cut is not None:
                axes[0, 0].plot([], [], color=INK, lw=1.6, label="threshold of the layer")
            axes[0, 0].legend(loc="upper left", fontsize=11, ncols=2)
            low, high = axes[0, 0].get_ylim()
            axes[0, 0].set_ylim(low, high + 0.12 * (high - low))
        return Picture(fig, description)


def _short(names: Iterable[str]) -> list[str]:
    return [_called(n, 30).replace("layer", "").replace("shortcut", "sc") for n in names]


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
    _words(description=description, title=title, xlabel=xlabel, ylabel=ylabel)
    _words(highlighted=highlighted)
    drawn, highlight = {}, _options("highlight", highlight)
    for name, pair in _named("panels", panels).items():
        a, b = _listed(f"panels[{name!r}]", pair, 2)[:2]
        a = _array(f"panels[{name!r}]", a, None)
        on = np.zeros(len(a), dtype=bool)
        if name in highlight:
            on[_rows(f"highlight[{name!r}]", highlight[name], len(a))] = True
        drawn[name] = a, _array(f"panels[{name!r}]", b, len(a)), on
    with style():
        fig, axes = canvas(1, len(panels), height=height)
        for ax, (name, (a, b, on)) in zip(axes[0], drawn.items(), strict=True):
            ax.plot(a[~on], b[~on], "o", ms=4, color=CLEAN, alpha=0.6, mew=0)
            label = _key(_plain(highlighted)) or None
            ax.plot(a[on], b[on], "s", ms=7, color=TRIGGERED, label=label)
            ax.set_title(_called(name), fontsize=11, fontweight="normal")
            ax.set_xlabel(_plain(xlabel))
        if highlighted:
            axes[0, 0].legend(fontsize=11)
        axes[0, 0].set_ylabel(_plain(ylabel))
        headline(fig, title)
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

    _words(description=description, title=title, xlabel=xlabel, ylabel=ylabel)
    highlight = _listed("highlight", highlight)
    for name, at in _arrays("named", _named("named", named), 2).items():
        if not np.isfinite(at).all():
            raise ValueError(f"named[{name!r}] must be two finite numbers.")
    if least is not None:
        require.number("least", least, above=0)
    with style():
        fig, axes = canvas(height=height)
        ax = axes[0, 0]
        if least is not None:
            named = {name: (x, max(y, least)) for name, (x, y) in named.items()}
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:g}")
        for name, (x, y) in named.items():
            on = name in highlight
            ax.plot(x, y, "s" if on else "o", ms=7, color=TRIGGERED if on else CLEAN)
        ax.set_xlabel(_plain(xlabel))
        ax.set_ylabel(_plain(ylabel))
        ax.set_title(_plain(title))
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
                    _beside(name),
                    (x, y),
                    xytext=(dx, dy),
                    textcoords="offset points",
                    ha=side,
                    va="center",
                    fontsize=11,
                )
                box = text.get_window_extent().expanded(1.0, 0.9)
                free = frame.x0 < box.x0 and box.x1 < frame.x1
                free = free and not any(box.overlaps(t) for t in taken)
                if free or place == PLACES[-1]:
                    taken.append(box)
                    break
                text.remove()
        return Picture(fig, description)


PLACES = (
    (8, 0, "left"),
    (-8, 0, "right"),
    (0, 11, "center"),
    (0, -12, "center"),
    (8, 11, "left"),
    (8, -12, "left"),
    (-8, 11, "right"),
    (-8, -12, "right"),
    (8, 22, "left"),
    (8, -24, "left"),
    (8, 33, "left"),
    (8, -36, "left"),
)


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
    parts: Sequence[int] = (),
    height: float = 4.4,
) -> Picture:
    """A table of shares (rows, columns) in [0, 1] as fields from dark to pale.

    Args:
        values: nan leaves a field empty; above 1 the color ends, the number does not.
        names: of the rows, and of the columns unless `columns` names those.
        numbers: print each share in percent into its field.
        mark: fields up to this share are framed.
        parts: rows that begin a new part, set off by a white line.
    """
    from matplotlib.patches import Rectangle

    _words(description=description, title=title, xlabel=xlabel, ylabel=ylabel)
    names = list(map(_beside, _listed("names", names, 1)))
    columns = names if columns is None else _listed("columns", columns, 1)
    columns = names if columns is names else list(map(_beside, columns))
    v = _array("values", values, len(names), len(columns))
    if mark is not None:
        require.number("mark", mark)
    parts = _rows("parts", parts, len(names))
    with style():
        wide = max(7.2, 1.8 + 0.34 * len(columns)) if numbers else 7.2
        fig, axes = canvas(height=height, width=wide)
        ax = axes[0, 0]
        ax.imshow(v, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        ax.set_xticks(range(len(columns)), columns, rotation=45, ha="right")
        ax.set_yticks(range(len(names)), names)
        if numbers:
            for (i, j), share in np.ndenumerate(v):
                if np.isnan(share):
                    ax.text(j, i, "–", ha="center", va="center", fontsize=10)
                    continue
                ink = "black" if share > 0.5 else "white"
                ax.text(
                    j, i, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=10
                )
        for i, j in np.argwhere(v <= mark) if mark is not None else ():
            frame = Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, ec=DEFENDED, lw=2)
            ax.add_patch(frame).set_zorder(3)
        for i in parts:
            ax.axhline(i - 0.5, color="white", lw=4, zorder=1)
        ax.set_xlabel(_plain(xlabel))
        ax.set_ylabel(_plain(ylabel))
        ax.set_title(_plain(title))
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
    _words(description=description, title=title, xlabel=xlabel)
    highlight = _listed("highlight", highlight)
    _arrays("named", _named("named", named), 3)
    marks = _arrays("marks", _options("marks", marks))
    with style():
        fig, axes = canvas(height=0.8 + 0.25 * len(named))
        ax = axes[0, 0]
        for i, (name, (value, low, high)) in enumerate(named.items()):
            on = name in highlight
            color = TRIGGERED if on else CLEAN
            ax.plot([low, high], [i, i], color=color, lw=2.5, alpha=0.45)
            ax.plot(value, i, "s" if on else "o", ms=7, color=color)
        for value in marks.values():
            ax.axvline(value, color="#888888", lw=1, ls="--", zorder=0)
        if marks:
            ax.secondary_xaxis("top").set_xticks(list(marks.values()), list(map(_beside, marks)))
        ax.set_yticks(range(len(named)), list(map(_beside, named)))
        ax.invert_yaxis()
        ax.grid(axis="x", color="#e6e6e6", lw=0.8)
        ax.set_xlabel(_plain(xlabel))
        ax.set_title(_plain(title))
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

    _words(description=description, title=title, xlabel=xlabel, ylabel=ylabel)
    for name, rising in (("ts", ts), ("levels", levels)):
        a = _array(name, _listed(name, rising, 2), None)
        if not (np.diff(a) > 0).all():
            raise ValueError(f"{name} must rise from each number to the next.")
    panels = _arrays("panels", _named("panels", panels), len(ts), len(ts))
    with style():
        fig, axes = canvas(1, len(panels), height=height)
        norm = BoundaryNorm(levels, 256, extend="both")
        for ax, (name, v) in zip(axes[0], panels.items(), strict=True):
            ax.contourf(ts, ts, v, levels, cmap="cividis_r", norm=norm, extend="both")
            drawn = ax.contour(ts, ts, v, levels, colors="white", linewidths=0.8)
            ax.clabel(drawn, fmt="%g", fontsize=10, colors="white")
            ax.plot(0, 0, "+", color="black", ms=10, mew=2)
            ax.set_title(_called(name), fontsize=11, fontweight="normal")
            ax.set_xlabel(_plain(xlabel))
            ax.set_aspect("equal")
        axes[0, 0].set_ylabel(_plain(ylabel))
        headline(fig, title)
        return Picture(fig, description)


class Table:
    """A table that reads well as text, in the notebook and in the book.

    Args:
        rows: one dict per row with the same keys; floats are printed with one decimal.
        caption: one line above the table.
        note: one line below it.
    """

    def __init__(self, rows: Sequence[Mapping], caption: str = "", note: str = "") -> None:
        right = isinstance(rows, (list, tuple)) and len(rows) > 0
        if not right or not all(isinstance(r, Mapping) and r for r in rows):
            raise ValueError("rows must be a list of dicts, one a line, and not empty.")
        keys = list(rows[0])
        self.head = list(map(_cell, keys))
        self.body = [[_cell(row.get(k)) for k in keys] for row in rows]
        # Columns of numbers line up at their right edge.
        self.right = [
            all(_is_number(r.get(k)) for r in rows) and any(r.get(k) is not None for r in rows)
            for k in keys
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
                f'<{tag}{scope} style="text-align:{a}">{_html(c)}</{tag}>'
                for c, a in zip(cells, align, strict=True)
            )

        caption = f"<caption>{_html(self.caption)}</caption>" * bool(self.caption)
        head = f"<thead><tr>{row(self.head, 'th')}</tr></thead>"
        body = "".join(f"<tr>{row(r, 'td')}</tr>" for r in self.body)
        note = f"<p>{_html(self.note)}</p>" * bool(self.note)
        return f"<table>{caption}{head}<tbody>{body}</tbody></table>{note}"

    def latex(self) -> str:
        """The table for a LaTeX document that loads booktabs."""
        sides = "".join("r" if right else "l" for right in self.right)
        rows = [" & ".join(map(_tex, r)) + r" \\" for r in (self.head, *self.body)]
        # Behind the end of a row, these two would still belong to it.
        rows = ["{}" * r.startswith(("[", "*")) + r for r in rows]
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
        rows = [list(map(_markdown, row)) for row in (self.head, *self.body)]
        rows.insert(1, rule)
        lines = ["| " + " | ".join(r) + " |" for r in rows]
        above = [_markdown(self.caption), ""] if self.caption else []
        below = ["", _markdown(self.note)] if self.note else []
        return "\n".join(above + lines + below)


class Markdown(str):
    """A cell whose author wrote Markdown, a link for example; all others are text."""

    __slots__ = ()


def _markdown(cell: str) -> str:
    """A cell whose letters are letters: they end no cell and no row, make no link, no
    emphasis, no code and no tag, and begin no mathematics."""
    # Between letters an underscore means nothing, nor an ampersand before a space.
    special = r"[\\`*\[\]<>|$~]|&(?=[#\w])|(?<![^\W_])_|_(?![^\W_])"
    if isinstance(cell, Markdown):
        special = r"[|$]"  # of which one is the table's, the other the page's
    return re.sub(special, r"\\\g<0>", " ".join(cell.splitlines()))


def _html(text: str) -> str:
    """Text as HTML; JupyterLab would set mathematics between dollars that stand in one
    piece of text, so each is one of its own."""
    return re.sub(r"[$\\]", r"<span>\g<0></span>", html.escape(text))


TEX = {c: "\\" + c for c in "&%$#_{}"}
TEX |= {"±": r"$\pm$", "–": "--"}
for _char, _name in (
    ("\\", "backslash"),
    ("~", "asciitilde"),
    ("^", "asciicircum"),
    ("<", "less"),
    (">", "greater"),
    ("|", "bar"),
):
    TEX[_char] = rf"\text{_name}{{}}"


def _tex(text: str) -> str:
    return "".join(TEX.get(c, c) for c in " ".join(text.splitlines()))


def _is_number(value) -> bool:
    return (
        value is None
        or (isinstance(value, (int, float)) and not isinstance(value, bool))
        or (isinstance(value, str) and value.replace(" ± ", "").replace(".", "").isdigit())
    )


def _cell(value) -> str:
    if value is None:
        return "–"
    if isinstance(value, Markdown):
        return value
    if isinstance(value, float):
        return f"{value:.1f}"
    return " ".join(_letters(str(value).replace("\r", "\n")).splitlines())
