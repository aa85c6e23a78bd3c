"""The whole pipeline of nbgrader: a course, its submissions, their marks."""

import copy
import csv
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

import test_check
from assignments import BESIDE, SIGMA, graded, read
from bdcourse.teach import labs
from bdcourse.teach import nbgrader_course as course
from helpers import ROOT

nbgrader = pytest.importorskip("nbgrader")
pytestmark = pytest.mark.slow


TEMPLATES = Path(nbgrader.__file__).parent / "server_extensions/formgrader/templates"


RUN = """
import json, sys
from nbgrader.apps.nbgraderapp import NbGraderApp
from traitlets.config import Application
for words in json.loads(sys.argv[1]):
    print("\\0", flush=True)
    NbGraderApp.launch_instance(words)
    type(Application.instance()).clear_instance()
"""


def call(folder, *commands):
    """What each command of nbgrader says; all of them in one process, as in its formgrader."""
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    (folder / "tmp").mkdir(exist_ok=True)
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    env["TMPDIR"] = str(folder / "tmp")
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout.split("\0\n")[1:]


def solved(source):
    """What a student hands in who knows everything."""
    nb = copy.deepcopy(source)
    for cell in nb.cells:
        inner = labs.without_marks(cell.source)
        cell.source = inner.split("\n### BEGIN HIDDEN")[0]
    return nb


def hand_in(folder, student, lab, nb, name=None):
    path = folder / "submitted" / student / lab / (name or f"{lab}.ipynb")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(nb) if isinstance(nb, str) else nbformat.write(nb, path)


def scores(folder):
    """(student, lab) -> points, as the lecturer exports them."""
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


FIVE = ROOT / "labs" / "five_labs.yml"
# The steps of lesson 05: unlike its whole method, none of them calls another answer, so
# what one costs, costs nothing else.
ALONE = {"sigma": 5, "score": 5, "outliers": 5, "largest_z": 8}


def plan_of(folder):
    """The five labs, with the steps of lesson 05 alone."""
    asked = f"  - lesson: 05_clp\n    exercises: {list(ALONE)}\n    points: {ALONE}\n"
    path = folder / "labs.yml"
    path.write_text(FIVE.read_text().replace("  - lesson: 05_clp\n", asked))
    return path


@pytest.fixture(scope="module")
def term(tmp_path_factory):
    """A course of two labs with everybody's submissions, graded."""
    folder = tmp_path_factory.mktemp("term") / "course"
    course.make_course(folder, plan_of(tmp_path_factory.mktemp("plan")))
    config = folder / "nbgrader_config.py"
    beside = f"c.Examination.readable = {BESIDE}"
    config.write_text(config.read_text().replace("timeout = 20", "timeout = 5") + beside + "\n")
    call(folder, *(("generate_assignment", lab) for lab in ("05_clp", "06_fmp")))
    for lab in ("05_clp", "06_fmp"):
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
                f"import sys\nsys.path[:0] = {BESIDE}\n"
                f"import test_check\n{name} = test_check.WRONG[{name!r}][0][0]"
            )
        hand_in(folder, "wrong", lab, wrong)
    log, *_ = call(
        folder,
        ("autograde", "05_clp"),
        ("autograde", "06_fmp"),
        ("export",),
        ("generate_feedback", "05_clp"),
    )
    (folder / "log.txt").write_text(log)
    return folder


def asked():
    """Lab -> exercise -> points, of the two labs that are graded here."""
    return {"05_clp": ALONE, "06_fmp": course.plan(FIVE)[1][3].points}


def test_marks_are_what_was_earned(term):
    found = scores(term)
    assert found["all", "05_clp"] == 23 and found["none", "05_clp"] == 0
    assert found["half", "05_clp"] == 23 - 5 - 5
    assert found["all", "06_fmp"] == 25 and found["none", "06_fmp"] == 0
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
        assert failed and all(o.traceback == [f"\u2717 {o.evalue}"] for o in failed)


def test_feedback_tells_the_student_what_to_mend(term):
    page = (term / "feedback" / "half" / "05_clp" / "05_clp.html").read_text()
    assert "score: not written yet" in page and "sigma: the largest singular value" in page
    assert "most recent call last" not in page and "bdcourse/check" not in page
    page = (term / "feedback" / "loop" / "05_clp" / "05_clp.html").read_text()
    assert "took longer than 5 seconds" in page
    page = (term / "feedback" / "broken" / "05_clp" / "05_clp.html").read_text()
    assert "is cut off or damaged from line 1, so nothing could be graded" in page


@pytest.fixture(scope="module")
def validated(term):
    """What nbgrader says of a release and of a copy for self-study, empty and solved."""
    lesson = labs.chosen_lessons(["00"])[0]
    labs.student(["00"], term / "copies")
    empty, full = term / "copies" / lesson.name, term / "copies" / f"solved_{lesson.name}"
    nb, answers = read(empty), {c.id: c.source for c in read(lesson).cells}
    for cell in nb.cells:
        if "exercise" in cell.metadata.get("tags", []):
            cell.source = answers[cell.id]
    nbformat.write(nb, full)
    paths = term / "release" / "05_clp" / "05_clp.ipynb", empty, full
    return call(term, *(("validate", str(p)) for p in paths))


def test_a_release_holds_no_solution_and_validates_by_its_tests(term, validated):
    path = term / "release" / "05_clp" / "05_clp.ipynb"
    text = path.read_text()
    assert "SOLUTION" not in text and "HIDDEN" not in text and "examine" not in text
    assert SIGMA.strip() not in "".join(c.source for c in read(path).cells if c.cell_type == "code")
    assert "not written yet" in text
    said = validated[0]
    assert "VALIDATION FAILED ON 4 CELL(S)" in said and "sigma: not written yet" in said


def test_a_copy_for_self_study_validates_by_its_checks(validated):
    """nbgrader's button in JupyterLab does the same."""
    _, empty, full = validated
    assert "VALIDATION FAILED ON 4 CELL(S)" in empty and "take: not written yet" in empty
    assert "Success" in full


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
    call(term, ("zip_collect", "06_fmp"))
    for student, file in names.items():
        name = file.removeprefix("_assignsubmission_file").lstrip("_/")
        assert (term / "submitted" / student / "06_fmp" / name).read_text() == "{}"


def test_making_the_course_again_keeps_what_is_there(term):
    config = term / "nbgrader_config.py"
    config.write_text(config.read_text() + "# mine\n")
    before = scores(term)
    course.make_course(term, ROOT / "labs" / "five_labs.yml")
    (term / "grades.csv").unlink()
    call(term, ("export",))
    assert config.read_text().endswith("# mine\n") and scores(term) == before
