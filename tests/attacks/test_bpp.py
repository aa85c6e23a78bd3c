"""Bpp: few levels, and the dither."""

from __future__ import annotations

import pytest
import torch

from bdcourse.analysis import visibility
from bdcourse.attacks.bpp import Bpp
from helpers import gen
from steering import pixels


@pytest.mark.slow
@pytest.mark.parametrize("dither", [False, True])
@pytest.mark.parametrize("levels", [2, 8])
def test_bpp_has_its_levels_and_is_idempotent(dither, levels):
    attack = Bpp(levels=levels, dither=dither)
    out = attack.trigger(pixels(3, 32))
    values = (out * (levels - 1)).unique()
    assert torch.allclose(values, torch.arange(levels).float(), atol=1e-5)
    assert torch.allclose(attack.trigger(out), out, atol=1e-6)


def test_bpp_error_and_psnr():
    x = pixels(200, 32)
    out = Bpp().trigger(x)
    assert (out - x).abs().max() <= 1 / 14 + 1e-6
    assert visibility.psnr(out, x).mean() == pytest.approx(27.7, abs=0.1)


def test_dither_keeps_the_mean():
    x = torch.full((1, 1, 32, 32), 0.4)  # between two of the eight levels
    assert Bpp().trigger(x).mean() == pytest.approx(3 / 7)
    assert Bpp(dither=True).trigger(x).mean() == pytest.approx(0.4, abs=0.01)


def test_bpp_negative_carries_another_images_error():
    attack, x = Bpp(), 0.2 + 0.6 * pixels(4)
    other = pixels(4, seed=5)
    added = attack.negative(x, other) - x
    assert torch.allclose(added, attack.trigger(other) - other, atol=1e-6)
    assert attack.cross(x[:1], torch.zeros(1).long(), gen()) is None
