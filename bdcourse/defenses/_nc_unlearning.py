"""Neural Cleanse's repair by unlearning: train on guessed triggers with true labels.

Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural
Networks", IEEE S&P 2019. The guess of `invert_trigger` is stamped on a share of the
defender's clean images, which keep their true labels; fine-tuning on the mix teaches
the network to ignore it. The rival that pruning by the same guess must beat.
Derived in lesson 04.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.augment import Augmentation
from bdcourse.defenses._base import Purified, Tuning, copied, defense
from bdcourse.defenses._invert import Estimate, Inverted, detect, require_inverted
from bdcourse.examples import Examples


def stamped(clean: Examples, guesses: Sequence[Estimate], rows: Tensor) -> Examples:
    """The examples with guessed triggers on `rows`, the guesses taking turns.

    Every label stays true: that is the unlearning.
    """
    x = clean.x.clone()
    for turn, guess in enumerate(guesses):
        mine = rows[turn :: len(guesses)].to(x.device)
        x[mine] = clean.task.stored(guess.stamp(clean.task.inputs(x[mine])))
    return replace(clean, x=x)


@defense(steady=False, moves=True, pixels=True, classes=True)
def nc_unlearning(
    model: nn.Module,
    clean: Examples,
    inverted: Inverted,
    *,
    label: int | None = None,
    threshold: float = 2.0,
    scale: Literal["norm", "log"] = "norm",
    share: float = 0.2,
    epochs: float = 10,
    lr: float = 0.01,
    batch: int = 32,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    warmup: float = 0.2,
    frozen_norms: bool = False,
    augment: Augmentation | None = None,
    each_epoch: Callable[[nn.Module], dict] | None = None,
    verbose: bool = False,
    generator: torch.Generator | None = None,
    checkpoint: str | os.PathLike | None = None,
) -> Purified:
    """Fine-tune a copy on clean images, some of them with the guessed trigger.

    Where no label is flagged, the copy comes back as it is, and the log says so.

    Args:
        clean: the defender's images, with true labels.
        inverted: what `invert_trigger` found on this model. `seconds` of the result
            does not contain the time that this took, `inverted.seconds`.
        label: unlearn the guess for this label, flagged or not; default all flagged.
        threshold, scale: of the anomaly index, see :func:`detect`.
        share: of the images to stamp, above 0 and at most 1.
        epochs, lr, batch, momentum, weight_decay, warmup, frozen_norms, augment,
            each_epoch, verbose, checkpoint: see `train.fit`.
        generator: chooses the images to stamp, then decides the training.

    Returns:
        log: `flagged` labels, `index` of all (None if too few), labels `unlearned`,
        number of images `stamped`, and `loss` and `acc` in training, one an epoch; a
        `note` alone where nothing was unlearned.

    Raises:
        ValueError: settings out of range, a label that was not inverted, no images.

    Source: Wang et al., IEEE S&P 2019. Derived in lesson 04.
    """
    start = time.perf_counter()
    require_inverted(inverted, clean)
    require.number("share", share)
    tuning = Tuning.of(locals())
    if label is not None:
        require.whole("label", label, 0)
    if not 0 < share <= 1:
        raise ValueError(f"share must lie above 0 and at most at 1, not {share}.")
    if len(inverted.targets) < 3 and label is not None:
        flagged, index = (), None  # too few for an outlier, and none is asked for
    else:
        found = detect(inverted, threshold, scale=scale)
        flagged, index = found.labels, found.index
    used = flagged if label is None else (label,)
    guesses = [inverted.trigger(t) for t in used]
    model = copied(model)
    log: dict = {"flagged": flagged, "index": index, "unlearned": used}
    if not used:
        log["note"] = "no label is flagged, so the model was left as it is"
        return Purified(model, log=log, seconds=time.perf_counter() - start)

    generator = require.generator(generator)
    count = max(1, round(share * len(clean)))
    rows = torch.randperm(len(clean), generator=generator, device=generator.device)
    mix = stamped(clean, guesses, rows[:count])
    history = tuning(model, mix, generator, checkpoint)
    log |= {"stamped": count, "loss": history["loss"], "acc": history["acc"]}
    return Purified(model, log=log, seconds=time.perf_counter() - start)
