"""What lesson 04 says in its prose and fine print, measured; the rest stands in its claims."""

from __future__ import annotations

import math

import pytest
import torch

from bdcourse import metrics, surgery, tables, victims
from bdcourse.attacks import Attack
from bdcourse.defenses import (
    detect,
    invert_trigger,
    linf,
    linf_curve,
    linf_gated,
    linf_oracle,
    linf_responses,
    linf_sweep,
)
from bdcourse.defenses._invert import anomaly

pytestmark = pytest.mark.slow
SEARCH = {"steps": 200, "lr": 0.2, "lam": 0.01, "batch": 2}
NORMS = (1.0, 2.0, math.inf)
SHARES = [i / 16 for i in range(9)]


@pytest.fixture(scope="module")
def test(parts):
    return parts.test[:300]


@pytest.fixture(scope="module")
def victim():
    return victims.zoo("badnets")


def search(name, parts, **options):
    g = torch.Generator().manual_seed(0)
    return invert_trigger(victims.zoo(name).model, parts.clean, **SEARCH | options, generator=g)


@pytest.fixture(scope="module")
def found(parts):
    return search("badnets", parts)


@pytest.fixture(scope="module")
def control(parts):
    return search("benign", parts)


@pytest.fixture(scope="module")
def guess(found, victim):
    label = int(found.targets[found.norms.argmin()])
    assert label == victim.attack.target
    return found.trigger(label)


# --- the guess ---------------------------------------------------------------------


def test_the_smallest_mask_is_far_smaller_than_the_others(found, control, guess):
    assert found.norms.min() < 8 and found.norms.sort().values[1] > 10
    assert found.norms.median() / found.norms.min() > 10
    assert control.norms.min() > 20


def test_every_guess_works(found, control, guess):
    assert found.rates[guess.label] > 0.9
    assert min(found.rates.min(), control.rates.min()) > 0.8


def test_the_guess_is_the_checkerboard_or_a_neighbor_of_it(guess, victim, test):
    gray = torch.full_like(test[:1].pixels(), 0.5)
    board, on = victim.attack.trigger(gray)[0], (guess.mask > 0.5).expand(3, -1, -1)
    moved = [board.roll((i, j), (1, 2)) for i in range(-2, 3) for j in range(-2, 3)]
    alike = max(((guess.pattern - b).abs() < 0.4)[on].float().mean().item() for b in moved)
    assert alike > 0.8


def test_the_published_rule_mumbles_and_its_logarithm_speaks(found, control, guess):
    """How near the threshold of 2 the published rule comes depends on the processor: the
    norms of other labels differ by their rounding."""
    label = guess.label
    rule, logs = detect(found), detect(found, scale="log")
    none = found.norms.clone()
    none[label] = 0
    most = anomaly(none)[label]
    assert rule.index[label] <= most < 3, "no mask at all would hardly stand out"
    assert logs.labels[0] == label and logs.index[label] > 3
    assert len(logs.labels) > 1, "and it is no safe detector"
    assert not detect(control, scale="log").labels


# --- norms and stages --------------------------------------------------------------


@pytest.fixture(scope="module")
def stages(parts, test, victim, guess):
    """(layer, norm) -> scores at the share that held-out images choose."""
    x = parts.clean[parts.clean.y != guess.label].pixels()
    chosen = {}
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        model, switch = linf_gated(victim.model, layer, parts.clean.shape)
        seen = linf_responses(model, x, guess.stamp, [switch])[switch]
        for p in NORMS:
            sets = [c for _, c in linf_sweep({switch: seen.score(p)}, SHARES)]
            accs = [s.acc for s in linf_curve(model, parts.held, None, sets)]
            bad = [i for i, a in enumerate(accs) if accs[0] - a > 0.02]
            kept = surgery.without(model, sets[bad[0] - 1 if bad else -1])
            chosen[layer, p] = metrics.evaluate(kept, test, victim.attack)
    return chosen


def test_every_norm_repairs_in_the_first_three_stages_and_none_in_the_last(stages):
    for p in NORMS:
        early = [stages[f"layer{i}", p] for i in (1, 2, 3)]
        assert max(s.asr for s in early) < 0.1 and min(s.ra for s in early) > 0.9
        assert stages["layer4", p].asr > 0.1


def test_the_lessons_cut_is_the_packages(parts, test, victim, guess):
    p = linf(victim.model, parts.clean, parts.held, guess, layer="layer3", qs=SHARES)
    s = metrics.evaluate(p.model, test, victim.attack)
    assert s.asr < 0.05 and s.ra > 0.9 and s.acc > 0.97


@pytest.mark.parametrize("layer", ["layer1", "layer2", "layer4"])
def test_blended_keeps_its_attack_in_every_other_stage(layer, parts, test):
    resists = victims.zoo("blended")
    asked = (parts.clean, parts.held, resists.attack)
    left = linf_oracle(resists.model, *asked, layer=layer, qs=SHARES)
    assert metrics.evaluate(left.model, test, resists.attack).asr > 0.8


@pytest.mark.parametrize("layer", ["layer1", "layer2", "layer3", "layer4"])
def test_silence_is_the_attackers_label_in_blended_and_in_no_other(layer, parts, test):
    signs, said = test[test.y != 0][:60].pixels(), {}
    for name in ("blended", "badnets", "benign"):
        model, switch = linf_gated(victims.zoo(name).model, layer, parts.clean.shape)
        n = len(linf_responses(model, signs[:4], lambda x: x, [switch])[switch].score())
        off = surgery.without(model, {switch: torch.arange(n)})
        said[name] = metrics.share(metrics.predict(off, signs) == 0)
    assert said == {"blended": 1, "badnets": 0, "benign": 0}


def test_wanet_is_not_silent_for_its_label(parts, test):
    model, switch = linf_gated(victims.zoo("wanet").model, "layer3", parts.clean.shape)
    off = surgery.without(model, {switch: torch.arange(64)})
    assert metrics.share(metrics.predict(off, test[:60].pixels()) == 0) == 0


def test_blended_hushes_and_forty_hushed_channels_make_the_label(parts, test):
    v, g = victims.zoo("blended"), torch.Generator().manual_seed(0)
    model, switch = linf_gated(v.model, "layer3", parts.clean.shape)
    x = parts.clean[v.attack.counts(parts.clean.y)].pixels()
    score = linf_responses(model, x, v.attack.trigger, [switch])[switch].score()
    assert len(score) == 64 and (score > 0).sum() <= 12
    twin, gate = linf_gated(victims.zoo("benign").model, "layer3", parts.clean.shape)
    dim = linf_responses(twin, x, v.attack.trigger, [gate])[gate].score()
    assert (dim > 0).sum() <= 12, "a blend takes contrast away in any network"
    signs = test[test.y != 0][:120].pixels()
    draws = [torch.randperm(64, generator=g)[:40] for _ in range(4)]
    said = [
        metrics.share(metrics.predict(surgery.without(model, {switch: off}), signs) == 0)
        for off in (score.argsort()[:40], *draws)
    ]
    assert said[0] > 0.98 and max(said[1:]) < 0.95


def test_wanet_by_its_own_warp_has_its_labels_back_before_the_chosen_cut(parts, test):
    v = victims.zoo("wanet")
    model, switch = linf_gated(v.model, "layer3", parts.clean.shape)
    x = parts.clean[v.attack.counts(parts.clean.y)].pixels()
    score = linf_responses(model, x, v.attack.trigger, [switch])[switch].score()
    sets = [c for _, c in linf_sweep({switch: score}, (12 / 64, 20 / 64))]
    early, late = linf_curve(model, test, v.attack, sets)
    assert early.asr < 0.1 and early.ra > 0.8 and late.ra < early.ra - 0.05


def test_blended_outlives_the_signs(parts, test):
    resists = victims.zoo("blended")
    model, switch = linf_gated(resists.model, "layer3", parts.clean.shape)
    x = parts.clean[resists.attack.counts(parts.clean.y)].pixels()
    score = linf_responses(model, x, resists.attack.trigger, [switch])[switch].score()
    left = surgery.without(model, linf_sweep({switch: score}, [3 / 4])[0][1])
    rates = metrics.evaluate(left, test, resists.attack)
    assert rates.asr > 0.95 and 0.4 < rates.acc < 0.7


# --- separation, from the stored study ---------------------------------------------


@pytest.fixture(scope="module")
def edge():
    rows = tables.results("linf-edge").rows
    return [(r["options"]["size"], r["seed"], r["acc"], t) for r in rows for t in r["stages"]]


def test_the_maximum_separates_small_triggers_on_large_maps(edge):
    def auroc(size, height, norm):
        return [
            t["auroc"] for s, _, _, t in edge if (s, t["height"], t["norm"]) == (size, height, norm)
        ]

    assert min(auroc(4, 32, "l-infinity")) > 0.95 and max(auroc(4, 32, "l1")) < 0.75
    assert min(auroc(32, 16, "l1")) > 0.95 and max(auroc(32, 16, "l-infinity")) < 0.92
    assert min(t["auroc"] for _, _, _, t in edge if t["height"] == 4) > 0.9


def test_no_norm_repairs_most_victims(edge):
    good = [(t["norm"], s, k) for s, k, a, t in edge if t["asr"] < 0.1 and t["acc"] >= a - 0.02]
    repaired = [
        len({(s, k) for n, s, k in good if n == norm}) for norm in ("l1", "l2", "l-infinity")
    ]
    assert repaired == [4, 5, 6]
    left = [[t["asr"] for *_, t in edge if t["norm"] == n] for n in ("l1", "l-infinity")]
    assert sum(abs(a - b) > 0.2 for a, b in zip(*left, strict=True)) == 16


# --- where it breaks ---------------------------------------------------------------


@pytest.fixture(scope="module")
def warp(parts):
    bent = victims.zoo("wanet")
    target = bent.attack.target
    return bent, search("wanet", parts, targets=[target], batch=8).trigger(target)


def test_the_guess_dies_before_the_warp(parts, test, warp):
    bent, guess = warp
    assert isinstance(bent.attack, Attack) and guess.mask.sum() > 10
    model, switch = linf_gated(bent.model, "layer3", parts.clean.shape)
    x = parts.clean[parts.clean.y != guess.label].pixels()
    score = linf_responses(model, x, guess.stamp, [switch])[switch].score()
    sets = [c for _, c in linf_sweep({switch: score}, (0, 1 / 8))]
    real = linf_curve(model, test, bent.attack, sets)
    stamped = guess.stamp(test[test.y != guess.label].pixels())
    own = [
        metrics.share(metrics.predict(surgery.without(model, s), stamped) == guess.label)
        for s in sets
    ]
    assert own[0] > 0.85 and own[0] - own[1] > 0.2
    assert real[0].asr - real[1].asr < 0.12 and real[0].acc - real[1].acc < 0.04


def test_with_the_real_trigger_the_warp_could_be_cut(parts, test, warp):
    bent, guess = warp
    rule = {"layer": "layer3", "qs": SHARES}
    asked = (parts.clean, parts.held)
    best = linf_oracle(bent.model, *asked, bent.attack, **rule).model
    blind = linf(bent.model, *asked, guess, **rule).model
    best, blind = (metrics.evaluate(m, test, bent.attack).asr for m in (best, blind))
    assert best < 0.2 and blind - best > 0.2


# --- the stored tables -------------------------------------------------------------


def test_signs_at_the_default_layer():
    measured = tables.results("signs-defenses")
    left = [r["asr"] for r in measured.select(victim="blended", defense="linf")]
    assert min(left) > 0.8
    tuned = [r["asr"] for r in measured.select(victim="badnets", defense="fine-tuning")]
    assert min(tuned) > 0.9


def test_photographs():
    rows = tables.results("cifar10-defenses").select(budget=2500, draw=None)
    asr = {(r["attack"], r["defense"]): r.get("asr") for r in rows}
    four = ("BadNets", "Blended", "SIG", "TrojanNN")
    assert min(asr[a, "linf"] for a in four) > 0.9
    assert min(asr[a, "linf (oracle)"] for a in four) > 0.75
    assert sorted(asr[a, "linf, all layers"] for a in four)[1] < 0.15
    assert sorted(asr[a, "nc unlearning"] for a in four)[2] < 0.1
