"""`blora mcp`: offers a running server to language models as one tool, by the Model Context Protocol on standard input.

An abstention names no choice: the model that asks would take the leading one for the answer.
"""

import os
from argparse import ArgumentParser
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from blora.cli import CommandHelp
from blora.client.answers import AbstainReason, Prediction
from blora.client.cautions import caution
from blora.client.command import add_policy, read_policy
from blora.errors import BloraError
from blora.scores import SCORES

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

    from blora.client.asynchronous import AsyncClient

__all__ = ["SUMMARY", "Asked", "main", "server_of"]

SUMMARY = "offer a running server to language models as a tool (MCP)"
ABOUT = (
    "Choose one of several answers to a question, by a model that is calibrated and abstains when it cannot be "
    "trusted. If `answered` is false there is no answer: say so or ask a person, and do not choose one yourself."
)
PROMISE = "The calibration proved that at most {:.3g} of the answers to questions like its own are wrong."
MOST_SHOWN = 0.999  # above this, rounding would make a certainty of a probability
FAILURES = {score.reason: score.failure for score in SCORES.values()}


class Asked(BaseModel):
    """Result of the tool."""

    answered: bool = Field(description="Whether there is an answer; false if the server abstains.")
    answer: str | None = Field(description="The chosen answer; null if the server abstains.")
    explanation: str = Field(
        description="The answer with its probability, or the reasons to abstain, and warnings, in words."
    )
    probability: float | None = Field(
        description="Probability of the answer, calibrated unless a warning says otherwise; null without one."
    )
    warnings: list[str] = Field(description="Names of reasons for caution, which the explanation tells in words.")
    promise: str | None = Field(description="What is proved about the error of such answers; null if nothing is.")
    prediction_id: str = Field(description="Id of the prediction, for feedback on the outcome.")
    adapter: str = Field(description="Name and digests of the adapter that answered.")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "blora mcp",
        description=f"{SUMMARY}, `ask`, on standard input and output. The API key comes from the environment variable "
        "BLORA_API_KEY.",
        formatter_class=CommandHelp,
    )
    parser.add_argument(
        "--url",
        default=os.environ.get("BLORA_URL", "http://127.0.0.1:8000"),
        help="address of the server (default: the environment variable BLORA_URL, otherwise http://127.0.0.1:8000)",
    )
    parser.add_argument(
        "--adapter", help="adapter to ask: NAME, or NAME@sha256:... to pin its contents (default: the server's default)"
    )
    parser.add_argument("--about", help="what the tool decides, which tells the language model when to use it")
    add_policy(parser)
    parser.add_argument("--deadline-s", type=float, default=30.0, help="seconds that a call may take")
    return parser


def main(argv: list[str]) -> int:
    """Serve the tool until standard input ends."""
    arguments = _parser().parse_args(argv)

    from blora.client.asynchronous import AsyncClient

    fields = {
        "adapter": arguments.adapter,
        "n_samples": arguments.n_samples,
        "policy": read_policy(arguments) or None,
    }
    api_key = os.environ.get("BLORA_API_KEY") or None
    client = AsyncClient(arguments.url, api_key=api_key, deadline_s=arguments.deadline_s)
    server_of(client, about=arguments.about, fields=fields).run("stdio")
    return 0


def server_of(
    client: "AsyncClient", *, about: str | None = None, fields: Mapping[str, Any] | None = None
) -> "MCPServer":
    """Return an MCP server with the one tool `ask`.

    Args:
        client: client of the blora server; closed by the caller.
        about: what the tool decides, in front of its description.
        fields: further fields of every request, see `AsyncClient.predict`.
    """
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations

    server = MCPServer("blora", version=version("blora"), log_level="WARNING")
    description = f"{about.rstrip('.')}. {ABOUT}" if about else ABOUT

    @server.tool(description=description, annotations=ToolAnnotations(read_only_hint=True, idempotent_hint=True))
    async def ask(question: str, choices: list[str] | None = None) -> Asked:
        """Ask the server; choices are the answers to choose from, if the adapter has no fixed ones."""
        try:
            return _asked(await client.predict(question, choices=choices, **fields or {}))
        except BloraError as exc:
            raise ToolError(f"The question was not answered: {exc}") from exc

    return server


def _asked(prediction: Prediction) -> Asked:
    answer = prediction.answer
    risk = prediction.policy.target_risk if prediction.policy is not None else None
    return Asked(
        answered=answer is not None,
        answer=answer,
        explanation=" ".join([_explanation(prediction), *_cautions(prediction)]),
        probability=prediction.confidence if answer is not None else None,
        warnings=prediction.warnings,
        promise=PROMISE.format(risk) if risk is not None and answer is not None else None,
        prediction_id=prediction.id,
        adapter=prediction.adapter.pin,
    )


def _explanation(prediction: Prediction) -> str:
    """Return the answer or the abstention as a sentence."""
    if prediction.answer is not None:
        confidence: float = prediction.confidence
        shown = f"{confidence:.3g}" if confidence <= MOST_SHOWN else f"more than {MOST_SHOWN}"
        return f"{prediction.answer}, with a probability of {shown}."
    reasons = "; ".join(map(_in_words, prediction.abstain_reasons)) or "the policy withholds the answer"
    return f"The model abstains, so there is no answer: {reasons}."


def _cautions(prediction: Prediction) -> list[str]:
    """Return a sentence with all warnings; none without warnings."""
    warnings = "; ".join(map(caution, prediction.warnings))
    return [f"Be cautious: {warnings}."] if warnings else []


def _in_words(reason: AbstainReason) -> str:
    failure = FAILURES.get(reason.reason, reason.reason)
    return f"{failure} ({reason.value:.6g}) than the threshold ({reason.threshold:.6g})"
