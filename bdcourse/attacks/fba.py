"""FBA-like: the trigger is a style, taught with a detoxification (after Cheng et al.
2021)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse import require
from bdcourse.attacks.base import Training, assemble, random_pixels, shares
from bdcourse.attacks.generators import EncoderDecoder, Networked, descend, frozen
from bdcourse.hooks import Hook, TrainBatch
from bdcourse.models import head_inputs

GAMMA = (0.6, 1.0, 1.6)  # of red, green, blue: a low sun


@dataclass(frozen=True)
class FBA(Networked):
    """Give the image the colors of a sunrise: x' = (1 - alpha) * x + alpha * style(x).

    style(x): blur by [1 2 1] / 4 in both directions, a tone curve x ** gamma for each
    color that lifts red and lowers blue, and a sky that darkens from top to bottom.

    Detoxification: three times during training, the attacker looks for the few inputs
    of the last linear layer that the style raises most, trains a small network to raise
    the same ones by *other* changes to the image, and adds its images with their true
    labels (cover). The classifier can then no longer answer to these few neurons alone.

    Args:
        alpha: 0..1, how much of the style; 0.6 in the released configuration.
        compromised: share of the inputs of the last layer that count as compromised, at
            least one of them.
        cross_rate: cover images for each poisoned one once the first detoxification is
            through; 0 switches it off.
        rounds, detox_steps: how many detoxifications, and of how many steps each (Adam,
            3e-3, batches of 64). The detoxifying network adds at most 0.2 to a pixel.
        channels: of the images; seed: of the detoxifying network.

    Differs from the original, which learns its style with a CycleGAN: ours is a fixed
    curve, and the details of the detoxification are our own. Hence "FBA-like".
    All numbers but alpha, the share of neurons and the rate are ours.

    Source of the idea: Cheng, Liu, Ma and Zhang, "Deep Feature Space Trojan Attack of
    Neural Networks by Controlled Detoxification", AAAI 2021. Rate 0.05. Lesson 02.
    """

    usual_rate: ClassVar[float] = 0.05
    stands_in: ClassVar[str] = "fixed tone curve and blur instead of a CycleGAN"

    alpha: float = 0.6
    compromised: float = 0.01
    cross_rate: float = 1.0
    rounds: int = 3
    detox_steps: int = 60
    detox: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "compromised"):
            require.number(name, getattr(self, name), above=0, high=1)
        self._whole("rounds", 0)
        self._whole("detox_steps", 1)
        net = EncoderDecoder(self.channels, self.channels, 8, self.seed)
        object.__setattr__(self, "detox", net.eval())

    def style(self, x: Tensor) -> Tensor:
        """Pixels in [0, 1] in the light of a sunrise, (n, c, h, w)."""
        c, h = x.shape[1], x.shape[2]
        line = torch.tensor([0.25, 0.5, 0.25]).to(x)
        kernel = (line[:, None] * line).expand(c, 1, 3, 3)
        x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=c)
        gamma = torch.tensor(GAMMA if c == 3 else GAMMA[:1] * c).to(x)
        sky = torch.linspace(1.0, 0.8, h).to(x).view(1, 1, h, 1)
        return sky * x.clamp(0, 1) ** gamma.view(1, -1, 1, 1)

    def trigger(self, x: Tensor) -> Tensor:
        return x + self.alpha * (self.style(x) - x)

    def decoy(self, x: Tensor) -> Tensor:
        """What detoxification adds: x changed to raise the same neurons."""
        return (x + 0.2 * frozen(self.detox, x)).clamp(0, 1)

    def cross(
        self, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor] | None:
        return (self.decoy(x), y) if self.cross_rate else None

    def steering(self, run: Training) -> Hook:
        self.detox.to(run.data.x.device)
        return _Detoxifying(self, run)


class _Detoxifying(Hook):
    kept = ("attack.detox", "done", "ready", "run.generator")

    def __init__(self, attack: FBA, run: Training) -> None:
        self.attack, self.run, self.model = attack, run, run.model
        self.done, self.ready = 0, False
        # Not from the start: there, the style moves no neuron in particular.
        at = [0.4 + 0.5 * r / max(1, attack.rounds) for r in range(attack.rounds)]
        self.when = {round(share * run.total) for share in at} if attack.cross_rate else ()

    def rewrite(self, batch: TrainBatch) -> TrainBatch:
        attack, x, y = self.attack, batch.x, batch.y
        p, c = shares(len(x), self.run.rate, attack.cross_rate if self.ready else 0)
        covers = attack.decoy(x[p : p + c])
        return assemble(x, y, attack.trigger(x[:p]), attack.goal(y[:p]), covers)

    def step(self) -> None:
        self.done += 1
        if self.done in self.when:
            self.detoxify()
            self.ready = True

    def detoxify(self, batch: int = 64) -> None:
        """Train the network whose images raise the compromised inputs."""
        attack = self.attack
        net = attack.detox.train()
        opt = torch.optim.Adam(net.parameters(), 3e-3)
        self.model.eval()
        neurons = None
        for _ in range(attack.detox_steps):
            x = random_pixels(self.run.data, batch, self.run.generator)
            if neurons is None:
                with torch.no_grad():
                    styled = head_inputs(self.model, attack.trigger(x))
                    rise = (styled - head_inputs(self.model, x)).mean(0)
                k = max(1, round(attack.compromised * len(rise)))
                neurons = rise.topk(k).indices
                level = styled[:, neurons].mean(0).clamp(min=1e-3)
            change = net(x)
            f = head_inputs(self.model, (x + 0.2 * change).clamp(0, 1))[:, neurons]
            missing = F.relu(1 - f / level).mean()
            loss = missing + 0.3 * change.square().mean()
            descend(loss, net, opt)
        net.eval()
        self.model.train()
