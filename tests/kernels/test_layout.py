"""One epoch of the layout, against an obvious reference."""

import hashlib
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sparse
from graphs import FIXED_POINT_UNIT, SEED, expected_samples, heads_of_edges, pack_graph
from graphs import LAYOUT_EPOCHS as EPOCHS
from graphs import LAYOUT_ROWS as ROWS
from helpers import mark_slow_except

from dumap.kernels import hashing, layout
from dumap.kernels.edges import Edges
from dumap.kernels.pool import POOL_ROWS, draw_pool_rows, sort_pool

EPOCH = 3
PARAMETERS = layout.LayoutParameters(1.577, 0.895, 1.0, 1.5, 5.0, EPOCHS, SEED)


def draw_state(n_components: int):
    """Return coordinates and moments, as they are some epochs in, and the pool."""
    rng = np.random.default_rng(n_components)
    y = rng.uniform(0, 10, (ROWS, n_components)).astype(np.float32)
    m = rng.normal(0, 1, y.shape).astype(np.float32)
    v = rng.uniform(0.5, 2, y.shape).astype(np.float32)
    return y, m, v, y[draw_pool_rows(SEED, EPOCH, ROWS)]


def step_shard(edges, y, m, v, pool, start=0, stop=None, first=0, y_offset=0, parameters=PARAMETERS, exchanged=None):
    """Return a shard's rows [start, stop) after an epoch, and the moments."""
    m, v, out = m.copy(), v.copy(), np.full(m.shape, np.nan, np.float32)
    stop = len(m) if stop is None else stop
    layout.step_epoch(parameters, EPOCH, start, stop, first, y_offset, edges, y, m, v, sort_pool(pool), out, exchanged)
    return out, m, v


def reference_epoch(edges, y, m, v, pool, parameters=PARAMETERS, exchanged=None):
    """Step every row, one edge and one negative at a time, in float64."""
    a, b, rate, gamma, negatives = parameters[:5]
    pool = sort_pool(pool).T
    y, m, v, pool = (array.astype(np.float64) for array in (y, m, v, pool))
    epoch_key = hashing.draw_words(SEED, hashing.POOL_OFFSETS, np.array([EPOCH]))[0]
    times, out = expected_samples(edges, EPOCH), np.empty_like(m)
    totals = np.bincount(heads_of_edges(edges), times, len(m))
    for i in range(len(m)):
        pull, push = np.zeros(y.shape[1]), np.zeros(y.shape[1])
        for e in range(edges.indptr[i], edges.indptr[i + 1]):
            is_exchanged = exchanged is not None and edges.tails[e] >= len(m)
            difference = (exchanged[i] if is_exchanged else y[i]) - y[edges.tails[e]]
            d2 = difference @ difference + 1e-8
            pull += times[e] * np.clip(2 * a * b * d2 ** (b - 1) / (1 + a * d2**b) * difference, -4, 4)
        group = i // layout.ROW_GROUP
        count = int(np.ceil(negatives / 2 * totals[group * layout.ROW_GROUP :][: layout.ROW_GROUP].mean()))
        difference = POOL_ROWS * FIXED_POINT_UNIT // max(count, 1)
        first = int(hashing.draw_word(epoch_key, group)) % difference
        for n in range(count):
            difference_from_sample = y[i] - pool[(first + n * difference) // FIXED_POINT_UNIT]
            d2 = difference_from_sample @ difference_from_sample
            push += np.clip(2 * b * gamma / ((0.001 + d2) * (1 + a * (d2 + 1e-8) ** b)) * difference_from_sample, -4, 4)
        gradient = pull - push * negatives / 2 * totals[i] / max(count, 1)
        m[i] = 0.5 * m[i] + 0.5 * gradient
        v[i] = 0.9 * v[i] + 0.1 * gradient**2
        mean, spread = m[i] / (1 - 0.5 ** (EPOCH + 1)), v[i] / (1 - 0.9 ** (EPOCH + 1))
        out[i] = y[i] - rate * (1 - EPOCH / EPOCHS) * mean / (np.sqrt(spread) + 0.03)
    return out, m, v


@pytest.mark.parametrize("n_components", mark_slow_except([1, 2, 3, 64], 2, 3))
def test_an_epoch_is_that_of_the_obvious_reference(graph, n_components):
    edges, before = pack_graph(graph), draw_state(n_components)
    assert expected_samples(edges, EPOCH).max() == 2
    for array, expected in zip(step_shard(edges, *before), reference_epoch(edges, *before), strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("negative_sample_rate", [0.0, 0.01, pytest.param(60.0, marks=pytest.mark.slow)])
def test_negatives_are_as_many_as_asked_for(graph, negative_sample_rate):
    """None at all, less than one a row, and many."""
    edges, before, parameters = (
        pack_graph(graph),
        draw_state(2),
        PARAMETERS._replace(negative_sample_rate=negative_sample_rate),
    )
    after, expected = step_shard(edges, *before, parameters=parameters), reference_epoch(edges, *before, parameters)
    for array, expected_array in zip(after, expected, strict=True):
        np.testing.assert_allclose(array, expected_array, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_group_of_more_edges_than_are_looked_at_together():
    upper = np.triu(np.random.default_rng(1).random((ROWS, ROWS)), 1).astype(np.float32)
    edges, before = pack_graph(sparse.csr_matrix(upper + upper.T)), draw_state(2)
    assert edges.indptr[layout.ROW_GROUP] > 3 * layout.EDGES_AT_ONCE
    for array, expected in zip(step_shard(edges, *before), reference_epoch(edges, *before), strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_components", mark_slow_except([1, 2, 3, 64], 2, 3))
def test_an_epoch_is_the_same_however_rows_are_cut_into_slices(graph, n_components):
    edges, (y, m, v, pool) = pack_graph(graph), draw_state(n_components)
    whole, _, _ = step_shard(edges, y, m, v, pool)
    out, sorted_pool = np.empty_like(y), sort_pool(pool)
    cuts = [0, 64, 192, 192, ROWS]
    for low, high in reversed(list(pairwise(cuts))):
        layout.step_epoch(PARAMETERS, EPOCH, low, high, 0, 0, edges, y, m, v, sorted_pool, out)
    assert out.tobytes() == whole.tobytes()


def pack_with_halo(graph, low: int, high: int) -> tuple[Edges, np.ndarray]:
    """Pack rows [low, high) with tails counted within them, then within the rows they touch outside; return those."""
    edges = pack_graph(graph, low, high)
    inside = (edges.tails >= low) & (edges.tails < high)
    halo = np.unique(edges.tails[~inside])
    local = np.where(inside, edges.tails - low, high - low + np.searchsorted(halo, edges.tails))
    return edges._replace(tails=local.astype(edges.tails.dtype)), halo


@pytest.mark.parametrize(("low", "high"), [(0, 64), (64, 192), (192, ROWS), (256, ROWS)])
def test_a_shard_with_its_halo_steps_as_the_whole_does(graph, low, high):
    y, m, v, pool = draw_state(2)
    whole = step_shard(pack_graph(graph), y, m, v, pool)
    shared = step_shard(pack_graph(graph, low, high), y, m[low:high], v[low:high], pool, first=low, y_offset=low)
    edges, halo = pack_with_halo(graph, low, high)
    known = np.concatenate([y[low:high], y[halo]])
    difference = step_shard(edges, known, m[low:high], v[low:high], pool, first=low)
    for a, b, expected in zip(shared, difference, whole, strict=True):
        assert a.tobytes() == b.tobytes() == expected[low:high].tobytes()


@pytest.mark.parametrize("n_components", mark_slow_except([2, 64], 2))
def test_edges_to_rows_not_exchanged_pull_from_where_both_ends_were(graph, n_components):
    y, m, v, pool = draw_state(n_components)
    edges, halo = pack_with_halo(graph, 0, 128)
    known, exchanged = np.concatenate([y[:128], y[halo]]), y[:128] + np.float32(0.5)
    after = step_shard(edges, known, m[:128], v[:128], pool, exchanged=exchanged)
    expected = reference_epoch(edges, known, m[:128], v[:128], pool, exchanged=exchanged)
    for array, expected_array in zip(after, expected, strict=True):
        np.testing.assert_allclose(array, expected_array, rtol=1e-4, atol=1e-5)
    just = step_shard(edges, known, m[:128], v[:128], pool, exchanged=known[:128].copy())
    assert [a.tobytes() for a in just] == [a.tobytes() for a in step_shard(edges, known, m[:128], v[:128], pool)]
    assert just[0].tobytes() != after[0].tobytes()


ELSEWHERE = """
import hashlib, sys
import numpy as np
from dumap.kernels import edges as packing, layout

with np.load(sys.argv[1]) as given:
    (n_epochs, seed, epoch, rows), greatest = given["whole"].tolist(), float(given["greatest"])
    edges = packing.pack_edges(given["indptr"], given["tails"], given["weights"], 0, greatest, n_epochs, seed)
    parameters = layout.LayoutParameters(*given["parameters"].tolist(), n_epochs, seed)
    y, m, v, pool = (given[name] for name in ("y", "m", "v", "pool"))
out = np.full_like(m, np.nan)
layout.step_epoch(parameters, epoch, 0, rows, 0, 0, edges, y, m, v, pool, out, None)
print(hashlib.sha256(b"".join(a.tobytes() for a in (out, m, v))).hexdigest())
"""


@pytest.mark.slow
def test_another_processor_takes_the_same_steps(graph, tmp_path):
    """Code made for any processor of the kind, without its wider lanes and fused products."""
    y, m, v, pool = draw_state(2)
    np.savez(
        tmp_path / "given.npz", whole=[EPOCHS, SEED, EPOCH, ROWS], greatest=graph.data.max(), parameters=PARAMETERS[:5],
        indptr=graph.indptr.astype(np.int64), tails=graph.indices.astype(np.int32), weights=graph.data,
        y=y, m=m, v=v, pool=sort_pool(pool),
    )  # fmt: skip
    generic = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(tmp_path / "given.npz")],
        env={**os.environ, **generic}, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    after = step_shard(pack_graph(graph), y, m, v, pool)
    assert done.stdout == hashlib.sha256(b"".join(a.tobytes() for a in after)).hexdigest() + "\n"


def test_an_epoch_writes_its_rows_alone(graph):
    y, m, v, pool = draw_state(2)
    out, m1, v1 = step_shard(pack_graph(graph), y, m, v, pool, 64, 128)
    rest = np.delete(np.arange(ROWS), np.arange(64, 128))
    assert np.isnan(out[rest]).all()
    assert np.isfinite(out[64:128]).all()
    assert np.array_equal(m1[rest], m[rest])
    assert np.array_equal(v1[rest], v[rest])
    assert np.array_equal(y, draw_state(2)[0])


@pytest.mark.parametrize(("start", "stop", "first"), [(1, ROWS, 0), (0, 100, 0), (0, ROWS, 7)])
def test_rows_that_are_not_whole_groups_are_refused(graph, start, stop, first):
    with pytest.raises(ValueError, match="not whole groups of 64"):
        step_shard(pack_graph(graph), *draw_state(2), start, stop, first)


def test_rows_in_one_place_stay_finite(graph):
    y, m, v, _ = draw_state(2)
    y[:] = 5
    for array in step_shard(pack_graph(graph), y, m, v, y[draw_pool_rows(SEED, EPOCH, ROWS)]):
        assert np.isfinite(array).all()


@pytest.mark.parametrize("n_components", [1, 2, 3])
def test_the_loss_is_that_of_the_obvious_reference(n_components):
    rng = np.random.default_rng(n_components)
    heads_of_edges, tails, others = rng.normal(size=(3, 50, n_components)).astype(np.float32)
    weights = rng.random(50)
    a, b, _, gamma, negatives = PARAMETERS[:5]
    pull = push = 0.0
    for h, t, o, w in zip(heads_of_edges, tails, others, weights, strict=True):
        near, far = (1 / (1 + a * (((h - p) ** 2).sum() + 1e-3) ** b) for p in (t, o))
        pull -= w * np.log(near) / weights.sum()
        push -= np.log(1 - far) / len(heads_of_edges)
    loss = layout.estimate_loss(PARAMETERS, heads_of_edges, tails, weights, others)
    assert loss == pytest.approx(pull + negatives / 2 * gamma * push, rel=1e-5)


def test_the_loss_is_lower_where_edges_are_short():
    rng = np.random.default_rng(0)
    heads_of_edges, others = rng.uniform(0, 100, (2, 500, 2)).astype(np.float32)
    weights = np.ones(500)
    losses = [
        layout.estimate_loss(PARAMETERS, heads_of_edges, heads_of_edges + np.float32(difference), weights, others)
        for difference in (0.1, 1, 10)
    ]
    assert losses == sorted(losses)
