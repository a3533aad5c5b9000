"""Several questions about one text: the tokens that the model reads, and the answers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blora.adapter import save_adapter
from blora.base_model import load_base_model
from blora.config import AdapterConfig, HeadConfig, PosteriorConfig, PromptConfig, SamplingConfig
from blora.inference.packing import PackedRow
from blora.posterior.decision_head import HeadPosterior
from blora.posterior.inject import decoder_layers
from blora.posterior.posterior import Posterior
from blora.server.engines.jobs import of_similar_length
from blora.server.engines.protocol import Job
from tests.heads import head_of
from tests.scenarios import tiny_model, tiny_tokenizer
from tests.server.engines.asking import Asking, loaded, settings, write_adapter
from tests.server.fakes import handle

TOLERANCE = 1e-4
TEXT = "I was charged twice for March, and nobody answers me! " * 3
QUESTIONS = {
    "which team?": ("billing: charges and plans", "technical: what does not work"),
    "urgent?": ("true", "false"),
    "mood?": ("calm", "annoyed", "angry"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, an adapter `one` without a head, and `two` with a pointer head."""
    root = tmp_path_factory.mktemp("several")
    tiny_model().save_pretrained(root / "tiny")
    tiny_tokenizer().save_pretrained(root / "tiny")
    write_adapter(root / "one", root / "tiny", seed=1)
    base = load_base_model(str(root / "tiny"), device="cpu", dtype="float32")
    head = head_of(HeadConfig(depths=(1, 2), n_states=64, n_directions=4, n_grams=0), 1)
    posterior = HeadPosterior(head, Posterior({}, PosteriorConfig(method="lora"), seed=0))
    config = AdapterConfig(
        base_model=base.ref,
        target_modules=(),
        modules={},
        posterior=posterior.lora.config,
        prompt=PromptConfig(readout="pointer", choice_end="newline"),
        sampling=SamplingConfig(n_samples=4, seed=7),
        head=head.config,
    )
    save_adapter(root / "two", posterior, config, base)
    return root


@contextmanager
def counted(asking: Asking) -> Iterator[list[int]]:
    """Count the tokens, padding included, that enter the first layer in each pass."""
    found: list[int] = []
    first = decoder_layers(asking.engine._loaded_base().model)[1][0]
    hook = first.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].shape[0] * inputs[0].shape[1]))
    try:
        yield found
    finally:
        hook.remove()


@pytest.mark.parametrize("adapter", ["one", "two"])
async def test_a_text_is_read_once_for_all_questions_and_they_get_what_they_get_alone(
    folder: Path, adapter: str
) -> None:
    async with loaded(settings(folder, prefix_cache_mib=0)) as (engine, state):
        plain = Asking(engine, state)
        apart = [
            await plain.probabilities(f"{TEXT}\n\n{question}", choices=choices, adapter=adapter)
            for question, choices in QUESTIONS.items()
        ]
    async with loaded(settings(folder)) as (engine, state):
        asking = Asking(engine, state)
        jobs = [
            await asking.job(f"{TEXT}\n\n{question}", choices=choices, adapter=adapter)
            for question, choices in QUESTIONS.items()
        ]
        with counted(asking) as tokens:
            together = await asking.run(jobs)
    shared = len(TEXT)
    own = sum(job.row.n_tokens - shared for job in jobs)
    n_passes = 4 if adapter == "one" else 1  # one for each draw of a LoRA, and one for all draws of a head
    assert own < shared
    assert sum(tokens) <= n_passes * (shared + own + 2 * 32)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE)


HANDLE = handle("one", "sha256:1")


def job(prompt: int, choices: int, *, text: int = 0) -> Job:
    """Return a question of that many tokens; equal ones have the same text."""
    return Job(HANDLE, PackedRow((text,) * prompt, ((1,) * (choices + 1),), "none"), 4, None, None)


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(0, 80)), min_size=1, max_size=40))
def test_groups_of_similar_length_have_every_job_once_and_little_padding(sizes: list[tuple[int, int]]) -> None:
    jobs = [job(*size, text=text) for text, size in enumerate(sizes)]
    groups = of_similar_length(jobs)
    assert sorted(place for group in groups for place in group) == list(range(len(jobs)))
    for group in groups:
        prompts, choices = zip(*(sizes[place] for place in group), strict=True)
        assert len(group) * (max(prompts) + max(choices)) - sum(prompts) - sum(choices) <= 32


def test_equal_lengths_and_one_question_for_several_adapters_stay_together() -> None:
    assert of_similar_length([job(20, 4, text=text) for text in range(40)]) == [list(range(40))]
    assert of_similar_length([job(40, 0), *[job(20, 0)] * 9]) == [list(range(10))]
    assert of_similar_length([job(20, 0), job(60, 0), job(21, 0)]) == [[1], [2, 0]]
