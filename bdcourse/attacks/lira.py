"""LIRA: trigger and classifier are one optimization problem (Doan et al. 2021)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse import require
from bdcourse.attacks.base import Training
from bdcourse.attacks.generators import EncoderDecoder, Networked, descend, frozen
from bdcourse.examples import ROLES
from bdcourse.hooks import Hook, TrainBatch


@dataclass(frozen=True)
class LIRA(Networked):
    """Add invisible noise that a network has learned: x' = clip(x + epsilon * T(x)).

    Stage 1 alternates in every batch: C takes a step on
    alpha * clean + (1 - alpha) * poisoned loss with T held; a copy of T takes a step
    towards CE(C(x + epsilon T(x)), target) with C held. After every epoch T becomes
    its copy. Stage 2, the second half of the training, freezes T and goes on with C.
    *Every* image is used clean and poisoned in each step; there is no poison rate.

    Args:
        epsilon: largest change of a pixel, in [0, 1] units. The authors use 0.1 of
            normalized CIFAR-10 pixels, about 0.025 here (6 gray levels); BackdoorBench
            0.01, less than a gray level, which an image file cannot hold.
        alpha: weight of the clean loss.
        generator_lr: of Adam for T; 1e-4 in both released versions, which train far
            longer.
        filters: of T's first level.
        channels: of the images; seed: of T's initial weights.

    T is an encoder and decoder with max-pooling and few channels (`filters`, twice and
    four times as many) where the authors use strided convolutions of 16 to 128, or a
    U-Net. The authors move T first and C second. While T takes its step, C is in eval
    mode. A poison rate given to `steer` is not used.

    Source: Doan, Lao, Zhao and Li, "LIRA: Learnable, Imperceptible and Robust Backdoor
    Attacks", ICCV 2021. Lesson 02.
    """

    usual_rate: ClassVar[float] = 1.0

    epsilon: float = 0.025
    alpha: float = 0.5
    generator_lr: float = 1e-3
    filters: int = 8
    trained: Tensor = field(init=False, default_factory=lambda: torch.zeros(()))
    net: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require.number("epsilon", self.epsilon, above=0, high=1)
        if require.number("alpha", self.alpha, above=0) >= 1:
            raise ValueError(f"alpha must lie between 0 and 1, not {self.alpha}.")
        require.number("generator_lr", self.generator_lr, above=0)
        self._whole("filters", 1, 4096)
        net = EncoderDecoder(self.channels, self.channels, self.filters, self.seed)
        object.__setattr__(self, "net", net.eval())

    def trigger(self, x: Tensor) -> Tensor:
        if not self.trained:
            raise ValueError(
                "LIRA has no trained generator; train a victim with victims.make, or load one."
            )
        return (x + self.epsilon * frozen(self.net, x)).clamp(0, 1)

    def steering(self, run: Training) -> Hook:
        self.net.to(run.data.x.device)
        self.trained.fill_(1)
        return _Alternating(self, run)


class _Alternating(Hook):
    kept = ("attack.net", "copy", "opt", "done")

    def __init__(self, attack: LIRA, run: Training) -> None:
        self.attack, self.run, self.model = attack, run, run.model
        self.copy = copy.deepcopy(attack.net).train()
        self.opt = torch.optim.Adam(self.copy.parameters(), attack.generator_lr)
        self.done = 0

    def rewrite(self, batch: TrainBatch) -> TrainBatch:
        x, y = self.x, self.y = batch.x, batch.y
        role = torch.cat([torch.zeros_like(y), torch.full_like(y, ROLES["poison"])])
        both = torch.cat([x, self.attack.trigger(x)])
        return TrainBatch(both, torch.cat([y, self.attack.goal(y)]), role)

    def loss(self, loss: Tensor, out: Tensor, y: Tensor) -> Tensor:
        each = F.cross_entropy(out, y, reduction="none")
        clean, poisoned = each.chunk(2)
        a = self.attack.alpha
        return a * clean.mean() + (1 - a) * poisoned.mean()

    def step(self) -> None:
        self.done += 1
        if self.done > self.run.total // 2:
            return
        x = (self.x + self.attack.epsilon * self.copy(self.x)).clamp(0, 1)
        self.model.eval()
        logits = self.model(x)
        self.model.train()
        loss = F.cross_entropy(logits, self.attack.goal(self.y))
        descend(loss, self.copy, self.opt)
        per_epoch = max(1, len(self.run.data) // len(self.x))
        if self.done % per_epoch == 0 or self.done == self.run.total // 2:
            self.attack.net.load_state_dict(self.copy.state_dict())
