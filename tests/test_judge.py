"""The judge of maps and neighbours, scripts/judge.py, against slow definitions and scikit-learn."""

import json
import sys

import judge
import numpy as np
import pytest
import zarr
from scipy.spatial.distance import cdist
from sklearn.manifold import trustworthiness
from sklearn.metrics import silhouette_score

ROWS = 400


@pytest.fixture(scope="module")
def store(digits, tmp_path_factory):
    """Write digits and labels."""
    out = str(tmp_path_factory.mktemp("judged") / "digits.zarr")
    group = zarr.create_group(out)
    group.create_array("vectors", data=digits[0][:ROWS], chunks=(150, 64))
    group.create_array("labels", data=digits[1][:ROWS].astype(np.uint8), chunks=(150,))
    return out


@pytest.fixture(scope="module")
def sample(store):
    """Draw all rows as queries."""
    return judge.draw_sample(store, queries=ROWS)


@pytest.fixture(scope="module")
def nearest(digits):
    """Return the exact 15 neighbours of all rows."""
    d = cdist(digits[0][:ROWS], digits[0][:ROWS])
    np.fill_diagonal(d, np.inf)
    return np.argsort(d, axis=1, kind="stable")[:, :15]


@pytest.fixture(scope="module")
def y(digits):
    """Return a map: two columns of pixels and a little noise."""
    return digits[0][:ROWS, 20:22] + np.random.default_rng(0).normal(0, 0.1, (ROWS, 2))


def test_neighbors_are_exact(sample, digits, nearest):
    d = cdist(digits[0][:ROWS], digits[0][:ROWS])
    mine = np.take_along_axis(d, sample.nearest, 1)
    assert np.allclose(np.sort(mine, axis=1), np.take_along_axis(d, nearest, 1))
    assert not (sample.nearest == np.arange(ROWS)[:, None]).any()


def test_figures_of_a_map_are_those_of_their_definitions(sample, digits, y, nearest):
    x, labels = digits[0][:ROWS], digits[1][:ROWS]
    figures = judge.judge_map(sample, y)
    d = cdist(y, y)
    np.fill_diagonal(d, np.inf)
    mapped = np.argsort(d, axis=1)
    kept = [np.isin(sample.nearest[row], mapped[row, :15]).mean() for row in range(ROWS)]
    assert figures["kept15"] == pytest.approx(np.mean(kept))
    assert figures["kept100"] > figures["kept15"]
    assert figures["trust15"] == pytest.approx(trustworthiness(x, y, n_neighbors=15), abs=2e-3)
    assert figures["silhouette"] == pytest.approx(silhouette_score(y, labels), abs=1e-6)
    votes = [np.bincount(labels[mapped[row, :15]]).argmax() for row in range(ROWS)]
    assert figures["label15"] == pytest.approx(np.mean(votes == labels))
    assert figures["stray"] == 0


def test_cross_entropy_is_that_of_near_and_far_pairs(sample, y):
    figures = judge.judge_map(sample, y)
    membership = 1 / (1 + judge.CURVE_A * cdist(y, y) ** (2 * judge.CURVE_B))
    near = -np.log([membership[row, sample.nearest[row]] for row in range(ROWS)]).mean()
    others = cdist(y, y)[~np.eye(ROWS, dtype=bool)]  # all pairs, of which the judge draws some
    far = -np.log(1 - 1 / (1 + judge.CURVE_A * (others**2 + 1e-3) ** judge.CURVE_B)).mean()
    assert figures["near"] == pytest.approx(near)
    assert figures["far"] == pytest.approx(far, rel=0.02)
    assert figures["xent"] == pytest.approx(figures["near"] + 2.5 * figures["far"])


def test_a_map_of_the_data_itself_is_perfect(sample, digits):
    figures = judge.judge_map(sample, digits[0][:ROWS].astype(float))
    assert (figures["kept15"], figures["triplet"]) == pytest.approx((1, 1), abs=2e-3)
    assert figures["trust15"] == pytest.approx(1, abs=1e-4)


def test_stray_points_are_counted(sample, y):
    far = y.copy()
    far[:4] += 1000
    assert judge.judge_map(sample, far)["stray"] == pytest.approx(4 / ROWS)


def test_recall_is_the_share_of_exact_neighbors_listed(sample):
    lists = sample.nearest.copy()
    assert judge.recall(sample, lists) == 1
    lists[:, 10:] = -1
    assert judge.recall(sample, lists) == pytest.approx(10 / 15)
    assert judge.recall(sample, sample.nearest[:, :5]) == 1  # as many as the lists are wide


def test_a_silhouette_leaves_out_classes_of_one_point():
    y, labels = np.array([[0.0, 0], [0, 1], [5, 0], [5, 1], [99, 99]]), np.array([0, 0, 1, 1, 2])
    d = cdist(y, y)
    within, other = d[0, 1], d[0, 2:4].mean()
    assert judge.silhouette(y, labels) == pytest.approx((other - within) / other, abs=0.01)
    assert np.isnan(judge.silhouette(y[:2], labels[:2]))


@pytest.mark.parametrize(
    ("dumap_figures", "peer", "behind"),
    [
        ({"kept15": 0.2, "xent": 0.70}, {"kept15": 0.2, "xent": 0.70}, []),
        ({"kept15": 0.193, "trust15": 0.98}, {"kept15": 0.2, "trust15": 0.995}, ["kept15", "trust15"]),
        ({"silhouette": 0.18, "label15": 0.8}, {"silhouette": 0.2, "label15": 0.805}, []),
        ({"xent": 0.72}, {"xent": 0.70}, ["xent"]),
        ({"recall": 0.9, "stray": 0.001}, {"recall": 0.95}, ["recall", "stray"]),
        ({"recall": 0.9}, {"xent": 0.7}, []),
    ],
)
def test_figures_that_are_worse_by_more_than_noise_are_named(dumap_figures, peer, behind):
    assert judge.list_worse_figures(dumap_figures, peer) == behind


def test_the_command_prints_a_line_for_each_map(store, y, nearest, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "map.npy", y)
    zarr.create_group(tmp_path / "run.zarr").create_array("embedding", data=y)
    np.save(tmp_path / "lists.npy", nearest)
    words = [store, str(tmp_path / "map.npy"), str(tmp_path / "run.zarr/embedding"), "--queries", "100"]
    monkeypatch.setattr(sys, "argv", ["judge.py", *words, "--neighbors", str(tmp_path / "lists.npy")])
    judge.main()
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert {**first, "map": ""} == {**second, "map": ""}
    assert third["recall"] == pytest.approx(1, abs=2e-3)  # equal distances may be listed in another order


@pytest.mark.parametrize("broken", [np.full((ROWS, 2), np.nan), np.zeros((ROWS - 1, 2))])
def test_maps_that_are_none_are_refused(sample, broken):
    with pytest.raises(ValueError, match="400 rows"):
        judge.judge_map(sample, broken)
