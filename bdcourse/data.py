"""Image sets: from the built-in signs, torchvision, a folder or an .npz.

Born in lesson 00.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bdcourse.images import Images, hold_out, join, quantize

BUILT_IN = ("signs", "signs-hard", "cifar10", "cifar100", "gtsrb")
__all__ = ["Images", "hold_out", "join", "quantize", "load", "splits"]
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp"}


class Splits(NamedTuple):
    """What attacker, defender and examiner own; no image is in two of them."""

    train: Images  #: the attacker poisons this
    clean: Images  #: the defender repairs with this
    held: Images  #: the defender chooses thresholds on this
    test: Images  #: everybody is measured on this


def splits(
    source: str | os.PathLike = "signs",
    *,
    clean: float = 0.05,
    seed: int = 0,
    n: int | None = None,
    size: int | None = None,
    n_test: int | None = None,
) -> Splits:
    """Load an image set and deal it out as the course's protocol asks.

    The test images of a set that is sorted by class, as a folder is, come in a random
    order, the same every time: the first hundred are a sample then, not one class.

    Args:
        clean: the defender's share of the training images; he tunes on one fifth of it
            (`held`) and repairs with the rest (`clean`).
        seed: of the dealing, not of the drawing: one test set serves all seeds.
        n_test: number of test images, as `n` is of training images.
        source, n, size: see :func:`load`.
    """
    everything = load(source, "train", n=n, size=size)
    g = torch.Generator().manual_seed(1000 + seed)
    train, owned = hold_out(everything, round(clean * len(everything)), g)
    own, held = hold_out(owned, max(1, len(owned) // 5), g)
    test = load(source, "test", n=n_test, size=size)
    if bool((test.y.diff() >= 0).all()):
        g = torch.Generator().manual_seed(0)
        test = test[torch.randperm(len(test), generator=g)]
    return Splits(train, own, held, test)


def load(
    source: str | os.PathLike = "signs",
    split: str = "train",
    *,
    n: int | None = None,
    seed: int = 0,
    size: int | None = None,
    root: str | os.PathLike | None = None,
) -> Images:
    """Load an image set.

    Args:
        source: "signs" or "signs-hard" (drawn by code, no download); "cifar10",
            "cifar100" or "gtsrb" (downloaded once by torchvision); a folder with one
            sub-folder of images per class, or with train/ and test/ above those; or an
            .npz file with arrays x (n, h, w, c or n, c, h, w; uint8) and y (n,).
        split: "train" or "test". A folder without train/ and test/ and an .npz hold one
            split only and return it for either name.
        n: how many images. Signs draw exactly n (default 6000 train, 2000 test); the
            others return a random n of what is there (default all).
        seed: of the drawing (signs) or of the choice of n images (the others).
        size: resize folder images to size x size; needed when they differ in size.
        root: where torchvision keeps downloads (default: the cache folder).

    Raises:
        ValueError: unknown name, wrong shapes, empty classes, label gaps.
        FileNotFoundError: no such file or folder.
        RuntimeError: a download failed or an image cannot be read.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split must be "train" or "test", not {split!r}.')
    if n is not None and n < 1:
        raise ValueError(f"n must be at least 1, not {n}.")
    name = str(source)
    if name in ("signs", "signs-hard"):
        from bdcourse import signs

        n = n or (6000 if split == "train" else 2000)
        hard = name == "signs-hard"
        key = f"{name}-{split}-{n}-{seed}-{signs.version()}"
        # Train and test are different drawings because the split enters the seed.
        drawing_seed = 2 * seed + (split == "test")
        return cached(key, lambda: signs.draw(n, seed=drawing_seed, hard=hard))
    if name in ("cifar10", "cifar100", "gtsrb"):
        images = _torchvision_set(name, split, Path(root) if root else cache_dir())
    elif Path(name).is_dir():
        images = _folder(Path(name), split, size)
    elif name.endswith(".npz"):
        images = _npz(Path(name))
    elif Path(name).exists():
        raise ValueError(f"{name} is a file but not an .npz; give a folder or an .npz.")
    elif os.sep in name or name.startswith("."):
        raise FileNotFoundError(f"there is no folder or .npz file at {name}.")
    else:
        raise ValueError(
            f"unknown data {name!r}; choose signs, signs-hard, cifar10, cifar100, "
            "gtsrb, or give the path of a folder of class folders or of an .npz file."
        )
    if n is None or n == len(images):
        return images
    if n > len(images):
        raise ValueError(f"asked for {n} images, but {name} holds only {len(images)}.")
    g = torch.Generator().manual_seed(seed)
    return images[torch.randperm(len(images), generator=g)[:n]]


def cache_dir() -> Path:
    """Folder for drawings and downloads: $BDCOURSE_CACHE, else ~/.cache/bdcourse."""
    return Path(os.environ.get("BDCOURSE_CACHE") or Path.home() / ".cache" / "bdcourse")


def cached(key: str, make: Callable[[], Images]) -> Images:
    """`make()`, remembered on disk under `key`.

    A file appears under its final name only when it is complete (written aside, then
    renamed), so two processes or a killed run cannot leave half a file. A damaged file
    is made again. If the disk is full or read-only the images are returned all the
    same.
    """
    path = cache_dir() / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as f:
            x, y = torch.from_numpy(f["x"]), torch.from_numpy(f["y"])
            return Images(x, y, tuple(map(str, f["classes"])))
    except Exception:  # absent, or damaged: zipfile and numpy raise many kinds
        pass
    images = make()
    aside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as f:
            aside = f.name
            arrays = {"x": images.x.numpy(), "y": images.y.numpy()}
            np.savez(f, **arrays, classes=np.array(images.classes))
        os.replace(aside, path)
        aside = None
    except OSError:
        pass
    finally:  # also on Ctrl-C
        if aside is not None:
            with suppress(OSError):
                os.unlink(aside)
    return images


def progress(items: Iterable, total: int, label: str) -> Iterable:
    """A progress bar, in a terminal only: stored notebook outputs stay readable."""
    from tqdm import tqdm

    quiet = not sys.stderr.isatty()
    return tqdm(items, total=total, desc=label, leave=False, disable=quiet)


def _class_names(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")


def _folder(root: Path, split: str, size: int | None) -> Images:
    other = root / ("test" if split == "train" else "train")
    if (root / split).is_dir():
        root = root / split
        # Labels are positions among the names: one class less would shift the others.
        if other.is_dir() and (odd := {*_class_names(root)} ^ {*_class_names(other)}):
            raise ValueError(
                f"train/ and test/ in {root.parent} must hold the same classes, but "
                f"{sorted(odd)[0]!r} is in one only."
            )
    elif (root / "train").is_dir() or (root / "test").is_dir():
        raise FileNotFoundError(
            f"{root} has no {split}/ folder beside its other split."
        )
    names = _class_names(root)
    if len(names) < 2:
        raise ValueError(
            f"{root} must hold one folder of images per class, at least two; "
            f"found {len(names)}."
        )
    files, labels = [], []
    for label, name in enumerate(names):
        found = sorted(
            p for p in (root / name).iterdir() if p.suffix.lower() in SUFFIXES
        )
        if not found:
            raise ValueError(f"class folder {root / name} holds no image.")
        files += found
        labels += [label] * len(found)

    with ThreadPoolExecutor() as pool:
        reading = pool.map(lambda p: _read(p, size), files)
        arrays = list(progress(reading, len(files), f"reading {root.name}"))
    first = arrays[0].shape
    for path, a in zip(files, arrays, strict=True):
        if a.shape != first:
            raise ValueError(
                f"{path} is {a.shape[1]}x{a.shape[0]} pixels but {files[0]} is "
                f"{first[1]}x{first[0]}; pass size=32 (say) to resize all."
            )
    x = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    return Images(x, torch.tensor(labels), tuple(names))


def _read(path: Path, size: int | None) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as im:
            im = im.convert("RGB")
            if size is not None and im.size != (size, size):
                im = im.resize((size, size), Image.Resampling.BILINEAR)
            return np.asarray(im)
    except (OSError, ValueError, SyntaxError) as e:
        raise RuntimeError(
            f"{path} is not a readable image; replace or delete it."
        ) from e


def _npz(path: Path) -> Images:
    if not path.exists():
        raise FileNotFoundError(f"there is no file at {path}.")
    try:
        with np.load(path, allow_pickle=False) as f:
            missing = {"x", "y"} - set(f.files)
            if missing:
                raise KeyError(f"{path} lacks the array {sorted(missing)[0]!r}.")
            x, y = f["x"], f["y"]
            names = [str(c) for c in f["classes"]] if "classes" in f.files else None
    except KeyError as e:
        raise ValueError(e.args[0]) from None
    except Exception as e:  # zipfile and numpy raise many kinds; no pickle is opened
        raise RuntimeError(f"{path} is damaged or not an .npz of plain arrays.") from e
    if x.dtype != np.uint8 or x.ndim != 4:
        raise ValueError(
            f"x in {path} must be uint8 with 4 axes, not {x.dtype} {x.shape}."
        )
    if x.shape[1] not in (1, 3) and x.shape[3] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if len(x) == 0:
        raise ValueError(f"{path} holds no image.")
    if y.shape != x.shape[:1] or y.dtype.kind not in "iu":
        raise ValueError(f"y in {path} must be {len(x)} whole numbers, one per image.")
    y = y.astype(np.int64)
    k = len(names) if names else int(y.max()) + 1
    present = set(np.unique(y).tolist())
    gap = next((i for i in range(k) if i not in present), None)
    if gap is not None or y.min() < 0:
        what = "labels are negative" if y.min() < 0 else f"class {gap} has no image"
        raise ValueError(f"labels in {path} must run 0..{k - 1} without gaps: {what}.")
    names = names or [str(i) for i in range(k)]
    return Images(
        torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y), tuple(names)
    )


def _torchvision_set(name: str, split: str, root: Path) -> Images:
    from bdcourse.compat import import_torchvision

    tv = import_torchvision().datasets
    try:
        if name == "gtsrb":
            return _gtsrb(tv, split, root)
        cls = tv.CIFAR10 if name == "cifar10" else tv.CIFAR100
        d = cls(str(root), train=split == "train", download=True)
    except (OSError, RuntimeError) as e:
        raise RuntimeError(
            f"could not download {name} into {root} ({type(e).__name__}); check the "
            "network, or load your own copy with load('path/to/folder')."
        ) from e
    x = torch.from_numpy(d.data).permute(0, 3, 1, 2).contiguous()
    return Images(x, torch.tensor(d.targets), tuple(d.classes))


def _gtsrb(tv, split: str, root: Path) -> Images:
    d = tv.GTSRB(str(root), split=split, download=True)
    with ThreadPoolExecutor() as pool:
        arrays = list(pool.map(lambda s: _read(Path(s[0]), 32), d._samples))
    x = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
    y = torch.tensor([label for _, label in d._samples])
    return Images(x, y, tuple(f"{i:02d}" for i in range(43)))
