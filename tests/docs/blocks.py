"""The code blocks of a page, run in order as its reader would run them, and their output held against what is shown."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.server_process import environment, free_port, wait_for
from blora.scores import SCORES

__all__ = ["ROOT", "Block", "Reader", "blocks", "differences", "reader"]

ROOT = Path(__file__).parents[2]
ADDRESS = "127.0.0.1:8000"
START_TIMEOUT_S = 180.0
BLOCK_TIMEOUT_S = 540.0

# What may differ from one processor to another: the digits, the dtype, the best score, and which targets are proved.
_SCORE = "|".join(SCORES)
_VARIES = (
    (r"\b\d+(\.\d+)?(e-?\d+)?\b", "#"),
    (r"\b(bfloat16|float32)\b", "DTYPE"),
    (rf"\b(low|high)_({_SCORE})\b", "REASON"),
    (rf"^(\* *#) +({_SCORE}) ", r"\1 SCORE "),
    (rf"^ +# +(not proved|({_SCORE}) +# +# +#)$", "TARGET"),
    (r"\s+", " "),
)


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a page: its language, its code, the output that follows it, if any, and its line."""

    language: str
    code: str
    shown: str | None
    line: int


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page that a reader runs: those of sh and of python."""
    text = page.read_text()
    found: list[Block] = []
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", text, re.DOTALL | re.MULTILINE):
        language, code, shown = match.groups()
        if language in ("sh", "python"):
            found.append(Block(language, code, shown, text.count("\n", 0, match.start()) + 1))
    return found


@dataclass
class Reader:
    """Somebody who works through a page in a folder, with a server in another terminal once the page starts one."""

    folder: Path
    port: int
    server: "subprocess.Popen[bytes] | None" = None
    outputs: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a shell in which the environment is activated and nothing of blora is set but the cache."""
        kept = environment()
        path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
        served = {"BLORA_PORT": str(self.port), "BLORA_URL": f"http://127.0.0.1:{self.port}"}
        return kept | served | {"PATH": path, "PYTHONPATH": str(ROOT)}

    def run(self, block: Block) -> str:
        """Run a block and return its output; a server that it starts is left running, and ready."""
        code = block.code.replace(ADDRESS, f"127.0.0.1:{self.port}")
        if code.startswith("blora serve"):
            return self._serve(code)
        command = ["bash", "-euo", "pipefail", "-c", code] if block.language == "sh" else [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=BLOCK_TIMEOUT_S
        )
        assert done.returncode == 0, f"line {block.line}:\n{block.code}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def _serve(self, code: str) -> str:
        self.stop()
        log = self.folder / "server.log"
        with log.open("wb") as out:
            command = ["bash", "-c", f"exec {code}"]
            self.server = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=out, stderr=out)
        wait_for(f"http://127.0.0.1:{self.port}/readyz", self.server, log, START_TIMEOUT_S)
        return log.read_text()

    def stop(self) -> None:
        """End the server, if there is one, as Ctrl-C does."""
        if self.server is not None:
            self.server.send_signal(signal.SIGINT)
            try:
                self.server.wait(timeout=60)
            finally:
                self.server.kill()
            self.server = None


@contextmanager
def reader(folder: Path) -> Iterator[Reader]:
    """Somebody in a folder that has the examples of a clone; a server that is left running is ended."""
    (folder / "examples").symlink_to(ROOT / "examples")
    port = free_port()
    somebody = Reader(folder, port)
    try:
        yield somebody
    finally:
        somebody.stop()


def differences(shown: str, output: str) -> str | None:
    """Return where an output differs in shape from what a page shows; a shown line `...` stands for any lines."""
    got = [_shape(line) for line in output.rstrip().splitlines()]
    pieces: list[list[str]] = [[]]
    for line in map(_shape, shown.rstrip().splitlines()):
        if line == "...":
            pieces.append([])
        else:
            pieces[-1].append(line)
    at = 0
    for number, piece in enumerate(pieces):
        starts = range(at, len(got) - len(piece) + 1)
        if number == 0:
            starts = starts[:1]
        if number == len(pieces) - 1:
            starts = starts[-1:] if piece or len(pieces) == 1 else starts
            if len(pieces) == 1 and len(got) != len(piece):
                starts = range(0)
        start = next((start for start in starts if got[start : start + len(piece)] == piece), None)
        if start is None:
            return "shown:\n{}\ngot:\n{}".format("\n".join(piece), "\n".join(got[at:]))
        at = start + len(piece)
    return None


def _shape(line: str) -> str:
    for pattern, mask in _VARIES:
        line = re.sub(pattern, mask, line)
    return line.rstrip()
