"""Dask's processes on this machine, for nobody but who started them.

Whoever reaches a scheduler, a worker or its nanny can run code as their owner, and on a
machine that several people use, everybody reaches a port of it. So every connection
asks for a certificate that exists only in the memory of these processes, they listen on
the loopback address alone, and no page is served unless it is asked for. Used by
`bench --workers`.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator

import dask
import distributed
from distributed import Security, SpecCluster

HERE = "127.0.0.1"


class _NoPages:
    """Serves no pages: Dask's own servers do so even without a dashboard, in plain."""

    def start_http_server(self, *args, **kwargs) -> None:
        pass


class Scheduler(_NoPages, distributed.Scheduler):
    pass


class _Worker(_NoPages, distributed.Worker):
    pass


@contextlib.contextmanager
def started(workers: int, dashboard: bool = False) -> Iterator[SpecCluster]:
    """So many worker processes of one thread each, with their scheduler.

    Args:
        dashboard: serve Dask's page on the loopback address; it is not secret, and only
            shows.

    Raises:
        ImportError: a package that this needs is not installed.
    """
    if dashboard:
        import bokeh  # noqa: F401  # else Dask serves a page that asks for it
    security = Security.temporary()
    common = {"host": HERE, "protocol": "tls://", "security": security}
    with contextlib.ExitStack() as stack:
        # Dask imports from its scratch folder first, which by default has a name in
        # /tmp that anybody may have taken before.
        scratch = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="bdcourse-", ignore_cleanup_errors=True)
        )
        stack.enter_context(dask.config.set({"temporary-directory": scratch}))
        scheduler = {
            "cls": distributed.Scheduler if dashboard else Scheduler,
            "options": common
            | {
                "port": 0,
                "dashboard": dashboard,
                "dashboard_address": f"{HERE}:0" if dashboard else None,
            },
        }
        nanny = {
            "cls": distributed.Nanny,
            "options": common
            | {
                "worker_class": _Worker,
                "nthreads": 1,
                "memory_limit": 0,
                "local_directory": scratch,
                "dashboard": False,
                "silence_logs": "CRITICAL",
            },
        }
        yield stack.enter_context(
            SpecCluster(
                scheduler=scheduler,
                workers=dict.fromkeys(range(workers), nanny),
                worker=nanny,
                security=security,
                silence_logs="CRITICAL",
            )
        )
