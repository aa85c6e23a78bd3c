"""Clouds from files: what is read, and what is refused in a sentence."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from PIL import Image

import bdcourse as bd
from bdcourse.images import Images
from bdcourse.tasks import points
from bdcourse.tasks.points import Clouds
from bdcourse.tasks.points.files import from_file, thinned
from helpers import gen, message

# Four corners of a flat sheet of 4 x 1: two triangles, or one polygon.
SHEET = "0 0 0\n4 0 0\n4 1 0\n0 1 0\n"
TRIANGLES = "3 0 1 2\n3 0 2 3\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def pcd(form, x, fields="x y z", padding=b""):
    head = f"# .PCD v0.7\nVERSION 0.7\nFIELDS {fields}\nSIZE 4 4 4{' 1' * len(padding)}\n"
    head += f"TYPE F F F{' U' * len(padding)}\nCOUNT 1 1 1{' 1' * len(padding)}\n"
    head += f"WIDTH {len(x)}\nHEIGHT 1\nPOINTS {len(x)}\nDATA {form}\n"
    if form == "ascii":
        return head.encode() + "\n".join(" ".join(map(repr, map(float, p))) for p in x).encode()
    return head.encode() + b"".join(struct.pack("<3f", *p) + padding for p in x)


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


def as_sets(*clouds):
    return [sorted(map(tuple, c.tolist())) for c in clouds]


# -------------------------------------------------------------------- one file


def test_a_mesh_gets_points_evenly_by_area(tmp_path):
    # The first triangle of the sheet is as large as the second, a third is 9 times both.
    mesh = "OFF\n# a comment\n7 3 0\n" + SHEET + "10 0 0\n22 0 0\n10 6 0\n"
    mesh += TRIANGLES + "3 4 5 6\n"
    x = from_file(write(tmp_path / "a.off", mesh), 4000)
    assert x.shape == (4000, 3) and x.dtype == torch.float32
    assert float(x[:, 2].abs().max()) == 0 and abs(float(x.norm(dim=1).max()) - 1) < 1e-4
    across = x[:, 0] - x[:, 0].min()
    gap = across.sort().values.diff().argmax()
    assert abs((int(gap) + 1) / 4000 - 4 / 40) < 0.015
    assert torch.equal(x, from_file(tmp_path / "a.off", 4000)), "the same each time"


@pytest.mark.parametrize(
    "text", ["OFF\n4 2 0\n" + SHEET + TRIANGLES, "OFF4 2 0\n" + SHEET + TRIANGLES]
)
def test_headers_and_polygons_of_a_mesh(tmp_path, text):
    x = from_file(write(tmp_path / "a.off", text), 3000)
    far = x.abs().amax(0)
    assert abs(float(far[0] / far[1]) - 4) < 0.1 and float(far[2]) == 0
    # A polygon is cut into the same two triangles.
    y = from_file(write(tmp_path / "b.off", "OFF\n4 1 0\n" + SHEET + "4 0 1 2 3\n"), 3000)
    assert torch.allclose(x.var(0), y.var(0), atol=0.02)


def test_points_are_read_alike_from_all_forms(tmp_path, rows):
    np.save(tmp_path / "a.npy", np.concatenate([rows, rows], 1))
    files = [
        write(tmp_path / "a.pcd", pcd("ascii", rows)),
        write(tmp_path / "b.pcd", pcd("binary", rows)),
        write(tmp_path / "c.pcd", pcd("binary", rows, "x y z _", b"\0")),
        write(tmp_path / "a.txt", "\n".join(",".join(map(str, [*p, 9, 9])) for p in rows)),
        write(tmp_path / "a.xyz", "# x y z\n" + "\n".join(" ".join(map(str, p)) for p in rows)),
        tmp_path / "a.npy",
    ]
    found = [from_file(f, 40) for f in files]
    want = points.on_grid(torch.from_numpy(rows)[None])[0]
    for x in found:
        assert as_sets(x) == as_sets(want)
    swapped = from_file(write(tmp_path / "d.pcd", pcd("binary", rows, "z y x")), 40)
    assert as_sets(swapped[:, [2, 1, 0]]) == as_sets(want)


def test_a_random_part_of_the_points_is_kept():
    x = torch.randn(2, 50, 3, generator=gen(), dtype=torch.float64)
    part = thinned(x, 20, gen())
    for cloud, kept in zip(x, part, strict=True):
        whole, own = as_sets(cloud, kept)
        assert len(set(own)) == 20 and set(own) <= set(whole)
    assert not torch.equal(part, x[:, :20])
    assert as_sets(*thinned(x, 50, gen())) == as_sets(*x)


BAD = {
    "a.off": [
        ("PLY\n", "does not begin with OFF"),
        ("OFF\n4 2 0\n" + SHEET + "3 0 1 9\n3 0 2 3\n", "cannot be read as off"),
        ("OFF\n4 2 0\n" + SHEET + "3 0 1 -1\n3 0 2 3\n", "faces of corners that do not exist"),
        ("OFF\n4 0 0\n" + SHEET, "it has no faces"),
        ("OFF\n4 2 0\n0 0 0\n", "cannot be read as off"),
        ("OFF\n4 1 0\n" + SHEET + "3 0 0 0\n", "a mesh has no area"),
        ("OFF\n4 1 0\n" + SHEET.replace("4 1", "nan 1") + "3 0 1 2\n", "not finite"),
    ],
    "a.pcd": [
        ("VERSION 0.7\n", "it has no DATA"),
        (pcd("binary", np.ones((3, 3))).replace(b"DATA binary", b"DATA binary_compressed"),
         "its data are binary_compressed"),
        (pcd("binary", np.ones((3, 3)))[:-1], "cannot be read as pcd"),
        (pcd("binary", np.ones((3, 3)), "x y i"), "cannot be read as pcd"),
        (pcd("ascii", np.ones((3, 3))), "has 3 points, but 10 are asked for"),
        (pcd("ascii", np.ones((12, 3))), "not all the same"),
        (pcd("ascii", np.full((12, 3), np.nan)), "points that are not finite"),
    ],
    "a.txt": [("1 2\n3 4\n", "begin with three numbers"), ("1 2 a\n", "cannot be read as txt")],
    "a.npy": [(b"no array", "cannot be read as npy")],
}  # fmt: skip


@pytest.mark.parametrize("name, text, part", [(n, *row) for n in BAD for row in BAD[n]])
def test_what_cannot_be_read_is_refused(tmp_path, name, text, part):
    path = write(tmp_path / name, text)
    with pytest.raises((ValueError, RuntimeError), match=part) as e:
        from_file(path, 10)
    assert name in message(e)


# -------------------------------------------------------------------- whole sets


def folder(root, splits=("",), n=5, inside=False):
    for k, name in enumerate(("flat", "tall")):
        for split in splits:
            for i in range(n):
                x = np.random.default_rng([k, i, len(split)]).normal(size=(30, 3)) * [1, 1, 0.1 + k]
                own = root / name / split if inside else root / split / name
                write(own / f"{i}.txt", "\n".join(" ".join(map(str, p)) for p in x))
    return root


def test_a_folder_of_class_folders(tmp_path, capsys):
    root = folder(tmp_path)
    whole = bd.load(root, size=20)
    assert (
        type(whole) is Clouds and whole.x.shape == (10, 20, 3) and whole.classes == ("flat", "tall")
    )
    high = whole.x[..., 2].std(1)
    assert high[whole.y == 0].max() < high[whole.y == 1].min(), "labels are those of the folders"
    parts = [bd.load(root, split, size=20) for split in ("train", "test")]
    assert [len(p) for p in parts] == [8, 2]
    assert "has no test part" in capsys.readouterr().out
    other = bd.load(root, size=20, classes=["tall", "flat"])
    assert other.classes == ("tall", "flat") and torch.equal(other[:5].x, whole[5:].x)
    assert torch.equal(bd.load(root, size=20).x, whole.x), "the same each time"


@pytest.mark.parametrize("inside", [False, True])
def test_train_and_test_above_the_classes_or_inside(tmp_path, inside):
    root = folder(tmp_path, ("train", "test"), 4, inside)
    parts = bd.splits(root, size=25, clean=0.5)
    assert type(parts.train) is Clouds and [len(p) for p in parts] == [4, 3, 1, 8]
    assert parts.test.shape == (25, 3)
    with pytest.raises(ValueError, match="has 30 points, but 40 are asked for; pass size=30") as e:
        bd.load(root, size=40)
    message(e)


def test_folders_that_are_refused(tmp_path):
    root = folder(tmp_path / "a")
    for wrong in ({"size": 1}, {"size": 2.5}, {"classes": ["flat"]}):
        with pytest.raises(ValueError) as e:
            bd.load(root, **wrong)
        message(e)
    (root / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no file with a cloud") as e:
        bd.load(root, size=20)
    message(e)
    alone = folder(tmp_path / "b")
    for f in (alone / "tall").glob("*"):
        f.unlink()
    (alone / "tall").rmdir()
    with pytest.raises(ValueError, match="at least two; found 1") as e:
        bd.load(alone, size=20)
    message(e)


def test_images_with_text_beside_them_are_images(tmp_path):
    root = folder(tmp_path)
    for name in ("flat", "tall"):
        for i in range(5):
            Image.new("RGB", (8, 8)).save(root / name / f"{i}.png")
    assert type(bd.load(root)) is Images
    (root / "flat" / ".hidden").mkdir()
    assert type(bd.load(folder(tmp_path / "b"), size=20)) is Clouds


def test_packed_arrays_with_and_without_a_test_part(tmp_path):
    clouds = points.draw(40)
    whole = (clouds.x.numpy() * 32767).round().astype(np.int16)
    y = clouds.y.numpy().astype(np.uint8)
    np.savez(tmp_path / "one.npz", x=whole, y=y, classes=np.array(clouds.classes))
    back = bd.load(tmp_path / "one.npz")
    assert type(back) is Clouds and back.classes == clouds.classes
    assert as_sets(back.x[0].mul(1000).round())[0] == as_sets(clouds.x[0].mul(1000).round())[0]
    np.savez(
        tmp_path / "two.npz", x_train=whole[:30], y_train=y[:30], x_test=whole[30:], y_test=y[30:]
    )
    train, test = (bd.load(tmp_path / "two.npz", s, size=100) for s in ("train", "test"))
    assert train.x.shape == (30, 100, 3) and test.x.shape == (10, 100, 3)
    assert train.classes == test.classes == tuple(map(str, range(10)))
    assert len(bd.load(tmp_path / "two.npz")) == 30, "of two parts the first"


@pytest.mark.parametrize(
    "arrays, part",
    [
        ({"x": np.zeros((4, 5, 3))}, "lacks the array 'y'"),
        ({"x_train": np.ones((4, 5, 3)), "y_train": np.zeros(4, int)}, "lacks the array 'x_test'"),
        ({"x": np.zeros((4, 5, 3)), "y": np.zeros(3, int)}, "must be 4 labels, one per cloud"),
        ({"x": np.zeros((4, 5, 3)), "y": np.zeros(4)}, "must be whole numbers"),
        ({"x": np.zeros((4, 5, 3)), "y": np.array(list("abcd"))}, "must be whole numbers"),
        ({"x": np.zeros((4, 5, 3)), "y": np.zeros(4, int)}, "not all the same"),
        ({"x": np.full((4, 5, 3), np.inf), "y": np.zeros(4, int)}, "not finite"),
        ({"x": np.zeros((0, 5, 3)), "y": np.zeros(0, int)}, "must be numbers of shape"),
        ({"x": np.zeros((4, 5, 3), bool), "y": np.zeros(4, int)}, "must be numbers of shape"),
    ],
)
def test_arrays_that_are_refused(tmp_path, arrays, part):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=part) as e:
        bd.load(tmp_path / "a.npz")
    message(e)
