"""TAC, norms and Grad-CAM against values worked out by hand."""

import pytest
import torch
from torch import nn

from bdcourse import activations
from bdcourse.activations import ranks, spearman
from bdcourse.attacks import BadNets
from bdcourse.data import Images
from bdcourse.triggers import Trigger


def tiny() -> nn.Sequential:
    """One convolution that copies the mean of the colors, twice and negated."""
    conv = nn.Conv2d(3, 2, 1, bias=False)
    with torch.no_grad():
        conv.weight[0] = 1 / 3
        conv.weight[1] = -2 / 3
    head = nn.Linear(2, 2)
    net = nn.Sequential(
        conv, nn.BatchNorm2d(2, eps=0), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head
    )
    return net.train()


def test_tac_of_a_white_patch_on_black():
    images = Images(torch.zeros(7, 3, 8, 8).byte(), torch.zeros(7).long(), ("a", "b"))
    net = tiny()
    attack = BadNets(patch=torch.ones(1, 2, 2), at=(0, 0))
    tac = activations.tac(net, images, attack, batch=3)
    # Four pixels change by one: the norm over positions is sqrt(4), times 1 and 2.
    assert torch.allclose(tac["1"], torch.tensor([2.0, 4.0]), atol=1e-5)
    assert net.training and torch.equal(net[1].running_mean, torch.zeros(2))


def test_norms_over_positions():
    x = torch.zeros(3, 3, 4, 4)
    x[:, :, 0, :] = 1
    net = tiny()
    for p, want in ((1, 4.0), (2, 2.0), (float("inf"), 1.0)):
        got = activations.norms(net, x, ["0"], p)["0"]
        assert torch.allclose(got, torch.tensor([want, 2 * want]), atol=1e-5)


def test_outputs_are_those_of_the_layer():
    x = torch.rand(5, 3, 4, 4)
    net = tiny()
    got = activations.outputs(net, x, ["0", "4"])
    assert got["0"].shape == (5, 2, 4, 4) and got["4"].shape == (5, 2)
    assert torch.allclose(got["0"], net[0](x), atol=1e-6)
    with pytest.raises(ValueError, match="no layer 'nope'"):
        activations.outputs(net, x, ["nope"])
    assert not net[0]._forward_hooks  # nothing is left behind


def test_ranks_and_spearman():
    v = torch.tensor([3.0, 1.0, 3.0, 2.0])
    assert ranks(v).tolist() == [2.5, 0.0, 2.5, 1.0]
    a = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert spearman(a, a.exp()) == pytest.approx(1)
    assert spearman(a, -(a**3)) == pytest.approx(-1)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) without ties: d = 1, 1, 0, 2, 2.
    b = torch.tensor([2.0, 1.0, 3.0, 6.0, 4.0])
    d = ranks(a) - ranks(b)
    assert spearman(a, b) == pytest.approx(1 - float(d.square().sum()) / 20)
    assert spearman(a, torch.ones(5)) == 0
    assert spearman(a[:1], a[:1]) == 0


def test_grad_cam_lights_up_where_the_evidence_is():
    net = tiny()
    with torch.no_grad():
        net[5].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    x = torch.zeros(2, 3, 8, 8)
    x[:, :, :4, :4] = 1  # evidence for label 0, against label 1
    cam = activations.grad_cam(net, x, torch.tensor([0, 1]), "2")
    assert cam.shape == (2, 8, 8) and float(cam[0].max()) == 1
    assert float(cam[0, :4, :4].mean()) > 0.99 and float(cam[0, 4:].max()) == 0
    assert float(cam[1].max()) == 0  # evidence against is not shown


def test_batchnorms_in_order():
    from bdcourse.models import resnet18

    names = activations.batchnorms(resnet18(width=8))
    assert len(names) == 20 and names[0] == "bn1" and names[-1] == "layer4.1.bn2"


def test_what_is_measured_is_apply():
    images = Images(torch.zeros(7, 3, 8, 8).byte(), torch.zeros(7).long(), ("a", "b"))

    class Placed(Trigger):  # where it stands depends on the targets
        def apply(self, x, y):
            return BadNets(patch=torch.ones(1, 2, 2), at=(0, 0)).trigger(x)

    tac = activations.tac(tiny(), images, Placed(), batch=3)
    assert torch.allclose(tac["1"], torch.tensor([2.0, 4.0]), atol=1e-5)
