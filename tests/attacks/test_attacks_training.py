"""Attacks that steer the training: batches, roles, networks, and runs of seconds."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdcourse import metrics, signs, victims
from bdcourse.attacks import ATTACKS, ROLES, rebuild
from bdcourse.attacks.base import Attack, assemble, by_content, shares
from bdcourse.attacks.bpp import Bpp
from bdcourse.attacks.composite import Composite
from bdcourse.attacks.fba import FBA
from bdcourse.attacks.input_aware import InputAware
from bdcourse.attacks.lira import LIRA
from bdcourse.attacks.wanet import WaNet
from bdcourse.data import Images
from bdcourse.hooks import Hook, TrainBatch
from bdcourse.models import build, head
from bdcourse.train import Augment, fit
from helpers import gen, message, random_images
from steering import pixels, small, steer

STEERING = (WaNet, Bpp, Composite, InputAware, LIRA, FBA)


# ---------------------------------------------------------------- what all share


def test_by_content_depends_on_pixels_only():
    x = pixels(64)
    at = by_content(x, 7)
    assert at.min() >= 0 and at.max() < 7 and len(at.unique()) == 7
    order = torch.randperm(64, generator=gen())
    assert torch.equal(by_content(x[order], 7), at[order])
    assert torch.equal(by_content(x[:1], 7), at[:1])
    assert not torch.equal(by_content(x.flip(3), 7), at), "places count"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.floats(0, 1), st.floats(0, 6))
def test_shares_fit_into_the_batch(n, rate, cross):
    p, c = shares(n, rate, cross)
    assert 0 <= p and 0 <= c and p + c <= n
    assert (p == 0) == (rate == 0)
    if rate * n >= 1:
        assert abs(p - rate * n) <= 0.5
    if p + round(cross * p) <= n:
        assert c == round(cross * p)


def test_roles_come_in_order():
    x, y = pixels(6), torch.arange(6)
    batch, labels, role = assemble(x, y, 0 * x[:2], y[:2] + 7, 1 + 0 * x[2:5])
    assert role.tolist() == [1, 1, 2, 2, 2, 0] and role.dtype == torch.int64
    assert labels.tolist() == [7, 8, 2, 3, 4, 5]
    assert torch.equal(batch, torch.cat([0 * x[:2], 1 + 0 * x[2:5], x[5:]]))


@pytest.mark.parametrize("cls", STEERING)
def test_steering_attacks_do_not_poison_sets_and_others_do_not_steer(cls):
    images = random_images(40, side=16)
    attack = small(cls, images)
    assert attack.threat == "training"
    with pytest.raises(ValueError) as e:
        attack.poison(images, 0.1, gen())
    assert "changes batches during training" in message(e)
    with pytest.raises(ValueError, match="cannot steer a training"):
        steer(ATTACKS["BadNets"](), images)


@pytest.mark.parametrize("cls", STEERING)
@pytest.mark.parametrize("all_to_all", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_rewritten_batches(cls, rate, all_to_all):
    if cls is Composite and all_to_all:
        return  # refused, see below
    images = random_images(60, side=16)
    attack = small(cls, images, **({"all_to_all": True} if all_to_all else {}))
    driver = steer(attack, images, rate=rate)
    assert isinstance(driver, Hook)
    x, y = pixels(16), images.y[:16]
    x0, y0 = x.clone(), y.clone()
    out, labels, role = driver.rewrite(TrainBatch.clean(x, y))
    assert torch.equal(x, x0) and torch.equal(y, y0), "changed in place"
    assert out.shape[1:] == x.shape[1:] and len(out) == len(labels) == len(role)
    assert out.min() >= 0 and out.max() <= 1
    if cls is LIRA:
        assert torch.equal(out[:16], x) and torch.equal(labels[:16], y)
        assert role.tolist() == [0] * 16 + [1] * 16
        assert torch.equal(labels[16:], attack.goal(y))
        return
    poison, cover, clean = (role == ROLES[r] for r in ("poison", "cover", "clean"))
    assert int(poison.sum()) == 16 * rate
    want = (y + 1) % 3 if all_to_all else torch.full_like(y, attack.target)
    assert torch.equal(labels, torch.where(poison, want, y))
    assert torch.equal(out[clean], x[clean])
    if rate and cls is not Bpp:  # its lookalikes may happen to round to themselves
        changed = (out != x).flatten(1).any(1)
        assert changed[poison | cover].all()


@pytest.mark.parametrize("cls", STEERING)
@pytest.mark.parametrize("rate", [-0.1, 1.1, 10, float("nan")])
def test_impossible_rates_and_sets_do_not_steer(cls, rate):
    images = random_images(60, side=16)
    attack = small(cls, images)
    with pytest.raises(ValueError) as e:
        steer(attack, images, rate=rate)
    assert "0..1" in message(e)
    one = images[images.y == 1]
    with pytest.raises(ValueError):
        steer(attack, one)


@pytest.mark.parametrize("cls", STEERING)
def test_settings_that_all_refuse(cls):
    if cls is not Composite:  # has its own words
        with pytest.raises(ValueError) as e:
            cls(clean_label=True)
        assert "no clean-label form" in message(e)
    if cls is not LIRA:
        with pytest.raises(ValueError) as e:
            cls(cross_rate=-0.5)
        assert "of at least 0" in message(e)


@pytest.mark.parametrize("cls", STEERING)
def test_spec_survives_json(cls):
    images = random_images(60, side=16)
    attack = small(cls, images)
    if hasattr(attack, "trained"):
        attack.trained.fill_(1)
    spec, tensors = attack.spec()
    again = rebuild(json.loads(json.dumps(spec)), tensors)
    x, y = pixels(5), torch.arange(5) % 3
    assert type(again) is cls
    assert torch.equal(again.trigger(x), attack.trigger(x))
    assert torch.equal(again.goal(y), attack.goal(y))
    assert torch.equal(again.counts(y), attack.counts(y))
    assert again.spec()[0] == spec and again.spec()[1].keys() == tensors.keys()


@pytest.mark.slow
@pytest.mark.parametrize("cls", STEERING)
@settings(max_examples=8, deadline=None)
@given(st.integers(8, 21), st.integers(8, 21), st.sampled_from([1, 3]), st.integers(0, 4))
def test_triggers_at_any_size(cls, h, w, c, n):
    x = pixels(n, h, w, c)
    images = Images((pixels(9, h, w, c) * 255).byte(), torch.arange(9) % 3, tuple("abc"))
    attack = small(cls, images)
    if hasattr(attack, "trained"):
        attack.trained.fill_(1)
    before = x.clone()
    out = attack.trigger(x)
    assert out.shape == x.shape and out.dtype == x.dtype
    assert torch.equal(x, before), "changed in place"
    assert n == 0 or (out.min() >= 0 and out.max() <= 1)
    assert torch.equal(out, attack.trigger(x)), "not a function of the image"
    if n > 1:  # and of nothing else
        assert torch.allclose(attack.trigger(x[1:2]), out[1:2], atol=1e-6)


@pytest.mark.parametrize("cls", [InputAware, LIRA])
def test_an_untrained_generator_is_refused(cls):
    with pytest.raises(ValueError) as e:
        cls(filters=2).trigger(pixels())
    assert "no trained generator" in message(e)


@pytest.mark.parametrize(
    ("cls", "options", "word"),
    [
        (WaNet, {"grid": torch.zeros(3, 4, 4)}, "(2, k, k)"),
        (WaNet, {"grid": torch.zeros(2, 4, 5)}, "(2, k, k)"),
        (WaNet, {"strength": -1.0}, "at least 0"),
        (Bpp, {"levels": 1}, "2..255"),
        (Composite, {"sources": (1, 1)}, "three classes"),
        (Composite, {"target": 0}, "three classes"),
        (Composite, {"all_to_all": True, "classes": 3}, "neither"),
        (InputAware, {"density": 1.5}, "density"),
        (LIRA, {"epsilon": 0.0}, "epsilon"),
        (LIRA, {"alpha": 1.0}, "alpha"),
        (LIRA, {"filters": 0}, "filters"),
        (InputAware, {"mask_steps": 0}, "mask_steps"),
        (FBA, {"alpha": 1.2}, "alpha"),
        (FBA, {"compromised": 0.0}, "compromised"),
    ],
)
def test_bad_settings(cls, options, word):
    with pytest.raises(ValueError) as e:
        cls(**options)
    assert word in message(e)


@pytest.mark.parametrize("cls", [InputAware, LIRA, FBA])
def test_networks_for_other_images_are_refused(cls):
    attack = small(cls, random_images(30, side=16))
    with pytest.raises(ValueError, match="channels"):
        attack.check(random_images(30, side=16, c=1))


def test_head():
    for name, width in (("resnet18", 2), ("vgg16_bn", 2), ("vit", 8)):
        model = build(name, classes=7, width=width)
        assert head(model).out_features == 7
    with pytest.raises(ValueError, match="no linear layer"):
        head(torch.nn.Conv2d(1, 1, 1))


# ---------------------------------------------------------------- whole trainings


@pytest.mark.slow
@pytest.mark.parametrize("cls", STEERING)
def test_make_save_load_and_measure_again(cls, tmp_path):
    images = random_images(64, side=16)
    attack = small(cls, images)
    victim = victims.make(
        images,
        images,
        attack,
        arch={"name": "resnet18", "width": 2},
        rate=0.25,
        epochs=1,
        batch=16,
        verbose=False,
    )
    about = victim.recipe
    assert about["stamp"] == "after" and len(victim.poisoned) == 0
    assert about["n_poisoned"] == (64 if cls is LIRA else 16)
    assert victim.history[0]["n_clean"] + about["n_poisoned"] + about["n_cover"] == (
        128 if cls is LIRA else 64
    )
    if cls in (WaNet, Bpp, InputAware, FBA):
        assert 0 <= victim.scores.cross <= 1
    else:
        assert victim.scores.cross is None
    victims.save(victim, tmp_path / "v")
    again = victims.load(tmp_path / "v")
    assert metrics.evaluate(again.model, images, again.attack) == victim.scores
    victims.save(victim, tmp_path / "half", half=True)
    half = victims.load(tmp_path / "half")
    x = pixels(3)
    own = victim.attack
    assert torch.allclose(half.attack.trigger(x), own.trigger(x), atol=0.02)
    # The caller's attack stays as it was and can train another victim.
    if hasattr(attack, "trained"):
        assert own is not attack and own.trained and not attack.trained
        with pytest.raises(ValueError, match="trained with a victim already"):
            steer(own, images)
        with pytest.raises(ValueError, match="no trained generator"):
            replace(own, target=2).trigger(x)
    networks = [k for k in half.attack.spec()[1] if "." in k]
    assert bool(networks) == (cls in (InputAware, LIRA, FBA))


def test_all_to_all_passes_the_gate_at_its_ceiling():
    from bdcourse.metrics import Scores

    twin = Scores(0.93)
    model = build("resnet18", classes=3, width=2)
    for attack, weak in ((WaNet(all_to_all=True, classes=3), False), (WaNet(), True)):
        scores = Scores(0.92, asr=0.9)
        victim = victims.Victim(model, {}, attack, scores, {})
        assert bool(victim.weak(twin)) == weak


@pytest.mark.slow
def test_a_steered_training_depends_on_its_seed_only():
    images = random_images(48, side=16)
    arch = {"name": "resnet18", "width": 2}
    runs = [
        victims.make(
            images,
            images,
            small(LIRA, images),
            arch=arch,
            epochs=1,
            batch=16,
            seed=s,
            verbose=False,
        )
        for s in (0, 0, 1)
    ]
    w = [v.model.linear.weight for v in runs]
    assert torch.equal(w[0], w[1]) and not torch.equal(w[0], w[2])


class Blink(Attack):
    """Blackens the poison rows: learned at once."""

    threat = "training"

    def trigger(self, x):
        return torch.zeros_like(x)

    def rewrite(self, x, y, rate, generator):
        p, _ = shares(len(x), rate)
        return assemble(x, y, 0 * x[:p], 0 * y[:p], x[:0])


@pytest.mark.slow
def test_a_steered_training_plants_the_backdoor():
    images = signs.draw(360)
    torch.manual_seed(0)
    model = build("resnet18", classes=12, width=4)
    attack = Blink()
    history = fit(
        model,
        images,
        epochs=4,
        batch=20,
        augment=Augment(2),
        generator=gen(),
        hook=partial(attack.steer, rate=0.2),
        verbose=False,
    )
    assert history["n_poison"] == [72] * 4 and history["poison"][-1] > 0.9
    assert metrics.evaluate(model, images, attack).asr > 0.9
