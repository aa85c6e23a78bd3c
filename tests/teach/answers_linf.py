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


def rise(clean, triggered, p=math.inf):
    before, after = (torch.linalg.vector_norm(t.flatten(2), p, dim=2) for t in (clean, triggered))
    return (after - before).mean(0)


def rise_by_powers(clean, triggered, p=math.inf):
    def norm(maps):
        size = maps.abs()
        return size.amax((2, 3)) if p == math.inf else size.pow(p).sum((2, 3)) ** (1 / p)

    return norm(triggered).mean(0) - norm(clean).mean(0)


def norm_of_the_change(clean, triggered, p):
    return torch.linalg.vector_norm((triggered - clean).flatten(2), p, dim=2).mean(0)


def over_images_too(clean, triggered, p):
    return triggered.abs().amax((0, 2, 3)) - clean.abs().amax((0, 2, 3))


def without_the_root(clean, triggered, p):
    if p == math.inf:
        return rise(clean, triggered)
    return (triggered.abs().pow(p) - clean.abs().pow(p)).sum((2, 3)).mean(0)


def verdict(guess, asr, ra, acc, dead=0.1, read=0.9):
    if asr < dead:
        return "repaired" if min(ra, acc) >= read else "silenced"
    return "immune to the guess" if guess < dead else "untouched"


def verdict_by_table(guess, asr, ra, acc):
    words = {
        (True, True): "repaired",
        (True, False): "silenced",
        (False, True): "immune to the guess",
        (False, False): "untouched",
    }
    dead = asr < 0.1
    return words[dead, ra >= 0.9 and acc >= 0.9 if dead else guess < 0.1]


def guess_first(guess, asr, ra, acc):
    if guess >= 0.1:
        return "untouched"
    return verdict(guess, asr, ra, acc)


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


def from_the_first(qs, accs, before, max_drop):
    return last_share(qs, accs, accs[0], max_drop)


def from_the_best(qs, accs, before, max_drop):
    best = qs[0]
    for q, acc in zip(qs, accs, strict=True):
        before = max(before, acc)
        if before - acc > max_drop:
            break
        best = q
    return best


def gains_punished(qs, accs, before, max_drop):
    return last_share(qs, [before - abs(before - acc) for acc in accs], before, max_drop)


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
    frozen=False,
    weigh=1,
    last=False,
    smallest=False,
    turned=False,
    rows=None,
    own=True,
    steering=steer,
    enough=0.99,
    at_the_end=False,
    better=lambda size, least: size < least,
    newest=True,
    measure=lambda mask: mask.flatten(1).sum(1),
    dear_pattern=False,
    scale=lambda k, batch: 1 / batch,
    betas=(0.5, 0.9),
    same=False,
):
    """The answer of the lesson, with a switch for everything that can go wrong."""
    generator = generator if own else None
    k, (c, h, w) = len(labels), x.shape[1:]
    free = [torch.randn(k, 1, d, h, w, generator=generator).to(x) for d in (1, c)]
    free = [f.requires_grad_() for f in free]
    adam = torch.optim.Adam(free, lr=0.2, betas=betas)
    lam, least = torch.full((k,), lam).to(x), torch.full((k,), math.inf).to(x)
    good = bad = hits = torch.zeros(k, dtype=torch.long)
    best = [torch.zeros_like(f) for f in free]
    goal = (labels if rows is None else rows).repeat_interleave(batch)
    if train:
        model.train()
    if frozen:
        model.requires_grad_(False)
    for step in range(1, steps + 1):
        mask, pattern = (squash(f) for f in free)
        drawn = torch.randint(len(x), (batch,), generator=generator)
        some = x[:batch] if same else x[drawn]
        m = 1 - mask if turned else mask
        out = model(((1 - m) * some + m * pattern).flatten(0, 1))
        size = mask.flatten(1).sum(1)
        loss = F.cross_entropy(out, goal, reduction="sum") * scale(k, batch)
        loss = loss + weigh * (lam * measure(mask)).sum()
        if dear_pattern:
            loss = loss + (lam * pattern.flatten(1).sum(1)).sum()
        if ahead:
            adam.zero_grad()
            loss.backward()
        else:
            for f, slope in zip(free, torch.autograd.grad(loss, free), strict=True):
                f.grad = slope
        adam.step()
        hits = hits + (out.argmax(1) == goal).view(k, batch).sum(1)
        if at_the_end:
            hits = 10 * (out.argmax(1) == goal).view(k, batch).sum(1)
        if step % 10 == 0:
            works = hits >= enough * 10 * batch
            take = better(size, least) | least.isinf() & (size > 0)
            take = take if smallest else works & take
            taken = torch.ones_like(works) if last else take | (newest & least.isinf())
            for b, now in zip(best, (mask, pattern), strict=True):
                b[taken] = now.detach()[taken]
            least = torch.where(take, size.detach(), least)
            lam, good, bad = steering(lam, good, bad, works)
            hits = torch.zeros_like(hits)
    return best[0][:, 0], best[1][:, 0]


def unsteered(lam, good, bad, works):
    return lam, good, bad


def deaf(lam, good, bad, works):
    moved = torch.where(good == 4, 2 * lam, torch.where(bad == 4, lam / 2**1.5, lam))
    return moved, *steer(lam, good, bad, works)[1:]


def without_absolute_value(clean, triggered, p):
    peak = p == math.inf
    after, before = (t.amax((2, 3)) if peak else t.sum((2, 3)) for t in (triggered, clean))
    return (after - before).mean(0)


def steered_upside_down(lam, good, bad, works):
    return steer(lam, good, bad, ~works)


def one_price(lam, good, bad, works):
    return steer(lam, good, bad, works.all().expand_as(works))


def one_price_of_any(lam, good, bad, works):
    return steer(lam, good, bad, works.any().expand_as(works))


def asked_before_the_look(lam, good, bad, works):
    lam = torch.where((good == 5) & works, lam * 2, lam)
    lam = torch.where((bad == 5) & ~works, lam / 2**1.5, lam)
    return lam, torch.where(works, good % 5 + 1, 0), torch.where(works, 0, bad % 5 + 1)


def one_by_one(model, x, labels, steps, lam, generator, batch=6):
    found = []
    for label in labels.tolist():
        m = torch.rand(1, *x.shape[2:], generator=generator).to(x).logit()
        p = torch.rand(x.shape[1:], generator=generator).to(x).logit()
        m, p, rate = m.requires_grad_(), p.requires_grad_(), lam
        adam = torch.optim.Adam([m, p], 0.4, (0.5, 0.9))
        kept, least, good, bad, hits = None, math.inf, 0, 0, 0
        for step in range(steps):
            some = x[torch.randperm(len(x), generator=generator)[:batch]]
            out = model(some + m.sigmoid() * (p.sigmoid() - some))
            loss = -out.log_softmax(1)[:, label].mean() + rate * m.sigmoid().sum()
            m.grad, p.grad = torch.autograd.grad(loss, [m, p])
            now = [m.sigmoid().detach().clone(), p.sigmoid().detach().clone()]
            adam.step()
            hits += int((out.argmax(1) == label).sum())
            if step % 10 == 9:
                works, hits = hits >= 0.99 * 10 * batch, 0
                size = float(now[0].sum())
                if works and size < least or math.isinf(least):
                    kept, least = now, size if works else math.inf
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
    "rise": [rise, rise_by_powers],
    "last_share": [last_share, last_share_by_index],
    "verdict": [verdict, verdict_by_table],
}

WRONG = {
    "dilution": [
        (lambda n, r, a, p: 1 + a, "expected"),
        (lambda n, r, a, p: 1 + r / n * a, "expected"),
        (lambda n, r, a, p: dilution(n, r, a, p) ** (1 if p > 9 else p), "root"),
        (lambda n, r, a, p: 1 + r * a, "expected"),
    ],
    "steer": [
        (deaf, "breaks the row"),
        (lambda *a: steer(*a, down=2), "the power"),
        (lambda *a: steer(*a, up=0.5, down=2**-1.5), "the wrong way"),
        (lambda *a: steer(*a, row=3), "before five"),
        (lambda *a: steer(*a, row=4), "before five"),
        (lambda *a: steer(*a, row=6), "this look counts, and five"),
        (asked_before_the_look, "this look counts"),
        (lambda *a: steer(*a, up=1.5), "wrong factor"),
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
        (switched(frozen=True), "requires_grad; put it back"),
        (switched(steering=unsteered), "cheaper for a label"),
        (switched(steering=steered_upside_down), "cheaper for a label"),
        (switched(steering=one_price), "dearer for a label"),
        (switched(steering=one_price_of_any), "cheaper for a label"),
        (switched(better=lambda size, least: least.isinf()), "smallest mask"),
        (switched(better=lambda size, least: size > 0), "the last mask"),
        (switched(better=lambda size, least: size > least), "the largest|smallest mask"),
        (switched(newest=False), "keep the newest"),
        (switched(enough=0.5), "a look with misses"),
        (switched(enough=0.9), "a look with misses"),
        (switched(enough=0.95), "a look with misses"),
        (switched(at_the_end=True), "a look with misses"),
        (switched(measure=lambda mask: mask.flatten(1).mean(1)), "weighs wrongly|obey lambda"),
        (switched(measure=lambda mask: mask.flatten(1).pow(2).sum(1)), "weighs wrongly"),
        (switched(dear_pattern=True), "price for the pattern"),
        (switched(scale=lambda k, batch: 1 / (k * batch)), "weighs wrongly"),
        (switched(scale=lambda k, batch: 1), "weighs wrongly"),
        (switched(betas=(0.9, 0.999)), "Adam as the task|er for a label|none has worked yet"),
        (switched(same=True), "same images"),
        (lambda *a: search(*a[:6]), "than `batch` says"),
        (lambda *a: search(*a)[0], "two tensors"),
    ],
    "rise": [
        (without_absolute_value, "absolute value"),
        (norm_of_the_change, "norm of the change"),
        (lambda c, t, p: (t - c).amax((2, 3)).mean(0), "norm of the change"),
        (lambda c, t, p: rise(c, t, p).abs(), "sign"),
        (over_images_too, "largest over images"),
        (lambda c, t, p: rise(c, t), "p says which norm"),
        (without_the_root, "at p = 2"),
        (lambda c, t, p: rise(torch.zeros_like(c), t, p), "not the mean change"),
    ],
    "verdict": [
        (lambda g, s, r, a: verdict(g, g, r, a), "living attack|though the guess"),
        (lambda g, s, r, a: verdict(g, s, a, a), "low RA"),
        (lambda g, s, r, a: verdict(g, s, r, r), "low accuracy"),
        (lambda g, s, r, a: verdict(g, s, (r + a) / 2, 1), "low RA|low accuracy|nine tenths"),
        (guess_first, "though the guess lives"),
        (lambda g, s, r, a: verdict(g, s, r, a, dead=0.1001), "exactly a tenth"),
        (lambda g, s, r, a: verdict(g, s, r, a, read=0.9001), "exactly nine tenths"),
        (lambda g, s, r, a: s < 0.1, "not a word"),
    ],
    "last_share": [
        (
            lambda q, a, b, d: max(s for s, x in zip(q, a, strict=True) if b - x <= d),
            "first loss",
        ),
        (one_too_far, "costs too much"),
        (from_the_first, "`before`"),
        (from_the_best, "best accuracy so far"),
        (gains_punished, "gain for a loss"),
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
