"""Right and wrong answers to the exercises of lesson 04, for test_check.py."""

import math

import torch


def dilution(n, r, a, p):
    if p == math.inf:
        return 1 + a
    return ((n - r + r * (1 + a) ** p) / n) ** (1 / p)


def dilution_by_maps(n, r, a, p):
    spike = torch.ones(n, dtype=torch.float64)
    spike[:r] += a
    flat = torch.ones(n, dtype=torch.float64)
    return (torch.linalg.norm(spike, p) / torch.linalg.norm(flat, p)).item()


def index(norms, factor=1.4826):
    far = norms - norms.median()
    return far / (factor * far.abs().median())


def index_by_sorting(norms):
    middle = norms.sort().values[len(norms) // 2]
    unit = (norms - middle).abs().sort().values[len(norms) // 2] * 1.4826
    return (norms.double() - middle) / unit


def last_share(qs, accs, before, max_drop):
    best = qs[0]
    for q, acc in zip(qs, accs, strict=True):
        if before - acc > max_drop:
            break
        best = q
    return best


def last_share_by_index(qs, accs, before, max_drop):
    bad = [i for i, acc in enumerate(accs) if acc < before - max_drop]
    return qs[bad[0] - 1] if bad else qs[-1]


def one_too_far(qs, accs, before, max_drop):
    for q, acc in zip(qs, accs, strict=True):
        if before - acc > max_drop:
            return q
    return qs[-1]


def row_sums(maps, p):
    if p == math.inf:
        return torch.linalg.matrix_norm(maps, p)
    return torch.linalg.vector_norm(maps, p, dim=(2, 3))


RIGHT = {
    "map_norms": [
        lambda m, p: torch.linalg.vector_norm(m, p, dim=(2, 3)),
        lambda m, p: m.flatten(2).norm(p, dim=2),
    ],
    "dilution": [dilution, dilution_by_maps],
    "put_on": [
        lambda x, m, p: (1 - m) * x + m * p,
        lambda x, m, p: torch.lerp(x, p.expand_as(x), m.expand_as(x)),
    ],
    "anomaly_index": [index, index_by_sorting],
    "rise": [
        lambda c, t: (t.amax((2, 3)) - c.amax((2, 3))).mean(0),
        lambda c, t: t.flatten(2).max(2)[0].mean(0) - c.flatten(2).max(2)[0].mean(0),
    ],
    "last_share": [last_share, last_share_by_index],
}

WRONG = {
    "map_norms": [
        (row_sums, "matrix norm"),
        (lambda m, p: torch.linalg.vector_norm(m, p), "tensor|shape"),
        (lambda m, p: m.abs().pow(min(p, 9)).mean((2, 3)) ** (1 / min(p, 9)), "a mean"),
        (lambda m, p: m.amax((2, 3)), "wrong at p"),
    ],
    "dilution": [
        (lambda n, r, a, p: 1 + a, "expected"),
        (lambda n, r, a, p: 1 + r / n * a, "expected"),
        (lambda n, r, a, p: dilution(n, r, a, p) ** (1 if p > 9 else p), "root"),
        (lambda n, r, a, p: 1 + r * a, "expected"),
    ],
    "put_on": [
        (lambda x, m, p: (x + m * p).clamp(0, 1), "adds the pattern"),
        (lambda x, m, p: m * x + (1 - m) * p, "exchanged"),
        (lambda x, m, p: torch.where(m > 0.5, p, x), "is not"),
    ],
    "anomaly_index": [
        (lambda v: index(v).abs(), "no sign"),
        (lambda v: (v - v.median()) / v.std(), "standard deviation"),
        (lambda v: index(v, 1), "1.4826"),
        (lambda v: (v - v.mean()) / (1.4826 * (v - v.mean()).abs().median()), "is not"),
    ],
    "rise": [
        (lambda c, t: (t - c).amax((2, 3)).mean(0), "peak of the change"),
        (lambda c, t: (t - c).abs().amax((2, 3)).mean(0), "sign"),
        (lambda c, t: t.amax((0, 2, 3)) - c.amax((0, 2, 3)), "largest over images"),
        (lambda c, t: t.amax((2, 3)).mean(0), "sign|mean change"),
    ],
    "last_share": [
        (
            lambda q, a, b, d: max(s for s, x in zip(q, a, strict=True) if b - x <= d),
            "first loss",
        ),
        (one_too_far, "costs too much"),
        (lambda q, a, b, d: last_share(q, a, b, d * 0.999), "exactly"),
    ],
}
