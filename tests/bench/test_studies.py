"""tools/studies.py: its committed rows are known as done, and a row is made once."""

import argparse
import json
import sys

import pytest

import studies
from bdcourse import victims
from bdcourse.bench.results import results


@pytest.mark.parametrize(
    ("study", "file", "count"),
    [
        (studies.detector, "mnp-detector", 18),
        (studies.edge, "linf-edge", 15),
        (studies.stages, "fmp-stages", 11),
        (studies.pushes, "signs-fip-pushes", 1),
        (studies.forgetting, "signs-mnp-forgetting", 11),
        (studies.sharper_spine, "signs-sharp", 12),
        (studies.walks, "clips", 33),
    ],
)
def test_rows_that_are_there_are_not_measured_again(study, file, count):
    options = argparse.Namespace(clean=10, seeds=[0, 1, 2], keep="nowhere", sets=4)
    rows = results(file)
    asked = [cell for cell, _, _ in study(options)]
    assert len(asked) == count == len(rows.rows) and all(map(rows.done, asked))


def test_a_study_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    out, looked = tmp_path / "r.json", []

    def measured(victim):
        looked.append(victim)
        if len(looked) == 2:
            raise KeyboardInterrupt
        return {"correlation": 0.5}

    def detector(options):
        for name in ("benign-w8", "lira"):
            cell = {"data": "signs", "attack": "none", "defense": "score", "victim": name}
            yield cell, lambda name=name: victims.zoo(name), measured

    monkeypatch.setattr(studies, "detector", detector)
    monkeypatch.setattr(sys, "argv", ["studies.py", "detector", "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        studies.main()
    studies.main()
    rows = json.loads(out.read_text())["rows"]
    assert [r["victim"] for r in rows] == ["benign-w8", "lira"] and len(looked) == 3
    assert all(r["correlation"] == 0.5 and r["device"] == "cpu" for r in rows)
