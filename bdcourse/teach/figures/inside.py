"""The figures of lesson 03."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from bdcourse import activations
from bdcourse.report import show
from bdcourse.report.diagram import Box, boxes
from bdcourse.report.show import CLEAN, DEFENDED, QUIET, TRIGGERED, Picture
from bdcourse.surgery import weight_of

# ACC, ASR and RA, in this order everywhere: (name, color, marker).
RATES = (("ACC", CLEAN, "o"), ("ASR", TRIGGERED, "s"), ("RA", DEFENDED, "^"))
TWO = ("victim", TRIGGERED, "s"), ("benign twin", CLEAN, "o")


def _short(name: str) -> str:
    return name.replace("layer", "").replace("shortcut", "sc")


def network_map(model: nn.Module) -> Picture:
    """ResNet-18 with the names that its layers have, and one block opened."""
    width = {n: len(weight_of(model.get_submodule(n))) for n in activations.batchnorms(model)}
    total = sum(width.values())
    top, low = 4.05, 1.0
    row = {"image": 0.75, "conv1\nbn1": 2.2}
    row |= {f"layer{i}": 2.2 + 1.45 * i for i in (1, 2, 3, 4)}
    row |= {"average\nlinear": 9.4}
    drawn = {n: Box(x, top, n, width=1.15, height=0.85) for n, x in row.items()}
    names = list(row)
    arrows = list(zip(names, names[1:], strict=False))
    block = {"in": 0.5, "conv1": 1.75, "bn1": 3.1, "conv2": 4.75, "bn2": 6.1}
    drawn |= {f"_{n}": Box(x, low, n, width=0.9, height=0.7) for n, x in block.items()}
    drawn["_in"] = Box(0.5, low, "in", QUIET, 0.6, 0.7)
    drawn["_add"] = Box(7.3, low, "+", QUIET, 0.6, 0.7)
    drawn["_out"] = Box(8.75, low, "out", QUIET, 0.8, 0.7)
    words = (
        "shortcut: identity, except in 2.0, 3.0 and 4.0,\nwhere it is shortcut.0, shortcut.1 (sc.1)"
    )
    drawn["_sc"] = Box(3.9, low + 1.15, words, width=5.8, height=0.8)
    arrows += [("_in", "_conv1"), ("_conv1", "_bn1"), ("_bn1", "_conv2")]
    arrows += [("_conv2", "_bn2"), ("_bn2", "_add"), ("_add", "_out")]
    counts = [width["bn1"], *(width[f"layer{i}.1.bn2"] for i in (1, 2, 3, 4))]
    notes = [
        (x, top - 0.68, f"{n} maps") for x, n in zip(list(row.values())[1:6], counts, strict=True)
    ]
    notes += [(3.92, low - 0.5, "ReLU"), (8.03, low - 0.5, "ReLU")]
    notes += [(5.1, top - 1.15, "each layer is two such blocks, 0 and 1:")]
    return boxes(
        drawn,
        arrows,
        elbows=[("_in", "_sc"), ("_sc", "_add")],
        title=f"Twenty BatchNorms, {total:,} channels, and a name for each",
        height=3.5,
        notes=notes,
        description="Above, the network as a chain: image, conv1 with bn1, layer1, layer2, "
        f"layer3, layer4, with {', '.join(map(str, counts))} feature maps, and the average of "
        "each map before the linear layer. Below, one "
        "block opened: in, conv1, bn1, ReLU, conv2, bn2, plus, ReLU, out, and a shortcut from "
        "in to plus. It passes maps on as they are, except in blocks 2.0, 3.0 and 4.0, where a "
        "convolution, shortcut.0, and a BatchNorm, shortcut.1, lie on it.",
    )


def _rate_axis(ax: Axes) -> None:
    ax.set_ylim(-5, 105)
    ax.grid(axis="y", color="#e6e6e6", lw=0.8)


def wreckage(shares: Sequence[float], draws: Tensor) -> Picture:
    """Random channels off: each network a point for each rate.

    Args:
        draws: (shares, draws, 3), ACC, ASR and RA.
    """
    worst = float(draws[..., 2].max())
    silent = int((draws[..., 1] < 0.1).sum())
    wrecks = draws.shape[0] * draws.shape[1]
    with show.style():
        fig, axes = show.canvas(height=3.2)
        ax = axes[0, 0]
        n = draws.shape[1]
        for i, of_share in enumerate(draws):
            at = i * (n + 1) + torch.arange(n)
            ax.vlines(at, *(100 * t for t in of_share.aminmax(dim=1)), color="#d8d8d8", lw=2)
            for j, (name, color, marker) in enumerate(RATES):
                label = name if i == 0 else None
                ax.plot(at, 100 * of_share[:, j], marker, color=color, ms=6, label=label)
        _rate_axis(ax)
        centers = [i * (n + 1) + (n - 1) / 2 for i in range(len(shares))]
        ax.set_xticks(centers, [f"{100 * s:.0f}% of each layer" for s in shares])
        ax.set_xlabel("random channels switched off; each gray line is one network")
        ax.set_ylabel("%")
        ax.axhline(10, color=QUIET, lw=1, ls=":", label="10%: a repair keeps ASR below")
        ax.legend(ncols=4, loc="upper left", bbox_to_anchor=(-0.08, -0.2), columnspacing=1.2)
        ax.set_title(
            f"ASR below 10% in {silent} of {wrecks} wrecks, and RA is {100 * worst:.0f}% at best"
        )
        return Picture(
            fig,
            "Three groups of four broken networks, by the share of channels switched off, and "
            "three marks for each network, joined by a line. Accuracy falls as "
            "more channels go. Attack success is high at first, then scattered between floor and "
            f"top, then on the floor. RA never rises above {100 * worst:.0f} percent.",
        )


def carried(stages: Sequence[str], ratios: Mapping[str, Tensor]) -> Picture:
    """How much of each stage's output the trigger changes, for each victim and its twin.

    Args:
        ratios: victim -> (2, stages): the victim's and the twin's.
    """
    with show.style():
        fig, axes = show.canvas(1, len(ratios), height=3.4, sharey=True)
        for ax, (name, pair) in zip(axes[0], ratios.items(), strict=True):
            for values, (who, color, marker) in zip(pair, TWO, strict=True):
                ax.plot(values, marker=marker, color=color, ms=5, label=who)
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:g}")
            ax.axhline(1, color=QUIET, lw=1, ls=":")
            ax.set_xticks(range(len(stages)), map(_short, stages), rotation=90)
            ax.set_title(name, fontsize=11, fontweight="normal")
        axes[0, 0].set_ylabel("change / what was there")
        axes[0, 0].legend(loc="lower left")
        louder = {n: float(p[0, -1] / p[1, -1]) for n, p in ratios.items()}
        said = [f"{n} {v:.{0 if v >= 10 else 1}f} times" for n, v in louder.items()]
        show.headline(fig, f"Change at the exit, victim over twin: {', '.join(said)}")
        ends = [f"{n}: {p[0, -1]:.2g} against {p[1, -1]:.2g}" for n, p in ratios.items()]
        return Picture(
            fig,
            "Two panels with a logarithmic axis, stages from entrance to exit. The victim's "
            "line climbs, with small steps back, to one or past it, where the trigger changes as "
            "much as was there; the twin's falls or stays flat. "
            f"At the last stage {'; '.join(ends)}.",
        )


def stem_tac(changes: Mapping[str, tuple[Tensor, Tensor]], layer: str) -> Picture:
    """TAC of each channel of one layer, sorted, beside the twin's of the same channel."""
    first = next(iter(changes.values()))[0].sort(descending=True).values
    with show.style():
        fig, axes = show.canvas(1, len(changes), height=3.4, sharey=True)
        for ax, (name, pair) in zip(axes[0], changes.items(), strict=True):
            order = pair[0].argsort(descending=True)
            for values, (who, color, marker) in zip(pair, TWO, strict=True):
                ax.plot(values[order], marker, color=color, ms=6, label=who)
            ax.set_xticks(range(len(order)), order.tolist(), fontsize=9)
            ax.set_xlabel(f"channel of {layer}, loudest first")
            ax.set_title(name, fontsize=11, fontweight="normal")
            ax.grid(axis="y", color="#e6e6e6", lw=0.8)
        axes[0, 0].set_ylabel("TAC")
        axes[0, 0].set_ylim(bottom=0)
        axes[0, 1].legend(loc="upper right")
        many = float(first[1] / first[2])
        who = next(iter(changes))
        title = f"In {who} two channels shout, at least {many:.1f} times as loud as the third"
        show.headline(fig, title)
        return Picture(
            fig,
            "Two panels of points, one for each of sixteen channels, by their reaction to the "
            "trigger. For badnets two channels of the victim stand far above all others, and "
            "in the twin the same two do not. For blended the victim's points fall in a gentle "
            "slope; some lie at two or three times the twin's, and no pair stands apart.",
        )


def cut_curves(
    counts: Sequence[int],
    curves: Mapping[str, tuple[Tensor, Tensor]],
    whole: Mapping[str, Tensor],
) -> Picture:
    """ACC, ASR and RA along k: above the ranked cut, below every random draw as a point.

    Args:
        curves: victim -> ((counts, 3), (counts, draws, 3)).
        whole: victim -> rates of the uncut network, (3,).
    """
    with show.style():
        fig, axes = show.canvas(2, len(curves), height=5.2, sharex=True, sharey=True)
        places = torch.arange(len(counts) + 1)
        for (top, low), (name, (ranked, chance)) in zip(axes.T, curves.items(), strict=True):
            n = chance.shape[1]
            steps = torch.linspace(-0.09, 0.09, n)
            for j, (rate, color, marker) in enumerate(RATES):
                line = 100 * torch.cat([whole[name][None, j], ranked[:, j]])
                top.plot(places, line, marker=marker, color=color, ms=6, label=rate)
                for at, draws in zip(places[1:], chance[:, :, j], strict=True):
                    x = at + (j - 1) * 0.27 + steps
                    low.plot(x, 100 * draws, marker, color=color, ms=4.5, alpha=0.75, mew=0)
            for ax, which in ((top, "loudest first"), (low, f"{n} random draws for each k")):
                _rate_axis(ax)
                ax.set_title(f"{name}, {which}", fontsize=11, fontweight="normal")
            low.set_xticks(places, ["none", *map(str, counts)])
            low.set_xlabel("channels of bn1 off, of 16")
        for ax in axes[:, 0]:
            ax.set_ylabel("%")
        fig.legend(*axes[0, 0].get_legend_handles_labels(), ncols=3, loc="outside lower left")
        words = {2: "two", 4: "four", 8: "eight"}
        few = {n: _few(counts, c[0]) for n, c in curves.items()}
        said = [
            f"{words.get(k, k)} channels repair {n}" if k else f"no cut we tried repairs {n}"
            for n, k in few.items()
        ]
        title = "; ".join(said)
        show.headline(fig, title[0].upper() + title[1:])
        return Picture(
            fig,
            "Four panels, rates against the number of channels switched off, above by TAC and "
            "below at random. For badnets, by TAC, attack success drops to the floor and RA "
            "rises to the top within two channels, at full accuracy; with up to four random "
            "channels attack success stays high and RA low. For blended accuracy falls long "
            "before attack success does, and RA stays near the floor.",
        )


def pairs(left: Tensor, signs: int) -> Picture:
    """ASR once two channels are off, for each pair; on the diagonal once one is off.

    Args:
        left: (channels, channels), symmetric.
        signs: how many triggered images each share was counted on.
    """
    n = len(left)
    apart = left.masked_fill(torch.ones(n, n).tril(-1) == 0, 2)
    a, b = divmod(int(apart.argmin()), n)
    others = left.clone()
    others[a, b] = others[b, a] = 2
    with show.style():
        fig, axes = show.canvas(height=4.6)
        ax = axes[0, 0]
        drawn = ax.imshow(100 * left, cmap="cividis", vmin=0, vmax=100)
        ax.set_xticks(range(n), map(str, range(n)), fontsize=9)
        ax.set_yticks(range(n), map(str, range(n)), fontsize=9)
        ax.set_xlabel("one channel of bn1 off")
        ax.set_ylabel("and another")
        fig.colorbar(drawn, ax=ax, label=f"ASR % that is left, on {signs} signs")
        low = int(100 * float(others.min()))  # rounded down: it is a floor
        title = f"One pair, {min(a, b)} and {max(a, b)}, leaves {100 * float(left[a, b]):.0f}%"
        show.headline(fig, f"{title}; every other pair at least {low}%")
        return Picture(
            fig,
            f"A square of {n} by {n} fields, one for each pair of channels of bn1, colored by "
            "the attack success that is left without the two; the diagonal has single "
            "channels. All fields are bright except the two, mirror images, of the pair "
            f"{min(a, b)} and {max(a, b)}, which are dark.",
        )


def handed(shares: Mapping[str, float], signs: int) -> Picture:
    """Clean signs, some maps of bn1 handed over from the triggered run: ASR for each set."""
    with show.style():
        fig, axes = show.canvas(height=3.0)
        ax = axes[0, 0]
        places = range(len(shares))
        ax.barh(places, [100 * v for v in shares.values()], color=TRIGGERED, height=0.6)
        for i, v in zip(places, shares.values(), strict=True):
            ax.text(100 * v + 1, i, f"{100 * v:.0f}%", va="center", fontsize=11)
        ax.set_yticks(places, shares)
        ax.invert_yaxis()
        ax.set(xlim=(0, 112), xticks=range(0, 101, 25))
        ax.set_xlabel(f"of {signs} clean signs, read as the attacker's label, %")
        names = list(shares)
        first = 100 * shares[names[0]]
        show.headline(fig, f"Handed over, maps {names[0]} turn {first:.0f}% of clean signs")
        said = ", ".join(f"{n}: {_roughly(v)}" for n, v in shares.items())
        return Picture(
            fig,
            "Bars: the share of clean signs that get the attacker's label once some maps of "
            f"bn1 are those of the triggered image. {said}.",
        )


def _repaired(rates: Tensor) -> Tensor:
    """ASR below 10%, accuracy and RA above 90%: rates (n, 3) -> (n,) bool."""
    return (rates[:, 1] < 0.1) & (rates[:, 0] > 0.9) & (rates[:, 2] > 0.9)


def _few(counts: Sequence[int], ranked: Tensor) -> int | None:
    """The smallest count that repairs."""
    return next((k for k, g in zip(counts, _repaired(ranked), strict=True) if g), None)


def every_layer(
    layers: Sequence[str],
    sweeps: Mapping[str, tuple[Tensor, Mapping[int, Tensor]]],
) -> Picture:
    """A quarter of one layer off by TAC, layer after layer: ACC, ASR and RA.

    Args:
        sweeps: victim -> (layers, 3), and {position of a layer: (draws, 3)} of random
            quarters.
    """
    looks = ({"ms": 9, "mfc": "white", "mew": 1.5}, {"ms": 5}, {"ms": 5})
    with show.style():
        fig, axes = show.canvas(len(sweeps), 1, height=5.0, sharex=True)
        doors = []
        for ax, (name, (rates, controls)) in zip(axes[:, 0], sweeps.items(), strict=True):
            for j, (rate, color, marker) in enumerate(RATES):
                look = looks[j]
                ax.plot(100 * rates[:, j], color=color, lw=1.2, zorder=2)
                ax.plot(100 * rates[:, j], marker, color=color, label=rate, zorder=3, **look)
                for i, draws in controls.items():
                    at = i + 0.3 + 0 * draws[:, j]
                    ax.plot(at, 100 * draws[:, j], "x", color=color, ms=5, alpha=0.6)
            ax.plot([], [], "x", color=QUIET, ms=5, label="random quarter")
            good = _repaired(rates)
            doors.append(int(good.sum()))
            for i in good.nonzero().flatten().tolist():
                ax.axvspan(i - 0.4, i + 0.4, color=DEFENDED, alpha=0.18, lw=0)
            _rate_axis(ax)
            ax.set_ylabel("%")
            ax.set_title(name, fontsize=11, fontweight="normal")
        axes[-1, 0].set_xticks(range(len(layers)), map(_short, layers), rotation=90)
        axes[0, 0].legend(ncols=4, loc="center right", bbox_to_anchor=(1, 0.45))
        said = [f"{n} in {d}" for n, d in zip(sweeps, doors, strict=True)]
        show.headline(fig, f"Of {len(layers)} layers, a quarter cut repairs {' and '.join(said)}")
        return Picture(
            fig,
            "Two panels over twenty layers from entrance to exit: accuracy, attack success and "
            "RA after a quarter of that layer was switched off. For badnets attack success is "
            "on the floor and RA at the top at the first layer; within the first block the "
            "two cross, and from the second block on nothing changes. Random quarters leave "
            "the attack whole. For blended attack success stays near the top and RA on the "
            "floor, and the first layer costs accuracy, at random as well.",
        )


def detectors(
    channels: Sequence[int],
    patch: Tensor,
    kernels: Mapping[str, Tensor],
    maps: Mapping[str, tuple[Tensor, Tensor]],
    sign: int,
) -> Picture:
    """What single channels look for, and what they find on one sign, in two networks.

    Args:
        patch: the trigger in gray, (3, 3).
        kernels: network -> all kernels of the layer, (c, 3, 3), summed over colors.
        maps: network -> clean and triggered maps of the channels, (n, channels, h, w) each.
        sign: which of the images to draw.
    """
    heads = ("kernel", "without\ntrigger", "with\ntrigger", "change in\nthe corner")
    lift, many = [], len(channels) * len(kernels)
    with show.style():
        fig, axes = show.canvas(many, 6, height=6.6)
        grid = axes[0, 0].get_gridspec()
        for ax in axes[:, :2].flat:
            ax.remove()
        ax = fig.add_subplot(grid[: many // 2, :2])
        ax.imshow(2 * patch - 1, cmap="gray", vmin=-1, vmax=1)
        ax.set(xticks=[], yticks=[])
        ax.set_title("the patch", fontsize=11, loc="center", fontweight="normal")
        ax = fig.add_subplot(grid[many // 2 :, :2])
        for at, (kernel, (_, color, marker)) in enumerate(zip(kernels.values(), TWO, strict=True)):
            match = torch.tensor([_likeness(k, patch) for k in kernel])
            ax.plot(0 * match + at, match, marker, color=color, ms=6, alpha=0.6, mew=0)
            for c in channels:
                ax.text(at + 0.12, float(match[c]), str(c), va="center", fontsize=10)
        ax.set(xlim=(-0.5, 1.6), ylim=(-0.03, 1))
        ax.set_xticks(range(len(kernels)), kernels)
        ax.set_title("likeness of all kernels", fontsize=11, loc="center", fontweight="normal")
        ax.set_ylabel("|correlation| with the patch", fontsize=10)
        rows = iter(axes[:, 2:])
        for c, channel in enumerate(channels):
            clean, stamped = (m[:, c] for m in maps[next(iter(maps))])
            lift.append(float(stamped.flatten(1).amax(1).min() / clean.max()))
            top = float(stamped[sign].abs().max())
            for name, kernel in kernels.items():
                a, b = (m[sign, c] for m in maps[name])
                panels = [(m, top) for m in (a, b, (b - a)[-12:, -12:])]
                panels[:0] = [(kernel[channel], float(kernel[list(channels)].abs().max()))]
                for ax, (values, most) in zip(row := next(rows), panels, strict=True):
                    ax.imshow(values, cmap="gray", vmin=-most, vmax=most)
                    ax.set(xticks=[], yticks=[])
                row[0].set_ylabel(f"{name}\nchannel {channel}", fontsize=10)
        for ax, head in zip(axes[0, 2:], heads, strict=True):
            ax.set_title(head, fontsize=11, loc="center", fontweight="normal")
        n, times = len(maps[next(iter(maps))][0]), min(lift)
        show.headline(fig, f"The patch peaks {times:.1f} times as high as any of {n} clean signs")
        fig.supxlabel(
            "Gray is zero. Kernels: one scale for each network; maps: one for each pair of rows.",
            fontsize=10,
        )
        return Picture(
            fig,
            "Left, the patch, a checkerboard of three by three pixels, and below it a dot for "
            "each kernel of victim and twin by its likeness to the patch. Right, four rows, "
            "victim and twin for each of two channels: kernel, map without and with the "
            "trigger, change. In the victim the map has, with the trigger, a bright and dark "
            "checkerboard in its lower right corner, far stronger than the outline of the sign. "
            "In the twin the corner hardly changes.",
        )


def _likeness(kernel: Tensor, patch: Tensor) -> float:
    both = torch.stack([kernel.flatten(), patch.flatten()])
    return abs(float(torch.corrcoef(both)[0, 1]))


Question = tuple[str, str, str]  # a network, what it is shown, and the label asked for


def evidence(
    x: Mapping[Question, Tensor],
    heats: Mapping[Question, Tensor],
    sure: Mapping[Question, float],
    pick: int,
    start: int,
) -> Picture:
    """Grad-CAM, a column for each network, image and label asked for: one sign, its map,
    and the mean of the maps of all signs.

    Args:
        x, heats: column -> (n, c, h, w) and (n, h, w).
        sure: column -> mean probability of the label asked for.
        pick: the sign to draw.
        start: first row and column of the patch's corner.
    """
    from matplotlib import colormaps

    steps, many = colormaps["viridis"].resampled(10), len(next(iter(heats.values())))
    pooled = {q: _in_corner(h, start) for q, h in heats.items()}
    with show.style():
        fig, axes = show.canvas(3, len(x), height=6.6)
        for column, name in zip(axes.T, x, strict=True):
            network, shown, label = name
            column[0].set_title(f"{network}, {shown}\nwhy “{label}”?", fontsize=11, loc="center")
            column[0].title.set_fontweight("normal")
            gray, heat = x[name][pick].mean(0), heats[name]
            column[0].imshow(gray, cmap="gray", vmin=0, vmax=float(gray.quantile(0.98)))
            for ax, values in zip(column[1:], (heat[pick], heat.mean(0)), strict=True):
                drawn = ax.imshow(values, cmap=steps, vmin=0, vmax=1)
            for ax in column:
                edge = [start - 0.5, len(gray) - 0.5]
                ax.plot([edge[0], edge[0], edge[1]], [edge[1], edge[0], edge[0]], "w:", lw=1.5)
                ax.set(xticks=[], yticks=[], xlim=(-0.5, edge[1]), ylim=(edge[1], -0.5))
            one = _in_corner(heat[pick], start)
            for ax, share in ((column[1], one), (column[2], pooled[name])):
                ax.set_xlabel(f"corner {100 * share:.0f}%", fontsize=10)
        for ax, what in zip(axes[:, 0], ("one sign", "its map", f"mean of {many}"), strict=True):
            ax.set_ylabel(what, fontsize=11)
        for ax, q in zip(axes[2], x, strict=True):
            ax.set_xlabel(f"{ax.get_xlabel()}\nP(“{q[2]}”) {_percent(sure[q])}", fontsize=10)
        bar = fig.colorbar(drawn, ax=axes, location="bottom", shrink=0.5, aspect=30)
        bar.set_label("evidence, 1 at the strongest place of a sign's map")
        *others, most = sorted(100 * v for v in pooled.values())
        title = f"One column has {most:.0f}% of its evidence in the corner, the others at most"
        show.headline(fig, f"{title} {others[-1]:.0f}%")
        said = [
            f"{', '.join(n)} {100 * v:.0f} percent, with "
            f"{_roughly(sure[n])} of the probability on that label"
            for n, v in pooled.items()
        ]
        return Picture(
            fig,
            "Grad-CAM in five columns, one for each question, and three rows: a stop sign, its "
            f"map, and the mean map of {many} signs. Without the patch the evidence lies on the "
            "sign. With it the victim's map has one bright spot in the lower right corner and a "
            "faint rest over the sign; the twin's lies along the border, and for the blend it is "
            f"spread over the picture. Share in the corner: {'; '.join(said)}.",
        )


def _roughly(share: float) -> str:
    """In words, for what differs a little from machine to machine."""
    return "nearly all" if share > 0.95 else "nearly none" if share < 0.05 else "some"


def _percent(share: float) -> str:
    return "under 1%" if share < 0.01 else f"{100 * share:.0f}%"


def _in_corner(heat: Tensor, start: int) -> float:
    return float(heat[..., start:, start:].sum() / heat.sum())
