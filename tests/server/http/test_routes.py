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
