"""Everything random comes from one generator, and this is how it is passed on."""

from __future__ import annotations

import torch
from torch import Tensor

from bdcourse import require


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU that starts from `seed`."""
    return torch.Generator().manual_seed(require.whole("seed", seed, 0, 2**63 - 1))


def fresh_seed(generator: torch.Generator) -> int:
    """A seed drawn from `generator`, for what can only be seeded."""
    return int(torch.randint(2**31, (1,), generator=generator, device=generator.device))


def uniform(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) from the generator's device, on that of `like`."""
    drawn = torch.rand(shape, generator=generator, device=generator.device)
    return drawn.to(like)


def random_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers, shaped like a tensor."""
    v = torch.randn(like.shape, generator=generator, device=generator.device)
    return v.to(like)


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """+1 or -1 at even chances, shaped like a tensor."""
    bits = torch.randint(2, like.shape, generator=generator, device=generator.device)
    return (2 * bits - 1).to(like)
