"""Cells: leaves to cells, rows to cells, guests that are admitted; each against an obvious reference."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dumap.kernels import cells, hashing

# packing -----------------------------------------------------------------------------------------

drawn_leaf_sizes = st.lists(st.sampled_from([0, 0, 1, 2, 5]) | st.integers(0, 60), min_size=1, max_size=40)


@settings(max_examples=500)
@given(drawn_leaf_sizes, st.integers(1, 40), st.integers(1, 25))
def test_leaves_are_packed_in_line_into_cells_of_about_the_same_size(leaf_sizes, rows, min_rows):
    leaf_sizes = np.array(leaf_sizes, np.int64)
    leaf_cells, piece_counts = cells.assign_leaves(leaf_sizes, rows, min_rows)
    assert (leaf_cells.dtype, piece_counts.dtype) == (np.int32, np.int32)
    assert np.array_equal(piece_counts, np.where(leaf_sizes > rows, -(-leaf_sizes // rows), 1))
    cell_rows, last = np.zeros(leaf_cells[-1] + piece_counts[-1]), 0
    for leaf, load in enumerate(leaf_sizes):
        assert leaf_cells[leaf] in (last, last + 1), "cells follow each other"
        last = leaf_cells[leaf] + piece_counts[leaf] - 1
        cell_rows[leaf_cells[leaf] : last + 1] += load / piece_counts[leaf]
    assert last == len(cell_rows) - 1
    assert (cell_rows > 0).all() or not leaf_sizes.any()
    assert (cell_rows <= 2 * rows + 2 * min_rows).all()
    in_pieces = np.zeros(len(cell_rows), bool)
    for leaf in np.flatnonzero(piece_counts > 1):
        in_pieces[leaf_cells[leaf] : leaf_cells[leaf] + piece_counts[leaf]] = True
    assert (cell_rows[~in_pieces] >= min_rows).all() or len(cell_rows) == 1
    if min_rows == 1:
        assert (cell_rows <= 2 * rows).all()
        assert (cell_rows[in_pieces] <= rows).all(), "pieces have their cells to themselves"


def test_even_leaves_are_packed_evenly():
    leaf_cells, piece_counts = cells.assign_leaves(np.full(100, 20), 250)
    assert set(np.bincount(leaf_cells)) == {12, 13}
    assert (piece_counts == 1).all()


# routes of rows to their cells ----------------------------------------------------------------------------


def reference_cells(
    near_leaves, leaf_cells, piece_counts, first_row, seed, max_cells_per_row, joined_leaves, max_probes
):
    """Return each row's {cell: leaves it probes there}, in the order joined, one row after the other."""
    first = {}
    for leaf, cell in enumerate(leaf_cells.tolist()):
        first.setdefault(cell, leaf)
    for leaf in np.flatnonzero(piece_counts > 1):
        for piece in range(1, piece_counts[leaf]):
            first[leaf_cells[leaf] + piece] = leaf
    routes = []
    hashes = hashing.draw_words(seed, hashing.LEAF_PIECES, np.arange(first_row, first_row + len(near_leaves)))
    for row_leaves, row_hash in zip(near_leaves, hashes, strict=True):
        joined: dict[int, list[int]] = {}
        for rank, leaf in enumerate(leaf for leaf in row_leaves if leaf >= 0):
            piece = int(row_hash) % int(piece_counts[leaf])
            cell = int(leaf_cells[leaf]) + piece
            if cell in joined or (len(joined) < max_cells_per_row and rank < joined_leaves):
                joined.setdefault(cell, []).append(leaf - first[cell])
            if rank == 0 and piece_counts[leaf] > 1 and max_cells_per_row > 1:
                next_cell = int(leaf_cells[leaf]) + (piece + 1) % int(piece_counts[leaf])
                joined[next_cell] = [leaf - first[next_cell]]
        routes.append({c: p[:max_probes] for c, p in joined.items()})
    return routes


@st.composite
def rows_and_leaves(draw):
    """Draw a packing, and the nearest leaves of some rows."""
    leaf_sizes = np.array(draw(drawn_leaf_sizes), np.int64)
    leaf_cells, piece_counts = cells.assign_leaves(leaf_sizes, draw(st.integers(3, 40)), draw(st.integers(1, 20)))
    width = min(len(leaf_sizes), draw(st.integers(1, 10)))
    nearest = st.permutations(range(len(leaf_sizes))).map(lambda p: p[:width])
    rows = draw(st.lists(nearest | st.just([-1] * width), max_size=12))
    return np.array(rows, np.int32).reshape(len(rows), width), leaf_cells, piece_counts


@given(
    rows_and_leaves(),
    st.integers(0, 10**12),
    st.integers(0, 99),
    st.integers(1, 7),
    st.integers(1, 10),
    st.integers(1, 10),
)
def test_rows_are_sent_to_the_cells_of_their_leaves(
    drawn, first_row, seed, max_cells_per_row, joined_leaves, max_probes
):
    near_leaves, leaf_cells, piece_counts = drawn
    row_cells, probes = cells.choose_cells(
        near_leaves, leaf_cells, piece_counts, first_row, seed, max_cells_per_row, joined_leaves, max_probes
    )
    assert (row_cells.shape, probes.shape) == (
        (len(near_leaves), max_cells_per_row),
        (len(near_leaves), max_cells_per_row, max_probes),
    )
    routes = [
        {int(c): p[p >= 0].tolist() for c, p in zip(cells_of[cells_of >= 0], leaves_of, strict=False)}
        for cells_of, leaves_of in zip(row_cells, probes, strict=True)
    ]
    expected = reference_cells(
        near_leaves, leaf_cells, piece_counts, first_row, seed, max_cells_per_row, joined_leaves, max_probes
    )
    assert [list(row.items()) for row in routes] == [list(row.items()) for row in expected]
    for row, cells_of in zip(routes, row_cells, strict=True):
        assert len(row) == (cells_of >= 0).sum() <= max_cells_per_row, "a cell is joined once"
        assert all(row.values()), "each cell is joined for a leaf"
    assert (row_cells[near_leaves[:, 0] < 0] == -1).all()


@given(rows_and_leaves(), st.integers(0, 99))
def test_probes_are_leaves_of_the_cell(drawn, seed):
    """Taken back to the tree's leaves, they are among those nearest to the row."""
    near_leaves, leaf_cells, piece_counts = drawn
    row_cells, probes = cells.choose_cells(
        near_leaves, leaf_cells, piece_counts, 0, seed, 5, near_leaves.shape[1], near_leaves.shape[1]
    )
    for row, slot, probe in np.argwhere(probes >= 0):
        leaves = [n for n in range(len(leaf_cells)) if 0 <= row_cells[row, slot] - leaf_cells[n] < piece_counts[n]]
        leaf = min(leaves) + probes[row, slot, probe]
        assert leaf in leaves
        assert leaf in near_leaves[row]


def test_pieces_of_a_leaf_are_linked_in_a_ring():
    """A row of piece p is a guest of piece p + 1, so that rows that are all the same are not apart."""
    leaf_cells, piece_counts = cells.assign_leaves(np.array([5, 100, 5]), 12)
    assert piece_counts[1] == 9
    near_leaves = np.tile(np.array([1, 0, 2], np.int32), (2000, 1))
    row_cells, probes = cells.choose_cells(near_leaves, leaf_cells, piece_counts, 0, 0, 4, 10, 3)
    piece = row_cells[:, 0] - leaf_cells[1]
    assert np.bincount(piece, minlength=9).min() > 150
    assert np.array_equal(row_cells[:, 1] - leaf_cells[1], (piece + 1) % 9)
    assert (probes[:, :2, 0] == 0).all()
    alone, _ = cells.choose_cells(near_leaves, leaf_cells, piece_counts, 0, 0, 1, 10, 3)
    assert np.array_equal(alone[:, 0], row_cells[:, 0])


def test_a_rows_way_does_not_depend_on_the_rows_beside_it():
    leaf_cells, piece_counts = cells.assign_leaves(np.full(30, 70), 50)
    near_leaves = np.array([np.random.default_rng(n).permutation(30)[:10] for n in range(300)], np.int32)
    whole = cells.choose_cells(near_leaves, leaf_cells, piece_counts, 10**10, 3, 4, 10, 10)
    for low, high in [(0, 1), (7, 250), (299, 300)]:
        part = cells.choose_cells(near_leaves[low:high], leaf_cells, piece_counts, 10**10 + low, 3, 4, 10, 10)
        assert all(np.array_equal(a, b[low:high]) for a, b in zip(part, whole, strict=True))


@st.composite
def draw_row_cells(draw):
    """Draw the cells of some rows: a home, distinct guests' cells, -1 after them; or -1 alone."""
    width = draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(st.integers(0, 4), unique=True, max_size=width), max_size=12))
    return np.array([row + [-1] * (width - len(row)) for row in rows], np.int32).reshape(len(rows), width)


@given(draw_row_cells(), st.randoms(use_true_random=False))
def test_rows_are_ordered_by_cell_then_home_before_guests_then_position(row_cells, random):
    positions = np.array(random.sample(range(100), len(row_cells)), np.int64)
    block_rows, cell_ranks = cells.order_by_cell(row_cells, positions)
    pairs = [(c, s > 0, positions[i], i, s) for i, row in enumerate(row_cells) for s, c in enumerate(row) if c >= 0]
    ordered = zip(
        row_cells[block_rows, cell_ranks], cell_ranks > 0, positions[block_rows], block_rows, cell_ranks, strict=True
    )
    assert list(ordered) == sorted(pairs)


@given(draw_row_cells(), st.lists(st.integers(0, 10**12), min_size=5, max_size=5), st.integers(0, 12))
def test_ranks_number_the_rows_of_each_cell_in_turn(row_cells, first_row, block_end):
    home, first_row = row_cells[:, 0], np.array(first_row, np.int64)
    ranks = cells.assign_positions(home, first_row)
    assert (ranks[home < 0] == -1).all()
    for c in range(5):
        assert ranks[home == c].tolist() == list(range(first_row[c], first_row[c] + (home == c).sum()))
    after = first_row + np.bincount(home[:block_end][home[:block_end] >= 0], minlength=5)
    assert np.array_equal(
        np.concatenate(
            [cells.assign_positions(home[:block_end], first_row), cells.assign_positions(home[block_end:], after)]
        ),
        ranks,
    )


# guests that are turned away -----------------------------------------------------------------------


@st.composite
def rows_of_crowded_cell(draw):
    """Draw the cells of many rows; in one of the cells most rows would be guests."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    count, slots = draw(st.integers(2, 12)), draw(st.integers(1, 5))
    row_cells = np.array([rng.permutation(count) for _ in range(draw(st.integers(1, 400)))], np.int32)[:, : slots + 1]
    row_cells[rng.random(row_cells.shape) < draw(st.floats(0, 0.9))] = -1
    row_cells[:, 0] = rng.integers(count, size=len(row_cells))
    row_cells[:, 1:][row_cells[:, 1:] == row_cells[:, :1]] = -1
    is_crowded = (row_cells != 0).all(axis=1) & (rng.random(len(row_cells)) < draw(st.floats(0, 1)))
    row_cells[is_crowded, -1] = 0
    row_cells[rng.random(len(row_cells)) < 0.05] = -1
    return row_cells, count


def admit_guests(row_cells, count, first_row, seed):
    """Return the cells of rows that are admitted, as the stage finds them."""
    priorities, priority_count = cells.guest_priorities(row_cells, first_row, seed)
    is_guest = (row_cells >= 0) & (priorities >= 0)
    guests = np.bincount(
        row_cells[is_guest].astype(int) * priority_count + priorities[is_guest], minlength=count * priority_count
    )
    homes = np.bincount(row_cells[row_cells[:, 0] >= 0, 0], minlength=count)
    limits = cells.admitted_priorities(homes, guests.reshape(count, priority_count))
    return cells.admitted_cells(row_cells, priorities, limits), homes, limits


@given(rows_of_crowded_cell(), st.integers(0, 10**12), st.integers(0, 99))
def test_no_cell_has_more_guests_than_it_may(drawn, first_row, seed):
    row_cells, count = drawn
    kept, homes, _ = admit_guests(row_cells, count, first_row, seed)
    assert np.array_equal(kept[:, 0], row_cells[:, 0]), "homes stay"
    assert ((kept == row_cells) | (kept == -1)).all()
    before, after = (np.bincount(joined[joined >= 0], minlength=count) for joined in (row_cells, kept))
    limit = np.maximum(cells.MAX_GUEST_FILL * np.median(before[homes > 0]) if homes.any() else 0, 2 * homes)
    assert (after <= limit).all()
    assert np.array_equal(after[before <= limit], before[before <= limit]), "where no cell is too full, nothing changes"


@given(rows_of_crowded_cell(), st.integers(0, 99))
def test_the_guests_that_are_turned_away_are_those_to_whom_others_are_nearer(drawn, seed):
    row_cells, count = drawn
    kept, _, _ = admit_guests(row_cells, count, 0, seed)
    for cell in range(count):
        last_admitted = max((s for s in range(1, row_cells.shape[1]) if (kept[:, s] == cell).any()), default=0)
        for nearer in range(1, last_admitted):
            assert np.array_equal(kept[:, nearer] == cell, row_cells[:, nearer] == cell)


def test_whom_a_cell_admits_does_not_depend_on_the_rows_beside_it():
    rng = np.random.default_rng(0)
    row_cells = np.stack([rng.integers(1, 20, 900), rng.integers(20, 40, 900), np.zeros(900)], axis=1).astype(np.int32)
    whole, _, limits = admit_guests(row_cells, 40, 10**10, 3)
    assert 0 < (whole[:, 2] == 0).sum() < 900
    for low, high in [(0, 1), (7, 550), (899, 900)]:
        priorities, _ = cells.guest_priorities(row_cells[low:high], 10**10 + low, 3)
        assert np.array_equal(cells.admitted_cells(row_cells[low:high], priorities, limits), whole[low:high])
