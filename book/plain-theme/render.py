"""Turn the pages that mystmd serves into plain HTML files.

mystmd starts a content server and runs this file with two environment variables:
CONTENT_CDN, the server's address, and BUILD_DIRECTORY, the folder to fill. The server
offers /config.json (the table of contents), /content/SLUG.json (one page as a syntax
tree, with links, citations and equations already resolved) and the images.

All pages lie in one folder and link to each other by relative names, so the folder can
be zipped and opened without a server. A node type without a method below fails the
build: nothing is dropped in silence. Needs the standard library, pygments and
latex2mathml.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import struct
import sys
import textwrap
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

from latex2mathml.converter import convert
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

HERE = Path(__file__).resolve().parent
PROBLEMS = "problems.txt"  # mystmd hides what a theme prints; check_book.py reads this
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
MATHML = re.compile(r"<math.*?</math>", re.DOTALL)
NAMESPACE = "http://www.w3.org/1998/Math/MathML"
COUNTED = {"msub", "msup", "msubsup", "munder", "mover", "munderover", "mfrac", "mroot"}
PERCENT = re.compile(r"(?<=\d) %")  # the two stay on one line
STYLE = re.compile(r"<style.*?</style>", re.DOTALL | re.IGNORECASE)
PICTURES = ("image/svg+xml", "image/png", "image/jpeg")
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n(.*?)^ *### END SOLUTION\n?", re.M | re.S)
UNREAD = re.compile(
    r'<div class="(?:code|highlight)">.*?</div>|<(pre|script|math|nav)\b.*?</\1>', re.DOTALL
)
TAG = re.compile(r"<[^>]+>")
HEADING = re.compile(r'(<h[23] id="[^"]*">.*?</h[23]>)', re.DOTALL)
LIVE = ("engine", "data", "app")  # scripts of the playground, in this order
WIDGET = "application/vnd.jupyter.widget-view+json"

Node = dict
ET.register_namespace("", NAMESPACE)


def escape(text: str) -> str:
    return html.escape(str(text), quote=True)


def folded(summary: str, body: str) -> str:
    return f"<details><summary>{summary}</summary>{body}</details>" if body else ""


def scrolling(body: str, label: str) -> str:
    """A box that scrolls sideways, also by keyboard, instead of widening the page."""
    return f'<div class="scroll" role="group" tabindex="0" aria-label="{label}">{body}</div>'


def png_size(data: bytes) -> str:
    """width and height attributes, so that text does not jump while images load."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return ""
    width, height = struct.unpack(">II", data[16:24])
    return f' width="{width}" height="{height}"'


def repaired(formula: str) -> str:
    """MathML with the right number of children where MathML counts them.

    KaTeX puts an invisible operator behind names such as max also inside an index,
    where it is one child too many and browsers then show no index at all.
    """
    tree = ET.fromstring(formula)
    for element in tree.iter():
        if element.tag.removeprefix(f"{{{NAMESPACE}}}") in COUNTED:
            for child in [c for c in element if c.text == "\u2061"]:
                element.remove(child)
    return ET.tostring(tree, encoding="unicode")


class Page:
    """One page: `show(node)` calls the method `on_TYPE` and returns HTML.

    Args:
        files: slug of every page -> the name of its file.
        fetch: path on the content server -> bytes.
        images: file name -> bytes, filled with what the page needs.
    """

    def __init__(
        self,
        files: dict[str, str],
        fetch: Callable[[str], bytes],
        images: dict[str, bytes],
    ) -> None:
        self.files, self.fetch, self.images = files, fetch, images
        self.problems: list[str] = []
        self.headings: list[tuple[int, str, str]] = []  # depth, id, HTML
        self.footnotes: dict[str, str] = {}
        self.tags: list[str] = []  # of the notebook cell that is being shown

    # Walking

    def show(self, node: Node) -> str:
        method = getattr(self, f"on_{node['type']}", None)
        if method is None:
            self.problems.append(f"no rule for node type {node['type']!r}")
            return ""
        return method(node)

    def inside(self, node: Node) -> str:
        return "".join(self.show(child) for child in node.get("children") or [])

    def wrap(self, tag: str, node: Node, body: str | None = None) -> str:
        ident = f' id="{escape(node["html_id"])}"' if node.get("html_id") else ""
        body = self.inside(node) if body is None else body
        return f"<{tag}{ident}>{body}</{tag.split()[0]}>"

    def visible(self, node: Node, body: str, summary: str) -> str:
        """Obey the cell tags hide-* and remove-*."""
        if node.get("visibility") == "remove":
            return ""
        return folded(summary, body) if node.get("visibility") == "hide" else body

    # Text

    def on_root(self, node: Node) -> str:
        return self.inside(node)

    on_glossary = on_root

    def on_span(self, node: Node) -> str:
        """A stretch of HTML; mystmd leaves mathematics within HTML as LaTeX."""
        if "math-inline" in node.get("class", ""):
            return self.latex(node, "inline")
        return self.inside(node)

    def on_div(self, node: Node) -> str:
        if "math-display" in node.get("class", ""):
            return f'<div class="math">{scrolling(self.latex(node, "block"), "Equation")}</div>'
        if node.get("class") in ("doors", "door"):
            return f'<div class="{node["class"]}">{self.inside(node)}</div>'
        if "playground" in node.get("class", ""):
            scripts = (f'<script src="playground/{name}.js"></script>' for name in LIVE)
            return f'<div id="playground" class="playground">{self.inside(node)}</div>' + "".join(
                scripts
            )
        return self.inside(node)

    def latex(self, node: Node, display: str) -> str:
        text = "".join(child.get("value", "") for child in node.get("children") or [])
        try:
            return repaired(convert(text, display=display))
        except Exception as e:  # of that library, which has no base class for its errors
            self.problems.append(f"equation was not understood: {text!r} ({e})")
            return ""

    def on_details(self, node: Node) -> str:
        return self.wrap("details", node)

    def on_summary(self, node: Node) -> str:
        return self.wrap("summary", node)

    def on_text(self, node: Node) -> str:
        return escape(PERCENT.sub("\u00a0%", node["value"]))

    def on_paragraph(self, node: Node) -> str:
        return self.wrap("p", node)

    def on_strong(self, node: Node) -> str:
        return self.wrap("strong", node)

    def on_emphasis(self, node: Node) -> str:
        return self.wrap("em", node)

    def on_subscript(self, node: Node) -> str:
        return self.wrap("sub", node)

    def on_superscript(self, node: Node) -> str:
        return self.wrap("sup", node)

    def on_blockquote(self, node: Node) -> str:
        return self.wrap("blockquote", node)

    def on_listItem(self, node: Node) -> str:
        return self.wrap("li", node)

    def on_list(self, node: Node) -> str:
        if not node.get("ordered"):
            return self.wrap("ul", node)
        start = node.get("start") or 1
        return self.wrap("ol" if start == 1 else f'ol start="{start}"', node)

    def on_definitionList(self, node: Node) -> str:
        return self.wrap("dl", node)

    def on_definitionTerm(self, node: Node) -> str:
        return self.wrap("dt", node)

    def on_definitionDescription(self, node: Node) -> str:
        return self.wrap("dd", node)

    def on_break(self, node: Node) -> str:
        return "<br>"

    def on_thematicBreak(self, node: Node) -> str:
        return "<hr>"

    def on_nothing(self, node: Node) -> str:
        return ""

    on_comment = on_mystTarget = on_nothing

    def on_heading(self, node: Node) -> str:
        depth = max(2, node["depth"])  # the page's title is the only h1
        body = self.inside(node)
        if node.get("html_id"):
            self.headings.append((depth, node["html_id"], body))
        return self.wrap(f"h{depth}", node, body)

    def on_inlineCode(self, node: Node) -> str:
        return f"<code>{escape(node['value'])}</code>"

    def on_inlineMath(self, node: Node) -> str:
        found = MATHML.search(node.get("html", ""))
        if not found:
            self.problems.append(f"equation was not understood: {node['value']!r}")
            return ""
        return repaired(found.group())

    def on_math(self, node: Node) -> str:
        body = scrolling(self.on_inlineMath(node), "Equation")
        if node.get("enumerator"):
            body += f'<span class="number">({escape(node["enumerator"])})</span>'
        return self.wrap('div class="math"', node, body)

    def on_admonition(self, node: Node) -> str:
        kind = escape(node.get("kind") or "note")
        return self.wrap(f'div class="note {kind}" role="note"', node)

    def on_admonitionTitle(self, node: Node) -> str:
        return self.wrap('p class="title"', node)

    # Tables

    def on_table(self, node: Node) -> str:
        return scrolling(self.wrap('table class="prose"', node), "Table")

    def on_tableRow(self, node: Node) -> str:
        return self.wrap("tr", node)

    def on_tableCell(self, node: Node) -> str:
        # An empty corner is no header of anything.
        tag = "th" if node.get("header") and node.get("children") else "td"
        if tag == "th":
            tag += ' scope="col"'
        if node.get("align"):
            tag += f' class="{escape(node["align"])}"'
        return self.wrap(tag, node)

    # Links

    def address(self, url: str) -> str:
        """The relative address of a page that mystmd names by its slug."""
        if not url.startswith("/"):
            return url
        path, hash_, fragment = url.strip("/").partition("#")
        slug = path.strip("/").replace("/", ".") or "index"
        if slug not in self.files:
            self.problems.append(f"link to unknown page {url!r}")
        return self.files.get(slug, "") + hash_ + fragment

    def on_link(self, node: Node) -> str:
        if node.get("static"):
            url = self.keep(node["url"])
        else:
            url = self.address(node["url"])
        return f'<a href="{escape(url)}">{self.inside(node)}</a>'

    def on_crossReference(self, node: Node) -> str:
        url = self.address(node["url"]) if node.get("url") else ""
        if node.get("html_id"):
            url = url.partition("#")[0] + "#" + node["html_id"]
        return f'<a href="{escape(url)}">{self.inside(node)}</a>'

    def on_cite(self, node: Node) -> str:
        return f'<a href="#cite-{escape(node["identifier"])}">{self.inside(node)}</a>'

    def on_citeGroup(self, node: Node) -> str:
        cites = "; ".join(self.show(child) for child in node["children"])
        return cites if node.get("kind") == "narrative" else f"({cites})"

    def on_footnoteReference(self, node: Node) -> str:
        n = escape(node["enumerator"])
        return f'<sup><a href="#footnote-{n}" aria-label="Footnote {n}">{n}</a></sup>'

    def on_footnoteDefinition(self, node: Node) -> str:
        self.footnotes[node["enumerator"]] = self.inside(node)
        return ""

    # Images

    def keep(self, path: str) -> str:
        """Remember a file for the book; its relative address."""
        name = path.lstrip("/")
        if name not in self.images:
            self.images[name] = self.fetch("/" + name)
        return "images/" + name

    def picture(self, path: str, alt: str) -> str:
        source = self.keep(path)
        size = png_size(self.images[path.lstrip("/")])
        return f'<img src="{escape(source)}" alt="{escape(alt)}"{size}>'

    def on_image(self, node: Node) -> str:
        return self.picture(node["url"], node.get("alt") or "")

    # Notebook cells

    def on_block(self, node: Node) -> str:
        if node.get("visibility") == "remove":
            return ""
        self.tags = (node.get("data") or {}).get("tags", [])
        body = self.inside(node)
        self.tags = []
        if node.get("kind") != "notebook-code":
            return body
        body = self.visible(node, body, "Show this cell")
        return self.wrap('div class="cell"', node, body) if body else ""

    def on_code(self, node: Node) -> str:
        try:
            lexer = get_lexer_by_name(node.get("lang") or "text")
        except ClassNotFound:
            lexer = get_lexer_by_name("text")

        def colored(text: str) -> str:
            return highlight(text, lexer, HtmlFormatter(cssclass="code"))

        answers = SOLUTION.findall(node["value"])
        if "exercise" not in self.tags or not answers:
            return self.visible(node, colored(node["value"]), "Show code")
        # What a reader is given stands open: the signature and the task.
        given = colored(SOLUTION.sub(r"\1...\n", node["value"]))
        body = "\n\n".join(textwrap.dedent(text) for _, text in answers)
        return given + self.visible(node, colored(body), "Reference answer")

    def on_outputs(self, node: Node) -> str:
        return self.visible(node, self.inside(node), "Show output")

    def on_output(self, node: Node) -> str:
        data = node["jupyter_data"]
        kind = data["output_type"]
        if kind == "stream":
            return self.printed(self.content(data, "text"), data["name"])
        if kind == "error":
            return self.printed(self.content(data, "traceback"), "error")
        return self.displayed(data["data"])

    def content(self, entry: Node, key: str = "content") -> str:
        """The text of an output; mystmd moves long ones into files of their own."""
        if key not in entry and "path" in entry:
            return self.fetch(entry["path"]).decode()
        text = entry.get(key, "")
        return "\n".join(text) if isinstance(text, list) else text

    def printed(self, text: str, kind: str) -> str:
        text = escape(ANSI.sub("", text).rstrip("\n"))
        return f'<pre class="output {escape(kind)}">{text}</pre>' if text else ""

    def displayed(self, data: dict) -> str:
        plain = self.content(data.get("text/plain", {}))
        for kind in PICTURES:
            if kind in data:
                return self.picture(data[kind]["path"], plain)
        if "text/html" in data:
            # Scoped styles are long unsupported; this theme styles the tables.
            body = STYLE.sub("", self.content(data["text/html"]))
            return scrolling(body, "Table")
        if WIDGET in data:
            self.problems.append("a widget has no static picture beside it")
        return self.printed(plain, "result")


# The frame around a page


def navigation(pages: list[Node], files: dict[str, str], current: str) -> str:
    """The table of contents: a list with one sublist a part."""
    out, open_part = [], False
    for page in pages:
        if "slug" not in page:
            out.append("</ul></li>" if open_part else "")
            out.append(f"<li><span>{escape(page['title'])}</span><ul>")
            open_part = True
            continue
        here = ' aria-current="page"' if page["slug"] == current else ""
        title = escape(page.get("short_title") or page["title"])
        out.append(f'<li><a href="{files[page["slug"]]}"{here}>{title}</a></li>')
    out.append("</ul></li>" if open_part else "")
    return f"<ul>{''.join(out)}</ul>"


def contents(headings: list[tuple[int, str, str]]) -> str:
    """The page's own table of contents; nothing for a page with one section."""
    items = [
        f'<li class="depth{depth}"><a href="#{escape(ident)}">{text}</a></li>'
        for depth, ident, text in headings
        if depth <= 3
    ]
    return f"<ul>{''.join(items)}</ul>" if len(items) > 1 else ""


def license_line(project: Node) -> str:
    def link(entry: Node) -> str:
        url, name = escape(entry["url"]), escape(entry["id"])
        return f'<a rel="license" href="{url}">{name}</a>'

    found = project.get("license") or {}
    parts = [f"© {escape(project['copyright'])}."] if project.get("copyright") else []
    if "content" in found:
        parts.append(f"Text and figures: {link(found['content'])}.")
    if "code" in found:
        parts.append(f"Code: {link(found['code'])}.")
    return " ".join(parts)


def frame(project: Node, pages: list[Node], files: dict, data: Node, page: Page) -> str:
    """The whole HTML document of one page."""
    slug, title = data["slug"], data["frontmatter"]["title"]
    name = project["title"]
    body = page.show(data["mdast"])
    works = data.get("references", {}).get("cite", {}).get("data", {})
    if works:
        page.headings.append((2, "works-cited", "Works cited"))
        entries = "".join(
            f'<li id="cite-{escape(key)}">{work["html"]}</li>'
            for key, work in sorted(works.items(), key=lambda kv: kv[1]["html"])
        )
        body += f'<h2 id="works-cited">Works cited</h2><ul class="works">{entries}</ul>'
    if page.footnotes:
        notes = "".join(
            f'<li id="footnote-{escape(n)}">{text}</li>' for n, text in page.footnotes.items()
        )
        body += f'<h2 id="footnotes">Footnotes</h2><ol>{notes}</ol>'

    site = navigation(pages, files, slug)
    toc = contents(page.headings)
    readable = [p for p in pages if "slug" in p]
    i = [p["slug"] for p in readable].index(slug)
    turn = ""
    for rel, j, word in (("prev", i - 1, "Previous"), ("next", i + 1, "Next")):
        if 0 <= j < len(readable):
            other = readable[j]
            turn += (
                f'<a rel="{rel}" href="{files[other["slug"]]}"><small>{word}</small> '
                f"{escape(other['title'])}</a>"
            )
    source = data["location"].lstrip("/")
    run = (
        f'<p class="source">A notebook: <code>{escape(source)}</code></p>'
        if data.get("kind") == "Notebook"
        else ""
    )
    sub = project.get("subtitle") if slug == project["index"] else ""
    sub = f'<p class="subtitle">{escape(sub)}</p>' if sub else ""
    about = data["frontmatter"].get("description") or first_words(body)
    tab = name if title == name else f"{title} | {name}"
    toc_small = (
        f'<nav class="toc-small" aria-label="On this page, folded">'
        f"{folded('On this page', toc)}</nav>"
        if toc
        else ""
    )
    toc_wide = (
        f'<nav class="toc" aria-label="On this page"><h2>On this page</h2>{toc}</nav>'
        if toc
        else ""
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="description" content="{escape(about)}">
<meta property="og:title" content="{escape(title)}">
<meta property="og:description" content="{escape(about)}">
<title>{escape(tab)}</title>
<link rel="icon" href="icon.svg">
<link rel="stylesheet" href="style.css">
<script src="page.js"></script>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<a class="name" href="{files[project["index"]]}">{escape(name)}</a>
<nav class="site-small" aria-label="Book, folded">{folded("Contents", site)}</nav>
</header>
<div class="columns">
<nav class="site" aria-label="Book">{site}</nav>
<main id="content" tabindex="-1">
<h1>{escape(title)}</h1>
{sub}{run}{toc_small}
{body}
<nav class="turn" aria-label="Previous and next page">{turn}</nav>
</main>
{toc_wide}
</div>
<footer><p>{license_line(project)}</p></footer>
</body>
</html>
"""


def words(body: str) -> str:
    """The prose of some HTML: no code, no output, no tags."""
    return " ".join(html.unescape(TAG.sub(" ", UNREAD.sub(" ", body))).split())


def first_words(body: str) -> str:
    """What a search engine shows of a page that does not describe itself."""
    text = words("".join(re.findall(r"<p>(.*?)</p>", body, re.DOTALL)[:2]))
    return textwrap.shorten(text, 160, placeholder=" …")


def sections(file: str, title: str, body: str) -> list[list[str]]:
    """What the search looks through: [address, page, heading, text] of each section."""
    found, name, ident = [], title, ""
    for part in HEADING.split(body):
        if part.startswith(("<h2 id", "<h3 id")):
            ident, name = "#" + html.unescape(part.split('"')[1]), words(part)
        elif text := words(part):
            found.append([file + ident, title, name, text])
    return found


def main() -> int:
    server, out = os.environ["CONTENT_CDN"], Path(os.environ["BUILD_DIRECTORY"])
    # The server is on this machine; a proxy set for the world outside must not see it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def fetch(path: str) -> bytes:
        with opener.open(server + path, timeout=30) as reply:
            return reply.read()

    project = json.loads(fetch("/config.json"))["projects"][0]
    first = {"slug": project["index"], "title": project["title"], "short_title": "Home"}
    pages = [first, *project["pages"]]
    files = {p["slug"]: f"{p['slug']}.html" for p in pages if "slug" in p}
    files[project["index"]] = "index.html"

    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("*.html"), out / PROBLEMS]:
        old.unlink(missing_ok=True)
    shutil.rmtree(out / "images", ignore_errors=True)
    images: dict[str, bytes] = {}
    problems, searched = [], []
    for slug, file in files.items():
        data = json.loads(fetch(f"/content/{slug}.json"))
        page = Page(files, fetch, images)
        document = frame(project, pages, files, data, page)
        (out / file).write_text(document, "utf-8")
        main_part = document.partition('<main id="content"')[2].partition('<nav class="turn"')[0]
        searched += sections(file, data["frontmatter"]["title"], main_part.partition("</h1>")[2])
        problems += [f"{data['location'].lstrip('/')}: {p}" for p in page.problems]
    (out / "images").mkdir()
    for name, data in images.items():
        (out / "images" / name).write_bytes(data)
    index = json.dumps(searched, ensure_ascii=False, separators=(",", ":"))
    (out / "search.js").write_text(f"var SEARCH = {index};\n", "utf-8")
    for name in ("style.css", "page.js", "icon.svg"):
        shutil.copy(HERE / name, out / name)
    shutil.copytree(HERE / "playground", out / "playground", dirs_exist_ok=True)
    if problems:
        (out / PROBLEMS).write_text("\n".join(problems) + "\n", "utf-8")
        print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
