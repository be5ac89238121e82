import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dumap.kernels import cells, hashing

# packing -----------------------------------------------------------------------------------------

loads = st.lists(st.sampled_from([0, 0, 1, 2, 5]) | st.integers(0, 60), min_size=1, max_size=40)


@settings(max_examples=500)
@given(loads, st.integers(1, 40), st.integers(1, 25))
def test_leaves_are_packed_in_line_into_cells_of_about_the_same_size(own, rows, fewest):
    own = np.array(own, np.int64)
    packed, pieces = cells.assign_leaves(own, rows, fewest)
    assert (packed.dtype, pieces.dtype) == (np.int32, np.int32)
    assert np.array_equal(pieces, np.where(own > rows, -(-own // rows), 1))
    held, last = np.zeros(packed[-1] + pieces[-1]), 0
    for leaf, load in enumerate(own):
        assert packed[leaf] in (last, last + 1), "cells follow each other"
        last = packed[leaf] + pieces[leaf] - 1
        held[packed[leaf] : last + 1] += load / pieces[leaf]
    assert last == len(held) - 1
    assert (held > 0).all() or not own.any()
    assert (held <= 2 * rows + 2 * fewest).all()
    in_pieces = np.zeros(len(held), bool)
    for leaf in np.flatnonzero(pieces > 1):
        in_pieces[packed[leaf] : packed[leaf] + pieces[leaf]] = True
    assert (held[~in_pieces] >= fewest).all() or len(held) == 1
    if fewest == 1:
        assert (held <= 2 * rows).all()
        assert (held[in_pieces] <= rows).all(), "pieces have their cells to themselves"


def test_even_leaves_are_packed_evenly():
    packed, pieces = cells.assign_leaves(np.full(100, 20), 250)
    assert set(np.bincount(packed)) == {12, 13}
    assert (pieces == 1).all()


# the way to the cells ----------------------------------------------------------------------------


def obvious_route(near, packed, pieces, start, seed, max_cells_per_row, reach, width):
    """Return each row's {cell: leaves it probes there}, in the order joined, one row after the other."""
    first = {}
    for leaf, cell in enumerate(packed.tolist()):
        first.setdefault(cell, leaf)
    for leaf in np.flatnonzero(pieces > 1):
        for piece in range(1, pieces[leaf]):
            first[packed[leaf] + piece] = leaf
    found = []
    hashes = hashing.draws(seed, hashing.PIECES, np.arange(start, start + len(near)))
    for row, h in zip(near, hashes, strict=True):
        joined: dict[int, list[int]] = {}
        for rank, leaf in enumerate(leaf for leaf in row if leaf >= 0):
            piece = int(h) % int(pieces[leaf])
            cell = int(packed[leaf]) + piece
            if cell in joined or (len(joined) < max_cells_per_row and rank < reach):
                joined.setdefault(cell, []).append(leaf - first[cell])
            if rank == 0 and pieces[leaf] > 1 and max_cells_per_row > 1:
                following = int(packed[leaf]) + (piece + 1) % int(pieces[leaf])
                joined[following] = [leaf - first[following]]
        found.append({c: p[:width] for c, p in joined.items()})
    return found


@st.composite
def ways(draw):
    """Draw a packing, and the nearest leaves of some rows."""
    own = np.array(draw(loads), np.int64)
    packed, pieces = cells.assign_leaves(own, draw(st.integers(3, 40)), draw(st.integers(1, 20)))
    reach = min(len(own), draw(st.integers(1, 10)))
    one = st.permutations(range(len(own))).map(lambda p: p[:reach])
    rows = draw(st.lists(one | st.just([-1] * reach), max_size=12))
    return np.array(rows, np.int32).reshape(len(rows), reach), packed, pieces


@given(ways(), st.integers(0, 10**12), st.integers(0, 99), st.integers(1, 7), st.integers(1, 10), st.integers(1, 10))
def test_rows_are_sent_to_the_cells_of_their_leaves(way, start, seed, max_cells_per_row, reach, width):
    near, packed, pieces = way
    own, probes = cells.route(near, packed, pieces, start, seed, max_cells_per_row, reach, width)
    assert (own.shape, probes.shape) == ((len(near), max_cells_per_row), (len(near), max_cells_per_row, width))
    found = [
        {int(c): p[p >= 0].tolist() for c, p in zip(cells_of[cells_of >= 0], leaves_of, strict=False)}
        for cells_of, leaves_of in zip(own, probes, strict=True)
    ]
    wanted = obvious_route(near, packed, pieces, start, seed, max_cells_per_row, reach, width)
    assert [list(row.items()) for row in found] == [list(row.items()) for row in wanted]
    for row, cells_of in zip(found, own, strict=True):
        assert len(row) == (cells_of >= 0).sum() <= max_cells_per_row, "a cell is joined once"
        assert all(row.values()), "each cell is joined for a leaf"
    assert (own[near[:, 0] < 0] == -1).all()


@given(ways(), st.integers(0, 99))
def test_probes_are_leaves_of_the_cell(way, seed):
    """Taken back to the tree's leaves, they are among those nearest to the row."""
    near, packed, pieces = way
    own, probes = cells.route(near, packed, pieces, 0, seed, 5, near.shape[1], near.shape[1])
    for row, slot, at in np.argwhere(probes >= 0):
        leaves = [n for n in range(len(packed)) if 0 <= own[row, slot] - packed[n] < pieces[n]]
        leaf = min(leaves) + probes[row, slot, at]
        assert leaf in leaves
        assert leaf in near[row]


def test_pieces_of_a_leaf_are_linked_in_a_ring():
    """A row of piece p is a guest of piece p + 1, so that rows that are all the same are not apart."""
    packed, pieces = cells.assign_leaves(np.array([5, 100, 5]), 12)
    assert pieces[1] == 9
    near = np.tile(np.array([1, 0, 2], np.int32), (2000, 1))
    own, probes = cells.route(near, packed, pieces, 0, 0, 4, 10, 3)
    piece = own[:, 0] - packed[1]
    assert np.bincount(piece, minlength=9).min() > 150
    assert np.array_equal(own[:, 1] - packed[1], (piece + 1) % 9)
    assert (probes[:, :2, 0] == 0).all()
    alone, _ = cells.route(near, packed, pieces, 0, 0, 1, 10, 3)
    assert np.array_equal(alone[:, 0], own[:, 0])


def test_a_rows_way_does_not_depend_on_the_rows_beside_it():
    packed, pieces = cells.assign_leaves(np.full(30, 70), 50)
    near = np.array([np.random.default_rng(n).permutation(30)[:10] for n in range(300)], np.int32)
    whole = cells.route(near, packed, pieces, 10**10, 3, 4, 10, 10)
    for low, high in [(0, 1), (7, 250), (299, 300)]:
        part = cells.route(near[low:high], packed, pieces, 10**10 + low, 3, 4, 10, 10)
        assert all(np.array_equal(a, b[low:high]) for a, b in zip(part, whole, strict=True))


@st.composite
def joined_cells(draw):
    """Draw the cells of some rows: a home, distinct guests' cells, -1 after them; or -1 alone."""
    width = draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(st.integers(0, 4), unique=True, max_size=width), max_size=12))
    return np.array([row + [-1] * (width - len(row)) for row in rows], np.int32).reshape(len(rows), width)


@given(joined_cells(), st.randoms(use_true_random=False))
def test_rows_are_ordered_by_cell_then_home_before_guests_then_position(own, random):
    positions = np.array(random.sample(range(100), len(own)), np.int64)
    source, slot = cells.order_by_cell(own, positions)
    copies = [(c, s > 0, positions[i], i, s) for i, row in enumerate(own) for s, c in enumerate(row) if c >= 0]
    found = zip(own[source, slot], slot > 0, positions[source], source, slot, strict=True)
    assert list(found) == sorted(copies)


@given(joined_cells(), st.lists(st.integers(0, 10**12), min_size=5, max_size=5), st.integers(0, 12))
def test_ranks_number_the_rows_of_each_cell_in_turn(own, start, cut):
    home, start = own[:, 0], np.array(start, np.int64)
    ranks = cells.ranks(home, start)
    assert (ranks[home < 0] == -1).all()
    for c in range(5):
        assert ranks[home == c].tolist() == list(range(start[c], start[c] + (home == c).sum()))
    after = start + np.bincount(home[:cut][home[:cut] >= 0], minlength=5)
    assert np.array_equal(np.concatenate([cells.ranks(home[:cut], start), cells.ranks(home[cut:], after)]), ranks)


# guests that are turned away -----------------------------------------------------------------------


@st.composite
def routed(draw):
    """Draw the cells of many rows, one of which most rows want to be guests of."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    count, slots = draw(st.integers(2, 12)), draw(st.integers(1, 5))
    own = np.array([rng.permutation(count) for _ in range(draw(st.integers(1, 400)))], np.int32)[:, : slots + 1]
    own[rng.random(own.shape) < draw(st.floats(0, 0.9))] = -1
    own[:, 0] = rng.integers(count, size=len(own))
    own[:, 1:][own[:, 1:] == own[:, :1]] = -1
    crowd = (own != 0).all(axis=1) & (rng.random(len(own)) < draw(st.floats(0, 1)))
    own[crowd, -1] = 0
    own[rng.random(len(own)) < 0.05] = -1
    return own, count


def turned_away(own, count, start, seed):
    """Return the cells of rows that are admitted, as the stage finds them."""
    priorities, many = cells.guest_priorities(own, start, seed)
    guest = (own >= 0) & (priorities >= 0)
    guests = np.bincount(own[guest].astype(int) * many + priorities[guest], minlength=count * many)
    homes = np.bincount(own[own[:, 0] >= 0, 0], minlength=count)
    limits = cells.admitted_priorities(homes, guests.reshape(count, many))
    return cells.admit(own, priorities, limits), homes, limits


@given(routed(), st.integers(0, 10**12), st.integers(0, 99))
def test_no_cell_has_more_guests_than_it_may(way, start, seed):
    own, count = way
    left, homes, _ = turned_away(own, count, start, seed)
    assert np.array_equal(left[:, 0], own[:, 0]), "homes stay"
    assert ((left == own) | (left == -1)).all()
    before, after = (np.bincount(some[some >= 0], minlength=count) for some in (own, left))
    most = np.maximum(cells.MAX_GUEST_FILL * np.median(before[homes > 0]) if homes.any() else 0, 2 * homes)
    assert (after <= most).all()
    assert np.array_equal(after[before <= most], before[before <= most]), "where no cell is too full, nothing changes"


@given(routed(), st.integers(0, 99))
def test_the_guests_that_are_turned_away_are_those_to_whom_others_are_nearer(way, seed):
    own, count = way
    left, _, _ = turned_away(own, count, 0, seed)
    for cell in range(count):
        last_admitted = max((s for s in range(1, own.shape[1]) if (left[:, s] == cell).any()), default=0)
        for nearer in range(1, last_admitted):
            assert np.array_equal(left[:, nearer] == cell, own[:, nearer] == cell)


def test_whom_a_cell_admits_does_not_depend_on_the_rows_beside_it():
    rng = np.random.default_rng(0)
    own = np.stack([rng.integers(1, 20, 900), rng.integers(20, 40, 900), np.zeros(900)], axis=1).astype(np.int32)
    whole, _, limits = turned_away(own, 40, 10**10, 3)
    assert 0 < (whole[:, 2] == 0).sum() < 900
    for low, high in [(0, 1), (7, 550), (899, 900)]:
        priorities, _ = cells.guest_priorities(own[low:high], 10**10 + low, 3)
        assert np.array_equal(cells.admit(own[low:high], priorities, limits), whole[low:high])
