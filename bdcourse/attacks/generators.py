"""What attacks with trained networks share: image in, image out, and their own
steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse import require
from bdcourse.attacks.base import Attack
from bdcourse.data import Images
from bdcourse.models import evaluating
from bdcourse.seeds import fresh_seed

if TYPE_CHECKING:
    from typing_extensions import Self


def _level(c_in: int, c_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for c in (c_in, c_out):
        layers += [
            nn.Conv2d(c, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


class EncoderDecoder(nn.Module):
    """Three levels down, three levels up, two 3x3 conv-BN-ReLU each; output in -1..1.

    Widths are `width`, 2 `width`, 4 `width` (32, 64, 128 in the input-aware paper);
    max-pool on the way down, bilinear on the way up, so any image of 8 pixels or more
    fits. Takes pixels in [0, 1], (n, c_in, h, w); gives tanh values (n, c_out, h, w).
    """

    def __init__(self, c_in: int, c_out: int, width: int, seed: int) -> None:
        super().__init__()
        require.whole("filters", width, 1, 4096)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            w = width
            self.down = nn.ModuleList([_level(c_in, w), _level(w, 2 * w), _level(2 * w, 4 * w)])
            self.up = nn.ModuleList([_level(4 * w, 2 * w), _level(2 * w, w), _level(w, w)])
            self.last = nn.Conv2d(w, c_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        sizes, x = [], 2 * x - 1
        for level in self.down:
            sizes.append(x.shape[-2:])
            x = F.max_pool2d(level(x), 2)
        for level, size in zip(self.up, reversed(sizes), strict=True):
            x = level(F.interpolate(x, tuple(size), mode="bilinear", align_corners=False))
        return torch.tanh(self.last(x))


def frozen(net: nn.Module, x: Tensor) -> Tensor:
    """net(x) in eval mode and without gradient; net and x may be on two devices."""
    device = next(net.parameters()).device
    with evaluating(net), torch.no_grad():
        return net(x.to(device)).to(x.device)


def descend(loss: Tensor, net: nn.Module, opt: torch.optim.Optimizer) -> None:
    """One step of `opt` on `net` alone: no other weight gets a gradient from `loss`."""
    weights = list(net.parameters())
    for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        w.grad = g
    opt.step()


@dataclass(frozen=True)
class Networked(Attack):
    """What attacks share that steer the training and own an `EncoderDecoder`.

    Args:
        channels: of the images.
        seed: of the networks' initial weights; `craft` draws it.
    """

    threat: ClassVar[Literal["data", "training"]] = "training"

    channels: int = 3
    seed: int = 0

    @classmethod
    def craft(
        cls,
        images: Images,
        generator: torch.Generator,
        *,
        model: nn.Module | None = None,
        **options,
    ) -> Self:
        options.setdefault("channels", images.shape[0])
        options.setdefault("seed", fresh_seed(generator))
        return super().craft(images, generator, **options)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("channels", 1, 100)
        self._whole("seed", 0, 2**63 - 1)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        if shape[0] != self.channels or min(shape[1:]) < 8:
            raise ValueError(
                f"the attack's network is for {self.channels} channels and at least 8 "
                f"pixels, the images are {shape}."
            )
