"""Scenes from files: pictures beside one table of boxes, or beside an XML file each."""

from __future__ import annotations

import csv
import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bdcourse import require
from bdcourse.data import MOST_SIDE, OPPOSITE, SUFFIXES, decode
from bdcourse.examples import require_names
from bdcourse.tasks.detection.boxes import STRIDE
from bdcourse.tasks.detection.scenes import Scenes

COLUMNS = ("image", "class", "x1", "y1", "x2", "y2")
CORNERS = ("xmin", "ymin", "xmax", "ymax")  # in an XML file
SLACK = 1.0  # pixels by which a box may reach over the edge of its picture, to be cut


class _Box(NamedTuple):
    label: str
    corners: tuple[float, float, float, float]
    where: str  #: in which line or file it stands, for a sentence


def read_scenes(
    folder: str | os.PathLike,
    split: str | None = None,
    *,
    side: int = 160,
    classes: Sequence[str] | None = None,
) -> Scenes:
    """Pictures and boxes of a folder, resized to side x side; boxes are resized alike.

    Two forms are read. A table `boxes.csv` with the columns image, class, x1, y1, x2, y2
    and, if you like, split, beside a folder `images`; x and y are the edges in pixels of the
    picture. Or an XML file of Pascal VOC a picture, in `Annotations` beside `JPEGImages`, or
    all in one folder, with lists in `ImageSets/Main` if there are splits. Their corners are
    taken as edges, as labelImg writes them. Pictures that no table or XML file names are
    left out and counted in a printed line.

    Args:
        split: which part, such as "train"; None is all.
        side: of the scenes, in pixels, a multiple of 8.
        classes: names in the order of their numbers; None sorts those that occur.

    Raises:
        FileNotFoundError: no such folder, or a picture that is missing.
        ValueError: a box that is none, lies outside of its picture or has an unknown
            class; no boxes at all; a file that is no table and no such XML.
        RuntimeError: a picture that cannot be read; see `data.decode`.
    """
    root = Path(require.path("folder", folder))
    side = require.whole("side", side, STRIDE, MOST_SIDE)
    if side % STRIDE:
        raise ValueError(f"side must be a multiple of {STRIDE}, not {side}.")
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder at {root}.")
    if split is not None:
        require.choice("split", split, (*OPPOSITE, "val"))
    table, notes = root / "boxes.csv", root / "Annotations"
    if table.is_file():
        found, pictures = _table(table, split), root / "images"
    else:
        own = notes if notes.is_dir() else root
        pictures = root / "JPEGImages" if (root / "JPEGImages").is_dir() else root
        found = _voc(own, root / "ImageSets" / "Main", split)
    if not found:
        part = "" if split is None else f" in its split {split!r}"
        raise ValueError(f"{root} holds no picture with boxes{part}.")
    there = {p.stem: p for p in sorted(pictures.glob("*")) if p.suffix.lower() in SUFFIXES}
    known = _names(found, classes)
    x = torch.empty(len(found), 3, side, side, dtype=torch.uint8)
    # One row more than the most boxes: whoever adds one finds room.
    y = torch.zeros(len(found), 1 + max(map(len, found.values())), 5)
    y[..., 0] = -1
    for i, (name, boxes) in enumerate(found.items()):
        if name not in there:
            raise FileNotFoundError(
                f"there is no picture called {name} in {pictures}, which {boxes[0].where} names."
                if boxes
                else f"there is no picture called {name} in {pictures}."
            )
        pixels = decode(there[name])
        x[i] = torch.from_numpy(_resized(pixels, side)).permute(2, 0, 1)
        for j, box in enumerate(boxes):
            corners = _inside(box, *pixels.shape[:2])
            y[i, j] = torch.tensor([known.index(box.label), *(c * side for c in corners)])
    if split is None and (more := len(there) - len(found)) > 0:
        print(f"{more} pictures of {pictures} have no boxes named and are left out")
    return Scenes(x, y, known)


def _resized(pixels: np.ndarray, side: int) -> np.ndarray:
    from PIL import Image

    return np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))


def _inside(box: _Box, h: int, w: int) -> list[float]:
    """The corners of a box in shares of its picture, cut at the edges."""
    x1, y1, x2, y2 = box.corners
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"{box.where} has a box without area, {box.corners}; delete it.")
    if min(x1, y1) < -SLACK or x2 > w + SLACK or y2 > h + SLACK:
        raise ValueError(
            f"{box.where} has a box {box.corners} outside of its picture of {w}x{h} pixels; "
            "give the edges in its own pixels."
        )
    cut = (min(max(x1, 0), w) / w, min(max(y1, 0), h) / h, min(x2, w) / w, min(y2, h) / h)
    if not (cut[0] < cut[2] and cut[1] < cut[3]):
        raise ValueError(f"{box.where} has a box outside of its picture; delete it.")
    return list(cut)


def _names(found: dict[str, list[_Box]], classes: Sequence[str] | None) -> tuple[str, ...]:
    boxes = [box for row in found.values() for box in row]
    if classes is None:
        if not boxes:
            raise ValueError("no picture has a box, so there are no classes; pass classes=.")
        return tuple(sorted({box.label for box in boxes}))
    known = require_names(tuple(classes) if isinstance(classes, list) else classes, "classes")
    for box in boxes:
        if box.label not in known:
            raise ValueError(
                f"{box.where} has a box of class {box.label!r}, which is not among classes"
                f"{require.meant(box.label, known)}."
            )
    return known


def _number(text: object, where: str) -> float:
    try:
        value = float(str(text))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where} must give the edges of a box as numbers, not {str(text)!r}.")
    return value


def _table(path: Path, split: str | None) -> dict[str, list[_Box]]:
    """Name of the picture -> its boxes, in the order of the file."""
    found: dict[str, list[_Box]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as f:
            rows = csv.DictReader(f)
            columns = rows.fieldnames or []
            if missing := [c for c in COLUMNS if c not in columns]:
                raise ValueError(
                    f"{path} needs the columns {', '.join(COLUMNS)}, but lacks {missing[0]!r}."
                )
            if split is not None and "split" not in columns:
                raise ValueError(f"{path} has no column 'split'; leave split out.")
            for number, row in enumerate(rows, 2):
                if split is not None and row["split"] != split:
                    continue
                where = f"line {number} of {path.name}"
                if any(row[c] in (None, "") for c in COLUMNS):
                    raise ValueError(f"{where} lacks an entry.")
                x1, y1, x2, y2 = (_number(row[c], where) for c in COLUMNS[2:])
                name = _stem(row["image"])
                found.setdefault(name, []).append(_Box(row["class"], (x1, y1, x2, y2), where))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise ValueError(f"{path} cannot be read as a table ({require.reason(e)}).") from e
    return found


def _stem(name: str) -> str:
    """The name of a picture without its suffix; other dots belong to it."""
    path = Path(name)
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def _voc(folder: Path, lists: Path, split: str | None) -> dict[str, list[_Box]]:
    """The same of XML files."""
    files = {p.stem: p for p in sorted(folder.glob("*.xml"))}
    if not files:
        raise ValueError(
            f"{folder} holds neither boxes.csv nor XML files; see read_scenes for both forms."
        )
    names = list(files)
    if split is not None:
        chosen = lists / f"{split}.txt"
        if not chosen.is_file():
            raise FileNotFoundError(f"there is no list of that split at {chosen}.")
        names = [line.split()[0] for line in chosen.read_text("utf-8").splitlines() if line.strip()]
        if gone := [n for n in names if n not in files]:
            raise FileNotFoundError(f"{chosen} names {gone[0]}, which has no XML in {folder}.")
    return {name: _annotation(files[name]) for name in names}


def _annotation(path: Path) -> list[_Box]:
    try:
        text = path.read_bytes()
        if b"<!DOCTYPE" in text or b"<!ENTITY" in text:  # a few lines can fill the memory
            raise ValueError(f"{path.name} declares entities, which no annotation needs.")
        root = ElementTree.fromstring(text)
    except (OSError, ElementTree.ParseError) as e:
        raise ValueError(f"{path.name} cannot be read as XML ({require.reason(e)}).") from e
    boxes = []
    for thing in root.iter("object"):
        label, box = (thing.findtext("name") or "").strip(), thing.find("bndbox")
        if not label or box is None:
            raise ValueError(f"{path.name} has an object without a name or a bndbox.")
        x1, y1, x2, y2 = (_number(box.findtext(c), path.name) for c in CORNERS)
        boxes.append(_Box(label, (x1, y1, x2, y2), path.name))
    return boxes
