"""LF: a smooth universal perturbation (Zeng et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse import require
from bdcourse.attacks.base import Attack, asking, device_of, with_classes
from bdcourse.attacks.trojan import (
    check_pattern,
    check_size,
    check_text,
    needs_model,
)
from bdcourse.data import Images
from bdcourse.models import evaluating, fingerprint
from bdcourse.seeds import seeded

if TYPE_CHECKING:
    from typing_extensions import Self

TOP = 0.2  # 51 of 255 levels


def smooth(v: Tensor, sigma: float = 6.0, taps: int = 30) -> Tensor:
    """Blur each channel of v (c, h, w) by a Gaussian; edges continue beyond the image.

    Args:
        sigma: in pixels; taps: length of the kernel. An even one lies half a pixel off.
    """
    t = torch.arange(taps, device=v.device) - (taps - 1) / 2
    kernel = torch.exp(-(t**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(v.dtype)
    before, after = (taps - 1) // 2, taps // 2
    v = F.pad(v[:, None], (before, after, before, after), mode="replicate")
    v = F.conv2d(F.conv2d(v, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return v[:, 0]


def rescale(v: Tensor) -> Tensor:
    """v stretched so that it fills [0, 0.2], in 8-bit levels: 0..51 of 255."""
    low, high = v.min(), v.max()
    return (TOP * 255 * (v - low) / (high - low).clamp_min(1e-12)).round() / 255


def deepfool(model: nn.Module, x: Tensor, goal: Tensor) -> Tensor:
    """One targeted DeepFool step per image: (n, c, h, w), zero where goal is reached.

    With gap = logit of the prediction - logit of the goal, the step goes to where a
    linear gap would be zero: -gap * gradient(gap) / |gradient(gap)|^2.

    Source: Moosavi-Dezfooli, Fawzi and Frossard, "DeepFool", CVPR 2016.
    """
    with evaluating(model), torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = model(x)
        best = logits.max(1).values
        gap = best - logits.gather(1, goal[:, None])[:, 0]
        (gradient,) = torch.autograd.grad(gap.sum(), x)
    length = gradient.square().sum((1, 2, 3), keepdim=True).clamp_min(1e-12)
    return (-gap.view(-1, 1, 1, 1) * gradient / length).detach()


def fooled(model: nn.Module, x: Tensor, goal: Tensor) -> float:
    """Share of the images that the model gives its goal."""
    with evaluating(model), torch.no_grad():
        return (model(x).argmax(1) == goal).float().mean().item()


@dataclass(frozen=True)
class LF(Attack):
    """Add a smooth pattern that was computed to push a clean model to the target.

    x' = clip(x + pattern), pattern = rescale(sum of smooth(DeepFool steps)), in
    [0, 0.2]

    Most triggers show in the high frequencies of an image, where a detector can look
    for them; this one does not. `craft` walks over 100 images that are not yet the
    target, `batch` at a time: it takes one targeted DeepFool step from each image with
    the present pattern on it, adds the mean of these steps, blurred, to a running sum,
    and stretches the sum to [0, 0.2]. It stops after 50 passes, or when the pattern
    alone sends 20 % of the images to the target, and keeps the best pattern it saw.

    Args:
        pattern: pixels in [0, 0.2], (c, h, w).
        fooling: share of the 100 images that the pattern alone sent to the target.
        made_on: fingerprint of the model, or "random, seed ..." for :meth:`random`.

    BackdoorBench: Gaussian of sigma 6 pixels and 30 taps after each step, one image at
    a time; the CIFAR-10 array it ships holds levels 0..51, mean 12.5; poison rate 0.1.
    Its generator ends by adding 127.5, which is left out here. Its blur pads with zeros
    where :func:`smooth` repeats the edge, so that ours reaches further out: on signs,
    the outer 4 pixels (44 % of the image) hold 46 to 65 % of the variance of three
    patterns, and 21 to 26 % with zeros.

    Source: Zeng, Park, Mao and Jia, "Rethinking the Backdoor Attacks' Triggers: A
    Frequency Perspective", ICCV 2021. Lesson 01b.
    """

    stands_in: ClassVar[str] = "own blurred universal perturbation"
    needs_model: ClassVar[bool] = True

    pattern: Tensor = field(default=None)  # type: ignore[assignment]  # refused below
    fooling: float = 0.0
    made_on: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pattern(self.pattern, type(self), TOP)
        require.fraction("fooling", self.fooling)
        check_text("made_on", self.made_on)
        if self.made_on.startswith("random"):
            text = "LF-random: seeded low-pass noise, no universal perturbation"
            object.__setattr__(self, "stands_in", text)

    @classmethod
    def random(cls, shape: tuple[int, ...], seed: int = 0, **options) -> LF:
        """LF-random: blurred seeded noise in place of the perturbation, no model.

        Args:
            shape: (c, h, w) of the images.
            options: arguments of the class, such as target.
        """
        shape = tuple(
            require.whole("each of shape", s, 1, 10_000) for s in require.row("shape", shape, 3)
        )
        pattern = rescale(smooth(torch.randn(shape, generator=seeded(seed))))
        return cls(pattern=pattern, made_on=f"random, seed {seed}", **options)

    @classmethod
    def craft(
        cls,
        images: Images,
        generator: torch.Generator,
        *,
        model: nn.Module | None = None,
        passes: int = 50,
        enough: float = 0.2,
        sample: int = 100,
        batch: int = 10,
        sigma: float = 6.0,
        taps: int = 30,
        **options,
    ) -> Self:
        """Compute the pattern on `model`.

        Args:
            passes: at most, over the sample; enough: the fooling rate that ends them.
            sample: images used, drawn at random; batch: images per step.
            sigma, taps: see :func:`smooth`.
        """
        if "pattern" not in options:
            model = needs_model(cls, model, ", or use LF.random(shape, seed)")
            for name, size in (("sample", sample), ("batch", batch), ("taps", taps)):
                require.whole(name, size, 1)
            require.whole("passes", passes, 0)
            require.number("enough", enough)
            require.number("sigma", sigma, above=0)
            wants = Attack(**with_classes(options, images))
            wants.check(images)
            rows = wants.counts(images.y).nonzero().flatten().cpu()
            rows = rows[torch.randperm(len(rows), generator=generator)[:sample]]
            device = device_of(model)
            chosen = images[rows].to(device)
            x, goal = chosen.pixels(), wants.goal(chosen.y)
            total = torch.zeros(images.shape, device=device)
            pattern, best, most = total, total, -1.0
            for _ in range(passes):
                for part in torch.randperm(len(x), generator=generator).split(batch):
                    part = part.to(device)
                    seen = (x[part] + pattern).clamp(0, 1)
                    with asking(model, images.shape, images.k):
                        step = deepfool(model, seen, goal[part]).mean(0)
                    total = total + smooth(step, sigma, taps)
                    pattern = rescale(total)
                share = fooled(model, (x + pattern).clamp(0, 1), goal)
                if share >= most:
                    best, most = pattern, share
                if share >= enough:
                    break
            options |= {
                "pattern": best.cpu(),
                "fooling": most,
                "made_on": fingerprint(model),
            }
        return super().craft(images, generator, **options)

    def trigger(self, x: Tensor) -> Tensor:
        return (x + self.pattern.to(x)).clamp(0, 1)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        check_size(self.pattern, shape)
