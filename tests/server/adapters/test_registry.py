"""The registry: names, digests, defaults."""

import dataclasses

import pytest

from blora.decision.abstention import Policy
from blora.errors import ConfigError
from blora.server.adapters.registry import Registry
from blora.server.errors import DigestMismatchError, InvalidRequestError, UnknownAdapterError
from blora.server.monitoring.metrics import UNKNOWN_ADAPTER
from tests.server.fakes import OPEN_DIGEST, TRIAGE_DIGEST, handle

TRIAGE, OPEN = handle("triage", TRIAGE_DIGEST), handle("open", OPEN_DIGEST)


def test_an_adapter_that_never_abstains_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    held, free = handle("held", TRIAGE_DIGEST, policy=Policy(min_confidence=0.5)), handle("free", OPEN_DIGEST)
    registry = Registry([held, free])
    registry.replace(handle("held", OPEN_DIGEST))
    warned = [record.getMessage() for record in caplog.records]
    assert [text.split(" has ")[0] for text in warned] == ["Adapter free", "Adapter held"]
    assert "no calibration and no policy, so that it never abstains" in warned[0]


def test_names_and_pins_resolve() -> None:
    registry = Registry([TRIAGE, OPEN])
    assert registry.resolve("triage") is TRIAGE
    assert registry.resolve(f"open@{OPEN_DIGEST}") is OPEN
    assert list(registry) == [TRIAGE, OPEN]


def test_the_only_adapter_is_the_default() -> None:
    assert Registry([TRIAGE]).resolve(None) is TRIAGE


def test_the_configured_adapter_is_the_default() -> None:
    assert Registry([TRIAGE, OPEN], default="open").resolve(None) is OPEN


def test_without_a_default_one_must_be_named() -> None:
    registry = Registry([TRIAGE, OPEN])
    assert registry.default is None
    with pytest.raises(InvalidRequestError, match="one of open, triage") as info:
        registry.resolve(None)
    assert (info.value.code, info.value.param) == ("missing", "adapter")


@pytest.mark.parametrize("name", ["other", "TRIAGE", "triage ", "@", f"@{TRIAGE_DIGEST}", f"other@{TRIAGE_DIGEST}"])
def test_unknown_names_are_refused_and_not_repeated(name: str) -> None:
    with pytest.raises(UnknownAdapterError, match="one of open, triage") as info:
        Registry([TRIAGE, OPEN]).resolve(name)
    assert "other" not in str(info.value)


@pytest.mark.parametrize("pin", [OPEN_DIGEST, "1" * 64, TRIAGE_DIGEST.upper(), "latest"])
def test_another_digest_is_refused(pin: str) -> None:
    with pytest.raises(DigestMismatchError, match=TRIAGE_DIGEST):
        Registry([TRIAGE]).resolve(f"triage@{pin}")


@pytest.mark.parametrize("name", ["", "a b", "a@b", "-a", ".a", "a/b", "ü", "a" * 65])
def test_unusable_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="NAME=PATH"):
        Registry([handle(name, TRIAGE_DIGEST)])


def test_the_label_of_requests_without_a_loaded_adapter_is_no_name() -> None:
    with pytest.raises(ConfigError, match="got adapter name 'unknown', expected another one: the metrics"):
        Registry([handle(UNKNOWN_ADAPTER, TRIAGE_DIGEST)])


def test_a_name_serves_once() -> None:
    with pytest.raises(ConfigError, match="Two adapters are named 'triage'"):
        Registry([TRIAGE, handle("triage", OPEN_DIGEST)])


def test_an_unknown_default_is_refused() -> None:
    message = "default adapter 'other', expected one of the loaded ones, triage: .* BLORA_DEFAULT_ADAPTER"
    with pytest.raises(ConfigError, match=message):
        Registry([TRIAGE], default="other")


def test_a_handle_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TRIAGE.digest = OPEN_DIGEST  # type: ignore[misc]


def test_a_default_that_is_gone_is_not_remembered() -> None:
    registry = Registry([TRIAGE])
    registry.remove("triage")
    assert registry.default is None
    with pytest.raises(InvalidRequestError, match="No adapter is loaded"):
        registry.resolve(None)
    registry.add(OPEN)
    assert registry.resolve(None) is OPEN
    registry.add(TRIAGE)
    assert registry.default is None


@pytest.mark.parametrize("spec", [None, "other", "triage"])
def test_a_key_without_a_loaded_adapter_is_told_so_and_no_names(spec: str | None) -> None:
    message = "^The API key may use none of the loaded adapters: use another key, or load one that this key may use.$"
    with pytest.raises((InvalidRequestError, UnknownAdapterError), match=message):
        Registry([TRIAGE]).resolve(spec, {"other"})


def test_the_only_one_at_the_start_stays_the_default_beside_others() -> None:
    registry = Registry([TRIAGE])
    registry.add(OPEN)
    assert registry.default is TRIAGE
    new = dataclasses.replace(TRIAGE, digest=OPEN_DIGEST)
    registry.replace(new)
    assert registry.default is new
    assert list(registry) == [new, OPEN]


@pytest.mark.parametrize("only", [None, {"open", "triage"}])
def test_no_other_adapter_replaces_a_configured_default_until_it_comes_back(only: set[str] | None) -> None:
    registry = Registry([TRIAGE, OPEN], default="open")
    registry.remove("open")
    assert registry.default is None
    with pytest.raises(InvalidRequestError, match="the default adapter is not loaded: name one of triage") as info:
        registry.resolve(None, only)
    assert (info.value.code, info.value.param) == ("missing", "adapter")
    registry.add(OPEN)
    assert registry.resolve(None, only) is OPEN


def test_a_key_without_the_configured_default_asks_its_only_adapter() -> None:
    registry = Registry([TRIAGE, OPEN], default="open")
    assert registry.resolve(None, {"triage"}) is TRIAGE
    registry.remove("open")
    assert registry.resolve(None, {"triage"}) is TRIAGE


def test_a_configured_default_that_is_missing_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    for registry in (Registry([TRIAGE]), Registry([TRIAGE], default="triage")):
        registry.warn_of_missing_default()
    assert "default" not in caplog.text
    Registry([TRIAGE], default="triagee", may_come=True).warn_of_missing_default()
    assert "The default adapter 'triagee' is not loaded" in caplog.text
