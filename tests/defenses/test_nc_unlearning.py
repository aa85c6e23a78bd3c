"""Unlearning of a guessed trigger: what is stamped, trained and refused."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from bdcourse.data import Images, quantize
from bdcourse.defenses import Estimate, Inverted, Purified, finetune, nc_unlearning
from bdcourse.defenses._nc_unlearning import stamped
from bdcourse.models import build
from bdcourse.train import Augment
from helpers import frozen, gen, message, random_images, randomize_norms, same_state

K = 4


@pytest.fixture
def model():
    torch.manual_seed(0)
    return randomize_norms(build("resnet18", classes=K, width=4))


def images(n: int = 20):
    return random_images(n, k=K)


def inverted(norms=(40.0, 2.0, 38.0, 42.0), side: int = 8) -> Inverted:
    """Guesses of one bright pixel column; label t stamps column t."""
    k = len(norms)
    masks = torch.zeros(k, 1, side, side)
    for t, norm in enumerate(norms):
        masks[t] = norm / side**2
    patterns = (torch.arange(k) / k).view(-1, 1, 1, 1).expand(-1, 3, side, side)
    return Inverted(masks, patterns, torch.arange(k), torch.ones(k), seconds=5.0)


# ---------------------------------------------------------------- stamping


def test_stamped_changes_these_rows_and_no_label():
    clean, guess = images(), inverted().trigger(3)
    before = clean.x.clone()
    mix = stamped(clean, [guess], torch.tensor([2, 5, 11]))
    assert torch.equal(clean.x, before)
    assert torch.equal(mix.y, clean.y) and mix.classes == clean.classes
    changed = (mix.x != before).flatten(1).any(1).nonzero().flatten()
    assert changed.tolist() == [2, 5, 11]
    want = quantize(guess.stamp(clean[changed].pixels()))
    assert torch.equal(mix.x[changed], want)


def test_guesses_take_turns():
    clean, r = images(), inverted()
    rows = torch.tensor([7, 1, 3, 9, 0])
    mix = stamped(clean, [r.trigger(1), r.trigger(2)], rows)
    for row, t in zip(rows.tolist(), (1, 2, 1, 2, 1), strict=True):
        want = quantize(r.trigger(t).stamp(clean[[row]].pixels()))
        assert torch.equal(mix.x[[row]], want)


# ---------------------------------------------------------------- the defense


@pytest.mark.slow
def test_it_is_finetuning_on_stamped_images(model):
    clean, r = images(), inverted()
    model.layer2.train()
    modes = [m.training for m in model.modules()]
    before, digest = frozen(model), clean.digest()
    options = {"epochs": 2, "batch": 8, "lr": 0.02, "augment": Augment(1)}
    p = nc_unlearning(model, clean, r, share=0.3, generator=gen(4), **options)
    assert isinstance(p, Purified) and p.count == 0 and p.seconds > 0
    assert same_state(model, before) and clean.digest() == digest
    assert [m.training for m in model.modules()] == modes
    assert all(q.grad is None for q in model.parameters())
    assert p.log["flagged"] == p.log["unlearned"] == (1,)
    assert p.log["index"][1] > 2 and p.log["stamped"] == 6
    assert len(p.log["loss"]) == len(p.log["acc"]) == 2 and "note" not in p.log

    g = gen(4)
    rows = torch.randperm(20, generator=g)[:6]
    mix = stamped(clean, [r.trigger(1)], rows)
    want = finetune(model, mix, generator=g, **options)
    assert same_state(p.model, frozen(want.model))


@pytest.mark.slow
def test_seeds_decide(model):
    runs = [
        nc_unlearning(model, images(), inverted(), epochs=1, generator=gen(s)) for s in (0, 0, 1)
    ]
    assert same_state(runs[0].model, frozen(runs[1].model))
    assert not same_state(runs[0].model, frozen(runs[2].model))


def test_nothing_flagged_leaves_the_model_alone(model):
    r = inverted((40.0, 39.0, 38.0, 42.0))
    g = gen()
    state = g.get_state()
    p = nc_unlearning(model, images(), r, generator=g)
    assert p.model is not model and same_state(p.model, frozen(model))
    assert p.log["flagged"] == p.log["unlearned"] == ()
    assert "no label is flagged" in p.log["note"]
    assert torch.equal(g.get_state(), state)
    assert nc_unlearning(model, images(), inverted(), threshold=1e9, generator=gen()).log["note"]


def test_the_scale_reaches_the_detector(model):
    r = inverted((0.5, 24.0, 23, 83, 103, 115, 92, 35, 155, 120, 145, 143), side=16)
    images = random_images(20, k=12, side=16)
    net = build("resnet18", classes=12, width=4)
    none = nc_unlearning(net, images, r, epochs=1, generator=gen())
    some = nc_unlearning(net, images, r, epochs=1, scale="log", generator=gen())
    assert none.log["unlearned"] == () and some.log["unlearned"][0] == 0


def test_a_label_can_be_forced(model):
    r = inverted()
    p = nc_unlearning(model, images(), r, label=2, epochs=1, generator=gen())
    assert p.log["flagged"] == (1,) and p.log["unlearned"] == (2,)
    assert not same_state(p.model, frozen(model))
    two = Inverted(r.masks[:2], r.patterns[:2], r.targets[:2], r.rates[:2])
    p = nc_unlearning(model, images(), two, label=0, epochs=1, generator=gen())
    assert p.log["unlearned"] == (0,) and p.log["flagged"] == ()


def test_several_flagged_labels_are_unlearned_together(model):
    r = inverted((40.0, 2.0, 38.0, 42.0, 41.0, 39.0, 1.0))
    p = nc_unlearning(model, images(), r, epochs=1, generator=gen())
    assert p.log["unlearned"] == (6, 1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"share": 0}, "share must lie above 0"),
        ({"share": 1.01}, "share must lie above 0"),
        ({"label": 9}, "label 9 was not inverted"),
        ({"threshold": -1}, "threshold"),
        ({"epochs": 0}, "epochs must be above 0"),
    ],
)
def test_refused(model, options, match):
    with pytest.raises(ValueError, match=match) as e:
        nc_unlearning(model, images(), inverted(), generator=gen(), **options)
    message(e)


def test_two_labels_have_no_outlier(model):
    r = inverted((40.0, 2.0))
    with pytest.raises(ValueError, match="three labels") as e:
        nc_unlearning(model, images(), r, generator=gen())
    message(e)


def test_no_defender_is_handed_the_trigger():
    text = str(inspect.signature(nc_unlearning))
    for word in ("Attack", "Poisoned", "attack", "trigger", "target", "poison"):
        assert word not in text


# ---------------------------------------------------------------- what it does


def test_the_stamp_is_unlearned():
    # Class 1 is bright, class 0 dark; a white corner outweighs everything else.
    x = torch.randint(0, 256, (60, 3, 8, 8), generator=gen()).float()
    y = torch.arange(60) % 2
    x = (x * 0.4 + 140 * y.view(-1, 1, 1, 1)).clamp(0, 255)
    x[:, :, -1, -1] = 0
    clean = Images(x.to(torch.uint8), y, ("dark", "bright"))
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))
    w = net[1].weight.data.zero_().view(2, 3, 8, 8)
    w[1] = 0.05
    w[1, :, -1, -1] = 2
    net[1].bias.data.copy_(torch.tensor([4.5, 0.0]))
    mask = torch.zeros(1, 8, 8)
    mask[0, -1, -1] = 1
    guess = Estimate(1, mask, torch.ones(3, 8, 8))
    r = Inverted(mask[None], torch.ones(1, 3, 8, 8), torch.tensor([1]), torch.ones(1))

    def success(m):
        dark = clean[clean.y == 0].pixels()
        return (m(guess.stamp(dark)).argmax(1) == 1).float().mean().item()

    assert success(net) == 1.0
    p = nc_unlearning(net, clean, r, label=1, share=0.5, epochs=30, lr=0.1, generator=gen())
    assert success(p.model) < 0.1
    said = p.model(clean.pixels()).argmax(1)
    assert (said == clean.y).float().mean() > 0.9
    plain = finetune(net, clean, epochs=30, lr=0.1, generator=gen())
    assert success(plain.model) > 0.9, "fine-tuning alone does not see the corner"


def stopping(after: int):
    seen = []

    def each_epoch(model):
        seen.append(1)
        if len(seen) > after:
            raise KeyboardInterrupt
        return {}

    return each_epoch


@pytest.mark.slow
def test_stopped_and_started_again(model, tmp_path, capsys):
    clean, r, path = images(), inverted(), tmp_path / "nc"
    rule = {"epochs": 3, "batch": 8}
    whole = nc_unlearning(model, clean, r, generator=gen(), **rule)
    with pytest.raises(KeyboardInterrupt):
        nc_unlearning(
            model, clean, r, generator=gen(), checkpoint=path, each_epoch=stopping(1), **rule
        )
    assert path.exists()
    rest = nc_unlearning(model, clean, r, generator=gen(), checkpoint=path, **rule)
    assert same_state(rest.model, frozen(whole.model)) and not path.exists()
    assert rest.log["loss"] == whole.log["loss"]
