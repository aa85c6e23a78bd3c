"""How much faster is batched CLP scoring than one SVD per channel?

PreActResNet-18, width 64, with random weights and statistics. Baseline, timed in the
same run and in turns with ours: the loop of the released code, an SVD for each channel
of the very same layers. `clp_scores()` also finds these pairs, the loop is handed them;
what the pairing and the norms take alone is printed beside it. The last lines compare
the channels that both would prune.

    python benchmarks/clp.py [--quick]
"""

from __future__ import annotations

import argparse
from statistics import median

import torch

from bdcourse.defenses import clp_norms, clp_plain_scores, clp_scores
from bdcourse.defenses._clp import clp_flagged
from bdcourse.models import build
from bdcourse.surgery import pair_by_flow
from timing import DEVICE, seconds


def network():
    torch.manual_seed(0)
    model = build("preact_resnet18")
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.weight.data.normal_(1, 0.3)
            m.running_var.uniform_(0.2, 2)
    # The layout that `fit` and `victims.load` leave a network in.
    return model.to(DEVICE, memory_format=torch.channels_last).eval()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    repeats = 5 if parser.parse_args().quick else 25
    model = network()
    pairs = pair_by_flow(model).pairs
    layers = [(model.get_submodule(p.conv), model.get_submodule(p.bn)) for p in pairs]
    channels = sum(bn.num_features for _, bn in layers)
    print(f"torch {torch.__version__}, {DEVICE.type}; {len(layers)} layers, ", end="")
    print(f"{channels} channels; median of {repeats}; ms")

    jobs = {
        "one SVD per channel": lambda: [clp_plain_scores(c, b) for c, b in layers],
        "batched norms": lambda: [clp_norms(c.weight) for c, _ in layers],
        "pairing": lambda: pair_by_flow(model),
        "clp_scores(), all in": lambda: clp_scores(model),
    }
    default = torch.get_num_threads()
    for threads in sorted({1, default}):
        torch.set_num_threads(threads)
        times: dict[str, list[float]] = {name: [] for name in jobs}
        for i in range(repeats + 1):  # the first round warms up
            for name, job in jobs.items():
                t = seconds(job)
                if i:
                    times[name].append(t)
        print(f"threads: {threads}")
        base = times["one SVD per channel"]
        for name, ours in times.items():
            line = f"  {name:<20}{1e3 * median(ours):10.1f}"
            if name in ("batched norms", "clp_scores(), all in"):
                ratios = [a / b for a, b in zip(base, ours, strict=True)]
                line += f"   {median(ratios):.1f} times the speed of the SVD loop"
                line += f" ({min(ratios):.1f} to {max(ratios):.1f})"
            print(line)

    fast = clp_scores(model)
    slow = {p.bn: clp_plain_scores(*layer) for p, layer in zip(pairs, layers, strict=True)}
    error = max(float(((fast[k] - slow[k]) / slow[k]).abs().max()) for k in slow)
    print(f"largest relative difference of two scores: {error:.1e}")
    for u in (3, 1, 0.5):
        a, b = clp_flagged(fast, u), clp_flagged(slow, u)
        same = all(torch.equal(a[k], b[k]) for k in b)
        print(f"u = {u}: {sum(map(len, b.values()))} channels pruned, ", end="")
        print("the same by both" if same else "NOT the same by both")


if __name__ == "__main__":
    main()
