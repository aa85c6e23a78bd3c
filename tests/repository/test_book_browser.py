"""A reader opens the built book from its folder: the playground runs, search finds, and no
page shuts out those who use a keyboard or a screen reader.

`make browser` runs this; it needs a Chromium or Chrome, see test_browser.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers import ROOT
from test_browser import launched

pytestmark = pytest.mark.browser
HTML = ROOT / "_build" / "html"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if not (HTML / "index.html").exists():
        pytest.skip("no book is built here; `make book` builds it.")
    with launched() as browser:
        yield browser


@pytest.fixture
def page(browser) -> Iterator:
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda e: errors.append(str(e)))
    yield page
    assert not errors
    page.close()


def test_the_playground_measures_and_answers_the_keyboard(page):
    page.goto((HTML / "playground.html").as_uri())
    done = page.locator("#playground >> text=on 200 test images, 0 channels off")
    done.wait_for(timeout=120_000)
    numbers = page.locator(".playground .numbers")
    assert "ACC 100%" in numbers.inner_text() and "ASR 100%" in numbers.inner_text()
    said = page.locator(".playground [role=status]").first
    assert "The victim reads “30”, its twin “stop”." in said.inner_text()
    page.locator(".playground canvas").focus()
    for _ in range(28):
        page.keyboard.press("ArrowLeft")
    assert "The victim reads “30”" not in said.inner_text(), "the trigger left its corner"
    page.get_by_label("layer", exact=False).first.select_option("layer1.1.bn1")
    for k in (0, 5):
        page.locator(".chip").nth(k).click()
    page.locator("text=on 200 test images, 2 channels off").wait_for(timeout=120_000)
    assert "RA 9" in numbers.inner_text()


def test_search_and_theme(page):
    page.goto((HTML / "index.html").as_uri())
    page.keyboard.press("/")
    page.keyboard.type("neural cleanse")
    first = page.locator("dialog.search li a").first
    first.wait_for()
    first.click()
    assert page.url.startswith((HTML).as_uri()) and "index.html" not in page.url
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_shuts_anybody_out(browser, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = browser.new_page(color_scheme=scheme)
    found = []
    for file in sorted(HTML.glob("*.html")):
        page.goto(file.as_uri())
        for v in axe.run(page).response["violations"]:
            if v["impact"] != "minor":
                found.append(f"{file.name}: {v['id']}, {v['nodes'][0]['html'][:80]}")
    assert not found, "\n".join(found)
