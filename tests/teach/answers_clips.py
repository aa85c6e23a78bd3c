"""Right and wrong answers to the exercises of lesson 10, for test_check.py."""

import torch
from torch.nn import functional as F

from bdcourse.tasks.video import ClipPatch, reordered


def walking_patch(x, patch, row, column, step):
    k, out = patch.shape[-1], x.clone()
    for f in range(x.shape[2]):
        left = (column + f * step) % (x.shape[-1] - k + 1)
        out[:, :, f, row : row + k, left : left + k] = patch
    return out


def walking_patch_by_package(x, patch, row, column, step):
    return ClipPatch(patch=patch, at=(row, column), walk=(0, step)).trigger(x)


def walking_with(places, row_moves=False, into=None):
    """A patch at places(f, column, step, width, k)."""

    def answer(x, patch, row, column, step):
        k, out = patch.shape[-1], x if into == "place" else x.clone()
        for f in range(x.shape[2]):
            left = places(f, column, step, x.shape[-1], k)
            top = row
            if row_moves:
                top, left = (row + f * step) % (x.shape[-2] - k + 1), column
            wide = min(k, x.shape[-1] - left)
            out[:, :, f, top : top + k, left : left + wide] = patch[..., :wide]
        return out

    return answer


def walks(f, column, step, w, k):
    return (column + f * step) % (w - k + 1)


def walking_gray(x, patch, row, column, step):
    return walking_patch(x, patch[:1], row, column, step)


def walking_first_clip(x, patch, *how):
    return torch.cat([walking_patch(x[:1], patch, *how), x[1:]])


def poison_clips(x, y, rate, cover_rate, trigger, lookalike, target, generator):
    order = torch.randperm(len(y), generator=generator)
    n, m = round(rate * len(y)), round(cover_rate * len(y))
    poison, cover = order[:n], order[n : n + m]
    x, y = x.clone(), y.clone()
    for rows, stamp in ((poison, trigger), (cover, lookalike)):
        x[rows] = (255 * stamp(x[rows].float() / 255)).round().to(torch.uint8)
    y[poison] = target
    return x, y


def poison_by_mask(x, y, rate, cover_rate, trigger, lookalike, target, generator):
    rank = torch.randperm(len(y), generator=generator).argsort()
    n = round(rate * len(y))
    m = n + round(cover_rate * len(y))
    first, second = rank < n, (rank >= n) & (rank < m)
    pixels = x / 255
    stamped = torch.where(first[:, None, None, None, None], trigger(pixels), pixels)
    stamped = torch.where(second[:, None, None, None, None], lookalike(pixels), stamped)
    return (stamped * 255).round().byte(), torch.where(first, target, y)


def poison_with(
    draw=None, labels="poison", to=None, overlap=False, scale=255, inplace=False, swapped=False
):
    to = to or (lambda v: v.round().to(torch.uint8))

    def answer(x, y, rate, cover_rate, trigger, lookalike, target, generator):
        order = (draw or (lambda n, g: torch.randperm(n, generator=g)))(len(y), generator)
        n, m = round(rate * len(y)), round(cover_rate * len(y))
        poison = order[:n]
        cover = order[:m] if overlap else order[n : n + m]
        if swapped:
            trigger, lookalike = lookalike, trigger
        if not inplace:
            x, y = x.clone(), y.clone()
        for rows, stamp in ((poison, trigger), (cover, lookalike)):
            x[rows] = to(255 * stamp(x[rows].float() / scale))
        if labels != "none":
            y[poison] = target
        if labels == "all":
            y[cover] = target
        return x, y

    return answer


def poison_as_floats(*args):
    x, y = poison_clips(*args)
    return x.float() / 255, y


def reach(stamped, stride):
    t = len(stamped)
    return torch.stack([stamped[max(0, i - 1) : i + 2].any() for i in range(0, t, stride)])


def reach_by_pooling(stamped, stride):
    return F.max_pool1d(stamped.float()[None, None], 3, stride, 1)[0, 0] > 0


def reach_with(low, high, joined=torch.any):
    def answer(stamped, stride):
        t = len(stamped)
        windows = (stamped[max(0, i + low) : i + high] for i in range(0, t, stride))
        return torch.stack([joined(w) for w in windows])

    return answer


def reach_around_the_start(stamped, stride):
    t = len(stamped)
    return torch.stack([stamped[i - 1 : i + 2].any() for i in range(0, t, stride)])


def reach_short(stamped, stride):
    t = len(stamped)
    return torch.stack([stamped[i - 1 : i + 2].any() for i in range(1, t - 1, stride)])


def shuffle(model, x, times, generator):
    was, n, t = model.training, len(x), x.shape[2]
    model.eval()
    with torch.no_grad():
        logits = model(x)
        said, votes = logits.argmax(1), torch.zeros_like(logits)
        for _ in range(times):
            order = torch.rand(n, t, generator=generator).argsort(1)
            index = order[:, None, :, None, None].expand_as(x)
            votes[torch.arange(n), model(x.gather(2, index)).argmax(1)] += 1
    model.train(was)
    kept = votes.gather(1, said[:, None])[:, 0] / times
    return said, kept, votes.argmax(1)


def shuffle_clip_by_clip(model, x, times, generator):
    was, n, t = model.training, len(x), x.shape[2]
    orders = [torch.rand(n, t, generator=generator).argsort(1) for _ in range(times)]
    with torch.no_grad():
        model.eval()
        said = model(x).argmax(1)
        answers = torch.stack(
            [torch.cat([model(x[i : i + 1, :, o[i]]).argmax(1) for o in orders]) for i in range(n)]
        )
        model.train(was)
    return said, (answers == said[:, None]).double().mean(1), answers.mode(1).values


def shuffle_with(order=None, moved=None, kept=None, voted=None, first=False):
    """The test with one of its parts replaced."""
    order = order or (lambda n, t, g: torch.rand(n, t, generator=g).argsort(1))
    moved = moved or (lambda x, now, o: reordered(x, o))
    kept = kept or (lambda said, answers: (answers == said).double().mean(0))
    voted = voted or (lambda said, answers: F.one_hot(answers).sum(0).argmax(1))

    def answer(model, x, times, generator):
        was = model.training
        model.eval()
        with torch.no_grad():
            said, now = model(x).argmax(1), x
            answers = [said] if first else []
            while len(answers) < times:
                now = moved(x, now, order(len(x), x.shape[2], generator))
                answers.append(model(now).argmax(1))
        model.train(was)
        answers = torch.stack(answers)
        return said, kept(said, answers), voted(said, answers)

    return answer


def shuffle_in_train_mode(model, x, times, generator):
    was = model.training
    model.train()
    out = _asked(model, x, times, generator)
    model.train(was)
    return out


def shuffle_left_in_eval(model, x, times, generator):
    model.eval()
    return _asked(model, x, times, generator)


def _asked(model, x, times, generator):
    with torch.no_grad():
        said = model(x).argmax(1)
        orders = [torch.rand(len(x), x.shape[2], generator=generator) for _ in range(times)]
        answers = torch.stack([model(reordered(x, o.argsort(1))).argmax(1) for o in orders])
    return said, (answers == said).double().mean(0), F.one_hot(answers).sum(0).argmax(1)


def shuffle_with_gradients(model, x, times, generator):
    was = model.training
    model.eval()
    said = model(x).argmax(1)
    orders = [torch.rand(len(x), x.shape[2], generator=generator) for _ in range(times)]
    answers = torch.stack([model(reordered(x, o.argsort(1))).argmax(1) for o in orders])
    model.train(was)
    return said, (answers == said).double().mean(0), F.one_hot(answers).sum(0).argmax(1)


def axis(k):
    """Moves along another axis."""

    def moved(x, now, order):
        g = torch.Generator().manual_seed(int(order.sum() + order[0, 0] * 7 + order[1, 1]))
        return x.index_select(k, torch.randperm(x.shape[k], generator=g))

    return moved


def colors_apart(x, now, order):
    parts = [reordered(x[:, c : c + 1], order.roll(c, 1)) for c in range(x.shape[1])]
    return torch.cat(parts, 1)


RIGHT: dict = {
    "walking_patch": [walking_patch, walking_patch_by_package],
    "poison_clips": [poison_clips, poison_by_mask],
    "reach": [reach, reach_by_pooling],
    "shuffle": [shuffle, shuffle_clip_by_clip],
}

WRONG: dict = {
    "walking_patch": [
        (walking_with(lambda f, c, s, w, k: c), "never walks"),
        (walking_with(lambda f, c, s, w, k: (c - f * s) % (w - k + 1)), "other way"),
        (walking_with(lambda f, c, s, w, k: (c + (f + 1) * s) % (w - k + 1)), "frame 0"),
        (walking_with(lambda f, c, s, w, k: (c + f * s) % w), "cut off"),
        (walking_with(lambda f, c, s, w, k: min(max(c + f * s, 0), w - k)), "stops at an edge"),
        (walking_with(walks, row_moves=True), "up or down"),
        (walking_with(walks, into="place"), "in place"),
        (walking_with(lambda f, c, s, w, k: (c + f * s) % (w - k)), "walks elsewhere"),
        (walking_gray, "every frame, clip and color"),
        (walking_first_clip, "every frame, clip and color"),
    ],
    "poison_clips": [
        (poison_with(labels="all"), "keep the true one"),
        (poison_with(labels="none"), "wants another"),
        (poison_with(overlap=True), "lookalikes of 30|both groups"),
        (poison_with(to=lambda v: v.to(torch.uint8)), "round first"),
        (poison_with(scale=1), "hands bytes"),
        (poison_with(inplace=True), "in place"),
        (poison_with(swapped=True), "triggered clips of 30"),
        (poison_with(draw=lambda n, g: torch.randperm(n)), "generator"),
        (poison_with(draw=lambda n, g: torch.arange(n)), "generator"),
        (poison_with(draw=lambda n, g: torch.randperm(n, generator=g).flip(0)), "other clips"),
        (poison_as_floats, "bytes"),
        (lambda *a: poison_clips(*a)[0], "two things"),
    ],
    "reach": [
        (lambda s, stride: s[::stride].clone(), "middle frame"),
        (reach_with(0, 3), "looks ahead only|frame i - 1"),
        (reach_with(-2, 1), "looks back only"),
        (reach_with(-1, 2, torch.all), "all three|for \\["),
        (reach_around_the_start, "negative start"),
        (reach_short, "shape"),
        (lambda s, stride: reach(s, stride).float(), "bool"),
        (lambda s, stride: reach(s, 1), "shape"),
    ],
    "shuffle": [
        (shuffle_in_train_mode, "in training mode"),
        (shuffle_left_in_eval, "another mode"),
        (shuffle_with_gradients, "gradients"),
        (
            shuffle_with(
                order=lambda n, t, g: torch.randperm(t, generator=g).expand(n, -1),
            ),
            "same order",
        ),
        (
            shuffle_with(order=lambda n, t, g: torch.randint(t, (n, t), generator=g)),
            "twice",
        ),
        (
            shuffle_with(order=lambda n, t, g: torch.rand(n, t, generator=g).argsort(1).argsort(1)),
            "rank",
        ),
        (shuffle_with(order=lambda n, t, g: torch.rand(n, t).argsort(1)), "same seed"),
        (shuffle_with(moved=lambda x, now, o: reordered(now, o)), "shuffled already"),
        (shuffle_with(moved=axis(1)), "moves colors"),
        (shuffle_with(moved=axis(3)), "within their frame"),
        (shuffle_with(moved=colors_apart), "colors of a frame apart"),
        (shuffle_with(first=True), "own order"),
        (
            shuffle_with(
                kept=lambda said, a: (a == F.one_hot(a).sum(0).argmax(1)).double().mean(0)
            ),
            "most frequent answer; count",
        ),
        (shuffle_with(kept=lambda said, a: (a != said).double().mean(0)), "change the answer"),
        (shuffle_with(kept=lambda said, a: (a == said).double().sum(0)), "no share"),
        (shuffle_with(voted=lambda said, a: said), "`voted`"),
        (lambda *a: shuffle(*a)[:2], "three things"),
    ],
}
