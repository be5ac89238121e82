"""Half precision: float16 and bfloat16 are read as they are stored, without a copy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

import dumap
from dumap.config import InputConfig
from dumap.errors import InputError
from dumap.sources.opening import open_source
from dumap.sources.zarr_array import ArrayInput

QUICK = {"n_epochs": 5, "quality": {"queries": 0}, "audit": {"queries": 0}, "cluster": {"engine": "local"}}
VALUES = np.array([[1.0, -2.5], [0.0, np.inf], [3.0e38, -1e-30], [0.15625, np.nan]], np.float32)


def bits(x: np.ndarray) -> np.ndarray:
    """Return the upper halves of float32: bfloat16, rounded towards zero."""
    return (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def cut_off(x: np.ndarray) -> np.ndarray:
    """Return float32 as bfloat16 keeps it."""
    return (np.ascontiguousarray(x, np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


def third(path: str, x: np.ndarray, fill=0.0, **options) -> str:
    """Write as Zarr v3's bfloat16: zarr itself has no such dtype without ml_dtypes."""
    zarr.create_group(path).create_array("vectors", data=bits(x), **{"chunks": (2, x.shape[1]), **options})
    file = Path(path, "vectors", "zarr.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "data_type": "bfloat16", "fill_value": fill}))
    return path


def second(path: str, x: np.ndarray) -> str:
    """Write as ml_dtypes' bfloat16 comes into Zarr v2: 16 bits without a meaning."""
    group = zarr.create_group(path, zarr_format=2)
    group.create_array("vectors", shape=x.shape, dtype="V2", chunks=(2, x.shape[1]))[...] = bits(x).view("V2")
    return path


@pytest.mark.parametrize("options", [{}, {"shards": (4, 2)}, {"compressors": None}], ids=["chunks", "shards", "raw"])
def test_bfloat16_of_format_3_is_known_by_its_store(tmp_path, options):
    path = third(str(tmp_path / "in.zarr"), VALUES, **options)
    for source in (ArrayInput(path, "vectors"), ArrayInput(f"{path}/vectors", "vectors")):
        assert source.dtype == np.float32
        assert source.chunk_rows == 2
        assert np.array_equal(source.read(0, 4), cut_off(VALUES), equal_nan=True)
        assert source.read(1, 3).flags.c_contiguous


@pytest.mark.parametrize(
    ("fill", "value"), [(0.0, 0), (-1.5, -1.5), ("NaN", np.nan), ("-Infinity", -np.inf), ("0x4049", 3.140625)]
)
def test_chunks_that_are_not_there_hold_the_fill_value(tmp_path, fill, value):
    path = third(str(tmp_path / "in.zarr"), VALUES, fill)
    (tmp_path / "in.zarr/vectors/c/1/0").unlink()
    assert np.array_equal(ArrayInput(path, "vectors").read(2, 4), np.full((2, 2), value), equal_nan=True)
    assert ArrayInput(path, "vectors").missing_chunks.chunks == 1


def test_16_bits_of_format_2_are_bfloat16_where_it_is_said(tmp_path):
    path = second(str(tmp_path / "in.zarr"), VALUES)
    with pytest.raises(InputError, match=r"has dtype \|V2; .* if they are bfloat16, set input.dtype=bfloat16"):
        ArrayInput(path, "vectors")
    source = open_source(InputConfig(path=path, dtype="bfloat16"))
    assert np.array_equal(source.read(0, 4), cut_off(VALUES), equal_nan=True)
    plain = zarr.create_group(tmp_path / "plain.zarr")
    plain.create_array("vectors", data=bits(VALUES))
    plain.create_array("wide", data=VALUES)
    source = open_source(InputConfig(path=str(tmp_path / "plain.zarr"), dtype="bfloat16"))
    assert np.array_equal(source.read(0, 4), cut_off(VALUES), equal_nan=True)
    with pytest.raises(InputError, match=r"input\.dtype = bfloat16: .*its dtype is float32, not one of 16 bits"):
        open_source(InputConfig(path=str(tmp_path / "plain.zarr"), array="wide", dtype="bfloat16"))


def test_stores_of_either_kind_are_one_input(tmp_path):
    paths = [third(str(tmp_path / "3.zarr"), VALUES), second(str(tmp_path / "2.zarr"), VALUES[:2])]
    source = open_source(InputConfig(path=paths, dtype="bfloat16"))
    assert np.array_equal(source.read(3, 6), cut_off(VALUES[[3, 0, 1]]), equal_nan=True)


def test_half_precision_comes_to_the_map_of_the_same_values(digits_300, save, new_path):
    """Digits are whole numbers up to 16, which all of these hold."""
    expected = dumap.run(save(digits_300), output=new_path("run.zarr"), **QUICK).embedding[:].tobytes()
    for path in (third(new_path("in.zarr"), digits_300), save(digits_300.astype(np.float16))):
        assert dumap.run(path, output=new_path("run.zarr"), **QUICK).embedding[:].tobytes() == expected
    assert (
        dumap.run(
            second(new_path("in.zarr"), digits_300), output=new_path("run.zarr"), input={"dtype": "bfloat16"}, **QUICK
        )
        .embedding[:]
        .tobytes()
        == expected
    )
