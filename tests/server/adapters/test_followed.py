"""Which folders the watch follows, when admins load, replace and unload adapters too."""

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from blora.server.adapters.loader import Loader
from blora.server.engines.handle import AdapterHandle
from blora.server.errors import DeadlineExceededError
from tests.server.adapters.test_folder_sync import calibrate_by_file, root, served, watch_of, write
from tests.server.adapters.test_loader import digest_of
from tests.server.fakes import FakeEngine, Running, running

__all__ = ["root"]


@pytest.fixture
async def watched(engine: FakeEngine, root: Path) -> AsyncIterator[Running]:
    async with running(engine, adapter_root=root) as server:
        yield server


def loader_of(server: Running) -> Loader:
    loader: Loader = server.app.state.service.loader()
    return loader


@pytest.mark.parametrize("path", ["one", "one/", "./one"])
async def test_a_folder_that_an_admin_puts_in_its_own_place_is_followed_further(
    watched: Running, root: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate_by_file(monkeypatch)
    (root / "one" / "calibration.json").touch()
    watch, registry = watch_of(watched, root), watched.app.state.service.predictor().registry
    await watch.look()
    (root / "one" / "calibration.json").unlink()
    write(root, "one", "22")
    await watch.look()
    assert served(watched) == {"one": digest_of("1")}  # which abstains, as the new one does not
    await loader_of(watched).load("one", path, by="an admin", replace=True)
    assert not registry.get("one").may_abstain
    await watch.look()
    (root / "one" / "calibration.json").touch()
    await watch.look()
    assert registry.get("one").may_abstain
    shutil.rmtree(root / "one")
    write(root, "two", "1")
    await watch.look()
    assert served(watched) == {"two": digest_of("1")}


async def test_a_folder_that_an_admin_has_unloaded_and_loaded_again_is_followed_further(
    watched: Running, root: Path
) -> None:
    watch = watch_of(watched, root)
    await watch.look()
    await loader_of(watched).unload("one", by="an admin")
    await watch.look()
    await loader_of(watched).load("one", "one", by="an admin")
    write(root, "one", "22")
    await watch.look()
    assert served(watched) == {"one": digest_of("22")}


async def test_contents_from_elsewhere_stay_though_they_equal_those_of_the_folder(watched: Running, root: Path) -> None:
    watch = watch_of(watched, root)
    await watch.look()
    write(root, ".good", "1")
    await loader_of(watched).load("one", ".good", by="an admin", replace=True)
    for contents in ("22", "1", "333"):
        write(root, "one", contents)
        await watch.look()
        assert served(watched) == {"one": digest_of("1")}
    shutil.rmtree(root / "one")
    await watch.look()
    assert served(watched) == {"one": digest_of("1")}


async def test_a_version_that_was_read_while_an_admin_replaced_it_is_not_served(
    watched: Running, root: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, reads, goes_on = watch_of(watched, root), asyncio.Event(), asyncio.Event()
    await watch.look()
    write(root, ".earlier", "000")
    real = FakeEngine.load_adapter

    async def slow(self: FakeEngine, path: Path, name: str) -> AdapterHandle:
        if path.name == ".earlier":
            reads.set()
            await goes_on.wait()
        return await real(self, path, name)

    monkeypatch.setattr(FakeEngine, "load_adapter", slow)
    async with asyncio.timeout(10):
        rollback = asyncio.create_task(loader_of(watched).load("one", ".earlier", by="an admin", replace=True))
        await reads.wait()
        write(root, "one", "22")
        look = asyncio.create_task(watch.look())
        while not look.done() and not loader_of(watched)._locks["one"]._waiters:
            await asyncio.sleep(0.01)
        goes_on.set()
        await rollback
        await look
    assert served(watched) == {"one": digest_of("000")}
    assert engine.forgotten[-1] == digest_of("22")


async def test_a_version_behind_the_links_of_a_folder_is_seen_to_change(watched: Running, root: Path) -> None:
    write(root, ".first", "1")
    write(root, ".second", "22")
    os.utime(root / ".second" / "contents", ns=(3 * 10**9, 3 * 10**9))
    (root / ".current").symlink_to(".first")
    (root / "linked").mkdir()
    (root / "linked" / "contents").symlink_to("../.current/contents")
    (root / "linked" / "dangling").symlink_to("nowhere")
    watch = watch_of(watched, root)
    await watch.look()
    assert served(watched)["linked"] == digest_of("1")
    (root / ".next").symlink_to(".second")
    (root / ".next").replace(root / ".current")
    await watch.look()
    assert served(watched)["linked"] == digest_of("22")


async def test_a_stalled_folder_does_not_keep_its_name_from_another_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, "stalled", "22")
    gate, real = threading.Event(), Loader._folder

    def stalling(self: Loader, root: Path, path: str) -> Path:
        if path == "stalled":
            gate.wait()
        return real(self, root, path)

    monkeypatch.setattr(Loader, "_folder", stalling)
    async with running(FakeEngine(), adapter_root=root, adapter_load_timeout_s=0.3) as server:
        try:
            for why in ("did not end", "is not tried now"):
                with pytest.raises(DeadlineExceededError, match=why):
                    await loader_of(server).load("one", "stalled", by="an admin", replace=True)
            await loader_of(server).load("one", "one", by="an admin", replace=True)
        finally:
            gate.set()
        assert served(server) == {"one": digest_of("1")}
