"""Whole runs: their results, their quality, and the memory they took."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import K, brute_force_neighbors
from sklearn.neighbors import NearestNeighbors

from dumap.recipe.stage_names import STAGES
from dumap.store import Run


@pytest.fixture(scope="module")
def all_digits_run(digits, embed, client):
    """Return a run of all digits with the default epochs, in many cells, by two workers. It takes about 10 s."""
    settings = {"cells.max_rows": 500, "layout.n_epochs": None, "start.coarse_epochs": 500, "audit.queries": 300}
    return embed(digits[0], settings, client)


def test_embedding_is_finite_and_described(all_digits_run, digits):
    y = all_digits_run.array("embedding")
    assert y.shape == (len(digits[0]), 2)
    assert y.dtype == np.float32
    assert y.metadata.dimension_names == ("row", "component")
    assert np.isfinite(all_digits_run.y).all()
    assert not all_digits_run.flags.any()
    attributes = Run(all_digits_run.output, read_only=True).attributes
    assert attributes["seed"] == 42
    assert attributes["parameters"]["neighbors"]["n_neighbors"] == K + 1
    assert {"dumap", "numpy", "numba", "pynndescent"} <= set(attributes["versions"])
    assert len(attributes["fingerprint"]) == 16
    assert attributes["fingerprint"] == all_digits_run.facts("vectors")["fingerprint"]


def test_rows_keep_the_inputs_order_and_their_company(all_digits_run, digits):
    """A label's rows lie together, so a wrong order of rows would lose the vote."""
    near = NearestNeighbors(n_neighbors=K).fit(all_digits_run.y).kneighbors(return_distance=False)
    votes = np.apply_along_axis(lambda row: np.bincount(row, minlength=10), 1, digits[1][near])
    assert (votes.argmax(axis=1) == digits[1]).mean() >= 0.9


def test_quality_is_that_of_the_exports(all_digits_run, digits):
    facts, (indices, _) = all_digits_run.facts("audit"), all_digits_run.neighbors()
    exact = np.argsort(brute_force_neighbors(digits[0], "euclidean"), axis=1, kind="stable")[:, :K]
    recall = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(indices, exact, strict=True)])
    assert facts["recall"] >= 0.97
    assert facts["recall_low"] - 0.01 <= recall <= facts["recall_high"] + 0.01
    assert all_digits_run.facts("quality")["trustworthiness"] > 0.95
    assert all_digits_run.facts("cells")["cells"] >= 16


@pytest.mark.slow
def test_cells_find_what_is_lost_at_their_borders(embed, digits):
    """Of the lists as they are searched; the audit's repair may not help."""
    x, shares = digits[0], []
    exact = np.sort(brute_force_neighbors(x, "euclidean"), axis=1)[:, [K - 1]]
    for cells_per_row in (1, 2, 5):
        settings = {"cells.max_rows": 500, "cells.max_cells_per_row": cells_per_row, "neighbors.max_repairs": 0}
        done = embed(x, settings)
        distances = done.neighbors()[1]
        shares.append((distances <= exact * (1 + 1e-5)).mean())
        assert done.facts("graph")["missing"] == 0
        assert done.facts("cells")["stored_rows"] <= cells_per_row * len(x)
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] >= 0.97


@pytest.mark.fault(19)
def test_measured_peak_is_within_the_projected(all_digits_run):
    stages = all_digits_run.status["stages"]
    assert [stage["name"] for stage in stages] == list(STAGES)
    for stage in stages:
        assert 0 < stage["peak_bytes"] <= stage["projected_bytes"], stage["name"]


@pytest.mark.fault(19)
@pytest.mark.faults
@pytest.mark.slow
def test_measured_peak_is_within_the_projected_with_more_rows(embed, client):
    x = np.random.default_rng(0).normal(size=(8000, 200)).astype(np.float32)
    settings = {"cells.max_rows": 1000, "task_memory": 32 * 2**20, "start.coarse_epochs": 20, "layout.n_epochs": 5}
    done = embed(x, {**settings, "audit.queries": 500}, client)
    for stage in done.status["stages"]:
        assert 0 < stage["peak_bytes"] <= stage["projected_bytes"], stage["name"]
