"""Measure how much the choice of images moves the sharpness of the CIFAR-10 victims.

    python tools/sharper.py cifar10-jpeg [--out data/results/cifar10-sharp.json]

Top eigenvalue of the Hessian, and trace of the Fisher, of the victims in data/cifar10
and their benign twin, on ten sets of 200 test images that share none. Victim and twin
see the same sets, so their ratio can be told from the chance of the draw. A quarter of
an hour on a core. Rows that are there are kept; a stopped run goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from bdcourse import data, victims
from bdcourse.analysis import curvature, landscape
from bdcourse.bench.results import Results
from bdcourse.bench.run import environment

NAMES = ("none", "BadNets", "Blended", "SIG", "TrojanNN")
SETS, IMAGES = 10, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", help="folder with train/ and test/")
    parser.add_argument("--out", default="data/results/cifar10-sharp.json")
    parser.add_argument("--victims", default="data/cifar10", type=Path)
    options = parser.parse_args()
    parts = data.splits(options.images, clean=0.1)
    results = Results(options.out)
    for name in NAMES:
        (file,) = options.victims.glob(f"cifar10-jpeg-{name}-0-*.json")
        victim = victims.load(file.with_suffix(""))
        cell = {
            "data": "cifar10-jpeg",
            "n_train": len(parts.train),
            "attack": name,
            "seed": 0,
            "defense": "none",
            "model": victim.arch["name"],
            "width": victim.arch["width"],
            "images": IMAGES,
        }
        if results.done(cell):
            continue
        start = time.perf_counter()
        sets = [parts.test[i * IMAGES : (i + 1) * IMAGES] for i in range(SETS)]
        tops, traces = [], []
        for some in sets:
            g = torch.Generator().manual_seed(0)
            top, _ = landscape.hessian_top(victim.model, some, generator=g)
            trace = curvature.fisher_trace(victim.model, some, draws=4, generator=g)
            tops, traces = [*tops, float(top[0])], [*traces, trace.value]
        results.add(
            cell
            | {
                "lambda_max": tops,
                "fisher": traces,
                **victim.scores.dict(),
                "seconds": round(time.perf_counter() - start, 1),
                "digest": parts.train.digest(),
                **environment(parts.train.x.device),
            }
        )
        print(name, [round(t) for t in tops], flush=True)


if __name__ == "__main__":
    main()
