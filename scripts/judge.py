"""Judge maps, and lists of neighbours, of one data set by exact samples: a line of JSON for each map.

    python scripts/judge.py DATA.zarr MAP.npy [OTHER.npy ...] [--neighbors LISTS.npy] [--queries 2000]

Maps and lists are .npy files or Zarr arrays, in the rows' order; a list does not hold the row itself. Queries, triplets
and pairs are drawn by seed, the same for all maps, and compared with all rows, which are read block by block, as
Euclidean distances of float32.

xent        UMAP's cross-entropy on an exact graph, near + 2.5 far, lower is better: near is the mean of
            log(1 + a d^2b) over the queries and their exact 15 neighbours, far that of -log(1 - 1 / (1 + a d^2b)) over
            random pairs (d^2 + 0.001 there), with a and b of min_dist 0.1. Scores of neighbours reward a map whose
            classes are torn apart; this one does not. It says little of maps made for another aim, as t-SNE's are.
kept15      share of the exact 15 neighbours that are among the 15 nearest in the map; kept100: among the 100 nearest
trust15     trustworthiness (Venna and Kaski 2001) of the 15 nearest in the map, by exact ranks among all rows
triplet     share of random triplets whose order of distances the map keeps
label15     share of the queries whose label a vote of their 15 nearest in the map gives, where the store has `labels`
silhouette  mean silhouette of the labels in the map, on a sample of 3,000 rows: low where a class lies in pieces
stray       share of rows further than 10 median distances from the median point
recall      share of the exact 15 neighbours, or of as many as the lists are wide, that the lists hold
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

CURVE_A, CURVE_B = 1.5769434602, 0.8950608780
"""The curve of min_dist 0.1 and spread 1, as umap-learn fits it."""
REPULSION_WEIGHT = 2.5
"""How much repulsion counts: half of the 5 negative samples, since each pair is seen from both ends."""
NEAR_NEIGHBORS, FAR_NEIGHBORS = 15, 100
BLOCK_ROWS = 20_000
TRIPLETS, PAIRS, SILHOUETTE_ROWS = 20_000, 500_000, 3_000
WORSE_BELOW = {"kept15": (0.97, 0.0), "kept100": (0.97, 0.0), "trust15": (1.0, 0.01)}
WORSE_BELOW |= {"label15": (1.0, 0.01), "triplet": (1.0, 0.01), "silhouette": (1.0, 0.03), "recall": (1.0, 0.01)}
"""A figure is worse than another's below that times the factor, less the margin."""
XENT_FACTOR = 1.02
"""A cross-entropy is worse above so many times another's."""


def load_array(path: str) -> np.ndarray:
    """Read a .npy file or a Zarr array."""
    if path.endswith(".npy"):
        return np.load(path)
    array = zarr.open(path, mode="r")
    if not isinstance(array, zarr.Array):
        raise SystemExit(f"{path} is not an array: name one in it, such as {path}/embedding")
    return np.asarray(array[...])


@dataclass
class Sample:
    """A data set, and what is drawn of it to judge by.

    Attributes
    ----------
    vectors : zarr.Array
    labels : ndarray or None
    queries : ndarray (q,)
        Row ids, in order.
    x : ndarray (q, dims) float32
        Their rows.
    nearest : ndarray (q, k)
        Their exact nearest rows, themselves left out.
    triplets : ndarray (3, t)
        Rows i, j, k; `is_j_nearer` says whether j is the nearer to i.
    is_j_nearer : ndarray (t,) bool
    pairs : ndarray (2, p)
    silhouette_rows : ndarray
        Rows on which silhouettes are computed.
    """

    vectors: zarr.Array
    labels: np.ndarray | None
    queries: np.ndarray
    x: np.ndarray
    nearest: np.ndarray
    triplets: np.ndarray
    is_j_nearer: np.ndarray
    pairs: np.ndarray
    silhouette_rows: np.ndarray

    @property
    def rows(self) -> int:
        """The rows of the data set."""
        return int(self.vectors.shape[0])


def read_blocks(vectors: zarr.Array | np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, rows as float32)."""
    for first in range(0, vectors.shape[0], BLOCK_ROWS):
        yield first, np.asarray(vectors[first : first + BLOCK_ROWS], np.float32)


def read_rows(vectors: zarr.Array, rows: np.ndarray) -> np.ndarray:
    """Read some rows, in ascending order, as float32."""
    return np.asarray(vectors.oindex[rows], np.float32)


def exact_neighbors(vectors: zarr.Array | np.ndarray, queries: np.ndarray, x: np.ndarray, k: int) -> np.ndarray:
    """Return the k nearest rows of each query among all rows, itself left out, (q, k)."""
    row_ids, squared = np.full((len(queries), k + 1), -1), np.full((len(queries), k + 1), np.inf, np.float32)
    for first, block in read_blocks(vectors):
        block_squared = (block * block).sum(axis=1)[None, :] - 2 * (x @ block.T)
        nearest = np.argpartition(block_squared, min(k, block_squared.shape[1] - 1), axis=1)[:, : k + 1]
        row_ids = np.concatenate([row_ids, nearest + first], axis=1)
        squared = np.concatenate([squared, np.take_along_axis(block_squared, nearest, 1)], axis=1)
        order = np.argsort(squared, axis=1, kind="stable")[:, : k + 1]
        row_ids, squared = np.take_along_axis(row_ids, order, 1), np.take_along_axis(squared, order, 1)
    return remove_self(row_ids, queries)


def remove_self(row_ids: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Leave a query out of its own list, or the last of a list that does not hold it, (q, k - 1)."""
    return np.array(
        [listed[listed != query][: row_ids.shape[1] - 1] for listed, query in zip(row_ids, queries, strict=True)]
    )


def draw_sample(
    data: str, array: str = "vectors", labels: str = "labels", queries: int = 2000, seed: int = 1
) -> Sample:
    """Draw what maps of a data set are judged by, and find the exact neighbours."""
    vectors, has_labels = zarr.open_array(data, path=array, mode="r"), labels in zarr.open_group(data, mode="r")
    rows = vectors.shape[0]
    if rows < NEAR_NEIGHBORS + 2:
        raise SystemExit(f"{data}: {rows} rows are too few to judge by {NEAR_NEIGHBORS} neighbours")
    rng = np.random.default_rng(seed)
    query_rows = np.sort(rng.choice(rows, min(queries, rows), replace=False))
    x = read_rows(vectors, query_rows)
    triplets, pairs = rng.choice(rows, (3, TRIPLETS)), rng.choice(rows, (2, PAIRS))
    silhouette_rows = np.sort(rng.choice(rows, min(SILHOUETTE_ROWS, rows), replace=False))
    triplet_rows = np.unique(triplets)
    i, j, k = (
        read_rows(vectors, triplet_rows)[np.searchsorted(triplet_rows, rows_of_triplet)] for rows_of_triplet in triplets
    )
    return Sample(
        vectors,
        np.asarray(zarr.open_array(data, path=labels, mode="r")[...]) if has_labels else None,
        query_rows,
        x,
        exact_neighbors(vectors, query_rows, x, NEAR_NEIGHBORS),
        triplets,
        ((i - j) ** 2).sum(axis=1) < ((i - k) ** 2).sum(axis=1),
        pairs[:, pairs[0] != pairs[1]],
        silhouette_rows,
    )


def mean_overlap(listed: np.ndarray, expected: np.ndarray) -> float:
    """Return the mean share of each row of `expected` that is in the same row of `listed`."""
    return float(np.mean([np.isin(row, listed_row).mean() for listed_row, row in zip(listed, expected, strict=True)]))


def trustworthiness(sample: Sample, mapped: np.ndarray) -> float:
    """Return the trustworthiness of the rows nearest in a map, (q, k), by their exact ranks."""
    x, queries, k = sample.x, sample.queries, mapped.shape[1]
    mapped_rows = np.unique(mapped)
    nearest = read_rows(sample.vectors, mapped_rows)
    positions = np.searchsorted(mapped_rows, mapped)
    squared = np.stack(
        [((nearest[listed] - query) ** 2).sum(axis=1) for listed, query in zip(positions, x, strict=True)]
    )
    rank = np.zeros(squared.shape, np.int64)
    for first, block in read_blocks(sample.vectors):
        block_squared = (block * block).sum(axis=1)[None, :] - 2 * (x @ block.T) + (x * x).sum(axis=1)[:, None]
        is_in_block = (queries >= first) & (queries < first + len(block))
        block_squared[np.nonzero(is_in_block)[0], queries[is_in_block] - first] = np.inf
        for column in range(k):
            rank[:, column] += (block_squared < squared[:, column : column + 1] * (1 - 1e-6)).sum(axis=1)
    rank_excess = np.maximum(rank + 1 - k, 0).sum(axis=1)
    return float(1 - 2 / (k * (2 * sample.rows - 3 * k - 1)) * rank_excess.mean())


def silhouette(y: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean silhouette of labelled points, those of classes of one point left out (Rousseeuw 1987)."""
    distances = cdist(y, y)
    classes, class_numbers = np.unique(labels, return_inverse=True)
    is_member = class_numbers[:, None] == np.arange(len(classes))
    sizes = is_member.sum(axis=0)
    sums = distances @ is_member
    own_class = np.arange(len(y)), class_numbers
    is_counted = sizes[class_numbers] > 1
    if len(classes) < 2 or not is_counted.any():
        return float("nan")
    mean_within = sums[own_class] / np.maximum(sizes[class_numbers] - 1, 1)
    mean_between = sums / sizes
    mean_between[own_class] = np.inf
    nearest_other = mean_between.min(axis=1)
    return float(((nearest_other - mean_within) / np.maximum(mean_within, nearest_other))[is_counted].mean())


def cross_entropy(sample: Sample, y: np.ndarray) -> tuple[float, float]:
    """Return the attraction between exact neighbours, and the repulsion between random pairs: see the module."""

    def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.asarray(((a - b) ** 2).sum(axis=-1, dtype=np.float64))

    near = np.log1p(CURVE_A * squared(y[sample.queries][:, None], y[sample.nearest]) ** CURVE_B).mean()
    i, j = sample.pairs
    far = -np.log(1 - 1 / (1 + CURVE_A * (squared(y[i], y[j]) + 1e-3) ** CURVE_B)).mean()
    return float(near), float(far)


def judge_map(sample: Sample, y: np.ndarray) -> dict[str, float]:
    """Return the figures of a map, (rows, components).

    Raises
    ------
    ValueError
        It is not finite, or of another number of rows.
    """
    if len(y) != sample.rows or not np.isfinite(y).all():
        raise ValueError(f"a map of shape {y.shape} for {sample.rows} rows, or one that is not finite")
    queries = sample.queries
    k_far = min(FAR_NEIGHBORS, sample.rows - 1)
    mapped = remove_self(cKDTree(y).query(y[queries], k=k_far + 1, workers=-1)[1], queries)
    near, far = cross_entropy(sample, y)
    i, j, k = (y[rows] for rows in sample.triplets)
    is_kept = sample.is_j_nearer == (((i - j) ** 2).sum(axis=1) < ((i - k) ** 2).sum(axis=1))
    radii = np.sqrt(((y - np.median(y, axis=0)) ** 2).sum(axis=1))
    figures = {
        "xent": near + REPULSION_WEIGHT * far,
        "near": near,
        "far": far,
        "kept15": mean_overlap(mapped[:, :NEAR_NEIGHBORS], sample.nearest),
        "kept100": mean_overlap(mapped, sample.nearest),
        "trust15": trustworthiness(sample, mapped[:, :NEAR_NEIGHBORS]),
        "triplet": float(is_kept.mean()),
        "stray": float(np.mean(radii > 10 * np.median(radii))),
    }
    if sample.labels is not None:
        classes, labels = np.unique(sample.labels, return_inverse=True)
        votes = np.array([np.bincount(labels[row[:NEAR_NEIGHBORS]], minlength=len(classes)).argmax() for row in mapped])
        figures["label15"] = float(np.mean(votes == labels[queries]))
        figures["silhouette"] = silhouette(y[sample.silhouette_rows], labels[sample.silhouette_rows])
    return figures


def recall(sample: Sample, lists: np.ndarray) -> float:
    """Return the recall of lists of neighbours, (rows, k), the row itself left out."""
    k = min(NEAR_NEIGHBORS, lists.shape[1])
    return mean_overlap(lists[sample.queries][:, :k], sample.nearest[:, :k])


def list_worse_figures(figures: dict[str, Any], other_figures: dict[str, Any]) -> list[str]:
    """Name the figures that are worse than another's by more than noise."""
    worse_names = [
        name
        for name, (factor, margin) in WORSE_BELOW.items()
        if name in figures and name in other_figures and figures[name] < factor * other_figures[name] - margin
    ]
    if "xent" in figures and "xent" in other_figures and figures["xent"] > XENT_FACTOR * other_figures["xent"]:
        worse_names.append("xent")
    return worse_names + ["stray"] * (figures.get("stray", 0) > 0)


def main() -> None:
    """Read the command line, and print a line for each map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("maps", nargs="*", metavar="MAP")
    parser.add_argument("--neighbors", action="append", default=[], metavar="LISTS")
    parser.add_argument("--array", default="vectors")
    parser.add_argument("--labels", default="labels")
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    sample = draw_sample(args.data, args.array, args.labels, args.queries, args.seed)
    try:
        for path in args.maps:
            print(json.dumps({"map": path, **round_figures(judge_map(sample, load_array(path)))}), flush=True)
        for path in args.neighbors:
            print(
                json.dumps({"neighbors": path, **round_figures({"recall": recall(sample, load_array(path))})}),
                flush=True,
            )
    except ValueError as error:
        sys.exit(f"{path}: {error}")


def round_figures(figures: dict[str, float]) -> dict[str, float]:
    """Round figures to what a sample tells."""
    return {name: round(value, 4) for name, value in figures.items()}


if __name__ == "__main__":
    main()
