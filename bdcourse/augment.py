"""What changes examples anew each time they come in training: of images, crops and mirrors.

The whole set lies on the device and a batch is an index, so crops are a view and no worker
process is needed. Derived in lesson 01.
"""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from bdcourse import require

# Bytes of crops. Larger sets are padded batch by batch, which takes no memory and makes
# the data path 2.5 times as long (25 us more for each image of 32 pixels); 50,000 of
# them with 4 pixels of padding and mirrors stay below.
MOST_CROPS = 512 * 2**20
ALTERNATE = "alternate"  # each image is mirrored in every other epoch


class Augmentation:
    """Leaves examples as they are; one of your own overrides `batch`."""

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse examples of a shape that this cannot change."""

    def batch(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch of examples, changed: inputs (b, ...) as stored, or as networks take
        them, and targets, which a change may move as well."""
        return x, y

    def stream(self, x: Tensor, y: Tensor, generator: torch.Generator, seed: int) -> Stream:
        """The batches of one training.

        Args:
            x, y: the whole set; generator: on its device; seed: of what is settled once.
        """
        return Stream(self, x, y, generator)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"


class Stream:
    """Batches of one training, by index."""

    def __init__(
        self, augment: Augmentation, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> None:
        self.augment, self.x, self.y, self.generator = augment, x, y, generator

    def raw(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The examples at `index` (b,) as they are stored."""
        return self.x[index], self.y[index]

    def take(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """The examples at `index` (b,), augmented, in epoch 0, 1, ..."""
        return self.augment.batch(*self.raw(index), self.generator)

    def after(self, x: Tensor, y: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """The same for a batch that somebody has changed since `raw`."""
        return self.augment.batch(x, y, self.generator)


class Augment(Augmentation):
    """Random crop out of a zero-padded image, and optional mirror, for whole batches.

    Args:
        pad: zero pixels added on each side before a crop of the original size.
        flip: mirror half of the images. Off by default: a mirrored "turn left" sign is
            a "turn right" sign. "alternate" mirrors every image in every other epoch,
            half of them in the first one, so that two epochs in a row show both sides
            of each (Jordan 2024, arXiv 2404.00498); by chance every second image would
            show the same side twice.

    Raises:
        ValueError: pad is no whole number from 0 on, or flip is something else.
    """

    def __init__(self, pad: int = 2, flip: bool | str = False) -> None:
        self.pad = require.whole("pad", pad, 0)
        word = isinstance(flip, str) and flip == ALTERNATE
        self.flip = flip if word else require.truth("flip", flip)

    def sides(self, n: int, seed: int) -> Tensor | None:
        """Which of n images are mirrored in the first epoch: bool (n,), on the CPU.

        None where chance decides anew in each batch, or where nothing is mirrored.
        """
        if self.flip != ALTERNATE:
            return None
        own = torch.Generator().manual_seed(seed)
        return torch.randint(2, (n,), generator=own).bool()

    def prepare(self, x: Tensor) -> Tensor:
        """Every possible crop of x (n, c, h, w) as a view: (n, 2p+1, 2p+1, h, w*c).

        Crop (i, j) starts at row i and column j of the padded image; channels lie
        innermost, so that each crop row is one run of bytes. Only the padded images are
        stored. With `flip` the n mirrored images follow the others: mirroring a set
        once costs memory, mirroring every batch costs most of the time of a batch.

        Raises:
            ValueError: the padding is wider than the images, so that crops miss them.
        """
        n, c, h, w = x.shape
        p = self.pad
        self.check(x.shape[1:])
        padded = x.new_zeros((1 + bool(self.flip)) * n, h + 2 * p, w + 2 * p, c)
        inner = padded[:, p : p + h, p : p + w]
        inner[:n] = x.permute(0, 2, 3, 1)
        if self.flip:
            for i in range(0, n, 1000):  # in pieces: a mirrored set is another copy
                part = x[i : i + 1000].flip(3).permute(0, 2, 3, 1)
                inner[n + i : n + i + len(part)] = part
        return padded.flatten(2).unfold(1, h, 1).unfold(2, w * c, c)

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse images (c, h, w) so small that a crop could miss them, and what is none."""
        if len(shape) != 3:
            raise ValueError(
                f"Augment crops images of shape (c, h, w), not examples of shape {tuple(shape)}; "
                "leave augment out, or take an Augmentation of your own."
            )
        if self.pad > min(shape[1:]):
            raise ValueError(
                f"pad is {self.pad}, but the images are {shape[1]}x{shape[2]}, so that "
                "crops would miss them; choose less."
            )

    def size(self, x: Tensor) -> int:
        """Bytes that `prepare` needs for uint8 images x (n, c, h, w)."""
        (n, c, h, w), p = x.shape, self.pad
        return (1 + bool(self.flip)) * n * c * (h + 2 * p) * (w + 2 * p)

    def __call__(
        self,
        crops: Tensor,
        index: Tensor,
        channels: int,
        generator: torch.Generator,
        mirrored: Tensor | None = None,
    ) -> Tensor:
        """Random crops of the images at `index`: uint8 (b, c, h, w), channels last.

        Args:
            mirrored: which of them are mirrored, bool (b,); None leaves it to chance.
        """
        b, d = len(index), crops.device
        i, j = torch.randint(2 * self.pad + 1, (2, b), generator=generator, device=d)
        if self.flip:
            if mirrored is None:
                mirrored = torch.randint(2, (b,), generator=generator, device=d)
            index = index + mirrored * (len(crops) // 2)
        x = crops[index, i, j].unflatten(2, (-1, channels))  # (b, h, w, c)
        return x.permute(0, 3, 1, 2)

    def once(self, x: Tensor, generator: torch.Generator, mirrored: Tensor | None = None) -> Tensor:
        """A random crop of each image of a batch that comes only once."""
        index = torch.arange(len(x), device=x.device)
        return self(self.prepare(x), index, x.shape[1], generator, mirrored)

    def batch(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return self.once(x, generator), y

    def stream(self, x: Tensor, y: Tensor, generator: torch.Generator, seed: int) -> Stream:
        return _Crops(self, x, y, generator, seed)


class _Crops(Stream):
    """Crops laid out once for the whole set, where memory allows."""

    def __init__(
        self, augment: Augment, x: Tensor, y: Tensor, generator: torch.Generator, seed: int
    ) -> None:
        super().__init__(augment, x, y, generator)
        self.crop = augment
        sides = augment.sides(len(x), seed)
        self.sides = None if sides is None else sides.to(x.device)

    @cached_property
    def crops(self) -> Tensor | None:
        lean = self.crop.size(self.x) > MOST_CROPS
        return None if lean else self.crop.prepare(self.x)

    def _mirrored(self, index: Tensor, epoch: int) -> Tensor | None:
        # Of the epoch, also where it is cut short.
        return None if self.sides is None else self.sides[index] ^ (epoch % 2 == 1)

    def take(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        mirrored = self._mirrored(index, epoch)
        if self.crops is None:
            x = self.crop.once(self.x[index], self.generator, mirrored)
        else:
            x = self.crop(self.crops, index, self.x.shape[1], self.generator, mirrored)
        return x, self.y[index]

    def after(self, x: Tensor, y: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        mirrored = self._mirrored(index, epoch)
        if mirrored is not None and len(mirrored) != len(x):
            mirrored = None  # a hook may hand back other images than it was given
        return self.crop.once(x, self.generator, mirrored), y


def moved_crops(x: Tensor, pad: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (n, ..., h, w), each example moved by up to `pad`; black comes in.

    Returns:
        the crops, and at which row and column of the padded picture each begins, (n,).
    """
    n, (h, w) = len(x), x.shape[-2:]
    crops = F.pad(x, 4 * (pad,)).unfold(-2, h, 1).unfold(-2, w, 1)
    i, j = torch.randint(2 * pad + 1, (2, n), generator=generator, device=generator.device).to(
        x.device
    )
    # The offsets are the axes before the crop itself.
    return crops.movedim((-4, -3), (1, 2))[torch.arange(n, device=x.device), i, j], i, j
