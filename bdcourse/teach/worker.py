"""The process in which a submission's cells run and its functions answer.

It does what :class:`bdcourse.teach.submission.Submission` tells it over a pipe: run a
cell, call a function, give a gradient. The tests run at the other end, where nothing in
here can reach them: whatever a submission does to this process changes only what it
answers.
"""

from __future__ import annotations

import builtins
import contextlib
import inspect
import io
from collections.abc import Callable
from typing import Any, cast

import torch
from IPython.core.interactiveshell import InteractiveShell
from torch import Tensor
from traitlets.config import Config

from bdcourse.teach.check.core import line_of
from bdcourse.teach.wire import Hangup, Packer, Unpacker, Wire, state, tensors

SAID = 20_000  # characters of output that are kept of a cell or call


def serve(read: int, write: int, lacking: list[str]) -> None:
    """Do what is told, one thing after another, until nobody tells anything."""
    worker = Worker(Wire(read, write))
    with contextlib.suppress(Hangup):
        worker.wire.send({"ready": lacking})
        while True:
            asked, blobs = worker.wire.receive()
            reply, packed = worker.do[asked["do"]](asked, blobs)
            worker.wire.send(reply, packed)


class Worker:
    """A shell without a kernel, its names, and what the last calls have left."""

    def __init__(self, wire: Wire) -> None:
        settings = Config()
        settings.HistoryManager.enabled = False
        settings.InteractiveShell.colors = "nocolor"
        self.wire = wire
        self.shell = cast(Any, InteractiveShell.instance(config=settings))
        self.shell.displayhook.write_output_prompt = lambda: None
        self.shell._showtraceback = self._keep_traceback
        self.names = self.shell.user_ns
        self.traceback: list[str] = []
        self.printed, self.complained = _Short(), _Short()
        self.graphs: list[tuple[Tensor, list[Tensor]]] = []
        self.shared: dict[int, Any] = {}
        self.known: dict[int, torch.nn.Module] = {}
        self.do = {"run": self.run, "find": self.find, "call": self.call, "gradient": self.gradient}

    # --- A cell ------------------------------------------------------------------

    def run(self, asked: dict, blobs: list[bytes]) -> tuple[dict, list[bytes]]:
        self.traceback = []
        with self._listening():
            done = self.shell.run_cell(asked["source"], store_history=False)
        error, reply = done.error_before_exec or done.error_in_exec, self._heard()
        if error is not None:
            lines = "\n".join(self.traceback)[-SAID:].split("\n")
            reply["error"] = [type(error).__name__, _text(error), lines]
        return reply, []

    def _keep_traceback(self, kind, value, lines) -> None:
        self.traceback = [str(line) for line in lines]

    def _listening(self) -> contextlib.ExitStack:
        self.printed, self.complained = _Short(), _Short()
        both = contextlib.ExitStack()
        both.enter_context(contextlib.redirect_stdout(self.printed))
        both.enter_context(contextlib.redirect_stderr(self.complained))
        return both

    def _heard(self) -> dict:
        printed, complained = self.printed.getvalue(), self.complained.getvalue()
        return {"printed": printed, "complained": complained}

    # --- Its names ---------------------------------------------------------------

    def find(self, asked: dict, blobs: list[bytes]) -> tuple[dict, list[bytes]]:
        """What a name stands for: a function is called from afar, a value is told."""
        if asked["name"] not in self.names:
            return {"missing": True}, []
        value = self.names[asked["name"]]
        if isinstance(value, type):
            return {"class": value.__name__}, []
        if callable(value):
            return {"function": True}, []
        packer = Packer()
        return {"value": packer.pack(value)}, packer.blobs

    def call(self, asked: dict, blobs: list[bytes]) -> tuple[dict, list[bytes]]:
        if asked["fresh"]:
            self.graphs.clear()
            self.known.clear()
        reader = Unpacker(blobs, trusted=True, function=self._afar, known=self.known)
        args, kwargs = reader.unpack(asked["args"]), reader.unpack(asked["kwargs"])
        given = list(tensors([args, kwargs]))
        before = [t.detach().clone() for t in given]
        leaves = [t for t in given if t.requires_grad]
        self.shared = reader.shared

        def graph(t: Tensor) -> int:
            self.graphs.append((t, leaves))
            return len(self.graphs) - 1

        modules = {k: m for k, m in self.shared.items() if isinstance(m, torch.nn.Module)}
        packer = Packer(graphs=graph, originals=modules)
        reply: dict[str, Any] = {}
        with self._listening():
            try:
                out = self.names[asked["name"]](*args, **kwargs)
                if inspect.isgenerator(out) or inspect.iscoroutine(out):
                    out.close()
                    reply["lazy"] = True
                else:
                    reply["value"] = packer.pack(out)
            except BaseException as e:  # of somebody else's code: SystemExit, too
                reply["raises"] = _raised(e)
            pairs = zip(given, before, strict=True)
            reply["changed"] = [None if _same(a, b) else packer.pack(a.detach()) for a, b in pairs]
            reply["shared"] = self._states(packer)
        return {**reply, **self._heard()}, packer.blobs

    def gradient(self, asked: dict, blobs: list[bytes]) -> tuple[dict, list[bytes]]:
        packer = Packer()
        try:
            out, leaves = self.graphs[asked["number"]]
            by = Unpacker(blobs).unpack(asked["by"])
            found = torch.autograd.grad(out, leaves, by, allow_unused=True, retain_graph=True)
            return {"value": packer.pack(list(found))}, packer.blobs
        except Exception as e:
            return {"raises": _raised(e)}, []

    # --- Functions of the tests --------------------------------------------------

    def _afar(self, number: int) -> Callable:
        """A function that runs at the other end."""

        def function(*args, **kwargs):
            packer = Packer()
            told = {
                "callback": number,
                "args": packer.pack(list(args)),
                "kwargs": packer.pack(kwargs),
                "shared": self._states(packer),
            }
            self.wire.send(told, packer.blobs)
            reply, blobs = self.wire.receive()
            if "raises" in reply:
                raise _told(**reply["raises"])
            return Unpacker(blobs).unpack(reply["value"])

        return function

    def _states(self, packer: Packer) -> dict:
        """Modules and generators of the arguments as they are now."""
        made = {}
        for key, thing in self.shared.items():
            if isinstance(thing, torch.Generator):
                made[key] = packer.pack(thing.get_state())
            else:
                made[key] = state(thing, packer)
        return made


class _Short(io.StringIO):
    """Keeps the beginning of what is written."""

    def write(self, text: str) -> int:
        if (left := SAID - self.tell()) > 0:
            super().write(text[:left])
        return len(text)


class _Told(Exception):
    """An error of the other end."""

    text: str
    number: int

    def __str__(self) -> str:
        return self.text


def _told(kinds: list[str], text: str, number: int) -> _Told:
    """The error of a test's function, as the nearest of Python's own kinds."""
    found = (getattr(builtins, k, None) for k in kinds)
    right = [k for k in found if isinstance(k, type) and issubclass(k, Exception)]
    error = type(kinds[0], (_Told, *right[:1]), {})()
    error.text, error.number = text, number
    return error


def _raised(error: BaseException) -> dict:
    return {
        "kinds": [k.__name__ for k in type(error).__mro__][:10],
        "text": _text(error),
        "line": line_of(error),
        "number": error.number if isinstance(error, _Told) else None,
    }


def _text(error: BaseException) -> str:
    try:
        return str(error)[:2000]
    except BaseException:  # its own __str__ may fail
        return ""


def _same(a: Tensor, b: Tensor) -> bool:
    try:
        return a.shape == b.shape and torch.equal(a.detach(), b)
    except RuntimeError:
        return False
