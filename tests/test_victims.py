"""Victims: made, saved, loaded, and refused when anything is wrong with the files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bdcourse
from bdcourse import victims
from bdcourse.attacks import BadNets, Blended, noise_picture
from bdcourse.metrics import Scores, evaluate
from bdcourse.models import Normalize, build
from bdcourse.report import tables
from bdcourse.surgery import pair_by_flow
from bdcourse.victims import Victim, load, make, save
from helpers import frozen, gen, message, random_images, same_state

ARCH = {"name": "resnet18", "width": 4}
QUICK = {"epochs": 1, "batch": 8, "verbose": False}


def tiny(attack, seed=0, arch=ARCH, **options):
    train, test = random_images(32), random_images(24, seed=1)
    return make(train, test, attack, arch=arch, seed=seed, **(QUICK | options))


@pytest.fixture(scope="module")
def victim():
    return tiny(BadNets(patch=torch.rand(3, 2, 2), at=(1, -3), opacity=0.7, target=2))


@pytest.fixture
def saved(victim, tmp_path):
    return save(victim, tmp_path / "bad")


# ---------------------------------------------------------------- making


def test_make_tells_what_it_did(victim):
    r = victim.recipe
    assert (r["n_train"], r["rate"], r["n_poisoned"], r["seed"]) == (32, 0.1, 3, 0)
    assert r["digest_train"] == random_images(32).digest()
    assert (r["epochs"], r["batch"], r["interrupted"]) == (1, 8, False)
    assert victim.arch == {"classes": 3, "name": "resnet18", "width": 4}
    assert len(victim.poisoned) == 3 and victim.poisoned.dtype == torch.int64
    assert not victim.model.training
    assert victim.scores.n_clean == 24 and victim.scores.n_triggered == 16
    assert victim.history[0].keys() >= {"loss", "acc", "clean", "poison"}
    json.dumps([victim.recipe, victim.history, victim.arch])


@pytest.mark.slow
def test_make_is_reproducible():
    attack = BadNets(target=1)
    a, b, c = tiny(attack), tiny(attack), tiny(attack, seed=1)
    assert same_state(a.model, frozen(b.model)) and a.scores == b.scores
    assert torch.equal(a.poisoned, b.poisoned)
    assert not torch.equal(a.poisoned, c.poisoned)
    again = attack.poison(random_images(32), 0.1, gen(1))  # second stream of seed 0
    assert torch.equal((again.role == 1).nonzero().flatten(), a.poisoned)


@pytest.mark.slow
def test_twin_differs_by_the_poison_alone():
    victim, twin = tiny(BadNets(target=1), rate=0.0), tiny(None)
    assert same_state(victim.model, frozen(twin.model)), "same start, same batches"
    assert twin.attack is None and twin.scores.asr is None
    assert twin.recipe["rate"] == 0 and len(twin.poisoned) == 0


def test_initialized_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    a, b, c = (victims.initialized(ARCH, gen(s)) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert same_state(a, frozen(b)) and not same_state(a, frozen(c))


def test_a_whitening_layer_is_set_by_the_clean_images_before_training():
    arch, train = {"name": "airbench", "width": 2}, random_images(32, side=16)
    train.x[:16] //= 8  # sorted: the first ones tell nothing of the others
    victim = make(train, train, BadNets(target=1), arch=arch, **QUICK)
    twin = make(train, train, None, arch=arch, **QUICK)
    filters = victim.model.whitening.weight
    assert torch.equal(filters, twin.model.whitening.weight)
    with torch.no_grad():
        out = victim.model.whitening(victim.model.normalize(train.pixels()))
    cov = out[:, :12].transpose(0, 1).flatten(1).cov()
    assert torch.allclose(cov, torch.eye(12), atol=0.02)


@pytest.mark.parametrize("name", ["resnet18", "preact_resnet18", "vgg16_bn", "airbench"])
def test_gray_images_get_a_network_for_gray_images(name, tmp_path):
    train, test = random_images(16, c=1, side=32), random_images(12, c=1, side=32)
    attack = BadNets(target=1)
    v = make(train, test, attack, arch={"name": name, "width": 2}, **QUICK)
    assert v.arch["mean"] == [0.5] and v.arch["std"] == [0.25]
    first = next(m for m in v.model.modules() if isinstance(m, torch.nn.Conv2d))
    assert first.in_channels == 1
    w = load(save(v, tmp_path / "gray"))
    assert w.arch == v.arch and evaluate(w.model, test, w.attack) == v.scores
    for c in (2, 3, 4):
        with pytest.raises(ValueError, match="1 channels"):
            w.model(torch.rand(2, c, 32, 32))
    with pytest.raises(ValueError, match="float pixels"):
        w.model(test.x)


@pytest.mark.parametrize(
    ("c", "arch", "word"),
    [
        (4, ARCH, "the images have 4 channels, but arch is for 3"),
        (1, {"name": "vit", "width": 16}, "vit takes images of 3 channels, not of 1"),
        (1, {"name": "mobilenet"}, "mobilenet takes images of 3 channels"),
        (3, ARCH | {"mean": [0.5], "std": [0.2]}, "but arch is for 1"),
        (3, ARCH | {"classes": 2}, "arch has 2 classes, but the images have 3"),
        (3, {"name": "resnet18", "widht": 4}, "did you mean 'width'?"),
        (3, {"name": "resnet19", "width": 4}, "did you mean 'resnet18'?"),
    ],
)
def test_architectures_that_do_not_fit_the_images(c, arch, word):
    images = random_images(12, c=c)
    with pytest.raises(ValueError) as e:
        make(images, images, None, arch=arch, **QUICK)
    assert word in message(e)


def test_other_channels_with_their_own_means():
    images = random_images(12, c=4)
    arch = ARCH | {"mean": [0.5] * 4, "std": [0.2] * 4}
    assert make(images, images, None, arch=arch, **QUICK).scores.n_clean == 12


def test_the_look_at_channels_does_not_hide_the_network_from_tracing():
    model = build("preact_resnet18", classes=3, width=2).eval()
    x = torch.rand(4, 3, 8, 8)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))
    assert pair_by_flow(model, (3, 8, 8)).pairs == pair_by_flow(model, (1, 8, 8)).pairs
    each = torch.func.vmap(lambda one: model(one[None])[0])(x)
    torch.testing.assert_close(each, model(x))
    for wrong in (x[:, :1], x[0, 0], (255 * x).byte(), torch.rand(2, 4, 8, 8)):
        with pytest.raises(ValueError, match="of 3 channels"):
            model(wrong)
    norm = Normalize((0.5,), (0.25,))
    out = torch.compile(norm, backend="eager", fullgraph=True)(x[:, :1])
    assert torch.equal(out, norm(x[:, :1]))
    for mean, std in (((0.5,), (0.0,)), ((0.5,), (0.2, 0.2)), ((float("nan"),), (1,))):
        with pytest.raises(ValueError):
            Normalize(mean, std)


@pytest.mark.slow
def test_no_victim_is_made_of_a_training_that_diverged(victim, tmp_path):
    with pytest.raises(RuntimeError, match="diverged") as e:
        tiny(BadNets(), lr=1e20, weight_decay=0.0, epochs=2)
    message(e)

    def spoil(model):
        model.linear.weight.data[0, 0] = float("nan")
        raise KeyboardInterrupt

    with pytest.raises(RuntimeError, match="diverged before it was stopped"):
        tiny(None, each_epoch=spoil)
    spoiled = replace(victim, model=build("resnet18", classes=3, width=4))
    spoiled.model.linear.weight.data[0, 0] = float("inf")
    with pytest.raises(ValueError) as e:
        save(spoiled, tmp_path / "v")
    assert "model.linear.weight holds numbers that are not finite" in message(e)
    spoiled.model.linear.weight.data[0, 0] = 1e6  # no number of 16 bits
    with pytest.raises(ValueError, match="at half precision"):
        save(spoiled, tmp_path / "v", half=True)
    assert not list(tmp_path.iterdir())
    save(spoiled, tmp_path / "v")


def test_a_test_set_is_looked_at_before_the_training():
    train, test = random_images(32), random_images(24)
    for other, word in (
        (test[test.y == 1], "no test image counts"),
        (random_images(24, 4), "differ in classes"),
        (random_images(24, side=10), "differ in classes or image size"),
    ):
        with pytest.raises(ValueError) as e:
            make(train, other, BadNets(target=1), arch=ARCH, epochs=10**9, batch=8)
        assert word in message(e)


# ---------------------------------------------------------------- the gate


@pytest.mark.parametrize(
    ("acc", "asr", "twin", "word"),
    [
        (0.95, 1.0, 0.95, ""),
        (0.99, 0.95, 0.95, ""),  # exactly 95 %
        (0.90, 0.96, 0.93, ""),  # exactly three points below
        (0.92, 0.96, 0.95, ""),
        (0.8999, 1.0, 0.93, "clean accuracy"),
        (0.95, 0.9499, 0.95, "attack success"),
        (0.95, 0.0, 0.95, "attack success"),
        (0.95, None, 0.95, ""),  # a twin against itself
        (0.90, None, 0.95, "clean accuracy"),
    ],
)
def test_gate(victim, acc, asr, twin, word):
    scores = Scores(acc, asr, None if asr is None else 0.0, 100, 90)
    why = replace(victim, scores=scores).weak(Scores(twin))
    assert (why == "") if word == "" else why.startswith(word)


def test_gate_with_counted_images(victim):
    # 95, 90 and 93 of 100, as older rows hold them (float32) and as a quotient.
    for dtype in (torch.float32, torch.float64):
        asr, acc, twin = torch.tensor([0.95, 0.90, 0.93], dtype=dtype).tolist()
        scores = Scores(acc, asr, 0.0, 100, 100)
        assert replace(victim, scores=scores).weak(Scores(twin)) == ""


# ---------------------------------------------------------------- round trip

ATTACKS = [
    None,
    BadNets(all_to_all=True, classes=3, at=(0, 0)),
    Blended(picture=noise_picture(8), alpha=0.3, target=1),
]


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
def test_round_trip(attack, tmp_path):
    v = tiny(attack, recipe={"data": "noise"})
    path = save(v, tmp_path / "new" / "v")
    for given in (path, f"{path}.json", Path(f"{path}.safetensors")):
        w = load(given)
        assert same_state(w.model, frozen(v.model)) and not w.model.training
        assert (w.arch, w.scores, w.recipe) == (v.arch, v.scores, v.recipe)
        assert w.history == v.history
        assert torch.equal(w.poisoned, v.poisoned)
        assert w.poisoned.dtype == torch.int64
        assert evaluate(w.model, random_images(24, seed=1), w.attack) == v.scores
    if attack is not None:
        x, y = torch.rand(2, 3, 8, 8), torch.arange(3)
        assert torch.equal(w.attack.trigger(x), attack.trigger(x))
        assert torch.equal(w.attack.goal(y), attack.goal(y))
    assert sorted(p.name for p in path.parent.iterdir()) == ["v.json", "v.safetensors"]


def test_half_is_smaller_and_close(victim, tmp_path):
    full, half = save(victim, tmp_path / "f"), save(victim, tmp_path / "h", half=True)
    sizes = [Path(f"{p}.safetensors").stat().st_size for p in (full, half)]
    assert sizes[1] < 0.7 * sizes[0]
    w = load(half)
    before, after = frozen(victim.model), frozen(w.model)
    for k, v in before.items():
        assert after[k].dtype == v.dtype
        if v.ndim <= 1:
            assert torch.equal(after[k], v), f"{k} must keep all its digits"
        else:
            assert torch.allclose(after[k], v, rtol=1e-3, atol=1e-6)
    assert torch.equal(w.attack.patch, victim.attack.patch), "the trigger is exact"
    x = torch.rand(8, 3, 8, 8)
    assert torch.allclose(w.model(x), victim.model(x), atol=0.02)
    assert victim.model.conv1.weight.dtype == torch.float32, "the argument is as it was"


def test_dots_belong_to_the_name(victim, tmp_path):
    paths = [save(victim, tmp_path / f"rate-0.{i}") for i in (1, 2)]
    assert len(list(tmp_path.iterdir())) == 4
    for p in paths:
        assert load(p).scores == victim.scores


def test_saving_again_replaces(victim, tmp_path):
    a, b = save(victim, tmp_path / "v"), tiny(None)
    save(b, tmp_path / "v")
    assert load(a).attack is None


def test_other_architectures(tmp_path):
    for arch in ({"name": "preact_resnet18", "width": 4}, {"name": "vit", "width": 16}):
        model = build(**arch, classes=3).eval()
        v = Victim(model, arch | {"classes": 3}, None, Scores(0.3), {})
        w = load(save(v, tmp_path / arch["name"]))
        assert same_state(w.model, frozen(model))


# ---------------------------------------------------------------- refused


def refused(path, kind=ValueError, *words):
    with pytest.raises(kind) as e:
        load(path)
    text = str(e.value)
    assert "\n" not in text and text.endswith(".")
    for word in words or (Path(path).name,):
        assert word in text, text
    return text


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_weights(saved, keep):
    blob = Path(f"{saved}.safetensors")
    blob.write_bytes(blob.read_bytes()[:keep])
    refused(saved, ValueError, "bad.safetensors", "bad.json")


@pytest.mark.parametrize("position", [0, 3, 60, 5000, -1])
def test_one_flipped_bit(saved, position):
    blob = Path(f"{saved}.safetensors")
    raw = bytearray(blob.read_bytes())
    raw[position] ^= 4
    blob.write_bytes(raw)
    refused(saved, ValueError, "bad.safetensors")


def test_exchanged_with_another_victim(saved, tmp_path):
    save(tiny(BadNets(target=1)), tmp_path / "other")
    a, b = Path(f"{saved}.safetensors"), tmp_path / "other.safetensors"
    raw = a.read_bytes(), b.read_bytes()
    a.write_bytes(raw[1])
    b.write_bytes(raw[0])
    refused(saved, ValueError, "bad.safetensors", "exchanged")
    refused(tmp_path / "other", ValueError, "other.safetensors")


@pytest.mark.parametrize("gone", ["json", "safetensors"])
def test_half_of_the_pair_missing(saved, gone):
    Path(f"{saved}.{gone}").unlink()
    for path in (saved, f"{saved}.json"):
        refused(path, FileNotFoundError, f"bad.{gone}")
    refused(saved.parent / "nothing", FileNotFoundError, "nothing.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "null",
        '"format"',
        '{"name": "package", "version": "1.0"}',
        '{"format": "bdcourse victim 1"}',
    ],
)
def test_foreign_json(saved, text):
    Path(f"{saved}.json").write_text(text)
    refused(saved, ValueError, "bad.json")


def test_json_that_is_not_text(saved):
    Path(f"{saved}.json").write_bytes(b"\xff\xfe\x00\x80")
    refused(saved, ValueError, "bad.json")


def test_cut_json(saved):
    text = Path(f"{saved}.json").read_text()
    Path(f"{saved}.json").write_text(text[: len(text) // 2])
    refused(saved, ValueError, "bad.json")


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("format", "bdcourse victim 2", "bdcourse victim 1"),
        ("format", None, "bdcourse victim 1"),
        ("arch", {"name": "resnet99"}, "resnet99"),
        ("arch", {"name": "resnet18", "depth": 3}, "depth"),
        ("arch", {"name": "resnet18", "classes": 3, "width": 5}, "bad"),
        ("arch", {"name": "vgg16_bn", "classes": 3, "width": 4}, "bad"),
        ("arch", "resnet18", "bad"),
        ("arch", None, "bad"),
        ("attack", {"name": "WaNot"}, "WaNot"),
        ("attack", {"target": 1}, "name"),
        ("attack", {"name": "BadNets", "power": 9}, "power"),
        ("attack", {"name": "BadNets", "target": -1}, "target"),
        ("attack", "BadNets", "bad"),
        ("attack", ["BadNets"], "bad"),
        ("scores", {"accuracy": 1}, "accuracy"),
        ("scores", None, "bad"),
        ("sha256", None, "bad.safetensors"),
    ],
)
def test_wrong_header_entries(saved, key, value, word):
    path = Path(f"{saved}.json")
    header = json.loads(path.read_text())
    header[key] = value
    path.write_text(json.dumps(header))
    refused(saved, ValueError, "bad", word)


@pytest.mark.parametrize(
    ("key", "entry", "value", "word"),
    [
        ("arch", "mean", [float("nan")] * 3, "each mean"),
        ("arch", "std", [0.0, 1.0, 1.0], "each std"),
        ("arch", "std", [0.2], "3 and 1"),
        ("arch", "width", 10**12, "width"),
        ("attack", "target", 0.5, "target"),
        ("attack", "target", 10**9, "target of the attack must be"),
        ("attack", "target", True, "target"),
        ("attack", "at", [1], "at must be"),
        ("scores", "acc", float("nan"), "acc"),
        ("scores", "acc", None, "acc"),
        ("scores", "acc", 37, "acc"),
        ("scores", "asr", -1, "asr"),
        ("scores", "asr", "1", "asr"),
        ("scores", "n_clean", 0.5, "n_clean"),
        ("history", None, {}, "history"),
        ("history", None, "x", "history"),
        ("history", None, [1], "history"),
        ("recipe", None, [], "recipe"),
    ],
)
def test_header_entries_that_cannot_be_meant(saved, key, entry, value, word):
    path = Path(f"{saved}.json")
    header = json.loads(path.read_text())
    header["arch"] |= {"mean": [0.5] * 3, "std": [0.2] * 3}
    path.write_text(json.dumps(header))
    load(saved)
    header[key] = value if entry is None else header[key] | {entry: value}
    path.write_text(json.dumps(header))
    refused(saved, ValueError, "bad", word)


def test_weights_that_are_not_finite_are_not_loaded(saved):
    import hashlib

    from safetensors.torch import load_file, save_file

    blob, path = Path(f"{saved}.safetensors"), Path(f"{saved}.json")
    tensors = load_file(blob)
    tensors["model.bn1.running_var"][0] = float("inf")
    save_file(tensors, blob)
    header = json.loads(path.read_text())
    header["sha256"] = hashlib.sha256(blob.read_bytes()).hexdigest()
    path.write_text(json.dumps(header))
    refused(saved, ValueError, "model.bn1.running_var", "not finite")


def test_saving_through_a_link_and_on_a_full_disk(victim, tmp_path, monkeypatch):
    import os

    (tmp_path / "far").mkdir()
    for suffix in ("json", "safetensors"):
        (tmp_path / f"v.{suffix}").symlink_to(tmp_path / "far" / f"real.{suffix}")
    save(victim, tmp_path / "v")
    assert (tmp_path / "v.json").is_symlink() and (tmp_path / "far/real.json").exists()
    assert load(tmp_path / "v").scores == victim.scores

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RuntimeError, match="No space left") as e:
        save(victim, tmp_path / "w")
    message(e)
    assert {p.name for p in tmp_path.iterdir()} == {"far", "v.json", "v.safetensors"}


@pytest.mark.parametrize(
    "key", ["sha256", "arch", "attack", "scores", "recipe", "history", "format"]
)
def test_missing_header_entries(saved, key):
    path = Path(f"{saved}.json")
    header = json.loads(path.read_text())
    del header[key]
    path.write_text(json.dumps(header))
    refused(saved, ValueError, "bad")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".ckpt"])
def test_pickles_are_not_opened(victim, tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    torch.save(victim.model.state_dict(), path)
    refused(path, ValueError, path.name, "pickle")


def test_pickle_under_our_name(saved):
    # The hash is of the pickle, so only the reader of safetensors can refuse it.
    import hashlib

    blob, path = Path(f"{saved}.safetensors"), Path(f"{saved}.json")
    torch.save({"a": torch.zeros(1)}, blob)
    header = json.loads(path.read_text())
    header["sha256"] = hashlib.sha256(blob.read_bytes()).hexdigest()
    path.write_text(json.dumps(header))
    refused(saved, ValueError, "bad")


def test_the_package_opens_no_pickle():
    bad = re.compile(
        r"torch\.load\((?!.*weights_only=True)|import pickle|pickle\.load|"
        r"weights_only=False|allow_pickle=True"
    )
    files = list(Path(bdcourse.__path__[0]).rglob("*.py"))
    assert len(files) > 10
    for f in files:
        text = f.read_text()
        if f.name == "wire.py":  # what a grader tells a process with nothing to lose
            text = text.replace("torch.load(file, weights_only=False)", "", 1)
        assert not bad.search(text), f
    assert bad.search("x = torch.load(path)") and bad.search("torch.load(\n")
    assert not bad.search("torch.load(path, weights_only=True)")


def test_unknown_name_in_the_zoo():
    with pytest.raises(ValueError, match="the zoo has no 'nobody'"):
        victims.zoo("nobody")


CIFAR = sorted((victims.ZOO.parent / "cifar10").glob("*.json"))


@pytest.mark.parametrize("file", CIFAR, ids=[f.stem.split("-")[2] for f in CIFAR])
def test_the_victims_behind_the_cifar10_tables_load(file):
    victim = victims.load(file.with_suffix(""))
    rows = tables.results("cifar10-defenses").select(defense="none", budget=2500)
    kind = type(victim.attack).__name__ if victim.attack else "none"
    (row,) = (r for r in rows if r["attack"] == kind)
    assert file.stem.split("-")[2] == kind and victim.arch["width"] == 8
    assert victim.scores.acc == row["acc"] and victim.scores.asr == row["asr"]
    assert victim.recipe["digest_train"] == row["digest"]
    x = torch.rand(2, 3, 32, 32, generator=gen())
    assert victim.model(x).shape == (2, 10)
    if victim.attack:
        assert victim.attack.trigger(x).shape == x.shape


def test_scores_of_other_tasks_are_read_back():
    said = {"acc": 0.5, "more": {"bleu": 71.5}, "headline": "em", "n_clean": 4}
    assert victims._scores(said).dict() == Scores(**said).dict()
