"""A real vLLM in a process of its own, from an environment of its own, for a benchmark and tests."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.server_process import free_port, wait_for

__all__ = ["vllm"]

START_TIMEOUT_S = 300.0
MAX_LENGTH = 1024


@contextmanager
def vllm(
    python: Path,
    model: Path,
    log: Path,
    *,
    dtype: str = "bfloat16",
    pooling: bool = False,
    max_loras: int = 8,
    max_rank: int = 8,
) -> Iterator[str]:
    """Return the address of a vLLM that serves a model on every core and may be given LoRAs.

    Args:
        python: the interpreter of an environment with vLLM; see `make test-vllm`.
        model: folder of the base model.
        log: where its output goes.
        dtype: of the model; without bfloat16 instructions, float32 is many times as fast.
        pooling: whether it returns states, for adapters with a head, in place of completions.
        max_loras: of one forward pass; more are exchanged.
        max_rank: of a LoRA.
    """
    port = free_port()
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    command += ["--served-model-name", "base", "--enable-lora", "--max-lora-rank", str(max_rank)]
    command += ["--max-loras", str(max_loras), "--max-cpu-loras", "64", "--dtype", dtype, "--enforce-eager"]
    command += ["--max-model-len", str(MAX_LENGTH)]
    command += ["--runner", "pooling", "--pooler-config.task", "token_embed"] if pooling else []
    wanted = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "HF_HUB_OFFLINE": "1"}
    # Left alone, vLLM keeps a core for its front end.
    wanted["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | wanted, start_new_session=True)
        try:
            wait_for(f"{url}/health", process, log, START_TIMEOUT_S)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
