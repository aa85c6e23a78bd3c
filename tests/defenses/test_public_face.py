"""What all defenses have in common to their callers: signatures, defaults, the device
rule, and what they print as."""

from __future__ import annotations

import inspect
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bdcourse import defenses, train
from bdcourse.analysis.curvature import SOFTMAX
from bdcourse.defenses import (
    DEFENSES,
    Estimate,
    FmpResponse,
    Inverted,
    Purified,
    _fip,
    detect,
    invert_trigger,
)
from bdcourse.defenses._base import Tuning
from bdcourse.defenses._linf import linf_responses
from bdcourse.defenses._rnp import unlearn
from bdcourse.images import Images
from helpers import frozen, gen, message, random_images, same_state

FUNCTIONS = [f for n in defenses.__all__ if inspect.isfunction(f := getattr(defenses, n))]
INVERTED = Inverted(
    torch.full((3, 1, 8, 8), 0.5), torch.ones(3, 3, 8, 8), torch.arange(3), torch.ones(3)
)


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    return nn.Sequential(*layers).eval()


def defaults(f):
    found = inspect.signature(f).parameters.values()
    return {p.name: p.default for p in found if p.default is not p.empty}


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_every_setting_has_a_name_and_chance_a_default(f):
    found = inspect.signature(f).parameters
    assert not any(p.kind is p.VAR_KEYWORD for p in found.values())
    if "generator" in found:
        assert found["generator"].default is None
    assert f.__doc__ and "options:" not in f.__doc__


@pytest.mark.parametrize("f", [*DEFENSES.values(), defenses.linf_oracle, detect, invert_trigger])
def test_docstrings_follow_one_template(f):
    text = inspect.getdoc(f)
    for section in ("Args:", "eturns", "aises", "Source:", "Derived in lesson 0"):
        assert section in " ".join(text.split()), section
    for name in inspect.signature(f).parameters:
        assert name == "model" or re.search(rf"\b{name}\b", text), name


@pytest.mark.parametrize("f", DEFENSES.values(), ids=DEFENSES)
def test_an_option_that_is_none_is_refused(f):
    with pytest.raises(ValueError, match="^an option must be one of .*, not 'nonsense'") as e:
        f(network(), nonsense=1)
    message(e)


@pytest.mark.parametrize(
    ("f", "near", "right"),
    [
        (defenses.finetune, "epoch", "epochs"),
        (defenses.fast_fip, "step", "steps"),
        (defenses.fip, "etaf", "eta_f"),
        (defenses.fmp, "epsilom", "epsilon"),
        (defenses.linf_oracle, "max_drops", "max_drop"),
    ],
)
def test_an_option_that_was_nearly_right_is_suggested(f, near, right):
    with pytest.raises(ValueError, match=re.escape(f"(did you mean {right!r}?)")) as e:
        f(network(), random_images(6), **{near: 1})
    message(e)


def test_defaults_stand_in_one_place():
    loop, fip = defaults(defenses.fip_descend), defaults(defenses.fip)
    loop.pop("about")
    assert fip | loop == fip
    assert defaults(defenses.fip_released) | loop == defaults(defenses.fip_released)
    fast = defaults(defenses.fast_fip)
    assert fast == {n: v for n, v in fip.items() if n != "fast"} | {"lr": 0.05}
    repair = defaults(defenses.fmp_repair)
    assert defaults(defenses.fmp_random) == repair
    assert defaults(defenses.fmp) | {n: v for n, v in repair.items() if n != "pairing"} == (
        defaults(defenses.fmp)
    )
    assert defaults(defenses.linf_oracle) == defaults(defenses.linf)
    scores = defaults(defenses.clp_scores)
    assert defaults(defenses.clp_sweep) == scores
    assert defaults(defenses.clp) == scores | {"u": 3.0}
    assert defaults(defenses.mnp_saliency) == defaults(defenses.mnp_loss_changes)
    ascent = {n: v for n, v in defaults(unlearn).items() if n not in ("judge", "drop")}
    assert defaults(defenses.mnp_suppress) == ascent | {"epochs": 300}
    of_fit = defaults(train.fit) | {"verbose": False}
    assert of_fit | defaults(Tuning) == of_fit
    for name in ("finetune", "ft_sam", "nad", "fine_pruning", "nc_unlearning"):
        for n in ("momentum", "weight_decay", "warmup", "frozen_norms", "verbose"):
            assert defaults(DEFENSES[name])[n] == of_fit[n], (name, n)


@pytest.mark.parametrize("name", ["fip", "fast_fip", "fip_released", "finetune", "anp", "i_bau"])
def test_without_a_generator_it_is_the_one_of_seed_0(name):
    few = {
        "finetune": {"epochs": 1},
        "anp": {"steps": 2, "threshold": 0.5},
        "i_bau": {"rounds": 1, "passes": 1, "steps": 1},
    }
    options = few.get(name, {"steps": 2}) | {"batch": 4}
    model, clean = network(), random_images(12)
    one, two, other = (
        DEFENSES[name](model, clean, **options, **chance)
        for chance in ({}, {"generator": gen(0)}, {"generator": gen(1)})
    )
    assert same_state(one.model, frozen(two.model))
    assert not same_state(one.model, frozen(other.model)) or name == "anp"


# ---------------------------------------------------------------- the device rule


@pytest.mark.parametrize("f", [defenses.fip, defenses.fast_fip, defenses.fip_released])
def test_other_data_elsewhere_are_refused(f):
    tokens = torch.zeros(6, 3, dtype=torch.int64)
    for clean in (
        SimpleNamespace(x=tokens.to("meta"), y=tokens[:, 0]),
        SimpleNamespace(x=tokens, y=tokens[:, 0].to("meta")),
    ):
        with pytest.raises(ValueError, match=r"^model is on cpu and .* is on meta; move") as e:
            f(nn.Sequential(nn.Embedding(4, 2), nn.Flatten(), nn.Linear(6, 3)), clean)
        message(e)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two devices")
@pytest.mark.parametrize("name", sorted(set(DEFENSES) - {"clp", "prune_random"}))
def test_a_defense_works_where_the_model_is(name):
    more = {
        "linf": {"estimate": Estimate(0, torch.ones(1, 8, 8), torch.ones(3, 8, 8))},
        "fmp_random": {"like": {"0": torch.tensor([0])}},
        "nc_unlearning": {"inverted": INVERTED, "label": 1},
    }.get(name, {})
    if "held" in inspect.signature(DEFENSES[name]).parameters:
        more["held"] = random_images(6)
    short = {"steps": 2, "epochs": 1, "teacher_epochs": 1, "rounds": 1, "n": 2, "betas": [1.0]}
    more |= {n: short[n] for n in short if n in inspect.signature(DEFENSES[name]).parameters}
    for here, there in (("cpu", "cuda"), ("cuda", "cpu")):
        moved = {n: v.to(here) if isinstance(v, Images) else v for n, v in more.items()}
        model = network().to(here)
        with pytest.raises(ValueError, match=rf"is on {here}.* on {there}.*; move one with") as e:
            DEFENSES[name](model, random_images(6).to(there), **moved)
        message(e)
        p = DEFENSES[name](model, random_images(6).to(here), **moved)
        assert {w.device.type for w in p.model.state_dict().values()} == {here}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two devices")
def test_a_suppressed_copy_elsewhere_is_refused():
    with pytest.raises(ValueError, match="^model is on cpu and suppressed is on cuda") as e:
        defenses.mnp_learn_masks(network(), network().to("cuda"), random_images(6), steps=1)
    message(e)


# ---------------------------------------------------------------- what they print as


def test_results_print_as_one_line():
    model, clean = network(), random_images(6)
    response = linf_responses(model, clean.pixels(), lambda x: x + 0, ["2"])["2"]
    pruned = {"1": torch.tensor([0, 3])}
    lines = {
        "Purified(Sequential, 3.2 s)": Purified(model, seconds=3.21),
        "Purified(Sequential, 2 channels off, 0.0 s)": Purified(model, pruned),
        "Purified(Sequential, 1 channel off, 0.0 s)": Purified(model, {"1": torch.tensor([0])}),
        "Estimate(label 1, 32.0 pixels)": INVERTED.trigger(1),
        "Inverted(3 labels, 32.0 to 32.0 pixels, 0.0 s)": INVERTED,
        "Detection(flagged: none; threshold 2)": detect(INVERTED),
        "LinfResponse(6 images, 4 channels, norms 1, 2, inf)": response,
        "FmpResponse(4 maps, accuracy 0.00 to 1.00)": FmpResponse(*torch.eye(4)[:3]),
        "FipDescent(eta_f 0.5, eta_r 0, every 1, true Fisher, difference product)": (
            defenses.FipDescent(SOFTMAX, gen(), eta_f=0.5)
        ),
        "ReleasedDescent(eta_f 0.5, every 5, 20 probes)": _fip.ReleasedDescent(gen()),
    }
    for line, thing in lines.items():
        assert repr(thing) == line
    assert "\n" not in repr(defenses.SamDescent(SOFTMAX))


def test_results_are_compared_by_identity():
    model = network()
    a, b = (Purified(model, {"1": torch.arange(2)}) for _ in range(2))
    assert a == a and a != b and len({a, b}) == 2
    mask = torch.ones(1, 8, 8)
    assert Estimate(0, mask, mask) != Estimate(0, mask, mask)


def test_a_statistic_that_is_not_finite_is_no_result():
    model = network()
    model[1].running_var[2] = torch.inf
    with pytest.raises(RuntimeError, match="^1.running_var of the repaired network") as e:
        Purified(model)
    message(e)
