"""Assignments: a lesson becomes a course for nbgrader, and every submission a score."""

import copy
import csv
import json
import os
import re
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import nbformat
import pytest

import test_check
from bdcourse import data
from bdcourse.__main__ import main
from bdcourse.teach import labs
from bdcourse.teach import nbgrader_course as course
from bdcourse.teach.check import CheckFailed

nbgrader = pytest.importorskip("nbgrader")
from bdcourse.teach import grading  # noqa: E402

ROOT = Path(__file__).parents[2]
TEMPLATES = Path(nbgrader.__file__).parent / "server_extensions/formgrader/templates"
BESIDE = [ROOT / "tests", ROOT / "tools"]
LESSONS = labs.chosen([])
PLANS = sorted((ROOT / "labs").glob("*.yml"))
SIGMA = "    return torch.linalg.matrix_norm(weight.flatten(2), ord=2)"


def read(path):
    return nbformat.read(path, as_version=4)


def graded(nb):
    """Grade id -> cell."""
    found = {c.metadata.get("nbgrader", {}).get("grade_id"): c for c in nb.cells}
    return {k: c for k, c in found.items() if k}


# --- Sources ---------------------------------------------------------------------


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_every_exercise_of_every_lesson_is_graded(path):
    lesson = read(path)
    points = course.exercises(lesson)
    assert points and all(1 <= p <= 5 for p in points.values())
    made = course.assignment(lesson, points)
    nbformat.validate(made)
    cells = graded(made)
    for name, p in points.items():
        test = cells[f"check-{name}"]
        assert test.metadata.nbgrader.points == p and test.metadata.nbgrader.locked
        assert test.source.startswith(f"check.{name}({name})\n### BEGIN HIDDEN TESTS")
        assert labs.BEGIN in cells[name].source
    run = [
        c for c in made.cells if c.cell_type == "code" and "skip-execution" not in c.metadata.tags
    ]
    assert len(run) == 1 + 2 * len(points)  # the set-up, the answers and the tests


def test_exercises_that_are_not_asked_are_given_solved():
    lesson = read(labs.chosen(["05"])[0])
    cells = graded(course.assignment(lesson, {"outliers": 7}))
    assert set(cells) == {
        "setup",
        "sigma",
        "score",
        "outliers",
        "check-outliers",
        "largest_z",
        "switch_off",
    }
    assert SIGMA in cells["sigma"].source and "SOLUTION" not in cells["sigma"].source
    assert cells["sigma"].metadata.nbgrader.locked
    assert cells["check-outliers"].metadata.nbgrader.points == 7
    with pytest.raises(ValueError, match="no exercise 'prayer'; there are sigma, score"):
        course.assignment(lesson, {"prayer": 1})


def test_examine_runs_the_check_again_and_says_nothing(capsys):
    calls = []

    def sigma(weight):
        calls.append(weight)
        return weight.flatten(2).norm(dim=(1, 2))

    with pytest.raises(CheckFailed, match="hint"):
        course.examine("sigma", sigma)
    assert len(calls) >= 1 and capsys.readouterr().out == ""


# --- Plans -----------------------------------------------------------------------


@pytest.mark.parametrize("path", PLANS, ids=lambda p: p.stem)
def test_shipped_plans_are_in_order(path):
    name, made = course.plan(path)
    assert name and len(made) == {"two_labs": 2, "five_labs": 5}[path.stem]


def test_without_a_plan_every_exercise_of_every_lesson_counts():
    _, made = course.plan(None)
    assert [lab.lesson for lab in made] == LESSONS
    assert sum(len(lab.points) for lab in made) == sum(
        len(course.exercises(read(p))) for p in LESSONS
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("labs: [", "is not YAML"),
        ("x: 1", "must hold a list `labs:`"),
        ("labs: [3]", "must hold a list `labs:`"),
        ("labs: [{}]", "names no lesson"),
        ("labs: [{lesson: 77_x}]", "no lesson begins with '77_x'"),
        ("labs: [{lesson: '0'}]", "fits 00_welcome, 01"),
        ("labs: [{lesson: 05_clp, colour: red}]", "an entry 'colour'"),
        ("labs: [{lesson: 05_clp, exercises: [prayer]}]", "no exercise 'prayer'"),
        ("labs: [{lesson: 05_clp, points: {sigma: 0}}]", "whole number above 0"),
        ("labs: [{lesson: 05_clp, deadline: soon}]", "must look like 2027-01-31"),
        ("labs: [{lesson: 05_clp, deadline: [1]}]", "must look like 2027-01-31"),
        ("labs: [{lesson: 05_clp, points: 3}]", "points must name exercises"),
        ("labs: [{lesson: 05_clp, points: {3: 3}}]", "has no exercise 3"),
        ("labs: [{lesson: 05_clp, exercises: sigma}]", "must be a list of names"),
        ("labs: [{lesson: 05_clp, exercises: [[1]]}]", "must be a list of names"),
        ("labs: [{lesson: 05_clp, 3: 4, colour: red}]", "an entry 3;"),
        ("labs: [{lesson: 05_clp}, {lesson: '05'}]", "stands twice"),
        ("x: \x00", "is not YAML"),
    ],
)
def test_a_bad_plan_gets_one_sentence(text, says, tmp_path, capsys):
    (tmp_path / "p.yml").write_text(text)
    command = ["labs", "course", str(tmp_path / "c"), "--plan", str(tmp_path / "p.yml")]
    assert main(command) == 1
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
    assert not (tmp_path / "c").exists()


def test_a_course_is_a_folder(tmp_path, capsys):
    (tmp_path / "c").write_text("mine")
    assert main(["labs", "course", str(tmp_path / "c")]) == 1
    assert "is a file; name a folder" in capsys.readouterr().err
    (tmp_path / "p.yml").write_bytes(b"labs: \xff")
    command = ["labs", "course", str(tmp_path / "d"), "--plan", str(tmp_path / "p.yml")]
    assert main(command) == 1 and "is not YAML" in capsys.readouterr().err


def test_a_missing_plan_is_named(tmp_path, capsys):
    assert main(["labs", "course", str(tmp_path / "c"), "--plan", "nowhere.yml"]) == 1
    assert "no plan nowhere.yml" in capsys.readouterr().err


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


def test_tests_stand_also_in_a_notebook_without_cells():
    source = course.assignment(read(LESSONS[0]), {"take": 2}).cells
    assert "check-take" in graded(nbformat.v4.new_notebook(cells=grading.mended([], source)))


# --- Starting a process -----------------------------------------------------------


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


@pytest.mark.parametrize("stored", [True, False])
def test_a_course_draws_its_images_for_everybody(stored, tmp_path, monkeypatch, capsys):
    drawn = []

    def load(name, split="train"):
        drawn.append((name, split))
        if stored:
            (tmp_path / "cache").mkdir(mode=0o700, exist_ok=True)
            (tmp_path / "cache" / f"{name}-{split}.npz").write_text("")

    monkeypatch.setenv("BDCOURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "load", load)
    course.make(tmp_path / "course", ROOT / "labs" / "two_labs.yml")
    assert len(set(drawn)) == 4
    said = capsys.readouterr().out
    if not stored:
        assert f"note: {tmp_path / 'cache'} cannot be written" in said
        return
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o755
    assert f"images for the lessons are in {tmp_path / 'cache'}" in said
    config = tmp_path / "course" / "nbgrader_config.py"
    config.write_text("c = get_config()\n")
    course.make(tmp_path / "course", ROOT / "labs" / "two_labs.yml")
    assert "written by an earlier version" in capsys.readouterr().out


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


# --- The whole pipeline ----------------------------------------------------------


def call(folder, *words, fine=True):
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    (folder / "tmp").mkdir(exist_ok=True)
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    env["TMPDIR"] = str(folder / "tmp")
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *words],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == fine, done.stderr[-3000:]
    return done.stdout + done.stderr


def solved(source):
    """What a student hands in who knows everything."""
    nb = copy.deepcopy(source)
    for cell in nb.cells:
        inner = labs.SOLUTION.sub(course._without_marks, cell.source)
        cell.source = inner.split("\n### BEGIN HIDDEN")[0]
    return nb


def hand_in(folder, student, lab, nb, name=None):
    path = folder / "submitted" / student / lab / (name or f"{lab}.ipynb")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(nb) if isinstance(nb, str) else nbformat.write(nb, path)


@cache
def scores(folder):
    """(student, lab) -> points, as the lecturer exports them."""
    call(folder, "export")
    with open(folder / "grades.csv") as f:
        rows = list(csv.DictReader(f))
    return {(r["student_id"], r["assignment"]): float(r["score"]) for r in rows}


def errors(folder, student, lab):
    """Grade id -> what went wrong there."""
    nb = read(folder / "autograded" / student / lab / f"{lab}.ipynb")
    return {
        name: f"{o.ename}: {o.evalue}"
        for name, cell in graded(nb).items()
        if cell.cell_type == "code"
        for o in cell.outputs
        if o.output_type == "error"
    }


def old_format(nb):
    """As an editor of ten years ago writes it on Windows: no ids, a byte order mark."""
    nb = json.loads(nbformat.writes(nb)) | {"nbformat_minor": 0}
    for cell in nb["cells"]:
        del cell["id"]
    return "\ufeff" + json.dumps(nb)


# In place of sigma's answer; {course} is the folder of the whole course.
HOSTILE = {
    "loop": "def sigma(weight):\n    while True:\n        pass",
    "memory": "def sigma(weight):\n    return torch.ones(25_000_000_000)",
    "sysexit": "import sys\nsys.exit()",
    "osexit": "def sigma(weight):\n    import os\n    os._exit(0)",
    "killed": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "parent": """import os
def sigma(weight):
    os.kill(os.getppid(), 9)""",
    "writes": """def sigma(weight):
    open("{course}/evil", "w").write("x")""",
    "marks": """import sqlite3
def sigma(weight):
    return sqlite3.connect("{course}/gradebook.db").execute("delete from grade")""",
    "reads": """import glob, json
def sigma(weight):
    for path in ["{course}/source/05_clp/05_clp.ipynb",
                 "{course}/submitted/all/05_clp/05_clp.ipynb",
                 "{repo}/notebooks/05_clp.ipynb"]:
        try:
            return open(path).read()
        except OSError as e:
            found = e
    raise found""",
    "kernel": """def evil():
    open("{course}/evil", "w").write("x")
ip = get_ipython()
for way in ("kernel.iopub_thread.schedule(evil)",
            "kernel.control_thread.io_loop.add_callback(evil)",
            "kernel.shell_stream.flush()"):
    try:
        eval("ip." + way)
    except AttributeError:
        pass
def sigma(weight):
    return 0""",
    "patches": """import builtins, sys
from bdcourse.teach import check, nbgrader_course as course
from bdcourse.teach.check import clp, core
def passes(*args, **kwargs):
    return True
for module in (check, clp, core):
    for name in ("sigma", "need", "close", "shaped", "call", "guarded"):
        setattr(module, name, passes)
course.examine = check.examine = passes
torch.allclose = torch.equal = torch.Tensor.__eq__ = passes
def sigma(weight):
    return torch.zeros(len(weight))""",
    "transforms": """import ast
class Passes(ast.NodeTransformer):
    def visit_Module(self, node):
        if "check" in ast.dump(node):
            node.body = []
        return node
get_ipython().ast_transformers.append(Passes())
def sigma(weight):
    return torch.zeros(len(weight))""",
    "frames": """import gc, sys
def sigma(weight):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()):
            if callable(value) and getattr(value, "__name__", "") == "_sigma":
                return value(weight)
        frame = frame.f_back
    for value in gc.get_objects():
        if type(value).__name__ == "_Answer":
            value.fn = lambda w: 1
    return 0""",
    "prints": "def sigma(weight):\n    print('sigma: all checks passed')\n    return 0",
    "renamed": "def sigmoid(weight):\n" + SIGMA,
    "talks": "def sigma(weight):\n    print('x' * 3_000_000)\n" + SIGMA,
    "warns": "def sigma(weight):\n    import sys; print(1, file=sys.stderr)\n" + SIGMA,
    "script": """from IPython.display import HTML, Javascript, display
display(HTML("<script>alert(1)</script>"), Javascript("alert(1)"))
print("<script>alert(1)</script>")
def sigma(weight):
    raise ValueError("<script>alert(1)</script>")""",
}
WHY = {
    "loop": "NotGraded: This cell took longer than 5 seconds.",
    "memory": "can't allocate memory",
    "sysexit": "name 'sigma' is not defined",
    "osexit": "NotGraded: This cell ended its process",
    "killed": "name 'sigma' is not defined",
    "parent": "not permitted",
    "writes": "Permission denied",
    "marks": "unable to open database",
    "reads": "Permission denied",
    "kernel": "not a tensor",
    "patches": "is wrong for a weight",
    "transforms": "is wrong for a weight",
    "frames": "not a tensor",
    "prints": "not a tensor",
    "renamed": "name 'sigma' is not defined",
    "script": "raises ValueError",
}
SHADOWS = (
    *("ipykernel_launcher.py", "IPython.py", "torch.py", "sitecustomize.py"),
    *("bdcourse/__init__.py", "bdcourse/check.py", "nbgrader_config.py"),
)


@pytest.fixture(scope="module")
def term(tmp_path_factory):
    """A course of two labs with everybody's submissions, graded."""
    folder = tmp_path_factory.mktemp("term") / "course"
    course.make(folder, ROOT / "labs" / "five_labs.yml")
    config = folder / "nbgrader_config.py"
    beside = "c.Examination.readable = " + repr([str(p) for p in BESIDE])
    config.write_text(config.read_text().replace("timeout = 20", "timeout = 5") + beside + "\n")
    for lab in ("05_clp", "06_fmp"):
        call(folder, "generate_assignment", lab)
        full = solved(read(folder / "source" / lab / f"{lab}.ipynb"))
        hand_in(folder, "all", lab, full)
        release = read(folder / "release" / lab / f"{lab}.ipynb")
        hand_in(folder, "none", lab, release)
    clp = solved(read(folder / "source" / "05_clp" / "05_clp.ipynb"))
    for student, text in HOSTILE.items():
        nb = copy.deepcopy(clp)
        text = text.replace("{course}", str(folder)).replace("{repo}", str(ROOT))
        graded(nb)["sigma"].source = text
        if student == "script":
            page = "<script>alert(1)</script> <img src=x onerror='alert(1)'>"
            cell = nbformat.v4.new_markdown_cell(page + " [x](javascript:alert(1))")
            nb.cells.insert(0, cell)
            nb.metadata["language_info"] = {"pygments_lexer": "<script>alert(1)"}
        hand_in(folder, student, "05_clp", nb)
    nb = copy.deepcopy(clp)
    graded(nb)["sigma"].source = (
        "import os\nos.makedirs('torch', exist_ok=True)\n"
        "open('torch/__init__.py', 'w').write('import os; os._exit(0)')\n"
        "def sigma(weight):\n    os._exit(0)"
    )
    hand_in(folder, "shadows", "05_clp", nb)
    for name in SHADOWS:
        path = folder / "submitted" / "shadows" / "05_clp" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"open({str(folder / 'evil')!r}, 'w').write('x')")
    linked = folder / "submitted" / "linked" / "05_clp" / "05_clp.ipynb"
    linked.parent.mkdir(parents=True)
    linked.symlink_to(folder / "submitted" / "all" / "05_clp" / "05_clp.ipynb")
    half = copy.deepcopy(clp)
    graded(half)["score"].source = graded(read(folder / "release" / "05_clp" / "05_clp.ipynb"))[
        "score"
    ].source
    graded(half)[
        "outliers"
    ].source = "def outliers(scores, u):\n    return scores > scores.mean() + u"
    hand_in(folder, "half", "05_clp", half)
    nb = copy.deepcopy(clp)
    gone = [graded(nb)[n] for n in ("check-sigma", "setup")]
    nb.cells = [c for c in nb.cells if c not in gone]
    hand_in(folder, "deleted", "05_clp", nb)
    nb = copy.deepcopy(clp)
    nb.cells.insert(3, copy.deepcopy(graded(nb)["sigma"]))
    nb.cells.append(copy.deepcopy(graded(nb)["check-sigma"]))
    hand_in(folder, "doubled", "05_clp", nb)
    nb = copy.deepcopy(clp)
    for cell in nb.cells:
        cell.metadata = {}
    hand_in(folder, "unmarked", "05_clp", nb)
    nb = copy.deepcopy(clp)
    graded(nb)["check-sigma"].source = "print('sigma: all checks passed')"
    graded(nb)["sigma"].source = "pass"
    hand_in(folder, "edited", "05_clp", nb)
    hand_in(folder, "broken", "05_clp", '{"cells": [')
    hand_in(folder, "empty", "05_clp", "")
    hand_in(folder, "copies", "05_clp", "an older one", "05_clp (1).ipynb")
    hand_in(folder, "copies", "05_clp", old_format(clp), "05_clp-Copy1.ipynb")
    os.utime(folder / "submitted" / "copies" / "05_clp" / "05_clp (1).ipynb", (0, 0))
    for lab, points in asked().items():
        wrong = solved(read(folder / "source" / lab / f"{lab}.ipynb"))
        for name in points:
            graded(wrong)[name].source = (
                f"import sys\nsys.path[:0] = {[str(p) for p in BESIDE]}\n"
                f"import test_check\n{name} = test_check.WRONG[{name!r}][0][0]"
            )
        hand_in(folder, "wrong", lab, wrong)
    (folder / "log.txt").write_text(call(folder, "autograde", "05_clp"))
    call(folder, "autograde", "06_fmp")
    return folder


def asked():
    """Lab -> exercise -> points, of the two labs that are graded here."""
    labs = course.plan(ROOT / "labs" / "five_labs.yml")[1]
    return {lab.lesson.stem: lab.points for lab in labs[2:4]}


def test_marks_are_what_was_earned(term):
    found = scores(term)
    assert found["all", "05_clp"] == 23 and found["none", "05_clp"] == 0
    assert found["half", "05_clp"] == 23 - 5 - 5
    assert found["all", "06_fmp"] == 23 and found["none", "06_fmp"] == 0
    assert found["copies", "05_clp"] == 23
    why = errors(term, "half", "05_clp")
    assert "score: not written yet" in why["check-score"]
    assert "hint" in why["check-outliers"] and set(why) == {"check-score", "check-outliers"}
    assert "not written yet" in errors(term, "none", "05_clp")["check-sigma"]


@pytest.mark.parametrize("lab", ["05_clp", "06_fmp"])
def test_a_wrong_answer_is_rejected_for_its_reason(term, lab):
    why = errors(term, "wrong", lab)
    assert scores(term)["wrong", lab] == 0
    for name in asked()[lab]:
        _, reason = test_check.WRONG[name][0]
        assert re.search(reason, why[f"check-{name}"]), (name, why[f"check-{name}"])


@pytest.mark.parametrize("student", HOSTILE)
def test_a_hostile_answer_costs_its_own_points_only(term, student):
    score = scores(term)[student, "05_clp"]
    if student not in WHY:
        assert score == 23
        return
    assert score == 18
    said = errors(term, student, "05_clp")
    assert re.search(WHY[student], said["check-sigma"]), said
    assert set(said) <= {"check-sigma", "sigma"}


def test_nothing_is_left_behind(term):
    import psutil

    assert not list(term.rglob("evil")) and not (term.parent / "evil").exists()
    assert not list(term.glob("tmp/submission-*"))
    mine = [p.cmdline() for p in psutil.process_iter() if p.status() != "zombie"]
    assert not any(str(term) in " ".join(c) for c in mine)


def test_files_beside_a_submission_are_not_imported(term):
    said = errors(term, "shadows", "05_clp")
    assert scores(term)["shadows", "05_clp"] == 18 and set(said) == {"check-sigma"}
    assert "ended its process" in said["check-sigma"]


def test_what_a_student_writes_runs_in_no_browser(term):
    call(term, "generate_feedback", "05_clp", "--student", "script")
    page = (term / "feedback" / "script" / "05_clp" / "05_clp.html").read_text()
    assert "&lt;script&gt;alert(1)" in page and "<summary>You should see" in page
    assert not re.search(r"<script>alert|<img[^>]*onerror|href=.javascript:", page)
    for template in ("feedback", "formgrade"):  # each markdown cell goes through it
        text = (TEMPLATES / template / "index.html.j2").read_text()
        uses = re.findall(r"cell\.source *\|([^}]*)", text)
        assert uses and all("strip_files_prefix" in u or "highlight" in u for u in uses)


@pytest.mark.parametrize("student", ["deleted", "doubled", "unmarked"])
def test_a_damaged_notebook_is_mended(term, student):
    assert scores(term)[student, "05_clp"] == 23


def test_an_edited_test_and_an_unreadable_file_earn_nothing_and_break_nothing(term):
    found = scores(term)
    assert found["edited", "05_clp"] == 18 and found["broken", "05_clp"] == 0
    assert "is not defined" in errors(term, "edited", "05_clp")["check-sigma"]


def test_what_was_handed_in_is_told_in_a_sentence_each(term):
    log = (term / "log.txt").read_text()
    where = "submitted/{0}/05_clp/05_clp"
    for said in (
        f"{where.format('copies')}-Copy1.ipynb counts as 05_clp: it is the newest of "
        "that name; left out: 05_clp (1).ipynb.",
        f"{where.format('broken')}.ipynb is cut off or damaged from line 1; it earns 0 points.",
        f"{where.format('empty')}.ipynb is empty; it earns 0 points.",
        f"{where.format('linked')}.ipynb is a link to another folder; it earns 0 points.",
    ):
        assert log.count(said) == 1, log[-3000:]
    # A kernel that is stopped in a loop may say where; nothing of the graders does.
    told = re.findall(r"Traceback.*?(?=\n\[\w+App|\Z)", log, re.S)
    graders = ("nbgrader/", "nbconvert/", "nbformat/", "bdcourse/")
    assert not [t for t in told if any(g in t for g in graders)], told
    assert "MissingID" not in log
    assert "is invalid" not in log and "Additional properties" not in log
    assert scores(term)["empty", "05_clp"] == 0


def test_a_failed_check_shows_its_sentence_and_nothing_of_the_course(term):
    for student in ("none", "half", "wrong"):
        nb = read(term / "autograded" / student / "05_clp" / "05_clp.ipynb")
        failed = [
            o
            for c in graded(nb).values()
            if c.cell_type == "code"
            for o in c.outputs
            if o.output_type == "error"
        ]
        assert failed and all(o.traceback == [o.evalue] for o in failed)


def test_feedback_tells_the_student_what_to_mend(term):
    call(term, "generate_feedback", "05_clp")
    page = (term / "feedback" / "half" / "05_clp" / "05_clp.html").read_text()
    assert "score: not written yet" in page and "sigma: all checks passed" in page
    assert "most recent call last" not in page and "bdcourse/check" not in page
    page = (term / "feedback" / "loop" / "05_clp" / "05_clp.html").read_text()
    assert "took longer than 5 seconds" in page
    page = (term / "feedback" / "broken" / "05_clp" / "05_clp.html").read_text()
    assert "is cut off or damaged from line 1, so nothing could be graded" in page


def test_a_release_holds_no_solution_and_validates_by_its_tests(term):
    path = term / "release" / "05_clp" / "05_clp.ipynb"
    text = path.read_text()
    assert "SOLUTION" not in text and "HIDDEN" not in text and "examine" not in text
    assert SIGMA.strip() not in "".join(c.source for c in read(path).cells if c.cell_type == "code")
    assert "not written yet" in text
    said = call(term, "validate", str(path))
    assert "VALIDATION FAILED ON 5 CELL(S)" in said and "sigma: not written yet" in said


def test_a_copy_for_self_study_validates_by_its_checks(term):
    """nbgrader's button in JupyterLab does the same."""
    lesson = labs.chosen(["00"])[0]
    labs.student(["00"], term / "copies")
    path = term / "copies" / lesson.name
    said = call(term, "validate", str(path))
    assert "VALIDATION FAILED ON 1 CELL(S)" in said and "take: not written yet" in said
    nb, answers = read(path), {c.id: c.source for c in read(lesson).cells}
    for cell in nb.cells:
        if "exercise" in cell.metadata.get("tags", []):
            cell.source = answers[cell.id]
    nbformat.write(nb, path)
    assert "Success" in call(term, "validate", str(path))


def test_an_archive_of_moodle_is_collected(term):
    """Its two forms, with a folder for each student and without."""
    archive = term / "downloaded" / "06_fmp" / "archive"
    archive.mkdir(parents=True)
    names = {
        "Jane Doe_12345": "_assignsubmission_file/06_fmp.ipynb",
        "Ann-Lee O'Neil_77": "_assignsubmission_file_/06_fmp (1).ipynb",
        "Müller_3": "_assignsubmission_file_06_fmp.ipynb",
    }
    with zipfile.ZipFile(archive / "lab.zip", "w") as z:
        for student, file in names.items():
            z.writestr(student + file, "{}")
        z.writestr("Jane Doe_12345_assignsubmission_onlinetext/a.html", "hello")
    call(term, "zip_collect", "06_fmp")
    for student, file in names.items():
        name = file.removeprefix("_assignsubmission_file").lstrip("_/")
        assert (term / "submitted" / student / "06_fmp" / name).read_text() == "{}"


def test_making_the_course_again_keeps_what_is_there(term):
    config = term / "nbgrader_config.py"
    config.write_text(config.read_text() + "# mine\n")
    before = scores(term)
    course.make(term, ROOT / "labs" / "five_labs.yml")
    scores.cache_clear()
    assert config.read_text().endswith("# mine\n") and scores(term) == before


# --- Tests of a lecturer's own ---------------------------------------------------


def said_by(source, *cells, given=("import torch\n%matplotlib inline",)):
    """What a test says of a submission with these cells."""
    tests = grading.Tests({"mine": source}, list(given))
    with grading.Submission(patience=5) as student:
        for cell in (*given, *cells):
            student.run(cell)
        made = tests.run("mine", student)
    return [o.get("text") or f"{o.ename}: {o.evalue}" for o in made]


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


def test_tests_that_are_not_the_courses_are_not_run():
    with grading.Submission() as student:
        made = grading.Tests({}, []).run("theirs", student)
    assert "none of the course's" in made[0].evalue
