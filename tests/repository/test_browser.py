"""A reader opens a lesson in JupyterLab, runs it, and moves a slider.

`make browser` runs this; it needs a Chromium or Chrome. BDCOURSE_BROWSER names one that
is not on the PATH, BDCOURSE_LESSON another lesson, and BDCOURSE_SCREENSHOT where to
save a picture of the end.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from bdcourse.teach import labs
from helpers import ROOT
from notebooks import KERNEL

pytestmark = pytest.mark.browser

NOTEBOOKS = ROOT / "notebooks"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

SMALL = """\
import ipywidgets as widgets
import matplotlib.pyplot as plt


def draw(power=1):
    plt.figure(figsize=(4, 2))
    plt.plot([x**power for x in range(9)])
    plt.show()


widgets.interact(draw, power=(1, 5))"""

# Settings that keep pop-ups away and every cell in the page, also those out of sight.
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}

# "waiting" until every code cell has a number or one shows an error. Beside a folded
# answer the prompt stays empty.
STATE = """() => {
  if (document.querySelector('[data-mime-type="application/vnd.jupyter.error"]'))
    return 'error';
  const prompts = [...document.querySelectorAll(
    '.jp-NotebookPanel .jp-CodeCell .jp-InputPrompt:not(.jp-Placeholder-prompt)')];
  const done = prompts.every(p => /\\[\\d+\\]/.test(p.textContent));
  return prompts.length && done ? 'done' : 'waiting';
}"""


def find_lesson() -> Path | None:
    """The lesson asked for, else the first with a slider."""
    if name := os.environ.get("BDCOURSE_LESSON"):
        return NOTEBOOKS / f"{Path(name).stem}.ipynb"
    found = sorted(NOTEBOOKS.glob("*.ipynb"))
    return next((p for p in found if "widgets.slider(" in p.read_text("utf-8")), None)


@pytest.fixture(params=["small", "lesson"])
def notebook(request, tmp_path: Path) -> Path:
    """A copy without outputs, so that what the page shows was made in the page."""
    if request.param == "small":
        cells = [new_markdown_cell("# A small notebook"), new_code_cell(SMALL)]
        nb = new_notebook(cells=cells, metadata={"kernelspec": KERNEL})
        nb.metadata["language_info"] = {"name": "python"}
    elif path := find_lesson():
        nb = nbformat.read(path, as_version=4)
    else:
        pytest.skip("no lesson has a slider yet")
    for cell in nb.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    (tmp_path / "work").mkdir()
    nbformat.write(nb, target := tmp_path / "work" / "lesson.ipynb")
    return target


@pytest.fixture
def lab(notebook: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterLab that sees only the notebook's folder."""
    with serving(notebook.parent, tmp_path) as address:
        yield address


@contextmanager
def serving(root: Path, tmp_path: Path, *options: str) -> Iterator[str]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    for name, values in SETTINGS.items():
        plugin, _, file = name.partition("/")
        folder = tmp_path / "settings" / "@jupyterlab" / plugin
        folder.mkdir(parents=True)
        (folder / f"{file}.jupyterlab-settings").write_text(json.dumps(values))
    env = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(tmp_path / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    command += [
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=",  # local, for half a minute
        f"--ServerApp.root_dir={root}",
        "--ContentsManager.pre_save_hook=bdcourse.teach.labs.tidy",
        *options,
    ]
    log = tmp_path / "lab.log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=env, stdout=out, stderr=out)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/api", server, log)
        yield address
    finally:
        server.terminate()
        server.wait(20)


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(120):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=1)
            return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.5)
    raise AssertionError(log.read_text())


@contextmanager
def launched() -> Iterator:
    """A browser, or a reason to skip."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing")
    found = os.environ.get("BDCOURSE_BROWSER") or next(
        filter(None, map(shutil.which, BROWSERS)), None
    )
    if not found:
        pytest.skip("no Chromium or Chrome found; BDCOURSE_BROWSER can name one")
    with api.sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=found,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(tmp_path: Path) -> Iterator:
    with launched() as browser:
        yield browser.new_page(viewport={"width": 1400, "height": 1000})


def wait_for_kernel(page) -> None:
    """Wait until the kernel stays idle: before it starts, the page shows idle too."""
    status = "document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status"
    idle = 0
    for _ in range(300):
        idle = idle + 1 if page.evaluate(status) == "idle" else 0
        if idle == 6:
            return
        page.wait_for_timeout(300)
    raise AssertionError("the kernel did not start within 90 s")


def folded(notebook: Path) -> int:
    """Cells whose source JupyterLab hides."""
    cells = nbformat.read(notebook, as_version=4).cells
    return sum(bool(c.metadata.get("jupyter", {}).get("source_hidden")) for c in cells)


def test_a_slider_moves_the_picture(page, lab: str, notebook: Path) -> None:
    page.goto(f"{lab}/lab/tree/lesson.ipynb?reset", wait_until="domcontentloaded")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=90_000)
    wait_for_kernel(page)

    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(f"({STATE})() !== 'waiting'", timeout=300_000)
    texts = page.locator(".jp-RenderedText").all_inner_texts()
    assert page.evaluate(STATE) == "done", texts[-1]

    cell = page.locator(".jp-CodeCell", has=page.locator(".widget-slider")).first
    slider = cell.locator(".widget-slider [role=slider]").first
    picture = cell.locator(".jp-OutputArea-output img").first
    readout = cell.locator(".widget-readout").first
    slider.scroll_into_view_if_needed()
    picture.wait_for(timeout=60_000)
    before = picture.get_attribute("src"), readout.inner_text()
    slider.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft"):  # wherever it starts
        page.keyboard.press(key)
        page.wait_for_timeout(300)
    page.wait_for_function(
        "([img, src]) => img.isConnected ? img.src !== src : true",
        arg=[picture.element_handle(), before[0]],
        timeout=20_000,
    )
    picture.wait_for(timeout=20_000)
    assert picture.get_attribute("src") != before[0]
    assert readout.inner_text() != before[1]
    # The reference answer of an exercise waits to be asked for.
    assert page.locator(".jp-CodeCell .jp-Placeholder").count() == folded(notebook)
    if path := os.environ.get("BDCOURSE_SCREENSHOT"):
        page.wait_for_timeout(500)
        page.screenshot(path=path)


def test_a_notebook_that_is_only_read_is_saved_as_it_was(page, lab: str, notebook):
    before, at = notebook.read_bytes(), notebook.stat().st_mtime
    page.goto(f"{lab}/lab/tree/lesson.ipynb?reset", wait_until="domcontentloaded")
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=90_000)
    wait_for_kernel(page)
    page.locator(".jp-NotebookPanel .jp-Cell").first.click()
    for _ in range(60):
        page.keyboard.press("Control+s")
        page.wait_for_timeout(500)
        if notebook.stat().st_mtime != at:
            break
    assert notebook.stat().st_mtime != at
    assert notebook.read_bytes() == before


def test_a_learner_starts_gets_help_and_sees_what_is_done(page, tmp_path: Path) -> None:
    """As `make lab` opens it: a start page, no menus of nbgrader, hints at a failed check."""
    copies = tmp_path / "course" / "student"
    labs.student(["00", "01"], copies)
    options = [f"--LabApp.app_settings_dir={ROOT / 'tools' / 'lab'}"]
    options.append("--LabApp.default_url=/lab/tree/student/START.md")
    with serving(tmp_path / "course", tmp_path, *options) as address:
        page.goto(address, wait_until="domcontentloaded")
        link = page.locator(".jp-RenderedMarkdown a", has_text="Welcome").first
        link.wait_for(timeout=90_000)
        menus = page.locator(".lm-MenuBar-itemLabel").all_inner_texts()
        assert "File" in menus and "Nbgrader" not in menus
        link.click()
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=90_000)
        wait_for_kernel(page)
        run(page, "import torch")
        run(page, "def take(x, y, index)")
        run(page, "check.take(take)")
        hint = page.get_by_role("button", name="Hint 1 of 2")
        hint.click(timeout=60_000)
        page.get_by_text("A tensor of positions works").last.wait_for(timeout=20_000)
        assert page.get_by_text("take: not written yet.").count()
        if path := os.environ.get("BDCOURSE_SCREENSHOT"):
            page.screenshot(path=path)
        run(page, "check.take(take)")
        page.get_by_role("button", name="Go on without mine").click(timeout=60_000)
        page.get_by_text("own answer stands in").first.wait_for(timeout=20_000)
        run(page, "check.take(take)")
        page.get_by_text("\u2713 take:").first.wait_for(timeout=60_000)
        assert "\u25a0\u25a1\u25a1 1 of 3" in (copies / "START.md").read_text("utf-8")


def run(page, text: str) -> None:
    """Run the code cell that holds this text."""
    cell = page.locator(".jp-CodeCell", has=page.locator(".cm-content", has_text=text)).first
    cell.scroll_into_view_if_needed()
    cell.locator(".cm-content").first.click()
    page.keyboard.press("Control+Enter")
    page.wait_for_timeout(500)
