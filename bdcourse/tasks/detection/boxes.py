"""Boxes as tensors: overlap, the cells of a detector, what it answers, and how good that is.

Targets of a scene are (m, 5): class, x1, y1, x2, y2 in pixels, with class -1 and zeros in
rows that are not used. Answers are (d, 6): the same and a score, the most certain first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bdcourse.models import wide

STRIDE = 8  # pixels from one cell to the next
NEAR = 0.71  # strides: a cell this near to a box's center always answers for it
AT_LEAST = 0.05  # score of an answer that enters the average precision
SURE = 0.3  # score of an answer that counts as said
OVERLAP = 0.5  # IoU from which two boxes are at the same place
MOST = 300  # answers to one scene, before any is suppressed


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (..., m, 4) and (..., d, 4): (..., m, d).

    Boxes without area overlap nothing.
    """
    a, b = a[..., :, None, :], b[..., None, :, :]
    sides = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    inner = sides.clamp(min=0).prod(-1)
    whole = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inner
    return inner / whole.clamp(min=1e-9)


def suppressed(boxes: Tensor, valid: Tensor, overlap: float = OVERLAP) -> Tensor:
    """Which of ranked boxes greedy non-maximum suppression leaves, bool (n, d).

    Of each scene the first box stays, those that overlap it by more than `overlap` go,
    and so on with the first of the rest, whatever their classes.

    Args:
        boxes: (n, d, 4), the most certain first; valid: bool (n, d), which of them count.
    """
    keep = valid.clone()
    clash = iou(boxes, boxes) > overlap
    later = torch.ones(clash.shape[1:], dtype=torch.bool, device=boxes.device).triu(1)
    clash &= later
    for i in range(boxes.shape[1]):
        keep &= ~(keep[:, i, None] & clash[:, i])
    return keep


# -------------------------------------------------------------------- cells


def centers(grid: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the middles of cells, in pixels: (rows,), (columns,)."""
    rows, columns = (STRIDE * (torch.arange(g).to(like) + 0.5) for g in grid)
    return rows, columns


def to_cells(y: Tensor, k: int, grid: tuple[int, int]) -> Tensor:
    """Targets (n, m, 5) as what each cell should say: (n, k + 4, rows, columns).

    A cell answers for a box if its middle lies inside the box and within a quarter of
    the box's sides (at least :data:`NEAR` strides) of the box's center; of several
    boxes, for the smallest. It says 1 for the class, and the logarithms of the distances,
    in strides, from its middle to the left, upper, right and lower edge. Other cells say
    0 for all classes and nan for distances.
    """
    rows, columns = centers(grid, y)
    rows, columns = rows[:, None], columns[None]
    label, x1, y1, x2, y2 = y[..., None, None].unbind(2)  # each (n, m, 1, 1)
    sides = torch.stack(
        torch.broadcast_tensors(columns - x1, rows - y1, x2 - columns, y2 - rows), 2
    )  # (n, m, 4, rows, columns)
    near = (columns - (x1 + x2) / 2).abs() <= ((x2 - x1) / 4).clamp(min=NEAR * STRIDE)
    near = near & ((rows - (y1 + y2) / 2).abs() <= ((y2 - y1) / 4).clamp(min=NEAR * STRIDE))
    own = near & (sides > 0).all(2) & (label >= 0)  # (n, m, rows, columns)
    area = ((x2 - x1) * (y2 - y1)).expand_as(own).masked_fill(~own, torch.inf)
    smallest = area.argmin(1, keepdim=True)  # (n, 1, rows, columns)
    on = own.any(1, keepdim=True)
    said = label.expand_as(own).gather(1, smallest).long()
    classes = (said == torch.arange(k, device=y.device).view(1, k, 1, 1)) & on
    at = smallest[:, :, None].expand(-1, -1, 4, -1, -1)
    distances = sides.gather(1, at)[:, 0] / STRIDE
    distances = distances.where(on, torch.nan).log()
    return torch.cat([classes.to(y), distances], 1)


@torch.no_grad()
def from_cells(out: Tensor, least: float = AT_LEAST, overlap: float = OVERLAP) -> Tensor:
    """What a detector answers, (n, d, 6), of what its cells say, (n, k + 4, rows, columns).

    Boxes whose score, the probability of their class, is above `least`, without those
    that a more certain one suppresses; see :func:`suppressed`. Rows that are not used
    have class -1 and zeros. Ties are settled by position, so answers are the same again.
    """
    k, (high, wide) = out.shape[1] - 4, out.shape[2:]
    rows, columns = centers((high, wide), out)
    far = STRIDE * out[:, k:].clamp(max=8).exp()  # e^8 strides: beyond any picture
    left, up, right, down = far.unbind(1)
    box = torch.stack(
        [columns - left, rows[:, None] - up, columns + right, rows[:, None] + down], -1
    )  # (n, rows, columns, 4)
    most = STRIDE * out.new_tensor([wide, high, wide, high])
    box = torch.minimum(box.clamp(min=0), most).flatten(1, 2)
    score, order = out[:, :k].sigmoid().flatten(1).sort(dim=1, descending=True, stable=True)
    count = min(MOST, int((score > least).sum(1).max())) if len(out) else 0
    score, order = score[:, :count], order[:, :count]
    box = box.gather(1, (order % (high * wide))[..., None].expand(-1, -1, 4))
    keep = [
        suppressed(b, s > least, overlap)
        for b, s in zip(box.split(50), score.split(50), strict=True)
    ]
    label = (order // (high * wide)).to(out)
    answers = torch.cat([label[..., None], box, score[..., None]], -1)
    return _packed(answers, torch.cat(keep))


def _packed(rows: Tensor, keep: Tensor) -> Tensor:
    """The rows (n, d, 6) to keep, moved to the front in their order, and empty ones."""
    first = (~keep).long().sort(dim=1, stable=True).indices
    rows = rows.masked_fill(~keep[..., None], 0.0)
    rows[..., 0] = rows[..., 0].where(keep, -1.0)
    rows = rows.gather(1, first[..., None].expand_as(rows))
    if not rows.shape[1]:  # an answer has one row at least
        none = rows.new_tensor([-1.0, 0, 0, 0, 0, 0])
        return none.expand(len(rows), 1, 6).clone()
    return rows[:, : max(1, int(keep.sum(1).max()))]


def said(answers: Tensor) -> Tensor:
    """Which answers are certain enough to count as said, bool (n, d)."""
    return (answers[..., 0] >= 0) & (answers[..., 5] > SURE)


def found(answers: Tensor, boxes: Tensor, labels: Tensor | None = None) -> Tensor:
    """Whether something is said at the place of each box, bool (n, m).

    Args:
        boxes: (n, m, 4).
        labels: (n, m), which class must be said there; None is any.
    """
    hit = (iou(boxes, answers[..., 1:5]) >= OVERLAP) & said(answers)[:, None]
    if labels is not None:
        hit &= answers[:, None, :, 0] == labels[..., None]
    return hit.any(2)


# -------------------------------------------------------------------- average precision


def average_precision(answers: Tensor, y: Tensor, overlap: float = OVERLAP) -> dict[int, float]:
    """AP of each class that occurs in the targets y (n, m, 5), as COCO measures it at one IoU.

    In the order of their scores, answers (n, d, 6) take the true box of their class that
    they overlap most and that is still free; one without such a box is a false alarm.
    AP is the mean, over recalls of 0, 0.01, ..., 1, of the best precision at that
    recall or a higher one.
    """
    y = y.to(answers.device)
    taken = torch.zeros(y.shape[:2], dtype=torch.bool, device=y.device)
    score, order = answers[..., 5].sort(dim=1, descending=True, stable=True)
    answers = answers.gather(1, order[..., None].expand_as(answers))
    right = torch.zeros_like(score, dtype=torch.bool)
    over = iou(answers[..., 1:5], y[..., 1:])  # (n, d, m)
    over = over.where(answers[..., None, 0] == y[:, None, :, 0], -1.0)
    over = over.where(answers[..., None, 0] >= 0, -1.0)
    scenes = torch.arange(len(y), device=y.device)
    for i in range(answers.shape[1]):
        best, at = over[:, i].masked_fill(taken, -1.0).max(1)
        right[:, i] = best >= overlap
        taken[scenes, at] |= right[:, i]
    labels = y[..., 0]
    steps = torch.arange(101, dtype=torch.float64) / 100
    precisions = {}
    for label in labels[labels >= 0].unique().tolist():
        own = answers[..., 0] == label
        rank = score[own].sort(descending=True, stable=True).indices
        hits = wide(right[own][rank].cpu()).cumsum(0)
        recall = hits / int((labels == label).sum())
        precision = hits / torch.arange(1, len(hits) + 1, dtype=torch.float64)
        best_after = precision.flip(0).cummax(0).values.flip(0) if len(hits) else precision
        at = torch.searchsorted(recall, steps)
        reached = torch.cat([best_after, best_after.new_zeros(1)])[at]
        precisions[int(label)] = float(reached.mean())
    return precisions
