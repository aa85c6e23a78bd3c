"""What a reader sees of an object that stands last in a cell: one short line."""

from __future__ import annotations

import copy

import pytest
import torch

from bdcourse import data, defenses, victims
from bdcourse.analysis.curvature import fisher_trace
from bdcourse.analysis.landscape import Spectrum, Surface
from bdcourse.attacks import BadNets, Blended
from bdcourse.metrics import Triggered, evaluate
from bdcourse.train import History, fit
from helpers import gen, random_images

ATTACKED = ("blended", "trojan", "ssba", "lf", "sig", "lira", "tact", "wanet", "input-aware")


@pytest.fixture(scope="module")
def victim():
    return victims.zoo("badnets")


@pytest.mark.slow
def test_every_repr_is_one_short_line(victim):
    images = data.load("signs", n=40)
    history = fit(copy.deepcopy(victim.model), images, epochs=1, lr=1e-4, verbose=False)
    some = Triggered(images.x, images.y, images.y)
    things = [
        *(victim, images, images[:3], BadNets().poison(images, 0.2, gen()), some, history),
        *(victim.attack, victim.scores, evaluate(victim.model, images), History()),
        fisher_trace(victim.model, images, draws=2, generator=gen()),
        Spectrum(torch.arange(3.0), torch.ones(3) / 3),
        Surface((0.0, 1.0), torch.ones(2), torch.ones(2)),
        defenses.clp(victim.model),
        *(victims.zoo(name).attack for name in ATTACKED),
    ]
    for thing in things:
        text = repr(thing)
        assert "\n" not in text and 3 < len(text) < 140, text
    assert repr(victim).startswith("Victim(BadNets on resnet18 of width ")
    assert repr(Blended(target=2, alpha=0.3)) == "Blended(target=2, alpha=0.3)"


def test_attacks_are_equal_by_content():
    noise = random_images(2, side=8).pixels()
    a, b, c = (Blended(picture=noise[i]) for i in (0, 0, 1))
    assert a == b and hash(a) == hash(b) and a != c and a != BadNets() and a != 3
    assert BadNets() == BadNets() != BadNets(target=1)
