import functools
import json
import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from blora.base_model import BaseModel
from blora.config import NormalizationName, PromptConfig
from blora.errors import PromptError
from blora.inference.batches import collate
from blora.inference.packing import LABELS, PackedRow, pack
from tests.scenarios import CHAT_TEMPLATE, MAX_LENGTH, random_rows, spell, tiny_tokenizer

PLAIN = PromptConfig()
CPU = torch.device("cpu")
TRIAGE = Path(__file__).parents[3] / "examples" / "triage"


def make(
    *,
    choices: tuple[str, ...] = ("yes", "no"),
    config: PromptConfig = PLAIN,
    tokenizer: object = None,
    max_length: int = MAX_LENGTH,
    **question: object,
) -> PackedRow:
    if not question.keys() & {"prompt", "messages"}:
        question["prompt"] = "Is it?"
    return pack(
        tokenizer or tiny_tokenizer(),  # type: ignore[arg-type]
        choices=choices,
        config=config,
        max_length=max_length,
        **question,  # type: ignore[arg-type]
    )


def texts(row: PackedRow) -> tuple[str, list[str]]:
    return spell(row.prompt), [spell(tokens) for tokens in row.continuations]


# Text


def test_a_plain_prompt_goes_into_the_template_and_choices_follow_a_space() -> None:
    row = make(prompt="Is it?", config=PromptConfig(template="Q: {prompt}\nA:"))
    assert texts(row) == ("<s>Q: Is it?\nA:", [" yes", " no"])


def test_choices_follow_whitespace_without_another_space() -> None:
    row = make(config=PromptConfig(template="{prompt}\n"))
    assert texts(row) == ("<s>Is it?\n", ["yes", "no"])


def test_space_around_a_prompt_is_dropped() -> None:
    assert make(prompt="  Is it? \n") == make(prompt="Is it?")


def test_braces_in_a_prompt_stay_as_they_are() -> None:
    row = make(prompt="{prompt} {0} {x}", config=PromptConfig(template="Q {prompt} A"))
    assert spell(row.prompt) == "<s>Q {prompt} {0} {x} A"


def test_a_template_may_hold_the_prompt_twice_and_its_words_still_count_once() -> None:
    row = make(prompt=" Is it? ", config=PromptConfig(template="Q: {prompt}\n{prompt}\nA:"))
    assert spell(row.prompt) == "<s>Q: Is it?\nIs it?\nA:"
    assert row.text == make(prompt=" Is it? ").text


def test_special_tokens_are_added_once_and_only_to_a_plain_prompt() -> None:
    bos = tiny_tokenizer().bos_token_id
    row = make()
    assert row.prompt.count(bos) == 1
    assert not any(bos in tokens for tokens in row.continuations)
    assert bos not in make(messages=[{"role": "user", "content": "Is it?"}]).prompt


def test_label_scoring_lists_the_choices_and_scores_their_letters() -> None:
    row = make(choices=("red", "dark blue"), config=PromptConfig(template="{prompt}\nAnswer:", scoring="label"))
    assert texts(row) == ("<s>Is it?\nA. red\nB. dark blue\nAnswer:", [" A", " B"])


def test_a_question_may_override_the_scoring_either_way() -> None:
    by_label = PromptConfig(scoring="label")
    assert make(config=by_label, scoring="text") == make()
    assert make(scoring="label") == make(config=by_label)


def test_length_normalisation_is_for_text_scoring_only() -> None:
    config = PromptConfig(normalization="choice")
    assert make(config=config).normalization == "choice"
    assert make(config=config, scoring="label").normalization == "none"
    assert make().normalization == "question"


def test_the_length_that_divides_is_raised_to_the_adapters_power() -> None:
    choices = ("red", "a very dark and heavy blue")
    row = make(choices=choices, config=PromptConfig(length_power=0.5))
    n_tokens = [len(tokens) for tokens in row.continuations]
    assert row.lengths == (sum(n_tokens) / 2,) * 2
    assert row.divisors == pytest.approx([math.sqrt(sum(n_tokens) / 2)] * 2)
    by_choice = make(choices=choices, config=PromptConfig(normalization="choice", length_power=2.0))
    assert by_choice.divisors == pytest.approx([n**2 for n in n_tokens])
    assert make(choices=choices, config=PromptConfig(length_power=0.5), scoring="label").divisors == (1.0, 1.0)


def test_a_chat_goes_through_the_chat_template_and_not_the_adapters() -> None:
    row = make(
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"}],
        config=PromptConfig(template="Q: {prompt}"),
    )
    assert texts(row) == ("system: Be brief.\nuser: Is it?\nassistant:", [" yes", " no"])


def test_label_scoring_lists_the_choices_in_the_last_turn_of_a_chat() -> None:
    messages = [{"role": "user", "content": "Is it?"}]
    row = make(messages=messages, scoring="label")
    assert texts(row) == ("user: Is it?\nA. yes\nB. no\nassistant:", [" A", " B"])
    assert messages == [{"role": "user", "content": "Is it?"}]  # the caller's list is not written to


def test_counts_of_tokens() -> None:
    row = PackedRow((1, 2, 3), ((4,), (5, 6), (7, 8, 9)), "none")
    assert (row.n_choices, row.prompt_tokens, row.scored_tokens) == (3, 3, 6)
    assert row.n_tokens == 3 + 0 + 1 + 2  # a choice's last token is predicted, never read


# Tokenizers that put a space before every text

SPACE_FIRST = ("llama2", "mistral_first", "mistral_always", "unigram")
QUEUES = ("billing", "account access", "bug report", "data export")


@functools.cache
def space_first(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer like those of SentencePiece, with or without a split into words."""
    settings = {
        "vocab_size": 200,
        "special_tokens": ["<unk>", "<s>", "</s>"],
        "initial_alphabet": ["\n"],
        "show_progress": False,
    }
    unigram = kind == "unigram"
    tokenizer = Tokenizer(models.Unigram() if unigram else models.BPE(unk_token="<unk>"))
    trainer = trainers.UnigramTrainer(unk_token="<unk>", **settings) if unigram else trainers.BpeTrainer(**settings)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    corpus = [
        "Queue: billing or account access?",
        "Is it a bug report?",
        "A. data export",
        "B. C. D. Answer: A",
        *QUEUES,
    ]
    tokenizer.train_from_iterator(20 * corpus, trainer)
    if kind == "llama2":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = None
    elif kind.startswith("mistral"):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind.removeprefix("mistral_"), split=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


@pytest.mark.parametrize("kind", SPACE_FIRST)
@pytest.mark.parametrize("scoring", ["text", "label"])
@pytest.mark.parametrize("template", ["{prompt}\nQueue:", "{prompt}\nAnswer:\n", "{prompt}"])
def test_prompt_and_choice_are_the_tokens_of_the_whole_text(kind: str, scoring: str, template: str) -> None:
    tokenizer = space_first(kind)
    config = PromptConfig(template=template, scoring=scoring)  # type: ignore[arg-type]
    row = make(choices=QUEUES, config=config, tokenizer=tokenizer)
    listing = "".join(f"\n{label}. {queue}" for label, queue in zip(LABELS, QUEUES, strict=False))
    text = template.replace("{prompt}", "Is it?" + (listing if scoring == "label" else ""))
    for queue, label, tokens in zip(QUEUES, LABELS, row.continuations, strict=False):
        whole = text + ("" if text.endswith("\n") else " ") + (label if scoring == "label" else queue)
        assert [*row.prompt, *tokens] == tokenizer(whole)["input_ids"]


@pytest.mark.parametrize("kind", SPACE_FIRST)
def test_a_chat_and_a_choice_are_the_tokens_of_the_whole_text(kind: str) -> None:
    tokenizer = space_first(kind)
    row = make(choices=QUEUES, tokenizer=tokenizer, messages=[{"role": "user", "content": "Is it?"}])
    for queue, tokens in zip(QUEUES, row.continuations, strict=True):
        whole = tokenizer(f"user: Is it?\nassistant: {queue}", add_special_tokens=False)["input_ids"]
        assert [*row.prompt, *tokens] == whole


@pytest.mark.parametrize("kind", SPACE_FIRST)
def test_a_choice_after_a_space_brings_no_other_one(kind: str) -> None:
    row = make(choices=QUEUES, config=PromptConfig(template="{prompt} "), tokenizer=space_first(kind))
    spelt = ["".join(space_first(kind).convert_ids_to_tokens(list(tokens))) for tokens in row.continuations]
    assert spelt == [queue.replace(" ", "▁") for queue in QUEUES]


def test_a_choice_that_merges_with_what_it_is_encoded_after_is_encoded_alone() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, " ": 1, "b": 2, "a ": 3, " b": 4}, [("a", " "), (" ", "b")]))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert make(prompt="b", choices=("a", "b"), tokenizer=fast).continuations == ((1, 0), (4,))


# The tokens that existing adapters were trained on


def alone(base: BaseModel, text: str) -> tuple[int, ...]:
    """The tokens of a text that nothing comes before."""
    return tuple(base.tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.model
def test_the_demos_rows_are_the_tokens_that_it_was_trained_on(smollm2: BaseModel) -> None:
    raw = json.loads((TRIAGE / "adapter" / "bayesian_config.json").read_text())["prompt"]
    config = PromptConfig(template=raw["template"], choices=tuple(raw["choices"]))
    assert config.choices is not None
    for file in sorted(TRIAGE.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            prompt = json.loads(line)["prompt"]
            row = make(prompt=prompt, choices=config.choices, config=config, tokenizer=smollm2.tokenizer)
            assert row.continuations == tuple(alone(smollm2, f" {choice}") for choice in config.choices)
            assert row.prompt == alone(smollm2, config.template.replace("{prompt}", prompt.strip()))


@pytest.mark.model
@pytest.mark.parametrize(("template", "glue"), [("{prompt}\nQueue:", " "), ("{prompt}\n", ""), ("{prompt}\n\n", "")])
def test_the_embedded_models_choices_are_the_tokens_they_were(smollm2: BaseModel, template: str, glue: str) -> None:
    written = st.text(st.characters(exclude_categories=["C"]), min_size=1)  # it has no tokens for some others

    @given(st.lists(written.map(str.strip).filter(bool), min_size=2, max_size=4, unique=True))
    def check(choices: list[str]) -> None:
        row = make(choices=tuple(choices), config=PromptConfig(template=template), tokenizer=smollm2.tokenizer)
        assert row.continuations == tuple(alone(smollm2, glue + choice) for choice in choices)

    check()


@pytest.mark.model
def test_the_embedded_models_letters_and_chats_are_the_tokens_they_were(smollm2: BaseModel) -> None:
    row = make(choices=QUEUES, scoring="label", tokenizer=smollm2.tokenizer)
    assert row.continuations == tuple(alone(smollm2, f" {label}") for label in LABELS[: len(QUEUES)])
    row = make(choices=QUEUES, messages=[{"role": "user", "content": "Is it?"}], tokenizer=smollm2.tokenizer)
    assert row.continuations == tuple(alone(smollm2, queue) for queue in QUEUES)  # after the template's line break


@pytest.mark.parametrize("template", ["{prompt}", "{prompt}\n"])
@given(st.lists(st.text(st.sampled_from("ab 1.\n")).map(str.strip).filter(bool), min_size=2, max_size=4, unique=True))
def test_a_tokenizer_of_characters_gives_the_tokens_it_gave(template: str, choices: list[str]) -> None:
    row = make(choices=tuple(choices), config=PromptConfig(template=template))
    glue = "" if template.endswith("\n") else " "
    assert [spell(tokens) for tokens in row.continuations] == [glue + choice for choice in choices]


# Refusals


@pytest.mark.parametrize("both", [True, False])
def test_exactly_one_of_prompt_and_messages_is_needed(both: bool) -> None:
    question = {"prompt": "Is it?", "messages": [{"role": "user", "content": "Is it?"}]} if both else {"prompt": None}
    with pytest.raises(PromptError, match="both or neither of prompt and messages") as info:
        make(**question)  # type: ignore[arg-type]
    assert info.value.param == "prompt"


@pytest.mark.parametrize("choices", [(), ("yes",)])
def test_fewer_than_two_choices_are_refused(choices: tuple[str, ...]) -> None:
    with pytest.raises(PromptError, match="got (no choices|one choice), expected at least 2") as info:
        make(choices=choices)
    assert info.value.param == "choices"


def test_more_choices_than_letters_are_refused_by_label_only() -> None:
    choices = tuple(str(k) for k in range(27))
    assert make(choices=choices).n_choices == 27
    assert make(choices=choices[:26], scoring="label").n_choices == len(LABELS) == 26
    with pytest.raises(PromptError, match="got 27 choices to score by label, expected at most 26; use scoring text"):
        make(choices=choices, scoring="label")


def test_an_empty_choice_is_refused() -> None:
    with pytest.raises(PromptError, match="got an empty choice") as info:
        make(choices=("yes", ""), config=PromptConfig(template="{prompt}\n"))
    assert info.value.param == "choices"


def test_a_blank_prompt_is_refused() -> None:
    with pytest.raises(PromptError, match="a blank prompt") as info:
        make(prompt="", tokenizer=tiny_tokenizer(bos=False))
    assert info.value.param == "prompt"


@pytest.mark.parametrize(
    ("question", "param"),
    [({"prompt": "Is it?"}, "prompt"), ({"messages": [{"role": "user", "content": "Is it?"}]}, "messages")],
)
def test_a_question_longer_than_the_model_allows_is_refused(question: dict[str, object], param: str) -> None:
    row = make(**question)  # type: ignore[arg-type]
    longest = row.prompt_tokens + 4  # " yes"
    assert make(max_length=longest, **question) == row  # type: ignore[arg-type]
    with pytest.raises(PromptError, match=f"got {longest} tokens of prompt and longest choice") as info:
        make(max_length=longest - 1, **question)  # type: ignore[arg-type]
    assert info.value.param == param


def test_a_chat_needs_a_chat_template() -> None:
    with pytest.raises(PromptError, match="no chat template; send a prompt instead") as info:
        make(messages=[{"role": "user", "content": "Is it?"}], tokenizer=tiny_tokenizer(chat=False))
    assert info.value.param == "messages"


def test_a_chat_that_its_template_refuses_is_refused_with_the_templates_reason() -> None:
    with pytest.raises(PromptError, match="chat template refuses: no such role") as info:
        make(messages=[{"role": "tool", "content": "Is it?"}])
    assert info.value.param == "messages"


@pytest.mark.parametrize("messages", [[], [{"role": "user"}]])
def test_a_chat_without_turns_or_content_is_refused(messages: list[dict[str, str]]) -> None:
    with pytest.raises(PromptError) as info:
        make(messages=messages)
    assert info.value.param == "messages"


# Batches


def test_the_mask_lets_a_choice_see_the_prompt_and_itself() -> None:
    # Two prompt tokens; a, b, c read two, none and one token.
    batch = collate([PackedRow((1, 2), ((10, 11, 12), (20,), (30, 31)), "none")])
    assert batch.input_ids.tolist() == [[1, 2, 10, 11, 30]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert batch.attention_mask(CPU).int().tolist() == [
        [
            [
                [1, 0, 0, 0, 0],
                [1, 1, 0, 0, 0],
                [1, 1, 1, 0, 0],
                [1, 1, 1, 1, 0],
                [1, 1, 0, 0, 1],
            ]
        ]
    ]


def test_every_scored_token_is_predicted_from_the_column_before_it() -> None:
    batch = collate([PackedRow((1, 2), ((10, 11, 12), (20,), (30, 31)), "none")])
    scored = torch.stack([batch.row[batch.place], batch.column[batch.place], batch.token, batch.choice], 1)
    assert scored.tolist() == [
        [0, 1, 10, 0],  # the first token of every choice comes from the end of the prompt
        [0, 2, 11, 0],
        [0, 3, 12, 0],
        [0, 1, 20, 1],
        [0, 1, 30, 2],
        [0, 4, 31, 2],
    ]


def test_rows_are_padded_so_that_prompts_end_in_the_same_column() -> None:
    batch = collate(
        [PackedRow((1,), ((10, 11), (20, 21)), "choice"), PackedRow((1, 2, 3), ((30,), (40,), (50,)), "choice")],
        pad_id=99,
    )
    assert batch.input_ids.tolist() == [[99, 99, 1, 10, 20], [1, 2, 3, 99, 99]]
    assert batch.column[batch.place].min() == 2
    assert batch.is_choice.tolist() == [[True, True, False], [True, True, True]]
    assert batch.divisor.tolist() == [[2, 2, 1], [1, 1, 1]]
    assert batch.choice.tolist() == [0, 0, 1, 1, 3, 4, 5]


def test_nothing_sees_padding_but_padding_and_no_query_is_left_without_a_key() -> None:
    rows = random_rows(8)
    batch = collate(rows, pad_id=0)
    width = batch.column.min() + 1
    for b, row in enumerate(rows):
        mask = batch.attention_mask(CPU)[b, 0]
        real = torch.zeros(mask.shape[0], dtype=torch.bool)
        real[width - row.prompt_tokens : width - row.prompt_tokens + row.n_tokens] = True
        assert not mask[real][:, ~real].any()
        assert not mask[~real][:, real].any()
        assert mask.any(-1).all()
        assert not mask.triu(1).any()


def test_each_row_is_normalised_in_its_own_way() -> None:
    rows = [PackedRow((1,), ((1, 2, 3), (4,)), way) for way in get_args(NormalizationName)]
    assert collate(rows).divisor.tolist() == [[1, 1], [3, 1], [2, 2]]


def test_normalisation_by_the_question_keeps_the_ranking_of_none() -> None:
    row = PackedRow((1,), ((1, 2, 3), (4,), (5, 6)), "question")
    assert len(set(row.divisors)) == 1
    assert row.divisors[0] == 2
