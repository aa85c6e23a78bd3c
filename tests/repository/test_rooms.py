"""The rooms of the house, and which way the arrows between them point."""

import ast

from helpers import ROOT

# Each room may use those before it, and what lies in `bdcourse/` itself from where it
# stands here.
ROOMS = [
    "require files compat seeds augment models likelihoods task examples images checkpoint "
    "hooks triggers data signs surgery metrics activations train",
    "analysis",
    "tasks",
    "attacks",
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


def test_arrows_point_down_the_list():
    back = {(a, b, f) for a, b, f in arrows() if a != "__init__" and LEVEL[a] < LEVEL[b]}
    assert not back
