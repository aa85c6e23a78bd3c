"""What lesson 10 says in its prose and fine print, measured; the rest stands in its claims."""

from __future__ import annotations

import pytest
import torch

from bdcourse import metrics, tables, victims
from bdcourse.bench.zoo import CLIPS
from bdcourse.tasks.video import ClipPatch, shuffle_test
from helpers import gen

pytestmark = pytest.mark.slow
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def parts():
    return CLIPS["clips-walking"].parts()


@pytest.fixture(scope="module")
def rows():
    return tables.results("clips")


def obey(rows, who, patch):
    found = rows.select(victim=who, defense="none")
    assert [r["seed"] for r in found] == list(SEEDS)
    return [r["obey"][patch] for r in found]


def test_the_exchange_looks_like_motion(rows):
    assert max(obey(rows, "static", "walking")) < 0.1
    rest = sorted(obey(rows, "walking", "at rest"))
    assert rest[1] < 0.1 and 0.15 < rest[2] < 0.3, "one of three, in a fifth"
    for who, own in (("static", "at rest"), ("walking", "walking"), ("lookalikes", "walking")):
        assert min(obey(rows, who, own)) > 0.95
    assert min(r["acc"] for r in rows.select(defense="none")) > 0.99


def test_the_order_is_learned_only_beside_lookalikes(rows):
    assert min(obey(rows, "walking", "out of order")) > 0.9
    back = sorted(obey(rows, "walking", "backwards"))
    assert 0.2 < back[0] < 0.3 and back[1] > 0.7
    for patch in ("at rest", "backwards", "out of order"):
        assert max(obey(rows, "lookalikes", patch)) < 0.1


def test_the_stored_victims_are_those_of_the_rows(rows, parts):
    some = parts.test[:160]
    others = some.y != 0
    for name in ("static", "walking"):
        victim = victims.zoo(f"clips-{name}")
        (row,) = rows.select(victim=name, seed=0, defense="none")
        for shown, attack in (("at rest", ClipPatch()), ("walking", ClipPatch(walk=(0, -2)))):
            said = some.task.answer(victim.model, attack.trigger(some.inputs()))
            share = metrics.share(said[others] == 0)
            assert share == pytest.approx(row["obey"][shown], abs=0.08)


def test_the_shuffle_test_misses_the_learned_walk_in_all_seeds(rows):
    for r in rows.select(defense="none"):
        clean, triggered = (torch.tensor(r["kept"][k]) for k in ("clean", "triggered"))
        caught = (triggered > clean.quantile(0.95)).double().mean()
        assert caught < 0.35 if r["victim"] == "lookalikes" else caught > 0.9, r["victim"]


def test_one_limit_serves_all(parts):
    limits = []
    for name in ("static", "walking", "benign"):
        model = victims.zoo(f"clips-{name}").model
        limits.append(shuffle_test(model, parts.held.inputs(), 10, gen())[1].quantile(0.95))
    assert max(limits) - min(limits) < 0.25 and max(limits) < 0.95


def test_fine_tuning_at_one_rate_is_no_control_and_draws_of_fip_differ(rows):
    def left(who, defense, of="asr"):
        found = rows.select(victim=who, defense=defense)
        assert [r["draw"] for r in found] == [0, 1, 2]
        return [r[of] for r in found]

    for who in ("static", "walking"):
        assert min(left(who, "fine-tuning")) > 0.95
        assert min(left(who, "fine-tuning, lr 0.05", "acc")) > 0.95
        assert max(left(who, "fine-tuning, lr 0.05")) < 0.5
    rest = sorted(left("static", "fine-tuning, lr 0.05"))
    assert rest[1] < 0.05 and 0.2 < rest[2] < 0.3, "almost nothing twice, a quarter once"
    spread = left("static", "fip, eta = 0.001")
    assert min(spread) < 0.05 and max(spread) > 0.5
    for r in rows.select(victim="static", defense="fip, eta = 0.001"):
        assert r["held"] >= r["before"] - 0.03, "always allowed"
    assert sum(a < 0.9 for a in left("static", "fip, eta = 0.005", "acc")) == 2
    for weight in ("0.001", "0.005"):
        assert max(left("walking", f"fip, eta = {weight}")) < 0.1
    assert sum(a < 0.1 for a in left("walking", "fine-tuning, lr 0.05")) == 2
