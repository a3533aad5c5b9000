"""The tables of docs/deploy.md: the image, sizes of models, and the engines beside each other."""

from typing import Any

from benchmarks.markdown import markdown_table, on_machine, record_table

__all__ = ["image", "sizing", "vllm"]

Result = dict[str, Any]


def sizing(result: Result) -> str:
    """Memory and operations by size of model, and how many machines answer many a second."""
    per_second, load = f"{result['per_second']:,}", f"{result['utilisation']:.0%}"
    columns = {
        "base model": "{name}",
        "weights (GiB)": "{weights_gib:.2f}",
        "an adapter's draws (MiB)": "{bank_every_layer_mib:.0f}",
        "of them in the top two layers": "{bank_top_mib:.1f}",
        "GFLOP a question": "{gflop_a_question:.0f}",
        f"TFLOP/s for {per_second} a second": "{tflops:,.0f}",
        "GPUs": "{gpus:,}",
    }
    rows = [sized | {"name": name} for name, sized in result["models"].items()]
    measured = result["measured"]
    targets = " and ".join(f"`{target}`" for target in result["targets"])
    said = [
        "Computed from the models' shapes: linear layers in bfloat16, the rest in float32;",
        f"{result['n_samples']} draws of rank {result['rank']} in {targets}; {result['n_questions']} questions of",
        f"{result['dataset']}, {result['mean_tokens']:.0f} tokens each with their choices, padded to batches, a",
        f"posterior in the top {result['top']} layers that takes {result['mean_draws']:.0f} draws in the mean.",
        f"Measured: SmolLM2 answers {measured['requests_per_s']:.1f} such questions a second on",
        f"{on_machine(result['measured_on'])}, with {measured['memory_mib']:.0f} MiB in all;",
        f"{per_second} a second at {load} of that are {result['replicas']:,} such replicas. GPUs are not",
        f"measured, and counted by operations alone, whatever their memory: {result['gpu_tflops']:g} TFLOP/s each are",
        f"assumed, of which a plan counts on {load}.",
    ]
    return f"{record_table(rows, columns)}\n\n{' '.join(said)}"


def image(result: Result) -> str:
    """Return the table of the image as it was run."""
    columns = {
        "size (MiB)": "{size_mib:.0f}",
        "alive after (s)": "{live_s:.1f}",
        "ready after (s)": "{ready_s:.1f}",
        "first answer (s)": "{answer_s:.1f}",
        "ends after SIGTERM in (s)": "{stop_s:.1f}",
        "exit code": "{exit_code}",
    }
    answer = result["answer"]
    told = "withheld" if answer["abstained"] else f"`{answer['answer']}`"
    return (
        f"{record_table([result], columns)}\n\nAsked “{result['question']}”, it answered: "
        f"{told}, confidence {answer['confidence']:.3f}. torch {result['torch']}; {on_machine(result['machine'])}, "
        f"revision {result['image_revision'][:12]}."
    )


def vllm(scores: Result, head: Result) -> str:
    """Two engines side by side, for an adapter without a head and one with a head."""
    rows, said = [], []
    for name, result in (("posterior over a LoRA, by labels", scores), ("head on the last layer's states", head)):
        ms, right = result["ms_a_question"], result["right"]
        rows += [
            [name, str(result["n_samples"]), engine, f"{ms[engine]:.0f}", f"{right[engine]:.3f}"]
            for engine in ("torch", "vllm")
        ]
        said.append(
            f"{name}: the same leader in {result['same_decision']:.1%}, probabilities {result['mean_distance']:.1g} "
            f"apart in the mean, {result['p99_distance']:.1g} at 99 % (revision {result['revision']})"
        )
    five = head["five_depths"]
    default = ["head on five depths", str(head["n_samples"]), "torch"]
    rows.append([*default, f"{five['ms_a_question']:.0f}", f"{five['right']:.3f}"])
    return (
        f"{markdown_table(['adapter', 'draws', 'engine', 'ms a question', 'accuracy'], rows)}\n\n"
        f"{scores['n_questions']} questions of arc_easy_test.jsonl by labels, in {scores['dtype']}; "
        f"{head['n_questions']:,} by heads, in {head['dtype']}. Between the engines, by the largest difference of a "
        f"choice: {'; '.join(said)}. "
        f"{on_machine(head['machine'])}; `python -m benchmarks.vllm --adapter scores` and `head`."
    )
