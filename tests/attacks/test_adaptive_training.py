"""Attackers who train smooth: the same gradient as the defense, and kept apart."""

import copy

import pytest
import torch

from bdcourse import models, victims
from bdcourse.analysis.sharpness_aware import Flat
from bdcourse.attacks import BadNets, WaNet
from bdcourse.attacks.adaptive_training import Smoothing, steer
from bdcourse.bench import recipes
from bdcourse.defenses import FipDescent
from bdcourse.hooks import TrainBatch
from bdcourse.likelihoods import SOFTMAX
from helpers import gen, message, random_images


@pytest.fixture
def case():
    torch.manual_seed(0)
    model = models.resnet18(classes=4, width=4).double().train()
    x = torch.rand(12, 3, 32, 32, generator=gen(1), dtype=torch.float64)
    return model, x, torch.arange(12) % 4


def gradient(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.slow
def test_the_gradient_is_that_of_the_defense(case):
    model, x, y = case
    theirs, mine = copy.deepcopy(model), copy.deepcopy(model)
    FipDescent(SOFTMAX, gen(1), eta_f=0.1)(theirs, x, y, 0)
    driver = Smoothing(mine, 0.1, gen(1))
    driver.rewrite(TrainBatch.clean(x, y))
    out = mine(x)
    driver.loss(SOFTMAX.loss(out, y), out, y).backward()
    plain = copy.deepcopy(model)
    torch.nn.functional.cross_entropy(plain(x), y).backward()
    a, b, c = gradient(theirs), gradient(mine), gradient(plain)
    assert (a - b).norm() < 1e-9 * a.norm()
    assert (a - c).norm() > 1e-2 * a.norm()  # and the penalty counts


@pytest.mark.slow
def test_the_value_is_loss_plus_trace_and_statistics_move_once(case):
    model, x, y = case
    once = copy.deepcopy(model)
    loss = torch.nn.functional.cross_entropy(once(x), y)
    driver = Smoothing(model, 0.0, gen(1))
    driver.rewrite(TrainBatch.clean(x, y))

    def total():
        out = model(x)
        return driver.loss(SOFTMAX.loss(out, y), out, y)

    assert torch.allclose(total(), loss)
    driver.eta_f = 0.1
    assert total() > loss + 0.01
    model.load_state_dict(once.state_dict())
    total()
    again = copy.deepcopy(once)
    again(x)
    for a, b in zip(model.buffers(), again.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_a_victim_of_an_aware_attacker_is_another_victim(tmp_path):
    data = random_images(48, k=4, side=32)
    how = {"arch": {"name": "resnet18", "width": 4}, "epochs": 1, "batch": 16}
    how |= {"rate": 0.25, "verbose": False}
    made = {
        kind: victims.make(data, data, BadNets(), aware=kind, **how)
        for kind in (None, "smooth", "sam")
    }
    weights = [v.model.conv1.weight for v in made.values()]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert made["smooth"].recipe["aware"] == "smooth"
    assert "aware" not in made[None].recipe
    assert made["smooth"].recipe["n_poisoned"] == made[None].recipe["n_poisoned"] > 0
    both, alone = (victims.make(data, data, WaNet(), aware=a, **how) for a in ("sam", None))
    assert both.recipe["n_poisoned"] == alone.recipe["n_poisoned"] > 0
    assert not torch.equal(both.model.conv1.weight, alone.model.conv1.weight)


def test_the_recipe_names_it_only_if_it_is_so():
    assert "aware" not in recipes.SIGNS.settings()
    assert recipes.Recipe(aware="sam").settings()["aware"] == "sam"


def test_the_authors_weights():
    model = torch.nn.Linear(2, 2)
    assert steer("smooth")(model, None, gen(1), 10).eta_f == 0.01
    flat = steer("sam")(model, None, gen(1), 10)
    assert isinstance(flat, Flat) and flat.rho == 2
    with pytest.raises(ValueError) as e:
        steer("rough")
    assert 'must be "smooth" or "sam"' in message(e)
