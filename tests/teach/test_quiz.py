"""Every quiz has five fair questions, and shows them to everybody alike."""

import re

import pytest

import bdcourse as bd
from bdcourse.teach import quiz as module
from bdcourse.teach.quiz import Question, Quiz


@pytest.mark.parametrize("name", module.topics())
def test_questions_are_fair(name):
    questions = bd.quiz(name).questions
    assert len(questions) == 5
    assert len({q.asks for q in questions}) == 5
    for q in questions:
        texts = [text for text, *_ in q.choices()]
        assert len(set(texts)) == len(texts) == 4, q.asks
        assert sum(right for _, right, _ in q.choices()) == 1
        assert all(len(why) > 20 for *_, why in q.choices()), q.asks
    # The right choice is not betrayed by being the longest, nor by its place.
    longest = [max(q.choices(), key=lambda c: len(c[0]))[1] for q in questions]
    assert sum(longest) <= 3, "the right choice is too often the longest"
    places = {[c[1] for c in q.choices()].index(True) for q in questions}
    assert len(places) > 1


def test_a_choice_unfolds_and_text_is_text():
    q = Question("Is `a < b`?", "Yes & no", "because <b>", {"No": "why not, then"})
    page = Quiz((q,))._repr_html_()
    assert page.count("<details>") == 2 and "<code>a &lt; b</code>" in page
    assert "Yes &amp; no" in page and "<b>" not in page
    assert re.search(r"<summary>.\) Yes.*?</summary><p>\u2713 Yes\. because", page)
    assert re.search(r"<summary>.\) No</summary><p>\u2717 No\. why not", page)
    plain = repr(Quiz((q,)))
    assert "Is `a < b`?" in plain and "because" not in plain


def test_an_unknown_quiz_is_named():
    with pytest.raises(ValueError, match="there is no quiz 'nothing'; there are "):
        bd.quiz("nothing")
