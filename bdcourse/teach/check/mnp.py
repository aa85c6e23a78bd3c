"""The exercise checks of lesson 07."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bdcourse.teach.check.core import (
    CheckFailed,
    call,
    close,
    fresh,
    guarded,
    need,
    passed,
    shaped,
)


@guarded
def folded(fn: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """folded(weight, gamma, var, eps) -> size of each channel with its BatchNorm."""
    name, g = "folded", fresh()
    w = torch.randn(7, 3, 3, 3, generator=g)
    gamma = torch.randn(7, generator=g)
    gamma[0] = -1 - gamma[0].abs()  # one is surely negative
    var = torch.rand(7, generator=g) + 0.1
    out = call(name, fn, w, gamma, var, 1e-3)
    shaped(name, out, (7,))
    need(float(out.min()) >= 0, name, "is negative where gamma is.", 2)
    length = w.double().flatten(1).abs().sum(1)
    scale = gamma.double().abs() / (var.double() + 1e-3).sqrt()
    need(
        not close(out, length * scale / w[0].numel()),
        name,
        "is a mean over the weights; the l1 norm is their sum.",
        1,
    )
    need(
        not close(out, w.double().flatten(1).norm(dim=1) * scale),
        name,
        "takes the l2 norm of the filter; this lesson uses l1.",
        1,
    )
    need(
        not close(out, length * gamma.double().abs() / (var.double() + 1e-3)),
        name,
        "divides by the variance; BatchNorm divides by the standard deviation.",
        3,
    )
    # Ten times the filter is a hundred times the variance: nothing may happen.
    ten = call(name, fn, 10 * w, gamma, 100 * var, 0.0)
    need(
        close(ten / call(name, fn, w, gamma, var, 0.0), torch.ones(7)),
        name,
        "changes when a filter and the deviation behind it both grow tenfold.",
        2,
    )
    need(
        not close(out, length * gamma.double().abs() / var.double().sqrt(), 1e-5),
        name,
        "leaves out eps; add it under the root as BatchNorm does.",
        3,
    )
    need(close(out, length * scale, 1e-5), name, "is not norm times factor.", 1)
    passed(name)


@guarded
def removal(fn: Callable[[Callable[[], Tensor], nn.BatchNorm2d, int], Tensor]) -> None:
    """removal(losses, bn, k) -> change of each loss without the scale of channel k."""
    name, g = "removal", fresh()
    bn = nn.BatchNorm2d(5).eval()
    with torch.no_grad():
        for t in (bn.weight, bn.bias):
            t.copy_(torch.rand(5, generator=g) + 0.5)
    x = torch.randn(6, 5, 4, 4, generator=g)
    to = torch.randn(5, generator=g)

    def losses() -> Tensor:
        return (bn(x).square().mean((2, 3)) @ to).detach()

    def without(k: int, shift: bool) -> Tensor:
        scale, bias = bn.weight.detach().clone(), bn.bias.detach().clone()
        scale[k] = 0
        bias[k] = 0 if shift else bias[k]
        mean, var = bn.running_mean, bn.running_var
        y = nn.functional.batch_norm(x, mean, var, scale, bias, False, 0.1, bn.eps)
        return (y.square().mean((2, 3)) @ to).detach() - losses()

    kept = {n: t.clone() for n, t in bn.state_dict().items()}
    for k in (3, 0):
        try:
            out = call(name, fn, losses, bn, k)
        except RuntimeError as e:
            if "grad" in str(e):
                raise CheckFailed(
                    f"{name}: parameters need gradients; work under torch.no_grad() (hint 2)"
                ) from None
            raise
        if isinstance(out, Tensor) and out.dim() == 0:
            raise CheckFailed(
                f"{name}: is one number; keep a change for each image, the error bar "
                "needs them (hint 1)"
            )
        shaped(name, out, (6,))
        need(
            all(torch.equal(kept[n], t) for n, t in bn.state_dict().items()),
            name,
            "does not put the BatchNorm back as it was.",
            2,
        )
        need(not close(out, losses()), name, "is the loss, not its change.", 1)
        want = without(k, False)
        need(
            not close(out, -want),
            name,
            "has the wrong sign: a channel that is needed must get a positive number.",
            1,
        )
        need(
            not close(out, without(k, True)),
            name,
            "zeroes the shift as well; a mask acts on the scale alone.",
            3,
        )
        need(close(out, want), name, "is not loss without minus loss with.", 1)
    passed(name)


@guarded
def ascent(fn: Callable[[Tensor, Tensor, float, float], Tensor]) -> None:
    """ascent(w, g, lr, decay) -> weights after a step up the loss that shrinks them."""
    name, rand = "ascent", fresh()
    w = torch.randn(4, 5, generator=rand)
    g = torch.randn(4, 5, generator=rand)
    lr, decay = 0.1, 0.3
    still = call(name, fn, w, torch.zeros_like(w), lr, decay)
    shaped(name, still, (4, 5))
    need(
        not close(still, w * (1 + lr * decay)),
        name,
        "lets the weights grow where the loss is flat: the decay has the wrong sign.",
        2,
    )
    need(
        not close(still, w),
        name,
        "does nothing where the loss is flat; the decay is missing.",
        1,
    )
    out = call(name, fn, w, g, lr, decay)
    need(
        not close(out, w - lr * (g + decay * w)),
        name,
        "goes down the loss; suppression goes up.",
        1,
    )
    need(
        not close(out, w + lr * g - decay * w),
        name,
        "shrinks by decay alone; the rate belongs to both parts.",
        3,
    )
    need(close(out, w + lr * (g - decay * w), 1e-5), name, "is not the SGD step.", 3)
    passed(name)


@guarded
def mask_loss(
    fn: Callable[[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor], float, float], Tensor],
) -> None:
    """mask_loss(preserving, suppressed, masks, sizes, beta, lam) -> J, one number."""
    name, g = "mask_loss", fresh()
    kept, gone = torch.rand(2, generator=g) + 0.5
    masks = [torch.rand(n, generator=g).requires_grad_() for n in (3, 6, 8)]
    sizes = [2 * torch.rand(n, generator=g) for n in (3, 6, 8)]
    beta, lam = 0.02 + 0.5 * float(torch.rand((), generator=g)), 0.3

    def j(penalty: Tensor | int, a: float = 1, b: float = beta) -> Tensor:
        return (a * kept + b * gone + lam * penalty).detach().double()

    rows = [(a * m).detach() for a, m in zip(sizes, masks, strict=True)]
    total = sum(r.sum() for r in rows)
    pull = [lam * a for a in sizes]  # before anybody changes the sizes
    out = call(name, fn, kept, gone, masks, sizes, beta, lam)
    shaped(name, out, ())
    need(
        not close(out, j(sum(r.mean() for r in rows)))
        and not close(out, j(torch.cat(rows).mean())),
        name,
        "takes a mean in the penalty: the push on a mask would depend on the width.",
        2,
    )
    need(
        not close(out, j(sum(m.detach().sum() for m in masks))),
        name,
        "leaves out the sizes: this is the uniform penalty.",
        1,
    )
    need(
        not close(
            out, j(sum((a * (1 - m)).detach().sum() for a, m in zip(sizes, masks, strict=True)))
        ),
        name,
        "rewards masks for staying at 1; the penalty pulls them down.",
        2,
    )
    need(
        not close(out, j(total, b=-beta)),
        name,
        "subtracts the suppressed term; masks are to lower it too.",
        1,
    )
    need(close(out, j(total), 1e-5), name, "is not the sum of the three terms.", 1)
    need(
        out.requires_grad,
        name,
        "is cut off from the masks; do not detach, and do not call item().",
        3,
    )
    out.backward()
    need(
        all(m.grad is not None and close(m.grad, p) for m, p in zip(masks, pull, strict=True)),
        name,
        "gives the masks a gradient other than lam times size.",
        3,
    )
    passed(name)


@guarded
def mask_step(
    fn: Callable[[Tensor, Tensor, Tensor, float, float], tuple[Tensor, Tensor]],
) -> None:
    """mask_step(m, v, g, lr, momentum) -> the masks and their speed, one step on."""
    name, rand = "mask_step", fresh()
    m = torch.rand(9, generator=rand)
    v, g = torch.randn(2, 9, generator=rand)
    m[0], m[1], g[0], g[1], v[0], v[1] = 1.0, 0.0, -5.0, 5.0, 0.0, 0.0
    lr, momentum = 0.1 + float(torch.rand((), generator=rand)) / 2, 0.9
    out = call(name, fn, m, v, g, lr, momentum)
    if not (isinstance(out, tuple) and len(out) == 2):
        raise CheckFailed(f"{name}: must return two tensors, m and v (hint 1)")
    after, speed = out
    shaped(name, after, (9,))
    shaped(name, speed, (9,))
    want = momentum * v + g
    need(
        not close(speed, momentum * v - lr * g) and not close(speed, lr * want),
        name,
        "puts the rate into the speed; here it multiplies the speed afterwards.",
        2,
    )
    need(not close(speed, g), name, "forgets the old speed.", 2)
    need(
        not close(speed, momentum * v + (1 - momentum) * g),
        name,
        "averages the gradient; PyTorch's momentum adds it in full.",
        2,
    )
    need(close(speed, want, 1e-5), name, "has another speed than momentum v + g.", 2)
    need(
        not close(after, m - lr * want),
        name,
        "lets a mask leave [0, 1]; clamp it.",
        3,
    )
    need(
        not close(after, (m + lr * want).clamp(0, 1)),
        name,
        "steps up the gradient.",
        2,
    )
    need(
        close(after, (m - lr * want).clamp(0, 1), 1e-5),
        name,
        "has other masks than clamp(m - lr v, 0, 1).",
        2,
    )
    passed(name)
