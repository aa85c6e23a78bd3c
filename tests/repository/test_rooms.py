"""The rooms of the house, and which way the arrows between them point."""

import ast

import pytest

from helpers import ROOT

# Each room may use those before it, and what lies in `bdcourse/` itself from where it
# stands here.
ROOMS = [
    "require files compat seeds augment models likelihoods task examples images checkpoint "
    "hooks triggers data signs surgery symmetries metrics activations train",
    "analysis",
    "attacks",
    "tasks",
    "victims foreign",
    "defenses",
    "bench",
    "report",
    "teach",
    "__main__",
]
LEVEL = {name: i for i, names in enumerate(ROOMS) for name in names.split()}


def arrows():
    """(file, what it imports, whether at its top), within the package."""
    for path in (ROOT / "bdcourse").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            found = []
            if isinstance(node, ast.ImportFrom) and node.module:
                found = [node.module]
                if node.module == "bdcourse":
                    found = [f"bdcourse.{a.name}" for a in node.names]
            elif isinstance(node, ast.Import):
                found = [a.name for a in node.names]
            for name in found:
                if name.startswith("bdcourse."):
                    own = path.relative_to(ROOT / "bdcourse").parts[0]
                    yield own.removesuffix(".py"), name.split(".")[1], path.name


@pytest.mark.slow
def test_arrows_point_down_the_list():
    back = {(a, b, f) for a, b, f in arrows() if a != "__init__" and LEVEL[a] < LEVEL[b]}
    assert not back


def private_imports(folder):
    """Imports of `bdcourse.ROOM._module` from outside the room."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom) or not node.module:
                continue
            for name in (f"{node.module}.{a.name}" for a in node.names):
                room = ROOT.joinpath(*name.split(".")[:2])
                private = any(part.startswith("_") for part in name.split(".")[2:3])
                if name.startswith("bdcourse.") and private and room.is_dir():
                    if room not in path.parents:
                        yield f"{path.relative_to(ROOT)}: {name}"


# Tests look inside, and so do benchmarks, which time the parts of a method.
@pytest.mark.slow
@pytest.mark.parametrize("folder", ["bdcourse", "notebooks", "tools"])
def test_what_is_private_stays_in_its_room(folder):
    assert not list(private_imports(folder))


def homes():
    """Public function or class -> the modules of bdcourse that define it.

    A lesson's figures are named for what they show, and its checks for what they check.
    """
    found = {}
    for path in (ROOT / "bdcourse").rglob("*.py"):
        if path.parent.name in ("check", "figures", "quizzes"):
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(path.relative_to(ROOT / "bdcourse")))
    return found


# Read with their module, as `json.load` is: `data.load` and `victims.load`, `signs.draw`
# and `video.draw`; two programs.
TWICE = {"load", "main", "draw", "version"}


@pytest.mark.slow
def test_a_name_exists_once():
    twice = {name: where for name, where in homes().items() if len(where) > 1}
    assert set(twice) == TWICE, {n: w for n, w in twice.items() if n not in TWICE}


def test_a_defense_is_no_module():
    """`bdcourse.defenses.fip` is the function, whatever was imported before."""
    files = (ROOT / "bdcourse" / "defenses").glob("*.py")
    assert all(path.name.startswith("_") for path in files)
