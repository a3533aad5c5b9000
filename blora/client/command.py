"""`blora ask`: asks a running server one question from a shell."""

import os
import sys
from argparse import ArgumentParser, Namespace

from blora.cli import CommandHelp
from blora.client.answers import Prediction
from blora.client.cautions import caution
from blora.questions.columns import choices_of
from blora.scores import SCORES

__all__ = ["SUMMARY", "add_policy", "main", "read_policy"]

SUMMARY = "ask a running server a question"
ABSTAINED = 3
MOST_RETRIES = 3  # few, so that a user at a shell soon sees a failure


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "blora ask",
        description=SUMMARY,
        epilog=f"Exit code: 0 for an answer, {ABSTAINED} if the server abstained, 1 if asking failed, 2 if the "
        "command is wrong.",
        formatter_class=CommandHelp,
    )
    parser.add_argument("prompt", help="question to ask; - reads it from standard input")
    parser.add_argument(
        "--url",
        default=os.environ.get("BLORA_URL", "http://127.0.0.1:8000"),
        help="address of the server (default: the environment variable BLORA_URL, otherwise http://127.0.0.1:8000)",
    )
    parser.add_argument("--api-key", help="API key (default: the environment variable BLORA_API_KEY)")
    parser.add_argument(
        "--adapter", help="adapter to ask: NAME, or NAME@sha256:... to pin its contents (default: the server's default)"
    )
    parser.add_argument("--choices", help="choices, separated by | (default: the adapter's)")
    add_policy(parser)
    parser.add_argument("--deadline-s", type=float, default=30.0, help="seconds to wait, retries included")
    parser.add_argument("--json", action="store_true", help="print the server's whole answer as JSON")
    return parser


def add_policy(parser: ArgumentParser) -> None:
    """Add the options for the number of draws and for the abstention policy."""
    parser.add_argument("--n-samples", type=int, help="number of draws (posterior samples) (default: the adapter's)")
    parser.add_argument(
        "--target-risk",
        type=float,
        help="abstain by the threshold calibrated for this target risk (default: the adapter's policy)",
    )
    for score in SCORES.values():
        parser.add_argument(score.flag, type=float, help=f"abstain if {score.failure} (default: the adapter's policy)")


def read_policy(arguments: Namespace) -> dict[str, float]:
    """Return the policy that the options ask for; empty for the adapter's own."""
    names = ("target_risk", *(score.threshold for score in SCORES.values()))
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def main(argv: list[str]) -> int:
    """Ask the question and print the answer."""
    arguments = _parser().parse_args(argv)

    from blora.client.retries import Retries
    from blora.client.synchronous import Client

    api_key = arguments.api_key if arguments.api_key is not None else os.environ.get("BLORA_API_KEY") or None
    retries = Retries(most=MOST_RETRIES)
    with Client(arguments.url, api_key=api_key, deadline_s=arguments.deadline_s, retries=retries) as client:
        prediction = client.predict(
            sys.stdin.read() if arguments.prompt == "-" else arguments.prompt,
            adapter=arguments.adapter,
            choices=choices_of(arguments.choices) if arguments.choices is not None else None,
            n_samples=arguments.n_samples,
            policy=read_policy(arguments) or None,
        )
    print(prediction.model_dump_json(indent=1, exclude_none=False) if arguments.json else _formatted(prediction))
    return ABSTAINED if prediction.abstained else 0


def _formatted(prediction: Prediction) -> str:
    """Return a line for the decision, each reason of an abstention, each warning and each choice."""
    spread = max(len(entry.choice) for entry in prediction.probabilities)
    ranked = sorted(prediction.probabilities, key=lambda entry: -entry.probability)
    return "\n".join(
        [
            "abstains" if prediction.answer is None else prediction.answer,
            *(f"  {r.reason}: {r.value:.6g}, threshold {r.threshold:.6g}" for r in prediction.abstain_reasons),
            *(f"  warning: {caution(warning)}" for warning in prediction.warnings),
            "",
            *(f"  {entry.choice:<{spread}}  {entry.probability:.3f} ± {entry.std:.3f}" for entry in ranked),
        ]
    )
