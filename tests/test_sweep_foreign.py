"""One bad argument at a time to measuring, foreign networks and figures: no raw error.

The calls are right as they stand; each is then spoilt in one argument.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bdcourse import foreign
from bdcourse.attacks import BadNets
from bdcourse.defenses import Inverted, detect
from bdcourse.metrics import Scores, Triggered, der, evaluate, logits, predict
from bdcourse.models import build
from bdcourse.report import show
from helpers import Says, gen, random_images
from sweep import NUMBERS, THINGS, WHOLE, refusal

WORDS = "A test picture with a description that is long enough to mean something."
IMAGES = random_images(6, k=2, side=4)
READY = Triggered(IMAGES.x, IMAGES.y, 1 - IMAGES.y)
SAME = {"description": WORDS, "title": "t"}
X = torch.rand(2, 3, 4, 4, generator=gen())
NAN = torch.full((2, 3, 4, 4), torch.nan)
TENSORS = (torch.zeros(0), torch.zeros((2,) * 5), torch.zeros(3, dtype=torch.long))
ODD = (
    *THINGS,
    *TENSORS,
    torch.tensor(1.0),
    NAN,
    NAN * 0 + torch.inf,
    "",
    (),
    [None],
    [[1], [2, 3]],
    {"a": 1},
    {"a": None},
    {1: [1, 2]},
    {"a": ["x", "y"]},
    {"a": [1, 2, 3]},
    {"a": 2j},
    range(0),
)
LISTS = (None, 3, torch.tensor(1.0), "text")  # where every list will do


def net():
    return Says(0, k=2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights, and an .npz of triggered images, of one small network."""
    folder = tmp_path_factory.mktemp("files")
    model = build("resnet18", classes=2, width=1)
    save_file(model.state_dict(), folder / "m.safetensors")
    arrays = {"x": IMAGES.x.numpy(), "y": IMAGES.y.numpy()}
    np.savez(folder / "x.npz", **arrays, target=1 - IMAGES.y.numpy())
    np.savez(folder / "bare.npz", **arrays)
    return folder


# what is called, the right arguments, the bad values of each
CALLS = {
    "logits": (
        logits,
        {"model": net(), "x": X, "batch": 2},
        {"model": (*ODD, type(net())), "x": ODD, "batch": WHOLE},
    ),
    "predict": (
        predict,
        {"model": net(), "x": IMAGES.x, "batch": 2},
        {"model": ODD, "x": ODD, "batch": WHOLE},
    ),
    "evaluate": (
        evaluate,
        {"model": net(), "test": IMAGES, "attack": BadNets()},
        {
            "model": ODD,
            "attack": (*ODD, READY[:0], BadNets(target=7)),
            "test": (*ODD, IMAGES[:0], READY, BadNets().poison(random_images(9, k=3), 0.3, gen())),
            "batch": WHOLE,
        },
    ),
    "Triggered": (
        Triggered,
        {"x": IMAGES.x, "y": IMAGES.y, "goal": IMAGES.y},
        dict.fromkeys(("x", "y", "goal"), ODD),
    ),
    "Scores": (
        Scores,
        {"acc": 0.5, "asr": 0.5, "ra": 0.1},
        dict.fromkeys(("acc", "asr", "ra", "cross"), NUMBERS)
        | dict.fromkeys(("n_clean", "n_triggered"), WHOLE),
    ),
    "der": (
        der,
        {"before": Scores(1, 1, 0), "after": Scores(1, 0, 1)},
        dict.fromkeys(("before", "after"), (*ODD, Scores(0.5))),
    ),
    "detect": (
        detect,
        {"inverted": Inverted(torch.rand(4, 1, 2, 2), X, torch.arange(4), torch.ones(4))},
        {
            "threshold": (-1.0, torch.nan),
            "least": (-1.0, 2.0, torch.nan),
            "scale": (None, "logs", 3),
        },
    ),
    "Picture": (
        show.Picture,
        {"figure": show.canvas()[0], "description": WORDS},
        {"figure": ODD, "description": THINGS},
    ),
    "canvas": (
        show.canvas,
        {},
        {"rows": WHOLE, "cols": WHOLE, "height": NUMBERS, "width": NUMBERS},
    ),
    "images": (
        show.images,
        {"x": X, "labels": ["a", "b"], "description": WORDS},
        {
            "x": (*ODD, 300 * X, X[:0]),
            "labels": LISTS,
            "cols": WHOLE,
            "wrong": (*LISTS, [None, "a"], X),
            "description": THINGS,
            "title": THINGS,
        },
    ),
    "trigger": (
        show.trigger,
        {"x": X[0], "stamped": X[1], "description": WORDS},
        {"x": (*ODD, X), "stamped": (*ODD, X, X[1, :, :2]), "gain": NUMBERS},
    ),
    "lines": (
        show.lines,
        {"x": [1, 2], "series": {"a": [1, 2]}, "xlabel": "x", **SAME},
        {
            "x": ODD,
            "series": ODD,
            "spread": (*ODD, {"a": [1]}, {"a": ([1], [2])}),
            "window": ODD,
            "marks": ODD,
            "title": THINGS,
            "height": NUMBERS,
        },
    ),
    "bars": (
        show.bars,
        {"names": ["a", "b"], "groups": {"g": [1, 2]}, **SAME},
        {
            "names": ODD,
            "groups": (*ODD, {"g": [torch.inf, torch.nan]}),
            "errors": ODD,
            "xlabel": THINGS,
        },
    ),
    "strips": (
        show.strips,
        {"layers": {"a": X[0, 0, 0]}, "ylabel": "y", **SAME},
        {
            "layers": ODD,
            "highlight": (*ODD, {"a": [9]}, {"a": [torch.nan]}),
            "cut": (*ODD, {"b": 1}),
            "beside": ODD,
            "highlighted": THINGS,
        },
    ),
    "scatter": (
        show.scatter,
        {"panels": {"a": X[0, 0, :2]}, "xlabel": "x", "ylabel": "y", **SAME},
        {"panels": (*ODD, {"a": ([1], [1, 2])}), "highlight": (*ODD, {"a": [-1]})},
    ),
    "points": (
        show.points,
        {"named": {"a": (1, 2)}, "xlabel": "x", "ylabel": "y", **SAME},
        {"named": (*ODD, {"a": (1, torch.nan)}), "highlight": LISTS, "least": NUMBERS[1:]},
    ),
    "matrix": (
        show.matrix,
        {"values": X[0, 0], "names": list("abcd"), **SAME},
        {"values": ODD, "names": ODD, "columns": ODD[1:], "mark": NUMBERS[1:]},
    ),
    "ranked": (
        show.ranked,
        {"named": {"a": (1, 0, 2)}, "xlabel": "x", **SAME},
        {"named": (*ODD, {"a": (1, 2)}), "highlight": LISTS, "marks": ODD},
    ),
    "contours": (
        show.contours,
        {"panels": {"a": X[0, 0]}, "ts": range(4), "levels": [0.2, 0.5], **SAME},
        {"panels": ODD, "ts": (*ODD, [3, 2, 1, 0]), "levels": (*ODD, [2, 1])},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore")
def test_an_answer_or_one_sentence(name, monkeypatch):
    call, right, bad = CALLS[name]
    assert refusal(lambda: call(**right)) is None, "the right call must go through"
    monkeypatch.setattr(show, "Picture", lambda figure, words: words)  # 0.2 s each
    for argument, values in bad.items():
        said = [refusal(lambda v=v, a=argument: call(**{**right, a: v})) for v in values]
        assert any(said), f"nothing that was tried for {argument} was refused"


@pytest.mark.slow
@pytest.mark.parametrize("argument", ["path", "mean", "std", "net", "key"])
def test_weights(argument, files):
    right = {"path": files / "m.safetensors"}
    values = {"path": (*ODD, files, files / "none", "a\0b", "a" * 5000, "")}
    values |= dict.fromkeys(("mean", "std"), (*ODD, 0.5, (0.5,) * 4, (300,) * 3, "abc"))
    for v in values.get(argument, ODD):
        refusal(lambda v=v: foreign.weights(**{**right, argument: v}))
    assert refusal(lambda: foreign.weights(**right)) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "argument", ["model_path", "npz_path", "target", "mean", "std", "net", "key"]
)
def test_pair(argument, files):
    right = {"model_path": files / "m.safetensors", "npz_path": files / "x.npz"}
    assert refusal(lambda: foreign.pair(**right)) is None
    if argument == "target":
        right["npz_path"] = files / "bare.npz"
    for v in (*ODD, *WHOLE, files, *files.iterdir()):
        refusal(lambda v=v: foreign.pair(**{**right, argument: v}))


@pytest.mark.slow
@pytest.mark.parametrize("argument", ["path", "images", "mean", "std", "net"])
def test_backdoorbench(argument, tmp_path):
    from foreign_models import record

    path, _, _ = record(tmp_path)
    assert refusal(lambda: foreign.backdoorbench(path)) is None
    for v in (*ODD[:12], tmp_path / "none", path):
        refusal(lambda v=v: foreign.backdoorbench(**{"path": path, argument: v}))


class Junk(BadNets):
    """Its trigger, goal or count returns what it was made with."""

    def junk(self, name, value):
        object.__setattr__(self, "wrong", (name, value))
        return self

    def _said(self, name, right):
        return self.wrong[1] if self.wrong[0] == name else right

    def trigger(self, x):
        return self._said("trigger", super().trigger(x))

    def goal(self, y):
        return self._said("goal", super().goal(y))

    def counts(self, y):
        return self._said("counts", y != 0)


@pytest.mark.parametrize("name", ["trigger", "goal", "counts"])
def test_attacks_that_return_junk(name):
    for v in (*ODD, 255 * X, X[:, :1], IMAGES.x, X - 1):
        attack = Junk().junk(name, v)
        text = refusal(lambda a=attack: evaluate(net(), IMAGES, a))
        assert text and name in text


def test_networks_that_answer_junk():
    class Answers(torch.nn.Module):
        def __init__(self, said):
            super().__init__()
            self.said = said

        def forward(self, x):
            return self.said(x)

    for said in (
        *(lambda x, v=v: v for v in ODD),
        lambda x: (x.flatten(1), x),
        lambda x: {"logits": x.flatten(1)},
        lambda x: x,
        lambda x: x.flatten(1)[:, :1],
        lambda x: x.flatten(1)[:, 0],
        lambda x: x.flatten(1)[:, :3],
        lambda x: x.flatten(1)[:, :2] * torch.nan,
        lambda x: x.flatten(1)[:1, :2],
        lambda x: x.flatten(1)[:, :2].long(),
        lambda x: x.flatten(1)[:, :2].to(torch.complex64),
        lambda x: x @ torch.zeros(9, 9),
        lambda x: [][1],
    ):
        for call in (evaluate, lambda m, i: replace(READY) and evaluate(m, i, READY)):
            text = refusal(lambda s=said, c=call: c(Answers(s), IMAGES))
            assert text and "network" in text, text


def test_nothing_above_warns_of_what_it_should_refuse():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(net(), IMAGES, READY)
