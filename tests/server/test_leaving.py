"""A server that is told to go while its model loads does not wait for it."""

import signal
import subprocess
import sys
import time

import pytest

from server.shutdown import leave

SLOW_TO_LOAD = """
import sys, time
from server.cli import main
from server.engines.torch_engine import TorchEngine

def load(self):
    print("loading", flush=True)
    time.sleep(600)

TorchEngine._load = load
sys.exit(main(["--port=0", "--drain-delay-s=0"]))
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_model_that_loads_is_not_waited_for(sent: signal.Signals) -> None:
    command = [sys.executable, "-c", SLOW_TO_LOAD]
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


def test_with_nothing_left_to_do_the_process_ends_by_itself() -> None:
    assert leave(3) == 3
