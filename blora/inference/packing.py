"""Packing of a prompt and its choices into a token row in which all choices share one copy of the prompt.

A packed row is the prompt followed by the tokens of every choice without its last token, which is only predicted and
never read. A block mask lets a choice attend to the prompt and itself; position ids restart after the prompt. So one
row of a forward pass scores all choices exactly as scoring each choice alone would.
"""

import string
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from blora.config import NormalizationName, PromptConfig, ReadoutName, ScoringName
from blora.errors import PromptError, PromptTooLongError
from blora.inference.chat import render
from blora.inference.choices import check_choices, check_tokens, encode_choices, ended
from blora.inference.text import encode, guard
from blora.questions.spelling import half_pair, seen

__all__ = ["LABELS", "PackedRow", "States", "pack"]

LABELS = string.ascii_uppercase


@dataclass(frozen=True, slots=True)
class States:
    """Hidden states that enter a decoder layer.

    Attributes:
        layer: index of the decoder layer.
        values: (n_tokens, D) of a row, or (B, T, D) of a batch.
    """

    layer: int
    values: Tensor


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One question as tokens.

    Attributes:
        prompt: token ids of the prompt.
        continuations: token ids of each choice (C lists), with the end token if the adapter uses one.
        normalization: normalisation of the choices' log-probabilities: see `PromptConfig`.
        length_power: see `PromptConfig`.
        scoring: whether choices are scored by their texts or by their letters.
        states: the hidden states that enter the first adapted layer, if they are known.
        n_past: number of tokens before the prompt whose keys and values are cached.
        choices: texts of the choices, without white space at their ends.
        readout: what scores the choices; see `PromptConfig`.
        outputs: for a linear head, the index of each choice among the head's outputs; such a row has no continuations.
        text: the prompt or the messages as text, without the template.
    """

    prompt: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]
    normalization: NormalizationName
    length_power: float = 1.0
    scoring: ScoringName = "text"
    states: "States | None" = field(default=None, compare=False)
    n_past: int = 0
    choices: tuple[str, ...] = field(default=(), compare=False)
    readout: ReadoutName = "scores"
    outputs: tuple[int, ...] = ()
    text: str = field(default="", compare=False)

    @property
    def n_choices(self) -> int:
        """C, the number of choices."""
        return len(self.outputs or self.continuations)

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the prompt."""
        return len(self.prompt)

    @property
    def scored_tokens(self) -> int:
        """Number of tokens whose log-probability enters the answer."""
        return sum(len(tokens) for tokens in self.continuations)

    @property
    def lengths(self) -> tuple[float, ...]:
        """Number of tokens by which each choice's log-probability is normalised; 1 without normalisation."""
        if self.normalization == "choice":
            return tuple(float(len(tokens)) for tokens in self.continuations)
        return (self.scored_tokens / self.n_choices if self.normalization == "question" else 1.0,) * self.n_choices

    @property
    def divisors(self) -> tuple[float, ...]:
        """Divisor of each choice's log-probability."""
        return tuple(length**self.length_power for length in self.lengths)

    @property
    def shadowed(self) -> tuple[str, str] | None:
        """A choice that can never win, and the choice that it begins with; None if there is no such pair."""
        by_length = self.normalization == "choice" and self.length_power > 0  # a longer choice has a larger divisor
        if by_length or self.readout != "scores":
            return None
        order = sorted(range(self.n_choices), key=self.continuations.__getitem__)  # a prefix before what begins with it
        for i, j in pairwise(order):
            if self.continuations[j][: len(self.continuations[i])] == self.continuations[i]:
                return self.choices[j], self.choices[i]
        return None

    @property
    def n_tokens(self) -> int:
        """Number of tokens that the model reads: the length of the packed row."""
        return self.prompt_tokens + self.scored_tokens - len(self.continuations)

    @property
    def read_key(self) -> Hashable:
        """Key of the row's features: a head reads the same of rows with equal keys."""
        return self.prompt, self.continuations, self.text, self.readout

    def after(self, n_tokens: int) -> "PackedRow":
        """Return the row without its first tokens, whose keys and values are cached."""
        states = States(self.states.layer, self.states.values[n_tokens:]) if self.states is not None else None
        return replace(self, prompt=self.prompt[n_tokens:], n_past=n_tokens, states=states)


def pack(
    tokenizer: PreTrainedTokenizerBase,
    *,
    choices: Sequence[str],
    config: PromptConfig,
    prompt: str | None = None,
    messages: Sequence[Mapping[str, str]] | None = None,
    scoring: ScoringName | None = None,
    max_length: int,
    encoder: bool = False,
) -> PackedRow:
    """Tokenise and pack one question.

    Args:
        tokenizer: the base model's tokenizer.
        choices: two or more answers; with `label` scoring at most 26.
        config: the adapter's template and scoring.
        prompt: plain text for the adapter's template. Give either prompt or messages.
        messages: a chat for the tokenizer's chat template.
        scoring: overrides the adapter's scoring; a head answers only under the adapter's own. A linear head answers
            only the adapter's choices, or some of them; other choices are scored by the language model.
        max_length: most positions of the model.
        encoder: whether the model is an encoder, which reads no chats and scores no choices: a linear head alone
            answers.

    Raises:
        PromptError: naming the invalid field.
    """
    if encoder and messages is not None:
        raise PromptError(
            "got messages, but the base model is an encoder, which reads no chats; send a prompt instead",
            param="messages",
        )
    if (prompt is None) == (messages is None):
        raise PromptError("got both or neither of prompt and messages, expected exactly one", param="prompt")
    if prompt is not None and not prompt.strip():
        raise PromptError("got a blank prompt, expected some text", param="prompt")
    choices = tuple(choice.strip() for choice in choices)
    check_choices(choices)
    said = [text for turn in messages or () for text in turn.values()]
    for texts, param in (([prompt or ""], "prompt"), (said, "messages"), (choices, "choices")):
        if problem := half_pair(texts):
            raise PromptError(problem, param=param)
    by_label = (scoring or config.scoring) == "label"
    if by_label and len(choices) > len(LABELS):
        raise PromptError(
            f"got {len(choices)} choices to score by label, expected at most {len(LABELS)}; use scoring text",
            param="choices",
        )
    readout, outputs = _readout(config, choices, by_label=by_label)
    if encoder and readout != "linear":
        raise PromptError(
            "got choices whose texts a language model would have to score, but the base model is an encoder, which "
            "scores no texts: expected choices of a linear head, some of the adapter's own",
            param="choices",
        )
    suffix = _listing([guard(tokenizer, choice) for choice in choices]) if by_label else ""
    if messages is not None:
        text = render(tokenizer, messages, suffix)
    else:
        assert prompt is not None  # checked above
        text = config.template.replace("{prompt}", f"{guard(tokenizer, prompt.strip())}{suffix}")
    prompt_ids = encode(tokenizer, text, special=messages is None, whole=encoder)
    if not prompt_ids:
        raise PromptError("got a prompt without tokens, expected some text", param="prompt")
    glue = "" if not text or text[-1].isspace() else " "
    answers = LABELS[: len(choices)] if by_label else [guard(tokenizer, choice) for choice in choices]
    continuations = encode_choices(tokenizer, glue, answers) if not outputs else ()
    check_tokens(choices, continuations)
    if continuations and not by_label and config.choice_end != "none":
        continuations = ended(tokenizer, choices, continuations, config.choice_end)
    longest = len(prompt_ids) + max(map(len, continuations), default=0)
    if longest > max_length:
        raise PromptTooLongError(
            f"got {longest} tokens of prompt and longest choice, expected at most {max_length}; shorten the prompt",
            param="messages" if prompt is None else "prompt",
        )
    return PackedRow(
        prompt_ids,
        continuations,
        normalization="none" if by_label or readout != "scores" else config.normalization,
        length_power=config.length_power,
        scoring="label" if by_label else "text",
        choices=choices,
        readout=readout,
        outputs=outputs,
        text=prompt if prompt is not None else "\n".join(turn["content"] for turn in messages or ()),
    )


def _readout(config: PromptConfig, choices: tuple[str, ...], *, by_label: bool) -> tuple[ReadoutName, tuple[int, ...]]:
    """Return what scores the choices of a question, and each choice's index among the outputs of a linear head."""
    if config.readout != "linear" or by_label:
        return "scores" if by_label else config.readout, ()
    place = {seen(choice): index for index, choice in enumerate(config.choices or ())}
    offered = list(map(seen, choices))
    if len(set(offered)) < len(offered) or not set(offered) <= set(place):
        return "scores", ()
    return "linear", tuple(place[choice] for choice in offered)


def _listing(choices: Sequence[str]) -> str:
    return "".join(f"\n{label}. {choice}" for label, choice in zip(LABELS, choices, strict=False))
