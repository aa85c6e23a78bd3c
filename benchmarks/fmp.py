"""How much faster is FMP's batched scoring than one feature map at a time?

A whole PreActResNet-18 with random weights and statistics, 32 random images (the
released batch), one step. Baseline, timed in the same run and in turns with ours: a
loop of the released kind, which for each map runs the clean images, the start, the way
back and the pushed images through the whole network. It is timed for a few maps of
each layer and EXTRAPOLATED to all; ours is timed whole. Further lines: what
channels_last, bfloat16 and the size of a chunk change, and whether scores agree.

What to expect: with F for a pass through the network and B for the way back from a
layer, the loop takes 3 F + B for each map and ours F + B, both for every image. So a
processor that small batches keep busy cannot gain more than a factor of 3. The goal of
20 is for a GPU, which 32 images do not fill.

    python benchmarks/fmp.py [--quick] [--width 16] [--images 32]

Default width: 64 on a GPU, 16 on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import re
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

import torch

from bdcourse.data import Images
from bdcourse.defenses import fmp_execution_order, fmp_scores, fmp_select
from bdcourse.defenses._fmp import fmp_random_start, gradients, plain_push
from bdcourse.models import build
from timing import DEVICE, seconds

STEP = {"epsilon": 4 / 255, "start": 8 / 255}
WIDEST = "layer1.0.conv2"  # largest maps: where memory peaks
CHUNKS = (64, 256, 1024, 4096)


def network(width: int) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build("preact_resnet18", width=width)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.weight.data.normal_(1, 0.3)
            m.running_var.uniform_(0.2, 2)
    # The layout that `fit` and `victims.load` leave a network in.
    return model.to(DEVICE, memory_format=torch.channels_last).eval()


def noise(n: int) -> Images:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=g)
    return Images(x, torch.arange(n) % 10, tuple("0123456789"))


def gen() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def by_hand(model, x, y, x0, layer, maps) -> list[float]:
    """The loop of the released kind over some maps: their accuracies."""
    found = []
    for i in maps:
        pushed = plain_push(model, x, x0, layer, i, STEP["epsilon"])
        with torch.no_grad():
            found.append(float((model(pushed).argmax(1) == y).double().mean()))
    return found


def peak(width: int, n: int, chunk: int) -> float:
    """MiB of memory that scoring the layer with the largest maps takes at its peak."""
    if DEVICE.type == "cuda":
        model = network(width)
        torch.cuda.reset_peak_memory_stats()
        fmp_scores(model, noise(n), layers=[WIDEST], chunk=chunk, generator=gen(), **STEP)
        return torch.cuda.max_memory_allocated() / 2**20
    # A process never gives its high-water mark back: each chunk gets its own.
    command = [sys.executable, __file__, "--width", str(width), "--images", str(n)]
    command += ["--mark", str(chunk)]
    return int(subprocess.run(command, capture_output=True, check=True).stdout) / 1024


def mark(width: int, n: int, chunk: int) -> int:
    """KiB by which this process grows at its peak while it scores."""
    model, images = network(width), noise(n)
    fmp_scores(model, images[:2], layers=[WIDEST], chunk=2, generator=gen(), **STEP)
    before = resident()
    fmp_scores(model, images, layers=[WIDEST], chunk=chunk, generator=gen(), **STEP)
    return highest() - before


STATUS = Path("/proc/self/status")


def resident() -> int:
    """KiB in use, from here on also the high-water mark: importing torch took more."""
    if not STATUS.exists():  # not Linux: small chunks hide below the imports' mark
        return highest()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmRSS:\s+(\d+)", STATUS.read_text())[1])


def highest() -> int:
    """KiB at the high-water mark. On Linux not `ru_maxrss`, which begins at that of
    the process that started this one and is never reset."""
    if not STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(re.search(r"VmHWM:\s+(\d+)", STATUS.read_text())[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, fewer maps")
    parser.add_argument("--width", type=int)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--mark", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    width = args.width or (64 if DEVICE.type == "cuda" else 16)
    if args.mark is not None:
        print(mark(width, args.images, args.mark))
        return
    torch.set_num_threads(1)
    repeats, few = (1, 1) if args.quick else (3, 2)
    model, images = network(width), noise(args.images)
    names = fmp_execution_order(model)
    sizes = {name: model.get_submodule(name).out_channels for name in names}
    print(f"torch {torch.__version__}, {DEVICE.type}, one CPU thread; width {width}, ")
    print(f"{sum(sizes.values())} maps in {len(names)} layers, {args.images} images")

    x, y = images.pixels().to(DEVICE), images.y.to(DEVICE)
    x0 = fmp_random_start(x, STEP["start"], gen())
    laid_out = [t.to(memory_format=torch.channels_last) for t in (x, x0)]
    found: dict[str, object] = {}

    def loop(a, b) -> float:
        total = 0.0
        for name, size in sizes.items():
            maps = range(min(few, size))
            t = seconds(
                lambda name=name, maps=maps: found.__setitem__(
                    name, by_hand(model, a, y, b, name, maps)
                )
            )
            total += t / len(maps) * size
        return total

    def ours(**more) -> float:
        def job():
            found["ours"] = fmp_scores(model, images, generator=gen(), **STEP, **more)

        return seconds(job)

    jobs = {
        f"loop, extrapolated from {few} a layer": lambda: loop(x, x0),
        "  the same, channels_last": lambda: loop(*laid_out),
        "scores()": lambda: ours(),
        "scores(bf16=True)": lambda: ours(bf16=True),
    }
    loop(x, x0)  # warms up
    times: dict[str, list[float]] = {name: [] for name in jobs}
    kept = {}
    for _ in range(repeats):
        for name, job in jobs.items():
            times[name].append(job())
            kept[name] = found.get("ours")
    base = next(iter(times.values()))
    for name, mine in times.items():
        ratios = [a / b for a, b in zip(base, mine, strict=True)]
        print(f"  {name:<36}{median(mine):9.1f} s{median(ratios):8.1f} times the loop's")

    exact, rough = kept["scores()"], kept["scores(bf16=True)"]
    gap = max(
        abs(float(exact[name].acc[i]) - acc) for name in names for i, acc in enumerate(found[name])
    )
    print(f"largest difference to the loop's accuracies: {gap:.4f}")
    a, b = (fmp_select(s, 8) for s in (exact, rough))
    same = sum(len(set(a[k].tolist()) & set(b[k].tolist())) for k in a)
    print(f"of {sum(map(len, a.values()))} maps at p = 8, bfloat16 also takes {same}")

    deep = names[-1]
    b = min(args.images, 16)
    start = (x[:b], x0[:b], deep)
    for step in (1, 4, 16):
        t = seconds(lambda step=step: list(gradients(model, *start, step)))
        print(f"gradients of {deep}, {step:2d} maps at a time: {t:.2f} s")
    for chunk in CHUNKS[: 2 if args.quick else None]:
        n = max(args.images, chunk // 16)
        t = seconds(
            lambda chunk=chunk, n=n: fmp_scores(
                model, noise(n), layers=[WIDEST], chunk=chunk, generator=gen(), **STEP
            )
        )
        pictures = n * sizes[WIDEST]
        print(
            f"chunk {chunk:5d}: {peak(width, n, chunk):7.0f} MiB at the peak, "
            f"{1e3 * t / pictures:.2f} ms per pushed image of {WIDEST}"
        )


if __name__ == "__main__":
    main()
