"""Whatever a reader writes, a check answers with one sentence of its own."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from bdcourse.teach import check
from bdcourse.teach.check import CheckFailed
from helpers import ROOT

NAMES = sorted(set(check.__all__) - {"CheckFailed", "claim", "reveal", "stand_in"})


class Odd:
    """Answers no question that a tensor would."""


def recursion(*args):
    return recursion(*args)


def generator(*args):
    yield args


async def coroutine(*args):
    return args


def stops(*args):
    raise SystemExit


def several(*args):
    raise ValueError("First this. Then\nthat.")


def shrinks(*args):
    for a in args:
        if isinstance(a, torch.Tensor):
            a.resize_(0)
    return torch.zeros(2)


NO_FUNCTIONS = (None, 3, "sigma", torch.zeros(2), [], Odd, Odd())
FUNCTIONS = (recursion, generator, coroutine, stops, several, shrinks, lambda: 0)
RETURNED = (
    True,
    3,
    -1.5,
    float("nan"),
    float("inf"),
    "no",
    b"x",
    [],
    {},
    (),
    Odd(),
    Odd,
    np.zeros(3),
    np.float32(1),
    torch.tensor(1.0),
    torch.tensor([]),
    torch.zeros(3),
    torch.zeros(3, 3, dtype=torch.bool),
    torch.full((2, 2), torch.nan),
    torch.zeros(2, dtype=torch.complex64),
    torch.zeros(2, device="meta"),
    torch.eye(3).to_sparse(),
    torch.tensor(1.0, requires_grad=True),
    (None, None),
    (torch.zeros(1),) * 2,
    (1, 2, 3),
    ("a", "b", "c"),
    [torch.zeros(3, 4)],
    lambda: 0,
)


def sentence(name, answer):
    with pytest.raises(CheckFailed) as caught:
        getattr(check, name)(answer)
    error = caught.value
    text = str(error)
    assert text.startswith(f"{name}: ") and "\n" not in text
    assert re.search(r"(\.|\(hint \d\))$", text), text
    assert ". " not in text.replace(". (hint", " (hint"), f"several: {text}"
    assert error.__suppress_context__ and error._render_traceback_() == [f"\u2717 {text}"]
    return text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_any_answer_gets_one_sentence(name):
    for answer in NO_FUNCTIONS:
        assert "must be a function, not" in sentence(name, answer)
    for answer in FUNCTIONS:
        sentence(name, answer)
    for value in RETURNED:
        sentence(name, lambda *args, value=value: value)
    for kind in (torch.zeros_like, lambda x: x[..., :1], lambda x: x.double() / 0):
        sentence(name, lambda *args, kind=kind: kind(first(args)))


def first(args):
    return next((a for a in args if isinstance(a, torch.Tensor)), torch.zeros(1))


def test_an_error_of_the_reader_is_named_with_its_line():
    code = """def helper(x):
    return x.nothing

def stamp(x, kind, pattern):
    return helper(x)"""
    space = {}
    exec(compile(code, "a cell", "exec"), space)
    text = sentence("stamp", space["stamp"])
    assert text == (
        "stamp: raises AttributeError in line 2: 'Tensor' object has no attribute 'nothing'."
    )
    assert sentence("stamp", several) == (
        f"stamp: raises ValueError in line {several.__code__.co_firstlineno + 1}: "
        "First this; Then that."
    )
    assert "in line" not in sentence("stamp", lambda: 0)  # it was never entered

    def unsupported(*args):
        raise NotImplementedError('"addmm" not implemented for Bool')  # as PyTorch does

    with pytest.raises(CheckFailed, match="raises NotImplementedError in line .*Bool"):
        check.stamp(unsupported)


@pytest.mark.slow
def test_notebooks_show_the_sentence_and_no_line_of_the_course(tmp_path):
    code = "from bdcourse import check\nprint('here')\ncheck.asr(lambda *a: 2)"
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--colors=NoColor", "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"IPYTHONDIR": str(tmp_path)},
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert (done.stdout + done.stderr).strip() == (
        "here\n\u2717 asr: must be a share in 0..1, not a count or percentage. (hint 1)"
    )


@pytest.mark.parametrize("guess", ["50", None, ..., [1], float("nan")])
def test_a_guess_that_is_no_number_is_named(guess, capsys):
    if guess is None:  # not made yet: the truth stays hidden
        check.reveal(guess, 3)
        assert "Your guess first" in (said := capsys.readouterr().out) and "3" not in said
    else:
        with pytest.raises(ValueError, match=r"^the guess must be a finite number, not"):
            check.reveal(guess, 3)
    with pytest.raises(ValueError, match=r"^the truth must be a finite number, not"):
        check.reveal(3, guess)


@pytest.mark.parametrize("value", ["1", None, [1], 1j, torch.ones(2), np.ones(2)])
def test_a_claim_about_no_number_is_named(value):
    with pytest.raises(ValueError, match=r"^a claim needs one number, not .*\.$"):
        check.claim("It holds.", value, 0, 1)
