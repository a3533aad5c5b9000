"""Programs in processes of their own."""

import subprocess
import sys


def in_a_process(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
