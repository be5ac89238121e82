"""Write a run's results in formats of other programs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import scipy.sparse as sparse

from dumap.artifacts.graph import Graph
from dumap.artifacts.neighbors import NeighborLists
from dumap.errors import ConfigError, DroppedError, StorageError, missing_packages
from dumap.show.rows import BLOCK_ROWS, RowOrder, dropped_error
from dumap.store import DONE, Run, internal_location, read_array, write_arrays
from dumap.store.disk import is_remote, normalize
from dumap.store.row_names import read_row_names


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
        _check_stage_done(run, "embedding")
        return _export_embedding(run, out) if what == "embedding" else _export_picture(run, out, labels)
    _check_stage_done(run, "audit" if what == "neighbors" else "graph")
    try:
        order = RowOrder(run)
        if what == "graph":
            return _export_graph(run, out, order.row_at_position, len(order.position_of_row))
        n_neighbors = attributes["parameters"]["neighbors"]["n_neighbors"]
        return _export_neighbors(run, out, order.row_at_position, order.position_of_row, n_neighbors, with_self)
    except DroppedError as error:
        raise dropped_error(run, what) from error


def _check_stage_done(run: Run, stage: str) -> None:
    if not run.is_committed(DONE, stage):
        raise StorageError(f"{run.location}: stage {stage} is not done yet; 'dumap run' goes on")


def _check_ending(out: str, allowed: tuple[str, ...]) -> str:
    ending = os.path.splitext(out)[1]
    if ending not in allowed:
        raise ConfigError(f"{out}: the ending must be one of {', '.join(allowed)}")
    return ending


def _export_embedding(run: Run, out: str) -> str:
    ending = _check_ending(out, (".npy", ".csv", ".parquet"))
    coordinates, status = (run.read_final(name, "embedding") for name in ("embedding", "status"))
    if ending == ".npy":
        np.save(out, coordinates)
    elif ending == ".csv":
        columns_of_csv = ["row", *(f"component_{number}" for number in range(coordinates.shape[1])), "status"]
        with open(out, "w") as file:
            file.write(",".join(columns_of_csv) + "\n")
            for row, (values, flag) in enumerate(zip(coordinates.tolist(), status.tolist(), strict=True)):
                file.write(f"{row},{','.join(f'{value:.9g}' for value in values)},{flag}\n")
    else:
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError as error:
            raise missing_packages(f"{out}: parquet", "pyarrow") from error
        columns = {f"component_{number}": coordinates[:, number] for number in range(coordinates.shape[1])}
        row_names = read_row_names(run)
        row_labels = np.arange(len(coordinates)) if row_names is None else row_names
        parquet.write_table(pyarrow.table({"row": row_labels, **columns, "status": status}), out)
    return f"{out}: {coordinates.shape[0]} rows x {coordinates.shape[1]} components"


def _export_neighbors(
    run: Run, out: str, row_at_position: np.ndarray, position_of_row: np.ndarray, n_neighbors: int, with_self: bool
) -> str:
    ending, lists = _check_ending(out, (".npz", ".zarr")), NeighborLists(run)
    rows, n_others = len(position_of_row), n_neighbors - 1
    columns = n_others + with_self

    def blocks(array: str) -> Iterator[tuple[int, np.ndarray]]:
        dtype, missing = (np.int64, -1) if array == "indices" else (np.float32, np.inf)
        all_lists = lists.read(array, 0, len(row_at_position))[:, :n_others]
        for start in range(0, rows, BLOCK_ROWS):
            positions = position_of_row[start : start + BLOCK_ROWS]
            block = np.full((len(positions), columns), missing, dtype)
            values = all_lists[positions[positions >= 0]]
            block[positions >= 0, with_self:] = (
                np.where(values >= 0, row_at_position[values], -1) if array == "indices" else values
            )
            if with_self:
                block[:, 0] = np.arange(start, start + len(positions)) if array == "indices" else 0
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
        indices, distances = (np.concatenate([block for _, block in blocks(name)]) for name in ("indices", "distances"))
        np.savez(out, indices=indices, distances=distances)
    self_text = "each row itself first" if with_self else "self excluded"
    return f"{out}: indices and distances, {rows} rows x {columns} neighbors, {self_text}"


def _export_graph(run: Run, out: str, row_at_position: np.ndarray, rows: int) -> str:
    _check_ending(out, (".npz",))
    graph = Graph(run)
    heads, tails, weights = [], [], []
    for shard in range(len(graph.shards)):
        indptr, tail, weight = graph.read(shard)
        first_position, _ = graph.shards.row_range(shard)
        heads.append(row_at_position[first_position + np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))])
        tails.append(row_at_position[tail])
        weights.append(weight)
    heads_and_tails = (np.concatenate(heads), np.concatenate(tails))
    matrix = sparse.csr_matrix((np.concatenate(weights), heads_and_tails), shape=(rows, rows))
    sparse.save_npz(out, matrix, compressed=False)
    return f"{out}: CSR matrix, {rows} rows, {matrix.nnz} membership strengths"


def _export_picture(run: Run, out: str, labels: str | None) -> str:
    _check_ending(out, (".png",))
    from dumap.show.picture import draw_map

    coordinates = run.read_final("embedding", "embedding")
    if coordinates.shape[1] != 2:
        raise ConfigError(f"a picture needs layout.n_components = 2; this run has {coordinates.shape[1]}")
    draw_map(coordinates, None if labels is None else read_array(labels)).savefig(out, bbox_inches="tight")
    return f"{out}: a picture of {len(coordinates)} rows"
