"""The digest of calibration and policy: what changes it, and pins of it."""

import dataclasses
import hashlib
from typing import Any

import httpx
import pytest

from blora.client import AsyncClient, RefusedError
from blora.decision.abstention import Policy
from blora.decision.calibration import Calibration
from blora.decision.gate import Gate
from blora.server.adapters.registry import Registry
from blora.server.engines.digests import calibration_digest
from blora.server.engines.handle import AdapterHandle
from blora.server.errors import DigestMismatchError
from tests.server.calibrations import calibration
from tests.server.fakes import CHOICES, TRIAGE_DIGEST, FakeEngine, Running, handle, running

PROVED = calibration(TRIAGE_DIGEST)


def loosened(made: Calibration) -> Calibration:
    """Return the calibration with another valid threshold for its target 0.2."""
    levels = tuple(dataclasses.replace(one, threshold=0.71) if one.target_risk == 0.2 else one for one in made.levels)
    return dataclasses.replace(made, levels=levels)


def served(made: Calibration | None, policy: Policy | None = None) -> AdapterHandle:
    return handle("triage", TRIAGE_DIGEST, choices=CHOICES, calibration=made, policy=policy)


def test_whatever_decides_has_a_digest_of_its_own() -> None:
    states: list[tuple[Any, ...]] = [
        (None, None),
        (PROVED, None),
        (loosened(PROVED), None),
        (calibration(TRIAGE_DIGEST, quantile=0.81), None),
        (None, Policy(min_confidence=0.4)),
        (None, Policy(min_confidence=0.41)),
        (None, Policy(max_predictive_entropy=0.4)),
        (PROVED, Policy(min_confidence=0.4)),
        (None, Policy(min_familiarity=0.5), Gate(max_false_alarms=0.5, n_beyond=0, reference=(1.0, 2.0, 3.0))),
        (None, Policy(min_familiarity=0.5), Gate(max_false_alarms=0.5, n_beyond=0, reference=(1.0, 2.0, 4.0))),
    ]
    assert len({calibration_digest(*state) for state in states}) == len(states)


def test_equal_contents_have_equal_digests() -> None:
    assert calibration_digest(PROVED, None) == calibration_digest(calibration(TRIAGE_DIGEST), None)


def test_the_digest_stays_as_it_is_from_version_to_version() -> None:
    canonical = b'{"calibration":null,"policy":{"min_confidence":0.4}}'
    known = f"sha256:{hashlib.sha256(canonical).hexdigest()}"
    assert calibration_digest(None, Policy(min_confidence=0.4)) == known


def test_a_handle_with_another_calibration_has_another_digest() -> None:
    before = served(PROVED)
    after = dataclasses.replace(before, calibration=loosened(PROVED))
    assert (before.digest, before.calibration_digest) != (after.digest, after.calibration_digest)
    assert before.digest == after.digest


@pytest.mark.parametrize("pin", ["", "sha256:" + "0" * 64, "latest"])
def test_another_calibration_than_the_pinned_one_is_refused(pin: str) -> None:
    found = served(PROVED)
    registry = Registry([found])
    assert registry.resolve(f"triage@{TRIAGE_DIGEST}+{found.calibration_digest}") is found
    with pytest.raises(DigestMismatchError, match=found.calibration_digest):
        registry.resolve(f"triage@{TRIAGE_DIGEST}+{pin}")


async def answer_of(server: Running, adapter: str) -> tuple[int, str]:
    body = {"prompt": "p=0.95", "adapter": adapter}
    response = await server.client.post("/v1/predict", json=body)
    told = response.json()
    return response.status_code, told["error"]["code"] if "error" in told else told["answer"]


async def test_a_threshold_that_was_edited_is_not_served_under_the_pin() -> None:
    async with running(FakeEngine(handles=(served(PROVED),))) as server:
        answer = (await server.client.post("/v1/predict", json={"prompt": "p=0.95"})).json()
        weights, decides = answer["adapter"]["digest"], answer["adapter"]["calibration_digest"]
        pinned = f"triage@{weights}+{decides}"
        assert await answer_of(server, pinned) == (200, "billing")
        [card] = (await server.client.get("/v1/adapters")).json()["data"]
        [_, model] = (await server.client.get("/v1/models")).json()["data"]
        assert card["calibration_digest"] == model["calibration_digest"] == decides
        assert (await server.client.get(f"/v1/adapters/{pinned}")).json() == card
    async with running(FakeEngine(handles=(served(loosened(PROVED)),))) as server:
        assert await answer_of(server, pinned) == (404, "digest_mismatch")
        assert (await server.client.get(f"/v1/adapters/{pinned}")).status_code == 404
        assert await answer_of(server, f"triage@{weights}") == (200, "billing")  # pins the weights alone


async def test_the_client_pins_what_answered() -> None:
    async with (
        running(FakeEngine(handles=(served(PROVED),))) as server,
        AsyncClient("http://test", transport=httpx.ASGITransport(server.app)) as client,
    ):
        answer = await client.predict("p=0.95")
        assert (await client.predict("p=0.95", adapter=answer.adapter.pin)).adapter == answer.adapter
        other = answer.adapter.model_copy(update={"calibration_digest": "sha256:" + "0" * 64})
        with pytest.raises(RefusedError) as info:
            await client.predict("p=0.95", adapter=other.pin)
        assert info.value.code == "digest_mismatch"
