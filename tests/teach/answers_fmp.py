"""Right and wrong answers to the exercises of lesson 06, for test_check.py."""

import torch
import torch.nn.functional as F

from bdcourse import activations


def start_by_ints(x, start, generator):
    sign = 2 * torch.randint(2, x.shape, generator=generator) - 1
    return (x + start * sign).clamp(0, 1)


def start_by_coins(x, start, generator):
    up = torch.rand(x.shape, generator=generator) < 0.5
    return torch.where(up, x + start, x - start).clip(0, 1)


def pulls_by_index(f0, f):
    n, c, h, w = f0.shape
    out = f0.new_zeros(c, n, c, h, w)
    i = torch.arange(c)
    out[i, :, i] = (2 * (f0 - f) / (n * h * w)).transpose(0, 1)
    return out


def pulls_by_mask(f0, f):
    own = torch.eye(f0.shape[1])[:, None, :, None, None]
    return own * 2 * (f0 - f) / f0[:, 0].numel()


def harm_by_loop(logits, y):
    acc = torch.stack([(row.argmax(1) == y).float().mean() for row in logits])
    return acc, torch.stack([F.cross_entropy(row, y) for row in logits])


def harm_in_a_list(logits, y):
    return list(harm_by_loop(logits, y))


def harm_at_once(logits, y):
    each = F.cross_entropy(logits.movedim(2, 1), y.expand(logits.shape[:2]), reduction="none")
    return (logits.argmax(-1) == y).double().mean(1), each.mean(1)


def worst_by_two_sorts(acc, loss, p, least):
    order = loss.argsort(descending=True)
    order = order[acc[order].argsort(stable=True)]
    return order[: max(least, int(len(acc) // p))]


def worst_by_python(acc, loss, p, least):
    pairs = sorted(zip(acc.tolist(), (-loss).tolist(), range(len(acc)), strict=True))
    m = max(least, int(len(acc) / p))
    return torch.tensor([i for *_, i in pairs[:m]], dtype=torch.int64)


def method(
    model,
    x,
    y,
    x0,
    epsilon,
    p,
    least,
    *,
    begin=None,
    onto=None,
    sign=torch.sign,
    clip=True,
    clean=False,
    together=False,
    backward=False,
    train=False,
    skip=0,
    pick=worst_by_two_sorts,
):
    """The answer of the lesson, with a switch for everything that can go wrong."""
    if train:
        model.train()
    chosen, scores = {}, {}
    convs = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d)]
    for name in convs[skip:]:
        seen, a = [], (x0 if begin is None else begin(x, x0)).clone().requires_grad_()
        with activations.watching(model, lambda _, out, s=seen: s.append(out), [name]):
            model(x)
            model(a)
        f, f0 = seen
        v = pulls_by_index(f0.detach(), f.detach())
        if together:
            v = v.sum(0, keepdim=True).expand_as(v)
        if backward:
            f0.square().mean().backward(retain_graph=True)
        (g,) = torch.autograd.grad(f0, a, v.contiguous(), is_grads_batched=True)
        pushed = (a.detach() if onto is None else onto) + epsilon * sign(g)
        pushed = pushed.clamp(0, 1) if clip else pushed
        if clean:
            pushed = x.expand_as(pushed)
        with torch.no_grad():
            logits = model(pushed.flatten(0, 1)).view(len(g), len(y), -1)
        scores[name] = harm_at_once(logits, y)
        chosen[name] = pick(*scores[name], p, least)
    return chosen, scores


def method_by_loop(model, x, y, x0, epsilon, p, least):
    chosen, scores = {}, {}
    for name, m in model.named_modules():
        if not isinstance(m, torch.nn.Conv2d):
            continue
        rows = []
        for i in range(m.out_channels):
            a = x0.detach().clone().requires_grad_()
            with torch.no_grad():
                f = activations.outputs(model, x, [name])[name]
            seen = []
            hook = m.register_forward_hook(lambda _, __, out, s=seen: s.append(out))
            model(a)
            hook.remove()
            j = F.mse_loss(seen[0][:, i], f[:, i], reduction="sum")
            g = torch.autograd.grad(j, a)[0]
            with torch.no_grad():
                rows.append(model((x0 + epsilon * g.sign()).clip(0, 1)))
        scores[name] = harm_by_loop(torch.stack(rows), y)
        chosen[name] = worst_by_python(*scores[name], p, least)
    return chosen, scores


def switched(**wrong):
    return lambda *args: method(*args, **wrong)


def best_maps(acc, loss, p, least):
    return worst_by_two_sorts(-acc, -loss, p, least)


RIGHT = {
    "fmp_maps": [method, method_by_loop],
    "random_start": [start_by_ints, start_by_coins],
    "pulls": [pulls_by_index, pulls_by_mask],
    "harm": [harm_by_loop, harm_at_once, harm_in_a_list],
    "worst_maps": [worst_by_two_sorts, worst_by_python],
}


def one_sign_an_image(x, start, generator):
    sign = 2 * torch.randint(2, (len(x), 1, 1, 1), generator=generator) - 1
    return (x + start * sign).clamp(0, 1)


def one_sign_a_row(x, start, generator):
    sign = 2 * torch.randint(2, (*x.shape[:3], 1), generator=generator) - 1
    return (x + start * sign).clamp(0, 1)


def one_sign_a_column(x, start, generator):
    sign = 2 * torch.randint(2, (*x.shape[:2], 1, x.shape[3]), generator=generator) - 1
    return (x + start * sign).clamp(0, 1)


def one_sign_a_pixel(x, start, generator):
    sign = 2 * torch.randint(2, (len(x), 1, *x.shape[2:]), generator=generator) - 1
    return (x + start * sign).clamp(0, 1)


def loaded_coin(x, start, generator):
    up = torch.rand(x.shape, generator=generator) < 0.6
    return torch.where(up, x + start, x - start).clip(0, 1)


def own_dice(x, start, generator):
    sign = 2 * torch.randint(2, x.shape) - 1
    return (x + start * sign).clamp(0, 1)


def within_a_cube(x, start, generator):
    return (x + start * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)


def coins(x, generator):
    return 2 * torch.randint(2, x.shape, generator=generator) - 1


def start_turned_at_the_border(x, start, generator):
    move = start * coins(x, generator)
    out = x + move
    return torch.where((out < 0) | (out > 1), x - move, out)


def start_halted_at_the_border(x, start, generator):
    out = x + start * coins(x, generator)
    return torch.where((out < 0) | (out > 1), x, out)


def start_wrapped(x, start, generator):
    return (x + start * coins(x, generator)) % 1


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
        (switched(begin=lambda x, x0: x), "taken at x, not at x0"),
        (lambda m, x, *rest: method(m, x, *rest, onto=x), "adds the step to x"),
        (switched(pick=lambda a, b, p, k: worst_by_two_sorts(a, b, p, 1)), "hand on p or least"),
        (switched(pick=lambda a, b, p, k: worst_by_two_sorts(a, b, 3, k)), "hand on p or least"),
        (switched(sign=lambda g: -g.sign()), "other way"),
        (switched(sign=lambda g: g), "one by one|no step"),
        (switched(clip=False), "one by one"),
        (switched(clean=True), "clean images"),
        (switched(together=True), "one direction"),
        (switched(backward=True), "leaves gradients"),
        (switched(train=True), "changes the network"),
        (switched(skip=1), "each convolution"),
        (switched(pick=best_maps), "other maps"),
        (switched(pick=worst_by_accuracy_alone), "other maps"),
        (switched(pick=lambda a, b, p, k: worst_by_two_sorts(a, b, 64, k)), "other maps"),
        (lambda m, x, y, x0, e, p, k: method(m, x, y, x0, 8 / 255, p, k), "one by one"),
        (lambda *a: method(*a)[0], "two dicts"),
    ],
    "random_start": [
        (within_a_cube, "exactly start"),
        (one_sign_an_image, "sign"),
        (lambda x, s, g: (x + s).clamp(0, 1), "same way"),
        (own_dice, "generator"),
        (one_sign_a_row, "neighbors"),
        (one_sign_a_column, "neighbors"),
        (one_sign_a_pixel, "images, colors or neighbors"),
        (loaded_coin, "not fair"),
        (
            lambda x, s, g: x + s * (2 * torch.randint(2, x.shape, generator=g) - 1),
            r"leaves \[0, 1\]",
        ),
        (start_turned_at_the_border, "clip at the border"),
        (start_halted_at_the_border, "clip at the border"),
        (start_wrapped, "clip at the border"),
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
    "harm": [
        (lambda z, y: (1 - harm_at_once(z, y)[0], harm_at_once(z, y)[1]), "errors"),
        (lambda z, y: harm_at_once(z, y)[0], "two tensors"),
        (lambda z, y: harm_at_once(z, y)[::-1], "wrong order"),
        (lambda z, y: (harm_at_once(z, y)[0], harm_at_once(z, y)[1] * len(y)), "sums"),
        (lambda z, y: ((z.argmax(2) == y).float().mean(0),) * 2, "shape"),
        (lambda z, y: (harm_at_once(z, y)[0],) * 2, "wrong cross-entropy"),
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
