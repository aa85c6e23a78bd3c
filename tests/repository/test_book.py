"""The book's theme and its checker, on hand-written nodes and pages; builds nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from helpers import ROOT

THEME = ROOT / "book" / "plain-theme"


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_book = load(ROOT / "tools" / "check_book.py")
render = pytest.importorskip("pygments") and load(THEME / "render.py")

FILES = {"index": "index.html", "poisoning": "poisoning.html"}
WORDS = "Line chart of attack success against the poison rate; it rises to 99 percent."


def page() -> render.Page:
    return render.Page(FILES, lambda path: b"bytes of " + path.encode(), {})


def text(value: str) -> dict:
    return {"type": "text", "value": value}


def output(data: dict) -> dict:
    return {
        "type": "output",
        "jupyter_data": {"output_type": "display_data", "data": data},
    }


# The theme


def test_text_is_escaped():
    assert page().show(text('<b> & "x"')) == "&lt;b&gt; &amp; &quot;x&quot;"
    code = {"type": "code", "lang": "python", "value": "a < b  # <script>"}
    shown = page().show(code)
    assert "<script>" not in shown and "&lt;script&gt;" in shown


def test_number_and_percent_sign_stay_together():
    assert page().show(text("10 % of it")) == "10\u00a0% of it"


def test_unknown_node_is_a_problem():
    p = page()
    p.show({"type": "paragraph", "children": [{"type": "hologram"}]})
    assert p.problems == ["no rule for node type 'hologram'"]


@pytest.mark.parametrize("kind, code", [("paragraph", 0), ("hologram", 1)])
def test_theme_fails_the_build_on_an_unknown_node(tmp_path, kind, code):
    site = {"projects": [{"title": "Book", "index": "index", "pages": []}]}
    content = {
        "slug": "index",
        "location": "/book/index.md",
        "kind": "Article",
        "frontmatter": {"title": "Start"},
        "mdast": {"type": "root", "children": [{"type": kind, "children": []}]},
    }
    answers = {"/config.json": site, "/content/index.json": content}

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answers[self.path]).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = os.environ | {
            "CONTENT_CDN": f"http://127.0.0.1:{server.server_port}",
            "BUILD_DIRECTORY": str(tmp_path),
        }
        command = [sys.executable, THEME / "render.py"]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        server.shutdown()
    assert done.returncode == code, done.stderr
    report = tmp_path / check_book.PROBLEMS
    if code:
        assert report.read_text() == "book/index.md: no rule for node type 'hologram'\n"
    else:
        assert not report.exists()
        assert check_book.check_html(tmp_path)[0] == []


def test_figure_gets_its_description_as_alternative_text():
    p = page()
    quoted = WORDS + ' "a" < b'
    shown = p.show(
        output(
            {"image/png": {"path": "/f.png"}, "text/plain": {"content": quoted}},
        )
    )
    assert f'alt="{render.escape(quoted)}"' in shown
    assert 'src="images/f.png"' in shown
    assert p.images == {"f.png": b"bytes of /f.png"}


def test_figure_without_description_has_an_empty_alternative_text():
    shown = page().show(output({"image/png": {"path": "/f.png"}}))
    assert 'alt=""' in shown  # which check_book then refuses


def test_printed_output_loses_its_colors():
    data = {"output_type": "stream", "name": "stderr", "text": "\x1b[31m<bad>\x1b[0m\n"}
    shown = page().show({"type": "output", "jupyter_data": data})
    assert shown == '<pre class="output stderr">&lt;bad&gt;</pre>'


def test_long_outputs_are_fetched():
    shown = page().show(output({"text/plain": {"path": "/long.txt"}}))
    assert "bytes of /long.txt" in shown


def test_widget_without_picture_is_a_problem():
    p = page()
    p.show(output({render.WIDGET: {}, "text/plain": {"content": "interactive(...)"}}))
    assert p.problems == ["a widget has no static picture beside it"]


def cell(visibility: str, tags: list[str]) -> dict:
    code = {"type": "code", "value": "secret = 1", "visibility": visibility}
    return {
        "type": "block",
        "kind": "notebook-code",
        "data": {"tags": tags},
        "children": [code],
    }


def test_hidden_input_folds_and_removed_input_goes():
    assert "<details>" not in page().show(cell("show", []))
    assert "<summary>Show code</summary>" in page().show(cell("hide", []))
    assert page().show(cell("remove", [])) == ""


def test_the_task_of_an_exercise_stands_open_and_its_answer_is_folded():
    block = cell("hide", ["exercise"])
    block["children"][0]["value"] = (
        'def half(x):\n    """Half of x."""\n    ### BEGIN SOLUTION\n    secret = x / 2\n'
        "    return secret\n    ### END SOLUTION"
    )
    given, _, answer = page().show(block).partition("<details>")
    assert "half" in given and "Half of x." in given and "..." in given
    assert "secret" not in given and "secret" in answer
    assert "<summary>Reference answer</summary>" in answer and "SOLUTION" not in given + answer


def test_links_between_pages_are_relative():
    p = page()
    link = {"type": "link", "url": "/poisoning", "children": [text("01")]}
    assert p.show(link) == '<a href="poisoning.html">01</a>'
    cross = {"type": "crossReference", "url": "/poisoning", "html_id": "x"}
    assert p.show(cross | {"children": []}) == '<a href="poisoning.html#x"></a>'
    assert p.problems == []
    p.show(link | {"url": "/nowhere"})
    assert p.problems == ["link to unknown page '/nowhere'"]


def test_tables_have_header_cells_and_can_scroll():
    row = [
        {"type": "tableCell", "header": True, "children": []},
        {"type": "tableCell", "header": True, "children": [text("ACC")]},
    ]
    table = {"type": "table", "children": [{"type": "tableRow", "children": row}]}
    shown = page().show(table)
    assert shown.startswith('<div class="scroll" role="group" tabindex="0"')
    assert '<td></td><th scope="col">ACC</th>' in shown


def test_equations_are_mathml_with_a_working_index():
    inner = "<msub><mi>s</mi><mi>max</mi><mo>\u2061</mo></msub>"
    formula = f'<math xmlns="{render.NAMESPACE}"><mrow>{inner}</mrow></math>'
    node = {"type": "inlineMath", "value": "s", "html": f"<span>{formula}</span><i/>"}
    shown = page().show(node)
    assert shown.startswith("<math") and shown.endswith("</math>")
    assert "<msub><mi>s</mi><mi>max</mi></msub>" in shown
    p = page()
    p.show({"type": "inlineMath", "value": "\\oops", "html": "<span>error</span>"})
    assert len(p.problems) == 1


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_of_text(scheme):
    pairs = re.findall(
        r"--(\w+): light-dark\((#\w{6}), (#\w{6})\);", (THEME / "style.css").read_text()
    )
    colors = {name: both[scheme] for name, *both in pairs}
    words = set(colors) - {"page", "panel", "line", "accent"}
    assert len(words) >= 10
    for word in words:
        for ground in ("page", "panel"):
            a, b = sorted(luminance(colors[c]) for c in (word, ground))
            assert (b + 0.05) / (a + 0.05) >= 4.5, (word, ground)


# The checker


GOOD = (
    '<html lang="en"><head><link rel="stylesheet" href="style.css"></head><body><h1 '
    'id="top">T</h1><a href="#top">up</a><a href="b.html#part">b</a>'
    '<a href="https://example.org">out</a>'
    f'<img src="f.png" alt="{WORDS}"></body></html>'
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.html").write_text(GOOD)
    (tmp_path / "b.html").write_text('<html lang="en"><h1 id="part">B</h1></html>')
    (tmp_path / "style.css").touch()
    (tmp_path / "f.png").touch()
    return tmp_path


def test_good_pages_pass(folder):
    problems, seen = check_book.check_html(folder)
    assert problems == []
    assert seen == {"pages": 2, "links": 3, "images": 1}


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("b.html#part", "c.html", "broken link to c.html"),
        ("b.html#part", "b.html#gone", "broken anchor in b.html#gone"),
        ("#top", "#bottom", "broken anchor in #bottom"),
        ("b.html#part", "/b.html", "addresses must be relative"),
        ("b.html#part", "file:///b.html", "addresses must be relative"),
        ('src="f.png"', 'src="g.png"', "broken link to g.png"),
        ('href="style.css"', 'href="https://x.org/s.css"', "from the network"),
        ('src="f.png"', 'src="//x.org/f.png"', "from the network"),
        (f' alt="{WORDS}"', "", "has no description"),
        (f'alt="{WORDS}"', 'alt=""', "has no description"),
        (f'alt="{WORDS}"', 'alt="  "', "has no description"),
        (f'alt="{WORDS}"', 'alt="A line chart"', "is not described by"),
        (
            WORDS,
            "&lt;Figure size 1000x1000 with 100 subplots of Axes&gt;",
            "not described",
        ),
        ('<a href="#top"', '<a id="top" href="#top"', "is used twice"),
        (' lang="en"', "", "language"),
        ("</h1>", "</h1><h1>again</h1>", "2 top headings"),
        (
            "</h1>",
            "</h1><details><summary>A <b>hint</b></summary> </details><p>Halve it.</p>",
            "the fold 'A hint' opens on nothing",
        ),
    ],
)
def test_bad_pages_are_caught(folder, old, new, message):
    assert old in GOOD
    (folder / "a.html").write_text(GOOD.replace(old, new, 1))
    problems, _ = check_book.check_html(folder)
    assert len(problems) == 1 and message in problems[0], problems


def test_folds_with_something_inside_pass(folder):
    fold = "<details><summary>Hint <i>1</i></summary>"
    for inside in ("Halve it.", "<p>Halve it.</p>", f'<img src="f.png" alt="{WORDS}">'):
        page = GOOD.replace("</h1>", f"</h1>{fold}{inside}</details>")
        (folder / "a.html").write_text(page)
        assert check_book.check_html(folder)[0] == []


def test_decorative_images_need_no_words(folder):
    page = GOOD.replace(f'alt="{WORDS}"', 'alt="" role="presentation"')
    (folder / "a.html").write_text(page)
    assert check_book.check_html(folder)[0] == []


def test_every_warning_of_mystmd_counts():
    log = (
        "📖 Built book/index.md in 5 ms.\n"
        "\x1b[33m⚠️  book/index.md:3 Link text is empty\x1b[39m\n"
        '  - ⛔️ unknown directive "notte"\n'
        "  - ⚠️  Link text is empty\n"
        "⚠️ Update available 1.11.0 >> 1.12.0\n"
    )
    assert check_book.complaints(log) == [
        "⚠️  book/index.md:3 Link text is empty",
        '- ⛔️ unknown directive "notte"',
    ]


def test_a_downloaded_theme_is_put_back(tmp_path):
    theme, seat = tmp_path / check_book.THEME, tmp_path / check_book.SEAT
    for folder, name in ((theme, "ours"), (seat, "theirs")):
        folder.mkdir(parents=True)
        (folder / name).touch()
    with check_book.plain_theme(tmp_path):
        assert [f.name for f in seat.iterdir()] == ["ours"]
    assert [f.name for f in seat.iterdir()] == ["theirs"]


# The pages


def test_table_of_contents():
    toc = check_book.promised(ROOT / "myst.yml")
    assert toc[0] == "book/index.md" and len(toc) == len(set(toc)) >= 8
    assert [f for f in toc if f.startswith("book/") and not (ROOT / f).is_file()] == []


def test_every_work_is_listed_on_the_page_of_references():
    works = re.findall(r"@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text())
    cited = re.findall(r"\{cite:t\}`(\w+)`", (ROOT / "book" / "references.md").read_text())
    assert sorted(works) == sorted(cited)


def test_glossary_is_in_order_and_without_doubles():
    lines = (ROOT / "book" / "glossary.md").read_text().splitlines()
    terms = [a for a, b in zip(lines, lines[1:], strict=False) if b.startswith(": ")]
    plain = [re.sub(r"[^a-z -]", "", t.replace("\\ell_\\infty", "linf").lower()) for t in terms]
    assert len(terms) >= 35
    assert plain == sorted(set(plain))
