"""Every defense on every task: it runs, or refuses in one sentence that names what is missing.

Clips stand for pixels beyond images; the other tasks are toys of this file, small networks of
each kind on data without meaning: points (n, p, 3) with Conv1d, Linear and BatchNorm1d,
tokens with an embedding and no BatchNorm, and scenes with several targets each.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from bdcourse import activations, defenses
from bdcourse.attacks import Attack
from bdcourse.defenses import DEFENSES, Purified, _fmp, _mnp
from bdcourse.defenses._fine_pruning import activity, last_layer
from bdcourse.defenses._i_bau import perturbed_loss, universal
from bdcourse.defenses._linf import linf_curve, linf_default_layer, linf_plain_curve
from bdcourse.defenses._nad import attention, stages
from bdcourse.examples import Examples
from bdcourse.likelihoods import SOFTMAX, Likelihood
from bdcourse.surgery import pair_by_flow, pair_by_order
from bdcourse.task import PixelTask, Task
from bdcourse.tasks import video
from bdcourse.tasks.video import ClipPatch
from helpers import frozen, gen, message, same_state
from sweep import refusal

K = 3
NAMES = ("a", "b", "c")


# ---------------------------------------------------------------- toy tasks


class PointTask(Task):
    name, one, many, step = "toy points", "cloud", "clouds", 0.01


@dataclass(frozen=True, eq=False, repr=False)
class Clouds(Examples):
    task: ClassVar[Task] = PointTask()


class PointNet(nn.Module):
    """A shared MLP over points, the largest answer of each unit, a head with a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(3, 6, 1, bias=False), nn.BatchNorm1d(6)
        self.conv2, self.bn2 = nn.Conv1d(6, 8, 1, bias=False), nn.BatchNorm1d(8)
        self.fc, self.bn3 = nn.Linear(8, 5, bias=False), nn.BatchNorm1d(5)
        self.head = nn.Linear(5, K)

    def forward(self, x):
        x = self.bn1(self.conv1(x.transpose(1, 2))).relu()
        x = self.bn2(self.conv2(x)).relu().amax(2)
        return self.head(self.bn3(self.fc(x)).relu())


class TokenTask(Task):
    name, one, many = "toy text", "sentence", "sentences"


@dataclass(frozen=True, eq=False, repr=False)
class Sentences(Examples):
    task: ClassVar[Task] = TokenTask()


class Reader(nn.Module):
    """An embedding, a LayerNorm, an MLP and a head: no BatchNorm and no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, 6), nn.LayerNorm(6)
        self.fc1, self.fc2, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, K)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))
        return self.head(x.mean(1))


class Cells(Likelihood):
    """One yes or no for each of several cells."""

    def log_prob(self, out, y):
        return -nn.functional.binary_cross_entropy_with_logits(out, y, reduction="none").sum((1, 2))

    def sample(self, out, generator):
        return torch.bernoulli(out.detach().sigmoid(), generator=generator)

    def hits(self, out, y):
        right = ((out > 0) == (y > 0.5)).flatten(1)
        return right.sum(1), right.new_full((len(y),), right.shape[1], dtype=torch.int64)


class SceneTask(PixelTask):
    name, one, many, likelihood = "toy boxes", "scene", "scenes", Cells()

    def check(self, x, y, classes, what):
        self.check_stored(x, what)

    def check_outputs(self, out, n, k=None, name="the model"):
        return out

    def check_learnable(self, out, y, data):
        pass

    def _said(self, model, x):
        return model(x).float()

    def answer(self, model, x, batch=500, k=None, what="the network's answers"):
        return self.outputs(model, x, batch, what) > 0

    def correct(self, answers, y):
        return (answers == (y > 0.5)).flatten(1).all(1)

    def quality(self, answers, y):
        return {"cells": float((answers == (y > 0.5)).float().mean())}


@dataclass(frozen=True, eq=False, repr=False)
class Scenes(Examples):
    task: ClassVar[Task] = SceneTask()


class Detector(nn.Module):
    """A convolutional body, and an answer for each of 4 x 4 cells: (n, 16, k)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.Conv2d(6, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
        )
        self.head = nn.Conv2d(8, K, 1)

    def forward(self, x):
        return self.head(self.body(x)).flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class Shift(Attack):
    """Moves the whole cloud up."""

    task: ClassVar[Task] = Clouds.task

    def trigger(self, x):
        return x + torch.tensor([0.0, 0.0, 0.5])


def built(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = make()
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_var.copy_(torch.rand(m.num_features, generator=gen()) + 0.5)
            m.weight.data.copy_(torch.rand(m.num_features, generator=gen(1)) + 0.5)
    return net.eval()


def sets(kind, *shapes):
    return [kind(x, y, NAMES) for x, y in shapes]


def labels(n):
    return torch.arange(n) % K


def clips(n, seed):
    c = video.draw(8 * n, seed=seed)
    c = c[c.y < K][:n]
    return video.Clips(c.x, c.y, NAMES)


def made(name):
    """(network, clean, held) of a task."""
    if name == "video":
        return built(lambda: video.conv3d(K, 4)), clips(12, 1), clips(6, 2)
    if name == "points":
        x = torch.rand(18, 10, 3, generator=gen()) * 2 - 1
        y = labels(18)
        return built(PointNet), Clouds(x[:12], y[:12], NAMES), Clouds(x[12:], y[12:], NAMES)
    if name == "text":
        x, y = torch.randint(11, (18, 5), generator=gen()), labels(18)
        return built(Reader), Sentences(x[:12], y[:12], NAMES), Sentences(x[12:], y[12:], NAMES)
    x = torch.randint(256, (18, 3, 16, 16), generator=gen(), dtype=torch.uint8)
    y = torch.rand(18, 16, K, generator=gen(1)).round()
    return built(Detector), Scenes(x[:12], y[:12], NAMES), Scenes(x[12:], y[12:], NAMES)


TASKS = ("video", "points", "text", "detection")


def found(model, clean):
    return defenses.invert_trigger(model, clean, steps=2, every=1, generator=gen())


def first(model):
    names = [
        n for n, m in model.named_modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    ]
    return {n: torch.tensor([0]) for n in names[:1]}


ONE = {"epochs": 1, "batch": 6}
RUNS = {
    "linf": lambda m, c, h: defenses.linf(m, c, h, found(m, c).trigger(1)),
    "clp": lambda m, c, h: defenses.clp(m, 0.5),
    "fmp": lambda m, c, h: defenses.fmp(m, c, least=1, n=4, **ONE),
    "mnp": lambda m, c, h: defenses.mnp(m, c, steps=2, mask_lr=1.0, epochs=1),
    "fip": lambda m, c, h: defenses.fip(m, c, h, steps=2, lr=1e-3, batch=6),
    "fast_fip": lambda m, c, h: defenses.fast_fip(m, c, h, steps=2, lr=1e-3, batch=6),
    "anp": lambda m, c, h: defenses.anp(m, c, h, steps=2),
    "rnp": lambda m, c, h: defenses.rnp(m, c, h, steps=2, epochs=1),
    "fine_pruning": lambda m, c, h: defenses.fine_pruning(m, c, h, share=0.5, max_drop=1.0, **ONE),
    "ft_sam": lambda m, c, h: defenses.ft_sam(m, c, **ONE),
    "nad": lambda m, c, h: defenses.nad(m, c, betas=[1.0], teacher_epochs=1, **ONE),
    "i_bau": lambda m, c, h: defenses.i_bau(m, c, rounds=1, passes=1, steps=1),
    "nc_unlearning": lambda m, c, h: defenses.nc_unlearning(m, c, found(m, c), label=1, **ONE),
    "finetune": lambda m, c, h: defenses.finetune(m, c, optimizer="adamw", lr=1e-3, **ONE),
    "prune_random": lambda m, c, h: defenses.prune_random(m, first(m)),
    "fmp_random": lambda m, c, h: defenses.fmp_random(m, c, first(m), **ONE),
    "fip_released": lambda m, c, h: defenses.fip_released(m, c, steps=2, probes=1),
    "invert_trigger": lambda m, c, h: found(m, c),
    "detect": lambda m, c, h: defenses.detect(found(m, c)),
    "linf_oracle": lambda m, c, h: defenses.linf_oracle(m, c, h, ATTACKS[c.task.name]),
}
ATTACKS = {"video": ClipPatch(), "toy points": Shift(target=1)}
ATTACKS |= {"toy text": ATTACKS["toy points"], "toy boxes": ClipPatch()}
PIXELS = "stamps pixels, and {} have none"
CLASS = "needs one class for each example, and scenes have targets of another kind"
SEARCH = ("linf", "nc_unlearning", "invert_trigger", "detect")
# What does not run there, and the words of the refusal; the rest runs.
REFUSES = {
    "video": {},
    "points": dict.fromkeys(SEARCH, PIXELS.format("clouds"))
    | {"i_bau": "needs a length in the units of clouds"},
    "text": dict.fromkeys(SEARCH, PIXELS.format("sentences"))
    | dict.fromkeys(("anp", "rnp", "mnp"), "no BatchNorm with a scale for a mask")
    | dict.fromkeys(("fmp", "i_bau", "linf_oracle"), "entries of a list, which cannot move")
    | {
        "nad": "one layer for each of its 1 betas, but there are 0",
        "fine_pruning": "Fine-Pruning needs a convolutional layer",
    },
    "detection": dict.fromkeys((*SEARCH, "linf_oracle"), CLASS)
    | {
        "ft_sam": "Cells has no smoothing; pass smoothing=0",
        "fine_pruning": "the model has no linear layer",
        "fip_released": "the released script knows classes only",
    },
}
# Nothing is pruned where no channel stands out, or none can be found.
IDLE = {(t, n) for t in TASKS for n in ("anp", "rnp", "mnp", "linf_oracle", "linf")}
IDLE |= {("text", n) for n in ("clp", "prune_random", "fmp_random")}


def test_the_table_names_every_defense():
    assert set(RUNS) == set(DEFENSES) | {"invert_trigger", "detect", "linf_oracle"}
    assert set(REFUSES) == set(TASKS)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", RUNS)
def test_it_runs_or_says_what_is_missing(name, task):
    model, clean, held = made(task)
    before = frozen(model)
    result = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = refusal(lambda: result.append(RUNS[name](model, clean, held)))
    assert same_state(model, before)
    if words := REFUSES[task].get(name):
        assert text is not None and words in text, text
        return
    assert text is None, text
    if isinstance(result[0], Purified) and (task, name) not in IDLE:
        assert not same_state(result[0].model, before), "it did something"


# ---------------------------------------------------------------- what they compute


def test_fmp_steps_in_units_of_the_inputs_and_stays_where_they_may_be():
    for task, low in (("video", 0.0), ("points", None)):
        model, clean, _ = made(task)
        own, x = clean.task, clean.inputs()
        x0 = _fmp.fmp_random_start(x, own.step, gen(), own)
        pushed = _fmp.fmp_plain_push(model, x, x0, next(iter(first(model))), 0, own.step, own)
        moved = (pushed - x0).abs()
        assert float(moved.max()) == pytest.approx(own.step, rel=1e-3)
        if low is None:  # a clamp to [0, 1] would throw half of a cloud away
            assert float(pushed.min()) < -0.5
        else:
            assert low <= float(pushed.min()) and float(pushed.max()) <= 1
    assert video.CLIPS.step == 1 / 255 and video.CLIPS.bounds == (0, 1)
    x = torch.tensor([-3.0, 7.0])
    assert torch.equal(Clouds.task.clip(x), x) and video.CLIPS.clip(x).tolist() == [0, 1]
    with pytest.raises(ValueError, match="have no usual one; give epsilon= and start=") as e:
        defenses.fmp_scores(built(PointNet), bare(), generator=gen())
    message(e)
    assert defenses.fmp_scores(built(PointNet), bare(), epsilon=0.01, start=0.01, n=4)


def bare():
    @dataclass(frozen=True, eq=False, repr=False)
    class Bare(Clouds):
        task: ClassVar[Task] = Task()

    _, clean, _ = made("points")
    return Bare(clean.x, clean.y, NAMES)


@pytest.mark.parametrize("task", ["video", "points", "detection"])
def test_scores_of_maps_are_those_of_the_plain_way(task):
    model, clean, _ = made(task)
    name = list(first(model))[0]
    own, x = clean.task, clean.inputs()
    fast = defenses.fmp_scores(model, clean, layers=[name], generator=gen())[name]
    x0 = _fmp.fmp_random_start(x, own.step, gen(), own)
    plain = defenses.fmp_plain_scores(model, x, clean.y, x0, name, own.step, own)
    torch.testing.assert_close(fast.acc, plain.acc)
    torch.testing.assert_close(fast.loss, plain.loss, rtol=1e-5, atol=1e-6)
    assert bool(fast.margin.isnan().all()) == (task == "detection")
    if task == "detection":
        with pytest.raises(ValueError, match="has no margin to choose by, which only classes") as e:
            defenses.fmp_select({name: fast}, 2, by="margin")
        message(e)


@pytest.mark.parametrize("task", ["video", "points", "detection"])
def test_what_removing_a_channel_costs_is_that_of_the_plain_way(task):
    model, clean, _ = made(task)
    fast = defenses.mnp_loss_changes(model, clean, room=200)
    plain = _mnp.mnp_plain_loss_changes(model, clean)
    assert fast.keys() == plain.keys() == set(activations.batchnorms(model))
    for n, v in plain.items():
        torch.testing.assert_close(fast[n], v, rtol=1e-4, atol=1e-5)


def test_all_layers_are_paired_with_their_norms():
    pairs = {"points": [("conv1", "bn1"), ("conv2", "bn2"), ("fc", "bn3")]}
    pairs["video"] = [("1", "2"), ("4", "5"), ("7", "8"), ("10", "11")]
    for task, want in pairs.items():
        model, *_ = made(task)
        assert [(p.conv, p.bn) for p in pair_by_flow(model).pairs] == want
        by_order = [(p.conv, p.bn) for p in pair_by_order(model).pairs]
        # The release's order knows no linear layers, and pairs bn3 with what came before.
        assert by_order == [p for p in want if p[0] != "fc"]


def test_maps_over_any_positions():
    maps = torch.rand(2, 4, 3, 5, 6, generator=gen())
    assert torch.equal(defenses._linf.linf_norms(maps), maps.amax((2, 3, 4)))
    want = maps.square().sum(1).flatten(1)
    torch.testing.assert_close(attention(maps), want / want.norm(dim=1, keepdim=True))
    for task, layer in (("video", "12"), ("points", "bn2")):
        model, clean, _ = made(task)
        x = clean.inputs()
        assert linf_default_layer(model, tuple(x.shape[1:])) == layer
        seen = activations.outputs(model, x, [layer], clean.task)[layer]
        norms = activations.norms(model, x, [layer], float("inf"), clean.task)[layer]
        torch.testing.assert_close(norms, seen.flatten(2).abs().amax(2).mean(0))
        change = activations.tac(model, clean, ATTACKS[clean.task.name])
        assert all(len(v) == len(model.get_submodule(n).weight) for n, v in change.items())
    heat = activations.grad_cam(*cam("video"))
    assert heat.shape == (2, 12, 32, 32) and 0 <= float(heat.min()) <= float(heat.max()) <= 1
    assert activations.grad_cam(*cam("points")).shape == (2, 10)
    with pytest.raises(ValueError, match="Grad-CAM differentiates along the inputs") as e:
        activations.grad_cam(*cam("text"))
    message(e)


def cam(task):
    model, clean, _ = made(task)
    layer = {"video": "7", "points": "conv2", "text": "fc1"}[task]
    return model, clean[:2].inputs(), clean.y[:2], layer, clean.task


def test_switching_channels_off_together_is_one_by_one():
    model, clean, _ = made("video")
    model, switch = defenses.linf_gated(model, "12", clean.shape)
    of = [{switch: torch.tensor(c)} for c in ([0], [1, 2], [3])]
    for attack in (None, ClipPatch()):
        assert linf_curve(model, clean, attack, of) == linf_plain_curve(model, clean, attack, of)


def test_what_sleeps_behind_the_pooling():
    model, clean, _ = made("points")
    assert last_layer(model) == ["bn2"], "what the head with its BatchNorm reads"
    maps = activations.outputs(model, clean.x, ["bn2"], clean.task)["bn2"].relu()
    torch.testing.assert_close(activity(model, clean), maps.amax(2).mean(0))
    torch.testing.assert_close(activity(model, clean, ["bn2"]), maps.mean((0, 2)))
    reader, text, held = made("text")
    hidden = activations.outputs(reader, text.x, ["fc1"], text.task)["fc1"].relu()
    torch.testing.assert_close(activity(reader, text, ["fc1"]), hidden.mean((0, 1)))
    p = defenses.fine_pruning(reader, text, held, layer="fc1", share=0.2, max_drop=1.0, **ONE)
    off = p.pruned["fc1"]
    assert len(off) and not p.model.fc1.weight[off].any() and not p.model.fc1.bias[off].any()


def test_stages_of_attention_and_their_names():
    model, clean, _ = made("video")
    assert stages(model, clean) == ["3", "6", "12"]
    model, clean, _ = made("points")
    assert stages(model, clean) == ["bn2"]
    how = {"layers": ["bn1", "bn2"], "betas": [10.0, 10.0], "teacher_epochs": 1, **ONE}
    assert set(defenses.nad(model, clean, **how).log["distances"]) == {"bn1", "bn2"}


def test_a_universal_change_of_a_cloud_is_not_clipped():
    model, clean, _ = made("points")
    x, y, own = clean.inputs(), clean.y, clean.task
    delta = universal(model, [(x, y)] * 3, 10.0, 0.7, own)
    assert delta.shape == (1, 10, 3) and float(delta.norm()) <= 0.7 + 1e-5
    want = SOFTMAX.loss(model(x + delta), y)
    torch.testing.assert_close(perturbed_loss(model, x, y, delta, own), want)
    p = defenses.i_bau(model, clean, radius=0.5, rounds=1, passes=1, steps=2)
    assert float(p.log["delta"].norm()) <= 0.5 + 1e-5


def test_a_guess_is_a_mask_over_frames_and_pixels():
    model, clean, _ = made("video")
    inverted = found(model, clean)
    assert inverted.masks.shape == (K, 1, 12, 32, 32)
    guess = inverted.trigger(1)
    x = clean.inputs()
    want = (1 - guess.mask) * x + guess.mask * guess.pattern
    assert torch.equal(guess.stamp(x), want.clamp(0, 1))
