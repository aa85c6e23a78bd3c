"""Images, the loaders, and the cache."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import urllib.error

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bdcourse import compat, data
from bdcourse.data import Images, cached, hold_out, load, quantize, splits
from helpers import gen, message, random_images


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BDCOURSE_CACHE", str(tmp_path / "cache"))


# ---------------------------------------------------------------- Images


@pytest.mark.parametrize(
    ("x", "y", "word"),
    [
        (torch.rand(4, 3, 8, 8), torch.zeros(4).long(), "float32"),
        (torch.zeros(3, 8, 8).byte(), torch.zeros(3).long(), "(3, 8, 8)"),
        (torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4).int(), "int32"),
        (torch.zeros(4, 3, 8, 8).byte(), torch.zeros(5).long(), "(5,)"),
        (torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4, 1).long(), "(4, 1)"),
        (torch.zeros(4, 3, 8, 8).byte(), torch.tensor([0, 1, 2, 0]), "0 to 2"),
        (torch.zeros(4, 3, 8, 8).byte(), torch.tensor([0, 1, -1, 0]), "-1 to 1"),
    ],
)
def test_images_refuses_what_does_not_fit(x, y, word):
    with pytest.raises(ValueError) as e:
        Images(x, y, ("a", "b"))
    assert word in message(e)


def test_images_basics():
    images = random_images(10, 2)
    assert (len(images), images.k, images.shape) == (10, 2, (3, 8, 8))
    for index in (slice(2, 5), torch.tensor([2, 3, 4]), images.y == 1):
        part = images[index]
        assert torch.equal(part.x, images.x[index])
        assert torch.equal(part.y, images.y[index])
        assert part.classes == images.classes
    p = images.pixels()
    assert p.dtype == torch.float32
    assert torch.equal(quantize(p), images.x), "uint8 -> float -> uint8 must be exact"
    assert len(images.digest()) == 16
    assert images.digest() == random_images(10, 2).digest()
    relabelled = Images(images.x, images.y.flip(0), images.classes)
    reshaped = Images(images.x.reshape(10, 3, 4, 16), images.y, images.classes)
    assert len({images.digest(), relabelled.digest(), reshaped.digest()}) == 3


def test_quantize_rounds_and_clamps():
    x = torch.tensor([-0.5, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 7.0])
    assert quantize(x).tolist() == [0, 0, 0, 1, 255, 255]


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 40), st.data())
def test_hold_out_is_disjoint_and_complete(n, draw):
    k = draw.draw(st.integers(1, n - 1))
    x = torch.arange(n).to(torch.uint8).view(n, 1, 1, 1)
    images = Images(x, torch.zeros(n).long(), ("a",))
    rest, held = hold_out(images, k, gen(n))
    assert (len(rest), len(held)) == (n - k, k)
    both = torch.cat([rest.x, held.x]).flatten().sort().values
    assert both.tolist() == list(range(n))


def test_hold_out_is_seeded_and_bounded():
    images = random_images(40)
    a, b, c = (hold_out(images, 10, gen(s))[1] for s in (1, 1, 2))
    assert a.digest() == b.digest() != c.digest()
    for n in (0, 40, -1):
        with pytest.raises(ValueError, match="choose 1..39"):
            hold_out(images, n, gen())


def test_splits_share_no_image():
    parts = splits("signs", n=100, clean=0.2, seed=3)
    assert [len(p) for p in parts[:3]] == [80, 16, 4]
    rows = [p.x.flatten(1) for p in parts]
    distinct = torch.cat(rows).unique(dim=0)
    assert len(distinct) == sum(map(len, rows))
    other = splits("signs", n=100, clean=0.2, seed=4)
    assert other.test.digest() == parts.test.digest(), "one test set serves all seeds"
    assert other.clean.digest() != parts.clean.digest()


# ---------------------------------------------------------------- a folder


def write(path, colour=0, size=(8, 6), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "set"
    for split, n in (("train", 3), ("test", 2)):
        for label, name in enumerate(("alpha", "beta")):
            for i in range(n):
                write(root / split / name / f"{i}.png", (50 * label, i, n))
    return root


def test_folder_with_splits(folder):
    train, test = load(folder, "train"), load(str(folder), "test")
    assert (len(train), len(test)) == (6, 4)
    assert train.classes == test.classes == ("alpha", "beta")
    assert train.shape == (3, 6, 8), "height 6, width 8"
    assert train.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.x[:, 0, 0, 0].tolist() == [0, 0, 0, 50, 50, 50], "red tells the class"
    assert train.x[:, 1, 0, 0].tolist() == [0, 1, 2, 0, 1, 2]
    assert test.x[0, 2, 0, 0] == 2, "blue tells the split"


def test_a_sorted_test_set_is_dealt_out_in_random_order(tmp_path):
    for split in ("train", "test"):
        for label, name in enumerate(("alpha", "beta")):
            for i in range(20):
                write(tmp_path / split / name / f"{i:02}.png", (50 * label, i, 0))
    test = splits(tmp_path, clean=0.2).test
    assert set(test.y[:20].tolist()) == set(test.y[20:].tolist()) == {0, 1}
    assert (test.x[:, 0, 0, 0] == 50 * test.y).all(), "labels go with their images"
    assert sorted(test.x[:, 1, 0, 0].tolist()) == sorted(2 * [*range(20)])
    assert splits(tmp_path, clean=0.2, seed=1).test.digest() == test.digest()
    signs = splits("signs", n=100).test
    assert signs.digest() == load("signs", "test").digest(), "in random order as it is"


def test_flat_folder_serves_both_splits(folder):
    a, b = load(folder / "train", "train"), load(folder / "train", "test")
    assert a.digest() == b.digest() == load(folder, "train").digest()


def test_folder_ignores_other_files(folder):
    before = load(folder).digest()
    (folder / "train" / "README.md").write_text("hello")
    (folder / "train" / "alpha" / "Thumbs.db").write_bytes(b"no image")
    (folder / "train" / ".hidden").mkdir()
    assert load(folder).digest() == before


def test_folder_reads_other_modes_and_upper_case(folder):
    write(folder / "train" / "alpha" / "9.PNG", 128, mode="L")
    images = load(folder)
    assert images.x[3, :, 0, 0].tolist() == [128, 128, 128]


def test_mixed_sizes_need_size(folder):
    odd = folder / "train" / "beta" / "1.png"
    write(odd, (50, 1, 3), size=(16, 16))
    with pytest.raises(ValueError) as e:
        load(folder)
    text = message(e)
    assert str(odd) in text and "16x16" in text and "8x6" in text and "size=" in text
    images = load(folder, size=12)
    assert images.shape == (3, 12, 12)
    assert images.x[4, :, 5, 5].tolist() == [50, 1, 3], "a plain colour stays"


def test_empty_class_and_too_few_classes(folder):
    (folder / "train" / "gamma").mkdir()
    (folder / "test" / "gamma").mkdir()
    with pytest.raises(ValueError) as e:
        load(folder)
    assert "gamma" in message(e)
    with pytest.raises(ValueError, match="at least two"):
        load(folder / "train" / "alpha")


def test_splits_must_agree_on_classes(folder):
    # Else "beta" would be label 1 in training and label 0 at test.
    for f in (folder / "test" / "alpha").iterdir():
        f.unlink()
    (folder / "test" / "alpha").rmdir()
    for split in ("train", "test"):
        with pytest.raises(ValueError) as e:
            load(folder, split)
        assert "alpha" in message(e)


def test_missing_split(folder):
    (folder / "test").rename(folder.parent / "elsewhere")
    with pytest.raises(FileNotFoundError) as e:
        load(folder, "test")
    assert "test/" in message(e)


@pytest.mark.parametrize("keep", [0, 20, 45])
def test_corrupt_image_is_named(folder, keep):
    bad = folder / "train" / "beta" / "1.png"
    bad.write_bytes(bad.read_bytes()[:keep])
    with pytest.raises(RuntimeError) as e:
        load(folder)
    assert str(bad) in message(e)


def test_choice_of_n(folder):
    assert len(load(folder, n=4)) == 4
    assert load(folder, n=4).digest() == load(folder, n=4).digest()
    assert len({load(folder, n=3, seed=s).digest() for s in range(6)}) > 1
    assert load(folder, n=6).digest() == load(folder).digest()
    with pytest.raises(ValueError, match="only 6"):
        load(folder, n=7)


# ---------------------------------------------------------------- an .npz


def npz(tmp_path, **arrays):
    path = tmp_path / "set.npz"
    np.savez(path, **arrays)
    return path


X = np.arange(4 * 3 * 5 * 6, dtype=np.uint8).reshape(4, 3, 5, 6)
Y = np.array([0, 1, 1, 0])


def test_npz_both_layouts(tmp_path):
    first = load(npz(tmp_path, x=X, y=Y))
    assert torch.equal(first.x, torch.from_numpy(X))
    assert first.y.tolist() == Y.tolist()
    assert first.classes == ("0", "1")
    last = load(npz(tmp_path, x=X.transpose(0, 2, 3, 1), y=Y.astype(np.uint8)))
    assert torch.equal(last.x, first.x)
    assert last.x.is_contiguous()
    named = load(npz(tmp_path, x=X[:, :1], y=Y, classes=np.array(["cat", "dog"])))
    assert named.classes == ("cat", "dog") and named.shape == (1, 5, 6)


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        ({"x": X}, "'y'"),
        ({"y": Y}, "'x'"),
        ({"x": X.astype(np.float32), "y": Y}, "float32"),
        ({"x": X[0], "y": Y}, "4 axes"),
        ({"x": X, "y": Y[:3]}, "4 whole numbers"),
        ({"x": X, "y": Y + 0.5}, "whole numbers"),
        ({"x": X, "y": np.array([0, 2, 2, 0])}, "class 1 has no image"),
        ({"x": X, "y": np.array([0, 10**12, 0, 0])}, "class 1 has no image"),
        ({"x": X, "y": np.array([0, 1, -1, 0])}, "negative"),
        ({"x": X, "y": Y, "classes": np.array(["a", "b", "c"])}, "class 2"),
        ({"x": X[:0], "y": Y[:0]}, "no image"),
    ],
)
def test_npz_refused(tmp_path, arrays, word):
    path = npz(tmp_path, **arrays)
    with pytest.raises(ValueError) as e:
        load(path)
    text = message(e)
    assert word in text and str(path) in text


def test_npz_never_opens_a_pickle(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = npz(tmp_path, x=np.array([Bomb()], dtype=object), y=Y)
    with pytest.raises(RuntimeError) as e:
        load(path)
    assert str(path) in message(e)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("kind", ["cut", "empty", "noise", "npy", "text"])
def test_npz_damaged(tmp_path, kind):
    path = npz(tmp_path, x=X, y=Y)
    raw = path.read_bytes()
    one = io.BytesIO()
    np.save(one, X)
    path.write_bytes(
        {
            "cut": raw[: len(raw) // 2],
            "empty": b"",
            "noise": bytes(reversed(raw)),
            "npy": one.getvalue(),
            "text": b"<html>404</html>",
        }[kind]
    )
    with pytest.raises(RuntimeError) as e:
        load(path)
    assert str(path) in message(e)


# ---------------------------------------------------------------- names and downloads


def test_unknown_names(tmp_path):
    with pytest.raises(ValueError) as e:
        load("cifar11")
    assert "cifar11" in message(e) and "signs-hard" in str(e.value)
    for path in (tmp_path / "nowhere", tmp_path / "no.npz"):
        with pytest.raises(FileNotFoundError) as e:
            load(path)
        assert str(path) in message(e)
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(ValueError, match="not an .npz"):
        load(tmp_path / "a.zip")
    with pytest.raises(ValueError, match="split"):
        load("signs", "validation")
    for n in (0, -3):
        with pytest.raises(ValueError, match="at least 1"):
            load("signs", n=n)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "gtsrb"])
@pytest.mark.parametrize("error", [urllib.error.URLError("no"), RuntimeError("bad")])
def test_download_failure_is_one_sentence(name, error, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise error

    tv = compat.import_torchvision()
    for cls in ("CIFAR10", "CIFAR100", "GTSRB"):
        monkeypatch.setattr(tv.datasets, cls, fail)
    with pytest.raises(RuntimeError) as e:
        load(name, root=tmp_path)
    text = message(e)
    assert name in text and str(tmp_path) in text


def test_cifar_layout(monkeypatch, tmp_path):
    class Fake:
        def __init__(self, root, train, download):
            self.data = np.zeros((4, 32, 32, 3), dtype=np.uint8)
            self.data[:, 0, 1, 2] = 9  # row 0, column 1, blue
            self.targets, self.classes = [0, 1, 2, 3 if train else 0], list("abcd")

    monkeypatch.setattr(compat.import_torchvision().datasets, "CIFAR10", Fake)
    images = load("cifar10", "train", root=tmp_path)
    assert images.shape == (3, 32, 32) and images.classes == tuple("abcd")
    assert (images.x[:, 2, 0, 1] == 9).all() and images.x.int().sum() == 36
    assert load("cifar10", "test", root=tmp_path).y.tolist() == [0, 1, 2, 0]


# ---------------------------------------------------------------- the cache


def test_cache_remembers():
    calls = []

    def make():
        calls.append(1)
        return random_images()

    a, b = cached("key", make), cached("key", make)
    assert len(calls) == 1
    assert a.digest() == b.digest() == random_images().digest()
    assert a.classes == b.classes


@pytest.mark.parametrize("kind", ["cut", "empty", "flip", "npy", "foreign"])
def test_damaged_cache_is_made_again(kind):
    cached("key", random_images)
    path = data.cache_dir() / "key.npz"
    raw = bytearray(path.read_bytes())
    if kind == "cut":
        path.write_bytes(raw[:-200])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "flip":
        raw[500] ^= 1  # inside the pixels: the zip checksum must catch it
        path.write_bytes(raw)
    elif kind == "npy":
        with path.open("wb") as f:
            np.save(f, X)
    else:
        np.savez(path, x=X.astype(float), y=Y, classes=np.array(["a"]))
    assert cached("key", random_images).digest() == random_images().digest()
    fail = pytest.fail  # the good file replaced the damaged one
    assert cached("key", fail).digest() == random_images().digest()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_any_flipped_bit_of_the_cache(position, bit):
    with tempfile.TemporaryDirectory() as folder:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BDCOURSE_CACHE", folder)
            cached("key", lambda: random_images(2, 2, 2))
            path = data.cache_dir() / "key.npz"
            raw = bytearray(path.read_bytes())
            raw[position % len(raw)] ^= 1 << bit
            path.write_bytes(raw)
            again = cached("key", lambda: random_images(2, 2, 2))
    assert again.digest() == random_images(2, 2, 2).digest()


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("where", ["open", "write", "replace", "mkdir"])
def test_full_or_read_only_disk_still_gives_images(where, monkeypatch):
    data.cache_dir().mkdir()
    target = {
        "open": (tempfile, "NamedTemporaryFile"),
        "write": (np, "savez"),
        "replace": (os, "replace"),
        "mkdir": (data.Path, "mkdir"),
    }[where]
    monkeypatch.setattr(*target, full_disk)
    assert cached("key", random_images).digest() == random_images().digest()
    assert list(data.cache_dir().iterdir()) == [], "no leftovers"


def test_read_only_disk_where_nothing_can_be_removed(monkeypatch):
    monkeypatch.setattr(os, "replace", full_disk)
    monkeypatch.setattr(os, "unlink", full_disk)
    assert cached("key", random_images).digest() == random_images().digest()


def test_interrupted_write_leaves_nothing(monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", stop)
    with pytest.raises(KeyboardInterrupt):
        cached("key", random_images)
    assert list(data.cache_dir().iterdir()) == []


PROGRAM = """
import sys, numpy as np, torch
from bdcourse import data
def make():
    print("made", flush=True)
    sys.stdin.readline()  # both processes are here before either writes
    return data.Images(torch.full((500, 3, 32, 32), 7).byte(),
                       torch.zeros(500).long(), ("a",))
{extra}
print(data.cached("key", make).digest(), flush=True)
"""


def start(extra=""):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(extra=extra)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once():
    pair = [start(), start()]
    for p in pair:
        assert p.stdout.readline() == "made\n"
    for p in pair:
        p.stdin.write("go\n")
        p.stdin.flush()
    digests = {p.communicate(timeout=60)[0].strip() for p in pair}
    assert [p.returncode for p in pair] == [0, 0]
    assert digests == {cached("key", pytest.fail).digest()}
    assert [p.name for p in data.cache_dir().iterdir()] == ["key.npz"]


def test_killed_run_leaves_no_half_file():
    # Killed, not interrupted, in the middle of writing: no clean-up code runs.
    p = start(
        "import os\n"
        "def half(f, **_):\n"
        "    f.write(b'PK'); f.flush(); os._exit(9)\n"
        "np.savez = half\n"
    )
    p.communicate("go\n", timeout=60)
    assert p.returncode == 9
    assert not (data.cache_dir() / "key.npz").exists()
    assert cached("key", random_images).digest() == random_images().digest()
