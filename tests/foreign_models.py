"""Networks of other projects, and files as BackdoorBench writes them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from bdcourse.models import CIFAR_MEAN, CIFAR_STD
from helpers import gen, message, random_images, randomize_norms

K, WIDTH = 5, 4


class Block(nn.Module):
    def __init__(self, c_in, c_out, stride, pre, skip):
        super().__init__()
        self.pre, self.skip = pre, skip
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_in if pre else c_out)
        self.bn2 = nn.BatchNorm2d(c_out)
        side = [nn.Conv2d(c_in, c_out, 1, stride, bias=False)]
        side += [] if pre else [nn.BatchNorm2d(c_out)]
        if stride > 1:
            setattr(self, skip, nn.Sequential(*side))

    def forward(self, x):
        if self.pre:
            y = self.bn1(x).relu()
            side = getattr(self, self.skip)(y) if hasattr(self, self.skip) else x
            return self.conv2(self.bn2(self.conv1(y)).relu()) + side
        side = getattr(self, self.skip)(x) if hasattr(self, self.skip) else x
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + side).relu()


class Plain(nn.Module):
    """Takes normalized images of 32 pixels; depth counts the blocks of a stage."""

    def __init__(self, pre=False, skip="shortcut", top="linear", depth=2, stem=3):
        super().__init__()
        self.pre, self.top = pre, top
        self.conv1 = nn.Conv2d(3, WIDTH, stem, 1, stem // 2, bias=False)
        if not pre:
            self.bn1 = nn.BatchNorm2d(WIDTH)
        c = WIDTH
        for i in range(4):
            blocks = [Block(c, WIDTH << i, 1 + (i > 0), pre, skip)]
            c = WIDTH << i
            blocks += [Block(c, c, 1, pre, skip) for _ in range(depth - 1)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        setattr(self, top, nn.Linear(c, K))

    def forward(self, x):
        x = self.conv1(x)
        x = x if self.pre else self.bn1(x).relu()
        for i in range(4):
            x = getattr(self, f"layer{i + 1}")(x)
        return getattr(self, self.top)(F.avg_pool2d(x, 4).flatten(1))


class VGG(nn.Module):
    def __init__(self):
        super().__init__()
        layers, c_in = [], 3
        for c in (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0):
            if c:
                layers += [nn.Conv2d(c_in, c * WIDTH, 3, padding=1)]
                layers += [nn.BatchNorm2d(c * WIDTH), nn.ReLU()]
                c_in = c * WIDTH
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.AvgPool2d(1))
        self.classifier = nn.Linear(8 * WIDTH, K)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


class Odd(nn.Module):
    """An architecture that the course does not have."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.out = nn.Linear(6, K)

    def forward(self, x):
        return self.out(self.body(x).mean((2, 3)))


OTHERS = {
    "resnet": Plain,
    "preact": lambda: Plain(pre=True),
    "torchvision": lambda: Plain(skip="downsample", top="fc"),
    "vgg": VGG,
    "odd": Odd,
}


def made(kind, seed=0):
    torch.manual_seed(seed)
    return randomize_norms(OTHERS[kind](), seed)


def normal(x, mean=CIFAR_MEAN, std=CIFAR_STD):
    mean, std = (torch.tensor(v)[None, :, None, None] for v in (mean, std))
    return (x - mean) / std


def pixels(n=3, side=32):
    return torch.rand(n, 3, side, side, generator=gen(1))


def same_answers(model, other, mean=CIFAR_MEAN, std=CIFAR_STD):
    with torch.no_grad():
        ours, theirs = model(pixels()), other(normal(pixels(), mean, std))
    assert theirs.std() > 1e-3, "the comparison would see nothing"
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, atol=1e-4)


def saved(tmp_path, thing, name="model.pt"):
    torch.save(thing, tmp_path / name)
    return tmp_path / name


def refused(kind, call, *words):
    with pytest.raises(kind) as e:
        call()
    text = message(e)
    for word in words:
        assert word in text, text
    return text


def record(folder, n=24, side=8, target=1, model=None, **changes):
    """An attack_result.pt as BackdoorBench v2 writes it; its path and its images."""
    clean = random_images(n, K, side, seed=3)
    x = clean.x.clone()
    x[:, :, -2:, -2:] = 255
    base, box = "/home/somebody/record/run/bd_test_dataset", {}
    rows = (clean.y != target).nonzero().flatten().numpy()
    for i in rows:  # numpy integers, as in the original
        y = int(clean.y[i])
        (folder / "bd_test_dataset" / f"{y}").mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(x[i].permute(1, 2, 0).numpy())
        picture.save(folder / "bd_test_dataset" / f"{y}" / f"{i}.png")
        box[i] = {"path": f"{base}/{y}/{i}.png", "other_info": [target, y]}
    poisoned = np.zeros(n)
    poisoned[rows] = 1
    container = {"save_folder_path": base, "data_dict": box, "save_file_format": ".png"}
    state = {
        "bd_data_container": container,
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": np.arange(n)[rows],
        "poison_indicator": poisoned,
        "save_folder_path": base,
    }
    whole = {
        "model_name": "preactresnet18",
        "num_classes": K,
        "model": (model or made("preact")).state_dict(),
        "data_path": "../data/cifar10",
        "img_size": (side, side, 3),
        "clean_data": "cifar10",
        "bd_train": copy.deepcopy(state),
        "bd_test": state,
    }
    torch.save({**whole, **changes}, folder / "attack_result.pt")
    return folder / "attack_result.pt", x[torch.from_numpy(rows)], clean


def changed(path, change):
    whole = torch.load(path, weights_only=False)
    change(whole)
    torch.save(whole, path)
