"""A real vLLM in a process of its own, from an environment of its own, for a benchmark and tests."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

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
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
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
            _wait_until_up(process, url, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)


def _wait_until_up(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"vLLM ended before it was up:\n{log.read_text()[-3000:]}")
        try:
            if httpx.get(f"{url}/health").is_success:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(1)
    raise TimeoutError(f"vLLM was not up after {START_TIMEOUT_S:g} s:\n{log.read_text()[-3000:]}")
