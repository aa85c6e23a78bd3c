"""Clouds from files: an .npz, or a folder of class folders with meshes or points.

Meshes (.off) get points evenly by area; of points (.pcd, .txt, .xyz, .npy) as many as are
asked for are kept, at random. The content of a file seeds its chance, so that it gives the
same cloud on every machine and beside whatever other files.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bdcourse import require
from bdcourse.data import OPPOSITE, SUFFIXES, Found, class_names, progress, stored_names
from bdcourse.tasks.points.clouds import Clouds, on_grid
from bdcourse.tasks.points.solids import POINTS, on_surface

MOST_BYTES = 200 * 2**20  # of one file


def read_clouds(
    path: Path, size: int | None = None, classes: Sequence[str] | None = None
) -> Found | None:
    """The clouds at a path by split, "" for all where there is no test part, or None where
    there are none: no .npz of arrays (n, p, 3), no class folders with :data:`READERS`.

    Class folders lie in `path` itself, or in train/ and test/ there, or have train/ and
    test/ inside, as ModelNet's do. An .npz has the arrays x and y, or x_train, y_train,
    x_test and y_test, and classes if you like.

    Args:
        size: points of each cloud; None takes 256 of files, and all that an .npz has.
        classes: the class folders in the order of their labels.

    Raises:
        ValueError, RuntimeError: what is there cannot be read as clouds.
    """
    found: Any = None
    if path.is_dir():
        found = _folder(path, size, classes)
    elif path.is_file() and path.suffix.lower() == ".npz" and _holds_clouds(path):
        found = _npz(path, size)
    return None if found is None else Found(found)


# -------------------------------------------------------------------- an .npz


def _holds_clouds(path: Path) -> bool:
    """Whether the inputs in an .npz are of shape (n, p, 3); no data is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in ("x.npy", "x_train.npy") if n in archive.namelist())
            with archive.open(name) as f:
                np.lib.format.read_magic(f)
                shape = np.lib.format.read_array_header_1_0(f)[0]
    except Exception:  # damaged, or something else: the reader of images says so
        return False
    return len(shape) == 3 and shape[2] == 3


def _npz(path: Path, size: int | None) -> dict[str, Clouds]:
    try:
        with np.load(path, allow_pickle=False) as f:
            arrays = {name: f[name] for name in f.files}
    except Exception as e:  # zipfile and numpy raise many kinds; no pickle is opened
        raise RuntimeError(f"{path} is damaged or not an .npz of plain arrays.") from e
    ends = ("",) if "x" in arrays else ("_train", "_test")
    for name in (array + end for end in ends for array in "xy"):
        if name not in arrays:
            raise ValueError(f"{path} lacks the array {name!r}.")
        if name[0] == "y" and arrays[name].dtype.kind not in "iu":
            raise ValueError(f"{name} in {path} must be whole numbers, not {arrays[name].dtype}.")
    k = 1 + max(int(arrays[f"y{end}"].max(initial=0)) for end in ends)
    names = tuple(map(str, range(k)))
    if "classes" in arrays:
        names = stored_names(arrays["classes"], path)
    return {
        end.removeprefix("_"): _labeled(arrays[f"x{end}"], arrays[f"y{end}"], names, size, path)
        for end in ends
    }


def _labeled(
    x: np.ndarray, y: np.ndarray, names: tuple[str, ...], size: int | None, path: Path
) -> Clouds:
    if x.ndim != 3 or x.shape[2] != 3 or x.dtype.kind not in "if" or not len(x):
        raise ValueError(
            f"x in {path} must be numbers of shape (n, p, 3), not {x.dtype} {x.shape}."
        )
    if y.shape != x.shape[:1]:
        raise ValueError(f"y in {path} must be {len(x)} labels, one per cloud, not {y.shape}.")
    g = torch.Generator().manual_seed(0)
    size = size or x.shape[1]
    parts = [
        on_grid(thinned(part, size, g, f"a cloud in {path}"))
        for part in torch.from_numpy(x.astype(np.float64)).split(500)
    ]
    return Clouds(torch.cat(parts), torch.from_numpy(y.astype(np.int64)), names)


def thinned(x: Tensor, size: int, generator: torch.Generator, what: str = "a cloud") -> Tensor:
    """A random `size` of the points of each cloud x (n, p, 3): (n, size, 3).

    Raises:
        ValueError: there are fewer, or some are not finite.
    """
    require.whole("size", size, 2)
    if x.shape[1] < size:
        raise ValueError(
            f"{what} has {x.shape[1]} points, but {size} are asked for; pass "
            f"size={x.shape[1]} or less."
        )
    if not bool(x.isfinite().all()):
        raise ValueError(f"{what} has points that are not finite; leave those out of the file.")
    order = torch.rand(x.shape[:2], generator=generator, dtype=torch.float64).argsort(dim=1)
    return x.gather(1, order[:, :size, None].expand(-1, -1, 3))


# -------------------------------------------------------------------- folders


def _folder(
    root: Path, size: int | None, classes: Sequence[str] | None
) -> dict[str, Clouds] | None:
    above = all((root / split).is_dir() for split in OPPOSITE)
    inside = not above and any(root.glob("*/train/*"))
    if not _class_folders_of_clouds(root.glob("*/*" if above or inside else "*")):
        return None
    size = POINTS if size is None else size
    other = root / "test" if above else None
    names = class_names(root / "train" if above else root, classes, other)
    found = {}
    for split in OPPOSITE if above or inside else ("",):
        x, y = [], []
        for label, name in enumerate(names):
            folder = root / split / name if above else root / name / split
            files = sorted(p for p in folder.glob("*") if p.suffix.lower() in READERS)
            if not files:
                raise ValueError(
                    f"class folder {folder} holds no file with a cloud ({', '.join(READERS)})."
                )
            x += [from_file(p, size) for p in progress(files, len(files), f"reading {name}")]
            y += [label] * len(files)
        found[split] = Clouds(torch.stack(x), torch.tensor(y), names)
    return found


def _class_folders_of_clouds(folders: Iterable[Path]) -> bool:
    """Whether the first of these folders that tells holds clouds, and no image."""
    for folder in sorted(p for p in folders if p.is_dir() and not p.name.startswith(".")):
        try:
            found = {p.suffix.lower() for p in folder.iterdir()}
        except OSError:  # the reader of images says so
            return False
        if found & SUFFIXES or found & READERS.keys():
            return not found & SUFFIXES
    return False


def from_file(path: Path, size: int = POINTS) -> Tensor:
    """The cloud in one file, centered and scaled, (size, 3) float32.

    Raises:
        RuntimeError: the file cannot be read, or not as its suffix says.
        ValueError: it has fewer points, or some that are not finite.
    """
    reader = READERS[require.choice("the suffix of a cloud", path.suffix.lower(), READERS)]
    if not path.is_file():
        raise RuntimeError(f"{path} is not a regular file; replace or delete it.")
    if path.stat().st_size > MOST_BYTES:
        raise RuntimeError(f"{path} is larger than {MOST_BYTES >> 20} MB; replace or delete it.")
    require.whole("size", size, 2)
    data = path.read_bytes()
    seed = int.from_bytes(hashlib.sha256(data).digest()[:7], "little")
    g = torch.Generator().manual_seed(seed)
    try:
        found = torch.from_numpy(np.ascontiguousarray(reader(path, data), np.float64))
    except Exception as e:  # what is in a file can be wrong in many ways
        raise RuntimeError(
            f"{path} cannot be read as {path.suffix.lower()[1:]} ({require.reason(e)}); replace "
            "or delete it."
        ) from e
    try:
        x = found[None]
        whole = on_surface(x, size, g) if x.ndim == 4 else thinned(x, size, g, "it")
        return on_grid(whole)[0]
    except ValueError as e:
        raise ValueError(f"{path} gives no cloud: {e}") from e


def _off(path: Path, data: bytes) -> np.ndarray:
    """Triangles (t, 3, 3) of a mesh; polygons are cut into fans."""
    lines = (line.split("#")[0] for line in data.decode().splitlines())
    words = " ".join(lines).split()
    if not words or not words[0].startswith("OFF"):
        raise ValueError("it does not begin with OFF")
    words[0] = words[0].removeprefix("OFF")  # ModelNet writes "OFF490 518 0"
    words = words[not words[0] :]
    n, faces = int(words[0]), int(words[1])
    corners = np.array(words[3 : 3 + 3 * n], np.float64).reshape(n, 3)
    numbers = list(map(int, words[3 + 3 * n :]))
    triangles, at = [], 0
    for _ in range(faces):
        face = numbers[at + 1 : at + 1 + numbers[at]]
        triangles += [(face[0], *pair) for pair in zip(face[1:], face[2:], strict=False)]
        at += 1 + numbers[at]
    if not triangles or np.min(triangles) < 0:
        raise ValueError("it has no faces, or faces of corners that do not exist")
    return corners[np.array(triangles)]


NUMBERS = {"F": "f", "U": "u", "I": "i"}  # types of a .pcd


def _pcd(path: Path, data: bytes) -> np.ndarray:
    """Points (m, 3) of a file of the Point Cloud Library, as text or binary."""
    header: dict[str, list[str]] = {}
    while "DATA" not in header:
        line, _, data = data.partition(b"\n")
        if not line and not data:
            raise ValueError("it has no DATA")
        if words := line.decode("ascii").split("#")[0].split():
            header[words[0]] = words[1:]
    names, (form,) = header["FIELDS"], header["DATA"]
    counts = list(map(int, header.get("COUNT", ["1"] * len(names))))
    if form == "ascii":
        rows = np.array(data.split(), np.float64).reshape(-1, sum(counts))
        starts = np.cumsum([0, *counts])
        return np.stack([rows[:, starts[names.index(axis)]] for axis in "xyz"], 1)
    if form != "binary":
        raise ValueError(f"its data are {form}, and only ascii and binary are read")
    kinds = zip(header["TYPE"], header["SIZE"], counts, strict=True)
    # By position: padding fields are all called "_".
    row = np.dtype([(str(i), NUMBERS[t] + s, (c,)) for i, (t, s, c) in enumerate(kinds)])
    rows = np.frombuffer(data, row, int(header["POINTS"][0]))
    return np.stack([rows[str(names.index(axis))][:, 0] for axis in "xyz"], 1)


def _txt(path: Path, data: bytes) -> np.ndarray:
    """Points (m, 3): the first three numbers of each line."""
    rows = [line.replace(",", " ").split() for line in data.decode().splitlines()]
    rows = [row[:3] for row in rows if row and not row[0].startswith("#")]
    if not rows or len(rows[-1]) < 3:
        raise ValueError("its lines do not begin with three numbers")
    return np.array(rows, np.float64)


def _npy(path: Path, data: bytes) -> np.ndarray:
    x = np.load(path, allow_pickle=False)
    if x.ndim != 2 or x.shape[1] < 3 or x.dtype.kind not in "iuf":
        raise ValueError(f"it holds {x.dtype} {x.shape}, no rows of coordinates")
    return x[:, :3]


READERS: dict[str, Callable[[Path, bytes], np.ndarray]] = {
    ".off": _off,
    ".pcd": _pcd,
    ".txt": _txt,
    ".xyz": _txt,
    ".npy": _npy,
}
