"""Right and wrong answers to the exercises of lesson 08b, for test_check.py."""

import torch


def signs(shape, generator):
    return 2.0 * torch.randint(2, shape, generator=generator) - 1


def trace_draws(product, p, draws, generator):
    v = signs((draws, p), generator)
    return (v * product(v)).sum(1)


def trace_draws_one_by_one(product, p, draws, generator):
    out = []
    for _ in range(draws):
        v = torch.rand(p, generator=generator).sub(0.5).sign()
        out.append(v @ product(v))
    return torch.stack(out)


def normal_draws(product, p, draws, generator):
    v = torch.randn(draws, p, generator=generator)
    return (v * product(v)).sum(1)


def zero_one_draws(product, p, draws, generator):
    v = torch.randint(2, (draws, p), generator=generator).float()
    return (v * product(v)).sum(1)


def same_draw(product, p, draws, generator):
    v = signs((1, p), generator).expand(draws, -1)
    return (v * product(v)).sum(1)


def one_sign_a_draw(product, p, draws, generator):
    v = signs((draws, 1), generator).expand(-1, p)
    return (v * product(v)).sum(1)


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


def filter_direction(w, d):
    rows = (-1, *[1] * (w.dim() - 1))
    wn, dn = (t.flatten(1).norm(dim=1).view(rows) for t in (w, d))
    return d * wn / dn


def filter_direction_by_loop(w, d):
    return torch.stack([e / e.norm() * f.norm() for f, e in zip(w, d, strict=True)])


def filter_direction_by_input(w, d):
    dims = [i for i in range(w.dim()) if i != 1]
    wn, dn = (torch.linalg.vector_norm(t, dim=dims, keepdim=True) for t in (w, d))
    return d * wn / dn


def unit_filters(w, d):
    return d / d.flatten(1).norm(dim=1).view(-1, *[1] * (d.dim() - 1))


def in_place(w, d):
    d *= w.flatten(1).norm(dim=1).view(-1, *[1] * (d.dim() - 1))
    return d


def fake_variance(lengths, m):
    p = len(lengths)
    return sum(((p - k) * s) ** 2 for k, s in enumerate(lengths)) / m


def fake_variance_by_tensor(lengths, m):
    s = torch.tensor(lengths, dtype=torch.float64)
    return (torch.arange(len(s), 0, -1) * s).square().sum() / m


def counted(count, power=2, over=1):
    """The variance with other counts, power or divisor."""

    def answer(lengths, m):
        p = len(lengths)
        terms = (count(k, p) * s**power for k, s in enumerate(lengths))
        return sum(terms) / m**over

    return answer


def whole_signs(product, p, draws, generator):
    v = 2 * torch.randint(2, (draws, p), generator=generator) - 1
    return (v * product(v)).sum(1)


RIGHT: dict = {
    "trace_draws": [trace_draws, trace_draws_one_by_one],
    "top_eigenvalue": [top_eigenvalue, top_eigenvalue_by_quotient],
    "filter_direction": [filter_direction, filter_direction_by_loop],
    "fake_variance": [fake_variance, fake_variance_by_tensor],
}

WRONG: dict = {
    "trace_draws": [
        (normal_draws, "normal numbers"),
        (whole_signs, "whole numbers"),
        (zero_one_draws, "zeros and ones"),
        (same_draw, "always the same"),
        (one_sign_a_draw, "always the same"),
        (
            lambda f, p, n, g: trace_draws(f, p, n, torch.Generator().manual_seed(0)),
            "generator",
        ),
        (lambda f, p, n, g: trace_draws(f, p, n, g) / p, "is a mean"),
        (lambda f, p, n, g: f(signs((n, p), g)).sum(1), "adds up A v"),
        (lambda f, p, n, g: trace_draws(f, p, n, g).mean(), "shape"),
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
        (lambda f, v, n: v, "not a number"),
        (lambda f, v, n: v.norm().item(), "never calls"),
    ],
    "filter_direction": [
        (unit_filters, "length 1"),
        (lambda w, d: d * w.norm() / d.norm(), "whole tensor"),
        (filter_direction_by_input, "second axis"),
        (lambda w, d: filter_direction(d, w), "exchanges"),
        (lambda w, d: -filter_direction(w, d), "elsewhere"),
        (
            lambda w, d: (
                filter_direction(w, d) * d.flatten(1).norm(dim=1).view(-1, *[1] * (d.dim() - 1))
            ),
            "does not divide",
        ),
        (in_place, "in place"),
        (lambda w, d: filter_direction(w, d).flatten(1), "shape"),
        (lambda w, d: 2 * filter_direction(w, d), "other lengths"),
    ],
    "fake_variance": [
        (counted(lambda k, p: 1), "once"),
        (counted(lambda k, p: p - k), "square the counts"),
        (counted(lambda k, p: (p - k) ** 2, power=1), "square the lengths"),
        (counted(lambda k, p: (k + 1) ** 2), "last tensor most"),
        (counted(lambda k, p: (p - k - 1) ** 2), "P - k times"),
        (counted(lambda k, p: (p - k) ** 2, over=0), "number of probes"),
        (counted(lambda k, p: (p - k) ** 2, over=2), "twice"),
        (
            lambda lengths, m: counted(lambda k, p: p - k, 1, 0)(lengths, m) ** 2 / m,
            "adds before",
        ),
        (lambda lengths, m: 2 * fake_variance(lengths, m), "is not the sum"),
        (lambda lengths, m: torch.tensor(lengths), "not a number"),
    ],
}
