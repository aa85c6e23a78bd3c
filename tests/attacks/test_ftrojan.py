"""FTrojan: two frequencies of each window."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdcourse.attacks.ftrojan import FTrojan, dct_matrix
from poisoning import noise, sizes


def test_dct_matrix():
    for n in (4, 7, 32):
        d = dct_matrix(n)
        assert torch.allclose(d @ d.T, torch.eye(n).double(), atol=1e-12)
        assert torch.allclose(d[0], torch.full((n,), n**-0.5).double())
        want = math.sqrt(2 / n) * math.cos(math.pi * 3 * 2 / (2 * n))
        assert float(d[2, 1]) == pytest.approx(want)


def to_ycrcb(x):
    r, g, b = x.double().unbind(1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return torch.stack([y, (r - y) * 0.713 + 0.5, (b - y) * 0.564 + 0.5], 1)


def to_rgb(x):
    y, cr, cb = x.unbind(1)
    r, b = y + (cr - 0.5) / 0.713, y + (cb - 0.5) / 0.564
    return torch.stack([r, (y - 0.299 * r - 0.114 * b) / 0.587, b], 1)


def dct_basis(n):
    """1-D DCT-II from its definition: basis[k][i]."""
    return torch.tensor(
        [
            [
                math.sqrt((1 if k == 0 else 2) / n) * math.cos(math.pi * (i + 0.5) * k / n)
                for i in range(n)
            ]
            for k in range(n)
        ],
        dtype=torch.float64,
    )


@settings(max_examples=25, deadline=None)
@given(sizes, st.sampled_from([8, 11, 32]), st.floats(0.01, 3))
def test_ftrojan_equals_the_dct_route(size, window, magnitude):
    c, h, w = size
    x = noise(2, *size)
    side = min(window, h, w)
    basis = dct_basis(side)
    planes = to_ycrcb(x) if c == 3 else x.double()
    for channel in (1, 2) if c == 3 else (0,):
        for top in range(0, h - side + 1, side):
            for left in range(0, w - side + 1, side):
                block = planes[:, channel, top : top + side, left : left + side]
                freq = torch.einsum("ka,nab,lb->nkl", basis, block, basis)
                freq[:, side // 2 - 1, side // 2 - 1] += magnitude
                freq[:, side - 1, side - 1] += magnitude
                back = torch.einsum("ka,nkl,lb->nab", basis, freq, basis)
                planes[:, channel, top : top + side, left : left + side] = back
    want = (to_rgb(planes) if c == 3 else planes).clamp(0, 1)
    out = FTrojan(magnitude=magnitude, window=window).trigger(x)
    assert torch.allclose(out.double(), want, atol=1e-6)


def test_ftrojan_pattern():
    attack = FTrojan()
    assert (attack.magnitude, attack.window) == (30 / 255, 32)
    p = attack.pattern(3, 32, 32)
    luma = 0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2]
    assert luma.abs().max() < 1e-12, "brightness is unchanged"
    freq = dct_basis(32) @ (0.713 * p[0]) @ dct_basis(32).T * 255
    want = torch.zeros(32, 32, dtype=torch.float64)
    want[15, 15] = want[31, 31] = 30
    assert torch.allclose(freq, want, atol=1e-9)
    assert 255 * p.abs().max() < 8, "a few gray levels"
    assert torch.equal(attack.pattern(3, 64, 32)[:, :32], p)
    assert torch.equal(attack.pattern(3, 64, 32)[:, 32:], p)
    rest = FTrojan(window=8).pattern(3, 20, 16)
    assert (rest[:, 16:] == 0).all() and (rest[:, 8:16, 8:] != 0).any()
