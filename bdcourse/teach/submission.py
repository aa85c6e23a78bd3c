"""The grader's end of a submission: start its process, run cells, call functions.

::

    with Submission() as student:
        student.run("def double(x):\n    return 2 * x")
        double = student.find("double")
        assert double(torch.ones(3)).sum() == 6  # checked here, computed there

Arguments are sent and results rebuilt by :mod:`bdcourse.teach.wire`: tensors with their
gradients, modules and generators with what was done to them, and functions, which run
here when they are called there.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bdcourse.teach import launch
from bdcourse.teach.confine import of_python
from bdcourse.teach.wire import (
    Hangup,
    Late,
    Packer,
    Unpacker,
    Wire,
    foreign,
    restore,
    tensors,
)

PACKAGE = Path(__file__).resolve().parent.parent
SPACE, NODES = 1 << 30, 100_000  # bytes and files that it may leave on the disk
HEARD = 64 << 20  # bytes that it may say during one call of a function
PRINTED, ROOM = 40_000, 2_000_000  # characters kept of a test's output, and of all
ERRORS = (
    NotImplementedError,
    RuntimeError,
    ZeroDivisionError,
    OverflowError,
    ArithmeticError,
    IndexError,
    KeyError,
    LookupError,
    UnboundLocalError,
    NameError,
    AttributeError,
    TypeError,
    ValueError,
    AssertionError,
    MemoryError,
    OSError,
)


class NotStarted(RuntimeError):
    """The process of a submission did not come up."""


class Gone(BaseException):
    """The submission's process cannot go on; the message says why, behind "it".

    No `Exception`, for a check takes those for answers.
    """

    def __init__(self, why: str, late: bool = False) -> None:
        super().__init__(why)
        self.late = late


class Submission:
    """A confined process of its own for one submission.

    Args:
        readable: files and folders that it may read beside Python and the course.
        startup: seconds until it must be ready.
        patience: seconds for a cell, or for one call of a function.
        end: of time.monotonic(), when all must be done.

    Attributes:
        lacking: what this system cannot confine, of "Landlock" and "seccomp".

    Raises:
        NotStarted: it does not start.
    """

    def __init__(
        self,
        readable: Iterable[str | os.PathLike] = (),
        startup: float = 180,
        patience: float = 20,
        end: float = math.inf,
    ) -> None:
        self.patience, self.end = patience, end
        self.begin()
        self.scratch = tempfile.mkdtemp(prefix="submission-")
        self._free, self.room = os.statvfs(self.scratch), ROOM
        theirs, ours = os.pipe(), os.pipe()
        settings = {
            "root": str(PACKAGE.parent),
            "scratch": self.scratch,
            "read": theirs[0],
            "write": ours[1],
            "readable": [*of_python(), *map(str, readable), *_of_the_course()],
        }
        log = Path(self.scratch, ".log")
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-B", launch.__file__, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                pass_fds=(theirs[0], ours[1]),
                start_new_session=True,
                cwd=self.scratch,
                env=_environment(self.scratch),
            )
        os.close(theirs[0])
        os.close(ours[1])
        self.wire = Wire(ours[0], theirs[1], self._look)
        try:
            ready, _ = self.wire.receive(time.monotonic() + startup)
            self.lacking = ready["ready"]
        except (Hangup, LookupError) as e:
            said = log.read_text(errors="replace").strip().splitlines() or [str(e)]
            self.close()
            raise NotStarted(f"the process of a submission did not start ({said[-1]})") from None

    def __enter__(self) -> Submission:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """End the process and all that it has begun, and delete what it has written."""
        import psutil

        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()  # where nothing keeps it from having any
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(OSError):
            self.wire.close()
        # These cope with folders nested deeper than Python's recursion goes, and made
        # so that nobody may look into them.
        for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            subprocess.run([*command, "--", self.scratch], stderr=subprocess.DEVNULL)

    def begin(self) -> None:
        """Forget what the calls before this test have printed and computed."""
        self.printed, self.fresh = "", True
        self.known: dict[int, nn.Module] = {}

    # --- What it is told ---------------------------------------------------------

    def run(self, source: str) -> dict:
        """Run a cell.

        Returns:
            "printed", "complained" (on stderr), and if it failed "error": the name, the
            text and the lines of the traceback.

        Raises:
            Gone: the process ended, or took too long.
        """
        said, _ = self._ask({"do": "run", "source": source})
        reply: dict[str, Any] = {k: self._kept(said.get(k)) for k in ("printed", "complained")}
        if "error" in said:
            name, text, lines = _list(said["error"], 3)
            lines = [self._kept(line) for line in _list(lines)[:200]]
            reply["error"] = [_string(name)[:100], self._kept(text), lines]
        return reply

    def _kept(self, said: object) -> str:
        """As much of an output as there is room for: ten thousand cells that each
        print a page would fill the disk of who keeps them all."""
        text = _string(said)[: self.room]
        self.room -= len(text)
        return text

    def find(self, name: str) -> object:
        """What a name of the submission stands for: a function that can be called here,
        or the value.

        Raises:
            NameError: it stands for nothing.
            Gone: the process ended, or took too long.
        """
        said, blobs = self._ask({"do": "find", "name": name})
        if "missing" in said:
            raise NameError(f"name {name!r} is not defined")
        if "function" in said:
            return Answer(self, name)
        if "class" in said:
            return foreign(said["class"], a_class=True)
        return self._value(Unpacker(blobs), said)

    def call(self, name: str, args: tuple, kwargs: dict) -> object:
        """Call a function of the submission.

        Raises:
            Exception: what it raised, of the nearest kind that Python itself has.
            Gone: the process ended, or took too long.
        """
        functions: list[Callable] = []
        given = list(tensors([args, kwargs]))
        leaves = [t for t in given if t.requires_grad]

        def number(function: Callable) -> int:
            functions.append(function)
            return len(functions) - 1

        packer = Packer(functions=number, known=self.known)
        asked = {
            "do": "call",
            "name": name,
            "fresh": self.fresh,
            "args": packer.pack(list(args)),
            "kwargs": packer.pack(kwargs),
        }
        self.fresh = False
        said, blobs = self._ask(asked, packer, functions)
        more = _string(said.get("printed"))[: PRINTED - len(self.printed)]
        self.printed += self._kept(more)
        reader = Unpacker(
            blobs,
            differentiable=lambda t, n: self._traced(t, n, leaves),
            originals=packer.held,
        )
        self._changed(reader, said, given, packer.held)
        if "raises" in said:
            raise self.error if self.error is not None else _raised(said["raises"])
        if "lazy" in said:
            return (_ for _ in ())
        return self._value(reader, said)

    def _ask(
        self, asked: dict, packer: Packer | None = None, functions: Sequence[Callable] = ()
    ) -> tuple[dict, list[bytes]]:
        errors: list[Exception] = []
        heard = 0
        self.error, until = None, min(time.monotonic() + self.patience, self.end)
        try:
            self.wire.send(asked, packer.blobs if packer else [], until)
            while True:
                said, blobs = self.wire.receive(until)
                if not isinstance(said, dict):
                    raise Hangup("what it says is no message")
                if "callback" not in said:
                    at = said.get("raises")
                    at = at.get("number") if isinstance(at, dict) else None
                    if type(at) is int and 0 <= at < len(errors):
                        self.error = errors[at]
                    return said, blobs
                heard += self.wire.size  # a test may keep what its functions are given
                if heard > HEARD:
                    raise Hangup("that is too much")
                self._called(said, blobs, packer, functions, errors, until)
        except Late:
            raise Gone("took too long", late=True) from None
        except Hangup as e:
            raise _ended(e) from None

    def _look(self) -> None:
        """End it if it fills the disk."""
        free, before = os.statvfs(self.scratch), self._free
        lost = before.f_bavail * before.f_frsize - free.f_bavail * free.f_frsize
        if lost > SPACE or before.f_favail - free.f_favail > NODES:
            size, count = _left(self.scratch, self.process.pid)
            if size > SPACE or count > NODES:
                raise Hangup("it filled the disk")

    def _called(self, said, blobs, packer, functions, errors, until: float) -> None:
        """Run a function of a test for the submission."""
        reader = Unpacker(blobs)
        at = said["callback"]
        if type(at) is not int or not 0 <= at < len(functions):
            raise Hangup("it calls a function that there is not")
        args = reader.unpack(said.get("args"))
        kwargs = reader.unpack(said.get("kwargs"))
        if not isinstance(args, list) or not isinstance(kwargs, dict):
            raise Hangup("it calls a function with what are no arguments")
        self._restored(reader, said, packer.held)
        reply = Packer()
        try:
            told = {"value": reply.pack(functions[at](*args, **kwargs))}
        except Exception as e:
            errors.append(e)
            kinds = [k.__name__ for k in type(e).__mro__]
            told = {"raises": {"kinds": kinds, "text": str(e), "number": len(errors) - 1}}
        self.wire.send(told, reply.blobs, until)

    # --- What it says ------------------------------------------------------------

    def _value(self, reader: Unpacker, said: dict) -> Any:
        try:
            return reader.unpack(said["value"])
        except (Hangup, KeyError) as e:
            raise _ended(e) from None

    def _changed(self, reader: Unpacker, said: dict, given: list, held: dict) -> None:
        """Do to the arguments here what was done to them there."""
        try:
            told = _list(said.get("changed"), len(given))
            for t, new in zip(given, told, strict=True):
                new = None if new is None else reader.unpack(new)
                if isinstance(new, Tensor) and new.shape == t.shape:
                    with torch.no_grad():
                        t.copy_(new)
            self._restored(reader, said, held)
        except Hangup as e:
            raise _ended(e) from None

    def _restored(self, reader: Unpacker, said: dict, held: dict) -> None:
        for key, thing in held.items():
            try:
                told = said["shared"][str(key)]
                if isinstance(thing, nn.Module):
                    restore(thing, told, reader)
                else:
                    thing.set_state(reader.unpack(told))
            except (LookupError, TypeError, RuntimeError):
                raise Hangup("what it did to its arguments cannot be read") from None

    def _traced(self, value: Tensor, number: int, leaves: list[Tensor]) -> Tensor:
        if not leaves:
            return value.requires_grad_()
        return _Graph.apply(self, number, value, *leaves)

    def gradient(self, number: int, by: Tensor) -> list[Tensor | None]:
        """The gradient of what the submission computed, by its arguments."""
        packer = Packer()
        asked = {"do": "gradient", "number": number, "by": packer.pack(by)}
        said, blobs = self._ask(asked, packer)
        if "raises" in said:
            raise _raised(said["raises"])
        return self._value(Unpacker(blobs), said)


class Answer:
    """A function of a submission; see :class:`Submission`."""

    def __init__(self, student: Submission, name: str) -> None:
        self.student, self.__name__ = student, name

    def __call__(self, *args, **kwargs):
        return self.student.call(self.__name__, args, kwargs)


class _Graph(torch.autograd.Function):
    """A value whose history is in the other process."""

    @staticmethod
    def forward(ctx, student, number, value, *leaves):
        ctx.student, ctx.number, ctx.leaves = student, number, leaves
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, by):
        found = ctx.student.gradient(ctx.number, by)
        right = isinstance(found, list) and len(found) == len(ctx.leaves)
        if not right or not all(
            g is None or isinstance(g, Tensor) and g.shape == leaf.shape
            for g, leaf in zip(found, ctx.leaves, strict=True)
        ):
            raise _ended("it gives no gradient")
        return None, None, None, *found


def _raised(said: object) -> Exception:
    """An error of a submission, here."""
    said = said if isinstance(said, dict) else {}
    kinds = said.get("kinds")
    kinds = [_string(k) for k in kinds] if isinstance(kinds, list) else []
    right = [k for name in kinds for k in ERRORS if k.__name__ == name]
    name = type(foreign(kinds[0] if kinds else "Exception")).__name__
    text = _string(said.get("text"))
    error = type(
        name,
        (right[0] if right else Exception,),
        {
            "__init__": lambda self: None,
            "__str__": lambda self: text,
        },
    )()
    error.line = said.get("line")
    return error


def _ended(why: object) -> Gone:
    return Gone(
        "ended its process: it exited, or used too much memory, time or disk, or "
        f"answered in a way that cannot be read ({why})"
    )


def _string(said: object) -> str:
    """Text that any file can hold: half a character of UTF-16 has no bytes."""
    text = said[:40_000] if isinstance(said, str) else ""
    return text.encode("utf-8", "replace").decode()


def _list(said: object, length: int | None = None) -> list:
    if not isinstance(said, list) or length not in (None, len(said)):
        raise _ended("what it says is no message")
    return said


def _of_the_course() -> list[str]:
    """What lessons load: the package, its data, and the cache of images."""
    from bdcourse.data import cache_dir

    data = PACKAGE.parent / "data"
    return [str(p) for p in (PACKAGE, data / "zoo", data / "results", cache_dir())]


def _environment(scratch: str) -> dict[str, str]:
    """Nothing of the grader's but what decides how numbers are computed."""
    from bdcourse.data import cache_dir

    fonts = os.path.join(scratch, ".fonts")
    os.mkdir(fonts)
    with contextlib.suppress(ImportError, OSError):  # a minute's search otherwise
        import matplotlib

        for found in Path(matplotlib.get_cachedir()).glob("fontlist-*.json"):
            shutil.copy(found, fonts)
    # IPython copies one here otherwise, with its mode, which is refused.
    startup = Path(scratch, "profile_default", "startup")
    startup.mkdir(parents=True)
    (startup / "README").touch()
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    return {
        "BDCOURSE_CACHE": str(cache_dir()),
        "HOME": scratch,
        "TMPDIR": scratch,
        "IPYTHONDIR": scratch,
        "MPLCONFIGDIR": fonts,
        "MPLBACKEND": "agg",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": threads,
        "PATH": os.defpath,
    }


def _left(folder: str, pid: int) -> tuple[float, int]:
    """Bytes and files below a folder, up to a bound, and of a process's files that have
    no name any more."""
    size, count = 0.0, 0
    hidden: list[OSError] = []
    for at, folders, files in os.walk(folder, onerror=hidden.append):
        count += len(folders) + len(files)
        for name in files:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(at, name)).st_blocks * 512
        if size > SPACE or count > NODES:
            break
    if hidden:  # folders that it has closed to everybody
        return math.inf, count
    with contextlib.suppress(OSError):
        for fd in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                about = fd.stat()
                if stat.S_ISREG(about.st_mode) and not about.st_nlink:
                    size += about.st_blocks * 512
        for line in Path(f"/proc/{pid}/maps").read_text("utf-8", "replace").split("\n"):
            if line.endswith(" (deleted)") and folder in line:
                start, end = (int(n, 16) for n in line.split()[0].split("-"))
                size += end - start
    return size, count
