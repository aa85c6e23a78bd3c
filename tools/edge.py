"""Measure where the l-infinity norm loses its edge: the trigger's size, the map's size.

    python tools/edge.py [--out data/results/linf-edge.json] [--keep runs]

One picture of black and white pixels, mixed half and half into a square of the image
that grows from 4 by 4 pixels to all of it. For each size and seed a victim is trained
by the recipe of the zoo's narrow victims; then every stage and norm says how well one
channel's norm tells triggered images from clean ones, and what pruning by the
attacker's own trigger leaves. Half an hour on a core. Rows that are there are kept; a
stopped run goes on.
"""

from __future__ import annotations

import argparse
import math
import time

from bdcourse import data, metrics
from bdcourse.attacks import BadNets
from bdcourse.attacks.blended import noise_picture
from bdcourse.bench.recipes import train_victim
from bdcourse.bench.results import Results
from bdcourse.bench.run import environment
from bdcourse.bench.zoo import ENTRIES
from bdcourse.defenses import linf_oracle, linf_responses

SIZES = (4, 8, 16, 24, 32)
OPACITY = 0.5
STAGES = {"layer4": 4, "layer3": 8, "layer2": 16, "layer1": 32}  # name -> map's height
NORMS = {"l1": 1.0, "l2": 2.0, "l-infinity": math.inf}
IMAGES = 240


def square(size: int) -> BadNets:
    """A corner of the picture, one pixel away from the image's corner if it can be."""
    patch = noise_picture(32)[:, :size, :size].round()
    return BadNets(patch=patch, at=(max(31 - size, 0),) * 2, opacity=OPACITY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="data/results/linf-edge.json")
    parser.add_argument("--keep", default="runs", help="folder for trained networks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    parts, recipe = data.splits("signs"), ENTRIES["trojan"].settings()[0]
    results = Results(options.out)
    for seed, size in ((s, n) for s in options.seeds for n in SIZES):
        cell = {
            "data": "signs",
            "n_train": len(parts.train),
            "attack": "BadNets",
            "options": {"size": size, "opacity": OPACITY},
            "seed": seed,
            "defense": "linf (oracle)",
            **recipe.settings(),
        }
        if results.done(cell):
            continue
        attack = square(size)
        model = train_victim(parts, attack, recipe, seed, "signs", options.keep).model
        x = parts.test[attack.counts(parts.test.y)][:IMAGES].pixels()
        start = time.perf_counter()
        seen, stages = linf_responses(model, x, attack.trigger, list(STAGES)), []
        for layer, height in STAGES.items():
            for name, p in NORMS.items():
                repaired = linf_oracle(
                    model, parts.clean, parts.held, attack, layer=layer, p=p
                ).model
                after = metrics.evaluate(repaired, parts.test, attack)
                stages.append(
                    {
                        "layer": layer,
                        "height": height,
                        "norm": name,
                        "auroc": seen[layer].separation(p),
                        "acc": after.acc,
                        "asr": after.asr,
                    }
                )
        before = metrics.evaluate(model, parts.test, attack)
        results.add(
            cell
            | {
                "acc": before.acc,
                "asr": before.asr,
                "stages": stages,
                "images": len(x),
                "seconds": round(time.perf_counter() - start, 1),
                "digest": parts.train.digest(),
                **environment(parts.train.x.device),
            }
        )
        print(f"{size} px, seed {seed}: ACC {before.acc:.2f}, ASR {before.asr:.2f}")
        for s in stages:
            line = "  {layer} {norm:10} AUROC {auroc:.2f}, ASR left {asr:.2f}"
            print(line.format(**s), flush=True)


if __name__ == "__main__":
    main()
