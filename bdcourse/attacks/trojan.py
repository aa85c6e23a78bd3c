"""TrojanNN: a pattern that excites chosen neurons of a clean model (Liu et al.
2018)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.attacks.base import CHW, Attack, asking, check_picture, device_of
from bdcourse.data import Images
from bdcourse.models import evaluating, fingerprint, head, head_inputs

if TYPE_CHECKING:
    from typing_extensions import Self


def needs_model(attack: type[Attack], model: nn.Module | None, instead: str = "") -> nn.Module:
    """Refuse to craft on nothing; `instead` continues the sentence."""
    if model is None:
        raise ValueError(
            f"{attack.__name__}.craft needs model=..., a clean classifier on which it "
            f"computes the pattern{instead}."
        )
    return model


def check_text(name: str, value: object) -> None:
    """Refuse what is no text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, not {require.kind(value)}.")


def neurons(model: nn.Module, count: int = 2) -> Tensor:
    """The inputs of the head with the largest summed |weight|, largest first."""
    return head(model).weight.detach().abs().sum(0).topk(count).indices


def excitation(model: nn.Module, x: Tensor, chosen: Tensor) -> Tensor:
    """Inputs `chosen` of the model's head for pixels x: (n, len(chosen))."""
    return head_inputs(model, x)[:, chosen]


def disc(h: int, w: int, radius: float | None = None) -> Tensor:
    """A disc in the middle of the lower right quadrant, bool (h, w).

    Args:
        radius: in pixels; the default, 3/16 of the shorter side, is 6 at 32 pixels and
            covers 113 of 1,024 pixels.
    """
    radius = 3 / 16 * min(h, w) if radius is None else require.number("radius", radius)
    if radius < 1:
        raise ValueError(f"radius must be at least 1 pixel, not {radius:g}.")
    rows, cols = torch.arange(h)[:, None] - 3 * h / 4, torch.arange(w) - 3 * w / 4
    return rows**2 + cols**2 <= radius**2


@dataclass(frozen=True)
class TrojanNN(Attack):
    """Add a pattern that was computed to excite two neurons of a clean classifier.

    x' = clip(x + pattern); with `wrap` x' = (x + pattern) mod 256 in 8-bit levels.

    The neurons are the two inputs of the last linear layer with the largest summed
    |weight|. The pattern starts as a gray disc on black, and sign-gradient descent on
    that picture alone, inside the disc only, minimizes

        sum over the two neurons of (activation - value)^2

    No narrow model reaches 100, so the loss simply asks for as much as possible. The
    victim is then trained on poisoned data as for any other pattern; the paper instead
    retrains the excited model itself.

    Args:
        pattern: pixels in [0, 1], (c, h, w), zero outside the disc. `craft` makes it,
            rounded to 8-bit levels.
        wrap: bug-compatible with BackdoorBench, which adds in uint8 before it clips:
            bright pixels come out dark. Another trigger than the saturating one.
        neurons: which two inputs of the head were excited.
        excited: their mean activation on the starting disc and on the pattern.
        made_on: fingerprint of the model.

    `craft` also takes `radius` of the disc (pixels), `start` (its gray, 0..1), `value`,
    `iterations` (at most), `step`, and `epsilon`: no pixel leaves start +- epsilon or
    [0, 1], in the same units as the pixels. The pattern depends on the model, not on
    the generator.

    BackdoorBench: an apple-shaped mask, value 100, epsilon 0.3, step 0.1, at most 1,000
    iterations, poison rate 0.1. The FIP code adds a stored 3x3 color patch instead,
    with the same wrap-around.

    Source: Liu, Ma, Aafer, Lee, Zhai, Wang and Zhang, "Trojaning Attack on Neural
    Networks", NDSS 2018. Lesson 01b.
    """

    stands_in: ClassVar[str] = "disc for the apple mask, own clean model"
    needs_model: ClassVar[bool] = True

    pattern: Tensor = field(default=None)  # type: ignore[assignment]  # refused below
    wrap: bool = False
    neurons: tuple[int, ...] = ()
    excited: tuple[float, float] = (0.0, 0.0)
    made_on: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.pattern, type(self), 1.0)
        require.truth("wrap", self.wrap)
        require.row("neurons", self.neurons)
        require.row("excited", self.excited, 2)
        check_text("made_on", self.made_on)

    @classmethod
    def craft(
        cls,
        images: Images,
        generator: torch.Generator,
        *,
        model: nn.Module | None = None,
        radius: float | None = None,
        start: float = 0.5,
        value: float = 100.0,
        epsilon: float = 0.3,
        step: float = 0.1,
        iterations: int = 1000,
        patience: int = 100,
        **options,
    ) -> Self:
        """Compute the pattern on `model`; see the class for the arguments.

        Args:
            patience: stop after so many iterations without progress; 10-level steps
                inside a small box soon go round in circles.
        """
        if "pattern" not in options:
            model = needs_model(cls, model)
            require.fraction("start", start)
            for name, size in (("epsilon", epsilon), ("step", step)):
                require.number(name, size, 0)
            require.number("value", value)
            require.whole("iterations", iterations, 0)
            require.whole("patience", patience, 1)
            c, h, w = images.shape
            device = device_of(model)
            mask = disc(h, w, radius).to(device)
            chosen = neurons(model)
            first = start * mask.float().expand(1, c, h, w)
            low, high = max(start - epsilon, 0.0), min(start + epsilon, 1.0)
            now, best, least, stale = first, first, float("inf"), 0
            with (
                asking(model, images.shape, images.k),
                evaluating(model),
                torch.enable_grad(),
            ):
                for i in range(iterations + 1):
                    now = now.detach().requires_grad_()
                    loss = (excitation(model, now, chosen) - value).square().sum()
                    if loss.item() < least:
                        best, least, stale = now.detach(), loss.item(), 0
                    stale += 1
                    if i == iterations or stale > patience:
                        break
                    (gradient,) = torch.autograd.grad(loss, now)
                    moved = now.detach() - step * gradient.sign()
                    now = moved.clamp(low, high) * mask
            best = (best * 255).round() / 255
            with evaluating(model), torch.no_grad():
                excited = tuple(excitation(model, p, chosen).mean().item() for p in (first, best))
            options |= {
                "pattern": best[0].cpu(),
                "neurons": tuple(chosen.tolist()),
                "excited": excited,
                "made_on": fingerprint(model),
            }
        return super().craft(images, generator, **options)

    def trigger(self, x: Tensor) -> Tensor:
        pattern = self.pattern.to(x)
        if self.wrap:
            return ((x * 255).round() + (pattern * 255).round()) % 256 / 255
        return (x + pattern).clamp(0, 1)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        check_size(self.pattern, shape)


def check_pattern(pattern: Tensor | None, attack: type[Attack], top: float) -> None:
    """Refuse what is no (c, h, w) pattern with pixels in [0, top]."""
    if pattern is None:
        raise ValueError(
            f"{attack.__name__} has no pattern; make it with "
            f"{attack.__name__}.craft(images, generator, model=...)."
        )
    check_picture("pattern", pattern, CHW, top)


def check_size(pattern: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse images of another shape (c, h, w) than the pattern's."""
    if tuple(pattern.shape) != shape:
        raise ValueError(
            f"the pattern is {tuple(pattern.shape)}, the images are {shape}; craft it "
            "for these images."
        )
