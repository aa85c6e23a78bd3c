"""Victims of others: read like the originals compute, refused when anything is odd."""

from __future__ import annotations

import copy
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from bdcourse import defenses, foreign
from bdcourse.data import Images
from bdcourse.defenses import DEFENSES
from bdcourse.metrics import evaluate, predict
from bdcourse.models import CIFAR_MEAN, CIFAR_STD, build
from helpers import frozen, gen, message, random_images, randomise_norms, same_state

K, WIDTH = 5, 4

# ------------------------------------------------------- networks of other projects


class Block(nn.Module):
    def __init__(self, c_in, c_out, stride, pre, skip):
        super().__init__()
        self.pre, self.skip = pre, skip
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_in if pre else c_out)
        self.bn2 = nn.BatchNorm2d(c_out)
        side = [nn.Conv2d(c_in, c_out, 1, stride, bias=False)]
        side += [] if pre else [nn.BatchNorm2d(c_out)]
        if stride > 1:
            setattr(self, skip, nn.Sequential(*side))

    def forward(self, x):
        if self.pre:
            y = self.bn1(x).relu()
            side = getattr(self, self.skip)(y) if hasattr(self, self.skip) else x
            return self.conv2(self.bn2(self.conv1(y)).relu()) + side
        side = getattr(self, self.skip)(x) if hasattr(self, self.skip) else x
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + side).relu()


class Plain(nn.Module):
    """Takes normalised images of 32 pixels; depth counts the blocks of a stage."""

    def __init__(self, pre=False, skip="shortcut", top="linear", depth=2, stem=3):
        super().__init__()
        self.pre, self.top = pre, top
        self.conv1 = nn.Conv2d(3, WIDTH, stem, 1, stem // 2, bias=False)
        if not pre:
            self.bn1 = nn.BatchNorm2d(WIDTH)
        c = WIDTH
        for i in range(4):
            blocks = [Block(c, WIDTH << i, 1 + (i > 0), pre, skip)]
            c = WIDTH << i
            blocks += [Block(c, c, 1, pre, skip) for _ in range(depth - 1)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        setattr(self, top, nn.Linear(c, K))

    def forward(self, x):
        x = self.conv1(x)
        x = x if self.pre else self.bn1(x).relu()
        for i in range(4):
            x = getattr(self, f"layer{i + 1}")(x)
        return getattr(self, self.top)(F.avg_pool2d(x, 4).flatten(1))


class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        layers, c_in = [], 3
        for c in (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0):
            if c:
                layers += [nn.Conv2d(c_in, c * WIDTH, 3, padding=1)]
                layers += [nn.BatchNorm2d(c * WIDTH), nn.ReLU()]
                c_in = c * WIDTH
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.AvgPool2d(1))
        self.classifier = nn.Linear(8 * WIDTH, K)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class Odd(nn.Module):
    """An architecture that the course does not have."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.out = nn.Linear(6, K)

    def forward(self, x):
        return self.out(self.body(x).mean((2, 3)))


OTHERS = {
    "resnet": Plain,
    "preact": lambda: Plain(pre=True),
    "torchvision": lambda: Plain(skip="downsample", top="fc"),
    "vgg": VGG,
    "odd": Odd,
}


def made(kind, seed=0):
    torch.manual_seed(seed)
    return randomise_norms(OTHERS[kind](), seed)


def normal(x, mean=CIFAR_MEAN, std=CIFAR_STD):
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (mean, std))
    return (x - mean) / std


def pixels(n=3, side=32):
    return torch.rand(n, 3, side, side, generator=gen(1))


def same_answers(model, other, mean=CIFAR_MEAN, std=CIFAR_STD):
    with torch.no_grad():
        ours, theirs = model(pixels()), other(normal(pixels(), mean, std))
    assert theirs.std() > 1e-3, "the comparison would see nothing"
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-4)


def saved(tmp_path, thing, name="model.pt"):
    torch.save(thing, tmp_path / name)
    return tmp_path / name


def refused(kind, call, *words):
    with pytest.raises(kind) as e:
        call()
    text = message(e)
    for word in words:
        assert word in text, text
    return text


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


# ---------------------------------------------------------------- BackdoorBench


def record(folder, n=24, side=8, target=1, model=None, **changes):
    """An attack_result.pt as BackdoorBench v2 writes it; its path and its images."""
    clean = random_images(n, K, side, seed=3)
    x = clean.x.clone()
    x[:, :, -2:, -2:] = 255
    base, box = "/home/somebody/record/run/bd_test_dataset", {}
    rows = (clean.y != target).nonzero().flatten().numpy()
    for i in rows:  # numpy integers, as in the original
        y = int(clean.y[i])
        (folder / "bd_test_dataset" / f"{y}").mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(x[i].permute(1, 2, 0).numpy())
        picture.save(folder / "bd_test_dataset" / f"{y}" / f"{i}.png")
        box[i] = {"path": f"{base}/{y}/{i}.png", "other_info": [target, y]}
    poisoned = np.zeros(n)
    poisoned[rows] = 1
    container = {"save_folder_path": base, "data_dict": box, "save_file_format": ".png"}
    state = {
        "bd_data_container": container,
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": np.arange(n)[rows],
        "poison_indicator": poisoned,
        "save_folder_path": base,
    }
    whole = {
        "model_name": "preactresnet18",
        "num_classes": K,
        "model": (model or made("preact")).state_dict(),
        "data_path": "../data/cifar10",
        "img_size": (side, side, 3),
        "clean_data": "cifar10",
        "bd_train": copy.deepcopy(state),
        "bd_test": state,
    }
    torch.save({**whole, **changes}, folder / "attack_result.pt")
    return folder / "attack_result.pt", x[torch.from_numpy(rows)], clean


def changed(path, change):
    whole = torch.load(path, weights_only=False)
    change(whole)
    torch.save(whole, path)


def test_backdoorbench_round_trip(tmp_path):
    path, x, clean = record(tmp_path, side=32)
    for given in (path, tmp_path):
        found = foreign.backdoorbench(given)
        t = found.triggered
        assert torch.equal(t.x, x) and (t.goal == 1).all()
        assert torch.equal(t.y, clean.y[clean.y != 1])
        assert found.about == {
            "format": "BackdoorBench v2",
            "model": "preactresnet18",
            "data": "cifar10",
            "classes": K,
            "goals": [1],
        }
        assert same_answers(found.model, made("preact"))
    with torch.no_grad():
        said = made("preact")(normal(x.float() / 255)).argmax(1)
    s = evaluate(found.model, clean, t)
    assert s.n_clean == 24 and s.n_triggered == len(x)
    assert s.asr == pytest.approx((said == 1).double().mean().item())
    assert s.ra == pytest.approx((said == t.y).double().mean().item())
    after = DEFENSES["clp"](found.model)
    assert evaluate(after.model, clean, t).n_triggered == len(x)


def respelled(path, old, new):
    """The same file with another module name in its pickle."""
    with zipfile.ZipFile(path) as z:
        parts = {i.filename: z.read(i) for i in z.infolist()}
    name = next(n for n in parts if n.endswith("data.pkl"))
    assert old in parts[name]
    parts[name] = parts[name].replace(old, new)
    with zipfile.ZipFile(path, "w") as z:
        for n, data in parts.items():
            z.writestr(n, data)


@pytest.mark.parametrize("core", [b"core", b"_core"])
def test_files_of_numpy_1_and_2(core, tmp_path):
    path, x, _ = record(tmp_path)
    own = np.empty(0).__reduce__()[0].__module__.encode()
    respelled(path, b"c" + own + b"\n", b"cnumpy." + core + b".multiarray\n")
    assert torch.equal(foreign.backdoorbench(path).triggered.x, x)


def test_normalisation_follows_the_data(tmp_path):
    other = made("preact")
    path, _, _ = record(tmp_path, clean_data="gtsrb")
    model = foreign.backdoorbench(path).model
    assert same_answers(model, other, (0.0,) * 3, (1.0,) * 3)
    mean = (0.1, 0.2, 0.3)
    model = foreign.backdoorbench(path, mean=mean, std=(2, 2, 2)).model
    assert same_answers(model, other, mean, (2.0,) * 3)
    model = foreign.backdoorbench(path, std=(2, 2, 2)).model
    assert same_answers(model, other, (0.0,) * 3, (2.0,) * 3)
    path, _, _ = record(tmp_path, clean_data="my own")
    refused(ValueError, lambda: foreign.backdoorbench(path), "my own", "mean= and std=")
    assert len(foreign.backdoorbench(path, mean=mean, std=mean).triggered) == 19


def test_clean_rows_of_the_test_set_are_left_out(tmp_path):
    path, x, _ = record(tmp_path)

    def change(whole):
        whole["bd_test"]["original_index_array"] = np.arange(24)[::-1].copy()

    changed(path, change)
    assert torch.equal(foreign.backdoorbench(path).triggered.x, x.flip(0))


@pytest.mark.parametrize("stored", ["../../etc/passwd", "/etc/passwd", "../secret.png"])
def test_stored_paths_are_never_followed(stored, tmp_path):
    folder = tmp_path / "record"
    folder.mkdir()
    path, x, _ = record(folder)
    secret = tmp_path / "record" / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)

    def change(whole):
        box = whole["bd_test"]["bd_data_container"]
        box["save_folder_path"] = whole["bd_test"]["save_folder_path"] = "/etc"
        for entry in box["data_dict"].values():
            entry["path"] = stored

    changed(path, change)
    assert torch.equal(foreign.backdoorbench(path).triggered.x, x)
    (folder / "bd_test_dataset" / "0" / "0.png").unlink()
    call = lambda: foreign.backdoorbench(path)  # noqa: E731
    refused(FileNotFoundError, call, "1 of 19", "0/0.png", "images=")
    (folder / "bd_test_dataset" / "0" / "0.png").symlink_to(secret)
    refused(ValueError, call, "link", "0.png")


@pytest.mark.parametrize("bad", ["../../secret", "/etc/passwd", 1.5, None, 10**30])
@pytest.mark.parametrize("what", ["index", "label"])
def test_only_whole_numbers_name_images(what, bad, tmp_path):
    path, _, _ = record(tmp_path)

    def change(whole):
        box = whole["bd_test"]["bd_data_container"]["data_dict"]
        if what == "index":
            whole["bd_test"]["original_index_array"] = [bad]
            box[bad] = box[0]
        else:
            box[0]["other_info"] = [1, bad]

    changed(path, change)
    refused(ValueError, lambda: foreign.backdoorbench(path), "laid out", "v1")


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("num_classes", 7, "7 classes"),
        ("num_classes", "ten", "laid out"),
        ("img_size", (9, 9, 3), "9x9"),
        ("img_size", None, "laid out"),
        ("bd_test", None, "foreign.weights"),
        ("bd_test", {"x": torch.zeros(2, 3, 8, 8), "y": torch.zeros(2)}, "v1"),
        ("model", made("odd"), "net="),
    ],
)
def test_wrong_fields(key, value, word, tmp_path):
    path, _, _ = record(tmp_path, **{key: value})
    refused(ValueError, lambda: foreign.backdoorbench(path), word)


def test_labels_out_of_range_and_empty(tmp_path):
    path, _, _ = record(tmp_path)
    call = lambda: foreign.backdoorbench(path)  # noqa: E731
    for info, word in (([9, 0], "label 9"), ([1, -1], "label -1")):

        def change(whole, info=info):
            box = whole["bd_test"]["bd_data_container"]["data_dict"]
            box[0]["other_info"] = info

        changed(path, change)
        refused(ValueError, call, word, "0..4")
    changed(path, lambda w: w["bd_test"]["bd_data_container"]["data_dict"].clear())
    refused(ValueError, call, "no triggered image")


def test_images_that_are_missing_or_broken(tmp_path):
    path, x, _ = record(tmp_path)
    (tmp_path / "bd_test_dataset").rename(tmp_path / "elsewhere")
    call = lambda: foreign.backdoorbench(path)  # noqa: E731
    refused(FileNotFoundError, call, "19 of 19", "bd_test_dataset")
    found = foreign.backdoorbench(path, images=tmp_path / "elsewhere")
    assert torch.equal(found.triggered.x, x)
    (tmp_path / "elsewhere").rename(tmp_path / "bd_test_dataset")
    one = tmp_path / "bd_test_dataset" / "2" / "2.png"
    whole = one.read_bytes()
    for raw in (whole[:60], b"", b"%!PS-Adobe-3.0 EPSF-3.0\n", whole[:-40]):
        one.write_bytes(raw)
        refused(ValueError, call, "2.png", "PNG")
    Image.new("RGB", (8, 8)).save(one, format="BMP")
    refused(ValueError, call, "2.png", "PNG")
    Image.new("RGB", (6, 8)).save(one)
    refused(ValueError, call, "6x8", "8x8")


def test_grey_images(tmp_path):
    model = build("preact_resnet18", classes=K, width=2, mean=(0.5,), std=(0.5,))
    path, x, _ = record(tmp_path, clean_data="mnist", model=model)
    t = foreign.backdoorbench(path).triggered
    assert t.x.shape == (19, 1, 8, 8) and (t.x[:, :, -2:, -2:] == 255).all()
    path, _, _ = record(tmp_path, clean_data="mnist")
    refused(ValueError, lambda: foreign.backdoorbench(path), "1 channels")


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
        ({"x": np.full((12, 3, 8, 8), -0.1)}, ("normalised",)),
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


# ------------------------------------------------------------------- what we promise


@pytest.mark.parametrize("page", ["README.md", "book/measuring.md"])
def test_the_ten_lines_do_what_the_page_says(page, tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parent.parent / page).read_text()
    (code,) = (c for c in re.findall(r"```python\n(.*?)```", text, re.S) if "g," in c)
    lines = [line for line in code.splitlines() if line]
    assert len(lines) == 9
    folder = tmp_path / "record" / "badnet_0_1"
    folder.mkdir(parents=True)
    _, _, clean = record(folder, side=32)
    for i, y in enumerate(clean.y.tolist()):
        picture = Image.fromarray(clean.x[i].permute(1, 2, 0).numpy())
        for part in ("train", "test"):
            (tmp_path / "my/images" / part / f"{y}").mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "my/images" / part / f"{y}" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(defenses, "fip", partial(defenses.fip, steps=2, batch=4))
    exec(code.replace("n=2000", "n=12"), {})
    assert capsys.readouterr().out.count("ACC") == 3
