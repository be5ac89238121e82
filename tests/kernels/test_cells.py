import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_limits

from dumap.kernels import cells, hashing


def points(seed: int, n: int, dims: int) -> np.ndarray:
    """Draw rows on a small grid: float32 holds their squared distances exactly."""
    return np.random.default_rng(seed).integers(-6, 7, (n, dims)).astype(np.float32)


def obvious_cells(x, centroids, pieces, start, seed, margin, max_copies):
    first = np.concatenate([[0], np.cumsum(pieces)])
    out = []
    hashes = hashing.draws(seed, hashing.PIECES, np.arange(start, start + len(x)))
    for row, h in zip(x, hashes, strict=True):
        squared = ((centroids - row) ** 2).sum(axis=1)
        nearest = np.argsort(squared, kind="stable")
        joined = [c for c in nearest if squared[c] <= squared[nearest[0]] * margin**2][:max_copies]
        out.append([first[c] + int(h) % int(pieces[c]) for c in joined] + [-1] * (max_copies - len(joined)))
    return out


@given(
    seed=st.integers(0, 999),
    shape=st.tuples(st.integers(1, 20), st.integers(1, 5)),
    count=st.integers(1, 9),
    margin=st.sampled_from([1.0, 1.25, 1.5, 4.0]),
    max_copies=st.integers(1, 12),
)
def test_a_row_joins_the_cells_within_the_margin(seed, shape, count, margin, max_copies):
    x, centroids = points(seed, *shape), points(seed + 1, count, shape[1])
    pieces = np.random.default_rng(seed).integers(1, 4, count).astype(np.int32)
    found = cells.assign(x, centroids, pieces, 10**12, seed, margin, max_copies)
    assert found.dtype == np.int32
    assert found.tolist() == obvious_cells(x, centroids, pieces, 10**12, seed, margin, max_copies)


def test_a_rows_cells_do_not_depend_on_the_rows_beside_it():
    rng = np.random.default_rng(0)
    x, centroids = rng.normal(size=(700, 33)).astype(np.float32), rng.normal(size=(17, 33)).astype(np.float32)
    pieces = np.full(17, 3, np.int32)
    whole = cells.assign(x, centroids, pieces, 0, 5, 1.2, 4)
    for low, high in [(0, 1), (3, 50), (255, 257), (100, 613), (699, 700)]:
        assert np.array_equal(cells.assign(x[low:high], centroids, pieces, low, 5, 1.2, 4), whole[low:high])


def test_a_rows_cells_do_not_depend_on_where_the_origin_lies():
    x, centroids, pieces = points(0, 200, 8), points(1, 9, 8), np.ones(9, np.int32)
    here = cells.assign(x, centroids, pieces, 0, 0, 1.25, 4)
    assert np.array_equal(cells.assign(x + 8192, centroids + 8192, pieces, 0, 0, 1.25, 4), here)


def test_no_row_joins_a_cell_twice_however_far_it_lies():
    x = np.array([[1e25, 1e25], [3e38, -3e38]], np.float32)  # their squares are infinite in float32
    joined = cells.assign(x, points(0, 5, 2), np.ones(5, np.int32), 0, 0, 2.0, 4)
    for row in joined:
        assert len(set(row[row >= 0])) == (row >= 0).sum()


def test_kmeans_gives_one_answer_on_any_number_of_threads():
    x = np.random.default_rng(3).normal(size=(3000, 12)).astype(np.float32)
    answers = []
    for threads in (1, 2, 2):
        with threadpool_limits(limits=threads):
            answers.append(cells.kmeans(x, 9, 42).tobytes())
    assert len(set(answers)) == 1
    assert cells.kmeans(x, 9, 43).tobytes() != answers[0]


def test_kmeans_finds_what_is_apart_and_no_more_than_is_distinct():
    middles = points(1, 6, 4) * 100
    x = np.repeat(middles, 50, axis=0) + np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    found = cells.kmeans(x, 6, 0)
    assert found.dtype == np.float32
    assert (cdist(middles, found).min(axis=1) < 1).all()
    assert np.array_equal(cells.kmeans(np.repeat(middles, 5, axis=0), 20, 0), np.unique(middles, axis=0))


def test_split_cuts_what_is_over_the_cap_and_leaves_the_rest():
    sample = np.concatenate([np.random.default_rng(0).normal(size=(400, 3)), np.full((100, 3), 50)]).astype(np.float32)
    centroids = np.array([[0, 0, 0], [50, 50, 50]], np.float32)
    split, pieces = cells.split(sample, centroids, np.array([4000.0, 1000.0]), 1000.0, 0)
    assert pieces.tolist() == [1] * 5
    assert split.dtype == np.float32
    assert np.array_equal(split[-1], centroids[1])
    home = cells.assign(sample, split, pieces, 0, 0, 1.0, 1)[:, 0]
    assert np.bincount(home[:400], minlength=5)[:4].max() < 200


def test_rows_that_are_all_the_same_are_cut_by_their_ids():
    sample = np.ones((500, 3), np.float32)
    split, pieces = cells.split(sample, sample[:1], np.array([5000.0]), 1200.0, 0)
    assert (len(split), pieces.tolist()) == (1, [5])
    homes = cells.assign(sample, split, pieces, 0, 0, 1.5, 3)
    assert (homes[:, 1:] == -1).all()
    counts = np.bincount(homes[:, 0], minlength=5)
    assert len(counts) == 5
    assert counts.min() > 70
    assert counts.max() < 130


@st.composite
def joined_cells(draw):
    """Draw the cells of some rows: a home, distinct guests' cells, -1 after them; or -1 alone."""
    width = draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(st.integers(0, 4), unique=True, max_size=width), max_size=12))
    return np.array([row + [-1] * (width - len(row)) for row in rows], np.int32).reshape(len(rows), width)


@given(joined_cells(), st.randoms(use_true_random=False))
def test_copies_lie_by_cell_own_rows_first_by_position(own, random):
    positions = np.array(random.sample(range(100), len(own)), np.int64)
    source, cell, guest = cells.order_copies(own, positions)
    copies = [(c, s > 0, positions[i], i) for i, row in enumerate(own) for s, c in enumerate(row) if c >= 0]
    assert list(zip(cell, guest, positions[source], source, strict=True)) == sorted(copies)


@given(joined_cells(), st.lists(st.integers(0, 10**12), min_size=5, max_size=5), st.integers(0, 12))
def test_ranks_number_the_rows_of_each_cell_in_turn(own, start, cut):
    home, start = own[:, 0], np.array(start, np.int64)
    ranks = cells.ranks(home, start)
    assert (ranks[home < 0] == -1).all()
    for c in range(5):
        assert ranks[home == c].tolist() == list(range(start[c], start[c] + (home == c).sum()))
    after = start + np.bincount(home[:cut][home[:cut] >= 0], minlength=5)
    assert np.array_equal(np.concatenate([cells.ranks(home[:cut], start), cells.ranks(home[cut:], after)]), ranks)


def test_split_keeps_a_cell_that_the_sample_does_not_touch():
    centroids = np.array([[0, 0], [90, 90]], np.float32)
    split, pieces = cells.split(np.zeros((10, 2), np.float32), centroids, np.array([10.0, 500.0]), 100.0, 0)
    assert np.array_equal(split, centroids)
    assert pieces.tolist() == [1, 5]


@pytest.mark.parametrize("max_copies", [1, 3])
def test_one_cell_takes_all(max_copies):
    joined = cells.assign(points(0, 9, 2), points(1, 1, 2), np.ones(1, np.int32), 0, 0, 9.0, max_copies)
    assert joined.tolist() == [[0] + [-1] * (max_copies - 1)] * 9
