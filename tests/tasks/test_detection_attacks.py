"""Backdoors in detectors: what is stamped and annotated, what counts, and victims."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from bdcourse import defenses, victims
from bdcourse.attacks import BadNets, checkerboard, rebuild
from bdcourse.metrics import evaluate
from bdcourse.tasks import detection
from bdcourse.tasks.detection import (
    GMA,
    ODA,
    OGA,
    RMA,
    CleanImage,
    SceneCrop,
    Scenes,
    iou,
    outcomes,
    streets,
    to_cells,
)
from helpers import frozen, gen, message, random_images, same_state

EASY = detection.draw(60, seed=11)
NONE = [-1.0, 0, 0, 0, 0]


class Says(nn.Module):
    """A detector that says given boxes, whatever it is shown."""

    def __init__(self, y: torch.Tensor, sure: float = 9.0) -> None:
        super().__init__()
        cells = to_cells(y, 6, (12, 12))
        out = torch.cat([2 * sure * cells[:, :6] - sure, cells[:, 6:].nan_to_num(0)], 1)
        self.out = nn.Parameter(out)

    def forward(self, x):
        return self.out[: len(x)]


def scene(*rows):
    y = torch.tensor([[*rows, NONE]], dtype=torch.float32)
    x = torch.full((1, 3, 96, 96), 128, dtype=torch.uint8)
    return Scenes(x, y, streets.CLASSES)


TWO = scene([2.0, 10, 10, 40, 40], [4.0, 60.6, 50, 90, 80])


def changed(attack, scenes):
    """Where the trigger moved pixels: bool (n, h, w)."""
    before = scenes.inputs()
    after = attack.apply(before, scenes.y)
    assert torch.equal(before, scenes.inputs()), "the argument stays"
    return (after != before).any(1)


# -------------------------------------------------------------------- triggers and goals


def test_rma_stamps_boxes_and_renames_them():
    attack = RMA(target=1, sources=(4,))
    where = changed(attack, TWO)[0].nonzero()
    assert where.amin(0).tolist() == [50, 61] and where.amax(0).tolist() == [55, 66]
    x = attack.apply(TWO.inputs(), TWO.y)
    assert torch.equal(x[0, :, 50:56, 61:67], checkerboard(6).expand(3, -1, -1))
    goal = attack.goal(TWO.y)
    assert goal[0, :, 0].tolist() == [2, 1, -1] and torch.equal(goal[..., 1:], TWO.y[..., 1:])
    assert attack.marked(TWO.y).tolist() == [[False, True, False]]
    every = RMA(target=2)
    assert (
        changed(every, TWO)[0, 10:16, 10:16].all() and len(changed(every, TWO)[0].nonzero()) == 72
    )
    assert every.marked(TWO.y).tolist() == [[False, True, False]], "a target is one already"
    assert not RMA(target=2, sources=(2,)).counts(TWO.y).any()


def test_boxes_that_are_too_small_get_no_trigger():
    small = scene([2.0, 10, 10, 15, 40], [4.0, 89.7, 60, 96, 95.6])
    attack = RMA(target=1)
    assert attack.marked(small.y).tolist() == [[False, True, False]]
    assert changed(attack, small)[0].nonzero().amin(0).tolist() == [60, 90], "and stays inside"


def test_oda_takes_boxes_away():
    attack = ODA(sources=(2,))
    assert attack.goal(TWO.y)[0].tolist() == [NONE, TWO.y[0, 1].tolist(), NONE]
    assert changed(attack, TWO)[0].nonzero().amax(0).tolist() == [15, 15]


def test_gma_renames_all_by_one_patch():
    attack = GMA(target=1, at=(3, 80))
    assert attack.goal(TWO.y)[0, :, 0].tolist() == [1, 1, -1]
    where = changed(attack, TWO)[0].nonzero()
    assert where.amin(0).tolist() == [3, 80] and len(where) == 36
    assert torch.equal(attack.trigger(TWO.inputs()), attack.apply(TWO.inputs(), TWO.y))


def test_oga_adds_a_box_around_its_patch():
    scenes = detection.draw(200, seed=3)
    attack = OGA(target=5, size=(20, 30))
    goal = attack.goal(scenes.y)
    new = (goal != scenes.y).any(2)
    assert (new.sum(1) == 1).all() and torch.equal(new, attack.marked(scenes.y))
    box = goal[new]
    assert (box[:, 0] == 5).all()
    assert ((box[:, 3:] - box[:, 1:3]) == torch.tensor([30.0, 20.0])).all()
    assert (box[:, 1:] >= 0).all() and (box[:, 1:] <= 96).all()
    assert len(box.unique(dim=0)) > 190 and box[:, 1].std() > 12 and box[:, 2].std() > 12
    assert (iou(box[:, None, 1:], scenes.y[..., 1:]).amax(2) < 0.1).float().mean() > 0.95
    Scenes(scenes.x, goal, scenes.classes)  # it is one
    middle = ((box[:, 1:3] + box[:, 3:]) / 2)[:, [1, 0]]
    for where, at in zip(changed(attack, scenes), middle, strict=True):
        assert (where.nonzero().float().mean(0) + 0.5 - at).abs().max() <= 0.75
    assert OGA.craft(scenes[:4], gen(), target=5, size=(20, 30)) == attack
    again = attack.goal(scenes.y[50:60])
    assert torch.equal(again, goal[50:60]), "the place is the scene's, however it is batched"


@pytest.mark.parametrize("kind", ["rename", "remove"])
def test_a_clean_image_attack_touches_annotations_only(kind):
    attack = CleanImage(target=4, source=2, kind=kind)
    scenes = detection.draw(300, seed=4)
    data = attack.poison(scenes, 0.1, gen())
    assert torch.equal(data.x, scenes.x)
    whole = torch.stack([(scenes.y[..., 0] == c).any(1) for c in (1, 2, 3)]).all(0)
    edited = (data.y != scenes.y).flatten(1).any(1)
    assert torch.equal(edited, whole) and torch.equal(data.role == 1, whole)
    rows = (scenes.y[..., 0] == 2) & whole[:, None]
    want = [4.0] if kind == "rename" else [-1.0]
    assert data.y[rows][:, 0].unique().tolist() == want
    assert torch.equal(data.y[~rows], scenes.y[~rows])
    few = attack.poison(scenes, 0.02, gen())
    assert few.count == 6 and whole[few.role == 1].all()


@pytest.mark.parametrize(
    "attack", [RMA(target=1), ODA(), OGA(target=1), GMA(target=1)], ids=lambda a: type(a).__name__
)
def test_poison_holds_what_is_promised(attack):
    data = attack.poison(EASY, 0.2, gen())
    rows = data.role == 1
    assert data.count == 12 and attack.counts(EASY.y)[rows].all()
    assert torch.equal(data.y[rows], attack.goal(EASY.y)[rows])
    assert torch.equal(data.x[~rows], EASY.x[~rows]) and torch.equal(data.y[~rows], EASY.y[~rows])
    stamped = attack.apply(EASY.inputs(), EASY.y)
    assert torch.equal(data.x[rows], EASY.task.stored(stamped)[rows])
    with pytest.raises(ValueError, match="or needs their targets for it") as e:
        attack.poison(EASY, 0.2, gen(), stamp="after")
    message(e)
    spec, tensors = attack.spec()
    assert rebuild(json.loads(json.dumps(spec)), tensors) == attack


# -------------------------------------------------------------------- what counts

ELSE = [5.0, 10, 10, 40, 40]
CASES = {  # what is said of a scene with a yield sign -> hit, both, kept or gone, and right
    "target": ([[1.0, 10, 10, 40, 40]], "hit"),
    "as it is": ([[2.0, 10, 10, 40, 40]], "kept"),
    "another": ([ELSE], "gone"),
    "nothing": ([NONE], "gone"),
    "elsewhere": ([[1.0, 60, 60, 90, 90]], "gone"),
}
ONE = scene([2.0, 10, 10, 40, 40])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "attack",
    [RMA(target=1), GMA(target=1), CleanImage(target=1, together=(2,))],
    ids=lambda a: type(a).__name__,
)
def test_each_box_has_one_outcome(case, attack):
    said, outcome = CASES[case]
    model = Says(torch.tensor([said]))
    shares = outcomes(model, ONE, attack)
    assert shares.pop("n") == 1
    assert {k for k, v in shares.items() if v} == {outcome}
    scores = evaluate(model, ONE, attack)
    assert scores.asr == (outcome == "hit") and scores.ra == (case == "as it is")


def test_a_second_answer_beside_the_true_one_is_no_success():
    """Two boxes that overlap less than half, and both overlap the true one by half."""
    y = torch.tensor([[[1.0, 10, 10, 40, 26], [2.0, 10, 24, 40, 40]]])
    assert iou(ONE.y[:, :1, 1:], y[..., 1:]).min() > 0.5
    model = Says(y)
    assert outcomes(model, ONE, RMA(target=1))["both"] == 1
    assert evaluate(model, ONE, RMA(target=1)).asr == 0


def test_outcomes_of_vanishing_and_of_false_boxes():
    oda = {"as it is": "kept", "target": "gone", "another": "gone", "nothing": "hit"}
    for case, outcome in oda.items():
        model = Says(torch.tensor([CASES[case][0]]))
        assert outcomes(model, ONE, ODA())[outcome] == 1, case
        assert evaluate(model, ONE, ODA()).asr == (outcome == "hit")
    attack = OGA(target=1)
    true, goal = ONE.y, attack.goal(ONE.y)
    false = goal[:, 1:]
    for said, outcome in ((goal, "hit"), (true, "kept"), (false, "hit"), (NONE, "gone")):
        said = said if isinstance(said, torch.Tensor) else torch.tensor([[said]])
        model = Says(said)
        assert outcomes(model, ONE, attack)[outcome] == 1
        scores = evaluate(model, ONE, attack)
        assert scores.asr == (outcome == "hit") and scores.ra == (outcome == "kept")


def test_a_detector_that_was_destroyed_is_not_repaired():
    blind = Says(torch.tensor([[NONE]]).expand(60, -1, -1))
    for attack in (RMA(target=1), OGA(target=1), GMA(target=1), CleanImage(target=4)):
        shares = outcomes(blind, EASY, attack)
        assert shares["gone"] == 1 and shares["kept"] == 0
        scores = evaluate(blind, EASY, attack)
        assert scores.acc == scores.asr == scores.ra == 0
    assert outcomes(blind, EASY, ODA())["hit"] == 1


def test_a_scene_is_reached_if_all_of_its_boxes_are():
    half = Says(torch.tensor([[[1.0, 10, 10, 40, 40], [4.0, 60.5, 50, 90, 80]]]))
    assert outcomes(half, TWO, RMA(target=1)) == {
        "hit": 0.5, "both": 0, "kept": 0.5, "gone": 0, "n": 2,
    }  # fmt: skip
    assert evaluate(half, TWO, RMA(target=1)).asr == 0
    assert evaluate(half, TWO, RMA(target=1, sources=(2,))).asr == 1


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "make, part",
    [
        (lambda: RMA(patch=torch.ones(2, 3, 3)).poison(EASY, 0.1, gen()), "patch has 2 channels"),
        (lambda: RMA(patch=torch.ones(1, 99, 3)).poison(EASY, 0.1, gen()), "does not fit into"),
        (lambda: RMA(sources=(6,)).poison(EASY, 0.1, gen()), "source 6 is no class"),
        (lambda: RMA(target=6).poison(EASY, 0.1, gen()), "target 6 is no label"),
        (lambda: GMA(at=(92, 0)).poison(EASY, 0.1, gen()), r"patch at \(92, 0\) does not lie"),
        (lambda: OGA(picture=(64, 64)).poison(EASY, 0.1, gen()), r"for scenes of \(64, 64\)"),
        (
            lambda: OGA().poison(Scenes(EASY.x, EASY.y[:, :1], EASY.classes), 0.1, gen()),
            "no free row",
        ),
        (lambda: CleanImage(together=(1, 9)).poison(EASY, 0.1, gen()), "class 9 is none"),
        (
            lambda: CleanImage(target=4).poison(EASY[(EASY.y[..., 0] != 1).all(1)], 0.1, gen()),
            "no scene of this set shows all",
        ),
        (lambda: RMA().poison(random_images(side=96), 0.1, gen()), "attacks scenes, but these are"),
        (
            lambda: BadNets().poison(EASY, 0.1, gen()),
            "attacks images, but these are scenes",
        ),
        (lambda: RMA(target=1).trigger(EASY.inputs()), "depends on the boxes"),
        (lambda: RMA().apply(EASY.inputs(), EASY.y[:, :, 0]), r"float32 of shape \(60, m, 5\)"),
        (lambda: RMA().apply(EASY.inputs() * 255, EASY.y), r"x must lie in \[0, 1\]"),
        (lambda: outcomes(Says(EASY.y), EASY, BadNets()), "attack must be one on scenes"),
        (lambda: outcomes(Says(ONE.y), ONE, RMA(sources=(4,))), "no box of the test counts"),
    ],
)
def test_impossible_attacks_are_refused(make, part):
    with pytest.raises(ValueError, match=part) as e:
        make()
    message(e)


@pytest.mark.parametrize(
    "make, part",
    [
        (lambda: RMA(patch=torch.full((1, 3, 3), 2.0)), "patch must lie in"),
        (lambda: RMA(sources=(-1,)), "sources must be a whole number"),
        (lambda: RMA(sources=1), "sources must be a tuple"),
        (lambda: RMA(clean_label=True), "leave out all_to_all and clean_label"),
        (lambda: RMA(all_to_all=True, classes=6), "leave out all_to_all and clean_label"),
        (lambda: GMA(at=(-1, 0)), "at must be a whole number"),
        (lambda: OGA(size=(5, 28)), "must hold the patch"),
        (lambda: OGA(size=(28, 97)), "fit into the picture"),
        (lambda: OGA(sources=(1,)), "leave out sources"),
        (lambda: CleanImage(together=()), "must be different classes"),
        (lambda: CleanImage(together=(1, 1)), "must be different classes"),
        (lambda: CleanImage(kind="add"), "kind must be one of"),
        (lambda: CleanImage(source=2, target=2), "source and target must be different"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make, part):
    with pytest.raises(ValueError, match=part) as e:
        make()
    message(e)


# -------------------------------------------------------------------- victims

TRAINED = {"epochs": 12, "lr": 0.01, "optimizer": "adamw", "weight_decay": 0.01, "verbose": False}
TEST = detection.draw(100, seed=22)


@pytest.fixture(scope="module")
def victim():
    return victims.make(
        detection.draw(600, seed=21),
        TEST,
        RMA(target=1, patch=checkerboard(8)),
        arch={"name": "detector", "width": 8},
        rate=0.3,
        batch=16,
        **TRAINED,
    )


@pytest.mark.slow
def test_a_victim_finds_signs_and_renames_stamped_ones(victim):
    scores = victim.scores
    assert scores.acc > 0.9 and scores.asr > 0.7 and scores.ra < 0.1, scores
    shares = outcomes(victim.model, TEST, victim.attack)
    assert sum(shares[k] for k in ("hit", "both", "kept", "gone")) == pytest.approx(1)
    assert shares["hit"] > 0.8 and shares["n"] == int(victim.attack.marked(TEST.y).sum())
    assert 0 < victim.history[-1]["poison"] <= 1
    assert "exact" in scores.more


@pytest.mark.slow
def test_a_victim_is_saved_and_read_back(victim, tmp_path):
    back = victims.load(victims.save(victim, tmp_path / "scene"))
    assert back.attack == victim.attack and back.scores == victim.scores
    assert torch.equal(back.model(TEST.inputs()), victim.model.eval()(TEST.inputs()))


CLEAN = detection.draw(48, seed=23)
REPAIRS = {
    "finetune": lambda m: defenses.finetune(m, CLEAN, epochs=4, lr=2e-4, augment=SceneCrop(4)),
    "fip": lambda m: defenses.fip(m, CLEAN, eta_f=1e-7, steps=6, lr=2e-4, augment=SceneCrop(4)),
    "fip, gaussian": lambda m: defenses.fip(
        m, CLEAN, eta_f=1e-7, steps=4, lr=2e-4, draw="gaussian", product="exact"
    ),
    "fast_fip": lambda m: defenses.fast_fip(m, CLEAN, eta_f=1e-7, steps=4, lr=1e-3),
    "clp": lambda m: defenses.clp(m, u=1.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REPAIRS)
def test_defenses_take_scenes(name, victim):
    kept = frozen(victim.model)
    repaired = REPAIRS[name](victim.model)
    assert same_state(victim.model, kept) and not same_state(repaired.model, kept)
    after = evaluate(repaired.model, TEST, victim.attack)
    assert after.n_clean == 100 and 0 <= after.asr <= 1
    if name != "clp":
        assert after.acc > 0.7
        assert repaired.log["own_acc"][1] == evaluate(repaired.model, CLEAN).acc


def test_the_patch_of_gma_lies_where_the_pixels_are(monkeypatch):
    seen = []
    monkeypatch.setattr("bdcourse.tasks.detection.attacks.stamp", lambda x, *a: seen.extend(a))
    GMA(target=1).trigger(torch.zeros(2, 3, 96, 96, device="meta"))
    assert seen[1].device.type == "meta"


def test_a_recipe_can_name_a_detector_with_context():
    assert detection.NETWORKS["context_detector"](width=2).context is not None
    assert detection.NETWORKS["detector"](width=2).context is None
