"""The exercise checks of lesson 08b."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bdcourse.teach.check.core import (
    CheckFailed,
    call,
    close,
    fresh,
    guarded,
    need,
    number,
    passed,
    shaped,
)

Product = Callable[[Tensor], Tensor]


def _symmetric(eigenvalues: Tensor, g: torch.Generator) -> Tensor:
    """A dense matrix with these eigenvalues."""
    n = len(eigenvalues)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64))
    return q @ torch.diag(eigenvalues.double()) @ q.T


@guarded
def trace_draws(fn: Callable[[Product, int, int, torch.Generator], Tensor]) -> None:
    """trace_draws(product, p, draws, generator) -> v . A v for random signs v."""
    name, g = "trace_draws", fresh()
    a = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    shapes: list[tuple[int, ...]] = []

    def by(matrix: Tensor) -> Product:
        def product(v: Tensor) -> Tensor:
            shapes.append(tuple(v.shape))
            need(
                v.is_floating_point(),
                name,
                "draws whole numbers; products need floats.",
                1,
            )
            need(
                v.shape == matrix.shape[:1],
                name,
                f"hands product a tensor of shape {tuple(v.shape)}; it takes one vector.",
                2,
            )
            return matrix.to(v) @ v

        return product

    def draw(matrix: Tensor, p: int, n: int, seed: int) -> Tensor:
        source = torch.Generator().manual_seed(seed)
        out = call(name, fn, by(matrix), p, n, source)
        shaped(name, out, (n,), hint=2)
        return out.double()

    seed = int(torch.randint(10**9, (), generator=g))
    out = draw(a, 2, 60, seed)
    need(bool(shapes), name, "never calls product.", 2)
    need(
        torch.equal(out, draw(a, 2, 60, seed)),
        name,
        "does not draw from the generator that it is given.",
        1,
    )
    among = {round(float(v), 4) for v in out}
    need(
        not among <= {0.0, 2.0, 3.0, 7.0} or among <= {3.0, 7.0},
        name,
        "draws zeros and ones; signs are -1 and 1.",
        1,
    )
    need(
        not among <= {1.5, 3.5},
        name,
        "is a mean over the entries of v * Av; it is their sum.",
        3,
    )
    need(
        not among <= {-7.0, -1.0, 1.0, 7.0} or among == {7.0},
        name,
        "adds up A v; multiply by v before.",
        3,
    )
    each = torch.arange(1, len(out) + 1) * out
    each = torch.cat([each[:1], each.diff()])
    need(
        {round(float(v), 3) for v in each} != {3.0, 7.0},
        name,
        "is a running mean; return each draw by itself.",
        2,
    )
    need(
        len(among) < 8 or not close(out.mean(), torch.tensor(5.0), 0.5),
        name,
        "draws normal numbers; random signs have less variance.",
        1,
    )
    need(among <= {3.0, 7.0}, name, "is not v . A v for signs v.", 3)
    need(
        len(among) == 2,
        name,
        "is always the same; every draw has a v, and every entry a sign, of its own.",
        1,
    )
    need(
        not torch.equal(out, draw(a, 2, 60, seed + 1)),
        name,
        "has a generator of its own; draw from the one that it is given.",
        1,
    )
    wide = _symmetric(torch.randn(6, generator=g), g)
    out = draw(wide, 6, 300, seed)
    off = wide - torch.diag(wide.diagonal())
    error = (2 * off.square().sum() / 300).sqrt()
    need(
        bool((out.mean() - wide.trace()).abs() < 7 * error),
        name,
        "has another mean than the trace.",
        1,
    )
    passed(name, "signs from the generator, one value a draw, their mean the trace")


@guarded
def top_eigenvalue(fn: Callable[[Product, Tensor, int], float]) -> None:
    """top_eigenvalue(product, v, steps) -> eigenvalue of largest absolute value."""
    name, g = "top_eigenvalue", fresh()

    def near(value: float, want: float) -> bool:
        return math.isclose(value, want, rel_tol=1e-3)

    for sign in (1.0, -1.0):
        n = 8
        calls: list[Tensor] = []
        rest = 200 * torch.rand(n - 1, generator=g) - 100
        top = sign * (300 + 200 * float(torch.rand((), generator=g)))
        a = _symmetric(torch.cat([torch.tensor([top]), rest]), g).float()

        def product(v: Tensor, a=a, calls=calls) -> Tensor:
            calls.append(v)
            return a.to(v) @ v

        start = 4 * torch.randn(n, generator=g)
        out = number(name, call(name, fn, product, start, 60))
        need(bool(calls), name, "never calls product.", 1)
        need(
            math.isfinite(out),
            name,
            "is not finite; make v a unit vector in every step.",
            1,
        )
        need(
            abs(out) < 1e8,
            name,
            "grows with every step; make v a unit vector each time.",
            1,
        )
        need(
            sign > 0 or not near(out, -top),
            name,
            "has lost the sign: |A v| is a length, v . A v is the eigenvalue.",
            3,
        )
        need(
            (len(calls) > 30 or near(out, top)) and len(calls) <= 61,
            name,
            f"calls product {len(calls)} times in 60 steps.",
            2,
        )
        first = float(start @ a @ start / (start @ start))
        need(
            not near(out, first),
            name,
            "still looks at the first v; go on with A v.",
            2,
        )
        need(
            near(out, top),
            name,
            f"gives {out:.4g}, and the eigenvalue is {top:.4g}.",
            3,
        )
    passed(name, "the eigenvalue of largest size, with its sign, found from any start")


class _Bent(nn.Module):
    """A small smooth classifier with a BatchNorm, in float64, left in train mode."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
        self.read = nn.Linear(8, 3)
        with torch.no_grad():
            for w in self.parameters():
                w.copy_(0.5 * torch.randn(w.shape, generator=generator))
            self.norm.weight.copy_(1 + 0.5 * torch.rand(2, generator=generator))
            self.norm.get_buffer("running_mean").copy_(torch.randn(2, generator=generator))
            self.norm.get_buffer("running_var").copy_(1 + torch.rand(2, generator=generator))
        self.to(torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.norm(self.conv(x)).tanh().flatten(1))


Batches = list[tuple[Tensor, Tensor]]


def _hessians(model: nn.Module, batches: Batches) -> Tensor:
    """The dense Hessians of the summed loss of each batch."""
    w = list(model.parameters())
    eye = torch.eye(sum(v.numel() for v in w), dtype=torch.float64)
    found = []
    for x, y in batches:
        loss = F.cross_entropy(model(x), y, reduction="sum")
        g = torch.cat([t.flatten() for t in torch.autograd.grad(loss, w, create_graph=True)])
        rows = torch.autograd.grad(g, w, eye, is_grads_batched=True, materialize_grads=True)
        found.append(torch.cat([r.flatten(1) for r in rows], 1))
    return torch.stack(found)


def _slips(model: nn.Module, batches: Batches, parts: Tensor) -> dict[str, Tensor]:
    """What slips make of the Hessian of the mean loss.

    Args:
        parts: the Hessians of the summed loss of each batch in eval mode.
    """
    lengths = torch.tensor([len(x) for x, _ in batches])
    n, means = int(lengths.sum()), parts / lengths[:, None, None]
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    normalized = _hessians(model.train(), batches)
    model.load_state_dict(kept)
    weights = torch.cat([torch.full((w.numel(),), w.dim() > 1) for w in model.parameters()])
    return {
        "mode": normalized.sum(0) / n,
        "means": means.mean(0),
        "added": means.sum(0),
        "sum": parts.sum(0),
        "first": means[0],
        "weights": parts.sum(0)[weights][:, weights] / n,
    }


def _largest(matrix: Tensor) -> tuple[float, float]:
    """The eigenvalue of largest absolute value, and how near the next one comes."""
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    values = values[values.abs().argsort(descending=True)]
    return float(values[0]), float(values[1].abs() / values[0].abs())


BENT = {
    "mode": ("normalizes by each batch; measure in eval mode.", 1),
    "means": ("counts the short last batch like a whole one; divide by all images.", 2),
    "added": ("adds up means of batches; divide by the number of all images.", 2),
    "sum": ("is the curvature of a sum; the loss is a mean over all images.", 2),
    "first": ("looks at the first batch only.", 2),
}


@guarded
def sharpest(fn: Callable[..., float]) -> None:
    """sharpest(model, x, y, batch, steps, generator) -> top eigenvalue of the Hessian."""
    name, g = "sharpest", fresh()
    n, batch, steps = 10, 4, 100
    for _ in range(200):
        model = _Bent(g)
        x = torch.randn(n, 1, 4, 4, generator=g, dtype=torch.float64)
        y = torch.randint(3, (n,), generator=g)
        batches = list(zip(x.split(batch), y.split(batch), strict=True))
        parts = _hessians(model.eval(), batches)
        want, ratio = _largest(parts.sum(0) / n)
        if want < 0 or not 0.4 < ratio < 0.8:
            continue
        # Slips have to arrive within the steps, too, and somewhere else.
        slips = {k: _largest(bent) for k, bent in _slips(model, batches, parts).items()}
        found = {slip: top for slip, (top, _) in slips.items()}
        if max(second for _, second in slips.values()) > 0.95:
            continue
        if min(abs(v / want - 1) for v in found.values()) > 0.01:
            break
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    seed = int(torch.randint(10**6, (), generator=g))

    def ask(count: int, seed: int = seed) -> float:
        model.train()
        source = torch.Generator().manual_seed(seed)
        try:
            return number(name, call(name, fn, model, x, y, batch, count, source))
        except RuntimeError as e:
            if "does not require grad" in str(e):
                raise CheckFailed(
                    f"{name}: the gradient is cut off; create_graph=True keeps it (hint 3)"
                ) from None
            raise

    out = ask(steps)

    def near(value: float) -> bool:
        return math.isclose(out, value, rel_tol=2e-3)

    need(math.isfinite(out), name, "is not finite.", 4)
    same = {k: torch.equal(v, kept[k]) for k, v in model.state_dict().items()}
    need(not near(found["mode"]), name, *BENT["mode"])
    need(
        all(same[k] for k in same if "running" in k or "tracked" in k),
        name,
        "lets BatchNorm learn from the images; measure in eval mode.",
        1,
    )
    need(all(same.values()), name, "changes the weights.", 3)
    need(
        all(w.grad is None for w in model.parameters()),
        name,
        "leaves gradients behind in .grad; use torch.autograd.grad.",
        3,
    )
    for slip, (symptom, hint) in BENT.items():
        need(not near(found[slip]), name, symptom, hint)
    need(not near(found["weights"]), name, "leaves out biases and BatchNorm's scales.", 4)
    need(not near(-want), name, "has lost the sign.", 4)
    slope = torch.zeros(())
    for a, b in batches:
        loss = F.cross_entropy(model.eval()(a), b, reduction="sum") / n
        slope = slope + torch.cat(
            [t.flatten() for t in torch.autograd.grad(loss, list(model.parameters()))]
        )
    need(
        not near(float(slope.square().sum())) and not near(float(slope.norm())),
        name,
        "knows only the gradient; differentiate g . v once more.",
        3,
    )
    need(
        near(want),
        name,
        f"gives {out:.4g}, and the top eigenvalue is {want:.4g}.",
        4,
    )
    need(
        not math.isclose(ask(1), want, rel_tol=1e-3),
        name,
        "takes no notice of `steps`.",
        4,
    )
    need(
        math.isclose(ask(2), ask(2), rel_tol=1e-6) and ask(1) != ask(1, seed + 1),
        name,
        "starts from a vector that is not drawn from the generator.",
        4,
    )
    passed(name, "eval mode, every image once, all weights; the exact eigenvalue in float64")


@guarded
def rescaled(
    fn: Callable[[nn.Module, nn.Module, float], tuple[nn.Module, nn.Module]],
) -> None:
    """rescaled(conv, norm, c) -> copies with c times the weights, the same outputs."""
    name, g = "rescaled", fresh()
    for bias, c in ((False, 10.0), (True, 3.0)):
        conv, norm = nn.Conv2d(2, 4, 3, bias=bias), nn.BatchNorm2d(4)
        with torch.no_grad():
            for t in (*conv.parameters(), *norm.parameters()):
                t.copy_(torch.randn(t.shape, generator=g))
            norm.get_buffer("running_mean").copy_(torch.randn(4, generator=g))
            norm.get_buffer("running_var").copy_(0.5 + torch.rand(4, generator=g))
        conv, norm = conv.to(torch.float64).eval(), norm.to(torch.float64).eval()
        x = torch.randn(5, 2, 6, 6, generator=g, dtype=torch.float64)
        before = norm(conv(x)).detach()
        kept = [v.clone() for m in (conv, norm) for v in m.state_dict().values()]
        out = call(name, fn, conv, norm, c)
        pair = isinstance(out, (tuple, list)) and len(out) == 2
        if not pair or not all(isinstance(m, nn.Module) for m in out):
            raise CheckFailed(f"{name}: must return the two layers, (conv, norm) (hint 1)")
        now = [v for m in (conv, norm) for v in m.state_dict().values()]
        need(
            all(torch.equal(a, b) for a, b in zip(now, kept, strict=True)),
            name,
            "changes the layers that it is given; work on copies.",
            1,
        )
        wide, after = out[0].eval(), out[1].eval()
        need(
            not close(wide.weight, conv.weight),
            name,
            "leaves the weights of the convolution as they are.",
            1,
        )
        need(
            close(wide.weight, c * conv.weight),
            name,
            "does not multiply the weights of the convolution by c.",
            1,
        )
        for part in ("weight", "bias"):
            need(
                close(getattr(after, part), getattr(norm, part)),
                name,
                "changes BatchNorm's scale or shift; its statistics are to follow.",
                2,
            )
        mean, var = (after.get_buffer(f"running_{k}") for k in ("mean", "var"))
        old_mean, old_var = (norm.get_buffer(f"running_{k}") for k in ("mean", "var"))
        need(
            not close(mean, old_mean) or not close(var, old_var),
            name,
            "leaves BatchNorm's statistics as they were; they follow the weights.",
            2,
        )
        need(
            not close(var, c * old_var),
            name,
            "multiplies the variance by c; what happens to a square?",
            3,
        )
        need(
            not close(mean, c * c * old_mean),
            name,
            "multiplies the mean by the square of c.",
            3,
        )
        if conv.bias is not None:
            need(
                not close(wide.bias, conv.bias) or close(after(wide(x)), before, 1e-3),
                name,
                "forgets the bias of the convolution.",
                3,
            )
        need(
            close(after(wide(x)), before, 1e-3),
            name,
            "gives other outputs than before; mean and variance both follow.",
            3,
        )
    passed(name, "c times the weights, the same outputs, the given layers untouched")
