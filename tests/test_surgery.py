"""Which BatchNorm belongs to which convolution, and switching channels off."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bdcourse import surgery
from bdcourse.compat import import_torchvision
from bdcourse.models import build
from bdcourse.surgery import pair_by_flow, pair_by_order, without, zero_channels
from helpers import frozen, gen, randomize_norms, same_state


def arrows(pairing):
    return {p.bn: p.conv for p in pairing.pairs}


# ---------------------------------------------------------------- the course's models

PREACT = {f"layer{i}.{b}.bn2": f"layer{i}.{b}.conv1" for i in range(1, 5) for b in (0, 1)}
PREACT["layer1.0.bn1"] = "conv1"


def test_resnet18():
    found = pair_by_flow(build("resnet18", width=4))
    expected = {"bn1": "conv1"}
    for i in range(1, 5):
        for b in (0, 1):
            for k in (1, 2):
                expected[f"layer{i}.{b}.bn{k}"] = f"layer{i}.{b}.conv{k}"
        if i > 1:
            expected[f"layer{i}.0.shortcut.1"] = f"layer{i}.0.shortcut.0"
    assert arrows(found) == expected and not found.unpaired
    assert len(found.pairs) == 20
    assert arrows(pair_by_order(build("resnet18", width=4))) == expected


def test_preact_resnet18_pairs_nine_of_sixteen():
    found = pair_by_flow(build("preact_resnet18", width=4))
    assert arrows(found) == PREACT and len(PREACT) == 9
    assert len(found.unpaired) == 7
    assert all("not the output of one convolution" in w for w in found.unpaired.values())


def test_order_mispairs_preact():
    by_order = arrows(pair_by_order(build("preact_resnet18", width=4)))
    assert len(by_order) == 16
    wrong = {bn: conv for bn, conv in by_order.items() if PREACT.get(bn) != conv}
    shortcut = {f"layer{i}.1.bn1": f"layer{i}.0.shortcut.0" for i in (2, 3, 4)}
    sums = {
        "layer1.1.bn1": "layer1.0.conv2",
        **{f"layer{i}.0.bn1": f"layer{i - 1}.1.conv2" for i in (2, 3, 4)},
    }
    assert wrong == shortcut | sums


def test_vgg_and_mobilenet_pair_completely():
    vgg = pair_by_flow(build("vgg16_bn", width=4))
    assert len(vgg.pairs) == 13 and not vgg.unpaired
    assert all(int(p.bn) == int(p.conv) + 1 for p in vgg.pairs)
    model = build("mobilenet", width=8)
    mobile = pair_by_flow(model)
    assert len(mobile.pairs) == 52 and not mobile.unpaired
    for p in mobile.pairs:
        conv, bn = model.get_submodule(p.conv), model.get_submodule(p.bn)
        assert conv.out_channels == bn.num_features
    assert arrows(mobile) == arrows(pair_by_order(model))


def test_vit_has_nothing_to_pair():
    found = pair_by_flow(build("vit", width=16))
    assert found.pairs == () and found.unpaired == {}
    assert str(found) == "no BatchNorm in this model"


def test_densenet121():
    model = import_torchvision().models.densenet121(weights=None)
    found = pair_by_flow(model)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    expected = {n: n.replace("norm2", "conv1") for n in names if n.endswith("norm2")} | {
        "features.norm0": "features.conv0"
    }
    assert len(expected) == 59 and arrows(found) == expected
    assert set(found.unpaired) == set(names) - set(expected)
    for part in ("transition1.norm", "denseblock2.denselayer3.norm1", "norm5"):
        assert f"features.{part}" in found.unpaired


# ---------------------------------------------------------------- odd models


class Odd(nn.Module):
    """conv -> (something) -> bn, with a forward of one's own."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, m in {"conv": nn.Conv2d(3, 4, 3), **parts}.items():
            setattr(self, name, m)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def unpaired(model):
    found = pair_by_flow(model, (3, 8, 8))
    assert not found.pairs
    return found.unpaired


def branch(x):
    return float(x.sum()) > -1e9  # always, but a tracer cannot know


BN = nn.BatchNorm2d


@pytest.mark.parametrize("trace", [True, False])
def test_through_identity_and_dropout(trace):
    parts = nn.Sequential(nn.Identity(), nn.Dropout(0.5), nn.Dropout2d(0.5))

    def forward(self, x):
        if not trace and not branch(x):
            return x
        return self.bn(self.parts(self.conv(x)))

    model = Odd(forward, parts=parts, bn=BN(4))
    assert arrows(pair_by_flow(model, (3, 8, 8))) == {"bn": "conv"}


@pytest.mark.parametrize("trace", [True, False])
@pytest.mark.parametrize("what", ["relu", "relu_", "module", "add", "add_", "pool"])
def test_not_through_anything_else(trace, what):
    """An in-place step keeps the tensor's identity, but it is no conv output now."""
    step = {
        "relu": F.relu,
        "relu_": lambda h: F.relu(h, inplace=True),
        "module": nn.ReLU(inplace=True),
        "add": lambda h: h + 1,
        "add_": lambda h: h.add_(1),
        "pool": lambda h: F.max_pool2d(h, 2),
    }[what]

    def forward(self, x):
        if not trace and not branch(x):
            return x
        return self.bn((self.act if what == "module" else step)(self.conv(x)))

    act = {"act": step} if what == "module" else {}
    why = unpaired(Odd(forward, bn=BN(4), **act))
    assert "not the output of one convolution" in why["bn"]


@pytest.mark.parametrize("trace", [True, False])
def test_shared_norm(trace):
    def forward(self, x):
        if not trace and not branch(x):
            return x
        return self.bn(self.conv(x)) + self.bn(self.other(x))

    why = unpaired(Odd(forward, other=nn.Conv2d(3, 4, 3), bn=BN(4)))
    assert "different layers" in why["bn"]


@pytest.mark.parametrize("trace", [True, False])
def test_norm_first_and_never_reached(trace):
    def forward(self, x):
        if not trace and not branch(x):
            return x
        return self.conv(self.bn(x))

    why = unpaired(Odd(forward, bn=BN(3), spare=BN(4)))
    assert "not the output" in why["bn"] and "never reached" in why["spare"]


@pytest.mark.parametrize("trace", [True, False])
def test_keyword_call(trace):
    def forward(self, x):
        if not trace and not branch(x):
            return x
        return self.bn(input=self.conv(x))

    model = Odd(forward, bn=BN(4))
    assert arrows(pair_by_flow(model, (3, 8, 8))) == {"bn": "conv"}


def test_no_scale_and_no_statistics():
    def net(bn):
        return nn.Sequential(nn.Conv2d(3, 4, 3), bn)

    assert "affine" in unpaired(net(BN(4, affine=False)))["1"]
    assert "variance" in unpaired(net(BN(4, track_running_stats=False)))["1"]


def test_order_needs_matching_widths():
    model = nn.Sequential(BN(3), nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), BN(5))
    found = pair_by_order(model)
    assert not found.pairs
    assert "before it" in found.unpaired["0"] and "width" in found.unpaired["3"]
    assert str(found).startswith("0: not paired, no convolution")


class Untraceable(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) if branch(x) else x


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18"])
def test_fallback_gives_the_same_pairs(name, monkeypatch):
    net = build(name, width=4).train()
    traced = pair_by_flow(net)
    model = Untraceable(net)
    model.net.layer1.eval()
    before = frozen(model)
    modes = [m.training for m in model.modules()]
    calls = []
    real = surgery._sources_by_identity
    monkeypatch.setattr(surgery, "_sources_by_identity", lambda *a: calls.append(1) or real(*a))
    found = pair_by_flow(model)
    assert calls, "this model should not be traceable"
    assert arrows(found) == {f"net.{bn}": f"net.{conv}" for bn, conv in arrows(traced).items()}
    assert {k.removeprefix("net.") for k in found.unpaired} == set(traced.unpaired)
    assert same_state(model, before) and [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks for m in model.modules())


def test_fallback_with_an_in_place_residual_sum():
    # BackdoorBench writes `out += shortcut`: the tensor keeps its identity.
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn1, self.conv1 = BN(4), nn.Conv2d(4, 4, 3, padding=1)
            self.bn2, self.conv2 = BN(4), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            out = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
            out += x
            return out

    net = nn.Sequential(nn.Conv2d(3, 4, 3), Block(), Block())
    traced = arrows(pair_by_flow(net))
    assert traced == {"1.bn1": "0", "1.bn2": "1.conv1", "2.bn2": "2.conv1"}
    found = arrows(pair_by_flow(Untraceable(net), (3, 8, 8)))
    assert found == {f"net.{bn}": f"net.{conv}" for bn, conv in traced.items()}


def test_fallback_with_a_wrong_shape():
    with pytest.raises(ValueError) as e:
        pair_by_flow(Untraceable(build("resnet18", width=4)), (5, 32, 32))
    assert "(5, 32, 32)" in str(e.value) and "\n" not in str(e.value)


def test_text():
    lines = str(pair_by_flow(build("preact_resnet18", width=4))).splitlines()
    assert len(lines) == 16 and "conv1 -> layer1.0.bn1" in lines


# ---------------------------------------------------------------- switching off


@pytest.mark.parametrize("mask", [False, True])
def test_zeroed_channels_are_exactly_zero(mask):
    model = randomize_norms(build("resnet18", width=4))
    which = torch.tensor([0, 3])
    if mask:
        which = torch.tensor([True, False, False, True])
    zero_channels(model, {"layer1.0.bn1": which})
    outputs = []
    model.layer1[0].bn1.register_forward_hook(lambda m, a, out: outputs.append(out))
    with torch.no_grad():
        model(torch.rand(2, 3, 32, 32, generator=gen()))
    off = outputs[0].abs().amax((0, 2, 3)) == 0
    assert off.tolist() == [True, False, False, True]


def test_zeroing_leaves_all_else():
    model = randomize_norms(build("resnet18", width=4))
    before = frozen(model)
    zero_channels(model, {"bn1": torch.tensor([2]), "layer4.1.bn2": torch.tensor([]).long()})
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"bn1.weight", "bn1.bias"}
    assert (model.bn1.weight != before["bn1.weight"]).tolist() == [0, 0, 1, 0]


def test_without_is_a_copy():
    model = randomize_norms(build("preact_resnet18", width=4))
    before = frozen(model)
    out = without(model, {"layer2.0.bn2": torch.tensor([1])})
    assert same_state(model, before) and not same_state(out, before)
    assert out.layer2[0].bn2.weight[1] == 0 == out.layer2[0].bn2.bias[1]
    mine = {p.data_ptr() for p in model.parameters()}
    assert not mine & {p.data_ptr() for p in out.parameters()}


def test_zeroing_the_filter_would_leave_a_constant():
    # Why the scale and the shift are set, and not the convolution: clp.md, trap 7.
    model = randomize_norms(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), BN(4)))
    x = torch.rand(2, 3, 8, 8, generator=gen())
    filtered = without(model, {})
    filtered[0].weight.data[1] = 0
    bn = model[1]
    constant = bn.bias - bn.weight * bn.running_mean / (bn.running_var + bn.eps).sqrt()
    out = filtered(x)[:, 1]
    assert torch.allclose(out, constant[1].expand_as(out), atol=1e-5)
    assert out.abs().min() > 1e-3
    assert (without(model, {"1": torch.tensor([1])})(x)[:, 1] == 0).all()
