"""What a defense returns, the door that all defenses share, the one rule by which
thresholds are chosen, and the refusals of numbers that make no sense."""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.data import Images
from bdcourse.examples import Examples, Poisoned, require_clean
from bdcourse.metrics import evaluate
from bdcourse.surgery import examine, require_sound, without
from bdcourse.train import Augment, fit

Setting = TypeVar("Setting")


@dataclass(frozen=True)
class Purified:
    """A repaired copy of a model.

    Args:
        model: the repaired model, in eval mode; the one that was handed in is
            untouched.
        pruned: module name -> positions of the channels switched off, (m,) int64;
            modules are BatchNorms, convolutions where the method masks those, or the
            gates that `linf` adds behind a sum.
        log: the defense's own course (thresholds, losses), ready to plot. Where the
            defense owns clean images, `own_acc` is the accuracy on them before and
            after, 0..1: a network that the repair has destroyed shows here, for free.
        seconds: wall-clock time of the defense.

    Raises:
        RuntimeError: weights or statistics of the result are not finite.
    """

    model: nn.Module
    pruned: dict[str, Tensor] = field(default_factory=dict)
    log: dict = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for name, value in require.module(self.model).named_parameters():
            if not bool(value.isfinite().all()):
                raise RuntimeError(
                    f"{name} of the repaired network is not finite: the repair "
                    "diverged; take a smaller lr, or a smaller weight of its penalty."
                )
        self.model.eval()

    @property
    def count(self) -> int:
        """Number of channels switched off."""
        return sum(len(v) for v in self.pruned.values())


Repair = Callable[..., Purified]


def defense(
    *,
    least: int = 2,
    k: bool = True,
    logits: bool = True,
    steady: bool = True,
    batches: bool = False,
    moves: bool = False,
) -> Callable[[Repair], Repair]:
    """The door of every defense: what it refuses, and what holds for every result.

    Before any work the model, the images, `generator`, `checkpoint`, `augment` and the
    options of `train.fit` are looked at. What is random in the network itself (dropout)
    is seeded from the generator, and torch's global random state stays as it is. The
    result is in eval mode, and its log tells the accuracy on the clean images.

    Args:
        least: images that `clean` must hold.
        k, logits, steady: see `surgery.examine`.
        batches: `clean` may also be any pair of inputs and targets.
        moves: weights must be trainable.
    """

    def wrap(function: Repair) -> Repair:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args, **kwargs) -> Purified:
            given = _given(signature, args, kwargs)
            options = given.pop("options", {})
            given |= options
            model, clean = given["model"], given.get("clean")
            if "clean" not in given:
                require_sound(model, steady=steady)
            elif batches and not isinstance(clean, (Images, Poisoned)):
                require_batch(clean)
                require_sound(model, steady=steady)
            else:
                if not batches:
                    require_single(require.module(model))
                admit(
                    model, clean, given.get("held"), least=least, k=k, logits=logits, steady=steady
                )
            if moves:
                require_movable(model)
            require_ways(given)
            before = own_acc(model, clean, "the network")
            with own_chance(given.get("generator"), model):
                result = function(*args, **kwargs)
            after = own_acc(result.model, clean, "the repaired network")
            if after is not None:
                result.log["own_acc"] = [before, after]
            return result

        return run

    return wrap


def _given(signature: inspect.Signature, args: tuple, kwargs: dict) -> dict:
    """The arguments of a call by name; None only where no other default stands."""
    call = signature.bind(*args, **kwargs)
    call.apply_defaults()
    for name, value in call.arguments.items():
        p = signature.parameters[name]
        optional = p.default in (None, p.empty) or "None" in str(p.annotation)
        if value is None and not optional:
            raise ValueError(f"{name} must not be None; leave it out, and it is {p.default!r}.")
    return dict(call.arguments)


def filled(function: Callable) -> Callable:
    """Refuse None for what has another default."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args, **kwargs):
        _given(signature, args, kwargs)
        return function(*args, **kwargs)

    return run


def require_single(model: nn.Module) -> None:
    """Refuse weights that do not go with pixels in float32."""
    dtype = next(iter(model.parameters()), torch.empty(0)).dtype
    if dtype != torch.float32:
        raise ValueError(
            f"the weights of the model are {str(dtype).removeprefix('torch.')}, but "
            "defenses work in float32; call .float() on it."
        )


def admit(
    model: nn.Module,
    clean: Images,
    held: Images | None = None,
    *,
    least: int = 2,
    k: bool = True,
    logits: bool = True,
    steady: bool = True,
) -> None:
    """Refuse a network or images that a defense cannot work with.

    Args:
        held: may be None, or images of the same kind as `clean`.
        least: images that `clean` must hold.
        k, logits, steady: see `surgery.examine`.
    """
    require.module(model)
    require_clean(clean, "clean", least)
    if held is not None:
        require_clean(held, "held", 1)
        if held.shape != clean.shape or held.k != clean.k:
            raise ValueError(
                f"held must be images like clean, {clean.k} classes of shape "
                f"{clean.shape}, not {held.k} classes of shape {held.shape}."
            )
        if held.x.device != clean.x.device:
            raise ValueError(
                f"held is on {held.x.device} and clean on {clean.x.device}; move one "
                "with .to(device)."
            )
    examine(model, clean, k=k, logits=logits, steady=steady)


def require_movable(model: nn.Module) -> None:
    """Refuse to train a network all of whose weights are frozen."""
    if not any(w.requires_grad for w in model.parameters()):
        raise ValueError(
            "no parameter of the model requires grad, so none can move; call "
            "model.requires_grad_()."
        )


def require_batch(clean: object) -> None:
    """Refuse what is no pair of inputs and targets, a row an example."""
    x, y = getattr(clean, "x", None), getattr(clean, "y", None)
    if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.ndim and y.ndim):
        raise ValueError(
            "clean must be Images, or hold inputs x and targets y as tensors with one "
            f"row an example, not {require.kind(clean)}."
        )
    if x.is_floating_point() and not bool(x.isfinite().all()):
        raise ValueError("the inputs of clean are not finite.")


def require_ways(given: Mapping[str, object]) -> None:
    """Refuse generators, checkpoints, augmentations and watchers that are none."""
    if "generator" in given:
        require.generator(given["generator"])
    path = given.get("checkpoint")
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise ValueError(
            f"checkpoint must be the path of a file or None, not {require.kind(path)}."
        )
    if not isinstance(given.get("augment"), (Augment, type(None))):
        raise ValueError(
            f"augment must be a train.Augment or None, not {require.kind(given['augment'])}."
        )
    for name in ("watch", "each_epoch"):
        value = given.get(name)
        if value is not None and not callable(value):
            raise ValueError(f"{name} must be a function or None, not {require.kind(value)}.")


def own_acc(model: nn.Module, clean: object, what: str) -> float | None:
    """The headline score on the defender's own examples, of images the accuracy, or None
    without examples of theirs."""
    if not isinstance(clean, Examples):
        return None
    task, dtype = clean.task, next(model.parameters()).dtype
    x = clean.x if dtype == torch.float32 else task.inputs(clean.x, dtype)
    said = task.answer(model, x, what=f"the answers of {what}")
    return next(iter(task.quality(said, clean.y).values()))


@contextmanager
def own_chance(generator: torch.Generator | None, model: nn.Module) -> Iterator[None]:
    """Inside the `with`, chance that a network draws itself (dropout) is the
    generator's; afterwards torch's global random state is what it was.

    The seed is read off the generator's state, which does not move.
    """
    place = next(model.parameters()).device
    devices = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        if generator is not None:
            state = hashlib.sha256(generator.get_state().cpu().numpy().tobytes())
            seed = int.from_bytes(state.digest()[:7], "little")
            torch.default_generator.manual_seed(seed)
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
        yield


def copied(model: nn.Module) -> nn.Module:
    """A copy to work on."""
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as e:
        raise ValueError(
            "the model cannot be copied, perhaps because it keeps a tensor of its last "
            "pass; load it anew, and take plain weights or "
            "torch.nn.utils.parametrizations."
        ) from e


def require_training(
    *, epochs: float, lr: float, batch: int, options: Mapping[str, object]
) -> None:
    """Refuse settings that `train.fit` could not train with, before any other work.

    Args:
        options: what goes to `fit` besides.
    """
    require_positive(epochs=require.number("epochs", epochs))
    require_positive(lr=require.number("lr", lr))
    require.whole("batch", batch, 2)
    known = [p for p in inspect.signature(fit).parameters if p not in ("model", "data")]
    for name, value in options.items():
        require.choice("an option", name, known)
        if name in ("momentum", "warmup"):
            require.number(name, value, 0, 1)
        if name == "weight_decay":
            require_at_least(0, weight_decay=require.number(name, value))
        if name in ("frozen_norms", "verbose"):
            require.truth(name, value)
        if name in ("bf16", "compile") and value is not None:
            require.truth(name, value)
    require_ways(options)


LARGEST = 1e30  # times a few thousand it is still a number of float32


def compared(name: str, value: object) -> float:
    """A number that may be compared, also infinity or nan; no bool, no text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        try:
            return require.number(name, value)
        except ValueError:
            raise ValueError(f"{name} must be a number, not {require.kind(value)}.") from None
    if math.isfinite(value) and abs(value) > LARGEST:
        raise ValueError(f"{name} must be at most 1e30, or float32 overflows, not {value}.")
    return value


def require_counts(**values: int | None) -> None:
    """Refuse what is no whole number of at least 1, by name; None is left out."""
    for name, value in values.items():
        if value is not None and require.whole(name, value) < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")


def require_at_least(bound: float, /, **values: float | None) -> None:
    """Refuse numbers below `bound`, by name, and nan; None is an option left out."""
    for name, value in values.items():
        if value is not None and not compared(name, value) >= bound:
            raise ValueError(f"{name} must be at least {bound}, not {value}.")


def require_positive(**values: float | None) -> None:
    """Refuse numbers at or below zero, by name; also nan and infinity, but not None."""
    for name, value in values.items():
        if value is None:
            continue
        value = compared(name, value)
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be above 0 and finite, not {value}.")


def require_share(**values: float) -> None:
    """Refuse numbers outside 0..1, by name."""
    for name, value in values.items():
        if not 0 <= compared(name, value) <= 1:
            raise ValueError(f"{name} must lie in 0..1, not {value}.")


def require_list(name: str, value: object) -> list:
    """A sequence that is no text, as a list."""
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, range)):
        raise ValueError(f"{name} must be a list, not {require.kind(value)}.")
    return list(value)


class Look(NamedTuple):
    """A setting that was tried: channels it switches off, accuracy on held images."""

    setting: object
    count: int
    acc: float


def furthest(
    model: nn.Module,
    steps: Iterable[tuple[Setting, Mapping[str, Tensor]]],
    held: Images,
    max_drop: float = 0.01,
    *,
    shift: bool = True,
    looks: list[Look] | None = None,
) -> Setting | None:
    """The last setting before the first that costs too much on held-out clean images.

    The rule by which every pruning method of the course chooses its threshold: it sees
    clean accuracy and never the trigger.

    Args:
        steps: (setting, channels it would switch off), from least to most.
        max_drop: accuracy that may be lost, 0..1. The least drop that n images can
            show is 1/n: with 60 of them, 0.01 allows no net new error.
        shift: see `surgery.zero_channels`.
        looks: gets every setting that was tried, for a plot of the choice.

    Returns:
        None if already the first setting costs too much: prune nothing.
    """
    least = evaluate(model, held).acc - max_drop - 1e-9  # the rounding of a quotient
    best, last, fine = None, -1, True
    for setting, channels in steps:
        count = sum(map(len, channels.values()))
        if count != last:  # steps grow: the same count is the same channels
            repaired = without(model, channels, shift=shift)
            acc = evaluate(repaired, held).acc
            fine, last = acc >= least, count
            if looks is not None:
                looks.append(Look(setting, count, acc))
        if not fine:
            break
        best = setting
    return best
