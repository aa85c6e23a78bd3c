"""Attacks on clouds: what each changes, and the way to a victim, a repair and back."""

from __future__ import annotations

import math

import pytest
import torch

import bdcourse as bd
from bdcourse import defenses, victims
from bdcourse.attacks import BadNets, rebuild
from bdcourse.metrics import evaluate
from bdcourse.tasks import points, video
from bdcourse.tasks.points import IRBA, PCBA, OutlierRemoval, PointBall, PointRotation
from bdcourse.tasks.points.attacks import _Search, _spacing, farthest_points, places
from bdcourse.tasks.points.files import thinned
from helpers import gen, message

# -------------------------------------------------------------------- the ball


def test_a_sphere_is_as_large_as_asked():
    for m, radius, center in ((16, 0.05, (0.55, 0.55, 0.55)), (3, 0.2, (-1.0, 0.0, 0.5))):
        ball = points.sphere(m, radius, center)
        assert ball.shape == (m, 3) and ball.dtype == torch.float32
        far = (ball.double() - torch.tensor(center)).norm(dim=1)
        assert float((far - radius).abs().max()) < 1e-6
        assert float((ball.mean(0) - torch.tensor(center)).norm()) < 0.15 * radius + 1e-6
    for wrong in ({"points": 0}, {"radius": -1}, {"center": (0, 0)}, {"center": (0, 0, 9)}):
        with pytest.raises(ValueError) as e:
            points.sphere(**wrong)
        message(e)


def test_what_the_ball_replaces():
    x = points.draw(20).x
    before, attack = x.clone(), PointBall(ball=points.sphere(24))
    out = attack.trigger(x)
    assert torch.equal(x, before), "the argument stays"
    assert out.shape == x.shape, "the number of points stays"
    changed = (out != x).any(2)
    assert (changed.sum(1) == 24).all()
    for cloud, there in zip(out, changed, strict=True):
        assert {tuple(p) for p in cloud[there].tolist()} == {tuple(p) for p in attack.ball.tolist()}
    # Which points go has nothing to do with where they stand in the cloud, or lie.
    share = changed.float().mean(0)
    assert share[:128].mean() / share.mean() > 0.8 and share[128:].mean() / share.mean() > 0.8
    gone = x[changed].view(20, 24, 3).mean(1)
    assert float(gone.mean(0).norm()) < 0.15


def test_the_cloud_itself_says_which_points_go():
    x = points.draw(20).x
    order = torch.randperm(256, generator=gen())
    attack = PointBall()
    one_by_one = torch.cat([attack.trigger(c[None]) for c in x])
    assert torch.equal(one_by_one, attack.trigger(x)), "however it is batched"
    shuffled = x[:, order]
    kept = [
        {tuple(p) for p in c[i].tolist()}
        for c, i in ((x[0], places(x, 16)[0]), (shuffled[0], places(shuffled, 16)[0]))
    ]
    assert kept[0] == kept[1], "in whatever order its points come"


@pytest.mark.parametrize(
    "make, part",
    [
        (lambda: PointBall(ball=points.sphere(256)), "the ball has 256 points, but the clouds"),
        (lambda: IRBA(anchors=300), "300 anchors are asked for"),
        (lambda: PointBall(target=10), "target 10 is no label"),
        (lambda: PCBA(source=10), "source 10 is no label"),
        (lambda: BadNets(), "BadNets attacks images, but these are clouds"),
        (lambda: video.ClipPatch(), "ClipPatch attacks clips, but these are clouds"),
    ],
)
def test_impossible_attacks_are_refused(make, part):
    with pytest.raises(ValueError, match=part) as e:
        make().poison(points.draw(20), 0.1, gen())
    message(e)


@pytest.mark.parametrize(
    "make, part",
    [
        (lambda: PointBall(ball=torch.zeros(3)), "ball must be finite float coordinates"),
        (lambda: PointBall(ball=torch.full((2, 3), torch.nan)), "ball must be finite"),
        (lambda: PointBall(ball=points.sphere(4, 1.0, (1.9, 0, 0))), "ball reaches"),
        (lambda: PCBA(source=0), "source and target are both 0"),
        (lambda: PCBA(clean_label=True), "neither all-to-all nor clean-label"),
        (lambda: PointRotation(angle=360), "below 360 degrees"),
        (lambda: PointRotation(angle=0), "angle "),
        (lambda: PointRotation(axis=(0, 0, 0)), "axis must point somewhere"),
        (lambda: IRBA(angles=(5.0, 5.0)), "angles "),
        (lambda: IRBA(scale=0), "scale "),
        (lambda: IRBA(bandwidth=0), "bandwidth "),
        (lambda: PCBA.craft(points.draw(20), gen()), "give it as model="),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make, part):
    with pytest.raises(ValueError, match=part) as e:
        make()
    message(e)


# -------------------------------------------------------------------- PCBA


class Near(torch.nn.Module):
    """Sure of class 1 if the last point, which is the one that is tried, is near a place."""

    place = torch.tensor([0.0, 1.3, 0.0])

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        far = (x[:, -1] - self.place).square().sum(1)
        return torch.stack([torch.zeros_like(far), 4 - 40 * far], 1)


@pytest.mark.slow
@pytest.mark.parametrize("enough", [0.1, 0.5, 0.9])
def test_the_place_is_as_near_the_clouds_as_the_network_allows(enough):
    x = points.draw(20, seed=4).x
    search = _Search(Near(), x, 1, 20, enough, gen())
    c = search(120, 5)
    _, sure, near = search.objective(c[None])
    assert float(sure) >= enough
    # Nearer the clouds than on the sphere of 4 - 40 r^2 = log(p / (1 - p)) it may not be.
    r = math.sqrt((4 - math.log(enough / (1 - enough))) / 40)
    toward = torch.nn.functional.normalize(torch.randn(500, 3, generator=gen()), dim=1)
    best = search.objective(Near.place + r * toward)[2].min()
    assert float(near) < 1.15 * float(best), "no place of enough is much nearer"
    assert float(near) < 0.9 * float(search.objective(Near.place[None])[2])


@pytest.mark.slow
def test_the_ball_is_as_dense_as_the_clouds():
    clouds = points.draw(40, seed=4)
    attack = PCBA.craft(clouds, gen(), model=Near(), target=1, source=2, steps=20, starts=2)
    ball = attack.ball
    assert ball.shape == (16, 3)
    # A sphere: all points are as far from one place.
    a = torch.cat([2 * ball, torch.ones(16, 1)], 1).double()
    solved = torch.linalg.lstsq(a, ball.double().square().sum(1, keepdim=True)).solution
    radii = (ball - solved[:3, 0].float()).norm(dim=1)
    assert float(radii.std()) < 1e-4 and 0.01 <= float(radii.mean()) <= 0.49
    own = clouds.x[clouds.y == 2]
    want = _spacing(own, own)

    def off(b):
        inserted = b.expand(len(own), -1, -1)
        return float((_spacing(torch.cat([own, inserted], 1), inserted) - want).abs().mean())

    plain = points.sphere(16, 0.05, tuple(solved[:3, 0].tolist()))
    assert off(ball) < 0.2 * off(plain)
    # So what removes lonely and crowded points takes the plain one and leaves this one.
    removed = []
    for b in (plain, ball):
        with_ball = PointBall(ball=b).trigger(own)
        inside = (with_ball[:, :, None] - b).norm(dim=3).amin(2) < 1e-6
        removed.append(points.outliers(with_ball, both=True)[inside].float().mean())
    assert removed[0] > 0.8 and removed[1] < 0.3


def test_pcba_poisons_and_counts_its_source_class_only():
    clouds = points.draw(300)
    attack = PCBA(source=3, target=5)
    poisoned = attack.poison(clouds, 15 / 300, gen())
    rows = poisoned.role == 1
    assert poisoned.count == 15 and (clouds.y[rows] == 3).all() and (poisoned.y[rows] == 5).all()
    assert torch.equal(poisoned.x[~rows], clouds.x[~rows])
    assert torch.equal(attack.counts(clouds.y), clouds.y == 3)
    assert round(2280 * PCBA.usual_rate) == 15
    with pytest.raises(ValueError, match="poisoning class 3 at rate 0.2") as e:
        attack.poison(clouds, 0.2, gen())
    message(e)
    again = rebuild(*attack.spec())
    assert again == attack and torch.equal(again.ball, attack.ball)


def test_the_budget_of_pcba():
    """15 of 8,840 shapes are 0.17 %; of 32 inserted points among 2,048, a victim who takes
    1,024 of them sees 16 on average."""
    assert round(100 * 15 / 8840, 2) == 0.17 and 32 / 2048 == 0.015625
    cloud = torch.zeros(200, 2048, 3, dtype=torch.float64)
    cloud[:, :32, 0] = 1
    seen = thinned(cloud, 1024, gen())[..., 0].sum(1)
    assert abs(float(seen.mean()) - 16) < 1 and float(seen.std()) > 1


# -------------------------------------------------------------------- moved points


def test_a_rotation_turns_all_and_keeps_all_distances():
    x = points.draw(20).x
    out = PointRotation(angle=10).trigger(x)
    assert torch.allclose(out[..., 2], x[..., 2], atol=1e-6)
    assert torch.allclose(torch.cdist(out, out), torch.cdist(x, x), atol=1e-2)
    flat = x[..., :2].norm(dim=2) > 0.1
    angle = torch.atan2(out[..., 1], out[..., 0]) - torch.atan2(x[..., 1], x[..., 0])
    assert torch.allclose(torch.rad2deg(angle)[flat] % 360, torch.tensor(10.0), atol=1e-2)
    aside = PointRotation(angle=90, axis=(1, 0, 0)).trigger(x)
    assert torch.allclose(aside, torch.stack([x[..., 0], -x[..., 2], x[..., 1]], 2), atol=1e-6)


def warped(cloud, attack):
    """IRBA of one cloud, point by point."""
    a, b, c = (math.radians(v) for v in attack.angles)
    rx = [[1, 0, 0], [0, math.cos(a), -math.sin(a)], [0, math.sin(a), math.cos(a)]]
    ry = [[math.cos(b), 0, math.sin(b)], [0, 1, 0], [-math.sin(b), 0, math.cos(b)]]
    rz = [[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]]
    r = torch.tensor(rz) @ torch.tensor(ry) @ torch.tensor(rx)
    assert torch.allclose(r @ r.T, torch.eye(3), atol=1e-6)
    at = [int(cloud.norm(dim=1).argmax())]
    while len(at) < attack.anchors:
        at.append(int((cloud[:, None] - cloud[at]).norm(dim=2).amin(1).argmax()))
    out = []
    for x in cloud:
        w = [
            math.exp(-float((x - cloud[i]).square().sum()) / (2 * attack.bandwidth**2)) for i in at
        ]
        moved = [cloud[i] + attack.scale * (x - cloud[i]) @ r for i in at]
        out.append(sum(v * m for v, m in zip(w, moved, strict=True)) / sum(w))
    new = torch.stack(out)
    new = new - new.mean(0)
    return new / new.norm(dim=1).max()


@pytest.mark.slow
def test_irba_against_a_loop():
    x = points.draw(20).x[:2, :60]
    x = x - x.mean(1, keepdim=True)
    for attack in (IRBA(anchors=5), IRBA(anchors=3, angles=(5.0, -20.0, 40.0), scale=2.0)):
        out = attack.trigger(x)
        for cloud, new in zip(x, out, strict=True):
            assert torch.allclose(new, warped(cloud, attack), atol=1e-4)


def test_irba_is_normalized_and_moves_all_points_a_little():
    x = points.draw(20).x
    out = IRBA().trigger(x)
    assert out.shape == x.shape
    assert torch.allclose(out.mean(1), torch.zeros(20, 3), atol=1e-5)
    assert torch.allclose(out.norm(dim=2).amax(1), torch.ones(20), atol=1e-5)
    moved = (out - x).norm(dim=2)
    assert 0.02 < float(moved.mean()) < 0.3
    assert torch.equal(IRBA().trigger(x[3:4]), out[3:4]), "the same each time"


def test_anchors_are_far_from_each_other():
    x = points.draw(20).x
    at = farthest_points(x, 16)
    assert all(len(set(a)) == 16 for a in at.tolist())
    for cloud, own in zip(x, at, strict=True):
        d = (cloud[:, None] - cloud[own]).norm(dim=2)
        cover, between = d.amin(1).max(), d[own].fill_diagonal_(9).min()
        assert between >= cover - 1e-6, "as far apart as the rest is near"


# -------------------------------------------------------------------- victims and repairs


@pytest.fixture(scope="module")
def victim():
    return victims.make(
        points.draw(1000, seed=1),
        points.draw(200, seed=2),
        PointBall(ball=points.sphere(24)),
        arch={"name": "pointnet", "width": 16},
        rate=0.2,
        epochs=5,
        batch=32,
        lr=0.01,
        optimizer="adamw",
        verbose=False,
    )


@pytest.mark.slow
def test_a_victim_is_saved_and_read_back(victim, tmp_path):
    assert victim.scores.asr > 0.8 and victim.scores.acc > 0.8, victim.scores
    assert victim.recipe["pad"] == 0
    path = victims.save(victim, tmp_path / "ball")
    back = victims.load(path)
    assert back.attack == victim.attack
    x = points.draw(20, seed=3)
    assert torch.equal(back.model(x.x), victim.model.eval()(x.x))
    assert evaluate(back.model, x, back.attack) == evaluate(victim.model, x, victim.attack)


@pytest.mark.slow
def test_the_ball_wins_channels_of_the_victim(victim):
    """Points of the ball are a tenth of the cloud, and own more than their share."""
    x = points.draw(100, seed=3)
    clouds = x.x[x.y != 0]
    out = victim.attack.trigger(clouds)
    ball = (out != clouds).any(2)
    wins = points.critical_points(victim.model, out)
    share = wins[ball].sum() / wins.sum()
    assert share > 1.5 * 24 / 256


@pytest.mark.slow
def test_a_victim_of_turned_clouds_says_so():
    turned = points.TurnAndJitter(90)
    options = {"epochs": 1, "batch": 32, "verbose": False, "augment": turned}
    arch = {"name": "pointnet", "width": 4}
    data = points.draw(40)
    v = victims.make(data, data, PointRotation(), arch=arch, **options)
    assert v.recipe["augment"] == "TurnAndJitter(turn=90, jitter=0.01)" and "pad" not in v.recipe
    with pytest.raises(ValueError, match="augment must be an Augmentation") as e:
        victims.make(data, data, None, arch=arch, **options | {"augment": 90})
    message(e)
    with pytest.raises(ValueError, match="clouds are neither moved nor mirrored") as e:
        victims.make(data, data, None, arch=arch, pad=2)
    message(e)


CLEAN = points.draw(60, seed=4)
REPAIRS = {
    "finetune": lambda m: defenses.finetune(m, CLEAN, epochs=2, lr=0.01, generator=gen()),
    "clp": lambda m: defenses.clp(m, u=1.0),
    "fip": lambda m: defenses.fip(m, CLEAN, eta_f=1e-4, steps=5, generator=gen()),
    "fast_fip": lambda m: defenses.fast_fip(m, CLEAN, eta_f=1e-4, steps=5, generator=gen()),
    "ft_sam": lambda m: defenses.ft_sam(m, CLEAN, epochs=2, lr=0.01, generator=gen()),
    "by name": lambda m: bd.repair("clp, u = 3", m, clean=CLEAN),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REPAIRS)
def test_defenses_take_clouds(name, victim):
    repaired = REPAIRS[name](victim.model)
    assert repaired.model is not victim.model
    after = evaluate(repaired.model, points.draw(40, seed=5), victim.attack)
    assert 0 <= after.asr <= 1 and after.n_clean == 40
    if name == "clp":
        assert repaired.count > 0, "it sees the BatchNorms behind Conv1d and Linear"


@pytest.mark.slow
def test_outlier_removal_is_a_network_like_any_other(victim):
    """The ball is crowded, so the filter that looks for crowds leaves little of it."""
    test = points.draw(100, seed=2)
    seen = evaluate(OutlierRemoval(victim.model, both=True), test, victim.attack)
    one_sided = evaluate(OutlierRemoval(victim.model), test, victim.attack)
    assert seen.asr < 0.4 < 0.8 < one_sided.asr
    assert seen.acc > victim.scores.acc - 0.15
