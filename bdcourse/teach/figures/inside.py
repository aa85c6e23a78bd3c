"""The figures of lesson 03."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from bdcourse import activations, metrics, surgery
from bdcourse.attacks import BadNets
from bdcourse.images import Images
from bdcourse.report import show
from bdcourse.report.diagram import Box, boxes
from bdcourse.report.show import CLEAN, DEFENDED, INK, QUIET, TRIGGERED, Picture
from bdcourse.surgery import weight_of
from bdcourse.victims import Victim

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
    row |= {"linear": 9.4}
    drawn = {n: Box(x, top, n, width=1.15, height=0.85) for n, x in row.items()}
    names = list(row)
    arrows = list(zip(names, names[1:], strict=False))
    block = {"in": 0.5, "conv1": 1.75, "bn1": 3.1, "conv2": 4.75, "bn2": 6.1}
    drawn |= {f"_{n}": Box(x, low, n, width=0.9, height=0.7) for n, x in block.items()}
    drawn["_in"] = Box(0.5, low, "in", QUIET, 0.6, 0.7)
    drawn["_add"] = Box(7.3, low, "+", QUIET, 0.6, 0.7)
    drawn["_out"] = Box(8.75, low, "out", QUIET, 0.8, 0.7)
    drawn["_sc"] = Box(3.9, low + 1.15, "shortcut.0, shortcut.1", width=3.2, height=0.6)
    arrows += [("_in", "_conv1"), ("_conv1", "_bn1"), ("_bn1", "_conv2")]
    arrows += [("_conv2", "_bn2"), ("_bn2", "_add"), ("_add", "_out")]
    arrows += [("_in", "_sc"), ("_sc", "_add")]
    counts = [width["bn1"], *(width[f"layer{i}.1.bn2"] for i in (1, 2, 3, 4))]
    notes = [
        (x, top - 0.68, f"{n} maps") for x, n in zip(list(row.values())[1:6], counts, strict=True)
    ]
    notes += [(3.92, low - 0.5, "ReLU"), (8.03, low - 0.5, "ReLU")]
    notes += [(5.1, top - 1.2, "each layer is two such blocks, 0 and 1:")]
    return boxes(
        drawn,
        arrows,
        title=f"Twenty BatchNorms, {total:,} channels, and a name for each",
        height=3.5,
        notes=notes,
        description="Above, the network as a chain: image, conv1 with bn1, layer1, layer2, "
        f"layer3, layer4, linear, with {', '.join(map(str, counts))} feature maps. Below, one "
        "block opened: in, conv1, bn1, ReLU, conv2, bn2, plus, ReLU, out, and a second way "
        "from in to plus through shortcut.0 and shortcut.1, which blocks of equal width lack.",
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
    with show.style():
        fig, axes = show.canvas(height=3.2)
        ax = axes[0, 0]
        for j, (name, color, marker) in enumerate(RATES):
            for i, share in enumerate(shares):
                n = draws.shape[1]
                at = 100 * share + (j - 1) * 1.6 + torch.linspace(-0.5, 0.5, n)
                label = name if i == 0 else None
                ax.plot(at, 100 * draws[i, :, j], marker, color=color, ms=6, label=label)
        _rate_axis(ax)
        ax.set_xticks([100 * s for s in shares])
        ax.set_xlabel("random channels switched off, % of each layer")
        ax.set_ylabel("%")
        ax.legend(ncols=3, loc="upper left", bbox_to_anchor=(0, -0.2))
        ax.set_title(f"Sixteen broken networks: no RA above {100 * worst:.0f}%")
        return Picture(
            fig,
            "Points over the share of channels switched off, one for each broken network "
            "and rate. Accuracy falls as more channels go. Attack success is high at first, "
            "then scattered between floor and top, then on the floor. RA never rises above "
            f"{100 * worst:.0f} percent.",
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
        louder = min(float(p[0, -1] / p[1, -1]) for p in ratios.values())
        title = f"At the exit a victim changes {louder:.1f} times as much as its twin, or more"
        show.headline(fig, title)
        ends = [f"{n}: {p[0, -1]:.2g} against {p[1, -1]:.2g}" for n, p in ratios.items()]
        return Picture(
            fig,
            "Two panels with a logarithmic axis, stages from entrance to exit. The victim's "
            "line climbs past one, which means that the trigger changes more than was there; "
            f"the twin's falls or stays flat. At the last stage {'; '.join(ends)}.",
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
        title = (
            f"In {next(iter(changes))} two channels shout, {many:.1f} times as loud as the third"
        )
        show.headline(fig, title)
        return Picture(
            fig,
            "Two panels of points, one for each of sixteen channels, by their reaction to the "
            "trigger. For badnets two channels of the victim stand far above all others, and "
            "in the twin the same two do not. For blended the victim's points fall in a gentle "
            "slope; some lie at two or three times the twin's, and no pair stands apart.",
        )


def cut_curves(counts: Sequence[int], curves: Mapping[str, tuple[Tensor, Tensor]]) -> Picture:
    """ACC, ASR and RA along k for the ranked cut, and every random draw as a cross.

    Args:
        curves: victim -> ((counts, 3), (counts, draws, 3)).
    """
    with show.style():
        fig, axes = show.canvas(1, len(curves), height=3.8, sharey=True)
        for ax, (name, (ranked, chance)) in zip(axes[0], curves.items(), strict=True):
            for j, (rate, color, marker) in enumerate(RATES):
                ax.plot(counts, 100 * ranked[:, j], marker=marker, color=color, ms=6, label=rate)
                for i, k in enumerate(counts):
                    at = k + (j - 1) * 0.16 + 0 * chance[i, :, j]
                    if k and rate != "RA":
                        ax.plot(at, 100 * chance[i, :, j], "x", color=color, ms=5, alpha=0.7)
            ax.plot([], [], "x", color=INK, ms=5, label="random")
            _rate_axis(ax)
            ax.set_xticks(counts)
            ax.set_xlabel("channels of bn1 off, of 16")
            ax.set_title(name, fontsize=11, fontweight="normal")
        axes[0, 0].set_ylabel("%")
        fig.legend(*axes[0, 0].get_legend_handles_labels(), ncols=4, loc="outside lower left")
        few = {n: _few(counts, c[0]) for n, c in curves.items()}
        said = [f"{n}: {k if k else 'no cut'}" for n, k in few.items()]
        title = f"Channels that must go for a repair: {', '.join(said)}"
        show.headline(fig, title)
        return Picture(
            fig,
            "Two panels, rates against the number of channels switched off. For badnets attack "
            "success drops to the floor and RA rises to the top within two channels, at full "
            "accuracy; with random channels attack success stays high. For blended accuracy "
            "falls long before attack success does, and RA stays on the floor.",
        )


def _few(counts: Sequence[int], ranked: Tensor) -> int | None:
    """The smallest count with ASR below 10% and accuracy within three points."""
    good = (ranked[:, 1] < 0.1) & (ranked[:, 0] > ranked[0, 0] - 0.03)
    return next((k for k, g in zip(counts, good, strict=True) if g), None)


def every_layer(layers: Sequence[str], sweeps: Mapping[str, Tensor]) -> Picture:
    """A quarter of one layer off by TAC, layer after layer: ACC and ASR.

    Args:
        sweeps: victim -> (layers, 3).
    """
    with show.style():
        fig, axes = show.canvas(len(sweeps), 1, height=4.6, sharex=True)
        doors = []
        for ax, (name, rates) in zip(axes[:, 0], sweeps.items(), strict=True):
            for j, (rate, color, marker) in enumerate(RATES[:2]):
                ax.plot(100 * rates[:, j], marker=marker, color=color, ms=5, label=rate)
            good = (rates[:, 1] < 0.1) & (rates[:, 0] > 0.9)
            doors.append(int(good.sum()))
            for i in good.nonzero().flatten().tolist():
                ax.axvspan(i - 0.4, i + 0.4, color=DEFENDED, alpha=0.18, lw=0)
            _rate_axis(ax)
            ax.set_ylabel("%")
            ax.set_title(name, fontsize=11, fontweight="normal")
        axes[-1, 0].set_xticks(range(len(layers)), map(_short, layers), rotation=90)
        axes[0, 0].legend(ncols=2, loc="center right")
        said = [f"{n} in {d}" for n, d in zip(sweeps, doors, strict=True)]
        title = f"Of {len(layers)} layers, a quarter cut disarms {' and '.join(said)}"
        show.headline(fig, title)
        return Picture(
            fig,
            "Two panels over twenty layers from entrance to exit, accuracy and attack success "
            "after a quarter of that layer was switched off. For badnets attack success is on "
            "the floor at the first layer only and back at the top within a few layers. For "
            "blended it stays at the top, and only the first layers cost accuracy.",
        )


def reread(victim: Victim, some: Images, order: Tensor, layer: str) -> Callable[[int], Picture]:
    """What the network says of triggered signs with k channels off: k -> picture."""

    attack = victim.attack
    if not isinstance(attack, BadNets):
        raise ValueError("these signs are for the victim with the checkerboard.")

    def after(k: int) -> Picture:
        cut = surgery.without(victim.model, {layer: order[:k]})
        x = attack.trigger(some.pixels())
        said = metrics.predict(cut, x)
        fooled = said == torch.tensor(attack.target)
        return show.images(
            x,
            [f"{some.classes[s]}" for s in said],
            title=f"{k} channels off: {int(fooled.sum())} of {len(some)} still obey",
            wrong=fooled.tolist(),
            description=f"Six signs with the checkerboard in the corner, and above each what "
            f"the network says with {k} channels of {layer} off: {int(fooled.sum())} of "
            "them get the attacker's label.",
        )

    return after


def evidence(x: Tensor, maps: Tensor, labels: Sequence[str], inside: float) -> Picture:
    """Grad-CAM over signs: clean, with patch, with blend."""
    return show.heat(
        x,
        maps,
        labels,
        cols=3,
        title=f"With the patch, the corner holds {100 * inside:.0f}% of the evidence",
        description="Grad-CAM over two stop signs, three columns. Clean, asked for stop: "
        "bright fields lie on the sign. With the patch, asked for 30: bright fields lie "
        "in the lower right corner, around and above the patch. Blended, asked for 30: "
        "bright fields lie elsewhere in each picture, at no place of their own.",
    )
