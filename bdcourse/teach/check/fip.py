"""The exercise checks of lesson 08."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse.defenses import fip_along
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
def score_length(fn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """score_length(x, p, y) -> squared length of each image's score at label y."""
    name, g = "score_length", fresh()
    n, k = 9, 5  # more images than labels: a mistaken axis is no error by itself
    x = torch.randn(n, 4, generator=g)
    p = (1.5 * torch.randn(n, k, generator=g)).softmax(1)
    y = torch.randint(k, (n,), generator=g)
    out = call(name, fn, x, p, y)
    if isinstance(out, float) or (isinstance(out, Tensor) and out.dim() == 0):
        raise CheckFailed(f"{name}: is one number; keep one for each image (hint 1)")
    shaped(name, out, (n,))
    inputs = x.double().square().sum(1)
    q = p.double()
    mine, certain = q[torch.arange(n), y], q.square().sum(1)
    label = 1 - 2 * mine + certain
    want = (inputs + 1) * label
    need(
        not close(out, inputs * label),
        name,
        "leaves out the 1 of (x, 1): the bias has a score as well.",
        2,
    )
    need(
        not close(out, (inputs.sqrt() + 1) * label)
        and not close(out, (inputs.sqrt() + 1).square() * label),
        name,
        "adds the 1 to the length of x; add it to the squared length.",
        2,
    )
    need(not close(out, want.sqrt()), name, "is the length; square it.", 1)
    need(
        not close(out, (inputs + 1) * (1 - mine + certain)),
        name,
        "counts p_y once; the square of a difference has a factor 2 there.",
        3,
    )
    need(
        not close(out, (inputs + 1) * (1 - 2 * mine))
        and not close(out, (inputs + 1) * (1 - mine).square()),
        name,
        "looks at label y alone; the other labels have scores as well.",
        3,
    )
    need(
        not close(out, (inputs + 1) * (1 - certain)),
        name,
        "is the mean over all labels; the score at label y is asked for.",
        3,
    )
    need(
        not close(out, (inputs + 1) * (1 - 2 * q[y, 0] + certain)),
        name,
        "gathers p_y along the images; labels are the second axis of p.",
        3,
    )
    need(close(out, want), name, "is not |(x, 1)|^2 times |e_y - p|^2.", 1)
    each = [call(name, fn, x, p, torch.full((n,), j)) for j in range(k)]
    mean = sum(q[:, j] * e.double() for j, e in enumerate(each))
    need(
        close(mean, (inputs + 1) * (1 - certain)),
        name,
        "does not average to (|x|^2 + 1)(1 - |p|^2) over labels drawn from p.",
        3,
    )
    passed(name, "squared length at every label, and its mean over drawn labels")


@guarded
def one_pass_trace(fn: Callable[[nn.Module, Tensor, torch.Generator], float]) -> None:
    """one_pass_trace(model, x, generator) -> |g|^2 / n at labels drawn from the model.

    A linear classifier of few images allows few labelings, so every draw must be one of
    a list, and the mean and the spread of the draws are known without any drawing.
    """
    name, g = "one_pass_trace", fresh()
    n, k, some, times = 3, 4, 50, 400  # most slips show in the first draws
    x = torch.rand(n, 1, 3, 4, generator=g)
    linear = nn.Linear(12, k)
    norm = nn.BatchNorm1d(12, eps=1e-30)  # in eval mode it changes nothing
    model = nn.Sequential(nn.Flatten(), norm, linear).eval()
    with torch.no_grad():
        linear.weight.copy_(0.3 * torch.randn(k, 12, generator=g))
        uneven = torch.tensor([0.5, 0.25, 0.15, 0.1])[torch.randperm(k, generator=g)]
        # Opinions that all images share: labels of the batch would tell if they, too,
        # were shared, or drawn evenly.
        linear.bias.copy_(uneven.log() - linear.weight @ x.flatten(1).mean(0))
        logits = model(x).double()
    p = logits.softmax(1)
    labels = torch.tensor(list(itertools.product(range(k), repeat=n)))

    def scores(inputs: Tensor) -> Tensor:
        """At each image and label: slopes by W, b, and by BatchNorm's scales and shifts."""
        with torch.no_grad():
            q = linear(inputs).double().softmax(1)
            w = linear.weight.double()
        error = torch.eye(k, dtype=torch.float64) - q[:, None]
        inputs = inputs.double()[:, None]
        by_weight = (error[..., None] * inputs[:, :, None]).flatten(2)
        shift = error @ w
        return torch.cat([by_weight, error, shift * inputs, shift], 2)

    score = scores(x.flatten(1))
    sizes = (12 * k, k, 12, 12)
    drawn = score[torch.arange(n), labels]  # labeling, image, slope
    chance = p[torch.arange(n), labels].prod(1)
    total = drawn.sum(1)
    value = total.square().sum(1) / n
    each = torch.stack([t.square().sum(1) / n for t in total.split(sizes, 1)], 1)
    exact = (p * score.square().sum(2)).sum(1).mean()
    spread = (chance * (value - exact).square()).sum().sqrt()

    def draw(source: torch.Generator, count: int) -> Tensor:
        out = [number(name, call(name, fn, model, x, source)) for _ in range(count)]
        return torch.tensor(out, dtype=torch.float64)

    def among(values: Tensor, possible: Tensor) -> bool:
        gap = (values[:, None] - possible).abs()
        return bool((gap < 1e-6 + 1e-4 * possible).any(1).all())

    def values(inputs: Tensor) -> Tensor:
        return scores(inputs)[torch.arange(n), labels].sum(1).square().sum(1) / n

    kept = {m: t.clone() for m, t in model.state_dict().items()}
    seed = int(torch.randint(10**9, (), generator=g))
    source = torch.Generator().manual_seed(seed)
    out = draw(source, some)
    moved = [m for m, t in model.state_dict().items() if not torch.equal(kept[m], t)]
    batch = F.batch_norm(x.flatten(1), None, None, training=True, eps=1e-30)
    need(
        not any(m.startswith("1.") for m in moved) and not among(out, values(batch)),
        name,
        "puts the model into train mode, where BatchNorm normalizes by the batch and learns "
        "from it; leave the mode alone.",
        1,
    )
    need(not moved, name, "changes the model.", 3)
    pile = any(q.grad is not None for q in model.parameters())
    need(
        among(out, value) or not (pile and among(out[:1], value)),
        name,
        "adds to the gradients of the call before; use torch.autograd.grad.",
        3,
    )
    need(
        bool((out - out[0]).abs().max() > 1e-6),
        name,
        "always gives the same number: labels are drawn anew, never the most likely.",
        1,
    )
    need(
        torch.equal(out, draw(torch.Generator().manual_seed(seed), some)),
        name,
        "does not draw from the generator that it is given.",
        1,
    )
    need(
        not among(out, n * value),
        name,
        "is |g|^2, not divided by the number of images.",
        3,
    )
    need(
        not among(out, value / n) and not among(out, value / n**2),
        name,
        "averages the log-likelihoods, or divides by n more than once.",
        2,
    )
    need(
        not among(out, each[:, 0]) and not among(out, each[:, [0, 2]].sum(1)),
        name,
        "leaves out the bias; all of model.parameters() count.",
        3,
    )
    need(
        not among(out, each[:, :2].sum(1)),
        name,
        "leaves out BatchNorm's scales and shifts; all of model.parameters() count.",
        3,
    )
    need(
        not among(out, drawn.square().sum((1, 2)) / n),
        name,
        "takes the gradient of each image by itself; one of the sum is enough.",
        2,
    )
    alike = (labels == labels[:, :1]).all(1)
    need(
        not among(out, value[alike]),
        name,
        "draws one label for the whole batch; each image gets its own.",
        1,
    )
    pairs = score[:, labels].sum((0, 2)).square().sum(1)
    need(
        not any(among(out, pairs / d) for d in (1, n, n**2, n**3, n**4, n**5)),
        name,
        "takes all pairs of images and labels; gather each image's own label.",
        2,
    )
    need(
        not among(out, (n * value).sqrt()) and not among(out, (n * value).sqrt() / n),
        name,
        "is the length of g; its square is needed.",
        3,
    )
    out = torch.cat([out, draw(source, times - some)])
    moved = [m for m, t in model.state_dict().items() if not torch.equal(kept[m], t)]
    need(not moved, name, "changes the model.", 3)
    need(among(out, value), name, "is not |g|^2 / n for any labels.", 3)
    need(
        bool((out.mean() - exact).abs() < 7 * spread / times**0.5),
        name,
        "has another mean than the trace: draw labels with the model's own chances.",
        1,
    )
    need(
        not pile,
        name,
        "leaves its gradient in .grad; torch.autograd.grad hands it to you alone.",
        3,
    )
    training = copy.deepcopy(model).train()
    number(name, call(name, fn, training, x, torch.Generator().manual_seed(seed)))
    need(
        all(m.training for m in training.modules()),
        name,
        "puts a model that comes in train mode into eval mode; leave the mode alone.",
        1,
    )
    passed(name, "own labels for each image, all weights, the exact mean over 400 draws")


@guarded
def product(
    fn: Callable[
        [Callable[[Sequence[Tensor]], Sequence[Tensor]], Sequence[Tensor], float],
        Sequence[Tensor],
    ],
) -> None:
    """product(gradient, w, r) -> H g, by the gradients at two places r apart."""
    name, rand = "product", fresh()
    shapes, calls = ((3, 4), (5,)), []
    a = torch.randn(17, 17, generator=rand, dtype=torch.float64)
    a = a + a.T

    def flat(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([t.detach().flatten() for t in tensors])

    def gradient(w: Sequence[Tensor]) -> list[Tensor]:
        calls.append(flat(w))
        v = torch.cat([t.flatten() for t in w])
        return list(torch.autograd.grad(v @ a @ v / 2, list(w)))

    for r in (0.3, 0.01):
        calls.clear()
        w = [torch.randn(s, generator=rand, dtype=torch.float64) for s in shapes]
        w = [t.requires_grad_() for t in w]
        old = flat(w)
        try:
            out = call(name, fn, gradient, w, r)
        except RuntimeError as e:
            if "in-place" in str(e):
                raise CheckFailed(
                    f"{name}: changes w in place; build a new list (hint 1)"
                ) from None
            if "does not require grad" in str(e):
                raise CheckFailed(
                    f"{name}: moves to weights that autograd cannot follow; no "
                    "detach() and no no_grad() there (hint 1)"
                ) from None
            raise
        need(
            torch.equal(flat(w), old),
            name,
            "changes w in place; build a new list.",
            1,
        )
        need(
            len(calls) > 1,
            name,
            f"calls gradient {'once' if calls else 'never'}; a difference needs two.",
            1,
        )
        if not (
            isinstance(out, (list, tuple))
            and all(isinstance(t, Tensor) for t in out)
            and [tuple(t.shape) for t in out] == list(shapes)
        ):
            raise CheckFailed(
                f"{name}: must return a list of tensors with the shapes of w (hint 1)"
            )
        g, got = a @ old, flat(out)
        norm, want = g.norm(), a @ g
        each = torch.cat([t / t.norm() for t in g.split((12, 5))])
        moves = [c - old for c in calls]
        way = max(m.norm() for m in moves)
        need(
            not any(close(m, s * r * each) for m in moves for s in (1, -1)),
            name,
            "takes the norm of each tensor by itself; it runs over all together.",
            2,
        )
        need(
            not close(way, r * norm),
            name,
            "walks r times |g|; divide by |g|, so that the way is r long.",
            2,
        )
        need(
            not close(way, r / norm),
            name,
            "walks r over |g|: the norm is the root of the sum of the squares.",
            2,
        )
        need(
            close(way, torch.tensor(r)),
            name,
            f"walks {float(way):.3g}, not r = {r:g}.",
            2,
        )
        need(
            not close(got, want / norm),
            name,
            "is H g / |g|; multiply the difference by the norm.",
            2,
        )
        need(not close(got, r * want), name, "is not divided by r.", 2)
        need(
            not close(got, -want),
            name,
            "has the wrong sign: there minus here, uphill.",
            2,
        )
        need(
            not any(close(got, a @ c) for c in calls),
            name,
            "is a gradient; it is the difference of two that counts.",
            2,
        )
        need(close(got, want), name, "is not (there - here) |g| / r.", 2)
    passed(name, "H g at two distances, one norm over all tensors, weights untouched")


class _Small(nn.Module):
    """A smooth classifier with a BatchNorm, in float64, for a reader's loop."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.seen: list[Tensor] = []  # the weights of each pass, also by functional_call
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.read = nn.Linear(27, 4)
        with torch.no_grad():
            for w in self.parameters():
                w.copy_(0.4 * torch.randn(w.shape, generator=generator))
            self.norm.weight.copy_(1 + 0.2 * torch.rand(3, generator=generator))
            self.norm.get_buffer("running_mean").copy_(torch.randn(3, generator=generator))
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        w = [v.detach().flatten() for v in self.parameters()]
        self.seen.append(torch.cat(w).clone())
        return self.read(self.norm(self.conv(x)).tanh().flatten(1))


def _descended(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    fisher: Sequence[Tensor],
    eta_f: float,
    eta_r: float,
    steps: int,
    lr: float,
    batch: int,
    generator: torch.Generator,
    wrong: str = "",
    exact: bool = True,
) -> nn.Module:
    """FIP's loop, and one slip by name if asked for; without `exact` it takes the product
    by a difference, as the task says, which now and then leads elsewhere."""
    net = copy.deepcopy(model).train(wrong != "mode")
    w = list(net.parameters())
    received = [v.detach().clone() for v in w]
    speed = [torch.zeros_like(v) for v in w]
    for _ in range(steps):
        i = torch.randperm(len(x), generator=generator)[:batch]
        out = net(x[i])
        ce = torch.autograd.grad(F.cross_entropy(out, y[i]), w, retain_graph=True)
        opinion = out.detach()
        if wrong == "drawn in eval":
            opinion = net.eval()(x[i]).detach()
            net.train()
        drawn = torch.multinomial(opinion.softmax(1), 1, generator=generator)
        if wrong == "data":
            drawn = y[i][:, None]
        elif wrong == "likely":
            drawn = out.argmax(1, keepdim=True)

        def score(out: Tensor, drawn: Tensor = drawn) -> Tensor:
            return out.log_softmax(1).gather(1, drawn).sum()

        at = out
        if wrong == "eval":
            at = net.eval()(x[i])
            net.train()
        g = torch.autograd.grad(score(at), w, create_graph=True)
        if exact:
            square = torch.stack([t.square().sum() for t in g]).sum()
            push = torch.autograd.grad(square, w)
        else:
            here = [t.detach() for t in g]
            push = tuple(2 * h for h in fip_along(net, x[i], w, here, score))
        scale = {"half": 0.5, "climb": -1.0, "sum": float(batch), "no trace": 0.0}
        scale |= {"bare": batch / 2, "whole": batch / len(x)}
        fit = {"no fit": 0.0, "fit summed": float(batch)}.get(wrong, 1.0)
        scale = eta_f / batch * scale.get(wrong, 1.0)
        with torch.no_grad():
            for k, v in enumerate(w):
                back = (v - received[k]) * (1 if wrong == "alike" else fisher[k])
                back *= {"no pull": 0, "away": -1, "double": 2}.get(wrong, 1) * eta_r
                slope = back + scale * push[k]
                slope = slope + fit * ce[k]
                speed[k] = (0.0 if wrong == "momentum" else 0.9) * speed[k] + slope
                v.sub_(lr * speed[k])
    return net.eval()


SLIPS = {
    "no trace": ("goes down no trace at all.", 3),
    "climb": ("climbs the trace; the push is subtracted like every gradient.", 3),
    "half": ("lacks the factor 2: the gradient of |g|^2 is 2 H g.", 3),
    "sum": ("does not divide |g|^2 by the number of images.", 3),
    "bare": ("takes H g itself for the push; the gradient of |g|^2 / n has a factor.", 3),
    "whole": ("divides |g|^2 by all images; the estimate is of the batch.", 3),
    "eval": ("takes the trace with running statistics; every pass normalizes by the batch.", 3),
    "drawn in eval": (
        "draws the labels from the network in eval mode; take the logits of the first pass.",
        2,
    ),
    "fit summed": ("adds up the cross-entropy over the batch; it is a mean.", 2),
    "data": ("takes the labels of the data for the trace; draw them.", 2),
    "likely": ("takes the most likely labels for the trace; draw them.", 2),
    "mode": ("normalizes by the running statistics; train mode is asked for.", 1),
    "no pull": ("is not pulled back to the received weights; keep a copy of them.", 4),
    "away": ("is pushed away from the received weights.", 4),
    "double": ("has a factor in the pull: the 1/2 and the 2 of the square cancel.", 4),
    "alike": ("pulls all weights alike; fisher says how strongly each.", 4),
    "no fit": ("forgets the cross-entropy.", 1),
    "momentum": ("has no momentum: 0.9 of the speed before stays.", 5),
}


@guarded
def fip_plain(fn: Callable[..., nn.Module]) -> None:
    """fip_plain(model, x, y, fisher, eta_f, eta_r, steps, lr, batch, generator) -> net."""
    name, g = "fip_plain", fresh()
    model = _Small(g)
    x = torch.randn(30, 1, 5, 5, generator=g, dtype=torch.float64)
    y = torch.randint(4, (30,), generator=g)
    fisher = [torch.rand(w.shape, generator=g, dtype=torch.float64) for w in model.parameters()]
    seed = int(torch.randint(10**6, (), generator=g))
    how = (fisher, 0.15, 3.0, 6, 0.05, 8)
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def source() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def way(net: nn.Module) -> Tensor:
        pairs = zip(net.parameters(), model.parameters(), strict=True)
        return torch.cat([(a.detach() - b.detach()).flatten() for a, b in pairs])

    out = call(name, fn, model, x, y, *how, source())
    if not isinstance(out, nn.Module):
        raise CheckFailed(f"{name}: returns no network (hint 1)")
    same = all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    need(same, name, "changes the network that it is given; work on a copy.", 1)
    need(
        not any(m.training for m in model.modules()),
        name,
        "leaves the network that it is given in train mode; copy first, then train().",
        1,
    )
    need(not out.training, name, "gives the network back in train mode.", 1)
    mine = way(out)
    need(
        bool(mine.isfinite().all()),
        name,
        "leaves all bounds; are both gradients of the product taken at the same labels?",
        3,
    )
    one = call(name, fn, model, x, y, *how[:3], 1, *how[4:], source())
    first = torch.cat([v.detach().flatten() for v in model.parameters()])
    short = float(1e-3 * first.norm())
    walked = [float((at - first).norm()) for at in getattr(one, "seen", [])]
    walked = [m for m in walked if m > 1e-9]
    need(
        not walked or any(abs(m - short) < 0.05 * short for m in walked),
        name,
        f"walks {min(walked, default=0):.2g} for the product and not 0.001 times the length "
        f"of the weights, {short:.2g}.",
        3,
    )
    both = [_descended(model, x, y, *how, source(), exact=e) for e in (True, False)]
    want = min(both, key=lambda net: float((mine - way(net)).norm()))
    goal = way(want)
    near = 0.03 * goal.norm()
    if (mine - goal).norm() > near:
        torch.manual_seed(seed)
        found = [fn(model, x, y, *how, source()) for _ in range(2)]
        need(
            bool((way(found[0]) - way(found[1])).norm() < near),
            name,
            "draws at random without the generator.",
            2,
        )
        for slip, (symptom, hint) in SLIPS.items():
            wrong = way(_descended(model, x, y, *how, source(), wrong=slip))
            need(bool((mine - wrong).norm() > near), name, symptom, hint)
        need(
            bool(mine.norm() < 20 * goal.norm()),
            name,
            f"moves {float(mine.norm() / goal.norm()):.0f} times as far as it should; draw the "
            "labels once a step, and take both gradients of the product at these labels.",
            3,
        )
        raise CheckFailed(
            f"{name}: ends {float((mine - goal).norm() / goal.norm()):.0%} of the way from "
            "where it should; draw the batch first, then its labels (hint 2)"
        )
    norms = (net.get_submodule("norm") for net in (out, want))
    pairs = zip(*(norm.buffers() for norm in norms), strict=True)
    need(
        all(close(a, b, 1e-2) for a, b in pairs),
        name,
        "moves BatchNorm's statistics in the second pass, too; give it copies.",
        3,
    )
    passed(name, "three terms, drawn labels, momentum; the package's path in float64")


@guarded
def spectral_step(fn: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """spectral_step(w, dw, lr) -> the weight after one step along its singular values."""
    name, g = "spectral_step", fresh()
    for shape in ((5, 5), (4, 3, 2, 2), (7, 2, 3, 1)):
        w, dw = torch.randn(2, *shape, generator=g, dtype=torch.float64)
        u, s, vh = torch.linalg.svd(w.flatten(1), full_matrices=False)
        slope = ((u.T @ dw.flatten(1)) * vh).sum(1)
        dw = dw * slope[0].sign()  # at long steps the largest one falls below zero
        slope = slope * slope[0].sign()
        for lr in (0.01, 2 * float(s[0] / slope[0])):
            out = call(name, fn, w, dw, lr)
            shaped(name, out, shape, hint=3)

            def weight(values: Tensor, shape=shape, u=u, vh=vh) -> Tensor:
                return ((u * values) @ vh).view(shape)

            moved = s - lr * slope
            long = lr > 0.01
            want = weight(moved.relu())
            if close(out, want):
                continue
            need(
                not close(out, w - lr * dw),
                name,
                "is a step along the weights; only singular values may move.",
                1,
            )
            need(not close(out, w), name, "does not move.", 2)
            need(
                not (long and close(out, weight(moved))),
                name,
                "lets a singular value fall below zero; relu keeps it there.",
                3,
            )
            need(
                not (long and close(out, weight(moved.abs()))),
                name,
                "takes the absolute value; relu is asked for.",
                3,
            )
            need(
                not close(out, weight((s + lr * slope).relu())),
                name,
                "goes up; subtract lr times the gradient.",
                2,
            )
            need(
                not close(out, weight((s - lr * torch.linalg.svdvals(dw.flatten(1))).relu())),
                name,
                "takes the singular values of dw; its share along u_r and v_r counts.",
                2,
            )
            square = vh.shape[0] == vh.shape[1] == u.shape[0]
            need(
                not (
                    square
                    and close(out, weight((s - lr * ((u.T @ dw.flatten(1)) * vh.T).sum(1)).relu()))
                ),
                name,
                "takes columns of vh; v_r is a row of it.",
                2,
            )
            raise CheckFailed(f"{name}: is not U diag(relu(s - lr u_r^T dw v_r)) V^T (hint 2)")
    passed(name, "singular vectors kept, values moved, none below zero, shape kept")
