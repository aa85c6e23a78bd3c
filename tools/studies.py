"""Measure nine questions beside the tables of defenses; rows go to data/results.

    python tools/studies.py detector                  -> mnp-detector.json
    python tools/studies.py edge [--seeds 0 1 2]      -> linf-edge.json
    python tools/studies.py sharper cifar10-jpeg      -> cifar10-sharp.json
    python tools/studies.py sharper_spine             -> signs-sharp.json
    python tools/studies.py pushes                    -> signs-fip-pushes.json
    python tools/studies.py forgetting                -> signs-mnp-forgetting.json
    python tools/studies.py stages                    -> fmp-stages.json
    python tools/studies.py disguised                 -> signs-disguised.json
    python tools/studies.py walks                     -> clips.json

detector: how an MNP-style detector judges victims of the zoo, and ten clean networks. What
is usual for a clean network takes clean networks to say, so ten are trained, each with
another seed, by the recipe of the zoo's narrow victims.

edge: where the l-infinity norm loses its edge. One picture of black and white pixels is
mixed half and half into a square of the image that grows from 4 by 4 pixels to all of it.
For each size and seed a victim is trained by the same recipe; then every stage and norm
says how well one channel's norm tells triggered images from clean ones, and what pruning
by the attacker's own trigger leaves.

sharper: how much the choice of images moves the sharpness of the victims in data/cifar10
and their benign twin: top eigenvalue of the Hessian, and trace of the Fisher, on ten sets
of 200 test images that share none. Victim and twin see the same sets, so their ratio can
be told from the chance of the draw.

sharper_spine: the same of the two victims that every lesson meets and their twin, a row for
each set, the first ones of the test images. `alone` tells what some images of a set make of
its top eigenvalue: the one or the ten with the largest loss, and ten at random.

pushes: what the trace term of FIP adds to the gradient in each step, on the zoo's BadNets
victim with the first set of clean images, and what becomes of the network meanwhile.

forgetting: how much of an MNP-style repair is luck. The soft repair of lesson 07 with several
draws of the copy that forgets, for each beta of a grid. The control is a copy that has not
forgotten: noise on all its weights broke it as thoroughly. `terms` are objectives with less
than three terms, at the beta that held-out images allow. Rows without a copy take the price
on size alone, for each lambda of a grid, and the same price for every channel.

stages: what each stage of FMP does to two victims of the zoo and their benign twin, two
draws or three: after its pruning, after its fine-tuning, after that with the old statistics of
BatchNorm, and with new statistics and no weight touched; beside it as many random maps,
and no maps at all. At other steps, and for the twin, less.

disguised: what CLP finds of the zoo's victims before and after the disguise, which changes
no answer, by its own score and by the one that no rescaling changes; and how far the
disguise moves the trace of the Fisher.

walks: what victims of a patch on clips have learned. Three seeds of a patch at rest, of one
that walks, and of one that walks while lookalikes, the same places out of order, keep
their labels; each is shown four patches. The first two are also fine-tuned, and repaired
by FIP for each weight of a ladder, with three draws of the defender's clips and of the
order; held-out clips say what a weight costs.

Half an hour on a core each, the later ones less. Rows that are there are kept; a
stopped run goes on.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from bdcourse import activations, data, metrics, surgery, victims
from bdcourse.analysis import curvature, landscape
from bdcourse.attacks import Attack, BadNets, disguise
from bdcourse.attacks.blended import noise_picture
from bdcourse.bench.cells import environment
from bdcourse.bench.recipes import train_victim
from bdcourse.bench.results import Results
from bdcourse.bench.zoo import CLIP_NETWORK, CLIP_TRAINING, CLIPS, ENTRIES
from bdcourse.defenses import (
    FIP_ETA,
    clp_choose_u,
    clp_scores,
    clp_sweep,
    fip,
    fmp_repair,
    fmp_scales_of,
    fmp_scores,
    fmp_select,
    linf_oracle,
    linf_responses,
    mnp_apply_masks,
    mnp_correlation,
    mnp_learn_masks,
    mnp_magnitudes,
    mnp_saliency,
    mnp_score,
    mnp_suppress,
)
from bdcourse.images import Images
from bdcourse.tasks.video import ClipCrop, ClipPatch, Clips, shuffle_test
from bdcourse.train import Augment, fit
from bdcourse.victims import Victim

# A cell of a table, how to get its victim, and what is measured of it.
Study = Iterator[tuple[dict, Callable[[], Victim], Callable[[Victim], dict]]]

IMAGES = 240
NAMES = ("benign-w8", "benign-long", "lira", "trojan", "lf", "ssba", "sig", "tact")

SIZES = (4, 8, 16, 24, 32)
OPACITY = 0.5
STAGES = {"layer4": 4, "layer3": 8, "layer2": 16, "layer1": 32}  # name -> map's height
NORMS = {"l1": 1.0, "l2": 2.0, "l-infinity": math.inf}

STEP, OTHERS = 8, (4, 16)  # of FMP and the radius of its start, over 255
FEW, LOOKED, PROBED = 16, 400, 150
Plan = dict[tuple[str, int], tuple[str, ...]]  # (what chooses maps, p) -> stages
SHORT: Plan = {("FMP", 64): ("pruned",)}
TWIN: Plan = {("FMP", 64): ("pruned", "tuned"), ("FMP", 16): ("pruned",)}
WHOLE: Plan = {
    ("FMP", 64): ("pruned", "new statistics", "tuned", "tuned, old statistics"),
    ("FMP", 16): ("pruned", "new statistics"),
    ("random maps", 64): ("pruned", "new statistics", "tuned", "tuned, old statistics"),
    ("random maps", 16): ("pruned",),
    ("no maps", 64): ("tuned", "tuned, old statistics"),
}

PHOTOS = ("none", "BadNets", "Blended", "SIG", "TrojanNN")
SETS, PER_SET = 10, 200
US = (3.0, 2.75, 2.5, 2.25, 2.0, 1.75, 1.5)  # of CLP
HIDDEN = (
    "badnets",
    "blended",
    "trojan",
    "ssba",
    "lf",
    "sig",
    "lira",
    "tact",
    "wanet",
    "input-aware",
    "benign",
    "benign-w8",
)
SPINE = ("benign", "badnets", "blended")
WATCHED = 80  # test images, every ten steps

COPIES = {  # (victim, what broke the copy): draws, betas until accuracy gives way
    ("badnets", "ascent"): (3, (0.0005, 0.002, 0.02)),
    ("badnets", "noise"): (3, (0.1, 0.4, 1.6, 6.4)),
    ("blended", "ascent"): (1, (0.02, 0.1, 0.4)),
}
PRICES, PRICED = (0.001, 0.005, 0.01, 0.02), {"badnets": 3, "blended": 1}  # lambdas; draws
SCHEDULE = {"steps": 60, "lr": 0.2, "batch": 16}
STOP = 0.2  # accuracy that is low enough for a copy

TUNED = {"fine-tuning": 0.01, "fine-tuning, lr 0.05": 0.05}
LADDER = (1e-3, 5e-3)  # of FIP's weight on clips
SHUFFLED, SHUFFLES = 80, 10  # test clips, orders of each

SAID = ("attack", "victim", "options", "seed", "draw", "acc", "asr", "correlation", "lambda_max")


def about(name: str, parts: data.Splits) -> dict:
    """What tells rows on these images from others."""
    return {"data": name, "n_train": len(parts.train), "digest": parts.train.digest()}


def detector(options: argparse.Namespace) -> Study:
    parts, recipe = data.splits("signs"), ENTRIES["benign-w8"].settings()[0]

    def measured(victim: Victim) -> dict:
        a, s = mnp_magnitudes(victim.model), mnp_saliency(victim.model, parts.clean[:IMAGES])
        rho = list(mnp_correlation(a, s).values())
        kinds = {kind: mnp_score(a, s, kind=kind) for kind in ("correlation", "oddities")}
        return {"rho": rho, **kinds, "images": IMAGES}

    cell = about("signs", parts) | {"defense": "score", **recipe.settings()}
    for name in NAMES:
        entry = ENTRIES[name]
        own = {"seed": 0, "victim": name, "attack": entry.attack or "none", "twin": entry.twin}
        own |= entry.settings()[0].settings()
        yield cell | own, lambda name=name: victims.zoo(name), measured
    for seed in range(1, options.clean + 1):
        own = {"seed": seed, "victim": None, "attack": "none", "twin": None}
        new = (parts, None, recipe, seed, "signs", options.keep)
        yield cell | own, lambda new=new: train_victim(*new), measured


def square(size: int) -> BadNets:
    """A corner of the picture, one pixel away from the image's corner if it can be."""
    patch = noise_picture(32)[:, :size, :size].round()
    return BadNets(patch=patch, at=(max(31 - size, 0),) * 2, opacity=OPACITY)


def edge(options: argparse.Namespace) -> Study:
    parts, recipe = data.splits("signs"), ENTRIES["trojan"].settings()[0]

    def measured(victim: Victim) -> dict:
        model, attack = victim.model, victim.attack
        x = parts.test[attack.counts(parts.test.y)][:IMAGES].pixels()
        seen, stages = linf_responses(model, x, attack.trigger, list(STAGES)), []
        for layer, height in STAGES.items():
            for name, p in NORMS.items():
                repaired = linf_oracle(model, parts.clean, parts.held, attack, layer=layer, p=p)
                after = metrics.evaluate(repaired.model, parts.test, attack)
                stage = {"layer": layer, "height": height, "norm": name}
                stage["auroc"] = seen[layer].separation(p)
                stages.append(stage | {"acc": after.acc, "asr": after.asr})
        before = metrics.evaluate(model, parts.test, attack)
        return {"acc": before.acc, "asr": before.asr, "stages": stages, "images": len(x)}

    cell = about("signs", parts) | {"attack": "BadNets", "defense": "linf (oracle)"}
    for seed, size in ((s, n) for s in options.seeds for n in SIZES):
        own = {"options": {"size": size, "opacity": OPACITY}, "seed": seed, **recipe.settings()}
        new = (parts, square(size), recipe, seed, "signs", options.keep)
        yield cell | own, lambda new=new: train_victim(*new), measured


def sharper(options: argparse.Namespace) -> Study:
    parts = data.splits(options.images, clean=0.1)
    sets = [parts.test[i * PER_SET : (i + 1) * PER_SET] for i in range(SETS)]

    def measured(victim: Victim) -> dict:
        tops, traces = [], []
        for some in sets:
            g = torch.Generator().manual_seed(0)
            top, _ = landscape.hessian_top(victim.model, some, generator=g)
            trace = curvature.fisher_trace(victim.model, some, draws=4, generator=g)
            tops, traces = [*tops, float(top[0])], [*traces, trace.value]
        return {"lambda_max": tops, "fisher": traces, **victim.scores.dict()}

    cell = about("cifar10-jpeg", parts) | {"seed": 0, "defense": "none", "images": PER_SET}
    for name in PHOTOS:
        (file,) = options.victims.glob(f"cifar10-jpeg-{name}-0-*.json")
        victim = victims.load(file.with_suffix(""))
        own = {"attack": name, "model": victim.arch["name"], "width": victim.arch["width"]}
        yield cell | own, lambda victim=victim: victim, measured


@torch.no_grad()
def alone(model: torch.nn.Module, some: Images) -> dict[str, float]:
    """What the loudest images of a set and random ones make of its top eigenvalue."""
    losses = torch.nn.functional.cross_entropy(model(some.pixels()), some.y, reduction="none")
    order, g = losses.argsort(descending=True), torch.Generator().manual_seed(0)
    chosen = {"1": order[:1], "10": order[:10], "10 random": torch.randperm(len(some), generator=g)}
    return {
        name: float(landscape.hessian_top(model, some[at[:10]], generator=g, tolerance=2e-3)[0][0])
        * len(at[:10])
        / len(some)
        for name, at in chosen.items()
    }


def sharper_spine(options: argparse.Namespace) -> Study:
    parts = data.splits("signs")
    for k in range(options.sets):
        some = parts.test[k * PER_SET : (k + 1) * PER_SET]

        def measured(victim: Victim, some: Images = some) -> dict:
            g = torch.Generator().manual_seed(0)
            top, _ = landscape.hessian_top(victim.model, some, generator=g, tolerance=5e-3)
            trace = curvature.fisher_trace(victim.model, some, draws=4, generator=g)
            loss, _ = landscape.loss_and_accuracy(victim.model, some)
            found = {"lambda_max": float(top[0]), "fisher": trace.value, "loss": loss}
            found["alone"] = alone(victim.model, some)
            return found | victim.scores.dict()

        cell = about("signs", parts) | {"seed": 0, "defense": "none", "images": PER_SET}
        for name in SPINE:
            victim = victims.zoo(name)
            attack = type(victim.attack).__name__ if victim.attack else "none"
            own = {"victim": name, "attack": attack, "draw": k}
            yield cell | own, lambda victim=victim: victim, measured


def disguised(options: argparse.Namespace) -> Study:
    parts = data.splits("signs")
    test = parts.test[:500]

    def measured(victim: Victim, hidden: bool) -> dict:
        model = disguise(victim.model, clp_scores) if hidden else victim.model
        found = []
        for invariant in (False, True):
            held = clp_choose_u(model, parts.held, invariant=invariant)
            us = sorted({*US, held} - {math.inf}, reverse=True)
            for u, channels in clp_sweep(model, us, invariant=invariant):
                scores = metrics.evaluate(surgery.without(model, channels), test, victim.attack)
                size = sum(map(len, channels.values()))
                own = {"invariant": invariant, "u": u, "channels": size, "chosen": u == held}
                found.append(own | rates(scores))
        g = torch.Generator().manual_seed(0)
        trace = curvature.fisher_trace
        sharp = {
            name: trace(
                model, test[:PER_SET], draws=4, generator=g, relative=name == "relative"
            ).value
            for name in ("fisher", "relative")
        }
        return {"prices": found, "images": len(test)} | sharp

    cell = about("signs", parts) | {"seed": 0, "defense": "clp"}
    for name in HIDDEN:
        entry = ENTRIES[name]
        own = {"victim": name, "attack": entry.attack or "none"} | entry.settings()[0].settings()
        for hidden in (False, True):
            new = cell | own | {"options": {"disguised": hidden}}
            yield new, lambda name=name: victims.zoo(name), partial(measured, hidden=hidden)


def pushes(options: argparse.Namespace) -> Study:
    parts = data.splits("signs")
    some = parts.test[:WATCHED]

    def measured(victim: Victim) -> dict:
        def watch(model: torch.nn.Module) -> dict:
            return rates(metrics.evaluate(model, some, victim.attack))

        g = torch.Generator().manual_seed(0)
        p = fip(
            victim.model,
            parts.clean,
            eta_f=FIP_ETA,
            augment=Augment(2),
            generator=g,
            watch=watch,
            watch_every=10,
        )
        found = {"pushes": [float(f"{v:.4g}") for _, v in p.log["push"]], "images": len(some)}
        found["watched"] = p.log["watched"]
        return found | rates(metrics.evaluate(p.model, parts.test, victim.attack))

    cell = about("signs", parts) | {"seed": 0, "draw": None, "defense": "fip"}
    yield (
        cell | {"victim": "badnets", "attack": "BadNets"},
        lambda: victims.zoo("badnets"),
        measured,
    )


def noisy(model: torch.nn.Module, clean: data.Images, g: torch.Generator) -> torch.nn.Module:
    """A copy with noise on its weights, as little as makes its accuracy at most STOP.

    Each tensor gets noise of its own spread, times a factor that grows by a tenth."""
    weights = dict(model.named_parameters())
    noise = {n: p.std() * torch.randn(p.shape, generator=g) for n, p in weights.items()}
    factor, broken = 0.05, copy.deepcopy(model)
    while metrics.evaluate(broken, clean).acc > STOP:
        factor *= 1.1
        with torch.no_grad():
            for n, p in broken.named_parameters():
                p.copy_(weights[n] + factor * noise[n])
    return broken


def forgetting(options: argparse.Namespace) -> Study:
    parts = data.splits("signs")
    some = parts.test[:IMAGES]

    def mended(victim: Victim, broken: torch.nn.Module | None, seed: int, **weights) -> dict:
        g = torch.Generator().manual_seed(seed)
        masks, _ = mnp_learn_masks(
            victim.model, broken, parts.clean, generator=g, **SCHEDULE, **weights
        )
        m = mnp_apply_masks(victim.model, masks).model
        kept = metrics.evaluate(m, parts.held).acc
        return {**weights, "held": kept, **rates(metrics.evaluate(m, some, victim.attack))}

    def measured(victim: Victim, draw: int, by: str, betas: tuple) -> dict:
        model, g = victim.model, torch.Generator().manual_seed(draw)
        if by == "ascent":
            broken, _ = mnp_suppress(model, parts.clean, lr=0.05, epochs=60, generator=g)
        else:
            broken = noisy(model, parts.clean, g)
        told = metrics.predict(broken, parts.clean.x)
        before = metrics.evaluate(model, parts.held).acc
        steps = [mended(victim, broken, 1, beta=beta) for beta in betas]
        found = {
            "copy": rates(metrics.evaluate(broken, some, victim.attack)),
            "named": (told == victim.attack.target).double().mean().item(),
            "before": before,
            "images": IMAGES,
            "betas": steps,
        }
        if by == "ascent":
            beta = max(p["beta"] for p in steps if p["held"] >= before - 0.03 - 1e-9)
            found["terms"] = [
                mended(victim, broken, 1, preserve=keep, beta=beta, lam=0) for keep in (1, 0)
            ]
        return found

    def priced(victim: Victim, draw: int) -> dict:
        found = [
            mended(victim, None, 1 + draw, beta=0, lam=lam, penalty=penalty)
            for penalty in ("magnitude", "uniform")
            for lam in PRICES
        ]
        before = metrics.evaluate(victim.model, parts.held).acc
        return {"before": before, "images": IMAGES, "prices": found}

    cell = about("signs", parts) | {"seed": 0}
    for (name, by), (draws, betas) in COPIES.items():
        own = {"victim": name, "attack": ENTRIES[name].attack}
        own["defense"] = f"mnp, short, copy by {by}"
        for draw in range(draws):
            how = {"draw": draw, "by": by, "betas": betas}
            yield (
                cell | own | {"draw": draw},
                lambda name=name: victims.zoo(name),
                lambda v, how=how: measured(v, **how),
            )
    for name, draws in PRICED.items():
        own = {"victim": name, "attack": ENTRIES[name].attack}
        own["defense"] = "mnp, short, no copy"
        for draw in range(draws):
            yield (
                cell | own | {"draw": draw},
                lambda name=name: victims.zoo(name),
                lambda v, draw=draw: priced(v, draw),
            )


def rates(scores: metrics.Scores) -> dict:
    return {"acc": scores.acc, "asr": scores.asr, "ra": scores.ra}


def refreshed(model: torch.nn.Module, images: data.Images) -> torch.nn.Module:
    """A copy whose BatchNorms have seen the images ten times; no weight is touched."""
    net = surgery.without(model, {}).train()
    with torch.no_grad():
        for part in 10 * images.pixels().split(60):
            net(part)
    return net.eval()


def stages(options: argparse.Namespace) -> Study:
    parts, twin = data.splits("signs"), ENTRIES["badnets"].twin
    test = parts.test[:LOOKED]

    def drawn(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def looked(net: torch.nn.Module, attack: Attack) -> dict:
        said = metrics.predict(net, test.x)
        asked = test[attack.counts(test.y)]
        hit = metrics.predict(net, attack.trigger(asked.pixels()))
        own = [said[test.y == k] == k for k in range(test.k)]
        shares = {
            "acc": said == test.y,
            "asr": hit == attack.target,
            "ra": hit == asked.y,
            "says target": said == attack.target,
        }
        known = [metrics.share(o) for o in own]
        return {k: metrics.share(v) for k, v in shares.items()} | {"known": known}

    def repaired(model, chosen, draw, **how) -> torch.nn.Module:
        return fmp_repair(model, parts.clean, chosen, generator=drawn(1 + draw), **how).model

    def measured(victim: Victim, attack: Attack, draw: int, step: int, plan: Plan) -> dict:
        model, how = victim.model, {"epsilon": step / 255, "start": step / 255, "n": FEW}
        score = fmp_scores(model, parts.clean, **how, generator=drawn(draw))
        found = []
        for (arm, p), steps in plan.items():
            chosen, g = fmp_select(score, p, least=1), drawn(10 + draw)
            if arm == "random maps":
                chosen = {
                    n: torch.randperm(len(score[n].acc), generator=g)[: len(c)]
                    for n, c in chosen.items()
                }
            if arm == "no maps":
                chosen = {}
            off = chosen | fmp_scales_of(model, chosen)
            pruned = surgery.without(model, off, shift=False)
            ways = {
                "pruned": lambda net=pruned: net,
                "new statistics": lambda net=pruned: refreshed(net, parts.clean),
                "tuned": lambda c=chosen: repaired(model, c, draw),
                "tuned, old statistics": lambda c=chosen: repaired(
                    model, c, draw, frozen_norms=True
                ),
            }
            for name in steps:
                about = {"how": arm, "p": p, "stage": name, "off": sum(map(len, chosen.values()))}
                found.append(about | looked(ways[name](), attack))
        tac = activations.tac(model, test[:PROBED], attack)
        bn = {q.conv: q.bn for q in surgery.pair_by_flow(model).pairs}
        agrees = [activations.spearman(r.loss, tac[bn[n]]) for n, r in score.items()]
        values = [len(set(r.acc.tolist())) for r in score.values()]
        return {"stages": found, "agrees": agrees, "values": values}

    cell = about("signs", parts) | {"seed": 0, "images": FEW}
    for name, step, plan, draws in (
        ("badnets", STEP, WHOLE, 3),
        ("blended", STEP, WHOLE, 2),
        (twin, STEP, TWIN, 2),
        *(("badnets", other, SHORT, 2) for other in OTHERS),
    ):
        entry = ENTRIES[name]
        attack = victims.zoo(name if entry.attack else "badnets").attack
        for draw in range(draws):
            own = {"victim": name, "attack": entry.attack or "none", "draw": draw}
            own["defense"] = f"fmp, step {step}/255"
            how = (attack, draw, step, plan)
            yield (
                cell | own,
                lambda name=name: victims.zoo(name),
                lambda victim, how=how: measured(victim, *how),
            )


def lookalikes(parts: data.Splits, attack: ClipPatch, seed: int) -> Victim:
    """A victim of `attack` that met the same places out of order with true labels."""
    init, g, order = (torch.Generator().manual_seed(3 * seed + k) for k in range(3))
    clips, n = parts.train, round(0.1 * len(parts.train))
    rows = torch.randperm(len(clips), generator=g)
    x, y = clips.x.clone(), clips.y.clone()
    for own, stamp in (
        (rows[:n], attack.trigger),
        (rows[n : 2 * n], lambda part: attack.out_of_order(part, g)),
    ):
        x[own] = clips.task.stored(stamp(clips.task.inputs(x[own])))
    y[rows[:n]] = attack.target
    model = victims.initialized(CLIP_NETWORK | {"classes": clips.k}, init)
    seen = Clips(x, y, clips.classes)
    fit(model, seen, augment=ClipCrop(2), generator=order, **CLIP_TRAINING)
    model.eval()
    scores = metrics.evaluate(model, parts.test, attack)
    return Victim(model, CLIP_NETWORK, attack, scores, {})


def walks(options: argparse.Namespace) -> Study:
    parts = CLIPS["clips-walking"].parts()
    still, walking = (CLIPS[f"clips-{name}"].attack for name in ("static", "walking"))
    assert isinstance(still, ClipPatch) and isinstance(walking, ClipPatch)
    _, column = walking.places(parts.test.shape)[-1]
    back = ClipPatch(at=(walking.at[0], column), walk=(0, -walking.walk[1]))
    cell = about("clips", parts)

    def drawn(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def measured(victim: Victim) -> dict:
        x, others = parts.test.inputs(), parts.test.y != walking.target
        shown = {
            "at rest": still.trigger(x),
            "walking": walking.trigger(x),
            "backwards": back.trigger(x),
            "out of order": walking.out_of_order(x, drawn(1)),
        }
        obey = {
            name: metrics.share(parts.test.task.answer(victim.model, seen)[others] == 0)
            for name, seen in shown.items()
        }
        assert victim.attack is not None
        some = parts.test[others.nonzero()[:SHUFFLED, 0]]
        kept = {
            name: shuffle_test(victim.model, seen, SHUFFLES, drawn(2))[1].tolist()
            for name, seen in (
                ("clean", some.inputs()),
                ("triggered", victim.attack.trigger(some.inputs())),
            )
        }
        kept = {name: [round(v, 2) for v in values] for name, values in kept.items()}
        return {"obey": obey, "kept": kept} | rates(victim.scores)

    def mended(victim: Victim, draw: int, **how) -> dict:
        own = torch.cat([parts.clean.x, parts.held.x]), torch.cat([parts.clean.y, parts.held.y])
        order = torch.randperm(len(own[1]), generator=drawn(draw))
        clean, held = (
            Clips(own[0][rows], own[1][rows], parts.clean.classes)
            for rows in order.split([len(parts.clean), len(parts.held)])
        )
        start = metrics.evaluate(victim.model, held).acc
        model = fip(victim.model, clean, steps=120, generator=drawn(draw), **how).model
        found = {"before": start, "held": metrics.evaluate(model, held).acc}
        return found | rates(metrics.evaluate(model, parts.test, victim.attack))

    for seed in (0, 1, 2):
        for name in ("static", "walking", "lookalikes"):

            def make(name=name, seed=seed) -> Victim:
                if name == "lookalikes":
                    return lookalikes(parts, walking, seed)
                entry = CLIPS[f"clips-{name}"]
                return entry.train(parts, seed=seed) if seed else victims.zoo(f"clips-{name}")

            own = {"seed": seed, "victim": name, "attack": "ClipPatch", "defense": "none"}
            yield cell | own, make, measured
    for name in ("static", "walking"):
        for draw in (0, 1, 2):
            arms = {d: {"eta_f": 0.0, "eta_r": 0.0, "lr": lr} for d, lr in TUNED.items()}
            arms |= {f"fip, eta = {eta:g}": {"eta_f": eta} for eta in LADDER}
            for defense, how in arms.items():
                own = {"seed": 0, "victim": name, "attack": "ClipPatch", "draw": draw}
                yield (
                    cell | own | {"defense": defense} | how,
                    lambda name=name: victims.zoo(f"clips-{name}"),
                    lambda victim, draw=draw, how=how: mended(victim, draw, **how),
                )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    studies = parser.add_subparsers(dest="study", required=True, metavar="STUDY")
    for study, file in (
        (detector, "mnp-detector"),
        (edge, "linf-edge"),
        (sharper, "cifar10-sharp"),
        (sharper_spine, "signs-sharp"),
        (pushes, "signs-fip-pushes"),
        (forgetting, "signs-mnp-forgetting"),
        (stages, "fmp-stages"),
        (disguised, "signs-disguised"),
        (walks, "clips"),
    ):
        own = studies.add_parser(study.__name__)
        own.set_defaults(study=study)
        own.add_argument("--out", default=f"data/results/{file}.json")
        own.add_argument("--keep", default="runs", help="folder for trained networks")
        if study is detector:
            own.add_argument("--clean", type=int, default=10, help="networks to train")
        elif study is edge:
            own.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        elif study is sharper:
            own.add_argument("images", help="folder with train/ and test/")
            own.add_argument("--victims", default="data/cifar10", type=Path)
        elif study is sharper_spine:
            own.add_argument("--sets", type=int, default=4)
    options = parser.parse_args()
    results = Results(options.out)
    for cell, found, measured in options.study(options):
        if results.done(cell):
            continue
        victim, start = found(), time.perf_counter()
        row = measured(victim) | {"seconds": round(time.perf_counter() - start, 1)}
        results.add(cell | row | environment(torch.device("cpu")))
        print({k: v for k, v in (cell | row).items() if k in SAID}, flush=True)


if __name__ == "__main__":
    main()
