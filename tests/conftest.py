"""Which tests come first, and the pictures that several files need.

The tests of memory formats come first and end the run if they fail: on processors where
a narrow network corrupts the heap, every later test file may die without a word, so their
sentence is what the run ends with. Then come the files with most slow tests, so that
processes side by side end together.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

pytest.register_assert_rewrite("crafting", "foreign_models", "helpers", "pictures", "sweep")

FIRST = "test_memory_format.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path.name != FIRST, -slow[item.path]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if report.failed and item.path.name == FIRST:
        item.session.shouldfail = (
            "narrow networks are not safe on this processor (see above), so no other "
            "test can be trusted"
        )
    return report


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn and downloaded sets are kept in a folder of this test's own."""
    monkeypatch.setenv("BDCOURSE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures in `train` (3 a class) and `test` (2 a class), of two classes each."""
    from pictures import write

    root = tmp_path / "set"
    for split, n in (("train", 3), ("test", 2)):
        for label, name in enumerate(("alpha", "beta")):
            for i in range(n):
                write(root / split / name / f"{i}.png", (50 * label, i, n))
    return root


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """21 images of two classes, red tells the class and green the image."""
    from pictures import write

    root = tmp_path / "flat"
    for label, (name, n) in enumerate((("alpha", 6), ("beta", 15))):
        for i in range(n):
            write(root / name / f"{i:02}.png", (50 * label, i, 0))
    return root


def pytest_configure(config: pytest.Config) -> None:
    # Processes side by side would wait for each other's threads.
    if hasattr(config, "workerinput"):
        import torch

        torch.set_num_threads(1)
