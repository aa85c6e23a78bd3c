"""What lesson 05 says in its prose and fine print, measured; the rest stands in its claims."""

from __future__ import annotations

import copy

import pytest
import torch

from bdcourse import activations, data, metrics, surgery, tables, victims
from bdcourse.attacks import disguise
from bdcourse.defenses import clp, clp_norms, clp_plain_scores, clp_scores, prune_random
from bdcourse.defenses._clp import clp_flagged

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def test():
    return data.splits("signs").test[:400]


@pytest.fixture(scope="module")
def victim():
    return victims.zoo("badnets")


@pytest.fixture(scope="module")
def twin():
    return victims.zoo("benign")


@pytest.fixture(scope="module")
def cut(victim):
    return clp(victim.model, 2.5)


def positions(pruned):
    return {(n, c) for n, which in pruned.items() for c in which.tolist()}


def spearman(a, b):
    ranks = torch.stack([a, b]).argsort(1).argsort(1).float()
    return torch.corrcoef(ranks)[0, 1].item()


# --- the score ---------------------------------------------------------------------


def test_a_kernel_of_ones_stretches_three_times_as_far_as_its_sigma():
    ones = torch.ones(1, 1, 3, 3)
    assert clp_norms(ones).item() == pytest.approx(3)
    assert clp_norms(ones, "operator").item() == pytest.approx(9)


def test_scores_of_a_layer_at_once_are_one_svd_per_channel(victim, cut):
    pair = surgery.pair_by_flow(victim.model).pairs[3]
    layers = (victim.model.get_submodule(n) for n in (pair.conv, pair.bn))
    assert torch.allclose(clp_plain_scores(*layers), cut.log["scores"][pair.bn], rtol=1e-4)


def test_three_norms_repair_alike_and_choose_otherwise(victim, cut, test):
    for norm in ("frobenius", "operator"):
        other = clp(victim.model, 2.5, norm=norm)
        s = metrics.evaluate(other.model, test, victim.attack)
        assert s.asr < 0.1 and s.acc > 0.97
        both = len(positions(cut.pruned) & positions(other.pruned))
        assert 0.4 < both / cut.count < 0.95
        layers = other.log["scores"]
        alike = {n: spearman(cut.log["scores"][n], layers[n]) for n in layers}
        assert alike["bn1"] > 0.9 > min(alike.values())


# --- what CLP takes ----------------------------------------------------------------


def test_the_twin_is_pruned_like_the_victim_and_one_channel_in_a_hundred_goes(victim, twin, cut):
    assert cut.count == 14 and 12 <= clp(twin.model, 2.5).count <= 24
    channels = sum(len(s) for s in cut.log["scores"].values())
    assert 0.005 < cut.count / channels < 0.02


def test_the_default_takes_channels_but_no_detector(victim, cut, test):
    change = activations.tac(victim.model, test[:100], victim.attack)
    loudest = {(n, int(v.argmax())) for n, v in change.items()}
    detectors = positions(cut.pruned) & loudest
    assert len(detectors) == 3
    assert all(n == "bn1" or n.startswith("layer1") for n, _ in detectors)
    default = positions(clp(victim.model, 3.0).pruned)
    assert default and not default & detectors


def test_the_loudest_by_tac_do_it_and_the_runners_up_do_not(victim, cut, test):
    change = activations.tac(victim.model, test[:100], victim.attack)

    def left(values, skip):
        order = {n: v.argsort(descending=True) for n, v in values.items()}
        some = {n: order[n][len(c) * skip :][: len(c)] for n, c in cut.pruned.items()}
        return metrics.evaluate(surgery.without(victim.model, some), test, victim.attack).asr

    assert left(change, 0) < 0.1 and left(cut.log["scores"], 1) > 0.9


def test_random_channels_leave_the_attack(victim, cut, test):
    dice = torch.Generator().manual_seed(0)
    for _ in range(5):
        model = prune_random(victim.model, cut.pruned, dice).model
        assert metrics.evaluate(model, test, victim.attack).asr > 0.8


def test_of_the_twin_as_many_strongest_reactors_are_taken(victim, twin, test):
    change = activations.tac(twin.model, test[:100], victim.attack)
    pruned = clp(twin.model, 2.5)
    assert sum(int(change[n].argmax()) in c.tolist() for n, c in pruned.pruned.items()) >= 2
    assert metrics.evaluate(pruned.model, test).acc > 0.98


def test_the_trigger_in_hand_repairs_badnets_and_not_blended(victim, test):
    def by_tac(v, u):
        change = activations.tac(v.model, test[:100], v.attack)
        model = surgery.without(v.model, clp_flagged(change, u))
        return metrics.evaluate(model, test, v.attack)

    good = by_tac(victim, 3)
    assert good.asr < 0.05 and good.ra > 0.95
    hard = [by_tac(victims.zoo("blended"), u) for u in (3, 2.5, 2, 1.5)]
    assert max(s.ra for s in hard) < 0.2
    assert all(s.acc < 0.95 for s in hard if s.asr < 0.5)


def test_any_two_detectors_do_most_of_it_and_any_one_next_to_nothing(victim, cut, test):
    change = activations.tac(victim.model, test[:100], victim.attack)
    loudest = {(n, int(v.argmax())) for n, v in change.items()}
    detectors = dict(positions(cut.pruned) & loudest)

    def left(names):
        some = {n: torch.tensor([detectors[n]]) for n in names}
        return metrics.evaluate(surgery.without(victim.model, some), test, victim.attack).asr

    assert len(detectors) == 3 and left(detectors) < 0.05
    assert min(left({n}) for n in detectors) > 0.9
    assert max(left(set(detectors) - {n}) for n in detectors) < 0.2


def test_score_and_tac_agree_in_the_twin_as_well(victim, twin, test):
    def agreement(v, attack):
        change, s = activations.tac(v.model, test[:100], attack), clp_scores(v.model)
        return [spearman(s[n], change[n]) for n in s]

    blended = victims.zoo("blended")
    mixed, faint = agreement(victim, victim.attack), agreement(blended, blended.attack)
    calm = agreement(twin, victim.attack)

    def above(found):
        sizes = (len(s) for s in clp_scores(twin.model).values())
        return sum(a > 2 / (n - 1) ** 0.5 for a, n in zip(found, sizes, strict=True))

    assert above(calm) >= 1.8 * above(mixed) and above(faint) > 10
    assert sum(a > 0 for a in calm) > sum(a > 0 for a in mixed) and sum(calm) > sum(mixed)
    assert sum(a > 0 for a in agreement(twin, blended.attack)) >= 15
    assert min(mixed) < 0 < max(mixed) and sum(a > 0 for a in mixed) >= 8
    assert sum(a > 0 for a in faint) >= 18 and sum(faint) > sum(mixed)


def test_a_rescaling_hides_a_detector_and_changes_no_answer(victim, cut, test):
    model, name, x = copy.deepcopy(victim.model), "layer1.1.bn1", test[:50].pixels()
    (k,) = cut.pruned[name].tolist()
    with torch.no_grad():
        for p in (bn := model.get_submodule(name)).weight, bn.bias:
            p[k] *= 0.5
        model.get_submodule("layer1.1.conv2").weight[:, k] *= 2
        assert torch.equal(model.eval()(x), victim.model.eval()(x))
    assert k not in clp(model, 2.5).pruned[name].tolist()


def test_the_disguise_leaves_clp_nobody(victim, test):
    hidden, x = disguise(victim.model, clp_scores), test[:200].pixels()
    assert torch.equal(metrics.predict(hidden, x), metrics.predict(victim.model, x))
    assert clp(hidden, 2.5).count == 0 < clp(victim.model, 2.5).count


# --- pairing -----------------------------------------------------------------------


def test_pairing_by_order_is_wrong_in_a_pre_activation_network_and_does_better_there(test):
    preact = victims.zoo("badnets-preact")
    flow, order = surgery.pair_by_flow(preact.model), surgery.pair_by_order(preact.model)
    assert len(flow.pairs) == 9 and len(order.pairs) == 16
    true = {p.bn: p.conv for p in flow.pairs}
    wrong = [p.conv for p in order.pairs if true.get(p.bn) != p.conv]
    assert len(wrong) == 7 and sum("shortcut" in c for c in wrong) == 3
    found = {}
    for name in ("flow", "order"):
        p = clp(preact.model, 2.5, pairing=name)
        found[name] = p.count, metrics.evaluate(p.model, test, preact.attack).asr
    assert found["flow"][1] > 0.8 and found["order"][1] < 0.2
    assert found["order"][0] >= 2 * found["flow"][0]


# --- the stored tables -------------------------------------------------------------


def rows(name, **wanted):
    return tables.results(name).select(**wanted)


def test_the_three_seeds():
    rule = {
        r["seed"]: r for r in rows("signs", attack="BadNets", defense="clp, u on held-out images")
    }
    assert len({r["u"] for r in rule.values()}) == 3 == len(rule)
    assert all(r["asr"] < 0.05 and r["acc"] > 0.97 and r["ra"] > 0.9 for r in rule.values())
    greedy = rows("signs", attack="BadNets", defense="clp sweep", seed=1)[0]["curve"]
    early = next(p for p in greedy if p["asr"] < 0.05)  # with a few channels off
    assert early["u"] == 3.25 and 20 * early["pruned"] < rule[1]["pruned"]
    default = sorted(r["asr"] for r in rows("signs", attack="BadNets", defense="clp, u = 3"))
    assert default[1] < 0.05 and default[2] > 0.95
    tuned = [r["asr"] for r in rows("signs", attack="BadNets", defense="fine-tuning")]
    assert min(tuned) > 0.9


def test_the_first_repair_is_a_close_call_and_blended_is_repaired_on_no_seed():
    first = rows("signs", attack="BadNets", defense="clp sweep", seed=0)[0]["curve"]
    asr = {p["u"]: p["asr"] for p in first}
    assert asr[2.5] < 0.05 and asr[2.75] > 0.95
    faint = rows("signs", attack="Blended", defense="clp, u on held-out images")
    assert len(faint) == 3 and min(r["asr"] for r in faint) > 0.1
    assert max(r["ra"] for r in faint) < 0.3


def test_another_sixty_images_lead_one_notch_further():
    found = [
        r["u"]
        for r in rows("signs-defenses", victim="badnets", defense="clp, u on held-out images")
    ]
    assert max(found) - min(found) == 0.25


def test_trojan_and_photographs():
    trojan = [r for r in rows("signs-defenses", victim="trojan") if r["defense"].startswith("clp")]
    assert min(r["asr"] for r in trojan) > 0.8
    photos = {r["defense"]: r for r in rows("cifar10", attack="BadNets")}
    assert photos["clp, u = 2.5"]["asr"] < 0.1
    assert min(photos[d]["asr"] for d in ("clp, u = 3", "clp, u on held-out images")) > 0.9
    narrow = rows(
        "cifar10-defenses", attack="BadNets", defense="clp, u = 2.5", budget=2500, draw=None
    )
    assert min(r["asr"] for r in narrow) > 0.7


def test_poison_rates():
    low = rows("signs-rates", attack="BadNets", rate=0.05, defense="none")
    assert low and all(r["weak"] for r in low)
