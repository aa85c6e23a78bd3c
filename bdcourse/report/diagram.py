"""Diagrams that are no plots: boxes and arrows, in the style of the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from bdcourse.report.show import INK, QUIET, Picture, canvas, headline, style


@dataclass(frozen=True)
class Box:
    """A box of a diagram.

    Args:
        x, y: its center, in units of the diagram: x from 0 (left) to 10 (right), y from 0
            (below) up to the height of the diagram times 10 / 7.2.
        text: one or two short lines.
        color: of its frame; the meanings of `show.CLEAN`, `TRIGGERED`, `DEFENDED` hold.
        width, height: in the same units.
        filled: painted in its color, with white letters.
    """

    x: float
    y: float
    text: str
    color: str = INK
    width: float = 1.6
    height: float = 0.8
    filled: bool = False


def boxes(
    boxes: Mapping[str, Box],
    arrows: Sequence[tuple[str, str] | tuple[str, str, str]] = (),
    *,
    elbows: Sequence[tuple[str, str]] = (),
    description: str,
    title: str = "",
    height: float = 2.4,
    notes: Sequence[tuple[float, float, str]] = (),
    pictures: Sequence[tuple[float, float, float, Tensor]] = (),
    frames: Sequence[Box] = (),
) -> Picture:
    """Boxes joined by arrows.

    Args:
        boxes: name -> box.
        arrows: (from, to) or (from, to, words beside the arrow).
        elbows: (from, to) for arrows with a right angle, upright at the lower box.
        height: of the diagram, inches; it is 7.2 inches wide.
        notes: (x, y, text), written without a box, in gray.
        pictures: (x, y, size, image), square images (c, h, w) in [0, 1] by their centers.
        frames: dashed around other boxes, with the text at the upper edge inside.

    Raises:
        ValueError: an arrow names no box.
    """
    from matplotlib.patches import FancyBboxPatch, Rectangle

    fig, axes = canvas(height=height)
    ax = axes[0, 0]
    ax.axis("off")
    for box in frames:
        corner = (box.x - box.width / 2, box.y - box.height / 2)
        around = Rectangle(corner, box.width, box.height, fill=False, ec=box.color, ls="--")
        ax.add_patch(around)
        top = box.y + box.height / 2 - 0.15
        ax.text(box.x, top, box.text, ha="center", va="top", color=box.color, fontsize=11)
    for x, y, size, image in pictures:
        sides = (x - size / 2, x + size / 2, y - size / 2, y + size / 2)
        pixels = image.detach().cpu().permute(1, 2, 0).numpy()
        ax.imshow(pixels, extent=sides, interpolation="nearest")
    ax.set(xlim=(0, 10), ylim=(0, 10 * height / 7.2), aspect="equal")
    for box in boxes.values():
        corner = (box.x - box.width / 2, box.y - box.height / 2)
        ax.add_patch(
            FancyBboxPatch(
                corner,
                box.width,
                box.height,
                boxstyle="round,pad=0,rounding_size=0.12",
                edgecolor=box.color,
                facecolor=box.color if box.filled else "white",
                linewidth=1.6,
            )
        )
        ink = "white" if box.filled else INK
        ax.text(box.x, box.y, box.text, ha="center", va="center", color=ink, fontsize=11)
    for start, end, *words in (*arrows, *elbows):
        for name in (start, end):
            if name not in boxes:
                raise ValueError(f"an arrow names {name!r}; boxes are {', '.join(boxes)}.")
        if (start, end, *words) in elbows:
            _bend(ax, boxes[start], boxes[end])
        else:
            _join(ax, boxes[start], boxes[end], *words)
    for x, y, text in notes:
        ax.text(x, y, text, ha="center", va="center", color=QUIET, fontsize=11)
    if title:
        headline(fig, title)
    with style():
        return Picture(fig, description)


def _arrow(ax, tail: tuple[float, float], head: tuple[float, float], **look) -> None:
    look |= {"arrowstyle": "-|>", "color": INK, "linewidth": 1.4, "shrinkA": 2, "shrinkB": 2}
    ax.annotate("", xy=head, xytext=tail, arrowprops=look)


def _bend(ax, start: Box, end: Box) -> None:
    """An arrow that runs upright at the lower of two boxes and level at the higher."""
    low, high = sorted((start, end), key=lambda box: box.y)
    side = -1 if low.x < high.x else 1
    ends = [(low.x, low.y + low.height / 2), (high.x + side * high.width / 2, high.y)]
    up, level = 90, 0
    first, last = (up, level) if low is start else (level, up)
    turn = f"angle,angleA={first},angleB={last},rad=4"
    _arrow(ax, *(ends if low is start else ends[::-1]), connectionstyle=turn)


def _join(ax, start: Box, end: Box, words: str = "") -> None:
    """An arrow from the side of one box to the facing side of another."""
    dx, dy = end.x - start.x, end.y - start.y
    if abs(dx) * (start.height + end.height) >= abs(dy) * (start.width + end.width):
        s = 1 if dx > 0 else -1
        tail = (start.x + s * start.width / 2, start.y)
        head = (end.x - s * end.width / 2, end.y)
    else:
        s = 1 if dy > 0 else -1
        tail = (start.x, start.y + s * start.height / 2)
        head = (end.x, end.y - s * end.height / 2)
    _arrow(ax, tail, head)
    if words:
        across = abs(dx) >= abs(dy)
        ax.text(
            (tail[0] + head[0]) / 2 + (0 if across else 0.12),
            (tail[1] + head[1]) / 2 + 0.22 * across,
            words,
            ha="center" if across else "left",
            va="center",
            color=QUIET,
            fontsize=11,
        )
