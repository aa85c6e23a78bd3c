"""Assignments: lessons and plans become a course for nbgrader."""

import nbformat
import pytest

from assignments import LESSONS, SIGMA, graded, read
from bdcourse import data
from bdcourse.__main__ import main
from bdcourse.teach import labs
from bdcourse.teach import nbgrader_course as course
from bdcourse.teach.check import CheckFailed
from helpers import ROOT

nbgrader = pytest.importorskip("nbgrader")

PLANS = sorted((ROOT / "labs").glob("*.yml"))


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
    lesson = read(labs.chosen_lessons(["05"])[0])
    cells = graded(course.assignment(lesson, {"outliers": 7}))
    assert set(cells) == {
        "setup",
        "sigma",
        "score",
        "outliers",
        "check-outliers",
        "largest_z",
        "clp_plain",
        "careful_u",
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
        ("labs: [{lesson: 05_clp, color: red}]", "an entry 'color'"),
        ("labs: [{lesson: 05_clp, exercises: [prayer]}]", "no exercise 'prayer'"),
        ("labs: [{lesson: 05_clp, points: {sigma: 0}}]", "whole number above 0"),
        ("labs: [{lesson: 05_clp, deadline: soon}]", "must look like 2027-01-31"),
        ("labs: [{lesson: 05_clp, deadline: [1]}]", "must look like 2027-01-31"),
        ("labs: [{lesson: 05_clp, points: 3}]", "points must name exercises"),
        ("labs: [{lesson: 05_clp, points: {3: 3}}]", "has no exercise 3"),
        ("labs: [{lesson: 05_clp, exercises: sigma}]", "must be a list of names"),
        ("labs: [{lesson: 05_clp, exercises: [[1]]}]", "must be a list of names"),
        ("labs: [{lesson: 05_clp, 3: 4, color: red}]", "an entry 3;"),
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    course.make_course(tmp_path / "course", ROOT / "labs" / "two_labs.yml")
    assert len(set(drawn)) == 4
    said = capsys.readouterr().out
    if not stored:
        assert f"note: {tmp_path / 'cache'} cannot be written" in said
        return
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o755
    assert f"images for the lessons are in {tmp_path / 'cache'}" in said
    config = tmp_path / "course" / "nbgrader_config.py"
    config.write_text("c = get_config()\n")
    course.make_course(tmp_path / "course", ROOT / "labs" / "two_labs.yml")
    assert "written by an earlier version" in capsys.readouterr().out
