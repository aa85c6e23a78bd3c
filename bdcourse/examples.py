"""Labeled examples of any task as two tensors, and the same with what an attacker changed.

Everything in the course works on :class:`Examples`: one tensor of inputs as they are stored
and one of targets, both on one device. A batch is an index, so there is no Dataset, no
DataLoader and no worker process to configure. Derived in lesson 00.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from bdcourse import require
from bdcourse.task import IMAGES, Task

if TYPE_CHECKING:
    from typing_extensions import Self

ROLES = {"clean": 0, "poison": 1, "cover": 2}
Set = TypeVar("Set", bound="Examples")


@dataclass(frozen=True, eq=False, repr=False)
class Examples:
    """Inputs and targets of one task; `Images` are the first kind.

    Another kind is a frozen dataclass that derives from this and names its `task`.

    Args:
        x: inputs as they are stored, (n, ...).
        y: targets, (n, ...); int64 labels (n,) where answers are classes.
        classes: one name per label.

    Raises:
        ValueError: the tensors do not fit together; the message names what is wrong.
    """

    task: ClassVar[Task] = Task()
    _rows: ClassVar[tuple[str, ...]] = ("x", "y")  # what has one entry per example

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        own = type(self).__name__
        for name in ("x", "y"):
            _require_data(getattr(self, name), f"{own}.{name}")
        if isinstance(self.classes, list):
            object.__setattr__(self, "classes", tuple(self.classes))
        require_names(self.classes, f"{own}.classes")
        self.task.check(self.x, self.y, self.classes, own)
        if len(self.y) != len(self.x):
            raise ValueError(f"{own} hold {len(self.x)} inputs, but {len(self.y)} targets.")
        if self.y.device != self.x.device:
            raise ValueError(
                f"{own}.x is on {self.x.device} but {own}.y on {self.y.device}; "
                "move one with .to(device)."
            )

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index) -> Self:
        """The examples at `index`: a slice, a bool mask, positions, or one position."""
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
    def shape(self) -> tuple[int, ...]:
        """Of one example as it is stored: (channels, height, width) of an image."""
        return tuple(self.x.shape[1:])

    def inputs(self) -> Tensor:
        """What a network takes: of images, pixels as float32 in [0, 1], (n, c, h, w)."""
        return self.task.inputs(self.x)

    def to(self, device: str | torch.device) -> Self:
        """The same examples on another device."""
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
        # Piece by piece: whole sets need no second copy, and permuted ones no third.
        own = "" if self.task is IMAGES else f"{self.task.name} "
        h = hashlib.sha256(f"{own}{tuple(self.x.shape)}".encode())
        for part in self.x.split(1000):
            h.update(part.cpu().contiguous().numpy().tobytes())
        h.update(self.y.cpu().contiguous().numpy().tobytes())
        return h

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of all that decides a training."""
        return self._hash().hexdigest()[:16]


def hold_out(images: Set, n: int, generator: torch.Generator) -> tuple[Set, Set]:
    """Split off `n` random examples: (the rest, the held-out ones), disjoint.

    The course uses it to give the defender clean data that the attacker never saw.

    Raises:
        ValueError: other kinds of arguments, or a part would be empty.
    """
    if not isinstance(images, Examples):
        raise ValueError(f"images must be Images or other Examples, not {require.kind(images)}.")
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


def join(first: Set, second: Set) -> Set:
    """Both sets, one behind the other; they must be of one kind, with the same classes.

    Raises:
        ValueError: they differ in kind (one is poisoned), classes, size or device.
    """
    for images in (first, second):
        require_clean(images, "what is joined", least=0)
    of = first.task
    if type(first) is not type(second):
        raise ValueError(f"one set is {type(first).__name__}, the other {type(second).__name__}.")
    if first.classes != second.classes or first.shape != second.shape:
        raise ValueError(f"these {of.one} sets differ in classes or {of.one} size.")
    if first.x.device != second.x.device:
        raise ValueError(
            f"one {of.one} set is on {first.x.device}, the other on {second.x.device}; "
            "move one with .to(device)."
        )
    x, y = torch.cat([first.x, second.x]), torch.cat([first.y, second.y])
    return replace(first, x=x, y=y)


def require_clean(images: object, name: str = "clean", least: int = 2) -> Examples:
    """Refuse what is not a set of clean examples, or too small a one.

    A defender owns examples, not the attacker's notes on which of them are poisoned.

    Raises:
        ValueError: one sentence, which starts with `name`.
    """
    if isinstance(images, Poisoned):
        kind = images.task.many.title()
        raise ValueError(
            f"{name} must be clean {kind}, not Poisoned ones: a defender who repaired with "
            "these would learn the backdoor again."
        )
    if not isinstance(images, Examples):
        raise ValueError(f"{name} must be Images or other Examples, not {require.kind(images)}.")
    if len(images) < least:
        raise ValueError(
            f"{name} must hold at least {least} {images.task.many}, but holds {len(images)}."
        )
    return images


def require_names(names: object, what: str) -> tuple[str, ...]:
    """Refuse class names that are no tuple of different strings.

    Raises:
        ValueError: one sentence, which starts with `what`.
    """
    if not isinstance(names, tuple) or not names or not all(isinstance(c, str) for c in names):
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
class Poisoned(Examples):
    """Examples some of which the attacker changed; no defense takes them for clean ones.

    Args:
        role: int8 (n,): 0 clean, 1 poison (trigger and attacker's label), 2 cover
            (changed by the attacker, true label).
        late: None if the triggers are in the examples already. If set, poison and cover
            rows of `x` are still unstamped and training applies this function (of
            inputs) to them after augmentation.
        kind: the task of the clean examples.
    """

    _rows: ClassVar[tuple[str, ...]] = ("x", "y", "role")

    role: Tensor = field(default=None)  # type: ignore[assignment]  # refused below
    late: Callable[[Tensor], Tensor] | None = None
    kind: Task = IMAGES

    @property
    def task(self) -> Task:  # type: ignore[override]  # a field would stand before x
        return self.kind

    def __post_init__(self) -> None:
        super().__post_init__()
        role = self.role
        _require_data(role, "Poisoned.role")
        if role.dtype != torch.int8 or role.shape != self.y.shape[:1]:
            raise ValueError(f"Poisoned.role must be int8 of shape ({len(self.y)},).")
        if role.device != self.x.device:
            raise ValueError(
                f"Poisoned.x is on {self.x.device} but its role on {role.device}; "
                "move one with .to(device)."
            )
        if self.late is not None and not callable(self.late):
            raise ValueError(
                "Poisoned.late must be None or a function of inputs, not "
                f"{require.kind(self.late)}."
            )
        if len(role) and not 0 <= int(role.min()) <= int(role.max()) < len(ROLES):
            raise ValueError("Poisoned.role holds 0 (clean), 1 (poison) or 2 (cover).")

    def pixels(self) -> Tensor:
        """Of images: all pixels as float32 in [0, 1], shape (n, c, h, w)."""
        return self.inputs()

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of all that decides a training.

        A late trigger enters by what it does to the first examples that get it.
        """
        h = self._hash()
        h.update(self.role.cpu().numpy().tobytes())
        if self.late is not None:
            rows = (self.role != ROLES["clean"]).nonzero().flatten()[:16]
            stamped = self.task.stored(self.late(self[rows].inputs()))
            h.update(stamped.cpu().numpy().tobytes())
        return h.hexdigest()[:16]

    @property
    def count(self) -> int:
        """Number of poisoned examples."""
        return int((self.role == ROLES["poison"]).sum())

    @property
    def covers(self) -> int:
        """Number of cover examples."""
        return int((self.role == ROLES["cover"]).sum())
