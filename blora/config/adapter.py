"""The settings of an adapter, as frozen dataclasses; `bayesian_config.json` is their JSON form."""

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from blora.config.base_model import BaseModelRef
from blora.config.checks import require
from blora.config.head import MOST_CHOICES, FamiliarityConfig, HeadConfig
from blora.config.question import QuestionConfig
from blora.errors import ConfigError
from blora.questions.spelling import seen

__all__ = [
    "FORMAT_VERSION",
    "MOST_LENGTH_POWER",
    "MOST_TEMPERATURE",
    "AdapterConfig",
    "ChoiceEnd",
    "FamilyName",
    "MethodName",
    "NormalizationName",
    "PosteriorConfig",
    "PromptConfig",
    "ReadoutName",
    "SamplingConfig",
    "ScoringName",
]

FORMAT_VERSION = 3
# Limit for the inducing weights of a flow, whose masks grow with the square of the number of weights.
MOST_FLOW_WEIGHTS = 1024
# Power 0 sums log-probabilities over tokens, 1 averages them; the range is symmetric around 1.
MOST_LENGTH_POWER = 2.0
# Temperatures lie between this and its inverse, both far beyond any sensible temperature.
MOST_TEMPERATURE = 100.0

MethodName = Literal["bayesian", "lora"]
FamilyName = Literal["diagonal", "matrix_normal", "flow"]
ScoringName = Literal["text", "label"]
NormalizationName = Literal["none", "choice", "question"]
ChoiceEnd = Literal["none", "newline", "eos"]
ReadoutName = Literal["scores", "linear", "pointer"]

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class PosteriorConfig:
    """Settings of the posterior; names as in arXiv:2601.21003.

    Attributes:
        method: `bayesian`, or `lora`: the same layers with the posterior collapsed to a point.
        family: variational family q over the whitened inducing weights.
        bayesian_layers: decoder layers whose factors get a posterior, None for every adapted layer. The factors of
            other adapted layers are a point, as in plain LoRA, and these layers are computed once for all draws.
        rank: LoRA rank.
        alpha: LoRA scale; the update is alpha / rank * B @ A.
        inducing_rows: number of rows of the inducing weights, m.
        inducing_cols: number of columns of the inducing weights, n.
        prior_std: prior standard deviation of every factor's entries, sigma.
        lambda_max: upper limit of the conditional noise scale.
        lambda_init: initial conditional noise scale, below lambda_max.
        scale_init: initial standard deviation of the whitened inducing weights.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptConfig:
    """Settings that turn a question into text and choices into scores, the same in training and in service.

    Attributes:
        template: wraps every plain prompt; holds {prompt} once, or twice, so that on the second time the model reads
            every token with the whole prompt before it.
        choices: the fixed label set, 2 to 255 different texts (white space at the ends does not count); None if each
            question brings its own choices.
        scoring: `text` scores the tokens of each choice, independent of the order of the choices; `label` scores the
            letter of each choice in a list in the prompt, and depends on their order.
        normalization: divisor of a choice's log-probability (`text` only): none (`none`), the choice's number of
            tokens (`choice`), or the mean number of tokens over the question's choices (`question`), which ranks
            choices as `none` does, but does not make longer choices more confident.
        length_power: exponent of that number of tokens; training fits it together with the temperature.
        choice_end: token that is scored after the last token of every choice (`text` only): a line break or the
            tokenizer's end of sequence. With `none`, a choice that is the beginning of another choice always has the
            higher probability.
        readout: what scores the choices. `scores`: the language model, by the log-probabilities above. `linear`: a
            head on the prompt's hidden states, for the fixed choices. `pointer`: a head on each choice's own hidden
            states and log-probability.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    template: str = "{prompt}"
    choices: tuple[str, ...] | None = None
    scoring: ScoringName = "text"
    normalization: NormalizationName = "question"
    length_power: float = 1.0
    choice_end: ChoiceEnd = "none"
    readout: ReadoutName = "scores"

    def __post_init__(self) -> None:
        for name, known in (
            ("scoring", get_args(ScoringName)),
            ("normalization", get_args(NormalizationName)),
            ("choice_end", get_args(ChoiceEnd)),
            ("readout", get_args(ReadoutName)),
        ):
            value = getattr(self, name)
            require(value in known, f"{name} = {value!r}", f"one of {', '.join(known)}")
        if self.choices is not None:
            _check_choices(self.choices)
        require(
            self.readout == "scores" or self.scoring == "text",
            f"readout {self.readout} with scoring {self.scoring}",
            "scoring text, which a head needs",
        )
        require(self.readout != "linear" or self.choices is not None, "readout linear", "fixed choices with it")
        require(
            self.readout != "pointer" or self.choice_end != "none",
            f"readout pointer with choice_end {self.choice_end}",
            "newline or eos, so that every token of a choice is read",
        )
        require(
            self.template.count("{prompt}") in (1, 2),
            f"prompt template {self.template!r}",
            "one that holds {prompt} once or twice",
        )
        require(
            0 <= self.length_power <= MOST_LENGTH_POWER,
            f"length_power = {self.length_power}",
            f"0 to {MOST_LENGTH_POWER:g}",
        )


def _check_choices(choices: tuple[str, ...]) -> None:
    """Check a fixed label set by the rules for a request's choices."""
    require(2 <= len(choices) <= MOST_CHOICES, f"{len(choices)} fixed choices", f"2 to {MOST_CHOICES}")
    shown = [seen(choice) for choice in choices]
    require(all(shown), "a blank fixed choice", "some text in each of them")
    twice = next((choice for choice in shown if shown.count(choice) > 1), None)
    require(
        twice is None,
        f"the fixed choice {twice!r} twice (white space at the ends and invisible characters do not count)",
        "each of them once",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """Settings of the adapter's sample bank, and the recalibration of each draw.

    Attributes:
        n_samples: number of draws.
        seed: seed of the draws.
        temperature: divisor of the log-probabilities over the choices, applied to every draw.
        lapse: lapse rate, the share of guesses in every draw's probabilities: see `blora.decision.temperature`.
        stop_error: nominal probability that early stopping under a policy decides differently from all draws
            together, see `blora.decision.stopping`; None disables early stopping.
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
class AdapterConfig:
    """The contents of `bayesian_config.json`.

    Attributes:
        base_model: reference to the adapter's base model.
        target_modules: name patterns that selected the adapted modules.
        modules: (d_out, d_in) of each adapted module, by its name in the base model.
        posterior: settings of the posterior.
        prompt: settings of prompts and scoring.
        sampling: settings of the sample bank.
        head: settings of the decision head; None for no head. With a head, the posterior is over the head's weights,
            and the adapted modules, if any, have a plain LoRA.
        familiarity: settings of the familiarity, which reads the head's states; None without one.
        question: the question that the adapter answers, for applications that send questions; None if it has no name.
        policy: the owner's thresholds for withholding answers, None for no policy.
        training: training record for the model card: settings, data digests, validation metrics.
        format_version: version of the file format.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    base_model: BaseModelRef
    target_modules: tuple[str, ...]
    modules: dict[str, tuple[int, int]]
    posterior: PosteriorConfig
    prompt: PromptConfig
    sampling: SamplingConfig
    head: HeadConfig | None = None
    familiarity: FamiliarityConfig | None = None
    question: QuestionConfig | None = None
    policy: dict[str, float] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        require(bool(self.modules) or self.head is not None, "no adapted modules and no head", "at least one of them")
        require(
            (self.head is None) == (self.prompt.readout == "scores"),
            f"readout {self.prompt.readout} {'without' if self.head is None else 'with'} a head",
            "a head exactly for the readouts linear and pointer",
        )
        require(
            self.head is None or (self.posterior.method == "lora" and self.sampling.stop_error is None),
            f"a head above method {self.posterior.method} with stop_error {self.sampling.stop_error}",
            "method lora and no stop_error: the head has the posterior, and all of its draws take one pass",
        )
        require(
            self.head is None or self.head.companion is None or self.prompt.readout == "linear",
            f"a companion beside the readout {self.prompt.readout}",
            "a linear head, which alone reads one",
        )
        if self.question is not None:
            self.question.check(self.prompt.choices)
        require(
            self.familiarity is None or (self.head is not None and self.familiarity.depths == self.head.depths),
            "a familiarity without a head at its depths",
            "the head whose states it reads",
        )
        require(
            self.familiarity is not None or "min_familiarity" not in (self.policy or {}),
            "policy min_familiarity without a familiarity",
            "another threshold",
        )

    @property
    def companion(self) -> BaseModelRef | None:
        """Reference to the companion that the head reads; None without one."""
        return self.head.companion.model if self.head is not None and self.head.companion is not None else None

    def to_dict(self) -> dict[str, Any]:
        """Return the config as a JSON-ready dictionary."""
        return asdict(self)

    @classmethod
    def from_json(cls, text: str | bytes) -> "AdapterConfig":
        """Return the config that a JSON text holds.

        Raises:
            ConfigError: if a field is missing, unknown or wrong; the message names the first one.
        """
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ConfigError(f"got a bad value at {where} ({first['msg']}), expected a valid adapter config") from exc
