"""Long work that was stopped goes on where it was.

A checkpoint is one safetensors file: the tensors of the work, and in its header what
work it is. It is written whole or not at all, is never a pickle, and one that belongs
to other work (another model, other data, other settings) is refused. Derived in lesson 07.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
import types
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.files import write_whole


def content_hash(thing: object) -> str:
    """A hash of all that decides how a thing works, for the `about` of a checkpoint.

    Tensors and networks count by their contents, functions by their code, defaults and
    what they enclose, generators by their seed, other objects by class and attributes.
    """
    text = json.dumps(_described(thing, ()), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _described(thing: object, outer: tuple[int, ...]) -> object:
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing
    if id(thing) in outer:
        return "itself"
    outer = (*outer, id(thing))

    def inside(part: object) -> object:
        return _described(part, outer)

    if isinstance(thing, Tensor):
        raw = thing.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        shape, kind = list(thing.shape), str(thing.dtype)
        return [kind, shape, thing.requires_grad, hashlib.sha256(raw).hexdigest()]
    if isinstance(thing, torch.Generator):
        return ["generator", thing.initial_seed()]
    if isinstance(thing, nn.Module):
        return [
            [[name, _name(type(m)), _settings(m, outer)] for name, m in thing.named_modules()],
            # Buffers outside the state dict count too: means and deviations.
            [
                [name, inside(t)]
                for of in (thing.named_parameters, thing.named_buffers)
                for name, t in of()
            ],
        ]
    if isinstance(thing, dict):
        return sorted(([str(k), inside(v)] for k, v in thing.items()), key=str)
    if isinstance(thing, (list, tuple)):
        return [inside(v) for v in thing]
    if isinstance(thing, (set, frozenset)):
        return ["set", *sorted((inside(v) for v in thing), key=str)]
    if isinstance(thing, functools.partial):
        return ["partial", *map(inside, (thing.func, thing.args, thing.keywords))]
    if isinstance(thing, types.MethodType):
        return [inside(thing.__func__), inside(thing.__self__)]
    if isinstance(thing, types.FunctionType):
        cells = []
        for cell in thing.__closure__ or ():
            with suppress(ValueError):  # empty: not yet defined
                cells.append(cell.cell_contents)
        held = (thing.__code__, thing.__defaults__, thing.__kwdefaults__, cells)
        return [_name(thing), *map(inside, held)]
    if isinstance(thing, types.CodeType):
        return [thing.co_code.hex(), list(thing.co_names), inside(thing.co_consts)]
    if isinstance(thing, (np.ndarray, np.generic)):
        return [str(thing.dtype), list(thing.shape), thing.tobytes().hex()]
    if isinstance(thing, (bytes, range, complex)):
        return [_name(thing), str(thing)]
    if isinstance(thing, type) or not hasattr(thing, "__dict__"):
        return _name(thing)
    return [_name(type(thing)), inside(vars(thing))]


def _settings(m: nn.Module, outer: tuple[int, ...]) -> list:
    """The plain attributes and functions of one module, such as stride or a slope."""
    plain = (bool, int, float, str, tuple, type)
    called = (functools.partial, types.FunctionType, types.BuiltinFunctionType)
    return [
        [k, _described(v, outer)]
        for k, v in sorted(vars(m).items())
        if isinstance(v, plain + called) and k != "training" and not k.startswith("_")
    ]


def _name(thing: object) -> str:
    of = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{getattr(of, '__module__', '')}.{of.__qualname__}"


class Checkpoint:
    """The saved state of one piece of work.

    Args:
        path: of the file; None never saves and finds nothing.
        about: what the work is: plain values, compared on loading.
        every: seconds between two saves that only ask `due`.
    """

    def __init__(self, path: str | os.PathLike | None, about: dict, every: float = 20.0) -> None:
        self.path = None
        if path is not None:
            self.path = Path(require.path("checkpoint", path))
            if self.path.exists() and not self.path.is_file():
                raise ValueError(f"checkpoint {path} is no file; name another.")
        self.about = json.loads(json.dumps(about))  # as it reads after a round trip
        self.every = every
        self._last = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict] | None:
        """(tensors, notes) of the last save, or None if there is none.

        Raises:
            ValueError: the file is damaged, or belongs to other work.
        """
        from safetensors import SafetensorError, safe_open

        if self.path is None or not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as f:
                text = f.metadata() or {}
                about, notes = json.loads(text["about"]), json.loads(text["notes"])
                tensors = {k: f.get_tensor(k) for k in f.keys()}
        except (SafetensorError, LookupError, ValueError, OSError) as e:
            raise ValueError(
                f"{self.path} is not a checkpoint or is damaged; delete it and start again."
            ) from e
        other = [k for k in {**about, **self.about} if about.get(k) != self.about.get(k)]
        if other:
            raise ValueError(
                f"{self.path} belongs to other work: its {other[0]} differs; delete it "
                "or name another file."
            )
        return tensors, notes

    def due(self) -> bool:
        """Whether the last save is long enough ago for another."""
        return self.path is not None and time.monotonic() - self._last >= self.every

    def save(self, tensors: dict[str, Tensor], **notes) -> None:
        """Replace the file; `notes` are plain values."""
        from safetensors.torch import save as to_bytes

        if self.path is None:
            return
        text = {"about": json.dumps(self.about), "notes": json.dumps(notes)}
        tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        write_whole(self.path, to_bytes(tensors, text))
        self._last = time.monotonic()

    def done(self) -> None:
        """The work is finished: the file goes."""
        if self.path is not None:
            Path(os.path.realpath(self.path)).unlink(missing_ok=True)


def pack(
    model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> dict[str, Tensor]:
    """All that decides how a training goes on, for `Checkpoint.save`."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    return tensors | moments(optimizer) | {"generator": generator.get_state()}


def unpack(
    tensors: dict[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Put back what `pack` kept; other tensors are left alone."""
    state = {k[6:]: v for k, v in tensors.items() if k.startswith("model.")}
    model.load_state_dict(state)
    restore_moments(optimizer, tensors)
    generator.set_state(tensors["generator"])


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer (SGD, Adam) remembers of each parameter."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"optimizer.{i}.{k}": v
        for i, p in enumerate(params)
        for k, v in optimizer.state[p].items()
        if v is not None
    }


def restore_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `moments` kept, in the memory layout of the parameters."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            i, key = name.split(".")[1:]
            p = params[int(i)]
            if key != "step":  # Adam's counter: a number, and on the CPU
                value = torch.empty_like(p).copy_(value)
            optimizer.state[p][key] = value


def pack_state(things: dict[str, object]) -> dict[str, Tensor]:
    """What `unpack_state` needs to put these back, by name, for `Checkpoint.save`.

    Args:
        things: name -> tensor, number, truth, network, optimizer, schedule or generator.
    """
    packed: dict[str, Tensor] = {}
    for name, thing in things.items():
        packed |= {f"{name}:{k}": v for k, v in _packed(thing).items()}
    return packed


def _packed(thing: object) -> dict[str, Tensor]:
    if isinstance(thing, Tensor):
        return {"": thing}
    if isinstance(thing, (bool, int, float)):
        return {"": torch.tensor(thing, dtype=torch.float64 if type(thing) is float else None)}
    if isinstance(thing, nn.Module):
        return thing.state_dict()
    if isinstance(thing, torch.Generator):
        return {"": thing.get_state()}
    if isinstance(thing, torch.optim.Optimizer):
        rates = [group["lr"] for group in thing.param_groups]
        return moments(thing) | {"lr": torch.tensor(rates, dtype=torch.float64)}
    if isinstance(thing, torch.optim.lr_scheduler.LRScheduler):
        last = torch.tensor(thing._last_lr, dtype=torch.float64)
        return {"epoch": torch.tensor(thing.last_epoch), "last": last}
    raise TypeError(f"a checkpoint cannot hold {require.kind(thing)}.")


def unpack_state(tensors: dict[str, Tensor], things: dict[str, object]) -> dict[str, object]:
    """Put back what `pack_state` kept: in place, or, for tensors and numbers, by the value
    that is returned under its name."""
    values: dict[str, object] = {}
    for name, thing in things.items():
        own = {
            k.removeprefix(f"{name}:"): v for k, v in tensors.items() if k.startswith(f"{name}:")
        }
        if isinstance(thing, Tensor):
            values[name] = own[""].to(thing.device)
        elif isinstance(thing, (bool, int, float)):
            values[name] = own[""].item()
        elif isinstance(thing, nn.Module):
            thing.load_state_dict(own)
        elif isinstance(thing, torch.Generator):
            thing.set_state(own[""])
        elif isinstance(thing, torch.optim.Optimizer):
            restore_moments(thing, own)
            for group, rate in zip(thing.param_groups, own["lr"].tolist(), strict=True):
                group["lr"] = rate
        elif isinstance(thing, torch.optim.lr_scheduler.LRScheduler):
            thing.last_epoch, thing._last_lr = int(own["epoch"]), own["last"].tolist()
            thing._step_count = thing.last_epoch + 1
    return values
