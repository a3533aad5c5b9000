"""Settings of the server, with their defaults, units and descriptions."""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from blora.errors import ConfigError
from blora.hub.name import HubName, place_of

__all__ = ["AdapterSource", "OfflineSettings", "Settings", "first_problem"]


class AdapterSource(NamedTuple):
    """Place of one adapter, and the name it is served under; None for its folder's name."""

    path: Path | HubName
    name: str | None


class Settings(BaseSettings):
    """Settings of the server; each is a flag of `blora serve` and a variable BLORA_<NAME>.

    Flags win over the environment. Built once, when the command starts, and passed down.

    Raises:
        pydantic.ValidationError: if a value is out of range or of the wrong type.
    """

    model_config = SettingsConfigDict(
        env_prefix="BLORA_",
        extra="forbid",
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="blora serve",
        allow_inf_nan=False,
    )

    base_model: str = Field(
        "embedded",
        description="Base model: a hub id, a folder, a .gguf file, or 'embedded'; with +ENCODER, a companion too.",
        min_length=1,
    )
    device: str = Field("auto", description="Device of the base model: auto, cpu, cuda, cuda:1.")
    dtype: str = Field("auto", description="Precision of the base model: auto, float32, bfloat16, float16.")
    allow_uncalibrated: bool = Field(
        False,
        description="Serve adapters whose calibration is for another dtype or for earlier contents, with a warning in "
        "every answer.",
    )
    engine: Literal["torch", "vllm"] = Field(
        "torch", description="Engine that computes the probabilities: torch in this process, or a separate vLLM server."
    )
    engine_url: str | None = Field(
        None, description="Address of the vLLM server, such as http://HOST:8000.", pattern="^https?://"
    )
    engine_folder: Path | None = Field(
        None, description="Folder for posterior draws; vLLM has to see it under the same path."
    )
    engine_concurrency: int = Field(32, description="Most requests to vLLM at the same time.", ge=1)
    adapters: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Adapters to serve, each PATH or NAME=PATH, separated by commas; a path is a folder, or "
        "hf://owner/name[@revision] on the Hugging Face hub.",
    )
    adapter_root: Path | None = Field(
        None,
        description="Folder below which adapters may be loaded while the server runs; needs an admin's API key, or "
        "--adapter-poll-s.",
    )
    adapter_poll_s: float = Field(
        0.0,
        description="Interval, in seconds, at which to serve every adapter in --adapter-root and apply changes; 0 for "
        "never.",
        ge=0,
    )
    max_adapters: int = Field(64, description="Most adapters served at the same time.", ge=1)
    max_adapter_bytes: int = Field(
        1073741824, description="Largest adapter that may be loaded while the server runs, in bytes.", ge=1
    )
    max_adapter_memory_mib: int = Field(
        2048,
        description="Most memory for an adapter's posterior and draws, also those a request asks for, in MiB.",
        ge=1,
    )
    adapter_load_timeout_s: float = Field(60.0, description="Seconds that reading an adapter's files may take.", gt=0)
    default_adapter: str | None = Field(
        None, description="Adapter for requests that name no adapter; not needed if there is only one."
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all of them.")
    port: int = Field(8000, description="TCP port; 0 for any free one.", ge=0, le=65535)
    metrics_port: int = Field(
        0,
        description="TCP port for /metrics alone; 0 keeps /metrics on --port.",
        ge=0,
        le=65535,
    )
    playground: bool = Field(True, description="Serve the playground at / and the API page at /docs.")
    refuse_abstentions: bool = Field(
        False,
        description="Answer /v1/decisions and /v1/systemone with a refusal, without probabilities, where the policy "
        "abstains; without it with the full answer and `abstained: true`. A request's own `refuse` comes first.",
    )

    api_keys: Path | None = Field(
        None, description="File of API keys, made with `blora key`; without it no key is needed."
    )
    requests_per_minute: int = Field(
        0, description="Most requests per minute and API key, on average and for each replica; 0 for no limit.", ge=0
    )

    n_samples_cap: int = Field(64, description="Most draws (posterior samples) that one request may ask for.", ge=1)
    max_batch_tokens: int = Field(4096, description="Most padded tokens x draws in one forward pass.", ge=1)
    prefix_cache_mib: int = Field(
        256, description="Memory for the prefixes that prompts share, in MiB; 0 caches none.", ge=0
    )
    max_queue_tokens: int = Field(
        1048576, description="Most waiting tokens x draws; beyond that, requests get 429.", ge=1
    )
    max_queue_requests: int = Field(1024, description="Most waiting inputs; beyond that, requests get 429.", ge=1)
    max_input_passes: int = Field(
        16,
        description="Most work for one input, in full forward passes (--max-batch-tokens); an input that needs more "
        "gets 413.",
        ge=1,
    )
    max_queue_characters: int = Field(
        8388608, description="Most characters that wait to be tokenised; beyond that, requests get 429.", ge=1
    )
    max_inputs: int = Field(256, description="Most inputs in one batch request.", ge=1)
    max_body_bytes: int = Field(1048576, description="Largest request body, in bytes; a larger one gets 413.", ge=1)
    max_prompt_tokens: int = Field(4096, description="Longest prompt, in tokens; a longer one gets 413.", ge=1)
    max_connections: int = Field(
        1000,
        description="Most simultaneous connections; a further one replaces the connection that has been idle longest.",
        ge=1,
    )
    max_feedback_predictions: int = Field(
        100000, description="Most predictions kept for POST /v1/feedback; the oldest are forgotten first.", ge=1
    )

    feedback_rate: float = Field(
        1.0,
        description="Share of texts, chosen at random, whose outcome is requested; below 1 each answer says in "
        "feedback_requested whether its own is.",
        ge=0,
        le=1,
    )
    feedback_redis: str | None = Field(
        None,
        description="Address of a Redis server that stores predictions for feedback for all replicas, such as "
        "redis://HOST:6379/0; without it each replica stores its own.",
        pattern="^(rediss?|unix)://",
    )
    feedback_redis_password_file: Path | None = Field(
        None, description="File of the Redis password; use it in place of a password in the address."
    )
    feedback_keep_s: float = Field(
        2592000.0,
        description="Seconds after which Redis drops a prediction, and the counts of an adapter that no server has any "
        "more.",
        gt=0,
    )

    read_timeout_s: float = Field(
        20.0,
        description="Seconds for a request's headers, and then for its body, to arrive; a later body gets 408.",
        gt=0,
    )
    keep_alive_s: int = Field(
        75,
        description="Seconds that a connection may be idle; choose more than the idle timeout of the load balancer.",
        ge=1,
    )
    timeout_s: float = Field(
        30.0, description="Seconds within which a request is answered; otherwise it gets 504.", gt=0
    )
    hang_timeout_s: float = Field(
        300.0,
        description="Seconds that a forward pass may make no progress before /livez gives 503; 0 for no limit.",
        ge=0,
    )
    drain_delay_s: float = Field(
        0.0,
        description="Seconds to keep serving after SIGTERM, so that load balancers see /readyz fail.",
        ge=0,
    )
    drain_timeout_s: float = Field(30.0, description="Seconds for accepted requests to finish during shutdown.", ge=0)
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log lines to write."
    )
    otlp_endpoint: str | None = Field(
        None,
        description="Address of an OpenTelemetry collector for traces, such as http://HOST:4318; without it there are "
        "no traces.",
        pattern="^https?://",
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Format of log lines: text, or one JSON object per line."
    )

    @field_validator("default_adapter", mode="before")
    @classmethod
    def _none_if_empty(cls, value: object) -> object:
        return None if value == "" else value  # a container's variable can be emptied, not removed

    @field_validator("adapter_root", "engine_folder", "api_keys", "feedback_redis_password_file", mode="before")
    @classmethod
    def _paths_are_not_empty(cls, value: object) -> object:
        if value == "":  # which would be the working directory
            raise ValueError("got an empty path, expected one: name it, or leave the setting out")
        return value

    @field_validator("adapters", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @model_validator(mode="after")
    def _adapters_are_places(self) -> "Settings":
        try:
            _ = self.adapter_sources
        except ConfigError as exc:
            raise ValueError(str(exc)) from exc
        return self

    @model_validator(mode="after")
    def _one_full_batch_fits_the_queue(self) -> "Settings":
        if self.max_queue_tokens < self.max_batch_tokens:
            raise ValueError(
                f"got --max-queue-tokens {self.max_queue_tokens}, expected at least --max-batch-tokens "
                f"{self.max_batch_tokens}: raise the first or lower the second"
            )
        return self

    @model_validator(mode="after")
    def _metrics_have_another_port(self) -> "Settings":
        if self.metrics_port and self.metrics_port == self.port:
            raise ValueError(
                f"--metrics-port and --port are both {self.port}: choose another --metrics-port, or leave it out to "
                "have /metrics on --port"
            )
        return self

    @model_validator(mode="after")
    def _polling_needs_a_folder(self) -> "Settings":
        if self.adapter_poll_s and self.adapter_root is None:
            raise ValueError("--adapter-poll-s needs --adapter-root, the folder to look at")
        return self

    @model_validator(mode="after")
    def _vllm_needs_an_address_and_a_folder(self) -> "Settings":
        if (self.engine == "vllm") != (self.engine_url is not None and self.engine_folder is not None):
            raise ValueError("--engine vllm needs both --engine-url and --engine-folder; --engine torch takes neither")
        return self

    @model_validator(mode="after")
    def _settings_given_have_an_effect(self) -> "Settings":
        vllm, redis = self.engine == "vllm", self.feedback_redis is not None
        for name, without_effect, why in (
            ("engine_concurrency", not vllm, "with --engine torch"),
            ("device", vllm and self.device not in ("auto", "cpu"), "with --engine vllm, which has its own device"),
            ("prefix_cache_mib", vllm, "with --engine vllm, which has its own cache"),
            ("max_feedback_predictions", redis, "with --feedback-redis, where --feedback-keep-s limits what is kept"),
            ("feedback_keep_s", not redis, "without --feedback-redis"),
        ):
            if without_effect and name in self.model_fields_set:
                raise ValueError(f"got --{name.replace('_', '-')}, which has no effect {why}: leave it out")
        return self

    @model_validator(mode="after")
    def _a_password_is_one_for_redis(self) -> "Settings":
        if self.feedback_redis_password_file is not None and self.feedback_redis is None:
            raise ValueError(
                "--feedback-redis-password-file needs --feedback-redis, the address that the password is for"
            )
        return self

    @model_validator(mode="after")
    def _limits_need_keys(self) -> "Settings":
        if self.requests_per_minute and self.api_keys is None:
            raise ValueError("--requests-per-minute needs --api-keys, since the limit applies to each key")
        return self

    @property
    def adapter_sources(self) -> tuple[AdapterSource, ...]:
        """Entries of `adapters`, split at the first '='."""
        return tuple(_parse_source(entry) for entry in self.adapters)


class OfflineSettings(Settings):
    """Settings of a run without a server, which ignores the variables BLORA_* of a server on the same machine."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the constructor's arguments as the only source."""
        return (init_settings,)


def first_problem(exc: ValidationError) -> str:
    """Return the first problem of invalid settings in one line, with its flag."""
    problem = exc.errors(include_url=False)[0]
    where = "".join(f"--{str(part).replace('_', '-')}: " for part in problem["loc"][:1])
    return where + problem["msg"].removeprefix("Value error, ")


def _parse_source(entry: str) -> AdapterSource:
    name, equals, place = entry.partition("=")
    found = place_of(place if equals else entry)
    return AdapterSource(found, name if equals else found.name if isinstance(found, HubName) else None)
