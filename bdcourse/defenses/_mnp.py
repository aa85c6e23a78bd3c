"""MNP-style reconstruction: prune channels that are large and yet not needed.

Li, Jiang and Yi, "Magnitude-based Neuron Pruning for Backdoor Defense",
arXiv 2405.17750, 2024, has no public code, and its method section was not available to
us. What is here is OUR RECONSTRUCTION from the published summary: the three objectives
are the paper's (weight penalty, clean suppression, clean preserving), their formulas
and all numbers are ours. Its results say nothing about the paper's tables.

In a network trained with weight decay, large filters should matter: what is not needed
shrinks. Filters of a backdoor break the rule on *clean* images, because they are large
for the sake of images that the defender does not have. With a the magnitude, theta the
network and theta~ a copy that has forgotten the clean task, masks m minimize

    J(m) = preserve * S(theta, m) + beta * S(theta~, m) + lam * sum_ij a_ij m_ij
           [ + kappa * sum_ij r_ij (1 - m_ij) ]

where S is the mean loss on clean examples, of images the cross-entropy. Derived in lesson 07.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bdcourse import require
from bdcourse.activations import spearman
from bdcourse.checkpoint import Checkpoint
from bdcourse.defenses._base import (
    Look,
    Purified,
    Tuning,
    admit,
    decided_by,
    defense,
    filled,
    require_at_least,
    require_here,
    require_list,
    require_positive,
    require_ways,
    stage,
)
from bdcourse.defenses._masks import (
    Masks,
    baked,
    below,
    gradient_of,
    learn,
    maskable,
    masks_forward,
    masks_frozen,
    masks_ones,
    masks_prune,
    require_threshold,
)
from bdcourse.defenses._rnp import _require_ascent, unlearn
from bdcourse.examples import Examples, require_clean
from bdcourse.likelihoods import SOFTMAX, Likelihood
from bdcourse.metrics import evaluate
from bdcourse.models import evaluating, laid_out
from bdcourse.surgery import held as holding
from bdcourse.surgery import pair_by_flow, require_sound, weight_of, without

METHOD = "MNP-style reconstruction"
BETAS = (0.002, 0.005, 0.02, 0.05)  # what `choose_beta` tries

# ------------------------------------------------------------- step 0: magnitude


def mnp_plain_folded(conv: nn.Conv2d, bn: _BatchNorm) -> Tensor:
    """|W_k|_1 |gamma_k| / sqrt(v_k + eps), one channel after the other: (c,).

    The reference that the version for all channels at once is tested against.
    """
    sizes = []
    assert bn.running_var is not None  # see `pair_by_flow`
    for k in range(conv.out_channels):
        deviation = (bn.running_var[k] + bn.eps).sqrt()
        sizes.append(conv.weight[k].abs().sum() * bn.weight[k].abs() / deviation)
    return torch.stack(sizes).detach()


Shape = tuple[int, ...]


@torch.no_grad()
def mnp_folded(model: nn.Module, shape: Shape | None = None) -> dict[str, Tensor]:
    """Size of every channel's filter with its BatchNorm folded in: name -> (c,).

    BatchNorm undoes any scaling of a filter, so the filter's own norm means nothing;
    what a channel passes on is |W_k|_1 |gamma_k| / sqrt(v_k + eps). Only BatchNorms
    behind exactly one convolution are here, see `surgery.pair_by_flow`. How the paper
    measures size is not known to us; this is the MNP-style reconstruction's choice.

    Args:
        shape: see `surgery.pair_by_flow`.
    """
    require_sound(model, steady=False)
    out = {}
    with evaluating(model):  # in train mode spectral norm moves when it is read
        for p in pair_by_flow(model, shape).pairs:
            conv, bn = model.get_submodule(p.conv), model.get_submodule(p.bn)
            assert isinstance(bn, _BatchNorm) and bn.running_var is not None  # of a pair
            size = weight_of(conv).flatten(1).abs().sum(1) * bn.weight.abs()
            out[p.bn] = size / (bn.running_var + bn.eps).sqrt()
    return out


def mnp_magnitudes(model: nn.Module, shape: Shape | None = None) -> dict[str, Tensor]:
    """The magnitudes a of the MNP-style reconstruction: BatchNorm name -> (c,).

    `mnp_folded` divided by its layer's mean, for every BatchNorm that can be masked.

    Without the division, layers with few inputs would hardly be penalized. BatchNorms
    that see a sum, as in pre-activation networks, have no filter of their own: all
    their channels get 1, the mean.
    """
    sizes, found = mnp_folded(model, shape), {}
    for name, bn in maskable(model).items():
        size = sizes.get(name)
        if size is None or not bool(size.mean() > 0):  # a layer that is switched off
            found[name] = torch.ones_like(bn.weight.detach())
        else:
            found[name] = size / size.mean()
    return found


def shrinkage(
    model: nn.Module, suppressed: nn.Module, shape: Shape | None = None
) -> dict[str, Tensor]:
    """r = max(0, 1 - size in the suppressed copy / size in the model): name -> (c,).

    The optional protection of the MNP-style reconstruction, for channels that the clean
    task used. Sizes are `mnp_folded`; 0 for a BatchNorm without a filter of its own.
    """
    before, after = mnp_folded(model, shape), mnp_folded(suppressed, shape)
    found = {}
    for name, bn in maskable(model).items():
        if name in before:
            ratio = after[name] / before[name].clamp(min=1e-12)
            found[name] = (1 - ratio).clamp(min=0)
        else:
            found[name] = torch.zeros_like(bn.weight.detach())
    return found


# -------------------------------------------------------------- step 0: saliency


@torch.no_grad()
def mnp_plain_loss_changes(
    model: nn.Module, clean: Examples, *, shift: bool = False
) -> dict[str, Tensor]:
    """`mnp_loss_changes` with a whole forward pass for every channel: the reference."""

    def losses(m: nn.Module) -> Tensor:
        return -task.likelihood.log_prob(task.outputs(m, clean.x), clean.y)

    task = clean.task

    before, found = losses(model), {}
    for name, bn in maskable(model).items():
        rows = [
            losses(without(model, {name: torch.tensor([k])}, shift=shift)) - before
            for k in range(bn.num_features)
        ]
        found[name] = torch.stack(rows)
    return found


@filled
@torch.no_grad()
def mnp_loss_changes(
    model: nn.Module,
    clean: Examples,
    *,
    shift: bool = False,
    room: int = 2**21,
    checkpoint: str | os.PathLike | None = None,
) -> dict[str, Tensor]:
    """What removing each channel does to each example's loss: name -> (c, n).

    Step 0 of the MNP-style reconstruction. Exact, and without repeating what does not
    change: everything in front of a channel
    is computed once, and several channels at a time go through the rest of the network,
    stacked along the batch.

    Args:
        shift: a removed channel emits 0; False leaves its shift, as a mask of 0 does.
        room: how many numbers one stacked BatchNorm output may have.
        checkpoint: file that is renewed as layers are finished and deleted at the end.

    A model that torch.fx cannot trace goes through `mnp_plain_loss_changes`, and keeps no
    checkpoint.
    """
    about = decided_by("mnp_loss_changes", locals())
    admit(model, clean, least=1)
    require.truth("shift", shift)
    require.whole("room", room, 1)
    maskable(model)
    keep = Checkpoint(checkpoint, about)
    saved = keep.load()
    done: dict[str, Tensor] = dict(saved[0]) if saved else {}
    layers, columns = maskable(model), []
    try:
        net = fx.symbolic_trace(masks_frozen(model))
    except Exception:  # fx raises many kinds when a model's code depends on values
        return mnp_plain_loss_changes(model, clean, shift=shift)
    for i, rows in enumerate(torch.arange(len(clean)).split(500)):
        part = clean[rows]
        try:
            for name, change in _removals(net, part, shift, room, done, f"{i}."):
                done[f"{i}.{name}"] = change
                if keep.due():
                    keep.save(done)
        except _NotStackable:
            return mnp_plain_loss_changes(model, clean, shift=shift)
        columns.append(len(part))
    keep.done()
    found = {}
    for name, bn in layers.items():
        unused = bn.weight.new_zeros(bn.num_features, 1)  # it was never reached
        rows = [done.get(f"{i}.{name}", unused.expand(-1, n)) for i, n in enumerate(columns)]
        found[name] = torch.cat([r.to(bn.weight.device) for r in rows], dim=1)
    return found


class _NotStackable(Exception):
    """A model keeps something else of a batch than a tensor with a row per image."""


def _removals(
    net: fx.GraphModule,
    part: Examples,
    shift: bool,
    room: int,
    done: Mapping[str, Tensor],
    prefix: str,
) -> Iterator[tuple[str, Tensor]]:
    """(BatchNorm name, change of each image's loss (c, n)), unless it is done already.

    Walks through the network once. At each BatchNorm, stacked copies of whatever the
    rest needs, one for each of several removed channels, go through that rest.
    """
    run, nodes, layers = fx.Interpreter(net), list(net.graph.nodes), maskable(net)
    at = {node: i for i, node in enumerate(nodes)}
    last = {node: max((at[u] for u in node.users), default=-1) for node in nodes}
    x, likelihood = laid_out(net, part.inputs()), part.task.likelihood
    before = -likelihood.log_prob(net(x), part.y)
    images: set[fx.Node] = set()  # the nodes whose values have a row for each image

    def value(node: fx.Node, values: dict):
        get = values.__getitem__
        args, kwargs = fx.map_arg(node.args, get), fx.map_arg(node.kwargs, get)
        return getattr(run, node.op)(node.target, args, kwargs)

    def forget(values: dict, i: int) -> None:
        for node in [m for m in values if last[m] <= i]:
            del values[node]

    def losses(i: int, values: dict, which: Tensor) -> Tensor:
        """Losses (len(which), n) with these channels of node i removed, one each."""
        v, name = len(which), nodes[i].target
        emitted = torch.zeros_like(layers[name].bias) if shift else layers[name].bias
        emitted = emitted[which].view(-1, *(1 for _ in values[nodes[i]].shape[1:]))
        mine = {}
        for node, kept in values.items():
            stackable = isinstance(kept, Tensor) and kept.shape[:1] == x.shape[:1]
            if node in images and not stackable:
                raise _NotStackable
            # A copy even if v is 1: layers that work in place must not reach `values`.
            mine[node] = torch.cat([kept] * v) if node in images else kept
        for j in range(i, len(nodes)):
            node = nodes[j]
            if node.op == "output":
                out = fx.map_arg(node.args[0], mine.__getitem__)
                targets = torch.cat([part.y] * v)
                return -likelihood.log_prob(out, targets).view(v, -1)
            if j > i:
                mine[node] = value(node, mine)
            if node.op == "call_module" and node.target == name:
                rows = mine[node].unflatten(0, (v, -1))  # (v, n, c, ...)
                rows[torch.arange(v, device=x.device), :, which] = emitted
            forget(mine, j)
        raise AssertionError("a graph ends in an output")

    values: dict = {}
    seen = set()
    for i, node in enumerate(nodes):
        if node.op == "output":
            break
        values[node] = x if node.op == "placeholder" else value(node, values)
        if node.op == "placeholder" or images & set(node.all_input_nodes):
            images.add(node)
        forget(values, i)
        name = node.target
        if node.op != "call_module" or name not in layers or name in seen:
            continue
        seen.add(name)
        if node not in values or prefix + name in done:
            continue
        chunk = max(1, room // values[node].numel())
        every = torch.arange(layers[name].num_features, device=x.device)
        found = [losses(i, values, which) for which in every.split(chunk)]
        yield name, torch.cat(found) - before


def mnp_saliency(
    model: nn.Module,
    clean: Examples,
    *,
    shift: bool = False,
    room: int = 2**21,
    checkpoint: str | os.PathLike | None = None,
) -> dict[str, Tensor]:
    """How much the clean loss rises if a channel is removed: BatchNorm name -> (c,).

    Step 0 of the MNP-style reconstruction:
    s = S(without the channel) - S, the mean over images of `mnp_loss_changes`. `errors`
    tells how well a number of images can know it.

    Args:
        shift, room, checkpoint: see `mnp_loss_changes`.
    """
    changes = mnp_loss_changes(model, clean, shift=shift, room=room, checkpoint=checkpoint)
    return {n: v.mean(1) for n, v in changes.items()}


def errors(changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Standard error of each saliency, from `mnp_loss_changes`: name -> (c,).

    With a few hundred images most saliencies are not distinguishable from zero.
    """
    return {n: v.std(1) / v.shape[1] ** 0.5 for n, v in changes.items()}


@filled
def mnp_first_order(model: nn.Module, clean: Examples, batch: int = 500) -> dict[str, Tensor]:
    """|m dS/dm| at m = 1, a proxy of saliency for the price of one pass: name -> (c,).

    Of the MNP-style reconstruction. True to first order only: to remove a channel is
    not a small step.
    """
    admit(model, clean, least=1)
    require.whole("batch", batch, 1)
    net, masks = masks_frozen(model), masks_ones(model)
    total = {n: torch.zeros_like(m) for n, m in masks.items()}
    for rows in torch.arange(len(clean)).split(batch):
        part = clean[rows]
        x = laid_out(net, part.inputs())
        leaves = {n: m.clone().requires_grad_(True) for n, m in masks.items()}
        out = masks_forward(net, leaves, x)
        loss = -part.task.likelihood.log_prob(out, part.y).sum()
        grads = gradient_of(loss, list(leaves.values()))
        for n, g in zip(total, grads, strict=True):
            total[n] += g / len(clean)
    return {n: g.abs() for n, g in total.items()}


# --------------------------------------------------------------- the detector


def mnp_correlation(
    magnitude: Mapping[str, Tensor], salient: Mapping[str, Tensor]
) -> dict[str, float]:
    """Spearman's rho of magnitude and saliency, layer by layer.

    The law that the MNP-style reconstruction builds on says that it is high in clean
    networks.
    """
    return {n: spearman(a.cpu(), salient[n].cpu()) for n, a in magnitude.items()}


def oddities(
    magnitude: Mapping[str, Tensor], salient: Mapping[str, Tensor], z: float = 2.0
) -> dict[str, Tensor]:
    """Channels that are large and not needed: BatchNorm name -> positions (m,).

    Magnitude more than z deviations above its layer's mean, saliency below its layer's
    median: suspects, says the MNP-style reconstruction.
    """
    found = {}
    for n, a in magnitude.items():
        s = salient[n].to(a.device)
        large = a > a.mean() + z * a.std()
        found[n] = (large & (s < s.median())).nonzero().flatten().cpu()
    return found


def mnp_score(
    magnitude: Mapping[str, Tensor],
    salient: Mapping[str, Tensor],
    *,
    kind: Literal["correlation", "oddities"] = "correlation",
    late: float = 0.5,
) -> float:
    """One number for a model, larger where it looks more backdoored: the detector of
    the MNP-style reconstruction, to be calibrated with `mnp_deviations`.

    Args:
        kind: "correlation" is minus the mean rho of the last layers; "oddities" counts
            the channels of `oddities` there.
        late: share of the layers that count, from the end, above 0 and up to 1.
    """
    if not 0 < late <= 1:
        raise ValueError(f"late must lie above 0 and at most at 1, not {late}.")
    names = list(magnitude)[-max(1, round(late * len(magnitude))) :]
    magnitude = {n: magnitude[n] for n in names}
    if kind == "correlation":
        return -statistics.mean(mnp_correlation(magnitude, salient).values())
    if kind == "oddities":
        return float(sum(map(len, oddities(magnitude, salient).values())))
    raise ValueError(f'kind must be "correlation" or "oddities", not {kind!r}.')


def mnp_deviations(value: float, clean_scores: Sequence[float]) -> float:
    """How far a score lies above those of clean models, in robust deviations.

    (value - median) / (1.4826 * median absolute deviation); above 3 is suspicious.

    Args:
        clean_scores: of at least ten models that are known to be clean.
    """
    if len(clean_scores) < 10:
        raise ValueError(
            f"{len(clean_scores)} clean models cannot say what is usual; at least 10 are needed."
        )
    middle = statistics.median(clean_scores)
    spread = 1.4826 * statistics.median(abs(s - middle) for s in clean_scores)
    if spread == 0:
        raise ValueError("the scores of the clean models do not vary.")
    return (value - middle) / spread


# ------------------------------------------------------------ steps 1 and 2: masks


@filled
def mnp_suppress(
    model: nn.Module,
    clean: Examples,
    *,
    stop: float = 0.2,
    epochs: int = 300,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    clip: float | None = 20.0,
    batch: int = 128,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> tuple[nn.Module, dict]:
    """Step 1 of the MNP-style reconstruction, clean suppression: theta~ and its course.

    `unlearn`, judged in eval mode, the mode in which theta~ is used, with a
    constant learning rate and a later end: from a clean loss near zero the ascent may
    take more than a hundred epochs to come off the ground.

    Args:
        stop, epochs, lr, momentum, weight_decay, clip, batch, generator, checkpoint: see
            `unlearn`.
    """
    return unlearn(
        model,
        clean,
        stop=stop,
        judge="eval",
        epochs=epochs,
        lr=lr,
        drop=None,
        momentum=momentum,
        weight_decay=weight_decay,
        clip=clip,
        batch=batch,
        generator=generator,
        checkpoint=checkpoint,
    )


def objective(
    model: nn.Module,
    suppressed: nn.Module | None,
    masks: Masks,
    x: Tensor,
    y: Tensor,
    *,
    magnitude: Mapping[str, Tensor],
    shrunk: Mapping[str, Tensor] | None = None,
    preserve: float = 1.0,
    beta: float = 0.02,
    lam: float = 1e-3,
    kappa: float = 0.0,
    likelihood: Likelihood = SOFTMAX,
) -> tuple[Tensor, dict[str, Tensor]]:
    """J(m) of the MNP-style reconstruction: (J, its terms before weighting).

    A term with weight 0 costs nothing.

    Args:
        model, suppressed: theta and theta~, both in eval mode.
        magnitude: a; `masks_ones` makes it a uniform penalty.
        shrunk: r, see `shrinkage`; needed if kappa is not 0.
    """
    terms: dict[str, Tensor] = {}
    total = x.new_zeros(())
    if preserve:
        terms["preserving"] = likelihood.loss(masks_forward(model, masks, x), y)
        total = total + preserve * terms["preserving"]
    if beta:
        assert suppressed is not None  # see `_require_weights`
        terms["suppressed"] = likelihood.loss(masks_forward(suppressed, masks, x), y)
        total = total + beta * terms["suppressed"]
    if lam:
        terms["penalty"] = _total((magnitude[n] * m).sum() for n, m in masks.items())
        total = total + lam * terms["penalty"]
    if kappa:
        assert shrunk is not None  # see `mnp_learn_masks`
        terms["protection"] = _total((shrunk[n] * (1 - m)).sum() for n, m in masks.items())
        total = total + kappa * terms["protection"]
    return total, terms


def _total(terms: Iterable[Tensor]) -> Tensor:
    return cast(Tensor, sum(terms))


@filled
def mnp_learn_masks(
    model: nn.Module,
    suppressed: nn.Module | None,
    clean: Examples,
    *,
    preserve: float = 1.0,
    beta: float = 0.02,
    lam: float = 1e-3,
    kappa: float = 0.0,
    penalty: Literal["magnitude", "uniform"] = "magnitude",
    steps: int = 160,
    lr: float = 0.1,
    momentum: float = 0.9,
    batch: int = 128,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> tuple[Masks, dict[str, list[float]]]:
    """Step 2 of the MNP-style reconstruction: the masks that minimize `objective`.

    Args:
        suppressed: theta~; may be None if beta and kappa are 0.
        preserve, beta, lam, kappa: weights of the terms, none negative, not all 0. What
            the paper learns its masks on is not known: preserve=0 with beta=1 learns
            them on theta~ alone.
        penalty: "uniform" takes a = 1 in every layer.
        lam: per channel, of a sum: each mask feels the same push in every network.
        steps: 160 is 40 epochs over 500 images.
        lr, momentum: of the masks' SGD.
        checkpoint: of this stage; it stays when the stage is finished.

    Returns:
        masks, and each term of J step by step.
    """
    about = decided_by("mnp_learn_masks", locals())
    admit(model, clean)
    if suppressed is not None:
        require_sound(suppressed, "suppressed")
        require_here(model, {"suppressed": next(suppressed.parameters())})
    require.whole("steps", steps, 1)
    require.whole("batch", batch, 1)
    require_positive(lr=lr)
    require.fraction("momentum", momentum)
    require_ways({"generator": generator, "checkpoint": checkpoint})
    weights = {"preserve": preserve, "beta": beta, "lam": lam, "kappa": kappa}
    _require_weights(suppressed is not None, penalty, **weights)
    generator = require.generator(generator)
    net = masks_frozen(model)
    other = None if suppressed is None else masks_frozen(suppressed)
    by_size = penalty == "magnitude"
    magnitude = mnp_magnitudes(model, clean.shape) if by_size else masks_ones(model)
    shrunk = None
    if kappa and suppressed is not None:
        shrunk = shrinkage(model, suppressed, clean.shape)

    def one(masks: Masks, x: Tensor, y: Tensor):
        total, terms = objective(
            net,
            other,
            masks,
            laid_out(net, x),
            y,
            magnitude=magnitude,
            shrunk=shrunk,
            preserve=preserve,
            beta=beta,
            lam=lam,
            kappa=kappa,
            likelihood=clean.task.likelihood,
        )
        return terms, gradient_of(total, list(masks.values()))

    return learn(
        masks_ones(model),
        clean,
        one,
        steps=steps,
        batch=batch,
        lr=lr,
        momentum=momentum,
        generator=generator,
        keep=Checkpoint(checkpoint, about),
    )


@filled
def choose_beta(
    model: nn.Module,
    suppressed: nn.Module,
    clean: Examples,
    held: Examples,
    *,
    betas: Sequence[float] = BETAS,
    max_drop: float = 0.03,
    preserve: float = 1.0,
    lam: float = 1e-3,
    kappa: float = 0.0,
    penalty: Literal["magnitude", "uniform"] = "magnitude",
    steps: int = 160,
    lr: float = 0.1,
    momentum: float = 0.9,
    batch: int = 128,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> tuple[float, Masks, dict[str, list[float]]]:
    """The largest beta whose soft repair is not too costly, with its masks and terms.

    A rule of the MNP-style reconstruction, not of the paper. S(theta~) has no ceiling:
    how large it is depends on where the ascent stopped, so that one beta cannot suit
    every network. The largest is tried first, each with the same batches; if all cost
    too much, the least remains.

    Args:
        held: clean images that judge; `max_drop` is the accuracy that may be lost.
        preserve, lam, kappa, penalty, steps, lr, momentum, batch: see `mnp_learn_masks`.
        checkpoint: each beta keeps a file beside this path; like that of `mnp_learn_masks`
            they stay when the stage is finished.
    """
    betas = require_list("betas", betas)
    require_at_least(0, **{f"betas[{i}]": b for i, b in enumerate(betas)})
    betas = [require.number("a beta", b) for b in betas]
    if not betas:
        raise ValueError("betas holds no value to try.")
    admit(model, clean, require_clean(held, "held", 1))
    require.fraction("max_drop", max_drop)
    generator = require.generator(generator)
    least = evaluate(model, held).acc - max_drop - 1e-9  # the rounding of a quotient
    start = generator.get_state()
    for beta in sorted(betas, reverse=True):
        generator.set_state(start)
        masks, terms = mnp_learn_masks(
            model,
            suppressed,
            clean,
            preserve=preserve,
            beta=beta,
            lam=lam,
            kappa=kappa,
            penalty=penalty,
            steps=steps,
            lr=lr,
            momentum=momentum,
            batch=batch,
            generator=generator,
            checkpoint=stage(checkpoint, f"{beta:g}"),
        )
        if evaluate(baked(model, masks), held).acc >= least:
            break
    return beta, masks, terms


def _require_weights(has_copy: bool, penalty: str, **weights: float) -> None:
    """Refuse weights of J that are negative, all zero, or without their network."""
    require_at_least(0, **weights)
    weights = {n: require.number(n, w, 0) for n, w in weights.items()}
    if not 0 < sum(weights.values()) < float("inf"):
        raise ValueError(
            "the weights of the objective must be finite and not all 0, else there is "
            "nothing to learn."
        )
    if (weights["beta"] or weights["kappa"]) and not has_copy:
        raise ValueError("beta and kappa need the suppressed copy of the model.")
    if penalty not in ("magnitude", "uniform"):
        raise ValueError(f'penalty must be "magnitude" or "uniform", not {penalty!r}.')


# ------------------------------------------------------------------ step 3: repair


def mnp_apply_masks(
    model: nn.Module,
    masks: Masks,
    repair: Literal["soft", "hard"] = "soft",
    held: Examples | None = None,
    *,
    threshold: float | None = None,
    max_drop: float = 0.03,
) -> Purified:
    """Step 3 of the MNP-style reconstruction: the model with its masks built in.

    Both ways act on the model itself, never on theta~. From one run of `mnp`, get the
    other repair with mnp_apply_masks(model, purified.log["masks"], "hard", held).

    Args:
        repair: "soft" multiplies every scale by its mask; "hard" zeroes the scales of
            the lowest masks and leaves the others alone. Shifts stay in both.
        held, threshold, max_drop: of "hard", see `anp`; three points may be lost.

    Returns:
        pruned holds the channels whose scale is zero. log: method, repair, masks, looks
        (the thresholds that were tried), threshold (0 for a soft repair; None if
        nothing could be pruned).
    """
    began = time.perf_counter()
    require_sound(model)
    _require_masks(model, masks)
    if held is not None:
        admit(model, held, least=1, logits=False)
    _require_repair(repair, held, threshold, max_drop)
    looks: list[Look] = []
    if repair == "soft":
        repaired, pruned, t = baked(model, masks), below(masks, 0), 0.0
    else:
        repaired, pruned, t = masks_prune(model, masks, held, threshold, max_drop, looks)
    log: dict = {"method": METHOD, "repair": repair, "masks": masks, "threshold": t}
    log["looks"] = looks
    return Purified(repaired, pruned, log, time.perf_counter() - began)


@defense()
def mnp(
    model: nn.Module,
    clean: Examples,
    held: Examples | None = None,
    *,
    repair: Literal["soft", "hard"] = "soft",
    threshold: float | None = None,
    max_drop: float = 0.03,
    preserve: float = 1.0,
    beta: float | Literal["held"] = 0.02,
    lam: float = 1e-3,
    kappa: float = 0.0,
    penalty: Literal["magnitude", "uniform"] = "magnitude",
    steps: int = 160,
    mask_lr: float = 0.1,
    stop: float = 0.2,
    epochs: int = 300,
    lr: float = 0.01,
    clip: float | None = 20.0,
    batch: int = 128,
    tune: float = 0,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Purified:
    """MNP-style reconstruction: suppress, learn masks, repair; see the module's text.

    NOT the authors' code, and not their formulas beyond the names of the objectives.

    Args:
        model: left untouched; the repair is of it, and nothing of the suppressed copy
            gets into it.
        clean: what the copy is suppressed and the masks are learned on.
        held: what the threshold of a hard repair, and beta="held", are chosen on, by
            clean accuracy.
        repair, threshold, max_drop: see `mnp_apply_masks`.
        preserve, beta, lam, kappa, penalty, steps, mask_lr: see `mnp_learn_masks`. Without
            beta and kappa no copy is made. beta="held" takes :func:`choose_beta`.
        stop, epochs, lr, clip: see `mnp_suppress`; batch: of both stages.
        generator: decides the batches of all stages.
        tune: epochs of fine-tuning on `clean` at rate 0.01 afterwards, the zeros held.
        checkpoint: every stage is resumed from files beside this path, which are
            deleted at the end.

    Returns:
        log: what `mnp_apply_masks` logs, magnitude (a), suppression (see `unlearn`;
        None without one), terms (each term of J step by step), and tuning, if any.

    Raises:
        ValueError: a number out of its range, too few images, a model without
            BatchNorm, a hard repair without `held` or `threshold`.

    Source: our reconstruction after Li, Jiang and Yi, arXiv 2405.17750. Derived in
    lesson 07.
    """
    began = time.perf_counter()
    masks_ones(model)  # refuses a model without BatchNorms before anything is learned
    _require_repair(repair, held, threshold, max_drop)
    if beta == "held" and held is None:
        raise ValueError('beta="held" needs held-out clean images to choose by.')
    weights = {"preserve": preserve, "lam": lam, "kappa": kappa}
    _require_weights(True, penalty, beta=1.0 if beta == "held" else beta, **weights)
    require.whole("steps", steps, 1)
    require_positive(mask_lr=mask_lr)
    require.fraction("max_drop", max_drop)
    require_at_least(0, tune=require.number("tune", tune))
    _require_ascent(stop, epochs, lr, None, clip, batch)
    files = [stage(checkpoint, s) for s in ("suppress", "masks", "tune")]
    suppressed = suppression = None
    if beta or kappa:
        suppressed, suppression = mnp_suppress(
            model,
            clean,
            stop=stop,
            epochs=epochs,
            lr=lr,
            clip=clip,
            batch=batch,
            generator=generator,
            checkpoint=files[0],
        )
    learning: dict[str, Any] = {"penalty": penalty, "steps": steps, "lr": mask_lr, "batch": batch}
    learning |= {"generator": generator, "checkpoint": files[1], **weights}
    if beta == "held":
        assert suppressed is not None and held is not None  # see above
        beta, masks, terms = choose_beta(
            model, suppressed, clean, held, max_drop=max_drop, **learning
        )
    else:
        masks, terms = mnp_learn_masks(model, suppressed, clean, beta=beta, **learning)
    p = mnp_apply_masks(model, masks, repair, held, threshold=threshold, max_drop=max_drop)
    log = p.log | {"beta": beta, "suppression": suppression, "terms": terms}
    log["magnitude"] = mnp_magnitudes(model, clean.shape)
    repaired = p.model
    if tune:
        tuning = Tuning(epochs=tune, lr=0.01)
        with holding(repaired, p.pruned):  # the stages before are kept for the next call
            history = tuning(repaired, clean, require.generator(generator), files[2])
        log["tuning"] = {"loss": history["loss"], "acc": history["acc"]}
    for path in (*files[:2], *(stage(files[1], f"{b:g}") for b in BETAS)):
        Checkpoint(path, {}).done()
    return Purified(repaired, p.pruned, log, time.perf_counter() - began)


def _require_masks(model: nn.Module, masks: object) -> None:
    """Refuse what is no mask for each channel of some BatchNorms of this model."""
    layers = maskable(model)
    fits = isinstance(masks, Mapping) and all(
        n in layers
        and isinstance(m, Tensor)
        and m.shape == layers[n].weight.shape
        and bool(((m >= 0) & (m <= 1)).all())
        for n, m in masks.items()
    )
    if not fits:
        raise ValueError(
            "masks must map BatchNorms of this model to numbers in 0..1, one a "
            "channel, as log['masks'] of a repair of it does."
        )


def _require_repair(
    repair: str, held: Examples | None, threshold: float | None, max_drop: float
) -> None:
    """Refuse a repair that could not be made, before anything is learned."""
    if repair not in ("soft", "hard"):
        raise ValueError(f'repair must be "soft" or "hard", not {repair!r}.')
    if repair == "hard":
        require_threshold(held, threshold, max_drop)
    elif threshold is not None:
        require.fraction("threshold", threshold)
