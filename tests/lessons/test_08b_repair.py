"""Which part carries a repair: the fine print of lesson 08b, measured."""

from __future__ import annotations

import copy

import pytest
import torch

from bdcourse import data, metrics
from bdcourse.defenses import FAST_FIP_ETA, fast_fip
from bdcourse.train import Augment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tuned(guest):
    clean, g = data.splits("signs-hard").clean, torch.Generator().manual_seed(0)
    return fast_fip(
        guest.model, clean, eta_f=FAST_FIP_ETA, steps=150, augment=Augment(2), generator=g
    )


def test_batchnorm_carries_the_repair_of_fast_fip(guest, tuned):
    share = {n: (d / s).abs() for n, (s, d) in tuned.log["change"].items()}
    assert 0.02 < torch.cat(list(share.values())).median() < 0.2
    test = data.splits("signs-hard").test[:300]
    new, old = tuned.model.state_dict(), guest.model.state_dict()
    norms = {k for k in old if f"{k.rsplit('.', 1)[0]}.running_mean" in old}

    def with_old(back):
        net = copy.deepcopy(tuned.model)
        net.load_state_dict(new | {k: old[k] for k in back})
        return metrics.evaluate(net, test, guest.attack)

    none, values, last = (with_old(k) for k in ((), set(old) - norms, norms))
    assert last.asr > 0.95 and last.acc > 0.75
    assert -0.3 < values.asr - none.asr < 0.35
    layers = sorted(share, key=lambda n: -float(share[n].median()))[:3]
    assert max(with_old([n if n in old else f"{n}.weight"]).asr for n in layers) < none.asr + 0.35
