"""The Hessian against independent computations, and the loss around weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from bdcourse.analysis import curvature as c
from bdcourse.analysis import landscape as ls
from dense import conv_net, dense_hessian, flat, flat_loss, mlp, network, tiny
from helpers import frozen, gen, same_state

# ---------------------------------------------------------------- the Hessian


def test_products_are_differences_of_gradients():
    model, images = mlp(), tiny()
    loss, w = flat_loss(model, images)
    slope = torch.func.grad(loss)
    v = torch.randn(2, len(w), generator=gen(1)).double()
    want = torch.stack([(slope(w + 1e-5 * r) - slope(w - 1e-5 * r)) / 2e-5 for r in v])
    torch.testing.assert_close(ls.hessian_product(model, images, v), want, rtol=1e-6, atol=1e-8)
    one = ls.hessian_product(model, images, v[0])
    assert one.shape == (len(w),)
    torch.testing.assert_close(one, want[0], rtol=1e-6, atol=1e-8)


def test_part_of_the_weights_is_a_block_of_the_hessian():
    model, images = conv_net(), tiny(side=6)
    h = dense_hessian(model, images)
    last = [n for n, _ in model.named_parameters()][-2:]
    v = torch.randn(51, generator=gen()).double()
    block = ls.hessian_product(model, images, v, weights=last)
    torch.testing.assert_close(block, h[-51:, -51:] @ v)


@pytest.mark.slow
@pytest.mark.parametrize("make, side", [(mlp, 2), (conv_net, 6)])
def test_top_and_spectrum_are_those_of_the_dense_hessian(make, side):
    model, images = make(), tiny(12, side=side)
    eigen = torch.linalg.eigvalsh(dense_hessian(model, images))
    by_size = eigen[eigen.abs().argsort(descending=True)]
    values, vectors = ls.hessian_top(model, images, 3, steps=1000, tolerance=1e-8, generator=gen(1))
    torch.testing.assert_close(values, by_size[:3], rtol=1e-3, atol=0)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(3).double())
    hv = ls.hessian_product(model, images, vectors[0])
    torch.testing.assert_close(hv, values[0] * vectors[0], rtol=0, atol=1e-2)

    sharp = ls.spectrum(model, images, steps=40, generator=gen(2))
    assert float(sharp.nodes[-1]) == pytest.approx(float(eigen[-1]), rel=1e-6)
    assert float(sharp.nodes[0]) == pytest.approx(float(eigen[0]), rel=1e-2)
    assert float(sharp.weights.sum()) == pytest.approx(1)
    # Averaged over starts, moments of the quadrature are those of the spectrum.
    many = ls.spectrum(model, images, steps=5, runs=120, generator=gen(3))
    assert (many.nodes.diff() >= 0).all()
    for power in (1, 2):
        got = float(many.weights @ many.nodes**power)
        assert got == pytest.approx(float((eigen**power).mean()), rel=0.15)


def test_the_default_tolerance_finds_the_top_within_a_percent():
    model, images = mlp(), tiny()
    top = torch.linalg.eigvalsh(dense_hessian(model, images)).abs().max()
    (value,), _ = ls.hessian_top(model, images, generator=gen(2))
    assert float(value) == pytest.approx(float(top), rel=0.01)


@pytest.mark.slow
def test_hutchinson_of_exercise_4():
    a = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    draws = ls.hutchinson(lambda v: v @ a, torch.zeros(2), 4000, gen(1))
    assert set(draws.tolist()) == {3.0, 7.0}
    assert float(draws.mean()) == pytest.approx(5, abs=0.15)
    assert float(draws.var()) == pytest.approx(4, abs=0.05)
    normal = ls.hutchinson(lambda v: v @ a, torch.zeros(2), 40_000, gen(1), ls.random_normal)
    assert float(normal.mean()) == pytest.approx(5, abs=0.15)
    assert float(normal.var()) == pytest.approx(30, rel=0.1)


@pytest.mark.slow
def test_trace_of_the_hessian():
    model, images = conv_net(), tiny(side=6)
    want = float(dense_hessian(model, images).trace())
    trace = ls.hessian_trace(model, images, draws=203, generator=gen(1))
    assert len(trace.draws) == 203
    assert abs(trace.value - want) < 3 * trace.error < 0.3 * want
    again = ls.hessian_trace(model, images, draws=203, generator=gen(1))
    assert trace.value == again.value


def test_power_finds_negative_values_and_stops_at_a_full_set():
    q, _ = torch.linalg.qr(torch.randn(4, 4, generator=gen(1)).double())
    a = q @ torch.diag(torch.tensor([-5.0, 3.0, 1.0, 0.0]).double()) @ q.T
    starts = torch.randn(4, 4, generator=gen(2)).double()
    calls = []
    values, vectors = ls.power(lambda v: (calls.append(1), v @ a)[1], starts, tolerance=1e-10)
    torch.testing.assert_close(values, torch.tensor([-5.0, 3.0, 1.0, 0.0]).double())
    eye = torch.eye(4).double()
    torch.testing.assert_close(vectors @ vectors.T, eye)
    torch.testing.assert_close((vectors @ q).abs(), eye, atol=1e-4, rtol=0)
    assert len(calls) < 150, "it stops when the value stands"
    few = []
    ls.power(lambda v: (few.append(1), v @ a)[1], starts[:1], steps=3, tolerance=0)
    assert len(few) == 3
    small, _ = ls.power(lambda v: v @ a * 1e-6, starts[:1])
    assert float(small[0]) == pytest.approx(-5e-6, rel=1e-2), "relative to the value"
    _, vectors = ls.power(lambda v: v @ a, starts, steps=1, tolerance=0)
    torch.testing.assert_close(vectors @ vectors.T, eye)


def test_lanczos_is_exact_for_polynomials_and_stays_orthogonal():
    # Eigenvalues far apart: without re-orthogonalisation the large ones come back.
    values = torch.cat([torch.linspace(0, 1e-3, 47), torch.tensor([1.0, 10.0, 100.0])])
    values = values.double()
    start = torch.randn(50, generator=gen(1)).double()
    nodes, weights = ls.lanczos(lambda v: v * values, start, 30)
    assert float(weights.sum()) == pytest.approx(1)
    torch.testing.assert_close(nodes[-3:], values[-3:])
    assert (nodes[:-3] < 0.5).all(), "no ghosts"
    v2 = (start / start.norm()).square()
    nodes, weights = ls.lanczos(lambda v: v * values, start, 2)
    for power in range(4):
        torch.testing.assert_close(weights @ nodes**power, v2 @ values**power)
    # Two distinct values: two steps exhaust the space.
    nodes, weights = ls.lanczos(lambda v: v * (values > 0.5), start, 30)
    assert len(nodes) == 2
    torch.testing.assert_close(nodes, torch.tensor([0.0, 1.0]).double())
    nodes, weights = ls.lanczos(torch.zeros_like, start, 30)
    assert nodes.tolist() == [0.0] and weights.tolist() == [1.0]


def test_density_integrates_to_one_and_lies_where_the_nodes_are():
    sharp = ls.Spectrum(torch.tensor([0.0, 4.0]).double(), torch.tensor([0.75, 0.25]))
    sharp = ls.Spectrum(sharp.nodes, sharp.weights.double())
    at = torch.linspace(-5, 10, 1501)
    density = sharp.density(at, 0.3)
    assert float(torch.trapezoid(density, at.double())) == pytest.approx(1, abs=1e-6)
    peak = 0.75 / (0.3 * math.sqrt(2 * math.pi))
    assert float(density[500]) == pytest.approx(peak)
    assert float(density[900]) == pytest.approx(peak / 3)


# ---------------------------------------------------------------- landscapes


def test_filters_of_a_direction_have_the_norms_of_the_network():
    model = network()
    model.conv1.weight.data[2] = 0  # a pruned filter stays where it is
    direction = ls.filter_normalized(model, gen(1))
    assert direction.keys() == dict(model.named_parameters()).keys()
    for name, w in model.named_parameters():
        d = direction[name]
        if w.ndim < 2:
            assert not d.any(), name
        else:
            torch.testing.assert_close(d.flatten(1).norm(dim=1), w.detach().flatten(1).norm(dim=1))
            cosine = F.cosine_similarity(d.flatten(), w.detach().flatten(), 0)
            assert cosine.abs() < 0.9
    again, other = (ls.filter_normalized(model, gen(s)) for s in (1, 2))
    assert torch.equal(flat(again), flat(direction))
    assert not torch.equal(flat(other), flat(direction))


def test_a_plane_is_measured_point_by_point():
    model, images = conv_net(), tiny(side=6)
    before = frozen(model)
    d = ls.filter_normalized(model, gen(1))
    _, vectors = ls.hessian_top(model, images, generator=gen(2))
    e = c.unflatten(model, vectors[0])
    ts = (-0.5, 0.0, 1.0)
    surface = ls.plane(model, images, [d, e], ts, chunk=4)
    loss, w = flat_loss(model, images)
    for i, t in enumerate(ts):
        for j, u in enumerate(ts):
            moved = w + t * flat(d) + u * flat(e)
            assert float(surface.loss[i, j]) == pytest.approx(float(loss(moved)))
    assert surface.acc.shape == (3, 3) and surface.ts == ts
    hits = (model(images.x.double() / 255).argmax(1) == images.y).double().mean()
    assert float(surface.acc[1, 1]) == pytest.approx(float(hits))
    alone = ls.plane(model, images, [e], ts)
    torch.testing.assert_close(alone.loss, surface.loss[1])
    bias = ls.plane(model, images, [{"5.bias": torch.ones(3).double()}], ts)
    torch.testing.assert_close(bias.loss, bias.loss[:1].expand(3), msg="softmax")
    assert same_state(model, before)


def test_a_line_joins_two_networks_statistics_included():
    start, end, images = conv_net(1), conv_net(2), tiny(side=6)
    # Networks that differ in a BatchNorm only, where the mean is easy to see through.
    twin = conv_net(1)
    twin[1].running_mean += 1
    twin[1].bias.data += 1 / (twin[1].running_var + twin[1].eps).sqrt() * twin[1].weight
    flat_line = ls.line(start, twin, images, [0.0, 0.3, 1.0])
    torch.testing.assert_close(
        flat_line.loss, flat_line.loss[:1].expand(3), msg="shift and mean cancel"
    )
    before = frozen(start), frozen(end)
    ts = [-1.0, 0.0, 0.25, 1.0, 2.0]
    found = ls.line(start, end, images, ts, chunk=5)
    x = images.x.double() / 255
    for m, loss in ((start, found.loss[1]), (end, found.loss[3])):
        want = F.cross_entropy(m(x), images.y).detach()
        assert float(loss) == pytest.approx(float(want), rel=1e-13)
    mixed = conv_net(3)
    mixed.load_state_dict(
        {
            k: v if k.endswith("tracked") else 0.75 * v + 0.25 * end.state_dict()[k]
            for k, v in start.state_dict().items()
        }
    )
    want = F.cross_entropy(mixed(x), images.y).detach()
    assert float(found.loss[2]) == pytest.approx(float(want), rel=1e-9)
    assert found.loss.isfinite().all(), "variances stay positive beyond the ends"
    assert not torch.equal(found.loss[0], found.loss[1])
    assert same_state(start, before[0]) and same_state(end, before[1])
