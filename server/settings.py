"""What an operator may set: every knob of the server, its default, its unit and its meaning."""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

__all__ = ["AdapterSource", "Settings"]


class AdapterSource(NamedTuple):
    """Where one adapter comes from, and the name it is served under (None: its folder's name)."""

    path: Path
    name: str | None


class Settings(BaseSettings):
    """The server's settings; each is a flag of `blora serve` and a variable BLORA_<NAME>.

    Flags win over the environment. Built once at the door and passed down.

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
        description="Base model: a hub id, a folder, a .gguf file, or 'embedded'.",
        min_length=1,
    )
    device: str = Field("auto", description="Device of the base model: auto, cpu, cuda, cuda:1.")
    dtype: str = Field("auto", description="Precision of the base model: auto, float32, bfloat16, float16.")
    allow_uncalibrated: bool = Field(
        False,
        description="Serve adapters whose calibration is for another dtype or other contents, and mark every answer.",
    )
    engine: Literal["torch", "vllm"] = Field(
        "torch", description="What computes: torch in this process, or a vLLM elsewhere."
    )
    engine_url: str | None = Field(None, description="Address of that vLLM, as http://HOST:8000.", pattern="^https?://")
    engine_folder: Path | None = Field(
        None, description="Folder that this server writes draws into and that vLLM reads under the same path."
    )
    engine_concurrency: int = Field(32, description="Most requests to vLLM at once.", ge=1)
    adapters: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Adapters to serve, each PATH or NAME=PATH, separated by commas."
    )
    adapter_root: Path | None = Field(
        None, description="Folder below which adapters may be loaded while the server runs; without it none are."
    )
    adapter_poll_s: float = Field(
        0.0, description="Seconds between looks at adapter_root, of which all adapters are served; 0 looks never.", ge=0
    )
    max_adapters: int = Field(64, description="Most adapters that are served at once.", ge=1)
    max_adapter_bytes: int = Field(
        1073741824, description="Largest adapter that is loaded while the server runs, in bytes.", ge=1
    )
    max_adapter_memory_mib: int = Field(
        2048, description="Most memory that an adapter's posterior and draws may take, in MiB.", ge=1
    )
    adapter_load_timeout_s: float = Field(
        60.0, description="Seconds in which an adapter's files are read, or it is given up.", gt=0
    )
    default_adapter: str | None = Field(
        None, description="Adapter that answers requests naming none; one alone needs no mention."
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every one.")
    port: int = Field(8000, description="TCP port; 0 for any free one.", ge=0, le=65535)
    metrics_port: int = Field(
        0,
        description="TCP port that /metrics is on, and nothing else; 0 leaves it on the one of --port.",
        ge=0,
        le=65535,
    )

    api_keys: Path | None = Field(
        None, description="File of the API keys that may ask, made with `blora key`; without it anyone may."
    )
    requests_per_minute: int = Field(0, description="Most requests a minute with one API key; 0 for no limit.", ge=0)

    n_samples_cap: int = Field(64, description="Most posterior draws that one request may ask for.", ge=1)
    max_batch_tokens: int = Field(4096, description="Most padded tokens x draws in one forward pass.", ge=1)
    prefix_cache_mib: int = Field(
        256, description="Most memory for what prompts begin with, in MiB; 0 remembers nothing.", ge=0
    )
    max_queue_tokens: int = Field(1048576, description="Most tokens x draws waiting; beyond it requests get 429.", ge=1)
    max_queue_requests: int = Field(1024, description="Most inputs waiting; beyond it requests get 429.", ge=1)
    max_input_passes: int = Field(
        16,
        description="Most work of one input, in forward passes of max_batch_tokens; beyond it requests get 413.",
        ge=1,
    )
    max_queue_characters: int = Field(
        8388608, description="Most characters waiting to be tokenised; beyond it requests get 429.", ge=1
    )
    max_inputs: int = Field(256, description="Most inputs in one batch request.", ge=1)
    max_body_bytes: int = Field(
        1048576, description="Largest request body, in bytes; beyond it requests get 413.", ge=1
    )
    max_prompt_tokens: int = Field(4096, description="Longest prompt, in tokens; beyond it requests get 413.", ge=1)
    max_connections: int = Field(
        1000, description="Most connections at once; one more takes the place of the one longest idle.", ge=1
    )
    max_feedback_predictions: int = Field(
        100000, description="Most predictions that wait for POST /v1/feedback; the oldest are forgotten first.", ge=1
    )

    feedback_rate: float = Field(
        1.0,
        description="Share of answers whose outcome is asked for, drawn at random; below 1 each answer says whether.",
        ge=0,
        le=1,
    )
    feedback_redis: str | None = Field(
        None,
        description="Address of a Redis in which all replicas keep predictions, as redis://HOST:6379/0; without it "
        "each keeps its own.",
        pattern="^(rediss?|unix)://",
    )
    feedback_redis_password_file: Path | None = Field(
        None, description="File that holds the password of that Redis, so that the address need not."
    )
    feedback_keep_s: float = Field(
        2592000.0, description="Seconds after which Redis forgets a prediction or a count.", gt=0
    )

    read_timeout_s: float = Field(
        20.0, description="Seconds in which a request's headers, and then its body, have arrived, or get 408.", gt=0
    )
    keep_alive_s: int = Field(
        75, description="Seconds that a connection may be idle; more than the load balancer in front allows.", ge=1
    )
    timeout_s: float = Field(30.0, description="Seconds in which a request is answered, or gets 504.", gt=0)
    hang_timeout_s: float = Field(
        300.0,
        description="Seconds without progress of a forward pass after which /livez gets 503; 0 for never.",
        ge=0,
    )
    drain_delay_s: float = Field(
        0.0,
        description="Seconds to keep serving after SIGTERM, for load balancers to notice /readyz.",
        ge=0,
    )
    drain_timeout_s: float = Field(
        30.0, description="Seconds to finish accepted requests in, once serving stops.", ge=0
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line to write."
    )
    otlp_endpoint: str | None = Field(
        None,
        description="Address of an OpenTelemetry collector that gets traces, as http://HOST:4318; without it there are "
        "none.",
        pattern="^https?://",
    )
    log_format: Literal["text", "json"] = Field("text", description="How a log line looks: text, or an object of JSON.")

    @field_validator("adapters", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @model_validator(mode="after")
    def _one_full_batch_fits_the_queue(self) -> "Settings":
        if self.max_queue_tokens < self.max_batch_tokens:
            raise ValueError(
                f"got max_queue_tokens={self.max_queue_tokens}, expected at least "
                f"max_batch_tokens={self.max_batch_tokens}: raise the first or lower the second"
            )
        return self

    @model_validator(mode="after")
    def _metrics_have_another_port(self) -> "Settings":
        if self.metrics_port and self.metrics_port == self.port:
            raise ValueError(
                f"got metrics_port={self.metrics_port}, which is port itself, expected another one: choose one, or "
                "leave metrics_port out to have /metrics on port"
            )
        return self

    @model_validator(mode="after")
    def _polling_needs_a_folder(self) -> "Settings":
        if self.adapter_poll_s and self.adapter_root is None:
            raise ValueError(
                f"got adapter_poll_s={self.adapter_poll_s:g} without adapter_root, expected the folder to look at"
            )
        return self

    @model_validator(mode="after")
    def _vllm_needs_an_address_and_a_folder(self) -> "Settings":
        if (self.engine == "vllm") != (self.engine_url is not None and self.engine_folder is not None):
            raise ValueError(
                f"got engine={self.engine} with engine_url={self.engine_url} and engine_folder={self.engine_folder}, "
                "expected both for vllm and neither for torch"
            )
        return self

    @model_validator(mode="after")
    def _a_password_is_one_for_redis(self) -> "Settings":
        if self.feedback_redis_password_file is not None and self.feedback_redis is None:
            raise ValueError(
                f"got feedback_redis_password_file={self.feedback_redis_password_file} without feedback_redis, "
                "expected the address that the password is for"
            )
        return self

    @model_validator(mode="after")
    def _limits_need_keys(self) -> "Settings":
        if self.requests_per_minute and self.api_keys is None:
            raise ValueError(
                f"got requests_per_minute={self.requests_per_minute} without api_keys, expected a key file: a limit is "
                "one for each key"
            )
        return self

    @property
    def adapter_sources(self) -> tuple[AdapterSource, ...]:
        """The entries of `adapters`, split at the first '='."""
        return tuple(_parse_source(entry) for entry in self.adapters)


def _parse_source(entry: str) -> AdapterSource:
    name, equals, path = entry.partition("=")
    return AdapterSource(Path(path), name) if equals else AdapterSource(Path(entry), None)
