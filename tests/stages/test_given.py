"""A k-NN graph that is given: taken as it is, checked slot by slot, and part of the identity of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import zarr
from distributed import Client
from helpers import SMALL_TASKS, K, mark_slow_except, uncommit_parts
from scipy import sparse
from sklearn.metrics import euclidean_distances
from sklearn.neighbors import NearestNeighbors
from umap_learn import umap_in_python

from dumap.artifacts import cells
from dumap.artifacts.part_names import kind_of
from dumap.config import NeighborsConfig, build_config
from dumap.errors import InputError, RunMismatchError, StorageError
from dumap.recipe.damage import verify
from dumap.recipe.pipeline import plan, run
from dumap.sources.zarr_array import PrecomputedNeighbors
from dumap.stages.given import read_given_lists
from dumap.store import MANIFESTS, PARTS, Run


@pytest.fixture(scope="module")
def digits_1000(digits):
    """Return the first 1000 digits."""
    return digits[0][:1000]


@pytest.fixture(scope="module")
def data_path(digits_1000, save):
    """Save the digits; return their path."""
    return save(digits_1000, 100)


def exact(x: np.ndarray, k: int = K) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest other rows of each row, and how far they are."""
    distances, indices = NearestNeighbors(n_neighbors=k).fit(x).kneighbors()
    return indices, distances.astype(np.float32)


@pytest.fixture(scope="module")
def exact_lists(digits_1000):
    """Return the digits' exact lists and distances."""
    return exact(digits_1000)


@pytest.fixture(scope="module")
def write_lists(new_path):
    """Write a graph to a new Zarr group; return its path."""

    def write(indices: np.ndarray, distances: np.ndarray, chunk_rows: int = 300, **options: Any) -> str:
        path = new_path("knn.zarr")
        group = zarr.create_group(path, zarr_format=options.pop("zarr_format", 3))
        for name, values in (("indices", indices), ("distances", distances)):
            group.create_array(name, data=values, chunks=(chunk_rows, *values.shape[1:]), **options)
        return path

    return write


@pytest.fixture(scope="module")
def run_on_lists(data_path, embed):
    """Return a function that runs on a k-NN graph that is given."""

    def go(path: str, settings: dict[str, Any] | None = None, source: Any = None, client: Client | None = None):
        return embed(
            data_path if source is None else source, {"neighbors.precomputed": path, **(settings or {})}, client
        )

    return go


@pytest.fixture(scope="module")
def lists_path(write_lists, exact_lists):
    """Write the exact lists to a Zarr group; return its path."""
    return write_lists(*exact_lists)


@pytest.fixture(scope="module")
def finished_run(run_on_lists, lists_path):
    """Return a finished run on the exact lists."""
    return run_on_lists(lists_path, {**SMALL_TASKS, "audit.queries": 50})


@pytest.fixture(scope="module")
def searched_run(embed, data_path):
    """Return a finished run that searches its neighbours."""
    return embed(data_path, {"cells.max_rows": 300, "audit.queries": 200})


@pytest.fixture
def copy_to_go_on_with(finished_run, configure, data_path, lists_path, new_path):
    """Return a function that configures a copy of the finished run, to go on with the same graph or another."""

    def copy(path: str = lists_path):
        output = shutil.copytree(finished_run.output, new_path("copy.zarr"))
        return configure(
            data_path, {**SMALL_TASKS, "audit.queries": 50, "neighbors.precomputed": path, "output": output}
        )

    return copy


def ordered(indices: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort each row's list by (distance, id), what is missing last."""
    order = np.lexsort((indices, np.where(indices < 0, np.inf, distances)), axis=1)
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(distances, order, axis=1)


def assert_same_lists(lists, expected) -> None:
    """Assert that two pairs of lists and distances are the same but for ties."""
    for one, other in zip(ordered(*lists), ordered(*expected), strict=True):
        np.testing.assert_array_equal(one, other)


# what is taken -----------------------------------------------------------------------------------


def test_the_graph_is_the_one_given_and_the_order_the_inputs(finished_run, exact_lists, digits_1000):
    assert_same_lists(finished_run.neighbors(), exact_lists)
    assert finished_run.facts("cells") == {
        "cells": 3, "rows": 1000, "stored_rows": 1000, "largest": 468, "smallest": 64, "largest_home": 468,
        "turned_away": 0,
    }  # fmt: skip
    assert finished_run.facts("neighbors") == {"missing": 0}
    assert np.isfinite(finished_run.y).all()
    parts = {kind_of(path.name) for path in Path(finished_run.output, MANIFESTS).glob("*/*.json")}
    assert "sorted" not in parts
    assert "cell" not in parts
    stored = Run(finished_run.output).read("neighbors", "lists-00000", "indices")
    np.testing.assert_array_equal(np.sort(stored), np.sort(exact_lists[0][:468]))


def test_a_runs_neighbors_come_back(run_on_lists, searched_run):
    """The round trip: the lists and the weights of the graph are those of the run that searched."""
    again = run_on_lists(searched_run.export("neighbors", ".zarr"), {"audit.queries": 200})
    assert_same_lists(again.neighbors(), searched_run.neighbors())
    graphs = [sparse.load_npz(done.export("graph", ".npz")).sorted_indices() for done in (searched_run, again)]
    for part in ("indptr", "indices", "data"):
        np.testing.assert_array_equal(*(getattr(graph, part) for graph in graphs))
    assert again.facts("audit")["recall"] == pytest.approx(searched_run.facts("audit")["recall"], abs=0.005)
    assert again.status["fingerprint"] == searched_run.status["fingerprint"]


def test_missing_entries_of_given_lists_are_counted(run_on_lists, write_lists, digits_1000, exact_lists):
    """Of 14 neighbors 4 are random rows or missing; one row has none, and is none's."""
    indices, distances = (values.copy() for values in exact_lists)
    indices[:, 10:] = (np.arange(1000)[:, None] + 500 + np.arange(4)) % 1000
    distances[:, 10:] = np.linalg.norm(digits_1000[:, None] - digits_1000[indices[:, 10:]], axis=2)
    indices[:, 10:] = np.where((indices[:, :10, None] == indices[:, None, 10:]).any(axis=1), -1, indices[:, 10:])
    indices[::3, 5], distances[::3, 5] = -1, np.nan
    indices[7] = -1
    indices[indices == 7] = -1
    done = run_on_lists(write_lists(indices, distances), {**SMALL_TASKS, "audit.queries": 1000})
    assert done.facts("neighbors")["missing"] == (indices < 0).sum()
    assert_same_lists(done.neighbors(), (indices, np.where(indices < 0, np.inf, distances)))
    assert np.isfinite(done.y).all()
    assert np.flatnonzero(done.flags).tolist() == [7], "no edge leads there"
    hits = [len(np.intersect1d(a, b)) / K for a, b in zip(indices, exact_lists[0], strict=True)]
    assert abs(done.facts("audit")["recall"] - np.mean(hits)) < 0.01


def test_rows_may_come_first_in_their_own_lists(run_on_lists, write_lists, finished_run, exact_lists):
    """As in umap-learn's and pynndescent's; where rows are equal, another may come before. No distance is asked for."""
    row_ids = np.arange(1000)[:, None]
    first = (
        np.column_stack([row_ids, exact_lists[0]]),
        np.column_stack([np.zeros_like(exact_lists[1][:, :1]), exact_lists[1]]),
    )
    second = tuple(values[:, [1, 0, *range(2, K + 1)]] for values in first)
    indices, distances = (np.where(row_ids % 3 == 1, *both) for both in zip(second, first, strict=True))
    distances[(indices == row_ids) & (row_ids % 3 == 2)] = np.nan
    assert run_on_lists(write_lists(indices, distances), SMALL_TASKS).y.tobytes() == finished_run.y.tobytes()


@pytest.mark.slow
def test_umap_learns_neighbors_are_taken_as_they_are(run_on_lists, write_lists, digits_1000):
    with umap_in_python() as umap_:
        all_distances = euclidean_distances(digits_1000)
        indices, distances, _ = umap_.nearest_neighbors(all_distances, K + 1, "precomputed", {}, False, None)
    assert (indices[:, 0] == np.arange(1000)).all()
    assert_same_lists(run_on_lists(write_lists(indices, distances)).neighbors(), (indices[:, 1:], distances[:, 1:]))


def test_any_order_and_more_columns_come_to_the_nearest(
    run_on_lists, write_lists, finished_run, digits_1000, exact_lists
):
    indices, distances = exact(digits_1000, 40)
    indices[:, :K] = exact_lists[0]
    indices[:, K:][distances[:, K:] <= distances[:, K - 1 : K]] = -1  # of rows as near any may be taken
    order = np.random.default_rng(0).permuted(np.tile(np.arange(40), (1000, 1)), axis=1)
    shuffled = (np.take_along_axis(values, order, axis=1) for values in (indices, distances))
    assert run_on_lists(write_lists(*shuffled), SMALL_TASKS).y.tobytes() == finished_run.y.tobytes()


FORMS = {
    "rechunked": lambda given, ids, d: given(ids, d, 77),
    "one chunk, int32": lambda given, ids, d: given(ids.astype(np.int32), d, 1000),
    "sharded, uint16": lambda given, ids, d: given(ids.astype(np.uint16), d, 50, shards=(250, K)),
    "version 2, big-endian": lambda given, ids, d: given(ids.astype(">i8"), d.astype(">f4"), 100, zarr_format=2),
    "uint64, float64": lambda given, ids, d: given(ids.astype(np.uint64), d.astype(np.float64), 300),
    "zip": lambda given, ids, d: shutil.make_archive(path := given(ids, d), "zip", path),
}


NOT_DONE = {"cells.max_cells_per_row": 1, "cells.max_rows": 64}
"""Settings of what is not done where neighbours are given."""


@pytest.mark.parametrize(
    ("form", "chunk_rows", "settings"),
    [
        ("zip", 1000, NOT_DONE),
        *(pytest.param(form, 100, {}, marks=pytest.mark.slow) for form in FORMS if form != "zip"),
        pytest.param("one chunk, int32", 333, {"layout.mode": "rounds"}, marks=pytest.mark.slow),
    ],
)
def test_neither_forms_nor_chunks_change_a_byte(
    run_on_lists, write_lists, finished_run, exact_lists, digits_1000, save, form, chunk_rows, settings
):
    assert (
        run_on_lists(
            FORMS[form](write_lists, *exact_lists), {**SMALL_TASKS, **settings}, save(digits_1000, chunk_rows)
        ).y.tobytes()
        == finished_run.y.tobytes()
    )


def test_the_inputs_chunks_cut_other_blocks(save, digits_1000):
    """Else their changing no byte would tell nothing."""
    paths = [save(digits_1000, rows) for rows in (100, 333, 1000)]
    assert (
        len({plan(build_config({"input": {"path": p}, "output": "x", **SMALL_TASKS})).geometry.blocks for p in paths})
        > 1
    )


@pytest.mark.parametrize("init", mark_slow_except(["pca", "random", "array"], "array"))
def test_starts(run_on_lists, lists_path, new_path, digits, init):
    """Coordinates by the input's rows come to the same rows."""
    if init == "array":
        init = new_path("init.npy")
        np.save(init, np.column_stack([np.where(digits[1][:1000] == 0, 10.0, -10.0), np.linspace(-1, 1, 1000)]))
    y = run_on_lists(lists_path, {"start.init": init, "layout.n_epochs": 50}).y
    assert np.isfinite(y).all()
    near = NearestNeighbors(n_neighbors=K).fit(y).kneighbors(return_distance=False)
    assert (digits[1][near] == digits[1][:1000, None]).mean() > (0.5 if init == "random" else 0.7)


def test_dropped_rows_vanish_from_lists(run_on_lists, write_lists, digits_1000, exact_lists, save):
    """Their own lists are not even looked at."""
    x, gone = digits_1000.copy(), np.array([0, 3, 499, 500, 999])
    x[gone] = np.nan
    settings = {**SMALL_TASKS, "input.nonfinite": "drop", "audit.queries": 50}
    indices, distances = (values.copy() for values in exact_lists)
    indices[gone], distances[gone] = 10**6, np.nan
    done = run_on_lists(write_lists(indices, distances), settings, save(x, 100))
    assert np.flatnonzero(done.flags).tolist() == gone.tolist()
    lost = np.isin(indices, gone)
    lost[gone] = True
    assert lost.sum() > K * len(gone)
    assert_same_lists(done.neighbors(), (np.where(lost, -1, indices), np.where(lost, np.inf, distances)))
    assert done.facts("neighbors")["missing"] == lost.sum() - K * len(gone)


@pytest.mark.parametrize("at_once", [1, 3, 5, 1000])
def test_positions_do_not_depend_on_how_many_dropped_rows_are_read_at_once(new_path, monkeypatch, at_once):
    dropped = np.array([0, 1, 5, 98, 99])
    monkeypatch.setattr(cells, "DROPPED_PER_READ", at_once)
    job = SimpleNamespace(run=Run(new_path("run.zarr")), geometry=SimpleNamespace(rows=100))
    with job.run.part("cells", cells.TABLE) as part:
        part.write("dropped", dropped)
    expected = np.full(101, -1)
    expected[np.setdiff1d(np.arange(100), dropped)] = np.arange(95)
    rows = np.random.default_rng(0).integers(-1, 100, (40, 7))
    np.testing.assert_array_equal(cells.positions_of_given(job, SimpleNamespace(rows=95), rows), expected[rows])


def test_a_range_of_rows_that_are_all_dropped(run_on_lists, write_lists, digits_1000, save):
    """Further columns take their place in the lists of others."""
    x, kept = digits_1000.copy(), np.r_[:450, 950:1000]
    x[450:950] = np.inf
    done = run_on_lists(
        write_lists(*exact(digits_1000, 100), 100), {**SMALL_TASKS, "input.nonfinite": "drop"}, save(x, 100)
    )
    assert done.facts("cells")["smallest"] == 0
    assert done.facts("cells")["rows"] == 500
    assert done.facts("neighbors")["missing"] == 0
    assert np.isfinite(done.y[kept]).all()
    np.testing.assert_allclose(done.neighbors()[1][kept], exact(digits_1000[kept])[1], rtol=1e-6)


@pytest.mark.slow
def test_measured_peak_is_within_the_projected(client, run_on_lists, lists_path):
    """On workers that have done nothing before: what others compiled there stays."""
    client.restart()
    for stage in run_on_lists(lists_path, {**SMALL_TASKS, "audit.queries": 50}, client=client).status["stages"]:
        assert 0 < stage["peak_bytes"] <= stage["projected_bytes"], stage["name"]


# what is refused ---------------------------------------------------------------------------------


def spoil(array: str, row: int, column: int, value: float):
    """Return a function that changes one entry of lists."""

    def change(indices: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        indices, distances = indices.copy(), distances.astype(np.float64)
        {"indices": indices, "distances": distances}[array][row, column] = value
        return indices, distances

    return change


SPOILT = {
    "beyond the rows": (
        spoil("indices", 700, 3, 1000),
        r"'indices', row 700, column 3: holds 1000; .* 0 to 999, and -1",
    ),
    "below -1": (spoil("indices", 0, 0, -2), r"'indices', row 0, column 0: holds -2; allowed are the input's rows"),
    "far beyond": (spoil("indices", 999, 13, 2**40), r"row 999, column 13: holds 1099511627776; allowed"),
    "nan": (spoil("distances", 450, 13, np.nan), r"'distances', row 450, column 13: holds nan; allowed are numbers"),
    "infinite": (spoil("distances", 1, 0, np.inf), r"'distances', row 1, column 0: holds inf; .* -1 in 'indices'"),
    "beyond float32": (
        spoil("distances", 1, 0, 1e300),
        r"'distances', row 1, column 0: holds 1e\+300; allowed .*3.4e38",
    ),
    "negative": (spoil("distances", 998, 2, -0.5), r"'distances', row 998, column 2: holds -0.5; allowed are numbers"),
    "unsigned": (
        lambda ids, d: (np.where(np.arange(1000)[:, None] == 5, np.uint64(2**64 - 1), ids.astype(np.uint64)), d),
        r"'indices', row 5, column 0: holds 18446744073709551615; allowed",
    ),
    "twice": (
        lambda ids, d: (np.column_stack([ids[:, :13], np.where(np.arange(1000) == 8, ids[:, 4], ids[:, 13])]), d),
        r"'indices', row 8, column 13: holds \d+; a second time: a row may name each neighbor once",
    ),
    "itself, and too few others": (
        lambda ids, d: (np.where((ids == ids[:, :1]) & (np.arange(1000)[:, None] == 600), 600, ids), d),
        r"row 600: the row is among its own neighbors, so that 14 columns hold 13 others, .* at most 14",
    ),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_invalid_entries_of_given_lists_are_named(write_lists, exact_lists, kind):
    change, message = SPOILT[kind]
    path = write_lists(*change(*exact_lists))
    job = SimpleNamespace(
        precomputed=PrecomputedNeighbors(path, 1000),
        geometry=SimpleNamespace(rows=1000),
        config=SimpleNamespace(neighbors=NeighborsConfig(n_neighbors=K + 1)),
    )
    with pytest.raises(InputError, match=message) as refused:
        read_given_lists(job, np.arange(1000), 0)
    assert path in str(refused.value)
    assert "name another output" in str(refused.value)
    assert refused.value.exit_code == 3


def test_a_run_stops_at_what_no_list_may_hold(configure, data_path, write_lists, exact_lists):
    config = configure(
        data_path, {**SMALL_TASKS, "neighbors.precomputed": write_lists(*SPOILT["nan"][0](*exact_lists))}
    )
    with pytest.raises(InputError, match=SPOILT["nan"][1]):
        run(config)
    assert Run(config.output).committed_parts("graph") == []


WRONG = {
    "fewer rows": (lambda i, d: (i[:-1], d[:-1]), r"'indices' has shape \(999, 14\) .* the input has 1000 rows"),
    "more rows": (lambda i, d: (i, np.vstack([d, d])), r"'distances' \(2000, 14\), the input has 1000 rows: give both"),
    "columns that differ": (lambda i, d: (i, d[:, :9]), r"shape \(1000, 14\) and 'distances' \(1000, 9\)"),
    "too few columns": (
        lambda i, d: (i[:, :9], d[:, :9]),
        r"have 9 columns, too few .* = 15, .*14 others: set n_neighbors to at most 10, or to 9 where",
    ),
    "floats for ids": (lambda i, d: (i.astype(float), d), r"array 'indices' has dtype float64; allowed are integers"),
    "whole numbers for distances": (lambda i, d: (i, i), r"array 'distances' has dtype int64; allowed are real floats"),
    "booleans": (lambda i, d: (i > 0, d), r"array 'indices' has dtype bool; allowed are integers"),
    "complex": (lambda i, d: (i, d.astype(complex)), r"array 'distances' has dtype complex128"),
    "one dimension": (lambda i, d: (i[:, 0], d[:, 0]), r"has shape \(1000,\); dumap reads \(rows, neighbors\)"),
    "no columns": (lambda i, d: (i[:, :0], d[:, :0]), r"is empty"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_arrays_that_do_not_fit_are_refused_before_anything_runs(
    cli, data_path, write_lists, exact_lists, new_path, kind
):
    change, message = WRONG[kind]
    indices, distances = change(*exact_lists)
    path, output = new_path("knn.zarr"), new_path("run.zarr")
    group = zarr.create_group(path)
    group.create_array("indices", data=indices, chunks=tuple(max(1, size) for size in indices.shape))
    group.create_array("distances", data=distances, chunks=tuple(max(1, size) for size in distances.shape))
    arguments = ("--input", data_path, "--output", output, "--set", f"neighbors.precomputed={path}")
    with pytest.raises(InputError, match=message):
        plan(build_config({"input": {"path": data_path}, "output": output, "neighbors": {"precomputed": path}}))
    for command in ("plan", "run"):
        outcome = cli(command, *arguments)
        assert (outcome.code, outcome.out) == (3, "")
        assert path in outcome.err
    assert not Path(output).exists()


def test_a_group_without_both_arrays_is_refused(write_lists, exact_lists, new_path):
    path = write_lists(*exact_lists)
    with pytest.raises(InputError, match=r"neighbors.precomputed: .*nowhere does not exist"):
        PrecomputedNeighbors(new_path("nowhere"), 1000)
    for array in ("indices", "distances"):
        with pytest.raises(InputError, match=r"is an array; name the group that holds 'indices'"):
            PrecomputedNeighbors(f"{path}/{array}", 1000)
    shutil.rmtree(Path(path, "distances"))
    with pytest.raises(InputError, match=r"neighbors.precomputed: no array 'distances' in .*: indices \(1000, 14\)"):
        PrecomputedNeighbors(path, 1000)


def test_a_chunk_too_large_is_refused_with_what_would_do(data_path, write_lists, exact_lists):
    def planned(path, memory):
        return plan(
            build_config(
                {"input": {"path": data_path}, "output": "x", "task_memory": memory, "neighbors": {"precomputed": path}}
            )
        )

    with pytest.raises(InputError, match=r"one chunk in .* rechunk the arrays to at most 585 rows .* or set .* 1MiB"):
        planned(write_lists(*exact_lists, 1000), 2**19)
    planned(write_lists(*exact_lists, 585), 2**19)
    planned(write_lists(*exact_lists, 1000), 2**20)


def test_the_plan_says_that_neighbors_are_given(cli, data_path, write_lists, exact_lists):
    arguments = ("--input", data_path, "--output", "x", "--set", f"neighbors.precomputed={write_lists(*exact_lists)}")
    text, machine = cli("plan", *arguments), cli("plan", *arguments, "--json")
    assert "1 cells of up to 65536 rows given with 14 neighbors each" in text.out
    assert json.loads(machine.out)["columns"] == 14


def test_the_output_may_not_lie_in_the_graph(configure, data_path, write_lists, exact_lists):
    path = write_lists(*exact_lists)
    for output in (path, f"{path}/run"):
        config = configure(data_path, {"neighbors.precomputed": path, "output": output})
        with pytest.raises(StorageError, match="is, holds or lies in the input"):
            run(config)


def test_chunks_that_are_programs_are_refused(write_lists, exact_lists, new_path):
    path = Path(write_lists(*exact_lists, zarr_format=2))
    file = path / "indices" / ".zarray"
    file.write_text(json.dumps({**json.loads(file.read_text()), "filters": [{"id": "pickle"}]}))
    with pytest.raises(InputError, match="pickle"):
        PrecomputedNeighbors(str(path), 1000)


@pytest.mark.fault(13)
def test_a_damaged_chunk_of_the_graph_is_named_by_its_rows(configure, data_path, write_lists, exact_lists):
    path = write_lists(*exact_lists)
    Path(path, "distances", "c", "1", "0").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"knn\.zarr: rows \d+ to \d+ cannot be read from array 'distances'"):
        run(configure(data_path, {**SMALL_TASKS, "neighbors.precomputed": path}))


# what a run is of --------------------------------------------------------------------------------


def test_a_graph_that_moved_is_the_same(copy_to_go_on_with, lists_path, new_path, finished_run):
    config = copy_to_go_on_with(shutil.copytree(lists_path, new_path("moved.zarr")))
    assert run(config)["stages"] == finished_run.status["stages"]
    assert len(zarr.open_group(config.output, mode="r").attrs["dumap"]["precomputed_fingerprint"]) == 16


@pytest.mark.parametrize(
    ("array", "when"), [("indices", "done"), ("distances", "done"), ("distances", "midway"), ("indices", "early")]
)
def test_a_graph_that_changed_is_refused(copy_to_go_on_with, lists_path, new_path, array, when, contents):
    config = copy_to_go_on_with(shutil.copytree(lists_path, new_path("changed.zarr")))
    if when != "done":
        uncommit_parts(config.output, ("neighbors", "graph", "coarsen", "start", "layout", "embedding", "quality"))
    if when == "early":
        Path(config.output, MANIFESTS, "done", "vectors.json").unlink()
        Path(config.output, MANIFESTS, "identity", "input.json").unlink()
    changed = zarr.open_array(config.neighbors.precomputed, path=array)
    changed[999] = changed[998] if array == "indices" else changed[999] * 2
    before = contents(config.output)
    with pytest.raises(RunMismatchError, match="holds other data than when") as refused:
        run(config)
    assert config.neighbors.precomputed in str(refused.value)
    assert contents(config.output) == before


def test_a_graph_of_another_shape_is_refused(copy_to_go_on_with, write_lists, digits_1000):
    with pytest.raises(RunMismatchError, match=r"precomputed of shape \(1000, 14\) .* has \(1000, 20\)"):
        run(copy_to_go_on_with(write_lists(*exact(digits_1000, 20))))


def test_searched_and_given_are_not_the_same_run(data_path, lists_path, finished_run, searched_run, cli):
    arguments = ("--set", "layout.n_epochs=20", "--input", data_path)
    options = ("--set", "cells.max_rows=300", "--set", f"neighbors.precomputed={lists_path}")
    outcome = cli("run", "--output", searched_run.output, *arguments, *options)
    assert outcome.code == 7
    assert "neighbors.precomputed: None -> True" in outcome.err
    outcome = cli("run", "--output", finished_run.output, *arguments, "--set", "task_memory=1MiB")
    assert outcome.code == 7
    assert "neighbors.precomputed: True -> None" in outcome.err


# faults ------------------------------------------------------------------------------------------


@pytest.mark.fault(13)
def test_damage_is_made_again_from_the_graph(cli, copy_to_go_on_with, finished_run):
    config = copy_to_go_on_with()
    for stage, name in (("vectors", "block-"), ("cells", "positions-"), ("cells", "table-"), ("neighbors", "lists-")):
        file = max(Path(config.output, PARTS, stage).glob(f"{name}*"), key=lambda path: path.stat().st_size)
        file.write_bytes(file.read_bytes()[:-1])
    assert cli("verify", config.output).code == 1
    uncommit_parts(config.output, ("graph", "coarsen", "start", "layout", "embedding"))
    assert run(config)["state"] == "done"
    assert verify(config.output) == []
    assert np.asarray(zarr.open_array(config.output, path="embedding")[:]).tobytes() == finished_run.y.tobytes()


@pytest.mark.fault(6)
@pytest.mark.parametrize("stage", mark_slow_except(["vectors", "cells", "neighbors"], "cells"))
def test_a_run_stopped_in_a_stage_goes_on_to_the_same_bytes(copy_to_go_on_with, finished_run, stage):
    """Some parts of the stage are committed, and nothing of the stages after it."""
    config = copy_to_go_on_with()
    stages = [s["name"] for s in finished_run.status["stages"]]
    manifests = Path(config.output, MANIFESTS)
    for later in stages[stages.index(stage) :]:
        (manifests / "done" / f"{later}.json").unlink()
        for number, file in enumerate(sorted((manifests / later).glob("*.json"))):
            if later != stage or number % 2:
                file.unlink()
    assert run(config)["state"] == "done"
    assert np.asarray(zarr.open_array(config.output, path="embedding")[:]).tobytes() == finished_run.y.tobytes()


@pytest.mark.fault(1)
@pytest.mark.fault(6)
@pytest.mark.faults
@pytest.mark.slow
def test_kills_of_workers_and_of_the_driver_change_no_byte(
    configure, data_path, write_lists, exact_lists, finished_run, new_path
):
    from faults.harness import fleet

    config = configure(data_path, {**SMALL_TASKS, "neighbors.precomputed": write_lists(*exact_lists)})
    points = [
        ("vectors", "list_fingerprints-*"),
        ("cells", "positions-*"),
        ("cells", "table"),
        ("neighbors", "lists-*"),
    ]
    with fleet(new_path) as deadly:
        cluster = config.cluster.model_copy(update={"scheduler": deadly.address})
        worker = {"role": "worker", "point": "manifest", "action": "kill"}
        workers = [{**worker, "stage": stage, "part": part} for stage, part in points]
        driver = {"role": "driver", "point": "manifest", "stage": "done", "part": "neighbors", "action": "kill"}
        names = deadly.faults.plan(*workers, driver)
        killed = deadly.drive(config.model_copy(update={"cluster": cluster}))
        assert killed.wait() == -9, killed.output
        assert all(deadly.faults.happened(name) for name in names)
        assert run(config, client=deadly.client)["state"] == "done"
    assert np.asarray(zarr.open_array(config.output, path="embedding")[:]).tobytes() == finished_run.y.tobytes()
