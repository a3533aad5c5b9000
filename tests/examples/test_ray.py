"""The example for Ray Data on a local Ray: two engines on a tiny model, and the answers of `blora predict`."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.scenarios import tiny_model, tiny_tokenizer
from tests.server.engines.asking import write_adapter

ROOT = Path(__file__).resolve().parents[2]
N_ROWS = 1200
BAD = 1111  # in the last batch: those before have no error


def run(*command: str) -> None:
    ended = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr[-3000:]


def test_two_engines_answer_a_table_as_one_does(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    write_adapter(tmp_path / "adapter", tmp_path / "tiny", seed=1)
    rows = [{"id": k, "prompt": f"question {k}" + "?" * (k % 40)} for k in range(N_ROWS)]
    rows[BAD]["prompt"] = None  # nothing to be asked
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # float32: below it an answer depends a little on the batch it was computed in, and the two ways pack differently
    where = (str(tmp_path / "adapter"), "--base-model", str(tmp_path / "tiny"), "--dtype", "float32")

    command = ("examples/ray/predict.py", where[0], str(tmp_path / "rows.jsonl"), str(tmp_path / "answers"))
    run(*command, *where[1:], "--engines", "2", "--cpus", "0.5")
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"prompt": r["prompt"] or "?"}) + "\n" for r in rows))
    asked = (str(tmp_path / "asked.jsonl"), str(tmp_path / "alone.jsonl"))
    run("-m", "blora.cli", "predict", *asked, "--adapter", *where)

    found = {row["id"]: row for row in pq.read_table(tmp_path / "answers").to_pylist()}
    assert sorted(found) == list(range(N_ROWS))
    refused = found.pop(BAD)
    assert refused["answer"] is None
    assert json.loads(refused["error"])["type"] == "PromptError"
    alone = [json.loads(line)["prediction"] for line in (tmp_path / "alone.jsonl").read_text().splitlines()]
    for key, row in found.items():
        assert row["error"] is None
        assert row["confidence"] == pytest.approx(alone[key]["confidence"], abs=1e-4)
        assert json.loads(row["prediction"])["adapter"]["digest"] == alone[key]["adapter"]["digest"]
        assert row["abstained"] == alone[key]["abstained"]
