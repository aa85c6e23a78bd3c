"""Scenes: pictures with boxes, what a detector answers to them, and how they are moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.augment import Augmentation, moved_crops
from bdcourse.examples import Examples
from bdcourse.likelihoods import Likelihood
from bdcourse.task import PixelTask
from bdcourse.tasks.detection.boxes import STRIDE, average_precision, found, from_cells, said
from bdcourse.tasks.detection.likelihood import BoxLikelihood


class DetectionTask(PixelTask):
    """Pictures with boxes: uint8 (n, c, h, w) and float32 (n, m, 5); see :class:`Scenes`.

    Answers are (n, d, 6): class, box and score, see `boxes.from_cells`. One is right if it
    finds every box of the scene by its class, and nothing else.
    """

    name = "detection"
    one, many = "scene", "scenes"
    likelihood: Likelihood = BoxLikelihood()

    def check(self, x: Tensor, y: Tensor, classes: tuple[str, ...], what: str) -> None:
        self.check_stored(x, what)
        h, w = x.shape[2:]
        if h % STRIDE or w % STRIDE:
            raise ValueError(
                f"the sides of scenes must be multiples of {STRIDE} pixels, not {h} and {w}."
            )
        self.check_targets(y, len(x), len(classes), f"{what}.y")
        if y.numel() and bool((y[..., 1:] > y.new_tensor([w, h, w, h])).any()):
            row = int((y[..., 1:] > y.new_tensor([w, h, w, h])).flatten(1).any(1).nonzero()[0])
            raise ValueError(
                f"a box of scene {row} of {what} reaches beyond the picture of {h}x{w}; clip it."
            )

    def check_targets(self, y: object, n: int, k: int | None = None, name: str = "y") -> Tensor:
        """Refuse what are no boxes of n scenes, float32 (n, m, 5), with classes below k."""
        if (
            not isinstance(y, Tensor)
            or y.dtype != torch.float32
            or y.ndim != 3
            or len(y) != n
            or y.shape[2] != 5
            or not y.shape[1]
        ):
            raise ValueError(
                f"{name} must be float32 of shape ({n}, m, 5), class and box of each "
                f"scene's things, not {require.kind(y)}."
            )
        if not bool(y.isfinite().all()):
            raise ValueError(f"{name} must be finite numbers.")
        label, box = y[..., 0], y[..., 1:]
        if bool((label != label.round()).any()) or bool((label < -1).any()):
            raise ValueError(f"the classes in {name} must be whole numbers from -1, for none, on.")
        if k is not None and n and int(label.max()) >= k:
            raise ValueError(
                f"the classes in {name} run to {int(label.max())}, but there are {k}, so they "
                f"must lie in 0..{k - 1}."
            )
        used = label >= 0
        if bool((box[~used] != 0).any()):
            raise ValueError(f"rows of {name} with class -1 hold no box, so they must be zeros.")
        flat = (box[..., 2:] <= box[..., :2]).any(-1) | (box < 0).any(-1)
        if bool((flat & used).any()):
            row = int((flat & used).any(1).nonzero()[0])
            raise ValueError(
                f"a box of scene {row} of {name} is none: x1, y1, x2, y2 must be pixels with "
                "0 <= x1 < x2 and 0 <= y1 < y2."
            )
        return y

    def labels(self, y: Tensor) -> Tensor:
        return y[..., 0][y[..., 0] >= 0].long()

    def augmentation(self, pad: int, flip: bool | str = False) -> Augmentation:
        if flip:
            raise ValueError("scenes are not mirrored, as arrows and letters would be others.")
        return SceneCrop(pad)

    # ---------------------------------------------------------------- answers

    def check_outputs(
        self, out: object, n: int, k: int | None = None, name: str = "the model"
    ) -> Tensor:
        if (
            not isinstance(out, Tensor)
            or not out.is_floating_point()
            or out.ndim != 4
            or len(out) != n
            or out.shape[1] < 5
        ):
            raise ValueError(
                f"{name} must answer with what its cells say, of shape (n, classes + 4, rows, "
                f"columns), not with {require.kind(out)} for {n} scenes."
            )
        if k is not None and out.shape[1] != k + 4:
            raise ValueError(
                f"{name} tells {out.shape[1] - 4} classes apart, but the scenes have {k}; take "
                "the scenes that it was trained on."
            )
        return out

    def check_learnable(self, out: object, y: Tensor, data: Examples) -> None:
        out = self.check_outputs(out, len(y))
        grid = tuple(side // STRIDE for side in data.shape[1:])
        if tuple(out.shape[2:]) != grid:
            raise ValueError(
                f"the model has {out.shape[2]}x{out.shape[3]} cells, but scenes of "
                f"{data.shape[1]}x{data.shape[2]} pixels have {grid[0]}x{grid[1]}, one each "
                f"{STRIDE} pixels."
            )
        self.likelihood.check(out, data.y)

    def _said(self, model: nn.Module, x: Tensor) -> Tensor:
        return self.check_outputs(self._run(model, x), len(x), name="the network").float()

    def answer(
        self,
        model: nn.Module,
        x: Tensor,
        batch: int = 500,
        k: int | None = None,
        what: str = "the network's answers",
    ) -> Tensor:
        out = self.outputs(model, x, batch, what)
        return from_cells(self.check_outputs(out, len(x), k, "the network"))

    def correct(self, answers: Tensor, y: Tensor) -> Tensor:
        answers = answers.to(y.device)
        there = y[..., 0] >= 0
        all_found = (found(answers, y[..., 1:], y[..., 0]) | ~there).all(1)
        return all_found & (said(answers).sum(1) == there.sum(1))

    def quality(self, answers: Tensor, y: Tensor) -> dict[str, float]:
        """mAP50 over the classes that occur, and the share of scenes that are right."""
        each = average_precision(answers, y)
        right = self.correct(answers, y)
        return {
            "map50": sum(each.values()) / max(1, len(each)),
            "exact": int(right.sum()) / max(1, len(right)),
        }


SCENES = DetectionTask()


@dataclass(frozen=True, eq=False, repr=False)
class Scenes(Examples):
    """A set of pictures with boxes.

    Args:
        x: uint8 pixels, (n, c, h, w), 0..255; sides are multiples of 8.
        y: float32 (n, m, 5): class, x1, y1, x2, y2 in pixels from the left and upper
            edge; rows that are not used hold class -1 and zeros.
        classes: one name per class.
    """

    task: ClassVar[DetectionTask] = SCENES


class SceneCrop(Augmentation):
    """Moves a scene by up to `pad` pixels, and its boxes with it; black comes in.

    Boxes are cut at the edges; one of which less than half is left counts no more. There
    is no mirror: it would make other signs of arrows and letters.
    """

    def __init__(self, pad: int = 4) -> None:
        self.pad = require.whole("pad", pad, 0)

    def check(self, shape: tuple[int, ...]) -> None:
        if len(shape) != 3 or self.pad > min(shape[1:]):
            raise ValueError(
                f"SceneCrop moves scenes of shape (c, h, w) by up to {self.pad} pixels, not "
                f"examples of shape {tuple(shape)}."
            )

    def batch(self, x: Tensor, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if not self.pad:
            return x, y
        h, w = x.shape[-2:]
        x, i, j = moved_crops(x, self.pad, generator)
        return x, shifted(y, self.pad - i, self.pad - j, (h, w))


def shifted(y: Tensor, down: Tensor, right: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (n, m, 5) moved by whole pixels (n,), cut at the edges of the picture."""
    h, w = size
    by = torch.stack([right, down, right, down], 1)[:, None].to(y)
    box = torch.minimum((y[..., 1:] + by).clamp(min=0), y.new_tensor([w, h, w, h]))
    area = [(b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1) for b in (box, y[..., 1:])]
    kept = (y[..., 0] >= 0) & (area[0] >= area[1] / 2)
    return removed(torch.cat([y[..., :1], box], -1), ~kept)


def removed(y: Tensor, rows: Tensor) -> Tensor:
    """Targets (n, m, 5) without the boxes in these rows, bool (n, m)."""
    y = y.masked_fill(rows[..., None], 0.0)
    y[..., 0] = y[..., 0].masked_fill(rows, -1.0)
    return y
