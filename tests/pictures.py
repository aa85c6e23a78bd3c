"""Folders of pictures, and arrays of them in an .npz."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from bdcourse.data import load


def write(path: Path, color=0, size=(8, 6), mode="RGB") -> None:
    """One picture of one color, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path)


def as_npz(flat: Path) -> Path:
    """A folder of pictures as arrays, beside it."""
    everything = load(flat)
    path = flat.parent / "flat.npz"
    np.savez(path, x=everything.x.numpy(), y=everything.y.numpy())
    return path
