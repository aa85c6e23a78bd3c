"""Time a step of ANP and the exact saliency of all channels, plain and fast, and
compare what they compute.

    python benchmarks/anp.py [--quick] [--width 16]

Networks are random, images are noise: neither method's cost depends on them.
"""

from __future__ import annotations

import argparse
import copy

import torch

from bdcourse.defenses import anp_step, masks_frozen, masks_ones, mnp_loss_changes
from bdcourse.defenses._anp import anp_plain_step, random_noise
from bdcourse.defenses._mnp import mnp_plain_loss_changes
from timing import DEVICE, network, noise_images, show, times


def bench_step(width: int, batch: int, repeats: int) -> None:
    net = masks_frozen(network(width), training=True)
    usual = copy.deepcopy(net).requires_grad_(True)
    usual = usual.to(memory_format=torch.contiguous_format)
    still = copy.deepcopy(usual).requires_grad_(False)
    images = noise_images(batch)
    x, y = images.pixels(), images.y
    fast_x = x.contiguous(memory_format=torch.channels_last)
    masks = {n: m.requires_grad_(True) for n, m in masks_ones(net).items()}
    noise = random_noise(masks, 0.4, torch.Generator().manual_seed(0))
    jobs = {
        "plain": lambda: anp_plain_step(usual, masks, x, y),
        "fast": lambda: anp_step(net, masks, fast_x, y),
        "  of it: passes and weights": lambda: anp_step(still, masks, x, y),
        "plain, random start": lambda: anp_plain_step(usual, masks, x, y, noise=noise),
        "fast, random start": lambda: anp_step(net, masks, fast_x, y, noise=noise),
    }
    print(f"one ANP step, width {width}, batch {batch}; ms")
    show(times(jobs, repeats), "plain")
    # In double precision: in single, a gradient may be rounding noise, its sign luck.
    double = masks_frozen(network(width), training=True).double()
    masks = {n: m.requires_grad_(True) for n, m in masks_ones(double).items()}
    x, y = x[:16].double(), y[:16]
    _, a = anp_plain_step(copy.deepcopy(double).requires_grad_(True), masks, x, y)
    _, b = anp_step(double, masks, x, y)
    error = max(float((p - q).abs().max()) for p, q in zip(a, b, strict=True))
    print(f"  largest difference of two gradients, in double precision: {error:.1e}")


def bench_saliency(width: int, n: int, repeats: int) -> None:
    model, images = network(width), noise_images(n)
    count = sum(map(len, masks_ones(model).values()))
    jobs = {
        "a pass for every channel": lambda: mnp_plain_loss_changes(model, images),
        "cached and stacked": lambda: mnp_loss_changes(model, images),
    }
    print(f"exact saliency of {count} channels, width {width}, {n} images; ms")
    show(times(jobs, repeats), "a pass for every channel")
    slow, fast = mnp_plain_loss_changes(model, images), mnp_loss_changes(model, images)
    error = max(float((slow[k] - fast[k]).abs().max()) for k in slow)
    print(f"  largest difference of two images' losses: {error:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--width", type=int, default=16)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {DEVICE.type}")
    default = torch.get_num_threads()
    for threads in sorted({1, default}):
        torch.set_num_threads(threads)
        print(f"threads: {threads}")
        bench_step(options.width, 128, 3 if options.quick else 9)
        bench_saliency(options.width // 2, 60, 1 if options.quick else 3)


if __name__ == "__main__":
    main()
