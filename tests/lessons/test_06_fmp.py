"""What lesson 06 says in its prose and fine print, measured; the rest stands in its claims."""

from __future__ import annotations

import pytest
import torch

from bdcourse import data, metrics, models, surgery, tables, victims
from bdcourse.defenses import (
    fmp_execution_order,
    fmp_plain_scores,
    fmp_released_order,
    fmp_repair,
    fmp_scales_of,
    fmp_scores,
    fmp_select,
)
from bdcourse.defenses._fmp import fmp_random_start, gradients

pytestmark = pytest.mark.slow
LAYER, STEP = "layer3.0.conv1", 4 / 255


def seeded(k):
    return torch.Generator().manual_seed(k)


@pytest.fixture(scope="module")
def parts():
    return data.splits("signs")


@pytest.fixture(scope="module")
def trojan():
    return victims.zoo("trojan")


@pytest.fixture(scope="module")
def start(parts):
    x = parts.clean[:32].pixels()
    return x, parts.clean[:32].y, fmp_random_start(x, 8 / 255, seeded(0))


# --- the push ----------------------------------------------------------------------


def test_without_a_start_nothing_moves_and_with_one_most_values_do(trojan, start):
    x, _, x0 = start
    _, flat = next(gradients(trojan.model, x, x, LAYER, 1))
    _, steep = next(gradients(trojan.model, x, x0, LAYER, 1))
    assert not flat.any() and (steep != 0).float().mean() > 0.8


def test_the_loop_and_the_stack_push_alike(trojan, start):
    x, _, x0 = start
    loop = torch.cat([g for _, g in gradients(trojan.model, x, x0, LAYER, 1)])
    stack = torch.cat([g for _, g in gradients(trojan.model, x, x0, LAYER, 32)])
    assert (loop.sign() == stack.sign()).float().mean() > 0.999


def test_at_the_ports_step_accuracies_tie(trojan, start):
    x, y, x0 = start
    scores = fmp_plain_scores(trojan.model, x, y, x0, LAYER, 1 / 255)
    assert scores.acc.min() >= 0.96 and len(scores.acc.unique()) <= 2


def test_a_random_step_of_that_size_harms_nobody(trojan, start):
    _, y, x0 = start
    coin = fmp_random_start(x0, STEP, seeded(1))
    assert (metrics.predict(trojan.model, coin) == y).float().mean() > 0.96


# --- counts and lists --------------------------------------------------------------


def test_counts_of_the_published_network():
    wide = models.build("preact_resnet18", width=64)
    order = fmp_execution_order(wide)
    widths = [wide.get_submodule(n).out_channels for n in order]
    assert sum(widths) == 4800 and len(order) == 20
    assert [sum(w // p for w in widths) for p in (64, 32)] == [75, 150]


def test_nine_layers_are_pruned_by_another_layers_list():
    model = models.build("preact_resnet18", width=8)
    run = fmp_execution_order(model)
    defined = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)]
    moved = {a: b for a, b in zip(defined, run, strict=True) if a != b}
    lists = {n: torch.tensor([i % 8]) for i, n in enumerate(run)}
    released = fmp_released_order(model, lists, run)
    assert len(moved) == 9 and all(released[a] == lists[b] for a, b in moved.items())


# --- a lost class on another victim, and no backdoor needed ------------------------


@pytest.fixture(scope="module")
def trojan_cut(parts, trojan):
    some = parts.clean[:32]
    score = fmp_scores(trojan.model, some, epsilon=STEP, start=8 / 255, generator=seeded(0))
    maps = fmp_select(score, 64, least=1)
    off = maps | fmp_scales_of(trojan.model, maps)
    return maps, surgery.without(trojan.model, off, shift=False)


def test_pruned_the_trojan_is_at_zero_and_tuned_it_is_back(parts, trojan, trojan_cut):
    maps, pruned = trojan_cut
    test = parts.test[:600]
    after = metrics.evaluate(pruned, test, trojan.attack)
    assert after.asr < 0.1 and after.acc < 0.95
    tuned = fmp_repair(trojan.model, parts.clean, maps, generator=seeded(1))
    assert metrics.evaluate(tuned.model, test, trojan.attack).asr > 0.9
    assert tuned.log["revived"] == 0


def test_new_statistics_alone_bring_the_trojan_back(parts, trojan, trojan_cut):
    probe = surgery.without(trojan_cut[1], {}).train()
    with torch.no_grad():
        for part in 10 * parts.clean.pixels().split(60):
            probe(part)
    assert metrics.evaluate(probe.eval(), parts.test[:600], trojan.attack).asr > 0.9


# --- the stored draws --------------------------------------------------------------


def stored(victim, how, stage, p=64):
    rows = [r for r in tables.results("fmp-stages").rows if r["victim"] == victim]
    found = [s for r in rows for s in r["stages"]]
    return [s for s in found if (s["how"], s["stage"], s["p"]) == (how, stage, p)]


def test_badnets_pruned_is_repaired_and_comes_back():
    assert max(s["asr"] for s in stored("badnets", "FMP", "pruned")) < 0.1
    assert min(s["ra"] for s in stored("badnets", "FMP", "pruned")) > 0.9
    for stage in ("tuned", "new statistics"):
        assert min(s["asr"] for s in stored("badnets", "FMP", stage)) > 0.4


def test_controls_leave_the_attack():
    for stage in ("pruned", "tuned"):
        assert min(s["asr"] for s in stored("badnets", "random maps", stage)) > 0.95
    assert min(s["asr"] for s in stored("badnets", "tuning alone", "tuned")) > 0.95


def test_the_large_cut_loses_the_target_class():
    for s in stored("badnets", "FMP", "pruned", 16):
        assert s["asr"] < 0.1 and s["ra"] > 0.7 and s["known"] < 0.05 and s["says"] < 0.01


def test_blended_resists_everything():
    for how in ("FMP", "random maps", "tuning alone"):
        assert min(s["asr"] for s in stored("blended", how, "tuned")) > 0.95


def test_at_the_ports_step_neither_victim_is_repaired():
    rows = tables.results("signs-defenses")
    for name in ("badnets", "blended"):
        for plan in ("fmp", "fmp, p = 16"):
            assert min(r["asr"] for r in rows.select(victim=name, defense=plan)) > 0.8


def test_photographs():
    rows = tables.results("cifar10-defenses").select(budget=2500, draw=None)
    asr = {(r["attack"], r["defense"]): r["asr"] for r in rows}
    gain = {
        a: asr[a, "fmp, p = 16, random maps"] - asr[a, "fmp, p = 16"]
        for a in ("BadNets", "TrojanNN", "Blended", "SIG", "WaNet")
    }
    assert min(gain["BadNets"], gain["TrojanNN"]) > 0.15
    assert max(gain["Blended"], gain["WaNet"]) < 0.1 and gain["SIG"] < -0.3
    plans = ["fmp, no maps", "fmp, random maps"]
    four = tables.ranking("cifar10-defenses", plans, budget=2500, draw=None)
    left = {r["defense"]: r["asr"] for r in four}
    assert left["fmp, no maps"] - left["fmp, random maps"] > 0.3
    plans = ["fmp, p = 16, random maps", "fmp, p = 16"]
    tenth = {r["defense"]: r["asr"] for r in tables.ranking("cifar10-defenses", plans, budget=None)}
    assert tenth["fmp, p = 16"] - tenth["fmp, p = 16, random maps"] > 0.05
