"""Sparse rows: their canonical form, casts and hashes, against the same rows as dense arrays."""

import numpy as np
import pytest
import scipy.sparse as sp

from dumap.kernels import csr


def rows_of(x):
    matrix = sp.csr_matrix(x)
    return csr.canonical_rows(matrix.data, matrix.indices, matrix.indptr.astype(np.int64), x.shape[1])


@pytest.fixture
def x():
    """Return 40 sparse rows of 30 columns."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(40, 30)) * (rng.random((40, 30)) < 0.2)).astype("f4")


def test_entries_in_any_order_come_to_one_form(x):
    rows = rows_of(x)
    rng, pieces = np.random.default_rng(1), []
    for i in range(len(x)):
        at = rng.permutation(np.arange(rows.indptr[i], rows.indptr[i + 1]))
        pieces.append((np.append(rows.data[at], np.float32(0)), np.append(rows.indices[at], i % 30)))  # and a stored 0
    values, columns = (np.concatenate(part) for part in zip(*pieces, strict=True))
    shuffled = csr.canonical_rows(values, columns, np.cumsum([0, *(len(part) for part, _ in pieces)]), 30)
    for name in ("data", "indices", "indptr"):
        assert np.array_equal(getattr(shuffled, name), getattr(rows, name)), name
    assert np.array_equal(csr.hash_rows(shuffled), csr.hash_rows(rows))


def test_hashes_are_equal_for_equal_rows_alone(x):
    x[5], x[6] = x[3], x[3]
    x[6, np.flatnonzero(x[6])[0]] = np.nextafter(x[6, np.flatnonzero(x[6])[0]], np.float32(9))
    x[7], x[8] = 0, 0
    for second in (False, True):
        hashes = csr.hash_rows(rows_of(x), second)
        assert (hashes[3], hashes[7]) == (hashes[5], hashes[8])
        assert len(np.unique(hashes)) == len(x) - 2
    assert not np.isin(csr.hash_rows(rows_of(x)), csr.hash_rows(rows_of(x), is_second=True)).all()


def test_rows_are_checked_and_cast_as_dense_ones_are():
    x = np.zeros((7, 6))
    x[1, 2], x[2, 3], x[3, 0], x[4, 5], x[5, 1], x[6, :] = np.nan, np.inf, 1e300, 1e-300, 0.1, 0.5
    rows = rows_of(x)
    finite, zero = csr.find_finite_and_empty(csr.as_float32(rows))
    assert finite.tolist() == [True, False, False, False, True, True, True]
    assert zero.tolist() == [True, False, False, False, True, False, False]
    assert csr.changed_by_cast(rows).tolist() == [False, False, False, False, True, True, False]
    whole = rows_of(np.array([[2**24, 0], [2**24 + 1, 0], [0, -(2**24) - 1]]))
    assert csr.changed_by_cast(whole).tolist() == [False, True, True]


@pytest.mark.parametrize(("dtype", "read"), [("f2", "f4"), ("?", "u1"), (">f4", "<f4"), ("u2", "u2"), ("f8", "f8")])
def test_entries_have_a_dtype_that_can_be_computed_with(dtype, read):
    rows = csr.canonical_rows(np.array([1, 1], dtype), np.array([3, 1]), np.array([0, 1, 2]), 5)
    assert (rows.dtype, rows.toarray().tolist()) == (np.dtype(read), [[0, 0, 0, 1, 0], [0, 1, 0, 0, 0]])
    assert csr.entry_dtype(np.dtype(dtype)) == np.dtype(read)


@pytest.mark.parametrize("pieces", [[1000], [100, 900], [1] * 40 + [256, 704]])
def test_the_densest_rows_are_found_however_they_come(pieces):
    counts = np.random.default_rng(0).poisson(5, 1000)
    counts[300:520] = 20
    expected = max(counts[first : first + csr.WINDOW_ROWS].sum() for first in range(0, 1000, csr.WINDOW_ROWS))
    assert csr.max_window_entries(np.split(counts, np.cumsum(pieces)[:-1])) == expected
