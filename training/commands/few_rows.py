"""Too few validation rows to judge by, said where their figures are printed."""

import sys

from blora.decision.temperature import FEW_ROWS

__all__ = ["warn_of_few_rows"]


def warn_of_few_rows(n_rows: int) -> None:
    """Prints to standard error that validation rows are few, if they are."""
    if n_rows < FEW_ROWS:
        print(
            f"warning: there are only {n_rows} validation rows: the recalibration stays close to none unless all of "
            f"them ask for more, and their accuracy, NLL and ECE say little; bring at least {FEW_ROWS}, better several "
            "hundred",
            file=sys.stderr,
        )
