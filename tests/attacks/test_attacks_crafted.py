"""Attacks that are computed on a model or by one: LC, TrojanNN, LF and SSBA."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bdcourse.attacks
from bdcourse.attacks import ROLES, Attack, rebuild
from bdcourse.attacks.label_consistent import (
    AdversarialTraining,
    LabelConsistent,
    corners,
    pgd,
)
from bdcourse.attacks.low_frequency import LF, deepfool, rescale, smooth
from bdcourse.attacks.ssba import SSBA, as_stored, layout, messages, ramp
from bdcourse.attacks.trojan import TrojanNN, disc, excitation, neurons
from bdcourse.data import Images
from bdcourse.models import build, fingerprint
from bdcourse.train import fit
from helpers import frozen, gen, message, random_images, randomise_norms, same_state


def net(name: str = "resnet18", k: int = 3, width: int = 4, seed: int = 0) -> nn.Module:
    """An untrained network with the BatchNorms of one in use."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomise_norms(build(name, classes=k, width=width), seed)


def two_signs(n: int = 64, side: int = 8, seed: int = 0) -> Images:
    """Two classes told apart by a faint checkerboard, and nearly by brightness.

    The checkerboard (4 levels) is always right and falls to 8 levels of perturbation;
    brightness (30 levels) is wrong in one of ten images and stands them.
    """
    y, g = torch.arange(n) % 2, gen(seed)
    sign = (2.0 * y - 1).view(-1, 1, 1, 1)
    i = torch.arange(side)
    board = 2.0 * ((i[:, None] + i) % 2) - 1
    wrong = (torch.rand(n, 1, 1, 1, generator=g) < 0.1).float()
    x = 128 + sign * 4 * board + sign * (1 - 2 * wrong) * 30
    x = x + 4 * torch.randn(n, 3, side, side, generator=g)
    return Images(x.round().clamp(0, 255).byte(), y, ("dark", "bright"))


class Centred(nn.Module):
    def forward(self, x):
        return 10 * (x - 0.5)


class Looks(nn.Module):
    """Class 1 if the chosen rows are bright, 0 if they are dark."""

    def __init__(self, rows: slice) -> None:
        super().__init__()
        self.rows, self.scale = rows, nn.Parameter(torch.tensor(5.0))

    def forward(self, x):
        level = x[..., self.rows, :].mean((1, 2, 3)) - 0.5
        return torch.stack([-self.scale * level, self.scale * level], 1)


def pixels(n: int = 4, side: int = 8, seed: int = 0):
    return torch.rand(n, 3, side, side, generator=gen(seed))


def losses(model, x, y):
    with torch.no_grad():
        return F.cross_entropy(model(x), y, reduction="none")


# ---------------------------------------------------------------- PGD


def test_pgd_stays_in_the_ball_and_raises_the_loss():
    model, x, y = net(), pixels(6), torch.arange(6) % 3
    x[0], x[1] = 0, 1  # the box matters here
    hard = pgd((model,), x, y, 8 / 255, 2 / 255, 10, gen())
    assert (hard - x).abs().max() <= 8 / 255 + 1e-6
    assert hard.min() >= 0 and hard.max() <= 1
    assert (hard - x).abs().amax((1, 2, 3)).min() > 7.9 / 255, "it uses the ball"
    assert (losses(model, hard, y) > losses(model, x, y)).all()
    more = losses(model, pgd((model,), x, y, 16 / 255, 2 / 255, 20, gen()), y)
    assert more.mean() > losses(model, hard, y).mean()
    assert not hard.requires_grad


def test_pgd_starts_at_random_and_reproduces():
    model, x, y = net(), pixels(6), torch.arange(6) % 3
    a, b, c = (pgd((model,), x, y, 0.1, 0.01, 2, gen(s)) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    start = pgd((model,), x, y, 0.1, 0.01, 0, gen(9))
    inside = (x > 0.1) & (x < 0.9)
    moved = (start - x)[inside]
    assert moved.min() < -0.09 and moved.max() > 0.09, "the whole ball"
    assert moved.mean().abs() < 0.01
    assert torch.equal(pgd((model,), x, y, 0.0, 0.01, 3, gen()), x)


def test_pgd_leaves_the_models_alone():
    models = (net(seed=0), net("preact_resnet18", seed=1))
    models[0].train()
    models[1].layer1.train()
    modes = [[m.training for m in model.modules()] for model in models]
    before = [frozen(m) for m in models]
    pgd(models, pixels(4), torch.arange(4) % 3, 0.1, 0.02, 3, gen())
    assert modes == [[m.training for m in model.modules()] for model in models]
    for model, state in zip(models, before, strict=True):
        assert same_state(model, state), "BatchNorm statistics moved"
        assert all(p.grad is None for p in model.parameters())
    # Eval mode: what is computed for an image does not depend on its neighbours.
    x, y = pixels(4), torch.arange(4) % 3
    flip = torch.cat([x[:1], 1 - x[1:]])  # the same start for the first image
    one, two = (pgd(models[:1], i, y, 0.1, 0.02, 3, gen(3))[0] for i in (x, flip))
    assert torch.allclose(one, two, atol=1e-5)


def test_pgd_ensemble_raises_the_mean_loss():
    a, b = Looks(slice(0, 4)), Looks(slice(4, 8))
    x, y = pixels(12) / 2 + 0.25, torch.arange(12) % 2
    attack = partial(pgd, x=x, y=y, epsilon=0.1, step=0.02, steps=15)
    only, both = attack((a,), generator=gen(9)), attack((a, b), generator=gen(9))
    rise = [[(losses(m, h, y) - losses(m, x, y)).mean() for m in (a, b)] for h in (only, both)]
    assert rise[0][0] > 0.3 and abs(rise[0][1]) < 0.1, "b was not asked"
    assert rise[1][0] > 0.3 and rise[1][1] > 0.3, "one surrogate has no say"
    # Losses are averaged: twice the same model is the model.
    assert torch.equal(attack((a, a), generator=gen(9)), only)
    with pytest.raises(ValueError, match="at least one model"):
        attack((), generator=gen())


def test_pgd_works_where_gradients_are_off():
    model, x, y = net(), pixels(2), torch.arange(2)
    with torch.no_grad():
        hard = pgd((model,), x, y, 0.1, 0.02, 3, gen())
    assert torch.equal(hard, pgd((model,), x, y, 0.1, 0.02, 3, gen()))


# ---------------------------------------------------------------- adversarial training


def test_fast_adversarial_step_leaves_no_trace():
    model = net().train()
    before = frozen(model)
    steering = AdversarialTraining(model, random_images(), gen(9), 10)
    x, y = pixels(8), torch.arange(8) % 3
    hard, labels, role = steering.rewrite(x, y)
    assert same_state(model, before), "the inner step updated BatchNorm"
    assert all(p.grad is None for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert torch.equal(labels, y)
    assert role.dtype == torch.int64 and (role == ROLES["clean"]).all()
    assert (hard - x).abs().max() <= 8 / 255 + 1e-6
    assert hard.min() >= 0 and hard.max() <= 1
    # From a uniform start, 1.25 epsilon leaves 3 of 8 pixels short of the rim.
    inside = (x > 0.1) & (x < 0.9)
    short = (hard - x).abs()[inside] < 7.999 / 255
    assert 0.33 < short.float().mean() < 0.42
    model.eval()
    assert losses(model, hard, y).mean() > losses(model, x, y).mean()


def test_fast_adversarial_options():
    model, x = net(), pixels(4)
    make = partial(AdversarialTraining, model, random_images(), gen(), 10)
    assert make(epsilon=0.02).stride == pytest.approx(0.025)
    assert make(epsilon=0.02, step=0.01).stride == 0.01
    hard, *_ = make(epsilon=0.02).rewrite(x, torch.arange(4) % 3)
    assert 0.0199 < (hard - x).abs().max() < 0.0201
    with pytest.raises(ValueError) as e:
        make(epsilon=8)
    assert "epsilon" in message(e)


def test_adversarial_training_makes_robust():
    train, test = two_signs(256), two_signs(128, seed=1)
    x, y = test.pixels(), test.y
    scores = {}
    for name, steering in (("plain", None), ("robust", AdversarialTraining)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(Centred(), nn.Flatten(), nn.Linear(192, 2))
        history = fit(
            model,
            train,
            epochs=30,
            lr=0.1,
            generator=gen(),
            steering=steering,
            verbose=False,
        )
        assert not history.interrupted
        hard = pgd((model,), x, y, 8 / 255, 2 / 255, 10, gen())
        right = [(model(i).argmax(1) == y).float().mean().item() for i in (x, hard)]
        scores[name] = right
    assert scores["robust"][0] > 0.8 and scores["plain"][0] > 0.95, scores
    assert scores["robust"][1] > scores["plain"][1] + 0.3, scores


# ---------------------------------------------------------------- label-consistent


def test_corners():
    p = corners(8, 10)
    assert p.shape == (1, 8, 10)
    block = [[1, -1, 1], [-1, 1, -1], [1, -1, 1]]
    for rows in (slice(0, 3), slice(5, 8)):
        for cols in (slice(0, 3), slice(7, 10)):
            assert p[0, rows, cols].tolist() == block
    assert (p != 0).sum() == 36


def test_amplitude_one_overwrites_and_less_adds():
    x = pixels(3)
    out = LabelConsistent().trigger(x)
    p = corners(8, 8).expand_as(x)
    assert torch.equal(out[p != 0], (p[p != 0] > 0).float())
    assert torch.equal(out[p == 0], x[p == 0])
    faint = LabelConsistent(amplitude=32 / 255).trigger(x)
    assert torch.allclose(faint, (x + 32 / 255 * p).clamp(0, 1))
    assert (faint - x).abs().max() == pytest.approx(32 / 255, abs=1e-6)
    assert faint.min() >= 0 and faint.max() <= 1


def test_label_consistent_plants_adversarial_images_with_the_patch():
    images, model = random_images(60), net()
    attack = LabelConsistent(target=1, surrogates=(model,), steps=8)
    before = images.digest()
    p = attack.poison(images, 0.2, gen())
    assert images.digest() == before
    assert torch.equal(p.y, images.y), "no label ever changes"
    bad = p.role == ROLES["poison"]
    assert int(bad.sum()) == 12 and (p.y[bad] == 1).all()
    assert torch.equal(p.x[~bad], images.x[~bad])
    body = corners(8, 8)[0] == 0
    moved = (p.x[bad].int() - images.x[bad].int())[..., body]
    assert moved.abs().max() == 8, "8 levels, also after rounding"
    x, y = images.x[bad].float() / 255, images.y[bad]
    hard = p.x[bad].float() / 255
    assert losses(model, hard, y).mean() > losses(model, attack.trigger(x), y).mean()
    white = corners(8, 8)[0] > 0
    assert (p.x[bad][..., white] == 255).all()
    # The test trigger is the patch alone.
    assert torch.equal(attack.trigger(x), LabelConsistent(epsilon=0.0).trigger(x))


def test_patch_only_control_needs_no_surrogate():
    images = random_images(60)
    attack = LabelConsistent(target=1, epsilon=0.0)
    p = attack.poison(images, 0.2, gen())
    bad = p.role == ROLES["poison"]
    assert torch.equal(p.y, images.y) and int(bad.sum()) == 12
    want = (attack.trigger(images.x[bad].float() / 255) * 255).round().byte()
    assert torch.equal(p.x[bad], want)


def test_label_consistent_many_images_in_pieces():
    images = random_images(900)
    attack = LabelConsistent(target=1, surrogates=(net(width=2),), steps=1)
    p = attack.poison(images, 0.3, gen())
    bad = p.role == ROLES["poison"]
    assert int(bad.sum()) == 270
    moved = (p.x[bad].int() - images.x[bad].int())[..., corners(8, 8)[0] == 0]
    assert (moved.abs() > 0).flatten(1).any(1).all(), "some image was not perturbed"


def test_label_consistent_refuses():
    with pytest.raises(ValueError) as e:
        LabelConsistent(target=1).poison(random_images(), 0.1, gen())
    assert "surrogates" in message(e) and "epsilon=0" in message(e)
    with pytest.raises(ValueError) as e:  # 8 of 24 images are of the class
        LabelConsistent(target=1, epsilon=0.0).poison(random_images(), 0.5, gen())
    assert "12 images, but only 8" in message(e)
    with pytest.raises(ValueError, match="6x6"):
        LabelConsistent(epsilon=0.0).poison(random_images(side=5), 0.1, gen())
    with pytest.raises(ValueError, match='"before"'):
        LabelConsistent(epsilon=0.0).poison(random_images(), 0.1, gen(), stamp="after")
    for options, word in (
        ({"epsilon": 8.0}, "epsilon"),
        ({"epsilon": -0.1}, "epsilon"),
        ({"amplitude": 0.0}, "amplitude"),
        ({"amplitude": 32.0}, "amplitude"),
        ({"steps": 0}, "steps"),
        ({"all_to_all": True, "classes": 3}, "clean-label"),
    ):
        with pytest.raises(ValueError) as e:
            LabelConsistent(**options)
        assert word in message(e)


def test_label_consistent_craft_takes_the_model_as_surrogate():
    images, a, b = random_images(), net(), net(seed=1)
    assert LabelConsistent.craft(images, gen(), model=a).surrogates == (a,)
    both = LabelConsistent.craft(images, gen(), model=a, surrogates=(a, b), target=2)
    assert both.surrogates == (a, b) and both.target == 2
    assert LabelConsistent.craft(images, gen(), epsilon=0.0).surrogates == ()


# ---------------------------------------------------------------- what crafting shares


def test_fingerprint():
    a, b = net(seed=0), net(seed=0)
    assert fingerprint(a) == fingerprint(b)
    assert len(fingerprint(a)) == 12 and int(fingerprint(a), 16) >= 0
    assert fingerprint(a.to(memory_format=torch.channels_last)) == fingerprint(b)
    assert fingerprint(a.train()) == fingerprint(b)
    with torch.no_grad():
        b.layer4[1].bn2.running_mean[-1] += 1e-3
    assert fingerprint(a) != fingerprint(b)
    assert fingerprint(nn.Linear(2, 3)) != fingerprint(nn.Linear(3, 2))


@pytest.mark.parametrize("cls", [TrojanNN, LF])
def test_crafting_leaves_the_model_alone(cls):
    model, images = net(), random_images(k=3)
    model.layer1.train()
    modes, before = [m.training for m in model.modules()], frozen(model)
    few = {"iterations": 3} if cls is TrojanNN else {"passes": 1, "sample": 4}
    attack = cls.craft(images, gen(), model=model, **few)
    assert modes == [m.training for m in model.modules()]
    assert same_state(model, before)
    assert all(p.grad is None for p in model.parameters())
    assert attack.made_on == fingerprint(model)


@pytest.mark.parametrize("cls", [TrojanNN, LF])
def test_patterns_refused(cls):
    images = random_images()
    for make in (cls, partial(cls.craft, images, gen())):
        with pytest.raises(ValueError) as e:
            make()
        assert "model=..." in message(e)
    for pattern, word in (
        (torch.zeros(8, 8), "(8, 8)"),
        (torch.full((3, 8, 8), 51.0), "[0, "),
        (torch.full((3, 8, 8), -0.1), "[0, "),
        (torch.full((3, 8, 8), float("nan")), "[0, "),
    ):
        with pytest.raises(ValueError) as e:
            cls(pattern=pattern)
        assert word in message(e)
    for other in (random_images(side=12), random_images(c=1)):
        with pytest.raises(ValueError) as e:
            cls(pattern=torch.zeros(3, 8, 8)).poison(other, 0.1, gen())
        assert "(3, 8, 8)" in message(e)


# ---------------------------------------------------------------- TrojanNN


def test_disc():
    d = disc(32, 32)
    assert d.sum() == 113
    rows, cols = d.nonzero().T
    assert (rows.min(), rows.max(), cols.min(), cols.max()) == (18, 30, 18, 30)
    assert disc(32, 32, 2).sum() == 13
    assert disc(16, 24)[12, 18] and not disc(16, 24)[11:, :14].any()
    with pytest.raises(ValueError, match="radius"):
        disc(32, 32, 0.5)


def test_neurons_are_the_strongest_inputs_of_the_head():
    model = net()
    with torch.no_grad():
        model.linear.weight.fill_(0.1)
        model.linear.weight[:, 7] = torch.tensor([0.0, -5.0, 0.0])
        model.linear.weight[:, 2] = 1.0
        model.linear.weight[:, 4] = torch.tensor([2.0, -2.0, 0.0])
    assert neurons(model).tolist() == [7, 4]
    with pytest.raises(ValueError) as e:
        neurons(nn.Conv2d(3, 3, 1))
    assert "linear" in message(e)


def test_excitation_reads_the_head():
    model, x = net(), pixels(3, 16)
    both = excitation(model, x, torch.arange(32))
    assert torch.allclose(model.linear(both), model(x), atol=1e-5)
    assert not model.linear._forward_pre_hooks, "a hook was left behind"


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "vgg16_bn"])
def test_trojan_pattern(name):
    images, side = random_images(k=3, side=32), 32
    model = net(name, width=2)
    attack = TrojanNN.craft(images, gen(), model=model, iterations=20)
    p, mask = attack.pattern, disc(side, side)
    assert p.shape == images.shape
    assert (p[:, ~mask] == 0).all(), "zero outside the disc"
    assert p[:, mask].min() >= 0.2 - 2e-3 and p[:, mask].max() <= 0.8 + 2e-3
    assert torch.allclose(p * 255, (p * 255).round(), atol=1e-4), "8-bit levels"
    # Nothing but the activations of these two neurons counts, and they come closer.
    chosen = neurons(model)
    assert attack.neurons == tuple(chosen.tolist())
    start = 0.5 * mask.float().expand(1, 3, side, side)
    with torch.no_grad():
        first, last = (excitation(model, i, chosen) for i in (start, p[None]))
    assert attack.excited == pytest.approx((first.mean().item(), last.mean().item()))
    assert last.mean() > first.mean(), "activations rise towards 100"
    assert (last - 100).square().sum() < (first - 100).square().sum()


def test_trojan_value_is_a_goal_and_not_a_direction():
    model, images = net(), random_images(side=16)
    high = TrojanNN.craft(images, gen(), model=model, iterations=15)
    low = TrojanNN.craft(images, gen(), model=model, iterations=15, value=-100.0)
    assert low.excited[0] == high.excited[0]
    assert low.excited[1] < low.excited[0] < high.excited[1]


def test_trojan_box_and_disc_are_options():
    model, images = net(), random_images(side=16)
    craft = partial(TrojanNN.craft, images, gen(), model=model)
    a = craft(iterations=10, epsilon=0.1, step=0.05, start=0.3, radius=2)
    mask = disc(16, 16, 2)
    inside = a.pattern[:, mask]
    assert (a.pattern[:, ~mask] == 0).all()
    assert 0.198 <= inside.min() < 0.21 and 0.39 < inside.max() <= 0.402
    # Without iterations it is the grey disc.
    assert torch.allclose(craft(iterations=0).pattern[:, disc(16, 16)], torch.tensor(128 / 255))


def test_trojan_reproduces():
    model, images = net(), random_images(side=16)
    a, b = (TrojanNN.craft(images, gen(), model=m, iterations=5) for m in (model, model))
    assert torch.equal(a.pattern, b.pattern)
    c = TrojanNN.craft(images, gen(), model=net(seed=4), iterations=5)
    assert not torch.equal(a.pattern, c.pattern) and a.made_on != c.made_on


def test_saturating_and_wrapping_are_different_triggers():
    p = torch.zeros(3, 8, 8)
    p[:, 4:, 4:] = 200 / 255
    x8 = random_images(16).x
    x = x8.float() / 255
    clip, wrap = TrojanNN(pattern=p).trigger(x), TrojanNN(pattern=p, wrap=True)
    p8 = (p * 255).round().int()
    assert torch.equal((wrap.trigger(x) * 255).round().int(), (x8.int() + p8) % 256)
    assert torch.allclose(clip, ((x8.int() + p8).clamp(max=255)) / 255.0, atol=1e-6)
    assert not torch.allclose(clip, wrap.trigger(x))
    assert wrap.trigger(x).min() >= 0 and wrap.trigger(x).max() <= 1
    assert torch.equal(wrap.trigger(x)[..., :4, :], x[..., :4, :])


def test_trojan_all_to_all():
    images = random_images(30, side=16)
    attack = TrojanNN.craft(images, gen(), model=net(), iterations=2, all_to_all=True, wrap=True)
    assert attack.classes == 3 and attack.wrap
    p = attack.poison(images, 0.4, gen())
    bad = p.role == 1
    assert torch.equal(p.y[bad], (images.y[bad] + 1) % 3)


# ---------------------------------------------------------------- LF


def low_share(p, cycles: int = 3) -> float:
    """Share of the energy, without the mean, at up to so many cycles an image.

    Of the mirrored image, as in a DCT: the step from one edge to the other is no
    frequency of the picture.
    """
    p = p - p.mean((1, 2), keepdim=True)
    p = torch.cat([p, p.flip(1)], 1)
    p = torch.cat([p, p.flip(2)], 2)
    energy = torch.fft.fft2(p).abs().square().sum(0)
    f = torch.fft.fftfreq(p.shape[1]) * p.shape[1]
    near = (f.abs()[:, None] <= 2 * cycles) & (f.abs() <= 2 * cycles)
    return float(energy[near].sum() / energy.sum())


def test_smooth_is_a_gaussian():
    v = torch.zeros(2, 65, 65)
    v[0, 32, 32] = 1
    out = smooth(v, sigma=3, taps=31)
    assert out.shape == v.shape and (out[1] == 0).all()
    assert out[0].sum() == pytest.approx(1, abs=1e-4)
    ratio = float(out[0, 32, 35] / out[0, 32, 32])
    assert ratio == pytest.approx(2.718281828**-0.5, abs=1e-3), "one sigma away"
    flat = smooth(torch.full((1, 8, 8), 0.3))
    assert torch.allclose(flat, torch.full_like(flat, 0.3), atol=1e-6)


def test_rescale_fills_the_range():
    p = rescale(torch.randn(3, 8, 8, generator=gen()) * 7 - 3)
    assert p.min() == 0 and p.max() == pytest.approx(0.2)
    assert torch.allclose(p * 255, (p * 255).round(), atol=1e-4)
    assert (rescale(torch.full((3, 4, 4), 2.0)) == 0).all()


def test_deepfool_step_reaches_the_boundary_of_a_linear_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)).eval()
    x = pixels(5)
    top = model(x).argmax(1)
    goal = (top + torch.tensor([0, 1, 2, 3, 1])) % 4
    step = deepfool(model, x, goal)
    with torch.no_grad():
        after = model(x + step)
    for i in range(5):
        if top[i] == goal[i]:
            assert (step[i] == 0).all()
        else:
            gap = after[i, top[i]] - after[i, goal[i]]
            assert abs(gap) < 1e-4, "prediction and goal tie"
            # The shortest way is along the difference of the two rows.
            w = model[1].weight[goal[i]] - model[1].weight[top[i]]
            cos = F.cosine_similarity(step[i].flatten(), w, dim=0)
            assert cos.item() == pytest.approx(1, abs=1e-4)


class Brighter(nn.Module):
    """Class 1 if the lower half is brighter than the upper one."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x):
        side = x.shape[-2] // 2
        gap = x[..., side:, :].mean((1, 2, 3)) - x[..., :side, :].mean((1, 2, 3))
        return torch.stack([-self.scale * gap, self.scale * gap], 1)


def halves(n: int = 40, side: int = 32, gap: float = 12.0) -> Images:
    """Class 1 is brighter below, class 0 above, by `gap` levels; noise on both."""
    y = torch.arange(n) % 2
    x = 128 + 10 * torch.randn(n, 3, side, side, generator=gen())
    x[:, :, side // 2 :] += gap * (2.0 * y - 1).view(-1, 1, 1, 1)
    return Images(x.round().clamp(0, 255).byte(), y, ("up", "down"))


def test_lf_finds_what_the_model_looks_at():
    images, model = halves(), Brighter()
    attack = LF.craft(images, gen(), model=model, target=1, passes=3, enough=0.9)
    p = attack.pattern
    assert p.shape == images.shape and p.min() == 0
    assert p.max() == pytest.approx(0.2) and torch.equal(p, p.clamp(0, 0.2))
    assert low_share(p) > 0.95
    assert low_share(torch.rand(3, 32, 32, generator=gen())) < 0.2, "unlike noise"
    assert p[:, 20:].mean() > p[:, :12].mean() + 0.1, "brighter below"
    other = LF.craft(images, gen(), model=model, target=0, passes=3, enough=0.9)
    assert other.pattern[:, 20:].mean() < other.pattern[:, :12].mean() - 0.1
    # The rate is of images that are not the target yet, and it can be measured again.
    x = images[images.y == 0].pixels()
    again = (model(attack.trigger(x)).argmax(1) == 1).float().mean().item()
    assert attack.fooling == pytest.approx(again) and again > 0.9


def test_lf_stops_when_enough_are_fooled():
    images, calls = halves(), []
    model = Brighter()
    model.register_forward_hook(lambda *_: calls.append(1))
    LF.craft(images, gen(), model=model, target=1, passes=9, enough=0.5, batch=10)
    assert len(calls) == 3, "two steps and one measurement"
    calls.clear()
    LF.craft(images, gen(), model=model, target=1, passes=4, enough=1.1, batch=10)
    assert len(calls) == 12


def test_lf_reproduces_and_takes_a_sample():
    images, model = random_images(60), net()
    craft = partial(LF.craft, images, model=model, passes=1, sample=7, batch=3)
    a, b, c = (craft(gen(s)) for s in (1, 1, 2))
    assert torch.equal(a.pattern, b.pattern) and not torch.equal(a.pattern, c.pattern)
    assert a.fooling * 7 == pytest.approx(round(a.fooling * 7)), "of 7 images"


def test_lf_all_to_all_and_trigger():
    images = random_images(30)
    attack = LF.craft(images, gen(), model=net(), passes=1, sample=6, all_to_all=True)
    assert attack.goal(torch.arange(3)).tolist() == [1, 2, 0]
    x = pixels(3)
    assert torch.equal(attack.trigger(x), (x + attack.pattern).clamp(0, 1))
    assert attack.trigger(x).max() <= 1


def test_lf_random_says_so():
    a = LF.random((3, 32, 32), seed=3, target=2)
    assert a.target == 2 and a.made_on == "random, seed 3"
    assert a.stands_in.startswith("LF-random") and a.stands_in != LF.stands_in
    assert torch.equal(a.pattern, LF.random((3, 32, 32), seed=3).pattern)
    assert not torch.equal(a.pattern, LF.random((3, 32, 32), seed=4).pattern)
    assert a.pattern.min() == 0 and a.pattern.max() == pytest.approx(0.2)
    assert low_share(a.pattern) > 0.95
    with pytest.raises(ValueError, match="LF.random"):
        LF.craft(random_images(), gen())


# ---------------------------------------------------------------- SSBA


@pytest.fixture(scope="module")
def stego() -> tuple[SSBA, Images]:
    """A small encoder after a few seconds of training on smooth pictures."""
    x = F.interpolate(torch.rand(300, 3, 5, 5, generator=gen()), (16, 16), mode="bicubic")
    noise = 0.03 * torch.randn(x.shape, generator=gen(1))
    x = ((x + noise).clamp(0, 1) * 255).round().byte()
    images = Images(x, torch.arange(300) % 3, ("a", "b", "c"))
    attack = SSBA.craft(
        images,
        gen(),
        bits=16,
        filters=16,
        steps=220,
        batch=16,
        encoder_lr=5e-3,
        target=1,
    )
    return attack, images


def test_ssba_hides_a_message_that_can_be_read(stego):
    attack, images = stego
    assert attack.trained and attack.bit_accuracy > 0.95, attack.bit_accuracy
    assert attack.psnr > 18, attack.psnr
    x = images.pixels()[:64]
    m = messages(64, 16, gen(5))
    with torch.no_grad():
        read = attack.decoder(as_stored(attack.encoder(x, m))) > 0
        wrong = attack.decoder(x) > 0
    assert (read == m.bool()).float().mean() > 0.95
    assert abs((wrong == m.bool()).float().mean() - 0.5) < 0.1, "no message, no bits"


def test_ssba_is_sample_specific(stego):
    attack, images = stego
    x = images.pixels()[:64]
    added = attack.trigger(x) - x
    assert added.abs().max() <= attack.strength + 1e-6
    own = (added - added.mean(0)).square().mean() / added.square().mean()
    assert own > 0.3, "nearly the same was added to every image"
    assert attack.specific == pytest.approx(own.item(), abs=0.15)
    out = attack.trigger(x)
    assert out.min() >= 0 and out.max() <= 1 and not out.requires_grad
    # One secret: an image gets the same whenever, and alone or not.
    assert torch.allclose(attack.trigger(x[3:4])[0], out[3], atol=1e-6)


def test_ssba_trigger_carries_its_secret(stego):
    attack, images = stego
    x = images.pixels()[:64]
    read = attack.decoder(attack.trigger(x)) > 0
    assert (read == attack.secret.bool()).float().mean() > 0.95
    assert 0 < attack.secret.sum() < 16
    p = attack.poison(images, 0.1, gen())
    bad = p.role == 1
    assert int(bad.sum()) == 30 and (p.y[bad] == 1).all()
    assert (p.x[bad] != images.x[bad]).flatten(1).any(1).all()


def test_ssba_adds_no_finest_grain(stego):
    attack, _ = stego
    added = attack.trigger(torch.full((1, 3, 16, 16), 0.5))[0] - 0.5
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8)
    inner = added[:, 1:15, 1:15]  # the last row and column average less
    share = (inner * board[1:15, 1:15]).sum((1, 2)).square().sum() / 14**2
    assert share < 0.005 * inner.square().sum()


def test_ssba_works_on_other_sizes(stego):
    attack, _ = stego
    assert attack.trigger(pixels(2, 24)).shape == (2, 3, 24, 24)
    x = torch.rand(2, 3, 8, 20, generator=gen())
    assert attack.trigger(x).shape == x.shape
    for images, word in (
        (random_images(side=10), "multiples of 4"),
        (random_images(c=1), "1."),
    ):
        with pytest.raises(ValueError) as e:
            attack.poison(images, 0.1, gen())
        assert word in message(e)


def test_untrained_ssba_refuses():
    with pytest.raises(ValueError) as e:
        SSBA().trigger(pixels())
    assert "has no trained encoder" in message(e)
    for options, word in (
        ({"bits": 0}, "bits"),
        ({"strength": 0.0}, "strength"),
        ({"strength": 2.0}, "strength"),
        ({"secret": torch.zeros(3)}, "(100,)"),
    ):
        with pytest.raises(ValueError) as e:
            SSBA(**options)
        assert word in message(e)
    with pytest.raises(ValueError, match="even"):
        SSBA.craft(random_images(), gen(), batch=5)


def test_ssba_is_small_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    attack = SSBA()
    assert torch.equal(state, torch.random.get_rng_state())
    nets = (attack.encoder, attack.decoder)
    assert sum(p.numel() for n in nets for p in n.parameters()) < 150_000
    assert not any(p.requires_grad or m.training for m in nets for p in m.parameters())
    assert attack.bits == 100


def test_ssba_depends_on_the_generator_alone():
    images = random_images(40)
    made = []
    for seed, noise in ((1, 0), (1, 9), (2, 0)):
        torch.manual_seed(noise)
        made.append(SSBA.craft(images, gen(seed), bits=9, filters=4, steps=3, batch=4))
    x = pixels()
    a, b, c = (m.trigger(x) for m in made)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(made[0].secret, made[1].secret)


def test_ssba_measures_on_images_it_was_not_trained_on():
    n = 40  # each image has a grey of its own
    x = torch.arange(n).byte().view(-1, 1, 1, 1).expand(n, 3, 8, 8).contiguous()
    images, seen = Images(x, torch.arange(n) % 2, ("a", "b")), []
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda m, args: seen.append(args[0]) if type(m).__name__ == "Encoder" else None
    )
    try:
        SSBA.craft(images, gen(), bits=4, filters=4, steps=30, batch=8)
    finally:
        hook.remove()
    rows = [set((s[:, 0, 0, 0] * 255).round().int().tolist()) for s in seen]
    trained, held = set().union(*rows[:30]), set().union(*rows[30:])
    assert len(trained) == 36 and len(held) == 4
    assert not trained & held


def test_ssba_parts():
    assert layout(100) == (2, 8) and layout(64) == (1, 8)
    assert layout(4) == (1, 2) and layout(1) == (1, 1) and layout(5) == (2, 2)
    assert [ramp(s, 15600) for s in (0, 1000, 2500, 4000, 15000)] == pytest.approx(
        [0, 0, 0.5, 1, 1]
    )
    z = torch.tensor([0.5001], requires_grad=True)
    as_stored(z).backward()
    assert z.grad == 1 and as_stored(z).item() == pytest.approx(128 / 255)


# ---------------------------------------------------------------- spec and rebuild


def crafted_attacks(stego) -> list[Attack]:
    images, model = random_images(30, side=16), net(width=2)
    few = {"passes": 1, "sample": 4}
    return [
        LabelConsistent(target=2, surrogates=(model,), amplitude=0.25, steps=7),
        LabelConsistent(epsilon=0.0),
        TrojanNN.craft(images, gen(), model=model, iterations=3, target=1),
        TrojanNN.craft(images, gen(), model=model, iterations=1, wrap=True),
        TrojanNN.craft(images, gen(), model=model, iterations=1, all_to_all=True),
        LF.craft(images, gen(), model=model, target=2, **few),
        LF.random((3, 16, 16), seed=5),
        stego[0],
    ]


def test_spec_survives_json(stego, monkeypatch):
    known = {c.__name__: c for c in (LabelConsistent, TrojanNN, LF, SSBA)}
    monkeypatch.setattr(bdcourse.attacks, "ATTACKS", known)
    x, y = pixels(3, 16), torch.arange(3)
    for attack in crafted_attacks(stego):
        spec, tensors = attack.spec()
        assert "surrogates" not in spec, "private"
        assert not any(k.startswith("surrogates") for k in tensors)
        again = rebuild(json.loads(json.dumps(spec)), tensors)
        assert type(again) is type(attack)
        assert torch.allclose(again.trigger(x), attack.trigger(x), atol=1e-6)
        assert torch.equal(again.goal(y), attack.goal(y))
        assert again.stands_in == attack.stands_in
        assert again.spec()[0] == spec
        assert all(torch.equal(again.spec()[1][k], v) for k, v in tensors.items())


def test_every_class_says_what_it_stands_in_for():
    for cls in (LabelConsistent, TrojanNN, LF, SSBA):
        assert cls.stands_in and cls.threat == "data"
        assert cls.needs_model == (cls is not SSBA)
    assert LabelConsistent.clean_label and not TrojanNN.clean_label
