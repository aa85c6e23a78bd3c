"""The exercise checks of lesson 06."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

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
        self.second, self.last = nn.Conv2d(8, 7, 3, padding=1), nn.BatchNorm2d(7)
        self.read = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.second(torch.relu(self.norm(self.first(x))))
        return self.read(torch.relu(self.last(inner + self.beside(x))).mean((2, 3)))


KEPT = ("norm.running", "last.running")
LAYERS = {"beside": 7, "first": 8, "second": 7}
STEP = 0.15


def _block(g: torch.Generator) -> _Block:
    """A network with random weights and statistics, which has been trained for a while."""
    net = _Block().double()
    with torch.no_grad():
        for q in net.parameters():
            q.copy_(torch.randn(q.shape, generator=g, dtype=q.dtype))
        for bn in (net.norm, net.last):
            n = bn.num_features
            bn.running_mean = torch.randn(n, generator=g, dtype=torch.float64)
            bn.running_var = 0.5 + torch.rand(n, generator=g, dtype=torch.float64)
            bn.num_batches_tracked = torch.tensor(7)
    return net.eval()


def _images(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pixels and a random start near them."""
    x = 0.1 + 0.8 * torch.rand(n, 3, 6, 6, generator=g, dtype=torch.float64)
    up = torch.randint(2, x.shape, generator=g)
    return x, (x + 0.1 * (2 * up - 1)).clamp(0, 1)


def _untouched(name: str, net: _Block, before: dict[str, Tensor], hint: int) -> None:
    same = all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    need(same and not net.training, name, "changes the network, which is only asked.", hint)
    need(
        all(q.grad is None for q in net.parameters()),
        name,
        "leaves gradients in the network; ask for those of the images alone.",
        hint,
    )


def _kept(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def _one_by_one(net: _Block, layer: str, x: Tensor, x0: Tensor, step: float = STEP) -> Tensor:
    """The push of each map of a layer: (maps, n, c, h, w)."""
    return torch.stack([fmp_plain_push(net, x, x0, layer, i, step) for i in range(LAYERS[layer])])


@guarded
def push_layer(fn: Callable[..., Tensor]) -> None:
    """push_layer(model, name, x, x0, epsilon) -> every map's push: (maps, n, c, h, w)."""
    name, g = "push_layer", fresh()
    net = _block(g)
    before = _kept(net)
    x, x0 = _images(5, g)
    for layer, maps in LAYERS.items():
        out = call(name, fn, net, layer, x, x0, STEP)
        shaped(name, out, (maps, *x.shape), 3)
        _untouched(name, net, before, 1)
        out = out.detach()
        need(
            not any(close(out, stay.expand_as(out), 1e-6) for stay in (x, x0)),
            name,
            "takes no step, or its gradient was taken at x, where it is zero.",
            2,
        )
        need(
            0 <= float(out.min()) and float(out.max()) <= 1,
            name,
            "leaves [0, 1]: a pushed picture is a picture again.",
            2,
        )
        want = _one_by_one(net, layer, x, x0)
        way = (_one_by_one(net, layer, x, x0, 1e-6) - x0).sign()
        for symptom, other in {
            "adds the step to x; the push goes on from x0.": (x + STEP * way).clamp(0, 1),
            "steps the other way; J is to grow.": (x0 - STEP * way).clamp(0, 1),
        }.items():
            need(not close(out, other, 1e-6), name, symptom, 2)
        need(
            not close(out, out[:1].expand_as(out), 1e-6),
            name,
            "pushes all maps of a layer along one direction; each has its own.",
            1,
        )
        inside = (out - x0)[(out > 0.001) & (out < 0.999)].abs()
        need(
            bool(((inside - STEP).abs().minimum(inside) < 1e-6).all()),
            name,
            "does not step by epsilon: of the gradient only the sign counts.",
            2,
        )
        alike = float(((out - want).abs() < 1e-6).double().mean())
        need(alike > 0.999, name, "ends elsewhere than maps pushed one by one.", 3)
    passed(name, "the push of every map as if it were pushed alone, network untouched")


def _scored(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy and mean cross-entropy of each map: (m, n, k), (n,) -> ((m,), (m,))."""
    each = -logits.log_softmax(2)[:, torch.arange(len(y)), y]
    return (logits.argmax(2) == y).double().mean(1), each.mean(1)


def _name_the_slip(
    net: _Block, x: Tensor, y: Tensor, x0: Tensor, got: dict[str, tuple[Tensor, Tensor]]
) -> None:
    """Say what gave these scores instead of those of maps pushed one by one."""
    name, n = "fmp_maps", len(y)

    def answers(start: Tensor, end: Tensor) -> dict[str, Tensor]:
        pushed = {k: _one_by_one(net, k, start, end) for k in got}
        with torch.no_grad():
            return {k: net(v.flatten(0, 1)).view(len(v), n, -1) for k, v in pushed.items()}

    def gave(part: int, told: dict[str, Tensor]) -> bool:
        return all(close(v[part], told[k].expand_as(v[part]), 1e-6) for k, v in got.items())

    logits = answers(x, x0)
    acc, loss = ({k: _scored(v, y)[i] for k, v in logits.items()} for i in (0, 1))
    turned = {k: v.reshape(n, len(v), -1).transpose(0, 1) for k, v in logits.items()}
    with torch.no_grad():
        still = [_scored(net(z)[None], y)[1] for z in (x, x0)]
    slips = (
        (
            gave(0, loss) and gave(1, acc),
            "returns the two scores in the wrong order: accuracy comes first.",
            2,
        ),
        (
            any(gave(1, dict.fromkeys(got, one)) for one in still),
            "scores images that were not pushed, or pushed by nothing.",
            1,
        ),
        (
            gave(1, {k: _scored(v, y)[1] for k, v in answers(x0, x).items()}),
            "gives push_layer x and x0 the other way round; the push begins at x0.",
            1,
        ),
        (
            gave(1, {k: _scored(v, y)[1] for k, v in turned.items()}),
            "brings the answers back in another order than (maps, images).",
            1,
        ),
        (
            gave(1, {k: _scored(v.softmax(2), y)[1] for k, v in logits.items()}),
            "takes the softmax twice: cross_entropy wants logits and has one inside.",
            2,
        ),
        (
            gave(1, {k: n * v for k, v in loss.items()}),
            "sums the cross-entropy over images; take the mean.",
            2,
        ),
        (
            gave(0, {k: 1 - v for k, v in acc.items()}),
            "stores the share of errors; the score is the accuracy.",
            2,
        ),
    )
    for made, symptom, hint in slips:
        need(not made, name, symptom, hint)
    if not gave(1, loss):
        raise CheckFailed(
            f"{name}: has other cross-entropies than maps pushed one by one, from x0 and by "
            "epsilon, or the answers were brought back in another order than (maps, images) "
            "(hints 1 and 2)"
        )
    raise CheckFailed(f"{name}: has other accuracies than maps pushed one by one (hint 2)")


@guarded
def fmp_maps(fn: Callable[..., tuple]) -> None:
    """fmp_maps(model, x, y, x0, epsilon, p, least) -> chosen maps and their scores."""
    name, g = "fmp_maps", fresh()
    net = _block(g)
    before = _kept(net)
    x, x0 = _images(9, g)
    with torch.no_grad():
        y = net(x).argmax(1)
        y[:3] = (y[:3] + torch.randint(1, 4, (3,), generator=g)) % 4  # these are wrong
    out = call(name, fn, net, x, y, x0, STEP, 3, 1)
    if not (isinstance(out, (tuple, list)) and len(out) == 2):
        raise CheckFailed(f"{name}: gives back two dicts, chosen and scores (hint 3)")
    chosen, scores = out
    for one in (chosen, scores):
        need(
            isinstance(one, dict) and set(one) == set(LAYERS),
            name,
            "must have one entry for each convolution, under its name.",
            3,
        )
    _untouched(name, net, before, 3)

    want = {n: fmp_plain_scores(net, x, y, x0, n, STEP) for n in LAYERS}
    got = {}
    for n, c in LAYERS.items():
        if not (isinstance(scores[n], (tuple, list)) and len(scores[n]) == 2):
            raise CheckFailed(f"{name}: scores hold (acc, loss) of each layer (hint 2)")
        for part in scores[n]:
            shaped(name, part, (c,), hint=2)
        got[n] = tuple(part.detach().double() for part in scores[n])
    if not all(
        close(acc, want[n].acc, 1e-6) and close(loss, want[n].loss, 1e-6)
        for n, (acc, loss) in got.items()
    ):
        _name_the_slip(net, x, y, x0, got)
    best = fmp_select({n: FmpResponse(*want[n]) for n in LAYERS}, 3, least=1)
    for n, c in LAYERS.items():
        mine = chosen[n].tolist() if isinstance(chosen[n], Tensor) else []
        asked = best[n].tolist()
        need(
            len(set(mine)) == len(mine) == len(asked)
            and all(isinstance(i, int) and 0 <= i < c for i in mine)
            # Maps that push alike score alike, and either may go.
            and all(
                close(part[mine].sort().values, part[asked].sort().values, 1e-6)
                for part in want[n][:2]
            ),
            name,
            f"chooses other maps of {n} than the scores say.",
            3,
        )
    for least in (1, 3):
        few = fn(net, x, y, x0, STEP, 64, least)[0]
        need(
            all(len(few[n]) == least for n in LAYERS),
            name,
            f"does not hand on p or least: at p = 64, least = {least} each layer loses {least}.",
            3,
        )
    passed(name, "the scores and choices of maps pushed one by one, network untouched")


def _averaged(
    net: _Block, batches: list[Tensor], momentum: float | None = None, reset: bool = True
) -> _Block:
    """A copy whose statistics are averaged over the batches in training mode."""
    net = deepcopy(net).train()
    for bn in (net.norm, net.last):
        bn.momentum = momentum
        if reset:
            bn.reset_running_stats()
    with torch.no_grad():
        for x in batches:
            net(x)
    return net.eval()


@guarded
def look_again(fn: Callable[..., nn.Module]) -> None:
    """look_again(model, batches) -> a copy with statistics averaged anew."""
    name, g = "look_again", fresh()
    net = _block(g)
    before = _kept(net)
    batches = [s * _images(n, g)[0] for n, s in ((7, 1.0), (7, 0.3), (4, 0.6))]
    out = call(name, fn, net, batches)
    need(isinstance(out, nn.Module), name, "must return the copy, a network.", 1)
    same = all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    need(
        out is not net and same and not net.training,
        name,
        "changes the original; only a copy may look again.",
        1,
    )
    need(
        all(torch.equal(v, before[k]) for k, v in out.named_parameters()),
        name,
        "moves weights; only means and variances may change.",
        1,
    )
    need(
        not any(m.training for m in out.modules()),
        name,
        "comes back in training mode, where each batch would be normalized by itself.",
        1,
    )

    def is_that(other: nn.Module) -> bool:
        told = dict(other.named_buffers())
        return all(close(v, told[k], 1e-9) for k, v in out.named_buffers() if k.startswith(KEPT))

    need(
        not is_that(net),
        name,
        "has the old statistics: BatchNorm renews them in training mode only.",
        1,
    )
    need(
        not is_that(_averaged(net, [])),
        name,
        "has averaged nothing since the reset: BatchNorm does so in training mode only.",
        1,
    )
    for momentum in (0.1, None):
        need(
            not is_that(_averaged(net, batches, momentum, reset=False)),
            name,
            "still remembers the old statistics; reset them first.",
            2,
        )
    need(
        not is_that(_averaged(net, batches, 0.1)),
        name,
        "does not average: with a momentum the reset values still count.",
        3,
    )
    need(
        not is_that(_averaged(net, batches, 1.0)) and not is_that(_averaged(net, batches[-1:])),
        name,
        "remembers its last batch only; average over all of them.",
        3,
    )
    need(
        not is_that(_averaged(net, [torch.cat(batches)])),
        name,
        "joins the batches to one; each is normalized by itself, then averaged.",
        3,
    )
    need(
        is_that(_averaged(net, batches)),
        name,
        "has other statistics than the plain average over the batches.",
        3,
    )
    passed(name, "statistics averaged anew in a copy, not one weight moved")
