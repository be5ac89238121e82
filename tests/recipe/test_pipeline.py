"""Whole runs: what comes out, and that nothing but data, parameters and seed decides it."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers import Notes, slowly
from pyarrow import parquet
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from dumap.api import run
from dumap.artifacts.graph import Graph
from dumap.artifacts.start import Starts
from dumap.artifacts.vectors import COPY, DROPPED, ZERO
from dumap.errors import InputError
from dumap.kernels import coarse
from dumap.recipe.names import STAGES
from dumap.recipe.pipeline import plan
from dumap.stages import rounds
from dumap.store import MANIFESTS, Run

K = 14
"""Neighbours of a row, itself not counted, by default."""


@pytest.fixture(scope="module")
def whole(digits, embed, client):
    """Return all digits, embedded with the default epochs, in many cells, by workers."""
    return embed(digits[0], {"cells.max_rows": 500, "layout.n_epochs": None, "quality.queries": 300}, client)


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
    attributes = Run(whole.output, read_only=True).attributes
    assert attributes["seed"] == 42
    assert attributes["parameters"]["neighbors"]["n_neighbors"] == K + 1
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
    assert facts["recall"] >= 0.97
    assert facts["recall_low"] - 0.01 <= recall <= facts["recall_high"] + 0.01
    assert whole.facts("quality")["trustworthiness"] > 0.95
    assert whole.facts("cells")["cells"] >= 16


@pytest.mark.slow
def test_cells_find_what_is_lost_at_their_borders(embed, digits):
    """Of the lists as they are searched; the audit's repair may not help."""
    x, shares = digits[0], []
    exact = np.sort(brute(x, "euclidean"), axis=1)[:, [K - 1]]
    for copies in (1, 2, 5):
        settings = {"cells.max_rows": 500, "cells.max_copies": copies, "neighbors.max_repairs": 0}
        done = embed(x, settings)
        distances = done.neighbors()[1]
        shares.append((distances <= exact * (1 + 1e-5)).mean())
        assert done.facts("graph")["missing"] == 0
        assert done.facts("cells")["copies"] <= copies * len(x)
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] >= 0.97


@pytest.mark.fault(19)
def test_measured_peak_is_within_the_projected(whole):
    stages = whole.status["stages"]
    assert [stage["name"] for stage in stages] == list(STAGES)
    for stage in stages:
        assert 0 < stage["peak_bytes"] <= stage["projected_bytes"], stage["name"]


@pytest.mark.fault(19)
@pytest.mark.slow
def test_measured_peak_is_within_the_projected_with_more_rows(embed, client):
    x = np.random.default_rng(0).normal(size=(8000, 200)).astype(np.float32)
    settings = {"cells.max_rows": 1000, "task_memory": 32 * 2**20, "start.coarse_epochs": 20, "layout.n_epochs": 5}
    done = embed(x, {**settings, "quality.queries": 500}, client)
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
    slowly([(1.0, 1.0), (0.25, 1.0), (1.0, 2.5)], (1.0, 1.0)),
)
def test_exported_graph_is_umap_learns(embed, few, mix, connectivity):
    from umap.umap_ import fuzzy_simplicial_set

    done = embed(few, {"graph.set_op_mix_ratio": mix, "graph.local_connectivity": connectivity})
    indices, distances = done.neighbors()
    rows = np.arange(len(few))
    wanted = fuzzy_simplicial_set(
        few,
        K + 1,
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
    zarr.open_group(path).create_array(
        "vectors", data=x, chunks=(100, 7), overwrite=True, config={"write_empty_chunks": True}
    )
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


def test_who_writes_the_embedding_keeps_no_edges_of_the_last_round(embed, client, some):
    done = embed(some, {**CUT, "layout.mode": "rounds", "layout.n_epochs": 2}, client)
    assert done.facts("layout")["mode"] == "rounds"
    kept = client.run(lambda: rounds._packed.bytes)
    assert len(kept) > 1
    assert 0 in kept.values()


def test_the_loss_is_told_at_each_checkpoint_and_falls(cut):
    losses = cut.facts("layout")["loss"]
    assert [epoch for epoch, _ in losses] == [7, 14, 20]
    assert 2 > losses[0][1] > losses[-1][1] > 0.1


@pytest.mark.slow
def test_workers_change_no_byte(embed, client, some, expected):
    """Two of them, and three that the run starts itself: what is expected was made without any."""
    assert embed(some, CUT, client).y.tobytes() == expected
    own = {"cluster.engine": "dask", "cluster.workers": 3, "cluster.memory_limit": 2**31}
    assert embed(some, {**CUT, **own}).y.tobytes() == expected


def test_the_seed_and_the_data_change_the_bytes(embed, some, expected):
    assert embed(some, {**CUT, "seed": 43}).y.tobytes() != expected
    assert embed(some[::-1], CUT).y.tobytes() != expected


SHARDED = {"cells.max_rows": 1000, "neighbors.n_neighbors": 5, "start.coarse_epochs": 20, "graph.shard_rows": 4096}


@pytest.fixture(scope="module")
def long(save):
    """Return rows of three shards."""
    return save(np.random.default_rng(1).normal(size=(9000, 3)).astype(np.float32))


@pytest.mark.slow
def test_shards_change_no_byte(embed, long):
    ways = [(4096, "host"), (65536, "host"), (4096, "rounds")]
    found = {embed(long, {**SHARDED, "graph.shard_rows": rows, "layout.mode": mode}).y.tobytes() for rows, mode in ways}
    assert len(found) == 1


@pytest.mark.slow
@pytest.mark.parametrize("init", ["pca", "array"])
def test_starts_are_the_same_however_rows_are_cut(embed, save, fresh, init):
    rng = np.random.default_rng(2)
    x, given = rng.normal(size=(9000, 8)).astype(np.float32), fresh("init.zarr")
    zarr.create_array(given, data=rng.normal(size=(9000, 2)), chunks=(700, 1))
    found = set()
    for chunk, rows in ((500, 65536), (9000, 4096)):
        settings = {"task_memory": 2**23, "graph.shard_rows": rows, "start.init": given if init == "array" else init}
        done = embed(save(x, chunk), settings)
        found.add(starts_of(done).tobytes())
    assert len(found) == 1


def starts_of(done) -> np.ndarray:
    """Read a run's first coordinates."""
    run = Run(done.output, read_only=True)
    shards = len(Graph(run).shards)
    return np.concatenate([Starts(run, shards).read(shard) for shard in range(shards)])


def test_the_coarse_graph_is_laid_out_unless_told_otherwise(embed, some, cut):
    done = embed(some, {**CUT, "start.coarse_epochs": 0})
    assert [way.facts("start")["coarse_epochs"] for way in (cut, done)] == [500, 0]
    reach = [np.ptp(starts_of(way), axis=0) for way in (cut, done)]
    assert (np.abs(reach[0] - coarse.SPAN) > 0.1).any(), "not stretched to the box"
    np.testing.assert_allclose(reach[1], coarse.SPAN, atol=0.01)
    losses = [way.facts("layout")["loss"][-1][1] for way in (cut, done)]
    assert losses[0] < losses[1]


EXCHANGE = {**SHARDED, "layout.n_epochs": 50, "layout.exchange_every": 4}


@pytest.mark.slow
def test_shards_that_are_exchanged_less_often(embed, client, long):
    """Whoever does which shards: three of them, on two workers or none; the map is near that of exchanging always."""
    done = embed(long, {**EXCHANGE, "layout.checkpoint_every": 15}, client)
    assert done.facts("layout")["mode"] == "rounds"
    losses = done.facts("layout")["loss"]
    assert [epoch for epoch, _ in losses] == [16, 32, 48, 50]
    assert embed(long, EXCHANGE).y.tobytes() == done.y.tobytes()
    always = embed(long, {**EXCHANGE, "layout.exchange_every": 1})
    assert always.y.tobytes() != done.y.tobytes()
    assert losses[-1][1] == pytest.approx(always.facts("layout")["loss"][-1][1], rel=0.05)


@pytest.mark.parametrize("least_fall", slowly([0.05, 0.9], 0.9))
def test_a_loss_that_has_settled_ends_the_layout(embed, configure, some, least_fall):
    """In one process, in rounds, and going on from a checkpoint."""
    settings = {**CUT, "layout.n_epochs": 100, "layout.least_fall": least_fall, "layout.checkpoint_every": 7}
    done = embed(some, settings)
    last, losses = done.facts("layout")["epochs"], dict(done.facts("layout")["loss"])
    judged = [losses[epoch] for epoch in range(10, last + 1, 10)]
    falls = [1 - after / before for before, after in pairwise(judged)]
    assert last % 10 == 0
    assert last < 100
    assert falls[-1] < least_fall
    assert all(fall >= least_fall for fall in falls[:-1])
    rounds = embed(some, {**settings, "layout.mode": "rounds"})
    assert rounds.facts("layout") == {**done.facts("layout"), "mode": "rounds"}
    assert rounds.y.tobytes() == done.y.tobytes()
    store = Run(done.output)
    for stage in ("layout", "embedding", "quality"):
        store.forget("run", stage)
    store.forget("layout", "end")
    assert run(configure(some, {**settings, "output": done.output}))["state"] == "done"
    assert Run(done.output).summary("layout", "end")["epoch"] == last


@pytest.mark.slow
def test_large_cells_repeat_and_find_the_neighbors(embed, save):
    centers = np.random.default_rng(2).normal(size=(30, 20)) * 3
    x = (centers[np.arange(5000) % 30] + np.random.default_rng(3).normal(size=(5000, 20))).astype(np.float32)
    first, again = (embed(save(x, rows), {"cells.max_rows": 4000, "quality.queries": 1000}) for rows in (500, 5000))
    assert first.facts("cells")["largest"] > 1024
    assert first.facts("audit")["recall"] >= 0.97
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


@pytest.mark.parametrize("metric", slowly(METRICS, "euclidean", "cosine"))
def test_one_cell_finds_every_neighbor(embed, few, metric):
    """By distance, since whole numbers tie."""
    done = embed(few, {"neighbors.metric": metric, "neighbors.metric_kwds": METRICS[metric]})
    indices, distances = done.neighbors()
    exact = brute(few, {"manhattan": "cityblock"}.get(metric, metric), **METRICS[metric])
    np.testing.assert_allclose(distances, np.sort(exact, axis=1)[:, :K], rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, indices, axis=1), distances, rtol=1e-5, atol=2e-6)
    assert np.isfinite(done.y).all()


@pytest.mark.parametrize("metric", slowly(METRICS, "cosine"))
def test_many_cells_find_most_neighbors(embed, digits, metric):
    settings = {"neighbors.metric": metric, "neighbors.metric_kwds": METRICS[metric], "quality.queries": 500}
    done = embed(digits[0], {**settings, "cells.max_rows": 800})
    assert done.facts("cells")["cells"] > 1
    assert done.facts("audit")["recall"] >= 0.85
    assert np.isfinite(done.y).all()


@pytest.mark.parametrize("components", slowly([1, 3, 64], 3))
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
@pytest.mark.parametrize("k", [1, 2, 14])
def test_as_few_rows_as_there_can_be(embed, few, k):
    y = embed(few[: k + 2], {"neighbors.n_neighbors": k + 1, "quality.queries": 10}).y
    assert y.shape == (k + 2, 2)
    assert np.isfinite(y).all()
    with pytest.raises(InputError, match=rf"{k + 1} rows are too few .* at least {k + 2}"):
        embed(few[: k + 1], {"neighbors.n_neighbors": k + 1})


# hard data ---------------------------------------------------------------------------------------


@pytest.fixture
def holed(few):
    x = few.copy()
    x[[7, 90, 299], [0, 5, 63]] = np.nan, np.inf, -np.inf
    return x


@pytest.mark.fault(27)
def test_what_is_not_finite_is_named_before_any_graph(configure, holed):
    config = configure(holed)
    with pytest.raises(InputError, match=r"3 of 300 rows .* rows 7, 90, 299"):
        run(config)
    begun = {stage for stage in STAGES if Run(config.output).committed(stage)}
    assert begun == {"vectors"}


@pytest.mark.fault(27)
def test_the_advice_on_what_is_not_finite_can_be_followed(configure, holed):
    """The same command with the setting that the message names goes on in the same output."""
    config = configure(holed)
    with pytest.raises(InputError, match=r"--set input\.nonfinite=drop"):
        run(config)
    dropping = config.model_copy(update={"input": config.input.model_copy(update={"nonfinite": "drop"})})
    assert run(dropping)["state"] == "done"


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


@pytest.mark.fault(29)
@pytest.mark.parametrize("max_rows", slowly([None, 600], 600))
def test_half_of_the_rows_are_copies_of_five(embed, digits, max_rows):
    """Copies are neighbours of copies: no slot is empty, none of them is everyone's neighbour, and none is cut off."""
    rng = np.random.default_rng(0)
    x = np.concatenate([digits[0][:1500], np.repeat(digits[0][1500:1505], 300, axis=0)])[rng.permutation(3000)]
    done = embed(x, {"cells.max_rows": max_rows, "quality.queries": 100})
    assert (done.facts("cells")["cells"] > 10) == (max_rows is not None)
    assert np.isfinite(done.y).all()
    facts, (indices, distances) = done.facts("graph"), done.neighbors()
    assert facts["missing"] == 0
    assert facts["greatest_in_degree"] < 6
    assert done.facts("audit")["recall"] >= 0.97
    graph = sparse.load_npz(done.export("graph", ".npz"))
    _, group, times = np.unique(x, axis=0, return_inverse=True, return_counts=True)
    assert (times >= 300).sum() == 5
    for many in np.flatnonzero(times >= 300):
        rows = np.flatnonzero(group == many)
        assert (distances[rows] == 0).all()
        assert np.isin(indices[rows], rows).all()
        assert sparse.csgraph.connected_components(graph[rows][:, rows], directed=False)[0] == 1


@pytest.mark.fault(29)
def test_cells_of_one_copy_are_full(embed):
    """Where no row is a guest anywhere, equal rows are apart by cells; slots are filled all the same."""
    x = np.repeat(np.random.default_rng(0).normal(size=(3, 8)), [500, 1, 500], axis=0).astype(np.float32)
    done = embed(x, {"cells.max_rows": 100, "cells.max_copies": 1})
    assert np.isfinite(done.y).all()
    assert done.facts("graph")["missing"] == 0


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
    from dumap.artifacts.vectors import ISOLATED

    x = np.vstack([few, np.full((1, 64), 1000, np.float32)])
    done = embed(x, {"graph.disconnection_distance": 1000.0})
    assert np.isfinite(done.y).all()
    np.testing.assert_array_equal(np.flatnonzero(done.flags & ISOLATED), [300])
    assert done.facts("graph")["isolated"] == 1


# copies ------------------------------------------------------------------------------------------

ONCE = {"input.unique": True, "neighbors.n_neighbors": 6}
SMALL = {**ONCE, "input.nonfinite": "drop", "task_memory": 2**16, "quality.queries": 100}
"""Ten blocks of 32 rows, two buckets of hashes, cells of 68."""


def first_rows(x: np.ndarray) -> np.ndarray:
    """Return the first row equal to the bit of each row."""
    found = {}
    return np.array([found.setdefault(row.tobytes(), i) for i, row in enumerate(x)])


@pytest.fixture(scope="module")
def mixed(few):
    """Return 320 rows in disorder: 200 distinct ones, some of them not finite, some with 1 to 40 copies."""
    rng = np.random.default_rng(0)
    times = np.ones(200, int)
    times[[3, 50, 51, 120, 199]] = 41, 30, 20, 20, 14
    x = few[rng.permutation(np.repeat(np.arange(200), times))]
    for row in (few[10], few[51]):  # one of which has copies
        x[(x == row).all(axis=1), 5] = np.nan
    return x


@pytest.fixture(scope="module")
def once(embed, save, mixed):
    return embed(save(mixed, 50), SMALL)


def test_copies_lie_where_their_first_rows_do(once, mixed):
    first, dropped = first_rows(mixed), ~np.isfinite(mixed).all(axis=1)
    copy = ~dropped & (first != np.arange(len(mixed)))
    np.testing.assert_array_equal(once.flags, np.where(dropped, DROPPED, 0) | np.where(copy, COPY, 0))
    np.testing.assert_array_equal(np.isnan(once.y).any(axis=1), dropped)
    assert once.y[~dropped].tobytes() == once.y[first[~dropped]].tobytes()
    assert len(np.unique(once.y[~dropped], axis=0)) == (~dropped & ~copy).sum()
    facts = once.facts("vectors")
    assert facts["dropped"] == dropped.sum() > 2
    assert facts["copies"] == facts["duplicates"] == copy.sum() > 80
    assert facts["distinct"] == (~dropped & ~copy).sum()
    assert facts["greatest_multiplicity"] == 41
    assert once.facts("cells")["rows"] == facts["distinct"]
    assert once.facts("cells")["cells"] > 1


def test_exports_of_copies(once, mixed):
    first, dropped = first_rows(mixed), ~np.isfinite(mixed).all(axis=1)
    distinct = np.flatnonzero(~dropped & (first == np.arange(len(mixed))))
    indices, distances = once.neighbors()
    assert np.isin(indices[~dropped], distinct).all()
    assert (indices[~dropped] != first[~dropped, None]).all()
    np.testing.assert_array_equal(indices[~dropped], indices[first[~dropped]])
    np.testing.assert_array_equal(distances[~dropped], distances[first[~dropped]])
    assert (distances > 0).all()
    graph = sparse.load_npz(once.export("graph", ".npz"))
    edges = np.diff(graph.indptr)
    assert (edges[distinct] > 0).all()
    assert edges[distinct].sum() == graph.nnz == once.facts("graph")["edges"]
    np.testing.assert_array_equal(np.load(once.export("embedding", ".npy")), once.y)


def test_the_audit_is_among_rows_that_are_no_copies(once, mixed):
    """Else the exact neighbours of a row with copies would be those, and its lists be wrong."""
    facts = once.facts("audit")
    assert facts["queries"] > 50
    assert facts["recall_within_cells"] == 1.0
    assert facts["recall"] > 0.8


@pytest.mark.parametrize("rows", slowly([1, 7, 64]))
def test_the_inputs_chunks_change_no_byte_of_copies(embed, save, mixed, once, rows):
    done = embed(save(mixed, rows), {**SMALL, "quality.queries": 0})
    assert done.y.tobytes() == once.y.tobytes()
    assert done.flags.tobytes() == once.flags.tobytes()


def test_copies_survive_a_run_that_is_stopped(configure, inspect, save, mixed, once):
    config = configure(save(mixed, 50), SMALL)
    shutil.copytree(once.output, config.output)
    for gone in (
        "run/*",
        "vectors/distinct-*[13]",
        "vectors/duplicates-*1",
        "graph/placed-*2",
        "graph/[uw]*",
        "layout/*",
    ):
        for manifest in Path(config.output, MANIFESTS).glob(f"{gone}.json"):
            manifest.unlink()
    for name in ("distinct-00003", "duplicates-00001"):
        assert not Path(config.output, f"{MANIFESTS}/vectors/{name}.json").exists()
    run(config)
    assert inspect(config.output).y.tobytes() == once.y.tobytes()


def test_without_copies_nothing_is_otherwise(embed, some, expected):
    done = embed(some, {**CUT, "input.unique": True})
    assert done.facts("vectors")["copies"] == 0
    assert done.y.tobytes() == expected


@pytest.mark.slow
def test_the_graph_is_that_of_the_distinct_rows_alone(embed, few):
    """Copies come last, so that ids are the same; where nothing repels, so is the map."""
    distinct = few.copy()
    distinct[[8, 9], 3] = np.nan
    x = np.concatenate([distinct, distinct[[8, 8, 30]], np.repeat(distinct[40:43], 50, axis=0)])
    for rate in (0.0, 5.0):
        settings = {**ONCE, "input.nonfinite": "drop", "layout.negative_sample_rate": rate}
        whole, alone = embed(x, settings), embed(distinct, {**settings, "input.unique": False})
        assert (whole.y[: len(few)].tobytes() == alone.y.tobytes()) == (rate == 0)
        for own, other in zip(whole.neighbors(), alone.neighbors(), strict=True):
            assert own[: len(few)].tobytes() == other.tobytes()
        a, b = (sparse.load_npz(done.export("graph", ".npz")) for done in (whole, alone))
        assert (a[: len(few), : len(few)] != b).nnz == 0
        assert whole.facts("graph") == alone.facts("graph")
        assert whole.facts("vectors")["copies"] == 151


@pytest.mark.slow
def test_rows_repel_as_many_as_they_are(embed):
    """A place that 601 rows share keeps its neighbours at a distance."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 8)).astype(np.float32)
    heavy = np.concatenate([x, np.repeat(x[:1], 600, axis=0)])
    settings = {**ONCE, "layout.n_epochs": 200}

    def room(done) -> float:
        """Return how near row 0's nearest rows are, to the usual."""
        near = np.sort(np.linalg.norm(done.y[:600, None] - done.y[None, :600], axis=2), axis=1)[:, 1:6].mean(axis=1)
        return float(near[0] / np.median(near))

    assert room(embed(heavy, settings)) > 1.5 * room(embed(x, settings))


@pytest.mark.slow
def test_rounds_draw_as_one_process_does(embed, save):
    """Two shards, both of which have rows with copies."""
    x = np.random.default_rng(1).normal(size=(4400, 6)).astype(np.float32)
    x = save(np.concatenate([x, x[:300], x[4000:], x[4000:4100]]), 1000)
    modes = [embed(x, {**ONCE, "graph.shard_rows": 4096, "layout.mode": mode}) for mode in ("host", "rounds")]
    assert modes[0].y.tobytes() == modes[1].y.tobytes()
    assert modes[0].facts("layout")["loss"] == modes[1].facts("layout")["loss"]
    assert modes[0].facts("vectors")["copies"] == 800


def test_too_few_distinct_rows_are_refused(configure, embed, few):
    with pytest.raises(InputError, match=r"leaves 6 distinct rows, too few for .* = 6: give at least 7, or, .* most 5"):
        run(configure(np.repeat(few[:6], 9, axis=0), ONCE))
    done = embed(np.repeat(few[:7], 9, axis=0), {**ONCE, "quality.queries": 30})
    assert len(np.unique(done.y, axis=0)) == 7


def test_few_distinct_rows_among_many_fill_their_cells(embed, few):
    """The cut is made for all rows; cells, sample and queries are of the distinct ones."""
    x = np.random.default_rng(0).permutation(np.repeat(few[:150], 100, axis=0))
    done = embed(x, {**ONCE, "cells.max_rows": 80, "quality.queries": 100})
    assert done.facts("cells")["smallest"] >= 7
    assert done.facts("graph")["missing"] == 0
    assert done.facts("quality")["queries"] > 70
    assert done.facts("audit")["recall"] > 0.8


def test_rows_whose_hashes_collide_are_no_copies(few, configure, save, monkeypatch):
    """The first hash of all rows is the same: the second tells them apart."""
    from dumap.artifacts.job import Job
    from dumap.artifacts.parts import numbered
    from dumap.artifacts.vectors import copies_of
    from dumap.kernels import hashing
    from dumap.planning.budget import tally_buckets
    from dumap.stages import vectors as stage

    hashes = hashing.row_hashes
    monkeypatch.setattr(
        stage.hashing,
        "row_hashes",
        lambda rows, second=False: hashes(rows, True) if second else hashes(rows) * np.uint64(0),
    )
    config = configure(save(np.concatenate([few, few[5:8]]), 60), {**ONCE, "task_memory": 2**16})
    cut = plan(config).geometry
    job, buckets = Job(config, cut), tally_buckets(config, cut.rows)
    for part in numbered("block", cut.blocks):
        stage.check_block(job, part)
    for part in numbered("duplicates", buckets):
        stage.count_duplicates(job, part, buckets)
    found = {}
    for block, part in enumerate(numbered("distinct", cut.blocks)):
        stage.find_copies(job, part, buckets, 300)
        copies, firsts = copies_of(job.run, block)
        found |= dict(zip((copies + cut.block(block)[0]).tolist(), firsts.tolist(), strict=True))
    assert found == {300: 5, 301: 6, 302: 7}


# the graph's health ------------------------------------------------------------------------------


def test_the_graphs_health_is_that_of_the_exports(whole):
    facts, (indices, _) = whole.facts("graph"), whole.neighbors()
    degrees = np.bincount(indices.ravel(), minlength=len(indices))
    graph = sparse.load_npz(whole.export("graph", ".npz"))
    count, member = sparse.csgraph.connected_components(graph, directed=False)
    assert facts["components"] == count
    assert facts["largest_component"] == np.bincount(member).max() / len(indices)
    assert facts["greatest_in_degree"] == degrees.max() / K
    assert facts["in_degree_zero"] == (degrees == 0).sum()
    assert facts["missing"] == 0


def test_components_are_counted_over_shards(embed, save):
    rng = np.random.default_rng(0)
    parts = [rng.normal(100 * i, 1, (rows, 4)).astype(np.float32) for i, rows in enumerate((5000, 20, 30))]
    done = embed(save(np.concatenate(parts)), {"neighbors.n_neighbors": 5, "graph.shard_rows": 4096})
    assert done.facts("graph")["components"] == 3
    assert done.facts("graph")["largest_component"] == 5000 / 5050


def test_empty_slots_are_told(configure, inspect, few):
    """The search leaves none: some lists are cut short by hand."""
    from dumap.recipe import pipeline
    from dumap.store import Run

    config, listening = configure(few), Notes()
    pipeline.run(config, observer=listening)
    assert not any("slots" in note for note in listening.notes)
    store = Run(config.output)
    lists = {name: store.read("neighbors", "merged-00000", name) for name in ("indices", "distances")}
    facts = store.summary("neighbors", "merged-00000")
    lists["indices"][[5, 8], 3:], lists["distances"][[5, 8], 3:] = -1, np.inf
    store.forget("neighbors", "merged-00000")
    with store.part("neighbors", "merged-00000") as out:
        for name, values in lists.items():
            out.write(name, values)
        out.attributes |= {**facts, "missing": 22}
    for stage in STAGES[STAGES.index("graph") :]:
        for part in [*store.committed(stage)]:
            store.forget(stage, part)
        store.forget("run", stage)
    pipeline.run(config, observer=listening)
    done = inspect(config.output)
    assert done.facts("graph")["missing"] == 22
    assert any("22 slots of the neighbors' lists are empty; 0 of 1 components" in note for note in listening.notes)
    assert np.isfinite(done.y).all()
