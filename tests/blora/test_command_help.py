"""The --help of every command reads as plain text: no Python, and no default that is none."""

import re

import pytest

from blora import cli
from tests.blora.test_cli import COMMANDS


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_no_python_shows(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(command, capsys)
    python = r"\bNone\b|\bnull\b|\bFalse\b|tuple\[|\[\]|\(\)|Raises:|Args:|pydantic|default: \("
    assert re.findall(python, text) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_no_default_is_stated_twice(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert re.findall(r"\(default: [^)]*\) \(default: [^)]*\)", help_of(command, capsys)) == []


def test_lists_are_shown_as_they_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert "separated by commas (default: 0.5,0.71,1,1.41,2,2.83,4)" in help_of("tune", capsys)


def test_a_default_of_zero_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "seed of the adapter's draws (default: 0)" in help_of("train", capsys)


def test_the_value_of_a_setting_is_a_plain_word(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("serve", capsys)
    for flag in (
        "--adapter-root PATH",
        "--engine-url URL",
        "--timeout-s SECONDS",
        "--port N",
        "--log-format {text,json}",
    ):
        assert flag in text
