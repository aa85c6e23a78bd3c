"""What the checks of all lessons share."""

from __future__ import annotations

import functools
import inspect
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bdcourse import require
from bdcourse.require import kind
from bdcourse.require import number as finite_number
from bdcourse.teach import cards, lessons, progress

# Files whose lines a reader did not write.
OURS = str(Path(__file__).parents[2])
NOT_THEIRS = (OURS, "<frozen ", *map(sysconfig.get_path, ("stdlib", "purelib")))


# Of the draws of checks, in tests; otherwise each draw has a seed of its own.
SEEDS: Iterator[int] | None = None


class CheckFailed(AssertionError):
    """An exercise's answer does not do what was asked, or a claim does not hold; the
    message says in what way."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback, whose lines would be ours and
        give answers away; feedback pages store the same."""
        return [f"\u2717 {self}"]


def guarded(check: Callable[[Callable], None]) -> Callable[[object], None]:
    """A check that ends in silence or in :class:`CheckFailed`, whatever it is given.

    An error of the reader's own code is named with its line; what a check stumbles over
    is what was returned. In a learner's own copies a passed check is remembered, a
    failed one brings its card along, and after :func:`stand_in` a stub passes for now.
    """
    name = check.__name__

    @functools.wraps(check)
    def run(fn: object) -> None:
        answer = _Answer(name, fn)
        try:
            if isinstance(fn, type) or not callable(fn):
                what = "a class" if isinstance(fn, type) else kind(fn)
                raise CheckFailed(f"{name}: must be a function, not {what}.")
            check(answer)
            progress.record(name)
            return
        except CheckFailed as e:
            sentence = str(e)
        except (Exception, SystemExit) as e:
            sentence = answer.blamed(e)
        if _standing_in and sentence == _unwritten(name) and (own := lessons.find(name)):
            print(cards.step_in(own))
            return
        cards.offer(name)
        raise CheckFailed(sentence) from None

    return run


_standing_in = False


def stand_in(on: bool = True) -> None:
    """Let the course's own answers step in for exercises that are not written yet.

    The check of such an exercise then says so and passes, and the cells behind it use
    the course's answer, so that "Run All" reaches the end of a lesson. What is written
    and wrong still fails.

    Args:
        on: False makes stubs fail again.
    """
    global _standing_in
    _standing_in = require.truth("on", on)
    if on:
        print("The course's answers step in for what is not written yet.")


def _unwritten(name: str) -> str:
    return f"{name}: not written yet."


class _Answer:
    """The reader's function, with a memory of what it did last."""

    def __init__(self, name: str, fn: object) -> None:
        self.name, self.fn = name, fn
        self.returned: object = None
        self.raised: BaseException | None = None

    def __call__(self, *args):
        name = self.name
        try:
            out = self.fn(*args)
        except (Exception, SystemExit) as e:
            self.raised = e
            raise
        if inspect.isgenerator(out) or inspect.iscoroutine(out):
            out.close()
            raise CheckFailed(f"{name}: must be a plain function, no yield, no async.")
        self.returned = out
        return out

    def blamed(self, error: BaseException) -> str:
        if error is not self.raised:
            return (
                f"{self.name}: returns {kind(self.returned)}, and the check cannot go "
                "on with it; compare it with what the task asks for (hint 1)"
            )
        said = " ".join(str(error).split())
        if isinstance(error, NotImplementedError) and (
            not said or "not written yet" in said  # PyTorch raises this error as well
        ):
            return _unwritten(self.name)
        said = said.replace(". ", "; ").rstrip(".")
        said = f": {said if len(said) <= 200 else said[:197] + '...'}" if said else ""
        line = line_of(error)
        where = f" in line {line}" if line else ""
        return f"{self.name}: raises {type(error).__name__}{where}{said}."


def line_of(error: BaseException) -> int | None:
    """The last line of the reader's own code that an error came through."""
    line = getattr(error, "line", None)  # told by the process that it happened in
    line, tb = line if type(line) is int else None, error.__traceback__
    while tb is not None:
        if not tb.tb_frame.f_code.co_filename.startswith(NOT_THEIRS):
            line = tb.tb_lineno
        tb = tb.tb_next
    return line


def claim(sentence: str, value: float, low: float, high: float, unit: str = "") -> None:
    """Print `sentence` and the measured value if that lies in its band, else raise.

    A trained network's numbers differ a little from machine to machine, so lessons
    state bands. The sentence is what the reader may rely on; nbval compares it and
    leaves out what stands behind "Measured" (see conftest.py).

    Args:
        value, low, high: in one unit.
        unit: written behind the value; with "%" all three are shares, 0.5 is 50%.
    """
    try:
        holds, value = bool(low <= value <= high), float(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"a claim needs one number, not {kind(value)}.") from None
    if not holds:
        band = f"{_written(low, unit)} to {_written(high, unit)}"
        raise CheckFailed(
            f"{sentence} Not here: measured {_written(value, unit)}, expected {band}."
        )
    print(f"\u2713 {sentence} Measured: {_written(value, unit)}.")


def _written(value: float, unit: str) -> str:
    if unit == "%":
        return f"{round(100 * value, 1):g}%"
    return f"{value:.3g} {unit}".strip()


def reveal(guess: float | None, truth: float, unit: str = "") -> None:
    """Show how far a prediction was from the measured value, once there is one.

    Raises:
        ValueError: the guess or the truth is no number.
    """
    finite_number("the truth", truth)
    if guess is None:
        print("Your guess first: put a number in the place of None and run this again.")
        return
    finite_number("the guess", guess)
    gap = abs(guess - truth)
    unit = unit if unit in ("", "%") else f" {unit}"
    comment = "spot on" if gap < 0.5 else f"{gap:g}{unit} apart"
    if unit == "%" and 0 < guess < 1 < truth:
        comment += f" (in percent, please: is {guess:g} meant as {100 * guess:g}?)"
    print(f"you said {guess:g}{unit}, it is {truth:g}{unit}: {comment}")


def need(ok: bool, name: str, symptom: str, hint: int) -> None:
    if not ok:
        raise CheckFailed(f"{name}: {symptom} (hint {hint})")


def call(name: str, fn: Callable, *args, hint: int = 1):
    """fn(*args), refusing missing returns and changed arguments, which `hint` is about."""
    before = [a.clone() if isinstance(a, Tensor) else a for a in args]
    out = fn(*args)
    if out is None:
        raise CheckFailed(f"{name}: returns None; is there a return statement?")
    for a, b in zip(args, before, strict=True):
        if isinstance(a, Tensor) and not torch.equal(a, b):
            raise CheckFailed(f"{name}: changes its input in place; clone first (hint {hint})")
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
    if isinstance(out, np.generic):
        out = out.item()
    if isinstance(out, bool) or not isinstance(out, (int, float)):
        raise CheckFailed(f"{name}: returns a {type(out).__name__}, not a number (hint 1)")
    return float(out)


def passed(name: str, measured: str = "all checks passed") -> None:
    """Say in one constant line what an answer was seen to do."""
    print(f"\u2713 {name}: {measured}")


def fresh() -> torch.Generator:
    """A generator with a new seed each time, so that no constant can pass."""
    g = torch.Generator()
    if SEEDS is None:
        g.seed()
    else:
        g.manual_seed(next(SEEDS))
    return g
