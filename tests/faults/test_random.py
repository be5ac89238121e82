"""Any input and any values of the configuration: a finite map, or an error of dumap's own.

`--inputs N` says how many are tried. They run the whole recipe in this process, with the arrays of parts held in
memory, since writing them would take nine tenths of the time; a few more run on Dask and on disk.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import Client, LocalCluster
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from dumap.artifacts.job import Job
from dumap.artifacts.vectors import DROPPED
from dumap.config import METRICS, load_config
from dumap.config.metrics import ARGUMENT_AXES
from dumap.engine import connect
from dumap.engine.cluster import DaskEngine
from dumap.errors import DumapError, TaskError
from dumap.recipe import pipeline
from dumap.store import Run, manifests
from dumap.store.part import Part

LONGEST = 60.0
"""Seconds of this process, in which all of a run takes place, that a run may take."""
COMMON = ("euclidean", "cosine", "correlation", "manhattan", "minkowski", "hamming", "hellinger")
"""Metrics of a short suite: each takes a second to compile."""

pytestmark = pytest.mark.filterwarnings("ignore")  # a run's warnings are lines in a worker's log


@dataclass
class Case:
    """An input and what a run is told."""

    x: np.ndarray
    store: dict[str, Any]
    settings: dict[str, Any]
    start: tuple[int, int] | None


# cases -------------------------------------------------------------------------------------------

KINDS = ("normal", "grid", "copies", "same", "blobs", "sparse", "positive", "wild")
DTYPES = ("f4", "f4", "f4", "f8", "f2", "i1", "u1", "i2", "u4", "i8", "u8", "?", ">f4", ">i2", ">f8")
SCALES = (1.0, 1.0, 1.0, 1e-3, 1e5, 1e18, 1e30, 3e38, 1e39, 1e-20, 1e-38, 1e-44)


def values(kind: str, rows: int, dims: int, seed: int) -> np.ndarray:
    """Return random rows of a kind: see `KINDS`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, dims))
    if kind == "grid":
        x = np.rint(x)
    elif kind == "copies":
        x = x[rng.integers(0, max(1, rows // 20), rows)]
    elif kind == "same":
        x[:] = x[0]
    elif kind == "blobs":
        x += 1000 * rng.integers(0, 3, rows)[:, None]
    elif kind == "sparse":
        x[rng.random(x.shape) < 0.9] = 0
        x[rng.random(rows) < 0.2] = 0
    elif kind == "positive":
        x = np.abs(x)
    elif kind == "wild":
        x *= 10.0 ** rng.integers(-30, 30, x.shape)
    return x


@st.composite
def cases(draw: st.DrawFn, many: bool) -> Case:
    """Draw an input with the settings it is run with."""
    rows, dims = draw(st.integers(2, 200)), draw(st.integers(1, 40))
    metric = draw(st.sampled_from(METRICS if many else COMMON))
    if metric == "haversine" and draw(st.booleans()):
        dims = 2
    if metric in ("kantorovich", "wasserstein"):  # each distance is a linear programme
        rows, dims = min(rows, 30), min(dims, 6)
    seed = draw(st.integers(0, 2**32 - 1))
    x = values(draw(st.sampled_from(KINDS)), rows, dims, seed) * draw(st.sampled_from(SCALES))
    rng = np.random.default_rng(seed + 1)
    for _ in range(draw(st.integers(0, 2))):
        x[:, rng.integers(dims)] = draw(st.sampled_from([0.0, 1.0, -7.5, 1e-44, 3e38]))
    dtype = np.dtype("u1" if metric.startswith("bit_") else draw(st.sampled_from(DTYPES)))
    if dtype.kind in "iu":
        x = np.clip(np.rint(x * 10), np.iinfo(dtype).min, np.iinfo(dtype).max / 2)
    x = x > 0 if dtype.kind == "b" else x.astype(dtype)
    if dtype.kind == "f" and draw(st.integers(0, 4)) == 0:
        holes = rng.random(rows) < draw(st.sampled_from([0.02, 0.2, 0.95]))
        x[holes, rng.integers(dims)] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))

    rarely = lambda usual, strategy: draw(st.one_of(st.just(usual), strategy))  # noqa: E731
    chunks = (draw(st.integers(1, rows)), draw(st.sampled_from([dims, dims, max(1, dims // 2)])))
    store = {"zarr_format": draw(st.sampled_from([2, 3])), "chunks": chunks}
    if store["zarr_format"] == 3 and draw(st.booleans()):
        store["shards"] = (chunks[0] * draw(st.integers(1, 4)), chunks[1] * 2)
    kwds: dict[str, Any] = {}
    for name, strategy in {
        "p": st.floats(0.5, 10),
        "w": st.just(np.abs(rng.normal(size=dims)).tolist()),
        "sigma": st.just((np.abs(rng.normal(size=dims)) + 0.1).tolist()),
        "vinv": st.just(np.eye(dims).tolist()),
        "cost": st.just(np.abs(np.subtract.outer(np.arange(dims), np.arange(dims))).astype(float).tolist()),
    }.items():
        fits = name in ARGUMENT_AXES.get(metric, ())
        if draw(st.integers(0, 199)) > (10 if fits else 198):
            kwds[name] = draw(strategy)
    init = draw(st.sampled_from(["spectral", "spectral", "pca", "random", "array"]))
    components = draw(st.sampled_from([1, 2, 2, 3, 7, 64] if many else [1, 2, 3]))
    curve = draw(st.sampled_from(["ab", "", "", "", "", "", "", "a"]))
    settings = {
        "seed": rarely(42, st.integers(0, 2**63 - 1)),
        "task_memory": rarely(512 * 2**20, st.integers(10**4, 10**7)),
        "input.nonfinite": draw(st.sampled_from(["drop", "drop", "error"])),
        "neighbors.n_neighbors": draw(
            st.one_of(st.integers(2, 15), st.integers(2, max(2, rows - 1)), st.integers(2, 210))
        ),
        "neighbors.metric": metric,
        "neighbors.metric_kwds": kwds,
        "cells.max_cells_per_row": rarely(5, st.integers(1, 64)),
        "cells.max_rows": rarely(None, st.integers(64, 200)),
        "graph.local_connectivity": rarely(1.0, st.floats(0, 1e3)),
        "graph.set_op_mix_ratio": rarely(1.0, st.floats(0, 1)),
        "graph.disconnection_distance": rarely(None, st.floats(1e-30, 1e30)),
        "graph.shard_rows": draw(st.sampled_from([4096, 65536])),
        "start.init": init,
        "layout.n_components": components,
        "layout.n_epochs": draw(st.integers(1, 6)),
        "layout.learning_rate": rarely(1.0, st.floats(1e-6, 1e6)),
        "layout.min_dist": rarely(0.1, st.floats(0, 1)),
        "layout.spread": rarely(1.0, st.floats(1e-6, 1e6)),
        "layout.a": draw(st.floats(1e-6, 1e6)) if "a" in curve else None,
        "layout.b": draw(st.floats(1e-3, 20)) if "b" in curve else None,
        "layout.negative_sample_rate": rarely(5.0, st.floats(0, 1000)),
        "layout.repulsion_strength": rarely(1.0, st.floats(0, 1e6)),
        "layout.checkpoint_every": rarely(50, st.integers(1, 6)),
        "layout.mode": draw(st.sampled_from(["auto", "host", "rounds"])),
        "audit.queries": rarely(0, st.integers(0, 300)),
        "input.unique": draw(st.booleans()),
    }
    return Case(x, store, settings, (rows, components) if init == "array" else None)


# what is right -----------------------------------------------------------------------------------


def check(case: Case, folder: str, client: Client | None) -> str:
    """Run a case; return what it came to."""
    path, output, began = f"{folder}input.zarr", f"{folder}run.zarr", time.process_time()
    options = dict(case.store)
    group = zarr.create_group(path, zarr_format=options.pop("zarr_format"))
    group.create_array("vectors", data=case.x, **options)
    settings = {name: value for name, value in case.settings.items() if value is not None}
    if case.start:
        settings["start.init"] = f"{folder}start.npy"
        np.save(settings["start.init"], np.random.default_rng(0).normal(size=case.start))
    try:
        config = load_config(None, (), {"input.path": path, "output": output, **settings})
        pipeline.run(config, client=client)
    except TaskError as error:
        raise AssertionError(f"an error from below: {error}") from error
    except DumapError as error:
        return type(error).__name__
    finally:
        assert time.process_time() - began < LONGEST
    run = Run(output, read_only=True)
    y, flags = run.read_final("embedding", "embedding"), run.read_final("status", "embedding")
    with np.errstate(over="ignore"):
        finite = np.isfinite(case.x.astype(np.float32)).all(axis=1)
    assert y.shape == (len(case.x), config.layout.n_components)
    np.testing.assert_array_equal((flags & DROPPED) == 0, finite)
    assert np.isfinite(y[finite]).all(), "the map is not finite"
    assert np.isnan(y[~finite]).all()
    return "map"


class Here(DaskEngine):
    """Runs tasks where it is, so that their errors come as they are."""

    def __init__(self) -> None:
        super().__init__(None, 1.0)

    def preflight(self) -> None:
        """Ask nobody."""

    def check_output_visible(self, output: str) -> None:
        """See it."""

    def map(self, task, job, parts, options, advanced) -> None:  # type: ignore[no-untyped-def]
        for part in parts:
            task(Job(job.config, job.geometry), part, **options)


@contextlib.contextmanager
def in_memory():
    """Hold the arrays of parts in memory, and run without a cluster."""
    held: dict[str, np.ndarray] = {}

    def write(self: Part, array: np.ndarray, rows: np.ndarray | None, rows_per_range: int = 0) -> list[tuple]:
        path = f"array {len(held)}"
        held[path] = np.array(array if rows is None else array[rows], order="C")
        held[path].flags.writeable = False
        return [(path, 0, held[path].shape, array.dtype.str)]

    def read(self: Run, stage: str, name: str, piece: tuple, start: int, stop: int, out: np.ndarray) -> None:
        out[...] = held[piece[0]][start:stop]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Part, "_append_rows", write)
        patch.setattr(Run, "_read_piece", read)
        patch.setattr(manifests, "_are_valid_pieces", lambda *_: True)  # there are no objects
        patch.setattr(connect, "connect", lambda *_: contextlib.nullcontext(Here()))
        yield held


def search(count: int, many: bool, test) -> None:
    """Try a test on so many cases."""
    phases = [phase for phase in Phase if phase not in (Phase.explain, Phase.reuse)]
    try_all = settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=not many,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    try_all(given(cases(many))(test))()


@pytest.mark.timeout(36_000)
def test_any_input_gives_a_map_or_an_error_of_our_own(new_path, pytestconfig):
    count, outcomes = pytestconfig.getoption("--inputs"), dict.fromkeys(["map"], 0)

    def try_case(case: Case) -> None:
        folder = new_path()
        try:
            with in_memory() as held:
                outcome = check(case, folder, None)
                held.clear()
            note(outcome)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        finally:
            shutil.rmtree(folder)

    search(count, count > 100, try_case)
    print(outcomes)
    assert outcomes["map"] > count // 10, "too few inputs are good enough to tell anything"


@pytest.fixture(scope="module")
def near():
    """Return the client of a cluster of one worker in this process."""
    with (
        LocalCluster(
            processes=False, n_workers=1, threads_per_worker=1, memory_limit=0, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_some_inputs_on_dask_and_on_disk(new_path, near):
    def try_case(case: Case) -> None:
        folder = new_path()
        try:
            check(case, folder, near)
        finally:
            shutil.rmtree(folder)

    search(4, False, try_case)
