"""The exercise checks of lesson 06."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bdcourse.defenses import FmpResponse, fmp_plain_push, fmp_plain_scores, fmp_select
from bdcourse.teach.check.core import (
    CheckFailed,
    call,
    close,
    fresh,
    guarded,
    need,
    passed,
    shaped,
)


@guarded
def random_start(fn: Callable[[Tensor, float, torch.Generator], Tensor]) -> None:
    """random_start(x, start, generator) -> clip(x +- start), a sign for each pixel."""
    name, g = "random_start", fresh()
    x = 0.3 + 0.4 * torch.rand(8, 3, 24, 24, generator=g)
    out = call(name, fn, x, 0.1, torch.Generator().manual_seed(5))
    shaped(name, out, tuple(x.shape))
    move = out - x
    need(
        close(move.abs(), torch.full_like(x, 0.1), 1e-5),
        name,
        "does not move each pixel by exactly start, up or down.",
        1,
    )
    sign = move.sign()
    up = float((move > 0).float().mean())
    need(
        0.1 < up < 0.9,
        name,
        "moves nearly all pixels the same way; each gets a sign of its own.",
        2,
    )
    # Fair coins keep each of these within a few hundredths.
    alike = [float((sign * sign.roll(1, d)).mean() - sign.mean() ** 2) for d in range(4)]
    need(
        max(map(abs, alike)) < 0.1,
        name,
        "shares one sign between images, colors or neighbors; each value gets its own.",
        2,
    )
    need(0.46 < up < 0.54, name, "tosses a coin that is not fair: up and down are alike.", 2)
    again = fn(x, 0.1, torch.Generator().manual_seed(5))
    other = fn(x, 0.1, torch.Generator().manual_seed(6))
    need(
        torch.equal(out, again) and not torch.equal(out, other),
        name,
        "does not draw from the generator that it is given.",
        2,
    )
    corner = torch.rand(4, 3, 8, 8, generator=g).round()
    edge = call(name, fn, corner, 0.1, torch.Generator().manual_seed(7))
    need(
        0 <= float(edge.min()) and float(edge.max()) <= 1,
        name,
        "leaves [0, 1]: the result must be an image.",
        3,
    )
    # Near a border the same coins give a cut step, on the values that stay inside.
    middle = call(name, fn, torch.full_like(corner, 0.5), 0.1, torch.Generator().manual_seed(7))
    for inside in (corner, 0.05 + 0.9 * corner):
        got = call(name, fn, inside, 0.1, torch.Generator().manual_seed(7))
        need(
            close(got, (inside + middle - 0.5).clamp(0, 1), 1e-5),
            name,
            "does not clip at the border: a step that would leave [0, 1] ends at 0 or 1.",
            3,
        )
    passed(name, "one step of start up or down for each value, inside [0, 1]")


@guarded
def pulls(fn: Callable[[Tensor, Tensor], Tensor]) -> None:
    """pulls(f0, f) -> dJ_i/df0 of every map i: (c, n, c, h, w)."""
    name, g = "pulls", fresh()
    for n, c, h, w in ((3, 5, 2, 7), (4, 2, 3, 3)):
        f0, f = (torch.randn(n, c, h, w, generator=g) for _ in range(2))
        out = call(name, fn, f0, f)
        shaped(name, out, (c, n, c, h, w), 1)
        leaf = f0.double().requires_grad_()
        want = torch.stack(
            [
                torch.autograd.grad((leaf - f.double())[:, i].square().mean(), leaf)[0]
                for i in range(c)
            ]
        )
        own = torch.eye(c, dtype=torch.bool)[:, None, :, None, None].expand_as(out)
        need(
            bool((out[~own] == 0).all()),
            name,
            "pulls at other maps too: row i is zero outside map i.",
            2,
        )
        need(
            not close(out, want / 2, 1e-5),
            name,
            "lacks the factor 2 of the square's derivative.",
            1,
        )
        need(
            not close(out, want / c, 1e-5),
            name,
            "divides by all maps too; J_i is a mean over one map's values.",
            1,
        )
        need(
            not any(close(out, want * k, 1e-5) for k in (n, h, w, h * w)),
            name,
            "lacks a part of the mean: it runs over images and over positions.",
            1,
        )
        need(
            h == w or not any(close(out, want * k, 1e-5) for k in (w / h, h / w)),
            name,
            "takes the map for a square: its positions are height times width.",
            1,
        )
        need(
            not close(out, want * n * h * w, 1e-5),
            name,
            "is the gradient of a sum; J is a mean over images and positions.",
            1,
        )
        need(not close(out, -want, 1e-5), name, "has the wrong sign.", 1)
        need(close(out, want, 1e-5), name, "is not the gradient of J_i by f0.", 3)
    passed(name, "the gradient of every J_i, zero outside its own map")


@guarded
def harm(fn: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """harm(logits, y) -> accuracy and mean cross-entropy of each map's images."""
    name, g = "harm", fresh()
    for m, n, k in ((5, 12, 4), (3, 7, 9)):
        logits = 2 * torch.randn(m, n, k, generator=g)
        y = torch.randint(k, (n,), generator=g)
        logits[0, torch.arange(n), y] += 20  # a map that harms nobody
        out = call(name, fn, logits, y)
        if not (isinstance(out, (tuple, list)) and len(out) == 2):
            raise CheckFailed(f"{name}: must return two tensors, acc, loss (hint 1)")
        acc, loss = out
        shaped(name, acc, (m,))
        shaped(name, loss, (m,))
        hits = (logits.argmax(2) == y).double().mean(1)
        each = -logits.double().log_softmax(2)[:, torch.arange(n), y]
        need(
            not (close(acc, each.mean(1), 1e-4) and close(loss, hits, 1e-5)),
            name,
            "returns the two in the wrong order: accuracy comes first.",
            1,
        )
        need(
            not close(acc, 1 - hits, 1e-5),
            name,
            "returns the share of errors; the score is the accuracy.",
            1,
        )
        need(close(acc, hits, 1e-5), name, "has a wrong accuracy.", 1)
        need(
            not close(loss, each.sum(1), 1e-4),
            name,
            "sums the cross-entropy over images; take the mean.",
            2,
        )
        need(close(loss, each.mean(1), 1e-4), name, "has a wrong cross-entropy.", 2)
    passed(name, "accuracy and mean cross-entropy, a value for each map")


@guarded
def worst_maps(fn: Callable[[Tensor, Tensor, float, int], Tensor]) -> None:
    """worst_maps(acc, loss, p, least) -> positions of the maps to prune."""
    name, g = "worst_maps", fresh()
    cases = ((32, 8, 0), (30, 4, 1), (8, 64, 0), (8, 64, 1), (512, 64, 0), (512, 16, 1))
    for n, p, least in cases:
        order = torch.randperm(n, generator=g)
        # The last two thirds tie at 1.0, and of the rest every three.
        acc = (order // 3 / n * 9).clamp(max=1)
        loss = (1 if least else 100) * torch.rand(n, generator=g)
        rank = sorted(range(n), key=lambda i: (float(acc[i]), -float(loss[i])))
        m = max(least, int(n // p))
        want = sorted(rank[:m])
        out = call(name, fn, acc, loss, p, least)
        need(
            isinstance(out, Tensor) and out.ndim == 1,
            name,
            "must return a tensor of positions.",
            1,
        )
        # Millions would become as many Python objects below.
        need(len(out) <= n, name, f"takes {len(out)} positions of {n}.", 1)
        got = sorted(int(i) for i in out)
        need(not got or (got[0] >= 0 and got[-1] < n), name, f"names no maps of {n}.", 1)
        text = f"of {n} maps at p = {p} and least = {least}"
        need(
            len(got) == m,
            name,
            f"takes {len(got)} {text}, expected max(least, floor({n} / {p})) = {m}.",
            1,
        )
        best = sorted(rank[::-1][:m])
        need(
            got != best or got == want,
            name,
            "takes the maps with the highest accuracy; those harm least.",
            1,
        )
        low = sorted(range(n), key=lambda i: (float(acc[i]), float(loss[i])))[:m]
        need(
            got == want or got != sorted(low),
            name,
            "breaks ties the wrong way; of equal accuracies the higher loss is worse.",
            2,
        )
        first = sorted(range(n), key=lambda i: float(acc[i]))[:m]
        need(
            got == want or got != sorted(first),
            name,
            "takes the first of equal accuracies; ties go to the higher loss.",
            2,
        )
        need(
            sorted(acc[got].tolist()) == sorted(acc[want].tolist()),
            name,
            "leaves out a map of lower accuracy; the loss decides among equals only.",
            2,
        )
        need(got == want, name, f"takes other maps {text}.", 2)
    for scale in (1e-3, 1e-6):
        near = scale * torch.rand(64, generator=g)
        got = call(name, fn, torch.ones(64), near, 8, 0)
        need(
            sorted(got.tolist()) == sorted(near.topk(8).indices.tolist()),
            name,
            "lets small losses vanish: where accuracies tie, the loss alone decides.",
            2,
        )
    tied = fn(torch.ones(16), torch.arange(16) * 7 % 16, 8, 0)  # losses 14, 15
    need(
        sorted(tied.tolist()) == [2, 9],
        name,
        "takes the first of equal accuracies; ties go to the higher loss.",
        2,
    )
    passed(name, "lowest accuracy first, ties to the higher loss, the asked number")


class _Block(nn.Module):
    """Three convolutions, one of them beside the others and defined first."""

    def __init__(self) -> None:
        super().__init__()
        self.beside = nn.Conv2d(3, 7, 1)
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 7, 3, padding=1)
        self.read = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second(torch.relu(self.norm(self.first(x))))
        return self.read(torch.relu(inner + self.beside(x)).mean((2, 3)))


def _pushed_from(net: _Block, x: Tensor, y: Tensor, x0: Tensor, layer: str) -> Tensor:
    """Losses of the maps of a layer where the gradient at x0 moves the images at x."""
    found = []
    for i in range(len(net.get_parameter(f"{layer}.weight"))):
        way = (fmp_plain_push(net, x, x0, layer, i, 1e-6) - x0).sign()
        with torch.no_grad():
            logits = net((x + 0.15 * way).clamp(0, 1))
        found.append(nn.functional.cross_entropy(logits, y))
    return torch.stack(found)


def _which_losses(net: _Block, x: Tensor, y: Tensor, x0: Tensor, got: dict) -> None:
    """Name the slip that gave these losses instead of those of maps pushed one by one."""
    name = "fmp_maps"
    for sign, says in ((-1.0, "steps the other way; J is to grow."), (0.0, "takes no step.")):
        other = {n: fmp_plain_scores(net, x, y, x0, n, sign * 0.15).loss for n in got}
        need(not all(close(v, other[n], 1e-6) for n, v in got.items()), name, says, 3)
    with torch.no_grad():
        plain = nn.functional.cross_entropy(net(x), y)
    need(
        not all(close(v, plain.expand(len(v)), 1e-6) for v in got.values()),
        name,
        "scores the clean images: nothing was pushed, or the gradient was taken at x, not at x0.",
        3,
    )
    late = {n: _pushed_from(net, x, y, x0, n) for n in got}
    need(
        not all(close(v, late[n], 1e-6) for n, v in got.items()),
        name,
        "adds the step to x; the push goes on from x0.",
        3,
    )
    need(
        not any(float(v.max() - v.min()) < 1e-9 for v in got.values()),
        name,
        "pushes all maps of a layer along one direction; each has its own.",
        2,
    )
    raise CheckFailed(
        f"{name}: has other losses than maps pushed one by one: from x0, by epsilon times the "
        "sign, clipped to [0, 1] (hint 3)"
    )


@guarded
def fmp_maps(fn: Callable[..., tuple]) -> None:
    """fmp_maps(model, x, y, x0, epsilon, p, least) -> chosen maps and their scores."""
    name, g = "fmp_maps", fresh()
    net = _Block().double()
    with torch.no_grad():
        for q in net.parameters():
            q.copy_(torch.randn(q.shape, generator=g, dtype=q.dtype))
        net.norm.running_var = 0.5 + torch.rand(8, generator=g, dtype=torch.float64)
    net.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x = 0.1 + 0.8 * torch.rand(9, 3, 6, 6, generator=g, dtype=torch.float64)
    up = torch.randint(2, x.shape, generator=g)
    x0 = (x + 0.1 * (2 * up - 1)).clamp(0, 1)
    with torch.no_grad():
        y = net(x).argmax(1)
        y[:3] = torch.randint(4, (3,), generator=g)
    out = call(name, fn, net, x, y, x0, 0.15, 3, 1)
    if not (isinstance(out, (tuple, list)) and len(out) == 2):
        raise CheckFailed(f"{name}: gives back two dicts, chosen and scores (hint 1)")
    chosen, scores = out
    layers = {"beside": 7, "first": 8, "second": 7}
    for one in (chosen, scores):
        need(
            isinstance(one, dict) and set(one) == set(layers),
            name,
            "must have one entry for each convolution, under its name.",
            1,
        )
    same = all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    need(same and not net.training, name, "changes the network, which is only asked.", 1)
    need(
        all(q.grad is None for q in net.parameters()),
        name,
        "leaves gradients in the network; ask for those of the images alone.",
        2,
    )

    want = {n: fmp_plain_scores(net, x, y, x0, n, 0.15) for n in layers}
    for n, c in layers.items():
        if not (isinstance(scores[n], (tuple, list)) and len(scores[n]) == 2):
            raise CheckFailed(f"{name}: scores hold (acc, loss) of each layer (hint 4)")
        for part in scores[n]:
            shaped(name, part, (c,), hint=4)
    got = {n: scores[n][1].detach().double() for n in layers}
    if not all(close(got[n], want[n].loss, 1e-6) for n in layers):
        _which_losses(net, x, y, x0, got)
    need(
        all(close(scores[n][0].detach(), want[n].acc, 1e-6) for n in layers),
        name,
        "has other accuracies than maps pushed one by one.",
        4,
    )
    best = fmp_select({n: FmpResponse(*want[n]) for n in layers}, 3, least=1)
    for n in layers:
        need(
            isinstance(chosen[n], Tensor)
            and sorted(chosen[n].tolist()) == sorted(best[n].tolist()),
            name,
            f"chooses other maps of {n} than the scores say.",
            4,
        )
    for least in (1, 3):
        few = fn(net, x, y, x0, 0.15, 64, least)[0]
        need(
            all(len(few[n]) == least for n in layers),
            name,
            f"does not hand on p or least: at p = 64, least = {least} each layer loses {least}.",
            4,
        )
    passed(name, "the scores and choices of maps pushed one by one, network untouched")
