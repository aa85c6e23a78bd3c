"""Files that are odd, and arrays in an .npz."""

from __future__ import annotations

import io
import os
import struct

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from bdcourse.data import decode, load, splits
from helpers import message
from pictures import as_npz, write

pytestmark = pytest.mark.usefixtures("own_cache")


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
    ("mode", "color", "name"),
    [
        ("CMYK", (0, 255, 255, 0), "a.jpg"),
        ("CMYK", (0, 255, 255, 0), "a.tif"),
        ("1", 1, "a.png"),
        ("P", 0, "a.gif"),
        ("YCbCr", (76, 85, 255), "a.jpg"),
    ],
)
def test_decode_makes_rgb_of_other_modes(tmp_path, mode, color, name):
    Image.new(mode, (8, 8), color).save(tmp_path / name)
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
