"""Every defense on every kind of network: it works, or it says in one sentence why not.

What works leaves the network and torch's random state as they were, and hands back a
network in eval mode. What must work, and what must be refused with which words, stands
in the tables below.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import networks
from bdcourse import activations, defenses, metrics
from bdcourse.attacks import BadNets
from bdcourse.defenses import Estimate, Inverted, Purified
from bdcourse.models import fingerprint
from bdcourse.surgery import accepted_shape, pair_by_flow
from helpers import frozen, gen, message, random_images, same_state
from sweep import refusal

K = networks.K
GRAY = "gray and untraceable"


def images(kind="plain", n=12, seed=0):
    return random_images(n, K, 16, 1 if kind == GRAY else 3, seed)


def guesses(c=3):
    masks = torch.zeros(K, 1, 16, 16)
    masks[:, :, -3:, -3:] = 0.9
    masks[1] /= 30
    return Inverted(masks, torch.ones(K, c, 16, 16), torch.arange(K), torch.ones(K))


def guess(images):
    return guesses(images.shape[0]).trigger(1)


def first_conv(model):
    """The first convolution's first channel, for the controls."""
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    names = [n for n, m in modules if isinstance(m, nn.Conv2d)]
    return {n: torch.tensor([0]) for n in names[:1]}


RUNS = {
    "linf": lambda m, c, h, g: defenses.linf(m, c, h, guess(c)),
    "linf_oracle": lambda m, c, h, g: defenses.linf_oracle(m, c, h, BadNets()),
    "clp": lambda m, c, h, g: defenses.clp(m, 1.0),
    "fmp": lambda m, c, h, g: defenses.fmp(m, c, least=1, n=2, epochs=0.5, batch=6, generator=g),
    "mnp": lambda m, c, h, g: defenses.mnp(m, c, steps=2, mask_lr=1.0, epochs=1, generator=g),
    "fip": lambda m, c, h, g: defenses.fip(m, c, eta_f=1e-3, steps=2, generator=g),
    "fast_fip": lambda m, c, h, g: defenses.fast_fip(m, c, eta_f=1e-3, steps=2, generator=g),
    "anp": lambda m, c, h, g: defenses.anp(m, c, h, steps=2, generator=g),
    "rnp": lambda m, c, h, g: defenses.rnp(m, c, h, steps=2, epochs=1, generator=g),
    "fine_pruning": lambda m, c, h, g: defenses.fine_pruning(
        m, c, h, share=0.5, max_drop=1.0, epochs=1, batch=6, generator=g
    ),
    "ft_sam": lambda m, c, h, g: defenses.ft_sam(m, c, epochs=1, batch=6, generator=g),
    "nad": lambda m, c, h, g: defenses.nad(
        m, c, betas=[1.0], teacher_epochs=1, epochs=1, batch=6, generator=g
    ),
    "i_bau": lambda m, c, h, g: defenses.i_bau(m, c, rounds=1, passes=1, steps=1, generator=g),
    "nc_unlearning": lambda m, c, h, g: defenses.nc_unlearning(
        m, c, guesses(c.shape[0]), label=1, epochs=1, batch=6, generator=g
    ),
    "finetune": lambda m, c, h, g: defenses.finetune(m, c, epochs=1, batch=6, generator=g),
    "prune_random": lambda m, c, h, g: defenses.prune_random(m, first_conv(m), g),
    "fmp_random": lambda m, c, h, g: defenses.fmp_random(
        m, c, first_conv(m), epochs=0.5, batch=6, generator=g
    ),
    "fip_released": lambda m, c, h, g: defenses.fip_released(m, c, steps=2, probes=1, generator=g),
    "invert_trigger": lambda m, c, h, g: defenses.invert_trigger(
        m, c, steps=2, every=1, generator=g
    ),
}
TRAINING = {"finetune", "ft_sam", "nc_unlearning", "i_bau", "fip", "fip_released"}
MASKS = {"anp", "rnp", "mnp"}
ALL = set(RUNS)
DATA = ALL - {"clp", "prune_random"}  # what is shown images

# Kind of network -> what must work on it, whatever happens to the rest.
WORK = {
    "plain": ALL,
    "view": ALL,
    "relu and pool used twice": ALL,
    "shared norm": ALL - {"fine_pruning"},
    "one norm of two names": ALL - {"fine_pruning"},
    "shared convolution": ALL - {"fmp", "fmp_random"},
    "tuple": {"clp", "prune_random"},
    "dict": {"clp", "prune_random"},
    "untraceable": ALL - {"fine_pruning"},
    GRAY: ALL - {"fine_pruning"},
    "wide": ALL,
    "branches": ALL - {"fine_pruning"},
    "profiled": ALL,
    "unused parameter": ALL,
    "log-softmax": ALL,
    "dropout": ALL,
    "weight norm": ALL - {"fmp", "fmp_random", "prune_random", "fast_fip"},
    "spectral norm": ALL - {"fmp", "fmp_random", "prune_random", "fast_fip"},
    "no scale": ALL - MASKS - {"fmp", "fmp_random", "fine_pruning"},
    "one without scale": ALL - {"fmp", "fmp_random"},
    "no norm": ALL - MASKS,
    "group norm": ALL - MASKS - {"fine_pruning"},
    "no statistics": {"finetune", "ft_sam", "nad", "clp", "prune_random"},
    "frozen": MASKS | {"clp", "linf", "prune_random", "invert_trigger"},
    "ten classes": {"clp", "prune_random"},
    "linear": {"finetune", "ft_sam", "fip", "i_bau", "clp", "invert_trigger"},
}
# Kind of network -> (who must refuse it, with which words).
REFUSE = {
    "tuple": (DATA, "answers with a tuple, not with a tensor; wrap it"),
    "dict": (DATA, "answers with a dict, not with a tensor; wrap it"),
    "softmax": (DATA - {"linf", "linf_oracle"}, "take off its softmax"),
    "weight norm, older": (ALL, "remove_weight_norm"),
    "spectral norm, older": (ALL, "remove_spectral_norm"),
    "weight norm": ({"fmp", "fmp_random", "prune_random"}, "remove_parametrizations"),
    "spectral norm": ({"fmp", "prune_random", "fast_fip"}, "remove_parametrizations"),
    "nan": (ALL, "3.weight of model is not finite"),
    "infinity": (ALL, "8.bias of model is not finite"),
    "nan mean": (ALL, "statistics of 1 are not finite"),
    "negative variance": (ALL, "variance of 4 is negative"),
    "overflow": (DATA, "finite"),
    "no scale": (MASKS, "no BatchNorm with a scale"),
    "no norm": (MASKS, "no BatchNorm with a scale"),
    "one without scale": ({"fmp", "fmp_random"}, "no scale"),
    "no statistics": (MASKS | {"fmp", "i_bau", "linf"}, "no running statistics"),
    "frozen": (TRAINING, "requires grad"),
    "double": (
        DATA - {"invert_trigger", "fip", "fast_fip", "fip_released"},
        "call .float()",
    ),
    "one logit": (DATA, "tells 1 classes apart, but the images have 3"),
    "ten classes": (DATA, "tells 10 classes apart, but the images have 3"),
    "no shape yet": (ALL, "has no shape yet"),
    "no weights": (ALL, "has no weights"),
    "shared convolution": ({"fmp"}, "runs 2 times"),
    "shared norm": ({"fine_pruning"}, "bn1 runs 2 times"),
    "group norm": ({"fine_pruning"}, "needs a convolutional layer"),
    "branches": ({"fine_pruning"}, "here is cat"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", networks.NETWORKS)
def test_every_defense_works_or_says_why_not(kind):
    clean, held = images(kind), images(kind, 6, 1)
    for name, run in RUNS.items():
        model = networks.build(kind).train()
        before = None
        if "no shape" not in kind:
            before = frozen(model)
        modes = {n: m.training for n, m in model.named_modules()}
        chance, found = torch.get_rng_state(), []

        def call(run=run, model=model, found=found):
            found.append(run(model, clean, held, gen(1)))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text = refusal(call)
        say = f"{name} on {kind}: {text}"
        assert torch.equal(torch.get_rng_state(), chance), say
        assert {n: m.training for n, m in model.named_modules()} == modes, say
        if before is not None:
            assert all(
                torch.equal(v, before[n]) or not bool(v.isfinite().all())
                for n, v in model.state_dict().items()
            ), say
        who, words = REFUSE.get(kind, ((), ""))
        if name in who:
            assert text is not None and words in text, say
        if name in WORK.get(kind, ()):
            assert text is None, say
        if found and isinstance(found[0], Purified):
            p = found[0]
            assert not any(m.training for m in p.model.modules()), say
            assert ("own_acc" in p.log) == (name in DATA), say


def test_the_tables_name_what_exists():
    listed = {"detect"} | set(RUNS)  # detect looks at guesses, not at a network
    assert listed >= set(defenses.DEFENSES) | {"linf_oracle", "invert_trigger"}
    assert set(WORK) | set(REFUSE) <= set(networks.NETWORKS)
    for kind, (who, _) in REFUSE.items():
        assert not who & WORK.get(kind, set()), kind


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(RUNS) - {"clp", "prune_random"}))
def test_chance_in_the_network_comes_from_the_generator(name):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            p = RUNS[name](networks.build("dropout"), images(), images("", 6), gen(5))
        found.append(fingerprint(p.model) if isinstance(p, Purified) else p.masks.tolist())
    assert found[0] == found[1]


def test_dropout_moves_with_the_generator_alone():
    model, clean = networks.build("dropout"), images()
    a, b = (
        defenses.finetune(model, clean, epochs=1, batch=12, generator=gen(s)) for s in (1, 2)
    )  # one batch of all images: nothing but dropout is random
    assert fingerprint(a.model) != fingerprint(b.model)


# ------------------------------------------------------------ numbers on single kinds


def test_a_module_that_runs_twice_is_no_layer():
    model, clean = networks.build("relu and pool used twice"), images()
    counts = activations.runs(model, clean.x)
    assert counts["relu"] == counts["pool"] == 2 and counts["bn2"] == 1
    assert activations.runs(model, clean.x, ["fc"]) == {"fc": 1}
    for call in (
        lambda: defenses.linf(model, clean, clean, guess(clean), layer="relu"),
        lambda: defenses.nad(model, clean, layers=["pool"], betas=[1], generator=gen()),
    ):
        with pytest.raises(ValueError, match="runs 2 times in a pass") as e:
            call()
        message(e)
    assert defenses.linf(model, clean, clean, guess(clean)).log["layer"] == "bn2"
    shared = networks.build("shared norm")
    with pytest.raises(ValueError, match="'bn1' runs 2 times") as e:
        defenses.linf(shared, clean, clean, guess(clean), layer="bn1")
    message(e)


def test_a_norm_without_scale_gets_a_gate():
    model, clean = networks.build("no scale"), images()
    options = {"layer": "4", "select": "deviation", "u": 0.0}
    p = defenses.linf(model, clean, None, guess(clean), **options)
    assert set(p.pruned) == {"4.gate"} and p.count > 0
    maps = activations.outputs(p.model, clean.x, ["4"])["4"]
    assert (maps[:, p.pruned["4.gate"]] == 0).all()


def test_clp_scores_the_weights_that_a_network_uses():
    for kind in ("weight norm", "spectral norm"):
        model, plain = networks.build(kind), networks.build(kind)
        nn.utils.parametrize.remove_parametrizations(plain[0], "weight")
        a, b = (defenses.clp(m, 1.0).log["scores"] for m in (model, plain))
        assert a.keys() == b.keys() == {"1", "4"}
        for name in a:
            torch.testing.assert_close(a[name], b[name])


def test_clp_finds_a_shape_or_takes_one():
    gray = networks.build(GRAY)
    assert accepted_shape(gray) == (1, 16, 16)
    want = {"bn1": "conv1", "bn2": "conv2"}
    for shape in (None, (1, 16, 16)):
        assert {p.bn: p.conv for p in pair_by_flow(gray, shape).pairs} == want
        assert set(defenses.clp(gray, shape=shape).log["scores"]) == {"bn1", "bn2"}
    with pytest.raises(ValueError, match="does not accept inputs of shape") as e:
        defenses.clp(gray, shape=(3, 16, 16))
    message(e)


def test_clp_names_what_it_leaves_out():
    with pytest.warns(UserWarning, match="CLP leaves out 1: without a scale"):
        p = defenses.clp(networks.build("one without scale"), 1.0)
    assert set(p.log["scores"]) == {"4"}


def test_own_accuracy_shows_a_destroyed_network():
    model, clean = networks.build("plain"), images(n=30)
    clean.y.copy_(metrics.logits(model, clean.x).argmax(1))  # a perfect one
    p = defenses.finetune(model, clean, lr=1e-9, epochs=1, generator=gen())
    assert p.log["own_acc"] == [1.0, 1.0]
    other = copy.deepcopy(clean)
    other.y.copy_((clean.y + 1) % K)
    p = defenses.ft_sam(model, other, lr=1e-9, rho=0.0, epochs=1, generator=gen())
    assert p.log["own_acc"] == [0.0, 0.0]


@pytest.mark.parametrize("name", sorted(TRAINING | {"nad", "fmp", "fast_fip", "mnp"}))
def test_what_diverges_is_no_result(name, monkeypatch):
    """At any learning rate there is a sentence, or a network of finite numbers."""
    model, clean = networks.build("plain"), images()
    options = {"lr": 1e30, "generator": gen()}
    options |= {
        "fip": {"steps": 5},
        "fast_fip": {"steps": 5},
        "fip_released": {"steps": 6},
        "i_bau": {"rounds": 2, "lr": 1e30},
        "fmp": {"least": 1, "n": 2},
        "nad": {"betas": [1.0]},
        "mnp": {"mask_lr": 1e30, "lr": 1e30, "epochs": 2},
        "nc_unlearning": {"label": 1},
    }.get(name, {})
    if name in ("finetune", "ft_sam", "nad", "nc_unlearning"):
        options["weight_decay"] = 0.0  # with any, such an lr is refused at the door
    more = (guesses(),) if name == "nc_unlearning" else ()

    def call():
        p = getattr(defenses, name)(model, clean, *more, **options)
        assert all(bool(w.isfinite().all()) for w in p.model.parameters())
        assert bool(metrics.logits(p.model, clean.x).isfinite().all())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = refusal(call)
    assert any(word in str(text) for word in ("finite", "bounds", "diverged")), text
    assert same_state(model, frozen(networks.build("plain")))


def test_a_result_is_in_eval_mode_and_finite():
    model = networks.build("plain").train()
    assert not Purified(model).model.training
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(RuntimeError, match="0.weight of the repaired network") as e:
        Purified(model)
    message(e)


def test_a_guess_of_other_images_is_refused():
    model, clean = networks.build("plain"), images()
    small = Estimate(1, torch.ones(1, 8, 8), torch.ones(3, 8, 8))
    far = Estimate(7, torch.ones(1, 16, 16), torch.ones(3, 16, 16))
    for wrong in (small, far):
        with pytest.raises(ValueError, match="belongs to other images") as e:
            defenses.linf(model, clean, clean, wrong)
        message(e)
