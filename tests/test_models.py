"""Names, counts and arithmetic of the networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bdcourse import models
from bdcourse.models import build
from bdcourse.surgery import pair_by_flow
from helpers import gen, randomize_norms


@pytest.fixture(scope="module")
def preact():
    return build("preact_resnet18")


def test_preact_resnet18_is_backdoorbench_s(preact):
    state = preact.state_dict()
    assert len(state) == 102
    assert sum(p.numel() for p in preact.parameters()) == 11_171_146
    expected = {"conv1.weight", "linear.weight", "linear.bias"}
    for layer in range(1, 5):
        for block in range(2):
            at = f"layer{layer}.{block}"
            expected |= {f"{at}.conv{i}.weight" for i in (1, 2)}
            for i in (1, 2):
                expected |= {
                    f"{at}.bn{i}.{k}"
                    for k in (
                        "weight",
                        "bias",
                        "running_mean",
                        "running_var",
                        "num_batches_tracked",
                    )
                }
        if layer > 1:
            expected.add(f"layer{layer}.0.shortcut.0.weight")
    assert set(state) == expected
    assert state["layer3.0.shortcut.0.weight"].shape == (256, 128, 1, 1)
    assert state["conv1.weight"].shape == (64, 3, 3, 3)
    assert state["linear.weight"].shape == (10, 512)


def test_resnet18_counts():
    model = build("resnet18")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert sum(m.num_features for m in norms) == 4800
    assert sum(p.numel() for p in model.parameters()) == 11_173_962


@pytest.mark.slow
def test_vgg_and_mobilenet_and_vit_counts():
    def count(name, kind):
        return sum(isinstance(m, kind) for m in build(name).modules())

    assert count("vgg16_bn", nn.Conv2d) == count("vgg16_bn", nn.BatchNorm2d) == 13
    assert count("mobilenet", nn.BatchNorm2d) == 52
    assert count("vit", nn.BatchNorm2d) == 0 and count("vit", nn.Conv2d) == 1


SMALL = {
    "resnet18": 4,
    "preact_resnet18": 4,
    "vgg16_bn": 4,
    "mobilenet": 8,
    "vit": 16,
    "airbench": 8,
}


@pytest.mark.parametrize("name", models.MODELS)
def test_shapes_and_state(name):
    for width in (SMALL[name], 2 * SMALL[name]):
        model = build(name, classes=7, width=width).eval()
        with torch.no_grad():
            out = model(torch.rand(2, 3, 32, 32))
        assert out.shape == (2, 7) and out.isfinite().all()
        assert out.std() > 0, "an untrained network still says something"
    keys = model.state_dict().keys()
    assert not [k for k in keys if k.endswith(("mean", "std")) and "running" not in k]
    assert len(list(model.buffers())) > 1


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18"])
@pytest.mark.parametrize("side", [16, 28, 48, 64])
def test_resnets_take_other_sizes(name, side):
    out = build(name, classes=3, width=8).eval()(torch.rand(1, 3, side, side))
    assert out.shape == (1, 3)


def test_one_channel():
    model = build("resnet18", width=4, mean=(0.5,), std=(0.25,)).eval()
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 10)


def test_stride_is_three_halvings():
    model, seen = build("preact_resnet18", width=4).eval(), []
    for i in range(1, 5):
        getattr(model, f"layer{i}").register_forward_hook(
            lambda m, a, out: seen.append(tuple(out.shape[1:]))
        )
    model(torch.rand(1, 3, 32, 32))
    assert seen == [(4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4)]


def split_off_norm(model):
    """(the model without its normalization, its mean, its std)."""
    norm = next(m for m in model.modules() if isinstance(m, models.Normalize))
    mean, std = norm.mean.clone(), norm.std.clone()
    norm.mean.zero_()
    norm.std.fill_(1)
    return model, mean, std


@pytest.mark.parametrize("name", models.MODELS)
def test_normalization_is_inside(name):
    # In float64, so that even a deep network that hardly looks at x tells them apart.
    x = torch.rand(2, 3, 32, 32, generator=gen()).double()
    mean, std = (0.1, 0.6, 0.3), (0.2, 0.5, 0.9)
    model = build(name, width=SMALL[name], mean=mean, std=std).double()
    randomize_norms(model).double()
    with torch.no_grad():
        inside = model(x)
        body, m, s = split_off_norm(model)
        assert m.flatten().tolist() == pytest.approx(mean)
        assert s.flatten().tolist() == pytest.approx(std)
        outside = body((x - m) / s)
        raw = body(x)
    assert torch.allclose(inside, outside, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(inside, raw, rtol=1e-6)


def plain_bn(x, state, name):
    def get(key):
        return state[f"{name}.{key}"].view(1, -1, 1, 1)

    scale = get("weight") / (get("running_var") + 1e-5) ** 0.5
    return (x - get("running_mean")) * scale + get("bias")


def test_preact_forward_written_again():
    model = randomize_norms(build("preact_resnet18", classes=5, width=4)).double()
    s = model.state_dict()
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=gen())
    mean = torch.tensor(models.CIFAR_MEAN).double().view(3, 1, 1)
    std = torch.tensor(models.CIFAR_STD).double().view(3, 1, 1)
    h = F.conv2d((x - mean) / std, s["conv1.weight"], padding=1)
    for layer in range(1, 5):
        for block in range(2):
            at = f"layer{layer}.{block}"
            stride = 2 if layer > 1 and block == 0 else 1
            a = plain_bn(h, s, f"{at}.bn1").clamp(min=0)
            skip = h
            if stride == 2:  # the projection reads the activated input
                skip = F.conv2d(a, s[f"{at}.shortcut.0.weight"], stride=2)
            a = F.conv2d(a, s[f"{at}.conv1.weight"], stride=stride, padding=1)
            a = plain_bn(a, s, f"{at}.bn2").clamp(min=0)
            h = F.conv2d(a, s[f"{at}.conv2.weight"], padding=1) + skip
    # No BatchNorm and no ReLU before the pooling, as in BackdoorBench.
    logits = h.mean((2, 3)) @ s["linear.weight"].T + s["linear.bias"]
    with torch.no_grad():
        assert torch.allclose(model(x), logits, rtol=1e-5)


def test_basic_block_written_again():
    model = randomize_norms(models.BasicBlock(4, 6, 2)).double()
    s = model.state_dict()
    x = torch.rand(2, 4, 8, 8, dtype=torch.float64, generator=gen())
    h = F.conv2d(x, s["conv1.weight"], stride=2, padding=1)
    h = plain_bn(h, s, "bn1").clamp(min=0)
    h = plain_bn(F.conv2d(h, s["conv2.weight"], padding=1), s, "bn2")
    skip = plain_bn(F.conv2d(x, s["shortcut.0.weight"], stride=2), s, "shortcut.1")
    with torch.no_grad():
        assert torch.allclose(model(x), (h + skip).clamp(min=0), rtol=1e-6)


def test_mobilenet_keeps_resolution():
    model, seen = build("mobilenet", width=8).eval(), []
    model[1].features.register_forward_hook(lambda m, a, out: seen.append(out.shape))
    model(torch.rand(1, 3, 32, 32))
    assert seen[0][2:] == (4, 4), "32 / 8, not torchvision's 32 / 32"


def test_airbench_written_again():
    model = randomize_norms(build("airbench", classes=5, width=4)).double()
    s = model.state_dict()
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=gen())
    mean = torch.tensor(models.CIFAR_MEAN).double().view(3, 1, 1)
    std = torch.tensor(models.CIFAR_STD).double().view(3, 1, 1)
    h = F.conv2d((x - mean) / std, s["whitening.weight"]).clamp(min=0)
    for i in range(1, 4):
        at = f"layer{i}"
        h = F.conv2d(h, s[f"{at}.conv1.weight"], padding=1)
        h = F.max_pool2d(plain_bn(h, s, f"{at}.bn1").clamp(min=0), 2)
        h = F.conv2d(h, s[f"{at}.conv2.weight"], padding=1)
        h = plain_bn(h, s, f"{at}.bn2").clamp(min=0)
    logits = h.amax((2, 3)) / 9 @ s["linear.weight"].T + s["linear.bias"]
    with torch.no_grad():
        assert torch.allclose(model(x), logits, rtol=1e-5)


def test_airbench_pairs_every_norm_and_starts_as_the_identity():
    model = build("airbench", width=8)
    pairing = pair_by_flow(model)
    assert not pairing.unpaired and [(p.conv, p.bn) for p in pairing.pairs] == [
        (f"layer{i}.conv{j}", f"layer{i}.bn{j}") for i in (1, 2, 3) for j in (1, 2)
    ]
    assert all(m.affine for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    for p in pairing.pairs:
        m = model.get_submodule(p.conv)
        x = torch.rand(1, m.in_channels, 5, 5, generator=gen())
        same = min(m.in_channels, m.out_channels)
        assert torch.allclose(m(x)[:, :same], x[:, :same], atol=1e-6)
        assert m.weight[same:].any() or same == m.out_channels


@pytest.mark.parametrize("c", [1, 3])
def test_whitening_gives_unit_covariance(c):
    spec = {"mean": (0.5,), "std": (0.25,)} if c == 1 else {}
    model = build("airbench", width=8, **spec)
    # Neighbors alike, as in photographs, and channels too.
    x = torch.rand(200, c, 12, 12, generator=gen())
    x = F.avg_pool2d(x + x[:, :1], 3, 1)
    # Far from white before: nine shared terms of ten make neighbors alike.
    assert covariance(model, x).fill_diagonal_(0).abs().max() > 0.2 * 0.01
    x8 = (x * 100).round().to(torch.uint8)
    for pixels, floats in ((x8, x8.float() / 255), (x8.float() / 255, None)):
        model.whiten(pixels)
        cov = covariance(model, x8.float() / 255 if floats is None else floats)
        own = cov.diagonal()
        assert torch.allclose(cov, torch.diag(own), atol=1e-3), "uncorrelated"
        # 5e-4 is added to each variance before the root.
        assert ((own > 0.5) & (own < 1.001)).all() and own[0] > 0.99
        w = model.whitening.weight
        assert torch.equal(w[: 4 * c], -w[4 * c :]), "and the negatives"
    assert not model.whitening.weight.requires_grad
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["whitening.weight"]
    with pytest.raises(ValueError, match="channels"):
        model.whiten(torch.rand(5, c + 1, 12, 12))


def covariance(model, x):
    """Of the first half of the filters, the others being their negatives."""
    with torch.no_grad():
        out = model.whitening(model.normalize(x))
    out = out[:, : out.shape[1] // 2]
    return out.transpose(0, 1).flatten(1).cov()


def test_unknown_model():
    with pytest.raises(ValueError, match="unknown model 'resnet50'.*preact_resnet18"):
        build("resnet50")


def test_float64_is_made_in_one_place():
    """Some devices have none (MPS): `models.wide` then works on the CPU."""
    cpu = {"models.py", "foreign.py", "landscape.py", "visibility.py", "sig.py"}
    cpu |= {"ftrojan.py"}
    for file in sorted(Path(models.__file__).parent.rglob("*.py")):
        if file.name not in cpu and file.parent.name != "check":
            assert ".double()" not in file.read_text(), file
    t = torch.tensor([0.5, 1.5])
    assert models.wide(t).dtype == torch.float64 and models.wide(t).tolist() == [
        0.5,
        1.5,
    ]
    assert models.wide(t > 1).tolist() == [0.0, 1.0]
    assert models.precise(torch.device("mps")) is torch.float32
