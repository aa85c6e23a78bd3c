"""Which BatchNorm belongs to which convolution, and switching channels off.

A pruning method that reads a convolution's weight together with the BatchNorm behind it
must know which two belong together. Module order does not tell: in a pre-activation
block the BatchNorm comes first, and a shortcut convolution may be defined between a
convolution and its BatchNorm. So the pairing here follows the data. Born in lesson 05.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Pair:
    """A BatchNorm that sees exactly the output of one convolution, by module names."""

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


def pair_by_flow(
    model: nn.Module, shape: tuple[int, int, int] = (3, 32, 32)
) -> Pairing:
    """Pair every BatchNorm2d with the convolution whose output it normalises.

    Traces the model symbolically (torch.fx) and walks from each BatchNorm to the module
    that produced its input, through identities and dropout. A model that cannot be
    traced is run once on noise of `shape`, and inputs are matched to outputs by
    identity: no data is needed either way.
    """
    try:
        sources = _sources_by_trace(model)
    except Exception:  # fx raises many kinds when a model's code depends on values
        sources = _sources_by_identity(model, shape)
    return _judge(model, sources)


def pair_by_order(model: nn.Module) -> Pairing:
    """Pair each BatchNorm2d with the last Conv2d met in `named_modules()` before it.

    What the released code of CLP does, kept for comparison: it is right where modules
    are defined in the order in which they run, wrong in pre-activation networks.
    """
    pairs, unpaired, last = [], {}, None
    for name, m in model.named_modules():
        if isinstance(m, nn.Conv2d):
            last = name
        elif isinstance(m, nn.BatchNorm2d):
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


class _Tracer(fx.Tracer):
    """Opens every container, also torchvision's subclasses, but no layer of
    torch.nn."""

    def is_leaf_module(self, m: nn.Module, name: str) -> bool:
        return not any(m.children()) and type(m).__module__.startswith("torch.nn")


def _sources_by_trace(model: nn.Module) -> dict[str, list[str | None]]:
    """For each BatchNorm, one entry per call: the convolution it reads, or None."""
    graph = _Tracer().trace(model)
    modules = dict(model.named_modules())
    sources: dict[str, list[str | None]] = {}
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], _BatchNorm):
            continue
        origin = node.args[0] if node.args else node.kwargs["input"]
        while origin.op == "call_module" and _is_transparent(modules[origin.target]):
            origin = origin.args[0]
        is_conv = origin.op == "call_module" and isinstance(
            modules[origin.target], nn.Conv2d
        )
        found = sources.setdefault(node.target, [])
        found.append(origin.target if is_conv else None)
    return sources


@torch.no_grad()
def _sources_by_identity(
    model: nn.Module, shape: tuple[int, int, int]
) -> dict[str, list[str | None]]:
    # An in-place step, such as `out += x` or relu_, keeps a tensor's id but raises its
    # version: then it is no longer what the convolution wrote.
    origin: dict[tuple[int, int], str | None] = {}
    kept: list[Tensor] = []  # an id is only unique while its tensor lives
    sources: dict[str, list[str | None]] = {}

    def key(x: Tensor) -> tuple[int, int]:
        return id(x), x._version

    def watch(name: str, m: nn.Module):
        def hook(_, args, kwargs, out):
            x = args[0] if args else kwargs["input"]
            kept.extend([x, out])
            if isinstance(m, nn.Conv2d):
                origin[key(out)] = name
            elif isinstance(m, _BatchNorm):
                sources.setdefault(name, []).append(origin.get(key(x)))
            elif _is_transparent(m):
                origin[key(out)] = origin.get(key(x))

        return m.register_forward_hook(hook, with_kwargs=True)

    kinds = (nn.Conv2d, _BatchNorm, nn.Identity, nn.Dropout, nn.Dropout2d)
    hooks = [watch(n, m) for n, m in model.named_modules() if isinstance(m, kinds)]
    modes = {m: m.training for m in model.modules()}
    model.eval()  # else this pass would change the running statistics
    try:
        p = next(model.parameters())
        model(torch.rand(2, *shape, device=p.device, dtype=p.dtype))
    except (RuntimeError, ValueError) as e:
        raise ValueError(
            f"the model does not accept images of shape {shape}; pass the right shape."
        ) from e
    finally:
        for h in hooks:
            h.remove()
        for m, training in modes.items():
            m.training = training
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
            unpaired[name] = "its input is not the output of one convolution"
        elif bn.weight is None:
            unpaired[name] = "it has no scale and shift (affine=False) to set to zero"
        elif bn.running_var is None:
            unpaired[name] = "it keeps no running variance to score with"
        else:
            pairs.append(Pair(conv, name))
    return Pairing(tuple(pairs), unpaired)


@torch.no_grad()
def zero_channels(
    model: nn.Module, channels: Mapping[str, Tensor], *, shift: bool = True
) -> None:
    """Switch channels off, in place.

    Args:
        channels: module name -> positions (or a bool mask). Of a BatchNorm, scale and
            shift become zero, and the channel's output is then exactly zero. Of a
            convolution, filter and bias do; a BatchNorm behind it still turns that into
            the constant shift - scale * mean / deviation.
        shift: False leaves the BatchNorms' shifts alone, as methods do that mask the
            scale only; the channel then emits its shift, whatever the input.
    """
    for name, which in channels.items():
        m = model.get_submodule(name)
        m.weight[which.to(m.weight.device)] = 0
        if m.bias is not None and (shift or not isinstance(m, _BatchNorm)):
            m.bias[which.to(m.bias.device)] = 0


def without(
    model: nn.Module, channels: Mapping[str, Tensor], *, shift: bool = True
) -> nn.Module:
    """A copy of the model with these channels switched off, see `zero_channels`."""
    model = copy.deepcopy(model)
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
    for name, which in (channels or {}).items():
        m = model.get_submodule(name)
        for p in (m.weight, m.bias):
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
    for name, which in channels.items():
        weight = model.get_submodule(name).weight.detach()
        rows = weight[which.to(weight.device)]  # (m,) or (m, c_in, kh, kw)
        count += int((rows[..., None].flatten(1) != 0).any(1).sum())
    return count
