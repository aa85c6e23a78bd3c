"""Right and wrong answers to the exercises of lesson 08, for test_check.py."""

import torch
from torch.nn import functional as F


def score_length(x, p, y):
    mine = p.gather(1, y[:, None])[:, 0]
    return (x.square().sum(1) + 1) * (1 - 2 * mine + p.square().sum(1))


def score_length_by_outer_product(x, p, y):
    error = F.one_hot(y, p.shape[1]) - p
    one = torch.cat([x, torch.ones(len(x), 1)], 1)
    return (error[:, :, None] * one[:, None]).flatten(1).norm(dim=1) ** 2


def length(x, label):
    return (x.square().sum(1) + 1) * label


def p_y(p, y):
    return p.gather(1, y[:, None])[:, 0]


def one_pass_trace(model, x, generator):
    weights, logits = list(model.parameters()), model(x)
    y = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)
    total = logits.log_softmax(1).gather(1, y).sum()
    g = torch.autograd.grad(total, weights)
    return sum(t.square().sum() for t in g).item() / len(x)


def one_pass_trace_by_backward(model, x, generator):
    model.zero_grad()
    logits = model(x)
    chance = logits.detach().softmax(1).cumsum(1)
    u = torch.rand(len(x), 1, generator=generator)
    y = (u > chance).sum(1).clamp(max=logits.shape[1] - 1)
    F.cross_entropy(logits, y).backward()  # a mean: 1/n of g, with the sign changed
    g = torch.cat([p.grad.flatten() for p in model.parameters()])
    return len(x) * (g @ g)


def trace_with(draw=None, total=None, value=None, weights=None):
    """The estimate with one of its parts replaced."""
    draw = draw or (lambda p, g: torch.multinomial(p, 1, generator=g))
    total = total or (lambda logp, y: logp.gather(1, y).sum())
    value = value or (lambda g, n: (g @ g).item() / n)
    weights = weights or (lambda model: list(model.parameters()))

    def answer(model, x, generator):
        logits = model(x)
        y = draw(logits.detach().softmax(1), generator)
        t = total(logits.log_softmax(1), y)
        g = torch.autograd.grad(t, weights(model))
        return value(torch.cat([v.flatten() for v in g]), len(x))

    return answer


def trace_piling_up(model, x, generator):
    logits = model(x)
    y = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)
    logits.log_softmax(1).gather(1, y).sum().backward()
    return sum(p.grad.square().sum() for p in model.parameters()).item() / len(x)


def trace_image_by_image(model, x, generator):
    return sum(one_pass_trace(model, x[i : i + 1], generator) for i in range(len(x))) / 3


def product(gradient, w, r):
    here = gradient(w)
    norm = sum(g.square().sum() for g in here).sqrt()
    there = gradient([v + r / norm * g for v, g in zip(w, here, strict=True)])
    return [(b - a) * norm / r for a, b in zip(here, there, strict=True)]


def product_from_both_sides(gradient, w, r):
    g = gradient(w)
    norm = torch.cat([t.flatten() for t in g]).norm()
    up, down = (
        gradient([v + s * r * t / norm for v, t in zip(w, g, strict=True)]) for s in (1, -1)
    )
    return tuple((a - b) * norm / (2 * r) for a, b in zip(up, down, strict=True))


def product_with(step, back):
    """The product with another way to walk and another factor at the end."""

    def answer(gradient, w, r):
        g = gradient(w)
        norm = sum(t.square().sum() for t in g).sqrt()
        there = gradient([v + step(t, norm, r) for v, t in zip(w, g, strict=True)])
        return [(b - a) * back(a, norm, r) for a, b in zip(g, there, strict=True)]

    return answer


def product_in_place(gradient, w, r):
    g = gradient(w)
    norm = sum(t.square().sum() for t in g).sqrt()
    with torch.no_grad():
        for v, t in zip(w, g, strict=True):
            v += r / norm * t
    return [(b - a) * norm / r for a, b in zip(g, gradient(w), strict=True)]


def product_in_place_with_grad(gradient, w, r):
    for v, t in zip(w, gradient(w), strict=True):
        v += r * t
    return gradient(w)


def product_cut_off(gradient, w, r):
    g = gradient(w)
    norm = sum(t.square().sum() for t in g).sqrt()
    there = gradient([(v + r / norm * t).detach() for v, t in zip(w, g, strict=True)])
    return [(b - a) * norm / r for a, b in zip(g, there, strict=True)]


def product_there_alone(gradient, w, r):
    g = gradient(w)
    norm = sum(t.square().sum() for t in g).sqrt()
    return gradient([v + r / norm * t for v, t in zip(w, g, strict=True)])


def fip_gradient(ce, hg, f, w, w0, n, eta_f, eta_r):
    return ce + 2 * eta_f / n * hg + eta_r * f * (w - w0)


def fip_gradient_by_autograd(ce, hg, f, w, w0, n, eta_f, eta_r):
    at = w.clone().requires_grad_()
    # Linear in the weights where the gradient is given.
    loss = (at * (ce + 2 * eta_f * hg / n)).sum()
    loss = loss + eta_r / 2 * (f * (at - w0).square()).sum()
    return torch.autograd.grad(loss, at)[0]


def fip_gradient_in_place(ce, hg, f, w, w0, n, eta_f, eta_r):
    ce += 2 * eta_f / n * hg + eta_r * f * (w - w0)
    return ce


RIGHT: dict = {
    "score_length": [score_length, score_length_by_outer_product],
    "one_pass_trace": [one_pass_trace, one_pass_trace_by_backward],
    "product": [product, product_from_both_sides],
    "fip_gradient": [fip_gradient, fip_gradient_by_autograd],
    "change_gradient": [
        lambda u, vh, dw: (u * (dw @ vh.T)).sum(0),
        lambda u, vh, dw: (u.T @ dw @ vh.T).diagonal(),
    ],
}

WRONG: dict = {
    "score_length": [
        (
            lambda x, p, y: score_length(x, p, y) * (1 - 1 / (x**2).sum(1).add(1)),
            "bias",
        ),
        (
            lambda x, p, y: (x.norm(dim=1) + 1) / length(x, 1) * score_length(x, p, y),
            "length of x",
        ),
        (lambda *a: score_length(*a).sqrt(), "is the length"),
        (
            lambda x, p, y: length(x, 1 - p_y(p, y) + p.square().sum(1)),
            "factor 2",
        ),
        (lambda x, p, y: length(x, (1 - p_y(p, y)).square()), "label y alone"),
        (lambda x, p, y: length(x, 1 - p.square().sum(1)), "mean over all labels"),
        (
            lambda x, p, y: length(x, 1 - 2 * p.gather(0, y[:, None])[:, 0] + p.square().sum(1)),
            "along the images",
        ),
        (lambda *a: score_length(*a).mean(), "one number"),
        (lambda x, p, y: score_length(x, p, y)[:, None], "shape"),
        (lambda x, p, y: score_length(x, 2 * p, y), r"\|e_y - p\|"),
    ],
    "one_pass_trace": [
        (trace_with(total=lambda q, y: q.gather(1, y).mean()), "averages"),
        (
            trace_with(total=lambda q, y: q.gather(1, y).mean(), value=lambda g, n: g @ g),
            "averages",
        ),
        (trace_with(value=lambda g, n: (g @ g).item() / n**2), "more than once"),
        (trace_with(value=lambda g, n: g @ g), "not divided"),
        (trace_with(value=lambda g, n: g.norm()), "length of g"),
        (trace_with(value=lambda g, n: g.square().mean()), "for any labels"),
        (trace_with(value=lambda g, n: g), "not a number"),
        (trace_with(draw=lambda p, g: p.argmax(1, keepdim=True)), "same number"),
        (trace_with(draw=lambda p, g: torch.multinomial(p, 1)), "generator"),
        (
            trace_with(draw=lambda p, g: torch.randint(4, (3, 1), generator=g)),
            "own chances",
        ),
        (
            trace_with(draw=lambda p, g: torch.multinomial(p[0], 1, generator=g).expand(3, 1)),
            "whole batch",
        ),
        (trace_with(total=lambda q, y: q[:, y[:, 0]].sum()), "all pairs"),
        (trace_with(total=lambda q, y: q[:, y[:, 0]].mean()), "all pairs"),
        (trace_with(total=lambda q, y: q.exp().gather(1, y).sum()), "for any labels"),
        (trace_with(weights=lambda model: [model[1].weight]), "bias"),
        (trace_piling_up, "call before"),
        (trace_image_by_image, "by itself"),
    ],
    "product": [
        (product_with(lambda g, s, r: r / s * g, lambda g, s, r: 1 / r), "by the norm"),
        (product_with(lambda g, s, r: r * g, lambda g, s, r: s / r), r"r times \|g\|"),
        (product_with(lambda g, s, r: r * g, lambda g, s, r: 1 / r), r"r times \|g\|"),
        (
            product_with(lambda g, s, r: r / s**2 * g, lambda g, s, r: s**2 / r),
            r"r over \|g\|",
        ),
        (
            product_with(lambda g, s, r: r / g.norm() * g, lambda g, s, r: g.norm() / r),
            "each tensor by itself",
        ),
        (
            product_with(lambda g, s, r: r / g.norm() * g, lambda g, s, r: s / r),
            "each tensor by itself",
        ),
        (product_with(lambda g, s, r: 2 * r / s * g, lambda g, s, r: s / r), "not r ="),
        (product_with(lambda g, s, r: r / s * g, lambda g, s, r: s), "divided by r"),
        (product_with(lambda g, s, r: r / s * g, lambda g, s, r: -s / r), "sign"),
        (product_with(lambda g, s, r: -r / s * g, lambda g, s, r: s / r), "sign"),
        (
            product_with(lambda g, s, r: r / s * g, lambda g, s, r: s / r / 2),
            r"\(there - here\)",
        ),
        (lambda gradient, w, r: gradient(w), "once"),
        (lambda gradient, w, r: [v / r for v in w], "never"),
        (product_there_alone, "is a gradient"),
        (product_in_place, "in place"),
        (product_in_place_with_grad, "in place"),
        (product_cut_off, "autograd cannot follow"),
        (
            lambda *a: torch.cat([t.flatten() for t in product(*a)]),
            "list of tensors",
        ),
        (lambda *a: product(*a)[:1], "list of tensors"),
    ],
    "fip_gradient": [
        (lambda c, h, f, w, v, n, a, b: c + a / n * h + b * f * (w - v), "factor 2"),
        (lambda c, h, f, w, v, n, a, b: c + 2 * a * h + b * f * (w - v), "by n"),
        (
            lambda c, h, f, w, v, n, a, b: fip_gradient(c, -h, f, w, v, n, a, b),
            "trace larger",
        ),
        (
            lambda c, h, f, w, v, n, a, b: fip_gradient(c, h, f, v, w, n, a, b),
            "pushes away",
        ),
        (
            lambda c, h, f, w, v, n, a, b: c + 2 * a / n * h + b / 2 * f * (w - v) ** 2,
            "squared",
        ),
        (
            lambda c, h, f, w, v, n, a, b: fip_gradient(c, h, 2 * f, w, v, n, a, b),
            "factor in the pull",
        ),
        (
            lambda c, h, f, w, v, n, a, b: fip_gradient(c, h, 1, w, v, n, a, b),
            "alike",
        ),
        (
            lambda c, h, f, w, v, n, a, b: fip_gradient(c, h, f, w, v, n, a, 1),
            "leaves out eta_r",
        ),
        (
            lambda c, h, f, w, v, n, a, b: fip_gradient(c, h, f, w, v, n, b, a),
            "exchanges",
        ),
        (
            lambda c, h, f, w, v, n, a, b: fip_gradient(0, h, f, w, v, n, a, b),
            "cross-entropy",
        ),
        (
            lambda c, h, f, w, v, n, a, b: fip_gradient(c, h, f, w, 0, n, a, b),
            "three terms",
        ),
        (fip_gradient_in_place, "in place"),
        (lambda *a: fip_gradient(*a).sum(), "shape"),
    ],
    "change_gradient": [
        (lambda u, vh, dw: (u * (dw @ vh)).sum(0), "columns of vh"),
        (lambda u, vh, dw: (u.T * (dw @ vh.T)).sum(0), "rows of u"),
        (lambda u, vh, dw: (u * (dw @ vh.T)).sum(1), "over the singular values"),
        (lambda u, vh, dw: (u.T * (dw @ vh)).sum(0), "transposed"),
        (lambda u, vh, dw: (u * (dw.T @ vh.T)).sum(0), "transposed"),
        (lambda u, vh, dw: u.T @ dw @ vh.T, "its diagonal"),
        (lambda u, vh, dw: -(u * (dw @ vh.T)).sum(0), "sign"),
        (lambda u, vh, dw: (u * (dw @ vh.T)).mean(0), "is a mean"),
        (lambda u, vh, dw: torch.linalg.svdvals(dw), "those of the weight"),
        (lambda u, vh, dw: (u * (dw @ vh.T)).sum(0).relu(), "is not u_r"),
    ],
}
