"""The exercise checks of lesson 01b."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from bdcourse.teach.check.core import (
    CheckFailed,
    call,
    close,
    fresh,
    guarded,
    need,
    number,
    passed,
    shaped,
)


@guarded
def decibels(fn: Callable[[Tensor, Tensor], float]) -> None:
    """decibels(x, stamped) -> mean PSNR of the images that changed."""
    name, g = "decibels", fresh()
    x = torch.rand(7, 3, 6, 5, generator=g, dtype=torch.float64)
    size = torch.tensor([0.3, 0.01, 0, 0.1, 0, 1e-4, 0.2], dtype=torch.float64)
    noise = torch.rand(x.shape, generator=g, dtype=torch.float64) - 0.5
    noise[0] = -noise[0].abs()  # a negative mean difference, so that a missing square shows
    noise[1, :, :3] = 0  # a small patch: most of the image is as it was
    noise[3, :, 2:] = 0
    stamped = x + noise * size.view(-1, 1, 1, 1)
    mse = (stamped - x).square().flatten(1).mean(1)
    changed = mse > 0
    each = -10 * mse[changed].log10()
    out = number(name, call(name, fn, x, stamped))
    want = float(each.mean())

    def near(value: float) -> bool:
        return abs(out - value) < 1e-6

    def endless(value: float) -> bool:
        return math.isinf(value) or math.isnan(value)

    if endless(out):
        need(
            not endless(number(name, fn(x[changed], stamped[changed]))),
            name,
            f"is {out:g} even where every image changed; differences of both signs cancel "
            "unless they are squared, and a logarithm wants a positive number.",
            1,
        )
    need(
        not endless(out),
        name,
        "an image that did not change makes the mean infinite; leave it out.",
        2,
    )
    need(
        not near(float(-10 * mse[mse > 0].mean().log10())),
        name,
        "takes the logarithm of a mean over all images; each image has its own PSNR.",
        1,
    )
    need(
        not near(float(-10 * mse.mean().log10())),
        name,
        "takes the logarithm of a mean over all images; each image has its own PSNR.",
        1,
    )
    need(
        not near(-want),
        name,
        "has the sign of a noise, not of a ratio: small changes are large values.",
        1,
    )
    need(
        not near(float(-10 * mse[mse > 0].log().mean())),
        name,
        "is the natural logarithm; decibels count in tens.",
        1,
    )
    need(
        not near(float(2 * each.mean())) and not near(float(each.mean() / 2)),
        name,
        "is off by a factor of two: 10 goes with squares, 20 with their root.",
        1,
    )
    need(
        not near(float(-10 * (stamped - x).abs().flatten(1).mean(1)[changed].log10().mean())),
        name,
        "takes the mean of the differences; PSNR takes that of their squares.",
        1,
    )
    under = (stamped - x != 0).flatten(1).sum(1)[changed] / x[0].numel()
    need(
        not near(float((each + 10 * under.log10()).mean())),
        name,
        "takes the mean over the changed pixels; N counts all pixels of the image.",
        1,
    )
    need(
        not any(near(float(each.sort()[0][:k].mean())) for k in range(1, len(each))),
        name,
        "leaves out an image that did change, if only a little; the error that counts as "
        "none is zero.",
        2,
    )
    need(
        abs(out - want) < 1e-4,
        name,
        f"gives {out:.3f} dB where the mean over the changed images is {want:.3f}.",
        1,
    )
    still = number(name, fn(x, x.clone()))
    need(still == math.inf, name, "must be infinite if no image changed.", 2)
    passed(name, "one PSNR an image, averaged over those that changed")


@guarded
def by_class(fn: Callable[[Tensor, Tensor, int, int], Tensor]) -> None:
    """by_class(said, y, k, target) -> share of each class that is read as the target."""
    name, g = "by_class", fresh()
    k, n = 7, 300  # nobody has the last label, so that k cannot be read off y
    # No target of 0, so that it shows; nobody of the class `still` moves.
    target, empty, still = random.sample(range(1, k - 1), 3)
    y = torch.randint(0, k - 1, (n,), generator=g)
    y[: k - 1] = torch.arange(k - 1)
    y[y == empty] = target
    hit = torch.rand(n, generator=g) < 0.3 + 0.1 * y
    other = torch.randint(0, k, (n,), generator=g)
    said = torch.where(hit, torch.full_like(y, target), other)
    said = torch.where((y == still) & (said == target), y, said)
    out = call(name, fn, said, y, k, target)
    shaped(name, out, (k,))
    want = torch.full((k,), math.nan, dtype=torch.float64)
    for c in range(k):
        if c not in (target, empty, k - 1):
            want[c] = (said[y == c] == target).double().mean()
    asked = ~want.isnan()
    out = out.double()
    need(
        bool(out[target].isnan()),
        name,
        "the target's own images cannot be moved to it; their place holds nan.",
        1,
    )
    need(
        bool(out[[empty, k - 1]].isnan().all()),
        name,
        "a class without images has no share: nan.",
        2,
    )
    need(
        not bool(out[asked].isnan().any()),
        name,
        "gives nan to a class that has images; where none of them moved the share is zero.",
        2,
    )
    wrong = torch.stack([(said[y == c] != c).double().mean() for c in range(k)])
    need(
        not close(out[asked], wrong[asked]),
        name,
        "counts every error; only answers that are the target count.",
        1,
    )
    whole = torch.stack([((said == target) & (y == c)).double().mean() for c in range(k)])
    need(
        not close(out[asked], whole[asked]),
        name,
        "divides by all images; each class is its own hundred percent.",
        2,
    )
    need(
        close(out[asked], want[asked], 1e-5),
        name,
        "is not the share of each true class that is read as the target.",
        1,
    )
    passed(name, "one share for each true class, nan where there is nobody to ask")


def _chosen(rows: Tensor, n: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)[:n]]


@guarded
def poison_one_class(fn: Callable) -> None:
    """poison_one_class(x, y, trigger, source, target, covers, rate, generator)."""
    name, g = "poison_one_class", fresh()
    n, k = 126, 6
    source, target = random.sample(range(1, k), 2)  # not 0, the target of the lesson
    covers = random.sample([c for c in range(k) if c not in (source, target)], 2)
    y = torch.arange(n) % k
    y = y[torch.randperm(n, generator=g)]
    x = torch.rand(n, 3, 4, 4, generator=g) / 2  # a trigger that adds a half shows

    def trigger(part: Tensor) -> Tensor:
        if part.ndim != 4:
            raise CheckFailed(
                f"{name}: hands the trigger a tensor with {part.ndim} axes; it takes a batch, "
                "(n, c, h, w) (hint 1)"
            )
        return part + 0.5

    # At the first rate a count must be rounded up, at the second down; the last takes
    # every image of the source, which is not too much.
    for rate in (0.1, 0.09, 21 / n):
        seed = torch.Generator().manual_seed(5)
        out = call(name, fn, x, y, trigger, source, target, tuple(covers), rate, seed)
        _poisoned(name, out, x, y, trigger, source, target, covers, round(rate * n))
    of_source, of_cover = y == source, torch.isin(y, torch.tensor(covers))
    for what in ("source", "cover"):
        few = y.clone()
        if what == "source":
            few[of_cover] = covers[0]
            few[~of_source & ~of_cover] = covers[0]
        else:
            few[~of_cover] = source
        try:
            call(name, fn, x, few, trigger, source, target, tuple(covers), 0.4, seed)
        except CheckFailed:
            raise
        except Exception as e:
            if (kind := type(e).__name__) != "ValueError":
                raise CheckFailed(
                    f"{name}: with fewer {what} images than the rate asks for it raises "
                    f"{kind}; a ValueError was asked for (hint 3)"
                ) from None
        else:
            raise CheckFailed(
                f"{name}: takes fewer {what} images than the rate asks for and says nothing; "
                "raise a ValueError (hint 3)"
            )
    passed(name, "source relabeled, covers kept, nobody else touched, too few refused")


def _poisoned(
    name: str,
    out: object,
    x: Tensor,
    y: Tensor,
    trigger: Callable[[Tensor], Tensor],
    source: int,
    target: int,
    covers: list[int],
    want: int,
) -> None:
    """One poisoned set, of which `want` images are poison and as many are covers."""
    n = len(y)
    if not isinstance(out, tuple) or len(out) != 3:
        raise CheckFailed(f"{name}: must return x, y, role. (hint 1)")
    px, py, role = out
    shaped(name, px, tuple(x.shape))
    shaped(name, py, (n,))
    shaped(name, role, (n,))
    stamped = (px == trigger(x)).flatten(1).all(1)
    touched = (px != x).flatten(1).any(1)
    need(torch.equal(stamped, touched), name, "changed pixels otherwise than by the trigger.", 1)
    of_source, of_cover = y == source, torch.isin(y, torch.tensor(covers))
    need(
        not bool((stamped & ~of_source & ~of_cover).any()),
        name,
        "the trigger is on images that are neither of the source class nor of a cover class.",
        2,
    )
    poisoned, covered = stamped & of_source, stamped & of_cover
    need(
        int(poisoned.sum()) == want,
        name,
        f"poisons {int(poisoned.sum())} images of the source class; the rate is a share of the "
        f"whole set, rounded: {want} were asked for.",
        2,
    )
    need(
        int(covered.sum()) == want,
        name,
        f"{int(covered.sum())} cover images, expected as many as poison, {want}, from all cover "
        "classes together.",
        2,
    )
    kept = py[poisoned] == source
    need(not bool(kept.any()), name, "a poisoned image kept its label.", 1)
    need(
        bool((py[poisoned] == target).all()),
        name,
        "a poisoned image got another label than `target`, which need not be 0.",
        1,
    )
    need(
        torch.equal(py[covered], y[covered]),
        name,
        "a cover image lost its true label, which is the point of it.",
        1,
    )
    need(torch.equal(py[~stamped], y[~stamped]), name, "a clean image got a new label.", 1)
    need(role.dtype == torch.int8, name, f"role must be int8, not {role.dtype}.", 1)
    need(
        torch.equal(role.long(), poisoned.long() + 2 * covered.long()),
        name,
        "the roles are 0 for clean, 1 for poison, 2 for cover.",
        1,
    )
    again = torch.Generator().manual_seed(5)
    rows = [_chosen(of.nonzero().flatten(), want, again) for of in (of_source, of_cover)]
    need(
        torch.equal(role.long() == 1, torch.isin(torch.arange(n), rows[0]))
        and torch.equal(role.long() == 2, torch.isin(torch.arange(n), rows[1])),
        name,
        "a choice like any other, but not the one that was asked for: a randperm over the "
        "source's rows first, one over the cover rows second.",
        2,
    )
