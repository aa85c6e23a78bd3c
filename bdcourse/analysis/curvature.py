"""How sharp is the minimum in which a network sits? Its Fisher information.

Everything here looks at the log-likelihood log p(y | x, w) of a network with weights w.
Its gradient by the weights is the score s(x, y). The Fisher information is

    F = mean over x of  E_{y ~ p(. | x, w)} [ s s^T ],

with labels drawn from the network itself; with the labels of the data it is the
*empirical* Fisher, which is something else: it fades with the training loss. BatchNorm
is in eval mode throughout: else the score of an image would depend on its neighbors.
The Hessian and the loss around the weights are in `landscape`. Derived in lesson 08.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from bdcourse import require
from bdcourse.examples import Poisoned
from bdcourse.likelihoods import SOFTMAX, Likelihood, require_likelihood
from bdcourse.models import evaluating, guarded
from bdcourse.seeds import random_signs
from bdcourse.surgery import called_with, require_sound
from bdcourse.task import task_of

Route = Literal["bartlett", "gaussian", "signed", "exact"]
FISHER = {"bartlett": "true", "gaussian": "true", "signed": "empirical"}


class Batch(Protocol):
    """`bdcourse.data.Images`, or any other pair of inputs and targets."""

    @property
    def x(self) -> Tensor:
        """(n, ...): uint8 pixels are divided by 255, the rest is taken as it is."""

    @property
    def y(self) -> Tensor:
        """(n, ...)."""


def squared_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of the squares of all entries."""
    return torch.stack([t.square().sum() for t in tensors]).sum()


def bartlett(
    out: Tensor,
    weights: Sequence[Tensor],
    likelihood: Likelihood,
    generator: torch.Generator,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """g = sum of the scores of a batch at labels drawn from the network: one backward.

    Scores at such labels have mean zero (Bartlett's first identity), so in ||g||^2 the
    cross terms vanish on average: ||g||^2 / n is an unbiased estimate of the trace of
    the Fisher, and g * g / n of its diagonal.

    A network that is sure of itself gets most of its trace from labels that it hardly
    ever draws: then nearly all estimates are far too low, agree with each other all the
    same, and the rare other one makes up for them. `gaussian` has no such tail.
    """
    y = likelihood.sample(out, generator)
    total = likelihood.log_prob(out, y).sum()
    return gradient(total, weights, create_graph=create_graph)


def gaussian(
    out: Tensor,
    weights: Sequence[Tensor],
    likelihood: Likelihood,
    generator: torch.Generator,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """Like `bartlett`, with Gaussian noise of the same covariance instead of labels.

    The noise v goes back through the network as if it were the gradient by `out`. With
    `create_graph` it keeps its own dependence on the weights, so the gradient of
    ||g||^2 / n is unbiased too; that of `bartlett` takes its labels as given and misses
    how their distribution moves.
    """
    v = likelihood.noise(out, generator)
    v = v if create_graph else v.detach()
    return gradient(out, weights, v, create_graph=create_graph)


def signed(
    out: Tensor,
    y: Tensor,
    weights: Sequence[Tensor],
    likelihood: Likelihood,
    generator: torch.Generator,
    create_graph: bool = False,
) -> tuple[Tensor, ...]:
    """The same for the *empirical* Fisher: scores at the data's labels, added up with
    random signs.

    Those scores need not have mean zero; the signs make the cross terms vanish.
    """
    scores = likelihood.log_prob(out, y)
    return gradient(scores, weights, random_signs(scores, generator), create_graph)


def gradient(of, weights, cotangent=None, create_graph=False) -> tuple[Tensor, ...]:
    """`torch.autograd.grad` with zeros for weights that the output does not use."""
    return torch.autograd.grad(
        of, weights, cotangent, create_graph=create_graph, materialize_grads=True
    )


# ---------------------------------------------------------------- weights and batches


def chosen_parameters(
    model: nn.Module, weights: Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """The parameters of that name, or all that require grad, in the model's order.

    This is the order of the entries of a flat vector, (p,), wherever one is used.
    """
    named = dict(require.module(model).named_parameters())
    if isinstance(weights, str) or not isinstance(weights, (Iterable, type(None))):
        raise ValueError(f"weights must be a list of names or None, not {require.kind(weights)}.")
    weights = None if weights is None else list(weights)
    if weights is None:
        found = {n: w for n, w in named.items() if w.requires_grad}
    else:
        missing = [n for n in weights if n not in named]
        if missing:
            raise ValueError(f"the model has no parameter {missing[0]!r}.")
        found = {n: w for n, w in named.items() if n in weights}
    if not found:
        raise ValueError("there are no weights to look at; name some that exist.")
    return found


def unflatten(
    model: nn.Module, vector: Tensor, weights: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """A flat vector (p,) cut into the shapes of the chosen weights."""
    found = chosen_parameters(model, weights)
    size = sum(w.numel() for w in found.values())
    if not isinstance(vector, Tensor) or vector.shape != (size,):
        raise ValueError(
            f"vector must have {size} entries, one a weight, not be {require.kind(vector)}."
        )
    parts = vector.split([w.numel() for w in found.values()])
    return {n: v.view_as(w) for (n, w), v in zip(found.items(), parts, strict=True)}


@contextmanager
def examining(model: nn.Module, weights: Sequence[str] | None) -> Iterator[dict[str, nn.Parameter]]:
    """The chosen weights, with eval mode and gradients on; all is put back after."""
    require_sound(model)
    found = chosen_parameters(model, weights)
    before = {w: w.requires_grad for w in found.values()}
    # The fast attention kernels cannot be differentiated twice.
    math = sdpa_kernel(SDPBackend.MATH)
    with evaluating(model), guarded(model), torch.enable_grad(), math:
        try:
            for w in found.values():
                w.requires_grad_()
            yield found
        finally:
            for w, required in before.items():
                w.requires_grad_(required)


def require_pair(images: object) -> None:
    """Refuse what is no pair of inputs and targets, or not yet what a network sees."""
    x, y = getattr(images, "x", None), getattr(images, "y", None)
    if (
        not isinstance(x, Tensor)
        or not isinstance(y, Tensor)
        or not (x.ndim and y.ndim and len(x) == len(y))
    ):
        raise ValueError(
            "images must be Images, or hold inputs x and targets y as tensors with one "
            f"row an example, not {require.kind(images)}."
        )
    if isinstance(images, Poisoned) and images.late is not None:
        raise ValueError(
            "these poisoned images get their triggers in training only, so their "
            "pixels are not what the network saw; stamp them with attack.trigger first."
        )


def answered(model: nn.Module, x: Tensor, y: Tensor, likelihood: Likelihood) -> Tensor:
    """What the model says of inputs, if `likelihood` can be asked about it."""
    try:
        out = model(x)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as e:
        raise ValueError(
            f"the model does not accept inputs of shape {tuple(x.shape[1:])}: {require.reason(e)}."
        ) from e
    likelihood.check(out, y)
    return require.finite(out, "the network's answers")


def batches(model: nn.Module, images: Batch, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets, `chunk` at a time, on the model's device, in its dtype."""
    require_pair(images)
    if len(images.y) == 0 or require.whole("chunk", chunk) < 1:
        raise ValueError(
            f"there must be at least one image and a chunk of at least 1, not "
            f"{len(images.y)} and {chunk}."
        )
    like = next(model.parameters())
    for x, y in zip(images.x.split(chunk), images.y.split(chunk), strict=True):
        yield task_of(images).inputs(x.to(like.device), like.dtype), y.to(like.device)


# ---------------------------------------------------------------- Fisher


@dataclass(frozen=True, eq=False, repr=False)
class Traced:
    """A trace: the mean of some draws.

    Args:
        value: a mean over the images, not a sum over a batch.
        error: standard error of the value over the draws, for these images: 0 if there
            was no chance in it, nan after a single draw.
        draws: (d,) float64, each draw by itself.
    """

    value: float
    error: float
    draws: Tensor

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.error:.2g}"

    def __repr__(self) -> str:
        return f"Traced({self}, {len(self.draws)} draws)"


def traced(draws: Tensor, exact: bool = False) -> Traced:
    n = len(draws)
    error = float(draws.std()) / math.sqrt(n) if n > 1 else 0.0 if exact else math.nan
    return Traced(float(draws.mean()), error, draws)


def per_image(
    model: nn.Module, weights: Mapping[str, Tensor], x: Tensor, rows: Tensor
) -> dict[str, Tensor]:
    """For each image i the sum over rows r of (gradient of r_i . out_i)^2, entry by
    entry: name -> (n, *shape).

    Args:
        x: inputs (n, ...); rows: (m, n, ...), cotangents shaped like the outputs.
    """

    weights = {n: w.detach() for n, w in weights.items()}

    def one(x: Tensor, rows: Tensor) -> dict[str, Tensor]:
        _, back = vjp(lambda w: called_with(model, w, x[None])[0], weights)[:2]
        total = {n: torch.zeros_like(w) for n, w in weights.items()}
        for r in rows:
            total = {n: total[n] + g.square() for n, g in back(r)[0].items()}
        return total

    with torch.no_grad(), warnings.catch_warnings():  # vjp differentiates all the same
        # Said of the pooling of a single image, which is no great matter.
        warnings.filterwarnings("ignore", "There is a performance drop")
        return vmap(one, (0, 1))(x, rows)


def _squares(
    model: nn.Module,
    images: Batch,
    weights: Mapping[str, Tensor],
    route: Route,
    fisher: str,
    draws: int,
    chunk: int | None,
    likelihood: Likelihood,
    generator: torch.Generator | None,
) -> Iterator[tuple[int, list[Tensor]]]:
    """(draw, squares shaped like the weights): those of a draw add up to n times an
    unbiased estimate of the Fisher's diagonal."""
    mask = likelihood.masked
    if route != "exact":
        assert generator is not None  # see `_settle`
        for x, y in batches(model, images, chunk or 50):
            for draw in range(draws):
                out = mask(answered(model, x, y, likelihood), y)
                w = list(weights.values())
                if route == "signed":
                    g = signed(out, y, w, likelihood, generator)
                else:
                    estimate = bartlett if route == "bartlett" else gaussian
                    g = estimate(out, w, likelihood, generator)
                yield draw, [t.square() for t in g]
        return
    size = sum(w.numel() for w in weights.values())
    chunk = chunk or max(1, min(20, 2**23 // size))  # gradients of at most 32 MiB
    for x, y in batches(model, images, chunk):
        with torch.no_grad():
            out = answered(model, x, y, likelihood)
        if fisher == "true":
            rows = likelihood.roots(out)
        else:
            out.requires_grad_()
            loss = likelihood.log_prob(out, y).sum()
            rows = torch.stack(torch.autograd.grad(loss, out))
        g = per_image(model, weights, x, mask(rows, y))
        yield 0, [t.sum(0) for t in g.values()]


def _settle(route: Any, fisher, draws, likelihood, generator) -> tuple[Route, int]:
    """The route to take and the draws it needs, or a refusal."""
    require_likelihood(likelihood)
    if fisher not in ("true", "empirical"):
        raise ValueError(f'fisher must be "true" or "empirical", not {fisher!r}.')
    if route is None:
        usual: Route = "gaussian" if fisher == "true" else "signed"
        route = usual
    if route not in (*FISHER, "exact"):
        raise ValueError(f"unknown route {route!r}; {', '.join(FISHER)} or exact.")
    if FISHER.get(route, fisher) != fisher:
        raise ValueError(f"{route!r} is a route to the {FISHER[route]} Fisher only.")
    if route == "exact":
        if fisher == "true" and not likelihood.has("roots"):
            raise ValueError(
                "the exact true Fisher needs a likelihood that has `roots`; take "
                "the route 'bartlett' or 'gaussian'."
            )
        return route, 1
    if generator is not None:
        require.generator(generator)
    if generator is None or require.whole("draws", draws) < 1:
        raise ValueError(f"the route {route!r} needs a generator and at least one draw.")
    return route, draws


def fisher_trace(
    model: nn.Module,
    images: Batch,
    *,
    route: Route | None = None,
    fisher: Literal["true", "empirical"] = "true",
    draws: int = 10,
    chunk: int | None = None,
    weights: Sequence[str] | None = None,
    relative: bool = False,
    likelihood: Likelihood = SOFTMAX,
    generator: torch.Generator | None = None,
) -> Traced:
    """Trace of the Fisher information: mean over images of E ||score||^2.

    Args:
        model: left untouched, as by everything here.
        route: "gaussian" or "bartlett" to the true Fisher, "signed" to the empirical
            one: one backward pass for each draw and chunk. "exact": the gradient of
            every image by itself, for the true Fisher one for each class. None takes
            "gaussian" or "signed".
        draws: how often each image is drawn for; the exact route needs one.
        chunk: images at once. On the exact route it bounds memory (all their gradients
            are there together) and the result does not depend on it. On the others
            every chunk is an estimate by itself, so smaller ones lessen the error too.
        weights: names of parameters; None means all that require grad.
        relative: see :func:`relative_trace`.
        generator: decides the draws.

    Raises:
        ValueError: unknown route or fisher, a route to the other Fisher, no images, no
            draws, no generator where one is needed, unknown weights.
    """
    route, draws = _settle(route, fisher, draws, likelihood, generator)
    total = torch.zeros(draws, dtype=torch.float64)
    with examining(model, weights) as w:
        for draw, squares in _squares(
            model, images, w, route, fisher, draws, chunk, likelihood, generator
        ):
            if relative:
                pairs = zip(squares, w.values(), strict=True)
                squares = [q * v.detach().square() for q, v in pairs]
            total[draw] += float(torch.stack([q.sum() for q in squares]).sum())
    return traced(total / len(images.y), route == "exact")


def relative_trace(model: nn.Module, images: Batch, **options) -> Traced:
    """Sum of F_ii w_i^2: the Fisher by relative changes of the weights.

    A convolution before a BatchNorm can be scaled by c without changing what the
    network does (the statistics follow), but this scales its part of Tr F by 1 / c^2.
    Here the two cancel.

    Args:
        options: for `fisher_trace`.
    """
    return fisher_trace(model, images, relative=True, **options)


def fisher_diagonal(
    model: nn.Module,
    images: Batch,
    *,
    route: Route = "exact",
    fisher: Literal["true", "empirical"] = "true",
    draws: int = 10,
    chunk: int | None = None,
    weights: Sequence[str] | None = None,
    likelihood: Likelihood = SOFTMAX,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information, the mean of the squared scores: name ->
    tensor shaped like the weight.

    Not the square of the mean score, which at a minimum is zero.

    Args:
        route, ...: see :func:`fisher_trace`. Routes other than "exact" are cheap and
            noisy: each draw of each chunk gives an entry as precisely as the square of
            one Gaussian number gives a variance.
    """
    route, draws = _settle(route, fisher, draws, likelihood, generator)
    with examining(model, weights) as w:
        total = [torch.zeros_like(v, requires_grad=False) for v in w.values()]
        for _, squares in _squares(
            model, images, w, route, fisher, draws, chunk, likelihood, generator
        ):
            for t, q in zip(total, squares, strict=True):
                t += q
        n = draws * len(images.y)
        return {name: t / n for name, t in zip(w, total, strict=True)}
