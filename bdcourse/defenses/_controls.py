"""What every defense must beat: plain fine-tuning, and pruning at random."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.augment import Augmentation
from bdcourse.defenses._base import Purified, Tuning, copied, defense
from bdcourse.examples import Examples
from bdcourse.surgery import channels_of, held, weight_of, without


@defense(steady=False, moves=True)
def finetune(
    model: nn.Module,
    clean: Examples,
    *,
    epochs: float = 10,
    lr: float = 0.01,
    batch: int = 32,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    warmup: float = 0.2,
    frozen_norms: bool = False,
    augment: Augmentation | None = None,
    hold: Mapping[str, Tensor] | None = None,
    each_epoch: Callable[[nn.Module], dict] | None = None,
    verbose: bool = False,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Purified:
    """Train a copy of the model on the defender's clean images, nothing else.

    The control of every defense that owns clean data, and the last step of some.

    Args:
        epochs, lr, batch, optimizer, momentum, weight_decay, warmup, frozen_norms,
            augment, each_epoch, verbose, generator, checkpoint: see `train.fit`.
        hold: channels (module name -> positions) whose zeros stay zero; None lets
            pruned channels grow back, as they do wherever a gradient reaches them.

    Returns:
        log: `loss` and `acc` in training, one number an epoch.

    Raises:
        ValueError: settings out of range, or a network of which nothing can move.

    Source: a control of ours. Derived in lesson 03.
    """
    start = time.perf_counter()
    tuning = Tuning.of(locals())
    generator = require.generator(generator)
    model = copied(model)
    with held(model, hold):
        history = tuning(model, clean, generator, checkpoint)
    log = {"loss": history["loss"], "acc": history["acc"]}
    return Purified(model, log=log, seconds=time.perf_counter() - start)


@defense(steady=False)
def prune_random(
    model: nn.Module,
    like: Mapping[str, Tensor],
    generator: torch.Generator | None = None,
    *,
    shift: bool = True,
) -> Purified:
    """Switch off as many random channels in each layer as `like` does.

    The control of every pruning method: what does losing this many channels cost, and
    does it already break the backdoor?

    Args:
        like: module name -> channels, as in `Purified.pruned`.
        generator: decides the channels.
        shift: see `surgery.zero_channels`.

    Returns:
        the log is empty.

    Raises:
        ValueError: channels that the model does not have.

    Source: a control of ours. Derived in lesson 03.
    """
    start = time.perf_counter()
    require.truth("shift", shift)
    generator = require.generator(generator)
    pruned = {}
    for name, channels in channels_of(model, like, "like").items():
        n = len(weight_of(model.get_submodule(name)))
        count = int(channels.sum()) if channels.dtype == torch.bool else len(channels)
        order = torch.randperm(n, generator=generator, device=generator.device)
        pruned[name] = order[:count]
    repaired = without(model, pruned, shift=shift)
    return Purified(repaired, pruned, seconds=time.perf_counter() - start)
