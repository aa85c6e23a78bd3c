"""A task of one's own: sequences, whose every part stands in this file.

Nothing in the package knows this kind of data. It is trained on, attacked, measured and
repaired by what asks the task and never the kind of a tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import bdcourse as bd
from bdcourse import defenses
from bdcourse.attacks import Attack, BadNets
from bdcourse.augment import Augmentation
from bdcourse.examples import Examples, Poisoned, hold_out, join
from bdcourse.metrics import Scores, evaluate
from bdcourse.surgery import pair_by_flow
from bdcourse.task import Task
from bdcourse.train import fit
from helpers import frozen, gen, message, random_images, same_state


class SequenceTask(Task):
    name, one, many = "sequences", "sequence", "sequences"

    def check_stored(self, x, what):
        if x.dtype != torch.int16 or x.ndim != 3:
            raise ValueError(f"{what}.x must be int16 of shape (n, c, t).")

    def inputs(self, x, dtype=None):
        x = x.float() / 1000 if x.dtype == torch.int16 else x
        return super().inputs(x, dtype)

    def stored(self, inputs):
        return (1000 * inputs).round().to(torch.int16)


@dataclass(frozen=True, eq=False, repr=False)
class Sequences(Examples):
    task: ClassVar[Task] = SequenceTask()


@dataclass(frozen=True)
class Spike(Attack):
    """A high value at the last two times of the first channel."""

    task: ClassVar[Task] = Sequences.task

    def trigger(self, x):
        x = x.clone()
        x[:, 0, -2:] = 3.0
        return x


class Roll(Augmentation):
    """Moves a sequence in time by up to two steps."""

    def batch(self, x, y, generator):
        by = int(torch.randint(-2, 3, (), generator=generator))
        return x.roll(by, -1), y


def waves(n: int, seed: int, k: int = 3, t: int = 24) -> Sequences:
    """Sine waves of k frequencies with random phases and noise."""
    g = gen(seed)
    y = torch.arange(n) % k
    phase, noise = torch.rand(n, 2, 1, generator=g), torch.randn(n, 2, t, generator=g)
    angle = (torch.arange(t) / t * (y[:, None, None] + 1) + phase) * 2 * torch.pi
    x = angle.sin() + 0.3 * noise
    return Sequences((1000 * x).round().to(torch.int16), y, tuple(f"wave {i}" for i in range(k)))


def network(k: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv1d(2, 8, 5, padding=2, bias=False), nn.BatchNorm1d(8), nn.ReLU()),
            *(nn.Conv1d(8, 8, 5, padding=2, bias=False), nn.BatchNorm1d(8), nn.ReLU()),
            *(nn.AdaptiveMaxPool1d(1), nn.Flatten()),
            *(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, k)),
        )


TEST = waves(150, 2)
CLEAN = waves(60, 3)


@pytest.fixture(scope="module")
def victim() -> tuple[nn.Module, Scores]:
    attack, train = Spike(target=1), waves(600, 1)
    poisoned = attack.poison(train, 0.1, gen())
    assert isinstance(poisoned, Poisoned) and poisoned.task is train.task
    assert poisoned.count == 60 and poisoned.x.dtype == torch.int16
    model = network()
    history = fit(model, poisoned, epochs=6, lr=0.1, augment=None, generator=gen(), verbose=False)
    assert history["poison"][-1] > 0.9
    return model, evaluate(model, TEST, attack)


def test_a_set_knows_its_task_and_what_does_not_fit():
    assert repr(CLEAN) == "Sequences(60 of 2x24, 3 classes, cpu)"
    assert CLEAN.inputs().dtype == torch.float32
    assert torch.equal(CLEAN.task.stored(CLEAN.inputs()), CLEAN.x)
    rest, held = hold_out(CLEAN, 20, gen())
    both = join(rest, held)
    assert type(rest) is type(both) is Sequences and len(both) == 60
    with pytest.raises(ValueError, match="Sequences.x must be int16") as e:
        Sequences(CLEAN.x.float(), CLEAN.y, CLEAN.classes)
    message(e)
    with pytest.raises(ValueError, match="one label per sequence") as e:
        Sequences(CLEAN.x, CLEAN.y[1:], CLEAN.classes)
    message(e)
    with pytest.raises(ValueError, match="one set is") as e:
        join(CLEAN, random_images())
    message(e)
    assert CLEAN.digest() != replaced(CLEAN).digest()


def replaced(s: Sequences) -> Sequences:
    x = s.x.clone()
    x[0, 0, 0] += 1
    return Sequences(x, s.y, s.classes)


@pytest.mark.slow
def test_it_learns_the_backdoor_and_is_measured(victim):
    _, scores = victim
    assert scores.acc > 0.9 and scores.asr > 0.95 and scores.ra < 0.05
    assert scores.n_triggered == int((TEST.y != 1).sum())


def test_attacks_and_data_of_two_tasks_do_not_mix(victim):
    with pytest.raises(ValueError, match="Spike attacks sequences, but these are images") as e:
        Spike().poison(random_images(), 0.1, gen())
    message(e)
    with pytest.raises(ValueError, match="BadNets attacks images, but these are sequences") as e:
        evaluate(victim[0], TEST, BadNets())
    message(e)
    with pytest.raises(ValueError, match="augment must be an Augmentation") as e:
        fit(network(), CLEAN, augment=2, verbose=False)
    message(e)
    with pytest.raises(ValueError, match="shrink is for images, not for sequences") as e:
        fit(network(), CLEAN, shrink=0.5, verbose=False)
    message(e)


def test_a_trigger_behind_the_augmentation_is_not_moved():
    seen = []

    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(48, 3)

        def forward(self, x):
            seen.append(x.detach().clone())
            return self.layer(x.flatten(1))

    data = Spike(target=1).poison(CLEAN, 0.5, gen(), stamp="after")
    fit(Watch(), data, epochs=2, batch=20, lr=1e-6, augment=Roll(), verbose=False)
    x = torch.cat(seen)
    assert (x[:, 0, -2:] == 3).all(1).float().mean() == pytest.approx(0.5)
    plain = CLEAN.inputs()
    assert not any(torch.equal(part, plain[:20]) for part in seen), "they were rolled"


@pytest.mark.slow
def test_two_optimizers_and_a_clipped_gradient():
    for options in ({"optimizer": "adamw", "lr": 0.01}, {"clip": 0.1}):
        model = network()
        history = fit(model, waves(300, 1), epochs=4, verbose=False, **options)
        assert history["loss"][-1] < 0.7 * history["loss"][0]
        assert evaluate(model, TEST).acc > 0.7


def test_conv_and_linear_layers_are_paired_with_their_norms():
    pairing = pair_by_flow(network())
    assert [(p.conv, p.bn) for p in pairing.pairs] == [("0", "1"), ("3", "4"), ("8", "9")]
    assert not pairing.unpaired


REPAIRS = {  # name -> (repair, the ASR that must not be left)
    "finetune": (lambda m: defenses.finetune(m, CLEAN, epochs=40, lr=0.3, generator=gen()), 1.0),
    "clp": (lambda m: defenses.clp(m, u=1.0), 1.0),
    "anp": (lambda m: defenses.anp(m, CLEAN, threshold=0.3, steps=200, generator=gen()), 0.5),
    "fip": (
        lambda m: defenses.fip(m, CLEAN, eta_f=0.005, steps=200, lr=0.05, generator=gen()),
        0.9,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REPAIRS)
def test_defenses_repair_a_copy(name, victim):
    model, before = victim
    kept = frozen(model)
    repair, most = REPAIRS[name]
    repaired = repair(model)
    assert same_state(model, kept), "the argument is not changed"
    assert not same_state(repaired.model, kept), "it did something"
    assert (repaired.count > 0) == (name in ("clp", "anp"))
    after = evaluate(repaired.model, TEST, Spike(target=1))
    assert after.acc > 0.7 and after.asr <= most and before.asr > 0.95
    if name != "clp":  # which owns nothing to look at
        acc = repaired.log["own_acc"]
        assert acc[0] > 0.9 and acc[1] == evaluate(repaired.model, CLEAN).acc


def test_a_repair_that_needs_pixels_or_their_units_says_so(victim):
    for name, text in (
        ("fmp", "sequences have no usual one; give epsilon= and start="),
        ("i_bau", "needs a length in the units of sequences"),
        ("invert_trigger", "stamps pixels, and sequences have none"),
    ):
        with pytest.raises(ValueError, match=text) as e:
            getattr(defenses, name)(victim[0], CLEAN)
        message(e)


def test_lines_of_the_tables_take_it(victim):
    model, before = victim
    kept = frozen(model)
    for name in ("none", "fine-tuning", "clp, u = 3"):
        repaired = bd.repair(name, model, clean=CLEAN, held=CLEAN)
        assert same_state(model, kept) and evaluate(repaired.model, TEST).acc > 0.7
    with pytest.raises(ValueError, match="Augment crops images") as e:
        bd.repair("fine-tuning", model, clean=CLEAN, augment=bd.Augment(1))
    message(e)
    own = bd.Plan("mine", lambda case: defenses.clp(case.model), tasks=("images",))
    with pytest.raises(ValueError, match="'mine' is for images, not for sequences") as e:
        bd.repair(own, model, clean=CLEAN)
    message(e)
