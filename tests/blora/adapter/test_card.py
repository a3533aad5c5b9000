import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from blora.adapter.card import model_card, validation_figures
from blora.config import (
    AdapterConfig,
    BaseModelRef,
    FamiliarityConfig,
    HeadConfig,
    PosteriorConfig,
    PromptConfig,
    SamplingConfig,
)

CONFIG = AdapterConfig(
    base_model=BaseModelRef(id="owner/model", revision="abc123", fingerprint="sha256:00", reading="sha256:01"),
    target_modules=("q_proj", "v_proj"),
    modules={"layers.0.q_proj": (4, 4), "layers.0.v_proj": (2, 4), "layers.1.q_proj": (4, 4)},
    posterior=PosteriorConfig(rank=4, alpha=8.0, prior_std=0.3, lambda_max=0.25, lambda_init=0.1),
    prompt=PromptConfig(template="Q: {prompt}\nA:", choices=("billing", "sales"), normalization="choice"),
    sampling=SamplingConfig(n_samples=12, seed=7),
    policy={"min_confidence": 0.8, "max_mutual_information": 0.05},
    training={
        "command": "blora train --data t.jsonl",
        "validation": {"n_examples": 40, "nll": 0.123456, "source": "v"},
    },
)


def facts(config: AdapterConfig = CONFIG, name: str = "triage") -> dict[str, str]:
    """The rows of the card's tables."""
    rows = re.findall(r"^\| (.*?) \| (.*) \|$", model_card(config, name), re.MULTILINE)
    return {key: value for key, value in rows if key.strip()}


def test_the_front_matter_is_the_hubs() -> None:
    front = yaml.safe_load(model_card(CONFIG, "triage").split("---\n")[1])
    assert front["base_model"] == "owner/model"
    assert front["library_name"] == "peft"
    assert front["tags"] == ["blora", "lora", "bayesian-lora", "uncertainty", "abstention"]


@pytest.mark.parametrize("modules", [CONFIG.modules, {}])
def test_the_card_of_a_head_is_not_that_of_a_bayesian_lora_even_above_a_lora(modules: dict[str, Any]) -> None:
    prompt = PromptConfig(choices=("billing", "sales"), readout="linear")
    form, head = PosteriorConfig(method="lora", rank=4, alpha=8.0), HeadConfig(depths=(1,), n_states=4, n_directions=4)
    config = replace(CONFIG, head=head, prompt=prompt, posterior=form, modules=modules)
    card = model_card(config, "triage")
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["tags"] == ["blora", *(["lora"] if modules else []), "decision-head", "uncertainty", "abstention"]
    assert "library_name" not in front
    assert "A Bayesian-LoRA adapter" not in card
    assert "## With plain PEFT" not in card
    assert ("A decision head above a LoRA" in card) == bool(modules)
    assert ("linear decision head above a LoRA on the states" in facts(config)["method"]) == bool(modules)


def test_training_rows_that_recalibrate_are_told_by_their_number() -> None:
    training = CONFIG.training | {"validation": CONFIG.training["validation"] | {"n_recalibrating": 340}}
    said = "validation rows, which the recalibration was fitted on with 300 training rows out of fold, 40 of them"
    assert said in model_card(replace(CONFIG, training=training), "triage")


def test_the_hubs_metrics_are_those_of_the_validation_rows_and_say_so() -> None:
    [entry] = yaml.safe_load(model_card(CONFIG, "triage").split("---\n")[1])["model-index"]
    [result] = entry["results"]
    assert entry["name"] == "triage"
    assert result["task"] == {"type": "text-classification"}
    assert "validation rows, which the recalibration was fitted on, 40 of them" in result["dataset"]["name"]
    assert result["metrics"] == [{"type": "nll", "name": "NLL, validation rows", "value": 0.1235, "verified": False}]
    assert ModelCard(model_card(CONFIG, "triage")).data.eval_results[0].metric_value == 0.1235


@pytest.mark.parametrize("training", [{}, {"validation": {"n_examples": 3}}])
def test_without_metrics_the_hub_gets_none(training: dict[str, Any]) -> None:
    front = yaml.safe_load(model_card(replace(CONFIG, training=training), "triage").split("---\n")[1])
    assert "model-index" not in front


@pytest.mark.parametrize(
    ("base_model", "hub_id", "loaded"),
    [
        ("owner/model", "owner/model", "owner/model"),
        ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("my-folder", None, "the folder of my-folder"),  # what is no hub id, the hub would take for one
    ],
)
def test_the_base_model_is_named_as_the_hub_and_peft_find_it(base_model: str, hub_id: str | None, loaded: str) -> None:
    card = model_card(replace(CONFIG, base_model=replace(CONFIG.base_model, id=base_model)), "triage")
    assert yaml.safe_load(card.split("---\n")[1]).get("base_model") == hub_id
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert f'AutoModelForCausalLM.from_pretrained("{loaded}")' in code


def test_the_title_is_the_adapters_name() -> None:
    assert "\n# triage\n" in model_card(CONFIG, "triage")


def test_the_facts_are_those_of_the_config() -> None:
    found = facts()
    assert found["base model"] == "owner/model (revision abc123)"
    assert found["method"] == "bayesian, diagonal family"
    assert found["rank, alpha"] == "4, 8"
    assert found["target modules"] == "q_proj, v_proj (3 modules)"
    assert found["scoring"] == "text, normalized by choice"
    assert found["recalibration"] == "temperature 1, length power 1, lapse rate 0"
    assert found["prompt template"] == r"`'Q: {prompt}\nA:'`"
    assert found["choices"] == "billing, sales"
    assert found["posterior draws"] == "12, seed 7"
    assert found["policy of the adapter"] == (
        "min_confidence 0.8, max_mutual_information 0.05; thresholds in calibration.json take precedence"
    )
    assert found["prior_std, lambda_max"] == "0.3, 0.25"
    assert found["inducing weights"] == "9 x 9 a factor"


def test_validation_and_command_are_shown() -> None:
    found = facts()
    assert (found["n_examples"], found["nll"], found["source"]) == ("40", "0.1235", "v")
    assert model_card(CONFIG, "triage").endswith("## Made with\n\n```\nblora train --data t.jsonl\n```\n")


TUNING = {
    "source": "other.jsonl",
    "digest": "sha256:11",
    "n_examples": 20,
    "tolerance": 0.005,
    "scale": 2.0,
    "trials": [
        {"scale": scale, "temperature": 1.5, "length_power": 1.0, "lapse": 0.0, "accuracy": 0.5, "nll": nll}
        for scale, nll in ((1.0, 0.7), (2.0, 0.6), (4.0, 0.9))
    ],
}


@pytest.mark.parametrize("training", [CONFIG.training | {"tuning": TUNING}, {"tuning": TUNING}])
def test_after_tuning_the_figures_are_those_of_the_chosen_trial_and_its_rows(training: dict[str, Any]) -> None:
    config = replace(CONFIG, training=training)
    card, found = model_card(config, "triage"), facts(config)
    assert (found["source"], found["digest"], found["n_examples"]) == ("other.jsonl", "sha256:11", "20")
    assert (found["scale"], found["nll"], found["accuracy"]) == ("2.0000", "0.6000", "0.5000")
    assert "## Validation\n\nAfter tuning, on the rows that chose the scale and the recalibration:\n\n| | |" in card
    assert "0.1235" not in card  # the NLL before tuning
    assert ModelCard(card).data.eval_results[0].metric_value == 0.5  # the accuracy


PARTS = {
    part: {"accuracy": 0.5, "nll": nll, "ece": 0.1, "aurc": 0.2}
    for part, nll in (("regression on frozen states", 0.4), ("head, 64 draws", 0.5))
}


def test_the_parts_of_a_tuned_adapter_are_those_before_tuning() -> None:
    trained = model_card(replace(CONFIG, training={"parts": PARTS}), "triage")
    assert "\nOn the validation rows, each recalibrated on them:\n" in trained
    assert (
        "**The regression on frozen states has the lower NLL on these rows: this adapter does not beat it.**" in trained
    )
    tuned = model_card(replace(CONFIG, training={"parts": PARTS, "tuning": TUNING}), "triage")
    assert "\nBefore tuning, on the validation rows of training, each recalibrated on them:\n" in tuned
    assert (
        "**The regression on frozen states had the lower NLL on these rows: this adapter did not beat it before "
        "tuning.**" in tuned
    )


@pytest.mark.parametrize(
    "training",
    [
        {"validation": "good"},
        {"tuning": "done"},
        {"tuning": {"trials": 3, "scale": 2.0}},
        {"tuning": TUNING | {"trials": ["wide"]}},
        {"tuning": TUNING | {"scale": 3.0}},
        {"tuning": {name: value for name, value in TUNING.items() if name != "source"}},
    ],
)
def test_a_record_of_another_form_has_no_figures(training: dict[str, Any]) -> None:
    assert validation_figures(training) == {}


@pytest.mark.parametrize("parts", ["good", 3, ["head"], {"head": "good"}, {"head": {"nll": 0.5}}, {"head": None}, {}])
def test_parts_of_another_form_are_not_shown(parts: Any) -> None:
    assert "What each part reaches" not in model_card(replace(CONFIG, training={"parts": parts}), "triage")


OF_TRAINING = "by the distance of the prompt's states, among those of the training rows"
OF_OTHERS = "by the distance of the prompt's states, among those of 60 rows of new.jsonl"


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (None, OF_TRAINING),
        ({"source": "new.jsonl", "n_examples": 60}, OF_OTHERS),
        (
            {"source": "new.jsonl", "n_examples": 60, "n_reference": 7},
            f"{OF_OTHERS}; p-values among 7 others until it is calibrated",
        ),
        ("good", OF_TRAINING),
        ({"source": "new.jsonl", "n_reference": 7}, OF_TRAINING),
    ],
)
def test_the_rows_that_are_familiar_are_those_of_the_last_fit(record: Any, said: str) -> None:
    familiarity = FamiliarityConfig(kind="gaussian", depths=(1,), n_states=4, n_low=4, n_directions=2)
    prompt = PromptConfig(choices=("billing", "sales"), readout="linear")
    form, head = PosteriorConfig(method="lora"), HeadConfig(depths=(1,), n_states=4, n_directions=4)
    training = CONFIG.training | ({} if record is None else {"familiarity": record})
    config = replace(CONFIG, head=head, prompt=prompt, posterior=form, familiarity=familiarity, training=training)
    assert facts(config)["familiarity"] == said


def test_plain_lora_has_no_prior() -> None:
    found = facts(replace(CONFIG, posterior=PosteriorConfig(method="lora")))
    assert found["method"] == "lora"
    assert "prior_std, lambda_max" not in found
    assert "inducing weights" not in found


@pytest.mark.parametrize(
    ("changes", "fact", "value"),
    [
        ({"policy": None}, "policy of the adapter", "none; thresholds may come from calibration.json"),
        ({"prompt": PromptConfig()}, "choices", "with each question"),
        ({"prompt": PromptConfig(scoring="label")}, "scoring", "label"),
        (
            {"base_model": BaseModelRef(id="tiny", revision=None, fingerprint="sha256:00", reading="sha256:01")},
            "base model",
            "tiny (revision unknown)",
        ),
    ],
)
def test_what_is_absent_is_said(changes: dict[str, Any], fact: str, value: str) -> None:
    assert facts(replace(CONFIG, **changes))[fact] == value


def test_the_card_of_the_demo_is_the_one_that_would_be_written() -> None:
    folder = Path(__file__).parents[3] / "examples/triage/adapter"
    config = AdapterConfig.from_json((folder / "bayesian_config.json").read_text())
    assert (folder / "README.md").read_text() == model_card(config, folder.name)


def test_without_a_record_of_training_there_are_no_such_sections() -> None:
    card = model_card(replace(CONFIG, training={}), "triage")
    assert "## Validation" not in card
    assert "## Made with" not in card


def test_a_bar_in_a_text_ends_no_cell() -> None:
    prompt = PromptConfig(template="a|b {prompt}", choices=("yes|no", "maybe"))
    found = facts(replace(CONFIG, prompt=prompt))
    assert found["choices"] == r"yes\|no, maybe"
    assert found["prompt template"] == r"`'a\|b {prompt}'`"


def test_a_line_break_in_a_choice_ends_no_row() -> None:
    prompt = PromptConfig(choices=("yes", "no\nway"))
    card = model_card(replace(CONFIG, prompt=prompt), "triage")
    [row] = [line for line in card.splitlines() if line.startswith("| choices ")]
    assert row.endswith(" |")
