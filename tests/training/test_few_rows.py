"""What the commands say of few validation rows."""

import pytest

from blora.decision.temperature import FEW_ROWS
from blora.training.commands.few_rows import warn_of_few_rows


def test_few_validation_rows_are_told_with_their_number(capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_few_rows(6)
    assert capsys.readouterr().err.startswith(
        "warning: there are only 6 validation rows: the recalibration stays close"
    )
    warn_of_few_rows(FEW_ROWS)
    assert capsys.readouterr().err == ""
