"""How nbgrader runs a submission: within limits, and to a score whatever it does.

nbgrader_config.py of a course names :class:`Examination` in place of nbgrader's own
`Execute`. A cell that runs too long or ends its kernel is left out and the rest is run
again, so that one bad answer costs its own points only. `confine` limits the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import psutil
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbconvert.exporters import NotebookExporter
from nbformat import v4
from nbgrader.preprocessors import Execute, NbGraderPreprocessor
from nbgrader.utils import is_grade
from traitlets import Float, Integer
from traitlets.log import get_logger

from bdcourse.labs import SKIP, distinct, exercise

if TYPE_CHECKING:
    from nbformat import NotebookNode

MEMORY, FILE, CPU = 8 << 30, 100 << 20, 120  # bytes, bytes, seconds


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
            f"None of the {len(found)} notebooks in {folder} is named like {exact.name}"
            "; rename the one that counts."
        )
        return
    if found != [exact]:
        rest = ", ".join(sorted(p.name for p in found if p != chosen))
        rest = f"; left out: {rest}" if rest else ""
        get_logger().warning(f"{chosen} counts as {folder.name}: {why}{rest}.")
    notebooks[:] = [str(exact)]


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

    Kept of each cell: kind, source, metadata, attachments and a usable id. Outputs are
    left out: grading makes them anew.

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
        raise ValueError(
            f"is cut off or damaged{where}" if cut else "is not a notebook"
        ) from None
    if isinstance(said, dict) and said.get("nbformat") in (2, 3):
        try:
            said = nbformat.reads(text, as_version=4)
        except Exception:  # nbformat has no one error for what is no notebook
            said = None
    if not isinstance(said, dict) or not isinstance(said.get("cells"), list):
        raise ValueError("is not a notebook, for it has no list of cells")
    cells, ids = [], set()
    for old in said["cells"]:
        kind = old.get("cell_type") if isinstance(old, dict) else None
        source = old.get("source") if kind in ("code", "markdown", "raw") else None
        if isinstance(source, list) and all(isinstance(s, str) for s in source):
            source = "".join(source)
        if not isinstance(source, str):
            continue
        cell = getattr(v4, f"new_{kind}_cell")(source)
        for name in ("metadata", "attachments"):
            if isinstance(old.get(name), dict) and (kind != "code" or name[0] == "m"):
                cell[name] = nbformat.from_dict(old[name])
        tags = cell.metadata.get("tags", [])
        if not isinstance(tags, list) or not all(isinstance(t, str) for t in tags):
            del cell.metadata["tags"]
        marks = cell.metadata.get("nbgrader", {})
        if not isinstance(marks, dict) or not isinstance(
            marks.get("grade_id", ""), str
        ):
            del cell.metadata["nbgrader"]
        same = old.get("id")
        if isinstance(same, str) and re.fullmatch(r"[\w-]{1,64}", same, re.A):
            cell.id = cell.id if same in ids else same
        ids.add(cell.id)
        cells.append(cell)
    about = said.get("metadata")
    about = about if isinstance(about, dict) else {}
    about = {k: about[k] for k in ("kernelspec", "language_info")
             if isinstance(about.get(k), dict)}  # fmt: skip
    return v4.new_notebook(cells=cells, metadata=nbformat.from_dict(about))


# --- Running it ------------------------------------------------------------------


class OutOfTime(Exception):
    """A submission has had its share."""


class Examination(Execute):
    """Runs a submission in a confined kernel and puts an error where one belongs."""

    timeout = Integer(20, help="seconds for a cell").tag(config=True)
    limit = Float(150.0, help="seconds for a submission").tag(config=True)
    attempts = Integer(6, help="cells that may be left out").tag(config=True)
    startup_timeout = Integer(180, help="seconds for a kernel to start").tag(
        config=True
    )
    interrupt_on_timeout = False  # an answer may swallow the interrupt
    raise_on_iopub_timeout = False

    def preprocess(self, nb, resources, km=None):
        self.extra_arguments = [
            "--HistoryManager.hist_file=:memory:",
            "--InteractiveShellApp.exec_lines=from bdcourse.grading import confine",
            "--InteractiveShellApp.exec_lines=confine()",
        ]
        blamed: dict[int, str] = {}
        start, failed = time.monotonic(), False
        if sys.platform.startswith("linux"):
            ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # orphans become our children
        while True:
            self.at, self.until = -1, start + self.limit
            for i in blamed:
                nb.cells[i].metadata.setdefault("tags", []).append(SKIP)
            try:
                super().preprocess(nb, resources)
                break
            except (DeadKernelError, CellTimeoutError, RuntimeError) as e:
                if self.at < 0:  # no cell has run yet, so none is to blame
                    if failed:
                        raise RuntimeError(
                            f"the kernel failed to start twice ({e}); nothing was "
                            "graded."
                        ) from None
                    self.log.warning("The kernel did not start; trying once more.")
                    failed, start = True, time.monotonic()
                    continue
                if not isinstance(e, (DeadKernelError, CellTimeoutError)):
                    raise
                blamed[self.at] = (
                    f"took longer than {self.timeout} seconds"
                    if isinstance(e, CellTimeoutError)
                    else "ended the kernel: it exited, or used too much memory or time"
                )
                last = len(blamed) > self.attempts
            except OutOfTime:
                last = True
            finally:
                for child in psutil.Process().children(recursive=True):
                    child.kill()
            if last:
                for i in range(self.at, len(nb.cells)):
                    text = f"the submission took longer than {self.limit:.0f} seconds"
                    blamed.setdefault(i, text)
                break
        for i, text in blamed.items():
            _fail(
                nb.cells[i],
                f"This cell {text}." if i <= self.at else f"Not run: {text}.",
            )
        for cell in filter(is_grade, nb.cells):
            # nbgrader takes any line on stderr, a warning say, for a failure.
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        return nb, resources

    def on_cell_start(self, cell, cell_index):
        """Remember where we are; called by nbclient."""
        if cell.cell_type == "code" and cell.source.strip():
            if SKIP not in cell.metadata.get("tags", []):
                self.at = cell_index
                if time.monotonic() > self.until:
                    raise OutOfTime


def _fail(cell: NotebookNode, sentence: str) -> None:
    if cell.cell_type == "code":
        cell.outputs = [v4.new_output(
            "error", ename="NotGraded", evalue=sentence, traceback=[sentence]
        )]  # fmt: skip


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
    kept, place = [], {}
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
    return locked + [
        c for i, cell in enumerate(kept) for c in (cell, *tests.get(i, []))
    ]


def _grade_id(cell: NotebookNode) -> str:
    return cell.metadata.get("nbgrader", {}).get("grade_id", "")


# --- In the kernel ---------------------------------------------------------------


def draw() -> Path:
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


def confine() -> list[str]:
    """Limit this process: memory, time, files to its own folder, no connections.

    Returns:
        what this system cannot limit, in words; the rest is in force.
    """
    draw()  # before the door closes
    os.environ["TMPDIR"] = tempfile.mkdtemp()
    tempfile.tempdir = None
    missing = []
    for what, limit in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, FILE),
                        (resource.RLIMIT_CPU, CPU)):  # fmt: skip
        try:
            resource.setrlimit(what, (limit, limit))
        except (ValueError, OSError):
            missing.append("memory, file sizes or time")
    missing += _landlock([os.getcwd(), os.environ["TMPDIR"], "/dev"])
    return missing


# Of linux/landlock.h: everything that changes a file tree, by first version; TCP.
WRITES = {1: 0b1_1111_1111_0010, 2: 1 << 13, 3: 1 << 14}
CREATE, ADD_RULE, RESTRICT = 444, 445, 446


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("net", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def landlock() -> int:
    """The version of Linux's Landlock here; 0 if there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, ctypes.CDLL(None).syscall(CREATE, None, 0, 1))


def _landlock(folders: list[str]) -> list[str]:
    """Allow writing below these folders only and no TCP; of this thread, for good."""
    version = landlock()
    if not version:
        return ["writing outside its folder", "the network"]
    libc = ctypes.CDLL(None, use_errno=True)
    writes = sum(bits for v, bits in WRITES.items() if v <= version)
    rules = _Ruleset(writes, 3 if version >= 4 else 0)
    size = ctypes.sizeof(rules) if version >= 4 else 8
    ruleset = libc.syscall(CREATE, ctypes.byref(rules), size, 0)
    for path in folders:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = _Beneath(writes, folder)
        libc.syscall(ADD_RULE, ruleset, 1, ctypes.byref(rule), 0)
        os.close(folder)
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges, which Landlock asks for
    if libc.syscall(RESTRICT, ruleset, 0):
        return ["writing outside its folder", "the network"]
    os.close(ruleset)
    return [] if version >= 4 else ["the network"]
