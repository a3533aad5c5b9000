"""The triage worker: how it is called, and what becomes of each ticket."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.blora.client.serving import serving

WORKER = Path(__file__).parents[2] / "examples" / "triage" / "worker.py"


def test_without_arguments_it_says_how_to_call_it() -> None:
    done = subprocess.run([sys.executable, str(WORKER)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: worker.py [-h] tickets filed for_a_person [url]")


def test_every_ticket_ends_in_an_output_in_any_locale(tmp_path: Path) -> None:
    tickets = ["I was charged twice", "a line separator\u2028is no end of a line", "the café's next\u0085line"]
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in tickets]
    (tmp_path / "tickets").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    files = [tmp_path / name for name in ("tickets", "filed", "for_a_person")]
    no_utf8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with serving() as server:
        done = subprocess.run(
            [sys.executable, WORKER, *files, server.url], env=os.environ | no_utf8, capture_output=True, check=False
        )
    assert done.returncode == 0, done.stderr
    outcomes = [line for file in files[1:] for line in file.read_text(encoding="utf-8").split("\n") if line]
    assert [json.loads(line)["ticket"] for line in outcomes] == tickets
