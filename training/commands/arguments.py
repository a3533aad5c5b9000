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
SCALES = (0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0)


def add_model(parser: ArgumentParser | _ArgumentGroup) -> None:
    """Which base model, where, and in which precision."""
    parser.add_argument("--base-model", default="embedded", help="hub id[@revision], folder, .gguf file, or embedded")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ...")
    parser.add_argument("--dtype", default="auto", help="of the base model: auto, float32, bfloat16 or float16")


def add_tuning(parser: ArgumentParser) -> None:
    """The rows that choose a scale, and how."""
    parser.add_argument("--data", required=True, help="validation rows: .jsonl, .csv, or hub data set")
    parser.add_argument("--split", default="validation", help="split of a hub data set")
    parser.add_argument("--limit", type=positive, help="use the first rows only")
    parser.add_argument(
        "--scales", type=numbers, default=SCALES, help="factors of the standard deviations to try, separated by commas"
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.005, help="the widest scale within this NLL of the best wins, in nats"
    )


def add_prompt(parser: ArgumentParser | _ArgumentGroup) -> None:
    """How a question becomes text."""
    defaults = PromptConfig()
    parser.add_argument("--choices", type=_labels, help="the fixed label set, separated by |")
    parser.add_argument("--template", help=r"text with {prompt} (default: 'Question: {prompt}\nAnswer:' for questions)")
    parser.add_argument(
        "--scoring",
        choices=get_args(ScoringName),
        default=defaults.scoring,
        help="what of a choice is scored: its text, or its letter in a list, which depends on the order of the choices",
    )
    parser.add_argument(
        "--normalization",
        choices=get_args(NormalizationName),
        default=defaults.normalization,
        help="divide log-probabilities by nothing, the choice's length, or its question's mean length of choices",
    )
    parser.add_argument(
        "--choice-end",
        choices=get_args(ChoiceEnd),
        default=CHOICE_END,
        help="token that ends every choice in the score; with none, a choice that begins another always beats it",
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
    parser.add_argument("--n-samples", type=positive, default=n_samples, help="draws in the adapter's sample bank")
    parser.add_argument("--bank-seed", type=int, default=0, help="seed of the sample bank")
    parser.add_argument(
        "--stop-error",
        type=float,
        help="risk so much, like 0.01, by fewer draws where they settle what the policy decides (default: draw all)",
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
