"""Recognition of the questions that adapters with fixed choices answer, by name or by content."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from blora.config.question import QuestionConfig
from blora.questions.wording import choice_text
from blora.server.adapters.registry import Registry
from blora.server.engines.handle import AdapterHandle
from blora.server.errors import InvalidRequestError
from blora.server.prediction.decisions.question import Question, spelled

__all__ = ["Family", "Recognised", "family", "recognise", "unknown_question"]

# Most questions of a model, and most choices of a question, that an error message lists.
_MOST_LISTED = 8
# Sureness of a match by the choices alone; smaller numbers are surer.
_BY_CHOICES = 2


class Recognised(NamedTuple):
    """The adapter that answers a question, and the place of each of the question's options among its choices."""

    handle: AdapterHandle
    places: tuple[int, ...]


class Family(NamedTuple):
    """The adapters that answer the questions of a model.

    Attributes:
        name: the model's name in the request, without digests.
        own: the adapter of exactly that name, if there is one.
        members: that adapter, and those named NAME.SOMETHING, in the order of their names.
    """

    name: str
    own: AdapterHandle | None
    members: tuple[AdapterHandle, ...]


def family(registry: Registry, model: str, only: Collection[str] | None) -> Family:
    """Return the adapters that answer the questions of a model.

    Args:
        registry: the loaded adapters.
        model: NAME, NAME@DIGEST or NAME@DIGEST+CALIBRATION_DIGEST; digests pin the adapter NAME alone.
        only: names of the adapters that the requester's key opens, and with them those named NAME.SOMETHING; None for
            all.

    Raises:
        UnknownAdapterError: if there is no such adapter, or the key does not open it.
        DigestMismatchError: if the adapter's contents differ from the pinned ones.
    """
    name, pinned, _ = model.partition("@")
    members = sorted((handle for handle in registry if _below(handle.name, name)), key=lambda handle: handle.name)
    members = [handle for handle in members if only is None or any(_below(handle.name, key) for key in only)]
    if pinned or not members:
        registry.resolve(model, [handle.name for handle in members] or only)
    own = next((handle for handle in members if handle.name == name), None)
    return Family(name, own, tuple(members))


def recognise(question: Question, members: Sequence[AdapterHandle]) -> Recognised | None:
    """Return the adapter whose own question this is; None for none.

    The name counts first, then the instructions. Last come the choices alone, where one side has no instructions and
    all adapters with these choices answer the same question. A predicate, whose choices say nothing, is never
    recognised by them alone.
    """
    matches = [match for handle in members if (match := _match(question, handle)) is not None]
    if not matches:
        return None
    surest = min(sureness for sureness, _ in matches)
    found = [recognised for sureness, recognised in matches if sureness == surest]
    first = found[0].handle.config.question
    if surest == _BY_CHOICES and any(other.handle.config.question != first for other in found):
        return None
    return found[0]


def unknown_question(question: Question, asked: Family) -> InvalidRequestError:
    """Return the error for a question that no adapter of a model answers; its message lists those that they do."""
    known = [_described(handle) for handle in asked.members if handle.config.prompt.choices is not None]
    return InvalidRequestError(
        f"Model {asked.name!r} does not answer this question. It answers {_listed(known)}: ask one of these by its "
        "name or with the same instructions, and with the same values, or name a model without fixed choices.",
        code="unknown_question",
        param=question.path,
    )


def _below(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}.")


def _match(question: Question, handle: AdapterHandle) -> tuple[int, Recognised] | None:
    """Return how surely the question is the adapter's own, 0 for surest, and the recognised question."""
    choices, config = handle.config.prompt.choices, handle.config.question
    if choices is None or question.type != (config.type if config is not None else "choice"):
        return None
    places = _places(question, choices, config)
    if places is None:
        return None
    own = "" if config is None else _plain(config.instructions)
    asked = _plain(question.instructions)
    if config is not None and question.name == config.name:
        return 0, Recognised(handle, places)
    if asked and asked == own:
        return 1, Recognised(handle, places)
    if question.type != "predicate" and not (asked and own):
        return _BY_CHOICES, Recognised(handle, places)
    return None


def _places(question: Question, choices: tuple[str, ...], config: QuestionConfig | None) -> tuple[int, ...] | None:
    """Return the place of each option among the choices; None if they are not the same ones."""
    if len(question.options) != len(choices):
        return None
    offered = [choice.strip() for choice in choices]
    match question.type:
        case "predicate":
            return 0, 1
        case "choice":
            place = {choice: index for index, choice in enumerate(offered)}
            texts = [spelled(option.value) for option in question.options if isinstance(option.value, str)]
            return tuple(map(place.__getitem__, texts)) if set(texts) == set(offered) else None
        case "score":
            described = config.descriptions if config is not None else {}
            for option, choice in zip(question.options, choices, strict=True):
                meaning = described.get(choice, "")
                names = {_plain(name) for name in (choice, meaning, choice_text(choice, meaning)) if name}
                if _plain(spelled(option.value)) not in names:
                    return None
            return tuple(range(len(offered)))


def _plain(text: str) -> str:
    """Return a text with a single space for each white space, and none at the ends."""
    return " ".join(text.split())


def _described(handle: AdapterHandle) -> str:
    config, choices = handle.config.question, handle.config.prompt.choices or ()
    kind, name = (config.type, repr(config.name)) if config is not None else ("choice", "a question without a name")
    return f"{name} ({kind})" if kind == "predicate" else f"{name} ({kind} of {_listed(list(map(repr, choices)))})"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "") if names else "none"
