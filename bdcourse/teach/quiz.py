"""Multiple choice in the page: a choice unfolds to what is right or wrong about it.

The page needs no kernel for it, so a quiz works in JupyterLab, in the book and on GitHub
alike. Questions stand in `bdcourse/teach/quizzes/`, one module a lesson.
"""

from __future__ import annotations

import hashlib
import html
import importlib
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        asks: the question; `code` between backquotes.
        right: the one right choice.
        because: why it is right.
        wrong: each wrong choice -> why somebody may think so, and what is wrong with it.
    """

    asks: str
    right: str
    because: str
    wrong: Mapping[str, str]

    def choices(self) -> list[tuple[str, bool, str]]:
        """(choice, is it right, why), in an order that says nothing and never changes."""
        every = [(self.right, True, self.because)]
        every += [(text, False, why) for text, why in self.wrong.items()]
        return sorted(every, key=lambda c: hashlib.sha256((self.asks + c[0]).encode()).digest())


class Quiz:
    """The questions of a lesson, as something to click on."""

    def __init__(self, questions: tuple[Question, ...]) -> None:
        self.questions = questions

    def __repr__(self) -> str:
        lines = []
        for n, q in enumerate(self.questions, 1):
            lines.append(f"{n}. {q.asks}")
            lines += [f"   {chr(97 + i)}) {c[0]}" for i, c in enumerate(q.choices())]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return "\n".join(self._question(n, q) for n, q in enumerate(self.questions, 1))

    def _question(self, n: int, q: Question) -> str:
        rows = [f"<p><strong>{n}. {_marked(q.asks)}</strong></p>"]
        for i, (text, right, why) in enumerate(q.choices()):
            verdict = "\u2713 Yes." if right else "\u2717 No."
            rows.append(
                f"<details><summary>{chr(97 + i)}) {_marked(text)}</summary>"
                f"<p>{verdict} {_marked(why)}</p></details>"
            )
        return "\n".join(rows)


def _marked(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def topics() -> list[str]:
    """The lessons that have a quiz."""
    from bdcourse.teach import quizzes

    return sorted(m.name for m in pkgutil.iter_modules(quizzes.__path__))


def quiz(name: str) -> Quiz:
    """The quiz of a lesson, by the name of its module in `bdcourse/teach/quizzes/`.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in topics():
        raise ValueError(f"there is no quiz {name!r}; there are {', '.join(topics())}.")
    return Quiz(importlib.import_module(f"bdcourse.teach.quizzes.{name}").QUESTIONS)
