"""Bad arguments for attacks, trainings, victims and checkpoints: one sentence each."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from bdcourse import checkpoint, files, victims
from bdcourse.attacks import (
    ATTACKS,
    LF,
    BadNets,
    TrojanNN,
    checkerboard,
    noise_picture,
    rebuild,
    surviving,
)
from bdcourse.attacks import adaptive_training as aware
from bdcourse.attacks.adap import color_patches
from bdcourse.attacks.label_consistent import AdversarialTraining
from bdcourse.attacks.refool import draws, reflections
from bdcourse.attacks.tact import color_patch
from bdcourse.attacks.wanet import control_grid
from bdcourse.bench import zoo
from bdcourse.models import build
from bdcourse.train import Augment, fit
from helpers import gen, random_images
from sweep import NUMBERS, THINGS, WHOLE, refusal

IMAGES = random_images(40, 10, side=16)
MODEL = build("resnet18", classes=10, width=2).eval()
PATTERN = torch.zeros(3, 16, 16)
FEW = {
    "TrojanNN": {"iterations": 1},
    "LF": {"passes": 1, "sample": 4},
    "SSBA": {"steps": 2, "bits": 4, "filters": 2, "batch": 2},
    "InputAware": {"filters": 2, "mask_steps": 1},
    "LIRA": {"filters": 2},
    "FBA": {"detox_steps": 1},
    "LabelConsistent": {"steps": 1},
}
# What `cls(...)` needs beside its defaults, and what makes it quick.
NEEDS = {c: {"pattern": PATTERN} for c in ("TrojanNN", "LF")}
NEEDS |= {"Refool": {"bank": torch.zeros(1, 1, 8, 8), "draws": torch.zeros(1, 8)}}
NEEDS |= {"SSBA": {"filters": 2}} | {c: {"filters": 2} for c in ("InputAware", "LIRA")}
TENSORS = (
    torch.zeros(0),
    torch.zeros(()),
    torch.full((3, 16, 16), math.nan),
    torch.full((3, 16, 16), -0.1),
    torch.full((1, 3, 3), 255.0),
    torch.full((4, 3, 3, 3), 2.0),
    torch.full((1, 3, 3), 255, dtype=torch.uint8),
    torch.zeros(3, 3, 3, dtype=torch.complex64),
    torch.zeros(3, 0, 3),
)
OTHERS = ((1, 2, 3, 4), (0.5,), ("a", "b"), (math.nan, 1), (-1, 10**12))
ANY = (*WHOLE, *NUMBERS, *THINGS, *TENSORS, *OTHERS, np.int64(10**9), np.zeros(3))


def made(name):
    cls = ATTACKS[name]
    attack = cls.craft(IMAGES, gen(), model=MODEL, **FEW.get(name, {}))
    if isinstance(getattr(attack, "trained", None), torch.Tensor):
        attack.trained.fill_(1)
    return attack


@pytest.fixture(scope="module")
def attacks():
    return {name: made(name) for name in ATTACKS}


def unique(values):
    """Without repetitions: True == 1 and nan != nan, so by what is printed."""
    return {f"{type(v).__name__} {v!r}": v for v in values}.values()


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_options(name):
    cls = ATTACKS[name]
    for f in fields(cls):
        for value in unique(ANY) if f.init else ():
            options = NEEDS.get(name, {}) | {f.name: value}
            try:
                refusal(lambda o=options: cls(**o))
            except AssertionError as e:
                raise AssertionError(f"{f.name}={value!r}: {e}") from e


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("value", [1.5, True, "1", -1, None, math.nan])
def test_a_target_is_a_label(name, value):
    said = refusal(lambda: ATTACKS[name](**NEEDS.get(name, {}), target=value))
    assert said.startswith("target must be a whole number")


X, Y = IMAGES.pixels()[:4], IMAGES.y[:4]
WRONG = {
    "bytes": IMAGES.x[:4],
    "0..255": 255 * X,
    "nan": X.clone().fill_(math.nan),
    "negative": X - 1,
    "one image": X[0],
    "channels": X[:, :2],
    "complex": X.to(torch.complex64),
    "array": X.numpy(),
    "nothing": None,
    "Images": IMAGES,
}
LABELS = (None, 3, [0, 1, 2, 3], Y.float(), Y.int(), Y[:3], Y - 5, Y[None], Y[0])


@pytest.mark.parametrize("name", ATTACKS)
def test_pixels_and_labels(attacks, name):
    attack = attacks[name]
    for what, x in WRONG.items():
        calls = {
            "trigger": lambda x=x: attack.trigger(x),
            "plant": lambda x=x: attack.plant(x, Y, gen()),
            "cross": lambda x=x: attack.cross(x, Y, gen()),
            "rewrite": lambda x=x: attack.rewrite(x, Y, 0.5, gen()),
        }
        if attack.threat == "data" or not hasattr(type(attack), "rewrite"):
            del calls["rewrite"]
        for method, call in calls.items():
            # Two channels are as good as three for a wave, a warp or fewer levels.
            free = what == "channels" and name in (
                *("BadNets", "SIG", "WaNet", "Bpp", "LabelConsistent"),
                *("Composite", "InputAware", "LIRA", "FBA", "TaCT"),
            )
            assert refusal(call) is not None or free, (method, what)
    for y in LABELS:
        for call in (
            lambda y=y: attack.plant(X, y, gen()),
            lambda y=y: attack.cross(X, y, gen()),
        ):
            assert refusal(call) is not None
        if y is not LABELS[5]:
            for call in (
                lambda y=y: attack.goal(y),
                lambda y=y: attack.counts(y),
                lambda y=y: attack.choose(y, 0.5, gen()),
            ):
                assert refusal(call) is not None
    for g in (None, 3, "cpu", np.random.default_rng()):
        assert refusal(lambda g=g: attack.plant(X, Y, g)) is not None
        assert refusal(lambda g=g: attack.cross(X, Y, g)) is not None
        assert refusal(lambda g=g: attack.choose(Y, 0.1, g)) is not None
    for side in (1, 2, 3, 5, 7, 40):
        refusal(lambda side=side: attack.trigger(torch.rand(2, 3, side, 9)))
        refusal(lambda side=side: attack.trigger(torch.rand(2, 1, 9, side)))
    assert attack.trigger(X[:0]).shape == (0, 3, 16, 16)


@pytest.mark.parametrize("name", ATTACKS)
def test_poison_and_steer(attacks, name):
    attack = attacks[name]
    poisoned = BadNets(target=1).poison(IMAGES, 0.2, gen())
    for images in (*THINGS, IMAGES.x, poisoned, IMAGES[:0]):
        assert refusal(lambda i=images: attack.poison(i, 0.1, gen())) is not None
        assert refusal(lambda i=images: attack.steer(MODEL, i, gen(), 9)) is not None
    assert "Poisoned" in refusal(lambda: attack.poison(poisoned, 0.1, gen()))
    others = {"c": 1}, {"c": 4}, {"side": 5}, {"k": 3}
    for images in (random_images(40, **({"k": 10} | other)) for other in others):
        refusal(lambda i=images: attack.poison(i, 0.1, gen()))
    for rate in unique((*NUMBERS, *THINGS)):
        assert refusal(lambda r=rate: attack.poison(IMAGES, r, gen())) is not None
        if rate is not None:
            call = lambda r=rate: attack.steer(MODEL, IMAGES, gen(), 9, rate=r)  # noqa: E731
            assert refusal(call) is not None
    for g in (None, 0, "x"):
        assert refusal(lambda g=g: attack.poison(IMAGES, 0.1, g)) is not None
        assert refusal(lambda g=g: attack.steer(MODEL, IMAGES, g, 9)) is not None
    for stamp in ("during", None, 1, b"before"):
        call = lambda s=stamp: attack.poison(IMAGES, 0.1, gen(), stamp=s)  # noqa: E731
        assert refusal(call) is not None
    for model in THINGS:
        assert refusal(lambda m=model: attack.steer(m, IMAGES, gen(), 9)) is not None


class Tuple(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 10)

    def forward(self, x):
        return (self.linear(x.mean((2, 3))),)


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_craft(name):
    cls, few = ATTACKS[name], FEW.get(name, {})
    poisoned = BadNets(target=1).poison(IMAGES, 0.2, gen())
    for images in (*THINGS, poisoned, IMAGES[:0]):
        assert refusal(lambda i=images: cls.craft(i, gen(), model=MODEL)) is not None
    for g in (None, 3):
        assert refusal(lambda g=g: cls.craft(IMAGES, g, model=MODEL)) is not None
    for model in ("no", 3, b"x", object()):
        assert refusal(lambda m=model: cls.craft(IMAGES, gen(), model=m)) is not None
    models = (None, Tuple(), nn.Identity(), nn.Conv2d(1, 2, 1), nn.Linear(3, 10))
    for model in (*models, build("resnet18", classes=3, width=2)):

        def call(model=model):
            attack = cls.craft(IMAGES, gen(), model=model, target=9, **few)
            if attack.threat == "data":
                attack.poison(IMAGES, 0.05, gen())

        refusal(call)
    said = refusal(lambda: cls.craft(IMAGES, gen(), model=MODEL, tarket=1))
    assert "did you mean 'target'?" in said
    own = {
        "TrojanNN": ("radius", "start", "value", "epsilon", "step", "patience"),
        "LF": ("enough", "sample", "batch", "sigma", "taps"),
        "SSBA": ("batch", "encoder_lr", "weight", "apart", "verbose"),
    }
    for option in own.get(name, ()):
        for value in unique((*NUMBERS, *THINGS, *WHOLE)):
            if isinstance(value, (int, float)) and 1e9 < value < math.inf:
                continue  # can be meant, and takes a while
            options = few | {option: value}
            refusal(lambda o=options: cls.craft(IMAGES, gen(), model=MODEL, **o))


def test_helpers_of_attacks():
    for value in unique((*WHOLE, *THINGS)):
        for call in (
            lambda v=value: checkerboard(v),
            lambda v=value: noise_picture(v),
            lambda v=value: noise_picture(4, v),
            lambda v=value: noise_picture(4, 3, v),
            lambda v=value: color_patch(v),
            lambda v=value: color_patches(v),
            lambda v=value: control_grid(v),
            lambda v=value: control_grid(4, v),
            lambda v=value: reflections(v),
            lambda v=value: reflections((3, v, 8)),
            lambda v=value: draws(v),
            lambda v=value: draws(3, v),
            lambda v=value: surviving(v, BadNets()),
            lambda v=value: surviving(2, v),
            lambda v=value: surviving(2, BadNets(), v),
            lambda v=value: LF.random(v),
            lambda v=value: LF.random((3, 8, 8), v),
            lambda v=value: rebuild(v, {}),
            lambda v=value: rebuild({"name": v}, {}),
            lambda v=value: rebuild({"name": "BadNets", "target": v}, {}),
            lambda v=value: AdversarialTraining(MODEL, IMAGES, gen(), 3, epsilon=v, step=v),
            lambda v=value: aware.steer(v),
            lambda v=value: aware.Smoothing(v, 0.1, gen()),
            lambda v=value: aware.Smoothing(MODEL, v, gen()),
            lambda v=value: zoo.chosen(v),
            lambda v=value: victims.zoo(v),
        ):
            refusal(call)


def linear(k=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, k))


FIT = {
    "model": (*THINGS, nn.Flatten(), Tuple(), nn.Conv2d(1, 2, 1), nn.Conv2d(3, 2, 1)),
    "data": (*THINGS, IMAGES[:1], IMAGES.x, random_images(8, side=4)),
    "epochs": [v for v in NUMBERS if v != 1e300],
    "lr": NUMBERS,
    "batch": WHOLE,
    "momentum": (*NUMBERS, 1.0),
    "weight_decay": (*NUMBERS, 1e6),
    "warmup": NUMBERS,
    "schedule": (*THINGS, "step"),
    "smoothing": NUMBERS,
    "shifts": NUMBERS,
    "shrink": NUMBERS,
    "augment": (*THINGS, Augment),
    "frozen_norms": THINGS,
    "generator": THINGS,
    "hook": (*THINGS, lambda *_: 3),
    "each_epoch": (*THINGS, lambda _: 3),
    "verbose": THINGS,
    "bf16": THINGS,
    "compile": THINGS,
    "checkpoint": (3, b"", "", [], object(), "/", "/dev/null"),
}


@pytest.mark.parametrize("name", FIT)
def test_fit(name):
    fine = {"epochs": 1, "batch": 8, "generator": gen(), "verbose": False, "lr": 0.01}
    for value in unique(FIT[name]):
        model = linear()
        given = {"model": model, "data": IMAGES} | fine | {name: value}

        def call(given=given):
            fit(given.pop("model"), given.pop("data"), **given)

        said = refusal(call)
        optional = name in ("augment", "hook", "each_epoch", "bf16", "compile", "generator")
        fine_too = value is None and optional
        fine_too |= name == "hook" and value == []  # no hook
        fine_too |= name == "batch" and value == 10**12  # all images
        assert said is not None or fine_too, value


@pytest.mark.parametrize("value", [*WHOLE, *THINGS])
def test_augment(value):
    refusal(lambda: Augment(value).once(IMAGES.x[:2], gen()))
    refusal(lambda: Augment(1, value).once(IMAGES.x[:2], gen()))


MAKE = {
    "train": (*THINGS, IMAGES[:0], BadNets().poison(IMAGES, 0.1, gen())),
    "test": (*THINGS, IMAGES[:0], random_images(20, 3), random_images(20, 10)),
    "attack": (*THINGS[1:], BadNets, BadNets(target=12), TrojanNN(pattern=PATTERN[:1])),
    "arch": (
        *THINGS,
        *({"name": "resnet18", "width": w} for w in WHOLE if w != True),  # noqa: E712
        *({"name": "resnet18", "classes": w} for w in WHOLE),
        {"name": "resnet81"},
        {"name": "vit", "width": 130},
        {"name": "resnet18", "widht": 4},
        {"name": "resnet18", "mean": [math.nan] * 3},
        {"name": "resnet18", "std": [0.0] * 3},
        {"name": "resnet18", "mean": [0.5]},
        {"name": "resnet18", "mean": "rgb"},
        {"width": 3},
    ),
    "rate": NUMBERS[1:],
    "stamp": THINGS,
    "seed": [v for v in WHOLE if v not in (0, 10**12) or v is True],
    "pad": WHOLE[1:4],
    "flip": THINGS,
    "aware": THINGS[1:],
    "recipe": (3, "x", [1]),
    "epochs": (None, "3", -1, 0, math.nan),
    "lr": (None, math.nan, math.inf, -1.0),
    "nothing": (3,),
}


@pytest.mark.parametrize("name", MAKE)
def test_make(name):
    fine = {"train": IMAGES, "test": IMAGES, "attack": BadNets(), "epochs": 0.2}
    fine |= {"arch": {"name": "resnet18", "width": 2}, "batch": 8, "verbose": False}
    for value in unique(MAKE[name]):
        given = fine | {name: value}

        def call(given=given):
            parts = [given.pop(k) for k in ("train", "test", "attack")]
            victims.make(*parts, **given)

        assert refusal(call) is not None, value


@pytest.mark.slow
def test_save_and_load(tmp_path):
    victim = victims.Victim(
        MODEL,
        {"name": "resnet18", "classes": 10, "width": 2},
        BadNets(),
        victims.Scores(0.5, 0.9, 0.1, 10, 9),
        {},
    )
    for value in (*THINGS, MODEL):
        assert refusal(lambda v=value: victims.save(v, tmp_path / "v")) is not None
    for value in (None, 3, "", b"", [], object()):
        assert refusal(lambda v=value: victims.save(victim, v)) is not None
        assert refusal(lambda v=value: victims.load(v)) is not None
    for value in ("gpu", "cuda:77", 3.5, [], object()):
        assert refusal(lambda v=value: victims.zoo("badnets", v)) is not None
    assert refusal(lambda: victims.load(tmp_path)) is not None
    path = victims.save(victim, tmp_path / "v")
    header = json.loads((tmp_path / "v.json").read_text())
    attack, scores = header["attack"], header["scores"]
    values = (None, -3, "x", [1], math.nan)
    wrong = [{k: v} for k in header for v in values]
    arch = header["arch"]
    wrong += [{"arch": arch | {k: v}} for k in (*arch, "mean", "std") for v in values]
    wrong += [{"attack": attack | {k: v}} for k in attack for v in values]
    wrong += [{"scores": scores | {k: v}} for k in scores for v in values]
    for change in wrong:
        (tmp_path / "v.json").write_text(json.dumps(header | change))
        refusal(lambda: victims.load(path))
    for text in (b"\xff\xfe", b"[" * 100_000, b"\x00", b'{"format": NaN}'):
        (tmp_path / "v.json").write_bytes(text)
        assert refusal(lambda: victims.load(path)) is not None


def test_checkpoints(tmp_path):
    for value in (3, 1.5, [], {}, object(), "", tmp_path):
        assert refusal(lambda v=value: checkpoint.Checkpoint(v, {})) is not None
        if value is not tmp_path:
            call = lambda v=value: files.write_whole(v, b"x")  # noqa: E731
            assert refusal(call) is not None
    (tmp_path / "f").write_bytes(b"x" * 100)
    keep = checkpoint.Checkpoint(tmp_path / "f", {})
    assert "damaged" in refusal(keep.load)
    inside = checkpoint.Checkpoint(tmp_path / "f" / "g", {})
    assert "could not be written" in refusal(lambda: inside.save({}))
