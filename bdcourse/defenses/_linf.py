"""L-infinity pruning: switch off the channels whose peak a guessed trigger raises.

Cheng, Xu, Liu, Chen, Zhao and Lin, "Defending against Backdoor Attack on Deep Neural
Networks", arXiv 2002.12162. A patch changes a few positions of a feature map, so sums
over the map dilute its response and the maximum does not. For channel k with map A_k,
clean images x and their stamped copies T(x),

    d_k = mean over x of ||A_k(T(x))||_inf - mean over x of ||A_k(x)||_inf

and the share q of channels with the largest d_k is switched off. The paper's layer,
selection rule and share are not known here; what stands below is this course's reading.
Derived in lesson 04.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bdcourse import require
from bdcourse.activations import batchnorms, map_ranks, outputs, positions, runs, watching
from bdcourse.defenses._base import (
    Look,
    Purified,
    copied,
    defense,
    filled,
    furthest,
    require_at_least,
    require_list,
)
from bdcourse.defenses._clp import threshold
from bdcourse.defenses._invert import Estimate
from bdcourse.examples import Examples
from bdcourse.metrics import Scores, evaluate, share
from bdcourse.models import laid_out, wide
from bdcourse.surgery import answers, pair_by_flow, require_sound, weight_of, without
from bdcourse.task import IMAGES, Task
from bdcourse.triggers import Trigger, is_trigger

QS = tuple(i / 100 for i in range(51))  # the q axis of every sweep: 0 .. 50 %
PS = (1.0, 2.0, math.inf)
Stamp = Callable[[Tensor], Tensor]
Score = Literal["difference", "triggered", "ratio"]
Reduce = Literal["mean", "max"]


class Gate(nn.Module):
    """A switch for every channel of a feature map: times one, or times zero.

    Where maps are added to a shortcut, no BatchNorm owns the sum; a gate behind it
    does. `surgery` switches its channels off like those of a BatchNorm. The weight is a
    buffer: it is copied and saved with the model, and training leaves it alone.
    """

    bias = None
    weight: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.to(x.dtype).view(-1, *(1 for _ in x.shape[2:]))


def _through_gate(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
    return cast(Gate, module.gate)(out)


def linf_gated(model: nn.Module, layer: str, shape: tuple[int, ...]) -> tuple:
    """A copy whose channels of `layer` can be switched off: (model, switch's name).

    The switch of a BatchNorm with a scale is the BatchNorm itself. Any other module
    with feature maps gets a gate at its end, named LAYER.gate, open for now.

    Args:
        shape: of one input, (c, h, w) of an image.

    Raises:
        ValueError: no such layer, one without feature maps, or one that runs more than
            once, which would be switched in all places; a convolution in front of a
            BatchNorm, which would turn its zeros into a constant.
    """
    if not isinstance(layer, str):
        raise ValueError(f"layer must name a module, not be {require.kind(layer)}.")
    model = copied(require_sound(model, steady=False))
    maps = _map_sizes(model, shape)
    if layer not in maps:
        known = layer in dict(model.named_modules())
        raise ValueError(
            f"layer {layer!r} gives no feature maps (n, c, h, w); name one that does."
            if known
            else f"the model has no layer {layer!r}."
        )
    module = model.get_submodule(layer)
    times = _runs(model, shape)[layer]
    if times > 1:
        raise ValueError(
            f"layer {layer!r} runs {times} times in a pass, so a channel of it would "
            "be switched off in all these places; name a module that runs once."
        )
    if isinstance(module, (_BatchNorm, Gate)) and module.weight is not None:
        return model, layer
    behind = [p.bn for p in pair_by_flow(model, shape).pairs if p.conv == layer]
    if behind:
        raise ValueError(
            f"a BatchNorm makes a constant of what is zero in {layer}; name that "
            f"BatchNorm instead, {behind[0]}."
        )
    name = f"{layer}.gate"
    if not hasattr(module, "gate"):
        weight = next(model.parameters())
        module.add_module("gate", Gate(maps[layer][0]).to(weight.device))
        # A container runs its children in order, and the gate is now the last of them.
        if type(module).forward is not nn.Sequential.forward:
            module.register_forward_hook(_through_gate)
    return model, name


def _runs(model: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    weight = next(model.parameters())
    return runs(model, torch.zeros(2, *shape, device=weight.device))


def _map_sizes(model: nn.Module, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """(c, h, w) of every module that gives feature maps, in the order they finish; of 3d
    convolutions (c, t, h, w), of 1d ones (c, t)."""
    sizes: dict[str, tuple[int, ...]] = {}

    def see(name: str, out) -> None:
        if isinstance(out, Tensor) and out.ndim >= 3:
            sizes.pop(name, None)
            sizes[name] = tuple(out.shape[1:])

    names = [n for n, _ in model.named_modules() if n]
    weight = next(model.parameters())
    with watching(model, see, names):
        answers(model, torch.zeros(2, *shape, device=weight.device, dtype=weight.dtype))
    last, ranks = list(sizes)[::-1], map_ranks(model)
    if last and len(sizes[last[0]]) not in ranks:  # tokens are what reaches the head
        return {}
    return {n: s for n, s in sizes.items() if len(s) in ranks}


def linf_default_layer(model: nn.Module, shape: tuple[int, ...]) -> str:
    """The last module that runs once and whose feature maps have several positions.

    In a ResNet that is the last stage, behind its addition and ReLU.

    Raises:
        ValueError: there is none, as in a Vision Transformer.
    """
    times = _runs(model, shape)
    sizes = _map_sizes(model, shape)
    wide = [n for n, (_, *places) in sizes.items() if math.prod(places) > 1 and times[n] == 1]
    if not wide:
        raise ValueError(
            "this model hands no feature maps to its head, so it has no channels to "
            "rank; use a convolutional network."
        )
    return wide[-1]


def linf_norms(maps: Tensor, p: float = math.inf, top: int = 1) -> Tensor:
    """Norm of every channel's map: (n, c, h, w), or other positions, -> (n, c).

    Args:
        p: at least 1; the norm runs over positions, not over rows and columns as those
            of matrices do.
        top: at p = infinity, the mean of this many largest positions; 1 is the maximum.
    """
    flat = positions(maps)
    if p == math.inf and top > 1:
        return flat.abs().topk(min(top, flat.shape[2]), dim=2).values.mean(2)
    return torch.linalg.vector_norm(flat, p, dim=2)


def linf_plain_scores(
    model: nn.Module, x: Tensor, stamped: Tensor, layer: str, p: float = math.inf
) -> Tensor:
    """How much the trigger raises the norm of every channel's map, on average: (c,).

    Args:
        x, stamped: the same images without and with trigger, pixels in [0, 1].
        layer: name of a module that gives maps behind a ReLU, such as "layer4".
    """
    clean, triggered = (
        torch.linalg.vector_norm(outputs(model, v, [layer])[layer], p, dim=(2, 3))
        for v in (x, stamped)
    )  # (n, c) each
    return (triggered - clean).mean(0)


@dataclass(frozen=True, eq=False, repr=False)
class LinfResponse:
    """Norms of every channel's map on n images without and with a trigger.

    Args:
        clean, triggered: p -> (n, c).
    """

    clean: dict[float, Tensor]
    triggered: dict[float, Tensor]

    def __repr__(self) -> str:
        n, c = next(iter(self.clean.values())).shape if self.clean else (0, 0)
        norms = ", ".join(f"{p:g}" for p in self.clean)
        return f"LinfResponse({n:,} images, {c:,} channels, norms {norms})"

    def score(
        self,
        p: float = math.inf,
        score: Score = "difference",
        reduce: Reduce = "mean",
    ) -> Tensor:
        """One number for each channel: (c,).

        Args:
            score: "difference" of triggered and clean, "triggered" alone, or their
                "ratio", with a hundredth of the layer's mean as the least divisor.
            reduce: over images, "mean" or "max".
        """
        _require_names(score, reduce)
        self._require(p)
        triggered, clean = (
            v.mean(0) if reduce == "mean" else v.amax(0) for v in (self.triggered[p], self.clean[p])
        )
        if score == "triggered":
            return triggered
        if score == "ratio":
            floor = 0.01 * clean.mean().clamp(min=1e-12)
            return triggered / clean.clamp(min=float(floor))
        return triggered - clean

    def _require(self, p: float) -> None:
        if p not in self.clean:
            raise ValueError(f"norm {p:g} was not measured, only {sorted(self.clean)}.")

    def separation(self, p: float = math.inf) -> float:
        """How well one channel's norm tells triggered images from clean ones: 0..1.

        The AUROC, the share of pairs in which the triggered image has the larger norm;
        0.5 is chance. The channel is the best one on the first half of the images, and
        is measured on the second.

        Raises:
            ValueError: p was not measured, or there is only one image.
        """
        self._require(p)
        clean, triggered = self.clean[p], self.triggered[p]
        half = len(clean) // 2
        if not half:
            raise ValueError("to choose a channel and to measure it takes two images.")
        best = _auroc(clean[:half], triggered[:half]).argmax()
        return float(_auroc(clean[half:], triggered[half:])[best])


def _auroc(a: Tensor, b: Tensor) -> Tensor:
    """Share of pairs with b > a, ties count half: (n, c), (m, c) -> (c,)."""
    b = b[:, None]
    return (wide(b > a) + 0.5 * wide(b == a)).mean((0, 1))


def linf_responses(
    model: nn.Module,
    x: Tensor,
    stamp: Stamp,
    layers: Sequence[str],
    ps: Sequence[float] = PS,
    *,
    top: int = 1,
    batch: int = 250,
    task: Task = IMAGES,
) -> dict[str, LinfResponse]:
    """All norms of all layers on examples without and with the trigger, in one pass.

    Args:
        x: inputs, of images pixels in [0, 1], (n, c, h, w), none of the label that the
            trigger leads to.
        stamp: puts a trigger on them.
        layers: BatchNorms are read behind their ReLU, other modules as they are.
        ps, top: see :func:`linf_norms`.
    """
    if not len(x):
        raise ValueError("there is no image of another class to stamp.")
    ps = require_list("ps", ps)
    require.whole("top", top, 1)
    require.whole("batch", batch, 1)
    if not ps:
        raise ValueError("ps names no norm; (1.0, 2.0, inf) are the course's.")
    require_at_least(1, p=min(ps))
    kept: dict[str, list[dict[float, Tensor]]] = {n: [] for n in layers}
    bns = set(batchnorms(model))

    def see(name: str, out: Tensor) -> None:
        maps = out.relu() if name in bns else out
        kept[name].append({p: linf_norms(maps, p, top).cpu() for p in ps})

    for part in x.split(batch):
        both = torch.cat([part, stamp(part)])
        with watching(model, see, layers):
            task.outputs(model, both, len(both))

    found = {}
    for name, parts in kept.items():
        clean, triggered = {}, {}
        for p in ps:
            pairs = [q[p].chunk(2) for q in parts]
            clean[p] = torch.cat([a for a, _ in pairs])
            triggered[p] = torch.cat([b for _, b in pairs])
        found[name] = LinfResponse(clean, triggered)
    return found


def order(score: Tensor) -> Tensor:
    """Channels from the most suspect to the least: (c,) -> positions (c,)."""
    return score.argsort(descending=True, stable=True)


def linf_sweep(
    scores: Mapping[str, Tensor], qs: Sequence[float] = QS
) -> list[tuple[float, dict[str, Tensor]]]:
    """The channels that each share q would switch off: [(q, channels), ...].

    Args:
        scores: switch's name -> (c,). Several layers compete in standard deviations
            from their own layer's mean.
        qs: shares of all scored channels, 0..1.
    """
    for q in require_list("qs", qs):
        require.fraction("q", q)
    names, values = list(scores), list(scores.values())
    if len(names) > 1:
        values = [(v - v.mean()) / v.std().clamp(min=1e-12) for v in values]
    ranks = order(torch.cat(values))
    layer = torch.cat([torch.full((len(v),), i) for i, v in enumerate(values)])
    place = torch.cat([torch.arange(len(v)) for v in values])
    found = []
    for q in qs:
        chosen = ranks[: round(q * len(ranks))]
        found.append((q, {n: place[chosen[layer[chosen] == i]] for i, n in enumerate(names)}))
    return found


@defense(least=1, logits=False, classes=True, floats=True)
def linf(
    model: nn.Module,
    clean: Examples,
    held: Examples | None,
    estimate: Estimate,
    *,
    layer: str | None = None,
    p: float = math.inf,
    top: int = 1,
    score: Score = "difference",
    reduce: Reduce = "mean",
    select: Literal["share", "deviation"] = "share",
    qs: Sequence[float] = QS,
    max_drop: float = 0.02,
    u: float = 3.0,
) -> Purified:
    """Switch off the channels that a guessed trigger excites most.

    Args:
        model: left untouched.
        clean: images to measure the response on.
        held: other clean images, to choose the share with.
        estimate: one label of `invert_trigger`; its success is the method's.
        layer: a BatchNorm, or any module with feature maps, see :func:`linf_gated`; default
            :func:`linf_default_layer`. "all" ranks the channels of all BatchNorms together.
        p, top: see :func:`linf_norms`.
        score, reduce: see :meth:`Response.score`.
        select: "share" takes the largest of `qs` before the first that costs more than
            `max_drop` accuracy on `held`; "deviation" takes every channel above
            mean + u * std of its layer.

    Returns:
        log: `success`, the share of the stamped images that the network sends to the
        guess's label, before and after, which says which layer is worth pruning without
        asking the attacker; `layer`, the share `q` that was taken (None: nothing, or by
        deviation), `looks` (the shares that were tried on `held`), and by switch
        `scores` (c,) and `responses` (a :class:`LinfResponse`).

    Raises:
        ValueError: a layer without feature maps, no image of another class, settings
            out of range, "share" without `held`.

    Source: Cheng et al., arXiv 2002.12162; the defaults are this course's, the paper's are
    not known. Derived in lesson 04.
    """
    start = time.perf_counter()
    if select not in ("share", "deviation"):
        raise ValueError(f"unknown select {select!r}; choose share or deviation.")
    if select == "share" and held is None:
        raise ValueError(
            'select="share" needs held-out images to choose the share with; pass held.'
        )
    require_at_least(0, u=u)
    require.fraction("max_drop", max_drop)
    require.whole("top", top, 1)
    require_at_least(1, p=p)
    qs = [require.fraction("q", q) for q in require_list("qs", qs)]
    if not qs:
        raise ValueError("qs holds no share to try.")
    _require_names(score, reduce)
    if not all(hasattr(estimate, n) for n in ("stamp", "counts", "goal")):
        raise ValueError(
            "estimate must be one label of invert_trigger, found.trigger(label), not "
            f"{require.kind(estimate)}."
        )
    label = getattr(estimate, "label", 0)
    if label >= clean.k or not _fits(estimate, clean):
        raise ValueError(
            f"estimate belongs to other {clean.task.many}: clean has {clean.k} classes of "
            f"shape {clean.shape}."
        )
    images = clean[estimate.counts(clean.y)]
    goal = estimate.goal(images.y)
    x, task = images.inputs(), images.task
    shape = tuple(x.shape[1:])
    if layer == "all":
        times = _runs(model, shape)
        opened, switches = copied(model), batchnorms(model)
        switches = [
            n for n in switches if times[n] == 1 and model.get_submodule(n).weight is not None
        ]
        if not switches:
            raise ValueError(
                "the model has no BatchNorm with a scale that runs once; name one layer."
            )
    else:
        layer = linf_default_layer(model, shape) if layer is None else layer
        opened, switch = linf_gated(model, layer, shape)
        switches = [switch]
    ps = dict.fromkeys((*PS, p))
    found = linf_responses(opened, x, estimate.stamp, switches, tuple(ps), top=top, task=task)
    scores = {n: r.score(p, score, reduce) for n, r in found.items()}
    q: float | None = None
    looks: list[Look] = []
    if select == "share":
        assert held is not None  # see above
        steps = linf_sweep(scores, sorted(qs))
        q = furthest(opened, steps, held, max_drop, looks=looks)
        pruned = {n: torch.arange(0) for n in scores} if q is None else dict(steps)[q]
    else:
        pruned = {n: (s > threshold(s, u)).nonzero().flatten() for n, s in scores.items()}
    repaired = without(opened, pruned)
    log: dict = {"layer": layer, "q": q, "scores": scores, "responses": found}
    log["looks"] = looks
    log["success"] = tuple(
        share(task.answer(m, estimate.stamp(x)).to(goal.device) == goal) for m in (model, repaired)
    )
    return Purified(repaired, pruned, log, time.perf_counter() - start)


def _require_names(score: str, reduce: str) -> None:
    """Refuse unknown names of :meth:`Response.score`."""
    if score not in ("difference", "triggered", "ratio"):
        raise ValueError(f"unknown score {score!r}; choose difference, triggered or ratio.")
    if reduce not in ("mean", "max"):
        raise ValueError(f"unknown reduce {reduce!r}; choose mean or max.")


def _fits(estimate: Estimate, images: Examples) -> bool:
    """Whether a guess is of examples of this size; an attack knows for itself."""
    if not isinstance(estimate, Estimate):
        return True
    mask = (1, *images.shape[1:])
    return estimate.mask.shape == mask and estimate.pattern.shape == images.shape


@filled
def linf_oracle(
    model: nn.Module,
    clean: Examples,
    held: Examples | None,
    attack: Trigger,
    *,
    layer: str | None = None,
    p: float = math.inf,
    top: int = 1,
    score: Score = "difference",
    reduce: Reduce = "mean",
    select: Literal["share", "deviation"] = "share",
    qs: Sequence[float] = QS,
    max_drop: float = 0.02,
    u: float = 3.0,
) -> Purified:
    """`linf` with the attacker's own trigger, which no defender has.

    What is left to gain by a better guess.

    Args:
        clean, held, layer, p, top, score, reduce, select, qs, max_drop, u: see
            :func:`linf`.
        attack: with its trigger.

    Returns, raises:
        as :func:`linf`.

    Source: an oracle of ours. Derived in lesson 04.
    """
    if not is_trigger(attack):
        raise ValueError(f"attack must be an Attack with its trigger, not {require.kind(attack)}.")
    return linf(
        model,
        clean,
        held,
        cast(Estimate, _Truth(attack)),
        layer=layer,
        p=p,
        top=top,
        score=score,
        reduce=reduce,
        select=select,
        qs=qs,
        max_drop=max_drop,
        u=u,
    )


class _Truth:
    """The attacker's trigger in the place of a guess."""

    def __init__(self, attack: Trigger) -> None:
        self.stamp, self.counts, self.goal = attack.trigger, attack.counts, attack.goal


def linf_plain_curve(
    model: nn.Module,
    test: Examples,
    attack: Trigger | None,
    sets: Sequence[Mapping[str, Tensor]],
) -> list[Scores]:
    """Scores of the model without each of these sets of channels, one by one."""
    return [evaluate(without(model, s), test, attack) for s in sets]


def linf_curve(
    model: nn.Module,
    test: Examples,
    attack: Trigger | None,
    sets: Sequence[Mapping[str, Tensor]],
    batch: int = 250,
) -> list[Scores]:
    """What :func:`linf_plain_curve` gives, without `cross`, in one run of the model.

    If all sets are of one layer, and everything behind it reads this layer alone, the
    front runs once, and all sets go through the rest as one large batch. Otherwise one
    set is measured after the other.

    Args:
        model: with its gate, where the sets are of one (see :func:`linf_gated`).
        sets: switch's name -> positions.
    """
    names = {n for s in sets for n in s}
    name = next(iter(names), "")
    if len(names) != 1 or not _is_cut(model, name, test):
        return linf_plain_curve(model, test, attack, sets)
    weight = weight_of(model.get_submodule(name))
    keep = torch.ones(len(sets), len(weight), device=weight.device)
    for row, s in zip(keep, sets, strict=True):
        row[s[name].to(weight.device)] = 0

    def said(x: Tensor) -> Tensor:  # (sets, n)
        rows = max(1, 2000 // len(sets))
        parts = [_answers(model, part, name, keep, test.task) for part in x.split(rows)]
        return torch.cat(parts, 1).to(test.y.device)

    def shares(answers: Tensor, y: Tensor) -> list[float]:
        return wide(answers == y).mean(1).tolist()

    acc = shares(torch.cat([said(t.inputs()) for t in _split(test, batch)], 1), test.y)
    if attack is None:
        return [Scores(a, n_clean=len(test)) for a in acc]
    attack.check(test)
    asked = test[attack.counts(test.y)]
    answers = [said(attack.apply(t.inputs(), t.y)) for t in _split(asked, batch)]
    answers = torch.cat(answers, 1)
    asr, ra = shares(answers, attack.goal(asked.y)), shares(answers, asked.y)
    return [Scores(*three, len(test), len(asked)) for three in zip(acc, asr, ra, strict=True)]


def _split(images: Examples, batch: int) -> list[Examples]:
    return [images[i : i + batch] for i in range(0, len(images), batch)]


def _answers(model: nn.Module, x: Tensor, name: str, keep: Tensor, task: Task) -> Tensor:
    """Labels of inputs x under each of the masks keep (q, c): (q, n)."""

    def fold(_, __, out: Tensor) -> Tensor:
        some = keep[:, None, :].view(len(keep), 1, -1, *(1 for _ in out.shape[2:]))
        maps = some.to(out.dtype) * out  # (q, n, c, ...)
        return laid_out(model, maps.flatten(0, 1))

    hook = model.get_submodule(name).register_forward_hook(fold)
    try:
        return task.outputs(model, x, len(x)).argmax(1).view(len(keep), -1)
    finally:
        hook.remove()


def _is_cut(model: nn.Module, name: str, test: Examples) -> bool:
    """Whether all that runs behind this module reads it and nothing before it."""
    weight = weight_of(model.get_submodule(name))
    x = torch.zeros_like(test[:2].inputs(), device=weight.device)
    try:  # a shortcut around it brings 2 images where 6 are expected
        keep = weight.new_ones(3, len(weight))
        return _answers(model, x, name, keep, test.task).shape == (3, 2)
    except RuntimeError:
        return False
