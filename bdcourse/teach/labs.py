"""Student copies of the lessons: stubs for answers, the answers kept through updates.

A lesson is the one source. `python -m bdcourse labs student` (or `make student`) cuts
its solutions, folds its figures and printed lines away under "You should see", and
writes the rest to student/. Run again after a `git pull` it brings what changed into
copies that are already in use; what a student has written stays.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bdcourse.files import write_whole

if TYPE_CHECKING:
    from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
SOLUTION = re.compile(rf"^( *){BEGIN}\n.*?^ *{END}$", re.M | re.S)
SEEN = ("figure", "check", "claim", "predict")
LOOKING = """\
# Only looking? Take the # away: the course's answers then step in for what you have not
# written yet, and "Run All" reaches the end.
# check.stand_in()"""
SKIP = "skip-execution"  # nbgrader leaves such cells out; editors run them


# --- From a lesson to a copy -----------------------------------------------------


def copy(lesson: NotebookNode) -> NotebookNode:
    """The student's notebook of an executed lesson.

    Each cell remembers in `metadata.bdcourse` which cell of the lesson it is (`key`)
    and what it said when it was made (`made`), so that an update knows what was edited.
    """
    import nbformat

    cells, asked, answer = [], None, ""
    for cell in lesson.cells:
        tags, made, more = cell.metadata.get("tags", []), _made(cell), []
        if "exercise" in tags:
            asked, answer = exercise(cell.source), without_marks(cell.source)
        elif "check" in tags and asked:
            more = [_tested(made, asked), _solution(cell, answer)]
            asked = None
        elif "setup" in tags:
            more = [_looking(cell)]
        elif cell.cell_type == "code":
            _tag(made, SKIP)
        cells += [c for c in (made, *more, seen(cell)) if c]
    metadata = {k: v for k, v in lesson.metadata.items() if k != "bdcourse"}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def exercise(source: str) -> str | None:
    """The name of the function that an exercise asks for; None for other cells."""
    try:
        tree = ast.parse(SOLUTION.sub(r"\1pass", source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # null bytes, or brackets ten thousand deep
    names = [d.name for d in tree.body if isinstance(d, (ast.FunctionDef, ast.ClassDef))]
    return names[-1] if names else None


def stub(source: str) -> str:
    """An exercise without its solution: it fails with one sentence until written."""
    name = exercise(source)
    sentence = f'raise NotImplementedError("{name} is not written yet.")'
    return SOLUTION.sub(lambda m: f"{m[1]}{sentence}  # your answer goes here", source)


def without_marks(source: str) -> str:
    """An exercise with its answer, and without the lines around that."""
    return SOLUTION.sub(lambda m: "\n".join(m[0].splitlines()[1:-1]), source)


def _solution(check: NotebookNode, answer: str) -> NotebookNode:
    """One answer, folded behind a check: text, so that running all cells earns nothing."""
    from nbformat import v4

    text = (
        f"<details><summary>Show one solution</summary>\n\n```python\n{answer}\n```\n\n</details>"
    )
    return _marked_as_made(v4.new_markdown_cell(text, id=f"{check.id}-one"))


def _looking(setup: NotebookNode) -> NotebookNode:
    from nbformat import v4

    name = f"{setup.id}-looking"
    return _marked_as_made(v4.new_code_cell(LOOKING, id=name, metadata={"tags": [SKIP]}))


def _marked_as_made(cell: NotebookNode, key: str = "") -> NotebookNode:
    """A cell of a copy that remembers which it is, and what it said when it was made."""
    cell.metadata["bdcourse"] = {"key": key or cell.id, "made": _digest(cell.source)}
    return cell


def _made(cell: NotebookNode) -> NotebookNode:
    from nbformat import v4

    source, key = cell.source, cell.id
    tags = [t for t in cell.metadata.get("tags", []) if t != "hide-input"]
    if "exercise" in tags:
        source, key = stub(source), f"exercise:{exercise(cell.source)}"
    new = getattr(v4, f"new_{cell.cell_type}_cell")(source, id=cell.id)
    if tags:
        new.metadata["tags"] = tags
    return _marked_as_made(new, key)


def _tested(cell: NotebookNode, name: str) -> NotebookNode | None:
    """Make a test of a check, so that nbgrader's "Validate" runs it; what else the cell
    shows, if anything, becomes a cell that "Validate" leaves out."""
    from nbformat import v4

    cell.metadata["nbgrader"] = {
        "grade_id": f"check-{name}",
        "grade": True,
        "locked": True,
        "solution": False,
        "task": False,
        "points": 1,
        "schema_version": 3,
    }
    call, more = split(cell.source, name)
    if not more:
        return None
    cell.source = call
    cell.metadata["bdcourse"]["made"] = _digest(call)
    name = f"{cell.id}-rest"
    return _marked_as_made(v4.new_code_cell(more, id=name, metadata={"tags": [SKIP]}))


def split(source: str, name: str) -> tuple[str, str]:
    """The call of a check, and the other lines of its cell.

    Raises:
        ValueError: there is no such call.
    """
    call = f"check.{name}({name})"
    if call not in source.splitlines():
        raise ValueError(f"the check of {name!r} must hold the line {call}.")
    return call, source.replace(call, "", 1).strip("\n")


def _tag(cell: NotebookNode, *tags: str) -> None:
    old = cell.metadata.get("tags", [])
    cell.metadata["tags"] = [*old, *(t for t in tags if t not in old)]


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def seen(cell: NotebookNode) -> NotebookNode | None:
    """What a cell showed, folded away: its pictures and its text."""
    from nbformat import v4

    if cell.cell_type != "code" or not set(SEEN) & set(cell.metadata.get("tags", [])):
        return None
    parts: list[str] = []
    attached: dict[str, dict[str, str]] = {}
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            name = f"seen-{len(attached)}.png"
            attached[name] = {"image/png": "".join(data["image/png"])}
            words = " ".join("".join(data.get("text/plain", "")).split())
            words = words.replace("[", "(").replace("]", ")")
            parts.append(f"![{words}](attachment:{name})")
        else:
            text = output.get("text") or data.get("text/plain", "")
            parts.append(f"```text\n{''.join(text).rstrip()}\n```")
    if not parts:
        return None
    text = "\n\n".join(["<details><summary>You should see</summary>", *parts, "</details>"])
    new = v4.new_markdown_cell(text, id=f"{cell.id}-seen")
    if attached:
        new["attachments"] = attached
    look = _digest(repr(attached))  # another picture is another cell
    return _marked_as_made(new, f"{new.id}-{look}")


# --- Bringing a copy up to date --------------------------------------------------


def update(old: NotebookNode, fresh: NotebookNode) -> tuple[NotebookNode, list[str]]:
    """`fresh` with everything that a student wrote in `old`, and what was done.

    Kept: the source and outputs of exercises and other cells that were edited, cells of
    the student's own, behind the cell that they followed, and the outputs of cells that
    did not change.
    """
    known = {_key(c): c for c in old.cells if _key(c)}
    if not known:
        return _rescued(old, fresh)
    keys = {_key(c) for c in fresh.cells}
    own: dict[str, list[NotebookNode]] = {}
    behind, answers, removed = "", 0, 0
    for cell in old.cells:
        if _key(cell) in keys:
            behind = _key(cell)
        elif not _key(cell) or _edited(cell):
            for name in ("bdcourse", "nbgrader"):  # copied along with a cell
                cell.metadata.pop(name, None)
            own.setdefault(behind, []).append(cell)
        else:
            removed += 1
    cells, added, changed = list(own.get("", [])), 0, 0
    for cell in fresh.cells:
        before = known.get(_key(cell))
        if before is None:
            added += 1
        elif _edited(before):
            cell, answers = _marked(before, cell), answers + 1
        elif before.source.strip() == cell.source.strip():
            cell = _marked(before, cell)
        else:
            changed += 1
        cells += [cell, *own.get(_key(cell), [])]
    fresh.cells = distinct(cells)
    counts = {
        "kept as you wrote them": answers,
        "of your own kept": sum(map(len, own.values())),
        "changed": changed,
        "added": added,
        "removed": removed,
    }
    done = [f"{n} cell{'s' * (n > 1)} {what}" for what, n in counts.items() if n]
    return fresh, done if changed + added + removed else []


def _key(cell: NotebookNode) -> str:
    return cell.metadata.get("bdcourse", {}).get("key", "")


def _marked(cell: NotebookNode, fresh: NotebookNode) -> NotebookNode:
    for name in ("bdcourse", "nbgrader"):
        if name in fresh.metadata:
            cell.metadata[name] = fresh.metadata[name]
    if "tags" in fresh.metadata:
        _tag(cell, *fresh.metadata["tags"])
    return cell


def _edited(cell: NotebookNode) -> bool:
    return _digest(cell.source) != cell.metadata["bdcourse"].get("made")


def distinct(cells: list[NotebookNode]) -> list[NotebookNode]:
    """The cells with an id each: editors copy ids along with cells."""
    from nbformat import v4

    seen: set[str] = set()
    for cell in cells:
        if cell.get("id") in seen or "id" not in cell:
            cell["id"] = v4.new_raw_cell().id
        seen.add(cell["id"])
    return cells


def _rescued(old: NotebookNode, fresh: NotebookNode) -> tuple[NotebookNode, list[str]]:
    """Answers found by the name of their function, where an editor lost the rest."""
    code = [c.source for c in old.cells if c.cell_type == "code"]
    written = {exercise(c): c for c in code if "NotImplementedError" not in c}
    found = 0
    for cell in fresh.cells:
        name = _key(cell).removeprefix("exercise:")
        if _key(cell) != name and name in written:
            cell.source, found = written[name], found + 1
    return fresh, [f"its cells were not marked any more: {found} answers taken over"]


def tidy(model: dict, **about) -> None:
    """Save a notebook without what JupyterLab adds when it is opened; a hook of it.

    That is the Python at hand, and the filters of jupytext.toml: a lesson that was only
    read would count as changed.
    """
    if model["type"] == "notebook":
        metadata = model["content"]["metadata"]
        if metadata.get("language_info", {}).get("name") == "python":
            metadata["language_info"] = {"name": "python"}
        if "jupytext" in metadata:
            for name in ("cell_metadata_filter", "notebook_metadata_filter"):
                metadata["jupytext"].pop(name, None)
            if not metadata["jupytext"]:
                del metadata["jupytext"]


# --- Files -----------------------------------------------------------------------


def student(
    names: Sequence[str] = (),
    out: str | os.PathLike = "student",
    lessons: Path = NOTEBOOKS,
) -> int:
    """Write or update the students' copies, and say what was done to each.

    Args:
        names: of lessons, or how they begin: "05"; default all.
        out: folder of the copies.
        lessons: folder of the executed lessons.

    Returns:
        how many copies could not be read; those are left as they are.
    """
    import nbformat

    paths = chosen_lessons(names, lessons)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; name a folder for the copies.")
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for path in paths:
        fresh, target = copy(nbformat.read(path, as_version=4)), out / path.name
        if not target.exists():
            said = "new"
        else:
            try:
                with warnings.catch_warnings():  # of old editors, which give no ids
                    warnings.simplefilter("ignore")
                    old = nbformat.reads(target.read_text("utf-8-sig"), as_version=4)
                lost = not any(_key(c) for c in old.cells)
                fresh, done = update(old, fresh)
            except Exception:  # nbformat has no one error for what is no notebook
                print(
                    f"{target} is not a notebook any more and was left alone; move it "
                    "away and run this again.",
                    file=sys.stderr,
                )
                failed += 1
                continue
            if lost:
                target.replace(target.with_suffix(".before.ipynb"))
            said = "; ".join(done) or "up to date"
            if lost:
                said += f"; the old file is {target.stem}.before.ipynb"
        print(f"{target}: {said}", flush=True)
        write_whole(target, (nbformat.writes(fresh) + "\n").encode())
    from bdcourse.teach import progress  # which reads lessons by functions of this module

    progress.begin(out)
    return failed


def reset(name: str, out: str | os.PathLike = "student") -> Path:
    """Put the stub of one exercise back into its copy; the answer goes to a file beside.

    Args:
        name: of the exercise.
        out: folder of the copies.

    Returns:
        the file that now holds what was in the cell.

    Raises:
        ValueError: no lesson has such an exercise.
        FileNotFoundError: there is no copy with it.
    """
    import nbformat

    from bdcourse.teach.lessons import lessons

    of = {e.name: (lesson.stem, e) for lesson in lessons() for e in lesson.exercises}
    if name not in of:
        raise ValueError(f"there is no exercise {name!r}; there are {', '.join(sorted(of))}.")
    stem, own = of[name]
    path = Path(out) / f"{stem}.ipynb"
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}; `python -m bdcourse labs student` makes it.")
    nb = nbformat.read(path, as_version=4)
    cells = [c for c in nb.cells if _key(c) == f"exercise:{name}"]
    if not cells:
        raise FileNotFoundError(f"{path} has no cell of {name} any more; `labs student` adds it.")
    kept = path.with_name(f"{name}.before.py")
    write_whole(kept, (cells[0].source + "\n").encode())
    cells[0].source, cells[0].outputs = own.stub, []
    cells[0].execution_count = None
    write_whole(path, (nbformat.writes(nb) + "\n").encode())
    return kept


def chosen_lessons(names: Sequence[str], lessons: Path = NOTEBOOKS) -> list[Path]:
    """The executed lessons, or those whose names begin so.

    Raises:
        FileNotFoundError: there are none here.
        ValueError: a name fits none, or is none.
    """
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
        raise ValueError("names must be how lessons begin, such as ['05'].")
    known = sorted(lessons.glob("*.ipynb"))
    if not known:
        raise FileNotFoundError(
            f"there are no lessons in {lessons}; run this in a clone of the course."
        )
    for name in names:
        if not any(p.stem.startswith(name) for p in known):
            stems = ", ".join(p.stem for p in known)
            raise ValueError(f"no lesson begins with {name!r}; there are {stems}.")
    return [p for p in known if not names or p.stem.startswith(tuple(names))]


def links(repository: str, branch: str = "main", lessons: Path = NOTEBOOKS) -> str:
    """A Markdown table that opens each lesson in Colab and in Binder.

    Built by the form of these services' addresses; whether they answer is not tried.

    Args:
        repository: OWNER/NAME on GitHub, yours or a fork.

    Raises:
        ValueError: it does not look like one.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(repository)):
        raise ValueError(f"a repository looks like OWNER/NAME, not {repository!r}.")
    lines = ["| lesson | Colab | Binder |", "|---|---|---|"]
    for path in chosen_lessons([], lessons):
        file = f"notebooks/{path.name}"
        colab = f"https://colab.research.google.com/github/{repository}/blob/{branch}"
        binder = f"https://mybinder.org/v2/gh/{repository}/{branch}?urlpath=lab/tree"
        row = f"[open]({colab}/{file}) | [open]({binder}/{file})"
        lines.append(f"| {path.stem} | {row} |")
    return "\n".join(lines)
