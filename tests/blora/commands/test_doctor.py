import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blora.adapter import adapter_digest
from blora.adapter.calibration_file import store_calibration
from blora.commands import diagnosis
from blora.commands.doctor import main
from blora.decision.calibration import VLLM
from tests.blora.adapters import rewrite_json
from tests.scenarios import tiny_model, tiny_tokenizer
from tests.server.calibrations import calibration

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "examples/triage/adapter"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two adapters: the demo, and the demo with other settings than its calibration is for."""
    for name in ("changed", "demo"):
        shutil.copytree(DEMO, tmp_path / "adapters" / name)
    rewrite_json(lambda raw: raw.update(policy={"min_confidence": 0.5}))(
        tmp_path / "adapters" / "changed" / "bayesian_config.json"
    )
    return tmp_path / "adapters"


def facts(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    assert main([*arguments, "--no-base-model", "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def text(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main([*arguments]) == code
    return capsys.readouterr().out


def test_the_machine_and_the_packages_are_described(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = facts(capsys)
    assert found["packages"]["torch"].startswith("2.")
    assert found["processor"]["usable_cores"] >= 1
    monkeypatch.setattr("blora.commands.diagnosis.cpu_limit", lambda: 1.5)
    assert facts(capsys)["processor"]["cpu_limit"] == 1.5
    assert "cores usable, limit 1.5, " in text(capsys, "--no-base-model")
    assert found["dtype"]["in_use"] == found["dtype"]["native"][0]
    assert found["cache"]["writable"]
    assert found["adapters"] == []


def test_the_dtype_is_the_one_that_the_adapters_are_calibrated_for(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blora.adapter.opening.native_dtypes", lambda device: ("float16", "float32"))
    found = facts(capsys, str(folder / "demo"))
    assert found["dtype"]["in_use"] == "float32"
    [adapter] = found["adapters"]
    assert adapter["calibrated_for_dtype_in_use"]
    assert adapter["calibrated"]["float32"] == "P(wrong | answered) <= 0.1 with probability 0.975"
    monkeypatch.setattr("blora.adapter.opening.native_dtypes", lambda device: ("float16",))
    found = facts(capsys, str(folder / "demo"), code=1)
    assert "no calibration in a common dtype" in found["dtype"]["error"]
    assert "not for the dtype above" in text(
        capsys, str(folder / "demo"), "--dtype", "float16", "--no-base-model"
    )  # asked for by name, it is not refused


def test_a_limit_for_each_choice_is_part_of_the_promise(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = calibration(adapter_digest(folder / "demo"))
    store_calibration(folder / "demo", replace(made, asks=(replace(made.asks[0], max_missed=0.125),)))
    [adapter] = facts(capsys, str(folder / "demo"))["adapters"]
    promised = "P(wrong | answered) <= 0.05 and P(missed | choice) <= 0.125 with probability 0.95"
    assert adapter["calibrated"]["float64"] == promised


def test_an_adapter_that_is_calibrated_for_vllm_alone_is_no_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = calibration(adapter_digest(folder / "demo"))
    (folder / "demo" / "calibration.json").unlink()
    store_calibration(folder / "demo", replace(made, binding=replace(made.binding, dtype=VLLM)))
    found = facts(capsys, str(folder / "demo"))
    assert found["dtype"]["in_use"] == found["dtype"]["native"][0]
    [adapter] = found["adapters"]
    assert (adapter["calibrated"].keys(), adapter["calibrated_for_dtype_in_use"]) == ({"vllm"}, False)
    assert "calibrated for vllm (P(wrong" in text(capsys, str(folder / "demo"), "--no-base-model")


def test_a_folder_of_adapters_is_searched(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed, demo = facts(capsys, str(folder))["adapters"]
    assert demo["calibrated"].keys() == {"bfloat16", "float32"}
    assert (demo["kind"], demo["of_other_contents"]) == ("head", 0)
    assert (changed["calibrated"], changed["of_other_contents"]) == ({}, 2)
    shown = text(capsys, str(folder), "--no-base-model")
    assert f"{folder}/changed: head on smollm2-135m-instruct, 64 draws" in shown
    assert "not calibrated; 2 calibrations of other contents, which do not hold" in shown


def test_a_broken_adapter_is_an_error_beside_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "changed" / "head.safetensors").unlink()
    (folder / "demo" / "calibration.json").write_text("{}")
    changed, demo = facts(capsys, str(folder), code=1)["adapters"]
    assert "without head.safetensors" in changed["error"]
    assert "format_version" in demo["error"]
    assert "ERROR: got adapter" in text(capsys, str(folder), "--no-base-model", code=1)


def test_a_half_written_adapter_is_an_error_beside_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "changed" / "bayesian_config.json").rename(folder / "changed" / "bayesian_config.json.old")
    changed, demo = facts(capsys, str(folder), code=1)["adapters"]
    assert "because a write of it was interrupted" in changed["error"]
    assert "error" not in demo
    assert facts(capsys, str(folder / "changed"), code=1)["adapters"] == [changed]


@pytest.mark.parametrize("name", ["", "mistyped"])
def test_a_path_without_adapters_is_an_error(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / name)
    assert f"{folder}: ERROR: no adapter is in this" in text(capsys, folder, "--no-base-model", code=1)
    assert facts(capsys, folder, code=1)["without_adapters"] == [folder]


def test_the_base_model_is_loaded_and_tested(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    arguments = ("--base-model", str(tmp_path / "tiny"), "--dtype", "float32")
    assert "in float32: runs in parts" in text(capsys, *arguments)
    assert "ERROR: got base model" in text(capsys, "--base-model", str(tmp_path / "none"), code=1)


def test_a_model_that_runs_whole_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    monkeypatch.setattr("blora.inference.fork.why_whole", lambda model: "its layers share keys")
    assert "runs whole, because its layers share keys" in text(
        capsys, "--base-model", str(tmp_path / "tiny"), "--dtype", "float32"
    )


def test_nothing_private_is_shown(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("BLORA_CACHE_DIR", str(folder.parent / "cache"))
    monkeypatch.setenv("BLORA_API_KEY", "blora-secret")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    shown = text(capsys, str(folder), "--no-base-model")
    assert "~/adapters/demo" in shown
    assert "~/cache, writable; holds no model" in shown
    assert "BLORA_API_KEY" in shown
    assert "HF_TOKEN" in shown
    assert "secret" not in shown
    assert str(folder.parent) not in shown


def test_a_bare_install_is_described_too() -> None:
    hide = "import sys\nfor name in ('torch', 'transformers', 'safetensors'): sys.modules[name] = None\n"
    code = hide + f"from blora.commands.doctor import main; sys.exit(main([{str(DEMO)!r}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ""
    assert "ModuleNotFoundError" in next(line for line in done.stdout.splitlines() if line.startswith("processor"))


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "PACKAGES", ("no-such-package",))
    assert diagnosis.diagnose([], base_model=None)["packages"] == {"no-such-package": None}
