"""FIP: sequences, the other arms of the comparison, refusals, a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from bdcourse.analysis.curvature import gradient as slopes
from bdcourse.analysis.sharpness_aware import sam_step
from bdcourse.data import Images
from bdcourse.defenses import (
    FIP_ETA,
    FipDescent,
    SamDescent,
    fast_fip,
    fip,
    fip_all_pairs,
    fip_descend,
    fip_fake_trace,
    fip_released,
)
from bdcourse.defenses._fip import ReleasedDescent, trainable
from bdcourse.likelihoods import SOFTMAX, Softmax
from bdcourse.train import Augment
from fip_setup import Toy, agree, flat, grads, network, norm_net, small, smooth_net
from helpers import frozen, gen, message, random_images, same_state

# ---------------------------------------------------------------- sequences


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
    how = {"eta_f": 0.01, "batch": 6, "steps": 1}
    whole = f(Toy(), data, likelihood=Softmax(ignore), **how, generator=gen())
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


@pytest.mark.slow
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
    refused("must be (a whole number of )?at least", fip_released, **options)


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
    crops = {"eta_f": 1e-3, "augment": Augment(1)}
    refused("Augment crops images", model=Toy(), clean=tokens, **crops)


def test_sequences_are_refused_by_the_released_arm():
    refused("classes only", fip_released, model=Toy(), clean=sentences(0, 0))


def test_a_batch_of_one_beside_batchnorm_is_refused():
    refused("a batch of one needs", model=norm_net(), batch=1)
    refused("a batch of one needs", model=norm_net(), batch=1, norms="mixed")
    how = {"eta_f": FIP_ETA, "batch": 1, "steps": 1}
    fip(norm_net(), small()[0], norms="frozen", **how, generator=gen())
    fip(smooth_net(), small()[0], **how, generator=gen())


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
