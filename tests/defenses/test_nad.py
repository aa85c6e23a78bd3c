"""NAD: attention maps, their distance, the teacher, and the student's loss."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bdcourse.activations import outputs
from bdcourse.defenses import _base, finetune, nad
from bdcourse.defenses._base import Tuning
from bdcourse.defenses._nad import attention, attention_distance, distil, stages
from bdcourse.models import build
from bdcourse.seeds import fresh_seed
from bdcourse.train import Augment
from helpers import frozen, gen, message, random_images, randomize_norms, same_state


def network(name="resnet18", width=4, seed=1):
    torch.manual_seed(seed)
    return randomize_norms(build(name, classes=3, width=width), seed)


QUICK = {"teacher_epochs": 1, "epochs": 2, "batch": 8}


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_attention_by_hand(p):
    maps = torch.randn(3, 4, 2, 5, generator=gen())
    found = attention(maps, p)
    for i in range(3):
        row = [
            sum(abs(float(maps[i, c, y, x])) ** p for c in range(4))
            for y in range(2)
            for x in range(5)
        ]
        length = sum(v * v for v in row) ** 0.5
        assert found[i].tolist() == pytest.approx([v / length for v in row], rel=1e-5)


def test_attention_sees_neither_scale_nor_sign_nor_order_of_channels():
    maps = torch.randn(2, 5, 3, 3, generator=gen())
    other = maps[:, [4, 2, 0, 1, 3]] * torch.tensor([1, -1, 1, -1, 1]).view(1, 5, 1, 1)
    assert torch.allclose(attention(7 * other), attention(maps), atol=1e-6)
    assert torch.equal(attention(torch.zeros(1, 2, 3, 3)), torch.zeros(1, 9))
    turned = attention(maps.flip(3))
    assert not torch.allclose(turned, attention(maps), atol=0.1)


def test_distance_by_hand_and_its_largest_value():
    a, b = torch.randn(2, 3, 4, 2, 2, generator=gen())
    by_hand = 0.0
    for i in range(3):
        x, y = attention(a)[i], attention(b)[i]
        by_hand += float(((x - y) ** 2).sum()) / (3 * 4)
    assert attention_distance(a, b) == pytest.approx(by_hand, rel=1e-5)
    assert attention_distance(a, a) == 0
    assert attention_distance(a, b[:, :2]).isfinite(), "channels may differ"
    left, right = torch.zeros(2, 1, 1, 4, 4)
    left[0, 0, 0, 0] = right[0, 0, 3, 3] = 1
    assert attention_distance(left, right) == pytest.approx(2 / 16)


def test_stages():
    images = random_images(3, side=32)
    layers = [f"layer{i}" for i in (1, 2, 3, 4)]
    for name in ("resnet18", "preact_resnet18"):
        assert stages(network(name), images) == layers
    vgg = network("vgg16_bn")
    found = outputs(vgg, images.x[:1], stages(vgg, images))
    assert [m.shape[-1] for m in found.values()] == [32, 16, 8, 4, 2]
    assert all(isinstance(vgg.get_submodule(n), nn.ReLU) for n in found)
    mobile = network("mobilenet", 8)
    found = outputs(mobile, images.x[:1], stages(mobile, images))
    assert [m.shape[-1] for m in found.values()] == [32, 16, 8, 4]
    assert stages(network("vit", 16), images) == ["1.conv_proj"]


# ---------------------------------------------------------------- the student's loss


def test_the_loss_of_a_step_by_hand():
    images, betas = random_images(8, side=16), {"layer2": 300.0, "layer4": 70.0}
    student, teacher = network(), network(seed=2)
    x, y = images.pixels(), images.y
    maps = outputs(teacher, x, betas)
    twin, seen = network().train(), {}
    hooks = [
        twin.get_submodule(n).register_forward_hook(
            lambda _, __, out, n=n: seen.__setitem__(n, out)
        )
        for n in betas
    ]
    want = F.cross_entropy(twin(x), y)
    apart = {}
    for n in betas:
        a = seen[n].square().sum(1).flatten(1)
        b = maps[n].square().sum(1).flatten(1)
        a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
        apart[n] = F.mse_loss(a, b)
    want = want + sum(betas[n] * apart[n] for n in betas)
    (g,) = torch.autograd.grad(want, twin.layer2[0].conv1.weight)
    [h.remove() for h in hooks]

    before, start = frozen(teacher), student.layer2[0].conv1.weight.detach().clone()
    history = distil(
        student,
        teacher,
        images,
        betas,
        2,
        Tuning(epochs=1, lr=0.01, batch=8, momentum=0, weight_decay=0),
        gen(),
    )
    row = history.epochs[0]
    assert row["loss"] == pytest.approx(float(want.detach()), rel=1e-4)
    for n in betas:
        assert row[f"distance {n}"] == pytest.approx(float(apart[n].detach()), rel=1e-3)
    # One step at the full rate: the gradient of the whole loss.
    moved = (start - student.layer2[0].conv1.weight.detach()) / 0.01
    assert torch.allclose(moved, g, rtol=1e-2, atol=1e-4)
    assert same_state(teacher, before) and not teacher.training
    assert all(p.grad is None for p in teacher.parameters())
    for net in (student, teacher):
        assert not any(m._forward_hooks for m in net.modules()), "hooks are gone"


@pytest.mark.slow
def test_without_betas_it_is_plain_fine_tuning():
    images = random_images(24)
    p = nad(network(), images, betas=[0, 0], generator=gen(), **QUICK)
    g = gen()
    teacher, student = (fresh_seed(g) for _ in range(2))
    tuned = finetune(network(), images, epochs=2, batch=8, generator=gen(student))
    assert same_state(p.model, frozen(tuned.model))
    assert p.log["loss"] == pytest.approx(tuned.log["loss"])
    taught = finetune(network(), images, epochs=1, batch=8, generator=gen(teacher))
    assert p.log["teacher_loss"] == taught.log["loss"]


@pytest.mark.slow
def test_the_student_learns_to_look_where_the_teacher_looks():
    images = random_images(24, side=16)
    teacher = finetune(network(seed=5), images, epochs=3, lr=0.05, batch=8, generator=gen()).model
    ends = {}
    for beta in (0, 1000):
        p = nad(
            network(),
            images,
            betas=[beta],
            layers=["layer2"],
            teacher=teacher,
            epochs=8,
            lr=0.02,
            batch=8,
            generator=gen(),
        )
        ends[beta] = p.log["distances"]["layer2"]
        assert p.log["teacher_loss"] == [], "it was not fine-tuned"
    assert ends[1000][-1] < 0.5 * ends[1000][0]
    assert ends[1000][-1] < 0.5 * ends[0][-1]


# ---------------------------------------------------------------- the whole defense


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width", "side"),
    [("preact_resnet18", 4, 16), ("vgg16_bn", 4, 32), ("mobilenet", 8, 32)],
)
def test_every_network_with_maps_can_be_student(name, width, side):
    model = network(name, width)
    before, modes = frozen(model), [m.training for m in model.modules()]
    images = random_images(6, side=side)
    p = nad(model, images, teacher_epochs=1, epochs=1, batch=6, generator=gen())
    assert same_state(model, before) and not same_state(p.model, before)
    assert [m.training for m in model.modules()] == modes
    assert all(q.grad is None for q in model.parameters())
    assert not any(m._forward_hooks for m in p.model.modules())
    assert list(p.log["distances"]) == stages(model, images)[-3:]
    assert p.count == 0 and p.seconds > 0 and not p.model.training
    copy.deepcopy(p.model)


@pytest.mark.slow
def test_equal_seeds_give_equal_results():
    runs = [
        nad(
            network(),
            random_images(24, side=16),
            augment=Augment(1),
            generator=gen(s),
            **QUICK,
        )
        for s in (0, 0, 1)
    ]
    assert same_state(runs[0].model, frozen(runs[1].model))
    assert runs[0].log == runs[1].log
    assert not same_state(runs[0].model, frozen(runs[2].model))


@pytest.mark.slow
@pytest.mark.parametrize("when", ["teacher", "student"])
def test_stopped_and_started_again_it_ends_the_same(tmp_path, monkeypatch, when):
    images = random_images(24, side=16)
    options = {"teacher_epochs": 3, "epochs": 3, "batch": 8, "betas": [100, 100]}
    whole = nad(network(), images, generator=gen(), **options)
    path, seen, real = tmp_path / "nad", [], _base.fit

    def fit(*args, **settings):
        told = settings["each_epoch"] or (lambda _: {})

        def each_epoch(model):
            seen.append(1)
            if len(seen) == {"teacher": 2, "student": 5}[when]:
                raise KeyboardInterrupt
            return told(model)

        return real(*args, **(settings | {"each_epoch": each_epoch}))

    monkeypatch.setattr(_base, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        nad(network(), images, generator=gen(), checkpoint=path, **options)
    monkeypatch.setattr(_base, "fit", real)
    assert path.exists() == (when == "student")
    assert (tmp_path / "nad.fit").exists()
    if when == "student":
        for change in ({"betas": [100, 99]}, {"p": 1}, {"teacher_epochs": 4}):
            with pytest.raises(ValueError, match="belongs to other work") as e:
                nad(network(), images, generator=gen(), checkpoint=path, **(options | change))
            message(e)
    again = nad(network(), images, generator=gen(), checkpoint=path, **options)
    assert same_state(again.model, frozen(whole.model)) and again.log == whole.log
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"betas": []}, "betas must be"),
        ({"betas": [1, -1]}, "betas must be"),
        ({"p": 0.5}, "p at least 1"),
        ({"layers": ["layer1"]}, "each of its 3 betas, but there are 1"),
        ({"layers": ["layer1", "layer2", "linear"]}, "'linear' gives no feature maps"),
        ({"layers": ["layer1", "layer2", "layer9"]}, "no layer 'layer9'"),
        ({"betas": [1] * 5}, "there are 4"),
        ({"clean": random_images(1)}, "at least 2 images"),
        ({"teacher": "vgg"}, "no layer 'layer2'"),
        ({"model": "vit"}, "there are 1"),
    ],
)
def test_refusals(change, text):
    model, clean = network(), random_images(6, side=16)
    if "teacher" in change:
        change = {"teacher": nn.Sequential(nn.Flatten(), nn.Linear(768, 3))}
    if "model" in change:
        change, model, clean = {}, network("vit", 16), random_images(4, side=32)
    with pytest.raises(ValueError, match=text) as e:
        nad(model, change.pop("clean", clean), generator=gen(), **change)
    message(e)


def test_it_cannot_be_handed_the_trigger():
    text = str(inspect.signature(nad))
    assert not any(word in text for word in ("ttack", "oison", "trigger", "target"))
