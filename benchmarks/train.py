"""How much faster is `bdcourse.train.fit` than the training loop of most tutorials?

Two tables, each with ratios against a baseline that is timed in the same run, in turns
with ours, because a machine's speed drifts:

1. the data path alone: random crop (padding 4), mirror, float in [0, 1]. Baseline: one
   PIL image at a time through torchvision transforms in a DataLoader, with no worker or
   with two, whichever is quicker on this machine;
2. whole training: batches of the same images through the same network. Baseline: that
   DataLoader, contiguous float32 tensors, and `.item()` after every step. `fit` runs as
   it is by default and with bf16=True; on a CPU the latter pays only where the
   processor computes in bfloat16 itself (AVX512_BF16, AMX).

    python benchmarks/train.py [--quick]
"""

from __future__ import annotations

import argparse
from statistics import median

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from bdcourse import models, signs
from bdcourse.compat import import_torchvision
from bdcourse.data import Images
from bdcourse.train import Augment, fit
from timing import DEVICE, seconds

EPOCHS = 4  # of our data path in one timing; `fit` runs 8 by default


def in_turns(jobs: dict, repeats: int) -> dict[str, list[float]]:
    """Times of each job; every round runs each once, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for i in range(repeats + 1):
        for name, job in jobs.items():
            t = seconds(job)
            if i:
                times[name].append(t)
    return times


class OneByOne(Dataset):
    """What torchvision's CIFAR10 does: array to PIL image, then the transform."""

    def __init__(self, images: Images) -> None:
        t = import_torchvision().transforms
        self.pixels = images.x.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = images.y.tolist()
        self.transform = t.Compose(
            [t.RandomCrop(32, padding=4), t.RandomHorizontalFlip(), t.ToTensor()]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int):
        return self.transform(Image.fromarray(self.pixels[i])), self.labels[i]


def loader(images: Images, batch: int, workers: int) -> DataLoader:
    return DataLoader(
        OneByOne(images),
        batch,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=DEVICE.type == "cuda",
    )


def our_data(images: Images, batch: int) -> None:
    """Augmented float batches, the way `fit` makes them: prepared once, then EPOCHS."""
    g = torch.Generator(DEVICE).manual_seed(0)
    augment = Augment(pad=4, flip=True)
    crops = augment.prepare(images.x)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=g, device=DEVICE)
        for index in order.split(batch):
            augment(crops, index, 3, g).float() / 255


def their_data(batches: DataLoader) -> None:
    for x, y in batches:
        x.to(DEVICE, non_blocking=True), y.to(DEVICE, non_blocking=True)


def their_training(model, batches: DataLoader) -> None:
    opt = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(opt, len(batches))
    model.train()
    total = 0.0
    for x, y in batches:
        x, y = x.to(DEVICE), y.to(DEVICE)
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step()
        rate.step()
        total += loss.item()


def spread(ratios: list[float]) -> str:
    return f"{median(ratios):6.2f}  ({min(ratios):.2f} to {max(ratios):.2f})"


def data_table(n: int, repeats: int) -> None:
    images = signs.draw(n).to(DEVICE)
    print(f"1. data path, {n} images, batches of 128, median of {repeats}; images/s")
    print(f"{'threads':>8}{'0 workers':>12}{'2 workers':>12}{'bdcourse':>12}   ratio")
    for threads in (1, 2):
        torch.set_num_threads(threads)
        loaders = {w: loader(images.to("cpu"), 128, w) for w in (0, 2)}
        jobs = {str(w): (lambda d=d: their_data(d)) for w, d in loaders.items()}
        jobs["ours"] = lambda: our_data(images, 128)
        t = in_turns(jobs, repeats)
        t["ours"] = [v / EPOCHS for v in t["ours"]]
        best = min("02", key=lambda w: median(t[w]))
        ratios = [a / b for a, b in zip(t[best], t["ours"], strict=True)]
        speed = [n / median(t[name]) for name in ("0", "2", "ours")]
        cells = "".join(f"{v:12,.0f}" for v in speed)
        print(f"{threads:8d}{cells}   {spread(ratios)} over {best} workers")


def training_table(cases: list[tuple[str, int, int, int]], repeats: int) -> None:
    print(f"2. whole training, median of {repeats}; ms per step, and ratios to plain")
    print(
        f"{'network':>20}{'batch':>6}{'threads':>9}{'plain':>9}{'fit':>9}{'bf16':>9}"
        "   fit ratio               bf16 ratio"
    )
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for name, width, batch, steps in cases:
            images = signs.draw(batch * steps).to(DEVICE)
            nets = [models.build(name, classes=images.k, width=width).to(DEVICE) for _ in range(3)]
            batches = loader(images.to("cpu"), batch, workers=0)
            options = {
                "epochs": 1,
                "batch": batch,
                "augment": Augment(pad=4, flip=True),
                "generator": torch.Generator().manual_seed(0),
                "verbose": False,
            }

            def ours(model, images=images, options=options, **more):
                fit(model, images, **options, **more)

            jobs = {
                "plain": lambda m=nets[0], b=batches: their_training(m, b),
                "fit": lambda m=nets[1], f=ours: f(m),
                "bf16": lambda m=nets[2], f=ours: f(m, bf16=True),
            }
            t = in_turns(jobs, repeats)
            ratios = [
                [a / b for a, b in zip(t["plain"], t[k], strict=True)] for k in ("fit", "bf16")
            ]
            cells = "".join(f"{1e3 * median(t[k]) / steps:9.1f}" for k in jobs)
            print(
                f"{f'{name} w{width}':>20}{batch:6d}{threads:9d}{cells}"
                f"   {spread(ratios[0])}  {spread(ratios[1])}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images, rounds")
    quick = parser.parse_args().quick
    print(f"torch {torch.__version__}, {DEVICE.type}")
    data_table(2000 if quick else 6000, 3 if quick else 7)
    if DEVICE.type == "cuda":
        cases = [("resnet18", 16, 128, 100), ("preact_resnet18", 64, 128, 100)]
    elif quick:
        cases = [("resnet18", 16, 128, 4), ("preact_resnet18", 64, 32, 2)]
    else:
        cases = [("resnet18", 16, 128, 12), ("preact_resnet18", 64, 64, 3)]
    training_table(cases, 3 if quick else 5)


if __name__ == "__main__":
    main()
