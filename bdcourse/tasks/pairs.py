"""Sentence pairs of others: a file with a source, a tab and its translation a line.

Such files come from Tatoeba (tatoeba.org, CC BY 2.0 FR; bilingual cuts at manythings.org).
"""

from __future__ import annotations

import hashlib
import lzma
import re
from collections import Counter
from pathlib import Path

from bdcourse.data import Found
from bdcourse.examples import Examples
from bdcourse.tasks.text import FIRST, encode

SHORTEST, LONGEST = 3, 8  # words, of sentences that are kept
VOCABULARY = 2000  # words of each language
TEST = 5  # one in so many sources is for testing
WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")


def read_pairs(path: Path, size: int | None = None, classes: object = None) -> Found | None:
    """The pairs of a .tsv or .tsv.xz by split, and a line on what was left out; None for
    other files.

    A sentence is its words and marks, in lower case; of several translations the first
    counts, so that no source is in two parts. Whether one is for testing is decided by its
    text. The vocabulary is the :data:`VOCABULARY` commonest words of each language in the
    part for training; pairs with other words are left out of both parts.

    Raises:
        ValueError: a line without a tab, no pair that can be used, a size.
        RuntimeError: the file cannot be read.
    """
    if not path.is_file() or not path.name.lower().endswith((".tsv", ".tsv.xz")):
        return None
    if size is not None:
        raise ValueError(f"{path} holds nothing that has a size; leave out size=.")
    pairs = _pairs(path)
    fitting = {
        source: pair
        for source, pair in pairs.items()
        if all(SHORTEST <= len(words) <= LONGEST for words in pair)
    }
    part = {s: "train" if _number(s) % TEST else "test" for s in fitting}
    common: list[Counter[str]] = [Counter(), Counter()]
    for source, pair in fitting.items():
        if part[source] == "train":
            for counter, words in zip(common, pair, strict=True):
                counter.update(words)
    known = []
    for counter in common:  # of words as common as each other the first by alphabet
        ranked = sorted(counter, key=lambda word: (-counter[word], word))
        known.append(dict.fromkeys(ranked[:VOCABULARY]))
    usable = [
        source
        for source, pair in fitting.items()
        if all(word in own for own, words in zip(known, pair, strict=True) for word in words)
    ]
    usable.sort(key=_number)  # such files go from short to long
    if not usable:
        raise ValueError(
            f"{path} has no pair of sentences of {SHORTEST} to {LONGEST} words that are "
            "common in it; more lines are needed."
        )
    vocabulary = tuple(dict.fromkeys((*FIRST, *known[0], *known[1])))
    note = (
        f"{path}: {len(usable)} of {len(pairs)} sources have {SHORTEST} to {LONGEST} words, "
        f"all of them common; one in {TEST} is for testing"
    )
    parts: dict[str | None, Examples] = {}
    for split in (None, "train", "test"):
        if own := [fitting[s] for s in usable if split in (None, part[s])]:
            parts[split] = encode(own, vocabulary, LONGEST + 1, LONGEST)
    return Found(parts, note)


def _pairs(path: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Source as text -> words of source and of its first translation."""
    try:
        raw = path.read_bytes()
        text = (lzma.decompress(raw) if path.suffix.lower() == ".xz" else raw).decode()
    except UnicodeDecodeError as e:
        raise RuntimeError(f"{path} is not text in UTF-8.") from e
    except (OSError, lzma.LZMAError) as e:
        raise RuntimeError(f"{path} is damaged or may not be read.") from e
    pairs: dict[str, tuple[list[str], list[str]]] = {}
    for i, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        columns = line.split("\t")
        if len(columns) < 2:
            raise ValueError(
                f"line {i} of {path} has no tab between a sentence and its translation."
            )
        source, target = (WORD.findall(c.lower()) for c in columns[:2])
        pairs.setdefault(" ".join(source), (source, target))
    if not pairs:
        raise ValueError(f"{path} is empty; it must hold a sentence, a tab and another a line.")
    return pairs


def _number(source: str) -> int:
    """A number that only the text decides."""
    return int(hashlib.sha256(source.encode()).hexdigest()[:12], 16)
