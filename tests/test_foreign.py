"""Weights and pairs of others: read like the originals compute, refused when odd."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bdcourse import foreign
from bdcourse.data import Images
from bdcourse.metrics import evaluate, predict
from bdcourse.models import build
from foreign_models import K, Plain, made, refused, same_answers, saved
from helpers import frozen, random_images, same_state

# ---------------------------------------------------------------- weights


@pytest.mark.parametrize("kind", ["resnet", "preact", "torchvision", "vgg"])
def test_foreign_names_give_the_same_logits(kind, tmp_path):
    other = made(kind)
    model = foreign.weights(saved(tmp_path, other.state_dict()))
    assert not model.training and same_answers(model, other)
    assert not same_answers(model, made(kind, seed=1))
    plain = ((0.0,) * 3, (1.0,) * 3)
    assert not same_answers(model, other, *plain)
    model = foreign.weights(tmp_path / "model.pt", mean=plain[0], std=plain[1])
    assert same_answers(model, other, *plain)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
@pytest.mark.parametrize("key", [None, "state_dict", "model", "net", "twice"])
def test_wrapped_weights(prefix, key, tmp_path):
    other = made("preact")
    state = OrderedDict((prefix + k, v) for k, v in other.state_dict().items())
    thing = {key: state, "epoch": 3, "acc": np.float64(0.9)} if key else state
    thing = {"net": {"state_dict": state}, "epoch": 3} if key == "twice" else thing
    assert same_answers(foreign.weights(saved(tmp_path, thing, "w.pth")), other)


def test_safetensors_and_halves(tmp_path):
    other, path = made("resnet"), tmp_path / "w.safetensors"
    save_file(other.state_dict(), path)
    assert same_answers(foreign.weights(path), other)
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in other.state_dict().items()}, path
    )
    model = foreign.weights(path)
    assert model.linear.weight.dtype == torch.float32
    path.write_bytes(path.read_bytes()[:5000])
    refused(ValueError, lambda: foreign.weights(path), "w.safetensors", "cut short")


def test_weights_without_counted_batches(tmp_path):
    state = made("preact").state_dict()
    state = {k: v for k, v in state.items() if "num_batches" not in k}
    assert same_answers(foreign.weights(saved(tmp_path, state)), made("preact"))


def test_another_architecture_of_ones_own(tmp_path):
    other = made("odd")
    state = {f"module.{k}": v for k, v in other.state_dict().items()}
    path, mine = saved(tmp_path, state), made("odd", seed=1)
    before = frozen(mine)
    assert same_answers(foreign.weights(path, net=mine), other)
    assert same_state(mine, before), "a copy is filled"
    refused(ValueError, lambda: foreign.weights(path), "body.0.weight", "net=")
    wrong = nn.Sequential(nn.Linear(2, 2))
    refused(ValueError, lambda: foreign.weights(path, net=wrong), "Sequential", "0.bias")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 3}, ("our resnet18", "left over layer1.2.bn1.bias")),
        ({"depth": 1}, ("our resnet18", "lacks layer1.1.bn1.bias")),
        ({"stem": 7}, ("conv1.weight as 4x3x7x7 instead of 4x3x3x3",)),
    ],
)
def test_nearly_our_architecture(options, words, tmp_path):
    path = saved(tmp_path, Plain(**options).state_dict())
    refused(ValueError, lambda: foreign.weights(path), "model.pt", "net=", *words)


@pytest.mark.slow
def test_other_shapes_and_things(tmp_path):
    state = made("resnet").state_dict()
    for key, value, word in (
        ("layer2.0.conv1.weight", torch.zeros(3, 3), "8x4x3x3"),
        ("linear.weight", torch.zeros(3), "ResNet-18"),
        ("conv1.weight", torch.zeros(()), "ResNet-18"),
        ("bn1.bias", "text", "bn1.bias"),
        ("bn1.bias", torch.eye(4).to_sparse(), "bn1.bias"),
        ("bn1.bias", torch.zeros(4, device="meta"), "bn1.bias"),
        ("bn1.bias", torch.zeros(4, dtype=torch.complex64), "bn1.bias"),
        ("bn1.bias", torch.full((4,), torch.nan), "undefined numbers in bn1.bias"),
    ):
        path = saved(tmp_path, {**state, key: value})
        refused(ValueError, lambda p=path: foreign.weights(p), "model.pt", word)
    loop: dict = {}
    loop["model"] = loop
    for thing in ([1], torch.zeros(3), {}, {"model": {}}, loop, "text"):
        path = saved(tmp_path, thing)
        refused(ValueError, lambda p=path: foreign.weights(p), "no state dict")
    path = saved(tmp_path, state)
    for mean, std in (((0.5,), (0.5,)), ((0.5,) * 3, (0.5,)), ((0,) * 3, (0,) * 3)):
        with pytest.raises(ValueError, match="channel"):
            foreign.weights(path, mean=mean, std=std)


# ---------------------------------------------------------------- nothing is run


class Evil:
    """Makes a folder when unpickled."""

    def __init__(self, marker, how):
        self.call = {
            "os": (os.mkdir, (str(marker),)),
            "eval": (eval, (f"__import__('os').mkdir({str(marker)!r})",)),
        }[how]

    def __reduce__(self):
        return self.call


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["os", "eval"])
@pytest.mark.parametrize("place", ["top", "weights", "numpy", "plain pickle"])
def test_code_in_a_pickle_is_not_run(how, place, tmp_path):
    marker = tmp_path / "marker"
    evil = Evil(marker, how)
    thing = {
        "top": evil,
        "weights": {**made("preact").state_dict(), "x": evil},
        "numpy": {"model": made("preact").state_dict(), "a": np.array([evil, 1])},
        "plain pickle": evil,
    }[place]
    path = saved(tmp_path, thing)
    if place == "plain pickle":
        path.write_bytes(pickle.dumps(thing))
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists(), "the file is not dangerous at all"
    allowed = set(torch.serialization.get_safe_globals())
    marker.rmdir()
    for read in (foreign.weights, foreign.backdoorbench):
        refused(ValueError, lambda read=read: read(path), "model.pt")
        assert not marker.exists()
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_arrays_of_objects_are_refused(tmp_path):
    state = made("preact").state_dict()
    path = saved(tmp_path, {"model": state, "more": np.array([1, "a"], dtype=object)})
    refused(ValueError, lambda: foreign.weights(path), "ObjectDType")
    path = saved(tmp_path, {"model": state, "more": np.arange(2, dtype=np.int16)})
    assert same_answers(foreign.weights(path), made("preact"))


def test_a_whole_module_is_refused(tmp_path):
    path = saved(tmp_path, build("resnet18", width=4))
    text = refused(ValueError, lambda: foreign.weights(path), "model.state_dict()")
    assert "bdcourse.models.ResNet" in text


@pytest.mark.parametrize("keep", [0, 10, 3000, -30])
def test_cut_files(keep, tmp_path):
    path = saved(tmp_path, made("preact").state_dict())
    path.write_bytes(path.read_bytes()[:keep])
    refused(ValueError, lambda: foreign.weights(path), "model.pt", "cut short")


def test_missing_file_and_old_torch(tmp_path, monkeypatch):
    refused(FileNotFoundError, lambda: foreign.weights(tmp_path / "no.pt"), "no.pt")
    path = saved(tmp_path, made("preact").state_dict())
    for version, fine in (("2.5.1+cpu", 0), ("1.13.0", 0), ("2.6.0a0", 1), ("3.0", 1)):
        monkeypatch.setattr(torch, "__version__", version)
        if fine:
            foreign.weights(path)
        else:
            refused(RuntimeError, lambda: foreign.weights(path), version, "2.6")


# ---------------------------------------------------------------- pairs


def arrays(n=12, side=8):
    images = random_images(n, K, side, seed=4)
    return images.x.numpy(), images.y.numpy(), np.full(n, 2)


def zipped(tmp_path, **named):
    np.savez(tmp_path / "poisoned_test.npz", **named)
    return tmp_path / "poisoned_test.npz"


@pytest.fixture
def model_path(tmp_path):
    return saved(tmp_path, made("preact").state_dict())


@pytest.mark.parametrize(
    "names",
    [
        ("x", "y", "target"),
        ("images", "labels", "targets"),
        ("data", "true", "goal"),
        ("Images", "y", "poisoned_labels"),
    ],
)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float16, np.float64])
def test_pairs(names, last, dtype, model_path, tmp_path):
    x, y, goal = arrays()
    given = x.transpose(0, 2, 3, 1) if last else x
    given = given if dtype == np.uint8 else (given / 255).astype(dtype)
    path = zipped(tmp_path, **dict(zip(names, (given, y, goal), strict=True)), more=y)
    found = foreign.pair(model_path, path)
    t = found.triggered
    assert torch.equal(t.x, torch.from_numpy(x))
    assert t.y.tolist() == y.tolist() and t.goal.tolist() == goal.tolist()
    assert found.about["images"] == "poisoned_test.npz"
    clean = Images(t.x, t.y, tuple("abcde"))
    s, said = evaluate(found.model, clean, t), predict(found.model, t.x)
    counts = t.y != t.goal
    assert s.n_triggered == int(counts.sum()) == 10
    assert s.asr == pytest.approx((said == t.goal)[counts].double().mean().item())


@pytest.mark.slow
def test_one_target_for_all(model_path, tmp_path):
    x, y, _ = arrays()
    path = zipped(tmp_path, x=x, y=y)
    assert foreign.pair(model_path, path, target=3).about["goals"] == [3]
    refused(ValueError, lambda: foreign.pair(model_path, path), "target=")
    path = zipped(tmp_path, x=x, y=y, target=np.int64(4))
    assert foreign.pair(model_path, path).triggered.goal.tolist() == [4] * 12
    call = lambda: foreign.pair(model_path, path, target=3)  # noqa: E731
    refused(ValueError, call, "leave out")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": None}, ("lacks the images", "x, images, data", "holds y, target")),
        ({"y": None}, ("lacks the true labels",)),
        ({"labels": np.zeros(12, int)}, ("both 'y' and 'labels'", "keep one")),
        ({"x": np.zeros((12, 8, 8), np.uint8)}, ("(12, 8, 8)",)),
        ({"x": np.zeros((12, 8, 8, 4), np.uint8)}, ("channels",)),
        ({"x": np.zeros((0, 3, 8, 8), np.uint8)}, ("(0, 3, 8, 8)",)),
        ({"x": np.zeros((12, 1, 8, 8), np.uint8)}, ("3 channels",)),
        ({"x": np.full((12, 3, 8, 8), 2.5)}, ("float64 from 2.5 to 2.5", "0..1")),
        ({"x": np.full((12, 3, 8, 8), -0.1)}, ("normalized",)),
        ({"x": np.full((12, 3, 8, 8), np.nan)}, ("nan",)),
        ({"x": np.zeros((12, 3, 8, 8), np.int64)}, ("int64",)),
        ({"x": np.full((12, 3, 8, 8), "a")}, ("<U1",)),
        ({"y": np.zeros(11, int)}, ("true labels", "(11,)", "12")),
        ({"y": np.zeros(12)}, ("true labels", "float64")),
        ({"target": np.zeros((12, 5), int)}, ("targets", "(12, 5)")),
        ({"y": np.full(12, 5)}, ("label 5", "0..4")),
        ({"target": np.full(12, -1)}, ("label -1", "0..4")),
    ],
)
def test_odd_arrays(change, words, model_path, tmp_path):
    x, y, goal = arrays()
    named = {"x": x, "y": y, "target": goal} | change
    path = zipped(tmp_path, **{k: v for k, v in named.items() if v is not None})
    refused(ValueError, lambda: foreign.pair(model_path, path), *words)


def test_broken_npz(model_path, tmp_path):
    x, y, goal = arrays()
    marker = tmp_path / "marker"
    evil = np.array([Evil(marker, "os")] * 12, dtype=object)
    path = zipped(tmp_path, x=x, y=evil, target=goal)
    np.load(path, allow_pickle=True)["y"]
    marker.rmdir()
    call = lambda: foreign.pair(model_path, path)  # noqa: E731
    refused(ValueError, call, "plain arrays")
    assert not marker.exists()
    path.write_bytes(path.read_bytes()[:2000])
    refused(ValueError, call, "cut short")
    with open(path, "wb") as f:
        np.save(f, x)
    refused(ValueError, call, "not an .npz")
    path.unlink()
    refused(FileNotFoundError, call, "poisoned_test.npz")
    path = zipped(tmp_path, x=x, y=y, target=goal)
    gone = Path(tmp_path / "gone.pt")
    refused(FileNotFoundError, lambda: foreign.pair(gone, path), "gone.pt")
