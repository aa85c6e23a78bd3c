"""What LC, TrojanNN, LF and SSBA share: attacks computed on a model or by one."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import bdcourse.attacks
from bdcourse.attacks import Attack
from bdcourse.attacks.label_consistent import LabelConsistent
from bdcourse.attacks.low_frequency import LF
from bdcourse.attacks.ssba import SSBA
from bdcourse.attacks.trojan import TrojanNN
from bdcourse.models import fingerprint
from crafting import net, survives_json
from helpers import frozen, gen, message, random_images, same_state


def test_fingerprint():
    a, b = net(seed=0), net(seed=0)
    assert fingerprint(a) == fingerprint(b)
    assert len(fingerprint(a)) == 12 and int(fingerprint(a), 16) >= 0
    assert fingerprint(a.to(memory_format=torch.channels_last)) == fingerprint(b)
    assert fingerprint(a.train()) == fingerprint(b)
    with torch.no_grad():
        b.layer4[1].bn2.running_mean[-1] += 1e-3
    assert fingerprint(a) != fingerprint(b)
    assert fingerprint(nn.Linear(2, 3)) != fingerprint(nn.Linear(3, 2))


@pytest.mark.parametrize("cls", [TrojanNN, LF])
def test_crafting_leaves_the_model_alone(cls):
    model, images = net(), random_images(k=3)
    model.layer1.train()
    modes, before = [m.training for m in model.modules()], frozen(model)
    few = {"iterations": 3} if cls is TrojanNN else {"passes": 1, "sample": 4}
    attack = cls.craft(images, gen(), model=model, **few)
    assert modes == [m.training for m in model.modules()]
    assert same_state(model, before)
    assert all(p.grad is None for p in model.parameters())
    assert attack.made_on == fingerprint(model)


@pytest.mark.parametrize("cls", [TrojanNN, LF])
def test_patterns_refused(cls):
    images = random_images()
    for make in (cls, partial(cls.craft, images, gen())):
        with pytest.raises(ValueError) as e:
            make()
        assert "model=..." in message(e)
    for pattern, word in (
        (torch.zeros(8, 8), "(8, 8)"),
        (torch.full((3, 8, 8), 51.0), "[0, "),
        (torch.full((3, 8, 8), -0.1), "[0, "),
        (torch.full((3, 8, 8), float("nan")), "[0, "),
    ):
        with pytest.raises(ValueError) as e:
            cls(pattern=pattern)
        assert word in message(e)
    for other in (random_images(side=12), random_images(c=1)):
        with pytest.raises(ValueError) as e:
            cls(pattern=torch.zeros(3, 8, 8)).poison(other, 0.1, gen())
        assert "(3, 8, 8)" in message(e)


# ---------------------------------------------------------------- spec and rebuild


def crafted_attacks() -> list[Attack]:
    images, model = random_images(30, side=16), net(width=2)
    few = {"passes": 1, "sample": 4}
    return [
        LabelConsistent(target=2, surrogates=(model,), amplitude=0.25, steps=7),
        LabelConsistent(epsilon=0.0),
        TrojanNN.craft(images, gen(), model=model, iterations=3, target=1),
        TrojanNN.craft(images, gen(), model=model, iterations=1, wrap=True),
        TrojanNN.craft(images, gen(), model=model, iterations=1, all_to_all=True),
        LF.craft(images, gen(), model=model, target=2, **few),
        LF.random((3, 16, 16), seed=5),
    ]


def test_spec_survives_json(monkeypatch):
    known = {c.__name__: c for c in (LabelConsistent, TrojanNN, LF, SSBA)}
    monkeypatch.setattr(bdcourse.attacks, "ATTACKS", known)
    for attack in crafted_attacks():
        survives_json(attack)


def test_every_class_says_what_it_stands_in_for():
    for cls in (LabelConsistent, TrojanNN, LF, SSBA):
        assert cls.stands_in and cls.threat == "data"
        assert cls.needs_model == (cls is not SSBA)
    assert LabelConsistent.clean_label and not TrojanNN.clean_label
