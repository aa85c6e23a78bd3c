"""The door of every public function: what cannot be meant is refused in one sentence.

Each function here looks at one argument, names it, says what is wrong with it and what
would be right, and gives the value back in its plain form. Nothing is repaired in
silence: 1.5 is not taken for 1, True is not taken for 1, and nan is no number.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")

TRUSTED = ContextVar("trusted", default=False)


@contextmanager
def trusted() -> Iterator[None]:
    """Inside the `with`, attacks and the like take pixels and labels as they are.

    For loops that get them from Images: they are right, and a look at their range would
    make a GPU wait in every step.
    """
    token = TRUSTED.set(True)
    try:
        yield
    finally:
        TRUSTED.reset(token)


def is_tensor(value: object) -> TypeGuard[Tensor]:
    """Whether this is a tensor; without importing torch, which whoever made one has."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def kind(value: object) -> str:
    """A short name for what a value is, for messages."""
    if is_tensor(value):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a {dtype} tensor of shape {tuple(value.shape)}"
    if value is None or isinstance(value, (bool, int, float)):
        return str(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:37] + "...")
    return f"a {type(value).__name__}"


def whole(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """A whole number in low..high, as an int.

    Raises:
        ValueError: another kind of value, or one outside.
    """
    right = isinstance(value, Integral) and not isinstance(value, bool)
    if not right or not _inside(value, low, high):
        raise ValueError(f"{name} must be a whole number{_range(low, high)}, not {kind(value)}.")
    return int(value)


def number(
    name: str,
    value: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
) -> float:
    """A finite number in low..high, or above a bound that it may not touch, as given.

    Raises:
        ValueError: another kind of value, nan, infinity, or one outside.
    """
    right = isinstance(value, Real) and not isinstance(value, bool)
    right = right and math.isfinite(value) and _inside(value, low, high)
    if not right or (above is not None and not value > above):
        bounds = f" above {above:g}" if above is not None else _range(low, high)
        bounds += f" and at most {high:g}" if above is not None and high else ""
        raise ValueError(f"{name} must be a finite number{bounds}, not {kind(value)}.")
    return value


def fraction(name: str, value: object) -> float:
    """A number in 0..1."""
    return number(name, value, 0, 1)


def choice(name: str, value: object, known: Iterable[T]) -> T:
    """One of the known values; a name that was nearly right is suggested."""
    known = list(known)
    for k in known:
        if type(value) is type(k) and value == k:
            return k
    listed = ", ".join(map(repr, known))
    raise ValueError(f"{name} must be one of {listed}, not {kind(value)}{meant(value, known)}.")


def meant(value: object, known: Iterable[object]) -> str:
    """'; did you mean X?' without its full stop, or nothing."""
    from difflib import get_close_matches

    names = {str(k).lower(): str(k) for k in known}
    near = get_close_matches(str(value).lower(), names, n=1, cutoff=0.6)
    return f" (did you mean {names[near[0]]!r}?)" if near else ""


def truth(name: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, not {kind(value)}.")
    return value


def generator(value: object, name: str = "generator") -> torch.Generator:
    """A torch.Generator: everything random in the course draws from one."""
    import torch

    if not isinstance(value, torch.Generator):
        raise ValueError(
            f"{name} must be a torch.Generator, such as "
            f"torch.Generator().manual_seed(0), not {kind(value)}."
        )
    return value


def pixels(
    x: object,
    name: str = "x",
    shape: tuple[int, ...] | None = None,
    axes: str = "n, c, h, w",
    what: str = "images",
) -> Tensor:
    """Float pixels in [0, 1], (n, c, h, w), of one kind of image if `shape` is given.

    Args:
        axes: other ones, as of clips.
        what: they are called.

    Raises:
        ValueError: 0..255, uint8, nan, another shape: a trigger or a network that gets
            such pixels answers something, and every number made of it is wrong.
    """
    if not is_tensor(x) or x.ndim != axes.count(",") + 1 or not x.is_floating_point():
        have = (
            "Images have them as .pixels()" if what == "images" else "a set has them as .inputs()"
        )
        raise ValueError(
            f"{name} must be float pixels in [0, 1] of shape ({axes}), not {kind(x)}; {have}."
        )
    if shape is not None and tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(
            f"{name} must hold {what} of shape {tuple(shape)}, not {tuple(x.shape[1:])}."
        )
    if x.numel():
        low, high = (float(v) for v in x.detach().aminmax())
        # A blend or an inverse transform may round a little outside.
        if not (low >= -1e-4 and high <= 1 + 1e-4):
            raise ValueError(
                f"{name} must lie in [0, 1], but runs from {low:.4g} to {high:.4g}; "
                "divide pixels of 0..255 by 255."
            )
    return x


def labels(y: object, n: int, k: int | None = None, name: str = "y") -> Tensor:
    """Int64 labels, (n,), below k if it is given."""
    if not is_tensor(y) or str(y.dtype) != "torch.int64" or y.shape != (n,):
        raise ValueError(
            f"{name} must be int64 labels of shape ({n},), one per image, not {kind(y)}."
        )
    if n and (int(y.min()) < 0 or (k is not None and int(y.max()) >= k)):
        raise ValueError(
            f"{name} runs from {int(y.min())} to {int(y.max())}, but labels lie in "
            + (f"0..{k - 1}." if k is not None else "0, 1, 2 and so on.")
        )
    return y


def module(model: object, name: str = "model") -> nn.Module:
    """A network, not a victim or the result of a defense that holds one."""
    from torch import nn

    if isinstance(model, nn.Module):
        return model
    inner = isinstance(getattr(model, "model", None), nn.Module)
    raise ValueError(
        f"{name} must be an nn.Module, not {kind(model)}" + ("; pass its .model." if inner else ".")
    )


def names(name: str, value: object) -> list[str]:
    """A list of names: one name alone would be read letter by letter."""
    if isinstance(value, (str, bytes)) or is_tensor(value) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list of names, not {kind(value)}.")
    value = list(value)
    for v in value:
        if not isinstance(v, str):
            raise ValueError(f"{name} must hold names, not {kind(v)}.")
    return value


def finite(logits: Tensor, what: str = "the network's answers") -> Tensor:
    """Logits without nan or infinity: argmax would call them class 0.

    Raises:
        ValueError: an answer is not a number. No share may be made of such answers.
    """
    if not bool(logits.isfinite().all()):
        bad = int((~logits.isfinite()).flatten(1).any(1).sum())
        raise ValueError(
            f"{what} are not finite numbers for {bad} of {len(logits)} images: the "
            "network diverged in training or its weights are damaged, so nothing can "
            "be measured on it."
        )
    return logits


def _inside(value: Any, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" in {low:g}..{high:g}"
    if low is not None:
        return f" of at least {low:g}"
    return "" if high is None else f" of at most {high:g}"


def path(name: str, value: object) -> str:
    """A path of a file or folder, as str.

    Raises:
        ValueError: another kind of value, or an empty name.
    """
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ValueError(f"{name} must be a path, not {kind(value)}.")
    return os.fspath(value)


def row(name: str, value: object, n: int | None = None) -> tuple:
    """A tuple or list, of `n` entries if given, as a tuple.

    Raises:
        ValueError: another kind of value, or another length.
    """
    if not isinstance(value, (tuple, list)) or (n is not None and len(value) != n):
        of = "" if n is None else f" of {n} entries"
        long = f" of {len(value)}" if isinstance(value, (tuple, list)) else ""
        raise ValueError(f"{name} must be a tuple{of}, not {kind(value)}{long}.")
    return tuple(value)


def device(name: str, value: Any) -> torch.device:
    """A device that is there.

    Raises:
        ValueError: no name of a device, or of one that this machine or torch lacks.
    """
    import torch

    try:
        torch.empty(0, device=value)
        return torch.device(value)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as e:
        raise ValueError(
            f"{name} must be a device of this machine, such as 'cpu', not "
            f"{kind(value) if isinstance(value, (str, int, type(None))) else value}."
        ) from e


def reason(e: Exception) -> str:
    """The first words of somebody else's error, for the middle of a sentence."""
    text = " ".join(str(e).split()) or type(e).__name__
    text = text.replace(". ", "; ").rstrip(".:;, ")
    return text if len(text) <= 120 else text[:117].rstrip(".:;, ") + " ..."
