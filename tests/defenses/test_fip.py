"""FIP: the pull, the loop, and going on after a stop."""

from __future__ import annotations

import copy
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from bdcourse.analysis.curvature import fisher_diagonal
from bdcourse.defenses import (
    FIP_ETA,
    FipDescent,
    SamDescent,
    _fip,
    fast_fip,
    fip,
    fip_descend,
    fip_factorize,
    fip_released,
)
from bdcourse.defenses._fip import ReleasedDescent, trainable
from bdcourse.likelihoods import SOFTMAX, Softmax
from bdcourse.models import guarded
from bdcourse.train import Augment
from fip_setup import agree, captured, flat, grads, network, small, smooth_net, with_idle
from helpers import frozen, gen, message, random_images, same_state

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("f", [fip, fast_fip])
def test_frozen_statistics_stay(f):
    model = network()
    how = {"eta_f": FIP_ETA, "norms": "frozen", "lr": 1e-3, "steps": 3, "batch": 6}
    p = f(model, random_images(12), **how, generator=gen())
    now = dict(p.model.named_buffers())
    assert all(torch.equal(b, now[n]) for n, b in model.named_buffers())
    assert not torch.equal(p.model.bn1.weight, model.bn1.weight)


def test_every_so_many_steps():
    p = fip(smooth_net().float(), small()[0], eta_f=FIP_ETA, every=3, steps=8, generator=gen())
    assert [s for s, _ in p.log["trace"]] == [0, 3, 6]
    assert [s for s, _ in p.log["loss"]] == list(range(8))
    assert all(v > 0 for _, v in p.log["trace"])


@pytest.mark.slow
def test_a_batch_larger_than_the_data_is_all_of_it():
    how = {"eta_f": FIP_ETA, "steps": 2, "lr": 1e-3}
    runs = [fip(network(), random_images(9), **how, batch=b, generator=gen()) for b in (9, 32)]
    assert same_state(runs[0].model, frozen(runs[1].model))


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("f", [fip, fast_fip, fip_released])
def test_the_argument_is_untouched(f):
    model, images = network().train(), random_images(12)
    model.layer2.eval()
    model.conv1.requires_grad_(False)
    F.cross_entropy(model(images.pixels()), images.y).backward()
    before, modes = frozen(model), [m.training for m in model.modules()]
    slope = [w.grad.clone() if w.grad is not None else None for w in model.parameters()]
    how = {"eta_f": FIP_ETA, "batch": 6}
    p = f(model, images, steps=2, lr=1e-3, **how, generator=gen())
    with pytest.raises(RuntimeError, match=r"left all bounds in step \d:") as e:
        f(model, images, steps=30, lr=1e30, **how, generator=gen())
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet"])
def test_equal_seeds_give_equal_results(name):
    images, model, runs = random_images(12, side=32), network(name), []
    how = {"eta_f": FIP_ETA, "steps": 2, "lr": 1e-4, "batch": 6, "augment": Augment(1)}
    for i, seed in enumerate((0, 0, 1)):
        torch.manual_seed(i)  # of dropout, if it were on
        runs.append(fip(model, images, **how, generator=gen(seed)))
    assert same_state(runs[0].model, frozen(runs[1].model))
    assert runs[0].log == runs[1].log
    assert not same_state(runs[0].model, frozen(runs[2].model))


@pytest.mark.slow
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
    p = fip(smooth_net(), images, eta_f=FIP_ETA, steps=2, generator=gen())
    q = fip(with_idle(smooth_net()), images, eta_f=FIP_ETA, steps=2, generator=gen())
    p, q = p.model, q.model.net
    close = {"rtol": 1e-4, "atol": 1e-5}  # the idle ones lengthen the move of `along`
    torch.testing.assert_close(flat(p.parameters()), flat(q.parameters()), **close)


@pytest.mark.slow
def test_watching_changes_nothing():
    model, images, seen = network(), random_images(12), []
    g = gen()
    options = {"eta_f": FIP_ETA, "steps": 5, "lr": 1e-3, "batch": 6}

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


@pytest.mark.slow
def test_the_time_of_watching_does_not_count():
    def slow(_):
        time.sleep(0.3)
        return {}

    for f in (fip, fip_released):
        start = time.perf_counter()
        how = {"eta_f": FIP_ETA, "steps": 1, "lr": 1e-3, "batch": 6}
        p = f(network(), random_images(12), **how, watch=slow, generator=gen())
        assert p.seconds <= time.perf_counter() - start - 0.6  # looked at twice


# ---------------------------------------------------------------- stopped


LENGTHS = {"draw": "gaussian", "lengths": dict.fromkeys(range(9), 0.1)}
RUNS = [(fip, {}), (fast_fip, {"norms": "mixed"}), (fip_released, {"every": 2}), (fip, LENGTHS)]


@pytest.mark.slow
@pytest.mark.parametrize("f, extra", RUNS)
def test_stopped_and_started_again_it_ends_the_same(f, extra, tmp_path, monkeypatch):
    monkeypatch.setattr(_fip.Checkpoint, "due", lambda self: self.path is not None)
    model, images, path = network(), random_images(12), tmp_path / "fip"
    options = {"eta_f": FIP_ETA, "steps": 5, "lr": 1e-3, "batch": 6, "watch_every": 1} | extra
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


@pytest.mark.slow
def test_a_checkpoint_of_other_work_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_fip.Checkpoint, "due", lambda self: self.path is not None)
    path = tmp_path / "fip"
    images, _ = small()

    def stop(model):
        raise KeyboardInterrupt

    same = {"model": smooth_net(), "clean": images, "eta_f": FIP_ETA, "steps": 2}
    same["generator"] = gen()
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
