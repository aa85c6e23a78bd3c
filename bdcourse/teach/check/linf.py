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
    passed(name, "ratio of two norms, root taken, infinity a case of its own")


@guarded
def rise(fn: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """rise(clean, triggered, p) -> mean growth of each channel's p-norm, (c,)."""
    name, g = "rise", fresh()
    clean = torch.randn(5, 4, 3, 6, generator=g)
    triggered = torch.randn(5, 4, 3, 6, generator=g)
    triggered[:, 0] *= 0.2
    a, b = clean.double().flatten(2), triggered.double().flatten(2)
    for p in (math.inf, 1.0, 2.0):
        out = call(name, fn, clean, triggered, p)
        shaped(name, out, (4,), hint=2)
        after, before = (torch.linalg.vector_norm(t, p, dim=2) for t in (b, a))
        want = (after - before).mean(0)
        plain = [t.amax(2) if p == math.inf else t.sum(2) for t in (b, a)]
        need(
            p == 2 or not close(out, (plain[0] - plain[1]).mean(0)),
            name,
            "forgets the absolute value: a map may be negative.",
            1,
        )
        need(
            not close(out, torch.linalg.vector_norm(b - a, p, dim=2).mean(0))
            and not close(out, (b - a).amax(2).mean(0)),
            name,
            "is the norm of the change; the change of the norm is asked for.",
            1,
        )
        need(
            not close(out, want.abs()) and not close(out, (after - before).abs().mean(0)),
            name,
            "has lost its sign: a norm that falls counts below zero.",
            2,
        )
        need(
            not close(out, b.abs().amax((0, 2)) - a.abs().amax((0, 2))),
            name,
            "takes the largest over images, too; these are averaged.",
            2,
        )
        need(
            p == math.inf or not close(out, (b.abs().amax(2) - a.abs().amax(2)).mean(0)),
            name,
            f"is the rise of the peak at p = {p:g}, too; p says which norm.",
            2,
        )
        need(close(out, want), name, f"is not the mean change of the norm at p = {p:g}.", 1)
    passed(name, "change of the norm, sign kept, mean over images, for every p")


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
    out = number(name, fn(qs, [0.8125, 0.75, 0.6875, 0.6875, 0.5, 0.5], 0.875, 0.125))
    need(
        out == 0.1,
        name,
        "does not ask `before`; the drop is counted from there, not from the first of accs.",
        1,
    )
    out = number(name, fn(qs, [0.75, 0.9375, 0.75, 0.75, 0.5, 0.5], 0.75, 0.125))
    need(out != 0.0, name, "takes a gain for a loss; accuracy may rise.", 1)
    need(
        out == 0.3,
        name,
        "counts the drop from the best accuracy so far; it is counted from `before`.",
        1,
    )
    passed(name, "drop counted from before, stops at the first loss, max_drop itself allowed")


@guarded
def verdict(fn: Callable[[float, float, float, float], str]) -> None:
    """verdict(guess, asr, ra, acc) -> what a network is after a cut, one of four words."""
    name = "verdict"
    low, high = 0.01 + 0.08 * random.random(), 0.91 + 0.08 * random.random()
    middle = 0.3 + 0.4 * random.random()
    cases = (
        (low, low, high, high, "repaired", "a dead attack and signs read well"),
        (high, low, high, high, "repaired", "a dead attack, though the guess lives"),
        (low, low, middle, high, "silenced", "a dead attack and a low RA"),
        (low, low, high, middle, "silenced", "a dead attack and a low accuracy"),
        (low, low, 0.85, 1.0, "silenced", "an RA below nine tenths, whatever the accuracy"),
        (high, low, middle, middle, "silenced", "a dead attack, signs not read, a living guess"),
        (low, middle, middle, high, "immune to the guess", "a dead guess and a living attack"),
        (low, high, low, middle, "immune to the guess", "a dead guess and an attack as before"),
        (middle, high, low, high, "untouched", "a guess and an attack that both live"),
        (high, 0.1, high, high, "untouched", "an attack of exactly a tenth, which is not dead"),
        (0.1, high, low, high, "untouched", "a guess of exactly a tenth, which is not dead"),
        (low, low, 0.9, 0.9, "repaired", "RA and accuracy of exactly nine tenths"),
    )
    for *shares, want, what in cases:
        out = call(name, fn, *shares)
        need(isinstance(out, str), name, f"returns a {type(out).__name__}, not a word.", 1)
        need(out == want, name, f"says {out!r} of {what}; it is {want!r}.", 1)
    passed(name, "the attack asked first, RA and accuracy both, the guess only while it lives")


@guarded
def steer(fn: Callable[[Tensor, Tensor, Tensor, Tensor], tuple]) -> None:
    """steer(lam, good, bad, works) -> the same three after one more look."""
    name, g = "steer", fresh()
    lam = 0.01 * (1 + torch.rand(10, generator=g))
    good = torch.tensor([4, 2, 0, 0, 3, 0, 3, 0, 4, 0])
    bad = torch.tensor([0, 0, 4, 1, 0, 0, 0, 3, 0, 4])
    works = torch.tensor([k in (0, 1, 5, 6, 9) for k in range(10)])
    out = call(name, fn, lam, good, bad, works)
    need(
        isinstance(out, (tuple, list)) and len(out) == 3,
        name,
        "gives back lambda and both counts, three tensors.",
        1,
    )
    for one in out:
        shaped(name, one, (10,))
    new, up, down = (t.double() for t in out)
    need(
        not close(new[2:3], lam[2:3] / 2),
        name,
        "takes back by 2 what it may only take back by 2 to the power of 1.5.",
        2,
    )
    need(
        close(new[8:], lam[8:]),
        name,
        "moves lambda at a look that breaks the row: the fifth has to go the same way.",
        1,
    )
    still = [1, 3, 4, 5, 6, 7]
    need(close(new[still], lam[still]), name, "moves lambda before five in a row.", 1)
    need(
        not close(new[0], lam[0]) and not close(new[2], lam[2]),
        name,
        "leaves lambda as it is at the fifth look in a row: this look counts, and five are enough.",
        1,
    )
    need(
        bool(new[0] > lam[0]) and bool(new[2] < lam[2]),
        name,
        "moves lambda the wrong way: dearer where the stamp works, cheaper where it fails.",
        2,
    )
    need(
        close(new[0], 2 * lam[0]) and close(new[2], lam[2] / 2**1.5),
        name,
        "moves lambda by the wrong factor: times 2, or over 2 to the power of 1.5.",
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
    want = (
        torch.tensor([0, 3, 0, 0, 0, 1, 4, 0, 0, 1]),
        torch.tensor([0, 0, 0, 2, 1, 0, 0, 4, 1, 0]),
    )
    need(close(up, want[0]) and close(down, want[1]), name, "counts wrongly.", 3)
    passed(name, "twice after five good looks, down by 2^1.5 after five bad ones, rows broken")


SIDES, COLORS = (4, 5), 3  # of the images that find_triggers is tried on
ROUND = 80  # steps of a search in which the network falls asleep before the end
PRICE = 0.02  # of a pixel, at the beginning
LONGEST = 1000  # calls of a search that are scripted
# Pixels of each kind. At a high price only the strong one pays, so a search has seen a
# mask of about one pixel in the end, and the smallest is no larger, whatever the start.
KINDS = {"strong": 1, "lower": 4, "upper": 7, "other": 4, "idle": 4}
SMALL = 1.25  # pixels


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


class _Scripted(nn.Module):
    """A network whose answers are written beforehand, whatever it is shown.

    Its pixels still pull at the labels in `pulled`, with forces that are known: a strong
    pixel pays at any price, an upper one at a price up to `ends[1]` times the first, a
    lower one up to `ends[0]` times, and the others never. So a mask tells what price was
    asked for it. What it has seen is in buffers, which come back from the process that a
    submission runs in.

    Args:
        answers: call -> the three logits.
        pulled: 1 for labels that the pixels help, 0 for others.
        ends: see above.
        few: share of a batch that label 1 misses in one step of ten, at least one image.
    """

    def __init__(
        self, answers: Callable[[int], list], pulled: list, ends: tuple, few: float = 0.0
    ) -> None:
        super().__init__()
        self.few = few
        script = torch.tensor([answers(i) for i in range(LONGEST)], dtype=torch.float64)
        self.script: Tensor
        self.calls: Tensor
        self.dear: Tensor
        self.last: Tensor
        self.rows: Tensor
        self.register_buffer("script", script)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("dear", torch.zeros(()))
        self.register_buffer("last", -torch.ones(8, 64, dtype=torch.float64))
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64))
        self.weight = nn.Parameter(torch.zeros(SIDES[0] * SIDES[1], dtype=torch.float64))
        self.pulled = torch.tensor(pulled, dtype=torch.float64)
        order = torch.randperm(len(self.weight))
        self.at = dict(zip(KINDS, order.split(list(KINDS.values())), strict=True))
        # What a pixel gains: its weight, times the share of the labels that it does not
        # help, times what a white pixel adds to gray.
        rest = script[-1].softmax(0)
        gain = 0.5 * float(rest @ (1 - self.pulled)) / PRICE
        with torch.no_grad():
            for group, worth in (("strong", 100), ("lower", ends[0]), ("upper", ends[1])):
                self.weight[self.at[group]] = worth / gain

    def forward(self, x: Tensor) -> Tensor:
        at, flat = int(self.calls), x.flatten(2)
        said = self.script[min(at, LONGEST - 1)].to(x)
        seen = flat.detach()[:, 0]
        left_out = (seen[:, self.at["upper"]] - 0.5).abs().amax(1) < 0.03
        kept = seen[:, self.at["strong"]].amin(1) > 0.95
        one = seen[:64, self.at["other"][0]].mul(200).round()
        with torch.no_grad():
            self.calls += 1
            self.rows += len(x)
            self.dear += float((left_out & kept).any())
            self.last[at % 8] = -1
            self.last[at % 8, : len(one)] = one
        pull = flat.mean(1) @ self.weight
        if self.few and at % 10 == 4:
            miss = torch.arange(len(x)) < max(1, round(self.few * len(x)))
            said = torch.where(miss[:, None], said.roll(-1), said)
        return said + (pull - pull.detach())[:, None] * self.pulled

    def images(self, g: torch.Generator) -> Tensor:
        """Gray where pixels pull, so that forces are equal; random elsewhere."""
        x = torch.full((40, COLORS, len(self.weight)), 0.5, dtype=torch.float64)
        one = torch.rand(40, 1, len(self.at["other"]), generator=g, dtype=torch.float64)
        x[:, :, self.at["other"]] = one
        return x.view(40, COLORS, *SIDES)

    def steered_up(self) -> bool:
        """Whether some stamp left the upper pixels out and kept the strong one."""
        return bool(self.dear > 0)


def _scripted(name: str, fn: Callable[..., tuple], g: torch.Generator) -> None:
    """What of the search a planted trigger cannot tell: the price, its steps, what is kept."""

    def search(labels: list, steps: int, *script, batch: tuple = ()) -> tuple:
        net = _Scripted(*script)
        seed = torch.Generator().manual_seed(int(torch.randint(10**6, (), generator=g)))
        x = net.images(g)
        out = call(name, fn, net, x, torch.tensor(labels), steps, PRICE, seed, *batch)
        masks, patterns = (t.detach().double().flatten(1) for t in out)
        found = {k: masks[:, at].mean(1).tolist() for k, at in net.at.items()}
        found["sum"] = masks.sum(1).tolist()
        return net, patterns.view(len(labels), COLORS, -1)[:, :, net.at["other"]], found

    # Before the price moves, and for labels that never work.
    net, free, m = search([0, 2], 50, lambda i: [0.0, 2.0, 0.0], [1, 0, 1], (0.6, 1.6))
    need(
        max(m["other"]) < 0.1,
        name,
        "does not obey lambda: pixels that help nothing stay in the mask.",
        4,
    )
    need(
        float(free.max()) > 0.05 or max(m["strong"]) < 0.5,
        name,
        "asks a price for the pattern; only the mask costs.",
        4,
    )
    need(
        min(m["strong"]) > 0.9,
        name,
        "gives no mask, or an early one, where none has worked yet; keep the newest.",
        5,
    )
    need(
        max(m["lower"]) < 0.2 and min(m["upper"]) > 0.8,
        name,
        "weighs wrongly: for each label the mean cross-entropy over its images, plus lambda "
        "times the sum of its mask, and Adam as the task sets it.",
        4,
    )
    newest = net.last[(int(net.calls) - 1) % 8]
    need(
        len(net.last.unique()) > len(newest.unique()) + 2,
        name,
        "stamps the same images in every step; draw new ones.",
        1,
    )

    # Label 1 always works, label 0 never.
    net, _, m = search([1, 0], 170, lambda i: [0.0, 1.0, 0.0], [1, 1, 0], (0.5, 3.0))
    need(
        min(m["lower"][1], m["upper"][1]) > 0.5,
        name,
        "does not make pixels cheaper for a label whose stamp never works: steer its own lambda.",
        4,
    )
    need(
        m["sum"][0] < SMALL or net.steered_up(),
        name,
        "does not make pixels dearer for a label whose stamp always works: steer its own lambda.",
        4,
    )
    need(m["sum"][0] < SMALL, name, "does not keep the smallest mask that worked.", 5)

    # It always works, and from the middle on larger masks pay.
    def grows(i: int) -> list:
        return [0.0, 1.0, 0.0 if i >= 60 else -3.0]

    many = random.choice((5, 6, 7, 9))
    net, _, m = search([1], 100, grows, [1, 1, 0], (0.5, 3.0), batch=(many,))
    need(
        int(net.rows) == 100 * many,
        name,
        "stamps another number of images in a step than `batch` says.",
        1,
    )
    need(
        m["sum"][0] < SMALL,
        name,
        "keeps the largest or the last mask that worked; the smallest is asked for.",
        5,
    )

    # Every look has a miss or two, between two and five of a hundred in small batches.
    _, _, m = search([1], 120, lambda i: [0.0, 1.0, 0.0], [1, 1, 0], (0.5, 3.0), 0.3)
    need(
        m["lower"][0] > 0.5,
        name,
        "takes a look with misses for a good one: 99% of the hits of all ten steps are asked for.",
        5,
    )


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
            all(p.requires_grad for p in net.parameters()),
            name,
            "switches off the network's own requires_grad; put it back.",
            3,
        )
        need(
            all(p.grad is None for p in net.parameters()),
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
    _scripted(name, fn, g)
    mask, pattern = found[0][1, 0], found[1][1]
    spot = mask[white] + mask[black]
    need(
        float(spot / mask.sum()) > 0.5 and float(pattern[:, white[0], white[1]].mean()) > 0.5,
        name,
        "does not find the two planted pixels, the first of them white.",
        4,
    )
    passed(name, "planted pixels found, each price steered, smallest mask kept")
