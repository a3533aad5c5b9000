"""The command line of blora, called in this process."""

from blora.cli import main

__all__ = ["run_blora"]


def run_blora(*arguments: str) -> None:
    """Run a command, such as `run_blora("train", "--data", "rows.jsonl", ...)`.

    Raises:
        RuntimeError: if its exit status is not 0.
    """
    if status := main([*arguments]):
        raise RuntimeError(f"got status {status} from blora {' '.join(arguments)}, expected 0")
