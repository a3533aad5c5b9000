"""The size of a forward pass, one input after another."""

import pytest

from blora.server.scheduling.runs import PassSize, Work


def work(*lengths: int, overhead: int = 0, text: str | None = None, text_tokens: int = 0) -> Work[str]:
    return Work("x", lengths, 2, "group", overhead=overhead, text=text, text_tokens=text_tokens)


@pytest.mark.parametrize(
    ("works", "tokens"),
    [
        ([work(10, 3)], 13 * 2),
        # Both rows are padded to the longest of each part.
        ([work(10, 3), work(6, 5)], 2 * (10 + 5) * 2),
        # What each input takes beside its tokens adds up.
        ([work(10, overhead=7), work(10, overhead=5), work(10, overhead=1)], 3 * 10 * 2 + 7 + 5 + 1),
        # A text that rows begin with is read once.
        ([work(10, text="a", text_tokens=8), work(12, text="a", text_tokens=8)], (2 * 4 + 8) * 2),
        ([work(10, text="a", text_tokens=8), work(12, text="b", text_tokens=8)], (2 * 4 + 8 + 8) * 2),
    ],
)
def test_a_pass_has_the_size_of_its_padded_rows_its_texts_and_its_overheads(
    works: list[Work[str]], tokens: int
) -> None:
    *first, last = works
    assert PassSize(first).beside(last) == tokens
    assert PassSize(works).tokens == tokens
