"""L-infinity pruning: norms and scores against independent ones, gates, the curve."""

from __future__ import annotations

import copy
import inspect
import io
import math

import pytest
import torch
from torch import nn

from bdcourse.attacks import BadNets
from bdcourse.defenses import (
    Estimate,
    LinfResponse,
    Purified,
    _base,
    _linf,
    linf,
    linf_curve,
    linf_default_layer,
    linf_gated,
    linf_oracle,
    linf_responses,
    linf_sweep,
)
from bdcourse.defenses._linf import (
    PS,
    QS,
    Gate,
    linf_norms,
    linf_plain_curve,
    linf_plain_scores,
    order,
)
from bdcourse.metrics import Scores, evaluate
from bdcourse.models import build, head
from bdcourse.surgery import without
from helpers import frozen, gen, message, random_images, randomize_norms, same_state

K = 4
INF = math.inf


def network(name: str = "resnet18", width: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomize_norms(build(name, classes=K, width=width), seed)


@pytest.fixture
def model():
    return network()


def images(n: int = 24, side: int = 16):
    return random_images(n, k=K, side=side)


def estimate(side: int = 16, label: int = 0) -> Estimate:
    mask = torch.zeros(1, side, side)
    mask[:, -4:, -4:] = 0.9
    pattern = torch.rand(3, side, side, generator=gen(3)).round()
    return Estimate(label, mask, pattern)


# ---------------------------------------------------------------- exercises


def test_exercise_1_and_2_dilution():
    maps = torch.ones(1, 1, 13, 13)
    spike = maps.clone()
    spike[0, 0, 4, 5] = 5

    def ratios(a, b):
        return [float(linf_norms(a, p) / linf_norms(b, p)) for p in PS]

    l1, l2, linfinity = ratios(spike, maps)
    assert (f"{l1:.3f}", f"{l2:.3f}", linfinity) == ("1.024", "1.069", 5)
    assert l1 == pytest.approx(173 / 169) and l2 == pytest.approx((193 / 169) ** 0.5)
    one = torch.ones(1, 1, 1, 1)
    assert ratios(5 * one, one) == pytest.approx([5, 5, 5])
    assert ratios(5 * maps, maps) == pytest.approx([5, 5, 5])


def test_exercise_3_elementwise_not_matrix():
    a = torch.tensor([[1.0, 2], [3, 4]])
    found = [float(linf_norms(a[None, None], p)) for p in PS]
    assert found == pytest.approx([10, 30**0.5, 4])
    assert torch.linalg.matrix_norm(a, INF) == 7
    assert float(linf_norms(-a[None, None])) == 4


def test_exercise_4_a_bias_remains():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    net[0].weight.data[1] = 0
    net[0].bias.data.fill_(0.3)
    maps = net(torch.rand(1, 1, 8, 8))
    assert float(linf_norms(maps)[0, 1].detach()) == pytest.approx(0.3)
    off = without(net, {"0": torch.tensor([1])})(torch.rand(1, 1, 8, 8))
    assert not off[:, 1].any()


def test_top_means_of_the_largest():
    maps = torch.randn(3, 5, 4, 4, generator=gen())
    ranks = maps.flatten(2).abs().sort(dim=2, descending=True).values
    for k in (1, 2, 8, 16):
        want = ranks[..., :k].mean(2)
        assert torch.allclose(linf_norms(maps, INF, k), want)
    assert torch.allclose(linf_norms(maps, INF, 99), ranks.mean(2))
    assert torch.allclose(linf_norms(maps, 2, 4), maps.square().sum((2, 3)).sqrt())


# ---------------------------------------------------------------- responses


@pytest.mark.parametrize("p", [*PS, 4.0])
@pytest.mark.parametrize("batch", [7, 100])
def test_responses_are_the_plain_scores(model, p, batch):
    x, guess = images().pixels(), estimate()
    found = linf_responses(model, x, guess.stamp, ["layer3", "layer4"], (p,), batch=batch)
    for layer in ("layer3", "layer4"):
        want = linf_plain_scores(model, x, guess.stamp(x), layer, p)
        assert torch.allclose(found[layer].score(p), want, rtol=1e-4, atol=1e-5)
        assert found[layer].clean[p].shape == (24, len(want))
    assert want.abs().max() > 0.01


def test_batchnorms_are_read_behind_the_relu(model):
    x, guess = images().pixels(), estimate()
    found = linf_responses(model, x, guess.stamp, ["bn1", "layer1.0"])
    with torch.no_grad():
        map_ = model.bn1(model.conv1(model.normalize(x)))
    assert map_.min() < -0.1
    assert torch.allclose(found["bn1"].clean[INF], map_.relu().amax((2, 3)), atol=1e-5)
    assert torch.allclose(found["bn1"].clean[1.0], map_.relu().sum((2, 3)), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        out = model.layer1[0](map_.relu())
    assert torch.allclose(found["layer1.0"].clean[INF], out.amax((2, 3)), atol=1e-4)


def test_scores_by_hand():
    clean = {INF: torch.tensor([[1.0, 0, 4], [3, 0, 4]])}
    triggered = {INF: torch.tensor([[2.0, 1, 1], [6, 0, 1]])}
    r = LinfResponse(clean, triggered)
    assert r.score().tolist() == [2, 0.5, -3]
    assert r.score(score="triggered").tolist() == [4, 0.5, 1]
    assert r.score(reduce="max").tolist() == [3, 1, -3]
    floor = 0.01 * (2 + 0 + 4) / 3
    assert r.score(score="ratio").tolist() == pytest.approx([2, 0.5 / floor, 0.25])
    dead = LinfResponse({2.0: torch.zeros(2, 3)}, {2.0: torch.ones(2, 3)})
    assert dead.score(2.0, "ratio").isfinite().all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"score": "sum"}, "unknown score"),
        ({"reduce": "min"}, "unknown reduce"),
        ({"p": 3.0}, "norm 3 was not measured"),
    ],
)
def test_scores_refused(options, match):
    r = LinfResponse({INF: torch.ones(2, 3)}, {INF: torch.ones(2, 3)})
    with pytest.raises(ValueError, match=match) as e:
        r.score(**options)
    message(e)


# ---------------------------------------------------------------- order and sweep


@pytest.mark.slow
def test_separation_chooses_on_one_half_and_measures_on_the_other():
    clean, triggered = torch.zeros(8, 3), torch.zeros(8, 3)
    triggered[:4, 0] = 1  # perfect on the first half, chance on the second
    triggered[:4, 1] = torch.tensor([1.0, 1, 1, 0])
    triggered[4:, 1] = 1  # the better channel, but who knows?
    assert LinfResponse({INF: clean}, {INF: triggered}).separation() == 0.5
    clean[4:, 0] = torch.tensor([0.0, 1, 2, 3])
    triggered[4:, 0] = torch.tensor([0.5, 1.5, 2.5, 3.5])  # 1 + 2 + 3 + 4 of 16
    assert LinfResponse({INF: clean}, {INF: triggered}).separation() == 10 / 16
    g = gen(3)
    clean, triggered = (torch.randn(40, 5, generator=g) for _ in range(2))
    from sklearn.metrics import roc_auc_score

    def auc(part):
        y = [0] * 20 + [1] * 20
        both = torch.cat([clean[part], triggered[part]])
        return [roc_auc_score(y, both[:, k]) for k in range(5)]

    first, second = auc(slice(20)), auc(slice(20, 40))
    want = second[first.index(max(first))]
    r = LinfResponse({1.0: clean}, {1.0: triggered})
    assert r.separation(1.0) == pytest.approx(want)
    with pytest.raises(ValueError, match="norm 2 was not measured") as e:
        r.separation(2.0)
    message(e)
    with pytest.raises(ValueError, match="takes two images") as e:
        LinfResponse({1.0: clean[:1]}, {1.0: triggered[:1]}).separation(1.0)
    message(e)


def test_order_and_shares():
    score = torch.tensor([0.1, 5, -2, 5, 1])
    assert order(score).tolist() == [1, 3, 4, 0, 2]
    found = linf_sweep({"a": score}, [0, 0.2, 0.5, 1])
    assert [q for q, _ in found] == [0, 0.2, 0.5, 1]
    assert [c["a"].tolist() for _, c in found] == [[], [1], [1, 3], [1, 3, 4, 0, 2]]
    for q in (-0.1, 1.1):
        with pytest.raises(ValueError, match="0..1") as e:
            linf_sweep({"a": score}, [q])
        message(e)


def test_layers_compete_in_deviations():
    small = torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 1])
    large = torch.tensor([0.0, 100, 0, 100, 0, 100, 0, 100])
    ((_, chosen),) = linf_sweep({"s": small, "l": large}, [1 / 16])
    assert chosen["s"].tolist() == [7] and chosen["l"].tolist() == []
    ((_, chosen),) = linf_sweep({"s": small, "l": large}, [5 / 16])
    assert sorted(chosen["l"].tolist()) == [1, 3, 5, 7]
    flat = linf_sweep({"s": torch.ones(4), "l": large}, [0.5])
    assert sum(map(len, flat[0][1].values())) == 6


def test_steps_grow():
    score = torch.randn(128, generator=gen())
    sets = [set(c["a"].tolist()) for _, c in linf_sweep({"a": score})]
    assert len(sets) == len(QS) == 51 and len(sets[-1]) == 64 and not sets[0]
    assert all(a <= b for a, b in zip(sets, sets[1:], strict=False))


# ---------------------------------------------------------------- gates


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4"),
        ("preact_resnet18", "layer4"),
        ("vgg16_bn", "43"),
        ("mobilenet", "1.features"),
    ],
)
def test_default_layers(name, layer):
    model = network(name, width=8)
    before = frozen(model)
    assert linf_default_layer(model, (3, 32, 32)) == layer
    assert same_state(model, before)


def test_a_transformer_has_no_channels():
    vit = build("vit", classes=K, width=16)
    with pytest.raises(ValueError, match="hands no feature maps") as e:
        linf(vit, images(side=32), images(side=32), estimate(32))
    message(e)
    with pytest.raises(ValueError, match="gives no feature maps") as e:
        linf_gated(vit, "1.conv_proj", (3, 32, 32))
    message(e)


LAYERS = [
    ("resnet18", "layer4"),
    ("resnet18", "layer2.0"),
    ("resnet18", "layer3.1"),
    ("preact_resnet18", "layer4"),
    ("preact_resnet18", "layer1.1"),
    ("vgg16_bn", "3"),
    ("mobilenet", "1.features.5"),
    ("mobilenet", "1.features.2.conv"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layer"), LAYERS)
def test_an_open_gate_changes_nothing_and_a_shut_one_zeroes_the_map(name, layer):
    model = network(name, width=8)
    x = torch.rand(3, 3, 32, 32, generator=gen())
    before = frozen(model)
    opened, switch = linf_gated(model, layer, (3, 32, 32))
    assert switch == f"{layer}.gate" and same_state(model, before)
    assert not any(isinstance(m, Gate) for m in model.modules())
    with torch.no_grad():
        assert torch.equal(opened(x), model(x))
        # The independent way: change the map while it passes.
        off = torch.tensor([0, 2])
        keep = torch.ones(len(opened.get_submodule(switch).weight), 1, 1)
        keep[off] = 0
        hook = model.get_submodule(layer).register_forward_hook(lambda _, __, out: out * keep)
        want = model(x)
        hook.remove()
        shut = without(opened, {switch: off})
        assert torch.equal(shut(x), want) and not torch.equal(want, model(x))
        assert torch.equal(opened(x), model(x)), "a copy was shut"


@pytest.mark.slow
def test_a_gate_survives_copies_and_files_and_training(model):
    opened, switch = linf_gated(model, "layer4.1", (3, 16, 16))
    shut = without(opened, {switch: torch.tensor([1, 5])})
    x = torch.rand(3, 3, 16, 16, generator=gen())
    again = copy.deepcopy(shut)
    assert torch.equal(again(x), shut(x))
    assert again.layer4[1].gate is not shut.layer4[1].gate
    file = io.BytesIO()
    torch.save(shut.state_dict(), file)
    file.seek(0)
    fresh, _ = linf_gated(network(seed=5), "layer4.1", (3, 16, 16))
    fresh.load_state_dict(torch.load(file))
    assert torch.equal(fresh.eval()(x), shut(x))
    with pytest.raises(RuntimeError, match="gate.weight"):
        network().load_state_dict(shut.state_dict())  # a lost gate is no secret
    shut.train()
    opt = torch.optim.SGD(shut.parameters(), 0.1, weight_decay=0.1)
    shut(x).square().sum().backward()
    opt.step()
    assert shut.layer4[1].gate.weight.tolist().count(0.0) == 2
    assert sorted(set(shut.layer4[1].gate.weight.tolist())) == [0.0, 1.0]


def test_gating_twice_adds_one_gate(model):
    opened, switch = linf_gated(model, "layer4", (3, 16, 16))
    opened = without(opened, {switch: torch.tensor([0])})
    for layer in ("layer4", switch):
        again, name = linf_gated(opened, layer, (3, 16, 16))
        assert name == switch
        assert sum(isinstance(m, Gate) for m in again.modules()) == 1
        assert again.layer4.gate.weight[0] == 0
    both, _ = linf_gated(opened, "layer4.0", (3, 16, 16))
    assert sum(isinstance(m, Gate) for m in both.modules()) == 2


def test_a_batchnorm_is_its_own_switch(model):
    opened, switch = linf_gated(model, "layer2.0.bn1", (3, 16, 16))
    assert switch == "layer2.0.bn1" and same_state(opened, frozen(model))


def test_layers_refused(model):
    for layer, match in (
        ("layer9", "has no layer"),
        ("linear", "gives no feature maps"),
        ("layer4.1.conv2", "layer4.1.bn2"),
    ):
        with pytest.raises(ValueError, match=match) as e:
            linf_gated(model, layer, (3, 16, 16))
        message(e)


def test_zeroing_the_last_batchnorm_leaves_the_shortcut(model):
    # Trap 4: behind the last convolution, the sum still carries the channel.
    x = images().pixels()
    off = without(model, {"layer4.1.bn2": torch.arange(32)})
    left = linf_responses(off, x, lambda v: v, ["layer4"])["layer4"].clean[INF]
    assert left.max() > 0.1
    opened, switch = linf_gated(model, "layer4", (3, 16, 16))
    off = without(opened, {switch: torch.arange(32)})
    assert not linf_responses(off, x, lambda v: v, ["layer4"])["layer4"].clean[INF].any()


# ---------------------------------------------------------------- the defense


def fake_evaluate(monkeypatch, switch, accs, calls=None):
    """Let held-out accuracy depend on the number of channels that are off."""

    def fake(m, data, *args, **options):
        if calls is not None:
            calls.append((data, args, options))
        return Scores(accs(int((m.get_submodule(switch).weight == 0).sum())))

    monkeypatch.setattr(_base, "evaluate", fake)


@pytest.mark.slow
def test_linf_prunes_the_top_share_of_a_copy(model, monkeypatch):
    clean, held = images(), images(8)
    model.layer1.train()
    modes = [m.training for m in model.modules()]
    before, digest = frozen(model), clean.digest()
    calls = []
    fake_evaluate(monkeypatch, "layer4.gate", lambda off: 1 - 0.01 * off, calls)
    p = linf(model, clean, held, estimate(), max_drop=0.0501)
    assert isinstance(p, Purified) and p.seconds > 0
    assert same_state(model, before) and clean.digest() == digest
    assert [m.training for m in model.modules()] == modes
    assert all(q.grad is None for q in model.parameters())
    # 5 of 32 channels; the largest q of the axis that takes five
    assert p.log["q"] == 0.17 and p.count == 5 == round(0.17 * 32)
    x = clean[clean.y != 0].pixels()
    want = linf_plain_scores(model, x, estimate().stamp(x), "layer4")
    assert torch.allclose(p.log["scores"]["layer4.gate"], want, atol=1e-4)
    assert p.pruned["layer4.gate"].tolist() == order(want)[:5].tolist()
    gate = p.model.layer4.gate.weight
    assert (gate == 0).nonzero().flatten().tolist() == sorted(p.pruned["layer4.gate"].tolist())
    assert all(c == (held, (), {}) for c in calls), "clean accuracy, nothing else"
    assert set(p.log["responses"]["layer4.gate"].clean) == set(PS)
    for m, share in zip((model, p.model), p.log["success"], strict=True):
        m.eval()
        said = m(estimate().stamp(x)).argmax(1)
        assert share == pytest.approx((said == 0).float().mean().item())


@pytest.mark.slow
def test_linf_prunes_nothing_rather_than_too_much(model, monkeypatch):
    fake_evaluate(monkeypatch, "layer4.gate", lambda off: 0.9 - 0.5 * (off > 0))
    p = linf(model, images(), images(8), estimate(), qs=(0.2, 0.1))
    assert p.count == 0 and p.log["q"] is None
    p = linf(model, images(), images(8), estimate())
    assert p.count == 0 and p.log["q"] == 0.01  # too small a share of 32 channels


@pytest.mark.slow
def test_norm_and_layer_and_score_are_obeyed(model):
    clean, held, guess = images(), images(8), estimate()
    options = {"max_drop": 1.0, "qs": (0.25,)}
    x = clean[clean.y != 0].pixels()
    stamped = guess.stamp(x)
    for layer, p in (("layer3", 1.0), ("layer4", 2.0), ("layer2.0", 5.0)):
        got = linf(model, clean, held, guess, layer=layer, p=p, **options)
        want = order(linf_plain_scores(model, x, stamped, layer, p))
        want = want[: len(want) // 4]
        assert set(got.pruned[f"{layer}.gate"].tolist()) == set(want.tolist())
    by = {
        (s, r, t): linf(model, clean, held, guess, score=s, reduce=r, top=t, **options)
        for s in ("difference", "triggered", "ratio")
        for r in ("mean", "max")
        for t in (1, 4)
    }
    assert len({tuple(v.pruned["layer4.gate"].tolist()) for v in by.values()}) > 6


def test_linf_on_a_batchnorm_zeroes_scale_and_shift(model):
    p = linf(model, images(), images(8), estimate(), layer="layer4.1.bn1", max_drop=1.0, qs=(0.5,))
    bn = p.model.layer4[1].bn1
    off = p.pruned["layer4.1.bn1"]
    assert len(off) == 16 and not bn.weight[off].any() and not bn.bias[off].any()
    assert not any(isinstance(m, Gate) for m in p.model.modules())


def test_linf_on_all_layers(model):
    p = linf(model, images(), images(8), estimate(), layer="all", max_drop=1.0, qs=(0.1,))
    total = sum(len(s) for s in p.log["scores"].values())
    assert len(p.pruned) == 20 and p.count == round(0.1 * total)
    z = {n: (s - s.mean()) / s.std() for n, s in p.log["scores"].items()}
    least = min(z[n][c].min() for n, c in p.pruned.items() if len(c))
    for n, c in p.pruned.items():
        rest = torch.ones(len(z[n]), dtype=torch.bool)
        rest[c] = False
        assert not rest.any() or z[n][rest].max() <= least
    with pytest.raises(ValueError, match="no BatchNorm") as e:
        linf(
            nn.Sequential(nn.Conv2d(3, K, 1), nn.Flatten(), nn.Linear(1024, K)),
            images(),
            images(),
            estimate(),
            layer="all",
        )
    message(e)


@pytest.mark.slow
def test_selection_by_deviation_needs_no_held_images(model):
    p = linf(model, images(), None, estimate(), select="deviation", u=1.0)
    s = p.log["scores"]["layer4.gate"]
    want = (s > s.mean() + s.std()).nonzero().flatten()
    assert p.pruned["layer4.gate"].tolist() == want.tolist() and len(want)
    assert linf(model, images(), None, estimate(), select="deviation", u=50).count == 0


@pytest.mark.slow
def test_images_of_the_label_do_not_vote(model):
    clean, held = images(), images(8)

    def scores(images, label):
        p = linf(model, images, held, estimate(label=label), max_drop=1.0, qs=(0.2,))
        return p.log["scores"]["layer4.gate"]

    whole = scores(clean, 2)
    assert torch.equal(whole, scores(clean[clean.y != 2], 2))
    assert not torch.equal(whole, scores(clean, 1))
    with pytest.raises(ValueError, match="no image of another class") as e:
        linf(model, clean[clean.y == 2], held, estimate(label=2))
    message(e)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"select": "best"}, "unknown select"),
        ({"score": "x"}, "unknown score"),
        ({"reduce": "x"}, "unknown reduce"),
        ({"qs": (0.5, 2.0)}, "q must be a finite number in 0..1, not 2.0"),
        ({"top": 0}, "top must be a whole number of at least 1"),
        ({"p": 0.5}, "p must be at least 1"),
        ({"u": -1.0}, "u must be at least 0"),
        ({"layer": "nowhere"}, "has no layer"),
    ],
)
def test_refused(model, options, match):
    with pytest.raises(ValueError, match=match) as e:
        linf(model, images(), images(), estimate(), **options)
    message(e)


def test_share_without_held_images_is_refused(model):
    with pytest.raises(ValueError, match="pass held") as e:
        linf(model, images(), None, estimate())
    message(e)


@pytest.mark.slow
def test_the_oracle_is_the_same_with_the_real_trigger(model):
    clean, held, attack = images(), images(8), BadNets(target=3)
    options = {"max_drop": 1.0, "qs": (0.2,), "p": 2.0}
    head(model).bias.data[3] += 100  # it says 3, so that success is not zero
    p = linf_oracle(model, clean, held, attack, **options)
    x = clean[clean.y != 3].pixels()
    want = linf_plain_scores(model, x, attack.trigger(x), "layer4", 2.0)
    assert p.log["success"][0] == evaluate(model, clean, attack).asr > 0
    assert torch.allclose(p.log["scores"]["layer4.gate"], want, atol=1e-4)
    assert p.pruned["layer4.gate"].tolist() == order(want)[:6].tolist()
    a, b = inspect.signature(linf), inspect.signature(linf_oracle)
    for word in ("ttack", "oison", "target"):
        assert word not in str(a)
    assert "attack" in b.parameters


@pytest.mark.slow
def test_deterministic(model):
    a, b = (linf(model, images(), images(8), estimate(), max_drop=1.0) for _ in "ab")
    assert same_state(a.model, frozen(b.model))


# ---------------------------------------------------------------- the curve


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer", "folds"),
    [
        ("resnet18", "layer4", True),
        ("resnet18", "layer2", True),
        ("resnet18", "bn1", True),
        ("resnet18", "layer4.1.bn2", False),
        ("resnet18", "layer3.0.bn1", False),
        ("preact_resnet18", "layer4", True),
        ("vgg16_bn", "39", True),
        ("mobilenet", "1.features", True),
    ],
)
def test_fast_curve_is_the_plain_one(name, layer, folds, monkeypatch):
    model = network(name, width=8)
    test, attack = images(30, 32), BadNets(target=1)
    with torch.no_grad():  # else an untrained network says one class throughout
        head(model).bias -= model(test.pixels()).mean(0)
    opened, switch = linf_gated(model, layer, (3, 32, 32))
    n = len(opened.get_submodule(switch).weight)
    score = torch.randn(n, generator=gen(7))
    sets = [c for _, c in linf_sweep({switch: score}, [0, 0.1, 0.3, 0.5, 1.0])]
    plain = linf_plain_curve(opened, test, attack, sets)
    before = frozen(opened)
    calls = []
    # By name it would be the function that `defenses` exports.
    monkeypatch.setattr(
        _linf,
        "linf_plain_curve",
        lambda *a: calls.append(a) or linf_plain_curve(*a),
    )
    fast = linf_curve(opened, test, attack, sets, batch=12)
    assert bool(calls) != folds and same_state(opened, before)
    assert fast == plain
    assert fast[0] == evaluate(model, test, attack)
    assert len({(s.acc, s.ra) for s in plain}) > 1, "the sets matter"
    assert linf_curve(opened, test, None, sets) == linf_plain_curve(opened, test, None, sets)
    assert not any(m._forward_hooks for m in opened.get_submodule(switch).modules())


def test_curve_of_several_layers_is_measured_one_by_one(model):
    x, test = images().pixels(), images(12)
    names = ["bn1", "layer4.1.bn1"]
    scores = {n: r.score() for n, r in linf_responses(model, x, estimate().stamp, names).items()}
    sets = [c for _, c in linf_sweep(scores, [0, 0.3])]
    got = linf_curve(model, test, BadNets(target=1), sets)
    assert got == linf_plain_curve(model, test, BadNets(target=1), sets)
