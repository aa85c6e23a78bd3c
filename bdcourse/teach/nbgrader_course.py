"""A course directory for nbgrader, made from the lessons: `labs course DIR`.

Each chosen lesson becomes one assignment. An exercise is a solution cell, its check the
test that earns the points; the hidden part of the test runs the same check again, with
seeds of its own. What a mark does not depend on is tagged `skip-execution`: students
run it, grading does not wait for it. Everything else (release, validate, autograde,
feedback, export) is nbgrader's.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bdcourse.teach import check
from bdcourse.teach.labs import (
    NOTEBOOKS,
    SKIP,
    chosen_lessons,
    exercise,
    seen,
    split,
    without_marks,
)

if TYPE_CHECKING:
    from nbformat import NotebookNode

HIDDEN = """
### BEGIN HIDDEN TESTS
from bdcourse.teach.nbgrader_course import examine
examine("{name}", {name})
### END HIDDEN TESTS"""
CONFIG = r"""# Written by `python -m bdcourse labs course`; edit as you like.
from bdcourse.teach.grading import Examination, Mend, Reader, choose
from nbgrader.converters import Autograde

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = {course!r}
c.ClearSolutions.code_stub = {{
    "python": 'raise NotImplementedError("not written yet")  # your answer goes here'
}}
c.Autograde.pre_convert_hook = choose
c.Autograde.exporter_class = Reader
c.Autograde.sanitize_preprocessors = [
    Mend, *Autograde.sanitize_preprocessors.default()
]
c.Autograde.autograde_preprocessors = [
    Examination, *Autograde.autograde_preprocessors.default()[1:]
]
c.Examination.timeout = 20  # seconds for a cell, or for a call in a test
c.Examination.limit = 150  # seconds for a submission
# c.Examination.readable = ["/srv/data"]  # what else submissions may read
# What students write runs in no browser.
c.HTMLExporter.sanitize_html = True
c.HTMLExporter.filters = {{
    "clean_html": "bdcourse.teach.grading.cleaned",
    "strip_files_prefix": "bdcourse.teach.grading.cleaned",  # of nbgrader's own pages
    "markdown2html": "bdcourse.teach.grading.shown",
}}
c.LimitOutput.max_lines = 200
c.LimitOutput.max_traceback = 30
c.ExportApp.plugin_class = "nbgrader.plugins.CsvExportPlugin"
# For archives of Moodle, with a folder for each student or without. A file of the name
# in which nbgrader keeps the time of a submission is not taken from students.
c.FileNameCollectorPlugin.named_regexp = (
    r".*[/\\](?P<student_id>[^/\\]*_\d+)_assignsubmission_file_?[/\\]?"
    r"(?P<file_id>(?![_/\\]*timestamp\.txt$).+)"
)
"""


@dataclass(frozen=True)
class Lab:
    """One assignment.

    Args:
        lesson: its notebook.
        points: exercise -> points; exercises that are not in it are given solved.
        deadline: in UTC, or None.
    """

    lesson: Path
    points: Mapping[str, int]
    deadline: datetime | None = None


def examine(name: str, answer: Callable, times: int = 5) -> None:
    """Run a check a few times more, each with fresh seeds; what a hidden test calls.

    Raises:
        check.CheckFailed: what is wrong, and which hint helps.
    """
    for _ in range(times):
        with contextlib.redirect_stdout(io.StringIO()):
            getattr(check, name)(answer)


def exercises(lesson: NotebookNode) -> dict[str, int]:
    """The exercises of a lesson in order, with the importance that stands above each:
    its points, unless a plan says otherwise."""
    found, said = {}, 1
    for cell in lesson.cells:
        if mark := re.search(r"importance (\d)", cell.source):
            said = int(mark[1])
        if "exercise" in cell.metadata.get("tags", []):
            found[cast(str, exercise(cell.source))] = said
    return found


def assignment(lesson: NotebookNode, points: Mapping[str, int]) -> NotebookNode:
    """The instructor's version of a lesson, with solutions and hidden tests.

    Args:
        points: exercise -> points.

    Raises:
        ValueError: there is no such exercise, or one has no check of its own.
    """
    import nbformat

    known = exercises(lesson)
    if unknown := set(points) - set(known):
        raise ValueError(
            f"there is no exercise {sorted(unknown)[0]!r}; there are {', '.join(known)}."
        )
    cells, asked = [], None
    for cell in map(copy.deepcopy, lesson.cells):
        shown, tags = seen(cell), cell.metadata.get("tags", [])
        if "exercise" in tags:
            name = cast(str, exercise(cell.source))
            asked = name if name in points else None
            if asked:
                _mark(cell, name, solution=True)
            else:
                cell.source = without_marks(cell.source)
                _mark(cell, name, locked=True)
        elif "check" in tags and asked:
            rest = _graded(cell, asked, points[asked])
            asked = None
            cells += [cell, *([shown] if shown else []), *rest]
            continue
        elif "setup" in tags:
            _mark(cell, "setup", locked=True)
        elif cell.cell_type == "code":
            cell.metadata["tags"] = [*tags, SKIP]
        cells += [cell, *([shown] if shown else [])]
    made = [c.metadata.nbgrader.grade_id for c in cells if "nbgrader" in c.metadata]
    if lost := [n for n in points if f"check-{n}" not in made]:
        raise ValueError(f"exercise {lost[0]!r} is followed by no check.")
    metadata = {k: v for k, v in lesson.metadata.items() if k != "bdcourse"}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def _graded(cell: NotebookNode, name: str, points: int) -> list[NotebookNode]:
    """Make a test of a check cell; what else it shows goes to a cell that no mark
    depends on, and that may need what others have computed."""
    call, more = split(cell.source, name)
    rest = copy.deepcopy(cell)
    rest.source = more
    rest.id = f"{cell.id}-rest"
    rest.metadata["tags"] = [SKIP]
    cell.source = call + HIDDEN.format(name=name)
    _mark(cell, f"check-{name}", grade=True, locked=True, points=points)
    return [rest] if rest.source else []


def _mark(cell: NotebookNode, name: str, **what) -> None:
    flags = {"grade": False, "locked": False, "solution": False, "task": False}
    cell.metadata["nbgrader"] = {"grade_id": name, "schema_version": 3, **flags, **what}
    tags = [t for t in cell.metadata.get("tags", []) if t != "hide-input"]
    cell.metadata["tags"] = tags
    cell.metadata.pop("jupyter", None)  # a lesson folds its answers, an exam must not


def plan(path: Path | None, lessons: Path = NOTEBOOKS) -> tuple[str, list[Lab]]:
    """The name of a course and its labs, from a YAML file; without one, all lessons.

    Raises:
        ValueError: what is wrong in the file.
    """
    import nbformat

    said: dict[str, Any] = {
        "course": "backdoors",
        "labs": [{"lesson": p.stem} for p in chosen_lessons([])],
    }
    if path is not None:
        said = _read(path)
    labs: list[Lab] = []
    for entry in said["labs"]:
        where = f"{path}: lab {entry.get('lesson', '')!r}"
        if wrong := set(entry) - {"lesson", "exercises", "points", "deadline"}:
            raise ValueError(
                f"{where} has an entry {min(wrong, key=str)!r}; known are "
                "lesson, exercises, points, deadline."
            )
        if not isinstance(entry.get("lesson"), str):
            raise ValueError(f"{where} names no lesson, such as lesson: 05_clp.")
        found = chosen_lessons([entry["lesson"]], lessons)
        if len(found) > 1:
            raise ValueError(f"{where} fits {', '.join(p.stem for p in found)}.")
        if found[0] in (lab.lesson for lab in labs):
            raise ValueError(f"{where} stands twice; leave one out.")
        known = exercises(nbformat.read(found[0], as_version=4))
        asked, worth = entry.get("exercises") or list(known), entry.get("points") or {}
        if not isinstance(asked, list) or not all(isinstance(n, str) for n in asked):
            raise ValueError(
                f"{where}: exercises must be a list of names, such as [{', '.join(known)}]."
            )
        if not isinstance(worth, dict):
            raise ValueError(
                f"{where}: points must name exercises, such as {{{next(iter(known))}: 2}}."
            )
        points = {n: known.get(n, 0) for n in asked} | worth
        for name, value in points.items():
            if name not in known:
                raise ValueError(f"{where} has no exercise {name!r}; there are {', '.join(known)}.")
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"{where}: points of {name!r} must be a whole number above 0, not {value!r}."
                )
        labs.append(Lab(found[0], points, _deadline(entry.get("deadline"), where)))
    return said["course"], labs


def _read(path: Path) -> dict:
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"there is no plan {path}; see labs/two_labs.yml.")
    try:
        said = yaml.safe_load(path.read_text("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as e:
        why = " ".join(str(e).split()).rstrip(".")
        raise ValueError(f"{path} is not YAML ({why}).") from None
    entries = said.get("labs") if isinstance(said, dict) else None
    if (
        not isinstance(entries, list)
        or not entries
        or not all(isinstance(e, dict) for e in entries)
    ):
        raise ValueError(f"{path} must hold a list `labs:`, each with `lesson:`.")
    return {"course": str(said.get("course", "backdoors")), "labs": entries}


def _deadline(value, where: str) -> datetime | None:
    if value is None or isinstance(value, datetime):
        return value
    try:
        return datetime.fromisoformat(str(value))
    except ValueError:
        raise ValueError(
            f"{where}: deadline must look like 2027-01-31 23:59, not {value!r}."
        ) from None


def make_course(folder: Path, path: Path | None = None, lessons: Path = NOTEBOOKS) -> None:
    """Write an nbgrader course directory, or bring the sources of one up to date.

    Submissions, grades and a configuration that is there already are left alone.

    Args:
        folder: of the course.
        path: of the plan.

    Raises:
        RuntimeError: nbgrader is not installed.
        ValueError: the plan, or a lesson, is not as it should be.
    """
    import nbformat

    try:
        from nbgrader.api import Gradebook
    except ImportError:
        raise RuntimeError(
            "assignments need nbgrader: pip install nbgrader, in the environment of this course."
        ) from None
    # nbgrader starts alembic by its name, which is beside this Python.
    beside = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([beside, os.environ.get("PATH", "")])
    name, labs = plan(path, lessons)
    ready = [(lab, assignment(nbformat.read(lab.lesson, as_version=4), lab.points)) for lab in labs]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ValueError(f"{folder} is a file; name a folder for the course.") from None
    config = folder / "nbgrader_config.py"
    if not config.exists():
        config.write_text(CONFIG.format(course=name))
    elif "bdcourse.teach.grading.shown" not in config.read_text():
        print(
            f"note: {config} was written by an earlier version of the course; move "
            "it away and run this again for a new one."
        )
    with Gradebook(f"sqlite:///{(folder / 'gradebook.db').resolve()}", name) as book:
        for lab, notebook in ready:
            stem = lab.lesson.stem
            target = folder / "source" / stem / f"{stem}.ipynb"
            target.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, target)
            book.update_or_create_assignment(stem, duedate=lab.deadline)
            due = f", due {lab.deadline:%Y-%m-%d %H:%M}" if lab.deadline else ""
            total = sum(lab.points.values())
            print(f"{stem}: {len(lab.points)} exercises, {total} points{due}")
    from bdcourse.teach.confine import unconfined
    from bdcourse.teach.grading import draw_images

    images = draw_images()
    if any(images.glob("signs*.npz")):
        print(f"images for the lessons are in {images}")
    else:
        print(
            f"note: {images} cannot be written, so every submission will draw its "
            "images anew; BDCOURSE_CACHE can name another folder."
        )
    if lacking := unconfined():
        print(
            f"note: there is no {' and no '.join(lacking)} here, so submissions are "
            "not confined; `python -m bdcourse labs confined` says what they can do, "
            "the guide for instructors what helps."
        )
    first = labs[0].lesson.stem
    print(f"next: cd {folder} && nbgrader generate_assignment {first}")
