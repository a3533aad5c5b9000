"""Which base models an adapter takes for its own."""

from dataclasses import replace
from pathlib import Path

import pytest

from blora.adapter import load_adapter
from blora.base_model import BaseModel, load_base_model
from blora.config import BaseModelRef
from blora.errors import AdapterError
from tests.blora.adapters import saved
from tests.scenarios import tiny_base, tiny_model, tiny_tokenizer

COMMIT, OTHER_COMMIT = "0123456789" * 4, "abcdefabcd" * 4
FILE, OTHER_FILE = "sha256:" + "01" * 32, "sha256:" + "ab" * 32
RENAMED = "sha256:" + "ff" * 32


def base_at(revision: str | None, fingerprint: str | None = None) -> BaseModel:
    base = tiny_base()
    return replace(
        base, ref=BaseModelRef(id="tiny", revision=revision, fingerprint=fingerprint or base.ref.fingerprint)
    )


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
    monkeypatch.setattr("blora.base_model.loading.fingerprint", lambda model: RENAMED)  # under other names
    base = load_base_model(str(tmp_path / "base"), device="cpu", dtype="float32")
    assert base.ref.fingerprint == RENAMED
    load_adapter(tmp_path / "adapter", base)
