import copy
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import Tensor

from blora.adapter import adapter_digest, attach, check_output, load_adapter, save_adapter
from blora.base_model import BaseModel
from blora.errors import AdapterError
from blora.posterior.draws import use_draws
from tests.blora.adapters import FORMS, adapter_config, contents, rewrite_json, rewrite_tensors, saved, trained
from tests.scenarios import tiny_base

# The digested files of an adapter without a head, in the order of its digest.
OF_LORA = ("adapter_config.json", "adapter_model.safetensors", "bayesian_config.json", "posterior.safetensors")

# Round trip


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_saved_is_loaded(tmp_path: Path, architecture: str, form: str) -> None:
    base = tiny_base(architecture)
    posterior = saved(tmp_path / "triage", base, **FORMS[form])
    loaded = load_adapter(tmp_path / "triage", base)
    got = loaded.posterior.state_dict()
    assert list(got) == list(posterior.state_dict())
    for name, tensor in posterior.state_dict().items():
        assert torch.equal(got[name], tensor), name
        assert got[name].dtype == tensor.dtype
    assert loaded.config == adapter_config(base, **FORMS[form])
    assert (loaded.name, loaded.path) == ("triage", tmp_path / "triage")
    assert not any(parameter.requires_grad for parameter in loaded.posterior.parameters())


def test_draws_of_a_loaded_adapter_are_those_of_the_saved_one(tmp_path: Path, llama: BaseModel) -> None:
    posterior = saved(tmp_path / "triage", llama, family="flow")
    loaded = load_adapter(tmp_path / "triage", llama).posterior
    posterior.requires_grad_(False)
    first, second = (p.sample(3, torch.Generator().manual_seed(9)) for p in (posterior, loaded))
    for name, factors in first.factors.items():
        assert torch.equal(second.factors[name].A, factors.A)
        assert torch.equal(second.factors[name].B, factors.B)


def test_saving_what_was_loaded_gives_the_same_digest(tmp_path: Path, folder: Path, llama: BaseModel) -> None:
    loaded = load_adapter(folder, llama)
    save_adapter(tmp_path / "again", loaded.posterior, loaded.config, llama)
    assert load_adapter(tmp_path / "again", llama).digest == loaded.digest


def test_an_adapter_is_saved_and_loaded_on_a_base_with_layers_already_in(
    tmp_path: Path, folder: Path, llama: BaseModel
) -> None:
    base = tiny_base("llama")
    expected = load_adapter(folder, base)
    attach(base, expected)
    assert load_adapter(folder, base).digest == expected.digest
    save_adapter(tmp_path / "again", expected.posterior, expected.config, base)
    assert load_adapter(tmp_path / "again", llama).digest == expected.digest


def test_a_name_may_be_given(folder: Path, llama: BaseModel) -> None:
    assert load_adapter(str(folder), llama, name="queue").name == "queue"


def test_a_moved_adapter_is_the_same_adapter(tmp_path: Path, folder: Path, llama: BaseModel) -> None:
    digest = load_adapter(folder, llama).digest
    moved = folder.rename(tmp_path / "moved")
    assert load_adapter(moved, llama).digest == digest


def test_attaching_leaves_the_model_as_it_is_without_draws(folder: Path) -> None:
    base = tiny_base("llama")
    before = logits(base.model)
    attach(base, load_adapter(folder, base))
    assert torch.equal(logits(base.model), before)


# Digest


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum here")
def test_the_digest_is_that_of_sha256sum(folder: Path, llama: BaseModel) -> None:
    command = f"sha256sum {' '.join(OF_LORA)} | sha256sum"
    out = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert load_adapter(folder, llama).digest == f"sha256:{out.split()[0]}"


def nudge(tensors: dict[str, Tensor]) -> None:
    first = sorted(tensors)[0]
    tensors[first] = tensors[first] + 1e-6


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("adapter_config.json", rewrite_json(lambda raw: raw.update(inference_mode=False))),
        ("adapter_model.safetensors", rewrite_tensors(nudge)),
        ("bayesian_config.json", rewrite_json(lambda raw: raw["sampling"].update(seed=6))),
        ("posterior.safetensors", rewrite_tensors(nudge)),
    ],
)
def test_the_digest_changes_with_each_file(
    folder: Path, llama: BaseModel, name: str, change: Callable[[Path], Any]
) -> None:
    before = load_adapter(folder, llama).digest
    change(folder / name)
    assert load_adapter(folder, llama).digest != before


def test_the_model_card_is_no_part_of_the_digest(folder: Path, llama: BaseModel) -> None:
    before = load_adapter(folder, llama).digest
    (folder / "README.md").write_text("# Ours\n")
    assert load_adapter(folder, llama).digest == before


# What PEFT makes of it


def logits(model: torch.nn.Module) -> Tensor:
    ids = torch.randint(2, 100, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids).logits


# PEFT asks transformers for an attribute that it will lose.
by_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@by_peft
@pytest.mark.parametrize("layers", ["all", "last:1", "0"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen2"])
def test_peft_loads_the_posterior_mean(tmp_path: Path, architecture: str, form: str, layers: str) -> None:
    base = tiny_base(architecture)
    untouched = copy.deepcopy(base.model)
    plain = logits(untouched)
    saved(tmp_path / "triage", base, layers, **FORMS[form])
    theirs = logits(PeftModel.from_pretrained(untouched, str(tmp_path / "triage")).eval())
    adapter = load_adapter(tmp_path / "triage", base)
    attach(base, adapter)
    with use_draws(adapter.posterior.mean()):
        ours = logits(base.model)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    assert (theirs - plain).abs().max() > 100 * 1e-5


@by_peft
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_peft_adapts_our_modules_and_no_others(tmp_path: Path, architecture: str) -> None:
    base = tiny_base(architecture)
    saved(tmp_path / "triage", base, "last:1")
    model = PeftModel.from_pretrained(copy.deepcopy(base.model), str(tmp_path / "triage"))
    adapted = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A")
        for name, _ in model.named_modules()
        if name.endswith(".lora_A")
    }
    assert adapted == set(adapter_config(base, "last:1").modules)


def test_pefts_config_names_the_base_model(folder: Path, llama: BaseModel) -> None:
    config = LoraConfig.from_pretrained(str(folder))
    assert config.base_model_name_or_path == llama.ref.id
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 7.0, 0.0)


# Saving


def test_saving_writes_five_readable_files(folder: Path) -> None:
    assert sorted(contents(folder)) == sorted([*OF_LORA, "README.md"])
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}


def test_saving_leaves_nothing_beside_the_folder(tmp_path: Path, llama: BaseModel) -> None:
    saved(tmp_path / "deep" / "er" / "triage", llama)
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["triage"]


def test_an_adapter_may_be_replaced(folder: Path, llama: BaseModel) -> None:
    before = load_adapter(folder, llama).digest
    saved(folder, llama, method="lora")
    loaded = load_adapter(folder, llama)
    assert loaded.digest != before
    assert loaded.config.posterior.method == "lora"
    assert [path.name for path in folder.parent.iterdir()] == ["triage"]


def test_an_empty_folder_may_be_filled(tmp_path: Path, llama: BaseModel) -> None:
    (tmp_path / "triage").mkdir()
    saved(tmp_path / "triage", llama)
    assert load_adapter(tmp_path / "triage", llama).name == "triage"


def test_a_foreign_folder_is_refused_and_untouched(tmp_path: Path, llama: BaseModel) -> None:
    foreign = tmp_path / "thesis"
    (foreign / "chapters").mkdir(parents=True)
    (foreign / "chapters" / "one.txt").write_text("irreplaceable")
    before = contents(tmp_path)
    with pytest.raises(AdapterError, match="got output folder .*thesis, which holds other files; expected a new or an"):
        saved(foreign, llama)
    assert contents(tmp_path) == before


def test_a_file_in_the_place_of_the_folder_is_refused_and_untouched(tmp_path: Path, llama: BaseModel) -> None:
    (tmp_path / "triage").write_text("irreplaceable")
    with pytest.raises(AdapterError, match="got output .*triage, which is a file"):
        saved(tmp_path / "triage", llama)
    assert contents(tmp_path) == {"triage": b"irreplaceable"}


def keep_own_things(folder: Path) -> dict[str, bytes]:
    """Put what an owner may keep into an adapter's folder: files, nested folders, and links."""
    (folder / ".git" / "objects").mkdir(parents=True)
    (folder / ".git" / "objects" / "ab12").write_bytes(b"history")
    (folder / "LICENSE").write_text("MIT")
    (folder / "NOTES.md").write_text("irreplaceable")
    (folder / "latest").symlink_to("NOTES.md")
    (folder / "elsewhere").symlink_to("/nowhere/at/all")
    (folder / "empty").mkdir()
    return {name: data for name, data in contents(folder).items() if name not in (*OF_LORA, "README.md")}


def test_what_else_is_in_the_folder_survives_and_a_stale_calibration_does_not(
    folder: Path, llama: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    own = keep_own_things(folder)
    (folder / "calibration.json").write_text("{}")
    (folder / "README.md").write_text("edited")
    inode = folder.stat().st_ino
    saved(folder, llama, method="lora")
    after = contents(folder)
    assert {name: after[name] for name in own} == own
    assert sorted(after) == sorted([*own, *OF_LORA, "README.md", "README.md.before"])
    assert (folder / "latest").readlink() == Path("NOTES.md")
    assert (folder / "elsewhere").readlink() == Path("/nowhere/at/all")
    assert (folder / "empty").is_dir()
    assert after["README.md.before"] == b"edited" != after["README.md"]
    assert folder.stat().st_ino == inode  # a shell, a mount or a watch on it still sees it
    assert [path.name for path in folder.parent.iterdir()] == ["triage"]
    assert load_adapter(folder, llama).config.posterior.method == "lora"
    saved(folder, llama, method="lora")
    removed, kept = [record.getMessage() for record in caplog.records]
    assert removed.startswith(f"removed {folder / 'calibration.json'} of the earlier adapter")
    assert kept == f"the card in {folder} was edited: it is now README.md.before, beside a new one"


def test_of_a_card_that_an_earlier_version_made_nobody_knows_whether_it_was_edited(
    folder: Path, llama: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    config, card = folder / "bayesian_config.json", (folder / "README.md").read_text()
    config.write_text(json.dumps(json.loads(config.read_text()) | {"format_version": 1}))
    saved(folder, llama, method="lora")
    assert (folder / "README.md.before").read_text() == card
    [kept] = [record.getMessage() for record in caplog.records]
    assert kept == f"the card in {folder} may have been edited: it is now README.md.before, beside a new one"


def test_a_link_to_an_adapter_stays_a_link(tmp_path: Path, folder: Path, llama: BaseModel) -> None:
    link = tmp_path / "served"
    link.symlink_to(folder)
    saved(link, llama, method="lora")
    assert link.is_symlink()
    assert load_adapter(folder, llama).config.posterior.method == "lora"


@pytest.mark.parametrize("n_done", range(11))
def test_a_save_that_is_interrupted_leaves_no_mix_that_loads_and_may_be_repeated(
    folder: Path, llama: BaseModel, n_done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = keep_own_things(folder)
    before = load_adapter(folder, llama).digest
    left = n_done

    def interrupted(original: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return original(*arguments, **options)

        return step

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink", "rmdir"):
            patch.setattr(Path, name, interrupted(getattr(Path, name)))
        with pytest.raises(KeyboardInterrupt):
            saved(folder, llama, method="lora")
    if 0 < n_done < 9:  # from when the old config is gone until the new one is there
        with pytest.raises(AdapterError, match="without bayesian_config.json"):
            load_adapter(folder, llama)
    else:
        assert (load_adapter(folder, llama).digest == before) == (n_done == 0)
    saved(folder, llama, method="lora")
    assert load_adapter(folder, llama).config.posterior.method == "lora"
    hidden = {name for name in contents(folder) if name.startswith(".partial-triage-")}  # what was interrupted
    assert contents(folder).keys() - hidden == {*own, *OF_LORA, "README.md"}


def test_an_adapter_is_written_inside_a_folder_that_exists(
    tmp_path: Path, llama: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, move = tmp_path / "mount", Path.replace
    folder.mkdir()
    (folder / ".partial-mount-abandoned").mkdir()
    os.utime(folder / ".partial-mount-abandoned", (0, 0))

    def replace(source: Path, target: Path) -> Path:
        assert {folder} <= {*source.parents} & {*target.parents}, "the folder is a file system of its own"
        return move(source, target)

    monkeypatch.setattr(Path, "replace", replace)
    for method in ("bayesian", "lora"):
        saved(folder, llama, method=method)
        assert load_adapter(folder, llama).config.posterior.method == method
    assert not [*folder.glob(".*")]


def test_a_folder_that_is_closed_to_the_user_is_refused_before_training(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path not in (tmp_path, folder))
    for output, closed in ((tmp_path / "a" / "b", tmp_path), (folder, folder)):
        with pytest.raises(AdapterError, match=f"got output {output}, expected a folder in which this user may write"):
            check_output(output)
        with pytest.raises(AdapterError, match=f"which {closed} is not: name another, or change its permissions"):
            check_output(output)


def test_two_saves_at_once_leave_the_files_of_one(tmp_path: Path, llama: BaseModel) -> None:
    configs = [adapter_config(llama, method="lora", rank=rank) for rank in (2, 3)]
    alone = set()
    for config in configs:
        save_adapter(tmp_path / "alone", trained(config), config, llama)
        alone.add(adapter_digest(tmp_path / "alone"))
    with ThreadPoolExecutor(2) as threads:
        for _ in range(20):
            saves = [threads.submit(save_adapter, tmp_path / "both", trained(one), one, llama) for one in configs]
            for save in saves:
                save.result()
            assert adapter_digest(tmp_path / "both") in alone


def test_an_adapter_that_is_replaced_while_it_is_read_is_refused(
    tmp_path: Path, folder: Path, llama: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "other", llama, method="lora")

    def read_late(config_file: Path, *rest: Any) -> None:
        for name in OF_LORA:
            shutil.copy(tmp_path / "other" / name, folder / name)

    monkeypatch.setattr("blora.adapter.folder.check_peft_config", read_late)
    monkeypatch.setattr("blora.adapter.folder.check_mean", lambda *_: None)
    with pytest.raises(AdapterError, match="whose files were replaced while they were read; load it again"):
        load_adapter(folder, llama)


def test_a_folder_in_the_place_of_a_file_is_refused(folder: Path, llama: BaseModel) -> None:
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()
    with pytest.raises(AdapterError, match=r"got folders README.md in .*triage, where the adapter's files go; move"):
        saved(folder, llama)


def test_paths_may_be_text(tmp_path: Path, llama: BaseModel) -> None:
    config = adapter_config(llama)
    check_output(str(tmp_path / "triage"))
    save_adapter(str(tmp_path / "triage"), trained(config), config, llama)
    assert load_adapter(tmp_path / "triage", llama).name == "triage"


@pytest.mark.parametrize("existed", [True, False])
def test_a_save_that_fails_leaves_everything_as_it_was(
    tmp_path: Path, llama: BaseModel, existed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if existed:
        saved(tmp_path / "triage", llama)
    before = contents(tmp_path)

    def full(*_: object) -> str:
        raise OSError("no space left")

    monkeypatch.setattr("blora.adapter.folder.model_card", full)
    with pytest.raises(OSError, match="no space left"):
        saved(tmp_path / "triage", llama, method="lora")
    assert contents(tmp_path) == before
