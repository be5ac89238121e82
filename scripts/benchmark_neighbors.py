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
from dumap.sources.zarr_array import Input
from dumap.store import Run

QUERIES, TILE_ROWS = 1000, 16_384


class Stop(DumapError):
    """The run has all that is timed."""


class Observer(SilentObserver):
    """Keep seconds and peaks; stop after neighbors."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self.facts: dict[str, dict] = {}

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """Note a stage."""
        self.seconds[stage], self.peaks[stage], self.facts[stage] = seconds, peak_bytes, facts
        if stage == "neighbors":
            raise Stop


def exact(source: Input, queries: np.ndarray, k: int) -> np.ndarray:
    """Return the exact neighbours of some rows, (queries, k), by float64 products."""
    q = np.concatenate([as_float32(source.read(int(row), int(row) + 1)) for row in queries]).astype(np.float64)
    ids, best = np.full((len(queries), k + 1), -1), np.full((len(queries), k + 1), np.inf)
    for low in range(0, source.rows, TILE_ROWS):
        x = as_float32(source.read(low, min(source.rows, low + TILE_ROWS))).astype(np.float64)
        squared = (x * x).sum(axis=1)[None, :] - 2 * (q @ x.T)
        squared[
            np.isin(np.arange(low, low + len(x)), queries)[None, :] & (queries[:, None] == np.arange(low, low + len(x)))
        ] = np.inf
        part = np.argpartition(squared, min(k, len(x) - 1), axis=1)[:, : k + 1]
        ids = np.concatenate([ids, part + low], axis=1)
        best = np.concatenate([best, np.take_along_axis(squared, part, 1)], axis=1)
        order = np.argsort(best, axis=1, kind="stable")[:, : k + 1]
        ids, best = np.take_along_axis(ids, order, 1), np.take_along_axis(best, order, 1)
    return ids[:, :k]


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the share of wanted ids that were found."""
    return float((found[:, :, None] == wanted[:, None, :]).any(axis=1).mean())


def ours(config: Config) -> Observer:
    """Run the stages up to neighbors in a new folder."""
    seen = Observer()
    shutil.rmtree(config.output, ignore_errors=True)
    with contextlib.suppress(Stop):
        pipeline.run(config, observer=seen)
    return seen


def lists_of(config: Config, queries: np.ndarray) -> np.ndarray:
    """Return the neighbours that the run found of some rows, by the input's numbers."""
    run, cut = Run(config.output, read_only=True), pipeline.plan(config).geometry
    table, lists = CellTable(run), NeighborLists(run)
    positions = np.concatenate([table.positions(run, block) for block in range(cut.blocks)])
    rows = np.argsort(positions)
    found = np.concatenate([lists.read("indices", int(p), int(p) + 1) for p in positions[queries]])
    return rows[found]


def peer(config: Config, source: Input) -> tuple[float, np.ndarray]:
    """Time umap-learn's neighbours of the whole array."""
    from umap.umap_ import nearest_neighbors

    x = np.empty((source.rows, source.dims), np.float32)
    for low in range(0, source.rows, TILE_ROWS):
        x[low : low + TILE_ROWS] = source.read(low, min(source.rows, low + TILE_ROWS))
    own = config.neighbors
    settings = (own.n_neighbors, own.metric, own.metric_kwds, False)
    nearest_neighbors(x[:6000], *settings, np.random.RandomState(1))
    began = time.perf_counter()
    found = nearest_neighbors(x, *settings, np.random.RandomState(1))[0]
    return time.perf_counter() - began, found[:, 1:]


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
    source = Input(config.input.path, config.input.array)
    seconds: dict[str, list[float]] = {"dumap": [], "cells": [], "neighbors": [], "umap-learn": []}
    recalls: dict[str, float] = {}
    queries = np.sort(np.random.default_rng(0).choice(source.rows, min(QUERIES, source.rows), replace=False))
    wanted = exact(source, queries, config.neighbors.graph_k)
    try:
        for number in range(args.rounds):
            seen = ours(config)
            for stage in ("cells", "neighbors"):
                seconds[stage].append(seen.seconds[stage])
            seconds["dumap"].append(seen.seconds["cells"] + seen.seconds["neighbors"])
            if not number:
                recalls["dumap"] = recall(lists_of(config, queries), wanted)
            if not args.alone:
                took, found = peer(config, source)
                seconds["umap-learn"].append(took)
                recalls["umap-learn"] = recall(found[queries], wanted)
                del found
            print({name: round(found[-1], 2) for name, found in seconds.items() if found}, flush=True)
    finally:
        shutil.rmtree(folder)
    middle = {name: statistics.median(found) for name, found in seconds.items() if found}
    shown = {
        "rows": source.rows,
        "dims": source.dims,
        "facts": seen.facts["cells"],
        "seconds": {name: [round(value, 2) for value in found] for name, found in seconds.items() if found},
        "peak_mib": {name: peak >> 20 for name, peak in seen.peaks.items()},
        "recall": recalls,
        "microseconds_a_row": round(middle["dumap"] / source.rows * 1e6, 2),
    }
    if not args.alone:
        shown["share_of_umap_learn"] = round(middle["dumap"] / middle["umap-learn"], 3)
    print(json.dumps(shown))


if __name__ == "__main__":
    main()
