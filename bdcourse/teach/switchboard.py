"""A network with its channels on switches: turn some off, and see what is left."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bdcourse import metrics, require, surgery
from bdcourse.attacks.base import Attack
from bdcourse.images import Images
from bdcourse.report import show
from bdcourse.report.show import CLEAN, DEFENDED, QUIET, TRIGGERED, Picture
from bdcourse.victims import Victim


def switches(
    victim: Victim,
    layer: str,
    images: Images,
    off: Sequence[int] = (),
    attack: Attack | None = None,
):
    """A button for each channel of a layer; under them six triggered images with what
    the network says of each, and accuracy, attack success and robust accuracy.

    A click takes about a second, since the network is measured anew. Without a running
    kernel (book, GitHub) the picture with the channels `off` is what is seen.

    Args:
        layer: a BatchNorm of the victim's network, such as "layer4.0.bn1".
        images: clean test images to measure with; a few hundred are enough.
        off: channels that are off at the start.
        attack: default the victim's own.
    """
    import ipywidgets as w
    from IPython.display import display

    if not isinstance(victim, Victim):
        raise ValueError(f"victim must be a Victim, not {require.kind(victim)}.")
    attack = victim.attack if attack is None else attack
    if attack is None:
        raise ValueError("a network without an attack has no attack success; name an attack.")
    surgery.channels_of(victim.model, {layer: _positions(off)}, "layer")
    n = len(surgery.weight_of(victim.model.get_submodule(layer)))
    cells = [
        w.ToggleButton(
            value=k not in off,
            description=str(k),
            tooltip=f"channel {k}",
            layout={"width": "44px", "height": "30px"},
        )
        for k in range(n)
    ]
    path: list[tuple[int, float, float, float]] = []
    few = images[attack.counts(images.y).nonzero()[:6, 0]]
    triggered = attack.apply(few.pixels(), few.y)
    out = w.Output()

    def turn(_=None) -> None:
        silent = [k for k, cell in enumerate(cells) if not cell.value]
        model = surgery.without(victim.model, {layer: _positions(silent)})
        scores = metrics.evaluate(model, images, attack)
        path.append((len(silent), scores.acc, scores.asr or 0.0, scores.ra or 0.0))
        said = metrics.predict(model, triggered)
        with out:
            out.clear_output(wait=True)
            display(_left(path, layer, n, triggered, said, few, attack))

    for cell in cells:
        cell.observe(turn, names="value")
    turn()
    box = w.VBox([w.Box(cells, layout={"flex_flow": "row wrap"}), out])
    box.path = path
    return box


def _positions(channels: Sequence[int]) -> torch.Tensor:
    return torch.tensor(list(channels), dtype=torch.int64)


RATES = ("ACC", CLEAN), ("ASR", TRIGGERED), ("RA", DEFENDED)


def _left(
    path: Sequence[tuple[int, float, float, float]],
    layer: str,
    n: int,
    triggered: torch.Tensor,
    said: torch.Tensor,
    few: Images,
    attack: Attack,
) -> Picture:
    """What is left now, and a stroke for each setting tried before."""
    count, *rates = path[-1]
    obeys = attack.reached(said, few.y).tolist()
    with show.style():
        fig, axes = show.canvas(2, len(few), height=3.5, height_ratios=(1.15, 1))
        for ax, x, label, bad in zip(axes[0], triggered, said.tolist(), obeys, strict=True):
            ax.imshow(x.permute(1, 2, 0).squeeze(-1), interpolation="nearest", cmap="gray")
            ax.axis("off")
            show.name_over(ax, f"says\n“{few.classes[label]}”", bad)
        for ax in axes[1]:
            ax.remove()
        ax = fig.add_subplot(axes[1, 0].get_gridspec()[1, :])
        for i, (_, color) in enumerate(RATES):
            ax.barh(-i, 100 * rates[i], color=color, height=0.5)
            ax.text(100 * rates[i] + 1, -i, f"{rates[i]:.0%}", va="center", fontsize=10)
            ax.plot([100 * p[i + 1] for p in path[:-1]], [-i] * (len(path) - 1), "|", color=QUIET)
        ax.set(xlim=(0, 110), ylim=(-2.5, 0.5), yticks=[0, -1, -2], xlabel="%")
        ax.set_yticklabels([name for name, _ in RATES])
        words = [f"{name} {rate:.0%}" for (name, _), rate in zip(RATES, rates, strict=True)]
        show.headline(fig, f"{count} of {n} channels off: {', '.join(words)}")
        return Picture(
            fig,
            f"{len(few)} triggered images with what the network says of each, and three bars, "
            f"with {count} of the {n} channels of {layer} switched off: {sum(obeys)} images get "
            f"the attacker's label; {', '.join(words)}. Gray strokes mark the settings tried "
            "before.",
        )
