"""The exercise checks of lesson 03."""

from __future__ import annotations

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


def _predictions(g: torch.Generator) -> tuple[Tensor, Tensor, int]:
    """60 answers, true classes and a target; every kind of answer is among them."""
    target = int(torch.randint(0, 6, (1,), generator=g))
    # Steps from the target: 0 is the target itself, so that chance cannot make two
    # kinds of answer one.
    step = torch.randint(1, 6, (60,), generator=g)
    step[:12] = 0
    guess = step.clone()
    guess[6:30] = 0
    guess[30:39] = step[30:39] % 5 + 1  # wrong, and not the target
    y, said = (target + step) % 6, (target + guess) % 6
    shuffle = torch.randperm(60, generator=g)
    return said[shuffle], y[shuffle], target


@guarded
def asr(fn: Callable[[Tensor, Tensor, int], float]) -> None:
    """asr(said, y, target) -> attack success rate on triggered images."""
    name, g = "asr", fresh()
    said, y, target = _predictions(g)
    out = number(name, call(name, fn, said, y, target))
    asked = y != target
    want = float((said[asked] == target).float().mean())
    need(out <= 1, name, "must be a share in 0..1, not a count or percentage.", 1)
    need(
        abs(out - float((said == target).float().mean())) > 1e-6,
        name,
        "counts images whose true class is the target; they look like successes "
        "without any attack.",
        2,
    )
    need(
        abs(out - float((said[asked] != y[asked]).float().mean())) > 1e-6,
        name,
        "counts every error as a success; only the target label is one.",
        3,
    )
    need(
        abs(out - float(((said == target) & asked).float().mean())) > 1e-6,
        name,
        "divides by all images; divide by those that were asked.",
        2,
    )
    need(abs(out - want) < 1e-6, name, f"gives {out:.4f}, expected {want:.4f}.", 1)
    passed(name)


@guarded
def ra(fn: Callable[[Tensor, Tensor, int], float]) -> None:
    """ra(said, y, target) -> share of triggered images that keep their true label."""
    name, g = "ra", fresh()
    said, y, target = _predictions(g)
    out = number(name, call(name, fn, said, y, target))
    asked = y != target
    want = float((said[asked] == y[asked]).float().mean())
    need(
        abs(out - float((said[asked] != target).float().mean())) > 1e-6,
        name,
        "is 1 - ASR; an image may miss the target and still be wrong.",
        1,
    )
    need(
        abs(out - float((said == y).float().mean())) > 1e-6,
        name,
        "includes images of the target class; use the same images as for ASR.",
        2,
    )
    need(abs(out - want) < 1e-6, name, f"gives {out:.4f}, expected {want:.4f}.", 2)
    passed(name)


@guarded
def tac(fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    """tac(clean, triggered) -> trigger-activated change of each channel."""
    name, g = "tac", fresh()
    a, b = (torch.randn(6, 4, 5, 3, generator=g) for _ in "ab")
    out = call(name, fn, a, b)
    shaped(name, out, (4,))
    d = (b - a).double()
    need(
        not close(out, d.mean(0).flatten(1).norm(dim=1)),
        name,
        "averages over images before taking the norm, so opposite changes cancel.",
        2,
    )
    need(
        not close(out, d.abs().sum((2, 3)).mean(0)),
        name,
        "sums absolute differences; this lesson uses the L2 norm over positions.",
        2,
    )
    need(
        not close(out, d.square().sum((2, 3)).mean(0)),
        name,
        "is the squared norm; take the root before the mean.",
        2,
    )
    need(
        close(out, d.flatten(2).norm(dim=2).mean(0)),
        name,
        "is not the mean over images of the norm over positions.",
        1,
    )
    passed(name)


@guarded
def cam(fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    """cam(maps, gradients) -> Grad-CAM heat maps."""
    name, g = "cam", fresh()
    maps, grad = (torch.randn(3, 8, 4, 5, generator=g) for _ in "ab")
    out = call(name, fn, maps, grad)
    shaped(name, out, (3, 4, 5))
    weights = grad.double().mean((2, 3), keepdim=True)
    raw = (weights * maps.double()).sum(1)
    need(
        float(out.min()) >= 0,
        name,
        "is negative somewhere; keep evidence for the label only.",
        3,
    )
    pointwise = (grad.double() * maps.double()).sum(1).relu()
    need(
        not close(out, pointwise),
        name,
        "weights every position by its own gradient; "
        "Grad-CAM averages the gradient over positions first.",
        2,
    )
    early = (weights * maps.double()).relu().sum(1)
    need(
        not close(out, early),
        name,
        "cuts negative values before the sum over channels; evidence against the label must count.",
        3,
    )
    need(
        close(out, raw.relu()),
        name,
        "is not the positive part of the weighted sum of the maps.",
        1,
    )
    passed(name)
