"""MNP: the objective, its masks, and the whole repair."""

from __future__ import annotations

import inspect
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bdcourse.checkpoint import Checkpoint
from bdcourse.defenses import (
    Purified,
    _mnp,
    _rnp,
    masks_ones,
    mnp,
    mnp_apply_masks,
    mnp_correlation,
    mnp_first_order,
    mnp_learn_masks,
    mnp_loss_changes,
    mnp_magnitudes,
    mnp_saliency,
    mnp_score,
    mnp_suppress,
)
from bdcourse.defenses._masks import baked, below
from bdcourse.defenses._mnp import (
    METHOD,
    choose_beta,
    mnp_folded,
    objective,
    oddities,
    shrinkage,
)
from bdcourse.defenses._rnp import unlearn
from bdcourse.models import build
from bdcourse.surgery import without, zero_channels
from bdcourse.train import SCHEDULES
from helpers import frozen, gen, message, random_images, same_state
from mnp_setup import network


@pytest.fixture
def model():
    return network()


# -------------------------------------------------------------------- the objective


def test_objective_is_the_formula(model):
    images, other = random_images(8), network(seed=1)
    x, y, g = images.pixels(), images.y, gen(2)
    masks = {n: torch.rand(m.shape, generator=g) for n, m in masks_ones(model).items()}
    a, r = mnp_magnitudes(model), shrinkage(model, other)
    weights = {"preserve": 0.7, "beta": 0.3, "lam": 0.01, "kappa": 0.02}
    total, terms = objective(model, other, masks, x, y, magnitude=a, shrunk=r, **weights)
    with torch.no_grad():
        s = F.cross_entropy(baked(model, masks)(x), y)
        t = F.cross_entropy(baked(other, masks)(x), y)
    push = sum(float((a[n] * m).sum()) for n, m in masks.items())
    keep = sum(float((r[n] * (1 - m)).sum()) for n, m in masks.items())
    want = 0.7 * float(s) + 0.3 * float(t) + 0.01 * push + 0.02 * keep
    assert total.item() == pytest.approx(want, rel=1e-5)
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(
        {"preserving": float(s), "suppressed": float(t), "penalty": push, "protection": keep},
        rel=1e-5,
    )


@pytest.mark.parametrize("off", ["preserve", "beta", "lam", "kappa"])
def test_every_term_has_a_switch(model, off):
    images = random_images(8)
    weights = {"preserve": 1.0, "beta": 1.0, "lam": 1.0, "kappa": 1.0} | {off: 0.0}
    names = {
        "preserve": "preserving",
        "beta": "suppressed",
        "lam": "penalty",
        "kappa": "protection",
    }
    _, terms = objective(
        model,
        model,
        masks_ones(model),
        images.pixels(),
        images.y,
        magnitude=mnp_magnitudes(model),
        shrunk=shrinkage(model, model),
        **weights,
    )
    assert terms.keys() == set(names.values()) - {names[off]}


@pytest.mark.slow
def test_exercise_2_one_step_of_the_penalty():
    """No gradient from the data: 1 - 0.1 * 1e-3 * 2 = 0.9998, then terminal speed."""
    model = nn.Sequential(
        nn.Conv2d(3, 2, 1),
        nn.BatchNorm2d(2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 3),
    )
    model[0].weight.data.fill_(1)
    model[1].weight.data = torch.tensor([2.0, 0.0])
    options = {"preserve": 0, "beta": 0, "batch": 8}
    images = random_images(8)
    one, _ = mnp_learn_masks(model, None, images, steps=1, generator=gen(), **options)
    assert one["1"].tolist() == pytest.approx([0.9998, 1.0])
    many, _ = mnp_learn_masks(model, None, images, steps=160, generator=gen(), **options)
    assert 0.65 < float(many["1"][0]) < 0.72, "terminal speed 0.002: 160 are not enough"
    rest, _ = mnp_learn_masks(model, None, images, steps=520, generator=gen(), **options)
    assert float(rest["1"][0]) == 0


@pytest.mark.slow
def test_one_step_goes_down_the_gradient(model):
    images, other = random_images(8), network(seed=1)
    options = {"preserve": 0.5, "beta": 0.2, "lam": 0.01, "kappa": 0.03}
    masks, terms = mnp_learn_masks(
        model, other, images, steps=1, lr=0.05, batch=8, generator=gen(), **options
    )
    start = {n: m.requires_grad_(True) for n, m in masks_ones(model).items()}
    total, _ = objective(
        model,
        other,
        start,
        images.pixels(),
        images.y,
        magnitude=mnp_magnitudes(model),
        shrunk=shrinkage(model, other),
        **options,
    )
    grads = torch.autograd.grad(total, list(start.values()))
    for (n, m), g in zip(masks.items(), grads, strict=True):
        assert torch.allclose(m, (1 - 0.05 * g).clamp(0, 1), atol=1e-4), n
    assert terms.keys() == {"preserving", "suppressed", "penalty", "protection"}


def test_the_uniform_penalty_knows_no_magnitude(model):
    images = random_images(8)
    options = {"preserve": 0, "beta": 0, "steps": 3, "batch": 8}
    flat, _ = mnp_learn_masks(model, None, images, penalty="uniform", generator=gen(), **options)
    assert len({round(float(v), 6) for m in flat.values() for v in m}) == 1
    by_size, _ = mnp_learn_masks(model, None, images, generator=gen(), **options)
    a = mnp_magnitudes(model)
    for n, m in by_size.items():
        assert torch.allclose(1 - m, a[n] * (1 - flat[n]), atol=1e-5)


def test_suppress_judges_in_eval_mode_at_a_constant_rate(monkeypatch):
    seen = {}

    def fake(model, clean, **options):
        seen.update(options)
        return model, {}

    monkeypatch.setattr(_mnp, "unlearn", fake)
    g = gen()
    mnp_suppress(None, None, generator=g)
    want = {"stop": 0.2, "epochs": 300, "generator": g, "judge": "eval", "drop": None}
    assert seen | want == seen
    own = inspect.signature(unlearn).parameters
    others = set(seen) - set(want)
    assert all(seen[n] == own[n].default for n in others) and "lr" in others


# --------------------------------------------------------------------- the repairs


def drawn(model, seed=0):
    g = gen(seed)
    masks = {n: torch.rand(m.shape, generator=g) for n, m in masks_ones(model).items()}
    masks["bn1"][0] = 0.0
    return masks


@pytest.mark.slow
def test_soft_and_hard_from_one_set_of_masks(model):
    masks, before = drawn(model), frozen(model)
    soft = mnp_apply_masks(model, masks)
    hard = mnp_apply_masks(model, masks, "hard", threshold=0.5)
    assert same_state(model, before)
    assert same_state(soft.model, frozen(baked(model, masks)))
    assert same_state(hard.model, frozen(without(model, below(masks, 0.5), shift=False)))
    assert {n: c.tolist() for n, c in soft.pruned.items() if len(c)} == {"bn1": [0]}
    assert hard.count > 50 and hard.log["threshold"] == 0.5
    for p in (soft, hard):
        assert isinstance(p, Purified) and p.log["method"] == METHOD
        assert p.log["masks"] is masks and "reconstruction" in METHOD
    images = random_images(24)
    chosen = mnp_apply_masks(model, masks, "hard", images, max_drop=1.0)
    assert chosen.log["threshold"] == pytest.approx(0.9)
    for options, text in (
        (("medium",), '"soft" or "hard"'),
        (("hard",), "give held"),
        (("hard", images[:0]), "must hold at least 1 images"),
    ):
        with pytest.raises(ValueError, match=text) as e:
            mnp_apply_masks(model, masks, *options)
        message(e)


def run(model, images, held=None, **more):
    settings = {"steps": 5, "epochs": 2, "batch": 8, "stop": 0.0, "generator": gen()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mnp(model, images, held, **(settings | more))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "mobilenet"])
def test_mnp_repairs_a_copy(name):
    model = network(name, 8)
    next(model.children()).train()
    modes = [m.training for m in model.modules()]
    before, images = frozen(model), random_images(16, side=16)
    digest = images.digest()
    p = run(model, images, steps=2)
    assert isinstance(p, Purified) and same_state(model, before)
    assert images.digest() == digest
    assert [m.training for m in model.modules()] == modes
    assert all(q.grad is None and q.requires_grad for q in model.parameters())
    masks = p.log["masks"]
    assert any(bool((m < 1).any()) for m in masks.values())
    # Every number is the model's own, but for the masked scales: in particular no
    # running statistic of the suppressed copy.
    assert same_state(p.model, frozen(baked(model, masks)))
    assert p.log["method"] == METHOD and len(p.log["suppression"]["acc"]) == 2
    assert p.log["terms"].keys() == {"preserving", "suppressed", "penalty"}
    assert p.log["magnitude"].keys() == masks.keys() and p.seconds > 0


@pytest.mark.slow
def test_mnp_hard_is_soft_with_a_threshold(model):
    images = random_images(16)
    soft = run(model, images)
    hard = run(model, images, repair="hard", threshold=0.95)
    assert all(torch.equal(soft.log["masks"][n], m) for n, m in hard.log["masks"].items())
    again = mnp_apply_masks(model, soft.log["masks"], "hard", threshold=0.95)
    assert same_state(hard.model, frozen(again.model)) and hard.count == again.count


@pytest.mark.slow
def test_mnp_without_suppression_makes_no_copy(model, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("suppressed")

    monkeypatch.setattr(_mnp, "mnp_suppress", never)
    p = run(model, random_images(16), beta=0)
    assert p.log["suppression"] is None
    assert p.log["terms"].keys() == {"preserving", "penalty"}
    with pytest.raises(AssertionError, match="suppressed"):
        run(model, random_images(16), beta=0, kappa=0.1)


@pytest.mark.parametrize(
    ("costs", "max_drop", "want"),
    [
        ({0.02: 0.0}, 0.1, 0.02),  # the largest is tried first, and is cheap enough
        ({0.02: 0.2, 0.005: 0.1}, 0.1, 0.005),  # the bound itself is allowed
        ({0.02: 0.2, 0.005: 0.11, 0.0: 0.3}, 0.1, 0.0),  # the least remains
    ],
)
def test_beta_is_the_largest_that_held_out_images_allow(costs, max_drop, want, monkeypatch, model):
    tried, states, images = [], [], random_images(6)

    def learned(*args, beta, generator, **options):
        tried.append(beta)
        states.append(generator.get_state())
        torch.rand(3, generator=generator)
        return {"beta": beta}, {"preserving": [beta]}

    def scored(net, held):  # the model itself, or the beta that stands for a repair
        cost = costs.get(net, 0.0) if isinstance(net, float) else 0.0
        return SimpleNamespace(acc=0.9 - cost)

    monkeypatch.setattr(_mnp, "mnp_learn_masks", learned)
    monkeypatch.setattr(_mnp, "baked", lambda net, masks: masks["beta"])
    monkeypatch.setattr(_mnp, "evaluate", scored)
    found = choose_beta(
        model,
        model,
        images,
        images,
        betas=(0.0, 0.005, 0.02),
        max_drop=max_drop,
        generator=gen(),
    )
    assert found == (want, {"beta": want}, {"preserving": [want]})
    assert tried == [b for b in (0.02, 0.005, 0.0) if b >= want]
    assert all(torch.equal(s, states[0]) for s in states), "other batches"


@pytest.mark.slow
def test_mnp_by_held_out_images_is_mnp_at_that_beta(tmp_path, monkeypatch, model):
    images, held = random_images(16), random_images(12, seed=5)
    p = run(model, images, held, beta="held", max_drop=1)
    assert p.log["beta"] == max(_mnp.BETAS)
    same = run(model, images, beta=p.log["beta"])
    assert p.log["terms"] == same.log["terms"]
    assert same_state(p.model, frozen(same.model))
    calls, real = [], _mnp.mnp_learn_masks

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    options = {"beta": "held", "max_drop": 0.0, "checkpoint": tmp_path / "mnp"}
    whole = run(model, images, held, **options | {"checkpoint": None})
    monkeypatch.setattr(
        _mnp, "evaluate", lambda net, held: SimpleNamespace(acc=float(net is model))
    )
    monkeypatch.setattr(_mnp, "mnp_learn_masks", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(model, images, held, **options)
    assert list(tmp_path.iterdir()), "nothing kept"
    rest = run(model, images, held, **options)
    assert rest.log["beta"] == min(_mnp.BETAS) and len(calls) == 6
    assert not list(tmp_path.iterdir()), "done"
    assert whole.log["terms"].keys() == rest.log["terms"].keys()


@pytest.mark.slow
def test_mnp_is_seeded(model):
    images = random_images(16)
    a, b, c = (run(model, images, generator=gen(s)) for s in (0, 0, 1))
    assert a.log["terms"] == b.log["terms"] != c.log["terms"]
    assert same_state(a.model, frozen(b.model))


@pytest.mark.slow
def test_tuning_holds_the_zeros(model):
    images = random_images(16)
    zero_channels(model, {"layer1.0.bn2": torch.tensor([1])}, shift=False)
    p = run(model, images, repair="hard", threshold=0.97, tune=2)
    assert p.count > 0 and len(p.log["tuning"]["loss"]) == 2
    plain = run(model, images, repair="hard", threshold=0.97)
    assert not same_state(p.model, frozen(plain.model))
    for n, c in p.pruned.items():
        assert not p.model.get_submodule(n).weight[c].any()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"repair": "both"}, '"soft" or "hard"'),
        ({"repair": "hard"}, "give held"),
        ({"repair": "hard", "threshold": 1}, "1 excluded"),
        ({"beta": -1}, "beta must be at least 0"),
        ({"beta": "held"}, "needs held-out clean images"),
        ({"lam": float("nan")}, "lam must be at least 0"),
        ({"lam": float("inf")}, "finite"),
        ({"preserve": 0, "beta": 0, "lam": 0}, "not all 0"),
        ({"penalty": "l2"}, '"magnitude" or "uniform"'),
        ({"steps": 0}, "steps"),
        ({"mask_lr": -1}, "mask_lr"),
        ({"tune": -1}, "tune must be at least 0"),
        ({"stop": 2}, "stop"),
        ({"clip": -1}, "clip"),
    ],
)
def test_mnp_refuses_before_it_works(change, text, monkeypatch, model):
    def never(*args, **kwargs):
        raise AssertionError("worked")

    monkeypatch.setattr(_rnp, "ascend", never)
    with pytest.raises(ValueError, match=text) as e:
        run(model, random_images(16), **change)
    message(e)


def test_other_refusals(model):
    with pytest.raises(ValueError, match="no BatchNorm") as e:
        run(build("vit", classes=3, width=16), random_images(16, side=32))
    message(e)
    with pytest.raises(ValueError, match="no BatchNorm"):
        mnp_saliency(build("vit", classes=3, width=16), random_images(16, side=32))
    with pytest.raises(ValueError, match="at least 1 images") as e:
        mnp_saliency(model, random_images(16)[:0])
    message(e)
    for options in ({"beta": 0.1}, {"beta": 0, "kappa": 0.1}):
        with pytest.raises(ValueError, match="need the suppressed copy") as e:
            mnp_learn_masks(model, None, random_images(8), generator=gen(), **options)
        message(e)


def test_mnp_sees_model_and_clean_images():
    names = set(inspect.signature(mnp).parameters)
    assert names == {
        "model",
        "clean",
        "held",
        "repair",
        "threshold",
        "max_drop",
        "preserve",
        "beta",
        "lam",
        "kappa",
        "penalty",
        "steps",
        "mask_lr",
        "stop",
        "epochs",
        "lr",
        "clip",
        "batch",
        "tune",
        "generator",
        "checkpoint",
    }


def test_everything_says_that_it_is_a_reconstruction():
    for f in (
        mnp,
        mnp_apply_masks,
        mnp_learn_masks,
        objective,
        mnp_suppress,
        mnp_magnitudes,
        mnp_folded,
        shrinkage,
        choose_beta,
        mnp_saliency,
        mnp_loss_changes,
        mnp_first_order,
        mnp_correlation,
        oddities,
        mnp_score,
        _mnp,
    ):
        assert "reconstruction" in " ".join((f.__doc__ or "").lower().split()), f


@pytest.mark.slow
@pytest.mark.parametrize("where", ["suppression", "masks", "tuning"])
def test_stopped_mnp_ends_as_if_never_stopped(tmp_path, monkeypatch, where, model):
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    images, path = random_images(16), tmp_path / "mnp"
    whole = run(model, images, tune=4)
    place, name = {
        "suppression": (_rnp, "ascend"),
        "masks": (_mnp, "objective"),
        "tuning": (SCHEDULES, "cosine"),
    }[where]
    tuning = isinstance(place, dict)
    calls, real = [], place[name] if tuning else getattr(place, name)

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    (monkeypatch.setitem if tuning else monkeypatch.setattr)(place, name, stopping)
    with pytest.raises(KeyboardInterrupt):
        run(model, images, tune=4, checkpoint=path)
    rest = run(model, images, tune=4, checkpoint=path)
    assert rest.log["terms"] == whole.log["terms"]
    assert rest.log["suppression"] == whole.log["suppression"]
    assert rest.log["tuning"] == whole.log["tuning"]
    assert same_state(rest.model, frozen(whole.model))
    assert not list(tmp_path.iterdir()), "done"
