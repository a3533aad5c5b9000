"""The table of model types that can be the base model, and some of its entries made anew."""

import json

import pytest

from benchmarks.families import RESULT, VERDICTS, verdict

FOUND = {found["model_type"]: found["verdict"] for found in json.loads(RESULT.read_text())["families"]}


def test_every_verdict_occurs_and_is_explained() -> None:
    assert set(FOUND.values()) == set(VERDICTS)
    assert len(FOUND) > 100


@pytest.mark.parametrize(
    "model_type",
    [
        *("llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3", "gemma3_text", "phi3"),
        *("gpt_oss", "gpt2", "opt", "olmo2", "granite", "cohere2", "smollm3", "deepseek_v3", "gemma3n_text"),
        *(
            "mamba",
            "mamba2",
            "jamba",
            "bloom",
            "qwen3_next",
            "qwen3_5",
            "lfm2",
            "granitemoehybrid",
            "inkling_text",
            "xlnet",
        ),
        *("bert", "roberta", "distilbert", "deberta-v2", "modernbert", "mpnet", "xlm-roberta", "fnet"),
    ],
)
def test_what_becomes_of_a_model_type_is_what_the_table_says(model_type: str) -> None:
    assert verdict(model_type)["verdict"] == FOUND[model_type]
