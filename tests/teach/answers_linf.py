"""Right and wrong answers to the exercises of lesson 04, for test_check.py."""

import math

import torch
import torch.nn.functional as F


def dilution(n, r, a, p):
    if p == math.inf:
        return 1 + a
    return ((n - r + r * (1 + a) ** p) / n) ** (1 / p)


def dilution_by_maps(n, r, a, p):
    spike = torch.ones(n, dtype=torch.float64)
    spike[:r] += a
    flat = torch.ones(n, dtype=torch.float64)
    return (torch.linalg.norm(spike, p) / torch.linalg.norm(flat, p)).item()


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


def steer(lam, good, bad, works, up=2.0, down=2**1.5, row=5):
    good = torch.where(works, good + 1, 0)
    bad = torch.where(works, 0, bad + 1)
    lam = torch.where(good == row, lam * up, lam)
    lam = torch.where(bad == row, lam / down, lam)
    return lam, good % row, bad % row


def steer_by_loop(lam, good, bad, works):
    rows = []
    for value, g, b, w in zip(lam.tolist(), good.tolist(), bad.tolist(), works, strict=True):
        g, b = (g + 1, 0) if w else (0, b + 1)
        if g == 5:
            value, g = 2 * value, 0
        if b == 5:
            value, b = value * 2**-1.5, 0
        rows.append((value, g, b))
    return tuple(map(torch.tensor, zip(*rows, strict=True)))


def rows_unbroken(lam, good, bad, works):
    return steer(lam, good + 0 * bad, bad, works)[0], good + works.long(), bad + (~works).long()


def counting_on(lam, good, bad, works):
    up, down = torch.where(works, good + 1, 0), torch.where(works, 0, bad + 1)
    return steer(lam, good, bad, works)[0], up, down


def search(
    model,
    x,
    labels,
    steps,
    lam,
    generator,
    batch=4,
    *,
    squash=lambda f: 0.5 + 0.5 * f.tanh(),
    ahead=False,
    train=False,
    weigh=1,
    last=False,
    smallest=False,
    turned=False,
    rows=None,
    own=True,
):
    """The answer of the lesson, with a switch for everything that can go wrong."""
    generator = generator if own else None
    k, (c, h, w) = len(labels), x.shape[1:]
    free = [torch.randn(k, 1, d, h, w, generator=generator).to(x) for d in (1, c)]
    free = [f.requires_grad_() for f in free]
    adam = torch.optim.Adam(free, lr=0.2, betas=(0.5, 0.9))
    lam, least = torch.full((k,), lam).to(x), torch.full((k,), math.inf).to(x)
    good = bad = hits = torch.zeros(k, dtype=torch.long)
    best = [torch.zeros_like(f) for f in free]
    goal = (labels if rows is None else rows).repeat_interleave(batch)
    if train:
        model.train()
    for step in range(1, steps + 1):
        mask, pattern = (squash(f) for f in free)
        some = x[torch.randint(len(x), (batch,), generator=generator)]
        m = 1 - mask if turned else mask
        out = model(((1 - m) * some + m * pattern).flatten(0, 1))
        size = mask.flatten(1).sum(1)
        loss = F.cross_entropy(out, goal, reduction="sum") / batch + weigh * (lam * size).sum()
        if ahead:
            adam.zero_grad()
            loss.backward()
        else:
            for f, slope in zip(free, torch.autograd.grad(loss, free), strict=True):
                f.grad = slope
        adam.step()
        hits = hits + (out.argmax(1) == goal).view(k, batch).sum(1)
        if step % 10 == 0:
            works = hits >= 0.99 * 10 * batch
            smaller = size < least
            take = smaller if smallest else works & smaller
            better = torch.ones_like(works) if last else take | least.isinf()
            for b, now in zip(best, (mask, pattern), strict=True):
                b[better] = now.detach()[better]
            least = torch.where(take, size.detach(), least)
            lam, good, bad = steer(lam, good, bad, works)
            hits = torch.zeros_like(hits)
    return best[0][:, 0], best[1][:, 0]


def one_by_one(model, x, labels, steps, lam, generator):
    found = []
    for label in labels.tolist():
        m = torch.rand(1, *x.shape[2:], generator=generator).to(x).logit()
        p = torch.rand(x.shape[1:], generator=generator).to(x).logit()
        m, p, rate = m.requires_grad_(), p.requires_grad_(), lam
        adam, kept, least, good, bad, hits = torch.optim.Adam([m, p], 0.4), None, math.inf, 0, 0, 0
        for step in range(steps):
            some = x[torch.randperm(len(x), generator=generator)[:6]]
            out = model(some + m.sigmoid() * (p.sigmoid() - some))
            loss = -out.log_softmax(1)[:, label].mean() + rate * m.sigmoid().sum()
            m.grad, p.grad = torch.autograd.grad(loss, [m, p])
            now = [m.sigmoid().detach().clone(), p.sigmoid().detach().clone()]
            adam.step()
            hits += int((out.argmax(1) == label).sum())
            if step % 10 == 9:
                works, hits = hits >= 0.99 * 60, 0
                if kept is None or works and float(now[0].sum()) < least:
                    kept, least = now, float(now[0].sum()) if works else math.inf
                good, bad = (good + 1, 0) if works else (0, bad + 1)
                rate = rate * 2 if good == 5 else rate / 2**1.5 if bad == 5 else rate
                good, bad = good % 5, bad % 5
        found.append(kept)
    return tuple(torch.stack(t) for t in zip(*found, strict=True))


def switched(**wrong):
    return lambda *args: search(*args, **wrong)


RIGHT = {
    "dilution": [dilution, dilution_by_maps],
    "steer": [steer, steer_by_loop],
    "find_triggers": [search, one_by_one],
    "rise": [
        lambda c, t: (t.amax((2, 3)) - c.amax((2, 3))).mean(0),
        lambda c, t: t.flatten(2).max(2)[0].mean(0) - c.flatten(2).max(2)[0].mean(0),
    ],
    "last_share": [last_share, last_share_by_index],
}

WRONG = {
    "dilution": [
        (lambda n, r, a, p: 1 + a, "expected"),
        (lambda n, r, a, p: 1 + r / n * a, "expected"),
        (lambda n, r, a, p: dilution(n, r, a, p) ** (1 if p > 9 else p), "root"),
        (lambda n, r, a, p: 1 + r * a, "expected"),
    ],
    "steer": [
        (lambda *a: steer(*a, down=2), "the power"),
        (lambda *a: steer(*a, up=0.5, down=2**-1.5), "the wrong way"),
        (lambda *a: steer(*a, row=3), "before five"),
        (rows_unbroken, "break a row"),
        (counting_on, "behind five"),
    ],
    "find_triggers": [
        (switched(squash=lambda f: f), "leaves the range"),
        (switched(ahead=True), "gradients in the network"),
        (switched(train=True), "changes the network"),
        (switched(weigh=0), "obey lambda"),
        (switched(turned=True), "does not lead"),
        (switched(rows=torch.arange(2)), "does not lead"),
        (switched(last=True), "no longer worked"),
        (switched(own=False), "without the generator"),
        (lambda *a: search(*a)[0], "two tensors"),
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
        (
            lambda q, a, b, d: next((q[i - 1] for i in range(1, len(q)) if b - a[i] >= d), q[-1]),
            "exactly",
        ),
        (
            lambda q, a, b, d: next(
                (q[i - 1] for i in range(1, len(q)) if a[i - 1] - a[i] > d), q[-1]
            ),
            "share before",
        ),
        (
            lambda q, a, b, d: next((q[i - 1] for i in range(len(q)) if b - a[i] > d), q[0]),
            "take the last",
        ),
    ],
}
