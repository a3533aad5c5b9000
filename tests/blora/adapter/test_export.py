"""Exported draws against the draws that a server answers from."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel

from blora.adapter import load_adapter
from blora.adapter.export import export_draws
from blora.adapter.lora import LORA_CONFIG_FILE, WEIGHTS_FILE
from blora.base_model import BaseModel
from blora.errors import AdapterError
from blora.posterior.bank import SampleBank
from blora.posterior.inject import eject, inject
from tests.blora.adapters import FORMS, saved
from tests.scenarios import choices_alone, merged, random_rows, tiny_base

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def as_peft_runs_it(base: BaseModel, folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = PeftModel.from_pretrained(copy.deepcopy(base.model), str(folder)).eval()
    return model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layers", ["all", "last:1"])
def test_peft_computes_with_a_draw_what_the_server_does(form: str, layers: str, tmp_path: Path) -> None:
    base = tiny_base()
    saved(tmp_path / "adapter", base, layers, **FORMS[form])
    adapter = load_adapter(tmp_path / "adapter", base)
    draws = SampleBank.draw(adapter.posterior, adapter.digest, 3, adapter.config.sampling.seed).draws
    folders = export_draws(adapter, base, tmp_path / "draws", 3)
    assert [folder.name for folder in folders] == ["draw-000", "draw-001", "draw-002"]
    assert {file.stat().st_mode & 0o777 for folder in folders for file in folder.iterdir()} == {0o644}
    [row] = random_rows(1)
    for s, folder in enumerate(folders):
        expected = choices_alone(merged(base.model, draws.part(s, s + 1), 0), row)
        torch.testing.assert_close(choices_alone(as_peft_runs_it(base, folder), row), expected, rtol=0, atol=1e-4)


def test_fewer_draws_are_the_first_of_more_whatever_is_injected(tmp_path: Path) -> None:
    base = tiny_base()
    saved(tmp_path / "adapter", base)
    adapter = load_adapter(tmp_path / "adapter", base)
    few = export_draws(adapter, base, tmp_path / "few", 2)
    inject(base.model, adapter.config.modules)
    more = export_draws(adapter, base, tmp_path / "more", 4)
    eject(base.model)
    for one, same in zip(few, more, strict=False):
        assert (one / LORA_CONFIG_FILE).read_text() == (same / LORA_CONFIG_FILE).read_text()
        expected = load_file(same / WEIGHTS_FILE)
        for name, tensor in load_file(one / WEIGHTS_FILE).items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)
    third, fourth = (load_file(folder / WEIGHTS_FILE) for folder in more[2:])
    assert all((third[name] - fourth[name]).abs().max() > 1e-3 for name in third)


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    base = tiny_base()
    saved(tmp_path / "adapter", base)
    adapter = load_adapter(tmp_path / "adapter", base)
    (tmp_path / "draws").mkdir()
    (tmp_path / "draws" / "NOTES.md").write_text("irreplaceable")
    with pytest.raises(AdapterError, match="which exists, expected a new folder"):
        export_draws(adapter, base, tmp_path / "draws", 2)
    assert (tmp_path / "draws" / "NOTES.md").read_text() == "irreplaceable"
    shutil.rmtree(tmp_path / "draws")
    export_draws(adapter, base, str(tmp_path / "draws"), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "draws"]
