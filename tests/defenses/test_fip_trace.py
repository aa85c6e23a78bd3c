"""FIP: the slope of the Fisher's trace, and the pushes along it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bdcourse import data, victims
from bdcourse.analysis.curvature import fisher_trace
from bdcourse.analysis.curvature import gradient as slopes
from bdcourse.defenses import (
    FipDescent,
    fip,
)
from bdcourse.defenses._fip import fip_along, trainable
from bdcourse.likelihoods import SOFTMAX, Likelihood
from fip_setup import (
    agree,
    drawn_score,
    flat,
    grads,
    label_score,
    network,
    norm_net,
    small,
    smooth_net,
    trace_and_slope,
)
from helpers import frozen, gen, message, random_images, same_state


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
    found = fip_along(model, x, weights, g, score, reach)
    assert same_state(model, before)
    _, exact = trace_and_slope(model, x, score)  # 2 H g / n
    c, ratio = agree(found, [v * len(x) / 2 for v in exact])
    assert c > cosine and ratio == pytest.approx(1, abs=length)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet", "vit"])
def test_the_difference_on_larger_networks(name):
    model, images = network(name).double(), random_images(6, side=32)
    x, score, weights = images.x.double() / 255, label_score(images.y), trainable(model)
    g = slopes(score(model(x)), weights)
    found = fip_along(model, x, weights, g, score, reach=1e-7)
    _, exact = trace_and_slope(model, x, score)
    assert agree(found, exact)[0] > 0.97


@pytest.mark.slow
@pytest.mark.parametrize("name", ["badnets-hard", "trojan-hard"])
def test_the_difference_as_lesson_08_takes_it(name):
    """Float32, batch statistics, the default reach: kinks make it rough, not wrong."""
    model = victims.zoo(name).model.train()
    images = data.splits("signs-hard").clean[:32]
    x, score, weights = images.pixels(), label_score(images.y), trainable(model)
    found = fip_along(model, x, weights, slopes(score(model(x)), weights), score)
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
        fip_along(model, x, weights, [torch.ones_like(w) for w in weights], broken)
    assert same_state(model, before), "running statistics and their count included"
    assert all(m.track_running_stats for m in model if isinstance(m, nn.BatchNorm2d))
    still = [torch.zeros_like(w) for w in weights]
    there = fip_along(model, x, weights, still, lambda out: 0 * out.sum())
    assert not any(h.any() for h in there), "no slope, no product"


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_gaussian_draw_is_unbiased_and_its_difference_is_its_product():
    model, (images, x) = smooth_net(), small(4)
    want = fisher_trace(model, images, route="exact").value
    descent = FipDescent(SOFTMAX, gen(1), 0.3, draw="gaussian")
    traces = torch.tensor([float(descent(model, x, images.y, 0)["trace"]) for _ in range(1500)])
    assert float(traces.mean()) == pytest.approx(want, rel=0.08)
    # The difference takes the drawn vector as given.
    score = descent.total_score(model(x), images.y)
    g = slopes(score(model(x)), trainable(model))
    pushes = fip_along(model, x, trainable(model), g, score, reach=1e-6)
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
        ({"draw": "gaussian", "likelihood": Likelihood()}, "noise"),
        ({"lengths": {0: -1.0}}, "not negative"),
        ({"lengths": {0: float("nan")}}, "finite"),
        ({"lengths": {0: 1.0}, "eta_f": 0}, "eta_f given and not 0"),
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


@pytest.mark.slow
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
