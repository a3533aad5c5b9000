"""Log lines: their contents, and the absence of request text."""

import json
import logging
from typing import get_args

import pytest

from blora.server.monitoring.logs import Form, configure, log_outcome
from tests.server.fakes import TRIAGE_DIGEST, FakeEngine, running

SECRET = "p=0.9 a secret"
REQUEST_ID = "id-3f9c1d"  # no part of a path in a traceback


async def ask(form: Form, capsys: pytest.CaptureFixture[str]) -> list[str]:
    configure("info", form)
    async with running(FakeEngine()) as server:
        for body in (
            {"prompt": SECRET, "policy": {"min_confidence": 0.8}},
            {"prompt": SECRET, "policy": {"min_confidence": 0.95}},
            {"prompt": SECRET, "adapter": "secret"},
            {"prompt": f"{SECRET} POISON"},
            {"prompt": SECRET, "secret": "secret"},
        ):
            await server.client.post("/v1/predict", json=body, headers={"x-request-id": REQUEST_ID})
    return [line for line in capsys.readouterr().err.splitlines() if REQUEST_ID in line]


async def test_a_line_of_json_tells_how_an_input_ended(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in await ask("json", capsys)]
    outcomes = ["answered", "abstained", "unknown_adapter", "model_failure", "unknown_field"]
    assert [line["message"] for line in lines] == outcomes
    answered = lines[0]
    assert answered["prediction_id"].startswith("pred_")
    assert (answered["adapter"], answered["digest"], answered["n_samples"]) == ("triage", TRIAGE_DIGEST, 4)
    assert (answered["level"], answered["request_id"], answered["tokens"]) == ("info", REQUEST_ID, 3)
    assert answered["queue_ms"] >= 0
    assert answered["time"].endswith("+00:00")


async def test_text_tells_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    lines = await ask("text", capsys)
    assert f" INFO blora.server.prediction.endings: answered request_id={REQUEST_ID} prediction_id=pred_" in lines[0]
    assert "abstained" in lines[1]


@pytest.mark.parametrize("form", get_args(Form))
async def test_no_line_holds_what_was_asked(form: Form, capsys: pytest.CaptureFixture[str]) -> None:
    lines = await ask(form, capsys)
    assert lines
    assert not any("secret" in line or "0.9 a" in line for line in lines)


def test_an_exception_is_part_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logging.getLogger("x").exception("it failed")
    [line] = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert found["level"] == "error"
    assert "ValueError: first\nsecond" in found["exception"]


FORGED = "evil\n2026-01-01 00:00:00,000 INFO blora.server.prediction.endings: answered\u2028x\x1b[2J"


def test_a_name_cannot_write_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "text")
    logging.getLogger("x").info("Adapter %s is served", FORGED)
    log_outcome(logging.getLogger("x"), "answered", adapter=FORGED)
    for line in capsys.readouterr().err.splitlines():
        assert "\\n2026-01-01" in line
        assert "\x1b" not in line


def test_nor_can_the_text_of_an_exception(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", "text")
    try:
        raise ValueError(FORGED)
    except ValueError:
        logging.getLogger("x").exception("it failed")
    first, *rest = capsys.readouterr().err.splitlines()
    assert first.endswith("ERROR x: it failed")
    assert all(line.startswith("  ") for line in rest)
