"""What the tests of attacks that need no model share: noise, and sizes to try."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from bdcourse.data import Images
from helpers import gen

sizes = st.tuples(st.sampled_from([1, 3]), st.integers(8, 40), st.integers(8, 40))


def noise(n, c=3, h=32, w=32, seed=0):
    return torch.rand(n, c, h, w, generator=gen(seed))


def noise_set(n, k, c=3, h=8, w=8):
    x = torch.randint(0, 256, (n, c, h, w), dtype=torch.uint8, generator=gen(3))
    return Images(x, torch.arange(n) % k, tuple(map(str, range(k))))


def crafted(kind, c=3, h=8, w=8, k=10, **options):
    return kind.craft(noise_set(k, k, c, h, w), gen(), **options)
