"""Pictures need words, keep small, and render the same bytes twice."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from bdcourse.report import show
from bdcourse.teach import widgets

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


@pytest.mark.slow
def test_the_description_is_the_text_of_the_output():
    bundle, about = draw()._repr_mimebundle_()
    assert bundle["text/plain"] == WORDS
    png = base64.b64decode(bundle["image/png"])
    assert Image.open(io.BytesIO(png)).width == 1440  # for fine screens
    assert about == {"image/png": {"width": 720}}


@pytest.mark.slow
def test_the_same_figure_is_the_same_bytes():
    assert draw().png == draw().png
    assert draw().png != draw(window=(1, 2)).png


@pytest.mark.slow
def test_a_full_grid_of_photographs_stays_below_120_kb():
    g = torch.Generator().manual_seed(0)
    noisy = torch.rand(18, 3, 32, 32, generator=g)
    assert len(show.images(noisy, description=WORDS).png) < 120_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "picture",
    [
        lambda: show.trigger(*torch.rand(2, 3, 8, 8), description=WORDS),
        lambda: show.bars(
            ["a", "b"],
            {"ACC": [1, 0], "ASR": [0, 1]},
            percent=True,
            title="t",
            description=WORDS,
            errors={"ACC": [0.1, 0.1]},
        ),
        lambda: show.strips(
            {"layer1.0.bn1": torch.rand(8)},
            title="t",
            ylabel="y",
            description=WORDS,
            cut={"layer1.0.bn1": 0.5},
            highlight={"layer1.0.bn1": torch.tensor([1])},
            beside={"layer1.0.bn1": torch.rand(8)},
            beside_title="b",
        ),
        lambda: show.scatter(
            {"p": (torch.rand(9), torch.rand(9))},
            title="t",
            xlabel="x",
            ylabel="y",
            description=WORDS,
            highlight={"p": torch.tensor([0])},
            highlighted="h",
        ),
        lambda: show.points(
            {"a": (0.1, 0.2), "b": (0.1, 0.21), "c": (3, 1)},
            title="t",
            xlabel="x",
            ylabel="y",
            description=WORDS,
            highlight=["a"],
        ),
        lambda: show.matrix(
            torch.rand(2, 3),
            ["a", "b"],
            ["c", "d", "e"],
            title="t",
            description=WORDS,
            numbers=True,
        ),
        lambda: show.contours(
            {n: torch.rand(5, 5) for n in "ab"},
            range(-2, 3),
            levels=[0.2, 0.5, 0.8],
            title="t",
            description=WORDS,
        ),
    ],
)
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_poison_bench_trains_what_is_drawn(monkeypatch):
    from bdcourse import data
    from bdcourse.metrics import Scores
    from bdcourse.victims import Victim

    asked = []

    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)

    def trial(parts, patch, opacity, rate, **training):
        assert shown, "drawn first, trained second"
        asked.append((patch, opacity, rate, training))
        scores = Scores(0.9, 0.5, 0.4, 10, 9)
        return Victim(None, {}, None, scores, {"n_poisoned": 7})

    monkeypatch.setattr(widgets, "trial", trial)
    few = data.load("signs", "test", n=12)
    box = widgets.poison_bench(data.Splits(few, few, few, few), size=3, epochs=1)
    top, preview, log = box.children
    grid, side = top.children
    opacity, rate, button, said = side.children
    patch, *rest = asked[0]
    assert patch.tolist() == [[[1, 0, 1], [0, 1, 0], [1, 0, 1]]]
    told = rest[2].pop("each_epoch")
    assert rest == [1.0, 0.2, {"epochs": 1}] and len(box.runs) == 1 and not rate.disabled
    assert box in shown, "the bench is seen before it trains"
    assert told(None) == {} and said.value == "Epoch 1 is over."
    names = [c.description for c in grid.children]
    assert names == ["white", "black"] * 4 + ["white"]
    assert all(c.style.button_color == c.description for c in grid.children)
    grid.children[1].click()
    assert grid.children[1].style.button_color == "white"
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


@pytest.mark.slow
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
        lambda: show.points(
            dict(zip(names, [(1, 2), (3, 4)], strict=True)), xlabel="x", ylabel="y", **more
        ),
        lambda: show.matrix(x[0, 0, :2, :2], names, **more),
        lambda: show.ranked(dict.fromkeys(names, (1, 0, 2)), xlabel="x", **more),
    ):
        seen.clear()
        draw()
        assert (names[0], False) in seen
        assert not any(math for _, math in seen)
    page = show.Table([{"a$b$": "$c$\nd"}]).markdown()
    assert r"| a\$b\$ |" in page and r"| \$c\$ d |" in page


# What folders, columns and classes of other people may be called.
STRANGE = (
    "a$b$c",
    "$\\frac$",
    "x|y",
    "<script>alert(1)</script>",
    "*bold* _it_ `code`",
    "a\nb",
    "n" * 300,
    "[x](javascript:alert(1))",
    "_hidden",
    "a\\$b$",
    "caf\udce9",
    "\0\a",
    "a\tb",
    "%s {x}",
    "&lt;",
    "\\",
    "\"quoted' onload=x",
    "~~gone~~",
)


@pytest.fixture
def drawn(monkeypatch):
    """What matplotlib was asked to write, and whether it took it for mathematics."""
    seen, is_math = [], Text._preprocess_math

    def spy(text, s):
        seen.append(is_math(text, s))
        return seen[-1]

    monkeypatch.setattr(Text, "_preprocess_math", spy)
    return seen


@pytest.mark.slow
@pytest.mark.filterwarnings("error")  # a layout without room for the picture
@pytest.mark.parametrize(
    "kind",
    [
        "images",
        "lines",
        "bars",
        "strips",
        "scatter",
        "points",
        "matrix",
        "ranked",
        "contours",
    ],
)
def test_strange_names_are_drawn_letter_by_letter(kind, drawn):
    n, bad = len(STRANGE), "$\\frac$ \udcff"
    x, v = torch.rand(n, 3, 4, 4), torch.rand(4)
    xy = {"xlabel": bad, "ylabel": bad}
    for title in (bad, STRANGE[6]):
        same = {"description": WORDS, "title": title if len(title) < 99 else "t"}
        made = {
            "images": lambda s: show.images(x, STRANGE, **s),
            "lines": lambda s: show.lines(
                [1, 2], {k: [1, 2] for k in STRANGE}, marks={1: STRANGE[1]}, **s, **xy
            ),
            "bars": lambda s: show.bars(STRANGE[:4], {k: [1] * 4 for k in STRANGE[:2]}, **s, **xy),
            "strips": lambda s: show.strips(
                dict.fromkeys(STRANGE, v),
                ylabel=bad,
                highlight={STRANGE[0]: [0]},
                highlighted="_$\\frac$",
                beside=dict.fromkeys(STRANGE, v),
                beside_title=bad,
                **s,
            ),
            "scatter": lambda s: show.scatter(
                dict.fromkeys(STRANGE[:2], (v, v)),
                highlight={STRANGE[0]: [0]},
                highlighted="_$\\frac$",
                **s,
                **xy,
            ),
            "points": lambda s: show.points({k: (i, i) for i, k in enumerate(STRANGE)}, **s, **xy),
            "matrix": lambda s: show.matrix(torch.rand(n, n), STRANGE, **s, **xy),
            "ranked": lambda s: show.ranked(
                dict.fromkeys(STRANGE, (1, 0, 2)), xlabel=bad, marks={STRANGE[1]: 1}, **s
            ),
            "contours": lambda s: show.contours(
                dict.fromkeys(STRANGE[:2], torch.rand(4, 4)),
                [0, 1, 2, 3],
                levels=[0.2, 0.5],
                **s,
                **xy,
            ),
        }[kind](same)
        assert Image.open(io.BytesIO(made.png)).width >= 720
    assert not any(math for _, math in drawn)
    said = {text for text, _ in drawn}
    assert {"$\\frac$", "$\\frac$ \ufffd"} & said and "a$b$c" in said
    if kind not in ("bars", "contours", "scatter"):  # which drew a few of them
        assert {"x|y", "caf\ufffd", "\ufffd\ufffd", "a b"} <= said
        (long,) = {t for t in said if "nnn" in t}
        assert len(long) <= show.LONGEST and "…" in long
    if kind in ("strips", "scatter"):
        assert " _$\\frac$" in said, "the legend left it out"


def test_the_names_of_the_course_are_drawn_in_full():
    from bdcourse.bench.plans import PLANS

    assert all(show._beside(n) == n for n in PLANS)


class Page(HTMLParser):
    """The tags and the text of cells that a browser would see."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.cells = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, *(name for name, _ in attrs)))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


def test_strange_names_are_text_in_html():
    rows = [{"name": n, n: 1.0} for n in STRANGE]
    for row in rows:
        html = show.Table([row], caption=row["name"], note=row["name"])._repr_html_()
        page = Page(html)
        text = " ".join(show._letters(row["name"]).splitlines())
        assert page.cells[:3] == ["name", text, text], html
        own = {
            ("table",),
            ("caption",),
            ("thead",),
            ("tbody",),
            ("tr",),
            ("p",),
            ("span",),
            ("td", "style"),
            ("th", "scope", "style"),
        }
        assert set(page.tags) <= own
        # Each dollar stands alone, so that JupyterLab sees no mathematics.
        assert html.count("$") == html.count("<span>$</span>")
        assert html.count("\\") == html.count("<span>\\</span>")


def unescaped(cell: str) -> tuple[str, str]:
    """A Markdown cell as text, and which of its letters still mean something."""
    bare = re.sub(r"\\[!-/:-@\[-`{-~]", "", cell)
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", cell), bare


def test_strange_names_are_text_in_markdown():
    for name in STRANGE:
        table = show.Table([{"name": name}], caption=name, note=name).markdown()
        lines = table.split("\n")
        assert len(lines) == 7 and lines[3] == "| --- |"
        cell = lines[4].removeprefix("| ").removesuffix(" |")
        flat = " ".join(show._letters(name).splitlines())
        assert show._letters(lines[0]) == show._letters(lines[6]) == cell
        text, bare = unescaped(cell)
        assert text == flat
        assert not set("|`*[]<>$~\\") & set(bare) and "&lt" not in bare
        assert not re.search(r"(?<!\w)_|_(?!\w)", bare)
    assert show.Table([{"a": "snake_case & more"}]).markdown().endswith("_case & more |")
    link = show.Markdown("[01](01.ipynb) | $")
    assert show.Table([{"a": link}]).markdown().endswith(r"| [01](01.ipynb) \| \$ |")


def test_strange_names_are_one_line_each_of_a_table_as_text(tmp_path):
    text = repr(show.Table([{"name": n, "x\ny": 1} for n in STRANGE]))
    assert text.count("\n") == len(STRANGE) + 1 and text.startswith("name")
    assert "x y" in text and "caf\ufffd" in text and "a b" in text
    (tmp_path / "t.txt").write_text(text)  # would end in an error of the encoding


def test_a_row_of_latex_begins_with_no_option_of_the_row_before():
    text = show.Table([{"n": n, "v": "a\n\nb"} for n in ("[x]", "*y", "z")]).latex()
    assert "\n{}[x] & a  b" in text and "\n{}*y & a  b" in text and "\nz & " in text
