"""Trigger inversion: all labels at once against one after the other, and its edges."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
from torch import nn

from bdcourse.checkpoint import Checkpoint
from bdcourse.defenses import Estimate, Inverted, _invert, detect, invert_trigger
from bdcourse.defenses._invert import (
    anomaly,
    frozen_copy,
    plain_invert,
    shuffled_rows,
    squash,
    unsquash,
)
from bdcourse.models import build, fingerprint
from helpers import frozen, gen, message, random_images, randomize_norms, same_state

K = 4


def network(name: str = "resnet18", width: int = 4, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomize_norms(build(name, classes=K, width=width), seed)


def images(n: int = 24, side: int = 8):
    return random_images(n, k=K, side=side)


def easy(k: int = K, side: int = 8) -> nn.Module:
    """Says the class of the label pixel, or class 1 if the last pixel is white."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, k))
    net[1].weight.data.zero_()
    net[1].weight.data[1].view(3, side, side)[:, -1, -1] = 20.0
    net[1].weight.data[2].view(3, side, side)[:] = 0.2
    net[1].weight.data[3].view(3, side, side)[:] = -0.2
    net[1].bias.data.copy_(torch.tensor([8.0, -25.0, -10.0, 10.0]))
    return net


SHORT = {"steps": 12, "every": 3, "batch": 5, "patience": 2, "success": 0.5}


def one_by_one(model, clean, seed, labels, **options):
    """What `invert_trigger` finds, by the plain loop from the same beginnings."""
    x, y = clean.pixels().to(next(model.parameters())), clean.y
    g, found, shape = gen(seed), [], x.shape[1:]
    count = len(labels)
    masks = unsquash(torch.rand(count, 1, *shape[1:], generator=g).to(x))
    patterns = unsquash(torch.rand(count, *shape, generator=g).to(x))
    order = _invert.fresh_seed(g)
    size = min(options.pop("batch"), len(x))
    for label, *first in zip(labels, masks, patterns, strict=True):
        rows = shuffled_rows(len(x), size, order)
        found.append(plain_invert(model, x, y, label, first, rows, **options))
    return [torch.stack(parts) for parts in zip(*found, strict=True)]


# ---------------------------------------------------------------- plain == fast


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "vgg16_bn"])
@pytest.mark.parametrize("chunk", [None, 3])
def test_all_labels_at_once_are_one_by_one(name, chunk):
    # In float64: Adam divides by the gradient's size, so float32's rounding grows.
    side = 32 if name == "vgg16_bn" else 8
    model, clean = network(name).double(), images(side=side)
    fast = invert_trigger(model, clean, chunk=chunk, generator=gen(1), **SHORT)
    masks, patterns = one_by_one(model, clean, 1, range(K), **SHORT)
    assert torch.allclose(fast.masks, masks, rtol=0, atol=1e-7)
    assert torch.allclose(fast.patterns, patterns, rtol=0, atol=1e-7)
    assert masks.flatten(1).sum(1).std() > 0.01, "the labels differ"


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 3, 100])
@pytest.mark.parametrize("success", [0.0, 0.6, 1.0])
def test_rules_of_lambda_and_stopping_are_the_plain_ones(stop, success):
    model, clean = easy().double(), images(40)
    rule = {
        "steps": 60,
        "every": 2,
        "batch": 6,
        "patience": 2,
        "stop": stop,
        "success": success,
        "lam": 1e-2,
        "factor": 1.7,
        "lr": 0.3,
    }
    fast = invert_trigger(model, clean, generator=gen(2), **rule)
    masks, patterns = one_by_one(model, clean, 2, range(K), **rule)
    assert torch.allclose(fast.masks, masks, rtol=0, atol=1e-7)
    assert torch.allclose(fast.patterns, patterns, rtol=0, atol=1e-7)
    lams = fast.log["lams"]
    if success == 0.0 and stop == 100:  # every look is good
        want = 1e-2 * 1.7 ** (torch.arange(30) // 2).double()
        assert torch.allclose(lams, want[:, None].expand(-1, K))
    if success == 1.0 and stop == 100:
        assert (lams[1:] < lams[:-1]).any() and (lams[1:] > lams[:-1]).any()
    stopped = lams.isnan().any(0)
    assert stopped.any() == (stop < 100)
    assert not lams[0].isnan().any()
    if stop == 1:
        assert len({int(c.isnan().sum()) for c in lams.T}) > 1, "not all at once"


@pytest.mark.slow
def test_subset_of_labels_and_chunks_change_nothing_else():
    model, clean = network().double(), images()
    some = invert_trigger(model, clean, targets=[3, 1], generator=gen(4), **SHORT)
    assert some.targets.tolist() == [3, 1] and some.masks.shape == (2, 1, 8, 8)
    masks, _ = one_by_one(model, clean, 4, [3, 1], **SHORT)
    assert torch.allclose(some.masks, masks, rtol=0, atol=1e-7)
    for chunk in (1, 2, 99):
        again = invert_trigger(model, clean, targets=[3, 1], chunk=chunk, generator=gen(4), **SHORT)
        assert torch.allclose(again.masks, some.masks, rtol=0, atol=1e-7)
        assert torch.equal(again.log["lams"], some.log["lams"])


# ---------------------------------------------------------------- what it finds


@pytest.mark.slow
def test_finds_the_planted_pixel():
    model, clean = easy(), images(40)
    found = invert_trigger(model, clean, steps=400, batch=8, lr=0.3, generator=gen())
    guess = found.trigger(1)
    assert found.norms.argmin() == 1
    assert guess.mask[0, -1, -1] > 0.5 and (guess.pattern[:, -1, -1] > 0.6).all()
    assert guess.mask.flatten()[:-1].max() < 0.1
    assert found.rates[1] >= 0.95
    # rates are those of the final masks on all images of other classes
    others = clean[clean.y != 1]
    said = model(guess.stamp(others.pixels())).argmax(1)
    assert found.rates[1] == pytest.approx((said == 1).float().mean().item())


@pytest.mark.slow
def test_fields_and_ranges():
    model, clean = network(), images()
    found = invert_trigger(model, clean, generator=gen(), **SHORT)
    assert found.made_on == fingerprint(model)
    assert found.masks.shape == (K, 1, 8, 8) and found.patterns.shape == (K, 3, 8, 8)
    for t in (found.masks, found.patterns, found.rates):
        assert 0 <= t.min() and t.max() <= 1
    assert torch.equal(found.norms, found.masks.sum((1, 2, 3)))
    assert found.targets.tolist() == list(range(K)) and found.seconds > 0
    for name in ("norms", "rates", "lams"):
        assert found.log[name].shape == (4, K)
    assert not found.masks.requires_grad and not found.patterns.requires_grad


@pytest.mark.slow
@pytest.mark.parametrize("name, side", [("mobilenet", 32), ("vit", 32)])
def test_other_networks(name, side):
    model = build(name, classes=K, width=16 if name == "vit" else 8).eval()
    found = invert_trigger(model, images(8, side), steps=2, every=1, batch=2, generator=gen())
    assert found.masks.isfinite().all()


@pytest.mark.slow
def test_bfloat16_finds_nearly_the_same():
    model, clean = easy(), images(40)
    rule = {"steps": 100, "batch": 8, "lr": 0.3}
    a, b = (invert_trigger(model, clean, bf16=f, generator=gen(), **rule) for f in (False, True))
    assert b.masks.dtype == torch.float32 and not torch.equal(a.masks, b.masks)
    assert b.norms.argmin() == 1 == a.norms.argmin()
    assert torch.allclose(a.norms[1], b.norms[1], rtol=0.5)


def test_estimate_stamps():
    mask = torch.zeros(1, 4, 4)
    mask[0, 0, 0], mask[0, 1, 1] = 1.0, 0.25
    guess = Estimate(2, mask, torch.full((3, 4, 4), 0.5))
    x = torch.rand(5, 3, 4, 4, generator=gen())
    before = x.clone()
    out = guess.stamp(x)
    assert torch.equal(x, before)
    assert (out[:, :, 0, 0] == 0.5).all()
    assert torch.allclose(out[:, :, 1, 1], 0.75 * x[:, :, 1, 1] + 0.125)
    assert torch.equal(out[:, :, 2:], x[:, :, 2:])
    assert guess.stamp(x.double()).dtype == torch.float64


def test_squash_round_trip():
    v = torch.rand(1000, generator=gen())
    assert torch.allclose(squash(unsquash(v)), v, atol=1e-3)
    assert unsquash(torch.tensor([0.0, 1.0])).isfinite().all()


def test_batches_are_whole_passes():
    order = shuffled_rows(10, 4, 5)
    first = torch.cat([next(order), next(order)])
    second = torch.cat([next(order), next(order)])
    assert len(first.unique()) == 8 == len(second.unique())
    assert first.tolist() != second.tolist()
    assert next(shuffled_rows(10, 4, 5)).tolist() == first[:4].tolist()


# ---------------------------------------------------------------- folding


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "mobilenet"])
def test_frozen_copy_says_the_same(name):
    model = network(name, width=8)
    x = torch.rand(4, 3, 32, 32, generator=gen())
    copy = frozen_copy(model, x)
    assert torch.allclose(copy(x), model(x), rtol=1e-4, atol=1e-3)
    assert not any(p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in model.parameters())
    count = sum(isinstance(m, nn.BatchNorm2d) for m in copy.modules())
    assert count == {"preact_resnet18": 8}.get(name, 0)  # read a sum, or share


class Branching(nn.Module):
    """Reads the convolution twice: with and without the BatchNorm."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, K, 3), nn.BatchNorm2d(K)

    def forward(self, x):
        y = self.conv(x)
        return (self.bn(y) + y).mean((2, 3))


def test_what_cannot_be_folded_is_not():
    model = randomize_norms(Branching())
    x = torch.rand(4, 3, 8, 8, generator=gen())
    copy = frozen_copy(model, x)
    assert torch.allclose(copy(x), model(x), rtol=1e-5)
    assert isinstance(copy.bn, nn.BatchNorm2d)


# ---------------------------------------------------------------- detection


def result(norms, rates=None) -> Inverted:
    norms = torch.tensor(norms)
    masks = (norms / 16).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    k = len(norms)
    rates = torch.ones(k) if rates is None else torch.tensor(rates)
    return Inverted(masks, torch.zeros(k, 3, 4, 4), torch.arange(k), rates)


def test_anomaly_by_hand():
    # median 10, deviations 9 1 0 1 2, their median 1
    index = anomaly(torch.tensor([1.0, 9, 10, 11, 12]))
    assert index.tolist() == pytest.approx([v / 1.4826 for v in (9, 1, 0, 1, 2)])
    # median 2.5, deviations 1.5 0.5 0.5 1.5, their median 1
    even = anomaly(torch.tensor([1.0, 2, 3, 4]))
    assert even.tolist() == pytest.approx([v / 1.4826 for v in (1.5, 0.5, 0.5, 1.5)])
    assert anomaly(torch.ones(5)).tolist() == [0.0] * 5
    assert anomaly(torch.tensor([1.0, 5, 5, 5])).tolist() == [torch.inf, 0, 0, 0]


def test_small_outliers_are_flagged_large_ones_are_not():
    found = detect(result([10.0, 1, 9, 11, 12, 40]))
    assert found.labels == (1,) and found.index[5] > 2
    assert detect(result([10.0, 1, 9, 11, 12, 0.5, 10, 10])).labels == (5, 1)
    assert detect(result([10.0, 9, 8.5, 11, 12])).labels == ()
    assert detect(result([10.0, 1, 9, 11, 12]), threshold=100).labels == ()


def test_labels_not_rows():
    r = result([10.0, 1, 9, 11, 12])
    r = Inverted(r.masks, r.patterns, torch.tensor([7, 3, 5, 1, 0]), r.rates)
    assert detect(r).labels == (3,)
    assert r.trigger(3).mask.sum() == pytest.approx(1) and r.trigger(3).label == 3
    with pytest.raises(ValueError, match="label 4 was not inverted") as e:
        r.trigger(4)
    message(e)


def test_a_guess_that_does_not_work_is_no_evidence():
    works = [1.0, 0.3, 0.95, 1.0, 1.0]
    found = detect(result([10.0, 1, 9, 11, 12], works))
    assert found.labels == () and found.index[1].isnan()
    assert found.index[0] == pytest.approx(0.5 / 1.4826)  # without row 1
    assert detect(result([10.0, 1, 9, 11, 12], works), least=0.3).labels == (1,)
    assert detect(result([10.0, 1, 9], [0.0] * 3)).labels == ()
    assert detect(result([10.0, 1, 9], [1.0, 1.0, 0.0])).index.isnan().all()


def test_index_of_a_small_norm_has_a_ceiling():
    # A norm is not negative, so the index of the smallest is at most that of zero.
    norms = torch.tensor([0.01, 24, 23, 83, 103, 115, 92, 35, 155, 120, 145, 143])
    far = (norms - norms.quantile(0.5)).abs().quantile(0.5)
    ceiling = float(norms.quantile(0.5) / (1.4826 * far))
    assert ceiling < 2 and float(anomaly(norms)[0]) == pytest.approx(ceiling, rel=1e-3)
    r = result(norms.tolist())
    assert detect(r).labels == ()
    found = detect(r, scale="log")
    assert found.labels[0] == 0
    logs = norms.double().log()
    assert torch.allclose(found.index, anomaly(logs), rtol=1e-4)


def test_log_scale_knows_a_zero_norm():
    found = detect(result([10.0, 0, 9, 11, 12]), scale="log")
    assert found.labels == (1,) and found.index.isfinite().all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"threshold": -1}, "threshold"),
        ({"least": 1.1}, "least"),
        ({"scale": "sqrt"}, "unknown scale"),
    ],
)
def test_detect_refuses(options, match):
    with pytest.raises(ValueError, match=match) as e:
        detect(result([1.0, 2, 3]), **options)
    message(e)
    with pytest.raises(ValueError, match="three labels") as e:
        detect(result([1.0, 2]))
    message(e)


# ---------------------------------------------------------------- manners


@pytest.mark.slow
def test_argument_untouched_and_deterministic():
    model, clean = network(), images()
    model.layer1.train()
    modes = [m.training for m in model.modules()]
    before, digest = frozen(model), clean.digest()
    runs = [invert_trigger(model, clean, generator=gen(s), **SHORT) for s in (0, 0, 1)]
    assert same_state(model, before) and clean.digest() == digest
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(runs[0].masks, runs[1].masks)
    assert torch.equal(runs[0].patterns, runs[1].patterns)
    assert not torch.equal(runs[0].masks, runs[2].masks)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"targets": []}, "different labels"),
        ({"targets": [1, 1]}, "different labels"),
        ({"targets": [K]}, f"0..{K - 1}"),
        ({"targets": [-1]}, "no label"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"every": 0}, "every must be a whole number of at least 1"),
        ({"steps": 15, "every": 10}, "multiple of 10"),
        ({"batch": 0}, "batch must be a whole number of at least 1"),
        ({"patience": 0}, "patience"),
        ({"stop": -3}, "stop"),
        ({"chunk": 0}, "chunk"),
        ({"lr": 0}, "lr must be above 0"),
        ({"lam": -1e-3}, "lam must be above 0"),
        ({"factor": 0.5}, "factor must be at least 1"),
        ({"success": 1.5}, "success"),
    ],
)
def test_refused(options, match):
    with pytest.raises(ValueError, match=match) as e:
        invert_trigger(easy(), images(), generator=gen(), **options)
    message(e)


@pytest.mark.slow
def test_images_of_one_class_are_refused():
    clean = images()
    with pytest.raises(ValueError, match="label 2 cannot be searched") as e:
        invert_trigger(easy(), clean[clean.y == 2], generator=gen())
    message(e)
    one = invert_trigger(easy(), clean[:1], targets=[1], generator=gen(), **SHORT)
    assert one.rates.shape == (1,)


def test_no_trigger_and_no_attack_can_be_handed_over():
    for f in (invert_trigger, detect):
        assert "ttack" not in str(inspect.signature(f))
        assert "oison" not in str(inspect.signature(f))


# ---------------------------------------------------------------- checkpoints


class Stops(nn.Module):
    """A network that Ctrl-C meets in its n-th forward pass with a gradient."""

    left = 10**9

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        if x.requires_grad:
            Stops.left -= 1
            if Stops.left < 0:
                raise KeyboardInterrupt
        return self.inner(x)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("after", [1, 11, 30, 47])
def test_stopped_and_started_again(tmp_path, monkeypatch, chunk, after):
    monkeypatch.setattr(_invert, "Checkpoint", functools.partial(Checkpoint, every=0.0))
    model, clean = Stops(easy()), images()
    rule = {
        "steps": 48,
        "every": 3,
        "batch": 5,
        "success": 0.6,
        "patience": 2,
        "chunk": chunk,
        "lr": 0.3,
        "lam": 1e-2,
        "stop": 4,
    }
    whole = invert_trigger(model, clean, generator=gen(), **rule)
    path = tmp_path / "invert.safetensors"
    monkeypatch.setattr(Stops, "left", after)
    with pytest.raises(KeyboardInterrupt):
        invert_trigger(model, clean, generator=gen(), checkpoint=path, **rule)
    assert path.exists() == (after >= 3)
    monkeypatch.setattr(Stops, "left", 10**9)
    for other in ({"lr": 0.2}, {"targets": [0, 1, 2]}, {"generator": gen(5)}):
        if path.exists():
            with pytest.raises(ValueError, match="other work"):
                invert_trigger(
                    model, clean, checkpoint=path, **({"generator": gen()} | rule | other)
                )
    rest = invert_trigger(model, clean, generator=gen(), checkpoint=path, **rule)
    assert not path.exists()
    assert torch.equal(rest.masks, whole.masks)
    assert torch.equal(rest.patterns, whole.patterns)
    for name in whole.log:
        assert torch.equal(rest.log[name].nan_to_num(-1), whole.log[name].nan_to_num(-1))


@pytest.mark.slow
def test_a_resumed_run_does_not_repeat_what_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(_invert, "Checkpoint", functools.partial(Checkpoint, every=0.0))
    model, clean = Stops(easy()), images()
    rule = {"steps": 30, "every": 3, "batch": 5, "generator": gen()}
    path = tmp_path / "a"
    monkeypatch.setattr(Stops, "left", 20)
    with pytest.raises(KeyboardInterrupt):
        invert_trigger(model, clean, checkpoint=path, **rule)
    monkeypatch.setattr(Stops, "left", 12)  # 18 of 30 steps are saved
    invert_trigger(model, clean, checkpoint=path, **rule | {"generator": gen()})
    assert Stops.left == 0
