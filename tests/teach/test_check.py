"""Every exercise check accepts two right answers and names what is wrong in others."""

import pytest

import answers_clips
import answers_clp
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

RIGHT: dict = {}
WRONG: dict = {}

LESSONS = (
    answers_poisoning,
    answers_training,
    answers_inside,
    answers_linf,
    answers_clp,
    answers_fmp,
    answers_mnp,
    answers_fip,
    answers_sharpness,
    answers_showdown,
    answers_clips,
    answers_welcome,
)
# Slips of which nothing comes back from the process that a submission runs in.
ONLY_HERE = (
    answers_welcome.gradients_off,
    answers_clp.judged_in_training,
    answers_poisoning.other_draws,
    answers_fip.fip_short_walk,
    answers_fip.fip_long_walk,
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
    assert "70% apart" in out and "spot on" in out and "in percent" not in out
    check.reveal(0.95, 100, "%")
    assert "is 0.95 meant as 95?" in capsys.readouterr().out
