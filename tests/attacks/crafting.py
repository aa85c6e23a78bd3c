"""What the tests of attacks that are crafted on a model share."""

from __future__ import annotations

import json

import torch
from torch import nn

from bdcourse.attacks import Attack, rebuild
from bdcourse.models import build
from helpers import gen, randomize_norms


def net(name: str = "resnet18", k: int = 3, width: int = 4, seed: int = 0) -> nn.Module:
    """An untrained network with the BatchNorms of one in use."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return randomize_norms(build(name, classes=k, width=width), seed)


def pixels(n: int = 4, side: int = 8, seed: int = 0):
    return torch.rand(n, 3, side, side, generator=gen(seed))


def survives_json(attack: Attack) -> None:
    """Written down and made again, an attack is the same, without what is private."""
    x, y = pixels(3, 16), torch.arange(3)
    spec, tensors = attack.spec()
    assert "surrogates" not in spec, "private"
    assert not any(k.startswith("surrogates") for k in tensors)
    again = rebuild(json.loads(json.dumps(spec)), tensors)
    assert type(again) is type(attack)
    assert torch.allclose(again.trigger(x), attack.trigger(x), atol=1e-6)
    assert torch.equal(again.goal(y), attack.goal(y))
    assert again.stands_in == attack.stands_in
    assert again.spec()[0] == spec
    assert all(torch.equal(again.spec()[1][k], v) for k, v in tensors.items())
