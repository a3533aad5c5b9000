"""Adapters of a base model with recurrent layers, from rows to answers: alone, batched and in process."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

import blora
from blora.cli import main
from tests.blora.inference.test_unpacked import CONFIGS
from tests.scenarios import random_model, tiny_tokenizer
from tests.server.engines.asking import Asking, loaded, settings
from tests.training.toys import CHOICES, toy_data, write_jsonl

QUESTIONS = ("red 90", "blue 91 and a longer question than the others", "red", "blue 7 or red 8?")
BROUGHT = ("warm", "cold", "w", "neither of the two others")
"""Choices of several tokens and of one."""
KINDS = {
    "linear": ("--head", "linear", "--layers", "none"),
    "pointer": ("--head", "pointer", "--layers", "last:2", "--rank", "2", "--epochs", "1", "--batch-size", "8"),
    "scores": ("--head", "none", "--layers", "last:2", "--rank", "2", "--epochs", "1", "--batch-size", "8"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    random_model(CONFIGS["qwen3_5"]).save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    rows = toy_data(60)
    brought = write_jsonl(folder / "brought.jsonl", rows)
    fixed = write_jsonl(
        folder / "fixed.jsonl", [{"prompt": row["question"], "label": CHOICES[row["label"]]} for row in rows]
    )
    for name, flags in KINDS.items():
        data = fixed if name == "linear" else brought
        arguments = ("train", "--data", data, "--output", folder / name, "--base-model", folder / "tiny")
        assert main([*map(str, arguments), "--device", "cpu", "--dtype", "float32", "--n-samples", "4", *flags]) == 0
    return folder


@pytest.fixture
async def asking(folder: Path) -> AsyncIterator[Asking]:
    async with loaded(settings(folder, *KINDS)) as (engine, state):
        yield Asking(engine, state)


@pytest.mark.parametrize("name", KINDS)
async def test_a_question_has_the_same_outcome_alone_in_a_batch_and_in_process(
    name: str, asking: Asking, folder: Path
) -> None:
    choices = CHOICES if name == "linear" else BROUGHT
    jobs = [await asking.job(question, adapter=name, choices=choices) for question in QUESTIONS]
    jobs.append(await asking.job(QUESTIONS[0], adapter=name, choices=choices[:2]))
    together = await asking.run(jobs)
    for job, probs in zip(jobs, together, strict=True):
        [alone] = await asking.run([job])
        torch.testing.assert_close(probs, alone, rtol=0, atol=1e-4)
    model = blora.load(folder / name, base_model=str(folder / "tiny"), dtype="float32")
    for probs, answer in zip(together, model.predict(QUESTIONS, choices=choices), strict=False):
        found = {one.choice: one.probability for one in answer.probabilities}
        expected = torch.tensor([found[choice] for choice in choices])
        outcome = probs.mean(0).float()
        assert outcome.argmax() == expected.argmax()
        if answer.familiarity is None:  # else some of the probability is that of a guess
            torch.testing.assert_close(outcome, expected, rtol=0, atol=1e-4)
