"""Locks: one holder at a time, and nobody's file touched."""

import os
import sys
import threading
import time

import pytest

from bdcourse import files
from bdcourse.bench import recipes
from helpers import message


def test_one_process_trains_a_victim_and_others_wait(tmp_path):
    order = []

    def hold(name):
        with files.locked(tmp_path / "v.lock"):
            order.append(name)
            time.sleep(0.2)
            order.append(name)

    threads = [threading.Thread(target=hold, args=(n,)) for n in "abc"]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert order[::2] == order[1::2] and sorted(order[::2]) == list("abc")
    assert not (tmp_path / "v.lock").exists()


def test_a_lock_follows_no_link_and_empties_no_file(tmp_path):
    thesis, lock = tmp_path / "thesis.txt", tmp_path / "v.lock"
    thesis.write_text("mine")
    lock.symlink_to(thesis)
    with pytest.raises(RuntimeError) as e:
        with files.locked(lock):
            pass
    assert "is a link" in message(e) and thesis.read_text() == "mine"
    lock.unlink()
    lock.write_text("held by nobody")
    with files.locked(lock):
        assert lock.read_text() == "held by nobody"
    assert not lock.exists()
    with pytest.raises(RuntimeError, match="cannot be made"):
        with files.locked(tmp_path / "no" / "v.lock"):
            pass
    (tmp_path / "folder.lock").mkdir()
    with pytest.raises(RuntimeError, match="is a link or a folder"):
        with files.locked(tmp_path / "folder.lock"):
            pass
    lock.symlink_to(tmp_path / "nowhere")  # would be made there
    with pytest.raises(RuntimeError, match="is a link"):
        with files.locked(lock):
            pass
    assert not (tmp_path / "nowhere").exists()


def test_a_lock_where_the_system_knows_no_such_flags(tmp_path, monkeypatch):
    for name in ("O_NOFOLLOW", "O_CLOEXEC"):
        monkeypatch.delattr(os, name)
    thesis, lock = tmp_path / "thesis.txt", tmp_path / "v.lock"
    thesis.write_text("mine")
    with files.locked(lock):
        assert lock.exists()
    lock.symlink_to(thesis)
    with pytest.raises(RuntimeError, match="is a link"):
        with files.locked(lock):
            pass
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with files.locked(lock):  # no locks at all there, and nothing written
        pass
    assert thesis.read_text() == "mine" and lock.is_symlink()


def test_a_lock_of_another_user_can_be_waited_for(tmp_path, monkeypatch):
    real, lock = os.open, tmp_path / "v.lock"

    def foreign(path, flags, *mode, **more):  # neither written nor made by us
        if flags & (os.O_RDWR | os.O_CREAT):
            raise PermissionError(13, "Permission denied")
        return real(path, flags, *mode, **more)

    lock.write_text("")
    with files.locked(lock):
        monkeypatch.setattr(recipes.os, "open", foreign)
        with pytest.raises(BlockingIOError):
            with files.locked(lock, wait=False):
                pass
    with pytest.raises(RuntimeError, match="Permission denied"):
        with files.locked(lock):
            pass


def test_a_lock_is_deleted_by_its_holder_only(tmp_path):
    lock = tmp_path / "v.lock"
    with files.locked(lock):
        lock.rename(tmp_path / "aside")
        lock.write_text("another one's by now")
    assert lock.read_text() == "another one's by now"
