"""The training loop, and its learning rates."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bdcourse.attacks import BadNets, Poisoned
from bdcourse.hooks import Hook
from bdcourse.train import Augment, History, linear, one_cycle
from bdcourse.victims import initialized
from helpers import frozen, gen, message, random_images, same_state
from training import Linear, run, separable

# ---------------------------------------------------------------- learning rates


@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("total", [10, 100])
def test_linear(total, warmup):
    rates = torch.tensor([linear(s, total, warmup) for s in range(total)])
    top = max(round(warmup * total - 1), 0)
    assert float(rates.max()) == rates[top] == 1
    if top:
        assert float(rates[0]) == pytest.approx(0.2)
        assert rates[: top + 1].diff().std(correction=0) < 1e-6, "straight up"
    if top < total - 1:
        assert float(rates[-1]) == pytest.approx(1e-5)
        assert rates[top:].diff().std(correction=0) < 1e-6, "and straight down"
    assert rates.min() > 0 and linear(0, 1, warmup) == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 300), st.floats(0, 1))
def test_one_cycle(total, warmup):
    rates = [one_cycle(s, total, warmup) for s in range(total)]
    assert all(0 < r <= 1 for r in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert abs(top - (warmup * total - 1)) <= 1
    if total > 2 and 1 <= warmup * total <= total - 1:
        assert rates[-1] == pytest.approx(1e-5)


def test_one_cycle_is_torch_s():
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        opt, 1.0, 40, pct_start=0.2, cycle_momentum=False, div_factor=10
    )
    for step in range(40):
        assert opt.param_groups[0]["lr"] == pytest.approx(one_cycle(step, 40, 0.2))
        opt.step()
        rate.step()


# ---------------------------------------------------------------- fit


@pytest.mark.slow
def test_learns_a_separable_set():
    arch = {"name": "resnet18", "classes": 3, "width": 4}
    model, data = initialized(arch, gen()), separable()
    history = run(model, data, epochs=8, batch=16, lr=0.05)
    assert history["loss"][-1] < history["loss"][0] / 2
    assert history["acc"][-1] > 0.9
    assert not model.training and not history.interrupted
    assert history["epoch"] == list(range(1, 9))
    assert history.seconds == sum(history["seconds"])


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
def test_same_generator_same_weights(bf16):
    from bdcourse.victims import initialized

    states = []
    for seed in (0, 0, 1):
        model = initialized({"name": "resnet18", "classes": 3, "width": 4}, gen())
        torch.manual_seed(len(states))  # the global generator must not matter
        run(model, separable(48), generator=gen(seed), augment=Augment(1, True), bf16=bf16)
        states.append(frozen(model))
        assert all(v.isfinite().all() for v in states[-1].values())
        assert all(p.dtype == torch.float32 for p in model.parameters())
        last = model
    assert all(torch.equal(states[0][k], v) for k, v in states[1].items())
    assert not same_state(last, states[0])


def test_is_plain_sgd():
    data, model = separable(16), Linear()
    run(model, data, epochs=3, batch=16, lr=0.1, generator=gen(5), warmup=0.0)
    mirror = Linear().train()
    opt = torch.optim.SGD(mirror.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    for step in range(3):
        opt.param_groups[0]["lr"] = 0.1 * one_cycle(step, 3, 0.0)
        opt.zero_grad()
        F.cross_entropy(mirror(data.pixels()), data.y).backward()
        opt.step()
    assert torch.allclose(model.linear.weight, mirror.linear.weight, atol=1e-6)
    assert model.linear.weight.abs().max() > 0.01


class Same(Hook):
    pass


def test_smoothing_shifts_and_a_linear_schedule():
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.BatchNorm2d(3), nn.Linear(192, 3)
            nn.init.normal_(self.linear.weight, generator=gen())
            nn.init.zeros_(self.linear.bias)

        def forward(self, x):
            return self.linear(self.norm(x).flatten(1))

    data, model, mirror = separable(16), Norm(), Norm().train()
    run(
        model,
        data,
        epochs=4,
        batch=16,
        lr=0.01,
        momentum=0.8,
        weight_decay=0.1,
        warmup=0.5,
        schedule="linear",
        smoothing=0.3,
        shifts=8.0,
    )
    opt = torch.optim.SGD(
        [
            {"params": mirror.linear.parameters()},
            {"params": [mirror.norm.weight], "weight_decay": 0},
            {"params": [mirror.norm.bias], "weight_decay": 0.1 / 8},
        ],
        0.01,
        0.8,
        weight_decay=0.1,
        nesterov=True,
    )
    other = Norm()
    steered = {"hook": lambda *_: Same(), "lr": 0.01, "momentum": 0.8}
    run(
        other,
        data,
        epochs=4,
        batch=16,
        weight_decay=0.1,
        warmup=0.5,
        shifts=8.0,
        schedule="linear",
        smoothing=0.3,
        **steered,
    )
    assert same_state(other, frozen(model)), "smoothed where the loss is the usual one"
    y = 0.7 * F.one_hot(data.y, 3) + 0.1
    for rate in (0.2, 1.0, 0.500005, 1e-5):
        for group, times in zip(opt.param_groups, (1, 1, 8), strict=True):
            group["lr"] = 0.01 * times * rate
        opt.zero_grad()
        logits = mirror(data.pixels())
        (-(y * logits.log_softmax(1)).sum(1).mean()).backward()
        opt.step()
    for (n, a), b in zip(model.named_parameters(), mirror.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6), n
    assert model.norm.bias.abs().max() > 1e-3


class Sizes(nn.Module):
    """A network for images of any size, which keeps the batches that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen.append(x.detach().clone())
        return self.linear(self.conv(x).amax((2, 3)))


@pytest.mark.parametrize(("shrink", "steps"), [(0.0, 0), (0.5, 4), (0.6, 5), (1.0, 8)])
def test_the_first_steps_see_smaller_images(shrink, steps):
    images, model, plain = random_images(32), Sizes(), Sizes()
    run(model, images, epochs=2, shrink=shrink, lr=0.0)
    run(plain, images, epochs=2, lr=0.0)
    sizes = [tuple(x.shape[2:]) for x in model.seen]
    assert sizes == [(6, 6)] * steps + [(8, 8)] * (8 - steps)
    for small, x in zip(model.seen, plain.seen, strict=True):
        if len(small[0, 0]) == 8:
            assert torch.equal(small, x)
        else:  # without aliasing every pixel counts, and the mean stays about the same
            assert (small.mean((2, 3)) - x.mean((2, 3))).abs().max() < 0.06
            assert 0 <= small.min() and small.max() <= 1 and small.std() < x.std()


def test_data_is_not_modified():
    data = separable(30)
    poisoned = BadNets(target=1).poison(data, 0.3, gen(), stamp="after")
    before, role = poisoned.digest(), poisoned.role.clone()
    run(Linear(), poisoned, augment=Augment(2, True), epochs=2)
    assert poisoned.digest() == before and torch.equal(poisoned.role, role)
    run(Linear(), data, epochs=2)
    assert data.digest() == separable(30).digest()


def test_batches_cover_an_epoch_and_drop_the_rest():
    data = random_images(22)
    model = Linear()
    run(model, data, epochs=2, batch=5)
    assert [len(x) for x in model.seen] == [5] * 8
    pixels = data.pixels().flatten(1)
    dropped = []
    for epoch in (model.seen[:4], model.seen[4:]):
        rows = torch.cat(epoch).flatten(1)
        which = [int((pixels == r).all(1).nonzero()) for r in rows]
        assert len(set(which)) == 20, "no image twice in an epoch"
        dropped.append(set(range(22)) - set(which))
    assert dropped[0] != dropped[1], "other images are dropped each time"


@pytest.mark.parametrize(
    ("n", "batch", "epochs", "steps", "rows"),
    [
        (22, 5, 0.5, 2, 1),
        (22, 5, 1.5, 6, 2),
        (22, 5, 0.01, 1, 1),
        (7, 100, 2, 2, 2),
        # One fifth of these step counts is one step: OneCycleLR divided by zero here.
        (10, 2, 1, 5, 1),
        (2, 2, 5, 5, 5),
    ],
)
def test_numbers_of_steps(n, batch, epochs, steps, rows):
    model = Linear()
    history = run(model, random_images(n), batch=batch, epochs=epochs)
    assert len(model.seen) == steps and len(history.epochs) == rows
    assert all(math.isfinite(loss) for loss in history["loss"])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"batch": 1}, "batch"),
        ({"batch": 0}, "batch"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": -1}, "epochs"),
        ({"n": 1}, "1 images"),
    ],
)
def test_wrong_arguments(options, word):
    data = random_images(options.pop("n", 12))
    model = Linear()
    before = frozen(model)
    with pytest.raises(ValueError) as e:
        run(model, data, **options)
    assert word in message(e)
    assert same_state(model, before)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"lr": math.nan}, "lr must be a finite number"),
        ({"lr": math.inf}, "lr must be a finite number"),
        ({"lr": -0.1}, "lr must be"),
        ({"weight_decay": 1e6}, "must stay below 1"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"momentum": 1.0}, "momentum must lie below 1"),
        ({"warmup": 1.1}, "warmup must be"),
        ({"schedule": "step"}, "schedule must be one of 'cosine', 'linear'"),
        ({"smoothing": 1.5}, "smoothing must be"),
        ({"shifts": 0}, "shifts must be"),
        ({"shrink": -0.1}, "shrink must be"),
        ({"augment": 2}, "augment must be an Augment"),
        ({"generator": 0}, "generator must be a torch.Generator"),
        ({"bf16": 1}, "bf16 must be True or False"),
    ],
)
def test_settings_that_no_training_survives(options, word):
    model = Linear()
    before = frozen(model)
    with pytest.raises(ValueError) as e:
        run(model, random_images(), **options)
    assert word in message(e) and same_state(model, before)


def test_a_training_that_diverges_says_so(tmp_path):
    model, calls = Linear(), []
    path = tmp_path / "a"
    with pytest.raises(RuntimeError) as e:
        run(
            model,
            separable(),
            lr=1e38,
            weight_decay=0,
            epochs=5,
            checkpoint=path,
            each_epoch=lambda m: calls.append(1) or {},
        )
    assert "diverged in epoch 1" in message(e) and not calls
    assert not path.exists(), "nothing of it is kept"
    with pytest.raises(ValueError) as e:
        run(model, separable())
    assert "not finite numbers" in message(e)


def test_statistics_that_run_away_count_as_divergence():
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.BatchNorm1d(192), nn.Linear(192, 3)

        def forward(self, x):
            self.norm(x.flatten(1) * 1e30)  # its variance is infinite, the loss is not
            return self.linear(x.flatten(1))

    with pytest.raises(RuntimeError, match="diverged"):
        run(Norm(), separable())


class Answers(nn.Module):
    """Says whatever `what` makes of right logits, behind a BatchNorm."""

    def __init__(self, what, k=3):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm2d(3), nn.Linear(192, k)
        self.what = what

    def forward(self, x):
        return self.what(self.linear(self.norm(x).flatten(1)))


@pytest.mark.parametrize(
    ("model", "word"),
    [
        (Answers(lambda z: z, 2), "the labels run to 2, but the model has 2 outputs"),
        (Answers(lambda z: (z, z)), "float logits"),
        (Answers(lambda z: z[None]), "float logits"),
        (Answers(lambda z: z[:4]), "float logits"),
        (Answers(lambda z: z.argmax(1)), "float logits"),
        (Answers(lambda z: z.long()), "float logits"),
        (Answers(lambda z: z[:, :1]), "the labels run to 2, but the model has 1"),
    ],
)
def test_a_model_that_gives_no_logits_for_all_labels(model, word):
    before = frozen(model)
    with pytest.raises(ValueError) as e:
        run(model, random_images())
    assert word in message(e)
    assert same_state(model, before), "its statistics were put back"


def test_images_that_the_model_cannot_read():
    gray, color = random_images(c=1), random_images()
    for model, images in (
        (Linear(), gray),
        (nn.Conv2d(5, 2, 1), color),
        (nn.Linear(3, 3), color),
    ):
        before = frozen(model)
        with pytest.raises((RuntimeError, ValueError)) as e:
            run(model, images)
        message(e)
        assert same_state(model, before)
    net = initialized({"name": "resnet18", "classes": 3, "width": 8}, gen())
    for c in (1, 4):
        with pytest.raises(ValueError) as e:
            run(net, random_images(c=c))
        assert "of 3 channels" in message(e), "and no broadcast"


def test_a_frozen_model_cannot_train():
    with pytest.raises(ValueError) as e:
        run(Linear().requires_grad_(False), random_images())
    assert "no weight that can learn" in message(e)


# ---------------------------------------------------------------- each epoch, Ctrl-C


def test_each_epoch_joins_the_history():
    modes = []

    def look(model):
        modes.append(model.training)
        return {"mine": 7.0}

    model = Linear()
    model.drop = nn.Dropout()
    history = run(model, random_images(), epochs=3, each_epoch=look)
    assert history["mine"] == [7.0] * 3 and modes == [False] * 3
    assert not model.training and len(model.seen) == 9, "training mode came back"


def stop(*_, **__):
    raise KeyboardInterrupt


def test_ctrl_c_in_each_epoch_keeps_weights_and_epoch(capsys):
    model = Linear()
    history = run(model, separable(), each_epoch=stop, epochs=5)
    assert history.interrupted and not model.training
    assert model.linear.weight.abs().max() > 0
    assert len(history.epochs) == 1, "the epoch was complete"
    assert capsys.readouterr().out == (
        "stopped after 12 of 60 steps; the model keeps what it learned.\n"
    )


@pytest.mark.parametrize("where", ["model", "loss"])
def test_ctrl_c_inside_a_batch(where, monkeypatch):
    model, calls, real = Linear(), [], F.cross_entropy

    def third(*args, **named):
        calls.append(frozen(model))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **named) if where == "loss" else None

    if where == "loss":
        monkeypatch.setattr(F, "cross_entropy", third)
    else:
        model.register_forward_pre_hook(third)
    history = run(model, separable(), epochs=2)
    assert history.interrupted and history.epochs == [] and history.seconds == 0
    assert same_state(model, calls[-1]), "the weights of the last whole step"
    assert model.linear.weight.abs().max() > 0
    assert not model.training


def test_other_errors_are_not_swallowed():
    with pytest.raises(RuntimeError):
        run(nn.Conv2d(5, 2, 1), random_images())


# ---------------------------------------------------------------- poisoned sets


@pytest.mark.parametrize("flip", [False, True])
def test_late_stamping_hits_poison_rows_only_and_last(flip):
    clean = random_images(40)
    clean.x.clamp_(max=200)  # pure white is then the trigger's alone
    clean.x[:, 0, 4, 4] = torch.arange(40).to(torch.uint8)  # who is who
    attack = BadNets(patch=torch.ones(1, 2, 2), at=(0, 6), target=1)
    data = attack.poison(clean, 0.25, gen(), stamp="after")
    model = Linear()
    run(model, data, augment=Augment(2, flip), epochs=2)
    seen = torch.cat(model.seen)
    white = (seen == 1).all(1)  # (n, 8, 8)
    stamped = white.flatten(1).any(1)
    place = torch.zeros(8, 8, dtype=torch.bool)
    place[0:2, 6:8] = True
    assert (white[stamped] == place).all(), "neither moved, cut nor mirrored"
    assert stamped.sum() == 20, "ten of forty, twice"
    # And it is the right ten: the mark is somewhere in the crop's red channel.
    whole = Linear()
    run(whole, data, epochs=1)  # no augmentation: the mark is where it was
    seen = torch.cat(whole.seen)
    who = (seen[:, 0, 4, 4] * 255).round().long()
    stamped = (seen == 1).all(1).flatten(1).any(1)
    assert torch.equal(stamped, data.role[who] == 1)


def test_early_stamps_move_with_the_crop():
    clean = random_images(40)
    clean.x.clamp_(max=200)
    attack = BadNets(patch=torch.ones(1, 2, 2), at=(0, 6), target=1)
    model = Linear()
    run(model, attack.poison(clean, 1, gen()), augment=Augment(2), batch=40)
    white = (torch.cat(model.seen) == 1).all(1)
    assert len(white.flatten(1).unique(dim=0)) > 5


def test_role_accuracies_by_hand():
    # A model that always says 0 and cannot learn: shares follow from the labels.
    images = random_images(12)
    y = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 1, 2])
    role = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]).to(torch.int8)
    data = Poisoned(images.x, y, images.classes, role)

    class Zero(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return torch.eye(3)[0].expand(len(x), 3) + 0 * self.w

    history = run(Zero(), data, batch=12)
    row = history.epochs[0]
    assert row["clean"] == pytest.approx(3 / 5)
    assert row["poison"] == pytest.approx(1 / 4)
    assert row["cover"] == pytest.approx(1 / 3)
    assert row["acc"] == pytest.approx(5 / 12)
    e = math.e
    right, wrong = math.log((e + 2) / e), math.log(e + 2)
    assert row["loss"] == pytest.approx((5 * right + 7 * wrong) / 12)
    only = run(Zero(), data[role == 1], batch=4).epochs[0]
    assert "clean" not in only and "cover" not in only and only["poison"] == 0.25
    assert "clean" not in run(Zero(), images, batch=12).epochs[0]


def test_one_line_an_epoch(capsys):
    run(Linear(), separable(), epochs=2, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch  1/2  loss ") and "train" in lines[0]
    data = BadNets(target=1).poison(separable(), 0.3, gen())
    run(Linear(), data, verbose=True, each_epoch=lambda m: {"ASR": 0.5})
    line = capsys.readouterr().out
    assert "clean" in line and "poison" in line and "ASR  50.0%" in line
    assert "train" not in line


def test_only_shares_are_printed_in_percent(capsys):
    shares = {"acc": 0.25, "ra": 0.125, "Cross": 1.0}
    others = {"sharpness": 1.23456, "distance a": 0.00120, "n": 7, "far": 123.4}
    run(Linear(), separable(), verbose=True, each_epoch=lambda m: shares | others)
    line = capsys.readouterr().out
    assert "train  25.0%" in line and "ra  12.5%  Cross 100.0%" in line
    assert "sharpness 1.23  distance a 0.0012  far 123  " in line
    assert "  n " not in line and line.count("%") == 3


def test_history():
    h = History([{"loss": 2.0, "seconds": 1.5}, {"loss": 1.0, "seconds": 0.5}])
    assert h["loss"] == [2.0, 1.0] and h.seconds == 2.0
