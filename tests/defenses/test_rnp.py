"""RNP: the ascent and its traps, the recovery, the whole defense."""

from __future__ import annotations

import copy
import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bdcourse.checkpoint import Checkpoint
from bdcourse.defenses import Purified, _rnp, masks_forward, rnp
from bdcourse.defenses._masks import below
from bdcourse.defenses._rnp import ascend, recover, unlearn
from bdcourse.metrics import evaluate
from bdcourse.models import build
from bdcourse.surgery import without
from bdcourse.train import fit
from bdcourse.victims import initialized
from helpers import frozen, gen, message, random_images, randomize_norms, same_state


def network(name="resnet18", width=4, seed=0):
    arch = {"name": name, "classes": 3, "width": width}
    return randomize_norms(initialized(arch, gen(seed)), seed)


def striped(n=48, side=8, seed=0):
    """Noise with one bright row that tells the class: easy to learn and to forget."""
    images = random_images(n, 3, side, seed=seed)
    for k in range(3):
        images.x[images.y == k, :, 2 * k] = 255
    return images


@pytest.fixture(scope="module")
def trained():
    model = initialized({"name": "resnet18", "classes": 3, "width": 4}, gen(0))
    images = striped()
    fit(model, images, epochs=30, batch=16, lr=0.05, generator=gen(), verbose=False)
    assert evaluate(model, images).acc > 0.9
    model.zero_grad()
    return model


def quickly(**more):
    return {"lr": 0.1, "batch": 24, "epochs": 40, "generator": gen()} | more


# --------------------------------------------------------------------- the ascent


def test_one_step_goes_up_and_shrinks():
    """Against w + lr * (grad - decay * w), written out."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    w = model[1].weight.detach().clone()
    x, y = torch.rand(6, 3, 2, 2, dtype=torch.float64), torch.arange(6) % 3
    opt = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=0.5)
    loss = F.cross_entropy(model(x), y)
    value = loss.item()
    (grad,) = torch.autograd.grad(loss, [model[1].weight])
    before, hits, length = ascend(model, opt, x, y, clip=None)
    assert torch.allclose(model[1].weight, w + 0.1 * (grad - 0.5 * w))
    assert float(before) == pytest.approx(value)
    assert 0 <= int(hits) <= 6 and float(length) > float(grad.norm())


def test_decay_alone_shrinks():
    """The sign trap: with no gradient, an ascent on loss plus decay would grow."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    w = model[1].weight.detach().clone()
    opt = torch.optim.SGD(model.parameters(), 0.1, weight_decay=1.0)
    ascend(model, opt, torch.zeros(6, 3, 2, 2), torch.arange(6) % 3, clip=None)
    assert torch.allclose(model[1].weight, 0.9 * w)


def test_clipping_acts_because_it_comes_after_backward():
    def step(clip):
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False))
        model[1].weight.data = torch.arange(36.0).view(3, 12) / 10
        w = model[1].weight.detach().clone()
        opt = torch.optim.SGD(model.parameters(), 1.0)
        x, y = torch.ones(6, 3, 2, 2), torch.arange(6) % 3
        length = ascend(model, opt, x, y, clip)[2]
        return float(length), float((model[1].weight.detach() - w).norm())

    free, moved = step(None)
    assert moved == pytest.approx(free, rel=1e-5) and free > 0.5
    length, moved = step(0.1)
    assert length == pytest.approx(free), "the length before the cut"
    assert moved == pytest.approx(0.1, rel=1e-3)


@pytest.mark.slow
def test_unlearning_stops_by_accuracy(trained):
    before, images = frozen(trained), striped()
    trained.layer1.train()
    net, log = unlearn(trained, images, judge="eval", stop=0.4, **quickly())
    trained.eval()
    assert same_state(trained, before)
    assert all(p.requires_grad and p.grad is None for p in trained.parameters())
    assert log["reached"] and log["acc"][-1] <= 0.4 < min(log["acc"][:-1])
    assert log["acc"][-1] == evaluate(net, images).acc
    assert log["loss"][-1] > log["loss"][0] and len(log["length"]) == len(log["acc"])
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    assert not torch.equal(net.bn1.running_mean, trained.bn1.running_mean)


def test_the_two_judges(trained):
    images = striped()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = unlearn(trained, images, judge="pass", stop=0.0, **quickly(epochs=1))
        two = unlearn(trained, images, judge="eval", stop=0.0, **quickly(epochs=1))
    assert same_state(one[0], frozen(two[0])), "only the reading differs"
    assert two[1]["acc"] == [evaluate(two[0], images).acc]
    assert 0 <= one[1]["acc"][0] <= 1 and one[1]["loss"] == two[1]["loss"]


def test_not_reaching_the_stop_is_said(trained):
    with pytest.warns(UserWarning, match="after 1 epochs at an accuracy of .* above"):
        _, log = unlearn(trained, striped(), stop=0.0, **quickly(epochs=1, lr=1e-4))
    assert not log["reached"] and len(log["acc"]) == 1


@pytest.mark.slow
def test_the_rate_falls(trained):
    rates, real = [], _rnp.ascend

    def watch(net, opt, *args):
        rates.append(opt.param_groups[0]["lr"])
        return real(net, opt, *args)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(_rnp, "ascend", watch)
        for drop in (2, None):
            unlearn(trained, striped(), stop=0.0, drop=drop, **quickly(epochs=3, lr=1e-3, batch=24))
    assert rates == pytest.approx([1e-3] * 4 + [1e-4] * 2 + [1e-3] * 6)


@pytest.mark.slow
def test_batches_are_equal_and_never_of_one(trained):
    sizes, real = [], _rnp.ascend

    def watch(net, opt, x, *rest):
        sizes.append(len(x))
        return real(net, opt, x, *rest)

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(_rnp, "ascend", watch)
        images = striped(33)
        for batch in (32, 1, 100):
            unlearn(trained, images, stop=0.0, **quickly(epochs=1, lr=1e-4, batch=batch))
    assert sizes[:2] == [17, 16] and sizes[-1] == 33
    assert min(sizes) == 2 and sum(sizes) == 3 * 33


@pytest.mark.slow
def test_dropout_stays_off():
    """It would draw from torch's global generator."""
    model = build("mobilenet", classes=3, width=8)
    images = random_images(8, side=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nets = [unlearn(model, images, stop=0.0, epochs=1, generator=gen())[0] for _ in range(2)]
    assert same_state(nets[0], frozen(nets[1]))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"stop": 1.2}, "stop"),
        ({"judge": "test"}, '"pass" or "eval"'),
        ({"epochs": 0}, "epochs"),
        ({"lr": -1}, "lr"),
        ({"batch": 0}, "batch"),
        ({"clip": 0}, "clip"),
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0"),
        ({"momentum": 2}, "momentum"),
    ],
)
def test_unlearn_refuses(change, text):
    with pytest.raises(ValueError, match=text) as e:
        unlearn(network(), striped(6), **{"generator": gen(), **change})
    message(e)


def test_unlearn_refuses_one_image_and_infinity():
    with pytest.raises(ValueError, match="at least 2 images"):
        unlearn(network(), striped(6)[:1], generator=gen())
    with pytest.raises(ValueError, match="left the finite numbers") as e:
        unlearn(network(), striped(12), lr=1e30, clip=None, stop=0.0, generator=gen())
    message(e)


# ------------------------------------------------------------------- the recovery


@pytest.mark.slow
def test_recovery_lowers_the_loss_and_masks_some(trained):
    images = striped()
    net, _ = unlearn(trained, images, judge="eval", stop=0.4, **quickly())
    before = frozen(net)
    masks, course = recover(net, images, steps=30, batch=24, generator=gen())
    assert same_state(net, before), "not even its running statistics"
    assert len(course) == 30 and min(course[-5:]) < course[0]
    assert sum(int((m < 1).sum()) for m in masks.values()) > 5
    assert all(bool(((m >= 0) & (m <= 1)).all()) for m in masks.values())


def test_recovery_takes_one_step_as_written():
    net, images = network(), striped(24)
    masks, course = recover(
        net,
        images,
        steps=1,
        lr=0.5,
        weight=0.3,
        training=False,
        batch=24,
        generator=gen(),
    )
    start = {n: torch.ones_like(m).requires_grad_(True) for n, m in masks.items()}
    loss = F.cross_entropy(masks_forward(net, start, images.pixels()), images.y)
    loss.backward()
    assert course == [pytest.approx(loss.item(), rel=1e-4)]
    for n, m in start.items():
        want = (1 - 0.5 * 0.3 * m.grad).clamp(0, 1)
        assert torch.allclose(masks[n], want, atol=1e-4), n
    batch, _ = recover(net, images, steps=1, batch=24, generator=gen())
    assert any(not torch.equal(batch[n], masks[n]) for n in masks)


# -------------------------------------------------------------------- the defense


def run(model, images, held=None, **more):
    settings = {"lr": 0.1, "batch": 24, "steps": 8, "stop": 0.4, "threshold": 0.9}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rnp(model, images, held, **(settings | {"generator": gen()} | more))


@pytest.mark.slow
def test_rnp_prunes_the_network_as_it_was(trained):
    before, images = frozen(trained), striped()
    p = run(trained, images)
    assert isinstance(p, Purified) and same_state(trained, before)
    assert p.count == sum(map(len, below(p.log["masks"], 0.9).values())) > 0
    # Not a number of the unlearned copy, in particular none of its statistics.
    assert same_state(p.model, frozen(without(trained, p.pruned, shift=False)))
    assert p.log["unlearning"]["reached"] and len(p.log["loss"]) == 8
    assert p.log["threshold"] == 0.9 and p.seconds > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["preact_resnet18", "mobilenet"])
def test_other_models(name):
    model = network(name, 8)
    before = frozen(model)
    p = run(model, striped(24, side=16), epochs=1, steps=2, threshold=0.99)
    assert same_state(model, before) and p.count > 0


@pytest.mark.slow
def test_rnp_is_seeded(trained):
    images = striped()
    a, b, c = (run(trained, images, generator=gen(s)) for s in (0, 0, 1))
    assert a.log["loss"] == b.log["loss"] != c.log["loss"]
    assert same_state(a.model, frozen(b.model))


@pytest.mark.slow
def test_held_images_choose(trained):
    images = striped()
    free = run(trained, images, images, threshold=None, max_drop=1.0)
    assert free.log["threshold"] == pytest.approx(0.9)
    strict = run(trained, images, images, threshold=None, max_drop=0.0)
    assert evaluate(strict.model, images).acc >= evaluate(trained, images).acc


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"threshold": None}, "give held"),
        ({"threshold": 2}, "1 excluded"),
        ({"max_drop": -1}, "max_drop"),
        ({"stop": -0.1}, "stop"),
        ({"steps": 0}, "steps"),
        ({"mask_lr": 0}, "mask_lr"),
        ({"weight": -1}, "weight"),
    ],
)
def test_rnp_refuses_before_it_works(change, text, monkeypatch):
    def never(*args):
        raise AssertionError("worked")

    monkeypatch.setattr(_rnp, "ascend", never)
    with pytest.raises(ValueError, match=text) as e:
        run(network(), striped(24), **change)
    message(e)


def test_rnp_needs_batchnorm():
    with pytest.raises(ValueError, match="no BatchNorm") as e:
        run(build("vit", classes=3, width=16), striped(24, side=32))
    message(e)


def test_rnp_sees_model_and_clean_images():
    names = set(inspect.signature(rnp).parameters)
    assert names == {
        "model",
        "clean",
        "held",
        "threshold",
        "max_drop",
        "stop",
        "judge",
        "epochs",
        "lr",
        "drop",
        "clip",
        "steps",
        "mask_lr",
        "weight",
        "training",
        "batch",
        "generator",
        "checkpoint",
    }


@pytest.mark.slow
@pytest.mark.parametrize("where", ["ascend", "masks_forward"])
def test_stopped_rnp_ends_as_if_never_stopped(tmp_path, monkeypatch, where, trained):
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    images, path = striped(), tmp_path / "rnp"
    whole = run(trained, images)
    calls, real = [], getattr(_rnp, where)

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(_rnp, where, stopping)
    with pytest.raises(KeyboardInterrupt):
        run(trained, images, checkpoint=path)
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert kept == ["rnp.recover", "rnp.unlearn"][where == "ascend" :]
    with pytest.raises(ValueError, match="other work"):
        run(copy.deepcopy(without(trained, {"bn1": torch.tensor([0])})), images, checkpoint=path)
    calls.append(1)
    rest = run(trained, images, checkpoint=path)
    assert rest.log["unlearning"] == whole.log["unlearning"]
    assert rest.log["loss"] == whole.log["loss"]
    assert same_state(rest.model, frozen(whole.model))
    if where == "forward":
        assert len(calls) == 5 + 1 + 4, "four of eight steps were kept"
    assert not list(tmp_path.iterdir()), "done"
