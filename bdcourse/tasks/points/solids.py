"""Solids: a set of clouds drawn by code, ten shapes with points all over their surface.

A shape is a mesh of triangles, closed, with its faces' normals outward. It is stretched
along its own axes, tilted a little and turned freely about the vertical axis; only then
points are drawn, so that their share on each face is its share of the area.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bdcourse import require
from bdcourse.data import Drawing
from bdcourse.tasks.points import clouds
from bdcourse.tasks.points.clouds import Clouds, on_grid, rotation

POINTS = 256  # of a drawn cloud
AROUND = 32  # corners of what is round
# Drawn in float64, and rounded only at the end: see `clouds.on_grid`.
DOUBLE = torch.float64


# -------------------------------------------------------------------- meshes


def revolved(profile: Sequence[tuple[float, float]]) -> Tensor:
    """What a line of (radius, height) sweeps around the vertical axis: triangles (t, 3, 3).

    The solid lies to the right of the line.
    """
    r, z = torch.tensor(profile, dtype=DOUBLE).T
    turn = torch.arange(AROUND + 1, dtype=DOUBLE) * (2 * math.pi / AROUND)
    ring = torch.stack(
        [r[:, None] * turn.cos(), r[:, None] * turn.sin(), z[:, None].expand(-1, len(turn))], -1
    )
    a, b, c, d = ring[:-1, :-1], ring[1:, :-1], ring[1:, 1:], ring[:-1, 1:]
    quads = torch.stack([a, b, c, a, c, d], 2).reshape(-1, 3, 3)
    return quads[_areas(quads) > 1e-12]  # on the axis, one of the two is a line


def extruded(
    outline: Sequence[tuple[float, float]], tiles: Sequence[tuple[int, ...]], height: float
) -> Tensor:
    """A prism over an outline, from -height to height: triangles (t, 3, 3).

    Args:
        outline: corners (x, y), counterclockwise.
        tiles: convex polygons, counterclockwise, as positions in `outline`; together they
            cover what lies inside.
    """
    flat = torch.tensor(outline, dtype=DOUBLE)
    low, high = (
        torch.cat([flat, torch.full((len(flat), 1), z, dtype=DOUBLE)], 1) for z in (-height, height)
    )
    out = []
    for tile in tiles:
        for i, j in zip(tile[1:], tile[2:], strict=False):
            out += [high[[tile[0], i, j]], low[[tile[0], j, i]]]
    for i in range(len(flat)):
        j = (i + 1) % len(flat)
        out += [torch.stack([low[i], low[j], high[j]]), torch.stack([low[i], high[j], high[i]])]
    return torch.stack(out)


def pyramid() -> Tensor:
    """A square base and four sides, triangles (6, 3, 3)."""
    low, top = -0.7, torch.tensor([0, 0, 0.9], dtype=DOUBLE)
    base = torch.tensor(
        [[-0.8, -0.8, low], [0.8, -0.8, low], [0.8, 0.8, low], [-0.8, 0.8, low]], dtype=DOUBLE
    )
    sides = [torch.stack([base[i], base[(i + 1) % 4], top]) for i in range(4)]
    return torch.stack([base[[0, 2, 1]], base[[0, 3, 2]], *sides])


def _arc(radius: float, start: float, end: float, at: tuple[float, float] = (0, 0)):
    """Points (radius, height) on an arc about `at`, from one angle to another; 0 is up, and
    90 degrees outward."""
    steps = max(2, round(AROUND * abs(end - start) / 360))
    angles = (math.radians(start + (end - start) * i / steps) for i in range(steps + 1))
    return [(at[0] + radius * math.sin(a), at[1] + radius * math.cos(a)) for a in angles]


def _plus(arm: float) -> list[tuple[float, float]]:
    a = arm
    return [
        *((a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1)),
        *((-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a), (-a, -1)),
    ]


SQUARE = ((-0.7, -0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, 0.7))
THIRD = tuple((math.cos(a), math.sin(a)) for a in (0, 2 * math.pi / 3, 4 * math.pi / 3))
SHAPES: dict[str, Callable[[], Tensor]] = {
    "ball": partial(revolved, _arc(1, 0, 180)),
    "box": partial(extruded, SQUARE, [(0, 1, 2, 3)], 0.7),
    "cylinder": partial(revolved, [(0, 0.8), (0.6, 0.8), (0.6, -0.8), (0, -0.8)]),
    "cone": partial(revolved, [(0, 0.9), (0.8, -0.7), (0, -0.7)]),
    "torus": partial(revolved, _arc(0.3, 0, 360, (0.7, 0))),
    "pyramid": pyramid,
    "prism": partial(extruded, THIRD, [(0, 1, 2)], 0.7),
    # The inside from its deepest point up to the rim, then the outside down.
    "bowl": partial(revolved, [*_arc(0.85, 180, 90), *_arc(1, 90, 180)]),
    "capsule": partial(revolved, [*_arc(0.5, 0, 90, (0, 0.5)), *_arc(0.5, 90, 180, (0, -0.5))]),
    "cross": partial(
        extruded,
        _plus(0.35),
        [(1, 4, 7, 10), (0, 1, 10, 11), (2, 3, 4, 1), (5, 6, 7, 4), (8, 9, 10, 7)],
        0.35,
    ),
}
SOLIDS = tuple(SHAPES)


def _normals(triangles: Tensor) -> Tensor:
    """Outward, as long as twice the area: (..., t, 3)."""
    a, b, c = triangles.unbind(-2)
    return torch.linalg.cross(b - a, c - a)


def _areas(triangles: Tensor) -> Tensor:
    return _normals(triangles).norm(dim=-1) / 2


def on_surface(
    triangles: Tensor, count: int, generator: torch.Generator, seen: Tensor | None = None
) -> Tensor:
    """Points all over meshes, evenly by area: (n, count, 3) float64.

    Args:
        triangles: (n, t, 3, 3) float64, of n meshes.
        seen: bool (n, t), the triangles that get points; None is all.

    Raises:
        ValueError: a mesh without area, or with corners that are not finite.
    """
    if not bool(triangles.isfinite().all()):
        raise ValueError("a mesh has corners that are not finite.")
    areas = _areas(triangles)
    upto = (areas if seen is None else areas * seen).cumsum(1)
    if not bool((upto[:, -1] > 0).all()):
        raise ValueError("a mesh has no area, so no point can be drawn on it.")
    n = len(triangles)
    u, s, t = (torch.rand(n, count, generator=generator, dtype=DOUBLE) for _ in range(3))
    at = torch.searchsorted(upto, u * upto[:, -1:], right=True).clamp(max=upto.shape[1] - 1)
    corners = triangles[torch.arange(n)[:, None], at]
    s = s.sqrt()  # the density grows from a corner to the opposite side as its length does
    weights = torch.stack([1 - s, s * (1 - t), s * t], -1)
    return (weights[..., None] * corners).sum(2)


# -------------------------------------------------------------------- the drawn set


def draw(n: int, *, seed: int = 0, hard: bool = False) -> Clouds:
    """Draw `n` clouds of ten solids, 256 points each, classes in equal shares.

    The same n, seed and setting give the same clouds; 3,000 take some seconds. In the hard
    set faces that look away from a scanner are missing, points are off by more, and a few
    stray ones have nothing to do with the solid, so that an honest error remains.
    """
    n, seed = require.whole("n", n, 1), require.whole("seed", seed, 0, 2**62)
    require.truth("hard", hard)
    g = torch.Generator().manual_seed(seed)
    y = (torch.arange(n) % len(SOLIDS))[torch.randperm(n, generator=g)]
    x = torch.empty(n, POINTS, 3)
    for k, shape in enumerate(SHAPES.values()):
        mesh = shape()
        for rows in (y == k).nonzero().flatten().split(100):
            x[rows] = on_grid(_scanned(mesh, len(rows), g, hard))
    return Clouds(x, y, SOLIDS)


def version() -> str:
    """Changes whenever the code that draws does, so that stale drawings are never reused."""
    code = (Path(file).read_bytes() for file in (__file__, clouds.__file__))
    return hashlib.sha256(b"".join(code)).hexdigest()[:8]


def _scanned(mesh: Tensor, n: int, g: torch.Generator, hard: bool) -> Tensor:
    """n clouds of one solid, (n, p, 3) float64."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=g, dtype=DOUBLE)

    stretch = uniform(0.75, 1.25, 1, 3)
    turn = rotation(uniform(0, 360))
    tilt = rotation(uniform(0, 360)) @ rotation(uniform(0, math.degrees(0.15)), (1, 0, 0))
    triangles = (mesh.flatten(0, 1) * stretch) @ (tilt @ turn).mT
    triangles = triangles.unflatten(1, (-1, 3))
    seen = None
    if hard:
        view = torch.randn(n, 3, generator=g, dtype=DOUBLE)
        view = view / view.norm(dim=1, keepdim=True)
        normal = _normals(triangles)
        normal = normal / normal.norm(dim=2, keepdim=True)
        seen = (normal * view[:, None]).sum(2) > uniform(-0.8, -0.2, 1)
    x = on_surface(triangles, POINTS, g, seen)
    x = x + (0.04 if hard else 0.02) * torch.randn(x.shape, generator=g, dtype=DOUBLE)
    if hard:  # up to one point in twenty, where no surface is
        stray = torch.arange(POINTS) < uniform(0, POINTS / 20, 1)
        x = torch.where(stray[..., None], uniform(-1.2, 1.2, POINTS, 3), x)
    return x


DRAWINGS = {
    name: Drawing(
        Clouds, partial(draw, hard=hard), version, POINTS, 2400, 1000, 4 * 3 * POINTS, "points"
    )
    for name, hard in (("solids", False), ("solids-hard", True))
}
