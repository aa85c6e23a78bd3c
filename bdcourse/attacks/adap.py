"""Adap-Blend and Adap-Patch: weak triggers in training, covers, a strong one at test
(Qi et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse import require
from bdcourse.attacks.base import Attack, check_picture
from bdcourse.attacks.blended import Blended
from bdcourse.attacks.tact import color_patch
from bdcourse.data import Images
from bdcourse.seeds import uniform

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Adaptive(Attack):
    """What both share: cover images, planted like the poisoned ones, keep their label.

    A network can then not tell a planted image from a clean one by the trigger alone,
    and the two look alike inside it too. Poison and cover come from all classes.

    Args:
        cover: cover images for each poisoned one, 0 or more.
    """

    cover: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clean_label:
            raise ValueError(
                f"{type(self).__name__} cannot be clean-label, because right labels "
                "are what tells its covers from its poison."
            )
        require.number("cover", self.cover, 0)

    def choose(self, y: Tensor, rate: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """round(rate * n) rows of all classes, then `cover` times as many others."""
        n = round(rate * len(y))
        m = round(self.cover * n)
        if n + m > len(y):
            raise ValueError(
                f"{type(self).__name__} at rate {rate:g} needs {n} poisoned and {m} "
                f"cover images, but the set has only {len(y)}; lower the rate."
            )
        rows = torch.randperm(len(y), generator=generator)
        return rows[:n], rows[n : n + m]


@dataclass(frozen=True)
class AdapBlend(Adaptive, Blended):
    """Blended in half of the image in training, in all of it and stronger at test.

    The image is cut into pieces x pieces tiles (sizes differ by one where it does not
    divide). In each planted image a random half of the tiles is left alone; in the
    others x' = (1 - alpha) * x + alpha * picture. At test, with test_alpha, in all.

    Args:
        picture: pixels in [0, 1], (channels, h, w), the size of the images; `craft`
            draws one.
        alpha, test_alpha: above 0 and up to 1.
        pieces: tiles along each side, 2..min(h, w).
        cover: cover images for each poisoned one.

    Source: Qi, Xie, Li, Mahloujifar and Mittal, "Revisiting the Assumption of Latent
    Separability for Backdoor Defenses", 2023. The usual poison rate is 0.003, and as
    many covers. Lesson 01b.
    """

    usual_rate: ClassVar[float] = 0.003
    stands_in: ClassVar[str] = "a seeded noise picture"

    alpha: float = 0.15
    test_alpha: float = 0.2
    pieces: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require.number("test_alpha", self.test_alpha, above=0, high=1)
        self._whole("pieces", 2)

    def trigger(self, x: Tensor) -> Tensor:
        return x.lerp(self.picture.to(x), self.test_alpha)

    def shown(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """1 where the picture is planted, 0 in the masked half, (n, 1, h, w)."""
        (n, _, h, w), p = x.shape, self.pieces
        order = uniform((n, p * p), generator, x).argsort(1)
        tiles = (order >= p * p // 2).to(x.dtype).view(n, 1, p, p)
        rows = torch.arange(h, device=x.device) * p // h
        columns = torch.arange(w, device=x.device) * p // w
        return tiles[:, :, rows][..., columns]

    def plant(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return x.lerp(self.picture.to(x), self.alpha * self.shown(x, generator))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        super().check_shape(shape)
        if self.pieces > min(shape[1:]):
            raise ValueError(
                f"images of {shape[1]}x{shape[2]} cannot be cut into {self.pieces} "
                "pieces along a side."
            )


def color_patches(size: int = 4, channels: int = 3) -> Tensor:
    """Four different patches of random colors, (4, channels, size, size)."""
    return torch.stack([color_patch(size, seed, channels) for seed in range(4)])


@dataclass(frozen=True)
class AdapPatch(Adaptive):
    """Four faint patches, one in each planted image; two of them, opaque, at test.

    x'[..., r:r+p, c:c+p] = (1 - alphas[k]) * x[..., same] + alphas[k] * patches[k]

    with k drawn anew for each planted image. Patch k sits in a corner: 0 upper left, 1
    upper right, 2 lower left, 3 lower right, one pixel from the edges where the image
    has room. At test the patches in `tested` overwrite.

    Args:
        patches: pixels in [0, 1], (4, channels, p, p); two must fit beside each other,
            so p <= min(h, w) / 2. One channel serves all colors.
        alphas: opacity of each patch when planted, above 0 and up to 1.
        tested: which patches the test trigger shows. The default takes the two that are
            planted at 0.5, upper left and lower left.
        cover: cover images for each poisoned one.

    Source: Qi, Xie, Li, Mahloujifar and Mittal, "Revisiting the Assumption of Latent
    Separability for Backdoor Defenses", 2023. The usual poison rate is 0.003, and twice
    as many covers. Lesson 01b.
    """

    usual_rate: ClassVar[float] = 0.003
    stands_in: ClassVar[str] = "four seeded color patches"

    cover: float = 2.0
    patches: Tensor = field(default_factory=color_patches)
    alphas: tuple[float, ...] = (0.5, 0.2, 0.5, 0.3)
    tested: tuple[int, ...] = (0, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_picture("patches", self.patches, (4, "channels", "p", "p"))
        if self.patches.shape[2] != self.patches.shape[3]:
            raise ValueError(
                f"patches must have shape (4, channels, p, p), not {tuple(self.patches.shape)}."
            )
        for alpha in require.row("alphas", self.alphas, 4):
            require.number("each of alphas", alpha, above=0, high=1)
        tested = require.row("tested", self.tested)
        tested = tuple(require.whole("each of tested", t, 0, 3) for t in tested)
        object.__setattr__(self, "tested", tested)
        if not tested:
            raise ValueError("tested must name patches from 0..3, not none.")

    @classmethod
    def craft(
        cls,
        images: Images,
        generator: torch.Generator,
        *,
        model: nn.Module | None = None,
        **options,
    ) -> Self:
        """Draws gray patches for gray images."""
        if images.shape[0] == 1:
            options.setdefault("patches", color_patches(channels=1))
        return super().craft(images, generator, model=model, **options)

    def places(self, h: int, w: int) -> list[tuple[slice, slice]]:
        """Rows and columns of each patch in an h x w image."""
        p = self.patches.shape[-1]
        if 2 * p > min(h, w):
            raise ValueError(
                f"two {p}x{p} patches do not fit beside each other in a {h}x{w} image."
            )
        margin = min(1, (min(h, w) - 2 * p) // 2)
        near = slice(margin, margin + p)
        low, right = (slice(s - margin - p, s - margin) for s in (h, w))
        return [(near, near), (near, right), (low, near), (low, right)]

    def show(self, x: Tensor, opacity: Tensor) -> Tensor:
        """Blend patch k in with opacity[:, k]; opacity is (n, 4) or (1, 4)."""
        out, patches = x.clone(), self.patches.to(x)
        for k, (rows, columns) in enumerate(self.places(*x.shape[-2:])):
            region = out[..., rows, columns]
            weight = opacity[:, k, None, None, None].expand_as(region)
            out[..., rows, columns] = region.lerp(patches[k].expand_as(region), weight)
        return out

    def trigger(self, x: Tensor) -> Tensor:
        tested = [float(k in self.tested) for k in range(4)]
        return self.show(x, torch.tensor([tested]).to(x))

    def plant(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        which = torch.randint(4, (len(x),), generator=generator, device=generator.device).to(
            x.device
        )
        return self.show(x, F.one_hot(which, 4) * torch.tensor(self.alphas).to(x))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        self.places(*shape[1:])
        if self.patches.shape[1] not in (1, shape[0]):
            raise ValueError(
                f"the patches have {self.patches.shape[1]} channels, the images have {shape[0]}."
            )
