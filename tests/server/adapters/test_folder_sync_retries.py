"""Looks at the adapter root that fail, adapters that are tried again, and adapters that were served before."""

import asyncio
import errno
import os
import shutil
from pathlib import Path

import pytest

from blora.disk.files import file_digest
from blora.server.adapters.folder_sync import FolderSync
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.protocol import EngineUnavailableError
from tests.server.adapters.test_folder_sync import served, watch_of, write
from tests.server.adapters.test_loader import digest_of
from tests.server.adapters.unreadable import failing_open
from tests.server.fakes import FakeEngine, handle, running


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the watch, which a test may change."""
    time = [1000.0]
    monkeypatch.setattr("blora.server.adapters.folder_sync.time.monotonic", lambda: time[0])
    return time


async def test_a_look_that_fails_in_an_unforeseen_way_does_not_end_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, looks = FolderSync.look, list[None]()

    async def failing(self: FolderSync) -> None:
        looks.append(None)
        if len(looks) == 1:
            raise RuntimeError("a bug")
        await real(self)

    monkeypatch.setattr(FolderSync, "look", failing)
    async with running(FakeEngine(), adapter_root=tmp_path, adapter_poll_s=0.01) as server, asyncio.timeout(10):
        write(tmp_path, "late", "1")
        while "late" not in served(server):
            await asyncio.sleep(0.01)
    assert caplog.text.count("RuntimeError: a bug") == 1


async def test_an_adapter_beyond_the_limit_is_served_once_there_is_room(
    tmp_path: Path, now: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    async with running(FakeEngine(), adapter_root=tmp_path, max_adapters=4) as server:
        watch = watch_of(server, tmp_path)
        for name in "abc":
            write(tmp_path, name, name)
            await watch.look()
        for _ in range(3):
            now[0] += 11  # the watch's timeout and a little
            await watch.look()
        assert served(server).keys() == {"a", "b"}
        assert caplog.text.count("adapter_refused") == 1
        shutil.rmtree(tmp_path / "a")
        await watch.look()
        assert served(server).keys() == {"b", "c"}


@pytest.mark.parametrize("error", [EngineUnavailableError("vLLM does not answer"), MemoryError("no room")])
async def test_an_adapter_that_could_not_be_loaded_for_a_passing_reason_is_tried_again(
    tmp_path: Path,
    now: list[float],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    real, tries = FakeEngine.load_adapter, list[str]()

    async def failing(self: FakeEngine, path: Path, name: str) -> AdapterHandle:
        tries.append(name)
        if len(tries) < 3:
            raise error
        return await real(self, path, name)

    monkeypatch.setattr(FakeEngine, "load_adapter", failing)
    write(tmp_path, "one", "1")
    async with running(FakeEngine(), adapter_root=tmp_path) as server:
        watch = watch_of(server, tmp_path)
        for n_tries in (1, 2, 3):
            for _ in range(2):
                await watch.look()
            assert len(tries) == n_tries
            now[0] += 11
        assert served(server) == {"one": digest_of("1")}
    assert caplog.text.count("is not loaded") == isinstance(error, MemoryError)


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the fake engine read files as a real one does, and return the names of the adapters that it has tried."""
    real, names = FakeEngine.load_adapter, list[str]()

    async def reading(self: FakeEngine, path: Path, name: str) -> AdapterHandle:
        names.append(name)
        file_digest(path / "contents", advice="restore it")
        return await real(self, path, name)

    monkeypatch.setattr(FakeEngine, "load_adapter", reading)
    return names


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
async def test_a_read_that_fails_once_is_tried_again_and_the_new_version_served(
    tmp_path: Path, now: list[float], tries: list[str], monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    write(tmp_path, "one", "1")
    async with running(FakeEngine(), adapter_root=tmp_path) as server:
        watch = watch_of(server, tmp_path)
        await watch.look()
        write(tmp_path, "one", "22")
        with monkeypatch.context() as patched:
            patched.setattr("blora.disk.files.os.open", failing_open("one/contents", error))
            await watch.look()
        await watch.look()
        assert served(server) == {"one": digest_of("1")}
        assert len(tries) == 2
        now[0] += 11  # the watch's timeout and a little
        for _ in range(2):
            await watch.look()
        assert served(server) == {"one": digest_of("22")}
        assert len(tries) == 3


@pytest.mark.usefixtures("now", "tries")
async def test_a_file_that_a_chmod_makes_readable_is_served_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def obeying(path: Path | str, *args: int) -> int:
        """Refuse a file that nobody may read, to root too."""
        if str(path).endswith("one/contents") and not os.stat(path).st_mode & 0o444:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, *args)

    monkeypatch.setattr("blora.disk.files.os.open", obeying)
    write(tmp_path, "one", "1")
    file = tmp_path / "one" / "contents"
    file.chmod(0)
    async with running(FakeEngine(), adapter_root=tmp_path) as server:
        watch = watch_of(server, tmp_path)
        await watch.look()
        assert served(server) == {}
        before = file.stat().st_ctime_ns
        while file.stat().st_ctime_ns == before:  # the clock of the file system may be coarse
            file.chmod(0o644)
        await watch.look()
        assert served(server) == {"one": digest_of("1")}


async def test_a_folder_that_cannot_be_read_when_its_retry_is_due_is_tried_once_it_can(
    tmp_path: Path, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(self: FakeEngine, path: Path, name: str) -> AdapterHandle:
        raise EngineUnavailableError("vLLM does not answer")

    write(tmp_path, "one", "1")
    async with running(FakeEngine(), adapter_root=tmp_path) as server:
        watch = watch_of(server, tmp_path)
        with monkeypatch.context() as away:
            away.setattr(FakeEngine, "load_adapter", failing)
            await watch.look()
        (tmp_path / "one").rename(tmp_path / ".one")
        (tmp_path / "one").symlink_to("x" * 300)
        now[0] += 11
        await watch.look()
        assert served(server) == {}
        (tmp_path / "one").unlink()
        (tmp_path / ".one").rename(tmp_path / "one")
        await watch.look()
        assert served(server) == {"one": digest_of("1")}


async def test_an_adapter_that_was_served_before_the_first_look_is_followed(tmp_path: Path) -> None:
    write(tmp_path, "one", "1")
    ours = handle("one", digest_of("1"), n_samples=5)
    async with running(FakeEngine(handles=(ours,)), default_adapter="one", adapter_root=tmp_path) as server:
        watch = watch_of(server, tmp_path)
        await watch.look()
        assert served(server) == {"one": digest_of("1")}
        write(tmp_path, "one", "22")
        await watch.look()
        assert served(server) == {"one": digest_of("22")}


async def test_an_adapter_with_other_contents_than_its_folder_is_told_once_and_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "one", "1")
    theirs = handle("one", digest_of("another"))
    async with running(FakeEngine(handles=(theirs,)), default_adapter="one", adapter_root=tmp_path) as server:
        watch = watch_of(server, tmp_path)
        for contents in ("1", "22"):
            write(tmp_path, "one", contents)
            await watch.look()
        assert served(server) == {"one": digest_of("another")}
    assert caplog.text.count("adapter_refused") == 1


async def test_an_entry_that_cannot_be_read_keeps_no_other_adapter_out(tmp_path: Path) -> None:
    (tmp_path / "odd").symlink_to("x" * 300)
    write(tmp_path, "one", "1")
    async with running(FakeEngine(), adapter_root=tmp_path) as server:
        watch = watch_of(server, tmp_path)
        await watch.look()
        assert served(server) == {"one": digest_of("1")}
        (tmp_path / "odd").unlink()
        write(tmp_path, "odd", "22")
        await watch.look()
        assert served(server) == {"one": digest_of("1"), "odd": digest_of("22")}
