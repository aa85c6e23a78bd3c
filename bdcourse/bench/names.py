"""Names of attacks, defenses and recipes as people type them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from bdcourse import require


def named(what: str, value: object, names: Iterable[str]) -> str:
    """One of the names, in upper or lower case; the nearest ones are suggested.

    Raises:
        ValueError: no such name.
    """
    names = list(names)
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a name in quotes, not {require.kind(value)}.")
    low = value.lower()
    for name in names:
        if name.lower() == low:
            return name
    # Many names begin with a method and go on with its settings.
    start = low.strip(" ,")
    near = [n for n in names if start and n.lower().startswith(start)]
    close = difflib.get_close_matches(low, [n.lower() for n in names], 3)
    near = (near or [n for n in names if n.lower() in close])[:3]
    if len(names) > 20:
        listed = "`python -m bdcourse bench --list` prints the names"
    else:
        listed = f"choose from {', '.join(names)}"
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    raise ValueError(f"unknown {what} {require.kind(value)}{hint}; {listed}.")
