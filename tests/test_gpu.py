"""On a GPU, where there is one: every line of a table, from a victim to its row."""

from __future__ import annotations

import pytest
import torch

from bdcourse.bench import run as bench
from bdcourse.bench.plans import PLANS

# One of each kind: what shares work with these runs the same code.
NAMES = [
    "none",
    "fine-tuning",
    "clp, u = 3",
    "clp, u on held-out images",
    "random channels",
    "linf",
    "linf (oracle)",
    "fmp, p = 16",
    "fmp, no maps",
    "mnp, soft",
    "mnp, hard",
    "anp",
    "anp (oracle)",
    "rnp",
    "fine-pruning",
    "ft-sam",
    "nad",
    "i-bau",
    "nc unlearning",
    "fip",
    "fast fip",
    "fip, released",
    "sam",
]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_every_defense_runs_on_a_gpu(tmp_path):
    assert set(NAMES) <= set(PLANS)
    results = bench.run_zoo(tmp_path / "r.json", ["lira"], NAMES, device="cuda")
    assert [r["defense"] for r in results.rows] == NAMES
    for r in results.rows:
        assert "acc" in r and r["device"] != "cpu", r
    plain = bench.run_zoo(tmp_path / "cpu.json", ["lira"], ["none", "clp, u = 3"], device="cpu")
    for r in plain.rows:  # nothing random in these
        (same,) = results.select(defense=r["defense"])
        assert abs(r["acc"] - same["acc"]) < 0.005 and r["pruned"] == same["pruned"]
