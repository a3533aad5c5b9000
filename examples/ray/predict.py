"""A table of questions through Ray Data: an engine for each GPU (or process), and no server.

    pip install 'blora[serve]' 'ray[data]'
    python examples/ray/predict.py examples/triage/adapter examples/triage/test.jsonl answers

A row has a `prompt`; answers/ gets Parquet files with the row's columns, and with `answer`, `confidence` and
`abstained` beside the whole `prediction` as JSON, as `POST /v1/predict` gives it. A row without one has an `error`.
"""

import argparse
import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import pyarrow as pa
import ray

from blora.server.batch.offline import answering, patient
from blora.server.engines.torch_engine import TorchEngine

# Types that do not follow from a batch: one of which all abstain has no answer to take a type from.
COLUMNS = {"answer": pa.string(), "confidence": pa.float64(), "abstained": pa.bool_()}


class Engine:
    """A model on a device of its own, in a process of its own."""

    def __init__(self, adapter: str, base_model: str, device: str, dtype: str) -> None:
        settings = patient(adapters=(f"adapter={adapter}",), base_model=base_model, device=device, dtype=dtype)
        self._runner = asyncio.Runner()  # its loop outlives a batch, and the engine lives in it
        self._until_the_end = AsyncExitStack()
        opened = self._until_the_end.enter_async_context(answering(settings, TorchEngine(settings)))
        self._answer = self._runner.run(opened)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answers the rows of a batch, all at once: the engine packs them by length."""
        outcomes = self._runner.run(self._answer_all(batch["prompt"].to_pylist()))
        predictions = [outcome.get("prediction") for outcome in outcomes]
        for column, kind in COLUMNS.items():
            batch = batch.append_column(column, pa.array([p[column] if p else None for p in predictions], kind))
        for column in ("prediction", "error"):
            told = [json.dumps(outcome[column]) if column in outcome else None for outcome in outcomes]
            batch = batch.append_column(column, pa.array(told, pa.string()))
        return batch

    async def _answer_all(self, prompts: list[Any]) -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(self._answer({"prompt": prompt}) for prompt in prompts)))


def main() -> None:
    """Reads, answers and writes, as a stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter")
    parser.add_argument("questions", help=".jsonl or .parquet")
    parser.add_argument("answers", help="a folder that Parquet files are written into")
    parser.add_argument("--base-model", default="embedded")
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
