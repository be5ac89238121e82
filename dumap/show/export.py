"""Write a run's results in formats of other programs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import scipy.sparse as sparse

from dumap.artifacts.graph import Graph
from dumap.artifacts.neighbors import NeighborLists
from dumap.errors import ConfigError, DroppedError, StorageError, missing_packages
from dumap.show.rows import BLOCK_ROWS, Order, dropped
from dumap.store import DONE, Run, internal_location, read_array, write_arrays
from dumap.store.disk import is_remote, normalize
from dumap.store.row_names import read_names


def export(
    location: str, what: str, out: str, labels: str | None = None, with_self: bool = False, force: bool = False
) -> str:
    """Export one result of a run.

    Parameters
    ----------
    location : str
        The run.
    what : {'embedding', 'neighbors', 'graph', 'picture'}
    out : str
        A file's path; the ending chooses the format.
    labels : str, optional
        Labels that colour a picture.
    with_self : bool
        List each row first among its neighbors, at distance 0. The result then has n_neighbors columns, as umap-learn
        and cuML expect for `precomputed_knn`, instead of the n_neighbors - 1 other rows.
    force : bool
        Overwrite an existing file. A folder or a store is never overwritten.

    Returns
    -------
    str
        A line that says what was written.
    """
    if is_remote(out):
        if not out.endswith(".zarr"):
            raise ConfigError(f"{out}: a file is written to a disk; name a path")
    else:
        out = normalize(out) if "://" in out else out
    run = Run(internal_location(location), read_only=True)
    attributes = run.attributes
    if with_self and what != "neighbors":
        raise ConfigError(f"--with-self goes with neighbors, not with {what}: leave it out")
    if os.path.lexists(out) and not (force and os.path.isfile(out) and not os.path.islink(out)):
        raise StorageError(
            f"{out} exists; remove it, or name another" + ("" if force else ", or write over a file with --force")
        )
    if what in ("embedding", "picture"):
        _require(run, "embedding")
        return _embedding(run, out) if what == "embedding" else _picture(run, out, labels)
    _require(run, "audit" if what == "neighbors" else "graph")
    try:
        order = Order(run)
        if what == "graph":
            return _graph(run, out, order.rows, len(order.positions))
        n_neighbors = attributes["parameters"]["neighbors"]["n_neighbors"]
        return _neighbors(run, out, order.rows, order.positions, n_neighbors, with_self)
    except DroppedError as error:
        raise dropped(run, what) from error


def _require(run: Run, stage: str) -> None:
    if not run.is_committed(DONE, stage):
        raise StorageError(f"{run.location}: stage {stage} is not done yet; 'dumap run' goes on")


def _ending(out: str, allowed: tuple[str, ...]) -> str:
    ending = os.path.splitext(out)[1]
    if ending not in allowed:
        raise ConfigError(f"{out}: the ending must be one of {', '.join(allowed)}")
    return ending


def _embedding(run: Run, out: str) -> str:
    ending = _ending(out, (".npy", ".csv", ".parquet"))
    y, status = (run.read_final(name, "embedding") for name in ("embedding", "status"))
    if ending == ".npy":
        np.save(out, y)
    elif ending == ".csv":
        names = ["row", *(f"component_{c}" for c in range(y.shape[1])), "status"]
        with open(out, "w") as file:
            file.write(",".join(names) + "\n")
            for row, (values, flag) in enumerate(zip(y.tolist(), status.tolist(), strict=True)):
                file.write(f"{row},{','.join(f'{v:.9g}' for v in values)},{flag}\n")
    else:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise missing_packages(f"{out}: parquet", "pyarrow") from error
        columns = {f"component_{c}": y[:, c] for c in range(y.shape[1])}
        names_of_rows = read_names(run)
        rows = np.arange(len(y)) if names_of_rows is None else names_of_rows
        parquet.write_table(pyarrow.table({"row": rows, **columns, "status": status}), out)
    return f"{out}: {y.shape[0]} rows x {y.shape[1]} components"


def _neighbors(run: Run, out: str, order: np.ndarray, position: np.ndarray, n_neighbors: int, with_self: bool) -> str:
    ending, lists, rows, n_others = _ending(out, (".npz", ".zarr")), NeighborLists(run), len(position), n_neighbors - 1
    columns = n_others + with_self

    def blocks(array: str) -> Iterator[tuple[int, np.ndarray]]:
        dtype, missing = (np.int64, -1) if array == "indices" else (np.float32, np.inf)
        whole = lists.read(array, 0, len(order))[:, :n_others]
        for start in range(0, rows, BLOCK_ROWS):
            at = position[start : start + BLOCK_ROWS]
            block = np.full((len(at), columns), missing, dtype)
            values = whole[at[at >= 0]]
            block[at >= 0, with_self:] = np.where(values >= 0, order[values], -1) if array == "indices" else values
            if with_self:
                block[:, 0] = np.arange(start, start + len(at)) if array == "indices" else 0
            yield start, block

    if ending == ".zarr":
        write_arrays(
            out,
            {
                "indices": ((rows, columns), "int64", blocks("indices")),
                "distances": ((rows, columns), "float32", blocks("distances")),
            },
        )
    else:
        indices, distances = (np.concatenate([b for _, b in blocks(name)]) for name in ("indices", "distances"))
        np.savez(out, indices=indices, distances=distances)
    itself = "each row itself first" if with_self else "self excluded"
    return f"{out}: indices and distances, {rows} rows x {columns} neighbors, {itself}"


def _graph(run: Run, out: str, order: np.ndarray, rows: int) -> str:
    _ending(out, (".npz",))
    graph = Graph(run)
    heads, tails, weights = [], [], []
    for shard in range(len(graph.shards)):
        indptr, tail, weight = graph.read(shard)
        first, _ = graph.shards.span(shard)
        heads.append(order[first + np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))])
        tails.append(order[tail])
        weights.append(weight)
    coordinates = (np.concatenate(heads), np.concatenate(tails))
    matrix = sparse.csr_matrix((np.concatenate(weights), coordinates), shape=(rows, rows))
    sparse.save_npz(out, matrix, compressed=False)
    return f"{out}: CSR matrix, {rows} rows, {matrix.nnz} membership strengths"


def _picture(run: Run, out: str, labels: str | None) -> str:
    _ending(out, (".png",))
    from dumap.show.picture import draw

    y = run.read_final("embedding", "embedding")
    if y.shape[1] != 2:
        raise ConfigError(f"a picture needs layout.n_components = 2; this run has {y.shape[1]}")
    draw(y, None if labels is None else read_array(labels)).savefig(out, bbox_inches="tight")
    return f"{out}: a picture of {len(y)} rows"
