"""Somebody inside the training loop: an attacker, or a defender with a loss of their
own."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class Hook:
    """Somebody inside the training loop; one object lives through one training.

    `fit` calls, for each step: `rewrite` on the batch; the model on what came back;
    `loss`; then, after the model's own update, `step`.

    Attributes:
        before_augment: `rewrite` gets the images as they are, and what it returns is
            cropped and mirrored; otherwise it gets the augmented batch.
        resumable: there is no state that a checkpoint of `fit` would miss.
    """

    before_augment = False
    resumable = False

    def rewrite(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The batch as the attacker wants it: pixels in [0, 1], labels, roles."""
        raise NotImplementedError

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """What the model (and whatever `rewrite` kept a gradient to) minimizes."""
        return F.cross_entropy(logits, y)

    def step(self) -> None:
        """After the model's update: the attacker's own networks move here."""
