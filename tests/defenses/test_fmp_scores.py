"""FMP: the step away from the images, and the scores of the maps."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bdcourse import victims
from bdcourse.checkpoint import Checkpoint
from bdcourse.data import load
from bdcourse.defenses import (
    FmpResponse,
    fmp_execution_order,
    fmp_plain_scores,
    fmp_scores,
    fmp_select,
)
from bdcourse.defenses._fmp import fmp_plain_push, fmp_random_start, gradients, judge
from bdcourse.models import build
from fmp_setup import FAR, LateShortcut, equal, images, like_a_scoring, lists, network, one_by_one
from helpers import frozen, gen, message, random_images, same_state

# ---------------------------------------------------------------- the step


def test_random_start():
    x = images().pixels()
    x0 = fmp_random_start(x, 0.05, gen(1))
    moved = ((x0 - x) / 0.05).round()
    inside = (x > 0.05) & (x < 0.95)
    assert set(moved[inside].unique().tolist()) == {-1, 1}
    assert 0.45 < (moved[inside] > 0).double().mean() < 0.55
    assert 0 <= float(x0.min()) and float(x0.max()) <= 1
    assert torch.equal(x0, fmp_random_start(x, 0.05, gen(1)))
    assert not torch.equal(x0, fmp_random_start(x, 0.05, gen(2)))


def test_one_step_by_hand():
    # f = w x, so J grows along x0 - x, whatever the sign of w: the step goes on out.
    model, x = one_by_one([2.0, -0.5]), images(c=1).pixels()
    x0 = fmp_random_start(x, 0.05, gen())
    want = (x0 + 0.1 * (x0 - x).sign()).clamp(0, 1)
    for i in range(2):
        pushed = fmp_plain_push(model, x, x0, "0", i, 0.1)
        assert torch.equal(pushed, want) and not pushed.requires_grad
    still = fmp_plain_push(one_by_one([0.0]), x, x0, "0", 0, 0.1)
    assert torch.equal(still, x0), "a dead map moves nothing"


@pytest.mark.slow
def test_without_a_start_there_is_no_gradient():
    model, x = network(), images().pixels()
    for layer in ("conv1", "layer2.0.conv2", "layer4.1.conv2"):
        for _, g in gradients(model, x, x, layer, 4):
            assert (g == 0).all()
        assert torch.equal(fmp_plain_push(model, x, x, layer, 0, 0.1), x)
        x0 = fmp_random_start(x, 1e-3, gen())
        assert all((g != 0).any() for _, g in gradients(model, x, x0, layer))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", ["conv1", "layer2.0.shortcut.0", "layer4.1.conv2"]),
        ("preact_resnet18", ["conv1", "layer3.0.shortcut.0", "layer3.0.conv1"]),
        ("vgg16_bn", ["1", "8", "18"]),
        ("mobilenet", ["1.features.0.0", "1.features.1.conv.0.0"]),  # a depthwise one
        ("vit", ["1.conv_proj"]),
    ],
)
def test_fast_is_plain(name, layers):
    side = 16 if "resnet" in name else 32
    # In float64, as a gradient near zero may change its sign with the order of a sum.
    model = network(name, {"vit": 8, "mobilenet": 8}.get(name, 4)).double()
    data = images(3 if name == "mobilenet" else 5, side)
    x = data.pixels().double()
    x0 = fmp_random_start(x, 0.05, gen(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns if it falls back to a loop
        fast = [
            fmp_scores(model, data, layers=layers, chunk=chunk, generator=gen(3), **FAR)
            for chunk in (None, 1, 15)
        ]
    plain = {k: fmp_plain_scores(model, x, data.y, x0, k, 0.1) for k in layers}
    for found in fast:
        equal(found, plain, atol=1e-9)
        for p in (1, 2, 4):
            assert lists(fmp_select(found, p)) == lists(fmp_select(plain, p))
    assert list(fast[0]) == layers
    varied = torch.cat([r.loss for r in plain.values()])
    assert varied.std() > 1e-6, "a test that tells maps apart"
    for layer in layers[1:] or layers:
        conv = model.get_submodule(layer)
        seen = torch.zeros(conv.out_channels)
        for step in (1, 3):
            for maps, g in gradients(model, x, x0, layer, step):
                seen[maps] += 1
                for i, ours in zip(range(maps.start, maps.stop), g, strict=True):
                    want = gradient_by_hand(model, conv, x, x0, i)
                    assert torch.allclose(ours, want, atol=1e-12, rtol=1e-9)
        assert (seen == 2).all()


@pytest.mark.slow
def test_fast_is_plain_in_float32():
    model, data = victims.zoo("benign-w8").model, load("signs", "test")[:12]
    x, layer = data.pixels(), "layer2.0.conv2"
    conv = model.get_submodule(layer)
    x0 = fmp_random_start(x, 8 / 255, gen(3))
    step = {"epsilon": 8 / 255, "start": 8 / 255}
    fast = fmp_scores(model, data, layers=[layer], generator=gen(3), **step)
    plain = {layer: fmp_plain_scores(model, x, data.y, x0, layer, 8 / 255)}
    equal(fast, plain, atol=1e-5)
    assert lists(fmp_select(fast, 4)) == lists(fmp_select(plain, 4))
    for maps, g in gradients(model, x, x0, layer, 8):
        for i, ours in zip(range(maps.start, maps.stop), g, strict=True):
            want = gradient_by_hand(model, conv, x, x0, i)
            large = want.abs() > 1e-8
            assert large.double().mean() > 0.5
            assert torch.equal(ours.sign()[large], want.sign()[large])


def gradient_by_hand(model, conv, x, x0, i):
    """Central to nothing above: hooks, a full forward, a full backward."""
    kept = []
    hook = conv.register_forward_hook(lambda _, __, out: kept.append(out))
    x0 = x0.clone().requires_grad_()
    model(torch.cat([x, x0]))
    hook.remove()
    before, after = kept[0].chunk(2)
    F.mse_loss(after[:, i], before[:, i].detach()).backward()
    model.zero_grad(set_to_none=True)
    return x0.grad


def test_judge_by_hand():
    z = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 3.0]])
    hit, loss, margin = judge(z, torch.tensor([0, 1]))
    assert hit.tolist() == [1, 0] and margin.tolist() == [1, -3]
    want = [-2 + z[0].exp().sum().log(), z[1].exp().sum().log()]
    assert torch.allclose(loss, torch.stack(want).double())


# ---------------------------------------------------------------- scoring


@pytest.mark.slow
def test_scores_are_seeded_and_leave_the_model_alone():
    model, data = network(), images()
    model.layer2.train()
    model.conv1.weight.requires_grad_(False)
    modes = [m.training for m in model.modules()]
    before, digest = frozen(model), data.digest()
    options = {"layers": ["layer3.0.conv1"], **FAR}
    runs = [fmp_scores(model, data, generator=gen(s), **options) for s in (0, 0, 1)]
    equal(runs[0], runs[1], rtol=0, atol=0)
    assert not torch.equal(runs[0]["layer3.0.conv1"][1], runs[2]["layer3.0.conv1"][1])
    assert same_state(model, before) and data.digest() == digest
    assert [m.training for m in model.modules()] == modes
    assert not model.conv1.weight.requires_grad and model.conv1.weight.grad is None
    assert all(q.requires_grad for q in model.layer1.parameters())
    assert all(not m._forward_hooks for m in model.modules())


def test_running_statistics_score_not_those_of_the_batch():
    model, data = network(), images()
    found = fmp_scores(model.train(), data, layers=["conv1"], generator=gen(), **FAR)
    again = fmp_scores(model.eval(), data, layers=["conv1"], generator=gen(), **FAR)
    equal(found, again, rtol=0, atol=0)


@pytest.mark.slow
def test_several_starts_are_averaged():
    model, data = network(), images()
    g, x = gen(5), data.pixels()
    x0 = [fmp_random_start(x, 0.05, g) for _ in range(2)]
    both = [fmp_plain_scores(model, x, data.y, x0[k], "conv1", 0.1) for k in range(2)]
    found = fmp_scores(model, data, layers=["conv1"], starts=2, generator=gen(5), **FAR)
    mean = FmpResponse(*((a + b) / 2 for a, b in zip(*both, strict=True)))
    equal(found, {"conv1": mean}, atol=1e-5)


def test_a_sample_scores_where_there_are_more():
    model, data = network(), images(12)
    g = gen(2)
    sample = data[torch.randperm(12, generator=g)[:5]]
    x0 = fmp_random_start(sample.pixels(), 0.05, g)
    want = fmp_plain_scores(model, sample.pixels(), sample.y, x0, "conv1", 0.1)
    found = fmp_scores(model, data, layers=["conv1"], n=5, generator=gen(2), **FAR)
    equal(found, {"conv1": want}, atol=1e-5)
    assert inspect.signature(fmp_scores).parameters["n"].default == 512


def test_blocks_of_images_add_up():
    model, data = network(), random_images(70, side=8)  # more than one block of 64
    x0 = fmp_random_start(data.pixels(), 0.05, gen())
    want = fmp_plain_scores(model, data.pixels(), data.y, x0, "conv1", 0.1)
    found = fmp_scores(model, data, layers=["conv1"], generator=gen(), **FAR)
    equal(found, {"conv1": want}, atol=1e-5)


def test_bf16_is_near():
    model, data = network(), images()
    found = [
        fmp_scores(model, data, layers=["conv1"], bf16=b, generator=gen(), **FAR)["conv1"]
        for b in (False, True)
    ]
    assert 0 < (found[0].loss - found[1].loss).abs().max() < 0.1


def test_a_relu_that_writes_in_place_changes_nothing():
    torch.manual_seed(0)
    conv = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    data = images()
    found = []
    for inplace in (True, False):
        relus = [nn.ReLU(inplace) for _ in range(2)]
        model = nn.Sequential(conv[0], relus[0], conv[1], relus[1], *tail)
        x0 = fmp_random_start(data.pixels(), 0.05, gen())
        found.append(fmp_scores(model, data, generator=gen(), **FAR))
        found.append({k: fmp_plain_scores(model, data.pixels(), data.y, x0, k, 0.1) for k in "02"})
    for other in found[1:]:
        equal(found[0], other, atol=1e-5)


def test_a_convolution_that_never_runs_is_left_out():
    model = LateShortcut()
    assert fmp_execution_order(model) == ["first", "second"]
    assert list(fmp_scores(model, images(), generator=gen())) == ["first", "second"]


@pytest.mark.slow
def test_scoring_goes_on_after_a_stop(tmp_path, monkeypatch):
    model, data = network(), images(5, side=8)
    options = {"layers": ["conv1", "layer1.0.conv1"], "n": 4, "chunk": 2, **FAR}
    whole = fmp_scores(model, data, generator=gen(), **options)
    path = tmp_path / "s.safetensors"
    calls = []

    def due(self):
        calls.append(1)
        if len(calls) == 3 or len(calls) == 12:
            raise KeyboardInterrupt
        return self.path is not None

    monkeypatch.setattr(Checkpoint, "due", due)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fmp_scores(model, data, generator=gen(), checkpoint=path, **options)
        assert path.exists()
    with pytest.raises(ValueError, match="epsilon differs") as e:
        other = options | {"epsilon": 0.2}
        fmp_scores(model, data, generator=gen(), checkpoint=path, **other)
    message(e)
    found = fmp_scores(model, data, generator=gen(), checkpoint=path, **options)
    equal(found, whole, rtol=0, atol=0)
    # 2 blocks x 4 maps x 2 layers; what the two stopped calls did is repeated but once.
    assert len(calls) == 16 + 2 and not path.exists()


# ---------------------------------------------------------------- order and counts


def test_the_nine_layers_that_the_release_confuses():
    model = build("preact_resnet18", width=4)
    runs = fmp_execution_order(model)
    defined = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert len(runs) == 20 and set(runs) == set(defined)
    wrong = {a for a, b in zip(defined, runs, strict=True) if a != b}
    parts = ("conv1", "conv2", "shortcut.0")
    assert wrong == {f"layer{k}.0.{part}" for k in (2, 3, 4) for part in parts}
    plain = build("resnet18", width=4)
    assert fmp_execution_order(plain) == [
        n for n, m in plain.named_modules() if isinstance(m, nn.Conv2d)
    ]


def test_exercise_1_counts():
    found = like_a_scoring(build("preact_resnet18", width=64))
    assert sum(len(r.acc) for r in found.values()) == 4800
    counts = {p: sum(map(len, fmp_select(found, p).values())) for p in (64, 32)}
    assert counts == {64: 75, 32: 150}
    assert sorted(map(len, fmp_select(found).values())) == [1] * 5 + [2] * 5 + [4] * 5 + [8] * 5, (
        "64 is the default"
    )
