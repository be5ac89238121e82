import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from dumap.kernels import products


def drawn(seed: int, rows: int, packs: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return bytes for both sides, the right one in packs and plain; some at the ends of their range."""
    rng = np.random.default_rng(seed)
    left = rng.integers(0, 256, (rows, width)).astype(np.uint8)
    right = rng.integers(-127, 128, (16 * packs, width)).astype(np.int8)
    left[0], right[0] = 255, 127
    right[-1] = -127
    packed = np.ascontiguousarray(right.reshape(packs, 16, width // 4, 4).transpose(0, 2, 1, 3))
    return left, packed, right


@given(st.integers(0, 999), st.integers(1, 5), st.integers(1, 40), st.data())
def test_four_rows_are_multiplied_with_packs(seed, packs, fours, data):
    left, packed, right = drawn(seed, 4, packs, 4 * fours)
    first, out = data.draw(st.integers(0, packs)), np.full((4, 16 * packs), 7, np.int32)
    products.multiply(left, packed, first, out)
    assert np.array_equal(out[:, 16 * first :], left.astype(np.int64) @ right[16 * first :].T.astype(np.int64))
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


@pytest.mark.parametrize("width", [4, 64, 32_768])
def test_processors_without_the_instruction_find_the_same(monkeypatch, width):
    monkeypatch.setattr(products, "BUILT_IN", "+none")
    multiply = compiled()
    left, packed, right = drawn(0, 4, 1, width)
    out = np.zeros((4, 16), np.int32)
    multiply(left, packed[0], out)
    assert np.array_equal(out, left.astype(np.int64) @ right.T.astype(np.int64))
    assert "vpdpbusd" not in "".join(multiply.inspect_asm().values())
    found = np.zeros((4, 16), np.int32)
    products.multiply(left, packed, 0, found)
    assert np.array_equal(found, out)


def test_the_instruction_is_used_where_there_is_one():
    multiply = compiled()
    left, packed, _ = drawn(0, 4, 1, 8)
    multiply(left, packed[0], np.zeros((4, 16), np.int32))
    has_it = products.BUILT_IN in multiply.targetctx.codegen().magic_tuple()[2].split(",")
    assert ("vpdpbusd" in "".join(multiply.inspect_asm().values())) == has_it
