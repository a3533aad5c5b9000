"""The table of scores for documents, from the one that the code derives everything from."""

from benchmarks.markdown import markdown_table
from blora.scores import TABLE

__all__ = ["scores"]


def scores(name: str) -> str:
    """Return each score of an answer with its meaning, its threshold in a policy and its reason to abstain."""
    header = ["score", "meaning", "certain if", "threshold in a policy", "reason to abstain"]
    rows = [
        [
            f"`{score.name}`",
            score.meaning[0].lower() + score.meaning[1:].rstrip(".") + (f", in {score.unit}" if score.unit else ""),
            "high" if score.high_is_certain else "low",
            f"`{score.threshold}`" if score.has_threshold else "–",
            f"`{score.reason}`" if score.has_threshold else "–",
        ]
        for score in TABLE
    ]
    return markdown_table(header, rows, n_words=len(header))
