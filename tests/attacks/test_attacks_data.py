"""What the attacks that poison data and need no model share: covers, promises, doors."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import bdcourse.attacks
from bdcourse.attacks import noise_picture, rebuild
from bdcourse.attacks.adap import AdapBlend, AdapPatch, color_patches
from bdcourse.attacks.ftrojan import FTrojan
from bdcourse.attacks.refool import Refool
from bdcourse.attacks.sig import SIG
from bdcourse.attacks.tact import TaCT
from bdcourse.data import quantize
from helpers import gen, message, random_images
from poisoning import crafted, noise, noise_set, sizes

KINDS = [SIG, TaCT, AdapBlend, AdapPatch, Refool, FTrojan]
# ---------------------------------------------------------------- all of them


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(sizes, st.integers(0, 5), st.sampled_from([torch.float32, torch.float64]))
def test_any_size_and_batch(kind, size, n, dtype):
    assume(kind is not SIG or size[2] != 12)  # refused, see below
    attack = crafted(kind, *size)
    x = noise(n, *size).to(dtype)
    if n:
        x[0, :, : size[1] // 2], x[-1, :, :, : size[2] // 2] = 0, 1
    before = x.clone()
    y = torch.zeros(n, dtype=torch.int64)
    for out in (attack.trigger(x), attack.plant(x, y, gen(1))):
        assert torch.equal(x, before), "the input was changed in place"
        assert out.shape == x.shape and out.dtype == x.dtype
        assert out.data_ptr() != x.data_ptr() or n == 0
        assert ((out >= 0) & (out <= 1)).all()
        assert n == 0 or (out != x).flatten(1).any(1).all()
    again = attack.trigger(x)
    assert torch.equal(again, attack.trigger(x))
    if n > 1:  # no image's trigger depends on its batch
        alone = torch.cat([attack.trigger(one[None]) for one in x])
        assert torch.allclose(alone, again, atol=1e-6)
        assert torch.allclose(attack.trigger(x.flip(0)).flip(0), again, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind):
    x = noise(3).half()
    out = crafted(kind, 3, 32, 32).trigger(x)
    assert out.dtype == torch.float16
    full = crafted(kind, 3, 32, 32).trigger(x.float())
    assert torch.allclose(out.float(), full, atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_for_32_pixel_color_images(kind):
    images = noise_set(20, 10, 3, 32, 32)
    default, made = kind(), kind.craft(images, gen())
    default.check(images)
    assert torch.equal(default.trigger(noise(2)), made.trigger(noise(2)))
    assert made.threat == "data"
    assert bool(kind.stands_in) == (kind not in (SIG, FTrojan))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0, 0.004, 0.05, 0.1])
def test_poisoned_set(kind, rate):
    images = noise_set(500, 10)
    attack, before = crafted(kind), images.digest()
    p = attack.poison(images, rate, gen(4))
    assert images.digest() == before, "the input was changed in place"
    clean, poison, cover = (p.role == r for r in (0, 1, 2))
    assert p.count == round(rate * 500)
    assert p.covers == round(getattr(attack, "cover", 0) * p.count)
    assert torch.equal(p.x[clean], images.x[clean])
    assert (p.x[~clean] != images.x[~clean]).flatten(1).any(1).all()
    assert torch.equal(p.y[~poison], images.y[~poison])
    assert (p.y[poison] == 0).all()
    if kind is SIG:
        assert torch.equal(p.y, images.y), "clean-label: no label may change"
    same, other = (attack.poison(images, rate, gen(s)) for s in (4, 5))
    assert p.digest() == same.digest() and torch.equal(p.role, same.role)
    assert rate in (0, 0.1) and kind is SIG or rate == 0 or p.digest() != other.digest()
    if type(attack).plant is bdcourse.attacks.Attack.plant:
        stamped = quantize(attack.trigger(images.x[~clean].float() / 255))
        assert torch.equal(p.x[~clean], stamped)
        late = attack.poison(images, rate, gen(4), stamp="after")
        assert torch.equal(late.x, images.x) and torch.equal(late.role, p.role)
    else:
        with pytest.raises(ValueError, match="only be stamped"):
            attack.poison(images, rate, gen(4), stamp="after")


@pytest.mark.parametrize(
    ("attack", "rate"),
    [
        (SIG(clean_label=False), 1),
        (TaCT(source=1, covers=(2,)), 1 / 3),
        (crafted(AdapBlend), 0.5),
        (crafted(AdapBlend, cover=0), 1),
        (crafted(AdapPatch), 1 / 3),
        (crafted(Refool), 1),
        (FTrojan(), 1),
    ],
)
def test_largest_rates(attack, rate):
    p = attack.poison(random_images(30), rate, gen())
    assert p.count == round(rate * 30)
    assert p.count + p.covers == round(30 * rate * (1 + getattr(attack, "cover", 0)))


@pytest.mark.parametrize("attack", [SIG(target=2), crafted(Refool, clean_label=True)])
def test_clean_label_takes_the_target_class_only(attack):
    images = random_images(30)
    p = attack.poison(images, 1 / 3, gen())
    assert torch.equal(p.y, images.y)
    assert torch.equal(p.role == 1, images.y == attack.target)
    with pytest.raises(ValueError) as e:
        attack.poison(images, 0.5, gen())
    assert "asks for 15 images, but only 10" in message(e)


@pytest.mark.parametrize("kind", [AdapBlend, AdapPatch, Refool, FTrojan])
def test_poison_and_cover_come_from_all_classes(kind):
    images = noise_set(300, 3)
    p = crafted(kind, k=3, target=1).poison(images, 0.2, gen())
    for role in (1, 2) if p.covers else (1,):
        assert (images.y[p.role == role].bincount(minlength=3) > 5).all()


@pytest.mark.parametrize("kind", [SIG, AdapBlend, AdapPatch, Refool, FTrojan])
def test_all_to_all(kind):
    options = {"clean_label": False} if kind is SIG else {}
    images = noise_set(40, 4)
    attack = kind.craft(images, gen(), all_to_all=True, **options)
    p = attack.poison(images, 0.25, gen())
    bad = p.role == 1
    assert torch.equal(p.y[bad], (images.y[bad] + 1) % 4)
    assert torch.equal(p.y[~bad], images.y[~bad])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("c", [1, 3])
def test_spec_survives_json(kind, c, monkeypatch):
    monkeypatch.setattr(bdcourse.attacks, "ATTACKS", {kind.__name__: kind})
    attack = crafted(kind, c, 12, 9, target=3)
    spec, tensors = attack.spec()
    again = rebuild(json.loads(json.dumps(spec)), tensors)
    assert type(again) is kind
    for f in fields(kind):
        ours, theirs = getattr(attack, f.name), getattr(again, f.name)
        tensor = isinstance(ours, torch.Tensor)
        assert torch.equal(ours, theirs) if tensor else ours == theirs
    x, y = noise(5, c, 12, 9), torch.arange(5)
    assert torch.equal(again.trigger(x), attack.trigger(x))
    assert torch.equal(again.plant(x, y, gen()), attack.plant(x, y, gen()))
    assert torch.equal(again.counts(y), attack.counts(y))


@pytest.mark.parametrize("kind", [SIG, AdapBlend, AdapPatch, Refool, FTrojan])
def test_no_promise_about_other_images(kind):
    x, y = noise(4, 3, 8, 8), torch.arange(4)
    assert crafted(kind).cross(x, y, gen()) is None
    assert crafted(kind).counts(y).tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("kind", "options", "word"),
    [
        (SIG, {"delta": 0.0}, "delta"),
        (SIG, {"delta": 40.0}, "delta"),
        (SIG, {"delta": math.nan}, "delta"),
        (SIG, {"frequency": 0}, "frequency"),
        (SIG, {"frequency": math.inf}, "frequency"),
        (SIG, {"all_to_all": True, "classes": 3}, "clean-label"),
        (TaCT, {"target": 1}, "must differ"),
        (TaCT, {"source": 5}, "neither the source"),
        (TaCT, {"target": 7}, "nor the target 7"),
        (TaCT, {"covers": ()}, "covers is empty"),
        (TaCT, {"cover": -1.0}, "cover must"),
        (TaCT, {"cover": math.inf}, "cover must"),
        (TaCT, {"clean_label": True}, "clean-label"),
        (TaCT, {"all_to_all": True, "classes": 3}, "all-to-all"),
        (TaCT, {"patch": torch.full((3, 2, 2), 2.0)}, "[0, 1]"),
        (AdapBlend, {"alpha": 0.0}, "alpha must"),
        (AdapBlend, {"test_alpha": 0.0}, "test_alpha"),
        (AdapBlend, {"test_alpha": 1.1}, "test_alpha"),
        (AdapBlend, {"pieces": 1}, "pieces"),
        (AdapBlend, {"cover": -0.5}, "cover must"),
        (AdapBlend, {"clean_label": True}, "AdapBlend cannot be clean-label"),
        (AdapBlend, {"picture": torch.rand(8, 8)}, "picture"),
        (AdapPatch, {"patches": torch.rand(3, 3, 4, 4)}, "(3, 3, 4, 4)"),
        (AdapPatch, {"patches": torch.rand(4, 3, 4, 5)}, "(4, 3, 4, 5)"),
        (AdapPatch, {"patches": torch.rand(4, 4, 4)}, "(4, 4, 4)"),
        (AdapPatch, {"patches": torch.full((4, 3, 2, 2), 255.0)}, "[0, 1]"),
        (AdapPatch, {"alphas": (0.5, 0.2, 0.5)}, "4 entries"),
        (AdapPatch, {"alphas": (0.5, 0.2, 0.5, 0)}, "above 0"),
        (AdapPatch, {"tested": ()}, "0..3"),
        (AdapPatch, {"tested": (4,)}, "0..3"),
        (AdapPatch, {"cover": math.nan}, "cover must"),
        (AdapPatch, {"clean_label": True}, "AdapPatch cannot be clean-label"),
        (Refool, {"bank": torch.rand(3, 8, 8)}, "(3, 8, 8)"),
        (Refool, {"bank": torch.rand(0, 3, 8, 8)}, "(0, 3, 8, 8)"),
        (Refool, {"bank": torch.full((2, 3, 8, 8), -1.0)}, "[0, 1]"),
        (Refool, {"draws": torch.rand(5, 7)}, "(5, 7)"),
        (Refool, {"draws": torch.ones(5, 8)}, "[0, 1)"),
        (Refool, {"ghost": 1.5}, "ghost"),
        (Refool, {"image": 0.0}, "image"),
        (Refool, {"image": 1.0}, "image"),
        (FTrojan, {"magnitude": 0.0}, "magnitude"),
        (FTrojan, {"magnitude": math.inf}, "magnitude"),
        (FTrojan, {"window": 3}, "window"),
    ],
)
def test_refused_settings(kind, options, word):
    with pytest.raises(ValueError) as e:
        kind(**options)
    assert word in message(e)


@pytest.mark.parametrize(
    ("attack", "images", "word"),
    [
        (SIG(target=3), random_images(), "no label"),
        (TaCT(), random_images(k=6, n=30), "cover class 7 is no label"),
        (TaCT(source=4, covers=(1,)), random_images(), "source 4 is no label"),
        (TaCT(covers=(-1,)), random_images(), "cover class -1"),
        (TaCT(covers=(2,)), random_images(c=1), "3 channels"),
        (TaCT(covers=(2,), at=(5, 5)), random_images(), "inside a 8x8"),
        (AdapBlend(), random_images(), "the same size"),
        (crafted(AdapBlend, pieces=9), random_images(), "9 pieces"),
        (AdapPatch(), random_images(c=1), "3 channels"),
        (AdapPatch(patches=color_patches(5)), random_images(), "fit beside"),
        (Refool(), random_images(c=1), "3 channels"),
        (FTrojan(), random_images(c=2), "1 or 3 channels"),
        (FTrojan(), random_images(side=3), "4x4"),
    ],
)
def test_refused_sets(attack, images, word):
    with pytest.raises(ValueError) as e:
        attack.check(images)
    assert word in message(e)
    with pytest.raises(ValueError):
        attack.poison(images, 0, gen())


def test_noise_picture_is_cut_to_rectangles():
    attack = crafted(AdapBlend, 1, 9, 14)
    assert torch.equal(attack.picture, noise_picture(14, 1)[:, :9])
