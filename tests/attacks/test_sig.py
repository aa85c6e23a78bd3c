"""SIG: a sine over the whole image."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdcourse.attacks.sig import SIG
from helpers import message, random_images
from poisoning import sizes


@pytest.mark.parametrize("width", [4, 6, 12])
def test_sig_that_samples_its_sine_at_zero_is_refused(width):
    assert SIG().wave(width).abs().max() < 1e-12
    with pytest.raises(ValueError) as e:
        SIG().check(random_images(k=3, side=width))
    assert "nothing would change" in message(e)
    SIG(frequency=5).check(random_images(k=3, side=width))
    SIG().check(random_images(k=3, side=13))


def test_sig_defaults():
    sig = SIG()
    assert sig.clean_label and sig.delta == 40 / 255 and sig.frequency == 6
    wave = 255 * sig.wave(32)
    assert float(wave.abs().mean()) == pytest.approx(25.1, abs=0.05)
    assert float(wave[0]) == 0 and float(wave[1]) == pytest.approx(40 * math.sin(12 * math.pi / 32))


@settings(max_examples=25, deadline=None)
@given(sizes, st.integers(1, 3), st.floats(0.01, 0.5))
def test_sig_formula(size, frequency, delta):
    x = torch.full((1, *size), 0.5)
    added = (SIG(delta=delta, frequency=frequency).trigger(x) - x)[0]
    assert torch.equal(added, added[:1, :1].expand(size)), "rows and channels alike"
    assert float(added[0, 0].sum()) == pytest.approx(0, abs=1e-4)
    w = size[2]
    for j in range(w):
        want = delta * math.sin(2 * math.pi * j * frequency / w)
        assert float(added[0, 0, j]) == pytest.approx(want, abs=1e-6)


def test_sig_clips():
    for value in (0.0, 1.0):
        x = torch.full((1, 3, 8, 32), value)
        want = (value + SIG().wave(32)).clamp(0, 1).float()
        assert torch.allclose(SIG().trigger(x), want.expand_as(x))
