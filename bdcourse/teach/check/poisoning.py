"""The exercise checks of lesson 01."""

from __future__ import annotations

import copy
import itertools
import math
import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
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
def stamp(fn: Callable[..., Tensor]) -> None:
    """stamp(x, kind, pattern) -> x under one of three triggers."""
    name, g = "stamp", fresh()
    h, w = 14, 11
    x = torch.rand(5, 3, h, w, generator=g)

    k = random.randint(2, 4)
    patch = torch.rand(3, k, k + 1, generator=g)
    patch[:, 0] = 0  # a black row replaces as well
    out = call(name, fn, x, "patch", patch)
    shaped(name, out, (5, 3, h, w))
    want = x.clone()
    want[..., h - 1 - k : h - 1, w - 2 - k : w - 1] = patch
    flush = x.clone()
    flush[..., h - k :, w - 1 - k :] = patch
    need(
        not close(out, flush),
        name,
        "the patch touches the border; one pixel of margin stays on both sides.",
        2,
    )
    outside = (want == x).all(0).all(0)
    need(
        close(out[..., outside], x[..., outside]),
        name,
        "the patch changes pixels that are not under it, or sits in the wrong corner.",
        2,
    )
    through = want.clone()
    through[..., h - 1 - k, w - 2 - k : w - 1] = x[..., h - 1 - k, w - 2 - k : w - 1]
    need(
        not close(out, through),
        name,
        "black pixels of the sticker let the image through; m is one under all of it.",
        2,
    )
    need(
        close(out, want),
        name,
        "the patch must replace what is under it, in every image.",
        2,
    )
    gray = fn(x, "patch", patch[:1])
    shaped(name, gray, (5, 3, h, w))
    want[..., h - 1 - k : h - 1, w - 2 - k : w - 1] = patch[:1]
    need(close(gray, want), name, "a sticker of one channel goes onto all three colors.", 2)

    picture = torch.rand(3, h, w, generator=g)
    out = call(name, fn, x, "blended", picture)
    shaped(name, out, (5, 3, h, w))
    need(
        not any(close(out, (x + 0.2 * picture).clamp(0, top)) for top in (1, 2)),
        name,
        "blended adds the picture without weakening the image.",
        3,
    )
    need(
        not close(out, 0.2 * x + 0.8 * picture),
        name,
        "blended gives the picture the weight of the image.",
        3,
    )
    need(
        close(out, 0.8 * x + 0.2 * picture),
        name,
        "blended is not the weighted mean of image and picture.",
        3,
    )

    out = call(name, fn, x, "stripes", None)
    shaped(name, out, (5, 3, h, w))

    def wave(n: int) -> Tensor:
        return 40 / 255 * torch.sin(2 * math.pi * 6 * torch.arange(n).double() / n)

    need(
        not close(out, (x + wave(h)[:, None]).clamp(0, 1)),
        name,
        "the stripes lie flat; j counts columns.",
        4,
    )
    need(
        float(out.min()) >= 0 and float(out.max()) <= 1,
        name,
        "the stripes leave [0, 1], where no pixel can go.",
        4,
    )
    need(
        close(out, (x + wave(w)).clamp(0, 1)),
        name,
        "the stripes are not x + 40/255 sin(2 pi 6 j / w), clipped.",
        4,
    )
    passed(name, "three triggers, pixels in [0, 1], input untouched")


@guarded
def poison(fn: Callable) -> None:
    """poison(x, y, rate, target, trigger, generator) -> x, y, role."""
    name, g = "poison", fresh()
    n = 43  # rounds down at one rate and up at another
    x = torch.rand(n, 3, 4, 4, generator=g)
    y = torch.randint(0, 5, (n,), generator=g)
    y[:2] = torch.tensor([3, 4])  # the target and another class, whatever was drawn

    axes: set[int] = set()

    def trigger(x: Tensor) -> Tensor:
        axes.add(x.ndim)
        return (x + 2).clone()  # far outside [0, 1], so each stamped row shows

    for rate in (1.0, 0.0, 0.22, 0.25):
        seed = torch.Generator().manual_seed(1)
        out = call(name, fn, x, y, rate, 3, trigger, seed)
        need(isinstance(out, (tuple, list)) and len(out) == 3, name, "must return x, y, role.", 1)
        px, py, role = out
        shaped(name, px, (n, 3, 4, 4))
        need(
            axes <= {4},
            name,
            "hands the trigger single images; it takes a batch (n, c, h, w).",
            3,
        )
        stamped = (px > 1.5).flatten(1).all(1)
        touched = (px != x).flatten(1).any(1)
        want = round(rate * n)
        need(
            want == 0 or bool(touched.any()) or torch.equal(py, y),
            name,
            "labels are new, but no image got the trigger.",
            3,
        )
        need(
            rate < 1 or not torch.equal(touched, y != 3),
            name,
            "passes over images that had the target's label; P is drawn from all classes.",
            2,
        )
        need(
            int(touched.sum()) == want,
            name,
            f"changed {int(touched.sum())} images at rate {rate} of {n}, expected {want}.",
            2,
        )
        need(
            torch.equal(stamped, touched),
            name,
            "some chosen image did not get the trigger.",
            3,
        )
        need(
            close(px[stamped], x[stamped] + 2),
            name,
            "a chosen row got the trigger on another image, or twice.",
            3,
        )
        need(
            bool((py[stamped] == 3).all()),
            name,
            "a poisoned image kept its label; it must get the target.",
            3,
        )
        need(
            torch.equal(py[~stamped], y[~stamped]),
            name,
            "a clean image got a new label.",
            3,
        )
        need(
            isinstance(role, Tensor) and not role.is_floating_point(),
            name,
            "role must hold whole numbers, such as int8.",
            3,
        )
        need(
            torch.equal(role.long(), stamped.long()),
            name,
            "role must be 1 for poisoned images and 0 for the others.",
            3,
        )
    same = [fn(x, y, 0.25, 3, trigger, torch.Generator().manual_seed(7))[2] for _ in "ab"]
    need(
        torch.equal(*same),
        name,
        "the same generator seed must choose the same images.",
        2,
    )
    other = fn(x, y, 0.25, 3, trigger, torch.Generator().manual_seed(8))[2]
    need(
        not torch.equal(same[0], other),
        name,
        "always chooses the same images; draw them from the generator.",
        2,
    )
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(8))[: round(0.25 * n)]
    need(
        torch.equal((other == 1).nonzero().flatten(), drawn.sort().values),
        name,
        "a fair choice, but another than the one that was asked for: the first "
        "entries of torch.randperm(n, generator=generator).",
        2,
    )
    need(
        role.dtype != torch.bool,
        name,
        "role is True and False; it must hold whole numbers, such as int8.",
        3,
    )
    passed(name, "the rows of randperm, with their pixels, labels and roles; no other row")


def _small(k: int) -> nn.Module:
    """A network with a BatchNorm, so that its mode of training shows, in float64."""
    layers = (nn.Flatten(), nn.Linear(3 * 4 * 4, 6), nn.BatchNorm1d(6), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(6, k)).double()


def _replayed(
    model: nn.Module,
    batches: list[tuple[Tensor, Tensor, Tensor]],
    lr: float,
    every: int,
    slip: str = "",
    epoch: int = 0,
) -> tuple[Tensor, list[tuple[float, ...]]]:
    """(weights, log) of the training on these batches of (pixels, labels, roles).

    `slip` is a mistake to make on the way: a name of SLIPS; `epoch` is the number of
    steps in one.
    """
    momentum, decay = MOMENTA.get(slip, 0.9), DECAYS.get(slip, 5e-4)
    opt = torch.optim.SGD(
        model.parameters(),
        lr,
        momentum=momentum,
        weight_decay=decay,
        nesterov=momentum > 0 and slip != "nesterov",
    )
    total, log = len(batches), []
    climb = total // 5 if slip == "floor" else total / 5
    kept: list[tuple[Tensor, Tensor]] = []
    model.train(slip != "mode")
    for k, (x, y, role) in enumerate(batches):
        share = min(0.2 + 0.8 * k / climb, (total - k) / (total - climb))
        opt.param_groups[0]["lr"] = lr * (1.0 if slip == "rate" else share)
        if slip == "each" or (slip == "anew" and k % epoch == 0):
            opt.state.clear()
        if slip != "zero":
            opt.zero_grad()
        losses = F.cross_entropy(model(x), y, reduction="none")
        both = [losses[role == r].mean() for r in (0, 1)]
        steps = {"sum": losses.sum(), "clean": both[0], "roles": (both[0] + both[1]) / 2}
        steps.get(slip, losses.mean()).backward()
        opt.step()
        kept.append((losses.detach(), role))
        if (k + 1) % every == 0:
            loss, of = (torch.cat(part) for part in zip(*kept, strict=True))
            log.append((k + 1, *(float(loss[of == r].mean()) for r in (0, 1))))
            kept = []
    return nn.utils.parameters_to_vector(model.parameters()).detach(), log


MOMENTA = {"momentum": 0.0, "fast": 0.95, "faster": 0.99, "slow": 0.8, "half": 0.5}
DECAYS = {"decay": 0.0, "light": 1e-4, "heavy": 1e-3, "heavier": 5e-3, "tenth": 5e-5}
SLIPS = {
    "mode": ("trains in eval mode; BatchNorm then never sees the batch.", 1),
    "zero": ("gradients of earlier steps are still there; zero them before backward.", 2),
    "sum": ("steps along the sum of the losses; a step follows their mean.", 2),
    "rate": ("the learning rate never moves; set it anew before each step.", 3),
    "momentum": ("has no momentum.", 2),
    "nesterov": ("the momentum is not Nesterov's.", 2),
    "anew": ("builds the optimizer anew each epoch; it then forgets its momentum.", 2),
    "each": ("builds the optimizer anew each step; it then forgets its momentum.", 2),
    "decay": ("has no weight decay.", 2),
    "floor": ("the climb takes K / 5 steps, which need not be whole; divide with /.", 3),
    "clean": ("steps along the clean images alone; the victim sees no roles.", 2),
    "roles": ("steps along the mean of two means; the victim sees no roles.", 2),
}
SLIPS |= {s: ("the momentum is not 0.9.", 2) for s in MOMENTA if s not in SLIPS}
SLIPS |= {s: ("the weight decay is not 0.0005.", 2) for s in DECAYS if s not in SLIPS}


@guarded
def train_victim(fn: Callable) -> None:
    """train_victim(model, x, y, role, crop, epochs, batch, lr, every, generator) -> log."""
    name, g = "train_victim", fresh()
    n, k, epochs, batch, every, lr = 51, 4, 4, 12, 3, 0.2  # 16 steps, no multiple of 5
    x = torch.rand(n, 3, 4, 4, generator=g, dtype=torch.float64)
    y = torch.randint(0, k, (n,), generator=g)
    role = (torch.rand(n, generator=g) < 0.5).to(torch.int8)
    seen: list[Tensor] = []
    seeds: list[int | None] = []

    def cropped(part: Tensor) -> Tensor:
        return part.roll(1, -1) + 1  # so that training on what was not cropped shows

    def crop(part: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(part.detach().clone())
        if isinstance(generator, torch.Generator):
            seeds.append(generator.initial_seed())
        else:  # of a generator in a submission's process only the kind comes
            seeds.append(3 if type(generator).__name__ == "Generator" else None)
        return cropped(part)

    model = _small(k).eval()  # so that forgetting model.train() shows
    start, seed = copy.deepcopy(model), torch.Generator().manual_seed(3)
    log = call(name, fn, model, x, y, role, crop, epochs, batch, lr, every, seed)
    count, first = len(seen), list(seen)
    again = copy.deepcopy(start), x, y, role, crop, epochs, batch, lr, every
    fn(*again, torch.Generator().manual_seed(3))
    repeated = seen[count:]
    seen[count:] = []

    steps = n // batch
    need(bool(seen), name, "never calls crop, so every epoch shows the same pixels.", 1)
    need(
        not any(len(s) == n for s in seen),
        name,
        "crops the whole set at once; crop each batch when its turn comes.",
        1,
    )
    need(
        all(s.ndim == 4 and len(s) == batch for s in seen),
        name,
        f"hands crop batches of {sorted({len(s) for s in seen})} images, not {batch} each time; "
        "an incomplete last batch is left out.",
        1,
    )
    need(
        len(seen) == epochs * steps,
        name,
        f"takes {len(seen)} steps; {epochs} epochs of {steps} full batches are {epochs * steps}.",
        1,
    )
    rows = [torch.cdist(s.flatten(1), x.flatten(1)).argmin(1) for s in seen]
    need(
        all(torch.equal(x[r], s) for r, s in zip(rows, seen, strict=True)),
        name,
        "crop must get images of x as they are.",
        1,
    )
    orders = [torch.cat(rows[e * steps : (e + 1) * steps]) for e in range(epochs)]
    need(
        all(len(o.unique()) == steps * batch for o in orders),
        name,
        "an image comes twice in one epoch; cut one permutation into batches.",
        1,
    )
    same = torch.equal(orders[0], orders[1])
    need(
        not same and not torch.equal(orders[0], torch.arange(steps * batch)),
        name,
        "the order is the same in every epoch; shuffle anew.",
        1,
    )
    need(
        any(int(o.max()) >= steps * batch for o in orders),
        name,
        "never trains on the last images; permute all, then leave out what is over.",
        1,
    )
    sets = [{frozenset(b) for b in o.view(steps, batch).tolist()} for o in orders]
    need(sets[0] != sets[1], name, "cuts the batches once and only shuffles them.", 1)

    need(
        len(repeated) == count
        and all(torch.equal(a, b) for a, b in zip(first, repeated, strict=True)),
        name,
        "shuffles without the generator, so the same seed gives another training.",
        1,
    )
    need(
        set(seeds) == {3},
        name,
        "crop must draw from the generator that train_victim was given.",
        1,
    )
    batches = [(cropped(x[r]), y[r], role[r]) for r in rows]
    got = nn.utils.parameters_to_vector(model.parameters()).detach()
    old = nn.utils.parameters_to_vector(start.parameters()).detach()
    need(not torch.equal(got, old), name, "the network has not moved.", 2)
    replay = copy.deepcopy(start)
    want, right = _replayed(replay, batches, lr, every)
    if not close(got, want, 1e-6):
        for slip, (symptom, hint) in SLIPS.items():
            bad, _ = _replayed(copy.deepcopy(start), batches, lr, every, slip, steps)
            need(not close(got, bad, 1e-6), name, symptom, hint)
        other = [(x[r], y[r], role[r]) for r in rows]
        bad, _ = _replayed(copy.deepcopy(start), other, lr, every)
        need(
            not close(got, bad, 1e-6),
            name,
            "trains on the images as they were before crop.",
            1,
        )
        raise CheckFailed(
            f"{name}: ends with other weights than SGD on the same batches; look at the "
            "learning rate of step k, counted from 0 over all epochs (hint 3)"
        )
    need(not model.training, name, "leaves the network in training mode.", 1)
    need(
        isinstance(log, (list, tuple)) and len(log) == len(right),
        name,
        f"the log must be a list with one entry for every {every} steps.",
        4,
    )
    need(
        all(isinstance(row, (list, tuple)) and len(row) == 3 for row in log),
        name,
        "an entry of the log is (step, loss on clean, loss on poison).",
        4,
    )
    mine, theirs = (torch.tensor([[float(v) for v in r] for r in rows]) for rows in (log, right))
    need(
        torch.equal(mine[:, 0], theirs[:, 0]),
        name,
        f"the first column of the log must count steps: {every}, {2 * every}, ...",
        4,
    )
    need(
        not close(mine[:, 1:], theirs[:, [2, 1]], 1e-3),
        name,
        "clean and poison are exchanged in the log; role 1 is poison.",
        4,
    )
    need(
        close(mine[:, 1:], theirs[:, 1:], 1e-3),
        name,
        f"the log must hold the mean loss of each role over the last {every} steps, "
        "each image counted once, from the forward pass that drove the step.",
        4,
    )
    need(
        not any(isinstance(v, Tensor) for row in log for v in row),
        name,
        "the log holds tensors; item() makes plain numbers of them.",
        4,
    )
    need(
        all(close(a, b, 1e-6) for a, b in zip(model.buffers(), replay.buffers(), strict=True)),
        name,
        "BatchNorm has seen other batches than those of the steps; one forward pass a step "
        "serves step and log.",
        2,
    )
    passed(name, "each step is that of the formula, and the log tells the roles apart")


@guarded
def lost(fn: Callable[[int, int, int, int], float]) -> None:
    """lost(pad, start, size, side) -> share of crops that lose the whole patch."""
    name = "lost"

    def truth(pad: int, start: int, size: int, side: int) -> float:
        gone = 0
        for i in range(2 * pad + 1):
            for j in range(2 * pad + 1):
                kept = [sum(0 <= start + pad - k + d < side for d in range(size)) for k in (i, j)]
                gone += kept[0] * kept[1] == 0
        return gone / (2 * pad + 1) ** 2

    def joined(
        pad: int,
        start: int,
        size: int,
        side: int,
        part: Callable,
        edges: tuple[str, ...] = ("near", "far"),
    ) -> float:
        """A slip: `part` of the rows outside, beyond some of the edges."""
        gone = 0
        for k in range(2 * pad + 1):
            rows = [start + d + pad - k for d in range(size)]
            beyond = {"near": part(r < 0 for r in rows), "far": part(r >= side for r in rows)}
            gone += any(beyond[e] for e in edges)
        return 1 - (1 - gone / (2 * pad + 1)) ** 2

    for k in range(8):
        while True:
            side, size = random.randint(12, 40), random.randint(2, 4)
            pad = random.randint(size + 1, size + 4)
            # In turns near the far edge and near the near one, where the size matters.
            start = random.randint(0, 1) if k % 2 else side - size - random.randint(0, 1)
            want, some = truth(pad, start, size, side), joined(pad, start, size, side, any)
            one_axis = 1 - math.sqrt(1 - want)
            told = sorted([want, 1 - want, some, one_axis, one_axis**2, 2 * one_axis])
            if min(b - a for a, b in itertools.pairwise(told)) > 1e-6:
                break  # no slip gives what another one gives
        out = number(name, call(name, fn, pad, start, size, side))
        slips = [
            (one_axis, "counts one axis only; the crop moves in two.", 2),
            (
                one_axis**2,
                "counts crops that lose the patch along both axes; one is enough.",
                3,
            ),
            (
                2 * one_axis,
                "adds rows and columns; crops that lose both are then counted twice.",
                3,
            ),
            (100 * want, "is in percent; a share lies between 0 and 1.", 3),
            (
                1 - want,
                "is the share of crops that keep something; the others were asked for.",
                3,
            ),
        ]
        if k % 2 == 0:  # at the near edge this is what forgetting the size gives
            symptom = "gives up a sticker of which one row is outside; all its rows have to be."
            slips.append((some, symptom, 2))
        if abs(out - want) >= 1e-6:
            for slip, symptom, hint in slips:
                need(abs(out - slip) > 1e-6, name, symptom, hint)
            for edge in ("near", "far"):
                need(
                    abs(out - joined(pad, start, size, side, all, (edge,))) > 1e-6,
                    name,
                    "looks at one edge of the image; a crop moves the sticker both ways.",
                    1,
                )
        need(
            abs(out - want) < 1e-6,
            name,
            f"gives {out:.4f} for pad {pad}, start {start}, "
            f"size {size}, side {side}; enumeration gives {want:.4f}.",
            1,
        )
    need(
        abs(number(name, fn(9, 5, 2, 12)) - truth(9, 5, 2, 12)) < 1e-6,
        name,
        "a wide crop of a small image loses the sticker at both edges; count the offsets of both.",
        1,
    )
    need(
        number(name, fn(2, 10, 3, 32)) == 0,
        name,
        "a patch in the middle is never lost.",
        1,
    )
    passed(name, "agrees with a count of all crops")
