"""Deal the cells of a table out to processes, here or on a cluster.

Dask does the dealing: `--workers 4` starts four processes on this machine, which nobody
else can reach, `--scheduler tls://HOST:PORT` takes a cluster that is already there. A
victim is trained once, before the cells that need it. A worker that dies loses the cell
it was at, which Dask gives to another; rows that it had finished are found where it
left them. Derived in lesson 09.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import ipaddress
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import torch

from bdcourse import require
from bdcourse.bench.cells import AtChance, Job, Subject, failure, forget_images, measure
from bdcourse.bench.results import Results, identity
from bdcourse.files import whole_file


def placed(
    workers: int = 1,
    scheduler: str | None = None,
    threads: int | None = None,
    dashboard: bool = False,
    tls_ca: str | os.PathLike | None = None,
    tls_cert: str | os.PathLike | None = None,
    tls_key: str | os.PathLike | None = None,
    **unknown,
) -> dict:
    """The arguments of :func:`carried_out` that say where, checked.

    Raises:
        ValueError: one of them cannot be meant, or is not among them.
    """
    known = {
        "workers": workers,
        "scheduler": scheduler,
        "threads": threads,
        "dashboard": dashboard,
        "tls_ca": tls_ca,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
    }
    if unknown:
        name = min(unknown)
        raise ValueError(
            f"there is no argument {name!r}{require.meant(name, known)}; where cells "
            f"are measured is said by {', '.join(known)}."
        )
    require.whole("workers", workers, 1, 1000)
    if threads is not None:
        require.whole("threads", threads, 1, 1000)
    if scheduler is not None and not (isinstance(scheduler, str) and scheduler):
        raise ValueError(
            f"scheduler must be an address such as tls://HOST:8786, not {require.kind(scheduler)}."
        )
    if require.truth("dashboard", dashboard) and (scheduler or workers == 1):
        raise ValueError(
            "a dashboard is served for several processes of this machine only; give "
            "--workers 2 or more without --scheduler, or leave --dashboard out."
        )
    tls = {k: v for k, v in known.items() if k.startswith("tls_")}
    _require_tls(scheduler, tls)
    with contextlib.suppress(ImportError):  # said later
        _security(scheduler, tls)
    return known


def _require_tls(scheduler: str | None, files: dict) -> None:
    given = {name: path for name, path in files.items() if path is not None}
    for name, path in given.items():
        path = require.path(name, path)
        try:
            with open(path, "rb"):
                pass
        except (OSError, ValueError) as e:
            why = getattr(e, "strerror", None) or e
            raise ValueError(
                f"{_flag(name)}: {path} cannot be read ({why}); name a PEM file."
            ) from e
    if not given:
        return
    if scheduler is None or not scheduler.startswith("tls://"):
        raise ValueError(
            f"{_flag(min(given))} has no meaning without a --scheduler whose address "
            "begins with tls://; leave it out."
        )
    for name in ("tls_ca", "tls_cert"):
        if name not in given:
            raise ValueError(f"{_flag(min(given))} needs {_flag(name)} beside it; give both.")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def carried_out(
    jobs: Sequence[Job],
    results: Results,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    threads: int | None = None,
    dashboard: bool = False,
    tls_ca: str | os.PathLike | None = None,
    tls_cert: str | os.PathLike | None = None,
    tls_key: str | os.PathLike | None = None,
) -> Iterator[tuple[Job, dict]]:
    """Each cell of these jobs with its row, as soon as it is known.

    Args:
        results: rows of an earlier run that did not come to store them itself are taken
            from the folder NAME.json.cells beside its file.
        workers: processes on this machine; 1 measures in this one.
        scheduler: address of a Dask scheduler, instead.
        threads: of torch, in each worker; default all cores by all workers, and on a
            cluster what its workers are set to.
        dashboard: of several processes on this machine, serve Dask's page to it.
        tls_ca, tls_cert, tls_key: PEM files for a scheduler at tls://: the authority
            that its members trust, and our certificate with its key, which may also
            stand in one file. Default what Dask's own configuration names.

    Raises:
        RuntimeError: Dask is not installed, cannot be reached, or has workers that run
            several cells at once in one process.
    """
    tls = {"tls_ca": tls_ca, "tls_cert": tls_cert, "tls_key": tls_key}
    placed(workers, scheduler, threads, dashboard, **tls)
    # Workers of a cluster run in folders of their own.
    path = Path(os.path.realpath(results.path))
    folder = path.with_name(path.name + ".cells")
    if workers == 1 and scheduler is None:
        for job in jobs:
            for row in measure(job, lambda cell: stored(folder, cell)):
                yield job, row
    elif jobs:
        yield from _dealt(jobs, folder, workers, scheduler, threads, dashboard, tls)
    forget(folder, results)


def _dealt(
    jobs: Sequence[Job],
    folder: Path,
    workers: int,
    scheduler: str | None,
    threads: int | None,
    dashboard: bool,
    tls: dict,
) -> Iterator[tuple[Job, dict]]:
    try:
        from distributed import as_completed
    except ImportError:
        raise RuntimeError(
            "several processes need Dask: pip install distributed cryptography, or "
            "leave out --workers and --scheduler."
        ) from None
    with contextlib.ExitStack() as stack:
        if scheduler is None:
            threads = threads or max(1, (os.cpu_count() or 1) // workers)
            cluster = _started(stack, workers, dashboard)
            scheduler, security = cluster.scheduler_address, cluster.security
            if dashboard:
                print(f"dashboard: {cluster.dashboard_link}", flush=True)
        else:
            if warning := _open_to_all(scheduler):
                print(warning, file=sys.stderr, flush=True)
            security = _security(scheduler, tls)
        client = _client(stack, scheduler, security)
        client.run(forget_images)
        ready: dict[str, object] = {}
        owner = {}
        for job in jobs:
            trained = _train(client, job.subject, threads, ready)
            for part in job.apart():
                key = f"cells-{part.identity()}"
                future = client.submit(work, part, str(folder), threads, trained, key=key)
                owner[future] = part
        trainings = dict.fromkeys(ready.values())
        if trainings:
            print(f"training {len(trainings)} networks", flush=True)
        for future in as_completed([*trainings, *owner]):
            if future in trainings:
                if future.status == "finished":  # else its cells say why
                    print(f"  trained: {future.result()}", flush=True)
                continue
            part = owner[future]
            for row in _rows(future, part, folder):
                yield part, row


def _client(stack: contextlib.ExitStack, scheduler: str, security):
    """What talks to a scheduler, whose workers take one cell at a time."""
    from distributed import Client

    try:
        client = stack.enter_context(Client(scheduler, timeout="10s", security=security))
    except (OSError, ValueError) as e:
        raise RuntimeError(
            f"there is no Dask scheduler at {scheduler} ({e}); start one with "
            "`dask scheduler` and give the address that it prints"
            + (", with certificates of its authority." if security else ".")
        ) from None
    if not client.nthreads():
        raise RuntimeError(
            f"the scheduler at {scheduler} has no workers; start some with "
            f"`dask worker {scheduler} --nthreads 1`."
        )
    crowded = [w for w, n in client.nthreads().items() if n > 1]
    if crowded:
        raise RuntimeError(
            f"worker {crowded[0]} runs several cells at once in one process, whose "
            "random numbers would mix; start workers with --nthreads 1."
        )
    return client


def _rows(future, job: Job, folder: Path) -> list[dict]:
    """The rows of a job that has ended, well or not."""
    try:
        return future.result()
    except AtChance:
        raise
    except Exception as e:  # the others go on
        # It may have finished some of them before its worker died.
        cells = map(job.cell, job.names)
        return [stored(folder, c) or c | failure(e) for c in cells]


def _started(stack: contextlib.ExitStack, workers: int, dashboard: bool):
    """Processes of this machine, which nobody else can reach."""
    try:
        from bdcourse.bench.processes import started

        with _undisturbed():
            return stack.enter_context(started(workers, dashboard))
    except ImportError as e:
        package = (e.name or "cryptography").partition(".")[0]
        if package == "bokeh":
            raise RuntimeError(
                "the dashboard needs Bokeh: pip install bokeh, or leave out --dashboard."
            ) from None
        raise RuntimeError(
            f"several processes need {package}, whose certificates keep other users of "
            f"this machine out: pip install {package}, or leave out --workers."
        ) from None


def _open_to_all(scheduler: str) -> str | None:
    """What to say of an address whose scheduler asks nobody who they are."""
    scheme, found, rest = scheduler.rpartition("://")
    if scheme in ("tls", "wss", "inproc"):
        return None
    host = re.sub(r":\d*$", "", rest).strip("[]")
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return None
    if host == "localhost":
        return None
    return (
        f"warning: {scheduler} asks for no certificate, so anybody who reaches it runs "
        "code as you; start the cluster with TLS and give its tls:// address."
    )


def _security(scheduler: str | None, tls: dict):
    """Certificates for a scheduler at tls://, from our options or Dask's settings."""
    if scheduler is None or not scheduler.startswith("tls://"):
        return None
    from distributed import Security

    names = {"tls_ca": "tls_ca_file", "tls_cert": "tls_client_cert", "tls_key": "tls_client_key"}
    given = {names[k]: os.fspath(v) for k, v in tls.items() if v is not None}
    security: Any = Security(require_encryption=True, **given)
    if not (security.tls_ca_file and security.tls_client_cert):
        raise ValueError(
            f"{scheduler} asks for a certificate; give --tls-ca, --tls-cert and "
            "--tls-key, files that the cluster was started with."
        )
    try:
        security.get_connection_args("client")
    except (OSError, ValueError) as e:  # ssl.SSLError is an OSError
        raise ValueError(
            f"{security.tls_ca_file}, {security.tls_client_cert} and "
            f"{security.tls_client_key or 'no key'} are not an authority, a "
            f"certificate and its key in PEM ({e}); name the files that the cluster "
            "was started with."
        ) from e
    return security


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits until this is over; processes and threads begun here never get it.

    The terminal sends it to workers too, which would die of it one by one with a page
    of tracebacks; this process ends them in order.
    """
    resource_tracker.ensure_running()  # which would let Ctrl-C in again
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _train(client, subject: Subject, threads: int | None, ready: dict[str, object]):
    """The future that trains this victim, behind the one that trains its twin."""
    if subject.zoo:
        return None
    name = hashlib.sha256(json.dumps(subject.key(), sort_keys=True).encode())
    name = name.hexdigest()[:16]
    if name not in ready:
        twin = None
        if subject.attack is not None:
            twin = _train(client, subject.twin(), threads, ready)
        key = f"victim-{name}"
        ready[name] = client.submit(train, subject, threads, twin, key=key)
    return ready[name]


def train(subject: Subject, threads: int | None = None, after: str = "") -> str:
    """One victim, on a worker; who it is and what it scores."""
    if threads:
        torch.set_num_threads(threads)
    with contextlib.redirect_stdout(io.StringIO()):
        return f"{subject}: {subject.victim().scores}"


def work(job: Job, folder: str, threads: int | None = None, after: str | None = None) -> list[dict]:
    """The rows of a job, on a worker; each is kept in `folder` as soon as it exists."""
    if threads:
        torch.set_num_threads(threads)
    rows = []
    with contextlib.redirect_stdout(io.StringIO()):
        for row in measure(job, lambda cell: stored(Path(folder), cell)):
            rows.append(keep(Path(folder), row))
    return rows


# --- Cells on their way, one small file each -------------------------------------


def _file(folder: Path, row: dict) -> Path:
    name = hashlib.sha256(identity(row).encode()).hexdigest()[:24]
    return folder / f"{name}.json"


def stored(folder: Path, cell: dict) -> dict | None:
    """The row of a cell, if some worker has kept it."""
    try:
        return json.loads(_file(folder, cell).read_text())
    except (FileNotFoundError, ValueError):
        return None


def keep(folder: Path, row: dict) -> dict:
    """Store a row unless its cell has one already; returns the one that counts."""
    if "error" in row:
        return row  # it will be tried again
    final, blob = _file(folder, row), json.dumps(row).encode()
    try:
        with whole_file(final, first=True) as f:
            f.write(blob)
    except FileExistsError:
        there = stored(folder, row)
        if there is not None:
            return there
        with whole_file(final) as f:  # it was cut short by a full disk
            f.write(blob)
    return row


def forget(folder: Path, results: Results) -> None:
    """Delete the cells that the table has, and with the last one the folder."""
    for path in folder.glob("*.json"):
        with contextlib.suppress(ValueError):  # cut short: it stays to be looked at
            if results.done(json.loads(path.read_text())):
                path.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()
