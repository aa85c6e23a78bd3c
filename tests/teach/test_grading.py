"""Grading: what was handed in is read, examined and shown."""

import json
import os
import re
from pathlib import Path

import nbformat
import pytest

from assignments import LESSONS, graded, read
from bdcourse.teach import nbgrader_course as course

nbgrader = pytest.importorskip("nbgrader")
from bdcourse.teach import grading  # noqa: E402

# --- What was handed in ----------------------------------------------------------


@pytest.fixture
def submission(tmp_path):
    (tmp_path / "source" / "05_clp").mkdir(parents=True)
    (tmp_path / "source" / "05_clp" / "05_clp.ipynb").write_text("")
    folder = tmp_path / "submitted" / "me" / "05_clp"
    folder.mkdir(parents=True)
    return folder


def settle(folder, *names):
    """What is taken of files that were written in this order."""
    for age, name in enumerate(names):
        (folder / name).write_text(name)
        os.utime(folder / name, (age, age))
    found = sorted(str(p) for p in folder.glob("*.ipynb"))
    grading.choose("05_clp", "*", found)
    return found


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["05_clp.ipynb"], 0),
        (["05_clp.ipynb", "05_clp (1).ipynb"], 0),
        (["05_clp (1).ipynb"], 0),
        (["05_clp-Copy1.ipynb"], 0),
        (["05_CLP - Kopie.ipynb", "hw.ipynb"], 0),
        (["05_clp (2).ipynb", "05_clp (1).ipynb"], 1),
        (["Doe_05_clp_final.ipynb"], 0),
        (["homework.ipynb"], 0),
    ],
)
def test_the_notebook_that_counts(submission, names, taken):
    exact = submission / "05_clp.ipynb"
    assert settle(submission, *names) == [str(exact)]
    assert exact.read_text() == names[taken]
    assert exact.is_symlink() == (exact.name not in names)


def test_a_later_copy_counts_the_next_time(submission):
    settle(submission, "05_clp (1).ipynb")
    settle(submission, "05_clp (1).ipynb", "05_clp (2).ipynb")
    assert (submission / "05_clp.ipynb").read_text() == "05_clp (2).ipynb"


def test_the_folder_of_another_student_is_not_graded(submission):
    (submission / "05_clp.ipynb").write_text("mine")
    (submission.parents[1] / "you").mkdir()
    linked = submission.parents[1] / "you" / "05_clp"
    linked.symlink_to(submission)
    found = [str(linked / "05_clp.ipynb")]
    grading.choose("05_clp", "*", found)
    assert found == [] and (submission / "05_clp.ipynb").read_text() == "mine"


def test_without_links_the_copy_is_copied(submission, monkeypatch):
    def refuse(*args):
        raise OSError

    monkeypatch.setattr(Path, "symlink_to", refuse)
    settle(submission, "05_clp (1).ipynb")
    assert (submission / "05_clp.ipynb").read_text() == "05_clp (1).ipynb"


def test_nothing_is_taken_where_it_is_not_clear_or_not_ours(submission):
    assert len(settle(submission, "a.ipynb", "b.ipynb")) == 2
    (submission.parents[2] / "source" / "05_clp" / "part2.ipynb").write_text("")
    assert len(settle(submission, "05_clp (1).ipynb")) == 3
    assert not (submission / "05_clp.ipynb").exists()


def cells(*cells, **more):
    about = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": list(cells)}
    return json.dumps(about | more)


TEXT = {"cell_type": "markdown", "source": ["a\n", "b"], "metadata": {}, "id": "x"}


@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_notebook_in_any_encoding_is_read(code):
    (cell,) = grading.legible(cells(TEXT).encode(code)).cells
    assert cell.source == "a\nb" and cell.id == "x"


def test_a_notebook_of_version_3_is_read():
    code = {
        "cell_type": "code",
        "input": "x = 1",
        "language": "python",
        "outputs": [],
        "metadata": {},
        "collapsed": False,
    }
    old = {
        "nbformat": 3,
        "nbformat_minor": 0,
        "metadata": {"name": ""},
        "worksheets": [{"cells": [code], "metadata": {}}],
    }
    (cell,) = grading.legible(json.dumps(old).encode()).cells
    assert cell.cell_type == "code" and cell.source == "x = 1"


@pytest.mark.parametrize(
    "odd",
    [
        *(3, None, [], {}, {"cell_type": "code"}, {"cell_type": "x", "source": ""}),
        TEXT,
        TEXT | {"id": 7, "metadata": None, "attachments": []},
        TEXT | {"source": ["a", 3]},
        TEXT | {"metadata": {"tags": [{}, 1], "nbgrader": {"grade_id": []}}},
        TEXT | {"metadata": {"tags": "x", "nbgrader": 3}, "more": 1, "id": "a b"},
    ],
)
def test_odd_cells_cost_the_others_nothing(odd):
    nb = grading.legible(cells(odd, TEXT, metadata={"kernelspec": 3}).encode())
    nbformat.validate(nb)
    assert nb.cells[-1].source == "a\nb" and nb.metadata == {}
    assert len({c.id for c in nb.cells}) == len(nb.cells)
    source = course.assignment(read(LESSONS[0]), {"take": 2}).cells
    assert "check-take" in graded(nbformat.v4.new_notebook(cells=grading.mended(nb.cells, source)))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xef\xbb\xbf", "is not a notebook"),
        (b"PK\x03\x04\xff\xfe", "is not a notebook"),
        (b"<!doctype html>", "is not a notebook"),
        (b'{"cells": [{', "is cut off or damaged from line 1"),
        (b'{"cells": \xff\xff}', "is cut off or damaged"),
        (b"[" * 100_000, "is not a notebook"),
        (b"[]", "is not a notebook, for it has no list of cells"),
        (b'{"cells": 3}', "is not a notebook, for it has no list of cells"),
        (b'{"nbformat": 3}', "is not a notebook, for it has no list of cells"),
    ],
)
def test_what_is_no_notebook_is_told(data, says):
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        grading.legible(data)


@pytest.mark.slow
def test_tests_stand_also_in_a_notebook_without_cells():
    source = course.assignment(read(LESSONS[0]), {"take": 2}).cells
    assert "check-take" in graded(nbformat.v4.new_notebook(cells=grading.mended([], source)))


# --- Starting a process -----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_a_process_that_does_not_start_is_tried_once_more(times, monkeypatch):
    calls = []

    class Sleepy(grading.Submission):
        def __init__(self, *args):
            calls.append(1)
            if len(calls) <= times:
                raise grading.NotStarted("it is asleep")
            super().__init__(*args)

    monkeypatch.setattr(grading, "Submission", Sleepy)
    monkeypatch.setattr(grading.Tests, "of", lambda about: grading.Tests({}, []))
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print(7)")])
    if times == 1:
        grading.Examination().preprocess(nb, {"nbgrader": {}})
        assert nb.cells[0].outputs[0].text == "7\n"
    else:
        with pytest.raises(RuntimeError, match="^it is asleep, twice; nothing was"):
            grading.Examination().preprocess(nb, {"nbgrader": {}})
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("html", "shown"),
    [
        ("<p>a <em>b</em></p>", "<p>a <em>b</em></p>"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("<img src=x onerror=alert(1)>", '<img src="x">'),
        ("<img src=https://x.org/y.png>", "<img>"),
        ("<img src=data:image/svg+xml;base64,PHN2Zz4=>", "<img>"),
        ('<a href="javascript:alert(1)">x</a>', "<a>x</a>"),
        ('<a href=" java\nscript:alert(1)">x</a>', "<a>x</a>"),
        ('<a href="data:text/html,x">x</a>', "<a>x</a>"),
        ('<a href="#CLP:-x">x</a>', '<a href="#CLP:-x">x</a>'),
        ('<p style="position:fixed" onclick="x()">a</p>', "<p>a</p>"),
        (
            r"$\href{javascript:alert(1)}{x} \frac{1}{2}$",
            r"$href{javascript:alert(1)}{x} \frac{1}{2}$",
        ),
        ("<details><summary>hint</summary>x</details>",) * 2,
        ("<h2 id='a' class='b'>x</h2>", '<h2 id="a" class="b">x</h2>'),
    ],
)
def test_pages_show_text_and_pictures_and_run_nothing(html, shown):
    assert grading.cleaned(html) == shown


# --- Tests of a lecturer's own ---------------------------------------------------


def said_by(source, *cells, given=("import torch\n%matplotlib inline",)):
    """What a test says of a submission with these cells."""
    tests = grading.Tests({"mine": source}, list(given))
    with grading.Submission(patience=5) as student:
        for cell in (*given, *cells):
            student.run(cell)
        made = tests.run("mine", student)
    return [o.get("text") or f"{o.ename}: {o.evalue}" for o in made]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "cell", "says"),
    [
        ("assert double(torch.ones(2)).sum() == 4", "double = lambda x: 2 * x", []),
        (
            "assert double(3) == 6, 'twice'",
            "def double(x):\n    return x",
            ["AssertionError: twice"],
        ),
        ("assert answer == 42", "answer = 42", []),
        (
            "assert answer == 42",
            "pass",
            ["NameError: name 'answer' is not defined"],
        ),
        # What the set-up computes is the course's, whoever changes it.
        (
            "assert size == 7\nfor i in range(2):\n    assert f(i) == i",
            "size = 8\nf = lambda i: i",
            [],
        ),
        # A name of the test's own is its own.
        ("def f():\n    return 1\nassert f() == 1", "f = lambda: 2", []),
        (
            "with torch.no_grad():\n    print(f())",
            "def f():\n    print('a')\n    return 3",
            ["a\n3\n"],
        ),
        ("f()", "def f():\n    raise OSError('no')", ["OSError: no"]),
        ("assert torch.equal(f(), f())", "torch.equal = f = lambda *a: 1", None),
    ],
)
def test_a_test_runs_here_and_asks_the_submission(source, cell, says):
    said = said_by(source, cell, given=("import torch", "size = 7"))
    assert said == says if says is not None else "TypeError" in said[0]


@pytest.mark.slow
def test_tests_that_are_not_the_courses_are_not_run():
    with grading.Submission() as student:
        made = grading.Tests({}, []).run("theirs", student)
    assert "none of the course's" in made[0].evalue
