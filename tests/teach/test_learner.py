"""What a learner has done is kept beside their copies, and shown."""

import json

import nbformat
import pytest

import answers_welcome
from bdcourse.__main__ import main
from bdcourse.teach import cards, check, labs, lessons, progress


@pytest.fixture
def copies(tmp_path, monkeypatch):
    """Two lessons' copies, in a folder that is worked in."""
    labs.student(["00", "05"], tmp_path / "student")
    monkeypatch.chdir(tmp_path / "student")
    return tmp_path / "student"


def take(x, y, index):
    return x[index].float() / 255, y[index]


def unwritten(*args):
    raise NotImplementedError("take is not written yet.")


def test_lessons_say_what_they_are():
    every = lessons.lessons()
    assert [lesson.stem for lesson in every] == [p.stem for p in labs.chosen_lessons([])]
    for lesson in every:
        assert lesson.title and 20 <= lesson.minutes <= 240, lesson.stem
        for exercise in lesson.exercises:
            assert 1 <= len(exercise.hints) <= 5, (lesson.stem, exercise.name)
            assert "NotImplementedError" in exercise.stub and labs.BEGIN not in exercise.answer
            compile(exercise.answer, "answer", "exec")
            assert exercise.answer not in "".join(exercise.hints)
    names = [e.name for lesson in every for e in lesson.exercises]
    assert len(set(names)) == len(names)


def test_a_passed_check_fills_a_square(copies):
    assert "Begin with" in (copies / progress.PAGE).read_text()
    check.take(take)
    assert progress.done(copies) == {"take"}
    page = (copies / progress.PAGE).read_text()
    assert "\u25a0\u25a1\u25a1\u25a1 1 of 4" in page and "Continue with" in page
    before = (copies / progress.FILE).stat().st_mtime_ns
    check.take(take)  # once more changes nothing
    assert (copies / progress.FILE).stat().st_mtime_ns == before
    with pytest.raises(check.CheckFailed):
        check.confusion(unwritten)
    assert progress.done(copies) == {"take"}


def test_elsewhere_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check.take(take)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[1]", '{"done": 3}', '{"done": [1, "take"]}', "\x00"])
def test_a_broken_record_counts_as_empty(copies, text):
    (copies / progress.FILE).write_text(text)
    assert progress.done(copies) <= {"take"}
    check.take(take)
    check.confusion(answers_welcome.confusion)
    assert progress.done(copies) == {"confusion", "take"}
    assert json.loads((copies / progress.FILE).read_text()) == {"done": ["confusion", "take"]}


def test_an_update_of_the_copies_keeps_the_progress(copies):
    check.take(take)
    labs.student(["00"], copies)
    assert progress.done(copies) == {"take"}


def test_the_command_tells_and_begins_anew(copies, capsys):
    check.take(take)
    capsys.readouterr()
    assert main(["labs", "progress", "--out", str(copies)]) == 0
    assert "00_welcome  1 of 4" in (said := capsys.readouterr().out) and "together" in said
    path = copies / "00_welcome.ipynb"
    nb = nbformat.read(path, as_version=4)
    (cell,) = (c for c in nb.cells if c.metadata.bdcourse.key == "exercise:take")
    stub, cell.source = cell.source, "def take(x, y, index):\n    return my(x)"
    nbformat.write(nb, path)
    assert main(["labs", "reset", "take", "--out", str(copies)]) == 0
    assert "begins anew" in capsys.readouterr().out
    again = nbformat.read(path, as_version=4)
    assert [c.source for c in again.cells if c.metadata.bdcourse.key == "exercise:take"] == [stub]
    assert "return my(x)" in (copies / "take.before.py").read_text()
    for words, complaint in (
        (["reset", "nothing", "--out", str(copies)], "there is no exercise 'nothing'"),
        (["reset", "poison", "--out", str(copies)], "there is no "),
        (["progress", "--out", str(copies / "none")], "there are no lessons in"),
    ):
        assert main(["labs", *words]) == 1
        assert complaint in capsys.readouterr().err


class Shell:
    """What IPython gives: names of the notebook, and a kernel."""

    def __init__(self):
        self.user_ns, self.kernel = {"torch": __import__("torch")}, object()


@pytest.fixture
def shell(monkeypatch):
    import IPython

    own = Shell()
    monkeypatch.setattr(IPython, "get_ipython", lambda: own)
    yield own
    check.stand_in(False)


def test_answers_step_in_for_stubs_only(copies, shell, capsys):
    with pytest.raises(check.CheckFailed, match="not written yet"):
        check.take(unwritten)
    check.stand_in()
    check.take(unwritten)
    assert "take: not written yet, so the course's own answer stands in." in (
        capsys.readouterr().out
    )
    check.take(shell.user_ns["take"])  # it is there now, and right
    with pytest.raises(check.CheckFailed, match="floats"):
        check.take(lambda x, y, i: (x[i], y[i]))  # written, and wrong
    assert progress.done(copies) == {"take"}


def test_a_card_brings_hints_one_by_one_then_a_solution(copies, shell, monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda *things: shown.extend(things))
    monkeypatch.setattr(cards, "_failed", cards.Counter())
    with pytest.raises(check.CheckFailed):
        check.take(unwritten)
    (card,) = shown
    labels = [b.description for b in card.children[0].children]
    assert labels == ["Hint 1 of 2", "Start again"]
    hint = card.children[0].children[0]
    hint.click()
    assert "**Hint 1.** A tensor of positions" in shown[-1].data
    hint.click()
    assert "**Hint 2.** Bytes" in shown[-1].data and hint.disabled
    card.children[0].children[1].click()
    assert "raise NotImplementedError" in shown[-1].data
    with pytest.raises(check.CheckFailed):
        check.take(unwritten)
    buttons = {b.description: b for b in shown[-1].children[0].children}
    buttons["Show one solution"].click()
    assert "return x[index].float() / 255" in shown[-1].data
    buttons["Go on without mine"].click()
    assert "take" in shell.user_ns


def test_outside_of_copies_there_are_no_cards(tmp_path, monkeypatch, shell):
    monkeypatch.chdir(tmp_path)
    assert not cards.wanted() and not cards.offer("take")
