"""The tests of memory formats come first, and end the run if they fail.

On processors where a narrow network corrupts the heap, every later test file may die
without a word; so their sentence is what the run ends with.
"""

from __future__ import annotations

import pytest

FIRST = "test_memory_format.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != FIRST)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if report.failed and item.path.name == FIRST:
        item.session.shouldfail = (
            "narrow networks are not safe on this processor (see above), so no other "
            "test can be trusted"
        )
    return report


def pytest_configure(config: pytest.Config) -> None:
    # Processes side by side would wait for each other's threads.
    if hasattr(config, "workerinput"):
        import torch

        torch.set_num_threads(1)
