"""Images and poisoned images: what fits, what is chosen, how pixels are stored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bdcourse import data
from bdcourse.data import Images, quantize
from bdcourse.examples import Poisoned
from helpers import message, random_images


@pytest.mark.parametrize(
    ("x", "y", "word"),
    [
        (torch.rand(4, 3, 8, 8), torch.zeros(4).long(), "float32"),
        (torch.zeros(3, 8, 8).byte(), torch.zeros(3).long(), "(3, 8, 8)"),
        (torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4).int(), "int32"),
        (torch.zeros(4, 3, 8, 8).byte(), torch.zeros(5).long(), "(5,)"),
        (torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4, 1).long(), "(4, 1)"),
        (torch.zeros(4, 3, 8, 8).byte(), torch.tensor([0, 1, 2, 0]), "0 to 2"),
        (torch.zeros(4, 3, 8, 8).byte(), torch.tensor([0, 1, -1, 0]), "-1 to 1"),
    ],
)
def test_images_refuses_what_does_not_fit(x, y, word):
    with pytest.raises(ValueError) as e:
        Images(x, y, ("a", "b"))
    assert word in message(e)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"x": None}, "not None"),
        ({"x": torch.zeros(2, 3, 0, 8).byte()}, "without pixels"),
        ({"y": torch.zeros(2).long().to("meta")}, "meta"),
        ({"x": torch.zeros(2, 1, 4, 4).byte().to_sparse()}, "sparse"),
        ({"classes": "ab"}, "'ab'"),
        ({"classes": ("a", 1)}, "('a', 1)"),
        ({"classes": ()}, "()"),
        ({"classes": None}, "None"),
        ({"classes": ("a", "b", "a")}, "'a' stands twice"),
    ],
)
def test_images_doors(change, word):
    usual = {"x": torch.zeros(2, 3, 8, 8).byte(), "y": torch.zeros(2).long()}
    with pytest.raises(ValueError) as e:
        Images(**(usual | {"classes": ("a", "b")} | change))
    assert word in message(e)


def test_a_list_of_classes_becomes_a_tuple():
    x, y = torch.zeros(2, 3, 8, 8).byte(), torch.zeros(2).long()
    one = Images(x, y, ["a", "b"])
    assert one.classes == ("a", "b")
    assert len(data.join(one, Images(x, y, ("a", "b")))) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_one_device():
    images = random_images(2)
    with pytest.raises(ValueError, match="Images.y on cpu"):
        Images(images.x.cuda(), images.y, images.classes)
    role = torch.zeros(2).char().cuda()
    with pytest.raises(ValueError, match="its role on cuda"):
        Poisoned(images.x, images.y, images.classes, role)


@pytest.mark.parametrize("late", [3, "no", torch.zeros(1)])
def test_poisoned_doors(late):
    images = random_images(2)
    with pytest.raises(ValueError) as e:
        Poisoned(images.x, images.y, images.classes, torch.zeros(2).char(), late)
    assert "late" in message(e)


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (0, [0]),
        (-1, [9]),
        (np.int64(3), [3]),
        (torch.tensor(3), [3]),
        ([], []),
        ([1, -2], [1, 8]),
        (range(2, 4), [2, 3]),
        (np.array([5, 5]), [5, 5]),
        (torch.tensor([1, 2], dtype=torch.int32), [1, 2]),
        (np.arange(10) > 7, [8, 9]),
        ([True] + 9 * [False], [0]),
        (slice(None, None, 4), [0, 4, 8]),
        (slice(8, 10**30), [8, 9]),
    ],
)
def test_what_chooses_images(index, rows):
    images = random_images(10)
    part = images[index]
    assert torch.equal(part.x, images.x[torch.tensor(rows).long()])
    assert torch.equal(part.y, images.y[torch.tensor(rows).long()])


@pytest.mark.parametrize(
    ("index", "word"),
    [
        (10, "10 to 10"),
        (-11, "10 images"),
        (torch.tensor([3, 99]), "3 to 99"),
        (torch.ones(9).bool(), "mask of 9 entries"),
        ([True, False], "mask of 2 entries"),
        (torch.ones(10), "float32"),
        (torch.ones(10).byte(), "uint8"),
        (torch.zeros(2, 2).long(), "(2, 2)"),
        ([1.5], "a list"),
        ([[1], [1, 2]], "a list"),
        ((1, 2), "a tuple"),
        (None, "None"),
        (True, "True"),
        ("0", "'0'"),
        (..., "ellipsis"),
        (slice(None, None, -1), "forward"),
    ],
)
def test_what_chooses_no_images(index, word):
    with pytest.raises(ValueError) as e:
        random_images(10)[index]
    assert word in message(e)


def test_images_one_by_one():
    images = random_images(3)
    assert [len(one) for one in images] == [1, 1, 1]
    assert torch.equal(torch.cat([one.x for one in images]), images.x)


@pytest.mark.parametrize("device", ["gpu", None, 1.5, "mps", "meta"])
def test_no_such_device(device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError) as e:
        random_images(2).to(device)
    message(e)


def test_images_basics():
    images = random_images(10, 2)
    assert (len(images), images.k, images.shape) == (10, 2, (3, 8, 8))
    for index in (slice(2, 5), torch.tensor([2, 3, 4]), images.y == 1):
        part = images[index]
        assert torch.equal(part.x, images.x[index])
        assert torch.equal(part.y, images.y[index])
        assert part.classes == images.classes
    p = images.pixels()
    assert p.dtype == torch.float32
    assert torch.equal(quantize(p), images.x), "uint8 -> float -> uint8 must be exact"
    assert len(images.digest()) == 16
    assert images.digest() == random_images(10, 2).digest()
    relabeled = Images(images.x, images.y.flip(0), images.classes)
    reshaped = Images(images.x.reshape(10, 3, 4, 16), images.y, images.classes)
    assert len({images.digest(), relabeled.digest(), reshaped.digest()}) == 3


def test_quantize_rounds_and_clamps():
    x = torch.tensor([-0.5, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 7.0])
    assert quantize(x).tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize("x", [torch.tensor([200, 3]), None, torch.tensor([torch.nan])])
def test_quantize_refuses_what_it_would_make_white_or_black(x):
    with pytest.raises(ValueError) as e:
        quantize(x)
    message(e)
