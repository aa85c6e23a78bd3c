"""Narrow networks on any processor: no crash, and the right gradients.

On AVX2 without AVX-512, torch writes past its workspace where a strided 1x1
convolution of few input channels is channels_last (oneDNN issue 6035). A corrupted
heap may kill the interpreter much later and elsewhere, so what trains narrow networks
runs in a process of its own here: if it dies, one test is red and says why.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bdcourse
from bdcourse.models import build, guarded, laid_out, lay_out, memory_format
from helpers import gen

LAST, PLAIN = torch.channels_last, torch.contiguous_format


def alone(code: str) -> str:
    """What `code` prints in a fresh interpreter, which must survive it."""
    head = "import sys; sys.path.insert(0, 'tests')\n"
    run = [sys.executable, "-c", head + code]
    try:
        p = subprocess.run(run, capture_output=True, text=True, timeout=600)
    except subprocess.TimeoutExpired:
        pytest.fail("the process hangs, as narrow networks do on a corrupted heap")
    assert p.returncode >= 0, (
        f"the process was killed by signal {-p.returncode}: a narrow strided 1x1 "
        "convolution has met channels_last, see models.memory_format"
    )
    assert p.returncode == 0, p.stderr[-2000:]
    return p.stdout


class Shortcut(nn.Module):
    """A strided 1x1 convolution beside a 3x3 one, as in every ResNet."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, c, 3, padding=1)
        self.conv = nn.Conv2d(c, 2 * c, 3, 2, padding=1)
        self.short = nn.Conv2d(c, 2 * c, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return (self.conv(x) + self.short(x)).mean((2, 3))


Shortcut.__module__ = "bdcourse.tests"  # one of ours: its code is known


def test_only_narrow_strided_shortcuts_are_kept_from_channels_last():
    for width, want in ((2, PLAIN), (4, PLAIN), (7, PLAIN), (8, LAST), (16, LAST)):
        assert memory_format(Shortcut(width)) is want, width
    for name in ("resnet18", "preact_resnet18"):
        assert memory_format(build(name, width=4)) is PLAIN
        assert memory_format(build(name, width=8)) is LAST
    assert memory_format(build("vgg16_bn", width=2)) is LAST, "it has no shortcut"
    grouped = nn.Sequential(nn.Conv2d(16, 16, 1, 2, groups=4))
    assert memory_format(grouped) is PLAIN, "four channels a group"


def test_one_place_decides():
    home = Path(bdcourse.__file__).parent
    speak = [f.name for f in home.rglob("*.py") if "channels_last" in f.read_text()]
    assert speak == ["models.py"]


def test_networks_without_2d_convolutions_stay_contiguous():
    for net in (
        nn.Linear(3, 2),
        nn.Sequential(nn.Conv1d(3, 8, 3)),
        nn.Sequential(nn.Conv3d(3, 8, 3)),
        nn.Flatten(),
    ):
        assert memory_format(net) is PLAIN
        assert lay_out(net) is net


class Views(nn.Module):
    """The most copied network of all: its maps are flattened with .view."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 6 * 6, 3)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.fc(F.relu(self.conv(x)).view(len(x), -1))


class Reshapes(Views):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv(x)).flatten(1))


def test_strangers_are_tried_once_and_watchers_see_nothing():
    x, net, seen = torch.rand(4, 3, 8, 8), Views(), []
    net.conv.register_forward_hook(lambda *_: seen.append(1))
    net.train()
    assert memory_format(net) is PLAIN, "without a shape nobody can tell"
    assert memory_format(net, x) is PLAIN and memory_format(Reshapes(), x) is LAST
    assert net.training and not seen
    calls = net.calls
    memory_format(net, x)
    assert net.calls == calls
    assert torch.equal(net(laid_out(net, x)), net(x)) and seen
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        lay_out(net.to(memory_format=LAST))(x.to(memory_format=LAST))


def test_trying_a_stranger_draws_nothing_from_the_global_generator():
    class Noisy(Reshapes):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.rand_like(x))

    net = Noisy()
    torch.manual_seed(0)
    want = torch.rand(1)
    torch.manual_seed(0)
    memory_format(net, torch.rand(2, 3, 8, 8, generator=gen()))
    assert torch.equal(torch.rand(1), want)


GRADIENTS = """
import torch
from test_memory_format import Shortcut
from bdcourse.models import laid_out, lay_out
from helpers import gen
for c in range(2, 33):
    torch.manual_seed(c)
    net = Shortcut(c)
    exact = Shortcut(c).double()
    exact.load_state_dict(net.state_dict())
    # As the augmentation makes it: channels_last, whatever the network would like.
    x = torch.rand(16, 32, 32, 3, generator=gen(c)).permute(0, 3, 1, 2)
    lay_out(net.to(memory_format=torch.channels_last), x)
    if c < 8:  # a kernel of 1x1 counts as contiguous in either format
        for p in net.parameters():
            assert p.stride() == torch.empty(p.shape).stride()
    for _ in range(3):
        net.zero_grad()
        net(laid_out(net, x)).square().sum().backward()
    exact(x.double().contiguous()).square().sum().backward()
    for p, q in zip(net.parameters(), exact.parameters()):
        error = float((p.grad - q.grad).abs().max() / q.grad.abs().max())
        assert error < 1e-4, (c, error)
print("right")
"""


@pytest.mark.slow
def test_gradients_of_narrow_networks_agree_with_float64():
    assert alone(GRADIENTS) == "right\n"


TRAINING = """
import torch
from bdcourse import defenses, models
from bdcourse.analysis import curvature
from bdcourse.train import Augment, fit
from helpers import gen, random_images
images, augment = random_images(48, 3, 16), Augment(2)
gray = random_images(48, 3, 16, c=1)
one = dict(mean=(0.5,), std=(0.5,))
trained = []
for name, width, data, norm in (
    ("resnet18", 2, images, {}), ("preact_resnet18", 4, images, {}),
    ("resnet18", 6, gray, one),
):
    model = models.build(name, classes=3, width=width, **norm)
    fit(model, data, epochs=4, augment=augment, generator=gen(), verbose=False)
    trained.append(model)
print("alive")
"""
REPAIR = """
for model in trained[:2]:
    # A caller's own layout, which the course must not trip over.
    model.to(memory_format=torch.channels_last)
    for route in ("signed", "exact"):
        curvature.fisher_trace(
            model, images[:8], route=route, fisher="empirical", draws=2, generator=gen()
        )
    few = dict(steps=3, batch=16, generator=gen())
    defenses.fip(model, images, eta_f=0.005, **few)
    defenses.fip(model, images, eta_f=0.005, augment=augment, **few)
    defenses.anp(model, images, threshold=0.2, **few)
    defenses.finetune(model, images, epochs=1, augment=augment, generator=gen())
    defenses.i_bau(model, images[:8], rounds=1, batch=8, generator=gen())
print("still alive")
"""


@pytest.mark.slow
def test_narrow_networks_survive_training_and_repair():
    assert alone(TRAINING + REPAIR).endswith("alive\n")


@pytest.mark.slow
def test_narrow_networks_survive_training_on_two_threads():
    head = "import torch\ntorch.set_num_threads(2)\n"  # where the crash was a hang
    assert alone(head + TRAINING).endswith("alive\n")


def test_a_guarded_network_of_another_layout_gives_the_same_gradients():
    net, x = Shortcut(9), torch.rand(4, 3, 8, 8, generator=gen())
    net.short.in_channels = 4  # as if it were narrow
    want = torch.autograd.grad(net(x).sum(), net.short.weight)[0]
    net.to(memory_format=LAST)
    seen = []
    with guarded(net):
        hook = net.short.register_forward_pre_hook(lambda _, a: seen.append(a[0]))
        got = torch.autograd.grad(net(x.to(memory_format=LAST)).sum(), net.short.weight)
        hook.remove()
    assert torch.allclose(got[0], want, rtol=1e-4, atol=1e-5)
    assert seen[0].is_contiguous() and not net.short._forward_pre_hooks
