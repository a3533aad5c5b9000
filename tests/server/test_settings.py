"""Settings: their sources, their checks, and their documentation."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from pydantic_settings import CliApp

from blora.hub.name import HubName
from blora.server.engines import protocol
from blora.server.settings import AdapterSource, Settings

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


def documented() -> dict[str, tuple[str, str]]:
    """Return flag and default of each row of the documentation, by variable."""
    rows = re.findall(r"^\| `(--\S+)`<br>`(BLORA_\S+)` \| (\S+)(?: [a-zA-Z ]+)? \|", DOCUMENT.read_text(), re.MULTILINE)
    return {variable: (flag, default.strip("`")) for flag, variable, default in rows}


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    flag, default = documented()[f"BLORA_{name.upper()}"]
    assert flag == f"--{name.replace('_', '-')}"
    value = getattr(Settings(), name)
    if value in (None, ()):
        assert default == "none"
    elif isinstance(value, bool):
        assert default == str(value).lower()
    elif isinstance(value, float):
        assert float(default) == value
    else:
        assert default == str(value)


def test_the_cost_of_a_fresh_draw_is_documented() -> None:
    limits = DOCUMENT.read_text().partition("## Limits\n")[2].partition("|")[0]
    costs = (protocol._FRESH_DRAW_TOKENS, protocol._FRESH_HEAD_TOKENS, 1, protocol._WEIGHTS_PER_TOKEN)
    assert re.findall(r"\d[\d,]*", limits) == [f"{cost:,}" for cost in costs]


def test_nothing_else_is_documented() -> None:
    assert documented().keys() == {f"BLORA_{name.upper()}" for name in Settings.model_fields}


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_says_what_it_means(name: str) -> None:
    assert Settings.model_fields[name].description


def test_the_environment_sets_and_flags_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLORA_PORT", "9000")
    monkeypatch.setenv("BLORA_TIMEOUT_S", "5")
    monkeypatch.setenv("BLORA_ADAPTERS", "a, b=c/d ,")
    settings = CliApp.run(Settings, cli_args=["--port", "9001", "--max-batch-tokens", "2048"])
    assert (settings.port, settings.timeout_s, settings.max_batch_tokens) == (9001, 5.0, 2048)
    assert settings.adapters == ("a", "b=c/d")


@pytest.mark.parametrize(
    "flags",
    [["--adapters", "a,b=c"], ["--adapters", "a", "--adapters", "b=c"], ["--adapters=a,b=c"]],
)
def test_adapters_are_paths_with_or_without_names(flags: list[str]) -> None:
    sources = CliApp.run(Settings, cli_args=flags).adapter_sources
    assert sources == (AdapterSource(Path("a"), None), AdapterSource(Path("c"), "b"))


def test_a_path_may_hold_an_equals_sign_after_the_name() -> None:
    [source] = Settings(adapters=("x=a=b",)).adapter_sources
    assert source == AdapterSource(Path("a=b"), "x")


def test_an_adapter_of_the_hub_has_the_repositorys_name_unless_it_gets_another() -> None:
    name = HubName("acme/tickets", "v2")
    sources = Settings(adapters=("hf://acme/tickets@v2", "support=hf://acme/tickets@v2")).adapter_sources
    assert sources == (AdapterSource(name, "tickets"), AdapterSource(name, "support"))
    with pytest.raises(ValidationError, match="expected hf://owner/name"):
        Settings(adapters=("support=hf://tickets",))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("n_samples_cap", 0),
        ("max_batch_tokens", 0),
        ("max_inputs", 0),
        ("timeout_s", 0),
        ("timeout_s", float("nan")),
        ("timeout_s", float("inf")),
        ("drain_delay_s", -1),
        ("log_level", "loud"),
        ("base_model", ""),
        ("no_such_setting", 1),
    ],
)
def test_nonsense_is_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        Settings(**{name: value})  # type: ignore[arg-type]


def test_a_queue_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ValidationError, match="--max-queue-tokens 10, expected at least --max-batch-tokens 20"):
        Settings(max_batch_tokens=20, max_queue_tokens=10)


VLLM = {"engine": "vllm", "engine_url": "http://127.0.0.1:8001", "engine_folder": "/draws"}
REDIS = {"feedback_redis": "redis://127.0.0.1:6379/0"}


@pytest.mark.parametrize(
    ("name", "value", "without_effect", "with_effect"),
    [
        ("engine_concurrency", 32, {}, VLLM),
        ("device", "cuda", VLLM, {}),
        ("prefix_cache_mib", 256, VLLM, {}),
        ("max_feedback_predictions", 10, REDIS, {}),
        ("feedback_keep_s", 60, {}, REDIS),
    ],
)
def test_a_setting_that_has_no_effect_is_refused(
    name: str,
    value: object,
    without_effect: dict[str, str],
    with_effect: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(f"BLORA_{name.upper()}", str(value))
    assert getattr(Settings(**with_effect), name) == value  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=f"got --{name.replace('_', '-')}, which has no effect with"):
        Settings(**without_effect)  # type: ignore[arg-type]


def test_the_device_on_which_vllms_base_model_is_checked_may_be_named() -> None:
    assert Settings(device="cpu", **VLLM).device == "cpu"  # type: ignore[arg-type]


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


def test_an_empty_default_adapter_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLORA_DEFAULT_ADAPTER", "")
    assert Settings().default_adapter is None


@pytest.mark.parametrize("name", ["ADAPTER_ROOT", "API_KEYS", "ENGINE_FOLDER", "FEEDBACK_REDIS_PASSWORD_FILE"])
def test_an_empty_path_is_not_the_working_directory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"BLORA_{name}", "")
    with pytest.raises(ValidationError, match="got an empty path, expected one"):
        Settings()
