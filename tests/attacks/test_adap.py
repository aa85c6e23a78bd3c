"""Adap-Blend and Adap-Patch: weak pieces planted, the whole shown at test time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdcourse.attacks.adap import AdapBlend, AdapPatch
from helpers import gen, message
from poisoning import crafted, noise, noise_set, sizes


def test_adap_blend_defaults():
    a = AdapBlend()
    assert (a.alpha, a.test_alpha, a.pieces, a.cover) == (0.15, 0.2, 4, 1)
    images = noise_set(1000, 10)
    p = crafted(AdapBlend).poison(images, 0.003, gen())
    assert (p.count, p.covers) == (3, 3)


@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(0, 5), st.integers(2, 5))
def test_adap_blend_plants_half_of_the_tiles(size, n, pieces):
    (_, h, w), x = size, noise(n, *size)
    attack = crafted(AdapBlend, *size, pieces=pieces)
    shown = attack.shown(x, gen(2))
    assert shown.shape == (n, 1, h, w)
    for mask in shown[:, 0]:
        tiles = [mask[slice_of(i, h, pieces)] for i in range(pieces)]
        values = [t[:, slice_of(j, w, pieces)] for t in tiles for j in range(pieces)]
        assert all(len(v.unique()) == 1 for v in values), "a tile is shown or not"
        hidden = sum(float(v[0, 0]) == 0 for v in values)
        assert hidden == pieces * pieces // 2
    y = torch.zeros(n, dtype=torch.int64)
    planted = attack.plant(x, y, gen(2))
    mixed = 0.85 * x + 0.15 * attack.picture
    assert torch.allclose(planted, torch.where(shown == 1, mixed, x), atol=1e-6)
    assert torch.equal(planted[(shown == 0).expand_as(x)], x[(shown == 0).expand_as(x)])
    full = attack.trigger(x)
    assert torch.allclose(full, 0.8 * x + 0.2 * attack.picture, atol=1e-6)


def slice_of(i, side, pieces):
    """Pixels of tile i, where tile borders are the multiples of side / pieces."""
    edge = [math.ceil(t * side / pieces) for t in (i, i + 1)]
    return slice(*edge)


def test_adap_blend_masks_differ_and_are_fair():
    attack, x = crafted(AdapBlend, 3, 8, 8), noise(2000, 3, 8, 8)
    shown = attack.shown(x, gen())[:, 0, ::2, ::2].flatten(1)
    assert len(shown.unique(dim=0)) > 1500
    assert ((shown.mean(0) - 0.5).abs() < 0.05).all()
    y = torch.zeros(2000, dtype=torch.int64)
    a, b, c = (attack.plant(x, y, gen(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


# ---------------------------------------------------------------- Adap-Patch


def test_adap_patch_defaults():
    a = AdapPatch()
    assert a.alphas == (0.5, 0.2, 0.5, 0.3) and a.tested == (0, 2) and a.cover == 2
    p = a.poison(noise_set(1000, 10), 0.003, gen())
    assert (p.count, p.covers) == (3, 6)
    assert len(a.patches.flatten(1).unique(dim=0)) == 4, "four different patches"


CORNERS = [  # of a 4x4 patch one pixel from the edges of a 32x20 image
    (slice(1, 5), slice(1, 5)),
    (slice(1, 5), slice(15, 19)),
    (slice(27, 31), slice(1, 5)),
    (slice(27, 31), slice(15, 19)),
]


def test_adap_patch_test_trigger():
    attack, x = AdapPatch(), noise(3, 3, 32, 20)
    out, want = attack.trigger(x), x.clone()
    for k in (0, 2):
        want[(..., *CORNERS[k])] = attack.patches[k]
    assert torch.equal(out, want)
    one = AdapPatch(tested=(3,)).trigger(x)
    assert torch.equal(one[(..., *CORNERS[3])], attack.patches[3].expand(3, -1, -1, -1))
    assert (one != x).any(1).sum() <= 3 * 16


def test_adap_patch_plants_one_patch_each():
    attack, n = AdapPatch(), 400
    x = noise(n, 3, 32, 20)
    out = attack.plant(x, torch.zeros(n, dtype=torch.int64), gen(1))
    seen = torch.zeros(4)
    for before, after in zip(x, out, strict=True):
        touched = [(before != after)[(..., *c)].any() for c in CORNERS]
        assert sum(touched) == 1
        k = touched.index(True)
        seen[k] += 1
        want = before.clone()
        spot, alpha = (..., *CORNERS[k]), attack.alphas[k]
        want[spot] = (1 - alpha) * want[spot] + alpha * attack.patches[k]
        assert torch.allclose(after, want, atol=1e-6)
    assert (seen > 70).all(), "each patch about as often"


def test_adap_patch_in_the_smallest_images():
    x = noise(1, 3, 8, 8)
    every = AdapPatch(tested=(0, 1, 2, 3)).trigger(x)[0]
    p = AdapPatch().patches
    halves = [torch.cat([p[0], p[1]], 2), torch.cat([p[2], p[3]], 2)]
    assert torch.equal(every, torch.cat(halves, 1)), "side by side, none over another"


@pytest.mark.parametrize(
    ("kind", "rate", "need"),
    [(AdapBlend, 0.52, "52 poisoned and 52"), (AdapPatch, 0.34, "34 poisoned and 68")],
)
def test_adaptive_refuses_more_than_there_are(kind, rate, need):
    with pytest.raises(ValueError) as e:
        crafted(kind).poison(noise_set(100, 10), rate, gen())
    assert need in message(e) and "only 100" in message(e)
