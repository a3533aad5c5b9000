"""`blora train`: train an adapter on a labelled data set and a frozen base model."""

from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import get_args

from blora.cli import CommandHelp, add_model
from blora.config import FamilyName, MethodName, PosteriorConfig
from blora.questions.columns import add_columns
from blora.scores import SCORES
from blora.training.commands.arguments import (
    add_prompt,
    add_sampling,
    names,
    parse,
    positive,
    settings_of,
)
from blora.training.config import TRACKERS, HeadChoice, TrainConfig

__all__ = ["SUMMARY", "main"]

SUMMARY = "train an adapter, a decision head or a posterior over a LoRA, on a labelled data set"

POSTERIOR = {
    "rank": "LoRA rank",
    "alpha": "LoRA scale: the update is alpha / rank * B @ A",
    "inducing_rows": "rows of each LoRA factor's matrix of inducing weights",
    "inducing_cols": "columns of each LoRA factor's matrix of inducing weights",
    "prior_std": "prior standard deviation of the entries of the LoRA factors",
    "lambda_max": "upper limit of the scale of the conditional noise given the inducing weights",
    "lambda_init": "initial scale of the conditional noise; must be below --lambda-max",
    "scale_init": "initial posterior standard deviation of the inducing weights, as a multiple of the prior's",
}
TRAINING = {field.name: field.metadata["help"] for field in fields(TrainConfig)}


def _parser() -> ArgumentParser:
    parser = ArgumentParser("blora train", description=SUMMARY, formatter_class=CommandHelp)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", required=True, help="training rows: .jsonl, .csv, .parquet, or hub data set owner/name[:config]"
    )
    data.add_argument(
        "--validation",
        help="validation rows, in the same forms, which are not trained on (default: rows of --data that are set "
        "aside; a head alone is fitted again in the end, to them too)",
    )
    data.add_argument("--split", default="train", help="split of a hub data set to train on")
    data.add_argument(
        "--validation-split", default="validation", help="split of a hub data set given with --validation"
    )
    data.add_argument(
        "--train-examples",
        type=positive,
        help="number of rows to train on, drawn at random, or from the top if --validation is given (default: the "
        "rows that --validation-examples leaves, nine tenths without it, or all if --validation is given)",
    )
    data.add_argument(
        "--validation-examples",
        type=positive,
        help="number of rows to validate on, drawn at random, or from the top of --validation (default: the rest, or "
        "all of --validation)",
    )
    data.add_argument(
        "--split-seed", type=int, default=0, help="seed of the random division into training and validation rows"
    )
    add_columns(data)

    prompt = parser.add_argument_group("prompt")
    add_prompt(prompt)
    prompt.add_argument(
        "--question",
        type=Path,
        help="JSON file of the one question that the adapter answers, with type, name, instructions and choices or "
        "levels, as a request to /v1/decisions sends it (default: a question without a name, or all questions of rows "
        "that are requests)",
    )

    model = parser.add_argument_group("model")
    add_model(model, default=None, own="that of an --init-from that blora train made, otherwise embedded")
    model.add_argument(
        "--target-modules",
        type=names,
        help="names of the modules to adapt, separated by commas (default: those of --init-from; otherwise every "
        "linear one below a head, or PEFT's for this architecture, else those of queries and values)",
    )
    model.add_argument(
        "--head",
        choices=get_args(HeadChoice),
        default="auto",
        help="decision head on the base model's hidden states: linear reads the prompt, for fixed choices; pointer "
        "reads each choice; none leaves the answer to the language model's scores, under a posterior over a LoRA; auto "
        "takes linear or pointer, or none if a setting of such a posterior or of these scores is given",
    )
    model.add_argument(
        "--depths",
        help="layers whose states the head reads: indices separated by commas, or last for the input of the output "
        "head alone, all that vLLM gives (default: five, from a third of the layers to the last)",
    )
    model.add_argument(
        "--layers",
        help="decoder layers to adapt by a LoRA: all, last:N, N, FIRST-LAST, or none; below a head the LoRA stays only "
        "if the validation NLL is clearly lower with it (default: those of --init-from; otherwise all with "
        "--head none, --rank, --alpha, --target-modules or --lora-learning-rate; otherwise none)",
    )

    posterior = parser.add_argument_group("posterior")
    posterior.add_argument(
        "--method",
        choices=get_args(MethodName),
        help="bayesian learns a posterior over a LoRA; lora trains plain LoRA in the same layers, for comparison; both "
        "mean --head none (default: bayesian, if there is no head)",
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
    posterior.add_argument(
        "--init-from", type=Path, help="directory of a trained LoRA whose factors are the initial mean"
    )

    training = parser.add_argument_group("training")
    with_own_flags = ("work_dir", "resume", "report_to")
    numbers = {name: text for name, text in TRAINING.items() if name not in with_own_flags}
    _add_fields(training, TrainConfig(work_dir=Path()), numbers)
    training.add_argument(
        "--work-dir", type=Path, help="folder for checkpoints, apart from --output (default: OUTPUT.work)"
    )
    training.add_argument("--resume", action="store_true", help=TRAINING["resume"])
    training.add_argument("--report-to", choices=TRACKERS, default="none", help=TRAINING["report_to"])

    output = parser.add_argument_group("adapter")
    output.add_argument("--output", type=Path, required=True, help="adapter directory to write")
    add_sampling(output, n_samples=None)
    for score in SCORES.values():
        output.add_argument(
            score.flag, type=float, help=f"the adapter abstains if {score.failure}, until it is calibrated"
        )
    return parser


def _add_fields(group: "ArgumentParser._ArgumentGroup", defaults: object, about: Mapping[str, str]) -> None:  # type: ignore[name-defined]
    """Add one flag for each setting of a config that `about` describes."""
    for name, text in about.items():
        value = getattr(defaults, name)
        group.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=text)


def main(argv: list[str]) -> int:
    """Train the adapter, write its directory, and print its validation metrics."""
    arguments = parse(_parser(), argv)

    from blora.training.provenance import command_line
    from blora.training.recipe import recipe_of
    from blora.training.run import train_adapter

    output: Path = arguments.output
    recipe = recipe_of(
        arguments.data,
        output,
        command=command_line("train", argv),
        **settings_of(arguments, but=("data", "output")),
    )
    trained = train_adapter(recipe, output)
    result, scores = trained.result, trained.result.metrics
    if trained.parts:
        print(f"{'validation, recalibrated':<40}accuracy    NLL    ECE   AURC")
    for part in trained.parts:
        m = part.metrics
        print(f"{part.name:<40}{m.accuracy:8.3f}{m.nll:7.3f}{m.ece:7.3f}{m.aurc:7.3f}")
    n_folded = result.n_recalibrating - result.n_rows
    print(
        f"wrote {output}: validation accuracy {scores.accuracy:.3f}, NLL {scores.nll:.3f}, "
        f"ECE {scores.ece:.3f} at temperature {result.temperature:.2f}, "
        f"length power {result.length_power:.2f}, lapse {result.lapse:.3f}"
        + (f", recalibrated with {n_folded} training rows out of fold" if n_folded else "")
    )
    return 0
