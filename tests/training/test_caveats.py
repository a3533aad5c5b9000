"""Warnings about rows, in the log and from the commands."""

import dataclasses
from argparse import ArgumentParser

import pytest

from blora.decision.by_choice import ChoiceCounts
from blora.decision.temperature import FEW_ROWS
from blora.training.caveats import (
    warn_of_few_rows,
    warn_of_odd_labels,
    warn_of_reference,
    warn_of_two_labels,
    warn_of_unseen_choices,
    warn_of_worse_choices,
)
from blora.training.commands.arguments import parse
from tests.server.calibrations import calibration


def test_few_validation_rows_are_told_with_their_number(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_few_rows(6, 6)
    warn_of_few_rows(6, FEW_ROWS)
    alone, helped = caplog.records
    assert alone.levelname == "WARNING"
    assert alone.getMessage().startswith("there are only 6 validation rows: the recalibration stays weak")
    assert helped.getMessage().startswith(
        "there are only 6 validation rows: their accuracy, NLL and ECE are unreliable"
    )
    warn_of_few_rows(FEW_ROWS, FEW_ROWS)
    assert caplog.records == [alone, helped]


def test_a_poor_reference_of_familiarity_is_told(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_reference(FEW_ROWS, 0, guesses=False)
    assert not caplog.records
    warn_of_reference(4, 0, guesses=True)
    warn_of_reference(4, 3, guesses=False)
    first, few, trained_on = (record.getMessage() for record in caplog.records)
    assert first.startswith("there are only 4 reference rows: no question can be less familiar than 1/5; use at least")
    assert "stay as confident as any" in few
    assert trained_on.startswith("the adapter was trained on 3 of the 4 reference rows")


def test_labels_that_may_be_misspelt_are_named_with_what_is_meant(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_odd_labels(["card arrival"] * 40 + ["Card arrival "] + ["card arival"] * 2 + ["card lost"] * 9 + ["fraud"])
    told = sorted(record.getMessage() for record in caplog.records)
    assert [text.split(" may")[0] for text in told] == [
        "the label 'Card arrival ', of 1 rows,",
        "the label 'card arival', of 2 rows,",
    ]
    assert all("may be a misspelling of 'card arrival', of 40: as it is, it is a choice of its own" in t for t in told)


def test_labels_that_are_empty_cells_are_named(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_odd_labels(["card", "NaN", "None of these", "none"] * 20)
    assert [record.getMessage() for record in caplog.records] == [
        "the label 'NaN', of 20 rows, may be an empty cell: as it is, it is a choice of its own"
    ]


def test_a_choice_for_which_a_target_evidently_fails_is_named(caplog: pytest.LogCaptureFixture) -> None:
    counts = [
        ChoiceCounts(choice="harmless", n_rows=976, n_missed=0, n_answers=1000, n_wrong=24),
        ChoiceCounts(choice="harmful", n_rows=24, n_missed=24, n_answers=30, n_wrong=9),
    ]
    made = calibration("sha256:" + "a" * 64)
    warn_of_worse_choices(made)
    warn_of_worse_choices(dataclasses.replace(made, choices=tuple(counts[:1])))
    assert not caplog.records
    warn_of_worse_choices(dataclasses.replace(made, choices=tuple(counts)))
    [told] = [record.getMessage() for record in caplog.records]
    assert told == (
        "the target 0.05 is proved for all answers together, not for each choice: of 30 answers 'harmful', 9 are "
        "wrong; of 24 questions of 'harmful', 24 get another answer. max_missed limits the share of each choice's "
        "questions that get another answer"
    )
    caplog.clear()
    limited = dataclasses.replace(made, asks=(dataclasses.replace(made.asks[0], max_missed=0.2),))
    warn_of_worse_choices(dataclasses.replace(limited, choices=tuple(counts)))
    [told] = [record.getMessage() for record in caplog.records]
    assert told == (
        "the target 0.05 is proved for all answers together, not for each choice: of 30 answers 'harmful', 9 are wrong"
    )


def test_choices_that_no_training_row_has_are_named(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_unseen_choices(["a", "b"], [0, 1, 0])
    warn_of_unseen_choices((), [2, 1])  # each row brings its own
    assert not caplog.records
    warn_of_unseen_choices([f"c{n}" for n in range(9)], [1, 3])
    [record] = caplog.records
    assert record.getMessage().startswith(
        "no training row has the label 'c0', 'c2', 'c4', 'c5', 'c6' ... (7 of 9 choices): nothing is learnt about it"
    )


def test_choices_that_no_row_of_another_use_has_are_named(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_unseen_choices(["a", "b"], [0], "validation")
    warn_of_unseen_choices(["a", "b"], [0], "calibration")
    validation, calibration = (record.getMessage() for record in caplog.records)
    assert validation.startswith("no validation row has the label 'b' (1 of 2 choices): the recalibration is fitted")
    assert calibration.startswith("no calibration row has the label 'b' (1 of 2 choices): the guarantee is about")


def test_the_first_question_with_two_labels_is_named_with_the_number_of_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    warn_of_two_labels([("rows:1", "why?", "a"), ("rows:2", "why?", "a"), ("rows:3", "how?", "b")])
    assert not caplog.records
    warn_of_two_labels([(f"rows:{n}", f"{n % 3}?", label) for n, label in enumerate("abacxaa")])
    assert [record.getMessage() for record in caplog.records] == [
        "rows:0 has the label 'a', and rows:3, with the same question, has 'c': correct one of them, or remove both "
        "(questions with several labels: 2)"
    ]


@pytest.mark.parametrize(("level", "told"), [("warning", True), ("error", False)])
def test_a_command_writes_log_lines_of_its_level_to_standard_error(
    level: str, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):  # a second command in one process does not say everything twice
        parse(ArgumentParser(), ["--log-level", level])
    warn_of_few_rows(6, 6)
    said = capsys.readouterr().err
    assert said.count("warning: there are only 6 validation rows") == told
