"""Numbers wider than float32: whole runs of rows far from zero, on the globe, and too far apart."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import NoteRecorder
from sklearn.neighbors import NearestNeighbors

from dumap.errors import InputError
from dumap.recipe.pipeline import run
from dumap.store import Run

SHORT = {"neighbors.n_neighbors": 6, "layout.n_epochs": 5, "audit.queries": 100}


def orchard(rows: int = 400) -> np.ndarray:
    """Return rows around 12 places 4 apart, within 0.15."""
    rng = np.random.default_rng(5)
    centres = 4.0 * np.stack(np.meshgrid(np.arange(4), np.arange(3)), axis=-1).reshape(-1, 2)
    return centres[rng.integers(0, 12, rows)] + rng.normal(scale=0.15, size=(rows, 2))


def recall(done, x: np.ndarray, metric: str = "euclidean") -> float:
    """Return the share of the true neighbours that a run's lists hold."""
    lists, _ = done.neighbors()
    model = NearestNeighbors(n_neighbors=lists.shape[1], algorithm="brute", metric=metric).fit(x)
    true = model.kneighbors(return_distance=False)
    return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in zip(true, lists, strict=True)]))


FAR = {
    "metres of a map grid": (lambda x: x + np.array([431_000.0, 5_411_000.0]), "euclidean"),
    "big-endian": (lambda x: (x + 5e6).astype(">f8"), "manhattan"),
    "nanoseconds since 1970": (lambda x: np.rint(x * 1e6).astype(np.int64) + 1_700_000_000 * 10**9, "chebyshev"),
    "uint32 near its end": (lambda x: (np.rint(x * 1000) + (2**32 - 2**20)).astype(np.uint32), "euclidean"),
    "an outlier first": (lambda x: np.concatenate([[[1e7, -1e7]], x[1:] + 5e6]), "euclidean"),
}


@pytest.mark.fault(31)
@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=() if number == 0 else pytest.mark.slow) for number, kind in enumerate(FAR)],
)
def test_rows_far_from_zero_keep_their_neighbors(embed, kind):
    make, metric = FAR[kind]
    x = make(orchard())
    done = embed(x, {**SHORT, "neighbors.metric": metric, "cells.max_rows": 150})
    near = (x.astype(object) - x[1].astype(object)).astype(np.float64)  # exact, whatever the dtype
    assert recall(done, near, metric) > 0.95
    facts = done.facts("vectors")
    assert facts["centred"]
    assert facts["inexact"] > 300
    assert facts["equal_after_cast"] == 0
    assert done.facts("audit")["recall"] > 0.95


@pytest.mark.fault(31)
def test_wide_numbers_that_float32_holds_are_cast_alone(embed):
    """The bytes are those of the same rows as float32, though they travel as 4 bytes a number."""
    x = np.rint(orchard() * 8) / 8
    done = [embed(x.astype(dtype), SHORT) for dtype in (np.float32, np.float64)]
    assert done[0].y.tobytes() == done[1].y.tobytes()
    assert not done[1].facts("vectors")["centred"]
    assert Run(done[1].output).read("cells", "sorted-00000", "vectors").dtype == np.float32


@pytest.mark.fault(31)
@pytest.mark.parametrize("metric", ["euclidean", pytest.param("cosine", marks=pytest.mark.slow)])
def test_rows_that_fall_together_all_the_same_are_counted(configure, inspect, metric):
    x = orchard() + (1e6 if metric == "cosine" else 0)
    x[200:] = x[:200] + 1e-9  # less than float32 tells apart at such distances from one another
    x[0, 0], x[1, 0] = 0.0, -0.0
    x[0, 1] = x[1, 1] = 0.0
    config, notes = configure(x, {**SHORT, "neighbors.metric": metric}), NoteRecorder()
    run(config, observer=notes)
    facts = inspect(config.output).facts("vectors")
    assert facts["duplicates"] == 0
    assert facts["centred"] == (metric == "euclidean")
    assert 150 < facts["equal_after_cast"] < 400, "0 and -0 are no different rows"
    assert [
        note
        for note in notes.notes
        if f"{facts['equal_after_cast']} rows of float64 differ" in note and "float32" in note
    ]


@pytest.fixture(scope="module")
def globe() -> np.ndarray:
    """Return points all over the globe: latitude and longitude in radians."""
    ball = np.random.default_rng(6).normal(size=(900, 3))
    ball /= np.linalg.norm(ball, axis=1)[:, None]
    return np.stack([np.arcsin(ball[:, 2]), np.arctan2(ball[:, 1], ball[:, 0])], axis=1)


@pytest.mark.fault(37)
@pytest.mark.parametrize("dtype", ["f8", pytest.param("f4", marks=pytest.mark.slow)])
def test_the_globe_has_no_edge(embed, globe, dtype):
    settings = {**SHORT, "neighbors.metric": "haversine", "cells.max_rows": 200, "start.init": "pca"}
    done = embed(globe.astype(dtype), settings)
    assert done.facts("cells")["cells"] > 4
    lists, distances = done.neighbors()
    true = NearestNeighbors(n_neighbors=lists.shape[1], algorithm="brute", metric="haversine").fit(globe)
    exact, near = true.kneighbors()
    hits = np.array([len(np.intersect1d(a, b)) / len(a) for a, b in zip(near, lists, strict=True)])
    seam, pole = np.pi - np.abs(globe[:, 1]) < 0.1, np.abs(globe[:, 0]) > 1.4
    assert min(hits.mean(), hits[seam].mean(), hits[pole].mean()) > 0.95
    np.testing.assert_allclose(distances[hits == 1], exact[hits == 1], rtol=1e-3, atol=1e-6)
    assert done.facts("audit")["recall"] > 0.95


@pytest.mark.fault(37)
@pytest.mark.parametrize("change", [np.degrees, lambda x: x[:, ::-1]], ids=["degrees", "longitude first"])
def test_degrees_are_refused(configure, globe, change):
    config = configure(change(globe), {**SHORT, "neighbors.metric": "haversine"})
    with pytest.raises(InputError, match=r"latitude and longitude in radians.*the rows reach .*radians"):
        run(config)
