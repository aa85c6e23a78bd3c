"""Small networks, and their Fisher and Hessian as whole matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from bdcourse.analysis import curvature as c
from bdcourse.models import build
from helpers import random_images, randomize_norms


def mlp(k=3, inputs=4, hidden=5, seed=0):
    """A smooth net of 43 weights in float64; its input has 4 pixels."""
    torch.manual_seed(seed)
    layers = nn.Flatten(), nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, k)
    return nn.Sequential(*layers).double()


def conv_net(seed=0, batchnorm=True):
    """Convolution, BatchNorm, ReLU: 99 weights, in float64."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(4) if batchnorm else nn.Identity()
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        norm,
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()
    return randomize_norms(net, seed)


def tiny(n=9, k=3, side=2, channels=1, seed=3):
    return random_images(n, k, side, channels, seed)


def network(name="resnet18", **spec):
    torch.manual_seed(1)
    width = {"vit": 8, "mobilenet": 8}.get(name, 4)
    return randomize_norms(build(name, classes=3, width=width, **spec), 1)


def scores(model, images, labels):
    """The slow way, one image and one label at a time: a flat score (p,) for each."""
    rows = []
    for x, y in zip(images.x.double() / 255, labels, strict=True):
        log_p = model.eval()(x[None]).log_softmax(1)[0, y]
        g = torch.autograd.grad(log_p, list(model.parameters()))
        rows.append(torch.cat([t.flatten() for t in g]))
    return torch.stack(rows)


def dense_fisher(model, images, fisher="true"):
    """(p, p), by a loop over images and labels."""
    if fisher == "empirical":
        s = scores(model, images, images.y)
        return s.T @ s / len(images)
    p = model.eval()(images.x.double() / 255).softmax(1).detach()
    parts = []
    for label in range(p.shape[1]):
        s = scores(model, images, [label] * len(images))
        parts.append((s * p[:, label, None]).T @ s)
    return sum(parts) / len(images)


def flat_loss(model, images):
    """weights (p,) -> mean cross-entropy."""

    def loss(vector):
        out = functional_call(model.eval(), c.unflatten(model, vector), images.x.double() / 255)
        return F.cross_entropy(out, images.y)

    return loss, torch.cat([w.detach().flatten() for w in model.parameters()])


def dense_hessian(model, images):
    loss, w = flat_loss(model, images)
    return torch.autograd.functional.hessian(loss, w)


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors.values()])
