"""Data that is hard to embed: few rows, equal rows, and values that are not finite."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import mark_slow_except
from scipy import sparse

from dumap.artifacts.vectors import DROPPED, ZERO
from dumap.errors import InputError
from dumap.recipe.pipeline import run
from dumap.recipe.stage_names import STAGES
from dumap.store import Run


@pytest.fixture
def holed(digits_300):
    """Return 300 digits, three of which are not finite."""
    x = digits_300.copy()
    x[[7, 90, 299], [0, 5, 63]] = np.nan, np.inf, -np.inf
    return x


@pytest.mark.fault(27)
def test_rows_that_are_not_finite_are_named_before_the_graph_is_read(configure, holed):
    config = configure(holed)
    with pytest.raises(InputError, match=r"3 of 300 rows .* rows 7, 90, 299"):
        run(config)
    begun = {stage for stage in STAGES if Run(config.output).committed_parts(stage)}
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
@pytest.mark.parametrize("max_rows", mark_slow_except([None, 100], 100))
def test_rows_that_are_not_finite_are_dropped_and_flagged(embed, holed, max_rows):
    done = embed(holed, {"input.nonfinite": "drop", "audit.queries": 50, "cells.max_rows": max_rows})
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
@pytest.mark.parametrize("max_rows", mark_slow_except([None, 100], 100))
def test_identical_rows(embed, max_rows):
    done = embed(np.ones((400, 8), np.float32), {"cells.max_rows": max_rows, "audit.queries": 50})
    assert np.isfinite(done.y).all()
    assert done.facts("vectors")["duplicates"] == 399
    assert (done.neighbors()[1] == 0).all()


@pytest.mark.fault(29)
@pytest.mark.parametrize("max_rows", mark_slow_except([None, 100], 100))
def test_more_duplicates_than_neighbors(embed, digits_300, max_rows):
    done = embed(np.repeat(digits_300[:20], 20, axis=0), {"cells.max_rows": max_rows, "audit.queries": 50})
    assert np.isfinite(done.y).all()
    assert done.facts("vectors")["duplicates"] == 380
    assert (done.neighbors()[1] == 0).all()


@pytest.mark.fault(29)
@pytest.mark.parametrize("max_rows", mark_slow_except([None, 600], 600))
def test_half_of_the_rows_are_copies_of_five(embed, digits, max_rows):
    """Copies are neighbours of copies: no slot is empty, none of them is everyone's neighbour, and none is cut off."""
    rng = np.random.default_rng(0)
    x = np.concatenate([digits[0][:1500], np.repeat(digits[0][1500:1505], 300, axis=0)])[rng.permutation(3000)]
    done = embed(x, {"cells.max_rows": max_rows, "audit.queries": 100})
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
    done = embed(x, {"cells.max_rows": 100, "cells.max_cells_per_row": 1})
    assert np.isfinite(done.y).all()
    assert done.facts("graph")["missing"] == 0


@pytest.mark.fault(30)
@pytest.mark.parametrize("metric", mark_slow_except(["cosine", "correlation"], "cosine"))
def test_rows_without_direction(embed, digits_300, metric):
    x = digits_300.copy()
    x[::10] = 0
    done = embed(x, {"neighbors.metric": metric, "audit.queries": 50})
    assert np.isfinite(done.y).all()
    np.testing.assert_array_equal((done.flags & ZERO) > 0, np.arange(len(x)) % 10 == 0)
    assert done.facts("vectors")["zero"] == 30


@pytest.mark.fault(27)
def test_rows_that_overflow_are_not_finite(embed, digits_300):
    x = digits_300.astype(np.float64)
    x[5, 5] = 1e300
    with pytest.raises(InputError, match=r"1 of 300 rows .* rows 5"):
        embed(x)


@pytest.mark.fault(36)
def test_an_isolated_row_is_finite_and_flagged(embed, digits_300):
    from dumap.artifacts.vectors import ISOLATED

    x = np.vstack([digits_300, np.full((1, 64), 1000, np.float32)])
    done = embed(x, {"graph.disconnection_distance": 1000.0})
    assert np.isfinite(done.y).all()
    np.testing.assert_array_equal(np.flatnonzero(done.flags & ISOLATED), [300])
    assert done.facts("graph")["isolated"] == 1
