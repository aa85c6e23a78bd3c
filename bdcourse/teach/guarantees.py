"""What a submission cannot do on this machine, found by trying it.

`python -m bdcourse labs confined` prints the table; the guide for instructors holds the
one of a current Linux. Each line is a promise and the attempts that would break it,
made in a confined process against a file, a socket and a process of our own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bdcourse.teach.submission import Submission

# Statement -> attempts. Each is Python that raises an OSError where it is refused;
# `there` is a folder outside, `pid` a process, `tcp` and `udp` ports, `name` of an
# abstract socket, `left` and `key` of what would be left behind.
PROMISES = {
    "reads no file but Python's, the course's and its data": """
open(there + "/marks.db").read()
os.listdir(there)
os.open(there, os.O_RDONLY)
open(f"/proc/{pid}/environ").read()
os.listdir("/proc")
os.readlink(f"/proc/{pid}/fd/0")""",
    "writes, makes and deletes nothing outside a folder of its own, which is deleted behind it": """
open(there + "/marks.db", "a")
open(there + "/new", "w")
os.truncate(there + "/marks.db", 0)
os.unlink(there + "/a")
os.mkdir(there + "/folder")
os.rename(there + "/b", there + "/c")
os.link(there + "/marks.db", there + "/d")
os.symlink(there, "link")
os.mkfifo("pipe")
os.mknod(there + "/e")""",
    "changes no mode, owner, time or attribute of a file": """
os.chmod(there + "/marks.db", 0o777)
os.chown(there + "/marks.db", os.getuid(), os.getgid())
os.utime(there + "/marks.db", (0, 0))
os.utime(there, (0, 0))
os.setxattr(there + "/marks.db", "user.x", b"1")""",
    "connects to nobody: no TCP, UDP, Unix or abstract socket, to this machine or to another": """
socket.create_connection(("127.0.0.1", tcp), 2)
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", udp))
socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
socket.socket(socket.AF_UNIX).connect(there + "/socket")
socket.socket(socket.AF_UNIX).connect(name)
socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)""",
    "starts no process and no program": """
os.fork()
os.posix_spawn(sys.executable, [sys.executable, "-c", ""], {})
os.execv(sys.executable, [sys.executable, "-c", ""])
subprocess.run([sys.executable, "-c", ""])
call("unshare", 272, 97, 0x10000000)""",
    "sends no signal and looks into no other process": """
os.kill(pid, 0)
os.kill(os.getppid(), 0)
os.kill(-1, 0)
os.killpg(os.getpgid(pid), 0)
os.pidfd_open(pid)
fcntl.fcntl(0, fcntl.F_SETOWN, pid)
fcntl.fcntl(0, fcntl.F_SETSIG, 9)
call("process_vm_readv", 310, 270, pid, 0, 0, 0, 0, 0)
call("ptrace", 101, 117, 16, pid, 0, 0)
call("prctl", 157, 167, 1, 0, 0, 0)""",
    "changes nobody's priority, processors or limits": """
os.nice(1)
os.setpriority(os.PRIO_PROCESS, pid, 5)
os.sched_setaffinity(pid, {0})
os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))
resource.prlimit(pid, resource.RLIMIT_NOFILE, (9, 9))
resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))""",
    "leaves nothing in shared memory, queues or keys": """
open(f"/dev/shm/{left}", "w")
multiprocessing.shared_memory.SharedMemory(left + "-2", True, 10)
call("shmget", 29, 194, key, 4096, 0o1666)
call("msgget", 68, 186, key, 0o1666)
call("mq_open", 240, 180, left.encode(), 0o102, 0o666, 0)
call("keyctl", 250, 219, 0, -3, 0)""",
    "sees no environment variable of yours": """
os.environ["BDCOURSE_PROBE"]""",
}
TRY = """
import fcntl, multiprocessing.shared_memory, os, resource, socket, subprocess, sys
import ctypes, platform
def call(name, x86, arm, *args):
    ctypes.set_errno(0)
    number = x86 if platform.machine() == "x86_64" else arm
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, *args) < 0:
        raise OSError(ctypes.get_errno(), name)
def attempt(line, **about):
    try:
        exec(line, globals() | about)
    except (OSError, ValueError, KeyError) as e:
        return type(e).__name__
    return ""
"""


@contextlib.contextmanager
def targets() -> Iterator[dict[str, object]]:
    """Something outside to be got at, by the names that the attempts use."""
    with contextlib.ExitStack() as stack:
        there = stack.enter_context(tempfile.TemporaryDirectory(prefix="outside-"))
        for file in ("marks.db", "a", "b"):
            Path(there, file).write_text("all marks")
        other = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        stack.callback(other.wait)
        stack.callback(other.kill)
        sockets: dict[str, tuple[int, int, Any]] = {
            "tcp": (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            "udp": (socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            "unix": (socket.AF_UNIX, socket.SOCK_STREAM, f"{there}/socket"),
        }
        if sys.platform.startswith("linux"):
            name = f"\0bdcourse-{os.getpid()}"
            sockets["name"] = (socket.AF_UNIX, socket.SOCK_STREAM, name)
        about: dict[str, Any] = {"there": there, "pid": other.pid, "name": ""}
        for what, (family, kind, address) in sockets.items():
            s = stack.enter_context(socket.socket(family, kind))
            s.bind(address)
            if kind == socket.SOCK_STREAM:
                s.listen()
            about[what] = address if what in ("unix", "name") else s.getsockname()[1]
        about |= {"left": f"bdcourse-{other.pid}", "key": 0x62640000 + other.pid}
        stack.callback(_clear, about["left"], about["key"])
        yield about


def _clear(left: str, key: int) -> None:
    """Take away what attempts have left where nothing refused them."""
    for name in (left, f"{left}-2"):
        Path("/dev/shm", name).unlink(missing_ok=True)
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        libc.mq_unlink(f"/{left}".encode())
        if (memory := libc.shmget(key, 0, 0)) >= 0:
            libc.shmctl(memory, 0, None)
        if (queue := libc.msgget(key, 0)) >= 0:
            libc.msgctl(queue, 0, None)


def broken() -> dict[str, list[str]]:
    """Each promise with the attempts that were not refused on this machine."""
    os.environ["BDCOURSE_PROBE"] = "secret"
    try:
        with targets() as about, Submission(patience=60) as student:
            student.run(TRY)
            attempt: Any = student.find("attempt")
            return {
                promise: [line for line in lines.strip().splitlines() if not attempt(line, **about)]
                for promise, lines in PROMISES.items()
            }
    finally:
        del os.environ["BDCOURSE_PROBE"]


def promises(found: dict[str, list[str]] | None = None) -> str:
    """Markdown: what holds on this machine."""
    found = broken() if found is None else found
    rows = [f"| {promise} | {'no' if lines else 'yes'} |" for promise, lines in found.items()]
    return "\n".join(["| A submission, while it is graded, | holds here |", "|---|---|", *rows])
