"""N-grams of texts and their weights, against scikit-learn's."""

import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfVectorizer

from blora.inference.grams import MOST_CHARACTERS, grams_of
from blora.posterior.tf_idf import SparseRows, tf_idf
from blora.training.head.grams import known_grams

TEXTS = (
    "I was charged twice, TWICE, for the same invoice!",
    "the invoice of May was charged  twice\tto us",
    "Où est la facture de mai? a b",
    "ok",
    "",
    "the same the same the same",
)
OTHER = ("charged for the same invoice again", "zzz qqq", "")


def dense(rows: SparseRows, n_columns: int) -> np.ndarray:
    columns, values, begins = (part.numpy() for part in rows)
    found: np.ndarray = csr_matrix((values, columns, begins), (len(begins) - 1, n_columns)).toarray()
    return found


def weights(texts: tuple[str, ...]) -> np.ndarray:
    """(B, M) weights of texts among the n-grams that several of `TEXTS` share, words last."""
    grams, idf = known_grams([grams_of(text) for text in TEXTS], 10_000)
    found = dense(tf_idf([grams_of(text) for text in texts], grams, idf), len(grams))
    return found[:, np.argsort(grams.numpy() % 2, kind="stable")]


@pytest.mark.parametrize("texts", [TEXTS, OTHER])
def test_weights_are_those_of_scikit_learn(texts: tuple[str, ...]) -> None:
    expected = [
        TfidfVectorizer(analyzer=kind, ngram_range=orders, min_df=2, sublinear_tf=True).fit(TEXTS).transform(texts)
        for kind, orders in (("char_wb", (2, 5)), ("word", (1, 2)))
    ]
    found = weights(texts)
    assert found.shape[1] == sum(part.shape[1] for part in expected)
    start = 0
    for part in expected:  # columns are in another order
        own = found[:, start : start + part.shape[1]]
        np.testing.assert_allclose(np.sort(own, 1), np.sort(part.toarray(), 1), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(own @ own.T, (part @ part.T).toarray(), rtol=1e-5, atol=1e-6)
        start += part.shape[1]


def test_the_most_frequent_of_the_shared_n_grams_are_known() -> None:
    read = [grams_of(text) for text in TEXTS]
    every, idf = known_grams(read, 10_000)
    some, of_some = known_grams(read, 5)
    assert bool((every[1:] > every[:-1]).all())
    assert bool((some[1:] > some[:-1]).all())
    assert idf.max().item() == pytest.approx(math.log((1 + len(TEXTS)) / (1 + 2)) + 1)  # in two texts at least
    assert sorted(of_some.tolist()) == sorted(idf.tolist())[:5]
    assert set(some.tolist()) < set(every.tolist())
    assert known_grams([], 5)[0].tolist() == known_grams(read[3:5], 5)[0].tolist() == []


def test_a_text_counts_once_however_many_rows_have_it() -> None:
    alone, twice = (known_grams([grams_of(text) for text in (*TEXTS, *more)], 10_000) for more in ((), TEXTS[:3]))
    assert torch.equal(alone[0], twice[0])
    assert torch.equal(alone[1], twice[1])


def test_a_text_has_each_n_gram_once_with_its_count_and_long_words_are_cut() -> None:
    grams, counts = grams_of("the same the same the same")
    assert len(grams.unique()) == len(grams)
    assert counts.max() == 6  # "e " ends both words
    assert torch.equal(grams_of("x" * MOST_CHARACTERS)[0][:0], grams_of("")[0])
    one, other = (grams_of("y" * (MOST_CHARACTERS + more)) for more in (5, 9))
    of_characters = one[0] % 2 == 0
    assert torch.equal(one[:, of_characters], other[:, other[0] % 2 == 0])


def test_the_product_with_a_matrix_is_that_of_the_dense_weights() -> None:
    grams, idf = known_grams([grams_of(text) for text in TEXTS], 10_000)
    rows = tf_idf([grams_of(text) for text in OTHER], grams, idf)
    matrix = torch.randn(len(grams), 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rows.times(matrix), torch.from_numpy(dense(rows, len(grams))) @ matrix)
    assert rows.times(matrix)[1:].abs().max() == 0
