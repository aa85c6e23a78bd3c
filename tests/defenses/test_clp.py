"""CLP: scores against the paper's formula, thresholds, and what it must not do."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bdcourse.attacks import BadNets
from bdcourse.defenses import (
    Purified,
    _base,
    clp,
    clp_choose_u,
    clp_norms,
    clp_plain_scores,
    clp_scores,
    clp_sweep,
)
from bdcourse.defenses._clp import clp_flagged, threshold
from bdcourse.metrics import Scores
from bdcourse.models import build
from bdcourse.surgery import pair_by_flow, pair_by_order, without
from helpers import (
    frozen,
    gen,
    labeled_images,
    random_images,
    randomize_norms,
    same_state,
)

NORMS = ("spectral", "frobenius", "operator")


def layer(c_in=1, c_out=4, size=3, **options):
    """One convolution and its BatchNorm; scale and variance are 1."""
    conv = nn.Conv2d(c_in, c_out, size, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out, eps=0)).eval()


def layer_with_scores(wanted):
    """A layer whose score of channel k is wanted[k]."""
    model = layer(1, len(wanted), 1)
    model[0].weight.data = torch.tensor(wanted).float().view(-1, 1, 1, 1)
    return model


# ---------------------------------------------------------------- against the paper


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "mobilenet"])
def test_batched_scores_are_the_plain_ones(name):
    model = randomize_norms(build(name, width=8))
    fast = clp_scores(model)
    pairs = pair_by_flow(model).pairs
    plain = {
        p.bn: clp_plain_scores(model.get_submodule(p.conv), model.get_submodule(p.bn))
        for p in pairs
    }
    assert fast.keys() == plain.keys() and len(fast) == len(pairs)
    for k in plain:
        assert torch.allclose(fast[k], plain[k], rtol=1e-5, atol=0), k
    for u in (3, 1, 0.5):
        a, b = clp_flagged(fast, u), clp_flagged(plain, u)
        assert {k: v.tolist() for k, v in a.items()} == {k: v.tolist() for k, v in b.items()}
    assert sum(map(len, clp_flagged(fast, 1).values())) > 0


def test_plain_scores_by_hand():
    # The formula once more, from numpy's own SVD.
    import numpy as np

    model = randomize_norms(layer(5, 3, 3))
    conv, bn = model
    gamma, variance = bn.weight.detach(), bn.running_var
    for k, s in enumerate(clp_plain_scores(conv, bn)):
        matrix = conv.weight[k].detach().numpy().reshape(5, 9)
        sigma = np.linalg.svd(matrix, compute_uv=False).max()
        want = sigma * abs(float(gamma[k])) / (float(variance[k]) + bn.eps) ** 0.5
        assert float(s) == pytest.approx(want, rel=1e-5)


# ---------------------------------------------------------------- exercises


@pytest.mark.parametrize(("m", "z", "hit"), [(6, "3.085", True), (7, "2.83", False)])
def test_exercise_1_how_many_equal_outliers(m, z, hit):
    model = layer_with_scores([1.0] * m + [0.0] * (64 - m))
    s = clp_scores(model)["1"]
    digits = len(z.split(".")[1])
    assert f"{float((s[0] - s.mean()) / s.std()):.{digits}f}" == z
    assert clp_flagged({"1": s}, 3.0)["1"].tolist() == (list(range(m)) if hit else [])


def test_exercise_2_ones():
    w = torch.ones(1, 1, 3, 3)
    values = [float(clp_norms(w, n)) for n in NORMS]
    assert values == pytest.approx([3, 3, 9])


def test_exercise_3_prewitt():
    w = torch.tensor([[-1.0, 0, 1]] * 3).view(1, 1, 3, 3)
    spectral, frobenius = (clp_norms(w, n).item() for n in NORMS[:2])
    assert f"{spectral:.3f}" == f"{frobenius:.3f}" == "2.449"
    # 6 is reached at a quarter of the sampling frequency, which 32 contains.
    assert clp_norms(w, "operator", grid=32).item() == pytest.approx(6)


def test_exercise_4_scored_channels():
    s = clp_scores(build("resnet18"))
    assert len(s) == 20 and sum(map(len, s.values())) == 4800
    above = 4800 * (1 - torch.distributions.Normal(0, 1).cdf(torch.tensor(3.0)))
    assert f"{float(above):.1f}" == "6.5"


def test_exercise_5_one_score():
    model = layer_with_scores([2.0, 2.0])
    model[1].weight.data.fill_(0.5)
    model[1].running_var.fill_(0.25)
    assert clp_scores(model)["1"].tolist() == [2.0, 2.0]
    model[1].weight.data.neg_()
    assert clp_scores(model)["1"].tolist() == [2.0, 2.0], "the sign does not matter"


def test_shift_and_mean_do_not_matter():
    model = randomize_norms(build("resnet18", width=4))
    before = clp_scores(model)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.bias.data.add_(5)
            m.running_mean.sub_(3)
    after = clp_scores(model)
    assert all(torch.equal(before[k], after[k]) for k in before)
    model.bn1.running_var.mul_(4)
    assert torch.allclose(clp_scores(model)["bn1"], before["bn1"] / 2, rtol=1e-3)


# ---------------------------------------------------------------- the norms


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 10**6),
)
def test_chain_of_norms(c_out, c_in, kh, kw, seed):
    w = torch.randn(c_out, c_in, kh, kw, generator=gen(seed))
    spectral, frobenius, operator = (clp_norms(w, n) for n in NORMS)
    slack = 1 + 1e-5
    assert (spectral <= slack * frobenius).all()
    assert (frobenius <= slack * operator).all()
    assert (operator <= slack * (kh * kw) ** 0.5 * spectral).all()
    svd = torch.stack([torch.linalg.svdvals(m.double())[0] for m in w.flatten(2)])
    assert torch.allclose(spectral.double(), svd, rtol=1e-5)


def dense(kernel, grid, stride):
    """The matrix of a circular convolution (1, c, kh, kw) on a grid x grid map."""
    c, kh, kw = kernel.shape[1:]
    eye = torch.eye(c * grid * grid, dtype=kernel.dtype).view(-1, c, grid, grid)
    padded = F.pad(eye, (0, kw - 1, 0, kh - 1), mode="circular")
    return F.conv2d(padded, kernel, stride=stride).flatten(1).T


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("c_in", [1, 3])
def test_operator_norm_is_that_of_the_dense_matrix(stride, size, c_in):
    w = torch.randn(3, c_in, size, size, generator=gen(size), dtype=torch.float64)
    found = clp_norms(w, "operator", stride=stride, grid=6)
    for k in range(3):
        exact = torch.linalg.svdvals(dense(w[k : k + 1], 6, stride))[0]
        assert found[k] == pytest.approx(float(exact), rel=1e-9)


def test_patches_that_do_not_overlap_have_the_frobenius_norm():
    w = torch.randn(5, 3, 4, 4, generator=gen())
    found = clp_norms(w, "operator", stride=4)
    assert torch.allclose(found, clp_norms(w, "frobenius"), rtol=1e-5)


def test_one_by_one_and_depthwise_are_vector_norms():
    for w in (torch.randn(6, 7, 1, 1), torch.randn(6, 1, 3, 3)):
        lengths = w.flatten(1).norm(dim=1)
        assert torch.allclose(clp_norms(w), lengths, rtol=1e-5)
    model = layer(6, 6, 3, groups=6)
    lengths = model[0].weight.flatten(1).norm(dim=1)
    assert torch.allclose(clp_scores(model)["1"], lengths, rtol=1e-5)
    assert torch.allclose(clp_plain_scores(*model), lengths, rtol=1e-5)


def test_scores_know_the_stride():
    w = torch.ones(4, 1, 3, 3)
    for stride in (1, 2, 3):
        model = layer(1, 4, 3, stride=stride)
        model[0].weight.data = w.clone()
        s = clp_scores(model, norm="operator")["1"]
        grid = {1: 32, 2: 32, 3: 33}[stride]
        exact = clp_norms(w, "operator", stride=stride, grid=grid)
        assert torch.allclose(s, exact)
        # At stride 2 the frequencies 0 and pi fold: (9 + 1) / 2 along each axis.
        assert s[0] == pytest.approx({1: 9, 2: 5, 3: 3}[stride])


def test_norms_refused():
    w = torch.ones(1, 1, 3, 3)
    with pytest.raises(ValueError, match="unknown norm 'nuclear'"):
        clp_norms(w, "nuclear")
    for options in ({"stride": 3}, {"grid": 2}):
        with pytest.raises(ValueError, match="grid must be"):
            clp_norms(w, "operator", **options)


def test_zero_kernels_score_zero():
    for n in NORMS:
        assert clp_norms(torch.zeros(2, 3, 3, 3), n).tolist() == [0, 0]


# ---------------------------------------------------------------- the threshold


def test_deviation_is_unbiased():
    s = torch.tensor([1.0, 2.0, 6.0])
    assert threshold(s, 2) == pytest.approx(3 + 2 * 7**0.5)  # (4 + 1 + 9) / 2 = 7


def test_threshold_is_strict():
    # mean 1 and unbiased deviation 2: the third channel lies at mean + 1 std exactly.
    s = torch.tensor([-1.0, 1.0, 3.0])
    assert clp_flagged({"a": s}, 1.0)["a"].tolist() == []
    assert clp_flagged({"a": s}, 0.99)["a"].tolist() == [2]
    assert clp_flagged({"a": torch.ones(8)}, 0.0)["a"].tolist() == [], "no spread"


def test_layers_are_judged_apart():
    s = {"small": torch.tensor([1.0] * 20 + [2]), "large": torch.tensor([100.0] * 21)}
    assert {k: v.tolist() for k, v in clp_flagged(s, 3).items()} == {"small": [20], "large": []}


@pytest.mark.parametrize(("n", "hit"), [(10, False), (11, True)])
def test_ten_channels_are_never_touched_at_u_3(n, hit):
    s = torch.zeros(n)
    s[0] = 1e6
    assert len(clp_flagged({"a": s}, 3.0)["a"]) == hit
    assert (s[0] - s.mean()) / s.std() == pytest.approx((n - 1) / n**0.5)


def test_one_channel_and_negative_u():
    assert clp_flagged({"a": torch.tensor([5.0])}, 0) == {}
    for u in (-0.1, -3):
        with pytest.raises(ValueError, match="must not be negative"):
            clp(build("resnet18", width=4), u)


# ---------------------------------------------------------------- eps


def masked(dead_variance=1e-12):
    """64 channels, the last a true outlier, the first dead: almost no variance."""
    model = layer_with_scores([1.0] * 62 + [1.1, 4.0])
    model[1].eps = 1e-5
    model[1].running_var[0] = dead_variance
    model[0].weight.data[0] = 0.001
    return model


def test_eps_keeps_dead_channels_from_masking():
    model = masked()
    s = clp_scores(model)["1"]
    assert 63 in clp_flagged({"1": s}, 3)["1"].tolist()
    old = clp_scores(model, released=True)["1"]
    assert old[0] > 100 * old[63]
    assert clp_flagged({"1": old}, 3)["1"].tolist() == [0]
    z = (old[63] - old.mean()) / old.std()
    assert z == pytest.approx(-0.1, abs=0.05), "as measured in clp.md"
    assert clp(model).pruned["1"].tolist() == [63]
    assert clp(model, released=True).pruned["1"].tolist() == [0]


def test_released_and_dead_to_the_end_finds_nothing():
    assert clp(masked(0.0), released=True).count == 0  # infinity beats every number
    assert clp(masked(0.0)).pruned["1"].tolist() == [63]


# ---------------------------------------------------------------- the whole defense


@pytest.fixture
def model():
    return randomize_norms(build("preact_resnet18", width=8))


def test_clp_prunes_a_copy(model):
    model.layer1.train()
    modes = [m.training for m in model.modules()]
    before = frozen(model)
    p = clp(model, 1.0)
    assert isinstance(p, Purified) and same_state(model, before)
    assert [m.training for m in model.modules()] == modes
    assert p.count == sum(len(v) for v in p.pruned.values()) > 10
    assert same_state(p.model, frozen(without(model, p.pruned)))
    for name, s in p.log["scores"].items():
        off = p.model.get_submodule(name).weight == 0
        assert torch.equal(off, s > s.mean() + s.std())
    assert p.log["u"] == 1.0 and p.seconds > 0
    keys = {f"{k}.{part}" for k in p.pruned for part in ("weight", "bias")}
    for k, v in p.model.state_dict().items():
        assert k in keys or torch.equal(v, before[k]), f"{k} changed"


def test_clp_sees_the_model_alone():
    names = set(inspect.signature(clp).parameters)
    assert names == {"model", "u", "norm", "pairing", "released", "invariant", "shape"}
    assert inspect.signature(clp).parameters["u"].default == 3.0


def test_order_pairing_differs_on_preact(model):
    flow, order = clp_scores(model), clp_scores(model, pairing="order")
    assert len(flow) == 9 and len(order) == 16
    assert all(torch.equal(order[k], v) for k, v in flow.items())
    a, b = clp(model, 1.0), clp(model, 1.0, pairing="order")
    assert not same_state(a.model, frozen(b.model))
    assert set(order) == {p.bn for p in pair_by_order(model).pairs}


@pytest.mark.slow
def test_larger_u_prunes_less_and_inside(model):
    found = clp_sweep(model, [0, 0.5, 1, 2, 3, 50])
    assert [u for u, _ in found] == [0, 0.5, 1, 2, 3, 50]
    counts = [sum(map(len, c.values())) for _, c in found]
    assert counts == sorted(counts, reverse=True) and counts[-1] == 0 < counts[0]
    for (_, more), (_, less) in zip(found, found[1:], strict=False):
        assert all(set(less[k].tolist()) <= set(more[k].tolist()) for k in less)
    for u, channels in found:
        pruned = clp(model, u).pruned
        assert all(torch.equal(pruned[k], channels[k]) for k in channels)


@pytest.mark.parametrize(
    "net",
    [
        build("vit", width=16),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
    ],
)
def test_nothing_to_prune_is_said_loudly(net):
    with pytest.warns(UserWarning, match="nothing to prune"):
        p = clp(net)
    assert p.count == 0 and p.model is not net and same_state(p.model, frozen(net))


def test_no_warning_when_there_is_something():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clp(build("preact_resnet18", width=4))


# ---------------------------------------------------------------- choosing u


def fake_evaluate(monkeypatch, model, accs, calls):
    """Let accuracy depend on the number of channels that are off, and record calls."""

    def evaluate(m, images, *args, **options):
        calls.append((images, args, options))
        off = sum(int((b.weight == 0).sum()) for b in m.modules() if isinstance(b, nn.BatchNorm2d))
        return Scores(accs(off))

    monkeypatch.setattr(_base, "evaluate", evaluate)


def counts_by_u(model, us):
    return {u: sum(map(len, c.values())) for u, c in clp_sweep(model, us)}


US = (4.0, 3.0, 2.0, 1.5, 1.0, 0.5, 0.25)


@pytest.mark.slow
def test_choose_u_respects_max_drop_and_sees_no_trigger(model, monkeypatch):
    counts = counts_by_u(model, US)
    assert counts[4.0] < counts[1.0] < counts[0.25]
    clean, calls = random_images(k=10), []
    fake_evaluate(monkeypatch, model, lambda off: 0.9 - 0.001 * off, calls)
    before = frozen(model)
    for allowed in (counts[1.0], counts[2.0], counts[0.25] + 1):
        u = clp_choose_u(model, clean, US, max_drop=0.001 * allowed)
        within = [v for v in US if counts[v] <= allowed]
        assert u == min(within)
    assert clp_choose_u(model, clean, US[::-1], max_drop=0.001 * counts[1.0]) == 1.0
    assert all(c[0] is clean and c[1:] == ((), {}) for c in calls)
    assert same_state(model, before)
    names = set(inspect.signature(clp_choose_u).parameters)
    assert names == {"model", "clean", "us", "max_drop", "invariant"}


def test_choose_u_stops_at_the_first_that_costs_more(model, monkeypatch):
    counts = counts_by_u(model, US)

    def accs(off):  # bad at u = 1.5 only; smaller u must not be tried
        return 0.5 if off == counts[1.5] else 0.9

    fake_evaluate(monkeypatch, model, accs, [])
    assert clp_choose_u(model, random_images(k=10), US) == 2.0


def test_choose_u_gives_up_honestly(model, monkeypatch):
    fake_evaluate(monkeypatch, model, lambda off: 0.9 - 0.5 * (off > 0), [])
    u = clp_choose_u(model, random_images(k=10), (1.0, 0.5))
    assert u == float("inf") and clp(model, u).count == 0


def test_choose_u_at_exactly_the_allowed_drop(model, monkeypatch):
    # Three of 300 images, but 152 / 300 - 0.01 > 149 / 300 in floating point.
    assert 152 / 300 - 0.01 > 149 / 300
    fake_evaluate(monkeypatch, model, lambda off: (149 if off else 152) / 300, [])
    assert clp_choose_u(model, random_images(k=10), US, max_drop=0.01) == min(US)


def test_choose_u_for_real():
    model = randomize_norms(build("resnet18", classes=10, width=8))
    clean = labeled_images(20, side=16)
    u = clp_choose_u(model, clean, (3.0, 1.0), max_drop=1.0)
    assert u == 1.0
    calls = []

    class Spy(BadNets):
        def trigger(self, x):
            calls.append(1)
            return super().trigger(x)

    poisoned = Spy(target=1).poison(clean, 0.0, gen(), stamp="after")
    with pytest.raises(ValueError, match="must be clean Images, not Poisoned"):
        clp_choose_u(model, poisoned, (3.0,), max_drop=1.0)
    assert not calls
