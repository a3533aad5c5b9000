"""The result of `benchmarks.serving` as Markdown, for benchmarks.tables."""

from typing import Any

from benchmarks.markdown import Columns, markdown_table, on_machine, record_table
from benchmarks.serving.profile import FORWARD

__all__ = ["agreement", "beginnings", "cost", "growth", "heads", "load", "ways"]

Result = dict[str, Any]

WAYS = {
    "lora": "LoRA of PEFT, one pass over packed choices",
    "early": "blora, at most 16 draws, stops early",
    "fixed": "blora, 16 draws",
    "everywhere": "blora, 16 draws, a posterior in every adapted layer",
    "ensemble": "three LoRAs of PEFT",
    "per_choice": "LoRA of PEFT, a sequence for each choice",
    "published": "16 passes one after the other, fresh weights for each, one question at a time",
}
# Ratios that a result has under another name than WAY_over_lora.
KEYS = {"early": "cost_early_over_lora", "fixed": "cost_fixed16_over_lora"}
GROWS = {
    "draws": "draws",
    "draws_far_from_the_threshold": "draws at most, clear decisions",
    "rows": "questions together",
    "prompt_tokens": "tokens of the prompt",
    "choices": "choices",
    "adapters": "adapters in a batch",
}


def ways(result: Result) -> str:
    """Return the table of a question's cost by each method."""
    ratios, milliseconds, speed = result["ratios"], result["ms_a_question"], result["tokens_per_s"]
    ratios = ratios | {f"{name}_over_lora": ratios[key] for name, key in KEYS.items()}
    header = ["way to answer", "ms a question", "tokens a second", "times LoRA", "quartiles"]
    table = [
        [
            label,
            f"{milliseconds[way]:.0f}",
            f"{speed[way]:.0f}",
            "1" if way == "lora" else _times(milliseconds, ratios, way),
            "" if f"{way}_over_lora" not in ratios else "{low:.2f}–{high:.2f}".format(**ratios[f"{way}_over_lora"]),
        ]
        for way, label in WAYS.items()
    ]
    machine, published = result["machine"], ratios["published_over_early"]
    return (
        f"{markdown_table(header, table)}\n\nThe last way takes {published['median']:.0f} times as long as blora's "
        f"that stops early (quartiles {published['low']:.0f} and {published['high']:.0f}). {result['n_blocks']} blocks "
        f"of {result['questions_in_a_block']} questions of {result['dataset']}, the ways in turn in one process; "
        f"{result['base_model']}, {result['dtype']}, a posterior in layers {result['bayesian_layers']}; "
        f"{on_machine(machine)}, torch {machine['torch']}."
    )


def _times(milliseconds: dict[str, float], ratios: dict[str, dict[str, float]], way: str) -> str:
    found = ratios.get(f"{way}_over_lora")
    return f"{found['median'] if found else milliseconds[way] / milliseconds['lora']:.2f}"


def agreement(result: Result) -> str:
    """Return the table of how often the cheap answer is the same answer."""
    answers = result["answers"]
    header = ["", "decides as 64 draws do", "largest difference of a probability: mean", "99 %", "answered"]
    header += ["accuracy", "NLL"]
    table = [
        [
            label,
            f"{agreed:.1%}",
            *(f"{answers['distance_64'][name][key]:.4f}" for key in ("mean", "p99")),
            f"{answers['answered'][name]:.1%}",
            f"{answers['accuracy'][name]:.3f}",
            f"{answers['nll'][name]:.4f}",
        ]
        for label, name, agreed in (
            ("stops early", "early", result["decision_agreement_64"]),
            ("16 draws", "fixed", answers["fixed_agreement_64"]),
        )
    ]
    stopped = ", ".join(f"{count} after {draws}" for draws, count in answers["stopped_at"].items())
    return (
        f"{markdown_table(header, table)}\n\n{answers['n_questions']} test questions; early answers took "
        f"{answers['mean_draws']:.1f} draws in the mean ({stopped}) and decide as all 16 do on "
        f"{answers['early_agreement_fixed']:.1%}. NLL under 64 draws {answers['nll']['most']:.4f}."
    )


def growth(result: Result) -> str:
    """Return the table of how cost grows."""
    header = ["what grows", "to", "LoRA (ms)", "blora, 16 draws (ms)", "times LoRA", "stops early (ms)", "times LoRA"]
    table = [
        [
            label if k == 0 else "",
            str(point["at"]),
            f"{point['lora_ms']:.0f}",
            f"{point['fixed_ms']:.0f}",
            f"{point['fixed_over_lora']:.2f}",
            "–" if point["early_ms"] is None else f"{point['early_ms']:.0f}",
            "–" if point["early_ms"] is None else f"{point['early_over_lora']:.2f}",
        ]
        for name, label in GROWS.items()
        for k, point in enumerate(result["growth"][name])
    ]
    return markdown_table(header, table)


def beginnings(result: Result) -> str:
    """Return the table of what a common beginning costs."""
    columns: Columns = {
        "tokens of the shared prefix": "{tokens}",
        "LoRA (ms)": "{lora_ms:.0f}",
        "blora, computed each time (ms)": "{read_ms:.0f}",
        "blora, cached (ms)": "{remembered_ms:.0f}",
        "times LoRA": lambda point: f"{point['remembered_ms'] / point['lora_ms']:.2f}",
    }
    return record_table(result["beginnings"], columns)


def cost(result: Result) -> str:
    """Return the table of predicted and measured cost."""
    model = result["model_of_cost"]
    columns = {
        "draws": "{draws}",
        "GFLOP": "{gflop:.0f}",
        **{part: f"{{share_{part}:.0%}}" for part in ("trunk", "branches", "head")},
        "predicted (s)": "{predicted_s:.2f}",
        "measured (s)": "{measured_s:.2f}",
        "measured / predicted": "{measured_over_predicted:.2f}",
    }
    limits = ", ".join(f"{point['measured_over_limit']:.2f} at {point['draws']} draws" for point in model["points"])
    return (
        f"{record_table(model['points'], columns)}\n\n"
        f"{result['questions_in_a_block']} questions; measured apart, the trunk runs at {model['gflops']['trunk']:.0f} "
        f"GFLOP/s, the branches at {model['gflops']['branches']:.0f}, the head at {model['gflops']['head']:.0f}. "
        "Beside the limit, all operations at the speed of the trunk, it takes this many times as long: "
        f"{limits}."
    )


def load(result: Result) -> str:
    """Return the table of the server under load."""
    columns = {
        "clients": "{clients}",
        "requests a second": "{requests_per_s:.1f}",
        "p50 (ms)": "{p50_ms:.0f}",
        "p99 (ms)": "{p99_ms:.0f}",
        "draws": "{mean_draws:.1f}",
        "model computes": "{compute_share:.1%} of the time",
        "failed": "{failed}",
    }
    return record_table(result["load"], columns)


def profile(result: Result) -> str:
    """Where the time of the server's threads goes."""
    shares = result["profile"]
    rows = [[stage, f"{share:.1%}"] for stage, share in shares.items()]
    computing = shares[FORWARD]
    return (
        f"{markdown_table(['stage', 'share of the busy time'], rows)}\n\nAll but the forward passes: "
        f"{(1 - computing) / computing:.1%} of these."
    )


def heads(result: Result) -> str:
    """Return what a question costs by a head and by a LoRA."""
    names = {
        "lora": "plain LoRA in 20 layers, which scores the texts of the 7 choices",
        "pass": "the base model's pass over the prompt alone",
        "mean": "decision head, posterior mean",
        "draws": f"decision head, {result['n_samples']} draws",
        "familiarity": "the pass, and the distance behind the familiarity",
    }
    rows = [
        {"way": shown, "ms": result["ms_a_question"][name]}
        | {f"{over}_{key}": value for over in ("pass", "lora") for key, value in result[f"over_{over}"][name].items()}
        for name, shown in names.items()
    ]
    columns: Columns = {
        "way to answer": "{way}",
        "ms a question": "{ms:.1f}",
        "times the pass (quartiles)": "{pass_median:.2f} ({pass_low:.2f} to {pass_high:.2f})",
        "times LoRA (quartiles)": "{lora_median:.2f} ({lora_low:.2f} to {lora_high:.2f})",
    }
    return (
        f"{record_table(rows, columns)}\n\nThe demo's test tickets in batches of {result['questions_in_a_block']}, "
        f"{result['blocks']} interleaved blocks, {result['dtype']}, {on_machine(result['machine'])}, "
        f"revision {result['revision']}; `{result['command']}`."
    )
