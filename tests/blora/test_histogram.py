import math
from typing import Any

import pytest
import torch

from blora.decision.histogram import Histogram, entropy_histogram
from blora.errors import ConfigError


def test_every_entropy_is_counted_and_the_extremes_lie_in_the_outer_bins() -> None:
    entropies = torch.tensor([0.0, 0.0, math.log(4), math.log(4) + 1e-12, math.log(4) / 2 + 1e-6])
    histogram = entropy_histogram(entropies, 4)
    assert len(histogram.counts) == 20
    assert (histogram.counts[0], histogram.counts[10], histogram.counts[19]) == (2, 1, 2)
    assert sum(histogram.counts) == 5


@pytest.mark.parametrize(
    ("edges", "counts", "message"),
    [
        ((0.0, 1.0), (1, 2), "2 edges of 2 counts"),
        ((0.0, 0.0), (1,), "ascending"),
        ((0.0, 1.0), (-1,), "a count of -1, expected none below 0"),
        ((0.0,), (), "1 edges of 0 counts, expected some counts"),
        ((), (), "0 edges of 0 counts"),
    ],
)
def test_a_histogram_that_cannot_be_is_refused(edges: Any, counts: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Histogram(edges=edges, counts=counts)
