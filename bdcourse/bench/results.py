"""Measured rows on disk: one JSON file a table, and what makes a row that row.

Reading them needs neither torch nor a defense. Derived in lesson 03.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bdcourse import require
from bdcourse.files import locked, whole_file

RESULTS = Path(__file__).resolve().parents[2] / "data" / "results"
DRAWN = ("signs", "signs-hard")


# What the standard tables show.
DEFENSES = (
    "none",
    "clp, u = 3",
    "clp, u = 2.5",
    "clp, u on held-out images",
    "random channels",
    "fine-tuning",
)
# What runs on every task without a choice that only one of them knows.
ACROSS = (
    *("none", "fine-tuning", "fine-tuning, adamw", "fip, eta chosen", "fast fip, eta chosen"),
    *("fip, eta = 0", "fip, eta chosen, random direction", "sam"),
)
# The entries of `recipes.Recipe`, which a reader of rows need not import.
RECIPE = (
    *("model", "width", "epochs", "batch", "lr", "weight_decay", "rate", "stamp"),
    *("pad", "flip", "bf16", "aware", "momentum", "warmup", "schedule", "smoothing"),
    *("shifts", "shrink", "optimizer", "clip"),
)
KEYS = (
    *RECIPE,
    *("data", "digest", "seed", "victim", "attack", "options", "budget", "draw"),
    "defense",
)
NAMED = ("data", "victim", "attack", "defense", "seed", "budget", "draw")
SHARES = ("acc", "asr", "ra", "cross", "der")
AMOUNTS = ("pruned", "clean_used", "seconds", "n_poisoned", "n_cover")


def identity(row: Mapping) -> str:
    """What makes a row this cell of a table and no other, as text; 12 is 12.0.

    Raises:
        ValueError: it is no row: its entries are not what a JSON file can hold.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"a row must be a dict, not {require.kind(row)}.")

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        number = isinstance(value, int) and not isinstance(value, bool)
        return float(value) if number else value

    own = {k: plain(row.get(k)) for k in KEYS}
    if row.get("data") in DRAWN:
        # Drawn by code: processors round a few pixels differently.
        own["digest"] = plain(row.get("n_train"))
    if row.get("n_test") is not None:  # else: all test images, as in older rows
        own["n_test"] = plain(row["n_test"])
    if row.get("plugins"):  # else: all of it is the course's own
        own["plugins"] = plain(row["plugins"])
    try:
        return json.dumps(own, sort_keys=True)
    except TypeError:
        raise ValueError(f"the row ({_called(row)}) has entries that JSON cannot hold.") from None


def _called(row: Mapping) -> str:
    """How messages name a row."""
    said = (f"{k} {row[k]}" for k in NAMED if row.get(k) is not None)
    return ", ".join(said) or "without attack and defense"


def _require_sound(row: Mapping, source: object) -> None:
    """Refuse a row whose numbers cannot have been measured.

    Raises:
        ValueError: a share outside 0..1 or nan, a negative count or time, a name that
            is no text.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"{source}: a row must be a dict, not {require.kind(row)}.")
    where = f"of the row ({_called(row)}) in {source}"
    for k in ("attack", "defense", "victim", "weak"):
        if not isinstance(row.get(k, ""), (str, type(None))):
            raise ValueError(f"{k} {where} must be text, not {require.kind(row[k])}.")
    points = row.get("curve", ())
    if not isinstance(points, (list, tuple)) or not all(
        isinstance(p, Mapping) and {"u", "acc"} <= p.keys() for p in points
    ):
        raise ValueError(f"curve {where} must be a list of scores, each with its u.")
    for p in points:
        require.number(f"u {where}", p["u"])
    for entry in (row, *points):
        for k in SHARES:
            if entry.get(k) is not None:
                require.fraction(f"{k} {where}", entry[k])
    for k in AMOUNTS:
        if row.get(k) is not None:
            require.number(f"{k} {where}", row[k], 0)


def _once(rows: list[dict], path: Path) -> list[dict]:
    """The rows with each cell once; a failed row gives way to one that is whole.

    Raises:
        ValueError: two rows of a cell say different things, as after a merge by hand.
            Neither a mean of both nor the later one would be a measurement.
    """
    kept: dict[str, dict] = {}
    for r in rows:
        if "source" in r or not {"attack", "defense"} <= r.keys():  # read elsewhere
            kept[f"{len(kept)}"] = r
            continue
        cell = identity(r)
        other = kept.setdefault(cell, r)
        if "error" in other:
            kept[cell] = r
        elif "error" not in r and other != r:
            raise ValueError(
                f"{path} holds two different rows of one cell ({_called(r)}); delete the wrong one."
            )
    return list(kept.values())


class Results:
    """Rows of results in one JSON file, one for each cell, written atomically.

    Args:
        path: of the file; it need not be there yet. Where it is a link, the file behind
            it is read and replaced.

    Attributes:
        failed: the rows with an `error` that this object was given.

    Raises:
        ValueError: the file cannot be read, is no table of results, or holds a cell
            twice with different numbers.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        right = isinstance(path, (str, os.PathLike)) and str(path)
        if not right or "\0" in str(path):
            raise ValueError(f"a table must be the path of a .json, not {require.kind(path)}.")
        self.path = Path(path)
        self.rows: list[dict] = []
        self.failed: list[dict] = []
        self._at: dict[str, int] = {}
        self._file = Path(os.path.realpath(self.path))
        self._read()

    def _read(self) -> None:
        try:
            text = self._file.read_bytes()
        except FileNotFoundError:
            return
        except OSError as e:
            raise ValueError(
                f"{self.path} cannot be read ({e.strerror}); name another --out."
            ) from e
        try:
            rows = json.loads(text.decode())["rows"]
            if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
                raise TypeError
        except (ValueError, LookupError, TypeError, RecursionError) as e:
            why = " (it is not text)" if isinstance(e, UnicodeDecodeError) else ""
            raise ValueError(
                f'{self.path} is not a table of results, a JSON file with "rows"{why}; '
                "name another file, or move it away if it should be written."
            ) from e
        for r in rows:
            _require_sound(r, self.path)
        once = _once(rows, self.path)
        if (twice := len(rows) - len(once)) and not self.rows:  # said once
            print(
                f"{self.path} holds {twice} rows twice; one of each counts.",
                file=sys.stderr,
            )
        self.rows = once
        self._at = {identity(r): i for i, r in enumerate(self.rows)}

    @contextmanager
    def owned(self) -> Iterator[Results]:
        """While it lasts, no other process may own this file.

        Raises:
            RuntimeError: another one does.
        """
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ValueError(
                f"there can be no folder {self._file.parent} ({e.strerror}); name another --out."
            ) from e
        try:
            with locked(self._file.with_name(f".{self._file.name}.lock"), wait=False):
                self._read()  # another run may have ended since it was read
                yield self
        except BlockingIOError:
            raise RuntimeError(
                f"another run is writing {self.path}; wait for it, or name another --out."
            ) from None

    def select(self, /, **key) -> list[dict]:
        """The rows whose entries equal `key`.

        Raises:
            ValueError: no row of any table has such an entry.
        """
        for k in key:
            if self.rows and k not in KEYS and not any(k in r for r in self.rows):
                known = dict.fromkeys((*KEYS, *(k for r in self.rows for k in r)))
                raise ValueError(
                    f"no row of {self.path.name} has an entry {k!r}{require.meant(k, known)}."
                )
        return [r for r in self.rows if all(r.get(k) == v for k, v in key.items())]

    def get(self, cell: dict) -> dict | None:
        """The row of this cell, if there is one."""
        at = self._at.get(identity(cell))
        return None if at is None else self.rows[at]

    def done(self, cell: dict) -> bool:
        """Whether there is a row for this cell, and one that did not fail."""
        row = self.get(cell)
        return row is not None and "error" not in row

    def add(self, row: dict) -> None:
        """Store a row, unless its cell has one already that did not fail.

        Raises:
            ValueError: its numbers cannot have been measured.
        """
        _require_sound(row, self.path)
        if "error" in row:
            self.failed.append(row)
        if self.done(row):
            return
        at = self._at.setdefault(identity(row), len(self.rows))
        self.rows[at : at + 1] = [row]
        self._write()

    def _write(self) -> None:
        lines = ",\n".join(json.dumps(r) for r in self.rows)
        try:
            with whole_file(self._file) as f:
                f.write(('{"rows": [\n' + lines + "\n]}\n").encode())
        except OSError as e:
            raise RuntimeError(
                f"{self.path} cannot be written ({e.strerror}); the rows before "
                "are kept, and the same command goes on from there."
            ) from e


def results(name: str) -> Results:
    """A measured table: one that ships with the course, by name, or a file.

    Args:
        name: of a file in data/results/ (see the README there), or a path.
    """
    path = Path(name) if str(name).endswith(".json") else RESULTS / f"{name}.json"
    if not os.path.exists(path):
        known = sorted(p.stem for p in RESULTS.glob("*.json"))
        raise FileNotFoundError(
            f"there are no results {name!r}{require.meant(name, known)}; there are: "
            f"{', '.join(known)}."
        )
    return Results(path)
