"""What estimators make of seeds, numbers of neighbours and data before a run takes them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from dumap.sources.objects import is_a


def seed_of(random_state: int | np.random.RandomState | None) -> int | None:
    """Return the seed that scikit-learn's word for one stands for; None is the default seed."""
    if random_state is None or isinstance(random_state, int | np.integer):
        return random_state
    return int(check_random_state(random_state).randint(2**31 - 1))


def fitting(n_neighbors: int, rows: int, stacklevel: int) -> int:
    """Return a number of neighbours that so many rows have; a warning tells where it is another."""
    if n_neighbors < rows:
        return n_neighbors
    warnings.warn(f"n_neighbors={n_neighbors} is lowered to {rows - 1}: X has {rows} rows", stacklevel=stacklevel)
    return rows - 1


def is_lazy(data: Any) -> bool:
    """Return whether data are Dask's."""
    return hasattr(data, "__dask_graph__")


def named_like(x: Any, data: Any) -> Any:
    """Return rows with the names of those of a data frame that they were made of."""
    if not is_a(data, "pandas", "DataFrame") or not isinstance(x, np.ndarray):
        return x
    import pandas

    return pandas.DataFrame(x, index=data.index, copy=False)


def unchanged(block: np.ndarray, run: object) -> np.ndarray:
    """Return a block; Dask's graph holds the run that it is read from."""
    return block


def rows_in(data: Any) -> int | None:
    """Return how many rows data have, where that is known."""
    shape = getattr(data, "shape", None)
    return int(shape[0]) if shape and isinstance(shape[0], int | np.integer) else None
