"""Make many vectors that are as hard to search as a few real ones: rows of a Zarr store, mixed and jittered.

    python scripts/hard_vectors.py SENTENCES.zarr HARD.zarr --rows 1000000 --match
    python scripts/hard_vectors.py SENTENCES.zarr HARD.zarr --rows 1000000 --jitter 0.1   # as an earlier match found

A new row is (1 - w) a + w b + jitter: a and b are rows of the source drawn at random, w is drawn from 0 to --mix, and
the jitter is Gaussian, of a length that is --jitter times the root mean square distance of the source's rows from their
mean. Where the source's rows have unit length, so have the new ones. Rows are drawn by chunk from (seed, chunk), so a
set is the beginning of a longer one of the same settings.

--match chooses the jitter so that pynndescent, with its defaults and 15 neighbours, has the same recall on the new rows
as on the source's, to within 0.005 where that can be had: more jitter is harder, since it points to as many sides as
there are columns. If mixing alone is harder already, the jitter is 0 and --mix is made smaller instead. Each try takes
an index of --match-rows rows; by default of all, which counts, since recall falls as rows grow.

It prints how hard both are, and writes that to the store's attributes: the recall, the intrinsic dimension by the
distances to 100 exact neighbours (Levina and Bickel 2004, averaged as MacKay and Ghahramani 2005 do), and the contrast,
the mean distance of two rows over that of a row to its nearest. The group holds `vectors` (rows, columns) float32 and,
if the source has labels, `labels`: those of a.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass, replace
from typing import Any

import judge
import numpy as np
import zarr
from measuring.contenders import remove_self
from measuring.machine import count_cores

CHUNK_ROWS = 16_384
MAX_SOURCE_ROWS = 200_000
"""Rows of the source that are used, evenly spaced; all, where there are no more."""
NEIGHBORS, DIMENSION_NEIGHBORS, QUERIES = 15, 100, 1000
MAX_JITTER, MAX_TRIES, RECALL_TOLERANCE = 4.0, 10, 0.005
LENGTH_TOLERANCE = 0.01
"""Rows have unit length if none is further from it than this."""


@dataclass(frozen=True)
class Recipe:
    """How rows are made of others.

    Attributes
    ----------
    seed : int
    mix : float
        The greatest weight of the second row.
    jitter : float
        Length of the noise, in root mean square distances of rows from their mean.
    """

    seed: int
    mix: float
    jitter: float


class SourceRows:
    """Rows to make others of.

    Parameters
    ----------
    x : ndarray (n, dims) float32
    labels : ndarray (n,), optional
    """

    def __init__(self, x: np.ndarray, labels: np.ndarray | None = None) -> None:
        self.x, self.labels = x, labels
        self.scale = float(np.sqrt(((x - x.mean(axis=0)) ** 2).sum(axis=1).mean()))
        self.has_unit_length = bool(np.abs(np.linalg.norm(x, axis=1) - 1).max() < LENGTH_TOLERANCE)

    @classmethod
    def read(cls, path: str, array: str, labels: str) -> SourceRows:
        """Read a store, or an even share of its rows where it is long."""
        vectors = zarr.open_array(path, path=array, mode="r")
        step = -(-vectors.shape[0] // MAX_SOURCE_ROWS)
        x = np.concatenate([rows[-first % step :: step] for first, rows in judge.read_blocks(vectors)])
        labels_of_rows = None
        if labels in zarr.open_group(path, mode="r"):
            labels_of_rows = np.asarray(zarr.open_array(path, path=labels, mode="r")[...])[::step]
        return cls(x, labels_of_rows)

    def make_chunk(self, recipe: Recipe, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Make a chunk of rows, (CHUNK_ROWS, dims) float32; return the number of the row that each is most of, too."""
        rng = np.random.default_rng((recipe.seed, number))
        first, second = rng.integers(len(self.x), size=(2, CHUNK_ROWS))
        weight = (recipe.mix * rng.random(CHUNK_ROWS, np.float32))[:, None]
        noise = rng.standard_normal((CHUNK_ROWS, self.x.shape[1]), np.float32)
        noise *= recipe.jitter * self.scale / np.sqrt(self.x.shape[1], dtype=np.float32)
        mixed_rows = (1 - weight) * self.x[first] + weight * self.x[second] + noise
        if self.has_unit_length:
            mixed_rows /= np.maximum(np.linalg.norm(mixed_rows, axis=1, keepdims=True), 1e-12)
        return mixed_rows.astype(np.float32), first

    def make_rows(self, recipe: Recipe, count: int) -> np.ndarray:
        """Make so many rows in memory."""
        chunks = [self.make_chunk(recipe, number)[0] for number in range(-(-count // CHUNK_ROWS))]
        return np.concatenate(chunks)[:count]


def write_rows(source: SourceRows, recipe: Recipe, out: str, rows: int, attributes: dict[str, Any]) -> None:
    """Write the store chunk by chunk; its attributes, written last, say how it was made."""
    group, chunk_rows = zarr.open_group(out, mode="w"), min(CHUNK_ROWS, rows)
    dims = source.x.shape[1]
    vectors = group.create_array("vectors", shape=(rows, dims), chunks=(chunk_rows, dims), dtype="float32")
    labels = None
    if source.labels is not None:
        labels = group.create_array("labels", shape=(rows,), chunks=(chunk_rows,), dtype=source.labels.dtype)
    for number, start in enumerate(range(0, rows, CHUNK_ROWS)):
        chunk, source_rows = source.make_chunk(recipe, number)
        stop = min(start + CHUNK_ROWS, rows)
        vectors[start:stop] = chunk[: stop - start]
        if labels is not None and source.labels is not None:
            labels[start:stop] = source.labels[source_rows[: stop - start]]
    group.attrs.update({**asdict(recipe), **attributes})


# how hard it is ----------------------------------------------------------------------------------


def measure_hardness(x: np.ndarray, threads: int) -> dict[str, float]:
    """Return pynndescent's recall, the intrinsic dimension and the contrast of rows in memory."""
    import pynndescent

    rng = np.random.default_rng(0)
    queries = np.sort(rng.choice(len(x), min(QUERIES, len(x)), replace=False))
    k = min(DIMENSION_NEIGHBORS, len(x) - 1)
    nearest = judge.exact_neighbors(x, queries, x[queries], k)
    distances = np.sqrt(((x[nearest].astype(np.float64) - x[queries][:, None]) ** 2).sum(axis=2))
    index = pynndescent.NNDescent(x, n_neighbors=NEIGHBORS, n_jobs=threads, random_state=1)
    lists = remove_self(index.neighbor_graph[0])
    random_rows = rng.choice(len(x), len(queries))
    random_distances = np.sqrt(((x[random_rows].astype(np.float64) - x[queries]) ** 2).sum(axis=1))
    return {
        "rows": len(x),
        "recall": round(judge.mean_overlap(lists[queries], nearest[:, : lists.shape[1]]), 4),
        "intrinsic_dimension": round(intrinsic_dimension(distances), 2),
        "contrast": round(float(random_distances.mean() / max(distances[:, 0].mean(), 1e-12)), 3),
    }


def intrinsic_dimension(distances: np.ndarray) -> float:
    """Return the dimension in which neighbours lie at such distances, (queries, k), ascending."""
    nonzero = distances[distances[:, 0] > 0]
    log_ratios = np.log(nonzero[:, -1:] / nonzero[:, :-1])
    return float(1 / log_ratios.mean())


def match_recall(
    source: SourceRows, recipe: Recipe, rows: int, target: float, threads: int
) -> tuple[Recipe, dict[str, float]]:
    """Choose the jitter, or where mixing alone is too hard the mix, with which recall is as on the source's rows."""

    def try_recipe(candidate: Recipe) -> dict[str, float]:
        hardness = measure_hardness(source.make_rows(candidate, rows), threads)
        print(f"mix {candidate.mix:.4f}, jitter {candidate.jitter:.4f}: {format_hardness(hardness)}", flush=True)
        return hardness

    parameter, low, high = "jitter", 0.0, MAX_JITTER
    best = replace(recipe, jitter=0.0)
    hardness = try_recipe(best)
    if hardness["recall"] < target - RECALL_TOLERANCE:
        parameter, high = "mix", recipe.mix
    value = min(0.5, (low + high) / 2)
    for _ in range(MAX_TRIES):
        if abs(hardness["recall"] - target) <= RECALL_TOLERANCE:
            break
        candidate = replace(recipe, jitter=value) if parameter == "jitter" else replace(recipe, jitter=0.0, mix=value)
        candidate_hardness = try_recipe(candidate)
        if abs(candidate_hardness["recall"] - target) < abs(hardness["recall"] - target):
            best, hardness = candidate, candidate_hardness
        low, high = (value, high) if candidate_hardness["recall"] > target else (low, value)
        value = (low + high) / 2
    return best, hardness


def format_hardness(hardness: dict[str, float]) -> str:
    """Write how hard rows are."""
    return (
        f"{hardness['rows']:,} rows, pynndescent's recall {hardness['recall']:.3f}, intrinsic dimension "
        f"{hardness['intrinsic_dimension']:.1f}, contrast {hardness['contrast']:.2f}"
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a Zarr group of vectors")
    parser.add_argument("out")
    parser.add_argument("--rows", type=int, default=1_000_000, help="(%(default)s)")
    parser.add_argument("--array", default="vectors", help="of the source (%(default)s)")
    parser.add_argument("--labels", default="labels", help="of the source, if it has them (%(default)s)")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--mix", type=float, default=0.5, help="greatest weight of the second row (%(default)s)")
    jitter_options = parser.add_mutually_exclusive_group(required=True)
    jitter_options.add_argument("--jitter", type=float, help="length of the noise")
    jitter_options.add_argument("--match", action="store_true", help="find it by pynndescent's recall")
    parser.add_argument("--match-rows", type=int, help="rows of each try; default: all")
    parser.add_argument("--no-report", action="store_true", help="with --jitter: do not say how hard the rows are")
    parser.add_argument("--threads", type=int, default=count_cores())
    args = parser.parse_args()
    if args.rows < 1 or not 0 <= args.mix <= 1 or (args.jitter or 0) < 0:
        parser.error("--rows must be at least 1, --mix from 0 to 1, --jitter at least 0")
    return args


def main() -> None:
    """Make the rows, and say how hard they are."""
    args = parse_arguments()
    source = SourceRows.read(args.source, args.array, args.labels)
    recipe = Recipe(args.seed, args.mix, args.jitter or 0.0)
    attributes: dict[str, Any] = {"source": os.path.basename(args.source), "source_rows": len(source.x)}
    if args.match or not args.no_report:
        attributes["hardness_of_source"] = measure_hardness(source.x, args.threads)
        print(f"source: {format_hardness(attributes['hardness_of_source'])}", flush=True)
    if args.match:
        rows = min(args.rows, args.match_rows or args.rows)
        recipe, attributes["hardness"] = match_recall(
            source, recipe, rows, attributes["hardness_of_source"]["recall"], args.threads
        )
    elif not args.no_report:
        attributes["hardness"] = measure_hardness(source.make_rows(recipe, args.rows), args.threads)
    write_rows(source, recipe, args.out, args.rows, attributes)
    if "hardness" in attributes:
        print(f"made, mix {recipe.mix:.4f}, jitter {recipe.jitter:.4f}: {format_hardness(attributes['hardness'])}")
    print(json.dumps({"out": args.out, "rows": args.rows, **asdict(recipe), **attributes}))


if __name__ == "__main__":
    main()
