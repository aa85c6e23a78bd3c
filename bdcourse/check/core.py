"""What the checks of all lessons share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class CheckFailed(AssertionError):
    """An exercise's answer does not do what was asked; the message says in what way."""


def claim(sentence: str, value: float, low: float, high: float) -> None:
    """Print `sentence` if `value` lies in its band, else raise with the measured value.

    A trained network's numbers differ a little from machine to machine, so lessons
    state bands. Band and value share one unit; the sentence is what the reader may rely
    on.
    """
    if not low <= value <= high:
        raise AssertionError(
            f"{sentence} Not here: measured {value:.4g}, expected {low:g} to {high:g}."
        )
    print(sentence)


def reveal(guess: float, truth: float, unit: str = "") -> None:
    """Show how far a prediction was from the measured value."""
    gap = abs(guess - truth)
    unit = f" {unit}" if unit else ""
    comment = "spot on" if gap < 0.5 else f"{gap:g}{unit} apart"
    print(f"you said {guess:g}{unit}, it is {truth:g}{unit}: {comment}")


def need(ok: bool, name: str, symptom: str, hint: int) -> None:
    if not ok:
        raise CheckFailed(f"{name}: {symptom} (hint {hint})")


def call(name: str, fn: Callable, *args):
    """fn(*args), refusing stubs, missing returns and changed arguments."""
    before = [a.clone() if isinstance(a, Tensor) else a for a in args]
    try:
        out = fn(*args)
    except NotImplementedError:
        raise CheckFailed(f"{name}: not written yet.") from None
    if out is None:
        raise CheckFailed(f"{name}: returns None; is there a return statement?")
    for a, b in zip(args, before, strict=True):
        if isinstance(a, Tensor) and not torch.equal(a, b):
            raise CheckFailed(
                f"{name}: changes its input in place; clone first (hint 1)"
            )
    return out


def shaped(name: str, out, want: tuple[int, ...], hint: int = 1) -> None:
    if not isinstance(out, Tensor):
        kind = type(out).__name__
        raise CheckFailed(f"{name}: returns a {kind}, not a tensor (hint {hint})")
    need(
        tuple(out.shape) == want,
        name,
        f"returns shape {tuple(out.shape)}, expected {want}.",
        hint,
    )


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    return torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def number(name: str, out) -> float:
    if isinstance(out, Tensor) and out.numel() == 1:
        out = out.item()
    if isinstance(out, bool) or not isinstance(out, (int, float)):
        raise CheckFailed(
            f"{name}: returns a {type(out).__name__}, not a number (hint 1)"
        )
    return float(out)


def passed(name: str) -> None:
    print(f"{name}: all checks passed")


def fresh() -> torch.Generator:
    g = torch.Generator()
    g.seed()  # a new seed each time: no constant can pass
    return g
