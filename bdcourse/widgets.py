"""Sliders: thin over pictures that exist already, so that they answer at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bdcourse.show import Picture


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

    pictures = {v: draw(v) for v in values}
    start = values[0] if start is None else start
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
