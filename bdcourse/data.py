"""Data sets: drawn by code, from torchvision, a folder of images or an .npz.

Derived in lesson 00.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from bdcourse import require
from bdcourse.examples import (
    Examples,
    Set,
    deal,
    hold_out,
    join,
    require_clean,
    require_names,
)
from bdcourse.files import whole_file
from bdcourse.images import Images
from bdcourse.task import quantize

BUILT_IN = (
    *("signs", "signs-hard", "cifar10", "cifar100", "gtsrb"),
    *("clips", "clips-hard", "solids", "solids-hard", "streets", "streets-hard"),
    *("sentences", "sentences-hard", "dialogue"),
)
__all__ = [
    "Images",
    "decode",
    "hold_out",
    "join",
    "load",
    "missing_classes",
    "quantize",
    "splits",
]
# Some of Pillow's other readers start programs, as Ghostscript for an EPS.
FORMATS = ("PNG", "JPEG", "BMP", "PPM", "WEBP", "TIFF", "GIF")
SUFFIXES = {
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".bmp",
    ".ppm",
    ".pgm",
    ".pbm",
    ".webp",
    ".tif",
    ".tiff",
    ".gif",
}
MOST_SIDE = 10_000  # pixels to which images may be resized
MOST_PIXELS = 89_478_485  # of one file; above it Pillow warns of decompression bombs
OPPOSITE = {"train": "test", "test": "train"}


class Drawing(NamedTuple):
    """A set that is drawn by code; `signs` are one, other tasks add theirs to :data:`DRAWINGS`."""

    kind: type[Examples]
    draw: Callable[..., Examples]  #: (n, seed=...) -> that kind
    version: Callable[[], str]  #: changes with the code that draws
    side: int  #: pixels, or whatever size= would set; 0 where there is nothing to set
    n_train: int
    n_test: int
    need: int  #: bytes of an example
    unit: str = ""  #: what `side` counts, if no pixels of a square


class Found(NamedTuple):
    """What the reader of another task finds at a path: examples by split (None is all of
    them, "" a set without a test part), and what there is to say of it."""

    parts: Mapping[str | None, Examples]
    note: str = ""


DRAWINGS: dict[str, Drawing] = {}
# What other tasks read: (path, size, classes) -> what is there, or None if it is none of
# theirs; see `tasks.points.files.read_clouds` and `tasks.pairs.read_pairs`.
READERS: list[Callable[..., Found | None]] = []


class Splits(NamedTuple):
    """What attacker, defender and examiner own; no image is in two of them.

    Of another task than images it holds that task's examples.
    """

    train: Images  #: the attacker poisons this
    clean: Images  #: the defender repairs with this
    held: Images  #: the defender chooses thresholds on this
    test: Images  #: everybody is measured on this


class _Part(NamedTuple):
    """Training or test images of a set, which can be chosen before they are read."""

    name: str
    total: int
    read: Callable[[Tensor | None], Any]  #: the examples at these positions, or all
    need: int = 0  #: bytes of each image that is not in memory yet
    notes: tuple[str, ...] = ()  #: what the user should know, a line each

    def choose(self, n: int | None, seed: int = 0) -> Tensor | None:
        """Positions of n random images; None for all."""
        if n is None or n == self.total:
            return None
        if n > self.total:
            raise ValueError(f"asked for {n} images, but {self.name} holds only {self.total}.")
        g = torch.Generator().manual_seed(seed)
        return torch.randperm(self.total, generator=g)[:n]


def splits(
    source: str | os.PathLike = "signs",
    *,
    clean: float = 0.05,
    seed: int = 0,
    n: int | None = None,
    n_test: int | None = None,
    size: int | None = None,
    classes: Sequence[str] | None = None,
) -> Splits:
    """Load an image set and deal it out as the course's protocol asks.

    The test images of a set that is sorted by class, as a folder is, come in a random
    order, the same every time: the first hundred are a sample then, not one class.
    A set without a test part gives a fifth of its images for one: see :func:`load`.
    Classes of which the defender has no image are named in a printed line.

    Args:
        clean: the defender's share of the training images; they tune on one fifth of it
            (`held`) and repair with the rest (`clean`).
        seed: of the dealing, not of the drawing: one test set serves all seeds.
        n: how many training images; `clean` is a share of these.
        n_test: how many test images.
        source, n, n_test, size, classes: see :func:`load`.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: see :func:`load`; or the defender
            would get fewer than two images, or the attacker none.
    """
    require.number("clean", clean, 0, 1)
    seed, n, n_test = _seed(seed), _number(n), _number(n_test, "n_test")
    first, second = _open(source, {"train": n, "test": n_test}, size=size, classes=classes)
    _print(first, second)
    chosen, examined = first.choose(n), second.choose(n_test)
    counts = [p.total if c is None else len(c) for p, c in ((first, chosen), (second, examined))]
    owned = round(clean * counts[0])
    _require_defender(clean, owned, counts[0])
    need = first.need * counts[0] + second.need * counts[1]
    _require_room(need, f"{sum(counts)} images of {first.name}")

    # Positions are dealt, not images: none of them is in memory twice.
    g = torch.Generator().manual_seed(1000 + seed)
    train, mine = deal(counts[0], owned, g)
    own, held = (mine[i] for i in deal(len(mine), max(1, len(mine) // 5), g))
    if chosen is not None:
        train, own, held = chosen[train], chosen[own], chosen[held]
    parts = Splits(first.read(train), first.read(own), first.read(held), second.read(examined))
    if parts.test.y.ndim == 1 and bool((parts.test.y.diff() >= 0).all()):
        g = torch.Generator().manual_seed(0)
        order = torch.randperm(len(parts.test), generator=g)
        parts = parts._replace(test=parts.test[order])
    if gone := missing_classes(parts.clean):
        print(f"the defender repairs without an image of {_listed(gone)}")
    return parts


def load(
    source: str | os.PathLike = "signs",
    split: str | None = None,
    *,
    n: int | None = None,
    seed: int = 0,
    size: int | None = None,
    root: str | os.PathLike | None = None,
    classes: Sequence[str] | None = None,
) -> Images:
    """Load an image set.

    Args:
        source: "signs" or "signs-hard" (drawn by code, no download); "cifar10",
            "cifar100" or "gtsrb" (downloaded once by torchvision); a folder with one
            sub-folder of images per class, or with train/ and test/ above those; or an
            .npz file with arrays x (n, h, w, c or n, c, h, w; uint8; 1 or 3 channels),
            y (n,) and, if you like, classes (k,). Of other tasks: "clips", "clips-hard",
            "solids", "solids-hard", "streets", "streets-hard", "sentences",
            "sentences-hard", "dialogue"; clouds in an .npz or in class folders, see
            `tasks.points.files.read_clouds`; a .tsv or .tsv.xz of sentences and their
            translations, see `tasks.pairs.read_pairs`.
        split: "train" or "test". A folder without train/ and test/, or an .npz, has no
            test part of its own: a fifth of each class, at least one image, is its test
            part then, always the same, and the rest is for training. None means the
            training part of a set that has a test part of its own, and else all images.
        n: how many images. Signs draw exactly n (default 6000 train, 2000 test); the
            others return a random n of what is there (default all), and of a folder
            only those are read.
        seed: of the drawing (signs) or of the choice of n images (the others).
        size: resize to size x size; needed when the images of a folder differ in size.
            Signs are drawn at 32. Of clouds, how many points each gets.
        root: where torchvision keeps downloads (default: the cache folder).
        classes: the class folders in the order of their labels (default: sorted by
            name, or by number where all names are numbers).

    Image files are read as :func:`decode` says. What a folder holds beside them is
    left out and named in a printed line.

    Raises:
        ValueError: an argument that cannot be meant, wrong shapes, empty classes, label
            gaps, or more pixels than the memory holds.
        FileNotFoundError: no such file or folder.
        RuntimeError: a download failed, or a file or folder cannot be read.
    """
    if split is not None:
        require.choice("split", split, OPPOSITE)
    n, seed = _number(n), _seed(seed)
    (part,) = _open(source, {split: n}, seed=seed, size=size, root=root, classes=classes)
    _print(part)
    chosen = part.choose(n, seed)
    count = part.total if chosen is None else len(chosen)
    _require_room(part.need * count, f"{count} images of {part.name}")
    return part.read(chosen)


def missing_classes(images: Images) -> tuple[str, ...]:
    """The classes of which a set holds no image; none where classes are not answered."""
    labels = require_clean(images, "images", least=0).task.labels(images.y)
    if labels is None:
        return ()
    there = set(labels.tolist())
    return tuple(c for i, c in enumerate(images.classes) if i not in there)


def _path(value: object, name: str) -> str:
    path = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(
            f"{name} must be a path or the name of a data set, not {require.kind(path)}."
        )
    return path


def _number(n: object, name: str = "n") -> int | None:
    return None if n is None else require.whole(name, n, 1)


def _seed(seed: object) -> int:
    return require.whole("seed", seed, 0, 10**18)


def _print(*parts: _Part) -> None:
    for note in dict.fromkeys(note for part in parts for note in part.notes):
        try:
            print(note)
        except UnicodeEncodeError:  # a name of a folder that this terminal cannot show
            print(ascii(note))


def _listed(names: Sequence[object], most: int = 12) -> str:
    """Names in quotes, the first of them if there are many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(str(n)) for n in names[:most]) + more


def _require_defender(clean: float, owned: int, count: int) -> None:
    if count < 3:
        raise ValueError(
            f"{count} training images are too few: the attacker needs one and the "
            "defender two of them."
        )
    if owned < 2:
        raise ValueError(
            f"clean={clean:g} of {count} training images leaves the defender {owned}, "
            "but they need one to repair with and one to tune on; pass "
            f"clean={math.ceil(200 / count) / 100:g} or more."
        )
    if owned >= count:
        raise ValueError(
            f"clean={clean:g} of {count} training images leaves the attacker none; "
            "pass a smaller clean."
        )


def _open(
    source: object,
    wanted: dict[str | None, int | None],
    *,
    seed: int = 0,
    size: int | None = None,
    root: str | os.PathLike | None = None,
    classes: Sequence[str] | None = None,
) -> list[_Part]:
    """The wanted parts (split -> n), with nothing read that is not needed to choose."""
    name = _path(source, "source")
    size = None if size is None else require.whole("size", size, 1, MOST_SIDE)
    place = cache_dir() if root is None else Path(_path(root, "root"))
    folder = name not in BUILT_IN and os.path.isdir(name)
    if classes is not None and not folder:
        raise ValueError(
            f"classes= gives the order of class folders, and {name} is no folder; leave it out."
        )
    if name in BUILT_IN:
        if drawing := _drawing(name):
            return [_drawn(name, drawing, s or "train", n, seed, size) for s, n in wanted.items()]
        return [_ready(name, _torchvision_set(name, s or "train", place), size) for s in wanted]
    if os.path.exists(name):
        importlib.import_module("bdcourse.tasks")  # whose readers may know what it is
        for read in READERS:
            if (found := read(Path(name), size, classes)) is not None:
                return [_found(found, split, name) for split in wanted]
    if folder:
        return _folder(Path(name), list(wanted), size, classes)
    if name.lower().endswith(".npz") and os.path.exists(name):
        images = _npz(Path(name))
        parts = []
        for split in wanted:
            mine, note = _dealt(images.y, images.classes, split, name)
            part = _ready(name, images if mine is None else images[mine], size)
            parts.append(part._replace(notes=(note,)))
        return parts
    if os.path.exists(name):
        raise ValueError(
            f"{name} is a file but not an .npz or .tsv; give a folder or one of these."
        )
    if os.sep in name or name.startswith(".") or name.lower().endswith(".npz"):
        raise FileNotFoundError(f"there is no folder or .npz file at {name}.")
    raise ValueError(
        f"unknown data {require.kind(name)}; choose {', '.join(BUILT_IN)}, or give the "
        "path of a folder of class folders or of an .npz file"
        f"{require.meant(name, BUILT_IN)}."
    )


def _drawing(name: str) -> Drawing | None:
    """The drawn set of this name, of whatever task."""
    # By name: the files that draw stand above this one, and enter their sets in its table.
    for room in ("bdcourse.signs", "bdcourse.tasks"):
        importlib.import_module(room)
        if name in DRAWINGS:
            return DRAWINGS[name]
    return None


def _drawn(
    name: str, drawing: Drawing, split: str, n: int | None, seed: int, size: int | None
) -> _Part:
    if size not in (None, side := drawing.side):
        drawn = f"{side} {drawing.unit}" if drawing.unit else f"{side}x{side} pixels"
        what = f"are drawn at {drawn}" if side else "have none"
        raise ValueError(f"{name} {what}; leave out size=.")
    n = n or (drawing.n_train if split == "train" else drawing.n_test)
    key = f"{name}-{split}-{n}-{seed}-{drawing.version()}"

    @cache
    def examples() -> Examples:
        # Train and test are different drawings because the split enters the seed.
        own = 2 * seed + (split == "test")
        return cached(key, lambda: drawing.draw(n, seed=own), drawing.kind)

    def read(at: Tensor | None) -> Examples:
        return examples() if at is None else examples()[at]

    return _Part(name, n, read, need=drawing.need)


def _found(found: Found, split: str | None, name: str) -> _Part:
    """A part of what the reader of another task has found."""
    if split not in found.parts and "" in found.parts:
        examples = found.parts[""]
        mine, note = _dealt(examples.y, examples.classes, split, name)
        part = _ready(name, examples if mine is None else examples[mine], None)
        return part._replace(notes=(note,))
    chosen = found.parts.get(split) or found.parts.get(split or "train")
    if chosen is None:
        raise ValueError(f"{name} has no {split} part; it needs more examples.")
    return _ready(name, chosen, None)._replace(notes=(found.note,) if found.note else ())


def _ready(name: str, images: Any, size: int | None) -> _Part:
    """A part that is in memory already."""

    def read(at: Tensor | None) -> Any:
        part = images if at is None else images[at]
        return part if size is None else _resized(part, size, name)

    return _Part(name, len(images), read)


def _resized(images: Images, size: int, name: str) -> Images:
    from PIL import Image

    channels, *sides = images.shape
    if sides == [size, size]:
        return images
    need = len(images) * channels * size**2
    _require_room(need, f"{len(images)} images of {name}")
    x = torch.empty(len(images), channels, size, size, dtype=torch.uint8)
    planes = images.x.flatten(0, 1).numpy()
    for new, plane in zip(x.flatten(0, 1).numpy(), planes, strict=True):
        im = Image.fromarray(plane)
        new[:] = np.asarray(im.resize((size, size), Image.Resampling.BILINEAR))
    return Images(x, images.y, images.classes)


def _dealt(
    y: Tensor, classes: Sequence[str], split: str | None, name: str
) -> tuple[Tensor | None, str]:
    """Positions of one part of a set without a test part, None for all; and a note.

    No seed of the user's enters: whoever loads the set gets the same test images.
    """
    if split is None:
        return None, (
            f"{name} has no test part: all of its {len(y)} images are read; 'train' "
            "and 'test' would deal one out"
        )
    g = torch.Generator().manual_seed(0)
    test = torch.zeros(len(y), dtype=torch.bool)
    counts = y.bincount(minlength=len(classes)).tolist()
    for label, mine in enumerate(y.argsort(stable=True).split(counts)):
        if len(mine) < 2:
            raise ValueError(
                f"class {classes[label]!r} of {name} holds one image only, so that no "
                "test image can be dealt out; add images."
            )
        share = max(1, round(len(mine) / 5))
        test[mine[torch.randperm(len(mine), generator=g)[:share]]] = True
    note = (
        f"{name} has no test part: {int(test.sum())} of its {len(y)} images, a fifth "
        "of each class, are dealt out as one"
    )
    return (test if split == "test" else ~test).nonzero().flatten(), note


def _free_memory() -> int | None:
    """Bytes of memory that may still be used here, as far as the system tells."""
    free = []
    with suppress(OSError, ValueError, AttributeError):
        free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError):
        found = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
        free += [int(found[1]) * 1024] if found else []
    with suppress(OSError, ValueError):  # a container's limit; "max" is none
        free.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(free, default=None)


def _require_room(need: int, what: str) -> None:
    """Refuse to load what does not fit, before the machine begins to swap or kills."""
    free = _free_memory()
    if need and free is not None and need > free:
        raise ValueError(
            f"{what} need {need / 1e9:.1f} GB of memory, but {free / 1e9:.1f} GB are "
            "free; choose fewer with n= or a smaller size=."
        )


def cache_dir() -> Path:
    """Folder for drawings and downloads: $BDCOURSE_CACHE, else ~/.cache/bdcourse."""
    return Path(os.environ.get("BDCOURSE_CACHE") or Path.home() / ".cache" / "bdcourse")


def cached(key: str, make: Callable[[], Set], kind: type[Examples] = Images) -> Set:
    """`make()`, examples of this kind, remembered on disk under `key`.

    A file appears under its final name only when it is complete (written aside, then
    renamed), so two processes or a killed run cannot leave half a file. A file that is
    damaged, was changed or belongs to another key is made again. If the disk is full
    or read-only the images are returned all the same.
    """
    path = cache_dir() / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as f:
            x, y = torch.from_numpy(f["x"]), torch.from_numpy(f["y"])
            images = cast("Set", kind(x, y, tuple(map(str, f["classes"]))))
            if str(f["seal"]) == _seal(key, images):
                return images
    except Exception:  # absent, or damaged: zipfile and numpy raise many kinds
        pass
    images = make()
    x, y = images.x.numpy(), images.y.numpy()
    seal = np.array(_seal(key, images))
    with suppress(OSError), whole_file(path) as f:
        np.savez(f, x=x, y=y, seal=seal, classes=np.array(images.classes))
    return images


def _seal(key: str, images: Examples) -> str:
    """Tells whether a stored file holds what was stored under this key."""
    text = f"{key} {images.classes} {images.digest()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def progress(items: Iterable, total: int, label: str) -> Iterable:
    """A progress bar, in a terminal only: stored notebook outputs stay readable."""
    from tqdm import tqdm

    quiet = not sys.stderr.isatty()
    return tqdm(items, total=total, desc=label, leave=False, disable=quiet)


def _folder(
    root: Path,
    wanted: Sequence[str | None],
    size: int | None,
    classes: Sequence[str] | None,
) -> list[_Part]:
    """The parts of a folder of class folders, or of one with train/ and test/."""
    here = Path(os.path.abspath(root))
    root = here if root == Path() else root  # "." reads badly in a sentence
    own = {s: root / s for s in OPPOSITE if (root / s).is_dir()}
    if len(own) == 1 and not any(map(_folders, own.values())):
        own = {}  # a class is called so
    beside = here.parent / OPPOSITE.get(here.name, "")
    if own:
        asked = [split or "train" for split in wanted]
        for split in asked:
            if split not in own:
                raise FileNotFoundError(
                    f"{root} has no {split}/ folder beside its other split; give that "
                    "one to have test images dealt out of it."
                )
        pairs = [(own[split], own.get(OPPOSITE[split])) for split in asked]
        names = class_names(pairs[0][0], classes, pairs[0][1])
        return [_files(*pair, names, size, root) for pair in pairs]
    if here.name in OPPOSITE and {*_folders(root)} & {*_folders(beside)}:
        if OPPOSITE[here.name] in wanted:
            raise ValueError(
                f"{root} is one part of an image set, whose {beside.name} images are "
                f"in {beside}; give the folder above, {here.parent}."
            )
        names = class_names(root, classes, beside)
        return [_files(root, beside, names, size, root) for _ in wanted]
    names = class_names(root, classes)
    return [_files(root, None, names, size, root, True, split) for split in wanted]


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; of none if there is no such folder."""
    if not folder.is_dir():
        return []
    return [e.name for e in _entries(folder) if _is_folder(e)]


def _is_folder(e: os.DirEntry) -> bool:
    return os.path.isdir(e.path) and not e.name.startswith(".")


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda e: e.name)
    except OSError as e:
        raise RuntimeError(
            f"the folder {folder} cannot be read ({e.strerror}); check its permissions."
        ) from e


def class_names(
    root: Path, given: Sequence[str] | None, other: Path | None = None
) -> tuple[str, ...]:
    """The class folders in the order of their labels; both splits must have them."""
    names = _folders(root)
    # Labels are positions among the names: one class less would shift the others.
    if other and (odd := {*names} ^ {*_folders(other)}):
        raise ValueError(
            f"train/ and test/ in {other.parent} must hold the same classes, but "
            f"{sorted(odd)[0]!r} is in one only."
        )
    if len(names) < 2:
        raise ValueError(
            f"{root} must hold one folder of images per class, at least two; found {len(names)}."
        )
    if given is not None:
        given = require_names(tuple(given) if isinstance(given, list) else given, "classes")
        if odd := {*names} ^ {*given}:
            raise ValueError(
                f"classes must name each class folder of {root} once, but "
                f"{sorted(odd)[0]!r} is in one of the two only."
            )
        return given
    # As text, "10" would come before "2".
    if all(n.isdecimal() for n in names):
        names.sort(key=lambda n: (int(n), n))
    return tuple(names)


def _files(
    folder: Path,
    other: Path | None,
    names: tuple[str, ...],
    size: int | None,
    root: Path,
    dealt: bool = False,
    split: str | None = None,
) -> _Part:
    """All images of a folder, or one part that is dealt out of them."""
    files, labels, left = [], [], []
    for label, name in enumerate(names):
        found, others = _class_files(folder / name)
        if not found:
            kinds = f" (but {_listed([p.name for p in others], 3)})" if others else ""
            raise ValueError(f"class folder {folder / name} holds no image{kinds}.")
        files += found
        left += others
        labels += [label] * len(found)
    left += [Path(e.path) for e in _entries(folder) if _is_image(e.name) and not _is_folder(e)]
    y = torch.tensor(labels)
    notes = [f"{root}: labels 0..{len(names) - 1} are {_listed(names)}"]
    if left:
        shown = _listed([p.relative_to(folder) for p in left], 3)
        notes.append(f"{len(left)} other files in {folder} are left out: {shown}")
    if dealt:
        mine, note = _dealt(y, names, split, str(root))
        notes.append(note)
        if mine is not None:
            files, y = [files[i] for i in mine.tolist()], y[mine]
    # The first file stands for all, so that a wrong size is found before the rest.
    like = decode(files[0], size)
    if other and size is None:
        _require_same_size(like, files[0], other / names[0])

    def read(at: Tensor | None) -> Images:
        mine = torch.arange(len(y)) if at is None else at
        x = _pixels([files[i] for i in mine.tolist()], size, like, files[0])
        return Images(x, y[mine], names)

    return _Part(str(folder), len(files), read, like.size, tuple(notes))


def _class_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Image files of one class, sorted by name, and the files that are none."""
    files, others = [], []
    for e in _entries(folder):
        if _is_folder(e):
            if any(_is_image(f) for _, _, found in os.walk(e.path) for f in found):
                raise ValueError(
                    f"class folder {folder} holds a folder of images, {e.name}/, where "
                    "images themselves must be; move them up, or the folder away."
                )
        elif _is_image(e.name):
            files.append(Path(e.path))
        elif not e.name.startswith(".") or _is_image(e.name.lstrip("._")):
            others.append(Path(e.path))
    return files, others


def _require_same_size(like: np.ndarray, file: Path, theirs: Path) -> None:
    """Compare with one image of the other split, if that can be read."""
    try:
        first = _class_files(theirs)[0][0]
        shape = decode(first).shape
    except (IndexError, ValueError, RuntimeError):  # told when that split is loaded
        return
    if shape != like.shape:
        raise _differ(first, shape, file, like.shape)


def _differ(path: Path, shape: tuple, first: Path, usual: tuple) -> ValueError:
    return ValueError(
        f"{path} is {shape[1]}x{shape[0]} pixels but {first} is "
        f"{usual[1]}x{usual[0]}; pass size=32 (say) to resize all."
    )


def _pixels(files: list[Path], size: int | None, like: np.ndarray, first: Path) -> Tensor:
    """Image files, each as large as `like`, as uint8 (n, 3, h, w)."""
    h, w, _ = like.shape
    x = np.empty((len(files), 3, h, w), np.uint8)

    def put(i: int) -> None:
        a = decode(files[i], size)
        if a.shape != like.shape:
            raise _differ(files[i], a.shape, first, like.shape)
        x[i] = a.transpose(2, 0, 1)

    pool = ThreadPoolExecutor()
    try:
        reading = pool.map(put, range(len(files)))
        for _ in progress(reading, len(files), f"reading {first.parent.parent.name}"):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return torch.from_numpy(x)


def decode(path: str | os.PathLike, size: int | None = None) -> np.ndarray:
    """Read an image file: RGB, uint8, shape (h, w, 3).

    Opened are :data:`FORMATS`, whatever the file is called; of an animation or of
    several pages the first picture counts. It is turned as its EXIF says. Gray, palette
    and CMYK become RGB; what is transparent lies on white. Channels of 12 and 16 bits
    are scaled to 8 by their depth. At last it is resized to size x size.

    Raises:
        RuntimeError: not such a file, damaged, too large, or of pixels whose range
            nothing tells (32 bits, floats).
    """
    from PIL import Image

    path, cause = Path(_path(path, "path")), None
    size = None if size is None else require.whole("size", size, 1, MOST_SIDE)
    if not os.path.isfile(path):  # opening a named pipe would wait forever
        raise RuntimeError(f"{path} is not a regular file; replace or delete it.")
    try:
        with Image.open(path, formats=FORMATS) as im:
            if im.width * im.height > MOST_PIXELS:
                wrong = f"claims to be {im.width}x{im.height} pixels, too many for one"
            elif im.mode == "F" or (im.mode == "I" and im.format not in ("PNG", "PPM")):
                wrong = "has pixels of floats or 32 bits, whose range nothing tells"
            else:
                im = _rgb(im)
                if size is not None and im.size != (size, size):
                    im = im.resize((size, size), Image.Resampling.BILINEAR)
                return np.asarray(im)
    except Image.DecompressionBombError:
        wrong = f"claims to be more than {2 * MOST_PIXELS} pixels, too many for one"
    except PermissionError as e:
        wrong, cause = "may not be read", e
    except Exception as e:  # Pillow raises many kinds
        wrong, cause = f"is not a readable image ({', '.join(FORMATS)})", e
    raise RuntimeError(f"{path} {wrong}; replace or delete it.") from cause


def _rgb(im):
    """An open Pillow image turned, scaled to 8 bits and laid on white."""
    from PIL import Image, ImageOps

    tags = getattr(im, "tag_v2", {})  # of a TIFF
    im.load()
    # EXIF that nobody can read turns nothing.
    with suppress(Exception):
        if im.getexif().get(0x0112, 1) != 1:
            im = ImageOps.exif_transpose(im)
    if im.mode.startswith("I"):
        most = 2 ** tags.get(258, (16,))[0] - 1  # bits of a sample
        deep = np.asarray(im) / most
        deep = 1 - deep if tags.get(262) == 0 else deep  # TIFF's "white is zero"
        im = Image.fromarray(np.rint(deep.clip(0, 1) * 255).astype(np.uint8))
    if im.mode in ("RGBA", "LA", "PA") or "transparency" in im.info:
        im = im.convert("RGBA")
        im = Image.alpha_composite(Image.new("RGBA", im.size, "white"), im)
    return im if im.mode == "RGB" else im.convert("RGB")


def _npz(path: Path) -> Images:
    if not os.path.isfile(path):
        raise RuntimeError(f"{path} is not a regular file; replace or delete it.")
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as f:
        _require_room(sum(i.file_size for i in f.infolist()), f"the arrays in {path}")
    try:
        with np.load(path, allow_pickle=False) as f:
            missing = {"x", "y"} - set(f.files)
            if missing:
                raise KeyError(f"{path} lacks the array {sorted(missing)[0]!r}.")
            x, y = f["x"], f["y"]
            names = f["classes"] if "classes" in f.files else None
    except KeyError as e:
        raise ValueError(e.args[0]) from None
    except PermissionError as e:
        raise RuntimeError(f"{path} may not be read; check its permissions.") from e
    except Exception as e:  # zipfile and numpy raise many kinds; no pickle is opened
        raise RuntimeError(f"{path} is damaged or not an .npz of plain arrays.") from e
    if x.dtype != np.uint8 or x.ndim != 4:
        raise ValueError(f"x in {path} must be uint8 with 4 axes, not {x.dtype} {x.shape}.")
    if len(x) == 0 or x.size == 0:
        raise ValueError(f"{path} holds no image: its x has the shape {x.shape}.")
    if x.shape[1] not in (1, 3):
        if x.shape[3] not in (1, 3):
            raise ValueError(
                f"x in {path} must be (n, h, w, c) or (n, c, h, w) with 1 or 3 "
                f"channels, not {x.shape}; lay transparent images on a background."
            )
        x = x.transpose(0, 3, 1, 2)
    if y.shape != x.shape[:1] or y.dtype.kind not in "iu":
        raise ValueError(f"y in {path} must be {len(x)} whole numbers, one per image.")
    y = y.astype(np.int64)
    if names is not None:
        names = stored_names(names, path)
    k = len(names) if names else int(y.max()) + 1
    present = set(np.unique(y).tolist())
    gap = next((i for i in range(k) if i not in present), None)
    if y.min() < 0:
        what = "labels are negative"
    elif gap is not None:
        what = f"class {gap} has no image"
    else:
        what = f"label {y.max()} has no name" if y.max() >= k else ""
    if what:
        raise ValueError(f"labels in {path} must run 0..{k - 1} without gaps: {what}.")
    if k < 2:
        raise ValueError(f"{path} holds one class, but there must be at least two.")
    names = names or tuple(map(str, range(k)))
    return Images(torch.from_numpy(np.ascontiguousarray(x)), torch.from_numpy(y), names)


def stored_names(names: np.ndarray, path: Path) -> tuple[str, ...]:
    if names.ndim != 1:
        raise ValueError(f"classes in {path} must be a list of names.")
    try:
        text = (n.decode() if isinstance(n, bytes) else str(n) for n in names.tolist())
        return require_names(tuple(text), f"classes in {path}")
    except UnicodeDecodeError as e:
        raise ValueError(f"classes in {path} must be text in UTF-8.") from e


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
    files = [Path(file) for file, _ in d._samples]
    x = _pixels(files, 32, decode(files[0], 32), files[0])
    y = torch.tensor([label for _, label in d._samples])
    return Images(x, y, tuple(f"{i:02d}" for i in range(43)))
