"""Whole runs: what comes out, and that nothing but data, parameters and seed decides it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from pyarrow import parquet
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from dumap.errors import InputError
from dumap.pipeline import STAGES, plan
from dumap.stages.vectors import DROPPED, ZERO

K = 15


def slowly(values, *quick):
    """Mark as slow all values but the quick ones."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.fixture(scope="module")
def whole(digits, embed):
    """Return all digits, embedded with the default epochs, in many cells."""
    return embed(
        digits[0], {"cells.max_rows": 500, "cells.margin": 1.2, "layout.n_epochs": None, "quality.queries": 300}
    )


@pytest.fixture(scope="module")
def few(digits):
    return digits[0][:300]


def brute(x: np.ndarray, metric: str, **options: float) -> np.ndarray:
    """Return all distances, infinite to itself."""
    d = cdist(x.astype(np.float64), x.astype(np.float64), metric, **options)
    np.fill_diagonal(d, np.inf)
    return d


# what comes out ----------------------------------------------------------------------------------


def test_embedding_is_finite_and_described(whole, digits):
    y = whole.array("embedding")
    assert y.shape == (len(digits[0]), 2)
    assert y.dtype == np.float32
    assert y.metadata.dimension_names == ("row", "component")
    assert np.isfinite(whole.y).all()
    assert not whole.flags.any()
    attributes = zarr.open_group(whole.output, mode="r").attrs
    assert attributes["seed"] == 42
    assert attributes["parameters"]["neighbors"]["n_neighbors"] == K
    assert {"dumap", "numpy", "numba", "pynndescent"} <= set(attributes["versions"])
    assert len(attributes["fingerprint"]) == 16
    assert attributes["fingerprint"] == whole.facts("vectors")["fingerprint"]


def test_rows_keep_the_inputs_order_and_their_company(whole, digits):
    """A label's rows lie together, so a wrong order of rows would lose the vote."""
    near = NearestNeighbors(n_neighbors=K).fit(whole.y).kneighbors(return_distance=False)
    votes = np.apply_along_axis(lambda row: np.bincount(row, minlength=10), 1, digits[1][near])
    assert (votes.argmax(axis=1) == digits[1]).mean() >= 0.9


def test_quality_is_that_of_the_exports(whole, digits):
    facts, (indices, _) = whole.facts("audit"), whole.neighbors()
    exact = np.argsort(brute(digits[0], "euclidean"), axis=1, kind="stable")[:, :K]
    recall = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(indices, exact, strict=True)])
    assert facts["recall"] >= 0.95
    assert facts["recall_low"] - 0.01 <= recall <= facts["recall_high"] + 0.01
    assert whole.facts("quality")["trustworthiness"] > 0.95
    assert whole.facts("cells")["cells"] > 1


@pytest.mark.fault(19)
def test_measured_peak_is_within_the_projected(whole):
    stages = whole.status["stages"]
    assert [stage["name"] for stage in stages] == list(STAGES)
    for stage in stages:
        assert 0 < stage["peak_bytes"] <= stage["projected_bytes"], stage["name"]


@pytest.mark.fault(19)
@pytest.mark.slow
def test_measured_peak_is_within_the_projected_with_more_rows(embed):
    x = np.random.default_rng(0).normal(size=(20_000, 200)).astype(np.float32)
    done = embed(x, {"cells.max_rows": 2000, "task_memory": 64 * 2**20, "quality.queries": 1000})
    for stage in done.status["stages"]:
        assert 0 < stage["peak_bytes"] <= stage["projected_bytes"], stage["name"]


# exports -----------------------------------------------------------------------------------------


def test_exported_neighbors_are_the_inputs_rows(whole, digits):
    indices, distances = whole.neighbors()
    rows = np.arange(len(indices))[:, None]
    assert indices.shape == distances.shape == (len(digits[0]), K)
    assert ((indices >= 0) & (indices != rows)).all()
    assert all(len(set(row)) == K for row in indices.tolist())
    np.testing.assert_allclose(distances, brute(digits[0], "euclidean")[rows, indices], rtol=1e-5)
    assert (np.diff(distances, axis=1) >= 0).all()
    group = zarr.open_group(whole.export("neighbors", ".zarr"), mode="r")
    np.testing.assert_array_equal(group["indices"][:], indices)
    np.testing.assert_array_equal(group["distances"][:], distances)


@pytest.mark.parametrize(
    ("mix", "connectivity"),
    [(1.0, 1.0), *(pytest.param(*p, marks=pytest.mark.slow) for p in ((0.25, 1.0), (1.0, 2.5)))],
)
def test_exported_graph_is_umap_learns(embed, few, mix, connectivity):
    from umap.umap_ import fuzzy_simplicial_set

    done = embed(few, {"graph.set_op_mix_ratio": mix, "graph.local_connectivity": connectivity})
    indices, distances = done.neighbors()
    rows = np.arange(len(few))
    wanted = fuzzy_simplicial_set(
        few,
        K,
        np.random.RandomState(0),
        "euclidean",
        knn_indices=np.column_stack([rows, indices]),
        knn_dists=np.column_stack([np.zeros(len(few), np.float32), distances]),
        set_op_mix_ratio=mix,
        local_connectivity=connectivity,
    )[0]
    found = sparse.load_npz(done.export("graph", ".npz"))
    assert found.shape == wanted.shape
    assert abs(found - wanted).max() <= 1e-5
    assert abs(found - found.T).max() == 0


def test_exported_embeddings_agree(whole):
    y, flags = whole.y, whole.flags
    np.testing.assert_array_equal(np.load(whole.export("embedding", ".npy")), y)
    lines = Path(whole.export("embedding", ".csv")).read_text().splitlines()
    table = np.loadtxt(lines[1:], delimiter=",")
    assert lines[0] == "row,component_0,component_1,status"
    np.testing.assert_array_equal(table[:, 1:3].astype(np.float32), y)
    columns = parquet.read_table(whole.export("embedding", ".parquet"))
    assert columns.column_names == lines[0].split(",")
    for name, values in (("row", np.arange(len(y))), ("component_1", y[:, 1]), ("status", flags)):
        np.testing.assert_array_equal(columns[name].to_numpy(), values)


# equal bytes -------------------------------------------------------------------------------------

CUT = {"task_memory": 2**20}
"""Blocks of about 500 rows, cells of about 700."""


@pytest.fixture(scope="module")
def some(digits):
    return digits[0][:1200]


@pytest.fixture(scope="module")
def cut(embed, save, some):
    done = embed(save(some, 100), {**CUT, "layout.checkpoint_every": 7})
    assert done.facts("cells")["cells"] > 4
    return done


@pytest.fixture(scope="module")
def expected(cut):
    return cut.y.tobytes()


def _columns(save, x):
    path = save(x[:1])
    zarr.open_group(path).create_array("vectors", data=x, chunks=(100, 7), overwrite=True)
    return path


FORMS = {
    "rechunked": lambda save, x: save(x, 1000),
    "uneven chunks, float64": lambda save, x: save(x.astype(np.float64), 77),
    "one chunk, uint8": lambda save, x: save(x.astype(np.uint8), 1200),
    "columns cut": _columns,
    "sharded, int8": lambda save, x: save(x.astype(np.int8), 50, shards=(200, 64)),
    "version 2, big-endian": lambda save, x: save(x.astype(">f4"), 100, zarr_format=2),
    "an array, int32": lambda save, x: save(x.astype(np.int32), 100) + "/vectors",
    "zip, float16": lambda save, x: shutil.make_archive(path := save(x.astype(np.float16), 100), "zip", path),
}
"""The same values, otherwise stored: a store's path of each."""


@pytest.mark.fault(31)
@pytest.mark.fault(32)
@pytest.mark.fault(33)
@pytest.mark.parametrize("form", slowly(FORMS, "rechunked", "one chunk, uint8", "zip, float16"))
def test_the_inputs_form_changes_no_byte(embed, save, some, expected, form):
    assert embed(FORMS[form](save, some), CUT).y.tobytes() == expected


def test_the_inputs_form_changes_the_blocks(configure, save, some):
    """Else the tests around it would tell nothing."""
    blocks = [plan(configure(save(some, rows), CUT)).geometry.blocks for rows in (100, 1000)]
    assert blocks == [3, 2]


@pytest.mark.fault(32)
@pytest.mark.slow
def test_chunks_of_one_row_change_no_byte(embed, save, some, expected):
    assert embed(save(some, 1), CUT).y.tobytes() == expected


def test_rounds_change_no_byte(embed, some, cut):
    done = embed(some, {**CUT, "layout.mode": "rounds", "layout.checkpoint_every": 7})
    assert (cut.facts("layout")["mode"], done.facts("layout")["mode"]) == ("host", "rounds")
    assert done.facts("layout")["loss"] == cut.facts("layout")["loss"]
    assert done.y.tobytes() == cut.y.tobytes()


def test_the_loss_is_told_at_each_checkpoint_and_falls(cut):
    losses = cut.facts("layout")["loss"]
    assert [epoch for epoch, _ in losses] == [7, 14, 20]
    assert 2 > losses[0][1] > losses[-1][1] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_no_byte(configure, some, expected, inspect, workers):
    from dumap.submit import run

    config = configure(some, {**CUT, "cluster.workers": workers, "cluster.memory_limit": 2**31})
    run(config)
    assert inspect(config.output).y.tobytes() == expected


def test_the_seed_and_the_data_change_the_bytes(embed, some, expected):
    assert embed(some, {**CUT, "seed": 43}).y.tobytes() != expected
    assert embed(some[::-1], CUT).y.tobytes() != expected


@pytest.mark.slow
def test_shards_change_no_byte(embed, save):
    x = save(np.random.default_rng(1).normal(size=(9000, 8)).astype(np.float32))
    ways = [(4096, "host"), (8192, "host"), (65536, "host"), (4096, "rounds"), (8192, "rounds")]
    found = {
        embed(x, {"cells.max_rows": 1000, "graph.shard_rows": rows, "layout.mode": mode}).y.tobytes()
        for rows, mode in ways
    }
    assert len(found) == 1


@pytest.mark.slow
def test_descent_in_large_cells_repeats_and_finds_the_neighbors(embed, save):
    """Cells too large for exhaustive search are pynndescent's."""
    centers = np.random.default_rng(2).normal(size=(30, 20)) * 3
    x = (centers[np.arange(5000) % 30] + np.random.default_rng(3).normal(size=(5000, 20))).astype(np.float32)
    first, again = (embed(save(x, rows), {"cells.max_rows": 4000, "quality.queries": 1000}) for rows in (500, 5000))
    assert first.facts("cells")["largest"] > 1024
    assert first.facts("audit")["recall"] >= 0.95
    assert first.y.tobytes() == again.y.tobytes()


# metrics and settings ----------------------------------------------------------------------------

METRICS = {
    "euclidean": {},
    "cosine": {},
    "correlation": {},
    "manhattan": {},
    "chebyshev": {},
    "canberra": {},
    "hamming": {},
    "minkowski": {"p": 3.0},
}


@pytest.mark.parametrize("metric", METRICS)
def test_one_cell_finds_every_neighbor(embed, few, metric):
    """By distance, since whole numbers tie."""
    done = embed(few, {"neighbors.metric": metric, "neighbors.metric_kwds": METRICS[metric]})
    indices, distances = done.neighbors()
    exact = brute(few, {"manhattan": "cityblock"}.get(metric, metric), **METRICS[metric])
    np.testing.assert_allclose(distances, np.sort(exact, axis=1)[:, :K], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, indices, axis=1), distances, rtol=1e-5, atol=2e-6)
    assert np.isfinite(done.y).all()


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
def test_many_cells_find_most_neighbors(embed, digits, metric):
    settings = {"neighbors.metric": metric, "neighbors.metric_kwds": METRICS[metric], "quality.queries": 500}
    done = embed(digits[0], {**settings, "cells.max_rows": 800})
    assert done.facts("cells")["cells"] > 1
    assert done.facts("audit")["recall"] >= 0.85
    assert np.isfinite(done.y).all()


@pytest.mark.parametrize("components", slowly([1, 3, 7, 64], 1, 3))
def test_components(embed, few, components):
    y = embed(few, {"layout.n_components": components}).y
    assert y.shape == (len(few), components)
    assert np.isfinite(y).all()
    assert (y.std(axis=0) > 0).all()


@pytest.mark.parametrize("init", ["pca", "random"])
def test_starts(embed, few, init):
    y = embed(few, {"start.init": init}).y
    assert np.isfinite(y).all()
    assert (y.std(axis=0) > 0.1).all()


def test_start_from_an_array_keeps_its_picture(embed, digits, fresh):
    """Two groups that are far apart in the array stay on their sides."""
    x, labels = digits[0][digits[1] < 2], digits[1][digits[1] < 2]
    init = fresh("init.npy")
    np.save(init, np.column_stack([np.where(labels, 10.0, -10.0), np.linspace(-1, 1, len(x))]))
    y = embed(x, {"start.init": init}).y
    assert ((y[:, 0] > np.median(y[:, 0])) == (labels == 1)).mean() > 0.95
    short = fresh("short.npy")
    np.save(short, np.zeros((len(x) - 1, 2)))
    with pytest.raises(Exception, match="must have shape") as refused:
        embed(x, {"start.init": short})
    assert refused.value.exit_code == 2


@pytest.mark.fault(31)
def test_booleans(embed, few):
    done = embed(few > 8, {"neighbors.metric": "hamming"})
    distances = done.neighbors()[1]
    np.testing.assert_allclose(distances, np.sort(brute(few > 8, "hamming"), axis=1)[:, :K], atol=1e-6)
    assert np.isfinite(done.y).all()


@pytest.mark.fault(28)
@pytest.mark.parametrize("k", [2, 15])
def test_as_few_rows_as_there_can_be(embed, few, k):
    y = embed(few[: k + 2], {"neighbors.n_neighbors": k, "quality.queries": 10}).y
    assert y.shape == (k + 2, 2)
    assert np.isfinite(y).all()
    with pytest.raises(InputError, match=rf"{k + 1} rows are too few .* at least {k + 2}"):
        embed(few[: k + 1], {"neighbors.n_neighbors": k})


# hard data ---------------------------------------------------------------------------------------


@pytest.fixture
def holed(few):
    x = few.copy()
    x[[7, 90, 299], [0, 5, 63]] = np.nan, np.inf, -np.inf
    return x


@pytest.mark.fault(27)
def test_what_is_not_finite_is_named_before_any_graph(configure, client, holed):
    from dumap.submit import run

    config = configure(holed)
    with pytest.raises(InputError, match=r"3 of 300 rows .* rows 7, 90, 299"):
        run(config, client=client)
    begun = {p.name for p in Path(config.output, "manifests").iterdir()}
    assert begun <= {"identity", "vectors"}


@pytest.mark.fault(27)
def test_the_advice_on_what_is_not_finite_can_be_followed(configure, client, holed):
    """The same command with the setting that the message names goes on in the same output."""
    from dumap.submit import run

    config = configure(holed)
    with pytest.raises(InputError, match=r"--set input\.nonfinite=drop"):
        run(config, client=client)
    dropping = config.model_copy(update={"input": config.input.model_copy(update={"nonfinite": "drop"})})
    assert run(dropping, client=client)["state"] == "done"


@pytest.mark.fault(27)
@pytest.mark.parametrize("max_rows", slowly([None, 100], 100))
def test_what_is_not_finite_is_dropped_and_flagged(embed, holed, max_rows):
    done = embed(holed, {"input.nonfinite": "drop", "quality.queries": 50, "cells.max_rows": max_rows})
    dropped = ~np.isfinite(holed).all(axis=1)
    np.testing.assert_array_equal(done.flags, np.where(dropped, DROPPED, 0))
    np.testing.assert_array_equal(np.isnan(done.y).all(axis=1), dropped)
    assert np.isfinite(done.y[~dropped]).all()
    indices, distances = done.neighbors()
    assert (indices[dropped] == -1).all()
    assert not np.isin(indices[~dropped], np.flatnonzero(dropped)).any()
    assert np.isfinite(distances[~dropped]).all()
    graph = sparse.load_npz(done.export("graph", ".npz"))
    assert graph[dropped].nnz == graph[:, dropped].nnz == 0
    assert done.facts("vectors")["dropped"] == 3


@pytest.mark.fault(27)
def test_dropped_rows_leave_the_others_where_they_were(embed, holed):
    """Each kept row's neighbours are those it has in the data without the dropped rows."""
    kept = np.flatnonzero(np.isfinite(holed).all(axis=1))
    _, distances = embed(holed, {"input.nonfinite": "drop"}).neighbors()
    np.testing.assert_array_equal(distances[kept], embed(holed[kept]).neighbors()[1])


@pytest.mark.fault(29)
@pytest.mark.parametrize("max_rows", slowly([None, 100], 100))
def test_identical_rows(embed, max_rows):
    done = embed(np.ones((400, 8), np.float32), {"cells.max_rows": max_rows, "quality.queries": 50})
    assert np.isfinite(done.y).all()
    assert done.facts("vectors")["duplicates"] == 399
    assert (done.neighbors()[1] == 0).all()


@pytest.mark.fault(29)
@pytest.mark.parametrize("max_rows", slowly([None, 100], 100))
def test_more_copies_of_rows_than_neighbors(embed, few, max_rows):
    done = embed(np.repeat(few[:20], 20, axis=0), {"cells.max_rows": max_rows, "quality.queries": 50})
    assert np.isfinite(done.y).all()
    assert done.facts("vectors")["duplicates"] == 380
    assert (done.neighbors()[1] == 0).all()


@pytest.mark.fault(30)
@pytest.mark.parametrize("metric", slowly(["cosine", "correlation"], "cosine"))
def test_rows_without_direction(embed, few, metric):
    x = few.copy()
    x[::10] = 0
    done = embed(x, {"neighbors.metric": metric, "quality.queries": 50})
    assert np.isfinite(done.y).all()
    np.testing.assert_array_equal((done.flags & ZERO) > 0, np.arange(len(x)) % 10 == 0)
    assert done.facts("vectors")["zero"] == 30


@pytest.mark.fault(27)
def test_rows_that_overflow_are_not_finite(embed, few):
    x = few.astype(np.float64)
    x[5, 5] = 1e300
    with pytest.raises(InputError, match=r"1 of 300 rows .* rows 5"):
        embed(x)


@pytest.mark.fault(36)
def test_an_isolated_row_is_finite_and_flagged(embed, few):
    from dumap.stages.vectors import ISOLATED

    x = np.vstack([few, np.full((1, 64), 1000, np.float32)])
    done = embed(x, {"graph.disconnection_distance": 1000.0})
    assert np.isfinite(done.y).all()
    np.testing.assert_array_equal(np.flatnonzero(done.flags & ISOLATED), [300])
    assert done.facts("graph")["isolated"] == 1
