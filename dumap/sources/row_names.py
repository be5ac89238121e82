"""Names of rows, if the input has some: an index, obs_names, a coordinate, or an array beside the rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from dumap.sources.csr_group import CsrInput
from dumap.sources.objects import is_instance
from dumap.sources.source import Source
from dumap.sources.stores import ConcatenatedInput
from dumap.sources.zarr_array import ArrayInput
from dumap.store import Run
from dumap.store.row_names import find_row_names, has_names, normalize_names, write_row_names


def names_of(data: Any) -> np.ndarray | None:
    """Return the names of an object's rows, (rows,) of int64 or of texts, or None if rows have only their numbers.

    Parameters
    ----------
    data
        The object. A pandas data frame, an AnnData object or an xarray.DataArray may have names.
    """
    if is_instance(data, "pandas", "DataFrame"):
        counts = is_instance(data.index, "pandas", "RangeIndex") and (data.index.start, data.index.step) == (0, 1)
        return None if counts else normalize_names(data.index)
    if is_instance(data, "anndata", "AnnData"):
        return normalize_names(data.obs_names)
    if is_instance(data, "xarray", "DataArray") and data.dims and data.dims[0] in data.coords:
        return normalize_names(data.coords[data.dims[0]].values)
    return None


def keep_names(run: Run, source: Source, names: np.ndarray | None) -> None:
    """Write the names of the rows into a run, unless they are written already or rows have no names.

    Parameters
    ----------
    run : Run
        The run whose results get the names.
    source : Source
        The input. Its store may hold names.
    names : ndarray, optional
        Names of an object's rows.
    """
    if has_names(run):
        return
    blocks: Iterable[np.ndarray]
    if names is not None:
        blocks, is_text = [names], names.dtype.kind == "O"
    else:
        alone = [source] if isinstance(source, ArrayInput | CsrInput) else []
        stores = source.stores if isinstance(source, ConcatenatedInput) else alone
        found = [find_row_names(store.path, store.node_path, store.rows) for store in stores]
        named = [one for one in found if one is not None]
        if not named or len(named) < len(found) or len({one.is_text for one in named}) > 1:
            return
        blocks, is_text = (block for one in named for block in one.blocks()), named[0].is_text
    write_row_names(run, source.rows, is_text, blocks)
