"""The same function with other weights: which channels are free, and that nothing moves."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bdcourse.models import build
from bdcourse.symmetries import (
    Group,
    canonical,
    channel_chains,
    channel_groups,
    permute_channels,
    read_norms,
    scale_channels,
    split_channel,
)
from bdcourse.tasks import video  # noqa: F401  # enters conv3d
from helpers import frozen, gen, message, randomize_norms, same_state

NETWORKS = ("resnet18", "preact_resnet18", "vgg16_bn", "airbench", "mobilenet", "conv3d")


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomize_norms(build(name, classes=5, width=4)).double().eval()


def inputs(name: str) -> torch.Tensor:
    shape = (3, 3, 4, 16, 16) if name == "conv3d" else (3, 3, 32, 32)
    return torch.rand(shape, generator=gen(1), dtype=torch.float64)


def factors(model: nn.Module, seed: int = 2) -> dict:
    g = gen(seed)
    return {
        group: torch.randn(group.size, generator=g, dtype=torch.float64).exp()
        for group in channel_groups(model)
    }


def apart(a: nn.Module, b: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((a(x) - b(x)).norm() / a(x).norm())


@pytest.mark.parametrize("name", NETWORKS)
def test_no_answer_changes(name):
    model, x = network(name), inputs(name)
    other = copy.deepcopy(model)
    scale_channels(other, factors(model))
    assert apart(model, other, x) < 1e-12
    moved = [
        not torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True)
    ]
    assert sum(moved) > len(moved) / 2
    before = frozen(model)
    assert apart(model, canonical(model), x) < 1e-12 and same_state(model, before)
    shuffled = copy.deepcopy(model)
    permute_channels(shuffled, gen())
    assert apart(model, shuffled, x) < 1e-12


@pytest.mark.parametrize("name", NETWORKS)
def test_rescaled_copies_have_one_canonical_form(name):
    model = network(name)
    other = copy.deepcopy(model)
    scale_channels(other, factors(model))
    own, same = canonical(model).state_dict(), canonical(other).state_dict()
    for key, value in own.items():
        torch.testing.assert_close(same[key], value, rtol=1e-9, atol=1e-12)


def test_inside_blocks_and_along_streams_of_a_resnet():
    found = channel_groups(build("resnet18", width=4))
    by_bn = {g.writers: g.readers for g in found if "bn1" in g.writers[0]}
    assert by_bn[("layer1.0.bn1",)] == ("layer1.0.conv2",)
    assert by_bn[("bn1", "layer1.0.bn2", "layer1.1.bn2")] == (
        "layer1.0.conv1",
        "layer1.1.conv1",
        "layer2.0.conv1",
        "layer2.0.shortcut.0",
    )
    last = next(g for g in found if "linear" in g.readers)
    assert last.writers == ("layer4.0.bn2", "layer4.0.shortcut.1", "layer4.1.bn2")
    # 20 convolutions before their BatchNorms, 8 blocks, 4 stages.
    assert len(found) == 32
    assert (
        str(last)
        == "layer4.0.bn2 + layer4.0.shortcut.1 + layer4.1.bn2 -> layer4.1.conv1, linear (32)"
    )


class Odd(nn.Module):
    """A convolution and a BatchNorm, `between`, and a convolution that reads it."""

    def __init__(self, between) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.read, self.between = nn.Conv2d(4, 2, 3), between

    def forward(self, x):
        return self.read(self.between(self.bn(self.conv(x)))).mean((2, 3))


@pytest.mark.parametrize(
    ("between", "free"),
    [
        (F.relu, True),
        (nn.LeakyReLU(0.2), True),
        (lambda x: F.max_pool2d(F.relu(x), 2) / 9, True),
        (lambda x: torch.flatten(x, 1).relu(), False),  # a method that is not known
        (F.relu6, False),
        (nn.GELU(), False),
        (nn.Sigmoid(), False),
        (lambda x: x + 1, False),
        (lambda x: x * x.mean((2, 3), keepdim=True), False),
        (lambda x: torch.cat([x[:, :2], x[:, 2:]], 1), False),
        (lambda x: x.mean(1, keepdim=True).expand(-1, 4, -1, -1), False),
    ],
)
def test_only_what_passes_a_factor_on_leaves_channels_free(between, free):
    groups = {g.writers for g in channel_groups(Odd(between).eval())}
    assert (("bn",) in groups) is free
    assert ("conv",) in groups  # the BatchNorm undoes it


def test_weights_used_twice_stay():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.again = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1)
            self.tied = nn.Conv1d(4, 4, 1)
            self.tied.weight = self.again.weight
            self.bare, self.last = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1)

        def forward(self, x):
            x = self.conv(F.relu(self.conv(x)))
            x = self.tied(F.relu(self.again(F.relu(x))))
            x = F.relu(self.bare(F.relu(x)))
            return self.last(x) + self.bare.weight.sum()

    assert channel_groups(Twice()) == ()


def test_a_flattened_map_and_grouped_convolutions():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 12, 3, groups=3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 16, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 2),
    ).double()
    randomize_norms(model).eval()
    x = torch.rand(2, 3, 8, 8, generator=gen(), dtype=torch.float64)
    other = copy.deepcopy(model)
    scale_channels(other, factors(model))
    assert len(factors(model)) == 5 and apart(model, other, x) < 1e-12
    group = next(g for g in channel_groups(model) if g.readers == ("6",))
    rows = model[6].weight.view(8, 12, 16)
    torch.testing.assert_close(read_norms(model, group), rows.square().sum((0, 2)).sqrt())
    grouped = next(g for g in channel_groups(model) if g.readers == ("3",))
    by_hand = [model[3].weight[4 * (k // 2) : 4 * (k // 2) + 4, k % 2].norm() for k in range(6)]
    torch.testing.assert_close(read_norms(model, grouped), torch.stack(by_hand))
    # Channels that are read in groups keep their place; the last eight may move.
    assert [c.rows for c in channel_chains(model)] == [("6", "7")]


@pytest.mark.parametrize("bn", ["layer1.0.bn1", "layer2.0.bn2"])
def test_a_channel_in_several_copies(bn):
    model, x = network("resnet18"), inputs("resnet18")
    wide = split_channel(model, bn, 1, 3)
    assert apart(model, wide, x) < 1e-12
    size = model.get_submodule(bn).num_features
    assert wide.get_submodule(bn).num_features == size + 2
    assert wide.get_submodule(bn.replace("bn", "conv")).out_channels == size + 2
    wide.train()(x)  # and it trains
    assert split_channel(model, bn, 0, 1).get_submodule(bn).num_features == size


def test_refusals():
    model = network("resnet18")
    group = channel_groups(model)[0]
    ones = torch.ones(group.size, dtype=torch.float64)
    before = frozen(model)
    for a, says in (
        (ones[:2], "must be of shape (4,)"),
        (-ones, "positive and finite"),
        (ones * float("inf"), "positive and finite"),
        (ones * 1e6, "is too large: the BatchNorm behind it would need a negative variance"),
    ):
        with pytest.raises(ValueError) as e:
            scale_channels(model, {group: a})
        assert says in message(e)
    with pytest.raises(ValueError, match="channels of 'linear' cannot be split"):
        split_channel(model, "linear", 0, 2)
    assert same_state(model, before)
    with pytest.raises(ValueError, match="cannot be followed"):
        channel_groups(build("vit", width=16))
    assert isinstance(group, Group)
