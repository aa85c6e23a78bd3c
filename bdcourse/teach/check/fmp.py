"""The exercise checks of lesson 06."""

from __future__ import annotations

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
    passed,
    shaped,
)


@guarded
def random_start(fn: Callable[[Tensor, float, torch.Generator], Tensor]) -> None:
    """random_start(x, start, generator) -> clip(x +- start), a sign for each pixel."""
    name, g = "random_start", fresh()
    x = 0.3 + 0.4 * torch.rand(6, 3, 8, 8, generator=g)
    out = call(name, fn, x, 0.1, torch.Generator().manual_seed(5))
    shaped(name, out, tuple(x.shape))
    move = out - x
    need(
        close(move.abs(), torch.full_like(x, 0.1), 1e-5),
        name,
        "does not move each pixel by exactly start, up or down.",
        1,
    )
    need(
        0.3 < float((move > 0).float().mean()) < 0.7,
        name,
        "moves nearly all pixels the same way; each gets a sign of its own.",
        2,
    )
    need(
        not torch.equal(move[0].sign(), move[1].sign())
        and float(move.sign().mean((0, 2, 3)).abs().max()) < 0.9
        and not torch.equal(move[:, 0].sign(), move[:, 1].sign()),
        name,
        "shares one sign between images or colors; each pixel gets its own.",
        2,
    )
    again = fn(x, 0.1, torch.Generator().manual_seed(5))
    other = fn(x, 0.1, torch.Generator().manual_seed(6))
    need(
        torch.equal(out, again) and not torch.equal(out, other),
        name,
        "does not draw from the generator that it is given.",
        2,
    )
    edge = fn(torch.rand(4, 3, 8, 8, generator=g).round(), 0.1, g)
    need(
        0 <= float(edge.min()) and float(edge.max()) <= 1,
        name,
        "leaves [0, 1]: the result must be an image.",
        3,
    )
    passed(name)


@guarded
def departure(fn: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """departure(f0, f, i) -> mean squared difference of map i, differentiable."""
    name, g = "departure", fresh()
    for shape in ((4, 5, 3, 3), (2, 7, 4, 6)):
        f0 = torch.randn(shape, generator=g).requires_grad_()
        f = torch.randn(shape, generator=g)
        i = int(torch.randint(1, shape[1], (1,), generator=g))
        out = call(name, fn, f0, f, i)
        shaped(name, out, ())
        gap = f0.detach().double() - f.double()
        want = gap[:, i].square().mean()
        need(
            not close(out.detach(), gap.square().mean(), 1e-5),
            name,
            "averages over all maps; only map i may count.",
            1,
        )
        need(
            not close(out.detach(), gap[i % len(gap)].square().mean(), 1e-5),
            name,
            "takes image i instead of map i; maps are the second axis.",
            1,
        )
        need(
            not close(out.detach(), gap[:, i].square().sum(), 1e-5),
            name,
            "sums where the formula takes the mean over images and positions.",
            2,
        )
        need(
            close(out.detach(), want, 1e-5),
            name,
            "is not the mean squared difference of map i.",
            1,
        )
        need(
            out.requires_grad,
            name,
            "has lost its gradient: no item(), no detach() on f0.",
            2,
        )
        (grad,) = torch.autograd.grad(out, f0)
        need(
            close(grad[:, i], 2 * gap[:, i] / gap[:, i].numel(), 1e-5),
            name,
            "has the right value and a wrong gradient.",
            2,
        )
    passed(name)


@guarded
def push(fn: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """push(x0, gradient, epsilon) -> clip(x0 + epsilon sign(gradient))."""
    name, g = "push", fresh()
    x0 = 0.2 + 0.6 * torch.rand(4, 3, 5, 5, generator=g)
    # As small as real ones are: whoever forgets the sign hardly moves.
    gradient = 1e-4 * torch.randn(4, 3, 5, 5, generator=g)
    gradient[0, 0, 0] = 0.0
    out = call(name, fn, x0, gradient, 0.1)
    shaped(name, out, tuple(x0.shape))
    need(
        not close(out, x0 - 0.1 * gradient.sign(), 1e-6),
        name,
        "steps down; J is to grow.",
        1,
    )
    need(
        float((out - x0).abs().max()) > 0.05 and not close(out, x0 + 0.1, 1e-6),
        name,
        "steps along the gradient itself; only its sign counts.",
        1,
    )
    need(
        close(out, x0 + 0.1 * gradient.sign(), 1e-6),
        name,
        "is not x0 plus epsilon times the gradient's sign.",
        1,
    )
    stack = torch.randn(3, 4, 3, 5, 5, generator=g)
    many = fn(x0, stack, 0.9)
    shaped(name, many, tuple(stack.shape))
    need(
        0 <= float(many.min()) and float(many.max()) <= 1,
        name,
        "leaves [0, 1]: the result must be an image.",
        2,
    )
    need(
        close(many, (x0 + 0.9 * stack.sign()).clamp(0, 1), 1e-6),
        name,
        "does not clip to [0, 1], or not the pushed image.",
        2,
    )
    passed(name)


@guarded
def pulls(fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    """pulls(f0, f) -> dJ_i/df0 of every map i: (c, n, c, h, w)."""
    name, g = "pulls", fresh()
    for n, c, h in ((3, 5, 2), (4, 2, 3)):
        f0, f = (torch.randn(n, c, h, h, generator=g) for _ in range(2))
        out = call(name, fn, f0, f)
        shaped(name, out, (c, n, c, h, h), 1)
        leaf = f0.double().requires_grad_()
        want = torch.stack(
            [
                torch.autograd.grad((leaf - f.double())[:, i].square().mean(), leaf)[0]
                for i in range(c)
            ]
        )
        own = torch.eye(c, dtype=torch.bool)[:, None, :, None, None].expand_as(out)
        need(
            bool((out[~own] == 0).all()),
            name,
            "pulls at other maps too: row i is zero outside map i.",
            2,
        )
        need(
            not close(out, want / 2, 1e-5),
            name,
            "lacks the factor 2 of the square's derivative.",
            1,
        )
        need(
            not close(out, want * n * h * h, 1e-5),
            name,
            "is the gradient of a sum; J is a mean over images and positions.",
            1,
        )
        need(not close(out, -want, 1e-5), name, "has the wrong sign.", 1)
        need(close(out, want, 1e-5), name, "is not the gradient of J_i by f0.", 3)
    passed(name)


@guarded
def harm(fn: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """harm(logits, y) -> accuracy and mean cross-entropy of each map's images."""
    name, g = "harm", fresh()
    for m, n, k in ((5, 12, 4), (3, 7, 9)):
        logits = 2 * torch.randn(m, n, k, generator=g)
        y = torch.randint(k, (n,), generator=g)
        logits[0, torch.arange(n), y] += 20  # a map that harms nobody
        out = call(name, fn, logits, y)
        if not (isinstance(out, tuple) and len(out) == 2):
            raise CheckFailed(f"{name}: must return two tensors, acc, loss (hint 1)")
        acc, loss = out
        shaped(name, acc, (m,))
        shaped(name, loss, (m,))
        hits = (logits.argmax(2) == y).double().mean(1)
        need(
            not close(acc, 1 - hits, 1e-5),
            name,
            "returns the share of errors; the score is the accuracy.",
            1,
        )
        need(close(acc, hits, 1e-5), name, "has a wrong accuracy.", 1)
        each = -logits.double().log_softmax(2)[:, torch.arange(n), y]
        need(
            not close(loss, each.sum(1), 1e-4),
            name,
            "sums the cross-entropy over images; take the mean.",
            2,
        )
        need(close(loss, each.mean(1), 1e-4), name, "has a wrong cross-entropy.", 2)
    passed(name)


@guarded
def worst_maps(fn: Callable[[Tensor, Tensor, float, int], Tensor]) -> None:
    """worst_maps(acc, loss, p, least) -> positions of the maps to prune."""
    name, g = "worst_maps", fresh()
    for n, p, least in ((32, 8, 0), (30, 4, 1), (8, 64, 0), (8, 64, 1), (512, 64, 0)):
        order = torch.randperm(n, generator=g)
        # The last two thirds tie at 1.0, and of the rest every three.
        acc = (order // 3 / n * 9).clamp(max=1)
        loss = torch.rand(n, generator=g)
        rank = sorted(range(n), key=lambda i: (float(acc[i]), -float(loss[i])))
        m = max(least, int(n // p))
        want = sorted(rank[:m])
        out = call(name, fn, acc, loss, p, least)
        need(
            isinstance(out, Tensor) and out.ndim == 1,
            name,
            "must return a tensor of positions.",
            1,
        )
        # Millions would become as many Python objects below.
        need(len(out) <= n, name, f"takes {len(out)} positions of {n}.", 1)
        got = sorted(int(i) for i in out)
        text = f"of {n} maps at p = {p} and least = {least}"
        need(
            len(got) == m,
            name,
            f"takes {len(got)} {text}, expected max(least, floor({n} / {p})) = {m}.",
            1,
        )
        best = sorted(rank[::-1][:m])
        need(
            got != best or got == want,
            name,
            "takes the maps with the highest accuracy; those harm least.",
            1,
        )
        low = sorted(range(n), key=lambda i: (float(acc[i]), float(loss[i])))[:m]
        need(
            got == want or got != sorted(low),
            name,
            "breaks ties the wrong way; of equal accuracies the higher loss is worse.",
            2,
        )
        first = sorted(range(n), key=lambda i: float(acc[i]))[:m]
        need(
            got == want or got != sorted(first),
            name,
            "takes the first of equal accuracies; ties go to the higher loss.",
            2,
        )
        need(got == want, name, f"takes other maps {text}.", 3)
    tied = fn(torch.ones(16), torch.arange(16) * 7 % 16, 8, 0)  # losses 14, 15
    need(
        sorted(tied.tolist()) == [2, 9],
        name,
        "takes the first of equal accuracies; ties go to the higher loss.",
        2,
    )
    passed(name)
