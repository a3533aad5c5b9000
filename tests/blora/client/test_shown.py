"""A prediction in a Python session."""

from tests.blora.client.predictions import prediction


def test_warnings_are_named_in_the_line_and_told_in_the_notebook() -> None:
    plain, warned = prediction(), prediction(warnings=["mostly_guesses", "<later>"])
    assert "warning" not in repr(plain) + plain._repr_html_()
    assert repr(warned) == "Prediction('billing'; billing 0.90, sales 0.10; warnings: mostly_guesses, <later>)"
    html = warned._repr_html_()
    assert "<br>warning: mostly_guesses (the question is farther from the training rows" in html
    assert "<br>warning: &lt;later&gt;</div>" in html
