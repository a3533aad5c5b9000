"""Linear heads that read a companion: trained, saved, asked, and bound to both models."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import blora
from blora.adapter import read_config
from blora.adapter.opening import open_base
from blora.cli import main
from blora.errors import AdapterError, BaseModelError
from blora.vllm.states import check_readable
from tests.blora.adapters import rewrite_json
from tests.blora.base_model.test_checkpoint import saved_model
from tests.blora.inference.test_encoders import CONFIGS
from tests.heads import prefer_loras
from tests.scenarios import random_model
from tests.training.head.test_fit import FAST, arguments, fixed
from tests.training.toys import toy_data, write_jsonl


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("encoder"), random_model(CONFIGS["bert"]))


@pytest.fixture(scope="module")
def both(base_folder: Path, encoder_folder: Path) -> str:
    return f"{base_folder}+{encoder_folder}"


@pytest.fixture(scope="module")
def adapter(both: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    data = write_jsonl(folder / "rows.jsonl", fixed(toy_data(80)))
    assert main(arguments(Path(both), data, folder / "toy")) == 0
    return folder / "toy"


def copy_of(adapter: Path, folder: Path) -> Path:
    shutil.copytree(adapter, folder)
    return folder


def test_a_head_that_reads_a_companion_answers_alone_as_among_others(both: str, adapter: Path) -> None:
    config = read_config(adapter)
    assert config.head is not None
    assert config.familiarity is not None
    assert config.head.companion is not None
    assert config.head.companion.depths == (2, 3)
    assert config.head.n_states == config.familiarity.n_states + 2 * 32
    rows = fixed(toy_data(40, seed=9))
    asked = [row["prompt"] for row in rows] + ["a text of quite another length, to be padded for"]
    model = blora.load(adapter, base_model=both, device="cpu", dtype="float32")
    together, alone = model.predict(asked), [model.predict(text) for text in asked]
    for one, other in zip(together, alone, strict=True):
        found, expected = (torch.tensor([p.probability for p in each.probabilities]) for each in (one, other))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert one.familiarity is not None
    right = [one.top_choice == row["label"] for one, row in zip(together[:-1], rows, strict=True)]
    assert sum(right) > 0.8 * len(rows)


def test_every_command_takes_both_models_joined_by_a_plus(
    both: str, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row | {"prompt": f"{row['prompt']} {i}"} for i, row in enumerate(fixed(toy_data(200, seed=5)))]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    given = (str(adapter), "--data", str(data), "--base-model", both, "--device", "cpu", "--dtype", "float32")
    assert main(["evaluate", *given]) == 0
    assert main(["calibrate", *given, "--target-risk", "0.3", "--delta", "0.2"]) == 0
    assert main(["doctor", str(adapter), "--base-model", both, "--device", "cpu", "--dtype", "float32"]) == 0
    said = capsys.readouterr().out
    name = Path(both.rpartition("+")[2]).name
    assert f"with the companion {name}" in said
    assert f"and {name}, 5 draws" in said
    card = (adapter / "README.md").read_text()
    assert f"| companion | {name} (revision sha256:" in card


def test_a_lora_below_it_changes_the_base_model_alone(
    both: str, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefer_loras(monkeypatch)
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(toy_data(60)))
    assert main(arguments(Path(both), data, tmp_path / "toy", "--layers", "0", *FAST)) == 0
    config = read_config(tmp_path / "toy")
    assert config.modules
    assert config.head is not None
    assert config.head.companion is not None
    model = blora.load(tmp_path / "toy", base_model=both, device="cpu", dtype="float32")
    assert model.predict(fixed(toy_data(1))[0]["prompt"]).top_choice


@pytest.mark.parametrize(
    ("head", "choices"), [("none", False), ("pointer", False), ("auto", True)], ids=["no head", "pointer", "choices"]
)
def test_other_heads_beside_a_companion_are_refused_before_any_training(
    head: str, choices: bool, both: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = toy_data(60)
    data = write_jsonl(tmp_path / "rows.jsonl", rows if choices else fixed(rows))
    assert main(arguments(Path(both), data, tmp_path / "toy", "--head", head)) == 1
    said = capsys.readouterr().err
    assert ", which linear heads alone read, expected a linear head or no companion" in said
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_an_adapter_is_bound_to_its_companion(
    adapter: Path, base_folder: Path, encoder_folder: Path, tmp_path: Path
) -> None:
    other = saved_model(tmp_path / "other", random_model(CONFIGS["bert"], seed=1))
    with pytest.raises(AdapterError, match=r"alone, expected the companion \w+ beside it.*--base-model MODEL\+"):
        blora.load(adapter, base_model=str(base_folder), device="cpu", dtype="float32")
    with pytest.raises(AdapterError, match=r"got companion other .*, expected \w+ .*load that companion"):
        blora.load(adapter, base_model=f"{base_folder}+{other}", device="cpu", dtype="float32")
    with pytest.raises(AdapterError, match=r"which was loaded from a folder .*--base-model PATH\+PATH"):
        blora.load(adapter, device="cpu", dtype="float32")


def test_the_base_model_of_an_adapter_that_names_both_on_the_hub_is_both(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789" * 4
    folder = copy_of(adapter, tmp_path / "toy")

    def on_the_hub(name: str) -> None:
        def change(config: dict[str, Any]) -> None:
            config["base_model"] |= {"id": "owner/model", "revision": None}
            config["head"]["companion"]["model"] |= {"id": name, "revision": commit}

        rewrite_json(change)(folder / "bayesian_config.json")

    asked: list[str] = []

    def open_no_model(spec: str, **more: object) -> None:
        asked.append(spec)
        raise BaseModelError("not here")

    monkeypatch.setattr("blora.adapter.opening.load_base_model", open_no_model)
    monkeypatch.setattr("blora.adapter.opening.check_packing", lambda base: base)
    on_the_hub("owner/encoder")
    with pytest.raises(BaseModelError, match="not here"):
        blora.load(folder, device="cpu", dtype="float32")
    assert asked == ["owner/model"]
    on_the_hub("encoder")
    with pytest.raises(AdapterError, match=r"of companion 'encoder', .*--base-model owner/model\+PATH"):
        blora.load(folder, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("depths", "n_states"),
    [((2, 9), 64), ((3,), 64), ((1, 2, 3), 64), ((2, 3), 63)],
    ids=["layers", "one", "three", "63"],
)
def test_states_that_the_companion_does_not_have_are_refused(
    depths: tuple[int, ...], n_states: int, both: str, adapter: Path, tmp_path: Path
) -> None:
    folder = copy_of(adapter, tmp_path / "toy")

    def change(config: dict[str, Any]) -> None:
        config["head"]["companion"] |= {"depths": depths, "n_states": n_states}

    rewrite_json(change)(folder / "bayesian_config.json")
    with pytest.raises(AdapterError, match=r"got a head that reads 6[34] states of the companion at layers"):
        blora.load(folder, base_model=both, device="cpu", dtype="float32")


@pytest.mark.parametrize("spec", ["embedded+", "+embedded"])
def test_half_a_pair_of_models_is_refused(spec: str) -> None:
    with pytest.raises(
        BaseModelError, match=r"got base model '.*', expected one before the \+ and an encoder after it"
    ):
        open_base(spec, device="cpu", dtype="float32")


def test_a_plus_in_a_path_divides_nothing(base_folder: Path, encoder_folder: Path, tmp_path: Path) -> None:
    names = tmp_path / "base+model", tmp_path / "an+encoder"
    (tmp_path / "base").mkdir()  # what stands before the first plus is another folder
    for name, folder in zip(names, (base_folder, encoder_folder), strict=True):
        name.symlink_to(folder)
    alone = open_base(str(names[0]), device="cpu", dtype="float32")
    assert alone.companion is None
    both = open_base("+".join(map(str, names)), device="cpu", dtype="float32")
    assert both.ref == alone.ref
    assert both.companion is not None
    assert both.companion.is_encoder


def test_a_training_beside_another_companion_is_not_resumed(
    base_folder: Path, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    prefer_loras(monkeypatch)
    data, own = write_jsonl(tmp_path / "rows.jsonl", fixed(toy_data(60))), copy_of(encoder_folder, tmp_path / "own")
    work = ("--work-dir", str(tmp_path / "work"))
    given = arguments(Path(f"{base_folder}+{own}"), data, tmp_path / "toy", "--layers", "0", *work, *FAST)

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("blora.training.run.train_below", interrupted)
        assert main(given) == 130
    saved_model(own, random_model(CONFIGS["bert"], seed=1))
    assert main([*given, "--resume"]) == 1
    assert "of a run with other settings" in capsys.readouterr().err


def test_an_adapter_without_it_is_served_beside_one_with_it(both: str, base_folder: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(toy_data(60)))
    assert main(arguments(base_folder, data, tmp_path / "toy")) == 0
    asked = fixed(toy_data(5, seed=3))
    own, beside = (
        blora.load(tmp_path / "toy", base_model=spec, device="cpu", dtype="float32")
        for spec in (str(base_folder), both)
    )
    for row in asked:
        assert own.predict(row["prompt"]).probabilities == beside.predict(row["prompt"]).probabilities


def test_an_adapter_that_reads_a_companion_is_refused_through_vllm(both: str, adapter: Path) -> None:
    head = read_config(adapter).head
    assert head is not None
    with pytest.raises(AdapterError, match=r"whose head reads \w+ beside .*, expected one of a language model alone"):
        check_readable("toy", replace(head, depths=(2,)), open_base(both, device="cpu", dtype="float32"))
