"""Long work that was stopped goes on where it was.

A checkpoint is one safetensors file: the tensors of the work, and in its header what
work it is. It is written whole or not at all, is never a pickle, and one that belongs
to other work (another model, other data, other settings) is refused. Born in lesson 07.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn


class Checkpoint:
    """The saved state of one piece of work.

    Args:
        path: of the file; None never saves and finds nothing.
        about: what the work is: plain values, compared on loading.
        every: seconds between two saves that only ask `due`.
    """

    def __init__(
        self, path: str | os.PathLike | None, about: dict, every: float = 20.0
    ) -> None:
        self.path = None if path is None else Path(path)
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
                f"{self.path} is not a checkpoint or is damaged; delete it and start "
                "again."
            ) from e
        other = [
            k for k in {**about, **self.about} if about.get(k) != self.about.get(k)
        ]
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.path.parent, delete=False) as f:
            f.write(to_bytes(tensors, text))
        os.replace(f.name, self.path)
        self._last = time.monotonic()

    def done(self) -> None:
        """The work is finished: the file goes."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


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
    restore(optimizer, tensors)
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


def restore(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `moments` kept, in the memory layout of the parameters."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            i, key = name.split(".")[1:]
            p = params[int(i)]
            if key != "step":  # Adam's counter: a number, and on the CPU
                value = torch.empty_like(p).copy_(value)
            optimizer.state[p][key] = value
