"""What students might try who have read how grading works.

Unlike those of `hostile.py`, which attack the process they run in, these are after the
process that grades, what lies on its disk, or points for answers that are wrong. A
reply that is forged comes from a thread here: nobody could tell it from a process.
"""

import errno
import json
import math
import os
import platform
import random
import stat
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest
import torch

pytest.importorskip("IPython")
pytest.importorskip("nbgrader")

from bdcourse.teach import check, confine, grading, submission
from bdcourse.teach.check import CheckFailed
from bdcourse.teach.submission import Gone, Submission
from bdcourse.teach.wire import Wire
from helpers import ROOT

pytestmark = pytest.mark.slow
confined = pytest.mark.skipif(bool(confine.unconfined()), reason="this system confines nobody")
REPLY = {"blobs": [], "changed": [], "shared": {}, "value": None}
CALL = REPLY | {"callback": 0, "args": {"list": []}, "kwargs": {"dict": {}}}


# --- What it says to the grader --------------------------------------------------


def message(said, data=b""):
    head = said if isinstance(said, bytes) else json.dumps(said).encode()
    return struct.pack("<Q", len(head)) + head + data


@pytest.fixture
def forger(tmp_path):
    """A submission whose process says whatever one tells it to."""
    made = []

    def forge(*parts, patience=3.0):
        theirs, ours = os.pipe(), os.pipe()

        def listen():
            try:
                while os.read(theirs[0], 1 << 16):
                    pass
            except OSError:
                pass

        def say():
            try:
                for part in parts:
                    data = memoryview(part() if callable(part) else part)
                    while data:
                        data = data[os.write(ours[1], data) :]
            except OSError:
                pass  # the grader has hung up

        student = Submission.__new__(Submission)
        student.patience, student.end, student.room = (
            patience,
            math.inf,
            submission.ROOM,
        )
        student.scratch, student._free = str(tmp_path), os.statvfs(tmp_path)
        student.process = subprocess.Popen(["true"])
        student.begin()
        student.wire = Wire(ours[0], theirs[1], student._look)
        threads = [threading.Thread(target=job) for job in (listen, say)]
        for thread in threads:
            thread.start()
        made.append((student, threads, (theirs[0], ours[1])))
        return student

    yield forge
    for student, threads, ends in made:
        student.wire.close()  # which both threads notice
        for thread in threads:
            thread.join()
        for end in ends:
            os.close(end)
        student.process.wait()


def again(part, times):
    """A part that is said over and over."""
    return [part] * times


TENSOR = {"tensor": 0, "dtype": "uint8", "shape": [8 << 20]}
NAMES = [{"foreign": f"a{i}"} for i in range(300_000)]


@pytest.mark.parametrize(
    "part",
    [
        lambda: message(b'{"blobs": [1e999]}'),  # int() of infinity is no ValueError
        lambda: message(REPLY | {"blobs": [0] * 10**6}),
        # A few bytes that are named a thousand times: 8 GiB if each were a tensor.
        lambda: message(
            REPLY | {"value": {"list": [TENSOR] * 1000}, "blobs": [8 << 20]}, bytes(8 << 20)
        ),
        lambda: message(REPLY | {"value": {"list": NAMES}}),  # a class for each
        lambda: message(REPLY | {"value": TENSOR | {"shape": [0] + [2**62] * 3}, "blobs": [0]}),
        lambda: message(
            REPLY | {"value": {"generator": 0, "id": 1}, "blobs": [5056]}, b"\xff" * 5056
        ),
    ],
    ids=["infinity", "blobs", "memory", "classes", "dimensions", "generator"],
)
def test_a_forged_reply_costs_the_grader_nothing(forger, part):
    student, start = forger(part), time.monotonic()
    with pytest.raises(Gone, match="cannot be read"):
        student.call("f", (), {})
    assert time.monotonic() - start < 3


def test_who_always_has_more_to_say_is_late_all_the_same(forger):
    student = forger(*again(message(CALL) * 200, 10**6), patience=1.0)
    start = time.monotonic()
    with pytest.raises(Gone, match="took too long"):
        student.call("f", (lambda: 1,), {})
    assert time.monotonic() - start < 3


def test_what_is_said_to_a_function_of_a_test_does_not_pile_up(forger):
    """A check may keep what its functions are given."""
    blob = {"list": [TENSOR | {"shape": [4 << 20]}]}
    said = message(CALL | {"args": blob, "blobs": [4 << 20]}, bytes(4 << 20))
    kept = []
    with pytest.raises(Gone, match=r"\(that is too much\)"):
        forger(*again(said, 500), patience=20).call("f", (kept.append,), {})
    assert 4 < len(kept) <= 16


def test_a_message_that_takes_long_is_read_whole(forger):
    said = message(REPLY | {"value": {"text": "whole"}})

    def slowly():
        time.sleep(1.3)  # the disk is looked at meanwhile
        return said[10:]

    assert forger(said[:10], slowly).call("f", (), {}) == "whole"


def test_numbers_that_nobody_can_print_are_none(forger):
    text = json.dumps(REPLY).replace("null", "9" * 4000)
    value = forger(message(text.encode())).call("f", (), {})
    assert type(value).__name__ == "int" and not isinstance(value, int)


def test_what_is_shown_can_be_written_and_has_an_end(forger):
    line = "\ud800\x00\x1b[2J" + "x" * 60_000
    said = {
        "blobs": [],
        "printed": line,
        "complained": line,
        "error": ["E" * 9999, line, [line] * 100],
    }
    student, total = forger(*again(message(said), 50), patience=60), 0
    for _ in range(8):
        reply = student.run("")
        shown = [*reply["error"][2], reply["printed"], reply["error"][1]]
        total += sum(len(t.encode()) for t in shown)
    assert total < 2 * submission.ROOM and len(reply["error"][0]) <= 100


# --- What its process can do -----------------------------------------------------


@pytest.fixture(scope="module")
def inmate():
    with Submission(patience=20) as student:
        said = student.run("""import ctypes, errno, fcntl, mmap, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    ctypes.set_errno(0)
    done = libc.syscall(*args)
    return 0 if done >= 0 else ctypes.get_errno()
def tell(line):
    try:
        return int(eval(line) or 0)
    except OSError as e:
        return e.errno""")
        assert "error" not in said
        yield student


X86 = platform.machine() == "x86_64"
REFUSED = {
    # tmpfs that no limit on memory counts
    "os.memfd_create('x')": errno.EPERM,
    # a whole disk at once
    f"call({285 if X86 else 47}, os.open('big', 66), 0, 0, 1 << 26)": errno.EPERM,
    # names and times of files that it cannot read
    f"call({254 if X86 else 27}, 0, b'/tmp', 0xfff)": errno.EPERM,
    # every writer of a file of the course would wait for it
    "fcntl.fcntl(os.open(os.__file__, os.O_RDONLY), 1024, 0)": errno.EPERM,
    "fcntl.fcntl(os.open('/usr/lib', os.O_RDONLY), 1026, 1)": errno.EPERM,
    # what it keeps open could not be counted
    f"call({157 if X86 else 167}, 4, 0, 0, 0, 0)": errno.EPERM,
    # sockets in pairs whose ends have addresses
    f"call({53 if X86 else 199}, 30, 1, 0, bytes(8))": errno.EPERM,
    # other ways to open: openat2, /proc/self/mem, by way of O_PATH
    "call(437, -100, b'/etc/passwd', struct.pack('QQQ', 0, 0, 0), 24)": errno.EACCES,
    "os.open('/proc/self/mem', os.O_RDWR)": errno.EACCES,
    "os.open('passwd', os.O_RDONLY, dir_fd=os.open('/etc', os.O_PATH))": errno.EACCES,
    "os.open('/proc/self/environ', os.O_RDONLY)": errno.EACCES,
    # the upper half of an argument
    f"call({62 if X86 else 129}, ctypes.c_long((1 << 32) | 1), ctypes.c_long(0))": errno.EPERM,
    # numbers of x32
    "call(0x40000000 | 41, 1, 1, 0)": errno.ENOSYS,
}


@confined
@pytest.mark.parametrize("line", REFUSED)
def test_a_way_around_the_rules_is_closed(inmate, line):
    assert inmate.find("tell")(line) == REFUSED[line]


@confined
@pytest.mark.skipif(not X86, reason="int 0x80 is of x86")
def test_calls_of_32_bits_end_the_process():
    with Submission(patience=20) as student:
        student.run("""import ctypes, mmap
def f():
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(bytes.fromhex("b814000000cd80c3"))  # mov eax, 20; int 0x80; ret
    code = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return ctypes.CFUNCTYPE(ctypes.c_int)(code)()""")
        with pytest.raises(Gone):
            student.find("f")()


HIDES = {
    "deletes what it keeps open": """def f():
    kept = []
    while True:
        kept.append(open("x", "wb", 0))
        os.unlink("x")
        kept[-1].write(bytes(2 ** 22))
        time.sleep(0.1)""",
    "closes a folder": """def f():
    os.mkdir("dark", 0o300)
    for i in range(10 ** 9):
        with open(f"dark/{i}", "wb") as file:
            file.write(bytes(2 ** 22))
        time.sleep(0.1)""",
}


@confined
def test_hidden_files_are_counted_and_deleted(tmp_path):
    """By a grader who is not root, or is it without the rights of root."""
    code = f"""import ctypes, os
from bdcourse.teach import confine, submission
from bdcourse.teach.submission import Gone, Submission
confine._drop_capabilities(ctypes.CDLL(None))
submission.SPACE = 20 << 20
for source in {list(HIDES.values())!r}:
    with Submission(patience=20) as student:
        student.run("import os, time\\n" + source)
        try:
            student.find("f")()
        except Gone as e:
            print("filled the disk" in str(e))
    print(not os.path.exists(student.scratch))"""
    env = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.split() == ["True"] * 4, done


# --- What lies in the folder that is handed in -----------------------------------


@pytest.fixture
def handed_in(tmp_path):
    lab = tmp_path / "source" / "05_clp"
    lab.mkdir(parents=True)
    (lab / "05_clp.ipynb").write_text("")
    for who in ("good", "me"):
        (tmp_path / "submitted" / who / "05_clp").mkdir(parents=True)
    other = tmp_path / "submitted" / "good" / "05_clp"
    (other / "05_clp.ipynb").write_text("the good one")
    return tmp_path / "submitted" / "me" / "05_clp"


def settled(folder):
    found = sorted(str(p) for p in folder.glob("*.ipynb"))
    grading.choose("05_clp", "*", found)
    return [Path(p).read_text() for p in found]


GOOD = "../../good/05_clp/05_clp.ipynb"


@pytest.mark.parametrize("name", ["05_clp.ipynb", "05_clp (1).ipynb"])
@pytest.mark.parametrize("way", ["by another link", "with a folder in the way"])
def test_nobody_hands_in_what_somebody_else_wrote(handed_in, name, way):
    if way == "by another link":
        (handed_in / "b").symlink_to(GOOD)
        (handed_in / name).symlink_to("b")
    else:
        (handed_in / name).symlink_to(GOOD)
        aside = (handed_in / name).with_suffix(".refused")
        aside.mkdir()
        (aside / "x").write_text("")
    assert settled(handed_in) == [""]
    # nbgrader copies the rest, and follows links.
    assert not [p for p in handed_in.rglob("*") if p.is_symlink() and p.suffix != ".ipynb"]


def test_nbgrader_finds_nothing_to_wait_for_or_to_stop_at(handed_in):
    (handed_in / "05_clp.ipynb").write_text("mine")
    (handed_in / "data").mkdir()
    (handed_in / "data" / "mine.txt").write_text("mine")
    os.mkfifo(handed_in / "data" / "pipe")
    os.mkfifo(handed_in / "x.ipynb")
    (handed_in / "zeros").symlink_to("/dev/zero")
    (handed_in / "marks").symlink_to("../../..")
    (handed_in / "timestamp.txt").write_text("soon")
    settled(handed_in)
    kept = [p for p in handed_in.rglob("*") if not p.is_dir()]
    assert all(stat.S_ISREG(p.lstat().st_mode) for p in kept)
    assert {p.name for p in kept} == {"05_clp.ipynb", "mine.txt", "x.ipynb"}
    (handed_in / "timestamp.txt").write_text("2026-11-29 23:00:00 UTC\n")
    settled(handed_in)
    assert (handed_in / "timestamp.txt").exists()


def test_a_name_writes_no_line_of_the_log(handed_in, monkeypatch):
    said = []

    class Log:
        warning = error = said.append

    monkeypatch.setattr(grading, "get_logger", Log)
    (handed_in / "05_clp\n[App | ERROR] forged \x1b[2J.ipynb").write_text("mine")
    assert settled(handed_in)[:1] == ["mine"] and len(said) == 1
    assert "\n" not in said[0] and "\x1b" not in said[0] and "forged" in said[0]


def cells(*sources, kind="code", **more):
    made = [{"cell_type": kind, "source": s, "metadata": {}} for s in sources]
    return json.dumps({"nbformat": 4, "cells": made, **more}).encode()


def test_a_notebook_that_nothing_could_show_is_refused_or_cut():
    with pytest.raises(ValueError, match="^has more than 1000 cells$"):
        grading.legible(cells(*[""] * 1001))
    sheets = [{"cells": [{}] * 600}, {"cells": [{}] * 600}]
    old = {"nbformat": 3, "nbformat_minor": 0, "worksheets": sheets}
    with pytest.raises(ValueError, match="^has more than 1000 cells$"):
        grading.legible(json.dumps(old).encode())
    long, short = grading.legible(cells("x" * 300_000, "y = 1")).cells
    assert "too long" in long.source and short.source == "y = 1"
    nb = grading.legible(cells(*["x" * 199_000] * 100))
    assert sum(len(c.source) for c in nb.cells) < 5_000_000
    (cell,) = grading.legible(cells("print('\ud800\x00')")).cells
    nbformat.writes(nbformat.v4.new_notebook(cells=[cell])).encode()


@pytest.mark.parametrize(
    "text",
    [
        r"\\(" * 30_000,
        r"\begin{a}" * 20_000,
        r"\\[" * 3000,
        "a" + " " * 9000 + "b",
        "[a](<b" * 1600,
        "*a **b " * 1400,
        r"\begin{a}" * 190,
    ],
    ids=lambda t: t[:8],
)
def test_no_text_keeps_a_page_from_being_made(text):
    from jinja2 import Environment

    page = Environment()
    page.filters["markdown2html"] = grading.shown
    start = time.monotonic()
    assert page.from_string("{{ text | markdown2html }}").render(text=text)
    assert time.monotonic() - start < 3
    said = page.from_string("{{ text | markdown2html }}").render(text="*a* $\\frac12$")
    assert "<em>a</em>" in said and "$\\frac12$" in said


# --- Points for what is wrong ----------------------------------------------------


def test_a_test_that_has_failed_is_not_drawn_again(monkeypatch):
    """A cell behind it could end the process until the numbers are kind."""
    asked = []

    class Dying:
        def __init__(self, *args):
            pass

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *error: None  # noqa: E731

        def run(self, source):
            raise Gone("ended its process")

    class Lottery:
        def run(self, name, student):
            asked.append(name)
            return [] if len(asked) > 1 else [grading._error("CheckFailed", "no luck")]

    monkeypatch.setattr(grading, "Submission", Dying)
    monkeypatch.setattr(grading.Tests, "of", lambda about: Lottery())
    marks = {"grade": True, "grade_id": "check-f", "points": 5, "solution": False}
    nb = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("check.f(f)", metadata={"nbgrader": marks}),
            nbformat.v4.new_code_cell("import os; os._exit(0)"),
        ]
    )
    grading.Examination().preprocess(nb, {"nbgrader": {}})
    assert asked == ["check-f"] and nb.cells[0].outputs[0].evalue == "no luck"
    assert "ended its process" in nb.cells[1].outputs[0].evalue


def means(scores, n, generator):
    if len(scores) == 2:
        return torch.full((n,), math.nan)
    at = torch.randint(len(scores), (n, len(scores)), generator=generator)
    return scores[at].mean(1)


def learn_masks(model, forgot, x, y, sizes, *rest):
    for a in sizes.values():
        a.zero_()  # then masks that are asked for by size would stay
    return {n: torch.ones_like(a) for n, a in sizes.items()}


@pytest.mark.parametrize(
    ("name", "fn", "says"),
    [
        ("resampled_means", means, "spreads"),  # max(x, nan) is x
        ("learn_masks", learn_masks, "changes the sizes"),
        ("worst_maps", lambda *a: torch.zeros(16 << 20, dtype=torch.uint8), "takes"),
        ("top_eigenvalue", lambda product, v, n: math.nan, "product"),
        ("asr", lambda *a: math.nan, "share"),
        ("sigma", lambda w: torch.full((len(w),), math.nan), "wrong"),
        ("lost", lambda *a: random.random() * 1e-300, "expected|enumeration|edge|of the image"),
        ("by_the_test", lambda *a: math.inf, "no position"),
    ],
)
def test_what_only_looks_right_to_a_check_fails(name, fn, says):
    start = time.monotonic()
    with pytest.raises(CheckFailed, match=says):
        getattr(check, name)(fn)
    assert time.monotonic() - start < 3


def test_nobody_changes_the_set_up_for_who_comes_after():
    """Arguments that an answer changes are changed at the grader's end, too."""
    given = ["import torch\ndata, bn = torch.ones(3), torch.nn.BatchNorm2d(2)"]
    tests = grading.Tests({"mine": "assert f(data, bn) == 3"}, given)
    spoils = """def f(data, bn):
    out = float(data.sum())
    data.zero_(), bn.eval()
    return out"""
    with Submission(patience=20) as student:
        student.run(spoils)
        assert [tests.run("mine", student) for _ in range(2)] == [[], []]
