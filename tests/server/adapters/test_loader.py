"""Loading and unloading of adapters in a running app."""

import asyncio
import dataclasses
import errno
import gc
import hashlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from blora.disk.files import file_digest
from blora.server.engines.digests import calibration_digest
from blora.server.engines.handle import AdapterHandle
from blora.server.keys import line_of
from tests.server.adapters.unreadable import failing_open
from tests.server.calibrations import calibration
from tests.server.fakes import FakeEngine, Running, running

ADMIN = {"authorization": "Bearer key-of-ops"}


def digest_of(contents: str) -> str:
    return f"sha256:{hashlib.sha256(contents.encode()).hexdigest()}"


NEW = {"name": "new", "digest": digest_of("1"), "calibration_digest": calibration_digest(None, None)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a root with two adapters, one with too many draws, another folder, and a link out of the root."""
    for name, contents in (("one", "1"), ("two", "22"), ("greedy", "x" * 100)):
        (tmp_path / "root" / "below" / name).mkdir(parents=True)
        (tmp_path / "root" / "below" / name / "contents").write_text(contents)
    (tmp_path / "root" / "nothing").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "contents").write_text("secret")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "round").symlink_to("round")
    (tmp_path / "root" / "inner").mkdir()
    (tmp_path / "root" / "inner" / "contents").symlink_to(tmp_path / "outside" / "contents")
    (tmp_path / "keys").write_text(line_of("ops", "admin", "key-of-ops") + "\n")
    return tmp_path / "root"


@pytest.fixture
async def open_server(engine: FakeEngine, root: Path) -> AsyncIterator[Running]:
    keys = root.parent / "keys"
    async with running(engine, api_keys=keys, adapter_root=root, max_adapters=4, max_adapter_bytes=150) as server:
        server.client.headers.update(ADMIN)
        yield server


async def load(server: Running, name: str = "new", path: str = "below/one") -> httpx.Response:
    return await server.client.post("/v1/adapters", json={"name": name, "path": path})


async def ask(server: Running, adapter: str) -> tuple[int, Any]:
    body = {"prompt": "p=0.9", "adapter": adapter, "choices": ["a", "b"]}
    response = await server.client.post("/v1/predict", json=body)
    answer = response.json()
    return response.status_code, answer["error"]["code"] if "error" in answer else answer["adapter"]["digest"]


async def test_a_loaded_adapter_answers_and_an_unloaded_one_does_not(open_server: Running, engine: FakeEngine) -> None:
    response = await load(open_server)
    assert (response.status_code, response.json()) == (201, NEW)
    assert await ask(open_server, "new") == (200, digest_of("1"))
    assert await ask(open_server, f"new@{digest_of('1')}") == (200, digest_of("1"))
    assert await open_server.metric("blora_adapter_info", adapter="new", digest=digest_of("1")) == 1
    assert await open_server.metric("blora_requests_total", adapter="new", outcome="answered") == 2
    names = [card["name"] for card in (await open_server.client.get("/v1/adapters")).json()["data"]]
    assert names == ["triage", "open", "new"]
    gone = await open_server.client.delete("/v1/adapters/new")
    assert (gone.status_code, gone.content) == (204, b"")
    assert await ask(open_server, "new") == (404, "unknown_adapter")
    assert engine.forgotten == [digest_of("1")]
    assert 'adapter="new"' not in (await open_server.client.get("/metrics")).text


async def test_the_same_contents_again_are_no_error_and_others_are(open_server: Running, root: Path) -> None:
    await load(open_server)
    again = await load(open_server, path="below/../below/one")
    assert (again.status_code, again.json()) == (200, NEW)
    other = await load(open_server, path="below/two")
    assert (other.status_code, other.json()["error"]["code"]) == (409, "adapter_conflict")
    (root / "below" / "one" / "contents").write_text("3")
    changed = await load(open_server)
    assert (changed.status_code, changed.json()["error"]["code"]) == (409, "adapter_conflict")
    assert await ask(open_server, "new") == (200, digest_of("1"))


async def test_another_calibration_of_the_same_contents_is_not_passed_over(
    open_server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await load(open_server)
    real = FakeEngine.load_adapter

    async def recalibrated(self: FakeEngine, path: Path, name: str) -> AdapterHandle:
        handle = await real(self, path, name)
        return dataclasses.replace(handle, calibration=calibration(handle.digest))

    monkeypatch.setattr(FakeEngine, "load_adapter", recalibrated)
    response = await load(open_server)
    assert (response.status_code, response.json()["error"]["code"]) == (409, "adapter_conflict")
    assert "another calibration" in response.json()["error"]["message"]


async def test_handles_that_are_not_served_are_let_go_of(open_server: Running, engine: FakeEngine) -> None:
    await load(open_server)
    await load(open_server)
    await load(open_server, path="below/two")
    await load(open_server, "greedy", "below/greedy")
    assert len(engine.forgotten) == 2
    await ask(open_server, "new")
    assert n_handles("new") == 1
    await open_server.client.delete("/v1/adapters/new")
    assert n_handles("new") == 0


def n_handles(name: str) -> int:
    """Return the number of handles of that name in memory."""
    gc.collect()
    return sum(type(each) is AdapterHandle and each.name == name for each in gc.get_objects())


async def test_several_that_ask_for_the_same_at_once_get_the_same(open_server: Running) -> None:
    responses = await asyncio.gather(*(load(open_server) for _ in range(10)))
    assert sorted(response.status_code for response in responses) == [200] * 9 + [201]
    assert len({response.text for response in responses}) == 1


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("new", "../outside", (403, "forbidden")),
        ("new", "link", (403, "forbidden")),
        ("new", "inner", (403, "forbidden")),
        ("new", "/etc", (403, "forbidden")),
        ("new", "nothing", (422, "invalid_adapter")),
        ("new", "nowhere", (422, "invalid_adapter")),
        ("new", "below/greedy", (422, "invalid_adapter")),
        ("no name", "below/one", (422, "invalid_value")),
        ("", "below/one", (422, "empty_string")),
        ("new", "below", (422, "invalid_adapter")),
        ("new", ".", (403, "forbidden")),  # it holds the link
        ("new", "/", (403, "forbidden")),
        ("new", "round", (422, "invalid_adapter")),
        ("new", "a\0b", (422, "invalid_adapter")),
        ("new", "x" * 5000, (422, "invalid_adapter")),
    ],
)
async def test_what_cannot_be_loaded_is_told_and_changes_nothing(
    open_server: Running, name: str, path: str, expected: tuple[int, str]
) -> None:
    began = time.monotonic()
    response = await load(open_server, name, path)
    assert time.monotonic() - began < 1  # nobody walks through the whole file system
    assert (response.status_code, response.json()["error"]["code"]) == expected
    assert len((await open_server.client.get("/v1/adapters")).json()["data"]) == 2


@pytest.mark.parametrize("name", ["no name", ".hidden", "a/b", "é", "x\ny"])
async def test_a_bad_name_is_refused_before_anything_is_read(
    open_server: Running, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delattr(FakeEngine, "load_adapter")
    error = (await load(open_server, name)).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "name")
    assert error["message"].endswith("starting with a letter or digit: choose another name")


async def test_a_folder_of_very_many_files_is_refused(
    open_server: Running, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    monkeypatch.setattr("blora.server.adapters.loader.MOST_ENTRIES", 10)
    for i in range(10):
        (root / "below" / "one" / f"more-{i}").touch()
    refused = await load(open_server)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "adapter_too_large")
    assert "The folder holds 10 files or more" in refused.json()["error"]["message"]


async def test_a_folder_of_very_many_levels_is_refused_soon(open_server: Running, root: Path) -> None:
    (root / "below" / "one" / "/".join(["d"] * 900)).mkdir(parents=True)
    refused = await load(open_server)  # a look for links at each level took longer than a load may
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "adapter_too_large")
    assert "more than 32 levels" in refused.json()["error"]["message"]


async def test_a_folder_that_may_not_be_read_in_an_adapters_is_left_alone(
    open_server: Running, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    (root / "below" / "one" / "lost+found").mkdir()
    real = Path.iterdir

    def denied(self: Path) -> Iterator[Path]:
        if self.name == "lost+found":
            raise PermissionError("denied")
        return real(self)

    monkeypatch.setattr(Path, "iterdir", denied)
    assert (await load(open_server)).status_code == 201


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
async def test_a_file_that_cannot_be_read_at_the_moment_is_told_as_such(
    open_server: Running, monkeypatch: pytest.MonkeyPatch, root: Path, error: int
) -> None:
    async def reading(self: FakeEngine, path: Path, name: str) -> None:
        file_digest(path / "contents", advice="restore it")

    with monkeypatch.context() as patched:
        patched.setattr(FakeEngine, "load_adapter", reading)
        patched.setattr("blora.disk.files.os.open", failing_open("one/contents", error))
        refused = await load(open_server)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "adapter_unavailable")
    message = refused.json()["error"]["message"]
    assert f"got below/one/contents, which cannot be read ({os.strerror(error)})" in message
    assert str(root) not in message
    assert (await load(open_server)).status_code == 201


async def test_a_link_that_a_file_replaces_while_it_is_read_is_taken_for_the_file(
    open_server: Running, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    link, file = root / "below" / "one" / "contents", root / "below" / "one" / "file"
    link.rename(file)
    link.symlink_to(root.parent)
    real = os.readlink
    replaced = []

    def replacing(path: str, **kwargs: int) -> str:
        if Path(path) == link:
            replaced.append(file.rename(link))
        return real(path, **kwargs)

    monkeypatch.setattr(os, "readlink", replacing)
    assert (await load(open_server)).status_code == 201
    assert len(replaced) == 1


async def test_a_folder_that_cannot_be_listed_at_the_moment_is_told_as_such(
    open_server: Running, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    real = Path.iterdir

    def failing(self: Path) -> Iterator[Path]:
        if self.name == "one":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return real(self)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", failing)
        refused = await load(open_server)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "adapter_unavailable")
    assert "cannot be read (Input/output error): check" in refused.json()["error"]["message"]
    assert str(root) not in refused.json()["error"]["message"]
    assert (await load(open_server)).status_code == 201


async def test_without_adapters_the_server_is_not_ready_and_with_the_next_it_is(open_server: Running) -> None:
    for name in ("triage", "open"):
        await open_server.client.delete(f"/v1/adapters/{name}")
    unready = await open_server.client.get("/readyz")
    assert (unready.status_code, unready.json()["error"]["code"]) == (503, "not_ready")
    assert (await load(open_server)).status_code == 201
    assert (await open_server.client.get("/readyz")).status_code == 200
    assert await ask(open_server, "new") == (200, digest_of("1"))
    unnamed = await open_server.client.post("/v1/predict", json={"prompt": "p=0.9", "choices": ["a", "b"]})
    assert (unnamed.status_code, unnamed.json()["error"]["code"]) == (422, "missing")
    assert "the default adapter is not loaded: name one of new." in unnamed.json()["error"]["message"]


async def test_there_are_bounds_of_number_and_size(open_server: Running, root: Path) -> None:
    codes = [(await load(open_server, name)).status_code for name in ("a", "b", "c")]
    assert codes == [201, 201, 409]
    assert (await load(open_server, "a")).status_code == 200
    (root / "below" / "two" / "more").write_bytes(b"x" * 150)
    await open_server.client.delete("/v1/adapters/b")
    large = await load(open_server, "c", "below/two")
    assert (large.status_code, large.json()["error"]["code"]) == (413, "adapter_too_large")


async def test_a_request_in_flight_finishes_on_the_adapter_it_started_with(
    open_server: Running, engine: FakeEngine
) -> None:
    await load(open_server)
    engine.gate.clear()
    asked = asyncio.create_task(ask(open_server, "new"))
    await engine.computing.wait()
    assert (await open_server.client.delete("/v1/adapters/new")).status_code == 204
    assert (await load(open_server, path="below/two")).status_code == 201
    engine.gate.set()
    assert await asked == (200, digest_of("1"))
    assert await ask(open_server, "new") == (200, digest_of("22"))
    assert await open_server.metric("blora_requests_total", adapter="new", outcome="answered") == 2


async def test_a_request_that_outlives_its_adapter_mints_no_series(open_server: Running, engine: FakeEngine) -> None:
    await load(open_server)
    engine.gate.clear()
    asked = asyncio.create_task(ask(open_server, "new"))
    await engine.computing.wait()
    await open_server.client.delete("/v1/adapters/new")
    engine.gate.set()
    assert (await asked)[0] == 200
    assert 'adapter="new"' not in (await open_server.client.get("/metrics")).text
    assert await open_server.metric("blora_requests_total", adapter="unknown", outcome="answered") == 1


async def test_the_default_stays_the_default_and_may_be_unloaded(open_server: Running) -> None:
    await load(open_server)
    ask_any = {"prompt": "p=0.9"}
    assert (await open_server.client.post("/v1/predict", json=ask_any)).json()["adapter"]["name"] == "triage"
    assert (await open_server.client.delete("/v1/adapters/triage")).status_code == 204
    response = await open_server.client.post("/v1/predict", json=ask_any)
    assert (response.status_code, response.json()["error"]["code"]) == (422, "missing")
    assert "name one of new, open" in response.json()["error"]["message"]
    for name in ("open", "new"):
        await open_server.client.delete(f"/v1/adapters/{name}")
    assert await ask(open_server, "triage") == (404, "unknown_adapter")


@pytest.mark.parametrize("change", [("POST", {"name": "new", "path": "below/one"}), ("DELETE", None)])
async def test_adapters_are_fixed_unless_the_operator_says_otherwise(
    engine: FakeEngine, root: Path, change: tuple[str, dict[str, str] | None]
) -> None:
    method, body = change
    path = "/v1/adapters" if method == "POST" else "/v1/adapters/triage"
    async with running(engine, api_keys=root.parent / "keys") as server:
        response = await server.client.request(method, path, json=body, headers=ADMIN)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
        assert "--adapter-root" in response.json()["error"]["message"]
