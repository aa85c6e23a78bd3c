"""What a row tells beside scores: how sharp a network is, on its way and at the end,
and CLP at every threshold."""

from __future__ import annotations

import torch
from torch import nn

from bdcourse import metrics, require
from bdcourse.analysis import curvature, landscape
from bdcourse.attacks import Attack
from bdcourse.data import Images, Splits
from bdcourse.defenses import CLP_US, clp_sweep
from bdcourse.examples import require_clean
from bdcourse.surgery import without


def sharpness(model: nn.Module, images: Images, seed: int = 0) -> dict[str, float]:
    """How sharp the loss of a model is on some images; see `analysis.curvature`.

    Returns:
        `fisher`: trace of the true Fisher, `relative`: the same by relative changes of
        the weights, `empirical`: trace at the labels of the data, `lambda_max`: top
        eigenvalue of the Hessian, left out where the likelihood has a kink, as that of
        boxes; each of the last three with `..._error` beside it
        where chance enters; and `loss` in nats.
    """
    require.module(model)
    require_clean(images, "images", least=1)
    require.whole("seed", seed)
    g = torch.Generator().manual_seed(seed)
    found: dict[str, float] = {}
    for name, measure in (
        ("fisher", curvature.fisher_trace),
        ("relative", curvature.relative_trace),
    ):
        t = measure(model, images, draws=10, generator=g, likelihood=images.task.likelihood)
        found |= {name: t.value, f"{name}_error": t.error}
    found["empirical"] = curvature.fisher_trace(
        model, images, fisher="empirical", generator=g, likelihood=images.task.likelihood
    ).value
    return found | _top(model, images, g)


def _top(model: nn.Module, images: Images, g: torch.Generator, **options) -> dict[str, float]:
    """The top eigenvalue of the Hessian, where the likelihood has second derivatives."""
    likelihood = images.task.likelihood
    if getattr(likelihood, "density", "") == "laplace":
        return {}
    top, _ = landscape.hessian_top(model, images, generator=g, likelihood=likelihood, **options)
    return {"lambda_max": float(top[0])}


def unseen(parts: Splits) -> Images:
    """The images on which sharpness is judged: no defense has trained on them."""
    if not isinstance(parts, Splits):
        raise ValueError(f"parts must be what data.splits returns, not {require.kind(parts)}.")
    return parts.test[-200:]


def sharpness_of(model: nn.Module, images: Images) -> dict[str, float]:
    """One epoch of a training: trace of the Fisher, and top eigenvalue."""
    require.module(model)
    require_clean(images, "images", least=1)
    g = torch.Generator().manual_seed(0)
    t = curvature.fisher_trace(
        model, images, draws=4, generator=g, likelihood=images.task.likelihood
    )
    return {"fisher": t.value} | _top(model, images, g, tolerance=0.01)


def watch(
    model: nn.Module, own: Images, other: Images, test: Images, attack: Attack | None
) -> dict[str, float | None]:
    """One point of a defense's course: scores on half of the test, and the Fisher."""
    require.module(model)
    for name, images in (("own", own), ("other", other), ("test", test)):
        require_clean(images, name, least=1)
    s = metrics.evaluate(model, test[: len(test) // 2], attack)
    found = {"acc": s.acc, "asr": s.asr, "ra": s.ra}
    for name, images in (("own", own), ("other", other)):
        g = torch.Generator().manual_seed(0)
        likelihood = images.task.likelihood
        t = curvature.fisher_trace(model, images, draws=4, generator=g, likelihood=likelihood)
        found[f"fisher_{name}"] = t.value
    return found


def sweep_curve(model, test: Images, attack: Attack | None) -> list[dict]:
    """Scores at every u of :data:`CLP_US`; a set of channels seen before is not measured
    again."""
    require.module(model)
    require_clean(test, "test", least=1)
    scores: metrics.Scores
    curve, last = [], -1
    for u, channels in clp_sweep(model, CLP_US):
        count = sum(map(len, channels.values()))
        if count != last:  # a smaller u prunes a superset: same count, same channels
            scores = metrics.evaluate(without(model, channels), test, attack)
            last = count
        point: dict[str, float | None] = {"u": u, "pruned": count, "acc": scores.acc}
        if attack is not None:
            point |= {"asr": scores.asr, "ra": scores.ra}
        curve.append(point)
    return curve
