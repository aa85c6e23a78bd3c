"""The clock that the benchmarks share, and networks and images to time on."""

from __future__ import annotations

import time
from statistics import median

import torch

from bdcourse.data import Images
from bdcourse.models import build

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def seconds(job) -> float:
    """Wall-clock time of `job()`, with the GPU's queue empty at both ends."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    job()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def times(jobs: dict, repeats: int) -> dict[str, list[float]]:
    """Seconds of each job, one after the other in every round; the first warms up."""
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for i in range(repeats + 1):
        for name, job in jobs.items():
            t = seconds(job)
            if i:
                found[name].append(t)
    return found


def show(found: dict[str, list[float]], base: str) -> None:
    for name, ours in found.items():
        line = f"  {name:<34}{1e3 * median(ours):10.1f}"
        if name != base:
            ratios = [a / b for a, b in zip(found[base], ours, strict=True)]
            line += f"   {median(ratios):.1f} times as fast"
            line += f" ({min(ratios):.1f} to {max(ratios):.1f})"
        print(line)


def network(width: int) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build("resnet18", width=width)
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            m.weight.data.normal_(1, 0.3)
            m.running_var.uniform_(0.2, 2)
    return model.to(DEVICE).eval()


def noise_images(n: int) -> Images:
    x = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8)
    return Images(x, torch.arange(n) % 10, tuple(map(str, range(10)))).to(DEVICE)
