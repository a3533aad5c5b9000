"""Arguments that the sub-commands share."""

from argparse import (
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    _ArgumentGroup,
)
from typing import get_args

from blora.config import ChoiceEnd, NormalizationName, PromptConfig, SamplingConfig, ScoringName

__all__ = [
    "add_model",
    "add_prompt",
    "add_sampling",
    "add_tuning",
    "numbers",
    "positive",
    "read_prompt",
    "read_sampling",
]

# Of a new adapter. `PromptConfig` has another default: that of files written before there was a choice.
CHOICE_END: ChoiceEnd = "newline"
# Candidates for the factor of a posterior's standard deviations.
SCALES = "0.5,0.71,1,1.41,2,2.83,4"


def add_model(parser: ArgumentParser | _ArgumentGroup) -> None:
    """Which base model, where, and in which precision."""
    parser.add_argument("--base-model", default="embedded", help="hub id[@revision], folder, .gguf file, or embedded")
    parser.add_argument("--device", default="auto", help="device to compute on: auto, cpu, cuda, cuda:1 ...")
    parser.add_argument(
        "--dtype", default="auto", help="precision of the base model: auto, float32, bfloat16 or float16"
    )


def add_tuning(parser: ArgumentParser) -> None:
    """The rows that choose a scale, and how."""
    parser.add_argument(
        "--data", required=True, help="validation rows: .jsonl, .csv, or hub data set owner/name[:config]"
    )
    parser.add_argument("--split", default="validation", help="split of a hub data set")
    parser.add_argument("--limit", type=positive, help="use this many rows from the top (default: all)")
    parser.add_argument(
        "--scales",
        type=numbers,
        default=SCALES,
        help="factors to try on the posterior's standard deviations, separated by commas",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.005,
        help="of the scales whose NLL is within this many nats of the best, the widest is chosen",
    )


def add_prompt(parser: ArgumentParser | _ArgumentGroup) -> None:
    """How a question becomes text."""
    defaults = PromptConfig()
    parser.add_argument(
        "--choices",
        type=_labels,
        help="fixed label set, separated by | (default: every row and request brings its own)",
    )
    parser.add_argument(
        "--template",
        help=r"text around the prompt, with {prompt} in it (default: 'Question: {prompt}\nAnswer:' for the column "
        "question, the prompt as it is for the column prompt)",
    )
    parser.add_argument(
        "--scoring",
        choices=get_args(ScoringName),
        default=defaults.scoring,
        help="score the text of each choice, or its letter in a list that the prompt shows; scores of letters depend "
        "on the order of the choices",
    )
    parser.add_argument(
        "--normalization",
        choices=get_args(NormalizationName),
        default=defaults.normalization,
        help="divide the log-probability of a choice by nothing, by its own length in tokens, or by the mean length "
        "of the question's choices",
    )
    parser.add_argument(
        "--choice-end",
        choices=get_args(ChoiceEnd),
        default=CHOICE_END,
        help="token scored at the end of every choice, so that a label may begin with another one; without it (none) "
        "the shorter of two such labels always wins",
    )


def read_prompt(arguments: Namespace) -> PromptConfig:
    """The settings that `add_prompt` asked for."""
    return PromptConfig(
        template=arguments.template or "{prompt}",
        choices=arguments.choices,
        scoring=arguments.scoring,
        normalization=arguments.normalization,
        choice_end=arguments.choice_end,
    )


def add_sampling(parser: ArgumentParser | _ArgumentGroup, *, n_samples: int) -> None:
    """The adapter's sample bank."""
    parser.add_argument(
        "--n-samples",
        type=positive,
        default=n_samples,
        help="draws (posterior samples of the weights) behind each answer of the adapter",
    )
    parser.add_argument("--bank-seed", type=int, default=0, help="seed of those draws")
    parser.add_argument(
        "--stop-error",
        type=float,
        help="stop drawing early once the policy's decision is settled, accepting this probability, such as 0.01, that "
        "the remaining draws would have changed it (default: take all draws)",
    )


def read_sampling(arguments: Namespace) -> SamplingConfig:
    """The settings that `add_sampling` asked for."""
    return SamplingConfig(n_samples=arguments.n_samples, seed=arguments.bank_seed, stop_error=arguments.stop_error)


def _labels(text: str) -> tuple[str, ...]:
    return tuple(label.strip() for label in text.split("|"))


def positive(text: str) -> int:
    """A whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return number


def numbers(text: str) -> tuple[float, ...]:
    """Positive numbers, separated by commas."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < number < float("inf") for number in found):
        raise ArgumentTypeError(f"got {text!r}, expected positive numbers separated by commas")
    return found
