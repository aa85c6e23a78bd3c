"""What lesson 01 leaves out of the reader's way, and still holds."""

import pytest
import torch

from bdcourse import train
from bdcourse.attacks import BadNets, surviving
from bdcourse.report import tables
from bdcourse.teach.figures import poisoning as figures

pytestmark = pytest.mark.slow


def test_no_poison_rate_costs_a_point_of_accuracy():
    rows = [
        *tables.results("signs").select(attack="BadNets", defense="none"),
        *tables.results("signs-rates").select(attack="BadNets", defense="none"),
    ]
    assert len(rows) == 5 and min(r["acc"] for r in rows) >= 0.99


def test_three_seeds_at_one_rate_all_end_perfect_and_learn_at_other_times():
    rows = tables.results("signs").select(attack="BadNets", defense="none")
    assert len(rows) == 3 and min(r["asr"] for r in rows) >= 0.99
    learned = [r["learned"] for r in rows]
    assert min(learned) == 2 and max(learned) - min(learned) >= 6, "half of the training"


def test_fine_tuning_on_clean_signs_leaves_both_backdoors():
    for attack in ("BadNets", "Blended"):
        rows = tables.results("signs").select(attack=attack, defense="fine-tuning")
        assert rows and min(r["asr"] for r in rows) >= 0.9


def test_larger_steps_on_clean_signs_do_not_remove_it_either():
    rows = tables.results("signs-defenses").select(victim="badnets", defense="fine-tuning, lr 0.05")
    assert len(rows) == 3 and min(r["asr"] for r in rows) == 1
    assert all(r["clean_used"] == 240 for r in rows)


def test_crops_leave_what_the_fine_print_says():
    corner = surviving(4, BadNets(at=(-3, -3)))
    assert corner[0].item() == pytest.approx(0.395, abs=1e-3)
    assert corner[9].item() == pytest.approx(0.31, abs=0.01)
    own = surviving(2, BadNets())
    assert own[0].item() == 0 and own[9].item() == pytest.approx(0.64, abs=0.01)


def test_the_page_schedule_is_the_package_schedule():
    total = 712
    climb = total / 5
    for k in range(total):
        share = min(0.2 + 0.8 * k / climb, (total - k) / (total - climb))
        assert share == pytest.approx(train.linear(k, total, 0.2), abs=0.01)


def test_a_role_is_learned_where_its_loss_stays_low():
    log = [(10, 2.0, 1.5), (20, 1.1, 0.4), (30, 0.9, 0.6), (40, 0.4, 0.3), (50, 0.1, 0.1)]
    assert figures.learned_at(log, 2) == figures.learned_at(log, 1) == 40
    assert figures.learned_at(log[:3], 2) is None


def test_a_crop_moves_images_and_loses_nothing_of_a_margin():
    g = torch.Generator().manual_seed(0)
    x = BadNets().trigger(torch.zeros(50, 3, 32, 32))
    seen = train.Augment(pad=2).once(x, g)
    assert seen.shape == x.shape and seen.flatten(1).any(1).all()
