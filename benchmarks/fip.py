"""What a step of FIP costs, in steps of plain fine-tuning.

    python benchmarks/fip.py [--quick] [--width 16] [--batch 128]

Baseline, timed in the same run and in turns with the others: the same loop without any
penalty. Networks are random and images are noise: no cost depends on them. Goals: the
trace in every step at most 3 times the baseline, in every fifth at most 1.5 times.

Then a race on a victim of the course, both ways of FIP at their defaults: how long
until accuracy on 1,000 images, which both lose at first, is back for good at what the
worse of the two has at the end, less a point? And how much of the attack is left?
"""

from __future__ import annotations

import argparse
import copy
import time
from statistics import median

import torch

from bdcourse import data, metrics, victims
from bdcourse.defenses import FipDescent, SamDescent, fast_fip, fip, fip_descend, fip_factorize
from bdcourse.defenses._fip import ReleasedDescent
from bdcourse.likelihoods import SOFTMAX
from bdcourse.train import Augment
from timing import DEVICE, network, noise_images, seconds

STEPS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    rounds = 2 if options.quick else 7
    model, images = network(options.width), noise_images(2 * options.batch)
    factors = copy.deepcopy(model)
    print(f"torch {torch.__version__}, {DEVICE.type}, {torch.get_num_threads()} threads")
    decomposed = seconds(lambda: fip_factorize(factors))

    def smooth(**how) -> FipDescent:
        return FipDescent(SOFTMAX, generator(), eta_f=1e-6, **how)

    arms = {
        "no penalty": (model, FipDescent(SOFTMAX, generator())),
        "FIP, every step": (model, smooth()),
        "FIP, every fifth step": (model, smooth(every=5)),
        "FIP, every step, exact product": (model, smooth(product="exact")),
        "FIP, every step, frozen norms": (model, smooth(norms="frozen")),
        "Fast FIP, every step": (factors, smooth()),
        "Fast FIP, every fifth step": (factors, smooth(every=5)),
        "released script": (model, ReleasedDescent(generator(), 1e-6)),
        "SAM": (model, SamDescent(SOFTMAX, 0.1)),
    }
    found: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(rounds + 1):  # the first round warms up
        for name, (net, descent) in arms.items():
            how = {"norms": getattr(descent, "norms", "batch"), "lr": 1e-5}
            how |= {"steps": STEPS, "batch": options.batch, "generator": generator()}
            t = seconds(lambda n=net, d=descent, h=how: fip_descend(n, images, d, **h))
            if i:
                found[name].append(t / STEPS)
    print(f"one step, width {options.width}, batch {options.batch}; ms")
    for name, ours in found.items():
        ratios = [a / b for a, b in zip(ours, found["no penalty"], strict=True)]
        line = f"  {name:<32}{1e3 * median(ours):9.1f}   {median(ratios):.2f} times as"
        print(f"{line} long ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"decomposing all weights once: {decomposed:.2f} s")
    race(100 if options.quick else 600)


def race(steps: int) -> None:
    """Time to the same accuracy, FIP against Fast FIP."""
    parts, victim = data.splits("signs-hard"), victims.zoo("badnets-hard", DEVICE)
    clean, test = parts.clean.to(DEVICE), parts.test[:1000].to(DEVICE)
    found = {}
    for name, defense in (("FIP", fip), ("Fast FIP", fast_fip)):
        looks, spent, begun = [], 0.0, time.perf_counter()

        def watch(model, looks=looks):
            nonlocal spent, begun
            spent += time.perf_counter() - begun
            looks.append((spent, metrics.evaluate(model, test).acc))
            begun = time.perf_counter()  # looking is not part of the defense
            return {}

        p = defense(
            victim.model,
            clean,
            steps=steps,
            augment=Augment(2),
            watch=watch,
            watch_every=20,
            generator=generator(),
        )
        found[name] = looks, metrics.evaluate(p.model, test, victim.attack)
    goal = min(s.acc for _, s in found.values()) - 0.01
    print(f"{steps} steps; until accuracy is back above {goal:.1%} for good:")
    for name, (looks, s) in found.items():
        last = max((i + 1 for i, (_, acc) in enumerate(looks) if acc < goal), default=0)
        print(f"  {name:<10}{looks[last][0]:6.1f} s of {looks[-1][0]:.1f}; at the end {s}")


def generator() -> torch.Generator:
    return torch.Generator(DEVICE).manual_seed(0)


if __name__ == "__main__":
    main()
