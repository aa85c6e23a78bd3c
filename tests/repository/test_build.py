"""tools/notebooks.py on small notebooks: what it stores, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

import notebooks as tool

PLAIN = """\
# %% [markdown]
# # Title

# %% tags=["setup"]
x = 2


# %%
def double(x):
    return 2 * x


print(double(x))

# %%
print(double(x))

# %%
print(double(x))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "01_plain.py").write_text(PLAIN)
    return tmp_path


def run(folder: Path, *args: str) -> int:
    return tool.main(["build", *args, "--folder", str(folder)])


def cells(folder: Path) -> list:
    return nbformat.read(folder / "01_plain.ipynb", as_version=4).cells


@pytest.mark.slow
def test_builds_twice_the_same(folder: Path, capsys) -> None:
    assert run(folder) == 0
    assert "peak memory" in capsys.readouterr().out
    first = (folder / "01_plain.ipynb").read_bytes()
    assert run(folder) == 0
    assert capsys.readouterr().out == "01_plain: fresh\n"
    assert run(folder, "--force") == 0
    assert (folder / "01_plain.ipynb").read_bytes() == first
    assert [p.name for p in sorted(folder.iterdir())] == [
        "01_plain.ipynb",
        "01_plain.py",
    ]
    assert run(folder, "--check") == 0

    nb = nbformat.reads(first, as_version=4)
    assert set(nb.metadata) == {"bdcourse", "kernelspec", "language_info"}
    assert nb.cells[2].outputs[0].text == "4\n"
    assert [c.execution_count for c in nb.cells[1:]] == [1, 2, 3, 4]


def test_ids_survive_an_insertion(folder: Path) -> None:
    source = folder / "01_plain.py"
    before = [c.id for c in tool.from_source(source).cells]
    assert len(set(before)) == 5
    source.write_text(PLAIN.replace("# %% tags", "# %%\ny = 1\n\n# %% tags"))
    after = [c.id for c in tool.from_source(source).cells]
    assert [i for i in after if i in before] == before


@pytest.mark.slow
def test_an_error_names_lesson_cell_and_message(folder: Path, capsys) -> None:
    (folder / "01_plain.py").write_text(PLAIN.replace("x = 2", "x = 2\n1 / 0"))
    (folder / "02_later.py").write_text(PLAIN)
    assert run(folder) == 1
    message = capsys.readouterr().err
    assert "01_plain.py, cell 1" in message
    assert "ZeroDivisionError: division by zero" in message
    assert not list(folder.glob("*.ipynb")), "stops at the first error"


@pytest.mark.slow
def test_a_cell_that_hangs_is_stopped(folder: Path, capsys) -> None:
    text = PLAIN.replace("x = 2", "import time\ntime.sleep(60)")
    (folder / "01_plain.py").write_text(text)
    assert run(folder, "--timeout", "1") == 1
    assert "cell 1" in (message := capsys.readouterr().err)
    assert "still running after 1 s" in message


@pytest.mark.slow
def test_an_expected_error_names_no_folders(folder: Path) -> None:
    text = PLAIN.replace('tags=["setup"]', 'tags=["raises-exception"]')
    (folder / "01_plain.py").write_text(text.replace("x = 2", "x = 2\n1 / 0"))
    assert run(folder) == 0
    error = cells(folder)[1].outputs[0]
    assert error.traceback == ["ZeroDivisionError: division by zero"]


WIDGETS = """\
# %%
import ipywidgets as widgets
from IPython.display import display

out = widgets.Output()
with out:
    print("inside")
    display({"image/png": "aGVsbG8=", "text/plain": "A picture."}, raw=True)
widgets.VBox([widgets.IntSlider(), widgets.HBox([out])])

# %%
widgets.interact(lambda n: print(n), n=(1, 9, 2))
None

# %%
widgets.IntSlider()
"""


@pytest.mark.slow
def test_widgets_become_what_they_show(folder: Path) -> None:
    (folder / "01_plain.py").write_text(WIDGETS)
    assert run(folder) == 0
    text = (folder / "01_plain.ipynb").read_text()
    assert tool.VIEW not in text and tool.STATE not in text
    tree, interact, bare = (c.outputs for c in cells(folder))
    assert [o.output_type for o in tree] == ["stream", "display_data"]
    assert tree[1].data["text/plain"] == "A picture."
    assert [o.text for o in interact] == ["5\n"]
    assert "IntSlider" in bare[0].data["text/plain"]


@pytest.mark.slow
def test_an_error_inside_a_widget_is_an_error(folder: Path, capsys) -> None:
    text = WIDGETS.replace("print(n)", "1 / 0")
    (folder / "01_plain.py").write_text(text)
    assert run(folder) == 1
    assert "cell 1" in (message := capsys.readouterr().err)
    assert "ZeroDivisionError" in message


@pytest.mark.parametrize(
    "old, new, complaint",
    [
        ("x = 2", "x = 3", "cell 1: other text"),
        ('tags=["setup"]', 'tags=["method"]', "cell 1: other tags"),
        ("# %% [markdown]\n# # Title", "# %%\nx = 1", "cell 0: other type"),
        ("# %%\ndef", "# %%\n1\n\n# %%\ndef", "cells, the .py has 6"),
        ("\n\n# %%\nprint", "\n\n\n# %%\nprint", "from another 01_plain.py"),
    ],
)
def test_check_sees_a_changed_source(folder, capsys, old, new, complaint) -> None:
    source = folder / "01_plain.py"
    store(folder)
    assert run(folder, "--check") == 0
    assert old in PLAIN
    source.write_text(PLAIN.replace(old, new))
    assert run(folder, "--check") == 1
    assert complaint in capsys.readouterr().err


def store(folder: Path) -> None:
    """A pair whose notebook was made but not run."""
    source = folder / "01_plain.py"
    nb = tool.from_source(source)
    nb.metadata["bdcourse"] = tool.provenance(source)
    tool.write(nb, source.with_suffix(".ipynb"))


def test_check_sees_half_pairs_and_ruins(folder: Path, capsys) -> None:
    store(folder)
    (folder / "02_alone.py").write_text(PLAIN)
    (folder / "01_plain.ipynb").rename(folder / "03_alone.ipynb")
    (folder / "01_plain.ipynb").write_text("<<<<<<< ours")
    assert run(folder, "--check") == 1
    message = capsys.readouterr().err
    assert "02_alone.py: no 02_alone.ipynb" in message
    assert "03_alone.ipynb: no 03_alone.py" in message
    assert "01_plain.ipynb: not a readable notebook" in message


def test_check_only_warns_about_package_and_data(folder: Path, capsys) -> None:
    store(folder)
    path = folder / "01_plain.ipynb"
    nb = nbformat.read(path, as_version=4)
    nb.metadata["bdcourse"].update(package="other", data="other")
    tool.write(nb, path)
    assert run(folder, "--check") == 0
    message = capsys.readouterr().err
    assert "warning: 01_plain.ipynb: its outputs are from another package" in message
    assert "from another data" in message


def test_names(folder: Path, capsys) -> None:
    (folder / "02_later.py").write_text(PLAIN)
    for name in ("02", "02_later", "notebooks/02_later.py", "02_later.ipynb"):
        assert [p.stem for p in tool.select(folder, [name])] == ["02_later"]
    assert len(tool.select(folder, [])) == 2
    assert run(folder, "07") == 1
    assert "no lesson is called 07; there are: 01_plain, 02_later" in (capsys.readouterr().err)


def test_provenance_follows_source_package_and_data(tmp_path: Path) -> None:
    for name in ("n.py", "bdcourse/a.py", "bdcourse/b/c.py", "data/zoo/v.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")

    def proof() -> dict:
        return tool.provenance(tmp_path / "n.py", tmp_path)

    def changed(name: str) -> set:
        before = proof()
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("2")
        return {k for k, v in proof().items() if v != before[k]}

    assert set(proof()) == {"source", "package", "data", "torch"}
    assert "+" not in proof()["torch"]
    assert changed("n.py") == {"source"}
    assert changed("bdcourse/b/c.py") == {"package"}
    assert changed("data/zoo/v.json") == {"data"}
    assert changed("data/results/new.json") == {"data"}
    assert changed("data/zoo/.hidden") == set()
    assert changed("data/cache/big.bin") == set()
