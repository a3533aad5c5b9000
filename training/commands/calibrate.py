"""`blora calibrate`: prove a threshold on labelled rows that the adapter has not seen."""

from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from blora.cli import CommandHelp, add_model
from blora.scores import DRAWN, SCORES
from blora.training.commands.arguments import add_rows, own_folder, parse

if TYPE_CHECKING:
    from blora.decision.calibration import Calibration

__all__ = ["SUMMARY", "main"]

SUMMARY = "find and prove an adapter's abstention threshold on a labelled data set"


def _parser() -> ArgumentParser:
    parser = ArgumentParser("blora calibrate", description=SUMMARY, formatter_class=CommandHelp)
    parser.add_argument("adapter", type=own_folder, help="adapter directory; calibration.json is written into it")
    add_rows(parser, "labelled rows that the adapter has not seen", split="test")
    parser.add_argument(
        "--target-risk", type=float, default=0.05, help="upper limit on P(wrong | answered) under the default policy"
    )
    parser.add_argument(
        "--delta",
        type=float,
        default=0.05,
        help="upper limit on the probability, over random samples of rows, of proving a target that does not hold, "
        "from 1e-9 to 0.5; the deltas of several calibrations on the same rows add up",
    )
    parser.add_argument(
        "--coverage", type=float, default=0.9, help="lower limit on P(the correct choice is in the prediction set)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the random division into rows that choose thresholds and rows that prove them; set it before you "
        "see results",
    )
    parser.add_argument(
        "--score",
        choices=tuple(name for name in SCORES if name in DRAWN),
        help="score to threshold; set it before you see results (default: the score with the highest coverage on the "
        "rows that choose thresholds)",
    )
    parser.add_argument(
        "--max-false-alarms",
        type=float,
        default=0.05,
        help="upper limit on the share of familiar questions that are withheld as unfamiliar, proved with the same "
        "delta; 1 withholds none",
    )
    parser.add_argument(
        "--max-missed",
        type=float,
        default=1.0,
        help="for each choice, upper limit on the share of its questions that get another answer, proved with the same "
        "delta; 1 promises nothing",
    )
    add_model(parser, default=None)
    parser.add_argument(
        "--engine-url",
        help="address of a running vLLM: the calibration holds for `blora serve --engine vllm`, and its states are "
        "computed there, for an adapter with a head from --depths last (default: compute them here)",
    )
    parser.add_argument(
        "--engine-folder",
        type=Path,
        help="folder that vLLM sees under the same path, for the LoRA below a head",
    )
    return parser


def main(argv: list[str]) -> int:
    """Calibrate the adapter, and print the proved thresholds."""
    arguments = parse(_parser(), argv)

    from blora.adapter import read_config
    from blora.adapter.opening import open_adapter
    from blora.decision.calibration import Goal
    from blora.disk.cache import check_own
    from blora.errors import ConfigError
    from blora.training.calibrate import calibrate_adapter
    from blora.training.rows.examples import examples_for
    from blora.training.through_vllm import Vllm

    check_own(arguments.adapter)  # before the base model is loaded
    vllm = Vllm(arguments.engine_url, arguments.engine_folder) if arguments.engine_url is not None else None
    if vllm is None and arguments.engine_folder is not None:
        raise ConfigError("got --engine-folder without --engine-url, the address of a running vLLM; give both")
    goal = Goal(
        target_risk=arguments.target_risk,
        delta=arguments.delta,
        coverage=arguments.coverage,
        seed=arguments.seed,
        score=arguments.score,
        max_false_alarms=arguments.max_false_alarms,
        max_missed=arguments.max_missed,
    )
    examples = examples_for(
        read_config(arguments.adapter),
        arguments.data,
        split=arguments.split,
        columns=arguments.columns,
    )
    base, adapter = open_adapter(
        arguments.adapter, base_model=arguments.base_model, device=arguments.device, dtype=arguments.dtype
    )
    calibration = calibrate_adapter(
        adapter, base, examples, goal, split=arguments.split, limit=arguments.limit, vllm=vllm
    )
    print(_table(calibration, adapter.config.policy))
    return 0


def _table(calibration: "Calibration", own: Mapping[str, float] | None) -> str:
    from blora.decision.by_choice import table

    rows, binding = calibration.rows, calibration.binding
    n_asks = len(calibration.asks)
    over = f", summed over {n_asks} calibration attempts on these rows" if n_asks > 1 else ""
    lines = [
        f"Proved on {rows.n_proof} of {rows.n_rows} rows, in {binding.dtype} with {binding.n_samples} draws, each at "
        f"delta {calibration.delta:g}{over}:",
        "",
        f"{'target':>8}  {'score':<20} {'threshold':>11} {'coverage':>9} {'error':>7}",
    ]
    for level in calibration.levels:
        mark = "*" if level == calibration.default_level else " "
        head = f"{mark}{level.target_risk:>7}  "
        lines.append(
            head + "not proved"
            if level.threshold is None
            else f"{head}{level.score:<20} {level.threshold:>11.6g} {level.coverage:>9.3f} {level.error:>7.3f}"
        )
    if (gate := calibration.gate) is not None:
        lines += [
            "",
            f"Withheld as unfamiliar below a familiarity of {gate.min_familiarity:.4g}: at most "
            f"{gate.max_false_alarms:g} of questions like these, {gate.n_beyond} of {len(gate.reference)} rows.",
        ]
    lines += [
        "",
        f"* the default policy. Prediction sets of coverage {calibration.coverage} with every answer.",
        f"For questions like these rows: {' or '.join(rows.forms)}, {rows.n_choices} choices.",
    ]
    if (missed := calibration.max_missed) < 1:
        lines.append(f"Of the questions of each choice, at most {missed:g} get another answer, under every target.")
    if own:
        thresholds = ", ".join(f"{name} {value:g}" for name, value in own.items())
        lines.append(f"The adapter's own thresholds no longer decide: {thresholds}.")
    if calibration.choices:
        about = f"The proof's {rows.n_proof} rows by their right choice and by their answer, under the default policy:"
        lines += ["", about, "", table(calibration.choices)]
    return "\n".join(lines)
