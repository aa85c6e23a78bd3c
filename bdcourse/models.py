"""The networks of the course: any width, 32-pixel stems, pixels in, logits out.

Every model normalises its input as its first step, so triggers, attacks and defenses
all work in [0, 1] and nothing can be normalised twice. The normalisation constants are
buffers outside the state dict: a checkpoint holds what was learned and nothing else.

`preact_resnet18` at width 64 uses the parameter names of BackdoorBench (102 tensors,
11,171,146 parameters at 10 classes), so its checkpoints load with `load_state_dict`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)


class Normalize(nn.Module):
    """(x - mean) / std per channel; x in [0, 1], shape (n, c, h, w)."""

    def __init__(self, mean=CIFAR_MEAN, std=CIFAR_STD) -> None:
        super().__init__()
        self.register_buffer(
            "mean", torch.tensor(mean).view(-1, 1, 1), persistent=False
        )
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def conv(c_in: int, c_out: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps height and width at stride 1."""
    return nn.Conv2d(c_in, c_out, size, stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, added to the skip, then ReLU (He et al. 2016a)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(c_in, c_out, stride=stride), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = conv(c_out, c_out), nn.BatchNorm2d(c_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(
                conv(c_in, c_out, 1, stride), nn.BatchNorm2d(c_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class PreActBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv, added to the skip (He et al. 2016b)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(c_in), conv(c_in, c_out, stride=stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(c_out), conv(c_out, c_out)
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(conv(c_in, c_out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        skip = self.shortcut(out) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(out)))) + skip


class ResNet(nn.Module):
    """Four stages of two blocks, widths w, 2w, 4w, 8w, behind a 3x3 stem."""

    def __init__(self, block, classes: int, width: int, norm: Normalize) -> None:
        super().__init__()
        self.normalize = norm
        self.conv1 = conv(norm.mean.numel(), width)
        if block is BasicBlock:
            self.bn1 = nn.BatchNorm2d(width)
        for i in range(4):
            c_in, c_out, stride = width * 2 ** max(i - 1, 0), width * 2**i, 1 + (i > 0)
            stage = nn.Sequential(block(c_in, c_out, stride), block(c_out, c_out, 1))
            setattr(self, f"layer{i + 1}", stage)
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.normalize(x))
        if hasattr(self, "bn1"):
            x = F.relu(self.bn1(x))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet18(
    classes: int = 10, width: int = 64, mean=CIFAR_MEAN, std=CIFAR_STD
) -> nn.Module:
    """ResNet-18 with a CIFAR stem; 20 BatchNorms, 4,800 channels at width 64."""
    return ResNet(BasicBlock, classes, width, Normalize(mean, std))


def preact_resnet18(
    classes: int = 10, width: int = 64, mean=CIFAR_MEAN, std=CIFAR_STD
) -> nn.Module:
    """PreActResNet-18 with a CIFAR stem and no final BatchNorm, as BackdoorBench's."""
    return ResNet(PreActBlock, classes, width, Normalize(mean, std))


def vgg16_bn(
    classes: int = 10, width: int = 64, mean=CIFAR_MEAN, std=CIFAR_STD
) -> nn.Module:
    """VGG-16 with BatchNorm for 32-pixel images: one linear layer as its head."""
    layers: list[nn.Module] = [Normalize(mean, std)]
    c_in = len(mean)
    for c, depth in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
        for _ in range(depth):
            c_out = c * width
            layers += [conv(c_in, c_out), nn.BatchNorm2d(c_out), nn.ReLU()]
            c_in = c_out
        layers.append(nn.MaxPool2d(2))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, classes)]
    return nn.Sequential(*layers, *head)


def mobilenet(
    classes: int = 10, width: int = 32, mean=CIFAR_MEAN, std=CIFAR_STD
) -> nn.Module:
    """torchvision's MobileNetV2 with stride 1 in the first two downsamplings.

    `width` is the number of channels of the first convolution (32 in the paper).
    """
    from bdcourse.compat import import_torchvision

    net = import_torchvision().models.mobilenet_v2(
        num_classes=classes, width_mult=width / 32
    )
    net.features[0][0].stride = (1, 1)
    net.features[2].conv[1][0].stride = (1, 1)
    return nn.Sequential(Normalize(mean, std), net)


def vit(
    classes: int = 10, width: int = 192, mean=CIFAR_MEAN, std=CIFAR_STD
) -> nn.Module:
    """torchvision's Vision Transformer: 4-pixel patches, 6 layers, heads of 64.

    `width` is the hidden size, a multiple of 64 (or of 8 below 64).
    """
    from bdcourse.compat import import_torchvision

    heads = max(1, width // 64)
    net = import_torchvision().models.VisionTransformer(
        image_size=32,
        patch_size=4,
        num_layers=6,
        num_heads=heads,
        hidden_dim=width,
        mlp_dim=4 * width,
        num_classes=classes,
    )
    # torchvision starts the head at zero, which leaves nothing to look at untrained.
    nn.init.trunc_normal_(net.heads.head.weight, std=0.02)
    return nn.Sequential(Normalize(mean, std), net)


MODELS: dict[str, Callable[..., nn.Module]] = {
    f.__name__: f for f in (resnet18, preact_resnet18, vgg16_bn, mobilenet, vit)
}


def build(name: str, **spec) -> nn.Module:
    """A model by name: build("resnet18", classes=12, width=16)."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(MODELS)}.")
    return MODELS[name](**spec)


def fingerprint(model: nn.Module) -> str:
    """The first 12 hex digits of a SHA-256 over names and values of the state dict.

    A pattern keeps it as `made_on`, so that everybody can tell which model it is from.
    """
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Eval mode inside the `with`; afterwards every module is in the mode it was in."""
    modes = {m: m.training for model in models for m in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for m, training in modes.items():
            m.training = training


def head(model: nn.Module) -> nn.Linear:
    """The last linear layer of a classifier, which gives the logits."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise ValueError("the model has no linear layer.")
    return layers[-1]


def head_inputs(model: nn.Module, x: Tensor) -> Tensor:
    """What the last linear layer gets for pixels x: (n, features)."""
    seen: list[Tensor] = []
    hook = head(model).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        model(x)
    finally:
        hook.remove()
    return seen[0]
