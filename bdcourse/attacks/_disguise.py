"""Hiding a backdoor from whoever reads the weights: the same function, other numbers.

An attacker who hands over a network may first move its weights along the symmetries of
`bdcourse.symmetries`, until the score that a defender ranks channels by is the same for all
channels of a layer. Nothing is trained, and no answer changes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bdcourse import require
from bdcourse.symmetries import Group, channel_groups, scale_channels

Scores = Callable[[nn.Module], Mapping[str, Tensor]]


@torch.no_grad()
def disguise(model: nn.Module, scores: Scores, *, sweeps: int = 30) -> nn.Module:
    """A copy with the same answers, in which no channel's score stands out of its layer.

    Where one BatchNorm writes a group of channels, a_k = s_k / mean(s) makes all of its
    scores equal. Into a residual stream several write, who share one a: it takes the
    largest of their ratios, to the power 1/2, again and again, because a score also moves
    with the channels that its layer reads.

    Args:
        scores: what the defender reads, of the model: BatchNorm name -> (c,), which falls
            as 1 / a where the channel is divided by a; `defenses.clp_scores` is one.
        sweeps: how often all groups are gone through.

    Raises:
        ValueError: a network without a channel of which the scale is free, such as a
            Transformer; its code cannot be traced.
    """
    require.module(model)
    sweeps = require.whole("sweeps", sweeps, 0)
    if not any(isinstance(m, _BatchNorm) for m in model.modules()):
        raise ValueError(
            "this network has no BatchNorm, and behind LayerNorm or GELU a rescaled channel "
            "is another function: there is nothing to disguise."
        )
    model = copy.deepcopy(model)
    found = scores(model)
    groups = [g for g in channel_groups(model) if all(name in found for name in g.writers)]
    if not groups:
        raise ValueError("none of the channels that are scored here can be rescaled.")
    for _ in range(sweeps):
        found = scores(model)
        scale_channels(model, {g: _excess(found, g).sqrt() for g in groups})
    for g in groups:
        if len(g.writers) == 1:
            scale_channels(model, {g: _excess(scores(model), g)})
    return model


def _excess(found: Mapping[str, Tensor], group: Group) -> Tensor:
    """How far each channel lies above its layer's mean, the largest over those who write
    it; 1 for a channel that scores nothing."""
    ratios = torch.stack([found[name] / found[name].mean() for name in group.writers])
    most = ratios.amax(0)
    return torch.where(most > 0, most, torch.ones_like(most))
