"""Students' copies: nothing of a solution, everything of an answer."""

import copy
import json
import re
import shutil

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from traitlets.config import Config

from bdcourse.__main__ import main
from bdcourse.teach import labs, progress
from sweep import refusal

LESSONS = labs.chosen_lessons([])
TASK = '''def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    y = x + x
    return y
    ### END SOLUTION'''


def lesson(*more, task=TASK, text="Read this."):
    picture = new_output("display_data", data={"image/png": "AAAA", "text/plain": "A [b] picture"})
    line = new_output("stream", text="double: all checks passed\n")
    cells = [
        new_markdown_cell(text, id="text"),
        new_code_cell(task, id="task", metadata={"tags": ["exercise", "hide-input"]}),
        new_code_cell(
            "check.double(double)",
            id="check",
            outputs=[line],
            metadata={"tags": ["check"]},
        ),
        new_code_cell("show(x)", id="figure", outputs=[picture], metadata={"tags": ["figure"]}),
        new_code_cell("x = 1", id="setup", outputs=[line], metadata={"tags": ["setup"]}),
        *more,
    ]
    return new_notebook(cells=cells, metadata={"bdcourse": {"source": "1"}})


def at(nb, name):
    return next(c for c in nb.cells if c.id == name)


def sources(nb):
    return [c.source for c in nb.cells]


def update(old, new):
    return labs.update(copy.deepcopy(old), labs.copy(new))


# --- Every lesson of the course --------------------------------------------------


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_copy_holds_no_solution_and_with_it_is_the_lesson_again(path):
    master = nbformat.read(path, as_version=4)
    made = labs.copy(master)
    nbformat.validate(made)
    assert labs.BEGIN not in nbformat.writes(made)
    solutions = {}
    for cell in master.cells:
        if "exercise" in cell.metadata.get("tags", []):
            (found,) = labs.SOLUTION.finditer(cell.source)
            solutions[labs.exercise(cell.source)] = found[0]
    assert solutions
    # One solution stands folded behind each check, as text; run, it would earn points.
    shown = [c for c in made.cells if c.id.endswith("-one")]
    assert len(shown) == len(solutions) and {c.cell_type for c in shown} == {"markdown"}
    text = "\n".join(c.source for c in made.cells if c not in shown)
    for body in solutions.values():
        lines = [line.strip() for line in body.splitlines()[1:-1]]
        # A hint may give one line away; a whole answer stands nowhere.
        assert len(lines) < 2 or "\n".join(lines) not in re.sub(r"\n\s+", "\n", text)
    back = []
    for cell in made.cells:
        key = cell.metadata.bdcourse.key
        if key.startswith("exercise:"):
            name = key.removeprefix("exercise:")
            said = f'raise NotImplementedError("{name} is not written yet.")'
            assert said in cell.source
            assert "hide-input" not in cell.metadata.tags
            stub = re.compile(r"^ *raise NotImplementedError.*$", re.M)
            cell.source = stub.sub(lambda _, n=name: solutions[n], cell.source)
        if cell.id.endswith("-rest"):  # what the cell of a check shows besides
            (whole,) = (c.source for c in master.cells if f"{c.id}-rest" == cell.id)
            first, _, more = whole.partition("\n")
            assert back[-1] == first and cell.source == more.lstrip("\n")
            back[-1] = whole
        elif not cell.id.endswith(("-seen", "-one", "-looking")):
            back.append(cell.source)
        assert cell.cell_type != "code" or not cell.outputs
    assert back == sources(master)
    pictures = str(made).count("attachment:seen-")
    assert pictures == sum(
        "image/png" in o.get("data", {})
        for c in master.cells
        if set(labs.SEEN) & set(c.metadata.get("tags", []))
        for o in c.outputs
    )


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_second_run_changes_nothing(path):
    master = nbformat.read(path, as_version=4)
    again, done = labs.update(labs.copy(master), labs.copy(master))
    assert done == [] and nbformat.writes(again) == nbformat.writes(labs.copy(master))


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_copy_can_be_validated(path):
    """nbgrader runs the set-up, the answers and each check, and nothing else."""
    made = labs.copy(nbformat.read(path, as_version=4))
    code = [c for c in made.cells if c.cell_type == "code"]
    run = [c for c in code if labs.SKIP not in c.metadata.get("tags", [])]
    names = [n for c in run if (n := labs.exercise(c.source))]
    tests = [c for c in run if "nbgrader" in c.metadata]
    assert [c.source for c in tests] == [f"check.{n}({n})" for n in names]
    assert len(run) == 1 + 2 * len(names) and "setup" in run[0].metadata.tags
    assert all(c.metadata.nbgrader.grade for c in tests)


def test_an_update_marks_what_was_made_before_copies_could_be_validated():
    mine = labs.copy(lesson())
    for cell in mine.cells:
        cell.metadata.pop("nbgrader", None)
    mine.cells[1].source = "def double(x): return 2 * x"
    at(mine, "figure").metadata["tags"] = ["figure", "mine"]
    got, done = update(mine, lesson())
    assert at(got, "check").metadata.nbgrader.grade_id == "check-double" and done == []
    assert at(got, "figure").metadata.tags == ["figure", "mine", labs.SKIP]
    got.cells.insert(3, copy.deepcopy(got.cells[2]))  # copied within an editor
    again, _ = update(got, lesson())
    assert sum("nbgrader" in c.metadata for c in again.cells) == 1


# --- What an update keeps --------------------------------------------------------


def test_a_copy_folds_away_what_is_to_be_seen():
    made = labs.copy(lesson())
    keys = [c.id for c in made.cells]
    assert keys == [
        "text",
        "task",
        "check",
        "check-one",
        "check-seen",
        "figure",
        "figure-seen",
        "setup",
        "setup-looking",
    ]
    seen = at(made, "check-seen").source
    head = "<details><summary>You should see</summary>\n\n```text\ndouble:"
    assert seen.startswith(head)
    figure = at(made, "figure-seen")
    assert figure.source.count("![A (b) picture](attachment:seen-0.png)") == 1
    assert figure.attachments["seen-0.png"] == {"image/png": "AAAA"}
    one = at(made, "check-one").source
    assert one.startswith("<details><summary>Show one solution</summary>\n\n```python\ndef double")
    assert "y = x + x" in one and "SOLUTION" not in one
    assert "# check.stand_in()" in at(made, "setup-looking").source
    with pytest.raises(NotImplementedError, match="^double is not written yet.$"):
        space = {}
        exec(made.cells[1].source, space)
        space["double"](1)


def test_answers_own_cells_and_outputs_stay_and_fixes_arrive():
    mine = labs.copy(lesson())
    mine.cells[1].source = "def double(x):\n    return 2 * x"
    mine.cells[1].outputs = [new_output("stream", text="hm\n")]
    at(mine, "setup").source = "x = 17  # mine"
    mine.cells.insert(2, new_code_cell("double(4)"))
    mine.cells.insert(0, new_markdown_cell("My notes"))
    new = lesson(new_markdown_cell("One more part.", id="more"), text="Read this twice.")
    new.cells[0].id = "other"  # its id is made from its text
    got, done = update(mine, new)
    assert sources(got)[:4] == [
        "My notes",
        "Read this twice.",
        "def double(x):\n    return 2 * x",
        "double(4)",
    ]
    assert got.cells[2].outputs[0].text == "hm\n"
    assert sources(got)[-3:] == ["x = 17  # mine", labs.LOOKING, "One more part."]
    assert done == [
        "2 cells kept as you wrote them",
        "2 cells of your own kept",
        "2 cells added",
        "1 cell removed",
    ]
    again, done = update(got, new)
    assert done == [] and sources(again) == sources(got)


def test_a_new_task_arrives_and_the_answer_stays():
    other = TASK.replace("Twice x.", "Twice x, a tensor.")
    untouched, done = update(labs.copy(lesson()), lesson(task=other))
    assert "a tensor" in untouched.cells[1].source and done == ["2 cells changed"]
    assert "a tensor" in at(untouched, "check-one").source
    mine = labs.copy(lesson())
    mine.cells[1].source = "def double(x): return 2 * x"
    got, done = update(mine, lesson(task=other))
    assert got.cells[1].source == "def double(x): return 2 * x"
    assert done == ["1 cell kept as you wrote them", "1 cell changed"]


def test_edited_text_of_a_cell_that_is_gone_becomes_the_students_own():
    mine = labs.copy(lesson())
    mine.cells[0].source += " I disagree."
    new = lesson(text="Another text.")
    new.cells[0].id = "other"
    got, done = update(mine, new)
    assert sources(got)[:2] == ["Read this. I disagree.", "Another text."]
    assert "1 cell of your own kept" in done


def test_a_new_picture_replaces_the_old_one():
    new = lesson()
    new.cells[3].outputs[0].data["image/png"] = "BBBB"
    got, done = update(labs.copy(lesson()), new)
    assert at(got, "figure-seen").attachments["seen-0.png"] == {"image/png": "BBBB"}
    assert len(got.cells) == 9 and done == ["1 cell added", "1 cell removed"]


def test_cells_that_were_copied_or_deleted_do_no_harm():
    mine = labs.copy(lesson())
    mine.cells[1].source = "def double(x): return 2 * x"
    mine.cells.append(copy.deepcopy(mine.cells[1]))  # copied with id and metadata
    del mine.cells[0]
    got, done = update(mine, lesson())
    nbformat.validate(got)
    assert len({c.id for c in got.cells}) == len(got.cells)
    assert sources(got).count("def double(x): return 2 * x") >= 1
    assert "1 cell added" in done and sources(got)[0] == "Read this."


# --- Files -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "lessons").mkdir()
    nbformat.write(lesson(), tmp_path / "lessons" / "05_a.ipynb")
    return tmp_path


def write(folder, only=()):
    return labs.student(only, folder / "out", folder / "lessons")


def test_files_are_written_updated_and_told(folder, capsys):
    assert write(folder) == 0 and write(folder) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("05_a.ipynb: new") and said[1].endswith(": up to date")
    nbformat.write(lesson(text="New."), folder / "lessons" / "05_a.ipynb")
    assert write(folder) == 0
    assert "1 cell changed" in capsys.readouterr().out


def test_a_notebook_without_marks_is_kept_and_its_answers_found(folder, capsys):
    write(folder)
    path = folder / "out" / "05_a.ipynb"
    nb = nbformat.read(path, as_version=4)
    nb.cells[1].source = "def double(x):\n    return 2 * x"
    for cell in nb.cells:
        del cell.metadata["bdcourse"]
    nbformat.write(nb, path)
    assert write(folder) == 0
    said = capsys.readouterr().out
    assert "1 answers taken over" in said and "05_a.before.ipynb" in said
    now = nbformat.read(path, as_version=4)
    assert now.cells[1].source == "def double(x):\n    return 2 * x"
    assert now.cells[0].metadata.bdcourse.key == "text"
    assert nbformat.read(folder / "out" / "05_a.before.ipynb", as_version=4) == nb
    assert write(folder) == 0 and "up to date" in capsys.readouterr().out


def test_a_copy_of_an_old_editor_is_brought_up_to_date(folder, capsys, recwarn):
    write(folder)
    path = folder / "out" / "05_a.ipynb"
    nb = json.loads(path.read_text())
    nb["cells"][1]["source"] = "def double(x): return 2 * x  # zwölf"
    for cell in nb["cells"]:
        del cell["id"]
    path.write_text("\ufeff" + json.dumps(nb, ensure_ascii=False), "utf-8")
    assert write(folder) == 0 and not list(recwarn)
    assert nbformat.read(path, as_version=4).cells[1].source.endswith("zwölf")


@pytest.mark.parametrize(
    "text",
    ["", "{", "my notes", '{"cells": 3}', "[]", '{"nbformat": 4, "cells": [3]}'],
)
def test_a_broken_copy_is_left_alone(folder, capsys, text):
    write(folder)
    path = folder / "out" / "05_a.ipynb"
    path.write_text(text)
    assert write(folder) == 1 and path.read_text() == text
    err = capsys.readouterr().err
    assert "not a notebook any more" in err and err.count("\n") == 1


def test_the_command_names_what_it_does_not_know(tmp_path, capsys):
    out = ["--out", str(tmp_path / "s")]
    assert main(["labs", "student", "--only", "00", *out]) == 0
    made = {p.name for p in (tmp_path / "s").iterdir()}
    assert made == {"00_welcome.ipynb", progress.FILE, progress.PAGE}
    assert main(["labs", "student", "--only", "77", *out]) == 1
    assert "no lesson begins with '77'; there are 00_welcome" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="in a clone of the course"):
        labs.chosen_lessons([], tmp_path / "nowhere")


@pytest.mark.parametrize("bad", [3, None, [3], b"05", {"05"}, True])
def test_what_names_no_lesson_is_refused(bad, tmp_path):
    for call in (
        lambda: labs.chosen_lessons(bad),
        lambda: labs.student(bad, tmp_path / "out"),
        lambda: labs.links(bad),
    ):
        assert refusal(call)
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refusal(lambda: labs.student(["00"], tmp_path / "file"))
    assert "begins with '5'" in refusal(lambda: labs.chosen_lessons("5"))


def test_links_have_the_form_that_colab_and_binder_ask_for(capsys):
    assert main(["labs", "links", "me/course", "--branch", "dev"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(LESSONS)
    colab, binder = re.findall(r"\((\S+)\)", lines[2])
    name = LESSONS[0].name
    start = "https://colab.research.google.com/github"
    assert colab == f"{start}/me/course/blob/dev/notebooks/{name}"
    start = "https://mybinder.org/v2/gh"
    assert binder == f"{start}/me/course/dev?urlpath=lab/tree/notebooks/{name}"
    assert main(["labs", "links", "https://x/y"]) == 1
    assert "looks like OWNER/NAME" in capsys.readouterr().err


def test_a_lesson_that_is_only_read_stays_as_it_is(tmp_path):
    """JupyterLab opens it, adds what it knows of this Python, and saves the pair."""
    files = pytest.importorskip("jupyter_server.services.contents.filemanager")
    jupytext = pytest.importorskip("jupytext.sync_contentsmanager")
    root = labs.NOTEBOOKS.parent
    hook = "bdcourse.teach.labs.tidy"
    assert f"--ContentsManager.pre_save_hook={hook} " in (root / "Makefile").read_text()
    config = Config(ContentsManager={"pre_save_hook": hook})
    manager = jupytext.build_sync_jupytext_contents_manager_class(files.FileContentsManager)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(root / "jupytext.toml", tmp_path)
    server = manager(root_dir=str(tmp_path), config=config)
    for path in LESSONS[:2]:
        pair = (path, path.with_suffix(".py"))
        for file in pair:
            shutil.copy(file, tmp_path / "notebooks")
        model = server.get(f"notebooks/{path.name}")
        assert "jupytext" in model["content"]["metadata"]
        language = model["content"]["metadata"]["language_info"]
        language |= {"version": "3.99.0", "file_extension": ".py"}
        server.save(model, f"notebooks/{path.name}")
        for file in pair:
            saved = (tmp_path / "notebooks" / file.name).read_bytes()
            assert saved == file.read_bytes()


def test_what_others_stored_in_a_notebook_is_saved():
    about = {"language_info": {"name": "R"}, "jupytext": {"formats": "ipynb,md"}}
    labs.tidy({"type": "notebook", "content": {"metadata": about}})
    assert about == {
        "language_info": {"name": "R"},
        "jupytext": {"formats": "ipynb,md"},
    }
    labs.tidy({"type": "file", "content": "text"})
