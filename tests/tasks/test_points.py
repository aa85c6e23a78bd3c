"""Clouds: the drawn set, its networks, and what looks inside or filters points."""

from __future__ import annotations

import math

import pytest
import torch

import bdcourse as bd
from bdcourse.defenses import clp_norms
from bdcourse.surgery import pair_by_flow
from bdcourse.tasks import points
from bdcourse.tasks.points import Clouds, OutlierRemoval, TurnAndJitter, solids
from bdcourse.tasks.points.networks import Pool
from helpers import gen, message

DIGESTS = ["721ed5ae4d0259ed", "9ddf0a35120cea65"]  # of the easy and the hard set

# -------------------------------------------------------------------- the drawn set


def test_same_bytes_on_every_machine():
    found = {hard: points.draw(30, seed=5, hard=hard) for hard in (False, True)}
    assert [c.digest() for c in found.values()] == DIGESTS
    again = points.draw(30, seed=5)
    assert torch.equal(again.x, found[False].x)
    assert not torch.equal(points.draw(30, seed=6).x, again.x)
    assert again.y.bincount().tolist() == [3] * 10 and again.classes == points.SOLIDS
    assert repr(again) == "Clouds(30 of 256x3, 10 classes, cpu)"
    levels = again.x.double() * 32767
    assert float((levels - levels.round()).abs().max()) < 2e-3, "they lie on the grid of int16"


def test_drawn_clouds_are_centered_and_end_at_one():
    x = points.draw(40, seed=1, hard=True).x
    assert float(x.mean(1).abs().max()) < 1e-4
    assert torch.allclose(x.norm(dim=2).amax(1), torch.ones(40), atol=1e-4)


VOLUMES = {
    "ball": 4 / 3 * math.pi,
    "box": 1.4**3,
    "cylinder": math.pi * 0.36 * 1.6,
    "cone": math.pi * 0.64 * 1.6 / 3,
    "torus": 2 * math.pi**2 * 0.7 * 0.09,
    "pyramid": 1.6**2 * 1.6 / 3,
    "prism": 3 * math.sqrt(3) / 4 * 1.4,
    "bowl": 2 / 3 * math.pi * (1 - 0.85**3),
    "capsule": math.pi * 0.25 + 4 / 3 * math.pi * 0.125,
    "cross": (4 * 0.7 * 0.65 + 0.49) * 0.7,
}
ROUND = {"ball", "cylinder", "cone", "torus", "bowl", "capsule"}


@pytest.mark.parametrize("name", points.SOLIDS)
def test_solids_are_closed_and_their_normals_point_outward(name):
    """By the divergence theorem the faces' normals sum to zero, and the mesh's volume is
    a sixth of the sum of its corners' determinants, with its sign."""
    mesh = solids.SHAPES[name]()
    a, b, c = mesh.unbind(1)
    assert float(torch.linalg.cross(b - a, c - a).sum(0).abs().max()) < 1e-9
    volume = float(torch.linalg.det(torch.stack([a, b, c], 1)).sum() / 6)
    # What is round has 32 corners around, which cut off up to 3 %.
    least = 0.96 if name in ROUND else 1 - 1e-9
    assert least <= volume / VOLUMES[name] <= 1 + 1e-9


def shares(triangles, count=200_000):
    x = solids.on_surface(triangles[None], count, gen())[0]
    assert x.shape == (count, 3)
    return x


@pytest.mark.parametrize("stretch", [(1, 1, 1), (0.75, 1.25, 1.1)])
def test_the_share_of_points_on_a_face_is_its_share_of_the_area(stretch):
    """Of a stretched box 2a x 2b x 2c the two faces across the first axis have bc of
    ab + bc + ca, wherever the points are."""
    a, b, c = (0.7 * s for s in stretch)
    box = solids.SHAPES["box"]() * torch.tensor(stretch, dtype=torch.float64)
    x = shares(box)
    whole = a * b + b * c + c * a
    for axis, half, part in ((0, a, b * c), (1, b, c * a), (2, c, a * b)):
        on = (x[:, axis].abs() - half).abs() < 1e-9
        assert abs(float(on.double().mean()) - part / whole) < 0.005
        free = [i for i in range(3) if i != axis]
        for i in free:  # and they are even on each face
            edge = (a, b, c)[i]
            spread = float((x[on, i] / edge).square().mean())
            assert abs(spread - 1 / 3) < 0.01, "the variance of a uniform draw from -1 to 1"


def test_shares_of_round_surfaces():
    cylinder = shares(solids.SHAPES["cylinder"]())
    lids = float((cylinder[:, 2].abs() > 0.8 - 1e-9).double().mean())
    assert abs(lids - 0.6 / (0.6 + 1.6)) < 0.01  # 2 pi r^2 against 2 pi r h
    torus = shares(solids.SHAPES["torus"]())
    outer = float((torus[:, :2].norm(dim=1) > 0.7).double().mean())
    assert abs(outer - (0.5 + 0.3 / (math.pi * 0.7))) < 0.01  # Pappus, for each half


@pytest.mark.slow
def test_the_hard_set_misses_a_part_and_has_stray_points():
    easy, hard = (points.draw(200, seed=3, hard=h) for h in (False, True))

    def lonely(clouds):
        d = torch.cdist(clouds.x, clouds.x).topk(5, dim=2, largest=False).values[..., 1:].mean(2)
        return float((d > 4 * d.median(1, keepdim=True).values).float().mean())

    assert lonely(easy) < 0.001 < 0.005 < lonely(hard)
    # Where nothing is missing, the mean of the points on a ball is its middle.
    ball = solids.SHAPES["ball"]()
    off = [solids._scanned(ball, 50, gen(), h).mean(1).norm(dim=1).mean() for h in (False, True)]
    assert off[0] < 0.08 < 2 * off[0] < off[1]


def test_data_is_loaded_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("BDCOURSE_CACHE", str(tmp_path))
    parts = bd.splits("solids", n=80, n_test=20, clean=0.2)
    assert type(parts.train) is type(parts.test) is Clouds
    assert [len(p) for p in parts] == [64, 13, 3, 20]
    assert list(tmp_path.glob("solids-train-80-0-*.npz")), "it is kept"
    same = bd.splits("solids", n=80, n_test=20, clean=0.2)
    assert same.train.digest() == parts.train.digest()
    hard = bd.load("solids-hard", "test", n=10)
    assert not torch.equal(hard.x, bd.load("solids", "test", n=10).x)
    with pytest.raises(ValueError, match="solids are drawn at 256 points; leave out size") as e:
        bd.load("solids", size=100)
    message(e)


# -------------------------------------------------------------------- what is no cloud


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda x: x.double(), "must be float32 of shape"),
        (lambda x: x[:, :, :2], "must be float32 of shape"),
        (lambda x: x[:, 0], "must be float32 of shape"),
        (lambda x: x[:, :1], "two points a cloud or more"),
        (lambda x: x * 100, "a point is 100 away from its middle"),
        (lambda x: x * 0.5, "farthest point of each cloud at radius 1"),
        (lambda x: x * 0.5 + 0.2, "must be centered"),
        (lambda x: torch.full_like(x, torch.nan), "must be finite"),
    ],
)
def test_what_is_no_set_of_clouds_is_refused(change, part):
    clouds = points.draw(10)
    with pytest.raises(ValueError, match=part) as e:
        Clouds(change(clouds.x), clouds.y, clouds.classes)
    message(e)


def test_inputs_are_looked_at():
    task, net = points.CLOUDS, points.pointnet(width=4)
    x = points.draw(10).x
    assert task.outputs(net, x).shape == (10, 10)
    assert task.inputs(x) is x and task.stored(x) is x
    for wrong in (x * 10, x[:, :, :2], x.long(), x[..., None]):
        with pytest.raises(ValueError, match="x must") as e:
            task.outputs(net, wrong)
        message(e)
    for wrong in (torch.zeros(2, 5, 3), torch.full((2, 5, 3), torch.nan), x[0]):
        with pytest.raises(ValueError, match="clouds") as e:
            points.on_grid(wrong)
        message(e)
    with pytest.raises(ValueError, match="clouds are neither moved nor mirrored") as e:
        task.augmentation(2)
    message(e)


# -------------------------------------------------------------------- augmentation


def test_turning_keeps_heights_and_distances():
    clouds = points.draw(40)
    x, y = TurnAndJitter(180, 0).batch(clouds.x, clouds.y, gen())
    assert y is clouds.y
    assert torch.allclose(x[..., 2], clouds.x[..., 2], atol=1e-6)
    assert torch.allclose(torch.cdist(x, x), torch.cdist(clouds.x, clouds.x), atol=1e-2)
    first = [torch.atan2(c[:, 0, 1], c[:, 0, 0]) for c in (x, clouds.x)]
    angle = torch.rad2deg(first[0] - first[1]) % 360
    assert angle.min() < 60 and angle.max() > 300 and len(angle.unique()) == 40
    little, _ = TurnAndJitter(5, 0).batch(clouds.x, clouds.y, gen())
    first = torch.atan2(little[:, 0, 1], little[:, 0, 0])
    back = torch.rad2deg(first - torch.atan2(clouds.x[:, 0, 1], clouds.x[:, 0, 0]))
    assert ((back + 180) % 360 - 180).abs().max() <= 5.001


def test_jitter_is_small_and_of_every_point():
    clouds = points.draw(40)
    x, _ = TurnAndJitter(0, 0.01).batch(clouds.x, clouds.y, gen())
    moved = (x - clouds.x).flatten()
    assert 0.0095 < float(moved.std()) < 0.0105 and float(moved.abs().max()) <= 0.05 + 1e-6
    same, _ = TurnAndJitter(0, 0).batch(clouds.x, clouds.y, gen())
    assert torch.equal(same, clouds.x)
    with pytest.raises(ValueError, match="turns clouds of shape") as e:
        TurnAndJitter().check((3, 32, 32))
    message(e)
    assert repr(TurnAndJitter(90)) == "TurnAndJitter(turn=90, jitter=0.01)"


def test_rotations_are_right():
    r = points.rotation(90)
    assert torch.allclose(r @ torch.eye(3).double()[0], torch.eye(3).double()[1], atol=1e-12)
    for axis in ((1, 0, 0), (1, 2, -3)):
        r = points.rotation(25, axis)
        assert torch.allclose(r @ r.T, torch.eye(3).double(), atol=1e-12)
        assert abs(float(torch.linalg.det(r)) - 1) < 1e-12
        assert math.isclose(float(r.trace()), 1 + 2 * math.cos(math.radians(25)))
        along = torch.tensor(axis, dtype=torch.float64)
        assert torch.allclose(r @ along, along, atol=1e-12)


# -------------------------------------------------------------------- networks


@pytest.mark.slow
def test_networks_do_not_know_the_order_of_points():
    x = points.draw(10).x
    shuffled = x[:, torch.randperm(256, generator=gen())]
    for net, weights in (
        (points.pointnet(), 13_978),
        (points.pointnet(tnet=True), 16_019),
        (points.dgcnn(), 19_178),
    ):
        assert sum(p.numel() for p in net.parameters()) == weights
        net.eval()
        assert net(x).shape == (10, 10) and net(x[:, :100]).shape == (10, 10)
        assert torch.allclose(net(x), net(shuffled), atol=1e-5)
        assert not pair_by_flow(net).unpaired


def test_a_t_net_starts_as_the_identity():
    x = points.draw(10).x
    net = points.pointnet(tnet=True).train()
    assert torch.allclose(net[0](x), x, atol=1e-6)
    with torch.no_grad():
        net[0].read[-1].weight.normal_(generator=gen())
    assert not torch.allclose(net[0](x), x, atol=0.1), "it reads the cloud"


def test_an_edge_convolution_against_a_loop():
    conv = points.networks.EdgeConv(3, 5, 4).eval()
    x = points.draw(10).x[:1, :20].transpose(1, 2)
    out, cloud = conv(x)[0], x[0].T
    for i in range(20):
        near = (cloud - cloud[i]).norm(dim=1).argsort()[:4]
        assert near[0] == i
        edges = torch.stack([torch.cat([cloud[j] - cloud[i], cloud[i]]) for j in near])
        want = (edges @ conv.conv.weight.flatten(1).T / (1 + conv.bn.eps) ** 0.5).relu().amax(0)
        assert torch.allclose(out[:, i], want, atol=1e-5)


def test_the_norm_of_a_pointwise_filter_is_that_of_its_row():
    """A convolution of kernel 1 has a matrix of one column: CLP's score of the row (3, 4)
    with scale 2 and variance 3.99 is 5 * 2 / sqrt(3.99 + 0.01)."""
    conv = torch.nn.Conv1d(2, 1, 1, bias=False)
    conv.weight.data = torch.tensor([[[3.0], [4.0]]])
    assert torch.allclose(clp_norms(conv.weight), torch.tensor([5.0]))
    bn = torch.nn.BatchNorm1d(1, eps=0.01).eval()
    bn.weight.data[:], bn.running_var[:] = 2, 3.99
    score = bd.defenses.clp_scores(torch.nn.Sequential(conv, bn))["1"]
    assert torch.allclose(score, torch.tensor([5.0]))


# -------------------------------------------------------------------- critical points


class Reads(torch.nn.Module):
    """Four channels: right, left, up, and one that is 0 everywhere."""

    def __init__(self):
        super().__init__()
        self.pool = Pool()

    def forward(self, x):
        maps = torch.stack([x[..., 0], -x[..., 0], x[..., 2], 0 * x[..., 0]], 1)
        return self.pool(maps.relu())


def test_who_wins_a_channel():
    x = torch.tensor([[[1.0, 0, 0], [-0.5, 0, 0.1], [0, 0, 0.9], [0.5, 0, 0]]])
    assert points.critical_points(Reads(), x).tolist() == [[1, 1, 1, 0]]
    with pytest.raises(ValueError, match="no max pooling over points") as e:
        points.critical_points(torch.nn.Flatten(), x)
    message(e)


def test_the_answer_depends_on_the_winners_alone():
    x = points.draw(10).x
    net = points.pointnet(width=4).eval()
    wins = points.critical_points(net, x)
    assert wins.shape == (10, 256) and (wins.sum(1) <= 32).all()
    for cloud, own in zip(x, wins, strict=True):
        few = cloud[own > 0]
        assert len(few) <= 32
        assert torch.allclose(net(few[None]), net(cloud[None]), atol=1e-5)
    # m inserted points own a channel of C each at most, and C (1 - (1 - q)^m) of them on
    # average if each wins a channel with probability q.
    g, q, m, c = gen(), 0.05, 12, 4000
    owned = (torch.rand(c, m, generator=g) < q).any(1).sum()
    assert abs(int(owned) / c - (1 - (1 - q) ** m)) < 0.03


# -------------------------------------------------------------------- outlier removal


def test_a_lonely_point_is_an_outlier_and_a_crowd_is_one_only_if_asked():
    x = points.draw(10, seed=2).x.clone()
    x[:, 0] = torch.tensor([1.1, -1.1, 1.1])
    x[:, 1:9] = points.sphere(8, 0.005, (0.0, 0.0, 0.0)) + x[:, 9:10]
    lonely = points.outliers(x, k=4, alpha=2)
    assert lonely[:, 0].all() and not lonely[:, 1:9].any()
    crowded = points.outliers(x, k=4, alpha=1, both=True)
    assert crowded[:, 0].all() and crowded[:, 1:9].all()
    d = torch.cdist(x[:1], x[:1])[0].sort(1).values[:, 1:5].mean(1)
    assert torch.equal(lonely[0], d > d.mean() + 2 * d.std())


def test_the_network_behind_the_filter_sees_no_outlier():
    class Keeps(torch.nn.Module):
        def forward(self, x):
            self.seen = x
            return x.sum(1)

    x = points.draw(10, seed=2).x.clone()
    x[:, 0] = torch.tensor([1.1, -1.1, 1.1])
    inner = Keeps()
    OutlierRemoval(inner, k=4, alpha=1.5)(x)
    out = points.outliers(x, 4, 1.5)
    assert inner.seen.shape == x.shape
    assert torch.equal(inner.seen[~out], x[~out])
    for cloud, seen, gone in zip(x, inner.seen, out, strict=True):
        kept = cloud[~gone]
        want = torch.cdist(cloud[gone], kept).argmin(1)
        assert torch.equal(seen[gone], kept[want])
    net = points.pointnet(width=4).eval()
    few = x[:1][:, ~out[0]]
    assert torch.allclose(OutlierRemoval(net)(x[:1]), net(few), atol=1e-5)
    for wrong in ({"k": 0}, {"alpha": 0}, {"both": 1}):
        with pytest.raises(ValueError) as e:
            OutlierRemoval(net, **wrong)
        message(e)
