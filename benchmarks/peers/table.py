"""The peers' table for README.md."""

from collections.abc import Sequence
from typing import Any

from benchmarks.markdown import Columns, record_table

__all__ = ["peers"]


def _clear(row: dict[str, Any]) -> str:
    clear = row["accuracy_clear"]
    return f"{row['accuracy']:.3f}" + (f" ({clear:.3f})" if clear is not None else "")


COLUMNS: Columns = {
    "rows": "{set}",
    "method": "{method}",
    "accuracy (clear)": _clear,
    "NLL": "{nll:.3f}",
    "ECE": "{ece:.3f}",
    "Brier": "{brier:.3f}",
    "AURC": "{aurc:.3f}",
    "coverage at 5 % error": "{coverage_at_5:.2f}",
    "at 10 %": "{coverage_at_10:.2f}",
}


def peers(results: Sequence[dict[str, Any]]) -> str:
    """Return every method's metrics on every set, and where they come from."""
    rows = [{**row, "set": result["set"]} for result in results for row in result["rows"]]
    sizes = "; ".join(
        f"{result['set']}: {result['n_train']:,} training, {result['n_validation']:,} validation and "
        f"{result['n_test']:,} test rows"
        for result in results
    )
    machine = results[0]["machine"]
    revisions = ", ".join(dict.fromkeys(result["revision"] for result in results))
    table = record_table(rows, COLUMNS, n_words=2)
    return (
        f"{table}\n\n{sizes}. Deterministic, so without a spread; {machine['cores']} cores of {machine['processor']}, "
        f"revision {revisions}; `{results[0]['command']}`."
    )
