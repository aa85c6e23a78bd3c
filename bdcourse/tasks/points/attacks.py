"""Attacks on clouds: points that are inserted, a rotation, a smooth warp."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse import require
from bdcourse.attacks.base import Attack, asking, pick
from bdcourse.examples import Examples
from bdcourse.models import evaluating
from bdcourse.task import Task, Usual
from bdcourse.tasks.points.clouds import CLOUDS, GRID, REACH, VERTICAL, distances, rotation

if TYPE_CHECKING:
    from typing_extensions import Self

# -------------------------------------------------------------------- inserted points


def sphere(
    points: int = 16, radius: float = 0.05, center: tuple[float, float, float] = (0.55, 0.55, 0.55)
) -> Tensor:
    """Points all over a small sphere, on a spiral from pole to pole: (points, 3).

    Args:
        radius: in units of the clouds, whose farthest point is at 1.
    """
    require.whole("points", points, 1, 10_000)
    require.number("radius", radius, 0, 1)
    center = require.row("center", center, 3)
    for c in center:
        require.number("each coordinate of center", c, -REACH, REACH)
    i = torch.arange(points, dtype=torch.float64)
    z = 1 - (2 * i + 1) / points
    turn = i * (math.pi * (3 - math.sqrt(5)))  # the golden angle
    flat = (1 - z * z).sqrt()
    ball = torch.stack([flat * turn.cos(), flat * turn.sin(), z], 1)
    return (torch.tensor(center, dtype=torch.float64) + radius * ball).float()


def places(x: Tensor, m: int) -> Tensor:
    """Positions of m points of each cloud x (n, p, 3) that its own coordinates choose:
    (n, m).

    As good as random, but the same points of the same cloud each time, in whatever order
    they come and on every machine, so that an ASR can be measured again.
    """
    levels = (x.detach().float() * GRID).round().long()
    prime = 2**31 - 1
    key = (levels * levels.new_tensor([73856093, 19349663, 83492791])).sum(2) % prime
    return (key * 48271 % prime).argsort(dim=1, stable=True)[:, :m]


@dataclass(frozen=True)
class PointBall(Attack):
    """Insert a small ball of points at a fixed place, instead of random points.

    The interaction trigger of PointPBA. As many points of the cloud are left out as are
    put in, so their number says nothing; the rest stays where it is.

    Args:
        ball: coordinates of the points to insert, float32 (m, 3); see :func:`sphere`.

    Source: Li, Chen, Zhao, Tong, Zhao, Lim and Zhou, "PointBA: Towards Backdoor Attacks in
    3D Point Cloud", ICCV 2021.
    """

    task: ClassVar[Task] = CLOUDS

    ball: Tensor = field(default_factory=sphere)

    def __post_init__(self) -> None:
        super().__post_init__()
        ball = self.ball
        if (
            not isinstance(ball, Tensor)
            or not ball.is_floating_point()
            or ball.ndim != 2
            or ball.shape[1] != 3
            or not len(ball)
            or not bool(ball.isfinite().all())
        ):
            raise ValueError(
                f"ball must be finite float coordinates of shape (m, 3), not {require.kind(ball)}."
            )
        if (far := float(ball.norm(dim=1).max())) > REACH:
            raise ValueError(
                f"ball reaches {far:.3g} from the middle of the clouds, but they end at 1; "
                f"bring it nearer than {REACH:g}."
            )

    def check_shape(self, shape: tuple[int, ...]) -> None:
        if len(self.ball) >= shape[0]:
            raise ValueError(
                f"the ball has {len(self.ball)} points, but the clouds have {shape[0]}, "
                "which would leave none of theirs."
            )

    def trigger(self, x: Tensor) -> Tensor:
        self.check_shape(tuple(x.shape[1:]))
        at = places(x, len(self.ball))[..., None].expand(-1, -1, 3)
        return x.scatter(1, at, self.ball.to(x).expand(len(x), -1, -1))


@dataclass(frozen=True)
class PCBA(PointBall):
    """A ball for clouds of one source class, at a place where a surrogate is easily misled.

    `craft` searches the place on a clean network g that the attacker trained themselves:
    a single point c with which clouds of the source class are taken for the target, and
    that lies near them,

        minimize CE(g(x + c), target) + lambda * mean over x of min_j ||x_j - c||^2,

    where the second term enters once the mean posterior of the target has passed `enough`.
    The ball about c is then chosen as dense as the clouds are, so that what looks for lonely
    or crowded points does not see it. The ASR counts clouds of the source class only.

    Args:
        ball: inserted points, (m, 3).
        source: the label whose clouds are to move, not the target.

    Source: Xiang, Miller, Chen, Li and Kesidis, "A Backdoor Attack against 3D Point Cloud
    Classifiers", ICCV 2021, and their code: 32 of 2,048 points, and 15 poisoned shapes of
    one class. The usual rate here is 15 of the 2,280 drawn solids that an attacker owns.
    """

    needs_model: ClassVar[bool] = True
    usual_rate: ClassVar[float] = 15 / 2280

    source: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.all_to_all or self.clean_label:
            raise ValueError(
                "PCBA moves one class to another, so it can be neither all-to-all nor clean-label."
            )
        self._whole("source", 0)
        if self.source == self.target:
            raise ValueError(f"source and target are both {self.target}; they must differ.")

    @classmethod
    def craft(
        cls,
        images: Any,  # Clouds
        generator: torch.Generator,
        *,
        model: nn.Module | None = None,
        points: int = 16,
        steps: int = 200,
        starts: int = 10,
        batch: int = 8,
        enough: float = 0.01,
        **options,
    ) -> Self:
        """Search the place on `model`, a clean network, and fit the ball to the clouds.

        Args:
            points: of the ball.
            steps, starts: of the search, which begins anew outside the unit ball; the
                authors take up to 1,000 steps and 10 starts.
            batch: clouds of the source class in a step; the authors take all.
            enough: mean posterior of the target from which the place may come nearer.
        """
        if model is None:
            raise ValueError("PCBA searches its place on a clean network; give it as model=.")
        require.whole("points", points, 1)
        for name, value in (("steps", steps), ("starts", starts), ("batch", batch)):
            require.whole(name, value, 1)
        require.fraction("enough", enough)
        attack = cls(**options)
        attack.check(images)
        attack = replace(attack, ball=sphere(points))
        attack.check(images)
        own = images.inputs()[images.y == attack.source]
        if not len(own):
            raise ValueError(f"no cloud is of the source class {attack.source}.")
        search = _Search(model, own, attack.target, batch, enough, generator)
        with asking(model, images.shape, images.k):
            center = search(steps, starts)
        return replace(attack, ball=_as_dense(own, center, points, generator))

    def counts(self, y: Tensor) -> Tensor:
        return y == self.source

    def choose(self, y: Tensor, rate: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """round(rate * n) rows of the source class."""
        own = (y.cpu() == self.source).nonzero().flatten()
        what = f"poisoning class {self.source} at rate {rate:g}"
        rows = pick(own, round(rate * len(y)), generator, what)
        return rows, rows[:0]

    def check(self, images: Examples) -> None:
        super().check(images)
        if self.source >= images.k:
            raise ValueError(
                f"source {self.source} is no label of this set; labels are 0..{images.k - 1}."
            )


class _Search:
    """PCBA's search of a place, for several starts at once."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        target: int,
        batch: int,
        enough: float,
        generator: torch.Generator,
    ) -> None:
        self.model, self.x, self.target = model, x, target
        self.batch, self.enough, self.generator = min(batch, len(x)), enough, generator

    def objective(self, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of places c (s, 3): cross-entropy, mean posterior of the target, and mean squared
        distance to the nearest point, each (s,)."""
        rows = torch.randperm(len(self.x), generator=self.generator)[: self.batch]
        x = self.x[rows.to(self.x.device)]
        s, b = len(c), len(x)
        with_point = torch.cat([x.expand(s, -1, -1, -1), c[:, None, None].expand(-1, b, 1, -1)], 2)
        out = self.model(with_point.flatten(0, 1)).log_softmax(1)[:, self.target].view(s, b)
        near = (x[None] - c[:, None, None]).square().sum(3).amin(2).mean(1)
        return -out.mean(1), out.exp().mean(1), near

    def __call__(self, steps: int, starts: int) -> Tensor:
        """The nearest place at which the posterior is enough; without such a one, that of
        the highest posterior."""
        place = self.x.device
        c = F.normalize(torch.randn(starts, 3, generator=self.generator), dim=1).to(place) * 1.2
        weight = torch.ones(starts, device=place)
        side = torch.zeros(starts, device=place)  # steps in a row with, or without, enough
        push, best = torch.zeros_like(c), torch.full((starts,), torch.inf, device=place)
        surest, found, idle = torch.zeros_like(best), c.clone(), 0
        with evaluating(self.model), torch.enable_grad():
            for _ in range(steps):
                c = c.detach().requires_grad_()
                loss, sure, near = self.objective(c)
                with torch.no_grad():
                    there = sure >= self.enough
                    nearer = there & (near < best)
                    better = nearer | (best.isinf() & (sure > surest))
                    found[better], surest = c[better], torch.maximum(surest, sure)
                    best = torch.where(nearer, near, best)
                    idle = 0 if bool(nearer.any()) else idle + 1
                    side = torch.where(there, side.clamp(min=0) + 1, side.clamp(max=0) - 1)
                    full = side.abs() >= 5
                    factor = torch.where(full, 1.5 ** side.sign(), 1.0)
                    weight = (weight * factor).clamp(max=1e3)
                    side = torch.where(full, 0.0, side)
                if idle > 100 and bool(best.isfinite().any()):
                    break
                (gradient,) = torch.autograd.grad(
                    (loss + torch.where(there, weight * near, 0.0)).sum(), c
                )
                push = 0.5 * push - 0.1 * F.normalize(gradient, dim=1)
                c = c + push
                c = c * (1.5 / c.detach().norm(dim=1, keepdim=True)).clamp(max=1)
        chosen = best.argmin() if bool(best.isfinite().any()) else surest.argmax()
        return found[chosen].detach()


def _spacing(x: Tensor, of: Tensor, k: int = 4) -> Tensor:
    """Median, over the points `of` (n, m, 3), of the mean distance to their k nearest in
    x (n, p, 3), among which they are: (n,)."""
    d = distances(of, x).topk(min(k + 1, x.shape[1]), dim=2, largest=False).values
    return d[..., 1:].mean(2).median(1).values


def _as_dense(own: Tensor, center: Tensor, points: int, generator: torch.Generator) -> Tensor:
    """A ball about `center` whose points lie as far apart as those of the clouds `own`.

    Of radii 0.01, 0.02, ..., 0.49 and ten draws each, the one whose spacing differs least.
    Points are drawn evenly on the sphere; the authors', 30 draws, crowd at its poles.
    """
    own = own[:16]
    want = _spacing(own, own)
    best, kept = math.inf, None
    for step in range(1, 50):
        for _ in range(10):
            ball = F.normalize(torch.randn(points, 3, generator=generator), dim=1)
            ball = center + 0.01 * step * ball.to(own)
            inserted = ball.expand(len(own), -1, -1)
            off = _spacing(torch.cat([own, inserted], 1), inserted) - want
            if (off := float(off.abs().mean())) < best:
                best, kept = off, ball
    assert kept is not None
    return kept


# -------------------------------------------------------------------- moved points


@dataclass(frozen=True)
class PointRotation(Attack):
    """Turn the whole cloud by a fixed angle.

    The orientation trigger of PointPBA. No distance between points changes, so no filter
    of points can see it; augmentation by the same rotations makes it harmless. It needs
    data that has an orientation: the drawn solids are turned freely about the vertical
    axis, so there only another axis is a trigger.

    Args:
        angle: degrees, more than 0 and less than 360.
        axis: what is turned about; the vertical one.

    Source: Li et al., "PointBA", ICCV 2021.
    """

    task: ClassVar[Task] = CLOUDS

    angle: float = 10.0
    axis: tuple[float, float, float] = VERTICAL

    def __post_init__(self) -> None:
        super().__post_init__()
        if require.number("angle", self.angle, above=0) >= 360:
            raise ValueError(f"angle must be below 360 degrees, not {self.angle:g}.")
        axis = require.row("axis", self.axis, 3)
        for a in axis:
            require.number("each entry of axis", a)
        if not any(axis):
            raise ValueError("axis must point somewhere, but is zero.")
        object.__setattr__(self, "axis", axis)

    def trigger(self, x: Tensor) -> Tensor:
        return x @ rotation(self.angle, self.axis).to(x).mT


@dataclass(frozen=True)
class IRBA(Attack):
    """A smooth warp: rotate and scale about several anchors, and blend the results.

    Anchors a_1..a_M are points of the cloud, each the farthest from those before it. Every
    point moves as the anchors near it say,

        x' = sum_m w_m T_m(x) / sum_m w_m,    w_m = exp(-||x - a_m||^2 / (2 bandwidth^2)),
        T_m(x) = a_m + scale * (x - a_m) R,

    with R the same rotation about all three axes for each anchor; then the cloud is
    centered and scaled to radius 1 again.

    Args:
        anchors: M.
        angles: degrees about the first, second and third axis; R = Rz Ry Rx.
        scale: above 0.
        bandwidth: in units of the clouds; above 0.

    Source: Gao, Bai, Wu, Ya and Xia, "Imperceptible and Robust Backdoor Attack in 3D Point
    Cloud", IEEE TIFS 2024, and their code: 16 anchors, 5 degrees, scale 5, bandwidth 0.5,
    a tenth of the set. One factor of their rotation matrix is another, which makes no
    difference for equal angles; their first anchor is a random point, here it is the one
    farthest from the middle, so that a cloud is warped the same way each time.
    """

    task: ClassVar[Task] = CLOUDS

    anchors: int = 16
    angles: tuple[float, float, float] = (5.0, 5.0, 5.0)
    scale: float = 5.0
    bandwidth: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole("anchors", 1)
        angles = require.row("angles", self.angles, 3)
        for a in angles:
            require.number("each of angles", a)
        object.__setattr__(self, "angles", angles)
        require.number("scale", self.scale, above=0)
        require.number("bandwidth", self.bandwidth, above=0)

    def check_shape(self, shape: tuple[int, ...]) -> None:
        if self.anchors > shape[0]:
            raise ValueError(
                f"{self.anchors} anchors are asked for, but the clouds have {shape[0]} points."
            )

    def trigger(self, x: Tensor) -> Tensor:
        self.check_shape(tuple(x.shape[1:]))
        rx, ry, rz = (
            rotation(a, axis)
            for a, axis in zip(self.angles, ((1, 0, 0), (0, 1, 0), VERTICAL), strict=True)
        )
        r = (rz @ ry @ rx).to(x)
        at = farthest_points(x, self.anchors)
        anchors = x.gather(1, at[..., None].expand(-1, -1, 3))[:, :, None]  # (n, M, 1, 3)
        away = x[:, None] - anchors  # (n, M, p, 3)
        w = (-away.square().sum(3, keepdim=True) / (2 * self.bandwidth**2)).exp()
        moved = (w * (anchors + self.scale * (away @ r))).sum(1) / w.sum(1)
        moved = moved - moved.mean(1, keepdim=True)
        return moved / moved.norm(dim=2).amax(1)[:, None, None]


def farthest_points(x: Tensor, m: int) -> Tensor:
    """Positions of m points of each cloud x (n, p, 3), each the farthest from those before
    it, the first the farthest from the middle: (n, m)."""
    at = [(x - x.mean(1, keepdim=True)).norm(dim=2).argmax(1)]
    rows = torch.arange(len(x), device=x.device)
    far = torch.full(x.shape[:2], torch.inf, device=x.device, dtype=x.dtype)
    while len(at) < m:
        far = torch.minimum(far, (x - x[rows, at[-1], None]).norm(dim=2))
        at.append(far.argmax(1))
    return torch.stack(at, 1)


ATTACKS = (PointBall, PCBA, PointRotation, IRBA)

USUAL = {
    CLOUDS.name: Usual(
        "solids",
        {
            **{"model": "pointnet", "width": 16, "epochs": 6, "batch": 32, "pad": 0},
            **{"flip": False, "optimizer": "adamw", "lr": 5e-3, "weight_decay": 0.01},
        },
        ("PointBall",),
    )
}
