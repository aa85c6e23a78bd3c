"""FIP: singular values as coordinates, the slope of the trace, and the runs."""

from __future__ import annotations

import copy
import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from bdcourse import data, victims
from bdcourse.analysis.curvature import SOFTMAX, Softmax, fisher_diagonal, fisher_trace
from bdcourse.analysis.curvature import gradient as slopes
from bdcourse.analysis.sharpness_aware import sam_step
from bdcourse.data import Images
from bdcourse.defenses import (
    FipDescent,
    SamDescent,
    _fip,
    fast_fip,
    fip,
    fip_all_pairs,
    fip_descend,
    fip_factorize,
    fip_fake_trace,
    fip_matrices,
    fip_released,
)
from bdcourse.defenses._fip import ReleasedDescent, SingularValues, along, fold, trainable, twice
from bdcourse.models import MODELS, build, guarded
from bdcourse.train import Augment
from helpers import frozen, gen, message, random_images, randomise_norms, same_state


def network(name="resnet18", seed=1):
    torch.manual_seed(seed)
    width = {"vit": 8, "mobilenet": 8}.get(name, 4)
    return randomise_norms(build(name, classes=3, width=width), seed)


def smooth_net(act=nn.Tanh, seed=0):
    """No BatchNorm and, with Tanh, no kinks; float64, images of 6 pixels' side."""
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 4, 3), act(), nn.Flatten(), nn.Linear(64, 3)
    return nn.Sequential(*layers).double()


def norm_net(seed=0):
    """With BatchNorm; float64."""
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten()
    return randomise_norms(nn.Sequential(*layers, nn.Linear(64, 3)).double(), seed)


def small(n=8, seed=0):
    """Images for these two, and their pixels in float64."""
    images = random_images(n, side=6, seed=seed)
    return images, images.x.double() / 255


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def agree(a, b):
    """Cosine, and quotient of the lengths, of two lists of tensors."""
    a, b = flat(a), flat(b)
    return float(F.cosine_similarity(a, b, dim=0)), float(a.norm() / b.norm())


def trace_and_slope(model, x, score):
    """||g||^2 / n for the gradient g of score(outputs), and its exact gradient."""
    weights = trainable(model)
    g = slopes(score(twice(model, x)), weights, create_graph=True)
    square = sum(v.square().sum() for v in g) / len(x)
    return square.detach(), slopes(square, weights)


def grads(model):
    return [w.grad.clone() for w in trainable(model)]


# ---------------------------------------------------------------- singular values


@pytest.mark.parametrize("name, size", [("resnet18", 11_173_962), ("preact_resnet18", 11_171_146)])
def test_how_many_numbers_move(name, size):
    with torch.device("meta"):
        model = build(name, classes=10, width=64)
    assert sum(w.numel() for w in model.parameters()) == size
    shapes = [w.flatten(1).shape for w in fip_matrices(model).values()]
    assert len(shapes) == 21
    assert sum(min(shape) for shape in shapes) == 4325


@pytest.mark.parametrize("name", MODELS)
def test_factorized_and_folded_it_is_the_same_network(name):
    model, x = network(name), random_images(4, side=32).pixels()
    start, logits = frozen(model), model(x).detach()
    found = list(fip_matrices(model).values())
    assert sum(w.numel() for w in found) > 0.6 * sum(map(torch.numel, start.values()))
    other = copy.deepcopy(model)
    fip_factorize(other)
    torch.testing.assert_close(other(x), logits, rtol=1e-4, atol=1e-4)
    moving = [p for n, p in other.named_parameters() if n.endswith(".original")]
    assert [len(p) for p in moving] == [min(w.flatten(1).shape) for w in found]
    assert not any(p.any() for p in moving)

    changes = fold(other)
    assert list(other.state_dict()) == list(start), "in their old order too"
    assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
    named = {n for n, w in model.named_parameters() if any(w is v for v in found)}
    assert set(changes) == named
    for n, value in other.state_dict().items():
        torch.testing.assert_close(value, start[n], rtol=1e-4, atol=1e-5)
        if n in changes:
            s, d = changes[n]
            torch.testing.assert_close(s, torch.linalg.svdvals(start[n].flatten(1)))
            assert not d.any()
        else:
            assert torch.equal(value, start[n])


def moved_by(d, seed=0):
    """A convolution's weight before and after its singular values moved by d."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)).double()
    before = net[0].weight.detach().flatten(1).clone()
    fip_factorize(net)
    net[0].parametrizations.weight.original.data.copy_(d(torch.linalg.svdvals(before)))
    ((s, change),) = fold(net).values()
    return before, net[0].weight.detach().flatten(1), s, change


def test_a_change_of_the_values_is_as_long_as_that_of_the_weight():
    step = torch.tensor([0.2, -0.1, 0.05, 0.3]).double()
    before, after, s, change = moved_by(lambda _: step)
    assert torch.equal(change, step) and (s + step > 0).all()
    assert float((after - before).norm()) == pytest.approx(float(step.norm()))
    u, _, vh = torch.linalg.svd(before, full_matrices=False)
    torch.testing.assert_close(u.T @ after @ vh.T, torch.diag(s + step))


def test_relu_cuts_at_zero():
    before, after, s, _ = moved_by(lambda s: torch.stack([-s[0], -2 * s[1], *0 * s[2:]]))
    left = torch.linalg.svdvals(after)
    torch.testing.assert_close(left[:2], s[2:])
    torch.testing.assert_close(left[2:], 0 * left[2:], rtol=0, atol=1e-12)
    law = SingularValues(torch.eye(2), torch.tensor([1.0, 2.0]), torch.eye(2), (2, 2))
    d = torch.tensor([-1.5, -0.5], requires_grad=True)
    assert law(d).tolist() == [[0, 0], [0, 1.5]]
    law(d).sum().backward()
    assert d.grad.tolist() == [0, 1]


def test_the_slope_along_a_singular_value():
    model, (images, x) = smooth_net(), small()
    F.cross_entropy(model(x), images.y).backward()
    want = []
    for w in fip_matrices(model).values():
        u, _, vh = torch.linalg.svd(w.detach().flatten(1), full_matrices=False)
        want.append(torch.einsum("or,oi,ri->r", u, w.grad.flatten(1), vh))
    fip_factorize(model)
    model.zero_grad()
    F.cross_entropy(model(x), images.y).backward()
    for (m, name), slope in zip(fip_matrices(model), want, strict=True):
        found = m.parametrizations[name].original.grad
        torch.testing.assert_close(found, slope)


@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_the_trace_over_singular_values_is_no_larger(fisher):
    model, (images, _) = smooth_net(), small()
    options = {"route": "exact", "fisher": fisher}
    over_w = fisher_trace(model, images, weights=["0.weight", "3.weight"], **options)
    fip_factorize(model)
    names = [n for n, _ in model.named_parameters() if n.endswith(".original")]
    over_d = fisher_trace(model, images, weights=names, **options)
    assert 0 < over_d.value <= over_w.value


def test_attention_counts_as_one_matrix_and_twice_is_once_too_often():
    model = network("vit")
    assert sum(name == "in_proj_weight" for _, name in fip_matrices(model)) == 6
    fip_factorize(model)
    with pytest.raises(ValueError, match="parametrized already") as e:
        fip_factorize(model)
    message(e)


def test_a_foreign_parametrization_stays_and_is_not_factorized():
    model, images = smooth_net().float(), small()[0]
    nn.utils.parametrizations.weight_norm(model[3])
    p = fip(model, images, steps=1, generator=gen(), watch=lambda m: {})
    assert parametrize.is_parametrized(p.model[3]) and not fold(p.model)
    with pytest.raises(ValueError, match="parametrized already") as e:
        fast_fip(model, images, generator=gen())
    message(e)


# ---------------------------------------------------------------- slope of the trace


def label_score(y):
    return lambda out: SOFTMAX.log_prob(out, y).sum()


@pytest.mark.parametrize(
    "act, reach, cosine, length",
    [
        (nn.Tanh, 1e-3, 0.9999, 3e-3),
        (nn.ReLU, 1e-6, 0.99, 0.05),  # at most a kink or two lies so near
    ],
)
def test_the_difference_is_the_exact_product(act, reach, cosine, length):
    model, (_, x) = smooth_net(act), small()
    before, score = frozen(model), label_score(torch.arange(8) % 2)
    weights = trainable(model)
    g = slopes(score(model(x)), weights)
    found = along(model, x, weights, g, score, reach)
    assert same_state(model, before)
    _, exact = trace_and_slope(model, x, score)  # 2 H g / n
    c, ratio = agree(found, [v * len(x) / 2 for v in exact])
    assert c > cosine and ratio == pytest.approx(1, abs=length)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet", "vit"])
def test_the_difference_on_larger_networks(name):
    model, images = network(name).double(), random_images(6, side=32)
    x, score, weights = images.x.double() / 255, label_score(images.y), trainable(model)
    g = slopes(score(model(x)), weights)
    found = along(model, x, weights, g, score, reach=1e-7)
    _, exact = trace_and_slope(model, x, score)
    assert agree(found, exact)[0] > 0.97


@pytest.mark.parametrize("name", ["badnets-hard", "trojan-hard"])
def test_the_difference_as_lesson_08_takes_it(name):
    """Float32, batch statistics, the default reach: kinks make it rough, not wrong."""
    model = victims.zoo(name).model.train()
    images = data.splits("signs-hard").clean[:32]
    x, score, weights = images.pixels(), label_score(images.y), trainable(model)
    found = along(model, x, weights, slopes(score(model(x)), weights), score)
    double = copy.deepcopy(model).double()
    _, exact = trace_and_slope(double, x.double(), score)
    c, ratio = agree(found, [v * len(x) / 2 for v in exact])
    assert c > 0.5 and 0.7 < ratio < 2.5


def test_the_random_control_pushes_as_far_elsewhere():
    net = norm_net().train()
    x, y = (
        torch.rand(6, 3, 6, 6, generator=gen(), dtype=torch.float64),
        torch.arange(6) % 3,
    )
    pushes = {}
    for product in ("difference", "random"):
        twin = copy.deepcopy(net)
        plain = copy.deepcopy(net)
        FipDescent(SOFTMAX, gen(1), eta_f=1.0, product=product)(twin, x, y, 0)
        FipDescent(SOFTMAX, gen(1))(plain, x, y, 0)
        both = zip(twin.parameters(), plain.parameters(), strict=True)
        pushes[product] = [a.grad - b.grad for a, b in both]
    for a, b in zip(*pushes.values(), strict=True):
        assert torch.allclose(a.norm(), b.norm())
    a, b = (torch.cat([t.flatten() for t in p]) for p in pushes.values())
    assert F.cosine_similarity(a, b, 0).abs() < 0.5


def test_along_puts_the_weights_back_whatever_happens():
    model, (_, x) = norm_net().train(), small()
    weights = trainable(model)
    before = frozen(model)

    def broken(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        along(model, x, weights, [torch.ones_like(w) for w in weights], broken)
    assert same_state(model, before), "running statistics and their count included"
    assert all(m.track_running_stats for m in model if isinstance(m, nn.BatchNorm2d))
    still = [torch.zeros_like(w) for w in weights]
    there = along(model, x, weights, still, lambda out: 0 * out.sum())
    assert not any(h.any() for h in there), "no slope, no product"


def drawn_score(model, x, y, fisher, seed):
    """The labels, or signs, that a descent with this seed draws."""
    if fisher == "true":
        return label_score(SOFTMAX.sample(model(x), gen(seed)))
    sign = 2 * torch.randint(2, (len(y),), generator=gen(seed)) - 1
    return lambda out: (sign * SOFTMAX.log_prob(out, y)).sum()


@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_the_slope_of_the_trace_against_finite_differences(fisher):
    model, (images, x) = smooth_net(), small()
    score, eta = drawn_score(model, x, images.y, fisher, 5), 0.3

    def trace():
        g = torch.autograd.grad(score(model(x)), trainable(model))
        return sum(float(v.square().sum()) for v in g) / len(x)

    weights, found = trainable(model), {}
    plain = slopes(F.cross_entropy(model(x), images.y), weights)
    for product in ("exact", "difference"):
        descent = FipDescent(SOFTMAX, gen(5), eta, fisher=fisher, product=product)
        model.zero_grad()
        seen = descent(model, x, images.y, 0)
        assert float(seen["trace"]) == pytest.approx(trace())
        nll = F.cross_entropy(model(x), images.y).detach()
        assert float(seen["loss"]) == pytest.approx(float(nll))
        found[product] = [w.grad - p for w, p in zip(weights, plain, strict=True)]
    for seed in range(4):
        torch.manual_seed(seed)
        v = [torch.randn_like(w) for w in weights]
        ends, h = [], 1e-5
        for sign in (1, -2):  # to w + h v, and from there to w - h v
            with torch.no_grad():
                for w, e in zip(weights, v, strict=True):
                    w += sign * h * e
            ends.append(trace())
        with torch.no_grad():
            for w, e in zip(weights, v, strict=True):
                w += h * e
        want = eta * (ends[0] - ends[1]) / (2 * h)
        assert float(flat(found["exact"]) @ flat(v)) == pytest.approx(want, rel=1e-6)
    c, ratio = agree(found["difference"], found["exact"])
    assert c > 0.9999 and ratio == pytest.approx(1, abs=3e-3)


@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_the_trace_of_a_batch_is_unbiased(fisher):
    model, (images, x) = smooth_net(), small(4)
    with torch.no_grad():
        for w in model.parameters():
            w *= 1.5
    want = fisher_trace(model, images, route="exact", fisher=fisher).value
    descent = FipDescent(SOFTMAX, gen(1), fisher=fisher)
    out, weights, draws = model(x), trainable(model), []
    for _ in range(2000):
        score = descent.total_score(out, images.y)
        g = torch.autograd.grad(score(out), weights, retain_graph=True)
        draws.append(sum(v.square().sum() for v in g) / len(x))
    draws = torch.stack(draws)
    error = float(draws.std()) / len(draws) ** 0.5
    assert error < 0.04 * want
    assert float(draws.mean()) == pytest.approx(want, abs=4 * error)
    other = {"true": "empirical", "empirical": "true"}[fisher]
    rival = fisher_trace(model, images, route="exact", fisher=other).value
    assert abs(float(draws.mean()) - rival) > 8 * error, "the two can be told apart"


def test_only_the_exact_gaussian_push_is_the_gradient_of_the_trace():
    """Labels count as constants, though their distribution moves with the weights."""
    model, (images, x) = smooth_net(), small(4)
    weights = trainable(model)
    with torch.no_grad():
        for w in weights:
            w *= 3  # near even odds the distribution hardly matters
    p = model(x).softmax(1)
    trace = 0
    for k in range(3):  # the true trace, with every way in which it depends on w
        for i in range(len(x)):
            s = slopes(model(x[i : i + 1]).log_softmax(1)[0, k], weights, None, True)
            trace = trace + p[i, k] * sum(v.square().sum() for v in s) / len(x)
    want, near = flat(slopes(trace, weights)), {}
    for draw in ("labels", "gaussian"):
        mean, descent = 0, FipDescent(SOFTMAX, gen(1), 1.0, product="exact", draw=draw)
        out = model(x)
        for _ in range(1000):
            square = sum(v.square().sum() for v in descent.slopes(out, images.y, weights))
            g = torch.autograd.grad(square / len(x), weights, retain_graph=True)
            mean = mean + flat(g) / 1000
        near[draw] = float((mean - want).norm() / want.norm())
    assert near["gaussian"] < 0.12
    assert near["labels"] > 0.3


def test_a_gaussian_draw_is_unbiased_and_its_difference_is_its_product():
    model, (images, x) = smooth_net(), small(4)
    want = fisher_trace(model, images, route="exact").value
    descent = FipDescent(SOFTMAX, gen(1), 0.3, draw="gaussian")
    traces = torch.tensor([float(descent(model, x, images.y, 0)["trace"]) for _ in range(1500)])
    assert float(traces.mean()) == pytest.approx(want, rel=0.08)
    # The difference takes the drawn vector as given.
    score = descent.total_score(model(x), images.y)
    g = slopes(score(model(x)), trainable(model))
    pushes = along(model, x, trainable(model), g, score, reach=1e-6)
    _, slope = trace_and_slope(model, x, score)
    c, ratio = agree(pushes, [v * len(x) / 2 for v in slope])
    assert c > 0.9999 and ratio == pytest.approx(1, abs=3e-3)


@pytest.mark.parametrize("product", ["difference", "exact", "random"])
def test_pushes_are_logged_and_can_be_given(product):
    images, model = random_images(12, side=6), norm_net().float()
    how = {"eta_f": 0.01, "steps": 5, "batch": 6, "every": 2, "product": product}
    push = fip(model, images, generator=gen(3), **how).log["push"]
    assert [step for step, _ in push] == [0, 2, 4]

    x, y = images.pixels(), images.y
    added, lengths = {}, {0: 7.0}
    for eta, given in ((0.01, None), (0.01, lengths), (0.0, None)):
        net = copy.deepcopy(model).train()
        descent = FipDescent(SOFTMAX, gen(1), eta, product=product, lengths=given)
        seen = descent(net, x, y, 0)
        added[eta, given is None] = flat(grads(net)), seen.get("push")
    plain = added[0.0, True][0]
    own, given = (added[0.01, k][0] - plain for k in (True, False))
    assert float(own.norm()) == pytest.approx(float(added[0.01, True][1]), rel=1e-3)
    assert float(given.norm()) == pytest.approx(7, rel=1e-3)
    assert float(F.cosine_similarity(own, given, 0)) > 0.999, "the same draw"

    p = fip(model, images, generator=gen(3), lengths={0: 1, 2: 2, 4: 3}, **how)
    assert [v for _, v in p.log["push"]] == pytest.approx([1, 2, 3], rel=1e-4)
    with pytest.raises(ValueError) as e:
        fip(model, images, generator=gen(3), lengths={0: 1, 4: 3}, **how)
    assert "none for step 2" in message(e)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"draw": "dice"}, "labels"),
        ({"draw": "gaussian", "fisher": "empirical"}, "true Fisher only"),
        ({"draw": "gaussian", "likelihood": SimpleNamespace()}, "noise"),
        ({"lengths": {0: -1.0}}, "not negative"),
        ({"lengths": {0: float("nan")}}, "finite"),
        ({"lengths": {0: 1.0}, "eta_f": 0}, "eta_f not 0"),
    ],
)
def test_draws_and_lengths_that_mean_nothing_are_refused(wrong, says):
    with pytest.raises(ValueError) as e:
        fip(network(), random_images(12), steps=1, generator=gen(), **wrong)
    assert says in message(e)


def test_lengths_that_went_through_a_file_are_understood():
    model, images = network(), random_images(12)
    how = {"eta_f": 1e-3, "steps": 2, "batch": 6, "lr": 1e-3}
    lengths = {"0": torch.tensor(0.1), "1": 0.2}
    p = fip(model, images, generator=gen(), lengths=lengths, **how)
    assert [v for _, v in p.log["push"]] == pytest.approx([0.1, 0.2], rel=1e-4)


@pytest.mark.parametrize("norms", ["batch", "mixed", "frozen"])
@pytest.mark.parametrize("product", ["difference", "exact"])
def test_batchnorm_sees_the_batch_once(norms, product):
    images, x = small()
    plain = norm_net().train(norms != "frozen")
    before = frozen(plain)
    with torch.no_grad():
        plain(x)
    model = norm_net().train(norms != "frozen")
    eta = 0.1
    descent = FipDescent(SOFTMAX, gen(3), eta, product=product, norms=norms)
    seen = descent(model, x, images.y, 0)
    buffers = dict(plain.named_buffers())
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    assert same_state(plain, before) == (norms == "frozen")
    assert all(m.training == (norms != "frozen") for m in model.modules())

    # The trace: in eval mode, unless BatchNorm follows the batch.
    twin = norm_net().train(norms == "batch")
    twin.load_state_dict(plain.state_dict())  # which have seen the batch by then
    trace, slope = trace_and_slope(twin, x, drawn_score(twin, x, images.y, "true", 3))
    assert float(seen["trace"]) == pytest.approx(float(trace))
    whole = norm_net().train(norms != "frozen")
    loss = slopes(F.cross_entropy(whole(x), images.y), trainable(whole))
    added = [w - v for w, v in zip(grads(model), loss, strict=True)]
    c, ratio = agree(added, [eta * v for v in slope])
    assert c > 0.99 and ratio == pytest.approx(1, abs=0.05)


def test_fip_flattens():
    images, _ = small(12)
    model, ends = smooth_net().float(), {}
    for eta in (0.0, 0.05):
        for product in ("difference", "exact"):
            p = fip(
                model,
                images,
                eta_f=eta,
                eta_r=0,
                product=product,
                steps=60,
                batch=12,
                lr=0.005,
                generator=gen(),
            )
            ends[eta, product] = fisher_trace(p.model, images, route="exact").value
    assert ends[0.05, "difference"] < 0.6 * ends[0.0, "difference"]
    near = ends[0.05, "difference"] / ends[0.05, "exact"]
    assert near == pytest.approx(1, abs=0.05)


# ---------------------------------------------------------------- the pull


def test_the_pull_by_its_formula():
    model, (images, x) = smooth_net(), small()
    old = [w.detach().clone() for w in trainable(model)]
    diagonal = [torch.rand_like(w) for w in old]
    descent = FipDescent(SOFTMAX, gen(), 0.0, 2.5, old=old, diagonal=diagonal)
    plain = FipDescent(SOFTMAX, gen())
    for moved in (False, True):
        for w in trainable(model) if moved else ():
            w.data += 0.1 * torch.randn_like(w)
        both = []
        for d in (plain, descent):
            model.zero_grad()
            d(model, x, images.y, 0)
            both.append(grads(model))
        now = trainable(model)
        for a, b, w, w0, f in zip(*both, now, old, diagonal, strict=True):
            torch.testing.assert_close(b - a, 2.5 * f * (w.detach() - w0))
            assert (b - a).any() == moved, "at the received weights nothing pulls"


def captured(monkeypatch, *args, f=fip, **options):
    """The descent that a run builds."""
    seen = []

    def build_one(*args):
        seen.append(FipDescent(*args))
        return seen[0]

    monkeypatch.setattr(_fip, "FipDescent", build_one)
    f(*args, steps=1, lr=1e-6, **options)
    monkeypatch.undo()
    return seen[0]


def test_the_diagonal_is_the_mean_of_the_squared_scores(monkeypatch):
    model, (images, _) = smooth_net(), small()
    want = fisher_diagonal(model, images, fisher="empirical")
    descent = captured(monkeypatch, model, images, fisher="empirical", generator=gen())
    torch.testing.assert_close(flat(descent.diagonal), flat(want.values()))
    for w, w0 in zip(model.parameters(), descent.old, strict=True):
        assert torch.equal(w, w0)

    want = flat(fisher_diagonal(model, images).values())  # labels of the network
    draws = [
        flat(captured(monkeypatch, model, images, generator=gen(s)).diagonal) for s in range(30)
    ]
    mean = torch.stack(draws).mean(0)
    assert float(mean.sum()) == pytest.approx(float(want.sum()), rel=0.15)
    assert agree([mean], [want])[0] > 0.97
    assert not torch.equal(draws[0], draws[1])


def test_the_pull_of_fast_fip_is_to_no_change(monkeypatch):
    model, (images, _) = smooth_net(), small()
    descent = captured(monkeypatch, model, images, f=fast_fip, fisher="empirical", generator=gen())
    fip_factorize(model)
    want = fisher_diagonal(model, images, fisher="empirical")
    torch.testing.assert_close(flat(descent.diagonal), flat(want.values()))
    for (name, _), w0 in zip(model.named_parameters(), descent.old, strict=True):
        assert bool(w0.any()) == name.endswith("bias")


@pytest.mark.parametrize("f", [fip, fast_fip])
def test_a_strong_pull_keeps_the_weights(f):
    images, _ = small(12)
    model, far = smooth_net().float(), {}
    for eta_r in (0.0, 10.0, 1000.0):
        p = f(model, images, eta_f=0, eta_r=eta_r, steps=40, lr=1e-3, batch=12, generator=gen())
        now, then = flat(p.model.parameters()), flat(model.parameters())
        far[eta_r] = float((now - then).norm())
    assert far[1000.0] < 0.8 * far[10.0] < 0.8 * far[0.0]


# ---------------------------------------------------------------- the loop


@pytest.mark.parametrize("norms, pad", [("batch", 0), ("frozen", 0), ("batch", 2)])
def test_without_both_terms_it_is_plain_sgd(norms, pad):
    crops = Augment(pad, flip=True) if pad else None
    images, start = random_images(20), network()
    p = fip(
        start,
        images,
        eta_f=0,
        eta_r=0,
        steps=5,
        lr=0.03,
        momentum=0.8,
        batch=8,
        norms=norms,
        augment=crops,
        generator=gen(4),
    )
    model, g = copy.deepcopy(start), gen(4)
    model.train(norms == "batch")
    opt, losses = torch.optim.SGD(model.parameters(), 0.03, 0.8), []
    for _ in range(5):
        index = torch.randperm(20, generator=g)[:8]
        x = crops.once(images.x[index], g) if pad else images.x[index]
        opt.zero_grad()
        with guarded(model):  # its shortcuts are narrow
            loss = F.cross_entropy(model(x.float() / 255), images.y[index])
            loss.backward()
        opt.step()
        losses.append(float(loss.detach()))
    state = model.state_dict()
    assert p.model.state_dict().keys() == state.keys()
    for n, v in p.model.state_dict().items():
        torch.testing.assert_close(v, state[n], rtol=1e-5, atol=1e-6, msg=n)
    assert [s for s, _ in p.log["loss"]] == list(range(5))
    assert [v for _, v in p.log["loss"]] == pytest.approx(losses, rel=1e-5)
    assert set(p.log) == {"loss", "own_acc"} and not p.model.training


@pytest.mark.parametrize("f", [fip, fast_fip])
def test_frozen_statistics_stay(f):
    model = network()
    p = f(model, random_images(12), norms="frozen", lr=1e-3, steps=3, batch=6, generator=gen())
    now = dict(p.model.named_buffers())
    assert all(torch.equal(b, now[n]) for n, b in model.named_buffers())
    assert not torch.equal(p.model.bn1.weight, model.bn1.weight)


def test_every_so_many_steps():
    p = fip(smooth_net().float(), small()[0], every=3, steps=8, generator=gen())
    assert [s for s, _ in p.log["trace"]] == [0, 3, 6]
    assert [s for s, _ in p.log["loss"]] == list(range(8))
    assert all(v > 0 for _, v in p.log["trace"])


def test_a_batch_larger_than_the_data_is_all_of_it():
    runs = [
        fip(network(), random_images(9), batch=b, steps=2, lr=1e-3, generator=gen())
        for b in (9, 32)
    ]
    assert same_state(runs[0].model, frozen(runs[1].model))


@pytest.mark.parametrize("affine", [True, False])
def test_fast_fip_moves_singular_values_and_little_else(affine):
    model = network()
    model.layer1[0].bn1.requires_grad_(False)  # the user's wish, which stands
    model.layer2[0].conv1.requires_grad_(False)
    p = fast_fip(
        model,
        random_images(12),
        affine=affine,
        eta_f=1e-3,
        steps=4,
        batch=6,
        lr=0.02,
        generator=gen(),
    )
    now, held = dict(p.model.named_parameters()), ("layer1.0.bn1", "layer2.0.conv1")
    assert not any(parametrize.is_parametrized(m) for m in p.model.modules())
    assert list(p.model.state_dict()) == list(model.state_dict())
    for name, w in model.named_parameters():
        v = now[name]
        assert v.requires_grad == w.requires_grad and v.grad is None
        if name not in p.log["change"]:
            fixed = name.startswith(held) or (not affine and name != "linear.bias")
            assert torch.equal(v, w) == fixed, name
            continue
        s, d = p.log["change"][name]
        assert bool(d.any()) == (not name.startswith(held))
        u, values, vh = torch.linalg.svd(w.detach().flatten(1), full_matrices=False)
        torch.testing.assert_close(values, s)
        inside = u.T @ v.detach().flatten(1) @ vh.T
        want = torch.diag((s + d).relu())
        torch.testing.assert_close(inside, want, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("f", [fip, fast_fip, fip_released])
def test_the_argument_is_untouched(f):
    model, images = network().train(), random_images(12)
    model.layer2.eval()
    model.conv1.requires_grad_(False)
    F.cross_entropy(model(images.pixels()), images.y).backward()
    before, modes = frozen(model), [m.training for m in model.modules()]
    slope = [w.grad.clone() if w.grad is not None else None for w in model.parameters()]
    p = f(model, images, steps=2, lr=1e-3, batch=6, generator=gen())
    with pytest.raises(RuntimeError, match=r"left all bounds in step \d:") as e:
        f(model, images, steps=30, lr=1e30, batch=6, generator=gen())
    message(e)
    assert same_state(model, before) and not same_state(p.model, before)
    assert [m.training for m in model.modules()] == modes and not p.model.training
    for w, g, v in zip(model.parameters(), slope, p.model.parameters(), strict=True):
        assert w.requires_grad == v.requires_grad == (w is not model.conv1.weight)
        assert v.grad is None
        assert w.grad is None if g is None else torch.equal(w.grad, g)
    if f is not fast_fip:
        assert torch.equal(p.model.conv1.weight, model.conv1.weight)
    assert p.count == 0 and p.seconds > 0


def test_a_last_step_out_of_bounds_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(_fip.Checkpoint, "due", lambda self: True)
    path = tmp_path / "fip"
    with pytest.raises(RuntimeError, match="in step 0: take a smaller lr") as e:
        fip(
            smooth_net().float(),
            small()[0],
            steps=1,
            lr=1e30,
            eta_f=1e30,
            generator=gen(),
            checkpoint=path,
        )
    message(e)
    assert not path.exists(), "there is nothing to go on with"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet"])
def test_equal_seeds_give_equal_results(name):
    images, model, runs = random_images(12, side=32), network(name), []
    for i, seed in enumerate((0, 0, 1)):
        torch.manual_seed(i)  # of dropout, if it were on
        runs.append(
            fip(model, images, steps=2, lr=1e-4, batch=6, augment=Augment(1), generator=gen(seed))
        )
    assert same_state(runs[0].model, frozen(runs[1].model))
    assert runs[0].log == runs[1].log
    assert not same_state(runs[0].model, frozen(runs[2].model))


@pytest.mark.parametrize("product", ["difference", "exact"])
@pytest.mark.parametrize("f", [fip, fast_fip])
def test_attention(f, product):
    model, images = network("vit"), random_images(8, side=32)
    p = f(model, images, product=product, eta_f=1e-3, steps=2, batch=4, lr=1e-3, generator=gen())
    assert len(p.log["trace"]) == 2 and not same_state(p.model, frozen(model))
    assert fip_released(model, images, steps=1, generator=gen()).log["trace"]


def test_a_weight_without_use_stays():
    model, images = smooth_net().float(), small()[0]
    model.idle = nn.Parameter(torch.ones(2))
    model.forward = lambda x: model[3](model[2](model[1](model[0](x))))
    for descent in (
        FipDescent(SOFTMAX, g := gen(), 1e-3),
        SamDescent(SOFTMAX, 0.1),
        ReleasedDescent(g),
    ):
        other = copy.deepcopy(model)
        fip_descend(other, images, descent, steps=2, generator=g)
        assert torch.equal(other.idle, model.idle)
    p = fip(smooth_net(), images, steps=2, generator=gen())
    q = fip(with_idle(smooth_net()), images, steps=2, generator=gen())
    p, q = p.model, q.model.net
    close = {"rtol": 1e-4, "atol": 1e-5}  # the idle ones lengthen the move of `along`
    torch.testing.assert_close(flat(p.parameters()), flat(q.parameters()), **close)


def with_idle(net):
    """The same network and a parameter that it does not use."""

    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.idle = net, nn.Parameter(torch.ones(2).double())

        def forward(self, x):
            return self.net(x)

    return Idle()


def test_watching_changes_nothing():
    model, images, seen = network(), random_images(12), []
    g = gen()
    options = {"steps": 5, "lr": 1e-3, "batch": 6}

    def vandal(found):
        assert not any(m.training for m in found.modules())
        assert not any(parametrize.is_parametrized(m) for m in found.modules())
        seen.append(float(found.linear.bias.detach().sum()))
        found.train()(images.pixels()).sum().backward()
        for w in found.parameters():
            w.data.zero_()
        torch.rand(3, generator=g)
        return {"bias": seen[-1]}

    for f in (fip, fast_fip):
        seen.clear()
        plain = f(model, images, generator=gen(), **options)
        watched = f(
            model, images, generator=g.manual_seed(0), watch=vandal, watch_every=2, **options
        )
        assert same_state(plain.model, frozen(watched.model))
        steps = [0, 2, 4, 5]
        want = [{"step": s, "bias": v} for s, v in zip(steps, seen, strict=True)]
        assert watched.log["watched"] == want and "watched" not in plain.log
        assert seen[0] == float(model.linear.bias.detach().sum())
        assert seen[3] == float(watched.model.linear.bias.detach().sum())


def test_the_time_of_watching_does_not_count():
    def slow(_):
        time.sleep(0.3)
        return {}

    for f in (fip, fip_released):
        start = time.perf_counter()
        p = f(network(), random_images(12), steps=1, lr=1e-3, batch=6, watch=slow, generator=gen())
        assert p.seconds <= time.perf_counter() - start - 0.6  # looked at twice


# ---------------------------------------------------------------- stopped


LENGTHS = {"draw": "gaussian", "lengths": dict.fromkeys(range(9), 0.1)}
RUNS = [(fip, {}), (fast_fip, {"norms": "mixed"}), (fip_released, {"every": 2}), (fip, LENGTHS)]


@pytest.mark.parametrize("f, extra", RUNS)
def test_stopped_and_started_again_it_ends_the_same(f, extra, tmp_path, monkeypatch):
    monkeypatch.setattr(_fip.Checkpoint, "due", lambda self: self.path is not None)
    model, images, path = network(), random_images(12), tmp_path / "fip"
    options = {"steps": 5, "lr": 1e-3, "batch": 6, "watch_every": 1} | extra
    options |= {"augment": Augment(1)}
    steps = []

    def watch(model):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return {"bias": float(model.linear.bias.detach().sum())}

    def run(generator=None, watch=lambda m: {"bias": float(m.linear.bias.detach().sum())}):
        g = generator or gen()
        return f(model, images, generator=g, checkpoint=path, watch=watch, **options)

    whole = run()
    assert not path.exists()
    g = gen()
    with pytest.raises(KeyboardInterrupt):
        run(g, watch)
    assert path.exists()
    with pytest.raises(ValueError, match="generator differs"):
        run(g)  # which has moved on
    again = run()
    assert same_state(again.model, frozen(whole.model))
    assert again.log.keys() == whole.log.keys()
    for key in set(whole.log) - {"change"}:
        assert again.log[key] == whole.log[key]
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_other_work_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_fip.Checkpoint, "due", lambda self: self.path is not None)
    path = tmp_path / "fip"
    images, _ = small()

    def stop(model):
        raise KeyboardInterrupt

    same = {"model": smooth_net(), "clean": images, "steps": 2, "generator": gen()}
    with pytest.raises(KeyboardInterrupt):
        fip(**same, checkpoint=path, watch=stop)
    changes = [
        {"eta_f": 1e-3},
        {"eta_r": 0.1},
        {"every": 2},
        {"fisher": "empirical"},
        {"product": "exact"},
        {"norms": "frozen"},
        {"likelihood": Softmax(-1)},
        {"fast": True},
        {"affine": False},
        {"steps": 3},
        {"lr": 0.1},
        {"momentum": 0.1},
        {"batch": 4},
        {"augment": Augment(1)},
        {"generator": gen(1)},
        {"model": smooth_net(seed=1)},
        {"clean": small(9)[0]},
        {"draw": "gaussian"},
        {"lengths": {0: 1.0, 1: 2.0}},
    ]
    for change in changes:
        with pytest.raises(ValueError, match="belongs to other work") as e:
            fip(**({**same, "generator": gen()} | change), checkpoint=path)
        message(e)
    with pytest.raises(ValueError, match="belongs to other work"):
        fip_released(smooth_net(), images, generator=gen(), checkpoint=path)
    assert path.exists()


# ---------------------------------------------------------------- sequences


class Toy(nn.Module):
    """Next-token logits from the mean of the tokens so far."""

    def __init__(self, k=7, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(k, 5), nn.Linear(5, k)

    def forward(self, x):
        t = torch.arange(1, x.shape[1] + 1).view(1, -1, 1)
        return self.head(self.embed(x).cumsum(1) / t)


def sentences(ignore, filler):
    x = torch.randint(7, (6, 5), generator=gen(2))
    y = torch.randint(1, 7, (6, 5), generator=gen(3))
    for i in range(6):
        x[i, 5 - i % 3 :], y[i, 5 - i % 3 :] = filler, ignore
    return SimpleNamespace(x=x, y=y)


@pytest.mark.parametrize("ignore", [-100, 0])
@pytest.mark.parametrize("fisher", ["true", "empirical"])
@pytest.mark.parametrize("f", [fip, fast_fip])
def test_sequences_whose_padding_says_nothing(f, fisher, ignore):
    runs = [
        f(
            Toy(),
            sentences(ignore, filler),
            likelihood=Softmax(ignore),
            fisher=fisher,
            eta_f=0.01,
            eta_r=1.0,
            steps=4,
            batch=4,
            generator=gen(),
        )
        for filler in (0, 6)
    ]
    for name in ("loss", "trace"):
        one, two = (torch.tensor(p.log[name]) for p in runs)
        torch.testing.assert_close(one, two)
    a, b = (p.model.state_dict() for p in runs)
    for n, start in Toy().state_dict().items():
        torch.testing.assert_close(a[n], b[n])
        assert not torch.equal(a[n], start)
    data = sentences(ignore, 0)
    whole = f(Toy(), data, likelihood=Softmax(ignore), batch=6, steps=1, generator=gen())
    log_p = Toy()(data.x).log_softmax(2).gather(2, data.y.clamp(min=0)[..., None])
    nll = -(log_p[..., 0] * (data.y != ignore)).sum() / 6
    assert whole.log["loss"][0][1] == pytest.approx(float(nll))


# ---------------------------------------------------------------- the other arms


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_aware_is_the_step_of_ft_sam(rho):
    images, _ = small(12)
    model, twin = norm_net().float(), norm_net().float()
    g = gen(2)
    p = fip_descend(
        model,
        images,
        SamDescent(SOFTMAX, rho),
        steps=4,
        lr=0.05,
        momentum=0.5,
        batch=6,
        generator=g,
    )
    twin.train()
    norm, start = twin[1], frozen(twin[1])
    weights, g, losses = list(twin.parameters()), gen(2), []
    opt = torch.optim.SGD(weights, 0.05, 0.5)
    for _ in range(4):
        index = torch.randperm(12, generator=g)[:6]
        x, y = images.pixels()[index], images.y[index]
        passes = []

        def objective(x=x, y=y, passes=passes):
            norm.momentum = 0.0 if passes else 0.1  # only the first counts
            passes.append(1)
            return F.cross_entropy(twin(x), y)

        losses.append(float(sam_step(objective, weights, opt, rho)[0]))
    assert [v for _, v in p.log["loss"]] == pytest.approx(losses, rel=1e-5)
    now = p.model.state_dict()
    assert int(now.pop("1.num_batches_tracked")) == 4
    for n, v in now.items():
        torch.testing.assert_close(v, twin.state_dict()[n], rtol=1e-4, atol=1e-6)
    assert not torch.equal(norm.running_mean, start["running_mean"])


def test_all_pairs_are_not_the_likelihood():
    out = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
    y = torch.tensor([0, 1])
    log_p = SOFTMAX.log_prob(out, y).mean()
    assert float(log_p) == pytest.approx(-0.1642, abs=1e-4)
    assert float(fip_all_pairs(out, y)) == pytest.approx(-1.0601, abs=1e-4)


def test_the_fake_trace_has_mean_zero_and_the_stated_variance():
    # Two weights along which the all-pairs likelihood has slope 1, 20 probes.
    torch.manual_seed(0)
    logits, y = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 2])
    (slope,) = torch.autograd.grad(fip_all_pairs(logits, y), logits)
    along_it = slope / slope.square().sum()
    w = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    out, g = logits.detach() + (w[0] + w[1]) * along_it, gen(1)
    draws = torch.stack([fip_fake_trace(out, y, w, 20, g).detach() for _ in range(600)])
    # A variance of n Gaussian numbers is off by a share of sqrt(2 / n): here 6%.
    assert float(draws.var()) == pytest.approx(0.25, rel=0.18)
    assert abs(float(draws.mean())) < 4 * (0.25 / 600) ** 0.5
    for which, variance in ((0, 9), (2, 1)):  # the first counts thrice, the last once
        w = [torch.zeros(1, requires_grad=True) for _ in range(3)]
        out = logits.detach() + w[which] * along_it
        draws = [fip_fake_trace(out, y, w, 1, g).detach() for _ in range(600)]
        assert float(torch.stack(draws).var()) == pytest.approx(variance, rel=0.18)


def test_the_released_step_descends_the_fake_trace():
    model, (images, x) = smooth_net(), small()
    seen = ReleasedDescent(gen(6), eta_f=0.5, probes=3)(model, x, images.y, 5)
    found, weights = grads(model), trainable(model)
    out = model(x)
    fake = fip_fake_trace(out, images.y, weights, 3, gen(6))
    want = slopes(F.cross_entropy(out, images.y) + 0.5 * fake, weights)
    torch.testing.assert_close(flat(found), flat(want))
    assert float(seen["trace"]) == pytest.approx(float(fake.detach()))
    p = fip_released(model, images, steps=11, lr=1e-3, generator=gen())
    assert [s for s, _ in p.log["trace"]] == [0, 5, 10]
    assert [s for s, _ in p.log["loss"]] == list(range(11))
    q = fip_released(model, images, eta_f=0, steps=4, lr=1e-3, every=9, generator=gen())
    assert q.log["loss"][1:] != p.log["loss"][1:4], "its noise has an effect"


# ---------------------------------------------------------------- refusals


def refused(text, f=fip, model=None, clean=None, **options):
    model = smooth_net() if model is None else model
    clean = small()[0] if clean is None else clean
    with pytest.raises(ValueError, match=text) as e:
        f(model, clean, generator=gen(), **options)
    message(e)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"eta_f": -1e-3}, "eta_f must be at least 0"),
        ({"eta_r": float("nan")}, "eta_r must be at least 0"),
        ({"every": 0}, "every must be a whole number of at least 1"),
        ({"fisher": "both"}, "fisher must be"),
        ({"product": "cheap"}, "product must be"),
        ({"norms": "train"}, "norms must be"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"lr": 0}, "lr must be above 0"),
        ({"lr": float("inf")}, "lr must be a finite number"),
        ({"momentum": 1}, "momentum must lie in 0..1"),
        ({"momentum": -0.1}, "momentum must lie in 0..1"),
        ({"batch": 0}, "batch must be a whole number of at least 1"),
        ({"watch_every": 0}, "watch_every must be a whole number of at least 1"),
    ],
)
def test_numbers_and_names_are_refused(options, text):
    refused(text, **options)
    if "eta_r" not in options:
        refused(text, fast_fip, **options)


@pytest.mark.parametrize("options", [{"eta_f": -1}, {"every": 0}, {"probes": 0}])
def test_the_released_arm_refuses_too(options):
    refused("must be at least", fip_released, **options)


@pytest.mark.parametrize("f", [fip, fip_released])
def test_data_that_do_not_fit_are_refused(f):
    images, _ = small()
    refused("clean must hold at least 2 images, but holds 0", f, clean=images[:0])
    refused("clean must hold at least 2 images, but holds 1", f, clean=images[:1])
    uneven = SimpleNamespace(x=images.x[:7], y=images.y)
    refused("there are 7 inputs and 8 targets", f, clean=uneven)
    more = Images(images.x, images.y + 2, tuple("abcde"))
    refused("model tells 3 classes apart, but the images have 5", f, clean=more)
    more = SimpleNamespace(x=images.x, y=images.y + 2)
    refused("run from 2 to 4, but the model has 3 outputs", f, clean=more)
    below = SimpleNamespace(x=images.x, y=images.y - 1)
    refused("run from -1 to 1", f, clean=below)
    floats = SimpleNamespace(x=images.x, y=images.y.float())
    refused("targets must be int64", f, clean=floats)
    pairs = SimpleNamespace(x=images.x, y=images.y[:, None])
    refused("targets must be int64 of shape", f, clean=pairs)
    fixed = smooth_net().requires_grad_(False)
    refused("requires? grad|no weights", f, model=fixed)
    tokens = sentences(-100, 0)
    refused("augment is for images", model=Toy(), clean=tokens, augment=Augment(1))


def test_sequences_are_refused_by_the_released_arm():
    refused("classes only", fip_released, model=Toy(), clean=sentences(0, 0))


def test_a_batch_of_one_beside_batchnorm_is_refused():
    refused("a batch of one needs", model=norm_net(), batch=1)
    refused("a batch of one needs", model=norm_net(), batch=1, norms="mixed")
    fip(norm_net(), small()[0], batch=1, norms="frozen", steps=1, generator=gen())
    fip(smooth_net(), small()[0], batch=1, steps=1, generator=gen())


# ---------------------------------------------------------------- CUDA


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("device", ["cpu", "cuda"])  # of the generator
@pytest.mark.parametrize("f", [fip, fast_fip, fip_released])
def test_on_a_gpu(f, device):
    images, model = random_images(12, side=32).to("cuda"), network().cuda()
    before = frozen(model)
    g = lambda: torch.Generator(device).manual_seed(1)  # noqa: E731
    options = {"steps": 3, "lr": 1e-3, "batch": 6, "augment": Augment(1)}
    p = f(model, images, generator=g(), **options)
    assert same_state(model, before) and not same_state(p.model, before)
    assert all(v.isfinite().all() for v in p.model.state_dict().values())
    other = f(network(), images, generator=g(), **options)  # the copy goes to the data
    assert next(other.model.parameters()).is_cuda
    for a, b in zip(p.model.parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("product", ["difference", "exact"])
def test_the_slope_on_a_gpu_is_that_on_the_cpu(product):
    images, x = small()
    found = []
    for device in ("cpu", "cuda"):
        model = smooth_net().to(device)
        descent = FipDescent(SOFTMAX, gen(1), 0.1, fisher="empirical", product=product)
        descent(model, x.to(device), images.y.to(device), 0)
        found.append([v.cpu() for v in grads(model)])
    c, ratio = agree(*found)
    assert c > 0.9999 and ratio == pytest.approx(1, abs=1e-3)
