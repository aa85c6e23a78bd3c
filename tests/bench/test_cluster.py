"""Cells on several processes: one result each, though a worker dies on the way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from bdcourse.__main__ import main
from bdcourse.bench import cells, cluster
from bdcourse.bench import run as bench
from bdcourse.bench.plans import PLANS, Plan
from bdcourse.bench.results import Results, identity

distributed = pytest.importorskip("distributed")
pytest.importorskip("cryptography")

SMALL = {"width": 4, "epochs": 6}  # fewer leave the twin at chance
GRID = {"attacks": ["BadNets", "Blended"], "n": 240, "n_test": 300, "clean": 0.1, "scales": [SMALL]}
DEFENSES = ["none", "clp, u = 3", "fine-tuning", "random channels"]
CELLS = 3 * len(DEFENSES)


def written(security, folder: Path) -> dict[str, str]:
    """The certificates of a cluster as files, by the options that name them."""
    texts = {
        "tls_ca": security.tls_ca_file,
        "tls_cert": security.tls_client_cert,
        "tls_key": security.tls_client_key,
    }
    for name, text in texts.items():
        (folder / f"{name}.pem").write_text(text)
    return {name: str(folder / f"{name}.pem") for name in texts}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """A scheduler with three worker processes and certificates, as a user's would be:
    the options that name it, and what else asks it."""
    from bdcourse.bench.processes import started

    os.environ["BDCOURSE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    with started(3) as found:
        files = written(found.security, tmp_path_factory.mktemp("tls"))
        found.where = {"scheduler": found.scheduler_address, **files}
        yield found
    del os.environ["BDCOURSE_CACHE"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder for victims of the grid, which are trained once where that is no matter."""
    return tmp_path_factory.mktemp("runs")


def grid(out: Path, keep: Path | None = None, **where) -> Results:
    keep = keep or out.parent / "runs"
    return bench.run("signs", out, keep=keep, defenses=DEFENSES, **GRID | where)


def test_a_killed_worker_loses_nothing_and_repeats_nothing(three, tmp_path, capsys):
    out, killed = tmp_path / "rows.json", []

    def kill():
        with distributed.Client(three, security=three.security) as client:
            while not list((tmp_path / "rows.json.cells").glob("*.json")):
                time.sleep(0.05)
            busy = {w: keys for w, keys in client.processing().items() if keys}
            pids = client.run(os.getpid)
            worker, keys = next(iter(busy.items()))
            os.kill(pids[worker], signal.SIGKILL)
            killed.append((pids[worker], keys))

    murderer = threading.Thread(target=kill)
    murderer.start()
    results = grid(out, **three.where, threads=1)  # more would wait for each other
    murderer.join()
    assert killed and killed[0][1], "no worker was killed at work"
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == CELLS == len({identity(r) for r in rows})
    assert not results.failed and all("acc" in r for r in rows)
    assert not (tmp_path / "rows.json.cells").exists()
    said = capsys.readouterr().out
    assert f"[{CELLS}/{CELLS}, 0 s left]" in said
    # Victims were trained once, and here too nothing is left to do.
    kinds = sorted(p.stem.split("-")[1] for p in (tmp_path / "runs").glob("*.json"))
    assert kinds == ["BadNets", "Blended", "none"]
    before = out.read_bytes()
    grid(out)
    assert out.read_bytes() == before


def test_a_cluster_gives_what_one_process_gives(three, runs, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = {"only": ["BadNets/none", "none/clp*", "BadNets/fine-tuning"]}
    torch.set_num_threads(1)
    alone = grid(tmp_path / "a" / "r.json", runs, **one)
    one |= three.where | {"threads": 1}
    dealt = grid(tmp_path / "b" / "r.json", **one)
    assert len(alone.rows) == len(dealt.rows) == 3
    found = {identity(r): r for r in dealt.rows}
    for r in alone.rows:  # another number of threads adds in another order
        other = found[identity(r)]
        assert r["n_poisoned"] == other["n_poisoned"] and r["how"] == other["how"]
        assert abs(r["acc"] - other["acc"]) < 0.1


def test_a_failing_victim_fails_its_own_cells_only(three, runs, tmp_path, capsys):
    options = {"Blended": {"alpha": 1.5}}
    results = bench.run(
        "signs",
        tmp_path / "r.json",
        keep=runs,
        options=options,
        defenses=["none", "clp, u = 3"],
        threads=1,
        **three.where,
        **GRID,
    )
    assert sorted("error" in r for r in results.rows) == [False] * 4 + [True] * 2
    assert len(results.failed) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: Blended, seed 0: alpha must be a finite number")
    assert err.count("\n") == 1


def test_crowded_workers_and_dead_addresses_are_refused(tmp_path, capsys):
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as crowded:
        with pytest.raises(RuntimeError, match="--nthreads 1"):
            grid(tmp_path / "r.json", scheduler=crowded.scheduler_address)
    command = ["bench", "--n", "240", "--out", str(tmp_path / "r.json")]
    assert main([*command, "--scheduler", "tcp://127.0.0.1:9"]) == 1
    assert "no Dask scheduler at tcp://127.0.0.1:9" in capsys.readouterr().err
    assert main([*command, "--workers", "0"]) == 1
    assert "workers must be a whole number in 1..1000" in capsys.readouterr().err


# A process of somebody else: at each address, what Dask's own members say to have a
# function run, as a scheduler, a worker or a nanny takes it.
INTRUDER = """
import asyncio, os, ssl, sys
from distributed import Client, Security
from distributed.core import connect
from distributed.protocol.pickle import dumps

folder, *addresses = sys.argv[1:]

def mark(name):
    open(name, "w").close()

bare = ssl.create_default_context()
bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
own = Security.temporary().get_connection_args("client")["ssl_context"]
own.verify_mode = ssl.CERT_NONE

async def say(address, how, context, op):
    mine = dumps((f"{folder}/{how}-{op}-{address.rpartition(':')[2]}",))
    message = {"op": op, "function": dumps(mark), "args": mine, "kwargs": dumps({}),
               "wait": True, "reply": True}
    try:
        comm = await connect(address, timeout=5, ssl_context=context)
        await comm.write(message)
        print(address, how, op, await asyncio.wait_for(comm.read(), 5))
        comm.abort()
    except Exception as e:
        print(address, how, op, type(e).__name__, e)

async def ask(address):
    name = f"{folder}/submitted-{address.rpartition(':')[2]}"
    try:
        async with Client(address, asynchronous=True, timeout=5) as client:
            await asyncio.wait_for(client.submit(mark, name, pure=False), 5)
    except Exception as e:
        print(address, "submit", type(e).__name__, e)

async def main():
    tries = []
    for a in addresses:
        tries.append(ask("tcp://" + a))
        for op in ("run", "run_function"):
            tries.append(say("tcp://" + a, "plain", None, op))
            tries.append(say("tls://" + a, "bare", bare, op))
            tries.append(say("tls://" + a, "own", own, op))
    await asyncio.wait([asyncio.create_task(t) for t in tries], timeout=15)
    sys.stdout.flush()
    os._exit(0)  # whatever a page of HTTP keeps waiting

asyncio.run(main())
"""


def listening(pid: int) -> set[tuple[str, int]]:
    """Where a process and its children wait to be called."""
    found = set()
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        try:
            sockets = process.net_connections("inet")
        except psutil.Error:  # it has just ended
            continue
        found |= {tuple(c.laddr) for c in sockets if c.status == "LISTEN"}
    return found


def intruded(addresses: list[str], folder: Path) -> tuple[list[str], str]:
    """What a process that has no certificate could run there, and what it was told."""
    folder.mkdir()
    run = [sys.executable, "-c", INTRUDER, str(folder), *addresses]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return sorted(p.name for p in folder.iterdir()), done.stdout


def test_nobody_else_can_run_code_in_a_cluster_of_the_bench(tmp_path):
    # What the intruder says has to be what an open cluster would obey.
    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=1,
        dashboard_address=None,
        silence_logs="CRITICAL",
    ) as cluster:
        (worker,) = cluster.scheduler_info["workers"].items()
        called = [cluster.scheduler_address, worker[0], worker[1]["nanny"]]
        called = [a.removeprefix("tcp://") for a in called]
        there, told = intruded(called, tmp_path / "open")
    port, *members = (a.split(":")[1] for a in called)
    assert {f"submitted-{port}", f"plain-run_function-{port}"} <= set(there), told
    assert {f"plain-run-{p}" for p in members} <= set(there), told

    # Who was started in the background may have been told to ignore Ctrl-C.
    start = """import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from bdcourse.__main__ import main
sys.exit(main(sys.argv[1:]))"""
    command = [
        sys.executable,
        "-c",
        start,
        "bench",
        "--attacks",
        "BadNets",
        "--defenses",
        "none",
        "clp, u = 3",
        "--n",
        "240",
        "--n-test",
        "300",
        "--clean",
        "0.1",
        "--width",
        "4",
        "--epochs",
        "40",
        "--workers",
        "2",
        "--out",
        str(tmp_path / "rows.json"),
        "--keep",
        str(tmp_path / "runs"),
    ]
    bench = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 180
        while len(listening(bench.pid)) < 5:  # a scheduler, two nannies, two workers
            assert bench.poll() is None and time.monotonic() < until
            time.sleep(0.1)
        time.sleep(1)  # pages, if there were any, would be there by now
        found = listening(bench.pid)
        called = [f"127.0.0.1:{port}" for _, port in found]
        there, told = intruded(called, tmp_path / "closed")
        assert bench.poll() is None, "it ended too early to tell"
        assert there == [], told
        assert "TLS (closed)" in told, "it did not even try"
        assert {host for host, _ in found} == {"127.0.0.1"}
        assert len(found) == 5, "something else listens: a dashboard?"
    finally:
        bench.send_signal(signal.SIGINT)
        try:
            said, _ = bench.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            bench.kill()
            raise
    assert bench.returncode == 130, said
    assert "stopped; finished rows are kept" in said
    # Python's own tracker may say of a process that was stopped what it left to it.
    ours = [line for line in said.splitlines() if "resource_tracker" not in line]
    said = "\n".join(line for line in ours if "warnings.warn(" not in line)
    assert "Traceback" not in said and "in use" not in said and "arning" not in said


def test_workers_import_nothing_from_a_folder_of_everybody(three):
    with distributed.Client(three, security=three.security) as client:
        for path in [*client.run(lambda: sys.path).values(), sys.path]:
            scratch = [Path(p) for p in path if "dask-scratch-space" in p]
            for folder in scratch:
                private = [f for f in folder.parents if f.name.startswith("bdcourse-")]
                assert private and private[0].stat().st_mode & 0o777 == 0o700


def test_a_dashboard_is_served_to_this_machine_if_asked(capsys, tmp_path):
    pytest.importorskip("bokeh")
    from bdcourse.bench.processes import started

    with started(1, dashboard=True) as found:
        port = int(found.dashboard_link.split(":")[2].split("/")[0])
        assert ("127.0.0.1", port) in listening(os.getpid())
    assert ("127.0.0.1", port) not in listening(os.getpid())


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    for package, more in (("cryptography", {}), ("bokeh", {"dashboard": True})):
        with monkeypatch.context() as m:
            m.setitem(sys.modules, package, None)
            with pytest.raises(RuntimeError, match=f"pip install {package}"):
                grid(tmp_path / "r.json", workers=2, **more)


def test_a_scheduler_with_certificates_wants_them(three, tmp_path):
    other = written(distributed.Security.temporary(), tmp_path)
    address, files = three.where["scheduler"], three.where
    (tmp_path / "no.pem").write_text("no certificate")
    no = str(tmp_path / "no.pem")
    for where, says in (
        ({"scheduler": address}, "give --tls-ca, --tls-cert and --tls-key"),
        (files | {"tls_key": other["tls_key"]}, "are not an authority, a certificate"),
        (files | {"tls_ca": no}, "are not an authority, a certificate"),
        (files | {"tls_cert": str(tmp_path)}, "--tls-cert: .* cannot be read"),
        (files | {"tls_ca": None}, "--tls-cert needs --tls-ca beside it"),
        (files | {"scheduler": "tcp://127.0.0.1:9"}, "begins with tls://"),
        ({"dashboard": True}, "leave --dashboard out"),
    ):
        with pytest.raises(ValueError, match=says) as e:
            cluster.placed(**where)
        assert "\n" not in str(e.value)
    with pytest.raises(RuntimeError, match=f"no Dask scheduler at {address}") as e:
        grid(tmp_path / "r.json", **{"scheduler": address} | other)
    assert "with certificates of its authority" in str(e.value)


def test_certificates_of_dasks_own_settings_will_do(three):
    files = three.where
    keys = {"ca-file": "tls_ca", "client.cert": "tls_cert", "client.key": "tls_key"}
    keys = {f"distributed.comm.tls.{k}": files[v] for k, v in keys.items()}
    with distributed.client.dask.config.set(keys):
        where = cluster.placed(scheduler=files["scheduler"])
    assert where["tls_ca"] is None


@pytest.mark.parametrize(
    "address, alarming",
    [
        ("tcp://10.0.0.5:8786", True),
        ("10.0.0.5:8786", True),
        ("tcp://node7:1", True),
        ("tcp://[fe80::1]:8786", True),
        ("ws://10.0.0.5:1", True),
        ("tcp://0.0.0.0:8786", True),
        ("tls://10.0.0.5:8786", False),
        ("tcp://127.0.0.1:8786", False),
        ("localhost:8786", False),
        ("tcp://[::1]:8786", False),
        ("inproc://10.0.0.5/1/1", False),
    ],
)
def test_an_address_that_asks_nobody_who_they_are_is_told(address, alarming):
    said = cluster._open_to_all(address)
    assert bool(said) == alarming
    if alarming:
        assert address in said and "runs code as you" in said and "\n" not in said


def test_the_warning_comes_before_anything_is_said_to_the_cluster(tmp_path, monkeypatch, capsys):
    def refused(*about, **more):
        raise OSError("refused")

    monkeypatch.setattr(distributed, "Client", refused)
    for address, alarming in (("tcp://0.0.0.0:9", True), ("tcp://127.0.0.1:9", False)):
        with pytest.raises(RuntimeError, match="no Dask scheduler"):
            grid(tmp_path / "r.json", scheduler=address)
        assert ("runs code as you" in capsys.readouterr().err) == alarming


CTRL_C = """
import os, signal, subprocess
from bdcourse.bench import cluster
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with cluster._undisturbed():
        started = subprocess.Popen(["sleep", "60"])
        for pid in (started.pid, os.getpid()):
            os.kill(pid, signal.SIGINT)
        print("inside", started.poll())
except KeyboardInterrupt:
    print("after", started.poll())
started.terminate()
"""


def test_ctrl_c_waits_for_workers_to_start_and_never_reaches_them():
    # By itself: threads of another cluster would take the signal at any time.
    run = [sys.executable, "-c", CTRL_C]
    found = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert found.stdout == "inside None\nafter None\n", found.stderr


def test_a_twin_that_guesses_ends_a_dealt_run(three, tmp_path):
    small = three.where | {"scales": [{"width": 4, "epochs": 0.2}]}
    with pytest.raises(cells.AtChance, match="the twin is at chance"):
        grid(tmp_path / "r.json", **small)
    assert not (tmp_path / "r.json").exists()


def test_the_first_row_of_a_cell_counts(tmp_path):
    cell = {"attack": "none", "defense": "none", "epochs": 12}
    first = cluster.keep(tmp_path / "c", cell | {"acc": 0.5})
    again = cluster.keep(tmp_path / "c", cell | {"acc": 0.6, "epochs": 12.0})
    assert first["acc"] == again["acc"] == 0.5
    assert cluster.stored(tmp_path / "c", cell)["acc"] == 0.5
    failed = cluster.keep(tmp_path / "c", cell | {"defense": "clp", "error": "x"})
    assert cluster.stored(tmp_path / "c", failed) is None
    results = Results(tmp_path / "c.json")
    results.add(again)
    (tmp_path / "c" / "half.json").write_text("{")  # a disk was full
    cluster.forget(tmp_path / "c", results)
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["half.json"]


def test_rows_that_a_dead_run_left_are_taken_up(tmp_path, only):
    def run():
        return bench.run_zoo(tmp_path / "r.json", ["benign-w8"], ["none", "spy"], only=["*/*"])

    calls = []
    only(PLANS["none"], Plan("spy", lambda case: calls.append(1)))
    run()  # the spy returns nothing, which is an error and is tried again
    rows = run().rows
    assert len(calls) == 2 and "error" in rows[1] and len(rows) == 2
    left = {k: v for k, v in rows[1].items() if k != "error"}
    left |= {"acc": 0.25, "asr": None, "ra": None, "pruned": 0}
    cluster.keep(tmp_path / "r.json.cells", left)
    rows = run().rows
    assert len(calls) == 2 and rows[1]["acc"] == 0.25 and len(rows) == 2
    assert not (tmp_path / "r.json.cells").exists()


def test_two_runs_cannot_write_one_file(tmp_path):
    results = Results(tmp_path / "r.json")
    with results.owned():
        with pytest.raises(RuntimeError, match="another run is writing"):
            with Results(tmp_path / "r.json").owned():
                pass
    with Results(tmp_path / "r.json").owned() as again:
        assert again.rows == []
    assert list(tmp_path.iterdir()) == []


def test_jobs_part_by_the_work_that_they_share():
    names = tuple(PLANS)
    subject = cells.Subject("signs", bench.recipe_for("signs"))
    parts = cells.Job(subject, {}, names).apart()
    assert sorted(n for p in parts for n in p.names) == sorted(names)
    of = {n: p.names for p in parts for n in p.names}
    masks = ("anp", "anp, 3 points", "anp, 10 points", "anp (oracle)")
    assert of["anp"] == (*masks, "anp, 10 points, random channels")
    guesses = ("linf", "linf, all layers", "linf, random channels", "nc unlearning")
    assert of["linf"] == guesses and of["fmp, no maps"] == ("fmp, no maps",)
    assert "mnp, random channels" in of["mnp, soft"]
    assert len({p.identity() for p in parts}) == len(parts)


def test_a_cell_file_cut_short_is_replaced(tmp_path):
    cell = {"attack": "none", "defense": "none"}
    first = cluster.keep(tmp_path / "c", cell | {"acc": 0.5})
    (path,) = (tmp_path / "c").iterdir()
    path.write_text("{")
    again = cluster.keep(tmp_path / "c", cell | {"acc": 0.6})
    assert first["acc"] == 0.5 and again["acc"] == 0.6
    assert cluster.stored(tmp_path / "c", cell)["acc"] == 0.6
