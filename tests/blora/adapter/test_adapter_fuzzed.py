"""Adapter folders with bytes changed anywhere: refused for what they are, or loaded whole, and never anything else."""

import shutil
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blora.adapter import load_adapter
from blora.base_model import BaseModel
from blora.errors import AdapterError


@st.composite
def edits(draw: st.DrawFn) -> tuple[int, str, float, bytes]:
    """Which file, what is done to it, where (a share of its length), and with what."""
    kind = draw(st.sampled_from(["overwrite", "insert", "cut", "truncate", "empty", "swap"]))
    return draw(st.integers(0, 99)), kind, draw(st.floats(0, 1)), draw(st.binary(min_size=1, max_size=40))


def edit(folder: Path, which: int, kind: str, where: float, what: bytes) -> None:
    files = sorted(file for file in folder.iterdir() if file.is_file())
    file = files[which % len(files)]
    content = file.read_bytes()
    at = int(where * len(content))
    changed = {
        "overwrite": content[:at] + what + content[at + len(what) :],
        "insert": content[:at] + what + content[at:],
        "cut": content[:at] + content[at + len(what) :],
        "truncate": content[:at],
        "empty": b"",
        "swap": files[(which + 1) % len(files)].read_bytes(),
    }[kind]
    file.write_bytes(changed)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(done=st.lists(edits(), min_size=1, max_size=3))
def test_whatever_is_changed_it_is_refused_or_whole(
    original: Path, llama: BaseModel, tmp_path: Path, done: list[tuple[int, str, float, bytes]]
) -> None:
    folder = tmp_path / "fuzzed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    for one in done:
        edit(folder, *one)
    try:
        loaded = load_adapter(folder, llama)
    except AdapterError:
        return
    assert all(bool(parameter.isfinite().all()) for parameter in loaded.posterior.parameters())
