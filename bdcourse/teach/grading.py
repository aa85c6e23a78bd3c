"""How nbgrader marks a submission: within limits, and to a score whatever it does.

nbgrader_config.py of a course names :class:`Examination` in place of nbgrader's own
`Execute`. The cells of a submission run in a confined process of their own; the tests
run here, and reach its functions through :mod:`bdcourse.teach.submission` only. A cell
that runs too long or ends its process is left out and the rest is run again in a new
one, so that a bad answer costs its own points only.
"""

from __future__ import annotations

import ast
import base64
import builtins
import contextlib
import copy
import functools
import io
import json
import os
import re
import shutil
import stat
import time
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
from jinja2 import pass_context
from nbconvert.exporters import NotebookExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import v4
from nbgrader.api import Gradebook
from nbgrader.preprocessors import NbGraderPreprocessor
from nbgrader.utils import is_grade, parse_utc
from traitlets import Float, Integer, List, Unicode
from traitlets.log import get_logger

from bdcourse.teach.labs import SKIP, distinct, exercise
from bdcourse.teach.submission import Gone, NotStarted, Submission

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nbformat import NotebookNode

LONGEST = 64 << 20  # bytes of a notebook that is handed in
CELLS, CELL, ALL = 1000, 200_000, 4_000_000  # cells; characters of one, and of all
IMPORTS = (ast.Import, ast.ImportFrom)
PICTURES = ("image/png", "image/jpeg", "image/gif")

# --- What was handed in ----------------------------------------------------------


def choose(assignment: str, student: str, notebooks: list[str]) -> None:
    """Take one notebook of a submission for the lab's, and say which; a hook of
    Autograde.

    Browsers and editors hand in `05_clp (1).ipynb` or `05_clp-Copy1.ipynb`. The rule:
    the exact name counts, else the newest of those that hold it, else the only notebook
    there is. A link of the exact name then points to it, and is made anew next time.

    Args:
        assignment, student: patterns that nbgrader was started with.
        notebooks: paths of one submission; left with the one that counts.
    """
    folder = Path(notebooks[0]).parent
    exact = folder / f"{folder.name}.ipynb"
    source = folder.resolve().parents[2] / "source" / folder.name
    if [p.name for p in source.glob("*.ipynb")] != [exact.name]:
        return  # not a lab of ours
    if folder.resolve().parent.name != folder.absolute().parent.name:
        get_logger().error(
            f"{_named(folder)} is a link to the folder of another student; nothing there is graded."
        )
        notebooks.clear()
        return
    for path in map(Path, notebooks):
        if why := _refused(path):
            get_logger().error(f"{_named(path)} {why}; it earns 0 points.")
            aside = path.with_suffix(".refused")
            while os.path.lexists(aside):
                aside = aside.with_suffix(aside.suffix + "-")
            path.replace(aside)
            path.touch()
    _harmless(folder)
    linked = exact.is_symlink()
    found = [p for p in map(Path, notebooks) if not (p == exact and linked)]
    named = [p for p in found if exact.stem.lower() in p.stem.lower()]
    named = named or found[: len(found) == 1]
    if exact in found:
        chosen, why = exact, "it has the exact name"
    elif named:
        chosen = max(named, key=lambda p: (p.stat().st_mtime, p.name))
        why = "it is the newest of that name" if named[1:] else "it is the only one"
        exact.unlink(missing_ok=True)
        try:
            exact.symlink_to(chosen.name)
        except OSError:  # a file system without links
            shutil.copy2(chosen, exact)
    else:
        get_logger().error(
            f"None of the {len(found)} notebooks in {_named(folder)} is named like "
            f"{exact.name}; rename the one that counts."
        )
        return
    if found != [exact]:
        rest = ", ".join(sorted(_named(p.name) for p in found if p != chosen))
        rest = f"; left out: {rest}" if rest else ""
        get_logger().warning(f"{_named(chosen)} counts as {folder.name}: {why}{rest}.")
    notebooks[:] = [str(exact)]


def _refused(path: Path) -> str:
    """Why a file that was handed in is not even opened."""
    # By way of other links, too, that are named like no notebook.
    if os.path.dirname(os.path.realpath(path)) != os.path.realpath(path.parent):
        return "is a link to another folder"
    about = path.stat() if path.exists() else path.lstat()
    if not stat.S_ISREG(about.st_mode):
        return "is no file"
    if about.st_size > LONGEST:
        return f"is longer than {LONGEST >> 20} MiB"
    return ""


def _harmless(folder: Path) -> None:
    """Take away what nbgrader, which copies all that lies beside a notebook, would
    follow to other folders, wait for, or stop at."""
    for at, folders, files in os.walk(folder):
        for path in (Path(at, name) for name in folders + files):
            mode = path.lstat().st_mode
            ours = path.suffix == ".ipynb" and stat.S_ISLNK(mode)  # seen above
            if not (ours or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                get_logger().warning(f"{_named(path)} is no file; it is deleted.")
                path.unlink()
    stamp = folder / "timestamp.txt"
    if stamp.is_file():
        try:
            parse_utc(stamp.read_bytes()[:100].decode().strip() or "2000-01-01")
        except (ValueError, OverflowError):
            get_logger().warning(f"{_named(stamp)} holds no time; it is deleted.")
            stamp.unlink()


def _named(path: str | Path) -> str:
    """A name that may hold anything, on one line of a log or a terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(path))


class Reader(NotebookExporter):
    """Reads a submission whatever is in the file; what is no notebook becomes one that
    says so and earns nothing."""

    def from_file(self, file_stream, resources=None, **kw):
        data = getattr(file_stream, "buffer", file_stream).read()
        try:
            notebook = legible(data)
        except ValueError as e:
            path = f"{resources['metadata']['path']}/{resources['unique_key']}.ipynb"
            get_logger().error(f"{path} {e}; it earns 0 points.")
            said = f"**The file that was handed in {e}, so nothing could be graded.**"
            notebook = v4.new_notebook(cells=[v4.new_markdown_cell(said)])
        return self.from_notebook_node(notebook, resources=resources, **kw)


def legible(data: bytes) -> NotebookNode:
    """A notebook of any version and from any editor, as a valid one of this version.

    Kept of each cell: kind, source, tags, grade id, attached pictures and a usable id.
    Outputs are left out: grading makes them anew.

    Raises:
        ValueError: why this is no notebook, to be read behind the name of the file.
    """
    if not data.strip():
        raise ValueError("is empty")
    try:
        text = data.decode(json.detect_encoding(data)).removeprefix("\ufeff")
        said = json.loads(text)
    except (ValueError, RecursionError) as e:
        cut = data.lstrip().startswith((b"{", b"\xef\xbb\xbf{"))
        where = f" from line {e.lineno}" if isinstance(e, json.JSONDecodeError) else ""
        raise ValueError(f"is cut off or damaged{where}" if cut else "is not a notebook") from None
    if isinstance(said, dict) and said.get("nbformat") in (2, 3):
        sheets = said.get("worksheets")
        sheets = sheets if isinstance(sheets, list) else []
        lists = [s.get("cells") for s in sheets if isinstance(s, dict)]
        _few([c for cells in lists if isinstance(cells, list) for c in cells])
        try:
            said = nbformat.reads(text, as_version=4)
        except Exception:  # nbformat has no one error for what is no notebook
            said = None
    if not isinstance(said, dict) or not isinstance(said.get("cells"), list):
        raise ValueError("is not a notebook, for it has no list of cells")
    cells, ids, room = [], set(), ALL
    for old in _few(said["cells"]):
        kind = old.get("cell_type") if isinstance(old, dict) else None
        source = old.get("source") if kind in ("code", "markdown", "raw") else None
        if isinstance(source, list) and all(isinstance(s, str) for s in source):
            source = "".join(source)
        if not isinstance(source, str):
            continue
        # Half a character of UTF-16 is none, and no file could hold it.
        source = source.encode("utf-8", "replace").decode()
        if len(source) > min(CELL, room):
            source = "# This cell is too long and was left out."
        room -= len(source)
        cell = getattr(v4, f"new_{kind}_cell")(source)
        cell.metadata = nbformat.from_dict(_known(old.get("metadata")))
        if kind == "markdown" and (pictures := _pictures(old.get("attachments"))):
            cell.attachments = nbformat.from_dict(pictures)
        same = old.get("id")
        if isinstance(same, str) and re.fullmatch(r"[\w-]{1,64}", same, re.A):
            cell.id = cell.id if same in ids else same
        ids.add(cell.id)
        cells.append(cell)
    return v4.new_notebook(cells=cells)


def _few(cells: list) -> list:
    if len(cells) > CELLS:
        raise ValueError(f"has more than {CELLS} cells")
    return cells


def _known(metadata: object) -> dict:
    """What grading and its pages look at; the rest could say anything to a browser."""
    metadata = metadata if isinstance(metadata, dict) else {}
    kept: dict = {}
    tags = metadata.get("tags")
    if isinstance(tags, list) and all(isinstance(t, str) for t in tags):
        kept["tags"] = [t for t in tags if re.fullmatch(r"[\w-]{1,64}", t, re.A)]
    marks = metadata.get("nbgrader")
    if isinstance(marks, dict) and isinstance(marks.get("grade_id"), str):
        kept["nbgrader"] = marks  # `Mend` puts the course's own in its place
    return kept


def _pictures(attachments: object) -> dict:
    """The pictures among what is attached to a cell."""
    kept: dict[str, dict[str, str]] = {}
    for name, forms in (attachments if isinstance(attachments, dict) else {}).items():
        for kind, data in (forms if isinstance(forms, dict) else {}).items():
            with contextlib.suppress(ValueError, TypeError):
                data = base64.b64decode("".join(data).replace("\n", ""), validate=True)
                if kind in PICTURES and re.fullmatch(r"[\w .()-]{1,200}", name):
                    kept[name] = {kind: base64.b64encode(data).decode()}
    return kept


# --- Showing it ------------------------------------------------------------------


@pass_context
def shown(context, source: str) -> str:
    """Markdown as HTML, within a second whatever it is; a filter."""
    # Some regular expressions behind Markdown take time by the square of what they
    # search, such as brackets of formulas that are never closed.
    if len(source) > 10_000 or source.count("\\") > 200 or " " * 500 in source:
        return f"<pre>{escape(source)}</pre>"
    attached = context.get("cell", {}).get("attachments", {})
    renderer = IPythonRenderer(escape=False, attachments=attached)
    return MarkdownWithMath(renderer=renderer).render(source)


# --- Running it ------------------------------------------------------------------


class OutOfTime(Exception):
    """A submission has had its share."""


class Examination(NbGraderPreprocessor):
    """Runs a submission in a process of its own and its tests in this one, and puts an
    error where one belongs."""

    timeout = Integer(20, help="seconds for a cell, or for a call in a test").tag(config=True)
    limit = Float(150.0, help="seconds for a submission").tag(config=True)
    attempts = Integer(6, help="cells that may be left out").tag(config=True)
    startup_timeout = Integer(180, help="seconds for a process to start").tag(config=True)
    readable = List(
        Unicode(), help="files and folders that submissions may read, such as data"
    ).tag(config=True)

    def preprocess(self, nb, resources):
        tests = Tests.of(resources["nbgrader"])
        blamed: dict[int, str] = {}
        # What has failed stays so when the rest is run again: a cell that ends its
        # process after a bad day would draw the numbers of the tests anew.
        self.lost: dict[int, list[NotebookNode]] = {}
        until, failed = time.monotonic() + self.limit, False
        while True:
            self.at = -1
            try:
                with Submission(
                    self.readable, self.startup_timeout, self.timeout, until
                ) as student:
                    self._through(nb, tests, student, blamed, until)
                break
            except NotStarted as e:
                if failed:
                    raise RuntimeError(
                        f"{e}, twice; nothing was graded. Try again when the machine "
                        "has less to do, or raise c.Examination.startup_timeout."
                    ) from None
                self.log.warning("The process did not start; trying once more.")
                failed, until = True, time.monotonic() + self.limit
                continue
            except Gone as e:
                late = f"took longer than {self.timeout} seconds"
                blamed[self.at] = late if e.late else str(e)
                if time.monotonic() > until:
                    blamed[self.at] = "was still running when the time was up"
                if len(blamed) <= self.attempts:
                    continue
                text = f"{len(blamed)} cells before it had to be left out"
            except OutOfTime:
                text = f"the submission took longer than {self.limit:.0f} seconds"
            for i in range(self.at, len(nb.cells)):
                blamed.setdefault(i, text)
            break
        for i, text in blamed.items():
            said = f"This cell {text}." if i <= self.at else f"Not run: {text}."
            _fail(nb.cells[i], said)
        return nb, resources

    def _through(self, nb, tests: Tests, student: Submission, blamed, until) -> None:
        """Run the cells in order; `self.at` says which one is at it."""
        for i, cell in enumerate(nb.cells):
            idle = SKIP in cell.metadata.get("tags", []) or i in blamed
            if cell.cell_type != "code" or not cell.source.strip() or idle:
                continue
            self.at = i
            if time.monotonic() > until:
                raise OutOfTime
            if i in self.lost:
                cell.outputs = self.lost[i]
            elif is_grade(cell):
                cell.outputs = tests.run(cell.metadata["nbgrader"]["grade_id"], student)
                if any(o.output_type == "error" for o in cell.outputs):
                    self.lost[i] = cell.outputs
            else:
                cell.outputs = _outputs(student.run(cell.source))


def _outputs(said: Mapping) -> list[NotebookNode]:
    """What a cell has shown: text, and nothing that a browser would run."""
    made = [
        v4.new_output("stream", name=name, text=said[key])
        for name, key in (("stdout", "printed"), ("stderr", "complained"))
        if said.get(key)
    ]
    if "error" in said:
        name, text, lines = said["error"]
        made.append(v4.new_output("error", ename=name, evalue=text, traceback=lines))
    return made


class Tests:
    """The tests of an assignment, as the gradebook has them, run in this process.

    A name that a test uses, and that neither it nor the set-up brings, is the
    submission's: its functions are called across a pipe. So `check.sigma(sigma)` is
    this process's check of that process's function.

    Args:
        sources: test -> source.
        given: sources of the locked cells, such as the set-up.
    """

    def __init__(self, sources: Mapping[str, str], given: list[str]) -> None:
        self.sources, self.given = sources, given
        self.names: dict[bool, dict] = {}

    @functools.cached_property
    def lines(self) -> list[ast.stmt]:
        """The statements of the set-up."""
        return [n for text in self.given for n in ast.parse(_plain(text)).body]

    @functools.cached_property
    def computed(self) -> set[str]:
        """Names that it brings otherwise than by importing."""
        own = [n for n in self.lines if not isinstance(n, IMPORTS)]
        return _bound(ast.Module(own, []))

    @classmethod
    def of(cls, about: Mapping) -> Tests:
        """The tests of the assignment that nbgrader is at."""
        with Gradebook(about["db_url"]) as book:
            notebook = book.find_notebook(about["notebook"], about["assignment"])
            graded = {c.name for c in notebook.grade_cells}
            cells = [
                (c.name, c.source)
                for c in notebook.source_cells
                if c.cell_type == "code" and c.locked
            ]
        key = json.dumps([sorted(graded), sorted(cells)])
        if key not in _TESTS:
            given = [source for name, source in cells if name not in graded]
            sources = {name: source for name, source in cells if name in graded}
            _TESTS[key] = cls(sources, given)
        return _TESTS[key]

    def run(self, name: str, student: Submission) -> list[NotebookNode]:
        """The outputs of a test.

        Raises:
            Gone: the submission ended in it.
        """
        if name not in self.sources:
            return [_error("NotGraded", "This test is none of the course's.")]
        printed = io.StringIO()
        student.begin()
        with contextlib.redirect_stdout(printed):
            failed = self._failure(name, student)
        text = student.printed + printed.getvalue()
        made = [v4.new_output("stream", name="stdout", text=text)] if text else []
        return made + ([failed] if failed else [])

    def _failure(self, name: str, student: Submission) -> NotebookNode | None:
        try:
            code = ast.parse(self.sources[name])
            # A copy, for an answer may change what it is given.
            names = dict(self._given(code))
            for used in _free(code) & self.computed:
                with contextlib.suppress(Exception):  # a file, say, has no copy
                    names[used] = copy.deepcopy(names[used])
            for used in _free(code) - names.keys():
                with contextlib.suppress(NameError):
                    names[used] = student.find(used)
            exec(compile(code, f"<{name}>", "exec"), names)
        except Gone:
            raise
        except Exception as e:
            lines = getattr(e, "_render_traceback_", lambda: None)()
            return _error(type(e).__name__, str(e), lines)
        return None

    def _given(self, code: ast.Module) -> dict:
        """What the set-up brings: its imports, or all that it computes if `code` uses
        more than those."""
        whole = bool(_free(code) & self.computed)
        if whole not in self.names:
            lines = [n for n in self.lines if whole or isinstance(n, IMPORTS)]
            made: dict = {"__name__": "__main__"}
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(ast.Module(lines, []), "<set-up>", "exec"), made)
            self.names[whole] = made
        return self.names[whole]


_TESTS: dict[str, Tests] = {}  # for the submissions that follow


def _plain(source: str) -> str:
    """Without the lines that only notebooks know, such as %matplotlib inline."""
    return re.sub(r"^\s*[%!].*$", "", source, flags=re.M)


def _bound(code: ast.AST) -> set[str]:
    """Names that are assigned, imported or defined anywhere in `code`."""
    found = set()
    for node in ast.walk(code):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, IMPORTS):
            found |= {(a.asname or a.name).split(".")[0] for a in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.add(node.name)
    return found


def _free(code: ast.AST) -> set[str]:
    """Names that `code` uses and does not bring."""
    used = {n.id for n in ast.walk(code) if isinstance(n, ast.Name)}
    return used - _bound(code) - set(dir(builtins))


def _error(name: str, text: str, lines: list[str] | None = None) -> NotebookNode:
    lines = lines or [f"{name}: {text}"]
    return v4.new_output("error", ename=name, evalue=text, traceback=lines)


def _fail(cell: NotebookNode, sentence: str) -> None:
    if cell.cell_type == "code":
        cell.outputs = [_error("NotGraded", sentence, [sentence])]


class Mend(NbGraderPreprocessor):
    """Puts a submission back into the shape that nbgrader expects, whatever an editor
    or a student did to it: the tests and the set-up are the course's own, each answer
    is the last cell that defines its function, and what grading does not wait for is
    tagged so."""

    def preprocess(self, nb, resources):
        about = resources["nbgrader"]
        # submitted/STUDENT/LAB and source/LAB lie side by side in a course.
        root = Path(resources["metadata"]["path"]).resolve().parents[2]
        source = root / "source" / about["assignment"] / f"{about['notebook']}.ipynb"
        if source.exists():
            ours = nbformat.read(source, as_version=4).cells
            nb.cells = distinct(mended(nb.cells, ours))
        return nb, resources


def mended(cells: list[NotebookNode], source: list[NotebookNode]) -> list[NotebookNode]:
    """The cells of a submission with the marks, tests and locked cells of `source`."""
    ours = {_grade_id(c): c for c in source if _grade_id(c)}
    answers = {n for n, c in ours.items() if c.metadata["nbgrader"]["solution"]}
    idle = {c.source.strip() for c in source if SKIP in c.metadata.get("tags", [])}
    kept: list[NotebookNode] = []
    place: dict[str, int] = {}
    for cell in cells:
        if _grade_id(cell) in ours.keys() - answers:
            continue  # ours comes back below
        if cell.cell_type == "code":
            tags = {t for t in cell.metadata.get("tags", []) if t != SKIP}
            tags |= {SKIP} if cell.source.strip() in idle else set()
            cell.metadata["tags"] = sorted(tags)
            name = exercise(cell.source)
            name = name if name in answers else _grade_id(cell)
            if name in answers:
                place[name] = len(kept)
        cell.metadata.pop("nbgrader", None)
        kept.append(cell)
    for name, at in place.items():
        kept[at].metadata["nbgrader"] = ours[name].metadata["nbgrader"]
    kept = kept or [v4.new_markdown_cell()]  # tests stand behind something
    tests: dict[int, list[NotebookNode]] = {}
    locked = []
    for name, cell in ours.items():
        if cell.metadata["nbgrader"]["grade"]:
            behind = place.get(name.removeprefix("check-"), len(kept) - 1)
            tests.setdefault(behind, []).append(cell)
        elif name not in answers:
            locked.append(cell)
    return locked + [c for i, cell in enumerate(kept) for c in (cell, *tests.get(i, []))]


def _grade_id(cell: NotebookNode) -> str:
    return cell.metadata.get("nbgrader", {}).get("grade_id", "")


# --- Pages about it --------------------------------------------------------------

TAGS = """a abbr b blockquote br caption center code dd del details div dl dt em h1 h2
h3 h4 h5 h6 hr i img kbd li mark ol p pre s small span strong sub summary sup table
tbody td tfoot th thead tr tt u ul""".split()
PICTURE = re.compile(r"data:image/(png|jpeg|gif);base64,|[^:]*$")
LINK = re.compile(r"(https?|mailto):|#|[^:]*$")


def cleaned(html: object) -> str:
    """HTML without what a browser would run or fetch; nbconvert's filter of this kind
    would show even paragraphs as text.

    Math is left to MathJax, but for the commands that make links and attributes.
    """
    import bleach

    def safe(tag: str, name: str, value: str) -> bool:
        value = value.strip()
        if name in ("src", "href"):
            rule = {"img": PICTURE, "a": LINK}.get(tag)
            return rule is not None and bool(rule.match(value))
        return name in ("class", "id", "alt", "title", "scope", "colspan", "rowspan")

    html = html.decode() if isinstance(html, bytes) else str(html)
    html = re.sub(r"\\(href|require|cssId|class|style|data|html\w*)\b", r"\1", html)
    return bleach.clean(html, TAGS, safe, protocols=["http", "https", "mailto", "data"])


# --- Images ----------------------------------------------------------------------


def draw_images() -> Path:
    """Draw and store the images that lessons load, for all users of this machine who
    share the cache.

    Returns:
        the folder of the cache.
    """
    from bdcourse import data

    for name in ("signs", "signs-hard"):
        data.load(name, "test")
        data.load(name)
    folder = data.cache_dir()
    with contextlib.suppress(OSError):  # another user's, or read-only
        folder.chmod(folder.stat().st_mode | 0o755)
    return folder
