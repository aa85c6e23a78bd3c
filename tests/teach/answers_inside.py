"""Right and wrong answers to the exercises of lesson 03, for test_check.py."""

import copy

import torch

from bdcourse import activations, metrics, surgery


def asked(said, y, target):
    return said[y != target], y[y != target]


def rates_by_lists(model, x, triggered, y, target):
    clean = [a == b for a, b in zip(metrics.predict(model, x).tolist(), y.tolist(), strict=True)]
    said = metrics.predict(model, triggered).tolist()
    rows = [(a, b) for a, b in zip(said, y.tolist(), strict=True) if b != target]
    hit, kept = sum(a == target for a, _ in rows), sum(a == b for a, b in rows)
    return torch.tensor([sum(clean) / len(clean), hit / len(rows), kept / len(rows)])


def rates(model, x, triggered, y, target):
    clean, said = metrics.predict(model, x), metrics.predict(model, triggered)
    some = y != target
    hits = (clean == y, said[some] == target, said[some] == y[some])
    return torch.stack([h.float().mean() for h in hits])


def rates_with(part):
    """One of the three replaced."""

    def answer(model, x, triggered, y, target):
        out = rates(model, x, triggered, y, target)
        clean, said = metrics.predict(model, x), metrics.predict(model, triggered)
        at, hits = part(clean, said, y, target)
        out[at] = hits.float().mean()
        return out

    return answer


def rates_in_training(model, x, triggered, y, target):
    clean, said = model(x).argmax(1), model(triggered).argmax(1)
    some = y != target
    hits = (clean == y, said[some] == target, said[some] == y[some])
    return torch.stack([h.float().mean() for h in hits])


def rates_of_all(model, x, triggered, y, target):
    clean, said = metrics.predict(model, x), metrics.predict(model, triggered)
    return torch.stack([h.float().mean() for h in (clean == y, said == target, said == y)])


def rates_left_in_eval(model, x, triggered, y, target):
    model.eval()
    return rates(model, x, triggered, y, target)


def rates_left_in_training(model, x, triggered, y, target):
    model.eval()
    out = rates(model, x, triggered, y, target)
    model.train()
    return out


def rates_of_the_right(model, x, triggered, y, target):
    """ASR and RA among images that are right without the trigger."""
    clean, said = metrics.predict(model, x), metrics.predict(model, triggered)
    some = (y != target) & (clean == y)
    hits = (clean == y, said[some] == target, said[some] == y[some])
    return torch.stack([h.float().mean() for h in hits])


def changes(model, layer, x, triggered):
    a, b = (activations.outputs(model, p, [layer])[layer] for p in (x, triggered))
    return (a - b).flatten(2).norm(dim=2).mean(0)


def loudness(maps):
    return maps.flatten(2).norm(dim=2).mean(0)


def sizes(model, layer, x, triggered):
    return activations.norms(model, x, [layer])[layer]


def sizes_triggered(model, layer, x, triggered):
    return activations.norms(model, triggered, [layer])[layer]


def mean_changes(model, layer, x, triggered):
    a, b = (activations.outputs(model, p, [layer])[layer] for p in (x, triggered))
    return (a - b).mean(0).flatten(1).norm(dim=1)


def by_package(model, layer, channels):
    return surgery.without(model, {layer: channels})


def only_weights(model, layer, channels):
    return surgery.without(model, {layer: channels}, shift=False)


def the_convolution(model, layer, channels, bias=True):
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.conv.weight[channels] = 0
        if bias:
            model.conv.bias[channels] = 0
    return model


def the_kernels(model, layer, channels):
    return the_convolution(model, layer, channels, bias=False)


def in_place(model, layer, channels):
    surgery.zero_channels(model, {layer: channels})
    return model


def by_hand(model, layer, channels):
    model = copy.deepcopy(model)
    norm = model.get_submodule(layer)
    with torch.no_grad():
        norm.weight[channels] = 0
        norm.bias[channels] = 0
    return model


def draw(order, k, g):
    return torch.randperm(len(order), generator=g)[:k]


def fixed(order, k, g):
    return torch.arange(k)


def from_the_top(order, k, g):
    return order[:k]


def with_return(order, k, g):
    return torch.randint(len(order), (k,), generator=g)


def of_its_own(order, k, g):
    return torch.randperm(len(order))[:k]


def one_seed(order, k, g):
    return torch.randperm(len(order), generator=own)[:k]


own = torch.Generator()


def too_many(order, k, g):
    return torch.randperm(len(order), generator=g)[: k + (0 < k)]


def never_the_last(order, k, g):
    n = len(order) - 2 * (k < 4)
    return torch.randperm(n, generator=g)[:k]


def curve_left_in_eval(model, *args):
    model.eval()
    return curve()(model, *args)


def curve_left_in_training(model, *args):
    out = curve()(model, *args)
    model.train()
    return out


def curve_that_seeds_anew(model, layer, x, triggered, y, target, counts, draws, generator):
    again = torch.Generator().manual_seed(generator.initial_seed())
    return curve()(model, layer, x, triggered, y, target, counts, draws, again)


def curve_of_one_draw(model, layer, x, triggered, y, target, counts, draws, generator):
    """One random set for each k; the others are always the first channels."""
    args = (model, layer, x, triggered, y, target, counts, draws, generator)
    ranked, chance = curve()(*args)
    fixed_ones = curve(pick=fixed)(*args)[1]
    return ranked, torch.cat([chance[:, :1], fixed_ones[:, 1:]], 1)


def curve(cut=by_package, score=changes, pick=draw, largest=True):
    """The method with one of its parts replaced."""

    def answer(model, layer, x, triggered, y, target, counts, draws, generator):
        own.manual_seed(3)
        order = score(model, layer, x, triggered).argsort(descending=largest)

        def after(channels):
            return rates(cut(model, layer, channels), x, triggered, y, target)

        ranked = [after(order[:k]) for k in counts]
        chance = [[after(pick(order, k, generator)) for _ in range(draws)] for k in counts]
        return torch.stack(ranked), torch.stack([torch.stack(c) for c in chance])

    return answer


def curve_that_piles_up(model, layer, x, triggered, y, target, counts, draws, generator):
    """One copy for all ranked cuts: what an earlier k switched off stays off."""
    args = (model, layer, x, triggered, y, target, counts, draws, generator)
    one = copy.deepcopy(model)
    order = changes(model, layer, x, triggered).argsort(descending=True)

    def after(k):
        surgery.zero_channels(one, {layer: order[:k]})
        return rates(one, x, triggered, y, target)

    return torch.stack([after(k) for k in counts]), curve()(*args)[1]


def curve_of_one_permutation(model, layer, x, triggered, y, target, counts, draws, generator):
    """A draw is one permutation, and each k takes its first k."""
    args = (model, layer, x, triggered, y, target, counts, draws, generator)
    orders = [torch.randperm(6, generator=generator) for _ in range(draws)]

    def after(channels):
        return rates(by_package(model, layer, channels), x, triggered, y, target)

    chance = [torch.stack([after(o[:k]) for o in orders]) for k in counts]
    return curve()(*args)[0], torch.stack(chance)


def curve_by_hooks(model, layer, x, triggered, y, target, counts, draws, generator):
    """Nothing is copied: a hook silences the channels while the network runs."""
    norm = model.get_submodule(layer)
    order = changes(model, layer, x, triggered).argsort().flip(0)

    def after(channels):
        keep = torch.ones(len(order), dtype=x.dtype)
        keep[channels] = 0
        hook = norm.register_forward_hook(lambda _, __, out: out * keep.view(1, -1, 1, 1))
        try:
            return rates_by_lists(model, x, triggered, y, target)
        finally:
            hook.remove()

    chance = torch.zeros(len(counts), draws, 3)
    for i, k in enumerate(counts):
        for j in range(draws):
            noise = torch.rand(len(order), generator=generator)
            chance[i, j] = after(noise.argsort()[:k])
    return torch.stack([after(order[:k]) for k in counts]), chance


RIGHT = {
    "asr": [
        lambda s, y, t: (asked(s, y, t)[0] == t).float().mean().item(),
        lambda s, y, t: ((s == t) & (y != t)).sum() / (y != t).sum(),
        lambda s, y, t: 1 - (asked(s, y, t)[0] != t).float().mean().item(),
        lambda s, y, t: (asked(s, y, t)[0] == t).float().numpy().mean(),
    ],
    "three_rates": [rates, rates_by_lists],
    "tac": [
        lambda a, b: (b - a).flatten(2).norm(dim=2).mean(0),
        lambda a, b: ((a - b) ** 2).sum((-1, -2)).sqrt().sum(0) / len(a),
    ],
    "cut_curve": [curve(), curve(by_hand), curve_by_hooks],
    "cam": [
        lambda m, g: (g.mean((2, 3), keepdim=True) * m).sum(1).relu(),
        lambda m, g: torch.einsum("nc,nchw->nhw", g.flatten(2).mean(2), m).clamp(min=0),
    ],
}

WRONG = {
    "asr": [
        (lambda s, y, t: (s == t).float().mean().item(), "true class is the target"),
        (
            lambda s, y, t: (s[y != t] != y[y != t]).float().mean().item(),
            "every error as a success",
        ),
        (lambda s, y, t: ((s == t) & (y != t)).float().mean().item(), "all images"),
        (lambda s, y, t: (s == t).sum() / (y != t).sum(), "true class is the target"),
        (
            lambda s, y, t: ((s == t).sum() - (y == t).sum()) / (y != t).sum(),
            "some are misread",
        ),
        (lambda s, y, t: (s != y).float().mean().item(), "every error as a success"),
        (
            lambda s, y, t: ((s != y) & (y != t)).float().mean().item(),
            "every error as a success",
        ),
        (lambda s, y, t: (s == y)[y != t].float().mean().item(), "is the robust accuracy"),
        (lambda s, y, t: 0.37123, "expected"),
        (lambda s, y, t: 100.0 * (s[y != t] == t).float().mean().item(), "0..1"),
        (lambda s, y, t: (s[y != t] == t).mean(), "bool tensor"),
        (lambda s, y, t: (s + y[:2]).float().mean(), "raises RuntimeError in line"),
    ],
    "three_rates": [
        (rates_in_training, "training mode"),
        (rates_left_in_eval, "leaves the network in evaluation mode"),
        (rates_left_in_training, "leaves the network in training mode"),
        (rates_of_the_right, "right without the trigger"),
        (lambda *a: rates(*a)[[1, 0, 2]], "the order is"),
        (rates_of_all, "ASR includes images of the target class"),
        (rates_with(lambda c, s, y, t: (1, s == t)), "ASR includes images of the target"),
        (rates_with(lambda c, s, y, t: (2, s == y)), "RA includes images of the target"),
        (rates_with(lambda c, s, y, t: (1, (c == t)[y != t])), "ASR is measured on clean"),
        (rates_with(lambda c, s, y, t: (2, (c == y)[y != t])), "RA is measured on clean"),
        (rates_with(lambda c, s, y, t: (2, s[y != t] != t)), "1 - ASR"),
        (rates_with(lambda c, s, y, t: (0, s == y)), "on triggered images"),
        (rates_with(lambda c, s, y, t: (0, (c == y)[y != t])), "every clean image"),
        (lambda *a: 100 * rates(*a), "0..1"),
        (lambda *a: rates(*a)[[0, 2, 1]], "the order is"),
        (lambda *a: tuple(rates(*a)), "not a tensor"),
    ],
    "tac": [
        (lambda a, b: (b - a).mean(0).flatten(1).norm(dim=1), "cancel"),
        (lambda a, b: (b - a).abs().sum((2, 3)).mean(0), "L2"),
        (lambda a, b: (b - a).abs().mean((2, 3)).mean(0), "L2"),
        (lambda a, b: (b - a).square().sum((2, 3)).mean(0), "squared"),
        (
            lambda a, b: (b - a).square().mean((2, 3)).sqrt().mean(0),
            "mean over positions under the root",
        ),
        (lambda a, b: (b - a).square().sum((2, 3)).mean(0).sqrt(), "root after the mean"),
        (lambda a, b: (b - a).flatten(2).norm(dim=2).sum(0), "sums over images"),
        (lambda a, b: (b - a).flatten(1).norm(dim=1), "shape"),
        (lambda a, b: loudness(b) - loudness(a), "norm of the change"),
        (lambda a, b: (loudness(b) - loudness(a)).abs(), "norm of the change"),
        (
            lambda a, b: (b.flatten(2).norm(dim=2) - a.flatten(2).norm(dim=2)).abs().mean(0),
            "norm of the change",
        ),
    ],
    "cut_curve": [
        (curve(only_weights), "leaves the bias on"),
        (curve(the_convolution), "switches off the convolution"),
        (curve(the_kernels), "switches off the convolution"),
        (curve(in_place), "cut a copy"),
        (curve(largest=False), "change least|size of the maps"),
        (curve(score=sizes), "size of the maps|change least"),
        (curve(score=sizes_triggered), "size of the maps|change least"),
        (curve(score=mean_changes), "opposite changes cancel|size of the maps|change least"),
        (curve_left_in_eval, "leaves the network in evaluation mode"),
        (curve_left_in_training, "leaves the network in training mode"),
        (curve_that_seeds_anew, "the generator never moves on"),
        (curve(pick=with_return), "no set of|no pair"),
        (curve(pick=never_the_last), "never drawn"),
        (curve_of_one_draw, "same for every seed"),
        (curve_that_piles_up, "the cuts pile up"),
        (curve_of_one_permutation, "one permutation serves every k"),
        (curve(pick=fixed), "one set of channels"),
        (curve(pick=from_the_top), "switch off the ranked"),
        (curve(pick=of_its_own), "ignore the generator: the same seed"),
        (curve(pick=one_seed), "ignore the generator: other seeds"),
        (curve(pick=too_many), "no set of"),
        (lambda *a: curve()(*a)[0], "two tensors"),
        (lambda *a: tuple(t[1:] for t in curve()(*a)), "shape"),
    ],
    "cam": [
        (lambda m, g: (g * m).sum(1).relu(), "own gradient"),
        (lambda m, g: (g.mean((2, 3), keepdim=True) * m).sum(1), "negative"),
        (
            lambda m, g: (g.mean((2, 3), keepdim=True) * m).relu().sum(1),
            "before the sum",
        ),
        (lambda m, g: (g.sum((2, 3), keepdim=True) * m).sum(1).relu(), "sums the gradient"),
        (
            lambda m, g: (g.mean((2, 3), keepdim=True) * m).mean(1).relu(),
            "mean over channels",
        ),
        (lambda m, g: m.sum(1).relu(), "weighted sum"),
        (
            lambda m, g: (m.mean((2, 3), keepdim=True) * g).sum(1).relu(),
            "weights the gradients by the maps",
        ),
        (
            lambda m, g: (g.mean((2, 3), keepdim=True).relu() * m).sum(1).relu(),
            "drops the negative weights",
        ),
        (
            lambda m, g: (g.mean((2, 3), keepdim=True) * m).sum(1).abs(),
            "takes the absolute value",
        ),
        (
            lambda m, g: (g.mean((2, 3), keepdim=True).abs() * m).sum(1).relu(),
            "takes the absolute value",
        ),
        (lambda m, g: (g.mean((2, 3)) * m).sum(1).relu(), "raises RuntimeError in line"),
    ],
}
