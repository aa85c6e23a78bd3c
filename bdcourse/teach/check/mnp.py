"""The exercise checks of lesson 07."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse.defenses import masks_forward, masks_ones
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
def folded(fn: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """folded(weight, gamma, var, eps) -> size of each channel with its BatchNorm."""
    name, g = "folded", fresh()
    w = torch.randn(7, 3, 3, 3, generator=g)
    gamma = torch.randn(7, generator=g)
    gamma[0] = -1 - gamma[0].abs()  # one is surely negative
    var = torch.rand(7, generator=g) + 0.1
    out = call(name, fn, w, gamma, var, 1e-3)
    shaped(name, out, (7,))
    need(float(out.min()) >= 0, name, "is negative where gamma is.", 2)
    length = w.double().flatten(1).abs().sum(1)
    scale = gamma.double().abs() / (var.double() + 1e-3).sqrt()
    need(
        not close(out, length * scale / w[0].numel()),
        name,
        "is a mean over the weights; the l1 norm is their sum.",
        1,
    )
    need(
        not close(out, w.double().flatten(1).norm(dim=1) * scale),
        name,
        "takes the l2 norm of the filter; this lesson uses l1.",
        1,
    )
    need(
        not close(out, length * gamma.double().abs() / (var.double() + 1e-3)),
        name,
        "divides by the variance; BatchNorm divides by the standard deviation.",
        3,
    )
    need(
        not close(out, length * gamma.double().abs() / (var.double().sqrt() + 1e-3), 1e-5),
        name,
        "adds eps to the deviation; BatchNorm adds it to the variance, under the root.",
        3,
    )
    # Ten times the filter is a hundred times the variance: nothing may happen.
    ten = call(name, fn, 10 * w, gamma, 100 * var, 0.0)
    need(
        close(ten / call(name, fn, w, gamma, var, 0.0), torch.ones(7)),
        name,
        "changes when a filter and the deviation behind it both grow tenfold.",
        3,
    )
    need(
        not close(out, length * gamma.double().abs() / var.double().sqrt(), 1e-5),
        name,
        "leaves out eps; add it under the root as BatchNorm does.",
        3,
    )
    need(close(out, length * scale, 1e-5), name, "is not norm times factor.", 1)
    passed(name, "the l1 norm times the BatchNorm factor, unmoved when both grow tenfold")


@guarded
def removal(fn: Callable[[Callable[[], Tensor], nn.BatchNorm2d, int], Tensor]) -> None:
    """removal(losses, bn, k) -> change of each loss without the scale of channel k."""
    name, g = "removal", fresh()
    bn = nn.BatchNorm2d(5).eval()
    with torch.no_grad():
        for t in (bn.weight, bn.bias):
            t.copy_(torch.rand(5, generator=g) + 0.5)
    x = torch.randn(6, 5, 4, 4, generator=g)
    to = torch.randn(5, generator=g)
    to[3], to[0] = -0.5 - to[3].abs(), 0.5 + to[0].abs()  # the losses need one, not the other

    def losses() -> Tensor:
        return (bn(x).square().mean((2, 3)) @ to).detach()

    def without(k: int, shift: bool) -> Tensor:
        scale, bias = bn.weight.detach().clone(), bn.bias.detach().clone()
        scale[k] = 0
        bias[k] = 0 if shift else bias[k]
        mean, var = bn.running_mean, bn.running_var
        y = nn.functional.batch_norm(x, mean, var, scale, bias, False, 0.1, bn.eps)
        return (y.square().mean((2, 3)) @ to).detach() - losses()

    kept = {n: t.clone() for n, t in bn.state_dict().items()}
    for k in (3, 0):
        try:
            out = call(name, fn, losses, bn, k)
        except RuntimeError as e:
            if "grad" in str(e):
                raise CheckFailed(
                    f"{name}: parameters need gradients; work under torch.no_grad() (hint 2)"
                ) from None
            raise
        if isinstance(out, Tensor) and out.dim() == 0:
            raise CheckFailed(f"{name}: is one number; keep a change for each image (hint 1)")
        shaped(name, out, (6,))
        need(
            all(torch.equal(kept[n], t) for n, t in bn.state_dict().items()),
            name,
            "does not put the BatchNorm back as it was.",
            2,
        )
        need(
            all(p.requires_grad for p in bn.parameters()),
            name,
            "leaves a parameter that can no longer be trained; use torch.no_grad().",
            2,
        )
        need(not close(out, losses()), name, "is the loss, not its change.", 1)
        want = without(k, False)
        need(
            close(out, want) or not close(out, want.abs()),
            name,
            "takes absolute values; a loss may fall as well.",
            1,
        )
        need(
            not close(out, -want),
            name,
            "has the wrong sign: a channel that is needed must get a positive number.",
            1,
        )
        need(
            not close(out, without(k, True)),
            name,
            "zeroes the shift as well; a mask acts on the scale alone.",
            3,
        )
        need(close(out, want), name, "is not loss without minus loss with.", 1)
    passed(name, "each loss without minus with, scale only, BatchNorm put back")


@guarded
def mask_step(
    fn: Callable[[Tensor, Tensor, Tensor, float, float], tuple[Tensor, Tensor]],
) -> None:
    """mask_step(m, v, g, lr, momentum) -> the masks and their speed, one step on."""
    name, rand = "mask_step", fresh()
    m = torch.rand(9, generator=rand)
    v, g = torch.randn(2, 9, generator=rand)
    m[0], m[1], g[0], g[1], v[0], v[1] = 1.0, 0.0, -5.0, 5.0, 0.0, 0.0
    lr, momentum = (0.2 + torch.rand(2, generator=rand) / 2).tolist()
    out = call(name, fn, m, v, g, lr, momentum)
    if not (isinstance(out, tuple) and len(out) == 2):
        raise CheckFailed(f"{name}: must return two tensors, m and v (hint 1)")
    after, speed = out
    shaped(name, after, (9,))
    shaped(name, speed, (9,))
    want = momentum * v + g
    with_rate = (momentum * v - lr * g, momentum * v + lr * g, lr * want)
    need(
        not any(close(speed, w) for w in with_rate),
        name,
        "puts the rate into the speed; here it multiplies the speed afterwards.",
        2,
    )
    need(not close(speed, g), name, "forgets the old speed.", 2)
    need(not close(speed, 0.9 * v + g), name, "takes 0.9 whatever the momentum.", 2)
    need(
        not close(speed, momentum * v + (1 - momentum) * g),
        name,
        "averages the gradient; PyTorch's momentum adds it in full.",
        2,
    )
    need(not close(speed, want.clamp(0, 1)), name, "cuts the speed; only the mask is cut.", 3)
    need(close(speed, want, 1e-5), name, "has another speed than momentum v + g.", 2)
    need(
        not close(after, m - lr * want),
        name,
        "lets a mask leave [0, 1]; clamp it.",
        3,
    )
    need(
        not close(after, (m + lr * want).clamp(0, 1)),
        name,
        "steps up the gradient.",
        2,
    )
    need(
        close(after, (m - lr * want).clamp(0, 1), 1e-5),
        name,
        "has other masks than clamp(m - lr v, 0, 1).",
        2,
    )
    passed(name, "momentum v + g, then a step down, cut to [0, 1]")


class _Small(nn.Module):
    """Two convolutions with BatchNorm and a linear layer, in float64.

    What it saw in train mode stands in buffers, for these come back even from the process
    that a submission runs in: `rows` holds the first pixel of every image, pass by pass,
    and -1 behind the last image; `passes` counts.
    """

    rows: Tensor
    passes: Tensor

    def __init__(self, g: torch.Generator, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.one, self.bn1 = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.two, self.bn2 = nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)
        self.read = nn.Linear(5, 3)
        with torch.no_grad():
            for n, t in (*self.named_parameters(), *self.named_buffers()):
                if "batches" not in n:
                    low = 0.5 if "bn" in n and ("weight" in n or "var" in n) else -0.5
                    t.copy_(low + torch.rand(t.shape, generator=g))
        self.register_buffer("rows", torch.full((12, 300), -1.0))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        if self.bn1.training:
            row = self.rows[int(self.passes) % len(self.rows)]
            first = x[: len(row), 0, 0, 0].detach()
            row.fill_(-1)[: len(first)] = first
            self.passes += 1
        x = self.bn1(self.one(x)).relu()
        x = self.bn2(self.two(x)).relu()
        return self.gain * self.read(x.mean((2, 3)))


def _batches(net: _Small, x: Tensor) -> list[list[int]]:
    """Which images of x each pass in train mode saw; -1 for one that is not of x."""
    at = {v: i for i, v in enumerate(x[:, 0, 0, 0].tolist())}
    rows = net.rows[: int(net.passes)].tolist()
    return [[at.get(v, -1) for v in row if v != -1] for row in rows]


def _photos(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 1, 7, 7, generator=g, dtype=torch.float64)
    return x, torch.randint(0, 3, (n,), generator=g)


def _same(a: nn.Module, b: nn.Module, statistics: bool = True) -> bool:
    """Equal weights and statistics, or equal weights only, whatever was seen."""
    mine, theirs = a.state_dict(), b.state_dict()
    asked = mine.keys() if statistics else dict(a.named_parameters()).keys()
    return all(
        torch.allclose(mine[n].double(), theirs[n].double(), atol=1e-9)
        for n in asked
        if n not in ("rows", "passes")
    )


def _untouched(name: str, model: nn.Module, kept: nn.Module, hint: int) -> None:
    need(_same(model, kept) and not model.training, name, "changes the network it is given.", hint)
    need(
        all(p.grad is None for p in model.parameters()),
        name,
        "leaves gradients in the network it is given.",
        hint,
    )


def _climbed(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    lr: float,
    epochs: int = 1,
    batches: list[list[int]] | None = None,
    **other: float,
) -> nn.Module:
    """The copy after so many epochs of the batches, or of one with all images; `other`
    makes one thing wrong. `train`: so many first batches are seen in train mode."""
    how = {"sign": -1.0, "momentum": 0.9, "decay": 5e-4, "clip": 20.0, "train": 1e9} | other
    net = deepcopy(model)
    opt = torch.optim.SGD(net.parameters(), lr, how["momentum"])
    for k, i in enumerate(epochs * (batches or [list(range(len(x)))])):
        net.train(k < how["train"])
        opt.zero_grad()
        (how["sign"] * F.cross_entropy(net(x[i]), y[i])).backward()
        if how["clip"]:
            nn.utils.clip_grad_norm_(net.parameters(), how["clip"])
        for p in net.parameters():  # by hand, since SGD refuses a negative decay
            assert p.grad is not None
            p.grad += how["decay"] * p.detach()
        opt.step()
    return net.eval()


@guarded
def forget(fn: Callable[..., nn.Module]) -> None:
    """forget(model, x, y, lr, stop, most, generator) -> a copy that has unlearned."""
    name, g = "forget", fresh()
    seed = int(torch.randint(10**6, (), generator=g))
    x, y = _photos(24, g)
    model = _Small(g)
    kept = deepcopy(model)

    def climb(
        net: _Small, x: Tensor, y: Tensor, stop: float, most: int, lr: float = 0.1, other: int = 0
    ) -> Any:
        before, draws = deepcopy(net), torch.Generator().manual_seed(seed + other)
        out = call(name, fn, net, x, y, lr, stop, most, draws)
        need(isinstance(out, nn.Module), name, "must return the copy, a network.", 1)
        need(out is not net, name, "returns the network itself, not a copy.", 1)
        _untouched(name, net, before, 1)
        need(not out.training, name, "returns the copy in train mode; it is used in eval.", 2)
        return out

    wrong = {
        "goes down the loss; suppression goes up.": ({"sign": 1.0}, 3),
        "lets the weights grow: the decay has the wrong sign.": ({"decay": -5e-4}, 3),
        "leaves out the weight decay.": ({"decay": 0.0}, 3),
        "climbs without momentum.": ({"momentum": 0.0}, 3),
        "climbs in eval mode; the BatchNorms should use the batch.": ({"train": 0.0}, 2),
    }
    for epochs in (1, 3):
        out = climb(model, x, y, -1.0, epochs)
        for symptom, (other, hint) in wrong.items():
            told = _same(out, _climbed(kept, x, y, 0.1, epochs, None, **other))
            need(not told or (epochs == 1 and "momentum" in other), name, symptom, hint)
        right = _climbed(kept, x, y, 0.1, epochs)
        need(
            _same(out, right) or not _same(out, right, statistics=False),
            name,
            "has seen more in train mode than its batches; judge in eval mode.",
            2,
        )
        need(
            epochs == 1 or not _same(out, _climbed(kept, x, y, 0.1, epochs, train=1)),
            name,
            "climbs in eval mode after the first epoch; judging has switched the mode.",
            2,
        )
        need(
            epochs == 1 or not _same(out, _climbed(kept, x, y, 0.1, 1)),
            name,
            "ends before `most` epochs though accuracy is not yet at `stop`.",
            4,
        )
        need(
            _same(out, right),
            name,
            f"is elsewhere than {epochs} step(s) of SGD up the loss lead.",
            3,
        )
    out = climb(model, x, y, 1.0, 5)
    need(
        not _same(out, kept),
        name,
        "does not climb at all where accuracy is low from the start; it counts after an epoch.",
        4,
    )
    need(
        _same(out, _climbed(kept, x, y, 0.1, 1)),
        name,
        "goes on although accuracy has come down to `stop`.",
        4,
    )
    # At a tiny rate only the statistics move, so these labels are all read after an epoch.
    tiny = 1e-12
    told = _climbed(kept, x, y, tiny)(x).argmax(1)
    need(
        int(climb(model, x, told, 1.0, 4, tiny).passes) == 1,
        name,
        "goes on where accuracy equals `stop`; at most `stop` is enough.",
        4,
    )
    steep = _Small(g, gain=1e4)
    need(
        _same(climb(steep, x, y, -1.0, 1), _climbed(steep, x, y, 0.1, 1)),
        name,
        "does not cut a gradient that is longer than 20, or cuts it before it is there.",
        3,
    )
    _whole_epochs(name, g, climb)
    passed(name, "a copy in eval mode, up the loss, down the weights, stopped by accuracy")


def _whole_epochs(name: str, g: torch.Generator, climb: Callable[..., Any]) -> None:
    """Epochs of three batches: what they are made of, and after which one it ends."""
    x, y = _photos(300, g)
    model = _Small(g)
    three = climb(model, x, y, -1.0, 3)
    passes = _batches(three, x)
    sizes = [len(p) for p in passes]
    need(
        sizes == [100] * 9,
        name,
        f"takes batches of {sizes[:4]} from 300 images, not three of 100 an epoch.",
        2,
    )
    for n, want in ((256, [128, 128]), (131, [65, 66])):
        some, true = _photos(n, g)
        sizes = sorted(len(p) for p in _batches(climb(model, some, true, -1.0, 1), some))
        need(
            sizes == want,
            name,
            f"takes batches of {sizes[:4]} from {n} images, not two of {want[0]} or {want[1]}.",
            2,
        )
    epochs = [sum(passes[k : k + 3], []) for k in (0, 3, 6)]
    need(
        all(sorted(e) == list(range(300)) for e in epochs),
        name,
        "does not see each image once an epoch.",
        2,
    )
    need(epochs[0] != list(range(300)), name, "does not shuffle.", 2)
    need(epochs[0] != epochs[1], name, "keeps one order for all epochs; shuffle in each.", 2)
    again, others = (_batches(climb(model, x, y, -1.0, 1, 0.1, k), x) for k in (0, 1))
    need(
        again == passes[:3] and others != again,
        name,
        "draws at random without the generator.",
        2,
    )
    after = [_climbed(model, x, y, 0.1, 1, passes[: 3 * k]) for k in (1, 2, 3)]
    need(_same(three, after[-1]), name, "is elsewhere than its batches lead.", 3)
    right = [int((net(x).argmax(1) == y).sum()) for net in after]
    # A stop just above and just below what an epoch leaves tells how accuracy is measured.
    for least in {300.0, *(right[k] + off for k in (0, 1) for off in (0.5, -0.5))}:
        ends = next((k for k, n in enumerate(right[:2], 1) if n <= least), 3)
        taken = int(climb(model, x, y, least / 300, 3).passes)
        need(taken % 3 == 0, name, "ends within an epoch; look at the accuracy after each.", 4)
        need(
            taken >= 3 * ends,
            name,
            "ends before `most` epochs though accuracy on all of x is not yet at `stop`.",
            4,
        )
        need(
            taken == 3 * ends,
            name,
            "goes on although accuracy on all of x has come down to `stop`.",
            4,
        )


@guarded
def learn_masks(fn: Callable[..., dict]) -> None:
    """learn_masks(model, forgot, x, y, sizes, weights, steps, lr, batch, generator)."""
    name, g = "learn_masks", fresh()
    seed = int(torch.randint(10**6, (), generator=g))
    x, y = _photos(20, g)
    nets = _Small(g), _Small(g)
    kept = tuple(deepcopy(n) for n in nets)
    sizes = {
        n: 2 * torch.rand(t.shape, generator=g).double() for n, t in masks_ones(nets[0]).items()
    }
    flat = {n: torch.ones_like(t) for n, t in sizes.items()}

    def learn(
        weights: tuple, steps: int, lr: float, batch: int = len(x), n: int = len(x), other: int = 0
    ) -> dict:
        draws = torch.Generator().manual_seed(seed + other)
        own = {n: t.clone() for n, t in sizes.items()}
        out = call(name, fn, *nets, x[:n], y[:n], own, weights, steps, lr, batch, draws)
        need(
            all(torch.equal(own[n], t) for n, t in sizes.items()),
            name,
            "changes the sizes it is given.",
            3,
        )
        need(isinstance(out, dict), name, "must return masks by the names of BatchNorms.", 1)
        need(list(out) == list(sizes), name, f"has masks for {list(out)}, not {list(sizes)}.", 1)
        for n, m in out.items():
            shaped(name, m, tuple(sizes[n].shape))
            need(bool(((m >= 0) & (m <= 1)).all()), name, "lets a mask leave [0, 1].", 4)
            need(not m.requires_grad, name, "returns masks that still want a gradient.", 2)
        for net, before in zip(nets, kept, strict=True):
            _untouched(name, net, before, 2)
        return out

    def by_package(weights: tuple, steps: int, lr: float, **slip: Any) -> dict:
        """J as the task has it, with plain clamped SGD; `slip` makes one thing wrong."""
        usual: dict[str, Any] = {"momentum": 0.9, "clamp": True, "sizes": sizes, "nets": kept}
        how = usual | slip
        m = {n: torch.ones_like(t) for n, t in sizes.items()}
        v = {n: torch.zeros_like(t) for n, t in sizes.items()}
        a, b, c = weights
        first, second = how["nets"]
        for _ in range(steps):
            leaves = {n: t.detach().requires_grad_() for n, t in m.items()}
            total = c * torch.stack([(how["sizes"][n] * t).sum() for n, t in leaves.items()]).sum()
            for weight, net in ((a, first), (b, second)):
                if weight:  # a network that no term asks need not be there
                    said = masks_forward(net, leaves, x)
                    total = total + weight * F.cross_entropy(said, y)
            slopes = torch.autograd.grad(total, list(leaves.values()))
            for n, slope in zip(m, slopes, strict=True):
                v[n] = how["momentum"] * v[n] + slope
                m[n] = leaves[n].detach() - lr * v[n]
                m[n] = m[n].clamp(0, 1) if how["clamp"] else m[n]
        return m

    def agree(a: dict, b: dict) -> bool:
        return all(close(a[n], b[n], 1e-7) for n in sizes)

    pull, both = (0.0, 0.0, 0.1), (1.0, 0.5, 0.02)
    means = {n: t / t.numel() for n, t in sizes.items()}
    out = learn(pull, 2, 0.5)
    need(not agree(out, flat), name, "does not move the masks.", 2)
    need(
        not agree(out, by_package(pull, 2, 0.5, sizes=flat)),
        name,
        "leaves the sizes out of the penalty.",
        3,
    )
    need(
        not agree(out, by_package(pull, 2, 0.5, sizes=means)),
        name,
        "takes a mean over a layer in the penalty; it is a sum.",
        3,
    )
    need(
        not agree(out, by_package(pull, 2, 0.5, momentum=0.0)),
        name,
        "forgets the speed from step to step.",
        4,
    )
    need(agree(out, by_package(pull, 2, 0.5)), name, "moves otherwise under the penalty alone.", 3)
    for weights, which in (((1.0, 0.0, 0.0), "network"), ((0.0, 1.0, 0.0), "copy")):
        out, want = learn(weights, 3, 0.3), by_package(weights, 3, 0.3)
        need(  # all images, in whatever order
            agree(out, learn(weights, 3, 0.3, other=1)),
            name,
            "does not take `batch` different images a step.",
            2,
        )
        need(
            not agree(out, by_package(weights, 3, 0.3, nets=kept[::-1])),
            name,
            f"asks the wrong one of the two networks where the {which} should answer.",
            3,
        )
        need(
            not agree(out, by_package(tuple(-w for w in weights), 3, 0.3)),
            name,
            f"climbs the loss of the {which}; masks are to lower it.",
            3,
        )
        need(agree(out, want), name, f"moves otherwise under the loss of the {which} alone.", 3)
    far = learn(both, 6, 4.0)
    need(agree(far, by_package(both, 6, 4.0)), name, "has other masks than the package.", 4)
    few = [learn(both, 5, 0.3, 6) for _ in "ab"]
    need(agree(*few), name, "draws at random without the generator.", 2)
    _drawn(name, nets, sizes, x[:5], y[:5], learn)
    passed(name, "the package's masks in float64, both networks untouched, values in [0, 1]")


def _drawn(name: str, nets: tuple, sizes: dict, x: Tensor, y: Tensor, learn: Callable) -> None:
    """Which three of five images did a step show to each network? The masks tell: in eval
    mode a batch's gradient is the mean of its images' gradients."""

    def slopes(net: nn.Module, m: Tensor) -> Tensor:
        """The gradient of each image's loss by the masks: (5, channels)."""
        parts = m.split([len(t) for t in sizes.values()])
        leaves = [t.clone().requires_grad_() for t in parts]
        said = masks_forward(net, dict(zip(sizes, leaves, strict=True)), x)
        losses = F.cross_entropy(said, y, reduction="none")
        rows = [torch.autograd.grad(v, leaves, retain_graph=True) for v in losses]
        return torch.stack([torch.cat(row) for row in rows])

    threes = list(itertools.combinations_with_replacement(range(5), 3))
    which = torch.tensor(threes)

    def seen(g: Tensor, m: Tensor) -> list[tuple[tuple, tuple]]:
        """The images of each network that give this gradient at these masks. In a network
        that hardly answers, several may."""
        one, two = (slopes(net, m)[which].mean(1) for net in nets)
        fits = (one[:, None] + two - g).abs().amax(2) < 1e-8
        return [(threes[i], threes[j]) for i, j in fits.nonzero().tolist()]

    flat = torch.cat(list(sizes.values()))
    steep = float(sum(slopes(net, torch.ones_like(flat)).abs().max() for net in nets))
    # The price pushes every mask down, none as far as zero, so that no slope is cut off.
    price, still = 2 * steep / float(flat.min()), []
    lr = 0.2 / (steep + price * float(flat.max()))
    firsts = set()
    for k in range(8):
        m, v = torch.ones_like(flat), torch.zeros_like(flat)
        shown = []
        for steps in (1, 2):
            masks = learn((1.0, 1.0, price), steps, lr, 3, 5, k)
            new = torch.cat([masks[n].double() for n in sizes])
            speed = (m - new) / lr
            shown.append(seen(speed - 0.9 * v - price * flat, m))
            m, v = new, speed
        whole, later = (
            [(a, b) for a, b in pairs if len(set(a)) == len(set(b)) == 3] for pairs in shown
        )
        need(bool(whole), name, "does not take `batch` different images a step.", 2)
        need(bool(later), name, "takes `batch` different images in its first step only.", 2)
        alike = [a for a, b in whole if a == b]
        need(bool(alike), name, "shows the two networks different images.", 2)
        firsts.add(alike[0] if len(whole) == 1 else k)
        still.append(len(whole) == 1 and whole == shown[1])
    need(not all(still), name, "sees the same images in every step.", 2)
    need(len(firsts) > 1, name, "draws at random without the generator.", 2)
