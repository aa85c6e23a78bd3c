"""Right and wrong answers to the exercises of lesson 07, for test_check.py."""

import copy

import torch
import torch.nn.functional as F

from bdcourse.defenses import masks_forward, masks_ones


def folded(w, gamma, var, eps):
    return w.flatten(1).abs().sum(1) * gamma.abs() / (var + eps).sqrt()


def folded_into_the_filter(w, gamma, var, eps):
    return (w * (gamma * (var + eps).rsqrt()).view(-1, 1, 1, 1)).abs().sum((1, 2, 3))


@torch.no_grad()
def removal(losses, bn, k):
    before, kept = losses(), bn.weight[k].item()
    bn.weight[k] = 0
    after = losses()
    bn.weight[k] = kept
    return after - before


def removal_by_copy(losses, bn, k):
    before, kept = losses(), bn.weight.data
    bn.weight.data = torch.where(torch.arange(len(kept)) == k, 0.0, kept)
    change = losses() - before
    bn.weight.data = kept
    return change


@torch.no_grad()
def removal_for_good(losses, bn, k):
    before = losses()
    bn.weight[k] = 0
    return losses() - before


@torch.no_grad()
def removal_with_shift(losses, bn, k):
    kept = bn.bias[k].item()
    before = losses()
    scale = bn.weight[k].item()
    bn.bias[k], bn.weight[k] = 0, 0
    after = losses()
    bn.bias[k], bn.weight[k] = kept, scale
    return after - before


@torch.no_grad()
def removal_untrainable(losses, bn, k):
    bn.weight.requires_grad_(False)
    return removal(losses, bn, k)


def removal_without_no_grad(losses, bn, k):
    bn.weight[k] = 0
    return losses()


def forget(
    model,
    x,
    y,
    lr,
    stop,
    most,
    generator,
    *,
    sign=-1,
    momentum=0.9,
    decay=5e-4,
    clip=20,
    train=True,
    batch=128,
    copied=True,
    shuffled=True,
    own=True,
    looks=True,
    late=False,
    ends=True,
    anew=True,
    enough=float.__le__,
    judged="all",
    split=None,
    once=False,
):
    """The answer of the lesson, with a switch for everything that can go wrong."""
    net = copy.deepcopy(model) if copied else model
    opt = torch.optim.SGD(net.parameters(), lr, momentum, weight_decay=decay)
    generator = generator if own is True else own or None
    orders = [torch.randperm(len(x), generator=generator) for _ in range(most if anew else 1)]
    for k in range(most):
        net.train(train and not (once and k))
        order = orders[k] if anew else orders[0]
        order = order if shuffled else torch.arange(len(x))
        for i in split(order) if split else order.tensor_split(-(-len(x) // batch)):
            opt.zero_grad()
            loss = sign * F.cross_entropy(net(x[i]), y[i])
            if late:
                torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            loss.backward()
            if clip and not late:
                torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            opt.step()
            if judged == "each batch" and right(net, x, y) <= stop:
                return net
            net.train(train and not (once and k))
        if judged == "train mode":
            with torch.no_grad():
                if (net(x).argmax(1) == y).double().mean() <= stop:
                    break
            continue
        of = i if judged == "last batch" else slice(None)
        if looks and enough(right(net, x[of], y[of]), stop):
            break
    return net.eval() if ends else net.train()


def right(net, x, y):
    with torch.no_grad():
        return float((net.eval()(x).argmax(1) == y).double().mean())


def forget_if_it_reads(model, x, y, lr, stop, *others):
    """Looks before the first epoch."""
    if right(model, x, y) <= stop:
        return copy.deepcopy(model)
    return forget(model, x, y, lr, stop, *others)


def forget_with_a_loader(model, x, y, lr, stop, most, generator):
    net, n = copy.deepcopy(model), -(-len(x) // 128)
    opt = torch.optim.SGD(net.parameters(), lr, 0.9, weight_decay=5e-4, maximize=False)
    for _ in range(most):
        net.train()
        for i in reversed(torch.randperm(len(x), generator=generator).chunk(n)):
            net.zero_grad()
            torch.neg(F.cross_entropy(net(x[i]), y[i])).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 20)
            opt.step()
        net.eval()
        with torch.no_grad():
            parts = zip(x.split(7), y.split(7), strict=True)
            hits = sum(int((net(a).argmax(1) == b).sum()) for a, b in parts)
        if hits / len(x) <= stop:
            return net
    return net


def forget_by_hand(model, x, y, lr, stop, most, generator):
    net = copy.deepcopy(model)
    speeds = [torch.zeros_like(p) for p in net.parameters()]
    right, epoch = 1.0, 0
    while epoch < most and (epoch == 0 or right > stop):
        net.train()
        rows = torch.randperm(len(x), generator=generator)
        for i in torch.chunk(rows, (len(x) + 127) // 128):
            loss = net(x[i]).log_softmax(1).gather(1, y[i, None]).mean()  # minus cross-entropy
            slopes = torch.autograd.grad(loss, list(net.parameters()))
            length = torch.cat([s.flatten() for s in slopes]).norm()
            cut = min(1.0, 20 / (float(length) + 1e-6))
            with torch.no_grad():
                for p, v, s in zip(net.parameters(), speeds, slopes, strict=True):
                    v.mul_(0.9).add_(cut * s + 5e-4 * p)
                    p.sub_(lr * v)
        net.eval()
        with torch.no_grad():
            right = float((net(x).argmax(1) == y).float().mean())
        epoch += 1
    return net


def learn_masks(
    model,
    forgot,
    x,
    y,
    sizes,
    weights,
    steps,
    lr,
    batch,
    generator,
    *,
    momentum=0.9,
    clamp=True,
    size=lambda a: a,
    signs=(1, 1, 1),
    swapped=False,
    ahead=False,
    train=False,
    every=False,
    own=True,
    apart=False,
    plain=True,
    fixed=False,
    again=False,
):
    """The answer of the lesson, with a switch for everything that can go wrong."""
    generator = generator if own is True else own or None
    m = masks_ones(model)
    v = {n: torch.zeros_like(t) for n, t in m.items()}
    nets = (forgot, model) if swapped else (model, forgot)
    model.train(train)
    first = torch.randperm(len(x), generator=generator)[:batch]
    for k in range(steps):
        i = torch.randperm(len(x), generator=generator)[:batch] if k or not fixed else first
        i = first if fixed else torch.arange(len(x)) if every else i
        i = torch.randint(len(x), (batch,), generator=generator) if again else i
        j = torch.randperm(len(x), generator=generator)[:batch] if apart else i
        leaves = {n: t.requires_grad_() for n, t in m.items()}
        kept = F.cross_entropy(masks_forward(nets[0], leaves, x[i]), y[i])
        gone = F.cross_entropy(masks_forward(nets[1], leaves, x[j]), y[j])
        penalty = sum((size(sizes[n]) * t).sum() for n, t in leaves.items())
        parts = zip(signs, weights, (kept, gone, penalty), strict=True)
        total = sum(s * w * t for s, w, t in parts)
        if ahead:
            total.backward()
            slopes = [t.grad for t in leaves.values()]
        else:
            slopes = torch.autograd.grad(total, list(leaves.values()))
        for n, g in zip(m, slopes, strict=True):
            v[n] = momentum * v[n] + g
            m[n] = leaves[n].detach() - lr * v[n]
            m[n] = m[n].clamp(0, 1) if clamp else m[n]
    return m if plain else {n: t.requires_grad_() for n, t in m.items()}


def learn_masks_with_sizes_changed(
    model, forgot, x, y, sizes, weights, steps, lr, batch, generator
):
    for n in sizes:
        sizes[n] *= weights[2]
    return learn_masks(model, forgot, x, y, sizes, (*weights[:2], 1), steps, lr, batch, generator)


def learn_masks_walking(model, forgot, x, y, sizes, weights, steps, lr, batch, generator):
    """Walks through epochs; the last batch of each is short."""
    m, rows = masks_ones(model), ()
    v = {n: torch.zeros_like(t) for n, t in m.items()}
    for _ in range(steps):
        rows = rows or torch.randperm(len(x), generator=generator).split(batch)
        i, rows = rows[0], rows[1:]
        leaves = {n: t.detach().requires_grad_() for n, t in m.items()}
        total = weights[2] * sum((sizes[n] * t).sum() for n, t in leaves.items())
        for net, w in zip((model, forgot), weights[:2], strict=True):
            total = total + w * F.cross_entropy(masks_forward(net, leaves, x[i]), y[i])
        slopes = torch.autograd.grad(total, list(leaves.values()))
        for n, g in zip(m, slopes, strict=True):
            m[n], v[n] = mask_step(leaves[n].detach(), v[n], g, lr, 0.9)
    return m


def learn_masks_by_optimizer(model, forgot, x, y, sizes, weights, steps, lr, batch, generator):
    m = {n: torch.nn.Parameter(torch.ones_like(a)) for n, a in sizes.items()}
    opt = torch.optim.SGD(m.values(), lr, momentum=0.9)

    def through(net, rows):
        scaled = {f"{n}.weight": t * net.get_submodule(n).weight.detach() for n, t in m.items()}
        return torch.func.functional_call(net, scaled, (x[rows],))

    for _ in range(steps):
        rows = torch.randperm(len(x), generator=generator)[:batch]
        a, b = (
            -through(n, rows).log_softmax(1)[range(len(rows)), y[rows]].mean()
            for n in (model, forgot)
        )
        push = torch.cat([sizes[n] for n in m]) @ torch.cat(list(m.values()))
        total = weights[0] * a + weights[1] * b + weights[2] * push
        for t, g in zip(m.values(), torch.autograd.grad(total, list(m.values())), strict=True):
            t.grad = g
        opt.step()
        with torch.no_grad():
            for t in m.values():
                t.clamp_(0, 1)
    return {n: t.detach() for n, t in m.items()}


def climbs(**wrong):
    return lambda *args: forget(*args, **wrong)


def learns(**wrong):
    return lambda *args: learn_masks(*args, **wrong)


def mask_step(m, v, g, lr, momentum):
    v = momentum * v + g
    return (m - lr * v).clamp(0, 1), v


def mask_step_by_optimizer(m, v, g, lr, momentum):
    p = torch.nn.Parameter(m.clone())
    opt = torch.optim.SGD([p], lr, momentum)
    opt.state[p]["momentum_buffer"] = v.clone()
    p.grad = g
    opt.step()
    return p.detach().clamp(0, 1), opt.state[p]["momentum_buffer"]


def speed_with_rate(m, v, g, lr, momentum):
    v = momentum * v - lr * g
    return (m + v).clamp(0, 1), v


def speed_cut(m, v, g, lr, momentum):
    v = (momentum * v + g).clamp(0, 1)
    return (m - lr * v).clamp(0, 1), v


def learn_masks_on_copies(model, forgot, x, y, sizes, weights, steps, lr, batch, generator):
    """Draws the other end of an order, on copies of both networks."""
    nets = [copy.deepcopy(n).requires_grad_(False) for n in (model, forgot)]
    m = masks_ones(model)
    v = dict.fromkeys(m, 0)
    for _ in range(steps):
        i = torch.randperm(len(x), generator=generator).flip(0)[:batch]
        leaves = {n: t.clone().requires_grad_() for n, t in m.items()}
        total = weights[2] * sum((sizes[n] * t).sum() for n, t in leaves.items())
        for net, w in zip(nets, weights[:2], strict=True):
            total = total + w * F.cross_entropy(masks_forward(net, leaves, x[i]), y[i])
        total.backward()
        v = {n: 0.9 * v[n] + t.grad for n, t in leaves.items()}
        m = {n: (t - lr * v[n]).clamp(0, 1) for n, t in m.items()}
    return m


RIGHT: dict = {
    "folded": [folded, folded_into_the_filter],
    "removal": [removal, removal_by_copy],
    "forget": [forget, forget_by_hand, forget_with_a_loader],
    "learn_masks": [learn_masks, learn_masks_by_optimizer, learn_masks_on_copies],
    "mask_step": [mask_step, mask_step_by_optimizer],
}


def own_seed(answer):
    return lambda *args: answer(own=torch.Generator().manual_seed(0))(*args)


WRONG: dict = {
    "folded": [
        (lambda w, g, v, e: w.flatten(1).abs().sum(1) * g / (v + e).sqrt(), "negative"),
        (lambda w, g, v, e: w.flatten(1).abs().sum(1), "both grow tenfold"),
        (lambda w, g, v, e: folded(w, g, v * v, 2 * v * e + e * e), "deviation"),
        (lambda w, g, v, e: folded(w, g, v, 0), "leaves out eps"),
        (lambda w, g, v, e: folded(w, g, (v.sqrt() + e) ** 2, 0), "to the deviation.*hint 3"),
        (lambda w, g, v, e: folded(w, g, v, e) / w[0].numel(), "mean"),
        (lambda w, g, v, e: w.flatten(1).norm(dim=1) * g.abs() / (v + e).sqrt(), "l2"),
    ],
    "removal": [
        (removal_for_good, "put the BatchNorm back"),
        (removal_with_shift, "shift"),
        (removal_without_no_grad, "no_grad"),
        (removal_untrainable, "no longer be trained"),
        (lambda f, bn, k: -removal(f, bn, k), "sign"),
        (lambda f, bn, k: removal(f, bn, k).abs(), "absolute values"),
        (lambda f, bn, k: removal(f, bn, k).mean(), "one number"),
        (lambda f, bn, k: f() + removal(f, bn, k), "loss without minus loss with"),
        (lambda f, bn, k: f(), "not its change"),
    ],
    "forget": [
        (climbs(sign=1), "goes down"),
        (climbs(decay=0), "leaves out the weight decay"),
        (climbs(momentum=0), "without momentum"),
        (climbs(train=False), "eval mode"),
        (climbs(copied=False), "not a copy"),
        (climbs(clip=None), "longer than 20"),
        (climbs(late=True), "before it is there"),
        (climbs(batch=300), "batches of"),
        (climbs(batch=60), "batches of"),
        (climbs(split=lambda o: o.tensor_split(len(o) // 128 + 1)), "from 256 images"),
        (climbs(split=lambda o: o.split(100)), "from 256 images"),
        (climbs(once=True), "after the first epoch.*hint 2"),
        (climbs(judged="train mode"), "judge in eval mode.*hint 2"),
        (climbs(looks=False), "goes on although"),
        (climbs(ends=False), "in train mode"),
        (climbs(own=False), "without the generator"),
        (own_seed(climbs), "without the generator"),
        (climbs(shuffled=False), "does not shuffle"),
        (climbs(anew=False), "one order for all epochs"),
        (climbs(judged="each batch"), "ends within an epoch"),
        (climbs(judged="last batch"), "accuracy on all of x"),
        (climbs(enough=float.__lt__), "equals `stop`"),
        (forget_if_it_reads, "does not climb at all"),
        (lambda m, x, y, lr, s, k, g: forget(m, x, y, lr, s, 1, g), "ends before"),
    ],
    "learn_masks": [
        (learns(momentum=0), "forgets the speed"),
        (learns(clamp=False), "leave"),
        (learns(size=torch.ones_like), "leaves the sizes out"),
        (learns(size=lambda a: a / a.numel()), "a mean"),
        (learns(signs=(1, -1, 1)), "climbs the loss of the copy"),
        (learns(swapped=True), "wrong one of the two"),
        (learns(ahead=True), "leaves gradients"),
        (learns(train=True), "changes the network"),
        (learns(every=True), "different images a step"),
        (learns(again=True), "different images a step"),
        (learns(fixed=True), "same images in every step"),
        (learns(apart=True), "two networks different images"),
        (learns(own=False), "without the generator"),
        (own_seed(learns), "without the generator"),
        (learn_masks_with_sizes_changed, "changes the sizes"),
        (learn_masks_walking, "in its first step only"),
        (learns(plain=False), "still want a gradient"),
        (lambda m, *a: {n: t.double() for n, t in masks_ones(m).items()}, "does not move"),
    ],
    "mask_step": [
        (lambda m, v, g, lr, mu: (m - lr * (mu * v + g), mu * v + g), "clamp"),
        (speed_with_rate, "rate into the speed"),
        (
            lambda m, v, g, lr, mu: ((m - (mu * v + lr * g)).clamp(0, 1), mu * v + lr * g),
            "rate into the speed",
        ),
        (lambda m, v, g, lr, mu: mask_step(m, v, g, lr, 0.9), "whatever the momentum"),
        (lambda m, v, g, lr, mu: ((m - lr * g).clamp(0, 1), g), "forgets"),
        (
            lambda m, v, g, lr, mu: mask_step(m, v, (1 - mu) * g, lr, mu),
            "adds it in full",
        ),
        (lambda m, v, g, lr, mu: mask_step(m, v, g, -lr, mu), "steps up"),
        (speed_cut, "cuts the speed"),
        (lambda m, v, g, lr, mu: mask_step(m, v, g, lr, mu)[0], "two tensors"),
    ],
}
