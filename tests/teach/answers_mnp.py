"""Right and wrong answers to the exercises of lesson 07, for test_check.py."""

import torch


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


def removal_without_no_grad(losses, bn, k):
    bn.weight[k] = 0
    return losses()


def mask_loss(kept, gone, masks, sizes, beta, lam):
    penalty = sum((a * m).sum() for a, m in zip(sizes, masks, strict=True))
    return kept + beta * gone + lam * penalty


def mask_loss_in_one(kept, gone, masks, sizes, beta, lam):
    return kept + torch.cat(list(masks)) @ torch.cat(list(sizes)) * lam + gone * beta


def penalized(reduce):
    """The right sum with another penalty."""

    def answer(kept, gone, masks, sizes, beta, lam):
        return kept + beta * gone + lam * reduce(masks, sizes)

    return answer


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


RIGHT: dict = {
    "folded": [folded, folded_into_the_filter],
    "removal": [removal, removal_by_copy],
    "ascent": [
        lambda w, g, lr, decay: w + lr * (g - decay * w),
        lambda w, g, lr, decay: (1 - lr * decay) * w + lr * g,
    ],
    "mask_loss": [mask_loss, mask_loss_in_one],
    "mask_step": [mask_step, mask_step_by_optimizer],
}

WRONG: dict = {
    "folded": [
        (lambda w, g, v, e: w.flatten(1).abs().sum(1) * g / (v + e).sqrt(), "negative"),
        (lambda w, g, v, e: w.flatten(1).abs().sum(1), "both grow tenfold"),
        (lambda w, g, v, e: folded(w, g, v * v, 2 * v * e + e * e), "deviation"),
        (lambda w, g, v, e: folded(w, g, v, 0), "eps"),
        (lambda w, g, v, e: folded(w, g, v, e) / w[0].numel(), "mean"),
        (lambda w, g, v, e: w.flatten(1).norm(dim=1) * g.abs() / (v + e).sqrt(), "l2"),
    ],
    "removal": [
        (removal_for_good, "put the BatchNorm back"),
        (removal_with_shift, "shift"),
        (removal_without_no_grad, "no_grad"),
        (lambda f, bn, k: -removal(f, bn, k), "sign"),
        (lambda f, bn, k: removal(f, bn, k).mean(), "one number"),
        (lambda f, bn, k: f() + removal(f, bn, k), "loss without minus loss with"),
        (lambda f, bn, k: f(), "not its change"),
    ],
    "ascent": [
        (lambda w, g, lr, d: w + lr * (g + d * w), "grow"),
        (lambda w, g, lr, d: w - lr * (g + d * w), "goes down"),
        (lambda w, g, lr, d: w + lr * g, "missing"),
        (lambda w, g, lr, d: w + lr * g - d * w, "rate belongs to both"),
    ],
    "mask_loss": [
        (
            penalized(lambda m, s: sum((a * b).mean() for a, b in zip(m, s, strict=True))),
            "mean",
        ),
        (
            penalized(lambda m, s: (torch.cat(list(m)) * torch.cat(list(s))).mean()),
            "mean",
        ),
        (penalized(lambda m, s: sum(a.sum() for a in m)), "uniform penalty"),
        (
            penalized(lambda m, s: sum((b - a * b).sum() for a, b in zip(m, s, strict=True))),
            "rewards",
        ),
        (lambda k, g, m, s, b, lam: mask_loss(k, g, m, s, -b, lam), "subtracts"),
        (lambda *a: mask_loss(*a).detach(), "cut off"),
        (lambda *a: mask_loss(*a).item(), "not a tensor"),
    ],
    "mask_step": [
        (lambda m, v, g, lr, mu: (m - lr * (mu * v + g), mu * v + g), "clamp"),
        (speed_with_rate, "rate into the speed"),
        (lambda m, v, g, lr, mu: ((m - lr * g).clamp(0, 1), g), "forgets"),
        (
            lambda m, v, g, lr, mu: mask_step(m, v, (1 - mu) * g, lr, mu),
            "adds it in full",
        ),
        (lambda m, v, g, lr, mu: mask_step(m, v, g, -lr, mu), "steps up"),
        (lambda m, v, g, lr, mu: mask_step(m, v, g, lr, mu)[0], "two tensors"),
    ],
}
