"""What a reader gets beside a failed check: hints one by one, then a solution.

Cards appear in a learner's own copies in JupyterLab. Elsewhere (a plain terminal,
nbgrader, the tests of the course) a failed check is its sentence and nothing else.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from bdcourse.teach import lessons, progress

TRIES = 2  # failed checks before a solution is offered
_failed: Counter[str] = Counter()


def wanted() -> bool:
    """Is this a learner's own copy, in a kernel that has widgets?"""
    if not (Path.cwd() / progress.FILE).is_file():
        return False
    try:
        import ipywidgets  # noqa: F401
    except ImportError:
        return False
    return getattr(_shell(), "kernel", None) is not None


def _shell() -> Any:
    """IPython's shell, or None."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return get_ipython()


def offer(name: str) -> bool:
    """Show the card of an exercise whose check has just failed; False where there is none."""
    exercise = lessons.find(name) if wanted() else None
    if exercise is None:
        return False
    from IPython.display import display

    _failed[name] += 1
    display(card(exercise, solution=_failed[name] >= TRIES))
    return True


def card(exercise: lessons.Exercise, solution: bool):
    """A row of buttons, and under it what they have brought to light so far.

    Args:
        solution: offer the solution, and to go on with it, besides the hints.
    """
    import ipywidgets as w
    from IPython.display import Markdown, display

    shown = w.Output()
    hints = iter(enumerate(exercise.hints, 1))
    left = len(exercise.hints)
    hint = w.Button(description=f"Hint 1 of {left}", disabled=not left)

    def more(_) -> None:
        n, text = next(hints)
        with shown:
            display(Markdown(f"**Hint {n}.** {text}"))
        last = n == left
        hint.disabled = last
        hint.description = "No more hints" if last else f"Hint {n + 1} of {left}"

    hint.on_click(more)
    buttons = [hint]
    again = w.Button(description="Start again")
    again.on_click(lambda _: _shows(shown, again, "Put this in your cell:", exercise.stub))
    if solution:
        see = w.Button(description="Show one solution")
        see.on_click(lambda _: _shows(shown, see, "One solution:", exercise.answer))
        go = w.Button(description="Go on without mine")

        def stand_in(_) -> None:
            go.disabled = True
            with shown:
                print(step_in(exercise))

        go.on_click(stand_in)
        buttons += [see, go]
    for button in (*buttons, again):
        button.layout.width = "auto"
    return w.VBox([w.HBox([*buttons, again]), shown])


def _shows(shown, button, words: str, source: str) -> None:
    from IPython.display import Markdown, display

    button.disabled = True
    with shown:
        display(Markdown(f"{words}\n\n```python\n{source}\n```"))


def step_in(exercise: lessons.Exercise) -> str:
    """Define the course's own answer in the reader's notebook, and say so.

    Raises:
        RuntimeError: this is no notebook.
    """
    shell = _shell()
    if shell is None:
        raise RuntimeError("the course's answers step in within a notebook only.")
    code = compile(exercise.answer, f"<the course's answer to {exercise.name}>", "exec")
    exec(code, shell.user_ns)
    return f"{exercise.name}: not written yet, so the course's own answer stands in."
