"""The labels by which clients report the outcome of a typed question, beside the choices as its adapter reads them."""

from collections.abc import Sequence

from blora.server.engines.handle import AdapterHandle
from blora.server.monitoring.ledgers.protocol import Label
from blora.server.prediction.decisions.question import Option, Question, predicate_options, spelled

__all__ = ["further_labels", "own_labels"]


def further_labels(question: Question, choices: Sequence[str], places: Sequence[int]) -> dict[Label, int]:
    """Return the labels of a question's choices that differ from their texts, and each one's place among the choices.

    These are the values of the options, the texts of booleans, and the numbers of a score's levels: as numbers, and as
    texts unless one is the label of another level. A value takes precedence over what else the same label may mean.

    Args:
        question: the question.
        choices: the choices as the adapter reads them.
        places: for each option of the question, its place among the choices.

    >>> from blora.server.prediction.decisions.question import Option
    >>> options = Option("low"), Option("high", "more than ten")
    >>> asked = Question(path="questions[0]", type="score", instructions="How much?", options=options)
    >>> further_labels(asked, ["low", "high: more than ten"], [0, 1])
    {0: 0, 1: 1, '0': 0, '1': 1, 'high': 1}
    """
    values = [value if isinstance(value := option.value, bool) else spelled(value) for option in question.options]
    labels: dict[Label, int] = {}
    if question.type == "score":
        numbers = list(map(str, range(len(values))))
        labels |= zip(range(len(values)), places, strict=True)
        if all(value not in numbers or value == number for value, number in zip(values, numbers, strict=True)):
            labels |= zip(numbers, places, strict=True)
    exact = dict[Label, int](zip(values, places, strict=True))
    labels |= {spelled(value): place for value, place in exact.items() if isinstance(value, bool)}
    labels |= exact
    return {label: place for label, place in labels.items() if label != choices[place].strip()}


def own_labels(handle: AdapterHandle, choices: Sequence[str]) -> dict[Label, int]:
    """Return the further labels of an adapter's own question, and each one's place among the offered choices.

    There are none if the adapter's settings name no question, or if other choices than its own are offered. A number is
    none where one level has the number that is another's text: only typed answers number their levels.

    Args:
        handle: the adapter.
        choices: the offered choices.
    """
    config, own = handle.config.question, handle.config.prompt.choices
    if config is None or own is None:
        return {}
    place = {choice.strip(): index for index, choice in enumerate(choices)}
    if {choice.strip() for choice in own} != set(place):
        return {}
    options = predicate_options() if config.type == "predicate" else tuple(map(Option, own))
    question = Question(path="", type=config.type, instructions=config.instructions, options=options)
    labels = further_labels(question, choices, [place[choice.strip()] for choice in own])
    if any(str(number) in place and own[number].strip() != str(number) for number in range(len(own))):
        return {label: index for label, index in labels.items() if isinstance(label, str | bool)}
    return labels
