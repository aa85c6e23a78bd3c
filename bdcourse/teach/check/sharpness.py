"""The exercise checks of lesson 08b."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

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

Product = Callable[[Tensor], Tensor]


def _symmetric(eigenvalues: Tensor, g: torch.Generator) -> Tensor:
    """A dense matrix with these eigenvalues."""
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    return q @ torch.diag(eigenvalues.double()) @ q.T


@guarded
def trace_draws(fn: Callable[[Product, int, int, torch.Generator], Tensor]) -> None:
    """trace_draws(product, p, draws, generator) -> v . A v for random signs v."""
    name, g = "trace_draws", fresh()
    a = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    shapes: list[tuple[int, ...]] = []

    def by(matrix: Tensor) -> Product:
        def product(v: Tensor) -> Tensor:
            shapes.append(tuple(v.shape))
            need(
                v.is_floating_point(),
                name,
                "draws whole numbers; products need floats.",
                1,
            )
            return v @ matrix.to(v)

        return product

    def draw(matrix: Tensor, p: int, n: int, seed: int) -> Tensor:
        source = torch.Generator().manual_seed(seed)
        out = call(name, fn, by(matrix), p, n, source)
        shaped(name, out, (n,))
        return out.double()

    seed = int(torch.randint(10**9, (), generator=g))
    out = draw(a, 2, 400, seed)
    need(bool(shapes), name, "never calls product.", 2)
    need(
        torch.equal(out, draw(a, 2, 400, seed)),
        name,
        "does not draw from the generator that it is given.",
        1,
    )
    among = {round(float(v), 4) for v in out}
    need(
        not among <= {0.0, 2.0, 3.0, 7.0} or among <= {3.0, 7.0},
        name,
        "draws zeros and ones; signs are -1 and 1.",
        1,
    )
    need(
        not among <= {1.5, 3.5},
        name,
        "is a mean over the entries of v * Av; it is their sum.",
        3,
    )
    need(
        not among <= {-7.0, -1.0, 1.0, 7.0} or among == {7.0},
        name,
        "adds up A v; multiply by v before.",
        3,
    )
    need(
        len(among) < 8 or not close(out.mean(), torch.tensor(5.0), 0.5),
        name,
        "draws normal numbers; random signs have less variance.",
        1,
    )
    need(among <= {3.0, 7.0}, name, "is not v . A v for signs v.", 3)
    need(
        len(among) == 2,
        name,
        "is always the same; every draw has a v, and every entry a sign, of its own.",
        1,
    )
    need(
        not torch.equal(out, draw(a, 2, 400, seed + 1)),
        name,
        "has a generator of its own; draw from the one that it is given.",
        1,
    )
    eigenvalues = torch.randn(6, generator=g)
    wide = _symmetric(eigenvalues, g)
    out = draw(wide, 6, 2000, seed)
    off = wide - torch.diag(wide.diagonal())
    error = (2 * off.square().sum() / 2000).sqrt()
    need(
        bool((out.mean() - wide.trace()).abs() < 7 * error),
        name,
        "has another mean than the trace.",
        1,
    )
    passed(name)


@guarded
def top_eigenvalue(fn: Callable[[Product, Tensor, int], float]) -> None:
    """top_eigenvalue(product, v, steps) -> eigenvalue of largest absolute value."""
    name, g = "top_eigenvalue", fresh()

    def near(value: float, want: float) -> bool:
        return math.isclose(value, want, rel_tol=1e-3)

    for sign in (1.0, -1.0):
        n = 8
        calls: list[Tensor] = []
        rest = 200 * torch.rand(n - 1, generator=g) - 100
        top = sign * (300 + 200 * float(torch.rand((), generator=g)))
        a = _symmetric(torch.cat([torch.tensor([top]), rest]), g).float()

        def product(v: Tensor, a=a, calls=calls) -> Tensor:
            calls.append(v)
            return a.to(v) @ v

        start = 4 * torch.randn(n, generator=g)
        out = number(name, call(name, fn, product, start, 60))
        need(bool(calls), name, "never calls product.", 1)
        need(
            math.isfinite(out),
            name,
            "is not finite; make v a unit vector in every step.",
            1,
        )
        need(
            abs(out) < 1e8,
            name,
            "grows with every step; make v a unit vector each time.",
            1,
        )
        need(
            sign > 0 or not near(out, -top),
            name,
            "has lost the sign: |A v| is a length, v . A v is the eigenvalue.",
            3,
        )
        need(
            len(calls) > 30 or near(out, top),
            name,
            f"calls product {len(calls)} times in 60 steps.",
            2,
        )
        first = float(start @ a @ start / (start @ start))
        need(
            not near(out, first),
            name,
            "still looks at the first v; go on with A v.",
            2,
        )
        need(
            near(out, top),
            name,
            f"gives {out:.4g}, and the eigenvalue is {top:.4g}.",
            3,
        )
    passed(name)


@guarded
def filter_direction(fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    """filter_direction(w, d) -> d with, in each filter, the norm that w has there."""
    name, g = "filter_direction", fresh()
    for shape in ((4, 3, 2, 2), (5, 6)):
        w, d = torch.randn(2, *shape, generator=g) * torch.tensor([3.0, 1.0]).view(
            2, *[1] * len(shape)
        )
        w = w * (1 + torch.arange(shape[0])).view(-1, *[1] * (len(shape) - 1))
        out = call(name, fn, w, d)
        shaped(name, out, shape)
        norms = (t.flatten(1).norm(dim=1) for t in (w, d))
        wn, dn = (n.view(-1, *[1] * (len(shape) - 1)) for n in norms)
        need(
            not close(out, d / dn),
            name,
            "gives every filter length 1; multiply by the length of w's.",
            2,
        )
        need(
            not close(out, d * wn),
            name,
            "does not divide by the length of d's filter.",
            2,
        )
        need(
            not close(out, d * w.norm() / d.norm()),
            name,
            "scales the whole tensor at once; each filter by itself.",
            1,
        )
        other = [i for i in range(len(shape)) if i != 1]
        by_input = [torch.linalg.vector_norm(t, dim=other, keepdim=True) for t in (w, d)]
        need(
            not close(out, d * by_input[0] / by_input[1]),
            name,
            "takes the second axis; a filter is a row of the first.",
            1,
        )
        need(
            not close(out, w * dn / wn),
            name,
            "exchanges w and d.",
            2,
        )
        need(
            close(out.flatten(1).norm(dim=1), w.flatten(1).norm(dim=1)),
            name,
            "has filters of other lengths than w.",
            2,
        )
        need(close(out, d * wn / dn), name, "points elsewhere than d.", 3)
    passed(name)


@guarded
def fake_variance(fn: Callable[[Sequence[float], int], float]) -> None:
    """fake_variance(lengths, m) -> variance of the released "trace"."""
    name, g = "fake_variance", fresh()
    p = int(torch.randint(3, 7, (), generator=g))
    lengths = (1 + torch.rand(p, generator=g)).tolist()
    m = int(torch.randint(5, 30, (), generator=g))
    out = number(name, call(name, fn, lengths, m))
    square = [s * s for s in lengths]
    counts = range(p, 0, -1)

    def near(value: float) -> bool:
        return math.isclose(out, value, rel_tol=1e-6)

    pairs = list(zip(counts, square, strict=True))
    want = sum(c * c * s for c, s in pairs) / m
    need(not near(want * m), name, "is not divided by the number of probes.", 3)
    need(
        not near(want / m),
        name,
        "divides by m twice: m probes are averaged, each of the same variance.",
        3,
    )
    need(not near(sum(square) / m), name, "counts every tensor once.", 1)
    need(
        not near(sum(c * s for c, s in pairs) / m),
        name,
        "does not square the counts: Var(c X) = c^2 Var(X).",
        2,
    )
    need(
        not near(sum(c * c * v for c, v in zip(counts, lengths, strict=True)) / m),
        name,
        "does not square the lengths.",
        2,
    )
    upward = zip(range(1, p + 1), square, strict=True)
    need(
        not near(sum(c * c * s for c, s in upward) / m),
        name,
        "counts the last tensor most; it is the first.",
        1,
    )
    short = zip(range(p - 1, -1, -1), square, strict=True)
    need(
        not near(sum(c * c * s for c, s in short) / m),
        name,
        "counts tensor k only P - k times: the first of P is there P times.",
        1,
    )
    need(
        not near(sum(c * v for c, v in zip(counts, lengths, strict=True)) ** 2 / m),
        name,
        "adds before it squares; independent terms add their variances.",
        2,
    )
    need(near(want), name, "is not the sum of (P - k + 1)^2 |g_k|^2, over m.", 3)
    passed(name)
