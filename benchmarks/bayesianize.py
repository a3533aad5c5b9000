"""LoRAs that stock PEFT trained, before and after `blora bayesianize`: do they get better, and how long does it take?

`python -m benchmarks.bayesianize DATA` with the folder of arc_easy_train.jsonl and arc_easy_test.jsonl. A LoRA learns
the right answers of 800 training questions as text, for two epochs or for six, with PEFT and a plain loop and nothing
of this project; 128 other training questions find the width of the posterior; 500 test questions judge. The LoRA is
judged as it is mostly scored, by sums of log-probabilities, and as this project scores it. What is trained is kept in
runs/.
"""

import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.calibration.treatments import Predictions, Treatments, evaluations
from benchmarks.command_line import run_blora
from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT
from blora.adapter import load_adapter
from blora.base_model import BaseModel, load_base_model
from blora.config import PromptConfig
from blora.posterior.bank import SampleBank
from blora.posterior.draws import Draws
from blora.posterior.inject import eject, inject
from blora.training.bayesianize import posterior_around
from blora.training.evaluate import predict_all
from blora.training.rows.examples import ExampleSet, read_examples, split_examples
from blora.training.rows.packed import labels_of, lengths_of, pack_examples

WORK = ROOT / "runs" / "bayesianize"
RESULTS = ROOT / "benchmarks" / "results" / "bayesianize"
N_TRAIN, N_VALIDATION, N_TEST, N_SAMPLES = 800, 128, 500, 4
LEARNING_RATE, BATCH_SIZE = 5e-4, 8
# One LoRA that is stopped early, and one that nobody stopped.
EPOCHS = (2, 6)


def train_with_peft(base: BaseModel, examples: ExampleSet, epochs: int, folder: Path) -> None:
    """Next-token training on question and right answer, the loss on the answer's tokens, by PEFT's own layers."""
    torch.manual_seed(0)
    settings = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(base.model, settings)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    texts = [
        (examples.template.replace("{prompt}", example.prompt or ""), " " + example.choices[example.label])
        for example in examples.examples
    ]
    steps = epochs * -(-len(texts) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(epochs):
        order = torch.randperm(len(texts)).tolist()
        for start in range(0, len(order), BATCH_SIZE):
            loss = _loss(model, base, [texts[i] for i in order[start : start + BATCH_SIZE]])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.save_pretrained(str(folder))
    model.unload()  # type: ignore[operator]  # the base model is as it was


def _loss(model: Any, base: BaseModel, texts: list[tuple[str, str]]) -> torch.Tensor:
    ids = [[base.tokenizer(part, add_special_tokens=False)["input_ids"] for part in pair] for pair in texts]
    width = max(len(prompt) + len(answer) for prompt, answer in ids)
    tokens = torch.zeros(len(ids), width, dtype=torch.long)
    labels = torch.full((len(ids), width), -100)
    for row, (prompt, answer) in enumerate(ids):
        tokens[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    mask = torch.arange(width) < torch.tensor([[len(prompt) + len(answer)] for prompt, answer in ids])
    loss: torch.Tensor = model(input_ids=tokens, attention_mask=mask.long(), labels=labels).loss
    return loss


def judge(base: BaseModel, known: ExampleSet, test: ExampleSet, prompt: PromptConfig, draws: Draws) -> Any:
    """Metrics under a way of scoring, in every treatment, fitted to the known questions."""

    def predictions(examples: ExampleSet) -> Predictions:
        rows = pack_examples(examples, base, replace(prompt, length_power=1.0))
        return Predictions(predict_all(base.model, rows, draws), labels_of(rows), lengths_of(rows))

    return evaluations(predictions(test), Treatments.fit(predictions(known)), in_distribution=None)


def main() -> None:
    """Trains, makes Bayesian, judges, and writes a result file for each LoRA."""
    for epochs in EPOCHS:
        measure(Path(sys.argv[1]), epochs)


def measure(data: Path, epochs: int) -> None:
    """Run `blora bayesianize` on one LoRA, and write its result."""
    base = load_base_model()
    examples = read_examples(str(data / "arc_easy_train.jsonl"))
    train, validation = split_examples(examples, N_TRAIN, N_VALIDATION, seed=0)
    work = WORK / f"epochs{epochs}"
    lora, adapter_folder, rows_file = work / "lora", work / "adapter", work / "validation.jsonl"
    if not (lora / "adapter_config.json").is_file():
        work.mkdir(parents=True, exist_ok=True)
        train_with_peft(base, train, epochs, lora)
    rows_file.write_text(
        "".join(
            json.dumps({"question": e.prompt, "choices": list(e.choices), "label": e.label}) + "\n"
            for e in validation.examples
        )
    )
    shutil.rmtree(adapter_folder, ignore_errors=True)
    command = ["bayesianize", str(lora), "--data", str(rows_file), "--output", str(adapter_folder)]
    began = time.perf_counter()
    run_blora(*command, "--n-samples", str(N_SAMPLES))
    seconds = time.perf_counter() - began

    test = read_examples(str(data / "arc_easy_test.jsonl"))
    test = replace(test, examples=test.examples[:N_TEST])
    adapter = load_adapter(adapter_folder, base)
    prompt = adapter.config.prompt
    around = posterior_around(lora, adapter.config.posterior, seed=0)
    inject(base.model, around.modules_shape)
    bank = SampleBank.draw(adapter.posterior, adapter.digest, N_SAMPLES, adapter.config.sampling.seed)
    result = {
        "epochs": epochs,
        "lora_by_sums": judge(base, validation, test, replace(prompt, normalization="none"), around.mean()),
        "lora": judge(base, validation, test, prompt, around.mean()),
        "bayesian": judge(base, validation, test, prompt, bank.draws),
        "bayesian_temperature": adapter.config.sampling.temperature,
        "bayesian_length_power": prompt.length_power,
        "bayesian_lapse": adapter.config.sampling.lapse,
        "tuning": adapter.config.training["tuning"],
        "n_parameters": sum(parameter.numel() for parameter in adapter.posterior.parameters()),
        "n_samples": N_SAMPLES,
        "n_validation": N_VALIDATION,
        "n_test": len(test.examples),
        "bayesianize_seconds": seconds,
        "base_model": base.ref.id,
        "dtype": base.dtype_name,
        **about(f"python -m benchmarks.bayesianize {data}"),
    }
    eject(base.model)
    write(RESULTS / f"epochs{epochs}.json", result)


if __name__ == "__main__":
    main()
