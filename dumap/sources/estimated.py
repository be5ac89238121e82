"""How estimators convert seeds, numbers of neighbours and data for a run."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from dumap.sources.objects import is_instance


def seed_of(random_state: int | np.random.RandomState | None) -> int | None:
    """Return the seed of a `random_state`, or None for the default seed."""
    if random_state is None or isinstance(random_state, int | np.integer):
        return random_state
    return int(check_random_state(random_state).randint(2**31 - 1))


def fitting(n_neighbors: int, rows: int, stacklevel: int) -> int:
    """Lower `n_neighbors`, with a warning, if it is not below the number of rows; return it."""
    if n_neighbors < rows:
        return n_neighbors
    warnings.warn(f"n_neighbors={n_neighbors} is lowered to {rows - 1}: X has {rows} rows", stacklevel=stacklevel)
    return rows - 1


def is_lazy(data: Any) -> bool:
    """Return whether data are a Dask collection."""
    return hasattr(data, "__dask_graph__")


def named_like(x: Any, data: Any) -> Any:
    """Return rows as a data frame with the row names of `data`, if `data` is one."""
    if not is_instance(data, "pandas", "DataFrame") or not isinstance(x, np.ndarray):
        return x
    import pandas

    return pandas.DataFrame(x, index=data.index, copy=False)


def unchanged(block: np.ndarray, run: object) -> np.ndarray:
    """Return a block. As an argument, `run` is kept alive by Dask's graph."""
    return block


def rows_in(data: Any) -> int | None:
    """Return how many rows data have, or None if the number is not known."""
    shape = getattr(data, "shape", None)
    return int(shape[0]) if shape and isinstance(shape[0], int | np.integer) else None
