"""Time the layout against umap-learn's, on the same graph and start.

    dumap run --input DATA.zarr --output RUN.zarr ...      # a finished run: its graph and start are taken
    python scripts/benchmark_layout.py RUN.zarr [--rounds 3] [--threads 2]

Each round times, one after the other: umap-learn's parallel layout, the bare kernel on as many threads, and
the whole stage, storage and scheduling included, on an embedded cluster of one worker a thread. Everything is
compiled before. The last line is JSON: the seconds of every round, and ratios of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np

from dumap import api
from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.layout import EpochState
from dumap.config import Config, build_config
from dumap.kernels.pool import pool_rows
from dumap.recipe.pipeline import plan
from dumap.recipe.stage_names import STAGES
from dumap.recipe.status import status
from dumap.stages.layout import SLICES_PER_THREAD, compute_epoch, slice_bounds
from dumap.stages.layout_common import layout_parameters, pack_shards
from dumap.store import DONE, MANIFESTS, Run, manifest_key


def configuration(run: str, output: str, threads: int) -> Config:
    """Return the configuration of a finished run, for another output."""
    found = status(run)
    source = {**found["parameters"]["input"], **{key: found["input"][key] for key in ("path", "array")}}
    values = {"input": source, "output": output}
    cluster = {"workers": threads, "memory_limit": "4GiB"}
    return build_config({**found["parameters"], **values, "cluster": cluster})


def bare(job: Job, graph: Graph, threads: int) -> tuple[float, np.ndarray]:
    """Time the kernel on edges that are packed already."""
    shards, parameters = graph.shards, layout_parameters(job)
    start = EpochState(job.run, graph, 0)
    edges = pack_shards(job, graph, 0, len(shards))
    y = start.span(0, len(shards))
    m, v, after = np.zeros_like(y), np.zeros_like(y), np.empty_like(y)
    bounds = slice_bounds(shards.rows, threads * SLICES_PER_THREAD)
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as workers:
        for epoch in range(job.geometry.n_epochs):
            drawn = graph.rows_at(pool_rows(parameters.seed, epoch, graph.occurrence_offsets[-1]))
            compute_epoch(workers, bounds, parameters, epoch, edges, y, m, v, after, drawn)
            y, after = after, y
    return time.perf_counter() - began, y


def whole_stage(run: str, threads: int) -> float:
    """Time the stage of a run that has everything before it."""
    with tempfile.TemporaryDirectory(dir=Path(run).absolute().parent) as folder:
        output = f"{folder}/run.zarr"
        shutil.copytree(run, output, copy_function=os.link)
        for stage in STAGES[STAGES.index("layout") :]:
            shutil.rmtree(f"{output}/{MANIFESTS}/{stage}", ignore_errors=True)
            Path(output, manifest_key(DONE, stage)).unlink(missing_ok=True)
        for name in ("embedding", "status"):  # written in place: links would change the run
            shutil.rmtree(f"{output}/{name}")
            shutil.copytree(f"{run}/{name}", f"{output}/{name}")
        done = api.run(configuration(run, output, threads))
        return next(stage["seconds"] for stage in done["stages"] if stage["name"] == "layout")


def peer(job: Job, graph: Graph, y: np.ndarray, threads: int) -> float:
    """Time umap-learn's layout."""
    from umap.layouts import optimize_layout_euclidean
    from umap.umap_ import make_epochs_per_sample

    heads, tails, weights = [], [], []
    for shard in range(len(graph.shards)):
        indptr, tail, weight = graph.read(shard)
        kept = weight >= graph.greatest / job.geometry.n_epochs
        heads.append((graph.shards.span(shard)[0] + np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)))[kept])
        tails.append(tail[kept])
        weights.append(weight[kept])
    head, tail = (np.concatenate(pieces).astype(np.int32) for pieces in (heads, tails))
    every = make_epochs_per_sample(np.concatenate(weights), job.geometry.n_epochs)
    parameters = layout_parameters(job)
    numba.set_num_threads(threads)

    def optimize(epochs: int) -> float:
        own = y.copy()
        began = time.perf_counter()
        optimize_layout_euclidean(
            *(own, own, head, tail, epochs, len(own), every.copy(), parameters.a, parameters.b),
            np.array([1, 2, 3], np.int64),
            parallel=True,
            move_other=True,
        )
        return time.perf_counter() - began

    optimize(2)
    return optimize(job.geometry.n_epochs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    config = configuration(args.run, args.run, args.threads)
    job = Job(config, plan(config).geometry)
    graph = Graph(Run(args.run, read_only=True))
    y = EpochState(job.run, graph, 0).span(0, len(graph.shards))
    seconds: dict[str, list[float]] = {"umap-learn": [], "kernel": [], "stage": []}
    whole_stage(args.run, args.threads)  # compiles what is not in the cache
    for _ in range(args.rounds):
        seconds["umap-learn"].append(peer(job, graph, y, args.threads))
        seconds["kernel"].append(bare(job, graph, args.threads)[0])
        seconds["stage"].append(whole_stage(args.run, args.threads))
        print({name: round(found[-1], 2) for name, found in seconds.items()}, flush=True)
    middle = {name: statistics.median(found) for name, found in seconds.items()}
    edges = graph.edges_of(0, len(graph.shards))
    print(
        json.dumps(
            {
                "rows": graph.shards.rows,
                "edges": edges,
                "epochs": job.geometry.n_epochs,
                "seconds": {name: [round(value, 2) for value in found] for name, found in seconds.items()},
                "kernel_ns_per_edge_epoch_thread": round(
                    middle["kernel"] * args.threads / edges / job.geometry.n_epochs * 1e9, 2
                ),
                "times_faster": {name: round(middle["umap-learn"] / middle[name], 2) for name in ("kernel", "stage")},
            }
        )
    )


if __name__ == "__main__":
    main()
