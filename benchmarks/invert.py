"""How much faster is inverting all triggers at once than label by label?

ResNet-18 of width 16 with random weights and statistics, 12 labels, 240 random images
of 32x32. Baseline, timed in the same run and in turns with ours: `plain_invert`, one
label after the other, on the network as `victims.load` leaves it; it computes no
gradient of the weights either. The other rows add one thing at a time: the common
batch, the folded BatchNorms, bfloat16 (which changes the guesses a little). The goal is
a factor of 4; the table says where a machine gives it. A second table gives time and
peak memory against the chunk, each in a process of its own.

    python benchmarks/invert.py [--quick]
"""

from __future__ import annotations

import argparse
import copy
import resource
import subprocess
import sys
from statistics import median

import torch

from bdcourse.data import Images
from bdcourse.defenses import _invert, invert_trigger
from bdcourse.defenses._invert import plain_invert, shuffled_rows, unsquash
from bdcourse.models import build
from timing import DEVICE, seconds

LABELS, EVERY = 12, 2


def network():
    torch.manual_seed(0)
    model = build("resnet18", classes=LABELS, width=16)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.weight.data.normal_(1, 0.3)
            m.running_var.uniform_(0.2, 2)
    return model.to(DEVICE, memory_format=torch.channels_last).eval()


def images() -> Images:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (240, 3, 32, 32), dtype=torch.uint8, generator=g)
    names = tuple(map(str, range(LABELS)))
    return Images(x, torch.arange(240) % LABELS, names).to(DEVICE)


def label_by_label(model, clean: Images, batch: int, steps: int) -> None:
    """`invert_trigger` in the plain way: a search for each label."""
    g = torch.Generator().manual_seed(0)
    x, y = clean.pixels(), clean.y
    for label in range(LABELS):
        start = [unsquash(torch.rand(c, 32, 32, generator=g).to(DEVICE)) for c in (1, 3)]
        order = (rows.to(DEVICE) for rows in shuffled_rows(len(x), batch, 0))
        plain_invert(model, x, y, label, start, order, steps=steps, every=EVERY)


def at_once(model, clean: Images, batch: int, steps: int, **more) -> None:
    g = torch.Generator().manual_seed(0)
    invert_trigger(model, clean, steps=steps, every=EVERY, batch=batch, generator=g, **more)


def without_folding(model, clean: Images, batch: int, steps: int) -> None:
    folding = _invert.frozen_copy
    _invert.frozen_copy = lambda model, x: copy.deepcopy(model).requires_grad_(False)
    try:
        at_once(model, clean, batch, steps)
    finally:
        _invert.frozen_copy = folding


def in_bfloat16(model, clean: Images, batch: int, steps: int) -> None:
    at_once(model, clean, batch, steps, bf16=True)


JOBS = {
    "label by label": label_by_label,
    "all labels at once": without_folding,
    "and folded": at_once,
    "and in bfloat16": in_bfloat16,
}


def per_step(job, model, clean: Images, batch: int, steps: int) -> float:
    """Seconds a step; what is done once drops out of the difference of two lengths."""
    long = seconds(lambda: job(model, clean, batch, 4 * steps))
    return (long - seconds(lambda: job(model, clean, batch, steps))) / (3 * steps)


def compare(repeats: int) -> None:
    model, clean = network(), images()
    default = torch.get_num_threads()
    for threads in sorted({1, default}):
        torch.set_num_threads(threads)
        print(f"threads: {threads}; milliseconds for a step of all {LABELS} labels")
        for batch in (1, 4, 32):
            steps = EVERY if batch == 32 else 4 * EVERY
            times: dict[str, list[float]] = {name: [] for name in JOBS}
            for _ in range(repeats):
                for name, job in JOBS.items():
                    times[name].append(per_step(job, model, clean, batch, steps))
            base = times["label by label"]
            for name, ours in times.items():
                ratios = [a / b for a, b in zip(base, ours, strict=True)]
                line = f"  batch {batch:<4}{name:<20}{1e3 * median(ours):8.1f}"
                if ours is not base:
                    line += f"   {median(ratios):.1f} times the speed"
                    line += f" ({min(ratios):.1f} to {max(ratios):.1f})"
                print(line, flush=True)


def memory() -> None:
    print("chunk, seconds for 4 steps at batch 32, peak memory of the process")
    for chunk in (1, 3, 6, 12):
        command = [sys.executable, __file__, "--chunk", str(chunk)]
        print(subprocess.run(command, capture_output=True, text=True).stdout, end="")


def one(chunk: int) -> None:
    model, clean = network(), images()
    at_once(model, clean[:32], 1, EVERY, chunk=1)
    before = peak()
    time = seconds(lambda: at_once(model, clean, 32, 2 * EVERY, chunk=chunk))
    print(f"{chunk:>3}{time:8.1f} s {peak():8.0f} MiB (at rest {before:.0f})")


def peak() -> float:
    """MiB: of the GPU, or of the process so far."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--chunk", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.chunk:
        one(options.chunk)
        return
    print(f"torch {torch.__version__}, {DEVICE.type}")
    compare(2 if options.quick else 7)
    memory()


if __name__ == "__main__":
    main()
