"""Feedback through a real Redis that two replicas share."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from blora.decision.drift import Seen
from blora.server.keys import line_of
from blora.server.monitoring.ledgers.memory import MemoryLedger
from blora.server.monitoring.ledgers.protocol import Contents, Entry, Tally, hashes, labels_with_positions
from blora.server.monitoring.ledgers.redis_ledger import RedisLedger
from tests.server.fakes import FakeEngine, Running, running
from tests.server.monitoring.redis_store import Store, needs_redis, replica, settled
from tests.server.monitoring.test_drift import GATED, since
from tests.server.monitoring.test_drift import ask as doubt
from tests.server.monitoring.test_feedback import CALIBRATED, SURE, TARGET, ask, tell

pytestmark = needs_redis


async def test_any_replica_is_told_of_any_others_prediction_and_all_count_together(store: Store) -> None:
    async with replica(store) as one, replica(store) as other:
        first, second = await ask(one), await ask(other)
        assert (await settled(other, first["id"], "billing")).json() == {"correct": True}
        assert (await settled(one, second["id"], "account")).json() == {"correct": False}
        assert await one.metric("blora_realised_risk", **TARGET) == 0.5
        assert await other.metric("blora_realised_risk", **TARGET) == 0.0  # as of when it was last told
        assert (await tell(one, first["id"], "billing")).json() == {"correct": True}
        assert (await tell(one, first["id"], "sales")).json()["error"]["code"] == "label_not_offered"
        for replacing in (other, one):
            outcome = {"prediction_id": first["id"], "none_of_these": True}
            assert (await replacing.client.post("/v1/feedback", json=outcome)).json() == {"correct": False}
        assert await one.metric("blora_realised_risk", **TARGET) == 1.0
        assert (await tell(one, first["id"], "billing")).json() == {"correct": True}
        assert await one.metric("blora_outcomes_total", **TARGET, outcome="correct") == 0


async def test_no_prediction_of_a_large_batch_is_lost(store: Store) -> None:
    async with replica(store) as server:
        body = {"inputs": [{"prompt": next(SURE)} for _ in range(256)]}
        answers = (await server.client.post("/v1/predict", json=body)).json()["predictions"]
        told = await asyncio.gather(*(settled(server, answer["id"], "billing") for answer in answers))
        assert {response.status_code for response in told} == {200}
        assert await server.metric("blora_outcomes_total", **TARGET, outcome="correct") == 256


async def test_an_outcome_that_overtakes_its_prediction_on_the_way_to_redis_is_counted(store: Store) -> None:
    async with replica(store) as server:
        with Redis.from_url(store.url) as client:
            client.client_pause(500, all=False)  # of writes alone
        answers = [await ask(server) for _ in range(2)]  # the first is being written, the second waits
        told = await asyncio.gather(*(tell(server, answer["id"], "billing") for answer in answers))
        assert [response.status_code for response in told] == [200, 200]
    with Redis.from_url(store.url) as client:
        for answer in answers:
            assert {*client.hgetall(f"blora:2:prediction:{answer['id']}")} == {b"entry", b"label"}


async def test_a_promise_broken_a_little_everywhere_is_noticed(store: Store) -> None:
    async with replica(store) as one, replica(store) as other:
        for k in range(8):
            asked, told = (one, other) if k % 2 else (other, one)
            await settled(told, (await ask(asked))["id"], "account")
        broken = [await server.metric("blora_promise_broken", **TARGET) for server in (one, other)]
        assert max(broken) == 1


async def test_outcomes_that_nobody_asked_for_are_counted_apart(store: Store) -> None:
    async with replica(store, feedback_rate=0.5) as one, replica(store, feedback_rate=0.5) as other:
        for k in range(30):
            asked, told = (one, other) if k % 2 else (other, one)
            answer = await ask(asked)
            await settled(told, answer["id"], "billing" if answer["feedback_requested"] else "account")
        assert [await server.metric("blora_realised_risk", **TARGET) for server in (one, other)] == [0, 0]
        counts = [key for key in store.expiries() if key.startswith("blora:2:outcomes:")]
        assert len(counts) == 1


async def test_a_correction_is_counted_once_wherever_it_is_told(store: Store) -> None:
    async with replica(store) as one, replica(store) as other:
        answers = [await ask(one) for _ in range(8)]
        for answer in answers:
            await settled(one, answer["id"], "account")
        assert await one.metric("blora_promise_broken", **TARGET) == 1
        for _ in range(2):
            for answer in answers[:7]:
                assert (await settled(other, answer["id"], "billing")).json() == {"correct": True}
        assert await other.metric("blora_realised_risk", **TARGET) == 1 / 8
        assert await other.metric("blora_outcome_corrections_total", **TARGET, outcome="correct") == 7
        await tell(one, answers[7]["id"], "account")  # which tells this replica of the others' corrections
        assert await one.metric("blora_realised_risk", **TARGET) == 1 / 8
        assert await one.metric("blora_promise_broken", **TARGET) == 0


async def test_who_asked_is_known_to_every_replica(store: Store, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("\n".join(line_of(name, "predict", name) for name in ("shop", "other")))
    async with replica(store, api_keys=keys) as one, replica(store, api_keys=keys) as two:
        one.client.headers["authorization"] = "Bearer shop"
        answer = await ask(one)
        two.client.headers["authorization"] = "Bearer shop"
        assert (await settled(two, answer["id"], "billing")).json() == {"correct": True}
        two.client.headers["authorization"] = "Bearer other"
        assert (await tell(two, answer["id"], "billing")).status_code == 404


async def test_counts_outlive_a_restart_of_the_server(store: Store) -> None:
    for expected in (1.0, 0.5):
        async with replica(store) as server:
            await settled(server, (await ask(server))["id"], "account" if expected == 1 else "billing")
            assert await server.metric("blora_realised_risk", **TARGET) == expected


async def test_what_is_not_stored_is_not_counted_as_promised_and_the_log_says_so_once(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    async with replica(store) as server:
        stored = await ask(server)
        await settled(server, stored["id"], "billing")
        store.stop()
        body = {"inputs": [{"prompt": next(SURE)} for _ in range(20)]}
        await server.client.post("/v1/predict", json=body)
        ledger = server.app.state.service.predictor().feedback._ledger
        await ledger._writing
        assert await server.metric("blora_promised_answers_total", **TARGET, requested="true") == 1
        assert await server.metric("blora_unstored_predictions_total") == 20
    lines = [line for line in caplog.messages if "not remembered" in line]
    assert 1 <= len(lines) < 5


async def test_everything_expires_and_no_text_is_kept(store: Store) -> None:
    async with replica(store, feedback_keep_s=100) as server:
        await settled(server, (await ask(server, "p=0.95 a secret"))["id"], "billing")
        assert sorted(key.split(":")[2] for key in store.expiries()) == ["outcomes", "prediction", "text"]
        assert all(0 < seconds <= 100 for seconds in store.expiries().values())
        assert "secret" not in store.contents()
        assert "billing" not in store.contents()


async def test_what_is_written_while_the_server_stops_is_not_lost(store: Store) -> None:
    async with replica(store) as server:
        answer = await ask(server)
    assert f"blora:2:prediction:{answer['id']}" in store.expiries()


async def test_without_redis_questions_are_answered_and_feedback_says_try_again(store: Store) -> None:
    async with replica(store) as server:
        before = await ask(server)
        await settled(server, before["id"], "billing")
        store.stop()
        answer = await ask(server)
        assert answer["answer"] == "billing"
        refused = await tell(server, answer["id"], "billing")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "feedback_unavailable")
        assert "(ConnectionError)" in refused.json()["error"]["message"]
        store.start()
        again = await ask(server)
        assert (await settled(server, again["id"], "billing")).json() == {"correct": True}


@pytest.mark.parametrize("user", ["", "default@"])
async def test_a_password_comes_from_a_file(store: Store, tmp_path: Path, user: str) -> None:
    store.stop()
    store.start("--requirepass", "a secret")
    file = tmp_path / "password"
    url = store.url.replace("//", f"//{user}")
    for password, status in (("a secret\n", 200), ("another", 503)):
        file.write_text(password)
        settings = {"feedback_redis": url, "feedback_redis_password_file": file}
        async with running(FakeEngine(handles=(CALIBRATED,)), **settings) as server:
            assert (await settled(server, (await ask(server))["id"], "billing")).status_code == status


@pytest.mark.parametrize(
    ("user", "contents", "message"),
    [
        ("", "", "is empty"),
        ("", None, "cannot be read"),
        (":a secret@", "another", "remove it from the address"),
    ],
)
async def test_a_password_that_cannot_be_had_keeps_the_server_from_starting(
    tmp_path: Path, user: str, contents: str | None, message: str
) -> None:
    file = tmp_path / "password"
    if contents is not None:
        file.write_text(contents)
    settings = {"feedback_redis": f"redis://{user}127.0.0.1:1/0", "feedback_redis_password_file": file}
    async with running(FakeEngine(handles=(CALIBRATED,)), **settings) as server:
        failure = server.app.state.service.failure
        assert message in failure
        assert "a secret" not in failure


@pytest.mark.parametrize(
    "address", [":a/secret@127.0.0.1:1/0", "127.0.0.1:port/0", "127.0.0.1:1/blora", "127.0.0.1:1/0?socket_timeout=soon"]
)
async def test_an_address_that_cannot_be_read_is_told_in_one_line_without_its_password(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(FakeEngine(handles=(CALIBRATED,)), feedback_redis=f"redis://{address}") as server:
        assert "--feedback-redis cannot be read" in server.app.state.service.failure
    assert "Loading failed unexpectedly" not in caplog.text


async def test_a_drift_that_one_replica_sees_is_noticed_by_all_and_after_a_restart(store: Store) -> None:
    def gated(**settings: Any) -> Any:
        return running(FakeEngine(handles=(GATED,)), feedback_redis=store.url, **settings)

    async def noticed(server: Running) -> int:
        deadline = time.monotonic() + 5
        while (found := await since(server)) is None and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert found is not None
        return found

    async with gated() as one, gated() as other:
        await doubt(one, [0.01] * 20)
        first = await noticed(one)
        while int(time.time()) == first:  # so that a later time would differ
            await asyncio.sleep(0.05)
        await doubt(other, [0.5])
        assert await noticed(other) == first
        assert await other.metric("blora_unfamiliar_total", adapter="triage") == 0
    async with gated(feedback_keep_s=100) as again:
        await doubt(again, [0.5])
        assert await noticed(again) == first
        [key] = [key for key in store.expiries() if key.startswith("blora:2:drift:")]
        assert 0 < store.expiries()[key] <= 100
        with Redis.from_url(store.url, decode_responses=True) as client:
            fields = client.hgetall(key)
        assert fields.pop("noticed") == str(first)
        counts = [list(map(int, count.split()[:2])) for count in fields.values()]
        assert [sum(column) for column in zip(*counts, strict=True)] == [22, 20]


async def test_counts_that_are_stored_twice_count_once(store: Store) -> None:
    ledger = RedisLedger(store.url, 100)
    adapter = Contents("triage", "sha256:1", "sha256:2")
    try:
        one, two = {"counter:one": Seen(5, 2)}, {"counter:two": Seen(10, 0)}
        assert await ledger.count(adapter, "one", Seen(5, 2)) == (one, None)
        assert await ledger.count(adapter, "one", Seen(5, 2)) == (one, None)  # its reply was lost
        assert await ledger.count(adapter, "two", Seen(10, 0)) == (one | two, None)
        assert [await ledger.notice(adapter, at) for at in (1_790_000_007, 1_790_000_009, 7)] == [
            1_790_000_007,
            1_790_000_007,
            7,
        ]
        assert await ledger.count(adapter, "one", Seen(5, 2)) == (one | two, 7)
    finally:
        await ledger.close()


async def test_counters_that_count_nothing_for_as_long_as_a_prediction_is_kept_are_dropped(store: Store) -> None:
    ledger, key = RedisLedger(store.url, 100), "blora:2:drift:triage:sha256:1:sha256:2"
    adapter = Contents("triage", "sha256:1", "sha256:2")
    try:
        await ledger.count(adapter, "running", Seen(5, 2))
        await ledger.notice(adapter, 7)
        with Redis.from_url(store.url) as client:
            client.hset(key, mapping={f"counter:ended {k}": f"1 0 {int(time.time()) - 110}" for k in range(2_000)})
            counted = await ledger.count(adapter, "new", Seen(1, 0))
            assert counted == ({"counter:running": Seen(5, 2), "counter:new": Seen(1, 0)}, 7)
            assert client.hlen(key) == 3
    finally:
        await ledger.close()


async def test_another_replica_knows_the_labels_of_a_typed_question(store: Store) -> None:
    adapter, salt, written = Contents("triage", "sha256:1", "sha256:2"), b"salt", asyncio.Event()
    labels = labels_with_positions({"swears": 1, 0: 0, 1: 1}, salt)
    entry = Entry(adapter, None, salt, hashes(("calm", "angry"), salt), 0, None, requested=False, labels=labels)
    one, other = RedisLedger(store.url, 100), RedisLedger(store.url, 100)
    try:
        one.remember("pred_1", entry, lambda stored: written.set() if stored else None, None)
        await asyncio.wait_for(written.wait(), 10)
        found = await other.find("pred_1")
    finally:
        for ledger in (one, other):
            await ledger.close()
    assert found == entry
    assert [found.position(label) for label in ("calm", "angry", "swears", 0, 1, "1", True)] == [
        0,
        1,
        1,
        0,
        1,
        None,
        None,
    ]


async def test_the_latest_rejection_of_a_promise_is_kept_in_any_ledger(store: Store) -> None:
    adapter = Contents("triage", "sha256:1", "sha256:2")
    entry = Entry(adapter, None, b"", b"", leader=0, target_risk=0.05, requested=True)
    for ledger in (MemoryLedger(10), RedisLedger(store.url, 100)):
        assert await ledger.tally(adapter, 0.05) is None
        await ledger.settle("pred_1", entry, 1)
        assert await ledger.tally(adapter, 0.05) == Tally(1, 1, 0, rejected_at=-1)
        for n_cleared in (0, 2, 1):
            await ledger.reject(adapter, 0.05, n_cleared)
        assert await ledger.tally(adapter, 0.05) == Tally(1, 1, 0, rejected_at=2)
        assert await ledger.settle("pred_1", entry, 0) == (1, Tally(1, 0, 1, rejected_at=2))
        await ledger.close()
    assert all(0 < seconds <= 100 for seconds in store.expiries().values())


async def test_counts_of_the_time_without_redis_are_handed_on_afterwards(store: Store) -> None:
    async with running(FakeEngine(handles=(GATED,)), feedback_redis=store.url) as server:
        store.stop()
        await doubt(server, [0.01] * 20)
        await asyncio.sleep(0.2)
        assert await since(server) is None
        store.start()
        deadline = time.monotonic() + 10
        while await since(server) is None and time.monotonic() < deadline:
            await doubt(server, [0.5])
        assert await since(server) is not None
