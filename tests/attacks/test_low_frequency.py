"""LF: smooth perturbations that fool a model."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bdcourse.attacks.low_frequency import LF, deepfool, rescale, smooth
from bdcourse.data import Images
from crafting import net, pixels
from helpers import gen, random_images


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
