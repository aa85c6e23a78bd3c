"""What the sliders and menus draw, and when; the browser test moves a real one."""

import pytest
import torch

from bdcourse import data, metrics, surgery, victims
from bdcourse.teach import widgets
from bdcourse.teach.switchboard import switches


@pytest.fixture
def shown(monkeypatch):
    found = []
    monkeypatch.setattr("IPython.display.display", found.append)
    return found


def test_a_slider_draws_all_before_and_then_swaps(shown):
    drawn = []
    box = widgets.slider("u", [1, 2, 3], lambda v: drawn.append(v) or f"at {v}", 2)
    assert drawn == [1, 2, 3] and shown == ["at 2"]
    box.children[0].value = 3
    assert drawn == [1, 2, 3] and shown == ["at 2", "at 3"]


def test_menus_draw_what_is_chosen_once_and_say_what_is_missing(shown, capsys):
    drawn = []

    def draw(attack, images):
        drawn.append((attack, images))
        if images == 5:
            raise ValueError(f"{attack} with 5 images was not measured.")
        return f"{attack} {images}"

    box = widgets.menus({"attack": ["A", "B"], "images": [9, 5]}, draw)
    attack, images = box.children[0].children
    assert shown == ["A 9"]
    attack.value = "B"
    attack.value = "A"
    assert shown == ["A 9", "B 9", "A 9"] and drawn == [("A", 9), ("B", 9)]
    capsys.readouterr()
    images.value = 5
    assert "A with 5 images was not measured." in capsys.readouterr().out
    assert shown[-1] == "A 9" and len(shown) == 3


def test_what_cannot_be_drawn_is_refused_before_anything_is(shown):
    drawn = []
    for bad in ({"values": []}, {"values": "12"}, {"start": 9}, {"draw": None}):
        good = {"label": "u", "values": [1, 2], "draw": drawn.append}
        with pytest.raises(ValueError, match="must be"):
            widgets.slider(**good | bad)
    for choices in ({}, {"a": []}, {"a": "xy"}):
        with pytest.raises(ValueError, match="must be"):
            widgets.menus(choices, drawn.append)
    assert not drawn and not shown


def test_a_bench_refuses_before_it_trains(shown):
    parts = data.splits("signs")
    for bad in ({"size": 2}, {"size": 32}, {"size": 3.5}, {"start": "no"}, {"rate": 0}):
        with pytest.raises(ValueError, match="must be"):
            widgets.poison_bench(parts, **bad)
    with pytest.raises(ValueError, match="did you mean 'epochs'"):
        widgets.poison_bench(parts, epoch=1)
    with pytest.raises(ValueError, match=r"must be what data.splits returns"):
        widgets.poison_bench(parts.train)
    assert not shown


def test_the_rate_of_a_bench_can_be_fixed(shown):
    box = widgets.poison_bench(data.splits("signs"), start=False, rate=0.125)
    rate = box.children[0].children[1].children[1]
    assert rate.disabled and rate.value == 0.125


def test_switches_measure_what_is_left(shown):
    parts, victim = data.splits("signs"), victims.zoo("badnets")
    images = parts.test[:60]
    box = switches(victim, "layer4.0.bn1", images, off=[2])
    buttons = box.children[0].children
    assert len(buttons) == 128 and [k for k, b in enumerate(buttons) if not b.value] == [2]
    buttons[2].value = True
    whole = metrics.evaluate(victim.model, images, victim.attack)
    assert box.path[-1] == (0, whole.acc, whole.asr, whole.ra)
    silent = switches(victim, "bn1", images, off=range(16))
    cut = surgery.without(victim.model, {"bn1": torch.arange(16)})
    broken = metrics.evaluate(cut, images, victim.attack)
    assert silent.path == [(16, broken.acc, broken.asr, broken.ra)]
    assert broken.acc < whole.acc
    with_none = victim.model.get_submodule("layer4.0.bn1").weight.clone()
    for button in buttons:
        button.unobserve_all()
    buttons[0].value = buttons[1].value = False
    assert (victim.model.get_submodule("layer4.0.bn1").weight == with_none).all()
    assert len(box.path) == 2 and "1 of the 128 channels" in shown[0].description


@pytest.mark.parametrize("layer, off", [("nowhere", []), ("layer4.0.bn1", [128])])
def test_switches_name_what_is_not_there(shown, layer, off):
    with pytest.raises(ValueError, match="no module of that name|channels of layer4.0.bn1 are"):
        switches(victims.zoo("badnets"), layer, data.splits("signs").test[:20], off)
