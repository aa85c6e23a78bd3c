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
import answers_training
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


# Checks of functions that change their argument and return nothing.
IN_PLACE = {"switch_off"}

RIGHT = {
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
    answers_training,
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
