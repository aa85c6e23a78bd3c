"""The exercise checks of lesson 05."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

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


def _sigma(w: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(w.double().flatten(2), ord=2)


@guarded
def sigma(fn: Callable[[Tensor], Tensor]) -> None:
    """sigma(weight) -> largest singular value of each output channel's matrix."""
    name, g = "sigma", fresh()
    for shape in ((6, 5, 3, 3), (4, 12, 3, 3), (5, 7, 1, 1)):
        w = torch.randn(shape, generator=g)
        out = call(name, fn, w)
        shaped(name, out, (shape[0],))
        if shape[-1] > 1:
            flat = w.double().flatten(1).norm(dim=1)
            need(
                not close(out, flat),
                name,
                "is the length of the flattened kernel (its "
                "Frobenius norm); keep input channels and positions as two axes.",
                2,
            )
        need(close(out, _sigma(w)), name, f"is wrong for a weight of shape {shape}.", 1)
    passed(name)


@guarded
def score(fn: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """score(sigma, gamma, var, eps) -> Lipschitz score of each channel."""
    name, g = "score", fresh()
    s = torch.rand(9, generator=g) + 0.5
    gamma = torch.randn(9, generator=g)
    gamma[0] = -1 - gamma[0].abs()  # one is surely negative
    var = torch.rand(9, generator=g) + 0.1
    out = call(name, fn, s, gamma, var, 1e-3)
    shaped(name, out, (9,))
    need(
        float(out.min()) >= 0,
        name,
        "is negative where gamma is; a stretch has no sign.",
        2,
    )
    need(
        not close(out, s * gamma.abs() / (var + 1e-3)),
        name,
        "divides by the variance; BatchNorm divides by the standard deviation.",
        2,
    )
    want = s.double() * gamma.double().abs() / (var.double() + 1e-3).sqrt()
    need(
        not close(out, s * gamma.abs() / var.sqrt(), 1e-7),
        name,
        "leaves out eps; add it under the root as BatchNorm does.",
        3,
    )
    need(close(out, want, 1e-5), name, "is not sigma times BatchNorm's factor.", 1)
    passed(name)


@guarded
def outliers(fn: Callable[[Tensor, float], Tensor]) -> None:
    """outliers(scores, u) -> bool mask of channels above mean + u std."""
    name, g = "outliers", fresh()
    for u in (0.5, 1.0, 2.0):
        s = torch.rand(30, generator=g)
        s[:2] += 3
        out = call(name, fn, s, u)
        shaped(name, out, (30,))
        need(out.dtype == torch.bool, name, "must return a mask of true and false.", 1)
        want = s > s.mean() + u * s.std()
        both = (s - s.mean()).abs() > u * s.std()
        need(
            torch.equal(want, both) or not torch.equal(out, both),
            name,
            "also flags channels far below the mean; only sensitive ones are suspicious.",
            2,
        )
        need(
            torch.equal(out, want),
            name,
            f"flags {int(out.sum())} channels at u = {u}, expected {int(want.sum())}.",
            1,
        )
    # Six of 64 channels equal to one: z = 3.085 with n - 1 below the root.
    s = torch.zeros(64)
    s[:6] = 1.0
    z = float((1 - s.mean()) / s.std())
    need(
        bool(fn(s, z - 1e-3)[:6].all()) and not bool(fn(s, z + 1e-3).any()),
        name,
        "the deviation must divide by n - 1.",
        2,
    )
    need(
        not bool(fn(torch.ones(5), 0.0).any()),
        name,
        "flags a channel that equals the threshold; it must lie above.",
        1,
    )
    passed(name)


@guarded
def largest_z(fn: Callable[[int], float]) -> None:
    """largest_z(n) -> the largest z-score any of n channels can have."""
    name = "largest_z"
    for n in (random.randint(2, 9), 10, 16, 64, random.randint(65, 600)):
        out = number(name, call(name, fn, n))
        want = (n - 1) / math.sqrt(n)
        need(
            abs(out - math.sqrt(n - 1)) > 1e-6 or abs(want - math.sqrt(n - 1)) < 1e-6,
            name,
            "uses the deviation with n below the root; CLP divides by n - 1.",
            3,
        )
        need(
            abs(out - want) < 1e-4,
            name,
            f"gives {out:.3f} for n = {n}; a layer can reach {want:.3f}.",
            1,
        )
    passed(name)


@guarded
def switch_off(fn: Callable[[nn.BatchNorm2d, Tensor], object]) -> None:
    """switch_off(bn, channels): make these channels output exactly zero, in place."""
    name, g = "switch_off", fresh()
    bn = nn.BatchNorm2d(8)
    assert bn.running_mean is not None and bn.running_var is not None  # it keeps them
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
    except RuntimeError as e:
        if "grad" in str(e):
            raise CheckFailed(
                f"{name}: parameters need gradients; work under torch.no_grad() (hint 1)"
            ) from None
        raise
    after = bn(x).detach()
    kept = [k for k in range(8) if k not in (1, 4, 5)]
    need(
        not torch.equal(after[:, chosen], before[:, chosen]),
        name,
        "changes nothing.",
        1,
    )
    constant = after[:, chosen].flatten(2)
    flat = bool((constant.std(-1) < 1e-6).all())
    need(
        not (flat and float(constant.abs().max()) > 0),
        name,
        "leaves a constant behind: the shift must go as well as the scale.",
        2,
    )
    need(float(constant.abs().max()) == 0, name, "the chosen channels are not zero.", 1)
    need(torch.equal(after[:, kept], before[:, kept]), name, "touches other channels.", 1)
    need(
        torch.equal(mean, bn.running_mean) and torch.equal(var, bn.running_var),
        name,
        "changes the running statistics; scale and shift are enough.",
        2,
    )
    passed(name)
