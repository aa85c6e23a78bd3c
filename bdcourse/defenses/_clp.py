"""CLP: channel-Lipschitzness pruning, a repair that needs no data.

Zheng, Tang, Li and Liu, "Data-free Backdoor Removal based on Channel Lipschitzness",
ECCV 2022. A trigger is a small change of the input with a large effect, so some channel
must be unusually sensitive. For channel k of a convolution with weight W followed by a
BatchNorm with scale gamma and running variance v,

    s_k = sigma_max(W[k] as a (c_in, kh * kw) matrix) * |gamma_k| / sqrt(v_k + eps)

and CLP switches off every channel with s_k > mean(s) + u * std(s), layer by layer.
Derived in lesson 05.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bdcourse import require
from bdcourse.defenses._base import (
    Purified,
    admit,
    compared,
    defense,
    furthest,
    require_list,
)
from bdcourse.examples import Examples
from bdcourse.models import evaluating
from bdcourse.surgery import (
    Pairing,
    pair_by_flow,
    pair_by_order,
    require_sound,
    weight_of,
    without,
)
from bdcourse.symmetries import canonical, channel_groups, read_norms

CLP_US = tuple(x / 4 for x in range(24, 3, -1))  # the u axis of every sweep: 6 .. 1
Norm = Literal["spectral", "frobenius", "operator"]


def clp_plain_scores(conv: nn.Conv2d, bn: _BatchNorm) -> Tensor:
    """The scores of one layer, one SVD per channel, with eps: (c_out,).

    The reference that the batched version is tested against.
    """
    scores = []
    assert bn.running_var is not None  # see `pair_by_flow`
    for k in range(conv.out_channels):
        matrix = conv.weight[k].flatten(1)  # (c_in / groups, kh * kw)
        sigma = torch.linalg.svdvals(matrix)[0]
        scores.append(sigma * bn.weight[k].abs() / (bn.running_var[k] + bn.eps).sqrt())
    return torch.stack(scores).detach()


@torch.no_grad()
def clp_norms(
    weight: Tensor, norm: Norm = "spectral", *, stride: int = 1, grid: int = 32
) -> Tensor:
    """Size of every output channel's kernel at once: (c_out, c_in, kh, kw) -> (c_out,).

    A linear layer's (c_out, c_in) counts as a kernel of one position; 1d and 3d kernels
    have their positions in a row.

    Args:
        norm: "spectral" is the paper's sigma_max of the (c_in, kh * kw) matrix, found
            as the root of the largest eigenvalue of the smaller Gram matrix;
            "frobenius" the L2 norm of all weights; "operator" the exact norm of the
            channel's circular convolution on a grid x grid map, from the kernel's
            Fourier transform.
        stride: of the convolution; only "operator" depends on it.

    spectral <= frobenius <= operator <= sqrt(kh * kw) * spectral
    """
    if norm == "frobenius":
        return weight.flatten(1).norm(dim=1)
    if norm == "spectral":
        m = weight[..., None].flatten(2)  # (c_out, c_in, kh * kw)
        if m.shape[1] < m.shape[2]:
            m = m.transpose(1, 2)
        # Squaring halves the digits of small singular values, but not of the largest.
        m = m.to(torch.promote_types(m.dtype, torch.float32))
        gram = m.transpose(1, 2) @ m
        top = torch.linalg.eigvalsh(gram)[:, -1].clamp(min=0).sqrt()
        return top.to(weight.dtype)
    require_norm(norm)
    if weight.ndim != 4:
        raise ValueError(
            'norm "operator" is of 2d convolutions, and a weight is of shape '
            f"{tuple(weight.shape)}; take spectral."
        )
    if grid % stride or grid < max(weight.shape[2:]):
        raise ValueError(
            f"grid must be a multiple of the stride {stride} and at least the kernel's "
            f"{max(weight.shape[2:])}, not {grid}."
        )
    power = torch.stack(
        [torch.fft.fft2(w, (grid, grid)).abs().square().sum(0) for w in weight]
    )  # (c_out, grid, grid): sum over input channels of |K(frequency)|^2
    # A stride folds s * s frequencies onto one; the folded output carries their mean.
    m = grid // stride
    folded = power.view(-1, stride, m, stride, m).mean((1, 3))
    return folded.flatten(1).amax(1).sqrt()


@torch.no_grad()
def clp_scores(
    model: nn.Module,
    *,
    norm: Norm = "spectral",
    pairing: Literal["flow", "order"] = "flow",
    released: bool = False,
    invariant: bool = False,
    shape: tuple[int, ...] | None = None,
) -> dict[str, Tensor]:
    """Lipschitz score of every channel that CLP can judge: BatchNorm name -> (c,)
    float.

    Args:
        norm: see :func:`clp_norms`.
        pairing: "flow" pairs each BatchNorm with its convolution by data flow; "order"
            by definition order, as the released code does.
        released: also leave out the BatchNorm's eps, as the released code does; a dead
            channel (variance near zero) then scores enormously and hides the others.
        invariant: ours, not the paper's: score a copy in the form that all rescaled
            copies share (`symmetries.canonical`), times the norm of the weights that read
            the channel. No rescaling that leaves the function alone can change it.
        shape: of one input, (c, h, w) of an image, for a model whose code torch.fx
            cannot trace; None finds one of an image, see `surgery.accepted_shape`.

    Warns if there is nothing to judge (Vision Transformers, networks without
    BatchNorm), and names BatchNorms without scale or running variance.
    """
    require.choice("pairing", pairing, ("flow", "order"))
    require.truth("released", released)
    require.truth("invariant", invariant)
    require_norm(norm)
    require_shape(shape)
    require_sound(model, steady=False)
    by_flow = pairing == "flow"
    found = pair_by_flow(model, shape) if by_flow else pair_by_order(model)
    _name_bare(model, found)
    if not found.pairs:
        why = f" ({len(found.unpaired)} unpaired)" if found.unpaired else ""
        warnings.warn(
            "CLP has nothing to prune: no BatchNorm of this model reads the output of "
            f"a convolution or linear layer{why}. The model comes back unchanged.",
            stacklevel=2,
        )
    reads: dict[str, Tensor] = {}
    if invariant:
        model = canonical(model)
        for group in channel_groups(model):
            reads |= dict.fromkeys(group.writers, read_norms(model, group))
    out = {}
    with evaluating(model):  # in train mode spectral norm moves when it is read
        for p in found.pairs:
            conv, bn = model.get_submodule(p.conv), model.get_submodule(p.bn)
            assert isinstance(bn, _BatchNorm) and bn.running_var is not None  # of a pair
            stride = 1
            if isinstance(conv, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                stride = conv.stride[0]
            grid = -(-32 // stride) * stride  # 32, or the next multiple of the stride
            size = clp_norms(weight_of(conv), norm, stride=stride, grid=grid)
            eps = 0.0 if released else bn.eps
            out[p.bn] = size * bn.weight.abs() / (bn.running_var + eps).sqrt()
            if p.bn in reads:
                out[p.bn] = out[p.bn] * reads[p.bn]
    return out


def _name_bare(model: nn.Module, found: Pairing) -> None:
    """Warn of BatchNorms that cannot be judged for want of a scale or a variance."""
    bare = [
        n
        for n in found.unpaired
        for m in [model.get_submodule(n)]
        if m.weight is None or m.running_var is None
    ]
    if found.pairs and bare:
        warnings.warn(
            f"CLP leaves out {', '.join(bare)}: without a scale, or without a running "
            "variance, a channel has no score.",
            stacklevel=3,
        )


def require_norm(norm: str) -> None:
    """Refuse unknown norms."""
    if norm not in ("spectral", "frobenius", "operator"):
        raise ValueError(f"unknown norm {norm!r}; spectral, frobenius or operator.")


def require_shape(shape: object) -> None:
    """Refuse what is no shape of one input, such as (c, h, w); None is none."""
    if shape is None:
        return
    if not isinstance(shape, (tuple, list)) or not shape:
        raise ValueError(f"shape must be (c, h, w) of one image, not {require.kind(shape)}.")
    for side in shape:
        require.whole("shape, of one image,", side, 1)


def threshold(s: Tensor, u: float) -> Tensor:
    """mean(s) + u * std(s), with the unbiased deviation (n - 1)."""
    return s.mean() + u * s.std()


def clp_flagged(score: Mapping[str, Tensor], u: float) -> dict[str, Tensor]:
    """Channels above the threshold of their own layer: name -> positions (m,)."""
    if not compared("u", u) >= 0:
        raise ValueError(f"u must not be negative, but is {u}; the authors use 3.")
    return {
        name: (s > threshold(s, u)).nonzero().flatten()
        for name, s in score.items()
        if len(s) > 1  # one channel has no deviation
    }


@defense(steady=False)
def clp(
    model: nn.Module,
    u: float = 3.0,
    *,
    norm: Norm = "spectral",
    pairing: Literal["flow", "order"] = "flow",
    released: bool = False,
    invariant: bool = False,
    shape: tuple[int, ...] | None = None,
) -> Purified:
    """Prune the outlier channels of every layer. Needs the weights and nothing else.

    Args:
        model: left untouched.
        u: how many standard deviations above its layer's mean a channel may score; 3 is
            the authors' default on CIFAR-10, BackdoorBench uses 5 on Tiny ImageNet. In
            a layer of n channels no score can lie more than (n - 1) / sqrt(n)
            deviations above the mean: at u = 3 a layer of ten channels or fewer is never touched.
        norm, pairing, released, invariant, shape: see :func:`clp_scores`. clp(model,
            pairing="order", released=True) chooses what the authors' release chooses.

    Returns:
        log: `u`, and `scores` of every channel by BatchNorm, (c,).

    Raises:
        ValueError: a negative u, unknown names, a network whose numbers cannot be right.

    Source: Zheng et al., ECCV 2022. Derived in lesson 05.
    """
    start = time.perf_counter()
    clp_flagged({}, u)  # refuse before the scoring
    score = clp_scores(
        model, norm=norm, pairing=pairing, released=released, invariant=invariant, shape=shape
    )
    pruned = clp_flagged(score, u)
    repaired = without(model, pruned)
    log = {"u": u, "scores": score}
    return Purified(repaired, pruned, log, time.perf_counter() - start)


def clp_sweep(
    model: nn.Module,
    us: Sequence[float],
    *,
    norm: Norm = "spectral",
    pairing: Literal["flow", "order"] = "flow",
    released: bool = False,
    invariant: bool = False,
    shape: tuple[int, ...] | None = None,
) -> list[tuple[float, dict[str, Tensor]]]:
    """The channels that each u would prune, from one scoring: [(u, channels), ...].

    Args:
        norm, pairing, released, invariant, shape: see :func:`clp_scores`.
    """
    us = [compared("u", u) for u in require_list("us", us)]
    score = clp_scores(
        model, norm=norm, pairing=pairing, released=released, invariant=invariant, shape=shape
    )
    return [(u, clp_flagged(score, u)) for u in us]


def clp_choose_u(
    model: nn.Module,
    clean: Examples,
    us: Sequence[float] = CLP_US,
    max_drop: float = 0.01,
    *,
    invariant: bool = False,
) -> float:
    """The smallest u that costs at most `max_drop` accuracy on held-out clean images.

    Walks down from the largest u and stops before the first that costs more. If the
    largest does already, the answer is infinity: prune nothing. This uses clean data,
    so the repair is no longer data-free; it never looks at the trigger. The least drop
    that n images can show is 1/n: with 60 of them, 0.01 allows no net new error.

    Args:
        invariant: see :func:`clp_scores`.
    """
    admit(model, clean, least=1, logits=False)
    require.fraction("max_drop", max_drop)
    us = [compared("u", u) for u in require_list("us", us)]
    sweep = clp_sweep(model, sorted(us, reverse=True), invariant=invariant)
    u = furthest(model, sweep, clean, max_drop)
    return math.inf if u is None else u
