"""Records of BackdoorBench: read like the original, refused when anything is odd."""

from __future__ import annotations

import re
import zipfile
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from bdcourse import defenses, foreign
from bdcourse.defenses import DEFENSES
from bdcourse.metrics import evaluate
from bdcourse.models import build
from foreign_models import K, changed, made, normal, record, refused, same_answers
from helpers import ROOT


@pytest.mark.slow
def test_backdoorbench_round_trip(tmp_path):
    path, x, clean = record(tmp_path, side=32)
    for given in (path, tmp_path):
        found = foreign.backdoorbench(given)
        t = found.triggered
        assert torch.equal(t.x, x) and (t.goal == 1).all()
        assert torch.equal(t.y, clean.y[clean.y != 1])
        assert found.about == {
            "format": "BackdoorBench v2",
            "model": "preactresnet18",
            "data": "cifar10",
            "classes": K,
            "goals": [1],
        }
        assert same_answers(found.model, made("preact"))
    with torch.no_grad():
        said = made("preact")(normal(x.float() / 255)).argmax(1)
    s = evaluate(found.model, clean, t)
    assert s.n_clean == 24 and s.n_triggered == len(x)
    assert s.asr == pytest.approx((said == 1).double().mean().item())
    assert s.ra == pytest.approx((said == t.y).double().mean().item())
    after = DEFENSES["clp"](found.model)
    assert evaluate(after.model, clean, t).n_triggered == len(x)


def respelled(path, old, new):
    """The same file with another module name in its pickle."""
    with zipfile.ZipFile(path) as z:
        parts = {i.filename: z.read(i) for i in z.infolist()}
    name = next(n for n in parts if n.endswith("data.pkl"))
    assert old in parts[name]
    parts[name] = parts[name].replace(old, new)
    with zipfile.ZipFile(path, "w") as z:
        for n, data in parts.items():
            z.writestr(n, data)


@pytest.mark.parametrize("core", [b"core", b"_core"])
def test_files_of_numpy_1_and_2(core, tmp_path):
    path, x, _ = record(tmp_path)
    own = np.empty(0).__reduce__()[0].__module__.encode()
    respelled(path, b"c" + own + b"\n", b"cnumpy." + core + b".multiarray\n")
    assert torch.equal(foreign.backdoorbench(path).triggered.x, x)


@pytest.mark.slow
def test_normalization_follows_the_data(tmp_path):
    other = made("preact")
    path, _, _ = record(tmp_path, clean_data="gtsrb")
    model = foreign.backdoorbench(path).model
    assert same_answers(model, other, (0.0,) * 3, (1.0,) * 3)
    mean = (0.1, 0.2, 0.3)
    model = foreign.backdoorbench(path, mean=mean, std=(2, 2, 2)).model
    assert same_answers(model, other, mean, (2.0,) * 3)
    model = foreign.backdoorbench(path, std=(2, 2, 2)).model
    assert same_answers(model, other, (0.0,) * 3, (2.0,) * 3)
    path, _, _ = record(tmp_path, clean_data="my own")
    refused(ValueError, lambda: foreign.backdoorbench(path), "my own", "mean= and std=")
    assert len(foreign.backdoorbench(path, mean=mean, std=mean).triggered) == 19


def test_clean_rows_of_the_test_set_are_left_out(tmp_path):
    path, x, _ = record(tmp_path)

    def change(whole):
        whole["bd_test"]["original_index_array"] = np.arange(24)[::-1].copy()

    changed(path, change)
    assert torch.equal(foreign.backdoorbench(path).triggered.x, x.flip(0))


@pytest.mark.slow
@pytest.mark.parametrize("stored", ["../../etc/passwd", "/etc/passwd", "../secret.png"])
def test_stored_paths_are_never_followed(stored, tmp_path):
    folder = tmp_path / "record"
    folder.mkdir()
    path, x, _ = record(folder)
    secret = tmp_path / "record" / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)

    def change(whole):
        box = whole["bd_test"]["bd_data_container"]
        box["save_folder_path"] = whole["bd_test"]["save_folder_path"] = "/etc"
        for entry in box["data_dict"].values():
            entry["path"] = stored

    changed(path, change)
    assert torch.equal(foreign.backdoorbench(path).triggered.x, x)
    (folder / "bd_test_dataset" / "0" / "0.png").unlink()
    call = lambda: foreign.backdoorbench(path)  # noqa: E731
    refused(FileNotFoundError, call, "1 of 19", "0/0.png", "images=")
    (folder / "bd_test_dataset" / "0" / "0.png").symlink_to(secret)
    refused(ValueError, call, "link", "0.png")


@pytest.mark.parametrize("bad", ["../../secret", "/etc/passwd", 1.5, None, 10**30])
@pytest.mark.parametrize("what", ["index", "label"])
def test_only_whole_numbers_name_images(what, bad, tmp_path):
    path, _, _ = record(tmp_path)

    def change(whole):
        box = whole["bd_test"]["bd_data_container"]["data_dict"]
        if what == "index":
            whole["bd_test"]["original_index_array"] = [bad]
            box[bad] = box[0]
        else:
            box[0]["other_info"] = [1, bad]

    changed(path, change)
    refused(ValueError, lambda: foreign.backdoorbench(path), "laid out", "v1")


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("num_classes", 7, "7 classes"),
        ("num_classes", "ten", "laid out"),
        ("img_size", (9, 9, 3), "9x9"),
        ("img_size", None, "laid out"),
        ("bd_test", None, "foreign.weights"),
        ("bd_test", {"x": torch.zeros(2, 3, 8, 8), "y": torch.zeros(2)}, "v1"),
        ("model", made("odd"), "net="),
    ],
)
def test_wrong_fields(key, value, word, tmp_path):
    path, _, _ = record(tmp_path, **{key: value})
    refused(ValueError, lambda: foreign.backdoorbench(path), word)


def test_labels_out_of_range_and_empty(tmp_path):
    path, _, _ = record(tmp_path)
    call = lambda: foreign.backdoorbench(path)  # noqa: E731
    for info, word in (([9, 0], "label 9"), ([1, -1], "label -1")):

        def change(whole, info=info):
            box = whole["bd_test"]["bd_data_container"]["data_dict"]
            box[0]["other_info"] = info

        changed(path, change)
        refused(ValueError, call, word, "0..4")
    changed(path, lambda w: w["bd_test"]["bd_data_container"]["data_dict"].clear())
    refused(ValueError, call, "no triggered image")


@pytest.mark.slow
def test_images_that_are_missing_or_broken(tmp_path):
    path, x, _ = record(tmp_path)
    (tmp_path / "bd_test_dataset").rename(tmp_path / "elsewhere")
    call = lambda: foreign.backdoorbench(path)  # noqa: E731
    refused(FileNotFoundError, call, "19 of 19", "bd_test_dataset")
    found = foreign.backdoorbench(path, images=tmp_path / "elsewhere")
    assert torch.equal(found.triggered.x, x)
    (tmp_path / "elsewhere").rename(tmp_path / "bd_test_dataset")
    one = tmp_path / "bd_test_dataset" / "2" / "2.png"
    whole = one.read_bytes()
    for raw in (whole[:60], b"", b"%!PS-Adobe-3.0 EPSF-3.0\n", whole[:-40]):
        one.write_bytes(raw)
        refused(ValueError, call, "2.png", "PNG")
    Image.new("RGB", (8, 8)).save(one, format="BMP")
    refused(ValueError, call, "2.png", "PNG")
    Image.new("RGB", (6, 8)).save(one)
    refused(ValueError, call, "6x8", "8x8")


def test_gray_images(tmp_path):
    model = build("preact_resnet18", classes=K, width=2, mean=(0.5,), std=(0.5,))
    path, x, _ = record(tmp_path, clean_data="mnist", model=model)
    t = foreign.backdoorbench(path).triggered
    assert t.x.shape == (19, 1, 8, 8) and (t.x[:, :, -2:, -2:] == 255).all()
    path, _, _ = record(tmp_path, clean_data="mnist")
    refused(ValueError, lambda: foreign.backdoorbench(path), "1 channels")


# ------------------------------------------------------------------- what we promise


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "book/measuring.md"])
def test_the_ten_lines_do_what_the_page_says(page, tmp_path, monkeypatch, capsys):
    text = (ROOT / page).read_text()
    (code,) = (
        c for c in re.findall(r"```python\n(.*?)```", text, re.S) if "foreign" in c and "g," in c
    )
    lines = [line for line in code.splitlines() if line]
    assert len(lines) == 9
    folder = tmp_path / "record" / "badnet_0_1"
    folder.mkdir(parents=True)
    _, _, clean = record(folder, side=32)
    for i, y in enumerate(clean.y.tolist()):
        picture = Image.fromarray(clean.x[i].permute(1, 2, 0).numpy())
        for part in ("train", "test"):
            (tmp_path / "my/images" / part / f"{y}").mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "my/images" / part / f"{y}" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(defenses, "fip", partial(defenses.fip, steps=2, batch=4))
    exec(code.replace("n=2000", "n=12"), {})
    assert capsys.readouterr().out.count("ACC") == 3
