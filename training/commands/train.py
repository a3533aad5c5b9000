"""`blora train`: a labelled data set and a frozen base model to an adapter directory."""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TypeVar, get_args

from blora.config import FamilyName, MethodName, PosteriorConfig
from blora.errors import ConfigError
from blora.training.commands.arguments import add_model, add_prompt, add_sampling, positive, read_prompt, read_sampling
from blora.training.config import TrainConfig

__all__ = ["SUMMARY", "main"]

T = TypeVar("T")

SUMMARY = "train a Bayesian-LoRA adapter on a labelled data set"

POSTERIOR = {
    "modes": "posteriors that are mixed, each trained on its own batches",
    "rank": "LoRA rank",
    "alpha": "LoRA scale; the update is alpha / rank * B @ A",
    "inducing_rows": "m, rows of a factor's inducing weights",
    "inducing_cols": "n, columns of a factor's inducing weights",
    "prior_std": "sigma, the prior standard deviation of every factor's entries",
    "lambda_max": "cap of the conditional noise scale",
    "lambda_init": "conditional noise scale at the start, below the cap",
    "scale_init": "standard deviation of the whitened inducing weights at the start",
}
TRAINING = {
    field.name: field.metadata["help"] for field in fields(TrainConfig) if field.name not in ("work_dir", "resume")
}


def _parser() -> ArgumentParser:
    parser = ArgumentParser("blora train", description=SUMMARY, formatter_class=ArgumentDefaultsHelpFormatter)
    data = parser.add_argument_group("data")
    data.add_argument("--data", required=True, help=".jsonl, .csv, or hub data set owner/name[:config]")
    data.add_argument("--validation", help="the same; by default rows of --data that are not trained on")
    data.add_argument("--split", default="train", help="split of a hub data set")
    data.add_argument("--validation-split", default="validation", help="split of a hub validation set")
    data.add_argument("--train-examples", type=positive, help="rows to train on (default: nine tenths, or all)")
    data.add_argument("--validation-examples", type=positive, help="rows to validate on (default: the rest, or all)")
    data.add_argument("--split-seed", type=int, default=0, help="of the random order in which rows are divided")

    add_prompt(parser.add_argument_group("prompt"))

    model = parser.add_argument_group("model")
    add_model(model)
    model.add_argument("--target-modules", help="module names, separated by commas (default: PEFT's own)")
    model.add_argument("--layers", default="all", help="all, last:N, N or FIRST-LAST")

    posterior = parser.add_argument_group("posterior")
    posterior.add_argument("--method", choices=get_args(MethodName), default="bayesian", help="lora: collapsed")
    posterior.add_argument("--family", choices=get_args(FamilyName), default="diagonal", help="of q(V)")
    posterior.add_argument("--bayesian-layers", help="as --layers: those that get a posterior, the others plain LoRA")
    _add_fields(posterior, PosteriorConfig(), POSTERIOR)
    posterior.add_argument("--init-from", type=Path, help="a LoRA directory whose factors are the mean to start from")

    training = parser.add_argument_group("training")
    _add_fields(training, TrainConfig(work_dir=Path()), TRAINING)
    training.add_argument("--work-dir", type=Path, help="checkpoints (default: OUTPUT.work)")
    training.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the work folder")

    output = parser.add_argument_group("adapter")
    output.add_argument("--output", type=Path, required=True, help="the adapter directory")
    add_sampling(output, n_samples=16)
    for name in ("min_confidence", "max_predictive_entropy", "max_mutual_information"):
        output.add_argument(f"--{name.replace('_', '-')}", type=float, help="threshold of the adapter's policy")
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
    policy = {
        name: value
        for name in ("min_confidence", "max_predictive_entropy", "max_mutual_information")
        if (value := getattr(arguments, name)) is not None
    }
    sampling = read_sampling(arguments)

    from blora.training.commands.few_rows import warn_of_few_rows
    from blora.training.commands.silence import warn_of_silence
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
    warn_of_silence(policy or None, arguments.choices, result.lapse)
    return 0


def _take(config: type[T], arguments: Namespace, **given: object) -> T:
    values = {field.name: getattr(arguments, field.name) for field in fields(config)}  # type: ignore[arg-type]
    return config(**(values | given))
