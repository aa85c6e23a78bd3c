"""FT-SAM: fine-tuning that looks for flat ground, with steps measured by the weights.

Zhu, Wei, Shen, Fan and Wu, "Enhancing Fine-Tuning Based Backdoor Defense with
Sharpness-Aware Minimization", ICCV 2023. Plain fine-tuning on clean images hardly moves
the neurons of a backdoor, as the clean loss is small already. So each step first walks
to the worst point near the weights w, and then descends with the gradient found there:

    e = rho * T^2 g / ||T g||,    T = diag(|w|),    g = gradient of the loss at w
    w <- w - lr * gradient of the loss at w + e

T makes the neighborhood adaptive (Kwon et al., "ASAM", ICML 2021): it is the set of
all e with sqrt(sum (e_i / w_i)^2) <= rho, so a large weight is moved far, and backdoor
neurons tend to have large weights. All parameters are moved, those of BatchNorm too;
the running statistics of BatchNorm are only fed by the network that is not moved.
"""

from __future__ import annotations

import os
import time

import torch
from torch import nn

from bdcourse import require
from bdcourse.analysis.sharpness_aware import Flat
from bdcourse.augment import Augmentation
from bdcourse.checkpoint import Checkpoint
from bdcourse.defenses._base import Purified, Tuning, copied, decided_by, defense, stage
from bdcourse.examples import Examples


@defense(steady=False, moves=True)
def ft_sam(
    model: nn.Module,
    clean: Examples,
    *,
    rho: float = 4.0,
    smoothing: float = 0.1,
    epochs: float = 20,
    lr: float = 0.05,
    batch: int = 32,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    warmup: float = 0.2,
    frozen_norms: bool = False,
    augment: Augmentation | None = None,
    verbose: bool = False,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Purified:
    """Fine-tune a copy of the model on clean images with adaptive SAM.

    A step costs two passes forward and two backward.

    Args:
        rho: radius of the neighborhood in units of the weights themselves. Ours: of 2,
            4 and 8 the largest that kept held-out clean accuracy on two victims of
            width 8. BackdoorBench takes 2 for PreActResNet-18 of width 64 on CIFAR-10.
        smoothing: of the labels, 0..1; 0.1 is BackdoorBench's configuration. With rho
            and smoothing 0 this is plain fine-tuning.
        epochs, batch, lr: ours, for 240 images; BackdoorBench takes 100 epochs at 0.01.
        optimizer, momentum, weight_decay, warmup, frozen_norms, augment, verbose,
            generator: see `train.fit`.
        checkpoint: file that stands while this runs, with a second one (name plus
            ".fit") that is renewed after each epoch, and both are gone at the end. The
            same call, started again after a stop, ends where it would have ended.

    Returns:
        log, one number an epoch: `loss` at the worst points, `sharpness` (by how
        much that exceeds the loss at the weights, in nats), `acc` in training.

    Raises:
        ValueError: negative rho, smoothing outside 0..1.

    Source: Zhu et al., ICCV 2023. Derived in lesson 09.
    """
    start, about = time.perf_counter(), decided_by("ft_sam", locals())
    require.number("rho", rho)
    require.number("smoothing", smoothing)
    if rho < 0 or not 0 <= smoothing < 1:
        raise ValueError(
            "rho must not be negative and smoothing must lie in 0..1, without 1, not "
            f"{rho} and {smoothing}."
        )
    model = copied(model)
    flat = Flat(model, rho, smoothing, clean.task.likelihood)
    tuning = Tuning.of(locals(), each_epoch=flat.sharpness)
    keep = Checkpoint(checkpoint, about)
    if keep.load() is None:
        keep.save({})
    generator = require.generator(generator)
    # Both passes must be the same function, and the second is not compiled.
    by_flat = {"hook": flat, "compile": False}
    history = tuning(model, clean, generator, stage(checkpoint, "fit"), **by_flat)
    keep.done()
    log = {key: history[key] for key in ("loss", "sharpness", "acc")}
    return Purified(model, log=log, seconds=time.perf_counter() - start)
