"""Checkpoints, training that goes on, and channels that stay off."""

from __future__ import annotations

import functools
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from bdcourse.attacks import BadNets
from bdcourse.checkpoint import Checkpoint, content_hash
from bdcourse.defenses import finetune
from bdcourse.defenses._base import furthest
from bdcourse.files import write_whole
from bdcourse.hooks import Hook
from bdcourse.metrics import evaluate
from bdcourse.surgery import held, revived, without, zero_channels
from bdcourse.train import Augment, fit
from bdcourse.victims import initialized
from helpers import (
    frozen,
    gen,
    labeled_images,
    message,
    random_images,
    randomize_norms,
    same_state,
)


def test_round_trip_and_end(tmp_path):
    keep = Checkpoint(tmp_path / "sub" / "a.safetensors", {"lr": 0.1, "k": (1, 2)})
    assert keep.load() is None
    mask = torch.rand(3, 4)
    keep.save({"mask": mask, "n": torch.tensor(3)}, step=5, seen=[1, 2])
    again = Checkpoint(keep.path, {"k": (1, 2), "lr": 0.1})
    tensors, notes = again.load()
    assert torch.equal(tensors["mask"], mask) and int(tensors["n"]) == 3
    assert notes == {"step": 5, "seen": [1, 2]}
    assert len(list(keep.path.parent.iterdir())) == 1, "no half-written files"
    keep.done()
    assert keep.load() is None


def test_due(tmp_path):
    assert Checkpoint(tmp_path / "a", {}, every=0).due()
    assert not Checkpoint(tmp_path / "a", {}, every=60).due()
    nowhere = Checkpoint(None, {}, every=0)
    nowhere.save({"a": torch.zeros(1)})
    nowhere.done()
    assert not nowhere.due() and nowhere.load() is None


def test_other_work_and_damage_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    Checkpoint(path, {"lr": 0.1}).save({"a": torch.zeros(1)})
    for about in ({"lr": 0.2}, {}, {"lr": 0.1, "u": 3}):
        with pytest.raises(ValueError, match="belongs to other work") as e:
            Checkpoint(path, about).load()
        message(e)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="damaged") as e:
        Checkpoint(path, {"lr": 0.1}).load()
    message(e)


def network(seed: int = 1):
    arch = {"name": "resnet18", "classes": 3, "width": 4}
    return randomize_norms(initialized(arch, gen(seed)), seed)


def stopping(after: int):
    """Raises Ctrl-C at the end of an epoch, before its checkpoint is written."""
    seen = []

    def each_epoch(model):
        seen.append(1)
        if len(seen) > after:
            raise KeyboardInterrupt
        return {}

    return each_epoch


@pytest.mark.slow
@pytest.mark.parametrize("epochs, after", [(4, 2), (2.5, 1), (3, 0)])
def test_stopped_training_ends_as_if_never_stopped(tmp_path, epochs, after):
    images, augment = random_images(24), Augment(1, flip=True)
    path = tmp_path / "fit.safetensors"
    settings = {"epochs": epochs, "batch": 8, "augment": augment, "verbose": False}

    whole = network()
    history = fit(whole, images, generator=gen(), **settings)
    part = network()
    first = fit(
        part, images, generator=gen(), checkpoint=path, each_epoch=stopping(after), **settings
    )
    assert first.interrupted and path.exists() == (after > 0)
    rest = network()
    second = fit(rest, images, generator=gen(), checkpoint=path, **settings)
    assert same_state(rest, frozen(whole))
    assert second["loss"] == history["loss"] and len(second.epochs) == len(history.epochs)
    assert not path.exists(), "done"


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 2])
def test_the_fast_recipe_goes_on_as_if_never_stopped(tmp_path, after):
    images, path = random_images(24, side=20), tmp_path / "fit.safetensors"
    settings = {
        "epochs": 3.5,
        "batch": 8,
        "augment": Augment(1, "alternate"),
        "schedule": "linear",
        "smoothing": 0.2,
        "shifts": 64.0,
        "lr": 0.01,
        "shrink": 0.5,
        "verbose": False,
    }

    def network():
        model = initialized({"name": "airbench", "classes": 3, "width": 4}, gen())
        model.whiten(images.x)
        return model

    whole, part, rest = network(), network(), network()
    history = fit(whole, images, generator=gen(), **settings)
    fit(part, images, generator=gen(), checkpoint=path, each_epoch=stopping(after), **settings)
    before = network().state_dict()
    assert path.exists() and not same_state(part, before)
    for change in ({"smoothing": 0.0}, {"shifts": 1.0}, {"schedule": "cosine"}, {"shrink": 0.0}):
        with pytest.raises(ValueError, match=f"its {min(change)} differs"):
            fit(network(), images, generator=gen(), checkpoint=path, **(settings | change))
    second = fit(rest, images, generator=gen(), checkpoint=path, **settings)
    assert same_state(rest, frozen(whole))
    assert second["loss"] == history["loss"] and not path.exists()
    assert torch.equal(rest.whitening.weight, before["whitening.weight"])


@pytest.mark.slow
def test_a_checkpoint_of_another_model_or_rate_is_refused(tmp_path):
    images, path = random_images(24), tmp_path / "a"
    model = network()
    options = {"epochs": 3, "batch": 8, "verbose": False, "checkpoint": path}
    fit(model, images, generator=gen(), each_epoch=stopping(1), **options)
    fresh = network()
    for other, change, name in (
        (fresh, {"lr": 0.3}, "lr"),
        (fresh, {"generator": gen(3)}, "seed"),
        (network(2), {}, "model"),
        (fresh, {"augment": Augment(1)}, "augment"),
        (fresh, {"augment": Augment(0, flip=True)}, "augment"),
        (fresh, {"hook": lambda *_: Plain()}, "hook"),
        (fresh, {"frozen_norms": True}, "frozen_norms"),
    ):
        before = frozen(other)
        with pytest.raises(ValueError, match=f"other work: its {name} differs"):
            fit(other, images, **({"generator": gen()} | options | change))
        assert same_state(other, before)
    resumed = fit(fresh, images, generator=gen(), augment=Augment(0), **options)
    assert len(resumed.epochs) == 3, "no augmentation is one of no pixels"


class Slope(torch.nn.Module):
    """A network whose weights do not tell all."""

    def __init__(self, slope=0.1, act=torch.tanh):
        super().__init__()
        self.slope, self.act = slope, act
        self.register_buffer("mean", torch.full((1,), 0.5), persistent=False)
        self.layer = torch.nn.Linear(3 * 8 * 8, 3)
        torch.nn.init.ones_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)

    def forward(self, x):
        return self.slope * self.act(self.layer((x - self.mean).flatten(1)))


class Scaled(Hook):
    def __init__(self, scale=1.0, teacher=None):
        self.scale, self.teacher = scale, teacher

    def rewrite(self, batch):
        return batch._replace(x=self.scale * batch.x)


def steered(*settings):
    return lambda *_: Scaled(*settings)


def with_mean(value):
    model = Slope()
    model.mean.fill_(value)
    return model


def with_held_weights(factor):
    model = Slope()
    model.layer.weight.register_hook(lambda g, factor=factor: g * factor)
    return model


def late(images, **options):
    attack = BadNets(at=(0, 0), **options)
    return attack.poison(images, 0.3, gen(1), stamp="after")


def same_but_role(data):
    role = data.role.clone()
    role[(data.role == 0).nonzero()[0]] = 2
    return replace(data, role=role)


def test_all_that_decides_a_training_belongs_to_its_checkpoint(tmp_path):
    images, path = random_images(24), tmp_path / "a"
    data = late(images)
    net = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(net.weight)
    base = {"model": Slope, "data": data, "epochs": 3, "lr": 0.01, "batch": 8}
    base |= {"momentum": 0.9, "weight_decay": 5e-4, "warmup": 0.2, "bf16": False}
    base |= {"augment": Augment(1), "frozen_norms": False, "compile": False}
    base |= {"generator": gen, "hook": steered(1.0, net), "verbose": False}

    def run(**options):
        given = {**base, "checkpoint": path, **options}
        model, data = given.pop("model")(), given.pop("data")
        given["generator"] = given["generator"]()
        return fit(model, data, **given)

    def stop():
        run(each_epoch=stopping(1))

    other = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(other.weight)
    changes = [
        ("model", {"model": lambda: torch.nn.Sequential(Slope())}),
        ("data", {"data": late(images, patch=torch.zeros(1, 3, 3))}),
        ("data", {"data": same_but_role(data)}),
        ("late", {"data": late(images, opacity=1 - 1e-9)}),
        ("epochs", {"epochs": 4}),
        ("lr", {"lr": 0.02}),
        ("batch", {"batch": 6}),
        ("momentum", {"momentum": 0.8}),
        ("weight_decay", {"weight_decay": 0.0}),
        ("warmup", {"warmup": 0.3}),
        ("augment", {"augment": Augment(2)}),
        ("augment", {"augment": None}),
        ("frozen_norms", {"frozen_norms": True}),
        ("seed", {"generator": lambda: gen(1)}),
        ("bf16", {"bf16": True}),
        ("architecture", {"model": lambda: Slope(0.2)}),
        ("architecture", {"model": lambda: Slope(act=torch.nn.functional.softplus)}),
        ("architecture", {"model": lambda: with_mean(0.4)}),
        ("hooks", {"model": lambda: with_held_weights(0.5)}),
        ("hook", {"hook": None}),
        ("hook", {"hook": steered(0.9, net)}),
        ("hook", {"hook": steered(1.0, other)}),
    ]
    stop()
    kept = path.read_bytes()
    for name, change in changes:
        with pytest.raises(ValueError, match=f"other work: its {name} differs") as e:
            run(**change)
        message(e)
        assert path.read_bytes() == kept, name
    assert len(run().epochs) == 3, "the same call, with new objects, goes on"
    first = functools.partial(run, model=lambda: with_held_weights(0.5))
    first(each_epoch=stopping(1))
    with pytest.raises(ValueError, match="its hooks differs"):
        run(model=lambda: with_held_weights(0.25))
    assert len(first().epochs) == 3


def test_identity_tells_things_apart_and_not_their_addresses():
    def outer(k):
        return lambda x: k * x

    class Thing:
        def __init__(self, *values):
            self.values, self.me = values, self

    different = [
        *(None, True, 1, 1.5, "1", (1, 2), [2, 1], {"a": 1}, {"a": 2}, b"x", range(3)),
        *(outer(1), outer(2), lambda x: x + 1, functools.partial(outer, 3)),
        *(torch.zeros(2), torch.zeros(2, 1), torch.zeros(2).double(), gen(1), gen(2)),
        *(torch.nn.ReLU(), torch.nn.LeakyReLU(0.1), torch.nn.LeakyReLU(0.2)),
        *(torch.nn.Conv2d(1, 1, 1), Thing(1), Thing(2), Thing(gen(3)), Thing, len),
        *([].append, np.zeros(2), np.ones(2), {1, 2}, {1, 3}),
    ]
    names = [content_hash(thing) for thing in different]
    assert len(set(names)) == len(names)
    assert names == [content_hash(thing) for thing in different]
    assert content_hash(outer(1)) == content_hash(outer(1))
    assert content_hash(Thing(1)) == content_hash(Thing(1))


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "sub" / "a"
    write_whole(path, b"old")
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        for where in ("fchmod", "replace"):

            def fail(*_, error=error):
                raise error

            with monkeypatch.context() as m:
                m.setattr(os, where, fail)
                with pytest.raises((RuntimeError, KeyboardInterrupt)) as e:
                    write_whole(path, b"new")
            if e.type is RuntimeError:
                assert "No space left" in message(e) and str(path) in message(e)
            assert path.read_bytes() == b"old"
            assert [p.name for p in path.parent.iterdir()] == ["a"]
    with pytest.raises(RuntimeError, match="could not be written"):
        write_whole(path / "inside", b"new")


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "real", tmp_path / "link"
    link.symlink_to(target)
    write_whole(link, b"x")  # dangling before
    assert link.is_symlink() and target.read_bytes() == b"x"
    target.unlink()
    keep = Checkpoint(link, {})
    keep.save({"a": torch.zeros(1)})
    assert link.is_symlink() and keep.load()[0]["a"] == 0
    keep.done()
    assert not target.exists() and keep.load() is None


@pytest.mark.slow
def test_training_with_frozen_norms_and_a_hook_goes_on(tmp_path):
    images, path = random_images(24), tmp_path / "a"
    options = {"epochs": 3, "batch": 8, "verbose": False, "frozen_norms": True}
    options |= {"augment": Augment(1), "hook": lambda *_: Plain(), "lr": 1e-4}
    whole, part, rest = network(), network(), network()
    fit(whole, images, generator=gen(), **options)
    options["checkpoint"] = path
    fit(part, images, generator=gen(), each_epoch=stopping(1), **options)
    other = options | {"hook": lambda *_: Other()}
    with pytest.raises(ValueError, match="its hook differs"):
        fit(network(), images, generator=gen(), **other)
    fit(rest, images, generator=gen(), **options)
    assert same_state(rest, frozen(whole))
    assert torch.equal(rest.bn1.running_mean, network().bn1.running_mean)
    assert rest.linear.weight.isfinite().all()


class Plain(Hook):
    pass


class Other(Plain):
    pass


class Late(Hook):
    before_augment = True

    def rewrite(self, batch):
        x = batch.x.clone()
        x[:, :, -1, -1] = 1
        return batch._replace(x=x)


class Watch(torch.nn.Module):
    """A linear model that keeps what it is shown."""

    def __init__(self):
        super().__init__()
        self.seen, self.layer = [], torch.nn.Linear(3 * 8 * 8, 3)

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.layer(x.flatten(1))


@pytest.mark.parametrize("before", [True, False])
def test_a_trigger_before_the_crop_moves_with_it(before):
    images = random_images(30)
    images.x[:] = 100
    driver = Late()
    driver.before_augment = before
    model = Watch()
    fit(
        model,
        images,
        epochs=3,
        batch=10,
        augment=Augment(2),
        generator=gen(),
        hook=driver,
        verbose=False,
    )
    x = torch.cat(model.seen)
    corner = (x[:, 0, -1, -1] == 1).float().mean().item()
    assert corner == 1 if not before else 0 < corner < 0.3
    if before:  # stamped on the whole image: gone, or where the crop moved it
        assert set((x[:, 0] == 1).flatten(1).sum(1).tolist()) <= {0, 1}
        assert (x == 0).any(), "the crop's border is black"


def pruned_model():
    model = network()
    off = dict.fromkeys(("layer1.0.conv2", "layer1.0.bn2"), torch.tensor([1, 2]))
    off |= {"layer4.1.bn2": torch.tensor([0]), "layer2.0.bn1": torch.arange(0)}
    zero_channels(model, off)
    return model, off


def test_zero_channels_of_convolutions_and_without_shift():
    model, _ = pruned_model()
    w = model.layer1[0].conv2.weight
    assert (w[[1, 2]] == 0).all() and (w[[0, 3]] != 0).all()
    assert not model.layer1[0].bn2.bias[[1, 2]].any()
    before = network()
    after = without(before, {"bn1": torch.tensor([3])}, shift=False)
    assert after.bn1.weight[3] == 0 and after.bn1.bias[3] == before.bn1.bias[3] != 0
    flat = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))
    zero_channels(flat, {"0": torch.tensor([True, False, False, True])}, shift=False)
    assert not flat(torch.rand(1, 3, 2, 2))[:, [0, 3]].any(), "a bias is no shift"


@pytest.mark.slow
def test_held_channels_stay_off_and_others_train():
    model, off = pruned_model()
    images = random_images(24)
    free = finetune(model, images, epochs=3, batch=8, lr=0.05, generator=gen())
    kept = finetune(model, images, epochs=3, batch=8, lr=0.05, generator=gen(), hold=off)
    # The last BatchNorm's output reaches the sum before a ReLU: it grows back.
    assert revived(free.model, off) > 0
    assert revived(kept.model, off) == 0
    bn = kept.model.get_submodule("layer1.0.bn2")
    assert not bn.bias[[1, 2]].any() and bn.bias[0] != model.layer1[0].bn2.bias[0]
    conv = kept.model.get_submodule("layer1.0.conv2").weight
    assert (conv[0] != model.layer1[0].conv2.weight[0]).any()
    assert (conv[[1, 2]] == 0).all()


def test_held_lets_go_afterwards():
    model, off = pruned_model()
    with held(model, off):
        pass
    fit(model, random_images(24), epochs=2, batch=8, generator=gen(), verbose=False)
    assert revived(model, off) > 0


def test_only_zeros_are_held():
    model, _ = pruned_model()
    which = {"layer3.0.bn1": torch.tensor([0, 1])}  # not switched off
    before = model.layer3[0].bn1.weight.detach().clone()
    tuned = finetune(model, random_images(24), epochs=1, batch=8, generator=gen(), hold=which)
    assert (tuned.model.layer3[0].bn1.weight[:2] != before[:2]).all()


class Loses(torch.nn.Module):
    """Reads the label off a pixel, while a weight is on; says class 0 otherwise."""

    def __init__(self, k=10):
        super().__init__()
        self.bn, self.k = torch.nn.BatchNorm2d(k), k

    def forward(self, x):
        label = (x[:, 0, 0, 0] * 255 / 20).round().long()
        return torch.nn.functional.one_hot(label, self.k) * self.bn.weight + 0.1 * (
            torch.arange(self.k) == 0
        )


def test_furthest_stops_before_the_first_that_costs_too_much():
    images = labeled_images(100)
    model = Loses().eval()
    steps = [(n, {"bn": torch.arange(n)}) for n in (0, 1, 2, 3, 4)]
    # Without weight 0 class 0 is still said; each further one costs ten points.
    assert furthest(model, steps, images, 0.0) == 1
    assert furthest(model, steps, images, 0.1) == 2
    assert furthest(model, steps, images, 0.25) == 3
    assert furthest(model, steps[2:], images, 0.05) is None
    assert furthest(model, [*steps, (9, {"bn": torch.arange(0)})], images, 0.1) == 2
    assert furthest(model, [], images) is None
    looks = []
    assert furthest(model, steps, images, 0.1, looks=looks) == 2
    assert [t.setting for t in looks][-2:] == [2, 3]  # the last one cost too much
    assert looks[-1].acc < evaluate(model, images).acc - 0.1 <= looks[-2].acc
