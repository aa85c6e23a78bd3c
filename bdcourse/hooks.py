"""Somebody inside the training loop: an attacker, or a defender with a loss of their own."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from bdcourse.checkpoint import pack_state, unpack_state


class TrainBatch(NamedTuple):
    """One batch of a training."""

    x: Tensor  #: inputs, of images pixels in [0, 1]
    y: Tensor  #: targets
    role: Tensor  #: int64 (n,), see `examples.ROLES`

    @classmethod
    def clean(cls, x: Tensor, y: Tensor) -> TrainBatch:
        """A batch that nobody has changed."""
        return cls(x, y, torch.zeros(len(y), dtype=torch.int64, device=y.device))


class Hook:
    """Somebody inside the training loop; one object lives through one training.

    `fit` calls, for each step: `rewrite` on the batch; the model on what came back;
    `loss` with the loss so far; then, after the model's own update, `step`. Several
    hooks are called one behind the other, each with what the one before made of it.

    Attributes:
        before_augment: `rewrite` gets the examples as they are, and what it returns is
            augmented; otherwise it gets the augmented batch.
        kept: names of attributes that a stopped training needs to go on: tensors,
            numbers, networks, optimizers, schedules, generators. "attack.net" is one.
    """

    before_augment: bool = False
    kept: ClassVar[tuple[str, ...]] = ()

    def rewrite(self, batch: TrainBatch) -> TrainBatch:
        """The batch as this one wants it."""
        return batch

    def loss(self, loss: Tensor, out: Tensor, y: Tensor) -> Tensor:
        """What the model (and whatever `rewrite` kept a gradient to) minimizes.

        Args:
            loss: so far: at first the mean negative log-likelihood of the batch.
            out: the model's outputs for the batch, with their graph; y: its targets.
        """
        return loss

    def step(self) -> None:
        """After the model's update: the hook's own networks move here."""

    def state(self) -> dict[str, Tensor]:
        """All that a checkpoint must hold of this hook."""
        return pack_state({name: _found(self, name) for name in self.kept})

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        for name, value in unpack_state(
            tensors, {name: _found(self, name) for name in self.kept}
        ).items():
            setattr(self, name, value)


def _found(thing: object, name: str) -> object:
    for part in name.split("."):
        thing = getattr(thing, part)
    return thing
