"""The triage worker, called without what it needs."""

import subprocess
import sys
from pathlib import Path

WORKER = Path(__file__).parents[2] / "examples" / "triage" / "worker.py"


def test_without_arguments_it_says_how_to_call_it() -> None:
    done = subprocess.run([sys.executable, str(WORKER)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: worker.py [-h] tickets filed for_a_person [url]")
