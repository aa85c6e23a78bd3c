"""The Fisher matrix against independent computations, and the care all measures take."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, jacrev

from bdcourse.analysis import curvature as c
from bdcourse.analysis import landscape as ls
from bdcourse.likelihoods import Likelihood, Softmax
from bdcourse.models import MODELS
from dense import conv_net, dense_fisher, dense_hessian, flat, flat_loss, mlp, network, tiny
from helpers import frozen, gen, message, random_images, same_state

# ---------------------------------------------------------------- the exact Fisher


@pytest.mark.slow
@pytest.mark.parametrize("fisher", ["true", "empirical"])
@pytest.mark.parametrize("make, side", [(mlp, 2), (conv_net, 6)])
def test_exact_is_a_loop_over_images_and_labels(make, side, fisher):
    model, images = make(), tiny(side=side)
    want = dense_fisher(model, images, fisher).diagonal()
    trace = c.fisher_trace(model, images, route="exact", fisher=fisher)
    assert trace.value == pytest.approx(float(want.sum()), rel=1e-10)
    assert trace.error == 0
    diagonal = c.fisher_diagonal(model, images, fisher=fisher)
    assert list(diagonal) == [n for n, _ in model.named_parameters()]
    torch.testing.assert_close(flat(diagonal), want)
    w2 = flat(dict(model.named_parameters())).detach().square()
    relative = c.relative_trace(model, images, route="exact", fisher=fisher)
    assert relative.value == pytest.approx(float(want @ w2), rel=1e-10)


def softmax_regression(x, y, logits):
    """A linear layer and a batch for which it gives these logits."""
    model = nn.Linear(x.shape[1], len(logits)).double()
    nn.init.zeros_(model.weight)
    model.bias.data.copy_(logits)
    return model, SimpleNamespace(x=x, y=y)


def test_softmax_regression_has_a_formula():
    g = gen(2)
    x, y = torch.randn(1, 6, generator=g).double(), torch.tensor([2])
    model, batch = softmax_regression(x, y, torch.randn(4, generator=g).double())
    p = model(x).softmax(1)[0].detach()
    size = float(x.square().sum()) + 1
    true = size * (1 - float(p.square().sum()))
    empirical = size * float(1 - 2 * p[2] + p.square().sum())
    exact = lambda f: c.fisher_trace(model, batch, route="exact", fisher=f)  # noqa: E731
    assert exact("true").value == pytest.approx(true, rel=1e-12)
    assert exact("empirical").value == pytest.approx(empirical, rel=1e-12)
    assert abs(true - empirical) > 0.1 * true


def test_exercise_1_is_3_point_6():
    x = torch.ones(1, 3).double()
    model, batch = softmax_regression(x, torch.tensor([4]), torch.zeros(10).double())
    for fisher in ("true", "empirical"):
        trace = c.fisher_trace(model, batch, route="exact", fisher=fisher)
        assert trace.value == pytest.approx(3.6, abs=1e-12)


def test_empirical_equals_true_where_labels_come_from_the_network():
    # One image many times, labeled in the proportions that the network gives.
    x = torch.ones(10, 2).double()
    y = torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    model, batch = softmax_regression(
        x, y, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    )
    true, empirical = (
        c.fisher_trace(model, batch, route="exact", fisher=f).value for f in ("true", "empirical")
    )
    assert true == pytest.approx(empirical, rel=1e-12)
    # Labels that the network does not expect, and those that it is sure of.
    for label, ratio in ((2, (1 - 2 * 0.2 + 0.38) / 0.62), (0, 0.38 / 0.62)):
        batch.y = torch.full((10,), label)
        empirical = c.fisher_trace(model, batch, route="exact", fisher="empirical").value
        assert empirical / true == pytest.approx(ratio, rel=1e-9)


@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_chunk_size_does_not_change_what_is_exact(fisher):
    model, images = conv_net(), tiny(7, side=6)
    a, b = (c.fisher_diagonal(model, images, fisher=fisher, chunk=chunk) for chunk in (2, 100))
    torch.testing.assert_close(flat(a), flat(b))
    v = torch.randn(2, 99, generator=gen()).double()
    few, all_ = (ls.hessian_product(model, images, v, chunk=n) for n in (3, 100))
    torch.testing.assert_close(few, all_)


def test_generalized_gauss_newton_is_the_true_fisher():
    model, images = mlp(), tiny()
    _, w = flat_loss(model, images)
    x = images.x.double() / 255
    jacobian = jacrev(lambda v: functional_call(model, c.unflatten(model, v), x))(w)
    p = model(x).softmax(1).detach()
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    ggn = torch.einsum("nkp,nkl,nlq->pq", jacobian, middle, jacobian) / len(images)
    torch.testing.assert_close(ggn.detach(), dense_fisher(model, images))
    diagonal = flat(c.fisher_diagonal(model, images))
    torch.testing.assert_close(diagonal, ggn.diagonal().detach())


@pytest.mark.slow
def test_roots_and_noise_have_the_covariance_of_the_scores():
    out = torch.randn(2, 4, generator=gen(1)).double()
    p = out.softmax(1)
    want = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    r = c.SOFTMAX.roots(out)
    torch.testing.assert_close(torch.einsum("mnk,mnl->nkl", r, r), want)
    g = gen(2)
    v = torch.stack([c.SOFTMAX.noise(out, g) for _ in range(8_000)])
    torch.testing.assert_close(
        torch.einsum("mnk,mnl->nkl", v, v) / len(v), want, atol=0.015, rtol=0
    )


def test_noise_can_be_differentiated_at_a_certain_network():
    out = torch.tensor([[0.0, 200.0, -50.0]], requires_grad=True)
    v = c.SOFTMAX.noise(out, gen())
    (slope,) = torch.autograd.grad(v.square().sum(), out)
    assert slope.isfinite().all()


# ---------------------------------------------------------------- estimators


@pytest.mark.slow
@pytest.mark.parametrize("route", ["bartlett", "gaussian", "signed"])
def test_estimators_agree_with_exact_at_2000_draws(route):
    model, images = mlp(), tiny()
    fisher = c.FISHER[route]
    options = {"route": route, "fisher": fisher, "draws": 2000, "generator": gen(1)}
    exact = c.fisher_trace(model, images, route="exact", fisher=fisher)
    trace = c.fisher_trace(model, images, **options)
    assert trace.value == pytest.approx(exact.value, rel=0.05)
    assert len(trace.draws) == 2000
    assert 0 < trace.error < 0.03 * trace.value
    assert abs(trace.value - exact.value) < 4 * trace.error


@pytest.mark.slow
@pytest.mark.parametrize("route", ["bartlett", "gaussian", "signed"])
def test_estimated_diagonals_and_the_error_of_the_trace(route):
    model, images = mlp(), tiny()
    fisher = c.FISHER[route]
    options = {"route": route, "fisher": fisher, "chunk": 5}
    diagonal = c.fisher_diagonal(model, images, draws=300, generator=gen(1), **options)
    exact = flat(c.fisher_diagonal(model, images, fisher=fisher))
    torch.testing.assert_close(flat(diagonal), exact, rtol=0.4, atol=0.03 * exact.max())
    # The same draws, once summed and once not.
    trace = c.fisher_trace(model, images, draws=300, generator=gen(1), **options)
    assert float(flat(diagonal).sum()) == pytest.approx(trace.value, rel=1e-9)
    # The error tells how much the value varies from run to run.
    g = gen(5)
    runs = [c.fisher_trace(model, images, draws=10, generator=g, **options) for _ in range(30)]
    values = torch.tensor([r.value for r in runs])
    told = torch.tensor([r.error for r in runs]).square().mean().sqrt()
    assert float(told) == pytest.approx(float(values.std()), rel=0.4)


@pytest.mark.slow
def test_labels_drawn_from_a_certain_network_miss_what_is_rare():
    # p = 1e-6 for the label that has nearly all of the trace: nobody draws it.
    x = torch.ones(20, 3).double()
    certain = torch.tensor([1.0, 1e-6, 1e-12]).double().log()
    model, batch = softmax_regression(x, torch.zeros(20).long(), certain)
    exact = c.fisher_trace(model, batch, route="exact").value
    options = {"draws": 300, "generator": gen()}
    labels = c.fisher_trace(model, batch, route="bartlett", **options)
    assert labels.value < 0.01 * exact and labels.error < 0.01 * exact
    noise = c.fisher_trace(model, batch, **options)
    assert noise.value == pytest.approx(exact, rel=0.3)
    assert noise.error == pytest.approx(exact * math.sqrt(2 / 300), rel=0.4)


@pytest.mark.slow
def test_the_gradient_of_the_gaussian_trace_is_that_of_the_exact_one():
    g = gen(0)
    x = torch.randn(6, 2, generator=g).double()
    model = nn.Linear(2, 3).double()
    size = x.square().sum(1) + 1

    def exact():
        p = model(x).softmax(1)
        return (size * (1 - p.square().sum(1))).mean()

    w = list(model.parameters())
    want = torch.cat([t.flatten() for t in torch.autograd.grad(exact(), w)])

    def slope(estimate, seed, draws=1200):
        generator, total = gen(seed), 0
        for _ in range(draws):
            grads = estimate(model(x), w, c.SOFTMAX, generator, create_graph=True)
            value = c.squared_norm(grads) / len(x)
            total = total + torch.cat([t.flatten() for t in torch.autograd.grad(value, w)])
        return total / draws

    scale = float(want.norm())
    assert float((slope(c.gaussian, 1) - want).norm()) < 0.2 * scale
    assert float((slope(c.bartlett, 1) - want).norm()) > 0.5 * scale


@pytest.mark.slow
def test_the_gradient_of_the_signed_trace_is_exact_in_the_mean():
    model, images = mlp(hidden=2), tiny(4)
    x, w = images.x.double() / 255, list(model.parameters())

    def squared(i):
        loss = -c.SOFTMAX.log_prob(model(x[i : i + 1]), images.y[i : i + 1]).sum()
        return c.squared_norm(torch.autograd.grad(loss, w, create_graph=True))

    want = torch.autograd.grad(sum(map(squared, range(4))) / 4, w)
    want, total, g = torch.cat([t.flatten() for t in want]), 0, gen(2)
    for _ in range(600):
        grads = c.signed(model(x), images.y, w, c.SOFTMAX, g, create_graph=True)
        value = c.squared_norm(grads) / 4
        total = total + torch.cat([t.flatten() for t in torch.autograd.grad(value, w)])
    assert float((total / 600 - want).norm()) < 0.15 * float(want.norm())


def test_one_draw_has_no_error_and_equal_seeds_give_equal_results():
    model, images = mlp(), tiny()
    one = c.fisher_trace(model, images, draws=1, generator=gen(4))
    again = c.fisher_trace(model, images, draws=1, generator=gen(4))
    other = c.fisher_trace(model, images, draws=1, generator=gen(5))
    assert math.isnan(one.error)
    assert one.value == again.value != other.value
    assert str(c.Traced(12.3456, 0.789, torch.zeros(1))) == "12.35 ± 0.79"


# ---------------------------------------------------------------- sequences


class Words(nn.Module):
    """Five tokens in, four logits for each position."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.embed, self.linear = nn.Embedding(6, 3), nn.Linear(3, 4)

    def forward(self, x):
        return self.linear(torch.cumsum(self.embed(x), 1).tanh())


@pytest.mark.slow
def test_padding_of_a_sequence_counts_as_nothing_on_every_route():
    model = Words().double()
    x = torch.tensor([[1, 2, 3], [4, 5, 0]])
    y = torch.tensor([[0, 1, 3], [2, -100, -100]])
    batch = SimpleNamespace(x=x, y=y)
    # The same by hand: positions are drawn independently, so their traces add up.
    w = list(model.parameters())
    true = empirical = 0.0
    for i, t in ((0, 3), (1, 1)):
        log_p = model(x[i : i + 1])[0].log_softmax(1)
        whole = log_p[range(t), y[i, :t]].sum()
        grads = torch.autograd.grad(whole, w, retain_graph=True)
        empirical += float(c.squared_norm(grads)) / 2
        for at in range(t):
            for k in range(4):
                grads = torch.autograd.grad(log_p[at, k], w, retain_graph=True)
                true += float(log_p[at, k].detach().exp() * c.squared_norm(grads)) / 2
    for fisher, want in (("true", true), ("empirical", empirical)):
        trace = c.fisher_trace(model, batch, route="exact", fisher=fisher)
        assert trace.value == pytest.approx(want, rel=1e-9)
    for route, fisher in c.FISHER.items():
        options = {"route": route, "fisher": fisher, "generator": gen(3)}
        trace = c.fisher_trace(model, batch, draws=500, **options)
        want = true if fisher == "true" else empirical
        assert trace.value == pytest.approx(want, rel=0.1)
    loss, acc = ls.loss_and_accuracy(model, batch)
    out = model(x)
    nll = F.cross_entropy(out.flatten(0, 1), y.flatten(), reduction="sum")
    assert loss == pytest.approx(float(nll.detach()) / 2)
    assert acc == pytest.approx(float((out.argmax(2) == y)[y != -100].double().mean()))
    batch.y = torch.zeros(2, 3).long()
    batch.y[0, 0] = 1
    model.linear.bias.data[0] = 20.0  # it says what stands for padding
    assert ls.loss_and_accuracy(model, batch, likelihood=Softmax(ignore=0))[1] == 0


# ---------------------------------------------------------------- scale


def test_scaling_before_batchnorm_changes_the_trace_but_not_the_relative_one():
    model, images = conv_net(), tiny(side=6)
    conv, bn = model[0], model[1]
    before = model(images.x.double() / 255)
    options = {"route": "exact", "weights": ["0.weight", "0.bias"]}
    trace = c.fisher_trace(model, images, **options).value
    relative = c.relative_trace(model, images, **options).value
    with torch.no_grad():  # what the statistics of training would follow with
        conv.weight *= 2
        conv.bias *= 2
        bn.running_mean *= 2
        bn.running_var *= 4
    bn.eps *= 4
    assert torch.equal(before, model(images.x.double() / 255))
    assert c.fisher_trace(model, images, **options).value == trace / 4
    assert c.relative_trace(model, images, **options).value == relative
    # And the sharpest direction of the Hessian follows the trace, not the network.
    v = torch.randn(40, generator=gen()).double()
    names = options["weights"]
    scaled = ls.hessian_product(model, images, v, weights=names)
    with torch.no_grad():
        conv.weight /= 2
        conv.bias /= 2
        bn.running_mean /= 2
        bn.running_var /= 4
    bn.eps /= 4
    torch.testing.assert_close(ls.hessian_product(model, images, v, weights=names), 4 * scaled)


# ---------------------------------------------------------------- models, care


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("error")
def test_every_model(name):
    model = network(name).to(memory_format=torch.channels_last)
    images = random_images(4, 3, 32)
    last = [n for n, _ in model.named_parameters()][-1]
    for fisher in ("true", "empirical"):
        exact = c.fisher_trace(model, images, route="exact", fisher=fisher, weights=[last])
        p = model(images.pixels()).softmax(1).detach()
        if fisher == "true":  # of the last bias: softmax regression without inputs
            want = 1 - p.square().sum(1)
        else:
            want = 1 - 2 * p[range(4), images.y] + p.square().sum(1)
        assert exact.value == pytest.approx(float(want.mean()), rel=1e-4)
    # The last chunk is a single image, with which torch has its own ways.
    whole = c.fisher_trace(model, images, route="exact", fisher="empirical", chunk=3)
    g = gen(1)
    estimate = c.fisher_trace(model, images, fisher="empirical", draws=20, generator=g)
    assert abs(estimate.value - whole.value) < 5 * estimate.error + 1e-3 * whole.value
    sharp = ls.spectrum(model, images, steps=2, generator=gen(1))
    assert sharp.nodes.isfinite().all()


def modes(model):
    return [m.training for m in model.modules()]


class Fails(Exception):
    pass


def test_the_model_is_untouched_also_on_error():
    model = conv_net().train()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    model[5].bias.grad = torch.ones(3).double()
    images, g = tiny(side=6), gen()
    before, mode = frozen(model), modes(model)

    def check():
        assert same_state(model, before)
        assert modes(model) == mode
        assert [w.requires_grad for w in model.parameters()] == [
            True,
            False,
            True,
            True,
            True,
            True,
        ]
        assert [w.grad is None for w in model.parameters()] == [True] * 5 + [False]
        assert torch.equal(model[5].bias.grad, torch.ones(3).double())

    names = ["0.bias"]
    v = torch.ones(4).double()
    tools = [
        lambda: c.fisher_trace(model, images, route="exact", weights=names),
        lambda: c.fisher_trace(model, images, weights=names, generator=g),
        lambda: c.relative_trace(model, images, weights=names, generator=g),
        lambda: c.fisher_diagonal(model, images, weights=names),
        lambda: ls.hessian_product(model, images, v, weights=names),
        lambda: ls.hessian_top(model, images, weights=names, generator=g),
        lambda: ls.hessian_trace(model, images, weights=names, generator=g),
        lambda: ls.spectrum(model, images, weights=names, generator=g),
        lambda: ls.loss_and_accuracy(model, images),
        lambda: ls.plane(model, images, [{"0.bias": v}], [0.0, 1.0]),
        lambda: ls.line(model, model, images, [0.0, 1.0]),
    ]
    for tool in tools:
        with torch.no_grad():  # the caller's mode does not matter
            tool()
        check()
    fired = []

    def fail(*_):
        fired.append(1)
        raise Fails

    hook = model[4].register_forward_hook(fail)
    for tool in tools:
        with pytest.raises(Fails):
            tool()
        check()
    hook.remove()
    assert len(fired) == len(tools)


def test_every_tool_looks_at_the_network_in_eval_mode():
    ready, images = conv_net(), tiny(side=6)
    busy = conv_net().train()
    before = frozen(busy)
    v = torch.ones(99).double()
    d = [ls.filter_normalized(ready, gen())]
    for tool in (
        lambda m: c.fisher_trace(m, images, draws=2, generator=gen()).value,
        lambda m: c.relative_trace(m, images, route="exact").value,
        lambda m: float(flat(c.fisher_diagonal(m, images)).sum()),
        lambda m: float(ls.hessian_product(m, images, v).sum()),
        lambda m: ls.loss_and_accuracy(m, images)[0],
        lambda m: float(ls.plane(m, images, d, [0.5]).loss),
        lambda m: float(ls.line(m, m, images, [0.5]).loss),
    ):
        assert tool(busy) == tool(ready)
    assert same_state(busy, before) and all(modes(busy))


def test_frozen_and_unused_weights():
    model, images = mlp(), tiny()
    model.unused = nn.Parameter(torch.ones(2).double())
    model.forward = lambda x: nn.Sequential.forward(nn.Sequential(*list(model)), x)
    model[1].requires_grad_(False)
    assert list(c.chosen_parameters(model)) == ["unused", "3.weight", "3.bias"]
    diagonal = c.fisher_diagonal(model, images)
    assert not diagonal["unused"].any() and diagonal["3.bias"].any()
    for route, fisher in c.FISHER.items():
        options = {"route": route, "fisher": fisher, "generator": gen()}
        assert not c.fisher_diagonal(model, images, **options)["unused"].any()
    v = torch.ones(20).double()
    assert not ls.hessian_product(model, images, v)[:2].any()


def test_pixels_and_pairs_of_tensors_are_the_same():
    model, images = mlp(), tiny()
    pair = SimpleNamespace(x=images.x.double() / 255, y=images.y)
    a, b = (c.fisher_trace(model, i, route="exact").value for i in (images, pair))
    assert a == pytest.approx(b, rel=1e-6)
    pair.x = images.x  # bytes, as in Images
    assert c.fisher_trace(model, pair, route="exact").value == a
    model = mlp().float()
    pair.x = images.x.double() / 255  # floats follow the model's dtype
    b = c.fisher_trace(model, pair, route="exact").value
    assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize(
    "word, call",
    [
        ("fisher must", lambda m, i, g: c.fisher_trace(m, i, fisher="both")),
        ("unknown route", lambda m, i, g: c.fisher_trace(m, i, route="short")),
        ("empirical Fisher", lambda m, i, g: c.fisher_trace(m, i, route="signed")),
        (
            "true Fisher",
            lambda m, i, g: c.fisher_diagonal(m, i, route="bartlett", fisher="empirical"),
        ),
        ("needs a generator", lambda m, i, g: c.fisher_trace(m, i)),
        ("one draw", lambda m, i, g: c.fisher_trace(m, i, draws=0, generator=g)),
        ("at least one image", lambda m, i, g: c.fisher_trace(m, i[:0], generator=g)),
        ("a chunk of at least 1", lambda m, i, g: c.fisher_diagonal(m, i, chunk=-1)),
        ("no parameter 'a'", lambda m, i, g: c.fisher_diagonal(m, i, weights=["a"])),
        ("no weights", lambda m, i, g: c.fisher_diagonal(m, i, weights=[])),
        (
            "`roots`",
            lambda m, i, g: c.fisher_diagonal(m, i, route="exact", likelihood=Likelihood()),
        ),
        (
            "derive one of your own",
            lambda m, i, g: c.fisher_diagonal(m, i, likelihood=SimpleNamespace(log_prob=len)),
        ),
        ("43 entries", lambda m, i, g: ls.hessian_product(m, i, torch.ones(3))),
        ("k must", lambda m, i, g: ls.hessian_top(m, i, 0, generator=g)),
        ("steps be", lambda m, i, g: ls.hessian_top(m, i, steps=0, generator=g)),
        ("draws must", lambda m, i, g: ls.hessian_trace(m, i, draws=0, generator=g)),
        ("steps and runs", lambda m, i, g: ls.spectrum(m, i, runs=0, generator=g)),
        ("one or two", lambda m, i, g: ls.plane(m, i, [], [0.0])),
        ("fit", lambda m, i, g: ls.plane(m, i, [{"1.bias": torch.ones(3)}], [0.0])),
        ("architecture", lambda m, i, g: ls.line(m, conv_net(), i, [0.0])),
    ],
)
def test_refusals(word, call):
    with pytest.raises(ValueError) as excinfo:
        call(mlp(), tiny(), gen())
    assert word in message(excinfo)


def test_batchnorm_without_statistics_is_refused():
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2, track_running_stats=False))
    with pytest.raises(ValueError) as excinfo:
        c.fisher_diagonal(model, tiny())
    assert "1 has no running statistics" in message(excinfo)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("device", ["cpu", "cuda"])  # of the generator
def test_on_a_gpu(device):
    model, images = conv_net(), tiny(side=6)
    on_gpu = conv_net().cuda()
    g = lambda: torch.Generator(device).manual_seed(1)  # noqa: E731
    a, b = (c.fisher_diagonal(m, images) for m in (model, on_gpu))
    torch.testing.assert_close(flat(a), flat(b).cpu())
    want = float(flat(a).sum())
    trace = c.fisher_trace(on_gpu, images, draws=200, generator=g())
    assert abs(trace.value - want) < 5 * trace.error
    h = dense_hessian(model, images)
    (value,), _ = ls.hessian_top(on_gpu, images.to("cuda"), generator=g())
    top = torch.linalg.eigvalsh(h).abs().max()
    assert float(value) == pytest.approx(float(top), rel=0.02)
    trace = ls.hessian_trace(on_gpu, images, draws=50, generator=g())
    assert abs(trace.value - float(h.trace())) < 5 * trace.error
    assert ls.spectrum(on_gpu, images, steps=5, generator=g()).nodes.isfinite().all()
    d = ls.filter_normalized(on_gpu, g())
    assert ls.plane(on_gpu, images, [d], [0.0, 1.0]).loss.isfinite().all()
    there = ls.line(on_gpu, on_gpu, images, [0.5]).loss
    torch.testing.assert_close(there, ls.line(model, model, images, [0.5]).loss)
