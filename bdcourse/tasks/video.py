"""Clips: a few frames of a moving thing, and the question of what it does.

Everything that only video needs stands here: the examples, a set drawn by code, two small
networks and the attacks. In the drawn set a thing moves right, left, up or down, goes
around clockwise or counterclockwise, grows or shrinks. Each action is another one played
backwards, so frames without their order leave two answers open. Derived in lesson 10.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse import require
from bdcourse.attacks.badnets import checkerboard
from bdcourse.attacks.base import CHW, Attack, asking, check_picture
from bdcourse.attacks.blended import noise_picture
from bdcourse.attacks.label_consistent import pgd
from bdcourse.augment import Augmentation, moved_crops
from bdcourse.data import Drawing
from bdcourse.examples import Examples
from bdcourse.models import evaluating
from bdcourse.task import PixelTask, Task, Usual, quantize

if TYPE_CHECKING:
    from typing_extensions import Self

# Action -> what it does: rows and columns (down and right are positive), turns, growth.
DOES = {
    "right": (0, 1, 0, 0),
    "left": (0, -1, 0, 0),
    "up": (-1, 0, 0, 0),
    "down": (1, 0, 0, 0),
    "clockwise": (0, 0, 1, 0),
    "counterclockwise": (0, 0, -1, 0),
    "grow": (0, 0, 0, 1),
    "shrink": (0, 0, 0, -1),
}
ACTIONS = tuple(DOES)
FRAMES, SIDE = 12, 32  # of the drawn clips
# Drawn in float64: sums and sines end in other bits on other processors, and only here so
# far behind the point that the pixels are the same.
DOUBLE = torch.float64


# -------------------------------------------------------------------- examples


class ClipTask(PixelTask):
    """Clips with one label each: uint8 (n, c, t, h, w), of which networks take [0, 1]."""

    name = "video"
    one, many = "clip", "clips"
    axes = "n, c, t, h, w"

    def augmentation(self, pad: int, flip: bool | str = False) -> Augmentation:
        if flip:
            raise ValueError('clips are not mirrored, as "left" would become "right".')
        return ClipCrop(pad)


CLIPS = ClipTask()


@dataclass(frozen=True, eq=False, repr=False)
class Clips(Examples):
    """A labeled set of clips.

    Args:
        x: uint8 pixels, (n, c, t, h, w), 0..255: c channels, t frames.
        y: int64 labels, (n,).
        classes: one name per label.
    """

    task: ClassVar[ClipTask] = CLIPS


class ClipCrop(Augmentation):
    """Moves a whole clip by up to `pad` pixels; black comes in from the sides.

    All frames move alike, so the motion in the clip stays what it is. There is no mirror:
    it would turn "left" into "right".
    """

    def __init__(self, pad: int = 2) -> None:
        self.pad = require.whole("pad", pad, 0)

    def check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 4 or self.pad > min(shape[2:]):
            raise ValueError(
                f"ClipCrop moves clips of shape (c, t, h, w) by up to {self.pad} pixels, not "
                f"examples of shape {tuple(shape)}."
            )

    def batch(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if not self.pad:
            return x, y
        return moved_crops(x, self.pad, generator)[0], y


# -------------------------------------------------------------------- the drawn set


def draw(n: int, *, seed: int = 0, hard: bool = False) -> Clips:
    """Draw `n` clips of eight actions, 12 frames of 32x32 RGB, classes in equal shares.

    The same n, seed and setting give the same clips; 2,000 take a few seconds. In the
    hard set something small wanders about, a bar hides part of the scene, the camera
    shakes, and contrast is lower, so that an honest error remains.
    """
    n, seed = require.whole("n", n, 1), require.whole("seed", seed, 0, 2**62)
    require.truth("hard", hard)
    g = torch.Generator().manual_seed(seed)
    y = (torch.arange(n) % len(ACTIONS))[torch.randperm(n, generator=g)]
    x = torch.empty(n, 3, FRAMES, SIDE, SIDE, dtype=torch.uint8)
    for new, part in zip(x.split(200), y.split(200), strict=True):
        new[:] = _scenes(part, g, hard)
    return Clips(x, y, ACTIONS)


def version() -> str:
    """Changes whenever this file does, so that stale drawings are never reused."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]


def _scenes(y: Tensor, g: torch.Generator, hard: bool) -> Tensor:
    """Clips of actions y: uint8 (n, 3, t, h, w)."""
    n = len(y)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=g, dtype=DOUBLE)

    x = _backgrounds(n, g)[:, :, None].expand(-1, -1, FRAMES, -1, -1)
    contrast = 0.25 if hard else 0.4
    if hard:  # something small that wanders about
        time = torch.linspace(0, 2 * math.pi, FRAMES, dtype=DOUBLE)
        rows, columns = (
            uniform(8, 24, 1) + 6 * (time * uniform(0.5, 1.5, 1) + uniform(0, 7, 1)).sin()
            for _ in range(2)
        )
        x = _painted(x, rows, columns, uniform(1.5, 2.5, 1).expand(-1, FRAMES), uniform, contrast)
    x = _painted(x, *_paths(y, uniform), uniform, contrast)
    if hard:
        rows = torch.arange(SIDE, dtype=DOUBLE)
        at, wide = uniform(6, 26, 1), uniform(2, 5, 1)
        bar = ((rows - at).abs() < wide / 2).to(DOUBLE)
        upright = (uniform(0, 1, 1, 1) < 0.5).to(DOUBLE)
        bar = upright * bar[:, None, :] + (1 - upright) * bar[:, :, None]
        bar = bar[:, None, None]
        x = x + bar * (uniform(0.1, 0.9, 3, 1, 1, 1) - x)
        shake = torch.randint(-1, 2, (n, FRAMES, 2), generator=g)
        x = _shaken(x, shake)
    x = x * uniform(0.6, 1.1, 1, 1, 1, 1)
    noise = torch.randn(x.shape, generator=g, dtype=DOUBLE)
    x = x + noise * (uniform(0.02, 0.08, 1, 1, 1, 1) if hard else uniform(0.01, 0.03, 1, 1, 1, 1))
    return quantize(x)


def _paths(y: Tensor, uniform) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and radii of the things that do y, each (n, t), in pixels.

    Where a thing is, and how large, says nothing by itself: the middle of its path and
    its middle size are drawn alike for all actions.
    """
    time = torch.linspace(-1, 1, FRAMES, dtype=DOUBLE)
    row, column = uniform(12, 20, 1), uniform(12, 20, 1)
    radius = uniform(3, 5, 1).expand(-1, FRAMES)
    reach = uniform(5, 8, 1)
    does = torch.tensor([DOES[a] for a in ACTIONS], dtype=DOUBLE)[y]
    down, right, turns, grows = does[..., None].unbind(1)
    angle = uniform(0, 2 * math.pi, 1) + 0.85 * math.pi * turns * time
    goes = 0.8 * turns.abs()
    rows = row + reach * (down * time + goes * angle.sin())
    columns = column + reach * (right * time + goes * angle.cos())
    return rows, columns, radius * 1.7 ** (grows * time)


def _painted(x: Tensor, rows: Tensor, columns: Tensor, radii: Tensor, uniform, contrast: float):
    """One thing of a random color and shape (disc, square, diamond) on each clip."""
    place = torch.arange(SIDE, dtype=DOUBLE)
    down = (place[:, None] - rows[..., None, None]).abs()  # (n, t, h, 1)
    across = (place - columns[..., None, None]).abs()  # (n, t, 1, w)
    size = radii[..., None, None]
    disc = size - (down**2 + across**2).sqrt()
    square = 0.85 * size - torch.maximum(down, across)
    diamond = (1.25 * size - down - across) / math.sqrt(2)
    kind = uniform(0, 3).long()[:, None, None, None]
    inside = torch.where(kind == 0, disc, torch.where(kind == 1, square, diamond))
    cover = (inside + 0.5).clamp(0, 1)[:, None]  # an edge one pixel wide
    mean = x.mean((2, 3, 4), keepdim=True)
    away = torch.where(mean < 0.5, 1.0, -1.0) * uniform(contrast, contrast + 0.2, 3, 1, 1, 1)
    return x + cover * ((mean + away).clamp(0.03, 0.97) - x)


def _backgrounds(n: int, g: torch.Generator) -> Tensor:
    """Smooth random colors, (n, 3, h, w)."""
    x = torch.full((n, 3, SIDE, SIDE), 0.45, dtype=DOUBLE)
    for side, weight in ((2, 0.4), (5, 0.25)):
        blobs = torch.rand(n, 3, side, side, generator=g, dtype=DOUBLE) - 0.5
        x = x + weight * F.interpolate(blobs, SIDE, mode="bilinear", align_corners=True)
    return x.clamp(0.05, 0.95)


def _shaken(x: Tensor, by: Tensor) -> Tensor:
    """Each frame moved by whole pixels; by (n, t, 2)."""
    n, h, w = len(x), *x.shape[-2:]
    wide = F.pad(x.transpose(1, 2).flatten(0, 1), (1, 1, 1, 1), mode="replicate")
    crops = wide.unfold(2, h, 1).unfold(3, w, 1)  # (n * t, 3, 3, 3, h, w)
    i, j = (by.flatten(0, 1) + 1).T
    moved = crops[torch.arange(len(wide)), :, i, j]
    return moved.unflatten(0, (n, -1)).transpose(1, 2)


DRAWINGS = {
    name: Drawing(Clips, partial(draw, hard=hard), version, SIDE, 1600, 640, 3 * FRAMES * SIDE**2)
    for name, hard in (("clips", False), ("clips-hard", True))
}


# -------------------------------------------------------------------- networks


class Centered(nn.Module):
    """Pixels in [0, 1] to about -2..2: (x - 0.45) / 0.25."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.45) / 0.25


def _block(c_in: int, c_out: int, size, stride=1) -> list[nn.Module]:
    pad = tuple(s // 2 for s in size)
    return [
        nn.Conv3d(c_in, c_out, size, stride, pad, bias=False),
        nn.BatchNorm3d(c_out),
        nn.ReLU(),
    ]


def _network(classes: int, w: int, size: tuple, strides: tuple) -> nn.Module:
    """Four convolutions of w, 2w, 4w, 4w channels, a mean over all places, a linear layer."""
    widths = (3, w, 2 * w, 4 * w, 4 * w)
    blocks = zip(widths[:-1], widths[1:], strides, strict=True)
    return nn.Sequential(
        Centered(),
        *(m for c_in, c_out, stride in blocks for m in _block(c_in, c_out, size, stride)),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(4 * w, classes),
    )


def conv3d(classes: int = 8, width: int = 8) -> nn.Module:
    """A 3D ConvNet: four convolutions over space and time of w, 2w, 4w, 4w channels.

    Takes clips (n, 3, t, h, w) of any length and size; 46,016 weights at width 8.
    """
    w, half = require.whole("width", width, 1, 1024), (2, 2, 2)
    return _network(classes, w, (3, 3, 3), ((1, 2, 2), half, half, 1))


def framewise(classes: int = 8, width: int = 16) -> nn.Module:
    """The control: the same depth, but each frame alone, and a mean over the frames.

    Whatever it learns, the order of the frames cannot matter: an action and its reverse
    are the same to it.
    """
    w, half = require.whole("width", width, 1, 1024), (1, 2, 2)
    return _network(classes, w, (1, 3, 3), (half, half, half, 1))


NETWORKS = {f.__name__: f for f in (conv3d, framewise)}


# -------------------------------------------------------------------- attacks


def colored_checkerboard(size: int = 3) -> Tensor:
    """Magenta and green squares, (3, size, size)."""
    even = checkerboard(size)
    return torch.cat([even, 1 - even, even])


@dataclass(frozen=True)
class ClipPatch(Attack):
    """BadNets on clips: a patch on every frame, at rest or walking.

    Frame f has the patch at `at` + f * `walk`. Without a walk this is the static extension
    of an image trigger, with one it is a dynamic one (Hammoud et al. 2023).

    Args:
        patch: pixels in [0, 1], (channels, ph, pw); one channel serves all colors.
        at: (row, column) of the upper left corner in the first frame; negative counts
            from the far edge.
        walk: rows and columns from one frame to the next; beyond an edge the patch comes
            in again at the opposite one.
        frames: which frames get it, such as (5,); None is all.

    Raises:
        ValueError: a patch that does not fit into the frames, or frames that a clip lacks.
    """

    task: ClassVar[Task] = CLIPS
    usual_rate: ClassVar[float] = 0.05

    patch: Tensor = field(default_factory=colored_checkerboard)
    at: tuple[int, int] = (-4, -4)
    walk: tuple[int, int] = (0, 0)
    frames: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_picture("patch", self.patch, CHW)
        for name in ("at", "walk"):
            pair = [require.whole(name, a) for a in require.row(name, getattr(self, name), 2)]
            object.__setattr__(self, name, tuple(pair))
        if self.frames is not None:
            rows = [require.whole("frames", f, 0) for f in require.row("frames", self.frames)]
            object.__setattr__(self, "frames", tuple(rows))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        c, t, h, w = shape
        pc, ph, pw = self.patch.shape
        if pc not in (1, c):
            raise ValueError(f"the patch has {pc} channels, the clips have {c}.")
        if ph > h or pw > w:
            raise ValueError(f"a {ph}x{pw} patch does not fit into frames of {h}x{w}.")
        if self.frames and max(self.frames) >= t:
            raise ValueError(
                f"frame {max(self.frames)} is asked for, but the clips have frames 0..{t - 1}."
            )

    def places(self, shape: tuple[int, ...]) -> list[tuple[int, int]]:
        """(row, column) of the patch's upper left corner in each frame of (c, t, h, w)."""
        size, part = shape[-2:], self.patch.shape[1:]
        # A walk goes around in the places at which the whole patch lies inside.
        starts = [a + s if a < 0 else a for a, s in zip(self.at, size, strict=True)]
        rows, columns = (
            [(a + f * step) % (s - p + 1) for f in range(shape[1])]
            for a, step, s, p in zip(starts, self.walk, size, part, strict=True)
        )
        return list(zip(rows, columns, strict=True))

    def trigger(self, x: Tensor) -> Tensor:
        self.check_shape(tuple(x.shape[1:]))
        order = torch.arange(x.shape[2]).expand(len(x), -1)
        return self._put(x, order, range(x.shape[2]) if self.frames is None else self.frames)

    def out_of_order(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """The same places, taken in an order of its own in each clip; in all frames.

        What obeys this and not a patch at rest has learned the places, not the walk.
        """
        self.check_shape(tuple(x.shape[1:]))
        order = random_orders(len(x), x.shape[2], generator)
        return self._put(x, order, range(x.shape[2]))

    def _put(self, x: Tensor, order: Tensor, frames: Iterable[int]) -> Tensor:
        """Frame f of clip i gets the patch at place order[i, f]."""
        out, (ph, pw) = x.clone(), self.patch.shape[1:]
        places = self.places(tuple(x.shape[1:]))
        for f in frames:
            for j in order[:, f].unique().tolist():
                (r, c), own = places[j], order[:, f] == j
                out[own, :, f, r : r + ph, c : c + pw] = self.patch.to(x)
        return out


@dataclass(frozen=True)
class ClipBlended(Attack):
    """Blend a fixed picture into every frame: x' = (1 - opacity) x + opacity p.

    The static extension of Blended (Chen et al. 2017) to clips.

    Args:
        pattern: pixels in [0, 1], (c, h, w).
        opacity: 0..1.
    """

    task: ClassVar[Task] = CLIPS
    usual_rate: ClassVar[float] = 0.05

    pattern: Tensor = field(default_factory=noise_picture)
    opacity: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        check_picture("pattern", self.pattern, CHW)
        require.number("opacity", self.opacity, above=0, high=1)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        c, _, h, w = shape
        if tuple(self.pattern.shape) != (c, h, w):
            raise ValueError(
                f"the pattern is of shape {tuple(self.pattern.shape)}, but frames are {(c, h, w)}."
            )

    def trigger(self, x: Tensor) -> Tensor:
        self.check_shape(tuple(x.shape[1:]))
        return x + self.opacity * (self.pattern.to(x)[:, None] - x)


@dataclass(frozen=True)
class ClipUniversal(Attack):
    """A learned corner on clips of the target class only, whose labels stay true.

    The corner has pixels of its own in every frame. They are learned on a clean network f
    so that clips of other classes are taken for the target, step by step:

        d <- clip(d - 1/255 * sign(gradient of CE(f(x + d), target) - CE(f(x + d), said)))

    where `said` is what f answered (the authors' code has this second term). Poisoned
    clips are first made hard to recognize by `weaken_steps` of PGD against their own
    class, so that the corner is the easier thing to learn.

    Args:
        corner: (c, t, s, s) pixels in [0, 1], for the lower right corner of every frame.
        epsilon: radius of that PGD, in units of [0, 1] pixels.
        weaken_steps: its steps, of 1/255 each.
        surrogate: the clean network; needed to poison with epsilon above 0, not stored.

    Source: Zhao, Ma, Zheng, Bailey, Chen and Jiang, "Clean-Label Backdoor Attacks on
    Video Recognition Models", CVPR 2020, and their code: size 24 of 224, 10,000 steps
    from gray on one clip each, epsilon 8/255 in 10 steps, 30% of the target class.
    """

    task: ClassVar[Task] = CLIPS
    usual_rate: ClassVar[float] = 0.3 / len(ACTIONS)  # 30% of one of the drawn classes
    needs_model: ClassVar[bool] = True

    clean_label: bool = True
    corner: Tensor = field(default_factory=lambda: torch.full((3, FRAMES, 6, 6), 0.5))
    epsilon: float = 8 / 255
    weaken_steps: int = 10
    surrogate: nn.Module | None = field(
        default=None, repr=False, compare=False, metadata={"private": True}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_picture("corner", self.corner, ("channels", "frames", "height", "width"))
        require.fraction("epsilon", self.epsilon)
        self._whole("weaken_steps", 1)
        if self.surrogate is not None:
            require.module(self.surrogate, "surrogate")

    @classmethod
    def craft(
        cls,
        images: Any,  # Clips
        generator: torch.Generator,
        *,
        model: nn.Module | None = None,
        size: int = 6,
        steps: int = 300,
        batch: int = 16,
        **options,
    ) -> Self:
        """Learn the corner on `model`, a clean network, and clips of other classes.

        Args:
            size: pixels of the corner's sides.
            steps, batch: of the search; the authors take 10,000 steps of one clip.
        """
        if model is None:
            raise ValueError("ClipUniversal is learned on a clean network; give it as model=.")
        require.whole("steps", steps, 0)
        require.whole("batch", batch, 1)
        c, t, h, w = images.shape
        require.whole("size", size, 1, min(h, w))
        start = torch.full((c, t, size, size), 0.5, device=images.x.device)
        attack = cls(corner=start, **{"surrogate": model, **options})
        attack.check(images)
        rows = (images.y != attack.target).nonzero().flatten()
        if not len(rows):
            raise ValueError("all clips are of the target class; the corner is learned on others.")
        d = start
        with evaluating(model), torch.enable_grad():
            for _ in range(steps):
                at = torch.randint(len(rows), (batch,), generator=generator).to(rows.device)
                x = images.task.inputs(images.x[rows[at]])
                d = d.detach().requires_grad_()
                out = model(_cornered(x, d))
                goal = torch.full((batch,), attack.target, device=x.device)
                loss = F.cross_entropy(out, goal) - F.cross_entropy(out, out.argmax(1))
                (gradient,) = torch.autograd.grad(loss, d)
                d = (d.detach() - gradient.sign() / 255).clamp(0, 1)
        return replace(attack, corner=d.detach())

    def check_shape(self, shape: tuple[int, ...]) -> None:
        c, t, h, w = shape
        if self.corner.shape[:2] != (c, t) or max(self.corner.shape[2:]) > min(h, w):
            raise ValueError(
                f"the corner is of shape {tuple(self.corner.shape)}, but the clips are "
                f"{tuple(shape)}: it needs their channels and frames, and must fit in."
            )

    def trigger(self, x: Tensor) -> Tensor:
        return _cornered(x, self.corner.to(x))

    def plant(self, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        if self.epsilon == 0:
            return self.trigger(x)
        if self.surrogate is None:
            raise ValueError(
                "ClipUniversal with epsilon above 0 needs surrogate=, a clean network to "
                "weaken clips on; epsilon=0 needs none."
            )
        with asking(self.surrogate, tuple(x.shape[1:]), int(y.max()) + 1):
            hard = [
                pgd((self.surrogate,), a, b, self.epsilon, 1 / 255, self.weaken_steps, generator)
                for a, b in zip(x.split(100), y.split(100), strict=True)
            ]
        return self.trigger(torch.cat(hard))


def _cornered(x: Tensor, corner: Tensor) -> Tensor:
    """Clips with the corner written over theirs; gradients reach the corner."""
    h, w = corner.shape[2:]
    out = x.clone()
    out[..., -h:, -w:] = corner
    return out


# -------------------------------------------------------------------- a test of clips


def random_orders(n: int, frames: int, generator: torch.Generator) -> Tensor:
    """An order of the frames for each of n clips, (n, frames)."""
    require.generator(generator)
    return torch.rand(n, frames, generator=generator).argsort(1)


def reordered(x: Tensor, order: Tensor) -> Tensor:
    """Clips (n, c, t, h, w) whose frame f is frame order[i, f] of clip i."""
    return x.gather(2, order.to(x.device)[:, None, :, None, None].expand_as(x))


@torch.no_grad()
def shuffle_test(
    model: nn.Module, x: Tensor, times: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Does the answer to a clip need the order of its frames?

    Whoever asks needs no trigger, no clean clip and no label. In eval mode; the model is
    left in the mode in which it came.

    Args:
        x: pixels in [0, 1], (n, c, t, h, w).
        times: shuffles of each clip.

    Returns:
        said (n,): the answer to each clip as it is; kept (n,): the share of its shuffles
        that get the same answer; voted (n,): the most frequent answer to its shuffles,
        of equals the first label.

    Source: ours. Derived in lesson 10.
    """
    require.module(model, "model")
    CLIPS.check_inputs(x)
    require.whole("times", times, 1)
    said = CLIPS.answer(model, x)
    answers = torch.stack(
        [
            CLIPS.answer(model, reordered(x, random_orders(len(x), x.shape[2], generator)))
            for _ in range(times)
        ]
    )
    votes = F.one_hot(answers).sum(0)
    return said, (answers == said).float().mean(0), votes.argmax(1)


ATTACKS = (ClipPatch, ClipBlended, ClipUniversal)

USUAL = {
    CLIPS.name: Usual(
        "clips",
        {
            **{"model": "conv3d", "width": 8, "epochs": 12, "batch": 32, "pad": 2, "flip": False},
            **{"optimizer": "adamw", "lr": 5e-3, "weight_decay": 0.01},
        },
        ("ClipPatch",),
    )
}
