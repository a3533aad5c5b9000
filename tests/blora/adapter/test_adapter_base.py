"""Which base models an adapter takes for its own."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers.models import WordLevel
from tokenizers.normalizers import Prepend
from transformers import PreTrainedTokenizerFast

from blora.adapter import load_adapter
from blora.base_model import BaseModel, load_base_model
from blora.errors import AdapterError
from tests.blora.adapters import saved
from tests.scenarios import tiny_base, tiny_model, tiny_tokenizer

COMMIT, OTHER_COMMIT = "0123456789" * 4, "abcdefabcd" * 4
FILE, OTHER_FILE = "sha256:" + "01" * 32, "sha256:" + "ab" * 32
RENAMED = "sha256:" + "ff" * 32


def base_at(revision: str | None, fingerprint: str | None = None) -> BaseModel:
    base = tiny_base()
    return replace(base, ref=replace(base.ref, revision=revision, fingerprint=fingerprint or base.ref.fingerprint))


@pytest.mark.parametrize("revision", [COMMIT, FILE])
def test_the_same_files_are_the_same_base_whatever_transformers_calls_its_parameters(
    tmp_path: Path, revision: str
) -> None:
    saved(tmp_path / "adapter", base_at(revision))
    assert load_adapter(tmp_path / "adapter", base_at(revision, RENAMED)).config.base_model.revision == revision


@pytest.mark.parametrize(
    ("trained_at", "loaded_at"),
    [
        (None, None),
        ("main", "main"),
        ("0123456", "0123456"),
        (COMMIT, OTHER_COMMIT),
        (FILE, OTHER_FILE),
        (COMMIT, None),
    ],
)
def test_other_files_or_a_name_for_them_prove_nothing(
    tmp_path: Path, trained_at: str | None, loaded_at: str | None
) -> None:
    saved(tmp_path / "adapter", base_at(trained_at))
    with pytest.raises(AdapterError, match=f"revision {trained_at or 'unknown'}; if only transformers was upgraded"):
        load_adapter(tmp_path / "adapter", base_at(loaded_at, RENAMED))


def test_an_equal_fingerprint_is_enough(tmp_path: Path) -> None:
    saved(tmp_path / "adapter", base_at(COMMIT))
    load_adapter(tmp_path / "adapter", base_at(OTHER_COMMIT))


def test_a_folder_whose_files_have_the_names_of_the_fingerprint_is_the_same_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "adapter", base_at(None))  # written before folders had a revision
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    monkeypatch.setattr("blora.base_model.loading.model_fingerprint", lambda model: RENAMED)  # under other names
    base = load_base_model(str(tmp_path / "base"), device="cpu", dtype="float32")
    assert base.ref.fingerprint == RENAMED
    load_adapter(tmp_path / "adapter", base)


def _spaced(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.backend_tokenizer.normalizer = Prepend(" ")


def _another_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = f"{tokenizer.chat_template} "


def _another_end(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.eos_token = "<pad>"


@pytest.mark.parametrize("change", [_spaced, _another_template, _another_end])
def test_a_base_model_that_reads_text_otherwise_is_another_one(
    tmp_path: Path, change: Callable[[PreTrainedTokenizerFast], None]
) -> None:
    trained_on = _folder(tmp_path / "first")
    saved(tmp_path / "adapter", trained_on)
    load_adapter(tmp_path / "adapter", _folder(tmp_path / "copy"))
    with pytest.raises(AdapterError, match="whose tokenizer, chat template or config.json has changed"):
        load_adapter(tmp_path / "adapter", _folder(tmp_path / "changed", change))


def test_a_base_model_with_another_setting_is_another_one(tmp_path: Path) -> None:
    saved(tmp_path / "adapter", _folder(tmp_path / "base"))
    config = tmp_path / "base" / "config.json"
    raw = json.loads(config.read_text())
    raw["rope_parameters"]["rope_theta"] *= 5
    config.write_text(json.dumps(raw))
    with pytest.raises(AdapterError, match="whose tokenizer, chat template or config.json has changed"):
        load_adapter(tmp_path / "adapter", load_base_model(str(tmp_path / "base"), device="cpu", dtype="float32"))


def test_a_tokenizer_that_refuses_a_text_is_no_obstacle(tmp_path: Path) -> None:
    def closed(tokenizer: PreTrainedTokenizerFast) -> None:
        vocabulary = {token: i for token, i in tokenizer.get_vocab().items() if token != "<unk>"}
        tokenizer.backend_tokenizer.model = WordLevel(vocabulary, unk_token="<unk>")

    base = _folder(tmp_path / "closed", closed)
    with pytest.raises(Exception, match="Missing"):
        base.tokenizer("Ω")
    assert base.ref.reading == _folder(tmp_path / "again", closed).ref.reading


def _folder(path: Path, change: Callable[[PreTrainedTokenizerFast], None] = lambda tokenizer: None) -> BaseModel:
    """A tiny base model that was saved and loaded, with a change to its tokenizer."""
    tokenizer = copy.deepcopy(tiny_tokenizer())  # the original is shared with all tests of this process
    change(tokenizer)
    tiny_model().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return load_base_model(str(path), device="cpu", dtype="float32")
