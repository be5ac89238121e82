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
from dumap.kernels.pool import draw_pool_rows
from dumap.recipe.pipeline import plan
from dumap.recipe.stage_names import STAGES
from dumap.recipe.status import status
from dumap.stages.layout import SLICES_PER_THREAD, compute_epoch, slice_bounds
from dumap.stages.layout_common import layout_parameters, pack_shards
from dumap.store import DONE, MANIFESTS, Run, manifest_key


def copy_config(run: str, output: str, threads: int) -> Config:
    """Return the configuration of a finished run, for another output."""
    run_status = status(run)
    input_settings = {
        **run_status["parameters"]["input"],
        **{key: run_status["input"][key] for key in ("path", "array")},
    }
    values = {"input": input_settings, "output": output}
    cluster = {"workers": threads, "memory_limit": "4GiB"}
    return build_config({**run_status["parameters"], **values, "cluster": cluster})


def time_kernel(job: Job, graph: Graph, threads: int) -> tuple[float, np.ndarray]:
    """Time the kernel on edges that are packed already."""
    shards, parameters = graph.shards, layout_parameters(job)
    first_state = EpochState(job.run, graph, 0)
    edges = pack_shards(job, graph, 0, len(shards))
    y = first_state.read_shards(0, len(shards))
    first_moments, second_moments, next_y = np.zeros_like(y), np.zeros_like(y), np.empty_like(y)
    bounds = slice_bounds(shards.rows, threads * SLICES_PER_THREAD)
    start_time = time.perf_counter()
    with ThreadPoolExecutor(threads) as executor:
        for epoch in range(job.geometry.n_epochs):
            pool = graph.positions_of(draw_pool_rows(parameters.seed, epoch, graph.occurrence_offsets[-1]))
            compute_epoch(executor, bounds, parameters, epoch, edges, y, first_moments, second_moments, next_y, pool)
            y, next_y = next_y, y
    return time.perf_counter() - start_time, y


def time_stage(run: str, threads: int) -> float:
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
        result = api.run(copy_config(run, output, threads))
        return next(stage["seconds"] for stage in result["stages"] if stage["name"] == "layout")


def time_umap_learn(job: Job, graph: Graph, y: np.ndarray, threads: int) -> float:
    """Time umap-learn's layout."""
    from umap.layouts import optimize_layout_euclidean
    from umap.umap_ import make_epochs_per_sample

    heads, tails, weights = [], [], []
    for shard in range(len(graph.shards)):
        indptr, tail, weight = graph.read(shard)
        is_sampled = weight >= graph.greatest_weight / job.geometry.n_epochs
        heads.append(
            (graph.shards.row_range(shard)[0] + np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)))[is_sampled]
        )
        tails.append(tail[is_sampled])
        weights.append(weight[is_sampled])
    head, tail = (np.concatenate(blocks).astype(np.int32) for blocks in (heads, tails))
    epochs_per_sample = make_epochs_per_sample(np.concatenate(weights), job.geometry.n_epochs)
    parameters = layout_parameters(job)
    numba.set_num_threads(threads)

    def optimize(epochs: int) -> float:
        embedding = y.copy()
        start_time = time.perf_counter()
        optimize_layout_euclidean(
            *(embedding, embedding, head, tail, epochs, len(embedding)),
            *(epochs_per_sample.copy(), parameters.a, parameters.b),
            np.array([1, 2, 3], np.int64),
            parallel=True,
            move_other=True,
        )
        return time.perf_counter() - start_time

    optimize(2)
    return optimize(job.geometry.n_epochs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    config = copy_config(args.run, args.run, args.threads)
    job = Job(config, plan(config).geometry)
    graph = Graph(Run(args.run, read_only=True))
    y = EpochState(job.run, graph, 0).read_shards(0, len(graph.shards))
    seconds: dict[str, list[float]] = {"umap-learn": [], "kernel": [], "stage": []}
    time_stage(args.run, args.threads)  # compiles what is not in the cache
    for _ in range(args.rounds):
        seconds["umap-learn"].append(time_umap_learn(job, graph, y, args.threads))
        seconds["kernel"].append(time_kernel(job, graph, args.threads)[0])
        seconds["stage"].append(time_stage(args.run, args.threads))
        print({name: round(times[-1], 2) for name, times in seconds.items()}, flush=True)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    edges = graph.count_edges(0, len(graph.shards))
    print(
        json.dumps(
            {
                "rows": graph.shards.rows,
                "edges": edges,
                "epochs": job.geometry.n_epochs,
                "seconds": {name: [round(value, 2) for value in times] for name, times in seconds.items()},
                "kernel_ns_per_edge_epoch_thread": round(
                    medians["kernel"] * args.threads / edges / job.geometry.n_epochs * 1e9, 2
                ),
                "times_faster": {name: round(medians["umap-learn"] / medians[name], 2) for name in ("kernel", "stage")},
            }
        )
    )


if __name__ == "__main__":
    main()
