"""Errors go from one process to another whole, as a pool of processes hands them on."""

import pickle

import pytest

from blora import errors

RAISED = [getattr(errors, name) for name in errors.__all__ if name != "install_hint"]


@pytest.mark.parametrize("kind", RAISED)
def test_an_error_comes_out_of_another_process_as_it_went_in(kind: type[errors.BloraError]) -> None:
    more = {"param": "choices"} if issubclass(kind, errors.PromptError) else {}
    error = kind("got one, expected two", **more)
    error.add_note("in questions[1]")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.args, vars(copy)) == (kind, error.args, vars(error))
    assert copy.__notes__ == ["in questions[1]"]
