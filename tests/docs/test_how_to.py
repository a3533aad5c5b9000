"""The how-to pages, every block of each run in order in an empty folder."""

import json
import re
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Reader, blocks, differences, reader

HOW_TO = ROOT / "docs" / "how-to"


def worked_through(name: str, folder: Path) -> Reader:
    """Return a reader who has run every block of a page, each of which did what the page shows."""
    with reader(folder) as somebody:
        for block in blocks(HOW_TO / f"{name}.md"):
            output = somebody.run(block)
            somebody.outputs.append(output)
            if block.shown is not None:
                assert (differs := differences(block.shown, output)) is None, f"line {block.line}: {differs}"
        return somebody


def test_every_page_is_tested() -> None:
    tests = {name.removeprefix("test_how_to_") for name in globals() if name.startswith("test_how_to_")}
    assert tests == {page.stem for page in HOW_TO.glob("*.md")}


@pytest.mark.model
def test_how_to_threshold(tmp_path: Path) -> None:
    _, levels, by_risk, together, by_choice, by_cost = worked_through("threshold", tmp_path).outputs
    missed = [int(re.findall(r"^  true +\d+ +(\d+) ", told, re.MULTILINE)[0]) for told in (together, by_choice)]
    assert missed[1] < missed[0]
    assert re.search(r"^0\.1 \w+ 0\.\d+", levels, re.MULTILINE)
    assert json.loads(by_risk)["policy"]["target_risk"] == 0.2
    assert "low_confidence" in by_cost


@pytest.mark.model
def test_how_to_adapters(tmp_path: Path) -> None:
    *_, replaced, changed = worked_through("adapters", tmp_path).outputs
    assert '"name":"triage"' in replaced.replace(" ", "")
    assert '"name":"trial"' in changed.replace(" ", "")


@pytest.mark.model
def test_how_to_keys(tmp_path: Path) -> None:
    _, _, both, by_client, by_command, _ = worked_through("keys", tmp_path).outputs
    assert '"code":"unauthorized"' in both
    assert '"answer":"billing"' in both
    assert by_client == "billing\n"
    assert "billing" in by_command


@pytest.mark.model
def test_how_to_monitor(tmp_path: Path) -> None:
    metrics = worked_through("monitor", tmp_path).outputs[-1]
    assert "blora_drift_wealth{" in metrics


@pytest.mark.model
def test_how_to_label(tmp_path: Path) -> None:
    unsure = worked_through("label", tmp_path).outputs[-1].splitlines()
    assert len(unsure) == 3


@pytest.mark.model
def test_how_to_lora(tmp_path: Path) -> None:
    worked_through("lora", tmp_path)
    assert (tmp_path / "adapters" / "triage" / "posterior.safetensors").is_file()


@pytest.mark.model
def test_how_to_questions(tmp_path: Path) -> None:
    _, asked, *_ = worked_through("questions", tmp_path).outputs
    assert all(f"'{name}'" in asked for name in ("queue", "urgent", "mood"))
    for name in ("triage.urgent", "any-question"):
        assert (tmp_path / "adapters" / name / "head.safetensors").is_file()
