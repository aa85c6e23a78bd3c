"""The disguise: CLP's scores made equal, no answer changed, and the score that sees through."""

from __future__ import annotations

import pytest
import torch

from bdcourse import victims
from bdcourse.attacks import disguise
from bdcourse.defenses import clp, clp_scores
from bdcourse.models import build
from helpers import frozen, message, randomize_norms, same_state


@pytest.fixture(scope="module")
def victim():
    return victims.zoo("badnets").model


@pytest.fixture(scope="module")
def disguised(victim):
    return disguise(victim, clp_scores)


def test_the_answers_stay(victim, disguised):
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = victim(x), disguised(x)
    assert (a - b).norm() / a.norm() < 1e-5


def test_clp_sees_nothing_any_more_and_the_invariant_score_sees_the_same(victim, disguised):
    def cut(model, **options):
        pruned = clp(model, 2.5, **options).pruned
        return {(n, k) for n, found in pruned.items() for k in found.tolist()}

    assert len(cut(victim)) == 14
    assert cut(disguised) == set()
    assert cut(victim, invariant=True) == cut(disguised, invariant=True) != set()
    own, same = (clp_scores(m, invariant=True) for m in (victim, disguised))
    for name, s in own.items():
        torch.testing.assert_close(same[name], s, rtol=1e-3, atol=1e-5)


def test_inside_a_block_all_channels_score_alike(disguised):
    s = clp_scores(disguised)["layer1.0.bn1"]
    torch.testing.assert_close(s, s.mean().expand_as(s), rtol=1e-3, atol=0)


def test_the_model_stays_and_dead_channels_do_no_harm():
    model = randomize_norms(build("resnet18", width=4)).eval()
    model.layer1[0].bn1.weight.data[0] = 0
    before = frozen(model)
    hidden = disguise(model, clp_scores, sweeps=2)
    assert same_state(model, before)
    assert all(p.isfinite().all() for p in hidden.parameters())
    assert hidden.layer1[0].bn1.weight[0] == 0


def test_refusals():
    with pytest.raises(ValueError) as e:
        disguise(build("vit", width=16), clp_scores)
    assert "behind LayerNorm or GELU a rescaled channel is another function" in message(e)
    with pytest.raises(ValueError, match="sweeps"):
        disguise(build("resnet18", width=4), clp_scores, sweeps=-1)
