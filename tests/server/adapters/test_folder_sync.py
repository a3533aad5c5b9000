"""Changes of the adapter root under a running app."""

import asyncio
import dataclasses
import logging
import os
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from blora.server.adapters.folder_sync import FolderSync
from blora.server.engines.handle import AdapterHandle
from blora.server.scheduling.thread_per_task import StalledError
from tests.server.adapters.test_loader import digest_of
from tests.server.calibrations import calibration
from tests.server.fakes import FakeEngine, Running, running


def write(root: Path, name: str, contents: str) -> None:
    """Write an adapter of the fake engine with a new modification time."""
    (root / name).mkdir(exist_ok=True)
    file = root / name / "contents"
    before = file.stat().st_mtime_ns if file.exists() else 0
    file.write_text(contents)
    os.utime(file, ns=(before + 10**9, before + 10**9))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "one", "1")
    return tmp_path


@pytest.fixture
async def watched(engine: FakeEngine, root: Path) -> AsyncIterator[Running]:
    async with running(engine, adapter_root=root, adapter_poll_s=3600) as server:
        yield server


def calibrate_by_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give an adapter of the fake engine a calibration if its folder holds a file of that name."""
    real = FakeEngine.load_adapter

    async def calibrated(self: FakeEngine, path: Path, name: str) -> AdapterHandle:
        handle = await real(self, path, name)
        known = (path / "calibration.json").exists()
        return dataclasses.replace(handle, calibration=calibration(handle.digest)) if known else handle

    monkeypatch.setattr(FakeEngine, "load_adapter", calibrated)


def watch_of(server: Running, root: Path) -> FolderSync:
    """Return a folder sync like the server's, polled on command."""
    service = server.app.state.service
    return FolderSync(root, service.loader(), service.predictor().registry, timeout_s=10)


def served(server: Running) -> dict[str, str]:
    """Return names and digests without the fake engine's own two adapters."""
    registry = server.app.state.service.predictor().registry
    return {handle.name: handle.digest for handle in registry if handle.name not in ("triage", "open")}


async def test_what_is_there_at_the_start_is_served_from_the_start(watched: Running) -> None:
    assert served(watched) == {"one": digest_of("1")}
    body = {"prompt": "p=0.9", "adapter": "one", "choices": ["a", "b"]}
    assert (await watched.client.post("/v1/predict", json=body)).json()["adapter"]["digest"] == digest_of("1")


async def test_it_keeps_step_with_the_folder(watched: Running, root: Path, engine: FakeEngine) -> None:
    await watched.app.state.service.loader().unload("one", by="a test")
    watch = watch_of(watched, root)
    await watch.look()
    write(root, "two", "22")
    write(root, ".three-being-written", "333")
    await watch.look()
    assert served(watched) == {"one": digest_of("1"), "two": digest_of("22")}
    write(root, "one", "4")
    await watch.look()
    assert served(watched) == {"one": digest_of("4"), "two": digest_of("22")}
    assert engine.forgotten[-1] == digest_of("1")
    (root / "two").rename(root / ".two-gone")
    await watch.look()
    assert served(watched) == {"one": digest_of("4")}
    assert await watched.metric("blora_adapter_info", adapter="one", digest=digest_of("4")) == 1
    assert 'adapter="two"' not in (await watched.client.get("/metrics")).text


async def test_nothing_is_loaded_again_that_has_not_changed(
    watched: Running, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await watched.app.state.service.loader().unload("one", by="a test")
    watch, loads = watch_of(watched, root), list[str]()
    real = FakeEngine.load_adapter

    async def counted(self: FakeEngine, path: Path, name: str) -> object:
        loads.append(name)
        return await real(self, path, name)

    monkeypatch.setattr(FakeEngine, "load_adapter", counted)
    for _ in range(3):
        await watch.look()
    assert loads == ["one"]


async def test_what_does_not_load_is_told_once_and_the_old_one_stays(
    watched: Running, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await watched.app.state.service.loader().unload("one", by="a test")
    watch = watch_of(watched, root)
    await watch.look()
    write(root, "one", "x" * 100)  # of too many draws
    (root / "bad").mkdir()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await watch.look()
    assert served(watched) == {"one": digest_of("1")}
    refused = [record.fields for record in caplog.records if record.message == "adapter_refused"]  # type: ignore[attr-defined]
    # Folders load side by side, so either may be refused first.
    assert sorted((line["adapter"], line["by"]) for line in refused) == [
        ("bad", "folder watch"),
        ("one", "folder watch"),
    ]
    write(root, "bad", "5")
    await watch.look()
    assert served(watched)["bad"] == digest_of("5")


async def test_an_adapter_that_has_lost_its_calibration_does_not_replace_one_that_abstains(
    watched: Running, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loader = watched.app.state.service.loader()
    await loader.unload("one", by="a test")
    calibrate_by_file(monkeypatch)
    (root / "one" / "calibration.json").touch()
    watch = watch_of(watched, root)
    await watch.look()
    (root / "one" / "calibration.json").unlink()
    with caplog.at_level(logging.WARNING):
        await watch.look()
    [refused] = [record.fields for record in caplog.records if record.message == "adapter_refused"]  # type: ignore[attr-defined]
    assert "would answer everything" in refused["reason"]
    registry = watched.app.state.service.predictor().registry
    assert registry.get("one").may_abstain
    write(root, "one", "2")
    (root / "one" / "calibration.json").touch()
    await watch.look()
    assert served(watched) == {"one": digest_of("2")}
    (root / "one" / "calibration.json").unlink()
    await loader.load("one", "one", by="an admin", replace=True)
    assert not registry.get("one").may_abstain


async def test_adapters_from_elsewhere_are_left_alone(watched: Running, root: Path) -> None:
    write(root, "triage", "6")
    watch = watch_of(watched, root)
    await watch.look()
    (root / "triage").rename(root / ".gone")
    await watch.look()
    registry = watched.app.state.service.predictor().registry
    assert registry.get("triage") is not None
    assert registry.get("triage").digest != digest_of("6")


async def test_one_that_an_admin_has_put_in_its_place_is_left_alone(watched: Running, root: Path) -> None:
    loader = watched.app.state.service.loader()
    await loader.unload("one", by="a test")
    watch = watch_of(watched, root)
    await watch.look()
    (root / ".mine").mkdir()
    write(root / ".mine", "other", "333")
    await loader.unload("one", by="an admin")
    await loader.load("one", ".mine/other", by="an admin")
    write(root, "one", "4")
    await watch.look()
    assert served(watched) == {"one": digest_of("333")}
    shutil.rmtree(root / "one")
    await watch.look()
    assert served(watched) == {"one": digest_of("333")}


async def test_one_that_an_admin_was_faster_to_replace_is_followed_further(watched: Running, root: Path) -> None:
    loader = watched.app.state.service.loader()
    await loader.unload("one", by="a test")
    watch = watch_of(watched, root)
    await watch.look()
    write(root, "one", "22")
    await loader.load("one", "one", by="an admin", replace=True)
    await watch.look()
    write(root, "one", "333")
    await watch.look()
    assert served(watched) == {"one": digest_of("333")}
    (root / "one").rename(root / ".one-gone")
    await watch.look()
    assert served(watched) == {}


async def test_one_that_fails_in_an_unforeseen_way_does_not_end_the_watch(
    watched: Running, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watch = watch_of(watched, root)
    write(root, "odd", "1")
    real = FakeEngine.load_adapter

    async def odd(self: FakeEngine, path: Path, name: str) -> AdapterHandle:
        if name == "odd":
            raise MemoryError("no room")
        return await real(self, path, name)

    monkeypatch.setattr(FakeEngine, "load_adapter", odd)
    write(root, "two", "22")
    (root / "dangling").mkdir()
    (root / "dangling" / "contents").symlink_to(root / "nowhere")
    await watch.look()
    assert served(watched) == {"one": digest_of("1"), "two": digest_of("22")}
    assert "Adapter 'odd'" in caplog.text


async def test_a_folder_that_cannot_be_read_for_a_moment_keeps_its_adapter(
    watched: Running, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await watched.app.state.service.loader().unload("one", by="a test")
    watch = watch_of(watched, root)
    await watch.look()
    real = Path.iterdir

    def denied(self: Path) -> Iterator[Path]:
        if self.name == "one":
            raise PermissionError("denied")
        return real(self)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", denied)
        await watch.look()
    await watch.look()
    assert served(watched) == {"one": digest_of("1")}


async def test_a_root_that_is_not_there_keeps_the_server_from_starting(tmp_path: Path) -> None:
    async with running(FakeEngine(), adapter_root=tmp_path / "nowhere", adapter_poll_s=1) as server:
        assert "expected an existing directory" in server.app.state.service.failure


async def test_a_root_that_cannot_be_read_changes_nothing(
    watched: Running, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = watch_of(watched, root)
    root.rename(root.with_name("elsewhere"))
    await watch.look()
    assert served(watched) == {"one": digest_of("1")}
    assert "The adapters stay as they are" in caplog.text


async def test_a_root_that_cannot_be_read_is_told_of_once_until_it_can(
    watched: Running, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch, elsewhere = watch_of(watched, root), root.with_name(f"{root.name}-elsewhere")
    for n_outages in (1, 2):
        root.rename(elsewhere)
        for _ in range(3):
            await watch.look()
        assert caplog.text.count("The adapters stay as they are") == n_outages
        elsewhere.rename(root)
        await watch.look()


async def test_a_root_without_a_folder_is_told_of_once_and_unloads_nothing(
    watched: Running, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loader = watched.app.state.service.loader()
    await loader.unload("one", by="a test")
    watch = watch_of(watched, root)
    await watch.look()
    for n_outages in (1, 2):
        shutil.rmtree(root / "one")
        for _ in range(3):
            await watch.look()
        assert served(watched) == {"one": digest_of("1")}
        assert caplog.text.count("has no folders any more, as if its volume were not mounted") == n_outages
        write(root, "one", "1")
        await watch.look()
    shutil.rmtree(root / "one")
    await loader.unload("one", by="an admin")
    await watch.look()
    write(root, "one", "1")
    await watch.look()
    assert served(watched) == {"one": digest_of("1")}


async def test_the_server_looks_by_itself_and_may_start_with_nothing(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "one").rename(root / ".one")
    engine = FakeEngine(handles=())
    async with running(engine, default_adapter="one", adapter_root=root, adapter_poll_s=0.02) as server:
        unready = await server.client.get("/readyz")
        assert (unready.status_code, unready.json()["error"]["code"]) == (503, "not_ready")
        assert "No adapter is loaded" in unready.json()["error"]["message"]
        assert "The default adapter 'one' is not loaded" in caplog.text
        missing = await server.client.post("/v1/predict", json={"prompt": "p=0.9"})
        assert missing.status_code == 422
        (root / ".one").rename(root / "one")
        for _ in range(200):
            response = await server.client.post("/v1/predict", json={"prompt": "p=0.9", "choices": ["a", "b"]})
            if response.status_code == 200:
                break
        adapter = response.json()["adapter"]
        assert (adapter["name"], adapter["digest"]) == ("one", digest_of("1"))
        assert (await server.client.get("/readyz")).status_code == 200


async def test_one_that_stalled_is_tried_again_after_a_while_though_it_has_not_changed(
    watched: Running, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries, now = FakeEngine.load_adapter, list[str](), [1000.0]

    async def stalling(self: FakeEngine, path: Path, name: str) -> AdapterHandle:
        if name == "slow":
            tries.append(name)
            if len(tries) == 1:
                raise StalledError("the reading did not end")
        return await real(self, path, name)

    monkeypatch.setattr(FakeEngine, "load_adapter", stalling)
    monkeypatch.setattr("blora.server.adapters.folder_sync.time.monotonic", lambda: now[0])
    write(root, "slow", "22")
    watch = watch_of(watched, root)
    for _ in range(3):
        await watch.look()
    assert tries == ["slow"]
    now[0] += 11  # the watch's timeout and a little
    for _ in range(3):
        await watch.look()
    assert tries == ["slow", "slow"]
    assert served(watched)["slow"] == digest_of("22")


async def test_a_folder_that_does_not_answer_a_look_stays_as_it_is_and_is_told_once(
    watched: Running, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await watched.app.state.service.loader().unload("one", by="a test")
    service, gate = watched.app.state.service, threading.Event()
    watch = FolderSync(root, service.loader(), service.predictor().registry, timeout_s=0.2)
    await watch.look()
    real = Path.iterdir

    def stalling(self: Path) -> Iterator[Path]:
        if self.name == "one":
            gate.wait()
        return real(self)

    write(root, "two", "22")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", stalling)
        try:
            for _ in range(3):
                await watch.look()
        finally:
            gate.set()
    assert served(watched) == {"one": digest_of("1"), "two": digest_of("22")}
    assert caplog.text.count("Adapter 'one'") == 1


async def test_the_server_does_not_wait_for_loads_that_go_on_and_on(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, gate = FakeEngine.load_adapter, asyncio.Event()

    async def slow(self: FakeEngine, path: Path, name: str) -> AdapterHandle:
        if name == "slow":
            await gate.wait()
        return await real(self, path, name)

    monkeypatch.setattr(FakeEngine, "load_adapter", slow)
    write(root, "slow", "22")
    async with running(FakeEngine(), adapter_root=root, adapter_poll_s=3600, adapter_load_timeout_s=0.5) as server:
        assert (await server.client.get("/readyz")).status_code == 200
        assert served(server) == {"one": digest_of("1")}
        assert "the server does not wait for them" in caplog.text
        gate.set()
        async with asyncio.timeout(10):
            while "slow" not in served(server):
                await asyncio.sleep(0.01)


async def test_a_name_that_no_request_could_use_is_refused_once(
    watched: Running, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(root, "no name", "1")
    watch = watch_of(watched, root)
    for _ in range(3):
        await watch.look()
    assert "no name" not in served(watched)
    assert sum(record.message == "adapter_refused" for record in caplog.records) == 1
