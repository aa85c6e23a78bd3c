"""Fine-Pruning: which layer, what is dormant, how far, and what stays off."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from bdcourse.activations import outputs
from bdcourse.defenses import fine_pruning, finetune
from bdcourse.defenses._fine_pruning import activity, last_layer, pruning_steps
from bdcourse.metrics import evaluate
from bdcourse.models import build, head_inputs
from bdcourse.surgery import revived, without
from bdcourse.train import Augment
from helpers import (
    frozen,
    gen,
    labeled_images,
    message,
    random_images,
    randomize_norms,
    same_state,
)

LAST = {
    "resnet18": {"layer4.1.bn2", "layer4.0.bn2", "layer4.0.shortcut.1"},
    "preact_resnet18": {"layer4.1.conv2", "layer4.0.conv2", "layer4.0.shortcut.0"},
    "vgg16_bn": {"42"},
    "mobilenet": {"1.features.18.1"},
}


def network(name="resnet18", classes=3, width=4, seed=1):
    torch.manual_seed(seed)
    return randomize_norms(build(name, classes=classes, width=width), seed)


# ---------------------------------------------------------------- which layer


@pytest.mark.parametrize("name", LAST)
def test_pruned_channels_of_the_last_layer_never_reach_the_head(name):
    model = network(name)
    names = last_layer(model)
    assert set(names) == LAST[name] and len(names) == len(LAST[name])
    x = torch.rand(4, 3, 32, 32, generator=gen())
    which = torch.tensor([0, 3])
    before = head_inputs(model, x).abs().amax(0)
    after = head_inputs(without(model, dict.fromkeys(names, which)), x)
    assert not after[:, which].any()
    others = [k for k in range(len(before)) if k not in (0, 3) and before[k] > 0]
    assert len(others) > 5 and (after[:, others].abs().amax(0) > 0).float().mean() > 0.8
    for left_out in names:  # one term fewer, and something comes through
        some = dict.fromkeys([n for n in names if n != left_out], which)
        assert len(names) == 1 or head_inputs(without(model, some), x)[:, which].any()


def test_a_transformer_and_untraceable_code_are_refused():
    with pytest.raises(ValueError, match="needs a convolutional layer") as e:
        fine_pruning(
            build("vit", classes=3, width=16),
            random_images(9, side=32),
            random_images(3, side=32),
            generator=gen(),
        )
    assert "encoder.ln" in message(e)

    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            x = self.conv(x).mean((2, 3))
            return self.linear(x if x.sum() > 0 else -x)

    with pytest.raises(ValueError, match="cannot follow the code") as e:
        last_layer(Fickle())
    message(e)
    p = fine_pruning(
        Fickle(),
        random_images(12),
        random_images(6),
        layer="conv",
        max_drop=1.0,
        epochs=1,
        batch=6,
        generator=gen(),
    )
    assert p.pruned["conv"].tolist() and p.log["m"] == 3

    pixels = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(ValueError, match="needs a convolutional layer"):
        last_layer(pixels)


# ---------------------------------------------------------------- what is dormant


@pytest.mark.slow
def test_activity_is_the_mean_of_what_the_head_reads():
    images = random_images(9, side=32)
    for name in LAST:
        model = network(name)
        seen = head_inputs(model, images.pixels()).detach()
        assert torch.allclose(activity(model, images), seen.abs().mean(0), atol=1e-5)
        assert (seen < 0).any() == (name == "preact_resnet18")


def test_activity_of_features_that_are_not_pooled():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(180, 3),
    )
    randomize_norms(model)
    images = random_images(9)
    maps = model[:3](images.pixels())  # (9, 5, 6, 6)
    assert last_layer(model) == ["1"]
    assert torch.allclose(activity(model, images), maps.mean((0, 2, 3)), atol=1e-5)


def test_activity_of_named_layers():
    model, images = network(), random_images(9, side=8)
    names = ["layer2.0.bn1", "layer2.1.bn1"]
    maps = outputs(model, images.pixels(), [*names, "layer1.0.conv1"])
    want = [maps[n].relu().mean((0, 2, 3)) for n in names]
    assert torch.allclose(activity(model, images, names[:1]), want[0], atol=1e-5)
    assert torch.allclose(activity(model, images, names), sum(want), atol=1e-5)
    conv = maps["layer1.0.conv1"].abs().mean((0, 2, 3))
    found = activity(model, images, ["layer1.0.conv1"])
    assert torch.allclose(found, conv, atol=1e-5)


def test_steps_grow_from_the_most_dormant():
    a = torch.tensor([3.0, 0.0, 2.0, 0.0, 1.0])
    steps = pruning_steps(a, ["x", "y"])
    assert [m for m, _ in steps] == [1, 2, 3, 4], "never all"
    assert [c["x"].tolist() for _, c in steps] == [[1], [1, 3], [1, 3, 4], [1, 2, 3, 4]]
    assert all(torch.equal(c["x"], c["y"]) for _, c in steps)
    many = pruning_steps(torch.rand(512, generator=gen()), ["x"])
    assert [m for m, _ in many[:3]] == [5, 10, 15]
    assert [m for m, _ in pruning_steps(torch.rand(10), ["x"], 0.3)] == [3, 6, 9]


class Sleeper(nn.Module):
    """Reads the label off the first pixel; a white last pixel wakes channel 10, which
    outvotes the others for class 2. Channel 11 always fires and does nothing."""

    def __init__(self, k=10):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, k + 2, 1), nn.BatchNorm2d(k + 2)
        self.linear = nn.Linear(k + 2, k, bias=False)
        self.k = k
        w = torch.zeros(k, k + 2)
        w[:, :k], w[2, k] = torch.eye(k), 5
        self.linear.weight.data = w
        self.conv.weight.data.fill_(1)
        self.conv.bias.data.zero_()

    def forward(self, x):
        label = (x[:, 0, 0, 0] * 255 / 20).round().long()
        woken = (x[:, :, -1, -1] == 1).all(1).float()[:, None]
        parts = [nn.functional.one_hot(label, self.k), woken, torch.ones_like(woken)]
        x = torch.cat(parts, 1)[:, :, None, None]
        return self.linear(torch.relu(self.bn(x)).mean((2, 3)))


def test_the_channel_that_sleeps_goes_and_with_it_the_backdoor():
    images = labeled_images(60)
    images.x[:, :, -1, -1] = 0
    model = Sleeper().eval()
    triggered = images.x.clone()
    triggered[:, :, -1, -1] = 255
    triggered = type(images)(triggered, images.y, images.classes)
    assert evaluate(model, images).acc == 1 and evaluate(model, triggered).acc == 0.1
    a = activity(model, images, ["bn"])
    assert a.argmin() == 10 and a[10] == 0
    off = without(model, {"bn": pruning_steps(a, ["bn"])[0][1]["bn"]})
    assert evaluate(off, triggered).acc == 1


# ---------------------------------------------------------------- the whole defense


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18"])
@pytest.mark.parametrize("max_drop", [0.0, 0.1])
def test_as_many_channels_go_as_held_out_accuracy_allows(name, max_drop):
    clean, held = random_images(24, side=8), random_images(20, side=8, seed=3)
    model = finetune(network(name), clean, epochs=3, batch=8, generator=gen()).model
    model.zero_grad()
    before, modes = frozen(model), [m.training for m in model.modules()]
    p = fine_pruning(model, clean, held, max_drop=max_drop, epochs=1, batch=8, generator=gen())
    assert same_state(model, before)
    assert [m.training for m in model.modules()] == modes
    assert all(q.grad is None for q in model.parameters())
    # Once more, with a mask on the features instead of surgery on the modules.
    order = head_inputs(model, clean.pixels()).abs().mean(0).argsort(stable=True)
    least, m = evaluate(model, held).acc - max_drop - 1e-9, 0
    while m + 1 < len(order):
        off = dict.fromkeys(last_layer(model), order[: m + 1])
        if evaluate(without(model, off), held).acc < least:
            break
        m += 1
    assert p.log["m"] == m and p.count == m * 3
    for which in p.pruned.values():
        assert set(which.tolist()) == set(order[:m].tolist())
    assert not p.model.training and p.seconds > 0 and len(p.log["loss"]) == 1
    assert torch.equal(p.log["activity"].argsort(stable=True), order)


def test_it_stops_before_the_first_step_that_costs_too_much():
    images = labeled_images(20)
    images.x[:, :, -1, -1] = 255  # channel 10 is awake, and says class 2
    held, model = images[images.y == 2], Sleeper().eval()
    options = {"layer": "bn", "epochs": 1, "batch": 10, "generator": gen()}
    p = fine_pruning(model, images, held, max_drop=0.0, **options)
    assert p.pruned["bn"].tolist() == list(range(10)), "10 alone is enough for class 2"
    for share, max_drop in ((0.9, 0.0), (1.0, 1.0)):  # 11 of 12 at once, or all
        p = fine_pruning(model, images, held, max_drop=max_drop, share=share, **options)
        assert p.log["m"] == p.count == 0 and p.pruned["bn"].tolist() == []


@pytest.mark.slow
def test_held_channels_stay_off_and_others_may_return():
    clean, held = random_images(24, side=8), random_images(20, side=8, seed=3)
    options = {"max_drop": 1.0, "share": 0.5, "epochs": 3, "batch": 8, "lr": 0.05}
    counts = {}
    for name in ("resnet18", "preact_resnet18"):
        model = network(name)
        for hold in (True, False):
            p = fine_pruning(model, clean, held, hold=hold, generator=gen(), **options)
            assert p.log["m"] == 16
            counts[name, hold] = revived(p.model, p.pruned)
            x = head_inputs(p.model, clean.pixels())
            off = next(iter(p.pruned.values()))
            assert x[:, off].any() == (counts[name, hold] > 0)
    assert counts["preact_resnet18", False] > 0 == counts["preact_resnet18", True]
    # A ReLU ends the residual sum, and its slope at zero is zero.
    assert counts["resnet18", False] == counts["resnet18", True] == 0


def test_a_named_layer():
    clean, held = random_images(24, side=8), random_images(20, side=8, seed=3)
    p = fine_pruning(
        network(),
        clean,
        held,
        layer="layer3.0.bn1",
        max_drop=1.0,
        share=0.25,
        epochs=1,
        batch=8,
        generator=gen(),
    )
    assert list(p.pruned) == p.log["layer"] == ["layer3.0.bn1"]
    assert p.count == p.log["m"] == 12
    assert (p.model.layer3[0].bn1.weight == 0).sum() == 12


@pytest.mark.slow
def test_equal_seeds_give_equal_results():
    clean, held = random_images(24, side=8), random_images(20, side=8, seed=3)
    runs = [
        fine_pruning(
            network(),
            clean,
            held,
            epochs=2,
            batch=8,
            augment=Augment(1),
            max_drop=0.2,
            generator=gen(s),
        )
        for s in (0, 0, 1)
    ]
    assert same_state(runs[0].model, frozen(runs[1].model))
    assert not same_state(runs[0].model, frozen(runs[2].model))
    assert runs[0].log["loss"] == runs[1].log["loss"]


@pytest.mark.slow
def test_stopped_and_started_again_it_ends_the_same(tmp_path):
    clean, held = random_images(24, side=8), random_images(20, side=8, seed=3)
    options = {"epochs": 3, "batch": 8, "max_drop": 0.5}
    whole = fine_pruning(network(), clean, held, generator=gen(), **options)
    path, seen = tmp_path / "fp", []

    def stop(_):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        fine_pruning(
            network(), clean, held, generator=gen(), checkpoint=path, each_epoch=stop, **options
        )
    assert len(list(tmp_path.iterdir())) == 2
    for change in ({"max_drop": 0.4}, {"share": 0.5}, {"hold": False}, {"layer": "bn1"}):
        with pytest.raises(ValueError, match=f"its {next(iter(change))} differs") as e:
            fine_pruning(
                network(), clean, held, generator=gen(), checkpoint=path, **(options | change)
            )
        message(e)
    again = fine_pruning(network(), clean, held, generator=gen(), checkpoint=path, **options)
    assert same_state(again.model, frozen(whole.model))
    assert again.log["loss"] == whole.log["loss"]
    assert again.log["looks"] == whole.log["looks"] != []
    assert torch.equal(again.pruned["layer4.1.bn2"], whole.pruned["layer4.1.bn2"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"max_drop": -0.1}, "max_drop must be a finite number in 0..1"),
        ({"max_drop": 1.5}, "max_drop must be a finite number in 0..1"),
        ({"share": 0}, "share must be above 0"),
        ({"layer": "nowhere"}, "'nowhere' is none"),
        ({"layer": "linear"}, "'linear' is none"),
        ({"layer": ["bn1", "layer2.0.bn1"]}, "one width"),
        ({"clean": random_images(1)}, "clean must hold at least 2 images"),
        ({"held": random_images(0)}, "held must hold at least 1 images"),
    ],
)
def test_refusals(change, text):
    settings = {"clean": random_images(6), "held": random_images(3)} | change
    clean, held = settings.pop("clean"), settings.pop("held")
    with pytest.raises(ValueError, match=text) as e:
        fine_pruning(network(), clean, held, generator=gen(), **settings)
    message(e)


def test_it_cannot_be_handed_the_trigger():
    text = str(inspect.signature(fine_pruning))
    assert not any(word in text for word in ("ttack", "oison", "trigger", "target"))
