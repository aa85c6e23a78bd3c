"""The exercise checks of lesson 05."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from typing import ClassVar

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


def _sigma(w: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(w.double().flatten(2), ord=2)


@guarded
def sigma(fn: Callable[[Tensor], Tensor]) -> None:
    """sigma(weight) -> largest singular value of each output channel's matrix."""
    name, g = "sigma", fresh()
    for shape in ((6, 5, 3, 3), (4, 12, 3, 3), (5, 7, 1, 1)):
        w = torch.randn(shape, generator=g)
        out = call(name, fn, w)
        shaped(name, out, (shape[0],))
        if shape[-1] > 1:
            flat = w.double().flatten(1).norm(dim=1)
            need(
                not close(out, flat),
                name,
                "is the length of the flattened kernel (its "
                "Frobenius norm); keep input channels and positions as two axes.",
                2,
            )
            whole = torch.linalg.svdvals(w.double().flatten(1))
            need(
                not close(out, whole[: shape[0]]),
                name,
                "takes the singular values of the whole layer; each channel has a matrix of "
                "its own.",
                1,
            )
            least = torch.linalg.svdvals(w.double().flatten(2))[:, -1]
            need(not close(out, least), name, "is the smallest singular value.", 1)
        need(
            not close(out, _sigma(w) ** 2),
            name,
            "is the square of sigma, an eigenvalue of M times its transpose; take the root.",
            1,
        )
        need(close(out, _sigma(w)), name, f"is wrong for a weight of shape {shape}.", 1)
    passed(name, "the largest singular value of each channel's own matrix")


@guarded
def score(fn: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """score(sigma, gamma, var, eps) -> Lipschitz score of each channel."""
    name, g = "score", fresh()
    s = torch.rand(9, generator=g) + 0.5
    gamma = torch.randn(9, generator=g)
    gamma[0] = -1 - gamma[0].abs()  # one is surely negative
    var = torch.rand(9, generator=g) + 0.1
    out = call(name, fn, s, gamma, var, 1e-3)
    shaped(name, out, (9,))
    need(
        float(out.min()) >= 0,
        name,
        "is negative where gamma is; a stretch has no sign.",
        2,
    )
    need(
        not close(out, s * gamma.abs() / (var + 1e-3)) and not close(out, s * gamma.abs() / var),
        name,
        "divides by the variance; BatchNorm divides by the standard deviation.",
        2,
    )
    want = s.double() * gamma.double().abs() / (var.double() + 1e-3).sqrt()
    need(
        not close(out, s * gamma.abs() / (var.sqrt() + 1e-3), 1e-5),
        name,
        "adds eps to the root; BatchNorm has it under the root.",
        3,
    )
    need(
        not close(out, s * gamma.abs() / var.sqrt(), 1e-5),
        name,
        "leaves out eps; add it under the root as BatchNorm does.",
        3,
    )
    need(close(out, want, 1e-5), name, "is not sigma times BatchNorm's factor.", 1)
    passed(name, "no sign, the root of the variance, eps under it")


@guarded
def outliers(fn: Callable[[Tensor, float], Tensor]) -> None:
    """outliers(scores, u) -> bool mask of channels above mean + u std."""
    name, g = "outliers", fresh()
    for u in (0.4, 0.8, 1.2):  # inside the bulk, where every slip shows
        s, want, slips = _bulk(u, g)
        out = call(name, fn, s, u)
        shaped(name, out, (30,))
        need(out.dtype == torch.bool, name, "must return a mask of true and false.", 1)
        for wrong, symptom in slips:
            need(not torch.equal(out, wrong), name, symptom, 2)
        need(
            torch.equal(out, want),
            name,
            f"flags {int(out.sum())} channels at u = {u}, expected {int(want.sum())}.",
            1,
        )
    # Six of 64 channels equal to one: z = 3.085 with n - 1 below the root.
    s = torch.zeros(64)
    s[:6] = 1.0
    z = float((1 - s.mean()) / s.std())
    need(
        bool(fn(s, z - 1e-3)[:6].all()) and not bool(fn(s, z + 1e-3).any()),
        name,
        "the deviation must divide by n - 1.",
        2,
    )
    # The mean is 1/4 and the deviation 1/2, so that 1 lies on the threshold, exactly.
    alone = torch.tensor([1.0, 0.0, 0.0, 0.0])
    need(
        not bool(fn(torch.ones(5), 0.0).any() or fn(alone, 1.5).any()),
        name,
        "flags a channel that equals the threshold; it must lie above.",
        1,
    )
    passed(name, "strictly above the mean, n - 1 in the deviation")


def _bulk(u: float, g: torch.Generator) -> tuple[Tensor, Tensor, list[tuple[Tensor, str]]]:
    """Scores, the channels above their threshold, and what each usual slip would flag:
    never the same. Only with n below the root it is; that has a test of its own."""
    while True:
        s = 6 * torch.rand(30, generator=g) + 1
        far, std = s - s.mean(), s.std()
        want = far > u * std
        slips = [
            (
                far.abs() > u * std,
                "also flags channels far below the mean; only sensitive ones are suspicious.",
            ),
            (far > 3 * std, "cuts at 3 deviations, whatever u is."),
            (far > u, "adds u itself; u counts standard deviations."),
            (far > u * s.var(), "measures by the variance; u counts standard deviations."),
            (s > u * std, "leaves out the mean; the bar stands u deviations above it."),
        ]
        masks = [want, *(mask for mask, _ in slips)]
        apart = all(not torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])
        if apart and torch.equal(want, far > u * s.std(unbiased=False)):
            return s, want, slips


@guarded
def largest_z(fn: Callable[[int, int], float]) -> None:
    """largest_z(n, m) -> z-score of m channels at 1 among n, the others at 0."""
    name = "largest_z"
    for n in (random.randint(8, 15), 16, 64, random.randint(65, 600)):
        for m in (random.randint(2, n - 1), 1):
            out = number(name, call(name, fn, n, m))
            s = torch.zeros(n, dtype=torch.float64)
            s[:m] = 1
            want = float((1 - s.mean()) / s.std())
            biased = float((1 - s.mean()) / s.std(unbiased=False))
            alone = (n - 1) / math.sqrt(n)
            need(
                m == 1 or abs(out - math.sqrt((n - 1) / m)) > 1e-6,
                name,
                "adds up the squares of the m alone, or takes m // n for the mean; the others "
                "lie m / n below.",
                2,
            )
            need(
                abs(out - biased) > 1e-6,
                name,
                "uses the deviation with n below the root; CLP divides by n - 1.",
                3,
            )
            need(
                m == 1 or abs(out - alone) > 1e-6 or abs(want - alone) < 1e-6,
                name,
                "takes one outlier, however many there are; all m lift mean and deviation.",
                1,
            )
            need(
                abs(out - 1 / float(s.std())) > 1e-6,
                name,
                "divides 1 by the deviation; the mean is no longer zero.",
                1,
            )
            need(
                abs(out - want) < 1e-4,
                name,
                f"gives {out:.3f} for {m} of {n} channels; they lie at {want:.3f}.",
                2,
            )
    passed(name, "m equal outliers, which lift the mean and the deviation themselves")


class _Branches(nn.Module):
    """Two BatchNorms in a row with a convolution between them that has none, and a third
    on a shortcut; in each pair the BatchNorm is defined right behind its convolution."""

    def __init__(self, g: torch.Generator) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 14, 3, padding=1)
        self.norm = nn.BatchNorm2d(14, eps=0.01)
        self.mix = nn.Conv2d(14, 18, 1)
        self.body = nn.Sequential(nn.Conv2d(18, 18, 3, padding=1), nn.BatchNorm2d(18, eps=0.01))
        self.side = nn.Sequential(nn.Conv2d(14, 18, 1), nn.BatchNorm2d(18, eps=0.01))
        self.double().train()
        with torch.no_grad():
            for m in self.modules():
                if isinstance(m, nn.Conv2d):
                    m.weight.copy_(torch.randn(m.weight.shape, generator=g))
                if isinstance(m, nn.BatchNorm2d):
                    self._draw(m, g)

    def _draw(self, bn: nn.BatchNorm2d, g: torch.Generator) -> None:
        n = bn.num_features
        assert bn.running_mean is not None and bn.running_var is not None
        sign = torch.where(torch.rand(n, generator=g) < 0.5, -1.0, 1.0)
        bn.weight.copy_(sign * (0.5 + torch.rand(n, generator=g)))
        bn.weight[:2] *= 1 + 2 * float(torch.rand((), generator=g) < 0.5)
        bn.bias.copy_(torch.randn(n, generator=g) + 2)
        bn.running_mean.copy_(torch.randn(n, generator=g))
        bn.running_var.copy_(0.5 + torch.rand(n, generator=g))
        bn.running_var[2] = 0.002  # where eps decides

    def pairs(self) -> dict[str, tuple[nn.Conv2d, nn.BatchNorm2d]]:
        ends = {"norm": ("stem", "norm"), "body.1": ("body.0", "body.1")}
        ends["side.1"] = ("side.0", "side.1")
        found = {}
        for name, (first, second) in ends.items():
            conv, bn = self.get_submodule(first), self.get_submodule(second)
            assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
            found[name] = conv, bn
        return found

    def convolutions(self) -> list[nn.Conv2d]:
        return [m for m in self.modules() if isinstance(m, nn.Conv2d)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return (self.body(self.mix(x)) + self.side(x)).relu().mean((2, 3))


SLIPS = {
    "order": ("pairs a BatchNorm with a convolution that does not feed it.", 1),
    "length": ("takes the Frobenius norm of a kernel; the stretch is its sigma.", 2),
    "bare": ("compares kernels alone; BatchNorm's factor belongs to the score.", 2),
    "signed": ("lets a negative gamma make a channel harmless.", 2),
    "eps": ("leaves out eps, so a channel of tiny variance hides the others.", 2),
    "biased": ("cuts elsewhere: the deviation must divide by n - 1.", 2),
    "joint": ("measures all layers by one threshold; each layer has its own.", 3),
    "sides": ("also switches off channels far below the mean.", 3),
}


def _sizes(net: _Branches) -> list[Tensor]:
    """Of the kernels of each convolution, in the order of definition."""
    return [_sigma(m.weight).detach() for m in net.convolutions()]


def _far(net: _Branches, sizes: list[Tensor], slip: str = "") -> dict[str, Tensor]:
    """How far each channel lies from its mean, or would with one slip, in deviations."""
    scores: dict[str, Tensor] = {}
    feeding = (0, 1, 2) if slip == "order" else (0, 2, 3)
    if slip == "length":
        sizes = [c.weight.detach().flatten(1).norm(dim=1) for c in net.convolutions()]
    for (name, (_, bn)), k in zip(net.pairs().items(), feeding, strict=True):
        assert bn.running_var is not None
        n = bn.num_features  # a wrong pair may have another
        size = torch.cat([sizes[k], sizes[k].new_zeros(n)])[:n]
        gamma = bn.weight.detach() if slip == "signed" else bn.weight.detach().abs()
        eps = 0 if slip == "eps" else bn.eps
        scores[name] = size if slip == "bare" else size * gamma / (bn.running_var + eps).sqrt()
    every = torch.cat(list(scores.values()))
    found = {}
    for name, s in scores.items():
        of = every if slip == "joint" else s
        far = (s - of.mean()) / of.std(unbiased=slip != "biased")
        far = far.abs() if slip == "sides" else far
        found[name] = far
    return found


def _above(far: dict[str, Tensor], u: float) -> dict[str, list[int]]:
    return {name: (z > u).nonzero().flatten().tolist() for name, z in far.items()}


@torch.no_grad()
def _level(bn: nn.BatchNorm2d, size: Tensor) -> None:
    """Make the scores 1, 2, 1, 2, ..., of which none lies a deviation above the mean."""
    assert bn.running_var is not None
    bn.weight.copy_((bn.running_var + bn.eps).sqrt() / size)
    bn.weight[1::2] *= 2


def _choices(net: _Branches, sizes: list[Tensor], u: float) -> dict[str, dict]:
    return {s: _above(_far(net, sizes, s), u) for s in ("", *SLIPS)}


def _telling(g: torch.Generator, slip: str) -> tuple[_Branches, float, dict[str, dict]]:
    """A network and a threshold at which this slip shows and looks like no other, with
    what every slip would choose; "" is none."""
    for _ in range(1000):
        net, low = _Branches(g), {"joint": 1.2, "sides": 0.5}.get(slip, 0.8)
        sizes, u = _sizes(net), low + float(torch.rand((), generator=g))
        if slip == "joint":  # once, a layer that loses nothing: half its scores 1, half 2
            _level(net.pairs()["side.1"][1], sizes[3])
        near = [_far(net, sizes, s) for s in ("", slip)]
        if slip in ("biased", "length"):  # between the two z of one channel
            two = [torch.cat(list(far.values())) for far in near]
            u = float(sum(t[(two[0] - u).abs().argmin()] for t in two)) / 2
        want, other = (_above(far, u) for far in near)
        if want == other or sum(map(len, want.values())) < 3:
            continue
        if min(float((z - u).abs().min()) for far in near for z in far.values()) < 1e-4:
            continue  # rounding must not decide
        sets = _choices(net, sizes, u)
        shown = [c for c in (*sets.values(), _above(near[0], 3.0)) if c != want]
        if all(shown.count(c) == 1 for c in shown):
            break
    return net, u, _choices(net, sizes, u)


@guarded
def clp_plain(fn: Callable[[nn.Module, float], dict]) -> None:
    """clp_plain(model, u): switch the outliers off in place, and say which."""
    name, g = "clp_plain", fresh()
    for slip in SLIPS:
        net, u, sets = _telling(g, slip)
        want, start, fixed = sets[""], copy.deepcopy(net), _above(_far(net, _sizes(net)), 3.0)
        try:
            out = call(name, fn, net, u)
        except RuntimeError as e:
            if "in-place" in str(e) and "grad" in str(e):
                raise CheckFailed(
                    f"{name}: parameters need gradients; write under torch.no_grad() (hint 4)"
                ) from None
            raise
        need(isinstance(out, dict), name, "gives back a dict, BatchNorm name -> positions.", 5)
        need(
            set(out) == set(want),
            name,
            f"names {', '.join(sorted(out)) or 'nothing'} where the BatchNorms are "
            f"{', '.join(want)}.",
            5,
        )
        for one in out.values():
            right = isinstance(one, Tensor) and one.dtype == torch.int64 and one.ndim == 1
            need(right, name, "gives positions as int64 tensors of one axis.", 5)
        got = {n: sorted(c.tolist()) for n, c in out.items()}
        need(got == want or got != fixed, name, "cuts at 3 deviations, whatever u is.", 3)
        for said, (symptom, hint) in SLIPS.items():
            need(got == want or got != sets[said], name, symptom, hint)
        need(
            got == want,
            name,
            f"switches off {sum(map(len, got.values()))} channels at u = {u:.2f}, "
            f"expected {sum(map(len, want.values()))}.",
            3,
        )
        _only_these(name, net, start, want)
    passed(name, "the right channels at any u, scale and shift zero, nothing else touched")


def _only_these(name: str, net: _Branches, start: _Branches, off: dict) -> None:
    """Scale and shift of these channels are zero, and all else is as it was."""
    for bn, which in off.items():
        now = net.get_submodule(bn)
        assert isinstance(now, nn.BatchNorm2d)
        need(
            not which or not bool((now.weight[which] != 0).any()),
            name,
            "names channels that are still on; write into the network that came in.",
            4,
        )
        need(
            not which or not bool((now.bias[which] != 0).any()),
            name,
            "leaves a constant behind: the shift must go as well as the scale.",
            4,
        )
        own = start.get_submodule(bn)
        assert isinstance(own, nn.BatchNorm2d)
        with torch.no_grad():
            own.weight[which], own.bias[which] = 0, 0
    same = {n: torch.equal(t, start.state_dict()[n]) for n, t in net.state_dict().items()}
    for part, symptom in {
        "weight": "changes weights of channels that stay on, or of a convolution.",
        "bias": "changes shifts of channels that stay on.",
        "": "changes the running statistics; scale and shift are enough.",
    }.items():
        need(all(ok for n, ok in same.items() if n.endswith(part)), name, symptom, 4)
    need(
        net.training and all(p.requires_grad for p in net.parameters()),
        name,
        "leaves the network in another mode than it came in.",
        4,
    )


class _Readers(nn.Module):
    """Four labels, read by four sensitive channels of 48; the rest is filling.

    Channel 0 reads label 0, channel 1 misreads its images as label 3 as soon as channel 0
    is gone, and channel 4 would do for both. Channels 2 and 3 read labels 1 and 2. It notes
    whether anybody has judged images in training mode.
    """

    awake: ClassVar[list[bool]] = []

    SIZES = (9.0, 7.0, 5.0, 4.0, 0.5)
    READS = (0, 0, 1, 2, 0)  # pixel that each looks at
    SAYS = (0, 3, 1, 2, 0)  # label that each speaks for

    def __init__(self, g: torch.Generator) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 48, 1, bias=False).double()
        self.norm = nn.BatchNorm2d(48).double()
        self.say = nn.Linear(48, 4).double()
        assert self.norm.running_var is not None
        with torch.no_grad():
            rest = torch.randn(48, 3, generator=g).double()
            rest *= (0.5 + 0.3 * torch.rand(48, 1, generator=g)) / rest.norm(dim=1, keepdim=True)
            self.conv.weight.copy_(rest[..., None, None])
            self.norm.running_var.fill_(1 - self.norm.eps)
            self.say.weight.zero_()
            self.say.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.1]))
            for k, (size, pixel, label) in enumerate(
                zip(self.SIZES, self.READS, self.SAYS, strict=True)
            ):
                self.conv.weight[k] = 0
                self.conv.weight[k, pixel] = size
                self.say.weight[label, k] = 1
        self.eval()

    def falling(self) -> list[float]:
        """Thresholds that switch off none, one, ... four of the sensitive channels."""
        s = self.conv.weight.detach().flatten(1).norm(dim=1)
        z = ((s - s.mean()) / s.std())[:4].tolist()
        return [z[0] + 0.3, *((a + b) / 2 for a, b in zip(z, z[1:], strict=False)), z[3] - 0.05]

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Tensor) and len(x) > 2:
            self.awake.append(self.training)
        return self.say(self.norm(self.conv(x)).flatten(1).relu())


def _asked() -> Iterator[tuple[float, list[int], int | None, int]]:
    """(max_drop, positions in us, position of the answer, what channel 0 reads is truly of
    label); see `_Readers`. If truly of label 3, the first cut makes two images right."""
    yield 1.0, [3, 1, 4, 0, 2], 4, 0
    yield 1 / 60, [0, 1, 2, 3, 4], 0, 0
    yield 2 / 60, [0, 1, 2, 3, 4], 2, 0
    yield 1 / 60, [1, 2, 3], None, 0
    yield 9 / 60, [0, 2, 3, 4], 3, 0
    yield 1 / 60, [0, 1, 2, 3, 4], 2, 3


@guarded
def careful_u(fn: Callable[..., float]) -> None:
    """careful_u(model, x, y, us, max_drop) -> the last u before accuracy falls."""
    name, g = "careful_u", fresh()
    net = _Readers(g)
    y = torch.tensor([0] * 2 + [1] * 4 + [2] * 8 + [3] * 46)
    x = torch.zeros(60, 3, 1, 1, dtype=torch.float64)
    for label in range(3):
        x[y == label, label] = 1
    y[-4:] = 0  # four images that are misread from the start
    falling, start = net.falling(), copy.deepcopy(net)
    for max_drop, which, best, truly in _asked():
        y[:2] = truly
        us = [falling[i] for i in which]
        want = math.inf if best is None else falling[best]
        net.train()
        net.awake.clear()
        out = number(name, call(name, fn, net, x, y, list(us), max_drop))
        need(
            not any(net.awake),
            name,
            "judges in training mode, where BatchNorm looks at the batch; see metrics.predict.",
            1,
        )
        same = [
            torch.equal(a, b)
            for a, b in zip(net.state_dict().values(), start.state_dict().values(), strict=True)
        ]
        need(all(same), name, "prunes the network that came in; try each u on a copy.", 1)
        need(net.training, name, "leaves the network in another mode than it came in.", 1)
        need(
            truly == 0 or out != falling[0],
            name,
            "counts answers that change; a cut may also make an image right. Compare with y.",
            3,
        )
        need(
            max_drop < 1 or out != falling[0],
            name,
            "goes from the smallest u up; begin with the largest.",
            2,
        )
        need(
            best != 0 or out != falling[2],
            name,
            "goes on behind the first u that costs too much; stop there.",
            2,
        )
        need(
            best != 0 or out != falling[1],
            name,
            "gives the first u that costs too much; the last one before it is asked for.",
            2,
        )
        need(
            best != 0 or out != math.inf,
            name,
            "finds nothing where the largest u costs nothing; count the drop from the "
            "accuracy before any cut.",
            3,
        )
        need(
            best != 2 or out != falling[0],
            name,
            "a drop of exactly max_drop is allowed, and rounding must not decide (1e-6 of slack).",
            3,
        )
        need(
            best != 3 or out != falling[4],
            name,
            "counts the drop from the step before; count it from the accuracy before any cut.",
            3,
        )
        need(
            best != 2 or out != falling[1],
            name,
            "cuts a copy that was cut before; each u needs a fresh one.",
            1,
        )
        need(
            best is not None or out == math.inf,
            name,
            "must be infinity where the largest u already costs too much.",
            3,
        )
        need(
            sorted(us, reverse=True) == us or out == want,
            name,
            "takes us in the order in which they come; begin with the largest.",
            2,
        )
        need(abs(out - want) < 1e-9 or out == want, name, f"is {out:.3g}, expected {want:.3g}.", 2)
    passed(name, "stops before the first loss, from the largest u down, a fresh copy each")
