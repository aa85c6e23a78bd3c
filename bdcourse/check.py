"""Exercise checks: properties on fresh random tensors, and a sentence when one fails.

A check draws new inputs each time, so a constant cannot pass. It tests shape, dtype,
that nothing is changed in place, and agreement with a reference in float64; its message
names the symptom and the hint to open. Passing prints one fixed line.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CheckFailed(AssertionError):
    """An exercise's answer does not do what was asked; the message says in what way."""


def claim(sentence: str, value: float, low: float, high: float) -> None:
    """Print `sentence` if `value` lies in its band, else raise with the measured value.

    A trained network's numbers differ a little from machine to machine, so lessons
    state bands. Band and value share one unit; the sentence is what the reader may rely
    on.
    """
    if not low <= value <= high:
        raise AssertionError(
            f"{sentence} Not here: measured {value:.4g}, expected {low:g} to {high:g}."
        )
    print(sentence)


def reveal(guess: float, truth: float, unit: str = "") -> None:
    """Show how far a prediction was from the measured value."""
    gap = abs(guess - truth)
    unit = f" {unit}" if unit else ""
    comment = "spot on" if gap < 0.5 else f"{gap:g}{unit} apart"
    print(f"you said {guess:g}{unit}, it is {truth:g}{unit}: {comment}")


def _need(ok: bool, name: str, symptom: str, hint: int) -> None:
    if not ok:
        raise CheckFailed(f"{name}: {symptom} (hint {hint})")


def _call(name: str, fn: Callable, *args):
    """fn(*args), refusing stubs, missing returns and changed arguments."""
    before = [a.clone() if isinstance(a, Tensor) else a for a in args]
    try:
        out = fn(*args)
    except NotImplementedError:
        raise CheckFailed(f"{name}: not written yet.") from None
    if out is None:
        raise CheckFailed(f"{name}: returns None; is there a return statement?")
    for a, b in zip(args, before, strict=True):
        if isinstance(a, Tensor) and not torch.equal(a, b):
            raise CheckFailed(
                f"{name}: changes its input in place; clone first (hint 1)"
            )
    return out


def _shape(name: str, out, want: tuple[int, ...], hint: int = 1) -> None:
    if not isinstance(out, Tensor):
        kind = type(out).__name__
        raise CheckFailed(f"{name}: returns a {kind}, not a tensor (hint {hint})")
    _need(
        tuple(out.shape) == want,
        name,
        f"returns shape {tuple(out.shape)}, expected {want}.",
        hint,
    )


def _close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def _number(name: str, out) -> float:
    if isinstance(out, Tensor) and out.numel() == 1:
        out = out.item()
    if isinstance(out, bool) or not isinstance(out, (int, float)):
        raise CheckFailed(
            f"{name}: returns a {type(out).__name__}, not a number (hint 1)"
        )
    return float(out)


def _passed(name: str) -> None:
    print(f"{name}: all checks passed")


def _fresh() -> torch.Generator:
    g = torch.Generator()
    g.seed()  # a new seed each time: no constant can pass
    return g


# --- lesson 00 ------------------------------------------------------------------------


def take(fn: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """take(x, y, index) -> pixels in [0, 1] and labels of the images at index."""
    name, g = "take", _fresh()
    x = torch.randint(0, 256, (20, 3, 6, 5), dtype=torch.uint8, generator=g)
    y = torch.randint(0, 9, (20,), generator=g)
    index = torch.randperm(20, generator=g)[:7]
    out = _call(name, fn, x, y, index)
    _need(isinstance(out, tuple) and len(out) == 2, name, "must return two tensors.", 1)
    pixels, labels = out
    _shape(name, pixels, (7, 3, 6, 5))
    _need(pixels.dtype.is_floating_point, name, "pixels must be floats, not bytes.", 2)
    _need(float(pixels.max()) <= 1, name, "pixels must lie in [0, 1].", 2)
    _need(
        _close(pixels, x[index].double() / 255),
        name,
        "these are not the pixels at the given positions, divided by 255.",
        2,
    )
    _need(
        torch.equal(labels, y[index]),
        name,
        "the labels do not belong to the same images.",
        1,
    )
    _passed(name)


# --- lesson 01 ------------------------------------------------------------------------


def stamp(fn: Callable[[Tensor, Tensor, int, int], Tensor]) -> None:
    """stamp(x, patch, row, col) -> x with the patch written at (row, col)."""
    name, g = "stamp", _fresh()
    for size in (2, 4):
        x = torch.rand(5, 3, 11, 9, generator=g)
        patch = torch.rand(3, size, size + 1, generator=g)
        out = _call(name, fn, x, patch, 6, 3)
        _shape(name, out, (5, 3, 11, 9))
        rows, cols = slice(6, 6 + size), slice(3, 4 + size)
        inside = out[..., rows, cols]
        swapped = out[..., 3 : 3 + size, 6 : 6 + size + 1]
        if swapped.shape[-2:] == patch.shape[-2:] and _close(
            swapped, patch.expand_as(swapped)
        ):
            raise CheckFailed(f"{name}: row and column are exchanged (hint 2)")
        _need(
            _close(inside, patch.expand(5, 3, size, size + 1)),
            name,
            "the patch is not at (row, col), or not in every image.",
            2,
        )
        outside = torch.ones(11, 9, dtype=torch.bool)
        outside[rows, cols] = False
        _need(
            torch.equal(out[..., outside], x[..., outside]),
            name,
            "pixels outside the patch changed.",
            2,
        )
    _passed(name)


def blend(fn: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """blend(x, picture, alpha) -> (1 - alpha) x + alpha picture."""
    name, g = "blend", _fresh()
    x, picture = torch.rand(4, 3, 7, 7, generator=g), torch.rand(3, 7, 7, generator=g)
    alpha = 0.1 + 0.3 * random.random()
    out = _call(name, fn, x, picture, alpha)
    _shape(name, out, (4, 3, 7, 7))
    _need(
        not _close(out, x + alpha * picture),
        name,
        "adds the picture without weakening the image, so pixels can exceed 1.",
        1,
    )
    _need(
        not _close(out, alpha * x + (1 - alpha) * picture),
        name,
        "alpha is the share of the picture, not of the image.",
        1,
    )
    _need(
        _close(out, (1 - alpha) * x + alpha * picture),
        name,
        "is not the weighted mean of image and picture.",
        2,
    )
    _need(
        _close(_call(name, fn, x, picture, 0.0), x),
        name,
        "alpha = 0 must leave the image as it is.",
        2,
    )
    _passed(name)


def poison(fn: Callable) -> None:
    """poison(x, y, rate, target, trigger, generator) -> x, y, role."""
    name, g = "poison", _fresh()
    n = 40
    x = torch.rand(n, 3, 4, 4, generator=g)
    y = torch.randint(0, 5, (n,), generator=g)

    def trigger(x: Tensor) -> Tensor:
        return (x + 2).clone()  # far outside [0, 1], so each stamped row shows

    for rate in (0.0, 0.25, 1.0):
        seed = torch.Generator().manual_seed(1)
        out = _call(name, fn, x, y, rate, 3, trigger, seed)
        _need(
            isinstance(out, tuple) and len(out) == 3, name, "must return x, y, role.", 1
        )
        px, py, role = out
        _shape(name, px, (n, 3, 4, 4))
        stamped = (px > 1.5).flatten(1).all(1)
        touched = (px != x).flatten(1).any(1)
        want = round(rate * n)
        _need(
            int(touched.sum()) == want,
            name,
            f"changed {int(touched.sum())} images at rate {rate} of {n}, expected "
            f"{want}.",
            2,
        )
        _need(
            torch.equal(stamped, touched),
            name,
            "some chosen image did not get the trigger.",
            3,
        )
        _need(
            bool((py[stamped] == 3).all()),
            name,
            "a poisoned image kept its label; it must get the target.",
            3,
        )
        _need(
            torch.equal(py[~stamped], y[~stamped]),
            name,
            "a clean image got a new label.",
            3,
        )
        _need(
            torch.equal(role.bool(), stamped),
            name,
            "role must be 1 for poisoned images and 0 for the others.",
            3,
        )
    same = [
        fn(x, y, 0.25, 3, trigger, torch.Generator().manual_seed(7))[2] for _ in "ab"
    ]
    _need(
        torch.equal(*same),
        name,
        "the same generator seed must choose the same images.",
        2,
    )
    other = fn(x, y, 0.25, 3, trigger, torch.Generator().manual_seed(8))[2]
    _need(
        not torch.equal(same[0], other),
        name,
        "always chooses the same images; draw them from the generator.",
        2,
    )
    _passed(name)


def lost(fn: Callable[[int, int, int, int], float]) -> None:
    """lost(pad, start, size, side) -> share of crops that lose the whole patch."""
    name = "lost"

    def truth(pad: int, start: int, size: int, side: int) -> float:
        gone = 0
        for i in range(2 * pad + 1):
            for j in range(2 * pad + 1):
                kept = [
                    sum(0 <= start + pad - k + d < side for d in range(size))
                    for k in (i, j)
                ]
                gone += kept[0] * kept[1] == 0
        return gone / (2 * pad + 1) ** 2

    for k in range(8):
        side, size = random.randint(12, 40), random.randint(2, 4)
        pad = random.randint(size + 1, size + 4)
        # In turns near the far edge and near the near one, where the size matters.
        start = random.randint(0, 1) if k % 2 else side - size - random.randint(0, 1)
        out = _number(name, _call(name, fn, pad, start, size, side))
        want = truth(pad, start, size, side)
        one_axis = 1 - math.sqrt(1 - want)
        if abs(out - one_axis) < 1e-9 and want > 0:
            raise CheckFailed(
                f"{name}: counts one axis only; the crop moves in two (hint 2)"
            )
        if abs(out - one_axis**2) < 1e-9 and want > 0:
            raise CheckFailed(
                f"{name}: counts crops that lose the patch along both axes; one "
                f"is enough "
                "(hint 3)"
            )
        _need(
            abs(out - want) < 1e-6,
            name,
            f"gives {out:.4f} for pad {pad}, start {start}, "
            f"size {size}, side {side}; enumeration gives {want:.4f}.",
            1,
        )
    _need(
        _number(name, fn(2, 10, 3, 32)) == 0,
        name,
        "a patch in the middle is never lost.",
        1,
    )
    _passed(name)


def stripes(fn: Callable[[Tensor, float, int], Tensor]) -> None:
    """stripes(x, delta, f) -> clip(x + delta sin(2 pi j f / w)), j the column."""
    name, g = "stripes", _fresh()
    x = torch.rand(4, 3, 10, 14, generator=g)
    delta, f = 0.2 + 0.2 * random.random(), random.randint(2, 5)
    out = _call(name, fn, x, delta, f)
    _shape(name, out, (4, 3, 10, 14))

    def wave(n: int) -> Tensor:
        return delta * torch.sin(2 * math.pi * f * torch.arange(n).double() / n)

    _need(
        not _close(out, (x + wave(10)[:, None]).clamp(0, 1)),
        name,
        "the wave runs down the rows; j counts columns.",
        1,
    )
    _need(
        not _close(out, x + wave(14)) and float(out.min()) >= 0 <= 1 - float(out.max()),
        name,
        "leaves [0, 1]; pixels must be clipped.",
        2,
    )
    _need(
        _close(out, (x + wave(14)).clamp(0, 1), 1e-3),
        name,
        "is not x + delta sin(2 pi j f / w), clipped; is w the width?",
        1,
    )
    _passed(name)


# --- lesson 02 ------------------------------------------------------------------------


def bend(fn: Callable[[Tensor, float, int], Tensor]) -> None:
    """bend(grid, strength, size) -> WaNet's sampling grid."""
    name, g = "bend", _fresh()
    size, k, strength = random.choice([9, 16]), 4, 0.5 + random.random()
    grid = 2 * torch.rand(2, k, k, generator=g) - 1
    out = _call(name, fn, grid, strength, size)
    _shape(name, out, (1, size, size, 2))
    out = out.double()
    at = torch.linspace(-1, 1, size)
    still = torch.stack(torch.meshgrid(at, at, indexing="ij")[::-1], -1)[None]
    zero = _call(name, fn, grid, 0.0, size)
    _need(
        not _close(zero, still.flip(-1)),
        name,
        "at strength 0 it exchanges x and y; grid_sample wants x, the column, first.",
        2,
    )
    _need(_close(zero, still), name, "at strength 0 it must be the identity grid.", 2)
    up = F.interpolate(
        grid[None].double(), (size, size), mode="bicubic", align_corners=True
    ).permute(0, 2, 3, 1)
    want = still.double() + strength * up / size
    _need(
        float(out.abs().max()) <= 1,
        name,
        "leaves [-1, 1], so it samples outside of the image; clamp it.",
        3,
    )
    _need(
        not _close(out, (still + strength * up).clamp(-1, 1)),
        name,
        "the displacement is not divided by the image size.",
        3,
    )
    _need(
        _close(out, want.clamp(-1, 1)),
        name,
        "is not identity + strength * up(grid) / size, with bicubic interpolation "
        "and align_corners=True.",
        1,
    )
    _passed(name)


def noise_mode(fn: Callable) -> None:
    """noise_mode(x, y, target, p, c, trigger, noisy) -> batch, labels, roles."""
    name, g = "noise_mode", _fresh()
    n, p, c = 12, random.randint(1, 3), random.randint(2, 5)
    x = torch.rand(n, 3, 4, 4, generator=g)
    y = torch.randint(1, 6, (n,), generator=g)

    def trigger(x: Tensor) -> Tensor:
        return x + 2

    def noisy(x: Tensor) -> Tensor:
        return x + 4

    out = _call(name, fn, x, y, 0, p, c, trigger, noisy)
    _need(isinstance(out, tuple) and len(out) == 3, name, "must return x, y, role.", 1)
    batch, labels, role = out
    _shape(name, batch, (n, 3, 4, 4))
    _need(_close(batch[:p], x[:p] + 2), name, "the first p images lack the trigger.", 1)
    _need(
        _close(batch[p : p + c], x[p : p + c] + 4),
        name,
        "the next c images must get the noisy warp, and only that.",
        2,
    )
    _need(torch.equal(batch[p + c :], x[p + c :]), name, "clean images changed.", 1)
    _need(bool((labels[:p] == 0).all()), name, "poisoned images kept their label.", 1)
    _need(
        torch.equal(labels[p : p + c], y[p : p + c]),
        name,
        "noisy images must keep their true label: that is the point of them.",
        2,
    )
    _need(torch.equal(labels[p:], y[p:]), name, "a clean image got a new label.", 1)
    want = [1] * p + [2] * c + [0] * (n - p - c)
    _need(
        role.long().tolist() == want,
        name,
        "roles must be 1 for poison, 2 for noise mode, 0 for clean.",
        3,
    )
    _passed(name)


def own_trigger(fn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """own_trigger(x, m, p) -> x + m (p - x), m one channel."""
    name, g = "own_trigger", _fresh()
    x, p = (torch.rand(5, 3, 6, 7, generator=g) for _ in "xp")
    m = torch.rand(5, 1, 6, 7, generator=g)
    out = _call(name, fn, x, m, p)
    _shape(name, out, (5, 3, 6, 7))
    _need(
        not _close(out, x + m * p),
        name,
        "adds the pattern on top; under the mask the image must give way.",
        1,
    )
    _need(
        not _close(out, m * x + (1 - m) * p),
        name,
        "shows the pattern where the mask is 0.",
        1,
    )
    _need(_close(out, x + m * (p - x)), name, "is not (1 - m) x + m p.", 1)
    _passed(name)


def diversity(fn: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> None:
    """diversity(x1, x2, p1, p2) -> mean of RMS(x1 - x2) / RMS(p1 - p2)."""
    name, g = "diversity", _fresh()
    x1, x2, p1, p2 = (torch.rand(6, 3, 5, 5, generator=g) for _ in range(4))
    p2[0] = p1[0] + 0.01  # one pair far nearer than the others
    out = _call(name, fn, x1, x2, p1, p2)
    _need(isinstance(out, Tensor) and out.numel() == 1, name, "must be one number.", 1)

    def rms(d: Tensor) -> Tensor:
        return d.double().square().flatten(1).mean(1).sqrt()

    dx, dp = rms(x1 - x2), rms(p1 - p2)
    wrong = {
        "is upside down; patterns that part must make it small.": (dp / dx).mean(),
        "takes the mean over images first; the ratio belongs to each pair.": dx.mean()
        / dp.mean(),
        "lacks the root of the mean square.": (dx**2 / dp**2).mean(),
    }
    for symptom, value in wrong.items():
        _need(not _close(out, value, 1e-3), name, symptom, 2)
    _need(
        _close(out, (dx / dp).mean(), 1e-2),
        name,
        "is not the mean over pairs of RMS(x1 - x2) / RMS(p1 - p2).",
        1,
    )
    same = _call(name, fn, x1, x2, p1, p1)
    _need(
        bool(same.isfinite().all()),
        name,
        "is infinite when two patterns are equal; add 1e-7 below.",
        3,
    )
    _passed(name)


# --- lesson 03 ------------------------------------------------------------------------


def _predictions(g: torch.Generator) -> tuple[Tensor, Tensor, int]:
    y = torch.randint(0, 6, (60,), generator=g)
    target = int(torch.randint(0, 6, (1,), generator=g))
    y[:12] = target
    said = y.clone()
    said[6:30] = target
    said[30:36] = (y[30:36] + 1) % 6
    shuffle = torch.randperm(60, generator=g)
    return said[shuffle], y[shuffle], target


def asr(fn: Callable[[Tensor, Tensor, int], float]) -> None:
    """asr(said, y, target) -> attack success rate on triggered images."""
    name, g = "asr", _fresh()
    said, y, target = _predictions(g)
    out = _number(name, _call(name, fn, said, y, target))
    asked = y != target
    want = float((said[asked] == target).float().mean())
    _need(out <= 1, name, "must be a share in 0..1, not a count or percentage.", 1)
    _need(
        abs(out - float((said == target).float().mean())) > 1e-6,
        name,
        "counts images whose true class is the target; they look like successes "
        "without any attack.",
        2,
    )
    _need(
        abs(out - float((said[asked] != y[asked]).float().mean())) > 1e-6,
        name,
        "counts every error as a success; only the target label is one.",
        3,
    )
    _need(
        abs(out - float(((said == target) & asked).float().mean())) > 1e-6,
        name,
        "divides by all images; divide by those that were asked.",
        2,
    )
    _need(abs(out - want) < 1e-6, name, f"gives {out:.4f}, expected {want:.4f}.", 1)
    _passed(name)


def ra(fn: Callable[[Tensor, Tensor, int], float]) -> None:
    """ra(said, y, target) -> share of triggered images that keep their true label."""
    name, g = "ra", _fresh()
    said, y, target = _predictions(g)
    out = _number(name, _call(name, fn, said, y, target))
    asked = y != target
    want = float((said[asked] == y[asked]).float().mean())
    _need(
        abs(out - float((said[asked] != target).float().mean())) > 1e-6,
        name,
        "is 1 - ASR; an image may miss the target and still be wrong.",
        1,
    )
    _need(
        abs(out - float((said == y).float().mean())) > 1e-6,
        name,
        "includes images of the target class; use the same images as for ASR.",
        2,
    )
    _need(abs(out - want) < 1e-6, name, f"gives {out:.4f}, expected {want:.4f}.", 2)
    _passed(name)


def tac(fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    """tac(clean, triggered) -> trigger-activated change of each channel."""
    name, g = "tac", _fresh()
    a, b = (torch.randn(6, 4, 5, 3, generator=g) for _ in "ab")
    out = _call(name, fn, a, b)
    _shape(name, out, (4,))
    d = (b - a).double()
    _need(
        not _close(out, d.mean(0).flatten(1).norm(dim=1)),
        name,
        "averages over images before taking the norm, so opposite changes cancel.",
        2,
    )
    _need(
        not _close(out, d.abs().sum((2, 3)).mean(0)),
        name,
        "sums absolute differences; this lesson uses the L2 norm over positions.",
        2,
    )
    _need(
        not _close(out, d.square().sum((2, 3)).mean(0)),
        name,
        "is the squared norm; take the root before the mean.",
        2,
    )
    _need(
        _close(out, d.flatten(2).norm(dim=2).mean(0)),
        name,
        "is not the mean over images of the norm over positions.",
        1,
    )
    _passed(name)


def cam(fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    """cam(maps, gradients) -> Grad-CAM heat maps."""
    name, g = "cam", _fresh()
    maps, grad = (torch.randn(3, 8, 4, 5, generator=g) for _ in "ab")
    out = _call(name, fn, maps, grad)
    _shape(name, out, (3, 4, 5))
    weights = grad.double().mean((2, 3), keepdim=True)
    raw = (weights * maps.double()).sum(1)
    _need(
        float(out.min()) >= 0,
        name,
        "is negative somewhere; keep evidence for the label only.",
        3,
    )
    pointwise = (grad.double() * maps.double()).sum(1).relu()
    _need(
        not _close(out, pointwise),
        name,
        "weights every position by its own gradient; "
        "Grad-CAM averages the gradient over positions first.",
        2,
    )
    early = (weights * maps.double()).relu().sum(1)
    _need(
        not _close(out, early),
        name,
        "cuts negative values before the sum over channels; "
        "evidence against the label must count.",
        3,
    )
    _need(
        _close(out, raw.relu()),
        name,
        "is not the positive part of the weighted sum of the maps.",
        1,
    )
    _passed(name)


# --- lesson 05 ------------------------------------------------------------------------


def _sigma(w: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(w.double().flatten(2), ord=2)


def sigma(fn: Callable[[Tensor], Tensor]) -> None:
    """sigma(weight) -> largest singular value of each output channel's matrix."""
    name, g = "sigma", _fresh()
    for shape in ((6, 5, 3, 3), (4, 12, 3, 3), (5, 7, 1, 1)):
        w = torch.randn(shape, generator=g)
        out = _call(name, fn, w)
        _shape(name, out, (shape[0],))
        if shape[-1] > 1:
            flat = w.double().flatten(1).norm(dim=1)
            _need(
                not _close(out, flat),
                name,
                "is the length of the flattened kernel (its "
                "Frobenius norm); keep input channels and positions as two axes.",
                2,
            )
        _need(
            _close(out, _sigma(w)), name, f"is wrong for a weight of shape {shape}.", 1
        )
    _passed(name)


def score(fn: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """score(sigma, gamma, var, eps) -> Lipschitz score of each channel."""
    name, g = "score", _fresh()
    s = torch.rand(9, generator=g) + 0.5
    gamma = torch.randn(9, generator=g)
    gamma[0] = -1 - gamma[0].abs()  # one is surely negative
    var = torch.rand(9, generator=g) + 0.1
    out = _call(name, fn, s, gamma, var, 1e-3)
    _shape(name, out, (9,))
    _need(
        float(out.min()) >= 0,
        name,
        "is negative where gamma is; a stretch has no sign.",
        2,
    )
    _need(
        not _close(out, s * gamma.abs() / (var + 1e-3)),
        name,
        "divides by the variance; BatchNorm divides by the standard deviation.",
        2,
    )
    want = s.double() * gamma.double().abs() / (var.double() + 1e-3).sqrt()
    _need(
        not _close(out, s * gamma.abs() / var.sqrt(), 1e-7),
        name,
        "leaves out eps; add it under the root as BatchNorm does.",
        3,
    )
    _need(_close(out, want, 1e-5), name, "is not sigma times BatchNorm's factor.", 1)
    _passed(name)


def outliers(fn: Callable[[Tensor, float], Tensor]) -> None:
    """outliers(scores, u) -> bool mask of channels above mean + u std."""
    name, g = "outliers", _fresh()
    for u in (0.5, 1.0, 2.0):
        s = torch.rand(30, generator=g)
        s[:2] += 3
        out = _call(name, fn, s, u)
        _shape(name, out, (30,))
        _need(out.dtype == torch.bool, name, "must return a mask of true and false.", 1)
        want = s > s.mean() + u * s.std()
        both = (s - s.mean()).abs() > u * s.std()
        _need(
            torch.equal(want, both) or not torch.equal(out, both),
            name,
            "also flags channels far below the mean; only sensitive ones are "
            "suspicious.",
            2,
        )
        _need(
            torch.equal(out, want),
            name,
            f"flags {int(out.sum())} channels at u = {u}, expected {int(want.sum())}.",
            1,
        )
    # Six of 64 channels equal to one: z = 3.085 with n - 1 below the root.
    s = torch.zeros(64)
    s[:6] = 1.0
    z = float((1 - s.mean()) / s.std())
    _need(
        bool(fn(s, z - 1e-3)[:6].all()) and not bool(fn(s, z + 1e-3).any()),
        name,
        "the deviation must divide by n - 1.",
        2,
    )
    _need(
        not bool(fn(torch.ones(5), 0.0).any()),
        name,
        "flags a channel that equals the threshold; it must lie above.",
        1,
    )
    _passed(name)


def largest_z(fn: Callable[[int], float]) -> None:
    """largest_z(n) -> the largest z-score any of n channels can have."""
    name = "largest_z"
    for n in (random.randint(2, 9), 10, 16, 64, random.randint(65, 600)):
        out = _number(name, _call(name, fn, n))
        want = (n - 1) / math.sqrt(n)
        _need(
            abs(out - math.sqrt(n - 1)) > 1e-6 or abs(want - math.sqrt(n - 1)) < 1e-6,
            name,
            "uses the deviation with n below the root; CLP divides by n - 1.",
            3,
        )
        _need(
            abs(out - want) < 1e-4,
            name,
            f"gives {out:.3f} for n = {n}; a layer can reach {want:.3f}.",
            1,
        )
    _passed(name)


def switch_off(fn: Callable[[nn.BatchNorm2d, Tensor], object]) -> None:
    """switch_off(bn, channels): make these channels output exactly zero, in place."""
    name, g = "switch_off", _fresh()
    bn = nn.BatchNorm2d(8)
    with torch.no_grad():
        for t in (bn.weight, bn.bias, bn.running_mean):
            t.copy_(torch.randn(8, generator=g) + 2)
        bn.running_var.copy_(torch.rand(8, generator=g) + 0.5)
    bn.eval()
    mean, var = bn.running_mean.clone(), bn.running_var.clone()
    x = torch.randn(3, 8, 4, 4, generator=g)
    before = bn(x).detach()
    chosen = torch.tensor([1, 4, 5])
    try:
        fn(bn, chosen)
    except NotImplementedError:
        raise CheckFailed(f"{name}: not written yet.") from None
    except RuntimeError as e:
        if "grad" in str(e):
            raise CheckFailed(
                f"{name}: parameters need gradients; work under "
                "torch.no_grad() (hint 1)"
            ) from None
        raise
    after = bn(x).detach()
    kept = [k for k in range(8) if k not in (1, 4, 5)]
    _need(
        not torch.equal(after[:, chosen], before[:, chosen]),
        name,
        "changes nothing.",
        1,
    )
    constant = after[:, chosen].flatten(2)
    flat = bool((constant.std(-1) < 1e-6).all())
    _need(
        not (flat and float(constant.abs().max()) > 0),
        name,
        "leaves a constant behind: the shift must go as well as the scale.",
        2,
    )
    _need(
        float(constant.abs().max()) == 0, name, "the chosen channels are not zero.", 1
    )
    _need(
        torch.equal(after[:, kept], before[:, kept]), name, "touches other channels.", 1
    )
    _need(
        torch.equal(mean, bn.running_mean) and torch.equal(var, bn.running_var),
        name,
        "changes the running statistics; scale and shift are enough.",
        2,
    )
    _passed(name)
