"""Take from a process whatever somebody else's code does not need.

A submission is code that nobody has read. :func:`confine` binds the process that will
run it, for good, before its first line runs and before there is a second thread:

- Landlock (Linux 5.13) lets it read and write only what is listed;
- a seccomp filter (x86-64 and arm64) takes away the system calls behind everything
  else: sockets, new processes and programs, signals, priorities, modes and times of
  files, shared memory; newer versions of Landlock refuse some of these once more;
- limits on memory, time, file sizes and open files, and no capabilities.

This file imports nothing of the course, and needs no right of its own.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
import sysconfig
from collections.abc import Iterable, Sequence

MEMORY, FILE, CPU, FILES = 8 << 30, 100 << 20, 150, 256  # bytes, bytes, seconds, count


def confine(readable: Iterable[str | os.PathLike], scratch: str) -> list[str]:
    """Bind this process, for good.

    Args:
        readable: files and folders that it may read.
        scratch: the one folder in which it may write, too.

    Returns:
        which of "Landlock" and "seccomp" this system lacks; the rest is in force.

    Raises:
        RuntimeError: there are threads already, which would stay free.
    """
    _limit()
    if not sys.platform.startswith("linux"):
        return ["Landlock", "seccomp"]
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("a process with several threads cannot be confined.")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(1, 9, 0, 0, 0)  # it ends with the process that started it
    _drop_capabilities(libc)
    libc.prctl(38, 1, 0, 0, 0)  # no new privileges; the two below ask for it
    lacking = []
    if not _landlock(libc, readable, scratch):
        lacking.append("Landlock")
    if not _seccomp(libc):
        lacking.append("seccomp")
    return lacking


def _limit() -> None:
    for what, most in (
        ("AS", MEMORY),
        ("FSIZE", FILE),
        ("CPU", CPU),
        ("CORE", 0),
        ("NOFILE", FILES),
    ):
        number = getattr(resource, f"RLIMIT_{what}")
        hard = resource.getrlimit(number)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(number, (most, most))
        except (ValueError, OSError):
            pass  # macOS has no limit on memory


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Of root only: who has none loses none."""
    for capability in range(64):
        libc.prctl(24, capability, 0, 0, 0)
    header, none = struct.pack("Ii", 0x20080522, 0), bytes(24)
    libc.capset(header, none)


def unconfined() -> list[str]:
    """Which of "Landlock" and "seccomp" this system lacks; tries neither."""
    lacking = [] if landlock() else ["Landlock"]
    linux = sys.platform.startswith("linux") and platform.machine() in ARCHES
    return lacking + ([] if linux else ["seccomp"])


# --- Files: Landlock -------------------------------------------------------------

CREATE, ADD_RULE, RESTRICT = 444, 445, 446
# Of linux/landlock.h: the rights over files that each version knows, TCP, the scopes.
READ, READ_FOLDER = 1 << 2, 1 << 3
KNOWN = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
TCP, SCOPES = 3, 3
# In its own folder: write, read, delete, make files and folders; no links, devices or
# sockets, and no programs.
OWN = sum(1 << n for n in (1, 2, 3, 4, 5, 7, 8, 13, 14))


class _Rules(ctypes.Structure):
    _fields_ = [(n, ctypes.c_uint64) for n in ("files", "net", "scoped")]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def landlock() -> int:
    """The version of Linux's Landlock here; 0 if there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, ctypes.CDLL(None).syscall(CREATE, None, 0, 1))


def _landlock(libc: ctypes.CDLL, readable: Iterable, scratch: str) -> bool:
    version = landlock()
    if not version:
        return False
    known = sum(bits for v, bits in KNOWN.items() if v <= version)
    rules = _Rules(known, TCP if version >= 4 else 0, SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = libc.syscall(CREATE, ctypes.byref(rules), size, 0)
    if ruleset < 0:
        return False
    devices = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
    allowed = [(p, READ | READ_FOLDER) for p in readable]
    allowed += [(p, READ | 1 << 1) for p in devices] + [(scratch, OWN & known)]
    for path, rights in allowed:
        try:
            at = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # what is not there need not be read
        if not os.path.isdir(path):
            rights &= ~READ_FOLDER
        rule = _Beneath(rights, at)
        libc.syscall(ADD_RULE, ruleset, 1, ctypes.byref(rule), 0)
        os.close(at)
    bound = libc.syscall(RESTRICT, ruleset, 0) == 0
    os.close(ruleset)
    return bound


def of_python() -> list[str]:
    """What Python and its libraries read while they start and work."""
    paths = {p for name, p in sysconfig.get_paths().items() if "lib" in name}
    for prefix in (sys.prefix, sys.base_prefix):
        paths |= {f"{prefix}/{lib}" for lib in ("lib", "lib64")}
        paths |= {f"{prefix}/pyvenv.cfg"}
    paths |= {"/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib"}
    paths |= {"/usr/share/fonts", "/usr/share/zoneinfo", "/usr/share/fontconfig"}
    paths |= {"/etc/ld.so.cache", "/etc/localtime", "/etc/fonts", "/etc/mime.types"}
    paths |= {"/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system"}
    return sorted(paths)


# --- System calls: seccomp -------------------------------------------------------

ARCHES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
LAST = 450  # calls that came later are answered as an older kernel would
# Numbers on x86_64 and on aarch64, whose own header leaves out what is obsolete.
REFUSED = {
    # Talking to others; a pair of connected sockets is let through below.
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept": (43, 202),
    "accept4": (288, 242),
    # New processes and programs; a thread is let through below.
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "unshare": (272, 97),
    "setns": (308, 268),
    # Signals to others, and looking into them.
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "kcmp": (312, 272),
    "perf_event_open": (298, 241),
    # Priorities, processors and memory of others.
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # Modes, owners, times, attributes and locks of files, which Landlock lets pass.
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "utimensat": (280, 88),
    "futimesat": (261, None),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "flock": (73, 32),
    "truncate": (76, 45),
    "fallocate": (285, 47),  # fills a disk before anybody can look
    # What happens to files that it cannot read, which Landlock lets pass.
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    "sync": (162, 81),
    # Memory, queues and keys that outlive the process, or that no limit counts.
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    # Ways around a filter, and what only administrators do.
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "mount": (165, 40),
    "umount2": (166, 39),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "personality": (135, 92),
    "acct": (163, 89),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "fanotify_init": (300, 262),
    "vhangup": (153, 58),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
}
CLONE, CLONE3, KILL, TGKILL = (56, 220), (435, 435), (62, 129), (234, 131)
SOCKETPAIR, SENDTO, PRLIMIT = (53, 199), (44, 206), (302, 261)
FCNTL, IOCTL, PRCTL = (72, 25), (16, 29), (157, 167)
# F_SETOWN, F_SETSIG, F_SETOWN_EX: the kernel would send signals in this one's name.
# F_SETLEASE, F_NOTIFY: others would wait for it to write a file, or be watched.
OWNERS = (8, 10, 15, 1024, 1026)
# FIOSETOWN, SIOCSPGRP, TIOCSTI, TIOCLINUX: the same, and typing on a terminal.
TERMINAL = (0x8901, 0x8902, 0x5412, 0x541C)

LOAD, EQUAL, ABOVE, ANY, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
ALLOW, DIE, PERMISSION, UNKNOWN = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026


def _program(machine: str, pid: int) -> list[tuple[int, int, int, int]]:
    """The filter, in the instructions of classic BPF: (code, if true, if false, k)."""
    arch, column = ARCHES[machine]
    allow, refuse = (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, PERMISSION)
    lines = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, arch), (RETURN, 0, 0, DIE), (LOAD, 0, 0, 0)]
    # Also the numbers of x32, which begin at 1 << 30.
    lines += [(ABOVE, 0, 1, LAST), (RETURN, 0, 0, UNKNOWN)]
    for numbers in REFUSED.values():
        if (number := numbers[column]) is not None:
            lines += [(EQUAL, 0, 1, number), refuse]
    lines += [
        (EQUAL, 0, 1, CLONE3[column]),
        (RETURN, 0, 0, UNKNOWN),
    ]  # then libc clones

    def when(numbers: tuple, argument: int, tests: Sequence[tuple], otherwise) -> None:
        # The lower half of an argument: the kernel reads these as 32 bits. A test that
        # holds leads to `then`.
        body = [(LOAD, 0, 0, 16 + 8 * argument)]
        for code, k, then in tests:
            body += [(code, 0, 1, k), then]
        body.append(otherwise)
        lines.append((EQUAL, 0, len(body), numbers[column]))
        lines.extend(body)

    when(CLONE, 0, [(ANY, 0x10000, allow)], refuse)  # CLONE_THREAD
    when(KILL, 0, [(EQUAL, pid, allow)], refuse)
    when(TGKILL, 0, [(EQUAL, pid, allow)], refuse)
    when(PRLIMIT, 0, [(EQUAL, 0, allow)], refuse)
    # A stream of this machine: with datagrams an address could be given to each.
    when(SOCKETPAIR, 0, [(ABOVE, 1, refuse)], (LOAD, 0, 0, 0))
    when(SOCKETPAIR, 1, [(EQUAL, t, allow) for t in (1, 0x801, 0x80001, 0x80801)], refuse)
    when(SENDTO, 4, [(EQUAL, 0, allow)], refuse)
    when(FCNTL, 1, [(EQUAL, k, refuse) for k in OWNERS], allow)
    when(IOCTL, 1, [(EQUAL, k, refuse) for k in TERMINAL], allow)
    # It must end with its parent, and show it what files it keeps open.
    when(PRCTL, 0, [(EQUAL, 1, refuse), (EQUAL, 4, refuse)], allow)
    return [*lines, allow]


def _seccomp(libc: ctypes.CDLL) -> bool:
    machine = platform.machine()
    if machine not in ARCHES or struct.calcsize("P") != 8:
        return False
    lines = _program(machine, os.getpid())
    code = b"".join(struct.pack("HBBI", *line) for line in lines)
    kept = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(kept))
    return libc.prctl(22, 2, program, 0, 0) == 0
