"""`blora train`: a labelled data set and a frozen base model to an adapter directory."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TypeVar, get_args

from blora.command_help import CommandHelp
from blora.config import FamilyName, MethodName, PosteriorConfig
from blora.errors import ConfigError
from blora.scores import SCORES
from blora.training.commands.arguments import add_model, add_prompt, add_sampling, positive, read_prompt, read_sampling
from blora.training.config import TrainConfig

__all__ = ["SUMMARY", "main"]

T = TypeVar("T")

SUMMARY = "train a Bayesian-LoRA adapter on a labelled data set"

POSTERIOR = {
    "rank": "LoRA rank",
    "alpha": "LoRA scale: the update is alpha / rank * B @ A",
    "inducing_rows": "rows of the matrix of inducing weights that each LoRA factor has",
    "inducing_cols": "columns of that matrix",
    "prior_std": "prior standard deviation of the entries of the LoRA factors",
    "lambda_max": "largest scale of the noise around what the inducing weights predict",
    "lambda_init": "that scale at the start; must be below --lambda-max",
    "scale_init": "posterior standard deviation of the inducing weights at the start, as a multiple of the prior's",
}
TRAINING = {
    field.name: field.metadata["help"] for field in fields(TrainConfig) if field.name not in ("work_dir", "resume")
}


def _parser() -> ArgumentParser:
    parser = ArgumentParser("blora train", description=SUMMARY, formatter_class=CommandHelp)
    data = parser.add_argument_group("data")
    data.add_argument("--data", required=True, help="training rows: .jsonl, .csv, or hub data set owner/name[:config]")
    data.add_argument(
        "--validation", help="validation rows, likewise (default: rows of --data that are not trained on)"
    )
    data.add_argument("--split", default="train", help="split of a hub data set to train on")
    data.add_argument(
        "--validation-split", default="validation", help="split of a hub data set given with --validation"
    )
    data.add_argument(
        "--train-examples",
        type=positive,
        help="number of rows to train on (default: nine tenths, or all if --validation is given)",
    )
    data.add_argument(
        "--validation-examples",
        type=positive,
        help="number of rows to validate on (default: the rest, or all of --validation)",
    )
    data.add_argument(
        "--split-seed", type=int, default=0, help="seed of the random division into training and validation rows"
    )

    add_prompt(parser.add_argument_group("prompt"))

    model = parser.add_argument_group("model")
    add_model(model)
    model.add_argument(
        "--target-modules",
        help="names of the modules to adapt, separated by commas (default: PEFT's for this architecture)",
    )
    model.add_argument("--layers", default="all", help="decoder layers to adapt: all, last:N, N or FIRST-LAST")

    posterior = parser.add_argument_group("posterior")
    posterior.add_argument(
        "--method",
        choices=get_args(MethodName),
        default="bayesian",
        help="bayesian learns a posterior; lora trains plain LoRA in the same layers, to compare",
    )
    posterior.add_argument(
        "--family",
        choices=get_args(FamilyName),
        default="diagonal",
        help="family of the posterior over inducing weights",
    )
    posterior.add_argument(
        "--bayesian-layers",
        help="layers that get a posterior, written like --layers; the others get plain LoRA (default: all adapted "
        "layers)",
    )
    _add_fields(posterior, PosteriorConfig(), POSTERIOR)
    posterior.add_argument("--init-from", type=Path, help="start from the factors of a trained LoRA in this directory")

    training = parser.add_argument_group("training")
    _add_fields(training, TrainConfig(work_dir=Path()), TRAINING)
    training.add_argument("--work-dir", type=Path, help="folder for checkpoints (default: OUTPUT.work)")
    training.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the work folder")

    output = parser.add_argument_group("adapter")
    output.add_argument("--output", type=Path, required=True, help="adapter directory to write")
    add_sampling(output, n_samples=16)
    for score in SCORES.values():
        output.add_argument(score.flag, type=float, help=f"the adapter abstains if {score.failure}")
    return parser


def _add_fields(group: "ArgumentParser._ArgumentGroup", defaults: object, about: Mapping[str, str]) -> None:  # type: ignore[name-defined]
    """Add one flag for each setting of a config that `about` describes."""
    for name, text in about.items():
        value = getattr(defaults, name)
        group.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=text)


def main(argv: list[str]) -> int:
    """Trains and writes the adapter directory."""
    arguments = _parser().parse_args(argv)
    posterior = _take(PosteriorConfig, arguments, bayesian_layers=None)
    if posterior.method == "lora" and arguments.learning_rate != TrainConfig(work_dir=Path()).learning_rate:
        raise ConfigError(
            "got --learning-rate with --method lora, which has no inducing weights; expected --lora-learning-rate"
        )
    config = _take(
        TrainConfig,
        arguments,
        work_dir=arguments.work_dir or arguments.output.with_name(f"{arguments.output.name}.work"),
    )
    thresholds = {score.threshold: getattr(arguments, score.threshold) for score in SCORES.values()}
    policy = {name: value for name, value in thresholds.items() if value is not None}
    sampling = read_sampling(arguments)

    from blora.training.commands.few_rows import warn_of_few_rows
    from blora.training.recipe import Recipe, train_adapter

    recipe = Recipe(
        data=arguments.data,
        validation=arguments.validation,
        split=arguments.split,
        validation_split=arguments.validation_split,
        n_train=arguments.train_examples,
        n_validation=arguments.validation_examples,
        split_seed=arguments.split_seed,
        base_model=arguments.base_model,
        device=arguments.device,
        dtype=arguments.dtype,
        target_modules=tuple(arguments.target_modules.split(",")) if arguments.target_modules else None,
        layers=arguments.layers,
        posterior=posterior,
        bayesian_layers=arguments.bayesian_layers,
        init_from=arguments.init_from,
        prompt=read_prompt(arguments),
        default_template=arguments.template is None,
        sampling=sampling,
        policy=policy or None,
        training=config,
        argv=tuple(argv),
    )
    result = train_adapter(recipe, arguments.output)
    scores = result.metrics
    print(
        f"wrote {arguments.output}: validation accuracy {scores.accuracy:.3f}, NLL {scores.nll:.3f}, "
        f"ECE {scores.ece:.3f} at temperature {result.temperature:.2f}, "
        f"length power {result.length_power:.2f}, lapse {result.lapse:.3f}"
    )
    warn_of_few_rows(result.n_rows)
    return 0


def _take(config: type[T], arguments: Namespace, **given: object) -> T:
    values = {field.name: getattr(arguments, field.name) for field in fields(config)}  # type: ignore[arg-type]
    return config(**(values | given))
