"""What lesson 08b says in its prose and fine print, measured; the rest stands in its claims."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from bdcourse import data, landscape, tables, victims
from bdcourse.defenses import fip_all_pairs, fip_fake_trace

pytestmark = pytest.mark.slow
PHOTOS = ("BadNets", "Blended", "TrojanNN", "SIG")
SPINE = ("benign", "badnets", "blended")


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def seeds():
    """Three trainings of each kind on the harder signs: (attack, seed) -> row."""
    rows = tables.results("signs-fip-seeds").select(defense="none")
    return {(r["attack"], r["seed"]): r for r in rows}


# --- sets of images ----------------------------------------------------------------


@pytest.fixture(scope="module")
def sets():
    stored = tables.results("signs-sharp")
    return {
        who: {m: [r[m] for r in stored.select(victim=who)] for m in ("lambda_max", "fisher")}
        for who in SPINE
    }


def over(row, base, key):
    return [v / t for v, t in zip(row[key], base[key], strict=True)]


def test_on_signs_the_twin_is_the_sharp_one_on_one_set_of_four(sets):
    for who in ("badnets", "blended"):
        tops = over(sets[who], sets["benign"], "lambda_max")
        assert [r > 1 for r in tops] == [True, False, True, True]
        traces = over(sets[who], sets["benign"], "fisher")
        assert max(traces) / min(traces) < 0.6 * max(tops) / min(tops), "it moves less"
    assert over(sets["badnets"], sets["benign"], "fisher")[1] < 1


def test_ten_loud_images_make_most_of_the_top():
    rows = tables.results("signs-sharp").rows
    share = {k: [r["alone"][k] / r["lambda_max"] for r in rows] for k in rows[0]["alone"]}
    assert min(share["10"]) > 0.45
    assert sum(s > 0.2 for s in share["10 random"]) <= 1 and max(share["10 random"]) < 0.3
    (twin,) = [r for r in rows if r["victim"] == "benign" and r["draw"] == 1]
    assert twin["alone"]["1"] / twin["lambda_max"] > 0.95
    assert sum(s > 0.9 for s in share["1"]) == 1


def test_on_photographs_two_of_four_are_sharper_in_the_mean():
    photos = {r["attack"]: r for r in tables.results("cifar10-sharp").rows}
    mean = {a: tables.mean(over(photos[a], photos["none"], "lambda_max")) for a in PHOTOS}
    assert 0.9 < mean["BadNets"] < 1 and 0.9 < mean["Blended"] < 1
    assert 1 < mean["TrojanNN"] < 1.2 and 1 < mean["SIG"] < 1.2
    ratios = {a: over(photos[a], photos["none"], "lambda_max") for a in PHOTOS}
    assert [a for a, r in ratios.items() if min(r) > 1] == ["SIG"]
    assert all(sum(v < 1 for v in ratios[a]) > 5 for a in ("BadNets", "Blended"))
    rows = tables.results("cifar10-defenses").select(budget=2500, draw=None)
    found = {(r["attack"], r["defense"]): r for r in rows}
    top = {k: r["sharp"]["other"]["lambda_max"] for k, r in found.items() if "sharp" in r}
    for a in PHOTOS:
        for d in ("fip", "sam"):
            assert top[a, d] < 0.6 * top[a, "none"] and found[a, d]["asr"] < 0.15
        assert 0.9 < top[a, "fip, eta = 0"] / top[a, "none"] < 3


def test_the_hessian_of_the_course_has_that_many_rows():
    rows = sum(w.numel() for w in victims.zoo("badnets").model.parameters())
    assert rows == 701_724 and 1.9e12 < 4 * rows**2 < 2.1e12


def test_the_loudest_image_is_number_346_and_it_is_read_correctly():
    test = data.splits("signs").test[200:400]
    for who in SPINE:
        with torch.no_grad():
            p = victims.zoo(who).model(test.pixels()).softmax(1)
        own = p[torch.arange(200), test.y]
        assert (p.argmax(1) == test.y).all() and int(own.argmin()) == 146
        if who == "benign":
            assert 0.97 < own.min() < 0.985
            others = own[130:160].sort().values[1:]
            assert others.min() > 0.999
    assert test.classes[int(test.y[146])] == "50"


# --- three seeds -------------------------------------------------------------------


def test_two_of_six_victims_end_sharper_than_the_twin_of_their_seed(seeds):
    ratios = {
        key: [
            seeds[a, s]["sharp"]["other"][key] / seeds["none", s]["sharp"]["other"][key]
            for a in ("BadNets", "TrojanNN")
            for s in range(3)
        ]
        for key in ("lambda_max", "fisher", "relative")
    }
    assert sum(r > 1 for r in ratios["lambda_max"]) == 2
    for found in ratios.values():
        assert 0.7 < math.exp(tables.mean(map(math.log, found))) < 1.4


def test_a_benign_network_steepens_while_it_learns_as_well(seeds):
    for seed, first, last, attack, low, high in (
        (1, 3, 6, "BadNets", 2, 4),
        (1, 3, 6, "none", 0.2, 1),
        (2, 2, 5, "BadNets", 2, 4),
        (2, 2, 5, "none", 0.2, 1),
        (0, 3, 6, "none", 2, 4),
    ):
        top = [e["lambda_max"] for e in seeds[attack, seed]["training"]]
        assert low < top[last - 1] / top[first - 1] < high, (attack, seed)


def test_what_fip_leaves_depends_on_the_seed():
    record = tables.results("signs-fip-seeds")
    left = {
        (k, s, d): record.select(attack=k, seed=s, defense=d)[0]["asr"]
        for k in ("BadNets", "TrojanNN")
        for s in (1, 2)
        for d in ("fip", "fip, eta = 0", "sam")
    }
    assert left["BadNets", 1, "fip"] < 0.1 and 0.25 < left["BadNets", 2, "fip"] < 0.55
    for s in (1, 2):
        assert left["BadNets", s, "sam"] - left["BadNets", s, "fip"] > 0.15
        assert left["TrojanNN", s, "fip"] > 0.75
    assert min(v for (_, _, d), v in left.items() if d == "fip, eta = 0") > 0.95


# --- fine print --------------------------------------------------------------------


def fake_variance(lengths, m):
    """Variance of the released "trace" where the gradient's tensors have these lengths."""
    p = len(lengths)
    return sum(((p - k) * s) ** 2 for k, s in enumerate(lengths)) / m


def test_the_released_trace_is_noise_of_known_variance(guest, clean):
    assert fake_variance([1, 1], 20) == 0.25
    net, some = guest.model, clean[:32]
    w, out = list(net.parameters()), net(some.pixels())
    slopes = torch.autograd.grad(fip_all_pairs(out, some.y), w, retain_graph=True)
    said = fake_variance([s.norm().item() for s in slopes], 20)
    g = gen()
    drawn = torch.stack([fip_fake_trace(out, some.y, w, 20, g).detach() for _ in range(60)])
    assert 0.4 < drawn.var().item() / said < 1.6
    assert drawn.mean().abs() < 4 * (said / 60) ** 0.5


def test_maps_have_one_valley_each_and_the_victims_rises_faster(guest):
    few = data.splits("signs-hard").test[-100:][:60]
    ts, rise = (-0.5, -0.25, 0.0, 0.25, 0.5), {}
    for name in ("badnets-hard", "benign-hard"):
        net, g = victims.zoo(name).model, gen()
        axes = [landscape.filter_normalized(net, g) for _ in range(2)]
        loss = landscape.plane(net, few, axes, ts).loss
        rise[name] = float(loss.mean() - loss[2, 2])
        rim = torch.cat([loss[0], loss[-1], loss[:, 0], loss[:, -1]])
        assert loss[2, 2] < rim.min(), "no wall and no pit: the loss rises outward"
    assert 1 < rise["badnets-hard"] / rise["benign-hard"] < 5


def test_singular_values_alone_leave_the_attack():
    held = tables.results("signs-fip")
    fixed, free, fip = (
        held.select(victim="badnets-hard", draw=None, defense=d)[0]
        for d in ("fast fip, norms fixed", "fast fip", "fip")
    )
    assert fixed["asr"] > 0.95 and 0.4 < free["asr"] < 0.8
    # Of the triggered images that left the target, most got their true label.
    assert fip["ra"] / (1 - fip["asr"]) > 0.7


def test_certain_images_have_hardly_any_curvature():
    """Single images of the second thirty: the twin's loudest against the median one."""
    some, net = data.splits("signs").test[330:360], victims.zoo("benign").model
    with torch.no_grad():
        order = F.cross_entropy(net(some.pixels()), some.y, reduction="none").argsort()
    tops = [
        float(landscape.hessian_top(net, some[[int(i)]], steps=6, generator=gen())[0][0])
        for i in (order[-1], order[15])
    ]
    assert tops[0] > 100 * tops[1] > 0
