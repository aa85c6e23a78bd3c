"""Right and wrong answers to the exercises of lesson 08, for test_check.py."""

import copy

import torch
from torch.func import functional_call
from torch.nn import functional as F

import bdcourse.teach.check.fip as check_fip


def score_length(x, p, y):
    mine = p.gather(1, y[:, None])[:, 0]
    return (x.square().sum(1) + 1) * (1 - 2 * mine + p.square().sum(1))


def score_length_by_outer_product(x, p, y):
    error = F.one_hot(y, p.shape[1]) - p
    one = torch.cat([x, torch.ones(len(x), 1)], 1)
    return (error[:, :, None] * one[:, None]).flatten(1).norm(dim=1) ** 2


def length(x, label):
    return (x.square().sum(1) + 1) * label


def p_y(p, y):
    return p.gather(1, y[:, None])[:, 0]


def one_pass_trace(model, x, generator):
    weights, logits = list(model.parameters()), model(x)
    y = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)
    total = logits.log_softmax(1).gather(1, y).sum()
    g = torch.autograd.grad(total, weights)
    return sum(t.square().sum() for t in g).item() / len(x)


def one_pass_trace_by_cross_entropy(model, x, generator):
    logits = model(x)
    chance = logits.detach().softmax(1).cumsum(1)
    u = torch.rand(len(x), 1, generator=generator)
    y = (u > chance).sum(1).clamp(max=logits.shape[1] - 1)
    mean = F.cross_entropy(logits, y)  # 1/n of the sum, with the sign changed
    g = torch.cat([t.flatten() for t in torch.autograd.grad(mean, list(model.parameters()))])
    return len(x) * (g @ g)


def trace_left_behind(model, x, generator):
    model.zero_grad()
    return trace_piling_up(model, x, generator)


def trace_in_eval_mode(model, x, generator):
    return one_pass_trace(model.eval(), x, generator)


def layers_alone(model):
    found = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    return [w for m in found for w in m.parameters()]


def score_length_in_place(x, p, y):
    p[torch.arange(len(y)), y] -= 1
    return (x.square().sum(1) + 1) * p.square().sum(1)


def trace_with(draw=None, total=None, value=None, weights=None):
    """The estimate with one of its parts replaced."""
    draw = draw or (lambda p, g: torch.multinomial(p, 1, generator=g))
    total = total or (lambda logp, y: logp.gather(1, y).sum())
    value = value or (lambda g, n: (g @ g).item() / n)
    weights = weights or (lambda model: list(model.parameters()))

    def answer(model, x, generator):
        logits = model(x)
        y = draw(logits.detach().softmax(1), generator)
        t = total(logits.log_softmax(1), y)
        g = torch.autograd.grad(t, weights(model))
        return value(torch.cat([v.flatten() for v in g]), len(x))

    return answer


def trace_piling_up(model, x, generator):
    logits = model(x)
    y = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)
    logits.log_softmax(1).gather(1, y).sum().backward()
    return sum(p.grad.square().sum() for p in model.parameters()).item() / len(x)


def trace_in_train_mode(model, x, generator):
    return one_pass_trace(model.train(), x, generator)


def trace_there_and_back(model, x, generator):
    out = one_pass_trace(model.train(), x, generator)
    model.eval()
    return out


def trace_image_by_image(model, x, generator):
    return sum(one_pass_trace(model, x[i : i + 1], generator) for i in range(len(x))) / 3


def product(gradient, w, r):
    here = gradient(w)
    norm = sum(g.square().sum() for g in here).sqrt()
    there = gradient([v + r / norm * g for v, g in zip(w, here, strict=True)])
    return [(b - a) * norm / r for a, b in zip(here, there, strict=True)]


def product_from_both_sides(gradient, w, r):
    g = gradient(w)
    norm = torch.cat([t.flatten() for t in g]).norm()
    up, down = (
        gradient([v + s * r * t / norm for v, t in zip(w, g, strict=True)]) for s in (1, -1)
    )
    return tuple((a - b) * norm / (2 * r) for a, b in zip(up, down, strict=True))


def product_with(step, back):
    """The product with another way to walk and another factor at the end."""

    def answer(gradient, w, r):
        g = gradient(w)
        norm = sum(t.square().sum() for t in g).sqrt()
        there = gradient([v + step(t, norm, r) for v, t in zip(w, g, strict=True)])
        return [(b - a) * back(a, norm, r) for a, b in zip(g, there, strict=True)]

    return answer


def product_in_place(gradient, w, r):
    g = gradient(w)
    norm = sum(t.square().sum() for t in g).sqrt()
    with torch.no_grad():
        for v, t in zip(w, g, strict=True):
            v += r / norm * t
    return [(b - a) * norm / r for a, b in zip(g, gradient(w), strict=True)]


def product_in_place_with_grad(gradient, w, r):
    for v, t in zip(w, gradient(w), strict=True):
        v += r * t
    return gradient(w)


def product_cut_off(gradient, w, r):
    g = gradient(w)
    norm = sum(t.square().sum() for t in g).sqrt()
    there = gradient([(v + r / norm * t).detach() for v, t in zip(w, g, strict=True)])
    return [(b - a) * norm / r for a, b in zip(g, there, strict=True)]


def product_there_alone(gradient, w, r):
    g = gradient(w)
    norm = sum(t.square().sum() for t in g).sqrt()
    return gradient([v + r / norm * t for v, t in zip(w, g, strict=True)])


def fip_plain(
    model, x, y, fisher, eta_f, eta_r, steps, lr, batch, generator, reach=None, redrawn=False
):
    net = copy.deepcopy(model).train()
    w = dict(net.named_parameters())
    received = [v.detach().clone() for v in w.values()]
    speed = [torch.zeros_like(v) for v in received]
    for _ in range(steps):
        i = torch.randperm(len(x), generator=generator)[:batch]
        logits = net(x[i])
        ce = torch.autograd.grad(F.cross_entropy(logits, y[i]), list(w.values()))
        drawn = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)

        def gradient(at, i=i, drawn=drawn):
            moved = dict(zip(w, at, strict=True))
            moved |= {n: b.clone() for n, b in net.named_buffers()}
            out = functional_call(net, moved, (x[i],)).log_softmax(1)
            if redrawn:
                drawn = torch.multinomial(out.detach().exp(), 1, generator=generator)
            return torch.autograd.grad(out.gather(1, drawn).sum(), at)

        at = [v.detach().clone().requires_grad_() for v in w.values()]
        r = reach or 1e-3 * sum(v.detach().square().sum() for v in at).sqrt()
        hg = product(gradient, at, r)
        with torch.no_grad():
            for k, v in enumerate(w.values()):
                slope = ce[k] + 2 * eta_f / len(i) * hg[k]
                slope += eta_r * fisher[k] * (v - received[k])
                speed[k] = 0.9 * speed[k] + slope
                v -= lr * speed[k]
    return net.eval()


def fip_by_double_backward(
    model, x, y, fisher, eta_f, eta_r, steps, lr, batch, generator, statistics=False
):
    """The exact product, and torch's own SGD."""
    net = copy.deepcopy(model)
    w = list(net.parameters())
    old = [v.detach().clone() for v in w]
    sgd = torch.optim.SGD(w, lr=lr, momentum=0.9)
    net.train()
    for _ in range(steps):
        i = torch.randperm(len(x), generator=generator)[:batch]
        out = net(x[i])
        p = out.log_softmax(1)
        y_hat = torch.multinomial(p.detach().exp(), 1, generator=generator)[:, 0]
        g = torch.autograd.grad(-F.nll_loss(p, y_hat, reduction="sum"), w, create_graph=True)
        trace = sum((t * t).sum() for t in g) / len(i)
        back = sum((f * (v - v0) ** 2).sum() for f, v, v0 in zip(fisher, w, old, strict=True))
        loss = F.nll_loss(p, y[i]) + eta_f * trace + eta_r / 2 * back
        sgd.zero_grad()
        loss.backward()
        if statistics:
            net(x[i])
        sgd.step()
    return net.eval()


def fip_short_walk(*a):
    return fip_plain(*a, reach=1e-3)


def fip_long_walk(*a):
    return fip_plain(*a, reach=0.05)


def fip_in_place(model, x, y, *how):
    out = fip_plain(model, x, y, *how)
    model.load_state_dict(out.state_dict())
    return model


def fip_without_generator(model, x, y, *how):
    return fip_plain(model, x, y, *how[:-1], None)


def fip_training(*args):
    return fip_plain(*args).train()


def with_slip(slip):
    return lambda *args: check_fip._descended(*args, wrong=slip)


def spectral_step(w, dw, lr):
    u, s, vh = torch.linalg.svd(w.flatten(1), full_matrices=False)
    slope = ((u.T @ dw.flatten(1)) * vh).sum(1)
    return ((u * (s - lr * slope).relu()) @ vh).view(w.shape)


def spectral_step_by_autograd(w, dw, lr):
    u, s, vh = torch.linalg.svd(w.reshape(len(w), -1), full_matrices=False)
    d = torch.zeros_like(s, requires_grad=True)
    weight = u @ torch.diag(s + d) @ vh
    (slope,) = torch.autograd.grad((weight * dw.reshape(len(w), -1)).sum(), d)
    return (u @ torch.diag(F.relu(s - lr * slope)) @ vh).reshape(w.shape)


def spectral_with(values=lambda t: t.relu(), slope=None, sign=-1, shape=True):
    slope = slope or (lambda u, m, vh: (u * (m @ vh.T)).sum(0))

    def answer(w, dw, lr):
        u, s, vh = torch.linalg.svd(w.flatten(1), full_matrices=False)
        out = (u * values(s + sign * lr * slope(u, dw.flatten(1), vh))) @ vh
        return out.view(w.shape) if shape else out

    return answer


RIGHT: dict = {
    "score_length": [score_length, score_length_by_outer_product],
    "one_pass_trace": [one_pass_trace, one_pass_trace_by_cross_entropy],
    "product": [product, product_from_both_sides],
    "fip_plain": [fip_plain, fip_by_double_backward],
    "spectral_step": [spectral_step, spectral_step_by_autograd],
}

WRONG: dict = {
    "score_length": [
        (
            lambda x, p, y: score_length(x, p, y) * (1 - 1 / (x**2).sum(1).add(1)),
            "bias",
        ),
        (
            lambda x, p, y: (x.norm(dim=1) + 1) / length(x, 1) * score_length(x, p, y),
            "length of x",
        ),
        (lambda *a: score_length(*a).sqrt(), "is the length"),
        (
            lambda x, p, y: length(x, 1 - p_y(p, y) + p.square().sum(1)),
            "factor 2",
        ),
        (lambda x, p, y: length(x, (1 - p_y(p, y)).square()), "label y alone"),
        (lambda x, p, y: length(x, 1 - p.square().sum(1)), "mean over all labels"),
        (
            lambda x, p, y: length(x, 1 - 2 * p.gather(0, y[:, None])[:, 0] + p.square().sum(1)),
            "along the images",
        ),
        (lambda *a: score_length(*a).mean(), "one number"),
        (lambda x, p, y: score_length(x, p, y)[:, None], "shape"),
        (lambda x, p, y: score_length(x, 2 * p, y), r"\|e_y - p\|"),
        (score_length_in_place, "input in place"),
    ],
    "one_pass_trace": [
        (trace_in_train_mode, "leave the mode alone"),
        (trace_there_and_back, "leave the mode alone"),
        (trace_with(total=lambda q, y: q.gather(1, y).mean()), "averages"),
        (
            trace_with(total=lambda q, y: q.gather(1, y).mean(), value=lambda g, n: g @ g),
            "averages",
        ),
        (trace_with(value=lambda g, n: (g @ g).item() / n**2), "more than once"),
        (trace_with(value=lambda g, n: g @ g), "not divided"),
        (trace_with(value=lambda g, n: g.norm()), "length of g"),
        (trace_with(value=lambda g, n: g.square().mean()), "for any labels"),
        (trace_with(value=lambda g, n: g), "not a number"),
        (trace_with(draw=lambda p, g: p.argmax(1, keepdim=True)), "same number"),
        (trace_with(draw=lambda p, g: torch.multinomial(p, 1)), "generator"),
        (
            trace_with(draw=lambda p, g: torch.randint(4, (3, 1), generator=g)),
            "own chances",
        ),
        (
            trace_with(draw=lambda p, g: torch.multinomial(p[0], 1, generator=g).expand(3, 1)),
            "whole batch",
        ),
        (trace_with(total=lambda q, y: q[:, y[:, 0]].sum()), "all pairs"),
        (trace_with(total=lambda q, y: q[:, y[:, 0]].mean()), "all pairs"),
        (trace_with(total=lambda q, y: q.exp().gather(1, y).sum()), "for any labels"),
        (trace_with(weights=lambda model: [model[-1].weight]), "bias"),
        (trace_with(weights=layers_alone), "scales and shifts"),
        (trace_left_behind, r"in \.grad"),
        (trace_in_eval_mode, "into eval mode"),
        (trace_piling_up, "call before"),
        (trace_image_by_image, "by itself"),
    ],
    "product": [
        (product_with(lambda g, s, r: r / s * g, lambda g, s, r: 1 / r), "by the norm"),
        (product_with(lambda g, s, r: r * g, lambda g, s, r: s / r), r"r times \|g\|"),
        (product_with(lambda g, s, r: r * g, lambda g, s, r: 1 / r), r"r times \|g\|"),
        (
            product_with(lambda g, s, r: r / s**2 * g, lambda g, s, r: s**2 / r),
            r"r over \|g\|",
        ),
        (
            product_with(lambda g, s, r: r / g.norm() * g, lambda g, s, r: g.norm() / r),
            "each tensor by itself",
        ),
        (
            product_with(lambda g, s, r: r / g.norm() * g, lambda g, s, r: s / r),
            "each tensor by itself",
        ),
        (product_with(lambda g, s, r: 2 * r / s * g, lambda g, s, r: s / r), "not r ="),
        (product_with(lambda g, s, r: r / s * g, lambda g, s, r: s), "divided by r"),
        (product_with(lambda g, s, r: r / s * g, lambda g, s, r: -s / r), "sign"),
        (product_with(lambda g, s, r: -r / s * g, lambda g, s, r: s / r), "sign"),
        (
            product_with(lambda g, s, r: r / s * g, lambda g, s, r: s / r / 2),
            r"\(there - here\)",
        ),
        (lambda gradient, w, r: gradient(w), "once"),
        (lambda gradient, w, r: [v / r for v in w], "never"),
        (product_there_alone, "is a gradient"),
        (product_in_place, "in place"),
        (product_in_place_with_grad, "in place"),
        (product_cut_off, "autograd cannot follow"),
        (
            lambda *a: torch.cat([t.flatten() for t in product(*a)]),
            "list of tensors",
        ),
        (lambda *a: product(*a)[:1], "list of tensors"),
    ],
    "fip_plain": [
        (with_slip("no trace"), "no trace at all"),
        (with_slip("climb"), "climbs"),
        (with_slip("half"), "factor 2"),
        (with_slip("sum"), "number of images"),
        (with_slip("bare"), "H g itself"),
        (with_slip("whole"), "by all images"),
        (with_slip("eval"), "with running statistics; every"),
        (with_slip("drawn in eval"), "logits of the first pass"),
        (lambda *a: fip_plain(*a, redrawn=True), "both gradients"),
        (fip_short_walk, "0.001 times the length"),
        (fip_long_walk, "0.001 times the length"),
        (with_slip("fit summed"), "over the batch; it is a mean"),
        (with_slip("data"), "labels of the data"),
        (with_slip("likely"), "most likely"),
        (with_slip("mode"), "running statistics"),
        (with_slip("no pull"), "not pulled back"),
        (with_slip("away"), "pushed away"),
        (with_slip("double"), "factor in the pull"),
        (with_slip("alike"), "alike"),
        (with_slip("no fit"), "cross-entropy"),
        (with_slip("momentum"), "no momentum"),
        (lambda *a: fip_by_double_backward(*a, statistics=True), "second pass"),
        (fip_in_place, "work on a copy"),
        (fip_training, "back in train mode"),
        (lambda model, *a: fip_plain(model.train(), *a), "given in train mode"),
        (fip_without_generator, "without the generator"),
        (lambda *a: list(fip_plain(*a).parameters()), "no network"),
        (lambda m, *a: copy.deepcopy(m), "of the way"),
        (lambda *a: fip_plain(*a[:6], 1, *a[7:]), "of the way"),
    ],
    "spectral_step": [
        (lambda w, dw, lr: w - lr * dw, "along the weights"),
        (lambda w, dw, lr: w.clone(), "does not move"),
        (spectral_with(values=lambda t: t), "below zero"),
        (spectral_with(values=lambda t: t.abs()), "absolute value"),
        (spectral_with(sign=1), "goes up"),
        (spectral_with(slope=lambda u, m, vh: torch.linalg.svdvals(m)), "values of dw"),
        (spectral_with(slope=lambda u, m, vh: (u * m.mean()).sum(0)), "is not U"),
        (spectral_with(shape=False), "shape"),
    ],
}
