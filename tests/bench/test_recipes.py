"""Recipes: whose options are whose, few images, names of victims, and training that was stopped."""

import hashlib
import json
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from bdcourse import data, metrics, victims
from bdcourse.__main__ import main
from bdcourse.bench import cells, recipes
from bdcourse.bench import run as bench
from grids import blank, dealt, victim_of
from helpers import frozen, message, random_images, same_state

pytestmark = pytest.mark.usefixtures("small")


def test_options_part_into_recipe_and_craft():
    options = {"WaNet": {"strength": 1.5, "rate": 0.2, "lr": 0.05}}
    recipe, more = recipes.split_options(recipes.SIGNS, "WaNet", options)
    assert recipe == replace(recipes.SIGNS, rate=0.2, lr=0.05)
    assert more == {"strength": 1.5}
    recipe, more = recipes.split_options(recipes.SIGNS, "SIG", options)
    assert recipe.rate == 0.05 and more == {}
    recipe, more = recipes.split_options(recipes.SIGNS, None, options)
    assert recipe.rate == 0 and recipe.lr == recipes.SIGNS.lr
    assert set(recipes.SIGNS_OPTIONS) <= set(recipes.ATTACKS)


def test_victims_keep_their_file_names(tmp_path, monkeypatch):
    """The names under which victims lie in runs/, with today's settings."""
    x = torch.arange(4 * 3 * 8 * 8).remainder(256).to(torch.uint8).view(4, 3, 8, 8)
    some, names = data.Images(x, torch.arange(4) % 2, ("a", "b")), []
    parts = data.Splits(some, some, some, some)
    monkeypatch.setattr(recipes, "_new", lambda *about: names.append(about[5].name))
    other = recipes.Recipe(epochs=6, bf16=True)
    for usual, options in (
        (replace(recipes.SIGNS, width=8), recipes.SIGNS_OPTIONS),
        (other, {"WaNet": {"rate": 0.2, "strength": 2.0}}),
    ):
        for name in (None, *recipes.ATTACKS):
            mine, more = recipes.split_options(usual, name, options)
            recipes.train_victim(parts, name, mine, 0, "signs", tmp_path, **more)
    assert names[1] == "signs-BadNets-0-b035e74a2f03" and len(names) == 38
    joined = hashlib.sha256("\n".join(names).encode()).hexdigest()
    assert joined.startswith("d1adb304aa688b6d")


def test_what_came_later_stands_in_rows_only_if_unusual():
    assert recipes.Recipe(momentum=0.9, shifts=1).settings().keys() == {
        "model",
        "width",
        "epochs",
        "batch",
        "lr",
        "weight_decay",
        "rate",
        "stamp",
        "pad",
        "flip",
        "bf16",
    }
    own = recipes.FAST.settings()
    assert own["flip"] == "alternate" and own["schedule"] == "linear"
    assert own["smoothing"] == 0.2 and own["shifts"] == 16 and "aware" not in own
    assert recipes.Recipe(**own) == recipes.FAST


def test_the_fast_recipe_is_chosen_by_name(monkeypatch, capsys):
    asked = []

    def subjects(found, *_):
        asked[:] = found
        return SimpleNamespace(failed=[])

    monkeypatch.setattr(bench, "_run", subjects)
    dealt(monkeypatch, train=19_000)  # too few for the usual number of epochs
    command = ["bench", "--data", "photos", "--out", "r.json", "--recipe"]
    assert main([*command, "fast"]) == 0
    assert [s.attack for s in asked] == [None, "BadNets", "Blended"]
    assert {replace(s.recipe, rate=None) for s in asked} == {recipes.FAST}
    assert "--no-flip" in capsys.readouterr().out
    assert main([*command, "FAST", "--epochs", "3", "--width", "8", "16"]) == 0
    found = {(s.recipe.epochs, s.recipe.width, s.recipe.lr) for s in asked}
    assert found == {(3, 8, recipes.FAST.lr), (3, 16, recipes.FAST.lr)}
    assert main([*command, "fast", "--no-flip"]) == 0
    assert {s.recipe.flip for s in asked} == {False}
    bench.run("signs", "r.json", "fast")
    assert {s.recipe.flip for s in asked} == {False}, "a mirrored sign is another"
    assert main([*command, "slow"]) == 1
    assert "unknown recipe 'slow'; choose from fast" in capsys.readouterr().err
    zoo = ["bench", "--out", "r.json", "--zoo", "badnets", "--recipe", "fast"]
    assert main(zoo) == 1
    assert "--recipe has no meaning beside it" in capsys.readouterr().err


def test_a_victim_that_was_stopped_goes_on(tmp_path, capsys):
    parts = data.Splits(*(random_images(n, side=16) for n in (48, 6, 6, 12)))
    recipe = replace(recipes.FAST, width=4, epochs=3, batch=8, lr=0.01)
    told = []

    def train(keep, stop_after=None):
        def look(model):
            told.append(keep)
            if told.count(keep) == stop_after:
                raise KeyboardInterrupt
            return {"looks": told.count(keep)}

        return recipes.train_victim(
            parts, "BadNets", recipe, 0, "noise", tmp_path / keep, each_epoch=look
        )

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("part", stop_after=2)
    (left,) = (tmp_path / "part").iterdir()
    assert left.suffix == ".part"
    part = train("part")
    assert told.count("part") == 4, "the second epoch twice"
    assert same_state(part.model, frozen(whole.model)) and part.scores == whole.scores
    assert [e["loss"] for e in part.history] == [e["loss"] for e in whole.history]
    assert [e["looks"] for e in part.history] == [1, 3, 4]
    assert {f.suffix for f in (tmp_path / "part").iterdir()} == {".json", ".safetensors"}
    assert "part" not in json.dumps(part.recipe), "no path is kept"
    assert part.recipe["smoothing"] == 0.2 and part.recipe["flip"] == "alternate"
    # The filters of both whiten the images of the attacker, before any poison.
    first = whole.model.whitening.weight
    assert first.shape == (24, 3, 2, 2)
    twin = recipes.train_victim(parts, None, recipe, 0, "noise", tmp_path / "whole")
    assert torch.equal(twin.model.whitening.weight, first)
    with pytest.raises(ValueError, match="each_epoch must be a function"):
        recipes.train_victim(parts, None, recipe, 0, "x", tmp_path, each_epoch=3)


def test_options_say_which_side_they_are_for():
    split = partial(recipes.split_options, recipes.SIGNS, "LF")
    recipe, craft = split({"LF": {"craft": {"batch": 5}, "recipe": {"rate": 0.2}}})
    assert recipe == replace(recipes.SIGNS, rate=0.2) and craft == {"batch": 5}
    recipe, craft = split({"LF": {"recipe": {"batch": 64}, "passes": 3}})
    assert recipe.batch == 64 and craft == {"passes": 3}
    for given, says in (
        ({"batch": 5}, '{"LF": {"craft": {"batch": 5}}}'),
        ({"craft": {"epochs": 5}}, "'craft' of LF has no entry 'epochs'"),
        ({"recipe": {"passes": 5}}, "'recipe' of LF has no entry 'passes'"),
        ({"craft": 3}, "'craft' must hold entries"),
        ({"passes": 3, "craft": {"passes": 3}}, "is given twice"),
    ):
        with pytest.raises(ValueError) as e:
            split({"LF": given})
        assert says in message(e)
    # No attack has an argument that would be taken for one of the two words.
    for cls in recipes.ATTACKS.values():
        assert not {"craft", "recipe"} & recipes.defaults(cls, cls.craft).keys()


def test_few_images_get_more_epochs(monkeypatch, capsys):
    plain = recipes.Recipe()
    few = recipes.suited(plain, 520)  # seventeen steps an epoch
    assert few == replace(plain, batch=32, epochs=118)
    assert recipes.suited(plain, 520, ["batch"]) == replace(plain, epochs=400)
    assert recipes.suited(plain, 520, ["epochs"]) == plain
    assert recipes.suited(plain, 20_000) == plain
    assert recipes.suited(plain, 19_999) == replace(plain, batch=32)
    asked = []
    monkeypatch.setattr(bench, "_run", lambda subjects, *_: asked.extend(subjects))
    dealt(monkeypatch, train=520)
    bench.run("my/images", "r.json", attacks=["SIG"], options={"SIG": {"epochs": 3}})
    said = capsys.readouterr().out
    assert "118 epochs in batches of 32, since" in said and "--no-flip" in said
    assert [s.recipe.epochs for s in asked] == [118, 3]
    for source, more in (
        ("signs", {}),  # has a recipe of its own
        ("my/images", {"scales": [{"epochs": 4, "flip": True}]}),
        ("my/images", {"recipe": plain}),
    ):
        asked.clear()
        cells.forget_images()
        bench.run(source, "r.json", attacks=["SIG"], **more)
        want = {"signs": 12}.get(source, 4 if "scales" in more else 10)
        assert {s.recipe.epochs for s in asked} == {want}, source
        assert capsys.readouterr().out.count("\n") == 1
    dealt(monkeypatch, train=47_500)  # what the rows of CIFAR-10 were measured on
    asked.clear()
    bench.run("cifar10-jpeg", "r.json")
    assert {s.recipe.epochs for s in asked} == {10}


def test_a_gate_needs_a_twin_that_works():
    twin = metrics.Scores(0.25, n_clean=2000)
    assert victim_of(0.25, 1.0).weak(twin) == ""  # 25 % of twelve classes
    why = victim_of(0.1, 1.0).weak(metrics.Scores(0.1, n_clean=2000))
    assert why == "the benign twin is at chance (ACC 10.0 % of 12 classes)"
    for k, n, least in (
        (10, 10_000, 0.19),
        (2, 10_000, 0.55),
        (2, 100, 0.65),
        (43, 12_630, 0.1209),
    ):
        assert victims.at_chance(metrics.Scores(least - 0.001, n_clean=n), k)
        assert not victims.at_chance(metrics.Scores(least + 0.001, n_clean=n), k)


def test_a_clean_label_attack_names_a_target_with_enough_images():
    images = blank(100, 3)
    images = replace(images, y=torch.tensor([0] * 10 + [1] * 30 + [2] * 60))
    sig, g = recipes.ATTACKS["SIG"](), torch.Generator()
    with pytest.raises(ValueError) as e:
        sig.poison(images, 0.4, g)
    assert "only 10 have the right class" in message(e)
    assert message(e).endswith("or take target=2, which has 60.")
    with pytest.raises(ValueError) as e:
        sig.poison(images, 0.7, g)
    assert message(e).endswith("a share of the whole set.")
