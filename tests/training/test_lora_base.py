"""The base model of a LoRA that a new adapter starts from: found by default, and checked."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from blora.adapter import load_adapter
from blora.adapter.opening import base_model_of, check_lora_base
from blora.base_model import BaseModel, load_base_model
from blora.errors import AdapterError
from blora.training.commands import bayesianize, train
from tests.blora.adapters import saved
from tests.loras import make_lora
from tests.scenarios import tiny_model, tiny_tokenizer
from tests.training.toys import train_arguments, write_jsonl

COMMIT = "0123456789" * 4


@pytest.fixture
def lora(tmp_path: Path, base_folder: Path) -> Path:
    """A LoRA as `blora train` makes it."""
    saved(tmp_path / "lora", load_base_model(str(base_folder), device="cpu", dtype="float32"), method="lora")
    return tmp_path / "lora"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Rows with the choices of that LoRA."""
    return write_jsonl(
        tmp_path / "rows.jsonl", [{"prompt": f"text {i}", "label": ("no", "yes")[i % 2]} for i in range(20)]
    )


@pytest.fixture
def another_base(tmp_path: Path) -> Path:
    """A base model of the same shapes and of the same name."""
    folder, model = tmp_path / "another" / "tiny-llama", tiny_model("llama")
    model.get_input_embeddings().weight.mul_(2)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def converted(lora: Path, base: Path, data: Path, output: Path) -> list[str]:
    where = ("--base-model", str(base), "--device", "cpu", "--dtype", "float32", "--scales", "0.5")
    return [str(lora), "--data", str(data), "--output", str(output), *where]


def begun(lora: Path, base: Path, data: Path, output: Path) -> list[str]:
    start = ("--init-from", str(lora), "--rank", "3", "--alpha", "7", "--epochs", "1")
    return train_arguments(base, data, output, *start)


COMMANDS = [(bayesianize.main, converted), (train.main, begun)]
Arguments = Callable[[Path, Path, Path, Path], list[str]]


@pytest.mark.parametrize(("command", "arguments"), COMMANDS, ids=["bayesianize", "train"])
def test_a_lora_stays_on_the_weights_that_it_was_trained_on(
    lora: Path,
    base_folder: Path,
    another_base: Path,
    rows: Path,
    tmp_path: Path,
    command: Callable[[list[str]], int],
    arguments: Arguments,
) -> None:
    with pytest.raises(AdapterError, match=r"got base model tiny-llama \(.*, which the adapter was trained on"):
        command(arguments(lora, another_base, rows, tmp_path / "toy"))
    assert not (tmp_path / "toy").exists()
    assert command(arguments(lora, base_folder, rows, tmp_path / "toy")) == 0
    load_adapter(tmp_path / "toy", load_base_model(str(base_folder), device="cpu", dtype="float32"))


@pytest.mark.parametrize(("command", "arguments"), COMMANDS, ids=["bayesianize", "train"])
def test_a_base_model_that_only_its_folder_has_is_to_be_named(
    lora: Path,
    base_folder: Path,
    rows: Path,
    tmp_path: Path,
    command: Callable[[list[str]], int],
    arguments: Arguments,
) -> None:
    given = arguments(lora, base_folder, rows, tmp_path / "toy")
    at = given.index("--base-model")
    with pytest.raises(AdapterError, match="of base model 'tiny-llama', which was loaded from a folder or a file"):
        command(given[:at] + given[at + 2 :])


def test_the_default_is_the_base_model_of_a_lora_that_was_trained_here(base: BaseModel, tmp_path: Path) -> None:
    on_the_hub = replace(base, ref=replace(base.ref, id="owner/name", revision=COMMIT))
    saved(tmp_path / "lora", on_the_hub, method="lora")
    assert base_model_of(tmp_path / "lora") == f"owner/name@{COMMIT}"
    assert base_model_of(make_lora(tmp_path / "foreign")) == "embedded"
    assert base_model_of(None) == "embedded"


@pytest.mark.parametrize(
    ("named", "used", "warned"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct", False),
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", False),
        ("/models/tiny-llama/", "tiny-llama", False),
        ("tiny/llama", "tiny/llama", False),
        ("", "tiny/llama", False),
        (None, "tiny/llama", False),
        ("other/llama", "tiny/llama", True),
        ("/models/tiny-llama-2", "tiny-llama", True),
        ("HuggingFaceTB/SmolLM2-360M-Instruct", "smollm2-135m-instruct", True),
    ],
)
def test_a_foreign_lora_that_names_another_base_model_causes_a_warning(
    named: str | None,
    used: str,
    warned: bool,
    base: BaseModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = make_lora(tmp_path / "lora") / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": named}))
    check_lora_base(tmp_path / "lora", replace(base, ref=replace(base.ref, id=used)))
    wanted = [f"names the base model {named} and is used on {used}"] if warned else []
    assert [text in record.getMessage() for record, text in zip(caplog.records, wanted, strict=True)] == [True] * warned


def test_the_conversion_of_a_foreign_lora_warns(
    base_folder: Path, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = make_lora(tmp_path / "lora") / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"base_model_name_or_path": "other/llama"}))
    assert bayesianize.main(converted(tmp_path / "lora", base_folder, rows, tmp_path / "toy")) == 0
    assert "names the base model other/llama and is used on tiny-llama" in caplog.text
