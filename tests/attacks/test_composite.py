"""Composite: halves of two classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bdcourse.attacks.composite import Composite, halves
from bdcourse.data import Images
from bdcourse.hooks import TrainBatch
from helpers import gen, random_images
from steering import pixels, steer


def test_halves():
    a, b = torch.zeros(4, 1, 6, 8), torch.ones(4, 1, 6, 8)
    out = halves(
        a,
        b,
        torch.tensor([0, 1, 0, 1]).bool(),
        torch.tensor([3, 2, 8, 0]),
        torch.tensor([0, 0, 1, 0]).bool(),
    )
    assert (out[0, 0, :, :3] == 0).all() and (out[0, 0, :, 3:] == 1).all()
    assert (out[1, 0, :2] == 0).all() and (out[1, 0, 2:] == 1).all()
    assert (out[2] == 1).all() and (out[3] == 1).all()


def marked(k=4, n=60):
    """Every pixel of an image says its class."""
    y = torch.arange(n) % k
    x = (20 + 50 * y).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 12, 12)
    return Images(x.contiguous(), y, tuple("abcdef"[:k]))


def test_composite_mixes_the_classes_it_says():
    images = marked()
    attack = Composite.craft(images, gen(), sources=(0, 3), target=1)
    assert torch.equal(attack.partners * 255, torch.full((15, 3, 12, 12), 170.0))
    own = images[images.y == 0].pixels()
    out = attack.trigger(own) * 255
    assert (out[..., :6] == 20).all() and (out[..., 6:] == 170).all()
    assert attack.counts(torch.arange(4)).tolist() == [True, False, False, False]
    x, y = images.pixels()[:40], images.y[:40]
    mixed, labels, role = steer(attack, images, rate=0.1).rewrite(TrainBatch.clean(x, y))
    assert role.tolist() == [1] * 4 + [2] * 20 + [0] * 16
    assert (labels[:4] == 1).all() and torch.equal(labels[4:], y[4:])
    for image in mixed[:4]:
        assert (image * 255).round().unique().tolist() == [20, 170]
        share = (image[0] * 255).round().eq(20).float().mean()
        assert 3 / 12 <= share <= 9 / 12, "the cut is within 3 pixels of the middle"
    assert torch.allclose(mixed[4:], x[4:], atol=1e-6), "same class, same pixels"


def test_composite_halves_an_image_that_is_not_square():
    y = torch.arange(60) % 4
    x = (20 + 50 * y).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 10, 30)
    images = Images(x.contiguous(), y, tuple("abcd"))
    attack = Composite.craft(images, gen(), sources=(0, 3), target=1)
    mixed, _, role = steer(attack, images, rate=1.0).rewrite(TrainBatch.clean(images.pixels(), y))
    for image in mixed[role == 1]:
        assert (image * 255).round().unique().tolist() == [20, 170]
    wide = Composite.craft(images, gen(), jitter=4)
    with pytest.raises(ValueError, match="lack one of its halves"):
        replace(wide, jitter=5).check(images)


def test_composite_refuses():
    with pytest.raises(ValueError, match="no partner images"):
        Composite().trigger(pixels())
    images = marked()
    with pytest.raises(ValueError, match="source class 3 has no image"):
        Composite.craft(images[images.y != 3], gen(), sources=(0, 3), target=1)
    attack = Composite.craft(images, gen())
    with pytest.raises(ValueError, match="partners are"):
        attack.check(random_images(30, side=16))
