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
from bdcourse.analysis import visibility
from bdcourse.attacks import ATTACKS, ROLES, rebuild
from bdcourse.attacks.base import Attack, assemble, by_content, shares
from bdcourse.attacks.bpp import Bpp
from bdcourse.attacks.composite import Composite, halves
from bdcourse.attacks.fba import FBA
from bdcourse.attacks.generators import EncoderDecoder, frozen
from bdcourse.attacks.input_aware import InputAware, diversity, train_mask
from bdcourse.attacks.lira import LIRA
from bdcourse.attacks.wanet import WaNet, control_grid, identity, warp
from bdcourse.data import Images
from bdcourse.hooks import Hook
from bdcourse.models import build, head, head_inputs
from bdcourse.train import Augment, fit
from helpers import gen, message, random_images

STEERING = (WaNet, Bpp, Composite, InputAware, LIRA, FBA)


def pixels(n=4, h=16, w=None, c=3, seed=0):
    return torch.rand(n, c, h, w or h, generator=gen(seed))


def small(cls, images, **options):
    """The attack at test size."""
    if cls is InputAware:
        options = {"filters": 2, "mask_steps": 2, "target": 1} | options
    elif cls is LIRA:
        options = {"filters": 2, "target": 1} | options
    elif cls is FBA:
        options = {"detox_steps": 2, "target": 1} | options
    elif cls is not Composite:
        options = {"target": 1} | options
    return cls.craft(images, gen(), **options)


def steer(attack, images, model=None, total=4, rate=0.25):
    model = model or build("resnet18", classes=images.k, width=2)
    return attack.steer(model, images, gen(1), total, rate=rate)


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
    out, labels, role = driver.rewrite(x, y)
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


# ---------------------------------------------------------------- WaNet


def test_wanet_at_strength_0_is_the_identity():
    for size in ((32, 32), (17, 24)):
        x = pixels(3, *size)
        assert torch.allclose(WaNet(strength=0.0).trigger(x), x, atol=1e-5)
        assert torch.allclose(warp(x, identity(*size, x)), x, atol=1e-5)


def test_wanet_moves_a_pixel_by_a_quarter():
    attack, x = WaNet(), pixels(1, 32)
    assert control_grid().abs().mean() == pytest.approx(1)
    # Half of the grid's -1..1 times the number of steps between pixel centres.
    moved = (attack.flow(x) - identity(32, 32, x)).abs() * 31 / 2
    at_control_points = 0.5 * 31 / (2 * 32)
    assert at_control_points == pytest.approx(0.242, abs=1e-3)
    assert 0.4 * at_control_points < moved.mean() < 1.6 * at_control_points
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    shift = (attack.trigger(ramp) - ramp) * 31  # in pixels, along x
    inside = attack.flow(ramp)[0].abs().amax(-1) < 1
    assert torch.allclose(
        shift[0, 0][inside],
        ((attack.flow(ramp) - identity(32, 32, ramp))[0, ..., 0] * 31 / 2)[inside],
        atol=1e-4,
    )


def test_wanet_noise_is_bounded_and_differs_from_the_trigger():
    attack, x = WaNet(strength=0.0), pixels(2, 32)
    ramp = torch.linspace(0, 1, 32).expand(2, 1, 32, 32)
    shift = (attack.noisy(ramp, gen()) - ramp).abs() * 31
    assert 0.1 < shift.mean() and shift.max() <= 31 / 64 + 1e-4
    assert torch.equal(attack.noisy(x, gen(3)), attack.noisy(x, gen(3)))
    assert not torch.equal(attack.noisy(x, gen(3)), attack.noisy(x, gen(4)))
    assert not torch.equal(attack.noisy(ramp, gen())[0], attack.noisy(ramp, gen())[1])


def test_wanet_without_noise_mode_has_no_cover():
    role = WaNet(cross_rate=0.0).rewrite(pixels(20), torch.zeros(20).long(), 0.2, gen())
    assert role[2].tolist() == [1] * 4 + [0] * 16


# ---------------------------------------------------------------- Bpp


@pytest.mark.parametrize("dither", [False, True])
@pytest.mark.parametrize("levels", [2, 8])
def test_bpp_has_its_levels_and_is_idempotent(dither, levels):
    attack = Bpp(levels=levels, dither=dither)
    out = attack.trigger(pixels(3, 32))
    values = (out * (levels - 1)).unique()
    assert torch.allclose(values, torch.arange(levels).float(), atol=1e-5)
    assert torch.allclose(attack.trigger(out), out, atol=1e-6)


def test_bpp_error_and_psnr():
    x = pixels(200, 32)
    out = Bpp().trigger(x)
    assert (out - x).abs().max() <= 1 / 14 + 1e-6
    assert visibility.psnr(out, x).mean() == pytest.approx(27.7, abs=0.1)


def test_dither_keeps_the_mean():
    x = torch.full((1, 1, 32, 32), 0.4)  # between two of the eight levels
    assert Bpp().trigger(x).mean() == pytest.approx(3 / 7)
    assert Bpp(dither=True).trigger(x).mean() == pytest.approx(0.4, abs=0.01)


def test_bpp_negative_carries_another_images_error():
    attack, x = Bpp(), 0.2 + 0.6 * pixels(4)
    other = pixels(4, seed=5)
    added = attack.negative(x, other) - x
    assert torch.allclose(added, attack.trigger(other) - other, atol=1e-6)
    assert attack.cross(x[:1], torch.zeros(1).long(), gen()) is None


# ---------------------------------------------------------------- Composite


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
    mixed, labels, role = steer(attack, images, rate=0.1).rewrite(x, y)
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
    mixed, _, role = steer(attack, images, rate=1.0).rewrite(images.pixels(), y)
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


# ---------------------------------------------------------------- generators


def test_encoder_decoder_starts_from_its_seed_and_frozen_keeps_its_state():
    state = torch.get_rng_state()
    a, b, c = (EncoderDecoder(3, 3, 2, s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    x = pixels()
    a.train()
    before = {k: v.clone() for k, v in a.state_dict().items()}
    out = frozen(a, x)
    assert a.training and not out.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in a.state_dict().items())
    assert torch.equal(out, frozen(b, x)) and not torch.equal(out, frozen(c, x))
    assert out.abs().max() <= 1


def test_diversity_falls_as_patterns_part():
    x1, x2 = pixels(3), pixels(3, seed=1)
    near = diversity(x1, x2, x1, x1 + 0.01)
    far = diversity(x1, x2, x1, x1 + 0.1)
    assert near == pytest.approx(10 * float(far), rel=1e-3)
    same = diversity(x1, x2, x1.requires_grad_(), x1)
    same.backward()  # equal patterns: large, but finite, and so is its gradient
    assert same.isfinite() and x1.grad.isfinite().all()


def test_input_aware_mask_reaches_its_density_and_only_it_changes():
    images = signs.draw(96)
    attack = InputAware.craft(images, gen(), filters=4, mask_steps=60)
    course = train_mask(attack, images, gen(), batch=16)
    assert len(course) == 60
    m = attack.masked(frozen(attack.mask, images.pixels()))
    assert 0.003 < m.mean() < 0.05, "the paper's density is 0.032"
    assert m.flatten(1).var(0).max() > 1e-4, "masks differ between images"
    attack.trained.fill_(1)
    x = images.pixels()[:20]
    out, m = attack.trigger(x), m[:20].expand(-1, 3, -1, -1)
    assert (out - x)[m < 1e-6].abs().max() < 1e-5
    assert ((out - x).abs() <= m + 1e-6).all()
    of = attack.trigger(x, of=x.flip(0))
    assert not torch.equal(of, out)


def test_input_aware_trains_pattern_and_not_mask():
    images = random_images(60, side=16)
    attack = small(InputAware, images)
    model = build("resnet18", classes=3, width=2)
    mask_before = None
    start = {k: v.clone() for k, v in attack.pattern.state_dict().items()}

    def steering(*args):
        nonlocal mask_before
        driver = attack.steer(*args, rate=0.25)
        mask_before = {k: v.clone() for k, v in attack.mask.state_dict().items()}
        return driver

    fit(model, images, epochs=1, batch=16, generator=gen(), steering=steering, verbose=False)
    after = attack.pattern.state_dict()
    assert any(not torch.equal(after[k], v) for k, v in start.items())
    masks = attack.mask.state_dict()
    assert all(torch.equal(masks[k], v) for k, v in mask_before.items())
    assert not attack.pattern.training and attack.trained


def test_lira_stays_within_epsilon_and_learns_only_in_its_first_half():
    images = random_images(64, side=16)
    attack = small(LIRA, images, epsilon=0.1)
    model = build("resnet18", classes=3, width=2).train()
    driver = attack.steer(model, images, gen(), 8)
    x, y = images.pixels()[:16], images.y[:16]
    assert (attack.trigger(x) - x).abs().max() <= 0.1 + 1e-6
    states = []
    for _ in range(8):
        out, labels, _ = driver.rewrite(x, y)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        driver.loss(model(out), labels).backward()
        assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items()), (
            "BatchNorm statistics move in training"
        )
        model.zero_grad()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        driver.step()
        assert model.training and all(p.grad is None for p in model.parameters())
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        states.append(attack.net.state_dict()["last.weight"].clone())
    # 64 images in batches of 16: T becomes its copy after steps 4 and, at the end of
    # stage 1, also 4; never in stage 2.
    assert torch.equal(states[0], states[2]) and not torch.equal(states[2], states[3])
    assert all(torch.equal(states[3], s) for s in states[4:])


def test_lira_weighs_its_losses():
    attack = LIRA(filters=2, alpha=0.8)
    driver = attack.steer(build("resnet18", width=2), random_images(20, 10), gen(), 2)
    logits = torch.zeros(4, 2)
    logits[:2, 0] = 30.0  # clean rows right, poisoned rows undecided
    y = torch.zeros(4).long()
    half = torch.log(torch.tensor(2.0))
    assert driver.loss(logits, y) == pytest.approx(0.2 * float(half), abs=1e-5)


def test_fba_style_warms_and_blurs():
    grey = torch.full((1, 3, 16, 16), 0.5)
    out = FBA(alpha=1.0).trigger(grey)[0]
    assert out[0, 0, 0] == pytest.approx(0.5**0.6, abs=1e-5)
    assert (out[0] > out[1]).all() and (out[1] > out[2]).all()
    assert (out[:, 0] > out[:, -1]).all()
    dot = torch.zeros(1, 3, 9, 9)
    dot[..., 4, 4] = 1
    spread = FBA(alpha=1.0).trigger(dot)[0, 1] > 0
    assert spread.sum() == 9
    half, x = FBA(alpha=0.5), pixels(2)
    assert torch.allclose(half.trigger(x), (x + half.style(x)) / 2, atol=1e-6)


def test_fba_detoxifies_on_schedule_and_leaves_the_model_alone():
    images = random_images(60, side=16)
    attack = small(FBA, images, rounds=2)
    model = build("resnet18", classes=3, width=2).train()
    driver = attack.steer(model, images, gen(), 20, rate=0.25)
    assert driver.when == {8, 13}
    x, y = images.pixels()[:16], images.y[:16]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    start = {k: v.clone() for k, v in attack.detox.state_dict().items()}
    for step in range(1, 9):
        role = driver.rewrite(x, y)[2]
        assert (role == ROLES["cover"]).sum() == 0, step
        driver.step()
    assert (driver.rewrite(x, y)[2] == ROLES["cover"]).sum() == 4
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    after = attack.detox.state_dict()
    assert any(not torch.equal(after[k], v) for k, v in start.items())
    assert (attack.decoy(x) - x).abs().max() <= 0.2 + 1e-6


def test_detoxified_images_raise_the_compromised_inputs():
    images = signs.draw(120)
    model = build("resnet18", classes=12, width=4)
    attack = FBA.craft(images, gen(), detox_steps=40)
    driver = attack.steer(model.train(), images, gen(), 10, rate=0.1)
    driver.detoxify(batch=32)
    model.eval()
    with torch.no_grad():
        x = images.pixels()[:60]
        clean, styled = (
            head_inputs(model, x).mean(0),
            head_inputs(model, attack.trigger(x)),
        )
        top = (styled.mean(0) - clean).argmax()
        decoy = head_inputs(model, attack.decoy(x)).mean(0)
    assert decoy[top] > clean[top] + 0.5 * (styled.mean(0)[top] - clean[top])


def test_head():
    for name, width in (("resnet18", 2), ("vgg16_bn", 2), ("vit", 8)):
        model = build(name, classes=7, width=width)
        assert head(model).out_features == 7
    with pytest.raises(ValueError, match="no linear layer"):
        head(torch.nn.Conv2d(1, 1, 1))


# ---------------------------------------------------------------- whole trainings


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
        steering=partial(attack.steer, rate=0.2),
        verbose=False,
    )
    assert history["n_poison"] == [72] * 4 and history["poison"][-1] > 0.9
    assert metrics.evaluate(model, images, attack).asr > 0.9


# ---------------------------------------------------------------- visibility


def test_psnr_and_ssim():
    x = pixels(4, 32)
    assert visibility.psnr(x, (x + 0.1)).tolist() == pytest.approx([20.0] * 4, abs=1e-3)
    assert visibility.psnr(x, x).isinf().all()
    assert torch.allclose(visibility.ssim(x, x), torch.ones(4))
    noise = 0.1 * torch.randn(4, 3, 32, 32, generator=gen())
    near, far = visibility.ssim(x, x + noise / 4), visibility.ssim(x, x + noise)
    assert (far < near).all() and (near < 1).all() and (far > 0).all()
    # A constant shift by d of a constant image m: structure and contrast are equal.
    m, d = torch.full((1, 1, 16, 16), 0.5), 0.2
    want = (2 * 0.5 * 0.7 + 1e-4) / (0.5**2 + 0.7**2 + 1e-4)
    assert visibility.ssim(m, m + d).item() == pytest.approx(want, abs=1e-6)
    with pytest.raises(ValueError, match="11x11"):
        visibility.ssim(pixels(1, 8), pixels(1, 8))


def test_ssim_agrees_with_a_loop():
    a, b = pixels(1, 13, 12, 1).double(), pixels(1, 13, 12, 1, seed=2).double()
    line = torch.exp(-((torch.arange(11).double() - 5) ** 2) / 4.5)
    w = line[:, None] * line / line.sum() ** 2
    total = []
    for i in range(3):
        for j in range(2):
            p, q = a[0, 0, i : i + 11, j : j + 11], b[0, 0, i : i + 11, j : j + 11]
            mp, mq = (w * p).sum(), (w * q).sum()
            vp, vq = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum()
            cov = (w * (p - mp) * (q - mq)).sum()
            top = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4)
            total.append(top / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    want = torch.stack(total).mean().item()
    assert visibility.ssim(a, b).item() == pytest.approx(want, abs=1e-6)
