"""I-BAU: the hypergradient against algebra and differences, and the two loops."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bdcourse.augment import Augment, Augmentation
from bdcourse.defenses import _i_bau, finetune, i_bau
from bdcourse.defenses._i_bau import (
    hypergradient,
    inner_step,
    outer_steps,
    perturbed_loss,
    project,
    universal,
)
from bdcourse.models import build
from helpers import frozen, gen, message, random_images, randomize_norms, same_state

QUICK = {"rounds": 2, "passes": 1, "steps": 3, "batch": 8, "iterations": 2}


def network(name="resnet18", width=4, seed=1):
    torch.manual_seed(seed)
    return randomize_norms(build(name, classes=3, width=width), seed)


def smooth_net(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3))
    return net.double()


def batch(n=7, side=2, seed=0):
    x = 0.25 + 0.5 * torch.rand(n, 3, side, side, generator=gen(seed)).double()
    return x, torch.arange(n) % 3


# ---------------------------------------------------------------- the hypergradient


def quadratic(n=4, m=3, seed=0):
    """Inner: max over d of d'Bw - d'Ad / 2, so d(w) = A^-1 B w.
    Outer: |d - t|^2 / 2 + |w|^2."""
    g = gen(seed)
    a = torch.randn(n, n, generator=g).double()
    a = a @ a.T + torch.eye(n)
    b = torch.randn(n, m, generator=g).double()
    t, w = (torch.randn(k, generator=g).double() for k in (n, m))
    w.requires_grad_()

    def outer(d):
        return (d - t).square().sum() / 2 + w.square().sum()

    def ascend(d, rate=0.05):
        return d + rate * (b @ w - a @ d)

    return a, b, t, w, outer, ascend


@pytest.mark.slow
def test_hypergradient_of_a_quadratic_bilevel_problem():
    a, b, t, w, outer, ascend = quadratic()
    best = torch.linalg.solve(a, b @ w).detach()
    want = b.T @ torch.linalg.solve(a, best - t) + 2 * w
    (found,) = hypergradient(outer, ascend, best, [w], 3000)
    assert torch.allclose(found, want, rtol=1e-8)
    assert w.grad is None and not best.requires_grad
    # And by differences of the whole thing.
    for k in range(3):
        e = torch.zeros(3).double()
        e[k] = 1e-5

        def psi(v):
            d = torch.linalg.solve(a, b @ v)
            return (d - t).square().sum() / 2 + v.square().sum()

        slope = (psi(w.detach() + e) - psi(w.detach() - e)) / 2e-5
        assert found[k] == pytest.approx(float(slope), rel=1e-6)


def test_few_iterations_are_the_first_terms_of_the_series():
    a, b, t, w, outer, ascend = quadratic(seed=1)
    d = torch.randn(4, generator=gen(5)).double()  # need not be the fixed point
    phi = torch.eye(4) - 0.05 * a  # the Jacobian of a step, symmetric
    for k in (0, 1, 2, 5):
        u = sum(torch.matrix_power(phi, i) @ (d - t) for i in range(k))
        want = 2 * w + (0.05 * b.T @ u if k else 0)
        (found,) = hypergradient(outer, ascend, d, [w], k)
        assert torch.allclose(found, want, rtol=1e-10), k


def test_none_is_the_gradient_with_the_perturbation_held():
    model, (x, y) = smooth_net(), batch()
    delta = 0.05 * torch.randn(1, 3, 2, 2, generator=gen()).double()
    weights = list(model.parameters())
    want = torch.autograd.grad(perturbed_loss(model, x, y, delta), weights)
    found = hypergradient(
        lambda d: perturbed_loss(model, x, y, d),
        lambda d: inner_step(model, x, y, d, 0.1, 1.0),
        delta,
        weights,
        0,
    )
    assert all(torch.allclose(a, b) for a, b in zip(found, want, strict=True))


@pytest.mark.slow
def test_hypergradient_of_a_network_by_finite_differences():
    # The inner problem is made concave by a penalty, so that it has a maximum inside
    # the ball, where the slope of the outer loss is not zero.
    model, (x, y) = smooth_net(), batch()
    weights, penalty, rate = list(model.parameters()), 3.0, 0.2

    def ascend(d):
        loss = perturbed_loss(model, x, y, d) - penalty / 2 * d.square().sum()
        (g,) = torch.autograd.grad(loss, d, create_graph=True)
        return d + rate * g

    def solve():
        d = torch.zeros(1, 3, 2, 2).double()
        for _ in range(200):
            d = ascend(d.requires_grad_()).detach()
        return d

    def psi():
        with torch.no_grad():
            d = solve_with_grad()
            return float(perturbed_loss(model, x, y, d))

    def solve_with_grad():
        with torch.enable_grad():
            return solve()

    def outer(d):
        return perturbed_loss(model, x, y, d)

    delta = solve()
    found = hypergradient(outer, ascend, delta, weights, 200)
    direct = hypergradient(outer, ascend, delta, weights, 0)
    checked = 0
    for i, w in enumerate(weights):
        for k in range(0, w.numel(), 9):
            flat, eps = w.data.view(-1), 1e-5
            old = float(flat[k])
            flat[k] = old + eps
            up = psi()
            flat[k] = old - eps
            down = psi()
            flat[k] = old
            slope = (up - down) / (2 * eps)
            assert float(found[i].view(-1)[k]) == pytest.approx(slope, rel=1e-5)
            checked += abs(float(direct[i].view(-1)[k]) - slope) > 0.02 * abs(slope)
    assert checked >= 5, "without the second term it would be wrong"


@pytest.mark.slow
def test_at_an_exact_maximum_on_the_ball_the_second_term_vanishes():
    model, (x, y) = smooth_net(), batch()
    weights = list(model.parameters())
    terms = {}
    for steps in (2, 3000):
        delta = universal(model, [(x, y)] * steps, 0.5, 0.1)
        assert delta.norm() <= 0.1 + 1e-9
        with_, without_ = (
            hypergradient(
                lambda d: perturbed_loss(model, x, y, d),
                lambda d: inner_step(model, x, y, d, 0.5, 0.1),
                delta,
                weights,
                k,
            )
            for k in (200, 0)
        )
        parts = zip(with_, without_, strict=True)
        size = sum(b.square().sum() for b in without_).sqrt()
        terms[steps] = sum((a - b).square().sum() for a, b in parts).sqrt() / size
    assert terms[3000] < 1e-6 < 1e-3 < terms[2]


# ---------------------------------------------------------------- the inner loop


def test_projection():
    d = torch.randn(1, 3, 4, 4, generator=gen()).double()
    assert torch.equal(project(d, 100.0), d)
    inside = project(d, 0.5)
    assert inside.norm() == pytest.approx(0.5)
    assert torch.allclose(inside / inside.norm(), d / d.norm())
    assert not project(torch.zeros(2), 1.0).any()
    for radius in (0.5, 100.0):
        point = d.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda p, r=radius: project(p, r), (point,))


def test_a_step_goes_up_the_gradient_and_stays_in_the_ball():
    model, (x, y) = smooth_net(), batch()
    d = torch.zeros(1, 3, 2, 2).double().requires_grad_()
    low = perturbed_loss(model, x, y, d)
    (g,) = torch.autograd.grad(low, d)
    moved = inner_step(model, x, y, d, 0.3, 100.0)
    assert torch.allclose(moved, 0.3 * g)
    assert perturbed_loss(model, x, y, moved) > low
    far = inner_step(model, x, y, d, 1e4, 0.2)
    assert float(far.detach().norm()) == pytest.approx(0.2)
    twice = torch.autograd.grad(far.sum(), list(model.parameters()))
    assert any(t.any() for t in twice), "differentiable in the weights"


def test_pixels_stay_between_black_and_white():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.flatten(1)[:, :3]

    x, y = batch()
    d = torch.full((1, 3, 2, 2), 0.7).double()
    found = perturbed_loss(Spy(), x, y, d)
    assert seen[0].max() == 1 and seen[0].min() >= 0
    assert torch.equal(found, F.cross_entropy(seen[0].flatten(1)[:, :3], y))
    perturbed_loss(Spy(), x, y, -d)
    assert seen[1].min() == 0


def test_one_perturbation_raises_the_loss_of_all_images():
    model, (x, y) = smooth_net(), batch(30)
    parts = list(zip(x.split(10), y.split(10), strict=True))
    delta = universal(model, parts * 5, 1.0, 0.3)
    assert delta.shape == (1, 3, 2, 2) and delta.norm() <= 0.3 + 1e-9
    still = perturbed_loss(model, x, y, torch.zeros_like(delta))
    assert perturbed_loss(model, x, y, delta) > still + 0.02
    by_hand = torch.zeros(1, 3, 2, 2).double()
    for a, b in parts * 5:
        by_hand = inner_step(model, a, b, by_hand.requires_grad_(), 1.0, 0.3).detach()
    assert torch.equal(by_hand, delta)


# ---------------------------------------------------------------- the outer loop


@pytest.mark.slow
def test_an_outer_step_is_the_optimizers_on_the_hypergradient():
    model, twin, (x, y) = smooth_net(), smooth_net(), batch()
    delta = universal(model, [(x, y)] * 3, 1.0, 0.3)
    options = {"rate": 0.1, "radius": 0.3, "iterations": 4}
    opt = torch.optim.SGD(model.parameters(), 0.2)
    outer_steps(model, delta, [(x, y)], opt, **options)
    g = hypergradient(
        lambda d: perturbed_loss(twin, x, y, d),
        lambda d: inner_step(twin, x, y, d, 0.1, 0.3),
        delta,
        list(twin.parameters()),
        4,
    )
    for a, b, k in zip(model.parameters(), twin.parameters(), g, strict=True):
        assert torch.allclose(a, b - 0.2 * k)


@pytest.mark.slow
def test_the_perturbation_is_unlearned():
    images = random_images(24)
    model = finetune(network(), images, epochs=20, batch=8, lr=0.05, generator=gen())
    p = i_bau(
        model.model,
        images,
        rounds=2,
        radius=1.0,
        steps=10,
        rate=10.0,
        lr=3e-3,
        batch=8,
        generator=gen(),
    )
    log = p.log
    assert len(log["clean"]) == len(log["worst"]) == len(log["unlearned"]) == 2
    assert log["worst"][0] > log["clean"][0] + 0.5, "it finds a perturbation"
    assert log["unlearned"][0] < 0.7 * log["worst"][0]
    assert log["delta"].shape == (1, 3, 8, 8) and log["delta"].norm() <= 1 + 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width", "side"),
    [
        ("resnet18", 4, 8),
        ("preact_resnet18", 4, 8),
        ("vgg16_bn", 4, 32),
        ("mobilenet", 8, 8),
        ("vit", 16, 32),
    ],
)
def test_every_network(name, width, side):
    model = network(name, width)
    model.train()
    before = frozen(model)
    images = random_images(5, side=side)
    p = i_bau(model, images, rounds=1, passes=1, steps=1, iterations=1, batch=4, generator=gen())
    assert same_state(model, before) and all(m.training for m in model.modules())
    assert all(q.grad is None for q in [*model.parameters(), *p.model.parameters()])
    assert not same_state(p.model, before)
    assert not any(m.training for m in p.model.modules())
    for key, value in p.model.named_buffers():
        assert torch.equal(value, dict(model.named_buffers())[key]), key
    assert p.count == 0 and p.seconds > 0


@pytest.mark.slow
def test_frozen_parameters_do_not_move():
    model = network()
    model.layer1.requires_grad_(False)
    p = i_bau(model, random_images(9), generator=gen(), **QUICK)
    now = p.model.state_dict()
    for key, value in model.state_dict().items():
        if key.startswith("layer1"):
            assert torch.equal(now[key], value)
    assert not torch.equal(now["linear.weight"], model.linear.weight)


@pytest.mark.slow
def test_equal_seeds_give_equal_results():
    runs = [
        i_bau(network(), random_images(24), augment=Augment(1), generator=gen(s), **QUICK)
        for s in (0, 0, 1)
    ]
    assert same_state(runs[0].model, frozen(runs[1].model))
    assert torch.equal(runs[0].log.pop("delta"), runs[1].log.pop("delta"))
    assert runs[0].log == runs[1].log
    assert not same_state(runs[0].model, frozen(runs[2].model))


def test_an_augmentation_of_ones_own_is_asked():
    class Darker(Augmentation):
        seen = 0

        def batch(self, x, y, generator):
            self.seen += len(x)
            return x // 2, y

    own, images = Darker(), random_images(24)
    darker = i_bau(network(), images, augment=own, generator=gen(0), **QUICK)
    plain = i_bau(network(), images, generator=gen(0), **QUICK)
    assert own.seen > 0
    one, other = (r.model.state_dict().values() for r in (darker, plain))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
def test_stopped_and_started_again_it_ends_the_same(tmp_path, monkeypatch):
    images = random_images(20)
    options = QUICK | {"rounds": 4, "augment": Augment(1)}
    whole = i_bau(network(), images, generator=gen(), **options)
    path, real, seen = tmp_path / "bau", _i_bau.outer_steps, []

    def stop(*args, **settings):
        seen.append(1)
        real(*args, **settings)
        if len(seen) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(_i_bau, "outer_steps", stop)
    model = network()
    with pytest.raises(KeyboardInterrupt):
        i_bau(model, images, generator=gen(), checkpoint=path, **options)
    assert same_state(model, frozen(network())) and path.exists()
    monkeypatch.setattr(_i_bau, "outer_steps", real)
    numbers = ("rounds", "passes", "radius", "steps", "rate", "solve_rate", "lr")
    changes = [{name: 7} for name in (*numbers, "iterations", "batch")]
    for change in (*changes, {"generator": gen(4)}, {"augment": None}):
        settings = options | {"generator": gen()} | change
        with pytest.raises(ValueError, match="belongs to other work") as e:
            i_bau(network(), images, checkpoint=path, **settings)
        message(e)
    again = i_bau(network(), images, generator=gen(), checkpoint=path, **options)
    assert same_state(again.model, frozen(whole.model))
    assert torch.equal(again.log.pop("delta"), whole.log.pop("delta"))
    assert again.log == whole.log and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["rounds", "passes", "steps", "batch"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(
        ValueError, match=f"^{name} must be a whole number of at least 1, not 0"
    ) as e:
        i_bau(network(), random_images(6), generator=gen(), **{name: 0})
    message(e)


@pytest.mark.parametrize("name", ["radius", "rate", "solve_rate", "lr"])
def test_sizes_that_are_not_positive_are_refused(name):
    for number in (0, -0.5):
        with pytest.raises(ValueError, match=f"^{name} must be above 0") as e:
            i_bau(network(), random_images(6), generator=gen(), **{name: number})
        assert message(e)
    with pytest.raises(ValueError, match="iterations must be a whole number of at least 0") as e:
        i_bau(network(), random_images(6), generator=gen(), iterations=-1)
    message(e)


def test_too_few_images():
    with pytest.raises(ValueError, match="at least 2 images") as e:
        i_bau(network(), random_images(1), generator=gen())
    message(e)


def test_it_cannot_be_handed_the_trigger():
    text = str(inspect.signature(i_bau))
    assert not any(word in text for word in ("ttack", "oison", "trigger", "target"))


@pytest.mark.slow
@pytest.mark.parametrize(("n", "passes"), [(240, 5), (640, 2), (4000, 1), (6, 40)])
def test_the_usual_number_of_passes_makes_about_forty_steps(n, passes, monkeypatch):
    seen = []
    monkeypatch.setattr(_i_bau, "outer_steps", lambda *a, **k: seen.extend(1 for _ in a[2]))
    monkeypatch.setattr(_i_bau, "universal", lambda m, b, *a: torch.zeros(1, 3, 8, 8))
    i_bau(network(), random_images(n), rounds=1, generator=gen())
    assert len(seen) == passes * -(-n // 32)
