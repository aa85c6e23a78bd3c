"""Scores of models whose scores are known by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bdcourse.attacks import BadNets
from bdcourse.data import quantize
from bdcourse.defenses import Inverted, detect
from bdcourse.metrics import Scores, Triggered, der, evaluate, logits, predict
from bdcourse.models import Normalize, build
from helpers import (
    ReadsPixel,
    Says,
    frozen,
    gen,
    labeled_images,
    message,
    random_images,
    same_state,
)

# White, in the last pixel: what ReadsPixel(fooled=...) looks for.
CORNER = {"patch": torch.ones(1, 1, 1), "at": (-1, -1)}


@pytest.fixture
def test_set():
    images = labeled_images(30)
    images.x[:, :, -1, -1] = 0
    return images


def test_perfect_benign_model(test_set):
    s = evaluate(ReadsPixel(), test_set, BadNets(target=3, **CORNER))
    assert s == Scores(1.0, 0.0, 1.0, n_clean=30, n_triggered=27)
    s = evaluate(ReadsPixel(), test_set)
    assert s == Scores(1.0, None, None, 30, 0)


def test_perfectly_backdoored_model(test_set):
    s = evaluate(ReadsPixel(fooled=3), test_set, BadNets(target=3, **CORNER))
    assert (s.acc, s.asr, s.ra, s.n_triggered) == (1.0, 1.0, 0.0, 27)


def test_wrong_backdoor_scores_neither_asr_nor_ra(test_set):
    s = evaluate(ReadsPixel(fooled=5), test_set, BadNets(target=3, **CORNER))
    # All triggered images become 5: right only for the three images of class 5.
    assert s.asr == 0 and s.ra == pytest.approx(3 / 27)


def test_constant_models(test_set):
    attack = BadNets(target=3, **CORNER)
    yes, no = (evaluate(Says(label), test_set, attack) for label in (3, 7))
    assert (yes.acc, yes.asr, yes.ra) == (0.1, 1.0, 0.0)
    # Class 7 has 3 of the 27 images that count.
    assert (no.acc, no.asr) == (0.1, 0.0) and no.ra == pytest.approx(3 / 27)


def test_all_to_all_counts_every_image(test_set):
    attack = BadNets(all_to_all=True, classes=10, **CORNER)
    s = evaluate(ReadsPixel(), test_set, attack)
    assert (s.asr, s.ra, s.n_triggered) == (0.0, 1.0, 30)
    s = evaluate(Says(0), test_set, attack)  # right for class 9 only
    assert (s.asr, s.ra) == (0.1, 0.1)

    class Next(ReadsPixel):
        def forward(self, x):
            return super().forward(x).roll(1, 1)

    s = evaluate(Next(), test_set, attack)
    assert (s.acc, s.asr, s.ra) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("fooled", [None, 3, 5])
def test_ready_images_score_like_the_attack_that_made_them(test_set, fooled):
    attack, model = BadNets(target=3, **CORNER), ReadsPixel(fooled=fooled)
    x = quantize(attack.trigger(test_set.pixels()))
    ready = Triggered(x, test_set.y, attack.goal(test_set.y))
    assert len(ready) == 30
    for batch in (7, 500):
        s = evaluate(model, test_set, ready, batch)
        assert s == evaluate(model, test_set, attack)
    half = evaluate(model, test_set, ready[ready.y < 5])
    assert (half.n_clean, half.n_triggered) == (30, 12)


def test_ready_images_have_goals_of_their_own(test_set):
    goal = torch.where(test_set.y < 5, 5, test_set.y)  # half of them are there already
    s = evaluate(Says(5), test_set, Triggered(test_set.x, test_set.y, goal))
    assert (s.asr, s.ra, s.n_triggered, s.cross) == (1.0, 0.0, 15, None)


def test_ready_images_that_do_not_fit(test_set):
    x, y = test_set.x, test_set.y
    for bad in ((x.float(), y, y), (x[0], y, y), (x, y[1:], y), (x, y, y.int())):
        with pytest.raises(ValueError, match="Triggered"):
            Triggered(*bad)
    for bad, word in (
        (Triggered(x[..., 1:], y, y), "both must be"),
        (Triggered(x, y, y + 1), "run from 0 to 10"),
        (Triggered(x, y - 1, y), "run from -1 to 9"),
        (Triggered(x, y, y), "no test image counts"),
    ):
        with pytest.raises(ValueError, match=word):
            evaluate(ReadsPixel(), test_set, bad)


def test_shares_are_exact_quotients():
    images = labeled_images(20, k=10)
    images.x[0, 0, 0, 0] = 100  # one of twenty is read wrongly
    assert evaluate(ReadsPixel(), images).acc == 0.95, "not 0.949999988"


def test_benign_asr_is_small():
    # Fact 8: errors spread over nine other classes give the target about 0.6 %.
    images = labeled_images(2000)
    wrong = torch.randperm(2000, generator=gen())[:100]
    other = (images.y[wrong] + torch.randint(1, 10, (100,), generator=gen(1))) % 10
    images.x[wrong, 0, 0, 0] = (other * 20).byte()
    s = evaluate(ReadsPixel(), images, BadNets(target=0))
    assert s.acc == 0.95
    assert s.asr == pytest.approx(0.05 / 9, abs=0.004)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_asr_and_ra_share_the_images(seed, all_to_all):
    images = labeled_images(25, 5)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
    model[1].weight.data = torch.randn(5, 192, generator=gen(seed))
    attack = BadNets(target=2, all_to_all=all_to_all, classes=5, **CORNER)
    s = evaluate(model, images, attack)
    assert s.asr + s.ra <= 1 + 1e-9
    x = attack.trigger(images.pixels())
    keep = images.y != 2 if not all_to_all else images.y >= 0
    said = model(x).argmax(1)[keep]
    assert s.asr == pytest.approx((said == attack.goal(images.y)[keep]).double().mean())
    assert s.ra == pytest.approx((said == images.y[keep]).double().mean())
    for batch in (1, 7):
        assert evaluate(model, images, attack, batch) == s


def test_mode_and_statistics_are_left_alone():
    model = build("resnet18", classes=10, width=4)
    model.train()
    model.layer2.eval()
    modes = {n: m.training for n, m in model.named_modules()}
    before = frozen(model)
    evaluate(model, labeled_images(12), BadNets())
    assert {n: m.training for n, m in model.named_modules()} == modes
    assert same_state(model, before)


def test_mode_is_restored_after_an_error():
    model = build("resnet18", width=4).train()
    with pytest.raises(ValueError):
        logits(model, torch.rand(2, 5, 8, 8))
    assert model.training and model.layer1[0].bn1.training


def test_uint8_and_float_agree():
    model = build("resnet18", width=4)
    images = labeled_images(9)
    a, b = logits(model, images.x), logits(model, images.pixels())
    assert torch.equal(a, b)
    assert a.shape == (9, 10) and not a.requires_grad
    assert torch.allclose(a, logits(model, images.x, batch=4), atol=1e-5)
    assert torch.equal(predict(model, images.x), a.argmax(1))
    model.eval()
    assert torch.allclose(a, model(images.pixels()), atol=1e-5)


@pytest.mark.parametrize(
    ("before", "after", "value"),
    [
        ((0.9, 1.0), (0.9, 1.0), 0.5),  # idle
        ((0.9, 1.0), (0.9, 0.0), 1.0),  # perfect
        ((0.9, 1.0), (0.0, 1.0), 0.05),  # accuracy lost, backdoor kept
        ((0.9, 1.0), (0.7, 0.6), 0.6),
        ((0.9, 0.5), (0.95, 0.8), 0.5),  # gains and rises do not count
    ],
)
def test_der(before, after, value):
    assert der(*(Scores(acc, asr, 0.0) for acc, asr in (before, after))) == (pytest.approx(value))


def test_text():
    assert str(Scores(0.5, n_clean=8)) == "ACC 50.0 % (n=8)"
    text = str(Scores(0.912, 0.5, 0.25, 10, 9))
    assert text == "ACC 91.2 % (n=10), ASR 50.0 %, RA 25.0 % (n=9)"
    assert Scores(**Scores(0.5, 0.1, 0.2, 3, 4).dict()) == Scores(0.5, 0.1, 0.2, 3, 4)


def test_refused():
    images = labeled_images(10)
    with pytest.raises(ValueError, match="no label"):
        evaluate(ReadsPixel(), images, BadNets(target=10))
    with pytest.raises(ValueError, match="no test image"):
        evaluate(ReadsPixel(), images[images.y == 3], BadNets(target=3))


def test_answers_that_are_no_numbers_are_not_class_0(test_set):
    model = build("resnet18", classes=10, width=2)
    model.conv1.weight.data[0, 0, 0, 0] = torch.nan
    for attack in (None, BadNets(target=0)):
        with pytest.raises(ValueError, match="not finite"):
            evaluate(model, test_set, attack)
    for call in (logits, predict):
        with pytest.raises(ValueError, match="30 of 30"):
            call(model, test_set.x)

    class OnlyTriggered(ReadsPixel):
        def forward(self, x):
            return super().forward(x) / (x[:, 0, -1, -1] != 1)[:, None]

    assert evaluate(OnlyTriggered(), test_set).acc == 1
    with pytest.raises(ValueError, match="not finite"):
        evaluate(OnlyTriggered(), test_set, BadNets(target=0, **CORNER))


@pytest.mark.parametrize("k", [9, 11])
def test_as_many_answers_as_classes(test_set, k):
    with pytest.raises(ValueError, match=f"{k} logits.*10 classes") as e:
        evaluate(Says(0, k), test_set)
    message(e)
    with pytest.raises(ValueError, match="two classes"):
        evaluate(Says(0, 1), test_set)


class Owned(nn.Module):
    """Somebody's network, which normalizes by itself: gray images would broadcast."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

    def forward(self, x):
        return self.fc(self.conv(x - self.mean).mean((2, 3)))


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("own", [False, True])
def test_other_channels_than_the_network_takes(channels, own):
    model = Owned() if own else build("resnet18", classes=10, width=2)
    images = random_images(10, 10, c=channels)
    for call in (logits, predict):
        with pytest.raises((ValueError, RuntimeError)) as e:
            call(model, images.x)
        assert "channel" in message(e) or f"({channels}, 8, 8)" in message(e)
    with pytest.raises((ValueError, RuntimeError)):
        evaluate(model, images)
    gray = nn.Sequential(Normalize((0.5,), (0.5,)), nn.Conv2d(1, 10, 8), nn.Flatten())
    evaluate(gray, random_images(10, 10, c=1))


def test_a_network_that_fails_says_so_in_a_sentence(test_set):
    model = nn.Sequential(nn.Flatten(), nn.Linear(7, 10))
    with pytest.raises(RuntimeError, match=r"\(3, 8, 8\).*RuntimeError") as e:
        evaluate(model, test_set)
    message(e)


def test_a_network_without_parameters(test_set):
    class Bare(nn.Module):
        def forward(self, x):
            return x[:, :1].flatten(1)[:, :10]

    assert logits(Bare(), test_set.x).shape == (30, 10)


def test_what_is_no_test_set(test_set):
    poisoned = BadNets(target=0).poison(test_set, 0.5, gen())
    for bad, word in (
        (poisoned, "Poisoned"),
        (test_set[:0], "at least 1"),
        (test_set.x, "must be Images"),
    ):
        with pytest.raises(ValueError, match=word) as e:
            evaluate(ReadsPixel(), bad)
        assert message(e).startswith("test must")


def test_scores_are_shares():
    for bad in (torch.nan, 37, -1, "0.5", None):
        with pytest.raises(ValueError, match="acc"):
            Scores(bad)
    for bad in (torch.nan, 1.2, -0.1):
        for name in ("asr", "ra", "cross"):
            with pytest.raises(ValueError, match=name):
                Scores(0.5, **{name: bad})
    with pytest.raises(ValueError, match="n_clean"):
        Scores(0.5, n_clean=-1)
    with pytest.raises(ValueError, match="before must be Scores with an ASR"):
        der(Scores(0.5), Scores(0.5, 1.0, 0.0))
    with pytest.raises(ValueError, match="after.*no ASR"):
        der(Scores(0.5, 1.0, 0.0), Scores(0.5))


@pytest.fixture
def no_float64(monkeypatch):
    """Apple's GPUs: float64 exists only for what `.cpu()` has brought home."""
    home, double, cpu, to = (
        set(),
        torch.Tensor.double,
        torch.Tensor.cpu,
        torch.Tensor.to,
    )

    def came_home(t):
        t = cpu(t).clone()
        home.add(id(t))
        kept.append(t)
        return t

    def refuse(t):
        if id(t) not in home and t.dtype != torch.float64:
            raise TypeError("MPS has no float64")
        return double(t)

    def moved(t, *args, **options):
        if torch.float64 in (*args, *options.values()):
            raise TypeError("MPS has no float64")
        return to(t, *args, **options)

    kept = []
    monkeypatch.setattr(torch.Tensor, "cpu", came_home)
    monkeypatch.setattr(torch.Tensor, "double", refuse)
    monkeypatch.setattr(torch.Tensor, "to", moved)


def test_shares_need_no_float64_on_the_device(test_set, no_float64):
    with pytest.raises(TypeError):
        test_set.x.double()
    s = evaluate(ReadsPixel(fooled=5), test_set, BadNets(target=3, **CORNER))
    assert (s.acc, s.asr, s.ra) == (1.0, 0.0, 3 / 27)
    masks = torch.full((5, 1, 4, 4), 0.5)
    masks[2] = 0.01
    masks[3] = 0.6
    found = detect(Inverted(masks, masks, torch.arange(5), torch.ones(5)))
    assert found.labels == (2,)
    assert found.index.dtype == torch.float64
