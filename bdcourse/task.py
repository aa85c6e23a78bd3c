"""What changes when the input is no picture: one object that all examples of a kind share.

Training, scoring, attacks and defenses ask the task of their data and never the kind of a
tensor: how stored examples become what a network takes, what its outputs say, how good an
answer is. Images are the first task, and stand here; each other one has a room in `tasks`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.augment import Augment, Augmentation
from bdcourse.likelihoods import SOFTMAX, Likelihood
from bdcourse.models import evaluating, laid_out

if TYPE_CHECKING:
    from bdcourse.examples import Examples


@dataclass(frozen=True)
class Usual:
    """How a task is measured where nothing else is asked for, by a table say.

    Args:
        data: name of its drawn set.
        recipe: entries of `bench.recipes.Recipe` with which its victims are trained: the
            network, epochs, batch, lr, optimizer, rate and so on.
        attacks: names of those that a table takes.
    """

    data: str
    recipe: dict[str, Any]
    attacks: tuple[str, ...]


# By name of the task; the rooms in `bdcourse.tasks` add theirs.
USUAL: dict[str, Usual] = {"images": Usual("signs", {}, ("BadNets", "Blended"))}

Answers = Any  # labels (n,), or whatever else a task answers with, one entry an example


class Task:
    """One kind of input with one kind of answer; this one tells classes apart.

    A task whose answers are classes needs `check_inputs` and, where examples are stored
    in another form than networks take, `inputs` and `stored`. Others also bring a
    likelihood of their own, `answer`, `correct` and `quality`.

    Attributes:
        name: in rows and on the command line; one task has one name.
        one, many: what an example is called, for sentences.
        likelihood: log p(target | outputs): of training, of the Fisher, of every repair.
        plain: the augmentation that changes nothing.
        pad: by how much examples are usually moved in training, see `augmentation`.
        bounds: what every number of an input lies in; None where nothing bounds them.
        step: a small change of such a number, in its own units: 1/255 of a pixel. None
            where that depends on the data, or inputs are no numbers but a list's entries.
    """

    name: str = "classes"
    one: str = "example"
    many: str = "examples"
    likelihood: Likelihood = SOFTMAX
    plain: Augmentation = Augmentation()
    pad: int = 0
    bounds: tuple[float, float] | None = None
    step: float | None = None

    # ------------------------------------------------------------ examples

    def check(self, x: Tensor, y: Tensor, classes: tuple[str, ...], what: str) -> None:
        """Refuse stored examples x (n, ...) and targets y (n, ...) of another kind.

        Args:
            what: the set's name, for the sentence.
        """
        self.check_stored(x, what)
        if y.dtype != torch.int64 or y.shape != x.shape[:1]:
            raise ValueError(
                f"{what}.y must be int64 of shape ({len(x)},), one label per {self.one}, not "
                f"{str(y.dtype).removeprefix('torch.')} {tuple(y.shape)}."
            )
        k = len(classes)
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < k:
            raise ValueError(
                f"labels run from {int(y.min())} to {int(y.max())}, but there are {k} "
                f"classes, so they must lie in 0..{k - 1}."
            )

    def check_stored(self, x: Tensor, what: str) -> None:
        """Refuse a tensor that holds no examples as they are stored."""

    def inputs(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """What a network takes, of stored examples; what it takes already comes back.

        Args:
            dtype: of the network, for numbers that are no positions in a list.
        """
        return x if dtype is None or not x.is_floating_point() else x.to(dtype)

    def stored(self, inputs: Tensor) -> Tensor:
        """The other way: inputs as they are stored, rounded where that is needed."""
        return inputs

    def clip(self, inputs: Tensor) -> Tensor:
        """Inputs that somebody has moved, back inside :attr:`bounds`."""
        return inputs if self.bounds is None else inputs.clamp(*self.bounds)

    def check_inputs(
        self, x: object, name: str = "x", shape: tuple[int, ...] | None = None
    ) -> Tensor:
        """Refuse what is no batch of inputs, of one shape if it is given.

        Raises:
            ValueError: one sentence, which starts with `name`.
        """
        if not isinstance(x, Tensor) or not x.ndim:
            raise ValueError(f"{name} must be a tensor of {self.many}, not {require.kind(x)}.")
        if shape is not None and tuple(x.shape[1:]) != tuple(shape):
            raise ValueError(
                f"{name} must hold {self.many} of shape {tuple(shape)}, not {tuple(x.shape[1:])}."
            )
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise ValueError(f"{name} must be finite numbers.")
        return x

    def augmentation(self, pad: int, flip: bool | str = False) -> Augmentation:
        """What victims of this task are usually trained with: moved by up to `pad`.

        Raises:
            ValueError: the task's examples cannot be moved or mirrored.
        """
        if pad or flip:
            raise ValueError(f"{self.many} are neither moved nor mirrored; take pad=0.")
        return self.plain

    def check_targets(self, y: object, n: int, k: int | None = None, name: str = "y") -> Tensor:
        """Refuse what are no targets of n examples: int64 labels (n,), below k if given."""
        return require.labels(y, n, k, name)

    def labels(self, y: Tensor) -> Tensor | None:
        """The classes that occur in targets y (n, ...), int64, one an occurrence; None
        where answers are no classes."""
        return y

    # ------------------------------------------------------------ answers

    def check_outputs(
        self, out: object, n: int, k: int | None = None, name: str = "the model"
    ) -> Tensor:
        """Refuse what a network says of n examples if it is no row of logits for each.

        Args:
            k: classes that it must tell apart, if that is asked.
        """
        if not isinstance(out, Tensor):
            raise ValueError(
                f"{name} answers with {require.kind(out)}, not with a tensor; wrap it in a "
                "module whose forward returns the logits alone, of shape (n, k)."
            )
        if out.ndim != 2 or len(out) != n or not out.is_floating_point():
            raise ValueError(
                f"{name} must answer with logits of shape (n, k), not with "
                f"{require.kind(out)} for {n} {self.many}."
            )
        if k is not None and out.shape[1] != k:
            raise ValueError(
                f"{name} tells {out.shape[1]} classes apart, but the {self.many} have "
                f"{k}; take the {self.many} that it was trained on."
            )
        return out

    def check_learnable(self, out: object, y: Tensor, data: Examples) -> None:
        """Refuse outputs of a training batch of which its targets y cannot be learned."""
        k = data.k
        rows = isinstance(out, Tensor) and out.ndim == 2 and out.is_floating_point()
        if not isinstance(out, Tensor) or not rows or len(out) != len(y):
            raise ValueError(
                f"the model must answer with float logits of shape ({self.many}, classes), "
                f"here ({len(y)}, {k}), not {require.kind(out)}."
            )
        most = 1 + max(int(data.y.max()), int(y.max()))
        if out.shape[1] < most:
            raise ValueError(
                f"the labels run to {most - 1}, but the model has {out.shape[1]} outputs; "
                f"build it with {k} classes."
            )

    @torch.no_grad()
    def outputs(
        self, model: nn.Module, x: Tensor, batch: int = 100, what: str = "the network's answers"
    ) -> Tensor:
        """Eval-mode outputs of stored examples or inputs x, in float32.

        The model's train/eval mode is put back afterwards.

        Args:
            batch: so many at once. A CPU's caches hold the maps of no more than 100 images;
                500 take a quarter longer.
            what: the outputs are called in a refusal.

        Raises:
            ValueError: no such inputs; answers that are not one row of finite numbers
                for each example.
            RuntimeError: the network fails on them.
        """
        require.module(model)
        require.whole("batch", batch, 1)
        self.check_asked(model, x)
        device = next(chain(model.parameters(), model.buffers()), x).device
        with evaluating(model):
            out = [self._said(model, self.inputs(part.to(device))) for part in x.split(batch)]
            return require.finite(torch.cat(out), what)

    def check_asked(self, model: nn.Module, x: object) -> None:
        """Refuse what a network cannot be asked about."""
        self.check_inputs(x)

    def _said(self, model: nn.Module, x: Tensor) -> Tensor:
        """What a network says of inputs x as float32 logits, at least two to a row."""
        said = self._run(model, x)
        rows = isinstance(said, Tensor) and said.ndim == 2 and said.is_floating_point()
        if not rows or said.shape[1] < 2:
            raise ValueError(
                "the network must answer with logits of shape (n, k), one for each of at "
                f"least two classes, but answers with {require.kind(said)}; wrap it in a "
                "module whose forward returns those."
            )
        return said.float()

    def _run(self, model: nn.Module, x: Tensor) -> Tensor:
        """What a network says of inputs x, whatever that is."""
        try:
            return model(laid_out(model, x))
        except torch.OutOfMemoryError:  # says more than we could
            raise
        except Exception as e:  # anybody's network may raise anything
            if isinstance(e, ValueError) and str(e).endswith("."):
                raise  # a sentence of ours, as of Normalize
            raise RuntimeError(
                f"the network fails on {self.many} of shape {tuple(x.shape[1:])} with a "
                f"{type(e).__name__} ({require.reason(e)})."
            ) from e

    def answer(
        self,
        model: nn.Module,
        x: Tensor,
        batch: int = 100,
        k: int | None = None,
        what: str = "the network's answers",
    ) -> Answers:
        """What the network answers to stored examples or inputs x: labels (n,) int64.

        Args:
            k: classes that it must tell apart, if that is asked.
            what: the outputs are called in a refusal.

        Raises:
            ValueError, RuntimeError: see :meth:`outputs`.
        """
        out = self.outputs(model, x, batch, what)
        if len(out) != len(x):
            raise ValueError(
                f"the network gives {len(out)} answers to {len(x)} {self.many}; it must "
                f"give each {self.one} one."
            )
        if k is not None and out.shape[1] != k:
            raise ValueError(
                f"the network answers with {out.shape[1]} logits, but the test {self.many} "
                f"have {k} classes; the two do not belong together."
            )
        return out.argmax(1)

    def correct(self, answers: Answers, y: Tensor) -> Tensor:
        """Which answers are right, bool (n,)."""
        return agree(answers, y)

    def quality(self, answers: Answers, y: Tensor) -> dict[str, float]:
        """How good answers are, by name; the first is the headline, a share in 0..1."""
        right = self.correct(answers, y)
        return {"acc": int(right.sum()) / len(right)}  # exact, without float64

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"

    def __deepcopy__(self, memo: dict) -> Task:
        return self  # a task is one object, however often what knows it is copied


class PixelTask(Task):
    """What is stored as uint8 pixels, of which networks take [0, 1].

    Attributes:
        axes: of a batch, for sentences and checks.
    """

    axes: str = "n, c, h, w"
    pad = 2
    bounds = (0.0, 1.0)
    step = 1 / 255

    def _is_stored(self, x: Tensor) -> bool:
        return x.dtype == torch.uint8 and x.ndim == self.axes.count(",") + 1

    def check_stored(self, x: Tensor, what: str) -> None:
        if not self._is_stored(x):
            raise ValueError(
                f"{what}.x must be uint8 of shape ({self.axes}), not "
                f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}; "
                "convert pixels in [0, 1] with (255 * x).round().to(torch.uint8)."
            )
        if 0 in x.shape[1:]:
            raise ValueError(
                f"{what}.x of shape {tuple(x.shape)} holds {self.many} without pixels."
            )

    def inputs(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        if x.dtype == torch.uint8:
            return x.to(dtype or torch.float32) / 255
        return super().inputs(x, dtype)

    def stored(self, inputs: Tensor) -> Tensor:
        return quantize(inputs)

    def check_inputs(
        self, x: object, name: str = "x", shape: tuple[int, ...] | None = None
    ) -> Tensor:
        return require.pixels(x, name, shape, self.axes, self.many)

    def check_asked(self, model: nn.Module, x: object) -> None:
        self._asked(x)

    def _asked(self, x: object) -> Tensor:
        """x, if it is stored examples or inputs, and at least one pixel of them."""
        if not isinstance(x, Tensor) or not self._is_stored(x):
            x = self.check_inputs(x)
        if not x.numel():
            raise ValueError(f"x must hold at least one pixel, but is {require.kind(x)}.")
        return x


class ImageTask(PixelTask):
    """Pictures with one label each: uint8 (n, c, h, w), of which networks take [0, 1]."""

    name = "images"
    one, many = "image", "images"
    plain = Augment(pad=0)

    def augmentation(self, pad: int, flip: bool | str = False) -> Augmentation:
        return Augment(pad, flip)

    def check_asked(self, model: nn.Module, x: object) -> None:
        x = self._asked(x)
        # A normalization by the network's owner spreads one channel over three, in silence.
        if x.shape[1] == 1 and first_channels(model) == 3:
            raise ValueError(
                "the network's first convolution takes 3 channels, but the images have 1; "
                "pass color images, or gray ones with their channel repeated."
            )


IMAGES = ImageTask()


def agree(answers: Tensor, y: Tensor) -> Tensor:
    """Which answers are y, whole sequences where they are such: bool (n,)."""
    same = answers.to(y.device) == y
    return same if same.ndim < 2 else same.flatten(1).all(1)


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


def first_channels(model: nn.Module) -> int | None:
    """Channels that the first convolution in order of definition takes, if any."""
    found = (m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    return next(found, None)


def task_of(examples: Examples | object) -> Task:
    """The task of examples; what is none, such as a bare pair of tensors, has images'
    rule for uint8 and takes the rest as it is."""
    return getattr(examples, "task", IMAGES)
