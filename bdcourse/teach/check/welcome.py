"""The exercise checks of lesson 00."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bdcourse.teach.check.core import (
    CheckFailed,
    call,
    close,
    fresh,
    guarded,
    need,
    number,
    passed,
    shaped,
)


@guarded
def take(fn: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """take(x, y, index) -> pixels in [0, 1] and labels of the images at index."""
    name, g = "take", fresh()
    x = torch.randint(0, 200, (20, 3, 6, 5), dtype=torch.uint8, generator=g)
    y = torch.randint(0, 9, (20,), generator=g)
    index = torch.randperm(20, generator=g)[:7]
    out = call(name, fn, x, y, index)
    two = isinstance(out, (tuple, list)) and len(out) == 2
    need(two, name, "must return two tensors: `return pixels, labels`.", 1)
    pixels, labels = out
    shaped(name, pixels, (7, 3, 6, 5))
    need(pixels.dtype.is_floating_point, name, "pixels must be floats, not bytes.", 2)
    need(
        pixels.dtype == torch.float32,
        name,
        f"pixels are {str(pixels.dtype).removeprefix('torch.')}; networks here take float32, "
        "which `.float()` gives.",
        2,
    )
    need(float(pixels.max()) <= 1, name, "pixels must lie in [0, 1].", 2)
    for most in (x.max(), x[index].max()):
        need(
            not close(pixels, x[index].double() / most),
            name,
            "divides by the brightest byte that it got; a byte of 255 is 1 in every batch.",
            2,
        )
    need(
        close(pixels, x[index].double() / 255),
        name,
        "these are not the pixels at the given positions, divided by 255.",
        2,
    )
    need(
        isinstance(labels, Tensor) and labels.dtype == y.dtype,
        name,
        "labels must stay whole numbers, int64.",
        1,
    )
    need(
        torch.equal(labels, y[index]),
        name,
        "the labels do not belong to the same images.",
        1,
    )
    passed(name, "pixels in [0, 1] with their labels, input untouched")


class _Nervous(nn.Module):
    """A network that notices how it is treated: its answers differ in training mode, and
    it remembers whether anybody asked for gradients or in training mode, and for how many
    images at once."""

    def __init__(self, classes: int, g: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, 12, generator=g))
        # A buffer, which comes back from the process that a submission runs in: images at
        # once, gradients asked for, brightest pixel, asked in training mode.
        self.saw: Tensor
        self.register_buffer("saw", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        graph, brightest = float(torch.is_grad_enabled()), float(x.max())
        now = torch.tensor([len(x), graph, brightest, float(self.training)])
        self.saw.copy_(torch.maximum(self.saw, now))
        out = (x.float().flatten(1) - 0.5) @ self.weight.T
        return out.roll(1, 1) if self.training else out


@guarded
def confusion(fn: Callable[[nn.Module, Tensor, Tensor, int, int], Tensor]) -> None:
    """confusion(model, x, y, classes, batch) -> counts: true class down, answer across."""
    # Whatever mode the network comes in, and however large a batch is.
    small = 9 + int(torch.randint(0, 4, (1,), generator=fresh()))
    for training, batch in ((True, small), (False, small + 12)):
        _confusion(fn, training, batch)
    passed("confusion", "every image counted once, in evaluation mode, the network left as it was")


def _confusion(
    fn: Callable[[nn.Module, Tensor, Tensor, int, int], Tensor], training: bool, batch: int
) -> None:
    name, g = "confusion", fresh()
    classes, n = 5, 3 * batch + 7
    x = torch.randint(0, 256, (n, 3, 2, 2), dtype=torch.uint8, generator=g)
    y = torch.randint(0, classes - 1, (n,), generator=g)  # the last class has no image
    model = _Nervous(classes, g)
    with torch.no_grad():
        said = model.eval()(x.float() / 255).argmax(1)
        other = model.train()(x.float() / 255).argmax(1)
    want = _counts(y, said, classes)
    model.train(training)
    model.saw.zero_()
    with torch.enable_grad():
        try:
            out = call(name, fn, model, x, y, classes, batch)
        except RuntimeError as e:
            need(
                "invalid for input of size" not in str(e),
                name,
                "makes too few counts for a table: the last class has no image here. With "
                "`bincount`, give `minlength`.",
                3,
            )
            raise
        quiet = not torch.is_grad_enabled()
    need(not quiet, name, "switches gradients off for good; use `with torch.no_grad():`.", 2)
    shaped(name, out, (classes, classes), 3)
    most, graph, brightest, trained = model.saw.tolist()
    need(most > 0, name, "asks no network, or a copy; ask the one that you were given.", 1)
    need(brightest <= 1, name, "shows the network bytes; it wants [0, 1].", 1)
    need(
        not torch.equal(out.long(), _counts(y, other, classes)),
        name,
        "measures the network in training mode; call model.eval() first.",
        2,
    )
    need(
        not trained,
        name,
        "measures some batches in training mode; call model.eval() before the first.",
        2,
    )
    need(
        out.dtype == torch.int64,
        name,
        f"returns {str(out.dtype).removeprefix('torch.')}; counts are whole numbers, int64.",
        3,
    )
    need(
        not torch.equal(out, want.T),
        name,
        "is the table turned over: rows are the true class, columns the answer.",
        3,
    )
    need(
        not torch.equal(out, _counts_once(y, said, classes, batch)),
        name,
        "adds 1 where a batch holds the same pair twice: `table[labels, answers] += 1` "
        "counts a repeated place only once.",
        3,
    )
    need(
        int(out.sum()) == n,
        name,
        f"counts {int(out.sum())} images, there are {n}; is the last, smaller batch in?",
        1,
    )
    need(
        most == batch,
        name,
        f"shows {most:g} images at once, where `batch` says {batch}.",
        1,
    )
    need(torch.equal(out, want), name, "counts wrongly.", 3)
    need(
        all(p.requires_grad for p in model.parameters()),
        name,
        "freezes the network for good; measure under torch.no_grad() and leave it as it was.",
        2,
    )
    need(not graph, name, "keeps gradients; measure under torch.no_grad().", 2)
    need(
        model.training == training,
        name,
        f"leaves the network in {'training' if model.training else 'evaluation'} mode; it "
        "came in the other one.",
        2,
    )


def _counts_once(y: Tensor, said: Tensor, classes: int, batch: int) -> Tensor:
    """What indexed addition makes of it, batch by batch."""
    table = torch.zeros(classes, classes, dtype=torch.int64)
    for labels, answers in zip(y.split(batch), said.split(batch), strict=True):
        table[labels, answers] += 1
    return table


SIZE = "takes every patch for 3 by 3 pixels; `patch.shape[-1]` says how many there are."


@guarded
def place(fn: Callable[[Tensor, Tensor, int, int], Tensor]) -> None:
    """place(pixels, patch, row, column) -> copies of the images with the patch in them."""
    name, g = "place", fresh()
    for colors, k in ((1, 3), (3, 2), (1, 4)):
        x, patch = torch.rand(4, 3, 9, 11, generator=g), torch.rand(colors, k, k, generator=g)
        row, column = (
            int(v) for v in torch.tensor([1, 4]) + torch.randint(0, 2, (2,), generator=g)
        )
        try:
            out = call(name, fn, x, patch, row, column)
        except RuntimeError as e:
            # It was right with three, so the size is written into the code.
            need(k == 3 or "must match" not in str(e), name, SIZE, 2)
            raise
        shaped(name, out, (4, 3, 9, 11))

        def stamped(at: tuple, by: Tensor, x: Tensor = x) -> Tensor:
            made = x.clone()
            made[at] = by
            return made

        rows, columns = slice(row, row + k), slice(column, column + k)
        every = slice(None)
        want = stamped((every, every, rows, columns), patch)
        slips = (
            (x, "changes nothing.", 1),
            (
                stamped((every, every, columns, rows), patch),
                "mixes up rows and columns.",
                2,
            ),
            (
                stamped((every, every, rows, columns), x[:, :, rows, columns] + patch),
                "adds the patch to what is there; overwrite it.",
                1,
            ),
            (
                stamped(
                    (every, every, rows, columns),
                    (x[:, :, rows, columns] + patch).clamp(0, 1),
                ),
                "adds the patch to what is there; overwrite it.",
                1,
            ),
            (stamped((every, 0, rows, columns), patch[0]), "paints the first color only.", 2),
            (stamped((0, every, rows, columns), patch), "stamps the first image only.", 2),
        )
        for slip, symptom, hint in slips:
            need(not close(out, slip, 1e-6), name, symptom, hint)
        outside = torch.ones(9, 11, dtype=torch.bool)
        outside[rows, columns] = False
        need(
            torch.equal(out[:, :, outside], x[:, :, outside]),
            name,
            "changes pixels outside the patch, or puts it elsewhere.",
            2,
        )
        need(close(out, want, 1e-6), name, "does not hold the patch at (row, column).", 2)
    passed(name, "the patch in every image and color, everything else untouched")


@guarded
def attack_success(fn: Callable[[Tensor, int], float]) -> None:
    """attack_success(table, target) -> share of the other classes' images read as target."""
    name, g = "attack_success", fresh()
    k, target = 6, int(torch.randint(1, 5, (1,), generator=g))
    table = torch.randint(1, 40, (k, k), generator=g)
    table[target, target] += 200
    out = number(name, call(name, fn, table.clone(), target))
    others = torch.arange(k) != target
    hits, asked = int(table[others, target].sum()), int(table[others].sum())
    need(out <= 1, name, "must be a share in 0..1, not a count or percentage.", 1)
    if abs(out - hits / asked) < 1e-6:
        passed(name, "only the other signs are asked, and each of them once")
        return
    need(
        abs(out - int(table[:, target].sum()) / int(table.sum())) > 1e-6,
        name,
        "counts images that show the target anyway; leave their row out.",
        1,
    )
    need(
        abs(out - hits / int(table.sum())) > 1e-6,
        name,
        "divides by all images; divide by those that show something else.",
        2,
    )
    need(
        abs(out - int(table[:, target].sum()) / int(table[others].sum())) > 1e-6,
        name,
        "leaves the target's row out below the fraction bar only; above it as well.",
        1,
    )
    need(
        abs(out - hits / int(table.sum() - table[target, target])) > 1e-6,
        name,
        "leaves out one entry below the fraction bar; leave out the target's whole row.",
        1,
    )
    column = int(table[:, target].sum())
    need(
        min(abs(out - hits / column), abs(out - (1 - hits / column))) > 1e-6,
        name,
        "divides by the answers that are the target; divide by the images that were asked.",
        2,
    )
    need(
        abs(out - (1 - int(table.diagonal()[others].sum()) / asked)) > 1e-6,
        name,
        "counts every wrong answer; an attack succeeds where the answer is the target.",
        2,
    )
    right = int(table.diagonal().sum())
    need(
        abs(out - (1 - right / int(table.sum()))) > 1e-6,
        name,
        "counts every wrong answer; an attack succeeds where the answer is the target.",
        2,
    )
    need(
        abs(out - int(table[target, others].sum()) / int(table[:, others].sum())) > 1e-6,
        name,
        "mixes up rows and columns: rows are what a sign shows.",
        2,
    )
    need(
        abs(out - float((table[others, target] / table[others].sum(1)).mean())) > 1e-6,
        name,
        "averages over classes; every image counts the same.",
        2,
    )
    need(
        abs(out - int(table.diagonal()[others].sum()) / asked) > 1e-6,
        name,
        "is the share that is read correctly, the robust accuracy; count the target's column.",
        2,
    )
    raise CheckFailed(f"{name}: gives {out:.4f}, not {hits / asked:.4f}. (hint 1)")


def _counts(y: Tensor, said: Tensor, classes: int) -> Tensor:
    table = torch.zeros(classes, classes, dtype=torch.int64)
    return table.index_put((y, said), torch.ones_like(y), accumulate=True)
