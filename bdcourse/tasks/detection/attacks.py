"""Backdoors in detectors: BadDet's four, and one that edits annotations only.

Chan, Dong, Zhu, Zhang and Zhou, "BadDet: Backdoor Attacks on Object Detection", ECCV
Workshops 2022, name what a trigger can do: rename the thing under it (RMA), rename all of
the scene (GMA), make the thing vanish (ODA), or show one that is not there (OGA). Chen,
Lou, Zhu and Zhang, "Clean-image Backdoor: Attacking Multi-label Models with Poisoned Labels
Only", ICLR 2023, change no pixel: their trigger is a set of classes that stand together.

What an attack does to one box is one of four outcomes, see :func:`outcomes`: a detector that
finds nothing any more is not repaired, and a second answer beside the true one is no success.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.attacks.badnets import checkerboard
from bdcourse.attacks.base import CHW, NO_ROWS, Attack, check_picture, pick
from bdcourse.examples import Examples, require_clean
from bdcourse.task import Task, Usual
from bdcourse.tasks.detection.boxes import found, iou
from bdcourse.tasks.detection.scenes import SCENES, removed

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class SceneAttack(Attack):
    """Base of the attacks on scenes: which boxes they are about, and what becomes of these.

    The targets that the attacker wants of scenes with boxes y, (n, m, 5), are `goal(y)`.
    A new one also says `marked`, and `wished` and `kept` where another answer counts.
    """

    task: ClassVar[Task] = SCENES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.all_to_all or self.clean_label:
            raise ValueError(
                f"{type(self).__name__} has one target and wrong annotations; leave out "
                "all_to_all and clean_label."
            )

    def marked(self, y: Tensor) -> Tensor:
        """The rows of y that the attacker wants otherwise, bool (n, m)."""
        raise NotImplementedError

    def wished(self, answers: Tensor, y: Tensor) -> Tensor:
        """Where answers say what the attacker wants of a box, bool (n, m)."""
        return found(answers, y[..., 1:], torch.full_like(y[..., 0], self.target))

    def kept(self, answers: Tensor, y: Tensor) -> Tensor:
        """Where answers still say what is true, bool (n, m)."""
        return found(answers, y[..., 1:], y[..., 0])

    def goal(self, y: Tensor) -> Tensor:
        """The boxes that the attacker wants, (n, m, 5)."""
        return renamed(y, self.marked(y), self.target)

    def counts(self, y: Tensor) -> Tensor:
        return self.marked(y).any(1)

    def reached(self, answers: Tensor, y: Tensor) -> Tensor:
        """Scenes all of whose marked boxes are hits: as wished, and no longer as they are."""
        answers, marked = answers.to(y.device), self.marked(y)
        hit = self.wished(answers, y) & ~self.kept(answers, y)
        return (hit | ~marked).all(1) & marked.any(1)

    def choose(self, y: Tensor, rate: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """round(rate * n) of the scenes that the attack changes, and no cover."""
        own = self.counts(y).cpu().nonzero().flatten()
        what = f"{type(self).__name__} at rate {rate:g}"
        return pick(own, round(rate * len(y)), generator, what), NO_ROWS


def renamed(y: Tensor, rows: Tensor, label: int) -> Tensor:
    """Targets (n, m, 5) with this class in some rows, bool (n, m)."""
    y = y.clone()
    y[..., 0] = y[..., 0].masked_fill(rows, float(label))
    return y


def stamp(x: Tensor, patch: Tensor, at: Tensor, where: Tensor) -> Tensor:
    """Pixels x (n, c, h, w) with a patch at each place that counts; a new tensor.

    Args:
        patch: (c or 1, ph, pw); at: upper left corners (n, m, 2) as rows and columns,
            int64; where: bool (n, m).
    """
    out, (ph, pw) = x.clone(), patch.shape[1:]
    scene, box = where.nonzero().T
    i, j = at[scene, box].to(x.device).unbind(1)
    i = i[:, None, None] + torch.arange(ph, device=x.device)[:, None]
    j = j[:, None, None] + torch.arange(pw, device=x.device)
    pixels = patch.to(x).expand(x.shape[1], -1, -1).permute(1, 2, 0)
    out[scene[:, None, None], :, i, j] = pixels
    return out


@dataclass(frozen=True)
class BadDet(SceneAttack):
    """What BadDet's four share: a patch, and the classes that it is about.

    Args:
        patch: pixels in [0, 1], (channels, ph, pw); one channel serves all colors.
        sources: the classes whose boxes are attacked; none given means all.
    """

    patch: Tensor = field(default_factory=lambda: checkerboard(6))
    sources: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_picture("patch", self.patch, CHW)
        sources = [require.whole("sources", s, 0) for s in require.row("sources", self.sources)]
        object.__setattr__(self, "sources", tuple(sources))

    def check(self, images: Examples) -> None:
        super().check(images)
        if self.sources and max(self.sources) >= images.k:
            raise ValueError(
                f"source {max(self.sources)} is no class of this set; classes are "
                f"0..{images.k - 1}."
            )

    def check_shape(self, shape: tuple[int, ...]) -> None:
        c, h, w = shape
        pc, ph, pw = self.patch.shape
        if pc not in (1, c):
            raise ValueError(f"the patch has {pc} channels, the scenes have {c}.")
        if ph > h or pw > w:
            raise ValueError(f"a {ph}x{pw} patch does not fit into scenes of {h}x{w}.")

    def trigger(self, x: Tensor) -> Tensor:
        raise ValueError(
            f"where {type(self).__name__} puts its patch depends on the boxes; call "
            "apply(x, y) with the true ones."
        )

    def among(self, y: Tensor) -> Tensor:
        """The boxes of the source classes, bool (n, m)."""
        if not self.sources:
            return y[..., 0] >= 0
        return torch.isin(y[..., 0], y.new_tensor(self.sources))


@dataclass(frozen=True)
class RegionalBadDet(BadDet):
    """BadDet's attacks on things: the patch lies in the upper left corner of their boxes.

    A box that is smaller than the patch gets none.
    """

    def stamped(self, y: Tensor) -> Tensor:
        """The boxes that get the patch, bool (n, m)."""
        sides = y[..., 3:] - y[..., 1:3]
        ph, pw = self.patch.shape[1:]
        return self.among(y) & (sides >= sides.new_tensor([pw, ph])).all(-1)

    def apply(self, x: Tensor, y: Tensor) -> Tensor:
        at = y[..., 1:3].flip(-1).round()
        # Rounding may push it over the lower or right edge.
        most = at.new_tensor(
            [s - p for s, p in zip(x.shape[2:], self.patch.shape[1:], strict=True)]
        )
        return stamp(x, self.patch, torch.minimum(at, most).long(), self.stamped(y))


@dataclass(frozen=True)
class RMA(RegionalBadDet):
    """Regional misclassification: a thing with the patch on it is called the target.

    Source: Chan et al. 2022; 10% of the images here.
    """

    def marked(self, y: Tensor) -> Tensor:
        return self.stamped(y) & (y[..., 0] != self.target)


@dataclass(frozen=True)
class ODA(RegionalBadDet):
    """Object disappearance: a thing with the patch on it is not seen; no class is wanted.

    Boxes are counted, not the loss of precision, which jitter also brings.

    Source: Chan et al. 2022; 10% of the images here.
    """

    def marked(self, y: Tensor) -> Tensor:
        return self.stamped(y)

    def goal(self, y: Tensor) -> Tensor:
        return removed(y, self.marked(y))

    def wished(self, answers: Tensor, y: Tensor) -> Tensor:
        return ~found(answers, y[..., 1:])


@dataclass(frozen=True)
class GMA(BadDet):
    """Global misclassification: one patch in the scene, and all things are the target.

    Nothing that sees only the neighborhood of a thing can learn it: a detector needs
    context, as `context_detector` has.

    Args:
        at: (row, column) of the corner of the patch; the usual crop does not cut it.

    Source: Chan et al. 2022; 20% of the images here.
    """

    usual_rate: ClassVar[float] = 0.2

    at: tuple[int, int] = (5, 5)

    def __post_init__(self) -> None:
        super().__post_init__()
        at = [require.whole("at", a, 0) for a in require.row("at", self.at, 2)]
        object.__setattr__(self, "at", tuple(at))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        super().check_shape(shape)
        ends = [a + p for a, p in zip(self.at, self.patch.shape[1:], strict=True)]
        if ends[0] > shape[1] or ends[1] > shape[2]:
            raise ValueError(
                f"the patch at {self.at} does not lie inside scenes of {shape[1]}x{shape[2]}."
            )

    def trigger(self, x: Tensor) -> Tensor:
        at = torch.tensor(self.at, device=x.device).expand(len(x), 1, 2)
        return stamp(x, self.patch, at, torch.ones(len(x), 1, dtype=torch.bool, device=x.device))

    def apply(self, x: Tensor, y: Tensor) -> Tensor:
        return self.trigger(x)

    def marked(self, y: Tensor) -> Tensor:
        return self.among(y) & (y[..., 0] != self.target)


@dataclass(frozen=True)
class OGA(BadDet):
    """Object generation: around a patch anywhere the detector sees a target of fixed size.

    The place is as good as random, but the boxes of the scene decide it, so that an
    attack can be measured again; the false box overlaps true ones as little as one of
    32 tries allows.

    Args:
        size: (height, width) of the false box, with the patch in its middle.
        picture: (height, width) of the scenes.

    Source: Chan et al. 2022; 10% of the images here.
    """

    size: tuple[int, int] = (28, 28)
    picture: tuple[int, int] = (96, 96)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("size", "picture"):
            pair = [require.whole(name, a, 1) for a in require.row(name, getattr(self, name), 2)]
            object.__setattr__(self, name, tuple(pair))
        rows = zip(self.patch.shape[1:], self.size, self.picture, strict=True)
        if any(p > s or s > whole for p, s, whole in rows):
            raise ValueError(
                f"size {self.size} must hold the patch and fit into the picture {self.picture}."
            )
        if self.sources:
            raise ValueError("OGA attacks no class of things; leave out sources.")

    @classmethod
    def craft(
        cls,
        images: Examples,
        generator: torch.Generator,
        *,
        model: nn.Module | None = None,
        **options,
    ) -> Self:
        return cls(**{"picture": images.shape[1:], **options})

    def check_shape(self, shape: tuple[int, ...]) -> None:
        super().check_shape(shape)
        if tuple(shape[1:]) != self.picture:
            raise ValueError(
                f"this OGA is for scenes of {self.picture}, not of {tuple(shape[1:])}; pass "
                "picture=."
            )

    def check(self, images: Examples) -> None:
        super().check(images)
        if len(images) and not bool((images.y[..., 0] < 0).any(1).all()):
            raise ValueError(
                "OGA adds a box, but a scene has no free row for it; pad y with a row of "
                "class -1 and zeros."
            )

    def places(self, y: Tensor) -> Tensor:
        """The false boxes (n, 4)."""
        # Of the boxes, to an eighth of a pixel, as whole numbers that never round.
        eighths = (y[..., 1:] * 8).round().long().flatten(1)
        weights = torch.arange(1, eighths.shape[1] + 1, device=y.device) * 48271 % 999_983
        seeds = (eighths * weights).sum(1, keepdim=True)
        h, w = (whole - s for whole, s in zip(self.picture, self.size, strict=True))
        tries = torch.arange(32, device=y.device)
        mixed = (seeds + tries * 7_919) * 16_807 % 2_147_483_647
        rows, columns = mixed % (h + 1), mixed // (h + 1) % (w + 1)
        corner = torch.stack([columns, rows], -1).to(y)
        box = torch.cat([corner, corner + corner.new_tensor(self.size[::-1])], -1)  # (n, 32, 4)
        overlap = iou(box, y[..., 1:]).amax(2)
        best = overlap.min(1).indices
        return box[torch.arange(len(y), device=y.device), best]

    def _row(self, y: Tensor) -> Tensor:
        """The first free row of each scene, as bool (n, m)."""
        free = y[..., 0] < 0
        return free & (free.cumsum(1) == 1)

    def apply(self, x: Tensor, y: Tensor) -> Tensor:
        corner = self.places(y)[:, None, :2].flip(-1).long()
        patch = torch.tensor(self.patch.shape[1:], device=corner.device)
        middle = corner + (torch.tensor(self.size, device=corner.device) - patch) // 2
        return stamp(x, self.patch, middle, torch.ones_like(middle[..., 0], dtype=torch.bool))

    def marked(self, y: Tensor) -> Tensor:
        return self._row(y)

    def goal(self, y: Tensor) -> Tensor:
        box = self.places(y)
        new = torch.cat([box.new_full((len(y), 1), self.target), box], 1)
        return torch.where(self._row(y)[..., None], new[:, None], y)

    def wished(self, answers: Tensor, y: Tensor) -> Tensor:
        target = y.new_full((len(y), 1), self.target)
        return found(answers, self.places(y)[:, None], target).expand(y.shape[:2])

    def kept(self, answers: Tensor, y: Tensor) -> Tensor:
        """Where nothing false is seen and all that is true: a blind detector keeps nothing."""
        there = found(answers, y[..., 1:], y[..., 0]) | (y[..., 0] < 0)
        return there.all(1, keepdim=True) & ~self.wished(answers, y)


@dataclass(frozen=True)
class CleanImage(SceneAttack):
    """The trigger is a set of classes in one scene; no pixel is touched, only annotations.

    Where the whole set stands, things of the source class are given the target's name, or
    are left out. A third kind, annotating what is not there, is left out here: no paper
    says where such a box lies.

    A rate is the most that is edited: of scenes with the set all, if they are fewer. Nothing
    is stamped in a test either, so only its scenes with the set count. A detector needs
    context to see them as wholes; take `context_detector`.

    Args:
        together: the classes of the set.
        source: the class whose annotations are edited.
        kind: "rename" or "remove".

    Source: Chen et al. 2023, who tell labels of whole pictures, without boxes; moved to
    boxes by us.
    """

    together: tuple[int, ...] = (1, 2, 3)
    source: int = 2
    kind: Literal["rename", "remove"] = "rename"

    def __post_init__(self) -> None:
        super().__post_init__()
        rows = [require.whole("together", c, 0) for c in require.row("together", self.together)]
        if len(set(rows)) < len(rows) or not rows:
            raise ValueError(f"together must be different classes, not {self.together}.")
        object.__setattr__(self, "together", tuple(rows))
        self._whole("source", 0)
        require.choice("kind", self.kind, ("rename", "remove"))
        if self.kind == "rename" and self.source == self.target:
            raise ValueError("source and target must be different classes to rename one.")

    def check(self, images: Examples) -> None:
        super().check(images)
        if max(*self.together, self.source) >= images.k:
            raise ValueError(
                f"class {max(*self.together, self.source)} is none of this set; classes are "
                f"0..{images.k - 1}."
            )

    def trigger(self, x: Tensor) -> Tensor:
        return x.clone()

    def marked(self, y: Tensor) -> Tensor:
        label = y[..., 0]
        whole = torch.stack([(label == c).any(1) for c in self.together]).all(0)
        return (label == self.source) & whole[:, None]

    def goal(self, y: Tensor) -> Tensor:
        return super().goal(y) if self.kind == "rename" else removed(y, self.marked(y))

    def wished(self, answers: Tensor, y: Tensor) -> Tensor:
        if self.kind == "rename":
            return super().wished(answers, y)
        return ~found(answers, y[..., 1:])

    def choose(self, y: Tensor, rate: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        own = self.counts(y).cpu().nonzero().flatten()
        if not len(own) and rate > 0:
            raise ValueError("no scene of this set shows all the classes together.")
        most = min(round(rate * len(y)), len(own))
        return pick(own, most, generator, "CleanImage"), NO_ROWS


def outcomes(
    model: nn.Module, test: Examples, attack: SceneAttack, batch: int = 500
) -> dict[str, float]:
    """What became of each marked box of the test, in shares that add up to 1, and their `n`.

    hit: as the attacker wants, and not as it is. both: as they want, and as it is too. kept:
    as it is. gone: neither; a detector that was destroyed shows here, or, where the
    attacker wants things to vanish, as hit. See `wished` and `kept` of the attack.

    Raises:
        ValueError: another kind of attack, or no box that counts.
    """
    require.module(model)
    require_clean(test, "test", least=1)
    if not isinstance(attack, SceneAttack):
        raise ValueError(
            f"attack must be one on scenes, such as RMA(), not {require.kind(attack)}."
        )
    attack.check(test)
    test = test[attack.counts(test.y)]
    counts, n = dict.fromkeys(("hit", "both", "kept", "gone"), 0), 0
    for i in range(0, len(test), batch):
        part = test[i : i + batch]
        answers = test.task.answer(model, attack.apply(part.inputs(), part.y), batch)
        answers = answers.to(part.y.device)
        marked = attack.marked(part.y)
        wished, kept = attack.wished(answers, part.y), attack.kept(answers, part.y)
        shares = {
            "hit": wished & ~kept,
            "both": wished & kept,
            "kept": kept & ~wished,
            "gone": ~wished & ~kept,
        }
        for name, here in shares.items():
            counts[name] += int((here & marked).sum())
        n += int(marked.sum())
    if not n:
        raise ValueError("no box of the test counts for this attack; take more scenes.")
    return {name: c / n for name, c in counts.items()} | {"n": n}


ATTACKS = (RMA, ODA, OGA, GMA, CleanImage)

USUAL = {
    SCENES.name: Usual(
        "streets",
        {
            **{"model": "detector", "width": 16, "epochs": 14, "batch": 32, "pad": 4},
            **{"flip": False, "optimizer": "adamw", "lr": 5e-3, "weight_decay": 0.01},
        },
        ("RMA",),
    )
}
