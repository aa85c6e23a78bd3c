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
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.augment import Augmentation
from bdcourse.checkpoint import content_hash
from bdcourse.examples import Examples, require_clean
from bdcourse.metrics import evaluate
from bdcourse.models import not_finite
from bdcourse.seeds import fresh_seed
from bdcourse.surgery import require_matching, require_sound, without
from bdcourse.task import PixelTask
from bdcourse.train import OPTIMIZERS, History, fit

Setting = TypeVar("Setting")


@dataclass(frozen=True, eq=False, repr=False)
class Purified:
    """A repaired copy of a model.

    Args:
        model: the repaired model, in eval mode; the one that was handed in is
            untouched.
        pruned: module name -> positions of the channels switched off, (m,) int64;
            modules are BatchNorms, convolutions where the method masks those, or the
            gates that `linf` adds behind a sum.
        log: the defense's own course (thresholds, losses), ready to plot; its keys are
            told by each defense. Where the defense owns clean images, `own_acc` is the
            accuracy on them before and after, 0..1: a network that the repair has
            destroyed shows here, for free.
        seconds: wall-clock time of the defense.

    Raises:
        RuntimeError: weights or statistics of the result are not finite.
    """

    model: nn.Module
    pruned: dict[str, Tensor] = field(default_factory=dict)
    log: dict = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        tensors: dict[str, Tensor] = dict(require.module(self.model).named_parameters())
        for name, value in self.model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                tensors[name] = value
        if name := not_finite(tensors):
            raise RuntimeError(
                f"{name} of the repaired network is not finite: the repair diverged; "
                "take a smaller lr, or a smaller weight of its penalty."
            )
        self.model.eval()

    def __repr__(self) -> str:
        off = f"{self.count:,} channel{'s' * (self.count != 1)} off, " if self.pruned else ""
        return f"Purified({type(self.model).__name__}, {off}{self.seconds:.1f} s)"

    @property
    def count(self) -> int:
        """Number of channels switched off."""
        return sum(len(v) for v in self.pruned.values())


Repair = TypeVar("Repair", bound=Callable[..., Purified])
Function = TypeVar("Function", bound=Callable)


def defense(
    *,
    least: int = 2,
    k: bool = True,
    logits: bool = True,
    steady: bool = True,
    batches: bool = False,
    moves: bool = False,
    pixels: bool = False,
    classes: bool = False,
    floats: bool = False,
) -> Callable[[Repair], Repair]:
    """The door of every defense: what it refuses, and what holds for every result.

    Before any work the model, the images, `generator`, `checkpoint` and `augment` are
    looked at; the images must be where the model is. Without a generator there is a
    fresh one with seed 0. What is random in the network itself (dropout) is seeded from
    the generator, and torch's global random state stays as it is. The result is in eval
    mode, and its log tells the accuracy on the clean images.

    Args:
        least: images that `clean` must hold.
        k, logits, steady: see `surgery.require_matching`.
        batches: `clean` may also be any pair of inputs and targets.
        moves: weights must be trainable.
        pixels, classes, floats: see :func:`admit`.
    """

    def wrap(function: Repair) -> Repair:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args, **kwargs) -> Purified:
            call = _bound(signature, args, kwargs)
            given = call.arguments
            model = given["model"]
            clean: Any = given.get("clean")
            if "clean" not in given:
                require_sound(model, steady=steady)
            elif batches and not isinstance(clean, Examples):
                require_batch(clean)
                require_sound(model, steady=steady)
                require_here(model, {"clean": clean.x, "the targets of clean": clean.y})
            else:
                if not batches:
                    require_single(require.module(model))
                admit(
                    model,
                    clean,
                    given.get("held"),
                    least=least,
                    k=k,
                    logits=logits,
                    steady=steady,
                    pixels=pixels,
                    classes=classes,
                    floats=floats,
                )
            if moves:
                require_movable(model)
            require_ways(given)
            before = own_acc(model, clean, "the network")
            with own_chance(given.get("generator"), model):
                result = function(*call.args, **call.kwargs)
            after = own_acc(result.model, clean, "the repaired network")
            if after is not None:
                result.log["own_acc"] = [before, after]
            return result

        return cast(Repair, run)

    return wrap


def _bound(signature: inspect.Signature, args: tuple, kwargs: dict) -> inspect.BoundArguments:
    """A call with its defaults and, where none was given, with a generator of seed 0.

    Raises:
        ValueError: an option that the function does not have; None where another
            default stands.
    """
    known = signature.parameters
    for name in kwargs:
        if name not in known:
            require.choice("an option", name, [n for n in known if n not in ("model", "clean")])
    call = signature.bind(*args, **kwargs)
    call.apply_defaults()
    for name, value in call.arguments.items():
        p = known[name]
        optional = p.default in (None, p.empty) or "None" in str(p.annotation)
        if value is None and not optional:
            raise ValueError(f"{name} must not be None; leave it out, and it is {p.default!r}.")
    if "generator" in known and call.arguments["generator"] is None:
        call.arguments["generator"] = torch.Generator().manual_seed(0)
    return call


def filled(function: Function) -> Function:
    """The door of building blocks: options that are none, None for what has another
    default, and a generator where none was given; see :func:`defense`."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def run(*args, **kwargs):
        call = _bound(signature, args, kwargs)
        return function(*call.args, **call.kwargs)

    return cast(Function, run)


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
    clean: Examples,
    held: Examples | None = None,
    *,
    least: int = 2,
    k: bool = True,
    logits: bool = True,
    steady: bool = True,
    pixels: bool = False,
    classes: bool = False,
    floats: bool = False,
) -> None:
    """Refuse a network or examples that a defense cannot work with.

    Args:
        held: may be None, or images of the same kind as `clean`.
        least: examples that `clean` must hold.
        k, logits, steady: see `surgery.require_matching`.
        pixels: something is stamped on pixels, channels first, in [0, 1].
        classes: each example has one label.
        floats: inputs are moved a little, or differentiated along.
    """
    require.module(model)
    require_clean(clean, "clean", least)
    many, lacks = clean.task.many, ""
    if pixels and not isinstance(clean.task, PixelTask):
        lacks = f"stamps pixels, and {many} have none"
    elif classes and (clean.y.ndim != 1 or clean.y.is_floating_point()):
        lacks = f"needs one class for each example, and {many} have targets of another kind"
    elif floats and not clean[:1].inputs().is_floating_point():
        lacks = f"moves inputs a little, and {many} are entries of a list, which cannot move"
    if lacks:
        raise ValueError(f"this defense {lacks}; take another, such as finetune.")
    if held is not None:
        require_clean(held, "held", 1)
        if held.task is not clean.task or held.shape != clean.shape or held.k != clean.k:
            raise ValueError(
                f"held must be {clean.task.many} like clean, {clean.k} classes of shape "
                f"{clean.shape}, not {held.k} classes of shape {held.shape}."
            )
        if held.x.device != clean.x.device:
            raise ValueError(
                f"held is on {held.x.device} and clean on {clean.x.device}; move one "
                "with .to(device)."
            )
    require_matching(model, clean, k=k, logits=logits, steady=steady)


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
            "clean must be Examples, or hold inputs x and targets y as tensors with one "
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
    if not isinstance(given.get("augment"), (Augmentation, type(None))):
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


@dataclass(frozen=True, eq=False)
class Tuning:
    """How a defense fine-tunes: settings of `train.fit`, looked at before any work.

    Args:
        epochs, lr, batch, optimizer, augment, momentum, weight_decay, warmup,
            frozen_norms, each_epoch, verbose: see `train.fit`.

    Raises:
        ValueError: `train.fit` could not train with them.
    """

    epochs: float
    lr: float
    batch: int = 32
    optimizer: str = "sgd"
    augment: Augmentation | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.2
    frozen_norms: bool = False
    each_epoch: Callable[[nn.Module], dict] | None = None
    verbose: bool = False

    def __post_init__(self) -> None:
        require_positive(epochs=require.number("epochs", self.epochs))
        require_positive(lr=require.number("lr", self.lr))
        require.whole("batch", self.batch, 2)
        require.choice("optimizer", self.optimizer, OPTIMIZERS)
        require.number("momentum", self.momentum, 0, 1)
        require_at_least(0, weight_decay=require.number("weight_decay", self.weight_decay))
        require.number("warmup", self.warmup, 0, 1)
        require.truth("frozen_norms", self.frozen_norms)
        require.truth("verbose", self.verbose)
        require_ways({"augment": self.augment, "each_epoch": self.each_epoch})

    @classmethod
    def of(cls, given: Mapping[str, Any], **own) -> Tuning:
        """Those of a defense's arguments, by name; `own` stands for what it sets itself."""
        given = {**given, **own}
        return cls(**{f.name: given[f.name] for f in fields(cls) if f.name in given})

    def __call__(
        self,
        model: nn.Module,
        clean: Examples,
        generator: torch.Generator,
        checkpoint: str | os.PathLike | None = None,
        **more,
    ) -> History:
        """Train the model in place on clean images.

        Args:
            more: whatever else of `train.fit` the method itself needs.

        Raises:
            KeyboardInterrupt: it was stopped; a half-repaired model is nobody's result.
        """
        history = fit(
            model, clean, **vars(self), generator=generator, checkpoint=checkpoint, **more
        )
        if history.interrupted:
            raise KeyboardInterrupt
        return history


# What does not decide the result of a defense.
IDLE = ("checkpoint", "verbose", "each_epoch", "watch", "watch_every")


def decided_by(of: str, given: Mapping[str, object]) -> dict[str, object]:
    """What a checkpoint must agree with: all arguments of a call that decide its result.

    A generator counts by its state, not by its seed: chance may be used before the part
    of the work that is kept.

    Args:
        of: name of the function.
        given: its arguments by name, `locals()` in its first line.
    """

    def told(value: object) -> object:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, torch.Generator):
            return content_hash(value.get_state())
        if isinstance(value, Examples):
            return value.digest()
        if hasattr(value, "x") and hasattr(value, "y"):  # other inputs and targets
            return content_hash([value.x, value.y])
        return content_hash(value)

    if given["checkpoint"] is None:  # nobody will compare
        return {}
    return {"work": of} | {n: told(v) for n, v in given.items() if n not in IDLE}


def stage(path: str | os.PathLike | None, name: str) -> str | None:
    """Where one stage of a method keeps its checkpoint, beside that of the whole."""
    return None if path is None else f"{os.fspath(path)}.{name}"


def beside(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """The generator, or a new one drawn from it that lives on `device`."""
    if generator.device == device:
        return generator
    return torch.Generator(device).manual_seed(fresh_seed(generator))


def require_here(model: nn.Module, tensors: Mapping[str, Tensor], of: str = "model") -> None:
    """Refuse data, or weights, that are not where the model is."""
    place = next(model.parameters()).device
    for name, value in tensors.items():
        if value.device != place:
            raise ValueError(
                f"{of} is on {place} and {name} is on {value.device}; move one with .to(device)."
            )


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


def require_list(name: str, value: object) -> list:
    """A sequence that is no text, as a list."""
    if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, range)):
        raise ValueError(f"{name} must be a list, not {require.kind(value)}.")
    return list(value)


class Look(NamedTuple):
    """A setting that was tried: channels it switches off, accuracy on held images."""

    setting: object
    count: int  # type: ignore[assignment]  # stands for the method of a tuple
    acc: float


def furthest(
    model: nn.Module,
    steps: Iterable[tuple[Setting, Mapping[str, Tensor]]],
    held: Examples,
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
