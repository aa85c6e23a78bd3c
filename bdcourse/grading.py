"""How nbgrader runs a submission: within limits, and to a score whatever it does.

nbgrader_config.py of a course names :class:`Examination` in place of nbgrader's own
`Execute`. A cell that runs too long or ends its kernel is left out and the rest is run
again, so that one bad answer costs its own points only. `confine` limits the kernel.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import psutil
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbgrader.preprocessors import Execute, NbGraderPreprocessor
from nbgrader.utils import is_grade
from traitlets import Float, Integer

from bdcourse.labs import exercise

if TYPE_CHECKING:
    from nbformat import NotebookNode

SKIP = "skip-execution"  # nbclient leaves such cells out
MEMORY, FILE, CPU = 8 << 30, 100 << 20, 120  # bytes, bytes, seconds


class OutOfTime(Exception):
    """A submission has had its share."""


class Examination(Execute):
    """Runs a submission in a confined kernel and puts an error where one belongs."""

    timeout = Integer(20, help="seconds for a cell").tag(config=True)
    limit = Float(150.0, help="seconds for a submission").tag(config=True)
    attempts = Integer(6, help="cells that may be left out").tag(config=True)
    interrupt_on_timeout = False  # an answer may swallow the interrupt
    raise_on_iopub_timeout = False

    def preprocess(self, nb, resources, km=None):
        self.extra_arguments = [
            "--HistoryManager.hist_file=:memory:",
            "--InteractiveShellApp.exec_lines=from bdcourse.grading import confine",
            "--InteractiveShellApp.exec_lines=confine()",
        ]
        blamed: dict[int, str] = {}
        start = time.monotonic()
        if sys.platform.startswith("linux"):
            ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # orphans become our children
        while True:
            self.at, self.until = -1, start + self.limit
            for i in blamed:
                nb.cells[i].metadata.setdefault("tags", []).append(SKIP)
            try:
                super().preprocess(nb, resources)
                break
            except (DeadKernelError, CellTimeoutError) as e:
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
        cell.outputs = [nbformat.v4.new_output(
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
            nb.cells = mended(nb.cells, nbformat.read(source, as_version=4).cells)
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


def confine() -> list[str]:
    """Limit this process: memory, time, files to its own folder, no connections.

    Returns:
        what this system cannot limit, in words; the rest is in force.
    """
    from bdcourse import data

    for name in ("signs", "signs-hard"):  # drawn and stored before the door closes
        data.load(name, "test")
        data.load(name)
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
