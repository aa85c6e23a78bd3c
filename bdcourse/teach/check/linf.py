"""The exercise checks of lesson 04."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from bdcourse.teach.check.core import (
    call,
    close,
    fresh,
    guarded,
    need,
    number,
    passed,
    shaped,
)


@guarded
def map_norms(fn: Callable[[Tensor, float], Tensor]) -> None:
    """map_norms(maps, p) -> the norm of every channel's map, (n, c)."""
    name, g = "map_norms", fresh()
    for h, w in ((3, 5), (4, 4)):
        maps = torch.randn(2, 6, h, w, generator=g)
        for p in (1.0, 2.0, math.inf):
            out = call(name, fn, maps, p)
            shaped(name, out, (2, 6), hint=2)
            flat = maps.double().flatten(2).abs()
            rows = maps.double().abs().sum(3).amax(2)
            need(
                p != math.inf or not close(out, rows),
                name,
                "at p = infinity it gives the largest row sum: a matrix norm.",
                2,
            )
            if p == math.inf:
                want = flat.amax(2)
            else:
                want = flat.pow(p).sum(2).pow(1 / p)
            need(
                not close(out, want / flat.shape[2] ** (1 / p)) or p == math.inf,
                name,
                f"is a mean over positions at p = {p:g}; a norm sums.",
                1,
            )
            need(close(out, want), name, f"is wrong at p = {p:g}.", 1)
    passed(name)


@guarded
def dilution(fn: Callable[[int, int, float, float], float]) -> None:
    """dilution(n, r, a, p) -> norm of a map with a spike over its norm without."""
    name = "dilution"
    for p in (1.0, 2.0, 3.0, math.inf):
        n, a = random.randint(20, 200), 0.5 + 4 * random.random()
        for r in (1, n // 3, n):
            flat = torch.ones(n, dtype=torch.float64)
            flat[:r] += a
            norm = torch.linalg.vector_norm
            want = float(norm(flat, p) / norm(torch.ones(n, dtype=torch.float64), p))
            out = number(name, call(name, fn, n, r, a, p))
            need(
                p == math.inf or abs(out - want**p) > 1e-6 * want or want == want**p,
                name,
                f"the root is missing at p = {p:g}.",
                2,
            )
            need(
                abs(out - want) < 1e-4 * want,
                name,
                f"is {out:.4g} for n = {n}, r = {r}, a = {a:.2f}, p = {p:g}, expected {want:.4g}.",
                1,
            )
    passed(name)


@guarded
def put_on(fn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """put_on(x, mask, pattern) -> the images with a soft mask's share of pattern."""
    name, g = "put_on", fresh()
    x = torch.rand(4, 3, 6, 7, generator=g)
    mask = torch.rand(1, 6, 7, generator=g)
    mask[0, 0], mask[0, 1] = 0, 1
    pattern = torch.rand(3, 6, 7, generator=g)
    out = call(name, fn, x, mask, pattern)
    shaped(name, out, tuple(x.shape))
    want = x + mask * (pattern - x)
    need(
        not close(out, (x + mask * pattern).clamp(0, 1)) and not close(out, x + mask * pattern),
        name,
        "adds the pattern; the image must give way by the same share.",
        1,
    )
    need(
        not close(out, pattern + mask * (x - pattern)),
        name,
        "mask and 1 - mask are exchanged: where the mask is 0 the image stays.",
        1,
    )
    need(close(out, want), name, "is not (1 - mask) * x + mask * pattern.", 1)
    passed(name)


@guarded
def anomaly_index(fn: Callable[[Tensor], Tensor]) -> None:
    """anomaly_index(norms) -> signed distance from the median in robust deviations."""
    name, g = "anomaly_index", fresh()
    for n in (11, 9):
        norms = 60 + 20 * torch.rand(n, generator=g)
        norms[n // 2] = 5.0
        out = call(name, fn, norms)
        shaped(name, out, (n,))
        v = norms.double()
        far = v - v.median()
        mad = far.abs().median()
        need(
            float(out[n // 2]) < 0,
            name,
            "has no sign: below the median is below zero.",
            1,
        )
        need(
            not close(out, far / v.std()),
            name,
            "divides by the standard deviation, which the outlier inflates.",
            2,
        )
        need(
            not close(out, far / mad),
            name,
            "the factor 1.4826 is missing.",
            3,
        )
        need(close(out, far / (1.4826 * mad), 1e-3), name, "is not as expected.", 1)
    passed(name)


@guarded
def rise(fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    """rise(clean, triggered) -> mean growth of each channel's peak, (c,)."""
    name, g = "rise", fresh()
    for _ in range(2):
        clean = torch.rand(5, 4, 3, 6, generator=g)
        triggered = torch.rand(5, 4, 3, 6, generator=g)
        triggered[:, 0] *= 0.2
        out = call(name, fn, clean, triggered)
        shaped(name, out, (4,), hint=2)
        a, b = clean.double(), triggered.double()
        want = (b.amax((2, 3)) - a.amax((2, 3))).mean(0)
        need(
            not close(out, (b - a).amax((2, 3)).mean(0)),
            name,
            "is the peak of the change; the change of the peak is asked for.",
            1,
        )
        need(
            not close(out, (b - a).abs().amax((2, 3)).mean(0)) and float(out[0]) < 0,
            name,
            "has lost its sign: a peak that falls counts below zero.",
            2,
        )
        need(
            not close(out, b.amax((0, 2, 3)) - a.amax((0, 2, 3))),
            name,
            "takes the largest over images, too; these are averaged.",
            2,
        )
        need(close(out, want), name, "is not the mean change of the peak.", 1)
    passed(name)


@guarded
def last_share(fn: Callable[[list, list, float, float], float]) -> None:
    """last_share(qs, accs, before, max_drop) -> the last before the first loss."""
    name = "last_share"
    qs = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    for k in range(5):
        before = 0.9 + 0.05 * random.random()
        accs = [before - 0.001 * i for i in range(6)]
        accs[k + 1] = before - 0.05  # too much; later shares look fine again
        out = number(name, call(name, fn, qs, accs, before, 0.02))
        need(
            out != 0.5 or k == 4,
            name,
            "takes the largest share that is fine, behind one that is not; stop at the first loss.",
            2,
        )
        need(
            out != qs[k + 1],
            name,
            "takes the share that already costs too much.",
            1,
        )
        need(out == qs[k], name, f"is {out:g}, expected {qs[k]:g}.", 1)
    out = number(name, fn(qs, [0.9, 0.875, 0.87, 0.8, 0.8, 0.8], 0.9, 0.025 + 1e-9))
    need(out == 0.1, name, "a drop of exactly max_drop is allowed.", 3)
    passed(name)
