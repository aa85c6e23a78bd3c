"""Augmentation: crops, mirrors, and what of them fits in memory."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from bdcourse import augment as module
from bdcourse.train import Augment
from helpers import frozen, gen, message, random_images, same_state
from training import Linear, run


@pytest.mark.parametrize("pad", [0, 1, 3])
@pytest.mark.parametrize(("c", "h", "w"), [(3, 8, 8), (1, 5, 9), (2, 4, 3)])
def test_every_crop_is_pad_and_slice(pad, c, h, w):
    x = torch.randint(1, 256, (4, c, h, w), dtype=torch.uint8, generator=gen())
    crops = Augment(pad).prepare(x)
    assert crops.shape == (4, 2 * pad + 1, 2 * pad + 1, h, w * c)
    padded = F.pad(x, (pad,) * 4)
    for i in range(2 * pad + 1):
        for j in range(2 * pad + 1):
            plain = padded[:, :, i : i + h, j : j + w]
            view = crops[:, i, j].unflatten(2, (w, c)).permute(0, 3, 1, 2)
            assert torch.equal(view, plain)


def test_prepare_copies_only_the_padding():
    x = random_images(8).x
    crops = Augment(4).prepare(x)
    assert crops.untyped_storage().nbytes() == 8 * 16 * 16 * 3


def plain_crops(x, pad):
    """Every crop of one image, and its mirror, as bytes -> (row, column, mirrored)."""
    padded, h, w = F.pad(x, (pad,) * 4), *x.shape[1:]
    found = {}
    for i in range(2 * pad + 1):
        for j in range(2 * pad + 1):
            crop = padded[:, i : i + h, j : j + w]
            for mirrored in (False, True):
                key = (crop.flip(2) if mirrored else crop).contiguous()
                found[key.numpy().tobytes()] = (i, j, mirrored)
    return found


@pytest.mark.parametrize("flip", [False, True])
def test_crops_are_uniform_and_flips_only_when_asked(flip):
    images, n = random_images(3), 3000
    augment = Augment(pad=2, flip=flip)
    index = torch.arange(n) % 3
    out = augment(augment.prepare(images.x), index, 3, gen())
    assert out.shape == (n, 3, 8, 8) and out.dtype == torch.uint8
    known = [plain_crops(x, 2) for x in images.x]
    places = [known[i % 3][o.contiguous().numpy().tobytes()] for i, o in enumerate(out)]
    where = Counter((i, j) for i, j, _ in places)
    assert set(where) == {(i, j) for i in range(5) for j in range(5)}
    # 120 expected at each of 25 offsets; six deviations of a binomial are 64.
    assert all(abs(count - n / 25) < 64 for count in where.values())
    mirrored = sum(m for _, _, m in places) / n
    assert mirrored == 0 if not flip else 0.45 < mirrored < 0.55


def test_augment_is_seeded_and_channels_last():
    images = random_images(6)
    augment = Augment(2, True)
    crops = augment.prepare(images.x)
    a, b, c = (augment(crops, torch.arange(6), 3, gen(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.is_contiguous(memory_format=torch.channels_last)
    assert a.float().is_contiguous(memory_format=torch.channels_last)


def test_no_padding_is_the_identity():
    images = random_images(6)
    augment = Augment(0)
    index = torch.tensor([4, 0, 5])
    out = augment(augment.prepare(images.x), index, 3, gen())
    assert torch.equal(out, images.x[index])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("c", [1, 3])
def test_large_sets_get_the_same_batches_without_a_padded_copy(flip, c, monkeypatch):
    images, augment = random_images(40, c=c), Augment(2, flip)
    models = [Linear(c=c), Linear(c=c)]
    run(models[0], images, augment=augment, epochs=2)
    monkeypatch.setattr(module, "MOST_CROPS", augment.size(images.x) - 1)
    monkeypatch.setattr(Augment, "__call__", spied := spy(Augment.__call__))
    run(models[1], images, augment=augment, epochs=2)
    assert max(len(crops) for _, crops, *_ in spied.calls) == 8 * (1 + flip)
    for a, b in zip(*(m.seen for m in models), strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride()
    assert same_state(models[0], frozen(models[1]))


def spy(function):
    @functools.wraps(function)
    def spied(*args):
        spied.calls.append(args)
        return function(*args)

    spied.calls = []
    return spied


@pytest.mark.parametrize("flip", [False, True])
def test_the_size_of_crops_is_told_before(flip):
    x = random_images(8).x
    augment = Augment(3, flip)
    assert augment.prepare(x).untyped_storage().nbytes() == augment.size(x)
    fifty = torch.empty(50_000, 3, 32, 32, dtype=torch.uint8, device="meta")
    hundred = torch.empty(100_000, 3, 32, 32, dtype=torch.uint8, device="meta")
    sizes = [Augment(4, True).size(t) for t in (fifty, hundred)]
    assert sizes[0] < module.MOST_CROPS < sizes[1]


@pytest.mark.parametrize("pad", [9, 10**6])
def test_crops_that_could_miss_the_image_are_refused(pad):
    model = Linear()
    before = frozen(model)
    with pytest.raises(ValueError) as e:
        run(model, random_images(), augment=Augment(pad))
    assert "crops would miss them" in message(e) and same_state(model, before)
    Augment(8).prepare(random_images().x)


def told_apart(images):
    """Position by the corner pixels of an image and of its mirror."""
    images.x[:, :, 0, 0] = torch.arange(len(images)).view(-1, 1).to(torch.uint8)
    images.x[:, :, 0, -1] = 255
    return images


@pytest.mark.parametrize("lean", [False, True])
def test_alternate_mirrors_every_image_in_every_other_epoch(lean, monkeypatch):
    if lean:
        monkeypatch.setattr(module, "MOST_CROPS", 0)
    images, model = told_apart(random_images(24)), Linear()
    run(model, images, augment=Augment(0, "alternate"), epochs=4)
    seen = torch.zeros(4, 24, dtype=torch.bool)
    for epoch in range(4):
        batches = model.seen[3 * epoch : 3 * epoch + 3]
        for x in (torch.cat(batches) * 255).round():
            mirrored = bool(x[0, 0, 0] == 255)
            which = int(x[0, 0, -1 if mirrored else 0])
            seen[epoch, which] = mirrored
            want = images.x[which].float()
            assert torch.equal(x.flip(2) if mirrored else x, want)
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
    assert torch.equal(seen[0], ~seen[1]), "each image shows its other side"
    assert 4 < int(seen[0].sum()) < 20, "half of them in each epoch"
    assert torch.equal(seen[0], Augment(0, "alternate").sides(24, 0))


def test_sides():
    augment = Augment(2, "alternate")
    a, b, c = (augment.sides(1000, s) for s in (1, 1, 2))
    assert a.dtype == torch.bool and a.shape == (1000,)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert 400 < int(a.sum()) < 600
    assert Augment(2, True).sides(5, 0) is Augment(2).sides(5, 0) is None
    for wrong in ("sometimes", 1, None, torch.ones(2)):
        with pytest.raises(ValueError, match="flip must be") as e:
            Augment(2, wrong)
        message(e)
