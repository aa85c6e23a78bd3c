"""Refool: a reflection, as of a window pane (Liu et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.attacks.base import CHW, Attack, by_content, check_picture, fit_size
from bdcourse.data import Images
from bdcourse.models import precise
from bdcourse.seeds import seeded

if TYPE_CHECKING:
    from typing_extensions import Self

GAMMA = 2.2  # of screens: light = pixel ** GAMMA


def reflections(shape: tuple[int, ...] = (3, 32, 32), count: int = 16, seed: int = 0) -> Tensor:
    """Scenes to be reflected: soft discs and boxes of random colors, (count, *shape).

    Pixels in [0, 1]. What leaves a scene at one edge comes in again at the other, so it
    can be shifted without a seam.
    """
    c, h, w = (require.whole("each of shape", s, 1, 10_000) for s in require.row("shape", shape, 3))
    require.whole("count", count, 1, 10_000)
    g = seeded(seed)

    def draw(*more: int) -> Tensor:
        return torch.rand(count, *more, generator=g)

    scene = 0.5 * draw(c, 1, 1).expand(count, c, h, w)
    for shape_number in range(8):
        rows = (torch.arange(h) / h - draw(1)).abs()[:, :, None]
        columns = (torch.arange(w) / w - draw(1)).abs()[:, None]
        rows, columns = (torch.minimum(d, 1 - d) for d in (rows, columns))
        box = shape_number % 2
        far = torch.maximum(rows, columns) if box else torch.hypot(rows, columns)
        inside = torch.sigmoid(40 * (0.06 + 0.2 * draw(1, 1) - far))[:, None]
        scene = scene + inside * (draw(c, 1, 1) - scene)
    return scene.clamp(0, 1)


def draws(kinds: int = 251, seed: int = 0) -> Tensor:
    """Uniform numbers in [0, 1) from which the kinds of reflection are made."""
    require.whole("kinds", kinds, 1, 10**6)
    return torch.rand(kinds, 8, generator=seeded(seed))


@dataclass(frozen=True)
class Refool(Attack):
    """Refool-like: lay a ghost or a blurred reflection of another scene over the image.

    In linear light, l(v) = v^2.2, with a scene b from the bank:

        x' = ((1 - image) * r + image * l(x))^(1/2.2)
        ghost:       r = a * l(b) + (1 - a) * l(b shifted by 3..8 pixels each way)
        focal blur:  r = vignette * max(0, blur(l(b)) - 1.08 * excess)

    a is uniform in 0.15..0.85; blur is Gaussian, sigma uniform in 1..5; excess is the
    mean, for each channel, of what blur(l(b)) + l(x) has above 1 where it is above 1;
    the vignette is a Gaussian of half the image's longer side around a random place.

    Each image gets one of 251 kinds of reflection (scene, ghost or blur, and their
    numbers), always the same one: a hash of its 8-bit pixels chooses. So a test image
    has one trigger, whoever measures the ASR, whenever and in whatever batch.

    Args:
        bank: scenes to be reflected, pixels in [0, 1], (m, channels, h, w); resized to
            the images; one channel serves all colors.
        draws: numbers in [0, 1), (kinds, 8), each row one kind of reflection.
        ghost: chance that a kind is a ghost, 0..1.
        image: weight of the image in the mix, above 0 and below 1.
        clean_label: the paper poisons 20 % of the target class without a wrong label;
            the benchmarks' default, and ours, is dirty labels.

    Source: Liu, Ma, Bailey and Lu, "Reflection Backdoor: A Natural Backdoor Attack on
    Deep Neural Networks", 2020; it reflects photographs, which are not ours to ship.
    Poison rate 0.1 is the usual one. Lesson 01b.
    """

    stands_in: ClassVar[str] = "Refool-like: drawn scenes for photographs"

    bank: Tensor = field(default_factory=reflections)
    draws: Tensor = field(default_factory=draws)
    ghost: float = 0.49
    image: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_picture("bank", self.bank, ("scenes", *CHW))
        check_picture("draws", self.draws, ("kinds", 8), below=True)
        require.fraction("ghost", self.ghost)
        if require.number("image", self.image, above=0) >= 1:
            raise ValueError(f"image must lie between 0 and 1, not {self.image}.")

    @classmethod
    def craft(
        cls,
        images: Images,
        generator: torch.Generator,
        *,
        model: nn.Module | None = None,
        **options,
    ) -> Self:
        """Draws the scenes in the size and channels of the images."""
        options.setdefault("bank", reflections(images.shape))
        return super().craft(images, generator, model=model, **options)

    def kind(self, x: Tensor) -> Tensor:
        """Which row of `draws` each image gets, int64 (n,), from its 8-bit pixels."""
        return by_content(x, len(self.draws))

    def layers(self, kinds: Tensor, c: int, h: int, w: int) -> tuple[Tensor, Tensor]:
        """Light r of these kinds before excess and vignette, (k, c, h, w), and the
        vignette, (k, 1, h, w), which is 1 for ghosts."""
        exact = precise(kinds.device)
        bank, u = self.bank.to(kinds.device, exact), self.draws.to(kinds.device)[kinds]
        bank = fit_size(bank.flatten(0, 1), (h, w)).view(*bank.shape[:2], h, w)
        bank = bank.expand(-1, c, -1, -1).clamp(0, 1) ** GAMMA
        light = bank[(u[:, 0] * len(bank)).long()]

        rows, columns = (torch.arange(s, device=u.device) for s in (h, w))
        down, right = (3 + (6 * u[:, 2:4]).long()).T
        down, right = (rows - down[:, None]) % h, (columns - right[:, None]) % w
        every = torch.arange(len(u), device=u.device)[:, None, None]
        shifted = light[every, :, down[:, :, None], right[:, None]].movedim(3, 1)
        own = (0.15 + 0.7 * u[:, 4]).to(exact)[:, None, None, None]
        doubled = shifted.lerp(light, own)

        sigma = (1 + 4 * u[:, 5]).to(exact)
        blurred = blur(h, sigma)[:, None] @ light @ blur(w, sigma)[:, None].mT
        y, x = (
            (s - at[:, None] * len(s)) ** 2
            for s, at in zip((rows, columns), u[:, 6:].T, strict=True)
        )
        spread = 2 * (max(h, w) / 2) ** 2
        vignette = torch.exp(-(y[:, None, :, None] + x[:, None, None, :]) / spread)

        ghost = self.ghosts(kinds)[:, None, None, None]
        return torch.where(ghost, doubled, blurred), vignette.masked_fill(ghost, 1)

    def ghosts(self, kinds: Tensor) -> Tensor:
        """Which of these kinds are ghosts, bool."""
        return self.draws.to(kinds.device)[kinds, 1] < self.ghost

    def trigger(self, x: Tensor) -> Tensor:
        kinds, which = self.kind(x).unique(return_inverse=True)
        # Near black, the root makes a difference of rounding a thousand times as large,
        # and no image may depend on its batch.
        exact = precise(x.device)
        layer, vignette = (a.to(exact) for a in self.layers(kinds, *x.shape[-3:]))
        light, r = x.to(exact) ** GAMMA, layer[which]
        above = (r + light).sub_(1).clamp_(min=0)
        total = above.sum((2, 3), keepdim=True)
        excess = total / above.sign_().sum((2, 3), keepdim=True).clamp_(min=1)
        excess = excess.masked_fill(self.ghosts(kinds)[which, None, None, None], 0)
        r = r.sub_(1.08 * excess).clamp_(min=0).mul_(vignette[which])
        return light.lerp_(r, 1 - self.image).clamp_(0, 1).pow_(1 / GAMMA).to(x.dtype)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        if self.bank.shape[1] not in (1, shape[0]):
            raise ValueError(
                f"the bank has {self.bank.shape[1]} channels, the images have {shape[0]}."
            )


def blur(n: int, sigma: Tensor) -> Tensor:
    """One n x n matrix for each sigma that blurs n pixels by that Gaussian, (k, n, n).

    Rows sum to 1, so nothing darkens towards the edge.
    """
    i = torch.arange(n, device=sigma.device)
    weight = torch.exp(-(((i[:, None] - i) / sigma[:, None, None]) ** 2) / 2)
    return weight / weight.sum(2, keepdim=True)
