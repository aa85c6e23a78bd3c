"""SSBA: a message for each image, hidden by an encoder."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import bdcourse.attacks
from bdcourse.attacks.ssba import SSBA, as_stored, layout, messages, ramp
from bdcourse.data import Images
from crafting import pixels, survives_json
from helpers import gen, message, random_images


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_ssba_adds_no_finest_grain(stego):
    attack, _ = stego
    added = attack.trigger(torch.full((1, 3, 16, 16), 0.5))[0] - 0.5
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8)
    inner = added[:, 1:15, 1:15]  # the last row and column average less
    share = (inner * board[1:15, 1:15]).sum((1, 2)).square().sum() / 14**2
    assert share < 0.005 * inner.square().sum()


@pytest.mark.slow
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


@pytest.mark.slow
def test_ssba_measures_on_images_it_was_not_trained_on():
    n = 40  # each image has a gray of its own
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


@pytest.mark.slow
def test_spec_survives_json(stego, monkeypatch):
    monkeypatch.setattr(bdcourse.attacks, "ATTACKS", {"SSBA": SSBA})
    survives_json(stego[0])


def test_ssba_parts():
    assert layout(100) == (2, 8) and layout(64) == (1, 8)
    assert layout(4) == (1, 2) and layout(1) == (1, 1) and layout(5) == (2, 2)
    assert [ramp(s, 15600) for s in (0, 1000, 2500, 4000, 15000)] == pytest.approx(
        [0, 0, 0.5, 1, 1]
    )
    z = torch.tensor([0.5001], requires_grad=True)
    as_stored(z).backward()
    assert z.grad == 1 and as_stored(z).item() == pytest.approx(128 / 255)
