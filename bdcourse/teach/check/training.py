"""The exercise checks of lesson 02."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse.teach.check.core import call, close, fresh, guarded, need, passed, shaped


@guarded
def bend(fn: Callable[[Tensor, float, int], Tensor]) -> None:
    """bend(grid, strength, size) -> WaNet's sampling grid."""
    name, g = "bend", fresh()
    size, k, strength = random.choice([9, 16]), 4, 0.5 + random.random()
    grid = 2 * torch.rand(2, k, k, generator=g) - 1
    grid /= grid.abs().mean()  # as the page says of P, so that scaling it again changes nothing
    out = call(name, fn, grid, strength, size)
    shaped(name, out, (1, size, size, 2))
    out = out.double()
    at = torch.linspace(-1, 1, size)
    still = torch.stack(torch.meshgrid(at, at, indexing="ij")[::-1], -1)[None]
    zero = call(name, fn, grid, 0.0, size)
    need(
        not close(zero, still.flip(-1)),
        name,
        "at strength 0 it exchanges x and y; grid_sample wants x, the column, first.",
        2,
    )
    need(close(zero, still), name, "at strength 0 it must be the identity grid.", 2)
    whole = F.interpolate(grid[None].double(), (size, size), mode="bicubic", align_corners=True)
    up, step = whole.permute(0, 2, 3, 1), strength / size
    want = still.double() + step * up
    if not close(out, want):
        plain = F.interpolate(grid[None].double(), (size, size), mode="bicubic")
        slips = (
            (want.clamp(-1, 1), "clamps already; the noise of exercise 2 comes first.", 3),
            (
                still + strength * up,
                "the displacement is not divided by the image size.",
                3,
            ),
            (
                still + strength * up / (size - 1),
                "the displacement is divided by size - 1; the formula has the size.",
                3,
            ),
            (
                still + step * up.flip(-1),
                "the arrows' x and y are exchanged; they come as x before y already.",
                2,
            ),
            (
                still + step * whole.reshape(up.shape),
                "reshape cuts the field up in another order; permute moves its axis.",
                1,
            ),
            (still + step * plain.movedim(1, 3), "interpolate without align_corners=True.", 1),
        )
        for slip, symptom, hint in slips:
            need(not close(out, slip), name, symptom, hint)
        need(
            False,
            name,
            "is not identity + strength * up(grid) / size, with bicubic interpolation "
            "and align_corners=True.",
            1,
        )
    passed(name, "strength 0 changes nothing, x before y, the bend as in the paper")


@guarded
def noise_mode(fn: Callable) -> None:
    """noise_mode(x, y, target, p, c, trigger, noisy) -> batch, labels, roles."""
    name, g = "noise_mode", fresh()
    n, p, c, target = 12, random.randint(1, 3), random.randint(2, 5), random.randint(6, 9)
    x = torch.rand(n, 3, 4, 4, generator=g)
    y = torch.randint(1, 6, (n,), generator=g)

    def trigger(x: Tensor) -> Tensor:
        return x + 2

    def noisy(x: Tensor) -> Tensor:
        return x + 4

    out = call(name, fn, x, y, target, p, c, trigger, noisy)
    three = isinstance(out, (tuple, list)) and len(out) == 3
    need(three, name, "must return x, y, role.", 1)
    batch, labels, role = out
    shaped(name, batch, (n, 3, 4, 4))
    need(close(batch[:p], x[:p] + 2), name, "the first p images lack the trigger.", 1)
    need(
        close(batch[p : p + c], x[p : p + c] + 4),
        name,
        "the next c images must get the noisy warp, and only that.",
        2,
    )
    need(torch.equal(batch[p + c :], x[p + c :]), name, "clean images changed.", 1)
    shaped(name, labels, (n,))
    need(
        labels.dtype == y.dtype,
        name,
        f"labels come as {y.dtype} and leave as {labels.dtype}; cross_entropy wants the first.",
        2,
    )
    need(not torch.equal(labels[:p], y[:p]), name, "poisoned images kept their label.", 2)
    need(
        bool((labels[:p] == target).all()),
        name,
        f"poisoned images must be labeled `target`, which is {target} here.",
        2,
    )
    need(
        torch.equal(labels[p : p + c], y[p : p + c]),
        name,
        "noisy images must keep their true label: that is the point of them.",
        2,
    )
    need(torch.equal(labels[p:], y[p:]), name, "a clean image got a new label.", 1)
    need(
        isinstance(role, Tensor) and role.dtype in (torch.int32, torch.int64),
        name,
        "roles must be whole numbers, int64 like the labels; exercise 4 counts by them.",
        3,
    )
    want = [1] * p + [2] * c + [0] * (n - p - c)
    need(
        role.long().tolist() == want,
        name,
        "roles must be 1 for poison, 2 for noise mode, 0 for clean.",
        3,
    )
    full = call(name, fn, x, y, target, p, n - p, trigger, noisy)
    want = (torch.cat([x[:p] + 2, x[p:] + 4]), torch.cat([labels[:p], y[p:]]), role.clone())
    want[2][p:] = 2
    need(
        all(a.shape == b.shape and close(a, b) for a, b in zip(full, want, strict=True)),
        name,
        "goes wrong where p + c is the whole batch and no image stays clean; cut at p + c.",
        1,
    )
    passed(name, "three parts, and only the poison has a new label")


@guarded
def noisy_warp(fn: Callable[[Tensor, Tensor, float, torch.Generator], Tensor]) -> None:
    """noisy_warp(x, flow, noise, generator) -> images sampled at jittered places."""
    name, g = "noisy_warp", fresh()
    n, size, noise = 4, random.choice([12, 16]), 0.5 + random.random()
    # On an image whose values are its coordinates, a sample tells where it was taken.
    at = torch.linspace(-1, 1, size)
    place = torch.stack(torch.meshgrid(at, at, indexing="ij")[::-1])
    flow = place.permute(1, 2, 0)[None] * (0.4 + 0.2 * random.random())
    x = place.expand(n, -1, -1, -1).contiguous()
    still = call(name, fn, x, flow, 0.0, g)
    shaped(name, still, (n, 2, size, size))
    want = flow.permute(0, 3, 1, 2).expand(n, -1, -1, -1)
    need(close(still, want, 1e-3), name, "without noise it must be the plain warp.", 1)
    once, again = (call(name, fn, x, flow, noise, g) for _ in range(2))
    for out in (once, again):
        shaped(name, out, (n, 2, size, size))
    pair = [call(name, fn, x, flow, noise, torch.Generator().manual_seed(5)) for _ in "ab"]
    need(close(*pair), name, "draws without the generator; the same seed must repeat.", 2)
    off = (once - want) * size / noise  # shall be uniform in -1..1
    need(not close(once, want), name, "adds no noise to the grid.", 1)
    need(not close(once, again), name, "draws the same noise in every call.", 2)
    need(
        not close(once[:1].expand_as(once), once),
        name,
        "gives all images of a batch one noise; each needs its own.",
        2,
    )
    need(
        not close(off[:, :1], off[:, 1:], 1e-2),
        name,
        "moves a point as far in x as in y; draw both.",
        2,
    )
    for axis, lines in ((3, "rows"), (2, "columns")):
        alike = bool(off.diff(dim=axis).abs().mean() < 1e-2)
        need(not alike, name, f"moves whole {lines} alike; each pixel needs its own.", 2)
    most = float(off.abs().max())
    need(bool(off.min() < -0.3 * most), name, "moves pixels to one side only.", 3)
    need(most < 6, name, "moves pixels by more than noise / size; is the division there?", 3)
    need(
        most < 1.01 or abs(float(off.abs().mean()) / most - 0.5) < 0.1,
        name,
        "draws noise with long tails, as torch.randn does; torch.rand ends at one.",
        3,
    )
    need(
        most < 1.01,
        name,
        f"moves pixels by up to {most:.1f} times noise / size; once is the most.",
        3,
    )
    need(
        most > 0.9,
        name,
        "the jitter is too small; it must reach noise / size to either side.",
        3,
    )
    need(
        abs(float(off.abs().mean()) - 0.5) < 0.05,
        name,
        "the noise is not uniform between -noise / size and noise / size.",
        3,
    )
    wide = call(name, fn, torch.ones_like(x), 3 * flow, noise, g)
    need(
        float(wide.min()) > 0.99,
        name,
        "takes black from beyond the border; clamp the places to [-1, 1].",
        3,
    )
    wide = call(name, fn, x, 3 * flow, noise, g)
    beyond = (3 * want).abs() > 1 + 2 * noise / size
    need(
        close(wide[beyond], want[beyond].sign(), 1e-3),
        name,
        "what lies beyond the border must be read at the border; clamp to [-1, 1], "
        "behind the noise.",
        3,
    )
    passed(name, "every pixel of every image jitters on its own, none too far")


def _loop(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacker: Callable,
    steps: int,
    lr: float,
    batch: int,
    generator: torch.Generator,
    slip: str = "",
) -> list[list[float]]:
    """The answer that `hijack` is measured against; `slip`, of SLIPS, is a mistake to make."""
    opt = torch.optim.SGD(
        model.parameters(),
        lr,
        momentum=0 if slip == "momentum" else 0.9,
        weight_decay=0 if slip == "decay" else 5e-4,
        nesterov=slip not in ("momentum", "nesterov"),
    )
    log, right, seen, means, first = [], torch.zeros(3), torch.zeros(3), [], None
    model.train()
    for step in range(steps):
        if slip != "rate":
            opt.param_groups[0]["lr"] = lr * (1 - (step + (slip == "early")) / steps)
        index = torch.randint(len(x), (batch,), generator=generator)
        before = x[index].float() / 255
        bx, by, role = attacker(before, y[index], step / steps)
        out = model(before if slip == "images" else bx)
        if slip != "gradients":
            opt.zero_grad()
        F.cross_entropy(out, y[index] if slip == "labels" else by).backward()
        opt.step()
        first = role if first is None else first
        counted = first if slip == "roles" else role
        hits = (out.argmax(1) == by).float()
        means.append([float(hits[counted == k].mean()) for k in range(3)])
        right.index_add_(0, counted, hits)
        seen.index_add_(0, counted, torch.ones(batch))
        if slip == "each step":
            log.append(torch.stack([right, seen]).tolist())
        elif 10 * (step + 1) // steps > 10 * step // steps:
            shares = torch.tensor(means).mean(0) if slip == "means" else right / seen
            log.append(shares.tolist())
            means = []
            right, seen = torch.zeros(3), torch.zeros(3)
    model.eval()
    return log


def _reached(rows: Tensor, counts: Tensor) -> set[int]:
    """The steps at which ten notes may end that add up `counts` (steps + 1, right and seen, 3)."""
    ends = {0}
    for row in rows:
        ends = {
            b
            for a in ends
            for b in range(a + 1, len(counts))
            if close(row, (counts[b, 0] - counts[a, 0]) / (counts[b, 1] - counts[a, 1]))
        }
    return ends


SLIPS = {
    "labels": "learns the true labels; the attacker's are what it must learn.",
    "images": "learns the images from before the attacker rewrote them.",
    "gradients": "gradients of earlier steps add up; set them to zero.",
    "rate": "the learning rate stays where it was; let it fall.",
    "early": "the learning rate falls a step too early; it is `lr` in step 0.",
    "nesterov": "the momentum is not Nesterov's; SGD takes nesterov=True.",
    "momentum": "learns without momentum.",
    "decay": "learns without weight decay.",
}


NOTES = {
    "means": "averages the batches' shares; add up who was right and who was seen, divide then.",
    "roles": "counts by the roles of the first batch; every batch brings its own.",
}


def _shuffled(role: list[int], g: torch.Generator) -> Tensor:
    return torch.tensor(role)[torch.randperm(len(role), generator=g)]


class _Wide(nn.Module):
    """A network in float64 that remembers what mode it was trained in."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        # A buffer, which comes back from the process that a submission runs in.
        self.modes: Tensor
        self.register_buffer("modes", torch.zeros(2, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.modes[int(self.training)] += 1
        return x.double().flatten(1) @ self.weight


@guarded
def hijack(fn: Callable) -> None:
    """hijack(model, x, y, attacker, steps, lr, batch, generator) -> log by role."""
    name, g = "hijack", fresh()
    n, steps, batch, lr = 40, 10 * random.randint(2, 3), 12, 0.3 + 0.2 * random.random()
    one = torch.randint(60, 200, (1, 3, 2, 2), generator=g).byte()
    # All images are one, so that what is learned does not hang on which were drawn.
    same = one.expand(n, -1, -1, -1).contiguous(), torch.full((n,), 2)
    mixed = torch.randint(256, (n, 3, 2, 2), generator=g).byte(), torch.arange(n) % 5
    # The roles change in number and order, so that no batch stands for another.
    roles = [_shuffled([1] * k + [2] * (9 - k) + [0] * 3, g) for k in 6 * [*range(2, 8)]]
    shift = 2 * torch.randn(len(roles), batch, 3, 2, 2, generator=g)
    seen: list[tuple[Tensor, Tensor, float]] = []

    def attacker(x: Tensor, y: Tensor, progress: float):
        seen.append((x.clone(), y.clone(), float(progress)))
        # By progress, and not by the calls so far: each training gets the same ones.
        at = round(35 * float(progress)) % len(roles)
        return x + shift[at], torch.where(roles[at] == 1, 0, y), roles[at].clone()

    weight = torch.randn(12, 5, generator=g, dtype=torch.float64)
    other, odd = _Wide(weight).eval(), random.randint(25, 29)  # ten does not divide it
    log = call(name, fn, other, *mixed, attacker, odd, lr, batch, g)
    need(
        len(seen) == odd,
        name,
        f"asks the attacker {len(seen)} times in {odd} steps; every batch is rewritten.",
        1,
    )
    x, y, _ = seen[0]
    shaped(name, x, (batch, 3, 2, 2))
    need(
        x.is_floating_point() and float(max(s[0].max() for s in seen)) <= 1,
        name,
        "the attacker gets bytes; divide by 255 first.",
        1,
    )
    need(not all(torch.equal(x, s[0]) for s in seen), name, "every batch is the same.", 1)
    whole = float(torch.stack([s[0] for s in seen]).mul(256).frac().abs().max())
    need(whole > 1e-3, name, "divides by 256; the largest byte is 255, and must become 1.", 1)
    stock = [tuple(p.flatten().tolist()) for p in mixed[0]]
    known = dict(zip(stock, mixed[1].tolist(), strict=True))
    drawn = [[tuple(p.tolist()) for p in (255 * x).round().byte().flatten(1)] for x, _, _ in seen]
    together = all(
        known.get(p) == k
        for images, (_, labels, _) in zip(drawn, seen, strict=True)
        for p, k in zip(images, labels.tolist(), strict=True)
    )
    need(together, name, "images and labels of a batch do not belong together.", 1)
    need(
        drawn[0] != stock[:batch],
        name,
        "takes the images in the order in which they lie; draw a batch at random.",
        1,
    )
    place = {p: k for k, p in enumerate(stock)}
    drawn_at = torch.tensor([[place.get(p, 0) for p in images] for images in drawn])
    need(
        float((drawn_at.diff(dim=1) % n == 1).float().mean()) < 0.5,
        name,
        "draws a window of neighbors; each image of a batch is drawn on its own.",
        1,
    )
    # Of 40 images, 300 draws miss none or one.
    need(
        len({p for images in drawn for p in images}) > n - 8,
        name,
        f"draws from some of the {n} images only; the positions are 0 to len(x) - 1.",
        1,
    )
    told = torch.tensor([s[2] for s in seen])
    need(
        close(told, torch.arange(odd) / odd),
        name,
        "progress must be step / steps: 0 at the first, below 1 at the last.",
        2,
    )
    need(bool(other.modes[1]), name, "the network learns in eval mode; call train().", 2)
    need(
        not other.modes[0],
        name,
        "asks the network in eval mode between its steps; take the notes from the output "
        "that the loss sees.",
        4,
    )
    need(
        int(other.modes[1]) == odd,
        name,
        f"asks the network {int(other.modes[1])} times in {odd} steps; once a step, and take "
        "the notes from the output that the loss sees.",
        4,
    )
    need(not other.training, name, "leaves the network in training mode.", 2)
    sequence = (list, tuple, Tensor)
    need(isinstance(log, sequence), name, "must return the log, a list of ten rows.", 4)
    need(
        len(log) == 10,
        name,
        f"logs {len(log)} rows in {odd} steps; it must be ten, whether or not ten divides them.",
        4,
    )

    firsts = []
    for seed in (5, 5, 6):
        seen.clear()
        own = torch.Generator().manual_seed(seed)
        call(name, fn, _Wide(weight), *mixed, attacker, steps, lr, batch, own)
        firsts.append(seen[-1][0])
    need(
        torch.equal(*firsts[:2]),
        name,
        "draws its batches without the generator; the same seed must repeat.",
        1,
    )
    need(
        not torch.equal(*firsts[1:]),
        name,
        "draws the same batches whatever the generator; use the one that it is given.",
        1,
    )

    mine, theirs = _Wide(weight), _Wide(weight)
    log = call(name, fn, mine, *same, attacker, steps, lr, batch, g)
    want = _loop(theirs, *same, attacker, steps, lr, batch, g)
    for slip, symptom in SLIPS.items():
        other = _Wide(weight)
        _loop(other, *same, attacker, steps, lr, batch, g, slip)
        need(not close(mine.weight.detach(), other.weight.detach(), 1e-9), name, symptom, 3)
    need(
        close(mine.weight.detach(), theirs.weight.detach(), 1e-7),
        name,
        "the weights end elsewhere; compare optimizer, loss and the falling rate.",
        3,
    )
    need(len(log) == 10, name, f"logs {len(log)} rows; one a tenth of the steps.", 4)
    need(
        all(isinstance(row, sequence) and len(row) == 3 for row in log),
        name,
        "each row of the log must be a list of three shares, [clean, poison, cover].",
        4,
    )
    rows = torch.tensor([[float(v) for v in row] for row in log])
    shaped(name, rows, (10, 3), 4)
    goal = torch.tensor(want)
    for slip, symptom in NOTES.items():
        other = _loop(_Wide(weight), *same, attacker, steps, lr, batch, g, slip)
        need(not close(rows, torch.tensor(other)), name, symptom, 4)
    need(
        close(rows, goal),
        name,
        "the log is not the share right of clean, poison and cover, measured by the "
        "labels that were trained and started anew every tenth.",
        4,
    )
    # Where ten does not divide the steps, any ten notes will do that leave none out.
    log = call(name, fn, _Wide(weight), *same, attacker, odd, lr, batch, g)
    counts = torch.tensor(_loop(_Wide(weight), *same, attacker, odd, lr, batch, g, "each step"))
    counts = torch.cat([torch.zeros(1, 2, 3), counts])
    ends = _reached(torch.tensor([[float(v) for v in row] for row in log]), counts)
    need(
        not ends or odd in ends,
        name,
        f"ends its notes at step {max(ends, default=0)} of {odd}; the last belongs to the last "
        "step, also where ten does not divide them.",
        4,
    )
    need(
        bool(ends),
        name,
        f"notes other shares in {odd} steps than in {steps}; each step counts in one note.",
        4,
    )
    passed(name, "every batch went through the attacker, and the weights agree")


def _roughness(x: Tensor) -> Tensor:
    """Of each image: how far a pixel lies from the mean of its four neighbors, in gray levels."""
    up_down = x[..., 2:, 1:-1] + x[..., :-2, 1:-1]
    sides = x[..., 1:-1, 2:] + x[..., 1:-1, :-2]
    return 255 * (x[..., 1:-1, 1:-1] - (up_down + sides) / 4).abs().flatten(1).mean(1)


@guarded
def roughen(fn: Callable[[Tensor, float, torch.Generator], Tensor]) -> None:
    """roughen(x, goal, generator) -> x with grain, as rough as `goal`."""
    name, g = "roughen", fresh()
    n, size, goal = 6, 40, 11 + 3 * random.random()
    ramp = torch.linspace(0, 1, size).expand(n, 3, size, size)
    bright = 0.4 + 0.2 * torch.rand(n, 3, 1, 1, generator=g)  # no pixel near black or white
    # Some images are rough already, so that one sigma each is not one for all.
    board = (torch.arange(size)[:, None] + torch.arange(size)) % 2 - 0.5
    x = bright + 0.2 * (ramp - 0.5) + torch.linspace(0, 0.04, n).view(-1, 1, 1, 1) * board
    out = call(name, fn, x, goal, g)
    shaped(name, out, (n, 3, size, size))
    grain = out - x
    spread = grain.std()
    need(float(spread) > 1e-4, name, "adds no grain.", 1)
    grain = grain / spread
    need(
        not close(grain[:1].expand_as(grain), grain, 1e-2),
        name,
        "gives all images one grain; each needs its own.",
        1,
    )
    need(
        not close(grain[:, :1].expand_as(grain), grain, 1e-2),
        name,
        "gives all three colors one grain; each needs its own.",
        1,
    )
    need(
        abs(float(grain.mean())) < 0.1,
        name,
        "makes the images brighter or darker; grain has the mean zero.",
        1,
    )
    for axis in (2, 3):
        beside = (grain * grain.roll(1, axis)).mean() / grain.square().mean()
        need(
            abs(float(beside)) < 0.1,
            name,
            "neighboring pixels get like grain; each needs a draw of its own.",
            1,
        )
    need(
        abs(float((grain.abs() < 0.5).float().mean()) - 0.383) < 0.03,
        name,
        "the grain is not Gaussian; torch.randn is.",
        1,
    )
    each = grain.flatten(1).std(1)
    need(
        float(each.max()) < 1.08 * float(each.min()),
        name,
        "images get grain of different size; one sigma serves them all.",
        2,
    )
    for more in (0, 0.11, 0.22, 0.33, 0.45):  # what searches too coarsely misses one of these
        want = goal + more
        got = float(_roughness(call(name, fn, x, want, g)).mean())
        need(
            abs(got / want - 1) < 0.01,
            name,
            f"comes out at roughness {got:.2f}, asked for {want:.2f}; keep searching for sigma.",
            2,
        )

    contrast = torch.rand(n, 3, size, size, generator=g).gt(0.5).float()
    smooth = F.avg_pool2d(F.pad(contrast, (4, 4, 4, 4), mode="replicate"), 9, 1)
    x = ((smooth - 0.5) * 5 + 0.5).clamp(0, 1)  # much of it black or white
    goal = 1.5 * float(_roughness(x).mean()) + 8
    out = call(name, fn, x, goal, g)
    need(
        float(out.min()) >= 0 and float(out.max()) <= 1,
        name,
        "leaves [0, 1], where no pixel can go.",
        3,
    )
    got = float(_roughness(out).mean())
    need(
        abs(got / goal - 1) < 0.01,
        name,
        f"comes out at roughness {got:.2f} on images with black and white in them, asked for "
        f"{goal:.2f}; measure what is left after the clip.",
        3,
    )
    pair = [call(name, fn, x, goal, torch.Generator().manual_seed(5)) for _ in "ab"]
    need(close(*pair), name, "draws without the generator; the same seed must repeat.", 1)
    more = call(name, fn, x, goal, torch.Generator().manual_seed(6))
    need(not close(pair[0], more), name, "draws the same grain for every seed.", 1)
    passed(name, "grain on every pixel, just enough of it, clipped")
