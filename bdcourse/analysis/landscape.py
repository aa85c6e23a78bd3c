"""The loss around the weights: Hessian, its spectrum, lines and planes.

The Hessian is that of the mean loss over some images, -log p(y | x, w), as automatic
differentiation sees it: a ReLU has no curvature of its own. BatchNorm is in eval mode
throughout. A network of p weights has p eigenvalues; what is affordable is H v, at the
price of two backward passes, and everything here is made of that. Derived in lesson 08.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.analysis.curvature import (
    Batch,
    Traced,
    answered,
    batches,
    chosen_parameters,
    examining,
    gradient,
    traced,
)
from bdcourse.likelihoods import SOFTMAX, Likelihood, require_likelihood
from bdcourse.models import evaluating, wide
from bdcourse.seeds import random_normal, random_signs
from bdcourse.surgery import require_sound


def hessian_product(
    model: nn.Module,
    images: Batch,
    vectors: Tensor,
    *,
    chunk: int = 50,
    weights: Sequence[str] | None = None,
    likelihood: Likelihood = SOFTMAX,
) -> Tensor:
    """H v for the Hessian H of the mean loss over the images, at two backward passes.

    Args:
        vectors: (p,), or (k, p) for k of them: they share all but the last pass.
        chunk: images at once; it bounds memory and does not change the result.

    Returns:
        shaped like `vectors`.
    """
    if not isinstance(vectors, Tensor) or vectors.ndim not in (1, 2):
        raise ValueError(f"vectors must be of shape (p,) or (k, p), not {require.kind(vectors)}.")
    require_likelihood(likelihood)
    rows = vectors.reshape(-1, vectors.shape[-1])
    out = torch.zeros_like(rows)
    with examining(model, weights) as found:
        w = list(found.values())
        size = sum(v.numel() for v in w)
        if rows.shape[1] != size:
            raise ValueError(
                f"vectors must have {size} entries, one a weight, not {rows.shape[1]}."
            )
        for x, y in batches(model, images, chunk):
            said = answered(model, x, y, likelihood)
            loss = -likelihood.log_prob(said, y).sum() / len(images.y)
            g = torch.cat([t.flatten() for t in gradient(loss, w, create_graph=True)])
            for i, v in enumerate(rows):
                h = torch.autograd.grad(
                    g, w, v, retain_graph=i + 1 < len(rows), materialize_grads=True
                )
                out[i] += torch.cat([t.flatten() for t in h])
    return out.view_as(vectors)


Probe = Callable[[Tensor, torch.Generator], Tensor]
Product = Callable[[Tensor], Tensor]  # v -> A v for rows v, (k, p) or (p,), A symmetric


def _without(v: Tensor, basis: Tensor) -> Tensor:
    """v less its part in the span of orthonormal rows (m, p)."""
    for _ in range(2):  # where little remains, once would leave rounding errors
        v = v - (v @ basis.T) @ basis
    return v


def _unit(v: Tensor) -> Tensor:
    return v / v.norm().clamp(min=1e-30)


def power(
    product: Product, starts: Tensor, steps: int = 100, tolerance: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """The eigenvalues of largest absolute value, one after the other, with their
    vectors: (k,), (k, p).

    Power iteration; each vector is kept orthogonal to those found before (deflation).
    Ends when the value changes by less than `tolerance` of itself.

    Args:
        starts: (k, p), where to start; random.
    """
    values, vectors = [], starts.new_zeros(0, starts.shape[1])
    for v in starts:
        v, value = _unit(_without(v, vectors)), math.inf
        for _ in range(steps):
            av = product(v)
            last, value = value, float(v @ av)
            if abs(value - last) <= tolerance * abs(value):
                break
            v = _unit(_without(av, vectors))
        values.append(value)
        vectors = torch.cat([vectors, v[None]])
    return starts.new_tensor(values), vectors


def hutchinson(
    product: Product,
    like: Tensor,
    draws: int,
    generator: torch.Generator,
    probe: Probe = random_signs,
) -> Tensor:
    """v . A v for random v, each with mean Tr A: (draws,).

    Args:
        like: a vector (p,) of the size, dtype and device that `product` takes.
        probe: how v is drawn, with mean 0 and variance 1. Signs are never worse than
            `random_normal`: the diagonal of A adds nothing to their variance.
    """
    out = []
    for at in range(0, draws, 5):  # five share most of the work
        v = probe(like.expand(min(5, draws - at), -1), generator)
        out.append((v * product(v)).sum(1))
    return torch.cat(out).cpu().double()


def lanczos(product: Product, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the quadrature that `start` sees the spectrum with.

    For start v of norm 1: sum of weight * f(node) = v . f(A) v for every polynomial f
    of degree below 2 * steps; the outer nodes soon lie on the outer eigenvalues. Every
    new vector is made orthogonal to all earlier ones: rounding would otherwise bring
    eigenvalues back as ghosts.

    Returns:
        (m,), (m,) float64, rising nodes; m < steps if the vectors run out.
    """
    steps = min(steps, len(start))
    basis = start.new_zeros(steps, len(start))
    t = torch.zeros(steps, steps, dtype=torch.float64)  # A in that basis: tridiagonal
    v, b = start, float(start.norm())
    for i in range(steps):
        if i > 0 and b <= 1e-6 * float(t.abs().max()):
            t = t[:i, :i]  # the rest is rounding
            break
        basis[i] = v / b
        if i > 0:
            t[i, i - 1] = t[i - 1, i] = b
        v = product(basis[i])
        t[i, i] = float(v @ basis[i])
        v = _without(v, basis[: i + 1])
        b = float(v.norm())
    nodes, vectors = torch.linalg.eigh(t)
    return nodes, vectors[0].square()


def hessian_top(
    model: nn.Module,
    images: Batch,
    k: int = 1,
    *,
    steps: int = 100,
    tolerance: float = 1e-3,
    generator: torch.Generator,
    **options,
) -> tuple[Tensor, Tensor]:
    """The k eigenvalues of the Hessian of largest absolute value and their vectors:
    (k,), (k, p).

    Args:
        steps, tolerance: see :func:`power`.
        options: `chunk`, `weights`, `likelihood` of :func:`hessian_product`.
    """
    require.generator(generator)
    require.number("tolerance", tolerance, 0)
    like = _flat(model, options.get("weights"))
    known = 1 <= require.whole("k", k) <= len(like)
    if not known or require.whole("steps", steps) < 1:
        raise ValueError(
            f"k must lie in 1..{len(like)} and steps be at least 1, not {k} and {steps}."
        )
    starts = torch.randn(
        k, len(like), generator=generator, device=generator.device, dtype=like.dtype
    )
    return power(
        lambda v: hessian_product(model, images, v, **options),
        starts.to(like),
        steps,
        tolerance,
    )


def hessian_trace(
    model: nn.Module,
    images: Batch,
    *,
    draws: int = 20,
    generator: torch.Generator,
    **options,
) -> Traced:
    """Trace of the Hessian by Hutchinson's estimator with random signs.

    Args:
        options: `chunk`, `weights`, `likelihood` of :func:`hessian_product`.
    """
    require.generator(generator)
    if require.whole("draws", draws) < 1:
        raise ValueError(f"draws must be at least 1, not {draws}.")
    like = _flat(model, options.get("weights"))
    product = lambda v: hessian_product(model, images, v, **options)  # noqa: E731
    return traced(hutchinson(product, like, draws, generator))


def _flat(model: nn.Module, weights: Sequence[str] | None) -> Tensor:
    return torch.cat([w.detach().flatten() for w in chosen_parameters(model, weights).values()])


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """Estimated eigenvalue density: `weights` (m,), sum 1, at `nodes` (m,), rising."""

    nodes: Tensor
    weights: Tensor

    def __repr__(self) -> str:
        low, high = float(self.nodes[0]), float(self.nodes[-1])
        return f"Spectrum({len(self.nodes)} nodes from {low:.3g} to {high:.3g})"

    def density(self, at: Tensor, width: float) -> Tensor:
        """Density at some values (g,), each node widened to a Gaussian of this standard
        deviation; it integrates to 1."""
        z = (at.double()[:, None] - self.nodes) / width
        bumps = (-z.square() / 2).exp() / (width * math.sqrt(2 * math.pi))
        return bumps @ self.weights


def spectrum(
    model: nn.Module,
    images: Batch,
    *,
    steps: int = 50,
    runs: int = 1,
    generator: torch.Generator,
    **options,
) -> Spectrum:
    """Eigenvalue density of the Hessian by stochastic Lanczos quadrature.

    Args:
        steps: products for each run; their vectors are all kept, steps * p numbers.
        runs: random starts, over which the quadratures are averaged.
        options: `chunk`, `weights`, `likelihood` of :func:`hessian_product`.
    """
    require.generator(generator)
    if require.whole("steps", steps) < 1 or require.whole("runs", runs) < 1:
        raise ValueError(f"steps and runs must be at least 1, not {steps} and {runs}.")
    like = _flat(model, options.get("weights"))
    found = [
        lanczos(
            lambda v: hessian_product(model, images, v, **options),
            random_signs(like, generator),
            steps,
        )
        for _ in range(runs)
    ]
    nodes = torch.cat([n for n, _ in found])
    weights = torch.cat([w for _, w in found]) / runs
    order = nodes.argsort()
    return Spectrum(nodes[order], weights[order])


# ---------------------------------------------------------------- lines and planes


@dataclass(frozen=True, eq=False, repr=False)
class Surface:
    """Loss and accuracy at the points of a line (t,) or of a plane (t, t).

    Args:
        loss: mean over the images, in nats; acc: share of targets hit. Both float64 on
            the CPU; the first axis belongs to the first direction.
    """

    ts: tuple[float, ...]
    loss: Tensor
    acc: Tensor

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.loss.shape))
        return f"Surface({size} points, loss {self.loss.min():.3g} to {self.loss.max():.3g})"


@torch.no_grad()
def loss_and_accuracy(
    model: nn.Module, images: Batch, *, chunk: int = 250, likelihood: Likelihood = SOFTMAX
) -> tuple[float, float]:
    """Mean loss in nats and accuracy, in eval mode."""
    require_sound(model, steady=False)
    require_likelihood(likelihood)
    loss = hits = asked = 0.0
    with evaluating(model):
        for x, y in batches(model, images, chunk):
            out = answered(model, x, y, likelihood)
            loss -= float(wide(likelihood.log_prob(out, y)).sum())
            right, counted = likelihood.hits(out, y)
            hits, asked = hits + int(right.sum()), asked + int(counted.sum())
    return loss / len(images.y), hits / max(asked, 1)


def filter_normalized(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """A random direction in which each filter has the norm of the network's filter.

    A filter is what one output channel reads: a row of the first axis. Vectors (biases,
    everything of BatchNorm) stand still, and so do filters that are zero. So a step of
    1 is about as large as the weights, whatever their scale, and two networks can be
    compared.

    Source: Li, Xu, Taylor, Studer and Goldstein, "Visualizing the Loss Landscape of
    Neural Nets", NeurIPS 2018.
    """
    direction = {}
    require.generator(generator)
    for name, w in require.module(model).named_parameters():
        w = w.detach()
        if w.ndim < 2:
            direction[name] = torch.zeros_like(w)
            continue
        d = random_normal(w, generator)
        scale = w.flatten(1).norm(dim=1) / d.flatten(1).norm(dim=1)
        direction[name] = d * scale.view(-1, *[1] * (w.ndim - 1))
    return direction


@torch.no_grad()
def plane(
    model: nn.Module,
    images: Batch,
    directions: Sequence[Mapping[str, Tensor]],
    ts: Sequence[float],
    **options,
) -> Surface:
    """Loss at w + t d along one direction, or at w + t d + u e in the plane of two.

    BatchNorm keeps its statistics, which away from w are no longer those of its input.

    Args:
        images: whose loss; triggered ones (pixels of `attack.trigger` as x, what they
            shall be called as y) give that of the backdoor.
        directions: one or two, parameter name -> tensor; the rest stands still. From
            `filter_normalized`, or `unflatten` of an eigenvector.
        ts: steps, the same on both axes.
        options: `chunk` and `likelihood` of :func:`measure`.
    """
    require_sound(model, steady=False)
    if not isinstance(directions, (list, tuple)) or not all(
        isinstance(d, Mapping) for d in directions
    ):
        raise ValueError(
            "directions must be a list of mappings from names of parameters to "
            f"tensors, not {require.kind(directions)}."
        )
    if len(directions) not in (1, 2):
        raise ValueError(f"give one or two directions, not {len(directions)}.")
    start = dict(model.named_parameters())
    for d in directions:
        wrong = [
            n
            for n, v in d.items()
            if n not in start or not isinstance(v, Tensor) or v.shape != start[n].shape
        ]
        if wrong:
            raise ValueError(f"{wrong[0]!r} does not fit a parameter of the model.")
    moved = copy.deepcopy(model)
    weights = dict(moved.named_parameters())
    ts, found = _steps(ts), []
    for point in itertools.product(ts, repeat=len(directions)):
        for name in set().union(*directions):
            weights[name].copy_(start[name])
        for t, d in zip(point, directions, strict=True):
            for name, v in d.items():
                weights[name].add_(t * v)
        found.append(loss_and_accuracy(moved, images, **options))
    return _surface(ts, len(directions), found)


def _steps(ts: object) -> tuple[float, ...]:
    """The points of an axis."""
    ts = ts.tolist() if isinstance(ts, Tensor) else ts
    if isinstance(ts, str) or not isinstance(ts, Iterable):
        raise ValueError(f"ts must be a list of numbers, not {require.kind(ts)}.")
    ts = tuple(float(require.number("each of ts", t)) for t in ts)
    if not ts:
        raise ValueError("ts has no point to look at.")
    return ts


def _surface(ts: tuple[float, ...], axes: int, found: list) -> Surface:
    both = torch.tensor(found, dtype=torch.float64).view(*[len(ts)] * axes, 2)
    return Surface(ts, both[..., 0], both[..., 1])


@torch.no_grad()
def line(
    start: nn.Module,
    end: nn.Module,
    images: Batch,
    ts: Sequence[float],
    **options,
) -> Surface:
    """Loss on the straight line between two networks of the same architecture: at
    (1 - t) start + t end.

    The statistics of BatchNorm are interpolated as well; beyond 0..1 they stay those of
    the nearer end, as a variance could turn negative. They need not be the statistics
    that a network between the two would have.

    Args:
        images, options: see :func:`plane`.
    """
    require_sound(start, "start", steady=False)
    require_sound(end, "end", steady=False)
    between = copy.deepcopy(start)
    a, b, c = (
        {**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (start, end, between)
    )
    if {n: v.shape for n, v in a.items()} != {n: v.shape for n, v in b.items()}:
        raise ValueError("the two networks differ in architecture.")
    buffers = dict(start.named_buffers()).keys()
    ts, found = _steps(ts), []
    for t in ts:
        for name, value in c.items():
            if value.is_floating_point():
                s = min(max(t, 0.0), 1.0) if name in buffers else t
                value.copy_(torch.lerp(a[name], b[name].to(value), s))
        found.append(loss_and_accuracy(between, images, **options))
    return _surface(ts, 1, found)
