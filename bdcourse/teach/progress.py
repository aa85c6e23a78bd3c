"""What a learner has done: kept beside their copies, shown on a start page.

`labs student` puts a file `.progress.json` into the folder of the copies. A check that
passes there adds its exercise to it; elsewhere nothing is written.
"""

from __future__ import annotations

import json
from pathlib import Path

from bdcourse.files import write_whole
from bdcourse.teach.lessons import Lesson, lessons

FILE, PAGE = ".progress.json", "START.md"


def done(folder: Path) -> set[str]:
    """The exercises that passed their check in this folder's copies.

    A file that is no list of names (cut short, or edited) counts as empty.
    """
    try:
        said = json.loads((folder / FILE).read_text("utf-8"))
        return {name for name in said["done"] if isinstance(name, str)}
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def begin(folder: Path) -> None:
    """Make a folder of copies one that keeps progress; and its start page anew."""
    _write(folder, done(folder))


def record(name: str, folder: Path | None = None) -> None:
    """Note that an exercise passed, in a folder of copies; elsewhere do nothing."""
    folder = Path.cwd() if folder is None else folder
    if not (folder / FILE).is_file():
        return
    before = done(folder)
    if name not in before:
        try:
            _write(folder, before | {name})
        except RuntimeError:  # a full disk must not turn a right answer into an error
            return


def _write(folder: Path, names: set[str]) -> None:
    text = json.dumps({"done": sorted(names)}, indent=1) + "\n"
    write_whole(folder / FILE, text.encode())
    write_whole(folder / PAGE, page(folder).encode())


def counts(folder: Path) -> list[tuple[Lesson, int, int]]:
    """(lesson, exercises done, exercises) of each lesson that has a copy here."""
    names = done(folder)
    return [
        (lesson, sum(e.name in names for e in lesson.exercises), len(lesson.exercises))
        for lesson in lessons()
        if (folder / f"{lesson.stem}.ipynb").exists()
    ]


def page(folder: Path) -> str:
    """The start page: where to go on, and how far each lesson is."""
    rows = counts(folder)
    unfinished = [lesson for lesson, n, total in rows if n < total]
    began = any(n for _, n, _ in rows)
    lines = ["# Backdoors in neural networks", ""]
    if unfinished:
        here, word = unfinished[0], "Continue" if began else "Begin"
        lines += [f"**{word} with [{here.title}]({here.stem}.ipynb)**", ""]
    elif rows:
        lines += ["**Every exercise passes its check. What will you measure next?**", ""]
    lines += ["| lesson | minutes | exercises done |", "|---|---:|---|"]
    for lesson, n, total in rows:
        bar = "\u25a0" * n + "\u25a1" * (total - n)
        lines.append(
            f"| [{lesson.title}]({lesson.stem}.ipynb) | {lesson.minutes} | {bar} {n} of {total} |"
        )
    lines += [
        "",
        "These are your copies: write into them as you like. `make lab` brings news of the "
        "lessons into them and keeps what you wrote.",
        "",
        "- A check that passes fills a square here; open this page again to see it.",
        "- Begin an exercise anew: `python -m bdcourse labs reset NAME`, in a terminal.",
        "- The lessons with answers and results are in [notebooks](../notebooks).",
        "",
    ]
    return "\n".join(lines)


def text(folder: Path) -> str:
    """The same for a terminal.

    Raises:
        FileNotFoundError: there are no copies in this folder.
    """
    rows = counts(folder)
    if not rows:
        raise FileNotFoundError(
            f"there are no lessons in {folder}; `python -m bdcourse labs student` makes copies."
        )
    wide = max(len(lesson.stem) for lesson, *_ in rows)
    lines = [
        f"{lesson.stem:{wide}}  {n} of {total}  {'#' * n}{'.' * (total - n)}"
        for lesson, n, total in rows
    ]
    every = sum(total for *_, total in rows)
    return "\n".join([*lines, f"{'together':{wide}}  {sum(n for _, n, _ in rows)} of {every}"])
