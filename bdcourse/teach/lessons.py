"""What the lessons say of themselves: titles, minutes, exercises with hints and answers.

The executed notebooks are the one source. Start page, check cards, stand-ins and resets
read it here; where the lessons are not at hand (a bare installation), there is none.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from bdcourse.teach.labs import NOTEBOOKS, exercise, stub, without_marks

HINT = re.compile(r"<details><summary>Hint \d+</summary>\s*(.*?)\s*</details>", re.S)
MINUTES = re.compile(r"\*?(?:Reading|Doing):\*? (?:about )?(\d+) minutes")


@dataclass(frozen=True)
class Exercise:
    """One exercise: what a reader is given, and what is kept from them.

    Args:
        hints: Markdown, in rising order of help.
        stub: the cell as a copy holds it; answer: the cell with one right answer.
    """

    name: str
    hints: tuple[str, ...]
    stub: str
    answer: str


@dataclass(frozen=True)
class Lesson:
    """A lesson, by the name of its notebook; minutes to read and to do it."""

    stem: str
    title: str
    minutes: int
    exercises: tuple[Exercise, ...]


def lessons(folder: Path = NOTEBOOKS) -> list[Lesson]:
    """All lessons in order; none where there are no notebooks."""
    return [_read(p, p.stat().st_mtime_ns) for p in sorted(folder.glob("*.ipynb"))]


def find(name: str, folder: Path = NOTEBOOKS) -> Exercise | None:
    """The exercise of that name, in whichever lesson it is."""
    every = (e for lesson in lessons(folder) for e in lesson.exercises)
    return next((e for e in every if e.name == name), None)


@functools.cache
def _read(path: Path, changed: int) -> Lesson:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    found, before = [], ""
    for cell in cells:
        source = "".join(cell["source"])
        if "exercise" in cell["metadata"].get("tags", []):
            name = exercise(source)
            hints = tuple(HINT.findall(before))
            found.append(Exercise(name or "", hints, stub(source), without_marks(source)))
        before = source if cell["cell_type"] == "markdown" else ""
    first = "".join(cells[0]["source"]) if cells else ""
    title = first.splitlines()[0].removeprefix("# ") if first else path.stem
    text = "\n".join("".join(c["source"]) for c in cells[:3])
    minutes = sum(map(int, MINUTES.findall(text.replace("**", ""))))
    return Lesson(path.stem, title, minutes, tuple(found))
