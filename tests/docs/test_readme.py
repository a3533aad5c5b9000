"""README's blocks on training and asking, run in order on easy rows; its curl commands are run by the live tests."""

import json
import re
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Block, blocks, reader

README = ROOT / "README.md"
KINDS = {
    "billing": "Invoice {} charges my card twice.",
    "technical": "The app crashes on start with error {}.",
    "sales": "What would a contract for {} people cost?",
}
# What README leaves to its reader: rows of one's own, and what to do with an answer.
OF_THE_READER = """
import json
from pathlib import Path

files = ("more.jsonl", "proof.jsonl")
rows, unseen_rows = ([json.loads(line) for line in Path(name).read_text().splitlines()] for name in files)
act_on = print


def hand_over_to_a_person(choice, reasons):
    print(choice, reasons)

"""


def write_rows(file: Path, numbers: range) -> None:
    rows = [{"prompt": text.format(n), "label": label} for n in numbers for label, text in KINDS.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def commands() -> list[str]:
    [block] = re.findall(
        r"^```(?:sh)?\n(blora train --data tickets.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE
    )
    return str(block).splitlines()


@pytest.mark.model
def test_the_commands_and_the_python_run(tmp_path: Path) -> None:
    for place, name in enumerate(("tickets", "held_out", "calibration", "more", "proof")):
        write_rows(tmp_path / f"{name}.jsonl", range(100 + 40 * place, 140 + 40 * place))
    (tmp_path / "new_tickets.csv").write_text("id,prompt\n1,Invoice 7 charges my card twice.\n")
    with reader(tmp_path) as somebody:
        for command in commands():
            somebody.run(Block("sh", command + "\n", None, 0))
        assert json.loads((tmp_path / "answers.jsonl").read_text())["prediction"]["top_choice"] == "billing"
        assert json.loads((tmp_path / "result.json").read_text())["accuracy"] > 0.9
        in_process, by_client = (block for block in blocks(README) if block.language == "python")
        asked = somebody.run(Block("python", OF_THE_READER + by_client.code, None, by_client.line))
        assert asked.startswith("billing")
        code = in_process.code.replace("adapters/tickets", "adapters/more")
        somebody.run(Block("python", OF_THE_READER + code, None, in_process.line))
