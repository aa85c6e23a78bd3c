"""FT-SAM: the worst point near the weights, the step taken from it, and training."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bdcourse.analysis.sharpness_aware import Flat, ascent, moved_loss, sam_step
from bdcourse.defenses import _ft_sam, finetune, ft_sam
from bdcourse.hooks import TrainBatch
from bdcourse.likelihoods import SOFTMAX
from bdcourse.models import build
from bdcourse.train import Augment, one_cycle
from helpers import frozen, gen, message, random_images, randomize_norms, same_state


def network(name="resnet18", width=4, seed=1):
    torch.manual_seed(seed)
    return randomize_norms(build(name, classes=3, width=width), seed)


def plain_net(seed=0):
    """No BatchNorm: the order of a batch does not matter."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(216, 3)).double()


# ---------------------------------------------------------------- the worst point


def test_the_worst_point_lies_on_the_edge_and_no_other_is_worse():
    g = gen(3)
    weights = [torch.randn(4, 3, generator=g), torch.randn(5, generator=g)]
    gradients = [torch.randn(4, 3, generator=g), torch.randn(5, generator=g)]
    rho = 0.7
    shift = torch.cat([e.flatten() for e in ascent(weights, gradients, rho)])
    w = torch.cat([w.flatten() for w in weights])
    k = torch.cat([k.flatten() for k in gradients])
    assert (shift / w).norm() == pytest.approx(rho)
    best = rho * (w * k).norm()  # Cauchy and Schwarz: k e = (T k) (e / T)
    assert shift @ k == pytest.approx(float(best), rel=1e-5)
    for _ in range(200):
        e = torch.randn(len(w), generator=g)
        e = e * rho / (e / w).norm()
        assert e @ k < best


def test_what_is_zero_stays_and_no_slope_means_no_move():
    w = [torch.tensor([0.0, 2.0])]
    (e,) = ascent(w, [torch.tensor([5.0, 1.0])], 0.5)
    assert e.tolist() == pytest.approx([0, 1]), "rho * 4 * 1 / 2"
    assert ascent(w, [torch.zeros(2)], 0.5)[0].tolist() == [0, 0]
    assert ascent(w, [torch.ones(2)], 0.0)[0].tolist() == [0, 0]


def test_one_step_on_a_quadratic():
    # L(w) = w'Aw / 2, by numpy: g = Aw, e = rho w^2 g / ||w g||, w - lr A (w + e).
    g = np.random.default_rng(0)
    a = g.normal(size=(6, 6))
    a = a @ a.T
    start, rho, lr = g.normal(size=6), 0.3, 0.05
    slope = a @ start
    shift = rho * start**2 * slope / np.linalg.norm(start * slope)
    want = start - lr * a @ (start + shift)

    w = torch.tensor(start, requires_grad=True)
    matrix = torch.tensor(a)
    opt = torch.optim.SGD([w], lr)
    low, high = sam_step(lambda: w @ matrix @ w / 2, [w], opt, rho)
    np.testing.assert_allclose(w.detach().numpy(), want, rtol=1e-12)
    assert float(low) == pytest.approx(start @ a @ start / 2)
    there = start + shift
    assert float(high) == pytest.approx(there @ a @ there / 2) and high > low


@pytest.mark.slow
def test_sam_leaves_a_sharp_minimum_for_a_flat_one():
    # Two valleys of equal depth along w: at 1 a narrow one, at 3 a wide one.
    def loss(w):
        return -torch.exp(-((w - 1) ** 2) / 0.02) - torch.exp(-((w - 3) ** 2) / 0.8)

    ends = {}
    for rho in (0.0, 0.5):
        w = torch.tensor([1.05], requires_grad=True)
        opt = torch.optim.SGD([w], 0.01)
        for _ in range(300):
            sam_step(lambda w=w: loss(w).sum(), [w], opt, rho)
        ends[rho] = float(w.detach())
    assert ends[0.0] == pytest.approx(1, abs=0.02)
    assert ends[0.5] > 2


# ---------------------------------------------------------------- two ways, one step


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_gradient_of_the_moved_loss_is_that_at_the_moved_weights(smoothing):
    model, rho = plain_net(), 0.8
    images = random_images(9)
    x, y = images.pixels().double(), images.y
    before = frozen(model)
    loss = F.cross_entropy(model(x), y, label_smoothing=smoothing)
    moved_loss(model, x, y, loss, rho, smoothing).backward()
    assert same_state(model, before)
    found = [p.grad.clone() for p in model.parameters()]

    model.zero_grad()
    F.cross_entropy(model(x), y, label_smoothing=smoothing).backward()
    tg = sum((p * p.grad).square().sum() for p in model.parameters()).sqrt()
    with torch.no_grad():
        for p in model.parameters():
            p += rho * p.square() * p.grad / tg
    model.zero_grad()
    F.cross_entropy(model(x), y, label_smoothing=smoothing).backward()
    for a, p in zip(found, model.parameters(), strict=True):
        assert torch.allclose(a, p.grad, rtol=1e-9, atol=1e-12)


def test_training_is_the_plain_step_repeated():
    images, epochs, rho, lr = random_images(12), 4, 0.6, 0.02
    start = plain_net().float()
    p = ft_sam(
        start, images, rho=rho, smoothing=0.1, epochs=epochs, lr=lr, batch=12, generator=gen()
    )
    model = plain_net().float()
    weights = list(model.parameters())
    opt = torch.optim.SGD(weights, lr, 0.9, weight_decay=5e-4, nesterov=True)
    course = []

    def objective():
        logits = model(images.pixels())
        return F.cross_entropy(logits, images.y, label_smoothing=0.1)

    for i in range(epochs):
        opt.param_groups[0]["lr"] = lr * one_cycle(i, epochs, 0.2)
        course.append(sam_step(objective, weights, opt, rho))
    for a, b in zip(p.model.parameters(), weights, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    assert p.log["loss"] == pytest.approx([float(h) for _, h in course], rel=1e-4)
    rises = [float(h - low) for low, h in course]
    assert p.log["sharpness"] == pytest.approx(rises, rel=1e-3, abs=1e-6)
    assert min(rises) > 0


@pytest.mark.slow
def test_radius_zero_is_plain_fine_tuning():
    images, options = random_images(24), {"epochs": 2, "batch": 8, "lr": 0.05}
    flat = ft_sam(network(), images, rho=0, smoothing=0, generator=gen(), **options)
    tuned = finetune(network(), images, generator=gen(), **options)
    for a, b in zip(flat.model.parameters(), tuned.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    assert flat.log["loss"] == pytest.approx(tuned.log["loss"], rel=1e-5)
    assert flat.log["sharpness"] == pytest.approx([0, 0], abs=1e-6)


def test_running_statistics_are_those_of_the_unmoved_network():
    images = random_images(8, side=16)
    model, twin = network().train(), network().train()
    driver = Flat(model, 2.0, 0.0)
    x, y, role = driver.rewrite(TrainBatch.clean(images.pixels(), images.y))
    assert torch.equal(y, images.y) and not role.any()
    out = model(x)
    driver.loss(SOFTMAX.loss(out, y), out, y).backward()
    twin(x)
    for a, b in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)
    assert all(p.grad is not None for p in model.parameters())


def test_frozen_parameters_are_not_moved():
    model = network()
    model.layer1.requires_grad_(False)
    images = random_images(12)
    p = ft_sam(model, images, epochs=1, batch=6, generator=gen())
    for a, b in zip(model.layer1.parameters(), p.model.layer1.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(model.linear.weight, p.model.linear.weight)


# ---------------------------------------------------------------- the whole defense


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width", "side"),
    [
        ("preact_resnet18", 4, 8),
        ("vgg16_bn", 4, 32),
        ("mobilenet", 8, 8),
        ("vit", 16, 32),
    ],
)
def test_every_network_can_be_tuned(name, width, side):
    model = network(name, width)
    before, modes = frozen(model), [m.training for m in model.modules()]
    images = random_images(6, side=side)
    p = ft_sam(model, images, rho=0.02, epochs=1, batch=6, generator=gen())
    assert same_state(model, before) and not same_state(p.model, before)
    assert [m.training for m in model.modules()] == modes
    assert all(q.grad is None for q in model.parameters())
    # Dropout draws anew for the second pass, so a rise there is noise as well.
    assert p.log["sharpness"][0] > 0 or name == "mobilenet"
    assert p.count == 0 and p.seconds > 0 and not p.model.training


@pytest.mark.slow
def test_the_worst_point_nearby_is_lower_than_after_fine_tuning():
    images = random_images(24)
    options = {"lr": 0.05, "batch": 8, "momentum": 0.5}
    model = finetune(plain_net().float(), images, epochs=30, generator=gen(), **options)
    rise, x, y = {}, images.pixels(), images.y
    for rho in (0.0, 2.0):
        p = ft_sam(model.model, images, rho=rho, smoothing=0, epochs=60, generator=gen(), **options)
        loss = F.cross_entropy(p.model(x), y)
        rise[rho] = float((moved_loss(p.model, x, y, loss, 1.0) - loss).detach())
    assert 0 < rise[2.0] < 0.7 * rise[0.0]


@pytest.mark.slow
def test_equal_seeds_give_equal_results():
    images = random_images(24)
    runs = [
        ft_sam(network(), images, epochs=2, batch=8, augment=Augment(1), generator=gen(s))
        for s in (0, 0, 1)
    ]
    assert same_state(runs[0].model, frozen(runs[1].model))
    assert runs[0].log == runs[1].log
    assert not same_state(runs[0].model, frozen(runs[2].model))


@pytest.mark.slow
def test_stopped_and_started_again_it_ends_the_same(tmp_path, monkeypatch):
    images, options = random_images(24), {"epochs": 4, "batch": 8}
    whole = ft_sam(network(), images, generator=gen(), **options)
    path, told, seen = tmp_path / "sam", Flat.sharpness, []

    def stop(self, model):
        seen.append(1)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return told(self, model)

    monkeypatch.setattr(_ft_sam.Flat, "sharpness", stop)
    with pytest.raises(KeyboardInterrupt):
        ft_sam(network(), images, generator=gen(), checkpoint=path, **options)
    monkeypatch.setattr(_ft_sam.Flat, "sharpness", told)
    assert len(list(tmp_path.iterdir())) == 2
    for change in ({"rho": 1.0}, {"smoothing": 0.0}, {"generator": gen(5)}):
        settings = options | {"generator": gen()} | change
        with pytest.raises(ValueError, match="belongs to other work") as e:
            ft_sam(network(), images, checkpoint=path, **settings)
        message(e)
    again = ft_sam(network(), images, generator=gen(), checkpoint=path, **options)
    assert same_state(again.model, frozen(whole.model)) and again.log == whole.log
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", [{"rho": -1}, {"smoothing": -0.1}, {"smoothing": 1}])
def test_refusals(change):
    with pytest.raises(ValueError, match="rho must not be negative") as e:
        ft_sam(network(), random_images(6), generator=gen(), **change)
    message(e)


def test_it_cannot_be_handed_the_trigger():
    text = str(inspect.signature(ft_sam))
    assert not any(word in text for word in ("ttack", "oison", "trigger", "target"))
