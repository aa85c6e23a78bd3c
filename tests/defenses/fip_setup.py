"""Networks, data and measures that the tests of FIP share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from bdcourse.analysis.curvature import gradient as slopes
from bdcourse.defenses import FipDescent, _fip, fip
from bdcourse.defenses._fip import trainable, twice
from bdcourse.likelihoods import SOFTMAX
from bdcourse.models import build
from helpers import gen, random_images, randomize_norms


def network(name="resnet18", seed=1):
    torch.manual_seed(seed)
    width = {"vit": 8, "mobilenet": 8}.get(name, 4)
    return randomize_norms(build(name, classes=3, width=width), seed)


def smooth_net(act=nn.Tanh, seed=0):
    """No BatchNorm and, with Tanh, no kinks; float64, images of 6 pixels' side."""
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 4, 3), act(), nn.Flatten(), nn.Linear(64, 3)
    return nn.Sequential(*layers).double()


def norm_net(seed=0):
    """With BatchNorm; float64."""
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten()
    return randomize_norms(nn.Sequential(*layers, nn.Linear(64, 3)).double(), seed)


def small(n=8, seed=0):
    """Images for these two, and their pixels in float64."""
    images = random_images(n, side=6, seed=seed)
    return images, images.x.double() / 255


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def agree(a, b):
    """Cosine, and quotient of the lengths, of two lists of tensors."""
    a, b = flat(a), flat(b)
    return float(F.cosine_similarity(a, b, dim=0)), float(a.norm() / b.norm())


def trace_and_slope(model, x, score):
    """||g||^2 / n for the gradient g of score(outputs), and its exact gradient."""
    weights = trainable(model)
    g = slopes(score(twice(model, x)), weights, create_graph=True)
    square = sum(v.square().sum() for v in g) / len(x)
    return square.detach(), slopes(square, weights)


def grads(model):
    return [w.grad.clone() for w in trainable(model)]


def label_score(y):
    return lambda out: SOFTMAX.log_prob(out, y).sum()


def drawn_score(model, x, y, fisher, seed):
    """The labels, or signs, that a descent with this seed draws."""
    if fisher == "true":
        return label_score(SOFTMAX.sample(model(x), gen(seed)))
    sign = 2 * torch.randint(2, (len(y),), generator=gen(seed)) - 1
    return lambda out: (sign * SOFTMAX.log_prob(out, y)).sum()


def captured(monkeypatch, *args, f=fip, **options):
    """The descent that a run builds."""
    seen = []

    def build_one(*args):
        seen.append(FipDescent(*args))
        return seen[0]

    monkeypatch.setattr(_fip, "FipDescent", build_one)
    f(*args, eta_f=1e-3, steps=1, lr=1e-6, **options)
    monkeypatch.undo()
    return seen[0]


def with_idle(net):
    """The same network and a parameter that it does not use."""

    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.idle = net, nn.Parameter(torch.ones(2).double())

        def forward(self, x):
            return self.net(x)

    return Idle()


class Toy(nn.Module):
    """Next-token logits from the mean of the tokens so far."""

    def __init__(self, k=7, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(k, 5), nn.Linear(5, k)

    def forward(self, x):
        t = torch.arange(1, x.shape[1] + 1).view(1, -1, 1)
        return self.head(self.embed(x).cumsum(1) / t)
