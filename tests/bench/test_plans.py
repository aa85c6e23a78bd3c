"""The lines of a table: what they share, what they need, and how they run."""

import json
from functools import partial

import pytest
import torch

import bdcourse as bd
from bdcourse import data, defenses, metrics, victims
from bdcourse.bench import cells, plans
from bdcourse.bench import run as bench
from bdcourse.bench.plans import PLANS, Case, Plan
from bdcourse.defenses import FmpResponse, Purified, fmp_select
from bdcourse.defenses._masks import maskable
from bdcourse.report import tables
from bdcourse.train import Augment
from helpers import frozen, gen, message, same_state

pytestmark = pytest.mark.usefixtures("small")


def test_the_control_of_fip_pushes_as_far_as_fip(monkeypatch):
    model, images = victims.zoo("benign-hard").model, data.load("signs-hard", n=40)
    case = Case(model, images, images[:8], Augment(2))
    short = partial(defenses.fip, steps=2)
    monkeypatch.setattr(plans.defenses, "fip", short)
    led = PLANS["fip"].run(case)
    p = PLANS["fip, random direction, same lengths"].run(case)
    assert led is case.fip and p.seconds > led.seconds
    for (_, a), (_, b) in zip(p.log["push"], led.log["push"], strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    a, b = (torch.cat([w.flatten() for w in m.parameters()]) for m in (p.model, led.model))
    assert not torch.allclose(a, b)


@pytest.mark.parametrize("name", ["anp", "rnp"])
@pytest.mark.parametrize(("points", "drop"), [("3", 0.03), ("10", 0.1)])
def test_other_thresholds_are_chosen_on_the_same_masks(name, points, drop, monkeypatch):
    images = data.load("signs", "test", n=30)
    net = victims.zoo("trojan").model
    runs = []

    def learned(model, clean, held, *, generator, **given):
        runs.append(given)
        masks = {n: torch.ones_like(b.weight) for n, b in maskable(model).items()}
        masks["layer1.0.bn1"][:2] = torch.tensor([0.0, 0.3])
        return Purified(model, log={"masks": masks}, seconds=1.0)

    def chosen(model, masks, held, threshold, max_drop, looks=None):
        assert held is case.held and threshold is None and max_drop == drop
        return model, {"layer1.0.bn1": masks["layer1.0.bn1"].argsort()[:1]}, 0.25

    monkeypatch.setattr(defenses, name, learned)
    monkeypatch.setattr(plans, "masks_prune", chosen)
    case = Case(net, images[:20], images[20:], Augment(0))
    costly = f"{name}, {points} points"
    first, second = (PLANS[n].run(case) for n in (name, costly))
    assert len(runs) == 1 and first.count == 0
    assert second.count == 1 and second.seconds >= 1.0
    assert plans.notes(second) == {"threshold": 0.25}
    assert PLANS[costly].settings["max_drop"] == drop


def test_controls_take_as_many_as_the_method(monkeypatch):
    images, victim = data.load("signs", "test", n=60), victims.zoo("trojan")
    case = Case(victim.model, images[:40], images[40:], Augment(0), 0, victim.attack)
    like = {"layer1.0.bn1": torch.tensor([0, 3]), "bn1": torch.tensor([1])}
    masks = {n: torch.ones_like(b.weight) for n, b in maskable(victim.model).items()}
    for name, channels in like.items():
        masks[name][channels] = 0.3
    case.anp = Purified(victim.model, log={"masks": masks}, seconds=1.0)
    p = PLANS["anp, 10 points, random channels"].run(case)
    q = PLANS["anp, 10 points"].run(case)
    assert q.count and {n: len(c) for n, c in p.pruned.items()} == {
        n: len(c) for n, c in q.pruned.items()
    }
    for name, channels in p.pruned.items():  # scales go, shifts stay
        bn, was = (m.get_submodule(name) for m in (p.model, victim.model))
        assert not bn.weight[channels].any() and torch.equal(bn.bias, was.bias)
    oracle = PLANS["anp (oracle)"].run(case)
    assert PLANS["anp (oracle)"].kind == "oracle"
    s = [metrics.evaluate(m.model, case.held, victim.attack) for m in (oracle, q)]
    assert s[0].asr <= s[1].asr
    monkeypatch.setattr(defenses, "fmp_random", lambda m, c, like, **o: like)
    sizes = {n: len(c) for n, c in PLANS["fmp, random maps"].run(case).items()}
    found = {
        n: FmpResponse(*torch.rand(3, m.out_channels))
        for n, m in victim.model.named_modules()
        if hasattr(m, "out_channels") and n in sizes
    }
    assert sizes == {n: len(c) for n, c in fmp_select(found, 64, least=1).items()}
    assert PLANS["fmp, no maps"].run(case) == {}


def test_all_leaves_out_what_varies_inside_a_method():
    usual, more = (set(bench._wanted([w])) for w in ("all", "everything"))
    inner = ("fip, ", "fast fip, ", "fmp, p = 16, rel", "fmp, p = 16, mask", "clp, u = 3, ")
    inner += ("fine-tuning, adamw",)
    named = {n for n in PLANS if n.startswith(inner) and not n.endswith("eta = 0")}
    assert more - usual == named == {n for n, p in PLANS.items() if p.kind == "ablation"}
    assert {"fip", "sam", "fast fip"} <= usual
    assert more == {*PLANS, cells.SWEEP}


def test_plans_say_how_they_run():
    for name, plan in PLANS.items():
        json.dumps(plan.settings, allow_nan=False)  # a row can hold them
        # what follows from another line of the table, or chooses its setting itself
        derived = name == "none" or name.endswith("random channels")
        assert plan.settings or derived or name == "clp, u on held-out images"
    assert PLANS["fmp, p = 16"].settings["p"] == 16
    assert PLANS["fip, released, eta = 0.5"].settings["eta_f"] == 0.5
    assert PLANS["fip, released"].settings["eta_f"] == 0.005
    assert PLANS["fast fip"].settings["lr"] == 0.05 and PLANS["fip"].settings["steps"]


def test_plans_say_which_images_they_use():
    images = data.load("signs", "test", n=30)
    case = Case(torch.nn.Identity(), images[:20], images[20:], Augment(0))
    assert PLANS["none"].images(case) == 0
    assert PLANS["fine-tuning"].images(case) == 20
    assert PLANS["clp, u on held-out images"].images(case) == 10
    assert set(tables.DEFENSES) <= set(PLANS)


def test_unknown_names_are_refused_and_added_ones_kept():
    extra = "clp, u = 3, as released"
    assert PLANS[extra].kind == "ablation"
    assert bench._wanted(["all", extra])[-1] == extra
    assert bench._wanted([extra, "ALL"])[0] == extra
    for names in (["all", "nope"], ["nope", "everything"], ["none", "nope"]):
        with pytest.raises(ValueError, match="unknown defense 'nope'") as e:
            bench._wanted(names)
        assert "--list" in message(e)
    with pytest.raises(ValueError) as e:
        bench._wanted(["clp,", "u", "=", "3"])  # a shell without quotes
    assert "did you mean 'clp, u = 3' or" in message(e)
    with pytest.raises(ValueError, match="did you mean 'BadNets'"):
        bench.run("signs", "r.json", attacks=["all", "BadNet"])


def test_names_say_who_is_told_the_attack():
    for name, plan in PLANS.items():
        pixels = name == "fmp, p = 16, release step"  # a step of pixels
        assert plan.name == name and plan.tasks == (
            ("images", "video", "detection") if pixels else ()
        )
        oracle = name.endswith("(oracle)")
        assert oracle == (plan.kind == "oracle") == ("attack" in plan.needs)
    assert {p.kind for p in PLANS.values()} == set(plans.KINDS)
    assert all(PLANS[n].kind == "control" for n in ("none", "fine-tuning", "random channels"))


def test_a_plan_sees_what_it_needs_and_nothing_else():
    images, victim = data.load("signs", "test", n=30), victims.zoo("trojan")
    seen = {}

    def look(case):
        seen[len(seen)] = {n for n in plans.NEEDS if getattr(case, n) is not None}
        return Purified(case.model)

    given = {"clean": images[:20], "held": images[20:], "attack": victim.attack}
    asked = [(), ("clean",), ("held",), plans.BOTH]
    for needs in asked:
        bd.repair(Plan("mine", look, needs=needs), victim.model, **given)
    told = Plan("mine (oracle)", look, kind="oracle", needs=("attack",))
    bd.repair(told, victim.model, **given)
    assert [*seen.values()] == [set(n) for n in (*asked, ("attack",))]
    for name in plans.NEEDS:
        few = {k: v for k, v in given.items() if k != name}
        for plan in PLANS.values():
            if name in plan.needs:
                with pytest.raises(ValueError, match=f"; pass {name} as well.$") as e:
                    bd.repair(plan.name, victim.model, **few)
                assert message(e).startswith(repr(plan.name))
    for wrong in ({"kind": "oracle"}, {"needs": ("clean", "attack")}):
        with pytest.raises(ValueError, match="among its needs") as e:
            Plan("mine", look, **wrong)
        assert message(e)


def test_one_call_repairs_as_the_plain_function_does():
    images, victim = data.load("signs", "test", n=30), victims.zoo("trojan")
    plain = defenses.clp(victim.model, 2.5)
    found = bd.repair("CLP, u = 2.5", victim.model)
    assert same_state(found.model, frozen(plain.model)) and found.count == plain.count
    found = bd.repair("fine-tuning", victim.model, clean=images, augment=Augment(2), seed=3)
    how = plans.FINE_TUNING | {"augment": Augment(2), "generator": gen(3)}
    plain = defenses.finetune(victim.model, images, **how)
    assert same_state(found.model, frozen(plain.model))
    assert bd.plans is PLANS and bd.Plan is Plan
    with pytest.raises(ValueError, match="did you mean 'clp, u = 3'") as e:
        bd.repair("clp", victim.model)
    assert message(e)


def test_shared_work_is_done_once_for_all_who_need_it(monkeypatch):
    images, victim = data.load("signs", "test", n=30), victims.zoo("trojan")
    calls = []

    def searched(*about, **how):
        calls.append(how)
        return "found"

    monkeypatch.setattr("bdcourse.bench.case.invert_trigger", searched)
    case = Case(victim.model, images[:20], images[20:], Augment(0), 0, victim.attack)
    mine = [Plan("mine", lambda case: case.inverted, needs=n) for n in (plans.BOTH, ("clean",))]
    assert [p.run(case) for p in mine] == ["found"] * 2 and case.inverted == "found"
    assert len(calls) == 1
