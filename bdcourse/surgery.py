"""Which BatchNorm belongs to which convolution, and switching channels off.

A pruning method that reads a convolution's weight together with the BatchNorm behind it
must know which two belong together. Module order does not tell: in a pre-activation
block the BatchNorm comes first, and a shortcut convolution may be defined between a
convolution and its BatchNorm. So the pairing here follows the data. Derived in lesson 05.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from bdcourse import require
from bdcourse.examples import Examples
from bdcourse.models import evaluating, laid_out, not_finite, wide

# ------------------------------------------------------------ looking before cutting


def require_sound(model: object, name: str = "model", *, steady: bool = True) -> nn.Module:
    """Refuse what is no network, or one whose numbers cannot be right.

    Args:
        steady: also refuse BatchNorms without running statistics, with which an answer
            depends on the rest of its batch.

    Raises:
        ValueError: no module or no weights; weights or statistics that are not finite,
            negative variances; weights that a hook of the older weight or spectral norm
            writes in each pass (they cannot be copied, and are stale in between).
    """
    model = require.module(model, name)
    if next(model.parameters(), None) is None:
        raise ValueError(f"{name} has no weights, so there is nothing to repair.")
    for n, w in model.named_parameters():
        if isinstance(w, nn.parameter.UninitializedParameter):
            raise ValueError(f"{n} of {name} has no shape yet; run {name} once on some images.")
    if n := not_finite(dict(model.named_parameters())):
        raise ValueError(
            f"{n} of {name} is not finite: the network diverged in training or its file is "
            "damaged; take another."
        )
    for n, m in model.named_modules():
        for hook in m._forward_pre_hooks.values():
            if type(hook).__name__ in ("WeightNorm", "SpectralNorm"):
                raise ValueError(
                    f"a hook of torch.nn.utils writes the weight of {n} in each pass; "
                    "make it plain with remove_weight_norm or remove_spectral_norm, or "
                    "take torch.nn.utils.parametrizations."
                )
        if not isinstance(m, _BatchNorm):
            continue
        if m.running_mean is None or m.running_var is None:
            if steady:
                raise ValueError(
                    f"{n} has no running statistics, so an answer depends on the rest "
                    "of its batch; use track_running_stats=True."
                )
        elif not_finite({"mean": m.running_mean, "variance": m.running_var}):
            raise ValueError(
                f"the running statistics of {n} are not finite: the network diverged "
                "in training or its file is damaged; take another."
            )
        elif bool((m.running_var < 0).any()):
            raise ValueError(
                f"the running variance of {n} is negative, which no variance can be: "
                "the file is damaged or belongs to another architecture."
            )
    return model


def require_matching(
    model: nn.Module,
    images: Examples,
    *,
    name: str = "model",
    k: bool = True,
    logits: bool = True,
    steady: bool = True,
) -> nn.Module:
    """Refuse a network that does not go with these images, after one look at two.

    Runs in eval mode; modes, statistics and torch's random state stay as they are.

    Args:
        k: the network must tell as many classes apart as the images have.
        logits: refuse probabilities, on which cross-entropy is wrong.
        steady: see :func:`require_sound`, which is called first.

    Raises:
        ValueError: other devices, channels, sizes or classes; answers that are no
            tensor of shape (n, k), or not finite.
    """
    require_sound(model, name, steady=steady)
    place, there = next(model.parameters()).device, images.x.device
    if place != there:
        raise ValueError(
            f"{name} is on {place} and the {images.task.many} are on {there}; move one with "
            ".to(device)."
        )
    out = require_answers(model, images, name, k=k)
    require.finite(out, f"the answers of {name}")
    if logits and out.ndim == 2 and _are_probabilities(out):
        raise ValueError(
            f"{name} answers with probabilities, on which cross-entropy is wrong; take "
            "off its softmax, so that it answers with logits."
        )
    return model


def require_answers(
    model: nn.Module, images: Examples, name: str = "model", *, k: bool = True
) -> Tensor:
    """What a network says of two examples, if it is an answer of their task: of images,
    a row of logits for each.

    Raises:
        ValueError: see :func:`require_matching`.
    """
    task, few = images.task, images[:2]
    out = answers(model, few.inputs(), name, task.many)
    return task.check_outputs(out, len(few), images.k if k else None, name)


def _are_probabilities(out: Tensor) -> bool:
    inside = wide(out.detach())
    return bool(
        inside.shape[1] > 1 and (inside >= 0).all() and ((inside.sum(1) - 1).abs() < 1e-3).all()
    )


@torch.no_grad()
def answers(model: nn.Module, x: Tensor, name: str = "model", many: str = "images"):
    """What a network says of inputs x in eval mode, whatever its kind.

    Args:
        many: what the inputs are called.

    Raises:
        ValueError: it does not take images of this shape.
    """
    place = x.device
    devices = [place] if place.type == "cuda" else []
    x = x.to(next(model.parameters()).dtype) if x.is_floating_point() else x
    with evaluating(model), torch.random.fork_rng(devices=devices):
        try:
            return model(laid_out(model, x))
        except torch.OutOfMemoryError:
            raise
        except Exception as e:  # code of others raises many kinds
            raise ValueError(
                f"{name} does not accept {many} of shape {tuple(x.shape[1:])}: {require.reason(e)}."
            ) from e


def called_with(model: nn.Module, tensors: Mapping[str, Tensor], x: Tensor):
    """The answers for x with other tensors in the place of parameters and buffers.

    As `torch.func.functional_call`, which loses a module's tensors if the module stands
    under two names.

    Args:
        tensors: by names of `named_parameters` and `named_buffers`.
    """
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    instead = {own[n]: value for n, value in tensors.items()}
    slots = {
        f"{prefix}.{n}".lstrip("."): instead[t]
        for prefix, m in model.named_modules()
        for part in (m._parameters, m._buffers)
        for n, t in part.items()
        if t is not None and t in instead
    }
    return functional_call(model, slots, (x,), tie_weights=False)


def channels_of(model: nn.Module, channels: object, name: str = "channels") -> dict[str, Tensor]:
    """Module name -> positions of channels or a bool mask, if the model has them.

    Raises:
        ValueError: no such mapping, module or channel; a weight that is computed from
            others (a parametrization), in which no channel can be set to zero.
    """
    if not isinstance(channels, Mapping):
        raise ValueError(
            f"{name} must map names of modules to positions of channels, as "
            f"Purified.pruned does, not be {require.kind(channels)}."
        )
    modules = dict(model.named_modules())
    for n, which in channels.items():
        if n in modules:  # before its weight is read, which may move it
            require_plain(modules[n], n)
        weight = getattr(modules.get(n), "weight", None)
        if not isinstance(weight, Tensor):
            raise ValueError(
                f"{name} names {n!r}, but the model has no module of that name whose "
                "weight has channels to switch off."
            )
        whole = isinstance(which, Tensor) and (
            not which.is_floating_point() or which.numel() == 0  # torch.tensor([])
        )
        if not whole or which.ndim != 1:
            raise ValueError(
                f"{name}[{n!r}] must be positions of channels, int64 of shape (m,), or "
                f"a bool mask, not {require.kind(which)}."
            )
        c = len(weight)
        if which.dtype == torch.bool:
            if len(which) != c:
                raise ValueError(
                    f"{name}[{n!r}] is a mask of {len(which)} channels, but {n} has {c}."
                )
        elif len(which) and not 0 <= int(which.min()) <= int(which.max()) < c:
            raise ValueError(
                f"{name}[{n!r}] holds positions {int(which.min())} to "
                f"{int(which.max())}, but the channels of {n} are 0..{c - 1}."
            )
    return {
        n: which if len(which) else torch.zeros(0, dtype=torch.int64)
        for n, which in channels.items()
    }


def require_plain(m: nn.Module, name: str) -> None:
    """Refuse a module whose weight is computed: what is written to it is lost."""
    if parametrize.is_parametrized(m, "weight"):
        raise ValueError(
            f"the weight of {name} is parametrized (weight norm, spectral norm or the "
            "like), so no channel of it can be set to zero; make it plain with "
            "torch.nn.utils.parametrize.remove_parametrizations."
        )


def weight_of(m: nn.Module) -> Tensor:
    """The weight of a layer that has one."""
    return cast(Tensor, m.weight)


def bias_of(m: nn.Module) -> Tensor | None:
    """The bias of a layer that has one, or has none on purpose."""
    return cast("Tensor | None", m.bias)


# ---------------------------------------------------------------- pairing


# What has one output channel a row of its weight, and may have a BatchNorm behind it.
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (*CONVS, nn.Linear)
# A convolution of each rank, and the BatchNorm that goes with it.
RANKS = {nn.BatchNorm1d: nn.Conv1d, nn.BatchNorm2d: nn.Conv2d, nn.BatchNorm3d: nn.Conv3d}


@dataclass(frozen=True)
class Pair:
    """A BatchNorm that sees exactly the output of one convolution, or linear layer, by
    module names."""

    conv: str
    bn: str


@dataclass(frozen=True)
class Pairing:
    """The pairs of a model, and each BatchNorm left over with the reason why."""

    pairs: tuple[Pair, ...]
    unpaired: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{p.conv} -> {p.bn}" for p in self.pairs]
        lines += [f"{bn}: not paired, {why}" for bn, why in self.unpaired.items()]
        return "\n".join(lines) or "no BatchNorm in this model"


def pair_by_flow(model: nn.Module, shape: tuple[int, ...] | None = None) -> Pairing:
    """Pair every BatchNorm with the convolution or linear layer whose output it
    normalizes.

    Traces the model symbolically (torch.fx) and walks from each BatchNorm to the module
    that produced its input, through identities and dropout. A model that cannot be
    traced is run once on noise of `shape`, and inputs are matched to outputs by
    identity: no data is needed either way.

    Args:
        shape: of one input, (c, h, w) of an image; None finds one that the model
            accepts, see :func:`accepted_shape`.
    """
    require.module(model)
    if not any(isinstance(m, _BatchNorm) for m in model.modules()):
        return Pairing((), {})
    try:
        with evaluating(model):  # its code may ask in which mode it is
            sources = _sources_by_trace(model)
    except Exception:  # fx raises many kinds when a model's code depends on values
        sources = _sources_by_identity(model, shape or accepted_shape(model))
    return _judge(model, sources)


SIDES = (32, 28, 64, 96, 224, 16, 8)  # of square images, in the order of trial


def accepted_shape(model: nn.Module) -> tuple[int, int, int]:
    """(c, h, w) that the model accepts: the channels of its first convolution, and the
    first of :data:`SIDES`.

    Raises:
        ValueError: there is none.
    """
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    place = next((w.device for w in model.parameters()), None)
    for side in SIDES if convs and place is not None else ():
        shape = (convs[0].in_channels, side, side)
        try:
            answers(model, torch.full((2, *shape), 0.5, device=place))
        except ValueError:
            continue
        return shape
    raise ValueError(
        "what inputs the model accepts could not be guessed; pass the right shape, "
        "(c, h, w) of one image, as shape=."
    )


def pair_by_order(model: nn.Module) -> Pairing:
    """Pair each BatchNorm with the last convolution of its rank (BatchNorm2d with Conv2d)
    met in `named_modules()` before it.

    What the released code of CLP does, which knows 2d alone, kept for comparison: it is
    right where modules are defined in the order in which they run, wrong in
    pre-activation networks.
    """
    pairs, unpaired = [], {}
    met: dict[type[nn.Module], str] = {}
    for name, m in model.named_modules():
        if isinstance(m, CONVS):
            met |= {kind: name for kind in CONVS if isinstance(m, kind)}
        for norm, kind in RANKS.items():
            if not isinstance(m, norm):
                continue
            last = met.get(kind)
            if m.weight is None or m.running_var is None:
                unpaired[name] = "it has no scale, or no running variance"
            elif last is None:
                unpaired[name] = "no convolution was defined before it"
            elif model.get_submodule(last).out_channels != m.num_features:
                unpaired[name] = f"its width differs from that of {last}"
            else:
                pairs.append(Pair(last, name))
    return Pairing(tuple(pairs), unpaired)


def _is_transparent(m: nn.Module) -> bool:
    return isinstance(m, (nn.Identity, nn.Dropout, nn.Dropout2d))


class Tracer(fx.Tracer):
    """Opens every container, also torchvision's subclasses, but no layer of
    torch.nn."""

    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        if isinstance(m, (*LAYERS, _BatchNorm)):  # also one with a parametrization
            return True
        return not any(m.children()) and type(m).__module__.startswith("torch.nn")


def _sources_by_trace(model: nn.Module) -> dict[str, list[str | None]]:
    """For each BatchNorm, one entry per call: the convolution it reads, or None."""
    graph = Tracer().trace(model)
    modules = dict(model.named_modules())
    sources: dict[str, list[str | None]] = {}
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], _BatchNorm):
            continue
        origin = node.args[0] if node.args else node.kwargs["input"]
        while origin.op == "call_module" and _is_transparent(modules[origin.target]):
            origin = origin.args[0]
        is_conv = origin.op == "call_module" and isinstance(modules[origin.target], LAYERS)
        found = sources.setdefault(node.target, [])
        found.append(origin.target if is_conv else None)
    return sources


@torch.no_grad()
def _sources_by_identity(model: nn.Module, shape: tuple[int, ...]) -> dict[str, list[str | None]]:
    # An in-place step, such as `out += x` or relu_, keeps a tensor's id but raises its
    # version: then it is no longer what the convolution wrote.
    origin: dict[tuple[int, int], str | None] = {}
    kept: list[Tensor] = []  # an id is only unique while its tensor lives
    sources: dict[str, list[str | None]] = {}

    def key(x: Tensor) -> tuple[int, int]:
        return id(x), x._version

    def watch(name: str, m: nn.Module):
        def hook(_, args, kwargs, out):
            x = args[0] if args else next(iter(kwargs.values()))
            kept.extend([x, out])
            if isinstance(m, LAYERS):
                origin[key(out)] = name
            elif isinstance(m, _BatchNorm):
                sources.setdefault(name, []).append(origin.get(key(x)))
            elif _is_transparent(m):
                origin[key(out)] = origin.get(key(x))

        return m.register_forward_hook(hook, with_kwargs=True)

    kinds = (*LAYERS, _BatchNorm, nn.Identity, nn.Dropout, nn.Dropout2d)
    hooks = [watch(n, m) for n, m in model.named_modules() if isinstance(m, kinds)]
    try:
        # Noise, in which no two channels agree, from a generator of its own.
        noise = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
        answers(model, noise.to(next(model.parameters()).device))
    except ValueError as e:
        raise ValueError(
            f"the model does not accept inputs of shape {tuple(shape)}; pass the right "
            "shape, (c, h, w) of one image."
        ) from e
    finally:
        for h in hooks:
            h.remove()
    return sources


def _judge(model: nn.Module, sources: Mapping[str, list[str | None]]) -> Pairing:
    pairs, unpaired = [], {}
    for name, bn in model.named_modules():
        if not isinstance(bn, _BatchNorm):
            continue
        origins = sources.get(name, [])
        conv = origins[0] if origins else None
        if not origins:
            unpaired[name] = "it was never reached"
        elif len(set(origins)) > 1:
            unpaired[name] = "it is called on outputs of different layers"
        elif conv is None:
            unpaired[name] = "its input is not the output of one convolution or linear layer"
        elif bn.weight is None:
            unpaired[name] = "it has no scale and shift (affine=False) to set to zero"
        elif bn.running_var is None:
            unpaired[name] = "it keeps no running variance to score with"
        else:
            pairs.append(Pair(conv, name))
    return Pairing(tuple(pairs), unpaired)


@torch.no_grad()
def zero_channels(model: nn.Module, channels: Mapping[str, Tensor], *, shift: bool = True) -> None:
    """Switch channels off, in place.

    Args:
        channels: module name -> positions (or a bool mask). Of a BatchNorm, scale and
            shift become zero, and the channel's output is then exactly zero. Of a
            convolution, filter and bias do; a BatchNorm behind it still turns that into
            the constant shift - scale * mean / deviation.
        shift: False leaves the BatchNorms' shifts alone, as methods do that mask the
            scale only; the channel then emits its shift, whatever the input.
    """
    for name, which in channels_of(model, channels).items():
        m = model.get_submodule(name)
        weight, bias = weight_of(m), bias_of(m)
        weight[which.to(weight.device)] = 0
        if bias is not None and (shift or not isinstance(m, _BatchNorm)):
            bias[which.to(bias.device)] = 0


def without(model: nn.Module, channels: Mapping[str, Tensor], *, shift: bool = True) -> nn.Module:
    """A copy of the model with these channels switched off, see `zero_channels`."""
    model = copy.deepcopy(require.module(model))
    zero_channels(model, channels, shift=shift)
    return model


@contextmanager
def held(model: nn.Module, channels: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Inside the `with`, what is zero in these channels stays zero under training.

    Training revives a switched-off channel wherever a gradient reaches it. Here the
    gradient of every weight that is zero on entry is zeroed, and weight decay and a
    fresh momentum leave a zero alone.

    Args:
        channels: module name -> positions, as in `Purified.pruned`; None holds nothing.
    """
    hooks = []
    channels = {} if channels is None else channels
    for name, which in channels_of(model, channels).items():
        m = model.get_submodule(name)
        for p in (weight_of(m), bias_of(m)):
            if p is None or not p.requires_grad:
                continue
            keep = torch.ones_like(p)
            rows = which.to(p.device)
            keep[rows] = (p.detach()[rows] != 0).to(p.dtype)
            hooks.append(p.register_hook(lambda g, keep=keep: g * keep))
    try:
        yield
    finally:
        for h in hooks:
            h.remove()


def revived(model: nn.Module, channels: Mapping[str, Tensor]) -> int:
    """How many of these channels have a weight again that is not zero."""
    count = 0
    for name, which in channels_of(model, channels).items():
        weight = weight_of(model.get_submodule(name)).detach()
        rows = weight[which.to(weight.device)]  # (m,) or (m, c_in, kh, kw)
        count += int((rows[..., None].flatten(1) != 0).any(1).sum())
    return count
