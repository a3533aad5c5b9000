"""The result of `benchmarks.serving` as Markdown, for benchmarks.tables."""

from typing import Any

from benchmarks.markdown import markdown_table
from benchmarks.serving.profile import FORWARD

__all__ = ["agreement", "beginnings", "cost", "growth", "load", "ways"]

Result = dict[str, Any]

WAYS = {
    "lora": "LoRA of PEFT, one pass over packed choices",
    "early": "ours, at most 16 draws, stops early",
    "fixed": "ours, 16 draws",
    "everywhere": "ours, 16 draws, a posterior in every adapted layer",
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
    """What a question costs, each way."""
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
        f"{markdown_table(header, table)}\n\nThe last way takes {published['median']:.0f} times as long as ours that "
        f"stops early (quartiles {published['low']:.0f} and {published['high']:.0f}). {result['n_blocks']} blocks of "
        f"{result['questions_in_a_block']} questions of {result['dataset']}, the ways in turn in one process; "
        f"{result['base_model']}, {result['dtype']}, a posterior in layers {result['bayesian_layers']}; "
        f"{machine['cores']} cores of {machine['processor']}, torch {machine['torch']}."
    )


def _times(milliseconds: dict[str, float], ratios: dict[str, dict[str, float]], way: str) -> str:
    found = ratios.get(f"{way}_over_lora")
    return f"{found['median'] if found else milliseconds[way] / milliseconds['lora']:.2f}"


def agreement(result: Result) -> str:
    """Whether the cheap answer is the same answer."""
    answers = result["answers"]
    header = ["", "decides as 64 draws do", "largest difference of a probability: mean", "99 %", "answered", "NLL"]
    table = [
        [
            label,
            f"{agreed:.1%}",
            *(f"{answers['distance_64'][name][key]:.4f}" for key in ("mean", "p99")),
            f"{answers['answered'][name]:.1%}",
            f"{answers['nll'][name]:.4f}",
        ]
        for label, name, agreed in (
            ("stops early", "early", result["decision_agreement_64"]),
            ("16 draws", "fixed", answers["fixed_agreement_64"]),
        )
    ]
    stopped = ", ".join(f"{count} after {draws}" for draws, count in answers["stopped_at"].items())
    nll = answers["nll"]
    return (
        f"{markdown_table(header, table)}\n\n{answers['n_questions']} test questions; early answers took "
        f"{answers['mean_draws']:.1f} draws in the mean ({stopped}) and decide as all 16 do on "
        f"{answers['early_agreement_fixed']:.1%}. NLL under 64 draws {nll['most']:.4f}; under 16 draws of a posterior "
        f"in every adapted layer {nll['everywhere']:.4f}: early answers have {result['nll_relative']:.3f} times that."
    )


def growth(result: Result) -> str:
    """How cost grows."""
    header = ["what grows", "to", "LoRA (ms)", "ours, 16 draws (ms)", "times LoRA", "stops early (ms)", "times LoRA"]
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
    """What a common beginning costs."""
    header = [
        "tokens of the beginning",
        "LoRA (ms)",
        "ours, read each time (ms)",
        "ours, remembered (ms)",
        "times LoRA",
    ]
    table = [
        [
            str(point["tokens"]),
            *(f"{point[f'{way}_ms']:.0f}" for way in ("lora", "read", "remembered")),
            f"{point['remembered_ms'] / point['lora_ms']:.2f}",
        ]
        for point in result["beginnings"]
    ]
    return markdown_table(header, table)


def cost(result: Result) -> str:
    """Predicted against measured."""
    model = result["model_of_cost"]
    header = ["draws", "GFLOP", "trunk", "branches", "head", "predicted (s)", "measured (s)", "measured / predicted"]
    table = [
        [
            str(point["draws"]),
            f"{point['gflop']:.0f}",
            *(f"{point[f'share_{part}']:.0%}" for part in ("trunk", "branches", "head")),
            f"{point['predicted_s']:.2f}",
            f"{point['measured_s']:.2f}",
            f"{point['measured_over_predicted']:.2f}",
        ]
        for point in model["points"]
    ]
    limits = ", ".join(f"{point['measured_over_limit']:.2f} at {point['draws']} draws" for point in model["points"])
    return (
        f"{markdown_table(header, table)}\n\n{result['questions_in_a_block']} questions; measured apart, the trunk "
        f"runs at {model['gflops']['trunk']:.0f} GFLOP/s, the branches at {model['gflops']['branches']:.0f}, the head "
        f"at {model['gflops']['head']:.0f}. Beside the limit, all operations at the speed of the trunk, it takes this "
        f"many times as long: {limits}."
    )


def load(result: Result) -> str:
    """The server under load."""
    header = ["clients", "requests a second", "p50 (ms)", "p99 (ms)", "draws", "model computes", "failed"]
    table = [
        [
            str(level["clients"]),
            f"{level['requests_per_s']:.1f}",
            f"{level['p50_ms']:.0f}",
            f"{level['p99_ms']:.0f}",
            f"{level['mean_draws']:.1f}",
            f"{level['compute_share']:.1%} of the time",
            str(level["failed"]),
        ]
        for level in result["load"]
    ]
    return markdown_table(header, table)


def profile(result: Result) -> str:
    """Where the time of the server's threads goes."""
    shares = result["profile"]
    rows = [[stage, f"{share:.1%}"] for stage, share in shares.items()]
    computing = shares[FORWARD]
    return (
        f"{markdown_table(['stage', 'share of the busy time'], rows)}\n\nAll but the forward passes: "
        f"{(1 - computing) / computing:.1%} of these."
    )
