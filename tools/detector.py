"""Measure the MNP-style detector: on victims of the zoo, and on ten clean networks.

    python tools/detector.py [--out data/results/mnp-detector.json] [--keep runs]

What is usual for a clean network takes clean networks to say, so ten are trained, each
with another seed, by the recipe of the zoo's narrow victims: half an hour on a core.
Rows that are there are kept; a stopped run goes on.
"""

from __future__ import annotations

import argparse
import time

from bdcourse import data, victims
from bdcourse.bench.recipes import train_victim
from bdcourse.bench.results import Results
from bdcourse.bench.run import environment
from bdcourse.bench.zoo import ENTRIES
from bdcourse.defenses import mnp_correlation, mnp_magnitudes, mnp_saliency, mnp_score

NAMES = ("benign-w8", "benign-long", "lira", "trojan", "lf", "ssba", "sig", "tact")
IMAGES = 240


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="data/results/mnp-detector.json")
    parser.add_argument("--keep", default="runs", help="folder for trained networks")
    parser.add_argument("--clean", type=int, default=10, help="networks to train")
    options = parser.parse_args()
    parts, recipe = data.splits("signs"), ENTRIES["benign-w8"].settings()[0]
    results = Results(options.out)
    for name in (*NAMES, *range(1, options.clean + 1)):
        clean = isinstance(name, int)
        cell = {
            "data": "signs",
            "n_train": len(parts.train),
            "defense": "score",
            **recipe.settings(),
            "seed": name if clean else 0,
            "victim": None if clean else name,
        }
        if results.done(cell):
            continue
        if clean:
            victim = train_victim(parts, None, recipe, name, "signs", options.keep)
        else:
            victim = victims.zoo(name)
        start = time.perf_counter()
        a, s = mnp_magnitudes(victim.model), mnp_saliency(victim.model, parts.clean[:IMAGES])
        results.add(
            cell
            | {
                "attack": "none" if victim.attack is None else type(victim.attack).__name__,
                "twin": None if clean else ENTRIES[name].twin,
                "rho": list(mnp_correlation(a, s).values()),
                **{kind: mnp_score(a, s, kind=kind) for kind in ("correlation", "oddities")},
                "images": IMAGES,
                "seconds": round(time.perf_counter() - start, 1),
                "digest": parts.train.digest(),
                **environment(parts.train.x.device),
            }
        )
        print(f"{name}: {results.rows[-1]['correlation']:.3f}", flush=True)


if __name__ == "__main__":
    main()
