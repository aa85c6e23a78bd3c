"""ANP: the inner maximum, the step against its plain form, the whole defense."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F

from bdcourse.checkpoint import Checkpoint
from bdcourse.defenses import Purified, _anp, anp, anp_step, masks_forward, masks_ones
from bdcourse.defenses import masks_frozen as freeze
from bdcourse.defenses._anp import anp_plain_step, perturbed, quiet, random_noise, usual_steps
from bdcourse.defenses._masks import below
from bdcourse.models import build
from bdcourse.surgery import without
from bdcourse.victims import initialized
from helpers import frozen, gen, message, random_images, randomize_norms, same_state


def network(name="resnet18", width=4, seed=0):
    arch = {"name": name, "classes": 3, "width": width}
    return randomize_norms(initialized(arch, gen(seed)), seed)


def leaves(model, seed=3):
    g = gen(seed)
    return {
        n: torch.rand(m.shape, generator=g).to(m).requires_grad_(True)
        for n, m in masks_ones(model).items()
    }


# ------------------------------------------------------------------ perturbations


def test_perturbed_is_the_formula():
    model, x = network(), random_images(4).pixels()
    masks = {n: m.detach() for n, m in leaves(model).items()}
    delta, xi = random_noise(masks, 0.4, gen(1))
    by_hand = copy.deepcopy(model)
    for n, m in masks.items():
        bn = by_hand.get_submodule(n)
        bn.weight.data = (m + delta[n]) * bn.weight.data
        bn.bias.data = (1 + xi[n]) * bn.bias.data
    with torch.no_grad():
        assert torch.allclose(perturbed(model, masks, (delta, xi), x), by_hand(x))
        still = perturbed(model, masks, quiet(masks), x)
        assert torch.equal(still, masks_forward(model, masks, x))


def test_random_noise_fills_its_range():
    masks = {"a": torch.ones(2000), "b": torch.ones(3)}
    delta, xi = random_noise(masks, 0.4, gen())
    assert delta["a"].min() < -0.39 and delta["a"].max() > 0.39
    assert abs(float(delta["a"].mean())) < 0.02 and xi["b"].shape == (3,)
    assert not torch.equal(delta["a"], xi["a"])


# --------------------------------------------------------------- plain and fast


CASES = [
    (n, t, s)
    for n in ("resnet18", "preact_resnet18")
    for t in (True, False)
    for s in ("zero", "random")
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "training", "start"), [*CASES, ("mobilenet", True, "zero")])
def test_the_fast_step_is_the_plain_one(name, training, start):
    # In double precision, so that no sign of a gradient depends on rounding.
    width = 4 if "resnet" in name else 8
    net = freeze(network(name, width).double(), training=training)
    plain = copy.deepcopy(net).requires_grad_(True)
    masks = leaves(net)
    images = random_images(12, side=16)
    x, y = images.pixels().double(), images.y
    noise = random_noise(masks, 0.4, gen(1)) if start == "random" else None
    a_terms, a = anp_plain_step(plain, masks, x, y, noise=noise)
    b_terms, b = anp_step(net, masks, x, y, noise=noise)
    assert a_terms.keys() == b_terms.keys() == {"natural", "robust"}
    for k in a_terms:
        assert torch.allclose(a_terms[k], b_terms[k], rtol=1e-9)
    assert len(a) == len(b) == len(masks)
    for n, p, q in zip(masks, a, b, strict=True):
        assert torch.allclose(p, q, rtol=1e-7, atol=1e-10), n
        assert p.shape == masks[n].shape
    assert all(p.grad is None for p in plain.parameters())


@pytest.mark.slow
def test_single_precision_agrees_to_a_hundred_thousandth():
    # Where a gradient is rounding noise its sign is a matter of luck; not here.
    net = freeze(network(width=8))
    plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    masks, images = leaves(net), random_images(24, side=16)
    x = images.pixels()
    _, a = anp_plain_step(plain.requires_grad_(True), masks, x, images.y)
    _, b = anp_step(net, masks, x.contiguous(memory_format=torch.channels_last), images.y)
    for p, q in zip(a, b, strict=True):
        assert torch.allclose(p, q, rtol=1e-5, atol=1e-5)


def test_the_gradient_is_that_of_the_formula():
    """Once more by hand, with delta and xi from finite differences' signs."""
    net = freeze(network().double())
    masks, images = leaves(net), random_images(12)
    x, y = images.pixels().double(), images.y
    eps, alpha = 0.3, 0.25
    flat = {n: torch.zeros_like(m).requires_grad_(True) for n, m in masks.items()}
    shifts = {n: torch.zeros_like(m).requires_grad_(True) for n, m in masks.items()}
    loss = F.cross_entropy(perturbed(net, masks, (flat, shifts), x), y)
    loss.backward()
    worst = tuple({n: eps * v.grad.sign() for n, v in half.items()} for half in (flat, shifts))
    for m in masks.values():
        m.grad = None
    total = alpha * F.cross_entropy(masks_forward(net, masks, x), y)
    total = total + (1 - alpha) * F.cross_entropy(perturbed(net, masks, worst, x), y)
    total.backward()
    _, found = anp_step(net, masks, x, y, eps=eps, alpha=alpha)
    for m, g in zip(masks.values(), found, strict=True):
        assert torch.allclose(m.grad, g, rtol=1e-8, atol=1e-12)


@pytest.mark.slow
def test_the_inner_step_goes_uphill_and_stays_in_the_box():
    net = freeze(network())
    masks, images = leaves(net), random_images(24)
    x, y = images.pixels(), images.y
    still, _ = anp_step(net, masks, x, y, eps=0.0)
    assert float(still["natural"]) == float(still["robust"])
    losses = [float(anp_step(net, masks, x, y, eps=0.02, inner=k)[0]["robust"]) for k in (1, 4)]
    assert losses[0] > float(still["natural"]) and losses[1] > losses[0] - 0.01
    # From a random start at the edge, the push may not leave the box.
    edge = tuple({n: torch.full_like(m, 0.02) for n, m in half.items()} for half in quiet(masks))
    up = anp_step(net, masks, x, y, eps=0.02, noise=edge)[0]["robust"]
    assert torch.isfinite(up) and float(up) < losses[0] + 1


def test_alpha_weighs():
    net = freeze(network())
    masks, images = leaves(net), random_images(12)
    x, y = images.pixels(), images.y
    clean = anp_step(net, masks, x, y, alpha=1.0)[1]
    loss = F.cross_entropy(masks_forward(net, masks, x), y)
    for g, w in zip(clean, torch.autograd.grad(loss, list(masks.values())), strict=True):
        assert torch.allclose(g, w, atol=1e-6)
    half = anp_step(net, masks, x, y, alpha=0.5)[1]
    rob = anp_step(net, masks, x, y, alpha=0.0)[1]
    for a, b, c in zip(half, clean, rob, strict=True):
        assert torch.allclose(a, (b + c) / 2, atol=1e-5)


# ------------------------------------------------------------------ the defense


def run(model, images, held=None, **more):
    settings = {"steps": 6, "batch": 8, "threshold": 0.5, "generator": gen()}
    return anp(model, images, held, **(settings | more))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "training"),
    [("resnet18", True), ("resnet18", False), ("preact_resnet18", True), ("mobilenet", True)],
)
def test_anp_prunes_a_copy(name, training):
    model = network(name, 8)
    model.train()  # a mode that must come back
    model.eval()
    next(model.children()).train()
    modes = [m.training for m in model.modules()]
    before, images = frozen(model), random_images(24, side=16)
    digest = images.digest()
    p = run(model, images, training=training, threshold=0.95)
    assert isinstance(p, Purified) and same_state(model, before)
    assert images.digest() == digest
    assert [m.training for m in model.modules()] == modes
    assert all(q.grad is None and q.requires_grad for q in model.parameters())
    masks = p.log["masks"]
    assert all(bool(((m >= 0) & (m <= 1)).all()) for m in masks.values())
    assert any(bool((m < 1).any()) for m in masks.values())
    assert p.count == sum(map(len, below(masks, 0.95).values())) > 0
    # Weights, shifts and statistics are the model's own, whatever mode was used.
    assert same_state(p.model, frozen(without(model, p.pruned, shift=False)))
    assert len(p.log["natural"]) == len(p.log["robust"]) == 6
    assert p.log["threshold"] == 0.95 and p.seconds > 0


@pytest.mark.slow
def test_anp_is_seeded():
    model, images = network(), random_images(24)
    a, b, c = (run(model, images, generator=gen(s)) for s in (0, 0, 1))
    assert a.log["robust"] == b.log["robust"] != c.log["robust"]
    assert same_state(a.model, frozen(b.model))
    d, e = (run(model, images, start="random", generator=gen(0)) for _ in range(2))
    assert d.log["robust"] == e.log["robust"] != a.log["robust"]


@pytest.mark.slow
def test_held_images_choose_the_threshold():
    model, images = network(), random_images(24)
    free = run(model, images, images, threshold=None, max_drop=1.0)
    assert free.log["threshold"] == pytest.approx(0.9)
    tried = free.log["looks"]
    assert [t.count for t in tried] == sorted({t.count for t in tried})
    assert all(0 <= t.acc <= 1 for t in tried) and tried[-1].count == free.count
    strict = run(model, images, images, threshold=None, max_drop=0.0)
    assert strict.log["threshold"] is None or strict.count < free.count
    fixed = run(model, images, images, threshold=0.2)
    assert fixed.log["threshold"] == 0.2, "an explicit threshold wins"


@pytest.mark.slow
def test_anp_options_reach_the_step():
    model, images = network(), random_images(24)
    usual = run(model, images).log["robust"]
    for change in (
        {"eps": 0.1},
        {"alpha": 0.9},
        {"inner": 2},
        {"training": False},
        {"lr": 0.01},
        {"momentum": 0.0},
        {"batch": 4},
    ):
        assert run(model, images, **change).log["robust"] != usual, change


def test_usual_steps():
    assert [usual_steps(n) for n in (60, 240, 500, 5000)] == [240, 960, 2000, 2000]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"threshold": None}, "give held"),
        ({"threshold": 1.0}, "1 excluded"),
        ({"max_drop": 2}, "max_drop"),
        ({"eps": -0.1}, "eps must be at least 0"),
        ({"alpha": 1.5}, "alpha"),
        ({"momentum": -1}, "momentum"),
        ({"steps": 0}, "steps"),
        ({"lr": 0}, "lr"),
        ({"batch": 0}, "batch"),
        ({"inner": 0}, "inner"),
        ({"start": "one"}, '"zero" or "random"'),
    ],
)
def test_anp_refuses(change, text):
    model = network()
    before = frozen(model)
    with pytest.raises(ValueError, match=text) as e:
        run(model, random_images(24), **change)
    message(e)
    assert same_state(model, before)


def test_anp_refuses_too_few_images_and_no_batchnorm():
    with pytest.raises(ValueError, match="at least 2 images") as e:
        run(network(), random_images(24)[:1])
    message(e)
    with pytest.raises(ValueError, match="no BatchNorm") as e:
        run(build("vit", classes=3, width=16), random_images(24, side=32))
    message(e)


def test_anp_sees_model_and_clean_images():
    names = set(inspect.signature(anp).parameters)
    assert names == {
        "model",
        "clean",
        "held",
        "threshold",
        "max_drop",
        "eps",
        "alpha",
        "steps",
        "lr",
        "momentum",
        "batch",
        "inner",
        "start",
        "training",
        "generator",
        "checkpoint",
    }


@pytest.mark.slow
@pytest.mark.parametrize("start", ["zero", "random"])
def test_stopped_anp_ends_as_if_never_stopped(tmp_path, monkeypatch, start):
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    model, images, path = network(), random_images(24), tmp_path / "anp"
    whole = run(model, images, start=start)
    calls, real = [], _anp.anp_step

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(_anp, "anp_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(model, images, start=start, checkpoint=path)
    assert path.exists()
    with pytest.raises(ValueError, match="other work") as e:
        run(model, images, start=start, checkpoint=path, eps=0.3)
    message(e)
    rest = run(model, images, start=start, checkpoint=path)
    assert len(calls) == 4 + 3, "three steps were kept"
    assert rest.log["robust"] == whole.log["robust"]
    assert same_state(rest.model, frozen(whole.model))
    assert not path.exists(), "done"
