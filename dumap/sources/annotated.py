"""The arrays of an AnnData object, in memory or backed by a file: anndata itself is not imported."""

from __future__ import annotations

from typing import Any

from dumap.errors import InputError
from dumap.sources.objects import is_instance

UNNAMED = "vectors"
"""The array's name if none is given."""
USUAL = "obsm/X_pca"
"""The array that is then embedded if it exists, otherwise X, as in scanpy."""
BY_COLUMNS = ("anndata.abc", "CSCDataset")
"""Module and class of sparse matrices in files whose rows cannot be read one by one."""


def is_annotated(data: Any) -> bool:
    """Return whether data is an AnnData object."""
    return is_instance(data, "anndata", "AnnData")


def arrays_in(data: Any) -> dict[str, Any]:
    """Return the arrays of an AnnData object that may hold rows, by their names in a store."""
    found = {} if data.X is None else {"X": data.X}
    return found | {f"{name}/{key}": value for name in ("obsm", "layers") for key, value in getattr(data, name).items()}


def element_of(data: Any, name: str) -> tuple[str, Any]:
    """Return an array of an AnnData object, and its name.

    Parameters
    ----------
    data : anndata.AnnData
    name : str
        'X', 'obsm/<key>' or 'layers/<key>'; `UNNAMED` chooses `USUAL` or X.

    Raises
    ------
    InputError
        There is none, or its rows cannot be read.
    """
    arrays = arrays_in(data)
    if name == UNNAMED:
        name = USUAL if USUAL in arrays else "X"
    there = {key: value.shape for key, value in arrays.items() if not is_instance(value, *BY_COLUMNS)}
    told = ", ".join(f"{key} {tuple(map(int, shape))}" for key, shape in there.items()) or "none"
    if name not in arrays:
        raise InputError(f"input.array: no {name!r} in the AnnData object; its arrays are: {told}")
    if name not in there:
        raise InputError(
            f"input.array: {name!r} of the AnnData object is sparse by columns, in a file: read it into memory "
            f"(adata.to_memory()), write it by rows (adata.X.tocsr()), or set input.array to one of its other arrays "
            f"({told})"
        )
    return name, arrays[name]
