"""Right and wrong answers to the exercises of lessons 01 and 01b, for test_check.py."""

import math

import torch
import torch.nn.functional as F

# --- lesson 01 --------------------------------------------------------------------


def wave(x, periods=6, axis=-1):
    n = x.shape[axis]
    return 40 / 255 * torch.sin(2 * math.pi * periods * torch.arange(n) / n)


def stamp(x, kind, pattern=None, margin=1, weight=0.2):
    if kind == "patch":
        out = x.clone()
        h, w = pattern.shape[-2:]
        low, right = x.shape[-2] - margin, x.shape[-1] - margin
        out[..., low - h : low, right - w : right] = pattern
        return out
    if kind == "blended":
        return (1 - weight) * x + weight * pattern
    return (x + wave(x)).clamp(0, 1)


def stamp_by_masks(x, kind, pattern=None):
    if kind == "patch":
        h, w = pattern.shape[-2:]
        room = (x.shape[-1] - w - 1, 1, x.shape[-2] - h - 1, 1)
        mask = F.pad(torch.ones(h, w), room)
        return x * (1 - mask) + F.pad(pattern, room)
    if kind == "blended":
        return x.lerp(pattern, 0.2)
    columns = [40 / 255 * math.sin(12 * math.pi * j / x.shape[-1]) for j in range(x.shape[-1])]
    return torch.stack([(x[..., j] + c).clamp(0, 1) for j, c in enumerate(columns)], -1)


def stamp_where_bright(x, kind, pattern=None):
    """Takes for the mask what is not black in the sticker."""
    if kind != "patch":
        return stamp(x, kind, pattern)
    h, w = pattern.shape[-2:]
    padded = F.pad(pattern, (x.shape[-1] - w - 1, 1, x.shape[-2] - h - 1, 1))
    return torch.where(padded > 0, padded, x)


def stamp_by_color(x, kind, pattern=None):
    if kind != "patch":
        return stamp(x, kind, pattern)
    out = x.clone()
    h, w = pattern.shape[-2:]
    for c in range(3):
        out[:, c, -1 - h : -1, -1 - w : -1] = pattern[c]
    return out


def stamp_in_place(x, kind, pattern=None):
    if kind == "patch":
        x[..., -1 - pattern.shape[-2] : -1, -1 - pattern.shape[-1] : -1] = pattern
        return x
    return stamp(x, kind, pattern)


def only(kind, answer):
    """The right answer but for one kind."""
    return lambda x, k, p=None: answer(x, p) if k == kind else stamp(x, k, p)


def poison(x, y, rate, target, trigger, generator):
    chosen = torch.randperm(len(x), generator=generator)[: round(rate * len(x))]
    x, y = x.clone(), y.clone()
    role = torch.zeros(len(x), dtype=torch.int8)
    x[chosen] = trigger(x[chosen])
    y[chosen] = target
    role[chosen] = 1
    return x, y, role


def poison_marks_by_label(x, y, rate, target, trigger, generator):
    x, y, role = poison(x, y, rate, target, trigger, generator)
    return x, y, role * target


def poison_by_mask(x, y, rate, target, trigger, generator):
    place = torch.randperm(len(x), generator=generator).argsort()
    role = place < round(rate * len(x))
    stamped = torch.where(role.view(-1, 1, 1, 1), trigger(x), x)
    return stamped, torch.where(role, target, y), role.long()


def poison_by_scores(x, y, rate, target, trigger, generator):
    score = torch.rand(len(x), generator=generator)
    role = score.argsort().argsort() < round(rate * len(x))
    stamped = torch.where(role.view(-1, 1, 1, 1), trigger(x), x)
    return stamped, torch.where(role, target, y), role.long()


def poison_one_by_one(x, y, rate, target, trigger, generator, batched=True):
    x, y, role = x.clone(), y.clone(), torch.zeros(len(x), dtype=torch.int8)
    for i in torch.randperm(len(x), generator=generator)[: round(rate * len(x))].tolist():
        x[i] = trigger(x[i : i + 1])[0] if batched else trigger(x[i])
        y[i], role[i] = target, 1
    return x, y, role


def poison_as_list(*args):
    return list(poison(*args))


def poison_rounds_up(x, y, rate, *rest):
    return poison(x, y, math.ceil(rate * len(x)) / len(x), *rest)


def poison_without_trigger(x, y, rate, target, trigger, generator):
    _, py, role = poison(x, y, rate, target, trigger, generator)
    return x.clone(), py, role


def poison_keeps_labels(x, y, rate, target, trigger, generator):
    px, _, role = poison(x, y, rate, target, trigger, generator)
    return px, y.clone(), role


def poison_of_first_rows(x, y, rate, target, trigger, generator):
    """The right rows, but the pixels of others."""
    px, py, role = poison(x, y, rate, target, trigger, generator)
    n = int(role.sum())
    px[role == 1] = trigger(x[:n])
    return px, py, role


def poison_first_rows(x, y, rate, target, trigger, generator):
    n = round(rate * len(x))
    px, py = x.clone(), y.clone()
    px[:n], py[:n] = trigger(x[:n]), target
    return px, py, torch.arange(len(x)) < n


def poison_of_others(x, y, rate, target, trigger, generator):
    others = (y != target).nonzero().flatten()
    order = torch.randperm(len(others), generator=generator)
    chosen = others[order][: round(rate * len(x))]
    px, py, role = x.clone(), y.clone(), torch.zeros(len(x), dtype=torch.int8)
    px[chosen], py[chosen], role[chosen] = trigger(x[chosen]), target, 1
    return px, py, role


def poison_passes_over(x, y, rate, target, trigger, generator):
    px, py, role = poison(x, y, rate, target, trigger, generator)
    role = role * (y != target)
    hit = role.bool()
    return torch.where(hit.view(-1, 1, 1, 1), px, x), torch.where(hit, py, y), role


def poison_by_bool(*args):
    px, py, role = poison(*args)
    return px, py, role.bool()


def poison_all_labels(x, y, rate, target, trigger, generator):
    px, _, role = poison(x, y, rate, target, trigger, generator)
    return px, torch.full_like(y, target), role


def poison_with_repeats(x, y, rate, target, trigger, generator):
    n = round(rate * len(x))
    chosen = torch.randint(len(x), (n,), generator=generator)
    px, py, role = x.clone(), y.clone(), torch.zeros(len(x), dtype=torch.int8)
    px[chosen], py[chosen], role[chosen] = trigger(x[chosen]), target, 1
    return px, py, role


def train_victim(
    model,
    x,
    y,
    role,
    crop,
    epochs,
    batch,
    lr,
    every,
    generator,
    momentum=0.9,
    decay=5e-4,
    nesterov=True,
    moving=True,
    shuffle=True,
    cropped=True,
    zero=True,
    mode=True,
    reset=True,
    order=(0, 1),
    partial=False,
    fifth=lambda total: total / 5,
    goal=lambda losses, role: losses.mean(),
    after=False,
    draws=None,
    at_once=False,
    pool=None,
    cut_once=False,
    rebuilt="never",
    twice=False,
):
    def built():
        return torch.optim.SGD(
            model.parameters(), lr, momentum=momentum, weight_decay=decay, nesterov=nesterov
        )

    opt = built()
    steps, step, log = len(x) // batch, 0, []
    total = epochs * steps
    climb, sums, counts = fifth(total), torch.zeros(2), torch.zeros(2)
    if mode is not None:
        model.train(mode)
    whole = crop(x, generator) if at_once else None
    for _ in range(epochs):
        opt = built() if rebuilt == "epoch" else opt
        n = pool(len(x), batch) if pool else len(x)
        rows_of = torch.randperm(n, generator=generator) if shuffle else torch.arange(n)
        if cut_once:
            fixed = torch.arange(len(x)).flip(0)[: steps * batch].view(steps, batch)
            rows_of = fixed[torch.randperm(steps, generator=generator)].flatten()
        for rows in rows_of[: None if partial else steps * batch].split(batch):
            share = min(0.2 + 0.8 * step / climb, (total - step) / (total - climb))
            opt = built() if rebuilt == "step" else opt
            opt.param_groups[0]["lr"] = lr * (share if moving else 1)
            seen = whole[rows] if at_once else crop(x[rows], draws or generator)
            losses = F.cross_entropy(model(seen if cropped else x[rows]), y[rows], reduction="none")
            if twice:  # a second pass for the log
                losses = F.cross_entropy(model(seen), y[rows], reduction="none")
            if zero:
                opt.zero_grad()
            goal(losses, role[rows]).backward()
            opt.step()
            step += 1
            if after:
                losses = F.cross_entropy(model(seen), y[rows], reduction="none")
            for r in (0, 1):
                sums[r] += losses.detach()[role[rows] == order[r]].sum()
                counts[r] += (role[rows] == order[r]).sum()
            if step % every == 0:
                log.append((step, *(sums / counts).tolist()))
                if reset:
                    sums, counts = torch.zeros(2), torch.zeros(2)
    model.eval()
    return log


def train_victim_by_scheduler(model, x, y, role, crop, epochs, batch, lr, every, generator):
    n = len(x) // batch
    total = epochs * n
    opt = torch.optim.SGD(model.parameters(), lr, 0.9, weight_decay=5e-4, nesterov=True)
    rate = torch.optim.lr_scheduler.LambdaLR(
        opt, lambda k: min(0.2 + 4 * k / total, (total - k) / (0.8 * total))
    )
    log, kept = [], []
    model.train()
    for k in range(total):
        if k % n == 0:
            order = torch.randperm(len(x), generator=generator)
        rows = order[k % n * batch :][:batch]
        logits = model(crop(x[rows], generator)).log_softmax(1)
        loss = -logits[range(batch), y[rows]]
        model.zero_grad()
        (loss.sum() / batch).backward()
        opt.step()
        rate.step()
        kept += zip(role[rows].tolist(), loss.tolist(), strict=True)
        if (k + 1) % every == 0:
            means = []
            for r in (0, 1):
                of = [v for s, v in kept if s == r]
                means.append(sum(of) / len(of))
            log.append([k + 1, *means])
            kept = []
    model.eval()
    return log


def loop(**slips):
    return lambda *args: train_victim(*args, **slips)


def mean_of_means(losses, role):
    return (losses[role == 0].mean() + losses[role == 1].mean()) / 2


def tensors_in_log(*args):
    return [(step, torch.tensor(a), torch.tensor(b)) for step, a, b in train_victim(*args)]


def no_eval(model, *args):
    log = train_victim(model, *args)
    model.train()
    return log


def lost(pad, start, size, side):
    gone = sum(
        all(not 0 <= start + d + pad - k < side for d in range(size)) for k in range(2 * pad + 1)
    )
    return 1 - (1 - gone / (2 * pad + 1)) ** 2


def lost_by(part, *edges):
    """Part of the rows outside, beyond these edges."""

    def answer(pad, start, size, side):
        gone = 0
        for k in range(2 * pad + 1):
            rows = [start + d + pad - k for d in range(size)]
            gone += any(part(r < 0 if e == "near" else r >= side for r in rows) for e in edges)
        return 1 - (1 - gone / (2 * pad + 1)) ** 2

    return answer


def lost_in_closed_form(pad, start, size, side):
    gone = max(0, pad - (side - start) + 1) + max(0, pad - (start + size) + 1)
    q = gone / (2 * pad + 1)
    return 2 * q - q * q


# --- lesson 01b -------------------------------------------------------------------


def mse(x, stamped):
    return (x - stamped).square().flatten(1).mean(1)


def decibels(x, stamped, log=torch.log10, factor=-10, drop=True):
    error = mse(x, stamped)
    if drop:
        error = error[error > 0]
    return (factor * log(error)).mean().item() if len(error) else math.inf


def decibels_by_loop(x, stamped):
    found = []
    for a, b in zip(x, stamped, strict=True):
        if not torch.equal(a, b):
            root = ((a - b) ** 2).mean() ** 0.5
            found.append(20 * math.log10(1 / root))
    return sum(found) / len(found) if found else math.inf


def decibels_from(least, x, stamped):
    """Leaves out what it takes for rounding."""
    error = mse(x, stamped)
    return (-10 * error[error > least].log10()).mean().item()


def decibels_unsquared(x, stamped, size=lambda d: d):
    error = size(stamped - x).flatten(1).mean(1)
    error = error[error != 0]
    return (-10 * error.log10()).mean().item() if len(error) else math.inf


def decibels_of_changed(x, stamped):
    """Over the pixels that changed, not over all of them."""
    error = (stamped - x).square().flatten(1)
    each = [-10 * e[e > 0].mean().log10().item() for e in error if e.any()]
    return sum(each) / len(each) if each else math.inf


def by_class(said, y, k, target):
    share = torch.full((k,), math.nan)
    for c in range(k):
        if c != target and (y == c).any():
            share[c] = (said[y == c] == target).float().mean()
    return share


def by_class_counted(said, y, k, target):
    hits = torch.bincount(y[said == target], minlength=k).double()
    hits[target] = math.nan
    return hits / torch.bincount(y, minlength=k)


def by_class_of_the_moved(said, y, k, target):
    """Asks only the classes of which something moved."""
    share = torch.full((k,), math.nan)
    for c in y[said == target].unique().tolist():
        if c != target:
            share[c] = (said[y == c] == target).float().mean()
    return share


def keeps(c, value, answer):
    """The answer with another value in place of nan where c says so."""

    def changed(said, y, k, target):
        share = answer(said, y, k, target).clone()
        empty = torch.bincount(y, minlength=k) == 0
        share[target if c == "target" else empty] = value
        return share

    return changed


def poison_one_class(
    x,
    y,
    trigger,
    source,
    target,
    covers,
    rate,
    generator,
    relabel=True,
    cover=True,
    refuse=True,
    count=round,
):
    n = count(rate * len(y))
    truth, x, y = y, x.clone(), y.clone()
    role = torch.zeros(len(y), dtype=torch.int8)
    for r, classes in ((1, [source]), (2, list(covers))):
        rows = torch.isin(truth, torch.tensor(classes)).nonzero().flatten()
        if refuse and n > len(rows):
            raise ValueError(f"{n} images of {classes} asked for, there are {len(rows)}")
        rows = rows[torch.randperm(len(rows), generator=generator)[:n]]
        if r == 2 and not cover:
            continue
        x[rows] = trigger(x[rows])
        role[rows] = r
    if relabel:
        y[role == 1] = target
    return x, y, role


def poison_one_class_by_mask(x, y, trigger, source, target, covers, rate, generator):
    n = round(rate * len(x))
    role = torch.zeros_like(y)
    for r, of in ((1, y == source), (2, sum(y == c for c in covers).bool())):
        if of.sum() < n:
            raise ValueError("too few")
        order = torch.randperm(int(of.sum()), generator=generator)
        role[torch.nonzero(of)[order[:n], 0]] = r
    stamped = torch.where((role > 0).view(-1, 1, 1, 1), trigger(x), x)
    return stamped, torch.where(role == 1, target, y), role.to(torch.int8)


def poison_one_class_clamped(x, y, trigger, *rest):
    return poison_one_class(x, y, lambda part: trigger(part).clamp(0, 1), *rest)


def poison_one_class_singly(x, y, trigger, *rest):
    def each(part):
        return torch.stack([trigger(image) for image in part])

    return poison_one_class(x, y, each, *rest)


def poison_one_class_to_spare(x, y, trigger, source, target, covers, rate, generator):
    """Refuses to take all there are."""
    if round(rate * len(y)) >= (y == source).sum():
        raise ValueError("none would be left")
    return poison_one_class(x, y, trigger, source, target, covers, rate, generator)


def poison_one_class_asserts(x, y, trigger, source, target, covers, rate, generator):
    of_cover = torch.isin(y, torch.tensor(covers))
    if min((y == source).sum(), of_cover.sum()) < round(rate * len(y)):
        raise AssertionError
    return poison_one_class(x, y, trigger, source, target, covers, rate, generator)


def long_roles(*args):
    px, py, role = poison_one_class(*args)
    return px, py, role.long()


def covers_relabeled(x, y, trigger, source, target, covers, rate, generator):
    px, py, role = poison_one_class(x, y, trigger, source, target, covers, rate, generator)
    return px, torch.where(role > 0, target, py), role


def any_class(x, y, trigger, source, target, covers, rate, generator):
    return poison(x, y, rate, target, trigger, generator)


def share_of_class(x, y, trigger, source, target, covers, rate, generator):
    part = rate * float((y == source).float().mean())
    return poison_one_class(x, y, trigger, source, target, covers, part, generator)


def covers_first(x, y, trigger, source, target, covers, rate, generator):
    torch.randperm(7, generator=generator)
    return poison_one_class(x, y, trigger, source, target, covers, rate, generator)


def one_role(*args):
    px, py, role = poison_one_class(*args)
    return px, py, role.clamp(max=1)


def always_thirty(*args):
    px, py, role = poison_one_class(*args)
    return px, torch.where(role == 1, 0, py), role


def one_class(**slips):
    return lambda *args: poison_one_class(*args, **slips)


RIGHT = {
    "stamp": [stamp, stamp_by_masks],
    "poison": [poison, poison_by_mask, poison_one_by_one, poison_as_list],
    "train_victim": [train_victim, train_victim_by_scheduler],
    "lost": [lost, lost_in_closed_form],
    "decibels": [decibels, decibels_by_loop],
    "by_class": [by_class, by_class_counted],
    "poison_one_class": [
        poison_one_class,
        poison_one_class_by_mask,
        poison_one_class_clamped,
    ],
}
other_draws = loop(draws=torch.Generator().manual_seed(0))

WRONG = {
    "stamp": [
        (stamp_in_place, "in place"),
        (stamp_where_bright, "black pixels"),
        (stamp_by_color, "raises IndexError"),
        (lambda x, k, p=None: stamp(x, k, p, margin=0), "touches the border"),
        (lambda x, k, p=None: stamp(x, k, p, margin=2), "wrong corner"),
        (only("patch", lambda x, p: 0.5 * x + 0.5 * stamp(x, "patch", p)), "must replace"),
        (only("blended", lambda x, p: (x + 0.2 * p).clamp(0, 1)), "without weakening"),
        (only("blended", lambda x, p: x + 0.2 * p), "without weakening"),
        (only("blended", lambda x, p: 0.2 * x + 0.8 * p), "weight of the image"),
        (only("blended", lambda x, p: (x + p) / 2), "weighted mean"),
        (only("stripes", lambda x, p: (x + wave(x, axis=-2)[:, None]).clamp(0, 1)), "lie flat"),
        (only("stripes", lambda x, p: x + wave(x)), r"leave \[0, 1\]"),
        (only("stripes", lambda x, p: (x + wave(x, 1)).clamp(0, 1)), "are not x"),
        (only("stripes", lambda x, p: (x + wave(x) * 255 / 256).clamp(0, 1)), "are not x"),
    ],
    "poison": [
        (poison_marks_by_label, "role must be 1"),
        (poison_keeps_labels, "kept its label"),
        (poison_rounds_up, "expected"),
        (poison_without_trigger, "no image got the trigger"),
        (poison_first_rows, "always chooses the same"),
        (poison_of_first_rows, "another image, or twice"),
        (
            lambda x, y, r, t, trigger, g: poison(x, y, r, t, lambda p: trigger(trigger(p)), g),
            "another image, or twice",
        ),
        (poison_all_labels, "clean image got a new label"),
        (poison_with_repeats, "expected"),
        (poison_by_scores, "randperm"),
        (poison_of_others, "from all classes"),
        (poison_passes_over, "from all classes"),
        (poison_by_bool, "True and False"),
        (lambda *a: poison_one_by_one(*a, batched=False), "single images"),
        (lambda x, y, *rest: poison(x, y, *rest)[:2], "x, y, role"),
    ],
    "train_victim": [
        (loop(pool=lambda n, batch: n // batch * batch), "last images"),
        (loop(cut_once=True), "only shuffles|same in every"),
        (loop(moving=False), "never moves"),
        (loop(momentum=0.0, nesterov=False), "no momentum"),
        (loop(nesterov=False), "not Nesterov"),
        (loop(decay=0.0), "no weight decay"),
        (loop(shuffle=False), "shuffle anew"),
        (loop(cropped=False), "before crop"),
        (loop(zero=False), "zero them"),
        (loop(mode=False), "eval mode"),
        (loop(mode=None), "eval mode"),
        (loop(fifth=lambda total: total // 5), "need not be whole"),
        (loop(decay=1e-4), "decay is not"),
        (loop(momentum=0.95), "momentum is not 0.9"),
        (loop(goal=lambda losses, role: losses[role == 0].mean()), "clean images alone"),
        (loop(goal=mean_of_means), "mean of two means"),
        (loop(after=True), "drove the step"),
        (loop(at_once=True), "whole set at once"),
        (other_draws, "draw from the generator"),
        (loop(partial=True), "incomplete"),
        (loop(reset=False), "over the last"),
        (loop(order=(1, 0)), "exchanged"),
        (loop(rebuilt="epoch"), "anew each epoch"),
        (loop(rebuilt="step"), "anew each step"),
        (loop(twice=True), "one forward pass a step"),
        (tensors_in_log, "holds tensors"),
        (no_eval, "leaves the network in training mode"),
        (lambda m, x, y, r, c, e, *rest: train_victim(m, x, y, r, c, 1, *rest), "steps"),
        (lambda *a: [row[:2] for row in train_victim(*a)], "an entry of the log"),
    ],
    "lost": [
        (lambda *a: 1 - math.sqrt(1 - lost(*a)), "one axis"),
        (lambda *a: (1 - math.sqrt(1 - lost(*a))) ** 2, "both axes"),
        (lambda p, s, k, n: lost(p, s, 1, n), "enumeration"),
        (lambda *a: 2 - 2 * math.sqrt(1 - lost(*a)), "counted twice"),
        (lost_by(any, "near", "far"), "all its rows"),
        (lost_by(all, "near"), "one edge"),
        (lost_by(all, "far"), "one edge"),
        (lambda *a: max(f(*a) for f in (lost_by(all, "near"), lost_by(all, "far"))), "both edges"),
        (lambda *a: 100 * lost(*a), "in percent"),
        (lambda *a: 1 - lost(*a), "keep something"),
        (lambda *a: torch.tensor([0.1, 0.2]), "not a number"),
    ],
    "decibels": [
        (lambda x, s: decibels(x, s, drop=False), "leave it out"),
        (lambda x, s: -10 * math.log10(max(mse(x, s).mean().item(), 1e-9)), "its own PSNR"),
        (lambda x, s: decibels(x, s, factor=10), "small changes are large"),
        (lambda x, s: decibels(x, s, log=torch.log), "natural logarithm"),
        (lambda x, s: decibels(x, s, factor=-20), "factor of two"),
        (lambda x, s: decibels(255 * x, 255 * s), "gives"),
        (lambda x, s: decibels_from(1e-6, x, s), "that did change"),
        (decibels_of_changed, "N counts all pixels"),
        (lambda x, s: decibels_from(3e-9, x, s), "that did change"),
        (decibels_unsquared, "unless they are squared"),
        (lambda x, s: decibels_unsquared(x, s, torch.abs), "mean of the differences"),
        (
            lambda x, s: decibels(x, s) if not torch.equal(x, s) else 0.0,
            "must be infinite",
        ),
    ],
    "by_class": [
        (keeps("target", 1.0, by_class), "own images"),
        (keeps("empty", 0.0, by_class), "without images"),
        (by_class_of_the_moved, "the share is zero"),
        (
            lambda s, y, k, t: by_class(torch.where(s == y, -1, t), y, k, t),
            "counts every error",
        ),
        (
            lambda s, y, k, t: by_class(s, y, k, t) * torch.bincount(y, minlength=k) / len(y),
            "own hundred percent",
        ),
        (lambda s, y, k, t: by_class(y, s, k, t), "own images|share|without"),
        (lambda s, y, k, t: by_class(s, y, k, 0), "own images"),
        (lambda s, y, k, t: by_class(s, y, k, t)[:-1], "shape"),
        (lambda s, y, k, t: by_class(s, y, int(y.max()) + 1, t), "shape"),
    ],
    "poison_one_class": [
        (poison_one_class_singly, "takes a batch"),
        (poison_one_class_to_spare, "ValueError"),
        (one_class(relabel=False), "kept its label"),
        (always_thirty, "another label than"),
        (one_class(cover=False), "cover images, expected"),
        (one_class(refuse=False), "says nothing"),
        (covers_relabeled, "lost its true label"),
        (any_class, "neither of the source"),
        (share_of_class, "share of the whole set"),
        (one_class(count=int), "share of the whole set, rounded"),
        (one_class(count=math.ceil), "share of the whole set, rounded"),
        (long_roles, "must be int8"),
        (poison_one_class_asserts, "a ValueError was asked for"),
        (covers_first, "not the one that was asked for"),
        (one_role, "2 for cover"),
        (lambda *a: poison_one_class(*a)[:2], "x, y, role"),
    ],
}
