"""Pages show what was measured, and their examples run."""

import re
from types import SimpleNamespace

import pytest
import torch

import guide
import pages
from bdcourse.bench import plans
from bdcourse.bench.results import Results
from bdcourse.report import tables
from helpers import ROOT, message, random_images


@pytest.mark.slow
@pytest.mark.parametrize("page", pages.PAGES)
def test_pages_show_what_was_measured(page):
    text = (ROOT / page).read_text()
    asked = [m[2] for m in pages.MARK.finditer(text)]
    assert asked and len(asked) == len(set(asked)) == text.count("end of ")
    assert pages.rendered(page) == text, "run `python tools/pages.py`"
    if page == "book/results.md":  # a twin and two victims, twice; and one line of means
        assert text.count("| none |") == 7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("paragraph", "name", "defense"),
    [
        (guide.only_the_network, "cifar10-defenses", "clp, u = 3"),
        (guide.some_hundred_images, "cifar10-defenses", "nc unlearning"),
        (guide.some_thousand_images, "cifar10-defenses", "sam"),
        (guide.solved_task, "signs-defenses", "mnp, soft"),
    ],
)
def test_rows_that_contradict_the_guide_stop_it(paragraph, name, defense, monkeypatch):
    rows = tables.results(name).rows
    other = [r | {"asr": 0.5} if r["defense"] == defense else r for r in rows]
    assert other != rows
    changed = Results(tables.results(name).path)
    changed.rows = other
    monkeypatch.setattr(tables, "results", lambda name: changed)
    with pytest.raises(ValueError) as e:
        paragraph()
    assert "the rows no longer say" in message(e)


def test_the_guide_calls_plans_as_they_are_called(monkeypatch):
    text = (ROOT / "book/choosing.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    plan = SimpleNamespace(run=lambda case: SimpleNamespace(model=case.model))
    monkeypatch.setattr(plans, "PLANS", dict.fromkeys(plans.PLANS, plan))
    images = random_images()
    names = {"model": torch.nn.Identity(), "own": images, "held": images}
    exec(code, names)
    assert len(names["repaired"]) == 3
    assert all(m is names["model"] for m in names["repaired"].values())
