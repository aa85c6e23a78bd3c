"""Files that are written whole, and locks between processes that want the same one."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from bdcourse import require


@contextmanager
def whole_file(path: str | os.PathLike, first: bool = False) -> Iterator[IO[bytes]]:
    """A file to write into, which gets its name when the `with` ends well, or never.

    Args:
        path: a link of this name is replaced, not followed.
        first: a file that is there already stays.

    Raises:
        OSError: it cannot be written; an older file of this name is as it was.
        FileExistsError: somebody was `first`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as f:
            aside = f.name
            yield f
            readable(f)
        if first:
            os.link(aside, path)  # unlike a rename, it does not replace
        else:
            os.replace(aside, path)
            aside = None
    finally:  # Ctrl-C too leaves nothing behind
        if aside is not None:
            with suppress(OSError):
                os.unlink(aside)


def write_whole(path: str | os.PathLike, blob: bytes) -> None:
    """Write a file whole or not at all; a link stays, and what it points to is written.

    Raises:
        RuntimeError: it cannot be written; an older file of this name is as it was.
    """
    path = os.path.realpath(require.path("path", path))
    try:
        with whole_file(path) as f:
            f.write(blob)
    except OSError as e:
        raise RuntimeError(
            f"{path} could not be written ({e.strerror or e}); free some space, or "
            "name a place where you may write."
        ) from e


def readable(file: IO) -> None:
    """Let others read a new file, which `tempfile` makes for its owner only.

    By its descriptor: in a folder of several users its name may by now be a link to
    what nobody should read.
    """
    if hasattr(os, "fchmod"):
        os.fchmod(file.fileno(), 0o644)


@contextmanager
def locked(path: str | os.PathLike, wait: bool = True) -> Iterator[None]:
    """Hold a lock file, which no other process holds meanwhile; it is deleted after.

    Raises:
        BlockingIOError: another one holds it, and we do not `wait`.
        RuntimeError: there is a link or a folder of this name, or the folder around it
            takes no file.
    """
    try:
        import fcntl
    except ImportError:  # Windows: work may be done twice, but each file is whole
        yield
        return
    while True:
        f = _lock_file(path)
        try:
            fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(f, path):
                break
        except OSError:
            os.close(f)
            raise
        os.close(f)  # its holder deleted it while we waited
    try:
        yield
    finally:
        # In a folder of several users another one's file may not be ours to delete.
        with suppress(FileNotFoundError, PermissionError):
            if _is_at(f, path):
                os.unlink(path)
        os.close(f)


def _is_at(f: int, path: str | os.PathLike) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(f), os.stat(path, follow_symlinks=False))
    return False


def _lock_file(path: str | os.PathLike) -> int:
    """A descriptor of the lock file; what may be somebody's file is never emptied."""
    # Where the system cannot refuse links itself, a look beforehand has to do.
    careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        if not hasattr(os, "O_NOFOLLOW") and os.path.islink(path):
            raise OSError(errno.ELOOP, "a link")
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | careful, 0o666)
        except PermissionError:
            if not os.path.lexists(path):
                raise
            # Another user's, whom we can wait for all the same.
            return os.open(path, os.O_RDONLY | careful)
    except OSError as e:
        if e.errno in (errno.ELOOP, errno.EMLINK, errno.EISDIR):
            why = "is a link or a folder, and no lock file of ours; move it away"
        else:
            why = f"cannot be made ({e.strerror}); choose a folder that can be written"
        raise RuntimeError(f"{path} {why}.") from e
