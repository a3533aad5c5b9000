"""Progress bars for work on many rows, on standard error."""

from typing import Any

from tqdm import tqdm

__all__ = ["rows_bar"]

# Work that is done sooner shows no bar.
DELAY_S = 2.0


def rows_bar(n_rows: int, about: str) -> Any:
    """Return a bar of `tqdm` that counts rows; nothing is shown where standard error is no terminal.

    Args:
        n_rows: all of them.
        about: what is done to them, as in "scoring".
    """
    return tqdm(total=n_rows, desc=about, unit=" rows", disable=None, delay=DELAY_S, leave=False)
