"""Rows that are as hard to search as others, scripts/hard_vectors.py."""

import json
import sys

import hard_vectors
import numpy as np
import pytest
import zarr
from hard_vectors import Recipe, SourceRows


@pytest.fixture
def unit():
    """Return 500 rows of unit length in 20 columns, about a circle."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 500)
    x = np.zeros((500, 20))
    x[:, 0], x[:, 1] = np.cos(angle), np.sin(angle)
    x += rng.normal(0, 0.01, x.shape)
    return SourceRows((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), np.arange(500))


def test_rows_lie_between_two_of_the_source(unit, digits):
    source = SourceRows(digits[0][:200])
    made, first = source.make_chunk(Recipe(3, 0.5, 0.0), 0)
    x = source.x[first[:50]].astype(np.float64)
    moves = [made[row] - x[row] for row in range(50)]
    directions = source.x[None] - x[:, None]
    norms = np.linalg.norm(directions, axis=2) * np.linalg.norm(moves, axis=1)[:, None]
    cosines = np.einsum("rnd,rd->rn", directions, moves) / np.maximum(norms, 1e-9)
    assert np.allclose(cosines.max(axis=1), 1, atol=1e-3)  # each on its way to some other row
    assert (np.linalg.norm(moves, axis=1) <= 0.5 * np.linalg.norm(directions, axis=2).max(axis=1)).all()


def test_rows_of_unit_length_stay_so_and_jitter_has_the_length_asked_for(unit, digits):
    assert np.allclose(np.linalg.norm(unit.make_chunk(Recipe(3, 0.5, 0.3), 0)[0], axis=1), 1, atol=1e-5)
    source = SourceRows(digits[0])
    still, moved = (source.make_rows(Recipe(3, 0.5, jitter), 2000) for jitter in (0.0, 0.3))
    spread = np.sqrt(((digits[0] - digits[0].mean(axis=0)) ** 2).sum(axis=1).mean())
    assert np.linalg.norm(moved - still, axis=1).mean() == pytest.approx(0.3 * spread, rel=0.02)


@pytest.mark.parametrize("dimension", [2, 5])
def test_the_intrinsic_dimension_is_that_of_a_cube(dimension):
    x = np.random.default_rng(1).random((3000, dimension))
    x = np.pad(x, ((0, 0), (0, 20 - dimension)))
    middle = np.nonzero((np.abs(x[:, :dimension] - 0.5) < 0.25).all(axis=1))[0]
    distances = np.sort(np.linalg.norm(x[middle, None] - x, axis=2), axis=1)[:, 1:31]
    assert hard_vectors.intrinsic_dimension(distances) == pytest.approx(dimension, rel=0.15)


@pytest.mark.parametrize(("target", "jitter", "mix"), [(0.8, 0.5, 0.5), (0.9, 0.25, 0.5), (1.0, 0.0, 0.0)])
def test_the_jitter_is_chosen_by_recall_or_else_the_mix(unit, monkeypatch, target, jitter, mix):
    def pretended(x, threads):  # recall falls with jitter and with mix
        requested = recipes.pop()
        recall = 1 - requested.jitter * 0.4 - (requested.mix * 0.1 if target == 1.0 else 0.0)
        return {"rows": 1, "recall": recall, "intrinsic_dimension": 1.0, "contrast": 1.0}

    recipes = []
    monkeypatch.setattr(hard_vectors, "measure_hardness", pretended)
    monkeypatch.setattr(unit, "make_rows", lambda recipe, count: recipes.append(recipe))
    recipe, figures = hard_vectors.match_recall(unit, Recipe(7, 0.5, 0.0), 100, target, 1)
    assert (recipe.jitter, recipe.mix) == pytest.approx((jitter, mix), abs=0.05)
    assert figures["recall"] == pytest.approx(target, abs=hard_vectors.RECALL_TOLERANCE)


def test_a_smaller_store_is_the_beginning_of_a_larger_one(unit, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hard_vectors, "CHUNK_ROWS", 64)
    group = zarr.create_group(tmp_path / "source.zarr")
    group.create_array("vectors", data=unit.x, chunks=(90, 20))
    group.create_array("labels", data=unit.labels.astype(np.int32), chunks=(500,))
    made = {}
    for rows in (50, 200):
        out = str(tmp_path / f"{rows}.zarr")
        words = [str(tmp_path / "source.zarr"), out, "--rows", str(rows), "--jitter", "0.1", "--no-report"]
        monkeypatch.setattr(sys, "argv", ["hard_vectors.py", *words])
        hard_vectors.main()
        assert json.loads(capsys.readouterr().out)["jitter"] == 0.1
        made[rows] = zarr.open_group(out, mode="r")
    few, many = made[50], made[200]
    assert many["vectors"].shape == (200, 20)
    assert np.array_equal(few["vectors"][:], many["vectors"][:50])
    assert np.array_equal(few["labels"][:], many["labels"][:50])
    assert dict(many.attrs) == {"seed": 7, "mix": 0.5, "jitter": 0.1, "source": "source.zarr", "source_rows": 500}
    nearest = np.linalg.norm(unit.x[many["labels"][:]] - many["vectors"][:], axis=1)
    assert np.median(nearest) < 0.7, "labels are those of the row that each is most of"


@pytest.mark.slow
def test_hardness_is_measured_on_real_rows(digits):
    figures = hard_vectors.measure_hardness(digits[0], 1)
    assert figures["rows"] == len(digits[0])
    assert 0.9 < figures["recall"] <= 1
    assert 5 < figures["intrinsic_dimension"] < 20
    assert 1.5 < figures["contrast"] < 5
