"""Networks that take clouds, the points that decide what they see, and a filter before them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bdcourse import require
from bdcourse.models import evaluating
from bdcourse.tasks.points.clouds import CLOUDS, distances


class Pool(nn.Module):
    """The maximum of each channel over all points: (n, c, p) to (n, c)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(2)


class Channels(nn.Module):
    """Clouds (n, p, 3) as a 1d convolution takes them: (n, 3, p)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def _points(c_in: int, c_out: int) -> list[nn.Module]:
    """One linear layer for all points alike, with its BatchNorm."""
    return [nn.Conv1d(c_in, c_out, 1, bias=False), nn.BatchNorm1d(c_out), nn.ReLU()]


def _hidden(c_in: int, c_out: int) -> list[nn.Module]:
    """One linear layer for a whole cloud, with its BatchNorm."""
    return [nn.Linear(c_in, c_out, bias=False), nn.BatchNorm1d(c_out), nn.ReLU()]


class TNet(nn.Module):
    """Multiplies a cloud (n, p, 3) with a matrix that a small PointNet reads off it.

    The matrix starts as the identity, whatever the cloud.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width
        layers = [*_points(3, w), *_points(w, 2 * w), Pool(), *_hidden(2 * w, 2 * w)]
        last = nn.Linear(2 * w, 9)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.eye(3).flatten())
        self.read = nn.Sequential(Channels(), *layers, last)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.read(x).unflatten(1, (3, 3))


def pointnet(classes: int = 10, width: int = 16, tnet: bool = False) -> nn.Module:
    """PointNet: w, 2w and 8w channels for each point, their maxima, a hidden layer of 4w.

    Takes clouds (n, p, 3) of any number of points; 13,978 weights at width 16.

    Args:
        tnet: begin with a T-Net, a learned matrix for each cloud that starts as the
            identity; 2,745 weights more at width 16.

    Source: Qi, Su, Mo and Guibas, "PointNet", CVPR 2017, which has 64, 128, 1024 channels.
    """
    w = require.whole("width", width, 1, 1024)
    first = [TNet(w)] if require.truth("tnet", tnet) else []
    layers = [*_points(3, w), *_points(w, 2 * w), *_points(2 * w, 8 * w)]
    head = [*_hidden(8 * w, 4 * w), nn.Linear(4 * w, classes)]
    return nn.Sequential(*first, Channels(), *layers, Pool(), *head)


class EdgeConv(nn.Module):
    """Each point's channels from the k points that are nearest in the layer's own input.

    The maximum over neighbors j of ReLU(BN(W [x_j - x_i, x_i])); (n, c, p) to (n, c_out, p).
    A point is among its own neighbors.
    """

    def __init__(self, c_in: int, c_out: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.conv = nn.Conv2d(2 * c_in, c_out, 1, bias=False)
        self.bn, self.relu = nn.BatchNorm2d(c_out), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        near = neighbors(x.detach().transpose(1, 2), self.k)  # (n, p, k)
        at = near.flatten(1).unsqueeze(1).expand(-1, x.shape[1], -1)
        others = x.gather(2, at).unflatten(2, (-1, self.k))  # (n, c, p, k)
        own = x.unsqueeze(3).expand_as(others)
        edges = torch.cat([others - own, own], 1)  # (n, 2c, p, k)
        return self.relu(self.bn(self.conv(edges))).amax(3)


class DGCNN(nn.Module):
    """Three edge convolutions of w, w and 2w channels, all of them joined, their maxima."""

    def __init__(self, classes: int, width: int, k: int) -> None:
        super().__init__()
        w = width
        self.channels = Channels()
        self.edge1, self.edge2 = EdgeConv(3, w, k), EdgeConv(w, w, k)
        self.edge3 = EdgeConv(w, 2 * w, k)
        self.join = nn.Sequential(*_points(4 * w, 8 * w))
        self.pool = Pool()
        self.head = nn.Sequential(*_hidden(8 * w, 4 * w), nn.Linear(4 * w, classes))

    def forward(self, x: Tensor) -> Tensor:
        a = self.edge1(self.channels(x))
        b = self.edge2(a)
        c = self.edge3(b)
        return self.head(self.pool(self.join(torch.cat([a, b, c], 1))))


def dgcnn(classes: int = 10, width: int = 16, k: int = 8) -> nn.Module:
    """DGCNN: three edge convolutions, whose neighbors are found anew in each layer.

    Takes clouds (n, p, 3) of k points or more. The authors' four layers have 64 to 256
    channels, k is 20, activations are leaky, and a mean stands beside the maximum.

    Args:
        k: neighbors of each point, itself among them.

    Source: Wang, Sun, Liu, Sarma, Bronstein and Solomon, "Dynamic Graph CNN for Learning
    on Point Clouds", 2019.
    """
    w = require.whole("width", width, 1, 1024)
    return DGCNN(classes, w, require.whole("k", k, 1, 256))


NETWORKS = {f.__name__: f for f in (pointnet, dgcnn)}


def neighbors(x: Tensor, k: int) -> Tensor:
    """Positions of the k points nearest to each point of x (n, p, c), itself first:
    (n, p, k)."""
    return distances(x, x).topk(k, dim=2, largest=False).indices


# -------------------------------------------------------------------- looking inside


@torch.no_grad()
def critical_points(model: nn.Module, x: Tensor) -> Tensor:
    """How many channels of the last max pooling each point wins: (n, p) int64.

    A channel that is 0 at every point has no winner. What a PointNet answers depends on
    the winners alone. Equal points share nothing: the first one wins.

    Args:
        x: clouds (n, p, 3).

    Raises:
        ValueError: no clouds, or a network without a `Pool` over their points.

    Source: Qi et al., "PointNet", CVPR 2017, where they are called the critical set.
    """
    CLOUDS.check_inputs(x)
    pools = [m for m in require.module(model).modules() if isinstance(m, Pool)]
    if not pools:
        raise ValueError("the network has no max pooling over points, so no point wins a channel.")
    seen: list[Tensor] = []
    hook = pools[-1].register_forward_hook(lambda _, args, out: seen.append(args[0]))
    try:
        with evaluating(model):
            model(x)
    finally:
        hook.remove()
    (maps,) = seen
    if maps.shape[2] != x.shape[1]:
        raise ValueError("the last max pooling of the network is not over the points of a cloud.")
    best, who = maps.max(2)
    wins = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
    return wins.scatter_add_(1, who, (best > 0).long())


# -------------------------------------------------------------------- outlier removal


def outliers(x: Tensor, k: int = 4, alpha: float = 1.5, both: bool = False) -> Tensor:
    """Which points of clouds x (n, p, 3) are statistical outliers: bool (n, p).

    With d_i the mean distance of point i to its k nearest neighbors, those with
    d_i > mean(d) + alpha * deviation(d), over the points of the cloud.

    Args:
        k: neighbors, 1..p-1.
        alpha: deviations; above 0.
        both: also the crowded ones, d_i < mean(d) - alpha * deviation(d).

    Source: statistical outlier removal of Rusu, Marton, Blodow, Dolha and Beetz, "Towards
    3D Point Cloud Based Object Maps for Household Environments", 2008.
    """
    CLOUDS.check_inputs(x)
    require.whole("k", k, 1, x.shape[1] - 1)
    require.number("alpha", alpha, above=0)
    require.truth("both", both)
    d = distances(x, x).topk(k + 1, dim=2, largest=False).values[..., 1:].mean(2)
    off = d - d.mean(1, keepdim=True)
    off = off.abs() if both else off
    return off > alpha * d.std(1, keepdim=True)


class OutlierRemoval(nn.Module):
    """A network that sees each cloud without its outliers, see :func:`outliers`.

    The number of points stays: each outlier moves onto the nearest point that is kept,
    which a maximum over points does not notice.
    """

    def __init__(
        self, network: nn.Module, k: int = 4, alpha: float = 1.5, both: bool = False
    ) -> None:
        super().__init__()
        self.network = require.module(network, "network")
        self.k = require.whole("k", k, 1)
        self.alpha = require.number("alpha", alpha, above=0)
        self.both = require.truth("both", both)

    def forward(self, x: Tensor) -> Tensor:
        out = outliers(x, self.k, self.alpha, self.both)
        far = distances(x, x).masked_fill(out[:, None], torch.inf)
        kept = far.argmin(2)  # of a kept point, itself
        kept = torch.where(out, kept, torch.arange(x.shape[1], device=x.device))
        return self.network(x.gather(1, kept[..., None].expand_as(x)))
