"""The kinds of networks and files that people bring, each measured or named."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from bdcourse import foreign
from bdcourse.data import Images
from bdcourse.metrics import evaluate
from foreign_models import (
    VGG,
    K,
    Odd,
    Plain,
    made,
    normal,
    pixels,
    record,
    refused,
    same_answers,
    saved,
)
from helpers import gen, message, random_images

# ---------------------------------------------------------------- networks


class Views(nn.Module):
    """Flattens by .view, which channels_last maps refuse; one ReLU, used twice."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.relu, self.fc = nn.ReLU(), nn.Linear(8 * 8 * 8, K)

    def forward(self, x):
        x = self.relu(self.conv2(self.relu(self.conv1(x))))
        return self.fc(x.view(len(x), -1))


class Wide(nn.Module):
    """A WideResNet's block: pre-activation, dropout, a 1x1 way around."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
        self.block1 = nn.ModuleDict(
            {
                "bn1": nn.BatchNorm2d(4),
                "conv1": nn.Conv2d(4, 8, 3, 2, 1, bias=False),
                "bn2": nn.BatchNorm2d(8),
                "conv2": nn.Conv2d(8, 8, 3, 1, 1, bias=False),
                "convShortcut": nn.Conv2d(4, 8, 1, 2, bias=False),
            }
        )
        self.bn1, self.fc = nn.BatchNorm2d(8), nn.Linear(8, K)

    def forward(self, x):
        b, x = self.block1, self.conv1(x)
        y = F.relu(b["bn1"](x))
        z = F.dropout(F.relu(b["bn2"](b["conv1"](y))), 0.3, self.training)
        x = F.relu(self.bn1(b["conv2"](z) + b["convShortcut"](y)))
        return self.fc(F.avg_pool2d(x, x.shape[-1]).view(len(x), -1))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3))
        self.fc = nn.utils.parametrizations.spectral_norm(nn.Linear(6, K))

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize("kind", [Views, Wide, Normed, Odd])
def test_networks_of_all_kinds_answer_as_their_owner_has_them(kind, tmp_path):
    torch.manual_seed(1)
    other = kind().eval()
    path = saved(tmp_path, {"model_state": other.state_dict(), "epoch": 7})
    model = foreign.weights(path, net=kind())
    assert not model.training and same_answers(model, other)
    x = (255 * pixels(6)).byte()
    s = evaluate(model, Images(x, torch.arange(6) % K, tuple("abcde")))
    with torch.no_grad():
        said = other(normal(x.float() / 255)).argmax(1)
    assert s.acc == pytest.approx(float((said == torch.arange(6) % K).float().mean()))


class Ends(Odd):
    """Answers with whatever `end` makes of the logits."""

    def __init__(self, end):
        super().__init__()
        self.end = end

    def forward(self, x):
        return self.end(super().forward(x))


@pytest.mark.parametrize(
    ("end", "word"),
    [
        (lambda x: (x, x.mean(1)), "a tuple"),
        (lambda x: {"logits": x}, "a dict"),
        (lambda x: x[:, :1], "(2, 1)"),
        (lambda x: x[:, 0], "(2,)"),
        (lambda x: x[:, :, None, None], "(2, 5, 1, 1)"),
        (lambda x: x.argmax(1, keepdim=True).expand(-1, 3), "int64"),
        (lambda x: x / 0, "not finite"),
    ],
)
def test_answers_that_are_no_logits_are_refused_when_loaded(end, word, tmp_path):
    path = saved(tmp_path, Odd().state_dict())
    text = refused(ValueError, lambda: foreign.weights(path, net=Ends(end)), word)
    assert "network" in text


@pytest.mark.parametrize("net", [nn.Sequential(Odd(), nn.Softmax(1)), None])
def test_a_softmax_at_the_end_is_said(net, tmp_path):
    torch.manual_seed(0)
    net = net or Ends(lambda x: x.softmax(1))
    path = saved(tmp_path, net.state_dict())
    with pytest.warns(UserWarning, match="probabilities, not logits"):
        foreign.weights(path, net=net)
    x = random_images(4, K)
    np.savez(tmp_path / "x.npz", x=x.x.numpy(), y=x.y.numpy())
    with pytest.warns(UserWarning, match="probabilities, not logits"):
        foreign.pair(path, tmp_path / "x.npz", target=0, net=net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ends = Ends(lambda x: x.log_softmax(1))
        foreign.weights(saved(tmp_path, Odd().state_dict()), net=ends)


def test_a_network_for_other_images_is_loaded_unseen(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 46 * 46, K))
    model = foreign.weights(saved(tmp_path, net.state_dict()), net=net)
    assert model(torch.rand(1, 3, 48, 48)).shape == (1, K)


def test_modules_that_cannot_be_filled(tmp_path):
    path = saved(tmp_path, Odd().state_dict())
    lazy = nn.Sequential(nn.LazyConv2d(3, 3))
    with torch.device("meta"):
        empty = Odd()
    locked = Odd()
    locked.kept = torch.ones(1, requires_grad=True) * 2  # cannot be copied

    class Refuses(Odd):
        def load_state_dict(self, *a, **k):
            raise KeyError("no")

    for net, word in (
        (Odd, "nn.Module"),
        (Odd().state_dict(), "nn.Module"),
        (lazy, "lazy"),
        (empty, "on the CPU"),
        (locked, "copied"),
        (Refuses(), "load_state_dict"),
    ):
        refused(ValueError, lambda n=net: foreign.weights(path, net=n), word)


def test_a_network_of_another_number_of_channels(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, K))
    path = saved(tmp_path, net.state_dict())
    refused(ValueError, lambda: foreign.weights(path, net=net), "3 channels", "takes 1")
    foreign.weights(path, net=net, mean=(0.5,), std=(0.5,))
    path = saved(tmp_path, Odd().state_dict())
    call = lambda: foreign.weights(path, net=Odd(), mean=(0.5,), std=(0.5,))  # noqa: E731
    refused(ValueError, call, "takes 3")


# ---------------------------------------------------------------- entries


@pytest.mark.slow
def test_an_entry_by_its_name(tmp_path):
    other, generator = made("preact"), {"weight": torch.zeros(2, 2)}
    for name in ("netC", "model_state", "params", "network"):
        path = saved(tmp_path, {name: other.state_dict(), "netG": generator})
        assert same_answers(foreign.weights(path), other)
    thing = {"ema": {"state_dict": other.state_dict()}, "optimizer": {}, "epoch": 3}
    path = saved(tmp_path, thing)
    words = ("ema, optimizer, epoch", "key=")
    refused(ValueError, lambda: foreign.weights(path), *words)
    refused(ValueError, lambda: foreign.weights(path, key="emo"), "key='emo'", words[0])
    assert same_answers(foreign.weights(path, key="ema"), other)
    refused(ValueError, lambda: foreign.weights(path, key="epoch"), "a int")
    thing = {"model": other.state_dict(), "params": {"lr": 0.1}, "net": {}}
    assert same_answers(foreign.weights(saved(tmp_path, thing)), other)
    path = saved(tmp_path, {"net": generator, "model": other.state_dict()})
    refused(ValueError, lambda: foreign.weights(path), "model, net", "key=")
    assert same_answers(foreign.weights(path, key="model"), other)
    x = random_images(4, K)
    np.savez(tmp_path / "x.npz", x=x.x.numpy(), y=x.y.numpy())
    assert foreign.pair(path, tmp_path / "x.npz", target=0, key="model")


def test_counts_of_a_profiler_are_left_out(tmp_path):
    other = made("resnet")
    state = other.state_dict()
    for at in ("", "conv1.", "layer1.0."):
        state[f"module.{at}total_ops"] = state[f"module.{at}total_params"] = torch.zeros(
            1, dtype=torch.float64
        )
    state = {f"module.{k.removeprefix('module.')}": v for k, v in state.items()}
    with pytest.warns(UserWarning, match="6 entries total_ops and total_params"):
        model = foreign.weights(saved(tmp_path, state))
    assert same_answers(model, other)


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("key", "change", "words"),
    [
        (
            "conv1.weight",
            lambda v: v.mul(9).round().to(torch.int8),
            ("int8", "rounded"),
        ),
        ("bn1.running_mean", lambda v: v.long(), ("int64", "bn1.running_mean")),
        ("bn1.running_var", lambda v: v - 1, ("negative variances", "running_var")),
        ("linear.weight", lambda v: v.double() * 1e60, ("too large", "float32")),
        ("linear.bias", lambda v: v / 0, ("infinite", "linear.bias")),
        ("bn1.num_batches_tracked", lambda v: v + 0.5, ("fractions", "bn1.num")),
        ("bn1.weight", lambda v: torch.ones(1).expand(2**40), ("no plain tensor",)),
    ],
)
def test_spoilt_weights(key, change, words, tmp_path):
    state = made("resnet").state_dict()
    path = saved(tmp_path, {**state, key: change(state[key])})
    refused(ValueError, lambda: foreign.weights(path), "model.pt", *words)


def test_weights_that_were_all_rounded(tmp_path):
    state = made("vgg").state_dict()
    rounded = {k: v.mul(9).round() for k, v in state.items()}
    path = saved(tmp_path, rounded)
    refused(ValueError, lambda: foreign.weights(path), "whole numbers", "rounded")
    one = {**state, "features.0.weight": rounded["features.0.weight"]}
    foreign.weights(saved(tmp_path, one))


@pytest.mark.slow
def test_other_precisions_are_taken_as_they_are(tmp_path):
    other = made("resnet")
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        state = {k: v.to(dtype) for k, v in other.state_dict().items()}
        model = foreign.weights(saved(tmp_path, state))
        assert model.conv1.weight.dtype == torch.float32
        assert torch.equal(model.conv1.weight, other.conv1.weight.to(dtype).float())


def test_a_wrong_width_costs_no_memory(tmp_path):
    state = made("resnet").state_dict() | {"conv1.weight": torch.ones(200_000, 3, 3, 3)}
    path = saved(tmp_path, state)
    refused(ValueError, lambda: foreign.weights(path), "does not fit our resnet18")


def test_flipped_bytes(tmp_path):
    path = saved(tmp_path, made("resnet").state_dict())
    raw = bytearray(path.read_bytes())
    weight = made("resnet").layer4[1].conv2.weight.detach().numpy().tobytes()
    at = raw.index(weight[:64]) + 40
    raw[at : at + 2] = bytes(255 - b for b in raw[at : at + 2])
    path.write_bytes(raw)
    torch.load(path)
    refused(ValueError, lambda: foreign.weights(path), "model.pt", "damaged")


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((torch.nan,) * 3, (0.5,) * 3),
        ((0.5,) * 3, (0.5, 0.5, torch.nan)),
        ((0.5,) * 3, (0.5, 0.5, -0.5)),
        ((0.5,) * 3, (0.5, 0.5, 1e-60)),
        ((0.5,) * 3, (0.5, 0.5, 1e60)),
        ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
        ((0.5,) * 2, (0.5,) * 3),
        ((), ()),
        ("abc", (0.5,) * 3),
        (0.5, 0.5),
    ],
)
def test_a_normalization_that_is_none(mean, std, tmp_path):
    path = saved(tmp_path, made("resnet").state_dict())
    call = lambda: foreign.weights(path, mean=mean, std=std)  # noqa: E731
    refused(ValueError, call, "mean and std", "per channel", "[0, 1]")


# ---------------------------------------------------------------- files


def zipped(*names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        for name in names:
            z.writestr(name, b"x")
    return out.getvalue()


def scripted():
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), out)
    return out.getvalue()


def tarred():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        t.addfile(tarfile.TarInfo("model.pt"))
    return out.getvalue()


def npz():
    out = io.BytesIO()
    np.savez(out, x=np.zeros(3))
    return out.getvalue()


FILES = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4\n", "git lfs"),
    "page": (b"\n<!DOCTYPE html><html><head>", "web page"),
    "page 2": (b"<HTML lang='en'>", "web page"),
    "xml": (b"<?xml version='1.0'?><Error>AccessDenied", "web page"),
    "json": (b'{"weight_map": {}}', "text file"),
    "note": (b"the weights are elsewhere\n", "text file"),
    "empty": (b"", "empty"),
    "torchscript": (scripted(), "TorchScript"),
    "package": (zipped("a/.data/extern_modules"), "torch.package"),
    "tar": (tarred(), "tar archive"),
    "zip": (zipped("model.pt"), "zip archive"),
    "npz": (npz(), ".npz"),
    "keras": (zipped("config.json", "model.weights.h5"), "Keras"),
    "gzip": (b"\x1f\x8b\x08" + bytes(9), "gzip"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(99), ".npy"),
    "onnx": (b"\x08\x08\x12\x07pytorch\x1a\x03" + bytes(99), "ONNX"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(99), "TensorFlow Lite"),
    "png": (b"\x89PNG\r\n\x1a\n", "image"),
    "pickle": (pickle.dumps({"a": 1}), "bare pickle"),
    "zeros": (bytes(999), "damaged"),
}


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_are_something_else(what, suffix, tmp_path):
    raw, word = FILES[what]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(raw)
    for read in (foreign.weights, foreign.backdoorbench):
        refused(ValueError, lambda r=read: r(path), path.name, word)
    if what != "npz":
        call = lambda: foreign.pair(path, path, target=0)  # noqa: E731
        refused(ValueError, call, path.name)


@pytest.mark.slow
def test_the_first_bytes_tell_not_the_name(tmp_path):
    other = made("resnet")
    save_file(other.state_dict(), tmp_path / "model.pt")
    assert same_answers(foreign.weights(tmp_path / "model.pt"), other)
    path = saved(tmp_path, other.state_dict(), "model.safetensors")
    assert same_answers(foreign.weights(path), other)
    old = tmp_path / "old.pth.tar"
    torch.save(other.state_dict(), old, _use_new_zipfile_serialization=False)
    assert same_answers(foreign.weights(old), other)


def test_a_pipe_is_not_waited_for(tmp_path):
    pipe = tmp_path / "model.pt"
    os.mkfifo(pipe)
    for call in (
        lambda: foreign.weights(pipe),
        lambda: foreign.backdoorbench(pipe),
        lambda: foreign.pair(pipe, pipe),
    ):
        refused(ValueError, call, "not a regular file")
    refused(ValueError, lambda: foreign.weights(tmp_path), "folder")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = saved(tmp_path, made("resnet").state_dict())

    def denied(*a, **k):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    refused(ValueError, lambda: foreign.weights(path), "model.pt", "Permission denied")


def test_a_zip_that_unpacks_to_more_than_there_is_room(tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
        z.writestr("archive/data/0", bytes(5_000_000))
    refused(ValueError, lambda: foreign.weights(path), "damaged")


# ------------------------------------------------------- images of BackdoorBench


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zipfile.crc32(body))


@pytest.mark.slow
def test_images_of_other_kinds(tmp_path):
    from PIL import Image

    path, x, _ = record(tmp_path)
    one = tmp_path / "bd_test_dataset" / "2" / "2.png"
    call = lambda: foreign.backdoorbench(path)  # noqa: E731
    right = Image.open(one).convert("RGB")
    right.convert("RGBA").save(one)
    assert torch.equal(call().triggered.x, x), "an opaque alpha channel changes nothing"
    clear = right.convert("RGBA")
    clear.putalpha(128)
    clear.save(one)
    refused(ValueError, call, "2.png", "transparent")
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    Image.fromarray(deep).save(one)
    refused(ValueError, call, "2.png", "16-bit")
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")
    one.write_bytes(bomb)
    refused(ValueError, call, "2.png")
    one.unlink()
    os.mkfifo(one)
    refused(FileNotFoundError, call, "2/2.png")
    one.unlink()
    one.mkdir()
    refused(FileNotFoundError, call, "2/2.png")


def test_messages_are_one_sentence_whatever_a_file_is_called(tmp_path):
    path = saved(tmp_path, {"a\nb": 1, 3: 2})
    with pytest.raises(ValueError) as e:
        foreign.weights(path)
    assert "a b, 3" in message(e)


def test_another_number_of_classes_is_said_before_any_number(tmp_path):
    model = foreign.weights(saved(tmp_path, made("resnet").state_dict()))
    x = (255 * torch.rand(6, 3, 8, 8, generator=gen())).byte()
    for k in (K - 1, K + 1):
        images = Images(x, torch.arange(6) % (K - 1), tuple(map(str, range(k))))
        refused(ValueError, lambda i=images: evaluate(model, i), "5 logits", f"{k} cl")


def test_stems_of_other_projects_are_named(tmp_path):
    path = saved(tmp_path, Plain(stem=7, skip="downsample", top="fc").state_dict())
    refused(ValueError, lambda: foreign.weights(path), "conv1.weight as 4x3x7x7", "net=")
    refused(ValueError, lambda: foreign.weights(path, net=VGG()), "VGG", "net=")
