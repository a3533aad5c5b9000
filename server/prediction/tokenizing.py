"""Length limits of a question, before and after it is tokenised."""

from collections.abc import Sequence
from typing import NamedTuple

from blora.inference.packing import PackedRow
from blora.server.engines.protocol import ModelInfo
from blora.server.errors import TooLargeError
from blora.server.schemas.requests import PredictRequest
from blora.server.settings import Settings

__all__ = ["Lengths"]


class Lengths(NamedTuple):
    """Length limits of a question, each the smallest of the server's limits.

    Attributes:
        prompt: most tokens of a prompt or a chat.
        row: most tokens of prompt and choices together.
        longest_token: most characters of a token.
        flag: the flag of the server that limits a prompt; empty if it is the model's length.
    """

    prompt: int
    row: int
    longest_token: int
    flag: str = ""

    @classmethod
    def of(cls, settings: Settings, model: ModelInfo) -> "Lengths":
        """Return the limits of a server and of its model."""
        limits = {
            "": model.max_length,
            "--max-prompt-tokens": settings.max_prompt_tokens,
            "--max-batch-tokens": settings.max_batch_tokens,
        }
        flag = min(limits, key=limits.__getitem__)
        return cls(limits[flag], settings.max_batch_tokens, model.longest_token, flag)

    def check_characters(self, question: PredictRequest, choices: Sequence[str]) -> int:
        """Return the number of characters of a question, checked before it is tokenised.

        Raises:
            TooLargeError: if the characters cannot fit into the allowed tokens.
        """
        asked, offered = _characters(question), sum(map(len, choices))
        if offered > self.row * self.longest_token:
            raise TooLargeError(
                f"The choices have {offered} characters, which make more than {self.row} tokens, the limit: shorten "
                "them.",
                code="prompt_too_long",
                param="choices",
            )
        if asked > self.prompt * self.longest_token:
            raise TooLargeError(
                f"The prompt has {asked} characters, which make more than {self.prompt} tokens, the limit: shorten it.",
                code="prompt_too_long",
                param=_param(question),
            )
        return asked + offered

    def check_row(self, row: PackedRow, question: PredictRequest, choices: Sequence[str]) -> None:
        """Raise an error if a tokenised question is too long.

        Raises:
            TooLargeError: naming the part that is too long, the prompt or the choices.
        """
        beside = self.row - (row.n_tokens - row.prompt_tokens)
        if row.prompt_tokens <= min(self.prompt, beside):
            return
        if question.choices is None or _characters(question) >= sum(map(len, choices)):
            most = min(self.prompt, beside) if beside > 0 else self.prompt
            beside_these, flag = "", self.flag
            if most < self.prompt:
                beside_these, flag = " beside these choices", "--max-batch-tokens"
            raise TooLargeError(
                f"got a prompt of {row.prompt_tokens} tokens, expected at most {most}{beside_these}: shorten it"
                + (f", or raise {flag}" if flag else ""),
                code="prompt_too_long",
                param=_param(question),
            )
        if row.prompt_tokens > self.prompt:  # with label scoring the prompt lists the choices
            got, most, flag = row.prompt_tokens, self.prompt, self.flag
        else:
            got, most = row.scored_tokens, self.row - row.prompt_tokens + row.n_choices
            flag = "--max-batch-tokens"
        raise TooLargeError(
            f"got choices of {got} tokens, expected at most {most} beside this prompt: shorten the choices"
            + (f", or raise {flag}" if flag else ""),
            code="prompt_too_long",
            param="choices",
        )

    def too_long(self, question: PredictRequest, choices: Sequence[str]) -> TooLargeError:
        """Return the error for a question with more tokens than the model has positions."""
        if question.choices is not None and sum(map(len, choices)) > _characters(question):
            param, who = "choices", "The choices have"
        else:
            param, who = _param(question), "The prompt has"
        return TooLargeError(
            f"{who} more than {self.prompt} tokens, the limit: send fewer.", code="prompt_too_long", param=param
        )


def _characters(question: PredictRequest) -> int:
    if question.prompt is not None:
        return len(question.prompt.strip())
    return sum(len(turn.content) for turn in question.messages or ())


def _param(question: PredictRequest) -> str:
    return "messages" if question.messages else "prompt"
