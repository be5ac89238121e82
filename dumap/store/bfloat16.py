"""bfloat16, for which NumPy has no dtype: arrays are read as the bits of their values, and widened to float32."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import StorePath

BFLOAT16 = "bfloat16"
SPECIAL_BITS = {"NaN": 0x7FC0, "Infinity": 0x7F80, "-Infinity": 0xFF80}
"""Bits of the fill values that Zarr writes as names."""


class Bfloat16Array(zarr.Array):
    """An array of bfloat16 that is read as uint16: each value is the upper half of a float32."""


def open_bfloat16(store: Store, path: str) -> Bfloat16Array | None:
    """Open a Zarr v3 array of bfloat16 as its bits; return None if the path holds no such array."""
    key = f"{path}/zarr.json" if path else "zarr.json"
    data = sync(store.get(key, default_buffer_prototype()))
    try:
        metadata = {} if data is None else json.loads(data.to_bytes())
        if not isinstance(metadata, dict) or metadata.get("data_type") != BFLOAT16:
            return None
        metadata |= {"data_type": "uint16", "fill_value": _fill_value_bits(metadata.get("fill_value", 0))}
    except ValueError:  # the metadata are not valid, so Zarr raises an error when it opens the path
        return None
    return Bfloat16Array.from_dict(StorePath(store, path), metadata)


def _fill_value_bits(fill_value: Any) -> int:
    """Return the bits of a fill value, which Zarr writes as a number, a name, or the bits in hexadecimal."""
    if isinstance(fill_value, str):
        return SPECIAL_BITS[fill_value] if fill_value in SPECIAL_BITS else int(fill_value, 16) & 0xFFFF
    return int(np.float32(fill_value).view(np.uint32) >> 16)


def is_bfloat16(array: zarr.Array, is_declared: bool) -> bool:
    """Return whether an array's values are bfloat16, by its metadata or by the user's setting.

    Parameters
    ----------
    array : zarr.Array
    is_declared : bool
        Whether the user's setting says that 16-bit values are bfloat16.

    Raises
    ------
    ValueError
        The setting says so, but the values do not have 16 bits.
    """
    if isinstance(array, Bfloat16Array) or array.dtype.name == BFLOAT16:
        return True
    if is_declared and array.dtype.newbyteorder("=") not in (np.dtype("V2"), np.dtype(np.uint16)):
        raise ValueError(f"its dtype is {array.dtype}, not one of 16 bits (V2, uint16)")
    return is_declared


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """Return bfloat16 values, given as any dtype of 16 bits, as float32."""
    if bits.dtype.kind == "V":
        bits = np.ascontiguousarray(bits).view("<u2")
    wide_bits = bits.astype(np.uint32)
    wide_bits <<= 16
    return wide_bits.view(np.float32)
