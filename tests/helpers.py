"""Small things that several test files need."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from bdcourse.data import Images

# One thread: tiny tensors gain nothing from more, and a busy machine punishes it.
torch.set_num_threads(1)

# The repository.
ROOT = Path(__file__).resolve().parents[1]


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n: int = 24, k: int = 3, side: int = 8, c: int = 3, seed: int = 0):
    """Noise images with labels 0..k-1 in equal shares."""
    x = torch.randint(0, 256, (n, c, side, side), dtype=torch.uint8, generator=gen(seed))
    return Images(x, torch.arange(n) % k, tuple(f"class {i}" for i in range(k)))


def labeled_images(n: int = 30, k: int = 10, side: int = 8) -> Images:
    """Images whose first pixel tells the label: see :class:`ReadsPixel`."""
    images = random_images(n, k, side)
    images.x[:, 0, 0, 0] = (images.y * 20).to(torch.uint8)
    return images


class ReadsPixel(nn.Module):
    """Predicts what the first pixel says; `fooled` if the last pixel is white."""

    def __init__(self, k: int = 10, fooled: int | None = None) -> None:
        super().__init__()
        self.k, self.fooled = k, fooled
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        label = (x[:, 0, 0, 0] * 255 / 20).round().long()
        if self.fooled is not None:
            triggered = (x[:, :, -1, -1] == 1).all(1)
            label = torch.where(triggered, self.fooled, label)
        return nn.functional.one_hot(label, self.k).float()


class Says(nn.Module):
    """Predicts the same label for every image."""

    def __init__(self, label: int, k: int = 10) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.eye(k)[label])

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand(len(x), -1)


def randomize_norms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm the scales and statistics of a network in use."""
    g = gen(seed)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            shape = m.running_mean.shape
            if m.affine:
                m.weight.data.copy_(torch.randn(shape, generator=g) + 1)
                m.bias.data.copy_(torch.randn(shape, generator=g))
            m.running_mean.copy_(torch.randn(shape, generator=g))
            m.running_var.copy_(torch.rand(shape, generator=g) + 0.1)
    return model.eval()


def frozen(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every tensor of a model, to compare with later."""
    return {k: v.clone() for k, v in model.state_dict().items()}


def same_state(model: nn.Module, before: dict[str, Tensor]) -> bool:
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[k], v) for k, v in before.items())


def message(excinfo) -> str:
    """The text of an error, which must be one sentence on one line."""
    text = str(excinfo.value)
    assert "\n" not in text
    assert text.endswith(".")
    assert ". " not in text, f"more than one sentence: {text}"
    return text
