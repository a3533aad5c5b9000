"""The cards of the adapters."""

import dataclasses
from typing import Any

import pytest

from blora.decision.abstention import Policy
from blora.decision.asks import Ask
from blora.server.prediction.cards import adapter_card
from tests.server.calibrations import calibration
from tests.server.fakes import CHOICES, OPEN_DIGEST, TRIAGE_DIGEST, FakeEngine, Running, handle, running
from tests.server.test_app import validator

ENGINE = FakeEngine(
    handles=(
        handle("triage", TRIAGE_DIGEST, choices=CHOICES, calibration=calibration(TRIAGE_DIGEST)),
        handle("open", OPEN_DIGEST, policy=Policy(min_confidence=0.4)),
    )
)


async def card(server: Running, name: str) -> dict[str, Any]:
    response = await server.client.get(f"/v1/adapters/{name}")
    assert response.status_code == 200
    read: dict[str, Any] = response.json()
    return read


async def test_a_card_says_how_the_adapter_was_made_and_what_was_proved() -> None:
    async with running(ENGINE) as server:
        told = await card(server, "triage")
        assert (told["name"], told["digest"], told["base_model"]) == ("triage", TRIAGE_DIGEST, "fake/fake")
        assert told["posterior"]["method"] == "bayesian"
        assert told["prompt"]["choices"] == list(CHOICES)
        assert told["sampling"]["n_samples"] == 4
        assert told["training"] == {"settings": {"epochs": 4}, "validation": {"nll": 0.5}}
        assert told["policy"] == {"min_confidence": 0.9, "target_risk": 0.05, "source": "adapter"}
        proved = told["calibration"]
        assert [level["target_risk"] for level in proved["levels"]] == [0.01, 0.05, 0.2]
        assert [level["threshold"] for level in proved["levels"]] == [None, 0.9, 0.7]
        assert proved["curve"] == [[0.5, 0.02], [1.0, 0.1]]
        assert proved["reliability"][13] == {"count": 400, "confidence": 0.9, "accuracy": 0.9}
        assert len(proved["reliability"]) == 15
        assert proved["rows"]["n_proof"] == 300
        assert (proved["rows"]["forms"], proved["rows"]["fewest_choices"], proved["rows"]["most_choices"]) == (
            ["prompt"],
            2,
            3,
        )


def test_after_tuning_a_card_has_the_metrics_of_the_chosen_trial() -> None:
    [triage, _] = ENGINE.handles
    trials = [{"scale": scale, "temperature": 1.5, "nll": nll} for scale, nll in ((1.0, 0.3), (2.0, 0.2))]
    tuning = {"source": "later.jsonl", "digest": "sha256:1", "n_examples": 20, "scale": 2.0, "trials": trials}
    tuned = {"source": "later.jsonl", "digest": "sha256:1", "n_examples": 20, "scale": 2.0, "nll": 0.2}
    record = triage.config.training
    for training, figures in (
        (record, {"nll": 0.5}),
        (record | {"tuning": tuning}, tuned),
        ({"tuning": tuning}, tuned),
    ):
        config = dataclasses.replace(triage.config, training=training)
        assert adapter_card(dataclasses.replace(triage, config=config), drift_since=None).validation == figures


async def test_a_card_states_the_delta_of_all_asks_of_the_rows() -> None:
    asks = tuple(Ask(target_risk=target, delta=0.05, seed=0, dtype="float32") for target in (0.01, 0.02, 0.05))
    proved = dataclasses.replace(calibration(TRIAGE_DIGEST), delta=0.15, asks=asks)
    engine = FakeEngine(handles=(handle("triage", TRIAGE_DIGEST, choices=CHOICES, calibration=proved),))
    async with running(engine) as server:
        told = (await card(server, "triage"))["calibration"]
        assert told["delta"] == 0.15
        assert [ask["target_risk"] for ask in told["asks"]] == [0.01, 0.02, 0.05]


async def test_an_adapter_that_is_not_calibrated_has_its_owners_policy() -> None:
    async with running(ENGINE) as server:
        told = await card(server, "open")
        assert (told["calibration"], told["policy"]) == (None, {"min_confidence": 0.4, "source": "adapter"})


async def test_nothing_of_the_machine_it_was_trained_on_is_told() -> None:
    async with running(ENGINE) as server:
        assert "/home/me" not in (await server.client.get("/v1/adapters")).text


def test_nothing_of_the_questions_it_was_trained_on_is_told() -> None:
    [triage, _] = ENGINE.handles
    record = triage.config.training | {"seen": {"train": "0123456789ab"}}
    config = dataclasses.replace(triage.config, training=record)
    told = adapter_card(dataclasses.replace(triage, config=config), drift_since=None)
    assert told == adapter_card(triage, drift_since=None)


async def test_the_list_holds_every_card() -> None:
    async with running(ENGINE) as server:
        listed = (await server.client.get("/v1/adapters")).json()
        assert listed == {"object": "list", "data": [await card(server, "triage"), await card(server, "open")]}


async def test_a_card_may_be_pinned() -> None:
    async with running(ENGINE) as server:
        assert (await card(server, f"triage@{TRIAGE_DIGEST}"))["name"] == "triage"


@pytest.mark.parametrize(
    ("name", "code"), [("nobody", "unknown_adapter"), (f"triage@{OPEN_DIGEST}", "digest_mismatch")]
)
async def test_unknown_adapters_have_no_card(name: str, code: str) -> None:
    async with running(ENGINE) as server:
        response = await server.client.get(f"/v1/adapters/{name}")
        assert (response.status_code, response.json()["error"]["code"]) == (404, code)


async def test_there_are_no_cards_before_there_are_adapters(engine: FakeEngine) -> None:
    engine.load_gate.clear()
    async with running(engine, ready=False) as server:
        for path in ("/v1/adapters", "/v1/adapters/triage"):
            assert (await server.client.get(path)).status_code == 503
        engine.load_gate.set()
        await server.app.state.service.settled.wait()


async def test_cards_and_their_errors_fit_the_document() -> None:
    async with running(ENGINE) as server:
        document = (await server.client.get("/openapi.json")).json()
        assert "HTTPValidationError" not in document["components"]["schemas"]
        for path, request, status, documented in (
            ("/v1/adapters", "/v1/adapters", 200, "200"),
            ("/v1/adapters/{name}", "/v1/adapters/triage", 200, "200"),
            ("/v1/adapters/{name}", "/v1/adapters/open", 200, "200"),
            ("/v1/adapters/{name}", "/v1/adapters/nobody", 404, "4XX"),
        ):
            response = await server.client.get(request)
            assert response.status_code == status
            schema = document["paths"][path]["get"]["responses"][documented]["content"]["application/json"]["schema"]
            validator(document, schema).validate(response.json())
