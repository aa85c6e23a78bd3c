"""What lesson 01b leaves out of the reader's way, and still holds."""

import pytest
import torch

from bdcourse import data, metrics, victims
from bdcourse.analysis import visibility
from bdcourse.report import tables

pytestmark = pytest.mark.slow
SHOWN = ["badnets", "blended", "trojan", "ssba", "lf", "lira", "tact", "wanet"]


@pytest.fixture(scope="module")
def zoo():
    return {name: victims.zoo(name) for name in SHOWN}


@pytest.fixture(scope="module")
def test_set():
    return data.splits("signs").test


def test_every_victim_of_the_gallery_passes_the_gate_and_sig_does_not(zoo):
    twins = {16: victims.zoo("benign").scores, 8: victims.zoo("benign-w8").scores}
    for name, v in zoo.items():
        assert v.weak(twins[v.arch["width"]]) == "", name
    assert "attack success" in victims.zoo("sig").weak(twins[8])


def test_the_order_by_psnr(zoo, test_set):
    x = test_set[:300].pixels()
    loud = {n: visibility.psnr(x, v.attack.trigger(x)).mean().item() for n, v in zoo.items()}
    order = sorted(loud, key=loud.get)
    assert order[0] == "trojan" and order[-1] == "lira"
    assert 14 < loud["lira"] - loud["trojan"] < 18
    assert max(loud["wanet"], loud["lf"]) + 2 < loud["badnets"] < loud["ssba"]


def test_one_recipe_for_all_plants_at_least_five_and_tuning_removes_none():
    rows = tables.results("signs-attacks").rows
    strong = {r["attack"] for r in rows if r["defense"] == "none" and not r["weak"]}
    assert {"BadNets", "Blended", "TrojanNN", "LF", "SSBA"} <= strong
    data_only = strong - {"none", "LIRA", "FBA"}
    tuned = [
        r["asr"]
        for r in rows
        if r["attack"] in data_only and r["defense"] == "fine-tuning" and not r["weak"]
    ]
    assert len(tuned) >= 5 and min(tuned) >= 0.8


def test_what_one_class_attack_hits(zoo, test_set):
    tact = zoo["tact"]
    said = metrics.predict(tact.model, tact.attack.trigger(test_set.pixels()))
    y = test_set.y
    share = [(said[y == c] == 0).float().mean().item() for c in range(test_set.k)]
    assert share[1] > 0.95 and share[2] > 0.9
    assert max(share[3:]) < 0.1
    asked = y != 0
    mean = (said[asked] == 0).float().mean().item()
    assert mean == pytest.approx(0.18, abs=0.02), "what Beyond says"


def test_lf_alone_moves_no_sign(zoo, test_set):
    clean = victims.zoo("benign-w8").model
    x = test_set[torch.nonzero(test_set.y != 0)[:300, 0]].pixels()
    assert (metrics.predict(clean, zoo["lf"].attack.trigger(x)) == 0).float().mean() < 0.05
