"""The arrays of an AnnData object, in memory or backed by a file: anndata itself is not imported."""

from __future__ import annotations

from typing import Any

from dumap.errors import InputError
from dumap.sources.objects import is_a

UNNAMED = "vectors"
"""The name of an array where none is given."""
USUAL = "obsm/X_pca"
"""What is embedded then where it is there, else X: as scanpy chooses."""
SPARSE = (
    *(("scipy.sparse", "spmatrix"), ("scipy.sparse", "sparray")),
    *(("anndata.abc", "CSRDataset"), ("anndata.abc", "CSCDataset")),
)
"""Modules and classes of sparse matrices, in memory and in files."""


def is_annotated(data: Any) -> bool:
    """Return whether data is an AnnData object."""
    return is_a(data, "anndata", "AnnData")


def arrays_in(data: Any) -> dict[str, Any]:
    """Return what of an AnnData object may hold rows, by the names that its store has for it."""
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
        There is none, or it is sparse.
    """
    arrays = arrays_in(data)
    if name == UNNAMED:
        name = USUAL if USUAL in arrays else "X"
    dense = {key: value.shape for key, value in arrays.items() if not _is_sparse(value)}
    told = ", ".join(f"{key} {tuple(map(int, shape))}" for key, shape in dense.items()) or "none"
    if name not in arrays:
        raise InputError(f"input.array: no {name!r} in the AnnData object; its dense arrays are: {told}")
    if name not in dense:
        raise InputError(
            f"input.array: {name!r} of the AnnData object is sparse; dumap reads dense rows: set input.array to one of "
            f"its dense arrays ({told}), such as principal components (scanpy.pp.pca makes obsm/X_pca)"
        )
    return name, arrays[name]


def _is_sparse(value: Any) -> bool:
    blocks = getattr(value, "_meta", None)  # what a Dask array's are
    return any(is_a(one, *kind) for one in (value, blocks) for kind in SPARSE)
