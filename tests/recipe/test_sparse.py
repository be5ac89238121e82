"""Whole runs of sparse rows: what they find, against exact distances and against the same rows dense."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from helpers import K
from scipy.spatial.distance import cdist

import dumap
from dumap.artifacts.cells import CellTable
from dumap.artifacts.part_names import CELLS, NEIGHBORS
from dumap.errors import ConfigError, InputError
from dumap.store import Run

SMALL_CELLS = {"cells.max_rows": 400}


def counts(rows: int, dims: int = 400, seed: int = 0) -> np.ndarray:
    """Return logarithms of counts around twelve profiles; some rows are equal, one is zero."""
    rng = np.random.default_rng(seed)
    profiles = rng.gamma(0.1, 1, (12, dims)) * 0.7
    x = np.log1p(rng.poisson(profiles[rng.integers(12, size=rows)])).astype("f4")
    x[5], x[17] = x[3], 0
    return x


@pytest.fixture(scope="module")
def x():
    return counts(1500)


def store(path: str, x: np.ndarray, chunk: int = 5000, dtype: str = "f4") -> str:
    """Write rows as anndata writes X."""
    rows = sp.csr_matrix(x)
    attributes = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(rows.shape)}
    group = zarr.create_group(path).create_group("X", attributes=attributes)
    for name, values in (("data", rows.data.astype(dtype)), ("indices", rows.indices), ("indptr", rows.indptr)):
        group.create_array(name, data=values, chunks=(chunk,))
    return path


@pytest.fixture(scope="module")
def stored(new_path, x):
    return store(new_path("x.zarr"), x)


def go(embed, path, metric="euclidean", **settings):
    return embed(path, {"input.array": "X", "neighbors.metric": metric, "audit.queries": 200, **settings})


@pytest.fixture(scope="module")
def of_cosine(embed, stored):
    """Return a run of the sparse rows by cosine, which several tests read."""
    return go(embed, stored, "cosine")


def recall(run, x, metric):
    """Return the share of exact neighbours that lists hold, equally far ones counted, and check the distances."""
    indices, distances = run.neighbors()
    exact = cdist(x.astype("f8"), x.astype("f8"), metric)
    zero = ~x.any(axis=1)
    if metric != "euclidean":
        exact[zero], exact[:, zero] = 1, 1
    np.fill_diagonal(exact, np.inf)
    assert np.allclose(distances, np.take_along_axis(exact, indices, 1), atol=1e-6)
    return (distances <= np.sort(exact, axis=1)[:, [K - 1]] + 1e-6).mean()


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "correlation"])
def test_neighbours_are_those_of_exact_distances(embed, stored, x, metric):
    run = go(embed, stored, metric, **SMALL_CELLS, **{"neighbors.recall_target": 0})
    assert run.facts("cells")["cells"] > 3
    assert run.facts("cells")["entries"] == np.count_nonzero(x)
    assert recall(run, x, metric) > 0.97
    assert abs(run.facts("audit")["recall"] - recall(run, x, metric)) < 0.02
    assert np.isfinite(run.y).all()


def test_the_same_rows_dense_have_the_same_neighbours(embed, of_cosine, x, save):
    of_dense = embed(save(x), {"neighbors.metric": "cosine"})
    pairs = zip(of_cosine.neighbors()[0], of_dense.neighbors()[0], strict=True)
    assert np.mean([len({*a} & {*b}) / K for a, b in pairs]) > 0.97
    both = [run.facts("vectors") for run in (of_cosine, of_dense)]
    for fact in ("rows", "zero", "distinct", "duplicates"):
        assert both[0][fact] == both[1][fact], fact


def test_a_repair_compares_sparse_rows(embed, stored, x):
    poor = {**SMALL_CELLS, "cells.max_cells_per_row": 1, "neighbors.recall_target": 0.999, "neighbors.max_repairs": 1}
    run = go(embed, stored, "correlation", **poor)
    before, after = run.facts("audit")["recall_by_repair"]
    assert after > before + 0.02
    assert abs(recall(run, x, "correlation") - after) < 0.02


@pytest.mark.parametrize("metric", ["sqeuclidean", "cosine"])
def test_bytes_do_not_depend_on_chunks_dtype_or_door(embed, new_path, x, metric):
    x = np.round(x * 4)
    settings = {**SMALL_CELLS, "metric": metric, "neighbors.recall_target": 0.9999, "neighbors.max_repairs": 1}
    runs = [
        go(embed, store(new_path("x.zarr"), x, chunk, dtype), **settings)
        for chunk, dtype in ((5000, "f4"), (333, "u1"))
    ]
    sections = {"cells": {"max_rows": 400}, "audit": {"queries": 200}, "start": {"coarse_epochs": 20}}
    given = {"metric": metric, "n_epochs": 20, "cluster": {"engine": "local"}, **sections}
    given["neighbors"] = {"recall_target": 0.9999, "max_repairs": 1}
    objects = [dumap.run(make(x), output=new_path("run.zarr"), **given) for make in (sp.csr_matrix, sp.csc_array)]
    assert objects[0]["stages"][0]["name"] == "spool"
    maps = {run.y.tobytes() for run in runs} | {run.embedding[:].tobytes() for run in objects}
    assert len(maps) == 1


def test_rows_of_64_bits_are_cast(embed, new_path, x):
    wide = x.astype("f8")
    wide[0, np.flatnonzero(x[0])[0]] += 1e-9
    run = go(embed, store(new_path("x.zarr"), wide, dtype="f8"))
    facts = run.facts("vectors")
    assert (facts["inexact"], facts["centred"]) == (1, False)
    assert recall(run, x, "euclidean") > 0.97


def test_rows_that_are_not_finite_are_refused_or_left_out(embed, new_path, x):
    bad = x[:400].copy()
    bad[7, 3], bad[200, 0] = np.nan, np.inf
    path = store(new_path("x.zarr"), bad)
    with pytest.raises(InputError, match="2 of 400 rows hold NaN or infinite values, first of them rows 7, 200"):
        go(embed, path, "cosine")
    run = go(embed, path, "cosine", **{"input.nonfinite": "drop"})
    assert np.flatnonzero(run.flags & 1).tolist() == [7, 200]
    assert np.flatnonzero(np.isnan(run.y).any(axis=1)).tolist() == [7, 200]


def test_equal_rows_may_be_embedded_once(embed, new_path, x):
    x = x[:500].copy()
    x[100:130] = x[99]
    run = go(embed, store(new_path("x.zarr"), x), "cosine", **{"input.unique": True})
    assert run.facts("vectors")["duplicates_left_out"] == 31
    assert (run.y[99:130] == run.y[99]).all()
    assert (run.y[3] == run.y[5]).all()


@pytest.mark.parametrize("settings", [{"start.init": "pca"}, {"start.init": "random", "layout.mode": "rounds"}])
def test_other_starts_take_projected_rows(embed, stored, settings):
    assert np.isfinite(go(embed, stored, "correlation", **settings).y).all()


def test_other_metrics_are_refused_with_those_that_are_allowed(configure, stored):
    with pytest.raises(ConfigError, match="manhattan is not computed of sparse rows; allowed are correlation"):
        dumap.plan(configure(stored, {"input.array": "X", "neighbors.metric": "manhattan"}))


def test_the_table_counts_the_entries_that_cells_hold(embed, stored, x):
    run = go(embed, stored, "cosine", **SMALL_CELLS, keep="all")
    store = Run(run.output, read_only=True)

    def held(stage: str, kind: str) -> int:
        names = [name for name in store.committed_parts(stage) if name.startswith(kind)]
        return sum(len(store.read(stage, name, "vectors_values")) for name in names)

    table = CellTable(store)
    of_home, of_cell = np.stack([table.entry_counts(cell) for cell in range(table.cells)]).T
    assert of_home.sum() == held(CELLS, "sorted") == np.count_nonzero(x)
    assert of_cell.sum() == of_home.sum() + held(NEIGHBORS, "guests-")
    facts = run.facts("cells")
    assert (facts["home_entries"], facts["cell_entries"]) == (of_home.max(), of_cell.max())
    assert store.read(CELLS, "sorted-00000", "vectors_columns").dtype == np.uint16


def test_many_columns_take_little_memory(embed, new_path):
    rng = np.random.default_rng(0)
    rows, words = np.repeat(np.arange(900), 20), rng.zipf(1.3, 18_000) % 200_000
    topics = (np.repeat(rng.integers(9, size=900), 20) * 20_000 + words % 2000 * (words % 3 > 0)) % 200_000
    x = sp.csr_matrix((np.ones(18_000, "f4"), (rows, topics)), shape=(900, 200_000))
    result = dumap.run(x, output=new_path("run.zarr"), metric="cosine", n_epochs=5, cluster={"engine": "local"})
    assert result.facts["audit"]["recall"] > 0.95


def dense_first(rows: int = 3000) -> np.ndarray:
    """Return rows of which the first tenth has many times the entries of the others."""
    rng = np.random.default_rng(0)
    x = rng.poisson(0.02, (rows, 500)).astype("f4")
    x[: rows // 10] = rng.poisson(2, (rows // 10, 500))
    return x


def test_plans_tell_entries_and_follow_dense_rows(configure, new_path):
    dense, x = dense_first(), dense_first()
    even = x[np.random.default_rng(1).permutation(len(x))]
    made = []
    for data in (x, even):
        settings = {"input.array": "X", "neighbors.metric": "cosine", "task_memory": "1MiB"}
        made.append(dumap.plan(configure(store(new_path("x.zarr"), data), settings)))
    assert f"3000 rows x 500 columns, {-(-np.count_nonzero(dense) // 3000)} entries each in the mean" in str(made[0])
    for plan, data in zip(made, (x, even), strict=True):
        counts, geometry = np.count_nonzero(data, axis=1), plan.geometry
        spans = (geometry.rows_of_block(number) for number in range(geometry.blocks))
        assert max(counts[slice(*span)].sum() for span in spans) <= geometry.block_entries


def test_cells_of_dense_rows_have_fewer(embed, new_path):
    x = dense_first()
    run = go(embed, store(new_path("x.zarr"), x), "cosine", **{"cells.max_rows": 1000, "audit.queries": 0})
    facts, mean = run.facts("cells"), np.count_nonzero(x) / len(x)
    assert facts["mean_entries"] > 4 * mean
    assert facts["home_entries"] < 2.5 * mean * len(x) / (facts["cells"] / 2), "entries are shared out, as rows are"
    assert np.isfinite(run.y).all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_rows_without_entries_are_rows(embed, new_path, metric):
    x = np.zeros((60, 9), "f4")
    run = go(embed, store(new_path("x.zarr"), x), metric, **{"input.missing": "fill"})  # no chunk is written
    assert run.facts("vectors")["zero"] == 60
    assert (run.neighbors()[1] == 0).all()


def test_the_matrix_itself_may_be_named(embed, stored, x):
    run = embed(f"{stored}/X", {"neighbors.metric": "cosine"})
    assert run.status["input"]["shape"] == [1500, 400]


def test_given_neighbours_take_sparse_rows(embed, stored, of_cosine, new_path):
    indices, distances = of_cosine.neighbors()
    group = zarr.create_group(path := new_path("knn.zarr"))
    group.create_array("indices", data=indices)
    group.create_array("distances", data=distances)
    again = go(embed, stored, "cosine", **{"neighbors.precomputed": path})
    assert again.facts("audit")["recall"] == pytest.approx(of_cosine.facts("audit")["recall"])


def test_a_child_reads_its_parent_and_whole_runs_verify(embed, stored, new_path):
    first = go(embed, stored, "cosine", keep="model")
    settings = {"input": {"array": "X"}, "metric": "cosine", "min_dist": 0.5, "n_epochs": 20}
    settings |= {"audit": {"queries": 200}, "cluster": {"engine": "local"}, "start": {"coarse_epochs": 20}}
    child = dumap.run(stored, output=new_path("child.zarr"), parent=first.output, **settings)
    inherited = {stage["name"] for stage in child["stages"] if stage.get("inherited")}
    assert {"vectors", "cells", "neighbors", "audit", "graph", "coarsen"} <= inherited
    assert dumap.verify(first.output) == []


@pytest.mark.slow
def test_a_cluster_and_an_interrupted_run_come_to_the_same_bytes(embed, configure, client, stored, inspect):
    settings = {**SMALL_CELLS, "neighbors.recall_target": 0.9999, "neighbors.max_repairs": 1}
    expected = go(embed, stored, "correlation", **settings)
    metric = {"input.array": "X", "neighbors.metric": "correlation", "audit.queries": 200}
    assert embed(stored, {**settings, **metric}, client).y.tobytes() == expected.y.tobytes()

    def interrupt(at: str, stage: str, done: float, total: float) -> None:
        if stage == at and done >= total / 2:
            raise KeyboardInterrupt

    config = configure(stored, {**settings, **metric, "cluster.engine": "local"})
    for at in ("cells", "neighbors", "audit"):
        with pytest.raises(KeyboardInterrupt):
            dumap.run(config, on_progress=partial(interrupt, at))
    dumap.run(config)
    assert inspect(config.output).y.tobytes() == expected.y.tobytes()
