"""A counter-based random number generator without state.

A random number is the hash of (seed, purpose, counter) by SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014);
the counter is a row or an epoch, for example. So a number depends neither on earlier numbers nor on the task that draws
it.
"""

from __future__ import annotations

import numba as nb
import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)


@nb.njit(inline="always")
def mix_bits(bits: np.uint64) -> np.uint64:
    """Scramble 64 bits."""
    bits = (bits ^ (bits >> _S30)) * _MULTIPLIER_1
    bits = (bits ^ (bits >> _S27)) * _MULTIPLIER_2
    return bits ^ (bits >> _S31)


@nb.njit(inline="always")
def derive_key(seed: int, purpose: int) -> np.uint64:
    """Derive the key of one purpose from the run's seed."""
    return mix_bits(np.uint64(seed) * GOLDEN + np.uint64(purpose))


@nb.njit(inline="always")
def draw_word(key: np.uint64, counter: int) -> np.uint64:
    """Return the 64 random bits that belong to `counter` under `key`."""
    return mix_bits(key + GOLDEN * (np.uint64(counter) + np.uint64(1)))


@nb.njit(inline="always")
def hash_pair(i: int, j: int) -> np.uint64:
    """Return 64 bits that belong to an ordered pair and break ties. They do not depend on the seed."""
    return mix_bits(mix_bits(np.uint64(i) + GOLDEN) ^ np.uint64(j))


@nb.njit(cache=True, nogil=True)
def draw_words(seed: int, purpose: int, counters: np.ndarray) -> np.ndarray:
    """Return the random bits of many counters.

    Parameters
    ----------
    seed, purpose : int
        The purpose is one of the constants of this module.
    counters : ndarray of int64, shape (n,)

    Returns
    -------
    ndarray of uint64, shape (n,)
    """
    key = derive_key(seed, purpose)  # one key a purpose, then one hash a counter
    out = np.empty(counters.shape[0], np.uint64)
    for i in range(counters.shape[0]):
        out[i] = draw_word(key, counters[i])
    return out


def uniform_from_bits(bits: np.ndarray) -> np.ndarray:
    """Turn random bits into float64 in [0, 1)."""
    return (bits >> np.uint64(11)) * (1.0 / 9007199254740992.0)


def hash_rows(rows: np.ndarray, is_second: bool = False) -> np.ndarray:
    """Hash the bytes of each row, in eight interleaved chains that the processor computes in parallel.

    Parameters
    ----------
    rows : ndarray of uint8, uint16, uint32 or uint64, shape (n, words)
        The rows' bytes, seen as unsigned integers.
    is_second : bool
        Use another multiplier and another basis, so that two rows with the same first hash differ in the second.

    Returns
    -------
    ndarray of uint64, shape (n,)
        Equal for rows that are equal to the bit.
    """
    return _hash_rows(rows, _MULTIPLIER_2, ~GOLDEN) if is_second else _hash_rows(rows, _MULTIPLIER_1, GOLDEN)


@nb.njit(cache=True, nogil=True)
def _hash_rows(rows, multiplier, basis):
    n, width = rows.shape
    out = np.empty(n, np.uint64)
    chains = np.empty(8, np.uint64)
    for i in range(n):
        for c in range(8):  # the width is hashed too, so that rows padded with zeros differ
            chains[c] = basis * np.uint64(width + c + 1)
        for j in range(width):
            c = j & 7
            chains[c] = (chains[c] ^ np.uint64(rows[i, j])) * multiplier
            chains[c] ^= chains[c] >> _S31
        row_hash = basis
        for c in range(8):
            row_hash = mix_bits(row_hash ^ chains[c]) + basis
        out[i] = row_hash
    return out


@nb.njit(cache=True, nogil=True)
def sum_hashes(hashes: np.ndarray, first_row: int) -> np.uint64:
    """Sum the hashes of rows and their indices, so that the sums of blocks may be added in any order.

    Parameters
    ----------
    hashes : ndarray of uint64, shape (n,)
    first_row : int
        Index of the first row.
    """
    total = np.uint64(0)
    for i in range(hashes.shape[0]):
        total += mix_bits(hashes[i] + GOLDEN * np.uint64(first_row + i + 1))
    return total


# Purposes: one stream of draws for each constant. LABEL_SOURCES and RANDOM_BOX each serve several uses.
TREE_SAMPLE = 1
"""The rows from which the tree is grown."""
KMEANS = 2
"""The rows that k-means begins with."""
PYNNDESCENT = 3
"""pynndescent's seed."""
LEAF_PIECES = 4
"""The piece of a crowded leaf that a row goes to."""
LABEL_SOURCES = 5
"""The sources of labels, the order of rows that no source reaches, and the eigensolver's first vector. The three uses
share one stream; streams of their own would change the results."""
RANDOM_BOX = 6
"""Coordinates of a random start, and the jitter that separates equal coordinates."""
SAMPLE_PHASES = 7
"""The sample phases of edges."""
POOL = 8
"""The rows of an epoch's pool of negative samples."""
POOL_OFFSETS = 9
"""The place in the pool at which the negative samples of a group of rows begin."""
QUERIES = 10
"""The rows on which audit and quality are measured."""
EIGEN_NOISE = 11
"""Coordinates in place of eigenvectors that do not exist or did not converge."""
LOSS_PAIRS = 12
"""The pairs of rows on which the loss is measured."""
GUEST_ORDER = 13
"""The order in which a cell admits guests of equal rank."""
PROJECTION = 14
"""The places and signs to which a column of sparse rows is projected."""
