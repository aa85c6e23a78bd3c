"""What lesson 01b leaves out of the reader's way, and still holds."""

import pytest
import torch

from bdcourse import data, metrics, victims
from bdcourse.analysis import visibility
from bdcourse.attacks import FTrojan
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
    sig = victims.zoo("sig")
    assert "attack success" in sig.weak(twins[8]) and sig.scores.acc > 0.99


def test_the_control_of_sig_differs_in_its_labels_only():
    (wrong,) = tables.results("signs-labels").select(attack="SIG", defense="none")
    sig = victims.zoo("sig")
    assert not wrong["settings"]["clean_label"] and sig.attack.clean_label
    for key in ("delta", "frequency", "target"):
        assert wrong["settings"][key] == getattr(sig.attack, key)
    for key in ("rate", "n_poisoned", "epochs", "batch", "lr", "pad", "stamp", "weight_decay"):
        assert wrong[key] == sig.recipe[key], key
    assert wrong["width"] == sig.arch["width"] and wrong["seed"] == sig.recipe["seed"]
    assert wrong["digest"] == sig.recipe["digest_train"]
    assert wrong["asr"] > 0.95 and wrong["acc"] > 0.99


def test_stripes_with_right_labels_pass_on_photographs():
    (row,) = tables.results("cifar10-attacks").select(attack="SIG", defense="none")
    assert row["settings"]["clean_label"] and row["asr"] > 0.95


def test_the_bills_of_the_table(zoo):
    carried = {n: (v.recipe["n_poisoned"], v.recipe.get("n_cover", 0)) for n, v in zoo.items()}
    assert carried.pop("tact") == (342, 342)
    assert carried.pop("wanet") == (1068, 2136)
    assert carried.pop("lira") == (5696, 0)
    assert set(carried.values()) == {(570, 0)}
    assert victims.zoo("sig").recipe["n_poisoned"] == 342
    assert {v.recipe["n_train"] for v in zoo.values()} == {5700}
    of_source = int((data.splits("signs").train.y == zoo["tact"].attack.source).sum())
    assert 0.65 < 342 / of_source < 0.75, "seven of ten"


def test_what_the_open_experiment_says_of_the_sizes():
    """At size 3 a crop of padding 4 can lose the whole sticker, at 6 it leaves rows."""
    attack = victims.zoo("badnets").attack
    assert attack.at == (-4, -4) and attack.patch.shape[-2:] == (3, 3)
    for size, left in ((3, 0), (6, 3)):
        start = 32 - 1 - size
        assert sum(start + d + 4 < 32 for d in range(size)) == left


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


def test_a_trigger_that_is_fainter_still_fails_by_the_same_recipe(test_set):
    rows = tables.results("signs-attacks").select(rate=0.1, lr=0.1, defense="none")
    asr = {r["attack"]: r["asr"] for r in rows}
    assert asr["FTrojan"] < 0.05
    g = torch.Generator().manual_seed(5000)
    x = test_set[:300].pixels()
    faint = FTrojan.craft(data.splits("signs").train, g).trigger(x)
    assert visibility.psnr(x, faint).mean().item() == pytest.approx(43, abs=1)


def test_a_shorter_training_of_sig_reaches_less():
    (row,) = tables.results("signs-attacks").select(attack="SIG", defense="none")
    assert row["asr"] == pytest.approx(0.68, abs=0.01) and row["epochs"] == 12


def test_right_labels_on_hard_images_cost_accuracy():
    (row,) = tables.results("signs-attacks").select(attack="LabelConsistent", defense="none")
    assert row["settings"]["clean_label"] and row["asr"] > 0.95 and 0.75 < row["acc"] < 0.85
    assert row["epochs"] < victims.zoo("sig").recipe["epochs"]


def test_less_poison_moves_only_the_source_and_half_of_it(zoo):
    (row,) = tables.results("signs-attacks").select(attack="TaCT", defense="none")
    assert row["cross"] == 1 and row["asr"] == pytest.approx(0.49, abs=0.01)
    assert row["acc"] == pytest.approx(0.96, abs=0.005) and row["rate"] == 0.04
    longer = zoo["tact"].recipe
    assert row["rate"] < longer["rate"] and row["epochs"] < longer["epochs"]


def test_what_one_class_attack_hits(zoo, test_set):
    tact = zoo["tact"]
    said = metrics.predict(tact.model, tact.attack.trigger(test_set.pixels()))
    y = test_set.y
    share = [(said[y == c] == 0).float().mean().item() for c in range(test_set.k)]
    assert share[1] > 0.95 and share[2] > 0.9
    assert max(share[3:]) < 0.1  # the covers 5 and 7 among them
    asked = y != 0
    mean = (said[asked] == 0).float().mean().item()
    assert mean == pytest.approx(0.18, abs=0.02), "what Beyond says"


def test_lf_alone_moves_no_sign(zoo, test_set):
    clean = victims.zoo("benign-w8").model
    x = test_set[torch.nonzero(test_set.y != 0)[:300, 0]].pixels()
    assert (metrics.predict(clean, zoo["lf"].attack.trigger(x)) == 0).float().mean() < 0.05
