"""Things to turn and press, each thin over plain functions of the package."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from bdcourse import require, train, victims
from bdcourse.attacks import BadNets, checkerboard
from bdcourse.data import Splits
from bdcourse.examples import require_clean
from bdcourse.report import show
from bdcourse.report.show import Picture
from bdcourse.teach.switchboard import switches as switches
from bdcourse.victims import Victim


def _stops(name: str, values: object) -> list:
    """What can be chosen: a list of at least one value, each fit to be a key."""
    plain = isinstance(values, Iterable) and not isinstance(values, (str, bytes, Tensor))
    stops = list(cast(Iterable, values)) if plain else []
    if not stops or not all(getattr(v, "__hash__", None) for v in stops):
        raise ValueError(f"{name} must be a list of numbers or names, and not empty.")
    return stops


def _require_draw(draw: object) -> None:
    if not callable(draw):
        raise ValueError(f"draw must be a function, not {require.kind(draw)}.")


def slider(label: str, values: Sequence, draw: Callable[[object], Picture], start=None):
    """A slider over `values` with the picture of each under it.

    Every picture is drawn before the slider appears, so a move only swaps pictures.
    Without a running kernel (book, GitHub) the picture of `start` is what is seen.

    Args:
        label: what is varied, with its unit.
        values: the stops of the slider, in order.
        draw: value -> picture.
        start: the first stop shown; default the first value.
    """
    import ipywidgets
    from IPython.display import display

    if not isinstance(label, str):
        raise ValueError(f"label must be text, not {require.kind(label)}.")
    values = _stops("values", values)
    _require_draw(draw)
    start = values[0] if start is None else start
    if not any(start == v for v in values):
        raise ValueError(f"start must be one of the values, not {require.kind(start)}.")
    pictures = {v: draw(v) for v in values}
    bar = ipywidgets.SelectionSlider(
        options=list(pictures),
        value=start,
        description=label,
        continuous_update=True,
        style={"description_width": "initial"},
        layout={"width": "95%"},
    )
    out = ipywidgets.Output()

    def turn(change) -> None:
        with out:
            out.clear_output(wait=True)
            display(pictures[change["new"]])

    bar.observe(turn, names="value")
    turn({"new": start})
    return ipywidgets.VBox([bar, out])


def menus(choices: Mapping[str, Sequence], draw: Callable[..., Picture]):
    """A menu for each name in `choices`, and the picture of what is chosen under them.

    Pictures are drawn when they are first asked for. A ValueError of `draw`, such as
    that there is no such measurement, is shown in place of the picture.

    Args:
        choices: name -> options; the first of each is shown at the start.
        draw: one keyword for each name -> picture.
    """
    import ipywidgets as w
    from IPython.display import display

    if not isinstance(choices, Mapping) or not choices:
        raise ValueError("choices must be a dict: name -> list of options.")
    require.names("choices", choices)
    _require_draw(draw)
    found: dict[tuple, Picture] = {}
    bars = {
        name: w.Dropdown(options=_stops(name, options), description=name)
        for name, options in choices.items()
    }
    out = w.Output()

    def turn(_=None) -> None:
        chosen = tuple(bar.value for bar in bars.values())
        with out:
            out.clear_output(wait=True)
            try:
                if chosen not in found:
                    found[chosen] = draw(**dict(zip(bars, chosen, strict=True)))
                display(found[chosen])
            except ValueError as e:
                print(e)

    for bar in bars.values():
        bar.observe(turn, names="value")
    turn()
    return w.VBox([w.HBox(list(bars.values())), out])


def _require_parts(parts: object) -> None:
    if not isinstance(parts, Splits):
        raise ValueError(f"parts must be what data.splits returns, not {require.kind(parts)}.")
    require_clean(parts.train, "parts.train", 1)
    require_clean(parts.test, "parts.test", 1)


def _require_training(training: Mapping) -> None:
    asked = [
        p.name
        for f in (victims.make, train.fit)
        for p in inspect.signature(f).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]
    for name in training:
        require.choice("a training option", name, asked)


def trial(parts: Splits, patch: Tensor, opacity: float, rate: float, **training) -> Victim:
    """Train one small victim of a patch; what the button of `poison_bench` does.

    Args:
        patch: pixels in [0, 1], (1, k, k); opacity, rate: see `attacks.BadNets`.
        training: options of `victims.make`, over a ResNet-18 of width 8 and four epochs,
            with which the checkerboard at a rate of 0.2 passes the gate.
    """
    _require_parts(parts)
    _require_training(training)
    if not isinstance(patch, Tensor) or patch.ndim != 3 or not patch.numel():
        raise ValueError(f"patch must be pixels of shape (1, k, k), not {require.kind(patch)}.")
    options: dict[str, Any] = {
        "arch": {"name": "resnet18", "width": 8},
        "epochs": 4,
        "batch": 32,
        "lr": 0.05,
        "schedule": "linear",
        "verbose": False,
    }
    attack = BadNets(patch=patch, at=(-1 - patch.shape[-1],) * 2, opacity=opacity)
    return victims.make(parts.train, parts.test, attack, rate=rate, **options | training)


def poison_bench(
    parts: Splits, size: int = 4, start: bool = True, rate: float | None = None, **training
):
    """Draw a trigger on a grid, choose opacity and poison rate, train, see ACC and ASR.

    Every run stays in the table below, so that settings can be compared; the trained
    victims are in the attribute `runs` of what is returned.

    Args:
        parts: `data.splits(...)`.
        size: of the grid, in pixels.
        start: show the bench, and then run once before anything is pressed, so that there
            is a result to see where no kernel is (book, GitHub). Without it the bench is
            what the cell shows if this call is its last line.
        rate: the poison rate of every run, 0.01 to 0.4; None leaves it to be chosen.
        training: see :func:`trial`.
    """
    import ipywidgets as w
    from IPython.display import display

    _require_parts(parts)
    _require_training(training)
    require.truth("start", start)
    if rate is not None:
        require.number("rate", rate, 0.01, 0.4)
    require.whole("size", size, 3, min(parts.test.shape[1:]) - 1)
    own_words = training.get("each_epoch")
    first = torch.zeros(size, size)
    first[:3, :3] = checkerboard()[0]
    white = [bool(v) for v in first.flatten()]
    cells = [w.Button(layout={"width": "58px", "height": "36px"}) for _ in white]
    grid = w.GridBox(cells, layout={"grid_template_columns": f"repeat({size}, 62px)"})
    wide = {"style": {"description_width": "initial"}, "layout": {"width": "320px"}}
    opacity = w.FloatSlider(1.0, min=0.05, max=1, step=0.05, description="opacity", **wide)
    share = w.FloatSlider(0.2, min=0.01, max=0.4, step=0.01, description="poison rate", **wide)
    if rate is not None:
        share.step, share.readout_format = 0.001, ".3g"
        share.value, share.disabled = rate, True
    button = w.Button(description="Poison and train", button_style="primary")
    said = w.Label("Click on a square to change its color.")
    preview, log = w.Output(), w.Output()
    rows: list[dict] = []
    runs: list[Victim] = []
    sample = parts.test.pixels()[min(4, len(parts.test) - 1)]

    def patch() -> Tensor:
        return torch.tensor(white, dtype=torch.float32).view(1, size, size)

    def turn(i: int) -> None:
        white[i] = not white[i]
        look()

    def look(_=None) -> None:
        for c, on in zip(cells, white, strict=True):
            c.description = "white" if on else "black"
            c.style.button_color = "white" if on else "black"
            c.style.text_color = "black" if on else "white"
        attack = BadNets(patch=patch(), at=(-1 - size,) * 2, opacity=opacity.value)
        gain = round(0.5 / opacity.value, 1)
        with preview:
            preview.clear_output(wait=True)
            display(
                show.trigger(
                    sample,
                    attack.trigger(sample[None])[0],
                    description=f"A sign, the same with a drawn patch of {size} by {size} "
                    f"black and white pixels at opacity {opacity.value:g} near the lower "
                    f"right corner, and {gain:g} times the change; gray is none.",
                    gain=gain,
                )
            )

    def run(_=None) -> None:
        button.disabled, button.description = True, "Training ..."
        said.value, done = "Epoch 1 has begun.", 0

        def each_epoch(model) -> dict:
            nonlocal done
            done += 1
            said.value = f"Epoch {done} is over."
            return own_words(model) if own_words else {}

        try:
            asked = {**training, "each_epoch": each_epoch}
            victim = trial(parts, patch(), opacity.value, share.value, **asked)
            runs.append(victim)
            rows.append(
                victim.scores.row(
                    run=len(rows) + 1,
                    white=f"{sum(white)} of {size * size}",
                    opacity=f"{opacity.value:g}",
                    poison=victim.recipe["n_poisoned"],
                )
            )
        except (ValueError, RuntimeError) as e:
            with log:
                print(f"this run failed: {e}")
            return
        finally:
            button.disabled, button.description = False, "Poison and train"
        with log:
            log.clear_output(wait=True)
            display(show.Table(rows, caption="Your runs: one small network each"))

    for i, c in enumerate(cells):
        c.on_click(lambda _, i=i: turn(i))
    opacity.observe(look, names="value")
    button.on_click(run)
    look()
    box = w.VBox([w.HBox([grid, w.VBox([opacity, share, button, said])]), preview, log])
    box.runs = runs
    if start:
        display(box)
        run()
    return box
