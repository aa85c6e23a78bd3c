"""What defenses share that learn a mask: one number in [0, 1] for each channel.

The mask m_k of a BatchNorm channel multiplies its scale, gamma_k -> m_k gamma_k; the
shift beta_k stays, so a channel with mask 0 still emits the constant beta_k. The masks
start at 1 and are the only thing that moves. Derived in lesson 07.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from bdcourse import require
from bdcourse.checkpoint import Checkpoint
from bdcourse.data import progress
from bdcourse.defenses._base import Look, copied, furthest
from bdcourse.examples import Examples, require_clean
from bdcourse.metrics import evaluate
from bdcourse.models import lay_out
from bdcourse.surgery import weight_of, without
from bdcourse.triggers import Trigger

Masks = dict[str, Tensor]  # BatchNorm name -> (c,) in [0, 1]
#: step(masks, x, y) -> (named terms of the loss, the gradient for each mask)
Step = Callable[[Masks, Tensor, Tensor], tuple[dict[str, Tensor], Sequence[Tensor]]]

LADDER = tuple(i / 20 for i in range(19))  # the thresholds that are tried: 0 .. 0.9


def maskable(model: nn.Module) -> dict[str, _BatchNorm]:
    """The model's BatchNorm layers with scale and shift, by name.

    Raises:
        ValueError: there is none.
    """
    found = {
        name: m
        for name, m in require.module(model).named_modules()
        if isinstance(m, _BatchNorm) and m.weight is not None
    }
    if not found:
        raise ValueError(
            "the model has no BatchNorm with a scale for a mask to act on; a defense "
            "such as finetune does without."
        )
    return found


def masks_ones(model: nn.Module) -> Masks:
    """The masks that change nothing."""
    return {n: torch.ones_like(bn.weight.detach()) for n, bn in maskable(model).items()}


def scales(model: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """The masked BatchNorm scales under their parameter names: "bn1.weight" -> (c,)."""
    modules = dict(model.named_modules())
    return {f"{n}.weight": m * modules[n].weight for n, m in masks.items()}


def masks_forward(model: nn.Module, masks: Masks, x: Tensor) -> Tensor:
    """Outputs of the masked model for inputs x; nothing in the model is edited."""
    return functional_call(model, scales(model, masks), (x,), tie_weights=False)


def gradient_of(loss: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """The gradient by each leaf; zero for one of a layer that never runs."""
    return list(torch.autograd.grad(loss, leaves, materialize_grads=True))


def normalize_by_batch(model: nn.Module) -> nn.Module:
    """Put the BatchNorms, and only them, in train mode; returns the model.

    Dropout stays off: it would draw from torch's global generator.
    """
    model.eval()
    for m in model.modules():
        if isinstance(m, _BatchNorm):
            m.train()
    return model


def masks_frozen(model: nn.Module, *, training: bool = False) -> nn.Module:
    """A copy to learn masks on: no gradients for its weights, laid out for speed.

    Args:
        training: BatchNorms normalize by the batch, and the running statistics of this
            copy move; False uses the running statistics and leaves them alone.
    """
    model = copied(require.module(model)).requires_grad_(False)
    model = lay_out(model)
    return normalize_by_batch(model) if training else model.eval()


@torch.no_grad()
def baked(model: nn.Module, masks: Masks) -> nn.Module:
    """A copy of the model with the masks multiplied into its BatchNorm scales."""
    model = copy.deepcopy(model)
    for name, m in masks.items():
        weight_of(model.get_submodule(name)).mul_(m)
    return model


def below(masks: Masks, t: float) -> dict[str, Tensor]:
    """Channels whose mask is at most t: BatchNorm name -> positions (m,)."""
    return {n: (m <= t).nonzero().flatten().cpu() for n, m in masks.items()}


def ladder(
    masks: Masks, thresholds: Iterable[float] = LADDER
) -> list[tuple[float, dict[str, Tensor]]]:
    """What each threshold would prune, for `furthest`: [(t, channels)].

    The mask with the value 1 is never pruned, whatever the threshold.
    """
    return [(t, below(masks, t)) for t in sorted(thresholds) if t < 1]


def masks_prune(
    model: nn.Module,
    masks: Masks,
    held: Examples | None,
    threshold: float | None,
    max_drop: float,
    looks: list[Look] | None = None,
) -> tuple[nn.Module, dict[str, Tensor], float | None]:
    """Switch off the channels with the lowest masks: (model, channels, threshold).

    Shifts are kept, as they were while the masks were learned.

    Args:
        held: the threshold is the last of `LADDER` before the first that costs more
            than `max_drop` accuracy on these images; None in the result if already
            the first does, and nothing is pruned.
        threshold: use this one instead.
        looks: see `furthest`.
    """
    if threshold is None:
        assert held is not None  # see `require_threshold`
        threshold = furthest(model, ladder(masks), held, max_drop, shift=False, looks=looks)
    channels = {} if threshold is None else below(masks, threshold)
    return without(model, channels, shift=False), channels, threshold


def masks_prune_oracle(
    model: nn.Module, masks: Masks, held: Examples, attack: Trigger, max_drop: float
) -> tuple[nn.Module, dict[str, Tensor], float | None]:
    """The examiner's threshold: the lowest ASR among those that may be taken.

    No defender can choose so, since it takes the trigger. Beside :func:`masks_prune` with the
    same `max_drop` it tells what the look at the ASR is worth.

    Args:
        held: accuracy and ASR are compared on these images.
        max_drop: accuracy that may be lost on them; of equal ASR the first counts.

    Returns:
        as :func:`masks_prune`; without any threshold that is allowed, nothing is pruned and
        the threshold is None.
    """
    least = evaluate(model, held).acc - max_drop - 1e-9
    best: tuple[float, float | None, dict[str, Tensor]] = (float("inf"), None, {})
    seen = -1
    for t, channels in ladder(masks):
        if (count := sum(map(len, channels.values()))) == seen:
            continue  # the same channels
        seen = count
        s = evaluate(without(model, channels, shift=False), held, attack)
        if s.acc >= least and s.asr is not None and s.asr < best[0]:
            best = (s.asr, t, channels)
    _, threshold, channels = best
    return without(model, channels, shift=False), channels, threshold


def require_threshold(held: Examples | None, threshold: float | None, max_drop: float) -> None:
    """Refuse what `masks_prune` could not work with, before anything is learned."""
    if held is None and threshold is None:
        raise ValueError(
            "a threshold is chosen on held-out clean images; give held, or a threshold."
        )
    if held is not None:
        require_clean(held, "held", 1)
    if threshold is not None:
        require.number("threshold", threshold)
    if threshold is not None and not 0 <= threshold < 1:
        raise ValueError(
            f"threshold must lie in 0..1, 1 excluded, but is {threshold}; a mask of 1 "
            "is a channel that nothing speaks against."
        )
    require.fraction("max_drop", max_drop)


def require_moved(masks: Masks) -> None:
    """Refuse masks that are all still 1: no gradient has reached them."""
    if all(bool((m == 1).all()) for m in masks.values()):
        raise RuntimeError(
            "no mask has moved from 1, so nothing was learned; look whether the "
            "model's output depends on its BatchNorms at all."
        )


def learn(
    masks: Masks,
    clean: Examples,
    step: Step,
    *,
    steps: int,
    batch: int,
    lr: float,
    momentum: float,
    generator: torch.Generator,
    keep: Checkpoint,
) -> tuple[Masks, dict[str, list[float]]]:
    """SGD with momentum on the masks alone, cut to [0, 1] after every step.

    v <- momentum * v + gradient;  m <- clamp(m - lr * v, 0, 1). Each step sees a random
    batch without repetition.

    Args:
        masks: where to start; left untouched.
        step: gives the gradient; it may draw from `generator` too.
        keep: on a finished run it holds the last state until its owner calls `done`.

    Returns:
        the masks, and each term of the loss step by step.
    """
    device, n = clean.x.device, len(clean)
    m = {k: v.clone().requires_grad_(True) for k, v in masks.items()}
    speed = {k: torch.zeros_like(v) for k, v in masks.items()}
    course: dict[str, list[Tensor]] = {}
    done = 0
    if (saved := keep.load()) is not None:
        tensors, notes = saved
        done = notes["step"]
        with torch.no_grad():
            for k in m:
                m[k].copy_(tensors[f"mask.{k}"])
                speed[k].copy_(tensors[f"speed.{k}"])
        course = {k: list(tensors[f"term.{k}"]) for k in notes["terms"]}
        generator.set_state(tensors["generator"])

    def save(now: int) -> None:
        tensors = {f"mask.{k}": v for k, v in m.items()}
        tensors |= {f"speed.{k}": v for k, v in speed.items()}
        tensors |= {f"term.{k}": torch.stack(v) for k, v in course.items()}
        tensors["generator"] = generator.get_state()
        keep.save(tensors, step=now, terms=list(course))

    for now in progress(range(done, steps), steps - done, "masks"):
        order = torch.randperm(n, generator=generator, device=generator.device)
        index = order[:batch].to(device)
        x = clean.task.inputs(clean.x[index])
        terms, gradient = step(m, x, clean.y[index])
        with torch.no_grad():
            for k, g in zip(m, gradient, strict=True):
                speed[k].mul_(momentum).add_(g)
                m[k].sub_(lr * speed[k]).clamp_(0, 1)
        for k, v in terms.items():  # read at the end: a number each step would wait
            course.setdefault(k, []).append(v.detach())
        if keep.due():
            save(now + 1)
    if not all(bool(v.isfinite().all()) for v in m.values()):
        raise RuntimeError(
            "the masks are not finite numbers: their loss left all bounds; take a "
            "smaller lr, or a smaller push."
        )
    if done < steps:
        save(steps)
        require_moved(m)
    read = {k: torch.stack(v).tolist() for k, v in course.items()}
    return {k: v.detach() for k, v in m.items()}, read
