"""Rendering of a chat as text, by the chat template of the base model's tokenizer."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from transformers import PreTrainedTokenizerBase

from blora.errors import PromptError
from blora.inference.text import guard

__all__ = ["TODAY", "render"]

# What a template prints as the present time. With the real one, equal chats would get other answers on other days than
# a promise was proved on. Llama 3's template prints this date where it has no other.
TODAY = datetime(2024, 7, 26)
# Parts of a format of a date, as in `datetime.strftime`.
_DIRECTIVES = (*(f"%{letter}" for letter in "aAbBcdDeFHIjmMpRSTUwWxXyY"), "%-d", "%-m", "%-H", "%-I")


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], suffix: str = "") -> str:
    """Return a chat as text up to where the model's answer begins, with each turn's content guarded: see `guard`.

    A model that may think before it answers is told not to, because its choices are scored without thoughts.

    Args:
        tokenizer: the base model's tokenizer.
        messages: turns with role and content.
        suffix: guarded text to add to the last turn.

    Raises:
        PromptError: if the tokenizer has no chat template, a turn has no role or content, or the template refuses the
            chat or leaves out its last turn.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError(
            "got messages, but the base model has no chat template; send a prompt instead", param="messages"
        )
    turns = [dict(message) for message in messages]
    if not turns or not all(turn.get("role") and turn.get("content", "").strip() for turn in turns):
        raise PromptError(
            "got no messages, or one without a role or with blank content, expected both in each; leave blank ones out",
            param="messages",
        )
    for turn in turns:
        turn["content"] = guard(tokenizer, turn["content"])
    turns[-1]["content"] += suffix
    text, last = _rendered(tokenizer, turns), turns[-1]
    if last["content"].strip() not in text and _rendered(tokenizer, [*turns[:-1], {**last, "content": "?"}]) == text:
        raise PromptError(
            f"got messages whose last content the base model's chat template leaves out (role {last['role']!r}), "
            "expected a template that prints texts; send a prompt instead",
            param="messages",
        )
    return text


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: list[dict[str, str]]) -> str:
    try:
        template = _undated(tokenizer.get_chat_template())
        text = tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    except Exception as exc:  # templates are programs and may raise anything
        raise PromptError(f"got messages that the base model's chat template refuses: {exc}", param="messages") from exc
    return str(text)


def _undated(template: str) -> str:
    """Return a template that prints `TODAY` wherever it would print the time of its rendering."""
    if "strftime_now" not in template:
        return template
    filters = "".join(f"|replace('{part}', '{TODAY.strftime(part)}')" for part in _DIRECTIVES)
    # The line break ends the line of the macro, and is no part of what is rendered.
    return f"{{% macro strftime_now(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}\n{template}"
