"""Boxes: cells and back, what suppresses what, precision by hand, and one likelihood."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from bdcourse.analysis.curvature import fisher_trace
from bdcourse.tasks import detection
from bdcourse.tasks.detection import (
    SCENES,
    BoxLikelihood,
    average_precision,
    from_cells,
    iou,
    suppressed,
    to_cells,
)
from bdcourse.tasks.detection.boxes import MOST
from helpers import gen, message


def boxes(*rows: tuple[float, ...]) -> torch.Tensor:
    """One scene of rows (class, x1, y1, x2, y2) or with a score, (1, m, 5 or 6)."""
    return torch.tensor([rows], dtype=torch.float32)


def outputs(cells: torch.Tensor, k: int) -> torch.Tensor:
    """What a detector that is certain says of such cells."""
    return torch.cat([40 * cells[:, :k] - 20, cells[:, k:].nan_to_num(0)], 1)


# -------------------------------------------------------------------- cells


def test_overlap_by_hand():
    a = torch.tensor([[0.0, 0, 4, 4], [0, 0, 0, 0]])
    b = torch.tensor([[2.0, 0, 6, 4], [0, 0, 4, 4], [4, 4, 8, 8]])
    assert torch.allclose(iou(a, b), torch.tensor([[1 / 3, 1.0, 0.0], [0, 0, 0]]))


def test_the_cells_of_one_box():
    """A box of 32 pixels about (32, 24): cells within 8 pixels of its center."""
    cells = to_cells(boxes((1, 16, 8, 48, 40), (-1, 0, 0, 0, 0)), 3, (6, 8))
    on = cells[0, 1].nonzero().tolist()
    # Middles lie at 4, 12, 20, ...: columns 28 and 36, rows 20 and 28, and no others.
    assert on == [[2, 3], [2, 4], [3, 3], [3, 4]]
    assert not cells[0, [0, 2]].any()
    distances = cells[0, 3:].exp() * 8
    assert torch.allclose(distances[:, 2, 3], torch.tensor([12.0, 12, 20, 20]))
    assert distances.isnan().sum() == 4 * (48 - 4)


def test_a_small_box_has_cells_and_the_smaller_of_two_wins():
    cells = to_cells(boxes((0, 5, 5, 15, 15)), 1, (3, 3))
    assert cells[0, 0].nonzero().tolist() == [[1, 1]], "within 0.71 strides"
    both = boxes((0, 0, 0, 48, 48), (1, 16, 16, 32, 32))
    cells = to_cells(both, 2, (6, 6))
    assert not (cells[0, 0] * cells[0, 1]).any() and cells[0, 1].sum() == 4
    swapped = to_cells(both.flip(1), 2, (6, 6))
    assert torch.equal(cells.nan_to_num(9), swapped.nan_to_num(9))


@pytest.mark.parametrize("hard", [False, True])
def test_boxes_survive_the_way_to_cells_and_back(hard):
    scenes = detection.draw(60, seed=3, hard=hard)
    y = scenes.y
    back = from_cells(outputs(to_cells(y, 6, (12, 12)), 6))
    assert (back[..., 5] > 0.99).eq(back[..., 0] >= 0).all()
    near = iou(y[..., 1:], back[..., 1:5])
    close = (y[:, :, None, 1:] - back[:, None, :, 1:5]).abs().amax(3) < 1e-4
    same = (close & (y[:, :, None, 0] == back[:, None, :, 0])).any(2)
    there = y[..., 0] >= 0
    if not hard:
        assert same[there].all() and (back[..., 0] >= 0).sum() == there.sum()
    assert same[there].float().mean() > 0.99 and near[there].amax(1).gt(0.99).float().mean() > 0.99
    assert SCENES.quality(back, y)["map50"] > 0.99


def test_nothing_is_answered_where_nothing_is_said():
    out = torch.full((3, 7, 4, 4), -9.0)
    answers = from_cells(out)
    assert (answers[..., 0] == -1).all() and (answers[..., 1:] == 0).all()
    empty = torch.tensor([[[-1.0, 0, 0, 0, 0]]]).expand(3, -1, -1)
    assert SCENES.correct(answers, empty).all()
    out[:, 3:] = 1e6  # however far the edges are said to be
    out[0, 0, 0, 0] = 5
    answers = from_cells(out)
    assert answers[0, 0].tolist()[:5] == [0, 0, 0, 32, 32], "boxes end at the picture"


def greedy(box, overlap):
    """The definition, one box after the other."""
    keep: list[int] = []
    for i in range(len(box)):
        if all(iou(box[i : i + 1], box[j : j + 1])[0, 0] <= overlap for j in keep):
            keep.append(i)
    return keep


def test_suppression_is_greedy():
    g = gen(1)
    corner = torch.rand(8, 25, 2, generator=g) * 20
    box = torch.cat([corner, corner + 5 + 15 * torch.rand(8, 25, 2, generator=g)], 2)
    valid = torch.ones(8, 25, dtype=torch.bool)
    valid[:, 20:] = False
    kept = suppressed(box, valid, 0.4)
    for b, k in zip(box, kept, strict=True):
        assert k.nonzero().flatten().tolist() == greedy(b[:20], 0.4)
    assert 0.2 < kept[:, :20].float().mean() < 0.9
    # What suppresses is suppressed itself: the third box stays.
    chain = boxes((0, 0, 10, 10), (0, 4, 10, 14), (0, 8, 10, 18))
    assert suppressed(chain, torch.ones(1, 3, dtype=torch.bool), 0.4).tolist() == [
        [True, False, True]
    ]


def test_a_scene_has_at_most_so_many_answers():
    out = torch.randn(1, 24, 12, 12, generator=gen()) + 2
    out[:, 20:] = -3  # tiny boxes
    assert from_cells(out).shape[1] <= MOST


# -------------------------------------------------------------------- precision


def test_precision_by_hand():
    y = boxes((0, 0, 0, 10, 10), (0, 20, 0, 30, 10), (1, 0, 20, 10, 30), (-1, 0, 0, 0, 0))
    answers = boxes(
        (0, 0, 0, 10, 10, 0.9),  # right
        (0, 0, 1, 10, 11, 0.8),  # the same once more: a false alarm
        (0, 20, 0, 30, 11, 0.7),  # right
        (1, 20, 0, 30, 10, 0.6),  # another class stands there
        (-1, 0, 0, 0, 0, 0),
    )
    found = average_precision(answers, y)
    # Precision 1 up to recall 0.5 (51 of 101 steps), then 2/3.
    assert found == {0: pytest.approx((51 + 50 * 2 / 3) / 101), 1: 0.0}
    assert SCENES.quality(answers, y)["map50"] == pytest.approx(found[0] / 2)
    low = answers.clone()
    low[0, 0, 5] = 0.75  # now the false alarm comes first, and takes the true box
    assert average_precision(low, y)[0] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert average_precision(answers[:, :1], y)[0] == pytest.approx(51 / 101)
    assert average_precision(answers[:, 4:], y) == {0: 0.0, 1: 0.0}


def plain_precision(answers, y, label):
    """AP of one class, answer by answer."""
    rows = [
        (float(a[5]), s, a)
        for s, scene in enumerate(answers)
        for a in scene
        if int(a[0]) == label and a[0] >= 0
    ]
    rows.sort(key=lambda r: -r[0])
    truth = {
        (s, j): box for s, scene in enumerate(y) for j, box in enumerate(scene) if box[0] == label
    }
    free, hits, curve = set(truth), 0, []
    for i, (_, s, a) in enumerate(rows):
        over = {
            key: float(iou(a[None, 1:5], truth[key][None, 1:])[0, 0]) for key in free if key[0] == s
        }
        best = max(over, key=lambda key: over[key], default=None)
        if best is not None and over[best] >= 0.5:
            free.remove(best)
            hits += 1
        curve.append((hits / len(truth), hits / (i + 1)))
    steps = [max((p for r, p in curve if r >= i / 100), default=0.0) for i in range(101)]
    return sum(steps) / 101


# Of the first two sets below by torchmetrics 1.9.0 with faster-coco-eval 1.8.0, at recalls
# i / 100 in float64; 30 such sets agreed to 3e-8.
OTHERS = [0.5047971606254578, 0.5302428007125854]


def random_answers(seed, n=12, m=6, k=4, d=14):
    """True boxes and answers that are about right, some twice, some of another class."""
    g = gen(seed)
    label = torch.randint(-1, k, (n, m), generator=g).float()
    a = torch.rand(n, m, 2, generator=g) * 60
    b = a + 10 + torch.rand(n, m, 2, generator=g) * 30
    y = torch.cat([label[..., None], torch.cat([a, b], -1)], -1)
    y[label < 0, 1:] = 0
    of = y.gather(1, torch.randint(m, (n, d), generator=g)[..., None].expand(-1, -1, 5))
    box = of[..., 1:] + torch.randn(n, d, 4, generator=g) * 2.5
    other = torch.rand(n, d, generator=g) < 0.75
    said = torch.where(other, of[..., 0], torch.randint(-1, k, (n, d), generator=g).float())
    box[..., 2:] = torch.maximum(box[..., 2:], box[..., :2] + 1)
    score = torch.rand(n, d, 1, generator=g)
    return torch.cat([said[..., None], box, score], -1), y


@pytest.mark.parametrize("seed, theirs", [*enumerate(OTHERS)])
def test_precision_is_that_of_the_definition_and_of_another_program(seed, theirs):
    answers, y = random_answers(seed)
    ours = average_precision(answers, y)
    for label, value in ours.items():
        assert value == pytest.approx(plain_precision(answers, y, label), abs=1e-6)
    assert SCENES.quality(answers, y)["map50"] == pytest.approx(theirs, abs=1e-6)


# -------------------------------------------------------------------- the likelihood


def one_cell(z, m):
    return torch.tensor([*z, *m], dtype=torch.float64).view(1, -1, 1, 1)


def test_the_likelihood_by_hand():
    """Exercise 2: one cell, two classes, logits 0, four edges off by 0.2, s = 0.5."""
    out = one_cell((0, 0), (0, 0, 0, 0))
    y = one_cell((1, 0), (0.2, -0.2, 0.2, 0.2))
    value = BoxLikelihood(0.5).log_prob(out, y)
    assert value.item() == pytest.approx(-2 * math.log(2) - 4 * 0.4)
    assert value.item() == pytest.approx(-2.986, abs=1e-3)
    normal = -2 * math.log(2) - 4 * (0.2**2 / 0.5) - 4 * math.log(0.5 * math.sqrt(2 * math.pi))
    assert BoxLikelihood(0.5, "gaussian").log_prob(out, y).item() == pytest.approx(normal)


@pytest.mark.parametrize("density", ["laplace", "gaussian"])
def test_the_likelihood_sums_to_one(density):
    """Over all tables of one cell and two classes, and over the distances where one is on.

    The edges are independent given the table, so four integrals over one edge, the others
    at a fixed value, give the integral over all.
    """
    law = BoxLikelihood(0.3, density)
    out = one_cell((0.4, -1.3), (0.2, -0.1, 0.5, 0.0))
    grid = torch.linspace(-6, 6, 24_001, dtype=torch.float64)
    total = 0.0
    for table in itertools.product((0.0, 1.0), repeat=2):
        none = one_cell(table, [math.nan] * 4)
        p = law.log_prob(out, none).exp().item()
        if any(table):
            for j in range(4):
                at = one_cell(table, [math.nan] * 4).repeat(len(grid), 1, 1, 1)
                at[:, 2 + j, 0, 0] = grid
                density_of = law.log_prob(out.expand(len(grid), -1, -1, -1), at).exp() / p
                if j == 0:
                    edges = 1.0
                edges *= torch.trapezoid(density_of, grid).item()
            p *= edges
        total += p
    assert total == pytest.approx(1, abs=1e-5)
    # And with all four edges asked at once it is their product.
    full = law.log_prob(out, one_cell((1, 0), (0.1, 0.1, 0.1, 0.1)))
    none = law.log_prob(out, one_cell((1, 0), [math.nan] * 4))
    parts = 0.0
    for j in range(4):
        at = one_cell((1, 0), [math.nan] * 4)
        at[0, 2 + j] = 0.1
        parts += law.log_prob(out, at) - none
    assert torch.allclose(full, none + parts)


def test_the_focal_loss_is_no_likelihood():
    """Exercise 3: its exponentials for yes and no do not add up to one, and ours do."""
    p, gamma = 0.5, 2
    focal = [(1 - q) ** gamma * -math.log(q) for q in (p, 1 - p)]
    assert sum(math.exp(-f) for f in focal) == pytest.approx(1.682, abs=1e-3)
    out = one_cell((0,), (0, 0, 0, 0))
    ours = [BoxLikelihood().log_prob(out, one_cell((t,), [math.nan] * 4)) for t in (0.0, 1.0)]
    assert sum(v.exp().item() for v in ours) == pytest.approx(1)


def scene_and_outputs(n=1):
    """A small scene of 4 x 4 cells with two classes, and what a network says of it."""
    y = boxes((1, 2, 2, 30, 30), (-1, 0, 0, 0, 0)).repeat(n, 1, 1)
    out = torch.randn(n, 6, 4, 4, generator=gen(2), dtype=torch.float64)
    return out, y


@pytest.mark.parametrize("density", ["laplace", "gaussian"])
def test_draws_have_the_covariance_of_noise_and_roots(density):
    law, draws = BoxLikelihood(0.5, density), 20_000
    out, y = scene_and_outputs()
    many = out.expand(draws, -1, -1, -1).clone().requires_grad_()
    masked = law.masked(many, y.expand(draws, -1, -1))
    score = torch.autograd.grad(law.log_prob(masked, law.sample(many, gen(1))).sum(), many)[0]
    score = score.flatten(1)
    exact = law.masked(law.roots(out), y).flatten(1)
    want = exact.T @ exact
    assert torch.count_nonzero(want.diagonal()) < want.shape[0], "cells without a box are out"
    p = out[0, :2].sigmoid()
    assert torch.allclose(want.diagonal()[:32], (p * (1 - p)).flatten())
    noise = law.masked(law.noise(out.expand(draws, -1, -1, -1), gen(3)), y.expand(draws, -1, -1))
    noise = noise.flatten(1)
    for drawn in (score, noise):
        assert (drawn.mean(0).abs() < 0.08).all()
        have = drawn.T @ drawn / draws
        assert ((have - want).abs() < 0.15).all()
        # Where nothing may be drawn the zeros are exact.
        assert (have.diagonal()[want.diagonal() == 0] == 0).all()


def test_masked_keeps_classes_and_the_edges_of_boxes():
    out, y = scene_and_outputs()
    on = to_cells(y, 2, (4, 4))[:, 1:2] > 0
    kept = BoxLikelihood().masked(out, y)
    assert torch.equal(kept[:, :2], out[:, :2])
    assert torch.equal(kept[:, 2:] != 0, on.expand(-1, 4, -1, -1)) and on.sum() == 4
    rows = BoxLikelihood().masked(torch.ones(3, *out.shape), y)
    assert torch.equal(rows[1] != 0, kept != 0)


def test_gradients_stay_finite_where_a_detector_is_certain():
    out = torch.full((1, 6, 4, 4), -200.0, requires_grad=True)
    law = BoxLikelihood()
    value = law.log_prob(out, scene_and_outputs()[1]).sum() + law.noise(out, gen()).sum()
    assert torch.autograd.grad(value, out)[0].isfinite().all()


class TinyDetector(torch.nn.Module):
    """A few weights between pixels and the cells of two classes."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layer = torch.nn.Conv2d(3, 6, 8, stride=8)

    def forward(self, x):
        return self.layer(x)


def test_all_routes_to_the_trace_of_the_fisher_agree():
    """Also by hand: of one linear layer the trace is the sum over cells of
    E |score|^2 times (|patch|^2 + 1)."""
    g = gen(4)
    x = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=g)
    y = boxes((1, 2, 2, 18, 20), (-1, 0, 0, 0, 0)).repeat(3, 1, 1)
    y[1:, 0, 0] = 0
    scenes, model = detection.Scenes(x, y, ("a", "b")), TinyDetector()
    law = BoxLikelihood(0.5)
    exact = fisher_trace(model, scenes, route="exact", likelihood=law).value
    out = model(scenes.inputs()).detach()
    deviations = law.masked(law._deviations(out), y).square().sum(1).flatten(1)  # (n, cells)
    patches = F.unfold(scenes.inputs(), 8, stride=8).square().sum(1) + 1
    # Scores of two cells are independent, so their products vanish.
    assert exact == pytest.approx((deviations * patches).sum(1).mean().item(), rel=1e-4)
    for route in ("gaussian", "bartlett"):
        found = fisher_trace(
            model, scenes, route=route, draws=400, likelihood=law, generator=gen(5)
        )
        assert abs(found.value - exact) < 5 * found.error
        assert found.error < 0.1 * exact


@pytest.mark.parametrize(
    "make, part",
    [
        (lambda: BoxLikelihood(0), "scale must be a finite number above 0"),
        (lambda: BoxLikelihood(1, "cauchy"), "density must be one of"),
        (lambda: BoxLikelihood().check(torch.zeros(2, 3), boxes()), "what its cells say"),
        (
            lambda: BoxLikelihood().check(torch.zeros(1, 6, 4, 4), torch.zeros(1, 4)),
            r"boxes of shape \(n, m, 5\)",
        ),
        (
            lambda: BoxLikelihood().check(torch.zeros(1, 6, 4, 4), boxes((3, 0, 0, 9, 9))),
            "classes up to 3, but the model knows 2",
        ),
    ],
)
def test_what_is_no_likelihood_of_boxes_is_refused(make, part):
    with pytest.raises(ValueError, match=part) as e:
        make()
    message(e)


def test_half_precision_rounds_no_box():
    y = boxes((1, 17.3, 9.1, 61.7, 50.9))[None]
    out = torch.zeros(1, 6, 8, 8)
    law = BoxLikelihood()
    assert law.cells(out.bfloat16(), y).nan_to_num(9).equal(law.cells(out, y).nan_to_num(9))
    assert law.log_prob(out.bfloat16(), y).item() == law.log_prob(out, y).item()
