"""The ledger in memory: its counts of outcomes and corrections, and what an unloaded adapter leaves behind."""

from dataclasses import replace

from blora.server.monitoring.ledgers.memory import MemoryLedger
from blora.server.monitoring.ledgers.protocol import Contents, Entry, Settled, Tally
from tests.server.calibrations import calibration
from tests.server.fakes import CHOICES, FakeEngine, handle, running
from tests.server.monitoring.test_feedback import ask, tell

ONE, OTHER = (Contents(name, "sha256:1", "sha256:2") for name in ("one", "other"))
LEADER = 0
PROMISED = Entry(ONE, None, b"salt", b"hashes", LEADER, 0.05, requested=True)


async def told(ledger: MemoryLedger, prediction_id: str, *labels: int, entry: Entry = PROMISED) -> list[Settled]:
    """Store a prediction and report outcomes of it, one after the other."""
    ledger.remember(prediction_id, entry, lambda stored: None, None)
    return [await ledger.settle(prediction_id, entry, label) for label in labels]


async def test_only_a_correction_from_wrong_to_right_is_counted_as_one() -> None:
    ledger = MemoryLedger(capacity=10)
    settled = await told(ledger, "pred_1", 1, 2, 2, LEADER, LEADER, 1)
    assert [reply.before for reply in settled] == [None, 1, 2, 2, LEADER, LEADER]
    assert [reply.tally for reply in settled] == [
        Tally(1, 1, 0, -1),
        Tally(1, 1, 0, -1),
        Tally(1, 1, 0, -1),
        Tally(1, 0, 1, -1),
        Tally(1, 0, 1, -1),
        Tally(1, 1, 1, -1),
    ]
    # Answers that are right from the first are none, and take nothing from an alarm.
    await ledger.reject(ONE, 0.05, 1)
    assert [reply.tally for reply in await told(ledger, "pred_2", LEADER)] == [Tally(2, 1, 1, 1)]


async def test_the_latest_rejection_is_kept() -> None:
    ledger = MemoryLedger(capacity=10)
    await told(ledger, "pred_1", 1)
    for n_cleared, kept in ((3, 3), (2, 3), (4, 4)):
        await ledger.reject(ONE, 0.05, n_cleared)
        assert await ledger.tally(ONE, 0.05) == Tally(1, 1, 0, kept)


async def test_outcomes_that_nobody_asked_for_or_without_a_promise_are_in_no_count() -> None:
    ledger = MemoryLedger(capacity=10)
    for entry in (replace(PROMISED, requested=False), replace(PROMISED, target_risk=None)):
        assert await told(ledger, "pred_1", 1, entry=entry) == [Settled(None, None)]
        ledger.forget(ONE)
    assert await ledger.tally(ONE, 0.05) is None


async def test_what_is_forgotten_of_one_adapter_leaves_the_others_as_they_are() -> None:
    ledger = MemoryLedger(capacity=10)
    for adapter in (ONE, OTHER):
        await told(ledger, f"pred_{adapter.name}", 1, entry=replace(PROMISED, adapter=adapter))
        await ledger.notice(adapter, 7)
    ledger.forget(ONE)
    assert [await ledger.find(f"pred_{adapter.name}") is not None for adapter in (ONE, OTHER)] == [False, True]
    assert [await ledger.tally(adapter, 0.05) for adapter in (ONE, OTHER)] == [None, Tally(1, 1, 0, -1)]
    assert [await ledger.notice(adapter, 9) for adapter in (ONE, OTHER)] == [9, 7]


async def test_a_prediction_that_left_takes_its_outcome_with_it() -> None:
    ledger = MemoryLedger(capacity=1)
    await told(ledger, "pred_1", 1)
    await told(ledger, "pred_2")
    assert await ledger.find("pred_1") is None
    assert ledger._labels == {}


async def test_an_adapter_that_is_unloaded_takes_no_evidence_about_another_with_it() -> None:
    digests = [f"sha256:{k:064d}" for k in (1, 2)]
    handles = [
        handle(name, digest, choices=CHOICES, calibration=calibration(digest))
        for name, digest in zip(("kept", "gone"), digests, strict=True)
    ]
    about, target = {"adapter": "kept"}, {"adapter": "kept", "target_risk": "0.05"}
    async with running(FakeEngine(handles=tuple(handles)), default_adapter=None) as server:
        answers = [await ask(server, f"p=0.95 text {k}", **about) for k in range(8)]
        for answer in answers[:7]:
            await tell(server, answer["id"], "account")
        assert await server.metric("blora_promise_broken", **target) == 1
        predictor = server.app.state.service.predictor()
        predictor.registry.remove("gone")
        predictor.feedback.forget(handles[1])
        assert (await tell(server, answers[7]["id"], "billing")).json() == {"correct": True}
        assert await server.metric("blora_promise_broken", **target) == 1
        assert await server.metric("blora_realised_risk", **target) == 7 / 8
        await ask(server, "p=0.95 text 0", **about)  # the text of an earlier answer, whose outcome counts already
        assert await server.metric("blora_promised_answers_total", **target, requested="true") == 8
        assert await server.metric("blora_promised_answers_total", **target, requested="false") == 1
