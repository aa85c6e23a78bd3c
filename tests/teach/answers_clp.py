"""Right and wrong answers to the exercises of lesson 05, for test_check.py."""

import copy
import math

import torch
from torch import nn

from bdcourse import metrics, surgery
from bdcourse.defenses import clp


def sigma(weight):
    return torch.linalg.matrix_norm(weight.flatten(2), ord=2)


def sigma_by_gram(weight):
    m = weight.double().flatten(2)
    return torch.linalg.eigvalsh(m @ m.transpose(1, 2))[:, -1].sqrt()


def score(stretch, gamma, var, eps):
    return stretch * gamma.abs() / (var + eps).sqrt()


def outliers(scores, u):
    return scores > scores.mean() + u * scores.std()


def largest_z(n, m):
    return math.sqrt((n - m) * (n - 1) / (n * m))


def largest_z_by_trying(n, m):
    s = torch.zeros(n, dtype=torch.float64)
    s[:m] = 1
    return ((1 - s.mean()) / s.std()).item()


def clp_plain(model, u):
    off, conv = {}, None
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            conv = layer
        elif isinstance(layer, nn.BatchNorm2d):
            size = sigma(conv.weight)
            s = score(size, layer.weight, layer.running_var, layer.eps).detach()
            off[name] = outliers(s, u).nonzero().flatten()
            with torch.no_grad():
                layer.weight[off[name]] = 0
                layer.bias[off[name]] = 0
    return off


def clp_by_flow(model, u):
    scores = {}
    for pair in surgery.pair_by_flow(model).pairs:
        conv, bn = model.get_submodule(pair.conv), model.get_submodule(pair.bn)
        tops = torch.stack([torch.linalg.svdvals(k.flatten(1))[0] for k in conv.weight])
        scores[pair.bn] = (tops * (bn.weight / (bn.running_var + bn.eps) ** 0.5).abs()).detach()
    off = {n: torch.where((s - s.mean()) / s.std() > u)[0] for n, s in scores.items()}
    for name, which in off.items():
        bn = model.get_submodule(name)
        bn.weight.data[which] = bn.bias.data[which] = 0
    return off


def clp_with(**wrong):
    """CLP with a switch for everything that can go wrong."""

    def answer(model, u):
        model = copy.deepcopy(model) if wrong.get("copied") else model
        pairs, off, scores = [], {}, {}
        convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d):
                last = layer
            elif isinstance(layer, nn.BatchNorm2d):
                pairs.append((last, name, layer))
        for i, (conv, name, bn) in enumerate(pairs):
            conv = convs[i] if wrong.get("zipped") else conv
            gamma = bn.weight if wrong.get("signed") else bn.weight.abs()
            eps = 0 if wrong.get("no_eps") else bn.eps
            factor = 1 if wrong.get("bare") else gamma / (bn.running_var + eps).sqrt()
            size = conv.weight.flatten(1).norm(dim=1) if wrong.get("flat") else sigma(conv.weight)
            scores[name] = (size * factor).detach()
        every = torch.cat(list(scores.values()))
        for name, s in scores.items():
            of = every if wrong.get("joint") else s
            z = (s - of.mean()) / of.std(unbiased=not wrong.get("biased"))
            z = z.abs() if wrong.get("sides") else z
            off[name] = (z > wrong.get("u", u)).nonzero().flatten()
            bn = model.get_submodule(name)
            with torch.no_grad():
                bn.weight[off[name]] = 0
                if not wrong.get("scale_only"):
                    bn.bias[off[name]] = 0
                if wrong.get("statistics"):
                    bn.running_mean[off[name]] = 0
                if wrong.get("filters"):
                    pairs[list(scores).index(name)][0].weight[off[name]] = 0
        if wrong.get("asleep"):
            model.eval()
        return {n: c for n, c in off.items() if len(c)} if wrong.get("short") else off

    return answer


def with_gradients(model, u):
    for name, which in clp_plain(copy.deepcopy(model), u).items():
        model.get_submodule(name).weight[which] = 0


def masks(model, u):
    return {n: torch.ones(3, dtype=torch.bool) for n in clp_plain(model, u)}


def careful_u(model, x, y, us, max_drop):
    def accuracy(net):
        return (metrics.predict(net, x) == y).float().mean().item()

    least, best = accuracy(model) - max_drop - 1e-6, math.inf
    for u in sorted(us, reverse=True):
        trial = copy.deepcopy(model)
        clp_plain(trial, u)
        if accuracy(trial) < least:
            break
        best = u
    return best


def careful_by_counting(model, x, y, us, max_drop):
    us = sorted(us)[::-1]
    nets = [model, *(clp(model, u).model for u in us)]
    right = [int((metrics.predict(net, x) == y).sum()) for net in nets]
    bad = [i for i, r in enumerate(right) if right[0] - r > max_drop * len(y) + 1e-6]
    first = bad[0] if bad else len(nets)
    return us[first - 2] if first > 1 else math.inf


def careless(**wrong):
    def answer(model, x, y, us, max_drop):
        def accuracy(net):
            if wrong.get("training"):
                return (copy.deepcopy(net)(x).argmax(1) == y).float().mean().item()
            return (metrics.predict(net, x) == y).float().mean().item()

        if wrong.get("blind"):
            y = metrics.predict(model, x)
        if wrong.get("asleep"):
            model.eval()
        before = 1.0 if wrong.get("perfect") else accuracy(model)
        best, trial = wrong.get("none", math.inf), copy.deepcopy(model)
        for u in us if wrong.get("as_given") else sorted(us, reverse=not wrong.get("upward")):
            if wrong.get("in_place"):
                trial = model
            elif not wrong.get("once"):
                trial = copy.deepcopy(model)
            clp_plain(trial, u)
            drop = before - accuracy(trial)
            before = accuracy(trial) if wrong.get("steps") else before
            slack = 0 if wrong.get("exact") else 1e-6
            if drop >= max_drop if wrong.get("strict") else drop > max_drop + slack:
                if wrong.get("on"):
                    continue
                return u if wrong.get("too_far") else best
            best = u
        return best

    return answer


RIGHT = {
    "sigma": [
        sigma,
        sigma_by_gram,
        lambda w: torch.stack([torch.linalg.svdvals(k.flatten(1))[0] for k in w]),
    ],
    "score": [score, lambda s, g, v, e: (s**2 * g**2 / (v + e)) ** 0.5],
    "outliers": [outliers, lambda s, u: (s - s.mean()) > u * s.var().sqrt()],
    "largest_z": [largest_z, largest_z_by_trying],
    "clp_plain": [clp_plain, clp_by_flow],
    "careful_u": [careful_u, careful_by_counting],
}

judged_in_training = careless(training=True)

WRONG = {
    "sigma": [
        (lambda w: w.flatten(1).norm(dim=1), "Frobenius"),
        (lambda w: torch.linalg.matrix_norm(w.flatten(1), ord=2), "shape"),
        (lambda w: torch.linalg.svdvals(w.flatten(1)), "of the whole layer"),
        (lambda w: torch.linalg.svdvals(w.flatten(2))[:, -1], "smallest"),
        (lambda w: torch.linalg.svdvals(w.flatten(2)).mean(1), "wrong"),
        (lambda w: sigma(w) ** 2, "the square of sigma"),
    ],
    "score": [
        (lambda s, g, v, e: s * g / (v + e).sqrt(), "negative"),
        (lambda s, g, v, e: s * g.abs() / (v + e), "standard deviation"),
        (lambda s, g, v, e: s * g.abs() / v, "standard deviation"),
        (lambda s, g, v, e: s * g.abs() / v.sqrt(), "leaves out eps"),
        (lambda s, g, v, e: g.abs() * v.rsqrt() * s, "leaves out eps"),
        (lambda s, g, v, e: s * g.abs() / (v.sqrt() + e), "adds eps to the root"),
    ],
    "outliers": [
        (lambda s, u: (s - s.mean()).abs() > u * s.std() / 1, "below the mean"),
        (lambda s, u: s > s.mean() + u * s.std(unbiased=False), "n - 1"),
        (lambda s, u: s >= s.mean() + u * s.std(), "equals"),
        (lambda s, u: (s - s.mean()) / s.std() >= u, "equals"),
        (lambda s, u: (s > s.mean() + u * s.std()).float(), "true and false"),
        (lambda s, u: s > u * s.std(), "leaves out the mean"),
        (lambda s, u: s > s.mean() + 3 * s.std(), "whatever u is"),
        (lambda s, u: s > s.mean() + u, "adds u itself"),
        (lambda s, u: s > s.mean() + u * s.var(), "by the variance"),
    ],
    "largest_z": [
        (lambda n, m: math.sqrt((n - m) / m), "n below the root"),
        (lambda n, m: (n - 1) / math.sqrt(n), "one outlier"),
        (lambda n, m: math.sqrt(n * (n - 1) / (m * (n - m))), "mean is no longer zero"),
        (lambda n, m: math.sqrt(n / m), "mean is no longer zero|lie at"),
        (lambda n, m: math.sqrt((n - 1) / m), "of the m alone"),
    ],
    "clp_plain": [
        (clp_with(zipped=True), "does not feed it"),
        (clp_with(flat=True), "Frobenius"),
        (clp_with(bare=True), "kernels alone"),
        (clp_with(signed=True), "negative gamma"),
        (clp_with(no_eps=True), "leaves out eps"),
        (clp_with(biased=True), "n - 1"),
        (clp_with(joint=True), "one threshold"),
        (clp_with(sides=True), "far below"),
        (clp_with(u=3.0), "whatever u is"),
        (lambda m, u: clp_plain(m, u / 2), "switches off|does not feed"),
        (clp_with(scale_only=True), "leaves a constant"),
        (clp_with(copied=True), "still on"),
        (clp_with(statistics=True), "running statistics"),
        (clp_with(filters=True), "of a convolution"),
        (clp_with(asleep=True), "another mode"),
        (clp_with(short=True), "where the BatchNorms are"),
        (with_gradients, "no_grad"),
        (masks, "int64"),
    ],
    "careful_u": [
        (careless(on=True), "stop there"),
        (careless(in_place=True), "on a copy"),
        (careless(once=True), "fresh one"),
        (careless(strict=True), "exactly"),
        (careless(exact=True), "rounding"),
        (careless(steps=True), "step before"),
        (judged_in_training, "training mode"),
        (careless(perfect=True), "before any cut"),
        (careless(none=0.0), "infinity"),
        (careless(as_given=True), "order in which"),
        (careless(upward=True), "from the smallest u up"),
        (careless(asleep=True), "another mode"),
        (careless(too_far=True), "gives the first u"),
        (careless(blind=True), "counts answers that change"),
    ],
}
