"""Right and wrong answers to the exercises of lesson 06, for test_check.py."""

import torch
import torch.nn.functional as F


def start_by_ints(x, start, generator):
    sign = 2 * torch.randint(2, x.shape, generator=generator) - 1
    return (x + start * sign).clamp(0, 1)


def start_by_coins(x, start, generator):
    up = torch.rand(x.shape, generator=generator) < 0.5
    return torch.where(up, x + start, x - start).clip(0, 1)


def pulls_by_index(f0, f):
    n, c, h, w = f0.shape
    out = f0.new_zeros(c, n, c, h, w)
    i = torch.arange(c)
    out[i, :, i] = (2 * (f0 - f) / (n * h * w)).transpose(0, 1)
    return out


def pulls_by_mask(f0, f):
    own = torch.eye(f0.shape[1])[:, None, :, None, None]
    return own * 2 * (f0 - f) / f0[:, 0].numel()


def harm_by_loop(logits, y):
    acc = torch.stack([(row.argmax(1) == y).float().mean() for row in logits])
    return acc, torch.stack([F.cross_entropy(row, y) for row in logits])


def harm_at_once(logits, y):
    each = F.cross_entropy(logits.movedim(2, 1), y.expand(logits.shape[:2]), reduction="none")
    return (logits.argmax(-1) == y).double().mean(1), each.mean(1)


def worst_by_two_sorts(acc, loss, p, least):
    order = loss.argsort(descending=True)
    order = order[acc[order].argsort(stable=True)]
    return order[: max(least, int(len(acc) // p))]


def worst_by_python(acc, loss, p, least):
    pairs = sorted(zip(acc.tolist(), (-loss).tolist(), range(len(acc)), strict=True))
    m = max(least, int(len(acc) / p))
    return torch.tensor([i for *_, i in pairs[:m]], dtype=torch.int64)


RIGHT = {
    "random_start": [start_by_ints, start_by_coins],
    "departure": [
        lambda f0, f, i: (f0[:, i] - f[:, i]).square().mean(),
        lambda f0, f, i: F.mse_loss(f0.select(1, i), f.select(1, i)),
    ],
    "push": [
        lambda x0, g, e: (x0 + e * g.sign()).clamp(0, 1),
        lambda x0, g, e: (
            torch.where(g > 0, x0 + e, torch.where(g < 0, x0 - e, x0))
            .maximum(torch.zeros(()))
            .minimum(torch.ones(()))
        ),
    ],
    "pulls": [pulls_by_index, pulls_by_mask],
    "harm": [harm_by_loop, harm_at_once],
    "worst_maps": [worst_by_two_sorts, worst_by_python],
}


def one_sign_an_image(x, start, generator):
    sign = 2 * torch.randint(2, (len(x), 1, 1, 1), generator=generator) - 1
    return (x + start * sign).clamp(0, 1)


def own_dice(x, start, generator):
    sign = 2 * torch.randint(2, x.shape) - 1
    return (x + start * sign).clamp(0, 1)


def within_a_cube(x, start, generator):
    return (x + start * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)


def worst_rounded_up(acc, loss, p, least):
    return worst_by_two_sorts(acc, loss, 1, least)[: max(least, -int(-len(acc) // p))]


def worst_by_accuracy_alone(acc, loss, p, least):
    return acc.argsort(stable=True)[: max(least, int(len(acc) // p))]


WRONG = {
    "random_start": [
        (within_a_cube, "exactly start"),
        (one_sign_an_image, "sign"),
        (lambda x, s, g: (x + s).clamp(0, 1), "same way"),
        (own_dice, "generator"),
        (
            lambda x, s, g: x + s * (2 * torch.randint(2, x.shape, generator=g) - 1),
            r"leaves \[0, 1\]",
        ),
    ],
    "departure": [
        (lambda f0, f, i: (f0 - f).square().mean(), "all maps"),
        (lambda f0, f, i: (f0[:, i] - f[:, i]).square().sum(), "takes the mean"),
        (lambda f0, f, i: (f0[i % len(f)] - f[i % len(f)]).square().mean(), "image i"),
        (lambda f0, f, i: (f0[:, i] - f[:, i]).abs().mean(), "mean squared"),
        (
            lambda f0, f, i: (f0.detach()[:, i] - f[:, i]).square().mean(),
            "lost its gradient",
        ),
    ],
    "push": [
        (lambda x0, g, e: (x0 - e * g.sign()).clamp(0, 1), "steps down"),
        (lambda x0, g, e: (x0 + e * g).clamp(0, 1), "only its sign"),
        (lambda x0, g, e: x0 + e * g.sign(), r"leaves \[0, 1\]"),
        (lambda x0, g, e: x0 + (e * g.sign()).clamp(0, 1), "is not x0 plus"),
    ],
    "pulls": [
        (lambda f0, f: 2 * (f0 - f) / f0[:, 0].numel(), "shape"),
        (lambda f0, f: pulls_by_index(f0, f) / 2, "factor 2"),
        (lambda f0, f: pulls_by_index(f0, f) * f0[:, 0].numel(), "mean"),
        (lambda f0, f: pulls_by_index(f, f0), "wrong sign"),
        (
            lambda f0, f: (2 * (f0 - f) / f0[:, 0].numel()).repeat(f0.shape[1], 1, 1, 1, 1),
            "other maps",
        ),
    ],
    "harm": [
        (lambda z, y: (1 - harm_at_once(z, y)[0], harm_at_once(z, y)[1]), "errors"),
        (lambda z, y: harm_at_once(z, y)[0], "two tensors"),
        (lambda z, y: (harm_at_once(z, y)[0], harm_at_once(z, y)[1] * len(y)), "sums"),
        (lambda z, y: ((z.argmax(2) == y).float().mean(0),) * 2, "shape"),
        (lambda z, y: (harm_at_once(z, y)[0],) * 2, "wrong cross-entropy"),
    ],
    "worst_maps": [
        (worst_rounded_up, "expected max"),
        (worst_by_accuracy_alone, "first of equal|ties the wrong way"),
        (lambda a, b, p, k: worst_by_two_sorts(-a, -b, p, k), "highest accuracy"),
        (lambda a, b, p, k: worst_by_two_sorts(a, -b, p, k), "ties the wrong way"),
        (lambda a, b, p, k: worst_by_two_sorts(a, b, p, 0), "expected max"),
        (lambda a, b, p, k: worst_by_two_sorts(-b, a, p, k), "other maps"),
    ],
}
