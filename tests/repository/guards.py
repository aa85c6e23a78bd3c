"""What every lesson must be: one function a rule, over a notebook in memory.

A guard returns its complaints, an empty list when the notebook is fine. It reads no
file and runs nothing, so test_notebooks.py can show each one a notebook that breaks its
rule. nbval checks that outputs are right; the guards check that nbval has something to
check, and that a lesson has the shape readers learn to expect.
"""

from __future__ import annotations

import ast
import base64
import re
from collections.abc import Callable, Iterator

import nbformat
from nbformat import NotebookNode

TAGS = {
    *("setup", "exercise", "check", "claim", "figure", "predict", "method"),
    *("nbval-ignore-output", "raises-exception"),
    *("hide-input", "hide-output", "remove-input", "remove-output", "remove-cell"),
}
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
IGNORED = "nbval-ignore-output"

# --- Reading a notebook ----------------------------------------------------------


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def code_cells(nb: NotebookNode) -> list[tuple[int, NotebookNode]]:
    return [(i, c) for i, c in enumerate(nb.cells) if c.cell_type == "code"]


def tagged(nb: NotebookNode, tag: str) -> list[tuple[int, NotebookNode]]:
    return [(i, c) for i, c in code_cells(nb) if tag in tags(c)]


def prose(nb: NotebookNode) -> list[str]:
    """The Markdown cells without fenced code."""
    fence = re.compile(r"^(```|~~~).*?^\1", re.M | re.S)
    return [fence.sub("", c.source) for c in nb.cells if c.cell_type == "markdown"]


def sections(nb: NotebookNode) -> list[tuple[int, str, str]]:
    """(level, heading, text up to the next heading), in order."""
    parts = re.split(r"^(#{1,6}) +(.*)$", "\n\n".join(prose(nb)), flags=re.M)
    heads = zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    return [(len(level), title.strip(), text) for level, title, text in heads]


def under(nb: NotebookNode, word: str) -> str | None:
    """The text under the first heading that contains `word`."""
    return next((t for _, h, t in sections(nb) if word in h.lower()), None)


def outputs(nb: NotebookNode, kind: str) -> Iterator[tuple[int, NotebookNode]]:
    for i, cell in code_cells(nb):
        for output in cell.outputs:
            if output.output_type == kind:
                yield i, output


def pictures(nb: NotebookNode) -> Iterator[tuple[int, bytes, str]]:
    """(cell, PNG, description) of every picture."""
    for i, cell in code_cells(nb):
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                png = base64.b64decode("".join(data["image/png"]))
                yield i, png, "".join(data.get("text/plain", "")).strip()


def compared_text(cell: NotebookNode) -> str:
    """What nbval compares of a cell, as one text."""
    texts = []
    for output in cell.outputs:
        texts.append(output.get("text", ""))
        data = output.get("data", {})
        texts += [data.get(m, "") for m in ("text/plain", "text/html")]
    return "\n".join("".join(t) for t in texts)


def length(source: str) -> int:
    """Lines a reader has to read; blank ones are free."""
    return sum(bool(line.strip()) for line in source.splitlines())


# --- Is everything run, and can it be compared? ----------------------------------


def run_in_order(nb: NotebookNode) -> list[str]:
    """nbval compares nothing in a cell that was never run, and passes."""
    counts = [c.execution_count for _, c in code_cells(nb)]
    if counts == list(range(1, len(counts) + 1)):
        return []
    return [f"execution counts are {counts}, not 1 to {len(counts)} in order"]


def no_errors(nb: NotebookNode) -> list[str]:
    return [
        f"cell {i} stores {output.ename}; tag it raises-exception if that is meant"
        for i, output in outputs(nb, "error")
        if "raises-exception" not in tags(nb.cells[i])
    ]


def no_stderr(nb: NotebookNode) -> list[str]:
    return [
        f"cell {i} writes to stderr: {output.text.strip()[:60]}"
        for i, output in outputs(nb, "stream")
        if output.name == "stderr"
    ]


NOT_PORTABLE = {
    "an absolute path": r"(?<![\w.:/<])/(?:[\w.~-]+/)+[\w.~-]+|\b[A-Z]:\\\w+",
    "a memory address": r"\b0x[0-9a-fA-F]{6,}\b",
    "a time": r"(?<![\w.-])\d+(\.\d+)? ?(ns|us|µs|ms|s|sec|seconds?|minutes?|it/s)\b"
    r"|\bWall time:|\bCPU times:",
}


def nothing_local(nb: NotebookNode) -> list[str]:
    found = []
    for i, cell in code_cells(nb):
        if IGNORED in tags(cell):
            continue
        for what, pattern in NOT_PORTABLE.items():
            if hit := re.search(pattern, compared_text(cell)):
                found.append(f"cell {i} prints {what}, which nbval compares: {hit[0]}")
    return found


def under_a_megabyte(nb: NotebookNode) -> list[str]:
    size = len(nbformat.writes(nb).encode())
    return [f"{size / 1e6:.1f} MB, the limit is 1 MB"] if size > 1e6 else []


def few_ignored(nb: NotebookNode) -> list[str]:
    """Cells whose outputs nbval does not compare, and what stands in for them."""
    cells = code_cells(nb)
    ignored = [i for i, _ in tagged(nb, IGNORED)]
    found = []
    if 5 * len(ignored) > len(cells):
        found.append(f"{len(ignored)} of {len(cells)} code cells tagged {IGNORED}")
    for i, following in zip(ignored, [*ignored[1:], len(nb.cells)], strict=True):
        between = nb.cells[i + 1 : following]
        if not any({"claim", "check"} & set(tags(c)) for c in between):
            found.append(f"cell {i} is not compared, and no claim or check follows it")
    return found


def plain_switches(nb: NotebookNode) -> list[str]:
    """Only the tags above steer nbval, so that the rule about them means something."""
    pattern = re.compile(r"NBVAL_|#\s*PYTEST_VALIDATE")
    found = [
        f"cell {i} steers nbval by a comment; use a tag"
        for i, c in code_cells(nb)
        if pattern.search(c.source)
    ]
    return found + [
        f"cell {i}: {'an empty list of tags' if not tag else f'unknown tag {tag}'}"
        for i, c in enumerate(nb.cells)
        if "tags" in c.metadata
        for tag in (c.metadata.tags or [""])
        if tag not in TAGS
    ]


def clean_metadata(nb: NotebookNode) -> list[str]:
    found = []
    if extra := set(nb.metadata) - {"kernelspec", "language_info", "bdcourse"}:
        found.append(f"metadata that belongs to an editor: {', '.join(sorted(extra))}")
    if nb.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel is not python3")
    for i, cell in code_cells(nb):
        if any("widget-view" in m for o in cell.outputs for m in o.get("data", {})):
            found.append(f"cell {i} stores a widget instead of its picture")
    return found


# --- Does it have a lesson's shape? ----------------------------------------------


def one_title(nb: NotebookNode) -> list[str]:
    titles = [h for level, h, _ in sections(nb) if level == 1]
    if not nb.cells or not re.match(r"# +\S", nb.cells[0].source):
        return ["the first cell does not begin with '# ' and a title"]
    return [f"{len(titles)} titles: {titles}"] if len(titles) != 1 else []


def box(nb: NotebookNode) -> list[str]:
    lines = "\n".join(prose(nb)[:4]).splitlines()
    quoted = " ".join(line[1:].strip() for line in lines if line.startswith(">"))
    return [
        f"no '{word}:' in a quoted box (lines with '> ') near the top"
        for word in ("reading", "run time", "prerequisites")
        if f"{word}:" not in quoted.lower()
    ]


def objectives(nb: NotebookNode) -> list[str]:
    text = under(nb, "objectives")
    if text is None:
        return ["no heading 'Objectives'"]
    items = re.findall(r"^(?:[-*]|\d+\.) +\S", text, flags=re.M)
    return [] if 3 <= len(items) <= 5 else [f"{len(items)} objectives, not 3 to 5"]


def threat_model(nb: NotebookNode) -> list[str]:
    text = under(nb, "threat model")
    if text is None:
        return ["no heading 'Threat model'"]
    if not re.search(r"^\|[ :|-]*---[ :|-]*\|", text, flags=re.M):
        return ["no table under 'Threat model'"]
    return []


def setup_first(nb: NotebookNode) -> list[str]:
    cells = code_cells(nb)
    if not cells or "setup" not in tags(cells[0][1]):
        return ["the first code cell is not tagged setup"]
    if len(tagged(nb, "setup")) > 1:
        return ["more than one cell tagged setup"]
    lines = length(cells[0][1].source)
    return [f"the set-up cell has {lines} lines, not under 12"] if lines >= 12 else []


def cell_count(nb: NotebookNode) -> list[str]:
    n = len(nb.cells)
    # An exercise takes three cells, so a lesson with five has fifteen for them alone.
    return [] if 25 <= n <= 50 else [f"{n} cells, not 25 to 50"]


def word_count(nb: NotebookNode) -> list[str]:
    texts = [re.sub(r"</?\w+>", " ", t) for t in prose(nb)]
    n = sum(bool(re.search(r"\w", w)) for t in texts for w in t.split())
    return [] if 1500 <= n <= 3000 else [f"{n} words of Markdown, not 1,500 to 3,000"]


def short_cells(nb: NotebookNode) -> list[str]:
    found = []
    for i, cell in code_cells(nb):
        limit = 30 if {"exercise", "method"} & set(tags(cell)) else 15
        if "figure" in tags(cell):
            limit = 20  # a description is prose, and should not be kept short
        if (n := length(cell.source)) > limit:
            found.append(f"cell {i} has {n} lines, the limit is {limit}")
    return found


def exercises(nb: NotebookNode) -> list[str]:
    n = len(tagged(nb, "exercise"))
    return [] if 1 <= n <= 6 else [f"{n} exercises, not 1 to 6"]


def solved(nb: NotebookNode) -> list[str]:
    """The reference answer is in the exercise, and only there."""
    found = []
    for i, cell in tagged(nb, "exercise"):
        lines = [line.strip() for line in cell.source.splitlines()]
        marks = [line for line in lines if line in (BEGIN, END)]
        if marks != [BEGIN, END]:
            found.append(f"exercise {i}: not one {BEGIN} before one {END}")
        if not documented(cell.source):
            found.append(f"exercise {i}: no function whose docstring states the task")
        if "hide-input" not in tags(cell):
            found.append(f"exercise {i}: not tagged hide-input, the book shows it open")
        if not cell.metadata.get("jupyter", {}).get("source_hidden"):
            found.append(f"exercise {i}: no source_hidden, JupyterLab shows it open")
    for i, cell in code_cells(nb):
        if "exercise" not in tags(cell) and BEGIN in cell.source:
            found.append(f"cell {i} holds a solution outside an exercise")
    return found


def documented(source: str) -> bool:
    """Is there a function with a docstring, and is it above the solution?"""
    try:
        tree = ast.parse(source.split(BEGIN)[0] + "pass")
    except SyntaxError:
        return False
    defs = (ast.FunctionDef, ast.ClassDef)
    return any(isinstance(d, defs) and ast.get_docstring(d) for d in ast.walk(tree))


def checked(nb: NotebookNode) -> list[str]:
    places = [i for i, _ in tagged(nb, "exercise")]
    return (
        [
            f"exercise {i}: no cell tagged check before the next exercise"
            for i, end in zip(places, [*places[1:], len(nb.cells)], strict=True)
            if not any("check" in tags(c) for c in nb.cells[i + 1 : end])
        ]
        if places
        else []
    )


def prediction(nb: NotebookNode) -> list[str]:
    return [] if tagged(nb, "predict") else ["no cell tagged predict"]


def widget(nb: NotebookNode) -> list[str]:
    used = any("widgets." in c.source for _, c in code_cells(nb))
    return [] if used else ["no widget: no code cell uses widgets."]


def described_pictures(nb: NotebookNode) -> list[str]:
    found, seen = [], {}
    for i, png, text in pictures(nb):
        if text.startswith("<Figure"):
            found.append(f"cell {i}: a bare matplotlib figure, use bdcourse.report.show")
        elif len(text) < 40:
            found.append(f"cell {i}: a description under 40 characters: {text!r}")
        elif text in seen:
            found.append(f"cell {i}: the same description as in cell {seen[text]}")
        seen.setdefault(text, i)
        if len(png) > 120_000:
            found.append(f"cell {i}: a picture of {len(png) / 1e3:.0f} kB, limit 120 kB")
    return found


def headings_in_order(nb: NotebookNode) -> list[str]:
    found, before = [], 0
    for level, title, _ in sections(nb):
        if level > before + 1:
            found.append(f"'{title}' is level {level}, under level {before}")
        before = level
    return found


def closing(nb: NotebookNode) -> list[str]:
    return [
        f"no heading '{word.capitalize()}'"
        for word in ("recap", "references")
        if under(nb, word) is None
    ]


# --- How it treats its reader ----------------------------------------------------


def folded_hints(nb: NotebookNode) -> list[str]:
    """One to five hints an exercise, each folded, numbered from 1."""
    found = []
    for i, _ in tagged(nb, "exercise"):
        above = [c.source for c in nb.cells[:i] if c.cell_type == "markdown"]
        text = above[-1] if above else ""
        numbers = re.findall(r"<details><summary>Hint (\d+)</summary>", text)
        if not 1 <= len(numbers) <= 5 or numbers != [str(n + 1) for n in range(len(numbers))]:
            found.append(f"exercise {i}: folded hints {numbers}, not 1 to 5 in order")
    for i, c in enumerate(nb.cells):
        if "**Hint" in c.source:
            found.append(f"cell {i}: an open hint")
        if "</details>\n<details>" in c.source:  # one piece of HTML: the second is emptied
            found.append(f"cell {i}: two folds without a blank line between them")
    return found


def few_claims(nb: NotebookNode) -> list[str]:
    n = sum(c.source.count("check.claim(") for _, c in code_cells(nb))
    return [] if 1 <= n <= 10 else [f"{n} claims, not 1 to 10: the others are tests"]


def waiting_predictions(nb: NotebookNode) -> list[str]:
    """A reader commits first: at least three predictions, and no number in them yet."""
    cells = tagged(nb, "predict")
    found = [] if len(cells) >= 3 else [f"{len(cells)} predictions, not three or more"]
    for i, cell in cells:
        if not re.match(r"\w+ = None\n", cell.source):
            found.append(f"cell {i}: a prediction that does not begin with 'name = None'")
    return found


def quizzed(nb: NotebookNode) -> list[str]:
    asked = [c for _, c in code_cells(nb) if re.match(r"quiz\(", c.source)]
    return [] if len(asked) == 1 else [f"{len(asked)} quizzes, not one"]


def whole_method(nb: NotebookNode) -> list[str]:
    """One exercise is a whole method: ten lines of answer or more."""
    answers = [c.source.partition(BEGIN)[2].partition(END)[0] for _, c in tagged(nb, "exercise")]
    longest = max((length(a) for a in answers), default=0)
    return [] if longest >= 10 else [f"the longest answer has {longest} lines, not 10"]


def plain_code(nb: NotebookNode) -> list[str]:
    found = []
    for i, cell in code_cells(nb):
        if "# fmt:" in cell.source:
            found.append(f"cell {i} has a formatter's pragma")
        if re.search(r"^\s*assert\b", cell.source, re.M):
            found.append(f"cell {i} asserts; a claim says what it measured")
        if (wide := max(map(len, cell.source.splitlines()), default=0)) > 88:
            found.append(f"cell {i} has a line of {wide} columns, not 88")
    return found


def one_name_one_thing(nb: NotebookNode) -> list[str]:
    """A name that two cells bind means another thing when a cell is run again.

    Names of loops may come again in other loops, which bind them before they read them.
    """
    bound: dict[str, int] = {}
    looped: dict[str, int] = {}
    found = []
    for i, cell in code_cells(nb):
        names, loops = assigned(cell.source)
        names -= {"guess"}  # made anew in each prediction
        clashes = {n: bound[n] for n in bound.keys() & (names | loops)}
        clashes |= {n: looped[n] for n in looped.keys() & names}
        found += [f"cells {k} and {i} both bind {n}" for n, k in clashes.items()]
        bound |= dict.fromkeys(names, i)
        looped |= dict.fromkeys(loops - names, i)
    return found


OWN_NAMES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def assigned(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell binds, functions among them, and those of its loops; not those
    inside functions."""
    names: set[str] = set()
    loops: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.For):
            loops |= {n.id for n in ast.walk(node.target) if isinstance(n, ast.Name)}
            waiting += [node.iter, *node.body, *node.orelse]
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif not isinstance(node, OWN_NAMES):
            waiting += ast.iter_child_nodes(node)
    return names - {"_"}, loops - {"_"}


def linked(nb: NotebookNode) -> list[str]:
    """The last line leads on."""
    last = nb.cells[-1].source.splitlines()[-1] if nb.cells and nb.cells[-1].source else ""
    return [] if re.search(r"\]\(\w+\.ipynb\)", last) else ["the last line links no lesson"]


READER: tuple[Callable[[NotebookNode], list[str]], ...] = (
    *(folded_hints, few_claims, waiting_predictions, quizzed, whole_method),
    *(plain_code, one_name_one_thing, linked),
)
GUARDS: tuple[Callable[[NotebookNode], list[str]], ...] = (
    *(run_in_order, no_errors, no_stderr, nothing_local, under_a_megabyte),
    *(few_ignored, plain_switches, clean_metadata),
    *(one_title, box, objectives, threat_model, setup_first, cell_count, word_count),
    *(short_cells, exercises, solved, checked, prediction, widget),
    *(described_pictures, headings_in_order, closing),
    *READER,
)
