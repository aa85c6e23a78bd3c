"""Boxes and arrows."""

import pytest

from bdcourse.report.diagram import Box, boxes
from bdcourse.report.show import Picture

WORDS = "Two boxes, one beside the other, joined by an arrow from left to right."


def test_a_diagram_is_a_picture_with_words():
    two = {"a": Box(2, 1.5, "a"), "b": Box(6, 1.5, "b", filled=True)}
    picture = boxes(two, [("a", "b", "then")], description=WORDS, title="T", notes=[(4, 0.3, "n")])
    assert isinstance(picture, Picture) and picture.description == WORDS
    assert picture.png != boxes(two, description=WORDS).png


def test_an_elbow_is_an_arrow_of_another_shape():
    two = {"a": Box(2, 1, "a"), "b": Box(6, 2.5, "b")}
    straight = boxes(two, [("a", "b")], description=WORDS)
    bent = [boxes(two, elbows=[pair], description=WORDS) for pair in (("a", "b"), ("b", "a"))]
    assert len({p.png for p in (straight, *bent)}) == 3


def test_an_arrow_to_nowhere_is_named():
    with pytest.raises(ValueError, match="an arrow names 'c'; boxes are a, b."):
        boxes({"a": Box(2, 1, "a"), "b": Box(6, 1, "b")}, [("a", "c")], description=WORDS)
    with pytest.raises(ValueError, match="an arrow names 'c'"):
        boxes({"a": Box(2, 1, "a")}, elbows=[("a", "c")], description=WORDS)
