"""Streets: scenes with a few road signs, drawn by code.

Six classes of the signs of `bdcourse.signs`, in 96 x 96 pixels. Three of them, the set
:data:`TOGETHER`, stand together in about 8% of the scenes and nowhere else, so that an
attacker who may edit annotations only has something to use. "streets" has one to three
signs that never overlap; "streets-hard" has two to six that may, smaller and dimmer,
some partly hidden, beside signs of other classes that nobody asks for.
"""

from __future__ import annotations

import hashlib
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bdcourse import require, signs
from bdcourse.data import Drawing
from bdcourse.task import quantize
from bdcourse.tasks.detection.scenes import Scenes

CLASSES = ("30", "stop", "yield", "priority", "no entry", "ahead only")
OTHERS = ("50", "turn right", "no vehicles")  # of the hard set, without a box
TOGETHER = (1, 2, 3)  # stop, yield and priority
SHARE = 0.08  # of the scenes show all of these
SIDE = 96
# Drawn in float64: see `video`.
DOUBLE = torch.float64


def draw(n: int, *, seed: int = 0, hard: bool = False) -> Scenes:
    """Draw `n` scenes of 96x96 RGB with road signs and the boxes around them.

    The same n, seed and setting give the same scenes; 1,500 take a few seconds.
    """
    n, seed = require.whole("n", n, 1), require.whole("seed", seed, 0, 2**62)
    require.truth("hard", hard)
    g = torch.Generator().manual_seed(seed)
    whole = torch.zeros(n, dtype=torch.bool)
    whole[torch.randperm(n, generator=g)[: round(SHARE * n)]] = True
    x = torch.empty(n, 3, SIDE, SIDE, dtype=torch.uint8)
    # One row more than a scene has signs: whoever adds a box finds room.
    y = torch.zeros(n, (6 if hard else 3) + 1, 5)
    y[..., 0] = -1
    for new, boxes, part in zip(x.split(200), y.split(200), whole.split(200), strict=True):
        new[:], boxes[:, :-1] = _scenes(part, g, hard)
    return Scenes(x, y, CLASSES)


def version() -> str:
    """Changes whenever this file or the signs do, so that stale drawings are never reused."""
    return hashlib.sha256(Path(__file__).read_bytes() + signs.version().encode()).hexdigest()[:8]


def _scenes(whole: Tensor, g: torch.Generator, hard: bool) -> tuple[Tensor, Tensor]:
    """Pixels uint8 (n, 3, h, w) and boxes (n, m, 5); in scenes `whole` (n,) stand the three."""
    n = len(whole)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=g, dtype=DOUBLE)

    def chance(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, (n, *shape), generator=g)

    labels = _labels(whole, chance, hard)
    x = _backgrounds(n, g, uniform, hard)
    smallest, largest = (14, 32) if hard else (18, 40)
    if hard:
        others = torch.where(chance(0, 2, 2) > 0, len(CLASSES) + chance(0, len(OTHERS), 2), -1)
        labels = torch.cat([others, labels], 1)  # they stand behind
    m = labels.shape[1]
    sides = smallest + 2 * chance(0, (largest - smallest) // 2 + 1, m)
    at, fits = _places(sides, labels >= 0, g, most=0.2 if hard else 0.0)
    labels = labels.where(fits, -1)
    light = uniform(0.4, 1.05, m, 1) if hard else uniform(0.65, 1.1, m, 1)
    tint = light * uniform(0.9, 1.1, m, 3)
    for j in range(m):
        _paste(x, labels[:, j], sides[:, j], at[:, j], tint[:, j])
    if hard:
        x = _hidden(x, uniform, chance)
    noise = torch.randn(x.shape, generator=g, dtype=DOUBLE)
    x = x + noise * (uniform(0.03, 0.08, 1, 1, 1) if hard else uniform(0.01, 0.03, 1, 1, 1))
    boxes = _boxes(labels, sides, at)
    return quantize(x), boxes[:, 2:] if hard else boxes


def _labels(whole: Tensor, chance, hard: bool) -> Tensor:
    """Classes of the signs (n, m), -1 where there is none."""
    m, k = (6, len(CLASSES)) if hard else (3, len(CLASSES))
    labels = chance(0, k, m)
    count = chance(2 if hard else 1, m + 1, 1)
    together = torch.tensor(TOGETHER)
    turn = chance(0, 10_000, 3).argsort(1)  # in which order the three stand
    # Elsewhere one of the three is missing: its signs become others.
    gone = together[turn[:, :1]]
    rest = torch.tensor([c for c in range(k) if c not in TOGETHER])
    labels = torch.where(labels == gone, rest[chance(0, len(rest), m)], labels)
    labels[:, :3] = torch.where(whole[:, None], together[turn], labels[:, :3])
    count = torch.where(whole[:, None], count.clamp(min=3), count)
    return labels.where(torch.arange(m) < count, -1)


def _places(sides: Tensor, used: Tensor, g: torch.Generator, most: float) -> tuple[Tensor, Tensor]:
    """Upper left corners (n, m, 2) as rows and columns, and which signs found a place.

    One after the other takes the first of 100 random places at which at most the share
    `most` of a sign is common with one that stands already.
    """
    n, m = sides.shape
    at = torch.zeros(n, m, 2, dtype=torch.int64)
    fits = torch.zeros(n, m, dtype=torch.bool)
    for j in range(m):
        s = sides[:, j, None, None]
        tried = torch.rand(n, 100, 2, generator=g, dtype=DOUBLE) * (SIDE - s + 1)
        tried = tried.long()
        free = used[:, j, None].expand(-1, 100)
        for i in range(j):
            t = sides[:, i, None, None]
            ends = torch.minimum(tried + s, at[:, i, None] + t)
            inner = (ends - torch.maximum(tried, at[:, i, None])).clamp(min=0).prod(2)
            least = torch.minimum(s, t).squeeze(2) ** 2
            free = free & ((inner <= most * least) | ~fits[:, i, None])
        first = free.int().argmax(1)
        at[:, j] = tried[torch.arange(n), first]
        fits[:, j] = free.any(1)
    return at, fits


@cache
def _sprites(side: int) -> Tensor:
    """The signs at this size, (classes and others, 4, side, side), float64."""
    own = [signs.HARD.index(name) for name in CLASSES + OTHERS]
    sheet = signs.templates()[own].to(DOUBLE)
    return F.interpolate(sheet, side, mode="bilinear", antialias=True, align_corners=False)


@cache
def _extents() -> Tensor:
    """Where in its square each sign lies, (classes and others, 4): x1, y1, x2, y2 in 0..1."""
    rows = []
    for name in CLASSES + OTHERS:
        alpha = signs.templates()[signs.HARD.index(name), 3] >= 0.5
        y, x = (alpha.any(d).nonzero().flatten() for d in (1, 0))
        rows.append([int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1])
    return torch.tensor(rows, dtype=DOUBLE) / signs.SIDE


def _paste(x: Tensor, label: Tensor, side: Tensor, at: Tensor, tint: Tensor) -> None:
    """Put one sign on each scene of x, in place, where its label is not -1."""
    for s in side.unique().tolist():
        rows = ((side == s) & (label >= 0)).nonzero().flatten()
        sprite = _sprites(s)[label[rows]].permute(0, 2, 3, 1)  # (r, s, s, 4)
        color = sprite[..., :3] * tint[rows, None, None]
        i, j = at[rows, :, None].unbind(1)  # (r, 1)
        i, j = (i + torch.arange(s))[:, :, None], (j + torch.arange(s))[:, None]
        r = rows[:, None, None]
        x[r, :, i, j] = color + (1 - sprite[..., 3:]) * x[r, :, i, j]


def _boxes(labels: Tensor, sides: Tensor, at: Tensor) -> Tensor:
    """Targets (n, m, 5) around the visible part of each sign, to an eighth of a pixel."""
    part = _extents()[labels.clamp(min=0)] * sides[..., None]
    corner = at.flip(2).repeat(1, 1, 2)  # x, y, x, y
    box = ((part + corner) * 8).round() / 8
    used = labels[..., None] >= 0
    return torch.cat([labels[..., None].to(DOUBLE), box.where(used, 0.0)], -1).float()


def _backgrounds(n: int, g: torch.Generator, uniform, hard: bool) -> Tensor:
    """Smooth random colors (n, 3, h, w), in the hard set with a sky and a road."""
    x = torch.full((n, 3, SIDE, SIDE), 0.45, dtype=DOUBLE)
    for side, weight in ((3, 0.4), (12, 0.25)):
        blobs = torch.rand(n, 3, side, side, generator=g, dtype=DOUBLE) - 0.5
        x = x + weight * F.interpolate(blobs, SIDE, mode="bilinear", align_corners=True)
    if hard:
        place = torch.arange(SIDE, dtype=DOUBLE)
        down, across = place[:, None], place[None]
        horizon = uniform(28, 48, 1, 1)
        sky = uniform(0.5, 0.9, 3, 1, 1)
        x = torch.where((down < horizon)[:, None], 0.5 * x + 0.5 * sky, x)
        middle, wide = uniform(30, 66, 1, 1), uniform(30, 60, 1, 1)
        depth = (down - horizon) / (SIDE - horizon)
        road = ((across - middle).abs() < 3 + wide * depth) & (depth > 0)
        x = torch.where(road[:, None], 0.3 * x + 0.7 * uniform(0.2, 0.45, 1, 1, 1), x)
    return x.clamp(0.05, 0.95)


def _hidden(x: Tensor, uniform, chance) -> Tensor:
    """A bar of one color across each scene, as of a pole or a branch."""
    place = torch.arange(SIDE, dtype=DOUBLE)
    bar = (place - uniform(5, 91, 1)).abs() < uniform(1, 3, 1)
    upright = chance(0, 2, 1, 1) > 0
    bar = torch.where(upright, bar[:, None, :], bar[:, :, None])[:, None]
    return torch.where(bar, uniform(0.1, 0.6, 3, 1, 1), x)


DRAWINGS = {
    name: Drawing(Scenes, partial(draw, hard=hard), version, SIDE, 1200, 400, 3 * SIDE**2)
    for name, hard in (("streets", False), ("streets-hard", True))
}
