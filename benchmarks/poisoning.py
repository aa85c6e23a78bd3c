"""How fast is a set poisoned by the attacks that need no optimization?

Random 32x32 color images, one thread. Each attack poisons as many as it can, up to
all: rate 1, or less where it needs covers or one class. The time is that of
`Attack.poison`, choice, labels and rounding to 8 bits included, and images/s counts
the images that it planted, covers too. Baseline, in the same run: BadNets in a Python
loop over 2,000 images as a data set's transform does it, tensor to PIL image to uint8
array, patch, array to PIL image to tensor; its time is scaled to the number of images.
The loop that only copies and patches arrays, which does less than `poison`, is printed
too. Rates and ratio use the CPU time of this one thread, which a busy machine stretches
less than the wall-clock time beside it.

    python benchmarks/poisoning.py [--n 50000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bdcourse.attacks import BadNets, Blended
from bdcourse.attacks.adap import AdapBlend, AdapPatch
from bdcourse.attacks.ftrojan import FTrojan
from bdcourse.attacks.refool import Refool
from bdcourse.attacks.sig import SIG
from bdcourse.attacks.tact import TaCT
from bdcourse.data import Images

# (class, its options, the largest rate that ten equal classes allow)
ATTACKS = [
    (BadNets, {}, 1.0),
    (Blended, {}, 1.0),
    (SIG, {"clean_label": False}, 1.0),
    (TaCT, {"cover": 2.0}, 0.1),
    (AdapBlend, {}, 0.5),
    (AdapPatch, {}, 0.33),
    (Refool, {}, 1.0),
    (FTrojan, {}, 1.0),
]
BASELINE = 2000
CLASSES = 10


def cpu_seconds(job) -> float:
    start = time.process_time()
    job()
    return time.process_time() - start


def random_set(n: int) -> Images:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=g)
    return Images(x, torch.arange(n) % CLASSES, tuple(map(str, range(CLASSES))))


def stamp_one_by_one(pictures: list[np.ndarray]) -> list[tuple[np.ndarray, int]]:
    """BadNets on single (h, w, c) uint8 pictures."""
    patch = np.array([[255, 0, 255], [0, 255, 0], [255, 0, 255]], dtype=np.uint8)
    stamped = []
    for picture in pictures:
        copy = picture.copy()
        copy[28:31, 28:31] = patch[:, :, None]
        stamped.append((copy, 0))
    return stamped


def transform_one_by_one(x: torch.Tensor) -> torch.Tensor:
    """The same with what a transform adds: a PIL image before and after."""
    out = []
    for image in x:
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        [(stamped, _)] = stamp_one_by_one([np.asarray(picture)])
        out.append(np.asarray(Image.fromarray(stamped)))
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=50_000, help="images in the set")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = random_set(args.n)
    some = images.x[:BASELINE]
    arrays = list(some.permute(0, 2, 3, 1).contiguous().numpy())
    base = min(cpu_seconds(lambda: transform_one_by_one(some)) for _ in range(3))
    bare = min(cpu_seconds(lambda: stamp_one_by_one(arrays)) for _ in range(3))
    base, bare = base / len(some), bare / len(some)
    print(f"torch {torch.__version__}, {args.n} images, one thread")
    for name, each in (("baseline, by PIL", base), ("patched arrays only", bare)):
        print(f"{name:<20}{1 / each:10.0f} images/s {each * args.n:8.2f} s")
    print(f"{'attack':<12}{'planted':>9}{'CPU s':>9}{'wall s':>9}", end="")
    print(f"{'images/s':>10}{'ratio':>8}")
    rows = []
    for kind, options, rate in ATTACKS:
        g = torch.Generator().manual_seed(1)
        attack = kind.craft(images, g, **options)
        start, wall = time.process_time(), time.perf_counter()
        poisoned = attack.poison(images, rate, g)
        t, wall = time.process_time() - start, time.perf_counter() - wall
        planted = poisoned.count + poisoned.covers
        row = {"attack": kind.__name__, "planted": planted, "cpu_s": t}
        row |= {
            "wall_s": wall,
            "images_per_s": planted / t,
            "ratio": planted * base / t,
        }
        rows.append(row)
        print(
            f"{row['attack']:<12}{planted:9}{t:9.2f}{wall:9.2f}{row['images_per_s']:10.0f}"
            f"{row['ratio']:8.2f}"
        )
    if args.json:
        about = {"torch": torch.__version__, "n": args.n, "threads": 1}
        about |= {"baseline_images_per_s": 1 / base, "arrays_images_per_s": 1 / bare}
        about["rows"] = rows
        args.json.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
