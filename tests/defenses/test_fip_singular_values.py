"""Fast FIP: what moves are changes of singular values."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from bdcourse.analysis.curvature import fisher_trace
from bdcourse.defenses import (
    FIP_ETA,
    fast_fip,
    fip,
    fip_factorize,
    fip_matrices,
)
from bdcourse.defenses._fip import SingularValues, fold
from bdcourse.models import MODELS, build
from fip_setup import network, small, smooth_net
from helpers import frozen, gen, message, random_images


@pytest.mark.parametrize("name, size", [("resnet18", 11_173_962), ("preact_resnet18", 11_171_146)])
def test_how_many_numbers_move(name, size):
    with torch.device("meta"):
        model = build(name, classes=10, width=64)
    assert sum(w.numel() for w in model.parameters()) == size
    shapes = [w.flatten(1).shape for w in fip_matrices(model).values()]
    assert len(shapes) == 21
    assert sum(min(shape) for shape in shapes) == 4325


@pytest.mark.parametrize("name", MODELS)
def test_factorized_and_folded_it_is_the_same_network(name):
    model, x = network(name), random_images(4, side=32).pixels()
    start, logits = frozen(model), model(x).detach()
    found = list(fip_matrices(model).values())
    assert sum(w.numel() for w in found) > 0.6 * sum(map(torch.numel, start.values()))
    other = copy.deepcopy(model)
    fip_factorize(other)
    torch.testing.assert_close(other(x), logits, rtol=1e-4, atol=1e-4)
    moving = [p for n, p in other.named_parameters() if n.endswith(".original")]
    assert [len(p) for p in moving] == [min(w.flatten(1).shape) for w in found]
    assert not any(p.any() for p in moving)

    changes = fold(other)
    assert list(other.state_dict()) == list(start), "in their old order too"
    assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
    named = {n for n, w in model.named_parameters() if any(w is v for v in found)}
    assert set(changes) == named
    for n, value in other.state_dict().items():
        torch.testing.assert_close(value, start[n], rtol=1e-4, atol=1e-5)
        if n in changes:
            s, d = changes[n]
            torch.testing.assert_close(s, torch.linalg.svdvals(start[n].flatten(1)))
            assert not d.any()
        else:
            assert torch.equal(value, start[n])


def moved_by(d, seed=0):
    """A convolution's weight before and after its singular values moved by d."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False)).double()
    before = net[0].weight.detach().flatten(1).clone()
    fip_factorize(net)
    net[0].parametrizations.weight.original.data.copy_(d(torch.linalg.svdvals(before)))
    ((s, change),) = fold(net).values()
    return before, net[0].weight.detach().flatten(1), s, change


def test_a_change_of_the_values_is_as_long_as_that_of_the_weight():
    step = torch.tensor([0.2, -0.1, 0.05, 0.3]).double()
    before, after, s, change = moved_by(lambda _: step)
    assert torch.equal(change, step) and (s + step > 0).all()
    assert float((after - before).norm()) == pytest.approx(float(step.norm()))
    u, _, vh = torch.linalg.svd(before, full_matrices=False)
    torch.testing.assert_close(u.T @ after @ vh.T, torch.diag(s + step))


def test_relu_cuts_at_zero():
    before, after, s, _ = moved_by(lambda s: torch.stack([-s[0], -2 * s[1], *0 * s[2:]]))
    left = torch.linalg.svdvals(after)
    torch.testing.assert_close(left[:2], s[2:])
    torch.testing.assert_close(left[2:], 0 * left[2:], rtol=0, atol=1e-12)
    law = SingularValues(torch.eye(2), torch.tensor([1.0, 2.0]), torch.eye(2), (2, 2))
    d = torch.tensor([-1.5, -0.5], requires_grad=True)
    assert law(d).tolist() == [[0, 0], [0, 1.5]]
    law(d).sum().backward()
    assert d.grad.tolist() == [0, 1]


def test_the_slope_along_a_singular_value():
    model, (images, x) = smooth_net(), small()
    F.cross_entropy(model(x), images.y).backward()
    want = []
    for w in fip_matrices(model).values():
        u, _, vh = torch.linalg.svd(w.detach().flatten(1), full_matrices=False)
        want.append(torch.einsum("or,oi,ri->r", u, w.grad.flatten(1), vh))
    fip_factorize(model)
    model.zero_grad()
    F.cross_entropy(model(x), images.y).backward()
    for (m, name), slope in zip(fip_matrices(model), want, strict=True):
        found = m.parametrizations[name].original.grad
        torch.testing.assert_close(found, slope)


@pytest.mark.parametrize("fisher", ["true", "empirical"])
def test_the_trace_over_singular_values_is_no_larger(fisher):
    model, (images, _) = smooth_net(), small()
    options = {"route": "exact", "fisher": fisher}
    over_w = fisher_trace(model, images, weights=["0.weight", "3.weight"], **options)
    fip_factorize(model)
    names = [n for n, _ in model.named_parameters() if n.endswith(".original")]
    over_d = fisher_trace(model, images, weights=names, **options)
    assert 0 < over_d.value <= over_w.value


def test_attention_counts_as_one_matrix_and_twice_is_once_too_often():
    model = network("vit")
    assert sum(name == "in_proj_weight" for _, name in fip_matrices(model)) == 6
    fip_factorize(model)
    with pytest.raises(ValueError, match="parametrized already") as e:
        fip_factorize(model)
    message(e)


def test_a_foreign_parametrization_stays_and_is_not_factorized():
    model, images = smooth_net().float(), small()[0]
    nn.utils.parametrizations.weight_norm(model[3])
    p = fip(model, images, eta_f=FIP_ETA, steps=1, generator=gen(), watch=lambda m: {})
    assert parametrize.is_parametrized(p.model[3]) and not fold(p.model)
    with pytest.raises(ValueError, match="parametrized already") as e:
        fast_fip(model, images, eta_f=FIP_ETA, generator=gen())
    message(e)
