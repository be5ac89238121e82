"""Time the k-NN graph against one index of pynndescent's over all rows in memory.

    python scripts/benchmark_neighbors.py DATA.zarr [--rounds 3] [--workers 2] [--memory-limit 2GiB] [--set KEY=VALUE]

Both count a row among its n_neighbors. Each round times, one after the other: the
stages cells and neighbors of a run on an embedded cluster, storage and scheduling included, and umap-learn's
`nearest_neighbors` (an NNDescent over the whole array) on all cores. Both are compiled before. The last line is JSON:
the seconds of every round, the ratio of medians, peaks of memory, and the recall of both against exact neighbours of
sampled rows. With `--alone`
umap-learn is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import tempfile
import time
import warnings

import numpy as np

from dumap.artifacts.cells import CellTable
from dumap.artifacts.neighbors import NeighborLists
from dumap.config import Config, load_config
from dumap.errors import DumapError
from dumap.kernels.vectors import as_float32
from dumap.recipe import pipeline
from dumap.recipe.observers import SilentObserver
from dumap.sources.zarr_array import ArrayInput
from dumap.store import Run

QUERIES, TILE_ROWS = 1000, 16_384


class MeasurementComplete(DumapError):
    """The run has all that is timed."""


class StageRecorder(SilentObserver):
    """Keep seconds and peaks; stop after neighbors."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self.facts: dict[str, dict] = {}

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """Note a stage."""
        self.seconds[stage], self.peaks[stage], self.facts[stage] = seconds, peak_bytes, facts
        if stage == "neighbors":
            raise MeasurementComplete


def exact_neighbors(source: ArrayInput, queries: np.ndarray, k: int) -> np.ndarray:
    """Return the exact neighbours of some rows, (queries, k), by float64 products."""
    query_vectors = np.concatenate([as_float32(source.read(int(row), int(row) + 1)) for row in queries]).astype(
        np.float64
    )
    row_ids, best_squared = np.full((len(queries), k + 1), -1), np.full((len(queries), k + 1), np.inf)
    for start in range(0, source.rows, TILE_ROWS):
        tile = as_float32(source.read(start, min(source.rows, start + TILE_ROWS))).astype(np.float64)
        tile_rows = np.arange(start, start + len(tile))
        squared = (tile * tile).sum(axis=1)[None, :] - 2 * (query_vectors @ tile.T)
        squared[np.isin(tile_rows, queries)[None, :] & (queries[:, None] == tile_rows)] = np.inf
        nearest = np.argpartition(squared, min(k, len(tile) - 1), axis=1)[:, : k + 1]
        row_ids = np.concatenate([row_ids, nearest + start], axis=1)
        best_squared = np.concatenate([best_squared, np.take_along_axis(squared, nearest, 1)], axis=1)
        order = np.argsort(best_squared, axis=1, kind="stable")[:, : k + 1]
        row_ids, best_squared = np.take_along_axis(row_ids, order, 1), np.take_along_axis(best_squared, order, 1)
    return row_ids[:, :k]


def recall(listed: np.ndarray, expected: np.ndarray) -> float:
    """Return the share of the expected ids that are listed."""
    return float((listed[:, :, None] == expected[:, None, :]).any(axis=1).mean())


def run_dumap(config: Config) -> StageRecorder:
    """Run the stages up to neighbors in a new folder."""
    recorder = StageRecorder()
    shutil.rmtree(config.output, ignore_errors=True)
    with contextlib.suppress(MeasurementComplete):
        pipeline.run(config, observer=recorder)
    return recorder


def read_lists(config: Config, queries: np.ndarray) -> np.ndarray:
    """Return the neighbours that the run found of some rows, by the input's numbers."""
    run, geometry = Run(config.output, read_only=True), pipeline.plan(config).geometry
    table, lists = CellTable(run), NeighborLists(run)
    positions = np.concatenate([table.positions(run, block) for block in range(geometry.blocks)])
    row_at_position = np.argsort(positions)
    listed = np.concatenate(
        [lists.read("indices", int(position), int(position) + 1) for position in positions[queries]]
    )
    return row_at_position[listed]


def time_umap_learn(config: Config, source: ArrayInput) -> tuple[float, np.ndarray]:
    """Time umap-learn's neighbours of the whole array."""
    from umap.umap_ import nearest_neighbors

    x = np.empty((source.rows, source.dims), np.float32)
    for start in range(0, source.rows, TILE_ROWS):
        x[start : start + TILE_ROWS] = source.read(start, min(source.rows, start + TILE_ROWS))
    neighbors_config = config.neighbors
    settings = (neighbors_config.n_neighbors, neighbors_config.metric, neighbors_config.metric_kwds, False)
    nearest_neighbors(x[:6000], *settings, np.random.RandomState(1))
    start_time = time.perf_counter()
    listed = nearest_neighbors(x, *settings, np.random.RandomState(1))[0]
    return time.perf_counter() - start_time, listed[:, 1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--memory-limit", default="2GiB")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--folder", help="where runs are written; default: beside the data")
    parser.add_argument("--alone", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    folder = tempfile.mkdtemp(dir=args.folder or os.path.dirname(os.path.abspath(args.data)))
    options = {"input.path": args.data, "output": f"{folder}/run.zarr", "cluster.workers": args.workers}
    config = load_config(None, args.settings, {**options, "cluster.memory_limit": args.memory_limit})
    source = ArrayInput(config.input.path, config.input.array)
    seconds: dict[str, list[float]] = {"dumap": [], "cells": [], "neighbors": [], "umap-learn": []}
    recalls: dict[str, float] = {}
    queries = np.sort(np.random.default_rng(0).choice(source.rows, min(QUERIES, source.rows), replace=False))
    expected = exact_neighbors(source, queries, config.neighbors.graph_k)
    try:
        for round_number in range(args.rounds):
            recorder = run_dumap(config)
            for stage in ("cells", "neighbors"):
                seconds[stage].append(recorder.seconds[stage])
            seconds["dumap"].append(recorder.seconds["cells"] + recorder.seconds["neighbors"])
            if not round_number:
                recalls["dumap"] = recall(read_lists(config, queries), expected)
            if not args.alone:
                elapsed, listed = time_umap_learn(config, source)
                seconds["umap-learn"].append(elapsed)
                recalls["umap-learn"] = recall(listed[queries], expected)
                del listed
            print({name: round(times[-1], 2) for name, times in seconds.items() if times}, flush=True)
    finally:
        shutil.rmtree(folder)
    medians = {name: statistics.median(times) for name, times in seconds.items() if times}
    report = {
        "rows": source.rows,
        "dims": source.dims,
        "facts": recorder.facts["cells"],
        "seconds": {name: [round(value, 2) for value in times] for name, times in seconds.items() if times},
        "peak_mib": {name: peak >> 20 for name, peak in recorder.peaks.items()},
        "recall": recalls,
        "microseconds_a_row": round(medians["dumap"] / source.rows * 1e6, 2),
    }
    if not args.alone:
        report["share_of_umap_learn"] = round(medians["dumap"] / medians["umap-learn"], 3)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
