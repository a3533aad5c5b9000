"""The settings that describe an adapter, as frozen dataclasses; `bayesian_config.json` is their JSON form."""

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from blora.checks import require
from blora.errors import ConfigError

__all__ = [
    "FORMAT_VERSION",
    "MOST_CHOICES",
    "MOST_LENGTH_POWER",
    "MOST_TEMPERATURE",
    "AdapterConfig",
    "BaseModelRef",
    "ChoiceEnd",
    "FamilyName",
    "MethodName",
    "NormalizationName",
    "PosteriorConfig",
    "PromptConfig",
    "SamplingConfig",
    "ScoringName",
]

FORMAT_VERSION = 1
# Of a fixed label set, and of a request's choices.
MOST_CHOICES = 64
# Inducing weights of a flow, whose masks grow with their square.
MOST_FLOW_WEIGHTS = 1024
# Twice that of a mean over tokens: from sums of log-probabilities to as far on the other side.
MOST_LENGTH_POWER = 2.0
# Far beyond any sensible one, as is what it is the inverse of.
MOST_TEMPERATURE = 100.0

MethodName = Literal["bayesian", "lora"]
FamilyName = Literal["diagonal", "matrix_normal", "flow"]
ScoringName = Literal["text", "label"]
NormalizationName = Literal["none", "choice", "question"]
ChoiceEnd = Literal["none", "newline", "eos"]

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class PosteriorConfig:
    """The posterior's form; names as in arXiv:2601.21003.

    Attributes:
        method: `bayesian`, or `lora`: the same layers with the posterior collapsed to a point.
        family: q over the whitened inducing weights.
        bayesian_layers: decoder layers whose factors get a posterior; those of other adapted layers are a point, as in
            plain LoRA, and computed once for all draws. None: every adapted layer.
        rank: LoRA rank.
        alpha: LoRA scale; the update is alpha / rank * B @ A.
        inducing_rows: m.
        inducing_cols: n.
        prior_std: sigma, the prior standard deviation of every factor's entries.
        lambda_max: cap of the conditional noise scale.
        lambda_init: where it starts, below the cap.
        scale_init: standard deviation of the whitened inducing weights at the start.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    method: MethodName = "bayesian"
    family: FamilyName = "diagonal"
    bayesian_layers: tuple[int, ...] | None = None
    rank: int = 8
    alpha: float = 16.0
    inducing_rows: int = 9
    inducing_cols: int = 9
    prior_std: float = 0.05
    lambda_max: float = 1.0
    lambda_init: float = 0.1
    scale_init: float = 0.03

    def __post_init__(self) -> None:
        for name in ("rank", "inducing_rows", "inducing_cols"):
            value = getattr(self, name)
            require(1 <= value <= 1024, f"{name} = {value}", "1 to 1024")
        weights = self.inducing_rows * self.inducing_cols
        require(
            self.family != "flow" or weights <= MOST_FLOW_WEIGHTS,
            f"inducing_rows x inducing_cols = {weights} with family flow",
            f"at most {MOST_FLOW_WEIGHTS}",
        )
        for name in ("alpha", "prior_std", "lambda_max", "scale_init"):
            value = getattr(self, name)
            require(0 < value < float("inf"), f"{name} = {value}", "a positive number")
        for name, known in (("method", get_args(MethodName)), ("family", get_args(FamilyName))):
            value = getattr(self, name)
            require(value in known, f"{name} = {value!r}", f"one of {', '.join(known)}")
        require(
            self.bayesian_layers is None or (self.method == "bayesian" and len(self.bayesian_layers) > 0),
            f"bayesian_layers = {self.bayesian_layers} with method {self.method}",
            "some layers with method bayesian, or None",
        )
        require(
            0 < self.lambda_init < self.lambda_max,
            f"lambda_init = {self.lambda_init}",
            f"a positive number below lambda_max = {self.lambda_max}",
        )


def _of_one_mode(posterior: Any) -> Any:
    """Return settings from a file without the number of mixed posteriors, which earlier versions wrote."""
    if not isinstance(posterior, dict) or "modes" not in posterior:
        return posterior
    if posterior["modes"] != 1:
        raise ConfigError(
            f"got modes = {posterior['modes']!r}, expected 1: mixtures of posteriors are no longer supported; train "
            "the adapter again"
        )
    return {name: value for name, value in posterior.items() if name != "modes"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptConfig:
    """How a question becomes text, the same in training and in service.

    Attributes:
        template: wraps every plain prompt; holds {prompt} exactly once.
        choices: the fixed label set, 2 to 64 texts of which no two are the same, white space at the ends apart; None
            where each question brings its own choices.
        scoring: `text` scores the choice's own tokens, in whatever order the choices come; `label` the letter of a
            choice listed in the prompt, which depends on their order.
        normalization: what a choice's log-probability is divided by (`text` only): nothing (`none`), its own number of
            tokens (`choice`), or the mean number of tokens of the question's choices (`question`), which ranks as
            `none` does, but is not the surer the longer the choices are.
        length_power: to which power that number of tokens is raised; training finds it together with the temperature.
        choice_end: the token that is scored after the last one of every choice (`text` only): a line break or the
            tokenizer's end of sequence. With `none`, as in adapters written before there was a choice, a choice that
            another one begins with always has the higher probability.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    template: str = "{prompt}"
    choices: tuple[str, ...] | None = None
    scoring: ScoringName = "text"
    normalization: NormalizationName = "question"
    length_power: float = 1.0
    choice_end: ChoiceEnd = "none"

    def __post_init__(self) -> None:
        for name, known in (
            ("scoring", get_args(ScoringName)),
            ("normalization", get_args(NormalizationName)),
            ("choice_end", get_args(ChoiceEnd)),
        ):
            value = getattr(self, name)
            require(value in known, f"{name} = {value!r}", f"one of {', '.join(known)}")
        if self.choices is not None:
            _check_choices(self.choices)
        require(
            self.template.count("{prompt}") == 1, f"prompt template {self.template!r}", "one that holds {prompt} once"
        )
        require(
            0 <= self.length_power <= MOST_LENGTH_POWER,
            f"length_power = {self.length_power}",
            f"0 to {MOST_LENGTH_POWER:g}",
        )


def _check_choices(choices: tuple[str, ...]) -> None:
    """Holds a fixed label set to what is asked of a request's choices."""
    require(2 <= len(choices) <= MOST_CHOICES, f"{len(choices)} fixed choices", f"2 to {MOST_CHOICES}")
    stripped = [choice.strip() for choice in choices]
    require(all(stripped), "a blank fixed choice", "some text in each of them")
    twice = next((choice for choice in stripped if stripped.count(choice) > 1), None)
    require(
        twice is None,
        f"the fixed choice {twice!r} twice (white space at the ends does not count)",
        "each of them once",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """The adapter's sample bank, and what is done to each of its draws.

    Attributes:
        n_samples: draws.
        seed: that they come from.
        temperature: the log-probabilities over the choices are divided by it under every draw.
        lapse: the share of guesses that every draw's probabilities allow for: see `blora.decision.temperature`.
        stop_error: where a policy decides, draws stop as soon as the decision is settled but for this probability of
            deciding otherwise than all of them would. None: all are always drawn.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    n_samples: int = 16
    seed: int = 0
    temperature: float = 1.0
    lapse: float = 0.0
    stop_error: float | None = None

    def __post_init__(self) -> None:
        require(1 <= self.n_samples <= 1024, f"n_samples = {self.n_samples}", "1 to 1024")
        require(0 <= self.seed < 2**63, f"seed = {self.seed}", "0 to 2^63 - 1")
        require(
            1 / MOST_TEMPERATURE <= self.temperature <= MOST_TEMPERATURE,
            f"temperature = {self.temperature}",
            f"{1 / MOST_TEMPERATURE:g} to {MOST_TEMPERATURE:g}",
        )
        require(0 <= self.lapse < 1, f"lapse = {self.lapse}", "a share of at least 0 and below 1")
        require(
            self.stop_error is None or 0 < self.stop_error <= 0.5,
            f"stop_error = {self.stop_error}",
            "a number above 0, at most 0.5, or none",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModelRef:
    """The base model that an adapter belongs to.

    Attributes:
        id: hub id, or the name of the folder or embedded model.
        revision: commit or content hash it was loaded at, None where unknown.
        fingerprint: digest of its parameters' names, shapes and sampled values; a base that has it, or the same
            content hash as revision, is the right one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    id: str
    revision: str | None
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """Everything in `bayesian_config.json`.

    Attributes:
        base_model: which model the adapter belongs to.
        target_modules: the name patterns that chose the adapted modules.
        modules: (d_out, d_in) of each adapted module, by its name in the base model.
        posterior: form of the posterior.
        prompt: how a question becomes text.
        sampling: the sample bank.
        policy: thresholds below which the owner wants no answer given, None for no policy.
        training: how it was made, for the model card: settings, data digests, validation metrics.
        format_version: of this file.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    base_model: BaseModelRef
    target_modules: tuple[str, ...]
    modules: dict[str, tuple[int, int]]
    posterior: Annotated[PosteriorConfig, BeforeValidator(_of_one_mode)]
    prompt: PromptConfig
    sampling: SamplingConfig
    policy: dict[str, float] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        require(bool(self.modules), "no adapted modules", "at least one")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> "AdapterConfig":
        """Reads the JSON form back.

        Raises:
            ConfigError: naming the first field that is missing, unknown or wrong.
        """
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ConfigError(f"got a bad value at {where} ({first['msg']}), expected a valid adapter config") from exc
