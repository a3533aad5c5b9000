"""Routes other than predictions, and what holds for a batch as a whole."""

import asyncio

from blora.server.errors import NotReadyError, QueueFullError, RateLimitedError
from blora.server.http.responses import batch_response
from blora.server.monitoring.build import Build
from tests.server.fakes import OPEN_DIGEST, TRIAGE_DIGEST, FakeEngine, Running, running


async def test_the_model_list_is_openais(server: Running) -> None:
    listed = (await server.client.get("/v1/models")).json()
    assert listed["object"] == "list"
    base, *adapters = listed["data"]
    assert base["id"] == "fake"
    assert base["parent"] is None
    assert [(card["id"], card["parent"], card["root"], card["digest"]) for card in adapters] == [
        ("triage", "fake", "fake/fake", TRIAGE_DIGEST),
        ("open", "fake", "fake/fake", OPEN_DIGEST),
    ]
    for card in listed["data"]:
        assert (card["object"], card["owned_by"]) == ("model", "blora")
        assert card["created"] > 1_600_000_000


async def test_each_entry_of_the_model_list_is_shown_by_its_name(server: Running) -> None:
    for card in (await server.client.get("/v1/models")).json()["data"]:
        assert (await server.client.get(f"/v1/models/{card['id']}")).json() == card
    assert (await server.client.get(f"/v1/models/triage@{TRIAGE_DIGEST}")).json()["id"] == "triage"
    for name, code in (
        ("nowhere", "unknown_adapter"),
        ("fake/fake", "unknown_adapter"),
        ("triage@sha256:00", "digest_mismatch"),
    ):
        response = await server.client.get(f"/v1/models/{name}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, code)


async def test_a_base_model_whose_name_has_a_slash_is_shown_by_it() -> None:
    async with running(FakeEngine(model_name="org/model")) as server:
        for name in ("org/model", "org%2Fmodel"):
            assert (await server.client.get(f"/v1/models/{name}")).json()["id"] == "org/model"


async def test_info_says_what_runs(engine: FakeEngine) -> None:
    async with running(engine, n_samples_cap=32, timeout_s=5) as server:
        info = (await server.client.get("/info")).json()
        assert (info["version"], info["revision"]) == (Build.current().version, Build.current().revision)
        assert info["model"]["name"] == "fake"
        assert (info["model"]["device"], info["model"]["dtype"]) == ("cpu", "float64")
        assert (info["limits"]["n_samples_cap"], info["limits"]["timeout_s"]) == (32, 5)
        assert "host" not in info["limits"]


async def test_the_probes_are_short(server: Running) -> None:
    for path in ("/livez", "/readyz"):
        response = await server.client.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_inputs_are_limited_exactly(engine: FakeEngine) -> None:
    async with running(engine, max_inputs=3) as server:
        for n, status in ((3, 200), (4, 413)):
            response = await server.client.post("/v1/predict", json={"inputs": [{"prompt": "x"}] * n})
            assert response.status_code == status


async def test_a_batch_whose_inputs_are_to_be_asked_again_says_when(engine: FakeEngine) -> None:
    async with running(engine, max_queue_requests=4) as server:
        engine.gate.clear()
        asking = asyncio.create_task(
            server.client.post("/v1/predict", json={"inputs": [{"prompt": f"x {k}"} for k in range(12)]})
        )
        await engine.computing.wait()
        engine.gate.set()
        response = await asking
        codes = {item["error"]["code"] for item in response.json()["predictions"] if "error" in item}
        assert (response.status_code, codes) == (200, {"queue_full"})
        assert int(response.headers["retry-after"]) >= 1
        whole = await server.client.post("/v1/predict", json={"inputs": [{"prompt": "x"}, {"prompt": ""}]})
        assert (whole.status_code, "retry-after" in whole.headers) == (200, False)


def test_the_longest_wait_of_a_batch_counts() -> None:
    waits = [QueueFullError("full", retry_after_s=2), RateLimitedError("often", retry_after_s=7), NotReadyError("no")]
    assert batch_response(waits).headers["retry-after"] == "7"
