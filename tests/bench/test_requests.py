"""Requests are checked before any work, and refused in one sentence."""

from functools import partial

import pytest
import torch

from bdcourse.__main__ import main
from bdcourse.bench import cells
from bdcourse.bench import run as bench
from grids import RUN, dealt, untrained
from helpers import message

pytestmark = pytest.mark.usefixtures("small")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--data", "nowhere/at/all"], "no folder"),
        (["--attacks", "Nonsense"], "unknown attack"),
        (["--model", "lenet"], "unknown model"),
        (["--rate", "1.5"], "rate must be a finite number in 0..1"),
        (["--defenses", "prayer"], "unknown defense 'prayer'"),
        (["--options", "{"], "not JSON"),
        (["--options", "[1]"], "must look like"),
        (["--options", '{"Nonsense": {}}'], "no attack: 'Nonsense'"),
        (["--options", '{"BadNets": {"patsch": 1}}'], "BadNets has no option 'patsch'"),
        (["--options", '{"BadNets": {"rate": -1}}'], "rate must be a finite number in"),
        (["--batch", "0"], "batch must be a whole number of at least 1, not 0"),
        (["--zoo", "badnets"], "so --attacks has no meaning beside it"),
        (["--attacks", "SIG", "--rate", "0.5"], "only 18 have the right class"),
    ],
)
def test_bad_requests_get_one_sentence(wrong, says, tmp_path, capsys):
    command = [*RUN, "--out", str(tmp_path / "r.json"), "--keep", str(tmp_path), *wrong]
    assert main(command) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and says in err and err.count("\n") == 1


def test_folders_and_missing_gpus_get_one_sentence(tmp_path, capsys):
    for wrong in (["--out", str(tmp_path)], ["--out", str(tmp_path / "r"), "--device", "cuda:7"]):
        if "cuda:7" in wrong and torch.cuda.is_available():
            continue
        assert main(["bench", "--zoo", "benign-w8", *wrong]) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1


def test_everything_is_checked_before_an_image_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(cells.datasets, "splits", untrained)
    out = tmp_path / "r.json"
    for wrong, says in (
        ({"worker": 2}, "did you mean 'workers'"),
        ({"workers": 0}, "workers must be a whole number in 1..1000, not 0"),
        ({"threads": 1.5}, "threads must be"),
        ({"defenses": "none"}, "defenses must be a list"),
        ({"budgets": [1]}, "budget must be a whole number of at least 2"),
        ({"draws": [0.5]}, "draws must be"),
        ({"device": "warp"}, "no device 'warp'"),
    ):
        for call in (
            partial(bench.run_zoo, out, ["badnets"]),
            partial(bench.run, "signs", out),
        ):
            with pytest.raises(ValueError) as e:
                call(**wrong)
            assert says in message(e)
    for wrong, says in (
        ({"seeds": 3}, "seeds must be a list"),
        ({"seeds": []}, "seeds must hold at least one"),
        ({"scales": [{"widht": 8}]}, "did you mean 'width'"),
        ({"scales": [{"lr": float("inf")}]}, "lr must be a finite number"),
        ({"scales": [{"weight_decay": 1e6}]}, "must be below 1"),
        ({"options": {"LF": {"batch": 5}}, "attacks": ["SIG"]}, "of its craft or of"),
        ({"options": {"Blendet": {}}}, "did you mean 'Blended'"),
        ({"options": {"BadNets": {"patch": torch.ones(3)}}}, "plain finite numbers"),
        ({"n": 2.5}, "n must be"),
        ({"size": True}, "size must be"),
        ({"clean": 0}, "clean must be"),
    ):
        with pytest.raises(ValueError) as e:
            bench.run("signs", out, **wrong)
        assert says in message(e)
    assert list(tmp_path.iterdir()) == []


def test_sentences_name_options_as_they_are_typed(monkeypatch, capsys, tmp_path):
    def fails(*source, **how):
        raise ValueError("a.png is 9x8; pass size=32 (say), or clean=0.05, flip=False.")

    monkeypatch.setattr(cells.datasets, "splits", fails)
    assert main(["bench", "--out", str(tmp_path / "r.json")]) == 1
    said = capsys.readouterr().err
    assert said == "error: a.png is 9x8; pass --size 32 (say), or --clean 0.05, --no-flip.\n"
    with pytest.raises(SystemExit) as e:
        main(["bench", "--out", str(tmp_path / "r.json"), "--n", "x"])
    assert e.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit) as e:
        main(["bench", "--list"])
    assert e.value.code == 0
    listed = capsys.readouterr().out.splitlines()
    assert "  clp, u = 3" in listed and "  BadNets" in listed


def test_large_images_and_absent_classes_are_said(monkeypatch, capsys):
    monkeypatch.setattr(bench, "_run", lambda subjects, *_: list(subjects))
    dealt(monkeypatch, train=40, clean=5, held=2, test=9, side=224)
    bench.run("photos", "r.json")
    said = capsys.readouterr().out
    assert "images of 224x224 are 49 times the work of 32x32" in said
    assert "GB of memory; --size 32" in said
    assert "no image of 7 of 12 classes, such as 'class 5'" in said
    dealt(monkeypatch, side=32)
    bench.run("photos", "r.json")
    assert "the work of" not in capsys.readouterr().out
