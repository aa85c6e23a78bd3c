"""What all attacks share: roles, labels, poisoning a set, and steering a training."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from types import FunctionType
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse import require
from bdcourse.examples import ROLES, Examples, Poisoned, require_clean
from bdcourse.hooks import Hook, TrainBatch
from bdcourse.images import Images
from bdcourse.task import IMAGES, Task, agree

if TYPE_CHECKING:
    from typing_extensions import Self

# What the methods of an attack are handed, in this order.
HANDED = {
    "trigger": ("x",),
    "apply": ("x", "y"),
    "plant": ("x", "y", "generator"),
    "cross": ("x", "y", "generator"),
    "rewrite": ("x", "y", "rate", "generator"),
    "choose": ("y", "rate", "generator"),
    "goal": ("y",),
    "counts": ("y",),
}


def _looked_at(method: Callable, handed: tuple[str, ...]) -> Callable:
    """The method, behind a look at what it is handed; not for calls from inside it."""

    @functools.wraps(method)
    def checked(self, *args, **named):
        if require.TRUSTED.get():
            return method(self, *args, **named)
        given = dict(zip(handed, args, strict=False)) | named
        if "x" in given:
            self.task.check_inputs(given["x"])
            self.check_shape(tuple(given["x"].shape[1:]))
        if "y" in given:
            of = given.get("x", given["y"])
            n = len(of) if isinstance(of, Tensor) and of.ndim else 0
            self.task.check_targets(given["y"], n, self.classes)
        if "rate" in given:
            require.fraction("rate", given["rate"])
        if "generator" in given:
            require.generator(given["generator"])
        with require.trusted():
            return method(self, *args, **named)

    return checked


def _crafting(craft: Callable) -> Callable:
    """`craft`, behind a look at what it is handed, the names of options too."""
    own = {*inspect.signature(craft).parameters} - {"cls", "options"}

    @functools.wraps(craft)
    def checked(cls, images, generator, **options):
        if isinstance(images, Poisoned):
            raise ValueError(
                "images must be clean Images, not Poisoned ones; craft the attack for "
                "the set before it is poisoned."
            )
        require_clean(images, "images")
        require.generator(generator)
        if options.get("model") is not None:
            require.module(options["model"])
        known = own | {f.name for f in fields(cls) if f.init}
        if wrong := options.keys() - known:
            known -= {"images", "generator"}
            raise ValueError(
                f"{cls.__name__} has no option {min(wrong)!r}"
                f"{require.meant(min(wrong), known)}; choose from "
                f"{', '.join(sorted(known))}."
            )
        return craft(cls, images, generator, **options)

    return checked


@dataclass(frozen=True)
class Attack:
    """Base of the attacks; a new one needs `trigger` and little else.

    Whoever calls `trigger`, `apply`, `plant`, `cross`, `rewrite`, `choose`, `goal`, `counts` or
    `craft` from outside gets a ValueError for pixels that are not floats in [0, 1], for
    images of another shape than the attack's (`check_shape`), for labels that are not
    int64, and the like. A new attack need not look.

    Args:
        target: the label that the attacker wants (all-to-one).
        all_to_all: wants label (y + 1) mod classes instead.
        classes: number of classes; needed for all-to-all.
        clean_label: poison images of the target class only, so that no label is wrong.

    Attributes:
        task: of the examples that it attacks; pixels and images below stand for these.
        threat: "data" if the attacker only adds to the training data, "training" if they
            run the training.
        stands_in: what replaces an asset of the original attack, for every table; ""
            if nothing does.
        before_augment: whether an attack that rewrites batches gets them before the
            random crop, as a trigger on the image itself does.
        needs_model: whether `craft` computes on a clean classifier.
        gate: the ASR from which a victim counts as backdoored.
        usual_rate: the poison rate of the attack's paper or of the benchmarks.
    """

    task: ClassVar[Task] = IMAGES
    threat: ClassVar[Literal["data", "training"]] = "data"
    stands_in: ClassVar[str] = ""
    before_augment: ClassVar[bool] = False
    needs_model: ClassVar[bool] = False
    gate: ClassVar[float] = 0.95
    usual_rate: ClassVar[float] = 0.1

    target: int = 0
    all_to_all: bool = False
    classes: int | None = None
    clean_label: bool = False

    def __init_subclass__(cls, **options) -> None:
        super().__init_subclass__(**options)
        _guard(cls)
        for name in ("__repr__", "__eq__", "__hash__"):  # not those of a dataclass
            if name not in vars(cls):
                setattr(cls, name, getattr(Attack, name))

    def __post_init__(self) -> None:
        self._whole("target", 0)
        for name in ("all_to_all", "clean_label"):
            require.truth(name, getattr(self, name))
        if self.classes is not None:
            self._whole("classes", 1)
        if self.all_to_all and not self.classes:
            raise ValueError("an all-to-all attack needs classes=..., their number.")
        if self.all_to_all and self.clean_label:
            raise ValueError(
                "an attack cannot be both all-to-all and clean-label: sending class y "
                "to y + 1 needs wrong labels."
            )
        if self.clean_label and self.threat == "training":
            raise ValueError(
                f"{type(self).__name__} changes labels batch by batch and has no clean-label form."
            )
        if hasattr(self, "cross_rate"):
            require.number("cross_rate", self.cross_rate, 0)
        if self.classes and self.target >= self.classes:
            raise ValueError(f"target {self.target} is not among the labels 0..{self.classes - 1}.")

    def __repr__(self) -> str:
        """The class and the settings that are not usual, on one line."""
        usual = {f.name: f.default for f in fields(self) if f.repr}
        plain = {k: v for k, v in self.spec()[0].items() if k in usual and v != usual[k]}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in plain.items())})"

    def __eq__(self, other: object) -> bool:
        """The same class with the same settings, patterns and networks."""
        if type(other) is not type(self):
            return NotImplemented
        (plain, mine), (others, theirs) = self.spec(), other.spec()
        return (
            plain == others
            and mine.keys() == theirs.keys()
            and all(torch.equal(v, theirs[k]) for k, v in mine.items())
        )

    def __hash__(self) -> int:
        return hash(repr(self))

    def _whole(self, name: str, low: int, high: int | None = None) -> None:
        """Refuse another value of this field than a whole number; keep it as an int."""
        value = require.whole(name, getattr(self, name), low, high)
        object.__setattr__(self, name, value)

    @classmethod
    def craft(
        cls,
        images: Images,
        generator: torch.Generator,
        *,
        model: nn.Module | None = None,
        **options,
    ) -> Self:
        """The attack with the field's defaults, made for these images.

        Fits sizes and class counts and, where the attack has such, computes a pattern
        on `model`, a clean classifier that the attacker has, or trains an encoder.

        Args:
            images: what the attacker knows; usually the training set.
            generator: decides everything random.
            options: arguments of the class, over its defaults.
        """
        return cls(**with_classes(options, images))

    def trigger(self, x: Tensor) -> Tensor:
        """Put the trigger on pixels x in [0, 1], (n, c, h, w); returns a new tensor."""
        raise NotImplementedError

    def plant(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """What poisoned training images get; most attacks plant their test trigger.

        Args:
            x: pixels in [0, 1], (n, c, h, w); y: their true labels.
        """
        return self.apply(x, y)

    def goal(self, y: Tensor) -> Tensor:
        """The label that the attacker wants for images of true class y, (n,) int64."""
        if not self.all_to_all:
            return torch.full_like(y, self.target)
        assert self.classes is not None  # or there would be no such attack
        return (y + 1) % self.classes

    def counts(self, y: Tensor) -> Tensor:
        """Which test images enter the ASR, bool (n,): those the attack must move."""
        return ~agree(self.goal(y), y)

    def apply(self, x: Tensor, y: Tensor) -> Tensor:
        """`trigger`, for attacks that need the true targets y to place it."""
        return self.trigger(x)

    def reached(self, answers: Tensor, y: Tensor) -> Tensor:
        """Which answers are what the attacker wants, bool (n,)."""
        return agree(answers, self.goal(y))

    def also(self, answers: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Other outcomes worth telling by name, bool (n,): their shares join `Scores.more`."""
        return {}

    def cross(
        self, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor] | None:
        """Images that look attacked and must keep their label: (pixels, labels).

        None for attacks without such a promise. Their accuracy is `Scores.cross`.
        """
        return None

    def choose(self, y: Tensor, rate: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows to poison and rows to use as cover, given labels y (n,), disjoint.

        round(rate * n) rows of all classes; of the target class for clean-label.
        """
        n = round(rate * len(y))
        if not self.clean_label:
            return torch.randperm(len(y), generator=generator)[:n], NO_ROWS
        own = (y.cpu() == self.target).nonzero().flatten()
        of_class = y.bincount(minlength=1)
        label, most = int(of_class.argmax()), int(of_class.max())
        instead = f", or take target={label}, which has {most}" if most >= n else ""
        what = f"a clean-label attack at rate {rate:g}"
        return pick(own, n, generator, what, instead), NO_ROWS

    def poison(
        self,
        images: Examples,
        rate: float,
        generator: torch.Generator,
        *,
        stamp: Literal["before", "after"] = "before",
    ) -> Poisoned:
        """Poison round(rate * n) images, of all classes unless the attack says which.

        Args:
            rate: share of the whole set, 0..1.
            generator: chooses the images, and whatever the planted trigger leaves open.
            stamp: "before" writes the trigger into the pixels, as an attacker who only
                publishes data must; the victim's augmentation then moves or cuts it.
                "after" leaves the pixels to training, which stamps behind augmentation.

        Raises:
            ValueError: rate outside 0..1, more images than the attack can use, or a
                target that is not a label of the set.
        """
        self._possible(images, rate)
        require.generator(generator)
        require.choice("stamp", stamp, ("before", "after"))
        if self.threat == "training":
            raise ValueError(
                f"{type(self).__name__} changes batches during training, it cannot "
                "poison a set; train with victims.make, or fit(..., hook=attack.steer)."
            )
        own = type(self)
        if stamp == "after" and (own.plant is not Attack.plant or own.apply is not Attack.apply):
            raise ValueError(
                f"{own.__name__} plants other images than its test trigger, or needs their "
                'targets for it; it can only be stamped "before" augmentation.'
            )
        with require.trusted():
            return self._poisoned(images, rate, generator, stamp)

    def _poisoned(
        self, images: Examples, rate: float, generator: torch.Generator, stamp: str
    ) -> Poisoned:
        chosen, cover = self.choose(images.y, rate, generator)
        device = images.x.device
        x, y = images.x, images.y.clone()
        role = torch.zeros(len(images), dtype=torch.int8, device=device)
        chosen = chosen.to(device)
        role[chosen] = ROLES["poison"]
        role[cover.to(device)] = ROLES["cover"]
        y[chosen] = self.goal(y[chosen])
        if stamp == "before":
            x = x.clone()
            # In pieces: 50,000 images as floats would take most of a laptop's memory,
            # and small pieces stay in its cache.
            for rows in torch.cat([chosen, cover.to(device)]).split(500):
                if not len(rows):
                    continue
                inputs = self.task.inputs(x[rows])
                x[rows] = self.task.stored(self.plant(inputs, images.y[rows], generator))
        late = self.trigger if stamp == "after" else None
        return Poisoned(x, y, images.classes, role, late, images.task)

    def _possible(self, images: Examples, rate: float) -> None:
        """Refuse a rate or a set with which nothing can be attacked."""
        require.fraction("rate", rate)
        if isinstance(images, Poisoned):
            raise ValueError(
                "images must be clean Images, not Poisoned ones: a second poisoning "
                "would forget who was poisoned in the first."
            )
        require_clean(images, "images")
        self.check(images)
        labels = images.task.labels(images.y)
        if labels is not None and len(labels.unique()) < 2:
            raise ValueError(f"all {images.task.many} have one label; an attack needs two classes.")

    def steer(
        self,
        model: nn.Module,
        data: Images,
        generator: torch.Generator,
        total: int,
        *,
        rate: float | None = None,
    ) -> Hook:
        """The attacker's part in a training of `total` steps; see :class:`Hook`.

        Args:
            rate: share of each batch that is poisoned; default `usual_rate`. A batch
                gets at least one poisoned image.
        """
        if self.threat == "data":
            raise ValueError(
                f"{type(self).__name__} only poisons data and cannot steer a training; "
                "train on what its poison method returns."
            )
        rate = self.usual_rate if rate is None else rate
        require.module(model)
        require.generator(generator)
        require.whole("total", total, 1)
        self._possible(data, rate)
        if bool(getattr(self, "trained", False)):
            raise ValueError(
                f"this {type(self).__name__} was trained with a victim already; make a new one."
            )
        return self.steering(Training(model, data, generator, total, rate))

    def steering(self, run: Training) -> Hook:
        """What `steer` returns; for attacks that do more than rewrite batches."""
        return Rewriting(self, run.rate, run.generator)

    def rewrite(
        self, x: Tensor, y: Tensor, rate: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One training batch, changed: (pixels, labels, roles int64).

        Args:
            x: augmented pixels in [0, 1], (n, c, h, w); y: true labels.
            rate: share of the batch that becomes poison.
        """
        raise NotImplementedError

    def check(self, images: Examples) -> None:
        """Refuse images that this attack cannot poison; one sentence says why."""
        if not isinstance(images, Examples):
            raise ValueError(f"images must be Images, not {require.kind(images)}.")
        if images.task.name != self.task.name:
            raise ValueError(
                f"{type(self).__name__} attacks {self.task.many}, but these are "
                f"{images.task.many}; take an attack of their task."
            )
        if images.k < 2:
            raise ValueError("an attack needs two classes, the set has one.")
        if not self.all_to_all and self.target >= images.k:
            raise ValueError(
                f"target {self.target} is no label of this set; labels are 0..{images.k - 1}."
            )
        if self.all_to_all and self.classes != images.k:
            raise ValueError(f"the attack is for {self.classes} classes, the set has {images.k}.")
        self.check_shape(images.shape)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Refuse images of a shape (c, h, w) that this attack cannot stamp."""

    def spec(self) -> tuple[dict, dict[str, Tensor]]:
        """(plain settings, tensors) from which the attack can be rebuilt.

        Networks become tensors named "field.parameter". Fields marked with the metadata
        `private` stay behind: the attacker needs them to poison, nobody to measure.
        """
        plain: dict = {"name": type(self).__name__}
        tensors: dict[str, Tensor] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.metadata.get("private"):
                continue
            if isinstance(value, nn.Module):
                state = value.state_dict()
                tensors |= {f"{f.name}.{k}": v.clone() for k, v in state.items()}
            elif isinstance(value, Tensor):
                tensors[f.name] = value
            else:
                number = isinstance(value, np.generic)
                plain[f.name] = value.item() if number else value
        return plain, tensors


def _guard(cls: type[Attack]) -> None:
    """Put the methods that a class defines behind their looks."""
    for name, handed in HANDED.items():
        if isinstance(vars(cls).get(name), FunctionType):
            setattr(cls, name, _looked_at(vars(cls)[name], handed))
    if isinstance(craft := vars(cls).get("craft"), classmethod):
        cls.craft = classmethod(_crafting(craft.__func__))  # type: ignore[assignment, method-assign]  # a look at itself


_guard(Attack)


class Training(NamedTuple):
    """A training that an attacker steers."""

    model: nn.Module
    data: Images
    generator: torch.Generator
    total: int  #: steps
    rate: float  #: share of each batch to poison


def with_classes(options: dict, images: Images) -> dict:
    """Arguments of an attack; an all-to-all one learns the number of classes."""
    if options.get("all_to_all"):
        return {"classes": images.k, **options}
    return options


CHW = ("channels", "height", "width")


def check_picture(
    name: str, value: object, axes: tuple, top: float = 1.0, *, below: bool = False
) -> None:
    """Refuse what is no float tensor with values in [0, top], or below top.

    Args:
        axes: of the tensor, names or lengths.
    """
    if (
        not isinstance(value, Tensor)
        or not value.is_floating_point()
        or not value.numel()
        or value.ndim != len(axes)
        or any(isinstance(a, int) and a != n for a, n in zip(axes, value.shape, strict=True))
    ):
        shape = f"({', '.join(map(str, axes))}{',' if len(axes) == 1 else ''})"
        raise ValueError(
            f"{name} must be a float tensor of shape {shape}, not {require.kind(value)}."
        )
    low, high = float(value.min()), float(value.max())
    if not (0 <= low <= high <= top + 1e-6) or (below and high >= top):
        raise ValueError(
            f"{name} must lie in [0, {top:g}{')' if below else ']'}, but runs from "
            f"{low:g} to {high:g}."
        )


def device_of(model: nn.Module) -> torch.device:
    """Where the model's weights are; the CPU if it has none."""
    return next(model.parameters(), torch.empty(0)).device


@contextmanager
def asking(model: nn.Module, shape: tuple[int, ...], k: int) -> Iterator[None]:
    """Inside the `with`, a classifier is asked; if it cannot answer, say for what."""
    try:
        yield
    except (RuntimeError, LookupError, TypeError, AttributeError) as e:
        if isinstance(e, torch.OutOfMemoryError):
            raise
        raise RuntimeError(
            f"model cannot be asked, as told above; it must be a classifier of images "
            f"of shape {tuple(shape)} with {k} classes."
        ) from e


NO_ROWS = torch.zeros(0, dtype=torch.int64)


def pick(rows: Tensor, n: int, generator: torch.Generator, what: str, instead: str = "") -> Tensor:
    """`n` of `rows` at random; `what` wants them, for the message if they are too few,
    and `instead` says what else would do."""
    if n > len(rows):
        raise ValueError(
            f"{what} asks for {n} images, but only {len(rows)} have the right class; "
            f"lower the rate, which is a share of the whole set{instead}."
        )
    return rows[torch.randperm(len(rows), generator=generator)[:n]]


def random_pixels(images: Images, n: int, generator: torch.Generator) -> Tensor:
    """Pixels of n images drawn with replacement, in [0, 1], (n, c, h, w)."""
    rows = torch.randint(len(images), (n,), generator=generator, device=generator.device)
    return images[rows].pixels()


def by_content(x: Tensor, m: int) -> Tensor:
    """A number in 0..m-1 for each image of x (n, c, h, w) that its pixels decide: (n,).

    For triggers that vary from image to image: the same image always gets the same one,
    however it is batched and on every machine, so an ASR can be measured again.
    """
    levels = x.float().clamp(0, 1).mul_(255).round_()
    # Whole numbers below 2^24 add up to the same in every order, so long as the image
    # has at most 1,000 columns.
    j = torch.arange(levels.shape[-1], device=x.device)
    rows = levels.mul_(1 + 37 * j % 61).sum(-1).long().flatten(1)
    i = torch.arange(rows.shape[1], device=x.device)
    return (rows * ((i + 1) * 48271 % 999983)).sum(1) % m


def fit_size(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """A (c, h, w) picture resized to (h, w) = size, or itself."""
    if tuple(picture.shape[-2:]) == tuple(size):
        return picture
    return F.interpolate(picture[None], size, mode="bilinear", align_corners=False, antialias=True)[
        0
    ]


class Rewriting(Hook):
    """The hook of attacks that only rewrite batches."""

    kept = ("generator",)

    def __init__(self, attack: Attack, rate: float, generator: torch.Generator) -> None:
        self.attack, self.rate, self.generator = attack, rate, generator
        self.before_augment = attack.before_augment

    def rewrite(self, batch: TrainBatch) -> TrainBatch:
        return TrainBatch(*self.attack.rewrite(batch.x, batch.y, self.rate, self.generator))


def shares(n: int, rate: float, cross: float = 0.0) -> tuple[int, int]:
    """(poison rows, cover rows) of a batch of n: rate * n, and `cross` times as many.

    At least one poison row if the rate is not 0; both fit into the batch.
    """
    poison = min(n, max(1, round(rate * n))) if rate > 0 else 0
    return poison, min(n - poison, round(cross * poison))


def assemble(x: Tensor, y: Tensor, poisoned: Tensor, labels: Tensor, covers: Tensor) -> TrainBatch:
    """The batch x, y with its first rows replaced.

    Args:
        poisoned: take the place of the first rows, with these `labels`.
        covers: take the place of the rows after those, and keep their label.
    """
    p, c = len(poisoned), len(covers)
    role = torch.full_like(y, ROLES["clean"])
    role[:p] = ROLES["poison"]
    role[p : p + c] = ROLES["cover"]
    pixels = torch.cat([poisoned, covers, x[p + c :]])
    return TrainBatch(pixels, torch.cat([labels, y[p:]]), role)
