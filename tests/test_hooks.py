"""Hooks: several of them, and trainings with one that stop and go on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bdcourse import attacks
from bdcourse.analysis.sharpness_aware import Flat
from bdcourse.attacks.adaptive_training import Smoothing
from bdcourse.attacks.label_consistent import AdversarialTraining
from bdcourse.augment import Augment
from bdcourse.checkpoint import pack_state, unpack_state
from bdcourse.examples import ROLES
from bdcourse.hooks import Hook, TrainBatch
from bdcourse.models import build
from bdcourse.train import fit
from helpers import frozen, gen, message, random_images, same_state

STEERING = {
    "WaNet": {},
    "Bpp": {},
    "Composite": {"jitter": 1},
    "InputAware": {"filters": 2, "mask_steps": 3},
    "LIRA": {"filters": 2},
    "FBA": {"detox_steps": 2},
}


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build("resnet18", classes=4, width=2)


class Marks(Hook):
    """Adds to the loss, notes in which order it was called, marks the poison role."""

    def __init__(self, name: str, calls: list, early: bool = False) -> None:
        self.name, self.calls, self.before_augment = name, calls, early

    def rewrite(self, batch: TrainBatch) -> TrainBatch:
        self.calls.append((self.name, "rewrite", tuple(batch.role[:2].tolist())))
        role = batch.role.clone()
        role[0 if self.name == "a" else 1] = ROLES["poison"]
        return batch._replace(role=role)

    def loss(self, loss, out, y):
        self.calls.append((self.name, "loss", round(float(loss.detach()), 3)))
        return loss + 1

    def step(self):
        self.calls.append((self.name, "step", None))


def test_hooks_are_called_one_behind_the_other():
    calls, data = [], random_images(16, 4, side=16)
    hooks = [Marks("a", calls), lambda *_: Marks("b", calls)]
    history = fit(
        network(), data, epochs=1, batch=16, lr=1e-6, hook=hooks, verbose=False, generator=gen()
    )
    assert [c[:2] for c in calls] == [(n, k) for k in ("rewrite", "loss", "step") for n in "ab"]
    assert calls[0][2] == (0, 0) and calls[1][2] == (1, 0)
    assert calls[3][2] == pytest.approx(calls[2][2] + 1)
    assert history["loss"][0] == pytest.approx(calls[2][2] + 2, abs=0.01)
    assert history["n_poison"] == [2]


def test_hooks_before_the_crop_come_first_whatever_their_place():
    calls, data = [], random_images(16, 4, side=16)
    hooks = [Marks("a", calls), Marks("b", calls, early=True)]
    fit(network(), data, epochs=1, batch=16, lr=1e-6, hook=hooks, verbose=False)
    assert [c[0] for c in calls if c[1] == "rewrite"] == ["b", "a"]


@pytest.mark.parametrize("bad", [3, "hook", [3], lambda *_: 3])
def test_what_is_no_hook_is_refused(bad):
    with pytest.raises(ValueError, match="hook must") as e:
        fit(network(), random_images(16, 4), hook=bad, verbose=False)
    message(e)


def steered(name: str):
    """A hook for one training, and the attack whose networks it trains."""
    images = random_images(60, 4, side=16)
    attack = getattr(attacks, name).craft(images, gen(), **STEERING[name])
    return attack, lambda m, d, g, total: attack.steer(m, d, gen(5), total, rate=0.25)


OTHERS = {
    "adversarial": AdversarialTraining,
    "smooth": lambda m, d, g, total: Smoothing(m, 0.01, gen(5)),
    "sam": lambda m, d, g, total: Flat(m, 0.5, 0.1),
    "two": [
        lambda m, d, g, total: attacks.WaNet().steer(m, d, gen(5), total, rate=0.25),
        lambda m, d, g, total: Smoothing(m, 0.01, gen(6)),
    ],
}


@pytest.mark.parametrize("name", [*STEERING, *OTHERS])
@pytest.mark.slow
def test_a_training_with_a_hook_goes_on_where_it_was_stopped(name, tmp_path):
    images = random_images(60, 4, side=16)

    def once(each_epoch=None, checkpoint=None):
        model = network()
        attack, hook = steered(name) if name in STEERING else (None, OTHERS[name])
        fit(
            model,
            images,
            epochs=4,
            batch=16,
            lr=0.01,
            augment=Augment(1),
            generator=gen(),
            hook=hook,
            verbose=False,
            each_epoch=each_epoch,
            checkpoint=checkpoint,
        )
        nets = {} if attack is None else attack.spec()[1]
        return model, nets

    def stop_at(epoch):
        seen = []

        def look(model):
            seen.append(1)
            if len(seen) == epoch:
                raise KeyboardInterrupt
            return {}

        return look

    whole, nets = once()
    path = tmp_path / "part"
    once(stop_at(3), path)
    assert path.is_file()
    rest, others = once(checkpoint=path)
    assert not path.exists()
    assert same_state(rest, frozen(whole))
    assert nets.keys() == others.keys()
    assert all(torch.equal(v, others[k]) for k, v in nets.items())


def test_packed_states_come_back():
    net = nn.Linear(3, 2)
    opt = torch.optim.Adam(net.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10)

    def move(net, opt, schedule):
        opt.zero_grad()
        net(torch.ones(1, 3)).square().sum().backward()
        opt.step()
        schedule.step()

    for _ in range(3):
        move(net, opt, schedule)
    g = gen()
    torch.rand(3, generator=g)
    things = {"net": net, "opt": opt, "schedule": schedule, "g": g}
    things |= {"n": 3, "ready": True, "rate": 0.1, "x": torch.arange(2)}
    packed = {k: v.clone() for k, v in pack_state(things).items()}

    other = nn.Linear(3, 2)
    again = torch.optim.Adam(other.parameters(), 0.1)
    fresh = {"net": other, "opt": again, "g": gen(7), "n": 0, "ready": False, "rate": 0.0}
    fresh |= {"schedule": torch.optim.lr_scheduler.CosineAnnealingLR(again, 10)}
    fresh |= {"x": torch.zeros(2, dtype=torch.int64)}
    values = unpack_state(packed, fresh)
    assert values["n"] == 3 and values["ready"] is True and values["rate"] == 0.1
    assert values["x"].tolist() == [0, 1]
    assert torch.equal(torch.rand(2, generator=g), torch.rand(2, generator=fresh["g"]))
    for _ in range(4):
        move(net, opt, schedule)
        move(other, again, fresh["schedule"])
    assert torch.equal(net.weight, other.weight)
    with pytest.raises(TypeError, match="cannot hold"):
        pack_state({"odd": copy})
