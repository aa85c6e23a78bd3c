"""Make each lesson's .ipynb from its .py, run it, and store what it printed.

    python tools/notebooks.py build              every lesson that is not fresh
    python tools/notebooks.py build 05_clp       one lesson; 05 is enough
    python tools/notebooks.py build --force      all of them, fresh or not
    python tools/notebooks.py build --check      compare the pairs, run nothing

The .py (percent format) is the truth. Cells, tags, ids and metadata of the .ipynb are
a function of it alone, so a second build gives the same bytes wherever the outputs
agree. Widgets are stored as the pictures they show at first, because the book and
GitHub have no kernel behind them.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from queue import Empty

import jupytext
import nbformat
from jupyter_core.utils import ensure_async
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
# As JupyterLab itself writes it, so that opening a lesson changes nothing.
KERNEL = {
    "display_name": "Python 3 (ipykernel)",
    "language": "python",
    "name": "python3",
}
VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"


class BuildError(Exception):
    """A lesson cannot be built; the message says which cell and why."""


# --- Pairs -----------------------------------------------------------------------


def from_source(source: Path) -> NotebookNode:
    """The notebook that a .py describes, without outputs.

    A cell's id comes from its text, so an edit renames one cell, and inserting one
    renames none. Equal cells are told apart by their order.
    """
    text = jupytext.read(source, fmt="py:percent")
    cells, seen = [], {}
    for cell in text.cells:
        key = f"{cell.cell_type}\n{cell.source}"
        seen[key] = seen.get(key, 0) + 1
        digest = hashlib.sha256(f"{key}\n{seen[key]}".encode()).hexdigest()
        make = getattr(nbformat.v4, f"new_{cell.cell_type}_cell")
        cells.append(make(cell.source, id=digest[:12], metadata=kept(cell.metadata)))
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def kept(metadata: dict) -> dict:
    """The cell metadata that belongs to a lesson; editors add more.

    `lines_to_next_cell` is how jupytext remembers blank lines. Without it JupyterLab
    takes two blank lines for an edit and refuses to open the pair.
    """
    names = ("tags", "jupyter", "lines_to_next_cell")
    return {k: metadata[k] for k in names if metadata.get(k) not in (None, [], {})}


def differences(nb: NotebookNode, source: Path) -> list[str]:
    """How the cells of a notebook differ from its .py: type, text, tags.

    Stricter than jupytext's own comparison, which forgives what its round trip may
    change, and read-only: `jupytext --sync` trusts file times and can undo an edit.
    """
    want = from_source(source).cells
    found = []
    if len(nb.cells) != len(want):
        found.append(f"{len(nb.cells)} cells, the .py has {len(want)}")
    for i, (a, b) in enumerate(zip(nb.cells, want, strict=False)):
        for what, x, y in (
            ("type", a.cell_type, b.cell_type),
            ("text", a.source, b.source),
            ("tags or spacing", kept(a.metadata), b.metadata),
        ):
            if x != y:
                found.append(f"cell {i}: other {what} than in the .py")
    return found


def orphans(folder: Path) -> list[str]:
    """Files of a pair whose other half is missing."""
    suffixes = {".py": ".ipynb", ".ipynb": ".py"}
    return [
        f"{p.name}: no {p.with_suffix(suffixes[p.suffix]).name} beside it"
        for p in sorted(folder.iterdir())
        if p.suffix in suffixes and not p.with_suffix(suffixes[p.suffix]).exists()
    ]


# --- Provenance ------------------------------------------------------------------


def provenance(source: Path, root: Path = ROOT) -> dict[str, str]:
    """What a lesson's outputs depend on: its .py, the package, the data, torch."""
    package = root.glob("bdcourse/**/*.py")
    data = (p for d in ("zoo", "results") for p in root.glob(f"data/{d}/**/*"))
    return {
        "source": digest([source], source.parent),
        "package": digest(package, root),
        "data": digest(data, root),
        "torch": version("torch").split("+")[0],  # the CPU build is the same torch
    }


def digest(files: Iterable[Path], root: Path) -> str:
    """One hash over names and contents. Hidden files do not count."""
    total = hashlib.sha256()
    for p in sorted(files):
        if p.is_file() and not p.name.startswith("."):
            content = hashlib.sha256(p.read_bytes()).hexdigest()
            total.update(f"{p.relative_to(root).as_posix()} {content}\n".encode())
    return total.hexdigest()


# --- Execution -------------------------------------------------------------------


def execute(nb: NotebookNode, folder: Path, timeout: int) -> float | None:
    """Run all cells in a fresh kernel, in place. Returns its peak memory in MiB."""
    client = NotebookClient(
        nb,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,  # time stamps would change the file on every build
        coalesce_streams=True,
        extra_arguments=["--log-level=40"],  # no advice about transport encryption
        resources={"metadata": {"path": str(folder)}},
    )
    client.reset_execution_trackers()
    with client.setup_kernel():
        for channel in (client.kc.shell_channel, client.kc.iopub_channel):
            channel.get_msg = patient(channel.get_msg)
        for i, cell in enumerate(nb.cells):
            try:
                client.execute_cell(cell, i)
            except CellExecutionError as e:
                raise BuildError(where(cell, i) + f"\n{e.ename}: {e.evalue}") from None
            except CellTimeoutError:
                why = f"\nstill running after {timeout} s"
                raise BuildError(where(cell, i) + why) from None
            except DeadKernelError:
                why = "\nthe kernel died; often the machine ran out of memory"
                raise BuildError(where(cell, i) + why) from None
        client.set_widgets_metadata()
        peak = peak_memory(client.km.provisioner.pid)
    widgets = nb.metadata.pop("widgets", {}).get(STATE, {}).get("state", {})
    for i, cell in enumerate(nb.cells):
        if cell.cell_type != "code":
            continue
        cell.outputs = list(without_widgets(cell.outputs, widgets))
        for output in cell.outputs:
            if output.output_type != "error":
                continue
            message = f"{output.ename}: {output.evalue}"
            # interact() shows an exception and goes on, so the client did not raise it.
            if "raises-exception" not in cell.metadata.get("tags", []):
                raise BuildError(where(cell, i) + f"\n{message}")
            output.traceback = [message]  # the rest names this machine's folders
    return peak


def patient(get_msg: Callable) -> Callable:
    """The same receiver, looking again every second.

    On a busy machine the sockets of asyncio were seen to sleep on beside a message that
    had come, until the whole time of a cell was over.
    """

    async def receive(timeout: float | None = None) -> dict:
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            left = 1.0 if end is None else min(1.0, max(0.0, end - time.monotonic()))
            try:
                return await ensure_async(get_msg(timeout=left))
            except Empty:
                if end is not None and time.monotonic() >= end:
                    raise

    return receive


def where(cell: NotebookNode, index: int) -> str:
    return f"cell {index}, which begins\n    {cell.source.strip().splitlines()[0]}"


def peak_memory(pid: int) -> float | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None  # not Linux
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def without_widgets(outputs: Iterable[dict], widgets: dict) -> Iterator[NotebookNode]:
    """Replace each widget by the outputs it holds, in the order of its tree."""
    for output in outputs:
        output = nbformat.from_dict(output)
        view = output.get("data", {}).pop(VIEW, None)
        if view is None:
            yield output
            continue
        inside = list(without_widgets(held(view["model_id"], widgets), widgets))
        yield from inside or [output]


def held(model_id: str, widgets: dict) -> Iterator[dict]:
    state = widgets.get(model_id, {}).get("state", {})
    yield from state.get("outputs") or []
    for child in state.get("children") or []:
        yield from held(child.removeprefix("IPY_MODEL_"), widgets)


def write(nb: NotebookNode, target: Path) -> None:
    """Write whole or not at all, and leave an equal file alone."""
    nbformat.validate(nb)
    text = nbformat.writes(nb) + "\n"
    if target.exists() and target.read_text(encoding="utf-8") == text:
        return
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=target.parent, prefix=".", delete=False
    ) as f:
        f.write(text)
    os.chmod(f.name, 0o644)
    os.replace(f.name, target)


# --- Commands --------------------------------------------------------------------


def select(folder: Path, names: Sequence[str]) -> list[Path]:
    sources = sorted(folder.glob("*.py"))
    if not names:
        return sources
    chosen = []
    for name in names:
        stem = Path(name).stem
        hits = [p for p in sources if p.stem == stem or p.stem.startswith(f"{stem}_")]
        if not hits:
            known = ", ".join(p.stem for p in sources) or "none"
            raise BuildError(f"no lesson is called {name}; there are: {known}")
        chosen += hits
    return sorted(set(chosen))


def stored(target: Path) -> NotebookNode | None:
    """The notebook as it lies there, or None if it is missing or unreadable."""
    try:
        return nbformat.read(target, as_version=4)
    except (OSError, nbformat.reader.NotJSONError, nbformat.ValidationError):
        return None


def build(folder: Path, names: Sequence[str], force: bool, timeout: int) -> None:
    for source in select(folder, names):
        target = source.with_suffix(".ipynb")
        nb = from_source(source)
        nb.metadata["bdcourse"] = provenance(source)
        old = stored(target)
        if old is not None and not force:
            # An editor that saved other outputs has also changed the metadata.
            if old.metadata == nb.metadata and not differences(old, source):
                print(f"{source.stem}: fresh")
                continue
        start = time.perf_counter()
        try:
            peak = execute(nb, folder, timeout)
        except BuildError as e:
            raise BuildError(f"{source.name}, {e}") from None
        seconds = time.perf_counter() - start
        write(nb, target)
        memory = "unknown" if peak is None else f"{peak:.0f} MiB"
        print(f"{source.stem}: {seconds:.1f} s, peak memory {memory}", flush=True)


def check(folder: Path, names: Sequence[str]) -> list[str]:
    """Everything wrong with the pairs. Warnings go to stderr."""
    wrong = orphans(folder)
    for source in select(folder, names):
        target = source.with_suffix(".ipynb")
        if not target.exists():
            continue  # already named as an orphan
        nb = stored(target)
        if nb is None:
            wrong.append(f"{target.name}: not a readable notebook")
            continue
        wrong += [f"{target.name}: {d}" for d in differences(nb, source)]
        old, new = nb.metadata.get("bdcourse", {}), provenance(source)
        if old.get("source") != new["source"]:
            wrong.append(f"{target.name}: its outputs are from another {source.name}")
        for what in ("package", "data", "torch"):
            if old.get(what) != new[what]:
                print(
                    f"warning: {target.name}: its outputs are from another {what}",
                    file=sys.stderr,
                )
    return wrong


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python tools/notebooks.py")
    b = parser.add_subparsers(required=True).add_parser(
        "build", description="make, run and store the lessons"
    )
    b.add_argument("names", nargs="*", help="lessons, by name or number; default all")
    b.add_argument("--check", action="store_true", help="compare pairs, run nothing")
    b.add_argument("--force", action="store_true", help="run fresh lessons too")
    b.add_argument("--timeout", type=int, default=600, help="seconds for one cell")
    b.add_argument("--folder", type=Path, default=ROOT / "notebooks")
    a = parser.parse_args(argv)
    folder = a.folder.resolve()
    try:
        if not a.check:
            build(folder, a.names, a.force, a.timeout)
        elif wrong := check(folder, a.names):
            raise BuildError("\n".join(wrong) + "\n`make notebooks` makes them anew")
    except BuildError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
