"""Right and wrong answers to the exercises of lesson 08b, for test_check.py."""

import copy

import torch
from torch.nn import functional as F

from bdcourse.analysis import landscape
from bdcourse.examples import Examples


def signs(shape, generator):
    return 2.0 * torch.randint(2, shape, generator=generator) - 1


def trace_draws(product, p, draws, generator):
    out = []
    for _ in range(draws):
        v = 2.0 * torch.randint(2, (p,), generator=generator) - 1
        out.append(v @ product(v))
    return torch.stack(out)


def trace_draws_by_rand(product, p, draws, generator):
    v = torch.rand(draws, p, generator=generator).sub(0.5).sign()
    return torch.tensor([(row * product(row)).sum().item() for row in v])


def trace_by(draw, value=lambda v, av: v @ av):
    """The estimate with other vectors, or with another use of the product."""

    def answer(product, p, draws, generator):
        rows = draw((draws, p), generator)
        return torch.stack([value(v, product(v)) for v in rows])

    return answer


def all_rows_at_once(product, p, draws, generator):
    v = signs((draws, p), generator)
    return (v * product(v)).sum(1)


def rescaled_around_the_bias(conv, norm, c):
    """The bias stays, and the mean is moved by it alone."""
    conv, norm = copy.deepcopy(conv), copy.deepcopy(norm)
    with torch.no_grad():
        conv.weight.mul_(c)
        norm.running_mean.mul_(c)
        if conv.bias is not None:
            norm.running_mean.add_((1 - c) * conv.bias)
        norm.running_var.mul_(c * c)
    return conv, norm


def top_eigenvalue(product, v, steps):
    for _ in range(steps):
        v = v / v.norm()
        v = product(v)
    v = v / v.norm()
    return (v @ product(v)).item()


def top_eigenvalue_by_quotient(product, v, steps):
    for _ in range(steps):
        before, v = v, product(v)
        value = (before @ v) / (before @ before)
        v = v / v.abs().max()
    return value


def never_normalized(product, v, steps):
    for _ in range(steps):
        v = product(v)
    return (v @ product(v)).item()


def quotient_of_the_huge(product, v, steps):
    for _ in range(steps):
        v = product(v)
    return ((v @ product(v)) / (v @ v)).item()


def length_of_product(product, v, steps):
    for _ in range(steps):
        v = product(v / v.norm())
    return v.norm().item()


def first_vector(product, v, steps):
    u = v / v.norm()
    for _ in range(steps):
        value = u @ product(u)
    return value.item()


def one_step(product, v, steps):
    v = product(v / v.norm())
    v = v / v.norm()
    return (v @ product(v)).item()


def sharpest(model, x, y, batch, steps, generator):
    model.eval()
    weights = list(model.parameters())

    def product(v):
        total = torch.zeros_like(v)
        for a, b in zip(x.split(batch), y.split(batch), strict=True):
            loss = F.cross_entropy(model(a), b, reduction="sum") / len(x)
            g = torch.autograd.grad(loss, weights, create_graph=True)
            slope = torch.cat([t.flatten() for t in g]) @ v
            total += torch.cat([t.flatten() for t in torch.autograd.grad(slope, weights)])
        return total

    size = sum(w.numel() for w in weights)
    start = torch.randn(size, generator=generator).to(weights[0])
    return top_eigenvalue(product, start, steps)


def sharpest_by_the_package(model, x, y, batch, steps, generator):
    size = sum(w.numel() for w in model.parameters())
    v = torch.randn(size, generator=generator, dtype=x.dtype)
    for _ in range(steps):
        v = v / v.norm()
        hv = landscape.hessian_product(model, Examples(x, y, ("a", "b", "c")), v, chunk=batch)
        value, v = v @ hv, hv
    return value.item()


def sharpest_with(
    mode=torch.nn.Module.eval,
    loss=lambda out, b, n, k: F.cross_entropy(out, b, reduction="sum") / n,
    batches=lambda x, y, batch: list(zip(x.split(batch), y.split(batch), strict=True)),
    weights=lambda model: list(model.parameters()),
    start=lambda size, g: torch.randn(size, generator=g),
    second=True,
    steps=lambda n: n,
    value=lambda v, hv: (v @ hv).item(),
):
    """The measurement with one of its parts replaced."""

    def answer(model, x, y, batch, n, generator):
        mode(model)
        w, pairs = weights(model), batches(x, y, batch)
        v = start(sum(t.numel() for t in w), generator).to(w[0])
        for _ in range(steps(n)):
            v, total = v / v.norm(), torch.zeros_like(v)
            for a, b in pairs:
                g = torch.autograd.grad(
                    loss(model(a), b, len(x), len(pairs)), w, create_graph=second
                )
                flat = torch.cat([t.flatten() for t in g])
                if second:
                    flat = torch.cat([t.flatten() for t in torch.autograd.grad(flat @ v, w)])
                total = total + flat
            out, v = value(v, total), total
        return out

    return answer


def sharpest_from_the_gradient(model, x, y, batch, steps, generator):
    loss = F.cross_entropy(model.eval()(x), y)
    g = torch.autograd.grad(loss, list(model.parameters()))
    return sum(t.square().sum() for t in g).item()


def sharpest_cut_off(model, x, y, batch, steps, generator):
    w = list(model.eval().parameters())
    g = torch.autograd.grad(F.cross_entropy(model(x), y), w)
    v = torch.cat([t.flatten() for t in g])
    torch.autograd.grad(v @ v, w)


def sharpest_piling_up(model, x, y, batch, steps, generator):
    F.cross_entropy(model.eval()(x), y).backward()
    return sharpest(model, x, y, batch, steps, generator)


def sharpest_of_a_moved_model(model, *rest):
    out = sharpest(model, *rest)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    return out


def rescaled(conv, norm, c):
    conv, norm = copy.deepcopy(conv), copy.deepcopy(norm)
    with torch.no_grad():
        conv.weight *= c
        if conv.bias is not None:
            conv.bias *= c
        norm.running_mean *= c
        norm.running_var *= c**2
    return conv, norm


def rescaled_by_state(conv, norm, c):
    outs = [copy.deepcopy(conv), copy.deepcopy(norm)]
    outs[0].load_state_dict({k: c * v for k, v in conv.state_dict().items()})
    factor = {"running_mean": c, "running_var": c * c}
    outs[1].load_state_dict({k: factor.get(k, 1) * v for k, v in norm.state_dict().items()})
    return outs


def rescaled_with(weight=True, mean=1.0, var=2.0, scale=0.0, shift=0.0, bias=True):
    """Powers of c: of the mean, the variance, the scale and the shift."""

    def answer(conv, norm, c):
        conv, norm = copy.deepcopy(conv), copy.deepcopy(norm)
        with torch.no_grad():
            if weight:
                conv.weight.mul_(c)
            if bias and conv.bias is not None:
                conv.bias.mul_(c)
            norm.running_mean.mul_(c**mean)
            norm.running_var.mul_(c**var)
            norm.weight.mul_(c**scale)
            norm.bias.mul_(c**shift)
        return conv, norm

    return answer


def rescaled_in_place(conv, norm, c):
    with torch.no_grad():
        conv.weight.mul_(c)
        norm.running_mean.mul_(c)
        norm.running_var.mul_(c**2)
    return conv, norm


MEANS = {"loss": lambda out, b, n, k: F.cross_entropy(out, b) / k}

RIGHT: dict = {
    "trace_draws": [trace_draws, trace_draws_by_rand],
    "top_eigenvalue": [top_eigenvalue, top_eigenvalue_by_quotient],
    "sharpest": [sharpest, sharpest_by_the_package],
    "rescaled": [rescaled, rescaled_by_state, rescaled_around_the_bias],
}

WRONG: dict = {
    "trace_draws": [
        (trace_by(lambda shape, g: torch.randn(shape, generator=g)), "normal numbers"),
        (
            trace_by(lambda shape, g: 2 * torch.randint(2, shape, generator=g) - 1),
            "whole numbers",
        ),
        (
            trace_by(lambda shape, g: torch.randint(2, shape, generator=g).float()),
            "zeros and ones",
        ),
        (
            trace_by(lambda shape, g: signs((1, shape[1]), g).expand(shape)),
            "always the same",
        ),
        (
            trace_by(lambda shape, g: signs((shape[0], 1), g).expand(shape)),
            "always the same",
        ),
        (all_rows_at_once, "one vector"),
        (
            lambda f, p, n, g: trace_draws(f, p, n, torch.Generator().manual_seed(0)),
            "generator",
        ),
        (trace_by(signs, lambda v, av: (v * av).mean()), "is a mean"),
        (trace_by(signs, lambda v, av: av.sum()), "adds up A v"),
        (lambda f, p, n, g: trace_draws(f, p, n, g).mean(), "shape"),
        (
            lambda f, p, n, g: trace_draws(f, p, n, g).cumsum(0) / torch.arange(1, n + 1),
            "running mean",
        ),
        (lambda f, p, n, g: trace_draws(f, p, n, torch.default_generator), "generator"),
        (lambda f, p, n, g: signs((n, p), g).sum(1), "never calls"),
    ],
    "top_eigenvalue": [
        (never_normalized, "not finite"),
        (quotient_of_the_huge, "not finite"),
        (lambda f, v, n: never_normalized(f, v, 4), "grows"),
        (length_of_product, "sign"),
        (first_vector, "first v"),
        (one_step, "times in 60 steps"),
        (lambda f, v, n: top_eigenvalue(f, v, 100), "calls product 101 times in 60"),
        (lambda f, v, n: v, "not a number"),
        (lambda f, v, n: v.norm().item(), "never calls"),
    ],
    "sharpest": [
        (sharpest_with(start=lambda size, g: torch.ones(size)), "drawn from the generator"),
        (sharpest_with(mode=torch.nn.Module.train), "normalizes by each batch"),
        (lambda m, *rest: (m.train()(rest[0]), sharpest(m, *rest))[1], "BatchNorm learn"),
        (sharpest_with(**MEANS), "short last batch"),
        (sharpest_with(loss=lambda out, b, n, k: F.cross_entropy(out, b)), "adds up means"),
        (
            sharpest_with(loss=lambda out, b, n, k: F.cross_entropy(out, b, reduction="sum")),
            "of a sum",
        ),
        (
            sharpest_with(
                batches=lambda x, y, n: [(x[:n], y[:n])],
                loss=lambda out, b, n, k: F.cross_entropy(out, b),
            ),
            "first batch only",
        ),
        (
            sharpest_with(weights=lambda m: [w for w in m.parameters() if w.dim() > 1]),
            "leaves out biases",
        ),
        (sharpest_with(second=False, steps=lambda n: 3), "only the gradient"),
        (sharpest_from_the_gradient, "only the gradient"),
        (sharpest_cut_off, "create_graph"),
        (sharpest_piling_up, "behind in .grad"),
        (sharpest_of_a_moved_model, "changes the weights"),
        (sharpest_with(value=lambda v, hv: -(v @ hv).item()), "lost the sign"),
        (sharpest_with(steps=lambda n: 2), "the top eigenvalue is"),
        (sharpest_with(steps=lambda n: 40), "no notice"),
        (sharpest_with(start=lambda size, g: torch.randn(size)), "from the generator"),
        (lambda *a: [sharpest(*a)], "not a number"),
    ],
    "rescaled": [
        (rescaled_with(mean=0.0, var=0.0), "statistics as they were"),
        (rescaled_with(var=1.0), "variance by c"),
        (rescaled_with(mean=2.0), "square of c"),
        (rescaled_with(var=0.0, scale=-1.0), "scale or shift"),
        (rescaled_with(mean=0.0, var=0.0, scale=-1.0, shift=-1.0), "scale or shift"),
        (rescaled_with(weight=False), "as they are"),
        (rescaled_with(bias=False), "forgets the bias"),
        (rescaled_with(mean=0.0), "other outputs"),
        (rescaled_in_place, "work on copies"),
        (lambda conv, norm, c: rescaled(conv, norm, c)[0], "two layers"),
        (lambda conv, norm, c: rescaled(conv, norm, c * c), "by c"),
    ],
}
