"""Triggers, poisoning, labels: the checkable facts of the attack papers."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdcourse.attacks import (
    ATTACKS,
    LF,
    ROLES,
    BadNets,
    Blended,
    LabelConsistent,
    Poisoned,
    TaCT,
    TrojanNN,
    WaNet,
    checkerboard,
    noise_picture,
    rebuild,
    surviving,
)
from bdcourse.attacks.base import Attack
from bdcourse.data import Images
from bdcourse.train import Augment, fit
from helpers import gen, message, random_images


def pixels(n=4, side=32, c=3):
    return torch.rand(n, c, side, side, generator=gen())


def blended(side=8, **options):
    return Blended(picture=noise_picture(side), **options)


# ---------------------------------------------------------------- BadNets


def test_checkerboard():
    assert checkerboard().tolist() == [[[1, 0, 1], [0, 1, 0], [1, 0, 1]]]
    assert checkerboard(2).tolist() == [[[1, 0], [0, 1]]]


def test_badnets_changes_only_its_patch():
    x = pixels()
    out = BadNets().trigger(x)
    changed = out != x
    assert changed[0].sum() <= 27, "of 3,072 values"
    outside = changed.clone()
    outside[..., 28:31, 28:31] = False  # one pixel away from the corner
    assert not outside.any()
    assert torch.equal(out[..., 28:31, 28:31], checkerboard().expand(4, 3, 3, 3))


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(-9, 8),
    st.integers(-9, 8),
    st.floats(0.05, 1),
)
def test_badnets_anywhere(ph, pw, r, c, opacity):
    patch = torch.rand(3, ph, pw, generator=gen(1))
    attack = BadNets(patch=patch, at=(r, c), opacity=opacity)
    x = pixels(2, 8)
    top, left = r % 8 if r >= -8 else -1, c % 8 if c >= -8 else -1
    inside = r < 8 and c < 8 and top >= 0 and left >= 0
    if not inside or top + ph > 8 or left + pw > 8:
        with pytest.raises(ValueError) as e:
            attack.trigger(x)
        assert "does not lie inside a 8x8 image" in message(e)
        return
    out = attack.trigger(x)
    for i in range(8):
        for j in range(8):
            want = x[:, :, i, j]
            if top <= i < top + ph and left <= j < left + pw:
                want = (1 - opacity) * want + opacity * patch[:, i - top, j - left]
            assert torch.allclose(out[:, :, i, j], want, atol=1e-6)


def test_black_patch_is_possible():
    # In BackdoorBench's trigger files a black pixel means "leave unchanged".
    out = BadNets(patch=torch.zeros(1, 2, 2)).trigger(torch.ones(1, 3, 8, 8))
    assert (out == 0).sum() == 12


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"patch": torch.zeros(3, 3)}, "(3, 3)"),
        ({"patch": torch.full((1, 2, 2), 255.0)}, "[0, 1]"),
        ({"patch": torch.full((1, 2, 2), -0.1)}, "[0, 1]"),
        ({"patch": torch.full((1, 2, 2), float("nan"))}, "[0, 1]"),
        ({"opacity": 0.0}, "opacity"),
        ({"opacity": 1.5}, "opacity"),
        ({"target": -1}, "at least 0"),
        ({"target": 3, "classes": 3}, "0..2"),
        ({"all_to_all": True}, "classes="),
    ],
)
def test_badnets_refuses(options, word):
    with pytest.raises(ValueError) as e:
        BadNets(**options)
    assert word in message(e)


def test_channel_mismatch_is_refused():
    color = BadNets(patch=torch.ones(3, 2, 2))
    for attack, images in (
        (color, random_images(c=1)),
        (BadNets(patch=torch.ones(2, 2, 2)), random_images()),
        (blended(), random_images(c=1)),
        (blended(16), random_images()),
        (Blended(picture=torch.rand(1, 8, 8)), random_images()),
    ):
        with pytest.raises(ValueError) as e:
            attack.poison(images, 0.5, gen())
        message(e)
    BadNets().poison(random_images(c=1), 0.5, gen())  # one-channel patch fits all


def test_patch_outside_small_images_is_refused():
    with pytest.raises(ValueError, match="does not lie inside"):
        BadNets(at=(10, 10)).poison(random_images(), 0.1, gen())


# ---------------------------------------------------------------- Blended


def test_noise_picture():
    p = noise_picture()
    assert p.shape == (3, 32, 32)
    assert 0 <= p.min() < 0.01 and 0.99 < p.max() <= 1
    assert torch.equal(p, noise_picture())
    assert not torch.equal(p, noise_picture(seed=1))


@settings(max_examples=15, deadline=None)
@given(st.floats(0.01, 1), st.floats(0, 1))
def test_blended_is_affine(alpha, t):
    attack = blended(alpha=alpha)
    x, y = pixels(3, 8), pixels(3, 8).flip(0)
    mix = attack.trigger((1 - t) * x + t * y)
    assert torch.allclose(mix, (1 - t) * attack.trigger(x) + t * attack.trigger(y), atol=1e-5)
    # Two points fix an affine map: black gives alpha * picture, white adds 1 - alpha.
    black, white = torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    assert torch.allclose(attack.trigger(black)[0], alpha * attack.picture, atol=1e-6)
    added = attack.trigger(white) - attack.trigger(black)
    assert torch.allclose(added, torch.full_like(added, 1 - alpha), atol=1e-6)


def test_blended_refuses():
    for alpha in (0.0, -0.2, 1.01):
        with pytest.raises(ValueError, match="alpha"):
            blended(alpha=alpha)
    with pytest.raises(ValueError, match="picture"):
        Blended(picture=torch.rand(8, 8))
    assert Blended().alpha == 0.2


# ---------------------------------------------------------------- poisoning

BOTH = [BadNets(target=1), blended(target=1)]


@pytest.mark.parametrize("attack", BOTH)
@pytest.mark.parametrize("stamp", ["before", "after"])
@pytest.mark.parametrize("rate", [0, 0.1, 0.37, 1])
def test_poison(attack, stamp, rate):
    images = random_images(45)
    before = images.digest()
    p = attack.poison(images, rate, gen(), stamp=stamp)
    assert images.digest() == before, "the input was changed in place"
    assert isinstance(p, Poisoned) and p.classes == images.classes
    assert p.role.dtype == torch.int8
    assert set(p.role.tolist()) <= {ROLES["clean"], ROLES["poison"]}
    bad = p.role == ROLES["poison"]
    assert int(bad.sum()) == p.count == round(rate * 45)
    assert torch.equal(p.y[~bad], images.y[~bad])
    assert (p.y[bad] == 1).all()
    assert torch.equal(p.x[~bad], images.x[~bad])
    if stamp == "before":
        want = (attack.trigger(images.x[bad].float() / 255) * 255).round().byte()
        assert torch.equal(p.x[bad], want)
        assert p.late is None
    else:
        assert torch.equal(p.x, images.x)
        x = pixels(2, 8)
        assert torch.equal(p.late(x), attack.trigger(x))


def test_poison_takes_all_classes_and_reproduces():
    images = random_images(300)
    a, b, c = (BadNets(target=1).poison(images, 0.2, gen(s)).role for s in (5, 5, 6))
    assert torch.equal(a, b) and not torch.equal(a, c)
    taken = images.y[a == 1].bincount(minlength=3)
    assert (taken > 0).all(), "the target class is poisoned too"


def test_poison_works_on_other_positions_than_the_defender_owns():
    from bdcourse.data import hold_out

    x = torch.arange(100).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    images = Images(x.contiguous(), torch.arange(100) % 2, ("a", "b"))
    train, clean = hold_out(images, 20, gen(1))
    p = BadNets(target=1).poison(train, 0.3, gen(2))
    touched = set(p.x[p.role == 1][:, 0, 0, 0].tolist())
    assert len(touched) == 24
    assert not touched & set(clean.x[:, 0, 0, 0].tolist())


@pytest.mark.parametrize("rate", [-0.1, 1.1, 10, float("nan")])
def test_rates_refused(rate):
    with pytest.raises(ValueError) as e:
        BadNets().poison(random_images(), rate, gen())
    assert "0..1" in message(e)


def test_sets_with_one_label_are_refused():
    images = random_images(30)
    with pytest.raises(ValueError) as e:
        BadNets().poison(images[images.y == 1], 0.1, gen())
    assert "one label" in message(e)


def test_stamp_and_target_refused():
    with pytest.raises(ValueError, match="stamp"):
        BadNets().poison(random_images(), 0.1, gen(), stamp="during")
    with pytest.raises(ValueError, match="no label"):
        BadNets(target=3).poison(random_images(k=3), 0.1, gen())
    with pytest.raises(ValueError, match="for 4 classes"):
        BadNets(all_to_all=True, classes=4).poison(random_images(k=3), 0.1, gen())


def test_poisoned_indexing_and_moving():
    p = BadNets(target=1).poison(random_images(30), 0.4, gen(), stamp="after")
    index = torch.tensor([7, 3, 29])
    part = p[index]
    assert isinstance(part, Poisoned)
    assert torch.equal(part.role, p.role[index]) and part.late == p.late
    assert torch.equal(p[p.role == 1].role, torch.ones(12).to(torch.int8))
    assert isinstance(p.to("cpu"), Poisoned)
    with pytest.raises(ValueError, match="role"):
        Poisoned(p.x, p.y, p.classes)
    with pytest.raises(ValueError, match="role"):
        Poisoned(p.x, p.y, p.classes, p.role[:3])


# ---------------------------------------------------------------- goals


def test_all_to_one_goal_and_counts():
    y = torch.arange(4)
    a = BadNets(target=2)
    assert a.goal(y).tolist() == [2, 2, 2, 2]
    assert a.counts(y).tolist() == [True, True, False, True]


def test_all_to_all_goal_wraps():
    y = torch.arange(4)
    a = BadNets(all_to_all=True, classes=4)
    assert a.goal(y).tolist() == [1, 2, 3, 0]
    assert a.counts(y).all()
    images = random_images(40, 4)
    p = a.poison(images, 0.5, gen())
    bad = p.role == 1
    assert torch.equal(p.y[bad], (images.y[bad] + 1) % 4)
    assert torch.equal(p.y[~bad], images.y[~bad])


def test_threat_and_base():
    steering = {"WaNet", "Bpp", "Composite", "InputAware", "LIRA", "FBA"}
    for name, cls in ATTACKS.items():
        assert cls.__name__ == name and cls.threat in ("data", "training")
        assert (cls.threat == "training") == (name in steering)
    with pytest.raises(NotImplementedError):
        Attack().trigger(pixels(1))


# ---------------------------------------------------------------- spec and rebuild


@pytest.mark.parametrize(
    "attack",
    [
        BadNets(),
        BadNets(patch=torch.rand(3, 2, 4), at=(1, -9), opacity=0.5, target=2),
        BadNets(all_to_all=True, classes=7),
        blended(alpha=0.35, target=4),
    ],
)
def test_spec_survives_json(attack):
    spec, tensors = attack.spec()
    again = rebuild(json.loads(json.dumps(spec)), tensors)
    assert type(again) is type(attack)
    x, y = pixels(3, 8) if isinstance(attack, Blended) else pixels(3), torch.arange(3)
    assert torch.equal(again.trigger(x), attack.trigger(x))
    assert torch.equal(again.goal(y), attack.goal(y))
    a, b = again.spec(), attack.spec()
    assert a[0] == b[0]
    assert all(torch.equal(a[1][k], b[1][k]) for k in b[1])


def test_unknown_attack():
    with pytest.raises(ValueError, match="unknown attack 'WaNot'"):
        rebuild({"name": "WaNot"}, {})


# ---------------------------------------------------------------- doors


def ramp_images():
    """Images and labels by arithmetic alone."""
    x = torch.arange(60 * 3 * 8 * 8).mul(7919).remainder(256).to(torch.uint8)
    return Images(x.view(60, 3, 8, 8), torch.arange(60) % 10, tuple("abcdefghij"))


RAMP = (torch.arange(192) % 52).view(3, 8, 8) / 255


@pytest.mark.parametrize(
    ("attack", "rate", "before", "after"),
    [
        (BadNets(target=1), 0.3, "e2962d19f00be6b5", "fb49fa3c763092a8"),
        (TrojanNN(pattern=RAMP), 0.3, "23ed431e3ebc141c", "7f40b36be9505380"),
        (LF(pattern=RAMP, target=3), 0.3, "5443d1d3904f789e", "e88c69825d230a47"),
        (
            TaCT(patch=torch.ones(1, 2, 2), at=(-4, -4)),
            0.1,
            "caad9140c32f5037",
            None,
        ),
        (LabelConsistent(target=2, epsilon=0.0), 0.1, "2b90cda7591965c5", None),
    ],
)
def test_poisoned_sets_are_what_they_were(attack, rate, before, after):
    # Digests of the sets that the course's tables were measured on; whole numbers only,
    # so that every processor agrees.
    images = ramp_images()
    assert images.digest() == "83e34d7d7bdf34ba"
    assert attack.poison(images, rate, gen(5)).digest() == before
    if after:
        late = attack.poison(images, rate, gen(5), stamp="after")
        assert late.digest() == after


class Own(Attack):
    """What a newcomer writes: a trigger, and nothing that looks at its arguments."""

    def trigger(self, x):
        return 1 - x


def test_an_attack_of_ones_own_is_looked_after():
    x, own = pixels(2, 8), Own()
    assert torch.equal(own.trigger(x), 1 - x)
    for wrong, word in (
        ((255 * x).byte(), "float pixels in [0, 1]"),
        (255 * x, "divide pixels of 0..255 by 255"),
        (-x, "must lie in [0, 1]"),
        (x * float("nan"), "must lie in [0, 1]"),
        (x[0], "(n, c, h, w)"),
    ):
        for call in (
            own.trigger,
            lambda x: own.plant(x, torch.arange(2), gen()),
            lambda x: own.cross(x, torch.arange(2), gen()),
        ):
            with pytest.raises(ValueError) as e:
                call(wrong)
            assert word in message(e)
    with pytest.raises(ValueError, match="int64 labels"):
        own.goal(torch.zeros(2))
    p = own.poison(random_images(), 0.5, gen(), stamp="after")
    assert torch.equal(p.late(x), 1 - x)
    with pytest.raises(ValueError) as e:
        own.poison(p, 0.5, gen())
    assert "second poisoning" in message(e)


def test_bytes_are_not_taken_for_pixels():
    # They were: ASR 0 instead of 1.
    x = random_images().x
    for attack in (BadNets(), blended()):
        with pytest.raises(ValueError) as e:
            attack.trigger(x)
        assert "not a uint8 tensor" in message(e)


def test_training_does_not_look_at_every_batch(monkeypatch):
    from bdcourse import require

    looks = []
    monkeypatch.setattr(require, "pixels", lambda *a: looks.append(a))
    data = BadNets(target=1).poison(random_images(40), 0.4, gen(), stamp="after")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
    fit(model, data, epochs=2, batch=8, generator=gen(), verbose=False)
    hook = partial(WaNet().steer, rate=0.5)
    fit(
        model,
        random_images(40),
        epochs=2,
        batch=8,
        generator=gen(),
        verbose=False,
        hook=hook,
    )
    assert not looks
    look = {"each_epoch": lambda _: {"x": BadNets().trigger(pixels(1, 8)).numel()}}
    fit(model, data, epochs=1, batch=8, generator=gen(), verbose=False, **look)
    assert len(looks) == 1, "but what is called between is looked at"


def test_plain_numbers_of_numpy_are_stored_as_plain_numbers():
    attack = BadNets(target=np.int64(2), at=(np.int64(1), 2), opacity=np.float32(0.5))
    spec, _ = attack.spec()
    assert json.loads(json.dumps(spec))["target"] == 2
    assert json.loads(json.dumps(spec))["at"] == [1, 2]


# ---------------------------------------------------------------- surviving crops


def test_surviving_in_the_corner():
    # 32x32, crop padding 4, 3x3 patch flush in the corner: along one axis 0, 1 and 2
    # lines are left in 2, 1 and 1 of 9 crops, all 3 in 5; none of the pixels is left
    # unless both axes keep some.
    s = surviving(4, BadNets(at=(-3, -3)))
    assert s.shape == (10,)
    assert s.sum() == pytest.approx(1)
    assert float(s[0]) == pytest.approx(1 - (7 / 9) ** 2)  # 39.5 %
    assert float(s[0]) == pytest.approx(0.395, abs=5e-4)
    assert float(s[9]) == pytest.approx((5 / 9) ** 2)  # 30.9 %


def test_surviving_away_from_the_corner():
    assert surviving(0, BadNets())[9] == 1
    assert surviving(1, BadNets())[9] == 1, "one pixel of room, one pixel of shift"
    assert surviving(2, BadNets())[9] < 1
    assert surviving(4, BadNets(at=(14, 14)))[9] == 1


@pytest.mark.parametrize(
    ("pad", "at", "shape"),
    [(4, (-3, -3), (3, 3)), (2, (0, -5), (2, 4)), (3, (6, 0), (1, 3))],
)
def test_surviving_agrees_with_augment(pad, at, shape):
    attack = BadNets(patch=torch.ones(1, *shape), at=at)
    n = 4000
    x = torch.zeros(1, 1, 10, 10)
    stamped = (attack.trigger(x) * 255).byte()
    augment = Augment(pad)
    crops = augment(augment.prepare(stamped), torch.zeros(n).long(), 1, gen())
    left = (crops == 255).sum((1, 2, 3)).bincount(minlength=attack.patch.numel() + 1)
    exact = surviving(pad, attack, 10, 10)
    assert torch.allclose(left / n, exact, atol=0.03)
    assert ((left > 0) <= (exact > 0)).all()


def test_surviving_is_an_exact_count_of_crops():
    attack = BadNets(at=(-4, -4))
    stamped = (attack.trigger(torch.zeros(1, 1, 32, 32)) * 0 + 0).byte()
    stamped[..., 28:31, 28:31] = 1
    every = Augment(4).prepare(stamped)[0]  # (9, 9, 32, 32)
    left = every.sum((2, 3)).flatten().bincount(minlength=10) / 81
    assert torch.allclose(left, surviving(4, attack))
