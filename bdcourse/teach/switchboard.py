"""A network with its channels on switches: turn some off, and see what is left."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bdcourse import metrics, require, surgery
from bdcourse.attacks.base import Attack
from bdcourse.images import Images
from bdcourse.report import show
from bdcourse.report.show import CLEAN, QUIET, TRIGGERED, Picture
from bdcourse.victims import Victim


def switches(
    victim: Victim,
    layer: str,
    images: Images,
    off: Sequence[int] = (),
    attack: Attack | None = None,
):
    """A button for each channel of a layer; accuracy and attack success under them.

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
    path: list[tuple[int, float, float]] = []
    out = w.Output()

    def turn(_=None) -> None:
        silent = [k for k, cell in enumerate(cells) if not cell.value]
        model = surgery.without(victim.model, {layer: _positions(silent)})
        scores = metrics.evaluate(model, images, attack)
        path.append((len(silent), scores.acc, scores.asr or 0.0))
        with out:
            out.clear_output(wait=True)
            display(_bars(path, layer, n))

    for cell in cells:
        cell.observe(turn, names="value")
    turn()
    box = w.VBox([w.Box(cells, layout={"flex_flow": "row wrap"}), out])
    box.path = path
    return box


def _positions(channels: Sequence[int]) -> torch.Tensor:
    return torch.tensor(list(channels), dtype=torch.int64)


def _bars(path: Sequence[tuple[int, float, float]], layer: str, n: int) -> Picture:
    """What is left now, and a dot for each setting tried before."""
    count, acc, asr = path[-1]
    fig, axes = show.canvas(height=1.7)
    ax = axes[0, 0]
    for y, color, at in ((1, CLEAN, 1), (0, TRIGGERED, 2)):
        ax.barh(y, 100 * path[-1][at], color=color, height=0.5)
        ax.plot([100 * p[at] for p in path[:-1]], [y] * (len(path) - 1), "|", color=QUIET)
    ax.set(xlim=(0, 104), yticks=[1, 0], xlabel="%")
    ax.set_yticklabels(["ACC", "ASR"])
    with show.style():
        ax.set_title(f"{count} of {n} channels off: ACC {acc:.0%}, ASR {asr:.0%}")
    return Picture(
        fig,
        f"Two bars, with {count} of the {n} channels of {layer} switched off: accuracy "
        f"{acc:.0%} and attack success {asr:.0%}; gray strokes mark the settings tried before.",
    )
