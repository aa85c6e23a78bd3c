"""WaNet: the warp, and its noise mode."""

from __future__ import annotations

import pytest
import torch

from bdcourse.attacks.wanet import WaNet, control_grid, identity_grid, warp
from helpers import gen
from steering import pixels


def test_wanet_at_strength_0_is_the_identity():
    for size in ((32, 32), (17, 24)):
        x = pixels(3, *size)
        assert torch.allclose(WaNet(strength=0.0).trigger(x), x, atol=1e-5)
        assert torch.allclose(warp(x, identity_grid(*size, x)), x, atol=1e-5)


def test_wanet_moves_a_pixel_by_a_quarter():
    attack, x = WaNet(), pixels(1, 32)
    assert control_grid().abs().mean() == pytest.approx(1)
    # Half of the grid's -1..1 times the number of steps between pixel centers.
    moved = (attack.flow(x) - identity_grid(32, 32, x)).abs() * 31 / 2
    at_control_points = 0.5 * 31 / (2 * 32)
    assert at_control_points == pytest.approx(0.242, abs=1e-3)
    assert 0.4 * at_control_points < moved.mean() < 1.6 * at_control_points
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    shift = (attack.trigger(ramp) - ramp) * 31  # in pixels, along x
    inside = attack.flow(ramp)[0].abs().amax(-1) < 1
    assert torch.allclose(
        shift[0, 0][inside],
        ((attack.flow(ramp) - identity_grid(32, 32, ramp))[0, ..., 0] * 31 / 2)[inside],
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
