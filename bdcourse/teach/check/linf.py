"""The exercise checks of lesson 04."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bdcourse.teach.check.core import (
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
def dilution(fn: Callable[[int, int, float, float], float]) -> None:
    """dilution(n, r, a, p) -> norm of a map with a spike over its norm without."""
    name = "dilution"
    for p in (1.0, 2.0, 3.0, math.inf):
        n, a = random.randint(20, 200), 0.5 + 4 * random.random()
        for r in (1, n // 3, n):
            flat = torch.ones(n, dtype=torch.float64)
            flat[:r] += a
            norm = torch.linalg.vector_norm
            want = float(norm(flat, p) / norm(torch.ones(n, dtype=torch.float64), p))
            out = number(name, call(name, fn, n, r, a, p))
            need(
                p == math.inf or abs(out - want**p) > 1e-6 * want or want == want**p,
                name,
                f"the root is missing at p = {p:g}.",
                2,
            )
            need(
                abs(out - want) < 1e-4 * want,
                name,
                f"is {out:.4g} for n = {n}, r = {r}, a = {a:.2f}, p = {p:g}, expected {want:.4g}.",
                1,
            )
    passed(name)


@guarded
def rise(fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    """rise(clean, triggered) -> mean growth of each channel's peak, (c,)."""
    name, g = "rise", fresh()
    for _ in range(2):
        clean = torch.rand(5, 4, 3, 6, generator=g)
        triggered = torch.rand(5, 4, 3, 6, generator=g)
        triggered[:, 0] *= 0.2
        out = call(name, fn, clean, triggered)
        shaped(name, out, (4,), hint=2)
        a, b = clean.double(), triggered.double()
        want = (b.amax((2, 3)) - a.amax((2, 3))).mean(0)
        need(
            not close(out, (b - a).amax((2, 3)).mean(0)),
            name,
            "is the peak of the change; the change of the peak is asked for.",
            1,
        )
        need(
            not close(out, (b - a).abs().amax((2, 3)).mean(0)) and float(out[0]) < 0,
            name,
            "has lost its sign: a peak that falls counts below zero.",
            2,
        )
        need(
            not close(out, b.amax((0, 2, 3)) - a.amax((0, 2, 3))),
            name,
            "takes the largest over images, too; these are averaged.",
            2,
        )
        need(close(out, want), name, "is not the mean change of the peak.", 1)
    passed(name, "change of the peak, sign kept, mean over images")


@guarded
def last_share(fn: Callable[[list, list, float, float], float]) -> None:
    """last_share(qs, accs, before, max_drop) -> the last before the first loss."""
    name = "last_share"
    qs = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    for k in range(5):
        before = 0.9 + 0.05 * random.random()
        accs = [before - 0.001 * i for i in range(6)]
        accs[k + 1] = before - 0.05  # too much; later shares look fine again
        out = number(name, call(name, fn, qs, accs, before, 0.02))
        need(
            out != 0.5 or k == 4,
            name,
            "takes the largest share that is fine, behind one that is not; stop at the first loss.",
            2,
        )
        need(
            out != qs[k + 1],
            name,
            "takes the share that already costs too much.",
            1,
        )
        need(out == qs[k], name, f"is {out:g}, expected {qs[k]:g}.", 1)
    # In halves and quarters, so that no rounding decides.
    out = number(name, fn(qs, [0.875, 0.75, 0.5, 0.5, 0.5, 0.5], 0.875, 0.125))
    need(out == 0.1, name, "a drop of exactly max_drop is allowed.", 1)
    steps = [0.875, 0.8125, 0.75, 0.6875, 0.625, 0.5625]
    out = number(name, fn(qs, steps, 0.875, 0.0625))
    need(
        out == 0.1,
        name,
        "compares with the share before; the drop is counted from the accuracy before any cut.",
        1,
    )
    out = number(name, fn(qs, [0.875] * 6, 0.875, 0.0625))
    need(out == 0.5, name, "finds nothing where no share costs anything; take the last.", 2)
    passed(name, "stops at the first loss, a drop of exactly max_drop allowed")


@guarded
def steer(fn: Callable[[Tensor, Tensor, Tensor, Tensor], tuple]) -> None:
    """steer(lam, good, bad, works) -> the same three after one more look."""
    name, g = "steer", fresh()
    lam = 0.01 * (1 + torch.rand(6, generator=g))
    good = torch.tensor([4, 2, 0, 0, 3, 0])
    bad = torch.tensor([0, 0, 4, 1, 0, 0])
    works = torch.tensor([True, True, False, False, False, True])
    out = call(name, fn, lam, good, bad, works)
    need(
        isinstance(out, (tuple, list)) and len(out) == 3,
        name,
        "gives back lambda and both counts, three tensors.",
        1,
    )
    for one in out:
        shaped(name, one, (6,))
    new, up, down = (t.double() for t in out)
    need(
        not close(new[2:3], lam[2:3] / 2),
        name,
        "takes back by 2 what it may only take back by 2 to the power of 1.5.",
        2,
    )
    need(close(new[[1, 3, 4, 5]], lam[[1, 3, 4, 5]]), name, "moves lambda before five in a row.", 1)
    need(
        close(new[0], 2 * lam[0]) and close(new[2], lam[2] / 2**1.5),
        name,
        "leaves lambda as it is, or moves it the wrong way, at the fifth look in a row.",
        2,
    )
    need(
        up[4] == 0 and down[5] == 0 and up[3] == 0 and down[1] == 0,
        name,
        "does not break a row: a look of one kind ends the row of the other.",
        3,
    )
    need(
        up[0] == 0 and down[2] == 0,
        name,
        "goes on counting behind five; a new row starts at zero.",
        3,
    )
    want = torch.tensor([0, 3, 0, 0, 0, 1]), torch.tensor([0, 0, 0, 2, 1, 0])
    need(close(up, want[0]) and close(down, want[1]), name, "counts wrongly.", 3)
    passed(name, "twice after five good looks, down by 2^1.5 after five bad ones, rows broken")


SIDES, COLORS = (4, 5), 3  # of the images that find_triggers is tried on
ROUND = 80  # steps of a search in which the network falls asleep before the end


class _Planted(nn.Module):
    """Three labels: 0 for one white and one black pixel, 1 for bright, 2 otherwise.

    After `awake` of ROUND calls it answers 2 to everything, so that no later mask works;
    then it wakes up, for those who search one label after the other.
    """

    def __init__(self, white: tuple, black: tuple, awake: float = math.inf) -> None:
        super().__init__()
        self.read = nn.Conv2d(COLORS, 3, SIDES).double().requires_grad_()
        self.norm = nn.BatchNorm2d(3).double()
        self.calls, self.awake = 0, awake
        with torch.no_grad():
            self.read.weight.zero_()
            if self.read.bias is not None:  # it is there, as a type checker cannot know
                self.read.bias.copy_(torch.tensor([-9.0, -18.0, 0.0]))
            for (row, column), value in ((white, 12), (black, -12)):
                self.read.weight[0, :, row, column] = value / COLORS
            self.read.weight[1] = 30 / self.read.weight[1].numel()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out = self.norm(self.read(x)).flatten(1)
        if (self.calls - 1) % ROUND >= self.awake:
            out = 0 * out + out.new_tensor([-9.0, -9.0, 0.0])
        return out


@guarded
def find_triggers(fn: Callable[..., tuple]) -> None:
    """find_triggers(model, x, labels, steps, lam, generator) -> masks and patterns."""
    name, g = "find_triggers", fresh()
    x = 0.25 + 0.5 * torch.rand(40, COLORS, *SIDES, generator=g, dtype=torch.float64)
    at = torch.randperm(SIDES[0] * SIDES[1], generator=g)[:2].tolist()
    white, black = (divmod(i, SIDES[1]) for i in at)
    labels, seed = torch.tensor([1, 0]), int(torch.randint(10**6, (), generator=g))

    def search(steps: int, lam: float, awake: float = math.inf) -> tuple[_Planted, list]:
        net = _Planted(white, black, awake)
        before = {k: v.clone() for k, v in net.state_dict().items()}
        out = call(name, fn, net, x, labels, steps, lam, torch.Generator().manual_seed(seed))
        need(
            isinstance(out, (tuple, list)) and len(out) == 2,
            name,
            "gives back masks and patterns, two tensors.",
            1,
        )
        shaped(name, out[0], (2, 1, *SIDES), hint=1)
        shaped(name, out[1], (2, COLORS, *SIDES), hint=1)
        same = all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
        need(same, name, "changes the network, which only answers here.", 3)
        need(
            all(p.grad is None and p.requires_grad for p in net.parameters()),
            name,
            "leaves gradients in the network; ask for those of mask and pattern alone.",
            3,
        )
        found = [t.detach().double() for t in out]
        inside = all(bool(((t >= 0) & (t <= 1)).all()) for t in found)
        need(inside, name, "leaves the range from 0 to 1.", 2)
        return net, found

    def rates(net: _Planted, found: list) -> list[float]:
        net.awake = math.inf
        mask, pattern = found
        with torch.no_grad():
            said = [net((1 - m) * x + m * p).argmax(1) for m, p in zip(mask, pattern, strict=True)]
        return [float((s == t).double().mean()) for s, t in zip(said, labels, strict=True)]

    net, found = search(150, 0.02)
    need(
        min(rates(net, found)) > 0.8,
        name,
        "a row's stamp does not lead to its label: (1 - mask) * x + mask * pattern should.",
        4,
    )
    again = [search(10, 0.02)[1][0] for _ in range(2)]
    need(close(*again), name, "draws at random without the generator.", 1)
    tired, kept = search(ROUND, 0.02, awake=60)
    need(
        min(rates(tired, kept)) > 0.8,
        name,
        "gives back a mask that no longer worked; keep the smallest that did.",
        5,
    )
    large, small = (search(30, lam)[1][0].flatten(1).sum(1) for lam in (1e-9, 1.0))
    need(
        bool((small < 0.7 * large).all()),
        name,
        "does not obey lambda: a dear mask is no smaller than a free one.",
        4,
    )
    mask, pattern = found[0][1, 0], found[1][1]
    spot = mask[white] + mask[black]
    need(
        float(spot / mask.sum()) > 0.5 and float(pattern[:, white[0], white[1]].mean()) > 0.5,
        name,
        "does not find the two planted pixels, the first of them white.",
        4,
    )
    passed(name, "values in [0, 1], planted pixels found, lambda obeyed, network untouched")
