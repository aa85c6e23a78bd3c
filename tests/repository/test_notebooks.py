"""The lessons keep the rules of guards.py, and each guard can fail."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import guards
import notebooks as tool
from guards import GUARDS
from helpers import ROOT

FOLDER = ROOT / "notebooks"
LESSONS = sorted(FOLDER.glob("*.ipynb"))
PROMISED = (
    "00_welcome",
    "01_poisoning",
    "01b_gallery",
    "02_controlling_training",
    "03_inside_a_victim",
    "04_linf_pruning",
    "05_clp",
    "06_fmp",
    "07_mnp",
    "08_fip",
    "08b_sharpness",
    "09_showdown",
    "10_clips",
)

# The tour has no attacker of its own and may leave all exercises to the lessons.
RELAXED = {"00_welcome": {"threat_model"}}

# --- The lessons -----------------------------------------------------------------

none_yet = pytest.mark.skip(reason="there are no notebooks yet: run `make notebooks`")
lessons = pytest.mark.parametrize(
    "lesson",
    [pytest.param(p, id=p.stem) for p in LESSONS]
    or [pytest.param(None, id="none", marks=none_yet)],
)


@cache
def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


@lessons
@pytest.mark.parametrize("guard", GUARDS, ids=lambda g: g.__name__)
def test_lesson_keeps(guard: Callable, lesson: Path) -> None:
    if guard.__name__ in RELAXED.get(lesson.stem, ()):
        pytest.skip("this lesson is excused, see RELAXED")
    assert not guard(read(lesson)), f"{lesson.name} breaks a rule: {guard.__name__}"


@lessons
def test_lesson_equals_its_source(lesson: Path) -> None:
    source = lesson.with_suffix(".py")
    nb = read(lesson)
    assert source.exists()
    assert not tool.differences(nb, source)
    proof = nb.metadata.get("bdcourse", {}).get("source")
    assert proof == tool.provenance(source)["source"], "run `make notebooks`"


def test_no_half_pairs() -> None:
    assert not tool.orphans(FOLDER)


@pytest.mark.parametrize("name", PROMISED)
def test_promised_lesson_exists(name: str) -> None:
    assert (FOLDER / f"{name}.ipynb").exists()


def test_relaxations_name_lessons_and_guards() -> None:
    assert set(RELAXED) <= set(PROMISED)
    assert set().union(*RELAXED.values()) <= {g.__name__ for g in GUARDS}


# --- The guards ------------------------------------------------------------------

TOP = """# Poison

> Reading: 20 minutes. Run time: under a minute.
> Prerequisites: one course of deep learning.

## Objectives

- compute
- compare
- explain

## Threat model

| who | what |
|---|---|
| attacker | data |

<details><summary>Hint 1</summary>

Halve it.

</details>

"""
EXERCISE = f'''def half(x):
    """Return half of x."""
    {guards.BEGIN}
    a = 1
    b = 2
    c = 3
    d = 4
    e = 5
    f = 6
    g = 7
    h = 8
    i = 9
    return x / 2
    {guards.END}'''


def code(source: str, *tags: str, outputs: tuple = ()) -> NotebookNode:
    metadata = {"tags": list(tags)} if tags else {}
    if "exercise" in tags:
        metadata["jupyter"] = {"source_hidden": True}
    return new_code_cell(source, metadata=metadata, outputs=list(outputs))


def stream(text: str, name: str = "stdout") -> NotebookNode:
    return new_output("stream", name=name, text=text)


def picture(text: str, size: int = 100) -> NotebookNode:
    png = base64.b64encode(b"0" * size).decode()
    return new_output("display_data", {"image/png": png, "text/plain": text})


def lesson() -> NotebookNode:
    """The smallest lesson that keeps every rule. Cells 1 to 7 are code."""
    cells = [
        new_markdown_cell(TOP + "word " * 1500),
        code("import torch", "setup"),
        code("guess = None\nreveal()", "predict"),
        code(EXERCISE, "exercise", "hide-input"),
        code("check.half(half)", "check", outputs=(stream("half: right\n"),)),
        code("widgets.slider()", guards.IGNORED, outputs=(stream("12 ms"),)),
        code("check.claim()", "claim", outputs=(stream("The trigger is gone.\n"),)),
        code("show()", "figure", outputs=(picture("A sign with a patch. " * 3),)),
    ]
    cells += [new_markdown_cell("More words.") for _ in range(16)]
    cells.append(new_markdown_cell("## Recap\n\nDone.\n\n## References\n\nA paper."))
    cells += [code(f"{n} = None\nreveal()", "predict") for n in ("guess", "second")]
    cells += [code('quiz("poison")'), new_markdown_cell("[next](01_poisoning.ipynb) \u2192")]
    for n, cell in enumerate((c for c in cells if c.cell_type == "code"), 1):
        cell.execution_count = n
    metadata = {"kernelspec": tool.KERNEL, "language_info": {"name": "python"}}
    return new_notebook(cells=cells, metadata=metadata)


def test_a_good_lesson_passes() -> None:
    nb = lesson()
    nbformat.validate(nb)
    assert {g.__name__: c for g in GUARDS if (c := g(nb))} == {}


def source(i: int, text: str, then: str | None = None) -> Callable:
    """Put `text` into cell i, or there replace `text` by `then`."""

    def change(nb: NotebookNode) -> None:
        old = nb.cells[i].source
        assert then is None or text in old
        nb.cells[i].source = text if then is None else old.replace(text, then)

    return change


def retag(i: int, *tags: str) -> Callable:
    return lambda nb: nb.cells[i].metadata.update(tags=list(tags))


def output(i: int, *new: NotebookNode) -> Callable:
    return lambda nb: nb.cells[i].outputs.extend(new)


def insert(i: int, *cells: NotebookNode) -> Callable:
    return lambda nb: nb.cells.__setitem__(slice(i, i), cells)


def prints(text: str) -> Callable:
    return output(6, stream(text))


error = new_output("error", ename="ValueError", evalue="no", traceback=[])
html = new_output("display_data", {"text/html": "<p>/home/me/data.npz</p>"})
view = new_output("display_data", {tool.VIEW: {"model_id": "1"}})
a_picture = picture("A sign with a patch. " * 3)
long = "\n".join(f"x = {i}" for i in range(40))
answers = [code(EXERCISE, "exercise", "hide-input"), code("check.half(half)", "check")]

# Each guard's name, and changes to the good lesson that it must complain about.
BREAKS = {
    "run_in_order": [
        lambda nb: nb.cells[1].update(execution_count=None),
        lambda nb: nb.cells[1].update(execution_count=9),
        lambda nb: [c.update(execution_count=None) for c in nb.cells[1:8]],
    ],
    "no_errors": [output(6, error)],
    "no_stderr": [output(6, stream("careful", "stderr"))],
    "nothing_local": [
        prints("saved in /home/me/data.npz"),
        prints("saved in C:\\Users"),
        prints("<Net at 0x7f3a5c1b2d90>"),
        prints("took 3.2 s"),
        prints("350 ms"),
        prints("Wall time: long"),
        output(6, html),
    ],
    "under_a_megabyte": [prints("x" * 1_000_001)],
    "few_ignored": [
        retag(6, guards.IGNORED),
        retag(7, guards.IGNORED),
        insert(8, code("log()", guards.IGNORED)),
    ],
    "plain_switches": [
        retag(6, "clam"),
        retag(0),
        source(6, "# NBVAL_IGNORE_OUTPUT\nclaim()"),
        retag(6, "nbval-skip"),
    ],
    "clean_metadata": [
        lambda nb: nb.metadata.update(widgets={}),
        lambda nb: nb.metadata.pop("kernelspec"),
        output(5, view),
    ],
    "one_title": [
        source(0, "# Poison", "Poison"),
        source(10, "# Another title"),
        insert(0, code("1")),
    ],
    "box": [
        source(0, "Reading:", "Read:"),
        source(0, "Run time:", "Time:"),
        source(0, "> Prerequisites", "Prerequisites"),
    ],
    "objectives": [
        source(0, "## Objectives", "## Aims"),
        source(0, "- compare\n", ""),
        source(0, "- compare\n", "- compare\n- a\n- b\n- c\n"),
    ],
    "threat_model": [
        source(0, "## Threat model", "## Threats"),
        source(0, "|---|---|\n", ""),
    ],
    "setup_first": [
        retag(1, "method"),
        retag(2, "setup"),
        insert(1, code("1")),
        source(1, "x = 1\n" * 12),
    ],
    "cell_count": [
        lambda nb: nb.cells.__delitem__(slice(10, 20)),
        insert(20, *[new_markdown_cell("Words.") for _ in range(26)]),
    ],
    "word_count": [
        source(0, TOP),
        source(10, "word " * 1500),
        source(0, TOP + "```\n" + "word " * 1500 + "\n```"),
    ],
    "short_cells": [source(6, long[:100]), source(3, long)],
    "exercises": [retag(3, "method"), insert(5, *answers * 6)],
    "solved": [
        source(3, guards.END, "# the end"),
        source(3, guards.BEGIN, guards.END),
        source(3, '"""Return half of x."""', "# Half."),
        source(3, "this is not Python"),
        retag(3, "exercise"),
        lambda nb: nb.cells[3].metadata.pop("jupyter"),
        insert(8, code(EXERCISE)),
    ],
    "checked": [
        retag(4, "claim"),
        insert(4, answers[0]),
        insert(20, answers[0]),
    ],
    "prediction": [lambda nb: [c.metadata.pop("tags", None) for c in nb.cells]],
    "widget": [source(5, "log()")],
    "described_pictures": [
        output(6, picture("<Figure size 720x300 with 1 Axes and some more words>")),
        output(6, picture("Figure 1")),
        output(6, picture("")),
        output(6, a_picture),
        output(6, picture("A quite large picture of a sign with a patch.", 120_001)),
    ],
    "headings_in_order": [
        source(10, "#### Too deep"),
        source(0, "# Poison", "### Poison"),
    ],
    "folded_hints": [
        source(0, "Hint 1", "Hint 2"),
        source(0, "<details><summary>Hint 1", "<summary>Hint 1"),
        source(10, "> **Hint 1.** Halve it."),
        source(10, "<details>\n\nHalve it.\n\n</details>\n<details>\n\nTwice.\n\n</details>"),
    ],
    "few_claims": [source(6, "check.claim()\n" * 11), source(6, "show()")],
    "waiting_predictions": [
        source(2, "guess = None", "guess = 50"),
        retag(25, "method"),
    ],
    "quizzed": [source(27, "x = 1"), insert(20, code('quiz("again")'))],
    "whole_method": [source(3, "    i = 9\n", "")],
    "plain_code": [
        source(6, "check.claim()  # fmt: skip"),
        source(6, "check.claim()\nassert True"),
        source(6, "check.claim()  " + "#" * 80),
    ],
    "one_name_one_thing": [
        insert(8, code("x = 1"), code("for x in y: pass")),
        insert(8, code("half = 3")),
        insert(8, code("a, b = 1, 2"), code("if c:\n    b += 1")),
    ],
    "linked": [lambda nb: nb.cells.pop()],
    "closing": [
        source(24, "## Recap", "## Last words"),
        source(24, "## References", "## Sources"),
    ],
}


def test_every_guard_is_tested() -> None:
    assert set(BREAKS) == {g.__name__ for g in GUARDS}


@pytest.mark.parametrize(
    "guard, change",
    [
        pytest.param(g, change, id=f"{g.__name__}-{i}")
        for g in GUARDS
        for i, change in enumerate(BREAKS[g.__name__])
    ],
)
def test_guard_notices(guard: Callable, change: Callable) -> None:
    nb = lesson()
    change(nb)
    assert guard(nb)


@pytest.mark.parametrize(
    "guard, change",
    [
        (guards.no_errors, insert(8, code("1", "raises-exception", outputs=(error,)))),
        (guards.nothing_local, prints("ResNet-18s, 1/2, and/or, 3.5 %, 64x64, 0x1F")),
        (guards.nothing_local, output(5, stream("saved in /home/me/data.npz"))),
        (guards.headings_in_order, source(10, "```\n#### a comment\n```")),
        (guards.short_cells, source(3, "x = 1\n\n" * 30)),
        (guards.one_name_one_thing, insert(8, code("[x for x in y]"), code("x = {k for k in y}"))),
        (guards.one_name_one_thing, insert(8, *[code("for x in y: pass")] * 2)),
    ],
)
def test_guard_allows(guard: Callable, change: Callable) -> None:
    nb = lesson()
    change(nb)
    assert not guard(nb)


@pytest.mark.slow
def test_a_cell_that_survives_its_time_limit_fails(tmp_path) -> None:
    """nbval by itself lets it pass, and excuses the cells behind it."""
    source = "import time\ntry:\n    time.sleep(30)\nexcept KeyboardInterrupt:\n    pass"
    cell = new_code_cell(source, execution_count=1)
    path = tmp_path / "slow.ipynb"
    nbformat.write(new_notebook(cells=[cell]), path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", str(path)]
    command += ["--nbval", "--nbval-current-env", "--nbval-cell-timeout", "2"]
    root = FOLDER.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout
    assert "took too long" in done.stdout
