"""Sets of images by name, from folders and in parts."""

from __future__ import annotations

import io
import sys
import urllib.error

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bdcourse import compat, data, signs
from bdcourse.data import Images, decode, hold_out, load, splits
from helpers import gen, message, random_images
from pictures import as_npz, write

pytestmark = pytest.mark.usefixtures("own_cache")


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


@pytest.mark.slow
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


def test_folder_with_splits(folder):
    train, test = load(folder, "train"), load(str(folder), "test")
    assert (len(train), len(test)) == (6, 4)
    assert train.classes == test.classes == ("alpha", "beta")
    assert train.shape == (3, 6, 8), "height 6, width 8"
    assert train.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert train.x[:, 0, 0, 0].tolist() == [0, 0, 0, 50, 50, 50], "red tells the class"
    assert train.x[:, 1, 0, 0].tolist() == [0, 1, 2, 0, 1, 2]
    assert test.x[0, 2, 0, 0] == 2, "blue tells the split"


@pytest.mark.slow
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
    assert images.x[4, :, 5, 5].tolist() == [50, 1, 3], "a plain color stays"


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
