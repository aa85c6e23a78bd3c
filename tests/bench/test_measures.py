"""How sharp a network is: in rows, on its way, and as the tools say."""

import json

import pytest
import torch

from bdcourse import data, victims
from bdcourse.__main__ import main
from bdcourse.analysis import curvature, landscape
from bdcourse.bench import measures as looks
from bdcourse.bench.plans import Plan
from bdcourse.defenses import Purified
from bdcourse.tasks import detection
from grids import RUN

pytestmark = pytest.mark.usefixtures("small")


def test_a_sharp_row_tells_the_course_and_both_image_sets(tmp_path, monkeypatch, only):
    looked = []

    def watched(case):
        course = [{"step": 0, **case.watch(case.model)}]
        return Purified(case.model, log={"watched": course})

    def measured(model, images):
        looked.append(images)
        return {"fisher": 1.0}

    only(Plan("watched", watched))
    monkeypatch.setattr(looks, "sharpness", measured)
    out = tmp_path / "zoo.json"
    command = [
        "bench",
        "--out",
        str(out),
        "--zoo",
        "trojan-hard",
        "--sharp",
        "--defenses",
        "watched",
    ]
    assert main(command) == 0
    (row,) = json.loads(out.read_text())["rows"]
    own, other = looked
    assert len(own) == len(other) == 200 and row["data"] == "signs-hard"
    parts = data.splits("signs-hard")
    assert own.digest() == parts.clean[:200].digest()
    assert other.digest() == parts.test[-200:].digest()
    assert row["sharp"] == {"own": {"fisher": 1.0}, "other": {"fisher": 1.0}}
    (point,) = row["course"]
    assert point["asr"] > 0.95 and point["acc"] > 0.9
    assert point["fisher_own"] > 0 and point["fisher_other"] > 0


def test_a_victim_trained_under_sharp_tells_how_sharp_it_became(tmp_path, monkeypatch):
    looked = []

    def top(model, images, **how):
        assert not model.training
        looked.append(images.digest())
        return torch.tensor([2.0]), None

    monkeypatch.setattr(looks.landscape, "hessian_top", top)
    monkeypatch.setattr(looks, "sharpness", lambda model, images: {"fisher": 1.0})
    monkeypatch.setattr(looks, "watch", lambda *a, **k: {})
    out = tmp_path / "r.json"
    command = [*RUN, "--out", str(out), "--keep", str(tmp_path), "--sharp", "--defenses", "none"]
    assert main(command) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [r["attack"] for r in rows] == ["none", "BadNets"]
    for row in rows:
        (epoch,) = row["training"]
        assert epoch["lambda_max"] == 2.0 and epoch["fisher"] > 0
    unseen = data.splits("signs", clean=0.1, seed=0, n=240, n_test=300).test[-200:].digest()
    assert looked == [unseen, unseen]


def test_sharpness_is_what_the_tools_say():
    model, images = victims.zoo("benign-hard").model, data.load("signs-hard", n=24)
    found = looks.sharpness(model, images)
    exact = curvature.fisher_trace(model, images, route="exact").value
    assert abs(found["fisher"] - exact) < 6 * found["fisher_error"] + 0.05 * exact
    top, _ = landscape.hessian_top(model, images, generator=torch.Generator().manual_seed(7))
    assert found["lambda_max"] == pytest.approx(float(top[0]), rel=0.05)
    assert 0 < found["relative"] < found["fisher"] and found["empirical"] > 0


def test_boxes_are_judged_by_their_own_likelihood():
    scenes, model = detection.draw(6, seed=1), detection.detector(width=2).eval()
    law = scenes.task.likelihood
    found = looks.sharpness(model, scenes)
    trace = curvature.fisher_trace(model, scenes, fisher="empirical", likelihood=law).value
    assert found["empirical"] == pytest.approx(trace) and "lambda_max" not in found
    assert set(looks.sharpness_of(model, scenes)) == {"fisher"}
    watched = looks.watch(model, scenes, scenes, scenes, None)
    assert watched["fisher_own"] > 0
