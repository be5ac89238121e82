"""Inputs that break programs, and more rows than 32 bits can count."""

from __future__ import annotations

import itertools
import mmap
import sys

import numpy as np
import pytest
import zarr
from helpers import mark_slow_except

from dumap.artifacts.graph import RowRanges
from dumap.artifacts.vectors import ISOLATED, ZERO
from dumap.config import build_config
from dumap.errors import ConfigError, InputError
from dumap.kernels import coarse, graph, hashing, layout, start
from dumap.kernels.edges import Edges, pack_edges
from dumap.kernels.pool import POOL_ROWS, draw_pool_rows, sort_pool
from dumap.planning.geometry import make_geometry
from dumap.recipe.pipeline import plan, run
from dumap.recipe.recipes import make_plan
from dumap.store import Run

TINY = {"neighbors.n_neighbors": 4, "layout.n_epochs": 5}


def noise(rows: int, dims: int = 4, seed: int = 0) -> np.ndarray:
    """Return rows of a normal distribution, float32."""
    return np.random.default_rng(seed).normal(size=(rows, dims)).astype(np.float32)


# rows that are not like others -------------------------------------------------------------------


@pytest.mark.fault(27)
def test_rows_that_are_all_dropped_are_an_error(configure):
    config = configure(np.full((40, 4), np.nan, np.float32), {**TINY, "input.nonfinite": "drop"})
    with pytest.raises(InputError, match=r"0 rows are left .*n_neighbors = 4"):
        run(config)


@pytest.mark.fault(27)
def test_as_few_rows_left_as_there_can_be(embed):
    x = np.full((40, 4), np.inf, np.float32)
    x[::8] = noise(5)
    done = embed(x, {**TINY, "input.nonfinite": "drop", "audit.queries": 40})
    assert np.flatnonzero(np.isfinite(done.y).all(axis=1)).tolist() == [0, 8, 16, 24, 32]


@pytest.mark.fault(27)
def test_only_the_first_rows_that_are_not_finite_are_named(configure):
    x = noise(300)
    x[20:, 1] = np.nan
    with pytest.raises(InputError, match=r"280 of 300 rows .* rows 20, 21, 22, 23, 24, 25, 26, 27, 28, 29: mend"):
        run(configure(x, TINY))


@pytest.mark.fault(29)
@pytest.mark.parametrize(
    ("metric", "value"),
    mark_slow_except(
        list(itertools.product(["euclidean", "cosine", "correlation", "manhattan"], [0.0, 1.0, 1e-40, 3e38])),
        *[("euclidean", 3e38), ("cosine", 1e-40), ("correlation", 0.0)],
    ),
)
def test_rows_all_the_same_under_any_metric(embed, metric, value):
    x = np.full((60, 4), value, np.float32)
    done = embed(x, {**TINY, "neighbors.metric": metric, "audit.queries": 20})
    assert np.isfinite(done.y).all()
    assert len(np.unique(done.y, axis=0)) > 1, "rows lie on one another"
    assert ((done.flags & ZERO) > 0).all() == (value == 0)


@pytest.mark.fault(30)
def test_rows_without_direction_are_neighbors_of_each_other(embed):
    """Their rule: at a distance of 0 from each other, of 1 from all that have a direction."""
    x = noise(60)
    x[::6] = 0
    done = embed(x, {**TINY, "neighbors.metric": "cosine"})
    indices, distances = done.neighbors()
    assert (distances[::6] == 0).all()
    assert (indices[::6] % 6 == 0).all()
    assert done.facts("vectors")["zero"] == 10


@pytest.mark.fault(30)
def test_a_metric_that_is_not_defined_for_zero_rows_is_named(configure):
    x = np.abs(noise(60))
    x[7] = 0
    with pytest.raises(InputError, match=r"neighbors\.metric = tsss is not defined for some of its rows .*all zero"):
        run(configure(x, {**TINY, "neighbors.metric": "tsss"}))


@pytest.mark.fault(37)
@pytest.mark.parametrize(
    ("metric", "kwds", "message"),
    [
        ("haversine", {}, "haversine takes rows of 2 dims, latitude and longitude, not of 4"),
        ("seuclidean", {}, r"metric seuclidean needs 4 numbers for rows of 4 dims; it is not given"),
        ("seuclidean", {"sigma": [1.0, 2.0]}, r"metric seuclidean needs 4 numbers .* it has 2"),
        ("mahalanobis", {"vinv": [[1.0, 0.0], [0.0, 1.0]]}, r"metric mahalanobis needs 4 x 4 numbers .* it has 2 x 2"),
    ],
)
def test_a_metric_that_does_not_fit_the_dims_is_refused_at_planning(configure, metric, kwds, message):
    config = configure(noise(60), {**TINY, "neighbors.metric": metric, "neighbors.metric_kwds": kwds})
    with pytest.raises(ConfigError, match=message):
        plan(config)


@pytest.mark.fault(37)
def test_metrics_take_their_arguments_by_name(embed):
    x = noise(60)
    weights, order = [1.0, 2.0, 3.0, 4.0], {"neighbors.metric": "wminkowski"}
    first = embed(x, {**TINY, **order, "neighbors.metric_kwds": {"w": weights, "p": 3}})
    other = embed(x, {**TINY, **order, "neighbors.metric_kwds": {"p": 3, "w": weights}})
    indices, distances = first.neighbors()
    apart = np.abs(x[:, None].astype(np.float64) - x[indices])
    np.testing.assert_allclose(distances, ((apart**3) @ weights) ** (1 / 3), rtol=1e-5)
    assert first.y.tobytes() == other.y.tobytes()


# graphs that fall apart --------------------------------------------------------------------------


@pytest.mark.fault(36)
@pytest.mark.parametrize("init", mark_slow_except(["spectral", "pca", "random"], "spectral"))
def test_a_graph_in_parts_is_finite_and_counted(embed, init):
    x = np.concatenate([noise(60, seed=n) + 1e4 * n for n in range(3)])
    done = embed(x, {**TINY, "start.init": init, "audit.queries": 30})
    assert np.isfinite(done.y).all()
    assert not done.flags.any()
    if init == "spectral":
        assert done.facts("start")["components"] == done.facts("graph")["components"] >= 3
        centers = done.y.reshape(3, 60, 2).mean(axis=1)
        near = np.linalg.norm(done.y[:, None] - centers, axis=2).argmin(axis=1)
        assert (near == np.repeat([0, 1, 2], 60)).mean() > 0.95


@pytest.mark.fault(36)
@pytest.mark.parametrize("init", mark_slow_except(["spectral", "pca", "random"], "spectral"))
def test_rows_that_are_all_isolated(embed, init):
    done = embed(noise(60), {**TINY, "graph.disconnection_distance": 1e-6, "start.init": init, "audit.queries": 30})
    assert np.isfinite(done.y).all()
    assert (done.flags == ISOLATED).all()
    facts = done.facts("graph")
    assert {name: facts[name] for name in ("edges", "isolated", "edges_inside_shards", "components")} == {
        "edges": 0,
        "isolated": 60,
        "edges_inside_shards": None,
        "components": 60,
    }


# what random inputs found ------------------------------------------------------------------------


def test_an_audit_of_which_no_query_is_drawn(embed):
    """One query of 16 rows is drawn by the hash of the rows' ids: of this seed, none."""
    done = [embed(noise(16), {**TINY, "seed": seed, "audit.queries": 1}) for seed in range(3)]
    assert {"queries": 0} in [run.facts("quality") for run in done]
    assert 0 in [run.facts("audit")["queries"] for run in done]


RUNAWAY = {"layout.a": 1e5, "layout.b": 30.0}


@pytest.mark.parametrize("mode", mark_slow_except(["host", "rounds"], "rounds"))
def test_a_layout_that_runs_away_is_an_error(configure, mode):
    settings = {**RUNAWAY, "layout.mode": mode, "start.init": "random"}
    with pytest.raises(ConfigError, match=r"layout: .*coordinates are not finite; some of .*layout\.a = 100000\.0"):
        run(configure(noise(60), {**TINY, **settings}))


def test_a_coarse_layout_that_runs_away_is_an_error(configure):
    with pytest.raises(ConfigError, match=r"start: .*coordinates are not finite; some of .*layout\.a = 100000\.0"):
        run(configure(noise(1100), {**TINY, **RUNAWAY}))


# more rows than 32 bits count --------------------------------------------------------------------

MANY = 3_000_000_000
"""Rows whose ids need more than 31 bits, and their edges more than 32."""
FAR = 5_000_000_000
"""A row whose id needs more than 32 bits."""


@pytest.mark.fault(35)
def test_a_plan_of_more_rows_than_32_bits_count():
    config = build_config({"input": {"path": "in.zarr"}, "output": "out.zarr"})
    geometry = make_geometry(config, MANY, 100, 4, 10_000)
    assert geometry.index_dtype == np.int64
    assert geometry.rows_of_block(geometry.blocks - 1)[1] == MANY
    assert geometry.shards * geometry.shard_rows >= MANY
    projected = make_plan(config, geometry)
    edges = 2 * 14 * MANY
    assert projected.stage("graph").disk_bytes > edges * 8
    assert projected.stage("cells").disk_bytes > MANY * 100 * 4
    assert projected.stage("start").disk_bytes > MANY * 8
    assert projected.stage("start").peak_bytes < 2**31, "it goes over the graph shard by shard"
    assert all(isinstance(value, int) for stage in projected.as_dict()["stages"] for value in list(stage.values())[1:])


@pytest.mark.fault(35)
def test_shards_of_more_rows_than_32_bits_count():
    shards = RowRanges.of_size(MANY, 65_536)
    assert shards.offsets.dtype == np.int64
    assert shards.row_range(len(shards) - 1) == (MANY // 65_536 * 65_536, MANY)
    assert (np.diff(shards.offsets) > 0).all()


@pytest.fixture
def ring():
    """Return a graph of ten rows, each joined to the next, by rows counted from 0."""
    rows = np.arange(10)
    tails = np.sort(np.stack([(rows - 1) % 10, (rows + 1) % 10], axis=1), axis=1).ravel()
    return np.arange(0, 21, 2), tails, np.linspace(0.1, 1, 20).astype(np.float32)


@pytest.mark.fault(35)
def test_edges_beyond_32_bits_are_weighed_and_united():
    rng = np.random.default_rng(0)
    near = np.argsort(rng.random((10, 10)), axis=1)[:, :4]
    distances = np.sort(rng.random((10, 4)), axis=1).astype(np.float32)
    weights = [graph.compute_memberships(near + first, distances, 0.5, 1.0, np.inf)[2] for first in (0, MANY)]
    np.testing.assert_array_equal(*weights)
    heads = np.repeat(np.arange(10), 4)
    for first in (2**31 - 5, MANY):
        low, high = (
            graph.fuzzy_union(
                10,
                heads,
                near.ravel() + at,
                weights[0].ravel(),
                near.ravel(),
                heads + at,
                weights[0].ravel(),
                1.0,
            )
            for at in (0, first)
        )
        assert high[1].dtype == np.int64
        np.testing.assert_array_equal(low[1] + first, high[1])
        np.testing.assert_array_equal(low[0], high[0])
        np.testing.assert_array_equal(low[2], high[2])


@pytest.mark.fault(35)
def test_edges_beyond_32_bits_are_packed(ring):
    indptr, tails, weights = ring
    whole = pack_edges(indptr, tails + FAR, weights, FAR, 1.0, 50, 42)
    assert whole.tails.dtype == np.uint64
    kept = weights >= np.float32(1 / 50)
    np.testing.assert_array_equal(whole.tails, (tails + FAR)[kept].astype(np.uint64))
    heads = np.repeat(np.arange(10), np.diff(whole.indptr)) + FAR
    phases = {}
    for head, tail, phase in zip(heads.tolist(), whole.tails.tolist(), whole.sample_phases.tolist(), strict=True):
        assert phases.setdefault((min(head, tail), max(head, tail)), phase) == phase, "both ends must agree"
    truncated = pack_edges(indptr, tails + FAR % 2**32, weights, FAR % 2**32, 1.0, 50, 42)
    assert (truncated.sample_phases != whole.sample_phases).any(), "ids must not be cut to 32 bits"


@pytest.mark.fault(35)
def test_a_step_is_keyed_by_all_bits_of_a_row(ring):
    """Rows far out are pushed from negatives of their own, not from those of the row 2^32 before."""
    indptr, tails, weights = ring
    y = noise(10, 2)
    pool = sort_pool(noise(POOL_ROWS, 2, seed=1))
    descent = layout.LayoutParameters(1.577, 0.895, 1.0, 1.0, 5.0, 50, 42)

    def step(first: int, y_offset: int, known: np.ndarray) -> np.ndarray:
        edges = pack_edges(indptr, tails, weights, first, 1.0, 50, 42)._replace(
            indptr=indptr.astype(np.int64), tails=(tails + y_offset).astype(np.uint64),
            relative_weights=np.full(20, 2**15 - 1, "u2"), sample_phases=np.zeros(20, "u2"),
        )  # fmt: skip
        out, m, v = np.empty_like(y), np.zeros_like(y), np.zeros_like(y)
        layout.step_epoch(descent, 3, 0, 10, first, y_offset, edges, known, m, v, pool, out)
        return out

    far = step(FAR, 0, y)
    assert np.isfinite(far).all()
    np.testing.assert_array_equal(far, step(FAR, 0, y))
    assert (far != step(FAR + 2**32, 0, y)).any()
    assert (far != step(FAR % 2**32, 0, y)).any()
    np.testing.assert_array_equal(far, step(FAR, 10, np.concatenate([y, y])))


@pytest.fixture
def vast():
    """Make arrays of more rows than 32 bits count; all zeros, they take no memory until they are written to."""

    def make(dtype: str, columns: int = 1) -> np.ndarray:
        reserve_nothing = 0x4000  # MAP_NORESERVE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserve_nothing
        try:
            room = mmap.mmap(-1, (FAR + 16) * np.dtype(dtype).itemsize * columns, flags=flags)
        except OSError:
            pytest.skip("this system promises no more memory than it has")
        whole = np.frombuffer(room, dtype)
        return whole if columns == 1 else whole.reshape(-1, columns)

    return make


@pytest.mark.fault(35)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems promise memory in other ways")
def test_the_starts_kernels_reach_beyond_32_bits(vast):
    tails, weights, ends = vast("i8"), vast("f4"), vast("i8")
    indptr, labels = np.array([FAR, FAR + 2]), np.array([start.UNLABELLED])
    tails[FAR : FAR + 2], weights[FAR : FAR + 2] = [FAR + 3, FAR + 5], [0.25, 0.75]
    page = np.array([0, 0, 0, 7, 0, 9])
    start.look_up_tail_labels(indptr, tails, indptr[:-1].copy(), FAR, page, ends)
    assert ends[FAR : FAR + 2].tolist() == [7, 9]
    alone = [labels.copy() for _ in range(9)]
    counts = [
        start.label_lowest_hashes(indptr, tails, np.array([FAR]), label, seed) for seed, label in enumerate(alone)
    ]
    assert set(counts) == {(1, 0), (0, 1)}
    assert {label[0] for label in alone} == {start.UNLABELLED, -2 - FAR}
    assert start.spread_labels(indptr, weights, ends, np.array([FAR]), labels) == (1, 0)
    assert labels.tolist() == [9]
    assert start.spread_labels(np.array([FAR, FAR]), weights, ends, np.array([FAR]), labels) == (1, 0)
    assert labels.tolist() == [-2 - FAR]
    sums, totals, y = np.zeros((1, 1)), np.zeros(1), np.array([[0], [0], [0], [4], [0], [16]], np.float32)
    start.add_neighbor_coordinates(indptr, tails, weights, indptr[:-1].copy(), FAR, y, sums, totals)
    assert (sums.tolist(), totals.tolist()) == ([[0.25 * 4 + 0.75 * 16]], [1.0])
    box = start.place_at_labels(np.array([-2 - FAR]), np.empty((0, 2)), 42)
    np.testing.assert_allclose(box, start.draw_in_box(42, np.array([FAR]), 2), rtol=1e-6)


@pytest.mark.fault(35)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems promise memory in other ways")
def test_a_step_reaches_beyond_32_bits(vast):
    descent = layout.LayoutParameters(1.577, 0.895, 1.0, 1.0, 5.0, 50, 42)
    pool, coordinates = sort_pool(noise(POOL_ROWS, 2, seed=1)), noise(4, 2)

    def step(edge: int, y_offset: int, tails, relative_weights, sample_phases, y) -> list:
        tails[edge : edge + 3], relative_weights[edge : edge + 3] = y_offset + np.arange(1, 4), 2**14
        y[y_offset : y_offset + 4] = coordinates
        edges = Edges(np.array([edge, edge + 3]), tails, relative_weights, sample_phases)
        out, m, v = np.empty((1, 2), "f4"), np.zeros((1, 2), "f4"), np.zeros((1, 2), "f4")
        layout.step_epoch(descent, 3, 0, 1, FAR, y_offset, edges, y, m, v, pool, out)
        return [out.tolist(), m.tolist(), v.tolist()]

    near = step(0, 0, np.zeros(3, "u8"), np.zeros(3, "u2"), np.zeros(3, "u2"), np.zeros((4, 2), "f4"))
    assert near == step(FAR, FAR, vast("u8"), vast("u2"), vast("u2"), vast("f4", 2))


@pytest.mark.fault(35)
def test_choices_far_out_are_their_own():
    low = np.arange(1000)
    draws = [hashing.draw_words(42, hashing.POOL, low + far) for far in (0, 2**31, 2**32, 2**33, 2**40)]
    assert len(np.unique(np.concatenate(draws))) == 5000
    pool = np.concatenate([draw_pool_rows(42, epoch, MANY) for epoch in range(5)])
    assert pool.dtype == np.int64
    assert pool.min() >= 0
    assert pool.max() < MANY
    assert (pool > 2**31).mean() == pytest.approx(1 - 2**31 / MANY, abs=0.02)
    hashes = np.arange(5, dtype=np.uint64)
    assert hashing.sum_hashes(hashes, FAR) != hashing.sum_hashes(hashes, FAR % 2**32)
    box = start.draw_in_box(42, low[:10] + MANY, 64)
    assert np.unique(box).size == 640


@pytest.mark.fault(35)
def test_coarse_pairs_beyond_32_bits_are_added_up(ring):
    """As many labels as 3e9 rows give make pairs up to (3e9 / 32)^2."""
    indptr, tails, weights = ring
    count = MANY // 32
    labels = np.arange(count - 10, count)
    pairs, sums = coarse.sum_edges_by_label(indptr, weights, labels, labels[tails], count)
    assert pairs.dtype == sums.dtype == np.int64
    heads = np.repeat(np.arange(10), 2)
    expected = sorted(zip((labels[heads] * count + labels[tails]).tolist(), weights.tolist(), strict=True))
    assert max(expected)[0] > 2**52
    assert pairs.tolist() == [pair for pair, _ in expected]
    np.testing.assert_array_equal(sums, np.rint(np.array([w for _, w in expected]) * 2**20).astype(np.int64))


@pytest.mark.fault(35)
def test_spans_far_out_are_read(tmp_path):
    """Parts that begin beyond 32 bits of rows, of which the first is never read."""
    run = Run(str(tmp_path / "run.zarr"))
    run.create({key: {} for key in ("parameters", "versions", "input")})
    names, sizes = ["before", "p0", "p1"], [MANY, 5, 3]
    offsets = np.cumsum([0, *sizes])
    for name, first, size in zip(names[1:], offsets[1:], sizes[1:], strict=False):
        with run.part("stage", name) as out:
            out.write("a", np.arange(first, first + size))
    for low in range(8):
        for high in range(low + 1, 9):
            rows = run.read_from_parts("stage", names, offsets, "a", MANY + low, MANY + high)
            assert rows.tolist() == list(range(MANY + low, MANY + high))


@pytest.mark.fault(35)
def test_an_input_of_more_rows_than_32_bits_count(new_path):
    """Chunks that are not there are zeros in Zarr, so that the array takes no room."""
    from dumap.sources.zarr_array import ArrayInput

    path = new_path("in.zarr")
    array = zarr.create_group(path).create_array("vectors", shape=(MANY, 2), chunks=(1000, 2), dtype="f4")
    array[MANY - 3 : MANY] = noise(3, 2)
    config = build_config({"input": {"path": path}, "output": new_path("run.zarr")})
    assert plan(config).geometry.index_dtype == np.int64
    source = ArrayInput(path, "vectors")
    assert source.rows == MANY
    np.testing.assert_array_equal(source.read(MANY - 4, MANY), np.concatenate([np.zeros((1, 2)), noise(3, 2)]))
