"""A server that gets a signal while it starts or its model loads exits without waiting for either."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from blora.server.commands.shutdown import leave

SLOW_TO_LOAD = """
import sys, time
from blora.server.commands.serve import main
import blora.server.engines.torch_engine, blora.server.engines.vllm_engine

def load(*arguments, **more):
    print("loading", flush=True)
    time.sleep(600)

blora.server.engines.torch_engine.open_base = blora.server.engines.vllm_engine.open_base = load
sys.exit(main(["--port=0", "--drain-delay-s=0", "--adapters=one=/somewhere", *sys.argv[1:]]))
"""

SLOW_TO_START = """
import sys, time
from blora.server.commands import flags
from blora.server.commands.serve import main

def read_flags(_):
    print("starting", flush=True)
    time.sleep(600)

flags.read_flags = read_flags
sys.exit(main([]))
"""

VLLM = ["--engine=vllm", "--engine-url=http://127.0.0.1:9", "--engine-folder=/tmp"]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("flags", [[], VLLM], ids=["torch", "vllm"])
def test_a_model_that_loads_is_not_waited_for(sent: signal.Signals, flags: list[str]) -> None:
    command = [sys.executable, "-c", SLOW_TO_LOAD, *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"loading\n"
            time.sleep(0.5)  # until the signal has its handler
            began = time.monotonic()
            server.send_signal(sent)
            assert server.wait(30) == 0
            assert time.monotonic() - began < 10
        finally:
            server.kill()


def test_a_server_that_starts_ends_at_once() -> None:
    """By a handler: the kernel ignores the signal of a container's first process if there is none."""
    with subprocess.Popen([sys.executable, "-c", SLOW_TO_START], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"starting\n"
            server.terminate()
            assert server.wait(10) == 143
        finally:
            server.kill()


def test_with_nothing_left_to_do_the_process_ends_by_itself() -> None:
    assert leave(3, besides=threading.enumerate()) == 3
