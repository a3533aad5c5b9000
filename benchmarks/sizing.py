"""What models of other sizes take: memory of weights and draws, operations of a question, machines for many a second.

`python -m benchmarks.sizing DATA` computes it from the models' shapes, by the cost model of `benchmarks.serving.cost`
and the speed that `benchmarks.serving` measured. Nothing is loaded but the embedded model, for its tokenizer.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT
from benchmarks.serving.cost import work_of
from blora.base_model import load_base_model
from blora.base_model.precision import rounded_modules
from blora.config import PromptConfig
from blora.inference.packing import PackedRow
from blora.posterior.inject import select_modules
from blora.training.rows.examples import read_examples
from blora.training.rows.packed import pack_examples

__all__ = ["MODELS", "Shape", "bank_bytes", "skeleton", "weight_bytes"]

RESULTS = ROOT / "benchmarks" / "results"
N_QUESTIONS, BATCH_TOKENS = 200, 4096
N_SAMPLES, RANK, TARGETS, TOP = 16, 8, ("q_proj", "v_proj"), 2
# Of a replica's speed that a plan may count on, so that queues stay short.
UTILISATION = 0.7
PER_SECOND = 10_000
# What a GPU is taken to reach, in TFLOP/s of bfloat16: a fifth of an H100's 989. An assumption, not a measurement.
GPU_TFLOPS = 200.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a Llama-like model."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool


MODELS = {
    "SmolLM2-135M": Shape(576, 30, 1536, 9, 3, 49152, True),
    "Llama-3.2-1B": Shape(2048, 16, 8192, 32, 8, 128256, True),
    "Llama-3.1-8B": Shape(4096, 32, 14336, 32, 8, 128256, False),
    "Llama-3.1-70B": Shape(8192, 80, 28672, 64, 8, 128256, False),
}


def skeleton(shape: Shape) -> PreTrainedModel:
    """Return a model of that shape, without weights."""
    with torch.device("meta"):
        model: PreTrainedModel = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=shape.hidden,
                num_hidden_layers=shape.layers,
                intermediate_size=shape.intermediate,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.kv_heads,
                vocab_size=shape.vocabulary,
                tie_word_embeddings=shape.tied,
            )
        )
    return model


def weight_bytes(model: PreTrainedModel) -> int:
    """As `blora.base_model` keeps them: linear layers and experts of the decoder in bfloat16, the rest in float32."""
    low = {id(parameter) for module in rounded_modules(model) for parameter in module.parameters(recurse=False)}
    return sum(p.numel() * (2 if id(p) in low else 4) for p in model.parameters())


def bank_bytes(model: PreTrainedModel, n_layers: int, *, n_samples: int = N_SAMPLES) -> int:
    """Return the draws of an adapter with a posterior in the top layers, in float32."""
    last = model.config.num_hidden_layers
    modules = select_modules(model, TARGETS, range(last - n_layers, last))
    return 4 * n_samples * RANK * sum(d_out + d_in for d_out, d_in in modules.values())


def _of(shape: Shape, rows: list[PackedRow], mean_draws: float) -> dict[str, float]:
    model = skeleton(shape)
    work = work_of(model, rows, shape.layers - TOP, round(mean_draws), BATCH_TOKENS)
    gflop = work.total / len(rows) / 1e9
    tflops = gflop * PER_SECOND / 1e3
    return {
        "weights_gib": weight_bytes(model) / 2**30,
        "bank_every_layer_mib": bank_bytes(model, shape.layers) / 2**20,
        "bank_top_mib": bank_bytes(model, TOP) / 2**20,
        "gflop_a_question": gflop,
        "tflops": tflops,
        "gpus": math.ceil(tflops / GPU_TFLOPS / UTILISATION),
    }


def measure(data: Path) -> dict[str, Any]:
    """Return the result object."""
    serving = json.loads((RESULTS / "serving" / "result.json").read_text())
    busiest = serving["load"][-1]
    base = load_base_model()
    examples = read_examples(str(data / "arc_easy_test.jsonl"))
    rows = [labelled.row for labelled in pack_examples(examples, base, PromptConfig())[:N_QUESTIONS]]
    return {
        "models": {name: _of(shape, rows, busiest["mean_draws"]) for name, shape in MODELS.items()},
        "n_questions": len(rows),
        "mean_tokens": sum(row.n_tokens for row in rows) / len(rows),
        "n_samples": N_SAMPLES,
        "rank": RANK,
        "targets": TARGETS,
        "top": TOP,
        "mean_draws": busiest["mean_draws"],
        "per_second": PER_SECOND,
        "utilisation": UTILISATION,
        "gpu_tflops": GPU_TFLOPS,
        "measured": {name: busiest[name] for name in ("clients", "requests_per_s", "p99_ms", "memory_mib")},
        "measured_on": serving["machine"],
        "measured_at": serving.get("load_revision", serving["revision"]),
        "replicas": math.ceil(PER_SECOND / busiest["requests_per_s"] / UTILISATION),
        "dataset": "arc_easy_test.jsonl",
        **about("python -m benchmarks.sizing DATA"),
    }


def main() -> None:
    """Compute the sizes and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path, default=RESULTS / "sizing" / "result.json")
    arguments = parser.parse_args()
    result = measure(arguments.data)
    write(arguments.json, result)


if __name__ == "__main__":
    main()
