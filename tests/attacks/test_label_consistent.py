"""Label-consistent poisoning, and the adversarial images that it stands on."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bdcourse.attacks import ROLES
from bdcourse.attacks.label_consistent import AdversarialTraining, LabelConsistent, corners, pgd
from bdcourse.data import Images
from bdcourse.hooks import TrainBatch
from bdcourse.train import fit
from crafting import net, pixels
from helpers import frozen, gen, message, random_images, same_state


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


class Centered(nn.Module):
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


def losses(model, x, y):
    with torch.no_grad():
        return F.cross_entropy(model(x), y, reduction="none")


# ---------------------------------------------------------------- PGD


@pytest.mark.slow
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
    # Eval mode: what is computed for an image does not depend on its neighbors.
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
    hard, labels, role = steering.rewrite(TrainBatch.clean(x, y))
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
    hard, *_ = make(epsilon=0.02).rewrite(TrainBatch.clean(x, torch.arange(4) % 3))
    assert 0.0199 < (hard - x).abs().max() < 0.0201
    with pytest.raises(ValueError) as e:
        make(epsilon=8)
    assert "epsilon" in message(e)


@pytest.mark.slow
def test_adversarial_training_makes_robust():
    train, test = two_signs(256), two_signs(128, seed=1)
    x, y = test.pixels(), test.y
    scores = {}
    for name, hook in (("plain", None), ("robust", AdversarialTraining)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(Centered(), nn.Flatten(), nn.Linear(192, 2))
        history = fit(
            model,
            train,
            epochs=30,
            lr=0.1,
            generator=gen(),
            hook=hook,
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
