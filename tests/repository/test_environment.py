"""One list of requirements: pyproject.toml, environment.yml and constraints.txt agree.

The package itself needs torch and little else to be imported, and no file that git
knows names a folder of the machine it was written on.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import bdcourse
from helpers import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it there

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def named(python: str) -> list[Requirement]:
    """What pyproject.toml asks one Python for, apart from the package's own extras."""
    extras = PROJECT["optional-dependencies"].values()
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    found = [Requirement(line) for line in lines]
    return [
        r
        for r in found
        if r.name != PROJECT["name"]
        and (r.marker is None or r.marker.evaluate({"python_version": python}))
    ]


def pins(python: str) -> dict[str, list[Version]]:
    """What constraints.txt pins for one Python."""
    found: dict[str, list[Version]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not (line := line.split("#")[0].strip()):
            continue
        r = Requirement(line)
        if r.marker and not r.marker.evaluate({"python_version": python}):
            continue
        (one,) = r.specifier
        assert one.operator == "==", f"{line} is not a pin"
        found.setdefault(canonicalize_name(r.name), []).append(Version(one.version))
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_has_one_fitting_pin(python: str) -> None:
    pinned = pins(python)
    assert {k: v for k, v in pinned.items() if len(v) > 1} == {}
    for r in named(python):
        versions = pinned.get(canonicalize_name(r.name), [])
        assert len(versions) == 1, f"{r.name} is not pinned for Python {python}"
        assert r.specifier.contains(versions[0]), f"{r} against {versions[0]}"


@pytest.mark.parametrize("python", PYTHONS)
def test_what_is_known_to_fail_is_not_allowed(python: str) -> None:
    # A tensor without elements is not read back; images that overflow a buffer.
    old = {"safetensors": "0.4.3", "torch": "2.5.1", "pillow": "12.2.0"}
    if python != "3.10":
        old["pillow"] = "12.3.0"
    asked = {r.name: r.specifier for r in named(python)}
    for name, version in old.items():
        assert not asked[name].contains(version), f"{name} {version}"


def test_conda_environment_is_pyproject() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(environment) == {"name", "dependencies"}  # no channel is forced
    assert environment["name"] == PROJECT["name"]
    *plain, last = environment["dependencies"]
    python = f"python {PROJECT['requires-python']}"
    assert plain == [python, "pip", "nodejs"]
    assert last == {"pip": ["-e .[course]"]}
    assert "course" in PROJECT["optional-dependencies"]


# --- Importing the package -------------------------------------------------------

MODULES = "bdcourse, bdcourse.data, bdcourse.train, bdcourse.attacks"
MODULES += ", bdcourse.defenses, bdcourse.metrics"
OPTIONAL = ("tqdm", "torchvision", "matplotlib", "ipywidgets", "safetensors", "PIL")
# What `import bdcourse as bd` offers to research; figures and lessons bring more.
USED = "Images Augment load splits fit evaluate attacks defenses victims foreign models"
# Parts of torch that take as long to import as the rest of it.
HEAVY = ("torch._dynamo", "torch._inductor", "torch.onnx", "torch.fx.experimental")


def python(code: str) -> str:
    """Run code in a fresh Python and return what it prints."""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def loaded(before: str, code: str) -> set[str]:
    """The modules that `code` loads after `before`, without the standard library's."""
    names = python(
        f"import sys\n{before}\nown = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - own))"
    )
    standard = {*sys.stdlib_module_names}
    return {m for m in names.split() if m.split(".")[0] not in standard}


def test_importing_the_package_loads_nothing_else() -> None:
    assert loaded("", "import bdcourse") == {"bdcourse"}


def test_editors_know_the_public_names() -> None:
    code = ast.parse((ROOT / "bdcourse/__init__.py").read_text())
    (typed,) = (node for node in code.body if isinstance(node, ast.If))
    known = {a.asname: f"{n.module}.{a.name}" for n in typed.body for a in n.names}
    assert known.keys() == bdcourse._PUBLIC.keys() <= {*dir(bdcourse)}
    for name, place in known.items():
        module, _, own = place.rpartition(".")
        ours = getattr(bdcourse, name)
        assert ours is getattr(importlib.import_module(module), own), name


@pytest.mark.slow
def test_first_use_loads_nothing_heavy() -> None:
    # So that it takes under 0.2 s beyond torch's own import.
    uses = "import bdcourse as bd\n" + "\n".join(f"bd.{name}" for name in USED.split())
    found = loaded("import torch", f"import {MODULES}\n{uses}")
    assert {m.split(".")[0] for m in found} <= {"bdcourse", "torch"}
    assert not [m for m in found if m.startswith(HEAVY)]
    assert not [m for m in found if m.startswith(("bdcourse.report", "bdcourse.teach"))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "module",
    sorted(
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for p in (ROOT / "bdcourse").rglob("*.py")
    ),
)
def test_every_module_can_be_the_first_to_be_imported(module: str) -> None:
    # In one process, for speed: forget the package, then import from this end.
    code = "import importlib, sys\n"
    code += "[sys.modules.pop(m) for m in list(sys.modules) if m.startswith('bdcourse')]"
    code += f"\nimportlib.import_module({module!r})"
    kept = {m: v for m, v in sys.modules.items() if m.startswith("bdcourse")}
    try:
        exec(code, {})
    finally:
        for m in [m for m in sys.modules if m.startswith("bdcourse")]:
            del sys.modules[m]
        sys.modules.update(kept)


@pytest.mark.slow
def test_import_works_where_nothing_optional_is_installed() -> None:
    # None in sys.modules makes an import fail as if the package were missing.
    code = "import sys, torch\n"
    code += f"sys.modules.update(dict.fromkeys({OPTIONAL}))\n"
    python(code + f"import {MODULES}")


# --- Files -----------------------------------------------------------------------


def tracked() -> list[Path]:
    """Files that git knows, and those it would take up."""
    ls = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        out = subprocess.run(ls, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [p for name in out.stdout.split("\0") if name and (p := ROOT / name).is_file()]


# Written in pieces, so that this file does not name them either.
FOLDERS = [b"/" + name + b"/" for name in (b"root", b"tmp/bash", b"work")]


@pytest.mark.slow
def test_no_file_names_a_folder_of_one_machine() -> None:
    pattern = re.compile(rb"(?<![\w.-])(?:" + b"|".join(FOLDERS) + b")")
    found = []
    for path in tracked():
        content = path.read_bytes()
        if b"\0" not in content and (hit := pattern.search(content)):
            found.append(f"{path.relative_to(ROOT)}: {hit[0].decode()}")
    assert not found
