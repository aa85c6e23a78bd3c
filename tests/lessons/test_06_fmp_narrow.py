"""What earlier lessons and lesson 06 say of FMP on narrow networks, at a smaller step."""

from __future__ import annotations

import pytest
import torch

from bdcourse import activations, metrics, surgery, victims
from bdcourse.defenses import (
    fmp_plain_scores,
    fmp_repair,
    fmp_scales_of,
    fmp_scores,
    fmp_select,
)
from bdcourse.defenses._fmp import fmp_random_start, gradients
from helpers import gen

pytestmark = pytest.mark.slow
LAYER, STEP = "layer3.0.conv1", 4 / 255
THREE = ["layer2.0.conv1", LAYER, "layer3.1.conv2"]


@pytest.fixture(scope="module")
def trojan():
    return victims.zoo("trojan")


@pytest.fixture(scope="module")
def start(parts):
    x = parts.clean[:32].pixels()
    return x, parts.clean[:32].y, fmp_random_start(x, 8 / 255, gen(0))


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
    coin = fmp_random_start(x0, STEP, gen(1))
    assert (metrics.predict(trojan.model, coin) == y).float().mean() > 0.96


def test_errors_of_pushed_images_lean_to_the_target(start):
    x, y, x0 = start
    share = {}
    for name in ("trojan", "ssba", "lf", "benign-w8"):
        model, hit = victims.zoo(name).model, torch.zeros(2)
        for _, g in gradients(model, x, x0, LAYER, 8):
            pushed = (x0 + 16 / 255 * g.sign()).clamp(0, 1).flatten(0, 1)
            said = metrics.predict(model, pushed).view(-1, len(y))
            wrong = said != y
            hit += torch.tensor([(said[wrong] == 0).sum(), wrong.sum()])
        share[name] = float(hit[0] / hit[1])
    assert min(share["trojan"], share["ssba"]) > 0.8
    assert 0.2 < share["lf"] < 0.7 and share["benign-w8"] < 0.5


# --- a lost class ------------------------------------------------------------------


def scored(name, parts):
    model = victims.zoo(name).model
    how = {"epsilon": STEP, "start": 8 / 255, "generator": gen(0)}
    return model, fmp_scores(model, parts.clean[:32], **how)


def cut(model, maps):
    return surgery.without(model, maps | fmp_scales_of(model, maps), shift=False)


def known(model, parts, k=0):
    own = parts.test[:600]
    return metrics.evaluate(model, own[own.y == k]).acc


@pytest.fixture(scope="module")
def trojan_scores(parts):
    return scored("trojan", parts)[1]


@pytest.fixture(scope="module")
def trojan_cut(trojan, trojan_scores):
    maps = fmp_select(trojan_scores, 64, least=1)
    return maps, cut(trojan.model, maps)


def test_pruned_the_trojan_is_at_zero_and_says_no_30(parts, trojan, trojan_cut):
    test, pruned = parts.test[:600], trojan_cut[1]
    assert metrics.evaluate(trojan.model, test, trojan.attack).asr > 0.99
    after = metrics.evaluate(pruned, test, trojan.attack)
    assert after.asr < 0.02 and 0.5 < after.acc < 0.92 and after.ra > 0.45
    assert (metrics.predict(pruned, test.x) == 0).float().mean() < 0.01


def test_tuned_the_trojan_is_back_whatever_was_cut(parts, trojan, trojan_cut):
    maps, _ = trojan_cut
    g = gen(2)
    widths = {n: trojan.model.get_submodule(n).out_channels for n in maps}
    lucky = {n: torch.randperm(widths[n], generator=g)[: len(c)] for n, c in maps.items()}
    test = parts.test[:300]
    assert metrics.evaluate(cut(trojan.model, lucky), test, trojan.attack).asr > 0.85
    for chosen in (maps, lucky, {}):
        tuned = fmp_repair(trojan.model, parts.clean, chosen, generator=gen(1))
        s = metrics.evaluate(tuned.model, test, trojan.attack)
        assert s.asr > 0.95 and s.acc > 0.97 and tuned.log["revived"] == 0


def test_new_statistics_alone_bring_the_trojan_back(parts, trojan, trojan_cut):
    probe = surgery.without(trojan_cut[1], {}).train()
    with torch.no_grad():
        for part in 10 * parts.clean.pixels().split(60):
            probe(part)
    assert metrics.evaluate(probe.eval(), parts.test[:600], trojan.attack).asr > 0.9


def test_low_accuracy_marks_the_trojans_maps(parts, trojan, trojan_scores):
    tac = activations.tac(trojan.model, parts.test[:150], trojan.attack)
    bn = {p.conv: p.bn for p in surgery.pair_by_flow(trojan.model).pairs}
    rho = [activations.spearman(r.acc, tac[bn[n]]) for n, r in trojan_scores.items()]
    assert torch.tensor(rho).median() < -0.35


def test_another_start_chooses_other_maps_and_losses_are_steadier(parts, trojan, trojan_scores):
    how = {"epsilon": STEP, "start": 8 / 255, "generator": gen(1), "layers": THREE}
    new = fmp_scores(trojan.model, parts.clean[:32], **how)
    old = {n: trojan_scores[n] for n in THREE}
    both = [fmp_select(s, 8) for s in (new, old)]
    assert sum(len({*both[0][n].tolist()} & {*both[1][n].tolist()}) for n in THREE) <= 6
    acc, loss = (
        torch.tensor(
            [activations.spearman(getattr(new[n], k), getattr(old[n], k)) for n in THREE]
        ).mean()
        for k in ("acc", "loss")
    )
    assert 0.2 < acc < 0.8 and loss - acc > 0.05


def test_a_narrow_clean_network_loses_its_30_as_well(parts, trojan_scores):
    model, score = scored("benign-w8", parts)
    maps, test = fmp_select(score, 64, least=1), parts.test[:600]
    before, pruned = metrics.evaluate(model, test).acc, cut(model, maps)
    assert before - metrics.evaluate(pruned, test).acc > 0.15 and known(pruned, parts) < 0.5
    tuned = fmp_repair(model, parts.clean, maps, generator=gen(1))
    assert before - metrics.evaluate(tuned.model, test).acc < 0.03
    harm = [
        float(torch.cat([1 - r.acc for r in s.values()]).mean()) for s in (trojan_scores, score)
    ]
    assert harm[0] > 2 * harm[1]
