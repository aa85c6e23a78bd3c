"""Every exercise check accepts two right answers and names what is wrong in others."""

import math

import pytest
import torch

import answers_fip
import answers_fmp
import answers_inside
import answers_linf
import answers_mnp
import answers_sharpness
import answers_showdown
from bdcourse.teach import check
from bdcourse.teach.check import CheckFailed

# --- right answers: the reference of the lesson, and one written differently ----------


def poison(x, y, rate, target, trigger, generator):
    chosen = torch.randperm(len(x), generator=generator)[: round(rate * len(x))]
    x, y = x.clone(), y.clone()
    role = torch.zeros(len(x), dtype=torch.int8)
    x[chosen] = trigger(x[chosen])
    y[chosen] = target
    role[chosen] = 1
    return x, y, role


def poison_by_mask(x, y, rate, target, trigger, generator):
    score = torch.rand(len(x), generator=generator)
    role = score.argsort().argsort() < round(rate * len(x))
    stamped = torch.where(role.view(-1, 1, 1, 1), trigger(x), x)
    return stamped, torch.where(role, target, y), role.long()


def stamp(x, patch, row, col):
    out = x.clone()
    out[..., row : row + patch.shape[-2], col : col + patch.shape[-1]] = patch
    return out


def stamp_by_padding(x, patch, row, col):
    h, w = x.shape[-2:]
    ph, pw = patch.shape[-2:]
    room = (col, w - col - pw, row, h - row - ph)
    mask = torch.nn.functional.pad(torch.ones(ph, pw), room)
    return (1 - mask) * x + mask * torch.nn.functional.pad(patch, room)


def lost(pad, start, size, side):
    gone = sum(
        all(not 0 <= start + d + pad - k < side for d in range(size)) for k in range(2 * pad + 1)
    )
    return 1 - (1 - gone / (2 * pad + 1)) ** 2


def lost_in_closed_form(pad, start, size, side):
    gone = max(0, pad - (side - start) + 1) + max(0, pad - (start + size) + 1)
    q = gone / (2 * pad + 1)
    return 2 * q - q * q


def largest_z_by_trying(n):
    s = torch.zeros(n, dtype=torch.float64)
    s[0] = 1
    return ((1 - s.mean()) / s.std()).item()


def switch_off(bn, channels):
    with torch.no_grad():
        bn.weight[channels] = 0
        bn.bias[channels] = 0


def switch_off_by_mask(bn, channels):
    keep = torch.ones_like(bn.weight)
    keep[channels] = 0
    bn.weight.data *= keep
    bn.bias.data *= keep


def wave(x, delta, f, axis=-1):
    n = x.shape[axis]
    return delta * torch.sin(2 * math.pi * f * torch.arange(n) / n)


def bend(grid, strength, size, flip=True, clamp=True, divide=True):
    up = torch.nn.functional.interpolate(
        grid[None], (size, size), mode="bicubic", align_corners=True
    ).permute(0, 2, 3, 1)
    at = torch.linspace(-1, 1, size)
    pair = torch.meshgrid(at, at, indexing="ij")
    flow = torch.stack(pair[::-1] if flip else pair, -1)[None]
    flow = flow + strength * up / (size if divide else 1)
    return flow.clamp(-1, 1) if clamp else flow


def bend_by_affine(grid, strength, size):
    eye = torch.eye(2, 3)[None]
    flow = torch.nn.functional.affine_grid(eye, (1, 1, size, size), align_corners=True)
    up = torch.nn.functional.interpolate(
        (strength / size * grid)[None], size=size, mode="bicubic", align_corners=True
    )
    return torch.clamp(flow + up.movedim(1, 3), min=-1.0, max=1.0)


def noise_mode(x, y, target, p, c, trigger, noisy):
    batch = torch.cat([trigger(x[:p]), noisy(x[p : p + c]), x[p + c :]])
    labels = torch.cat([torch.full_like(y[:p], target), y[p:]])
    role = torch.zeros_like(y)
    role[:p], role[p : p + c] = 1, 2
    return batch, labels, role


def noise_mode_by_where(x, y, target, p, c, trigger, noisy):
    i = torch.arange(len(x))
    role = (i < p + c).int() * 2 - (i < p).int()
    r = role.view(-1, 1, 1, 1)
    batch = torch.where(r == 1, trigger(x), torch.where(r == 2, noisy(x), x))
    return batch, torch.where(role == 1, target, y), role


def noise_mode_with(part):
    """One of the three outputs replaced."""

    def answer(x, y, target, p, c, trigger, noisy):
        out = list(noise_mode(x, y, target, p, c, trigger, noisy))
        at, value = part(x, y, p, c, trigger, noisy)
        out[at] = value
        return tuple(out)

    return answer


def rms(d):
    return d.square().flatten(1).mean(1).sqrt()


# Checks of functions that change their argument and return nothing.
IN_PLACE = {"switch_off"}

RIGHT = {
    "stripes": [
        lambda x, d, f: (x + wave(x, d, f)).clamp(0, 1),
        lambda x, d, f: torch.stack(
            [
                (x[..., j] + d * math.sin(2 * math.pi * j * f / x.shape[-1])).clamp(0, 1)
                for j in range(x.shape[-1])
            ],
            -1,
        ),
    ],
    "bend": [bend, bend_by_affine],
    "noise_mode": [noise_mode, noise_mode_by_where],
    "own_trigger": [
        lambda x, m, p: x + m * (p - x),
        lambda x, m, p: (1 - m) * x + m * p,
    ],
    "diversity": [
        lambda a, b, p, q: (rms(a - b) / (rms(p - q) + 1e-7)).mean(),
        lambda a, b, p, q: (
            (
                (a - b).flatten(1).norm(dim=1)
                / ((p - q).flatten(1).norm(dim=1) + 1e-7 * p[0].numel() ** 0.5)
            ).sum()
            / len(a)
        ),
    ],
    "take": [
        lambda x, y, i: (x[i].float() / 255, y[i]),
        lambda x, y, i: (x.double()[i] * (1 / 255), y.index_select(0, i)),
    ],
    "stamp": [stamp, stamp_by_padding],
    "blend": [lambda x, q, a: (1 - a) * x + a * q, lambda x, q, a: x.lerp(q, a)],
    "poison": [poison, poison_by_mask],
    "lost": [lost, lost_in_closed_form],
    "sigma": [
        lambda w: torch.linalg.matrix_norm(w.flatten(2), ord=2),
        lambda w: torch.stack([torch.linalg.svdvals(k.flatten(1))[0] for k in w]),
    ],
    "score": [
        lambda s, g, v, e: s * g.abs() / (v + e).sqrt(),
        lambda s, g, v, e: (s**2 * g**2 / (v + e)) ** 0.5,
    ],
    "outliers": [
        lambda s, u: s > s.mean() + u * s.std(),
        lambda s, u: (s - s.mean()) > u * s.var().sqrt(),
    ],
    "largest_z": [lambda n: (n - 1) / math.sqrt(n), largest_z_by_trying],
    "switch_off": [switch_off, switch_off_by_mask],
}

# --- wrong answers: (what a student might write, what the message must say) -----------


def in_place(x, patch, row, col):
    x[..., row : row + patch.shape[-2], col : col + patch.shape[-1]] = patch
    return x


def poison_keeps_labels(x, y, rate, target, trigger, generator):
    px, _, role = poison(x, y, rate, target, trigger, generator)
    return px, y.clone(), role


def poison_first_rows(x, y, rate, target, trigger, generator):
    n = round(rate * len(x))
    px, py = x.clone(), y.clone()
    px[:n], py[:n] = trigger(x[:n]), target
    return px, py, torch.arange(len(x)) < n


def poison_all_labels(x, y, rate, target, trigger, generator):
    px, _, role = poison(x, y, rate, target, trigger, generator)
    return px, torch.full_like(y, target), role


def poison_with_repeats(x, y, rate, target, trigger, generator):
    n = round(rate * len(x))
    chosen = torch.randint(len(x), (n,), generator=generator)
    px, py, role = x.clone(), y.clone(), torch.zeros(len(x))
    px[chosen], py[chosen], role[chosen] = trigger(x[chosen]), target, 1
    return px, py, role


def weight_only(bn, channels):
    with torch.no_grad():
        bn.weight[channels] = 0


def everything_off(bn, channels):
    with torch.no_grad():
        bn.weight.zero_()
        bn.bias.zero_()


def without_no_grad(bn, channels):
    bn.weight[channels] = 0
    bn.bias[channels] = 0


def statistics_too(bn, channels):
    switch_off(bn, channels)
    bn.running_mean[channels] = 0


WRONG = {
    "stripes": [
        (lambda x, d, f: (x + wave(x, d, f, -2)[:, None]).clamp(0, 1), "down the rows"),
        (lambda x, d, f: x + wave(x, d, f), r"leaves \[0, 1\]"),
        (lambda x, d, f: (x + 255 * wave(x, d, f)).clamp(0, 1), "is not x"),
        (lambda x, d, f: (x + wave(x, d, 1)).clamp(0, 1), "is not x"),
    ],
    "bend": [
        (lambda *a: bend(*a, flip=False), "x, the column, first"),
        (lambda *a: bend(*a, clamp=False), "clamp"),
        (lambda *a: bend(*a, divide=False), "not divided"),
        (lambda g, s, n: bend(g.flip(0), s, n), "is not identity"),
        (lambda g, s, n: bend(g, s, n)[0], "shape"),
        (lambda g, s, n: bend(g, s + 0.5, n), "identity grid"),
    ],
    "noise_mode": [
        (noise_mode_with(lambda x, y, p, c, t, n: (0, x)), "lack the trigger"),
        (
            noise_mode_with(lambda x, y, p, c, t, n: (0, torch.cat([t(x[: p + c]), x[p + c :]]))),
            "noisy warp",
        ),
        (noise_mode_with(lambda x, y, p, c, t, n: (1, y)), "kept their label"),
        (
            noise_mode_with(lambda x, y, p, c, t, n: (1, torch.cat([0 * y[: p + c], y[p + c :]]))),
            "the point of them",
        ),
        (
            noise_mode_with(lambda x, y, p, c, t, n: (2, (torch.arange(len(y)) < p + c).long())),
            "2 for noise mode",
        ),
        (lambda *a: noise_mode(*a)[:2], "x, y, role"),
    ],
    "own_trigger": [
        (lambda x, m, p: x + m * p, "on top"),
        (lambda x, m, p: m * x + (1 - m) * p, "where the mask is 0"),
        (lambda x, m, p: x + (m > 0.5) * (p - x), "is not"),
        (lambda x, m, p: (x + m * (p - x)).mean(1, keepdim=True), "shape"),
    ],
    "diversity": [
        (lambda a, b, p, q: (rms(p - q) / (rms(a - b) + 1e-7)).mean(), "upside down"),
        (
            lambda a, b, p, q: rms(a - b).mean() / (rms(p - q).mean() + 1e-7),
            "each pair",
        ),
        (
            lambda a, b, p, q: (rms(a - b) ** 2 / (rms(p - q) ** 2 + 1e-7)).mean(),
            "lacks the root",
        ),
        (lambda a, b, p, q: (rms(a - b) / rms(p - q)).mean(), "infinite"),
        (lambda a, b, p, q: rms(a - b) / (rms(p - q) + 1e-7), "one number"),
    ],
    "take": [
        (lambda x, y, i: (x[i], y[i]), "floats"),
        (lambda x, y, i: (x[i].float(), y[i]), r"\[0, 1\]"),
        (lambda x, y, i: (x[i].float() / 255, y[: len(i)]), "labels"),
        (lambda x, y, i: (x[i].float() / 256, y[i]), "divided by 255"),
        (lambda x, y, i: x[i].float() / 255, "two tensors"),
    ],
    "stamp": [
        (in_place, "in place"),
        (lambda x, p, r, c: stamp(x, p, r - 1, c), "not at"),
        (lambda x, p, r, c: stamp(torch.zeros_like(x), p, r, c), "outside"),
        (lambda x, p, r, c: stamp(x, p, c, r), "exchanged"),
    ],
    "blend": [
        (lambda x, q, a: x + a * q, "without weakening"),
        (lambda x, q, a: a * x + (1 - a) * q, "share of the picture"),
        (lambda x, q, a: ((1 - a) * x + a * q).mean(0), "shape"),
        (lambda x, q, a: (x + q) / 2, "weighted mean"),
    ],
    "poison": [
        (poison_keeps_labels, "kept its label"),
        (poison_first_rows, "always chooses the same"),
        (poison_all_labels, "clean image got a new label"),
        (poison_with_repeats, "expected"),
        (lambda x, y, *rest: poison(x, y, *rest)[:2], "x, y, role"),
    ],
    "lost": [
        (lambda *a: 1 - math.sqrt(1 - lost(*a)), "one axis"),
        (lambda *a: (1 - math.sqrt(1 - lost(*a))) ** 2, "both axes"),
        (lambda p, s, k, n: lost(p, s, 1, n), "enumeration"),
        (lambda *a: torch.tensor([0.1, 0.2]), "not a number"),
    ],
    "sigma": [
        (lambda w: w.flatten(1).norm(dim=1), "Frobenius"),
        (lambda w: torch.linalg.matrix_norm(w.flatten(1), ord=2), "shape"),
        (lambda w: torch.linalg.svdvals(w.flatten(2))[:, -1], "wrong"),
    ],
    "score": [
        (lambda s, g, v, e: s * g / (v + e).sqrt(), "negative"),
        (lambda s, g, v, e: s * g.abs() / (v + e), "standard deviation"),
        (lambda s, g, v, e: s * g.abs() / v.sqrt(), "eps"),
    ],
    "outliers": [
        (lambda s, u: (s - s.mean()).abs() > u * s.std() / 1, "below the mean"),
        (lambda s, u: s > s.mean() + u * s.std(unbiased=False), "n - 1"),
        (lambda s, u: s >= s.mean() + u * s.std(), "equals"),
        (lambda s, u: (s > s.mean() + u * s.std()).float(), "true and false"),
        (lambda s, u: s > u * s.std(), "flags"),
    ],
    "largest_z": [
        (lambda n: math.sqrt(n - 1), "n below the root"),
        (lambda n: math.sqrt(n), "can reach"),
        (lambda n: float(n), "can reach"),
    ],
    "switch_off": [
        (weight_only, "constant"),
        (everything_off, "other channels"),
        (without_no_grad, "no_grad"),
        (statistics_too, "running statistics"),
        (lambda bn, channels: None, "changes nothing"),
    ],
}


LESSONS = (
    answers_inside,
    answers_linf,
    answers_fmp,
    answers_mnp,
    answers_fip,
    answers_sharpness,
    answers_showdown,
)
for lesson in LESSONS:
    assert not RIGHT.keys() & lesson.RIGHT.keys(), "a name twice"
    RIGHT |= lesson.RIGHT
    WRONG |= lesson.WRONG


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass_every_time(name, capsys):
    for answer in RIGHT[name]:
        for _ in range(5):  # inputs are fresh each time
            getattr(check, name)(answer)
    (line,) = set(capsys.readouterr().out.splitlines())  # one, and constant, for nbval
    assert line.startswith(f"\u2713 {name}: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "k"), [(name, k) for name in WRONG for k in range(len(WRONG[name]))]
)
def test_wrong_answers_fail_for_the_right_reason(name, k):
    answer, reason = WRONG[name][k]
    with pytest.raises(CheckFailed, match=reason):
        for _ in range(3):  # a wrong answer may agree by chance once
            getattr(check, name)(answer)


@pytest.mark.parametrize("name", RIGHT)
def test_stub_and_missing_return_are_named(name):
    def stub(*args):
        raise NotImplementedError

    with pytest.raises(CheckFailed, match="not written yet"):
        getattr(check, name)(stub)
    if name not in IN_PLACE:
        with pytest.raises(CheckFailed, match="returns None"):
            getattr(check, name)(lambda *args: None)


def test_every_check_of_the_module_is_tested_here():
    found = set(check.__all__)
    assert found - {"CheckFailed", "claim", "reveal"} == set(RIGHT) == set(WRONG)
    assert all(len(wrong) >= 3 for wrong in WRONG.values())


def test_claim_prints_a_constant_or_raises_with_the_value(capsys):
    check.claim("It holds.", 0.97, 0.9, 1)
    assert capsys.readouterr().out == "It holds.\n"
    with pytest.raises(AssertionError, match="measured 0.5, expected 0.9 to 1"):
        check.claim("It holds.", 0.5, 0.9, 1)
    with pytest.raises(AssertionError):
        check.claim("It holds.", float("nan"), 0, 1)


def test_reveal_says_how_far_apart(capsys):
    check.reveal(30, 100, "%")
    check.reveal(7, 7)
    out = capsys.readouterr().out
    assert "70 % apart" in out and "spot on" in out


def test_equal_points_on_the_front_are_named_whatever_is_drawn():
    for _ in range(100):  # a pair of random points is equal once in 25
        with pytest.raises(CheckFailed, match="equal points beat"):
            check.front(answers_showdown.front_without_ties)
