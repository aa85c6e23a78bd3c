"""Triggers that networks draw: input-aware, LIRA and FBA."""

from __future__ import annotations

import pytest
import torch

from bdcourse import signs
from bdcourse.attacks import ROLES
from bdcourse.attacks.fba import FBA
from bdcourse.attacks.generators import EncoderDecoder, frozen
from bdcourse.attacks.input_aware import InputAware, diversity, train_mask
from bdcourse.attacks.lira import LIRA
from bdcourse.hooks import TrainBatch
from bdcourse.likelihoods import SOFTMAX
from bdcourse.models import build, head_inputs
from bdcourse.train import fit
from helpers import gen, random_images
from steering import pixels, small


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_input_aware_trains_pattern_and_not_mask():
    images = random_images(60, side=16)
    attack = small(InputAware, images)
    model = build("resnet18", classes=3, width=2)
    mask_before = None
    start = {k: v.clone() for k, v in attack.pattern.state_dict().items()}

    def hook(*args):
        nonlocal mask_before
        driver = attack.steer(*args, rate=0.25)
        mask_before = {k: v.clone() for k, v in attack.mask.state_dict().items()}
        return driver

    fit(model, images, epochs=1, batch=16, generator=gen(), hook=hook, verbose=False)
    after = attack.pattern.state_dict()
    assert any(not torch.equal(after[k], v) for k, v in start.items())
    masks = attack.mask.state_dict()
    assert all(torch.equal(masks[k], v) for k, v in mask_before.items())
    assert not attack.pattern.training and attack.trained


@pytest.mark.slow
def test_lira_stays_within_epsilon_and_learns_only_in_its_first_half():
    images = random_images(64, side=16)
    attack = small(LIRA, images, epsilon=0.1)
    model = build("resnet18", classes=3, width=2).train()
    driver = attack.steer(model, images, gen(), 8)
    x, y = images.pixels()[:16], images.y[:16]
    assert (attack.trigger(x) - x).abs().max() <= 0.1 + 1e-6
    states = []
    for _ in range(8):
        out, labels, _ = driver.rewrite(TrainBatch.clean(x, y))
        before = {k: v.clone() for k, v in model.state_dict().items()}
        said = model(out)
        driver.loss(SOFTMAX.loss(said, labels), said, labels).backward()
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
    loss = driver.loss(SOFTMAX.loss(logits, y), logits, y)
    assert loss == pytest.approx(0.2 * float(half), abs=1e-5)


def test_fba_style_warms_and_blurs():
    gray = torch.full((1, 3, 16, 16), 0.5)
    out = FBA(alpha=1.0).trigger(gray)[0]
    assert out[0, 0, 0] == pytest.approx(0.5**0.6, abs=1e-5)
    assert (out[0] > out[1]).all() and (out[1] > out[2]).all()
    assert (out[:, 0] > out[:, -1]).all()
    dot = torch.zeros(1, 3, 9, 9)
    dot[..., 4, 4] = 1
    spread = FBA(alpha=1.0).trigger(dot)[0, 1] > 0
    assert spread.sum() == 9
    half, x = FBA(alpha=0.5), pixels(2)
    assert torch.allclose(half.trigger(x), (x + half.style(x)) / 2, atol=1e-6)


@pytest.mark.slow
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
        role = driver.rewrite(TrainBatch.clean(x, y))[2]
        assert (role == ROLES["cover"]).sum() == 0, step
        driver.step()
    assert (driver.rewrite(TrainBatch.clean(x, y))[2] == ROLES["cover"]).sum() == 4
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    after = attack.detox.state_dict()
    assert any(not torch.equal(after[k], v) for k, v in start.items())
    assert (attack.decoy(x) - x).abs().max() <= 0.2 + 1e-6


@pytest.mark.slow
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
