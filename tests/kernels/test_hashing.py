"""Random numbers by hashing: against integers of Python, and without repeats."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumap.kernels import hashing

MASK = 2**64 - 1
GOLDEN = int(hashing.GOLDEN)
PURPOSES = [value for name, value in vars(hashing).items() if name.isupper() and isinstance(value, int)]
words = st.integers(0, MASK)


def mix(z: int) -> int:
    """Scramble 64 bits, in Python's integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def test_draw_is_splitmix64():
    # the first outputs for the seed 1234567, as published with the reference implementation
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [int(hashing.draw_word(np.uint64(1234567), n)) for n in range(4)] == published
    assert [mix((1234567 + GOLDEN * (n + 1)) & MASK) for n in range(4)] == published


@given(st.integers(0, 2**63 - 1), st.sampled_from(PURPOSES), st.lists(st.integers(0, 2**62), max_size=5))
def test_draws_depend_on_seed_purpose_and_counter_alone(seed, purpose, counters):
    base = mix((seed * GOLDEN + purpose) & MASK)
    expected = [mix((base + GOLDEN * (counter + 1)) & MASK) for counter in counters]
    assert hashing.draw_words(seed, purpose, np.array(counters, np.int64)).tolist() == expected


def test_no_two_purposes_share_a_stream():
    streams = [hashing.draw_words(42, purpose, np.arange(1000)) for purpose in PURPOSES]
    assert len(np.unique(np.concatenate(streams))) == 1000 * len(PURPOSES)


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_a_pairs_bits_are_its_own(i, j):
    assert int(hashing.hash_pair(i, j)) == mix(mix((i + GOLDEN) & MASK) ^ j)


def test_pairs_share_no_bits_and_their_order_counts():
    pairs = {int(hashing.hash_pair(i, j)) for i in range(200) for j in range(200)}
    assert len(pairs) == 200 * 200


def test_uniform_is_even_and_below_one():
    assert hashing.uniform_from_bits(np.array([0, MASK], np.uint64)).tolist() == [0.0, 1 - 2.0**-53]
    values = hashing.uniform_from_bits(hashing.draw_words(7, hashing.RANDOM_BOX, np.arange(200_000)))
    counts = np.histogram(values, 20, (0, 1))[0]
    assert np.abs(counts - 10_000).max() < 500  # five standard deviations


@given(st.lists(st.lists(st.integers(0, 255), min_size=11, max_size=11), min_size=1, max_size=8))
def test_rows_hash_alike_when_they_are_alike(rows):
    rows = np.array(rows, np.uint8)
    hashes = hashing.hash_rows(rows)
    assert (hashes[:, None] == hashes).tolist() == (rows[:, None] == rows).all(axis=2).tolist()
    assert all(hashing.hash_rows(row[None])[0] == h for row, h in zip(rows, hashes, strict=True))


def test_every_bit_of_a_row_counts_and_so_does_its_place():
    row = np.random.default_rng(0).integers(0, 2**32, 19, np.uint32)
    changed = [row]
    for column in range(len(row)):
        changed += [row ^ np.where(np.arange(len(row)) == column, np.uint32(1 << bit), 0) for bit in range(32)]
    changed += [np.roll(row, shift) for shift in range(1, len(row))]
    assert len(np.unique(hashing.hash_rows(np.array(changed, np.uint32)))) == len(changed)
    zeros = [hashing.hash_rows(np.zeros((1, width), np.uint32))[0] for width in range(1, 40)]
    assert len(set(zeros)) == 39


def test_the_second_hash_is_another():
    """Equal for equal rows, and as far from the first as from chance: half of all bits agree."""
    rows = np.random.default_rng(1).integers(0, 2**16, (2000, 5)).astype(np.uint16)
    first, second = hashing.hash_rows(rows), hashing.hash_rows(rows, is_second=True)
    assert len(np.unique(second)) == len(np.unique(rows, axis=0))
    assert np.array_equal(second, hashing.hash_rows(rows.copy(), is_second=True))
    differing = np.unpackbits((first ^ second).view(np.uint8)).mean()
    assert differing == pytest.approx(0.5, abs=0.01)
    apart = first[:, None] - first[None, :100], second[:, None] - second[None, :100]
    assert not ((apart[0] == apart[1]) & (apart[0] != 0)).any()


@given(st.lists(words, min_size=2, max_size=12), st.data())
def test_fold_adds_up_over_blocks_and_knows_places(hashes, data):
    hashes = np.array(hashes, np.uint64)
    whole = int(hashing.sum_hashes(hashes, 0))
    cut = data.draw(st.integers(0, len(hashes)))
    assert (int(hashing.sum_hashes(hashes[cut:], cut)) + int(hashing.sum_hashes(hashes[:cut], 0))) & MASK == whole
    if hashes[0] != hashes[-1]:
        hashes[[0, -1]] = hashes[[-1, 0]]
        assert int(hashing.sum_hashes(hashes, 0)) != whole
