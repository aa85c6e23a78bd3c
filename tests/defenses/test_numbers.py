"""The refusals of numbers that defenses share."""

from __future__ import annotations

import pytest

from bdcourse import require
from bdcourse.defenses._base import require_at_least, require_positive
from helpers import message

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("bad", [0, -1, NAN, INF])
def test_positive(bad):
    with pytest.raises(ValueError, match="^lr must be above 0 and finite, not") as e:
        require_positive(steps=1, lr=bad)
    message(e)


@pytest.mark.parametrize("bad", [-0.1, 1.1, NAN])
def test_share(bad):
    with pytest.raises(ValueError, match=r"^alpha must be a finite number in 0\.\.1, not") as e:
        require.fraction("alpha", bad)
    message(e)


@pytest.mark.parametrize("bad", [0, 0.5, -INF, NAN])
def test_at_least(bad):
    with pytest.raises(ValueError, match="^least must be at least 1, not") as e:
        require_at_least(1, n=1, least=bad, bound=0)
    message(e)


def test_what_passes():
    require_positive(a=1e-300, b=7, left_out=None)
    assert [require.fraction("a", a) for a in (0, 1, 0.5)] == [0, 1, 0.5]
    require_at_least(0, a=0, b=INF, left_out=None, bound=1)
    require_at_least(1)
