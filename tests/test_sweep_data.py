"""Image input: one bad argument at a time gets an answer or one sentence of ours."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bdcourse import compat, data, signs
from bdcourse.data import Images, decode, hold_out, join, load, quantize, splits
from bdcourse.examples import Poisoned, require_clean
from helpers import gen, random_images
from sweep import NUMBERS, THINGS, WHOLE, refusal

ODD = [*THINGS, "", "a\0b", "x" * 5000, "no/where", "x.npz", "cifar11", "/dev/null"]
INDICES = [
    *THINGS,
    *WHOLE,
    [2.5],
    [[1], [1, 2]],
    (0, 1),
    ...,
    {1},
    slice("a", 3),
    slice(0, 5, 0),
    slice(None, None, -1),
    np.zeros((2, 2)),
    np.array(["a"]),
    torch.zeros(3, 3).long(),
    torch.tensor([10**15]),
    [10**30],
    torch.ones(4).to("meta"),
    torch.zeros(4).byte(),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BDCOURSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A folder with both parts, one without, an .npz, and drawn signs."""
    root = tmp_path_factory.mktemp("sources")
    for where in ("two/train", "two/test", "one"):
        for name in ("a", "b"):
            (root / where / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (8, 8), (i, 0, 0)).save(root / where / name / f"{i}.png")
    x = np.zeros((12, 8, 8, 3), np.uint8)
    np.savez(root / "x.npz", x=x, y=np.arange(12) % 2)
    return root / "two", root / "one", root / "x.npz", "signs"


def sweep(call, **lists):
    """Give `call` one value of these lists at a time; how many were refused."""
    refused = 0
    for name, values in lists.items():
        for value in values:
            refused += refusal(lambda n=name, v=value: call(**{n: v})) is not None
    return refused


def test_load(sources, monkeypatch):
    def fail(*_, **__):
        raise OSError("no network in a test")

    monkeypatch.setattr(compat.import_torchvision().datasets, "CIFAR10", fail)
    assert sweep(lambda source: load(source, n=2), source=ODD) == len(ODD)
    for source in sources:
        usual = {"source": source, "n": 2}

        def call(usual=usual, **one):
            return load(**(usual | one))

        assert sweep(call, n=WHOLE[1:]) == len(WHOLE) - 1
        assert sweep(call, size=WHOLE) == len(WHOLE) - 1, "None is right"
        assert sweep(call, seed=WHOLE) == len(WHOLE) - 2, "0 and 10**12 are right"
        assert sweep(call, split=ODD) == len(ODD) - 1
        names = [*THINGS, ["a"], ["a", "a"], ["a", "b", "c"], "ab", [1, 2], ("b",)]
        assert sweep(call, classes=names) == len(names) - 1
    sweep(lambda root: load("cifar10", root=root), root=ODD)


def test_splits(sources):
    for source in sources:
        usual = {"source": source, "n": 6, "n_test": 2, "clean": 0.4}

        def call(usual=usual, **one):
            return splits(**(usual | one))

        assert sweep(call, clean=NUMBERS) == len(NUMBERS)
        assert sweep(call, n=WHOLE[1:], n_test=WHOLE[1:]) == 2 * len(WHOLE) - 2
        assert sweep(call, seed=WHOLE) == len(WHOLE) - 2
        assert sweep(call, size=WHOLE, classes=THINGS) == len(WHOLE + THINGS) - 2


def test_images():
    images = random_images(4)
    usual = {"x": images.x, "y": images.y, "classes": images.classes}
    odd = [
        images.x.float(),
        images.x[0],
        images.x[:, :0],
        images.x.to("meta"),
        images.x.to_sparse(),
        images.x.bool(),
        images.y.int(),
        images.y[:2],
        images.y + 9,
        -images.y,
        images.y.to("meta"),
    ]
    names = [*THINGS, ("a",), ("a", "a", "b"), [1, 2, 3], "abc"]
    doors = {"x": [*THINGS, *odd], "y": [*THINGS, *odd], "classes": names}
    refused = sweep(lambda **one: Images(**(usual | one)), **doors)
    assert refused == sum(map(len, doors.values())), "none of these can be meant"
    usual |= {"role": torch.zeros(4).char()}
    doors = {
        "role": [
            *THINGS,
            torch.zeros(4),
            torch.full((4,), 7).char(),
            torch.zeros(3).char(),
            torch.zeros(4).char().to("meta"),
        ],
        "late": THINGS[1:],
    }
    sweep(lambda **one: Poisoned(**(usual | one)), **doors)
    poisoned = Poisoned(**usual)
    for thing in (images, poisoned):
        sweep(lambda i, t=thing: t[i], i=INDICES)
        sweep(lambda device, t=thing: t.to(device), device=[*THINGS, *WHOLE])


def test_functions_of_images():
    images = random_images(6)
    things = [*THINGS, images.x, images[:0], images[:1]]
    usual = {"images": images, "n": 2, "generator": gen()}
    sweep(
        lambda **one: hold_out(**(usual | one)),
        images=things,
        n=WHOLE,
        generator=THINGS,
    )
    others = [*things, random_images(6, 2), random_images(6, side=4)]
    sweep(lambda first=images, second=images: join(first, second), first=others, second=others)
    sweep(lambda x: quantize(x), x=[*things, images.x.bool(), images.y / 0])
    sweep(lambda i: data.missing_classes(i), i=things)
    sweep(lambda i: require_clean(i), i=things)


def test_drawing():
    usual = {"n": 2}
    sweep(
        lambda **one: signs.draw(**(usual | one)),
        n=WHOLE,
        seed=WHOLE,
        hard=[*THINGS, 1, 0],
    )


def test_decode(tmp_path):
    Image.new("L", (3, 3)).save(tmp_path / "a.png")
    assert sweep(lambda path: decode(path), path=ODD) == len(ODD)
    sweep(lambda size: decode(tmp_path / "a.png", size), size=WHOLE)


KINDS = ("png", "jpeg", "bmp", "ppm", "webp", "tiff", "gif")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.sampled_from(KINDS),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    st.integers(0, 400) | st.none(),
)
def test_damaged_files(tmp_path, kind, changes, keep):
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (200, 10, 30)).save(file, kind)
    raw = bytearray(file.getvalue()[:keep])
    for at, value in changes:
        if raw:
            raw[at % len(raw)] = value
    path = tmp_path / "damaged.png"
    path.write_bytes(raw)
    seen = []
    if refusal(lambda: seen.append(decode(path))) is None:
        assert seen[0].dtype == np.uint8 and seen[0].shape[2] == 3


@pytest.mark.slow
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(st.integers(0, 4), min_size=0, max_size=5),
    st.sampled_from(["u1", "i8", "f4", "?", "S3", "U2", "c8", "M8[s]"]),
    st.lists(st.integers(-1, 3), max_size=5),
    st.sampled_from(["i8", "u1", "f4", "?", "U2", "u8"]),
    st.none() | st.lists(st.text(max_size=2), max_size=4),
)
def test_odd_arrays(tmp_path, shape, dtype, labels, kind, names):
    arrays = {"x": np.zeros(shape, dtype)}
    arrays["y"] = np.abs(labels).astype(kind) if kind[0] == "u" else np.array(labels)
    if kind[0] != "u":
        arrays["y"] = arrays["y"].astype(kind)
    if names is not None:
        arrays["classes"] = np.array(names)
    np.savez(tmp_path / "odd.npz", **arrays)
    refusal(lambda: load(tmp_path / "odd.npz"))
    refusal(lambda: load(tmp_path / "odd.npz", "test"))
