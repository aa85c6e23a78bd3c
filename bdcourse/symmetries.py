"""Changing the weights without changing the function: the free channels of a network.

Behind a BatchNorm and a ReLU, a channel may be divided by any a > 0 if everything that
reads it is multiplied by a, because ReLU(z / a) = ReLU(z) / a. Channels that are added to
each other, as along the residual stream of a ResNet, have to share their a. No answer of
the network tells the two copies apart; what is read off their weights does.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from bdcourse import require
from bdcourse.models import evaluating
from bdcourse.surgery import LAYERS, Tracer

# What answers a times as much to a times its input, and leaves the channels where they are.
_ND = ("AdaptiveAvgPool", "AdaptiveMaxPool", "AvgPool", "Dropout", "MaxPool")
# An empty Sequential is an identity; the others are opened.
HOMOGENEOUS = (nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Sequential, nn.Dropout) + tuple(
    getattr(nn, f"{name}{d}d") for name in _ND for d in (1, 2, 3)
)
_SNAKE = ("adaptive_avg_pool", "adaptive_max_pool", "avg_pool", "max_pool")
FUNCTIONS = {F.relu, torch.relu, F.leaky_relu, F.dropout} | {
    getattr(F, f"{name}{d}d") for name in _SNAKE for d in (1, 2, 3)
}
FLATTEN = {torch.flatten, "flatten", nn.Flatten}
ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
TIMES = {operator.mul, operator.imul, operator.truediv, operator.itruediv, torch.mul, torch.div}


OVER = {torch.mean, torch.sum, torch.amax, "mean", "sum", "amax"}


@dataclass(frozen=True)
class Group:
    """Channels that may be scaled, each by its own factor, if all of these follow.

    Args:
        writers: names of the modules whose outputs they are: convolutions, linear layers,
            BatchNorms. Several write into a residual stream.
        readers: names of the modules whose inputs they are.
        size: how many channels there are.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    size: int

    def __str__(self) -> str:
        return f"{' + '.join(self.writers)} -> {', '.join(self.readers)} ({self.size})"


def channel_groups(model: nn.Module) -> tuple[Group, ...]:
    """All groups of channels of which the function leaves the scale open, as they run.

    Follows the data (torch.fx) from layer to layer. Whatever is not known to pass a factor
    on (GELU, LayerNorm, ReLU6, attention, concatenation), and every weight that is used
    twice, leaves the channels that meet there as they are.

    Raises:
        ValueError: the network's code cannot be traced.
    """
    require.module(model)
    try:
        with evaluating(model):
            graph = Tracer().trace(model)
    except Exception as e:  # fx raises many kinds
        raise ValueError(
            "the network's code depends on its values, so that its channels cannot be "
            f"followed ({require.reason(e)})."
        ) from e
    spaces = _Spaces(model, graph)
    return tuple(spaces.groups())


class _Spaces:
    """Which outputs share their channels: a union-find over the values of a graph."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.modules = dict(model.named_modules())
        self.parent: dict[fx.Node, fx.Node] = {}
        self.fixed: set[fx.Node] = set()
        self.writes: dict[fx.Node, str] = {}
        self.reads: list[tuple[fx.Node, str]] = []
        calls = Counter(n.target for n in graph.nodes if n.op == "call_module")
        held = Counter(id(p) for m in self.modules.values() for p in m._parameters.values())
        self.alone = {
            name
            for name, m in self.modules.items()
            if calls[name] == 1
            and not parametrize.is_parametrized(m)
            and all(held[id(p)] == 1 for p in m.parameters(recurse=False))
        }
        for node in graph.nodes:
            if node.op == "get_attr":  # somebody uses a module's tensor by hand
                self.alone.discard(str(node.target).rpartition(".")[0])
        for node in graph.nodes:
            self._visit(node)

    def find(self, node: fx.Node) -> fx.Node:
        while self.parent.setdefault(node, node) is not node:
            node = self.parent[node]
        return node

    def _join(self, nodes: list[fx.Node]) -> None:
        for node in nodes[1:]:
            self.parent[self.find(node)] = self.find(nodes[0])

    def _visit(self, node: fx.Node) -> None:
        sources = node.all_input_nodes
        m = self.modules[str(node.target)] if node.op == "call_module" else None
        of = type(m) if m is not None else node.target
        name = str(node.target)
        if m is not None and name in self.alone and _scalable(m):
            self.writes[node] = name
            self.reads.append((sources[0], name))
        elif self._passes(node, of, sources):
            self._join([node, *sources])
        else:
            self.fixed.update([node, *sources])

    def _passes(self, node: fx.Node, of: object, sources: list[fx.Node]) -> bool:
        """Whether a factor of each channel of the inputs is that of the output."""
        if of in HOMOGENEOUS or of in FUNCTIONS:
            return len(sources) == 1
        if of in FLATTEN:
            m = self.modules.get(str(node.target))
            start = m.start_dim if isinstance(m, nn.Flatten) else (*node.args, None)[1]
            return bool(start == 1) and len(node.args) < 3 and len(sources) == 1
        if of in ADD:
            return len(sources) == 2 and len(node.args) == 2 and not node.kwargs
        if of in TIMES:  # by a number
            return len(sources) == 1 and isinstance(node.args[0], fx.Node)
        if of in OVER:  # positions, and neither examples nor channels
            dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            dims = dims if isinstance(dims, (tuple, list)) else (dims,)
            return all(isinstance(d, int) and d > 1 for d in dims)
        return False

    def groups(self) -> Iterator[Group]:
        fixed = {self.find(n) for n in self.fixed}
        writers: dict[fx.Node, list[str]] = {}
        readers: dict[fx.Node, list[str]] = {}
        for node, name in self.writes.items():
            writers.setdefault(self.find(node), []).append(name)
        for node, name in self.reads:
            readers.setdefault(self.find(node), []).append(name)
        for space, names in writers.items():
            sizes = {len(self.modules[n].weight) for n in names}
            if space in fixed or space not in readers or len(sizes) > 1:
                continue
            (size,) = sizes
            if all(_inputs(self.modules[n]) % size == 0 for n in readers[space]):
                yield Group(tuple(names), tuple(readers[space]), size)


def _scalable(m: Any) -> bool:
    """Layers that are linear in each channel, in eval mode, and of which we know how."""
    if _is_norm(m):
        return m.weight is not None and m.running_var is not None
    return type(m) in LAYERS


def _named(model: nn.Module, names: Iterable[str]) -> list[Any]:
    """Modules by name, as what has whatever layers have."""
    return [model.get_submodule(n) for n in names]


def _is_norm(m: object) -> bool:
    return isinstance(m, _BatchNorm)


def _inputs(m: Any) -> int:
    """Channels, or numbers, that a layer reads of one example."""
    if _is_norm(m):
        return m.num_features
    return m.in_features if isinstance(m, nn.Linear) else m.in_channels


@torch.no_grad()
def _read_times(m: Any, a: Tensor) -> None:
    """Make a layer read its input channels as if they were a times as large."""
    if _is_norm(m):
        m.running_mean /= a
        m.running_var.copy_((m.running_var + m.eps) / a**2 - m.eps)
    elif isinstance(m, nn.Linear):  # a flattened map has all positions of a channel in a row
        m.weight *= a.repeat_interleave(m.in_features // len(a))
    else:  # the rows of group g read the channels of group g
        own = a.view(m.groups, 1, -1).expand(-1, len(m.weight) // m.groups, -1)
        m.weight *= own.reshape(*m.weight.shape[:2], *[1] * (m.weight.ndim - 2))


def _write_over(m: Any, a: Tensor) -> None:
    """Divide a layer's output channels by a."""
    m.weight /= a.view(-1, *[1] * (m.weight.ndim - 1))
    if m.bias is not None:
        m.bias /= a


@torch.no_grad()
def scale_channels(model: nn.Module, factors: Mapping[Group, Tensor]) -> None:
    """Divide the channels of groups by a, and multiply what reads them by a; in place.

    In eval mode the function stays what it was, but for rounding.

    Args:
        factors: group of `channel_groups` -> a, (size,), positive.

    Raises:
        ValueError: factors of another shape, or not positive and finite; one so large
            that a BatchNorm that reads the channel would need a negative variance.
    """
    for group, a in factors.items():
        if not isinstance(a, Tensor) or tuple(a.shape) != (group.size,):
            raise ValueError(f"the factors of {group} must be of shape ({group.size},).")
        if not bool((a.isfinite() & (a > 0)).all()):
            raise ValueError(f"the factors of {group} must be positive and finite.")
        for m in _named(model, group.readers):
            if _is_norm(m) and bool((m.running_var + m.eps < m.eps * a**2).any()):
                most = ((m.running_var + m.eps) / m.eps).sqrt().min()
                raise ValueError(
                    f"a factor of {group} is too large: the BatchNorm behind it would need a "
                    f"negative variance; stay below {most:.3g}."
                )
    for group, a in factors.items():
        for m in _named(model, group.writers):
            _write_over(m, a.to(m.weight))
        for m in _named(model, group.readers):
            _read_times(m, a.to(m.weight))


@torch.no_grad()
def read_norms(model: nn.Module, group: Group) -> Tensor:
    """Root of the sum of squares of all weights that read each channel: (size,).

    A BatchNorm that reads it counts with scale / deviation.
    """
    total: Any = 0.0
    for m in _named(model, group.readers):
        own = m.weight.square()
        if _is_norm(m):
            own = own / (m.running_var + m.eps)
        elif isinstance(m, nn.Linear):
            own = own.view(len(own), group.size, -1).sum((0, 2))
        else:
            own = own.flatten(2).sum(2).view(m.groups, -1, own.shape[1]).sum(1).flatten()
        total = total + own
    return total.sqrt()


@torch.no_grad()
def canonical(model: nn.Module) -> nn.Module:
    """A copy that is the same for all networks that only differ by such factors.

    Each channel is divided by the root of the sum of squares of what scales it where it
    is written: the BatchNorms' scales, or the rows of convolutions that have none behind
    them. A channel that nothing writes stays as it is.
    """
    model = copy.deepcopy(model)

    def by_convolutions(group: Group) -> bool:
        return not all(map(_is_norm, _named(model, group.writers)))

    # A convolution's rows change with what it reads; a BatchNorm's scale with nothing else.
    for group in sorted(channel_groups(model), key=by_convolutions):
        rows = [m.weight.reshape(group.size, -1) for m in _named(model, group.writers)]
        a = torch.cat(rows, 1).norm(dim=1)
        scale_channels(model, {group: torch.where(a > 0, a, torch.ones_like(a))})
    return model


# ------------------------------------------------------------ moving and splitting channels


@dataclass(frozen=True)
class Chain:
    """Channels with all modules that hold something of each: `rows` have one row for each,
    convolutions and the BatchNorms behind them, and `columns` read them."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    size: int


def channel_chains(model: nn.Module) -> tuple[Chain, ...]:
    """The groups of `channel_groups` joined where a BatchNorm lies between them.

    Only those that can be reordered: nothing reads them in groups, and no BatchNorm hands
    them on to what has to keep its order.
    """
    norms = {n for n, m in model.named_modules() if _is_norm(m)}
    left, found = list(channel_groups(model)), []
    while left:
        members = [left.pop(0)]
        while True:
            own = {n for g in members for n in (*g.writers, *g.readers)} & norms
            near = [g for g in left if own & {*g.writers, *g.readers}]
            if not near:
                break
            members += near
            left = [g for g in left if g not in near]
        rows = dict.fromkeys(n for g in members for n in g.writers)
        reads = dict.fromkeys(n for g in members for n in g.readers)
        columns = tuple(n for n in reads if n not in norms)
        modules = _named(model, (*rows, *columns))
        whole = all(n in rows for n in reads if n in norms)
        begun = all(n in reads for n in rows if n in norms)  # somebody writes what they read
        if whole and begun and all(getattr(m, "groups", 1) == 1 for m in modules):
            found.append(Chain(tuple(rows), columns, members[0].size))
    return tuple(found)


@torch.no_grad()
def permute_channels(model: nn.Module, generator: torch.Generator) -> None:
    """Shuffle the channels of every chain; in place. The function stays what it was."""
    for chain in channel_chains(model):
        _take(model, chain, torch.randperm(chain.size, generator=generator))


@torch.no_grad()
def split_channel(model: nn.Module, bn: str, channel: int, copies: int) -> nn.Module:
    """A copy of the model in which one channel is there `copies` times, each read with
    1 / copies of the weight.

    Its layers are wider than the network's code builds them: it runs, trains and is
    repaired like any other, but cannot be stored as a victim.

    Args:
        bn: name of a BatchNorm that writes the channel; whoever is added to it grows as well.

    Raises:
        ValueError: no such channel, or one that cannot be split.
    """
    model = copy.deepcopy(require.module(model))
    copies = require.whole("copies", copies, 1)
    chain = next((c for c in channel_chains(model) if bn in c.rows), None)
    if chain is None:
        known = ", ".join(n for c in channel_chains(model) for n in c.rows)
        raise ValueError(f"the channels of {bn!r} cannot be split; those of these can: {known}.")
    channel = require.whole("channel", channel, 0, chain.size - 1)
    index = torch.cat([torch.arange(chain.size), torch.full((copies - 1,), channel)])
    _take(model, chain, index)
    for m in _named(model, chain.columns):
        weight = _by_channel(m.weight, len(index))
        weight[:, index == channel] /= copies
    return model


def _by_channel(weight: Tensor, size: int) -> Tensor:
    """A view with the channels that are read at axis 1, each with all of its positions."""
    return weight if weight.ndim > 2 else weight.view(len(weight), size, -1)


def _take(model: nn.Module, chain: Chain, index: Tensor) -> None:
    """Give a chain the channels `index` of its own, in this order; in place."""
    for name in chain.rows:
        (m,) = _named(model, [name])
        for key in ("weight", "bias", "running_mean", "running_var"):
            t = getattr(m, key, None)
            if t is not None:
                t.data = t.data[index.to(t.device)]
        wide = {"num_features", "out_channels", "out_features"} & set(vars(m))
        setattr(m, wide.pop(), len(index))
    for name in chain.columns:
        (m,) = _named(model, [name])
        taken = _by_channel(m.weight.data, chain.size)[:, index.to(m.weight.device)]
        m.weight.data = taken.flatten(1) if isinstance(m, nn.Linear) else taken
        key = "in_features" if isinstance(m, nn.Linear) else "in_channels"
        setattr(m, key, getattr(m, key) // chain.size * len(index))
