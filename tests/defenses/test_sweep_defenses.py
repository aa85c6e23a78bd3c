"""Each public function of the defenses gets one bad argument at a time.

Right are an answer or one sentence of ours, see `sweep.refusal`.
"""

from __future__ import annotations

import copy
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bdcourse import activations, defenses, surgery
from bdcourse.analysis import curvature, landscape
from bdcourse.attacks import BadNets
from bdcourse.defenses import (
    Estimate,
    FmpResponse,
    Inverted,
    clp_choose_u,
    clp_sweep,
    fmp_repair,
    fmp_scores,
    fmp_select,
    linf_gated,
    mnp_apply_masks,
    mnp_first_order,
    mnp_loss_changes,
    mnp_magnitudes,
)
from bdcourse.defenses._fine_pruning import activity
from bdcourse.defenses._mnp import choose_beta
from bdcourse.defenses._nad import stages
from bdcourse.defenses._rnp import recover, unlearn
from bdcourse.examples import Poisoned
from helpers import gen, message, random_images
from sweep import NUMBERS, THINGS, WHOLE, refusal

K = 3


def network(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16, K),
        )
    return net.eval()


MODEL, CLEAN, HELD = network(), random_images(6, K, 8), random_images(4, K, 8, seed=1)
POISONED = Poisoned(CLEAN.x, CLEAN.y, CLEAN.classes, role=torch.zeros(len(CLEAN), dtype=torch.int8))
FOUND = Inverted(
    torch.full((K, 1, 8, 8), 0.1),
    torch.ones(K, 3, 8, 8),
    torch.arange(K),
    torch.ones(K),
)
SCORES = {"0": FmpResponse(*torch.rand(3, 4, generator=gen()).double())}
WHICH, X = {"1": torch.tensor([0])}, CLEAN.pixels()
MASKS = {"1": torch.rand(4, generator=gen())}
P = sum(w.numel() for w in MODEL.parameters())

# What work would never end with is no bad input: somebody asked for it.
COUNTS = tuple(v for v in WHOLE if v != 10**12)
LENGTHS = tuple(v for v in NUMBERS if v != 1e300)
NAMES = (None, "no", 3, 1.5, [], b"relu", math.nan)
FLAGS = (None, "yes", 1, 0.0, [])
LISTS = (None, "no", 3, [], [None], ["no"], [-1], [math.nan], b"x", {}, object())
MODELS = (*THINGS, nn.Module, SimpleNamespace(model=MODEL), [MODEL], nn.ReLU())
IMAGES = (
    *THINGS,
    POISONED,
    CLEAN[:0],
    CLEAN[:1],
    random_images(6, K, 8, c=1),
    random_images(6, K, 5),
    random_images(6, 4, 8),
    X,
    SimpleNamespace(x=X, y=X),
    SimpleNamespace(x=None, y=None),
    SimpleNamespace(x=X, y=CLEAN.y[:2]),
)
CHANNELS = (
    *THINGS,
    {"9": torch.tensor([0])},
    {"2": torch.tensor([0])},
    {"1": None},
    {"1": torch.tensor([4])},
    {"1": torch.tensor([-1])},
    {"1": torch.tensor([0.5])},
    {"1": torch.ones(3, dtype=torch.bool)},
    {"1": [0]},
    {1: torch.tensor([0])},
)
TENSORS = (*THINGS, X[:0], X * 255, X.to(torch.uint8), X[0], X - 2, X * torch.nan)
FIT = {
    "epochs": LENGTHS,
    "lr": NUMBERS,
    "batch": COUNTS,
    "augment": THINGS,
    "momentum": NUMBERS,
    "weight_decay": NUMBERS,
    "warmup": NUMBERS,
    "epoch": (3,),
    "frozen_norms": FLAGS,
    "verbose": FLAGS[:1],
    "compile": FLAGS[1:],
}
OF_DATA = {"model": MODELS, "clean": IMAGES}
CHANCE = {"generator": THINGS, "checkpoint": (3, b"x", [], object())}
HOLD = {"held": IMAGES, "max_drop": NUMBERS, "threshold": NUMBERS}
ASCENT = {"stop": NUMBERS, "epochs": COUNTS, "lr": NUMBERS, "clip": NUMBERS}
BASE = {"model": MODEL, "clean": CLEAN, "generator": None}
TUNED = BASE | {"epochs": 1, "batch": 6}
RNP = BASE | {"held": HELD, "steps": 1, "epochs": 1}
DESCENT = {
    "steps": COUNTS,
    "lr": NUMBERS,
    "momentum": NUMBERS,
    "batch": COUNTS,
    "norms": NAMES,
    "augment": THINGS,
    "watch": THINGS[1:],
    "watch_every": COUNTS,
    "step": (3,),
}
FIP = (
    OF_DATA
    | CHANCE
    | DESCENT
    | {
        "held": IMAGES,
        "max_drop": NUMBERS,
        "eta_f": NUMBERS,
        "eta_r": NUMBERS,
        "every": COUNTS,
        "fisher": NAMES,
        "product": NAMES,
        "draw": NAMES,
        "lengths": (*THINGS, {0: -1}, {"a": 1}, {0: "x"}),
        "likelihood": THINGS,
        "affine": FLAGS,
    }
)
CURVE = {"weights": (*LISTS, ["0.weight", "9"]), "chunk": COUNTS, "likelihood": THINGS}
OF_IMAGES = {"model": MODELS, "images": IMAGES}
LOOK = {"model": MODEL, "images": CLEAN}
VECTORS = (*THINGS, torch.zeros(3, P + 1), torch.zeros(1, 1, P))

# function -> (what works, argument -> bad values)
CALLS = {
    defenses.finetune: (
        TUNED,
        OF_DATA | CHANCE | FIT | {"hold": CHANNELS, "optimizer": NAMES},
    ),
    defenses.prune_random: (
        {"model": MODEL, "like": WHICH, "generator": None},
        {"model": MODELS, "like": CHANNELS, "generator": THINGS, "shift": FLAGS},
    ),
    defenses.clp: (
        {"model": MODEL},
        {
            "model": MODELS,
            "u": NUMBERS,
            "norm": NAMES,
            "pairing": NAMES,
            "released": FLAGS,
            "shape": (*THINGS[1:], (3, 8), (3, 8, 0), ("a", 1, 2)),
        },
    ),
    clp_sweep: ({"model": MODEL, "us": [1.0]}, {"model": MODELS, "us": LISTS}),
    clp_choose_u: (
        {"model": MODEL, "clean": CLEAN},
        OF_DATA | {"us": LISTS, "max_drop": NUMBERS},
    ),
    defenses.anp: (
        BASE | {"held": HELD, "steps": 2},
        OF_DATA
        | CHANCE
        | HOLD
        | {
            "eps": NUMBERS,
            "alpha": NUMBERS,
            "steps": COUNTS,
            "lr": NUMBERS,
            "momentum": NUMBERS,
            "batch": COUNTS,
            "inner": COUNTS,
            "start": NAMES,
            "training": FLAGS,
        },
    ),
    defenses.rnp: (
        RNP,
        OF_DATA
        | CHANCE
        | HOLD
        | ASCENT
        | {
            "judge": NAMES,
            "drop": COUNTS,
            "steps": COUNTS,
            "mask_lr": NUMBERS,
            "weight": NUMBERS,
            "training": FLAGS,
            "batch": COUNTS,
        },
    ),
    unlearn: (
        BASE | {"epochs": 1},
        OF_DATA
        | CHANCE
        | ASCENT
        | {
            "judge": NAMES,
            "drop": COUNTS,
            "momentum": NUMBERS,
            "weight_decay": NUMBERS,
            "batch": COUNTS,
        },
    ),
    recover: (
        {"unlearned": MODEL, "clean": CLEAN, "generator": None, "steps": 1},
        {
            "unlearned": MODELS,
            "clean": IMAGES,
            "steps": COUNTS,
            "lr": NUMBERS,
            "momentum": NUMBERS,
            "weight": NUMBERS,
            "batch": COUNTS,
            "training": FLAGS,
        },
    ),
    defenses.mnp: (
        RNP | {"mask_lr": 1.0},
        OF_DATA
        | CHANCE
        | HOLD
        | ASCENT
        | {
            "repair": NAMES,
            "preserve": NUMBERS,
            "beta": (*NUMBERS, "held", "no"),
            "lam": NUMBERS,
            "kappa": NUMBERS,
            "penalty": NAMES,
            "steps": COUNTS,
            "mask_lr": NUMBERS,
            "batch": COUNTS,
            "tune": LENGTHS,
        },
    ),
    mnp_apply_masks: (
        {"model": MODEL, "masks": MASKS, "repair": "hard", "held": HELD},
        {"model": MODELS, "masks": (*CHANNELS, {"1": torch.ones(4) * 2}), "repair": NAMES, **HOLD},
    ),
    mnp_loss_changes: (
        {"model": MODEL, "clean": CLEAN},
        OF_DATA | {"shift": FLAGS, "room": COUNTS},
    ),
    mnp_first_order: ({"model": MODEL, "clean": CLEAN}, OF_DATA | {"batch": COUNTS}),
    mnp_magnitudes: ({"model": MODEL}, {"model": MODELS}),
    choose_beta: (
        {
            "model": MODEL,
            "suppressed": network(1),
            "clean": CLEAN,
            "held": HELD,
            "generator": None,
            "steps": 1,
            "lr": 1.0,
        },
        OF_DATA
        | {
            "suppressed": MODELS,
            "held": IMAGES,
            "betas": LISTS,
            "max_drop": NUMBERS,
            "generator": THINGS,
        },
    ),
    defenses.fmp: (
        TUNED | {"least": 1, "n": 1},
        OF_DATA
        | CHANCE
        | FIT
        | {
            "p": NUMBERS,
            "epsilon": NUMBERS,
            "start": NUMBERS,
            "n": COUNTS,
            "starts": COUNTS,
            "by": NAMES,
            "least": COUNTS,
            "z": NUMBERS,
            "chunk": COUNTS,
            "bf16": FLAGS,
            "released": FLAGS,
            "hold_mask": FLAGS,
        },
    ),
    fmp_scores: (
        LOOK | {"generator": None, "n": 1},
        {"layers": LISTS, "images": IMAGES},
    ),
    fmp_select: (
        {"score": SCORES},
        {"p": NUMBERS, "by": NAMES, "least": COUNTS, "z": NUMBERS},
    ),
    fmp_repair: (
        TUNED | {"channels": {"0": torch.tensor([0])}},
        {"channels": CHANNELS, "pairing": NAMES, "hold_mask": FLAGS, "each_epoch": THINGS[1:]},
    ),
    defenses.fmp_random: (
        TUNED | {"like": {"0": torch.tensor([0])}},
        OF_DATA | CHANCE | {"like": CHANNELS},
    ),
    defenses.fine_pruning: (
        TUNED | {"held": HELD},
        OF_DATA
        | CHANCE
        | FIT
        | {"held": IMAGES, "max_drop": NUMBERS, "share": NUMBERS, "hold": FLAGS, "layer": LISTS},
    ),
    activity: (LOOK, OF_IMAGES | {"layer": (["9"], ["2"], [])}),
    defenses.ft_sam: (
        TUNED,
        OF_DATA | CHANCE | FIT | {"rho": NUMBERS, "smoothing": NUMBERS},
    ),
    defenses.nad: (
        TUNED | {"betas": [1.0], "teacher_epochs": 1},
        OF_DATA
        | CHANCE
        | FIT
        | {
            "betas": LISTS,
            "layers": LISTS,
            "p": NUMBERS,
            "teacher": MODELS,
            "teacher_epochs": LENGTHS,
        },
    ),
    stages: (LOOK, {}),
    defenses.i_bau: (
        BASE | {"rounds": 1, "passes": 1, "steps": 1},
        OF_DATA
        | CHANCE
        | {
            "rounds": COUNTS,
            "passes": COUNTS,
            "radius": NUMBERS,
            "steps": COUNTS,
            "rate": NUMBERS,
            "iterations": COUNTS,
            "solve_rate": NUMBERS,
            "lr": NUMBERS,
            "batch": COUNTS,
            "augment": THINGS,
        },
    ),
    defenses.nc_unlearning: (
        TUNED | {"inverted": FOUND, "label": 1},
        OF_DATA
        | CHANCE
        | FIT
        | {
            "inverted": THINGS,
            "label": COUNTS,
            "threshold": NUMBERS,
            "scale": NAMES,
            "share": NUMBERS,
        },
    ),
    defenses.fip: (BASE | {"steps": 1, "eta_f": 1e-3}, FIP),
    defenses.fast_fip: (
        BASE | {"steps": 1, "eta_f": 1e-3},
        OF_DATA | {"affine": FLAGS, "eta_f": NUMBERS},
    ),
    defenses.fip_released: (
        BASE | {"steps": 1, "probes": 1},
        OF_DATA | CHANCE | DESCENT | {"eta_f": NUMBERS, "every": COUNTS, "probes": COUNTS},
    ),
    defenses.linf: (
        {"model": MODEL, "clean": CLEAN, "held": HELD, "estimate": FOUND.trigger(1)},
        OF_DATA
        | {
            "held": IMAGES,
            "max_drop": NUMBERS,
            "estimate": THINGS,
            "top": COUNTS,
            "layer": (*NAMES, ["2"], "5", "0"),
            "p": NUMBERS,
            "score": NAMES,
            "reduce": NAMES,
            "select": NAMES,
            "qs": LISTS,
            "u": NUMBERS,
        },
    ),
    defenses.linf_oracle: (
        {"model": MODEL, "clean": CLEAN, "held": HELD, "attack": BadNets()},
        OF_DATA | {"held": IMAGES, "attack": THINGS},
    ),
    linf_gated: (
        {"model": MODEL, "layer": "2", "shape": (3, 8, 8)},
        {"model": MODELS, "layer": NAMES},
    ),
    defenses.invert_trigger: (
        BASE | {"steps": 1, "every": 1},
        OF_DATA
        | CHANCE
        | {
            "targets": (*LISTS, [5], [1, 1], torch.tensor([0.5])),
            "steps": COUNTS,
            "every": COUNTS,
            "lr": NUMBERS,
            "batch": COUNTS,
            "lam": NUMBERS,
            "factor": NUMBERS,
            "patience": COUNTS,
            "success": NUMBERS,
            "stop": COUNTS,
            "chunk": COUNTS,
            "bf16": FLAGS,
        },
    ),
    defenses.detect: (
        {"inverted": FOUND},
        {"inverted": THINGS, "threshold": NUMBERS, "scale": NAMES, "least": NUMBERS},
    ),
    Estimate: (
        {"label": 1, "mask": torch.ones(1, 8, 8), "pattern": torch.ones(3, 8, 8)},
        {"label": COUNTS, "mask": THINGS, "pattern": (*THINGS, X[0] * math.nan)},
    ),
    surgery.pair_by_flow: (
        {"model": MODEL},
        {"model": MODELS},
    ),
    surgery.without: (
        {"model": MODEL, "channels": WHICH},
        {"model": MODELS, "channels": CHANNELS},
    ),
    surgery.revived: ({"model": MODEL, "channels": WHICH}, {"channels": CHANNELS}),
    activations.outputs: (
        {"model": MODEL, "x": X, "names": ["1"]},
        {"model": MODELS, "x": TENSORS, "names": (*LISTS, ["9"])},
    ),
    activations.norms: (
        {"model": MODEL, "x": X, "names": ["1"]},
        {"model": MODELS, "x": TENSORS, "names": (*LISTS, ["5"]), "p": NUMBERS},
    ),
    activations.tac: (
        LOOK | {"attack": BadNets()},
        OF_IMAGES | {"attack": THINGS, "names": (*LISTS, ["5"]), "batch": COUNTS},
    ),
    activations.grad_cam: (
        {"model": MODEL, "x": X, "labels": CLEAN.y, "layer": "1"},
        {
            "model": MODELS,
            "x": TENSORS,
            "layer": (*NAMES, "5"),
            "labels": (*THINGS, CLEAN.y[:2], CLEAN.y - 1, CLEAN.y + 1, CLEAN.y.float()),
        },
    ),
    activations.spearman: (
        {"a": torch.rand(4), "b": torch.rand(4)},
        {"a": THINGS, "b": THINGS},
    ),
    curvature.fisher_trace: (
        LOOK | {"generator": None, "draws": 1},
        OF_IMAGES | CURVE | {"generator": THINGS, "route": NAMES, "fisher": NAMES, "draws": COUNTS},
    ),
    curvature.fisher_diagonal: (LOOK, OF_IMAGES | CURVE | {"route": NAMES}),
    curvature.unflatten: (
        {"model": MODEL, "vector": torch.zeros(P)},
        {"vector": VECTORS},
    ),
    landscape.hessian_product: (
        LOOK | {"vectors": torch.zeros(P)},
        OF_IMAGES | CURVE | {"vectors": VECTORS},
    ),
    landscape.hessian_top: (
        LOOK | {"steps": 1, "generator": None},
        {"k": COUNTS, "steps": COUNTS, "tolerance": NUMBERS, "generator": THINGS},
    ),
    landscape.hessian_trace: (
        LOOK | {"draws": 1, "generator": None},
        {"draws": COUNTS, "generator": THINGS},
    ),
    landscape.spectrum: (
        LOOK | {"steps": 1, "generator": None},
        {"steps": COUNTS, "runs": COUNTS, "generator": THINGS},
    ),
    landscape.loss_and_accuracy: (LOOK, OF_IMAGES | {"chunk": COUNTS, "likelihood": THINGS}),
    landscape.filter_normalized: (
        {"model": MODEL, "generator": None},
        {"model": MODELS, "generator": THINGS},
    ),
    landscape.plane: (
        LOOK | {"directions": [dict(MODEL.named_parameters())], "ts": [0.0]},
        OF_IMAGES | {"directions": (*LISTS, [{"9": X}], [{"0.weight": None}]), "ts": LISTS},
    ),
    landscape.line: (
        {"start": MODEL, "end": network(1), "images": CLEAN, "ts": [0.5]},
        {"start": MODELS, "end": MODELS, "images": IMAGES, "ts": LISTS},
    ),
}
CASES = [(f, name) for f, (_, bad) in CALLS.items() for name in bad]
FRESH = ("generator",)


def started(given):
    """The same arguments with a generator of its own."""
    return {k: gen(3) if k in FRESH and v is None else v for k, v in given.items()}


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("f", CALLS, ids=lambda f: f.__name__)
def test_what_the_sweep_starts_from_works(f):
    f(**started(CALLS[f][0]))


@pytest.mark.slow
@pytest.mark.parametrize(("f", "name"), CASES, ids=lambda v: getattr(v, "__name__", v))
def test_one_bad_argument_gets_one_sentence(f, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a "checkpoint" of any name lands here
    base, bad = CALLS[f]
    before = copy.deepcopy(MODEL.state_dict())
    for value in bad[name]:
        given = started(base) | {name: value}

        def call(given=given):
            f(**given)

        try:
            refusal(call)
        except AssertionError as e:
            raise AssertionError(f"{f.__name__}({name}={value!r}): {e}") from None
    after = MODEL.state_dict()
    assert all(torch.equal(after[n], v) for n, v in before.items())


@pytest.mark.parametrize(
    "name",
    [
        "finetune",
        "anp",
        "rnp",
        "mnp",
        "fmp",
        "fine_pruning",
        "ft_sam",
        "nad",
        "i_bau",
        "nc_unlearning",
        "fip",
        "fast_fip",
        "fip_released",
        "linf",
        "linf_oracle",
        "invert_trigger",
        "fmp_random",
    ],
)
def test_poisoned_images_are_never_clean(name):
    f = getattr(defenses, name)
    given = CALLS[f][0]
    for role in ("clean", *(["held"] if "held" in given else ())):
        with pytest.raises(ValueError, match=f"{role} must be clean Images") as e:
            f(**started(given) | {role: POISONED})
        message(e)


@pytest.mark.parametrize("name", ["anp", "rnp", "mnp", "linf"])
def test_held_images_are_of_the_kind_of_the_clean_ones(name):
    f = getattr(defenses, name)
    with pytest.raises(ValueError, match="held must be images like clean") as e:
        f(**started(CALLS[f][0]) | {"held": random_images(6, K, 9)})
    message(e)
