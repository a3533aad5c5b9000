"""Recognition of the questions that adapters with fixed choices answer, by name or by content."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from blora.questions.spelling import plain, seen
from blora.questions.wording import choice_text
from blora.server.adapters.registry import Registry
from blora.server.engines.handle import AdapterHandle
from blora.server.errors import InvalidRequestError
from blora.server.prediction.choices import listed
from blora.server.prediction.decisions.question import Question, spelled
from blora.server.prediction.policies import Wording

__all__ = ["Family", "Recognised", "family", "open_member", "recognise", "unknown_question"]

# Sureness of a match by the choices alone; smaller numbers are surer.
_BY_CHOICES = 2


class Recognised(NamedTuple):
    """The adapter that answers a question.

    Attributes:
        handle: the adapter.
        places: for each option of the question, its place among the adapter's choices.
        other_wording: what the request words differently from the adapter, so that nothing is proved about the answer;
            None for nothing.
        unchecked: whether the request has instructions or descriptions where the adapter has none to compare them with.
    """

    handle: AdapterHandle
    places: tuple[int, ...]
    other_wording: Wording | None
    unchecked: bool


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
    all adapters with these choices answer the same question. Among equals, an adapter with the question's own words
    comes first. A predicate, whose choices say nothing, is never recognised by them alone, and another one's criteria
    are not those of an adapter's predicate.
    """
    fitting = [(handle, places) for handle in members if (places := _places(question, handle)) is not None]
    matches = [match for handle, places in fitting if (match := _match(question, handle, places)) is not None]
    if not matches:
        return None
    surest, found = min(matches, key=lambda match: (match[0], match[1].other_wording is not None))
    own = found.handle.config.question
    if surest == _BY_CHOICES and any(handle.config.question != own for handle, _ in fitting):
        return None
    return found


def unknown_question(question: Question, asked: Family) -> InvalidRequestError:
    """Return the error for a question that no adapter of a model answers; its message lists those that they do."""
    known = [_described(handle) for handle in asked.members if handle.config.prompt.choices is not None]
    return InvalidRequestError(
        f"Model {asked.name!r} does not answer this question. It answers {listed(known)}: ask one of these by its "
        "name or with the same instructions, with the same values and without other criteria of a predicate, or name a "
        "model without fixed choices.",
        code="unknown_question",
        param=question.path,
    )


def open_member(question: Question, asked: Family) -> AdapterHandle:
    """Return the adapter without fixed choices that answers a question which is no adapter's own.

    That is the adapter of the model's own name, or else the only such one below it.

    Raises:
        InvalidRequestError: if there is none, or the model's own name is none and several lie below it.
    """
    unfixed = [handle for handle in asked.members if handle.config.prompt.choices is None]
    if asked.own in unfixed:
        return asked.own
    if not unfixed:
        raise unknown_question(question, asked)
    if len(unfixed) > 1:
        raise InvalidRequestError(
            f"Model {asked.name!r} has no fixed choices for this question, and several adapters that answer any: "
            f"{listed([repr(handle.name) for handle in unfixed])}. Name one of them as the model.",
            code="unknown_question",
            param=question.path,
        )
    return unfixed[0]


def _below(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}.")


def _match(question: Question, handle: AdapterHandle, places: tuple[int, ...]) -> tuple[int, Recognised] | None:
    """Return how surely a question with an adapter's choices is its own, 0 for surest, and the recognised question."""
    config = handle.config.question
    own = "" if config is None else plain(config.instructions)
    asked = plain(question.instructions)
    if config is not None and question.name == config.name:
        sureness = 0
    elif asked and asked == own:
        sureness = 1
    elif question.type != "predicate" and not (asked and own):
        sureness = _BY_CHOICES
    else:
        return None
    contradicted, added = _descriptions(question, handle, places)
    if question.type == "predicate" and (contradicted or (added and asked != own)):
        return None
    other_wording: Wording | None = None
    if asked and own and asked != own:
        other_wording = "instructions"
    elif contradicted or (question.type == "predicate" and added):
        other_wording = "descriptions"
    unchecked = other_wording is None and (added or bool(asked and not own))
    return sureness, Recognised(handle, places, other_wording, unchecked)


def _descriptions(question: Question, handle: AdapterHandle, places: tuple[int, ...]) -> tuple[bool, bool]:
    """Return whether the question describes a value otherwise than the adapter, and one that the adapter does not."""
    choices, config = handle.config.prompt.choices or (), handle.config.question
    described = config.descriptions if config is not None else {}
    contradicted = added = False
    for option, place in zip(question.options, places, strict=True):
        own, asked = plain(described.get(choices[place], "")), plain(option.description)
        contradicted = contradicted or bool(own and asked and own != asked)
        added = added or bool(asked and not own)
    return contradicted, added


def _places(question: Question, handle: AdapterHandle) -> tuple[int, ...] | None:
    """Return the place of each option among the adapter's choices; None for another type or other choices."""
    choices, config = handle.config.prompt.choices, handle.config.question
    if choices is None or question.type != (config.type if config is not None else "choice"):
        return None
    if len(question.options) != len(choices):
        return None
    offered = list(map(seen, choices))
    match question.type:
        case "predicate":
            return 0, 1
        case "choice":
            place = {choice: index for index, choice in enumerate(offered)}
            texts = [seen(spelled(option.value)) for option in question.options if isinstance(option.value, str)]
            return tuple(map(place.__getitem__, texts)) if set(texts) == set(offered) else None
        case "score":
            described = config.descriptions if config is not None else {}
            for option, choice in zip(question.options, choices, strict=True):
                meaning = described.get(choice, "")
                names = {plain(name) for name in (choice, meaning, choice_text(choice, meaning)) if name}
                if plain(spelled(option.value)) not in names:
                    return None
            return tuple(range(len(offered)))


def _described(handle: AdapterHandle) -> str:
    config, choices = handle.config.question, handle.config.prompt.choices or ()
    kind, name = (config.type, repr(config.name)) if config is not None else ("choice", "a question without a name")
    return f"{name} ({kind})" if kind == "predicate" else f"{name} ({kind} of {listed(list(map(repr, choices)))})"
