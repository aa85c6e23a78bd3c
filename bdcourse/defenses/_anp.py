"""ANP: adversarial neuron pruning, masks learned under perturbed BatchNorms.

Wu and Wang, "Adversarial Neuron Pruning Purifies Backdoored Deep Models", NeurIPS 2021.
Backdoored networks misbehave, on clean images too, as soon as somebody pushes their
neurons a little; and the neurons that give way are mostly those of the backdoor. With
masks m on the scales, let delta (scales) and xi (shifts) push every BatchNorm channel,

    scale: (m + delta) * gamma,    shift: (1 + xi) * beta,    |delta|, |xi| <= eps,

and learn, with m in [0, 1],

    min over m   alpha * L(m) + (1 - alpha) * max over delta, xi  L(m, delta, xi)

with L the cross-entropy on the defender's clean images. The inner maximum is one step
along the sign of the gradient. Channels whose mask ends low are switched off. Derived in
lesson 07.
"""

from __future__ import annotations

import os
import time
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bdcourse import require
from bdcourse.checkpoint import Checkpoint
from bdcourse.defenses._base import (
    Look,
    Purified,
    decided_by,
    defense,
    require_at_least,
    require_positive,
)
from bdcourse.defenses._masks import (
    Masks,
    gradient_of,
    learn,
    maskable,
    masks_frozen,
    masks_ones,
    masks_prune,
    require_threshold,
)
from bdcourse.examples import Examples
from bdcourse.likelihoods import SOFTMAX, Likelihood
from bdcourse.models import laid_out

Noise = tuple[Masks, Masks]  # delta and xi: BatchNorm name -> (c,) in [-eps, eps]


def quiet(masks: Masks) -> Noise:
    """The noise that changes nothing."""
    delta, xi = ({n: torch.zeros_like(m) for n, m in masks.items()} for _ in range(2))
    return delta, xi


def random_noise(masks: Masks, eps: float, generator: torch.Generator) -> Noise:
    """Uniform noise in [-eps, eps], where the released code starts its inner step."""

    def draw(m: Tensor) -> Tensor:
        u = torch.rand(m.shape, generator=generator, device=generator.device)
        return (eps * (2 * u - 1)).to(m)

    delta, xi = ({n: draw(m) for n, m in masks.items()} for _ in range(2))
    return delta, xi


def perturbed(model: nn.Module, masks: Masks, noise: Noise, x: Tensor) -> Tensor:
    """Logits with scales (m + delta) gamma and shifts (1 + xi) beta."""
    delta, xi = noise
    layers, params = maskable(model), {}
    for n, m in masks.items():
        params[f"{n}.weight"] = (m + delta[n]) * layers[n].weight
        params[f"{n}.bias"] = (1 + xi[n]) * layers[n].bias
    return functional_call(model, params, (x,), tie_weights=False)


def anp_plain_step(
    model: nn.Module,
    masks: Masks,
    x: Tensor,
    y: Tensor,
    *,
    eps: float = 0.4,
    alpha: float = 0.2,
    noise: Noise | None = None,
    likelihood: Likelihood = SOFTMAX,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """One step the usual way: three passes, and gradients for every weight.

    The reference for `anp_step`, with the same arguments and results.
    """
    noise = noise or quiet(masks)
    leaves = [v.clone().requires_grad_(True) for part in noise for v in part.values()]
    weights = [w for w in model.parameters() if w.requires_grad]
    k = len(masks)

    def loss(rows: list[Tensor]) -> Tensor:
        delta, xi = (dict(zip(masks, r, strict=True)) for r in (rows[:k], rows[k:]))
        return likelihood.loss(perturbed(model, masks, (delta, xi), x), y)

    uphill = torch.autograd.grad(
        loss(leaves), [*leaves, *masks.values(), *weights], materialize_grads=True
    )
    pushed = [v + eps * g.sign() for v, g in zip(leaves, uphill, strict=False)]
    robust = loss([v.detach().clamp(-eps, eps) for v in pushed])
    natural = loss([torch.zeros_like(v) for v in leaves])
    total = alpha * natural + (1 - alpha) * robust
    gradient = torch.autograd.grad(total, [*masks.values(), *weights], materialize_grads=True)
    terms = {"natural": natural.detach(), "robust": robust.detach()}
    return terms, list(gradient[:k])


def anp_step(
    model: nn.Module,
    masks: Masks,
    x: Tensor,
    y: Tensor,
    *,
    eps: float = 0.4,
    alpha: float = 0.2,
    noise: Noise | None = None,
    inner: int = 1,
    likelihood: Likelihood = SOFTMAX,
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """One step at less than half the cost: (terms of the loss, gradient of the masks).

    Exact, up to rounding. The model's weights need no gradient (see `masks_frozen`). A
    push of the scale and a mask enter the loss alike, as m + delta, so they have one
    gradient; and if the noise starts at zero, the pass that looks for the worst
    direction is the clean pass itself.

    Args:
        masks: leaves that require a gradient.
        x, y: inputs, of images pixels in [0, 1], and targets.
        noise: where the inner ascent starts; None is at zero.
        inner: steps of the inner ascent, each of eps / inner.
        likelihood: of the targets under the outputs.
    """
    rows = list(masks.values())
    still = quiet(masks)

    def ascent(noise: Noise) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        xi = {n: v.requires_grad_(True) for n, v in noise[1].items()}
        loss = likelihood.loss(perturbed(model, masks, (noise[0], xi), x), y)
        g = gradient_of(loss, [*rows, *xi.values()])
        return loss.detach(), list(g[: len(rows)]), list(g[len(rows) :])

    def push(noise: Noise, g_delta: list[Tensor], g_xi: list[Tensor]) -> Noise:
        delta, xi = (
            {
                n: (v.detach() + eps / inner * s.sign()).clamp(-eps, eps)
                for (n, v), s in zip(half.items(), g, strict=True)
            }
            for half, g in zip(noise, (g_delta, g_xi), strict=True)
        )
        return delta, xi

    if noise is None:
        natural, g_natural, g_xi = ascent(still)
        noise, left = push(still, g_natural, g_xi), inner - 1
    else:
        loss = likelihood.loss(perturbed(model, masks, still, x), y)
        natural, g_natural = loss.detach(), gradient_of(loss, rows)
        left = inner
    for _ in range(left):
        noise = push(noise, *ascent(noise)[1:])
    robust = likelihood.loss(perturbed(model, masks, noise, x), y)
    g_robust = gradient_of(robust, rows)
    gradient = [alpha * a + (1 - alpha) * b for a, b in zip(g_natural, g_robust, strict=True)]
    return {"natural": natural, "robust": robust.detach()}, gradient


def usual_steps(n: int) -> int:
    """Steps for n clean images: as many passes as 2,000 steps make over 500 images.

    2,000 is the authors' number, for 500 images; with fewer, it would only go over the
    same ones more often. Never more than 2,000.
    """
    return min(2000, 4 * n)


@defense()
def anp(
    model: nn.Module,
    clean: Examples,
    held: Examples | None = None,
    *,
    threshold: float | None = None,
    max_drop: float = 0.01,
    eps: float = 0.4,
    alpha: float = 0.2,
    steps: int | None = None,
    lr: float = 0.2,
    momentum: float = 0.9,
    batch: int = 128,
    inner: int = 1,
    start: Literal["zero", "random"] = "zero",
    training: bool = True,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Purified:
    """Prune the channels that a model under perturbation can do without.

    Args:
        model: left untouched.
        clean: what the masks are learned on.
        held: what the threshold is chosen on, by clean accuracy, from 0 to 0.9 in steps
            of 0.05; `max_drop` is the accuracy that it may cost, 0..1.
        threshold: this one instead, 0..1.
        eps: largest push of a scale or shift, as a share of it; 0.4 on CIFAR-10.
        alpha: weight of the clean loss, 0..1; 0.2 on CIFAR-10.
        steps: default `usual_steps`: 2,000 for 500 images or more, four per image
            below.
        lr, momentum: of the masks' SGD.
        inner: steps of the inner maximization.
        start: of the inner maximization. "zero" costs two passes a step, "random" one
            more. The released code starts at random and does not clamp the noise
            afterwards, so that it reaches 2 eps; here it stays within eps, as above.
        training: normalize by the batch, as the released code does. By the running
            statistics (False), a push of every scale at once multiplies from layer to
            layer; at eps = 0.4 that breaks a narrow network outright, and the masks
            fall to 0 at once.
        generator: decides the batches (and random starts).
        checkpoint: file that is renewed while the masks are learned and deleted at the
            end; the same call, started again after a stop, goes on there.

    Returns:
        shifts are kept, only scales are zeroed. log: masks, looks (the thresholds that
        were tried), threshold (None: nothing pruned), and the course of the losses
        "natural" and "robust".

    Raises:
        ValueError: a number out of its range, too few images, a model without
            BatchNorm, neither `held` nor `threshold`.

    Source: Wu and Wang, NeurIPS 2021. Derived in lesson 07.
    """
    began, about = time.perf_counter(), decided_by("anp", locals())
    first = masks_ones(model)
    require_threshold(held, threshold, max_drop)
    steps = usual_steps(len(clean)) if steps is None else steps
    for name, count in (("steps", steps), ("batch", batch), ("inner", inner)):
        require.whole(name, count, 1)
    require_positive(lr=lr)
    require.fraction("alpha", alpha)
    require.fraction("momentum", momentum)
    require_at_least(0, eps=eps)
    require.truth("training", training)
    if start not in ("zero", "random"):
        raise ValueError(f'start must be "zero" or "random", not {start!r}.')
    generator = require.generator(generator)
    keep = Checkpoint(checkpoint, about)
    net = masks_frozen(model, training=training)

    def one(masks: Masks, x: Tensor, y: Tensor):
        x = laid_out(net, x)
        noise = random_noise(masks, eps, generator) if start == "random" else None
        return anp_step(
            net,
            masks,
            x,
            y,
            eps=eps,
            alpha=alpha,
            noise=noise,
            inner=inner,
            likelihood=clean.task.likelihood,
        )

    masks, course = learn(
        first,
        clean,
        one,
        steps=steps,
        batch=batch,
        lr=lr,
        momentum=momentum,
        generator=generator,
        keep=keep,
    )
    looks: list[Look] = []
    repaired, pruned, t = masks_prune(model, masks, held, threshold, max_drop, looks)
    keep.done()
    log = {"masks": masks, "threshold": t, "looks": looks, **course}
    return Purified(repaired, pruned, log, time.perf_counter() - began)
