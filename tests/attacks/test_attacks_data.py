"""The attacks that poison data and need no model: formulas, covers, promises."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import bdcourse.attacks
from bdcourse.attacks import BadNets, noise_picture, rebuild
from bdcourse.attacks.adap import AdapBlend, AdapPatch, colour_patches
from bdcourse.attacks.ftrojan import FTrojan, dct_matrix
from bdcourse.attacks.refool import Refool, blur, draws, reflections
from bdcourse.attacks.sig import SIG
from bdcourse.attacks.tact import TaCT, colour_patch
from bdcourse.data import Images, quantize
from helpers import gen, message, random_images

KINDS = [SIG, TaCT, AdapBlend, AdapPatch, Refool, FTrojan]
sizes = st.tuples(st.sampled_from([1, 3]), st.integers(8, 40), st.integers(8, 40))


def noise(n, c=3, h=32, w=32, seed=0):
    return torch.rand(n, c, h, w, generator=gen(seed))


def noise_set(n, k, c=3, h=8, w=8):
    x = torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=gen(3))
    return Images(x, torch.arange(n) % k, tuple(map(str, range(k))))


def crafted(kind, c=3, h=8, w=8, k=10, **options):
    return kind.craft(noise_set(k, k, c, h, w), gen(), **options)


# ---------------------------------------------------------------- all of them


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


@pytest.mark.parametrize("width", [4, 6, 12])
def test_sig_that_samples_its_sine_at_zero_is_refused(width):
    assert SIG().wave(width).abs().max() < 1e-12
    with pytest.raises(ValueError) as e:
        SIG().check(random_images(k=3, side=width))
    assert "nothing would change" in message(e)
    SIG(frequency=5).check(random_images(k=3, side=width))
    SIG().check(random_images(k=3, side=13))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind):
    x = noise(3).half()
    out = crafted(kind, 3, 32, 32).trigger(x)
    assert out.dtype == torch.float16
    full = crafted(kind, 3, 32, 32).trigger(x.float())
    assert torch.allclose(out.float(), full, atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_for_32_pixel_colour_images(kind):
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
        (AdapPatch(patches=colour_patches(5)), random_images(), "fit beside"),
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


# ---------------------------------------------------------------- SIG


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


# ---------------------------------------------------------------- TaCT


def test_tact_is_badnets_at_its_place():
    x = noise(4)
    attack = TaCT()
    as_badnets = BadNets(patch=colour_patch(), at=(-6, -6))
    assert torch.equal(attack.trigger(x), as_badnets.trigger(x))
    changed = (attack.trigger(x) != x).any(1).any(0)
    assert not changed[:26].any() and not changed[31:].any()
    assert changed[26:31, 26:31].all() and not changed[:, 31].any()
    patch = colour_patch()
    assert patch.shape == (3, 5, 5) and set(patch.unique().tolist()) == {0, 1}
    assert torch.equal(patch, colour_patch(seed=0))
    assert not torch.equal(patch, colour_patch(seed=1))


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


# ---------------------------------------------------------------- Adap-Blend


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


# ---------------------------------------------------------------- Refool


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


def test_refool_resizes_its_bank_and_greys():
    x = noise(2, 3, 16, 24)
    assert Refool().trigger(x).shape == x.shape
    grey = Refool(bank=reflections((1, 32, 32)))
    black = grey.trigger(torch.zeros(1, 3, 16, 24))[0]
    assert torch.equal(black[0], black[1]) and torch.equal(black[0], black[2])


# ---------------------------------------------------------------- FTrojan


def test_dct_matrix():
    for n in (4, 7, 32):
        d = dct_matrix(n)
        assert torch.allclose(d @ d.T, torch.eye(n).double(), atol=1e-12)
        assert torch.allclose(d[0], torch.full((n,), n**-0.5).double())
        want = math.sqrt(2 / n) * math.cos(math.pi * 3 * 2 / (2 * n))
        assert float(d[2, 1]) == pytest.approx(want)


def to_ycrcb(x):
    r, g, b = x.double().unbind(1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return torch.stack([y, (r - y) * 0.713 + 0.5, (b - y) * 0.564 + 0.5], 1)


def to_rgb(x):
    y, cr, cb = x.unbind(1)
    r, b = y + (cr - 0.5) / 0.713, y + (cb - 0.5) / 0.564
    return torch.stack([r, (y - 0.299 * r - 0.114 * b) / 0.587, b], 1)


def dct_basis(n):
    """1-D DCT-II from its definition: basis[k][i]."""
    return torch.tensor(
        [
            [
                math.sqrt((1 if k == 0 else 2) / n) * math.cos(math.pi * (i + 0.5) * k / n)
                for i in range(n)
            ]
            for k in range(n)
        ],
        dtype=torch.float64,
    )


@settings(max_examples=25, deadline=None)
@given(sizes, st.sampled_from([8, 11, 32]), st.floats(0.01, 3))
def test_ftrojan_equals_the_dct_route(size, window, magnitude):
    c, h, w = size
    x = noise(2, *size)
    side = min(window, h, w)
    basis = dct_basis(side)
    planes = to_ycrcb(x) if c == 3 else x.double()
    for channel in (1, 2) if c == 3 else (0,):
        for top in range(0, h - side + 1, side):
            for left in range(0, w - side + 1, side):
                block = planes[:, channel, top : top + side, left : left + side]
                freq = torch.einsum("ka,nab,lb->nkl", basis, block, basis)
                freq[:, side // 2 - 1, side // 2 - 1] += magnitude
                freq[:, side - 1, side - 1] += magnitude
                back = torch.einsum("ka,nkl,lb->nab", basis, freq, basis)
                planes[:, channel, top : top + side, left : left + side] = back
    want = (to_rgb(planes) if c == 3 else planes).clamp(0, 1)
    out = FTrojan(magnitude=magnitude, window=window).trigger(x)
    assert torch.allclose(out.double(), want, atol=1e-6)


def test_ftrojan_pattern():
    attack = FTrojan()
    assert (attack.magnitude, attack.window) == (30 / 255, 32)
    p = attack.pattern(3, 32, 32)
    luma = 0.299 * p[0] + 0.587 * p[1] + 0.114 * p[2]
    assert luma.abs().max() < 1e-12, "brightness is unchanged"
    freq = dct_basis(32) @ (0.713 * p[0]) @ dct_basis(32).T * 255
    want = torch.zeros(32, 32, dtype=torch.float64)
    want[15, 15] = want[31, 31] = 30
    assert torch.allclose(freq, want, atol=1e-9)
    assert 255 * p.abs().max() < 8, "a few grey levels"
    assert torch.equal(attack.pattern(3, 64, 32)[:, :32], p)
    assert torch.equal(attack.pattern(3, 64, 32)[:, 32:], p)
    rest = FTrojan(window=8).pattern(3, 20, 16)
    assert (rest[:, 16:] == 0).all() and (rest[:, 8:16, 8:] != 0).any()


def test_noise_picture_is_cut_to_rectangles():
    attack = crafted(AdapBlend, 1, 9, 14)
    assert torch.equal(attack.picture, noise_picture(14, 1)[:, :9])
