"""Pictures need words, keep small, and render the same bytes twice."""

import base64
import io

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from bdcourse import show, widgets

WORDS = "A test picture with a description that is long enough to mean something."


def draw(**more):
    return show.lines(
        [1, 2, 3],
        {"ACC": [1, 0.9, 0.8], "ASR": [0.2, 0.8, 1]},
        description=WORDS,
        title="A title",
        xlabel="x",
        percent=True,
        **more,
    )


@pytest.mark.parametrize("words", ["", "   ", "too short", " ".join(["\n"] * 99)])
def test_a_figure_without_description_is_refused(words):
    with pytest.raises(ValueError, match="description"):
        show.images(torch.zeros(2, 3, 8, 8), description=words)


def test_the_description_is_the_text_of_the_output():
    bundle = draw()._repr_mimebundle_()
    assert bundle["text/plain"] == WORDS
    png = base64.b64decode(bundle["image/png"])
    assert Image.open(io.BytesIO(png)).width == 720


def test_the_same_figure_is_the_same_bytes():
    assert draw().png == draw().png
    assert draw().png != draw(window=(1, 2)).png


def test_a_full_grid_of_photographs_stays_below_60_kb():
    g = torch.Generator().manual_seed(0)
    noisy = torch.rand(18, 3, 32, 32, generator=g)
    assert len(show.images(noisy, description=WORDS).png) < 60_000


@pytest.mark.parametrize(
    "picture",
    [
        lambda: show.trigger(*torch.rand(2, 3, 8, 8), description=WORDS),
        lambda: show.bars(["a", "b"], {"ACC": [1, 0], "ASR": [0, 1]}, percent=True,
                          title="t", description=WORDS, errors={"ACC": [0.1, 0.1]}),
        lambda: show.strips({"layer1.0.bn1": torch.rand(8)}, title="t", ylabel="y",
                            description=WORDS, cut={"layer1.0.bn1": 0.5},
                            highlight={"layer1.0.bn1": torch.tensor([1])},
                            beside={"layer1.0.bn1": torch.rand(8)}, beside_title="b"),
        lambda: show.scatter({"p": (torch.rand(9), torch.rand(9))}, title="t",
                             xlabel="x", ylabel="y", description=WORDS,
                             highlight={"p": torch.tensor([0])}, highlighted="h"),
        lambda: show.points({"a": (0.1, 0.2), "b": (0.1, 0.21), "c": (3, 1)}, title="t",
                            xlabel="x", ylabel="y", description=WORDS, highlight=["a"]),
        lambda: show.clouds({"p": dict.fromkeys(("other", "target", "triggered"),
                                                torch.rand(9, 2))}, title="t",
                            description=WORDS),
        lambda: show.matrix(torch.rand(2, 3), ["a", "b"], ["c", "d", "e"], title="t",
                            description=WORDS, numbers=True),
        lambda: show.contours({n: torch.rand(5, 5) for n in "ab"}, range(-2, 3),
                              levels=[0.2, 0.5, 0.8], title="t", description=WORDS),
        lambda: show.heat(torch.rand(2, 3, 8, 8), torch.rand(2, 8, 8), ["a", "b"],
                          title="t", description=WORDS),
        lambda: show.heat(torch.rand(2, 3, 8, 8), torch.rand(2, 4, 4), ["a", "b"],
                          title="t", description=WORDS, over=False),
    ],
)  # fmt: skip
def test_each_kind_of_figure_draws_something(picture):
    pixels = np.asarray(Image.open(io.BytesIO(picture().png)).convert("L"))
    assert pixels.std() > 5


def test_table_aligns_numbers_and_escapes_html():
    t = show.Table(
        [
            {"defense": "none <b>", "ASR %": 100.0, "n": 5, "RA %": "1.0 ± 0.5"},
            {"defense": "clp", "ASR %": 0.456, "n": None, "RA %": None},
        ],
        caption="c & d",
    )
    lines = repr(t).splitlines()
    assert lines[0] == "c & d" and len({len(line) for line in lines[2:4]}) == 1
    assert "100.0" in lines[3] and "  0.5" in lines[4] and "–" in lines[4]
    page = t._repr_html_()
    assert "none &lt;b&gt;" in page and "c &amp; d" in page and "<b>" not in page
    assert t.markdown().splitlines()[3] == "| --- | ---: | ---: | ---: |"


def test_slider_shows_the_picture_of_its_value():
    seen = []

    def picture(v):
        seen.append(v)
        return show.bars(["a"], {"v": [v]}, title=str(v), description=f"{WORDS} {v}")

    box = widgets.slider("u", [1, 2, 3], picture, start=2)
    bar, out = box.children
    assert seen == [1, 2, 3] and bar.value == 2
    bar.value = 3  # must not draw again
    assert seen == [1, 2, 3]


def test_poison_bench_trains_what_is_drawn(monkeypatch):
    import ipywidgets as w

    from bdcourse import data
    from bdcourse.metrics import Scores
    from bdcourse.victims import Victim

    asked = []

    def trial(parts, patch, opacity, rate, **training):
        asked.append((patch, opacity, rate, training))
        scores = Scores(0.9, 0.5, 0.4, 10, 9)
        return Victim(None, {}, None, scores, {"n_poisoned": 7})

    monkeypatch.setattr(widgets, "trial", trial)
    few = data.load("signs", "test", n=12)
    box = widgets.poison_bench(data.Splits(few, few, few, few), size=3, epochs=1)
    top, preview, log = box.children
    grid, side = top.children
    opacity, rate, button = side.children
    patch, *rest = asked[0]
    assert patch.tolist() == [[[1, 0, 1], [0, 1, 0], [1, 0, 1]]]
    assert rest == [1.0, 0.2, {"epochs": 1}] and len(box.runs) == 1
    assert all(isinstance(c, w.ToggleButton) and c.tooltip for c in grid.children)
    grid.children[1].value = True
    opacity.value, rate.value = 0.5, 0.1
    button.click()
    assert asked[1][0][0, 0].tolist() == [1, 1, 1]
    assert asked[1][1:3] == (0.5, pytest.approx(0.1))
    assert len(box.runs) == 2 and not button.disabled

    def fails(*a, **k):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(widgets, "trial", fails)
    button.click()
    assert len(box.runs) == 2
    assert not button.disabled, "a failed run must not lock the button"


def test_a_bar_in_a_cell_ends_no_cell():
    text = show.Table([{"a|b": "|x|", "c": 1}]).markdown()
    assert r"| a\|b | c |" in text and r"| \|x\| | 1 |" in text


def test_labels_of_equal_lines_neither_overlap_nor_climb_out_of_the_picture():
    fig, axes = show.canvas()
    ax, same = axes[0, 0], {n: [1.0, 1.0] for n in "abcd"}
    show.lines([0, 1], same, ax=ax, percent=True, description="", title="t", xlabel="x")
    at = sorted(t.xy[1] for t in ax.texts)
    gaps = [b - a for a, b in zip(at[:-1], at[1:], strict=True)]
    assert len(at) == 4 and min(gaps) > 9
    assert at[-1] < 115, "at most one label's height above the axes"


def test_dollars_are_letters(monkeypatch):
    names = ["US$ 5 and $x$", "b"]
    drawn = []
    monkeypatch.setattr(
        show, "Picture", lambda fig, words: drawn.append(fig.draw_without_rendering())
    )
    more = {"description": WORDS, "title": "$t$"}
    seen = []
    is_math = Text._preprocess_math

    def spy(text, s):
        said, math = is_math(text, s)
        seen.append((said, math))
        return said, math

    monkeypatch.setattr(Text, "_preprocess_math", spy)
    x = torch.rand(2, 3, 4, 4)
    for draw in (
        lambda: show.images(x, names, **more),
        lambda: show.lines([1, 2], {n: [1, 2] for n in names}, xlabel="x", **more),
        lambda: show.bars(names, {n: [1, 2] for n in names}, **more),
        lambda: show.strips(dict.fromkeys(names, x[0, 0, 0]), ylabel="y", **more),
        lambda: show.points(dict(zip(names, [(1, 2), (3, 4)], strict=True)),
                            xlabel="x", ylabel="y", **more),
        lambda: show.matrix(x[0, 0, :2, :2], names, **more),
        lambda: show.ranked(dict.fromkeys(names, (1, 0, 2)), xlabel="x", **more),
        lambda: show.heat(x, x[:, 0], names, **more),
    ):  # fmt: skip
        seen.clear()
        draw()
        assert (names[0], False) in seen
        assert not any(math for _, math in seen)
    page = show.Table([{"a$b$": "$c$\nd"}]).markdown()
    assert r"| a\$b\$ |" in page and r"| \$c\$ d |" in page


def test_heat_maps_over_gray_images():
    x, m = torch.rand(2, 1, 8, 8), torch.rand(2, 8, 8)
    same = {"description": WORDS, "title": "t"}
    gray = show.heat(x, m, ["a", "b"], **same)
    color = show.heat(x.expand(-1, 3, -1, -1), m, ["a", "b"], **same)
    assert gray.png == color.png
