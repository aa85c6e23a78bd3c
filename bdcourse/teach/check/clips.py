"""The exercise checks of lesson 10."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse.tasks.video import CLIPS, ClipPatch, Clips, reordered, shuffle_test
from bdcourse.teach.check.core import (
    call,
    close,
    fresh,
    guarded,
    need,
    passed,
    shaped,
)

EXACT = 1e-9  # float64


@guarded
def walking_patch(fn: Callable[[Tensor, Tensor, int, int, int], Tensor]) -> None:
    """walking_patch(x, patch, row, column, step) -> clips with a patch that walks."""
    name, g = "walking_patch", fresh()
    n, t, h, w, k = 2, 7, 9, 11, 3
    x = torch.rand(n, 3, t, h, w, generator=g, dtype=torch.float64)
    patch = torch.rand(3, k, k, generator=g, dtype=torch.float64)
    for row, column, step in ((5, 8, -2), (1, 6, 3), (2, 4, 0)):

        def at(row=row, column=column, step=step, wide=w - k + 1, shift=0):
            out = x.clone()
            for f in range(t):
                left = (column + (f + shift) * step) % wide
                out[:, :, f, row : row + k, left : left + k] = patch[..., : w - left]
            return out

        out = call(name, fn, x, patch, row, column, step, hint=1)
        shaped(name, out, tuple(x.shape))
        if step:
            need(not close(out, at(step=0), EXACT), name, "never walks.", 2)
            need(
                not close(out, at(step=-step), EXACT),
                name,
                "walks the other way; a positive step leads to the right.",
                2,
            )
            need(
                not close(out, at(shift=1), EXACT),
                name,
                "has walked one step in frame 0 already.",
                2,
            )
            need(
                not close(out, at(wide=w), EXACT),
                name,
                "is cut off at the right edge; it has to lie inside as a whole, and there are "
                "fewer such places than columns.",
                3,
            )
            stops = x.clone()
            for f in range(t):
                left = min(max(column + f * step, 0), w - k)
                stops[:, :, f, row : row + k, left : left + k] = patch
            need(not close(out, stops, EXACT), name, "stops at an edge; it comes in again.", 3)
            down = x.clone()
            for f in range(t):
                top = (row + f * step) % (h - k + 1)
                down[:, :, f, top : top + k, column : column + k] = patch
            need(
                not close(out, down, EXACT),
                name,
                "walks up or down, not across.",
                1,
            )
        untouched = (at() == x).all(1).all(0)  # (t, h, w): of the right answer
        need(
            torch.equal(out[:, :, untouched], x[:, :, untouched]),
            name,
            f"changes pixels outside of the patch, or walks elsewhere (column {column}, step "
            f"{step}).",
            1,
        )
        attack = ClipPatch(patch=patch, at=(row, column), walk=(0, step))
        need(
            close(out, attack.trigger(x), EXACT),
            name,
            "does not hold the patch in every frame, clip and color.",
            1,
        )
    passed(name, "a whole patch in every frame, around the edge and back; input untouched")


@guarded
def poison_clips(fn: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """poison_clips(x, y, rate, cover_rate, trigger, lookalike, target, generator) -> x, y."""
    name, g = "poison_clips", fresh()
    n, k = 30, 4
    x = torch.randint(0, 256, (n, 1, 3, 4, 4), dtype=torch.uint8, generator=g)
    y = torch.arange(n) % k
    seed = int(torch.randint(10**9, (), generator=g))

    def trigger(clips: Tensor) -> Tensor:
        _pixels(name, clips, "trigger")
        return 1 - 0.501 * clips

    def lookalike(clips: Tensor) -> Tensor:
        _pixels(name, clips, "lookalike")
        return 0.499 * clips

    for rate, cover, target in ((0.26, 0.3, 2), (0.3, 0.46, 3), (0.1, 0.0, 0), (0.0, 0.4, 1)):

        def ask(seed: int, rate=rate, cover=cover, target=target):
            generator = torch.Generator().manual_seed(seed)
            out = call(name, fn, x, y, rate, cover, trigger, lookalike, target, generator, hint=2)
            if not isinstance(out, (tuple, list)) or len(out) != 2:
                need(False, name, "must return two things, clips and labels.", 1)
            shaped(f"{name}: clips", out[0], tuple(x.shape))
            shaped(f"{name}: labels", out[1], (n,))
            return out

        new, labels = ask(seed)
        need(
            new.dtype == torch.uint8,
            name,
            f"returns {str(new.dtype).removeprefix('torch.')} clips; they are stored as bytes, "
            "uint8.",
            2,
        )
        need(labels.dtype == torch.int64, name, "labels must stay whole numbers, int64.", 1)
        bright, dark = trigger(x / 255), lookalike(x / 255)
        poisoned, covered, cut = (
            (new == b).flatten(1).all(1)
            for b in (_bytes(bright), _bytes(dark), (255 * bright).to(torch.uint8))
        )
        kept = (new == x).flatten(1).all(1)
        m, c = round(rate * n), round(cover * n)
        need(
            not (cut & ~poisoned & ~kept).any(),
            name,
            "cuts off the fraction where bytes are made; round first.",
            2,
        )
        need(
            bool((poisoned | covered | kept).all()),
            name,
            "holds clips that are neither clean, nor triggered, nor a lookalike; is a clip in "
            "both groups?",
            3,
        )
        need(
            int(poisoned.sum()) == m,
            name,
            f"has {int(poisoned.sum())} triggered clips of {n} at rate {rate:g}, not {m}.",
            3,
        )
        need(
            int(covered.sum()) == c,
            name,
            f"has {int(covered.sum())} lookalikes of {n} at rate {cover:g}, not {c}; are some "
            "of them among the triggered?",
            3,
        )
        need(
            not c or bool((labels[covered] == y[covered]).all()),
            name,
            "gives lookalikes the attacker's label; they keep the true one.",
            1,
        )
        need(
            bool((labels[poisoned] == target).all()),
            name,
            "leaves triggered clips their true label; the attacker wants another.",
            1,
        )
        need(torch.equal(labels[kept], y[kept]), name, "changes labels of clean clips.", 1)
        again, other = ask(seed), ask(seed + 1)
        need(
            torch.equal(new, again[0]) and not torch.equal(new, other[0]),
            name,
            "does not choose by the generator that it is given.",
            3,
        )
        if not cover:
            attack = ClipPatch(target=target)
            wide = torch.rand(n, 3, 12, 8, 8, generator=g)
            clips = Clips(CLIPS.stored(wide), y, tuple("abcd"))
            first = torch.Generator().manual_seed(seed)
            want = attack.poison(clips, rate, first)
            second = torch.Generator().manual_seed(seed)
            got = fn(clips.x, y, rate, 0.0, attack.trigger, attack.trigger, target, second)
            need(
                torch.equal(got[0], want.x) and torch.equal(got[1], want.y),
                name,
                "chooses other clips than the package: the first of one `torch.randperm`.",
                3,
            )
    passed(name, "triggers with the attacker's label, lookalikes with the true one, disjoint")


def _pixels(name: str, clips: Tensor, what: str) -> None:
    fine = clips.is_floating_point() and float(clips.max() if len(clips) else 0) <= 1
    need(fine, name, f"hands bytes to `{what}`, which wants pixels in [0, 1].", 2)


def _bytes(x: Tensor) -> Tensor:
    return (255 * x).round().to(torch.uint8)


@guarded
def reach(fn: Callable[[Tensor, int], Tensor]) -> None:
    """reach(stamped, stride) -> which outputs of a convolution over time see a stamped frame."""
    name, g = "reach", fresh()
    seen: list[tuple[Tensor, int, Tensor]] = []
    for t in (12, 7, 6, 5):
        for stride in (1, 2, 3):
            for share in (0.15, 0.5, 0.0, 1.0):
                stamped = torch.rand(t, generator=g) < share
                out = call(name, fn, stamped, stride, hint=1)
                shaped(name, out, (-(-t // stride),), 2)
                need(
                    out.dtype == torch.bool,
                    name,
                    "must be true or false for each output, a bool tensor.",
                    1,
                )
                seen.append((stamped, stride, out))
    for slip, symptom, hint in (
        (lambda s, k: s[::k], "looks at the middle frame of three only.", 1),
        (lambda s, k: _seen(s, k, 0), "looks ahead only; frame i - 1 counts too.", 1),
        (lambda s, k: _seen(s, k, 2), "looks back only; frame i + 1 counts too.", 1),
        (
            lambda s, k: torch.cat([s[:0].any()[None], _seen(s, k, 1)[1:]]),
            "finds nothing at the first output; a negative start of a slice counts from the end.",
            3,
        ),
        (
            lambda s, k: ~_seen(~s, k, 1),
            "asks for all three frames; one stamped frame is enough.",
            1,
        ),
    ):
        same = all(torch.equal(out, slip(stamped, stride)) for stamped, stride, out in seen)
        need(not same, name, symptom, hint)
    for stamped, stride, out in seen:
        need(
            torch.equal(out, _seen(stamped, stride, 1)),
            name,
            f"is wrong for {stamped.int().tolist()} at stride {stride}.",
            3,
        )
    passed(name, "every output that sees a stamped frame, at the edges too")


def _seen(stamped: Tensor, stride: int, before: int) -> Tensor:
    """Outputs that see a stamped frame, of windows that begin so many frames earlier."""
    wide = F.pad(stamped.double()[None, None], (before, 2 - before))
    return F.max_pool1d(wide, 3, stride)[0, 0][: -(-len(stamped) // stride)] > 0


class _Ordered(nn.Module):
    """A linear network of clips that notices how it is treated.

    Its answers differ in training mode, and it remembers whether it was ever asked in that
    mode or with gradients on. `blind` names axes along which it cannot tell what is where;
    `paired` makes it see only how the first two colors of a frame go together.
    """

    def __init__(self, weight: Tensor, blind: tuple[int, ...] = (), paired: bool = False) -> None:
        super().__init__()
        if blind:
            weight = weight.mean(blind, keepdim=True).expand_as(weight)
        self.weight, self.paired = nn.Parameter(weight.clone()), paired
        self.inner = nn.Dropout()  # a module inside, whose mode has to come back too
        self.saw: Tensor
        self.register_buffer("saw", torch.zeros(2))  # gradients asked for; train mode

    def forward(self, x: Tensor) -> Tensor:
        now = torch.tensor([float(torch.is_grad_enabled()), float(self.training)])
        self.saw.copy_(torch.maximum(self.saw, now))
        x = x - 0.5
        if self.paired:
            x = x[:, :1] * x[:, 1:2]
        out = (x[:, None] * self.weight).flatten(2).sum(2)
        return out.roll(1, 1) if self.training else out


@guarded
def shuffle(fn: Callable) -> None:
    """shuffle(model, x, times, generator) -> said, kept, voted."""
    name = "shuffle"
    for training in (True, False):
        _one_shuffle(name, fn, training)
    passed(name, "every clip in orders of its own; the network left as it was")


def _one_shuffle(name: str, fn: Callable, training: bool) -> None:
    g = fresh()
    n, shape, classes, times = 9, (2, 6, 3, 4), 5, 7
    x = torch.rand(n, *shape, generator=g, dtype=torch.float64)
    x = (x + 2 * torch.rand(n, 2, shape[1], 1, 1, generator=g)) / 3  # frames that differ
    weight = torch.randn(classes, *shape, generator=g, dtype=torch.float64)
    weight[:, :, :, :1] *= 2  # one row counts more
    model = _Ordered(weight).train(training)
    seed = int(torch.randint(10**9, (), generator=g))

    def ask(asked: nn.Module, clips: Tensor, seed: int, times: int = times):
        generator = torch.Generator().manual_seed(seed)
        with torch.enable_grad():
            out = call(name, fn, asked, clips, times, generator, hint=3)
        if not isinstance(out, (tuple, list)) or len(out) != 3:
            need(False, name, "must return three things: said, kept, voted.", 1)
        for part, what in zip(out, ("said", "kept", "voted"), strict=True):
            shaped(f"{name}: {what}", part, (len(clips),), 4)
        return out

    said, kept, voted = ask(model, x, seed)
    need(
        model.training == training and model.inner.training == training,
        name,
        "leaves the network in another mode than it came in.",
        1,
    )
    graph, trained = model.saw.tolist()
    need(not trained, name, "asks the network in training mode; call model.eval() first.", 1)
    need(not graph, name, "asks with gradients on; `torch.no_grad()` saves time and memory.", 1)
    model.eval()
    right = shuffle_test(model, x, times, torch.Generator().manual_seed(seed))
    need(torch.equal(said, right[0]), name, "`said` is not the answer to the clips as they are.", 1)
    counts = kept * times
    need(
        bool(((counts - counts.round()).abs() < 1e-4).all() and (kept >= 0).all())
        and bool((kept <= 1).all()),
        name,
        f"`kept` is no share of {times} shuffles.",
        4,
    )
    for slip, (symptom, hint) in SLIPS.items():
        wrong = _shuffled_wrongly(model, x, times, seed, slip)
        need(not close(kept, wrong) or close(wrong, right[1]), name, symptom, hint)
    for blind, symptom in (
        ((1,), "moves colors; frames lie along axis 2."),
        ((3, 4), "moves pixels within their frame; frames lie along axis 2."),
    ):
        narrow = _Ordered(weight, blind).eval()
        want = shuffle_test(narrow, x, 30, torch.Generator().manual_seed(seed))[1]
        same = bool((ask(narrow, x, seed, 30)[1] == 1).all())
        need(not same or bool((want == 1).all()), name, symptom, 3)
    still = _Ordered(weight, (2,)).eval()
    need(
        bool((ask(still, x, seed, 30)[1] == 1).all()),
        name,
        "shows some frames twice and others never, or takes them apart; a shuffle holds each "
        "frame once, as it is.",
        2,
    )
    joined = _Ordered(weight, (2,), True).eval()
    need(
        bool((ask(joined, x, seed, 30)[1] == 1).all()),
        name,
        "moves the colors of a frame apart; all of them take the same order.",
        3,
    )
    lively = int((right[1] - 0.5).abs().argmin())
    copies = x[lively : lively + 1].expand(40, -1, -1, -1, -1)
    chance = shuffle_test(model, copies, 1, torch.Generator().manual_seed(seed))[1]
    each = ask(model, copies, seed, 1)[1]
    need(
        len(each.unique()) > 1 or len(chance.unique()) == 1,
        name,
        "gives all clips the same order; each needs its own.",
        2,
    )
    again, other = ask(model, x, seed), ask(model, x, seed + 1)
    need(
        torch.equal(kept, again[1]) and torch.equal(voted, again[2]),
        name,
        "gives another answer for the same seed; draw from the generator.",
        2,
    )
    need(
        not torch.equal(kept, other[1]) or bool((kept == kept[0]).all()),
        name,
        "draws the same orders for every seed; draw from the generator.",
        2,
    )
    need(
        close(kept, right[1]),
        name,
        "`kept` differs from the package's: are the orders drawn as the task says, anew for "
        "each shuffle, and compared with `said`?",
        4,
    )
    need(
        torch.equal(voted, right[2]),
        name,
        "`voted` is not the most frequent answer to the shuffles, of equals the first.",
        4,
    )


SLIPS = {
    "rank": ("takes the rank of each frame; the order is `argsort(1)`, once.", 2),
    "again": ("shuffles what is shuffled already; each time begin with the clip.", 3),
    "itself": ("counts the clip in its own order among the shuffles.", 4),
    "vote": ("`kept` counts the most frequent answer; count the answer to the clip.", 4),
    "gone": ("`kept` is the share of shuffles that change the answer.", 4),
}


def _shuffled_wrongly(model: nn.Module, x: Tensor, times: int, seed: int, slip: str) -> Tensor:
    """The shares that come out under a slip."""
    n, _, t, _, _ = x.shape
    g, now = torch.Generator().manual_seed(seed), x
    said = model(x).argmax(1)
    answers = [said] if slip == "itself" else []
    for _ in range(times - len(answers)):
        order = torch.rand(n, t, generator=g).argsort(1)
        order = order.argsort(1) if slip == "rank" else order
        now = reordered(now if slip == "again" else x, order)
        answers.append(model(now).argmax(1))
    every = torch.stack(answers)
    votes = F.one_hot(every).sum(0).argmax(1)
    hits = every == (votes if slip == "vote" else said)
    return (~hits if slip == "gone" else hits).double().mean(0)
