"""Reading of the parts of a request one at a time, with errors that name the path of the first wrong value."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from blora.server.errors import InvalidRequestError
from blora.server.schemas.decisions.requests import as_text
from blora.server.schemas.requests import Request
from blora.server.schemas.validation import describe, invalid_request

__all__ = ["no_images", "read_content", "read_kind", "text_at"]

T = TypeVar("T", bound=Request)

# Types of the protocols' parts and questions that are about images.
_IMAGES = frozenset({"input_image", "box"})


def read(item: object, kind: type[T], at: str) -> T:
    """Return a part of a request as an instance of its class.

    Args:
        item: the part, as parsed from JSON.
        kind: its class.
        at: its path in the request.

    Raises:
        InvalidRequestError: naming the path of the first wrong value.
    """
    try:
        return kind.model_validate(item)
    except ValidationError as exc:
        raise invalid_request(exc.errors(include_url=False), at=at) from exc


def read_kind(item: object, kinds: Mapping[str, type[T]], at: str, field: str = "type") -> T:
    """Return a part of a request as an instance of the class that one of its fields names.

    Args:
        item: the part, as parsed from JSON.
        kinds: the classes, by the values of the field.
        at: its path in the request.
        field: the field.

    Raises:
        InvalidRequestError: naming the path of the first wrong value.
    """
    if not isinstance(item, dict):
        raise _wrong(item, "an object", at)
    if field not in item:
        raise InvalidRequestError("This field is missing: add it.", code="missing", param=f"{at}.{field}")
    name = item[field]
    if isinstance(name, str) and name in _IMAGES:
        raise no_images(at)
    if not isinstance(name, str) or name not in kinds:
        expected = " or ".join(map(repr, kinds))
        raise InvalidRequestError(
            f"got {describe(name)}, expected {expected}: send one of these", code="invalid_value", param=f"{at}.{field}"
        )
    return read(item, kinds[name], at)


def text_at(content: Any, at: str) -> str:
    """Return a text as it is, and other JSON in its usual notation.

    Args:
        content: the text or the JSON.
        at: its path in the request.

    Raises:
        InvalidRequestError: if a number in it is not finite.
    """
    try:
        return as_text(content)
    except PydanticCustomError as exc:
        raise InvalidRequestError(exc.message(), code="not_finite", param=at) from exc


def read_content(
    content: object,
    kinds: Mapping[str, type[T]],
    text_of: Callable[[T, str], str],
    at: str,
    *,
    may_be_blank: bool = False,
) -> str:
    """Return the text of a content, which is a text or a list of parts, one on each line.

    Args:
        content: the content, as parsed from JSON.
        kinds: the classes of its parts, by their types.
        text_of: returns the text of a part, which has a path.
        at: its path in the request.
        may_be_blank: whether the text may be empty.

    Raises:
        InvalidRequestError: if it is empty and may not be, or naming the path of the first wrong value.
    """
    if isinstance(content, str):
        text = content
    elif isinstance(content, list):
        paths = (f"{at}[{index}]" for index in range(len(content)))
        text = "\n".join(text_of(read_kind(part, kinds, of), of) for part, of in zip(content, paths, strict=True))
    else:
        raise _wrong(content, "a string or a list of parts", at)
    if not may_be_blank and not text.strip():
        raise InvalidRequestError("This text is empty: fill it.", code="empty_string", param=at)
    return text


def no_images(at: str) -> InvalidRequestError:
    """Return the error for an image."""
    return InvalidRequestError(
        "This server reads text only: leave images and questions about them out, or describe them in words.",
        code="not_text",
        param=at,
    )


def _wrong(value: object, expected: str, at: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"got {describe(value)}, expected {expected}: correct the field", code="invalid_type", param=at
    )
