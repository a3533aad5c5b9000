"""Locks that one process holds at a time."""

import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from blora.disk.locks import lock, locked

HOLD = """
import os, sys
from blora.disk.locks import lock
lock(os.open(sys.argv[1], os.O_RDONLY), wait=False)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_on_a_folder_that_is_replaced_meanwhile_is_one_on_its_successor(tmp_path: Path) -> None:
    folder, held = tmp_path / "folder", threading.Event()
    folder.mkdir()

    def wait() -> None:
        with locked(folder):
            held.set()

    with locked(folder):
        waiting = threading.Thread(target=wait)
        waiting.start()
        time.sleep(0.2)  # the thread has opened the folder
        folder.rename(tmp_path / "old")
        folder.mkdir()
        successor = ExitStack()
        successor.enter_context(locked(folder))
    assert not held.wait(0.3)
    successor.close()
    assert held.wait(10)
    waiting.join()


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError):
            lock(descriptor, wait=False)
        holder.kill()
    lock(descriptor, wait=False)
    os.close(descriptor)


def test_a_system_without_locks_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(OSError, match="the system has no locks"):
        lock(0, wait=True)
    with locked(tmp_path, required=False):
        pass
