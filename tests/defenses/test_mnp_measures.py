"""MNP: magnitude and saliency of a channel, and the detector made of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bdcourse.checkpoint import Checkpoint
from bdcourse.defenses import (
    _mnp,
    masks_forward,
    masks_ones,
    mnp_correlation,
    mnp_deviations,
    mnp_first_order,
    mnp_loss_changes,
    mnp_magnitudes,
    mnp_saliency,
    mnp_score,
)
from bdcourse.defenses._mnp import (
    errors,
    mnp_folded,
    mnp_plain_folded,
    mnp_plain_loss_changes,
    oddities,
    shrinkage,
)
from bdcourse.metrics import logits
from bdcourse.surgery import pair_by_flow, without
from helpers import frozen, gen, message, random_images, randomize_norms, same_state
from mnp_setup import network


@pytest.fixture
def model():
    return network()


# --------------------------------------------------------------- step 0: magnitude


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "mobilenet"])
def test_folded_sizes_are_the_plain_ones(name):
    model = network(name, 8)
    fast, pairs = mnp_folded(model), pair_by_flow(model).pairs
    assert fast.keys() == {p.bn for p in pairs}
    for p in pairs:
        plain = mnp_plain_folded(model.get_submodule(p.conv), model.get_submodule(p.bn))
        assert torch.allclose(fast[p.bn], plain, rtol=1e-5)
        assert plain.shape == (model.get_submodule(p.bn).num_features,)


def test_folded_by_hand():
    conv, bn = nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2, eps=0.0)
    conv.weight.data = torch.tensor([3.0, -2.0]).view(2, 1, 1, 1)
    bn.weight.data = torch.tensor([-2.0, 0.5])
    bn.running_var[:] = torch.tensor([4.0, 0.25])
    bn.bias.data.fill_(7)
    model = nn.Sequential(conv, bn)
    assert mnp_folded(model)["1"].tolist() == [3.0, 2.0]
    assert mnp_magnitudes(model)["1"].tolist() == pytest.approx([1.2, 0.8])


@pytest.mark.slow
def test_exercise_1_the_raw_norm_misleads(model):
    """Ten times the filter in front of a BatchNorm, in train mode."""
    before, x = mnp_folded(model)["layer1.0.bn1"], random_images(24).pixels()
    model.train()
    with torch.no_grad():
        for _ in range(60):  # let the running statistics settle
            out = model(x)
        before = mnp_folded(model)["layer1.0.bn1"]
        raw = model.layer1[0].conv1.weight.abs().sum()
        model.layer1[0].conv1.weight.mul_(10)
        for _ in range(60):
            again = model(x)
    assert torch.allclose(out, again, atol=1e-2)
    after = mnp_folded(model)["layer1.0.bn1"]
    assert torch.allclose(before, after, rtol=1e-2)
    assert model.layer1[0].conv1.weight.abs().sum() > 9.9 * raw


def test_magnitudes_are_relative_to_their_layer(model):
    sizes, a = mnp_folded(model), mnp_magnitudes(model)
    assert list(a) == list(masks_ones(model))
    for n, m in a.items():
        assert float(m.mean()) == pytest.approx(1, rel=1e-5)
        assert torch.allclose(m * sizes[n].mean(), sizes[n], rtol=1e-5)
    dead = without(model, {"bn1": torch.arange(4)})
    assert mnp_magnitudes(dead)["bn1"].tolist() == [1.0] * 4
    preact = network("preact_resnet18", 8)
    unpaired = set(pair_by_flow(preact).unpaired)
    a = mnp_magnitudes(preact)
    assert len(unpaired) == 7 and all(bool((a[n] == 1).all()) for n in unpaired)
    assert all(float(a[n].std()) > 0 for n in a.keys() - unpaired)


def test_shrinkage(model):
    smaller = without(model, {"bn1": torch.tensor([2])})
    smaller.layer1[0].bn1.weight.data[1] *= 0.25
    smaller.layer1[0].bn1.weight.data[3] *= 4  # has grown: needs no protection
    r = shrinkage(model, smaller)
    assert r["bn1"].tolist() == [0, 0, 1, 0]
    assert r["layer1.0.bn1"].tolist() == pytest.approx([0, 0.75, 0, 0])
    preact = network("preact_resnet18", 8)
    r = shrinkage(preact, without(preact, {"layer1.1.bn1": torch.arange(8)}))
    assert not r["layer1.1.bn1"].any(), "no filter of its own"


# ---------------------------------------------------------------- step 0: saliency


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shift"),
    [("resnet18", False), ("resnet18", True), ("preact_resnet18", False), ("vgg16_bn", False)],
)
def test_the_cached_saliency_is_the_plain_one(name, shift):
    model = network(name, 1)
    images = random_images(7, side=32 if name == "vgg16_bn" else 16)
    before = frozen(model)
    plain = mnp_plain_loss_changes(model, images, shift=shift)
    for room in (1, 3000, 2**21):  # one channel at a time, some, a whole layer
        fast = mnp_loss_changes(model, images, shift=shift, room=room)
        assert list(fast) == list(plain)
        for n in plain:
            assert fast[n].shape == plain[n].shape == (len(masks_ones(model)[n]), 7)
            assert torch.allclose(fast[n], plain[n], atol=1e-5), n
    assert max(float(v.abs().max()) for v in plain.values()) > 1e-2
    assert same_state(model, before)


def test_saliency_with_layers_that_work_in_place():
    """MobileNet's ReLU6 overwrites the BatchNorm output that several copies share."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU6(inplace=True),
        nn.Conv2d(4, 5, 3, groups=1),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )
    model, images = randomize_norms(net), random_images(9)
    plain = mnp_plain_loss_changes(model, images)
    for room in (1, 2**21):
        fast = mnp_loss_changes(model, images, room=room)
        assert all(torch.allclose(fast[n], plain[n], atol=1e-6) for n in plain)


class Odd(nn.Module):
    """One BatchNorm called twice, one never, and a value that depends on the batch."""

    def __init__(self, kind):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.never, self.head = nn.BatchNorm2d(2), nn.Linear(3, 3)
        self.kind = kind

    def forward(self, x):
        n = x.shape[0] if self.kind == "size" else None
        if self.kind == "branch" and x.sum() < 0:
            return x.mean((2, 3))
        out = self.bn(self.conv(x)).relu()
        if self.kind == "twice":
            out = self.bn(self.conv(out))
        out = out.mean((2, 3))
        return self.head(out.view(n, -1) if self.kind == "size" else out)


@pytest.mark.parametrize("kind", ["twice", "size", "branch"])
def test_saliency_of_odd_models(kind):
    model, images = randomize_norms(Odd(kind)), random_images(6)
    plain, fast = mnp_plain_loss_changes(model, images), mnp_loss_changes(model, images)
    assert list(fast) == ["bn", "never"]
    assert all(torch.allclose(fast[n], plain[n], atol=1e-6) for n in plain)
    assert not fast["never"].any() and bool(fast["bn"].any())


def test_more_images_than_one_part():
    images = random_images(501, side=4)
    one = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)
    ).eval()
    fast, plain = mnp_loss_changes(one, images), mnp_plain_loss_changes(one, images)
    assert fast["1"].shape == (4, 501)
    assert all(torch.allclose(fast[n], plain[n], atol=1e-5) for n in plain)


@pytest.mark.slow
def test_saliency_is_the_rise_of_the_mean_loss(model):
    images = random_images(9)

    def mean_loss(m):
        return float(F.cross_entropy(logits(m, images.x), images.y))

    s, changes = mnp_saliency(model, images), mnp_loss_changes(model, images)
    off = without(model, {"layer2.0.bn1": torch.tensor([5])}, shift=False)
    want = mean_loss(off) - mean_loss(model)
    assert float(s["layer2.0.bn1"][5]) == pytest.approx(want, abs=1e-5)
    e = errors(changes)["layer2.0.bn1"][5]
    rows = changes["layer2.0.bn1"][5]
    assert float(e) == pytest.approx(float(rows.std()) / 3, rel=1e-5)


def test_first_order_is_the_slope(model):
    images = random_images(9)
    proxy = mnp_first_order(model, images, batch=4)
    h, n, k = 1e-2, "layer1.0.bn1", 2
    losses = []
    for step in (-h, h):
        masks = masks_ones(model)
        masks[n][k] += step
        with torch.no_grad():
            out = masks_forward(model, masks, images.pixels())
            losses.append(float(F.cross_entropy(out, images.y)))
    assert float(proxy[n][k]) == pytest.approx(abs(losses[1] - losses[0]) / (2 * h), rel=2e-2)
    assert all(bool((v >= 0).all()) for v in proxy.values())


@pytest.mark.slow
def test_saliency_resumes(tmp_path, monkeypatch, model):
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    images, path = random_images(6), tmp_path / "saliency"
    whole = mnp_loss_changes(model, images)
    calls, real = [], _mnp._removals

    def stopping(*args):
        for item in real(*args):
            calls.append(item[0])
            if len(calls) == 8:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(_mnp, "_removals", stopping)
    with pytest.raises(KeyboardInterrupt):
        mnp_loss_changes(model, images, checkpoint=path)
    assert path.exists()
    with pytest.raises(ValueError, match="other work"):
        mnp_loss_changes(model, images[:5], checkpoint=path)
    rest = mnp_loss_changes(model, images, checkpoint=path)
    assert len(calls) == 20 + 1 and calls[7] == calls[8], "seven layers were kept"
    assert all(torch.equal(rest[n], whole[n]) for n in whole)
    assert not path.exists(), "done"


# ------------------------------------------------------------------- the detector


def test_correlation_oddities_and_score():
    g = gen()
    a = {f"l{i}": torch.rand(40, generator=g) for i in range(4)}
    s = {n: v.clone() for n, v in a.items()}
    s["l3"] = -a["l3"]
    rho = mnp_correlation(a, s)
    assert [round(rho[n], 6) for n in a] == [1, 1, 1, -1]
    assert mnp_score(a, s) == pytest.approx(0) and mnp_score(a, s, late=1.0) == -0.5
    assert mnp_score(a, s, late=0.25) == pytest.approx(1)
    a["l2"][7], s["l2"][7] = 9.0, -1.0  # large and not needed
    a["l2"][8], s["l2"][8] = 9.0, 9.0  # large and needed
    odd = oddities(a, s)
    assert {n: c.tolist() for n, c in odd.items()} == {"l0": [], "l1": [], "l2": [7], "l3": []}
    assert mnp_score(a, s, kind="oddities") == 1
    assert mnp_score(a, s, kind="oddities", late=0.25) == 0
    for change, text in (({"late": 0}, "late"), ({"kind": "mean"}, '"oddities"')):
        with pytest.raises(ValueError, match=text) as e:
            mnp_score(a, s, **change)
        message(e)


def test_deviations_are_robust():
    clean = [0.0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 1000]
    assert mnp_deviations(5, clean) == 0
    assert mnp_deviations(5 + 3 * 1.4826 * 3, clean) == pytest.approx(3)
    for scores, text in (([1.0] * 9, "at least 10"), ([1.0] * 10, "do not vary")):
        with pytest.raises(ValueError, match=text) as e:
            mnp_deviations(1, scores)
        message(e)
