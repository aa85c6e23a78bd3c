"""TrojanNN: neurons, patterns, and what wrapping does."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from bdcourse.attacks.trojan import TrojanNN, disc, excitation, neurons
from crafting import net, pixels
from helpers import gen, message, random_images


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
    # Without iterations it is the gray disc.
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
