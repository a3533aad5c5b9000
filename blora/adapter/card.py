"""The README.md of an adapter directory, generated from its config."""

import json
import re
from collections.abc import Mapping
from typing import Any

from blora.base_model import EMBEDDED_HUB_ID, EMBEDDED_ID
from blora.config import AdapterConfig, BaseModelRef, PromptConfig

__all__ = ["ON_ALL", "is_edited", "model_card", "validation_figures"]

# Key of the training record for whether a head was fitted again, to the validation rows too.
ON_ALL = "on_all_rows"

OF_LORA = (
    "A Bayesian-LoRA adapter (arXiv:2601.21003). Plain PEFT loads its posterior mean; `blora serve` draws from the",
    "posterior and answers with calibrated probabilities, or abstains.",
)
OF_HEAD = (
    "A decision head on the hidden states of a frozen language model, with a posterior over its weights; `blora serve`",
    "draws from the posterior and answers with calibrated probabilities, or abstains.",
)
OF_HEAD_ABOVE_LORA = (
    "A decision head above a LoRA, on the hidden states of a language model, with a posterior over the head's weights;",
    "`blora serve` draws from the posterior and answers with calibrated probabilities, or abstains. Plain PEFT loads",
    "the LoRA but no head, so it does not give these answers.",
)

# What a familiarity measures, by kind.
KINDS = {
    "gaussian": "the distance of the prompt's states",
    "direction": "the direction of the prompt's states",
    "both": "the distance and the direction of the prompt's states",
    "choices": "the distances of the prompt's and of the choices' states",
}

# Metrics of the hub's record, by their names in the training record.
METRICS = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "brier": "Brier score", "aurc": "AURC"}


def model_card(config: AdapterConfig, name: str) -> str:
    """Return the model card as Markdown with the hub's front matter: base model, tags and metrics.

    Args:
        config: the adapter's settings and training record.
        name: the adapter's name.
    """
    posterior, prompt, sampling = config.posterior, config.prompt, config.sampling
    facts = {
        "base model": _named(config.base_model),
        **({"companion": _named(config.companion)} if config.companion is not None else {}),
        "method": _method(config),
        "scoring": _scoring(prompt),
        "prompt template": f"`{prompt.template!r}`",
        "choices": ", ".join(prompt.choices) if prompt.choices else "with each question",
        "posterior draws": f"{sampling.n_samples}, seed {sampling.seed}",
        "recalibration": f"temperature {sampling.temperature:.3g}, length power {prompt.length_power:.3g}, lapse rate "
        f"{sampling.lapse:.3g}",
        "policy of the adapter": _policy(config.policy),
    }
    if (question := config.question) is not None:
        facts["question"] = f"{question.name}, a {question.type}: {question.instructions or 'without instructions'}"
    if config.familiarity is not None:
        facts["familiarity"] = f"by {KINDS[config.familiarity.kind]}, among those of {_familiar_rows(config.training)}"
    if config.modules:
        facts["rank, alpha"] = f"{posterior.rank}, {posterior.alpha:g}"
        facts["target modules"] = f"{', '.join(config.target_modules)} ({len(config.modules)} modules)"
    if posterior.method == "bayesian":
        facts["prior_std, lambda_max"] = f"{posterior.prior_std:g}, {posterior.lambda_max:g}"
        if posterior.bayesian_layers is not None:
            facts["Bayesian layers"] = ", ".join(map(str, posterior.bayesian_layers)) + "; the others plain LoRA"
        facts["inducing weights"] = f"{posterior.inducing_rows} x {posterior.inducing_cols} a factor"
    hub_id = _hub_id(config.base_model.id)
    of_head = OF_HEAD_ABOVE_LORA if config.modules else OF_HEAD
    lines = [
        "---",
        *([f"base_model: {hub_id}"] if hub_id else []),
        *(["library_name: peft"] if config.head is None else []),
        f"tags: [{', '.join(_tags(config))}]",
        *_model_index(config, name),
        "---",
        "",
        f"# {name}",
        "",
        *(OF_LORA if config.head is None else of_head),
        "",
        *_table(facts),
    ]
    if config.head is None:
        lines += _with_peft(hub_id, config.base_model.id)
    lines += _parts(config.training)
    lines += _validation(config.training)
    if command := config.training.get("command"):
        lines += ["", "## Made with", "", "```", command, "```"]
    return "\n".join(lines) + "\n"


def is_edited(card: str, config: AdapterConfig) -> bool:
    """Return whether somebody has changed a card: it is not what is made under the name in its heading.

    Args:
        card: the card.
        config: as for `model_card`.
    """
    names = re.findall(r"^# (.+)$", card, re.MULTILINE)
    return not names or card != model_card(config, names[0])


def _named(ref: BaseModelRef) -> str:
    return f"{ref.id} (revision {ref.revision or 'unknown'})"


def _tags(config: AdapterConfig) -> list[str]:
    lora = ["lora"] if config.modules else []
    kind = "bayesian-lora" if config.head is None else "decision-head"
    return ["blora", *lora, kind, "uncertainty", "abstention"]


def _model_index(config: AdapterConfig, name: str) -> list[str]:
    """Return the hub's record of metrics, from the rows that fitted the recalibration, which it says."""
    figures = validation_figures(config.training)
    metrics = {key: figures[key] for key in METRICS if isinstance(figures.get(key), float)}
    if not metrics:
        return []
    source = figures.get("source", "rows of the owner")
    entries = [
        {"type": key, "name": f"{METRICS[key]}, validation rows", "value": round(value, 4), "verified": False}
        for key, value in metrics.items()
    ]
    n_rows = figures.get("n_examples")
    helping = figures.get("n_recalibrating", n_rows) - n_rows if n_rows is not None else 0
    beside = f" with {helping} training rows out of fold" if helping else ""
    fitted_later = config.training.get(ON_ALL) and not config.training.get("tuning")
    later = ", before the head was fitted to them too" if fitted_later else ""
    about = f"{source}: validation rows, which the recalibration was fitted on{beside}, {n_rows} of them{later}"
    dataset = {"type": str(source), "name": about, "split": "validation"}
    task = {"type": "text-classification"}
    index = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": entries}]}]
    return [f"model-index: {json.dumps(index, ensure_ascii=False)}"]  # JSON is YAML as well


def _hub_id(base_model: str) -> str | None:
    """Return the hub id of a base model; None if the model was loaded from a folder or file."""
    if base_model == EMBEDDED_ID:
        return EMBEDDED_HUB_ID
    return base_model if "/" in base_model else None


def _with_peft(hub_id: str | None, base_model: str) -> list[str]:
    """Return the section on use with plain PEFT, which needs the base model separately."""
    return [
        "",
        "## With plain PEFT",
        "",
        "The posterior mean alone, without draws, recalibration and abstention; run it in this folder:",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{hub_id or f"the folder of {base_model}"}")',
        'model = PeftModel.from_pretrained(base, ".")',
        "```",
    ]


def _method(config: AdapterConfig) -> str:
    posterior, head = config.posterior, config.head
    if head is not None:
        layers = ", ".join(map(str, head.depths))
        lora = " above a LoRA" if config.modules else ""
        return f"{config.prompt.readout} decision head{lora} on the states at layers {layers}, Laplace posterior"
    if posterior.method == "lora":
        return "lora"
    return f"{posterior.method}, {posterior.family} family"


def _familiar_rows(training: Mapping[str, Any]) -> str:
    """Return which rows the familiarity was fitted to: the training rows, unless `blora familiarize` left a record."""
    record = training.get("familiarity")
    if not isinstance(record, dict) or not {"source", "n_examples"} <= record.keys():
        return "the training rows"
    fitted = f"{record['n_examples']} rows of {record['source']}"
    if "n_reference" not in record:
        return fitted
    return f"{fitted}; p-values among {record['n_reference']} others until it is calibrated"


def _parts(training: Mapping[str, Any]) -> list[str]:
    """Return the section on what simpler methods reach, and a warning if the adapter does not beat them.

    All of it is of the adapter as it was trained, which the section says of one that was tuned since.
    """
    names = ("accuracy", "nll", "ece", "aurc")
    try:
        parts = {str(part): {name: float(of[name]) for name in names} for part, of in training["parts"].items()}
    except (AttributeError, LookupError, TypeError, ValueError):  # a record that blora did not write may hold anything
        return []
    if not parts:
        return []
    tuned = bool(training.get("tuning"))
    rows = "Before tuning, on the validation rows of training" if tuned else "On the validation rows"
    lines = ["", "## What each part reaches", "", f"{rows}, each recalibrated on them:", ""]
    lines += ["| | accuracy | NLL | ECE | AURC |", "|---|--:|--:|--:|--:|"]
    for part, figures in parts.items():
        lines.append(f"| {part} | {' | '.join(f'{figures[name]:.3f}' for name in names)} |")
    best = min(parts, key=lambda part: parts[part]["nll"])
    if best.startswith(("regression", "base model")):
        had, beats = ("had", "did not beat it before tuning") if tuned else ("has", "does not beat it")
        lines += ["", f"**The {best} {had} the lower NLL on these rows: this adapter {beats}.**"]
    return lines


def _scoring(prompt: PromptConfig) -> str:
    if prompt.readout == "linear":
        return "by the head; choices other than these by the language model, as text"
    if prompt.scoring == "label":
        return "label"
    end = f", with an end ({prompt.choice_end})" if prompt.choice_end != "none" else ""
    return f"text, normalized by {prompt.normalization}{end}"


def validation_figures(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return the latest metrics on validation rows: after tuning, the metrics from training are out of date.

    Args:
        training: an adapter's training record. One that blora did not write may hold anything, and then has no metrics.
    """
    tuning, validation = training.get("tuning"), training.get("validation")
    if tuning is None:
        return dict(validation) if isinstance(validation, dict) else {}
    try:
        trial = next(trial for trial in tuning["trials"] if trial["scale"] == tuning["scale"])
        fitted = ("temperature", "length_power", "lapse")  # already among the settings
        figures = {name: tuning[name] for name in ("source", "digest", "n_examples")}
        return figures | {name: value for name, value in trial.items() if name not in fitted}
    except (AttributeError, LookupError, StopIteration, TypeError):
        return {}


def _validation(training: Mapping[str, Any]) -> list[str]:
    """Return the section with the latest metrics."""
    figures = validation_figures(training)
    if not figures:
        return []
    about = "Before the head was fitted to these rows too:" if training.get(ON_ALL) else None
    if training.get("tuning"):
        about = "After tuning, on the rows that chose the scale and the recalibration:"
    cells = {k: f"{v:.4f}" if isinstance(v, float) else str(v) for k, v in figures.items()}
    return ["", "## Validation", *(["", about] if about is not None else []), "", *_table(cells)]


def _policy(policy: Mapping[str, float] | None) -> str:
    """Return a description of the owner's policy that remains true when the adapter is calibrated later."""
    if not policy:
        return "none; thresholds may come from calibration.json"
    return (
        ", ".join(f"{name} {value:g}" for name, value in policy.items())
        + "; thresholds in calibration.json take precedence"
    )


def _table(rows: dict[str, str]) -> list[str]:
    cells = [(key, " ".join(value.replace("|", "\\|").split())) for key, value in rows.items()]
    return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in cells)]
