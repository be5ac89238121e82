"""Products of bytes: exact, with and without the instruction of the processor."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from dumap.kernels import products


def drawn(seed: int, count: int, pack_count: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, and those they are multiplied with, in packs and plain; some are at the ends of their range."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (count, columns)).astype(np.uint8)
    right = rng.integers(-127, 128, (16 * pack_count, columns)).astype(np.int8)
    rows[0], right[0] = 255, 127
    right[-1] = -127
    packs = np.ascontiguousarray(right.reshape(pack_count, 16, columns // 4, 4).transpose(0, 2, 1, 3))
    return rows, packs, right


@given(st.integers(0, 999), st.integers(1, 5), st.integers(1, 40), st.data())
def test_four_rows_are_multiplied_with_packs(seed, pack_count, fours, data):
    rows, packs, right = drawn(seed, 4, pack_count, 4 * fours)
    first, out = data.draw(st.integers(0, pack_count)), np.full((4, 16 * pack_count), 7, np.int32)
    products.multiply(rows, packs, first, out)
    assert np.array_equal(out[:, 16 * first :], rows.astype(np.int64) @ right[16 * first :].T.astype(np.int64))
    assert (out[:, : 16 * first] == 7).all()


@njit
def _dot(left, right):
    """Call the intrinsic from compiled code."""
    return products.dot(left, right)


@given(st.integers(0, 999), st.integers(1, 9))
def test_rows_are_multiplied_with_one_another(seed, lanes):
    rng = np.random.default_rng(seed)
    left, right = rng.integers(-128, 128, (2, 64 * lanes)).astype(np.int8)
    assert _dot(left, right) == (left.astype(np.int64) + 128) @ right.astype(np.int64)


def compiled():
    """Compile the innermost loop anew."""

    @njit
    def multiply(rows, pack, out):
        products._multiply(rows, pack, out, 0)

    return multiply


def test_processors_without_the_instruction_find_the_same(monkeypatch):
    monkeypatch.setattr(products, "BUILT_IN", "+none")
    multiply = compiled()
    for columns in (4, 64, 32_768):
        rows, packs, right = drawn(0, 4, 1, columns)
        out, sums = np.zeros((2, 4, 16), np.int32)
        multiply(rows, packs[0], out)
        assert np.array_equal(out, rows.astype(np.int64) @ right.T.astype(np.int64))
        products.multiply(rows, packs, 0, sums)
        assert np.array_equal(sums, out)
    assert "vpdpbusd" not in "".join(multiply.inspect_asm().values())


def test_the_instruction_is_used_where_there_is_one():
    multiply = compiled()
    rows, packs, _ = drawn(0, 4, 1, 8)
    multiply(rows, packs[0], np.zeros((4, 16), np.int32))
    has_it = products.BUILT_IN in multiply.targetctx.codegen().magic_tuple()[2].split(",")
    assert ("vpdpbusd" in "".join(multiply.inspect_asm().values())) == has_it
