"""Identifiers of predictions."""

import re

from blora.server.prediction.ids import prediction_id


def test_ids_have_one_form_and_are_all_different() -> None:
    made = {prediction_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch("pred_[0-9A-HJKMNP-TV-Z]{26}", one) for one in made)


def test_ids_sort_by_time() -> None:
    made = [prediction_id(1_700_000_000 + 0.001 * i) for i in range(200)]
    assert made == sorted(made)
