"""RNP: reconstructive neuron pruning: forget the clean task, then ask who can bring
it back.

Li et al., "Reconstructive Neuron Pruning for Backdoor Defense", ICML 2023. Gradient
*ascent* on clean images makes a copy of the network forget the clean task; what still
works in the copy is mostly the backdoor. Then masks on the copy's BatchNorm scales are
learned by *descent* on the same images: the cheapest way to lower the clean loss of a
network that says what the backdoor says is to silence the backdoor's channels. Channels
whose mask falls low are switched off in the network as it was. Derived in lesson 07.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.checkpoint import Checkpoint, pack, unpack
from bdcourse.defenses._base import (
    Look,
    Purified,
    admit,
    copied,
    decided_by,
    defense,
    filled,
    require_at_least,
    require_here,
    require_positive,
    require_ways,
    stage,
)
from bdcourse.defenses._masks import (
    Masks,
    gradient_of,
    learn,
    masks_forward,
    masks_frozen,
    masks_ones,
    masks_prune,
    normalize_by_batch,
    require_threshold,
)
from bdcourse.examples import Examples, require_clean
from bdcourse.likelihoods import SOFTMAX, Likelihood
from bdcourse.metrics import evaluate
from bdcourse.models import laid_out, lay_out, wide
from bdcourse.surgery import require_answers, require_sound


def ascend(
    model: nn.Module,
    opt: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    clip: float | None = 20.0,
    likelihood: Likelihood = SOFTMAX,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step up the cross-entropy: (loss before it, correct answers, gradient norm).

    Minimizes minus the cross-entropy with the optimizer's positive weight decay, so
    that weights shrink while the loss grows. To maximize loss plus decay would let them
    grow.

    Args:
        clip: longest gradient, cut *after* backward; None does not cut. (The released
            code asks for 20, but before backward, when there is no gradient to cut.)
    """
    out = model(x)
    loss = likelihood.loss(out, y)
    opt.zero_grad(set_to_none=True)
    (-loss).backward()
    length = nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
    opt.step()
    return loss.detach(), likelihood.hits(out, y)[0].sum(), length


@filled
def unlearn(
    model: nn.Module,
    clean: Examples,
    *,
    stop: float = 0.2,
    judge: Literal["pass", "eval"] = "pass",
    epochs: int = 60,
    lr: float = 0.01,
    drop: int | None = None,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    clip: float | None = 20.0,
    batch: int = 128,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> tuple[nn.Module, dict]:
    """A copy of the model that has forgotten the clean task, by gradient ascent.

    Cross-entropy has no maximum: the ascent must be stopped by accuracy. BatchNorm is
    in train mode, so the copy's running statistics belong to the copy; nothing of them
    may get into a repaired model.

    The released code takes epochs=20 and drop=10. A network whose clean loss is near
    zero, as those of the course, has no gradient to start with: its rate would fall
    before the ascent has begun, and `stop` would not be reached.

    Args:
        stop: end after the first epoch whose accuracy on `clean` is at most this.
        judge: where that accuracy is read: "pass" counts the answers given in train
            mode while the weights move, as the released code does; "eval" measures
            after each epoch, in the mode in which the copy is used.
        epochs: at most; an epoch is one pass over `clean` in equal batches of at most
            `batch`. Warns if `stop` is not reached.
        lr, momentum, weight_decay: of SGD.
        drop: after this many epochs the rate falls to a tenth; None keeps it.
        clip: see `ascend`.
        generator: decides the order.
        checkpoint: of this stage; it stays when the stage is finished, for the owner of
            the whole to delete.

    Returns:
        the copy, in eval mode, and {"acc": one share per epoch as `judge` says, "loss":
        mean per epoch, "length": largest gradient norm per epoch, "reached": whether
        `stop` was reached}.

    Source: Li et al., ICML 2023; values of the released code. Derived in lesson 07.
    """
    about = decided_by("unlearn", locals())
    admit(model, clean, steady=False)
    _require_ascent(stop, epochs, lr, drop, clip, batch)
    require.fraction("momentum", momentum)
    require_at_least(0, weight_decay=weight_decay)
    require_ways({"generator": generator, "checkpoint": checkpoint})
    if judge not in ("pass", "eval"):
        raise ValueError(f'judge must be "pass" or "eval", not {judge!r}.')
    generator = require.generator(generator)
    keep = Checkpoint(checkpoint, about)
    net = copied(model).requires_grad_(True)
    lay_out(net, clean.x)
    opt = torch.optim.SGD(net.parameters(), lr, momentum, weight_decay=weight_decay)
    # BatchNorm cannot normalize one image by itself.
    parts = min(-(-len(clean) // batch), len(clean) // 2)
    log: dict = {"acc": [], "loss": [], "length": [], "reached": False}
    if (saved := keep.load()) is not None:
        tensors, notes = saved
        unpack(tensors, net, opt, generator)
        log = notes["log"]
    for epoch in range(len(log["acc"]), epochs):
        if log["reached"]:
            break
        normalize_by_batch(net)
        for group in opt.param_groups:
            group["lr"] = lr if drop is None or epoch < drop else lr / 10
        order = torch.randperm(len(clean), generator=generator, device=generator.device)
        seen = []
        for index in order.to(clean.x.device).tensor_split(parts):
            x = laid_out(net, clean.task.inputs(clean.x[index]))
            step = ascend(net, opt, x, clean.y[index], clip, clean.task.likelihood)
            seen.append(torch.stack([wide(v) for v in step]))
        loss, hits, length = torch.stack(seen).unbind(1)
        if not bool(torch.isfinite(loss).all() & torch.isfinite(length).all()):
            raise ValueError(
                "the ascent has left the finite numbers; lower lr, or cut the gradient with clip."
            )
        share = float(hits.sum()) / len(clean)
        log["acc"].append(evaluate(net, clean).acc if judge == "eval" else share)
        log["loss"].append(float(loss.mean()))
        log["length"].append(float(length.max()))
        log["reached"] = log["acc"][-1] <= stop
        if keep.due():
            keep.save(pack(net, opt, generator), log=log)
    keep.save(pack(net, opt, generator), log=log)
    if not log["reached"]:
        warnings.warn(
            f"the ascent stopped after {epochs} epochs at an accuracy of "
            f"{log['acc'][-1]:.2f}, above {stop}; raise epochs or lr.",
            stacklevel=2,
        )
    return net.eval().requires_grad_(False), log


@filled
def recover(
    unlearned: nn.Module,
    clean: Examples,
    *,
    steps: int = 80,
    lr: float = 0.2,
    momentum: float = 0.9,
    weight: float = 0.2,
    batch: int = 128,
    training: bool = True,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> tuple[Masks, list[float]]:
    """Masks that bring the clean task back to a network that has forgotten it.

    Args:
        unlearned: from `unlearn`; left untouched.
        steps: 80 is the released code's 20 epochs over 500 images.
        weight: factor of the cross-entropy.
        training: normalize by the batch, as the released code does; False uses the
            copy's running statistics.
        checkpoint: see `unlearn`.

    Returns:
        masks, and the cross-entropy step by step.
    """
    about = decided_by("recover", locals())
    # Nothing can be said of the answers: the network has unlearned them.
    require_sound(unlearned, "unlearned", steady=False)
    require_clean(clean)
    require_here(unlearned, {"clean": clean.x}, "unlearned")
    require_answers(unlearned, clean, "unlearned")
    require.whole("steps", steps, 1)
    require.whole("batch", batch, 1)
    require_positive(lr=lr, weight=weight)
    require.fraction("momentum", momentum)
    require.truth("training", training)
    require_ways({"generator": generator, "checkpoint": checkpoint})
    generator = require.generator(generator)
    net = masks_frozen(unlearned, training=training)

    def one(masks: Masks, x: Tensor, y: Tensor):
        loss = clean.task.likelihood.loss(masks_forward(net, masks, laid_out(net, x)), y)
        return {"loss": loss}, gradient_of(weight * loss, list(masks.values()))

    masks, course = learn(
        masks_ones(net),
        clean,
        one,
        steps=steps,
        batch=batch,
        lr=lr,
        momentum=momentum,
        generator=generator,
        keep=Checkpoint(checkpoint, about),
    )
    return masks, course["loss"]


def _require_ascent(stop, epochs, lr, drop, clip, batch) -> None:
    """Refuse settings of `unlearn` that make no sense."""
    require.fraction("stop", stop)
    require.whole("epochs", epochs, 1)
    require.whole("batch", batch, 1)
    if drop is not None:
        require.whole("drop", drop, 1)
    require_positive(lr=lr, clip=clip)


@defense()
def rnp(
    model: nn.Module,
    clean: Examples,
    held: Examples | None = None,
    *,
    threshold: float | None = None,
    max_drop: float = 0.01,
    stop: float = 0.2,
    judge: Literal["pass", "eval"] = "pass",
    epochs: int = 60,
    lr: float = 0.01,
    drop: int | None = None,
    clip: float | None = 20.0,
    steps: int = 80,
    mask_lr: float = 0.2,
    weight: float = 0.2,
    training: bool = True,
    batch: int = 128,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Purified:
    """Prune the channels that a network without the clean task wants to get rid of.

    Args:
        model: left untouched; it is the one that is pruned, never the unlearned copy.
        clean: forgotten, and recovered.
        held: what the threshold is chosen on, by clean accuracy, from 0 to 0.9 in steps
            of 0.05; `max_drop` is the accuracy that it may cost, 0..1.
        threshold: this one instead, 0..1. (The released code prints the attack success
            at every threshold; to pick the best row would leak the attacker's images.)
        stop, judge, epochs, lr, drop, clip: see `unlearn`; clip=None is what the
            released code does in effect.
        steps, mask_lr, weight, training: see `recover`; batch: of both stages.
        generator: decides the batches of both stages.
        checkpoint: both stages are resumed from files beside this path, which are
            deleted at the end.

    Returns:
        shifts are kept, only scales are zeroed. log: masks, looks (the thresholds that
        were tried), threshold (None: nothing pruned), unlearning (see `unlearn`), and
        the course of the loss.

    Raises:
        ValueError: a number out of its range, too few images, a model without
            BatchNorm, neither `held` nor `threshold`.

    Source: Li et al., ICML 2023. Derived in lesson 07.
    """
    began = time.perf_counter()
    masks_ones(model)  # refuses a model without BatchNorms before anything is unlearned
    require_threshold(held, threshold, max_drop)
    require.whole("steps", steps, 1)
    require_positive(mask_lr=mask_lr, weight=weight)
    require.truth("training", training)
    _require_ascent(stop, epochs, lr, drop, clip, batch)
    if judge not in ("pass", "eval"):
        raise ValueError(f'judge must be "pass" or "eval", not {judge!r}.')
    files = [stage(checkpoint, s) for s in ("unlearn", "recover")]
    unlearned, unlearning = unlearn(
        model,
        clean,
        stop=stop,
        judge=judge,
        epochs=epochs,
        lr=lr,
        drop=drop,
        clip=clip,
        batch=batch,
        generator=generator,
        checkpoint=files[0],
    )
    masks, course = recover(
        unlearned,
        clean,
        steps=steps,
        lr=mask_lr,
        weight=weight,
        training=training,
        batch=batch,
        generator=generator,
        checkpoint=files[1],
    )
    looks: list[Look] = []
    repaired, pruned, t = masks_prune(model, masks, held, threshold, max_drop, looks)
    for path in files:
        Checkpoint(path, {}).done()
    log = {
        "masks": masks,
        "threshold": t,
        "looks": looks,
        "unlearning": unlearning,
        "loss": course,
    }
    return Purified(repaired, pruned, log, time.perf_counter() - began)
