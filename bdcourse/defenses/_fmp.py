"""FMP: prune the feature maps through which a small change of the image does harm.

Huang and Bu, "Adversarial Feature Map Pruning for Backdoor", ICLR 2024. A feature map
is one output channel i of one convolution L; let f be its raw output, before BatchNorm
and ReLU. From a random start x0 near the image x, one step moves this map alone away
from what it was,

    J(x') = mean (f(x') - f(x))^2,    x_{L,i} = clip(x0 + epsilon * sign(dJ/dx' at x0)),

and the map's score is the accuracy of the whole, unmodified network on x_{L,i}. FMP
switches off the floor(N / p) maps of each layer whose score is lowest, and fine-tunes.
Derived in lesson 06.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bdcourse import require
from bdcourse.activations import runs, watching
from bdcourse.augment import Augmentation
from bdcourse.checkpoint import Checkpoint
from bdcourse.defenses._base import (
    Purified,
    Tuning,
    admit,
    copied,
    decided_by,
    defense,
    filled,
    require_at_least,
    require_movable,
    require_positive,
    require_single,
    require_ways,
    stage,
)
from bdcourse.examples import Examples
from bdcourse.likelihoods import SOFTMAX, Likelihood
from bdcourse.models import evaluating, laid_out, lay_out, wide
from bdcourse.surgery import (
    CONVS,
    answers,
    channels_of,
    held,
    pair_by_flow,
    pair_by_order,
    require_plain,
    revived,
    without,
)
from bdcourse.task import IMAGES, Task

# Step and radius of the random start, in pixels of [0, 1]. "port" is what a third
# party's port uses, "release" what the authors' configurations for CIFAR-10 say; those
# act on tensors that the release has normalized before, where they mean something else.
FMP_SETTINGS = {
    "port": {"epsilon": 1 / 255, "start": 1 / 255},
    "release": {"epsilon": 0.06, "start": 0.02},
}
BLOCK = 64  # images that share one graph; more gain nothing
By = Literal["acc", "margin"]


class FmpResponse(NamedTuple):
    """How the network fares on images pushed for each map of a layer, all (c,) float64.

    Args:
        acc: accuracy, 0..1: the score of the paper.
        loss: mean loss in nats, of classes cross-entropy, which breaks ties of `acc`.
        margin: mean of the true class's logit minus the best other one.
    """

    acc: Tensor
    loss: Tensor
    margin: Tensor

    def __repr__(self) -> str:
        low, high = (float(f(self.acc)) for f in (torch.amin, torch.amax))
        return f"FmpResponse({len(self.acc):,} maps, accuracy {low:.2f} to {high:.2f})"


def fmp_random_start(
    x: Tensor, start: float, generator: torch.Generator, task: Task = IMAGES
) -> Tensor:
    """clip(x +- start), the sign drawn for each number of the inputs x (n, ...); of
    images pixels in [0, 1]."""
    d = generator.device
    sign = torch.randint(2, x.shape, generator=generator, device=d, dtype=torch.int8)
    return task.clip(x + start * (2 * sign - 1).to(x.device))


def fmp_plain_push(
    model: nn.Module,
    x: Tensor,
    x0: Tensor,
    layer: str,
    i: int,
    epsilon: float,
    task: Task = IMAGES,
) -> Tensor:
    """Examples moved one step so that map i of a convolution changes: (n, ...) as x.

    Args:
        x: inputs, of images pixels in [0, 1]; x0: where the step begins, see
            :func:`fmp_random_start`. At x0 = x the gradient is exactly zero and nothing moves.
    """
    seen: list[Tensor] = []  # copies: a ReLU behind may write into the output

    def see(_, out):
        seen.append(out[:, i].clone())

    x0 = x0.clone().requires_grad_()
    with evaluating(model), watching(model, see, [layer]):
        model(x)
        model(x0)
    j = (seen[1] - seen[0].detach()).square().mean()
    (gradient,) = torch.autograd.grad(j, x0)
    return task.clip(x0.detach() + epsilon * gradient.sign())


def fmp_plain_scores(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    x0: Tensor,
    layer: str,
    epsilon: float,
    task: Task = IMAGES,
) -> FmpResponse:
    """The scores of one convolution, map by map; the reference for :func:`fmp_scores`."""
    rows = []
    for i in range(_conv(model, layer).out_channels):
        pushed = fmp_plain_push(model, x, x0, layer, i, epsilon, task)
        with torch.no_grad(), evaluating(model):
            rows.append(judge(model(pushed), y, task.likelihood).mean(1))
    return FmpResponse(*torch.stack(rows, 1))


def _conv(model: nn.Module, name: str) -> nn.Conv2d:
    return cast(nn.Conv2d, model.get_submodule(name))


def judge(logits: Tensor, y: Tensor, likelihood: Likelihood = SOFTMAX) -> Tensor:
    """Hit (0 or 1), loss in nats and margin of each example: (n, k) -> (3, n) float64.

    The margin is the true class's logit minus the best other one. Where outputs are no
    row of logits, a hit is the share of an example's targets that are met, and there is
    no margin (nan).
    """
    logits = wide(logits)
    y = y.to(logits.device)
    if logits.ndim != 2:
        right, asked = likelihood.hits(logits, y)
        hit, loss = wide(right) / wide(asked).clamp(min=1), -likelihood.log_prob(logits, y)
        return torch.stack([hit, wide(loss), torch.full_like(hit, torch.nan)])
    true = logits.gather(1, y[:, None])[:, 0]
    other = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    loss = F.cross_entropy(logits, y, reduction="none")
    return torch.stack([wide(logits.argmax(1) == y), loss, true - other])


# ------------------------------------------------------------- the same, many at once


class _Reached(Exception):
    """Thrown at a layer to leave the rest of the network out."""


def _upto(model: nn.Module, x: Tensor, layer: str) -> Tensor:
    """The output of `layer` for inputs x; nothing behind it is computed."""
    seen = []

    def stop(_, __, out):
        seen.append(out)
        raise _Reached

    hook = model.get_submodule(layer).register_forward_hook(stop)
    try:
        with suppress(_Reached):
            model(x)
    finally:
        hook.remove()
    return seen[0]


def gradients(
    model: nn.Module, x: Tensor, x0: Tensor, layer: str, step: int = 1
) -> Iterator[tuple[slice, Tensor]]:
    """dJ/dx0 of every map of a layer: pairs (maps, (m, *x.shape)), m at most `step`.

    One forward up to the layer serves all its maps. The gradient of map i is the
    vector-Jacobian product with 2 (f(x0) - f(x)) / size in map i and zero elsewhere;
    `step` of them are pulled back together.
    """
    with torch.no_grad():
        clean = _upto(model, x, layer)
    x0 = x0.detach().clone().requires_grad_()
    with torch.enable_grad():
        moved = _upto(model, x0, layer)
    change = 2 * (moved.detach() - clean) / moved[:, 0].numel()
    maps = moved.shape[1]
    for first in range(0, maps, step):
        part = slice(first, min(first + step, maps))
        m = part.stop - first
        pull = moved.new_zeros(m, *moved.shape)
        rows = torch.arange(m, device=x.device)
        pull[rows, :, rows + first] = change[:, part].transpose(0, 1)
        if m == 1:  # on a CPU faster than batching, which only saves kernel launches
            (g,) = torch.autograd.grad(moved, x0, pull[0], retain_graph=True)
            yield part, g[None]
        else:
            try:
                (g,) = torch.autograd.grad(
                    moved, x0, pull, retain_graph=True, is_grads_batched=True
                )
            except RuntimeError:  # some layers, as GroupNorm, know no batches of them
                rows = (torch.autograd.grad(moved, x0, p, retain_graph=True)[0] for p in pull)
                g = torch.stack(list(rows))
            yield part, g


def fmp_execution_order(
    model: nn.Module, shape: tuple[int, ...] | Examples = (3, 32, 32)
) -> list[str]:
    """Names of the convolutions in the order in which they first run.

    `named_modules` gives the order of definition, where a shortcut may come last that
    runs first. A convolution that never runs is left out.

    Args:
        shape: (c, h, w) of one image, or examples of any task, of which two are shown.
    """
    p = next(require.module(model).parameters())
    if isinstance(shape, Examples):
        x, many = shape[:2].inputs(), shape.task.many
    else:
        x, many = torch.full((2, *shape), 0.5, device=p.device), "images"
    order: list[str] = []
    convs = [n for n, m in model.named_modules() if isinstance(m, CONVS)]
    with watching(model, lambda name, _: order.append(name), convs):
        answers(model, x, many=many)
    return list(dict.fromkeys(order))


@filled
def fmp_scores(
    model: nn.Module,
    images: Examples,
    *,
    epsilon: float | None = None,
    start: float | None = None,
    layers: Sequence[str] | None = None,
    n: int = 512,
    starts: int = 1,
    chunk: int | None = None,
    bf16: bool = False,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> dict[str, FmpResponse]:
    """The response of every feature map: convolution name -> :class:`FmpResponse`.

    Args:
        epsilon: the step, in units of the inputs; start: the radius of the random start,
            which all maps share. None is the task's own small step, 1/255 for pixels of
            [0, 1]. See :data:`FMP_SETTINGS`.
        layers: names of convolutions; default all, in the order of execution.
        n: at most so many random images score; with few of them most maps tie.
        starts: average over so many random starts; the paper takes one.
        chunk: perturbed images that are in memory at once; default 64 on a CPU, where
            more gain nothing, and 4096 on a GPU. Changes the order of sums, not more.
        bf16: rank in bfloat16, which moves single predictions. Gradients stay float32:
            their small entries would change sign.
        checkpoint: file renewed every 20 seconds and deleted at the end. The same
            call, started again after a stop, goes on there and ends with equal scores.

    Raises:
        ValueError: no images or no convolution, labels that the model does not know,
            inputs that cannot move (tokens) or have no usual step, a step or start that
            is not positive (without a start every gradient is zero).
    """
    found, keep = _score(**locals())
    keep.done()
    return found


def _score(
    model, images, epsilon, start, layers, n, starts, chunk, bf16, generator, checkpoint
) -> tuple[dict[str, FmpResponse], Checkpoint]:
    """`fmp_scores`, and its checkpoint, which holds them all until it is told `done`."""
    about = decided_by("fmp_scores", locals())
    admit(model, images, least=1, floats=True)
    epsilon, start = _steps(images, epsilon, start)
    require.whole("n", n, 1)
    require.whole("starts", starts, 1)
    if chunk is not None:
        require.whole("chunk", chunk, 1)
    require.truth("bf16", bf16)
    require_ways({"generator": generator, "checkpoint": checkpoint})
    layers = _known(model, images, layers)
    weight = next(model.parameters())
    device = weight.device
    chunk = chunk or (4096 if device.type == "cuda" else BLOCK)
    keep = Checkpoint(checkpoint, about)
    if len(images) > n:
        d = generator.device
        order = torch.randperm(len(images), generator=generator, device=d)
        images = images[order[:n]]
    task = images.task
    x, y = task.inputs(images.x, weight.dtype), torch.cat([images.y] * starts)
    x0 = torch.cat([fmp_random_start(x, start, generator, task) for _ in range(starts)])
    x = torch.cat([x] * starts)
    # A copy: its modes and flags can change while the caller's model stays as it is.
    net = copied(model).eval().requires_grad_(False)
    lay_out(net, x)
    widths = [_conv(net, name).out_channels for name in layers]
    sums = {
        name: torch.zeros(3, c, dtype=torch.float64) for name, c in zip(layers, widths, strict=True)
    }
    done = 0
    if (saved := keep.load()) is not None:
        sums, done = {name: saved[0][name] for name in layers}, saved[1]["jobs"]
    size = min(len(y), BLOCK, chunk)
    step = max(1, chunk // size)
    autocast = torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
    jobs = 0
    for name, total in sums.items():
        per_block = -(-total.shape[1] // step)
        for block in torch.arange(len(y)).split(size):
            if jobs + per_block <= done:  # what a stopped call has finished
                jobs += per_block
                continue
            a, b = (laid_out(net, t[block].to(device)) for t in (x, x0))
            truth = y[block].to(device)
            for maps, gradient in gradients(net, a, b, name, step):
                jobs += 1
                if jobs <= done:
                    continue
                m = len(gradient)
                with torch.no_grad(), autocast:
                    pushed = task.clip(b + epsilon * gradient.sign()).flatten(0, 1)
                    logits = net(laid_out(net, pushed))
                rows = judge(logits, torch.cat([truth] * m), task.likelihood).view(3, m, -1)
                total[:, maps] += rows.sum(2).cpu()
                if keep.due():
                    keep.save(sums, jobs=jobs)
    keep.save(sums, jobs=jobs)
    return {name: FmpResponse(*(s / len(y))) for name, s in sums.items()}, keep


def _steps(images: Examples, epsilon: float | None, start: float | None) -> tuple[float, float]:
    """Step and start in units of the inputs, the task's own where they are None."""
    usual = images.task.step
    if usual is None and None in (epsilon, start):
        raise ValueError(
            f"FMP moves inputs by a small step, and {images.task.many} have no usual one; "
            "give epsilon= and start= in their own units."
        )
    epsilon, start = (usual if v is None else v for v in (epsilon, start))
    require_positive(epsilon=epsilon, start=start)
    return cast(float, epsilon), cast(float, start)


def _known(model: nn.Module, images: Examples, layers: Sequence[str] | None) -> list[str]:
    """The convolutions to score, after a look at whether all fits together."""
    known = fmp_execution_order(model, images)
    if not known:
        raise ValueError(
            "FMP needs a convolution, and this model has none that runs; take a "
            "defense that prunes something else."
        )
    transformer = any(isinstance(m, nn.MultiheadAttention) for m in model.modules())
    if transformer and layers is None:
        warnings.warn(
            f"of this transformer only {', '.join(known)} is a convolution: FMP sees "
            "the maps of no other layer.",
            stacklevel=4,
        )
    layers = known if layers is None else require.names("layers", layers)
    if not layers:
        raise ValueError(f"layers names no layer; choose from {', '.join(known)}.")
    if unknown := [name for name in layers if name not in known]:
        raise ValueError(
            f"the model runs no convolution {unknown[0]!r}; choose from {', '.join(known)}."
        )
    _require_once(model, images, layers)
    return layers


def _require_once(model: nn.Module, images: Examples, layers: Sequence[str]) -> None:
    """Refuse convolutions whose maps cannot be told apart, or cannot be pruned."""
    counts = runs(model, images[:2].inputs(), layers)
    for name in layers:
        if counts[name] != 1:
            raise ValueError(
                f"the convolution {name} runs {counts[name]} times in a pass, so its "
                "maps stand in several places; FMP needs one that runs once."
            )
        require_plain(model.get_submodule(name), name)
    for name, m in model.named_modules():
        if isinstance(m, _BatchNorm) and m.weight is None:
            raise ValueError(
                f"{name} has no scale (affine=False): it makes a constant of a filter "
                "that is zero, so no map before it can be switched off."
            )


# ------------------------------------------------------------- choosing and pruning


@filled
def fmp_select(
    score: Mapping[str, FmpResponse],
    p: float = 64,
    *,
    by: By = "acc",
    least: int = 0,
    z: float | None = None,
) -> dict[str, Tensor]:
    """The maps to prune: name -> positions (m,), the floor(N / p) worst of N per layer.

    Args:
        p: at least 1. A layer of fewer than p maps loses none.
        by: "acc" takes the lowest accuracies, of equal ones that with the higher
            loss, then the first; "margin" the smallest mean margins, which do
            not tie, and which classes alone have.
        least: take at least so many from each layer; for networks narrower than p.
        z: not a fixed share, but every map more than z deviations below its layer's
            mean (of `by`), possibly none; p and least then do not matter.
    """
    require_at_least(1, p=p)
    require_at_least(0, least=require.whole("least", least), z=z)
    if by not in ("acc", "margin"):
        raise ValueError(f"unknown score {by!r}; acc or margin.")
    out = {}
    for name, r in score.items():
        value = getattr(r, by)
        if bool(value.isnan().any()):
            raise ValueError(
                f'{name} has no {by} to choose by, which only classes have; take "acc".'
            )
        order = r.loss.argsort(descending=True, stable=True)
        order = order[value[order].argsort(stable=True)]
        if z is None:
            m = min(len(value), max(int(len(value) // p), least))
        else:  # one map has no deviation
            cut = value.mean() - z * value.std() if len(value) > 1 else -torch.inf
            m = int((value < cut).sum())
        out[name] = order[:m].sort().values
    return out


def fmp_released_order(
    model: nn.Module, chosen: Mapping[str, Tensor], order: Sequence[str]
) -> dict[str, Tensor]:
    """What the released code prunes: lists of one order applied in the other.

    Args:
        order: the convolutions in the order of execution, see :func:`fmp_execution_order`.

    The k-th list that was collected goes to the k-th convolution that was defined.

    Raises:
        ValueError: this pairs layers of different widths.
    """
    defined = [name for name, _ in model.named_modules() if name in set(order)]
    out = {}
    for here, there in zip(defined, order, strict=True):
        widths = [_conv(model, n).out_channels for n in (here, there)]
        if widths[0] != widths[1]:
            raise ValueError(
                f"the released order would give {here} the list of {there}, which has "
                f"{widths[1]} maps instead of {widths[0]}; leave out released."
            )
        out[here] = chosen[there]
    return out


def fmp_scales_of(
    model: nn.Module,
    channels: Mapping[str, Tensor],
    pairing: Literal["flow", "order"] = "flow",
    shape: tuple[int, ...] = (3, 32, 32),
) -> dict[str, Tensor]:
    """The BatchNorm scales that belong to these maps: BatchNorm name -> positions.

    A BatchNorm that normalizes a sum of branches belongs to none of them, see
    `surgery.pair_by_flow`; "order" is the release's pairing, by definition order.
    """
    by_order = pairing == "order"
    found = pair_by_order(model) if by_order else pair_by_flow(model, shape)
    return {p.bn: channels[p.conv] for p in found.pairs if p.conv in channels}


@defense()
def fmp_repair(
    model: nn.Module,
    clean: Examples,
    channels: Mapping[str, Tensor],
    *,
    pairing: Literal["flow", "order"] = "flow",
    hold_mask: bool = False,
    epochs: float = 10,
    lr: float = 0.01,
    batch: int = 32,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup: float = 0.0,
    frozen_norms: bool = False,
    augment: Augmentation | None = None,
    each_epoch: Callable[[nn.Module], dict] | None = None,
    verbose: bool = False,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Purified:
    """The second half of FMP, for any choice of maps: prune, then fine-tune.

    Filters become zero and with them the scales of their own BatchNorms; shifts stay.

    Args:
        channels: convolution name -> positions.
        pairing: see :func:`fmp_scales_of`.
        hold_mask: what was pruned stays zero. The release does not hold it. A filter
            that only a BatchNorm with scale zero reads gets no gradient and stays off
            anyway; one that feeds a sum (pre-activation networks) grows back.
        epochs: 0 only prunes.
        lr, batch, momentum, weight_decay, warmup, frozen_norms, augment, verbose,
            generator, checkpoint: see `train.fit`. The rate falls from lr to almost zero
            along a cosine, with Nesterov momentum; in the release it ends at 1e-4, with
            plain momentum.
        each_epoch: see `train.fit`; what it returns joins the log's history.

    Returns:
        log: `scales` by BatchNorm, `history` (a row an epoch, with the number of maps
        `revived`), and `revived` at the end.

    Raises:
        ValueError: channels that the model does not have, or settings out of range.
    """
    begun = time.perf_counter()
    require.choice("pairing", pairing, ("flow", "order"))
    require.truth("hold_mask", hold_mask)

    def look(m: nn.Module) -> dict:
        return {"revived": revived(m, channels)} | (each_epoch(m) if each_epoch else {})

    require_at_least(0, epochs=epochs)
    tuning = Tuning.of(locals(), epochs=epochs or 1, each_epoch=look)
    channels = channels_of(model, channels)
    _require_once(model, clean, list(channels))
    channels = {name: which.cpu() for name, which in channels.items()}
    scales = fmp_scales_of(model, channels, pairing, clean.shape)
    off = {**channels, **scales}
    repaired = without(model, off, shift=False)

    generator = require.generator(generator)
    rows: list[dict] = []
    if epochs > 0:
        require_movable(model)
        with held(repaired, off if hold_mask else None):
            rows = tuning(repaired, clean, generator, checkpoint).epochs
    else:
        repaired.eval()
    log = {"scales": scales, "history": rows, "revived": revived(repaired, channels)}
    return Purified(repaired, channels, log, time.perf_counter() - begun)


@filled
def fmp(
    model: nn.Module,
    clean: Examples,
    *,
    p: float = 64,
    epsilon: float | None = None,
    start: float | None = None,
    n: int = 512,
    starts: int = 1,
    by: By = "acc",
    least: int = 0,
    z: float | None = None,
    chunk: int | None = None,
    bf16: bool = False,
    released: bool = False,
    hold_mask: bool = False,
    epochs: float = 10,
    lr: float = 0.01,
    batch: int = 32,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup: float = 0.0,
    frozen_norms: bool = False,
    augment: Augmentation | None = None,
    each_epoch: Callable[[nn.Module], dict] | None = None,
    verbose: bool = False,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Purified:
    """Score every feature map, prune the worst of each layer, fine-tune.

    Args:
        clean: the defender's images: they score and they fine-tune.
        p, by, least, z: which maps go, see :func:`fmp_select`.
        epsilon, start, n, starts, chunk, bf16: see :func:`fmp_scores`.
        released: apply the lists in the order in which the release does, and pair
            BatchNorms by definition order. Pre-activation networks then lose other maps
            than those that scored worst.
        hold_mask, epochs, lr, batch, momentum, weight_decay, warmup, frozen_norms, augment,
            each_epoch, verbose: see :func:`fmp_repair`; epochs=0 only prunes.
        generator: decides the images that score, the starts and the fine-tuning.
        checkpoint: file for scores; fine-tuning keeps another, with ".tune" added.

    Returns:
        log: `p`, `epsilon`, `start`, `scores` (a :class:`FmpResponse` by convolution), and
        what :func:`fmp_repair` logs.

    Raises:
        ValueError: see :func:`fmp_scores`, :func:`fmp_select` and :func:`fmp_released_order`.

    Source: Huang and Bu, ICLR 2024, and the released code where the paper leaves things
    open. Derived in lesson 06.
    """
    begun = time.perf_counter()
    # Refuse before, not after the hours.
    fmp_select({}, p, by=by, least=least, z=z)
    require_at_least(0, epochs=epochs)
    Tuning.of(locals(), epochs=epochs or 1)
    require.truth("released", released)
    require.truth("hold_mask", hold_mask)
    admit(model, clean, floats=True)
    require_single(model)
    epsilon, start = _steps(clean, epsilon, start)
    if released:
        names = fmp_execution_order(model, clean)
        empty = torch.zeros(0, dtype=torch.int64)
        fmp_released_order(model, dict.fromkeys(names, empty), names)
    found, keep = _score(
        model,
        clean,
        epsilon,
        start,
        None,
        n,
        starts,
        chunk,
        bf16,
        generator,
        checkpoint,
    )
    chosen = fmp_select(found, p, by=by, least=least, z=z)
    if not any(map(len, chosen.values())):
        warnings.warn(
            f"FMP prunes nothing: no layer has {p:g} maps, or none stands out; lower p "
            "or set least=1.",
            stacklevel=2,
        )
    if released:
        chosen = fmp_released_order(model, chosen, list(found))
    repaired = fmp_repair(
        model,
        clean,
        chosen,
        pairing="order" if released else "flow",
        hold_mask=hold_mask,
        epochs=epochs,
        lr=lr,
        batch=batch,
        momentum=momentum,
        weight_decay=weight_decay,
        warmup=warmup,
        frozen_norms=frozen_norms,
        augment=augment,
        each_epoch=each_epoch,
        verbose=verbose,
        generator=generator,
        checkpoint=stage(checkpoint, "tune"),
    )
    keep.done()
    log = {"p": p, "epsilon": epsilon, "start": start, "scores": found}
    log |= repaired.log
    seconds = time.perf_counter() - begun
    return Purified(repaired.model, repaired.pruned, log, seconds)


@filled
def fmp_random(
    model: nn.Module,
    clean: Examples,
    like: Mapping[str, Tensor],
    *,
    pairing: Literal["flow", "order"] = "flow",
    hold_mask: bool = False,
    epochs: float = 10,
    lr: float = 0.01,
    batch: int = 32,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    warmup: float = 0.0,
    frozen_norms: bool = False,
    augment: Augmentation | None = None,
    each_epoch: Callable[[nn.Module], dict] | None = None,
    verbose: bool = False,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Purified:
    """The control of FMP: as many random maps in each layer, all else the same.

    `controls.prune_random` zeroes filters only, so that under fine-tuning its channels
    grow back where FMP's stay off.

    Args:
        clean: what fine-tunes.
        like: convolution name -> positions, as in `Purified.pruned` of :func:`fmp`.
        generator: decides the maps, then the fine-tuning.
        pairing, hold_mask, epochs, lr, batch, momentum, weight_decay, warmup, frozen_norms,
            augment, each_epoch, verbose, checkpoint: see :func:`fmp_repair`.

    Returns, raises:
        as :func:`fmp_repair`.

    Source: a control of ours. Derived in lesson 06.
    """
    given = dict(locals())
    del given["like"]
    chosen = {}
    generator = require.generator(generator)
    for name, which in channels_of(require.module(model), like, "like").items():
        maps = _conv(model, name).out_channels
        order = torch.randperm(maps, generator=generator, device=generator.device)
        chosen[name] = order[: len(which)].cpu().sort().values
    return fmp_repair(channels=chosen, **given)
