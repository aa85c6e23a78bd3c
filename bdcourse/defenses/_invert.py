"""Trigger inversion: guess, for every label, the smallest stamp that leads there.

Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural
Networks", IEEE S&P 2019. For a label t, look for a mask m and a pattern d in [0, 1]
that minimize, over clean images x,

    cross entropy(f((1 - m) * x + m * d), t) + lambda * sum(m)

and steer lambda so that the stamp works on nearly all images and is as small as that
allows. A label that is much easier to reach than the others is suspect. The losses of
different labels share nothing but the images, so all labels are searched in one batch.
Derived in lesson 04.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bdcourse import require
from bdcourse.checkpoint import Checkpoint, moments, restore_moments
from bdcourse.defenses._base import (
    admit,
    copied,
    decided_by,
    filled,
    require_at_least,
    require_list,
    require_positive,
    require_ways,
)
from bdcourse.examples import Examples
from bdcourse.models import fingerprint, laid_out, lay_out, wide
from bdcourse.seeds import fresh_seed, uniform
from bdcourse.surgery import pair_by_flow
from bdcourse.task import Task

BETAS = (0.5, 0.9)  # of Adam: a short memory, since lambda moves the goal


@dataclass(frozen=True, eq=False, repr=False)
class Estimate:
    """A guessed trigger.

    Args:
        label: where it leads.
        mask: how much of each pixel it replaces, 0..1, (1, h, w), of clips (1, t, h, w).
        pattern: by what, pixels in [0, 1], (c, h, w), of clips (c, t, h, w).

    Raises:
        ValueError: not of these kinds, or not finite.
    """

    label: int
    mask: Tensor
    pattern: Tensor

    def __post_init__(self) -> None:
        require.whole("label", self.label, 0)
        for name in ("mask", "pattern"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) or not bool(value.isfinite().all()):
                raise ValueError(
                    f"{name} of a guess must be a tensor of finite numbers, not "
                    f"{require.kind(value)}."
                )

    def __repr__(self) -> str:
        return f"Estimate(label {self.label}, {float(self.mask.sum()):.1f} pixels)"

    def stamp(self, x: Tensor) -> Tensor:
        """Put it on pixels x in [0, 1], (n, c, h, w); returns a new tensor."""
        mask, pattern = self.mask.to(x), self.pattern.to(x)
        return ((1 - mask) * x + mask * pattern).clamp(0, 1)

    def counts(self, y: Tensor) -> Tensor:
        """Which images of true classes y (n,) it has to move, bool (n,)."""
        return y != self.label

    def goal(self, y: Tensor) -> Tensor:
        """Where it leads images of true classes y, (n,) int64."""
        return torch.full_like(y, self.label)


@dataclass(frozen=True, eq=False, repr=False)
class Inverted:
    """The guessed triggers of k labels.

    Args:
        masks: (k, 1, h, w) in 0..1, of clips (k, 1, t, h, w).
        patterns: (k, c, h, w) in 0..1, likewise.
        targets: (k,) int64, the label of each row.
        rates: (k,) share of the clean images of other classes that the guess sends to
            its label.
        log: per look ("every" steps) and label: norm, rate, lambda, each (looks, k);
            nan once a label has stopped.
        seconds: wall-clock time of the search.
        made_on: `models.fingerprint` of the model that was searched; on another model
            the guesses mean nothing.
    """

    masks: Tensor
    patterns: Tensor
    targets: Tensor
    rates: Tensor
    log: dict = field(default_factory=dict)
    seconds: float = 0.0
    made_on: str = ""

    def __repr__(self) -> str:
        norms = self.norms
        span = f", {norms.min():.1f} to {norms.max():.1f} pixels" if len(norms) else ""
        return f"Inverted({len(self.targets)} labels{span}, {self.seconds:.1f} s)"

    @property
    def norms(self) -> Tensor:
        """Sum of each mask, in pixels: (k,)."""
        return self.masks.flatten(1).sum(1)

    def trigger(self, label: int) -> Estimate:
        """The guess for one label."""
        at = (self.targets == label).nonzero().flatten()
        if not len(at):
            known = ", ".join(map(str, self.targets.tolist()))
            raise ValueError(f"label {label} was not inverted, only {known} were.")
        i = int(at[0])
        return Estimate(int(label), self.masks[i], self.patterns[i])


@dataclass(frozen=True, eq=False, repr=False)
class Detection:
    """Which labels look backdoored.

    Args:
        labels: the flagged ones, smallest mask first; empty for a clean bill.
        index: (k,) anomaly index of every label, in the order of `Inverted.targets`;
            nan where the guess does not work.
        threshold: above which a small mask is flagged.
    """

    labels: tuple[int, ...]
    index: Tensor
    threshold: float

    def __repr__(self) -> str:
        flagged = ", ".join(map(str, self.labels)) or "none"
        return f"Detection(flagged: {flagged}; threshold {self.threshold:g})"


def anomaly(norms: Tensor) -> Tensor:
    """Distance from the median in units of 1.4826 median absolute deviations: (k,).

    The factor makes the unit a standard deviation where the norms are Gaussian.
    """
    norms = wide(norms)
    far = (norms - norms.quantile(0.5)).abs()
    unit = 1.4826 * far.quantile(0.5)
    return torch.where(far > 0, far / unit, 0.0)  # 0 / 0 is no anomaly


@filled
def detect(
    inverted: Inverted,
    threshold: float = 2.0,
    *,
    scale: Literal["norm", "log"] = "norm",
    least: float = 0.8,
) -> Detection:
    """Flag the labels whose mask is an outlier on the small side.

    Args:
        inverted: what `invert_trigger` found.
        threshold: of the anomaly index, at least 0.
        scale: "norm" compares norms, as Neural Cleanse does. No norm is negative, so no
            index of a small one exceeds median / (1.4826 * MAD), which is below 2 where
            labels differ widely; "log" compares logarithms, which have no floor.
        least: rate below which a guess is no trigger; its norm then says nothing and is
            left out, 0..1.

    Returns:
        the flagged labels, none of them for a clean bill, and everybody's index.

    Raises:
        ValueError: fewer than three labels, which have no outlier; settings out of
            range.

    Source: Wang et al., IEEE S&P 2019. Derived in lesson 04.
    """
    require_inverted(inverted)
    require_at_least(0, threshold=threshold)
    require.fraction("least", least)
    if scale not in ("norm", "log"):
        raise ValueError(f"unknown scale {scale!r}; choose norm or log.")
    if len(inverted.targets) < 3:
        raise ValueError(
            "an outlier needs at least three labels to stand out from, not "
            f"{len(inverted.targets)}."
        )
    norms = wide(inverted.norms.cpu())
    works = inverted.rates.cpu() >= least
    index = torch.full_like(norms, torch.nan)
    small = torch.zeros_like(works)
    if int(works.sum()) >= 3:
        kept = norms[works]
        index[works] = anomaly(kept if scale == "norm" else kept.clamp(min=1e-12).log())
        small = norms < kept.quantile(0.5)
    rows = (small & (index > threshold)).nonzero().flatten()
    rows = rows[norms[rows].argsort()]
    return Detection(tuple(inverted.targets.cpu()[rows].tolist()), index, threshold)


def require_inverted(inverted: object, clean: Examples | None = None) -> None:
    """Refuse what is not the result of `invert_trigger`, or of other images."""
    if not isinstance(inverted, Inverted):
        raise ValueError(
            f"inverted must be what invert_trigger returns, not {require.kind(inverted)}."
        )
    if clean is None:
        return
    if tuple(inverted.patterns.shape[1:]) != clean.shape:
        raise ValueError(
            "inverted belongs to other images: it has triggers of shape "
            f"{tuple(inverted.patterns.shape[1:])}, and clean has images of shape "
            f"{clean.shape}."
        )


def squash(raw: Tensor) -> Tensor:
    """From anywhere into 0..1, by tanh."""
    return torch.tanh(raw) / 2 + 0.5


def unsquash(value: Tensor) -> Tensor:
    """The inverse of `squash`, a little inside of 0..1."""
    return torch.atanh((2 * value - 1) * 0.999)


def shuffled_rows(n: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Endless rows of shuffled images, the same for every label and chunk."""
    g = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(n, generator=g)[: n // batch * batch].split(batch)


def plain_invert(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    label: int,
    start: tuple[Tensor, Tensor],
    order: Iterator[Tensor],
    *,
    steps: int,
    every: int = 10,
    lr: float = 0.1,
    lam: float = 1e-3,
    factor: float = 2.0,
    patience: int = 5,
    success: float = 0.99,
    stop: int = 25,
) -> tuple[Tensor, Tensor]:
    """Mask and pattern of one label: the method, one step after the other.

    The reference that `invert_trigger` is tested against; its arguments are explained
    there. Expects a model in eval mode.

    Args:
        x, y: clean pixels in [0, 1] and their labels.
        start: mask (1, h, w) and pattern (c, h, w) to begin with, before `squash`.
        order: rows of each step, see `shuffled_rows`.
    """
    raw = [s.clone().requires_grad_() for s in start]
    opt = torch.optim.Adam(raw, lr, BETAS)
    best, least, idle, up, down = None, torch.inf, 0, 0, 0
    for _ in range(steps // every):
        hits = n = 0
        for rows in islice(order, every):
            rows = rows[y[rows] != label]
            mask, pattern = map(squash, raw)
            logits = model((1 - mask) * x[rows] + mask * pattern)
            goal = torch.full_like(rows, label)
            loss = F.cross_entropy(logits, goal, reduction="sum") / max(1, len(rows))
            hits, n = hits + int((logits.argmax(1) == goal).sum()), n + len(rows)
            raw[0].grad, raw[1].grad = torch.autograd.grad(loss + lam * mask.sum(), raw)
            opt.step()
        mask, pattern = (squash(r.detach()) for r in raw)
        good = hits >= success * n
        if good and mask.sum() < 0.99 * least:
            best, least, idle = (mask, pattern), mask.sum(), 0
        elif best is not None:
            idle += 1
        if idle >= stop:
            break
        up, down = (up + 1, 0) if good else (0, down + 1)
        if up == patience:
            lam, up = lam * factor, 0
        if down == patience:
            lam, down = lam / factor**1.5, 0
    return best or (mask, pattern)


@filled
def invert_trigger(
    model: nn.Module,
    clean: Examples,
    *,
    targets: Sequence[int] | None = None,
    steps: int = 600,
    every: int = 10,
    lr: float = 0.1,
    batch: int = 4,
    lam: float = 1e-3,
    factor: float = 2.0,
    patience: int = 5,
    success: float = 0.99,
    stop: int = 25,
    chunk: int | None = None,
    bf16: bool = False,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Inverted:
    """Guess the trigger of every label, all labels in one batch.

    The network's weights are frozen and its BatchNorms folded into the convolutions. A
    label that has stopped leaves the batch.

    Args:
        clean: the defender's images; each label is searched on those of other classes.
        targets: labels to search; default all of `clean.classes`.
        steps: of Adam, a multiple of `every`.
        every: steps between two looks at success rate and mask.
        lr: step length, in units of the argument of tanh.
        batch: images per label and step; the network sees batch * labels at once.
        lam: weight of the mask's sum at the start.
        factor: lambda grows by it after `patience` good looks in a row and shrinks by
            its power 1.5 after as many bad ones.
        success: share of stamped images that must reach the label in a good look, 0..1.
        stop: looks without a mask at least 1 % smaller after which a label stops; the
            count begins with the first good look.
        chunk: labels at a time; fewer need less memory and give the same guesses.
        bf16: run the network in bfloat16; quicker where the processor knows it, and the
            guesses then differ a little.
        generator: decides the first masks and patterns and the order of the images.
        checkpoint: file that is renewed about every 20 seconds and deleted at the end.
            The same call, started again after a stop, goes on there.

    Returns:
        the smallest mask of a good look for each label, or the last one if none was.

    Raises:
        ValueError: settings out of range, a label that the images do not have, too few
            images of other classes; a checkpoint of other work.

    Source: Wang et al., IEEE S&P 2019. Derived in lesson 04.
    """
    start, about = time.perf_counter(), decided_by("invert_trigger", locals())
    admit(model, clean, least=1, pixels=True, classes=True)
    require_ways({"generator": generator, "checkpoint": checkpoint})
    labels = _labels(clean, targets)
    chunk = len(labels) if chunk is None else chunk
    counts = {"steps": steps, "every": every, "batch": batch, "patience": patience}
    for name, count in (counts | {"stop": stop, "chunk": chunk}).items():
        require.whole(name, count, 1)
    require_at_least(1, factor=require.number("factor", factor))
    require.truth("bf16", bf16)
    if steps % every:
        raise ValueError(f"steps must be a multiple of {every}, not {steps}.")
    require_positive(lr=lr, lam=lam)
    require.fraction("success", success)
    batch = min(batch, len(clean))
    keep = Checkpoint(checkpoint, about)

    weight = next(model.parameters())
    x, y = clean.inputs().to(weight), clean.y.to(weight.device)
    net = frozen_copy(model, x[:2])
    goals = torch.tensor(labels, device=y.device)
    generator = require.generator(generator)
    s = _begin(len(labels), clean.shape, steps // every, lam, generator, x)
    seed = fresh_seed(generator)
    adam, first, done = {}, 0, 0
    if (saved := keep.load()) is not None:
        tensors, notes = saved
        adam = {k: v for k, v in tensors.items() if k.startswith("optimizer.")}
        s = {k: tensors[k].to(v) for k, v in s.items()}
        first, done = notes["first"], notes["looks"]

    for lo in range(first, len(labels), chunk):
        part = slice(lo, lo + chunk)
        raw = [s[k][part].clone().requires_grad_() for k in ("mask", "pattern")]
        opt = torch.optim.Adam(raw, lr, BETAS)
        restore_moments(opt, adam if lo == first else {})
        order = islice(shuffled_rows(len(x), batch, seed), done * every, None)
        for look in range(done, steps // every):
            live = (s["idle"][part] < stop).nonzero().flatten()
            if not len(live):
                break
            hits, n = torch.zeros(2, len(live), dtype=torch.int64, device=live.device)
            for rows in islice(order, every):
                rows = rows.to(y.device)
                found = _step(
                    net, x[rows], y[rows], goals[part], raw, opt, live, s["lam"][part], bf16
                )
                hits, n = hits + found[0], n + found[1]
            _judge(
                s,
                lo + live,
                [r.detach()[live] for r in raw],
                hits,
                n,
                look,
                success,
                patience,
                factor,
            )
            if keep.due():
                for k, r in zip(("mask", "pattern"), raw, strict=True):
                    s[k][part] = r.detach()
                keep.save(s | moments(opt), first=lo, looks=look + 1)
        done = 0

    if not bool((s["best_mask"].isfinite() & s["best_pattern"].isfinite()).all()):
        raise RuntimeError(
            "the search has left the finite numbers; take a smaller lr, lam or factor."
        )
    inverted = Inverted(s["best_mask"], s["best_pattern"], goals, torch.zeros(0))
    rates = torch.tensor([_rate(model, x, y, inverted.trigger(t), clean.task) for t in labels])
    log = {k: s[k].cpu() for k in ("norms", "rates", "lams")}
    keep.done()
    seconds = time.perf_counter() - start
    masks, patterns = s["best_mask"], s["best_pattern"]
    return Inverted(masks, patterns, goals, rates, log, seconds, fingerprint(model))


def _labels(clean: Examples, targets: Sequence[int] | None) -> list[int]:
    if isinstance(targets, Tensor) and not targets.is_floating_point():
        targets = targets.flatten().tolist()
    targets = range(clean.k) if targets is None else targets
    labels = [require.whole("a target", t) for t in require_list("targets", targets)]
    if not labels or len(set(labels)) < len(labels):
        raise ValueError(f"targets must be different labels, not {labels}.")
    if wrong := [t for t in labels if not 0 <= t < clean.k]:
        raise ValueError(
            f"target {wrong[0]} is no label of these images; labels are 0..{clean.k - 1}."
        )
    for t in labels:
        if not bool((clean.y != t).any()):
            raise ValueError(f"label {t} cannot be searched: no clean image has another class.")
    return labels


def frozen_copy(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy in eval mode that computes the same with less work.

    No gradient reaches its weights, and BatchNorms are folded into the convolutions
    they read. A convolution that something else reads too must stay as it is: what
    changes the answers on pixels x is taken back.
    """
    net = copied(model).eval().requires_grad_(False)
    lay_out(net, x)
    with torch.no_grad():
        answers = net(x)
        slack = 1e-3 * float(answers.abs().max())
        for pair in pair_by_flow(net, tuple(x.shape[1:])).pairs:
            conv, bn = net.get_submodule(pair.conv), net.get_submodule(pair.bn)
            if parametrize.is_parametrized(conv):
                continue
            _put(net, pair.conv, fuse_conv_bn_eval(cast(nn.Conv2d, conv), cast(_BatchNorm, bn)))
            _put(net, pair.bn, nn.Identity())
            if not torch.allclose(net(x), answers, rtol=1e-3, atol=slack):
                _put(net, pair.conv, conv)
                _put(net, pair.bn, bn)
    return lay_out(net, x)


def _put(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)


def _begin(
    k: int,
    shape: tuple[int, ...],
    looks: int,
    lam: float,
    generator: torch.Generator,
    like: Tensor,
) -> dict[str, Tensor]:
    """The state of the search for k labels, a row each."""
    mask = unsquash(uniform((k, 1, *shape[1:]), generator, like))
    pattern = unsquash(uniform((k, *shape), generator, like))
    count = torch.zeros(k, dtype=torch.int64, device=like.device)
    s = {"mask": mask, "pattern": pattern}
    s |= {"best_mask": squash(mask), "best_pattern": squash(pattern)}
    s |= {"least": like.new_full((k,), torch.inf), "lam": like.new_full((k,), lam)}
    s |= {"idle": count, "up": count.clone(), "down": count.clone()}
    return s | {n: like.new_full((looks, k), torch.nan) for n in LOGGED}


LOGGED = ("norms", "rates", "lams")


def _step(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    goals: Tensor,
    raw: list[Tensor],
    opt: torch.optim.Optimizer,
    live: Tensor,
    lam: Tensor,
    bf16: bool,
) -> tuple[Tensor, Tensor]:
    """One step for the live rows of a chunk: hits and images of each, (l,) and (l,)."""
    mask, pattern = (squash(r[live])[:, None] for r in raw)  # (l, 1, 1 or c, ...)
    seen = (1 - mask) * x + mask * pattern  # (l, b, c, ...)
    seen = laid_out(net, seen.flatten(0, 1))
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        logits = net(seen).to(x.dtype)
    goal = goals[live].repeat_interleave(len(x))
    counts = y.repeat(len(live)) != goal  # an image of the label itself proves nothing
    n = counts.view(len(live), -1).sum(1)
    loss = F.cross_entropy(logits, goal, reduction="none") * counts
    loss = loss.view(len(live), -1).sum(1) / n.clamp(min=1)
    loss = loss + lam[live] * mask.flatten(1).sum(1)
    # The loss of one row has no gradient in another: the sum keeps them apart.
    raw[0].grad, raw[1].grad = torch.autograd.grad(loss.sum(), raw)
    opt.step()
    hits = ((logits.argmax(1) == goal) & counts).view(len(live), -1).sum(1)
    return hits, n


def _judge(
    s: dict[str, Tensor],
    rows: Tensor,
    raw: list[Tensor],
    hits: Tensor,
    n: Tensor,
    look: int,
    success: float,
    patience: int,
    factor: float,
) -> None:
    """Look at the live rows of the state: keep better masks, move lambda, in place."""
    mask, pattern = map(squash, raw)
    norm, good = mask.flatten(1).sum(1), hits >= success * n
    for name, value in zip(LOGGED, (norm, hits / n, s["lam"][rows]), strict=True):
        s[name][look, rows] = value.to(norm)
    least = s["least"][rows]
    never = least == torch.inf
    better = good & (norm < 0.99 * least)
    take = better | (never & ~good)  # without a good look, the last one counts
    s["best_mask"][rows[take]] = mask[take]
    s["best_pattern"][rows[take]] = pattern[take]
    s["least"][rows] = torch.where(better, norm, least)
    s["idle"][rows] = torch.where(better | never, 0, s["idle"][rows] + 1)
    up = torch.where(good, s["up"][rows] + 1, 0)
    down = torch.where(good, 0, s["down"][rows] + 1)
    lam = s["lam"][rows]
    lam = torch.where(up == patience, lam * factor, lam)
    s["lam"][rows] = torch.where(down == patience, lam / factor**1.5, lam)
    s["up"][rows] = up % patience
    s["down"][rows] = down % patience


@torch.no_grad()
def _rate(model: nn.Module, x: Tensor, y: Tensor, estimate: Estimate, task: Task) -> float:
    """Share of the images of other classes that the guess sends to its label."""
    x = x[y != estimate.label]
    hits = [task.answer(model, estimate.stamp(p)) == estimate.label for p in x.split(500)]
    hits = torch.cat(hits)
    return int(hits.sum()) / len(hits)
