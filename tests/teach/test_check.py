"""Every exercise check accepts two right answers and names what is wrong in others."""

import math

import pytest
import torch

import answers_fip
import answers_fmp
import answers_inside
import answers_linf
import answers_mnp
import answers_poisoning
import answers_sharpness
import answers_showdown
import answers_welcome
from bdcourse.teach import check
from bdcourse.teach.check import CheckFailed

# --- right answers: the reference of the lesson, and one written differently ----------


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
    answers_poisoning,
    answers_inside,
    answers_linf,
    answers_fmp,
    answers_mnp,
    answers_fip,
    answers_sharpness,
    answers_showdown,
    answers_welcome,
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
    assert found - {"CheckFailed", "claim", "reveal", "stand_in"} == set(RIGHT) == set(WRONG)
    assert all(len(wrong) >= 3 for wrong in WRONG.values())


def test_claim_prints_a_constant_or_raises_with_the_value(capsys):
    check.claim("It holds.", 0.97, 0.9, 1)
    assert capsys.readouterr().out == "\u2713 It holds. Measured: 0.97.\n"
    check.claim("It holds.", 0.9734, 0.9, 1, "%")
    assert capsys.readouterr().out == "\u2713 It holds. Measured: 97.3%.\n"
    with pytest.raises(AssertionError, match="measured 50%, expected 90% to 100%"):
        check.claim("It holds.", 0.5, 0.9, 1, "%")
    with pytest.raises(AssertionError, match="measured 0.5, expected 0.9 to 1"):
        check.claim("It holds.", 0.5, 0.9, 1)
    with pytest.raises(AssertionError):
        check.claim("It holds.", float("nan"), 0, 1)


def test_reveal_says_how_far_apart(capsys):
    check.reveal(30, 100, "%")
    check.reveal(7, 7)
    out = capsys.readouterr().out
    assert "70% apart" in out and "spot on" in out


def test_equal_points_on_the_front_are_named_whatever_is_drawn():
    for _ in range(100):  # a pair of random points is equal once in 25
        with pytest.raises(CheckFailed, match="equal points beat"):
            check.front(answers_showdown.front_without_ties)
