"""The exercise checks of lesson 01."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from bdcourse.teach.check.core import (
    CheckFailed,
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
def stamp(fn: Callable[[Tensor, Tensor, int, int], Tensor]) -> None:
    """stamp(x, patch, row, col) -> x with the patch written at (row, col)."""
    name, g = "stamp", fresh()
    for size in (2, 4):
        x = torch.rand(5, 3, 11, 9, generator=g)
        patch = torch.rand(3, size, size + 1, generator=g)
        out = call(name, fn, x, patch, 6, 3)
        shaped(name, out, (5, 3, 11, 9))
        rows, cols = slice(6, 6 + size), slice(3, 4 + size)
        inside = out[..., rows, cols]
        swapped = out[..., 3 : 3 + size, 6 : 6 + size + 1]
        if swapped.shape[-2:] == patch.shape[-2:] and close(swapped, patch.expand_as(swapped)):
            raise CheckFailed(f"{name}: row and column are exchanged (hint 2)")
        need(
            close(inside, patch.expand(5, 3, size, size + 1)),
            name,
            "the patch is not at (row, col), or not in every image.",
            2,
        )
        outside = torch.ones(11, 9, dtype=torch.bool)
        outside[rows, cols] = False
        need(
            torch.equal(out[..., outside], x[..., outside]),
            name,
            "pixels outside the patch changed.",
            2,
        )
    passed(name)


@guarded
def blend(fn: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """blend(x, picture, alpha) -> (1 - alpha) x + alpha picture."""
    name, g = "blend", fresh()
    x, picture = torch.rand(4, 3, 7, 7, generator=g), torch.rand(3, 7, 7, generator=g)
    alpha = 0.1 + 0.3 * random.random()
    out = call(name, fn, x, picture, alpha)
    shaped(name, out, (4, 3, 7, 7))
    need(
        not close(out, x + alpha * picture),
        name,
        "adds the picture without weakening the image, so pixels can exceed 1.",
        1,
    )
    need(
        not close(out, alpha * x + (1 - alpha) * picture),
        name,
        "alpha is the share of the picture, not of the image.",
        1,
    )
    need(
        close(out, (1 - alpha) * x + alpha * picture),
        name,
        "is not the weighted mean of image and picture.",
        2,
    )
    need(
        close(call(name, fn, x, picture, 0.0), x),
        name,
        "alpha = 0 must leave the image as it is.",
        2,
    )
    passed(name)


@guarded
def poison(fn: Callable) -> None:
    """poison(x, y, rate, target, trigger, generator) -> x, y, role."""
    name, g = "poison", fresh()
    n = 40
    x = torch.rand(n, 3, 4, 4, generator=g)
    y = torch.randint(0, 5, (n,), generator=g)

    def trigger(x: Tensor) -> Tensor:
        return (x + 2).clone()  # far outside [0, 1], so each stamped row shows

    for rate in (0.0, 0.25, 1.0):
        seed = torch.Generator().manual_seed(1)
        out = call(name, fn, x, y, rate, 3, trigger, seed)
        need(isinstance(out, tuple) and len(out) == 3, name, "must return x, y, role.", 1)
        px, py, role = out
        shaped(name, px, (n, 3, 4, 4))
        stamped = (px > 1.5).flatten(1).all(1)
        touched = (px != x).flatten(1).any(1)
        want = round(rate * n)
        need(
            int(touched.sum()) == want,
            name,
            f"changed {int(touched.sum())} images at rate {rate} of {n}, expected {want}.",
            2,
        )
        need(
            torch.equal(stamped, touched),
            name,
            "some chosen image did not get the trigger.",
            3,
        )
        need(
            bool((py[stamped] == 3).all()),
            name,
            "a poisoned image kept its label; it must get the target.",
            3,
        )
        need(
            torch.equal(py[~stamped], y[~stamped]),
            name,
            "a clean image got a new label.",
            3,
        )
        need(
            torch.equal(role.bool(), stamped),
            name,
            "role must be 1 for poisoned images and 0 for the others.",
            3,
        )
    same = [fn(x, y, 0.25, 3, trigger, torch.Generator().manual_seed(7))[2] for _ in "ab"]
    need(
        torch.equal(*same),
        name,
        "the same generator seed must choose the same images.",
        2,
    )
    other = fn(x, y, 0.25, 3, trigger, torch.Generator().manual_seed(8))[2]
    need(
        not torch.equal(same[0], other),
        name,
        "always chooses the same images; draw them from the generator.",
        2,
    )
    passed(name)


@guarded
def lost(fn: Callable[[int, int, int, int], float]) -> None:
    """lost(pad, start, size, side) -> share of crops that lose the whole patch."""
    name = "lost"

    def truth(pad: int, start: int, size: int, side: int) -> float:
        gone = 0
        for i in range(2 * pad + 1):
            for j in range(2 * pad + 1):
                kept = [sum(0 <= start + pad - k + d < side for d in range(size)) for k in (i, j)]
                gone += kept[0] * kept[1] == 0
        return gone / (2 * pad + 1) ** 2

    for k in range(8):
        side, size = random.randint(12, 40), random.randint(2, 4)
        pad = random.randint(size + 1, size + 4)
        # In turns near the far edge and near the near one, where the size matters.
        start = random.randint(0, 1) if k % 2 else side - size - random.randint(0, 1)
        out = number(name, call(name, fn, pad, start, size, side))
        want = truth(pad, start, size, side)
        one_axis = 1 - math.sqrt(1 - want)
        if abs(out - one_axis) < 1e-9 and want > 0:
            raise CheckFailed(f"{name}: counts one axis only; the crop moves in two (hint 2)")
        if abs(out - one_axis**2) < 1e-9 and want > 0:
            raise CheckFailed(
                f"{name}: counts crops that lose the patch along both axes; one is enough (hint 3)"
            )
        need(
            abs(out - want) < 1e-6,
            name,
            f"gives {out:.4f} for pad {pad}, start {start}, "
            f"size {size}, side {side}; enumeration gives {want:.4f}.",
            1,
        )
    need(
        number(name, fn(2, 10, 3, 32)) == 0,
        name,
        "a patch in the middle is never lost.",
        1,
    )
    passed(name)


@guarded
def stripes(fn: Callable[[Tensor, float, int], Tensor]) -> None:
    """stripes(x, delta, f) -> clip(x + delta sin(2 pi j f / w)), j the column."""
    name, g = "stripes", fresh()
    x = torch.rand(4, 3, 10, 14, generator=g)
    delta, f = 0.2 + 0.2 * random.random(), random.randint(2, 5)
    out = call(name, fn, x, delta, f)
    shaped(name, out, (4, 3, 10, 14))

    def wave(n: int) -> Tensor:
        return delta * torch.sin(2 * math.pi * f * torch.arange(n).double() / n)

    need(
        not close(out, (x + wave(10)[:, None]).clamp(0, 1)),
        name,
        "the wave runs down the rows; j counts columns.",
        1,
    )
    need(
        not close(out, x + wave(14)) and float(out.min()) >= 0 <= 1 - float(out.max()),
        name,
        "leaves [0, 1]; pixels must be clipped.",
        2,
    )
    need(
        close(out, (x + wave(14)).clamp(0, 1), 1e-3),
        name,
        "is not x + delta sin(2 pi j f / w), clipped; is w the width?",
        1,
    )
    passed(name)
