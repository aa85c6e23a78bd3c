"""FMP: which maps go, what pruning and fine-tuning make of them, the controls."""

from __future__ import annotations

import inspect
import warnings

import pytest
import torch
from torch import nn

from bdcourse.checkpoint import Checkpoint
from bdcourse.defenses import (
    FMP_SETTINGS,
    FmpResponse,
    Purified,
    _base,
    _fmp,
    fmp,
    fmp_execution_order,
    fmp_random,
    fmp_released_order,
    fmp_repair,
    fmp_scales_of,
    fmp_scores,
    fmp_select,
)
from bdcourse.models import build
from bdcourse.surgery import pair_by_flow, without
from bdcourse.task import IMAGES
from fmp_setup import FAR, LateShortcut, equal, images, like_a_scoring, lists, network, one_by_one
from helpers import frozen, gen, message, random_images, same_state

# ---------------------------------------------------------------- choosing


def response(acc, loss=None, margin=None):
    n = len(acc)
    rows = (acc, loss or [0.0] * n, margin or [0.0] * n)
    return FmpResponse(*(torch.tensor(r, dtype=torch.float64) for r in rows))


def test_lowest_accuracy_then_highest_loss_then_first():
    r = response([0.9, 0.5, 0.5, 0.5, 0.2, 0.9], [0, 1, 3, 1, 0, 9], [5, 4, 3, 2, 1, 0.0])
    for p, want in ((6, [4]), (3, [2, 4]), (2, [1, 2, 4]), (1.5, [1, 2, 3, 4])):
        assert fmp_select({"a": r}, p)["a"].tolist() == want
    assert fmp_select({"a": r}, 2, by="margin")["a"].tolist() == [3, 4, 5]
    assert fmp_select({"a": r}, 1)["a"].tolist() == list(range(6))
    assert fmp_select({"a": r}, 7)["a"].tolist() == []


def test_least_and_z():
    found = {"a": response([0.1, 0.9, 0.9, 0.9]), "b": response([1.0] * 9)}
    assert lists(fmp_select(found, 64)) == {"a": [], "b": []}
    assert lists(fmp_select(found, 64, least=1)) == {"a": [0], "b": [0]}
    assert lists(fmp_select(found, 4, least=20)) == {"a": [0, 1, 2, 3], "b": [*range(9)]}
    # mean 0.7 and deviation 0.4: the first lies 1.5 deviations below, no other.
    assert lists(fmp_select(found, z=1.49)) == {"a": [0], "b": []}
    assert lists(fmp_select(found, z=1.51)) == {"a": [], "b": []}
    assert lists(fmp_select({"a": response([0.1])}, z=1)) == {"a": []}


def test_select_refuses():
    cases = [
        ({"p": 0.5}, "p must be at least 1"),
        ({"p": float("nan")}, "p must be at least 1"),
        ({"by": "loss"}, "unknown score 'loss'"),
        ({"least": -1}, "least must be at least 0"),
        ({"z": -1.0}, "z must be at least 0"),
    ]
    for options, text in cases:
        with pytest.raises(ValueError, match=text) as e:
            fmp_select({"a": response([1.0])}, **options)
        message(e)


# ---------------------------------------------------------------- pruning


@pytest.fixture
def quick(monkeypatch):
    """FMP whose scores are made up: for tests of what it does with them."""

    def made_up(model, *_):
        return like_a_scoring(model), Checkpoint(None, {})

    monkeypatch.setattr(_fmp, "_score", made_up)


@pytest.mark.parametrize(("name", "pairs"), [("resnet18", 20), ("preact_resnet18", 9)])
def test_pruning_zeroes_filters_and_their_own_scales(name, pairs, quick):
    model = network(name)
    before = frozen(model)
    done = fmp(model, images(), p=4, epochs=0, generator=gen())
    assert isinstance(done, Purified) and same_state(model, before)
    assert lists(done.pruned) == lists(fmp_select(like_a_scoring(model), 4))
    assert done.count == 5 * (1 + 2 + 4 + 8) and len(done.log["scales"]) == pairs
    assert done.log["history"] == [] and done.log["revived"] == 0
    assert not done.model.training and done.seconds > 0
    rows = {f"{k}.weight": v for k, v in {**done.pruned, **done.log["scales"]}.items()}
    for key, now in done.model.state_dict().items():
        want = before[key].clone()
        if key in rows:
            want[rows[key]] = 0
        assert torch.equal(now, want), key
    own = fmp_scales_of(model, done.pruned)
    assert lists(own) == lists(done.log["scales"])
    assert own["layer1.0.bn1" if name == "resnet18" else "layer1.0.bn2"].equal(
        done.pruned["layer1.0.conv1"]
    )


def test_a_channel_that_is_off_emits_its_shift(quick):
    model = network()
    off = fmp_repair(model, images(), {"conv1": torch.tensor([2])}, epochs=0, generator=gen())
    assert (off.model.bn1.weight == 0).tolist() == [False, False, True, False]
    out = off.model.bn1(off.model.conv1(torch.rand(2, 3, 8, 8)))[:, 2]
    assert torch.equal(out, model.bn1.bias[2].expand_as(out))


@pytest.mark.slow
def test_whole_defense(tmp_path):
    model, data = network("preact_resnet18"), images(6, side=8)
    model.layer1.train()
    modes = [m.training for m in model.modules()]
    before, digest = frozen(model), data.digest()
    options = {"p": 4, "epochs": 2, "lr": 0.1, "batch": 3, **FAR}
    one, two = (fmp(model, data, generator=gen(4), **options) for _ in range(2))
    assert same_state(one.model, frozen(two.model))
    assert lists(one.pruned) == lists(two.pruned)
    assert same_state(model, before) and data.digest() == digest
    assert [m.training for m in model.modules()] == modes
    assert all(q.grad is None for q in model.parameters())
    assert one.log["p"] == 4 and one.log["epsilon"] == 0.1 and one.log["start"] == 0.05
    assert lists(one.pruned) == lists(fmp_select(one.log["scores"], 4))
    found = fmp_scores(model, data, generator=gen(4), **FAR)
    equal(one.log["scores"], found, rtol=0, atol=0)
    assert [r["epoch"] for r in one.log["history"]] == [1, 2]
    assert {"loss", "acc", "revived"} <= set(one.log["history"][0])
    assert not same_state(one.model, frozen(without(model, one.pruned)))


# ---------------------------------------------------------------- fine-tuning


def tuned(model, channels, **options):
    options = {"epochs": 2, "lr": 0.1, "batch": 8, "generator": gen(1), **options}
    return fmp_repair(model, images(24, side=8), channels, **options)


def some(model):
    return fmp_select(like_a_scoring(model), 4)


@pytest.mark.slow
def test_filters_without_an_own_batchnorm_grow_back():
    model = network("preact_resnet18")
    channels = some(model)
    free, still = (tuned(model, channels, hold_mask=h) for h in (False, True))
    # The stem's map feeds a BatchNorm of its own and, past it, the first sum as well.
    own = {p.conv for p in pair_by_flow(model).pairs} - {"conv1"}
    alone = {k: v for k, v in channels.items() if k not in own}
    assert len(alone) == 12
    assert free.log["revived"] == sum(map(len, alone.values())) > 0
    assert [r["revived"] for r in free.log["history"]] == [free.log["revived"]] * 2
    assert still.log["revived"] == 0 and still.log["history"][1]["revived"] == 0
    assert not same_state(still.model, frozen(without(model, channels)))
    for name in channels:
        assert torch.isfinite(still.model.get_submodule(name).weight).all()
    back = [k for k, v in channels.items() if off(free.model, k, v).any()]
    assert set(back) == set(alone), "and those with one do not"


def off(model, name, which):
    return (model.get_submodule(name).weight[which] != 0).flatten(1).any(1)


@pytest.mark.slow
def test_a_filter_and_its_own_scale_stay_dead_without_being_held():
    model = network()
    channels = some(model)
    free, still = (tuned(model, channels, hold_mask=h) for h in (False, True))
    assert free.log["revived"] == 0
    assert same_state(free.model, frozen(still.model)), "holding changes nothing here"
    moved = 0
    for name, which in free.log["scales"].items():
        bn, old = free.model.get_submodule(name), model.get_submodule(name)
        assert (bn.weight[which] == 0).all()
        moved += int((bn.bias[which] != old.bias[which]).sum())
    assert moved > 40, "the shift still trains"


@pytest.mark.slow
def test_scales_alone_are_held_too():
    # With weight decay and a bias in play nothing that was zeroed may move.
    model = network()
    held = tuned(model, some(model), hold_mask=True, weight_decay=0.1)
    for name, which in {**held.pruned, **held.log["scales"]}.items():
        assert (held.model.get_submodule(name).weight[which] == 0).all()


def test_defaults_of_fine_tuning(monkeypatch):
    seen = {}

    def fit(model, data, **options):
        seen.update(options)
        raise InterruptedError

    monkeypatch.setattr(_base, "fit", fit)
    with pytest.raises(InterruptedError):
        fmp_repair(network(), images(), {}, generator=gen())
    want = {"epochs": 10, "lr": 0.01, "weight_decay": 0.0, "warmup": 0.0}
    assert {k: seen[k] for k in want} == want
    with pytest.raises(InterruptedError):
        fmp_repair(network(), images(), {}, generator=gen(), weight_decay=0.1, momentum=0.5)
    assert seen["weight_decay"] == 0.1 and seen["momentum"] == 0.5
    assert FMP_SETTINGS["port"] == {"epsilon": 1 / 255, "start": 1 / 255}
    assert FMP_SETTINGS["release"] == {"epsilon": 0.06, "start": 0.02}
    defaults = inspect.signature(fmp).parameters
    # The task's own step, which of pixels is the port's.
    assert all(defaults[k].default is None for k in FMP_SETTINGS["port"])
    assert {IMAGES.step} == set(FMP_SETTINGS["port"].values())
    assert defaults["p"].default == 64 and not defaults["hold_mask"].default
    assert not defaults["released"].default and defaults["epochs"].default == 10


@pytest.mark.slow
def test_each_epoch_joins_the_history():
    model = network()
    done = tuned(model, some(model), each_epoch=lambda m: {"training": m.training})
    assert [r["training"] for r in done.log["history"]] == [False, False]
    assert "revived" in done.log["history"][0]


@pytest.mark.slow
def test_fine_tuning_goes_on_after_a_stop(tmp_path, quick):
    model, data = network(), images(6, side=8)
    options = {"p": 4, "epochs": 3, "batch": 3}
    whole = fmp(model, data, generator=gen(), **options)
    path, seen = tmp_path / "f.safetensors", []

    def stop(m):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        fmp(model, data, generator=gen(), checkpoint=path, each_epoch=stop, **options)
    assert (tmp_path / "f.safetensors.tune").exists()
    again = fmp(model, data, generator=gen(), checkpoint=path, **options)
    assert same_state(again.model, frozen(whole.model))
    assert len(again.log["history"]) == 3 and list(tmp_path.iterdir()) == []


def test_scores_outlive_a_stop_in_fine_tuning(tmp_path, monkeypatch):
    model, data = one_by_one([1.0, 2.0, 3.0, 4.0], c=3), images()
    path = tmp_path / "f.safetensors"
    real, fits, pulls = _base.fit, [], []
    original = _fmp.gradients

    def fit(*args, **options):
        fits.append(1)
        if len(fits) == 1:
            raise KeyboardInterrupt
        return real(*args, **options)

    def counting(*args):
        pulls.append(1)
        return original(*args)

    monkeypatch.setattr(_base, "fit", fit)
    monkeypatch.setattr(_fmp, "gradients", counting)
    options = {"p": 2, "epochs": 1, "checkpoint": path}
    with pytest.raises(KeyboardInterrupt):
        fmp(model, data, generator=gen(), **options)
    assert path.exists() and pulls == [1]
    fmp(model, data, generator=gen(), **options)
    assert pulls == [1] and list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the release


@pytest.mark.slow
def test_released_order_gives_layers_the_lists_of_others(quick):
    model = network("preact_resnet18")
    ours, theirs = (
        fmp(model, images(), p=4, epochs=0, released=r, generator=gen()) for r in (False, True)
    )
    runs = fmp_execution_order(model)
    defined = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    for here, there in zip(defined, runs, strict=True):
        assert torch.equal(theirs.pruned[here], ours.pruned[there])
    assert theirs.count == ours.count
    changed = [k for k in defined if not torch.equal(theirs.pruned[k], ours.pruned[k])]
    assert 5 < len(changed) <= 9
    assert len(theirs.log["scales"]) == 16, "sums included"
    assert theirs.log["scales"]["layer2.0.bn1"].equal(theirs.pruned["layer1.1.conv2"])
    plain = network()
    a, b = (fmp(plain, images(), p=4, epochs=0, released=r, generator=gen()) for r in (False, True))
    assert same_state(a.model, frozen(b.model)), "right where the orders agree"


def test_released_order_of_other_widths_is_refused():
    model = LateShortcut()
    with pytest.raises(ValueError, match="leave out released") as e:
        fmp(model, images(), released=True, generator=gen())
    assert "second the list of first" in message(e)
    chosen = {"first": torch.tensor([1]), "second": torch.tensor([7])}
    with pytest.raises(ValueError, match="8 maps|4 maps"):
        fmp_released_order(model, chosen, ["first", "second"])


# ---------------------------------------------------------------- the control


@pytest.mark.slow
def test_random_control_prunes_as_fmp_does():
    model = network()
    like = some(model)
    before = frozen(model)
    options = {"generator": gen(3), "epochs": 0}
    done = fmp_random(model, images(), like, **options)
    assert same_state(model, before)
    assert {k: len(v) for k, v in done.pruned.items()} == {k: len(v) for k, v in like.items()}
    assert all(len(v.unique()) == len(v) for v in done.pruned.values())
    assert lists(done.pruned) != lists(like)
    for name, which in {**done.pruned, **done.log["scales"]}.items():
        assert (done.model.get_submodule(name).weight[which] == 0).all()
    assert len(done.log["scales"]) == 20
    again = fmp_random(model, images(), like, generator=gen(3), epochs=0)
    assert lists(again.pruned) == lists(done.pruned)
    other = fmp_random(model, images(), like, generator=gen(4), epochs=0)
    assert lists(other.pruned) != lists(done.pruned)
    trained = fmp_random(model, images(), like, generator=gen(3), epochs=1, batch=4)
    assert len(trained.log["history"]) == 1 and trained.log["revived"] == 0


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"epsilon": 0.0}, "epsilon must be above 0"),
        ({"epsilon": float("nan")}, "epsilon must be above 0"),
        ({"start": 0.0}, "start must be above 0"),
        ({"start": -0.1}, "start must be above 0"),
        ({"n": 0}, "n must be a whole number of at least 1"),
        ({"starts": 0}, "starts must be a whole number of at least 1"),
        ({"chunk": 0}, "chunk must be a whole number of at least 1"),
        ({"p": 0}, "p must be at least 1"),
        ({"by": "z"}, "unknown score"),
        ({"epochs": -1}, "epochs must be at least 0"),
    ],
)
def test_bad_numbers_are_refused(options, text):
    model = one_by_one([1.0], c=3).train()
    with pytest.raises(ValueError, match=text) as e:
        fmp(model, images(), generator=gen(), **options)
    message(e)
    assert model.training


def test_bad_data_and_models_are_refused():
    model = one_by_one([1.0], c=3)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    cases = [
        (model, images()[:0], {}, "must hold at least 1 images"),
        (
            model,
            random_images(8, k=5),
            {},
            "tells 3 classes apart, but the images have",
        ),
        (model, images(c=1), {}, r"does not accept images of shape \(1, 16, 16\)"),
        (flat, images(), {}, "has none that runs"),
        (model, images(), {"layers": ["conv9"]}, "runs no convolution 'conv9'"),
        (model, images(), {"layers": ["3"]}, "choose from 0"),
        (model, images(), {"layers": []}, "names no layer"),
    ]
    for net, data, options, text in cases:
        with pytest.raises(ValueError, match=text) as e:
            fmp_scores(net, data, generator=gen(), **options)
        message(e)


def test_nothing_to_prune_is_said_loudly():
    model = one_by_one([1.0, 2.0], c=3)
    with pytest.warns(UserWarning, match="prunes nothing"):
        done = fmp(model, images(), epochs=0, generator=gen())
    assert done.count == 0 and same_state(done.model, frozen(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fmp(model, images(), epochs=0, least=1, generator=gen()).count == 1


def test_no_signature_knows_the_other_side():
    for f in (fmp, fmp_random, fmp_scores, fmp_repair):
        text = str(inspect.signature(f))
        for word in ("Attack", "Poisoned", "attack", "trigger", "target", "poison"):
            assert word not in text, f"{f.__name__}{text}"


def test_a_transformer_is_told_that_little_of_it_is_seen():
    model, images = build("vit", classes=3, width=8), random_images(6, side=32)
    with pytest.warns(UserWarning, match="only 1.conv_proj is a conv"):
        fmp(model.eval(), images, p=4, epochs=0, n=6, generator=gen())
