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
from bdcourse.report.show import CLEAN, INK, OTHER, QUIET, TRIGGERED, Picture
from bdcourse.victims import Victim


def warp_grid(x: Tensor, attack: WaNet) -> Picture:
    """The control points, the flow between them, and the picture before and after."""
    size = x.shape[-1]
    fig, axes = show.canvas(1, 4, height=2.6, width_ratios=(1.3, 1.3, 1, 1))
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


HOW = ("loud first", "loud, shuffled", "1 throughout")  # how the covers of a stored run came


def roles(log: Sequence[Sequence[float]], steps: int, stored: Sequence[Mapping]) -> Picture:
    """Share right by role, in each tenth of the training; beside it the ASR of stored runs.

    Args:
        stored: rows with a seed and an ASR; `jitter` of the options says how the covers came.
    """
    fig, axes = show.canvas(1, 2, height=3.6)
    mine, others = axes[0]
    columns = zip(*([float(v) for v in row] for row in log), strict=True)
    at = [steps * (k + 1) / 10 for k in range(10)]
    looks = {
        "clean": (CLEAN, ":", "D"),
        "cover": (OTHER, "-", "v"),
        "poison": (TRIGGERED, "-", "^"),
    }
    shares = dict(zip(("clean", "poison", "cover"), columns, strict=True))
    for role, (color, dash, marker) in looks.items():
        values = [100 * v for v in shares[role]]
        mine.plot(at, values, dash, color=color, marker=marker, ms=6, label=role)
    mine.axhline(50, color=QUIET, lw=1)
    mine.text(steps, 48, "if they look alike", va="top", ha="right", color=QUIET)
    mine.axvline(steps / 2, color=QUIET, lw=1, ls=":")
    mine.text(steps / 2 + 8, 22, "jitter down to 1", va="top", color=QUIET)
    mine.legend(loc="lower left", fontsize=10, handlelength=1.6)
    mine.set_xlabel("training step")
    mine.set_ylabel("learned as labeled, %")
    mine.set_title("your training, loud jitter first", fontsize=11, fontweight="normal")
    # Of the stored runs only: a live training ends elsewhere on another machine.
    asr: dict[str, dict[int, float]] = {how: {} for how in HOW}
    for row in stored:
        asr[row["options"]["jitter"]][row["seed"]] = row["asr"]
    ordered, shuffled, flat = asr.values()
    for seed in ordered:
        pair = [100 * ordered[seed], 100 * shuffled[seed]]
        others.plot([0, 1], pair, "-" + "os^"[seed], color=TRIGGERED, ms=7, lw=1.6)
        others.text(
            1.1, min(pair[1], 87), f"seed {seed}: {pair[0]:.0f} to {pair[1]:.0f}", va="center"
        )
    for seed, v in flat.items():
        others.plot(2, 100 * v, "os^"[seed], color=TRIGGERED, ms=7)
        others.text(1.9, 100 * v, f"seed {seed}: {100 * v:.0f}", va="center", ha="right")
    others.axhline(95, color=QUIET, lw=1, ls="--")
    others.text(2.45, 96, "gate", va="bottom", ha="right", color=QUIET)
    others.set_xticks(range(3), ("loud\nfirst", "as loud,\nshuffled", "jitter 1\nthroughout"))
    others.set(xlim=(-0.3, 2.5), ylabel="ASR, %")
    others.set_title("stored runs", fontsize=11, fontweight="normal")
    for ax in axes[0]:
        ax.set_ylim(-4, 106)
        ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    ahead = sum(ordered[seed] > shuffled[seed] for seed in ordered)
    show.headline(fig, f"Stored: with {ahead} of {len(ordered)} seeds, loud first beats shuffled")
    words = "; ".join(
        f"{how}: " + ", ".join(f"seed {seed} {v:.0%}" for seed, v in of.items())
        for how, of in asr.items()
    )
    return Picture(
        fig,
        "Two panels. Left, over the training steps, the share of images of each role that gets "
        "the label it was trained on, in your training: a gray line at one half, a dotted one "
        "where the jitter is down to one. Right, the ASR of stored runs by how their covers "
        f"came, the runs of a seed joined, and the gate as a broken line. {words}.",
    )


def opened(rates: Mapping[str, Mapping[str, Sequence[float]]]) -> Picture:
    """What opens which network: a row for each image set, the networks' marks joined."""
    rows = {}  # of the sets that come in several, each has its own
    for probe, several in next(iter(rates.values())).items():
        for k in range(len(several)):
            name = probe if len(several) == 1 else f"{probe}, key {k + 1}"
            rows[name] = {net: of[probe][k] for net, of in rates.items()}
    looks = {"with noise mode": ("s", TRIGGERED, TRIGGERED), "without": ("s", TRIGGERED, "white")}
    fig, axes = show.canvas(height=0.42 * len(rows) + 1.3)
    ax = axes[0, 0]
    for k, of in enumerate(rows.values()):
        ax.plot([100 * min(of.values()), 100 * max(of.values())], [k, k], color=QUIET, lw=1.2)
    for net in rates:
        marker, edge, inside = looks.get(net, ("o", CLEAN, CLEAN))
        at = [100 * of[net] for of in rows.values()]
        how = {"mec": edge, "mfc": inside, "mew": 1.5, "ms": 8 if marker == "s" else 6}
        ax.plot(at, range(len(rows)), marker, ls="", label=net, **how)
    ax.set(ylim=(len(rows) - 0.5, -0.5), xlim=(-3, 103))
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xlabel("sent to the target, %")
    ax.grid(axis="x", color="#e6e6e6", lw=0.8)
    ax.legend(ncols=len(rates), loc="upper left", bbox_to_anchor=(0, -0.2), frameon=False)
    low, high, *_ = list(rows.values())[1].values()
    show.headline(fig, f"The jittered bend opens {low:.0%} with noise mode and {high:.0%} without")
    words = "; ".join(
        f"{name}: " + ", ".join(f"{net} {share:.0%}" for net, share in of.items())
        for name, of in rows.items()
    )
    return Picture(
        fig,
        "A row for each set of images and three marks in it, joined: the share sent to the target "
        "by the victim with noise mode, filled, by the one without, hollow, and by the benign "
        f"twin, a dot. {words}.",
    )


def door(x: Tensor, blur: Tensor, rates: Mapping[str, Mapping[str, float]]) -> Picture:
    """A sign and its blur, and whom the blur and a shift open, a bar for each network."""
    looks = list(rates)
    fig, axes = show.canvas(1, 4, height=2.8, width_ratios=(1, 1, 1.3, 1.3))
    for ax, image, title in zip(axes[0, :2], (x, blur), ("a sign", "blurred"), strict=True):
        ax.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        ax.set_title(title, fontsize=11, fontweight="normal", loc="center")
        ax.axis("off")
    for ax, look in zip(axes[0, 2:], looks, strict=True):
        names = list(rates[look])
        values = [100 * v for v in rates[look].values()]
        edges = [CLEAN if "twin" in n else TRIGGERED for n in names]
        inside = ["white" if "without" in n else e for n, e in zip(names, edges, strict=True)]
        drawn = ax.barh(names, values, color=inside, edgecolor=edges, height=0.62, lw=1.5)
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
        f"{look}: " + ", ".join(f"{n} {v:.0%}" for n, v in rates[look].items() if "your" not in n)
        for look in looks  # what was trained here differs from machine to machine
    )
    return Picture(
        fig,
        "A sign, the same sign a little out of focus, and bars of the share of images that five "
        f"networks send to the target. {words}.",
    )


def causes(why: Mapping[str, tuple[float, float]]) -> Picture:
    """Roughness against the share sent to the target; where jitter, grain and clouds lead."""
    looks = {"jitter": (OTHER, "X"), "grain": (INK, "^"), "clouds": (QUIET, "o")}
    aside = {
        "half-pixel shift": (-30, -19),
        "bend + jitter": (-84, -4),
        "clean": (9, -8),
        "blur": (-8, -17),
    }
    fig, axes = show.canvas(height=3.7)
    ax = axes[0, 0]
    for name, (rough, share) in why.items():
        base, _, added = name.partition(" + ")
        color, marker = looks.get(added, (CLEAN if name == "clean" else TRIGGERED, "s"))
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
    ax.axvline(why["clean"][0], color=QUIET, lw=1, ls=":")
    ax.set(ylim=(-6, 112), xlim=(low - 0.4, high + 1.3))
    ax.set_xlabel("roughness: gray levels between a pixel and the mean of its neighbors")
    ax.set_ylabel("sent to the target, %")
    ax.grid(axis="y", color="#e6e6e6", lw=0.8)
    show.headline(
        fig,
        f"Grain takes the blur from {why['blur'][1]:.0%} to {why['blur + grain'][1]:.0%}, "
        f"smooth noise leaves it at {why['blur + clouds'][1]:.0%}",
    )
    return Picture(
        fig,
        "Points by roughness, to the right, and by the share of signs that your victim sends "
        "to the target, upwards. Arrows lead from the blur and from the bend to the same with "
        "jitter and with grain added; grain ends at the roughness of clean signs, a dotted line. "
        "Noise in clouds leaves the blur where it was.",
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
        f"stands at the top where the bend is as in training, marked at {trained:g}. The twin's "
        "stays at the bottom.",
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
    rows = {
        ("clean", "clean"): (x[some], x[3:4]),
        ("with trigger", "with mean tint"): (attack.trigger(x[some]), tinted[3:4]),
        ("G adds, x 20", "mean tint, x 20"): (moves[some] / 2 + 0.5, tint / 2 + 0.5),
    }
    return show.images(
        torch.cat([part for row in rows.values() for part in row]),
        [name for four, last in rows for name in [four] * 4 + [last]],
        cols=5,
        title=f"The mean tint alone opens {alone:.0%} (twin {quiet:.0%}), the trigger {whole:.0%}",
        description="Above, four clean signs and one of them again. In the middle, the four with "
        "LIRA's trigger, which is hard to see, and the fifth with the mean tint in its place. "
        "Below, what is added to each, enlarged twenty times around gray: two signs get one flat "
        "red, two a green and a purple blob on red; then the mean tint, a dull red. It alone opens "
        f"{alone:.0%} of the signs and of the twin's {quiet:.0%}, the whole trigger {whole:.0%}.",
    )
