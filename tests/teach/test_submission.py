"""A submission's process: what crosses to it and back, and what it cannot do."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("IPython")

import hostile
import test_check
import test_sweep_check
from assignments import BESIDE
from bdcourse.teach import check, confine, guarantees, labs
from bdcourse.teach import nbgrader_course as course
from bdcourse.teach.check import CheckFailed
from bdcourse.teach.submission import Gone, NotStarted, Submission
from helpers import ROOT

pytestmark = pytest.mark.slow
confined = pytest.mark.skipif(bool(confine.unconfined()), reason="this system confines nobody")


@pytest.fixture(scope="module")
def student():
    with Submission(BESIDE, patience=60) as process:
        said = process.run(
            f"import sys; sys.path += {BESIDE}\nimport torch, os\n"
            "import test_check, test_sweep_check"
        )
        assert "error" not in said, said
        yield process


def answer(student, name, source):
    """The submission's function of this name, after a cell that defines it."""
    said = student.run(source)
    assert "error" not in said, said
    student.begin()
    return student.find(name)


# --- Checks are the same through a pipe ------------------------------------------


@pytest.mark.parametrize("name", test_check.RIGHT)
def test_right_answers_pass(student, name, capsys):
    for k in range(len(test_check.RIGHT[name])):
        fn = answer(student, name, f"{name} = test_check.RIGHT[{name!r}][{k}]")
        course.examine(name, fn, 2)


@pytest.mark.parametrize("name", test_check.WRONG)
def test_wrong_answers_fail_for_their_reason(student, name):
    for k, (wrong, reason) in enumerate(test_check.WRONG[name]):
        if wrong in test_check.ONLY_HERE:
            continue
        fn = answer(student, name, f"{name} = test_check.WRONG[{name!r}][{k}][0]")
        with pytest.raises(CheckFailed, match=reason):
            course.examine(name, fn, 3)


@pytest.mark.parametrize("name", test_sweep_check.NAMES)
def test_any_answer_gets_one_sentence(student, name):
    """Also such values and errors as have no counterpart here."""
    fn = answer(
        student,
        name,
        f"""{name} = lambda *a: ANSWERS[k](a)
ANSWERS = [lambda a, v=v: v for v in test_sweep_check.RETURNED]
ANSWERS += [lambda a, f=f: f(*a) for f in test_sweep_check.FUNCTIONS]
def choose(i):
    global k
    k = i
    return len(ANSWERS)""",
    )
    choose, k, n = student.find("choose"), 0, 1
    while k < n:
        n = choose(k)
        test_sweep_check.sentence(name, fn)
        k += 1
    for i in range(len(test_sweep_check.NO_FUNCTIONS)):
        fn = answer(student, name, f"{name} = test_sweep_check.NO_FUNCTIONS[{i}]")
        assert "must be a function, not" in test_sweep_check.sentence(name, fn)


def test_an_error_is_named_with_its_line(student):
    source = "def asr(said, y, target):\n    a = said\n    return a.nothing"
    with pytest.raises(CheckFailed) as caught:
        check.asr(answer(student, "asr", source))
    assert str(caught.value) == (
        "asr: raises AttributeError in line 3: 'Tensor' object has no attribute 'nothing'."
    )
    with pytest.raises(NameError, match="^name 'nowhere' is not defined$"):
        student.find("nowhere")


# --- What crosses ----------------------------------------------------------------

# The same in every process: these values name the tests.
NOISE = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, -(2**40), 0.1, float("inf"), "a\nb"),
        *((1, (2.5, "x")), [1, [True]], {"a": 1, "b": (2,)}),
        *(torch.tensor(3.5), torch.zeros(0, 3), torch.arange(6), NOISE.T),
        *(NOISE[0] > 0, NOISE[1].half(), NOISE[2].double()),
        NOISE[:2, :2] * (1 + 1j),
        torch.tensor([1.5, -2]).bfloat16(),
        torch.tensor([0, 255], dtype=torch.uint8),
    ],
    ids=lambda v: f"{type(v).__name__}-{v}"[:30],
)
def test_a_value_comes_back_as_it_went(student, value):
    back = answer(student, "same", "def same(x):\n    return x")(value)
    assert type(back) is type(value)
    if isinstance(value, torch.Tensor):
        assert back.dtype == value.dtype and torch.equal(back, value)
    else:
        assert back == value


def test_a_repaired_copy_of_a_network_comes_back(student):
    source = """import copy
def mended(model, how):
    model = copy.deepcopy(model) if how == "copy" else model
    with torch.no_grad():
        model[0].weight += 1
    if how == "another":
        return torch.nn.Linear(2, 2)
    return model.eval()"""
    fn = answer(student, "mended", source)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).train()
    before = model[0].weight.detach().clone()
    out = fn(model, "copy")
    assert isinstance(out, torch.nn.Sequential) and out is not model
    assert torch.equal(out[0].weight, before + 1) and torch.equal(model[0].weight, before)
    assert not out.training and model.training
    assert fn(model, "itself") is model and torch.equal(model[0].weight, before + 1)
    assert not isinstance(fn(model, "another"), torch.nn.Module)


def test_gradients_cross(student):
    fn = answer(student, "cube", "def cube(x, ys):\n    return x ** 3 * ys[0], 2 * ys[1]")
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    ys = [torch.tensor([3.0, 4.0], requires_grad=True), torch.ones(2)]
    a, b = fn(x, ys)
    assert a.requires_grad and not b.requires_grad
    dx, dy = torch.autograd.grad(a.sum(), (x, ys[0]))
    assert torch.equal(dx, 3 * x.detach() ** 2 * ys[0].detach())
    assert torch.equal(dy, x.detach() ** 3)
    other = fn(2 * x.detach().requires_grad_(), ys)[0]  # the first one still has its own
    (again,) = torch.autograd.grad(fn(x, ys)[0].sum(), x)
    assert torch.equal(again, dx) and not torch.equal(other, a)


def test_what_is_done_to_an_argument_is_done_here(student):
    fn = answer(
        student,
        "work",
        """def work(x, model, g, ask):
    x += 1
    with torch.no_grad():
        model.weight.zero_()
    model.eval()
    inside = ask()
    model(torch.ones(1, 2)).sum().backward()
    return torch.rand(2, generator=g), inside""",
    )
    x, model, g = (
        torch.zeros(3),
        torch.nn.Linear(2, 1),
        torch.Generator().manual_seed(5),
    )
    drawn, inside = fn(x, model, g, lambda: float(model.weight.detach().abs().sum()))
    same = torch.Generator().manual_seed(5)
    assert torch.equal(x, torch.ones(3)) and inside == 0 and not model.weight.any()
    assert torch.equal(drawn, torch.rand(2, generator=same))
    assert torch.equal(g.get_state(), same.get_state())
    assert not model.training and torch.equal(model.weight.grad, torch.ones(1, 2))


def test_functions_of_a_test_run_here_and_their_errors_come_back(student):
    fn = answer(student, "twice", "def twice(f, x):\n    return f(x), f(x, y=2)")
    calls = []

    def f(x, y=1):
        calls.append(os.getpid())
        return x * y

    assert fn(f, 3) == (3, 6) and set(calls) == {os.getpid()}
    mine = KeyError("mine")

    def raises(*args):
        raise mine

    with pytest.raises(KeyError) as caught:
        fn(raises, 3)
    assert caught.value is mine  # not a likeness of it
    fn = answer(
        student,
        "careful",
        """def careful(f):
    try:
        f()
    except KeyError as e:
        return str(e)""",
    )
    assert fn(raises) == "'mine'"


def test_prints_are_heard_and_kept_short(student):
    said = student.run("import sys\nprint('a' * 10**6)\nprint('b', file=sys.stderr)\n7")
    assert len(said["printed"]) == 20_000 and said["complained"] == "b\n"
    fn = answer(student, "loud", "def loud():\n    print('here')\n    return 1")
    assert fn() == 1 and student.printed == "here\n"
    said = student.run("1/0")
    assert said["error"][0] == "ZeroDivisionError" and "line 1" in str(said["error"])


def test_a_process_that_cannot_start_says_why(monkeypatch, tmp_path):
    broken = tmp_path / "launch.py"
    broken.write_text("raise OSError('no room')")
    monkeypatch.setattr("bdcourse.teach.launch.__file__", str(broken))
    with pytest.raises(NotStarted, match="did not start .*no room"):
        Submission()


# --- What it cannot do -----------------------------------------------------------


@confined
def test_what_is_promised_holds():
    before = dict.fromkeys(guarantees.PROMISES)
    assert guarantees.broken() == {p: [] for p in before}


def test_the_attempts_would_succeed_elsewhere(tmp_path):
    """So that a promise holds because it is refused, and not for a slip of the pen."""
    with guarantees.targets() as about:
        lines = [
            line for text in guarantees.PROMISES.values() for line in text.strip().splitlines()
        ]
        deadly = ("os.execv", "os.kill(-1", "killpg")
        code = (
            guarantees.TRY
            + f"""
os.environ["BDCOURSE_PROBE"] = "secret"
os.chdir({str(tmp_path)!r})
for line in {[line for line in lines if not line.startswith(deadly)]!r}:
    me = os.getpid()
    failed = attempt(line, **{about!r})
    if os.getpid() != me:
        os._exit(0)
    if failed:
        print(line)
"""
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        failed = done.stdout.splitlines()
        assert done.returncode == 0 and len(lines) > 45, done.stderr
        # Some need rights, files or a kernel that not everybody has.
        rare = (
            "setxattr",
            "NETLINK",
            "unshare",
            "keyctl",
            "RLIMIT_AS",
            "ptrace",
            "process_vm_readv",
            "INET6",
            "environ",
            "fd/0",
        )
        assert not [line for line in failed if not any(r in line for r in rare)], failed


@confined
def test_a_table_says_what_holds(capsys):
    from bdcourse.__main__ import main

    assert main(["labs", "confined"]) == 0
    said = capsys.readouterr().out
    assert said.count("| yes |") == len(guarantees.PROMISES) and "| no |" not in said
    found = {p: [] for p in guarantees.PROMISES}
    found["starts no process and no program"] = ["os.fork()"]
    assert "| starts no process and no program | no |" in guarantees.promises(found)


@confined
@pytest.mark.parametrize("what", hostile.ENDS)
def test_who_ends_or_floods_the_process_harms_nobody(what):
    source, reason = hostile.ENDS[what]
    scratch = []
    with Submission(patience=4, end=time.monotonic() + 90) as student:
        scratch.append(student.scratch)
        said = student.run("import os, torch\n" + source)
        assert "error" not in said, said
        f = student.find("f")
        args = (lambda: 1,) if "def f(ask)" in source else ()
        try:
            out = f(*args)
        except (Gone, Exception) as e:
            assert re.search(reason or "nothing", f"{type(e).__name__}: {e}"), e
        else:
            assert not reason and type(out) in (int, float, torch.Tensor)
    assert not Path(scratch[0]).exists() and student.process.returncode is not None


@confined
def test_a_flood_of_files_is_stopped(monkeypatch):
    monkeypatch.setattr("bdcourse.teach.submission.SPACE", 20 << 20)
    with Submission(patience=60) as student:
        student.run(
            "def f():\n    i = 0\n    while True:\n        i += 1\n"
            "        open(str(i), 'wb').write(bytes(2 ** 22))"
        )
        with pytest.raises(Gone, match="filled the disk"):
            student.find("f")()
    assert not Path(student.scratch).exists()


def test_nothing_outside_decides_what_is_imported(tmp_path, monkeypatch):
    for name in ("bdcourse", "torch", "IPython"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path / "sitecustomize.py"))
    monkeypatch.chdir(tmp_path)
    with Submission() as student:
        student.run("import bdcourse, sys\nwhere, path = bdcourse.__file__, sys.path")
        assert student.find("where") == str(ROOT / "bdcourse" / "__init__.py")
        path = student.find("path")
        assert str(tmp_path) not in path and path[0] not in ("", ".")


def test_every_solution_of_every_lesson_passes_from_its_own_cells():
    """As the lessons have them, behind their set-up."""
    import nbformat

    for path in labs.chosen_lessons(["00", "05"]):
        cells = nbformat.read(path, as_version=4).cells
        with Submission(patience=60) as student:
            for cell in cells:
                tags = cell.metadata.get("tags", [])
                if not {"setup", "exercise"} & set(tags):
                    continue
                source = labs.without_marks(cell.source)
                assert "error" not in student.run(source)
                if "exercise" in tags:
                    name = labs.exercise(cell.source)
                    student.begin()
                    course.examine(name, student.find(name), 1)
