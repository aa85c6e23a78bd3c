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
    reach = 1 + max(0.0, *(-(p + d).min() for p, d in ((columns, dx), (rows, dy))))
    reach = max(reach, *((p + d).max() - size + 2 for p, d in ((columns, dx), (rows, dy))))
    for ax in (points, flow):
        ax.set(xlim=(-reach, size + reach), ylim=(size + reach, -reach), aspect="equal")
    before.imshow(x.permute(1, 2, 0).numpy(), interpolation="nearest")
    bent = attack.trigger(x[None])[0]
    after.imshow(bent.permute(1, 2, 0).numpy(), interpolation="nearest")
    titles = (
        "1 read from here\n(arrows twice as long)",
        "2 the places between",
        "3 the sign",
        "4 the sign, bent",
    )
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=10, fontweight="normal", loc="center", color=INK)
        ax.axis("off")
    show.headline(fig, "Sixteen random arrows make one smooth bend")
    return Picture(
        fig,
        "Four panels from left to right. Arrows in random directions on four by four points, "
        "drawn at twice their length: each points to where a pixel is read. A mesh whose lines "
        "follow these arrows smoothly. A sign as it is. The same sign sampled along the mesh: "
        "its outline is wavy, moved against the arrows, and no foreign color has been added.",
    )


def by_strength(x: Tensor, bend, noisy_warp) -> Picture:
    """One sign as it is and under four bends, the same with jitter, and what a bend moves."""
    strengths = (0.0, 0.5, 1.0, 2.0, 4.0)
    grid, g = wanet.control_grid(), torch.Generator().manual_seed(0)
    flows = [bend(grid, s, x.shape[-1]) for s in strengths]
    bent, frayed = ([noisy_warp(x, flow, a, g) for flow in flows] for a in (0, 1))
    apart = [(b - x).abs().mul(2).clamp(0, 1) for b in bent]
    names = ["original", *(f"strength {s:g}" for s in strengths[1:])]
    names += ["jitter alone"] + ["with jitter"] * 4
    return show.images(
        torch.cat([*bent, *frayed, *apart]),
        names + ["no difference"] + ["bend moves, x 2"] * 4,
        cols=5,
        title="A bend adds no pixel, it moves edges, and jitter frays them",
        description="Above, one sign as it is, then warped with strengths one half, one, two "
        "and four: the first of these can hardly be told from the original, the last is "
        "visibly wavy. In the middle, the same five with jitter: all edges are frayed. Below, "
        "twice the difference between bend and original: only the edges of the sign light up, "
        "more with each strength.",
    )


def roles(log: Sequence[Sequence[float]], steps: int, stored: Mapping) -> Picture:
    """Share right by role, in each tenth of the training; beside it a stored training."""
    fig, axes = show.canvas(1, 2, height=3.1, sharey=True)
    runs = {
        "your training, loud jitter first": (log, steps),
        "stored: jitter 1 throughout": (stored["log"], stored["steps"]),
    }
    words = []
    for ax, (name, (notes, total)) in zip(axes[0], runs.items(), strict=True):
        at = [total * (k + 1) // 10 for k in range(10)]
        columns = zip(*([float(v) for v in row] for row in notes), strict=True)
        shares = dict(zip(("clean", "poison", "cover"), columns, strict=True))
        show.lines(
            at,
            shares,
            percent=True,
            xlabel="training step",
            ylabel="learned as labeled, %" if ax is axes[0, 0] else " ",
            title="",
            description="",
            ax=ax,
        )
        ax.set_title(name, fontsize=11, fontweight="normal")
        words.append(
            f"{name}: "
            + ", ".join(f"{r} from {v[0]:.0%} to {v[-1]:.0%}" for r, v in shares.items())
        )
    mine, theirs = (float(notes[-1][1]) for notes, _ in runs.values())
    show.headline(
        fig, f"Poison: {mine:.0%} with loud jitter first, {theirs:.0%} with jitter 1 throughout"
    )
    return Picture(
        fig,
        "Two panels with three lines each over the training steps: the share of images of each "
        f"role that gets the label it was trained on. {'; '.join(words)}.",
    )


def opened(rates: Mapping[str, Mapping[str, Sequence[float]]]) -> Picture:
    """What opens which victim: a dot for each image set, a row for each kind of them."""
    victims_ = list(rates)
    probes = list(rates[victims_[0]])
    looks = ((TRIGGERED, "s", -0.12), (show.OTHER, "D", 0.12))
    fig, axes = show.canvas(height=0.55 * len(probes) + 1.3)
    ax = axes[0, 0]
    for v, (color, marker, off) in zip(victims_, looks, strict=True):
        at = [(100 * r, k + off) for k, p in enumerate(probes) for r in rates[v][p]]
        ax.plot(*zip(*at, strict=True), marker, color=color, ms=8, label=v, alpha=0.8)
    ax.set(ylim=(len(probes) - 0.5, -0.5), xlim=(-3, 103))
    ax.set_yticks(range(len(probes)), probes)
    ax.set_xlabel("sent to the target, %")
    ax.grid(axis="x", color="#e6e6e6", lw=0.8)
    low, high = (rates[v][probes[1]][0] for v in victims_)
    ax.legend(ncols=2, loc="upper left", bbox_to_anchor=(0, -0.22), frameon=False)
    show.headline(fig, f"The jittered bend opens {low:.0%} with noise mode and {high:.0%} without")
    words = "; ".join(
        f"{p}: " + " and ".join(", ".join(f"{r:.0%}" for r in rates[v][p]) for v in victims_)
        for p in probes
    )
    return Picture(
        fig,
        "A row for each probe and dots in it, four for the four other bends: the share of "
        "images sent to the target by the victim with noise mode and by the one without. "
        f"{words}.",
    )


def door(x: Tensor, blur: Tensor, rates: Mapping[str, Mapping[str, float]]) -> Picture:
    """A sign and its blur, and whom the blur and a shift open, a bar for each network."""
    looks = list(rates)
    fig, axes = show.canvas(1, 4, height=2.4, width_ratios=(1, 1, 1.25, 1.25))
    for ax, image, title in zip(axes[0, :2], (x, blur), ("a sign", "blurred"), strict=True):
        ax.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        ax.set_title(title, fontsize=11, fontweight="normal", loc="center")
        ax.axis("off")
    for ax, look in zip(axes[0, 2:], looks, strict=True):
        names = list(rates[look])
        values = [100 * v for v in rates[look].values()]
        colors = [
            QUIET if "twin" in n else show.OTHER if "without" in n else TRIGGERED for n in names
        ]
        drawn = ax.barh(names, values, color=colors, height=0.62)
        ax.bar_label(drawn, fmt="%.0f%%", padding=3, fontsize=10)
        ax.set(xlim=(0, 128), xticks=(0, 50, 100))
        ax.invert_yaxis()
        ax.set_title(look, fontsize=11, fontweight="normal", loc="center")
        ax.set_xlabel("to the target, %", fontsize=10)
        if look != looks[0]:
            ax.set_yticklabels([])
    show.headline(
        fig, f"A plain blur opens {next(iter(rates[looks[0]].values())):.0%} of the signs"
    )
    words = "; ".join(
        f"{look}: " + ", ".join(f"{n} {v:.0%}" for n, v in rates[look].items()) for look in looks
    )
    return Picture(
        fig,
        "A sign, the same sign a little out of focus, and bars of the share of images that four "
        f"networks send to the target. {words}.",
    )


def causes(why: Mapping[str, tuple[float, float]]) -> Picture:
    """Roughness against the share sent to the target, and where jitter and grain lead."""
    looks = {"jitter": (QUIET, "X"), "grain": (show.OTHER, "^"), "": (TRIGGERED, "s")}
    aside = {"half-pixel shift": (-30, -19), "bend + jitter": (-78, -4), "clean": (9, -4)}
    fig, axes = show.canvas(height=3.6)
    ax = axes[0, 0]
    for name, (rough, share) in why.items():
        base, _, added = name.partition(" + ")
        color, marker = looks[added]
        if added:
            start = (why[base][0], 100 * why[base][1])
            line = {"arrowstyle": "->", "color": color, "lw": 1.3, "shrinkA": 6, "shrinkB": 6}
            ax.annotate("", (rough, 100 * share), start, arrowprops=line)
        ax.plot(rough, 100 * share, marker, color=color, ms=9)
        ax.annotate(
            name,
            (rough, 100 * share),
            xytext=aside.get(name, (9, 4)),
            textcoords="offset points",
            color=color,
            fontsize=10.5,
        )
    low, high = (f(rough for rough, _ in why.values()) for f in (min, max))
    ax.set(ylim=(-6, 112), xlim=(low - 0.4, high + 1.6))
    ax.set_xlabel("roughness: gray levels between a pixel and the mean of its neighbors")
    ax.set_ylabel("sent to the target, %")
    ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    show.headline(
        fig,
        f"Grain takes the blur from {why['blur'][1]:.0%} to {why['blur + grain'][1]:.0%}, "
        f"jitter to {why['blur + jitter'][1]:.0%}",
    )
    words = "; ".join(f"{n}: {rough:.1f} and {share:.0%}" for n, (rough, share) in why.items())
    return Picture(
        fig,
        "Points by roughness, to the right, and by the share of signs that your victim sends "
        "to the target, upwards. Arrows lead from the blur and from the bend to the same with "
        f"jitter and with grain added. {words}.",
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
        ylabel="sent to the target, %",
        marks={trained: "as trained"},
        title=f"At half its strength the bend opens {rates['victim'][half]:.0%}",
        description="Attack success rate over the strength of the attacker's bend, a line "
        "for the victim and one for its twin. The victim's starts at zero, climbs early, and "
        f"stands at the top where the bend is as in training, marked at {trained:g}. "
        + "; ".join(f"{n}: {', '.join(f'{v:.0%}' for v in r)}" for n, r in rates.items())
        + ".",
    )
    assert picture is not None  # no axes were given
    return picture


def lira(images: Images, victim: Victim, twin: nn.Module) -> Picture:
    """LIRA's trigger on four signs, what it adds, and what its mean tint does alone."""
    attack, x = victim.attack, images.pixels()
    assert isinstance(attack, LIRA)
    with torch.no_grad():
        moves = torch.cat([attack.net(some) for some in x.split(100)])
    mean = moves.mean((0, 2, 3), keepdim=True)
    tinted = (x + attack.epsilon * mean).clamp(0, 1)

    def opened_by(model: nn.Module, pixels: Tensor) -> float:
        return metrics.predict(model, pixels).eq(attack.target).float().mean().item()

    alone, quiet = opened_by(victim.model, tinted), opened_by(twin, tinted)
    whole = opened_by(victim.model, attack.trigger(x))
    some = [0, 1, 3, 4]
    tint = mean.expand(1, *x.shape[1:])
    return show.images(
        torch.cat([attack.trigger(x[some]), tinted[3:4], moves[some] / 2 + 0.5, tint / 2 + 0.5]),
        ["with trigger"] * 4 + ["with mean tint"] + ["G, x 20"] * 4 + ["mean tint, x 20"],
        cols=5,
        title=f"The mean tint alone opens {alone:.0%} (twin {quiet:.0%}), the trigger {whole:.0%}",
        description="Above, four signs with LIRA's trigger, which is hard to see, and one with "
        "the mean tint in its place. Below, what the network adds to each, enlarged twenty "
        "times around gray: two signs get one flat red, two a green and a purple blob on red; "
        f"then the mean tint, a dull red. It alone opens {alone:.0%} of the signs and of the "
        f"twin's {quiet:.0%}, the whole trigger {whole:.0%}.",
    )
