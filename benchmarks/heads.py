"""What do the draws of a decision head cost?

`python -m benchmarks.heads` answers tickets of the demo's test file in turn by: a forward pass that ends at the head's
deepest states; that pass and the distance behind the familiarity; the head's posterior mean; all draws of its bank; and
a plain LoRA of rank 8 in the last twenty layers, which scores the texts of the choices in one pass. Ratios are medians
over interleaved blocks, in one process.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from benchmarks.result_files import about, write
from benchmarks.server_process import ADAPTER, ROOT, TRIAGE
from blora.adapter.opening import open_adapter
from blora.config import PosteriorConfig, PromptConfig
from blora.inference.branches import score_all
from blora.inference.packing import PackedRow
from blora.inference.reading import read_rows
from blora.posterior.bank import SampleBank
from blora.posterior.decision_head import Features, HeadPosterior
from blora.posterior.inject import default_targets, inject, parse_layers, select_modules
from blora.posterior.posterior import Posterior
from blora.training.rows.examples import read_examples
from blora.training.rows.packed import pack_examples

__all__ = ["RESULT", "ratio"]

RESULT = ROOT / "benchmarks" / "results" / "heads" / "result.json"
BLOCKS, BLOCK = 13, 16
BATCH_TOKENS = 512

Way = Callable[[Sequence[PackedRow], Sequence[PackedRow]], object]


def ratio(seconds: dict[str, list[float]], of: str, over: str) -> dict[str, float]:
    """Return the median and the quartiles of one way's time over another's, block by block.

    >>> ratio({"a": [2.0, 4.0, 6.0], "b": [1.0, 2.0, 3.0]}, "a", "b")
    {'low': 2.0, 'median': 2.0, 'high': 2.0}
    """
    ratios = [a / b for a, b in zip(seconds[of], seconds[over], strict=True)]
    low, middle, high = quantiles(ratios, n=4)
    return {"low": low, "median": middle, "high": high}


def measure() -> dict[str, Any]:
    """Return the result object."""
    base, adapter = open_adapter(ADAPTER, base_model=None, device="cpu", dtype="auto")
    posterior, familiarity, config = adapter.posterior, adapter.familiarity, adapter.config
    assert isinstance(posterior, HeadPosterior)  # the demo has a head
    assert familiarity is not None
    head = posterior.head.config
    examples = read_examples(str(TRIAGE / "test.jsonl"), choices=config.prompt.choices)
    rows = [row.row for row in pack_examples(examples, base, config.prompt)]
    as_text = PromptConfig(template=config.prompt.template, choices=config.prompt.choices, choice_end="newline")
    texts = [row.row for row in pack_examples(examples, base, as_text)]
    n_layers = base.model.config.get_text_config().num_hidden_layers
    modules = select_modules(base.model, default_targets(base.model), parse_layers("last:20", n_layers))
    inject(base.model, modules)
    lora = Posterior(modules, PosteriorConfig(method="lora"), seed=0).requires_grad_(False).mean()
    bank = SampleBank.draw(posterior, adapter.digest, config.sampling.n_samples, config.sampling.seed)
    mean, empty = posterior.mean(), posterior.lora.mean()

    def scored(draws: Any) -> Way:
        return lambda own, _: score_all(base.model, own, draws, max_batch_tokens=BATCH_TOKENS)

    ways: dict[str, Way] = {
        "pass": lambda own, _: read_rows(base.model, own, head, empty),
        "mean": scored(mean),
        "draws": scored(bank.draws),
        "familiarity": lambda own, _: familiarity.distance(_prompts(read_rows(base.model, own, head, empty))),
        "lora": lambda _, own: score_all(base.model, own, lora, max_batch_tokens=BATCH_TOKENS),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for block in range(BLOCKS + 1):
            part = slice(block % (len(rows) // BLOCK) * BLOCK, (block % (len(rows) // BLOCK) + 1) * BLOCK)
            order = list(ways)[block % len(ways) :] + list(ways)[: block % len(ways)]
            for name in order:
                began = time.perf_counter()
                ways[name](rows[part], texts[part])
                if block:  # the first one warms up
                    seconds[name].append((time.perf_counter() - began) / BLOCK)
    return {
        "n_samples": bank.n_samples,
        "over_pass": {name: ratio(seconds, name, "pass") for name in seconds},
        "over_lora": {name: ratio(seconds, name, "lora") for name in seconds},
        "ms_a_question": {name: 1e3 * median(times) for name, times in seconds.items()},
        "blocks": BLOCKS,
        "questions_in_a_block": BLOCK,
        "dtype": base.dtype_name,
        "base_model": base.ref.id,
        **about("python -m benchmarks.heads"),
    }


def _prompts(features: Features) -> Tensor:
    assert features.prompt is not None  # `read_rows` reads them
    return features.prompt


def main() -> None:
    """Measure and write."""
    write(RESULT, measure())


if __name__ == "__main__":
    main()
