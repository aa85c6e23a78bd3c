"""Labelled images as two tensors, and the same with what an attacker changed.

Everything in the course works on :class:`Images`: one uint8 tensor of pixels and one
int64 tensor of labels, both on one device. A batch is an index, so there is no Dataset,
no DataLoader and no worker process to configure. Born in lesson 00.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from bdcourse import require

if TYPE_CHECKING:
    from typing_extensions import Self

ROLES = {"clean": 0, "poison": 1, "cover": 2}


@dataclass(frozen=True, eq=False, repr=False)
class _Labelled:
    """What clean and poisoned image sets have in common: pixels, labels, classes."""

    _rows: ClassVar = ("x", "y")  # what has one entry per image

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in ("x", "y"):
            _require_data(getattr(self, name), f"Images.{name}")
        if self.x.dtype != torch.uint8 or self.x.ndim != 4:
            raise ValueError(
                "Images.x must be uint8 of shape (n, c, h, w), not "
                f"{str(self.x.dtype).removeprefix('torch.')} {tuple(self.x.shape)}; "
                "convert pixels in [0, 1] with (255 * x).round().to(torch.uint8)."
            )
        if 0 in self.x.shape[1:]:
            raise ValueError(
                f"Images.x of shape {tuple(self.x.shape)} holds images without pixels."
            )
        if self.y.dtype != torch.int64 or self.y.shape != self.x.shape[:1]:
            raise ValueError(
                f"Images.y must be int64 of shape ({len(self.x)},), one label per "
                f"image, not {str(self.y.dtype).removeprefix('torch.')} "
                f"{tuple(self.y.shape)}."
            )
        if self.y.device != self.x.device:
            raise ValueError(
                f"Images.x is on {self.x.device} but Images.y on {self.y.device}; "
                "move one with .to(device)."
            )
        if isinstance(self.classes, list):
            object.__setattr__(self, "classes", tuple(self.classes))
        require_names(self.classes, "Images.classes")
        if len(self.y) and not 0 <= int(self.y.min()) <= int(self.y.max()) < self.k:
            raise ValueError(
                f"labels run from {int(self.y.min())} to {int(self.y.max())}, but "
                f"there are {self.k} classes, so they must lie in 0..{self.k - 1}."
            )

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index) -> Self:
        """The images at `index`: a slice, a bool mask, positions, or one position."""
        index = _rows(index, len(self))
        if isinstance(index, Tensor):
            index = index.to(self.x.device)
        rows = {name: getattr(self, name)[index] for name in self._rows}
        return replace(self, **rows)

    def __iter__(self) -> Iterator[Self]:
        return (self[i] for i in range(len(self)))

    @property
    def k(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return tuple(self.x.shape[1:])

    def pixels(self) -> Tensor:
        """All pixels as float32 in [0, 1], shape (n, c, h, w)."""
        return self.x.float() / 255

    def to(self, device: str | torch.device) -> Self:
        """The same images on another device."""
        try:
            device = torch.device(device)
            moved = {n: getattr(self, n).to(device) for n in self._rows}
        except torch.OutOfMemoryError:
            raise
        # An unknown name, a device that this machine or this build of torch lacks.
        except (RuntimeError, TypeError, AssertionError, NotImplementedError) as e:
            raise ValueError(
                "device must be one of this machine, such as 'cpu' or 'cuda', not "
                f"{str(device)[:40]!r}."
            ) from e
        return replace(self, **moved)

    def __repr__(self) -> str:
        size = "x".join(map(str, self.shape))
        what = f"{len(self):,} of {size}, {self.k} classes, {self.x.device}"
        return f"{type(self).__name__}({what})"

    def _hash(self) -> hashlib._Hash:
        # Image by image: whole sets need no second copy, and permuted ones no third.
        h = hashlib.sha256(str(tuple(self.x.shape)).encode())
        for part in self.x.split(1000):
            h.update(part.cpu().contiguous().numpy())
        h.update(self.y.cpu().contiguous().numpy())
        return h

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of all that decides a training."""
        return self._hash().hexdigest()[:16]


@dataclass(frozen=True, eq=False, repr=False)
class Images(_Labelled):
    """A labelled image set.

    Args:
        x: uint8 pixels, shape (n, c, h, w), 0..255.
        y: int64 labels, shape (n,), each in 0..len(classes)-1.
        classes: one name per label.

    Raises:
        ValueError: the tensors do not fit together; the message names what is wrong.
    """


def quantize(x: Tensor) -> Tensor:
    """Pixels in [0, 1] to uint8, the way an image file stores them.

    Raises:
        ValueError: no tensor of floats (0..255 would become white), or nan in it.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(f"quantize takes float pixels in [0, 1], not {require.kind(x)}.")
    if bool(x.isnan().any()):
        raise ValueError("quantize takes pixels in [0, 1], but some are nan.")
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def hold_out(images: Images, n: int, generator: torch.Generator) -> tuple[Images, Images]:
    """Split off `n` random images: (the rest, the held-out ones), disjoint.

    The course uses it to give the defender clean images that the attacker never saw.

    Raises:
        ValueError: other kinds of arguments, or a part would be empty.
    """
    if not isinstance(images, _Labelled):
        raise ValueError(f"images must be Images, not {require.kind(images)}.")
    require.generator(generator)
    rest, held = deal(len(images), n, generator)
    return images[rest], images[held]


def deal(count: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions of the rest and of `n` held-out ones among `count`."""
    n = require.whole("n", n)
    if count < 2:
        raise ValueError(f"nothing can be held out of {count} images; two are needed.")
    if not 0 < n < count:
        raise ValueError(f"cannot hold out {n} of {count} images; choose 1..{count - 1}.")
    order = torch.randperm(count, generator=generator)
    return order[n:], order[:n]


def join(first: Images, second: Images) -> Images:
    """Both image sets, one behind the other; they must have the same classes.

    Raises:
        ValueError: they differ in kind (one is poisoned), classes, size or device.
    """
    for images in (first, second):
        require_clean(images, "what is joined", least=0)
    if first.classes != second.classes or first.shape != second.shape:
        raise ValueError("these image sets differ in classes or image size.")
    if first.x.device != second.x.device:
        raise ValueError(
            f"one image set is on {first.x.device}, the other on {second.x.device}; "
            "move one with .to(device)."
        )
    x, y = torch.cat([first.x, second.x]), torch.cat([first.y, second.y])
    return Images(x, y, first.classes)


def require_clean(images: object, name: str = "clean", least: int = 2) -> Images:
    """Refuse what is not a set of clean images, or too small a one.

    A defender owns images, not the attacker's notes on which of them are poisoned.

    Raises:
        ValueError: one sentence, which starts with `name`.
    """
    if isinstance(images, Poisoned):
        raise ValueError(
            f"{name} must be clean Images, not Poisoned ones: a defender who repaired "
            "with these would learn the backdoor again."
        )
    if not isinstance(images, Images):
        raise ValueError(f"{name} must be Images, not {require.kind(images)}.")
    if len(images) < least:
        raise ValueError(f"{name} must hold at least {least} images, but holds {len(images)}.")
    return images


def require_names(names: object, what: str) -> tuple[str, ...]:
    """Refuse class names that are no tuple of different strings.

    Raises:
        ValueError: one sentence, which starts with `what`.
    """
    right = isinstance(names, tuple) and all(isinstance(c, str) for c in names)
    if not right or not names:
        raise ValueError(
            f"{what} must be a tuple of names, such as ('cat', 'dog'), not "
            f"{names if isinstance(names, tuple) else require.kind(names)}."
        )
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise ValueError(f"{what} must be different names, but {twice!r} stands twice.")
    return names


def _require_data(t: object, what: str) -> None:
    if not isinstance(t, Tensor):
        raise ValueError(f"{what} must be a tensor, not {require.kind(t)}.")
    if t.layout != torch.strided or t.is_meta or t.is_quantized:
        raise ValueError(
            f"{what} must be a dense tensor with data, not a sparse, quantized or meta one."
        )


def _rows(index: object, n: int) -> slice | Tensor:
    """An index into n rows as a slice, a bool mask or int64 positions that exist."""
    if isinstance(index, slice):
        parts = (index.start, index.stop, index.step)
        right = all(p is None or isinstance(p, Integral) for p in parts)
        if right and (index.step is None or index.step > 0):
            return slice(*index.indices(n))
    if isinstance(index, Integral) and not isinstance(index, bool):
        index = [index]
    if isinstance(index, (list, range)):
        if all(isinstance(i, (Integral, np.bool_)) for i in index):
            index = np.array(index) if len(index) else np.zeros(0, np.int64)
    if isinstance(index, np.ndarray) and index.dtype.kind in "biu":
        index = torch.from_numpy(index.astype(bool if index.dtype == bool else int))
    signed = (torch.int64, torch.int32, torch.int16, torch.int8)
    if isinstance(index, Tensor) and index.dtype in signed and index.ndim < 2:
        index = index.reshape(-1).long()
        if len(index) and not -n <= int(index.min()) <= int(index.max()) < n:
            raise ValueError(
                f"positions run from {int(index.min())} to {int(index.max())}, but "
                f"there are {n} images."
            )
        return index
    if isinstance(index, Tensor) and index.dtype == torch.bool and index.ndim == 1:
        if len(index) != n:
            raise ValueError(f"a mask of {len(index)} entries cannot choose {n} images.")
        return index
    raise ValueError(
        "images are chosen by a forward slice, a bool mask, or whole positions along "
        f"one axis, not {require.kind(index)}."
    )


@dataclass(frozen=True, eq=False, repr=False)
class Poisoned(_Labelled):
    """Images some of which the attacker changed; no defense takes them for clean ones.

    Args:
        role: int8 (n,): 0 clean, 1 poison (trigger and attacker's label), 2 cover
            (changed by the attacker, true label).
        late: None if the triggers are in the pixels already. If set, poison and cover
            rows of `x` are still unstamped and training applies this function (of
            pixels in [0, 1]) to them after augmentation.
    """

    _rows: ClassVar = ("x", "y", "role")

    role: Tensor = field(default=None)
    late: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        role = self.role
        _require_data(role, "Poisoned.role")
        if role.dtype != torch.int8 or role.shape != self.y.shape:
            raise ValueError(f"Poisoned.role must be int8 of shape ({len(self.y)},).")
        if role.device != self.x.device:
            raise ValueError(
                f"Poisoned.x is on {self.x.device} but its role on {role.device}; "
                "move one with .to(device)."
            )
        if self.late is not None and not callable(self.late):
            raise ValueError(
                "Poisoned.late must be None or a function of pixels, not "
                f"{require.kind(self.late)}."
            )
        if len(role) and not 0 <= int(role.min()) <= int(role.max()) < len(ROLES):
            raise ValueError("Poisoned.role holds 0 (clean), 1 (poison) or 2 (cover).")

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of all that decides a training.

        A late trigger enters by what it does to the first images that get it.
        """
        h = self._hash()
        h.update(self.role.cpu().contiguous().numpy())
        if self.late is not None:
            stamped = (self.role != ROLES["clean"]).nonzero().flatten()[:16]
            h.update(quantize(self.late(self[stamped].pixels())).cpu().numpy().tobytes())
        return h.hexdigest()[:16]

    @property
    def count(self) -> int:
        """Number of poisoned images."""
        return int((self.role == ROLES["poison"]).sum())

    @property
    def covers(self) -> int:
        """Number of cover images."""
        return int((self.role == ROLES["cover"]).sum())
