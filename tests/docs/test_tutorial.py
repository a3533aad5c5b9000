"""The tutorial, every block run in order in an empty folder, and its output held against what the page shows."""

import json
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Block, blocks, differences, reader

TUTORIAL = ROOT / "docs" / "tutorial.md"


def test_the_setup_is_that_of_the_makefile() -> None:
    setup, *_ = blocks(TUTORIAL)
    assert setup.code == "make setup\nsource .venv/bin/activate\n"
    makefile = (ROOT / "Makefile").read_text()
    assert "\nsetup:" in makefile
    assert "VENV := .venv\n" in makefile


@pytest.mark.model
def test_every_block_runs_and_says_what_the_page_shows(tmp_path: Path) -> None:
    _, *steps = blocks(TUTORIAL)
    with reader(tmp_path) as somebody:
        for step in steps:
            output = somebody.run(step)
            somebody.outputs.append(output)
            if step.shown is not None:
                assert (differs := differences(step.shown, output)) is None, f"line {step.line}: {differs}"
    labelled = [json.loads(line) for line in (tmp_path / "labelled.jsonl").read_text().splitlines()]
    assert len(labelled) == 40
    assert all(set(row) == {"prompt", "label"} for row in labelled)


# What holds an output against a page


@pytest.mark.parametrize(
    ("shown", "output"),
    [
        ("head 0.750\n", "head 0.8\n"),
        ("a\n...\nz\n", "a\nb\nc\nz\n"),
        ("...\nz\n", "a\nz\n"),
        ("a\n...\n", "a\nb\n"),
        ("    0.05  not proved\n", "    0.05  margin   0.1   0.2   0.3\n"),
        ("*    0.2  margin  0.28  0.77  0.13", "*    0.2  confidence  0.7  0.8  0.1"),
    ],
)
def test_digits_and_what_is_left_out_may_differ(shown: str, output: str) -> None:
    assert differences(shown, output) is None


@pytest.mark.parametrize(
    ("shown", "output"),
    [
        ("head 0.750\n", "tail 0.750\n"),
        ("a\n", "a\nb\n"),
        ("a\nb\n", "a\n"),
        ("a\n...\nz\n", "a\nb\nz\nmore\n"),
        ("...\nb\n...\na\n", "a\nb\n"),
        ("*    0.2  margin  0.28  0.77  0.13", "*    0.2  not proved"),
    ],
)
def test_words_and_lines_may_not(shown: str, output: str) -> None:
    assert differences(shown, output) is not None


def test_the_blocks_of_a_page_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n\n```sh\nls\n```\n\n```text\na\n```\n\n```json\n{}\n```\n\n```python\n1\n```\n")
    assert blocks(page) == [Block("sh", "ls\n", "a\n", 3), Block("python", "1\n", None, 15)]
