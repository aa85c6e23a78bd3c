"""Right and wrong answers to the exercises of lesson 06, for test_check.py."""

from copy import deepcopy

import torch
import torch.nn.functional as F

from bdcourse import activations


def pulls_by_index(f0, f):
    n, c, h, w = f0.shape
    out = f0.new_zeros(c, n, c, h, w)
    i = torch.arange(c)
    out[i, :, i] = (2 * (f0 - f) / (n * h * w)).transpose(0, 1)
    return out


def pulls_by_mask(f0, f):
    own = torch.eye(f0.shape[1])[:, None, :, None, None]
    return own * 2 * (f0 - f) / f0[:, 0].numel()


def worst_by_two_sorts(acc, loss, p, least):
    order = loss.argsort(descending=True)
    order = order[acc[order].argsort(stable=True)]
    return order[: max(least, int(len(acc) // p))]


def worst_by_python(acc, loss, p, least):
    pairs = sorted(zip(acc.tolist(), (-loss).tolist(), range(len(acc)), strict=True))
    m = max(least, int(len(acc) / p))
    return torch.tensor([i for *_, i in pairs[:m]], dtype=torch.int64)


def push(
    model,
    name,
    x,
    x0,
    epsilon,
    *,
    begin=None,
    onto=None,
    sign=torch.sign,
    clip=True,
    together=False,
    backward=False,
    train=False,
):
    """The answer of the lesson, with a switch for everything that can go wrong."""
    if train:
        model.train()
    seen, a = [], (x0 if begin is None else begin(x, x0)).clone().requires_grad_()
    with activations.watching(model, lambda _, out: seen.append(out), [name]):
        model(x)
        model(a)
    f, f0 = seen
    v = pulls_by_index(f0.detach(), f.detach())
    if together:
        v = v.sum(0, keepdim=True).expand_as(v)
    if backward:
        f0.square().mean().backward(retain_graph=True)
    (g,) = torch.autograd.grad(f0, a, v.contiguous(), is_grads_batched=True)
    pushed = (x0 if onto is None else onto(x, x0)) + epsilon * sign(g)
    return pushed.clamp(0, 1) if clip else pushed


def push_by_loop(model, name, x, x0, epsilon):
    rows, layer = [], model.get_submodule(name)
    with torch.no_grad():
        f = activations.outputs(model, x, [name])[name]
    for i in range(layer.out_channels):
        seen, a = [], x0.detach().clone().requires_grad_()
        hook = layer.register_forward_hook(lambda _, __, out, s=seen: s.append(out))
        model(a)
        hook.remove()
        j = F.mse_loss(seen[0][:, i], f[:, i], reduction="sum")
        g = torch.autograd.grad(j, a)[0]
        rows.append((x0 + epsilon * g.sign()).clip(0, 1))
    return torch.stack(rows)


def pushing(**wrong):
    return lambda *args: push(*args, **wrong)


def scored_by_loop(logits, y):
    acc = torch.stack([(row.argmax(1) == y).float().mean() for row in logits])
    return acc, torch.stack([F.cross_entropy(row, y) for row in logits])


def scored(logits, y):
    each = F.cross_entropy(logits.movedim(2, 1), y.expand(logits.shape[:2]), reduction="none")
    return (logits.argmax(-1) == y).double().mean(1), each.mean(1)


def method(
    model,
    x,
    y,
    x0,
    epsilon,
    p,
    least,
    *,
    pushed=push,
    viewed=lambda z, m, n: z.view(m, n, -1),
    score=scored,
    pick=worst_by_two_sorts,
    skip=0,
):
    """The answer of the lesson, with a switch for everything that can go wrong."""
    chosen, scores = {}, {}
    convs = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)]
    for name in convs[skip:]:
        images = pushed(model, name, x, x0, epsilon)
        with torch.no_grad():
            logits = viewed(model(images.flatten(0, 1)), len(images), len(y))
        scores[name] = score(logits, y)
        chosen[name] = pick(*scores[name], p, least)
    return chosen, scores


def method_by_loop(model, x, y, x0, epsilon, p, least):
    chosen, scores = {}, {}
    for name, m in model.named_modules():
        if isinstance(m, torch.nn.Conv2d):
            rows = [model(some).detach() for some in push_by_loop(model, name, x, x0, epsilon)]
            scores[name] = list(scored_by_loop(torch.stack(rows), y))
            chosen[name] = worst_by_python(*scores[name], p, least)
    return chosen, scores


def switched(**wrong):
    return lambda *args: method(*args, **wrong)


def unpushed(model, name, x, x0, epsilon):
    return x.expand(model.get_submodule(name).out_channels, *x.shape)


def the_way_round(z, m, n):
    return z.view(n, m, -1).transpose(0, 1)


def norms(net):
    return [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def looked(
    model,
    batches,
    *,
    copy=deepcopy,
    reset=True,
    momentum=None,
    mode=True,
    end=False,
    lr=0.0,
    joined=False,
):
    """The answer of the lesson, with a switch for everything that can go wrong."""
    net = copy(model).train(mode)
    for bn in norms(net):
        if reset:
            bn.reset_running_stats()
        bn.momentum = momentum
    opt = torch.optim.SGD(net.parameters(), lr=lr)
    for x in [torch.cat(batches)] if joined else batches:
        out = net(x)
        if lr:
            opt.zero_grad()
            out.square().mean().backward()
            opt.step()
    return net.train(end)


def looked_by_hand(model, batches):
    net = deepcopy(model)
    for m in norms(net):
        m.train()
    with torch.no_grad():
        for k, x in enumerate(batches):
            for m in norms(net):
                m.momentum = 1 / (k + 1)
            net(x)
    net.eval()
    return net


def looking(**wrong):
    return lambda *args: looked(*args, **wrong)


def best_maps(acc, loss, p, least):
    return worst_by_two_sorts(-acc, -loss, p, least)


RIGHT = {
    "fmp_maps": [method, method_by_loop],
    "look_again": [looked, looked_by_hand],
    "pulls": [pulls_by_index, pulls_by_mask],
    "push_layer": [push, push_by_loop],
    "worst_maps": [worst_by_two_sorts, worst_by_python],
}


def pulls_of_squares(f0, f):
    n, _, h, w = f0.shape
    return pulls_by_index(f0, f) * w / h


def worst_by_a_small_mix(acc, loss, p, least):
    return (acc - 1e-6 * loss).argsort()[: max(least, int(len(acc) // p))]


def worst_rounded_up(acc, loss, p, least):
    return worst_by_two_sorts(acc, loss, 1, least)[: max(least, -int(-len(acc) // p))]


def worst_by_a_mix(acc, loss, p, least):
    return (acc - 0.01 * loss).argsort()[: max(least, int(len(acc) // p))]


def worst_by_accuracy_alone(acc, loss, p, least):
    return acc.argsort(stable=True)[: max(least, int(len(acc) // p))]


WRONG = {
    "fmp_maps": [
        (switched(viewed=the_way_round), "another order than"),
        (switched(pick=lambda a, b, p, k: worst_by_two_sorts(a, b, p, 1)), "hand on p or least"),
        (switched(pick=lambda a, b, p, k: worst_by_two_sorts(a, b, 3, k)), "hand on p or least"),
        (switched(pushed=unpushed), "not pushed"),
        (switched(pushed=pushing(begin=lambda x, x0: x)), "pushed by nothing"),
        (
            switched(pushed=lambda m, n, x, x0, e: push(m, n, x0, x, e)),
            "the other way round",
        ),
        (switched(pushed=lambda m, n, x, x0, e: push(m, n, x, x0, 8 / 255)), "by epsilon"),
        (switched(score=lambda z, y: scored(z, y)[::-1]), "wrong order"),
        (switched(score=lambda z, y: scored(z.softmax(2), y)), "softmax twice"),
        (
            switched(score=lambda z, y: (scored(z, y)[0], len(y) * scored(z, y)[1])),
            "sums the cross-entropy",
        ),
        (
            switched(score=lambda z, y: (1 - scored(z, y)[0], scored(z, y)[1])),
            "share of errors",
        ),
        (
            switched(score=lambda z, y: (scored(z, y)[0].square(), scored(z, y)[1])),
            "other accuracies",
        ),
        (
            switched(
                score=lambda z, y: ((z.argmax(2) == y).double().mean(0),) * 2,
                pick=lambda a, b, p, k: torch.arange(1),
            ),
            "shape",
        ),
        (switched(pushed=pushing(backward=True)), "leaves gradients"),
        (switched(pushed=pushing(train=True)), "changes the network"),
        (switched(skip=1), "each convolution"),
        (switched(pick=best_maps), "other maps"),
        (switched(pick=worst_by_accuracy_alone), "other maps"),
        (switched(pick=lambda a, b, p, k: worst_by_two_sorts(a, b, 64, k)), "other maps"),
        (lambda *a: method(*a)[0], "two dicts"),
    ],
    "look_again": [
        (looking(copy=lambda net: net), "changes the original"),
        (looking(lr=0.01), "moves weights"),
        (looking(reset=False), "still remembers"),
        (looking(reset=False, momentum=0.1), "still remembers"),
        (looking(end=True), "training mode, where"),
        (looking(mode=False, reset=False), "has the old statistics"),
        (looking(momentum=0.1), "reset values still count"),
        (looking(momentum=1.0), "last batch only"),
        (looking(joined=True), "joins the batches"),
        (looking(mode=False), "nothing since the reset"),
        (lambda net, batches: looked(net, batches[1:]), "plain average"),
        (lambda net, batches: None if looked(net, batches) is None else batches, "a network"),
    ],
    "push_layer": [
        (pushing(begin=lambda x, x0: x), "taken at x, where it is zero"),
        (pushing(begin=lambda x, x0: x, onto=lambda x, x0: x), "takes no step"),
        (pushing(onto=lambda x, x0: x), "adds the step to x"),
        (pushing(sign=lambda g: -g.sign()), "other way"),
        (pushing(sign=lambda g: g), "only the sign counts|takes no step"),
        (pushing(clip=False), r"leaves \[0, 1\]"),
        (pushing(together=True), "one direction"),
        (pushing(backward=True), "leaves gradients"),
        (pushing(train=True), "changes the network"),
        (lambda m, n, x, x0, e: push(m, n, x, x0, 8 / 255), "by epsilon"),
        (lambda m, n, x, x0, e: push(m, n, x, x0, e).transpose(0, 1), "shape"),
        (lambda m, n, x, x0, e: push(m, n, x, x0, e).flip(0), "one by one"),
    ],
    "pulls": [
        (lambda f0, f: 2 * (f0 - f) / f0[:, 0].numel(), "shape"),
        (lambda f0, f: pulls_by_index(f0, f) / 2, "factor 2"),
        (lambda f0, f: pulls_by_index(f0, f) * f0[:, 0].numel(), "mean"),
        (lambda f0, f: pulls_by_index(f, f0), "wrong sign"),
        (lambda f0, f: pulls_by_index(f0, f) / f0.shape[1], "divides by all maps"),
        (lambda f0, f: pulls_by_index(f0, f) * len(f0), "part of the mean"),
        (lambda f0, f: pulls_by_index(f0, f) * f0[0, 0].numel(), "part of the mean"),
        (
            lambda f0, f: (2 * (f0 - f) / f0[:, 0].numel()).repeat(f0.shape[1], 1, 1, 1, 1),
            "other maps",
        ),
        (pulls_of_squares, "for a square"),
    ],
    "worst_maps": [
        (worst_rounded_up, "expected max"),
        (worst_by_accuracy_alone, "first of equal|ties the wrong way"),
        (lambda a, b, p, k: worst_by_two_sorts(-a, -b, p, k), "highest accuracy"),
        (lambda a, b, p, k: worst_by_two_sorts(a, -b, p, k), "ties the wrong way"),
        (lambda a, b, p, k: worst_by_two_sorts(a, b, p, 0), "expected max"),
        (lambda a, b, p, k: worst_by_two_sorts(-b, a, p, k), "among equals only"),
        (worst_by_a_mix, "among equals only"),
        (worst_by_a_small_mix, "small losses vanish|other maps"),
        (lambda a, b, p, k: worst_by_two_sorts(a, b, p, k) + len(a), "names no maps"),
    ],
}
