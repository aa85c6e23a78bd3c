"""The exercise checks of lesson 02."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bdcourse.teach.check.core import call, close, fresh, guarded, need, passed, shaped


@guarded
def bend(fn: Callable[[Tensor, float, int], Tensor]) -> None:
    """bend(grid, strength, size) -> WaNet's sampling grid."""
    name, g = "bend", fresh()
    size, k, strength = random.choice([9, 16]), 4, 0.5 + random.random()
    grid = 2 * torch.rand(2, k, k, generator=g) - 1
    out = call(name, fn, grid, strength, size)
    shaped(name, out, (1, size, size, 2))
    out = out.double()
    at = torch.linspace(-1, 1, size)
    still = torch.stack(torch.meshgrid(at, at, indexing="ij")[::-1], -1)[None]
    zero = call(name, fn, grid, 0.0, size)
    need(
        not close(zero, still.flip(-1)),
        name,
        "at strength 0 it exchanges x and y; grid_sample wants x, the column, first.",
        2,
    )
    need(close(zero, still), name, "at strength 0 it must be the identity grid.", 2)
    up = F.interpolate(
        grid[None].double(), (size, size), mode="bicubic", align_corners=True
    ).permute(0, 2, 3, 1)
    want = still.double() + strength * up / size
    need(
        float(out.abs().max()) <= 1,
        name,
        "leaves [-1, 1], so it samples outside of the image; clamp it.",
        3,
    )
    need(
        not close(out, (still + strength * up).clamp(-1, 1)),
        name,
        "the displacement is not divided by the image size.",
        3,
    )
    need(
        close(out, want.clamp(-1, 1)),
        name,
        "is not identity + strength * up(grid) / size, with bicubic interpolation "
        "and align_corners=True.",
        1,
    )
    passed(name)


@guarded
def noise_mode(fn: Callable) -> None:
    """noise_mode(x, y, target, p, c, trigger, noisy) -> batch, labels, roles."""
    name, g = "noise_mode", fresh()
    n, p, c = 12, random.randint(1, 3), random.randint(2, 5)
    x = torch.rand(n, 3, 4, 4, generator=g)
    y = torch.randint(1, 6, (n,), generator=g)

    def trigger(x: Tensor) -> Tensor:
        return x + 2

    def noisy(x: Tensor) -> Tensor:
        return x + 4

    out = call(name, fn, x, y, 0, p, c, trigger, noisy)
    need(isinstance(out, tuple) and len(out) == 3, name, "must return x, y, role.", 1)
    batch, labels, role = out
    shaped(name, batch, (n, 3, 4, 4))
    need(close(batch[:p], x[:p] + 2), name, "the first p images lack the trigger.", 1)
    need(
        close(batch[p : p + c], x[p : p + c] + 4),
        name,
        "the next c images must get the noisy warp, and only that.",
        2,
    )
    need(torch.equal(batch[p + c :], x[p + c :]), name, "clean images changed.", 1)
    need(bool((labels[:p] == 0).all()), name, "poisoned images kept their label.", 1)
    need(
        torch.equal(labels[p : p + c], y[p : p + c]),
        name,
        "noisy images must keep their true label: that is the point of them.",
        2,
    )
    need(torch.equal(labels[p:], y[p:]), name, "a clean image got a new label.", 1)
    want = [1] * p + [2] * c + [0] * (n - p - c)
    need(
        role.long().tolist() == want,
        name,
        "roles must be 1 for poison, 2 for noise mode, 0 for clean.",
        3,
    )
    passed(name)


@guarded
def own_trigger(fn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """own_trigger(x, m, p) -> x + m (p - x), m one channel."""
    name, g = "own_trigger", fresh()
    x, p = (torch.rand(5, 3, 6, 7, generator=g) for _ in "xp")
    m = torch.rand(5, 1, 6, 7, generator=g)
    out = call(name, fn, x, m, p)
    shaped(name, out, (5, 3, 6, 7))
    need(
        not close(out, x + m * p),
        name,
        "adds the pattern on top; under the mask the image must give way.",
        1,
    )
    need(
        not close(out, m * x + (1 - m) * p),
        name,
        "shows the pattern where the mask is 0.",
        1,
    )
    need(close(out, x + m * (p - x)), name, "is not (1 - m) x + m p.", 1)
    passed(name)


@guarded
def diversity(fn: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """diversity(x1, x2, p1, p2) -> mean of RMS(x1 - x2) / RMS(p1 - p2)."""
    name, g = "diversity", fresh()
    x1, x2, p1, p2 = (torch.rand(6, 3, 5, 5, generator=g) for _ in range(4))
    p2[0] = p1[0] + 0.01  # one pair far nearer than the others
    out = call(name, fn, x1, x2, p1, p2)
    need(isinstance(out, Tensor) and out.numel() == 1, name, "must be one number.", 1)

    def rms(d: Tensor) -> Tensor:
        return d.double().square().flatten(1).mean(1).sqrt()

    dx, dp = rms(x1 - x2), rms(p1 - p2)
    wrong = {
        "is upside down; patterns that part must make it small.": (dp / dx).mean(),
        "takes the mean over images first; the ratio belongs to each pair.": dx.mean() / dp.mean(),
        "lacks the root of the mean square.": (dx**2 / dp**2).mean(),
    }
    for symptom, value in wrong.items():
        need(not close(out, value, 1e-3), name, symptom, 2)
    need(
        close(out, (dx / dp).mean(), 1e-2),
        name,
        "is not the mean over pairs of RMS(x1 - x2) / RMS(p1 - p2).",
        1,
    )
    same = call(name, fn, x1, x2, p1, p1)
    need(
        isinstance(same, Tensor) and same.numel() == 1 and bool(same.isfinite()),
        name,
        "is infinite when two patterns are equal; add 1e-7 below.",
        3,
    )
    passed(name)
