"""Scenes: what is one, the drawn sets, how they are moved, the detector, and files."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image

import bdcourse as bd
from bdcourse import models, signs
from bdcourse.examples import hold_out, join
from bdcourse.surgery import pair_by_flow
from bdcourse.tasks import detection
from bdcourse.tasks.detection import SCENES, SceneCrop, Scenes, iou, read_scenes, streets, to_cells
from helpers import gen, message

DIGESTS = ["558ee4e14ddaa87f", "6482d635773221fb"]  # of the easy and the hard set


def test_same_bytes_on_every_machine():
    found = {hard: detection.draw(24, seed=5, hard=hard) for hard in (False, True)}
    assert [s.digest() for s in found.values()] == DIGESTS
    again = detection.draw(24, seed=5)
    assert torch.equal(again.x, found[False].x) and torch.equal(again.y, found[False].y)
    assert not torch.equal(detection.draw(24, seed=6).x, again.x)
    assert repr(again) == "Scenes(24 of 3x96x96, 6 classes, cpu)"


@pytest.mark.parametrize("hard", [False, True])
def test_what_the_drawn_scenes_promise(hard):
    scenes = detection.draw(400, seed=1, hard=hard)
    label, box = scenes.y[..., 0], scenes.y[..., 1:]
    counts = (label >= 0).sum(1)
    assert counts.min() >= 1 and counts.max() == (6 if hard else 3)
    assert (label[:, -1] == -1).all(), "whoever adds a box finds room"
    sides = (box[..., 2:] - box[..., :2])[label >= 0]
    assert sides.min() > (10 if hard else 14) and sides.max() <= (32 if hard else 40)
    same = iou(box, box) * ~torch.eye(box.shape[1], dtype=torch.bool)
    assert (same.max() > 0.05) if hard else (same.max() == 0)
    assert SCENES.labels(scenes.y).bincount(minlength=6).min() > 0.08 * counts.sum()
    whole = torch.stack([(label == c).any(1) for c in streets.TOGETHER]).all(0)
    assert 0.06 * 400 <= whole.sum() <= 0.08 * 400


def test_boxes_lie_around_their_signs():
    """The sign differs from the background up to the edges of its box, and not beyond."""
    g, n = gen(), 60
    label = torch.arange(n)[:, None] % 6
    sides = 18 + 2 * torch.randint(12, (n, 1), generator=g)
    at = torch.randint(40, (n, 1, 2), generator=g)
    x = torch.full((n, 3, 96, 96), 0.45, dtype=torch.float64)
    streets._paste(x, label[:, 0], sides[:, 0], at[:, 0], torch.ones(n, 3, dtype=torch.float64))
    boxes = streets._boxes(label, sides, at)[:, 0, 1:]
    changed = ((x - 0.45).abs() > 0.05).any(1)
    for here, box in zip(changed, boxes, strict=True):
        rows, columns = here.nonzero().T
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert (torch.tensor(found) - box).abs().max() <= 1.25


def test_data_is_loaded_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("BDCOURSE_CACHE", str(tmp_path))
    parts = bd.splits("streets", n=80, n_test=16, clean=0.2)
    assert type(parts.train) is type(parts.test) is Scenes
    assert [len(p) for p in parts] == [64, 13, 3, 16]
    assert list(tmp_path.glob("streets-train-80-0-*.npz")), "it is kept"
    again = bd.splits("streets", n=80, n_test=16, clean=0.2)
    assert again.train.digest() == parts.train.digest()
    with pytest.raises(ValueError, match="streets are drawn at 96x96") as e:
        bd.load("streets", size=32)
    message(e)


def test_a_defender_without_a_class_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BDCOURSE_CACHE", str(tmp_path))
    parts = bd.splits("streets", n=40, n_test=4, clean=0.1)
    gone = bd.data.missing_classes(parts.clean)
    assert gone and f"without an image of '{gone[0]}'" in capsys.readouterr().out


def test_sets_are_cut_and_joined():
    scenes = detection.draw(20)
    rest, held = hold_out(scenes, 5, gen())
    assert len(rest) == 15 and len(join(rest, held)) == 20
    assert scenes[3].y.shape == (1, 4, 5)


def scene(*rows, n=1, side=32, classes=("a", "b")):
    y = torch.tensor([rows] * n, dtype=torch.float32)
    return Scenes(torch.zeros(n, 3, side, side, dtype=torch.uint8), y, classes)


@pytest.mark.parametrize(
    "make, part",
    [
        (lambda: scene((0, 1, 1, 9, 40)), "scene 0 of Scenes reaches beyond the picture of 32x32"),
        (lambda: scene((0, 9, 1, 9, 10)), "scene 0 of Scenes.y is none"),
        (lambda: scene((0, -1, 1, 9, 10)), "scene 0 of Scenes.y is none"),
        (lambda: scene((2, 1, 1, 9, 10)), "run to 2, but there are 2"),
        (lambda: scene((0.5, 1, 1, 9, 10)), "must be whole numbers from -1"),
        (lambda: scene((-2, 0, 0, 0, 0)), "must be whole numbers from -1"),
        (lambda: scene((-1, 0, 0, 1, 1)), "hold no box, so they must be zeros"),
        (lambda: scene((0, 1, 1, float("nan"), 10)), "must be finite"),
        (lambda: scene((0, 1, 1, 9, 10), side=30), "multiples of 8 pixels, not 30 and 30"),
        (lambda: scene((0, 1, 1, 9)), r"float32 of shape \(1, m, 5\)"),
        (lambda: scene((0, 1, 1, 9, 10), classes=()), "must be a tuple of names"),
        (
            lambda: Scenes(torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 5), ("a",)),
            "must be uint8",
        ),
        (
            lambda: Scenes(torch.zeros(1, 3, 32, 32).byte(), torch.zeros(1, 1, 5).long(), ("a",)),
            r"float32 of shape \(1, m, 5\)",
        ),
    ],
)
def test_what_is_no_scene_is_refused(make, part):
    with pytest.raises(ValueError, match=part) as e:
        make()
    message(e)


def test_a_crop_moves_boxes_with_their_things():
    """A bright square is where its box says, also after it has been moved."""
    x = torch.zeros(200, 3, 32, 32, dtype=torch.uint8)
    x[:, :, 8:20, 20:30] = 255
    y = torch.tensor([[[1.0, 20, 8, 30, 20], [-1, 0, 0, 0, 0]]]).repeat(200, 1, 1)
    moved, boxes = SceneCrop(4).batch(x, y, gen())
    assert len(boxes.unique(dim=0)) > 20 and (y[:, 0, 1] == 20).all()
    for picture, (box, none) in zip(moved, boxes, strict=True):
        rows, columns = picture[0].nonzero().T
        want = [1, columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box.tolist() == [float(v) for v in want] and none.tolist() == [-1, 0, 0, 0, 0]
    same = SceneCrop(0).batch(x, y, gen())
    assert same[0] is x and same[1] is y


def test_a_thing_of_which_little_is_left_counts_no_more():
    y = scene((0, 0, 0, 10, 10), (1, 10, 10, 20, 20)).y
    here = detection.scenes.shifted(y, torch.tensor([-6]), torch.tensor([0]), (32, 32))
    assert here[0].tolist() == [[-1, 0, 0, 0, 0], [1, 10, 4, 20, 14]]
    half = detection.scenes.shifted(y, torch.tensor([-5]), torch.tensor([0]), (32, 32))
    assert half[0, 0].tolist() == [0, 0, 0, 10, 5]


def test_scenes_are_not_mirrored_and_pictures_not_cropped_as_scenes():
    with pytest.raises(ValueError, match="not mirrored") as e:
        SCENES.augmentation(2, True)
    message(e)
    with pytest.raises(ValueError, match="SceneCrop moves scenes") as e:
        SceneCrop(40).check((3, 32, 32))
    message(e)


# -------------------------------------------------------------------- answers


def test_a_scene_is_right_if_all_is_found_and_nothing_else():
    y = scene((0, 0, 0, 10, 10), (1, 20, 20, 30, 30), (-1, 0, 0, 0, 0)).y
    first, second = [0, 0, 0, 10, 11, 0.9], [1, 20, 20, 30, 30, 0.4]
    none, more = [-1, 0, 0, 0, 0, 0], [1, 0, 20, 10, 30, 0.5]
    cases = {
        True: ([first, second, none], [second, first, [1, 0, 20, 10, 30, 0.2]]),
        False: (
            [first, none, none],  # one is missed
            [first, [1, 20, 20, 30, 30, 0.25], none],  # hardly said
            [first, second, more],  # one too many
            [[1, 0, 0, 10, 10, 0.9], second, none],  # another class
            [[0, 5, 5, 15, 15, 0.9], second, none],  # elsewhere
        ),
    }
    for right, rows in cases.items():
        for row in rows:
            assert SCENES.correct(torch.tensor([row]), y).tolist() == [right], row


def test_the_detector():
    net = detection.detector().eval()
    assert sum(p.numel() for p in net.parameters()) == 98_330
    x = detection.draw(4).inputs()
    assert net(x).shape == (4, 10, 12, 12) and net(x[..., :64]).shape == (4, 10, 12, 8)
    assert net(x)[:, :6].sigmoid().max() < 0.3, "at first it finds nothing"
    assert [p.conv for p in pair_by_flow(net).pairs] == [f"conv{i}" for i in range(1, 6)]
    with pytest.raises(ValueError, match="width must be"):
        detection.detector(width=0)


@pytest.mark.parametrize("context, sees", [(False, False), (True, True)])
def test_only_with_context_a_cell_sees_the_other_end(context, sees):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = detection.detector(width=4, context=context).eval()
    x = torch.full((1, 3, 96, 96), 0.5)
    changed = x.clone()
    changed[..., -16:, -16:] = torch.rand(16, 16, generator=gen()).round()
    assert torch.equal(net(x)[..., :5, :5], net(changed)[..., :5, :5]) != sees
    assert not torch.equal(net(x), net(changed))


def test_networks_that_are_no_detectors_are_refused():
    scenes, net = detection.draw(6), models.resnet18(6, 4)
    with pytest.raises(ValueError, match="the network must answer with what its cells say") as e:
        bd.evaluate(net, scenes)
    message(e)
    with pytest.raises(ValueError, match="tells 3 classes apart, but the scenes have 6") as e:
        bd.evaluate(detection.detector(3, 4), scenes)
    message(e)
    with pytest.raises(ValueError, match="classes up to 5, but the model knows 3") as e:
        bd.fit(detection.detector(3, 4), detection.draw(40), epochs=1, verbose=False)
    message(e)
    far = torch.nn.Sequential(detection.detector(6, 4), torch.nn.MaxPool2d(2))
    with pytest.raises(ValueError, match="has 6x6 cells, but scenes of 96x96 pixels have 12x12"):
        bd.fit(far, scenes, epochs=1, verbose=False)
    with pytest.raises(ValueError, match="augment must be an Augmentation, not 2"):
        bd.fit(detection.detector(6, 4), scenes, augment=2, verbose=False)


# -------------------------------------------------------------------- files


PICTURES = {"a.b": (64, 48), "c": (32, 32)}  # name -> width, height


def pictures(folder):
    folder.mkdir(parents=True)
    for i, (name, (w, h)) in enumerate(PICTURES.items()):
        pixels = np.full((h, w, 3), 10, np.uint8)
        pixels[h // 2 :, w // 2 :] = 200 + i
        Image.fromarray(pixels).save(folder / f"{name}.png")


def table(root, *rows, columns="image,split,class,x1,y1,x2,y2"):
    if not (root / "images").exists():
        pictures(root / "images")
    with (root / "boxes.csv").open("w", newline="") as f:
        csv.writer(f).writerows([columns.split(","), *rows])
    return root


GOOD = (
    ("a.b", "train", "red", 32, 24, 64, 48),
    ("c", "test", "blue", 16, 16, 32.5, 32),
    ("a.b.png", "train", "blue", 0, 0, 8, 8),
)


def voc(root, name, rows, *, head=""):
    folder = root / "Annotations"
    folder.mkdir(parents=True, exist_ok=True)
    things = "".join(
        f"<object><name>{label}</name><bndbox>"
        + "".join(
            f"<{c}>{v}</{c}>" for c, v in zip(("xmin", "ymin", "xmax", "ymax"), at, strict=True)
        )
        + "</bndbox></object>"
        for label, *at in rows
    )
    (folder / f"{name}.xml").write_text(f"{head}<annotation>{things}</annotation>")
    return root


def test_a_table_and_its_pictures_are_read(tmp_path, capsys):
    scenes = read_scenes(table(tmp_path / "set", *GOOD), side=64)
    assert scenes.classes == ("blue", "red") and scenes.x.shape == (2, 3, 64, 64)
    assert scenes.y[0].tolist() == [
        [1, 32, 32, 64, 64],
        [0, 0, 0, 8, pytest.approx(32 / 3)],
        [-1, 0, 0, 0, 0],
    ]
    assert scenes.y[1, 0].tolist() == [0, 32, 32, 64, 64], "half a pixel too far is cut"
    for i, (picture, value) in enumerate(zip(scenes.x, (200, 201), strict=True)):
        _, x1, y1, x2, y2 = scenes.y[i, 0].int().tolist()
        inner = picture[:, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
        assert (inner == value).all() and picture[:, : y1 - 2].max() == 10
    train = read_scenes(tmp_path / "set", "train", side=32, classes=["red", "blue"])
    assert len(train) == 1 and train.y[0, 0].tolist() == [0, 16, 16, 32, 32]
    assert not capsys.readouterr().out
    read_scenes(table(tmp_path / "set", GOOD[0]), side=64)
    assert "1 pictures of" in capsys.readouterr().out


def test_files_of_pascal_voc_are_read(tmp_path):
    root = tmp_path / "voc"
    pictures(root / "JPEGImages")
    voc(root, "a.b", [("red", 32, 24, 64, 48)])
    voc(root, "c", [])
    scenes = read_scenes(root, side=32)
    assert scenes.y.tolist() == [
        [[0, 16, 16, 32, 32], [-1, 0, 0, 0, 0]],
        [[-1, 0, 0, 0, 0], [-1, 0, 0, 0, 0]],
    ]
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("a.b\n")
    assert len(read_scenes(root, "val", side=32)) == 1
    with pytest.raises(FileNotFoundError, match="no list of that split"):
        read_scenes(root, "test")


@pytest.mark.parametrize(
    "rows, part",
    [
        ([("c", "train", "red", 0, 0, 40, 9)], r"line 2 .* outside of its picture of 32x32"),
        ([("c", "train", "red", 9, 0, 9, 9)], "line 2 of boxes.csv has a box without area"),
        ([("c", "train", "red", 32.2, 0, 32.8, 9)], "outside of its picture; delete it"),
        ([("c", "train", "red", 0, 0, "nan", 9)], "edges of a box as numbers, not 'nan'"),
        ([("c", "train", "red", 0, 0, "", 9)], "line 2 of boxes.csv lacks an entry"),
        ([("d", "train", "red", 0, 0, 9, 9)], "no picture called d in .* line 2"),
        ([("c", "train", "rde", 0, 0, 9, 9)], "'rde', which is not among classes.*'red'"),
        ([], "holds no picture with boxes"),
    ],
)
def test_a_wrong_table_is_refused(rows, part, tmp_path):
    root = table(tmp_path / "set", *rows)
    with pytest.raises((ValueError, FileNotFoundError), match=part) as e:
        read_scenes(root, side=32, classes=("red", "blue"))
    message(e)


def test_other_folders_are_refused(tmp_path):
    root = table(tmp_path / "set", *[("c", "red", 0, 0, 9)], columns="image,class,x1,y1,x2")
    cases = {
        r"lacks 'y2'": lambda: read_scenes(root),
        "side must be a multiple of 8": lambda: read_scenes(root, side=30),
        "no folder at": lambda: read_scenes(tmp_path / "nowhere"),
        "neither boxes.csv nor XML": lambda: read_scenes(root / "images"),
        "split must be one of": lambda: read_scenes(root, "tests"),
    }
    for part, make in cases.items():
        with pytest.raises((ValueError, FileNotFoundError), match=part) as e:
            make()
        message(e)
    table(root, ("c", "red", 0, 0, 9, 9), columns="image,class,x1,y1,x2,y2")
    with pytest.raises(ValueError, match="no column 'split'") as e:
        read_scenes(root, "train")
    message(e)


@pytest.mark.parametrize(
    "rows, head, part",
    [
        ([("red", 0, 0, 9, "x")], "", "edges of a box as numbers"),
        ([("", 0, 0, 9, 9)], "", "object without a name"),
        ([("red", 0, 0, 9, 9)], "<!DOCTYPE a>", "declares entities"),
        ([("red", 0, 0, 9, 9)], "<", "cannot be read as XML"),
    ],
)
def test_a_wrong_annotation_is_refused(rows, head, part, tmp_path):
    pictures(tmp_path / "voc" / "JPEGImages")
    with pytest.raises(ValueError, match=part) as e:
        read_scenes(voc(tmp_path / "voc", "c", rows, head=head))
    message(e)


def test_the_sets_are_named_and_six_classes_are_signs():
    assert {"streets", "streets-hard"} <= set(bd.data.BUILT_IN)
    assert set(streets.CLASSES + streets.OTHERS) <= set(signs.HARD)
    assert to_cells(detection.draw(2).y, 6, (12, 12)).shape == (2, 10, 12, 12)
