"""Training with frozen norms."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bdcourse.defenses import finetune
from bdcourse.hooks import Hook
from bdcourse.victims import initialized
from helpers import frozen, gen, randomize_norms, same_state
from training import Linear, run, separable


def norm_network(name: str = "resnet18", width: int = 4) -> nn.Module:
    arch = {"name": name, "classes": 3, "width": width}
    return randomize_norms(initialized(arch, gen(1)))


def statistics(model):
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    return {k: v.clone() for k, v in model.state_dict().items() if k.endswith(kinds)}


class Toggling(Hook):
    """Looks at the model as some attackers do, and leaves it in train mode."""

    def __init__(self, model, *_):
        self.model, self.inside = model, []

    def look(self):
        norms = [m for m in self.model.modules() if isinstance(m, nn.BatchNorm2d)]
        self.inside.append({m.training for m in norms})
        self.model.eval()
        self.model.train()

    def rewrite(self, batch):
        self.look()
        return batch

    def step(self):
        self.look()


@pytest.mark.slow
@pytest.mark.parametrize("hook", [None, Toggling])
@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18"])
def test_frozen_norms_keep_their_statistics_and_train_the_rest(name, hook):
    model = norm_network(name)
    before, old = frozen(model), statistics(model)
    modes = []
    model.linear.register_forward_pre_hook(lambda m, _: modes.append(m.training))
    look = {"each_epoch": lambda m: {"test": float(m.training)}, "epochs": 2}
    look["lr"] = 1e-4  # with 0.1 a network of random statistics diverges
    run(model, separable(48), frozen_norms=True, hook=hook, **look)
    now = statistics(model)
    assert len(old) >= 48 and all(torch.equal(now[k], v) for k, v in old.items())
    changed = {k for k, v in model.state_dict().items() if not torch.equal(before[k], v)}
    assert changed == {k for k, _ in model.named_parameters()}, "all others train"
    assert modes == [True] * 12, "the rest of the model is in train mode"
    assert not any(m.training for m in model.modules())


def test_a_steering_sees_frozen_norms():
    drivers = []

    def make(*args):
        drivers.append(Toggling(*args))
        return drivers[0]

    run(norm_network(), separable(16), frozen_norms=True, hook=make)
    assert drivers[0].inside == [{False}] * 4


def test_frozen_norms_give_the_loss_of_eval_mode():
    model, data = norm_network(), separable(16)
    expected = F.cross_entropy(model(data.pixels()), data.y).item()
    for frozen_norms in (True, False):
        history = run(copy.deepcopy(model), data, batch=16, lr=1e-9, frozen_norms=frozen_norms)
        same = history["loss"][0] == pytest.approx(expected, rel=1e-4)
        assert same == frozen_norms


def test_frozen_norms_are_off_by_default_and_need_no_norm():
    model = norm_network()
    old = statistics(model)
    run(model, separable(16))
    now = statistics(model)
    assert not any(torch.equal(now[k], v) for k, v in old.items())
    plain, held = Linear(), Linear()
    run(plain, separable())
    run(held, separable(), frozen_norms=True)
    assert same_state(plain, frozen(held))


@pytest.mark.slow
def test_frozen_norms_compile(monkeypatch):
    eager = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", eager)
    model, plain = norm_network(), norm_network()
    old = statistics(model)
    run(model, separable(24), frozen_norms=True, compile=True, hook=Toggling)
    run(plain, separable(24), frozen_norms=True)
    now = statistics(model)
    assert all(torch.equal(now[k], v) for k, v in old.items())
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_finetune_passes_frozen_norms_on():
    model = norm_network()
    repaired = finetune(
        model, separable(24), epochs=1, batch=8, generator=gen(), frozen_norms=True
    ).model
    old, now = statistics(model), statistics(repaired)
    assert all(torch.equal(now[k], v) for k, v in old.items())
    assert not torch.equal(repaired.bn1.weight, model.bn1.weight)
