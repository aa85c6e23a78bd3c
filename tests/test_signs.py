"""The built-in road signs."""

from __future__ import annotations

import pytest
import torch

from bdcourse import data, signs
from helpers import gen


@pytest.fixture(scope="module")
def sheet():
    return dict(zip(signs.HARD, signs.templates(), strict=True))


def test_same_seed_same_pixels():
    for hard in (False, True):
        a, b, c = (signs.draw(60, seed=s, hard=hard) for s in (4, 4, 5))
        assert a.digest() == b.digest() != c.digest()


def test_no_global_randomness():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    signs.draw(5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_train_and_test_share_no_image(tmp_path, monkeypatch):
    monkeypatch.setenv("BDCOURSE_CACHE", str(tmp_path))
    # Seeds 0..2: the test set of one seed must not be the training set of the next.
    sets = [data.load("signs", s, n=90, seed=k) for k in range(3) for s in SPLITS]
    rows = torch.cat([s.x.flatten(1) for s in sets])
    assert len(rows.unique(dim=0)) == len(rows)
    again = data.load("signs", "test", n=90, seed=1)  # from the cache
    assert again.digest() == sets[3].digest()
    assert again.classes == signs.EASY


SPLITS = ("train", "test")


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("n", [1, 120, 127])
def test_classes_in_equal_shares_and_mixed(hard, n):
    images = signs.draw(n, hard=hard)
    assert len(images) == n and images.shape == (3, 32, 32)
    counts = images.y.bincount(minlength=images.k)
    assert counts.max() - counts.min() <= 1
    if n > 1:
        assert not torch.equal(images.y, images.y.sort().values)
        assert not torch.equal(images.y, torch.arange(n) % images.k)
        assert images.y.tolist() != signs.draw(n, seed=1, hard=hard).y.tolist()


def test_names():
    assert len(signs.EASY) == 12 and len(set(signs.HARD)) == 20
    assert signs.HARD[:12] == signs.EASY
    assert signs.draw(3).classes == signs.EASY
    assert signs.draw(3, hard=True).classes == signs.HARD


@pytest.mark.slow
def test_pixels_use_the_range_without_saturating():
    for hard in (False, True):
        x = signs.draw(200, hard=hard).x.float()
        assert x.min() < 20 and x.max() > 235
        assert 60 < x.mean() < 160
        assert ((x == 0) | (x == 255)).float().mean() < 0.1
        assert x.flatten(1).std(1).min() > 3, "no blank image"


@pytest.mark.slow
def test_hard_is_harder_to_see():
    # Dimmer and noisier: neighboring pixels differ more, for what light there is.
    easy, hard = (signs.draw(300, hard=h).pixels() for h in (False, True))
    rough = [(x[..., 1:] - x[..., :-1]).abs().median() / x.mean() for x in (easy, hard)]
    assert rough[1] > rough[0]


def test_templates_are_distinct_and_smooth(sheet):
    t = signs.templates()
    assert t.shape == (20, 4, 96, 96)
    assert 0 <= t.min() and t.max() <= 1
    assert (t[:, :3] <= t[:, 3:] + 1e-6).all(), "color is premultiplied by alpha"
    far = torch.cdist(t.flatten(1), t.flatten(1)) + 99 * torch.eye(20)
    assert far.min() > 2, "no two signs alike"
    assert (t[:, 3].flatten(1).mean(1) > 0.3).all(), "every sign fills its square"
    assert ((t[:, 3] > 0.05) & (t[:, 3] < 0.95)).any(), "edges are smooth"


@pytest.mark.parametrize(
    ("left", "right"),
    [("turn left", "turn right"), ("ahead or left", "ahead or right")],
)
def test_left_and_right_are_mirror_images(sheet, left, right):
    assert torch.allclose(sheet[left], sheet[right].flip(-1), atol=1e-6)
    assert (sheet[left] - sheet[right]).abs().max() > 0.5, "and not the same"


@pytest.mark.slow
def test_signs_can_be_told_apart_by_their_template():
    # Not a timing and not a training: nearest class mean must beat guessing by far.
    train, test = signs.draw(600, seed=0), signs.draw(240, seed=1)
    means = torch.stack([train.pixels()[train.y == k].mean(0) for k in range(12)])
    means = (means - means.mean(0)).flatten(1)
    x = test.pixels().flatten(1)
    x = x - x.mean(1, keepdim=True)
    hit = ((x @ means.T - means.square().sum(1) / 2).argmax(1) == test.y).float().mean()
    assert hit > 3 / 12


def test_wrong_number():
    with pytest.raises(ValueError, match="at least 1"):
        signs.draw(0)


def test_version_follows_the_file(tmp_path, monkeypatch):
    a = signs.version()
    copy = tmp_path / "signs.py"
    copy.write_bytes(open(signs.__file__, "rb").read() + b"\n")
    monkeypatch.setattr(signs, "__file__", str(copy))
    assert signs.version() != a and len(a) == 8


def test_cover_hides_about_half():
    x = torch.full((400, 3, 32, 32), 2.0)
    changed = (signs._cover(x, 400, gen()) != x).any(1).flatten(1)
    share = changed.any(1).float().mean()
    assert 0.4 < share < 0.6
    area = changed.sum(1)[changed.any(1)]
    assert area.min() >= 25 and area.max() <= 144
