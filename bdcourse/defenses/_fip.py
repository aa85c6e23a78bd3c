"""FIP and Fast FIP: move a suspicious network to smoother ground on clean images.

Karim, Al Arafat, Rakin, Guo and Rahnavard, "Fisher Information guided Purification
against Backdoor Attacks", ACM CCS 2024. Claim: on clean data a backdoored network sits
at a sharper minimum than a benign one, and loses the backdoor on the way to a smoother
one. With the weights w_0 that were handed in, the defender minimizes

    L(w) = NLL(w) + eta_f * Tr F(w) + eta_r / 2 * sum_i F0_ii (w_i - w0_i)^2

where F is the Fisher information (see `analysis.curvature`), and F0 its diagonal at
w_0, once measured: weights that matter for clean images are held back. The paper's
equations were not to be had: this is built from its abstract, its authors' code and the
reviews, and the joint use of both terms is our reading.

Fast FIP tunes singular values instead of weights. Each weight, as a matrix of one row
an output, is W = U diag(relu(s + d)) V^T, with U, s, V of the received weights frozen
and d, at first zero, the only thing that moves: 4,325 numbers instead of 11 million
in a ResNet-18 of width 64.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize

from bdcourse import require
from bdcourse.analysis.curvature import (
    Batch,
    Route,
    fisher_diagonal,
    fisher_trace,
    gaussian,
    gradient,
    squared_norm,
)
from bdcourse.analysis.sharpness_aware import ascent
from bdcourse.augment import Augmentation
from bdcourse.checkpoint import Checkpoint, pack, unpack
from bdcourse.defenses._base import (
    Purified,
    beside,
    copied,
    decided_by,
    defense,
    filled,
    own_acc,
    require_at_least,
    require_batch,
    require_here,
    require_positive,
    require_ways,
    stage,
)
from bdcourse.examples import Examples, hold_out
from bdcourse.likelihoods import Likelihood, require_likelihood
from bdcourse.models import evaluating, guarded, not_finite
from bdcourse.seeds import random_normal, random_signs, seeded
from bdcourse.task import task_of
from bdcourse.train import OPTIMIZERS

STEPS = 600  # of all arms, unless told otherwise

# The weights of the trace with which the course's tables on images were measured.
FIP_ETA, FAST_FIP_ETA = 5e-3, 0.02
# Shares of a nat that the penalty takes at the start, from least to most.
FIP_SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)


class SingularValues(nn.Module):
    """A weight as a function of the change d of its singular values.

    Args:
        left, values, right: thin singular value decomposition of the weight as a matrix
            (rows, rest): (rows, r), (r,), (r, rest).
        shape: of the weight.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def __init__(self, left: Tensor, values: Tensor, right: Tensor, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("left", left)
        self.register_buffer("values", values)
        self.register_buffer("right", right)

    def forward(self, change: Tensor) -> Tensor:
        """d (r,) to the weight; at d = 0 it is the received one, up to rounding."""
        s = (self.values + change).relu()
        return ((self.left * s) @ self.right).view(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Where tuning starts: no change."""
        return torch.zeros_like(self.values)


def fip_matrices(model: nn.Module) -> dict[tuple[nn.Module, str], Tensor]:
    """(module, name of the parameter) -> weight, of all convolutions, linear maps and
    tables of an embedding.

    Each has one row an output, a table one a word. The three projections of an attention
    layer, which torch keeps in one tensor, count as one.
    """
    found: dict[tuple[nn.Module, str], Tensor] = {}
    for m in model.modules():
        if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding)):
            found[m, "weight"] = m.weight
        elif isinstance(m, nn.MultiheadAttention) and m.in_proj_weight is not None:
            found[m, "in_proj_weight"] = m.in_proj_weight
    return found


@torch.no_grad()
def fip_factorize(model: nn.Module) -> None:
    """Put every weight matrix of `model`, in place, under its singular values.

    Weights of one shape are decomposed in one batch, in float32 or better. A weight that
    several modules hold gets one d, which they all hold.

    Raises:
        ValueError: a weight is parametrized already.
    """
    shapes: dict[tuple[int, ...], list] = {}
    seen: set[Tensor] = set()
    for where, w in fip_matrices(model).items():
        if w in seen:
            continue
        seen.add(w)
        if parametrize.is_parametrized(*where):
            raise ValueError(
                "a weight of the model is parametrized already; make it plain with "
                "torch.nn.utils.parametrize.remove_parametrizations."
            )
        shapes.setdefault(w.flatten(1).shape, []).append((where, w))
    for group in shapes.values():
        stack = torch.stack([w.flatten(1) for _, w in group])
        wide = stack if stack.dtype == torch.float64 else stack.float()
        u, s, vh = (t.to(stack) for t in torch.linalg.svd(wide, full_matrices=False))
        for i, ((module, name), w) in enumerate(group):
            law = SingularValues(u[i].clone(), s[i].clone(), vh[i].clone(), w.shape)
            others = [at for at in _holders(model, w) if at != (module, name)]
            parametrize.register_parametrization(module, name, law)  # w itself becomes d
            for other, own in others:
                other._parameters[own] = nn.Parameter(torch.empty_like(law(w)))
                parametrize.register_parametrization(other, own, law)
                other.get_submodule(f"parametrizations.{own}").original = w


def _holders(model: nn.Module, w: Tensor) -> list[tuple[nn.Module, str]]:
    """Every (module, name) that this very parameter has."""
    return [(m, n) for m in model.modules() for n, p in m._parameters.items() if p is w]


def fold(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Make the weights of a factorized model plain ones again, in place.

    Returns:
        name of the weight -> (received singular values, their change), each (r,).
    """
    found = {}
    made: dict[Tensor, nn.Parameter] = {}  # d -> weight: what was shared is shared again
    for prefix, m in list(model.named_modules()):
        laws, plain = dict(getattr(m, "parametrizations", {})), {}
        if not laws or not all(isinstance(law[0], SingularValues) for law in laws.values()):
            continue
        for name, law in laws.items():
            d = law.original
            if d not in made:
                found[f"{prefix}.{name}".strip(".")] = law[0].values, d.detach().clone()
                made[d] = nn.Parameter(getattr(m, name).detach(), d.requires_grad)
            plain[name] = made[d]
        # Not remove_parametrizations: it alters a class that copies of m share, and
        # puts the weight behind the bias.
        m.__class__ = parametrize.type_before_parametrizations(m)
        del m.parametrizations
        others = dict(m._parameters)
        m._parameters.clear()
        m._parameters.update(plain | others)
    return found


class Descent(Protocol):
    """One way to go down: all arms of a comparison differ in this and nothing else."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
        """Leave a gradient in the parameters of `model`; return numbers to note."""


@dataclass(eq=False, repr=False)
class FipDescent:
    """FIP: the likelihood, the trace of the Fisher, and the pull to the old weights.

    With eta_f and eta_r 0 it is plain fine-tuning.

    Args:
        eta_f, eta_r, every, fisher, product, norms, draw, lengths: see :func:`fip`.
        cap: see :func:`fip`.
        old: the received weights, in the order of the model's trainable parameters.
        diagonal: F0 of each of them; both are needed only where eta_r is not 0.
    """

    likelihood: Likelihood
    generator: torch.Generator
    eta_f: float = 0.0
    eta_r: float = 0.0
    every: int = 1
    fisher: str = "true"
    product: str = "difference"
    norms: str = "batch"
    old: Sequence[Tensor] = ()
    diagonal: Sequence[Tensor] = ()
    draw: str = "labels"
    lengths: Mapping[int, float] | None = None
    cap: float | None = None

    def __repr__(self) -> str:
        terms = f"eta_f {self.eta_f:g}, eta_r {self.eta_r:g}, every {self.every}"
        return f"FipDescent({terms}, {self.fisher} Fisher, {self.product} product)"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
        weights = trainable(model)
        out = self.outputs(model, x)
        loss = -self.likelihood.log_prob(out, y).mean()
        due = self.eta_f > 0 and step % self.every == 0
        loss.backward(retain_graph=due)
        for w in weights:
            if w.grad is None:  # the outputs do not use it
                w.grad = torch.zeros_like(w)
        seen = {"loss": loss.detach()}
        if due and self.norms == "mixed":  # the trace has a forward pass of its own
            with evaluating(model):
                own = self.outputs(model, x)
                seen |= self.add_trace(model, x, y, weights, own, step)
        elif due:
            seen |= self.add_trace(model, x, y, weights, out, step)
        if self.eta_r > 0:
            for w, w0, f in zip(weights, self.old, self.diagonal, strict=True):
                assert w.grad is not None  # see above
                w.grad.addcmul_(f, w.detach() - w0, value=self.eta_r)
        return seen

    def outputs(self, model: nn.Module, x: Tensor) -> Tensor:
        """What the model says of x, in a form that `product` can differentiate."""
        return twice(model, x) if self.product == "exact" else model(x)

    def add_trace(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        weights: Sequence[Tensor],
        out: Tensor,
        step: int,
    ) -> dict[str, Tensor]:
        """Add the gradient of eta_f * Tr F to that of the weights; returns Tr F, and
        how long the push was that was added."""
        if not bool(out.isfinite().all()):  # no label can be drawn
            return {"trace": out.new_tensor(math.nan)}
        n = len(out)
        if self.product == "exact":
            square = squared_norm(self.slopes(out, y, weights))
            pushes = gradient(square / 2, weights)
        else:
            score = self.total_score(out, y)
            g = gradient(score(out), weights)
            square = squared_norm(g)
            pushes = fip_along(model, x, weights, g, score)
        pushes = [2 * self.eta_f / n * h for h in pushes]
        if self.product == "random":
            pushes = [self.elsewhere(h) for h in pushes]
        if self.lengths is not None:  # a push of length 0 has no direction and stays
            scale = self.lengths[step] / squared_norm(pushes).sqrt().clamp(min=1e-12)
            pushes = [h * scale for h in pushes]
        elif self.cap is not None:
            scale = (self.cap / squared_norm(pushes).sqrt().clamp(min=1e-12)).clamp(max=1)
            pushes = [h * scale for h in pushes]
        for w, h in zip(weights, pushes, strict=True):
            assert w.grad is not None  # it is the likelihood's
            w.grad.add_(h)
        return {"trace": square.detach() / n, "push": squared_norm(pushes).sqrt()}

    def elsewhere(self, h: Tensor) -> Tensor:
        """A random tensor of the length of h."""
        r = random_normal(h, self.generator)
        return r * (h.norm() / r.norm().clamp(min=1e-12))

    def total_score(self, out: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        """A function of the outputs whose gradient g gives Tr F: the mean of ||g||^2/n.

        True Fisher: the log-likelihood of labels drawn from the network, whose scores
        have mean zero, or a Gaussian vector of their covariance times the outputs.
        Empirical: the log-likelihood of the data's labels under random signs. Either
        way the cross terms of ||g||^2 vanish on average. The draw counts as a constant:
        that its distribution moves with the weights does not enter.
        """
        if self.fisher == "empirical":
            sign = random_signs(out.new_empty(len(out)), self.generator)
            return lambda o: (sign * self.likelihood.log_prob(o, y)).sum()
        hide = self.hidden
        if self.draw == "gaussian":
            v = self.likelihood.noise(hide(out, y), self.generator).detach()
            return lambda o: (v * hide(o, y)).sum()
        drawn = self.likelihood.sample(out, self.generator)
        return lambda o: self.likelihood.log_prob(hide(o, y), drawn).sum()

    def hidden(self, out: Tensor, y: Tensor) -> Tensor:
        """Padding of a sequence has no target, so none may be drawn for it either."""
        return self.likelihood.masked(out, y)

    def slopes(self, out: Tensor, y: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """That gradient g with its graph. A Gaussian draw keeps its own part of it, so
        the gradient of ||g||^2 misses nothing; with drawn labels it does."""
        if self.fisher == "true" and self.draw == "gaussian":
            own = self.hidden(out, y)
            return gaussian(own, weights, self.likelihood, self.generator, True)
        return gradient(self.total_score(out, y)(out), weights, create_graph=True)


def fip_along(
    model: nn.Module,
    x: Tensor,
    weights: Sequence[Tensor],
    g: Sequence[Tensor],
    score: Callable[[Tensor], Tensor],
    reach: float = 1e-3,
) -> list[Tensor]:
    """The second derivative H of score(model(x)) times its gradient g, by a difference:

        H g  is about  (gradient at w + e g  -  g) / e

    The gradient of ||g||^2 is 2 H g, so this is all that FIP needs. It costs one pass
    forward and one backward; differentiating ||g||^2 costs twice that and keeps the
    graph of a gradient. It is also what links FIP to SAM, which uses the gradient
    there itself.

    Args:
        reach: length of the move e g in units of the length of the weights: of powers
            of ten the one nearest in direction to the exact product in float32. Exact
            it is not: ReLUs bend on the way, which the exact product does not see. On
            the trained networks of lesson 08 cosines are 0.6 to 0.97 and lengths 1.2 to
            2 of the exact product's.
    """
    length = squared_norm(g).sqrt().clamp(min=1e-12)
    size = squared_norm([w.detach() for w in weights]).sqrt()
    e = reach * size.clamp(min=1) / length  # Fast FIP starts at length 0
    before = [w.detach().clone() for w in weights]
    with remembering(model):
        with torch.no_grad():
            for w, v in zip(weights, g, strict=True):
                w.add_(v * e)
        try:
            there = gradient(score(model(x)), weights)
        finally:
            with torch.no_grad():
                for w, b in zip(weights, before, strict=True):
                    w.copy_(b)
    return [(t - v) / e for t, v in zip(there, g, strict=True)]


@dataclass(eq=False)
class SamDescent:
    """Sharpness-aware minimization in the same loop: as `sharpness_aware.sam_step`.

    Args:
        rho: radius in units of the weights.
    """

    likelihood: Likelihood
    rho: float = 2.0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
        weights = trainable(model)
        loss = -self.likelihood.log_prob(model(x), y).mean()
        shifts = ascent(weights, gradient(loss, weights), self.rho)
        before = [w.detach().clone() for w in weights]
        with remembering(model), torch.no_grad():
            for w, e in zip(weights, shifts, strict=True):
                w.add_(e)
            with torch.enable_grad():
                (-self.likelihood.log_prob(model(x), y).mean()).backward()
            for w, b in zip(weights, before, strict=True):
                w.copy_(b)
        return {"loss": loss.detach()}


@dataclass(eq=False, repr=False)
class ReleasedDescent:
    """What the authors' released script does instead of FIP, in behavior.

    The product of Fisher and probe is commented out there, and what remains is an inner
    product of the gradient with random vectors: its mean is 0. A running sum in it is
    added once more for every parameter tensor, so that the k-th of P counts P - k + 1
    times; and the likelihood pairs every image with every label of the batch.
    """

    generator: torch.Generator
    eta_f: float = 0.5
    every: int = 5
    probes: int = 20

    def __repr__(self) -> str:
        terms = f"eta_f {self.eta_f:g}, every {self.every}, {self.probes} probes"
        return f"ReleasedDescent({terms})"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, step: int) -> dict[str, Tensor]:
        out = twice(model, x)
        if out.ndim != 2:
            raise ValueError(
                "the released script knows classes only, with outputs of shape (n, k), "
                f"not {tuple(out.shape)}; take fip."
            )
        loss = F.cross_entropy(out, y)
        seen = {"loss": loss.detach()}
        if step % self.every == 0:
            weights = trainable(model)
            fake = fip_fake_trace(out, y, weights, self.probes, self.generator)
            seen["trace"] = fake.detach()
            loss = loss + self.eta_f * fake
        loss.backward()
        return seen


@filled
def fip_fake_trace(
    out: Tensor,
    y: Tensor,
    weights: Sequence[Tensor],
    probes: int = 20,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The number that the released script calls a trace, with its graph.

    Mean 0, variance sum_k (P - k + 1)^2 ||g_k||^2 / probes over the P tensors g_k of
    the gradient of the all-pairs likelihood.
    """
    generator = require.generator(generator)
    slopes = gradient(fip_all_pairs(out, y), weights, create_graph=True)
    counts = range(len(weights), 0, -1)
    total = out.new_zeros(())
    for _ in range(probes):
        for times, g in zip(counts, slopes, strict=True):
            total = total + times * (g * random_normal(g, generator)).sum()
    return total / probes


def fip_all_pairs(out: Tensor, y: Tensor) -> Tensor:
    """What the released script takes for the mean log-likelihood of a batch.

    Args:
        out: logits (n, k); y: labels (n,).
    """
    return out.log_softmax(1)[:, y].mean()  # (n, n): every image with every label


def twice(model: nn.Module, x: Tensor) -> Tensor:
    """Outputs that can be differentiated twice: the fast attention kernels cannot."""
    with sdpa_kernel(SDPBackend.MATH):
        return model(x)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that move."""
    return [p for p in model.parameters() if p.requires_grad]


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm)]


@contextmanager
def remembering(model: nn.Module) -> Iterator[None]:
    """Inside the `with`, BatchNorm's running statistics do not move, nor its count."""
    before = {m: m.track_running_stats for m in batch_norms(model)}
    for m in before:
        m.track_running_stats = False  # eval mode goes on using those that are there
    try:
        yield
    finally:
        for m, value in before.items():
            m.track_running_stats = value


@torch.no_grad()
def require_fit(model: nn.Module, clean: Batch, likelihood: Likelihood) -> None:
    """Refuse data that are too few or do not go with the model's outputs."""
    require_batch(clean)
    require_here(model, {"clean": clean.x, "the targets of clean": clean.y})
    require_likelihood(likelihood)
    n, y = len(clean.y), clean.y
    if len(clean.x) != n:
        raise ValueError(
            f"every input needs its target: there are {len(clean.x)} inputs and {n} targets."
        )
    if n < 2:
        raise ValueError(f"at least two clean examples are needed, not {n}.")
    with evaluating(model):
        try:
            dtype = next(model.parameters()).dtype
            out = model(task_of(clean).inputs(clean.x[:2], dtype))
        except Exception as e:  # code of others raises many kinds
            raise ValueError(
                f"the model does not accept inputs of shape {tuple(clean.x.shape[1:])}."
            ) from e
    likelihood.check(out, y)


@filled
def fip_descend(
    model: nn.Module,
    clean: Batch,
    descent: Descent,
    *,
    steps: int = STEPS,
    lr: float = 0.01,
    momentum: float = 0.9,
    optimizer: str = "sgd",
    batch: int = 32,
    norms: Literal["batch", "frozen", "mixed"] = "batch",
    augment: Augmentation | None = None,
    watch: Callable[[nn.Module], dict] | None = None,
    watch_every: int = 50,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
    about: dict | None = None,
) -> Purified:
    """SGD in place on random batches: the loop of FIP and of all its controls.

    Args:
        model: changed in place.
        clean: images, or any pair of inputs x and targets y. Every step draws a batch
            without repeats.
        steps, lr, momentum: of the optimizer at a constant rate, without weight decay.
            Dropout is off: the passes of one step must be the same function.
        optimizer: "sgd", or "adamw", whose first beta `momentum` is.
        batch: examples a step, or all where there are fewer.
        norms: what BatchNorm does. "batch": normalizes by the batch and goes on with
            its running statistics, as in training. "frozen": keeps them and normalizes
            by them. "mixed": as "batch", but with "frozen" for the trace of FIP.
        augment: random crops and flips of images, or what else suits the task.
        generator: decides the batches, the crops and the descent's own chance; on the
            device of the data.
        checkpoint: file that is renewed every 20 seconds and deleted at the end; the
            same call, started again after a stop, ends where it would have ended.
        about: what the checkpoint must agree with, where it is more than the arguments
            here.
        watch: called every `watch_every` steps and at the end with a copy, in eval mode
            and with plain weights; the plain numbers that it returns by name join the
            log and decide nothing. The time that it takes does not count.

    Returns:
        log: what the descent noted, as [step, value] pairs by name, and `watched`, a
        list of dicts with the step.

    Raises:
        ValueError: see :func:`fip`.
        RuntimeError: the weights left all bounds.
    """
    start, own = time.perf_counter(), decided_by("fip_descend", locals())
    task = task_of(clean)
    require_fit(model, clean, getattr(descent, "likelihood", task.likelihood))
    n, device, weights = len(clean.y), clean.x.device, trainable(model)
    if not weights:
        raise ValueError("no parameter of the model requires grad, so none can move.")
    if isinstance(augment, Augmentation):
        augment.check(tuple(clean.x.shape[1:]))
    require_positive(lr=require.number("lr", lr))
    require.choice("optimizer", optimizer, OPTIMIZERS)
    for name, count in (("steps", steps), ("batch", batch), ("watch_every", watch_every)):
        require.whole(name, count, 1)
    require_ways(
        {"generator": generator, "checkpoint": checkpoint, "augment": augment, "watch": watch}
    )
    if not 0 <= require.number("momentum", momentum) < 1:
        raise ValueError(f"momentum must lie in 0..1, without 1, not {momentum}.")
    if norms not in ("batch", "frozen", "mixed"):
        raise ValueError(f'norms must be "batch", "frozen" or "mixed", not {norms!r}.')
    if batch < 2 and norms != "frozen" and batch_norms(model):
        raise ValueError('a batch of one needs norms="frozen" beside BatchNorm.')
    generator = require.generator(generator)
    keep = Checkpoint(checkpoint, about or own)
    batch = min(batch, n)
    opt: torch.optim.Optimizer = torch.optim.SGD(weights, lr, momentum)
    if optimizer == "adamw":
        opt = torch.optim.AdamW(weights, lr, (momentum, 0.999), weight_decay=0.0)
    # An attention layer has a dropout of its own.
    still: tuple[type[nn.Module], ...] = (_DropoutNd, nn.MultiheadAttention)
    still += (_BatchNorm,) if norms == "frozen" else ()
    first, log, looking = 0, {}, 0.0
    if (saved := keep.load()) is not None:
        unpack(saved[0], model, opt, generator)
        first, log = saved[1]["step"], saved[1]["log"]

    for step in range(first, steps):
        if keep.due():
            keep.save(pack(model, opt, generator), step=step, log=log)
        if watch is not None and step % watch_every == 0:
            looking += _look(model, watch, step, log, generator)
        model.train()
        for m in model.modules():
            if isinstance(m, still):
                m.eval()
        index = torch.randperm(n, generator=generator, device=generator.device)[:batch]
        index = index.to(device)
        x, y = clean.x[index], clean.y[index]
        if augment is not None:
            x, y = augment.batch(x, y, generator)
        opt.zero_grad()
        with guarded(model):
            seen = descent(model, task.inputs(x, weights[0].dtype), y, step)
        for name, value in seen.items():
            log.setdefault(name, []).append([step, float(value)])
        opt.step()
        fine = all(math.isfinite(v) for v in seen.values())
        if not fine or (step == steps - 1 and not_finite(model.state_dict())):
            keep.done()
            raise RuntimeError(
                f"the weights left all bounds in step {step}: take a smaller lr or a "
                "smaller weight of the penalty."
            )
    if watch is not None:
        looking += _look(model, watch, steps, log, generator)
    opt.zero_grad()
    model.eval()
    keep.done()
    return Purified(model, log=log, seconds=time.perf_counter() - start - looking)


def _look(
    model: nn.Module,
    watch: Callable,
    step: int,
    log: dict,
    generator: torch.Generator,
) -> float:
    """Note what `watch` sees; returns the seconds that it took."""
    start, state = time.perf_counter(), generator.get_state()
    model = copy.deepcopy(model).eval()
    fold(model)
    log.setdefault("watched", []).append({"step": step, **watch(model)})
    generator.set_state(state)
    return time.perf_counter() - start


@defense(batches=True, steady=False, moves=True)
def fip(
    model: nn.Module,
    clean: Batch,
    held: Examples | None = None,
    *,
    eta_f: float | None = None,
    max_drop: float = 0.03,
    eta_r: float = 0.05,
    every: int = 1,
    fisher: Literal["true", "empirical"] = "true",
    product: Literal["difference", "exact", "random"] = "difference",
    norms: Literal["batch", "frozen", "mixed"] = "batch",
    draw: Literal["labels", "gaussian"] = "labels",
    lengths: Mapping[int, float] | None = None,
    cap: float | None = None,
    likelihood: Likelihood | None = None,
    fast: bool = False,
    affine: bool = True,
    steps: int = STEPS,
    lr: float = 0.01,
    momentum: float = 0.9,
    optimizer: str = "sgd",
    batch: int = 32,
    augment: Augmentation | None = None,
    watch: Callable[[nn.Module], dict] | None = None,
    watch_every: int = 50,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Purified:
    """FIP: fine-tune a copy of the model on clean data, down the trace of the Fisher.

    Args:
        model: any network whose outputs `likelihood` understands.
        clean: images, or any pair of inputs x and targets y.
        held: other clean examples, on which eta_f is chosen; without them a fifth of
            `clean` is held out for that.
        eta_f: weight of the trace, in nats per nats^2 of it. None tries the ladder
            eta_f = c / Tr F(w_0), c in :data:`FIP_SHARES`, one descent each, and keeps
            the largest before the first that costs too much on `held` (the least, if
            that costs too much already): six times the work. One number cannot suit
            several tasks or networks, whose traces differ by factors of a hundred.
            :data:`FIP_ETA` is that of the course's tables on images; the authors advise
            at most 0.005 for their code, which computes something else.
        max_drop: headline score on `held` (of images the accuracy) that the choice of
            eta_f may cost, 0..1; what the trigger does it never sees.
        eta_r: weight of the pull to the received weights.
        every: the trace enters every so many steps.
        fisher: labels drawn from the network, or those of the data, for the trace and
            for F0. The second fades with the training loss; which of them the paper
            means could not be checked.
        product: how the trace is differentiated, see :func:`fip_along`; "exact" is twice as
            slow, and does without torch's fast attention kernels. "random" is the
            control: a push of the same length in each tensor, in a random direction.
        norms: see :func:`fip_descend`. Ours: with "frozen" the received network has no step
            that is long enough to leave the backdoor and short enough to stay stable,
            and with "mixed" the trace falls by making the frozen network constant.
        draw: what stands for the labels of the true Fisher: one label an image, or the
            Gaussian vector of `curvature.gaussian`, which has no long tail. With
            product "exact" it also keeps what labels drop, how their own distribution
            moves with the weights.
        lengths: step -> length of the push, over all weights together, in place of its
            own: dict(p.log["push"]) of another run makes the random control as strong
            as that run was. Where both are fast, lengths over d.
        likelihood: of the targets under the outputs; None is that of the data's task.
        fast, affine: see :func:`fast_fip`.
        cap: longest push, over all weights together: longer ones are cut to it. A network
            that is sure of itself gets its trace from rare labels, each with a push that
            may undo all steps before; None lets them be.
        steps, lr, momentum, optimizer, batch, augment, watch, watch_every, generator,
            checkpoint: see :func:`fip_descend`.

    Returns:
        log, as [step, value] pairs: `loss` (NLL in nats) and `trace` of the batch,
        and `push`, the length of what the trace added to the gradient; if fast also
        `change`: weight name -> (received singular values, their d). Where eta_f was
        chosen also `eta_f`, `fisher` (Tr F of the received network on `clean`, in eval
        mode, by what moves), `held` (its score), `costly` (whether even the least costs
        too much), and `ladder`: a dict a rung with `share`, `eta_f`, `held`, its score
        on the held-out examples (None where the descent left all bounds), and `seconds`.

    Raises:
        ValueError: negative weights, unknown names, fewer than two examples, targets
            that the outputs do not know, a checkpoint of other work.
        RuntimeError: the weights left all bounds.

    Source: Karim et al., CCS 2024; reconstructed. Derived in lesson 08.
    """
    given = dict(locals())
    start, about = time.perf_counter(), decided_by("fip", given)
    require_at_least(0, eta_f=eta_f, eta_r=eta_r)
    require.number("eta_r", eta_r)
    if eta_f is not None:
        require.number("eta_f", eta_f)
    require.fraction("max_drop", max_drop)
    require.whole("every", every, 1)
    require.whole("steps", steps, 1)
    require.truth("fast", fast)
    require.truth("affine", affine)
    if fisher not in ("true", "empirical"):
        raise ValueError(f'fisher must be "true" or "empirical", not {fisher!r}.')
    if product not in ("difference", "exact", "random"):
        raise ValueError(f'product must be "difference", "exact" or "random", not {product!r}.')
    if draw not in ("labels", "gaussian"):
        raise ValueError(f'draw must be "labels" or "gaussian", not {draw!r}.')
    if draw == "gaussian" and fisher != "true":
        raise ValueError('draw="gaussian" stands for labels of the true Fisher only.')
    likelihood = task_of(clean).likelihood if likelihood is None else likelihood
    require_likelihood(likelihood)
    if draw == "gaussian" and not likelihood.has("noise"):
        raise ValueError('draw="gaussian" needs a likelihood that has `noise`.')
    if lengths is not None:
        if not isinstance(lengths, Mapping):
            raise ValueError(
                "lengths must map steps to lengths, as dict(p.log['push']) does, not "
                f"be {require.kind(lengths)}."
            )
        try:  # from a file, steps come as text
            lengths = {int(k): float(v) for k, v in lengths.items()}
        except (TypeError, ValueError) as e:
            raise ValueError("lengths must map whole numbers, the steps, to numbers.") from e
        due = set(range(0, steps, int(every)))
        if not eta_f or not all(0 <= v < math.inf for v in lengths.values()):
            raise ValueError("lengths must be finite and not negative, and eta_f given and not 0.")
        if gone := due - set(lengths):
            raise ValueError(
                f"lengths must have the length of every push, but has none for step "
                f"{min(gone)}; take dict(p.log['push']) of a run of as many steps."
            )
    if cap is not None:
        require_positive(cap=require.number("cap", cap))
        if lengths is not None:
            raise ValueError("cap and lengths both set how long a push is; leave one out.")
    require_fit(model, clean, likelihood)
    if eta_f is None:
        return _climbed(given, likelihood, start)
    generator = beside(require.generator(generator), clean.x.device)
    model = copied(model)
    moves = {n: w.requires_grad for n, w in model.named_parameters()}
    if fast:
        fip_factorize(model)
        for m in batch_norms(model) if not affine else ():
            m.requires_grad_(False)
    diagonal = []
    # One score an image, at a label drawn from the network, or its own. Where a network
    # is certain of all its clean images, drawn labels miss most of the Fisher (see
    # `curvature.bartlett`), and there is next to no pull.
    if eta_r > 0:
        route: Route = "bartlett" if fisher == "true" else "signed"
        found = fisher_diagonal(
            model,
            clean,
            route=route,
            fisher=fisher,
            draws=1,
            chunk=1,
            likelihood=likelihood,
            generator=generator,
        )
        diagonal = list(found.values())
    descent = FipDescent(
        likelihood,
        generator,
        eta_f,
        eta_r,
        every,
        fisher,
        product,
        norms,
        [w.detach().clone() for w in trainable(model)],
        diagonal,
        draw,
        lengths,
        cap,
    )
    ready = time.perf_counter() - start
    p = fip_descend(
        model,
        clean,
        descent,
        steps=steps,
        lr=lr,
        momentum=momentum,
        optimizer=optimizer,
        batch=batch,
        norms=norms,
        augment=augment,
        watch=watch,
        watch_every=watch_every,
        generator=generator,
        checkpoint=checkpoint,
        about=about,
    )
    if fast:
        p.log["change"] = fold(model)
        for name, w in model.named_parameters():
            w.requires_grad_(moves[name])
    return replace(p, seconds=ready + p.seconds)


def _climbed(given: dict, likelihood: Likelihood, start: float) -> Purified:
    """FIP with every weight of the ladder, and the one that `held` allows.

    Args:
        given: the arguments of :func:`fip`.
        start: when the call began.
    """
    model, clean, held = given["model"], given["clean"], given["held"]
    generator, device = given["generator"], given["clean"].x.device
    if not isinstance(clean, Examples):
        raise ValueError(
            "eta_f is chosen by the score of a task, and bare inputs and targets have none; "
            "give eta_f, or Examples as clean."
        )
    if held is None:
        if len(clean) < 4:
            raise ValueError(
                f"eta_f is chosen on a fifth of clean, which needs 4 {clean.task.many}, not "
                f"{len(clean)}; give more, or eta_f."
            )
        clean, held = hold_out(clean, max(1, len(clean) // 5), seeded(0))
    # Of what moves, on the examples that will be descended on, without chance of theirs.
    net = copied(model)
    if given["fast"]:
        fip_factorize(net)
        for m in batch_norms(net) if not given["affine"] else ():
            m.requires_grad_(False)
    route: Route = "gaussian" if likelihood.has("noise") else "bartlett"
    how = {"route": route} if given["fisher"] == "true" else {"fisher": "empirical"}
    own = beside(seeded(0), device)
    fisher = fisher_trace(net, clean, likelihood=likelihood, generator=own, **how).value
    if not fisher > 0:
        raise ValueError(
            f"the trace of the Fisher is {fisher:g} on these {clean.task.many}, so no share "
            "of it can be a weight; give eta_f."
        )
    ready = time.perf_counter() - start
    state, score = generator.get_state(), own_acc(model, held, "the network") or 0.0
    least = score - given["max_drop"] - 1e-9  # the rounding of a quotient
    rungs: list[dict] = []
    chosen, fine = 0, True
    for i, share in enumerate(FIP_SHARES):
        generator.set_state(state)
        here = {"clean": clean, "held": held, "eta_f": share / fisher, "generator": generator}
        here["checkpoint"] = stage(given["checkpoint"], f"{share:g}")
        rung = {"share": share, "eta_f": share / fisher, "held": None, "seconds": 0.0}
        rungs.append(rung)
        try:
            p = fip(**(given | here))
        except RuntimeError as e:
            if i == 0 or not ("left all bounds" in str(e) or "diverged" in str(e)):
                raise
            fine = False
            continue
        rung["held"] = own_acc(p.model, held, "the repaired network")
        rung["seconds"] = round(p.seconds, 3)
        fine = fine and rung["held"] >= least
        if fine or i == 0:
            found, chosen = p, i
    costly = rungs[0]["held"] < least
    log = found.log | {"eta_f": rungs[chosen]["eta_f"], "fisher": fisher, "held": score}
    log |= {"costly": costly, "ladder": rungs}
    return replace(found, log=log, seconds=ready + sum(r["seconds"] for r in rungs))


@filled
def fast_fip(
    model: nn.Module,
    clean: Batch,
    held: Examples | None = None,
    *,
    eta_f: float | None = None,
    max_drop: float = 0.03,
    eta_r: float = 0.05,
    every: int = 1,
    fisher: Literal["true", "empirical"] = "true",
    product: Literal["difference", "exact", "random"] = "difference",
    norms: Literal["batch", "frozen", "mixed"] = "batch",
    draw: Literal["labels", "gaussian"] = "labels",
    lengths: Mapping[int, float] | None = None,
    cap: float | None = None,
    likelihood: Likelihood | None = None,
    affine: bool = True,
    steps: int = STEPS,
    lr: float = 0.05,
    momentum: float = 0.9,
    optimizer: str = "sgd",
    batch: int = 32,
    augment: Augmentation | None = None,
    watch: Callable[[nn.Module], dict] | None = None,
    watch_every: int = 50,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Purified:
    """Fast FIP: the same over singular values, which takes longer steps.

    All three terms of the objective are taken over d, and over what is no matrix: biases,
    BatchNorm, LayerNorm. Tables of an embedding are matrices; weights that several layers
    share stay shared, with one d.

    Args:
        clean: images, or any pair of inputs x and targets y.
        affine: scales and shifts of BatchNorm move as well; the released code does not
            say.
        held, max_drop: see :func:`fip`.
        eta_f: None chooses, see :func:`fip`; its trace is that over d, several times
            smaller than that over weights. :data:`FAST_FIP_ETA` is that of the course's
            tables on images.
        lr: ours; steps along singular values are stable at higher rates.
        eta_r, every, fisher, product, norms, draw, lengths, cap, likelihood, steps,
            momentum, optimizer, batch, augment, watch, watch_every, generator, checkpoint:
            see :func:`fip`.

    Returns, raises:
        as :func:`fip`.

    Source: Karim et al., CCS 2024; reconstructed. Derived in lesson 08.
    """
    return fip(**locals(), fast=True)


@defense(batches=True, steady=False, moves=True)
def fip_released(
    model: nn.Module,
    clean: Batch,
    *,
    eta_f: float = 0.5,
    every: int = 5,
    probes: int = 20,
    steps: int = STEPS,
    lr: float = 0.01,
    momentum: float = 0.9,
    optimizer: str = "sgd",
    batch: int = 32,
    norms: Literal["batch", "frozen", "mixed"] = "batch",
    augment: Augmentation | None = None,
    watch: Callable[[nn.Module], dict] | None = None,
    watch_every: int = 50,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Purified:
    """Not FIP, but what its authors' released script does; see :class:`ReleasedDescent`.

    Args:
        clean: images, or any pair of inputs x and labels y.
        eta_f: the script's default; its authors advise at most 0.005.
        every, probes: the script's.
        steps, lr, momentum, optimizer, batch, norms, augment, watch, watch_every,
            generator, checkpoint: see :func:`fip_descend`. The script takes 2,000 steps of
            SGD at lr 0.005, momentum 0.95 and batch 128 (500 images of CIFAR-10, crops and
            flips).

    Returns:
        log, as [step, value] pairs: `loss` (NLL in nats) and `trace`, what the script takes
        for it.

    Raises:
        ValueError: see :func:`fip`; outputs that are no classes.

    Source: released code of Karim et al., CCS 2024.
    Derived in lesson 08.
    """
    start, about = time.perf_counter(), decided_by("fip_released", locals())
    require_at_least(0, eta_f=require.number("eta_f", eta_f))
    require.whole("every", every, 1)
    require.whole("probes", probes, 1)
    generator = beside(require.generator(generator), clean.x.device)
    ready = time.perf_counter() - start
    p = fip_descend(
        copied(model),
        clean,
        ReleasedDescent(generator, eta_f, every, probes),
        steps=steps,
        lr=lr,
        momentum=momentum,
        optimizer=optimizer,
        batch=batch,
        norms=norms,
        augment=augment,
        watch=watch,
        watch_every=watch_every,
        generator=generator,
        checkpoint=checkpoint,
        about=about,
    )
    return replace(p, seconds=ready + p.seconds)
