"""Progress bars on standard error for work on many rows."""

from typing import Any

from tqdm import tqdm

__all__ = ["rows_bar"]

# Work that finishes sooner shows no bar.
DELAY_S = 2.0


def rows_bar(n_rows: int, about: str) -> Any:
    """Return a `tqdm` bar that counts rows and stays hidden if standard error is not a terminal.

    Args:
        n_rows: total number of rows.
        about: label of the bar, as in "scoring".
    """
    return tqdm(total=n_rows, desc=about, unit=" rows", disable=None, delay=DELAY_S, leave=False)
