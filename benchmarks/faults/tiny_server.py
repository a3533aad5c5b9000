"""A real server whose model is tiny and random, for whoever asks a hundred thousand times and cares for no sense."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.server_process import Server, serve
from blora.server.keys import line_of

__all__ = ["KEY", "NAMES", "tiny_server"]

NAMES = ("one", "two", "three", "four")
KEY = "the key of whoever measures"


@contextmanager
def tiny_server(folder: Path, log: Path | None = None, **flags: str) -> Iterator[Server]:
    """Serve the first of four adapters; the others can be loaded from the adapter root with the admin key KEY.

    Args:
        folder: where the model and its adapters are made.
        log: where the server's output goes; a file in the folder by default.
        flags: further ones of `blora serve`, with underscores.
    """
    from tests.scenarios import tiny_model, tiny_tokenizer
    from tests.server.engines.asking import write_adapter

    tiny_model().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    for seed, name in enumerate(NAMES):
        write_adapter(folder / "adapters" / name, folder / "base", seed=seed)
    (folder / "keys").write_text(line_of("benchmark", "admin", KEY) + "\n")
    given = {
        "adapters": f"{NAMES[0]}={folder / 'adapters' / NAMES[0]}",
        "default_adapter": NAMES[0],
        "base_model": str(folder / "base"),
        "adapter_root": str(folder / "adapters"),
        "api_keys": str(folder / "keys"),
        "log_level": "warning",
    }
    with serve(log or folder / "log", **given | flags) as server:
        yield server
