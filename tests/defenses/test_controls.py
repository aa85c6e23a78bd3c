"""The controls: pruning at random, and fine-tuning."""

from __future__ import annotations

import inspect

import pytest
import torch

from bdcourse import defenses
from bdcourse.defenses import Purified, clp, finetune, prune_random
from bdcourse.models import build
from bdcourse.surgery import without
from bdcourse.train import Augment
from helpers import frozen, gen, random_images, randomize_norms, same_state


@pytest.fixture
def model():
    return randomize_norms(build("resnet18", classes=3, width=8))


@pytest.mark.slow
def test_prune_random_takes_as_many(model):
    like = clp(model, 1.0).pruned
    assert sum(map(len, like.values())) > 10
    before = frozen(model)
    seeds = [prune_random(model, like, gen(s)) for s in (0, 0, 1)]
    assert same_state(model, before)
    for p in seeds:
        assert {k: len(v) for k, v in p.pruned.items()} == {k: len(v) for k, v in like.items()}
        assert p.count == clp(model, 1.0).count
        for name, which in p.pruned.items():
            assert len(which.unique()) == len(which), "no channel twice"
            bn = p.model.get_submodule(name)
            off = (bn.weight == 0) & (bn.bias == 0)
            assert set(off.nonzero().flatten().tolist()) == set(which.tolist())
    a, b, c = ([sorted(v.tolist()) for v in p.pruned.values()] for p in seeds)
    assert a == b != c
    assert a != [sorted(v.tolist()) for v in like.values()]


def test_prune_random_of_nothing_and_of_all(model):
    none = prune_random(model, {}, gen())
    assert none.count == 0 and same_state(none.model, frozen(model))
    every = prune_random(model, {"bn1": torch.arange(8)}, gen())
    assert (every.model.bn1.weight == 0).all()


def test_finetune_returns_a_new_trained_model(model):
    images = random_images(24)
    before, digest = frozen(model), images.digest()
    modes = [m.training for m in model.modules()]
    p = finetune(model, images, epochs=2, batch=8, generator=gen())
    assert isinstance(p, Purified) and p.model is not model
    assert same_state(model, before) and images.digest() == digest
    assert [m.training for m in model.modules()] == modes
    assert all(q.grad is None for q in model.parameters())
    assert not same_state(p.model, before) and not p.model.training
    assert p.count == 0 and p.seconds > 0
    assert len(p.log["loss"]) == len(p.log["acc"]) == 2
    assert all(0 <= a <= 1 for a in p.log["acc"])


@pytest.mark.slow
def test_finetune_is_seeded_quiet_and_passes_options(model, capsys):
    images, augment = random_images(24), Augment(1)
    runs = [
        finetune(model, images, epochs=1, batch=8, generator=gen(s), augment=augment)
        for s in (0, 0, 1)
    ]
    assert same_state(runs[0].model, frozen(runs[1].model))
    assert not same_state(runs[0].model, frozen(runs[2].model))
    assert capsys.readouterr().out == ""
    finetune(model, images, epochs=1, generator=gen(), verbose=True, momentum=0.0)
    assert "epoch" in capsys.readouterr().out


@pytest.mark.slow
def test_a_stopped_finetune_is_no_result_and_goes_on(model, tmp_path):
    images, before = random_images(24), frozen(model)
    settings = {"epochs": 3, "batch": 8, "checkpoint": tmp_path / "a"}
    looks = []

    def stop(_):
        looks.append(1)
        if len(looks) > 1:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        finetune(model, images, generator=gen(), each_epoch=stop, **settings)
    assert (tmp_path / "a").exists() and same_state(model, before)
    rest = finetune(model, images, generator=gen(), **settings)
    whole = finetune(model, images, epochs=3, batch=8, generator=gen())
    assert same_state(rest.model, frozen(whole.model))
    assert rest.log == whole.log and not list(tmp_path.iterdir())


def test_finetune_leaves_dead_channels_behind_a_relu_dead(model):
    # relu'(0) is 0, so no gradient reaches a switched-off channel in front of a ReLU.
    # In front of a residual sum one does: there plain fine-tuning may revive.
    channels = {"layer1.0.bn1": torch.tensor([1, 5]), "layer3.1.bn1": torch.tensor([9])}
    pruned = without(model, channels)
    before = frozen(pruned)
    p = finetune(pruned, random_images(24), epochs=2, generator=gen())
    assert same_state(pruned, before), "the pruned model itself is untouched"
    for name, which in channels.items():
        bn = p.model.get_submodule(name)
        assert (bn.weight[which] == 0).all() and (bn.bias[which] == 0).all()
    assert not torch.equal(p.model.layer1[0].bn1.weight, pruned.layer1[0].bn1.weight)


def test_finetune_respects_frozen_parameters(model):
    for q in model.layer1.parameters():
        q.requires_grad_(False)
    p = finetune(model, random_images(24), epochs=1, generator=gen())
    for a, b in zip(model.layer1.parameters(), p.model.layer1.parameters(), strict=True):
        assert torch.equal(a, b), "not even weight decay"
    assert not torch.equal(model.linear.weight, p.model.linear.weight)


def test_no_defense_can_be_handed_the_trigger():
    for name, f in defenses.DEFENSES.items():
        text = str(inspect.signature(f))
        for word in ("Attack", "Poisoned", "attack", "trigger", "target", "poison"):
            assert word not in text, f"{name}{text}"
        assert "Purified" in text
