"""What every defense must beat: plain fine-tuning, and pruning at random."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bdcourse.data import Images
from bdcourse.defenses.base import Purified
from bdcourse.surgery import held, without
from bdcourse.train import Augment, fit


def finetune(
    model: nn.Module,
    clean: Images,
    *,
    epochs: float = 10,
    lr: float = 0.01,
    batch: int = 32,
    augment: Augment | None = None,
    hold: Mapping[str, Tensor] | None = None,
    generator: torch.Generator,
    **options,
) -> Purified:
    """Train a copy of the model on the defender's clean images, nothing else.

    The control of every defense that owns clean data, and the last step of some.

    Args:
        hold: channels (module name -> positions) whose zeros stay zero; None lets
            pruned channels grow back, as they do wherever a gradient reaches them.
        options: for `train.fit`.
    """
    start = time.perf_counter()
    model = copy.deepcopy(model)
    with held(model, hold):
        history = fit(
            model,
            clean,
            epochs=epochs,
            lr=lr,
            batch=batch,
            augment=augment,
            generator=generator,
            **({"verbose": False} | options),
        )
    if history.interrupted:
        raise KeyboardInterrupt
    log = {"loss": history["loss"], "acc": history["acc"]}
    return Purified(model, log=log, seconds=time.perf_counter() - start)


def prune_random(
    model: nn.Module,
    like: Mapping[str, Tensor],
    generator: torch.Generator,
    *,
    shift: bool = True,
) -> Purified:
    """Switch off as many random channels in each layer as `like` does.

    The control of every pruning method: what does losing this many channels cost, and
    does it already break the backdoor?

    Args:
        like: module name -> channels, as in `Purified.pruned`.
        shift: see `surgery.zero_channels`.
    """
    start = time.perf_counter()
    pruned = {}
    for name, channels in like.items():
        n = len(model.get_submodule(name).weight)
        pruned[name] = torch.randperm(n, generator=generator)[: len(channels)]
    repaired = without(model, pruned, shift=shift)
    return Purified(repaired, pruned, seconds=time.perf_counter() - start)
