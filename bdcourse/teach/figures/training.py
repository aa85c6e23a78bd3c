"""The figures of lesson 02."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bdcourse import metrics
from bdcourse.attacks import LIRA, WaNet, wanet
from bdcourse.images import Images
from bdcourse.report import show
from bdcourse.report.show import INK, QUIET, TRIGGERED, Picture
from bdcourse.victims import Victim


def warp_grid(x: Tensor, attack: WaNet) -> Picture:
    """The control points, the flow between them, and the picture before and after."""
    size = x.shape[-1]
    fig, axes = show.canvas(1, 4, height=2.5)
    points, flow, before, after = axes[0]
    at = np.linspace(0, size - 1, attack.grid.shape[-1])
    columns, rows = np.meshgrid(at, at)
    pixels = attack.strength * (size - 1) / 2 / size
    dx, dy = (2 * pixels * attack.grid).numpy()
    arrows = {"angles": "xy", "scale_units": "xy", "scale": 1, "color": TRIGGERED}
    points.plot(columns, rows, "o", color=QUIET, ms=4)
    points.quiver(columns, rows, dx, dy, width=0.018, **arrows)
    where = (attack.flow(x[None])[0] + 1) / 2 * (size - 1)
    moved = where.numpy()
    for k in range(0, size, 3):
        flow.plot(moved[k, :, 0], moved[k, :, 1], color=TRIGGERED, lw=0.9)
        flow.plot(moved[:, k, 0], moved[:, k, 1], color=TRIGGERED, lw=0.9)
    for ax in (points, flow):
        ax.set(xlim=(-4, size + 3), ylim=(size + 3, -4), aspect="equal")
    before.imshow(x.permute(1, 2, 0).numpy(), interpolation="nearest")
    bent = attack.trigger(x[None])[0]
    after.imshow(bent.permute(1, 2, 0).numpy(), interpolation="nearest")
    titles = ("1 random arrows", "2 a smooth field", "3 the sign", "4 the sign, bent")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=11, fontweight="normal", loc="center", color=INK)
        ax.axis("off")
    show.headline(fig, "Sixteen random arrows make one smooth bend")
    return Picture(
        fig,
        "Four panels from left to right. Arrows in random directions on four by four points, "
        "drawn at twice their length. A mesh whose lines follow these arrows smoothly. A sign "
        "as it is. The same sign sampled along the mesh: its outline is wavy, and no foreign "
        "color has been added.",
    )


def by_strength(x: Tensor, bend, noisy_warp) -> Picture:
    """One sign under the warp at four strengths, and what changed."""
    strengths = (0.5, 1.0, 2.0, 4.0)
    grid, g = wanet.control_grid(), torch.Generator().manual_seed(0)
    bent = [noisy_warp(x, bend(grid, s, x.shape[-1]), 0, g) for s in strengths]
    apart = [(b - x).abs().mul(2).clamp(0, 1) for b in bent]
    return show.images(
        torch.cat([*bent, *apart]),
        [f"strength {s:g}" for s in strengths] + ["difference x 2"] * 4,
        cols=4,
        title="A bend adds no pixel, it moves edges",
        description="Above, one sign warped with strengths one half, one, two and four: the "
        "first looks like the original, the last is visibly wavy. Below, twice the "
        "differences: only the edges of the sign light up, more with each strength.",
    )


def roles(log: Sequence[Sequence[float]], steps: int) -> Picture:
    """Share right by role, in each tenth of the training."""
    clean, poison, cover = zip(*log, strict=True)
    at = [steps * (k + 1) // 10 for k in range(10)]
    start, end = poison[0], poison[-1]
    picture = show.lines(
        at,
        {"clean": clean, "poison": poison, "cover": cover},
        percent=True,
        xlabel="training step",
        ylabel="learned as labeled, %",
        title=f"The poison climbs last: from {start:.0%} to {end:.0%}",
        description="Three lines over the training steps: the share of images of each role "
        f"that gets the label they were trained on. Clean starts high and ends at "
        f"{clean[-1]:.0%}, cover climbs to {cover[-1]:.0%}; poison starts lowest and climbs "
        f"from {start:.0%} to {end:.0%}.",
    )
    assert picture is not None  # no axes were given
    return picture


def opened(rates: Mapping[str, Mapping[str, float]]) -> Picture:
    """What opens which victim: a dot for each probe and victim."""
    victims_ = list(rates)
    probes = list(rates[victims_[0]])
    looks = {victims_[0]: (TRIGGERED, "s"), victims_[1]: (show.OTHER, "D")}
    fig, axes = show.canvas(height=0.5 * len(probes) + 1.3)
    ax = axes[0, 0]
    for k, probe in enumerate(probes):
        ends = [100 * rates[v][probe] for v in victims_]
        ax.plot(ends, [k, k], color="#d0d0d0", lw=2, zorder=1)
    for v in victims_:
        color, marker = looks[v]
        values = [100 * rates[v][p] for p in probes]
        ax.plot(values, range(len(probes)), marker, color=color, ms=8, label=v)
    ax.set(ylim=(len(probes) - 0.5, -0.5), xlim=(-3, 103))
    ax.set_yticks(range(len(probes)), probes)
    ax.set_xlabel("sent to the target, %")
    ax.grid(axis="x", color="#e6e6e6", lw=0.8)
    low, high = (rates[v][probes[1]] for v in victims_)
    ax.legend(ncols=2, loc="upper left", bbox_to_anchor=(0, -0.22), frameon=False)
    show.headline(fig, f"The jittered bend opens {low:.0%} with noise mode and {high:.0%} without")
    words = "; ".join(
        f"{p}: " + " and ".join(f"{rates[v][p]:.0%}" for v in victims_) for p in probes
    )
    return Picture(
        fig,
        "A row for each probe and two dots in it: the share of images sent to the target by "
        f"the victim with noise mode and by the one without. {words}.",
    )


def blurred(x: Tensor, blur: Tensor, rates: Mapping[str, float]) -> Picture:
    """A sign and its blur, beside what the blur opens."""
    fig, axes = show.canvas(1, 3, height=2.6, width=7.2, width_ratios=(1, 1, 2.2))
    for ax, image, title in zip(axes[0, :2], (x, blur), ("a sign", "blurred"), strict=True):
        ax.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        ax.set_title(title, fontsize=11, fontweight="normal", loc="center")
        ax.axis("off")
    ax = axes[0, 2]
    names = list(rates)
    values = [100 * v for v in rates.values()]
    colors = [QUIET if "twin" in n else TRIGGERED for n in names]
    drawn = ax.barh(names, values, color=colors, height=0.6)
    ax.bar_label(drawn, fmt="%.0f%%", padding=3, fontsize=11)
    ax.set(xlim=(0, 115))
    ax.invert_yaxis()
    ax.set_xlabel("sent to the target, %")
    first = rates[names[0]]
    show.headline(fig, f"A plain blur opens {first:.0%} of the signs")
    words = "; ".join(f"{n}: {v:.0%}" for n, v in rates.items())
    return Picture(
        fig,
        "A sign, the same sign a little out of focus, and bars of the share of images that "
        f"the victim with noise mode sends to the target. {words}.",
    )


def strengths(
    networks: Mapping[str, nn.Module], images: Images, attack: WaNet, trained: float
) -> Picture:
    """ASR of the attacker's field at strengths it was not trained on."""
    asked = images[attack.counts(images.y)]
    steps = [trained * k / 8 for k in range(0, 15, 2)]
    rates: dict[str, list[float]] = {name: [] for name in networks}
    for s in steps:
        x = WaNet(grid=attack.grid, strength=s).trigger(asked.pixels())
        for name, net in networks.items():
            said = metrics.predict(net, x)
            rates[name].append(said.eq(attack.target).float().mean().item())
    half = len(steps) // 2 - 2
    picture = show.lines(
        steps,
        rates,
        percent=True,
        xlabel="strength of the bend at test time",
        ylabel="ASR, %",
        marks={trained: "as trained"},
        title=f"At half its strength the bend opens {rates['ASR'][half]:.0%}",
        description="Attack success rate over the strength of the attacker's bend, a line "
        "for the victim and one for its twin. The victim's starts at zero, climbs early, and "
        f"stands at the top where the bend is as in training, marked at {trained:g}. "
        + "; ".join(f"{n}: {', '.join(f'{v:.0%}' for v in r)}" for n, r in rates.items())
        + ".",
    )
    assert picture is not None  # no axes were given
    return picture


def lira(images: Images, victim: Victim) -> Picture:
    """LIRA's trigger on one sign, and what its mean tint does alone."""
    attack, x = victim.attack, images.pixels()
    assert isinstance(attack, LIRA)
    with torch.no_grad():
        moves = torch.cat([attack.net(some) for some in x.split(100)])
    tint = attack.epsilon * moves.mean((0, 2, 3), keepdim=True)
    said = metrics.predict(victim.model, (x + tint).clamp(0, 1))
    alone = said.eq(attack.target).float().mean().item()
    said = metrics.predict(victim.model, attack.trigger(x))
    whole = said.eq(attack.target).float().mean().item()
    return show.images(
        torch.stack([x[3], attack.trigger(x[3:4])[0], moves[3] / 2 + 0.5]),
        ["clean", "with trigger", "what G adds, x 20"],
        cols=3,
        title=f"One tint for all signs opens {alone:.0%}, the whole trigger {whole:.0%}",
        description="A sign, the same sign with LIRA's trigger, hardly to be told apart, and "
        "what the network adds, enlarged twenty times around gray: nearly the whole picture "
        f"is one reddish tint. This tint alone opens {alone:.0%} of the signs, the whole "
        f"trigger {whole:.0%}.",
    )
