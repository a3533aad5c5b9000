"""Writes the tables of README.md from the committed result files, between the markers that name them.

`python -m benchmarks.tables` rewrites README.md; `--check` exits 1 if that would change it.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["render"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"

Result = dict[str, Any]

METHODS = {"base": "base model", "lora": "LoRA", "bayesian": "Bayesian-LoRA"}


def _load(folder: str) -> list[Result]:
    return [json.loads(file.read_text()) for file in sorted((RESULTS / folder).glob("*.json"))]


def _rows(header: list[str], rows: list[list[str]]) -> str:
    aligned = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, aligned, *rows])


def _label(result: Result) -> str:
    """The method, and where it started from if that was a trained LoRA."""
    started = "training" in result and result["training"].get("init_from")
    return METHODS[result["method"]] + (", from the LoRA" if started else "")


def _evaluations(folder: str) -> str:
    """Metrics by method and number of draws, and where they come from."""
    order = list(METHODS)
    results = sorted(_load(folder), key=lambda r: (order.index(r["method"]), _label(r), r["n_samples"], r["seed"] or 0))
    header = ["method", "draws", "accuracy", "NLL", "ECE", "Brier", "AURC", "seconds"]
    rows = [
        [
            _label(r),
            str(r["n_samples"]),
            *(f"{r[name]:.3f}" for name in ("accuracy", "nll", "ece", "brier", "aurc")),
            f"{r['seconds']:.0f}",
        ]
        for r in results
    ]
    return f"{_rows(header, rows)}\n\n{_provenance(results)}"


def _provenance(results: list[Result]) -> str:
    first = results[0]
    machine = first["machine"]
    seeds = sorted({r["training"]["settings"]["seed"] for r in results if "training" in r})
    weights = sorted({r["training"]["settings"]["kl_weight"] for r in results if r["method"] == "bayesian"})
    return (
        f"{first['n_examples']} questions of {first['dataset']}; {first['base_model']}, {first['dtype']}; "
        f"training seeds {', '.join(map(str, seeds))}; KL weight {', '.join(f'{w:g}' for w in weights)}; "
        f"{machine['cores']} cores of {machine['processor']}, torch {machine['torch']}. "
        "Seconds are those of all questions under all draws."
    )


def _concurrent(folder: str) -> str:
    [result] = _load(folder)
    header = ["concurrent requests", "lost", "wrong", "p50 (s)", "p99 (s)", "requests a second", "memory growth (MiB)"]
    row = [
        str(result["n_requests"]),
        str(result["lost"]),
        str(result["wrong"]),
        f"{result['p50_s']:.2f}",
        f"{result['p99_s']:.2f}",
        f"{result['requests_per_s']:.1f}",
        f"{result['memory_growth_mib']:.1f}",
    ]
    machine = result["machine"]
    machine_line = f"{result['n_samples']} draws each; {machine['cores']} cores of {machine['processor']}."
    return f"{_rows(header, [row])}\n\n{machine_line}"


def _answer(name: str) -> str:
    """One question as a line to paste, and what the server said, without the numbers of each choice."""
    [result] = _load("answers")
    kept = result["answers"][name.removeprefix("answer_")]
    answer = kept["answer"]
    body = json.dumps({"prompt": kept["prompt"]}, ensure_ascii=False)
    shown = {key: answer[key] for key in ("answer", "top_choice")}
    shown |= {key: round(answer[key], 3) for key in ("confidence", "predictive_entropy", "mutual_information")}
    shown["abstain_reasons"] = [
        {key: round(value, 3) if isinstance(value, float) else value for key, value in reason.items()}
        for reason in answer["abstain_reasons"]
    ]
    lines = ",\n ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in shown.items())
    command = f"curl -s http://127.0.0.1:8000/v1/predict -H 'content-type: application/json' -d '{body}'"
    return f"```sh\n{command}\n```\n```json\n{{{lines}}}\n```"


def _withheld(folder: str) -> str:
    """How many tickets of each kind the demo's policy answers."""
    [result] = _load("answers")
    header = ["tickets", "number", "answered", "of these right"]
    rows = [
        [
            kind,
            str(c["n"]),
            f"{c['answered'] / c['n']:.0%}",
            "none can be" if kind == "out of scope" else f"{c['right'] / c['answered']:.0%}",
        ]
        for kind, c in result["withheld"].items()
    ]
    return _rows(header, rows)


TABLES: dict[str, Callable[[str], str]] = {
    "arc_easy": _evaluations,
    "triage": _evaluations,
    "concurrent": _concurrent,
    "withheld": _withheld,
    "answer_sure": _answer,
    "answer_ambiguous": _answer,
    "answer_out_of_scope": _answer,
}


def render(text: str) -> str:
    """The text with every table between `<!-- table NAME -->` and `<!-- end -->` made anew."""

    def table(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"<!-- table {name} -->\n{TABLES[name](name)}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def main() -> int:
    """Rewrites or checks README.md."""
    text = README.read_text()
    made = render(text)
    if "--check" in sys.argv:
        return int(made != text)
    README.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
