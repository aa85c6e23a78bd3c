"""The cache: it remembers, mends itself, and never stands in the way."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdcourse import data, signs
from bdcourse.data import cached, load
from helpers import random_images

pytestmark = pytest.mark.usefixtures("own_cache")


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
            np.save(f, np.arange(9))
    else:
        np.savez(path, x=np.zeros((4, 3, 5, 6)), y=np.array([0, 1, 1, 0]), classes=np.array(["a"]))
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
