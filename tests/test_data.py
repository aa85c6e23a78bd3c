"""Images, the loaders, and the cache."""

from __future__ import annotations

import io
import os
import stat
import struct
import subprocess
import sys
import tempfile
import urllib.error

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image

from bdcourse import compat, data, signs
from bdcourse.data import Images, cached, decode, hold_out, load, quantize, splits
from bdcourse.examples import Poisoned
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


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"x": None}, "not None"),
        ({"x": torch.zeros(2, 3, 0, 8).byte()}, "without pixels"),
        ({"y": torch.zeros(2).long().to("meta")}, "meta"),
        ({"x": torch.zeros(2, 1, 4, 4).byte().to_sparse()}, "sparse"),
        ({"classes": "ab"}, "'ab'"),
        ({"classes": ("a", 1)}, "('a', 1)"),
        ({"classes": ()}, "()"),
        ({"classes": None}, "None"),
        ({"classes": ("a", "b", "a")}, "'a' stands twice"),
    ],
)
def test_images_doors(change, word):
    usual = {"x": torch.zeros(2, 3, 8, 8).byte(), "y": torch.zeros(2).long()}
    with pytest.raises(ValueError) as e:
        Images(**(usual | {"classes": ("a", "b")} | change))
    assert word in message(e)


def test_a_list_of_classes_becomes_a_tuple():
    x, y = torch.zeros(2, 3, 8, 8).byte(), torch.zeros(2).long()
    one = Images(x, y, ["a", "b"])
    assert one.classes == ("a", "b")
    assert len(data.join(one, Images(x, y, ("a", "b")))) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_one_device():
    images = random_images(2)
    with pytest.raises(ValueError, match="Images.y on cpu"):
        Images(images.x.cuda(), images.y, images.classes)
    role = torch.zeros(2).char().cuda()
    with pytest.raises(ValueError, match="its role on cuda"):
        Poisoned(images.x, images.y, images.classes, role)


@pytest.mark.parametrize("late", [3, "no", torch.zeros(1)])
def test_poisoned_doors(late):
    images = random_images(2)
    with pytest.raises(ValueError) as e:
        Poisoned(images.x, images.y, images.classes, torch.zeros(2).char(), late)
    assert "late" in message(e)


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (0, [0]),
        (-1, [9]),
        (np.int64(3), [3]),
        (torch.tensor(3), [3]),
        ([], []),
        ([1, -2], [1, 8]),
        (range(2, 4), [2, 3]),
        (np.array([5, 5]), [5, 5]),
        (torch.tensor([1, 2], dtype=torch.int32), [1, 2]),
        (np.arange(10) > 7, [8, 9]),
        ([True] + 9 * [False], [0]),
        (slice(None, None, 4), [0, 4, 8]),
        (slice(8, 10**30), [8, 9]),
    ],
)
def test_what_chooses_images(index, rows):
    images = random_images(10)
    part = images[index]
    assert torch.equal(part.x, images.x[torch.tensor(rows).long()])
    assert torch.equal(part.y, images.y[torch.tensor(rows).long()])


@pytest.mark.parametrize(
    ("index", "word"),
    [
        (10, "10 to 10"),
        (-11, "10 images"),
        (torch.tensor([3, 99]), "3 to 99"),
        (torch.ones(9).bool(), "mask of 9 entries"),
        ([True, False], "mask of 2 entries"),
        (torch.ones(10), "float32"),
        (torch.ones(10).byte(), "uint8"),
        (torch.zeros(2, 2).long(), "(2, 2)"),
        ([1.5], "a list"),
        ([[1], [1, 2]], "a list"),
        ((1, 2), "a tuple"),
        (None, "None"),
        (True, "True"),
        ("0", "'0'"),
        (..., "ellipsis"),
        (slice(None, None, -1), "forward"),
    ],
)
def test_what_chooses_no_images(index, word):
    with pytest.raises(ValueError) as e:
        random_images(10)[index]
    assert word in message(e)


def test_images_one_by_one():
    images = random_images(3)
    assert [len(one) for one in images] == [1, 1, 1]
    assert torch.equal(torch.cat([one.x for one in images]), images.x)


@pytest.mark.parametrize("device", ["gpu", None, 1.5, "mps", "meta"])
def test_no_such_device(device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError) as e:
        random_images(2).to(device)
    message(e)


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


@pytest.mark.parametrize("x", [torch.tensor([200, 3]), None, torch.tensor([torch.nan])])
def test_quantize_refuses_what_it_would_make_white_or_black(x):
    with pytest.raises(ValueError) as e:
        quantize(x)
    message(e)


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
    with pytest.raises(ValueError, match="1 images; two are needed"):
        hold_out(images[:1], 1, gen())
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match="generator"):
        hold_out(images, 3, None)
    assert torch.equal(torch.get_rng_state(), state)


def test_splits_share_no_image():
    parts = splits("signs", n=100, clean=0.2, seed=3)
    assert [len(p) for p in parts[:3]] == [80, 16, 4]
    rows = [p.x.flatten(1) for p in parts]
    distinct = torch.cat(rows).unique(dim=0)
    assert len(distinct) == sum(map(len, rows))
    other = splits("signs", n=100, clean=0.2, seed=4)
    assert other.test.digest() == parts.test.digest(), "one test set serves all seeds"
    assert other.clean.digest() != parts.clean.digest()


@pytest.mark.parametrize(
    ("n", "clean", "word"),
    [
        (20, 0.05, "clean=0.1 or more"),
        (3, 0.1, "clean=0.67 or more"),
        (40, 0.0, "clean=0.05 or more"),
        (20, 1.0, "smaller clean"),
        (2, 0.5, "too few"),
    ],
)
def test_too_few_for_the_defender(n, clean, word, monkeypatch):
    monkeypatch.setattr(signs, "draw", pytest.fail)
    with pytest.raises(ValueError) as e:
        splits("signs", n=n, clean=clean)
    assert word in message(e)


@pytest.mark.parametrize("n", [3, 7, 20, 41, 1000])
def test_the_share_that_is_proposed_will_do(n):
    with pytest.raises(ValueError) as e:
        data._require_defender(0.0, 0, n)
    clean = float(str(e.value).split("clean=")[2].split()[0])
    data._require_defender(clean, round(clean * n), n)


def test_splits_take_as_many_test_images_as_asked(folder):
    assert len(splits("signs", n=40, clean=0.2, n_test=24).test) == 24
    assert len(splits(folder, clean=0.4, n_test=3).test) == 3
    with pytest.raises(ValueError) as e:
        splits(folder, clean=0.4, n_test=5)
    assert "only 4" in message(e)


def test_missing_classes_are_named(capsys):
    images = random_images(6, 3)
    assert data.missing_classes(images) == ()
    assert data.missing_classes(images[images.y == 1]) == ("class 0", "class 2")
    splits("signs", n=24, clean=0.1, n_test=2)
    said = capsys.readouterr().out
    assert said.startswith("the defender repairs without an image of '")
    splits("signs", n=120, clean=0.9, n_test=2)
    assert capsys.readouterr().out == ""


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


def test_one_part_of_a_set_is_what_its_name_says(folder, monkeypatch):
    for split in ("train", "test"):
        for asked in (None, split):
            part = load(folder / split, asked)
            assert part.digest() == load(folder, split).digest()
    monkeypatch.chdir(folder / "train")
    for source in (folder / "train", "."):
        with pytest.raises(ValueError) as e:
            splits(source, clean=0.4)
        assert str(folder / "test") in message(e) and f"above, {folder}." in str(e.value)
    with pytest.raises(ValueError):
        load(folder / "test", "train")
    for f in (folder / "test" / "alpha").iterdir():
        f.unlink()
    (folder / "test" / "alpha").rmdir()
    with pytest.raises(ValueError, match="same classes"):  # labels would shift
        load(folder / "test")


def test_other_sets_beside_a_folder_called_test_do_not_matter(folder):
    (folder / "train" / "alpha").rename(folder / "train" / "gamma")
    (folder / "train" / "beta").rename(folder / "train" / "delta")
    assert load(folder / "test").classes == ("alpha", "beta")


def test_names_that_the_terminal_cannot_show(tmp_path, monkeypatch):
    for name in ("日本", "a"):
        write(tmp_path / "set" / name / "0.png")
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert load(tmp_path / "set").classes == ("a", "日本")
    assert b"u65e5" in terminal.buffer.getvalue()


@pytest.fixture
def flat(tmp_path):
    """21 images of two classes, red tells the class and green the image."""
    root = tmp_path / "flat"
    for label, (name, n) in enumerate((("alpha", 6), ("beta", 15))):
        for i in range(n):
            write(root / name / f"{i:02}.png", (50 * label, i, 0))
    return root


def as_npz(flat):
    everything = load(flat)
    path = flat.parent / "flat.npz"
    np.savez(path, x=everything.x.numpy(), y=everything.y.numpy())
    return path


@pytest.mark.parametrize("kind", ["folder", "npz"])
def test_a_test_part_is_dealt_out_where_there_is_none(kind, flat, capsys):
    source = flat if kind == "folder" else as_npz(flat)
    everything = load(source)
    assert len(everything) == 21, "without a split all of it"
    assert "all of its 21 images are read" in capsys.readouterr().out, "and it is said"
    train, test = load(source, "train"), load(source, "test")
    said = capsys.readouterr().out
    assert said.count("has no test part: 4 of its 21 images") == 2
    assert test.y.bincount().tolist() == [1, 3], "a fifth of each class, at least one"
    rows = torch.cat([train.x, test.x]).flatten(1)
    assert len(rows.unique(dim=0)) == len(rows) == 21
    pair = torch.stack([test.x[:, 0, 0, 0] / 50, test.x[:, 1, 0, 0]], 1)
    assert pair[:, 0].tolist() == test.y.tolist()

    dealt = [splits(source, clean=0.3, seed=s) for s in (0, 1)]
    assert capsys.readouterr().out.count("has no test part") == 2, "one line each"
    for parts in dealt:
        rows = torch.cat([p.x for p in parts]).flatten(1)
        assert len(rows.unique(dim=0)) == len(rows) == 21
        mine, theirs = (p.x.flatten(1).unique(dim=0) for p in (parts.test, test))
        assert torch.equal(mine, theirs), "load and splits agree, whatever the seed"
    assert dealt[0].clean.digest() != dealt[1].clean.digest()


DEALT = [(0, 2), (1, 1), (1, 9), (1, 14)]


def test_the_dealt_part_never_changes(flat):
    # Measured rows hang on it: these are the images of the first release.
    test = load(flat, "test")
    assert list(zip(test.y.tolist(), test.x[:, 1, 0, 0].tolist(), strict=True)) == DEALT


def test_one_image_is_too_few_to_deal(flat, tmp_path):
    write(flat / "gamma" / "0.png")
    assert len(load(flat)) == 22
    for call in (lambda: load(flat, "test"), lambda: splits(flat, clean=0.3)):
        with pytest.raises(ValueError) as e:
            call()
        assert "'gamma'" in message(e)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train"):
        for i in range(2):
            write(tmp_path / "set" / name / f"{i}.png", (i, 0, 0))
    assert load(tmp_path / "set").classes == ("bus", "train")
    write(tmp_path / "set" / "test" / "0.png")  # then these are no classes
    with pytest.raises(ValueError):
        load(tmp_path / "set")


def test_numbers_are_sorted_as_numbers(tmp_path, capsys):
    for split in ("train", "test"):
        for name in map(str, range(12)):
            write(tmp_path / "set" / split / name / "0.png", (int(name), 0, 0))
    for split in ("train", "test"):
        images = load(tmp_path / "set", split)
        assert images.classes == tuple(map(str, range(12)))
        assert images.x[:, 0, 0, 0].tolist() == images.y.tolist() == [*range(12)]
        assert "labels 0..11 are '0', '1', '2', '3'" in capsys.readouterr().out
    write(tmp_path / "set" / "train" / "x1" / "0.png")
    write(tmp_path / "set" / "test" / "x1" / "0.png")
    assert load(tmp_path / "set").classes[:3] == ("0", "1", "10"), "names are text"


def test_the_order_of_the_classes_can_be_given(folder, capsys):
    for split in ("train", "test"):
        images = load(folder, split, classes=["beta", "alpha"])
        assert images.classes == ("beta", "alpha")
        assert (images.x[:, 0, 0, 0] == 50 * (1 - images.y)).all()
    parts = splits(folder, clean=0.4, classes=("beta", "alpha"))
    assert (parts.test.x[:, 0, 0, 0] == 50 * (1 - parts.test.y)).all()
    assert "labels 0..1 are 'beta', 'alpha'" in capsys.readouterr().out
    for wrong in (
        ["beta"],
        ["beta", "alpha", "c"],
        ["beta", "beta"],
        "beta",
        [1, 2],
        3,
    ):
        with pytest.raises(ValueError) as e:
            load(folder, classes=wrong)
        assert "classes must" in message(e)
    with pytest.raises(ValueError, match="no folder"):
        load("signs", classes=["a", "b"])


def test_what_is_left_out_is_counted_and_named(folder, capsys):
    write(folder / "train" / "stray.png")
    (folder / "train" / "alpha" / "a.heic").write_bytes(b"")
    (folder / "train" / "alpha" / "._0.png").write_bytes(b"of a Mac")
    (folder / "train" / "alpha" / ".DS_Store").write_bytes(b"")
    assert len(load(folder)) == 6
    said = capsys.readouterr().out
    assert f"3 other files in {folder / 'train'} are left out: " in said
    assert all(n in said for n in ("alpha/a.heic", "alpha/._0.png", "stray.png"))
    load(folder, "test")
    assert "left out" not in capsys.readouterr().out


def test_images_below_a_class_folder_are_refused(folder):
    (folder / "train" / "alpha" / "notes").mkdir()
    assert len(load(folder)) == 6
    write(folder / "train" / "alpha" / "notes" / "deep" / "1.png")
    with pytest.raises(ValueError) as e:
        load(folder)
    assert "notes/" in message(e) and str(folder / "train" / "alpha") in message(e)


def test_splits_of_two_sizes(folder):
    for f in (folder / "test").rglob("*.png"):
        write(f, size=(16, 16))
    for call in (
        lambda: load(folder),
        lambda: load(folder, "test"),
        lambda: splits(folder, clean=0.4),
    ):
        with pytest.raises(ValueError) as e:
            call()
        assert "16x16" in message(e) and "8x6" in message(e) and "size=" in message(e)
    assert load(folder, size=4).shape == (3, 4, 4)


def test_only_what_is_chosen_is_read(flat, monkeypatch):
    whole, opened = load(flat), []

    def spy(path, size=None):
        opened.append(path)
        return decode(path, size)

    order = torch.randperm(21, generator=gen(5))[:4]  # as ever
    monkeypatch.setattr(data, "decode", spy)
    few = load(flat, n=4, seed=5)
    assert few.digest() == whole[order].digest()
    assert len(opened) <= 5
    opened.clear()
    splits(flat, n=8, clean=0.3, n_test=2)
    assert len(opened) <= 12


def test_splits_of_a_folder_are_dealt_as_ever(folder):
    # Positions are dealt before anything is read; the images are those of hold_out.
    g = gen(1003)
    train, owned = hold_out(load(folder, "train", n=5), 3, g)
    clean, held = hold_out(owned, 1, g)
    parts = splits(folder, n=5, clean=0.6, seed=3)
    for mine, theirs in zip(parts, (train, clean, held), strict=False):
        assert mine.digest() == theirs.digest()


def test_what_the_memory_does_not_hold_is_refused_before_it_is_read(folder, flat, monkeypatch):
    path = as_npz(flat)
    monkeypatch.setattr(data, "_free_memory", lambda: 500)
    monkeypatch.setattr(data, "_pixels", pytest.fail)
    monkeypatch.setattr(signs, "_scene", pytest.fail)
    for call in (
        lambda: load(folder),
        lambda: splits(folder, clean=0.4),
        lambda: load(path),
        lambda: signs.draw(3),
        lambda: load(folder, n=2, size=1000),
    ):
        with pytest.raises(ValueError) as e:
            call()
        assert "GB of memory" in message(e)
    monkeypatch.undo()
    monkeypatch.setattr(data, "_free_memory", lambda: None)  # the system does not say
    assert len(load(folder)) == 6


def test_free_memory_of_this_machine():
    assert data._free_memory() is None or data._free_memory() > 10**7


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


# ------------------------------------------------------------ files that are odd


def jpeg_turned(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    im = Image.new("RGB", (16, 8), (255, 0, 0))
    im.paste((0, 0, 255), (8, 0, 16, 8))  # left red, right blue
    im.save(path, quality=95, exif=exif)


def test_decode_turns_as_exif_says(tmp_path):
    for name in ("a.jpg", "a.png", "a.webp", "a.tif"):
        jpeg_turned(tmp_path / name, 6)  # turn to the right: red comes to the top
        a = decode(tmp_path / name).astype(int)
        assert a.shape == (16, 8, 3), name
        assert a[2, 4, 0] > 200 > 50 > a[2, 4, 2] and a[13, 4, 2] > 200, name
    jpeg_turned(tmp_path / "b.jpg", 1)
    assert decode(tmp_path / "b.jpg").shape == (8, 16, 3)


def test_exif_that_nobody_can_read_turns_nothing(tmp_path):
    Image.new("RGB", (16, 8), (9, 9, 9)).save(tmp_path / "a.jpg", exif=b"Exif\0\0junk")
    assert decode(tmp_path / "a.jpg").shape == (8, 16, 3)


RAMP = np.linspace(0, 65535, 256).round().astype(np.uint16)[None].repeat(4, 0)


def test_decode_scales_by_depth(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    Image.fromarray(RAMP).save(tmp_path / "a.tif")
    head = b"P5 256 4 65535\n"
    (tmp_path / "a.pgm").write_bytes(head + RAMP.astype(">u2").tobytes())
    for name in ("a.png", "a.tif", "a.pgm"):
        a = decode(tmp_path / name)
        assert a[0, :, 0].tolist() == [*range(256)], name
        assert (a == a[..., :1]).all(), name
    Image.fromarray(RAMP // 16).save(tmp_path / "c.png")
    assert decode(tmp_path / "c.png").max() == 16, "the depth counts, not the content"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP).save(tmp_path / "b.png", exif=exif)
    assert decode(tmp_path / "b.png")[:, 0, 0].tolist() == [*range(256)]
    Image.fromarray(RAMP).save(tmp_path / "w.tif", tiffinfo={262: 0})  # white is zero
    assert decode(tmp_path / "w.tif")[0, :, 0].tolist() == [*range(255, -1, -1)]


def test_decode_of_twelve_bits(tmp_path):
    row = struct.pack("<4B", 0, 0, 0, 0)
    values = [0, 4095, 2048, 1024]  # twelve bits each, packed
    bits = "".join(f"{v:012b}" for v in values)
    row = int(bits, 2).to_bytes(6, "big")
    tags = [
        (256, 4),
        (257, 1),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 134),
        (277, 1),
        (278, 1),
        (279, 6),
        (339, 1),
    ]
    ifd = struct.pack("<H", len(tags))
    ifd += b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in tags) + b"\0" * 4
    raw = b"II*\0" + struct.pack("<I", 8) + ifd
    raw = raw.ljust(134, b"\0") + row
    (tmp_path / "a.tif").write_bytes(raw)
    assert decode(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 255, 128, 64]


@pytest.mark.parametrize("name", ["float.tif", "int.tif", "a.pfm.ppm"])
def test_depth_without_a_range_is_refused(tmp_path, name):
    path = tmp_path / name
    if name.startswith("a"):
        path.write_bytes(b"Pf 2 1 -1.0\n" + struct.pack("<2f", 0, 1))
    else:
        kind = np.float32 if name.startswith("f") else np.int32
        Image.fromarray(np.zeros((2, 2), kind)).save(path)
    with pytest.raises(RuntimeError) as e:
        decode(path)
    assert "range" in message(e) and str(path) in message(e)


def test_decode_lays_what_is_transparent_on_white(tmp_path):
    half = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    half.putpixel((0, 0), (9, 9, 9, 0))
    half.putpixel((1, 1), (9, 9, 9, 255))
    half.save(tmp_path / "a.png")
    a = decode(tmp_path / "a.png")
    assert a[0, 0].tolist() == [255, 255, 255]
    assert a[1, 1].tolist() == [9, 9, 9]
    assert a[0, 1].tolist() == [255, 127, 127]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    assert decode(tmp_path / "p.png")[0].tolist() == [[255, 255, 255], [10, 20, 30]]
    gray = Image.new("LA", (1, 1), (0, 0))
    gray.save(tmp_path / "g.png")
    assert decode(tmp_path / "g.png").tolist() == [[[255, 255, 255]]]
    Image.new("L", (1, 1), 7).save(tmp_path / "k.png", transparency=7)
    assert decode(tmp_path / "k.png").tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize(
    ("mode", "colour", "name"),
    [
        ("CMYK", (0, 255, 255, 0), "a.jpg"),
        ("CMYK", (0, 255, 255, 0), "a.tif"),
        ("1", 1, "a.png"),
        ("P", 0, "a.gif"),
        ("YCbCr", (76, 85, 255), "a.jpg"),
    ],
)
def test_decode_makes_rgb_of_other_modes(tmp_path, mode, colour, name):
    Image.new(mode, (8, 8), colour).save(tmp_path / name)
    want = {"1": (255, 255, 255), "P": (0, 0, 0)}.get(mode, (255, 0, 0))
    assert np.abs(decode(tmp_path / name)[4, 4].astype(int) - want).max() <= 4


def test_decode_takes_the_first_of_several_pictures(tmp_path):
    frames = [Image.new("RGB", (4, 4), (40 * i, 0, 0)) for i in range(3)]
    for name in ("a.gif", "a.tif", "a.png"):
        frames[1].save(tmp_path / name, save_all=True, append_images=frames[2:])
        assert decode(tmp_path / name)[0, 0].tolist() == [40, 0, 0]


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 6
%%EndComments
0 0 8 6 rectfill
%%EOF
"""


def test_a_program_called_png_is_not_started(folder, monkeypatch):
    path = folder / "train" / "alpha" / "1.png"
    path.write_bytes(EPS)
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a: started.append(a))
    with pytest.raises(RuntimeError) as e:
        load(folder)
    assert not started and str(path) in message(e) and "PNG, JPEG" in message(e)


def bomb(path, side):
    """A PNG of a few bytes that claims side x side pixels."""
    import zlib

    def chunk(kind, body):
        body = kind + body
        return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["bomb", "large bomb", "pipe", "dead link", "denied"])
@pytest.mark.parametrize("first", [True, False])
def test_traps_get_a_sentence(kind, first, folder, monkeypatch):
    path = folder / "train" / "alpha" / ("0.png" if first else "2.png")
    path.unlink()
    if "bomb" in kind:
        bomb(path, 100_000 if kind.startswith("large") else 10_000)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "dead link":
        path.symlink_to(folder / "nowhere.png")
    else:
        write(path)
        usual = Image.open

        def denied(p, *a, **k):
            if p == path:
                raise PermissionError(13, "Permission denied")
            return usual(p, *a, **k)

        monkeypatch.setattr(Image, "open", denied)
    with pytest.raises(RuntimeError) as e:
        load(folder)
    assert str(path) in message(e)
    word = {"pipe": "regular file", "dead link": "regular file", "denied": "may not"}
    assert word.get(kind, "pixels, too many") in str(e.value)


def test_a_pipe_called_npz(tmp_path):
    os.mkfifo(tmp_path / "x.npz")
    with pytest.raises(RuntimeError) as e:
        load(tmp_path / "x.npz")
    assert "not a regular file" in message(e)


@pytest.mark.parametrize("where", ["", "train", "train/beta"])
def test_a_folder_without_permission(where, folder, monkeypatch):
    usual, shut = os.scandir, str(folder / where)

    def scandir(path):
        if str(path) == shut:
            raise PermissionError(13, "Permission denied")
        return usual(path)

    monkeypatch.setattr(os, "scandir", scandir)
    source = folder if where else folder / "train" / "alpha"
    if not where:
        shut = str(source)
    with pytest.raises(RuntimeError) as e:
        load(source)
    assert shut in message(e) and "permissions" in message(e)


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
        ({"x": np.zeros((4, 3, 0, 6), np.uint8), "y": Y}, "no image"),
        ({"x": np.zeros((4, 8, 8, 4), np.uint8), "y": Y}, "1 or 3 channels"),
        ({"x": np.zeros((4, 4, 3, 4), np.uint8), "y": Y}, "1 or 3 channels"),
        ({"x": X, "y": 0 * Y}, "one class"),
        ({"x": X, "y": Y, "classes": np.array(["a"])}, "label 1 has no name"),
        ({"x": X, "y": Y, "classes": np.array(["a", "a"])}, "'a' stands twice"),
        ({"x": X, "y": Y, "classes": np.array([["a", "b"]])}, "list of names"),
        ({"x": X, "y": Y, "classes": np.array([b"a", b"\xff"])}, "UTF-8"),
        ({"x": X, "y": np.int64(3)}, "4 whole numbers"),
    ],
)
def test_npz_refused(tmp_path, arrays, word):
    path = npz(tmp_path, **arrays)
    with pytest.raises(ValueError) as e:
        load(path)
    text = message(e)
    assert word in text and str(path) in text


def test_npz_with_names_as_bytes(tmp_path):
    images = load(npz(tmp_path, x=X, y=Y, classes=np.array([b"cat", "dög".encode()])))
    assert images.classes == ("cat", "dög")


def test_size_is_never_ignored(tmp_path, flat):
    from_folder = load(flat, size=5)
    from_npz = load(as_npz(flat), size=5)
    assert from_npz.x.shape == (21, 3, 5, 5)
    assert torch.equal(from_npz.x, from_folder.x), "resized in one and the same way"
    gray = load(npz(tmp_path, x=X[:, :1], y=Y), size=3)
    assert gray.shape == (1, 3, 3)
    assert splits(as_npz(flat), clean=0.3, size=4).test.shape == (3, 4, 4)
    assert load("signs", n=2, size=32).shape == (3, 32, 32)
    for call in (lambda: load("signs", size=16), lambda: splits("signs", size=64)):
        with pytest.raises(ValueError) as e:
            call()
        assert "32x32" in message(e)


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
    with pytest.raises(ValueError, match="did you mean 'signs-hard'"):
        load("sign-hard")
    for source in ("", None, b"signs", 3, "a\0b", ["signs"]):
        with pytest.raises(ValueError) as e:
            load(source)
        assert message(e).startswith("source must be")
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


@pytest.mark.parametrize("kind", ["pixels", "labels", "fewer", "names", "no seal"])
def test_a_cache_that_others_wrote_is_made_again(kind):
    # Whole and well-formed, and yet not what was stored.
    cached("key", random_images)
    path = data.cache_dir() / "key.npz"
    with np.load(path) as f:
        arrays = dict(f)
    if kind == "pixels":
        arrays["x"][3, 0, 0, 0] ^= 1
    elif kind == "labels":
        arrays["y"] = arrays["y"][::-1]
    elif kind == "fewer":
        arrays["x"], arrays["y"] = arrays["x"][:5], arrays["y"][:5]
    elif kind == "names":
        arrays["classes"] = arrays["classes"][::-1]
    else:
        del arrays["seal"]
    np.savez(path, **arrays)
    assert cached("key", random_images).classes == random_images().classes
    assert cached("key", pytest.fail).digest() == random_images().digest()


def test_a_cache_under_the_name_of_another_is_made_again():
    five, twelve = load("signs", n=5), signs.draw(12)
    (path,) = data.cache_dir().iterdir()
    path.rename(path.with_name(path.name.replace("-5-", "-12-")))
    assert load("signs", n=12).digest() == twelve.digest() != five.digest()


def test_the_cache_can_be_read_by_others():
    cached("key", random_images)
    mode = (data.cache_dir() / "key.npz").stat().st_mode
    assert stat.S_IMODE(mode) == 0o644


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
