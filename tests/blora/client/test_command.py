"""`blora ask`, with a scripted server behind it."""

import io
import json
import re
from typing import Any

import httpx
import pytest

from blora import cli
from blora.client import synchronous
from blora.client.command import main
from blora.client.errors import RefusedError
from blora.errors import ConfigError
from tests.blora.client.predictions import body, withheld


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What reaches the server, which abstains at `unsure`, warns at `odd` and refuses at `bad`."""
    seen: list[dict[str, Any]] = []

    def script(request: httpx.Request) -> httpx.Response:
        question = json.loads(request.content) | {"url": str(request.url)}
        seen.append(question)
        if question["prompt"] == "bad":
            return httpx.Response(422)
        if question["prompt"] == "odd":
            return httpx.Response(200, json=body(warnings=["without_head", "added_later"]))
        return httpx.Response(200, json=withheld() if question["prompt"] == "unsure" else body())

    real = synchronous.Client
    monkeypatch.setattr(
        synchronous, "Client", lambda *args, **options: real(*args, transport=httpx.MockTransport(script), **options)
    )
    monkeypatch.delenv("BLORA_URL", raising=False)
    return seen


def test_an_answer_is_printed_with_its_probabilities(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["why?"]) == 0
    assert capsys.readouterr().out == "billing\n\n  billing  0.900 ± 0.020\n  sales    0.100 ± 0.020\n"
    assert asked == [{"prompt": "why?", "url": "http://127.0.0.1:8000/v1/predict"}]


def test_an_abstention_has_reasons_and_an_exit_code_of_its_own(
    asked: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["unsure"]) == 3
    assert capsys.readouterr().out.startswith("abstains\n  low_confidence: 0.9, threshold 0.95\n\n  billing")


@pytest.mark.usefixtures("asked")
def test_each_warning_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["odd"]) == 0
    assert capsys.readouterr().out.splitlines()[:4] == [
        "billing",
        "  warning: without_head (the adapter's head had no part in the answer)",
        "  warning: added_later",
        "",
    ]


def test_flags_become_fields(asked: list[dict[str, Any]]) -> None:
    flags = "--url http://host:1 --adapter triage --choices a|b --n-samples 4 --min-confidence 0.5 --target-risk 0.05"
    main(["why?", *flags.split()])
    assert asked == [
        {
            "prompt": "why?",
            "adapter": "triage",
            "choices": ["a", "b"],
            "n_samples": 4,
            "policy": {"target_risk": 0.05, "min_confidence": 0.5},
            "url": "http://host:1/v1/predict",
        }
    ]


def test_choices_that_a_shell_left_empty_are_sent_so_that_the_server_refuses_them(asked: list[dict[str, Any]]) -> None:
    main(["why?", "--choices", ""])
    assert asked[0]["choices"] == [""]


def test_a_key_that_a_shell_left_empty_is_not_replaced_by_the_environments(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLORA_API_KEY", "of-somebody-else")
    with pytest.raises(ConfigError, match="got an API key of 0 characters"):
        main(["why?", "--api-key", ""])
    assert asked == []


def test_white_space_around_choices_does_not_count(asked: list[dict[str, Any]]) -> None:
    main(["why?", "--choices", "a | b"])
    assert asked[0]["choices"] == ["a", "b"]


def test_the_question_may_come_from_standard_input_and_the_answer_be_json(
    asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    assert main(["-", "--json"]) == 0
    absent = dict.fromkeys(("familiarity", "samples", "feedback_requested"))
    assert json.loads(capsys.readouterr().out) == body(**absent, warnings=[])
    assert asked[0]["prompt"] == "from a pipe"


def test_help_shows_no_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BLORA_API_KEY", "blora_secret")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "blora_secret" not in capsys.readouterr().out


@pytest.mark.usefixtures("asked")
def test_what_is_refused_is_told() -> None:
    with pytest.raises(RefusedError, match="HTTP 422"):
        main(["bad"])


def test_an_empty_variable_is_no_key(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLORA_API_KEY", "")
    assert main(["why?"]) == 0
    assert len(asked) == 1


@pytest.mark.parametrize(("variable", "value"), [("BLORA_API_KEY", "schlüssel"), ("BLORA_URL", "http://host:80o0")])
def test_a_variable_that_is_wrong_gives_one_line(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, value)
    assert cli.main(["ask", "why?"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert re.fullmatch("blora ask: got .*, expected .*: .*", line)
