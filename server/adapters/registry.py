"""The registry of served adapters: immutable handles, looked up by name and digest."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence

from blora.errors import ConfigError
from blora.server.engines.handle import AdapterHandle
from blora.server.errors import DigestMismatchError, InvalidRequestError, UnknownAdapterError
from blora.server.monitoring.metrics import UNKNOWN_ADAPTER
from blora.server.names import check_name

__all__ = ["Registry", "check_adapter_name"]

logger = logging.getLogger(__name__)


def check_adapter_name(name: str) -> None:
    """Raise an error if a name cannot be an adapter's name.

    Raises:
        ConfigError: if the name is invalid.
    """
    check_name("adapter", name)
    if name == UNKNOWN_ADAPTER:
        raise ConfigError(
            f"got adapter name {name!r}, expected another one: the metrics count requests without a loaded adapter "
            "under this name"
        )


class Registry:
    """The served adapters by name.

    Requests that name no adapter go to the default: the configured one and no other, if one is configured; otherwise
    the only adapter at the start, while it is loaded; otherwise the only adapter loaded.

    Args:
        handles: handles with distinct names.
        default: name of the configured default.
        may_come: whether the default may be loaded later.

    Raises:
        ConfigError: if a name is invalid or occurs twice, or the default is missing.
    """

    def __init__(self, handles: Sequence[AdapterHandle], default: str | None = None, *, may_come: bool = False) -> None:
        self._handles: dict[str, AdapterHandle] = {}
        for handle in handles:
            self.add(handle)
        if default is not None and default not in self._handles and not may_come:
            raise ConfigError(
                f"got default adapter {default!r}, expected one of the loaded ones, {_listed(self._handles)}: load "
                "it, or choose another default with --default-adapter or BLORA_DEFAULT_ADAPTER"
                if self._handles
                else f"The default adapter {default!r} is not loaded, and no other is: load it."
            )
        self._configured = default
        self._first = handles[0].name if len(handles) == 1 else None

    def warn_of_missing_default(self) -> None:
        """Log a warning if the configured default is not loaded."""
        if self._configured is not None and self.default is None:
            logger.warning(
                "The default adapter %r is not loaded, so that requests that name no adapter are refused: load it, or "
                "correct --default-adapter",
                self._configured,
            )

    def __iter__(self) -> Iterator[AdapterHandle]:
        return iter(self._handles.values())

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, handle: AdapterHandle) -> None:
        """Add an adapter.

        Raises:
            ConfigError: if its name is invalid or taken.
        """
        try:
            check_adapter_name(handle.name)
        except ConfigError as exc:
            raise ConfigError(f"{exc}: name it with NAME=PATH") from exc
        if handle.name in self._handles:
            raise ConfigError(f"Two adapters are named {handle.name!r}: give them different names with NAME=PATH.")
        self._handles[handle.name] = handle
        _warn_without_policy(handle)

    def replace(self, handle: AdapterHandle) -> None:
        """Replace the adapter of the same name in one step."""
        self._handles[handle.name] = handle
        _warn_without_policy(handle)

    def get(self, name: str) -> AdapterHandle | None:
        """Return the adapter of exactly that name, or None."""
        return self._handles.get(name)

    def remove(self, name: str) -> AdapterHandle:
        """Remove an adapter and return its handle.

        Raises:
            UnknownAdapterError: if no adapter has that name.
        """
        if name not in self._handles:
            raise _unknown(self._handles)
        if name == self._first:
            self._first = None
        return self._handles.pop(name)

    @property
    def default(self) -> AdapterHandle | None:
        """The adapter for requests that name no adapter."""
        name = self._first if self._configured is None else self._configured
        if name is not None:
            return self._handles.get(name)
        return next(iter(self._handles.values())) if len(self._handles) == 1 else None

    def seen(self, only: Collection[str] | None) -> list[AdapterHandle]:
        """Return the adapters with these names, or all adapters for None."""
        return [handle for handle in self._handles.values() if only is None or handle.name in only]

    def resolve(self, spec: str | None, only: Collection[str] | None = None) -> AdapterHandle:
        """Return the handle of the adapter that a request names.

        Args:
            spec: NAME, NAME@DIGEST to pin the weights, or NAME@DIGEST+CALIBRATION_DIGEST to pin calibration and policy
                too, with digests as sha256:HEX; None for the default.
            only: names of the adapters that the requester may see; None for all.

        Raises:
            UnknownAdapterError: if no visible adapter has that name.
            DigestMismatchError: if the adapter's contents differ from the pinned ones.
            InvalidRequestError: if the request names no adapter and there is no default.
        """
        seen = {handle.name: handle for handle in self.seen(only)}
        if spec is None:
            return self._default_of(seen, only)
        name, at, pin = spec.partition("@")
        handle = seen.get(name)
        if handle is None:
            raise _unknown(seen, bound=only is not None)
        if at:
            _check_pin(handle, pin)
        return handle

    def _default_of(self, seen: Mapping[str, AdapterHandle], only: Collection[str] | None) -> AdapterHandle:
        """Return the adapter for requests that name no adapter, among the visible ones."""
        default = self.default
        if default is not None and default.name in seen:
            return default
        configured = self._configured if only is None or self._configured in only else None
        if configured is None and only is not None and len(seen) == 1:
            return next(iter(seen.values()))
        why = "there is no default" if configured is None else "the default adapter is not loaded"
        raise InvalidRequestError(
            f"The request names no adapter, and {why}: name one of {_listed(seen)}."
            if seen
            else _none_to_use(bound=only is not None),
            code="missing",
            param="adapter",
        )


def _check_pin(handle: AdapterHandle, pin: str) -> None:
    """Raise DigestMismatchError if the handle differs from the pinned digests."""
    weights, plus, calibration = pin.partition("+")
    if weights != handle.digest:
        raise DigestMismatchError(
            f"The pinned digest differs from the loaded adapter's, {handle.digest}: correct the pin or remove it.",
            param="adapter",
        )
    if plus and calibration != handle.calibration_digest:
        raise DigestMismatchError(
            f"The pinned calibration digest differs from the loaded adapter's, {handle.calibration_digest}: the "
            "calibration or policy has changed. Look at the adapter's card, and correct the pin or remove it.",
            param="adapter",
        )


def _unknown(known: Collection[str], *, bound: bool = False) -> UnknownAdapterError:
    return UnknownAdapterError(
        f"No adapter of that name is loaded: name one of {_listed(known)}." if known else _none_to_use(bound=bound),
        param="adapter",
    )


def _none_to_use(*, bound: bool) -> str:
    """Return the message for a requester without any adapter to use, whose key is perhaps bound to some adapters."""
    if bound:
        return "The API key may use none of the loaded adapters: use another key, or load one that this key may use."
    return "No adapter is loaded: load one, or try again later."


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))


def _warn_without_policy(handle: AdapterHandle) -> None:
    if not handle.may_abstain:
        logger.warning(
            "Adapter %s has no calibration and no policy, so that it never abstains unless a request says when: run "
            "blora calibrate",
            handle.name,
        )
