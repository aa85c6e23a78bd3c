"""What is drawn or trained for one test of the bench serves the next."""

from __future__ import annotations

from pathlib import Path

import pytest

from bdcourse.bench import cells
from bdcourse.bench import measures as looks
from bdcourse.bench.plans import PLANS


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A folder for drawings, which are made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """A folder for victims of `grids.RUN`, which are trained once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def small(monkeypatch, drawn):
    monkeypatch.setenv("BDCOURSE_CACHE", str(drawn))
    monkeypatch.setattr(looks, "CLP_US", (6.0, 3.0, 1.0))
    # Two steps teach a twin nothing; here it is the rows that count.
    monkeypatch.setattr(cells, "require_working", lambda *about: None)


@pytest.fixture
def only():
    """Call it with plans: for this test there are no others."""
    before = dict(PLANS)

    def keep(*plans) -> None:
        PLANS.clear()
        PLANS.update({plan.name: plan for plan in plans})

    yield keep
    PLANS.clear()
    PLANS.update(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # They train and repair networks, most of them in processes of their own.
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)
