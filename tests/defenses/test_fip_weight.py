"""How FIP chooses its weight: a ladder of shares of a nat, and clean held-out scores."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch

from bdcourse.analysis.curvature import fisher_trace
from bdcourse.defenses import FIP_SHARES, _fip, fast_fip, fip, fip_factorize
from bdcourse.examples import hold_out
from fip_setup import network, norm_net, small, smooth_net
from helpers import frozen, gen, message, random_images, same_state

FEW = {"steps": 2, "lr": 1e-3, "batch": 6}


def judged(monkeypatch, scores):
    """Let `held` score what a list says: the received network, then the rungs."""
    left, real = list(scores), _fip.own_acc
    monkeypatch.setattr(_fip, "own_acc", lambda model, held, what: left.pop(0))
    return real


@pytest.mark.parametrize(
    ("scores", "rung", "costly"),
    [
        ([0.9, 0.9, 0.9, 0.9, 0.9, 0.9], 4, False),
        ([0.9, 0.9, 0.88, 0.5, 0.9, 0.9], 1, False),  # not past the first that costs too much
        ([0.9, 0.2, 0.9, 0.9, 0.9, 0.9], 0, True),  # the least, if that does already
        ([0.9, 0.87, 0.86, 0.0, 0.0, 0.0], 0, False),
    ],
)
def test_the_largest_weight_before_the_first_that_costs_too_much(scores, rung, costly, monkeypatch):
    judged(monkeypatch, scores)
    model, (images, _) = smooth_net().float(), small(12)
    p = fip(model, images, images[:3], **FEW, generator=gen())
    log = p.log
    assert [r["share"] for r in log["ladder"]] == list(FIP_SHARES) == [0.01, 0.03, 0.1, 0.3, 1]
    assert [r["held"] for r in log["ladder"]] == scores[1:] and log["held"] == scores[0]
    assert log["eta_f"] == log["ladder"][rung]["eta_f"] and log["costly"] is costly
    assert p.seconds >= sum(r["seconds"] for r in log["ladder"]) > 0
    monkeypatch.undo()
    again = fip(model, images, eta_f=log["eta_f"], **FEW, generator=gen())
    assert same_state(again.model, frozen(p.model)), "it is what that weight gives"
    for name in ("loss", "trace", "push"):
        assert again.log[name] == log[name]


@pytest.mark.parametrize("fast", [False, True])
def test_a_rung_is_a_share_of_the_trace_in_eval_mode(fast):
    model, (images, _) = norm_net().float(), small(12)
    f = fast_fip if fast else fip
    log = f(model.train(), images, images[:3], **FEW, generator=gen()).log
    net = norm_net().float()
    if fast:
        fip_factorize(net)
    want = fisher_trace(net.eval(), images, route="gaussian", generator=gen())
    assert log["fisher"] == pytest.approx(want.value, rel=1e-4)
    for rung in log["ladder"]:
        assert rung["eta_f"] * log["fisher"] == pytest.approx(rung["share"])


def test_without_held_examples_a_fifth_of_clean_is_held_out():
    model, images = network(), random_images(20)
    p = fip(model, images, **FEW, generator=gen(3))
    rest, held = hold_out(images, 4, gen())
    q = fip(model, rest, held, **FEW, generator=gen(3))
    assert same_state(p.model, frozen(q.model)) and p.log["ladder"][0].keys() == {
        *("share", "eta_f", "held", "seconds")
    }
    assert [r["held"] for r in p.log["ladder"]] == [r["held"] for r in q.log["ladder"]]


def test_a_rung_that_leaves_all_bounds_ends_the_climb(monkeypatch):
    model, (images, _) = smooth_net().float(), small(12)
    real, seen = _fip.fip_descend, []

    def sometimes(net, clean, descent, **how):
        seen.append(descent.eta_f)
        if len(seen) > 2:
            raise RuntimeError("the weights left all bounds in step 0: take a smaller lr.")
        return real(net, clean, descent, **how)

    monkeypatch.setattr(_fip, "fip_descend", sometimes)
    p = fip(model, images, images[:4], max_drop=1.0, **FEW, generator=gen())
    assert [r["held"] is None for r in p.log["ladder"]] == [False, False, True, True, True]
    assert p.log["eta_f"] == seen[1] == p.log["ladder"][1]["eta_f"]
    seen[:] = [0, 0, 0]
    with pytest.raises(RuntimeError, match="take a smaller lr") as e:
        fip(model, images, images[:4], **FEW, generator=gen())
    message(e)


def test_what_it_cannot_choose_by_is_refused():
    model, (images, _) = smooth_net().float(), small()
    pair = SimpleNamespace(x=images.x.float() / 255, y=images.y)
    for text, given in (
        ("bare inputs and targets have none", {"clean": pair}),
        ("needs 4 images, not 3", {"clean": images[:3]}),
        ("held must be images like clean", {"clean": images, "held": random_images(4, 3, 9)}),
        ("max_drop must be", {"clean": images, "max_drop": 2}),
        ("eta_f given and not 0", {"clean": images, "lengths": dict.fromkeys(range(2), 1.0)}),
    ):
        with pytest.raises(ValueError, match=text) as e:
            fip(model, **given, **FEW, generator=gen())
        message(e)
    with torch.no_grad():
        model[3].weight.zero_()
        model[3].bias.copy_(torch.tensor([1e4, 0.0, 0.0]))
    with pytest.raises(ValueError, match="trace of the Fisher is 0 on these images") as e:
        fip(model, images, images, **FEW, generator=gen())
    message(e)


def test_it_never_sees_an_attack():
    for f in (fip, fast_fip):
        names = inspect.signature(f).parameters
        assert not {"attack", "trigger", "test", "asr"} & set(names)
