"""SSBA: an invisible trigger that is another one in every image (Li et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse import require
from bdcourse.analysis.visibility import psnr
from bdcourse.attacks.base import Attack, check_picture, random_pixels, with_classes
from bdcourse.data import Images, hold_out, progress

if TYPE_CHECKING:
    from typing_extensions import Self


def layout(bits: int) -> tuple[int, int]:
    """How a message lies in the image: (planes, side), planes * side^2 >= bits."""
    side = min(8, math.isqrt(bits))
    return -(-bits // side**2), side


def _conv(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1)


class Encoder(nn.Module):
    """(pixels, message) -> pixels that carry the message.

    out = clip(x + mean over 2x2 windows of strength * tanh(net(x, message)))

    The message becomes planes of a side x side board of +1 and -1 that is laid over the
    image; convolutions at half resolution mix it with the pixels. The windows take the
    finest grain away: a decoder reads it well, a classifier hardly learns it.
    """

    def __init__(self, bits: int, filters: int, channels: int, strength: float) -> None:
        super().__init__()
        self.planes, self.side = layout(bits)
        self.strength = strength
        self.net = nn.Sequential(
            _conv(4 * channels + self.planes, filters),
            nn.ReLU(),
            _conv(filters, filters),
            nn.ReLU(),
            _conv(filters, filters),
            nn.ReLU(),
            _conv(filters, 4 * channels),
        )

    def forward(self, x: Tensor, message: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        slots = self.planes * self.side**2
        signs = F.pad(2 * message - 1, (0, slots - message.shape[1]))
        board = signs.view(-1, self.planes, self.side, self.side)
        board = F.interpolate(board, (h // 2, w // 2)).expand(len(x), -1, -1, -1)
        pixels = F.pixel_unshuffle(x - 0.5, 2)  # 2x2 pixels side by side as channels
        out = self.net(torch.cat([pixels, board], 1))
        fine = self.strength * torch.tanh(F.pixel_shuffle(out, 2))
        fine = F.pad(fine, (0, 1, 0, 1), mode="replicate")
        return (x + F.avg_pool2d(fine, 2, stride=1)).clamp(0, 1)


class Decoder(nn.Module):
    """Pixels -> logits of the bits of the message."""

    def __init__(self, bits: int, filters: int, channels: int) -> None:
        super().__init__()
        self.bits = bits
        self.planes, self.side = layout(bits)
        self.net = nn.Sequential(
            _conv(4 * channels, filters),
            nn.ReLU(),
            _conv(filters, filters, 2),
            nn.ReLU(),
            _conv(filters, filters),
            nn.ReLU(),
            nn.Conv2d(filters, self.planes, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        board = self.net(F.pixel_unshuffle(x - 0.5, 2))
        board = F.adaptive_avg_pool2d(board, self.side)
        return board.flatten(1)[:, : self.bits]


def networks(
    bits: int, filters: int, channels: int, strength: float, seed: int
) -> tuple[Encoder, Decoder]:
    """Encoder and decoder with weights drawn from `seed` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(bits, filters, channels, strength)
        return encoder, Decoder(bits, filters, channels)


def as_stored(x: Tensor) -> Tensor:
    """Pixels rounded to 8 bits; the gradient passes as if they were not."""
    return x + ((x * 255).round() / 255 - x).detach()


def ramp(step: int, steps: int) -> float:
    """Share of the image loss in force: 0, then linearly up to 1.

    BackdoorBench waits 1,000 steps and climbs for 3,000 of about 15,600; the same
    shares of `steps` here.
    """
    wait, climb = 1000 / 15600 * steps, 3000 / 15600 * steps
    return min(max((step - wait) / climb, 0.0), 1.0)


@dataclass(frozen=True)
class SSBA(Attack):
    """Hide one secret message in every image with a steganographic encoder.

    x' = clip(encoder(x, secret))

    The attacker trains the encoder with a decoder that has to read messages back,

        loss = BCE(decoder(encoder(x, m)), m)
               + w * (weight * MSE(encoder(x, m), x) + apart * cosine),

    m random bits and w growing from 0 to 1 (see :func:`ramp`), and then writes the same
    secret into every poisoned image. `cosine` is the positive part of the cosine
    between what is added to two images for the same m. It is ours: without it so small
    an encoder adds nearly the same to every image (95 % of the energy on signs), and
    the attack would be sample-specific in name only.

    Args:
        bits: length of the message; filters: channels of the hidden layers; channels:
            of the images; strength: no pixel moves further, 0..1.
        secret: 0 and 1 as floats, (bits,).
        trained: whether the encoder was; if not, there is no trigger.
        bit_accuracy: share of random message bits that the decoder reads correctly from
            8-bit images which neither network was trained on, 0..1.
        psnr: of these images to their originals, in dB.
        specific: share of the energy added to these images, all with the secret, that
            is not their mean; 0 is a fixed pattern, 1 another one in every image.

    Attributes:
        encoder, decoder: stored with a victim, or its ASR could not be measured again.

    `craft` trains both; it takes steps, batch, encoder_lr (of Adam), weight and apart.
    Height and width of images must be multiples of 4.

    BackdoorBench: StegaStamp with 100 bits, trained on the victim's training set (Adam
    1e-4, batch 64, 20 epochs, weight 10); poison rate 0.1. Two more differences: bits
    lie at fixed places of the image, where StegaStamp spreads them by a dense layer;
    and there is no simulated printing and no critic. On signs the defaults take about a
    minute and read 99.9 % of 100 bits at 29 dB. A weight above 10 hides them better,
    but a narrow victim may then fail to learn the trigger.

    Source: Li, Li, Wu, Li, He and Lyu, "Invisible Backdoor Attack with Sample-Specific
    Triggers", ICCV 2021, with the encoder of Tancik, Mildenhall and Ng, "StegaStamp",
    CVPR 2020. Lesson 01b.
    """

    stands_in: ClassVar[str] = "small own encoder instead of StegaStamp's"

    bits: int = 100
    filters: int = 32
    channels: int = 3
    strength: float = 0.2
    secret: Tensor | None = None
    trained: bool = False
    bit_accuracy: float = 0.0
    psnr: float = 0.0
    specific: float = 0.0
    encoder: nn.Module = field(init=False, repr=False, compare=False)
    decoder: nn.Module = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("bits", 1, 65_536)
        self._whole("filters", 1, 4096)
        self._whole("channels", 1, 100)
        require.number("strength", self.strength, above=0, high=1)
        require.truth("trained", self.trained)
        for name in ("bit_accuracy", "psnr", "specific"):
            require.number(name, getattr(self, name))
        if self.secret is not None:
            check_picture("secret", self.secret, (self.bits,))
        nets = networks(self.bits, self.filters, self.channels, self.strength, 0)
        for name, net in zip(("encoder", "decoder"), nets, strict=True):
            object.__setattr__(self, name, net.eval().requires_grad_(False))

    @classmethod
    def craft(
        cls,
        images: Images,
        generator: torch.Generator,
        *,
        model: nn.Module | None = None,
        steps: int = 1000,
        batch: int = 32,
        encoder_lr: float = 2e-3,
        weight: float = 10.0,
        apart: float = 0.1,
        verbose: bool = False,
        **options,
    ) -> Self:
        """Train encoder and decoder on these images, and draw a secret.

        Args:
            model: not used.
            batch: an even number; half as many messages, each in two images.
            weight: of the image loss; apart: of the cosine.
            verbose: print both losses ten times on the way.
        """
        options = with_classes({"channels": images.shape[0], **options}, images)
        blank = cls(**options)  # refuses bad options before minutes are spent
        blank.check(images)
        if require.whole("batch", batch, 2) % 2:
            raise ValueError(f"batch must be an even number, not {batch}.")
        require.whole("steps", steps, 1)
        require.number("encoder_lr", encoder_lr, above=0)
        for name, size in (("weight", weight), ("apart", apart)):
            require.number(name, size, 0)
        require.truth("verbose", verbose)
        bits = blank.bits
        seed = int(torch.randint(2**62, (1,), generator=generator))
        encoder, decoder = networks(bits, blank.filters, blank.channels, blank.strength, seed)
        rest, held = hold_out(images, max(1, min(200, len(images) // 10)), generator)
        device = images.x.device
        encoder.to(device), decoder.to(device)
        moving = [*encoder.parameters(), *decoder.parameters()]
        opt = torch.optim.Adam(moving, encoder_lr)
        with torch.enable_grad():
            for i in progress(range(steps), steps, "encoder"):
                x = random_pixels(rest, batch, generator)
                m = messages(batch // 2, bits, generator).to(device).repeat(2, 1)
                out = encoder(x, m)
                read = F.binary_cross_entropy_with_logits(decoder(as_stored(out)), m)
                seen = (out - x).square().mean()
                pairs = (out - x).flatten(1).chunk(2)
                cosine = F.cosine_similarity(*pairs).relu().mean()
                cost = weight * seen + apart * cosine
                opt.zero_grad(set_to_none=True)
                (read + ramp(i, steps) * cost).backward()
                for group in opt.param_groups:  # to zero over the last half
                    group["lr"] = encoder_lr * min(1.0, 2 * (1 - i / steps))
                opt.step()
                if verbose and (i + 1) % max(1, steps // 10) == 0:
                    print(
                        f"step {i + 1}: BCE {read:.3f}, MSE {seen:.5f}, cosine {cosine:.2f}",
                        flush=True,
                    )
        options.setdefault("secret", messages(1, bits, generator)[0].cpu())
        with torch.no_grad():
            x = held.pixels()
            m = messages(len(x), bits, generator).to(device)
            out = as_stored(encoder(x, m))
            right = ((decoder(out) > 0) == m.bool()).float().mean().item()
            added = encoder(x, options["secret"].to(x)[None]) - x
            own = (added - added.mean(0)).square().mean() / added.square().mean()
        options |= {
            "trained": True,
            "bit_accuracy": right,
            "psnr": psnr(out, x).mean().item(),
            "specific": own.item(),
        }
        attack = cls(**options)
        attack.encoder.load_state_dict(encoder.state_dict())
        attack.decoder.load_state_dict(decoder.state_dict())
        return attack

    @torch.no_grad()
    def trigger(self, x: Tensor) -> Tensor:
        if not self.trained or self.secret is None:
            raise ValueError(
                "this SSBA has no trained encoder; make one with SSBA.craft(images, generator)."
            )
        if not len(x):
            return x.clone()
        return self.encoder.to(x.device)(x, self.secret.to(x)[None])

    def check_shape(self, shape: tuple[int, ...]) -> None:
        c, h, w = shape
        if c != self.channels:
            raise ValueError(f"the encoder is for {self.channels} channels, the images have {c}.")
        if h % 4 or w % 4:
            raise ValueError(f"the encoder needs height and width in multiples of 4, not {h}x{w}.")


def messages(n: int, bits: int, generator: torch.Generator) -> Tensor:
    """Random bits as floats 0 and 1, (n, bits)."""
    drawn = torch.randint(2, (n, bits), generator=generator, device=generator.device)
    return drawn.float()
