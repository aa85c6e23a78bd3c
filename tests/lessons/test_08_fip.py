"""What lesson 08 says in its prose and fine print, measured; the rest stands in its claims."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bdcourse import activations, curvature, data, metrics, models, tables, victims
from bdcourse.defenses import fip_all_pairs, fip_factorize, fip_fake_trace, fip_matrices

pytestmark = pytest.mark.slow
GUESTS = ("badnets-hard", "trojan-hard")


@pytest.fixture(scope="module")
def record():
    return tables.results("signs-fip")


def row(record, who, defense, draw=None):
    return record.select(victim=who, defense=defense, draw=draw)[0]


def trace(found, where="other"):
    return found["sharp"][where]["fisher"]


def test_one_layer_held_a_twenty_fifth_of_the_trace_and_no_draw_repairs_trojan():
    victim, images = victims.zoo("badnets"), data.splits("signs").clean[:60]

    def measured(**part):
        g = torch.Generator().manual_seed(0)
        return curvature.fisher_trace(victim.model, images, draws=5, generator=g, **part).value

    assert 1 / 35 < measured(weights=["layer1.0.conv2.weight"]) / measured() < 1 / 18
    rows = tables.results("signs-defenses").select(victim="trojan", defense="fip")
    assert len(rows) == 3 and min(r["asr"] for r in rows) > 0.1


def test_rare_labels_hold_the_trace_of_the_last_layer():
    victim, x = victims.zoo("badnets"), data.splits("signs").clean[:32].pixels()
    with torch.no_grad():
        p = models.wide(victim.model(x)).softmax(1)
    inputs = activations.outputs(victim.model, x, ["layer4"])["layer4"].mean((2, 3))
    assert torch.allclose(victim.model.linear(inputs).softmax(1).to(p), p, atol=1e-5)
    error = torch.eye(p.shape[1]).to(p) - p[:, None]
    held = p * (models.wide(inputs).square().sum(1) + 1)[:, None] * error.square().sum(2)
    sure = p > 0.5
    assert p[sure].sum() / p.sum() > 0.999 and held[sure].sum() / held.sum() < 0.02


# --- draws -------------------------------------------------------------------------


def test_the_spine_is_repaired_wholly_or_not_at_all():
    shared = tables.results("signs-defenses")

    def left(who, defense):
        return [shared.select(victim=who, defense=defense, draw=d)[0]["asr"] for d in (None, 1, 2)]

    first, *others = left("badnets", "fip")
    assert first < 0.01 and min(others) > 0.99
    assert sorted(a > 0.5 for a in left("badnets", "fast fip")) == [False, True, True]
    assert left("badnets", "fast fip")[1] < 0.1, "another draw than FIP's"
    assert min(left("blended", "fip") + left("blended", "fast fip")) > 0.95
    assert max(left("blended", "ft-sam")) < 0.3 and max(left("blended", "sam")) < 0.5
    for who in ("badnets", "blended"):
        tuned = left(who, "fine-tuning") + left(who, "fine-tuning, lr 0.05")
        assert min(tuned) > 0.99


def test_the_stored_diary_is_that_of_the_stored_run():
    (story,) = tables.results("signs-fip-pushes").rows
    shared = tables.results("signs-defenses").select(victim="badnets", defense="fip", draw=None)
    assert max(story["asr"], shared[0]["asr"]) < 0.2 and 1 / 8 < story["asr"] < 1 / 6
    assert story["acc"] > 0.97 and story["ra"] > 0.8
    pushes = story["pushes"]
    worst = pushes.index(max(pushes))
    assert len(pushes) == 600 and worst > 200 and max(pushes) > 20
    watched = {w["step"]: w for w in story["watched"]}
    assert all(w["asr"] > 0.95 and w["acc"] > 0.95 for s, w in watched.items() if s <= worst)
    assert min(w["acc"] for w in story["watched"]) < 0.6


def test_three_draws_on_the_guests(record):
    left = {
        (who, d): [row(record, who, d, n)["asr"] for n in (None, 1, 2)]
        for who in GUESTS
        for d in ("fip", "fip, eta = 0", "fip, eta = 0, lr 0.05", "sam")
    }
    assert max(left["badnets-hard", "fip"]) < 0.2
    assert left["trojan-hard", "fip"][0] < 0.2 and min(left["trojan-hard", "fip"][1:]) > 0.5
    assert min(left["badnets-hard", "fip, eta = 0"] + left["trojan-hard", "fip, eta = 0"]) > 0.95
    assert max(left["badnets-hard", "fip, eta = 0, lr 0.05"]) < 0.2
    assert min(left["badnets-hard", "sam"] + left["trojan-hard", "sam"]) > 0.5


# --- sharpness ---------------------------------------------------------------------


def test_victims_are_sharper_than_one_twin_and_so_is_a_benign_network(record):
    top = {
        who: [row(record, who, "none")["sharp"][w]["lambda_max"] for w in ("own", "other")]
        for who in (*GUESTS, "benign-hard", "benign-hard-plain")
    }
    for k in (0, 1):
        assert 1.2 < min(top[w][k] for w in GUESTS) / top["benign-hard"][k] < 4
        assert 1.2 < top["benign-hard-plain"][k] / top["benign-hard"][k] < 4
    seeds = tables.results("signs-fip-seeds").select(attack="none", defense="none")
    found = [r["sharp"]["other"]["lambda_max"] for r in seeds]
    assert 1.5 < max(found) / min(found) < 3


def test_fine_tuning_is_flat_at_home_only(record):
    before, after = (row(record, "badnets-hard", d) for d in ("none", "fip, eta = 0"))
    assert 10 < trace(before, "own") / trace(after, "own") < 25
    assert trace(after) / trace(before) > 1.2 and after["asr"] > 0.99


def test_smoothness_does_not_decide(record):
    none = {who: row(record, who, "none") for who in GUESTS}
    fast = row(record, "badnets-hard", "fip, eta = 0, lr 0.05")
    assert fast["asr"] < 0.1 and trace(fast) / trace(none["badnets-hard"]) > 2
    for who in GUESTS:
        sam, own = (row(record, who, d) for d in ("sam", "fip"))
        tops = [r["sharp"]["other"]["lambda_max"] for r in (sam, own)]
        assert 0.6 < tops[0] / tops[1] < 1.4 and sam["asr"] - own["asr"] > 0.6
        assert trace(sam) < trace(none[who])
    weak, own = (row(record, "trojan-hard", d) for d in ("fip, eta = 0.002", "fip"))
    assert trace(weak) < 1.1 * trace(own) and weak["asr"] > 0.95 and own["asr"] < 0.2


def test_random_pushes_of_the_same_lengths_do_little(record):
    for who in GUESTS:
        lost, led = (row(record, who, d) for d in ("fip, random direction, same lengths", "fip"))
        assert lost["asr"] > 0.85 and abs(lost["acc"] - led["acc"]) < 0.06
    course = row(record, "badnets-hard", "fip, random direction, same lengths")["course"]
    assert course[-1]["fisher_other"] > 1.5 * course[0]["fisher_other"]
    led = row(record, "badnets-hard", "fip")["course"]
    assert led[-1]["fisher_other"] < 0.9 * led[0]["fisher_other"]
    whole = row(record, "badnets-hard", "fip, gaussian, exact product")
    assert whole["asr"] < 0.1
    assert 1 < whole["course"][-1]["fisher_other"] / whole["course"][0]["fisher_other"] < 2
    assert row(record, "trojan-hard", "fip, gaussian, exact product")["asr"] > 0.7


def test_zero_is_not_repair_on_trojan(record):
    best = row(record, "trojan-hard", "fip")
    assert best["asr"] < 0.1 and 0.4 < best["ra"] < 0.6
    twin = victims.zoo("benign-hard").model
    test = data.splits("signs-hard").test[:600]
    assert 0.55 < metrics.evaluate(twin, test, victims.zoo("trojan-hard").attack).ra < 0.7


def test_the_mode_of_batchnorm_decides(record):
    mixed, frozen = (row(record, "badnets-hard", f"fip, {n} norms") for n in ("mixed", "frozen"))
    assert trace(mixed) < 0.1 * trace(row(record, "badnets-hard", "fip")) and mixed["acc"] < 0.2
    assert frozen["refused"]


def test_attackers_who_train_smooth_are_no_test():
    aware = tables.results("signs-aware")
    for how in ("smooth", "sam"):
        victim, twin = (
            aware.select(attack=a, defense="none", aware=how)[0] for a in ("BadNets", "none")
        )
        assert 0.75 < victim["asr"] < 0.9 and max(victim["acc"], twin["acc"] - 0.1) < 0.7


# --- estimators and Fast FIP -------------------------------------------------------


def test_drawn_labels_average_to_the_exact_trace(guest, clean):
    g, few = torch.Generator().manual_seed(0), clean[:50]
    exact = curvature.fisher_trace(guest.model, few, route="exact").value
    draws = curvature.fisher_trace(guest.model, few, route="bartlett", draws=60, generator=g).draws
    assert 0.5 < draws.mean() / exact < 1.5 and draws.std() / draws.mean() > 0.25


def test_the_two_fishers_at_no_opinion_and_at_certainty():
    def score(x, p, y):
        return (x.square().sum(1) + 1) * (F.one_hot(y, 10) - p).square().sum(1)

    x, y = torch.ones(10, 3), torch.arange(10)
    assert score(x, torch.full((10, 10), 0.1), y).mean().item() == pytest.approx(3.6)
    p = torch.full((10, 10), 0.001) + 0.99 * torch.eye(10)
    true = sum((p[:, k] * score(x, p, torch.full((10,), k))).mean() for k in range(10))
    assert max(true, score(x, p, y).mean()) < 0.1 and score(x, p, (y + 1) % 10).mean() > 7


def test_fast_fip_moves_a_hundredth_and_says_the_same(guest, clean):
    big = models.resnet18(classes=10, width=64)
    assert sum(min(w.flatten(1).shape) for w in fip_matrices(big).values()) == 4325
    net = victims.zoo("badnets-hard").model
    fip_factorize(net)
    moved, whole = (
        sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (net, guest.model)
    )
    assert 0.005 < moved / whole < 0.02
    x = clean[:20].pixels()
    assert (net(x) - guest.model(x)).abs().max() < 1e-3
    traces = [
        curvature.fisher_trace(m, clean[:50], draws=10, generator=torch.Generator().manual_seed(0))
        for m in (guest.model, net)
    ]
    assert traces[1].value < 0.5 * traces[0].value


# --- the released script -----------------------------------------------------------


def test_the_released_trace_is_none(record, guest, clean):
    logits, y = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log(), torch.tensor([0, 1])
    assert -F.cross_entropy(logits, y).item() == pytest.approx(-0.1642, abs=1e-3)
    assert fip_all_pairs(logits, y).item() == pytest.approx(-1.0601, abs=1e-3)
    net, g, few = guest.model, torch.Generator().manual_seed(0), clean[:32]
    w = list(net.parameters())
    fakes = [fip_fake_trace(net(few.pixels()), few.y, w, 20, g).item() for _ in range(30)]
    assert 0.2 < sum(f < 0 for f in fakes) / 30 < 0.8
    for who in GUESTS:
        assert row(record, who, "fip, released, eta = 0.5")["acc"] < 0.15
        assert row(record, who, "fip, released")["asr"] > 0.9


# --- photographs -------------------------------------------------------------------


def test_photographs():
    rows = tables.results("cifar10-defenses").select(budget=2500, draw=None)
    found = {(r["attack"], r["defense"]): r for r in rows}
    four = ("BadNets", "Blended", "SIG", "TrojanNN")
    assert max(found[a, d]["asr"] for a in four for d in ("fip", "sam")) < 0.1
    assert all(found[a, "sam"]["acc"] > found[a, "fip"]["acc"] for a in four)
    assert min(found[a, "fast fip"]["asr"] for a in four) > 0.5


def test_victims_are_sharper_as_often_as_twins_are():
    rows = tables.results("signs-fip-seeds")
    traces = {
        (who, k): [
            trace(rows.select(attack=who, seed=k, defense="none")[0], w) for w in ("own", "other")
        ]
        for who in ("none", "BadNets", "TrojanNN")
        for k in range(3)
    }

    def over(one, two):
        return [a / b for a, b in zip(traces[one], traces[two], strict=True)]

    found = [over((w, k), ("none", k)) for w in ("BadNets", "TrojanNN") for k in range(3)]
    assert [sum(r[i] > 1 for r in found) for i in (0, 1)] == [5, 3]
    assert sum(min(r) > 1 for r in found) == 3
    twins = [over(("none", j), ("none", k)) for j, k in ((0, 1), (1, 2), (2, 0))]
    assert min(map(min, twins)) < min(map(min, found)) and max(map(max, twins)) > 1.5
    assert max(map(max, found)) < 1.05 * max(map(max, twins))


def test_what_is_said_of_the_cloud(record):
    def smoother(who, arm):
        return trace(row(record, who, arm)) / trace(row(record, who, "none"))

    for who in GUESTS:
        assert smoother(who, "sam") < 0.8 and row(record, who, "sam")["asr"] > 0.7
    assert smoother("trojan-hard", "sam") < smoother("trojan-hard", "fip") < 1
    steady = row(record, GUESTS[0], "fip, gaussian, exact product")
    assert smoother(GUESTS[0], steady["defense"]) > 1.1 and steady["asr"] < 0.1
    assert 0.06 < row(record, GUESTS[0], "none")["acc"] - steady["acc"] < 0.08
    higher = "fip, eta = 0, lr 0.05"
    assert smoother(GUESTS[0], higher) > 2
    for arm, low, high in ((higher, 0.11, 0.125), ("fip", 0.035, 0.045)):
        assert (
            low < row(record, GUESTS[0], "none")["acc"] - row(record, GUESTS[0], arm)["acc"] < high
        )
    assert min(row(record, GUESTS[1], higher, n)["asr"] for n in (None, 1, 2)) > 0.7
    shared = tables.results("signs-defenses")
    for draw in (None, 1, 2):
        left = {
            d: shared.select(victim="blended", defense=d, draw=draw)[0]["asr"]
            for d in ("sam", "ft-sam", "fip")
        }
        assert max(left["sam"], left["ft-sam"]) < left["fip"]


def test_none_of_the_three_is_sharper_by_two_standard_errors(record):
    rows = tables.results("signs-fip-seeds")
    for who, k in (("BadNets", 1), ("TrojanNN", 1), ("TrojanNN", 2)):
        pair = [rows.select(attack=a, seed=k, defense="none")[0]["sharp"] for a in (who, "none")]
        for where in ("own", "other"):
            v, t = (f[where] for f in pair)
            error = (v["fisher_error"] ** 2 + t["fisher_error"] ** 2) ** 0.5
            assert 0 < v["fisher"] - t["fisher"] < 2 * error


def test_one_draw_in_sixty_meets_a_rare_label():
    victim, few = victims.zoo("badnets"), data.splits("signs").clean[:32].pixels()
    with torch.no_grad():
        rare = 1 - models.wide(victim.model(few)).softmax(1).max(1).values
    assert 1 / 75 < rare.sum() < 1 / 45


def test_sixty_draws_and_twenty_vectors():
    few, g = data.splits("signs").clean[:32], torch.Generator().manual_seed(1)
    whole = curvature.fisher_trace(victims.zoo("badnets").model, few, draws=20, generator=g)
    assert 0.12 < whole.error / whole.value < 0.2


def test_what_is_said_beside_the_diary():
    story = tables.results("signs-fip-pushes").rows[0]
    pushes = story["pushes"]
    worst = pushes.index(max(pushes))
    usual = sorted(pushes[:200])[100]
    early = [p for p in pushes[:worst] if p > 1000 * usual]
    assert 10 <= len(early) <= 15 and 18 < max(pushes) / max(early) < 22
    (then,) = [w for w in story["watched"] if w["step"] == 240]
    assert worst == 229 and then["acc"] < 0.5 and then["asr"] == 1
    assert story["images"] == 80 and story["watched"][-1]["asr"] == pytest.approx(1 / 5, abs=0.03)
