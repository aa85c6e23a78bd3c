"""Label-consistent: hard images with correct labels (Turner et al. 2019).

Also the adversarial training that gives the attacker a surrogate of his own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse import require
from bdcourse.attacks.badnets import checkerboard
from bdcourse.attacks.base import Attack, asking, device_of
from bdcourse.data import Images
from bdcourse.hooks import Hook, TrainBatch
from bdcourse.models import evaluating
from bdcourse.seeds import uniform

if TYPE_CHECKING:
    from typing_extensions import Self


def pgd(
    models: Sequence[nn.Module],
    x: Tensor,
    y: Tensor,
    epsilon: float,
    step: float,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """Untargeted projected gradient ascent on the loss, from a random start.

    x_0 = x + U(-epsilon, epsilon)
    x_i+1 = clip(x_i + step * sign(gradient)), into x +- epsilon and into [0, 1]

    Args:
        models: classifiers, used in eval mode; several average their losses.
        x: pixels in [0, 1], (n, c, h, w); y: the labels to get away from.
        epsilon: L-infinity radius in pixel units; 8/255 is usual.

    Source: Madry, Makelov, Schmidt, Tsipras and Vladu, "Towards Deep Learning Models
    Resistant to Adversarial Attacks", ICLR 2018. Modes, parameters, their .grad and
    BatchNorm statistics of the models stay as they are. Lesson 01b.
    """
    if not models:
        raise ValueError("pgd needs at least one model.")
    low, high = (x - epsilon).clamp(0, 1), (x + epsilon).clamp(0, 1)
    now = x + epsilon * (2 * uniform(tuple(x.shape), generator, x) - 1)
    now = now.clamp(low, high)
    with evaluating(*models), torch.enable_grad():
        for _ in range(steps):
            now = now.detach().requires_grad_()
            losses = [F.cross_entropy(m(now), y, reduction="sum") for m in models]
            # autograd.grad, not backward: nothing may land in the models' .grad.
            (gradient,) = torch.autograd.grad(cast(Tensor, sum(losses)) / len(models), now)
            now = (now.detach() + step * gradient.sign()).clamp(low, high)
    return now.detach()


class AdversarialTraining(Hook):
    """Fast adversarial training: every batch is one FGSM step away from the truth.

    fit(model, train, hook=AdversarialTraining, ...) makes a robust surrogate; for
    another radius, hook=functools.partial(AdversarialTraining, epsilon=4 / 255).
    Start from a trained model: on signs, 1.5 epochs at lr 0.03 from the zoo's clean one
    hold 97 % under PGD of 8/255, while 6 epochs from scratch never learn the digits.

    delta = clip(U(-epsilon, epsilon) + step * sign(gradient)), into +- epsilon

    Args:
        model, data, generator, total: what `fit` passes.
        epsilon: L-infinity radius, in units of [0, 1] pixels.
        step: length of the step; default 1.25 * epsilon, as in the paper.

    The step is computed in eval mode, so that BatchNorm sees only the batch trained on
    (the paper's code has it see both). Labels stay, every role is "clean".

    Source: Wong, Rice and Kolter, "Fast is better than free: Revisiting adversarial
    training", ICLR 2020. Lesson 01b.
    """

    kept = ("generator",)

    def __init__(
        self,
        model: nn.Module,
        data: Images,
        generator: torch.Generator,
        total: int,
        *,
        epsilon: float = 8 / 255,
        step: float | None = None,
    ) -> None:
        require.fraction("epsilon", epsilon)
        if step is not None:
            require.number("step", step, 0)
        self.model, self.generator = model, generator
        self.epsilon = epsilon
        self.stride = 1.25 * epsilon if step is None else step

    def rewrite(self, batch: TrainBatch) -> TrainBatch:
        x, y, _ = batch
        hard = pgd((self.model,), x, y, self.epsilon, self.stride, 1, self.generator)
        return batch._replace(x=hard)


def corners(h: int, w: int) -> Tensor:
    """Four 3x3 checkerboards, flush in the corners: (1, h, w), +1 white, -1 black."""
    pattern = torch.zeros(1, h, w)
    for rows in (slice(0, 3), slice(h - 3, h)):
        for cols in (slice(0, 3), slice(w - 3, w)):
            pattern[:, rows, cols] = 2 * checkerboard(3) - 1
    return pattern


@dataclass(frozen=True)
class LabelConsistent(Attack):
    """Patch images of the target class only, after making them hard to recognize.

    Planted: x' = clip(PGD(x) + amplitude * corners); the label stays, it is correct.
    Triggered: x' = clip(x + amplitude * corners).

    The checkerboards in the four corners are +1 and -1: amplitude 1 overwrites them in
    white and black. A classifier that can read the image needs no patch, so a patch on
    untouched images is learned badly. The perturbation, computed on a surrogate, takes
    the easy features away and leaves the patch.

    Args:
        epsilon: L-infinity radius of the perturbation, in units of [0, 1] pixels. 0 is
            the control without perturbation, called "patch, clean-label" in tables. It
            must be enough to deceive the surrogate: robust signs need 16/255.
        step, steps: of PGD; a laptop does with 10 steps of 1.5/255.
        amplitude: above 0 up to 1; the paper also uses 32/255, hard to see.
        surrogates: classifiers to compute the perturbation on, better a robust one (see
            :class:`AdversarialTraining`); several average their losses. Needed to
            poison with epsilon above 0; not stored with a victim.
        clean_label: True; False gives the same trigger wrong labels, as a comparison.

    BackdoorBench: an adversarially trained ResNet-18, 100 steps of 1.5/255, amplitude
    1. Its crafting script says epsilon 8/255 while its attack asks for the file of
    epsilon 16/255; the default here is 8/255. Rate 0.1 of the whole set there, which is
    all of the target class of CIFAR-10.

    Source: Turner, Tsipras and Madry, "Label-Consistent Backdoor Attacks", 2019.
    Lesson 01b.
    """

    usual_rate: ClassVar[float] = 0.05
    stands_in: ClassVar[str] = "own fast adversarially trained surrogate"
    needs_model: ClassVar[bool] = True

    clean_label: bool = True
    epsilon: float = 8 / 255
    step: float = 1.5 / 255
    steps: int = 100
    amplitude: float = 1.0
    surrogates: tuple[nn.Module, ...] = field(
        default=(), repr=False, compare=False, metadata={"private": True}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require.fraction("epsilon", self.epsilon)  # 8 levels are 8 / 255
        require.number("amplitude", self.amplitude, above=0, high=1)
        if self.epsilon > 0:
            require.number("step", self.step, above=0)
            self._whole("steps", 1)
        for model in require.row("surrogates", self.surrogates):
            require.module(model, "each of surrogates")

    @classmethod
    def craft(
        cls,
        images: Images,
        generator: torch.Generator,
        *,
        model: nn.Module | None = None,
        **options,
    ) -> Self:
        """The attack with `model` as its surrogate, if `surrogates` names no others."""
        if model is not None:
            options.setdefault("surrogates", (model,))
        return super().craft(images, generator, **options)

    def trigger(self, x: Tensor) -> Tensor:
        return (x + self.amplitude * corners(*x.shape[-2:]).to(x)).clamp(0, 1)

    def plant(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        if self.epsilon == 0:
            return self.trigger(x)
        if not self.surrogates:
            raise ValueError(
                "LabelConsistent with epsilon above 0 needs surrogates=(...), "
                "classifiers to compute the perturbation on; epsilon=0 needs none."
            )
        device = device_of(self.surrogates[0])
        # In pieces: gradients of thousands of images at once would not fit.
        with asking(self.surrogates[0], tuple(x.shape[1:]), int(y.max()) + 1):
            hard = [
                pgd(
                    self.surrogates,
                    part.to(device),
                    labels.to(device),
                    self.epsilon,
                    self.step,
                    self.steps,
                    generator,
                )
                for part, labels in zip(x.split(250), y.split(250), strict=True)
            ]
        return self.trigger(torch.cat(hard).to(x.device))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        if min(shape[1:]) < 6:
            raise ValueError(
                f"four 3x3 patches need images of at least 6x6 pixels, not {shape[1]}x{shape[2]}."
            )
