"""The playground: what the page computes is what PyTorch says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from bdcourse import data, metrics, surgery, victims
from bdcourse.defenses import clp
from helpers import ROOT

pytestmark = pytest.mark.slow
PLACE = ROOT / "book" / "plain-theme" / "playground"
N = 90  # signs, each clean and triggered

ASK = """
const Live = require(%(engine)r);
const { PLAYGROUND } = require(%(data)r);
const jobs = JSON.parse(require("fs").readFileSync(0, "utf8"));
const length = 3 * PLAYGROUND.side ** 2, raw = Live.bytes(PLAYGROUND.images);
const { patch, row, column } = PLAYGROUND.trigger;
const out = jobs.map(({ name, off, triggered, n }) => {
  const network = new Live.Network({ ...PLAYGROUND, ...PLAYGROUND[name] });
  network.switchOff(off);
  return Array.from({ length: n }, (_, i) => {
    const x = Float32Array.from(raw.subarray(i * length, (i + 1) * length), (v) => v / 255);
    return [...network.logits(triggered ? Live.stamped(x, patch, row, column, 1) : x)];
  });
});
console.log(JSON.stringify([out, Live.outliers(PLAYGROUND.scores, 2.5)]));
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The packed data as a module for Node.js, and its path."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import playground
    finally:
        sys.path.pop(0)
    content = playground.content()
    file = tmp_path_factory.mktemp("playground") / "data.js"
    file.write_text(f"exports.PLAYGROUND = {json.dumps(content)};")
    assert file.stat().st_size < 3e6, "the page would weigh more than 3 MB"
    return content, file


@pytest.fixture(scope="module")
def node():
    beside = os.path.dirname(sys.executable)
    return shutil.which("node", path=beside) or shutil.which("node") or pytest.skip("no Node.js")


def test_the_page_says_what_torch_says(packed, node):
    content, file = packed
    victim, twin = victims.zoo("badnets-w8"), victims.zoo("benign-w8")
    off = clp(victim.model, 2.5).pruned
    x = data.splits("signs").test[:N].inputs()
    networks = {
        "victim": victim.model,
        "twin": twin.model,
        "cut": surgery.without(victim.model, off),
    }
    jobs, expected = [], []
    for name, model in networks.items():
        for triggered in (False, True):
            cut = {n: c.tolist() for n, c in off.items()} if name == "cut" else {}
            own = "victim" if name == "cut" else name
            jobs.append({"name": own, "off": cut, "triggered": triggered, "n": N})
            with torch.no_grad():
                expected.append(model(victim.attack.trigger(x) if triggered else x))
    script = ASK % {"engine": str(PLACE / "engine.js"), "data": str(file)}
    done = subprocess.run(
        [node, "-e", script], input=json.dumps(jobs), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found, outliers = json.loads(done.stdout)
    for job, mine, theirs in zip(jobs, found, expected, strict=True):
        assert (torch.tensor(mine) - theirs).abs().max() < 1e-4, job
    assert outliers == {n: c.tolist() for n, c in off.items()}


def test_the_page_promises_what_is_so(packed):
    """The trigger works, and two channels of one layer end it at no cost."""
    victim, test = victims.zoo("badnets-w8"), data.splits("signs").test[:200]
    two = {"layer1.1.bn1": torch.tensor([0, 5])}
    cut = metrics.evaluate(surgery.without(victim.model, two), test, victim.attack)
    assert cut.acc > 0.99 and cut.asr < 0.1
    assert victim.scores.asr > 0.95 and victim.scores.acc > 0.97
    assert packed[0]["classes"][packed[0]["target"]] == "30"
