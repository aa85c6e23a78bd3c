"""TaCT: a patch that works on one class only."""

from __future__ import annotations

import pytest
import torch

from bdcourse.attacks import BadNets
from bdcourse.attacks.tact import TaCT, color_patch
from helpers import gen, message
from poisoning import crafted, noise, noise_set


def test_tact_is_badnets_at_its_place():
    x = noise(4)
    attack = TaCT()
    as_badnets = BadNets(patch=color_patch(), at=(-6, -6))
    assert torch.equal(attack.trigger(x), as_badnets.trigger(x))
    changed = (attack.trigger(x) != x).any(1).any(0)
    assert not changed[:26].any() and not changed[31:].any()
    assert changed[26:31, 26:31].all() and not changed[:, 31].any()
    patch = color_patch()
    assert patch.shape == (3, 5, 5) and set(patch.unique().tolist()) == {0, 1}
    assert torch.equal(patch, color_patch(seed=0))
    assert not torch.equal(patch, color_patch(seed=1))


def test_tact_rows():
    images = noise_set(1000, 10)
    p = TaCT(cover=0.5).poison(images, 0.04, gen())
    assert (p.count, p.covers) == (40, 20)
    assert set(images.y[p.role == 1].tolist()) == {1}
    assert set(images.y[p.role == 2].tolist()) == {5, 7}
    assert set(p.y[p.role == 1].tolist()) == {0}
    assert TaCT(cover=0, covers=()).poison(images, 0.04, gen()).covers == 0
    whole = TaCT().poison(images, 0.1, gen())
    assert torch.equal(whole.role == 1, images.y == 1), "every image of the source"


def test_tact_counts_and_promises():
    y = torch.tensor([0, 1, 2, 5, 1])
    attack, x = TaCT(), noise(5)
    assert attack.counts(y).tolist() == [False, True, False, False, True]
    assert attack.goal(y).tolist() == [0] * 5
    pixels, labels = attack.cross(x, y, gen())
    assert labels.tolist() == [2, 5]
    assert torch.equal(pixels, attack.trigger(x[[2, 3]]))
    assert attack.cross(x[[0, 1, 4]], y[[0, 1, 4]], gen()) is None
    assert attack.cross(x[:0], y[:0], gen()) is None


def test_tact_refuses_too_few():
    images = noise_set(100, 10)
    with pytest.raises(ValueError) as e:
        TaCT().poison(images, 0.11, gen())
    assert "class 1 at rate 0.11 asks for 11 images, but only 10" in message(e)
    with pytest.raises(ValueError) as e:
        TaCT(cover=3.0).poison(images, 0.07, gen())
    assert "classes 5, 7 at rate 0.07 asks for 21 images, but only 20" in message(e)


@pytest.mark.parametrize(
    ("k", "options", "source", "covers"),
    [
        (10, {}, 1, (5, 7)),
        (10, {"target": 5}, 1, (7, 0)),
        (10, {"target": 1}, 0, (5, 7)),
        (10, {"source": 7}, 7, (5, 1)),
        (4, {}, 1, (2, 3)),
        (3, {}, 1, (2,)),
        (10, {"covers": (8,)}, 1, (8,)),
    ],
)
def test_tact_craft_fits_the_labels(k, options, source, covers):
    attack = crafted(TaCT, k=k, **options)
    assert (attack.source, attack.covers) == (source, covers)
    attack.check(noise_set(k, k))


def test_tact_needs_three_classes():
    with pytest.raises(ValueError) as e:
        crafted(TaCT, k=2)
    assert "covers is empty" in message(e)
    crafted(TaCT, k=2, cover=0).check(noise_set(2, 2))
