"""One small network of each kind that other people bring along.

Each takes pixels in [0, 1], (n, 3, 16, 16) unless it is gray, and tells three classes
apart unless that is what is wrong with it. `NETWORKS` has them all by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

K = 3


def stack(*more: nn.Module, norm: Callable[..., nn.Module] | None = nn.BatchNorm2d):
    """conv-norm-ReLU twice, pooling and a linear head, then whatever follows."""
    norms = [norm(4), norm(6)] if norm else [nn.Identity(), nn.Identity()]
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        norms[0],
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        norms[1],
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, K),
        *more,
    )


class Net(nn.Module):
    """Two convolutions with norms, for those who write their forward themselves."""

    channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(self.channels, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(6 * 4 * 4, K)

    def front(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        return F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.front(x).flatten(1))


class Views(Net):
    """Flattens with `.view`, which takes contiguous maps for granted."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x)
        return self.fc(x.view(x.size(0), -1))


class Twice(Net):
    """One ReLU and one pooling, used in two places."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        x = self.pool(self.relu(self.bn2(self.conv2(x))))
        return self.fc(x.flatten(1))


class SharedNorm(Net):
    """One BatchNorm behind two convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn1(self.conv2(x))), 2)
        return self.fc(x.flatten(1))


class SharedConv(Net):
    """A convolution that runs twice, each time with a BatchNorm of its own."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv2(self.conv1(x))))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 4)
        return self.fc(x.flatten(1))


class Tied(Net):
    """The same BatchNorm under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.bn2 = self.bn1


class Tuple(Net):
    """Logits and features."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.front(x)
        return self.fc(x.flatten(1)), x


class Dict(Net):
    """Logits by name."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": super().forward(x)}


class Untraceable(Net):
    """Code that depends on values, which torch.fx cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) < 0:
            x = -x
        return super().forward(x)


class Gray(Untraceable):
    """The same for gray images."""

    channels = 1


class Wide(nn.Module):
    """A wide residual block: BatchNorm first, dropout as a function, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(8) for _ in range(3))
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.fc = nn.Linear(8, K)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        out = self.conv2(F.relu(self.bn1(x)))
        out = F.dropout(F.relu(self.bn2(out)), 0.3, training=self.training)
        x = x + self.conv3(out)
        x = F.avg_pool2d(F.relu(self.bn3(x)), 16)
        return self.fc(x.view(-1, 8))


class Branches(Net):
    """Two convolutions side by side, put together before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2 * 6 * 4 * 4, K)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 4)
        y = F.relu(self.bn2(self.conv2(x)))
        return self.fc(torch.cat([x, y], 1).flatten(1))


def profiled() -> nn.Module:
    """The buffers that a profiler leaves in every module."""
    net = stack()
    for m in net.modules():
        m.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
        m.register_buffer("total_params", torch.zeros(1, dtype=torch.float64))
    return net


def older(norm: Callable) -> nn.Module:
    """Weight or spectral norm by a hook that writes the weight in each pass."""
    net = stack()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        norm(net[0])
    return net


def newer(norm: Callable) -> nn.Module:
    """The same by a parametrization."""
    net = stack()
    norm(net[0])
    return net


@torch.no_grad()
def damaged(where: str, value: float) -> nn.Module:
    """One number of a plain network is wrong."""
    net = stack()
    net.state_dict()[where].view(-1)[0] = value
    return net


@torch.no_grad()
def overflowing() -> nn.Module:
    """Finite weights, and answers that are not."""
    net = stack()
    net[8].weight.fill_(3e38)
    net[4].bias.fill_(1.0)
    return net


class Twin(nn.Module):
    """A network that some defense can take apart, beside one parameter of no use."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.unused = stack(), nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def group(c: int) -> nn.Module:
    return nn.GroupNorm(2, c)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": stack,
    "view": Views,
    "relu and pool used twice": Twice,
    "shared norm": SharedNorm,
    "shared convolution": SharedConv,
    "one norm of two names": Tied,
    "tuple": Tuple,
    "dict": Dict,
    "untraceable": Untraceable,
    "gray and untraceable": Gray,
    "wide": Wide,
    "branches": Branches,
    "profiled": profiled,
    "unused parameter": Twin,
    "softmax": lambda: stack(nn.Softmax(1)),
    "log-softmax": lambda: stack(nn.LogSoftmax(1)),
    "dropout": lambda: nn.Sequential(*stack()[:8], nn.Dropout(0.5), stack()[8]),
    "weight norm, older": lambda: older(nn.utils.weight_norm),
    "spectral norm, older": lambda: older(nn.utils.spectral_norm),
    "weight norm": lambda: newer(nn.utils.parametrizations.weight_norm),
    "spectral norm": lambda: newer(nn.utils.parametrizations.spectral_norm),
    "nan": lambda: damaged("3.weight", float("nan")),
    "infinity": lambda: damaged("8.bias", float("inf")),
    "nan mean": lambda: damaged("1.running_mean", float("nan")),
    "negative variance": lambda: damaged("4.running_var", -0.5),
    "overflow": overflowing,
    "no scale": lambda: stack(norm=lambda c: nn.BatchNorm2d(c, affine=False)),
    "one without scale": lambda: nn.Sequential(
        *stack()[:1], nn.BatchNorm2d(4, affine=False), *stack()[2:]
    ),
    "no norm": lambda: stack(norm=None),
    "group norm": lambda: stack(norm=group),
    "no statistics": lambda: stack(norm=lambda c: nn.BatchNorm2d(c, track_running_stats=False)),
    "frozen": lambda: stack().requires_grad_(False),
    "double": lambda: stack().double(),
    "one logit": lambda: nn.Sequential(*stack()[:8], nn.Linear(6, 1)),
    "ten classes": lambda: nn.Sequential(*stack()[:8], nn.Linear(6, 10)),
    "no shape yet": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(K)),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, K)),
    "no weights": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
}


def build(kind: str, seed: int = 0) -> nn.Module:
    """A network of this kind, in eval mode, with statistics of a network in use."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = NETWORKS[kind]()
    if kind in ("plain", "dropout", "wide", "relu and pool used twice"):
        g = torch.Generator().manual_seed(seed)
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.copy_(torch.randn(m.num_features, generator=g) / 10)
                m.running_var.copy_(torch.rand(m.num_features, generator=g) + 0.5)
                m.weight.data.copy_(torch.rand(m.num_features, generator=g) + 0.5)
    return net.eval()
