"""Authentication: keys, scopes, limits, and paths that need no key."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from blora.server.engines.protocol import Job, Outcome
from blora.server.errors import RateLimitedError
from blora.server.http.authentication import RateLimiter
from blora.server.keys import line_of
from blora.server.scheduling.control import Control
from tests.server.fakes import FakeEngine, running

ASK = {"prompt": "p=0.9"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(line_of("shop", "predict", "key-of-the-shop") + "\n" + line_of("ops", "admin", "key-of-ops") + "\n")
    return path


def bearing(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_a_key_gets_an_answer(engine: FakeEngine, file: Path) -> None:
    async with running(engine, api_keys=file) as server:
        for headers in (bearing("key-of-the-shop"), {"authorization": "bearer key-of-ops"}):
            response = await server.client.post("/v1/predict", json=ASK, headers=headers)
            assert (response.status_code, response.json()["answer"]) == (200, "billing")


async def test_the_engine_learns_whose_key_asks(
    engine: FakeEngine, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients: list[str | None] = []
    real = FakeEngine.run

    async def run(self: FakeEngine, jobs: Sequence[Job], control: Control | None = None) -> list[Outcome]:
        clients.extend(job.client for job in jobs)
        return await real(self, jobs, control)

    monkeypatch.setattr(FakeEngine, "run", run)
    async with running(engine, api_keys=file) as server:
        for key in ("key-of-the-shop", "key-of-ops"):
            await server.client.post("/v1/predict", json=ASK, headers=bearing(key))
    assert clients == ["shop", "ops"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearing("key"),
        bearing(""),
        {"authorization": "key-of-ops"},
        {"authorization": "Basic key-of-ops"},
        {"x-api-key": "key-of-ops"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/predict"), ("GET", "/v1/adapters"), ("GET", "/v1/models"), ("GET", "/info"), ("GET", "/nowhere")],
)
async def test_without_one_nothing_is_told(
    engine: FakeEngine, file: Path, headers: dict[str, str], method: str, path: str
) -> None:
    async with running(engine, api_keys=file) as server:
        response = await server.client.request(method, path, headers=headers, content=b"{" * 100)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["x-request-id"]
        assert not engine.batches
        assert await server.metric("blora_requests_total", adapter="unknown", outcome="unauthorized") == 1


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/openapi.json"])
async def test_probes_and_prometheus_need_none(engine: FakeEngine, file: Path, path: str) -> None:
    async with running(engine, api_keys=file) as server:
        assert (await server.client.get(path)).status_code == 200


async def test_every_route_that_needs_a_key_documents_the_refusal(engine: FakeEngine, file: Path) -> None:
    async with running(engine, api_keys=file) as server:
        paths = (await server.client.get("/openapi.json")).json()["paths"]
        routes = [(method, path, route) for path, of in paths.items() for method, route in of.items()]
        assert len(routes) > 10
        for method, path, route in routes:
            refused = (await server.client.request(method, path)).status_code == 401
            documented = " ".join([*route["responses"], route["responses"].get("4XX", {}).get("description", "")])
            assert refused == ("401" in documented), (method, path)


@pytest.mark.parametrize("headers", [bearing("key-of-the-shop"), bearing("key-of-ops")])
async def test_only_an_admin_changes_adapters(engine: FakeEngine, file: Path, headers: dict[str, str]) -> None:
    async with running(engine, api_keys=file, adapter_root=file.parent) as server:
        response = await server.client.delete("/v1/adapters/triage", headers=headers)
        assert response.status_code == (403 if headers == bearing("key-of-the-shop") else 204)


async def test_what_changes_nothing_needs_no_admin(engine: FakeEngine, file: Path) -> None:
    async with running(engine, api_keys=file, adapter_root=file.parent) as server:
        for method in ("GET", "HEAD", "OPTIONS"):
            response = await server.client.request(method, "/v1/adapters", headers=bearing("key-of-the-shop"))
            assert response.status_code == (405 if method == "OPTIONS" else 200)


async def test_where_there_are_no_keys_anyone_may_ask_and_nobody_change(engine: FakeEngine) -> None:
    async with running(engine) as server:
        assert (await server.client.post("/v1/predict", json=ASK)).status_code == 200
        response = await server.client.delete("/v1/adapters/triage")
        assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")


async def test_a_key_that_asks_too_often_is_told_when_to_come_back(engine: FakeEngine, file: Path) -> None:
    async with running(engine, api_keys=file, requests_per_minute=2) as server:
        answers = [
            await server.client.post("/v1/predict", json=ASK, headers=bearing("key-of-the-shop")) for _ in range(3)
        ]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[2].json()["error"]["code"] == "rate_limited"
        assert 28 <= int(answers[2].headers["retry-after"]) <= 30
        other = await server.client.post("/v1/predict", json=ASK, headers=bearing("key-of-ops"))
        assert other.status_code == 200


async def test_the_next_key_of_an_owner_reports_the_outcomes_and_shares_the_limit(
    engine: FakeEngine, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("".join(line_of("shop", "predict", key) + "\n" for key in ("old", "new")))
    async with running(engine, api_keys=tmp_path / "keys", requests_per_minute=2) as server:
        answer = (await server.client.post("/v1/predict", json=ASK, headers=bearing("old"))).json()
        outcome = {"prediction_id": answer["id"], "label": "billing"}
        assert (await server.client.post("/v1/feedback", json=outcome, headers=bearing("new"))).status_code == 200
        assert (await server.client.post("/v1/predict", json=ASK, headers=bearing("new"))).status_code == 429


def taken(rate: RateLimiter) -> int:
    """Return the number of requests that are allowed now."""
    for count in range(1000):
        try:
            rate.take("shop")
        except RateLimitedError:
            return count
    raise AssertionError("got no end of requests")


def test_requests_come_back_one_by_one_and_never_add_up_to_more_than_a_minutes() -> None:
    times = iter([0.0] * 61 + [1.0] * 2 + [3.5] * 3 + [4.0] * 2 + [1000.0] * 61)
    rate = RateLimiter(60, clock=lambda: next(times))
    assert [taken(rate) for _ in range(5)] == [60, 1, 2, 1, 60]


def test_no_limit_is_none() -> None:
    rate = RateLimiter(0)
    for _ in range(1000):
        rate.take("shop")
