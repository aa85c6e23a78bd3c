"""What all attacks share: roles, labels, poisoning a set, and steering a training."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse.images import ROLES, Images, Poisoned, quantize


@dataclass(frozen=True)
class Attack:
    """Base of the attacks; a new one needs `trigger` and little else.

    Args:
        target: the label that the attacker wants (all-to-one).
        all_to_all: wants label (y + 1) mod classes instead.
        classes: number of classes; needed for all-to-all.
        clean_label: poison images of the target class only, so that no label is wrong.

    Attributes:
        threat: "data" if the attacker only adds to the training data, "training" if he
            runs the training.
        stands_in: what replaces an asset of the original attack, for every table; ""
            if nothing does.
        before_augment: whether an attack that rewrites batches gets them before the
            random crop, as a trigger on the image itself does.
        needs_model: whether `craft` computes on a clean classifier.
        gate: the ASR from which a victim counts as backdoored.
        usual_rate: the poison rate of the attack's paper or of the benchmarks.
    """

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

    def __post_init__(self) -> None:
        if self.all_to_all and not self.classes:
            raise ValueError("an all-to-all attack needs classes=..., their number.")
        if self.all_to_all and self.clean_label:
            raise ValueError(
                "an attack cannot be both all-to-all and clean-label: sending class y "
                "to y + 1 needs wrong labels."
            )
        if self.clean_label and self.threat == "training":
            raise ValueError(
                f"{type(self).__name__} changes labels batch by batch and has no "
                "clean-label form."
            )
        if not getattr(self, "cross_rate", 0) >= 0:
            raise ValueError(
                f"cross_rate must not be negative, but is {self.cross_rate}."
            )
        if self.target < 0 or (self.classes and self.target >= self.classes):
            raise ValueError(
                f"target {self.target} is not among the labels 0..{self.classes - 1}."
                if self.classes
                else f"target must not be negative, but is {self.target}."
            )

    @classmethod
    def craft(
        cls,
        images: Images,
        generator: torch.Generator,
        *,
        model: nn.Module | None = None,
        **options,
    ) -> Attack:
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
        return self.trigger(x)

    def goal(self, y: Tensor) -> Tensor:
        """The label that the attacker wants for images of true class y, (n,) int64."""
        return (
            (y + 1) % self.classes
            if self.all_to_all
            else torch.full_like(y, self.target)
        )

    def counts(self, y: Tensor) -> Tensor:
        """Which test images enter the ASR, bool (n,): those the attack must move."""
        return self.goal(y) != y

    def cross(
        self, x: Tensor, y: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor] | None:
        """Images that look attacked and must keep their label: (pixels, labels).

        None for attacks without such a promise. Their accuracy is `Scores.cross`.
        """
        return None

    def choose(
        self, y: Tensor, rate: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
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
        images: Images,
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
        if stamp not in ("before", "after"):
            raise ValueError(f'stamp must be "before" or "after", not {stamp!r}.')
        if self.threat == "training":
            raise ValueError(
                f"{type(self).__name__} changes batches during training, it cannot "
                "poison a set; train with victims.make, or fit(..., steering=...)."
            )
        if stamp == "after" and type(self).plant is not Attack.plant:
            raise ValueError(
                f"{type(self).__name__} plants other images than its test trigger; it "
                'can only be stamped "before" augmentation.'
            )
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
                pixels = x[rows].float() / 255
                x[rows] = quantize(self.plant(pixels, images.y[rows], generator))
        late = self.trigger if stamp == "after" else None
        return Poisoned(x, y, images.classes, role, late)

    def _possible(self, images: Images, rate: float) -> None:
        """Refuse a rate or a set with which nothing can be attacked."""
        if not 0 <= rate <= 1:
            raise ValueError(f"rate must lie in 0..1 (0.1 is 10 %), not {rate}.")
        self.check(images)
        if len(images) and len(images.y.unique()) < 2:
            raise ValueError("all images have one label; an attack needs two classes.")

    def steer(
        self,
        model: nn.Module,
        data: Images,
        generator: torch.Generator,
        total: int,
        *,
        rate: float | None = None,
    ) -> Steering:
        """The attacker's part in a training of `total` steps; see :class:`Steering`.

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
        self._possible(data, rate)
        if bool(getattr(self, "trained", False)):
            raise ValueError(
                f"this {type(self).__name__} was trained with a victim already; make a "
                "new one."
            )
        return self.steering(Training(model, data, generator, total, rate))

    def steering(self, run: Training) -> Steering:
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

    def check(self, images: Images) -> None:
        """Refuse images that this attack cannot poison; one sentence says why."""
        if images.k < 2:
            raise ValueError("an attack needs two classes, the set has one.")
        if not self.all_to_all and self.target >= images.k:
            raise ValueError(
                f"target {self.target} is no label of this set; labels are "
                f"0..{images.k - 1}."
            )
        if self.all_to_all and self.classes != images.k:
            raise ValueError(
                f"the attack is for {self.classes} classes, the set has {images.k}."
            )

    def spec(self) -> tuple[dict, dict[str, Tensor]]:
        """(plain settings, tensors) from which the attack can be rebuilt.

        Networks become tensors named "field.parameter". Fields marked with the metadata
        `private` stay behind: the attacker needs them to poison, nobody to measure.
        """
        plain, tensors = {"name": type(self).__name__}, {}
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
                plain[f.name] = value
        return plain, tensors


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


NO_ROWS = torch.zeros(0, dtype=torch.int64)


def pick(
    rows: Tensor, n: int, generator: torch.Generator, what: str, instead: str = ""
) -> Tensor:
    """`n` of `rows` at random; `what` wants them, for the message if they are too few,
    and `instead` says what else would do."""
    if n > len(rows):
        raise ValueError(
            f"{what} asks for {n} images, but only {len(rows)} have the right class; "
            f"lower the rate, which is a share of the whole set{instead}."
        )
    return rows[torch.randperm(len(rows), generator=generator)[:n]]


def fresh_seed(generator: torch.Generator) -> int:
    """A seed drawn from `generator`, for what can only be seeded."""
    return int(torch.randint(2**31, (1,), generator=generator, device=generator.device))


def uniform(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) from the generator's device, on that of `like`."""
    drawn = torch.rand(shape, generator=generator, device=generator.device)
    return drawn.to(like)


def random_pixels(images: Images, n: int, generator: torch.Generator) -> Tensor:
    """Pixels of n images drawn with replacement, in [0, 1], (n, c, h, w)."""
    rows = torch.randint(
        len(images), (n,), generator=generator, device=generator.device
    )
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
    return F.interpolate(
        picture[None], size, mode="bilinear", align_corners=False, antialias=True
    )[0]


class Steering:
    """An attacker inside the training loop; one object lives through one training.

    `fit` calls, for each step: `rewrite` on the batch; the model on what came back;
    `loss`; then, after the model's own update, `step`.

    Attributes:
        before_augment: `rewrite` gets the images as they are, and what it returns is
            cropped and mirrored; otherwise it gets the augmented batch.
        resumable: there is no state that a checkpoint of `fit` would miss.
    """

    before_augment = False
    resumable = False

    def rewrite(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The batch as the attacker wants it: pixels in [0, 1], labels, roles."""
        raise NotImplementedError

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """What the model (and whatever `rewrite` kept a gradient to) minimizes."""
        return F.cross_entropy(logits, y)

    def step(self) -> None:
        """After the model's update: the attacker's own networks move here."""


class Rewriting(Steering):
    """The steering of attacks that only rewrite batches."""

    def __init__(self, attack: Attack, rate: float, generator: torch.Generator) -> None:
        self.attack, self.rate, self.generator = attack, rate, generator
        self.before_augment = attack.before_augment

    def rewrite(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.attack.rewrite(x, y, self.rate, self.generator)


def shares(n: int, rate: float, cross: float = 0.0) -> tuple[int, int]:
    """(poison rows, cover rows) of a batch of n: rate * n, and `cross` times as many.

    At least one poison row if the rate is not 0; both fit into the batch.
    """
    poison = min(n, max(1, round(rate * n))) if rate > 0 else 0
    return poison, min(n - poison, round(cross * poison))


def assemble(
    x: Tensor, y: Tensor, poisoned: Tensor, labels: Tensor, covers: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The batch x, y with its first rows replaced: (pixels, labels, roles int64).

    Args:
        poisoned: take the place of the first rows, with these `labels`.
        covers: take the place of the rows after those, and keep their label.
    """
    p, c = len(poisoned), len(covers)
    role = torch.full_like(y, ROLES["clean"])
    role[:p] = ROLES["poison"]
    role[p : p + c] = ROLES["cover"]
    pixels = torch.cat([poisoned, covers, x[p + c :]])
    return pixels, torch.cat([labels, y[p:]]), role
