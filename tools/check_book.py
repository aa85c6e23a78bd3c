"""Build the book without a network and refuse anything that is not in order.

    python tools/check_book.py

Builds myst.yml into _build/html with the theme in book/plain-theme and fails on every
warning or error of mystmd, not only on those that `--strict` minds. Then it reads the
pages and fails on a broken link, anchor or image, on a figure without a description, on
anything that would be loaded from the network, and if a page of the table of contents
is missing. Standard library only, so any Python will do; mystmd and Node.js are taken
from this Python's environment, from .venv, or from the PATH.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
THEME = Path("book") / "plain-theme"
SEAT = Path("_build") / "templates" / "site" / "myst" / "book-theme"
HTML = Path("_build") / "html"
PROBLEMS = "problems.txt"  # written by the theme
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
SIGNS = ("⛔", "⚠")
HARMLESS = re.compile(r"Update available")
SHORTEST_ALT = 40  # characters; as bdcourse.report.show demands
TIMEOUT = 120  # seconds


# Building


@contextmanager
def plain_theme(root: Path) -> Iterator[None]:
    """Seat our theme where mystmd looks for the downloaded book-theme.

    mystmd then builds the same myst.yml that is published online, without asking the
    network for a template. A theme that was downloaded before is put back afterwards.
    """
    seat = root / SEAT
    aside = seat.with_name("book-theme.downloaded")
    if seat.exists():
        shutil.rmtree(seat) if aside.exists() else seat.rename(aside)
    shutil.copytree(root / THEME, seat, ignore=shutil.ignore_patterns("__pycache__"))
    try:
        yield
    finally:
        shutil.rmtree(seat, ignore_errors=True)
        if aside.exists():
            aside.rename(seat)


def tools_path(root: Path) -> str:
    """A PATH that begins where mystmd, Node.js and a Python with pygments are."""
    folders = [Path(sys.executable).parent]
    folders += [root / ".venv" / "bin", root / ".venv" / "Scripts"]
    found = [str(f) for f in folders if shutil.which("myst", path=str(f))]
    return os.pathsep.join([*found[:1], os.environ.get("PATH", "")])


def complaints(log: str) -> list[str]:
    """The lines of mystmd's output that carry its warning or its error sign.

    mystmd says most things twice, with and without the file; the longer line stays.
    """
    lines = ANSI.sub("", log).splitlines()
    marked = [line.strip() for line in lines if any(s in line for s in SIGNS)]
    marked = [line for line in marked if not HARMLESS.search(line)]
    bare = {line: line.lstrip("- \ufe0f" + "".join(SIGNS)) for line in marked}
    return [a for a in bare if not any(b != a and b.endswith(bare[a]) for b in bare)]


def build(root: Path) -> list[str]:
    """Build the book; what mystmd or the theme have to complain about."""
    path = tools_path(root)
    myst = shutil.which("myst", path=path)
    if myst is None:
        return ["mystmd is not installed here; `make setup` does it."]
    shutil.rmtree(root / HTML, ignore_errors=True)
    packed = subprocess.run(
        [sys.executable, root / "tools" / "playground.py"], cwd=root, capture_output=True, text=True
    )
    if packed.returncode:
        return [f"the playground's data could not be made: {packed.stderr.strip()[-300:]}"]
    env = {k: v for k, v in os.environ.items() if k != "BASE_URL"} | {"PATH": path}
    with plain_theme(root):
        try:
            done = subprocess.run(
                [myst, "build", "--html", "--strict", "--ci"],
                cwd=root,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            return [f"mystmd did not finish in {TIMEOUT} seconds."]
    found = complaints(done.stdout)
    report = root / HTML / PROBLEMS
    if report.exists():
        found += report.read_text("utf-8").splitlines()
    if done.returncode and not found:
        tail = ANSI.sub("", done.stdout).strip().splitlines()[-15:]
        found = [f"mystmd ended with status {done.returncode}:", *tail]
    return list(dict.fromkeys(found))


# Reading the pages


class Reader(HTMLParser):
    """What a page names: its anchors, its links, what it loads, its images."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []
        self.images: list[dict] = []
        self.tags: Counter[str] = Counter()
        self.language = ""
        self.empty: list[str] = []  # folds that open on nothing, by their summaries
        self._summary: str | None = None  # while nothing has come behind it
        self._inside = False  # a summary

    def handle_data(self, data: str) -> None:
        if self._inside:
            self._summary = (self._summary or "") + data
        elif data.strip():
            self._summary = None

    def handle_endtag(self, tag: str) -> None:
        if tag == "summary":
            self._inside = False
        elif tag == "details" and self._summary is not None:
            self.empty.append(self._summary)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if not self._inside:
            self._summary = "" if tag == "summary" else None
        self._inside = self._inside or tag == "summary"
        a = {k: v or "" for k, v in attrs}
        self.tags[tag] += 1
        if "id" in a:
            self.ids.append(a["id"])
        if tag == "html":
            self.language = a.get("lang", "")
        if tag == "a" and "href" in a:
            self.links.append(a["href"])
        if tag == "link" and "href" in a:
            self.loads.append(a["href"])
        if "src" in a:
            self.loads.append(a["src"])
        if tag == "img":
            self.images.append(a)


def check_image(image: dict) -> str:
    """What is wrong with an image's description, or ""."""
    name, alt = image.get("src", "?"), image.get("alt")
    if alt == "" and image.get("role") == "presentation":
        return ""  # decorative
    if not (alt or "").strip():
        return f"image {name} has no description"
    if alt.startswith("<") or len(alt) <= SHORTEST_ALT:
        return f"image {name} is not described by {alt!r}"
    return ""


def check_address(url: str, file: Path, pages: dict[Path, Reader], load: bool) -> str:
    """What is wrong with an address on a page, or ""."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme in ("http", "https") or parts.netloc:
        return f"loads {url} from the network" if load else ""
    if parts.scheme == "mailto":
        return ""
    if parts.scheme or parts.path.startswith("/"):
        return f"{url} works on one machine only; addresses must be relative"
    path = urllib.parse.unquote(parts.path)
    target = (file.parent / path).resolve() if path else file
    if not target.is_file():
        return f"broken link to {url or '(nothing)'}"
    fragment = urllib.parse.unquote(parts.fragment)
    if fragment and (target not in pages or fragment not in pages[target].ids):
        return f"broken anchor in {url}"
    return ""


def check_html(folder: Path) -> tuple[list[str], dict[str, int]]:
    """Check every page of a folder: (problems, how many things were looked at)."""
    folder = folder.resolve()
    pages: dict[Path, Reader] = {}
    for file in sorted(folder.rglob("*.html")):
        pages[file] = Reader()
        pages[file].feed(file.read_text("utf-8"))
    problems = []
    for file, page in pages.items():
        found = [check_image(i) for i in page.images]
        found += [check_address(u, file, pages, load=False) for u in page.links]
        found += [check_address(u, file, pages, load=True) for u in page.loads]
        found += [f"id {i!r} is used twice" for i, n in Counter(page.ids).items() if n > 1]
        found += [f"the fold {name!r} opens on nothing" for name in page.empty]
        if not page.language:
            found.append("the language of the page is not stated")
        if page.tags["h1"] != 1:
            found.append(f"{page.tags['h1']} top headings instead of one")
        name = file.relative_to(folder)
        problems += [f"{name}: {p}" for p in found if p]
    seen = {
        "pages": len(pages),
        "links": sum(len(p.links) for p in pages.values()),
        "images": sum(len(p.images) for p in pages.values()),
    }
    return problems, seen


def promised(config: Path) -> list[str]:
    """The files that the table of contents in myst.yml names."""
    text = config.read_text("utf-8")
    return re.findall(r"^\s*- file: *([^\s#]+)", text, re.MULTILINE)


def main(root: Path = ROOT) -> int:
    start = time.perf_counter()
    toc = promised(root / "myst.yml")
    problems = [
        f"myst.yml names {file}, which does not exist."
        for file in toc
        if not (root / file).is_file()
    ]
    problems += build(root)
    found, seen = check_html(root / HTML)
    problems += found
    if seen["pages"] != len(toc) and not (problems and seen["pages"] == 0):
        problems.append(f"{seen['pages']} pages were built, {len(toc)} are in the toc.")
    for p in problems:
        print(p, file=sys.stderr)
    counts = ", ".join(f"{n} {what}" for what, n in seen.items())
    word = "problem" if len(problems) == 1 else "problems"
    seconds = time.perf_counter() - start
    print(f"book: {counts}, {len(problems)} {word} ({seconds:.1f} s)")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
