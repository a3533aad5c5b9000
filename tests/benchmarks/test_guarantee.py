"""The benchmark of the guarantee, on probabilities whose behaviour is known."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.guarantee import binomial_limit, main, measure
from benchmarks.server_process import ROOT
from blora.decision.binomial import binomial_cdf
from blora.decision.temperature import temper


def answers(n: int = 600, n_draws: int = 3) -> tuple[Tensor, Tensor]:
    """Mostly right answers among three choices, every third row without the last one."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (n,), generator=generator)
    sharp = 6 * torch.rand(n, 1, generator=generator)
    logits = torch.randn(n_draws, n, 3, generator=generator) + sharp * torch.nn.functional.one_hot(labels, 3)
    logits[:, ::3, 2] = -torch.inf
    return logits.log_softmax(-1), labels


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    log_probs, labels = answers()
    return measure(log_probs.double().exp(), log_probs[0].isfinite(), labels, delta=0.1, splits=40, seed=0)


def test_the_limit_is_the_exact_binomial_one() -> None:
    limit = binomial_limit(200, 0.05)
    assert binomial_cdf(limit, 200, 0.05) >= 0.95 > binomial_cdf(limit - 1, 200, 0.05)
    assert limit == 15


def test_the_true_error_exceeds_the_target_as_rarely_as_promised(result: dict[str, Any]) -> None:
    assert result["limit"] == binomial_limit(40, 0.1) / 40
    for row in result["selective"]:
        assert row["population"]["exceeds"] <= result["limit"]
    loose = result["selective"][-1]
    assert (loose["target_risk"], loose["population"]["refused"], loose["halves"]["refused"]) == (0.2, 0, 0)
    assert 0.5 < loose["population"]["mean_coverage"] <= 1
    assert loose["population"]["mean_error"] < 0.2


def test_sets_reach_their_coverage(result: dict[str, Any]) -> None:
    for row in result["conformal"]:
        assert row["mean_coverage"] >= row["coverage"] - 3 * row["standard_error"]
        assert 1 <= row["mean_size"] < 3


def test_where_nothing_can_be_proved_every_calibration_refuses() -> None:
    log_probs, _ = answers(200)
    probs = log_probs.double().exp()
    wrong = probs.mean(0).argmin(-1)
    result = measure(probs, log_probs[0].isfinite(), wrong, delta=0.1, splits=5, seed=0)
    assert [row["population"]["refused"] for row in result["selective"]] == [5] * 5
    assert result["selective"][0]["population"]["mean_error"] is None


def test_one_result_is_written_with_its_provenance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_probs, labels = answers(200)
    lengths = torch.full((200,), 4.0)
    save_file({"log_probs": log_probs, "labels": labels, "lengths": lengths}, tmp_path / "probs.safetensors")
    run = tmp_path / "run.json"
    run.write_text(json.dumps({"recalibration": {"temperature": 2.6, "power": -0.5, "lapse": 0.1}}))
    target = tmp_path / "results" / "guarantee.json"
    arguments = [str(tmp_path / "probs.safetensors"), "--json", str(target), "--splits", "5", "--run", str(run)]
    main(arguments)
    result = json.loads(target.read_text())
    assert {"machine", "revision", "command", "digest"} <= result.keys()
    assert shlex.split(result["command"]) == ["python", "-m", "benchmarks.guarantee", *arguments]
    assert (result["n_examples"], result["splits"]) == (200, 5)
    assert result["recalibration"] == {"temperature": 2.6, "power": -0.5, "lapse": 0.1}
    at_the_same = measure(
        temper(log_probs, 1.3, 0.1), log_probs[0].isfinite(), labels, delta=0.05, splits=5, seed=0
    )  # 2.6 / 4**0.5
    assert {name: result[name] for name in at_the_same} == at_the_same
    told = capsys.readouterr().out
    assert "target 0.05: exceeded in" in told
    assert "coverage 0.9:" in told


def test_the_guarantee_is_measured_only_where_its_probabilities_are(tmp_path: Path) -> None:
    script = tmp_path / "benchmarks" / "calibration.sh"
    shutil.copytree(ROOT / "benchmarks" / "results" / "calibration", script.parent / "results" / "calibration")
    shutil.copy(ROOT / "benchmarks" / "calibration.sh", script)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$2" >> ran\n')
    python.chmod(0o755)

    def ran() -> list[str]:
        (tmp_path / "ran").write_text("")
        subprocess.run([script], env=os.environ | {"VENV": str(tmp_path)}, check=True)
        return (tmp_path / "ran").read_text().split()

    assert ran() == ["benchmarks.calibration"] * 3
    probabilities = tmp_path / "runs" / "calibration" / "arc_easy" / "bayesian-seed0" / "arc_easy_test.safetensors"
    probabilities.parent.mkdir(parents=True)
    probabilities.touch()
    assert ran() == ["benchmarks.calibration"] * 3 + ["benchmarks.guarantee"]
