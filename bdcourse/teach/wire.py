"""Values and calls across a pipe between a grader and a process that it does not trust.

A message is JSON followed by the raw bytes of its tensors. What the grader says may
hold a pickled module, since the submission's process has nothing to lose; what comes
back holds numbers, text, tuples and tensors only, and is rebuilt from them: whatever
class it was over there, it is a plain value here.
"""

from __future__ import annotations

import copy
import functools
import io
import json
import math
import os
import re
import select
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

MOST = 16 << 20  # bytes of a message
DEEP = 40
MANY = 100_000  # values in a message: rebuilding one costs more than saying it
DTYPES = {
    str(d).removeprefix("torch."): d
    for d in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
        torch.complex64,
        torch.complex128,
    )
}


class Hangup(Exception):
    """The other end is gone, is late, or says what makes no sense."""


class Late(Hangup):
    """The other end has not answered in time."""


class Opaque:
    """A value that does not cross: all that is known is its class's name."""


def foreign(name: object, a_class: bool = False) -> object:
    """Something whose class has this name, as messages of checks print it."""
    made = _class(re.sub(r"[^\w.]", "", str(name), flags=re.A)[:40] or "object")
    return made if a_class else made()


@functools.lru_cache(1000)
def _class(name: str) -> type:
    return type(name, (Opaque,), {})


# --- Values ----------------------------------------------------------------------


class Packer:
    """Turns values into JSON and bytes.

    Args:
        functions: gives a function the number by which the other end calls it; then
            modules and generators cross, too. None: plain values only.
        graphs: gives a tensor with a history the number by which the other end asks
            for its gradient.
        known: modules that the other end has by their id; only their state is sent.
        originals: modules of the other end by their id there; one of these that comes
            back, or a copy of one, is told by its state.
    """

    def __init__(
        self,
        functions: Callable | None = None,
        graphs: Callable | None = None,
        known: dict[int, nn.Module] | None = None,
        originals: dict[int, nn.Module] | None = None,
    ) -> None:
        self.known = {} if known is None else known
        self.originals = originals or {}
        self.blobs: list[bytes] = []
        self.functions, self.graphs = functions, graphs
        self.held: dict[int, object] = {}  # alive, so that an id stays one value's

    def _blob(self, data: bytes) -> int:
        self.blobs.append(data)
        return len(self.blobs) - 1

    def pack(self, value: object, depth: int = 0) -> object:
        if isinstance(value, np.generic) and type(value.item()) in (bool, int, float):
            value = value.item()
        if value is None or value is True or value is False:
            return value
        if isinstance(value, int):
            small = abs(int(value)) < 1 << 63
            return int(value) if small else {"foreign": "int"}
        if isinstance(value, float):
            return {"float": repr(float(value))}
        if isinstance(value, str):
            return {"text": str(value)[:10_000]}
        if isinstance(value, Tensor):
            return self._tensor(value)
        if depth < DEEP and isinstance(value, (tuple, list)):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [self.pack(v, depth + 1) for v in value]}
        if depth < DEEP and isinstance(value, dict):
            if all(isinstance(k, str) for k in value):
                pairs = {k[:1000]: self.pack(v, depth + 1) for k, v in value.items()}
                return {"dict": pairs}
        if isinstance(value, torch.Generator) and self.functions:
            self.held[id(value)] = value
            at = self._blob(value.get_state().numpy().tobytes())
            return {"generator": at, "id": id(value)}
        if isinstance(value, nn.Module) and self.functions:
            self.held[id(value)] = value
            made = {"id": id(value), "module": None, "state": state(value, self)}
            if id(value) not in self.known:
                self.known[id(value)] = value
                file = io.BytesIO()
                torch.save(value, file)
                made["module"] = self._blob(file.getvalue())
            return made
        if isinstance(value, nn.Module):
            for key, own in self.originals.items():
                if value is own or _alike(value, own):
                    return {"copy": key, "same": value is own, "state": state(value, self)}
        if callable(value) and not isinstance(value, type) and self.functions:
            return {"function": self.functions(value)}
        return {"foreign": type(value).__name__}

    def _tensor(self, t: Tensor) -> object:
        with torch._C.DisableTorchFunctionSubclass():  # of a class that plays tricks
            grad_fn, needs = t.grad_fn, t.requires_grad
            plain = t.detach().as_subclass(Tensor)
        name = str(plain.dtype).removeprefix("torch.")
        if plain.layout != torch.strided or plain.is_meta or name not in DTYPES:
            return {"foreign": "Tensor"}
        plain = plain.cpu().resolve_conj().resolve_neg().contiguous()
        if plain.numel() * plain.element_size() > MOST:
            return {"foreign": "Tensor"}
        flat = plain.reshape(-1).view(torch.uint8) if plain.numel() else plain
        data = flat.numpy().tobytes() if plain.numel() else b""
        made = {"tensor": self._blob(data), "dtype": name, "shape": list(plain.shape)}
        if needs:
            made["grad"] = self.graphs(t) if self.graphs and grad_fn else True
        return made


class Unpacker:
    """Rebuilds values from JSON and bytes; the counterpart of :class:`Packer`.

    Args:
        blobs: of the message.
        trusted: whether modules may be unpickled.
        function: makes a function of its number.
        differentiable: makes a tensor with a gradient of its values and its number.
        known: where modules are kept from one message to the next.
        originals: modules of this end by their id; the other end may return a copy.

    Raises:
        Hangup: this is no value.
    """

    def __init__(
        self,
        blobs: list[bytes],
        trusted: bool = False,
        function: Callable | None = None,
        differentiable: Callable | None = None,
        known: dict[int, nn.Module] | None = None,
        originals: Mapping[int, object] | None = None,
    ) -> None:
        self.known = {} if known is None else known
        self.originals = originals or {}
        self.blobs = cast("list[bytes | None]", blobs)  # each is given away once
        self.trusted = trusted
        self.function, self.differentiable = function, differentiable
        self.shared: dict[int, Any] = {}  # modules and generators, once each
        self.left = MANY
        self.names: set[str] = set()

    def unpack(self, said: object, depth: int = 0) -> Any:
        try:
            return self._unpack(said, depth)
        except Hangup:
            raise
        except Exception as e:  # a forged message can be wrong in any way
            raise Hangup(f"a value cannot be read ({type(e).__name__})") from None

    def _unpack(self, said, depth: int):
        self.left -= 1
        if self.left < 0:
            raise Hangup("that is too much")
        if said is None or isinstance(said, bool):
            return said
        if isinstance(said, int):  # a longer one cannot even be made a float
            return said if abs(said) < 1 << 63 else foreign("int")
        if "float" in said:
            return float(said["float"])
        if "text" in said:
            return str(said["text"])
        if "tensor" in said:
            return self._tensor(said)
        for kind in (tuple, list):
            if kind.__name__ in said and depth <= DEEP:
                return kind(self._unpack(v, depth + 1) for v in said[kind.__name__])
        if "dict" in said and depth <= DEEP:
            return {str(k): self._unpack(v, depth + 1) for k, v in said["dict"].items()}
        if "generator" in said:
            if said["id"] not in self.shared:
                made = torch.Generator()
                made.set_state(self._bytes(said["generator"]))
                self.shared[said["id"]] = made
            return self.shared[said["id"]]
        if "module" in said and self.trusted:
            if said["module"] is not None:
                file = io.BytesIO(self._taken(said["module"]))
                self.known[said["id"]] = torch.load(file, weights_only=False)
            if said["id"] not in self.shared:
                made = self.known[said["id"]]
                restore(made, said["state"], self)
                self.shared[said["id"]] = made
            return self.shared[said["id"]]
        if "copy" in said and self.originals:
            own = self.originals[said["copy"]]
            if not isinstance(own, nn.Module):
                raise ValueError
            made = own if said["same"] is True else copy.deepcopy(own)
            restore(made, said["state"], self)
            return made
        if "function" in said and self.function:
            return self.function(said["function"])
        if (name := str(said["foreign"])) not in self.names:
            self.names.add(name)
            self.left -= 100  # a class of its own costs as much as many numbers
        return foreign(name)

    def _taken(self, at: int) -> bytes:
        """Bytes of the message, once: a few of them, named a thousand times, would
        fill the memory."""
        data, self.blobs[at] = self.blobs[at], None
        if data is None:
            raise ValueError
        return data

    def _bytes(self, at: int) -> Tensor:
        return torch.frombuffer(bytearray(self._taken(at)), dtype=torch.uint8)

    def _tensor(self, said: dict) -> Tensor:
        dtype, shape = DTYPES[said["dtype"]], [int(n) for n in said["shape"]]
        data = self._taken(said["tensor"])
        size = torch.empty((), dtype=dtype).element_size()
        if len(shape) > 16 or min(shape, default=0) < 0:
            raise ValueError
        if math.prod(shape) * size != len(data):
            raise ValueError
        if not data:
            made = torch.empty(shape, dtype=dtype)
        else:
            made = torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
        if dtype == torch.bool and data:  # any other byte would be undefined
            made = made.view(torch.uint8) != 0
        grad = said.get("grad")
        if grad is not None and self.differentiable and grad is not True:
            return self.differentiable(made, int(grad))
        if grad is not None:
            made.requires_grad_()
        return made


def _alike(a: nn.Module, b: nn.Module) -> bool:
    """Whether one can be a copy of the other, by kind, names and shapes."""
    if type(a) is not type(b):
        return False
    shapes = [[(n, t.shape, t.dtype) for n, t in m.state_dict().items()] for m in (a, b)]
    return shapes[0] == shapes[1]


def state(module: nn.Module, packer: Packer) -> dict:
    """All that an answer may change in a module: its tensors, gradients and mode."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return {
        "own": {n: packer.pack(t.detach()) for n, t in own.items()},
        "grads": {n: packer.pack(t.detach()) for n, t in grads.items()},
        "needs": {n: p.requires_grad for n, p in module.named_parameters()},
        "training": [bool(m.training) for m in module.modules()],
    }


def restore(module: nn.Module, said: dict, reader: Unpacker) -> None:
    """Bring a module to a state that :func:`state` has told.

    Raises:
        Hangup: it is not one of this module.
    """
    parameters = dict(module.named_parameters())
    own = {**parameters, **dict(module.named_buffers())}
    try:
        with torch.no_grad():
            for name, t in own.items():
                told = reader.unpack(said["own"][name])
                if told.shape != t.shape or told.dtype != t.dtype:
                    raise ValueError
                t.copy_(told)
            for name, p in parameters.items():
                p.requires_grad_(bool(said["needs"][name]))
                grad = said["grads"].get(name)
                p.grad = None if grad is None else reader.unpack(grad)
            for m, mode in zip(module.modules(), said["training"], strict=True):
                m.training = bool(mode)
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError):
        raise Hangup("the state of a module cannot be read") from None


def tensors(value: object) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from tensors(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors(v)


# --- Messages --------------------------------------------------------------------


class Wire:
    """One end of a pair of pipes.

    Args:
        read, write: file descriptors.
        watch: called about once a second while this end waits, or would if the other
            end left it time to; may raise Hangup.

    Attributes:
        size: bytes of the last message that was received.
    """

    def __init__(self, read: int, write: int, watch: Callable[[], None] | None = None) -> None:
        self.read, self.write = read, write
        self.watch, self.looked, self.size = watch, time.monotonic(), 0
        os.set_blocking(read, False)
        os.set_blocking(write, False)

    def send(self, said: dict, blobs: Sequence[bytes] = (), until: float = 0) -> None:
        """Say something.

        Raises:
            Hangup: it is too long, or nobody listens any more.
            Late: it has not been taken by `until`, of time.monotonic(); 0 waits.
        """
        head = json.dumps({**said, "blobs": [len(b) for b in blobs]}).encode()
        if len(head) + sum(map(len, blobs)) > MOST:
            raise Hangup("that is too much")
        data = memoryview(b"".join([struct.pack("<Q", len(head)), head, *blobs]))
        while data:
            self._wait(self.write, select.POLLOUT, until)
            try:
                data = data[os.write(self.write, data) :]
            except BlockingIOError:
                pass
            except OSError:
                raise Hangup("the other end is gone") from None

    def receive(self, until: float = 0) -> tuple[dict, list[bytes]]:
        """What the other end says.

        Raises:
            Hangup: it is gone, or what it says is no message.
            Late: it has not said anything whole by `until`.
        """
        (size,) = struct.unpack("<Q", self._exactly(8, until))
        if size > MOST:
            raise Hangup("that is too much")
        try:
            said = json.loads(self._exactly(size, until))
            sizes = [int(n) for n in said["blobs"]]
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
            raise Hangup("what it says is no message") from None
        self.size = size + sum(sizes)
        if min(sizes, default=0) < 0 or self.size > MOST or len(sizes) > MANY:
            raise Hangup("that is too much")
        return said, [self._exactly(n, until) for n in sizes]

    def _exactly(self, n: int, until: float) -> bytes:
        parts, left = [], n
        while left:
            self._wait(self.read, select.POLLIN, until)
            try:
                part = os.read(self.read, min(left, 1 << 20))
            except BlockingIOError:
                continue
            except OSError:
                part = b""
            if not part:
                raise Hangup("the other end is gone")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _wait(self, fd: int, event: int, until: float) -> None:
        ready = select.poll()  # select itself fails in a process with many files
        ready.register(fd, event)
        while True:
            # First of all, for who never stops talking is always ready.
            now = time.monotonic()
            if until and now >= until:
                raise Late("it has not answered in time")
            if self.watch and now >= self.looked + 1:
                self.looked = now
                self.watch()
            left = 1.0 if self.watch else None
            if until:
                left = min(until - now, left or until)
            if ready.poll(None if left is None else math.ceil(left * 1000)):
                return

    def close(self) -> None:
        for fd in (self.read, self.write):
            os.close(fd)
