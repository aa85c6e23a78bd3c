"""The exercise checks of lesson 08."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

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
    passed(name)


@guarded
def one_pass_trace(fn: Callable[[nn.Module, Tensor, torch.Generator], float]) -> None:
    """one_pass_trace(model, x, generator) -> |g|^2 / n at labels drawn from the model.

    A linear classifier of few images allows few labelings, so every draw must be one of
    a list, and the mean and the spread of the draws are known without any drawing.
    """
    name, g = "one_pass_trace", fresh()
    n, k, times = 3, 4, 400
    x = torch.rand(n, 1, 3, 4, generator=g)
    linear = nn.Linear(12, k)
    model = nn.Sequential(nn.Flatten(), linear).eval()
    with torch.no_grad():
        linear.weight.copy_(0.3 * torch.randn(k, 12, generator=g))
        uneven = torch.tensor([0.5, 0.25, 0.15, 0.1])[torch.randperm(k, generator=g)]
        # Opinions that all images share: labels of the batch would tell if they, too,
        # were shared, or drawn evenly.
        linear.bias.copy_(uneven.log() - linear.weight @ x.flatten(1).mean(0))
        logits = model(x).double()
    p = logits.softmax(1)
    one = torch.cat([x.flatten(1).double(), torch.ones(n, 1, dtype=torch.float64)], 1)
    score = (torch.eye(k, dtype=torch.float64) - p[:, None])[..., None]
    score = score * one[:, None, None]  # image, label, then the shape of (W, b)
    labels = torch.tensor(list(itertools.product(range(k), repeat=n)))
    drawn = score[torch.arange(n), labels]  # labeling, image, (W, b)
    chance = p[torch.arange(n), labels].prod(1)
    total = drawn.sum(1)
    value = total.square().sum((1, 2)) / n
    exact = ((one.square().sum(1)) * (1 - p.square().sum(1))).mean()
    spread = (chance * (value - exact).square()).sum().sqrt()

    def draw(seed: int, count: int) -> Tensor:
        source, out = torch.Generator().manual_seed(seed), []
        for _ in range(count):
            out.append(number(name, call(name, fn, model, x, source)))
        return torch.tensor(out, dtype=torch.float64)

    def among(values: Tensor, possible: Tensor) -> bool:
        gap = (values[:, None] - possible).abs()
        return bool((gap < 1e-6 + 1e-4 * possible).any(1).all())

    kept = {m: t.clone() for m, t in model.state_dict().items()}
    seed = int(torch.randint(10**9, (), generator=g))
    out = draw(seed, times)
    need(
        all(torch.equal(kept[m], t) for m, t in model.state_dict().items()),
        name,
        "changes the model.",
        3,
    )
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
        torch.equal(out[:50], draw(seed, 50)),
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
        not among(out, total[..., :-1].square().sum((1, 2)) / n),
        name,
        "leaves out the bias; all of model.parameters() count.",
        3,
    )
    need(
        not among(out, drawn.square().sum((1, 2, 3)) / n),
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
    pairs = score[:, labels].sum((0, 2)).square().sum((1, 2))
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
    need(among(out, value), name, "is not |g|^2 / n for any labels.", 3)
    need(
        bool((out.mean() - exact).abs() < 7 * spread / times**0.5),
        name,
        "has another mean than the trace: draw labels with the model's own chances.",
        1,
    )
    passed(name)


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
                f"{name}: must return a list of tensors with the shapes of w (hint 3)"
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
            3,
        )
        need(not close(got, r * want), name, "is not divided by r.", 3)
        need(
            not close(got, -want),
            name,
            "has the wrong sign: there minus here, uphill.",
            3,
        )
        need(
            not any(close(got, a @ c) for c in calls),
            name,
            "is a gradient; it is the difference of two that counts.",
            3,
        )
        need(close(got, want), name, "is not (there - here) |g| / r.", 3)
    passed(name)


@guarded
def fip_gradient(
    fn: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, float, float], Tensor],
) -> None:
    """fip_gradient(ce, hg, f, w, w0, n, eta_f, eta_r) -> gradient of L by a tensor."""
    name, g = "fip_gradient", fresh()
    ce, hg, w, w0 = torch.randn(4, 5, 6, generator=g)
    f = torch.rand(5, 6, generator=g) + 0.1
    n = int(torch.randint(3, 9, (), generator=g))
    eta_f, eta_r = (torch.rand(2, generator=g) / 2 + torch.tensor([0.4, 1.4])).tolist()
    out = call(name, fn, ce, hg, f, w, w0, n, eta_f, eta_r)
    shaped(name, out, (5, 6))
    smooth = eta_f / n * hg.double()
    gap = w.double() - w0.double()
    pull = eta_r * f.double() * gap

    def adds(trace: Tensor, back: Tensor, fit: Tensor = ce) -> bool:
        return close(out, fit.double() + trace + back)

    need(
        not adds(2 * smooth, pull, torch.zeros_like(ce)),
        name,
        "forgets the cross-entropy.",
        3,
    )
    need(
        not adds(smooth, pull),
        name,
        "lacks the factor 2 of the trace's gradient.",
        1,
    )
    need(
        not adds(2 * n * smooth, pull) and not adds(n * smooth, pull),
        name,
        "is not divided by n: the trace is |g|^2 / n.",
        1,
    )
    need(not adds(-2 * smooth, pull), name, "makes the trace larger.", 3)
    need(
        not adds(2 * smooth, -pull),
        name,
        "pushes away from the old weights: w - w0, not w0 - w.",
        2,
    )
    need(
        not any(adds(2 * smooth, c * pull * gap) for c in (0.5, 1)),
        name,
        "adds the pull itself, squared; its derivative is needed.",
        2,
    )
    need(
        not adds(2 * smooth, 2 * pull) and not adds(2 * smooth, pull / 2),
        name,
        "has a factor in the pull: the 1/2 in L and the 2 of the square cancel.",
        2,
    )
    need(
        not adds(2 * smooth, eta_r * gap),
        name,
        "pulls all weights alike; f says how strongly each.",
        2,
    )
    need(
        not adds(2 * smooth, f.double() * gap),
        name,
        "leaves out eta_r.",
        3,
    )
    need(
        not adds(2 * smooth / eta_f * eta_r, pull / eta_r * eta_f),
        name,
        "exchanges eta_f and eta_r.",
        3,
    )
    need(adds(2 * smooth, pull), name, "is not the sum of the three terms.", 3)
    passed(name)


@guarded
def change_gradient(fn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """change_gradient(u, vh, dw) -> gradient by each change of a singular value."""
    name, g = "change_gradient", fresh()
    # A square weight first: mistaken axes are no errors by themselves there.
    for outputs, inputs in ((6, 6), (5, 8), (7, 4)):
        start, to = torch.randn(2, outputs, inputs, generator=g, dtype=torch.float64)
        u, s, vh = torch.linalg.svd(start, full_matrices=False)
        change = (s / 2 * torch.rand(len(s), generator=g)).requires_grad_()
        weight = u @ torch.diag(s + change) @ vh
        loss = (weight.sin() * to).sum()
        dw, want = torch.autograd.grad(loss, (weight, change))
        out = call(name, fn, u.float(), vh.float(), dw.float())
        r = len(s)
        if isinstance(out, Tensor) and tuple(out.shape) == (r, r) != (r,):
            raise CheckFailed(f"{name}: is a matrix; the d_r need its diagonal alone (hint 2)")
        shaped(name, out, (r,))
        if outputs == inputs:
            need(
                not close(out, torch.einsum("or,oi,ir->r", u, dw, vh)),
                name,
                "takes columns of vh; v_r is a row of it.",
                3,
            )
            need(
                not close(out, torch.einsum("ro,oi,ri->r", u, dw, vh)),
                name,
                "takes rows of u; u_r is a column of it.",
                3,
            )
            need(
                not close(out, torch.einsum("or,oi,ri->o", u, dw, vh)),
                name,
                "sums over the singular values; sum over outputs and inputs.",
                2,
            )
            need(
                not close(out, torch.einsum("ro,oi,ir->r", u, dw, vh))
                and not close(out, torch.einsum("or,io,ri->r", u, dw, vh)),
                name,
                "has dw or both factors transposed.",
                3,
            )
        need(not close(out, -want), name, "has the wrong sign.", 2)
        need(
            not close(out, torch.linalg.svdvals(dw)),
            name,
            "is the singular values of dw; u and vh are those of the weight.",
            1,
        )
        need(
            not any(close(out, want / d) for d in (outputs, inputs, outputs * inputs)),
            name,
            "is a mean; the sum over outputs and inputs is needed.",
            2,
        )
        need(close(out, want), name, "is not u_r^T dw v_r.", 2)
    passed(name)
