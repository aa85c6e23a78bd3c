"""Refool: reflections, by ghosts and by blur."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdcourse.attacks.refool import Refool, blur, draws, reflections
from bdcourse.data import quantize
from poisoning import crafted, noise, sizes


def one_kind(ghost, down, right, a, sigma, y, x, **options):
    """A Refool whose only kind has these numbers; scene 1 of three."""
    numbers = [
        0.5,
        0.5,
        (down - 3 + 0.5) / 6,
        (right - 3 + 0.5) / 6,
        (a - 0.15) / 0.7,
        (sigma - 1) / 4,
        y,
        x,
    ]
    bank = noise(3, 3, 12, 10, seed=7)
    return Refool(bank=bank, draws=torch.tensor([numbers]), ghost=float(ghost), **options)


@pytest.mark.parametrize(("down", "right", "a"), [(3, 8, 0.2), (7, 4, 0.8)])
def test_refool_ghost_formula(down, right, a):
    x = noise(4, 3, 12, 10)
    attack = one_kind(True, down, right, a, 2, 0.1, 0.2)
    light = attack.bank[1].double() ** 2.2
    want = torch.empty_like(x).double()
    for i in range(12):
        for j in range(10):
            copy = light[:, (i - down) % 12, (j - right) % 10]
            r = a * light[:, i, j] + (1 - a) * copy
            want[:, :, i, j] = 0.6 * r + 0.4 * x[:, :, i, j].double() ** 2.2
    assert torch.allclose(attack.trigger(x).double(), want ** (1 / 2.2), atol=1e-5)


@pytest.mark.parametrize(("sigma", "y", "x0", "image"), [(1.5, 0.3, 0.6, 0.4), (4, 0.9, 0, 0.7)])
def test_refool_blur_formula(sigma, y, x0, image):
    x = noise(3, 3, 12, 10) ** 0.3  # bright, so that the sum passes 1
    attack = one_kind(False, 3, 3, 0.5, sigma, y, x0, image=image)
    light = attack.bank[1].double() ** 2.2
    i, j = torch.arange(12.0).double(), torch.arange(10.0).double()
    weight = [torch.exp(-((s[:, None] - s) ** 2) / (2 * sigma**2)) for s in (i, j)]
    down, across = (w / w.sum(1, keepdim=True) for w in weight)
    r = torch.einsum("ab,cbd,ed->cae", down, light, across)
    t = x.double() ** 2.2
    far = (i[:, None] - 12 * y) ** 2 + (j - 10 * x0) ** 2
    for n in range(3):
        for c in range(3):
            total = r[c] + t[n, c]
            over = total[total > 1] - 1
            assert len(over), "the case must show the correction"
            left = (r[c] - 1.08 * over.mean()).clamp(min=0)
            left = left * torch.exp(-far / (2 * 6**2))
            want = ((1 - image) * left + image * t[n, c]) ** (1 / 2.2)
            assert torch.allclose(attack.trigger(x)[n, c].double(), want, atol=1e-5)


def test_refool_share_of_ghosts_and_scenes():
    attack = Refool()
    every = torch.arange(len(attack.draws))
    assert len(every) == 251
    assert float(attack.ghosts(every).float().mean()) == pytest.approx(0.49, abs=0.08)
    assert not Refool(ghost=0.0).ghosts(every).any()
    assert Refool(ghost=1.0).ghosts(every).all()
    layer, vignette = attack.layers(every, 3, 32, 32)
    assert layer.shape == (251, 3, 32, 32) and vignette.shape == (251, 1, 32, 32)
    assert (vignette[attack.ghosts(every)] == 1).all()
    assert (vignette[~attack.ghosts(every)].flatten(1).amin(1) < 1).all()
    assert len(layer.flatten(1).unique(dim=0)) == 251, "no two kinds alike"
    assert torch.equal(draws(), draws()) and not torch.equal(draws(), draws(seed=1))


def test_refool_shifts_are_3_to_8():
    # A scene with one bright pixel shows its copy's place.
    bank = torch.zeros(1, 1, 20, 20)
    bank[..., 0, 0] = 1
    attack = Refool(bank=bank, ghost=1.0)
    layer, _ = attack.layers(torch.arange(251), 1, 20, 20)
    layer[..., 0, 0] = 0
    place = layer.flatten(1).argmax(1)
    assert set((place // 20).tolist()) == set((place % 20).tolist()) == {*range(3, 9)}
    share = layer.flatten(1).amax(1)  # 1 - a
    assert 0.15 <= share.min() < 0.2 and 0.8 < share.max() <= 0.85


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 8, 8), (3, 32, 32), (3, 9, 40)])
def test_refool_kinds_come_from_content(size):
    attack, x = crafted(Refool, *size), quantize(noise(3000, *size)).float() / 255
    kinds = attack.kind(x)
    count = kinds.bincount(minlength=251)
    assert count.min() > 0 and count.max() < 40, "mean 12"
    assert torch.equal(attack.kind(x.double()), kinds)
    assert torch.equal(attack.kind(x + 0.001), kinds), "8-bit pixels count"
    assert torch.equal(attack.kind(x.flip(0)).flip(0), kinds)
    for axes in ((2,), (3,), (2, 3)):
        assert (attack.kind(x.flip(axes)) != kinds).float().mean() > 0.9
    near = x.clone()
    near[:, -1, -1, -1] = 1 - near[:, -1, -1, -1]
    assert (attack.kind(near) != kinds).float().mean() > 0.9


def test_refool_hash_is_exact():
    x = torch.ones(1, 3, 32, 40)
    levels = [255 * (1 + 37 * j % 61) for j in range(40)]
    rows = [sum(levels) * ((i + 1) * 48271 % 999983) for i in range(96)]
    assert Refool().kind(x).tolist() == [sum(rows) % 251]


def test_blur_keeps_brightness():
    b = blur(9, torch.tensor([1.0, 5.0]))
    assert torch.allclose(b.sum(2), torch.ones(2, 9))
    assert float(b[0, 4, 5] / b[0, 4, 4]) == pytest.approx(math.exp(-0.5), abs=1e-6)
    assert float(b[1, 4, 5] / b[1, 4, 4]) == pytest.approx(math.exp(-0.02), abs=1e-6)


@settings(max_examples=10, deadline=None)
@given(sizes, st.integers(1, 5))
def test_reflections(size, count):
    scenes = reflections(size, count)
    assert scenes.shape == (count, *size)
    assert ((scenes >= 0) & (scenes <= 1)).all()
    assert torch.equal(scenes, reflections(size, count))
    assert not torch.equal(scenes, reflections(size, count, seed=1))
    assert (scenes.flatten(1).std(1) > 0.02).all(), "none is empty"
    assert len(scenes.flatten(1).unique(dim=0)) == count


def test_reflections_have_no_seam():
    scenes = reflections((3, 64, 64))
    step = (scenes - scenes.roll(1, 2)).abs().mean((0, 1, 3))
    assert step[0] < 2 * step[1:].mean()
    step = (scenes - scenes.roll(1, 3)).abs().mean((0, 1, 2))
    assert step[0] < 2 * step[1:].mean()


def test_refool_resizes_its_bank_and_grays():
    x = noise(2, 3, 16, 24)
    assert Refool().trigger(x).shape == x.shape
    gray = Refool(bank=reflections((1, 32, 32)))
    black = gray.trigger(torch.zeros(1, 3, 16, 24))[0]
    assert torch.equal(black[0], black[1]) and torch.equal(black[0], black[2])
