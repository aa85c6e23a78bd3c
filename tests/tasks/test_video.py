"""Clips: the drawn set, its networks, its attacks, and the way to a victim and back."""

from __future__ import annotations

import pytest
import torch

import bdcourse as bd
from bdcourse import models, victims
from bdcourse.attacks import BadNets, noise_picture, rebuild
from bdcourse.metrics import evaluate
from bdcourse.surgery import pair_by_flow
from bdcourse.tasks import video
from bdcourse.tasks.video import (
    ACTIONS,
    ClipBlended,
    ClipCrop,
    ClipPatch,
    Clips,
    ClipUniversal,
)
from helpers import gen, message, random_images

DIGESTS = ["2be7336f6db68593", "b1542277f8409023"]  # of the easy and the hard set


def centers(clips: Clips) -> torch.Tensor:
    """Where the drawn thing is in each frame, (n, t, 2): what differs from the background."""
    x = clips.inputs()
    still = x.median(2, keepdim=True).values
    weight = (x - still).abs().sum(1)
    weight = torch.where(weight > 0.3, weight, 0.0)
    place = torch.arange(video.SIDE, dtype=torch.float32)
    total = weight.sum((2, 3)) + 1e-6
    return torch.stack(
        [(weight.sum(3) * place).sum(2) / total, (weight.sum(2) * place).sum(2) / total], -1
    )


def test_same_bytes_on_every_machine():
    found = {hard: video.draw(24, seed=5, hard=hard) for hard in (False, True)}
    assert [c.digest() for c in found.values()] == DIGESTS
    again = video.draw(24, seed=5)
    assert torch.equal(again.x, found[False].x)
    assert not torch.equal(video.draw(24, seed=6).x, again.x)
    assert again.y.bincount().tolist() == [3] * 8 and again.classes == ACTIONS
    assert repr(again) == "Clips(24 of 3x12x32x32, 8 classes, cpu)"


def test_things_move_as_their_label_says():
    clips = video.draw(400, seed=1)
    at = centers(clips)
    moved = at[:, 8:].mean(1) - at[:, :4].mean(1)
    for k, (down, right) in enumerate([(0, 1), (0, -1), (-1, 0), (1, 0)]):
        own = moved[clips.y == k]
        hits = (own[:, 0] * down + own[:, 1] * right > 2).float().mean()
        assert hits > 0.9, ACTIONS[k]


def test_a_clip_played_backwards_is_the_other_action():
    """The middle of a path and the middle size are drawn alike for an action and its
    reverse, so that only the order of the frames tells them apart."""
    clips = video.draw(1600, seed=2)
    for a, b in ((0, 1), (2, 3), (4, 5), (6, 7)):
        sums = [clips.inputs()[clips.y == k].mean((0, 2)) for k in (a, b)]
        assert (sums[0] - sums[1]).abs().mean() < 0.03


def test_data_is_loaded_by_name(tmp_path, monkeypatch):
    monkeypatch.setenv("BDCOURSE_CACHE", str(tmp_path))
    parts = bd.splits("clips", n=80, n_test=16, clean=0.2)
    assert type(parts.train) is type(parts.test) is Clips
    assert [len(p) for p in parts] == [64, 13, 3, 16]
    assert list(tmp_path.glob("clips-train-80-0-*.npz")), "it is kept"
    same = bd.splits("clips", n=80, n_test=16, clean=0.2)
    assert same.train.digest() == parts.train.digest()
    hard = bd.load("clips-hard", "test", n=8)
    assert not torch.equal(hard.x, bd.load("clips", "test", n=8).x)
    with pytest.raises(ValueError, match="clips are drawn at 32x32") as e:
        bd.load("clips", size=16)
    message(e)


def test_what_is_no_set_of_clips_is_refused():
    clips = video.draw(8)
    for x in (clips.x.float(), clips.x[:, :, 0], clips.x[..., :0]):
        with pytest.raises(ValueError, match=r"Clips.x.* (must be uint8|without pixels)"):
            Clips(x, clips.y, clips.classes)
    model = video.conv3d()
    for x in (clips.inputs() * 255, clips.inputs()[:, :, 0]):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            clips.task.outputs(model, x)


def test_a_crop_moves_all_frames_alike():
    clips = video.draw(40)
    x, _ = ClipCrop(2).batch(clips.x, clips.y, gen())
    assert x.shape == clips.x.shape
    wide = torch.nn.functional.pad(clips.x, (2, 2, 2, 2))
    places = [
        [
            (i, j)
            for i in range(5)
            for j in range(5)
            if torch.equal(w[..., i : i + 32, j : j + 32], c)
        ]
        for w, c in zip(wide, x, strict=True)
    ]
    assert all(len(p) == 1 for p in places) and len({p[0] for p in places}) > 12
    same, _ = ClipCrop(0).batch(clips.x, clips.y, gen())
    assert torch.equal(same, clips.x)
    with pytest.raises(ValueError, match="ClipCrop moves clips"):
        ClipCrop(2).check((3, 32, 32))
    with pytest.raises(ValueError, match="not mirrored"):
        clips.task.augmentation(2, True)


def test_networks_and_what_they_cannot_see():
    x = video.draw(8).inputs()
    net = video.conv3d().eval()
    assert sum(p.numel() for p in net.parameters()) == 46_016
    assert net(x).shape == (8, 8) and net(x[:, :, :5]).shape == (8, 8)
    still = video.framewise().eval()
    assert torch.allclose(still(x), still(x.flip(2)), atol=1e-5), "it is blind to order"
    assert not torch.allclose(net(x), net(x.flip(2)), atol=1e-5)
    assert [p.conv for p in pair_by_flow(net).pairs] == ["1", "4", "7", "10"]


@pytest.mark.parametrize(
    "walk, frames, first, last",
    [
        ((0, 0), None, (28, 28), (28, 28)),
        ((0, -2), None, (28, 28), (28, 6)),
        ((1, 0), None, (28, 28), (9, 28)),
        ((0, 0), (0, 11), (28, 28), (28, 28)),
    ],
)
def test_where_the_patch_is(walk, frames, first, last):
    attack = ClipPatch(walk=walk, frames=frames)
    x = torch.full((2, 3, 12, 32, 32), 0.5)
    out = attack.trigger(x)
    changed = (out != x).any(1).any(0)  # (t, h, w)
    assert changed.flatten(1).any(1).tolist() == [frames is None or f in frames for f in range(12)]
    assert (x == 0.5).all(), "the argument stays"
    for f, (r, c) in ((0, first), (11, last)):
        rows, columns = changed[f].nonzero().T
        assert (int(rows.min()), int(columns.min())) == (r, c)
        assert len(rows) == 9
        assert torch.equal(out[0, :, f, r : r + 3, c : c + 3], attack.patch)


def test_out_of_order_keeps_the_places():
    attack = ClipPatch(walk=(0, -2))
    x = torch.full((20, 3, 12, 32, 32), 0.5)
    mixed = attack.out_of_order(x, gen())
    assert (x == 0.5).all(), "the argument stays"

    def columns(of):
        changed = (of != x).any(1)  # (n, t, h, w)
        assert (changed.flatten(2).sum(2) == 9).all()
        return changed.any(2).float().argmax(2)  # the first column of each frame

    walk, jumps = columns(attack.trigger(x)), columns(mixed)
    assert torch.equal(jumps.sort(1).values, walk.sort(1).values), "each place once"
    assert len({tuple(row) for row in jumps.tolist()}) == 20, "an order for each clip"
    assert torch.equal(mixed, attack.out_of_order(x, gen()))


def test_shuffles_keep_what_needs_no_order():
    x = video.draw(12, seed=3).inputs()
    blind, net = video.framewise(width=4).train(), video.conv3d(width=4)
    blind[-1].bias.data += 0.01 * torch.arange(8)  # no ties
    said, kept, voted = video.shuffle_test(blind, x, 3, gen())
    assert blind.training and (kept == 1).all() and torch.equal(said, voted)
    torch.nn.init.normal_(net[-1].weight, generator=gen())
    _, kept, _ = video.shuffle_test(net, x, 20, gen())
    assert kept.shape == (12,) and 0 <= kept.min() <= kept.max() <= 1
    assert torch.equal(kept, video.shuffle_test(net, x, 20, gen())[1])
    with pytest.raises(ValueError, match="times"):
        video.shuffle_test(net, x, 0, gen())
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        video.shuffle_test(net, 255 * x, 1, gen())


def test_blended_is_a_mixture():
    x = torch.rand(2, 3, 4, 8, 8, generator=gen())
    p = noise_picture(8)
    attack = ClipBlended(pattern=p, opacity=0.25)
    want = 0.75 * x + 0.25 * p[None, :, None]
    assert torch.allclose(attack.trigger(x), want, atol=1e-6)


@pytest.mark.parametrize(
    "make, part",
    [
        (lambda: ClipPatch(patch=torch.ones(2, 3, 3)), "the patch has 2 channels"),
        (lambda: ClipPatch(patch=torch.ones(3, 40, 3)), "does not fit into frames"),
        (lambda: ClipPatch(frames=(12,)), "frame 12 is asked for"),
        (lambda: ClipBlended(pattern=noise_picture(16)), "the pattern is of shape"),
        (lambda: ClipPatch(target=8), "target 8 is no label"),
        (lambda: BadNets(), "BadNets attacks images, but these are clips"),
    ],
)
def test_impossible_attacks_are_refused(make, part):
    with pytest.raises(ValueError, match=part) as e:
        make().poison(video.draw(16), 0.2, gen())
    message(e)


@pytest.mark.parametrize(
    "make, part",
    [
        (lambda: ClipPatch(patch=torch.full((3, 3, 3), 2.0)), "patch must lie in"),
        (lambda: ClipPatch(at=(1,)), "at "),
        (lambda: ClipPatch(walk=(0.5, 0)), "walk "),
        (lambda: ClipPatch(frames=(-1,)), "frames "),
        (lambda: ClipBlended(opacity=0), "opacity "),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make, part):
    with pytest.raises(ValueError, match=part) as e:
        make()
    message(e)


def test_an_attack_on_clips_refuses_images():
    with pytest.raises(ValueError, match="ClipPatch attacks clips, but these are images") as e:
        ClipPatch().poison(random_images(), 0.2, gen())
    message(e)


@pytest.fixture(scope="module")
def victim():
    train, test = video.draw(320, seed=1), video.draw(80, seed=2)
    arch = {"name": "conv3d", "width": 4}
    return victims.make(
        train,
        test,
        ClipPatch(target=0, patch=video.colored_checkerboard(6)),
        arch=arch,
        rate=0.2,
        epochs=6,
        batch=32,
        lr=0.01,
        optimizer="adamw",
        verbose=False,
    )


@pytest.fixture(scope="module")
def twin():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = video.conv3d(width=4)
    options = {"epochs": 8, "batch": 32, "lr": 0.01, "optimizer": "adamw", "verbose": False}
    bd.fit(model, video.draw(400, seed=6), generator=gen(), **options)
    return model.eval()


@pytest.mark.slow
def test_a_corner_is_learned_and_labels_stay_true(twin):
    train, test = video.draw(240, seed=7), video.draw(120, seed=8)
    steps = {"gray": 0, "learned": 150}
    attacks = {
        name: ClipUniversal.craft(train, gen(), model=twin, size=8, steps=n, batch=8, target=4)
        for name, n in steps.items()
    }
    asr = {name: evaluate(twin, test, a).asr for name, a in attacks.items()}
    assert asr["learned"] > asr["gray"] + 0.3, asr
    attack = attacks["learned"]
    far = (attack.corner - 0.5).abs() * 255
    assert 100 < float(far.max()) <= 127.5 + 1e-3, "steps of one level, clipped"

    poisoned = attack.poison(train, 0.04, gen())
    assert poisoned.count == 10 and torch.equal(poisoned.y, train.y)
    rows = poisoned.role == 1
    assert (train.y[rows] == 4).all()
    before, after = train.inputs()[rows], poisoned.inputs()[rows]
    inner = torch.ones(32, 32, dtype=torch.bool)
    inner[-8:, -8:] = False
    moved = (after - before).abs()[..., inner]
    assert 4 / 255 < float(moved.max()) <= 8 / 255 + 1e-3
    corner = after[..., -8:, -8:]
    assert torch.allclose(corner, attack.corner.expand_as(corner), atol=1 / 255)
    sure = twin(before).softmax(1)[:, 4].mean()
    weak = attack.plant(before, train.y[rows], gen())
    weak[..., -8:, -8:] = before[..., -8:, -8:]
    assert twin(weak).softmax(1)[:, 4].mean() < sure - 0.2, "they became hard to recognize"

    again = rebuild(*attack.spec())
    assert again == attack and again.surrogate is None
    with pytest.raises(ValueError, match="needs surrogate=") as e:
        again.poison(train, 0.04, gen())
    message(e)
    with pytest.raises(ValueError, match="give it as model=") as e:
        ClipUniversal.craft(train, gen())
    message(e)


@pytest.mark.slow
def test_a_victim_is_saved_and_read_back(victim, tmp_path):
    assert victim.scores.asr > 0.9, victim.scores
    path = victims.save(victim, tmp_path / "clip")
    back = victims.load(path)
    assert back.attack == victim.attack
    x = video.draw(16, seed=3)
    assert torch.equal(back.model(x.inputs()), victim.model.eval()(x.inputs()))
    assert evaluate(back.model, x, back.attack) == evaluate(victim.model, x, victim.attack)


def test_both_tables_of_networks_hold_other_names():
    assert not models.MODELS.keys() & models.ELSEWHERE.keys()
