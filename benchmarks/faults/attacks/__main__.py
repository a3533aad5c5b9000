"""Attacks a server of the demo's adapter, and writes what was seen: `python -m benchmarks.faults.attacks`."""

import argparse
import json
import logging
import tempfile
from pathlib import Path

from benchmarks.faults.attacks.run import FAMILIES, attacked
from benchmarks.result_files import about
from benchmarks.server_process import ROOT

logger = logging.getLogger(__name__)

RESULT = ROOT / "benchmarks" / "results" / "attacks" / "result.json"


def main() -> None:
    """Attacks and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="*", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = attacked(Path(name), arguments.families)
    result |= about("python -m benchmarks.faults.attacks")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for case in result["cases"]:
        if not case["as_expected"]:
            logger.info("%s", json.dumps(case, ensure_ascii=False))


if __name__ == "__main__":
    main()
