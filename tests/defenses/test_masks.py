"""Masks on BatchNorm scales: forward, baking, thresholds, the learning loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bdcourse.checkpoint import Checkpoint
from bdcourse.defenses import _masks as M
from bdcourse.defenses._base import furthest, stage
from bdcourse.examples import require_clean
from bdcourse.metrics import Scores, logits
from bdcourse.models import build
from helpers import frozen, gen, message, random_images, randomize_norms, same_state

NAMES = ("resnet18", "preact_resnet18", "vgg16_bn", "mobilenet")


@pytest.fixture
def model():
    return randomize_norms(build("resnet18", classes=3, width=4))


def drawn(model, seed=0):
    g = gen(seed)
    return {n: torch.rand(m.shape, generator=g) for n, m in M.masks_ones(model).items()}


@pytest.mark.parametrize("name", NAMES)
def test_masked_forward_is_the_baked_model(name):
    side = 32 if name == "vgg16_bn" else 8
    model = randomize_norms(build(name, classes=3, width=8))
    before, x = frozen(model), random_images(4, side=side).pixels()
    with torch.no_grad():
        assert torch.equal(M.masks_forward(model, M.masks_ones(model), x), model(x))
        masks = drawn(model)
        out, baked = M.masks_forward(model, masks, x), M.baked(model, masks)
        assert torch.allclose(out, baked(x), atol=1e-5)
        assert not torch.allclose(out, model(x), atol=1e-3)
    assert same_state(model, before)
    for n, m in masks.items():
        a, b = model.get_submodule(n), baked.get_submodule(n)
        assert torch.equal(b.weight, a.weight * m) and torch.equal(b.bias, a.bias)


def test_masks_are_one_per_channel_of_every_batchnorm(model):
    masks = M.masks_ones(model)
    assert list(masks) == [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(map(len, masks.values())) == 75 * 4
    assert all(not m.requires_grad and bool((m == 1).all()) for m in masks.values())
    masks["bn1"].zero_()
    assert bool((model.bn1.weight != 0).all()), "not the model's own tensors"


def test_no_mask_without_batchnorm():
    plain = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, affine=False))
    for model in (build("vit", classes=3, width=16), plain):
        with pytest.raises(ValueError, match="no BatchNorm with a scale") as e:
            M.masks_ones(model)
        assert "finetune" in message(e)


def test_masks_get_gradients_and_weights_can_do_without(model):
    net = M.masks_frozen(model)
    masks = {n: m.requires_grad_(True) for n, m in M.masks_ones(net).items()}
    M.masks_forward(net, masks, random_images(4).pixels()).square().sum().backward()
    assert all(float(m.grad.abs().max()) > 0 for m in masks.values())
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())
    assert all(p.requires_grad for p in model.parameters())
    # d/dm at m = 1 is gamma times d/dgamma.
    model(random_images(4).pixels()).square().sum().backward()
    for n, m in masks.items():
        bn = model.get_submodule(n)
        assert torch.allclose(m.grad, bn.weight * bn.weight.grad, rtol=1e-3, atol=1e-3)


def test_frozen_modes(model):
    model.layer1.train()
    modes = [m.training for m in model.modules()]
    assert not any(m.training for m in M.masks_frozen(model).modules())
    mobile = build("mobilenet", classes=3, width=8)
    net = M.masks_frozen(mobile, training=True)
    for m in net.modules():
        assert m.training == isinstance(m, nn.BatchNorm2d), "dropout stays off"
    assert [m.training for m in model.modules()] == modes


def test_below_and_ladder():
    masks = {"a": torch.tensor([0.0, 0.2, 1.0, 0.9]), "b": torch.tensor([0.5, 1.0])}
    at = {n: c.tolist() for n, c in M.below(masks, 0.2).items()}
    assert at == {"a": [0, 1], "b": []}, "at most t"
    steps = M.ladder(masks)
    assert [t for t, _ in steps] == pytest.approx([0.05 * i for i in range(19)])
    counts = [sum(map(len, c.values())) for _, c in steps]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == 4
    assert [t for t, _ in M.ladder(masks, (1.0, 0.5, 0.1))] == [0.1, 0.5]


def test_prune_zeroes_scales_and_keeps_shifts(model):
    masks = drawn(model)
    before = frozen(model)
    repaired, channels, t = M.masks_prune(model, masks, None, 0.3, 0.01)
    assert t == 0.3 and same_state(model, before)
    for n, m in masks.items():
        a, b = model.get_submodule(n), repaired.get_submodule(n)
        assert torch.equal(b.weight == 0, m <= 0.3) and torch.equal(a.bias, b.bias)
        assert channels[n].tolist() == (m <= 0.3).nonzero().flatten().tolist()


class Counts(nn.Module):
    """Says class 0, right on the share of images that its live channels pay for."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(10)

    def forward(self, x):
        label = (x[:, 0, 0, 0] * 255).round().long() % 10  # channel that reads it
        alive = (self.bn.weight != 0) & (self.bn.bias != 0)
        return torch.stack([alive[label].float(), torch.full((len(x),), 0.5)], 1)


def test_prune_chooses_by_held_out_accuracy():
    images = random_images(100, k=2)
    images.x[:, 0, 0, 0] = torch.arange(100, dtype=torch.uint8) % 10
    images.y[:] = 0
    model = Counts().eval()
    model.bn.bias.data.fill_(1)  # without its shift no channel would be alive
    masks = {"bn": torch.tensor([0.0, 0.2, 0.4, 0.6, *[1.0] * 6])}
    for drop, want, off in ((0.1, 0.15, 1), (0.25, 0.35, 2), (0.05, None, 0)):
        _, channels, t = M.masks_prune(model, masks, images, None, drop)
        assert t == (None if want is None else pytest.approx(want))
        assert sum(map(len, channels.values())) == off
    best = furthest(model, M.ladder(masks), images, 0.1, shift=False)
    assert best == pytest.approx(0.15)


def test_the_examiner_takes_the_lowest_asr_he_may(monkeypatch):
    """Scores by the number of channels that are off: ASR rises again at three."""
    acc, asr = (0.9, 0.88, 0.85, 0.84, 0.4), (1.0, 0.9, 0.1, 0.5, 0.0)

    def scored(model, images, attack=None):
        off = int((model.bn.weight == 0).sum())
        return Scores(acc[off], None if attack is None else asr[off])

    monkeypatch.setattr(M, "evaluate", scored)
    model = Counts().eval()
    model.bn.weight.data.fill_(1)
    masks = {"bn": torch.tensor([0.1, 0.3, 0.5, 0.7, *[1.0] * 6])}
    may = ((0.1, 0.3, 2), (0.02, 0.1, 1), (0.03, 0.1, 1), (0.5, 0.7, 4))
    for drop, want, off in may:
        got, channels, t = M.masks_prune_oracle(model, masks, None, object(), drop)
        assert t == pytest.approx(want) and (got.bn.weight == 0).sum() == off
        assert channels["bn"].tolist() == list(range(off))
    low = {"bn": torch.tensor([*[0.0] * 4, *[1.0] * 6])}
    assert M.masks_prune_oracle(model, low, None, object(), 0.1)[1:] == ({}, None)


def test_refusals():
    some = random_images(4)
    for args, text in (
        ((None, None, 0.0), "give held, or a threshold"),
        ((some[:0], None, 0.0), "held must hold at least 1 images"),
        ((some[:0], 0.2, 0.0), "held must hold at least 1 images"),
        ((None, 1.0, 0.0), "1 excluded"),
        ((None, -0.1, 0.0), "1 excluded"),
        ((some, None, 1.2), "max_drop"),
        ((some, None, -0.01), "max_drop"),
    ):
        with pytest.raises(ValueError, match=text) as e:
            M.require_threshold(*args)
        message(e)
    M.require_threshold(None, 0.0, 0.0)
    M.require_threshold(some, None, 1.0)
    with pytest.raises(ValueError, match="clean must hold at least 2 images") as e:
        require_clean(some[:1])
    message(e)


def test_learning_asserts_that_masks_move(model):
    masks = M.masks_ones(model)
    with pytest.raises(RuntimeError, match="no mask has moved") as e:
        M.require_moved(masks)
    message(e)
    masks["bn1"][1] = 0.99
    M.require_moved(masks)


# --------------------------------------------------------------------- the loop


def pull(seen=None, after=None):
    """A step whose loss is sum (m - 0.3)^2, with noise from the batch."""

    def step(masks, x, y):
        if seen is not None:
            seen.append(x.clone())
        if after is not None and len(seen) > after:
            raise KeyboardInterrupt
        loss = sum((m - 0.3).square().sum() for m in masks.values()) + x.mean()
        return {"loss": loss}, torch.autograd.grad(loss, list(masks.values()))

    return step


def options(**more):
    settings = {"steps": 12, "batch": 8, "lr": 0.1, "momentum": 0.9}
    return settings | {"generator": gen(), "keep": Checkpoint(None, {})} | more


def test_the_loop_is_torch_sgd_with_a_clamp(model):
    start = M.masks_ones(model)
    masks, course = M.learn(start, random_images(24), pull(), **options(lr=0.4))
    assert all(bool((m == 1).all()) for m in start.values()), "argument untouched"
    p = nn.Parameter(torch.ones(4))
    opt = torch.optim.SGD([p], 0.4, 0.9)
    path = []
    for _ in range(12):
        opt.zero_grad()
        (p - 0.3).square().sum().backward()
        opt.step()
        p.data.clamp_(0, 1)
        path.append(p.data.clone())
    assert torch.allclose(masks["bn1"], path[-1])
    assert {0.0, 1.0} & {float(v[0]) for v in path}, "the clamp was reached"
    assert len(course["loss"]) == 12 and not masks["bn1"].requires_grad


def test_batches_are_random_without_repetition(model):
    images, seen = random_images(24), []
    M.learn(M.masks_ones(model), images, pull(seen), **options())
    assert all(len(x) == len(x.flatten(1).unique(dim=0)) == 8 for x in seen)
    assert len(torch.cat(seen).flatten(1).unique(dim=0)) == 24, "every image is used"
    assert float(seen[0].max()) <= 1 and seen[0].dtype == torch.float32
    few = []
    M.learn(M.masks_ones(model), images[:5], pull(few), **options())
    assert {len(x) for x in few} == {5}


def test_the_loop_is_seeded_and_resumes(model, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    images = random_images(24)
    whole, course = M.learn(M.masks_ones(model), images, pull(), **options())
    other, other_course = M.learn(M.masks_ones(model), images, pull(), **options(generator=gen(1)))
    assert other_course != course

    def keep():
        return Checkpoint(tmp_path / "masks", {"a": 1})

    with pytest.raises(KeyboardInterrupt):
        M.learn(M.masks_ones(model), images, pull([], after=5), **options(keep=keep()))
    seen = []
    masks, rest = M.learn(
        M.masks_ones(model), images, pull(seen), **options(keep=keep(), generator=gen())
    )
    assert len(seen) == 12 - 5, "went on, did not begin again"
    assert rest == course
    assert all(torch.equal(masks[n], whole[n]) for n in whole)
    # A finished loop hands out its result, and leaves the generator as it left it.
    g, seen = gen(), []
    again, _ = M.learn(M.masks_ones(model), images, pull(seen), **options(keep=keep(), generator=g))
    assert not seen and all(torch.equal(again[n], whole[n]) for n in whole)
    used = gen()
    for _ in range(12):
        torch.randperm(24, generator=used)
    assert torch.equal(g.get_state(), used.get_state())


def test_stage_names():
    assert stage(None, "masks") is None
    assert stage("runs/a", "masks") == "runs/a.masks"


def test_logits_see_the_baked_masks(model):
    x = random_images(4).x
    assert not torch.equal(logits(M.baked(model, drawn(model)), x), logits(model, x))
