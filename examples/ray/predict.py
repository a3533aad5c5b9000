"""A table of questions through Ray Data: an engine for each GPU (or process), and no server.

    pip install 'blora[serve]' 'ray[data]'
    python examples/ray/predict.py examples/triage/adapter examples/triage/test.jsonl answers --engines 2

A row has a `prompt`; answers/ gets Parquet files with the row's columns, and with `answer`, `confidence` and
`abstained` beside the whole `prediction` as JSON, as `POST /v1/predict` gives it. A row without one has an `error`.
"""

import argparse
import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import ray

from server.engines.torch_engine import TorchEngine
from server.offline import answering, patient

COLUMNS = ("answer", "confidence", "abstained")
# What Ray reckons for an engine. If engines took every CPU, reading and writing would wait for one for ever.
CPUS = 0.5


class Engine:
    """A model on a device of its own, in a process of its own."""

    def __init__(self, adapter: str, base_model: str) -> None:
        settings = patient(adapters=(f"adapter={adapter}",), base_model=base_model)
        self._runner = asyncio.Runner()  # its loop outlives a batch, and the engine lives in it
        self._until_the_end = AsyncExitStack()
        opened = self._until_the_end.enter_async_context(answering(settings, TorchEngine(settings)))
        self._answer = self._runner.run(opened)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Answers the rows of a batch, all at once: the engine packs them by length."""
        outcomes = self._runner.run(self._answer_all([{"prompt": str(prompt)} for prompt in batch["prompt"]]))
        predictions = [outcome.get("prediction") for outcome in outcomes]
        added = {column: [p[column] if p else None for p in predictions] for column in COLUMNS}
        added["prediction"] = [json.dumps(p) if p else None for p in predictions]
        added["error"] = [json.dumps(outcome["error"]) if "error" in outcome else None for outcome in outcomes]
        return batch | added

    async def _answer_all(self, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return list(await asyncio.gather(*map(self._answer, questions)))


def main() -> None:
    """Reads, answers and writes, as a stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter")
    parser.add_argument("questions", help=".jsonl or .parquet")
    parser.add_argument("answers", help="a folder that Parquet files are written into")
    parser.add_argument("--base-model", default="embedded")
    parser.add_argument("--engines", type=int, default=1, help="as many as there are GPUs")
    parser.add_argument("--gpus", type=float, default=0, help="of each engine; 0 computes on the CPU")
    arguments = parser.parse_args()
    read = ray.data.read_parquet if arguments.questions.endswith(".parquet") else ray.data.read_json
    read(arguments.questions).map_batches(
        Engine,
        fn_constructor_args=(arguments.adapter, arguments.base_model),
        concurrency=arguments.engines,
        num_cpus=CPUS,
        num_gpus=arguments.gpus,
        batch_size=512,
    ).write_parquet(arguments.answers)


if __name__ == "__main__":
    main()
