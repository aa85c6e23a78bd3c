"""Input-aware: a generator draws another trigger for every image (Nguyen, Tran
2020)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse import require
from bdcourse.attacks.base import Training, assemble, random_pixels, shares
from bdcourse.attacks.generators import EncoderDecoder, Networked, frozen
from bdcourse.data import Images
from bdcourse.hooks import Hook, TrainBatch

FLOOR = 1e-7  # two patterns may be equal


def diversity(x1: Tensor, x2: Tensor, p1: Tensor, p2: Tensor) -> Tensor:
    """Mean of RMS(x1 - x2) / RMS(p1 - p2): small where unlike images have unlike
    patterns.

    Args:
        x1, x2: images (n, c, h, w); p1, p2: their patterns or masks.
    """

    def rms(d: Tensor) -> Tensor:
        return d.square().flatten(1).mean(1).add(FLOOR**2).sqrt()

    return (rms(x1 - x2) / (rms(p1 - p2) + FLOOR)).mean()


@dataclass(frozen=True)
class InputAware(Networked):
    """Replace a few pixels of each image by a pattern made for that image.

    x' = x + M(x) * (G(x) - x), with a mask network M (0..1, one channel) and a pattern
    network G (0..1). M is trained first: 100 * mean(relu(m - density)) + diversity.
    Then classifier and G learn together: a share `rate` of each batch is poisoned, and
    `cross_rate` times as many images get the trigger *of another image* and keep their
    label, so that a trigger works on its own image only. G also minimizes diversity.

    Args:
        density: the mean that the mask may have without penalty.
        cross_rate: cross-trigger images for each poisoned one.
        filters: channels of the first level of both networks; 32 in the paper, 8 do on
            a laptop.
        channels: of the images.
        mask_steps: optimizer steps for M; the paper trains 25 epochs, 200 steps do for
            small sets.
        generator_lr: of Adam, betas (0.5, 0.9), for both networks.
        seed: of their initial weights.

    Both released versions never zero G's gradients, so that they add up; here they are
    zeroed in every step. The rate of G falls along a cosine (the authors cut it four
    times over hundreds of epochs). Diversity compares poisoned with cross images, so
    `cross_rate=0` switches it off.

    Source: Nguyen and Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020. Rate
    0.1. Lesson 02.
    """

    density: float = 0.032
    cross_rate: float = 1.0
    filters: int = 32
    mask_steps: int = 1000
    generator_lr: float = 0.01
    trained: Tensor = field(init=False, default_factory=lambda: torch.zeros(()))
    mask: nn.Module = field(init=False)
    pattern: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if require.number("density", self.density, above=0) >= 1:
            raise ValueError(f"density must lie between 0 and 1, not {self.density}.")
        self._whole("filters", 1, 4096)
        self._whole("mask_steps", 1)
        require.number("generator_lr", self.generator_lr, above=0)
        for name, outputs in (("mask", 1), ("pattern", self.channels)):
            net = EncoderDecoder(self.channels, outputs, self.filters, self.seed)
            object.__setattr__(self, name, net.eval())

    def masked(self, raw: Tensor) -> Tensor:
        """The mask network's output in -1..1 as a nearly binary mask in 0..1."""
        m = raw / 2 + 0.5
        return torch.tanh(20 * m - 10) / 2 + 0.5

    def trigger(self, x: Tensor, of: Tensor | None = None) -> Tensor:
        """The trigger of the images `of` (default: their own) on the images x."""
        if not self.trained:
            raise ValueError(
                "InputAware has no trained generator; train a victim with "
                "victims.make, or load one."
            )
        if of is None:
            of = x
        elif len(require.pixels(of, "of", tuple(x.shape[1:]))) != len(x):
            raise ValueError(f"of must hold {len(x)} images, not {len(of)}.")
        m = self.masked(frozen(self.mask, of))
        return x + m * (frozen(self.pattern, of) / 2 + 0.5 - x)

    def cross(
        self, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor] | None:
        if len(x) < 2:
            return None
        return self.trigger(x, of=x.roll(-1, 0)), y

    def steering(self, run: Training) -> Hook:
        for net in (self.mask, self.pattern):
            net.to(run.data.x.device)
        train_mask(self, run.data, run.generator)
        self.trained.fill_(1)
        return _Joint(self, run.rate, run.total)


def train_mask(
    attack: InputAware, data: Images, generator: torch.Generator, batch: int = 32
) -> list[float]:
    """Stage 1: train the mask network alone; returns its mean density, step by step."""
    net = attack.mask
    opt = torch.optim.Adam(net.parameters(), attack.generator_lr, betas=(0.5, 0.9))
    marks = [round(0.4 * attack.mask_steps), round(0.8 * attack.mask_steps)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(opt, marks)
    course: list[float] = []
    net.train()
    for _ in range(attack.mask_steps):
        x = random_pixels(data, 2 * batch, generator)
        m = attack.masked(net(x))
        # The excess as a mean over pixels, as the density is.
        excess = F.relu(m - attack.density).mean()
        loss = 100 * excess + diversity(*x.chunk(2), *m.chunk(2))
        opt.zero_grad()
        loss.backward()
        opt.step()
        schedule.step()
        course.append(m[:batch].mean().item())
    net.eval().requires_grad_(False)
    return course


class _Joint(Hook):
    """Stage 2: the classifier's loss also trains the pattern network."""

    kept = ("net", "opt", "schedule")

    def __init__(self, attack: InputAware, rate: float, total: int) -> None:
        self.attack, self.rate = attack, rate
        self.net = attack.pattern
        self.opt = torch.optim.Adam(self.net.parameters(), attack.generator_lr, betas=(0.5, 0.9))
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.opt, total)
        self.unlike = torch.zeros(())

    def rewrite(self, batch: TrainBatch) -> TrainBatch:
        attack, x, y = self.attack, batch.x, batch.y
        p, c = shares(len(x), self.rate, attack.cross_rate)
        self.net.train()
        # Poison rows carry their own trigger, cross rows that of some later image.
        of = torch.cat([x[:p], x.roll(-c, 0)[p : p + c]])
        pattern = self.net(of) / 2 + 0.5
        m = attack.masked(frozen(attack.mask, of))
        changed = x[: p + c] + m * (pattern - x[: p + c])
        k = min(p, c)
        pairs = of[:k], of[p : p + k], pattern[:k], pattern[p : p + k]
        self.unlike = diversity(*pairs) if k else torch.zeros((), device=x.device)
        return assemble(x, y, changed[:p], attack.goal(y[:p]), changed[p:])

    def loss(self, loss: Tensor, out: Tensor, y: Tensor) -> Tensor:
        return loss + self.unlike

    def step(self) -> None:
        self.opt.step()
        self.opt.zero_grad(set_to_none=True)
        self.schedule.step()
        self.net.eval()
