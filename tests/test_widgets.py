"""What the sliders and menus draw, and when; the browser test moves a real one."""

import pytest

from bdcourse import widgets


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
