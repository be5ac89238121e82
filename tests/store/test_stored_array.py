"""Arrays in the objects that parts write: ranges with checksums, read back to the bit or not at all."""

from __future__ import annotations

import io
import json
import struct

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from dumap.store import stored_array
from dumap.store.stored_array import ChecksumError, StoredArray, encode_chunk

KINDS = ["bool", "u1", "i1", "i2", "u4", "i4", "i8", "u8", "f2", "f4", "f8"]
SHAPES = [(0,), (1,), (5,), (16,), (17,), (1000,), (0, 3), (1, 1), (48, 3), (300, 7), (333, 1), (2, 40, 3), (65, 3, 5)]


@pytest.fixture(autouse=True)
def short_ranges(monkeypatch):
    """Have ranges of rows of 256 bytes, so that small arrays have several."""
    monkeypatch.setattr(stored_array, "RANGE_BYTES", 256)


def make(shape, dtype, seed=0) -> np.ndarray:
    """Return random whole numbers of a shape and dtype."""
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def encode(values: np.ndarray, rows: np.ndarray | None = None) -> tuple[StoredArray, bytes]:
    """Return an array's layout and its bytes as they are written."""
    shard = StoredArray.of(values, len(values) if rows is None else len(rows))
    return shard, b"".join(bytes(piece) for piece in shard.pieces(values, rows)) if shard.size else b""


def decode(shard: StoredArray, data: bytes, start: int, stop: int) -> np.ndarray:
    """Read rows from an array's bytes."""
    out = np.full((stop - start, *shard.shape[1:]), 77, shard.dtype)
    first, last = shard.span(start, stop)
    shard.read(io.BytesIO(data[first:last]), start, stop, out)
    return out


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", KINDS)
def test_ranges_of_rows_are_followed_by_their_checksums(shape, dtype):
    values = make(shape, dtype)
    shard, data = encode(values)
    step, expected = max(16, 256 // shard.row_bytes), b""
    for start in range(0, len(values), step):
        rows = values[start : start + step].tobytes()
        expected += rows + struct.pack("<I", google_crc32c.value(rows))
    assert data == expected
    assert len(data) == shard.size


@pytest.mark.parametrize("shape", [(5,), (48, 3), (2, 40, 3)], ids=str)
def test_chunks_of_public_arrays_are_zarrs_own(shape):
    values, objects = make(shape, "f4"), {}
    zarr.create_array(MemoryStore(objects), data=values, chunks=shape, compressors=[Crc32cCodec()], filters=None)
    (key,) = objects.keys() - {"zarr.json"}
    assert encode_chunk(values) == encode_chunk(values.astype(">f4")) == objects[key].to_bytes()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_rows_are_read_back_to_the_bit(data):
    tail = tuple(data.draw(st.lists(st.integers(1, 9), max_size=2)))
    values = make((data.draw(st.integers(1, 90)), *tail), data.draw(st.sampled_from(KINDS)))
    rows = data.draw(st.none() | st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=90).map(np.array))
    shard, encoded = encode(values, rows)
    expected = values if rows is None else values[rows]
    assert encoded == encode(expected)[1]
    start = data.draw(st.integers(0, len(expected) - 1))
    stop = data.draw(st.integers(start + 1, len(expected)))
    assert decode(shard, encoded, start, stop).tobytes() == expected[start:stop].tobytes()


def test_skipped_rows_pass_through_a_small_buffer(monkeypatch):
    monkeypatch.setattr(stored_array, "SKIP_BUFFER_BYTES", 48)
    values = make((300, 7), "f8")
    shard, data = encode(values)
    for start, stop in [(0, 1), (7, 9), (15, 17), (299, 300)]:
        assert decode(shard, data, start, stop).tobytes() == values[start:stop].tobytes()


@pytest.mark.parametrize("order", [">f4", ">i8", "<u2"])
def test_bytes_are_little_endian(order):
    values = make((40, 3), order)
    assert encode(values)[1] == encode(values.astype(values.dtype.newbyteorder("<")))[1]


def test_arrays_of_any_layout_are_written():
    values = make((60, 8), "f4")
    for odd in (values.T, values[::-2], values[:, ::3], np.asfortranarray(values)):
        assert encode(odd)[1] == encode(np.ascontiguousarray(odd))[1]


@pytest.mark.parametrize("rows", [[-1], [0, 3], [2, 1, 99]])
def test_rows_that_there_are_not_are_refused(rows):
    with pytest.raises(IndexError):
        encode(np.arange(3), np.array(rows))


# damage ----------------------------------------------------------------------------------------


def test_ranges_of_few_rows_are_read_alone():
    values = make((100, 3), "f4")
    stored = StoredArray.of(values, 100, rows_per_range=4)
    data = b"".join(bytes(piece) for piece in stored.pieces(values))
    assert stored.span(8, 9) == (2 * (4 * 12 + 4), 3 * (4 * 12 + 4))
    assert decode(stored, data, 7, 21).tobytes() == values[7:21].tobytes()
    assert StoredArray.parse(*json.loads(json.dumps(stored.described()))) == stored


@pytest.mark.parametrize("rows", [-1, 2.0, "3", None, True])
def test_no_other_ranges_are_believed(rows):
    with pytest.raises(ValueError, match="shape"):
        StoredArray.parse([3], "<f4", rows)


def test_every_flipped_bit_is_found_by_whoever_reads_it():
    values = make((40, 3), "f4")
    shard, data = encode(values)
    assert shard.range_rows == 21
    for byte in range(len(data)):
        harmed = bytearray(data)
        harmed[byte] ^= 1 << byte % 8
        for start, stop in [(0, 40), (3, 9), (20, 22), (21, 40), (30, 31)]:
            first, last = shard.span(start, stop)
            if first <= byte < last:
                with pytest.raises(ChecksumError):
                    decode(shard, bytes(harmed), start, stop)
            else:
                assert decode(shard, bytes(harmed), start, stop).tobytes() == values[start:stop].tobytes()


@pytest.mark.parametrize("length", [0, 1, 250, 256, 260, 400, 519])
def test_an_object_that_ends_too_soon_is_broken(length):
    shard, data = encode(make((128,), "f4"))
    assert len(data) > length
    with pytest.raises(ChecksumError):
        decode(shard, data[:length], 0, 128)


def test_chunks_of_zeros_are_not_taken_from_nothing():
    shard, data = encode(np.zeros(128, "f4"))
    with pytest.raises(ChecksumError):
        decode(shard, bytes(8), 0, 128)
    with pytest.raises(ChecksumError):
        decode(shard, bytes(len(data)), 0, 128)


@pytest.mark.parametrize("out", [np.empty(3, "f4"), np.empty((4, 1), "f4"), np.empty(4, "i4"), np.empty(4, "f8")])
def test_rows_of_another_kind_are_not_filled_in(out):
    shard, data = encode(np.arange(4, dtype="f4"))
    with pytest.raises(ChecksumError):
        shard.read(io.BytesIO(data), 0, 4, out)


# what manifests tell -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", KINDS)
def test_the_layout_is_read_from_the_manifest(shape, dtype):
    shard = StoredArray.of(make(shape, dtype), shape[0])
    document = json.loads(json.dumps([shard.shape, shard.dtype.str]))
    assert StoredArray.parse(*document) == shard


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *(([3], dtype) for dtype in ("|O", "O", "object", "<M8[ns]", "|V8", "<U4", "<c8", ">f4", "f4,f4", "<f16")),
        *(([3], dtype) for dtype in ("", "__import__('os')", "<f4 ", "<f4\n", None, 7, ["<f4"], {"names": []})),
        *((shape, "<f4") for shape in (3, None, "33", [], [-1], [3, 0], [3, -2], [3.0], [True], ["3"], [None], [[3]])),
        ([2**46], "<f8"),
        ([3, 2**62, 2**62], "<f8"),
    ],
    ids=str,
)
def test_no_other_layout_is_believed(shape, dtype):
    with pytest.raises(ValueError, match=r"shape|dtype"):
        StoredArray.parse(shape, dtype)


@pytest.mark.parametrize(
    "values", [np.array(["a"]), np.array([None]), np.zeros(3, "c8"), np.zeros((3, 0)), np.zeros(3, "M8[s]")]
)
def test_arrays_of_other_dtypes_are_not_written(values):
    with pytest.raises(ValueError, match="not written"):
        StoredArray.of(values, len(values))
