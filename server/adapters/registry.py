"""The adapters that are served: immutable handles, looked up by name and digest."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from blora.errors import ConfigError
from blora.server.engines.handle import AdapterHandle
from blora.server.errors import DigestMismatchError, InvalidRequestError, UnknownAdapterError

__all__ = ["Registry", "check_name"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_name(name: str) -> None:
    """Make sure that an adapter can be called by a name.

    Raises:
        ConfigError: if it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"got adapter name {name!r}, expected up to 64 letters, digits and '._-', starting with a letter or digit"
        )


class Registry:
    """The adapters by name.

    Requests that name none go to the default: the configured one; else the one that was alone at the start, for as long
    as it stays; else the only one there is.

    Args:
        handles: with distinct names.
        default: the configured default.
        may_come: whether the default may be added later.

    Raises:
        ConfigError: if a name is unusable or taken, or the default is not among them.
    """

    def __init__(self, handles: Sequence[AdapterHandle], default: str | None = None, *, may_come: bool = False) -> None:
        self._handles: dict[str, AdapterHandle] = {}
        for handle in handles:
            self.add(handle)
        if default is not None and default not in self._handles and not may_come:
            raise ConfigError(
                f"got default adapter {default!r}, expected one of the loaded ones, {_listed(self._handles)}: load "
                "it, or choose another default"
                if self._handles
                else f"The default adapter {default!r} is not loaded, and no other is: load it."
            )
        self._configured = default
        self._first = handles[0].name if len(handles) == 1 else None

    def __iter__(self) -> Iterator[AdapterHandle]:
        return iter(self._handles.values())

    def __len__(self) -> int:
        return len(self._handles)

    def add(self, handle: AdapterHandle) -> None:
        """Serves one more.

        Raises:
            ConfigError: if its name is unusable or taken.
        """
        try:
            check_name(handle.name)
        except ConfigError as exc:
            raise ConfigError(f"{exc}: name it with NAME=PATH") from exc
        if handle.name in self._handles:
            raise ConfigError(f"Two adapters are named {handle.name!r}: give them different names with NAME=PATH.")
        self._handles[handle.name] = handle

    def replace(self, handle: AdapterHandle) -> AdapterHandle:
        """Serves another under the name of one that is served, which is returned; no request finds neither."""
        old, self._handles[handle.name] = self._handles[handle.name], handle
        return old

    def get(self, name: str) -> AdapterHandle | None:
        """The adapter of exactly that name."""
        return self._handles.get(name)

    def remove(self, name: str) -> AdapterHandle:
        """Serves one less.

        Raises:
            UnknownAdapterError: if there is none of that name.
        """
        if name not in self._handles:
            raise _unknown(self._handles)
        if name == self._first:
            self._first = None
        return self._handles.pop(name)

    @property
    def default(self) -> AdapterHandle | None:
        """The adapter for requests that name none."""
        for name in (self._configured, self._first):
            if name is not None and name in self._handles:
                return self._handles[name]
        return next(iter(self._handles.values())) if len(self._handles) == 1 else None

    def seen(self, only: Collection[str] | None) -> list[AdapterHandle]:
        """Return the adapters among these names, or all of them for None."""
        return [handle for handle in self._handles.values() if only is None or handle.name in only]

    def resolve(self, spec: str | None, only: Collection[str] | None = None) -> AdapterHandle:
        """The handle a request asks for.

        Args:
            spec: NAME, NAME@DIGEST to pin the weights, NAME@DIGEST+CALIBRATION_DIGEST to pin what decides about their
                answers too, each digest as sha256:HEX; or None for the default.
            only: names outside which an adapter is unknown to whoever asks; None for no such limit.

        Raises:
            UnknownAdapterError: if no adapter has that name.
            DigestMismatchError: if it has, with other contents than the pinned ones.
            InvalidRequestError: if none is named and there is no default.
        """
        seen = {handle.name: handle for handle in self.seen(only)}
        if spec is None:
            return self._default_of(seen, only)
        name, at, pin = spec.partition("@")
        handle = seen.get(name)
        if handle is None:
            raise _unknown(seen)
        if at:
            _check_pin(handle, pin)
        return handle

    def _default_of(self, seen: Mapping[str, AdapterHandle], only: Collection[str] | None) -> AdapterHandle:
        """The adapter for requests that name none, among those that can be seen."""
        default = self.default
        if default is not None and default.name in seen:
            return default
        if only is not None and len(seen) == 1:
            return next(iter(seen.values()))
        raise InvalidRequestError(
            f"The request names no adapter, and there is no default: name one of {_listed(seen)}."
            if seen
            else "No adapter is loaded: load one, or ask again once there is one.",
            code="missing",
            param="adapter",
        )


def _check_pin(handle: AdapterHandle, pin: str) -> None:
    """Raises DigestMismatchError unless the handle is what was pinned."""
    weights, plus, calibration = pin.partition("+")
    if weights != handle.digest:
        raise DigestMismatchError(
            f"The pinned digest is not that of the loaded adapter, {handle.digest}: correct the pin or remove it.",
            param="adapter",
        )
    if plus and calibration != handle.calibration_digest:
        raise DigestMismatchError(
            f"The pinned calibration digest is not that of the loaded adapter, {handle.calibration_digest}: its "
            "calibration or policy has changed. Look at its card, and correct the pin or remove it.",
            param="adapter",
        )


def _unknown(known: Collection[str]) -> UnknownAdapterError:
    return UnknownAdapterError(
        f"No adapter of that name is loaded: name one of {_listed(known)}."
        if known
        else "No adapter is loaded: load the one that you want first.",
        param="adapter",
    )


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
