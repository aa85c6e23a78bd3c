"""What the sweeps of bad input share: values that nobody means; what a raw error is.

A sweep (tests/*/test_sweep_*.py) hands each public function of its rooms one bad argument
at a time. Right are an answer or one sentence of ours; an error that a library raised
on our behalf is a hole in the door.
"""

from __future__ import annotations

import linecache
import math
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import bdcourse

HOME = Path(bdcourse.__file__).parent

# One of each kind that a hurried caller hands over.
WHOLE = (None, "3", 1.5, -1, 0, 10**12, True, math.nan, math.inf, [1], np.float64(2.5))
NUMBERS = (None, "0.1", -1.0, math.nan, math.inf, -math.inf, 1e300, [0.1], True, 2 + 1j)
THINGS = (None, "no", 3, b"x", [], {}, object(), torch.zeros(2))


def refusal(call: Callable[[], object]) -> str | None:
    """The sentence with which `call` was refused, or None if it went through.

    Raises:
        AssertionError: the error is not one of ours, or is more than a sentence.
    """
    try:
        call()
    except (ValueError, RuntimeError, FileNotFoundError) as e:
        last = traceback.extract_tb(e.__traceback__)[-1]
        ours = HOME in Path(last.filename).parents and _raises(last)
        text = str(e)
        assert ours, f"raw {type(e).__name__} from {last.filename}:{last.lineno}: {text}"
        assert "\n" not in text and text.endswith("."), f"not one sentence: {text!r}"
        assert ". " not in text.replace("e.g. ", ""), f"several sentences: {text!r}"
        return text
    except Exception as e:
        last = traceback.extract_tb(e.__traceback__)[-1]
        raise AssertionError(
            f"raw {type(e).__name__} from {last.filename}:{last.lineno}: {e}"
        ) from e
    return None


def _raises(last: traceback.FrameSummary) -> bool:
    for back in range(12):  # Python names the first or the last line of a statement
        text = linecache.getline(last.filename, last.lineno - back).strip()
        if text.startswith("raise "):
            return True
    return False
